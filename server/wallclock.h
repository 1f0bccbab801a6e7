/* SPDX-License-Identifier: Apache-2.0
 *
 * May the wall clock be believed where it makes us throw things away? A step forward (a clock set wrong, a machine that
 * slept) would make everything old at once. After one, nothing expires and nothing is purged for ten minutes: a step
 * that is taken back meanwhile has cost nothing, one that stays is followed then. After a step back things simply live
 * longer. What happened while no server ran cannot be told from time that went by.
 *
 * A pure function of the two clocks. */
#ifndef KN_SERVER_WALLCLOCK_H
#define KN_SERVER_WALLCLOCK_H

#include <stdbool.h>
#include <stdint.h>

enum {
    KN_WALLCLOCK_STEP_SECONDS = 60, /* more than this between two looks, and not gone by, is a step */
    KN_WALLCLOCK_WAIT_SECONDS = 600,
};

typedef struct kn_wallclock {
    int64_t ahead_us; /* wall clock minus monotonic clock, at the last look */
    int64_t wait_until_ns;
    bool known;
} kn_wallclock;

/* A look, about once a second. *step_us: how far the clock was set since the last one, 0: it was not. */
bool kn_wallclock_trusted(kn_wallclock *clock, int64_t wall_us, int64_t monotonic_ns, int64_t *step_us);

#endif
