/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora generate on several ranks: the file is the one that a single process writes, also when ranks are killed or
 * stopped on the way. */
#define _GNU_SOURCE
#include "tests/cli/command.h"
#include "tests/engine/folder.h"

#include <ctype.h>
#include <signal.h>
#include <time.h>

#define MODEL KN_SOURCE_DIR "/tests/golden/wan21-small/model"
#define REQUEST "--model '" MODEL "' --prompt 'a red ball' --size 64x64 --frames 9 --steps 6 --seed 7"

static char *slurp(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    char *data = calloc(1, 1 << 22);
    *bytes = fread(data, 1, 1 << 22, file);
    fclose(file);
    return data;
}

static void expect_same_file(const char *a, const char *b)
{
    size_t na, nb;
    char *da = slurp(a, &na), *db = slurp(b, &nb);
    if (na != nb || memcmp(da, db, na) != 0) fail_msg("%s and %s differ", a, b);
    free(da);
    free(db);
}

/* Pictures, so that nothing but pixels is compared: a video says in its comment how it was made. */
static void expect_same_frames(const folder *at, const char *a, const char *b)
{
    char pa[64], pb[64];
    for (int i = 0; i < 9; i++) {
        snprintf(pa, sizeof pa, "%s-%d.png", a, i);
        snprintf(pb, sizeof pb, "%s-%d.png", b, i);
        expect_same_file(folder_file(at, pa), folder_file(at, pb));
    }
}

static void generate_alone(const folder *at)
{
    if (command("generate " REQUEST " -o '%s'", folder_file(at, "alone-%d.png")) != 0) fail_msg("%s", command_output);
}

static void ranks_write_the_same_file(void **state)
{
    (void)state;
    const folder at = folder_create();
    generate_alone(&at);
    for (int n = 1; n <= 8; n = n == 4 ? 8 : n + 1) {
        if (command("generate " REQUEST " --devices cpu:%d --threads 1 --json -o '%s'", n,
                    folder_file(&at, "ranks-%d.png")) != 0)
            fail_msg("%s", command_output);
        char wanted[32];
        snprintf(wanted, sizeof wanted, "\"ranks\":%d", n);
        assert_printed(wanted);
        assert_printed("\"lost_ranks\":0");
        expect_same_frames(&at, "alone", "ranks");
    }
    folder_remove(&at);
}

static void bad_lists_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"cpu:0",  "cpu:9", "cpu:",    "cpu",     "cuda:3-1", "cuda:0-8",
                                      "cuda:x", "gpu:2", "cuda:0,", "cpu:2,3", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(command("generate " REQUEST " --devices '%s'", bad[i]), 64);
        assert_one_line();
        assert_printed("--devices");
    }
    assert_int_equal(command("generate " REQUEST " --devices cpu:2 --device cpu"), 64);
    assert_one_line();
    assert_int_not_equal(command("rank"), 0);
}

/* A child of `parent` that runs "rank"; 0: none. Found in /proc: nothing else of this user is touched. */
static pid_t find_rank(pid_t parent)
{
    pid_t found = 0;
    DIR *listing = opendir("/proc");
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char path[300], line[512] = "";
        int process, above;
        if (!isdigit((unsigned char)entry->d_name[0])) continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(line, sizeof line, file) && strrchr(line, ')') && sscanf(line, "%d", &process) == 1 &&
            sscanf(strrchr(line, ')') + 1, " %*c %d", &above) == 1 && above == parent)
            found = process;
        fclose(file);
    }
    if (listing) closedir(listing);
    return found;
}

/* Runs a generation on three ranks and sends `number` to one of them after `delay_ms`; the file must be the same. */
static void disturb(const folder *at, int number, int delay_ms)
{
    const struct timespec nap = {.tv_sec = delay_ms / 1000, .tv_nsec = delay_ms % 1000 * 1000000L};
    const pid_t process = fork();
    if (process == 0) {
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        execl(KN_KINORA, "kinora", "generate", "--model", MODEL, "--prompt", "a red ball", "--size", "64x64",
              "--frames", "9", "--steps", "6", "--seed", "7", "--devices", "cpu:3", "--threads", "1", "-o",
              folder_file(at, "disturbed-%d.png"), (char *)NULL);
        _exit(127);
    }
    pid_t rank = 0;
    for (int i = 0; i < 2000 && rank == 0; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        rank = find_rank(process);
    }
    nanosleep(&nap, NULL);
    if (rank > 0) kill(rank, number); /* it may have ended: then this run was not disturbed */
    int status;
    assert_int_equal(waitpid(process, &status, 0), process);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_same_frames(at, "alone", "disturbed");
}

static void lost_ranks_are_replaced(void **state)
{
    (void)state;
    const folder at = folder_create();
    generate_alone(&at);
    for (int delay = 0; delay <= 320; delay += 80) disturb(&at, SIGKILL, delay);
    disturb(&at, SIGSTOP, 500);
    folder_remove(&at);
}

static void the_scaling_curve_is_printed(void **state)
{
    (void)state;
    assert_int_equal(command("bench --devices 1,2,3 --model '" MODEL "' --size 64x64 --frames 5 --steps 3"), 0);
    assert_printed("+0.00 %");
    assert_int_equal(command("bench --devices 1,9"), 64);
    assert_one_line();
    assert_int_equal(command("bench --devices ''"), 64);
    assert_one_line();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_lists_are_refused),
        cmocka_unit_test(ranks_write_the_same_file),
        cmocka_unit_test(the_scaling_curve_is_printed),
        cmocka_unit_test(lost_ranks_are_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
