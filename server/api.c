/* SPDX-License-Identifier: Apache-2.0
 *
 * Routes, who may use them, and the small answers: health, models, queue figures. */
#include "server/api.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/json.h"
#include "server/kserve_json.h"

enum { SMALL_BODY_BYTES = 16 << 10 }; /* read before it is refused: that keeps the connection */

/* ---- a call's life ---- */

static void free_call(kn_call *call)
{
    kn_server *s = call->server;
    s->calls--;
    if (call->watcher) kn_watch_remove(call->live->watch, &call->watcher);
    if (call->live) {
        call->live->pins--;
        if (call->live->job.state == KN_JOB_DELETED) kn_live_forget(s->live, &call->live);
    }
    if (call->listed) {
        if (call->next_stream) call->next_stream->previous_stream = call->previous_stream;
        *(call->previous_stream ? &call->previous_stream->next_stream : &s->stream_calls) = call->next_stream;
        s->streams -= call->stream;
    }
    if (call->intake) {
        kn_video_params_release(&call->intake->params);
        kn_job_release(&call->intake->job);
        kn_free(call->intake);
    }
    kn_free(call->wish);
    kn_free(call);
}

bool kn_call_waits(const kn_call *call)
{
    return call->exchange || call->grpc;
}

const char *kn_call_header(const kn_call *call, const char *name)
{
    return call->grpc ? kn_grpc_metadata(call->grpc, name) : kn_http_header(call->exchange, name);
}

void kn_call_hold(kn_call *call)
{
    call->pending++;
}

void kn_call_release(kn_call *call)
{
    call->pending--;
    if (call->pending == 0 && !kn_call_waits(call)) free_call(call);
}

void kn_call_over(kn_call *call)
{
    call->exchange = NULL;
    call->grpc = NULL;
    if (call->pending == 0) free_call(call);
}

void kn_call_list(kn_call *call)
{
    kn_server *s = call->server;
    call->listed = true;
    call->next_stream = s->stream_calls;
    if (s->stream_calls) s->stream_calls->previous_stream = call;
    s->stream_calls = call;
}

void kn_call_pin(kn_call *call, kn_live *live)
{
    if (call->live) return;
    call->live = live;
    live->pins++;
}

static kn_status on_watched(void *context, const kn_watch_event *event)
{
    kn_call *call = context;
    if (!event->last) {
        if (call->observe && kn_call_waits(call)) call->observe(call);
        return KN_OK;
    }
    call->watcher = NULL; /* the watch lets go of it when this returns */
    if (kn_call_waits(call)) call->after(call);
    kn_call_release(call);
    return KN_OK;
}

void kn_call_wait(kn_call *call, kn_live *live, void (*after)(kn_call *call))
{
    kn_api_error error;
    kn_watcher *watcher;
    kn_call_pin(call, live);
    call->after = after;
    kn_call_hold(call);
    if (kn_tell_watch(call->server, live, &watcher, on_watched, call, NULL) == KN_OK) {
        if (watcher) call->watcher = watcher;
        return;
    }
    kn_api_overloaded(&error, 1, "Too many requests wait for this video.");
    kn_call_error(call, &error);
    kn_call_release(call);
}

/* ---- replies ---- */

void kn_call_reply(kn_call *call, int status, const char *content_type, const void *body, size_t bytes,
                   const kn_http_reply_header *headers, size_t header_count)
{
    kn_http_reply_header all[KN_CALL_HEADERS_MAX];
    size_t count = 0;
    if (!call->exchange) return;
    for (size_t i = 0; i < header_count && count < KN_CALL_HEADERS_MAX - 4; i++) all[count++] = headers[i];
    if (call->limits.limit[0]) {
        all[count++] = (kn_http_reply_header){"x-ratelimit-limit-requests", call->limits.limit};
        all[count++] = (kn_http_reply_header){"x-ratelimit-remaining-requests", call->limits.remaining};
        all[count++] = (kn_http_reply_header){"x-ratelimit-reset-requests", call->limits.reset};
    }
    const kn_http_response response = {.status = status,
                                       .content_type = content_type,
                                       .headers = all,
                                       .header_count = count,
                                       .body = body,
                                       .body_bytes = bytes};
    if (kn_http_reply(call->exchange, &response) != KN_OK) kn_log(KN_LOG_ERROR, "reply: %s", kn_fail_message());
    kn_call_over(call);
}

