/* SPDX-License-Identifier: Apache-2.0
 *
 * Worker processes with a real model: whatever interrupts a job, its file has the bytes of an undisturbed run. Also how
 * a worker ends, and what it does not end for. */
#define _GNU_SOURCE
#include "tests/server/fleeting.h"

#include <fcntl.h>
#include <sys/wait.h>

static const char *const cpu[] = {"cpu"};

/* ---- the same bytes ---- */

static uint8_t reference[2][KN_SHA256_BYTES];
static const char *const prompts[2] = {"a red ball bounces off the backboard", "two players at dawn"};

static int make_reference(void **state)
{
    (void)state;
    plan *p = plan_create(cpu, 1);
    for (unsigned i = 0; i < 2; i++) plan_add(p, i, prompts[i], 40 + i);
    plan_finish(p);
    for (int i = 0; i < 2; i++) plan_check_output(p, &p->jobs[i], reference[i]);
    assert_int_equal(p->down_count, 0);
    assert_true(p->devices[0].info.memory_bytes > 0 && p->devices[0].info.tier[0]);
    plan_destroy(p);
    return 0;
}

static void expect_reference(const plan *p, int job)
{
    uint8_t sha256[KN_SHA256_BYTES];
    plan_check_output(p, &p->jobs[job], sha256);
    assert_memory_equal(sha256, reference[job], KN_SHA256_BYTES);
}

/* Slices that have been through an accident already, a bit each. */
static unsigned struck;

static bool strike(const plan *p)
{
    const kn_slice s = p->jobs[0].next;
    const unsigned bit = 1u << (s.kind * 8 + s.index);
    if (p->jobs[0].state != PLAN_RUNNING || struck & bit) return false;
    struck |= bit;
    return true;
}

static void kill_once(plan *p, int32_t device, kn_slice_kind kind)
{
    (void)kind;
    if (strike(p)) ok(kn_fleet_kill(p->fleet, device, "a test"));
}

static void kill_from_outside(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health h;
    (void)kind;
    kn_fleet_health(p->fleet, device, &h);
    if (strike(p)) assert_int_equal(kill(h.pid, SIGKILL), 0);
}

/* Each slice is begun, cut off, and done again by another process: text, 4 steps, 3 latent frames, mux. */
static void test_killed_in_every_slice(void **state)
{
    (void)state;
    struck = 0;
    plan *p = plan_create(cpu, 1);
    plan_add(p, 0, prompts[0], 40);
    p->on_run = kill_once;
    plan_finish(p);
    expect_reference(p, 0);
    assert_int_equal(p->down_count, 9);
    for (int i = 0; i < 9; i++) assert_int_equal(p->downs[i].reason, KN_DOWN_KILLED);
    assert_false(p->jobs[0].refused);
    plan_destroy(p);
}

static void test_killed_in_a_pack(void **state)
{
    (void)state;
    struck = 0;
    plan *p = plan_create(cpu, 1);
    p->pack = p->parallel = 2;
    for (unsigned i = 0; i < 2; i++) plan_add(p, i, prompts[i], 40 + i);
    p->on_run = kill_from_outside;
    plan_finish(p);
    for (int i = 0; i < 2; i++) expect_reference(p, i);
    assert_true(p->down_count >= 9);
    for (int i = 0; i < p->down_count; i++) {
        assert_int_equal(p->downs[i].reason, KN_DOWN_SIGNALLED);
        assert_int_equal(p->downs[i].code, SIGKILL);
    }
    plan_destroy(p);
}

static void test_packed(void **state)
{
    (void)state;
    plan *p = plan_create(cpu, 1);
    p->pack = p->parallel = 2;
    for (unsigned i = 0; i < 2; i++) plan_add(p, i, prompts[i], 40 + i);
    plan_finish(p);
    for (int i = 0; i < 2; i++) expect_reference(p, i);
    assert_int_equal(p->slices, 9);
    plan_destroy(p);
}

static void stop_once(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health h;
    kn_fleet_health(p->fleet, device, &h);
    if (kind == KN_SLICE_DENOISE && p->jobs[0].next.index == 2 && strike(p)) assert_int_equal(kill(h.pid, SIGSTOP), 0);
}

