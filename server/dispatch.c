/* SPDX-License-Identifier: Apache-2.0
 *
 * Between the scheduler, which decides, the store, which grants leases, and the workers, which compute. What a worker
 * says becomes an event for the scheduler; what the scheduler decides becomes an assignment for a seat (seats.c). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/core.h"
#include "server/watch.h"

enum {
    PREVIEW_INTERVAL_MS = 1000,
    CPU_FLOP_PER_THREAD = 60, /* in 10^9 a second; a first guess, replaced by what is measured */
    CPU_BYTES_PER_SECOND = 10,
    CPU_LINK_BYTES_PER_SECOND = 2, /* through shared memory: copied twice */
    CPU_EXCHANGE_NS = 100000,
    GPU_FLOP_PER_MULTIPROCESSOR = 2000, /* as rough; what is measured replaces it after a few slices */
    GPU_BYTES_PER_SECOND = 2000,
};

_Static_assert((int)KN_STAGE_TEXT == (int)KN_SLICE_TEXT && (int)KN_STAGE_DENOISE == (int)KN_SLICE_DENOISE &&
                   (int)KN_STAGE_DECODE == (int)KN_SLICE_DECODE && (int)KN_STAGE_MUX == (int)KN_SLICE_MUX &&
                   (int)KN_STAGE_DONE == (int)KN_SLICE_DONE,
               "the scheduler's stages are the engine's slices");

static int64_t monotonic_of(int64_t wall_us)
{
    const int64_t ns = kn_clock_ns() + (wall_us - kn_now_us()) * 1000;
    return ns < 1 ? 1 : ns > KN_SCHEDULER_TIME_MAX ? KN_SCHEDULER_TIME_MAX : ns;
}

/* ---- terms ---- */

static kn_job_shape shape_of(const kn_server *s, const kn_catalog_model *model, const kn_catalog_size *size,
                             int32_t steps, int32_t width, int32_t height)
{
    return (kn_job_shape){
        .model = kn_catalog_index(s->catalog, model),
        .tokens = size->tokens,
        .sequences = size->sequences,
        .text_tokens = size->text_tokens,
        .steps = steps,
        .latent_frames = size->latent_frames,
        .pixels = width * height,
        .state_bytes = size->state_bytes,
        .workspace_bytes = size->workspace_bytes,
        .decoder_bytes = size->decoder_bytes,
    };
}

static kn_status terms_of(kn_server *s, kn_job_terms *out, const char *tenant, kn_priority priority, int64_t created_us,
                          int64_t deadline_us)
{
    kn_status st = KN_OK;
    uint32_t number = 0;
    KN_TRY(kn_names_add(s->tenants, tenant, &number));
    *out = (kn_job_terms){
        .priority = priority,
        .tenant = (int32_t)number,
        .tenant_weight = 1,
        .submitted_ns = monotonic_of(created_us),
        .deadline_ns = deadline_us ? monotonic_of(deadline_us) : KN_SCHEDULER_NO_DEADLINE,
    };
fail:
    return st;
}

kn_status kn_dispatch_models(kn_server *s)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        const kn_catalog_model *model = kn_catalog_at(s->catalog, i);
        kn_cost_model cost;
        if (!model->available) continue;
        KN_TRY(kn_catalog_cost(&cost, model));
        KN_TRY(kn_scheduler_set_model(s->scheduler, i, &cost));
    }
fail:
    return st;
}

kn_status kn_dispatch_admission(kn_server *s, const kn_catalog_model *model, const kn_catalog_size *size,
                                const kn_request *request, kn_priority priority, const char *tenant,
                                int64_t deadline_us, kn_admission *out)
{
    kn_status st = KN_OK;
    kn_job_terms terms;
    const kn_job_shape shape = shape_of(s, model, size, request->steps, request->width, request->height);
    KN_TRY(terms_of(s, &terms, tenant, priority, kn_now_us(), deadline_us));
    KN_TRY(kn_scheduler_admission(s->scheduler, &shape, &terms, kn_clock_ns(), out));
fail:
    return st;
}

