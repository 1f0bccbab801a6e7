/* SPDX-License-Identifier: Apache-2.0
 *
 * The operators of one CPU tier. kn_gemm is kn_gemm_avx2 in the objects compiled
 * for AVX2, and so on; tier.c gathers them into the device's table. */
#ifndef KN_KERNELS_CPU_TIER_H
#define KN_KERNELS_CPU_TIER_H

#include "kernels/cpu/vec.h"

#define KN_OP(name, summary) kn_status KN_TIERED(kn_##name)(kn_stream * stream, const kn_##name##_args *args);
#include "kernels/ops.inc"
#undef KN_OP

/* The entries of kn_ops that describe operators; see there. */
size_t KN_TIERED(kn_attention_workspace)(const kn_attention_args *args);
size_t KN_TIERED(kn_weight_bytes)(int64_t n, int64_t k, kn_dtype compute);
kn_status KN_TIERED(kn_weight_prepare)(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                       kn_dtype compute);
size_t KN_TIERED(kn_conv_weight_bytes)(const kn_conv_args *shape);
kn_status KN_TIERED(kn_conv_weight_prepare)(kn_stream *stream, kn_weight *out, void *destination,
                                            const kn_weight *source, const kn_conv_args *shape);

#endif
