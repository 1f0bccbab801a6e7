/* SPDX-License-Identifier: Apache-2.0
 *
 * What the CUDA tiers share: the device behind a stream, the tables of variants, and small device functions that every
 * kernel needs. */
#ifndef KN_KERNELS_CUDA_DEVICE_CUH
#define KN_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/launch.h"

extern "C" {
#include "base/pool.h"
#include "kernels/device_cuda.h"
}

KN_CUDA_BEGIN

/* Which kernels may be used; a later one includes the earlier. */
enum tier { TIER_CUDA, TIER_SM90, TIER_COUNT };

struct device_cuda {
    kn_device base;
    kn_device_cuda_counts counts; /* as kn_device_cuda_base has them */
    int ordinal;
    int sm; /* 80, 90, ...: compute capability * 10 */
    int multiprocessors;
    size_t shared_max; /* bytes of shared memory a block can ask for */
    enum tier tier;
    kn_pool *pool; /* copies into pinned memory; made when first needed */
    bool lost;     /* a sticky error was seen: every later call answers KN_DEVICE_LOST at once */
    char lost_why[256];
};

/* Pinned memory in a ring: the host fills one part while the copy engine empties the others. */
enum { STAGING_PARTS = 4 };

struct stream_cuda {
    kn_stream base;
    cudaStream_t stream;
    char *staging; /* [STAGING_PARTS][STAGING_BYTES] pinned; NULL before the first upload */
    cudaEvent_t staged[STAGING_PARTS];
    int part;
    size_t part_used;
    void *scratch; /* [SCRATCH_BYTES] device memory; NULL before it is needed */
};

static inline device_cuda *device_of(kn_stream *stream)
{
    return (device_cuda *)stream->device;
}

/* Also makes the stream's device the thread's current one, as launches want it: several may be open. */
static inline cudaStream_t stream_of(kn_stream *stream)
{
    cudaSetDevice(device_of(stream)->ordinal); /* no more than a comparison when it is so already */
    return ((stream_cuda *)stream)->stream;
}

/* One implementation of an operator. A table lists them in order of preference and the first that accepts a call runs
 * it. accepts() sees types, shapes and alignment, never how many rows share the call: the choice may not depend on who
 * else is in the pack. Names are coordinates: operator.tier.type.shape, "attention.sm90.bf16.d128". */
template <typename Args> struct variant {
    const char *name;
    enum tier tier;
    bool (*accepts)(const device_cuda *device, const Args *args);
    kn_status (*run)(kn_stream *stream, const Args *args);
    size_t (*workspace)(const Args *args); /* NULL: none */
};

/* `table` ends with an entry without a name. NULL: none accepts. */
template <typename Args>
const variant<Args> *choose(const variant<Args> *table, const device_cuda *device, const Args *args)
{
    for (const variant<Args> *v = table; v->name; v++)
        if (v->tier <= device->tier && v->accepts(device, args)) return v;
    return nullptr;
}

/* The table of a device; prototypes of the plain tier from the list. */
void fill_ops(kn_ops *ops);

#define KN_OP(name, summary) kn_status name##_cuda(kn_stream *stream, const kn_##name##_args *args);
#include "kernels/ops.inc"
#undef KN_OP
size_t attention_workspace_cuda(const kn_attention_args *args);
size_t weight_bytes_cuda(int64_t n, int64_t k, kn_dtype compute);
kn_status weight_prepare_cuda(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                              kn_dtype compute);
size_t conv_weight_bytes_cuda(const kn_conv_args *shape);
kn_status conv_weight_prepare_cuda(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                   const kn_conv_args *shape);

/* Tables of the sm90 tier (kernels/cuda/sm90), each in order of preference, ended by a NULL name. */
extern const variant<kn_attention_args> attention_sm90[];
extern const variant<kn_gemm_args> gemm_sm90[];

/* Device memory of the stream for the length of one call: raw weights on their way to being converted. Loading only;
 * the first use allocates it. */
enum { SCRATCH_BYTES = 32 << 20 };
kn_status stream_scratch(kn_stream *stream, void **out);

/* ---- numbers ---- */

static inline int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

KN_CUDA_END

#endif
