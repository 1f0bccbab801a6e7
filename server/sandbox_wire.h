/* SPDX-License-Identifier: Apache-2.0
 *
 * What the server and a decoding child agree on. The child gets its descriptors by number and the header's values as
 * arguments; its whole answer is one report of fixed size, because what it says may be the file's author speaking. */
#ifndef KN_SERVER_SANDBOX_WIRE_H
#define KN_SERVER_SANDBOX_WIRE_H

#include <stdint.h>

enum {
    KN_SANDBOX_INPUT_FD = 3,  /* the file, and KN_SANDBOX_PADDING zero bytes: decoders read a little further */
    KN_SANDBOX_OUTPUT_FD = 4, /* width x height x 3 bytes */
    KN_SANDBOX_REPORT_FD = 5,
    KN_SANDBOX_PADDING = 64,
    KN_SANDBOX_REPORT_MAGIC = 0x4b4e5342,
};

typedef enum kn_sandbox_code {
    KN_SANDBOX_DECODED = 1,
    KN_SANDBOX_DAMAGED,     /* the decoder refused it */
    KN_SANDBOX_OTHER_SIZE,  /* the picture is not of the size its header says */
    KN_SANDBOX_NO_MEMORY,   /* it needs more than the child may have */
    KN_SANDBOX_UNPREPARED,  /* the child could not be confined, or has no such decoder */
    KN_SANDBOX_PROBE_FREE,  /* a probe was not held back */
    KN_SANDBOX_PROBE_HELD,  /* a probe was answered with an error */
    KN_SANDBOX_PROBE_ABSENT /* this kernel lacks what is probed */
} kn_sandbox_code;

typedef struct kn_sandbox_report {
    uint32_t magic;
    int32_t code; /* kn_sandbox_code */
    int32_t width, height;
} kn_sandbox_report;

#endif
