/* SPDX-License-Identifier: Apache-2.0
 *
 * The files of a job, named from its id and epoch alone; no other text ever becomes a path.
 *
 *   checkpoints/<id>.<epoch>.<step>    state to resume from; a new name for each save, so that the one the store
 *                                      knows stays whole until the store knows the next
 *   blobs/<id>.<epoch>.mp4             the video
 *   blobs/<id>.<epoch>.webp            thumbnail: the frame in the middle
 *   blobs/<id>.<epoch>.jpg             spritesheet: up to 16 frames, four to a row
 *   <any of these>.tmp                 being written; worth nothing after a crash
 *
 * Files appear complete or not at all: written under .tmp, synced, renamed, the folder synced. Thread-safe. */
#ifndef KN_SERVER_ARTIFACT_H
#define KN_SERVER_ARTIFACT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/job.h"

enum {
    KN_ARTIFACT_NAME_BYTES = 80,      /* with the NUL */
    KN_ARTIFACT_CHECKPOINTS_KEPT = 3, /* newest saves of one job that stay on disk */
};

/* One lease of one job. */
typedef struct kn_lease {
    char job[KN_JOB_ID_BYTES];
    int64_t epoch;
} kn_lease;

typedef enum kn_artifact_kind {
    KN_ARTIFACT_CHECKPOINT,
    KN_ARTIFACT_VIDEO,
    KN_ARTIFACT_THUMBNAIL,
    KN_ARTIFACT_SPRITESHEET,
    KN_ARTIFACT_KINDS,
} kn_artifact_kind;

typedef struct kn_artifact {
    kn_artifact_kind kind;
    kn_lease lease;
    int32_t step;   /* of a checkpoint; 0 for the others */
    bool temporary; /* ends in .tmp */
} kn_artifact;

/* A valid job id and an epoch of at least 1. */
bool kn_lease_valid(const kn_lease *lease);
bool kn_lease_equal(const kn_lease *a, const kn_lease *b);

/* The name within its folder. */
void kn_artifact_name(char out[KN_ARTIFACT_NAME_BYTES], const kn_artifact *artifact);

/* What a name found in blobs/ or checkpoints/ belongs to; false for every name that kn_artifact_name would not make
 * (with or without ".tmp"). */
bool kn_artifact_parse(kn_artifact *out, const char *name);

/* "blobs" or "checkpoints". */
const char *kn_artifact_folder(kn_artifact_kind kind);

/* "<data>/<folder>/<name>", kn_alloc'ed; NULL without memory. */
char *kn_artifact_path(const char *data, const kn_artifact *artifact);

/* Makes the two folders below `data` unless they are there. */
kn_status kn_artifact_prepare(const char *data);

/* Writes a small file as described above. KN_IO names the file and the reason; nothing is left then. */
kn_status kn_artifact_write(const char *path, const void *bytes, size_t count);

/* SHA-256 and size of a regular file. KN_NOT_FOUND, KN_IO. */
kn_status kn_artifact_digest(const char *path, uint8_t sha256[KN_SHA256_BYTES], uint64_t *bytes);

/* Removes the job's files of the given kinds (bits 1 << kind) under every epoch up to and with lease->epoch, complete
 * or temporary. Goes through checkpoints/, which is small, but not through blobs/. What cannot be removed is logged and
 * left for the sweep at the server's start. */
void kn_artifact_remove(const char *data, const kn_lease *lease, unsigned kinds);

#endif
