/* SPDX-License-Identifier: Apache-2.0
 *
 * Children are this program again: main() does what its second argument says. */
#define _GNU_SOURCE
#include "server/child.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static kn_child start(const char *what, const int *fds, size_t fd_count)
{
    const char *const argv[] = {"test", "child", what, NULL};
    kn_child child;
    assert_int_equal(
        kn_child_start(&child, &(kn_child_params){.argv = argv, .fds = fds, .fd_count = fd_count, .keep_stderr = true}),
        KN_OK);
    assert_true(child.process > 0 && child.pidfd >= 0);
    return child;
}

static kn_child_end wait_for(kn_child *child)
{
    struct pollfd ready = {.fd = child->pidfd, .events = POLLIN};
    assert_int_equal(poll(&ready, 1, 60000), 1);
    kn_child_end end;
    assert_int_equal(kn_child_reap(child, &end), KN_OK);
    assert_int_equal(child->process, 0);
    assert_int_equal(child->pidfd, -1);
    return end;
}

static int count_descriptors(void)
{
    int count = 0;
    DIR *listing = opendir("/proc/self/fd");
    assert_non_null(listing);
    while (readdir(listing)) count++;
    closedir(listing);
    return count - 3; /* ".", "..", the listing */
}

static void test_ends(void **state)
{
    (void)state;
    const int before = count_descriptors();
    kn_child child = start("seven", NULL, 0);
    kn_child_end end = wait_for(&child);
    assert_int_equal(end.code, 7);
    assert_int_equal(end.signal, 0);
    child = start("abort", NULL, 0);
    end = wait_for(&child);
    assert_int_equal(end.code, -1);
    assert_int_equal(end.signal, SIGKILL);
    child = start("wait", NULL, 0);
    assert_int_equal(kn_child_reap(&child, NULL), KN_AGAIN);
    kn_child_kill(&child);
    assert_int_equal(child.process, 0);
    kn_child_kill(&child); /* there is none */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
    assert_int_equal(count_descriptors(), before);
}

/* Seen from inside: exactly the listed descriptors, in order, whatever their numbers were. */
static void test_descriptors(void **state)
{
    (void)state;
    int ends[2][2];
    assert_int_equal(pipe(ends[0]), 0);
    assert_int_equal(pipe(ends[1]), 0);
    const int stray = open("/dev/null", O_RDONLY); /* not closed on exec, and yet not inherited */
    /* Numbers that are each other's places. */
    const int fds[] = {ends[1][1], ends[0][0], ends[0][1]};
    kn_child child = start("descriptors", fds, 3);
    assert_int_equal(wait_for(&child).code, 0);
    char byte = 0;
    assert_int_equal(read(ends[1][0], &byte, 1), 1);
    assert_int_equal(byte, 'a');
    assert_int_equal(read(ends[0][0], &byte, 1), 1);
    assert_int_equal(byte, 'b');
    close(stray);
    for (int i = 0; i < 4; i++) close(ends[i / 2][i % 2]);
}

static void test_environment_and_signals(void **state)
{
    (void)state;
    setenv("https_proxy", "http://127.0.0.1:1", 1);
    setenv("KINORA_SECRET", "canary", 1);
    setenv("ASAN_OPTIONS_OTHER", "x", 1);
    signal(SIGPIPE, SIG_IGN);
    sigset_t blocked, old;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &old);
    kn_child child = start("surroundings", NULL, 0);
    assert_int_equal(wait_for(&child).code, 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    signal(SIGPIPE, SIG_DFL);
}

static void test_enter(void **state)
{
    (void)state;
    kn_child child = start("enter", NULL, 0);
    assert_int_equal(wait_for(&child).code, 0);
}

