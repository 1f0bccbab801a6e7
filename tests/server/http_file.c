/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies from files: ranges and preconditions on the wire, bounded memory, files that end early or must not be
 * served any more. */
#define _GNU_SOURCE
#include "tests/server/http_running.h"

#include <fcntl.h>

#include "tests/engine/folder.h"

enum { FILE_BYTES = 3 << 20 };

static char *content; /* FILE_BYTES */

/* What the handler answers with; the loop's after the start. */
typedef struct served {
    folder files;
    kn_http_file file; /* but for the descriptor */
    atomic_int done;
    atomic_int allow; /* windows still allowed; -1: all */
    kn_status status;
} served;

static void on_done(void *context)
{
    atomic_fetch_add(&((served *)context)->done, 1);
}

static bool is_allowed(void *context)
{
    served *s = context;
    return atomic_load(&s->allow) < 0 || atomic_fetch_sub(&s->allow, 1) > 0;
}

static void serve(running *r, kn_http_exchange *exchange)
{
    served *s = r->user;
    kn_http_file file = s->file;
    file.fd = open(folder_file(&s->files, "video"), O_RDONLY | O_CLOEXEC);
    if (strcmp(kn_http_path(exchange), "/twice") == 0) reply_text(exchange, 200, "first");
    s->status = kn_http_reply_file(exchange, &file);
    r->kept = exchange;
}

static served make_served(void)
{
    served s = {.files = folder_create(),
                .file = {.bytes = FILE_BYTES, .content_type = "video/mp4", .etag = "\"v1\"", .ranges = true},
                .allow = -1};
    folder_write(&s.files, "video", content, FILE_BYTES);
    return s;
}

static void start_serving(running *r, served *s)
{
    s->file.done = on_done;
    s->file.allowed = is_allowed;
    s->file.context = s;
    *r = (running){.request = serve, .user = s};
    start_server(r);
}

static void stop_serving(running *r, served *s)
{
    stop_server(r);
    folder_remove(&s->files);
}

static void every_form_of_range_is_answered(void **state)
{
    (void)state;
    static const struct {
        const char *method, *fields;
        int status;
        size_t first, bytes;
        const char *range; /* Content-Range */
    } cases[] = {
        {"GET", "", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=0-0\r\n", 206, 0, 1, "bytes 0-0/3145728"},
        {"GET", "Range: bytes=100-199\r\n", 206, 100, 100, "bytes 100-199/3145728"},
        {"GET", "Range: bytes=3145727-\r\n", 206, 3145727, 1, "bytes 3145727-3145727/3145728"},
        {"GET", "Range: bytes=1000000-\r\n", 206, 1000000, 2145728, "bytes 1000000-3145727/3145728"},
        {"GET", "Range: bytes=-5\r\n", 206, 3145723, 5, "bytes 3145723-3145727/3145728"},
        {"GET", "Range: bytes=-9999999\r\n", 206, 0, FILE_BYTES, "bytes 0-3145727/3145728"},
        {"GET", "Range: bytes=0-9999999\r\n", 206, 0, FILE_BYTES, "bytes 0-3145727/3145728"},
        {"GET", "Range: bytes=3145728-\r\n", 416, 0, 0, "bytes */3145728"},
        {"GET", "Range: bytes=-0\r\n", 416, 0, 0, "bytes */3145728"},
        {"GET", "Range: bytes=0-1,5-6\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=0-1\r\nRange: bytes=2-3\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=x\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=2-1\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=1-2\r\nIf-Range: \"v1\"\r\n", 206, 1, 2, "bytes 1-2/3145728"},
        {"GET", "Range: bytes=1-2\r\nIf-Range: \"v2\"\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "Range: bytes=1-2\r\nIf-Range: W/\"v1\"\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "If-None-Match: \"v1\"\r\n", 304, 0, 0, NULL},
        {"GET", "If-None-Match: \"v0\", W/\"v1\"\r\nRange: bytes=1-2\r\n", 304, 0, 0, NULL},
        {"GET", "If-None-Match: *\r\n", 304, 0, 0, NULL},
        {"GET", "If-None-Match: \"v2\"\r\n", 200, 0, FILE_BYTES, NULL},
        {"GET", "If-Match: \"v2\"\r\n", 412, 0, 0, NULL},
        {"GET", "If-Match: \"v1\"\r\nRange: bytes=1-2\r\n", 206, 1, 2, "bytes 1-2/3145728"},
        {"HEAD", "", 200, 0, FILE_BYTES, NULL},
        {"HEAD", "Range: bytes=1-2\r\n", 200, 0, FILE_BYTES, NULL},
        {"HEAD", "If-None-Match: \"v1\"\r\n", 304, 0, 0, NULL},
        {"POST", "Range: bytes=1-2\r\nIf-None-Match: \"v1\"\r\n", 200, 0, FILE_BYTES, NULL},
    };
    served s = make_served();
    running r;
    start_serving(&r, &s);
    client c = client_open(&r); /* one for all: each reply must be framed to the byte */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[256], length[32];
        reply got;
        const bool head = strcmp(cases[i].method, "HEAD") == 0;
        snprintf(text, sizeof text, "%s /video HTTP/1.1\r\nHost: a\r\n%s\r\n", cases[i].method, cases[i].fields);
        assert_true(client_send(&c, text) && client_reply_to(&c, &got, head));
        if (got.status != cases[i].status) fail_msg("%s: %s", text, got.head);
        const char *range = reply_header(&got, "Content-Range");
        if (cases[i].range ? !range || strcmp(range, cases[i].range) != 0 : range != NULL)
            fail_msg("%s: %s", text, got.head);
        assert_string_equal(reply_header(&got, "ETag"), "\"v1\"");
        assert_string_equal(reply_header(&got, "Accept-Ranges"), "bytes");
        snprintf(length, sizeof length, "%zu", cases[i].bytes);
        if (got.status != 304) assert_string_equal(reply_header(&got, "Content-Length"), length);
        assert_int_equal(got.bytes, head ? 0 : cases[i].bytes);
        assert_memory_equal(got.body, content + cases[i].first, got.bytes);
        assert_int_equal(reply_header(&got, "Content-Type") != NULL, got.status == 200 || got.status == 206);
        free_reply(&got);
        wait_for(&s.done, (int)i + 1);
    }
    client_close(&c);
    stop_serving(&r, &s);
    assert_int_equal(s.done, sizeof cases / sizeof *cases);
}

