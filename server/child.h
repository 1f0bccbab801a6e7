/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting, watching and ending the server's child processes. A child is a program started by exec (the server has
 * threads; nothing but exec is safe after its fork) with numbered descriptors and almost no environment; it is watched
 * through a pidfd and reaped only here, so that a signal never reaches a process that merely got the same number. */
#ifndef KN_SERVER_CHILD_H
#define KN_SERVER_CHILD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum {
    KN_CHILD_FIRST_FD = 3,
    KN_CHILD_FDS_MAX = 8,
};

typedef struct kn_child_params {
    const char *executable;  /* NULL: this program */
    const char *const *argv; /* argv[0] first, ends in NULL */
    const int *fds;          /* become 3, 4, ... in the child; the caller keeps its own */
    size_t fd_count;         /* <= KN_CHILD_FDS_MAX */
    bool keep_stderr;        /* share the caller's standard error; otherwise /dev/null like input and output */
} kn_child_params;

/* Whether this build has a sanitizer, which reserves terabytes of addresses, allocates in its own way and looks for
 * leaks as a debugger would: confinement leaves room for that. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KN_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define KN_SANITIZED 1
#endif
#endif
#ifndef KN_SANITIZED
#define KN_SANITIZED 0
#endif

typedef struct kn_child {
    int process; /* process id; 0: there is none */
    int pidfd;   /* readable when it has ended; -1: there is none */
} kn_child;

#define KN_CHILD_NONE ((kn_child){.process = 0, .pidfd = -1})

/* How a child ended. */
typedef struct kn_child_end {
    int code;   /* exit code; -1: ended by a signal */
    int signal; /* 0: exited */
} kn_child_end;

/* Starts the program; every descriptor that is not listed is closed in it, and its environment holds only what the
 * loader and the sanitizers need. KN_IO with the reason; `out` is then KN_CHILD_NONE. Thread-safe. */
kn_status kn_child_start(kn_child *out, const kn_child_params *params);

/* KN_OK when it has ended (it is reaped and *child becomes KN_CHILD_NONE), KN_AGAIN while it runs; `end` may be NULL.
 */
kn_status kn_child_reap(kn_child *child, kn_child_end *end);

/* SIGKILL, waits for the end, reaps. Accepts KN_CHILD_NONE. */
void kn_child_kill(kn_child *child);

/* In the child, first thing: it dies with the server (the thread that started it), dumps no core, gains no privileges,
 * and other processes of the user cannot read its memory. */
kn_status kn_child_enter(void);

#endif