void kn_call_json(kn_call *call, kn_text *text, const kn_http_reply_header *headers, size_t header_count)
{
    kn_api_error error;
    kn_text taken = *text; /* the call may be gone before the text is */
    if (kn_text_status(&taken) == KN_OK) {
        kn_call_reply(call, 200, "application/json", taken.bytes, taken.count, headers, header_count);
    } else {
        kn_api_from_status(&error, kn_text_status(&taken));
        kn_call_error(call, &error);
    }
    kn_text_release(&taken);
}

void kn_call_error(kn_call *call, const kn_api_error *error)
{
    kn_http_reply_header headers[4];
    char seconds[16], storage[2048];
    size_t count = 0;
    kn_text text = kn_text_fixed(storage, sizeof storage);
    if (call->front) {
        if (kn_call_waits(call)) call->front->error(call, error);
        kn_call_over(call);
        return;
    }
    if (call->kserve)
        kn_kserve_json_error(&text, error);
    else
        kn_api_error_write(&text, error);
    if (error->retry_after_s > 0) {
        snprintf(seconds, sizeof seconds, "%d", error->retry_after_s);
        headers[count++] = (kn_http_reply_header){"retry-after", seconds};
    }
    if (error->no_retry) headers[count++] = (kn_http_reply_header){"x-should-retry", "false"};
    if (error->status == 405) headers[count++] = (kn_http_reply_header){"allow", call->allow};
    if (error->status == 401) headers[count++] = (kn_http_reply_header){"www-authenticate", "Bearer"};
    kn_call_reply(call, error->status, "application/json", text.bytes, text.count, headers, count);
}

/* How long the clients' helper may wait between polls: it reads this once and keeps to it. */
static int32_t poll_after_ms(const kn_video_facts *facts)
{
    const double ms = facts->eta_seconds * 1000.0 / 10.0;
    return !(ms > 250.0) ? 250 : ms > 2000.0 ? 2000 : (int32_t)ms;
}

/* A finished job's object does not change any more: it is written once. (That a result expires shows in the time that
 * was told from the beginning.) */
static void send_finished(kn_call *call, kn_live *live)
{
    kn_server *s = call->server;
    if (!live->body) {
        kn_text text = kn_text_growing(KN_VIDEO_OBJECT_BYTES_MAX);
        kn_video_write(&text,
                       &(kn_video_item){.job = &live->job, .summary = &live->summary, .facts = kn_video_facts_none()});
        if (kn_text_status(&text) == KN_OK) kn_live_keep_body(s->live, live, text.bytes, text.count);
        kn_call_json(call, &text, NULL, 0);
        kn_live_trim(s->live);
        return;
    }
    kn_call_reply(call, 200, "application/json", live->body, live->body_bytes, NULL, 0);
}

void kn_call_deleted(kn_call *call)
{
    if (call->front) {
        call->front->deleted(call);
        kn_call_over(call);
        return;
    }
    kn_text text = kn_text_growing(1024);
    kn_video_deleted_write(&text, call->live->job.id);
    kn_call_json(call, &text, NULL, 0);
}

