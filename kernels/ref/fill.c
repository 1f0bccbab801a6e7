/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference tier's table: complete by construction, from the list. */
#include "kernels/ref/ref.h"

void kn_ops_fill_ref(kn_ops *ops)
{
#define KN_OP(name, summary) ops->name = kn_##name##_ref;
#include "kernels/ops.inc"
#undef KN_OP
    ops->attention_workspace = kn_attention_workspace_ref;
    ops->weight_bytes = kn_weight_bytes_ref;
    ops->weight_prepare = kn_weight_prepare_ref;
    ops->conv_weight_bytes = kn_conv_weight_bytes_ref;
    ops->conv_weight_prepare = kn_conv_weight_prepare_ref;
}
