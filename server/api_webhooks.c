/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant's webhook endpoints, under the names of OpenAI's client.webhooks. A secret is shown once, in the answer that
 * makes it.
 *
 *   POST   /v1/webhook_endpoints   {"url": "...", "name": "...", "event_types": ["video.completed", "video.failed"]}
 *   GET    /v1/webhook_endpoints, /v1/webhook_endpoints/{id}, /v1/webhook_event_types
 *   POST   /v1/webhook_endpoints/{id}                 what is to change of the above
 *   POST   /v1/webhook_endpoints/{id}/rotate_secret   {"keep_old_secret_active_for_24_hours": true}
 *   POST   /v1/webhook_endpoints/{id}/test            {"event_type": "video.completed"}
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
    const size_t length = strcspn(row->secret, " ");
    char hint[24];
    snprintf(hint, sizeof hint, "whsec_...%.4s", row->secret + (length > 4 ? length - 4 : 0));
    hint[13] = '\0'; /* of the first secret, the one that signs from now on */
    kn_json_write_key(w, "signing_secret_hint");
    kn_json_write_string(w, hint);
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

static kn_status read_url(const kn_call *call, char out[KN_ENDPOINT_URL_BYTES], const json_t *value,
                          kn_api_error *error)
{
    kn_webhook_url url;
    const kn_server_config *c = call->server->config;
    const kn_webhook_policy policy = {.development = c->webhook_development,
                                      .allow = (const char *const *)c->webhook_allow.items,
                                      .allow_count = c->webhook_allow.count};
    if (!json_is_string(value)) return kn_api_invalid_type(error, "url", "url must be a string.");
    if (json_string_length(value) >= KN_ENDPOINT_URL_BYTES)
        return kn_api_invalid_value(error, "url", "url has at most %d characters.", KN_ENDPOINT_URL_BYTES - 1);
    if (kn_webhook_url_parse(&url, json_string_value(value), &policy) != KN_OK)
        return kn_api_invalid_value(error, "url", "%s", kn_fail_message());
    memcpy(out, json_string_value(value), json_string_length(value) + 1);
    return KN_OK;
}

/* The body's object; an empty body is an empty one. Keys that are not among `known` are refused by name. */
static kn_status read_body(const kn_call *call, json_t **out, const char *const *known, size_t known_count,
                           kn_api_error *error)
{
    kn_status st = KN_OK;
    size_t bytes;
    const char *text = kn_http_body(call->exchange, &bytes), *name;
    json_t *value;
    KN_TRY(kn_json_body_parse(out, bytes ? text : "{}", bytes ? bytes : 2, NULL, error));
    json_object_foreach(*out, name, value)
    {
        size_t i = 0;
        while (i < known_count && strcmp(name, known[i]) != 0) i++;
        if (i == known_count) KN_TRY(kn_api_unknown_parameter(error, name));
    }
fail:
    return st;
}

/* What the body says of an endpoint goes over what `row` has. */
static kn_status read_row(const kn_call *call, kn_endpoint_row *row, bool fresh, kn_api_error *error)
{
    kn_status st = KN_OK;
    static const char *const known[] = {"url", "name", "event_types"};
    json_t *body = NULL;
    KN_TRY(read_body(call, &body, known, sizeof known / sizeof *known, error));
    const json_t *url = json_object_get(body, "url"), *events = json_object_get(body, "event_types");
    if (!url && fresh) KN_TRY(kn_api_missing_parameter(error, "url"));
    if (url) KN_TRY(read_url(call, row->url, url, error));
    KN_TRY(read_name(row->name, json_object_get(body, "name"), error));
    if (events || fresh) KN_TRY(read_events(&row->events, events, error));
fail:
    json_decref(body);
    return st;
}

/* An endpoint on its way into the store. */
typedef struct creation {
    kn_call *call;
    kn_endpoint_row row;
    bool show_secret; /* the newest, in the answer */
} creation;

