/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's side of the notifier: what it takes, how much, and what becomes of deliveries when the child dies, hangs
 * or lies. Where the child has to misbehave it is a shell script. What a well-behaved one does with receivers is
 * tests/server/notify_child.c. */
#define _GNU_SOURCE
#include "server/notify.h"

#include <signal.h>

#include "base/mem.h"
#include "tests/engine/folder.h"
#include "tests/server/delivering.h"
#include "tests/server/receiver.h"

/* A notifier whose child is this script; descriptor 3 is the socket. */
static office *open_script(folder *at, const char *script, int32_t silence_s)
{
    char text[512];
    *at = folder_create();
    snprintf(text, sizeof text, "#!/bin/sh\n%s\n", script);
    folder_text(at, "child", text);
    assert_int_equal(chmod(folder_file(at, "child"), 0700), 0);
    return office_open((kn_notifier_params){.executable = folder_file(at, "child"), .silence_s = silence_s});
}

static void close_script(folder *at, office *o)
{
    office_close(o);
    folder_remove(at);
}

static void test_deliveries_that_are_never_taken(void **state)
{
    (void)state;
    folder at;
    office *o = open_script(&at, "exec cat <&3 >/dev/null", 0);
    kn_delivery d = {.id = 1,
                     .attempt = 1,
                     .url = "https://example.com/",
                     .secrets = &office_secret,
                     .secret_count = 1,
                     .event_id = "evt_1",
                     .body = "{}",
                     .body_bytes = 2};
    static char large[KN_WEBHOOK_BODY_MAX + 1];
    memset(large, ' ', sizeof large);
    const char *weak = "short";
    kn_delivery bad[7];
    for (int i = 0; i < 7; i++) bad[i] = d;
    bad[0].url = "http://example.com/";
    bad[1].url = "https://10.0.0.1/";
    bad[2].secrets = &weak;
    bad[3].secret_count = 0;
    bad[4].event_id = "evt.1";
    bad[5].body_bytes = 0;
    bad[6].body = large;
    bad[6].body_bytes = sizeof large;
    for (int i = 0; i < 7; i++)
        if (kn_notifier_send(o->notifier, &bad[i]) != KN_INVALID) fail_msg("%d was taken", i);
    assert_int_equal(kn_notifier_room(o->notifier), KN_NOTIFIER_QUEUE_MAX);
    bad[6].body_bytes--;
    assert_int_equal(kn_notifier_send(o->notifier, &bad[6]), KN_OK);
    assert_int_equal(kn_notifier_room(o->notifier), KN_NOTIFIER_QUEUE_MAX - 1);
    assert_int_equal(o->count, 0);
    close_script(&at, o);
}

static void test_queue_limits(void **state)
{
    (void)state;
    folder at;
    office *o = open_script(&at, "exec cat <&3 >/dev/null", 0);
    enum { HOSTS = KN_NOTIFIER_QUEUE_MAX / KN_NOTIFIER_HOST_QUEUE_MAX };
    char url[64];
    for (int h = 0; h < HOSTS; h++) {
        snprintf(url, sizeof url, "https://host%d.example/", h);
        for (int i = 0; i < KN_NOTIFIER_HOST_QUEUE_MAX; i++) assert_int_equal(office_send(o, h * 1000 + i, url), KN_OK);
        assert_int_equal(office_send(o, -1, url), KN_AGAIN);
        if (h < HOSTS - 1) assert_non_null(strstr(kn_fail_message(), "share"));
    }
    assert_int_equal(kn_notifier_room(o->notifier), 0);
    assert_int_equal(office_send(o, -1, "https://other.example/"), KN_AGAIN);
    assert_non_null(strstr(kn_fail_message(), "queue"));
    assert_int_equal(o->count, 0);
    close_script(&at, o);
}

static void assert_all_to_be_tried_again(const office *o, int count)
{
    for (int i = 0; i < count; i++) {
        const office_result *result = office_find(o, i);
        assert_int_equal(result->as.outcome, KN_WEBHOOK_FAILED);
        assert_int_equal(result->as.http_status, 0);
        assert_non_null(strstr(result->error, "restarted"));
    }
}

static void test_child_that_is_killed(void **state)
{
    (void)state;
    receiver r = receiver_start(receiver_memory(), NULL);
    char name[64], hang[128], ok[128];
    snprintf(name, sizeof name, "127.0.0.1:%d", r.port);
    snprintf(hang, sizeof hang, "http://%s/hang", name);
    snprintf(ok, sizeof ok, "http://%s/ok", name);
    const char *const allow[] = {name};
    office *o = office_open((kn_notifier_params){.policy = {.development = true, .allow = allow, .allow_count = 1}});
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 10; i++) assert_int_equal(office_send(o, i, hang), KN_OK);
        office_send(o, 10, ok); /* waits behind the four connections that hang */
        const int32_t killed = kn_notifier_process(o->notifier);
        assert_true(killed > 0);
        assert_int_equal(kill(killed, SIGKILL), 0);
        office_wait(o, 11);
        assert_all_to_be_tried_again(o, 11);
        o->count = 0;
        while (kn_notifier_room(o->notifier) == 0) event_base_loop(o->base, EVLOOP_ONCE);
        assert_int_not_equal(kn_notifier_process(o->notifier), killed);
        assert_int_equal(kn_notifier_restarts(o->notifier), round + 1);
        assert_int_equal(office_send(o, 99, ok), KN_OK);
        office_wait(o, 1);
        assert_int_equal(o->results[0].as.outcome, KN_WEBHOOK_DELIVERED);
        o->count = 0;
    }
    office_close(o);
    receiver_stop(&r);
    munmap(r.seen, sizeof *r.seen);
}

