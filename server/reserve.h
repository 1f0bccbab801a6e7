/* SPDX-License-Identifier: Apache-2.0
 *
 * Disk space put by for a full disk: the file <data>/reserve. While it is held the server takes new jobs. When the disk
 * is full, or nearly so, the file is given up: what has been accepted can then still be checkpointed, published,
 * cancelled and deleted, and new jobs are refused until there is room to take the reserve again.
 *
 *           disk full, or free < bytes / 4
 *     held ───────────────────────────────► given up        a start finds the file: held; else takes it if it can
 *          ◄───────────────────────────────
 *                  free >= 2 bytes
 *
 * One thread at a time. */
#ifndef KN_SERVER_RESERVE_H
#define KN_SERVER_RESERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_reserve {
    char *path;
    int64_t bytes; /* 0: none is kept, and it always counts as held */
    bool held;
    int64_t free_bytes; /* of the file system, for who is not root, when last looked; -1: not known */
} kn_reserve;

/* KN_NOMEM. Without room it is not held and that is no failure. `bytes` 0 removes a file of an earlier life. */
kn_status kn_reserve_open(kn_reserve *out, const char *directory, int64_t bytes);

/* Looks at the disk; `full`: something could not be written just now. True when `held` has changed. */
bool kn_reserve_tend(kn_reserve *reserve, bool full);

/* Leaves the file where it is. */
void kn_reserve_close(kn_reserve *reserve);

#endif