kn_status kn_dispatch_admit(kn_server *s, kn_live *live)
{
    kn_status st = KN_OK;
    const kn_job *job = &live->job;
    kn_change change = {.kind = KN_CHANGE_JOB_ADMITTED};
    change.job = (kn_change_job){
        .key = live->key,
        .shape = shape_of(s, live->model, &live->size, live->summary.steps, live->summary.width, live->summary.height),
        .progress = {.step = job->checkpoint ? job->checkpoint_step : 0},
    };
    KN_TRY(terms_of(s, &change.job.terms, job->tenant, job->priority, job->created_at, job->deadline_at));
    change.job.terms.promised = job->deadline_at != 0;
    KN_TRY(kn_scheduler_event(s->scheduler, &change, kn_clock_ns()));
    live->phase = KN_LIVE_WAITING;
    kn_dispatch_soon(s);
fail:
    return st;
}

/* ---- deciding ---- */

void kn_dispatch_soon(kn_server *s)
{
    event_active(s->pump_event, EV_TIMEOUT, 1);
}

/* Removed jobs the scheduler still counts on an idle device: they are gone from here already, or go now. */
static void free_orphans(kn_server *s)
{
    uint64_t keys[KN_SCHEDULER_RESIDENTS_MAX];
    int32_t device;
    while (kn_scheduler_orphans(s->scheduler, &device, keys, KN_SCHEDULER_RESIDENTS_MAX) > 0) continue;
}

void kn_dispatch_pump(kn_server *s)
{
    kn_assignment assignments[KN_FLEET_DEVICES_MAX];
    if (s->pumping || s->stopping) return;
    if (kn_clock_ns() < s->claims_after_ns) return; /* housekeeping pumps again */
    s->pumping = true;
    const int32_t count = kn_scheduler_decide(s->scheduler, kn_clock_ns(), assignments, s->seat_count);
    for (int32_t i = 0; i < count; i++) kn_seat_begin(s, &assignments[i]);
    free_orphans(s);
    s->pumping = false;
}

/* ---- what workers say ---- */

static kn_device_seed seed_of(const kn_device_info *info)
{
    const int32_t threads = info->threads > 0 ? info->threads : 1;
    if (!info->host_memory)
        return (kn_device_seed){.flop_per_second = 1e9 * GPU_FLOP_PER_MULTIPROCESSOR * threads,
                                .bytes_per_second = 1e9 * GPU_BYTES_PER_SECOND,
                                .slice_ns = 500000};
    return (kn_device_seed){
        .flop_per_second = 1e9 * CPU_FLOP_PER_THREAD * threads * (info->native_bf16 ? 4 : 1),
        .bytes_per_second = 1e9 * CPU_BYTES_PER_SECOND,
        .slice_ns = 500000,
        .link_bytes_per_second = 1e9 * CPU_LINK_BYTES_PER_SECOND,
        .exchange_ns = CPU_EXCHANGE_NS,
    };
}

void kn_dispatch_device_ready(kn_server *s, int32_t device, int64_t load_ns)
{
    kn_seat *seat = &s->seats[device];
    seat->up = true;
    seat->up_untold = seat->down_untold;
    if (seat->up_untold) return; /* not before it was down */
    kn_change change = {.kind = KN_CHANGE_DEVICE_UP,
                        .device = {.index = device,
                                   .memory_bytes = seat->info.memory_bytes,
                                   .models = seat->loaded,
                                   .load_ns = load_ns,
                                   .seed = seed_of(&seat->info),
                                   .domain = kn_together_domain(s, device)}};
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++)
        if (kn_catalog_at(s->catalog, i)->available) change.device.loadable |= 1u << i;
    change.device.loadable &= ~seat->refused;
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "device %s: %s", s->seats[device].name, kn_fail_message());
    kn_dispatch_soon(s);
}

void kn_dispatch_device_gone(kn_server *s, int32_t device)
{
    const kn_change change = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = device}};
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "device down: %s", kn_fail_message());
}

/* A device is offered to the scheduler once the default model has worked on it. */
static void on_device_up(void *context, int32_t device, const kn_device_info *info)
{
    kn_server *s = context;
    kn_seat *seat = &s->seats[device];
    seat->info = *info;
    seat->loaded = seat->refused = 0;
    const kn_catalog_model *first = kn_catalog_find(s->catalog, NULL);
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("device", s->seats[device].name)), "device up: %s, %s",
                 info->description, info->tier);
    if (!first || kn_fleet_load(s->fleet, device, first->name) != KN_OK) kn_dispatch_device_ready(s, device, 0);
}

