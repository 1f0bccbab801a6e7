/* SPDX-License-Identifier: Apache-2.0
 *
 * KServe v2 and Triton's extensions over REST. An inference is a job like any other: it goes through the intake that
 * POST /v1/videos uses, waits for its end as POST /v1/videos/sync does, and is seen in GET /v1/videos. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/json.h"
#include "server/kserve_core.h"
#include "server/kserve_json.h"

enum {
    ANSWER_BYTES_MAX = 2 * KN_KSERVE_FILE_BYTES_MAX, /* base64 takes a third more */
    INFER_BYTES_MAX = 2 << 20,                       /* JSON and binary inputs */
};

/* ---- health ---- */

static void handle_live(kn_call *call)
{
    kn_call_reply(call, 200, NULL, NULL, 0, NULL, 0);
}

/* Triton's and KServe's probes look at the status alone; 400 is how Triton says "not ready". */
static void handle_ready(kn_call *call)
{
    char why[128];
    kn_call_reply(call, kn_server_ready(call->server, why, sizeof why) ? 200 : 400, NULL, NULL, 0, NULL, 0);
}

static kn_catalog_model *model_of(kn_call *call)
{
    kn_api_error error;
    kn_catalog_model *model;
    if (kn_kserve_find(call->server, call->parameter, call->version, &model, &error) == KN_OK) return model;
    kn_call_error(call, &error);
    return NULL;
}

static void handle_model_ready(kn_call *call)
{
    kn_api_error error;
    const kn_catalog_model *model = model_of(call);
    if (!model) return;
    const kn_kserve_model described = kn_kserve_model_of(call->server, model);
    if (described.ready) {
        kn_call_reply(call, 200, NULL, NULL, 0, NULL, 0);
        return;
    }
    kn_api_unsupported(&error, NULL, "model_unavailable", "The model is not ready: %s", described.reason);
    kn_call_error(call, &error);
}

/* ---- descriptions ---- */

static void handle_server(kn_call *call)
{
    kn_text text = kn_text_growing(4096);
    kn_kserve_json_server(&text);
    kn_call_json(call, &text, NULL, 0);
}

static void describe(kn_call *call, void (*write)(kn_text *out, const kn_kserve_model *model))
{
    const kn_catalog_model *model = model_of(call);
    if (!model) return;
    const kn_kserve_model described = kn_kserve_model_of(call->server, model);
    kn_text text = kn_text_growing(64 << 10);
    write(&text, &described);
    kn_call_json(call, &text, NULL, 0);
}

static void handle_metadata(kn_call *call)
{
    describe(call, kn_kserve_json_metadata);
}

static void handle_config(kn_call *call)
{
    describe(call, kn_kserve_json_config);
}

static void handle_statistics(kn_call *call)
{
    kn_api_error error;
    kn_kserve_model models[KN_CATALOG_MODELS_MAX];
    kn_kserve_counts counts[KN_CATALOG_MODELS_MAX];
    size_t count;
    if (kn_kserve_read_statistics(call->server, call->parameter, call->version, models, counts, &count, &error) !=
        KN_OK) {
        kn_call_error(call, &error);
        return;
    }
    kn_text text = kn_text_growing(256 << 10);
    kn_kserve_json_statistics(&text, models, counts, count);
    kn_call_json(call, &text, NULL, 0);
}

/* ---- the repository ---- */

/* The body, an object or nothing at all. */
static kn_status read_object(kn_call *call, json_t **out, kn_api_error *error)
{
    size_t bytes;
    const char *body = kn_http_body(call->exchange, &bytes);
    *out = NULL;
    return bytes == 0 ? KN_OK : kn_json_body_parse(out, body, bytes, NULL, error);
}

