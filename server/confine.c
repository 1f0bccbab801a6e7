/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* CLONE_NEW* */
#include "server/confine.h"

#include <errno.h>
#include <sched.h>
#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/child.h"

static const int refused_calls[] = {
    /* Other programs. */
    SCMP_SYS(execve), SCMP_SYS(execveat),
    /* Other processes. */
    SCMP_SYS(process_vm_readv), SCMP_SYS(process_vm_writev), SCMP_SYS(process_madvise), SCMP_SYS(pidfd_getfd),
    SCMP_SYS(pidfd_send_signal), SCMP_SYS(kcmp), SCMP_SYS(tkill),
    /* Ways around a filter. */
    SCMP_SYS(io_uring_setup), SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register), SCMP_SYS(bpf),
    SCMP_SYS(userfaultfd), SCMP_SYS(perf_event_open), SCMP_SYS(personality),
    /* Other names for things. */
    SCMP_SYS(unshare), SCMP_SYS(setns), SCMP_SYS(chroot), SCMP_SYS(pivot_root), SCMP_SYS(mount), SCMP_SYS(umount2),
    SCMP_SYS(fsopen), SCMP_SYS(fsmount), SCMP_SYS(move_mount), SCMP_SYS(open_tree), SCMP_SYS(mount_setattr),
    SCMP_SYS(open_by_handle_at), SCMP_SYS(mknod), SCMP_SYS(mknodat),
    /* Keys, users, the machine. */
    SCMP_SYS(keyctl), SCMP_SYS(add_key), SCMP_SYS(request_key), SCMP_SYS(setuid), SCMP_SYS(setgid), SCMP_SYS(setreuid),
    SCMP_SYS(setregid), SCMP_SYS(setresuid), SCMP_SYS(setresgid), SCMP_SYS(setfsuid), SCMP_SYS(setfsgid),
    SCMP_SYS(setgroups), SCMP_SYS(capset), SCMP_SYS(init_module), SCMP_SYS(finit_module), SCMP_SYS(delete_module),
    SCMP_SYS(kexec_load), SCMP_SYS(kexec_file_load), SCMP_SYS(reboot), SCMP_SYS(swapon), SCMP_SYS(swapoff),
    SCMP_SYS(acct), SCMP_SYS(quotactl), SCMP_SYS(syslog), SCMP_SYS(sethostname), SCMP_SYS(setdomainname),
    SCMP_SYS(settimeofday), SCMP_SYS(clock_settime), SCMP_SYS(clock_adjtime), SCMP_SYS(adjtimex),
    SCMP_SYS(fanotify_init), SCMP_SYS(ioperm), SCMP_SYS(iopl)};

/* A leak checker stops its own process as a debugger would. */
static const int refused_unless_sanitized[] = {SCMP_SYS(ptrace)};

static int refuse_if(scmp_filter_ctx filter, int call, unsigned index, enum scmp_compare compare, scmp_datum_t a,
                     scmp_datum_t b)
{
    const struct scmp_arg_cmp argument = {.arg = index, .op = compare, .datum_a = a, .datum_b = b};
    return seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 1, argument);
}

static int add_rules(scmp_filter_ctx filter, bool sockets)
{
    static const unsigned long namespaces[] = {CLONE_NEWNS,  CLONE_NEWUTS, CLONE_NEWIPC,   CLONE_NEWUSER,
                                               CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWCGROUP};
    int error = 0;
    for (size_t i = 0; i < sizeof refused_calls / sizeof *refused_calls && !error; i++)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), refused_calls[i], 0);
    for (size_t i = 0; i < sizeof refused_unless_sanitized / sizeof *refused_unless_sanitized && !error; i++)
        if (!KN_SANITIZED) error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), refused_unless_sanitized[i], 0);
    if (!error && !sockets) error = refuse_if(filter, SCMP_SYS(socket), 0, SCMP_CMP_NE, AF_UNIX, 0);
    /* Signals to itself alone. */
    const scmp_datum_t self = (scmp_datum_t)getpid();
    if (!error && !KN_SANITIZED) error = refuse_if(filter, SCMP_SYS(kill), 0, SCMP_CMP_NE, self, 0);
    if (!error && !KN_SANITIZED) error = refuse_if(filter, SCMP_SYS(tgkill), 0, SCMP_CMP_NE, self, 0);
    for (size_t i = 0; i < sizeof namespaces / sizeof *namespaces && !error; i++)
        error = refuse_if(filter, SCMP_SYS(clone), 0, SCMP_CMP_MASKED_EQ, namespaces[i], namespaces[i]);
    /* Its flags are in memory, where a filter cannot look; libraries fall back to clone. */
    if (!error) error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return error;
}

kn_status kn_confine_worker(bool sockets)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter) return kn_fail(KN_UNAVAILABLE, "worker: no system call filter");
    int error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error) error = add_rules(filter, sockets);
    if (!error) error = seccomp_load(filter);
    seccomp_release(filter);
    return error ? kn_fail(KN_UNAVAILABLE, "worker: the system call filter: %s", strerror(-error)) : KN_OK;
}