static void on_model_loaded(void *context, int32_t device, const kn_model_loaded *loaded)
{
    kn_server *s = context;
    kn_seat *seat = &s->seats[device];
    const kn_catalog_model *model = kn_catalog_find(s->catalog, loaded->model);
    const uint32_t bit = model ? 1u << kn_catalog_index(s->catalog, model) : 0;
    if (loaded->status == KN_OK) {
        seat->loaded |= bit;
        seat->refused &= ~bit;
        kn_metric_observe(s->meters->model_load_seconds, loaded->seconds, KN_LABELS(loaded->model));
    } else {
        seat->refused |= bit;
        kn_log_event(KN_LOG_ERROR,
                     KN_LOG_WITH(kn_log_text("model", loaded->model), kn_log_text("device", s->seats[device].name)),
                     "the model could not be loaded: %s", loaded->message);
    }
    if (!seat->up || loaded->status != KN_OK)
        kn_dispatch_device_ready(s, device, (int64_t)(loaded->seconds * 1e9));
    else {
        kn_change change = {
            .kind = KN_CHANGE_MODEL_LOADED,
            .device = {.index = device, .models = seat->loaded, .load_ns = (int64_t)(loaded->seconds * 1e9)}};
        if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
            kn_log(KN_LOG_ERROR, "model %s: %s", loaded->model, kn_fail_message());
    }
    kn_seat_loaded(s, device, loaded);
}

typedef struct losing {
    kn_server *server;
    int32_t device;
    const kn_device_down *down;
} losing;

static bool suspect(const kn_device_down *down, const kn_live *live)
{
    for (int32_t i = 0; i < down->count; i++)
        if (down->jobs[i].running && strcmp(down->jobs[i].lease.job, live->job.id) == 0) return true;
    return false;
}

/* One job of a device that is gone. */
static void lose_job(void *context, kn_live *live)
{
    const losing *l = context;
    kn_server *s = l->server;
    if (live->device != l->device || live->phase == KN_LIVE_ENDING || live->phase == KN_LIVE_ENDED) return;
    live->phase = KN_LIVE_WAITING;
    live->device = -1;
    live->in_slice = false;
    live->next = (kn_slice){.kind = KN_SLICE_TEXT};
    kn_metric_add(s->meters->job_restarts, 1.0, KN_LABELS(kn_down_reason_name(l->down->reason)));
    if (live->stop.state != KN_JOB_QUEUED) {
        kn_end_advance(s, live);
        return;
    }
    if (l->down->reason == KN_DOWN_KILLED || !suspect(l->down, live)) return;
    live->job.attempts++;
    const kn_store_op op = {.kind = KN_STORE_COUNT_ATTEMPT, .id = live->job.id, .epoch = live->job.epoch};
    if (kn_store_submit_op(s->store, &op, NULL, NULL) != KN_OK)
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)), "an attempt was not counted: %s",
                     kn_fail_message());
    if (live->job.attempts >= s->config->job_attempts_max)
        kn_end_job(s, live, KN_JOB_FAILED, "poison", "The worker died while it ran this video, for the %s (%s).",
                   live->job.attempts == 1 ? "first time" : "second time or more",
                   kn_down_reason_name(l->down->reason));
}

static void on_device_down(void *context, int32_t device, const kn_device_down *down)
{
    kn_server *s = context;
    kn_seat *seat = &s->seats[device];
    const bool was_up = seat->up;
    kn_log_event(KN_LOG_ERROR,
                 KN_LOG_WITH(kn_log_text("device", s->seats[device].name),
                             kn_log_text("reason", kn_down_reason_name(down->reason)),
                             kn_log_integer("jobs", down->count)),
                 "device down: %s", down->message);
    seat->up = false;
    seat->loaded = 0;
    seat->number = 0;
    kn_metric_add(s->meters->worker_restarts, 1.0, KN_LABELS(s->seats[device].name, ""));
    if (was_up && !kn_together_down(s, device)) kn_dispatch_device_gone(s, device);
    kn_seat_end(s, device); /* what it led */
    kn_live_each_unfinished(s->live, lose_job, &(losing){.server = s, .device = device, .down = down});
    kn_dispatch_soon(s);
}

