/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/log.h"

/* What `body` wrote to standard error, in a static buffer. */
static const char *captured(void (*body)(void))
{
    static char text[1 << 16];
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stderr);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0);
    assert_true(dup2(fileno(file), STDERR_FILENO) >= 0);
    body();
    fflush(stderr);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    rewind(file);
    size_t count = fread(text, 1, sizeof text - 1, file);
    text[count] = '\0';
    fclose(file);
    return text;
}

static void write_four_levels(void)
{
    kn_log(KN_LOG_DEBUG, "d");
    kn_log(KN_LOG_INFO, "i %d", 1);
    kn_log(KN_LOG_WARNING, "w");
    kn_log(KN_LOG_ERROR, "e");
}

static void levels_below_the_threshold_are_dropped(void **state)
{
    (void)state;
    assert_string_equal(captured(write_four_levels), "info: i 1\nwarning: w\nerror: e\n"); /* the default */
    kn_log_configure(KN_LOG_DEBUG, 0);
    assert_string_equal(captured(write_four_levels), "debug: d\ninfo: i 1\nwarning: w\nerror: e\n");
    kn_log_configure(KN_LOG_ERROR, 0);
    assert_string_equal(captured(write_four_levels), "error: e\n");
    kn_log_configure(KN_LOG_INFO, 0);
}

static const char nasty[] = "quote \" backslash \\ newline \n tab \t bell \a escape \x1b slash / caf\xc3\xa9 \x7f";

static void write_nasty(void)
{
    kn_log(KN_LOG_WARNING, "%s", nasty);
}

static void json_lines_parse_back_to_the_text(void **state)
{
    (void)state;
    kn_log_configure(KN_LOG_INFO, 1);
    const char *line = captured(write_nasty);
    kn_log_configure(KN_LOG_INFO, 0);
    const char *end = strchr(line, '\n');
    assert_non_null(end);
    assert_int_equal(end[1], '\0'); /* one message, one line */
    json_error_t error;
    json_t *object = json_loads(line, 0, &error);
    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "level")), "warning");
    assert_string_equal(json_string_value(json_object_get(object, "message")), nasty);
    json_decref(object);
}

static void write_long(void)
{
    static char text[10000];
    memset(text, 'x', sizeof text - 1);
    kn_log(KN_LOG_INFO, "%s", text);
}

static void long_messages_are_cut_at_a_line_end(void **state)
{
    (void)state;
    const char *line = captured(write_long);
    size_t bytes = strlen(line);
    assert_in_range(bytes, 1000, 4096);
    assert_int_equal(line[bytes - 1], '\n');
}

static void *write_many(void *argument)
{
    for (int i = 0; i < 200; i++) kn_log(KN_LOG_INFO, "%s%s", (const char *)argument, (const char *)argument);
    return NULL;
}

static void write_from_threads(void)
{
    static char letters[4][2] = {"a", "b", "c", "d"};
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&threads[i], NULL, write_many, letters[i]), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void lines_of_threads_stay_whole(void **state)
{
    (void)state;
    const char *text = captured(write_from_threads);
    int lines = 0;
    for (const char *line = text; *line; line += 9, lines++) {
        assert_memory_equal(line, "info: ", 6);
        assert_int_equal(line[6], line[7]);
        assert_int_equal(line[8], '\n');
    }
    assert_int_equal(lines, 800);
}

/* ---- fields ---- */

static void write_fields(void)
{
    kn_log_event(KN_LOG_INFO,
                 KN_LOG_WITH(kn_log_request("req_1"), kn_log_job(NULL), kn_log_text("route", "GET /v1/videos"),
                             kn_log_integer("bytes", -5), kn_log_real("seconds", 0.25), kn_log_real("bad", NAN),
                             kn_log_boolean("cold", true), kn_log_text("plain", "a-b_c")),
                 "%d done", 3);
}

static void fields_stand_behind_the_text(void **state)
{
    (void)state;
    assert_string_equal(captured(write_fields), "info: 3 done request=req_1 route=\"GET /v1/videos\" bytes=-5 "
                                                "seconds=0.25 bad=null cold=true plain=a-b_c\n");
}

