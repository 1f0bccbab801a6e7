/* SPDX-License-Identifier: Apache-2.0
 *
 * A fixed set of threads that share out the tiles of one operator at a time.
 * Which thread computes a tile is left open; what the tile computes must not
 * depend on it. */
#ifndef KN_BASE_POOL_H
#define KN_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

typedef struct kn_pool kn_pool;

/* One tile: `tile` counts from 0, `worker` is 0 for the caller and below
 * kn_pool_threads(), and no two tiles run on one worker at the same time, so it
 * indexes per-thread scratch. */
typedef void kn_pool_fn(void *context, int64_t tile, int worker);

/* `threads` >= 1 counts the calling thread; 0 means every core this process may
 * run on. */
kn_status kn_pool_create(kn_pool **out, int threads);
void kn_pool_destroy(kn_pool **pool);
int kn_pool_threads(const kn_pool *pool);

/* Runs fn for tiles 0..tiles-1 and returns when all are done. Allocates
 * nothing. One caller at a time; must not be called from inside a tile. */
void kn_pool_run(kn_pool *pool, int64_t tiles, kn_pool_fn *fn, void *context);

#endif
