/* SPDX-License-Identifier: Apache-2.0
 *
 * Also run under ThreadSanitizer (preset tsan): the counters below that are not
 * atomic are safe only if the pool keeps its promises. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "base/pool.h"

enum { THREADS_MAX = 8, TILES_MAX = 1000 };

typedef struct tally {
    int threads;
    int runs[TILES_MAX];            /* how often each tile ran; a tile has one writer */
    int64_t by_worker[THREADS_MAX]; /* tiles per worker; not atomic: a worker runs one tile at a time */
    atomic_int inside[THREADS_MAX]; /* tiles now running on a worker */
    atomic_int broken;
} tally;

static void count_tile(void *context, int64_t tile, int worker)
{
    tally *t = context;
    if (worker < 0 || worker >= t->threads || tile < 0 || tile >= TILES_MAX) {
        atomic_store(&t->broken, 1);
        return;
    }
    if (atomic_fetch_add(&t->inside[worker], 1) != 0) atomic_store(&t->broken, 1);
    t->runs[tile]++;
    t->by_worker[worker]++;
    atomic_fetch_sub(&t->inside[worker], 1);
}

static void every_tile_runs_once(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 2, 3, 7, 8, 9, 64, TILES_MAX};
    for (int threads = 1; threads <= THREADS_MAX; threads++) {
        kn_pool *pool = NULL;
        assert_int_equal(kn_pool_create(&pool, threads), KN_OK);
        assert_int_equal(kn_pool_threads(pool), threads);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
            static tally t;
            memset(&t, 0, sizeof t);
            t.threads = threads;
            kn_pool_run(pool, counts[c], count_tile, &t);
            int64_t total = 0;
            for (int w = 0; w < THREADS_MAX; w++) total += t.by_worker[w];
            assert_int_equal(atomic_load(&t.broken), 0);
            assert_int_equal(total, counts[c]);
            for (int64_t i = 0; i < TILES_MAX; i++) assert_int_equal(t.runs[i], i < counts[c]);
        }
        kn_pool_destroy(&pool);
        assert_null(pool);
    }
    kn_pool *none = NULL;
    kn_pool_destroy(&none);
}

static void add_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    int64_t *cells = context; /* one writer per cell and job; the next job must see it */
    cells[tile] += tile + 1;
}

/* Operators follow each other at once: each job reads what the one before wrote, mostly from another thread. */
static void many_small_jobs_see_each_other(void **state)
{
    (void)state;
    for (int threads = 1; threads <= THREADS_MAX; threads += 3) {
        kn_pool *pool = NULL;
        assert_int_equal(kn_pool_create(&pool, threads), KN_OK);
        int64_t cells[11] = {0};
        enum { JOBS = 2000 };
        int64_t expected[11] = {0};
        for (int job = 0; job < JOBS; job++) {
            int64_t tiles = job % 12;
            kn_pool_run(pool, tiles, add_tile, cells);
            for (int64_t i = 0; i < tiles; i++) expected[i] += i + 1;
            if (job % 97 == 0) assert_memory_equal(cells, expected, sizeof cells);
        }
        assert_memory_equal(cells, expected, sizeof cells);
        kn_pool_destroy(&pool);
    }
}

static void wait_for_all(void *context, int64_t tile, int worker)
{
    (void)worker;
    (void)tile;
    atomic_int *arrived = context;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 4) {
    }
}

/* Four tiles that wait for each other end only if four threads really run them. */
static void tiles_run_at_the_same_time(void **state)
{
    (void)state;
    kn_pool *pool = NULL;
    assert_int_equal(kn_pool_create(&pool, 4), KN_OK);
    atomic_int arrived = 0;
    kn_pool_run(pool, 4, wait_for_all, &arrived);
    assert_int_equal(atomic_load(&arrived), 4);
    kn_pool_destroy(&pool);
}

static void nothing_runs_for_no_tiles_and_nothing_is_allocated(void **state)
{
    (void)state;
    kn_pool *pool = NULL;
    assert_int_equal(kn_pool_create(&pool, 3), KN_OK);
    static tally t;
    t.threads = 3;
    kn_pool_run(pool, 0, count_tile, &t);
    kn_pool_run(pool, -5, count_tile, &t);
    assert_int_equal(t.runs[0], 0);
    uint64_t before = kn_mem_read().allocations;
    kn_pool_run(pool, TILES_MAX, count_tile, &t);
    assert_int_equal(kn_mem_read().allocations, before);
    assert_int_equal(t.runs[TILES_MAX - 1], 1);
    kn_pool_destroy(&pool);
}

static void thread_counts_have_limits(void **state)
{
    (void)state;
    kn_pool *pool = NULL;
    assert_int_equal(kn_pool_create(&pool, -1), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "threads is -1"));
    assert_int_equal(kn_pool_create(&pool, 100000), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "1024"));
    assert_null(pool);
    assert_int_equal(kn_pool_create(&pool, 0), KN_OK); /* every core */
    assert_true(kn_pool_threads(pool) >= 1);
    kn_pool_destroy(&pool);
}

static void a_failed_create_leaves_nothing(void **state)
{
    (void)state;
    uint64_t before = kn_mem_read().bytes;
    kn_pool *pool = NULL;
    kn_status st = KN_NOMEM;
    uint64_t n = 0;
    while (st == KN_NOMEM) {
        kn_mem_fail_at(++n);
        st = kn_pool_create(&pool, 3);
        if (st == KN_OK) break;
        assert_null(pool);
        assert_non_null(strstr(kn_fail_message(), "out of memory"));
        assert_int_equal(kn_mem_read().bytes, before);
    }
    kn_mem_fail_at(0);
    assert_int_equal(st, KN_OK);
    assert_true(n >= 3); /* at least two allocations were broken before one went through */
    kn_pool_destroy(&pool);
    assert_int_equal(kn_mem_read().bytes, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tile_runs_once),
        cmocka_unit_test(many_small_jobs_see_each_other),
        cmocka_unit_test(tiles_run_at_the_same_time),
        cmocka_unit_test(nothing_runs_for_no_tiles_and_nothing_is_allocated),
        cmocka_unit_test(thread_counts_have_limits),
        cmocka_unit_test(a_failed_create_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
