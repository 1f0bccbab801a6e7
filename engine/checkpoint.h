/* SPDX-License-Identifier: Apache-2.0
 *
 * What outlives a slice: the state of one generation between two denoise steps,
 * in one safetensors file. Text states are not kept, they follow from the
 * request; coefficients are not kept, they follow from the step (sampling.h).
 *
 * The file's metadata holds "format" ("kinora.checkpoint"), "version", "request",
 * "model" and "next_step"; its tensors are named like the fields below, F32,
 * absent where the pointer is NULL. No checksum: the file system is trusted to
 * return the bytes it was given. Thread-safe, no state. */
#ifndef KN_ENGINE_CHECKPOINT_H
#define KN_ENGINE_CHECKPOINT_H

#include <stdint.h>

#include "base/status.h"

enum {
    KN_CHECKPOINT_VERSION = 1,            /* a file of another version is refused, not converted */
    KN_CHECKPOINT_TEXT_MAX = 16 << 20,    /* bytes of the request */
    KN_CHECKPOINT_MODEL_MAX = 1024,       /* bytes of the fingerprint */
    KN_CHECKPOINT_ELEMENTS_MAX = 1 << 28, /* of one tensor; 1 GiB */
};

/* history: x_prev and m_prev come together and not before next_step 1; m_prev2 needs both and next_step 2. Euler has
 * none of them. */
typedef struct kn_checkpoint {
    const char *request;  /* JSON text in UTF-8; opaque here */
    const char *model;    /* fingerprint of configuration and weights; the caller compares it */
    int32_t next_step;    /* denoise step to run next, 0..KN_STEPS_MAX; the request's steps: decoding is next */
    int64_t shape[4];     /* C, T, H, W, each at least 1 */
    const float *latents; /* [C, T, H, W] */
    const float *x_prev;  /* [C, T, H, W] or NULL, as the two below */
    const float *m_prev;
    const float *m_prev2;
    void *storage; /* what load() allocated; NULL in a struct the caller fills for save() */
} kn_checkpoint;

/* Replaces `path` in one step: a reader, or a crash at any moment, finds the old file or the new one. KN_INVALID: a
 * field outside the limits above, a value that is not finite. KN_IO. */
kn_status kn_checkpoint_save(const kn_checkpoint *checkpoint, const char *path);

/* Reads and checks everything; the pointers stay valid until release(), whatever happens to the file. On failure *out
 * is all zero. KN_NOT_FOUND; KN_UNSUPPORTED: another version; KN_CORRUPT: anything else the file gets wrong. */
kn_status kn_checkpoint_load(kn_checkpoint *out, const char *path);

/* Frees what load() allocated and zeroes the struct. Accepts NULL and a zeroed struct. */
void kn_checkpoint_release(kn_checkpoint *checkpoint);

#endif
