/* SPDX-License-Identifier: Apache-2.0
 *
 * From the start of a process to its first denoise slice: runs `kinora generate
 * --json` of this program on a small request and notes when the line arrives that
 * says the text slice is done, which is when the first denoise slice begins. What
 * counts is all of it: loading the program, mapping and checking the weights,
 * opening the video encoder, the text. */
#define _XOPEN_SOURCE 700
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "benchmarks/bench.h"

extern char **environ;

enum { LINE_BYTES = 8192, ARGUMENTS_MAX = 32, NUMBER_BYTES = 16 };

typedef struct startup_bench {
    const kn_bench_settings *settings;
    const char *output; /* the video nobody keeps */
    char threads[NUMBER_BYTES];
    double to_text;    /* seconds until the text slice was done, of the last run */
    double to_denoise; /* and until the first denoise slice was */
} startup_bench;

static void list_arguments(const startup_bench *u, const char *out[ARGUMENTS_MAX])
{
    const kn_bench_settings *s = u->settings;
    static const char *const fixed[] = {"kinora", "generate", "--json",   "--prompt", "a red ball", "--seed", "1",
                                        "--size", "32x32",    "--frames", "5",        "--steps",    "1"};
    int n = 0;
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) out[n++] = fixed[i];
    const char *const pairs[][2] = {
        {"--model", s->model},
        {"--output", u->output},
        {"--device", s->device},
        {"--isa", s->isa},
        {"--threads", s->threads ? u->threads : NULL},
        {"--precision", s->precision == KN_PRECISION_AUTO      ? NULL
                        : s->precision == KN_PRECISION_FLOAT32 ? "float32"
                                                               : "bfloat16"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        for (int j = 0; pairs[i][1] && j < 2; j++) out[n++] = pairs[i][j];
    out[n] = NULL;
}

static kn_status start_child(const startup_bench *u, pid_t *child, int *output)
{
    const char *arguments[ARGUMENTS_MAX];
    posix_spawn_file_actions_t actions;
    int ends[2];
    list_arguments(u, arguments);
    if (pipe(ends) != 0) return kn_fail(KN_IO, "no pipe for a child process");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    const int failed = posix_spawn(child, "/proc/self/exe", &actions, NULL, (char **)(uintptr_t)arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    *output = ends[0];
    if (!failed) return KN_OK;
    close(ends[0]);
    return kn_fail(KN_IO, "cannot start a child process: %s", strerror(failed));
}

static kn_status watch_child(startup_bench *u, int output, int64_t start)
{
    char line[LINE_BYTES];
    bool text = false, denoise = false;
    FILE *stream = fdopen(output, "r");
    if (!stream) {
        close(output);
        return kn_fail(KN_IO, "cannot read from a child process");
    }
    while (fgets(line, sizeof line, stream)) {
        const double seconds = kn_clock_seconds(kn_clock_ns() - start);
        if (!strstr(line, "\"event\":\"slice\"")) continue;
        if (!text && strstr(line, "\"kind\":\"text\"")) {
            text = true;
            u->to_text = seconds;
        }
        if (!denoise && strstr(line, "\"kind\":\"denoise\"")) {
            denoise = true;
            u->to_denoise = seconds;
        }
    }
    fclose(stream);
    return text && denoise ? KN_OK : kn_fail(KN_UNAVAILABLE, "a child process ended before its first denoise slice");
}

static kn_status run_child(startup_bench *u)
{
    kn_status st = KN_OK;
    pid_t child;
    int output, status = 0;
    const int64_t start = kn_clock_ns();
    KN_TRY(start_child(u, &child, &output));
    st = watch_child(u, output, start);
    waitpid(child, &status, 0);
    if (st == KN_OK && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        st = kn_fail(KN_UNAVAILABLE, "kinora generate failed in a child process");
fail:
    return st;
}

static kn_status bench_children(kn_bench *b, startup_bench *u)
{
    kn_status st = KN_OK;
    kn_bench_row row = {.test = "process start to first denoise slice", .repeat = b->settings->repeat};
    double first_end = 0.0;
    KN_TRY(run_child(u)); /* brings the files into the page cache */
    for (int32_t i = 0; i < b->settings->repeat; i++) {
        KN_TRY(run_child(u));
        if (i > 0 && u->to_text >= row.seconds) continue;
        row.seconds = row.best_seconds = u->to_text;
        first_end = u->to_denoise;
    }
    snprintf(row.note, sizeof row.note, "best of %d; first slice done at %.4f s; 32x32, 5 frames", row.repeat,
             first_end);
    row.extra = json_pack("{s:s, s:f}", "kind", "startup", "first_slice_done_seconds", first_end);
    KN_TRY(kn_bench_put(b, &row));
fail:
    return st;
}

kn_status kn_bench_startup(kn_bench *b)
{
    kn_status st = KN_OK;
    const char *root = getenv("TMPDIR");
    startup_bench u = {.settings = b->settings};
    char *folder = kn_format("%s/kinora-bench-XXXXXX", root ? root : "/tmp"), *output = NULL;
    bool made = false;
    snprintf(u.threads, sizeof u.threads, "%d", b->settings->threads);
    if (!folder) KN_TRY(KN_NOMEM);
    if (!mkdtemp(folder)) KN_TRY(kn_fail(KN_IO, "%s: cannot make a temporary folder", folder));
    made = true;
    output = kn_format("%s/out.mp4", folder);
    if (!output) KN_TRY(KN_NOMEM);
    u.output = output;
    KN_TRY(bench_children(b, &u));
fail:
    if (output) unlink(output);
    if (made) rmdir(folder);
    kn_free(output);
    kn_free(folder);
    return st;
}
