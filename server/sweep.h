/* SPDX-License-Identifier: Apache-2.0
 *
 * Walks through blobs/ and checkpoints/, a few hundred names at a time, over and over. The first walk after a start
 * removes files that no row names, the later ones checkpoints and unfinished files that nobody needs any more; every
 * walk counts bytes. Belongs to the loop's thread. */
#ifndef KN_SERVER_SWEEP_H
#define KN_SERVER_SWEEP_H

#include "server/artifact.h"

typedef struct kn_sweep kn_sweep;

/* Does somebody still need the file? In doubt, yes. */
typedef bool kn_sweep_wanted_fn(void *context, const kn_artifact *artifact);

kn_status kn_sweep_create(kn_sweep **out, const char *data, kn_sweep_wanted_fn *wanted, void *context);
void kn_sweep_destroy(kn_sweep **sweep);

/* Looks at up to `entries` names. */
void kn_sweep_go(kn_sweep *sweep, int32_t entries);

/* How many walks are complete: 1 or more means that what nobody needs is gone. */
int64_t kn_sweep_walks(const kn_sweep *sweep);

/* Bytes in a folder as the last complete walk found them; before the first, what has been seen so far. `kind` names the
 * folder: KN_ARTIFACT_VIDEO or KN_ARTIFACT_CHECKPOINT. */
uint64_t kn_sweep_bytes(const kn_sweep *sweep, kn_artifact_kind kind);

#endif
