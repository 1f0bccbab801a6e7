/* SPDX-License-Identifier: Apache-2.0
 *
 * checkops --bench: every operator at the shapes a 1.3 B video transformer and
 * its VAE give it, each time beside the least time this machine could need. On a
 * CPU every tier, at small sizes; with --device one GPU, at the sizes of a clip. */
#ifndef KN_TESTS_CHECKOPS_BENCH_H
#define KN_TESTS_CHECKOPS_BENCH_H

#include "benchmarks/gpu.h"
#include "benchmarks/roofline.h"
#include "tests/checkops/checkops.h"

typedef struct bench_tier {
    char name[16];
    kn_device *device;
    kn_stream *stream;
    kn_roofline bound;
} bench_tier;

enum { BENCH_BLOCKS = 32 };

typedef struct bench {
    bench_tier tiers[KN_ISA_COUNT];
    int tier_count;
    int threads;
    kn_gpu *gpu; /* NULL: on the CPU */
    bool json;
    bool first_row; /* nothing printed yet */
    const char *op;
    void *blocks[BENCH_BLOCKS]; /* device memory of the case at hand */
    void *hosts[BENCH_BLOCKS];  /* host memory of the case */
    int block_count, host_count;
    kn_status status; /* first failure; later cases are skipped */
} bench;

/* `isa` KN_ISA_COUNT: every tier above ref (ref takes minutes at these shapes). */
kn_status bench_open(bench *b, kn_isa isa, int threads, bool json);
kn_status bench_open_gpu(bench *b, const char *device, bool json);
void bench_close(bench *b);

/* Memory for one case; NULL after a failure. On a CPU values are small normals: time does not depend on them, but
 * subnormals and NaN would change it. On a GPU they are normally distributed: its clocks depend on what it computes. */
void *bench_block(bench *b, size_t bytes); /* of the device */
void *bench_host(bench *b, size_t bytes);
/* Device memory with a host array's bytes. */
void *bench_upload(bench *b, const void *host, size_t bytes);
kn_matrix bench_matrix(bench *b, int64_t rows, int64_t cols, kn_dtype dtype);
const float *bench_vector(bench *b, int64_t count);
kn_frame bench_frame(bench *b, int32_t height, int32_t width, int32_t channels, int32_t border, kn_dtype dtype);
void bench_release(bench *b);

typedef struct bench_case {
    check_call *call;
    const void *args;
    size_t args_bytes;
    kn_status (*prepare)(bench *b, const bench_tier *tier, void *args); /* may be NULL */
    double operations; /* multiplications and additions; 0: bound by memory alone */
    double bytes;      /* least traffic: every input read once, every output written once */
    kn_dtype compute;  /* the products' type */
} bench_case;

/* Times one call on every tier and prints a row for each. Releases the blocks. */
void bench_measure(bench *b, const bench_case *one, const char *format, ...) KN_PRINTF(3, 4);
/* A row for another library's product of the same shape, when there is one and it can; the same for attention, of
 * which a CPU has none. Call them before bench_measure(), which releases what they work on. */
void bench_peer_gemm(bench *b, const kn_gemm_args *args, int64_t m, int64_t n, int64_t k, kn_dtype dtype);
void bench_peer_attention(bench *b, const kn_attention_args *args, const bench_case *one, const char *shape);

#define KN_OP(name, summary) void bench_##name(bench *b);
#include "kernels/ops.inc"
#undef KN_OP

#endif
