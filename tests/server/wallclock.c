/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/wallclock.h"

#define SECOND_US INT64_C(1000000)
#define SECOND_NS INT64_C(1000000000)
#define YEAR (365 * 86400)

typedef struct clocks {
    kn_wallclock guard;
    int64_t wall_us, monotonic_ns, step_us;
} clocks;

/* A second goes by and the wall clock is set `step` seconds off. */
static bool after(clocks *c, int64_t step)
{
    c->wall_us += SECOND_US * (1 + step);
    c->monotonic_ns += SECOND_NS;
    return kn_wallclock_trusted(&c->guard, c->wall_us, c->monotonic_ns, &c->step_us);
}

static clocks begin(void)
{
    clocks c = {.wall_us = INT64_C(1700000000) * SECOND_US, .monotonic_ns = 5 * SECOND_NS};
    assert_true(after(&c, 0)); /* what was before the start is not known, and no step */
    assert_int_equal(c.step_us, 0);
    return c;
}

static void a_clock_that_runs_is_trusted(void **state)
{
    (void)state;
    clocks c = begin();
    for (int i = 0; i < 1000; i++) {
        assert_true(after(&c, i % 7 == 0 ? 50 : i % 7 == 1 ? -50 : 0)); /* slewed, or a late look */
        assert_int_equal(c.step_us, 0);
    }
}

static void a_step_forward_is_waited_out(void **state)
{
    (void)state;
    clocks c = begin();
    assert_false(after(&c, YEAR));
    assert_int_equal(c.step_us, YEAR * SECOND_US);
    for (int i = 1; i < KN_WALLCLOCK_WAIT_SECONDS; i++) {
        assert_false(after(&c, 0));
        assert_int_equal(c.step_us, 0);
    }
    assert_true(after(&c, 0)); /* it stayed: it is the time now */
}

static void a_step_taken_back_costs_nothing(void **state)
{
    (void)state;
    clocks c = begin();
    assert_false(after(&c, YEAR));
    assert_false(after(&c, 0));
    assert_true(after(&c, -YEAR));
    assert_int_equal(c.step_us, -YEAR * SECOND_US);
    assert_true(after(&c, 0));
    assert_false(after(&c, 100)); /* and the next one counts anew */
}

static void a_step_back_alone_is_harmless(void **state)
{
    (void)state;
    clocks c = begin();
    assert_true(after(&c, -YEAR));
    assert_true(after(&c, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clock_that_runs_is_trusted),
        cmocka_unit_test(a_step_forward_is_waited_out),
        cmocka_unit_test(a_step_taken_back_costs_nothing),
        cmocka_unit_test(a_step_back_alone_is_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
