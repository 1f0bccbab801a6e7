/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant's webhook endpoints, under the names of OpenAI's client.webhooks. A secret is shown once, in the answer that
 * makes it.
 *
 *   POST   /v1/webhook_endpoints   {"url": "...", "name": "...", "event_types": ["video.completed", "video.failed"]}
 *   GET    /v1/webhook_endpoints
 *   DELETE /v1/webhook_endpoints/{id} */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/json.h"

static void write_endpoint(kn_json_writer *w, const kn_endpoint_row *row, const char *secret)
{
    kn_json_write_object(w);
    kn_json_write_key(w, "id");
    kn_json_write_string(w, row->id);
    kn_json_write_key(w, "object");
    kn_json_write_string(w, "webhook_endpoint");
    kn_json_write_key(w, "url");
    kn_json_write_string(w, row->url);
    kn_json_write_key(w, "name");
    kn_json_write_string(w, row->name);
    kn_json_write_key(w, "event_types");
    kn_json_write_array(w);
    for (int i = 0; i < KN_WEBHOOK_EVENTS; i++)
        if (row->events >> i & 1) kn_json_write_string(w, kn_webhook_event_name((kn_webhook_event)i));
    kn_json_write_array_end(w);
    kn_json_write_key(w, "enabled");
    kn_json_write_bool(w, row->enabled);
    kn_json_write_key(w, "created_at");
    kn_json_write_int(w, row->created_at / 1000000);
    if (secret) {
        kn_json_write_key(w, "signing_secret");
        kn_json_write_string(w, secret);
    }
    kn_json_write_object_end(w);
}

/* ---- create ---- */

static kn_status read_events(uint32_t *out, const json_t *events, kn_api_error *error)
{
    size_t index;
    const json_t *value;
    *out = (1u << KN_WEBHOOK_EVENTS) - 1;
    if (!events) return KN_OK;
    if (!json_is_array(events) || json_array_size(events) == 0)
        return kn_api_invalid_type(error, "event_types", "event_types must be an array of event names.");
    *out = 0;
    json_array_foreach(events, index, value)
    {
        int i = 0;
        while (i < KN_WEBHOOK_EVENTS &&
               (!json_is_string(value) || strcmp(json_string_value(value), kn_webhook_event_name((kn_webhook_event)i))))
            i++;
        if (i == KN_WEBHOOK_EVENTS)
            return kn_api_invalid_value(error, "event_types", "event_types may hold video.completed and video.failed.");
        *out |= 1u << i;
    }
    return KN_OK;
}

static kn_status read_name(char out[KN_ENDPOINT_NAME_BYTES], const json_t *name, kn_api_error *error)
{
    if (!name) return KN_OK;
    if (!json_is_string(name)) return kn_api_invalid_type(error, "name", "name must be a string.");
    if (json_string_length(name) >= KN_ENDPOINT_NAME_BYTES)
        return kn_api_invalid_value(error, "name", "name has at most %d bytes.", KN_ENDPOINT_NAME_BYTES - 1);
    memcpy(out, json_string_value(name), json_string_length(name) + 1);
    return KN_OK;
}

static kn_status read_row(const kn_call *call, kn_endpoint_row *row, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_webhook_url url;
    const kn_server_config *c = call->server->config;
    const kn_webhook_policy policy = {.development = c->webhook_development,
                                      .allow = (const char *const *)c->webhook_allow.items,
                                      .allow_count = c->webhook_allow.count};
    json_t *body = NULL;
    size_t bytes;
    const char *text = kn_http_body(call->exchange, &bytes), *name;
    json_t *value;
    KN_TRY(kn_json_body_parse(&body, text, bytes, NULL, error));
    json_object_foreach(body, name, value)
    {
        if (strcmp(name, "url") != 0 && strcmp(name, "name") != 0 && strcmp(name, "event_types") != 0)
            KN_TRY(kn_api_unknown_parameter(error, name));
    }
    value = json_object_get(body, "url");
    if (!value) KN_TRY(kn_api_missing_parameter(error, "url"));
    if (!json_is_string(value)) KN_TRY(kn_api_invalid_type(error, "url", "url must be a string."));
    if (json_string_length(value) >= sizeof row->url)
        KN_TRY(kn_api_invalid_value(error, "url", "url has at most %d characters.", KN_ENDPOINT_URL_BYTES - 1));
    if (kn_webhook_url_parse(&url, json_string_value(value), &policy) != KN_OK)
        KN_TRY(kn_api_invalid_value(error, "url", "%s", kn_fail_message()));
    memcpy(row->url, json_string_value(value), json_string_length(value) + 1);
    KN_TRY(read_name(row->name, json_object_get(body, "name"), error));
    KN_TRY(read_events(&row->events, json_object_get(body, "event_types"), error));
fail:
    json_decref(body);
    return st;
}

typedef struct creation {
    kn_call *call;
    kn_endpoint_row row;
} creation;

