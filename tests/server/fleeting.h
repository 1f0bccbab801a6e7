/* SPDX-License-Identifier: Apache-2.0
 *
 * A fleet in a test: its events, a plan that drives jobs to their end through whatever happens to the workers, and the
 * files they leave. The test's own program is the workers' too (fleeting_worker). A failure here fails the running test
 * with the reason. Needs _XOPEN_SOURCE 700 or more. */
#ifndef KN_TESTS_SERVER_FLEETING_H
#define KN_TESTS_SERVER_FLEETING_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <signal.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/fleet.h"
#include "server/worker.h"
#include "tests/engine/folder.h"

enum { PLAN_JOBS_MAX = 80, PLAN_DEVICES_MAX = 4, PLAN_DOWNS_MAX = 256, PLAN_SECONDS_MAX = 120 };

typedef enum plan_state { PLAN_WAITING, PLAN_STARTING, PLAN_IDLE, PLAN_RUNNING, PLAN_DONE, PLAN_FAILED } plan_state;

typedef struct plan_job {
    kn_lease lease;
    char *request;
    plan_state state;
    int32_t device;
    kn_slice next;
    bool has_checkpoint;
    kn_saved checkpoint;
    kn_outcome last; /* the failure, or the end */
    int32_t starts, checkpoints;
    bool refused; /* a checkpoint was, and it began again */
} plan_job;

typedef struct plan_device {
    bool loaded;
    int32_t helping; /* the leader's number + 1; 0: nobody */
    int32_t ups;
    kn_device_info info;
} plan_device;

typedef struct plan {
    struct event_base *base;
    kn_fleet *fleet;
    folder data;
    char models[1024];
    plan_job jobs[PLAN_JOBS_MAX];
    int32_t job_count;
    plan_device devices[PLAN_DEVICES_MAX];
    int32_t pack;     /* jobs to a slice at most */
    int32_t parallel; /* jobs on a device at most */
    bool idle;        /* starts nothing by itself */
    uint64_t assignments;
    int32_t slices; /* answered */
    kn_device_down downs[PLAN_DOWNS_MAX];
    char down_messages[PLAN_DOWNS_MAX][KN_RUNNER_MESSAGE_BYTES];
    kn_down_job down_jobs[PLAN_DOWNS_MAX][KN_RUNNER_JOBS_MAX];
    int32_t down_count;
    int32_t released, previews, loads, load_failures;
    kn_outcome last_released;
    size_t preview_bytes;
    kn_status preview_status;
    char preview_mime[32];
    /* Called when a slice has been sent off; the place for accidents. NULL: nothing happens. */
    void (*on_run)(struct plan *plan, int32_t device, kn_slice_kind kind);
    int64_t deadline_ns;
    /* Chooses whom `members[0]` shares a slice with, and returns how many there are with it. NULL: nobody. */
    int32_t (*choose)(struct plan *plan, kn_slice_kind kind, int32_t members[KN_COMM_RANKS_MAX]);
    int32_t shared, lost; /* slices by several devices; of them, those whose group was lost */
    char lost_why[KN_RUNNER_MESSAGE_BYTES];
} plan;

static inline void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

/* In main() before anything else: does not return in a worker. */
static inline void fleeting_worker(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "worker") == 0) exit(kn_worker_main(argc - 1, argv + 1));
}

/* ---- the plan ---- */

static inline plan_job *plan_find(plan *p, const kn_lease *lease)
{
    for (int32_t i = 0; i < p->job_count; i++)
        if (kn_lease_equal(&p->jobs[i].lease, lease)) return &p->jobs[i];
    fail_msg("an event for %s.%d, which nobody asked for", lease->job, (int)lease->epoch);
    return NULL;
}

static inline void plan_start(plan *p, plan_job *j, int32_t device)
{
    kn_runner_job job = {.model = "model", .request = j->request, .has_checkpoint = j->has_checkpoint};
    j->lease.epoch++;
    job.lease = j->lease;
    job.checkpoint = j->checkpoint;
    ok(kn_fleet_start(p->fleet, device, &job));
    j->state = PLAN_STARTING;
    j->device = device;
    j->starts++;
}

