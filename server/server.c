/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's life: parts are made from the ground up, jobs of an earlier life are taken on again, and at the end
 * everything is let go in the opposite order. */
#define _XOPEN_SOURCE 700

#include "server/server.h"

#include <errno.h>
#include <event2/thread.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "kernels/device.h"
#include "server/api.h"
#include "server/front.h"
#include "server/json.h"
#include "server/loop.h"
#include "server/notify_ready.h"

enum { DESCRIPTORS_WANTED = 65536, DRAIN_TICK_MS = 20 };

int64_t kn_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- ready ---- */

bool kn_server_ready(const kn_server *s, char *why, size_t bytes)
{
    int32_t up = 0;
    for (int32_t i = 0; i < s->seat_count; i++) up += s->seats[i].up;
    const char *reason = s->draining                             ? "draining"
                         : kn_store_health(s->store) == KN_FATAL ? "the store has failed"
                         : kn_store_health(s->store) != KN_OK    ? "storage is full"
                         : !s->reserve.held                      ? "storage is full"
                         : up == 0                               ? "no device is ready"
                                                                 : "";
    snprintf(why, bytes, "%s", reason);
    return reason[0] == '\0';
}

/* ---- jobs of an earlier life ---- */

/* Puts an unfinished job to work; without its model it waits for a reload that brings the model back. */
static void take_on(kn_server *s, kn_live *live)
{
    kn_request request = kn_request_empty();
    kn_catalog_model *model = kn_catalog_find(s->catalog, live->job.model);
    if (!model || !model->available) {
        kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id), kn_log_text("model", live->job.model)),
                     "the job waits: its model is not available");
        return;
    }
    live->model = model;
    kn_status st = kn_request_from_json(&request, live->job.request, live->job.id);
    if (st == KN_OK) st = kn_catalog_measure(&live->size, model, &request);
    if (st == KN_OK) st = kn_dispatch_admit(s, live);
    kn_request_release(&request);
    if (st != KN_OK)
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)), "the job cannot be taken up: %s",
                     kn_fail_message());
}

void kn_server_revive(kn_server *s, kn_live *live)
{
    if (live->phase != KN_LIVE_ENDED || kn_live_revived(s->live, live) != KN_OK) return;
    take_on(s, live);
    kn_tell_state(s, live);
}

static void retry_model(void *context, kn_live *live)
{
    if (!live->model) take_on(context, live);
}

static kn_status recover_job(void *context, const kn_job *row)
{
    kn_status st = KN_OK;
    kn_server *s = context;
    kn_job job = {0};
    kn_live *live;
    KN_TRY(kn_job_copy(&job, row));
    KN_TRY(kn_live_add(s->live, &job, &live));
    take_on(s, live);
    kn_point(KN_POINT_recover);
fail:
    kn_job_release(&job);
    return st;
}

static kn_status recover(kn_server *s)
{
    kn_status st = KN_OK;
    KN_TRY(kn_store_load_unfinished(s->store, recover_job, s));
    const int32_t count = kn_live_count(s->live).unfinished;
    if (count > 0) kn_log(KN_LOG_INFO, "%d unfinished jobs are taken up again", count);
fail:
    return st;
}

/* ---- set-up ---- */

static kn_status prepare_data(kn_server *s)
{
    kn_status st = KN_OK;
    char resolved[4096]; /* PATH_MAX on Linux */
    const char *directory = s->config->data;
    struct rlimit files;
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return kn_fail(KN_IO, "--data %s: %s", directory, strerror(errno));
    if (!realpath(directory, resolved)) return kn_fail(KN_IO, "--data %s: %s", directory, strerror(errno));
    s->data = kn_strdup(resolved);
    if (!s->data) return KN_NOMEM;
    KN_TRY(kn_artifact_prepare(s->data));
    KN_TRY(kn_reserve_open(&s->reserve, s->data, s->config->reserve_bytes));
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < DESCRIPTORS_WANTED) {
        files.rlim_cur = files.rlim_max < DESCRIPTORS_WANTED ? files.rlim_max : DESCRIPTORS_WANTED;
        setrlimit(RLIMIT_NOFILE, &files);
    }