static void test_refusals(void **state)
{
    (void)state;
    const int before = count_descriptors();
    const char *const argv[] = {"nothing", NULL};
    kn_child child;
    assert_int_equal(kn_child_start(&child, &(kn_child_params){.executable = "/nonexistent/x", .argv = argv}), KN_IO);
    assert_int_equal(child.process, 0);
    const int closed = 1000;
    assert_int_equal(kn_child_start(&child, &(kn_child_params){.argv = argv, .fds = &closed, .fd_count = 1}), KN_IO);
    int many[KN_CHILD_FDS_MAX + 1] = {0};
    assert_int_equal(
        kn_child_start(&child, &(kn_child_params){.argv = argv, .fds = many, .fd_count = KN_CHILD_FDS_MAX + 1}),
        KN_INVALID);
    assert_int_equal(kn_child_reap(&child, NULL), KN_INVALID);
    assert_int_equal(count_descriptors(), before);
    const char *const seven[] = {"test", "child", "seven", NULL};
    assert_int_equal(
        kn_child_start(&child, &(kn_child_params){.argv = seven, .fds = many, .fd_count = KN_CHILD_FDS_MAX}), KN_OK);
    assert_int_equal(wait_for(&child).code, 7);
}

/* A server that is killed takes its children along. */
static void test_child_dies_with_its_parent(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    kn_child parent = start("parent", &ends[1], 1);
    close(ends[1]);
    char byte;
    assert_int_equal(read(ends[0], &byte, 1), 1); /* the grandchild has entered */
    kn_child_kill(&parent);
    assert_int_equal(read(ends[0], &byte, 1), 0); /* nobody holds the other end any more */
    close(ends[0]);
}

/* ---- in the child ---- */

static int see_descriptors(void)
{
    char byte = 0;
    if (count_descriptors() != 6) return 1;
    if (write(3, "a", 1) != 1 || write(5, "b", 1) != 1) return 2;
    if (write(4, "c", 1) != -1) return 3; /* the reading end */
    if (read(0, &byte, 1) != 0) return 4; /* nothing comes in */
    return 0;
}

static int see_surroundings(void)
{
    sigset_t blocked;
    struct sigaction action;
    if (getenv("https_proxy") || getenv("KINORA_SECRET") || getenv("ASAN_OPTIONS_OTHER") || getenv("HOME")) return 1;
    if (sigprocmask(SIG_SETMASK, NULL, &blocked) != 0 || sigismember(&blocked, SIGTERM)) return 2;
    if (sigaction(SIGPIPE, NULL, &action) != 0 || action.sa_handler != SIG_DFL) return 3;
    if (getpgrp() != getpid()) return 4;
    return 0;
}

static int see_confinement(void)
{
    int signal_at_death = 0;
    struct rlimit core;
    if (kn_child_enter() != KN_OK) return 1;
    if (prctl(PR_GET_PDEATHSIG, &signal_at_death) != 0 || signal_at_death != SIGKILL) return 2;
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 || prctl(PR_GET_DUMPABLE) != 0) return 3;
    if (getrlimit(RLIMIT_CORE, &core) != 0 || core.rlim_max != 0) return 4;
    return 0;
}

static int be_parent(void)
{
    const int end = 3;
    kn_child child = start("grandchild", &end, 1);
    close(end);
    while (kn_child_reap(&child, NULL) == KN_AGAIN) poll(NULL, 0, 1000);
    return 1;
}

static int be_grandchild(void)
{
    if (kn_child_enter() != KN_OK || write(3, "x", 1) != 1) return 1;
    for (;;) poll(NULL, 0, 1000);
}

static int be_child(const char *what)
{
    if (strcmp(what, "seven") == 0) return 7;
    if (strcmp(what, "abort") == 0) return raise(SIGKILL);
    if (strcmp(what, "wait") == 0)
        for (;;) poll(NULL, 0, 1000);
    if (strcmp(what, "descriptors") == 0) return see_descriptors();
    if (strcmp(what, "surroundings") == 0) return see_surroundings();
    if (strcmp(what, "enter") == 0) return see_confinement();
    if (strcmp(what, "parent") == 0) return be_parent();
    return strcmp(what, "grandchild") == 0 ? be_grandchild() : 99;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "child") == 0) _exit(be_child(argv[2]));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_environment_and_signals),
        cmocka_unit_test(test_enter),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_child_dies_with_its_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
