/* SPDX-License-Identifier: Apache-2.0
 *
 * The event loop: arrivals, ends of slices, confirmations, failures, in order of time; after every moment the
 * scheduler decides until it has nothing more to start. */
#include "scheduler/simulation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "scheduler/check.h"
#include "scheduler/trace.h"

enum {
    ASSIGNMENTS = 64,
    PLANT_RARITY = 200, /* a planted bug strikes once in so many chances */
    LOST_RARITY = 100,
    FAILED_SLICE_RARITY = 5000, /* where devices fail */
    HICCUP_RARITY = 2000,
};

#define NOISE 0.06         /* slices take up to so much longer than the truth */
#define HICCUP 3.0         /* and now and then so many times as long */
#define SAVE_NS 2000000000 /* between two checkpoints */
#define RELEASE_NS 30000000
#define REPAIR_NS 20000000000

typedef enum event_kind {
    EVENT_ARRIVAL,
    EVENT_CANCEL,
    EVENT_SLICE,
    EVENT_RELEASED,
    EVENT_FAILURE,
    EVENT_REPAIR
} event_kind;

typedef struct event {
    int64_t at_ns;
    uint64_t seq;
    event_kind kind;
    int32_t index;  /* of a job or a device */
    uint32_t epoch; /* of that job or device when it was foreseen */
} event;

typedef struct world_job {
    kn_job_progress progress;
    int32_t saved_step;
    int64_t saved_ns; /* time of its last checkpoint */
    int64_t done_ns;  /* 0: not done */
    uint32_t epoch;   /* counts the times it left a device */
    int32_t leaving;  /* device it is being released from, 1 + index; 0: none */
    bool admitted, ended, cancelled, refused;
} world_job;

typedef struct world_device {
    kn_assignment slice; /* current */
    int64_t started_ns, busy_ns, took_ns;
    uint32_t epoch; /* counts slices and failures */
    int32_t leader; /* of the slice it is busy with */
    bool up, busy;
} world_device;

typedef struct world {
    const kn_simulate_params *params;
    kn_trace trace;
    kn_scheduler *scheduler;
    kn_check *check;
    kn_random random; /* of the world; the trace has its own */
    int64_t now_ns, last_end_ns;
    world_job *jobs; /* [trace.count] */
    world_device devices[KN_SCHEDULER_DEVICES_MAX];
    event *events; /* binary heap */
    int32_t event_count, event_capacity;
    uint64_t next_seq;
    int32_t unfinished; /* requests that have not ended */
    uint64_t fingerprint, failures;
    uint64_t denoise_slices, denoise_devices; /* devices: summed over slices */
    int64_t *took_ns;                         /* of calls of decide, where they are timed */
    int32_t took_count, took_capacity;
    kn_assignment out[ASSIGNMENTS];
} world;

const char *kn_mix_name(kn_mix mix)
{
    static const char *const names[KN_MIXES] = {"tetriserve", "genserve", "bursty", "uniform", "targets"};
    return (unsigned)mix < KN_MIXES ? names[mix] : "unknown";
}

const char *kn_plant_name(kn_plant plant)
{
    static const char *const names[KN_PLANTS] = {"none",       "double-booking", "lost-job",
                                                 "overfill",   "skipped-text",   "repeated-slice",
                                                 "starvation", "idleness",       "stranger"};
    return (unsigned)plant < KN_PLANTS ? names[plant] : "unknown";
}

/* ---- the heap of events ---- */

static bool sooner(const event *a, const event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static kn_status push(world *w, int64_t at_ns, event_kind kind, int32_t index, uint32_t epoch)
{
    if (w->event_count == w->event_capacity) {
        const int32_t capacity = w->event_capacity * 2 + 256;
        event *grown = kn_realloc(w->events, (size_t)capacity * sizeof *grown);
        if (!grown) return KN_NOMEM;
        w->events = grown;
        w->event_capacity = capacity;
    }
    const event e = {at_ns, w->next_seq++, kind, index, epoch};
    int32_t at = w->event_count++;
    for (; at > 0 && sooner(&e, &w->events[(at - 1) / 2]); at = (at - 1) / 2) w->events[at] = w->events[(at - 1) / 2];
    w->events[at] = e;
    return KN_OK;
}

static event pop(world *w)
{
    const event top = w->events[0], last = w->events[--w->event_count];
    int32_t at = 0;
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= w->event_count) break;
        if (child + 1 < w->event_count && sooner(&w->events[child + 1], &w->events[child])) child++;
        if (!sooner(&w->events[child], &last)) break;
        w->events[at] = w->events[child];
        at = child;
    }
    w->events[at] = last;
    return top;
}