fail:
    return st;
}

static void wake_loop(void *context)
{
    const kn_server *s = context;
    const uint64_t one = 1;
    if (write(s->store_wakeup, &one, sizeof one) < 0) return; /* full: the loop has been told often enough */
}

static void on_store(evutil_socket_t fd, short what, void *context)
{
    kn_server *s = context;
    uint64_t count;
    (void)what;
    if (read((int)fd, &count, sizeof count) < 0) return;
    kn_store_drain(s->store);
    if (s->meters) kn_server_observe_commits(s);
}

static kn_status open_store(kn_server *s)
{
    kn_status st = KN_OK;
    s->store_wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (s->store_wakeup < 0) return kn_fail(KN_IO, "eventfd: %s", strerror(errno));
    KN_TRY(
        kn_store_open(&s->store, &(kn_store_params){.directory = s->data, .notify = wake_loop, .notify_context = s}));
    s->store_event = event_new(s->base, s->store_wakeup, EV_READ | EV_PERSIST, on_store, s);
    if (!s->store_event || event_priority_set(s->store_event, KN_LOOP_FIRST) != 0 ||
        event_add(s->store_event, NULL) != 0)
        return kn_fail(KN_NOMEM, "no memory for an event");
fail:
    return st;
}

static kn_policy_options policy_options(const kn_server *s)
{
    const kn_server_config *c = s->config;
    return (kn_policy_options){
        .keys = s->keys,
        .rates = {.key = {.requests_per_minute = (int32_t)c->requests_per_minute},
                  .tenant = {.requests_per_minute = (int32_t)c->tenant_requests_per_minute}},
        .limits = {.max_active = c->tenant_jobs,
                   .device_us = (uint64_t)c->tenant_device_seconds * 1000000,
                   .window_us = INT64_C(86400) * 1000000},
    };
}

static void set_policy(kn_server *s)
{
    const kn_policy_options options = policy_options(s);
    kn_policy_set(s->policy, &options.rates, &options.limits);
}

static kn_status open_policy(kn_server *s)
{
    kn_status st = KN_OK;
    const kn_server_config *c = s->config;
    KN_TRY(kn_pepper_open(&s->pepper, s->data));
    KN_TRY(kn_keys_create(&s->keys, &s->pepper));
    KN_TRY(kn_store_keys(s->store, NULL, kn_keys_load, s->keys));
    const bool keys_set = c->keys || kn_keys_count(s->keys) > 0;
    for (size_t i = 0; i < c->listen.count; i++)
        KN_TRY(kn_policy_check_bind(c->listen.items[i], keys_set, c->tls_cert != NULL));
    for (size_t i = 0; i < c->grpc.count; i++)
        KN_TRY(kn_policy_check_bind(c->grpc.items[i], keys_set, c->tls_cert != NULL));
    if (c->metrics_listen && !kn_http_address_is_loopback(c->metrics_listen))
        kn_log(KN_LOG_WARNING, "metrics on %s can be read from other machines without a key", c->metrics_listen);
    kn_policy_options options = policy_options(s);
    options.open = s->open = !keys_set;
    KN_TRY(kn_policy_create(&s->policy, &options));
fail:
    return st;
}

/* "cpu*4" or "cuda:0-7": the numbers, and the text before them. */
static bool is_range(const char *item, int *first, int *last, const char **prefix)
{
    int end = 0;
    *first = 0;
    *prefix = "cpu:";
    if (sscanf(item, "cpu*%d%n", last, &end) == 1 && item[end] == '\0') return --*last >= 0;
    *prefix = "cuda:";
    return sscanf(item, "cuda:%d-%d%n", first, last, &end) == 2 && item[end] == '\0' && *first >= 0 && *last >= *first;
}