static kn_live *live_of(kn_server *s, const kn_lease *lease)
{
    kn_live *live = kn_live_find(s->live, lease->job);
    return live && live->job.epoch == lease->epoch && live->phase != KN_LIVE_ENDED ? live : NULL;
}

static void on_job_started(void *context, int32_t device, const kn_outcome *outcome)
{
    kn_seat_started(context, device, outcome);
}

/* ---- slices ---- */

static kn_job_progress progress_of(const kn_live *live)
{
    const kn_slice *next = &live->next;
    const int32_t steps = live->summary.steps;
    switch (next->kind) {
    case KN_SLICE_TEXT: return (kn_job_progress){.step = live->job.checkpoint ? live->job.checkpoint_step : 0};
    case KN_SLICE_DENOISE: return (kn_job_progress){.step = next->index, .text = true};
    case KN_SLICE_DECODE: return (kn_job_progress){.step = steps, .decoded = next->index, .text = true};
    case KN_SLICE_MUX: return (kn_job_progress){.step = steps, .decoded = live->size.latent_frames, .text = true};
    case KN_SLICE_DONE: break;
    }
    return (kn_job_progress){.step = steps, .decoded = live->size.latent_frames, .text = true, .done = true};
}

static void keep_checkpoint(kn_server *s, kn_live *live, const kn_saved *saved)
{
    char *name = kn_strdup(saved->name);
    if (!name) return;
    kn_free(live->job.checkpoint);
    live->job.checkpoint = name;
    live->job.checkpoint_step = saved->step;
    memcpy(live->job.checkpoint_sha256, saved->sha256, KN_SHA256_BYTES);
    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .id = live->job.id, .epoch = live->job.epoch};
    op.checkpoint.name = name;
    op.checkpoint.step = saved->step;
    op.checkpoint.used_us = live->job.used_us;
    memcpy(op.checkpoint.sha256, saved->sha256, KN_SHA256_BYTES);
    if (kn_store_submit_op(s->store, &op, NULL, NULL) != KN_OK)
        kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "a checkpoint was not recorded: %s",
                     kn_fail_message());
    kn_metric_add(s->meters->checkpoints, 1.0, KN_LABELS("saved"));
    kn_point(KN_POINT_checkpoint_kept);
}

static void measure_slice(kn_server *s, kn_seat *seat, const kn_slice_done *done)
{
    const uint32_t model = 1u << seat->assignment.model;
    for (int32_t i = 0; i < s->seat_count; i++) /* helpers were at it as long */
        if (&s->seats[i] == seat || (done->degree > 1 && s->seats[i].helps == seat - s->seats + 1))
            s->seats[i].busy_seconds += done->seconds;
    if (done->degree > 1) {
        char degree[12];
        snprintf(degree, sizeof degree, "%d", done->degree);
        kn_metric_add(s->meters->shared_slices, 1.0,
                      KN_LABELS(degree, kn_slice_name(done->kind), done->lost ? "lost" : "done"));
    }
    if (done->lost) return;
    (done->degree > 1 ? seat->measured_shared : seat->measured)[done->kind] |= model;
    kn_metric_observe(s->meters->stage_seconds, done->seconds, KN_LABELS(kn_slice_name(done->kind)));
    if (done->kind != KN_SLICE_DENOISE) return;
    kn_metric_observe(s->meters->pack_jobs, done->count, KN_NO_LABELS);
}

/* Of a slice whose group was lost: the job is where it says it is. */
static void stay(kn_live *live, const kn_outcome *outcome)
{
    live->next = outcome->next;
    live->in_slice = false;
    kn_together_lost(live);
}

/* One job's part of a slice that is done. */
static void advance(kn_server *s, kn_live *live, const kn_slice_done *done, const kn_outcome *outcome)
{
    live->next = outcome->next;
    live->in_slice = false;
    live->job.used_us += (uint64_t)(done->seconds * 1e6 * done->degree / done->count);
    live->stage_seconds[done->kind] += done->seconds;
    if (done->kind == KN_SLICE_DENOISE)
        kn_metric_observe(s->meters->denoise_step_seconds, done->seconds, KN_LABELS(live->job.model));
    if (outcome->has_checkpoint) keep_checkpoint(s, live, &outcome->checkpoint);
}

