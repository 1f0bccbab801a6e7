/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA back end's door: kernels/cuda/device.cu where the toolkit was found, kernels/device_cuda_none.c
 * elsewhere. */
#ifndef KN_KERNELS_DEVICE_CUDA_H
#define KN_KERNELS_DEVICE_CUDA_H

#include "kernels/device_internal.h"

/* "cuda" or "cuda:N". `params->isa` is the highest tier to use: "cuda", "sm90"; NULL: what the GPU has. */
kn_status kn_device_cuda_open(kn_device **out, const kn_device_params *params);
/* GPUs of this machine that this process may open, by their device files: no driver is loaded for it. */
int kn_device_cuda_count(void);
/* What happened on a device of this back end since it was opened: device memory taken, copies from the host, waits for
 * the device. A denoise step adds to none of them. */
typedef struct kn_device_cuda_counts {
    uint64_t allocations, uploads, waits;
} kn_device_cuda_counts;

/* The device's first part, whatever compiled the rest. */
typedef struct kn_device_cuda_base {
    kn_device base;
    kn_device_cuda_counts counts;
} kn_device_cuda_base;

static inline kn_device_cuda_counts kn_device_cuda_read_counts(const kn_device *device)
{
    return ((const kn_device_cuda_base *)device)->counts;
}

/* The same kernels, executed on the CPU (tests/simt). Exists only in programs that link it. */
kn_status kn_device_simt_open(kn_device **out, const kn_device_params *params);

#endif
