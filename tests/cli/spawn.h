/* SPDX-License-Identifier: Apache-2.0
 *
 * Running the kinora binary and others from a test. Processes are ended by their own id only. Needs _GNU_SOURCE. */
#ifndef KN_TESTS_CLI_SPAWN_H
#define KN_TESTS_CLI_SPAWN_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/engine/folder.h"

extern char **environ;

enum { ARGUMENTS_MAX = 48 };

/* A whole file, ended with a NUL that *bytes does not count; free() it. NULL when it is not there. */
static inline char *read_whole(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    size_t used = 0, room = 1 << 16;
    char *text = malloc(room);
    for (size_t got = 1; text && got > 0;) {
        if (used + 1 >= room) text = realloc(text, room *= 2);
        got = text ? fread(text + used, 1, room - used - 1, file) : 0;
        used += got;
    }
    fclose(file);
    assert_non_null(text);
    text[used] = '\0';
    if (bytes) *bytes = used;
    return text;
}

static inline bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static inline void expect_same_file(const char *a, const char *b)
{
    size_t bytes_a = 0, bytes_b = 0;
    char *x = read_whole(a, &bytes_a), *y = read_whole(b, &bytes_b);
    if (!x || !y) fail_msg("%s is missing", x ? b : a);
    if (bytes_a != bytes_b || memcmp(x, y, bytes_a) != 0) fail_msg("%s and %s differ", a, b);
    assert_true(bytes_a > 0);
    free(x);
    free(y);
}

/* argv of a process to be: `program` and a NULL-terminated list, more lists may follow. */
typedef struct command {
    const char *argv[ARGUMENTS_MAX];
    int count;
} command;

static inline void command_add(command *c, const char *const *arguments)
{
    for (; *arguments; arguments++) {
        assert_true(c->count + 1 < ARGUMENTS_MAX);
        c->argv[c->count++] = *arguments;
    }
}

static inline command command_of(const char *program, const char *const *arguments)
{
    command c = {.argv = {program}, .count = 1};
    command_add(&c, arguments);
    return c;
}

/* Starts it with standard output and error in the given descriptors (-1: nowhere). 0: the program does not exist. */
static inline pid_t command_start(const command *c, int out, int err)
{
    posix_spawn_file_actions_t actions;
    pid_t id;
    assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (out >= 0)
        posix_spawn_file_actions_adddup2(&actions, out, 1);
    else
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    if (err >= 0)
        posix_spawn_file_actions_adddup2(&actions, err, 2);
    else
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    const int failed = posix_spawnp(&id, c->argv[0], &actions, NULL, (char *const *)(uintptr_t)c->argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == ENOENT) return 0;
    assert_int_equal(failed, 0);
    return id;
}

/* The exit code, or minus the signal that ended it. */
static inline int command_wait(pid_t id)
{
    int status;
    while (waitpid(id, &status, 0) != id) assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

typedef struct outcome {
    int code;        /* of command_wait; 127: no such program */
    char *out, *err; /* what it printed */
} outcome;

static inline void outcome_free(outcome *o)
{
    free(o->out);
    free(o->err);
    *o = (outcome){0};
}

static inline outcome command_run(const command *c)
{
    outcome o = {.code = 127};
    folder at = folder_create();
    const char *out = folder_file(&at, "out"), *err = folder_file(&at, "err");
    const int out_file = open(out, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    const int err_file = open(err, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(out_file >= 0 && err_file >= 0);
    const pid_t id = command_start(c, out_file, err_file);
    if (id > 0) o.code = command_wait(id);
    close(out_file);
    close(err_file);
    o.out = read_whole(out, NULL);
    o.err = read_whole(err, NULL);
    folder_remove(&at);
    return o;
}

/* ---- a process whose lines are read as they come ---- */

typedef struct listener {
    pid_t id;
    FILE *lines;
    char line[1 << 16];
    int err;    /* descriptor of standard error's file */
    bool paced; /* make_pipe() */
} listener;

/* The pipe holds one unread write: the process can be at most one line ahead of the reader, so that "after line k"
 * is a place in the run and not a matter of luck. False: the system has no such pipe, and this is an ordinary one. */
static inline bool make_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC | O_DIRECT) == 0) return fcntl(ends[1], F_SETPIPE_SZ, 4096) == 4096;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    return false;
}

static inline listener listener_start(const command *c, const char *err_path)
{
    listener l = {.err = open(err_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
    int ends[2];
    l.paced = make_pipe(ends);
    l.id = command_start(c, ends[1], l.err);
    assert_true(l.id > 0);
    close(ends[1]);
    l.lines = fdopen(ends[0], "r");
    assert_non_null(l.lines);
    setvbuf(l.lines, NULL, _IOFBF, 1 << 16);
    return l;
}

/* The next line as JSON, or NULL at the end; json_decref() it. */
static inline json_t *listener_next(listener *l)
{
    if (!fgets(l->line, sizeof l->line, l->lines)) return NULL;
    json_error_t error;
    json_t *object = json_loads(l->line, 0, &error);
    if (!object) fail_msg("not a JSON line: %s", l->line);
    return object;
}

/* Reads on to the end and waits. */
static inline int listener_end(listener *l)
{
    for (json_t *object; (object = listener_next(l));) json_decref(object);
    fclose(l->lines);
    close(l->err);
    return command_wait(l->id);
}

#endif
