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
                   i ? "," : "", t->name, t->bound.f32_rate * 1e-9, t->bound.bf16_rate * 1e-9,
                   t->bound.memory_bytes * 1e-9);
        else
            printf("%-11s f32 %.1f GFLOP/s, bf16 %.1f GFLOP/s, memory %.2f GB/s\n", t->name, t->bound.f32_rate * 1e-9,
                   t->bound.bf16_rate * 1e-9, t->bound.memory_bytes * 1e-9);
    }
}

/* Clocks and power, which decide what a GPU can do. */
static void print_state(const bench *b, const char *when)
{
    kn_gpu_state s;
    kn_gpu_state_read(b->gpu, &s);
    if (b->json)
        printf("\"%s\": {\"driver\": \"%s\", \"sm_mhz\": %d, \"sm_mhz_max\": %d, \"memory_mhz\": %d, \"celsius\": %d, "
               "\"throttle_reasons\": %d, \"watts\": %.1f, \"watts_limit\": %.1f}, ",
               when, s.driver, s.sm_mhz, s.sm_mhz_max, s.memory_mhz, s.temperature, s.throttle, s.watts, s.watts_limit);
    else
        printf("%s: driver %s, SM %d of %d MHz, memory %d MHz, %.0f of %.0f W, %d C, throttle reasons 0x%x\n", when,
               s.driver[0] ? s.driver : "unknown", s.sm_mhz, s.sm_mhz_max, s.memory_mhz, s.watts, s.watts_limit,
               s.temperature, (unsigned)s.throttle);
}

