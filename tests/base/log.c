/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_below_the_threshold_are_dropped),
        cmocka_unit_test(json_lines_parse_back_to_the_text),
        cmocka_unit_test(long_messages_are_cut_at_a_line_end),
        cmocka_unit_test(lines_of_threads_stay_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
