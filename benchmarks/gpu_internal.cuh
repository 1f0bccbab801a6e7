/* SPDX-License-Identifier: Apache-2.0
 *
 * What gpu.cu and gpu_cudnn.cu share. */
#ifndef KN_BENCHMARKS_GPU_INTERNAL_CUH
#define KN_BENCHMARKS_GPU_INTERNAL_CUH

#include <cuda_runtime.h>

extern "C" {
#include "benchmarks/gpu.h"
}

struct gpu_cudnn;

struct kn_gpu {
    kn_device *device;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    void *flush;     /* [256 MiB] written before every run: nothing of the case stays in a cache */
    void *workspace; /* [64 MiB] for the libraries */
    void *cublas, *nvml;
    gpu_cudnn *cudnn;
    bool cudnn_missing;
};

/* The first of the names that can be loaded, or NULL; names may be NULL. */
void *kn_gpu_library(const char *first, const char *second, const char *third);

void kn_gpu_cudnn_close(kn_gpu *gpu);

#endif