static void fields_are_members_in_json(void **state)
{
    (void)state;
    kn_log_configure(KN_LOG_INFO, KN_LOG_JSON);
    json_t *object = json_loads(captured(write_fields), 0, NULL);
    kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "request")), "req_1");
    assert_string_equal(json_string_value(json_object_get(object, "message")), "3 done");
    assert_int_equal(json_integer_value(json_object_get(object, "bytes")), -5);
    assert_true(json_real_value(json_object_get(object, "seconds")) == 0.25);
    assert_true(json_is_null(json_object_get(object, "bad")));
    assert_true(json_is_true(json_object_get(object, "cold")));
    assert_null(json_object_get(object, "job")); /* not known yet: left out */
    const char *time = json_string_value(json_object_get(object, "time"));
    assert_int_equal(strlen(time), strlen("2026-11-22T10:11:12.345678Z"));
    assert_int_equal(time[10], 'T');
    assert_int_equal(time[26], 'Z');
    json_decref(object);
}

static void timed_lines_begin_with_the_time(void **state)
{
    (void)state;
    kn_log_configure(KN_LOG_INFO, KN_LOG_TIMED);
    const char *line = captured(write_fields);
    kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
    assert_int_equal(line[4], '-');
    assert_memory_equal(line + 26, "Z info: 3 done request=req_1", 28);
}

static void write_hostile(void)
{
    /* A line end, an escape sequence, a C1 control, an override of direction, a line separator, half a character. */
    kn_log_event(
        KN_LOG_INFO,
        KN_LOG_WITH(kn_log_text("name", "x\nerror: forged key=1\x1b[2J\xc2\x9b\xe2\x80\xae\xe2\x80\xa8\"\\\xc3")),
        "first\nerror: second\x1b]0;t\a\r\xff\xed\xa0\x80 caf\xc3\xa9 %s", "\xe2\x80\xa8");
}

static void records_cannot_be_forged(void **state)
{
    (void)state;
    assert_string_equal(captured(write_hostile),
                        "info: first\\nerror: second\\x1b]0;t\\x07\\x0d\\xff\\xed\\xa0\\x80 caf\xc3\xa9 \\u2028 "
                        "name=\"x\\nerror: forged key=1\\x1b[2J\\x9b\\u202e\\u2028\\\"\\\\\\xc3\"\n");
    kn_log_configure(KN_LOG_INFO, KN_LOG_JSON);
    const char *line = captured(write_hostile);
    kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    assert_null(strchr(line, '\x1b'));
    assert_null(strstr(line, "\xe2\x80\xae"));
    json_t *object = json_loads(line, 0, NULL);
    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "message")),
                        "first\nerror: second\x1b]0;t\a\r\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd caf\xc3\xa9 "
                        "\xe2\x80\xa8");
    json_decref(object);
}

static char long_text[8192];

static void write_long_text(void)
{
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("a", long_text), kn_log_text("b", long_text)), "%s", long_text);
}

/* Three-byte characters at every offset against the cut, plain and escaped. */
static void no_character_is_cut(void **state)
{
    (void)state;
    for (int shift = 0; shift < 3; shift++) {
        for (int json = 0; json < 2; json++) {
            memset(long_text, 'x', (size_t)shift);
            for (size_t i = (size_t)shift; i + 3 < sizeof long_text; i += 3) memcpy(long_text + i, "\xe2\x82\xac", 4);
            kn_log_configure(KN_LOG_INFO, (kn_log_format)json);
            const char *line = captured(write_long_text);
            kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
            assert_in_range(strlen(line), KN_LOG_MESSAGE_BYTES, KN_LOG_RECORD_BYTES);
            assert_null(strstr(line, "\\x"));
            assert_null(strstr(line, "ufffd"));
            json_t *object = json_loads(line, 0, NULL);
            assert_true((object != NULL) == (json == 1));
            json_decref(object);
        }
    }
}

/* Everything escaped to six bytes: the record is full, valid JSON, and keeps its fields. */
static void a_full_record_is_whole(void **state)
{
    (void)state;
    memset(long_text, 1, sizeof long_text - 1);
    kn_log_configure(KN_LOG_INFO, KN_LOG_JSON);
    const char *line = captured(write_long_text);
    kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
    assert_in_range(strlen(line), KN_LOG_RECORD_BYTES - 16, KN_LOG_RECORD_BYTES);
    json_t *object = json_loads(line, 0, NULL);
    assert_non_null(object);
    assert_int_equal(json_string_length(json_object_get(object, "a")), KN_LOG_VALUE_BYTES);
    json_decref(object);
}

