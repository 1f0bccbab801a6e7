/* SPDX-License-Identifier: Apache-2.0
 *
 * Decodes uploads in a process of their own, one per file, so that a decoder a file has taken over can do nothing: it
 * has no file, no network, no other process, 512 MiB, five seconds of processor time and one kind of decoder.
 *
 *   server                                        child (`kinora sandbox`)
 *   kn_image_sniff: kind, width, height
 *   input -> sealed memfd, output memfd of exactly
 *   width x height x 3 bytes, sealed in size
 *   start, ten second timer             ------>   rlimits, no_new_privs, Landlock, open the decoder, seccomp
 *                                                 take out what is not picture, decode, check the size,
 *                                                 convert into the output
 *   fixed-size report, exit status      <------   report, exit
 *   map the output, call back, unmap
 *
 * What comes out is pixels and nothing else: names, places, profiles and comments in the file end with the child. An
 * alpha channel is dropped, 16 bits are reduced to 8, an EXIF orientation is not applied and a colour profile is not
 * used: values are taken for sRGB.
 *
 * One sandbox belongs to the thread that runs its event base. */
#ifndef KN_SERVER_SANDBOX_H
#define KN_SERVER_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/image_sniff.h"

struct event_base;

typedef struct kn_sandbox kn_sandbox;

enum {
    KN_SANDBOX_CHILDREN_MAX = 4,       /* at one time */
    KN_SANDBOX_QUEUE_MAX = 16,         /* files accepted and not finished, running ones included */
    KN_SANDBOX_WALL_S = 10,            /* a child is killed after this much time */
    KN_SANDBOX_CPU_S = 5,              /* processor time of a child */
    KN_SANDBOX_MEMORY = 512 << 20,     /* bytes of address space of a child */
    KN_SANDBOX_ALLOCATION = 160 << 20, /* bytes of one allocation by the decoder */
};

typedef struct kn_sandbox_result {
    kn_status status;   /* KN_OK; KN_CORRUPT: the file cannot be decoded, or only beyond the limits; KN_UNAVAILABLE: no
                           child could be run; the file may be fine */
    const char *error;  /* one line for the client, "" after success; valid for the call */
    kn_image_info info; /* from the header */
    const uint8_t *rgb; /* [height, width, 3], red first; NULL without success; valid for the call */
    int32_t signal;     /* that ended the child, 0: it exited; SIGSYS: it tried what it may not; for metrics */
    bool timed_out;     /* killed by the clock */
} kn_sandbox_result;

/* Called from the event loop, never from inside kn_sandbox_decode; it may decode and cancel, and must not destroy. */
typedef void kn_sandbox_fn(void *context, const kn_sandbox_result *result);

typedef struct kn_sandbox_params {
    struct event_base *base; /* outlives the sandbox */
    const char *executable;  /* started as `executable sandbox ...`; NULL: this program */
    int32_t wall_s;          /* see KN_SANDBOX_WALL_S; 0: that */
    bool keep_stderr;        /* children share the server's standard error instead of none; for tests */
    const char *probe;       /* NULL; for tests: what the child does, confined, instead of decoding; sandbox_child.c */
} kn_sandbox_params;

kn_status kn_sandbox_create(kn_sandbox **out, const kn_sandbox_params *params);

/* Kills every child; nothing is called back. Accepts NULL. */
void kn_sandbox_destroy(kn_sandbox **sandbox);

/* Looks at the header (the statuses of kn_image_sniff), copies the bytes and decodes them in the background; `done` is
 * called exactly once unless it is cancelled. *ticket, which may be NULL, gets a number for kn_sandbox_cancel, never 0.
 * KN_AGAIN: KN_SANDBOX_QUEUE_MAX files are waiting. KN_NOMEM, KN_IO. */
kn_status kn_sandbox_decode(kn_sandbox *sandbox, const void *bytes, size_t count, kn_sandbox_fn *done, void *context,
                            uint64_t *ticket);

/* Forgets a file, killing its child; `done` will not be called. Unknown tickets are ignored. */
void kn_sandbox_cancel(kn_sandbox *sandbox, uint64_t ticket);

/* Files accepted and not finished. */
size_t kn_sandbox_pending(const kn_sandbox *sandbox);

/* The child's program: argv[0] is "sandbox". Returns the exit code. */
int kn_sandbox_main(int argc, char **argv);

#endif