/* "auto": every GPU of this machine, or else the CPU. Names made here live as long as the program. */
static size_t devices_of(const kn_server_config *c, const char **out)
{
    static char made[KN_FLEET_DEVICES_MAX][KN_DEVICE_NAME_BYTES];
    size_t count = 0;
    for (size_t i = 0; i < c->devices.count && count < KN_FLEET_DEVICES_MAX; i++) {
        int first, last;
        const char *prefix, *item = c->devices.items[i];
        if (strcmp(item, "auto") == 0) {
            const int32_t there = kn_device_list(&made[count], KN_FLEET_DEVICES_MAX - (int32_t)count);
            for (int32_t j = 0; j < there; j++, count++) out[count] = made[count];
        } else if (is_range(item, &first, &last, &prefix)) {
            for (int j = first; j <= last && count < KN_FLEET_DEVICES_MAX; j++, count++) {
                snprintf(made[count], sizeof made[count], "%s%d", prefix, j);
                out[count] = made[count];
            }
        } else {
            out[count++] = item;
        }
    }
    return count;
}

/* CPU workers that are given no number of threads share the cores. */
static int32_t threads_of(const kn_server_config *c, const char *const *devices, int32_t count)
{
    int32_t workers = 0;
    for (int32_t i = 0; i < count; i++) workers += strncmp(devices[i], "cpu", 3) == 0;
    if (c->threads > 0 || workers < 2) return (int32_t)c->threads;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > workers ? (int32_t)(cores / workers) : 1;
}

/* Groups of GPUs need NCCL, and that needs sockets. */
static bool needs_sockets(const kn_server_config *c, const char *const *devices, int32_t count)
{
    int32_t gpus = 0;
    for (int32_t i = 0; i < count; i++) gpus += strncmp(devices[i], "cuda", 4) == 0;
    return gpus > 1 && c->degree_max > 1;
}

/* A fake device's options are not part of its name, and several may be the same. */
static void name_seats(kn_server *s, const char *const *devices)
{
    for (int32_t i = 0; i < s->seat_count; i++) {
        const int length = strncmp(devices[i], "fake", 4) == 0 ? 4 : (int)strlen(devices[i]);
        int32_t same = 0;
        for (int32_t j = 0; j < i; j++) same += strncmp(s->seats[j].name, devices[i], (size_t)length) == 0;
        if (same == 0)
            snprintf(s->seats[i].name, sizeof s->seats[i].name, "%.*s", length, devices[i]);
        else
            snprintf(s->seats[i].name, sizeof s->seats[i].name, "%.*s#%d", length, devices[i], same + 1);
    }
}

static kn_status open_meters(kn_server *s)
{
    static char methods[KN_FRONT_METHODS_MAX][KN_FRONT_PATH_BYTES];
    const char *method_names[KN_FRONT_METHODS_MAX];
    const char *routes[96], *names[KN_FLEET_DEVICES_MAX], *models[KN_CATALOG_MODELS_MAX];
    kn_meter_device devices[KN_FLEET_DEVICES_MAX];
    const size_t route_count = kn_api_routes(routes, sizeof routes / sizeof *routes);
    const size_t method_count = kn_front_methods(methods, KN_FRONT_METHODS_MAX);
    for (size_t i = 0; i < method_count; i++) method_names[i] = methods[i];
    const size_t device_count = devices_of(s->config, names);
    s->seat_count = (int32_t)device_count;
    name_seats(s, names);
    const size_t model_count = (size_t)kn_catalog_count(s->catalog);
    for (size_t i = 0; i < model_count; i++) models[i] = kn_catalog_at(s->catalog, (int32_t)i)->name;
    for (size_t i = 0; i < device_count; i++) devices[i] = (kn_meter_device){.name = s->seats[i].name, .uuid = ""};
    return kn_meters_create(&s->meters, &(kn_meters_options){.models = models,
                                                             .model_count = model_count,
                                                             .routes = routes,
                                                             .route_count = route_count,
                                                             .methods = method_names,
                                                             .method_count = method_count,
                                                             .devices = devices,
                                                             .device_count = device_count});
}

