/* SPDX-License-Identifier: Apache-2.0
 *
 * Without the CUDA toolkit: no GPU opens, so nothing else is ever called. */
#include "benchmarks/gpu.h"

kn_status kn_gpu_open(kn_gpu **out, kn_stream *stream)
{
    (void)stream;
    *out = NULL;
    return kn_fail(KN_UNAVAILABLE, "this program was built without CUDA");
}

void kn_gpu_close(kn_gpu **gpu)
{
    *gpu = NULL;
}

kn_status kn_gpu_time(kn_gpu *gpu, kn_gpu_times *out, double budget, kn_gpu_fn *run, void *context)
{
    (void)gpu, (void)out, (void)budget, (void)run, (void)context;
    return KN_UNAVAILABLE;
}

kn_status kn_gpu_copy_rate(kn_gpu *gpu, double *bytes_per_second)
{
    (void)gpu, (void)bytes_per_second;
    return KN_UNAVAILABLE;
}

kn_status kn_gpu_matmul(kn_gpu *gpu, kn_gpu_times *times, int64_t m, int64_t n, int64_t k, kn_dtype dtype, void *out,
                        const void *a, const void *w)
{
    (void)gpu, (void)times, (void)m, (void)n, (void)k, (void)dtype, (void)out, (void)a, (void)w;
    return KN_UNAVAILABLE;
}

kn_status kn_gpu_attention(kn_gpu *gpu, kn_gpu_times *times, const kn_attention_args *args, int32_t queries,
                           int32_t keys)
{
    (void)gpu, (void)times, (void)args, (void)queries, (void)keys;
    return KN_UNAVAILABLE;
}

const char *kn_gpu_attention_name(const kn_gpu *gpu)
{
    (void)gpu;
    return NULL;
}

void kn_gpu_state_read(kn_gpu *gpu, kn_gpu_state *out)
{
    (void)gpu;
    *out = (kn_gpu_state){.sm_mhz = -1, .sm_mhz_max = -1, .memory_mhz = -1, .temperature = -1, .throttle = -1};
}
