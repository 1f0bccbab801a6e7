/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA device's table: complete by construction, from the list. */
#include "kernels/cuda/device.cuh"

KN_CUDA_BEGIN

void fill_ops(kn_ops *ops)
{
#define KN_OP(name, summary) ops->name = name##_cuda;
#include "kernels/ops.inc"
#undef KN_OP
    ops->attention_workspace = attention_workspace_cuda;
    ops->weight_bytes = weight_bytes_cuda;
    ops->weight_prepare = weight_prepare_cuda;
    ops->conv_weight_bytes = conv_weight_bytes_cuda;
    ops->conv_weight_prepare = conv_weight_prepare_cuda;
}

KN_CUDA_END
