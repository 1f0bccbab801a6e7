/* SPDX-License-Identifier: Apache-2.0
 *
 * What is done every second: results expire, ended things are forgotten, ends the store could not take are offered
 * again, event streams are kept alive, gauges brought up to date, the disk is looked at, and files no row names are
 * swept away a few at a time. */
#define _POSIX_C_SOURCE 200809L

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/health.h"
#include "server/kserve_core.h"
#include "server/notify_ready.h"
#include "server/sweep.h"
#include "server/wallclock.h"

enum {
    EXPIRE_BATCH = 200,
    HEARTBEAT_SECONDS = 15,
    PURGE_SECONDS = 60,
    SWEEP_PAUSE_MS = 50,  /* between two looks, each so short that no request waits for it */
    SWEEP_ENTRIES = 50,   /* seen in a look */
    SWEEP_AGE_SECONDS = 5 /* of the server, before the first */
};

struct kn_housekeeping {
    struct event *event, *sweep_event;
    int64_t ticks;
    kn_sweep *sweep;
    kn_wallclock wallclock;
    uint64_t full; /* the store's count of full disks, last time */
    bool expiring, purging;
    bool purge_again; /* the last purge left some */
};

/* ---- expiry ---- */

static void on_expired(void *context, kn_store_result *result)
{
    kn_server *s = context;
    s->housekeeping->expiring = false;
    if (result->status != KN_OK) return;
    for (int32_t i = 0; i < result->file_count; i++) {
        kn_live *live = kn_live_find(s->live, result->files[i].id);
        if (live && live->job.state == KN_JOB_COMPLETED) live->job.state = KN_JOB_EXPIRED;
    }
    kn_end_remove_files(s, result);
    if (result->count > 0) kn_log(KN_LOG_INFO, "%d results have expired", result->count);
}

static void on_purged(void *context, kn_store_result *result)
{
    kn_server *s = context;
    struct kn_housekeeping *h = s->housekeeping;
    h->purging = false;
    h->purge_again = result->status == KN_OK && result->count >= EXPIRE_BATCH;
    if (result->status != KN_OK || result->count == 0) return;
    if (s->config->history_seconds > 0)
        kn_live_forget_ended(s->live, result->at - s->config->history_seconds * 1000000);
}

/* What goes by the age of things: not while the clock may be wrong. */
static bool may_forget(kn_server *s)
{
    int64_t step_us;
    const bool trusted = kn_wallclock_trusted(&s->housekeeping->wallclock, kn_now_us(), kn_clock_ns(), &step_us);
    if (step_us != 0)
        kn_log(KN_LOG_WARNING, "the clock was set %s by %" PRId64 " s%s", step_us > 0 ? "forward" : "back",
               (step_us > 0 ? step_us : -step_us) / 1000000,
               step_us > 0 ? "; nothing expires for ten minutes, in case it is set back" : "");
    return trusted;
}

static void tidy_store(kn_server *s)
{
    struct kn_housekeeping *h = s->housekeeping;
    if (!may_forget(s)) return;
    if (!h->expiring) {
        const kn_store_op op = {.kind = KN_STORE_EXPIRE, .batch = EXPIRE_BATCH};
        h->expiring = kn_store_submit_op(s->store, &op, on_expired, s) == KN_OK;
    }
    if (!h->purging && (h->purge_again || h->ticks % PURGE_SECONDS == 0)) {
        const kn_store_op op = {
            .kind = KN_STORE_PURGE, .batch = EXPIRE_BATCH, .ended_us = s->config->history_seconds * 1000000};
        h->purging = kn_store_submit_op(s->store, &op, on_purged, s) == KN_OK;
    }
}

/* ---- files no row names ---- */

static bool is_result(const kn_job *job, const kn_artifact *artifact)
{
    kn_artifact kept;
    return artifact->kind != KN_ARTIFACT_CHECKPOINT && job->state == KN_JOB_COMPLETED && job->blob &&
           kn_artifact_parse(&kept, job->blob) && kept.lease.epoch == artifact->lease.epoch;
}