static kn_status open_moderation(kn_server *s)
{
    const kn_server_config *c = s->config;
    kn_moderation_options options = {.time_limit_ms = (int32_t)c->moderation_time_limit_ms,
                                     .running_max = (int32_t)c->moderation_running_max,
                                     .fail_open = c->moderation_fail_open};
    const kn_setting_list *const hooks[] = {
        [KN_MODERATION_PROMPT] = &c->moderation_prompt_hook, [KN_MODERATION_OUTPUT] = &c->moderation_output_hook};
    for (int i = 0; i < KN_MODERATION_STAGES; i++)
        if (kn_settings_hook_is_url(hooks[i]))
            options.urls[i] = hooks[i]->items[0];
        else if (hooks[i]->count > 0)
            options.hooks[i] = (const char *const *)hooks[i]->items;
    options.allow = (const char *const *)c->moderation_allow.items;
    options.allow_count = c->moderation_allow.count;
    options.ca_file = c->moderation_ca;
    return kn_moderation_create(&s->moderation, s->base, &options);
}

static void on_pump(evutil_socket_t fd, short what, void *context)
{
    (void)fd, (void)what;
    kn_dispatch_pump(context);
}

static kn_status open_scheduler(kn_server *s)
{
    kn_status st = KN_OK;
    const kn_server_config *c = s->config;
    const int64_t jobs = c->queue_max + KN_FLEET_DEVICES_MAX;
    KN_TRY(kn_catalog_open(&s->catalog, c->models, c->aliases, (int32_t)c->alias_count));
    KN_TRY(kn_names_create(&s->tenants, KN_SERVER_TENANTS_MAX));
    KN_TRY(kn_scheduler_create(
        &s->scheduler,
        &(kn_scheduler_params){.jobs = jobs > KN_SCHEDULER_JOBS_MAX ? KN_SCHEDULER_JOBS_MAX : (int32_t)jobs,
                               .tenants = KN_SERVER_TENANTS_MAX,
                               .degree_max = (int32_t)c->degree_max,
                               .degree_fixed = (int32_t)c->degree_fixed}));
    KN_TRY(kn_dispatch_models(s));
    s->pump_event = evtimer_new(s->base, on_pump, s);
    if (!s->pump_event || event_priority_set(s->pump_event, KN_LOOP_FIRST) != 0)
        st = kn_fail(KN_NOMEM, "no memory for an event");
fail:
    return st;
}

static kn_status open_fleet(kn_server *s)
{
    const char *names[KN_FLEET_DEVICES_MAX];
    char models[4096];
    const kn_server_config *c = s->config;
    devices_of(c, names);
    if (!kn_catalog_folder(s->catalog, models, sizeof models))
        return kn_fail(KN_INVALID, "--models %s: the path is too long", c->models);
    return kn_fleet_create(&s->fleet, &(kn_fleet_params){.base = s->base,
                                                         .devices = names,
                                                         .device_count = s->seat_count,
                                                         .models = models,
                                                         .data = s->data,
                                                         .threads = threads_of(c, names, s->seat_count),
                                                         .sockets = needs_sockets(c, names, s->seat_count),
                                                         .isa = c->isa,
                                                         .precision = c->precision,
                                                         .vae_precision = c->vae_precision,
                                                         .checkpoint_interval_ns = c->checkpoint_interval_ms * 1000000,
                                                         .events = kn_dispatch_events(s)});
}

