/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* pidfd, closefrom, environ */
#include "server/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a child may know of the environment: how to find its libraries, and how its sanitizer reports. Proxies,
 * credentials and locale stay behind. */
static const char *const inherited[] = {"LD_LIBRARY_PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS",
                                        "TSAN_OPTIONS"};
enum { INHERITED = sizeof inherited / sizeof *inherited };

static void choose_environment(char *kept[INHERITED + 1])
{
    size_t count = 0;
    for (char **entry = environ; entry && *entry; entry++) {
        for (size_t i = 0; i < INHERITED && count < INHERITED; i++) {
            const size_t length = strlen(inherited[i]);
            if (strncmp(*entry, inherited[i], length) == 0 && (*entry)[length] == '=') kept[count++] = *entry;
        }
    }
    kept[count] = NULL;
}

/* Above every number a child's descriptors get, so that placing one cannot close another that is still to be placed. */
static kn_status lift(int *lifted, const kn_child_params *params)
{
    for (size_t i = 0; i < params->fd_count; i++) {
        lifted[i] = fcntl(params->fds[i], F_DUPFD_CLOEXEC, KN_CHILD_FIRST_FD + KN_CHILD_FDS_MAX);
        if (lifted[i] < 0) return kn_fail(KN_IO, "child process: descriptor %zu: %s", i, strerror(errno));
    }
    return KN_OK;
}

static int describe_files(posix_spawn_file_actions_t *actions, const kn_child_params *params, const int *lifted)
{
    int error = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!error) error = posix_spawn_file_actions_addopen(actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (!error && !params->keep_stderr)
        error = posix_spawn_file_actions_addopen(actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    for (size_t i = 0; i < params->fd_count && !error; i++)
        error = posix_spawn_file_actions_adddup2(actions, lifted[i], KN_CHILD_FIRST_FD + (int)i);
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(actions, KN_CHILD_FIRST_FD + (int)params->fd_count);
    return error;
}

/* Default signal actions and none blocked, whatever the server does with its own; a process group of its own, so that
 * an interrupt typed at a terminal reaches the server alone, which then decides. */
static int describe_signals(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    int error = posix_spawnattr_setsigmask(attributes, &none);
    if (!error) error = posix_spawnattr_setsigdefault(attributes, &all);
    if (!error) error = posix_spawnattr_setpgroup(attributes, 0);
    if (!error)
        error = posix_spawnattr_setflags(attributes,
                                         POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    return error;
}

static int spawn(pid_t *process, const kn_child_params *params, const int *lifted)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return error;
    error = posix_spawnattr_init(&attributes);
    if (error) {
        posix_spawn_file_actions_destroy(&actions);
        return error;
    }
    char *environment[INHERITED + 1];
    choose_environment(environment);
    error = describe_files(&actions, params, lifted);
    if (!error) error = describe_signals(&attributes);
    const char *executable = params->executable ? params->executable : "/proc/self/exe";
    if (!error)
        error = posix_spawn(process, executable, &actions, &attributes, (char *const *)params->argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

kn_status kn_child_start(kn_child *out, const kn_child_params *params)
{
    *out = KN_CHILD_NONE;
    KN_REQUIRE(params->argv && params->argv[0] && params->fd_count <= KN_CHILD_FDS_MAX);
    kn_status st = KN_OK;
    int lifted[KN_CHILD_FDS_MAX];
    for (size_t i = 0; i < KN_CHILD_FDS_MAX; i++) lifted[i] = -1;
    KN_TRY(lift(lifted, params));
    pid_t process = 0;
    const int error = spawn(&process, params, lifted);
    if (error) {
        st = kn_fail(KN_IO, "child process: cannot start %s: %s", params->argv[0], strerror(error));
        goto fail;
    }
    out->process = process;
    out->pidfd = pidfd_open(process, 0);
    if (out->pidfd < 0) {
        st = kn_fail(KN_IO, "child process: pidfd_open: %s", strerror(errno));
        kn_child_kill(out);
    }
fail:
    for (size_t i = 0; i < KN_CHILD_FDS_MAX; i++)
        if (lifted[i] >= 0) close(lifted[i]);
    return st;
}

static kn_status reap(kn_child *child, kn_child_end *end, int options)
{
    siginfo_t info = {.si_pid = 0};
    int result;
    do {
        result = waitid(P_PID, (id_t)child->process, &info, WEXITED | options);
    } while (result < 0 && errno == EINTR);
    if (result == 0 && info.si_pid == 0) return KN_AGAIN;
    if (end && result == 0 && info.si_code == CLD_EXITED)
        *end = (kn_child_end){.code = info.si_status};
    else if (end)
        *end = (kn_child_end){.code = -1, .signal = result == 0 ? info.si_status : SIGKILL};
    if (child->pidfd >= 0) close(child->pidfd);
    *child = KN_CHILD_NONE;
    return KN_OK;
}

kn_status kn_child_reap(kn_child *child, kn_child_end *end)
{
    KN_REQUIRE(child->process > 0);
    return reap(child, end, WNOHANG);
}

void kn_child_kill(kn_child *child)
{
    if (child->process <= 0) return;
    kill(child->process, SIGKILL); /* not reaped yet, so the number is still its own */
    reap(child, NULL, 0);
}

kn_status kn_child_enter(void)
{
    const struct rlimit none = {0, 0};
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_DUMPABLE, 0) != 0 || setrlimit(RLIMIT_CORE, &none) != 0)
        return kn_fail(KN_UNAVAILABLE, "child process: cannot be confined: %s", strerror(errno));
    return KN_OK;
}
