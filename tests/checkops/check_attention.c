/* SPDX-License-Identifier: Apache-2.0
 *
 * attention: ragged packs, self and cross, every feature of the contract; each
 * sequence alone, each head alone and fewer queries must give the same bits.
 *
 * Tolerance. A logit is a dot product of head_dim terms in f32: it is off by at
 * most d = u (8 + sqrt(head_dim)) scale |q| max|k| plus u times its own size, and
 * that changes every probability by a factor of at most e^2d. With exp good to
 * a few u and the sums in f32, an element may be off by (4d + 16u + u sqrt(keys)) max|v|.
 * For bf16 inputs probabilities may be rounded to bf16 before they meet v: each
 * is off by at most 2^-9 of itself, the weighted sum by 2^-9 max|v|; as the
 * errors are independent, NMSE is below (2^-9)^2 = 3.8e-6, and rounding the
 * result to bf16 adds at most as much again. */
#include <math.h>
#include <string.h>

#include "tests/checkops/checkops.h"

enum { SEQUENCES_MAX = 6, ROW_SLICES = 3 };

typedef struct attention_config {
    int32_t heads, head_dim, sequences;
    int64_t q_lengths[SEQUENCES_MAX], k_lengths[SEQUENCES_MAX];
    bool cross, tail, relative;
    kn_dtype dtype, out;
    double gain; /* q is this many times normal: peaked distributions */
    check_pattern pattern;
} attention_config;

static kn_status prepare_workspace(check *c, const check_tier *tier, void *opaque)
{
    kn_attention_args *args = opaque;
    kn_attention_args shape = *args;
    shape.q.data = shape.k.data = shape.v.data = shape.out.data = NULL;
    size_t bytes = kn_device_ops(tier->device[0])->attention_workspace(&shape);
    args->workspace = check_buffer_new(c, bytes, 64, CHECK_WORKSPACE);
    return KN_OK;
}

static kn_matrix head_of(const kn_matrix *m, int32_t head, int32_t head_dim)
{
    kn_matrix part = *m;
    part.data = (char *)m->data + (int64_t)head * head_dim * (int64_t)kn_dtype_bytes(m->dtype);
    part.cols = head_dim;
    return part;
}

static void slice_head(const kn_attention_args *args, int32_t head, kn_attention_args *sliced)
{
    sliced->heads = 1;
    sliced->out = head_of(&args->out, head, args->head_dim);
    sliced->q = head_of(&args->q, head, args->head_dim);
    sliced->k = head_of(&args->k, head, args->head_dim);
    sliced->v = head_of(&args->v, head, args->head_dim);
    if (args->relative_bias) sliced->relative_bias += head * (2 * (int64_t)args->relative_span - 1);
}

/* Sequence s as its own call. Offsets stay pairs inside the full arrays, so they
 * do not start at zero: the call sees the whole matrices and only its rows. */
static void slice_sequence(const kn_attention_args *args, int32_t s, kn_attention_args *sliced, check_view *covered)
{
    sliced->sequences = 1;
    sliced->q_offsets += s;
    sliced->k_offsets += s;
    if (args->tail_log_weight) sliced->tail_log_weight += s;
    kn_matrix rows = check_rows_of(&args->out, args->q_offsets[s], args->q_offsets[s + 1] - args->q_offsets[s]);
    *covered = check_view_matrix(&rows);
}

/* The first sequence's first queries against all its keys, as a device that holds
 * a share of the rows computes them. The offsets live beside the full ones. */
static void slice_queries(const kn_attention_args *args, int index, kn_attention_args *sliced, check_view *covered)
{
    const int32_t *shares = args->q_offsets + args->sequences + 1; /* [ROW_SLICES, 2], see make_offsets */
    sliced->sequences = 1;
    sliced->q_offsets = shares + (ptrdiff_t)2 * index;
    kn_matrix rows = check_rows_of(&args->out, shares[2 * index], shares[2 * index + 1] - shares[2 * index]);
    *covered = check_view_matrix(&rows);
}

static void slice_call(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_attention_args *args = opaque;
    kn_attention_args *sliced = sliced_opaque;
    if (index < args->sequences) {
        slice_sequence(args, index, sliced, covered);
    } else if (index < args->sequences + args->heads) {
        slice_head(args, index - args->sequences, sliced);
        *covered = check_view_matrix(&sliced->out);
    } else {
        slice_queries(args, index - args->sequences - args->heads, sliced, covered);
    }
}