static void handle_index(kn_call *call)
{
    kn_api_error error;
    json_t *root;
    kn_kserve_model models[KN_CATALOG_MODELS_MAX];
    kn_status st = read_object(call, &root, &error);
    const json_t *ready = json_object_get(root, "ready");
    if (st == KN_OK && ready && !json_is_boolean(ready))
        st = kn_api_invalid_type(&error, "ready", "'ready' must be a boolean.");
    const bool ready_only = json_is_true(ready);
    json_decref(root);
    if (st != KN_OK) {
        kn_call_error(call, &error);
        return;
    }
    kn_text text = kn_text_growing(64 << 10);
    kn_kserve_json_index(&text, models, kn_kserve_list(call->server, ready_only, models));
    kn_call_json(call, &text, NULL, 0);
}

static kn_status check_repository_parameters(const json_t *root, kn_api_error *error)
{
    kn_status st = KN_OK;
    json_t *parameters = json_object_get(root, "parameters");
    for (void *at = json_object_iter(parameters); at; at = json_object_iter_next(parameters, at))
        KN_TRY(kn_kserve_check_change(json_object_iter_key(at), error));
fail:
    return st;
}

static void change_model(kn_call *call,
                         kn_status (*change)(kn_server *s, const char *name, const char *who, kn_api_error *error))
{
    kn_api_error error;
    json_t *root;
    kn_status st = read_object(call, &root, &error);
    if (st == KN_OK) st = check_repository_parameters(root, &error);
    json_decref(root);
    if (st == KN_OK) st = change(call->server, call->parameter, call->principal.key_id, &error);
    if (st == KN_OK)
        kn_call_reply(call, 200, NULL, NULL, 0, NULL, 0);
    else
        kn_call_error(call, &error);
}

static void handle_load(kn_call *call)
{
    change_model(call, kn_kserve_load);
}

static void handle_unload(kn_call *call)
{
    change_model(call, kn_kserve_unload);
}

/* ---- inference ---- */

/* All of a small file. */
static void *read_file(int fd, uint64_t bytes)
{
    void *all = kn_alloc(bytes + 1);
    if (all && kn_kserve_read_file(fd, all, bytes)) return all;
    kn_free(all);
    return NULL;
}

/* The JSON, the binary outputs and, behind both, the file. Takes fd. */
static void reply_answer(kn_call *call, const kn_kserve_answer *answer, int fd, uint64_t file_bytes)
{
    char length[24];
    kn_api_error error;
    const bool behind = fd >= 0 && answer->binary >> kn_kserve_file_of(answer->outputs) & 1;
    void *inside = fd >= 0 && !behind ? read_file(fd, file_bytes) : NULL;
    kn_text json = kn_text_growing(ANSWER_BYTES_MAX), tail = kn_text_growing(4096);
    if (inside || behind || fd < 0) {
        kn_kserve_json_answer(&json, &tail, answer, inside);
        snprintf(length, sizeof length, "%zu", json.count);
        kn_text_append(&json, tail.bytes ? tail.bytes : "", tail.count);
    } else {
        json.status = KN_NOMEM;
    }
    const kn_http_reply_header header = {"Inference-Header-Content-Length", length};
    const char *type = answer->binary ? "application/octet-stream" : "application/json";
    if (kn_text_status(&json) != KN_OK || kn_text_status(&tail) != KN_OK) {
        kn_api_from_status(&error, KN_NOMEM);
        kn_call_error(call, &error);
    } else if (behind) {
        const kn_http_file file = {.fd = fd,
                                   .bytes = file_bytes,
                                   .content_type = type,
                                   .headers = &header,
                                   .header_count = 1,
                                   .prefix = json.bytes,
                                   .prefix_bytes = json.count};
        fd = -1;
        if (kn_http_reply_file(call->exchange, &file) != KN_OK) kn_log(KN_LOG_ERROR, "infer: %s", kn_fail_message());
        kn_call_over(call);
    } else {
        kn_call_reply(call, 200, type, json.bytes, json.count, &header, answer->binary ? 1 : 0);
    }
    if (fd >= 0) close(fd);
    kn_free(inside);
    kn_text_release(&json);
    kn_text_release(&tail);
}

