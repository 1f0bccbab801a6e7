/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KN_BASE_CLOCK_H
#define KN_BASE_CLOCK_H

#include <stdint.h>

/* Monotonic time in nanoseconds, from an arbitrary start. Thread-safe. */
int64_t kn_clock_ns(void);

static inline double kn_clock_seconds(int64_t ns)
{
    return (double)ns * 1e-9;
}

#endif
