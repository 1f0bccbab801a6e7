/* SPDX-License-Identifier: Apache-2.0
 *
 * The variants of the sm90 tier, in order of preference. */
#include "kernels/cuda/device.cuh"

KN_CUDA_BEGIN

extern const variant<kn_attention_args> attention_sm90[] = {{}};
extern const variant<kn_gemm_args> gemm_sm90[] = {{}};

KN_CUDA_END