static kn_status open_http(kn_server *s)
{
    kn_status st = KN_OK;
    const kn_server_config *c = s->config;
    if (c->tls_cert)
        KN_TRY(kn_tls_create(
            &s->tls, &(kn_tls_params){.certificate = c->tls_cert, .key = c->tls_key, .client_ca = c->tls_client_ca}));
    KN_TRY(kn_http_server_create(&s->http, &(kn_http_params){.base = s->base,
                                                             .turns = s->turns,
                                                             .listen = (const char *const *)c->listen.items,
                                                             .listen_count = c->listen.count,
                                                             .tls = s->tls,
                                                             .limits = {.connections = (int32_t)c->connections_max},
                                                             .callbacks = kn_api_callbacks(),
                                                             .context = s}));
    if (c->metrics_listen)
        KN_TRY(kn_http_server_create(&s->metrics, &(kn_http_params){.base = s->base,
                                                                    .turns = s->turns,
                                                                    .listen = (const char *const *)&c->metrics_listen,
                                                                    .listen_count = 1,
                                                                    .limits = {.connections = 64},
                                                                    .callbacks = kn_metrics_callbacks(),
                                                                    .context = s}));
    KN_TRY(kn_front_start(s));
    KN_TRY(kn_admin_start(s));
fail:
    return st;
}

/* ---- drain, reload, signals ---- */

static void on_drain_tick(evutil_socket_t fd, short what, void *context)
{
    kn_server *s = context;
    (void)fd, (void)what;
    const bool late = kn_clock_ns() >= s->drain_until_ns;
    const kn_store_stats store = kn_store_read_stats(s->store);
    const int32_t left = kn_dispatch_save_all(s);
    if (!late &&
        (left > 0 || store.pending > 0 || kn_http_server_stats(s->http).connections > 0 || kn_front_connections(s) > 0))
        return;
    if (left > 0)
        kn_log(KN_LOG_WARNING, "%d jobs were still on their devices; they go on from their checkpoints", left);
    s->stopping = true;
    event_base_loopbreak(s->base);
}

void kn_server_drain(kn_server *s)
{
    const struct timeval tick = {.tv_usec = DRAIN_TICK_MS * 1000};
    const kn_change change = {.kind = KN_CHANGE_DRAIN, .drain = true};
    if (s->draining) { /* asked twice: now */
        s->drain_until_ns = kn_clock_ns();
        return;
    }
    s->draining = true;
    s->drain_until_ns = kn_clock_ns() + s->config->drain_seconds * INT64_C(1000000000);
    kn_log(KN_LOG_INFO, "draining: running slices finish, jobs are saved");
    kn_notify_stopping("draining");
    kn_point(KN_POINT_drain);
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "drain: %s", kn_fail_message());
    kn_api_end_streams(s);
    kn_http_server_drain(s->http, NULL, NULL);
    kn_front_drain(s);
    event_add(s->drain_event, &tick);
}

kn_status kn_server_reload(kn_server *s)
{
    kn_status st = KN_OK;
    char restart[512] = "";
    kn_notify_reloading(kn_clock_ns());
    if (s->tls) KN_TRY(kn_tls_reload(s->tls));
    KN_TRY(kn_front_reload(s));
    if (s->config_path) KN_TRY(kn_server_config_reload(&s->config, s->config_path, restart, sizeof restart));
    kn_log_configure(s->config->log_level, s->config->log_format);
    set_policy(s);
    kn_live_set_finished_max(s->live, s->config->finished_max);
    kn_live_trim(s->live);
    KN_TRY(kn_catalog_rescan(s->catalog));
    KN_TRY(kn_dispatch_models(s));
    for (int32_t i = 0; i < s->seat_count; i++) s->seats[i].refused = 0;
    kn_live_each_unfinished(s->live, retry_model, s);
    kn_metric_set(s->meters->config_reload_success, 1.0, KN_NO_LABELS);
    kn_metric_set(s->meters->config_reload_time, (double)kn_now_us() * 1e-6, KN_NO_LABELS);
    kn_log(KN_LOG_INFO, "reloaded%s%s", restart[0] ? "; these need a restart: " : "", restart);
fail:
    if (st != KN_OK) {
        kn_metric_set(s->meters->config_reload_success, 0.0, KN_NO_LABELS);
        kn_log(KN_LOG_ERROR, "not reloaded: %s", kn_fail_message());
    }
    kn_notify_ready("serving");
    return st;
}