static void test_stopped(void **state)
{
    (void)state;
    struck = 0;
    plan *p = plan_create(cpu, 1);
    plan_add(p, 0, prompts[0], 40);
    p->on_run = stop_once;
    plan_finish(p);
    expect_reference(p, 0);
    if (p->down_count > 0) assert_int_equal(p->downs[0].reason, KN_DOWN_HANG); /* 0: the slice's answer came before */
    plan_destroy(p);
}

static void leave_once(plan *p, int32_t device, kn_slice_kind kind)
{
    if (kind != KN_SLICE_DENOISE || p->jobs[0].next.index != 1 || device != 0) return;
    ok(kn_fleet_preview(p->fleet, 0, &p->jobs[0].lease));
    ok(kn_fleet_release(p->fleet, 0, &p->jobs[0].lease, KN_RELEASE_SAVE));
    p->idle = true;
}

static void test_moved(void **state)
{
    (void)state;
    plan *p = plan_create((const char *const[]){"cpu:0", "cpu:1"}, 2);
    plan_wait_loaded(p, 0);
    plan_wait_loaded(p, 1);
    plan_job *j = plan_add(p, 0, prompts[0], 40);
    p->on_run = leave_once;
    plan_go_on(p);
    while (p->released == 0) plan_turn(p);
    assert_int_equal(p->preview_status, KN_OK);
    assert_true(p->preview_bytes > 20);
    assert_int_equal(p->last_released.status, KN_OK);
    assert_true(p->last_released.has_checkpoint);
    assert_int_equal(p->last_released.checkpoint.step, 2);
    j->checkpoint = p->last_released.checkpoint;
    j->has_checkpoint = true;
    plan_start(p, j, 1);
    p->idle = false;
    plan_finish(p);
    expect_reference(p, 0);
    plan_destroy(p);
}

/* ---- checkpoints that cannot be trusted ---- */

static void change_byte(const char *path, long at)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    const int byte = fgetc(file);
    assert_int_equal(fseek(file, -1, SEEK_CUR), 0);
    fputc(byte ^ 0x10, file);
    fclose(file);
}

static int damage; /* which; the file is known when the worker is killed */

static void damage_once(plan *p, int32_t device, kn_slice_kind kind)
{
    char path[1024];
    plan_job *j = &p->jobs[0];
    if (kind != KN_SLICE_DENOISE || j->next.index != 3 || struck) return;
    struck = 1;
    assert_true(j->has_checkpoint);
    assert_int_equal(j->checkpoint.step, 3);
    snprintf(path, sizeof path, "%s", plan_file(p, "checkpoints", j->checkpoint.name));
    switch (damage) {
    case 0: change_byte(path, 100); break;
    case 1: change_byte(path, -9); break;
    case 2: assert_int_equal(truncate(path, 1000), 0); break;
    case 3: assert_int_equal(unlink(path), 0); break;
    case 4: j->checkpoint.sha256[31] ^= 1; break;
    default: { /* whole and well summed, but of another request */
        kn_free(j->request);
        j->request = plan_request(p, prompts[0], 41);
    }
    }
    ok(kn_fleet_kill(p->fleet, device, "a test"));
}

static void test_damaged_checkpoints(void **state)
{
    (void)state;
    for (damage = 0; damage < 6; damage++) {
        struck = 0;
        plan *p = plan_create(cpu, 1);
        plan_job *j = plan_add(p, 0, prompts[0], 40);
        p->on_run = damage_once;
        plan_finish(p);
        assert_true(j->refused);
        assert_int_equal(p->down_count, 1);
        assert_int_equal(j->starts, 3);
        if (damage < 5) expect_reference(p, 0);
        plan_destroy(p);
    }
}

/* Saved by one processor tier, offered to another. */
static void test_other_fingerprint(void **state)
{
    (void)state;
    plan *p = plan_create(cpu, 1);
    plan_job *j = plan_add(p, 0, prompts[0], 40);
    plan_finish(p);
    kn_fleet_destroy(&p->fleet);
    kn_fleet_params params = plan_params(p, cpu, 1);
    params.isa = "ref";
    p->devices[0] = (plan_device){.loaded = false};
    j->state = PLAN_WAITING;
    assert_true(j->has_checkpoint);
    ok(kn_fleet_create(&p->fleet, &params));
    while (!p->devices[0].loaded) plan_turn(p);
    if (strcmp(p->devices[0].info.tier, "ref") == 0) {
        plan_finish(p);
        assert_true(j->refused);
        assert_int_equal(j->state, PLAN_DONE);
    }
    plan_destroy(p);
}