void kn_call_video(kn_call *call, kn_live *live)
{
    if (call->front) {
        if (kn_call_waits(call)) call->front->video(call, live);
        kn_call_over(call);
        return;
    }
    if (live->phase == KN_LIVE_ENDED && kn_job_state_final(live->job.state)) {
        send_finished(call, live);
        return;
    }
    kn_text text = kn_text_growing(KN_VIDEO_OBJECT_BYTES_MAX);
    char poll[16];
    const kn_video_item item = {
        .job = &live->job, .summary = &live->summary, .facts = kn_dispatch_facts(call->server, live)};
    kn_video_write(&text, &item);
    snprintf(poll, sizeof poll, "%d", poll_after_ms(&item.facts));
    const kn_http_reply_header header = {"openai-poll-after-ms", poll};
    kn_call_json(call, &text, &header, 1);
}

/* ---- jobs by id ---- */

kn_live *kn_api_recall(kn_server *s, const char *tenant, const char *id)
{
    kn_job job;
    kn_live *live = NULL;
    if (kn_store_job_get(s->store, tenant, id, &job) != KN_OK) return NULL;
    /* Unfinished ones are in memory: the row is older than what is known of it, or just being submitted. */
    if (job.state != KN_JOB_DELETED && kn_job_state_final(job.state) && kn_live_add(s->live, &job, &live) == KN_OK)
        kn_live_trim(s->live);
    kn_job_release(&job);
    return live;
}

kn_live *kn_api_find(kn_server *s, const char *tenant, const char *id)
{
    if (!kn_job_id_valid(id)) return NULL;
    kn_live *live = kn_live_find(s->live, id);
    if (!live) live = kn_api_recall(s, tenant, id);
    return live && strcmp(live->job.tenant, tenant) == 0 && live->job.state != KN_JOB_DELETED ? live : NULL;
}

kn_live *kn_call_find(kn_call *call)
{
    kn_api_error error;
    kn_live *live = kn_api_find(call->server, call->principal.tenant, call->parameter);
    if (live) return live;
    kn_api_not_found(&error, "video", call->parameter);
    kn_call_error(call, &error);
    return NULL;
}

/* ---- small answers ---- */

static void handle_live(kn_call *call)
{
    kn_call_reply(call, 200, "application/json", "{\"status\":\"ok\"}", 15, NULL, 0);
}

static void handle_ready(kn_call *call)
{
    char why[128], body[256];
    const bool ready = kn_server_ready(call->server, why, sizeof why);
    const int bytes =
        snprintf(body, sizeof body, "{\"status\":\"%s\",\"reason\":\"%s\"}", ready ? "ready" : "not_ready", why);
    kn_call_reply(call, ready ? 200 : 503, "application/json", body, (size_t)bytes, NULL, 0);
}

static kn_model_entry entry_of(const kn_catalog_model *model)
{
    return (kn_model_entry){.id = model->name, .created = model->created, .owned_by = "kinora"};
}

static void handle_models(kn_call *call)
{
    const kn_catalog *catalog = call->server->catalog;
    kn_model_entry entries[KN_CATALOG_MODELS_MAX];
    size_t count = 0;
    for (int32_t i = 0; i < kn_catalog_count(catalog); i++)
        if (kn_catalog_serves(kn_catalog_at(catalog, i))) entries[count++] = entry_of(kn_catalog_at(catalog, i));
    kn_text text = kn_text_growing(1 << 20);
    kn_model_list_write(&text, entries, count);
    kn_call_json(call, &text, NULL, 0);
}

static void handle_model(kn_call *call)
{
    kn_api_error error;
    const kn_catalog_model *model = kn_catalog_find(call->server->catalog, call->parameter);
    if (!model || !kn_catalog_serves(model)) {
        kn_api_not_found(&error, "model", call->parameter);
        kn_call_error(call, &error);
        return;
    }
    kn_model_entry entry = entry_of(model);
    entry.id = call->parameter; /* an alias answers under its own name */
    kn_text text = kn_text_growing(1 << 16);
    kn_model_write(&text, &entry);
    kn_call_json(call, &text, NULL, 0);
}

