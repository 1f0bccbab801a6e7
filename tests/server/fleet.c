/* SPDX-License-Identifier: Apache-2.0
 *
 * Workers on scripted devices: each accident has its event, the job goes on elsewhere or later, and its file is the
 * same. Also workers that break the protocol, played by this program. */
#define _GNU_SOURCE
#include "tests/server/fleeting.h"

#include <sys/socket.h>

#include "server/link.h"
#include "server/wire.h"

/* ---- rogues: workers that misbehave; chosen by the device's seed ---- */

enum {
    ROGUE_SILENT_EXIT = 1000, /* leaves at once with code 7 */
    ROGUE_ANSWER,             /* answers "up" with something else */
    ROGUE_BEAT,               /* skips a beat */
    ROGUE_OVERSIZE,           /* promises a frame above the limit */
    ROGUE_NOT_A_MESSAGE,      /* a whole frame of nonsense */
    ROGUE_CUT,                /* dies inside a frame */
    ROGUE_TWICE,              /* says it is up two times */
    ROGUE_OLD_EPOCH,          /* starts a job under the epoch before */
    ROGUE_OTHER_JOB,          /* reports a slice of a job that was not in it */
    ROGUE_OTHER_ASSIGNMENT,   /* reports a slice under another number */
    ROGUE_DEAF,               /* comes up and reads nothing more */
    ROGUE_FLOOD,              /* thousands of beats, then goes on well */
    ROGUE_CLOSES,             /* closes its socket and stays */
    ROGUES_END,
};

static void say(const kn_wire_message *m)
{
    void *bytes = NULL;
    size_t count = 0;
    if (kn_wire_encode(m, &bytes, &count) != KN_OK || kn_link_transmit(KN_WORKER_FD, bytes, count) != KN_OK) _exit(9);
    kn_free(bytes);
}

static void hear(kn_wire_message *m)
{
    void *bytes = NULL;
    size_t count = 0;
    if (kn_link_receive(KN_WORKER_FD, &bytes, &count) != KN_OK || kn_wire_decode(m, bytes, count) != KN_OK) _exit(8);
    kn_free(bytes);
}

static void say_up(void)
{
    kn_wire_message up = {.kind = KN_WIRE_UP};
    snprintf(up.up.name, sizeof up.up.name, "rogue");
    say(&up);
}

/* Up, loaded, started; what comes then is the caller's. `epoch_shift` is added to the job's epoch. */
static void behave(kn_wire_message *m, int64_t epoch_shift)
{
    say_up();
    hear(m);
    kn_wire_message loaded = {.kind = KN_WIRE_LOADED};
    memcpy(loaded.model.model, m->model.model, sizeof loaded.model.model);
    loaded.model.bytes = 1;
    say(&loaded);
    hear(m);
    kn_wire_message started = {.kind = KN_WIRE_STARTED};
    started.outcome.lease = m->start.lease;
    started.outcome.lease.epoch += epoch_shift;
    started.outcome.next = (kn_slice){KN_SLICE_TEXT, 0, 1};
    say(&started);
    hear(m);
}

static void misreport(int kind)
{
    static kn_wire_message m;
    behave(&m, kind == ROGUE_OLD_EPOCH ? -1 : 0);
    kn_wire_message ran = {.kind = KN_WIRE_RAN};
    ran.ran.assignment = m.run.assignment + (kind == ROGUE_OTHER_ASSIGNMENT);
    ran.ran.kind = m.run.kind;
    ran.ran.count = 1;
    ran.ran.outcomes[0].lease = m.run.leases[0];
    ran.ran.outcomes[0].lease.epoch += kind == ROGUE_OTHER_JOB;
    ran.ran.outcomes[0].next = (kn_slice){KN_SLICE_DENOISE, 0, 4};
    say(&ran);
    pause();
}

static void flood(void)
{
    for (uint64_t i = 1; i <= 20000; i++) say(&(kn_wire_message){.kind = KN_WIRE_BEAT, .beat = i});
    say_up();
}

