/* SPDX-License-Identifier: Apache-2.0
 *
 * Hooks are shell scripts written here. Timers guard against hanging only. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/moderation.h"

static char folder[] = "/tmp/kinora-hooks-XXXXXX";
static struct event_base *base;

static const char *below(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* Writes <folder>/hook; %F in the script stands for the folder. */
static const char *script(const char *body)
{
    const char *path = below("hook");
    unlink(path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("#!/bin/sh\n", file);
    for (const char *p = body; *p; p++) {
        if (p[0] == '%' && p[1] == 'F')
            fputs(folder, file), p++;
        else
            fputc(*p, file);
    }
    fclose(file);
    assert_int_equal(chmod(path, 0700), 0);
    return path;
}

static kn_moderation *hook(const char *body, kn_moderation_options options)
{
    kn_moderation *m = NULL;
    const char *const argv[] = {script(body), "one", "two words", NULL};
    options.hooks[KN_MODERATION_PROMPT] = argv;
    options.hooks[KN_MODERATION_OUTPUT] = argv;
    if (!options.time_limit_ms) options.time_limit_ms = 30000;
    assert_int_equal(kn_moderation_create(&m, base, &options), KN_OK);
    return m;
}

typedef struct heard {
    int calls;
    kn_moderation_verdict verdict;
    kn_moderation *again; /* ask once more from the callback */
} heard;

static const kn_moderation_subject subject = {.stage = KN_MODERATION_PROMPT,
                                              .job_id = "video_00112233445566778899aabbccddeeff",
                                              .tenant = "acme",
                                              .model = "demo",
                                              .prompt = "a \"red\" ball\n\xc3\xa9 \x01"};

static void on_verdict(void *context, const kn_moderation_verdict *verdict)
{
    heard *h = context;
    uint64_t ticket;
    h->calls++;
    h->verdict = *verdict;
    kn_moderation *again = h->again;
    h->again = NULL;
    if (again) assert_int_equal(kn_moderation_ask(again, &subject, on_verdict, h, &ticket), KN_OK);
}

static uint64_t ask(kn_moderation *m, heard *h)
{
    uint64_t ticket = 0;
    int before = h->calls;
    assert_int_equal(kn_moderation_ask(m, &subject, on_verdict, h, &ticket), KN_OK);
    assert_int_equal(h->calls, before); /* never from inside the call */
    assert_true(ticket != 0);
    return ticket;
}

static void give_up_waiting(evutil_socket_t descriptor, short what, void *context)
{
    (void)descriptor, (void)what;
    *(bool *)context = true;
}

/* Turns the loop until the count is reached or nothing has come for a minute. */
static void turn_until(const int *count, int wanted)
{
    bool late = false;
    struct event *guard = evtimer_new(base, give_up_waiting, &late);
    event_add(guard, &(struct timeval){60, 0});
    while (*count < wanted && !late) event_base_loop(base, EVLOOP_ONCE);
    event_free(guard);
    assert_int_equal(*count, wanted);
}

static void turn_until_idle(kn_moderation *m)
{
    for (int i = 0; i < 6000 && kn_moderation_running(m) + kn_moderation_queued(m) > 0; i++) {
        event_base_loop(base, EVLOOP_NONBLOCK);
        usleep(10000);
    }
    assert_int_equal(kn_moderation_running(m), 0);
    assert_int_equal(kn_moderation_queued(m), 0);
}

static kn_moderation_verdict verdict_of(const char *body, kn_moderation_options options)
{
    heard h = {0};
    kn_moderation *m = hook(body, options);
    ask(m, &h);
    turn_until(&h.calls, 1);
    turn_until_idle(m);
    assert_int_equal(h.calls, 1);
    kn_moderation_destroy(&m);
    return h.verdict;
}

static void a_hook_allows_and_blocks(void **state)
{
    (void)state;
    kn_moderation_verdict v = verdict_of("echo '{\"verdict\": \"allow\"}'", (kn_moderation_options){0});
    assert_true(v.allowed);
    assert_false(v.failed);
    assert_string_equal(v.reason, "");
    assert_true(v.elapsed_ns > 0);
    v = verdict_of("echo '{\"verdict\": \"block\", \"reason\": \"violence.graphic\"}'", (kn_moderation_options){0});
    assert_false(v.allowed);
    assert_false(v.failed);
    assert_string_equal(v.reason, "violence.graphic");
    v = verdict_of("echo '{\"verdict\": \"allow\", \"reason\": \"reviewed\"}'",
                   (kn_moderation_options){.fail_open = true});
    assert_true(v.allowed);
    assert_string_equal(v.reason, "reviewed");
    v = verdict_of("echo '{\"verdict\": \"block\", \"reason\": \"x\"}'", (kn_moderation_options){.fail_open = true});
    assert_false(v.allowed); /* a verdict is a verdict */
}

static const char *read_file(const char *name, char *text, size_t bytes)
{
    FILE *file = fopen(below(name), "r");
    assert_non_null(file);
    text[fread(text, 1, bytes - 1, file)] = '\0';
    fclose(file);
    return text;
}

/* Input, arguments, environment, descriptors and signals as the header says. */
static void a_hook_sees_the_question_and_little_else(void **state)
{
    (void)state;
    kn_moderation *m = hook("cat > %F/seen; cat /dev/stdin > /dev/null; echo \"$#:$1:$2\" > %F/arguments\n"
                            "tr '\\0' '\\n' < /proc/self/environ > %F/environment; ls /proc/self/fd > %F/fds\n"
                            "grep -E 'SigIgn' /proc/self/status > %F/signals; echo secret >&2\n"
                            "(echo x >> /dev/stdin) 2> /dev/null && exit 1\n"
                            "echo '{\"verdict\":\"allow\"}'",
                            (kn_moderation_options){0});
    setenv("KINORA_TEST_SECRET", "s3cret", 1);
    signal(SIGPIPE, SIG_IGN); /* as the HTTP server does */
    heard h = {0};
    uint64_t ticket;
    kn_moderation_subject output = subject;
    output.stage = KN_MODERATION_OUTPUT;
    output.file = "/srv/v.mp4";
    assert_int_equal(kn_moderation_ask(m, &output, on_verdict, &h, &ticket), KN_OK);
    turn_until(&h.calls, 1);
    assert_true(h.verdict.allowed);
    json_t *seen = json_load_file(below("seen"), 0, NULL);
    assert_non_null(seen);
    assert_int_equal(json_integer_value(json_object_get(seen, "version")), 1);
    assert_string_equal(json_string_value(json_object_get(seen, "stage")), "output");
    assert_string_equal(json_string_value(json_object_get(seen, "job")), subject.job_id);
    assert_string_equal(json_string_value(json_object_get(seen, "tenant")), "acme");
    assert_string_equal(json_string_value(json_object_get(seen, "model")), "demo");
    assert_string_equal(json_string_value(json_object_get(seen, "prompt")), subject.prompt);
    assert_string_equal(json_string_value(json_object_get(seen, "file")), "/srv/v.mp4");
    assert_int_equal(json_object_size(seen), 7);
    json_decref(seen);
    char text[4096];
    assert_string_equal(read_file("arguments", text, sizeof text), "2:one:two words\n");
    assert_null(strstr(read_file("environment", text, sizeof text), "s3cret"));
    assert_string_equal(read_file("fds", text, sizeof text), "0\n1\n2\n3\n"); /* 3 is ls's own */
    /* None of the 31 standard signals; the C library keeps two of its own for itself. */
    assert_memory_equal(read_file("signals", text, sizeof text), "SigIgn:\t", 8);
    assert_int_equal(strtoull(text + 8, NULL, 16) & 0x7fffffff, 0);
    kn_moderation_destroy(&m);
}

static void whatever_is_no_verdict_fails(void **state)
{
    (void)state;
    static const struct {
        const char *body, *reason;
    } cases[] = {
        {"exit 0", "hook_malformed"},
        {"echo allow", "hook_malformed"},
        {"echo '{}'", "hook_malformed"},
        {"echo '{\"verdict\":\"maybe\"}'", "hook_malformed"},
        {"echo '{\"verdict\":true}'", "hook_malformed"},
        {"echo '{\"verdict\":\"allow\",\"verdict\":\"block\"}'", "hook_malformed"},
        {"echo '{\"verdict\":\"allow\",\"score\":1}'", "hook_malformed"},
        {"echo '{\"verdict\":\"block\"}'", "hook_malformed"},
        {"echo '{\"verdict\":\"block\",\"reason\":\"\"}'", "hook_malformed"},
        {"echo '{\"verdict\":\"block\",\"reason\":\"Two words\"}'", "hook_malformed"},
        {"echo '{\"verdict\":\"block\",\"reason\":7}'", "hook_malformed"},
        {"echo '{\"verdict\":\"allow\"} {}'", "hook_malformed"},
        {"head -c 16385 /dev/zero | tr '\\0' ' '; sleep 600", "hook_malformed"},
        {"yes", "hook_malformed"},
        {"echo '{\"verdict\":\"allow\"}'; exit 1", "hook_failed"},
        {"echo '{\"verdict\":\"allow\"}'; kill -9 $$", "hook_failed"},
        {"exit 127", "hook_failed"},
    };
    for (int open = 0; open < 2; open++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            kn_moderation_verdict v = verdict_of(cases[i].body, (kn_moderation_options){.fail_open = open});
            assert_true(v.failed);
            assert_int_equal(v.allowed, open);
            assert_string_equal(v.reason, cases[i].reason);
        }
    }
    kn_moderation_verdict v = verdict_of("printf '{\"verdict\":\"allow\"}'; head -c 16365 /dev/zero | tr '\\0' ' '",
                                         (kn_moderation_options){0});
    assert_true(v.allowed); /* the limit itself */
    char body[256];
    for (int bytes = KN_MODERATION_REASON_BYTES - 1; bytes <= KN_MODERATION_REASON_BYTES; bytes++) {
        snprintf(body, sizeof body, "echo '{\"verdict\":\"block\",\"reason\":\"%0*d\"}'", bytes, 0);
        v = verdict_of(body, (kn_moderation_options){0});
        assert_int_equal(v.failed, bytes == KN_MODERATION_REASON_BYTES);
    }
}