/* [sequences + 1] offsets, then shares of the first sequence's rows. */
static const int32_t *make_offsets(check *c, const int64_t *lengths, int32_t sequences)
{
    int32_t *offsets = check_indices(c, sequences + 1 + 2 * ROW_SLICES, 1);
    for (int32_t s = 0; s < sequences; s++) offsets[s + 1] = offsets[s] + (int32_t)lengths[s];
    const int32_t first = (int32_t)lengths[0];
    const int32_t shares[2 * ROW_SLICES] = {0, (first + 1) / 2, first / 2, first, first - (first > 0), first};
    memcpy(offsets + sequences + 1, shares, sizeof shares);
    return offsets;
}

static void scale_matrix(const kn_matrix *m, double gain)
{
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t i = 0; i < m->cols; i++)
            check_store(m->data, m->dtype, r * m->stride + i, gain * check_load(m->data, m->dtype, r * m->stride + i));
}

/* The contract asks for an even stride in bf16; strides are random, so draw again. */
static kn_matrix make_keys(check *c, int64_t rows, int64_t cols, const attention_config *g)
{
    const check_pattern pattern = g->pattern == CHECK_NAN ? CHECK_NORMAL : g->pattern;
    kn_matrix k;
    do {
        k = check_matrix(c, rows, cols, g->dtype, pattern);
    } while (g->dtype == KN_BF16 && k.stride % 2 != 0);
    return k;
}

static const double *error_scale(check *c, const kn_attention_args *args, bool bf16_probabilities)
{
    double *scale = check_row_scale(c, args->out.rows);
    const double u = CHECK_ROUND_F32;
    for (int32_t s = 0; s < args->sequences; s++) {
        double k_norm = 0, v_largest = 0, keys = args->k_offsets[s + 1] - args->k_offsets[s];
        for (int64_t j = args->k_offsets[s]; j < args->k_offsets[s + 1]; j++) {
            k_norm = fmax(k_norm, check_row_norm(&args->k, j)); /* over all heads: larger than one head's */
            v_largest = fmax(v_largest, check_row_largest(&args->v, j));
        }
        for (int64_t i = args->q_offsets[s]; i < args->q_offsets[s + 1]; i++) {
            double q_norm = check_row_norm(&args->q, i) / sqrt(args->heads);
            double logit = args->scale * q_norm * k_norm / sqrt(args->heads) * 1.5 + (args->relative_bias ? 8 : 0) + 8;
            double delta = u * (8 + sqrt(args->head_dim)) * logit;
            double error = 4 * delta + u * (16 + sqrt(keys)) + (bf16_probabilities ? CHECK_ROUND_BF16 : 0);
            scale[i] = fmin(error, 2) * v_largest;
        }
    }
    return scale;
}

static void check_one(check *c, const attention_config *g)
{
    int64_t longest = 0, q_rows = 0, k_rows = 0;
    for (int32_t s = 0; s < g->sequences; s++) {
        q_rows += g->q_lengths[s];
        k_rows += g->k_lengths[s];
        longest = longest > g->k_lengths[s] ? longest : g->k_lengths[s];
    }
    check_begin(c, "heads %d x %d, %d sequences, first %lld queries %lld keys, rows %lld/%lld %s out %s%s%s gain %g %s",
                g->heads, g->head_dim, g->sequences, (long long)g->q_lengths[0], (long long)g->k_lengths[0],
                (long long)q_rows, (long long)k_rows, check_dtype_name(g->dtype), check_dtype_name(g->out),
                g->tail ? " tail" : "", g->relative ? " relative" : "", g->gain, check_pattern_name(g->pattern));
    const int64_t cols = (int64_t)g->heads * g->head_dim;
    kn_attention_args args = {
        .heads = g->heads, .head_dim = g->head_dim, .scale = (float)(1 / sqrt(g->head_dim)), .sequences = g->sequences};
    args.q = check_matrix(c, q_rows, cols, g->dtype, g->pattern);
    args.k = make_keys(c, k_rows, cols, g);
    args.v = check_matrix(c, k_rows, cols, g->dtype, CHECK_NORMAL);
    args.out = check_matrix_out(c, q_rows, cols, g->out);
    scale_matrix(&args.q, g->gain);
    args.q_offsets = make_offsets(c, g->q_lengths, g->sequences);
    args.k_offsets = make_offsets(c, g->k_lengths, g->sequences);
    if (g->tail) args.tail_log_weight = check_vector(c, g->sequences, 3, 1);
    if (g->relative) {
        args.relative_span = (int32_t)(longest + check_below(c, 3));
        args.relative_bias = check_vector(c, g->heads * (2 * (int64_t)args.relative_span - 1), 0, 2);
    }
    const bool bf16 = g->dtype == KN_BF16;
    double nmse = bf16 ? 8e-6 : g->out == KN_BF16 ? 1e-6 : 1e-11 * g->gain * g->gain;
    check_judge(c, &(check_case){
                       .call = check_call_attention,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .output = check_view_matrix(&args.out),
                       .tolerance = {.relative = 4 * CHECK_ROUND_F32,
                                     .scaled = 1,
                                     .scale = error_scale(c, &args, bf16),
                                     .nmse = g->pattern == CHECK_NORMAL && q_rows * cols >= 64 ? nmse : 0},
                       .prepare = prepare_workspace,
                       .slices = g->sequences + g->heads + (g->relative ? 0 : ROW_SLICES),
                       .slice = slice_call,
                   });
}

