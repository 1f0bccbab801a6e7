/* SPDX-License-Identifier: Apache-2.0 */
#include "server/wallclock.h"

bool kn_wallclock_trusted(kn_wallclock *clock, int64_t wall_us, int64_t monotonic_ns, int64_t *step_us)
{
    const int64_t ahead_us = wall_us - monotonic_ns / 1000;
    const int64_t step = clock->known ? ahead_us - clock->ahead_us : 0;
    const int64_t limit = KN_WALLCLOCK_STEP_SECONDS * INT64_C(1000000);
    *step_us = step > limit || step < -limit ? step : 0;
    clock->ahead_us = ahead_us;
    clock->known = true;
    if (*step_us > 0) clock->wait_until_ns = monotonic_ns + KN_WALLCLOCK_WAIT_SECONDS * INT64_C(1000000000);
    if (*step_us < 0) clock->wait_until_ns = 0; /* it was taken back */
    return monotonic_ns >= clock->wait_until_ns;
}
