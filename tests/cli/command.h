/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs the program under test and keeps what it printed. Needs _XOPEN_SOURCE 700. */
#ifndef KN_TESTS_CLI_COMMAND_H
#define KN_TESTS_CLI_COMMAND_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

enum { COMMAND_OUTPUT_BYTES = 1 << 20 };

/* Standard output and standard error of the last command; ends in NUL. */
static char command_output[COMMAND_OUTPUT_BYTES];

/* Runs "kinora `arguments`" in a shell; returns its exit code. */
static inline int command(const char *format, ...)
{
    char arguments[2048], line[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    snprintf(line, sizeof line, "'%s' %s 2>&1", KN_KINORA, arguments);
    FILE *pipe = popen(line, "r");
    if (!pipe) fail_msg("cannot run %s", line);
    const size_t bytes = fread(command_output, 1, sizeof command_output - 1, pipe);
    command_output[bytes] = '\0';
    const int status = pclose(pipe);
    if (!WIFEXITED(status)) fail_msg("%s: ended by signal %d\n%s", line, WTERMSIG(status), command_output);
    return WEXITSTATUS(status);
}

static inline void assert_printed(const char *text)
{
    if (!strstr(command_output, text)) fail_msg("\"%s\" is not in:\n%s", text, command_output);
}

/* The last command printed one line, a failure's. */
static inline void assert_one_line(void)
{
    const char *end = strchr(command_output, '\n');
    if (!end || end[1] != '\0' || strncmp(command_output, "kinora: ", 8) != 0)
        fail_msg("not one line that begins with \"kinora: \":\n%s", command_output);
}

#endif