static void on_put(void *context, kn_store_result *result)
{
    creation *c = context;
    kn_call *call = c->call;
    kn_api_error error;
    if (result->status == KN_OK && result->outcome == KN_STORE_DONE) {
        kn_text text = kn_text_growing(16 << 10);
        kn_json_writer w = kn_json_writer_on(&text);
        c->row.created_at = result->at;
        write_endpoint(&w, &c->row, c->row.secret);
        if (call->exchange)
            kn_call_json(call, &text, NULL, 0);
        else
            kn_text_release(&text);
    } else if (call->exchange) {
        if (result->status == KN_INVALID)
            kn_api_conflict(&error, "too_many_endpoints", 0, "A tenant has at most %d webhook endpoints.",
                            KN_ENDPOINTS_PER_TENANT);
        else
            kn_api_overloaded(&error, 5, "Storage did not take the endpoint.");
        kn_call_error(call, &error);
    }
    memset(c, 0, sizeof *c); /* the secret */
    kn_free(c);
    kn_call_release(call);
}

void kn_api_endpoint_create(kn_call *call)
{
    kn_api_error error;
    unsigned char random[16];
    creation *c = kn_alloc(sizeof *c);
    kn_status st = c ? read_row(call, &c->row, &error) : kn_api_from_status(&error, KN_NOMEM);
    if (st == KN_OK && !call->server->config->webhooks)
        st = kn_api_unsupported(&error, NULL, "webhooks_off", "Webhooks are switched off on this server.");
    if (st == KN_OK &&
        (getrandom(random, sizeof random, 0) != sizeof random || kn_webhook_new_secret(c->row.secret) != KN_OK))
        st = kn_api_internal(&error);
    if (st == KN_OK) {
        memcpy(c->row.tenant, call->principal.tenant, sizeof c->row.tenant);
        c->row.enabled = true;
        int length = snprintf(c->row.id, sizeof c->row.id, "we_");
        for (size_t i = 0; i < sizeof random; i++)
            length += snprintf(c->row.id + length, sizeof c->row.id - (size_t)length, "%02x", random[i]);
        c->call = call;
        const kn_store_op op = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &c->row};
        kn_call_hold(call);
        if (kn_store_submit_op(call->server->store, &op, on_put, c) == KN_OK) return;
        st = kn_api_overloaded(&error, 1, "Storage is busy.");
        kn_call_error(call, &error);
        kn_call_release(call);
    } else {
        kn_call_error(call, &error);
    }
    kn_free(c);
}

/* ---- list and delete ---- */

static kn_status add_endpoint(void *context, const kn_endpoint_row *row)
{
    write_endpoint(context, row, NULL);
    return KN_OK;
}

void kn_api_endpoint_list(kn_call *call)
{
    kn_api_error error;
    kn_text text =
        kn_text_growing(KN_ENDPOINTS_PER_TENANT * ((KN_ENDPOINT_URL_BYTES + KN_ENDPOINT_NAME_BYTES) * 6 + 1024));
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "object");
    kn_json_write_string(&w, "list");
    kn_json_write_key(&w, "data");
    kn_json_write_array(&w);
    const kn_status st = kn_store_endpoints(call->server->store, call->principal.tenant, add_endpoint, &w);
    kn_json_write_array_end(&w);
    kn_json_write_key(&w, "has_more"); /* all of them are here; without it clients ask for more for ever */
    kn_json_write_bool(&w, false);
    kn_json_write_object_end(&w);
    if (st == KN_OK) {
        kn_call_json(call, &text, NULL, 0);
        return;
    }
    kn_text_release(&text);
    kn_api_from_status(&error, st);
    kn_call_error(call, &error);
}

static void on_endpoint_removed(void *context, kn_store_result *result)
{
    kn_call *call = context;
    kn_api_error error;
    char body[160];
    if (call->exchange && result->status == KN_OK && result->outcome == KN_STORE_DONE) {
        const int bytes =
            snprintf(body, sizeof body, "{\"id\":\"%s\",\"object\":\"webhook_endpoint.deleted\",\"deleted\":true}",
                     call->parameter);
        kn_call_reply(call, 200, "application/json", body, (size_t)bytes, NULL, 0);
    } else if (call->exchange) {
        if (result->status == KN_OK)
            kn_api_not_found(&error, "webhook endpoint", call->parameter);
        else
            kn_api_overloaded(&error, 5, "Storage did not take the deletion.");
        kn_call_error(call, &error);
    }
    kn_call_release(call);
}

void kn_api_endpoint_delete(kn_call *call)
{
    kn_api_error error;
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_REMOVE, .id = call->parameter, .tenant = call->principal.tenant};
    const size_t length = strlen(call->parameter);
    if (length == 35 && strncmp(call->parameter, "we_", 3) == 0 &&
        strspn(call->parameter + 3, "0123456789abcdef") == 32) {
        kn_call_hold(call);
        if (kn_store_submit_op(call->server->store, &op, on_endpoint_removed, call) == KN_OK) return;
        kn_api_overloaded(&error, 1, "Storage is busy.");
        kn_call_error(call, &error);
        kn_call_release(call);
        return;
    }
    kn_api_not_found(&error, "webhook endpoint", call->parameter);
    kn_call_error(call, &error);
}