static void handle_metrics(kn_call *call)
{
    kn_api_error error;
    char *text;
    size_t bytes;
    const kn_metrics_format format = kn_metrics_negotiate(kn_http_header(call->exchange, "accept"));
    kn_server_measure(call->server);
    if (kn_metrics_text(call->server->meters->registry, format, &text, &bytes) != KN_OK) {
        kn_api_internal(&error);
        kn_call_error(call, &error);
        return;
    }
    kn_call_reply(call, 200, kn_metrics_content_type(format), text, bytes, NULL, 0);
    kn_free(text);
}

static void handle_queue_stats(kn_call *call)
{
    kn_api_error error;
    kn_queue_stats stats;
    char *json;
    kn_server_queue_stats(call->server, &stats);
    if (kn_queue_stats_json(&json, &stats) != KN_OK) {
        kn_api_internal(&error);
        kn_call_error(call, &error);
        return;
    }
    kn_call_reply(call, 200, "application/json", json, strlen(json), NULL, 0);
    kn_free(json);
}

/* ---- routes ---- */

#define ROUTE(method, pattern, scope, handle, body)                                                                    \
    {                                                                                                                  \
        KN_HTTP_##method, pattern, #method " " pattern, scope, handle, body                                            \
    }

static const kn_route routes[] = {
    ROUTE(GET, "/v1/videos/{id}", KN_SCOPE_READ, kn_api_get, 0),
    ROUTE(POST, "/v1/videos", KN_SCOPE_SUBMIT, kn_api_create, KN_ROUTE_UPLOAD),
    ROUTE(GET, "/v1/videos", KN_SCOPE_READ, kn_api_list, 0),
    ROUTE(POST, "/v1/videos/sync", KN_SCOPE_SUBMIT, kn_api_sync, KN_ROUTE_UPLOAD),
    ROUTE(POST, "/v1/videos/edits", KN_SCOPE_SUBMIT, kn_api_not_offered, KN_ROUTE_UPLOAD),
    ROUTE(POST, "/v1/videos/extensions", KN_SCOPE_SUBMIT, kn_api_not_offered, KN_ROUTE_UPLOAD),
    ROUTE(POST, "/v1/videos/characters", KN_SCOPE_SUBMIT, kn_api_not_offered, KN_ROUTE_UPLOAD),
    ROUTE(GET, "/v1/videos/characters/{id}", KN_SCOPE_READ, kn_api_not_offered, 0),
    ROUTE(DELETE, "/v1/videos/{id}", KN_SCOPE_CANCEL, kn_api_delete, 1024),
    ROUTE(POST, "/v1/videos/{id}/cancel", KN_SCOPE_CANCEL, kn_api_cancel, 1024),
    ROUTE(POST, "/v1/videos/{id}/remix", KN_SCOPE_SUBMIT, kn_api_not_offered, KN_ROUTE_UPLOAD),
    ROUTE(GET, "/v1/videos/{id}/content", KN_SCOPE_READ, kn_api_content, 0),
    ROUTE(GET, "/v1/videos/{id}/events", KN_SCOPE_READ, kn_api_events, 0),
    ROUTE(POST, "/v1/webhook_endpoints", KN_SCOPE_SUBMIT, kn_api_endpoint_create, 16 << 10),
    ROUTE(GET, "/v1/webhook_endpoints", KN_SCOPE_READ, kn_api_endpoint_list, 0),
    ROUTE(GET, "/v1/webhook_endpoints/{id}", KN_SCOPE_READ, kn_api_endpoint_get, 0),
    ROUTE(POST, "/v1/webhook_endpoints/{id}", KN_SCOPE_SUBMIT, kn_api_endpoint_update, 16 << 10),
    ROUTE(POST, "/v1/webhook_endpoints/{id}/rotate_secret", KN_SCOPE_SUBMIT, kn_api_endpoint_rotate, 1024),
    ROUTE(POST, "/v1/webhook_endpoints/{id}/test", KN_SCOPE_SUBMIT, kn_api_endpoint_test, 1024),
    ROUTE(GET, "/v1/webhook_event_types", KN_SCOPE_READ, kn_api_event_types, 0),
    ROUTE(DELETE, "/v1/webhook_endpoints/{id}", KN_SCOPE_SUBMIT, kn_api_endpoint_delete, 1024),
    ROUTE(GET, "/v1/models", KN_SCOPE_READ, handle_models, 0),
    ROUTE(GET, "/v1/models/{id}", KN_SCOPE_READ, handle_model, 0),
    ROUTE(GET, "/v1/queue/stats", KN_SCOPE_METRICS, handle_queue_stats, 0),
    ROUTE(GET, "/metrics", KN_SCOPE_METRICS, handle_metrics, 0),
    ROUTE(GET, "/health", 0, handle_ready, 0),
    ROUTE(GET, "/readyz", 0, handle_ready, 0),
    ROUTE(GET, "/livez", 0, handle_live, 0),
    ROUTE(GET, "/healthz", 0, handle_live, 0),
    ROUTE(GET, "/", 0, kn_api_page, 0),
    ROUTE(GET, "/page/{id}", 0, kn_api_page, 0),
};