/* Whatever it says that it may not, it is replaced, and what it had is tried again. */
static void test_children_that_misbehave(void **state)
{
    (void)state;
    static const char *const scripts[] = {
        "sleep 0.3",                                        /* ends */
        "printf garbagegarbage >&3; sleep 60",              /* a length beyond the limit */
        "printf '\\000\\000\\000\\000' >&3; sleep 60",      /* a length of nothing */
        "printf '\\001\\000\\000\\000\\011' >&3; sleep 60", /* a type that does not exist */
        "printf '\\010\\000\\000\\000\\001\\000\\000\\000\\000\\000\\000\\000' >&3; sleep 60", /* a configuration */
        /* A result for ticket 7, which nobody gave: type, ticket, outcome, status, wait, an empty text. */
        ("printf '\\033\\000\\000\\000\\003\\007\\000\\000\\000\\000\\000\\000\\000\\000\\310\\000\\000\\000"
         "\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000' >&3; sleep 60"),
    };
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        folder at;
        office *o = open_script(&at, scripts[i], 0);
        assert_int_equal(office_send(o, 0, "https://example.com/"), KN_OK);
        office_wait(o, 1);
        assert_all_to_be_tried_again(o, 1);
        assert_int_equal(office_send(o, 1, "https://example.com/"), KN_AGAIN); /* none is there at this moment */
        assert_int_equal(kn_notifier_room(o->notifier), 0);
        assert_int_equal(kn_notifier_process(o->notifier), 0);
        while (kn_notifier_room(o->notifier) == 0) event_base_loop(o->base, EVLOOP_ONCE);
        assert_true(kn_notifier_restarts(o->notifier) >= 1);
        close_script(&at, o);
    }
}

static void test_child_that_is_silent(void **state)
{
    (void)state;
    folder at;
    office *o = open_script(&at, "exec cat <&3 >/dev/null", 1);
    assert_int_equal(office_send(o, 0, "https://example.com/"), KN_OK);
    office_wait(o, 1);
    assert_all_to_be_tried_again(o, 1);
    close_script(&at, o);
}

static void test_program_that_cannot_be_started(void **state)
{
    (void)state;
    struct event_base *base = event_base_new();
    kn_notifier *n = NULL;
    const kn_notifier_params params = {
        .base = base, .executable = "/nonexistent/kinora", .completed = office_completed};
    assert_int_equal(kn_notifier_create(&n, &params), KN_IO);
    assert_null(n);
    event_base_free(base);
}

static void test_allow_list_is_checked(void **state)
{
    (void)state;
    struct event_base *base = event_base_new();
    kn_notifier *n = NULL;
    const char *entries[KN_WEBHOOK_ALLOW_MAX + 1];
    for (size_t i = 0; i <= KN_WEBHOOK_ALLOW_MAX; i++) entries[i] = "127.0.0.1:80";
    kn_notifier_params params = {.base = base, .completed = office_completed, .policy = {.allow = entries}};
    params.policy.allow_count = KN_WEBHOOK_ALLOW_MAX + 1;
    assert_int_equal(kn_notifier_create(&n, &params), KN_INVALID);
    params.policy.allow_count = KN_WEBHOOK_ALLOW_MAX;
    assert_int_equal(kn_notifier_create(&n, &params), KN_OK);
    kn_notifier_destroy(&n);
    entries[3] = "127.0.0.1";
    assert_int_equal(kn_notifier_create(&n, &params), KN_INVALID);
    assert_null(n);
    kn_notifier_destroy(&n);
    event_base_free(base);
}

static void test_each_allocation_fails_in_turn(void **state)
{
    (void)state;
    struct event_base *base = event_base_new();
    const char *const entries[] = {"127.0.0.1:80", "localhost:81"};
    const kn_notifier_params params = {.base = base,
                                       .completed = office_completed,
                                       .ca_file = "/nonexistent",
                                       .policy = {.allow = entries, .allow_count = 2}};
    const uint64_t held = kn_mem_read().bytes;
    kn_status st = KN_NOMEM;
    for (uint64_t n = 1; st != KN_OK; n++) {
        kn_notifier *notifier = NULL;
        kn_mem_fail_at(n);
        st = kn_notifier_create(&notifier, &params);
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || st == KN_NOMEM);
        kn_notifier_destroy(&notifier);
        assert_int_equal(kn_mem_read().bytes, held);
    }
    event_base_free(base);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "notifier") == 0) return kn_notifier_main(argc - 1, argv + 1);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deliveries_that_are_never_taken),
        cmocka_unit_test(test_queue_limits),
        cmocka_unit_test(test_child_that_is_killed),
        cmocka_unit_test(test_children_that_misbehave),
        cmocka_unit_test(test_child_that_is_silent),
        cmocka_unit_test(test_program_that_cannot_be_started),
        cmocka_unit_test(test_allow_list_is_checked),
        cmocka_unit_test(test_each_allocation_fails_in_turn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