/* ---- telling the scheduler ---- */

static bool strikes(world *w, kn_plant plant, int32_t rarity)
{
    return w->params->plant == plant && kn_random_below(&w->random, rarity) == 0;
}

/* Tells the checker the truth, and the scheduler `told`. */
static kn_status tell(world *w, const kn_change *truth, const kn_change *told)
{
    kn_check_change(w->check, truth, w->now_ns);
    const kn_status st = kn_scheduler_event(w->scheduler, told, w->now_ns);
    return st == KN_NOT_FOUND ? KN_OK : st;
}

static void end_request(world *w, int32_t index)
{
    w->jobs[index].ended = true;
    w->unfinished--;
    w->last_end_ns = w->now_ns;
}

static kn_status arrive(world *w, int32_t index)
{
    kn_status st = KN_OK;
    const kn_trace_job *request = &w->trace.jobs[index];
    if (index + 1 < w->trace.count) KN_TRY(push(w, request[1].terms.submitted_ns, EVENT_ARRIVAL, index + 1, 0));
    kn_change change = {.kind = KN_CHANGE_JOB_ADMITTED,
                        .job = {.key = (uint64_t)index, .shape = request->shape, .terms = request->terms}};
    if (w->params->admission) {
        kn_admission answer;
        KN_TRY(kn_scheduler_admission(w->scheduler, &request->shape, &request->terms, w->now_ns, &answer));
        if (answer.verdict != KN_VERDICT_FITS) {
            w->jobs[index].refused = true;
            end_request(w, index);
            return KN_OK;
        }
        change.job.terms.promised = request->terms.deadline_ns != KN_SCHEDULER_NO_DEADLINE;
    }
    w->jobs[index].admitted = true;
    w->jobs[index].saved_ns = w->now_ns;
    if (request->cancel_ns > 0) KN_TRY(push(w, request->cancel_ns, EVENT_CANCEL, index, 0));
    if (strikes(w, KN_PLANT_LOST_JOB, LOST_RARITY)) {
        kn_check_change(w->check, &change, w->now_ns);
        w->unfinished--;
        return KN_OK;
    }
    KN_TRY(tell(w, &change, &change));
fail:
    return st;
}

static kn_status cancel(world *w, int32_t index)
{
    if (w->jobs[index].ended) return KN_OK;
    const kn_change change = {.kind = KN_CHANGE_JOB_REMOVED, .job = {.key = (uint64_t)index}};
    w->jobs[index].cancelled = true;
    end_request(w, index);
    return tell(w, &change, &change);
}

static kn_status device_up(world *w, int32_t device)
{
    kn_change truth = {.kind = KN_CHANGE_DEVICE_UP, .device = w->trace.device};
    truth.device.index = device;
    truth.device.domain = w->params->domain > 0 ? 1 + device / w->params->domain : 0;
    kn_change told = truth;
    if (w->params->plant == KN_PLANT_OVERFILL) told.device.memory_bytes *= 2;
    w->devices[device].up = true;
    if (w->params->failure_mean > 0) {
        const double after = kn_random_exponential(&w->random, w->params->failure_mean * 1e9);
        const kn_status st = push(w, w->now_ns + 1 + (int64_t)after, EVENT_FAILURE, device, 0);
        if (st != KN_OK) return st;
    }
    if (w->params->plant == KN_PLANT_IDLENESS && device == 0) {
        kn_check_change(w->check, &truth, w->now_ns);
        return KN_OK;
    }
    return tell(w, &truth, &told);
}

/* The devices of a slice are idle again. */
static void free_members(world *w, int32_t leader)
{
    const kn_assignment *a = &w->devices[leader].slice;
    for (int32_t i = 0; i < a->degree; i++) {
        world_device *d = &w->devices[a->members[i]];
        d->busy = false;
        d->busy_ns += w->now_ns - w->devices[leader].started_ns;
    }
}