enum { ROUTE_COUNT = sizeof routes / sizeof *routes };

size_t kn_api_routes(const char **names, size_t max)
{
    size_t count = 0, more;
    const kn_route *v2 = kn_kserve_routes(&more);
    for (size_t i = 0; i < ROUTE_COUNT && count < max; i++) names[count++] = routes[i].name;
    for (size_t i = 0; i < more && count < max; i++) names[count++] = v2[i].name;
    return count;
}

/* Does the path fit? *parameter: where {id} begins in it, *version: where {version} does. */
static bool matches(const char *pattern, const char *path, const char **parameter, const char **version)
{
    *parameter = *version = "";
    while (*pattern && *path) {
        if (*pattern == '{') {
            *(pattern[1] == 'v' ? version : parameter) = path;
            pattern = strchr(pattern, '}') + 1;
            const size_t length = strcspn(path, "/");
            if (length == 0) return false;
            path += length;
        } else if (*pattern++ != *path++) {
            return false;
        }
    }
    return *pattern == '\0' && *path == '\0';
}

static void add_allowed(kn_call *call, kn_http_method method)
{
    const size_t length = strlen(call->allow);
    snprintf(call->allow + length, sizeof call->allow - length, "%s%s%s", length ? ", " : "",
             kn_http_method_name(method), method == KN_HTTP_GET ? ", HEAD" : "");
}

/* NULL: *error says whether the path or the method is wrong. HEAD is GET whose body is not sent. */
static const kn_route *find_route(const kn_route *table, size_t count, kn_call *call, kn_api_error *error)
{
    const kn_http_method asked = kn_http_request_method(call->exchange);
    const kn_http_method method = asked == KN_HTTP_HEAD ? KN_HTTP_GET : asked;
    bool path_known = false;
    for (size_t i = 0; i < count; i++) {
        if (!matches(table[i].pattern, call->path, &call->parameter, &call->version)) continue;
        path_known = true;
        if (table[i].method == method) return &table[i];
        add_allowed(call, table[i].method);
    }
    if (path_known)
        kn_api_method_not_allowed(error, kn_http_method_name(asked));
    else
        kn_api_not_found(error, "route", call->path);
    return NULL;
}

bool kn_api_authorize(kn_server *s, unsigned scope, const char *authorization, kn_access *access)
{
    *access = (kn_access){.allowed = true};
    if (scope == 0) return true;
    const kn_policy_request request = {.authorization = authorization,
                                       .authorization_bytes = authorization ? strlen(authorization) : 0,
                                       .scope = (kn_scope)scope,
                                       .now_us = kn_now_us(),
                                       .now_ns = kn_clock_ns()};
    kn_policy_authorize(s->policy, &request, access);
    if (!access->allowed && access->error.status == 429 && scope == KN_SCOPE_SUBMIT)
        kn_metric_add(s->meters->jobs_refused, 1.0, KN_LABELS("rate"));
    kn_metric_add(s->meters->authorizations, 1.0,
                  KN_LABELS(access->allowed               ? "allowed"
                            : access->error.status == 401 ? "unauthenticated"
                            : access->error.status == 403 ? "forbidden"
                                                          : "limited"));
    return access->allowed;
}