static void write_many_fields(void)
{
    kn_log_field fields[KN_LOG_FIELDS + 1];
    for (size_t i = 0; i < KN_LOG_FIELDS; i++) fields[i] = kn_log_integer("n", (int64_t)i);
    fields[KN_LOG_FIELDS] = kn_log_integer("toomany", 1);
    kn_log_event(KN_LOG_INFO, fields, KN_LOG_FIELDS + 1, "m");
}

static void fields_are_bounded(void **state)
{
    (void)state;
    const char *line = captured(write_many_fields);
    assert_non_null(strstr(line, " n=15\n"));
    assert_null(strstr(line, "toomany"));
}

static void names_of_levels_and_formats(void **state)
{
    (void)state;
    kn_log_level level;
    kn_log_format format;
    assert_int_equal(kn_log_level_parse(&level, "warning"), KN_OK);
    assert_int_equal(level, KN_LOG_WARNING);
    assert_int_equal(kn_log_level_parse(&level, "warn"), KN_INVALID);
    assert_int_equal(kn_log_format_parse(&format, "timed"), KN_OK);
    assert_int_equal(format, KN_LOG_TIMED);
    assert_int_equal(kn_log_format_parse(&format, ""), KN_INVALID);
}

/* ---- secrets ---- */

#define CANARY "C4n4ryC4n4ryC4n4ryC4n4ryC4n4ryC4n4ryC4n4ryC4n4ry1234"
#define KEY "kinora_abcdefghijkl_" CANARY

static char filler[KN_LOG_MESSAGE_BYTES];

static void write_secrets(void)
{
    kn_log(KN_LOG_INFO, "key " KEY " and whsec_" CANARY "= end");
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("authorization", "BEARER " CANARY), kn_log_text("k", KEY)), "m");
    for (size_t i = 0; i < 80; i += 3) { /* the cut falls into the prefix, into the key, behind it */
        memset(filler, '.', sizeof filler - 1);
        filler[sizeof filler - 1 - i] = '\0';
        kn_log(KN_LOG_INFO, "%s" KEY, filler);
        kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("k", filler + sizeof filler - 512)), "%s", "");
    }
    static char value[1024];
    for (size_t i = 150; i < 600; i += 7) {
        snprintf(value, sizeof value, "%.*s " KEY, (int)i, filler);
        kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("k", value)), "m");
    }
}

static void what_looks_like_a_secret_is_not_written(void **state)
{
    (void)state;
    for (int format = 0; format < 3; format++) {
        kn_log_configure(KN_LOG_INFO, (kn_log_format)format);
        const char *text = captured(write_secrets);
        kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
        assert_null(strstr(text, "C4n4"));
        assert_non_null(strstr(text, "key kinora_[redacted] and whsec_[redacted] end"));
        assert_non_null(strstr(text, "BEARER [redacted]"));
    }
}

static void redaction_spares_words(void **state)
{
    (void)state;
    char text[] = "kinora_http_request_duration_seconds, whsec_short, bearer of news";
    assert_int_equal(kn_log_redact(text), 0);
    assert_string_equal(text, "kinora_http_request_duration_seconds, whsec_short, bearer of news");
    char token[] = "Bearer 12345678";
    assert_int_equal(kn_log_redact(token), 1);
    assert_string_equal(token, "Bearer ********");
}

static void secrets_are_held_and_wiped(void **state)
{
    (void)state;
    kn_secret secret;
    char long_secret[KN_SECRET_BYTES];
    memset(long_secret, 'a', sizeof long_secret);
    assert_int_equal(kn_secret_set(&secret, long_secret, sizeof long_secret - 1), KN_OK);
    assert_int_equal(kn_secret_set(&secret, long_secret, sizeof long_secret), KN_INVALID);
    assert_null(strstr(kn_fail_message(), "aaa"));
    assert_int_equal(kn_secret_set(&secret, KEY, strlen(KEY)), KN_OK);
    assert_string_equal(kn_secret_reveal(&secret), KEY);
    kn_secret_wipe(&secret);
    for (size_t i = 0; i < sizeof secret; i++) assert_int_equal(((char *)&secret)[i], 0);
}

/* ---- a sink that fails ---- */

static int saved_stderr;

