/* SPDX-License-Identifier: Apache-2.0
 *
 * What the operator's commands ask a running server: a listener of its own on loopback, at a port the system chose, and
 * a token made at each start. Both are in <data>/admin.json, which only the server's user can read: whoever may touch
 * the data may administer the server. Nothing of this is on the public addresses. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/admin_rows.h"
#include "server/api.h"
#include "server/json.h"
#include "server/query.h"

enum { ADMIN_LIST_DEFAULT = 50, ADMIN_LIST_MAX = 500 };

/* ---- status ---- */

/* The slice that devices share now: who, the leader first, and what; null: none. */
static void write_shared(kn_server *s, kn_json_writer *w, const kn_device_health *health)
{
    const kn_seat *leader = &s->seats[health->members[0]];
    if (health->degree == 0 || !leader->busy) {
        kn_json_write_null(w);
        return;
    }
    kn_json_write_object(w);
    kn_json_write_key(w, "devices");
    kn_json_write_array(w);
    for (int32_t i = 0; i < health->degree; i++) kn_json_write_string(w, s->seats[health->members[i]].name);
    kn_json_write_array_end(w);
    kn_json_write_key(w, "model");
    kn_json_write_string(w, kn_catalog_at(s->catalog, leader->assignment.model)->name);
    kn_json_write_key(w, "stage");
    kn_json_write_string(w, kn_stage_name(leader->assignment.stage));
    kn_json_write_key(w, "jobs");
    kn_json_write_array(w);
    for (int32_t i = 0; i < leader->assignment.count; i++) {
        const kn_live *live = leader->assignment.jobs[i] ? kn_live_by_key(s->live, leader->assignment.jobs[i]) : NULL;
        if (live) kn_json_write_string(w, live->job.id);
    }
    kn_json_write_array_end(w);
    kn_json_write_object_end(w);
}

static void write_devices(kn_server *s, kn_json_writer *w)
{
    kn_json_write_key(w, "devices");
    kn_json_write_array(w);
    for (int32_t i = 0; i < s->seat_count; i++) {
        kn_device_health health;
        kn_fleet_health(s->fleet, i, &health);
        kn_json_write_object(w);
        kn_json_write_key(w, "name");
        kn_json_write_string(w, s->seats[i].name);
        kn_json_write_key(w, "state");
        kn_json_write_string(w, kn_device_state_name(health.state));
        kn_json_write_key(w, "description");
        kn_json_write_string(w, health.info.description);
        kn_json_write_key(w, "tier");
        kn_json_write_string(w, health.info.tier);
        kn_json_write_key(w, "pid");
        kn_json_write_int(w, health.pid);
        kn_json_write_key(w, "jobs");
        kn_json_write_int(w, health.jobs);
        kn_json_write_key(w, "busy");
        kn_json_write_bool(w, s->seats[i].busy);
        kn_json_write_key(w, "slices");
        kn_json_write_uint(w, health.slices);
        kn_json_write_key(w, "busy_seconds");
        kn_json_write_double(w, health.busy_seconds);
        kn_json_write_key(w, "domain");
        kn_json_write_int(w, s->seats[i].domain);
        kn_json_write_key(w, "groups");
        kn_json_write_int(w, health.groups);
        kn_json_write_key(w, "shares");
        write_shared(s, w, &health);
        kn_json_write_key(w, "assists");
        kn_json_write_uint(w, health.assists);
        kn_json_write_key(w, "shared_slices");
        kn_json_write_uint(w, health.shared_slices);
        kn_json_write_key(w, "lost_slices");
        kn_json_write_uint(w, health.lost_slices);
        kn_json_write_key(w, "deaths");
        kn_json_write_uint(w, health.deaths);
        kn_json_write_object_end(w);
    }
    kn_json_write_array_end(w);
}

