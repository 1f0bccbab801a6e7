/* SPDX-License-Identifier: Apache-2.0
 *
 * Measures the two ceilings. Every thread runs the same loop; the best of many
 * short runs counts, as anything slower was disturbed. */
#define _GNU_SOURCE
#include "benchmarks/roofline.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum { REPEATS = 12, PARTS = 8 }; /* runs of PARTS tiles per thread, about 1 ms each */

typedef struct spin_job {
    kn_roofline_loop *loop;
    int64_t rounds;
    float *sinks;  /* [tiles], a cache line apart */
    double *rates; /* [tiles] operations per second of one thread */
} spin_job;

static void spin_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    spin_job *job = context;
    int64_t start = kn_clock_ns();
    double operations = job->loop(job->rounds, &job->sinks[tile * 16]);
    job->rates[tile] = operations / kn_clock_seconds(kn_clock_ns() - start);
}

/* Operations per second of `loop` on all threads of the pool: the best a thread reached while all were at work,
 * times their number. A ceiling has to be one even when something else takes a core for a while. */
static kn_status measure_loop(double *rate, kn_pool *pool, kn_roofline_loop *loop)
{
    kn_status st = KN_OK;
    const int threads = kn_pool_threads(pool);
    const int64_t tiles = (int64_t)threads * PARTS;
    spin_job job = {.loop = loop, .rounds = 100000};
    job.sinks = kn_alloc_array((size_t)tiles, 16 * sizeof(float));
    job.rates = kn_alloc_array((size_t)tiles, sizeof(double));
    if (!job.sinks || !job.rates) {
        st = KN_NOMEM;
        goto fail;
    }
    *rate = 0;
    for (int i = 0; i < REPEATS; i++) {
        kn_pool_run(pool, tiles, spin_tile, &job);
        for (int64_t t = 0; t < tiles; t++)
            if (job.rates[t] * threads > *rate) *rate = job.rates[t] * threads;
    }

fail:
    kn_free(job.sinks);
    kn_free(job.rates);
    return st;
}

kn_status kn_roofline_measure(kn_roofline *out, kn_isa isa, int threads)
{
    static kn_roofline_loop *const loops[KN_ISA_COUNT] = {kn_roofline_f32_ref, kn_roofline_f32_avx2,
                                                          kn_roofline_f32_avx512, kn_roofline_f32_avx512};
    kn_status st = KN_OK;
    kn_pool *pool = NULL;
    *out = (kn_roofline){0};
    KN_TRY(kn_pool_create(&pool, threads));
    out->threads = kn_pool_threads(pool);
    KN_TRY(measure_loop(&out->f32_rate, pool, loops[isa]));
    out->bf16_rate = out->f32_rate;
    if (isa == KN_ISA_AVX512BF16) KN_TRY(measure_loop(&out->bf16_rate, pool, kn_roofline_bf16_avx512bf16));

fail:
    kn_pool_destroy(&pool);
    return st;
}

/* ---- memory: a = b + s c (the triad of McCalpin's STREAM) ---- */

enum { TRIAD_BLOCK = 1 << 17 }; /* floats */

typedef struct triad_job {
    float *a, *b, *c;
} triad_job;

static void triad_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const triad_job *job = context;
    float *restrict a = job->a + tile * TRIAD_BLOCK;
    const float *restrict b = job->b + tile * TRIAD_BLOCK, *restrict c = job->c + tile * TRIAD_BLOCK;
    for (int64_t i = 0; i < TRIAD_BLOCK; i++) a[i] = b[i] + 3.0f * c[i];
}

/* Four times the last cache, within 64 to 512 MiB. */
static int64_t triad_blocks(void)
{
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    int64_t bytes = 4 * (cache > 0 ? (int64_t)cache : 0);
    if (bytes < (int64_t)64 << 20) bytes = (int64_t)64 << 20;
    if (bytes > (int64_t)512 << 20) bytes = (int64_t)512 << 20;
    return bytes / (TRIAD_BLOCK * (int64_t)sizeof(float));
}

kn_status kn_roofline_measure_memory(double *bytes_per_second, int threads)
{
    kn_status st = KN_OK;
    kn_pool *pool = NULL;
    const int64_t blocks = triad_blocks();
    const size_t bytes = (size_t)blocks * TRIAD_BLOCK * sizeof(float);
    triad_job job = {kn_alloc(bytes), kn_alloc(bytes), kn_alloc(bytes)};
    if (!job.a || !job.b || !job.c) {
        st = KN_NOMEM;
        goto fail;
    }
    KN_TRY(kn_pool_create(&pool, threads));
    for (int64_t i = 0; i < blocks * TRIAD_BLOCK; i++) job.b[i] = job.c[i] = 1; /* zero pages would share memory */
    kn_pool_run(pool, blocks, triad_tile, &job);
    *bytes_per_second = 0;
    for (int i = 0; i < REPEATS; i++) {
        int64_t start = kn_clock_ns();
        kn_pool_run(pool, blocks, triad_tile, &job);
        double rate = 3 * (double)bytes / kn_clock_seconds(kn_clock_ns() - start);
        if (rate > *bytes_per_second) *bytes_per_second = rate;
    }

fail:
    kn_pool_destroy(&pool);
    kn_free(job.a);
    kn_free(job.b);
    kn_free(job.c);
    return st;
}

double kn_roofline_seconds(const kn_roofline *bound, double operations, double bytes, bool bf16, const char **limit)
{
    double arithmetic = operations / (bf16 ? bound->bf16_rate : bound->f32_rate);
    double memory = bytes / bound->memory_bytes;
    *limit = arithmetic >= memory ? (bf16 ? "bf16" : "f32") : "memory";
    return arithmetic >= memory ? arithmetic : memory;
}

/* The reference tier computes one double at a time. */
double kn_roofline_f32_ref(int64_t rounds, float *sink)
{
    enum { CHAINS = 12 };
    double chain[CHAINS], sum = 0;
    for (int i = 0; i < CHAINS; i++) chain[i] = i;
    for (int64_t r = 0; r < rounds; r++)
        for (int i = 0; i < CHAINS; i++) chain[i] = chain[i] * 0.999 + 0.5;
    for (int i = 0; i < CHAINS; i++) sum += chain[i];
    *sink = (float)sum;
    return 2.0 * CHAINS * (double)rounds;
}