static void on_signal(evutil_socket_t number, short what, void *context)
{
    (void)what;
    if (number == SIGHUP)
        kn_server_reload(context);
    else
        kn_server_drain(context);
}

static kn_status watch_signals(kn_server *s)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        s->signal_events[i] = evsignal_new(s->base, numbers[i], on_signal, s);
        if (!s->signal_events[i] || event_add(s->signal_events[i], NULL) != 0)
            return kn_fail(KN_NOMEM, "no memory for an event");
    }
    s->drain_event = event_new(s->base, -1, EV_PERSIST, on_drain_tick, s);
    return s->drain_event ? KN_OK : kn_fail(KN_NOMEM, "no memory for an event");
}

/* ---- ready line ---- */

static void say_grpc(const kn_server *s, kn_json_writer *w, bool json)
{
    kn_json_write_key(w, "grpc");
    kn_json_write_array(w);
    for (size_t i = 0; i < s->config->grpc.count; i++) {
        char target[256];
        const char *address = s->config->grpc.items[i], *colon = strrchr(address, ':');
        snprintf(target, sizeof target, "%.*s:%u", (int)(colon - address), address,
                 kn_http_server_port(s->grpc_http, i));
        kn_json_write_string(w, target);
        if (!json) printf("%s%s", i ? ", " : "; gRPC on ", target);
    }
    kn_json_write_array_end(w);
}

static kn_status say_ready(const kn_server *s, bool json)
{
    char storage[4096];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    const char *scheme = s->tls ? "https" : "http";
    kn_json_write_object(&w);
    kn_json_write_key(&w, "event");
    kn_json_write_string(&w, "ready");
    kn_json_write_key(&w, "addresses");
    kn_json_write_array(&w);
    for (size_t i = 0; i < s->config->listen.count; i++) {
        char url[256];
        const char *address = s->config->listen.items[i], *colon = strrchr(address, ':');
        snprintf(url, sizeof url, "%s://%.*s:%u", scheme, (int)(colon - address), address,
                 kn_http_server_port(s->http, i));
        kn_json_write_string(&w, url);
        if (!json) printf("%s%s", i ? ", " : "ready on ", url);
    }
    kn_json_write_array_end(&w);
    if (s->grpc) say_grpc(s, &w, json);
    if (s->metrics) {
        char url[64];
        snprintf(url, sizeof url, "http://127.0.0.1:%u", kn_http_server_port(s->metrics, 0));
        kn_json_write_key(&w, "metrics");
        kn_json_write_string(&w, url);
    }
    kn_json_write_key(&w, "admin");
    kn_json_write_string(&w, s->admin_address);
    kn_json_write_key(&w, "data");
    kn_json_write_string(&w, s->data);
    kn_json_write_object_end(&w);
    if (json) printf("%s", kn_text_status(&text) == KN_OK ? text.bytes : "{}");
    printf("\n");
    return fflush(stdout) == 0 ? KN_OK : kn_fail(KN_IO, "standard output cannot be written");
}

/* ---- life ---- */

static kn_status open_loop(kn_server *s)
{
    struct event_config *config = event_config_new();
    const bool good = config && event_config_set_max_dispatch_interval(config, NULL, KN_LOOP_TURN, KN_LOOP_OTHERS) == 0;
    s->base = good ? event_base_new_with_config(config) : NULL;
    if (config) event_config_free(config);
    if (!s->base || event_base_priority_init(s->base, KN_LOOP_PRIORITIES) != 0)
        return kn_fail(KN_NOMEM, "no event loop");
    return kn_turns_create(&s->turns, s->base);
}

