/* SPDX-License-Identifier: Apache-2.0
 *
 * gemm: random shapes around every vector width, plain and prepared weights,
 * every epilogue; and a few shapes large enough to pass every block size.
 *
 * Tolerance. Products of f32 values round once, of bf16 values not at all, and
 * k of them are added in f32. For values of mixed sign the partial sums walk at
 * random, and the rounding errors (u = 2^-24 of each partial sum) add up to
 * about 0.2 u |a| |w| (Euclidean norms), rarely more than eight times that; when
 * a row has a mean the partial sums grow steadily and it is 0.2 u sqrt(k) |a| |w|.
 * So one element may be off by u (8 + sqrt(k)) |a| max|w|, and in the mean
 * square, where |sum| is |a| |w| / sqrt(k), by NMSE (0.2 u)^2 k; 16 times that is
 * allowed. gelu_tanh has slope <= 1.13 and a gate scales the error. A bf16
 * result agrees except where the error straddles a rounding boundary, a share
 * of error / 2^-9 of the elements, each then off by one step: NMSE below 1e-7. */
#include <math.h>
#include <string.h>

#include "tests/checkops/checkops.h"

typedef struct gemm_config {
    int64_t m, n, k;
    kn_dtype a, out, weight, compute;
    bool prepared, bias, residual, in_place, gate, indexed;
    kn_activation activation;
    check_pattern pattern;
} gemm_config;

static kn_status prepare_weight(check *c, const check_tier *tier, void *opaque)
{
    kn_gemm_args *args = opaque;
    const kn_ops *ops = kn_device_ops(tier->device[0]);
    const kn_weight *source = args->w;
    kn_weight *prepared = check_buffer_new(c, sizeof *prepared, _Alignof(kn_weight), CHECK_OUTPUT);
    void *memory = check_buffer_new(c, ops->weight_bytes(source->n, source->k, source->compute), 64, CHECK_OUTPUT);
    args->w = prepared;
    return ops->weight_prepare(tier->stream[0], prepared, memory, source, source->compute);
}

static void slice_rows(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_gemm_args *args = opaque;
    kn_gemm_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->out.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->a = check_rows_of(&args->a, first, count);
    if (args->residual.data) sliced->residual = check_rows_of(&args->residual, first, count);
    sliced->gate = check_table_rows_of(&args->gate, first);
    *covered = check_view_matrix(&sliced->out);
}

/* Weights of the size a trained layer has; some zeros and subnormals. */
static kn_weight *make_weight(check *c, const gemm_config *g)
{
    size_t element = kn_dtype_bytes(g->weight);
    void *data = check_buffer_new(c, (size_t)(g->n * g->k) * element, element, CHECK_INPUT);
    for (int64_t i = 0; i < g->n * g->k; i++) {
        double value = check_normal(c) / sqrt((double)g->k);
        int64_t odd = g->pattern == CHECK_NASTY ? check_below(c, 32) : 31;
        check_store(data, g->weight, i, odd == 0 ? 0.0 : odd == 1 ? value * 1e-39 : odd == 2 ? -0.0 : value);
    }
    kn_weight *w = check_buffer_new(c, sizeof *w, _Alignof(kn_weight), CHECK_INPUT);
    *w = (kn_weight){.data = data, .n = g->n, .k = g->k, .dtype = g->weight, .compute = g->compute};
    return w;
}

static const double *error_scale(check *c, const kn_gemm_args *args)
{
    kn_matrix weight = {.data = (void *)args->w->data,
                        .rows = args->w->n,
                        .cols = args->w->k,
                        .stride = args->w->k,
                        .dtype = args->w->dtype};
    double *scale = check_row_scale(c, args->out.rows), largest = 0, extra = 0;
    for (int64_t n = 0; n < weight.rows; n++) largest = fmax(largest, check_row_norm(&weight, n));
    for (int64_t n = 0; args->bias && n < weight.rows; n++) extra = fmax(extra, fabs((double)args->bias[n]));
    for (int64_t r = 0; r < args->out.rows; r++) {
        scale[r] = 1.2 * (check_row_norm(&args->a, r) * largest + extra);
        if (args->gate.data) scale[r] *= 6; /* gates are 0.1 + normal, at most 3.5 */
        if (args->residual.data) scale[r] += check_row_largest(&args->residual, r);
    }
    return scale;
}

