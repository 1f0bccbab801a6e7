/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators that the CUDA tier does not have yet. */
#include "kernels/cuda/device.cuh"

KN_CUDA_BEGIN

#define PENDING(name)                                                                                                  \
    kn_status name##_cuda(kn_stream *stream, const kn_##name##_args *args)                                             \
    {                                                                                                                  \
        (void)stream;                                                                                                  \
        (void)args;                                                                                                    \
        return kn_fail(KN_UNSUPPORTED, "operator " #name " does not exist on a GPU yet");                              \
    }
PENDING(gemm)
PENDING(attention)
PENDING(layernorm)
PENDING(rmsnorm)
PENDING(embed)
PENDING(timestep_embed)
PENDING(patchify)
PENDING(unpatchify)
PENDING(conv)
PENDING(channel_norm)
PENDING(frame_pack)
PENDING(frame_unpack)

size_t attention_workspace_cuda(const kn_attention_args *)
{
    return 0;
}

size_t weight_bytes_cuda(int64_t n, int64_t k, kn_dtype compute)
{
    return (size_t)(n * k) * kn_dtype_bytes(compute);
}

kn_status weight_prepare_cuda(kn_stream *, kn_weight *, void *, const kn_weight *, kn_dtype)
{
    return kn_fail(KN_UNSUPPORTED, "weights cannot be prepared on a GPU yet");
}

size_t conv_weight_bytes_cuda(const kn_conv_args *shape)
{
    return (size_t)shape->out.channels * shape->kt * shape->kh * shape->kw * shape->in[shape->kt - 1].channels * 4;
}

kn_status conv_weight_prepare_cuda(kn_stream *, kn_weight *, void *, const kn_weight *, const kn_conv_args *)
{
    return kn_fail(KN_UNSUPPORTED, "weights cannot be prepared on a GPU yet");
}

KN_CUDA_END