/* A row names it, or a worker is writing it. */
static bool wanted(void *context, const kn_artifact *artifact)
{
    kn_server *s = context;
    kn_job job;
    const char *id = artifact->lease.job;
    const kn_live *live = kn_live_find(s->live, id);
    if (live && live->phase != KN_LIVE_ENDED) return artifact->lease.epoch == live->job.epoch || !artifact->temporary;
    if (artifact->temporary) return false;
    if (live) return is_result(&live->job, artifact);
    const kn_status st = kn_store_job_get(s->store, NULL, id, &job);
    if (st == KN_NOT_FOUND) return false;
    if (st != KN_OK) return true; /* in doubt it stays */
    const bool keep = is_result(&job, artifact);
    kn_job_release(&job);
    return keep;
}

static void on_sweep(evutil_socket_t fd, short what, void *context)
{
    kn_server *s = context;
    (void)fd, (void)what;
    if (s->housekeeping->ticks >= SWEEP_AGE_SECONDS) kn_sweep_go(s->housekeeping->sweep, SWEEP_ENTRIES);
}

/* ---- gauges ---- */

static void count_queued(void *context, kn_live *live)
{
    kn_queue_stats *out = context;
    if (live->job.state != KN_JOB_QUEUED) {
        out->running++;
        return;
    }
    const double age = (double)(kn_now_us() - live->job.created_at) * 1e-6;
    out->queued++;
    out->queued_by_priority[live->job.priority]++;
    out->queued_device_seconds += (double)live->job.cost_us * 1e-6;
    if (age > out->oldest_queued_seconds) out->oldest_queued_seconds = age;
}

void kn_server_queue_stats(kn_server *s, kn_queue_stats *out)
{
    kn_scheduler_stats stats;
    *out = (kn_queue_stats){.devices = s->seat_count, .queue_max = s->config->queue_max, .draining = s->draining};
    kn_scheduler_read_stats(s->scheduler, &stats);
    kn_live_each_unfinished(s->live, count_queued, out);
    for (int32_t i = 0; i < s->seat_count; i++) out->devices_ready += s->seats[i].up;
    const double backlog = kn_clock_seconds(stats.backlog_ns);
    out->running_device_seconds = backlog > out->queued_device_seconds ? backlog - out->queued_device_seconds : 0.0;
}

static void zero_queues(kn_server *s)
{
    const kn_meters *m = s->meters;
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        const char *model = kn_catalog_at(s->catalog, i)->name;
        kn_metric_set(m->jobs_running, 0.0, KN_LABELS(model));
        kn_metric_set(m->queued_device_seconds, 0.0, KN_LABELS(model));
        for (int p = 0; p < KN_PRIORITIES; p++)
            kn_metric_set(m->jobs_queued, 0.0, KN_LABELS(model, kn_priority_name((kn_priority)p)));
    }
}

static void count_job(void *context, kn_live *live)
{
    const kn_server *s = context;
    const char *model = live->job.model;
    if (live->job.state != KN_JOB_QUEUED) {
        kn_metric_add(s->meters->jobs_running, 1.0, KN_LABELS(model));
        return;
    }
    kn_metric_add(s->meters->jobs_queued, 1.0, KN_LABELS(model, kn_priority_name(live->job.priority)));
    kn_metric_add(s->meters->queued_device_seconds, (double)live->job.cost_us * 1e-6, KN_LABELS(model));
}

/* Is there a device for this model? */
static bool can_run(const kn_server *s, int32_t model)
{
    if (!kn_catalog_at(s->catalog, model)->available) return false;
    for (int32_t i = 0; i < s->seat_count; i++)
        if (s->seats[i].up && !(s->seats[i].refused >> model & 1)) return true;
    return false;
}