static void handle_status(kn_call *call)
{
    kn_server *s = call->server;
    char why[128];
    kn_queue_stats queue;
    kn_scheduler_stats scheduler;
    const kn_store_stats store = kn_store_read_stats(s->store);
    kn_text text = kn_text_growing(1 << 20);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_server_queue_stats(s, &queue);
    kn_scheduler_read_stats(s->scheduler, &scheduler);
    const bool ready = kn_server_ready(s, why, sizeof why);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "version");
    kn_json_write_string(&w, KN_VERSION);
    kn_json_write_key(&w, "ready");
    kn_json_write_bool(&w, ready);
    kn_json_write_key(&w, "reason");
    kn_json_write_string(&w, why);
    kn_json_write_key(&w, "uptime_seconds");
    kn_json_write_double(&w, (double)((kn_now_us() - s->started_us) / 1000000));
    kn_json_write_key(&w, "queued");
    kn_json_write_int(&w, queue.queued);
    kn_json_write_key(&w, "running");
    kn_json_write_int(&w, queue.running);
    kn_json_write_key(&w, "backlog_seconds");
    kn_json_write_double(&w, kn_clock_seconds(scheduler.backlog_ns));
    kn_json_write_key(&w, "preemptions");
    kn_json_write_uint(&w, scheduler.preemptions);
    kn_json_write_key(&w, "cost_error");
    kn_json_write_double(&w, scheduler.cost_error);
    kn_json_write_key(&w, "commits");
    kn_json_write_uint(&w, store.transactions);
    kn_json_write_key(&w, "operations");
    kn_json_write_uint(&w, store.operations);
    kn_json_write_key(&w, "draining");
    kn_json_write_bool(&w, s->draining);
    write_devices(s, &w);
    kn_json_write_object_end(&w);
    kn_call_json(call, &text, NULL, 0);
}

static void reply_ok(kn_call *call)
{
    kn_call_reply(call, 200, "application/json", "{\"ok\":true}", 11, NULL, 0);
}

static void handle_drain(kn_call *call)
{
    kn_server *s = call->server;
    reply_ok(call);
    kn_server_drain(s);
}

static void handle_reload(kn_call *call)
{
    kn_api_error error;
    if (kn_server_reload(call->server) == KN_OK) {
        reply_ok(call);
        return;
    }
    kn_api_invalid_value(&error, "config", "%s", kn_fail_message());
    kn_call_error(call, &error);
}

/* ---- jobs ---- */

static void handle_jobs(kn_call *call)
{
    kn_api_error error;
    kn_query query;
    const char *bytes = kn_http_query(call->exchange);
    kn_text text = kn_text_growing(64 << 20);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_status st = kn_query_parse(&query, bytes, strlen(bytes), &error);
    if (st == KN_OK) {
        const char *after = kn_query_get(&query, "after"), *limit = kn_query_get(&query, "limit");
        const long count = limit ? strtol(limit, NULL, 10) : ADMIN_LIST_DEFAULT;
        const kn_store_list list = {.after = after && after[0] ? after : NULL,
                                    .limit = count < 1                ? 1
                                             : count > ADMIN_LIST_MAX ? ADMIN_LIST_MAX
                                                                      : (int32_t)count};
        st = kn_admin_write_jobs(&w, call->server->store, &list);
        if (st != KN_OK) kn_api_from_status(&error, st);
    }
    if (st == KN_OK) {
        kn_call_json(call, &text, NULL, 0);
        return;
    }
    kn_text_release(&text);
    kn_call_error(call, &error);
}

static kn_live *find_any(kn_call *call)
{
    kn_api_error error;
    kn_live *live = NULL;
    if (kn_job_id_valid(call->parameter)) {
        live = kn_live_find(call->server->live, call->parameter);
        if (!live) live = kn_api_recall(call->server, NULL, call->parameter);
    }
    if (live && live->job.state != KN_JOB_DELETED) return live;
    kn_api_not_found(&error, "video", call->parameter);
    kn_call_error(call, &error);
    return NULL;
}

static void send_job(kn_call *call)
{
    kn_text text = kn_text_growing(1 << 20);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_admin_write_job(&w, &call->live->job);
    kn_call_json(call, &text, NULL, 0);
}

static void handle_job(kn_call *call)
{
    kn_live *live = find_any(call);
    if (!live) return;
    kn_call_pin(call, live);
    send_job(call);
}

static void handle_job_cancel(kn_call *call)
{
    kn_api_error error;
    kn_live *live = find_any(call);
    if (!live) return;
    if (kn_job_state_final(live->job.state)) {
        kn_api_conflict(&error, "video_ended", 0, "This video is %s already.", kn_job_state_name(live->job.state));
        kn_call_error(call, &error);
        return;
    }
    kn_end_job(call->server, live, KN_JOB_CANCELLED, "cancelled", "The video was cancelled by the operator.");
    kn_call_wait(call, live, send_job);
}

static void on_retried(void *context, kn_store_result *result)
{
    kn_call *call = context;
    kn_server *s = call->server;
    kn_api_error error;
    const kn_status st = result->status;
    if (st == KN_OK && result->outcome == KN_STORE_DONE)
        kn_server_revive(s, call->live);
    else if (st == KN_OK)
        kn_api_conflict(&error, "not_retriable", 0, "This video is %s; only a failed or cancelled one can be retried.",
                        kn_job_state_name(result->state));
    else
        kn_api_overloaded(&error, 5, "%s", result->message);
    if (call->exchange && st == KN_OK && result->outcome == KN_STORE_DONE)
        send_job(call);
    else if (call->exchange)
        kn_call_error(call, &error);
    kn_call_release(call);
}