static inline int32_t plan_on(const plan *p, int32_t device)
{
    int32_t count = 0;
    for (int32_t i = 0; i < p->job_count; i++)
        count += p->jobs[i].device == device && p->jobs[i].state > PLAN_WAITING && p->jobs[i].state < PLAN_DONE;
    return count;
}

/* The first job that can run, and others at the same kind of slice. */
static inline void plan_run(plan *p, int32_t device)
{
    kn_lease leases[KN_RUNNER_PACK_MAX];
    int32_t count = 0;
    kn_slice_kind kind = KN_SLICE_DONE;
    for (int32_t i = 0; i < p->job_count; i++) {
        plan_job *j = &p->jobs[i];
        if (j->device != device || j->state == PLAN_STARTING) {
            if (j->device == device && p->pack > 1) return; /* so that packs do not depend on who answers first */
            continue;
        }
        if (j->state == PLAN_RUNNING) return;
        if (j->state != PLAN_IDLE || count == p->pack || (count > 0 && j->next.kind != kind)) continue;
        kind = j->next.kind;
        leases[count++] = j->lease;
    }
    if (count == 0) return;
    int32_t members[KN_COMM_RANKS_MAX] = {device};
    const int32_t degree = p->choose ? p->choose(p, kind, members) : 1;
    ok(kn_fleet_run_shared(p->fleet, members, degree, ++p->assignments, kind, leases, count, 1000000));
    for (int32_t i = 1; i < degree; i++) p->devices[members[i]].helping = device + 1;
    for (int32_t i = 0; i < count; i++) plan_find(p, &leases[i])->state = PLAN_RUNNING;
    if (p->on_run) p->on_run(p, device, kind);
}

static inline void plan_go_on(plan *p)
{
    for (int32_t d = 0; d < kn_fleet_device_count(p->fleet) && !p->idle; d++) {
        kn_device_health health;
        kn_fleet_health(p->fleet, d, &health);
        if (!p->devices[d].loaded || p->devices[d].helping || health.state != KN_DEVICE_READY) continue;
        for (int32_t i = 0; i < p->job_count && plan_on(p, d) < p->parallel; i++)
            if (p->jobs[i].state == PLAN_WAITING) plan_start(p, &p->jobs[i], d);
        plan_run(p, d);
    }
}

static inline void plan_up(void *context, int32_t device, const kn_device_info *info)
{
    plan *p = context;
    p->devices[device].ups++;
    p->devices[device].info = *info;
    ok(kn_fleet_load(p->fleet, device, "model"));
}

/* A leader's helpers are free again. */
static inline void plan_free_helpers(plan *p, int32_t leader)
{
    for (int32_t d = 0; d < PLAN_DEVICES_MAX; d++)
        if (p->devices[d].helping == leader + 1) p->devices[d].helping = 0;
}

static inline void plan_down(void *context, int32_t device, const kn_device_down *down)
{
    plan *p = context;
    if (p->down_count == PLAN_DOWNS_MAX) fail_msg("more than %d deaths", PLAN_DOWNS_MAX);
    kn_device_down *kept = &p->downs[p->down_count];
    *kept = *down;
    snprintf(p->down_messages[p->down_count], KN_RUNNER_MESSAGE_BYTES, "%s", down->message);
    kept->message = p->down_messages[p->down_count];
    memcpy(p->down_jobs[p->down_count], down->jobs, (size_t)down->count * sizeof *down->jobs);
    kept->jobs = p->down_jobs[p->down_count++];
    p->devices[device].loaded = false;
    p->devices[device].helping = 0;
    plan_free_helpers(p, device);
    for (int32_t i = 0; i < down->count; i++) {
        plan_job *j = plan_find(p, &down->jobs[i].lease);
        if (j->state < PLAN_DONE) j->state = PLAN_WAITING;
        j->device = -1;
    }
    for (int32_t i = 0; i < p->job_count; i++)
        assert_false(p->jobs[i].device == device && p->jobs[i].state < PLAN_DONE);
    plan_go_on(p);
}