static void on_slice_done(void *context, int32_t device, const kn_slice_done *done)
{
    kn_server *s = context;
    kn_seat *seat = &s->seats[device];
    kn_slice_job jobs[KN_SCHEDULER_PACK_MAX];
    kn_change change = {.kind = KN_CHANGE_SLICE_DONE,
                        .slice = {.device = device,
                                  .measured_ns = done->lost ? 0 : (int64_t)(done->seconds * 1e9),
                                  .jobs = jobs,
                                  .degree = done->degree}};
    if (!seat->busy || seat->number != done->assignment) return;
    kn_point(KN_POINT_slice_done);
    measure_slice(s, seat, done);
    for (int32_t i = 0; i < done->count; i++) {
        kn_live *live = live_of(s, &done->outcomes[i].lease);
        if (!live) continue;
        if (done->lost)
            stay(live, &done->outcomes[i]);
        else
            advance(s, live, done, &done->outcomes[i]);
        jobs[change.slice.count++] = (kn_slice_job){.key = live->key,
                                                    .progress = progress_of(live),
                                                    .saved_step = live->job.checkpoint ? live->job.checkpoint_step : 0};
    }
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "slice done on %s: %s", s->seats[device].name, kn_fail_message());
    kn_seat_end(s, device);
    kn_dispatch_pump(s); /* the device works on before anything is told to anybody */
    for (int32_t i = 0; i < done->count; i++) {
        kn_live *live = live_of(s, &done->outcomes[i].lease);
        if (!live) continue;
        if (live->stop.state != KN_JOB_QUEUED)
            kn_end_advance(s, live);
        else if (done->outcomes[i].has_output)
            kn_end_publish(s, live, &done->outcomes[i].output);
        else
            kn_tell_progress(s, live);
    }
}

/* It is no longer on the device and shall be tried again. */
static void requeue(kn_server *s, int32_t device, kn_live *live)
{
    kn_seat_drop(s, device, live);
    live->phase = KN_LIVE_WAITING;
    live->device = -1;
    live->in_slice = false;
    live->next = (kn_slice){.kind = KN_SLICE_TEXT};
    const kn_change change = {.kind = KN_CHANGE_JOB_RELEASED, .job = {.key = live->key, .progress = progress_of(live)}};
    const kn_status st = kn_scheduler_event(s->scheduler, &change, kn_clock_ns());
    if (st != KN_OK && st != KN_NOT_FOUND) kn_log(KN_LOG_ERROR, "job released: %s", kn_fail_message());
    kn_dispatch_soon(s);
}

static void drop_checkpoint(kn_server *s, kn_live *live, const char *why)
{
    kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)),
                 "the checkpoint cannot be used, starting again: %s", why);
    kn_free(live->job.checkpoint);
    live->job.checkpoint = NULL;
    live->job.checkpoint_step = 0;
    kn_metric_add(s->meters->checkpoints, 1.0, KN_LABELS("rejected"));
    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .id = live->job.id, .epoch = live->job.epoch};
    op.checkpoint.used_us = live->job.used_us;
    if (kn_store_submit_op(s->store, &op, NULL, NULL) != KN_OK)
        kn_log(KN_LOG_WARNING, "a checkpoint was not forgotten: %s", kn_fail_message());
}

static void on_job_failed(void *context, int32_t device, const kn_outcome *outcome)
{
    kn_server *s = context;
    kn_live *live = live_of(s, &outcome->lease);
    if (!live) return;
    kn_log_event(KN_LOG_WARNING,
                 KN_LOG_WITH(kn_log_job(live->job.id), kn_log_text("fault", kn_fault_name(outcome->fault))),
                 "the worker gave the job up: %s", outcome->message);
    const bool again = outcome->fault == KN_FAULT_CHECKPOINT || outcome->fault == KN_FAULT_MEMORY ||
                       outcome->fault == KN_FAULT_STORAGE || outcome->fault == KN_FAULT_MODEL;
    if (outcome->fault == KN_FAULT_CHECKPOINT)
        drop_checkpoint(s, live, outcome->message);
    else if (again)
        live->job.attempts++;
    requeue(s, device, live);
    if (live->stop.state != KN_JOB_QUEUED)
        kn_end_advance(s, live);
    else if (!again || live->job.attempts >= s->config->job_attempts_max)
        kn_end_job(s, live, KN_JOB_FAILED, kn_fault_name(outcome->fault), "The video could not be made: %s.",
                   outcome->message);
}

