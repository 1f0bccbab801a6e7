/* SPDX-License-Identifier: Apache-2.0
 *
 * Deadline packing by hand: four devices, steps of a second that d devices do in 1 / d. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "scheduler/packing.h"

enum { DEVICES = 4 };

#define MS INT64_C(1000000)

static void open_packing(kn_packing *p)
{
    memset(p, 0, sizeof *p);
    p->now_ns = 1000 * MS;
    p->devices = (1u << DEVICES) - 1;
    p->largest = DEVICES;
    for (int32_t i = 0; i < DEVICES; i++) p->free_ns[i] = p->now_ns;
}

static kn_packed *add(kn_packing *p, double steps, int64_t within_ns)
{
    kn_packed job = {.slot = p->count,
                     .ready_ns = p->now_ns,
                     .deadline_ns = p->now_ns + within_ns,
                     .denoise.slices = steps,
                     .largest = DEVICES,
                     .burden = (float)steps};
    for (int32_t d = 1; d <= DEVICES; d++) {
        job.denoise.each[d] = 1e9 / d;
        job.denoise.best[d] = d;
    }
    const int32_t before = p->count;
    kn_packing_add(p, &job);
    assert_int_equal(p->count, before + 1);
    for (int32_t i = 0; i < p->count; i++)
        if (p->jobs[i].slot == before) return &p->jobs[i];
    return NULL;
}

static void near_ms(int64_t ns, int64_t ms)
{
    assert_true(ns >= ms * MS - MS && ns <= ms * MS + MS);
}

static void takes_the_smallest_group(void **state)
{
    (void)state;
    static const struct {
        int64_t within_ms, done_ms;
        int32_t devices;
        int points;
    } cases[] = {{9500, 8000, 1, 2}, /* a margin of a twentieth and of a slice */
                 {8500, 4000, 2, 2}, /* one device would do, without a margin */
                 {4600, 2667, 3, 2}, /* */
                 {2100, 2000, 4, 1}, /* in time, without a margin */
                 {1900, 0, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_packing p;
        open_packing(&p);
        kn_packed *job = add(&p, 8, cases[i].within_ms * MS);
        assert_int_equal(kn_packing_lay(&p), cases[i].points);
        assert_int_equal(job->fits, cases[i].points > 0);
        assert_int_equal(job->devices, cases[i].devices);
        if (job->fits) near_ms(job->done_ns - p.now_ns, cases[i].done_ms);
    }
}

/* What is free grows: one device for two seconds, then all four. */
static void goes_on_with_what_is_free(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    for (int32_t i = 1; i < DEVICES; i++) p.free_ns[i] += 2000 * MS;
    kn_packed *job = add(&p, 8, 3900 * MS);
    job->head_ns = 500 * MS; /* one step less on the first device, then 6.5 on four */
    job->tail_ns = 100 * MS;
    assert_int_equal(kn_packing_lay(&p), 1);
    assert_int_equal(job->devices, 1);
    near_ms(job->done_ns - p.now_ns, 2000 + 1625 + 100);
    job->deadline_ns -= 300 * MS;
    assert_int_equal(kn_packing_lay(&p), 0);
}

/* The later deadline gets what the earlier one leaves. */
static void shares_in_order_of_deadline(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    add(&p, 4, 8000 * MS);
    add(&p, 6, 2200 * MS);
    assert_int_equal(kn_packing_lay(&p), 2 + 2);
    assert_int_equal(p.jobs[0].slot, 1);
    assert_int_equal(p.jobs[0].devices, 4); /* three, for two seconds, leave no margin */
    near_ms(p.jobs[0].done_ns - p.now_ns, 1500);
    assert_int_equal(p.jobs[1].devices, 0);
    near_ms(p.jobs[1].start_ns - p.now_ns, 1500);
    near_ms(p.jobs[1].done_ns - p.now_ns, 1500 + 4000);
    near_ms(p.total_ns, 1500 + 5500);
}