static inline void plan_loaded(void *context, int32_t device, const kn_model_loaded *loaded)
{
    plan *p = context;
    p->loads++;
    if (loaded->status != KN_OK) {
        p->load_failures++;
        return;
    }
    assert_string_equal(loaded->model, "model");
    assert_true(loaded->bytes > 0);
    p->devices[device].loaded = true;
    plan_go_on(p);
}

static inline void plan_started(void *context, int32_t device, const kn_outcome *outcome)
{
    plan *p = context;
    plan_job *j = plan_find(p, &outcome->lease);
    assert_int_equal(j->state, PLAN_STARTING);
    assert_int_equal(j->device, device);
    j->state = PLAN_IDLE;
    j->next = outcome->next;
    plan_go_on(p);
}

static inline void plan_done(void *context, int32_t device, const kn_slice_done *done)
{
    plan *p = context;
    p->slices++;
    p->shared += done->degree > 1;
    p->lost += done->lost;
    if (done->lost) snprintf(p->lost_why, sizeof p->lost_why, "%s", done->why);
    plan_free_helpers(p, device);
    assert_true(done->seconds >= 0.0);
    for (int32_t i = 0; i < done->count; i++) {
        const kn_outcome *o = &done->outcomes[i];
        plan_job *j = plan_find(p, &o->lease);
        assert_int_equal(j->device, device);
        assert_int_equal(j->state, PLAN_RUNNING);
        assert_int_equal(o->status, KN_OK);
        j->next = o->next;
        j->state = PLAN_IDLE;
        if (o->has_checkpoint) {
            j->has_checkpoint = true;
            j->checkpoint = o->checkpoint;
            j->checkpoints++;
        }
        if (o->next.kind != KN_SLICE_DONE) continue;
        assert_true(o->has_output);
        j->state = PLAN_DONE;
        j->last = *o;
    }
    plan_go_on(p);
}

static inline void plan_failed(void *context, int32_t device, const kn_outcome *outcome)
{
    plan *p = context;
    plan_job *j = plan_find(p, &outcome->lease);
    assert_int_equal(j->device, device);
    j->last = *outcome;
    j->device = -1;
    if (outcome->fault == KN_FAULT_CHECKPOINT) {
        j->has_checkpoint = false;
        j->refused = true;
        j->state = PLAN_WAITING;
    } else {
        j->state = PLAN_FAILED;
    }
    plan_go_on(p);
}

static inline void plan_released(void *context, int32_t device, const kn_outcome *outcome)
{
    plan *p = context;
    (void)device;
    p->released++;
    p->last_released = *outcome;
}

static inline void plan_preview(void *context, int32_t device, const kn_preview *preview)
{
    plan *p = context;
    (void)device;
    p->previews++;
    p->preview_bytes = preview->count;
    p->preview_status = preview->status;
    snprintf(p->preview_mime, sizeof p->preview_mime, "%s", preview->mime);
}

/* ---- life ---- */

static inline kn_fleet_params plan_params(plan *p, const char *const *devices, int32_t count)
{
    return (kn_fleet_params){.base = p->base,
                             .devices = devices,
                             .device_count = count,
                             .models = p->models,
                             .data = p->data.path,
                             .threads = 1,
                             .precision = KN_PRECISION_FLOAT32,
                             .vae_precision = KN_PRECISION_FLOAT32,
                             .checkpoint_interval_ns = 0,
                             .restart_delay_min_ns = 1000000,
                             .restart_delay_max_ns = 4000000,
                             .events = {.context = p,
                                        .device_up = plan_up,
                                        .device_down = plan_down,
                                        .model_loaded = plan_loaded,
                                        .job_started = plan_started,
                                        .slice_done = plan_done,
                                        .job_failed = plan_failed,
                                        .job_released = plan_released,
                                        .preview = plan_preview}};
}