static void deliver(kn_call *call)
{
    kn_api_error error;
    int fd;
    uint64_t file_bytes;
    kn_kserve_answer answer = kn_kserve_answer_to(call->wish);
    if (kn_kserve_open_answer(call->server, call->live, &answer, &fd, &file_bytes, &error) == KN_OK)
        reply_answer(call, &answer, fd, file_bytes);
    else
        kn_call_error(call, &error);
}

static kn_status read_request(kn_call *call, const kn_catalog_model *model, kn_text *body, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_kserve_request request;
    json_t *root = NULL;
    size_t bytes;
    int64_t json_bytes;
    const char *sent = kn_http_body(call->exchange, &bytes);
    KN_TRY(
        kn_kserve_json_length(&json_bytes, kn_http_header(call->exchange, "inference-header-content-length"), error));
    KN_TRY(kn_kserve_json_parse(&request, &root, sent, bytes, json_bytes, error));
    KN_TRY(kn_kserve_body(body, &request, call->parameter, error));
    call->wish = kn_kserve_wish_of(&request, model);
    if (!call->wish) KN_TRY(kn_api_from_status(error, KN_NOMEM));
fail:
    json_decref(root);
    return st;
}

static void handle_infer(kn_call *call)
{
    kn_api_error error;
    const kn_catalog_model *model = model_of(call);
    if (!model) return;
    kn_text body = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    if (read_request(call, model, &body, &error) == KN_OK) {
        call->sync = true;
        call->deliver = deliver;
        kn_intake_begin(call, body.bytes, body.count, "application/json");
    } else {
        kn_call_error(call, &error);
    }
    kn_text_release(&body);
}

/* ---- routes ---- */

#define ROUTE(method, pattern, scope, handle, body)                                                                    \
    {                                                                                                                  \
        KN_HTTP_##method, pattern, #method " " pattern, scope, handle, body                                            \
    }
#define MODEL "/v2/models/{id}"
#define VERSION MODEL "/versions/{version}"

const kn_route *kn_kserve_routes(size_t *count)
{
    static const kn_route routes[] = {
        ROUTE(GET, "/v2/health/live", 0, handle_live, 0),
        ROUTE(GET, "/v2/health/ready", 0, handle_ready, 0),
        ROUTE(GET, "/v2", 0, handle_server, 0),
        ROUTE(GET, "/v2/", 0, handle_server, 0),
        ROUTE(GET, "/v2/models/stats", KN_SCOPE_METRICS, handle_statistics, 0), /* before the model of that name */
        ROUTE(GET, MODEL "/ready", 0, handle_model_ready, 0),
        ROUTE(GET, VERSION "/ready", 0, handle_model_ready, 0),
        ROUTE(GET, MODEL, KN_SCOPE_READ, handle_metadata, 0),
        ROUTE(GET, VERSION, KN_SCOPE_READ, handle_metadata, 0),
        ROUTE(GET, MODEL "/config", KN_SCOPE_READ, handle_config, 0),
        ROUTE(GET, VERSION "/config", KN_SCOPE_READ, handle_config, 0),
        ROUTE(GET, MODEL "/stats", KN_SCOPE_METRICS, handle_statistics, 0),
        ROUTE(GET, VERSION "/stats", KN_SCOPE_METRICS, handle_statistics, 0),
        ROUTE(POST, "/v2/repository/index", KN_SCOPE_READ, handle_index, 16 << 10),
        ROUTE(POST, "/v2/repository/models/{id}/load", KN_SCOPE_ADMIN, handle_load, 16 << 10),
        ROUTE(POST, "/v2/repository/models/{id}/unload", KN_SCOPE_ADMIN, handle_unload, 16 << 10),
        ROUTE(POST, MODEL "/infer", KN_SCOPE_SUBMIT, handle_infer, INFER_BYTES_MAX),
        ROUTE(POST, VERSION "/infer", KN_SCOPE_SUBMIT, handle_infer, INFER_BYTES_MAX),
    };
    *count = sizeof routes / sizeof *routes;
    return routes;
}
