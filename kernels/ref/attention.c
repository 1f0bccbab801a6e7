/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over ragged sequences, written as the formula: all logits of one
 * query, their softmax, the weighted sum of values. Everything in double, one
 * rounding at the end. */
#include <math.h>

#include "kernels/ref/ref.h"

/* One query's logits, then one head's sum: [longest sequence of keys + head_dim] doubles. */
size_t kn_attention_workspace_ref(const kn_attention_args *args)
{
    int64_t longest = 0;
    for (int32_t s = 0; s < args->sequences; s++) {
        int64_t keys = args->k_offsets[s + 1] - args->k_offsets[s];
        if (keys > longest) longest = keys;
    }
    return (size_t)(longest + args->head_dim) * sizeof(double);
}

/* Fills logits[keys] for query `i` of sequence `s`; returns the largest. */
static double compute_logits(const kn_attention_args *args, double *logits, int32_t s, int32_t head, int64_t i)
{
    const int64_t q_row = args->q_offsets[s] + i, first = args->k_offsets[s];
    const int64_t keys = args->k_offsets[s + 1] - first, column = (int64_t)head * args->head_dim;
    const float *bias = args->relative_bias;
    if (bias) bias += head * (2 * (int64_t)args->relative_span - 1) + args->relative_span - 1;

    double largest = -INFINITY;
    for (int64_t j = 0; j < keys; j++) {
        double dot = 0;
        for (int32_t d = 0; d < args->head_dim; d++)
            dot += kn_ref_get(&args->q, q_row, column + d) * kn_ref_get(&args->k, first + j, column + d);
        logits[j] = dot * args->scale;
        if (bias) logits[j] += bias[j - i];
        if (args->tail_log_weight && j == keys - 1) logits[j] += args->tail_log_weight[s];
        if (logits[j] > largest) largest = logits[j];
    }
    return largest;
}

static void attend(const kn_attention_args *args, int32_t s, int32_t head, int64_t i)
{
    const int64_t first = args->k_offsets[s], keys = args->k_offsets[s + 1] - first;
    const int64_t column = (int64_t)head * args->head_dim;
    double *p = args->workspace, *sum = p + keys;
    double largest = compute_logits(args, p, s, head, i);

    double total = 0;
    for (int32_t d = 0; d < args->head_dim; d++) sum[d] = 0;
    for (int64_t j = 0; j < keys; j++) {
        p[j] = exp(p[j] - largest);
        total += p[j];
        for (int32_t d = 0; d < args->head_dim; d++) sum[d] += p[j] * kn_ref_get(&args->v, first + j, column + d);
    }
    for (int32_t d = 0; d < args->head_dim; d++)
        kn_ref_set(&args->out, args->q_offsets[s] + i, column + d, sum[d] / total);
}

kn_status kn_attention_ref(kn_stream *stream, const kn_attention_args *args)
{
    (void)stream;
    for (int32_t s = 0; s < args->sequences; s++)
        for (int32_t head = 0; head < args->heads; head++)
            for (int64_t i = 0; i < args->q_offsets[s + 1] - args->q_offsets[s]; i++) attend(args, s, head, i);
    return KN_OK;
}