static void answer_otherwise(void)
{
    kn_wire_message m = {.kind = KN_WIRE_PREVIEWED};
    m.previewed.lease = (kn_lease){"video_00000000000000000000000000000001", 1};
    m.previewed.status = KN_INVALID;
    say(&m);
}

static void play(int kind)
{
    static const unsigned char huge[4] = {1, 0, 0, 1}, part[8] = {200, 0, 0, 0, 'a', 'b'};
    static unsigned char nonsense[300];
    switch (kind) {
    case ROGUE_SILENT_EXIT: _exit(7);
    case ROGUE_ANSWER: answer_otherwise(); break;
    case ROGUE_BEAT: say(&(kn_wire_message){.kind = KN_WIRE_BEAT, .beat = 2}); break;
    case ROGUE_OVERSIZE: send(KN_WORKER_FD, huge, sizeof huge, 0); break;
    case ROGUE_NOT_A_MESSAGE: kn_link_transmit(KN_WORKER_FD, nonsense, sizeof nonsense); break;
    case ROGUE_CUT: send(KN_WORKER_FD, part, sizeof part, 0); _exit(6);
    case ROGUE_TWICE:
        say_up();
        say_up();
        break;
    case ROGUE_DEAF: say_up(); break;
    case ROGUE_FLOOD: flood(); break;
    case ROGUE_CLOSES: close(KN_WORKER_FD); break;
    default: misreport(kind);
    }
    for (;;) pause();
}

/* Looks at the first frame without taking it. */
static int rogue_wanted(void)
{
    static unsigned char frame[8192];
    kn_wire_message m;
    ssize_t got;
    do got = recv(KN_WORKER_FD, frame, sizeof frame, MSG_PEEK);
    while (got > 0 && (got < 4 || got < 4 + frame[0] + frame[1] * 256));
    if (got <= 0 || kn_wire_decode(&m, frame + 4, (size_t)(frame[0] + frame[1] * 256)) != KN_OK) return 0;
    const char *seed = strstr(m.configure.params.device, "seed=");
    const int kind = seed ? (int)strtol(seed + 5, NULL, 10) : 0;
    kn_wire_release(&m);
    return kind;
}

static void rogue_worker(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "worker") != 0) return;
    const int kind = rogue_wanted();
    if (kind < ROGUE_SILENT_EXIT || kind >= ROGUES_END) return;
    static kn_wire_message configure;
    hear(&configure);
    play(kind);
}

/* ---- good days ---- */

/* The digest of a request's video on an undisturbed device. */
static void undisturbed(const char *prompt, uint64_t seed, uint8_t sha256[KN_SHA256_BYTES])
{
    plan *p = plan_create((const char *const[]){"fake"}, 1);
    plan_add(p, 1, prompt, seed);
    plan_finish(p);
    assert_int_equal(p->down_count, 0);
    plan_check_output(p, &p->jobs[0], sha256);
    plan_destroy(p);
}

static void expect_digest(const plan *p, const plan_job *j, const uint8_t wanted[KN_SHA256_BYTES])
{
    uint8_t sha256[KN_SHA256_BYTES];
    plan_check_output(p, j, sha256);
    assert_memory_equal(sha256, wanted, KN_SHA256_BYTES);
}

static void test_one_job(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake:memory_mb=100"}, 1);
    plan_job *j = plan_add(p, 1, "a ball", 5);
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.state, KN_DEVICE_STARTING);
    plan_finish(p);
    assert_int_equal(p->devices[0].info.memory_bytes, 100 << 20);
    assert_int_equal(p->slices, 1 + 4 + 3 + 1); /* text, steps, latent frames, mux */
    assert_int_equal(j->checkpoints, 4);
    assert_int_equal(plan_count_files(p, "checkpoints"), KN_ARTIFACT_CHECKPOINTS_KEPT);
    assert_true(j->last.output.thumbnail && j->last.output.spritesheet);
    assert_int_equal(plan_count_files(p, "blobs"), 3);
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.state, KN_DEVICE_READY);
    assert_int_equal(h.jobs, 1);
    assert_int_equal(h.slices, 9);
    assert_int_equal(h.spawns, 1);
    assert_true(h.pid > 0 && h.progress_ns > 0 && h.beat_age_ns >= 0 && h.assignment == 0);
    ok(kn_fleet_release(p->fleet, 0, &j->lease, KN_RELEASE_PUBLISHED));
    while (p->released == 0) plan_turn(p);
    assert_int_equal(p->last_released.status, KN_OK);
    assert_int_equal(plan_count_files(p, "checkpoints"), 0);
    assert_int_equal(plan_count_files(p, "blobs"), 3);
    plan_destroy(p);
}