static void check_one(check *c, const gemm_config *g)
{
    static const char *const activations[] = {"none", "gelu", "silu"};
    check_begin(c, "m %lld n %lld k %lld a %s out %s weight %s%s compute %s%s act %s%s%s%s%s %s", (long long)g->m,
                (long long)g->n, (long long)g->k, check_dtype_name(g->a), check_dtype_name(g->out),
                check_dtype_name(g->weight), g->prepared ? " prepared" : " plain", check_dtype_name(g->compute),
                g->bias ? " bias" : "", activations[g->activation], g->residual ? " residual" : "",
                g->in_place ? " in place" : "", g->gate ? " gate" : "", g->indexed ? " indexed" : "",
                check_pattern_name(g->pattern));
    kn_gemm_args args = {.activation = g->activation};
    args.a = check_matrix(c, g->m, g->k, g->a, g->pattern);
    args.w = make_weight(c, g);
    if (g->bias) args.bias = check_vector(c, g->n, 0, 1);
    if (g->residual && g->in_place) {
        args.out = args.residual = check_matrix_inout(c, g->m, g->n, g->out, CHECK_NORMAL);
    } else {
        args.out = check_matrix_out(c, g->m, g->n, g->out);
        if (g->residual) args.residual = check_matrix(c, g->m, g->n, g->out, CHECK_NORMAL);
    }
    if (g->gate) args.gate = check_row_table(c, g->m, g->n, g->indexed);

    const double u = CHECK_ROUND_F32, k = (double)g->k;
    double nmse = 16 * 0.04 * u * u * (k + 25) + (g->out == KN_BF16 ? 1e-7 : 0);
    check_judge(c, &(check_case){
                       .call = check_call_gemm,
                       .args = &args,
                       .args_bytes = sizeof args,
                       .output = check_view_matrix(&args.out),
                       .tolerance = {.relative = 4 * u,
                                     .scaled = u * (8 + sqrt(k)),
                                     .scale = error_scale(c, &args),
                                     .nmse = g->pattern == CHECK_NORMAL && g->m * g->n >= 64 ? nmse : 0},
                       .prepare = g->prepared ? prepare_weight : NULL,
                       .slices = CHECK_ROW_SLICES,
                       .slice = slice_rows,
                   });
}

static gemm_config random_config(check *c)
{
    gemm_config g = {
        .m = CHECK_PICK(c, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 17, 33, 65),
        .n = CHECK_PICK(c, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 100, 127, 129, 200),
        .k = CHECK_PICK(c, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 96, 100, 127, 129, 256, 515),
        .a = check_coin(c) ? KN_BF16 : KN_F32,
        .out = check_coin(c) ? KN_BF16 : KN_F32,
        .weight = (kn_dtype)CHECK_PICK(c, KN_F32, KN_BF16, KN_F16),
        .compute = check_coin(c) ? KN_BF16 : KN_F32,
        .prepared = check_below(c, 3) > 0,
        .bias = check_coin(c),
        .residual = check_coin(c),
        .in_place = check_coin(c),
        .gate = check_coin(c),
        .indexed = check_coin(c),
        .activation = (kn_activation)CHECK_PICK(c, KN_ACT_NONE, KN_ACT_GELU_TANH, KN_ACT_SILU),
        .pattern = (check_pattern)CHECK_PICK(c, CHECK_NORMAL, CHECK_NORMAL, CHECK_NASTY, CHECK_NASTY, CHECK_NAN),
    };
    g.in_place = g.in_place && g.residual;
    g.gate = g.gate && g.residual;
    g.indexed = g.indexed && g.gate;
    return g;
}

/* One row, rows below, at and above tiles of 128 by 256 by 64, alone and in pairs; every way that a Hopper product
 * ends. Slices of rows are other pairs of tiles. */
static void check_tensor_tiles(check *c)
{
    const gemm_config tiles[] = {
        {.m = 1, .n = 2, .k = 64, .bias = true},
        {.m = 129, .n = 258, .k = 192, .bias = true, .prepared = true, .activation = KN_ACT_GELU_TANH},
        {.m = 255, .n = 256, .k = 128, .prepared = true, .pattern = CHECK_NAN},
        {.m = 257, .n = 64, .k = 64, .residual = true, .in_place = true, .gate = true, .indexed = true, .bias = true},
        {.m = 256, .n = 130, .k = 384, .prepared = true, .residual = true, .gate = true, .out = KN_BF16},
    };
    c->aligned = true;
    for (int i = 0; i < CHECK_COUNT(tiles); i++) {
        gemm_config g = tiles[i];
        g.a = g.weight = g.compute = KN_BF16;
        if (!g.residual) g.out = KN_BF16;
        check_one(c, &g);
    }
    c->aligned = false;
}

void check_gemm(check *c)
{
    /* Past every block of rows, columns and depth. */
    const gemm_config large[] = {
        {.m = 70, .n = 129, .k = 1536, .bias = true},
        {.m = 1, .n = 1537, .k = 1536, .prepared = true, .bias = true},
        {.m = 9, .n = 65, .k = 8960, .prepared = true},
        {.m = 261,
         .n = 96,
         .k = 515,
         .prepared = true,
         .residual = true,
         .in_place = true,
         .gate = true,
         .indexed = true},
        {.m = 67, .n = 515, .k = 256, .prepared = true, .activation = KN_ACT_GELU_TANH, .bias = true},
        {.m = 35, .n = 1100, .k = 96},
    };
    for (int i = 0; i < CHECK_COUNT(large); i++) {
        for (int variant = 0; variant < 2; variant++) {
            gemm_config g = large[i];
            if (c->simt && g.k > 400) g.k = 200 + g.k % 200;
            if (c->simt && g.n > 300) g.n = 200 + g.n % 100;
            g.compute = variant ? KN_BF16 : KN_F32;
            g.a = g.out = g.weight = g.compute;
            check_one(c, &g);
        }
    }
    if (c->simt || c->gpu) check_tensor_tiles(c);
    for (int i = 0; i < check_rounds(c, 400); i++) {
        check_begin(c, "choosing");
        gemm_config g = random_config(c);
        check_one(c, &g);
    }
}