/* One of its devices is gone, and with it what the slice computed: a helper's jobs go back to their checkpoints. */
static void break_slice(world *w, int32_t leader, int32_t gone)
{
    world_device *d = &w->devices[leader];
    free_members(w, leader);
    d->epoch++;
    for (int32_t i = 0; leader != gone && i < d->slice.count; i++) {
        world_job *job = &w->jobs[d->slice.jobs[i]];
        job->progress = (kn_job_progress){.step = job->saved_step};
        job->epoch++;
    }
}

static kn_status device_fails(world *w, int32_t device)
{
    kn_status st = KN_OK;
    world_device *d = &w->devices[device];
    const kn_change change = {.kind = KN_CHANGE_DEVICE_DOWN, .device = {.index = device}};
    if (d->busy) break_slice(w, d->leader, device);
    d->up = false;
    w->failures++;
    for (int32_t i = 0; i < w->trace.count; i++) { /* a release that was not confirmed never will be */
        if (w->jobs[i].leaving != 1 + device) continue;
        w->jobs[i].leaving = 0;
        w->jobs[i].epoch++;
    }
    KN_TRY(push(w, w->now_ns + REPAIR_NS, EVENT_REPAIR, device, 0));
    KN_TRY(tell(w, &change, &change));
fail:
    return st;
}

/* What a job would continue from if its device died now; the checkpoint is at the last slice's end. */
static void save(world *w, world_job *job)
{
    if (job->progress.decoded > 0 || w->now_ns - job->saved_ns < SAVE_NS) return;
    job->saved_step = job->progress.step;
    job->saved_ns = w->now_ns;
}

static void advance(kn_job_progress *progress, kn_stage stage)
{
    switch (stage) {
    case KN_STAGE_TEXT: progress->text = true; break;
    case KN_STAGE_DENOISE: progress->step++; break;
    case KN_STAGE_DECODE: progress->decoded++; break;
    case KN_STAGE_MUX: progress->done = true; break;
    case KN_STAGE_DONE: break;
    }
}

static kn_status slice_ends(world *w, int32_t device)
{
    world_device *d = &w->devices[device];
    kn_slice_job ends[KN_SCHEDULER_PACK_MAX], told_ends[KN_SCHEDULER_PACK_MAX];
    const bool fails = w->params->failure_mean > 0 && kn_random_below(&w->random, FAILED_SLICE_RARITY) == 0;
    free_members(w, device);
    for (int32_t i = 0; i < d->slice.count; i++) {
        world_job *job = &w->jobs[d->slice.jobs[i]];
        if (fails) {
            job->progress = (kn_job_progress){.step = job->saved_step};
            job->epoch++;
        } else {
            advance(&job->progress, d->slice.stage);
            save(w, job);
        }
        ends[i] = (kn_slice_job){d->slice.jobs[i], job->progress, job->saved_step};
        told_ends[i] = ends[i];
        if (!fails && d->slice.stage == KN_STAGE_TEXT && strikes(w, KN_PLANT_REPEATED_SLICE, PLANT_RARITY))
            told_ends[i].progress.text = false;
        if (job->progress.done && !job->ended) {
            job->done_ns = w->now_ns;
            end_request(w, (int32_t)d->slice.jobs[i]);
        }
    }
    kn_change truth = {.kind = fails ? KN_CHANGE_SLICE_FAILED : KN_CHANGE_SLICE_DONE,
                       .slice = {.device = device, .measured_ns = d->took_ns, .count = d->slice.count, .jobs = ends}};
    kn_change told = truth;
    told.slice.jobs = told_ends;
    return tell(w, &truth, &told);
}

static kn_status released(world *w, int32_t index, uint32_t epoch)
{
    world_job *job = &w->jobs[index];
    if (job->ended || job->epoch != epoch) return KN_OK;
    job->leaving = 0;
    job->saved_step = job->progress.step;
    job->saved_ns = w->now_ns;
    job->progress = (kn_job_progress){.step = job->saved_step};
    const kn_change change = {.kind = KN_CHANGE_JOB_RELEASED,
                              .job = {.key = (uint64_t)index, .progress = job->progress}};
    return tell(w, &change, &change);
}

/* ---- running what it decides ---- */