static void test_depends_on_the_request_alone(void **state)
{
    (void)state;
    uint8_t first[KN_SHA256_BYTES], again[KN_SHA256_BYTES], other[KN_SHA256_BYTES];
    undisturbed("a ball", 5, first);
    undisturbed("a ball", 5, again);
    undisturbed("a ball", 6, other);
    assert_memory_equal(first, again, sizeof first);
    assert_memory_not_equal(first, other, sizeof first);
}

static void test_packs_and_devices(void **state)
{
    (void)state;
    uint8_t wanted[12][KN_SHA256_BYTES];
    for (unsigned i = 0; i < 12; i++) undisturbed("a ball", i, wanted[i]);
    plan *p = plan_create((const char *const[]){"fake", "fake:step_ms=1"}, 2);
    p->pack = p->parallel = 4;
    for (unsigned i = 0; i < 12; i++) plan_add(p, i, "a ball", i);
    plan_finish(p);
    for (int i = 0; i < 12; i++) expect_digest(p, &p->jobs[i], wanted[i]);
    assert_true(p->slices < 12 * 9);
    plan_destroy(p);
}

/* ---- accidents ---- */

static void run_accident(const char *device, kn_down_reason reason, int32_t code)
{
    uint8_t wanted[KN_SHA256_BYTES];
    undisturbed("a ball", 5, wanted);
    plan *p = plan_create(&device, 1);
    plan_job *j = plan_add(p, 1, "a ball", 5);
    plan_finish(p);
    expect_digest(p, j, wanted);
    assert_true(p->down_count >= 1 && j->starts == p->down_count + 1);
    assert_false(j->refused);
    for (int i = 0; i < p->down_count; i++) {
        const kn_device_down *down = &p->downs[i];
        if (down->reason != reason || down->code != code)
            fail_msg("%s %d: %s", kn_down_reason_name(down->reason), down->code, down->message);
        assert_true(down->was_up && down->assignment != 0 && down->count == 1 && down->jobs[0].running);
    }
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.deaths, p->down_count);
    assert_int_equal(h.spawns, p->down_count + 1);
    assert_int_equal(h.protocol_errors, reason == KN_DOWN_PROTOCOL ? p->down_count : 0);
    plan_destroy(p);
}

/* In its fourth slice: a restarted worker has the text, and three steps or frames more behind it each time. */
static void test_crash(void **state)
{
    (void)state;
    run_accident("fake:crash_at=5", KN_DOWN_SIGNALLED, SIGABRT);
}

static void test_garbage(void **state)
{
    (void)state;
    run_accident("fake:corrupt_at=5,step_ms=50,decode_ms=50", KN_DOWN_PROTOCOL, KN_CORRUPT);
}

static void test_device_lost(void **state)
{
    (void)state;
    run_accident("fake:lost_at=5", KN_DOWN_FATAL, KN_DEVICE_LOST);
}

/* Together, because both take their seconds: one process stops, one loops, and a third goes on undisturbed. */
static void test_hang(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    undisturbed("a ball", 5, wanted);
    plan *p = plan_create((const char *const[]){"fake:stop_at=6", "fake:hang_at=6", "fake:step_ms=1"}, 3);
    for (unsigned i = 0; i < 3; i++) plan_add(p, i, "a ball", 5);
    plan_finish(p);
    for (int i = 0; i < 3; i++) expect_digest(p, &p->jobs[i], wanted);
    for (int i = 0; i < p->down_count; i++) {
        assert_int_equal(p->downs[i].reason, KN_DOWN_HANG);
        const bool silent = strstr(p->downs[i].message, "no sign of life") != NULL;
        if (!silent) assert_non_null(strstr(p->downs[i].message, "\"run\" is not answered after 10000 ms"));
    }
    assert_true(p->down_count >= 1);
    plan_destroy(p);
}

