/* SPDX-License-Identifier: Apache-2.0
 *
 * What the CPU tiers share: the thread pool behind a stream, and scratch memory
 * that belongs to one worker for the length of one tile. */
#ifndef KN_KERNELS_CPU_H
#define KN_KERNELS_CPU_H

#include "base/pool.h"
#include "kernels/device_internal.h"

/* Large enough for the widest tile any CPU operator uses; see each operator. */
#define KN_CPU_SCRATCH_BYTES ((size_t)4 << 20)

typedef struct kn_device_cpu {
    kn_device base;
    kn_pool *pool;
    char *scratch; /* [threads, KN_CPU_SCRATCH_BYTES] */
} kn_device_cpu;

static inline kn_device_cpu *kn_cpu_of(kn_stream *stream)
{
    return (kn_device_cpu *)stream->device;
}

static inline void kn_cpu_run(kn_stream *stream, int64_t tiles, kn_pool_fn *fn, void *context)
{
    kn_pool_run(kn_cpu_of(stream)->pool, tiles, fn, context);
}

static inline void *kn_cpu_scratch(const kn_device_cpu *device, int worker)
{
    return device->scratch + (size_t)worker * KN_CPU_SCRATCH_BYTES;
}

/* Rows are shared out in fixed blocks: tile i covers rows [i * block, ...). */
static inline int64_t kn_tiles(int64_t count, int64_t block)
{
    return (count + block - 1) / block;
}

/* Each fills the entries it implements; later tiers override earlier ones. */
void kn_ops_fill_ref(kn_ops *ops);
void kn_ops_fill_avx2(kn_ops *ops);
void kn_ops_fill_avx512(kn_ops *ops);
void kn_ops_fill_avx512bf16(kn_ops *ops);

typedef enum kn_isa { KN_ISA_REF, KN_ISA_AVX2, KN_ISA_AVX512, KN_ISA_AVX512BF16, KN_ISA_COUNT } kn_isa;

const char *kn_isa_name(kn_isa isa);
/* KN_ISA_COUNT when there is no such tier. */
kn_isa kn_isa_parse(const char *name);
/* The best tier this processor and operating system support. */
kn_isa kn_isa_detect(void);
/* The table with every tier up to `isa`. */
void kn_ops_fill(kn_ops *ops, kn_isa isa);

#endif