static void files_without_ranges_or_tags_are_whole(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    reply got;
    s.file.ranges = false;
    s.file.etag = NULL;
    s.file.bytes = 1000;
    start_serving(&r, &s);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\nRange: bytes=1-2\r\nIf-None-Match: *\r\n\r\n"));
    assert_true(client_reply(&c, &got) && got.status == 200 && got.bytes == 1000);
    assert_null(reply_header(&got, "Accept-Ranges"));
    assert_null(reply_header(&got, "ETag"));
    free_reply(&got);
    client_close(&c);
    stop_serving(&r, &s);
}

static void a_prefix_is_part_of_the_body(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    reply got;
    s.file.ranges = false;
    s.file.etag = NULL;
    s.file.prefix = "before the file\n";
    s.file.prefix_bytes = 16;
    start_serving(&r, &s);
    client c = client_open(&r);
    for (int i = 0; i < 2; i++) { /* the second one is framed right only if the first was */
        assert_true(client_send(&c, "POST /video HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        assert_true(client_reply(&c, &got) && got.status == 200 && got.bytes == FILE_BYTES + 16);
        assert_memory_equal(got.body, "before the file\n", 16);
        assert_memory_equal((const char *)got.body + 16, content, FILE_BYTES);
        free_reply(&got);
    }
    assert_true(client_send(&c, "HEAD /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_true(client_reply_to(&c, &got, true) && got.status == 200 && got.bytes == 0);
    free_reply(&got);
    client_close(&c);
    stop_serving(&r, &s);
}

static void an_empty_file_is_a_reply(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    folder_write(&s.files, "video", "", 0);
    s.file.bytes = 0;
    start_serving(&r, &s);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    expect_reply(&c, 200, "");
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\n\r\n"));
    expect_reply(&c, 416, "");
    client_close(&c);
    stop_serving(&r, &s);
}

static void measure(running *r, void *argument)
{
    *(size_t *)argument = r->kept ? kn_http_connection_queued(r->kept->connection) : 0;
}

static void a_slow_reader_holds_one_window(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    const int small = 32 << 10;
    /* Larger than what the sockets' buffers of both ends can take: the file must wait. */
    for (int i = 0; i < 10; i++) {
        const int file = open(folder_file(&s.files, "video"), O_WRONLY | O_APPEND);
        assert_int_equal(write(file, content, FILE_BYTES), FILE_BYTES);
        close(file);
    }
    s.file.bytes = 11u * FILE_BYTES;
    start_serving(&r, &s);
    client c = client_open(&r);
    setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&r.requests_seen, 1);
    for (int i = 0; i < 100; i++) {
        size_t queued = 0;
        on_loop(&r, measure, &queued);
        assert_true(queued <= KN_HTTP_WINDOW_BYTES);
        pause_shortly();
    }
    assert_int_equal(s.done, 0);
    client_close(&c); /* and leaves in the middle */
    wait_for(&s.done, 1);
    wait_for(&r.finished_seen, 1);
    assert_false(r.records[0].complete);
    assert_true(r.records[0].reply_bytes < s.file.bytes);
    assert_int_equal(r.closed_seen, 0); /* the handler had given its reply */
    stop_serving(&r, &s);
}

static void a_reader_that_stalls_is_dropped(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    s.file.bytes = 11u * FILE_BYTES;
    assert_int_equal(truncate(folder_file(&s.files, "video"), 11 * FILE_BYTES), 0);
    s.file.done = on_done;
    s.file.context = &s;
    r = (running){.request = serve, .user = &s, .params.limits.write_stall_ns = MILLISECONDS(300)};
    start_server(&r);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    wait_for(&s.done, 1);
    assert_int_equal(stats_of(&r).timeouts, 1);
    wait_for_connections(&r, 0);
    client_close(&c);
    stop_serving(&r, &s);
}

static void expect_cut(const running *r)
{
    client c = client_open(r);
    reply got;
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    if (client_reply(&c, &got)) {
        assert_false(got.complete);
        assert_true(got.bytes < FILE_BYTES);
        free_reply(&got);
    }
    client_close(&c);
}

static void what_cannot_be_served_to_the_end_is_cut(void **state)
{
    (void)state;
    served s = make_served();
    running r;
    start_serving(&r, &s);
    assert_int_equal(truncate(folder_file(&s.files, "video"), FILE_BYTES / 2), 0);
    expect_cut(&r);
    wait_for(&s.done, 1);
    folder_write(&s.files, "video", content, FILE_BYTES);
    atomic_store(&s.allow, 3); /* revoked after three pieces */
    expect_cut(&r);
    wait_for(&s.done, 2);
    atomic_store(&s.allow, -1);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n"));
    expect_reply(&c, 200, NULL);
    client_close(&c);
    stop_serving(&r, &s);
    assert_int_equal(s.done, 3);
}

static int open_files(void)
{
    int count = 0;
    for (int fd = 0; fd < 512; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void descriptors_are_closed_on_every_path(void **state)
{
    (void)state;
    static const kn_http_reply_header bad = {"X", "a\nb"};
    served s = make_served();
    running r;
    const int before = open_files();
    start_serving(&r, &s);
    client c = client_open(&r);
    assert_true(client_send(&c, "GET /twice HTTP/1.1\r\nHost: a\r\n\r\n"));
    expect_reply(&c, 200, "first");
    wait_for(&s.done, 1);
    wait_for(&r.finished_seen, 1);
    assert_int_equal(s.status, KN_INVALID);
    client_close(&c);
    stop_server(&r);
    s.file.headers = &bad;
    s.file.header_count = 1;
    start_serving(&r, &s);
    expect_exchange(&r, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n", 500, true);
    wait_for(&s.done, 2);
    assert_int_equal(s.status, KN_INVALID);
    stop_server(&r);
    s.file.header_count = 0;
    s.file.etag = "\"a\nb\"";
    start_serving(&r, &s);
    expect_exchange(&r, "GET /video HTTP/1.1\r\nHost: a\r\n\r\n", 500, true);
    wait_for(&s.done, 3);
    stop_serving(&r, &s);
    assert_int_equal(open_files(), before);
}

static int make_content(void **state)
{
    (void)state;
    content = malloc(FILE_BYTES);
    for (size_t i = 0; content && i < FILE_BYTES; i++) content[i] = (char)(i * 2654435761u >> 11);
    return content ? 0 : -1;
}

static int free_content(void **state)
{
    (void)state;
    free(content);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_of_range_is_answered),
        cmocka_unit_test(files_without_ranges_or_tags_are_whole),
        cmocka_unit_test(a_prefix_is_part_of_the_body),
        cmocka_unit_test(an_empty_file_is_a_reply),
        cmocka_unit_test(a_slow_reader_holds_one_window),
        cmocka_unit_test(a_reader_that_stalls_is_dropped),
        cmocka_unit_test(what_cannot_be_served_to_the_end_is_cut),
        cmocka_unit_test(descriptors_are_closed_on_every_path),
    };
    return cmocka_run_group_tests(tests, make_content, free_content);
}