static bool authorize(kn_call *call, kn_api_error *error)
{
    kn_access access;
    kn_api_authorize(call->server, call->route->scope, kn_http_header(call->exchange, "authorization"), &access);
    call->principal = access.principal;
    call->limits = access.headers;
    if (!access.allowed) *error = access.error;
    return access.allowed;
}

/* {id} or {version} as text of its own: the path goes on behind it. */
static void cut_parameter(kn_call *call, const char *parameter)
{
    if (parameter[0] == '\0') return;
    char *start = call->path + (parameter - call->path);
    start[strcspn(start, "/")] = '\0';
}

kn_call *kn_call_open(kn_server *s, kn_http_exchange *exchange, const kn_route *table, size_t count)
{
    kn_api_error error;
    kn_call *call = kn_alloc(sizeof *call);
    if (!call) {
        kn_http_abort(exchange);
        return NULL;
    }
    call->server = s;
    call->exchange = exchange;
    s->calls++;
    kn_http_set_user(exchange, call);
    snprintf(call->path, sizeof call->path, "%s", kn_http_path(exchange));
    call->kserve = strncmp(call->path, "/v2", 3) == 0;
    call->route = find_route(table, count, call, &error);
    if (call->route) {
        kn_http_set_route(exchange, call->route->pattern);
        cut_parameter(call, call->parameter);
        cut_parameter(call, call->version);
        return call;
    }
    kn_call_error(call, &error);
    return NULL;
}

kn_call *kn_call_share_grpc(kn_server *s, kn_grpc_call *grpc, const kn_call_front *front, const kn_route *route,
                            const char *parameter)
{
    kn_call *call = kn_alloc(sizeof *call);
    if (!call) return NULL;
    call->server = s;
    call->grpc = grpc;
    call->front = front;
    call->route = route;
    call->principal = *kn_grpc_principal(grpc);
    call->version = "";
    s->calls++;
    snprintf(call->path, sizeof call->path, "%s", parameter);
    call->parameter = call->path;
    return call;
}

kn_call *kn_call_open_grpc(kn_server *s, kn_grpc_call *grpc, const kn_call_front *front, const kn_route *route,
                           const char *parameter)
{
    kn_call *call = kn_call_share_grpc(s, grpc, front, route, parameter);
    if (call)
        kn_grpc_set_user(grpc, call);
    else
        kn_grpc_finish(grpc, KN_GRPC_RESOURCE_EXHAUSTED, "the server is out of memory");
    return call;
}

/* Without keys whoever reaches this machine's loopback is let in, and a browser brings strangers there: a page of
 * another site may post to it, or read it under a name of its own that resolves to 127.0.0.1. So the server must have
 * been called by a name of this machine, and by no other site. */
bool kn_api_from_here(const char *host, const char *origin, kn_api_error *error)
{
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};
    bool local = host[0] == '\0'; /* HTTP/1.0 without one: no browser */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const size_t length = strlen(names[i]);
        local |= strncmp(host, names[i], length) == 0 && (host[length] == '\0' || host[length] == ':');
    }
    const char *authority = origin ? strstr(origin, "://") : NULL;
    if (local && (!origin || (authority && strcmp(authority + 3, host) == 0))) return true;
    kn_api_forbidden(error,
                     "Without API keys this server answers only to names of its own machine, and to no other site.");
    return false;
}

