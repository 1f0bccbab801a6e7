/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages between the server and its workers, as C structs; FlatBuffers on the wire (schema/link.fbs).
 *
 *   server ─► worker   answered by       worker ─► server, unasked
 *   configure          up                beat    a sign of life
 *   load               loaded            fatal   the process ends; the device is lost
 *   unload             unloaded
 *   start              started
 *   run                ran
 *   release            released
 *   preview            previewed
 *   join               joined            a group; its shared memory's descriptor comes along
 *   leave              left
 *   assist             assisted          the helper's part of somebody else's run
 *
 * Whatever bytes come in: kn_wire_decode takes a copy of its own, aligned, lets the generated verifier walk it first,
 * with bounded depth and number of tables, and then holds every field against the limits below, so that a decoded
 * message is safe to use without looking again. Names that become paths have passed kn_lease_valid,
 * kn_model_name_valid and kn_artifact_parse. No state, thread-safe. */
#ifndef KN_SERVER_WIRE_H
#define KN_SERVER_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "server/runner.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    KN_WIRE_BYTES_MAX = 16 << 20, /* of one message */
    KN_WIRE_DEPTH_MAX = 8,        /* nested tables; the deepest message has 4 */
    KN_WIRE_TABLES_MAX = 256,     /* the largest, 32 outcomes of 4 tables each, has 130 */
    KN_WIRE_PATH_BYTES = 4096,    /* with the NUL, as all sizes of texts */
    KN_WIRE_ISA_BYTES = 16,
    KN_WIRE_MIME_BYTES = 32,
};

typedef enum kn_wire_kind {
    KN_WIRE_NONE, /* never sent */
    KN_WIRE_CONFIGURE,
    KN_WIRE_LOAD,
    KN_WIRE_UNLOAD,
    KN_WIRE_START,
    KN_WIRE_RUN,
    KN_WIRE_RELEASE,
    KN_WIRE_PREVIEW,
    KN_WIRE_UP,
    KN_WIRE_BEAT,
    KN_WIRE_LOADED,
    KN_WIRE_UNLOADED,
    KN_WIRE_STARTED,
    KN_WIRE_RAN,
    KN_WIRE_RELEASED,
    KN_WIRE_PREVIEWED,
    KN_WIRE_FATAL,
    KN_WIRE_JOIN,
    KN_WIRE_LEAVE,
    KN_WIRE_ASSIST,
    KN_WIRE_JOINED,
    KN_WIRE_LEFT,
    KN_WIRE_ASSISTED,
    KN_WIRE_KINDS,
} kn_wire_kind;

const char *kn_wire_kind_name(kn_wire_kind kind); /* "configure", ... */

typedef struct kn_wire_configure {
    kn_runner_params params; /* but for corrupt_fd; isa is never NULL */
    kn_log_level log_level;
    bool log_json;
} kn_wire_configure;

/* load, unload, loaded, unloaded */
typedef struct kn_wire_model {
    char model[KN_MODEL_NAME_BYTES];
    kn_status status;
    char message[KN_RUNNER_MESSAGE_BYTES];
    double seconds;
    uint64_t bytes;
} kn_wire_model;

typedef struct kn_wire_run {
    uint64_t assignment;
    kn_slice_kind kind;
    kn_lease leases[KN_RUNNER_PACK_MAX]; /* [count], 1 and more */
    int32_t count;
    uint64_t group; /* epoch of the group it leads; 0: alone */
    int64_t limit_ns;
} kn_wire_run;

/* join, leave, joined, left; the last three have the epoch, and joined how it went */
typedef struct kn_wire_group {
    kn_runner_group group;
    kn_status status;
    char message[KN_RUNNER_MESSAGE_BYTES];
} kn_wire_group;

/* assist, assisted: the first has a model, group and limit, the second how it went */
typedef struct kn_wire_assist {
    uint64_t assignment;
    char model[KN_MODEL_NAME_BYTES];
    uint64_t group;
    int64_t limit_ns;
    kn_status status;
    char message[KN_RUNNER_MESSAGE_BYTES];
    double seconds;
} kn_wire_assist;

/* release, preview; mode for the first alone */
typedef struct kn_wire_lease {
    kn_lease lease;
    kn_release_mode mode;
} kn_wire_lease;

typedef struct kn_wire_ran {
    uint64_t assignment;
    kn_slice_kind kind;
    double seconds;
    kn_outcome outcomes[KN_RUNNER_PACK_MAX]; /* [count], 1 and more */
    int32_t count;
    bool lost; /* the group was given up: those that did not fail are where they say they are */
    char message[KN_RUNNER_MESSAGE_BYTES]; /* why */
} kn_wire_ran;

typedef struct kn_wire_previewed {
    kn_lease lease;
    kn_status status;
    char message[KN_RUNNER_MESSAGE_BYTES];
    char mime[KN_WIRE_MIME_BYTES];
    const void *image; /* [count]; empty unless status is KN_OK */
    size_t count;
} kn_wire_previewed;

typedef struct kn_wire_fatal {
    kn_status status; /* <= KN_FATAL */
    char message[KN_RUNNER_MESSAGE_BYTES];
} kn_wire_fatal;

typedef struct kn_wire_message {
    kn_wire_kind kind;
    union {
        kn_wire_configure configure;
        kn_wire_model model; /* load, unload, loaded, unloaded */
        kn_runner_job start;
        kn_wire_run run;
        kn_wire_lease lease; /* release, preview */
        kn_device_info up;
        uint64_t beat;      /* counts from 1 */
        kn_outcome outcome; /* started, released */
        kn_wire_ran ran;
        kn_wire_previewed previewed;
        kn_wire_fatal fatal;
        kn_wire_group group;   /* join, leave, joined, left */
        kn_wire_assist assist; /* assist, assisted */
    };
    void *storage; /* what the pointers above point into, in a decoded message; kn_wire_release frees it */
} kn_wire_message;

/* Bytes to send, kn_alloc'ed. Texts of fixed size that are too long for their array cannot occur; texts behind pointers
 * beyond their limits are KN_INVALID, as is a message above KN_WIRE_BYTES_MAX. KN_NOMEM. */
kn_status kn_wire_encode(const kn_wire_message *message, void **bytes, size_t *count);

/* KN_CORRUPT: not a message, or one with a field outside its limits, which is named. KN_NOMEM. On failure *out is zero.
 */
kn_status kn_wire_decode(kn_wire_message *out, const void *bytes, size_t count);

/* Accepts a zeroed message. */
void kn_wire_release(kn_wire_message *message);

#ifdef __cplusplus
}
#endif

#endif
