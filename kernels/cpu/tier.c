/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of one tier: every operator of ops.inc, so an operator this tier
 * lacks does not link. */
#include "kernels/cpu/tier.h"

void KN_TIERED(kn_ops_fill)(kn_ops *ops)
{
#define KN_OP(name, summary) ops->name = KN_TIERED(kn_##name);
#include "kernels/ops.inc"
#undef KN_OP
    ops->attention_workspace = KN_TIERED(kn_attention_workspace);
    ops->weight_bytes = KN_TIERED(kn_weight_bytes);
    ops->weight_prepare = KN_TIERED(kn_weight_prepare);
    ops->conv_weight_bytes = KN_TIERED(kn_conv_weight_bytes);
    ops->conv_weight_prepare = KN_TIERED(kn_conv_weight_prepare);
}
