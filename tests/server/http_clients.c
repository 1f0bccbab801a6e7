/* SPDX-License-Identifier: Apache-2.0
 *
 * Clients written by others: curl and Python's standard library, over clear text and TLS. A client that is not
 * installed is skipped. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#include <fcntl.h>

#include "tests/server/tls_files.h"

enum { FILE_BYTES = 3 << 20, OUTPUT_BYTES = 8192 };

static folder files;

static void serve(running *r, kn_http_exchange *exchange)
{
    const kn_http_file file = {.fd = open(folder_file(&files, "video"), O_RDONLY | O_CLOEXEC),
                               .bytes = FILE_BYTES,
                               .content_type = "video/mp4",
                               .etag = "\"v1\"",
                               .ranges = true};
    (void)r;
    assert_int_equal(kn_http_reply_file(exchange, &file), KN_OK);
}

static int make_files(void **state)
{
    char *content = malloc(FILE_BYTES);
    (void)state;
    if (!content) return -1;
    for (size_t i = 0; i < FILE_BYTES; i++) content[i] = (char)(i * 2654435761u >> 9);
    files = folder_create();
    folder_write(&files, "video", content, FILE_BYTES);
    make_certificate(&files, "live", 1, 3600, NULL);
    free(content);
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    folder_remove(&files);
    return 0;
}

/* Runs a command line; what it printed, in a static buffer. */
static const char *run(const char *format, ...) KN_PRINTF(1, 2);

static const char *run(const char *format, ...)
{
    static char output[OUTPUT_BYTES];
    char command[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    const size_t bytes = fread(output, 1, sizeof output - 1, pipe);
    output[bytes] = '\0';
    const int status = pclose(pipe);
    if (status != 0) fail_msg("%s\nended with %d: %s", command, status, output);
    return output;
}

static bool has(const char *program)
{
    char command[128];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
    FILE *pipe = popen(command, "r");
    return pipe && pclose(pipe) == 0;
}

#define CURL "cd '%s' && curl -sS --max-time 60 -w '%%{http_code}' "

static void curl_uploads_downloads_and_resumes(void **state)
{
    (void)state;
    if (!has("curl")) skip();
    running r = {.request = serve};
    start_server(&r);
    const char *in = files.path;
    const unsigned port = r.port;
    assert_string_equal(run(CURL "http://127.0.0.1:%u/hello", in, port), "hello\n200");
    assert_string_equal(run(CURL "--http1.0 http://127.0.0.1:%u/hello", in, port), "hello\n200");
    assert_string_equal(run(CURL "-o back -H 'Expect: 100-continue' --expect100-timeout 60 --data-binary @video "
                                 "http://127.0.0.1:%u/echo && cmp back video",
                            in, port),
                        "200");
    assert_string_equal(run(CURL "-o back -H 'Transfer-Encoding: chunked' --data-binary @video "
                                 "http://127.0.0.1:%u/echo && cmp back video",
                            in, port),
                        "200");
    /* A body that is refused by its length is never sent: curl waits for the final answer. */
    assert_string_equal(run(CURL "-o /dev/null -H 'Expect: 100-continue' --expect100-timeout 60 --data-binary @video "
                                 "http://127.0.0.1:%u/other",
                            in, port),
                        "413");
    assert_string_equal(run(CURL "-o back http://127.0.0.1:%u/video && cmp back video", in, port), "200");
    assert_string_equal(run(CURL "-o part --range 1000-1999 http://127.0.0.1:%u/video && "
                                 "head -c 2000 video | tail -c 1000 | cmp - part",
                            in, port),
                        "206");
    assert_string_equal(run("cd '%s' && head -c 1000000 video >part && curl -sS --max-time 60 -w '%%{http_code}' -C - "
                            "-o part http://127.0.0.1:%u/video && cmp part video",
                            in, port),
                        "206");
    assert_string_equal(run(CURL "-o /dev/null -H 'If-None-Match: \"v1\"' http://127.0.0.1:%u/video", in, port), "304");
    assert_string_equal(run(CURL "-o /dev/null -I http://127.0.0.1:%u/video", in, port), "200");
    assert_string_equal(
        run(CURL "-o one http://127.0.0.1:%u/hello -o two http://127.0.0.1:%u/video && cmp two video", in, port, port),
        "200200");
    stop_server(&r);
}

static void curl_speaks_tls(void **state)
{
    (void)state;
    if (!has("curl")) skip();
    running r = {.request = serve};
    const kn_tls_params params = {.certificate = folder_file(&files, "live.crt"),
                                  .key = folder_file(&files, "live.key")};
    assert_int_equal(kn_tls_create(&r.params.tls, &params), KN_OK);
    start_server(&r);
    const char *in = files.path;
    const unsigned port = r.port;
    assert_string_equal(run(CURL "--cacert live.crt https://localhost:%u/hello", in, port), "hello\n200");
    assert_string_equal(run(CURL "--cacert live.crt --tls-max 1.2 https://127.0.0.1:%u/hello", in, port), "hello\n200");
    assert_string_equal(run(CURL "--cacert live.crt -o back https://localhost:%u/video && cmp back video", in, port),
                        "200");
    assert_string_equal(run(CURL "--cacert live.crt -o back --data-binary @video https://localhost:%u/echo && "
                                 "cmp back video",
                            in, port),
                        "200");
    stop_server(&r);
    kn_tls_destroy(&r.params.tls);
}

static const char script[] =
    "import http.client, sys\n"
    "c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=60)\n"
    "data = open('video', 'rb').read()\n"
    "def ask(method, path, body=None, headers={}, **more):\n"
    "    c.request(method, path, body, headers, **more)\n"
    "    reply = c.getresponse()\n"
    "    return reply.status, reply.read(), reply\n"
    "assert ask('GET', '/hello')[:2] == (200, b'hello\\n')\n"
    "first = c.sock\n"
    "assert ask('POST', '/echo', data)[:2] == (200, data)\n"
    "pieces = (data[i:i + 10007] for i in range(0, len(data), 10007))\n"
    "assert ask('POST', '/echo', pieces, encode_chunked=True, headers={'Transfer-Encoding': 'chunked'})[:2] == "
    "(200, data)\n"
    "assert ask('GET', '/video', headers={'Range': 'bytes=-7'})[:2] == (206, data[-7:])\n"
    "status, body, reply = ask('HEAD', '/video')\n"
    "assert status == 200 and body == b'' and int(reply.headers['content-length']) == len(data)\n"
    "assert reply.headers['x-request-id'].startswith('req_')\n"
    "assert c.sock is first\n" /* one connection for all of it */
    "print('fine')\n";

static void python_keeps_one_connection(void **state)
{
    (void)state;
    if (!has("python3")) skip();
    running r = {.request = serve};
    folder_text(&files, "ask.py", script);
    start_server(&r);
    assert_string_equal(run("cd '%s' && python3 ask.py %u 2>&1", files.path, (unsigned)r.port), "fine\n");
    assert_int_equal(stats_of(&r).accepted, 1);
    stop_server(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(curl_uploads_downloads_and_resumes),
        cmocka_unit_test(curl_speaks_tls),
        cmocka_unit_test(python_keeps_one_connection),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