static void on_headers(kn_http_exchange *exchange, void *context)
{
    kn_server *s = context;
    kn_api_error error;
    size_t v2_count;
    const kn_route *v2 = kn_kserve_routes(&v2_count);
    const bool is_v2 = strncmp(kn_http_path(exchange), "/v2", 3) == 0;
    kn_call *call = kn_call_open(s, exchange, is_v2 ? v2 : routes, is_v2 ? v2_count : ROUTE_COUNT);
    if (!call) return;
    if ((s->open && call->route->scope != 0 &&
         !kn_api_from_here(kn_http_host(exchange), kn_http_header(exchange, "origin"), &error)) ||
        !authorize(call, &error)) {
        kn_call_error(call, &error);
        return;
    }
    uint64_t limit = call->route->body_bytes;
    if (limit == KN_ROUTE_UPLOAD) {
        if (kn_http_content_length(exchange) > SMALL_BODY_BYTES && kn_api_turn_back(call)) return;
        const char *type = kn_http_header(exchange, "content-type");
        limit = kn_video_body_limit(type ? type : "");
        if (limit > (uint64_t)s->config->upload_bytes_max) limit = (uint64_t)s->config->upload_bytes_max;
    }
    kn_http_body_limit(exchange, limit);
}

void kn_call_request(kn_http_exchange *exchange, void *context)
{
    kn_call *call = kn_http_user(exchange);
    (void)context;
    call->route->handle(call);
}

/* The client that waited for the video has gone: so does the job, unless another client waits for it. */
static void abandon(kn_call *call)
{
    for (kn_call *other = call->server->stream_calls; other; other = other->next_stream)
        if (other != call && other->sync && kn_call_waits(other) && other->live == call->live) {
            other->owner = true;
            return;
        }
    kn_end_job(call->server, call->live, KN_JOB_CANCELLED, "cancelled",
               "The client that waited for this video went away.");
}

void kn_call_gone(kn_call *call)
{
    if (call->owner && call->live && call->live->phase != KN_LIVE_ENDED) abandon(call);
    if (call->watcher) {
        kn_watch_remove(call->live->watch, &call->watcher);
        if (call->after) call->pending--; /* held by kn_call_wait */
    }
    kn_call_over(call);
}

void kn_call_closed(kn_http_exchange *exchange, void *context)
{
    kn_call *call = kn_http_user(exchange);
    (void)context;
    if (call) kn_call_gone(call);
}

void kn_call_closed_grpc(kn_grpc_call *grpc)
{
    kn_call *call = kn_grpc_user(grpc);
    if (call) kn_call_gone(call);
}

void kn_call_finished(const kn_http_record *record, void *context)
{
    kn_server *s = context;
    char route[128];
    snprintf(route, sizeof route, "%s %s", kn_http_method_name(record->method), record->route);
    kn_metric_observe(s->meters->http_request_seconds, (double)record->duration_ns * 1e-9,
                      KN_LABELS(route, kn_meters_code(record->status)));
}

/* --metrics: figures and probes, without a key and nothing else. */
static void on_metrics_headers(kn_http_exchange *exchange, void *context)
{
    static const kn_route figures[] = {
        ROUTE(GET, "/metrics", 0, handle_metrics, 0),
        ROUTE(GET, "/v1/queue/stats", 0, handle_queue_stats, 0),
        ROUTE(GET, "/readyz", 0, handle_ready, 0),
        ROUTE(GET, "/livez", 0, handle_live, 0),
    };
    if (kn_call_open(context, exchange, figures, sizeof figures / sizeof *figures)) kn_http_body_limit(exchange, 0);
}

kn_http_callbacks kn_metrics_callbacks(void)
{
    return (kn_http_callbacks){.headers = on_metrics_headers,
                               .request = kn_call_request,
                               .closed = kn_call_closed,
                               .finished = kn_call_finished};
}

kn_http_callbacks kn_api_callbacks(void)
{
    return (kn_http_callbacks){
        .headers = on_headers, .request = kn_call_request, .closed = kn_call_closed, .finished = kn_call_finished};
}
