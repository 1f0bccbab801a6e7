/* SPDX-License-Identifier: Apache-2.0
 *
 * Each attempt runs in a process of its own, confined as a worker is. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "server/child.h"
#include "server/confine.h"

enum { CANNOT_CONFINE = 99, SUCCEEDED = 98 };

/* What the attempt failed with; SUCCEEDED; or the signal it died of, plus 100. */
static int attempt(long (*try)(void))
{
    int status;
    const pid_t child = fork();
    if (child == 0) {
        if (kn_child_enter() != KN_OK || kn_confine_worker(false) != KN_OK) _exit(CANNOT_CONFINE);
        errno = 0;
        const long result = try();
        _exit(result < 0 ? errno : SUCCEEDED);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

/* ---- refused ---- */

static long run_a_program(void)
{
    char *argv[] = {(char *)(uintptr_t) "/bin/true", NULL}, *none[] = {NULL};
    return execve(argv[0], argv, none);
}

static long run_an_open_program(void)
{
    char *argv[] = {(char *)(uintptr_t) "true", NULL}, *none[] = {NULL};
    return syscall(SYS_execveat, open("/bin/true", O_PATH), "", argv, none, AT_EMPTY_PATH);
}

static long open_tcp(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}

static long open_udp6(void)
{
    return socket(AF_INET6, SOCK_DGRAM, 0);
}

static long open_netlink(void)
{
    return socket(AF_NETLINK, SOCK_RAW, 0);
}

static long open_packet(void)
{
    return socket(AF_PACKET, SOCK_RAW, 0);
}

static long signal_the_parent(void)
{
    return kill(getppid(), 0);
}

static long signal_everybody(void)
{
    return kill(-1, 0);
}

static long read_the_parent(void)
{
    char byte;
    struct iovec to = {&byte, 1}, from = {&byte, 1};
    return process_vm_readv(getppid(), &to, 1, &from, 1, 0);
}

static long trace_the_parent(void)
{
    return ptrace(PTRACE_SEIZE, getppid(), NULL, NULL);
}

static long new_names(void)
{
    return unshare(CLONE_NEWUSER);
}

static long new_names_by_clone(void)
{
    return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, 0);
}

static long mount_something(void)
{
    return mount("none", "/tmp", "tmpfs", 0, NULL);
}

static long use_io_uring(void)
{
    return syscall(SYS_io_uring_setup, 1, NULL);
}

static long become_another(void)
{
    return setuid(getuid());
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        long (*try)(void);
    } cases[] = {
        {"a program", run_a_program},
        {"an open program", run_an_open_program},
        {"TCP", open_tcp},
        {"UDP over IPv6", open_udp6},
        {"netlink", open_netlink},
        {"raw packets", open_packet},
        {"the parent's memory", read_the_parent},
        {"namespaces", new_names},
        {"namespaces by clone", new_names_by_clone},
        {"mounting", mount_something},
        {"io_uring", use_io_uring},
        {"another user", become_another},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int end = attempt(cases[i].try);
        if (end != EPERM) fail_msg("%s: ended with %d and not EPERM", cases[i].name, end);
    }
    if (KN_SANITIZED) return; /* a leak checker needs these */
    assert_int_equal(attempt(trace_the_parent), EPERM);
    assert_int_equal(attempt(signal_the_parent), EPERM);
    assert_int_equal(attempt(signal_everybody), EPERM);
}

/* ---- what a device, a codec and the link need ---- */

static void *answer(void *context)
{
    *(int *)context = 42;
    return NULL;
}

static long threads(void)
{
    pthread_t thread;
    int value = 0;
    errno = pthread_create(&thread, NULL, answer, &value);
    if (errno) return -1;
    pthread_join(thread, NULL);
    return value == 42 ? 0 : -1;
}

static long processes(void)
{
    int status;
    const pid_t child = fork();
    if (child == 0) _exit(7);
    return child > 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7 ? 0 : -1;
}

static long unix_sockets(void)
{
    int ends[2];
    char byte;
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && write(ends[0], "x", 1) == 1 && read(ends[1], &byte, 1) == 1
               ? socket(AF_UNIX, SOCK_STREAM, 0)
               : -1;
}

static long files(void)
{
    char name[] = "/tmp/kinora-confine-XXXXXX";
    const int file = mkstemp(name);
    return file >= 0 && write(file, "x", 1) == 1 && fsync(file) == 0 ? unlink(name) : -1;
}

static void ignore_signal(int number)
{
    (void)number;
}

static long own_signals(void)
{
    signal(SIGUSR1, ignore_signal);
    return raise(SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0 ? 0 : -1;
}

static long abort_itself(void)
{
    abort();
}

static void test_what_is_not(void **state)
{
    (void)state;
    assert_int_equal(attempt(threads), SUCCEEDED);
    assert_int_equal(attempt(processes), SUCCEEDED);
    assert_int_equal(attempt(unix_sockets), SUCCEEDED);
    assert_int_equal(attempt(files), SUCCEEDED);
    assert_int_equal(attempt(own_signals), SUCCEEDED);
    assert_int_equal(attempt(abort_itself), 100 + SIGABRT); /* a fault is seen as one */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_what_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
