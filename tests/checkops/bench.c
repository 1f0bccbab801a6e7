/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory, timing and the table. The best of several runs is reported: on a
 * shared machine it is the one that was disturbed least. A share above 100 % of
 * the memory bound means that the operands came from cache. */
#include "tests/checkops/bench.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/mem.h"
#include "tests/checkops/peer.h"

enum { REPEATS_MIN = 3, REPEATS_MAX = 500 };
#define BENCH_SECONDS 0.25 /* per case and tier, unless REPEATS_MIN takes longer */

static void print_bounds(const bench *b)
{
    for (int i = 0; i < b->tier_count; i++) {
        const bench_tier *t = &b->tiers[i];
        if (b->json)
            printf("%s\n    {\"tier\": \"%s\", \"f32_gflops\": %.1f, \"bf16_gflops\": %.1f, \"memory_gbs\": %.2f}",
                   i ? "," : "", kn_isa_name(t->isa), t->bound.f32_rate * 1e-9, t->bound.bf16_rate * 1e-9,
                   t->bound.memory_bytes * 1e-9);
        else
            printf("%-11s f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, memory %.2f GB/s\n", kn_isa_name(t->isa),
                   t->bound.f32_rate * 1e-9, t->bound.bf16_rate * 1e-9, t->bound.memory_bytes * 1e-9);
    }
}

static void print_header(bench *b)
{
    kn_device_info info;
    kn_device_describe(b->tiers[0].device, &info);
    if (b->json) {
        printf("{\"processor\": \"%s\", \"threads\": %d, \"bounds\": [", info.description, b->threads);
        print_bounds(b);
        printf("],\n \"results\": [");
        return;
    }
    printf("%s, %d threads\n", info.description, b->threads);
    print_bounds(b);
    printf("%-15s %-12s %-47s %-5s %10s %9s %-8s %-7s %6s\n", "operator", "tier", "shape", "type", "ms", "rate", "",
           "bound", "of it");
}

kn_status bench_open(bench *b, kn_isa isa, int threads, bool json)
{
    kn_status st = KN_OK;
    double memory;
    *b = (bench){.threads = threads, .json = json, .first_row = true};
    if (isa != KN_ISA_COUNT && isa > kn_isa_detect())
        return b->status = kn_fail(KN_UNAVAILABLE, "this processor does not have %s", kn_isa_name(isa));
    KN_TRY(kn_roofline_measure_memory(&memory, threads));
    for (kn_isa i = KN_ISA_REF; i <= kn_isa_detect(); i++) {
        if (isa == KN_ISA_COUNT ? i == KN_ISA_REF : i != isa) continue;
        bench_tier *tier = &b->tiers[b->tier_count++];
        tier->isa = i;
        kn_device_params params = {.name = "cpu", .threads = threads, .isa = kn_isa_name(i)};
        KN_TRY(kn_device_open(&tier->device, &params));
        KN_TRY(kn_stream_create(&tier->stream, tier->device));
        KN_TRY(kn_roofline_measure(&tier->bound, i, threads));
        tier->bound.memory_bytes = memory;
        if (b->tier_count > 1) /* a later tier has the earlier one's instructions too */
            tier->bound.f32_rate = fmax(tier->bound.f32_rate, tier[-1].bound.f32_rate);
        tier->bound.bf16_rate = fmax(tier->bound.bf16_rate, tier->bound.f32_rate);
        b->threads = tier->bound.threads;
    }
    if (b->tier_count == 0) return b->status = kn_fail(KN_UNAVAILABLE, "this processor has no tier above ref");
    print_header(b);

fail:
    b->status = st;
    return st;
}

void bench_close(bench *b)
{
    bench_release(b);
    if (b->json && b->status == KN_OK) printf("\n]}\n");
    for (int i = 0; i < b->tier_count; i++) {
        kn_stream_destroy(&b->tiers[i].stream);
        kn_device_close(&b->tiers[i].device);
    }
    b->tier_count = 0;
}

/* ---- memory ---- */

void *bench_block(bench *b, size_t bytes)
{
    if (b->status != KN_OK) return NULL;
    void *block = b->block_count < BENCH_BLOCKS ? kn_alloc(bytes) : NULL;
    if (!block) {
        b->status = kn_fail(KN_NOMEM, "%s: no memory for %zu bytes", b->op, bytes);
        return NULL;
    }
    b->blocks[b->block_count++] = block;
    return block;
}

void bench_release(bench *b)
{
    for (int i = 0; i < b->block_count; i++) kn_free(b->blocks[i]);
    b->block_count = 0;
}

/* Values in (-1, 1), none smaller than 2^-10 but zero. */
static void fill(void *data, int64_t count, kn_dtype dtype)
{
    uint32_t state = 1;
    for (int64_t i = 0; data && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        check_store(data, dtype, i, (double)(int32_t)(state >> 21) / 1024 - 1);
    }
}

