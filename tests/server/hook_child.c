/* SPDX-License-Identifier: Apache-2.0
 *
 * The asking process on its own, against receivers of tests/server/receiver.h: what it prints, and that it ends with a
 * failure whenever there is no answer of 200. The verdicts are moderation.c's; tests/clients asks whole services. */
#define _GNU_SOURCE
#include <fcntl.h>

#include "base/mem.h"
#include "server/hook_child.h"
#include "server/json.h"
#include "tests/server/receiver.h"

static const char question[] = "{\"version\":1,\"stage\":\"prompt\",\"prompt\":\"a \\u00e9 ball\"}\n";

typedef struct outcome {
    int status;
    char output[4096];
} outcome;

/* kn_hook_main with this input, in a process of its own. */
static outcome run_hook(const char *configuration, const char *asked)
{
    outcome out = {0};
    int in[2], back[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(back), 0);
    const pid_t process = fork();
    if (process == 0) {
        char *argv[] = {(char *)(uintptr_t) "hook", NULL};
        dup2(in[0], STDIN_FILENO);
        dup2(back[1], STDOUT_FILENO);
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, STDERR_FILENO);
        close(in[1]);
        close(back[0]);
        _exit(kn_hook_main(1, argv));
    }
    close(in[0]);
    close(back[1]);
    dprintf(in[1], "%s%s", configuration, asked);
    close(in[1]);
    size_t count = 0;
    for (ssize_t got; (got = read(back[0], out.output + count, sizeof out.output - 1 - count)) > 0;)
        count += (size_t)got;
    close(back[0]);
    assert_int_equal(waitpid(process, &out.status, 0), process);
    assert_true(WIFEXITED(out.status));
    out.status = WEXITSTATUS(out.status);
    return out;
}

static const char *configure(char line[512], const char *scheme, int port, const char *path, const char *allow)
{
    snprintf(line, 512, "{\"url\":\"%s://127.0.0.1:%d%s\",\"ca\":\"\",\"time_limit_ms\":2000,\"allow\":[%s]}\n", scheme,
             port, path, allow);
    return line;
}

static void test_a_service_is_asked(void **state)
{
    (void)state;
    receiver_seen *seen = receiver_memory();
    receiver r = receiver_start(seen, NULL);
    char line[512], allow[64];
    snprintf(allow, sizeof allow, "\"127.0.0.1:%d\"", r.port);
    const outcome good = run_hook(configure(line, "http", r.port, "/ok", allow), question);
    assert_int_equal(good.status, 0);
    assert_int_equal(atomic_load(&seen->requests), 1);
    assert_non_null(strstr(seen->request, "POST /ok HTTP/1.1\r\n"));
    assert_non_null(strcasestr(seen->request, "\r\ncontent-type: application/json\r\n"));
    const char *body = strstr(seen->request, "\r\n\r\n");
    assert_non_null(body);
    json_t *posted = json_loads(body + 4, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(posted, "prompt")), "a \xc3\xa9 ball");
    json_decref(posted);
    receiver_stop(&r);
}

static void test_every_other_end_is_a_failure(void **state)
{
    (void)state;
    static const char *const paths[] = {"/500",           "/404",     "/204",     "/410",     "/redirect",
                                        "/redirect-home", "/cut",     "/nothing", "/garbage", "/old",
                                        "/hang",          "/trickle", "/huge",    "/headers"};
    receiver_seen *seen = receiver_memory();
    receiver r = receiver_start(seen, NULL);
    char line[512], allow[64];
    snprintf(allow, sizeof allow, "\"127.0.0.1:%d\"", r.port);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        const outcome o = run_hook(configure(line, "http", r.port, paths[i], allow), question);
        if (o.status == 0) fail_msg("%s: taken for an answer: %s", paths[i], o.output);
        assert_string_equal(o.output, "");
    }
    const int asked = atomic_load(&seen->requests);
    assert_int_not_equal(run_hook(configure(line, "http", r.port, "/ok", ""), question).status, 0); /* not listed */
    assert_int_not_equal(run_hook(configure(line, "https", r.port, "/ok", ""), question).status, 0);
    assert_int_equal(atomic_load(&seen->requests), asked); /* nothing was sent there */
    assert_int_not_equal(run_hook("", question).status, 0);
    assert_int_not_equal(run_hook("no configuration\n", question).status, 0);
    assert_int_not_equal(run_hook("{\"url\":7}\n", question).status, 0);
    assert_int_not_equal(run_hook(configure(line, "http", r.port, "/ok", allow), "no question").status, 0);
    receiver_stop(&r);
}

static void test_urls(void **state)
{
    (void)state;
    kn_webhook_url url;
    static const char *const listed[] = {"localhost:9000", "10.0.0.7:8080"};
    assert_int_equal(kn_hook_url_parse(&url, "https://moderation.example/v1?key=x", NULL, 0), KN_OK);
    assert_int_equal(kn_hook_url_parse(&url, "http://localhost:9000/check", listed, 2), KN_OK);
    assert_int_equal(kn_hook_url_parse(&url, "http://10.0.0.7:8080/", listed, 2), KN_OK);
    assert_int_equal(kn_hook_url_parse(&url, "http://moderation.example/", listed, 2), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "moderation-allow"));
    assert_int_equal(kn_hook_url_parse(&url, "https://169.254.169.254/", listed, 2), KN_INVALID);
    assert_int_equal(kn_hook_url_parse(&url, "http://localhost:9001/check", listed, 2), KN_INVALID);
    assert_int_equal(kn_hook_url_parse(&url, "https://user@moderation.example/", NULL, 0), KN_INVALID);
}

int main(void)
{
    kn_json_use_kn_alloc();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_service_is_asked),
        cmocka_unit_test(test_every_other_end_is_a_failure),
        cmocka_unit_test(test_urls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