/* ---- how a worker ends ---- */

static void be_patient(plan *p, int32_t device, kn_slice_kind kind)
{
    kn_device_health h;
    (void)kind;
    kn_fleet_health(p->fleet, device, &h);
    assert_int_equal(kill(h.pid, SIGTERM), 0); /* neither is its business */
    assert_int_equal(kill(h.pid, SIGINT), 0);
}

static void test_ignores_signals_of_the_group(void **state)
{
    (void)state;
    plan *p = plan_create(cpu, 1);
    plan_add(p, 0, prompts[0], 40);
    p->on_run = be_patient;
    plan_finish(p);
    assert_int_equal(p->down_count, 0);
    expect_reference(p, 0);
    plan_destroy(p);
}

/* 0: gone or a corpse. */
static int alive(int pid)
{
    char path[64], text[256] = {0};
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    const int file = open(path, O_RDONLY);
    if (file < 0) return 0;
    const ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    const char *end = strrchr(text, ')');
    return got > 0 && end && end[1] == ' ' && end[2] != 'Z' && end[2] != 'X';
}

/* In the midst of a slice that would take an hour; the grace is longer than this test may wait. */
static void test_ends_with_the_socket(void **state)
{
    (void)state;
    plan *p = plan_open();
    const char *const device[] = {"fake:text_ms=1000000,slow=x4"};
    kn_fleet_params params = plan_params(p, device, 1);
    params.grace_ns = PLAN_SECONDS_MAX * INT64_C(1000000000);
    ok(kn_fleet_create(&p->fleet, &params));
    plan_job *j = plan_add(p, 0, prompts[0], 40);
    while (j->state != PLAN_RUNNING) plan_turn(p);
    for (int i = 0; i < 5; i++) plan_turn(p);
    kn_device_health h;
    kn_fleet_health(p->fleet, 0, &h);
    assert_true(alive(h.pid));
    const int64_t start = kn_clock_ns();
    kn_fleet_destroy(&p->fleet);
    assert_true(kn_clock_ns() - start < params.grace_ns);
    assert_false(alive(h.pid));
    plan_destroy(p);
}

/* The server is killed; nothing can close anything in an orderly way. */
static void test_ends_with_the_server(void **state)
{
    (void)state;
    int channel[2], pid = 0;
    assert_int_equal(pipe(channel), 0);
    const pid_t server = fork();
    assert_true(server >= 0);
    if (server == 0) {
        plan *p = plan_create((const char *const[]){"fake"}, 1);
        plan_wait_loaded(p, 0);
        kn_device_health h;
        kn_fleet_health(p->fleet, 0, &h);
        folder_remove(&p->data);
        if (write(channel[1], &h.pid, sizeof h.pid) != sizeof h.pid) _exit(1);
        kill(getpid(), SIGKILL);
    }
    close(channel[1]);
    assert_int_equal(read(channel[0], &pid, sizeof pid), sizeof pid);
    close(channel[0]);
    assert_int_equal(waitpid(server, NULL, 0), server);
    const int64_t deadline = kn_clock_ns() + PLAN_SECONDS_MAX * INT64_C(1000000000);
    while (alive(pid) && kn_clock_ns() < deadline) usleep(10000);
    assert_false(alive(pid));
}

static void test_command_line(void **state)
{
    (void)state;
    char *const wrong[][4] = {{"worker"},
                              {"worker", "--fd"},
                              {"worker", "--fd", "2"},
                              {"worker", "--fd", "3x"},
                              {"worker", "--no", "3"},
                              {"worker", "--fd", "-4"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int argc = 0;
        while (argc < 4 && wrong[i][argc]) argc++;
        assert_int_equal(kn_worker_main(argc, (char **)wrong[i]), 64);
    }
}

int main(int argc, char **argv)
{
    fleeting_worker(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_line),
        cmocka_unit_test(test_packed),
        cmocka_unit_test(test_killed_in_every_slice),
        cmocka_unit_test(test_killed_in_a_pack),
        cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_moved),
        cmocka_unit_test(test_damaged_checkpoints),
        cmocka_unit_test(test_other_fingerprint),
        cmocka_unit_test(test_ignores_signals_of_the_group),
        cmocka_unit_test(test_ends_with_the_socket),
        cmocka_unit_test(test_ends_with_the_server),
    };
    return cmocka_run_group_tests(tests, make_reference, NULL);
}