static void expect_failure(const char *device, kn_fault fault, kn_status status)
{
    plan *p = plan_create(&device, 1);
    plan_job *j = plan_add(p, 1, "a ball", 5);
    plan_finish(p);
    assert_int_equal(j->state, PLAN_FAILED);
    assert_int_equal(j->last.fault, fault);
    assert_int_equal(j->last.status, status);
    assert_true(j->last.message[0] != '\0' && !j->last.has_output);
    assert_int_equal(p->down_count, 0);
    assert_int_equal(plan_count_files(p, "blobs"), 0);
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.jobs, 0);
    plan_destroy(p);
}

static void test_job_failures(void **state)
{
    (void)state;
    expect_failure("fake:oom_at=3", KN_FAULT_MEMORY, KN_NOMEM);
    expect_failure("fake:nan_at=4", KN_FAULT_NUMERIC, KN_CORRUPT);
    expect_failure("fake:nan_at=8", KN_FAULT_NUMERIC, KN_CORRUPT); /* with a file half written */
}

/* Each alone after a pack has failed: the accident is over by then. */
static void test_pack_failure(void **state)
{
    (void)state;
    uint8_t wanted[3][KN_SHA256_BYTES];
    for (unsigned i = 0; i < 3; i++) undisturbed("a ball", i, wanted[i]);
    plan *p = plan_create((const char *const[]){"fake:oom_at=3"}, 1);
    p->pack = p->parallel = 3;
    for (unsigned i = 0; i < 3; i++) plan_add(p, i, "a ball", i);
    plan_finish(p);
    for (int i = 0; i < 3; i++) expect_digest(p, &p->jobs[i], wanted[i]);
    plan_destroy(p);
}

static void test_poison(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake:poison=hemlock"}, 1);
    p->pack = p->parallel = 2;
    plan_add(p, 1, "a ball", 5);
    plan_add(p, 2, "a cup of hemlock", 5);
    while (p->down_count < 2) plan_turn(p);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(p->downs[i].reason, KN_DOWN_SIGNALLED);
        assert_true(p->downs[i].count == 2 && p->downs[i].jobs[0].running && p->downs[i].jobs[1].running);
    }
    p->jobs[1].state = PLAN_FAILED; /* as a server would by now */
    plan_finish(p);
    assert_int_equal(p->jobs[0].state, PLAN_DONE);
    plan_destroy(p);
}

/* ---- workers that break the rules ---- */

static plan *meet_rogue(int kind)
{
    char device[32];
    const char *const devices[] = {device};
    snprintf(device, sizeof device, "fake:seed=%d", kind);
    plan *p = plan_create(devices, 1);
    plan_add(p, 1, "a ball", 5)->lease.epoch = 4; /* the next is 5 */
    return p;
}