static bool alive(const char *file)
{
    char text[32];
    pid_t process = (pid_t)strtol(read_file(file, text, sizeof text), NULL, 10);
    assert_true(process > 1);
    char path[64], line[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", process);
    FILE *f = fopen(path, "r");
    if (!f) return false;
    line[fread(line, 1, sizeof line - 1, f)] = '\0';
    fclose(f);
    const char *state = strrchr(line, ')');
    return state && state[2] != 'Z' && state[2] != 'X'; /* a zombie waits for init, not for us */
}

static void wait_until_dead(const char *file)
{
    for (int i = 0; i < 6000 && alive(file); i++) usleep(10000);
    assert_false(alive(file));
}

/* The limit kills the hook and what it started; TERM ignored or not. */
static void a_slow_hook_is_killed_with_its_children(void **state)
{
    (void)state;
    kn_moderation_verdict v = verdict_of("trap '' TERM; sleep 600 & echo $! > %F/child; echo $$ > %F/parent; wait",
                                         (kn_moderation_options){.time_limit_ms = 300});
    assert_true(v.failed);
    assert_false(v.allowed);
    assert_string_equal(v.reason, "hook_timeout");
    wait_until_dead("parent");
    wait_until_dead("child");
}

/* One that leaves a child behind, which holds the output open, has answered when it ends. */
static void a_child_left_behind_does_not_hold_the_verdict_up(void **state)
{
    (void)state;
    kn_moderation_verdict v =
        verdict_of("sleep 600 & echo $! > %F/child; echo '{\"verdict\":\"allow\"}'", (kn_moderation_options){0});
    assert_true(v.allowed);
    assert_false(v.failed);
    wait_until_dead("child");
}

/* One that closes its output and stays has not. */
static void closing_the_output_is_not_ending(void **state)
{
    (void)state;
    kn_moderation_verdict v = verdict_of("echo '{\"verdict\":\"allow\"}'; exec >&-; sleep 600",
                                         (kn_moderation_options){.time_limit_ms = 300});
    assert_string_equal(v.reason, "hook_timeout");
}

static void concurrency_and_queue_are_bounded(void **state)
{
    (void)state;
    heard h = {0};
    uint64_t ticket;
    kn_moderation *m = hook("echo $$ >> %F/running; while [ ! -e %F/go ]; do sleep 0.02; done; "
                            "echo '{\"verdict\":\"allow\"}'",
                            (kn_moderation_options){.running_max = 2, .queue_max = 3});
    for (int i = 0; i < 3; i++) ask(m, &h);
    assert_int_equal(kn_moderation_ask(m, &subject, on_verdict, &h, &ticket), KN_UNAVAILABLE); /* 3, and one more */
    assert_int_equal(kn_moderation_queued(m), 3);
    event_base_loop(base, EVLOOP_NONBLOCK);
    assert_int_equal(kn_moderation_running(m), 2);
    assert_int_equal(kn_moderation_queued(m), 1);
    for (int i = 0; i < 2; i++) ask(m, &h);
    assert_int_equal(kn_moderation_ask(m, &subject, on_verdict, &h, &ticket), KN_UNAVAILABLE);
    fclose(fopen(below("go"), "w"));
    turn_until(&h.calls, 5);
    turn_until_idle(m);
    unlink(below("go"));
    kn_moderation_destroy(&m);
}

static void a_withdrawn_question_is_not_answered(void **state)
{
    (void)state;
    heard first = {0}, waiting = {0}, last = {0};
    kn_moderation *m = hook("echo $$ > %F/parent; [ -e %F/go ] || sleep 600; echo '{\"verdict\":\"allow\"}'",
                            (kn_moderation_options){.running_max = 1});
    unlink(below("parent"));
    uint64_t a = ask(m, &first), b = ask(m, &waiting);
    event_base_loop(base, EVLOOP_NONBLOCK);
    for (int i = 0; i < 6000 && access(below("parent"), F_OK) != 0; i++) usleep(10000);
    usleep(20000);
    ask(m, &last);
    assert_int_equal(kn_moderation_running(m), 1);
    fclose(fopen(below("go"), "w"));
    kn_moderation_withdraw(m, b);
    kn_moderation_withdraw(m, b);
    kn_moderation_withdraw(m, 0);
    kn_moderation_withdraw(m, 999);
    assert_int_equal(kn_moderation_queued(m), 1);
    kn_moderation_withdraw(m, a);
    turn_until(&last.calls, 1);
    turn_until_idle(m);
    assert_true(last.verdict.allowed);
    assert_int_equal(first.calls, 0);
    assert_int_equal(waiting.calls, 0);
    unlink(below("go"));
    kn_moderation_destroy(&m);
}

static void a_callback_may_ask_again(void **state)
{
    (void)state;
    heard h = {0};
    kn_moderation *m = hook("echo '{\"verdict\":\"allow\"}'", (kn_moderation_options){.running_max = 1});
    h.again = m;
    ask(m, &h);
    turn_until(&h.calls, 2);
    turn_until_idle(m);
    kn_moderation_destroy(&m);
}

static int descriptors(void)
{
    int count = 0;
    DIR *all = opendir("/proc/self/fd");
    while (readdir(all)) count++;
    closedir(all);
    return count;
}

static void nothing_is_left_behind(void **state)
{
    (void)state;
    int before = descriptors();
    heard h = {0};
    kn_moderation *m = hook("echo $$ > %F/parent; sleep 600", (kn_moderation_options){.running_max = 1});
    unlink(below("parent"));
    ask(m, &h);
    ask(m, &h);
    event_base_loop(base, EVLOOP_NONBLOCK);
    for (int i = 0; i < 6000 && access(below("parent"), F_OK) != 0; i++) usleep(10000);
    usleep(20000);
    kn_moderation_destroy(&m); /* with one running and one waiting */
    kn_moderation_destroy(&m);
    wait_until_dead("parent");
    assert_int_equal(h.calls, 0);
    for (int i = 0; i < 20; i++) verdict_of("echo '{\"verdict\":\"allow\"}'", (kn_moderation_options){0});
    assert_int_equal(descriptors(), before);
}

static void a_hook_that_cannot_start(void **state)
{
    (void)state;
    heard h = {0};
    kn_moderation *m = hook("exit 0", (kn_moderation_options){0});
    assert_int_equal(unlink(below("hook")), 0);
    for (int i = 0; i < 10; i++) ask(m, &h);
    turn_until(&h.calls, 10);
    assert_true(h.verdict.failed);
    assert_false(h.verdict.allowed);
    assert_string_equal(h.verdict.reason, "hook_failed");
    assert_int_equal(kn_moderation_running(m), 0);
    kn_moderation_destroy(&m);
}

static void hooks_are_checked_at_start(void **state)
{
    (void)state;
    kn_moderation *m = NULL;
    const char *path = script("exit 0");
    const char *many[KN_MODERATION_ARGUMENTS + 2] = {path};
    for (int i = 1; i <= KN_MODERATION_ARGUMENTS; i++) many[i] = "x";
    const char *const relative[] = {"hook", NULL}, *const missing[] = {below("nothing"), NULL};
    const char *const directory[] = {folder, NULL}, *const none[] = {NULL};
    const char *const *const bad[] = {relative, missing, directory, none, many};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(kn_moderation_create(&m, base, &(kn_moderation_options){.hooks = {NULL, bad[i]}}), KN_INVALID);
    many[KN_MODERATION_ARGUMENTS] = NULL;
    assert_int_equal(kn_moderation_create(&m, base, &(kn_moderation_options){.hooks = {NULL, many}}), KN_OK);
    assert_true(kn_moderation_active(m, KN_MODERATION_OUTPUT));
    assert_false(kn_moderation_active(m, KN_MODERATION_PROMPT));
    uint64_t ticket;
    heard h = {0};
    assert_int_equal(kn_moderation_ask(m, &subject, on_verdict, &h, &ticket), KN_INVALID); /* no hook at this stage */
    kn_moderation_destroy(&m);
    chmod(path, 0600);
    if (geteuid() != 0 || access(path, X_OK) != 0) {
        const char *const plain[] = {path, NULL};
        assert_int_equal(kn_moderation_create(&m, base, &(kn_moderation_options){.hooks = {plain, NULL}}), KN_INVALID);
    }
}

static void long_prompts_pass(void **state)
{
    (void)state;
    heard h = {0};
    uint64_t ticket;
    kn_moderation *m = hook("[ $(wc -c) -gt 262144 ] && echo '{\"verdict\":\"allow\"}'", (kn_moderation_options){0});
    char *prompt = kn_alloc(KN_MODERATION_PROMPT_BYTES + 2);
    memset(prompt, 1, KN_MODERATION_PROMPT_BYTES + 1); /* six bytes each in JSON */
    kn_moderation_subject longest = subject;
    longest.prompt = prompt;
    assert_int_equal(kn_moderation_ask(m, &longest, on_verdict, &h, &ticket), KN_INVALID);
    prompt[KN_MODERATION_PROMPT_BYTES] = '\0';
    assert_int_equal(kn_moderation_ask(m, &longest, on_verdict, &h, &ticket), KN_OK);
    kn_free(prompt);
    turn_until(&h.calls, 1);
    assert_true(h.verdict.allowed);
    kn_moderation_destroy(&m);
}

static void no_memory_blocks_or_refuses(void **state)
{
    (void)state;
    kn_moderation *m = hook("echo '{\"verdict\":\"allow\"}'", (kn_moderation_options){0});
    for (uint64_t n = 1;; n++) {
        heard h = {0};
        uint64_t ticket, bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_moderation_ask(m, &subject, on_verdict, &h, &ticket);
        if (st == KN_OK) turn_until(&h.calls, 1);
        kn_mem_fail_at(0);
        turn_until_idle(m);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (st == KN_OK && !h.verdict.failed) break;
        if (st == KN_OK) assert_false(h.verdict.allowed);
        assert_in_range(n, 1, 50);
    }
    kn_moderation_destroy(&m);
}

static int begin(void **state)
{
    (void)state;
    base = event_base_new();
    return base && mkdtemp(folder) ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    static const char *const files[] = {"hook",    "seen",  "arguments", "environment", "fds",
                                        "signals", "child", "parent",    "running",     "go"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) unlink(below(files[i]));
    event_base_free(base);
    libevent_global_shutdown();
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hook_allows_and_blocks),
        cmocka_unit_test(a_hook_sees_the_question_and_little_else),
        cmocka_unit_test(whatever_is_no_verdict_fails),
        cmocka_unit_test(a_slow_hook_is_killed_with_its_children),
        cmocka_unit_test(a_child_left_behind_does_not_hold_the_verdict_up),
        cmocka_unit_test(closing_the_output_is_not_ending),
        cmocka_unit_test(concurrency_and_queue_are_bounded),
        cmocka_unit_test(a_withdrawn_question_is_not_answered),
        cmocka_unit_test(a_callback_may_ask_again),
        cmocka_unit_test(nothing_is_left_behind),
        cmocka_unit_test(a_hook_that_cannot_start),
        cmocka_unit_test(hooks_are_checked_at_start),
        cmocka_unit_test(long_prompts_pass),
        cmocka_unit_test(no_memory_blocks_or_refuses),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
