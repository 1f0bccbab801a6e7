/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA back end's door: kernels/cuda/device.cu where the toolkit was found, kernels/device_cuda_none.c
 * elsewhere. */
#ifndef KN_KERNELS_DEVICE_CUDA_H
#define KN_KERNELS_DEVICE_CUDA_H

#include "kernels/device_internal.h"

/* "cuda" or "cuda:N". `params->isa` is the highest tier to use: "cuda", "sm90"; NULL: what the GPU has. */
kn_status kn_device_cuda_open(kn_device **out, const kn_device_params *params);
/* GPUs that the driver shows; 0 without a driver. */
int kn_device_cuda_count(void);
/* The same kernels, executed on the CPU (tests/simt). Exists only in programs that link it. */
kn_status kn_device_simt_open(kn_device **out, const kn_device_params *params);

#endif