static void handle_job_retry(kn_call *call)
{
    kn_api_error error;
    kn_live *live = find_any(call);
    if (!live) return;
    const kn_store_op op = {.kind = KN_STORE_RETRY, .id = live->job.id, .actor = "operator"};
    kn_call_pin(call, live);
    kn_call_hold(call);
    if (kn_store_submit_op(call->server->store, &op, on_retried, call) == KN_OK) return;
    kn_api_overloaded(&error, 1, "Storage is busy.");
    kn_call_error(call, &error);
    kn_call_release(call);
}

/* ---- keys ---- */

static void handle_keys(kn_call *call)
{
    kn_api_error error;
    kn_text text = kn_text_growing(64 << 20);
    kn_json_writer w = kn_json_writer_on(&text);
    const kn_status st = kn_admin_write_keys(&w, call->server->store);
    if (st == KN_OK) {
        kn_call_json(call, &text, NULL, 0);
        return;
    }
    kn_text_release(&text);
    kn_api_from_status(&error, st);
    kn_call_error(call, &error);
}

typedef struct minting {
    kn_call *call;
    kn_key_row row;
    kn_secret secret;
} minting;

static void on_key_added(void *context, kn_store_result *result)
{
    minting *m = context;
    kn_call *call = m->call;
    kn_api_error error;
    if (result->status == KN_OK && result->outcome == KN_STORE_DONE) {
        kn_text text = kn_text_growing(1 << 16);
        kn_json_writer w = kn_json_writer_on(&text);
        m->row.created_at = result->at;
        if (kn_keys_put(call->server->keys, &m->row) != KN_OK) kn_log(KN_LOG_ERROR, "key: %s", kn_fail_message());
        kn_admin_write_key(&w, &m->row, &m->secret);
        if (call->exchange)
            kn_call_json(call, &text, NULL, 0);
        else
            kn_text_release(&text);
    } else if (call->exchange) {
        kn_api_overloaded(&error, 5, "Storage did not take the key.");
        kn_call_error(call, &error);
    }
    kn_secret_wipe(&m->secret);
    kn_free(m);
    kn_call_release(call);
}

static void handle_key_create(kn_call *call)
{
    kn_api_error error;
    size_t bytes;
    const char *body = kn_http_body(call->exchange, &bytes);
    minting *m = kn_alloc(sizeof *m);
    kn_status st = m ? kn_admin_read_key(&m->row, body, bytes, &error) : kn_api_from_status(&error, KN_NOMEM);
    if (st == KN_OK && kn_key_mint(&m->row, &m->secret, &call->server->pepper) != KN_OK)
        st = kn_api_invalid_value(&error, "key", "%s", kn_fail_message());
    if (st == KN_OK) {
        const kn_store_op op = {.kind = KN_STORE_KEY_ADD, .key = &m->row, .actor = "operator"};
        m->call = call;
        kn_call_hold(call);
        if (kn_store_submit_op(call->server->store, &op, on_key_added, m) == KN_OK) return;
        kn_api_overloaded(&error, 1, "Storage is busy.");
        kn_call_error(call, &error);
        kn_call_release(call);
    } else {
        kn_call_error(call, &error);
    }
    kn_free(m);
}

static void on_key_revoked(void *context, kn_store_result *result)
{
    kn_call *call = context;
    kn_api_error error;
    const bool done = result->status == KN_OK && result->outcome == KN_STORE_DONE;
    if (done) kn_keys_revoke(call->server->keys, call->parameter, kn_now_us());
    if (call->exchange && done) {
        reply_ok(call);
    } else if (call->exchange) {
        if (result->status == KN_OK)
            kn_api_not_found(&error, "key", call->parameter);
        else
            kn_api_overloaded(&error, 5, "Storage did not take the revocation.");
        kn_call_error(call, &error);
    }
    kn_call_release(call);
}

static void handle_key_revoke(kn_call *call)
{
    kn_api_error error;
    const kn_store_op op = {.kind = KN_STORE_KEY_REVOKE, .id = call->parameter, .actor = "operator"};
    kn_call_hold(call);
    if (kn_store_submit_op(call->server->store, &op, on_key_revoked, call) == KN_OK) return;
    kn_api_not_found(&error, "key", call->parameter);
    kn_call_error(call, &error);
    kn_call_release(call);
}

/* ---- routes and life ---- */