/* The database's file grows and never shrinks; the rest is as the last walk found it. */
static void measure_storage(kn_server *s)
{
    const kn_meters *m = s->meters;
    const kn_store_stats store = kn_store_read_stats(s->store);
    const kn_sweep *sweep = s->housekeeping->sweep;
    static const char *const kinds[KN_STORE_ERRORS] = {"busy", "io", "full", "corrupt", "other"};
    struct stat info;
    char *path = kn_format("%s/kinora.db", s->data);
    if (path && stat(path, &info) == 0) kn_metric_set(m->store_bytes, (double)info.st_size, KN_LABELS("database"));
    kn_free(path);
    kn_metric_set(m->store_bytes, (double)store.wal_bytes, KN_LABELS("wal"));
    kn_metric_set(m->store_bytes, (double)kn_sweep_bytes(sweep, KN_ARTIFACT_VIDEO), KN_LABELS("blobs"));
    kn_metric_set(m->store_bytes, (double)kn_sweep_bytes(sweep, KN_ARTIFACT_CHECKPOINT), KN_LABELS("checkpoints"));
    for (int i = 0; i < KN_STORE_ERRORS; i++)
        kn_metric_set(m->store_errors, (double)store.errors[i], KN_LABELS(kinds[i]));
    kn_server_observe_commits(s);
    kn_metric_set(m->storage_free_bytes, (double)s->reserve.free_bytes, KN_NO_LABELS);
    kn_metric_set(m->storage_reserved, s->reserve.held, KN_NO_LABELS);
    kn_metric_set(m->memory_bytes, (double)store.memory_bytes, KN_LABELS("sqlite"));
}

void kn_server_observe_commits(kn_server *s)
{
    kn_store_commit commits[64];
    int32_t count;
    do {
        count = kn_store_take_commits(s->store, commits, 64);
        for (int32_t i = 0; i < count; i++) {
            kn_metric_observe(s->meters->store_commit_seconds, (double)commits[i].ns * 1e-9, KN_NO_LABELS);
            kn_metric_observe(s->meters->store_commit_operations, commits[i].operations, KN_NO_LABELS);
        }
    } while (count == 64);
}

/* What it shares a slice in, if it does; what it was seen to share before is 0. */
static void measure_group(kn_server *s, int32_t device)
{
    kn_seat *seat = &s->seats[device];
    kn_device_health health;
    kn_fleet_health(s->fleet, device, &health);
    kn_metric_set(s->meters->device_assist_seconds, health.assist_seconds, KN_LABELS(seat->name, ""));
    if (seat->seen_model)
        kn_metric_set(s->meters->group_members, 0, KN_LABELS(seat->name, seat->seen_leader, seat->seen_model));
    seat->seen_model = NULL;
    if (health.degree == 0) return;
    const kn_seat *leader = &s->seats[health.members[0]];
    if (!leader->busy) return;
    seat->seen_leader = leader->name;
    seat->seen_model = kn_catalog_at(s->catalog, leader->assignment.model)->name;
    kn_metric_set(s->meters->group_members, health.degree, KN_LABELS(seat->name, seat->seen_leader, seat->seen_model));
}

void kn_server_measure(kn_server *s)
{
    const kn_meters *m = s->meters;
    zero_queues(s);
    kn_live_each_unfinished(s->live, count_job, s);
    for (int32_t i = 0; i < s->seat_count; i++) {
        const char *name = s->seats[i].name;
        kn_device_stats stats;
        kn_metric_set(m->device_ready, s->seats[i].up, KN_LABELS(name, ""));
        kn_metric_set(m->device_busy_seconds, s->seats[i].busy_seconds, KN_LABELS(name, ""));
        kn_metric_set(m->device_memory_total, (double)s->seats[i].info.memory_bytes, KN_LABELS(name, ""));
        measure_group(s, i);
        if (kn_scheduler_read_device(s->scheduler, i, &stats) == KN_OK)
            kn_metric_set(m->device_memory_used, (double)stats.memory_used, KN_LABELS(name, ""));
    }
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++)
        kn_metric_set(m->model_ready, can_run(s, i), KN_LABELS(kn_catalog_at(s->catalog, i)->name));
    kn_metric_set(m->http_requests_running, s->calls, KN_NO_LABELS);
    kn_metric_set(m->webhooks_pending, kn_webhooks_pending(s), KN_NO_LABELS);
    kn_metric_set(m->http_connections, kn_http_server_stats(s->http).connections, KN_NO_LABELS);
    if (s->grpc) {
        const kn_grpc_stats grpc = kn_grpc_server_stats(s->grpc);
        kn_metric_set(m->grpc_connections, grpc.connections, KN_NO_LABELS);
        kn_metric_set(m->grpc_calls_running, grpc.calls, KN_NO_LABELS);
        kn_metric_set(m->grpc_abused, (double)grpc.abused, KN_NO_LABELS);
    }
    kn_metric_set(m->event_streams, s->streams, KN_NO_LABELS);
    kn_metric_set(m->draining, s->draining, KN_NO_LABELS);
    measure_storage(s);
    kn_metric_set(m->memory_bytes, (double)kn_mem_read().bytes, KN_LABELS("kinora"));
    kn_meters_collect(s->meters);
}