static void on_put(void *context, kn_store_result *result)
{
    creation *c = context;
    kn_call *call = c->call;
    kn_api_error error;
    if (result->status == KN_OK && result->outcome == KN_STORE_DONE) {
        kn_text text = kn_text_growing(16 << 10);
        kn_json_writer w = kn_json_writer_on(&text);
        if (c->row.created_at == 0) c->row.created_at = result->at;
        char secret[KN_ENDPOINT_SECRET_BYTES];
        memcpy(secret, c->row.secret, sizeof secret);
        secret[strcspn(secret, " ")] = '\0';
        write_endpoint(&w, &c->row, c->show_secret ? secret : NULL);
        memset(secret, 0, sizeof secret);
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

/* Takes `c` over. */
static void put(creation *c, kn_call *call)
{
    kn_api_error error;
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &c->row};
    c->call = call;
    kn_call_hold(call);
    if (kn_store_submit_op(call->server->store, &op, on_put, c) == KN_OK) return;
    kn_api_overloaded(&error, 1, "Storage is busy.");
    kn_call_error(call, &error);
    kn_call_release(call);
    memset(c, 0, sizeof *c); /* the secret */
    kn_free(c);
}

void kn_api_endpoint_create(kn_call *call)
{
    kn_api_error error;
    unsigned char random[16];
    creation *c = kn_alloc(sizeof *c);
    kn_status st = c ? read_row(call, &c->row, true, &error) : kn_api_from_status(&error, KN_NOMEM);
    if (st == KN_OK && !call->server->config->webhooks)
        st = kn_api_unsupported(&error, NULL, "webhooks_off", "Webhooks are switched off on this server.");
    if (st == KN_OK &&
        (getrandom(random, sizeof random, 0) != sizeof random || kn_webhook_new_secret(c->row.secret) != KN_OK))
        st = kn_api_internal(&error);
    if (st == KN_OK) {
        memcpy(c->row.tenant, call->principal.tenant, sizeof c->row.tenant);
        c->row.enabled = c->show_secret = true;
        int length = snprintf(c->row.id, sizeof c->row.id, "we_");
        for (size_t i = 0; i < sizeof random; i++)
            length += snprintf(c->row.id + length, sizeof c->row.id - (size_t)length, "%02x", random[i]);
        put(c, call);
        return;
    }
    kn_call_error(call, &error);
    kn_free(c);
}

/* ---- one endpoint ---- */

typedef struct finding {
    const char *id;
    kn_endpoint_row *row;
    bool found;
} finding;

static kn_status look_at(void *context, const kn_endpoint_row *row)
{
    finding *f = context;
    if (strcmp(row->id, f->id) != 0) return KN_OK;
    *f->row = *row;
    f->found = true;
    return KN_OK;
}

/* This tenant's endpoint of the path; else the call has been answered. */
static bool find_endpoint(kn_call *call, kn_endpoint_row *row)
{
    kn_api_error error;
    finding f = {.id = call->parameter, .row = row};
    const kn_status st = kn_store_endpoints(call->server->store, call->principal.tenant, look_at, &f);
    if (st == KN_OK && f.found) return true;
    if (st != KN_OK)
        kn_api_from_status(&error, st);
    else
        kn_api_not_found(&error, "webhook endpoint", call->parameter);
    kn_call_error(call, &error);
    return false;
}

void kn_api_endpoint_get(kn_call *call)
{
    kn_endpoint_row row;
    kn_text text = kn_text_growing(32 << 10);
    kn_json_writer w = kn_json_writer_on(&text);
    if (!find_endpoint(call, &row)) return;
    write_endpoint(&w, &row, NULL);
    memset(row.secret, 0, sizeof row.secret);
    kn_call_json(call, &text, NULL, 0);
}

/* The row to change, or NULL after the call was answered. */
static creation *begin_change(kn_call *call)
{
    kn_api_error error;
    creation *c = kn_alloc(sizeof *c);
    if (!c) {
        kn_api_from_status(&error, KN_NOMEM);
        kn_call_error(call, &error);
    } else if (!find_endpoint(call, &c->row)) {
        kn_free(c);
        c = NULL;
    }
    return c;
}

void kn_api_endpoint_update(kn_call *call)
{
    kn_api_error error;
    creation *c = begin_change(call);
    if (!c) return;
    if (read_row(call, &c->row, false, &error) == KN_OK) {
        c->row.enabled = true; /* one that was gone (410) is tried again */
        put(c, call);
        return;
    }
    kn_call_error(call, &error);
    memset(c, 0, sizeof *c);
    kn_free(c);
}

/* A new secret; the one that signed until now goes on beside it for a day, or ends. */
static kn_status rotate(kn_endpoint_row *row, bool keep)
{
    char old[KN_ENDPOINT_SECRET_BYTES], fresh[KN_ENDPOINT_SECRET_BYTES];
    kn_status st = KN_OK;
    memcpy(old, row->secret, sizeof old);
    old[strcspn(old, " ")] = '\0';
    KN_TRY(kn_webhook_new_secret(fresh));
    memset(row->secret, 0, sizeof row->secret);
    if (strlen(fresh) + strlen(old) + 2 > sizeof row->secret) keep = false;
    snprintf(row->secret, sizeof row->secret, "%.190s%s%.190s", fresh, keep ? " " : "", keep ? old : "");
    row->old_until = keep ? kn_now_us() + INT64_C(86400) * 1000000 : 0;
fail:
    memset(old, 0, sizeof old);
    memset(fresh, 0, sizeof fresh);
    return st;
}

void kn_api_endpoint_rotate(kn_call *call)
{
    static const char *const known[] = {"keep_old_secret_active_for_24_hours"};
    kn_api_error error;
    json_t *body = NULL;
    creation *c = begin_change(call);
    if (!c) return;
    kn_status st = read_body(call, &body, known, 1, &error);
    const json_t *keep = json_object_get(body, known[0]);
    if (st == KN_OK && keep && !json_is_boolean(keep))
        st = kn_api_invalid_type(&error, known[0], "%s must be true or false.", known[0]);
    if (st == KN_OK && rotate(&c->row, json_is_true(keep)) != KN_OK) st = kn_api_internal(&error);
    json_decref(body);
    if (st == KN_OK) {
        c->show_secret = true;
        put(c, call);
        return;
    }
    kn_call_error(call, &error);
    memset(c, 0, sizeof *c);
    kn_free(c);
}

/* ---- a sample event ---- */

typedef struct testing {
    kn_call *call;
    kn_webhook_event event;
} testing;

static void on_tested(void *context, const kn_delivery_result *result)
{
    kn_call *call = ((testing *)context)->call;
    const kn_webhook_event event = ((testing *)context)->event;
    kn_api_error error;
    kn_free(context);
    if (call->exchange && result && result->http_status > 0) {
        kn_text text = kn_text_growing(1024);
        kn_json_writer w = kn_json_writer_on(&text);
        kn_json_write_object(&w);
        kn_json_write_key(&w, "object");
        kn_json_write_string(&w, "webhook_endpoint.test");
        kn_json_write_key(&w, "webhook_endpoint_id");
        kn_json_write_string(&w, call->parameter);
        kn_json_write_key(&w, "event_type");
        kn_json_write_string(&w, kn_webhook_event_name(event));
        kn_json_write_key(&w, "status_code");
        kn_json_write_int(&w, result->http_status);
        kn_json_write_key(&w, "success");
        kn_json_write_bool(&w, true);
        kn_json_write_object_end(&w);
        kn_call_json(call, &text, NULL, 0);
    } else if (call->exchange) {
        if (result)
            kn_api_unsupported(&error, NULL, "endpoint_unreachable", "The endpoint gave no answer: %s.", result->error);
        else
            kn_api_overloaded(&error, 10, "This server is being shut down.");
        kn_call_error(call, &error);
    }
    kn_call_release(call);
}

static kn_status read_event_type(const kn_call *call, kn_webhook_event *out, kn_api_error *error)
{
    static const char *const known[] = {"event_type"};
    kn_status st = KN_OK;
    json_t *body = NULL;
    KN_TRY(read_body(call, &body, known, 1, error));
    const json_t *value = json_object_get(body, known[0]);
    const char *type = json_string_value(value);
    if (!value) KN_TRY(kn_api_missing_parameter(error, known[0]));
    for (int i = 0; i < KN_WEBHOOK_EVENTS && type; i++) {
        *out = (kn_webhook_event)i;
        if (strcmp(type, kn_webhook_event_name(*out)) == 0) goto fail; /* KN_OK */
    }
    st = kn_api_invalid_value(error, known[0], "event_type is video.completed or video.failed.");
fail:
    json_decref(body);
    return st;
}

void kn_api_endpoint_test(kn_call *call)
{
    kn_api_error error;
    kn_endpoint_row row;
    kn_webhook_event event = KN_EVENT_VIDEO_COMPLETED;
    if (!find_endpoint(call, &row)) return;
    if (read_event_type(call, &event, &error) != KN_OK) {
        kn_call_error(call, &error);
        return;
    }
    testing *context = kn_alloc(sizeof *context);
    kn_status st = context ? KN_OK : KN_NOMEM;
    kn_call_hold(call);
    if (st == KN_OK) {
        *context = (testing){.call = call, .event = event};
        st = kn_webhooks_test(call->server, &row, event, on_tested, context);
    }
    memset(row.secret, 0, sizeof row.secret);
    if (st == KN_OK) return;
    kn_free(context);
    if (st == KN_INVALID)
        kn_api_invalid_value(&error, "url", "%s", kn_fail_message());
    else
        kn_api_overloaded(&error, 2, "No test can be made now: %s.", kn_fail_message());
    kn_call_error(call, &error);
    kn_call_release(call);
}

void kn_api_event_types(kn_call *call)
{
    static const char body[] = "{\"object\":\"list\",\"data\":[\"video.completed\",\"video.failed\"]}";
    kn_call_reply(call, 200, "application/json", body, sizeof body - 1, NULL, 0);
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