static kn_status start(kn_server *s)
{
    kn_status st = KN_OK;
    if (getrandom(&s->start, sizeof s->start, 0) != sizeof s->start) return kn_fail(KN_IO, "no random numbers");
    s->started_us = kn_now_us();
    KN_TRY(open_loop(s));
    KN_TRY(prepare_data(s));
    KN_TRY(open_store(s));
    KN_TRY(open_policy(s));
    KN_TRY(open_scheduler(s));
    KN_TRY(open_meters(s));
    kn_metric_set(s->meters->config_reload_success, 1.0,
                  KN_NO_LABELS); /* it has been read, or there would be no server */
    kn_metric_set(s->meters->config_reload_time, (double)s->started_us * 1e-6, KN_NO_LABELS);
    KN_TRY(open_moderation(s));
    KN_TRY(kn_live_create(&s->live));
    kn_live_set_finished_max(s->live, s->config->finished_max);
    KN_TRY(recover(s));
    KN_TRY(open_fleet(s));
    KN_TRY(open_http(s));
    KN_TRY(kn_webhooks_start(s));
    KN_TRY(kn_housekeeping_start(s));
    KN_TRY(watch_signals(s));
fail:
    return st;
}

/* What the store still has to say is heard while everybody it concerns is there. */
static void finish_store(kn_server *s)
{
    for (int32_t i = 0; s->store && i < 100 && kn_store_read_stats(s->store).pending > 0; i++) {
        kn_store_wait(s->store, 100);
        kn_store_drain(s->store);
    }
}

static void stop(kn_server *s)
{
    s->stopping = true;
    finish_store(s);
    kn_housekeeping_stop(s);
    kn_webhooks_stop(s);
    kn_admin_stop(s);
    kn_http_server_destroy(&s->metrics);
    kn_front_stop(s);
    kn_http_server_destroy(&s->http);
    kn_fleet_destroy(&s->fleet);
    finish_store(s);
    kn_moderation_destroy(&s->moderation);
    kn_store_close(&s->store);
    struct event **const events[] = {&s->pump_event,       &s->store_event,      &s->drain_event,
                                     &s->signal_events[0], &s->signal_events[1], &s->signal_events[2]};
    for (size_t i = 0; i < sizeof events / sizeof *events; i++)
        if (*events[i]) event_free(*events[i]);
    kn_tls_destroy(&s->tls);
    kn_live_destroy(&s->live);
    kn_scheduler_destroy(&s->scheduler);
    kn_catalog_close(&s->catalog);
    kn_names_destroy(&s->tenants);
    kn_policy_destroy(&s->policy);
    kn_keys_destroy(&s->keys);
    kn_pepper_wipe(&s->pepper);
    kn_meters_destroy(&s->meters);
    if (s->store_wakeup >= 0) close(s->store_wakeup);
    kn_turns_destroy(&s->turns);
    if (s->base) event_base_free(s->base);
    kn_reserve_close(&s->reserve);
    kn_free(s->data);
    kn_server_config_destroy(&s->config);
}

kn_status kn_serve(const kn_serve_params *params)
{
    kn_status st = KN_OK;
    kn_server *s = kn_alloc(sizeof *s);
    if (!s) {
        kn_server_config *config = params->config;
        kn_server_config_destroy(&config);
        return KN_NOMEM;
    }
    s->config = params->config;
    s->config_path = params->config_path;
    s->store_wakeup = -1;
    kn_log_configure(s->config->log_level, s->config->log_format);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_DUMPABLE, 0); /* the pepper, secrets and prompts are in this memory */
    KN_TRY(start(s));
    KN_TRY(say_ready(s, params->json));
    kn_notify_ready("serving");
    if (event_base_dispatch(s->base) < 0) st = kn_fail(KN_BUG, "the event loop failed");
    kn_log(KN_LOG_INFO, "stopped");
fail:
    stop(s);
    kn_free(s);
    return st;
}