static attention_config random_config(check *c)
{
    attention_config g = {
        .heads = (int32_t)CHECK_PICK(c, 1, 2, 3),
        .head_dim = (int32_t)CHECK_PICK(c, 2, 8, 16, 24, 33, 40, 64, 80, 128),
        .sequences = (int32_t)CHECK_PICK(c, 1, 1, 2, 3, 6),
        .cross = check_coin(c),
        .dtype = check_coin(c) ? KN_BF16 : KN_F32,
        .gain = (double)CHECK_PICK(c, 1, 1, 20),
        .pattern = (check_pattern)CHECK_PICK(c, CHECK_NORMAL, CHECK_NORMAL, CHECK_NASTY, CHECK_NAN),
    };
    if (g.dtype == KN_BF16) g.head_dim += g.head_dim % 2;
    g.out = check_below(c, 4) == 0 ? (check_coin(c) ? KN_BF16 : KN_F32) : g.dtype;
    g.tail = g.cross && check_coin(c);
    g.relative = !g.cross && check_coin(c);
    for (int32_t s = 0; s < g.sequences; s++) {
        g.k_lengths[s] = CHECK_PICK(c, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129);
        g.q_lengths[s] = g.cross ? CHECK_PICK(c, 1, 1, 2, 5, 8, 16, 17, 33, 66) : g.k_lengths[s];
    }
    if (g.cross && g.sequences > 1)
        g.q_lengths[1] = CHECK_PICK(c, 0, 3); /* a rank may hold none of a sequence's rows */
    return g;
}

/* Around Hopper's tiles: 128 queries; blocks of 128 keys up to 512, then of 176; a pair of query tiles. */
static void check_tensor_tiles(check *c)
{
    const attention_config tiles[] = {
        {.heads = 1, .head_dim = 128, .sequences = 2, .q_lengths = {129, 1}, .k_lengths = {529, 129}, .tail = true},
        {.heads = 2, .head_dim = 128, .sequences = 2, .q_lengths = {2, 127}, .k_lengths = {1, 128}, .gain = 20},
        {.heads = 2, .head_dim = 64, .sequences = 2, .q_lengths = {128, 3}, .k_lengths = {257, 127}, .tail = true},
    };
    c->aligned = true;
    for (int i = 0; i < CHECK_COUNT(tiles); i++) {
        attention_config g = tiles[i];
        g.dtype = g.out = KN_BF16;
        if (g.gain == 0) g.gain = 1;
        check_one(c, &g);
    }
    c->aligned = false;
}

void check_attention(check *c)
{
    if (c->simt || c->gpu) check_tensor_tiles(c);
    const attention_config large[] = {
        {.heads = 2, .head_dim = 128, .sequences = 3, .q_lengths = {1, 511, 65}, .k_lengths = {1, 511, 65}},
        {.heads = 1, .head_dim = 384, .sequences = 1, .q_lengths = {130}, .k_lengths = {130}},
        {.heads = 2, .head_dim = 64, .sequences = 2, .q_lengths = {200, 31}, .k_lengths = {200, 31}, .relative = true},
        {.heads = 1, .head_dim = 128, .sequences = 2, .q_lengths = {70, 3}, .k_lengths = {1111, 513}, .tail = true},
    };
    for (int i = 0; i < CHECK_COUNT(large); i++) {
        for (int variant = 0; variant < 4; variant++) {
            attention_config g = large[i];
            if ((c->simt || CHECK_SANITIZED) && (variant & 2) && i > 0) continue; /* other numbers, the same code */
            for (int32_t s = 0; c->simt && s < g.sequences; s++) { /* past one block of keys and one tile of queries */
                const bool self = g.q_lengths[s] == g.k_lengths[s];
                if (g.k_lengths[s] > 140) g.k_lengths[s] = self ? 140 : 100 + g.k_lengths[s] / 5;
                if (self) g.q_lengths[s] = g.k_lengths[s];
            }
            if (CHECK_SANITIZED && i == 0) g.q_lengths[1] = g.k_lengths[1] = 263; /* as many blocks of keys */
            g.dtype = g.out = variant & 1 ? KN_BF16 : KN_F32;
            g.gain = variant & 2 ? 20 : 1;
            check_one(c, &g);
        }
    }
    for (int i = 0; i < check_rounds(c, 180); i++) {
        check_begin(c, "choosing");
        attention_config g = random_config(c);
        check_one(c, &g);
    }
}