static int64_t slice_takes(world *w, const kn_assignment *a)
{
    double work = 0;
    for (int32_t i = 0; i < a->count; i++) {
        const kn_job_shape *shape = &w->trace.jobs[a->jobs[i]].shape;
        kn_cost_work own;
        kn_cost_count(&own, &w->trace.models[a->model], shape);
        const kn_job_progress *progress = &w->jobs[a->jobs[i]].progress;
        work += a->degree > 1 ? kn_cost_shared(&own, shape, progress, &w->trace.seed, a->degree)
                              : kn_cost_next(&own, shape, progress);
    }
    double ns = kn_cost_predict(kn_trace_fit(&w->trace, a->model, a->stage, a->degree), work);
    ns *= 1 + NOISE * kn_random_unit(&w->random);
    if (kn_random_below(&w->random, HICCUP_RARITY) == 0) ns *= HICCUP;
    return 1 + (int64_t)ns;
}

static uint64_t mix_in(uint64_t hash, uint64_t value)
{
    kn_random random = {hash ^ value};
    return kn_random_next(&random);
}

static void note(world *w, const kn_assignment *a)
{
    uint64_t h = mix_in(w->fingerprint, (uint64_t)w->now_ns);
    h = mix_in(h, (uint64_t)a->device << 32 | (uint64_t)a->stage << 16 | a->start_mask);
    for (int32_t i = 0; i < a->count; i++) h = mix_in(h, a->jobs[i]);
    for (int32_t i = 0; i < a->release_count; i++) h = mix_in(h, ~a->release[i]);
    for (int32_t i = 1; i < a->degree; i++) h = mix_in(h, (uint64_t)a->members[i]);
    w->fingerprint = h;
}

/* A new place for a job: its state is what its checkpoint holds. */
static void start_jobs(world *w, const kn_assignment *a)
{
    for (int32_t i = 0; i < a->count; i++) {
        world_job *job = &w->jobs[a->jobs[i]];
        if (a->start_mask >> i & 1) job->progress = (kn_job_progress){.step = job->saved_step};
    }
}

static kn_status run_slice(world *w, const kn_assignment *a)
{
    kn_status st = KN_OK;
    world_device *d = &w->devices[a->device];
    kn_assignment seen = *a;
    note(w, a);
    if (a->stage == KN_STAGE_TEXT && strikes(w, KN_PLANT_SKIPPED_TEXT, PLANT_RARITY)) seen.stage = KN_STAGE_DENOISE;
    if (a->degree > 1 && strikes(w, KN_PLANT_STRANGER, PLANT_RARITY)) seen.members[a->degree - 1] = a->device;
    kn_check_assignment(w->check, &seen, w->now_ns);
    if (strikes(w, KN_PLANT_DOUBLE_BOOKING, PLANT_RARITY)) kn_check_assignment(w->check, &seen, w->now_ns);
    for (int32_t i = 0; i < a->release_count; i++) {
        world_job *job = &w->jobs[a->release[i]];
        job->leaving = 1 + a->device;
        if (!job->ended) KN_TRY(push(w, w->now_ns + RELEASE_NS, EVENT_RELEASED, (int32_t)a->release[i], ++job->epoch));
    }
    start_jobs(w, a);
    d->slice = *a;
    d->started_ns = w->now_ns;
    d->took_ns = slice_takes(w, a);
    for (int32_t i = 0; i < a->degree; i++) {
        w->devices[a->members[i]].busy = true;
        w->devices[a->members[i]].leader = a->device;
    }
    if (a->stage == KN_STAGE_DENOISE) {
        w->denoise_slices++;
        w->denoise_devices += (uint64_t)a->degree;
    }
    const int64_t load = a->load_model || a->load_members ? w->trace.device.load_ns : 0;
    KN_TRY(push(w, w->now_ns + load + d->took_ns, EVENT_SLICE, a->device, ++d->epoch));
fail:
    return st;
}

static kn_status time_decision(world *w, int64_t took_ns)
{
    if (w->took_count == w->took_capacity) {
        const int32_t capacity = w->took_capacity * 2 + 256;
        int64_t *grown = kn_realloc(w->took_ns, (size_t)capacity * sizeof *grown);
        if (!grown) return KN_NOMEM;
        w->took_ns = grown;
        w->took_capacity = capacity;
    }
    w->took_ns[w->took_count++] = took_ns;
    return KN_OK;
}