static void test_rogues(void **state)
{
    (void)state;
    static const struct {
        int kind, reason, code;
        const char *message;
    } expected[] = {
        {ROGUE_SILENT_EXIT, KN_DOWN_EXITED, 7, "exited with code 7"},
        {ROGUE_ANSWER, KN_DOWN_PROTOCOL, KN_CORRUPT, "sent \"previewed\", which is not the answer to \"configure\""},
        {ROGUE_BEAT, KN_DOWN_PROTOCOL, KN_CORRUPT, "sent beat 2 instead of 1"},
        {ROGUE_OVERSIZE, KN_DOWN_PROTOCOL, KN_CORRUPT, "a frame of 16777217 bytes"},
        {ROGUE_NOT_A_MESSAGE, KN_DOWN_PROTOCOL, KN_CORRUPT, "not well formed"},
        {ROGUE_CUT, KN_DOWN_EXITED, 6, "exited with code 6"},
        {ROGUE_TWICE, KN_DOWN_PROTOCOL, KN_CORRUPT, "not the answer to"},
        {ROGUE_OLD_EPOCH, KN_DOWN_PROTOCOL, KN_CORRUPT, "not the answer to \"start\""},
        {ROGUE_OTHER_JOB, KN_DOWN_PROTOCOL, KN_CORRUPT, "not the answer to \"run\""},
        {ROGUE_OTHER_ASSIGNMENT, KN_DOWN_PROTOCOL, KN_CORRUPT, "not the answer to \"run\""},
        {ROGUE_CLOSES, KN_DOWN_HANG, 0, "closed its socket"},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        plan *p = meet_rogue(expected[i].kind);
        while (p->down_count == 0) plan_turn(p);
        const kn_device_down *down = &p->downs[0];
        if ((int)down->reason != expected[i].reason || down->code != expected[i].code ||
            !strstr(down->message, expected[i].message))
            fail_msg("rogue %zu: %s %d: %s", i, kn_down_reason_name(down->reason), down->code, down->message);
        plan_destroy(p);
    }
}

/* What is queued for a worker that reads nothing is bounded, and the loop goes on. */
static void test_deaf(void **state)
{
    (void)state;
    plan *p = meet_rogue(ROGUE_DEAF);
    char *large = malloc(KN_RUNNER_REQUEST_BYTES);
    kn_runner_job job = {.lease = {"video_00000000000000000000000000000002", 1}, .model = "model", .request = large};
    assert_non_null(large);
    memset(large, ' ', KN_RUNNER_REQUEST_BYTES);
    large[KN_RUNNER_REQUEST_BYTES - 1] = '\0';
    while (p->devices[0].ups == 0) plan_turn(p);
    kn_status st = KN_OK;
    int sent = 0;
    for (; st == KN_OK; sent++, job.lease.epoch++) st = kn_fleet_start(p->fleet, 0, &job);
    assert_int_equal(st, KN_AGAIN);
    assert_in_range(sent, 20, KN_RUNNER_JOBS_MAX);
    for (int i = 0; i < 10; i++) plan_turn(p);
    p->jobs[0].lease = (kn_lease){"video_00000000000000000000000000000002", 1};
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.jobs, sent - 1);
    free(large);
    plan_destroy(p);
}

static void test_flood(void **state)
{
    (void)state;
    plan *p = meet_rogue(ROGUE_FLOOD);
    while (p->devices[0].ups == 0) plan_turn(p);
    assert_int_equal(p->down_count, 0);
    plan_destroy(p);
}

/* ---- restarting ---- */

static void test_cannot_be_started(void **state)
{
    (void)state;
    plan *p = plan_open();
    const char *const devices[] = {"fake"};
    kn_fleet_params params = plan_params(p, devices, 1);
    params.executable = "/nonexistent/kinora";
    ok(kn_fleet_create(&p->fleet, &params));
    kn_device_health h;
    while (p->down_count < KN_FLEET_DEATHS_FAILED) plan_turn(p);
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.state, KN_DEVICE_FAILED);
    for (int i = 0; i < KN_FLEET_DEATHS_FAILED; i++) assert_int_equal(p->downs[i].reason, KN_DOWN_SPAWN);
    assert_int_equal(p->downs[0].restart_ns, 0); /* at once, then ever later, up to the longest delay */
    assert_int_equal(p->downs[1].restart_ns, 1000000);
    assert_int_equal(p->downs[2].restart_ns, 2000000);
    while (p->down_count < 6) plan_turn(p);
    assert_int_equal(p->downs[5].restart_ns, 4000000);
    assert_false(p->downs[5].was_up);
    plan_destroy(p);
}

/* A device that cannot be opened says why. */
static void test_no_such_device(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"cuda:0"}, 1);
    while (p->down_count == 0 && p->devices[0].ups == 0) plan_turn(p);
    if (p->down_count > 0) { /* on a machine that has one it comes up */
        assert_int_equal(p->downs[0].reason, KN_DOWN_FATAL);
        assert_non_null(strstr(p->downs[0].message, "device cuda:0"));
    }
    plan_destroy(p);
}

