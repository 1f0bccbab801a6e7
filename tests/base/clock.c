/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"

static void time_never_goes_back(void **state)
{
    (void)state;
    int64_t last = kn_clock_ns();
    for (int i = 0; i < 100000; i++) {
        int64_t now = kn_clock_ns();
        assert_true(now >= last);
        last = now;
    }
}

/* A sleep has a lower bound on any machine, however loaded. */
static void time_counts_nanoseconds(void **state)
{
    (void)state;
    int64_t before = kn_clock_ns();
    struct timespec pause = {.tv_nsec = 5 * 1000 * 1000};
    while (nanosleep(&pause, &pause) != 0) {
    }
    assert_true(kn_clock_ns() - before >= 5 * 1000 * 1000);
    assert_true(kn_clock_seconds(2500000000) == 2.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_never_goes_back),
        cmocka_unit_test(time_counts_nanoseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