static const kn_route routes[] = {
    {KN_HTTP_GET, "/admin/status", "GET /admin/status", 0, handle_status, 0},
    {KN_HTTP_POST, "/admin/drain", "POST /admin/drain", 0, handle_drain, 1024},
    {KN_HTTP_POST, "/admin/reload", "POST /admin/reload", 0, handle_reload, 1024},
    {KN_HTTP_GET, "/admin/jobs", "GET /admin/jobs", 0, handle_jobs, 0},
    {KN_HTTP_GET, "/admin/jobs/{id}", "GET /admin/jobs/{id}", 0, handle_job, 0},
    {KN_HTTP_POST, "/admin/jobs/{id}/cancel", "POST /admin/jobs/{id}/cancel", 0, handle_job_cancel, 1024},
    {KN_HTTP_POST, "/admin/jobs/{id}/retry", "POST /admin/jobs/{id}/retry", 0, handle_job_retry, 1024},
    {KN_HTTP_GET, "/admin/keys", "GET /admin/keys", 0, handle_keys, 0},
    {KN_HTTP_POST, "/admin/keys", "POST /admin/keys", 0, handle_key_create, 16 << 10},
    {KN_HTTP_DELETE, "/admin/keys/{id}", "DELETE /admin/keys/{id}", 0, handle_key_revoke, 1024},
};

static bool has_token(const kn_server *s, kn_http_exchange *exchange)
{
    const char *text = kn_http_header(exchange, "authorization");
    char wanted[80];
    const int length = snprintf(wanted, sizeof wanted, "Bearer %s", s->admin_token);
    return text && strlen(text) == (size_t)length && CRYPTO_memcmp(text, wanted, (size_t)length) == 0;
}

static void on_headers(kn_http_exchange *exchange, void *context)
{
    kn_server *s = context;
    kn_api_error error;
    kn_call *call = kn_call_open(s, exchange, routes, sizeof routes / sizeof *routes);
    if (!call) return;
    if (!has_token(s, exchange)) {
        kn_api_unauthorized(&error, "The token in admin.json is needed here.");
        kn_call_error(call, &error);
        return;
    }
    kn_http_body_limit(exchange, call->route->body_bytes);
}

static void write_address(kn_server *s, kn_text *text)
{
    kn_json_writer w = kn_json_writer_on(text);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "address");
    kn_json_write_string(&w, s->admin_address);
    kn_json_write_key(&w, "token");
    kn_json_write_string(&w, s->admin_token);
    kn_json_write_key(&w, "pid");
    kn_json_write_int(&w, getpid());
    kn_json_write_object_end(&w);
    kn_text_string(text, "\n");
}

/* Readable by its owner alone from its first moment. */
static kn_status publish_address(kn_server *s)
{
    kn_status st = KN_OK;
    char storage[512];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    char *path = kn_format("%s/admin.json", s->data), *fresh = kn_format("%s/admin.json.new", s->data);
    int fd = -1;
    if (!path || !fresh) {
        st = KN_NOMEM;
        goto fail;
    }
    write_address(s, &text);
    unlink(fresh);
    fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || write(fd, text.bytes, text.count) != (ssize_t)text.count || rename(fresh, path) != 0)
        st = kn_fail(KN_IO, "%s: %s", path, strerror(errno));
fail:
    if (fd >= 0) close(fd);
    kn_free(path);
    kn_free(fresh);
    return st;
}

kn_status kn_admin_start(kn_server *s)
{
    kn_status st = KN_OK;
    unsigned char random[32];
    const char *listen = "127.0.0.1:0";
    if (getrandom(random, sizeof random, 0) != sizeof random) return kn_fail(KN_IO, "no random numbers");
    for (size_t i = 0; i < sizeof random; i++) snprintf(s->admin_token + 2 * i, 3, "%02x", random[i]);
    KN_TRY(kn_http_server_create(&s->admin, &(kn_http_params){.base = s->base,
                                                              .turns = s->turns,
                                                              .listen = &listen,
                                                              .listen_count = 1,
                                                              .limits = {.connections = 64},
                                                              .callbacks = {.headers = on_headers,
                                                                            .request = kn_call_request,
                                                                            .closed = kn_call_closed,
                                                                            .finished = kn_call_finished},
                                                              .context = s}));
    snprintf(s->admin_address, sizeof s->admin_address, "http://127.0.0.1:%u", kn_http_server_port(s->admin, 0));
    KN_TRY(publish_address(s));
fail:
    return st;
}

void kn_admin_stop(kn_server *s)
{
    char *path = s->admin ? kn_format("%s/admin.json", s->data) : NULL;
    if (path) unlink(path);
    kn_free(path);
    kn_http_server_destroy(&s->admin);
    OPENSSL_cleanse(s->admin_token, sizeof s->admin_token);
}