/* Without a fleet yet. */
static inline plan *plan_open(void)
{
    plan *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->base = event_base_new();
    p->data = folder_create();
    p->pack = 1;
    p->parallel = 1;
    snprintf(p->models, sizeof p->models, "%s/tests/golden/wan21-small", KN_SOURCE_DIR);
    assert_non_null(p->base);
    return p;
}

static inline plan *plan_create(const char *const *devices, int32_t count)
{
    plan *p = plan_open();
    const kn_fleet_params params = plan_params(p, devices, count);
    ok(kn_fleet_create(&p->fleet, &params));
    return p;
}

static inline void plan_destroy(plan *p)
{
    kn_fleet_destroy(&p->fleet);
    for (int32_t i = 0; i < p->job_count; i++) kn_free(p->jobs[i].request);
    event_base_free(p->base);
    folder_remove(&p->data);
    free(p);
}

/* A small request of the fixture's model, as the server would hand it over. */
static inline char *plan_request(const plan *p, const char *prompt, uint64_t seed)
{
    char directory[1100], *text = NULL;
    kn_repository *repository = NULL;
    kn_request r = kn_request_empty();
    snprintf(directory, sizeof directory, "%s/model", p->models);
    ok(kn_repository_open(&repository, directory));
    r.prompt = kn_strdup(prompt);
    r.width = 48;
    r.height = 32;
    r.frames = 9;
    r.steps = 4;
    r.guidance = 5.0;
    r.seed = seed;
    ok(kn_request_resolve(&r, repository, NULL));
    ok(kn_request_to_json(&text, &r));
    kn_request_release(&r);
    kn_repository_close(&repository);
    return text;
}

static inline plan_job *plan_add(plan *p, unsigned number, const char *prompt, uint64_t seed)
{
    assert_true(p->job_count < PLAN_JOBS_MAX);
    plan_job *j = &p->jobs[p->job_count++];
    snprintf(j->lease.job, sizeof j->lease.job, "video_%032x", number);
    j->request = plan_request(p, prompt, seed);
    j->device = -1;
    return j;
}

/* Turns the loop once; a deadline only against waiting for ever. */
static inline void plan_turn(plan *p)
{
    const struct timeval soon = {.tv_usec = 20000};
    if (p->deadline_ns == 0) p->deadline_ns = kn_clock_ns() + PLAN_SECONDS_MAX * INT64_C(1000000000);
    if (kn_clock_ns() > p->deadline_ns) fail_msg("waited more than %d seconds", PLAN_SECONDS_MAX);
    event_base_loopexit(p->base, &soon);
    event_base_loop(p->base, EVLOOP_ONCE);
}

/* Until every job has ended. */
static inline void plan_finish(plan *p)
{
    plan_go_on(p);
    for (int32_t i = 0; i < p->job_count; i++)
        while (p->jobs[i].state < PLAN_DONE) plan_turn(p);
}

static inline void plan_wait_loaded(plan *p, int32_t device)
{
    while (!p->devices[device].loaded) plan_turn(p);
}

/* ---- files ---- */

static inline int plan_count_files(const plan *p, const char *name)
{
    char path[512];
    int count = 0;
    snprintf(path, sizeof path, "%s/%s", p->data.path, name);
    DIR *listing = opendir(path);
    if (!listing) return 0;
    for (const struct dirent *entry; (entry = readdir(listing));) count += entry->d_name[0] != '.';
    closedir(listing);
    return count;
}

static inline const char *plan_file(const plan *p, const char *folder_name, const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s/%s", p->data.path, folder_name, name);
    return path;
}

/* The blob is there and is what was reported; its digest. */
static inline void plan_check_output(const plan *p, const plan_job *j, uint8_t sha256[KN_SHA256_BYTES])
{
    uint64_t bytes = 0;
    if (j->state != PLAN_DONE) fail_msg("job %s: %s", j->lease.job, j->last.message);
    ok(kn_artifact_digest(plan_file(p, "blobs", j->last.output.name), sha256, &bytes));
    assert_int_equal(bytes, j->last.output.bytes);
    assert_memory_equal(sha256, j->last.output.sha256, KN_SHA256_BYTES);
}

#endif