static int count_descriptors(void)
{
    int count = 0;
    DIR *listing = opendir("/proc/self/fd");
    assert_non_null(listing);
    while (readdir(listing)) count++;
    closedir(listing);
    return count;
}

static void test_many_restarts(void **state)
{
    (void)state;
    enum { RESTARTS = 200, SETTLED = 5 };
    plan *p = plan_create((const char *const[]){"fake"}, 1);
    plan_wait_loaded(p, 0);
    int descriptors = 0;
    uint64_t bytes = 0;
    for (int i = 0; i < RESTARTS; i++) {
        ok(kn_fleet_kill(p->fleet, 0, "to see it come back"));
        assert_int_equal(kn_fleet_kill(p->fleet, 0, "again"), KN_UNAVAILABLE);
        assert_int_equal(kn_fleet_load(p->fleet, 0, "model"), KN_UNAVAILABLE);
        plan_wait_loaded(p, 0);
        while (p->down_count == 0 || !p->devices[0].loaded) plan_turn(p);
        assert_int_equal(p->downs[0].reason, KN_DOWN_KILLED);
        p->down_count = 0;
        p->deadline_ns = 0;
        if (i == SETTLED) {
            descriptors = count_descriptors();
            bytes = kn_mem_read().bytes;
        }
    }
    assert_int_equal(count_descriptors(), descriptors);
    assert_int_equal(kn_mem_read().bytes, bytes);
    plan_destroy(p);
}

/* The server being stopped is not the workers' fault. */
static void test_server_stall(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake"}, 1);
    plan_wait_loaded(p, 0);
    struct timespec nap = {.tv_sec = KN_FLEET_SILENCE_MS / 1000 + 1};
    while (nanosleep(&nap, &nap) != 0) continue;
    for (int i = 0; i < 60; i++) plan_turn(p);
    assert_int_equal(p->down_count, 0);
    plan_destroy(p);
}

/* ---- calls ---- */

static void test_parameters(void **state)
{
    (void)state;
    static const char *const wrong[] = {"gpu",
                                        "cuda",
                                        "cuda:x",
                                        "cpu:",
                                        "fake:step_ms",
                                        "fake:step_ms=x",
                                        "fake:nothing=1",
                                        "fake:slow=10",
                                        "fake:step_ms=1000001",
                                        "",
                                        "fakes"};
    plan *p = plan_open();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        kn_fleet_params params = plan_params(p, &wrong[i], 1);
        assert_int_equal(kn_fleet_create(&p->fleet, &params), KN_INVALID);
    }
    const char *many[KN_FLEET_DEVICES_MAX + 1] = {"cpu:1", "cpu:1"};
    kn_fleet_params params = plan_params(p, many, 2);
    assert_int_equal(kn_fleet_create(&p->fleet, &params), KN_INVALID);
    for (int i = 0; i <= KN_FLEET_DEVICES_MAX; i++) many[i] = "fake";
    params = plan_params(p, many, KN_FLEET_DEVICES_MAX + 1);
    assert_int_equal(kn_fleet_create(&p->fleet, &params), KN_INVALID);
    params = plan_params(p, many, KN_FLEET_DEVICES_MAX); /* none is started before the loop runs */
    ok(kn_fleet_create(&p->fleet, &params));
    assert_int_equal(kn_fleet_device_count(p->fleet), KN_FLEET_DEVICES_MAX);
    plan_destroy(p);
}