/* ---- the tick ---- */

/* While nobody writes the store cannot notice that the disk has space again. */
static void probe_store(kn_server *s)
{
    const kn_store_op op = {.kind = KN_STORE_AUDIT, .id = "store", .audit = {.action = "storage.probe"}};
    if (kn_store_health(s->store) != KN_UNAVAILABLE || kn_store_read_stats(s->store).pending > 0) return;
    if (kn_store_submit_op(s->store, &op, NULL, NULL) != KN_OK) kn_log(KN_LOG_DEBUG, "probe: %s", kn_fail_message());
}

static void tend_reserve(kn_server *s)
{
    struct kn_housekeeping *h = s->housekeeping;
    const uint64_t full = kn_store_read_stats(s->store).errors[KN_STORE_ERROR_FULL];
    const bool changed = kn_reserve_tend(&s->reserve, full != h->full);
    h->full = full;
    if (s->reserve.held) probe_store(s);
    if (!changed) return;
    if (s->reserve.held)
        kn_log(KN_LOG_INFO, "there is space on the disk again; new jobs are taken");
    else
        kn_log(KN_LOG_ERROR,
               "the disk is full: the reserve of %" PRId64 " MiB is given up to finish what was accepted, "
               "new jobs are refused until there is space",
               s->reserve.bytes >> 20);
}

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    kn_server *s = context;
    struct kn_housekeeping *h = s->housekeeping;
    (void)fd, (void)what;
    h->ticks++;
    tend_reserve(s);
    tidy_store(s);
    kn_end_retry(s);
    kn_server_observe_commits(s);
    kn_dispatch_pump(s);
    if (h->ticks % HEARTBEAT_SECONDS == 0) kn_api_heartbeat(s);
    kn_kserve_sweep(s);
    kn_health_tell(s);
    if (kn_store_health(s->store) == KN_FATAL && !s->draining) {
        kn_log(KN_LOG_ERROR, "the store has failed; stopping, so that a restart can recover it");
        s->failure = KN_FATAL;
        kn_server_drain(s);
    }
    kn_notify_watchdog();
}

kn_status kn_housekeeping_start(kn_server *s)
{
    kn_status st = KN_OK;
    const struct timeval second = {.tv_sec = 1}, pause = {.tv_usec = 1000 * SWEEP_PAUSE_MS};
    s->housekeeping = kn_alloc(sizeof *s->housekeeping);
    if (!s->housekeeping) return KN_NOMEM;
    KN_TRY(kn_sweep_create(&s->housekeeping->sweep, s->data, wanted, s));
    s->housekeeping->event = event_new(s->base, -1, EV_PERSIST, on_tick, s);
    s->housekeeping->sweep_event = event_new(s->base, -1, EV_PERSIST, on_sweep, s);
    if (!s->housekeeping->event || event_add(s->housekeeping->event, &second) != 0 || !s->housekeeping->sweep_event ||
        event_add(s->housekeeping->sweep_event, &pause) != 0)
        st = kn_fail(KN_NOMEM, "no memory for an event");
fail:
    return st;
}

void kn_housekeeping_stop(kn_server *s)
{
    if (!s->housekeeping) return;
    kn_sweep_destroy(&s->housekeeping->sweep);
    if (s->housekeeping->event) event_free(s->housekeeping->event);
    if (s->housekeeping->sweep_event) event_free(s->housekeeping->sweep_event);
    kn_free(s->housekeeping);
    s->housekeeping = NULL;
}