static kn_status decide(world *w)
{
    kn_status st = KN_OK;
    uint64_t keys[KN_SCHEDULER_RESIDENTS_MAX];
    int32_t device, count;
    do {
        const int64_t start = w->params->clock ? w->params->clock() : 0;
        count = kn_scheduler_decide(w->scheduler, w->now_ns, w->out, ASSIGNMENTS);
        if (w->params->clock) KN_TRY(time_decision(w, w->params->clock() - start));
        for (int32_t i = 0; i < count; i++) KN_TRY(run_slice(w, &w->out[i]));
    } while (count > 0);
    while ((count = kn_scheduler_orphans(w->scheduler, &device, keys, KN_SCHEDULER_RESIDENTS_MAX)) > 0) {
        for (int32_t i = 0; i < count; i++) {
            const kn_change change = {.kind = KN_CHANGE_JOB_RELEASED, .job = {.key = keys[i]}};
            kn_check_change(w->check, &change, w->now_ns);
        }
    }
    if (w->params->degree_fixed <= 1)
        kn_check_quiet(w->check, w->now_ns); /* fixed groups idle while one member is down */
fail:
    return st;
}

static kn_status happen(world *w, const event *e)
{
    switch (e->kind) {
    case EVENT_ARRIVAL: return arrive(w, e->index);
    case EVENT_CANCEL: return cancel(w, e->index);
    case EVENT_SLICE: return w->devices[e->index].epoch == e->epoch ? slice_ends(w, e->index) : KN_OK;
    case EVENT_RELEASED: return released(w, e->index, e->epoch);
    case EVENT_FAILURE: return device_fails(w, e->index);
    case EVENT_REPAIR: return device_up(w, e->index);
    }
    return KN_OK;
}

static kn_status run(world *w)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < w->params->devices; i++) KN_TRY(device_up(w, i));
    KN_TRY(push(w, w->trace.jobs[0].terms.submitted_ns, EVENT_ARRIVAL, 0, 0));
    while (w->event_count > 0 && w->unfinished > 0) {
        const event e = pop(w);
        w->now_ns = e.at_ns;
        KN_TRY(happen(w, &e));
        if (w->event_count == 0 || w->events[0].at_ns > w->now_ns) KN_TRY(decide(w));
    }
    kn_check_end(w->check, w->now_ns);
fail:
    return st;
}

/* ---- figures ---- */

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, int32_t count, double q)
{
    return count ? sorted[(int32_t)ceil(q * count) - 1] : 0;
}

static kn_status read_latencies(const world *w, kn_simulate_result *out)
{
    double *latency = kn_alloc_array((size_t)w->trace.count, sizeof *latency);
    if (!latency) return KN_NOMEM;
    int32_t count = 0;
    for (int32_t i = 0; i < w->trace.count; i++) {
        if (w->jobs[i].done_ns == 0) continue;
        latency[count] = (double)(w->jobs[i].done_ns - w->trace.jobs[i].terms.submitted_ns) * 1e-9;
        out->mean += latency[count++];
    }
    qsort(latency, (size_t)count, sizeof *latency, compare_doubles);
    out->finished = count;
    out->mean = count ? out->mean / count : 0;
    out->p50 = quantile(latency, count, 0.50);
    out->p95 = quantile(latency, count, 0.95);
    out->p99 = quantile(latency, count, 0.99);
    kn_free(latency);
    return KN_OK;
}