static void print_header(bench *b)
{
    kn_device_info info;
    kn_device_describe(b->tiers[0].device, &info);
    if (b->json) {
        printf("{\"processor\": \"%s\", \"threads\": %d, ", info.description, b->threads);
        if (b->gpu) print_state(b, "before");
        printf("\"bounds\": [");
        print_bounds(b);
        printf("],\n \"results\": [");
        return;
    }
    printf("%s, %d %s\n", info.description, b->threads, b->gpu ? "multiprocessors" : "threads");
    if (b->gpu) print_state(b, "before");
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
        snprintf(tier->name, sizeof tier->name, "%s", kn_isa_name(i));
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

kn_status bench_open_gpu(bench *b, const char *device, bool json)
{
    kn_status st = KN_OK;
    kn_device_info info;
    *b = (bench){.json = json, .first_row = true, .op = "bounds", .tier_count = 1};
    bench_tier *tier = &b->tiers[0];
    KN_TRY(kn_device_open(&tier->device, &(kn_device_params){.name = device}));
    KN_TRY(kn_stream_create(&tier->stream, tier->device));
    KN_TRY(kn_gpu_open(&b->gpu, tier->stream));
    kn_device_describe(tier->device, &info);
    snprintf(tier->name, sizeof tier->name, "%s", info.tier);
    b->threads = info.threads;
    KN_TRY(kn_gpu_bounds(b->gpu, tier->stream, &tier->bound));
    print_header(b);

fail:
    b->status = st;
    return st;
}

void bench_close(bench *b)
{
    bench_release(b);
    if (b->json && b->status == KN_OK) printf("\n]%s", b->gpu ? ",\n " : "");
    if (b->gpu && b->status == KN_OK) print_state(b, "after");
    if (b->json && b->status == KN_OK) printf("%s}\n", b->gpu ? "\"complete\": true" : "");
    kn_gpu_close(&b->gpu);
    for (int i = 0; i < b->tier_count; i++) {
        kn_stream_destroy(&b->tiers[i].stream);
        kn_device_close(&b->tiers[i].device);
    }
    b->tier_count = 0;
}

/* ---- memory ---- */

static void *keep(bench *b, void **list, int *count, void *block, size_t bytes)
{
    if (block && *count < BENCH_BLOCKS) return list[(*count)++] = block;
    b->status = kn_fail(KN_NOMEM, "%s: no memory for %zu bytes", b->op, bytes);
    return NULL;
}

void *bench_host(bench *b, size_t bytes)
{
    if (b->status != KN_OK) return NULL;
    return keep(b, b->hosts, &b->host_count, b->host_count < BENCH_BLOCKS ? kn_alloc(bytes) : NULL, bytes);
}

void *bench_block(bench *b, size_t bytes)
{
    void *block = NULL;
    if (b->status != KN_OK) return NULL;
    if (!b->gpu) return bench_host(b, bytes);
    if (b->block_count < BENCH_BLOCKS && kn_device_alloc(b->tiers[0].device, &block, bytes) != KN_OK) block = NULL;
    return keep(b, b->blocks, &b->block_count, block, bytes);
}

void *bench_upload(bench *b, const void *host, size_t bytes)
{
    void *block = bench_block(b, bytes);
    if (!block) return NULL;
    if (!b->gpu) return memcpy(block, host, bytes);
    kn_stream *stream = b->tiers[0].stream;
    b->status = kn_stream_upload(stream, block, host, bytes);
    if (b->status == KN_OK) b->status = kn_stream_synchronize(stream);
    return block;
}

void bench_release(bench *b)
{
    for (int i = 0; i < b->block_count; i++) kn_device_free(b->tiers[0].device, b->blocks[i]);
    for (int i = 0; i < b->host_count; i++) kn_free(b->hosts[i]);
    b->block_count = b->host_count = 0;
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

/* `count` values in device memory. */
static void *take_values(bench *b, int64_t count, kn_dtype dtype)
{
    const size_t bytes = (size_t)count * kn_dtype_bytes(dtype);
    if (!b->gpu) {
        void *data = bench_block(b, bytes);
        fill(data, count, dtype);
        return data;
    }
    void *host = b->status == KN_OK ? kn_alloc(bytes) : NULL;
    if (!host) return keep(b, b->blocks, &b->block_count, NULL, bytes);
    kn_gpu_normal(host, count, dtype);
    void *data = bench_upload(b, host, bytes);
    kn_free(host);
    return data;
}

kn_matrix bench_matrix(bench *b, int64_t rows, int64_t cols, kn_dtype dtype)
{
    return (kn_matrix){
        .data = take_values(b, rows * cols, dtype), .rows = rows, .cols = cols, .stride = cols, .dtype = dtype};
}

const float *bench_vector(bench *b, int64_t count)
{
    return take_values(b, count, KN_F32);
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
    const int64_t first = (border * row + (int64_t)border * channels) * element;
    const size_t bytes = (size_t)((height + 2 * border) * row * element);
    char *host = bench_host(b, bytes); /* zeroed: the border stays so */
    if (!host) return f;
    for (int32_t y = 0; y < height; y++) {
        void *pixels = host + first + y * row * element;
        b->gpu ? kn_gpu_normal(pixels, (int64_t)width * channels, dtype)
               : fill(pixels, (int64_t)width * channels, dtype);
    }
    char *data = b->gpu ? bench_upload(b, host, bytes) : host;
    if (data) f.data = data + first;
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

typedef struct one_call {
    const bench_case *one;
    const bench_tier *tier;
    const void *args;
} one_call;

static kn_status run_call(void *opaque)
{
    one_call *c = opaque;
    return c->one->call(kn_device_ops(c->tier->device), c->tier->stream, c->args);
}

/* The best run of a CPU, which others may disturb; the median of a GPU, whose clocks move. */
static kn_status time_case(bench *b, one_call *c, double *seconds)
{
    double total = 0;
    *seconds = 1e30;
    if (b->gpu) {
        kn_gpu_times times;
        kn_status st = kn_gpu_time(b->gpu, &times, BENCH_SECONDS, run_call, c);
        if (st == KN_OK) *seconds = times.median;
        return st;
    }
    for (int i = 0; i < REPEATS_MAX && (i < REPEATS_MIN || total < BENCH_SECONDS); i++) {
        int64_t start = kn_clock_ns();
        kn_status st = run_call(c);
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
        check_note(b->op, tier->name, b->threads, shape);
        memcpy(args, one->args, one->args_bytes);
        if (one->prepare) b->status = one->prepare(b, tier, args);
        if (b->status == KN_OK) b->status = time_case(b, &(one_call){one, tier, args}, &seconds);
        if (b->status == KN_OK) print_row(b, tier->name, shape, one->compute, seconds, one, &tier->bound);
    }
    bench_release(b);
}

/* A peer that is missing or cannot is no failure, but it is said. */
static bool peer_can(const bench *b, kn_status st, const char *shape)
{
    if (st != KN_OK && !b->json) printf("%-15s %-12s %-47s %s\n", b->op, "peer", shape, kn_fail_message());
    return st == KN_OK;
}

void bench_peer_gemm(bench *b, const kn_gemm_args *args, int64_t m, int64_t n, int64_t k, kn_dtype dtype)
{
    double seconds;
    char shape[96];
    snprintf(shape, sizeof shape, "%lld x %lld x %lld, bare", (long long)m, (long long)n, (long long)k);
    if (b->status != KN_OK) return;
    if (b->gpu) {
        kn_gpu_times times;
        kn_matrix out = bench_matrix(b, m, n, dtype);
        if (b->status != KN_OK) return;
        kn_status st = kn_gpu_matmul(b->gpu, &times, m, n, k, dtype, out.data, args->a.data, args->w->data);
        if (!peer_can(b, st, shape)) return;
        seconds = times.median;
    } else if (!peer_name() || peer_gemm_seconds(&seconds, m, n, k, dtype, b->threads) != KN_OK) {
        return;
    }
    const double element = (double)kn_dtype_bytes(dtype), rows = (double)m, columns = (double)n, depth = (double)k;
    const bench_case same = {.operations = 2 * rows * columns * depth,
                             .bytes = (rows * depth + columns * depth + rows * columns) * element};
    print_row(b, b->gpu ? "cuBLASLt" : peer_name(), shape, dtype, seconds, &same, &b->tiers[b->tier_count - 1].bound);
}

void bench_peer_attention(bench *b, const kn_attention_args *args, const bench_case *one, const char *shape)
{
    kn_gpu_times times;
    if (b->status != KN_OK || !b->gpu || args->q.dtype != KN_BF16) return;
    kn_status st = kn_gpu_attention(b->gpu, &times, args, args->q_offsets[1], args->k_offsets[1]);
    if (peer_can(b, st, shape))
        print_row(b, kn_gpu_attention_name(b->gpu), shape, KN_BF16, times.median, one, &b->tiers[0].bound);
}
