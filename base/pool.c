/* SPDX-License-Identifier: Apache-2.0
 *
 * Workers sleep on a generation counter. To run a job the caller publishes it,
 * bumps the generation, takes tiles itself, then waits until every worker has
 * come back to idle. Operators follow each other within microseconds, so both
 * sides spin briefly before they sleep. */
#define _GNU_SOURCE
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/mem.h"

enum { MAX_THREADS = 1024, SPIN_COUNT = 4000 };

typedef struct worker {
    kn_pool *pool;
    pthread_t thread;
    int index;
} worker;

struct kn_pool {
    int threads; /* including the caller */
    int started; /* workers whose thread exists */
    worker *workers;

    kn_pool_fn *fn;
    void *context;
    int64_t tiles;
    _Alignas(64) atomic_int_fast64_t next_tile;
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_int busy; /* workers still inside the current generation */

    pthread_mutex_t lock;
    pthread_cond_t wake; /* generation changed or stopping */
    pthread_cond_t done; /* busy reached 0 */
    int stopping;
};

static void take_tiles(kn_pool *pool, int index)
{
    for (;;) {
        int64_t tile = atomic_fetch_add(&pool->next_tile, 1);
        if (tile >= pool->tiles) return;
        pool->fn(pool->context, tile, index);
    }
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    kn_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        for (int spin = 0; spin < SPIN_COUNT && atomic_load(&pool->generation) == seen; spin++) relax();
        pthread_mutex_lock(&pool->lock);
        while (atomic_load(&pool->generation) == seen && !pool->stopping) pthread_cond_wait(&pool->wake, &pool->lock);
        int stopping = pool->stopping;
        seen = atomic_load(&pool->generation);
        pthread_mutex_unlock(&pool->lock);
        if (stopping) return NULL;

        take_tiles(pool, self->index);
        if (atomic_fetch_sub(&pool->busy, 1) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static int usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

kn_status kn_pool_create(kn_pool **out, int threads)
{
    kn_status st = KN_OK;
    if (threads < 0 || threads > MAX_THREADS)
        return kn_fail(KN_INVALID, "threads is %d; it must be 0 (all cores) to %d", threads, MAX_THREADS);
    if (threads == 0) threads = usable_cores();

    kn_pool *pool = kn_alloc(sizeof *pool);
    if (!pool) return KN_NOMEM;
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->workers = kn_alloc_array((size_t)threads, sizeof *pool->workers);
    if (!pool->workers) {
        st = KN_NOMEM;
        goto fail;
    }
    for (int i = 1; i < threads; i++) {
        worker *w = &pool->workers[i];
        *w = (worker){.pool = pool, .index = i};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            st = kn_fail(KN_NOMEM, "cannot start thread %d of %d", i + 1, threads);
            goto fail;
        }
        pool->started = i;
    }
    *out = pool;
    return KN_OK;

fail:
    kn_pool_destroy(&pool);
    return st;
}

void kn_pool_destroy(kn_pool **handle)
{
    kn_pool *pool = *handle;
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = 1;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    kn_free(pool->workers);
    kn_free(pool);
    *handle = NULL;
}

int kn_pool_threads(const kn_pool *pool)
{
    return pool->threads;
}

void kn_pool_run(kn_pool *pool, int64_t tiles, kn_pool_fn *fn, void *context)
{
    if (tiles <= 0) return;
    if (pool->threads == 1 || tiles == 1) {
        for (int64_t tile = 0; tile < tiles; tile++) fn(context, tile, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->fn = fn;
    pool->context = context;
    pool->tiles = tiles;
    atomic_store(&pool->next_tile, 0);
    atomic_store(&pool->busy, pool->threads - 1);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);

    take_tiles(pool, 0);

    for (int spin = 0; spin < SPIN_COUNT && atomic_load(&pool->busy) != 0; spin++) relax();
    if (atomic_load(&pool->busy) == 0) return;
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->busy) != 0) pthread_cond_wait(&pool->done, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