static void test_calls(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake:step_ms=20"}, 1);
    p->idle = true;
    plan_job *a = plan_add(p, 1, "a ball", 5), *b = plan_add(p, 2, "a ball", 6);
    kn_lease unknown = {"video_00000000000000000000000000000009", 1}, pair[2];
    assert_int_equal(kn_fleet_load(p->fleet, 0, "model"), KN_UNAVAILABLE);
    plan_wait_loaded(p, 0);
    assert_int_equal(kn_fleet_load(p->fleet, 1, "model"), KN_INVALID);
    assert_int_equal(kn_fleet_load(p->fleet, 0, "../model"), KN_INVALID);
    plan_start(p, a, 0);
    kn_runner_job same = {.lease = a->lease, .model = "model", .request = a->request};
    assert_int_equal(kn_fleet_start(p->fleet, 0, &same), KN_INVALID);
    assert_int_equal(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_TEXT, &a->lease, 1, 0), KN_INVALID); /* not answered yet */
    plan_start(p, b, 0);
    while (a->state != PLAN_IDLE || b->state != PLAN_IDLE) plan_turn(p);
    assert_int_equal(kn_fleet_run(p->fleet, 0, 0, KN_SLICE_TEXT, &a->lease, 1, 0), KN_INVALID);
    assert_int_equal(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_DONE, &a->lease, 1, 0), KN_INVALID);
    assert_int_equal(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_TEXT, &unknown, 1, 0), KN_INVALID);
    assert_int_equal(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_TEXT, &a->lease, 0, 0), KN_INVALID);
    pair[0] = pair[1] = a->lease;
    assert_int_equal(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_TEXT, pair, 2, 0), KN_INVALID);
    assert_int_equal(kn_fleet_unload(p->fleet, 0, "model"), KN_INVALID);
    assert_int_equal(kn_fleet_release(p->fleet, 0, &unknown, KN_RELEASE_KEEP), KN_INVALID);
    assert_int_equal(kn_fleet_preview(p->fleet, 0, &unknown), KN_INVALID);
    ok(kn_fleet_preview(p->fleet, 0, &a->lease)); /* too early */
    while (p->previews == 0) plan_turn(p);
    assert_int_equal(p->preview_status, KN_INVALID);
    assert_int_equal(p->preview_bytes, 0);
    ok(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_TEXT, &a->lease, 1, 0));
    a->state = PLAN_RUNNING;
    assert_int_equal(kn_fleet_run(p->fleet, 0, 2, KN_SLICE_TEXT, &b->lease, 1, 0), KN_INVALID); /* one at a time */
    ok(kn_fleet_release(p->fleet, 0, &b->lease, KN_RELEASE_DISCARD)); /* others may queue behind */
    assert_int_equal(kn_fleet_release(p->fleet, 0, &b->lease, KN_RELEASE_DISCARD), KN_INVALID);
    while (p->released == 0) plan_turn(p);
    b->state = PLAN_FAILED;
    p->idle = false;
    plan_finish(p);
    assert_int_equal(a->state, PLAN_DONE);
    plan_destroy(p);
}

/* A job the caller believes elsewhere fails alone. */
static void test_wrong_slice(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake"}, 1);
    p->idle = true;
    plan_job *a = plan_add(p, 1, "a ball", 5);
    plan_wait_loaded(p, 0);
    plan_start(p, a, 0);
    while (a->state != PLAN_IDLE) plan_turn(p);
    ok(kn_fleet_run(p->fleet, 0, 1, KN_SLICE_DECODE, &a->lease, 1, 0));
    while (p->slices == 0) plan_turn(p);
    assert_int_equal(a->state, PLAN_FAILED);
    assert_int_equal(a->last.fault, KN_FAULT_INTERNAL);
    plan_destroy(p);
}

static void test_command_limit(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake:load_ms=500"}, 1);
    p->idle = true;
    while (p->devices[0].ups == 0) plan_turn(p); /* and the first "load" is under way */
    kn_status st = KN_OK;
    int sent = 1;
    for (; st == KN_OK; sent++) st = kn_fleet_load(p->fleet, 0, "model");
    assert_int_equal(st, KN_AGAIN);
    assert_int_equal(sent - 1, KN_FLEET_COMMANDS_MAX);
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.state, KN_DEVICE_LOADING);
    while (p->loads < KN_FLEET_COMMANDS_MAX) plan_turn(p);
    kn_fleet_health(p->fleet, 0, &h);
    assert_int_equal(h.state, KN_DEVICE_READY);
    ok(kn_fleet_load(p->fleet, 0, "no-such-model"));
    while (p->load_failures == 0) plan_turn(p);
    assert_int_equal(p->down_count, 0);
    ok(kn_fleet_unload(p->fleet, 0, "model"));
    plan_job *a = plan_add(p, 1, "a ball", 5);
    plan_start(p, a, 0);
    while (a->state != PLAN_FAILED) plan_turn(p);
    assert_int_equal(a->last.fault, KN_FAULT_MODEL);
    plan_destroy(p);
}