static int compare_times(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void read_times(world *w, kn_simulate_result *out)
{
    const int32_t n = w->took_count;
    if (n == 0) return;
    qsort(w->took_ns, (size_t)n, sizeof *w->took_ns, compare_times);
    out->decide_p50_ns = w->took_ns[n / 2];
    out->decide_p99_ns = w->took_ns[(int64_t)n * 99 / 100];
    out->decide_max_ns = w->took_ns[n - 1];
}

static void read_deadlines(const world *w, kn_simulate_result *out)
{
    for (int32_t i = 0; i < w->trace.count; i++) {
        const kn_trace_job *request = &w->trace.jobs[i];
        const world_job *job = &w->jobs[i];
        out->cancelled += job->cancelled;
        out->refused += job->refused;
        if (request->terms.deadline_ns == KN_SCHEDULER_NO_DEADLINE || job->cancelled) continue;
        const bool on_time = job->done_ns > 0 && job->done_ns <= request->terms.deadline_ns;
        out->timed++;
        out->on_time += on_time;
        out->kinds[request->kind].timed++;
        out->kinds[request->kind].on_time += on_time;
    }
    out->attainment = out->timed ? (double)out->on_time / out->timed : 1;
}

/* Jain, Chiu and Hawe 1984: (sum x)^2 / (n sum x^2), x a tenant's mean of time alone / time taken. */
static double jain(const world *w)
{
    double sum = 0, squares = 0, n = 0;
    for (int32_t tenant = 0; tenant < w->trace.tenants; tenant++) {
        double speed = 0, count = 0;
        for (int32_t i = 0; i < w->trace.count; i++) {
            const kn_trace_job *request = &w->trace.jobs[i];
            if (request->terms.tenant != tenant || w->jobs[i].done_ns == 0) continue;
            speed += (double)request->alone_ns / (double)(w->jobs[i].done_ns - request->terms.submitted_ns);
            count++;
        }
        if (count == 0) continue;
        sum += speed / count;
        squares += speed / count * (speed / count);
        n++;
    }
    return squares > 0 ? sum * sum / (n * squares) : 1;
}

static kn_status read_result(world *w, kn_simulate_result *out)
{
    kn_status st = KN_OK;
    kn_scheduler_stats stats;
    const char *first;
    double busy = 0;
    kn_scheduler_read_stats(w->scheduler, &stats);
    out->jobs = w->trace.count;
    KN_TRY(read_latencies(w, out));
    read_deadlines(w, out);
    read_times(w, out);
    out->degree = w->denoise_slices ? (double)w->denoise_devices / (double)w->denoise_slices : 1;
    out->jain = jain(w);
    for (int32_t i = 0; i < w->params->devices; i++) busy += (double)w->devices[i].busy_ns;
    out->span = (double)w->last_end_ns * 1e-9;
    out->utilisation = busy / ((double)w->last_end_ns * w->params->devices);
    out->packing = stats.decisions ? (double)stats.packed / (double)stats.decisions : 0;
    out->cost_error = stats.cost_error;
    out->longest_wait = (double)kn_check_longest_wait(w->check) * 1e-9;
    out->decisions = stats.decisions;
    out->preemptions = stats.preemptions;
    out->releases = stats.releases;
    out->moves = stats.moves;
    out->demotions = stats.demotions;
    out->failures = w->failures;
    out->kind_count = w->trace.kind_count;
    for (int32_t i = 0; i < w->trace.kind_count; i++) out->kinds[i].name = w->trace.kinds[i];
    out->fingerprint = w->fingerprint;
    out->violations = kn_check_violations(w->check, &first);
    memcpy(out->violation, first, sizeof out->violation);
fail:
    return st;
}

/* ---- set-up ---- */

static kn_status check_params(const kn_simulate_params *p)
{
    if ((unsigned)p->mix >= KN_MIXES) return kn_fail(KN_INVALID, "no mix of number %d", (int)p->mix);
    if ((unsigned)p->plant >= KN_PLANTS) return kn_fail(KN_INVALID, "no plant of number %d", (int)p->plant);
    if (p->devices < 1 || p->devices > KN_SCHEDULER_DEVICES_MAX)
        return kn_fail(KN_INVALID, "devices is %d; it must be 1 to %d", p->devices, KN_SCHEDULER_DEVICES_MAX);
    if (p->domain < 0 || p->domain > KN_SCHEDULER_DEVICES_MAX)
        return kn_fail(KN_INVALID, "domain is %d; it must be 0 to %d", p->domain, KN_SCHEDULER_DEVICES_MAX);
    if (p->jobs < 1 || p->jobs > KN_SIMULATE_JOBS_MAX)
        return kn_fail(KN_INVALID, "jobs is %d; it must be 1 to %d", p->jobs, KN_SIMULATE_JOBS_MAX);
    if (!(p->load >= 0.01 && p->load <= 100)) return kn_fail(KN_INVALID, "load is %g; it must be 0.01 to 100", p->load);
    if (!(p->slo_scale >= 0.1 && p->slo_scale <= 1000))
        return kn_fail(KN_INVALID, "slo_scale is %g; it must be 0.1 to 1000", p->slo_scale);
    if (!(p->cancelled >= 0 && p->cancelled <= 1))
        return kn_fail(KN_INVALID, "cancelled is %g; it must be 0 to 1", p->cancelled);
    if (p->failure_mean != 0 && !(p->failure_mean >= 1 && p->failure_mean <= 1e9))
        return kn_fail(KN_INVALID, "failure_mean is %g; it must be 0 or 1 to 1e9 seconds", p->failure_mean);
    return KN_OK;
}

/* How long a job may be without service at worst: until it is aged, then while all the work there is runs on the aged
 * jobs' share of the devices, twice over for what failures repeat. */
static int64_t wait_max(const kn_simulate_params *p, const kn_trace *trace)
{
    if (p->wait_max_ns > 0) return p->wait_max_ns;
    const int64_t ageing = p->ageing_ns > 0 ? p->ageing_ns : INT64_C(600000000000);
    return ageing + 2 * KN_SCHEDULER_AGED_SHARE * (trace->work_ns / p->devices) + 10 * REPAIR_NS;
}

static kn_status set_up(world *w, const kn_simulate_params *p)
{
    kn_status st = KN_OK;
    kn_scheduler_params params = {.policy = p->policy,
                                  .jobs = p->jobs < KN_SIMULATE_QUEUE_MAX ? p->jobs : KN_SIMULATE_QUEUE_MAX,
                                  .ageing_ns = p->plant == KN_PLANT_STARVATION ? KN_SCHEDULER_TIME_MAX : p->ageing_ns,
                                  .pack = p->pack,
                                  .degree_max = p->degree_max,
                                  .degree_fixed = p->degree_fixed};
    const int32_t degree_max = p->degree_max > 0 ? p->degree_max : KN_SCHEDULER_DEGREE_MAX;
    w->params = p;
    w->random.state = p->seed ^ UINT64_C(0x5851f42d4c957f2d);
    w->random.state = kn_random_next(&w->random);
    KN_TRY(kn_trace_create(&w->trace, p));
    params.tenants = w->trace.tenants;
    w->unfinished = w->trace.count;
    w->jobs = kn_alloc_array((size_t)w->trace.count, sizeof *w->jobs);
    if (!w->jobs) KN_TRY(KN_NOMEM);
    KN_TRY(kn_scheduler_create(&w->scheduler, &params));
    KN_TRY(kn_check_create(&w->check, &w->trace, p->pack > 0 ? p->pack : KN_SCHEDULER_PACK_MAX, degree_max,
                           wait_max(p, &w->trace)));
    for (int32_t m = 0; m < w->trace.model_count; m++)
        KN_TRY(kn_scheduler_set_model(w->scheduler, m, &w->trace.models[m]));
fail:
    return st;
}

static void tear_down(world *w)
{
    kn_check_destroy(&w->check);
    kn_scheduler_destroy(&w->scheduler);
    kn_trace_release(&w->trace);
    kn_free(w->jobs);
    kn_free(w->events);
    kn_free(w->took_ns);
    kn_free(w);
}

kn_status kn_simulate_run(const kn_simulate_params *params, kn_simulate_result *out)
{
    kn_status st = KN_OK;
    world *w = kn_alloc(sizeof *w);
    if (!w) return KN_NOMEM;
    memset(out, 0, sizeof *out);
    KN_TRY(check_params(params));
    KN_TRY(set_up(w, params));
    KN_TRY(run(w));
    KN_TRY(read_result(w, out));
fail:
    tear_down(w);
    return st;
}

kn_status kn_simulate_bound(const kn_simulate_params *params, double *out)
{
    kn_status st = KN_OK;
    kn_trace trace = {0};
    KN_TRY(check_params(params));
    if (params->jobs > KN_SIMULATE_BOUND_MAX)
        return kn_fail(KN_INVALID, "the bound is computed for at most %d jobs, not %d", KN_SIMULATE_BOUND_MAX,
                       params->jobs);
    KN_TRY(kn_trace_create(&trace, params));
    KN_TRY(kn_trace_bound(&trace, params->devices, out));
fail:
    kn_trace_release(&trace);
    return st;
}