static void replace_stderr(int descriptor)
{
    saved_stderr = dup(STDERR_FILENO);
    assert_true(saved_stderr >= 0);
    assert_true(dup2(descriptor, STDERR_FILENO) >= 0);
}

static void restore_stderr(void)
{
    assert_true(dup2(saved_stderr, STDERR_FILENO) >= 0);
    close(saved_stderr);
}

/* Nobody reads: the records that do not fit are lost, the writer neither waits nor dies, and the reader who comes late
 * is told. SIGPIPE has its default, deadly, action here. */
static void check_stuck_reader(int reader, int writer)
{
    static char text[1 << 20];
    uint64_t before = kn_log_lost();
    replace_stderr(writer);
    for (int i = 0; i < 5000; i++) kn_log(KN_LOG_INFO, "%0100d", i);
    uint64_t lost = kn_log_lost() - before;
    size_t count = 0;
    assert_int_equal(fcntl(reader, F_SETFL, O_NONBLOCK), 0);
    for (ssize_t got; (got = read(reader, text + count, sizeof text - 1 - count)) > 0;) count += (size_t)got;
    kn_log(KN_LOG_INFO, "after");
    for (ssize_t got; (got = read(reader, text + count, sizeof text - 1 - count)) > 0;) count += (size_t)got;
    close(reader);
    uint64_t at_end = kn_log_lost();
    kn_log(KN_LOG_INFO, "nobody is there");
    uint64_t after_end = kn_log_lost();
    restore_stderr();
    close(writer);
    text[count] = '\0';
    assert_in_range(lost, 1, 4999);
    char note[128];
    snprintf(note, sizeof note, "standard error did not take them records=%llu\ninfo: after\n",
             (unsigned long long)lost);
    assert_non_null(strstr(text, note));
    assert_int_equal(after_end, at_end + 1);
}

static void a_full_pipe_holds_nobody_up(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    check_stuck_reader(ends[0], ends[1]);
}

static void a_full_socket_holds_nobody_up(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    check_stuck_reader(ends[0], ends[1]);
}

/* Our writing leaves the mode of a description that others share alone. */
static void the_shared_description_stays_blocking(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    replace_stderr(ends[1]);
    kn_log(KN_LOG_INFO, "one");
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    restore_stderr();
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(flags & O_NONBLOCK, 0);
}

static void a_closed_standard_error_is_survived(void **state)
{
    (void)state;
    uint64_t before = kn_log_lost();
    saved_stderr = dup(STDERR_FILENO);
    close(STDERR_FILENO);
    errno = ENOENT;
    kn_log(KN_LOG_ERROR, "unheard");
    int kept = errno;
    restore_stderr();
    assert_int_equal(kn_log_lost(), before + 1);
    assert_int_equal(kept, ENOENT);
}

static void a_full_disk_is_survived(void **state)
{
    (void)state;
    int full = open("/dev/full", O_WRONLY);
    if (full < 0) skip();
    uint64_t before = kn_log_lost();
    replace_stderr(full);
    kn_log(KN_LOG_ERROR, "unheard");
    restore_stderr();
    close(full);
    assert_int_equal(kn_log_lost(), before + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_below_the_threshold_are_dropped),
        cmocka_unit_test(json_lines_parse_back_to_the_text),
        cmocka_unit_test(long_messages_are_cut_at_a_line_end),
        cmocka_unit_test(lines_of_threads_stay_whole),
        cmocka_unit_test(fields_stand_behind_the_text),
        cmocka_unit_test(fields_are_members_in_json),
        cmocka_unit_test(timed_lines_begin_with_the_time),
        cmocka_unit_test(records_cannot_be_forged),
        cmocka_unit_test(no_character_is_cut),
        cmocka_unit_test(a_full_record_is_whole),
        cmocka_unit_test(fields_are_bounded),
        cmocka_unit_test(names_of_levels_and_formats),
        cmocka_unit_test(what_looks_like_a_secret_is_not_written),
        cmocka_unit_test(redaction_spares_words),
        cmocka_unit_test(secrets_are_held_and_wiped),
        cmocka_unit_test(a_full_pipe_holds_nobody_up),
        cmocka_unit_test(a_full_socket_holds_nobody_up),
        cmocka_unit_test(the_shared_description_stays_blocking),
        cmocka_unit_test(a_closed_standard_error_is_survived),
        cmocka_unit_test(a_full_disk_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
