/* SPDX-License-Identifier: Apache-2.0
 *
 * A GPU under measurement: times by its own events, with nothing of the case left in its caches; what it can do at most
 * (a copy, a large matrix product); what other libraries do with the same work; its clocks and power meanwhile.
 * gpu.cu where the CUDA toolkit was found, else gpu_none.c, whose kn_gpu_open answers KN_UNAVAILABLE. */
#ifndef KN_BENCHMARKS_GPU_H
#define KN_BENCHMARKS_GPU_H

#include "benchmarks/roofline.h"
#include "kernels/device.h"

typedef struct kn_gpu kn_gpu;

/* Borrows the stream, which must be a CUDA device's. Takes half a gigabyte of its memory. */
kn_status kn_gpu_open(kn_gpu **out, kn_stream *stream);
void kn_gpu_close(kn_gpu **gpu);

typedef kn_status kn_gpu_fn(void *context); /* queues work on the stream */

typedef struct kn_gpu_times {
    double median, best; /* seconds of one run, from event to event */
    int32_t repeats;
} kn_gpu_times;

/* Warms up, then repeats for about `budget` seconds, at least 3 times. */
kn_status kn_gpu_time(kn_gpu *gpu, kn_gpu_times *out, double budget, kn_gpu_fn *run, void *context);

/* Bytes read and written per second by the device's own copy of 1 GiB. */
kn_status kn_gpu_copy_rate(kn_gpu *gpu, double *bytes_per_second);

/* cuBLASLt: out[m, n] = a[m, k] w[n, k]^T, the fastest of the algorithms it proposes; all device memory, of `dtype`. */
kn_status kn_gpu_matmul(kn_gpu *gpu, kn_gpu_times *times, int64_t m, int64_t n, int64_t k, kn_dtype dtype, void *out,
                        const void *a, const void *w);

/* cuDNN's attention without a mask, one sequence, bf16, rows of heads * head_dim as in kn_attention_args (head size
 * 128 or 64). KN_UNAVAILABLE: no libcudnn here; KN_UNSUPPORTED: it has no plan, with its own text. */
kn_status kn_gpu_attention(kn_gpu *gpu, kn_gpu_times *times, const kn_attention_args *args, int32_t queries,
                           int32_t keys);
const char *kn_gpu_attention_name(const kn_gpu *gpu); /* "cuDNN 9.19.0", or NULL */

/* All of a GPU's ceilings: the copy, and cuBLASLt's product of 8192 x 8192 normal values in both types. */
kn_status kn_gpu_bounds(kn_gpu *gpu, kn_stream *stream, kn_roofline *out);

/* Normally distributed values in host memory, the same block over and over: a GPU's clocks depend on what it computes.
 */
void kn_gpu_normal(void *out, int64_t count, kn_dtype dtype);

/* From NVML, where it can be loaded; numbers it does not have are -1. */
typedef struct kn_gpu_state {
    char driver[80];
    int32_t sm_mhz, sm_mhz_max, memory_mhz, temperature, throttle; /* throttle: NVML's clocks event reasons */
    double watts, watts_limit;
} kn_gpu_state;

void kn_gpu_state_read(kn_gpu *gpu, kn_gpu_state *out);

#endif