kn_matrix bench_matrix(bench *b, int64_t rows, int64_t cols, kn_dtype dtype)
{
    void *data = bench_block(b, (size_t)(rows * cols) * kn_dtype_bytes(dtype));
    fill(data, rows * cols, dtype);
    return (kn_matrix){.data = data, .rows = rows, .cols = cols, .stride = cols, .dtype = dtype};
}

const float *bench_vector(bench *b, int64_t count)
{
    return bench_matrix(b, 1, count, KN_F32).data;
}

kn_frame bench_frame(bench *b, int32_t height, int32_t width, int32_t channels, int32_t border, kn_dtype dtype)
{
    kn_frame f = {.height = height,
                  .width = width,
                  .channels = channels,
                  .row_stride = width + 2 * border,
                  .border = border,
                  .dtype = dtype};
    const int64_t element = (int64_t)kn_dtype_bytes(dtype), row = (int64_t)f.row_stride * channels;
    char *data = bench_block(b, (size_t)((height + 2 * border) * row * element));
    if (!data) return f;
    f.data = data + (border * row + (int64_t)border * channels) * element;
    for (int32_t y = 0; y < height; y++) fill((char *)f.data + y * row * element, (int64_t)width * channels, dtype);
    return f;
}

/* ---- timing ---- */

static void print_row(bench *b, const char *tier, const char *shape, kn_dtype dtype, double seconds,
                      const bench_case *one, const kn_roofline *bound)
{
    const char *limit;
    double least = kn_roofline_seconds(bound, one->operations, one->bytes, dtype == KN_BF16, &limit);
    bool arithmetic = one->operations > 0;
    double rate = (arithmetic ? one->operations : one->bytes) / seconds * 1e-9;
    if (b->json)
        printf(
            "%s\n    {\"operator\": \"%s\", \"tier\": \"%s\", \"shape\": \"%s\", \"type\": \"%s\", \"seconds\": %.6g, "
            "\"rate\": %.4g, \"unit\": \"%s\", \"bound\": \"%s\", \"share\": %.4f}",
            b->first_row ? "" : ",", b->op, tier, shape, check_dtype_name(dtype), seconds, rate,
            arithmetic ? "GFLOP/s" : "GB/s", limit, least / seconds);
    else
        printf("%-15s %-12s %-47s %-5s %10.3f %9.1f %-8s %-7s %5.1f%%\n", b->op, tier, shape, check_dtype_name(dtype),
               seconds * 1e3, rate, arithmetic ? "GFLOP/s" : "GB/s", limit, 100 * least / seconds);
    b->first_row = false;
    fflush(stdout);
}

static kn_status time_best(const bench_tier *tier, const bench_case *one, const void *args, double *seconds)
{
    const kn_ops *ops = kn_device_ops(tier->device);
    double total = 0;
    *seconds = 1e30;
    for (int i = 0; i < REPEATS_MAX && (i < REPEATS_MIN || total < BENCH_SECONDS); i++) {
        int64_t start = kn_clock_ns();
        kn_status st = one->call(ops, tier->stream, args);
        double elapsed = kn_clock_seconds(kn_clock_ns() - start);
        if (st != KN_OK) return st;
        total += elapsed;
        if (elapsed < *seconds) *seconds = elapsed;
    }
    return KN_OK;
}

void bench_measure(bench *b, const bench_case *one, const char *format, ...)
{
    char shape[96];
    va_list list;
    va_start(list, format);
    vsnprintf(shape, sizeof shape, format, list);
    va_end(list);
    for (int i = 0; i < b->tier_count && b->status == KN_OK; i++) {
        const bench_tier *tier = &b->tiers[i];
        _Alignas(64) char args[CHECK_ARGS_BYTES];
        double seconds;
        check_note(b->op, kn_isa_name(tier->isa), b->threads, shape);
        memcpy(args, one->args, one->args_bytes);
        if (one->prepare) b->status = one->prepare(b, tier, args);
        if (b->status == KN_OK) b->status = time_best(tier, one, args, &seconds);
        if (b->status == KN_OK) print_row(b, kn_isa_name(tier->isa), shape, one->compute, seconds, one, &tier->bound);
    }
    bench_release(b);
}

void bench_peer_gemm(bench *b, int64_t m, int64_t n, int64_t k, kn_dtype dtype)
{
    double seconds;
    if (b->status != KN_OK || !peer_name()) return;
    if (peer_gemm_seconds(&seconds, m, n, k, dtype, b->threads) != KN_OK) return;
    const double element = (double)kn_dtype_bytes(dtype), rows = (double)m, columns = (double)n, depth = (double)k;
    const bench_case same = {.operations = 2 * rows * columns * depth,
                             .bytes = (rows * depth + columns * depth + rows * columns) * element};
    char shape[96];
    snprintf(shape, sizeof shape, "%lld x %lld x %lld, bare", (long long)m, (long long)n, (long long)k);
    print_row(b, peer_name(), shape, dtype, seconds, &same, &b->tiers[b->tier_count - 1].bound);
}