static void test_job_limit(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"fake"}, 1);
    p->idle = true;
    plan_wait_loaded(p, 0);
    for (unsigned i = 0; i < KN_RUNNER_JOBS_MAX; i++) plan_start(p, plan_add(p, i, "a ball", i), 0);
    kn_runner_job more = {.lease = {"video_000000000000000000000000000000ff", 1}, .model = "model"};
    more.request = p->jobs[0].request;
    assert_int_equal(kn_fleet_start(p->fleet, 0, &more), KN_AGAIN);
    for (int i = 0; i < KN_RUNNER_JOBS_MAX; i++)
        while (p->jobs[i].state != PLAN_IDLE) plan_turn(p);
    p->idle = false;
    p->pack = p->parallel = KN_RUNNER_PACK_MAX;
    plan_finish(p);
    assert_true(p->slices < KN_RUNNER_JOBS_MAX * 9 / 16);
    plan_destroy(p);
}

/* ---- leaving and coming back ---- */

/* What is asked for while a slice is under way comes after it. */
static void move_away(plan *p, int32_t device, kn_slice_kind kind)
{
    plan_job *j = &p->jobs[0];
    if (kind != KN_SLICE_DENOISE || j->next.index != 2 || device != 0) return;
    ok(kn_fleet_preview(p->fleet, 0, &j->lease));
    ok(kn_fleet_release(p->fleet, 0, &j->lease, KN_RELEASE_SAVE));
    p->idle = true;
}

/* A job that is saved on one device and goes on on another, in the midst of its steps. */
static void test_release_and_resume(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    undisturbed("a ball", 5, wanted);
    plan *p = plan_create((const char *const[]){"fake", "fake:slow=x2"}, 2);
    plan_wait_loaded(p, 0);
    plan_wait_loaded(p, 1);
    plan_job *j = plan_add(p, 1, "a ball", 5);
    p->on_run = move_away;
    plan_go_on(p);
    assert_int_equal(j->device, 0);
    while (p->released == 0) plan_turn(p);
    assert_int_equal(p->slices, 1 + 3);
    assert_int_equal(p->last_released.status, KN_OK);
    assert_int_equal(p->previews, 1);
    assert_int_equal(p->preview_status, KN_OK);
    assert_true(p->preview_bytes > 0 && strncmp(p->preview_mime, "image/", 6) == 0);
    assert_true(p->last_released.has_checkpoint && p->last_released.checkpoint.step == 3);
    j->checkpoint = p->last_released.checkpoint;
    plan_start(p, j, 1);
    p->idle = false;
    plan_finish(p);
    expect_digest(p, j, wanted);
    assert_int_equal(p->slices, 9 + 1); /* the text once more */
    plan_destroy(p);
}

int main(int argc, char **argv)
{
    rogue_worker(argc, argv);
    fleeting_worker(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_job),
        cmocka_unit_test(test_depends_on_the_request_alone),
        cmocka_unit_test(test_packs_and_devices),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_device_lost),
        cmocka_unit_test(test_hang),
        cmocka_unit_test(test_job_failures),
        cmocka_unit_test(test_pack_failure),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_rogues),
        cmocka_unit_test(test_deaf),
        cmocka_unit_test(test_flood),
        cmocka_unit_test(test_cannot_be_started),
        cmocka_unit_test(test_no_such_device),
        cmocka_unit_test(test_many_restarts),
        cmocka_unit_test(test_server_stall),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_wrong_slice),
        cmocka_unit_test(test_command_limit),
        cmocka_unit_test(test_job_limit),
        cmocka_unit_test(test_release_and_resume),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