static void drops_the_heaviest(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    add(&p, 4, 2000 * MS);
    add(&p, 12, 3900 * MS);
    add(&p, 6, 4000 * MS);
    assert_int_equal(kn_packing_lay(&p), 2 + 0 + 2);
    assert_int_equal(kn_packing_resolve(&p), 2 + 2);
    assert_true(p.jobs[1].dropped && !p.jobs[0].dropped && !p.jobs[2].dropped);

    open_packing(&p); /* the other way round: it was there first, and gives way */
    add(&p, 12, 3500 * MS);
    add(&p, 6, 4000 * MS);
    kn_packing_resolve(&p);
    assert_true(p.jobs[0].dropped && p.jobs[1].fits);

    open_packing(&p); /* nothing to choose between: the later one goes */
    add(&p, 10, 3900 * MS);
    add(&p, 10, 4000 * MS);
    kn_packing_resolve(&p);
    assert_true(p.jobs[0].fits && p.jobs[1].dropped);
}

static void counts_demand(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    kn_packed *job = add(&p, 8, 10000 * MS);
    for (int32_t d = 2; d <= DEVICES; d++) job->denoise.each[d] = 1e9 / d + 5e7; /* groups cost something */
    assert_true(kn_packing_demand(job, p.now_ns) == 8e9);
    job->deadline_ns = p.now_ns + 4400 * MS; /* all of them on two devices */
    const double two = kn_packing_demand(job, p.now_ns);
    assert_true(two > 8.7999e9 && two < 8.8001e9);
    job->deadline_ns = p.now_ns + 6200 * MS; /* half of them */
    const double half = kn_packing_demand(job, p.now_ns);
    assert_true(half > 8.3999e9 && half < 8.4001e9);
    job->deadline_ns = p.now_ns + 1000 * MS; /* impossible: all it can use */
    assert_true(kn_packing_demand(job, p.now_ns) > 9.5e9);
    assert_true(kn_packing_least(job) > 2.3999e9 && kn_packing_least(job) < 2.4001e9);
}

/* Decoding is shared as well, in groups of its own size, and what comes last is not. */
static void decodes_in_groups(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    kn_packed *job = add(&p, 8, 3600 * MS);
    job->decode.slices = 4;
    for (int32_t d = 1; d <= DEVICES; d++) {
        job->decode.each[d] = d == 1 ? 1e9 : d == 2 ? 6e8 : 3e8; /* no faster on four than on three */
        job->decode.best[d] = d < 3 ? d : 3;
    }
    job->tail_ns = 100 * MS;
    assert_int_equal(kn_packing_lay(&p), 1);
    near_ms(job->done_ns - p.now_ns, 2000 + 1200 + 100);
    assert_true(kn_packing_least(job) > 3.2999e9 && kn_packing_least(job) < 3.3001e9);
    job->deadline_ns = p.now_ns + 1000 * MS; /* impossible: two seconds on four, 1.2 on three */
    const double all = kn_packing_demand(job, p.now_ns);
    assert_true(all > 11.6999e9 && all < 11.7001e9);
    job->denoise.slices = 0; /* only decoding is left */
    job->deadline_ns = p.now_ns + 1500 * MS;
    assert_int_equal(kn_packing_lay(&p), 1);
    assert_int_equal(job->devices, 3);
    near_ms(job->done_ns - p.now_ns, 1200 + 100);
}

static void keeps_the_earliest(void **state)
{
    (void)state;
    kn_packing p;
    open_packing(&p);
    kn_packed job = {.largest = 1, .deadline_ns = 500};
    for (int32_t i = 0; i < KN_PACKING_JOBS; i++) {
        job.slot = i;
        job.deadline_ns = 1000 - i;
        kn_packing_add(&p, &job);
    }
    assert_int_equal(p.count, KN_PACKING_JOBS);
    assert_int_equal(p.jobs[0].slot, KN_PACKING_JOBS - 1);
    job.slot = 99;
    job.deadline_ns = 999; /* before the last, which gives way */
    kn_packing_add(&p, &job);
    assert_int_equal(p.count, KN_PACKING_JOBS);
    assert_int_equal(p.jobs[KN_PACKING_JOBS - 1].slot, 99);
    assert_int_equal(p.jobs[KN_PACKING_JOBS - 2].slot, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes_the_smallest_group),
        cmocka_unit_test(goes_on_with_what_is_free),
        cmocka_unit_test(shares_in_order_of_deadline),
        cmocka_unit_test(drops_the_heaviest),
        cmocka_unit_test(counts_demand),
        cmocka_unit_test(decodes_in_groups),
        cmocka_unit_test(keeps_the_earliest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