static void on_job_released(void *context, int32_t device, const kn_outcome *outcome)
{
    kn_server *s = context;
    kn_live *live = live_of(s, &outcome->lease);
    if (!live || live->phase != KN_LIVE_LEAVING) return;
    if (outcome->has_checkpoint) keep_checkpoint(s, live, &outcome->checkpoint);
    requeue(s, device, live);
    if (live->stop.state != KN_JOB_QUEUED) kn_end_advance(s, live);
}

static void on_preview(void *context, int32_t device, const kn_preview *preview)
{
    kn_server *s = context;
    kn_live *live = live_of(s, &preview->lease);
    (void)device;
    if (!live || preview->status != KN_OK) return;
    void *copy = kn_alloc(preview->count);
    if (!copy) return;
    memcpy(copy, preview->bytes, preview->count);
    kn_free(live->preview);
    live->preview = copy;
    live->preview_bytes = preview->count;
    live->preview_mime = strcmp(preview->mime, "image/webp") == 0 ? "image/webp" : "image/jpeg";
    live->preview_number++;
    kn_tell_preview(s, live);
}

kn_fleet_events kn_dispatch_events(kn_server *s)
{
    return (kn_fleet_events){.context = s,
                             .device_up = on_device_up,
                             .device_down = on_device_down,
                             .model_loaded = on_model_loaded,
                             .job_started = on_job_started,
                             .slice_done = on_slice_done,
                             .job_failed = on_job_failed,
                             .job_released = on_job_released,
                             .preview = on_preview};
}

/* ---- figures ---- */

kn_video_facts kn_dispatch_facts(kn_server *s, kn_live *live)
{
    kn_video_facts facts = kn_video_facts_none();
    kn_estimate estimate;
    if (live->phase == KN_LIVE_ENDED || live->key == 0) return facts;
    const int64_t now = kn_clock_ns();
    const kn_status st = kn_scheduler_estimate(s->scheduler, live->key, now, &estimate);
    if (st != KN_OK && st != KN_UNAVAILABLE) return facts;
    if (st == KN_OK) facts.eta_seconds = round(1e3 * kn_clock_seconds(estimate.completion_ns - now)) / 1e3;
    if (live->job.state == KN_JOB_QUEUED) {
        facts.queue_position = estimate.position > 0 ? estimate.position - 1 : 0;
        return facts;
    }
    facts.stage = kn_slice_name(live->next.kind);
    const double total = (double)estimate.total_ns, done = total - (double)estimate.remaining_ns;
    if (total > 0) facts.progress = done > 0 ? (int32_t)(100.0 * done / total) : 0;
    /* Costs are measured while the job runs, and a worker may be lost: what was shown once is not taken back. */
    if (facts.progress > live->progress) live->progress = facts.progress;
    facts.progress = live->progress;
    return facts;
}

void kn_dispatch_preview(kn_server *s, kn_live *live)
{
    const int64_t now = kn_clock_ns();
    const bool has_picture = live->next.kind == KN_SLICE_DENOISE && live->next.index > 0;
    if (live->phase != KN_LIVE_RESIDENT || !has_picture) return;
    if (live->preview_asked_ns && now - live->preview_asked_ns < INT64_C(1000000) * PREVIEW_INTERVAL_MS) return;
    live->preview_asked_ns = now;
    const kn_lease lease = kn_live_lease(live);
    if (kn_fleet_preview(s->fleet, live->device, &lease) != KN_OK)
        kn_log(KN_LOG_DEBUG, "no preview: %s", kn_fail_message());
}

/* ---- leaving ---- */

typedef struct saving {
    kn_server *server;
    int32_t left;
} saving;

static void save_job(void *context, kn_live *live)
{
    saving *v = context;
    if (live->device < 0) return;
    v->left++;
    if (live->phase != KN_LIVE_RESIDENT || live->in_slice) return;
    const kn_lease lease = kn_live_lease(live);
    if (kn_fleet_release(v->server->fleet, live->device, &lease, KN_RELEASE_SAVE) == KN_OK)
        live->phase = KN_LIVE_LEAVING;
}

int32_t kn_dispatch_save_all(kn_server *s)
{
    saving v = {.server = s};
    kn_live_each_unfinished(s->live, save_job, &v);
    return v.left;
}
