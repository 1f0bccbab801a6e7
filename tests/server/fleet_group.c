/* SPDX-License-Identifier: Apache-2.0
 *
 * Slices that several workers share: real models on CPU workers, whose videos are the same bytes whatever members each
 * slice has and however many workers are killed; the same over the FAKE of NCCL, as GPUs' groups are formed; and
 * scripted devices, for accidents that have to come at one moment. */
#define _GNU_SOURCE
#include "tests/server/fleeting.h"

#include <dlfcn.h>

#include "server/fleet_internal.h"

enum { WORKERS = 4, CHANGES = 200 };

static const char *const cpus[WORKERS] = {"cpu:0", "cpu:1", "cpu:2", "cpu:3"};
static uint64_t random_state;

static uint32_t draw(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

static bool is_free(const plan *p, int32_t device)
{
    kn_device_health health;
    kn_fleet_health(p->fleet, device, &health);
    return p->devices[device].loaded && !p->devices[device].helping && health.state == KN_DEVICE_READY &&
           health.assignment == 0;
}

/* Everybody who is free. */
static int32_t choose_all(plan *p, kn_slice_kind kind, int32_t members[KN_COMM_RANKS_MAX])
{
    int32_t degree = 1;
    if (kind != KN_SLICE_DENOISE && kind != KN_SLICE_DECODE) return 1;
    for (int32_t d = 0; d < kn_fleet_device_count(p->fleet); d++)
        if (d != members[0] && is_free(p, d)) members[degree++] = d;
    return degree;
}

static int32_t changes, degree_before;

/* Any of those that are free, in any order. */
static int32_t choose_some(plan *p, kn_slice_kind kind, int32_t members[KN_COMM_RANKS_MAX])
{
    int32_t degree = 1;
    const int32_t count = choose_all(p, kind, members);
    for (int32_t i = 1; i < count; i++) {
        const int32_t j = i + (int32_t)(draw() % (uint32_t)(count - i)), other = members[j];
        members[j] = members[i];
        members[i] = other;
    }
    degree += (int32_t)(draw() % (uint32_t)count);
    changes += degree != degree_before;
    degree_before = degree;
    return degree;
}

/* What one worker makes alone, undisturbed. */
static void make_alone(const char *device, const char *prompt, uint64_t seed, uint8_t sha256[KN_SHA256_BYTES])
{
    plan *p = plan_create(&device, 1);
    const plan_job *j = plan_add(p, 1, prompt, seed);
    plan_finish(p);
    plan_check_output(p, j, sha256);
    plan_destroy(p);
}

static void expect_same(const plan *p, const plan_job *j, const uint8_t wanted[KN_SHA256_BYTES])
{
    uint8_t sha256[KN_SHA256_BYTES];
    plan_check_output(p, j, sha256);
    assert_memory_equal(sha256, wanted, sizeof sha256);
}

static void wait_all_loaded(plan *p, int32_t count)
{
    for (int32_t d = 0; d < count; d++) plan_wait_loaded(p, d);
}

/* ---- real models ---- */

static void test_two_make_one(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone(cpus[0], "a ball", 1, wanted);
    plan *p = plan_create(cpus, 2);
    p->idle = true;
    p->choose = choose_all;
    wait_all_loaded(p, 2);
    p->idle = false;
    const plan_job *j = plan_add(p, 1, "a ball", 1);
    plan_finish(p);
    expect_same(p, j, wanted);
    kn_device_health leader, helper;
    kn_fleet_health(p->fleet, j->device, &leader);
    kn_fleet_health(p->fleet, 1 - j->device, &helper);
    assert_int_equal(p->shared, 4 + 3); /* steps and latent frames */
    assert_int_equal(p->lost, 0);
    assert_int_equal(leader.shared_slices, p->shared);
    while (helper.assists < 7) { /* its last answer may still be on the way */
        plan_turn(p);
        kn_fleet_health(p->fleet, 1 - j->device, &helper);
    }
    assert_int_equal(leader.groups, 1);
    assert_int_equal(helper.groups, 1);
    assert_int_equal(helper.slices, 0);
    assert_int_equal(plan_count_files(p, "blobs"), 3); /* the video and its pictures, once */
    plan_destroy(p);
}

static int32_t kills;

/* One in eight shared slices loses a worker, leader or helper, a moment after it was sent off. */
static void kill_sometimes(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health health;
    (void)kind;
    if (draw() % 8 != 0) return;
    kn_fleet_health(p->fleet, device, &health);
    if (health.degree < 2) return;
    const int32_t victim = health.members[draw() % (uint32_t)health.degree];
    kn_fleet_health(p->fleet, victim, &health);
    kills += kill(health.pid, SIGKILL) == 0;
}

static void test_any_members_and_deaths(void **state)
{
    (void)state;
    enum { PROMPTS = 4, AT_ONCE = 2, KILLS = 10 };
    uint8_t wanted[PROMPTS][KN_SHA256_BYTES];
    for (unsigned i = 0; i < PROMPTS; i++) make_alone(cpus[0], "a ball", i, wanted[i]);
    random_state = 1;
    plan *p = plan_create(cpus, WORKERS);
    p->choose = choose_some;
    p->on_run = kill_sometimes;
    wait_all_loaded(p, WORKERS);
    /* Until enough has gone wrong, too: how many slices are shared depends on who is free. */
    while ((changes < CHANGES || kills < KILLS || p->lost == 0) && p->job_count + AT_ONCE <= PLAN_JOBS_MAX) {
        plan_job *jobs[AT_ONCE];
        const int32_t first = p->job_count;
        for (int32_t i = 0; i < AT_ONCE; i++) {
            const unsigned number = (unsigned)(first + i);
            jobs[i] = plan_add(p, number + 1, "a ball", number % PROMPTS);
        }
        p->deadline_ns = 0;
        plan_finish(p);
        for (int32_t i = 0; i < AT_ONCE; i++) expect_same(p, jobs[i], wanted[(first + i) % PROMPTS]);
    }
    printf(
        "  %d jobs, %d slices, %d shared, %d changes of degree, %d workers killed, %d groups lost with a leader left\n",
        p->job_count, p->slices, p->shared, changes, kills, p->lost);
    assert_true(changes >= CHANGES && kills >= KILLS && p->lost > 0);
    plan_destroy(p);
}

/* Deaths in shared decode slices: the helper's and the leader's, in each of them once. */
static struct decode_death {
    int32_t slice, seen; /* shared decode slices: in which, of how many so far */
    int32_t member;      /* whose; the leader is 0 */
    bool done;
} decode_death;

static void kill_while_decoding(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health health;
    if (kind != KN_SLICE_DECODE || decode_death.done) return;
    kn_fleet_health(p->fleet, device, &health);
    if (health.degree < 2 || decode_death.seen++ < decode_death.slice) return;
    kn_fleet_health(p->fleet, health.members[decode_death.member], &health);
    decode_death.done = kill(health.pid, SIGKILL) == 0;
}

static void test_deaths_while_decoding(void **state)
{
    (void)state;
    enum { FRAMES = 3 }; /* latent ones */
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone(cpus[0], "a ball", 1, wanted);
    for (int32_t i = 0; i < 2 * FRAMES; i++) {
        decode_death = (struct decode_death){.slice = i / 2, .member = i % 2};
        plan *p = plan_create(cpus, 3);
        p->idle = true;
        p->choose = choose_all;
        p->on_run = kill_while_decoding;
        wait_all_loaded(p, 3);
        p->idle = false;
        const plan_job *j = plan_add(p, 1, "a ball", 1);
        plan_finish(p);
        assert_true(decode_death.done);
        expect_same(p, j, wanted);
        if (decode_death.member > 0) /* the video and its pictures, once; a dead leader leaves what it had open */
            assert_int_equal(plan_count_files(p, "blobs"), 3);
        plan_destroy(p);
    }
}

/* ---- over NCCL, or what stands in for it (tests/nccl) ---- */

/* Workers find it by NCCL's name, since it is loaded already. */
static void preload_fake_nccl(void)
{
    if (!dlopen(KN_FAKE_NCCL, RTLD_NOW | RTLD_LOCAL)) fprintf(stderr, "%s\n", dlerror());
}

/* CPU workers that the fleet takes for GPUs: their groups are formed over NCCL. */
static plan *start_over_nccl(int32_t count)
{
    plan *p = plan_create(cpus, count);
    p->idle = true;
    wait_all_loaded(p, count);
    for (int32_t d = 0; d < count; d++) p->fleet->devices[d].health.info.host_memory = false;
    p->idle = false;
    return p;
}

static uint64_t newest_epoch(const plan *p)
{
    uint64_t epoch = 0;
    for (int32_t i = 0; i < KN_FLEET_GROUPS_TABLE; i++)
        if (p->fleet->groups[i].epoch > epoch) epoch = p->fleet->groups[i].epoch;
    return epoch;
}

static struct {
    int32_t seen;   /* shared slices */
    uint64_t epoch; /* of the group whose helper was killed; 0: not yet */
} nccl_death;

static void kill_second_helper(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health health;
    (void)kind;
    kn_fleet_health(p->fleet, device, &health);
    if (health.degree < 3 || nccl_death.epoch || nccl_death.seen++ < 2) return;
    nccl_death.epoch = newest_epoch(p);
    kn_fleet_health(p->fleet, health.members[2], &health);
    assert_int_equal(kill(health.pid, SIGKILL), 0);
}

/* A group over NCCL loses a member, is given up, and another is formed under the next epoch. */
static void test_over_nccl(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone(cpus[0], "a ball", 1, wanted);
    plan *p = start_over_nccl(3);
    p->choose = choose_all;
    const plan_job *j = plan_add(p, 1, "a ball", 1);
    plan_finish(p);
    expect_same(p, j, wanted);
    assert_int_equal(p->shared, 4 + 3); /* steps and latent frames, on three */
    assert_int_equal(p->lost, 0);
    p->on_run = kill_second_helper;
    const plan_job *again = plan_add(p, 2, "a ball", 1);
    p->deadline_ns = 0;
    plan_finish(p);
    expect_same(p, again, wanted);
    assert_true(nccl_death.epoch > 0 && newest_epoch(p) > nccl_death.epoch);
    assert_in_range(p->lost, 0, 1); /* 0: it had done its part before */
    assert_int_equal(p->down_count, 1);
    plan_destroy(p);
}

/* Workers whose library will not do, which the stand-in is told to be, do not join, and the job goes on alone. */
static void test_with_old_nccl(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone(cpus[0], "a ball", 1, wanted);
    const char *inherited = getenv("LD_LIBRARY_PATH");
    char *before = inherited ? strdup(inherited) : NULL;
    setenv("LD_LIBRARY_PATH", "/nowhere/old-nccl", 1);
    plan *p = start_over_nccl(2);
    if (before)
        setenv("LD_LIBRARY_PATH", before, 1);
    else
        unsetenv("LD_LIBRARY_PATH");
    free(before);
    p->choose = choose_all;
    const plan_job *j = plan_add(p, 1, "a ball", 1);
    plan_go_on(p);
    while (p->lost == 0) plan_turn(p);
    p->choose = NULL; /* the server's dispatcher lets it alone for a while */
    plan_finish(p);
    expect_same(p, j, wanted);
    assert_true(strlen(p->lost_why) > 0);
    assert_int_equal(p->down_count, 0);
    plan_destroy(p);
}

/* ---- accidents at one moment ---- */

/* One job on the first of two scripted devices; the second helps. */
static plan *start_pair(const char *leader, const char *helper)
{
    const char *const devices[] = {leader, helper};
    plan *p = plan_create(devices, 2);
    p->idle = true;
    p->choose = choose_all;
    wait_all_loaded(p, 2);
    p->idle = false;
    plan_add(p, 1, "a ball", 1);
    plan_start(p, &p->jobs[0], 0);
    return p;
}

/* The accident costs one shared slice, within `seconds`, says `why`, and the video is the same. */
static void expect_loss(const char *leader, const char *helper, int32_t downs, double seconds, const char *why)
{
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone("fake", "a ball", 1, wanted);
    plan *p = start_pair(leader, helper);
    const int64_t start = kn_clock_ns();
    while (p->lost == 0 && p->down_count == 0 && p->jobs[0].state < PLAN_DONE) plan_turn(p);
    const double took = kn_clock_seconds(kn_clock_ns() - start);
    p->choose = NULL; /* a helper that is back would come to its accident again */
    if (took > seconds) fail_msg("%s and %s: lost after %.1f s", leader, helper, took);
    plan_finish(p);
    expect_same(p, &p->jobs[0], wanted);
    while (p->down_count < downs) plan_turn(p);
    assert_int_equal(p->down_count, downs);
    if (p->lost > 0 && !strstr(p->lost_why, why)) fail_msg("\"%s\" does not say \"%s\"", p->lost_why, why);
    printf("  %s, %s: after %.2f s: %s\n", leader, helper, took, p->lost > 0 ? p->lost_why : p->down_messages[0]);
    plan_destroy(p);
}

static void test_a_helper_dies(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20", "fake:step_ms=20,crash_at=2", 1, 1.0, ""); /* whoever notices first says why */
}

static void test_a_leader_dies(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20,crash_at=3", "fake:step_ms=20", 1, 1.0, "");
}

static void test_a_helper_stops(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20", "fake:step_ms=20,stop_at=2", 1, 10.0, ""); /* killed for its silence */
}

/* Its heart beats, but its part is never done. */
static void test_a_helper_hangs(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20", "fake:step_ms=20,hang_at=2", 1, 10.0, "kept rank 0 waiting");
}

static void test_a_leader_hangs(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20,hang_at=3", "fake:step_ms=20", 1, 10.0, "");
}

static void test_a_helper_without_memory(void **state)
{
    (void)state;
    expect_loss("fake:step_ms=20", "fake:step_ms=20,oom_at=2", 0, 1.0, "out of memory");
}

/* Ten times as slow is waited for, and nothing is lost. */
static void test_a_slow_helper(void **state)
{
    (void)state;
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone("fake", "a ball", 1, wanted);
    plan *p = start_pair("fake:step_ms=20", "fake:step_ms=20,slow=x10");
    plan_finish(p);
    expect_same(p, &p->jobs[0], wanted);
    assert_int_equal(p->lost + p->down_count, 0);
    assert_int_equal(p->shared, 4 + 3);
    plan_destroy(p);
}

/* While one group is lost, the other two devices do not notice. */
static void test_survivors_go_on(void **state)
{
    (void)state;
    static const char *const devices[] = {"fake:step_ms=30", "fake:step_ms=30,hang_at=1", "fake:step_ms=30"};
    uint8_t wanted[KN_SHA256_BYTES];
    make_alone("fake", "a ball", 1, wanted);
    plan *p = plan_create(devices, 3);
    p->idle = true;
    wait_all_loaded(p, 3);
    p->idle = false;
    p->devices[2].helping = -1; /* not in this group */
    p->choose = choose_all;
    plan_add(p, 1, "a ball", 1);
    plan_start(p, &p->jobs[0], 0);
    while (p->devices[1].helping == 0) plan_turn(p);
    p->devices[2].helping = 0;
    p->choose = NULL;
    for (unsigned i = 1; i < 6; i++) plan_add(p, i + 1, "a ball", 1);
    const int64_t start = kn_clock_ns();
    plan_go_on(p);
    while (p->jobs[5].state < PLAN_DONE) plan_turn(p);
    assert_true(kn_clock_ns() - start < INT64_C(5000000000)); /* before anybody has given the group up */
    assert_int_equal(p->lost, 0);
    plan_finish(p);
    assert_int_equal(p->lost, 1);
    for (int32_t i = 0; i < p->job_count; i++) expect_same(p, &p->jobs[i], wanted);
    plan_destroy(p);
}

/* More sets of members than a device keeps groups for. */
static void test_groups_are_bounded(void **state)
{
    (void)state;
    static const char *const devices[WORKERS] = {"fake", "fake", "fake", "fake"};
    random_state = 5;
    plan *p = plan_create(devices, WORKERS);
    p->choose = choose_some;
    wait_all_loaded(p, WORKERS);
    for (unsigned i = 0; i < 12; i++) {
        plan_add(p, i + 1, "a ball", i);
        plan_finish(p);
    }
    for (int32_t d = 0; d < WORKERS; d++) {
        kn_device_health health;
        kn_fleet_health(p->fleet, d, &health);
        assert_in_range(health.groups, 1, KN_FLEET_GROUPS_MAX);
        assert_int_equal(health.degree, 0);
    }
    assert_int_equal(p->lost, 0);
    plan_destroy(p);
}

static void test_calls(void **state)
{
    (void)state;
    static const char *const devices[] = {"fake", "fake"};
    plan *p = plan_create(devices, 2);
    p->idle = true;
    wait_all_loaded(p, 2);
    plan_add(p, 1, "a ball", 1);
    plan_start(p, &p->jobs[0], 0);
    while (p->jobs[0].state != PLAN_IDLE) plan_turn(p);
    const kn_lease lease = p->jobs[0].lease;
    assert_int_equal(kn_fleet_run_shared(p->fleet, (int32_t[]){0, 0}, 2, 1, KN_SLICE_DENOISE, &lease, 1, 0),
                     KN_INVALID); /* the same device twice */
    assert_int_equal(kn_fleet_run_shared(p->fleet, (int32_t[]){0, 2}, 2, 1, KN_SLICE_DENOISE, &lease, 1, 0),
                     KN_INVALID); /* no such device */
    assert_int_equal(kn_fleet_run_shared(p->fleet, (int32_t[]){1, 0}, 2, 1, KN_SLICE_DENOISE, &lease, 1, 0),
                     KN_INVALID); /* the job is not there */
    /* A helper that is down is done without. */
    ok(kn_fleet_kill(p->fleet, 1, "for the test"));
    ok(kn_fleet_run_shared(p->fleet, (int32_t[]){0, 1}, 2, 1, KN_SLICE_TEXT, &lease, 1, 0));
    p->jobs[0].state = PLAN_RUNNING;
    while (p->slices < 1) plan_turn(p);
    assert_int_equal(p->shared, 0);
    plan_destroy(p);
}

int main(int argc, char **argv)
{
    preload_fake_nccl();
    fleeting_worker(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_make_one),
        cmocka_unit_test(test_any_members_and_deaths),
        cmocka_unit_test(test_deaths_while_decoding),
        cmocka_unit_test(test_over_nccl),
        cmocka_unit_test(test_with_old_nccl),
        cmocka_unit_test(test_a_helper_dies),
        cmocka_unit_test(test_a_leader_dies),
        cmocka_unit_test(test_a_helper_stops),
        cmocka_unit_test(test_a_helper_hangs),
        cmocka_unit_test(test_a_leader_hangs),
        cmocka_unit_test(test_a_helper_without_memory),
        cmocka_unit_test(test_a_slow_helper),
        cmocka_unit_test(test_survivors_go_on),
        cmocka_unit_test(test_groups_are_bounded),
        cmocka_unit_test(test_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
