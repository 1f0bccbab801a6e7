/* SPDX-License-Identifier: Apache-2.0
 *
 * The operators that work element by element or only move elements: silu,
 * gated_gelu, add_table, sampler_step; embed, timestep_embed; patchify, unpatchify.
 *
 * Tolerance. silu and gelu_tanh are a handful of f32 operations and one exp or
 * tanh good to a few u = 2^-24. exp(x) is relative to its argument: an error of
 * u |x| in the argument, |x| < 88, is 88 u of the result, which matters only where
 * the function nears zero; 100 u relative covers it. A tier may hold exp at e^87, so
 * that silu(x) of a far negative x is x e^-87, not 0: 1e-37 of the row's largest |x|. gelu_tanh(x) = x (1 + tanh)/2
 * cancels for negative x: absolute error there, a few u |x|. Sums and moves are
 * rounded once, so a tier may differ by one rounding or not at all. */
#include <math.h>
#include <string.h>

#include "tests/checkops/checkops.h"

static int64_t pick_cols(check *c)
{
    return CHECK_PICK(c, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 96, 100, 127, 129, 1536);
}

static int64_t pick_rows(check *c)
{
    return CHECK_PICK(c, 1, 2, 3, 9, 16, 41);
}

static check_pattern pick_pattern(check *c)
{
    return (check_pattern)CHECK_PICK(c, CHECK_NORMAL, CHECK_NASTY, CHECK_NASTY, CHECK_NAN);
}

/* A bf16 result agrees with the reference but where the f32 error straddles a rounding boundary; one that was
 * cut instead of rounded has an NMSE near 5e-6. */
static double nmse_bound(kn_dtype out, check_pattern pattern)
{
    if (pattern != CHECK_NORMAL) return 0;
    return out == KN_BF16 ? 1e-7 : 1e-12;
}

static kn_dtype pick_dtype(check *c)
{
    return check_coin(c) ? KN_BF16 : KN_F32;
}

static void slice_silu(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_silu_args *args = opaque;
    kn_silu_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->x.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->x = check_rows_of(&args->x, first, count);
    *covered = check_view_matrix(&sliced->out);
}

void check_silu(check *c)
{
    for (int i = 0; i < check_rounds(c, 80); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = pick_cols(c);
        const kn_dtype in = pick_dtype(c), out = pick_dtype(c);
        const check_pattern pattern = pick_pattern(c);
        check_begin(c, "rows %lld cols %lld %s to %s, %s", (long long)rows, (long long)cols, check_dtype_name(in),
                    check_dtype_name(out), check_pattern_name(pattern));
        kn_silu_args args = {.out = check_matrix_out(c, rows, cols, out),
                             .x = check_matrix(c, rows, cols, in, pattern)};
        for (int64_t r = 0; r < rows && pattern == CHECK_NORMAL; r++) /* where exp is small, and where it overflows */
            check_store(args.x.data, in, r * args.x.stride, r % 2 ? -20.0 * (double)r : 30.0 * (double)r);
        double *scale = check_row_scale(c, rows);
        for (int64_t r = 0; r < rows; r++) scale[r] = check_row_largest(&args.x, r);
        check_judge(c, &(check_case){.call = check_call_silu,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_matrix(&args.out),
                                     .tolerance = {.relative = 100 * CHECK_ROUND_F32,
                                                   .scaled = 1e-37,
                                                   .scale = scale,
                                                   .nmse = nmse_bound(out, pattern)},
                                     .slices = CHECK_ROW_SLICES,
                                     .slice = slice_silu});
    }
}

static void slice_gated_gelu(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_gated_gelu_args *args = opaque;
    kn_gated_gelu_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->a.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->a = check_rows_of(&args->a, first, count);
    sliced->b = check_rows_of(&args->b, first, count);
    *covered = check_view_matrix(&sliced->out);
}

void check_gated_gelu(check *c)
{
    for (int i = 0; i < check_rounds(c, 80); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = pick_cols(c);
        const kn_dtype in = pick_dtype(c);
        const bool in_place = check_below(c, 3) == 0;
        const kn_dtype out = in_place ? in : pick_dtype(c);
        const check_pattern pattern = pick_pattern(c);
        check_begin(c, "rows %lld cols %lld %s to %s%s, %s", (long long)rows, (long long)cols, check_dtype_name(in),
                    check_dtype_name(out), in_place ? " in place" : "", check_pattern_name(pattern));
        kn_gated_gelu_args args = {.b = check_matrix(c, rows, cols, in, CHECK_NORMAL)};
        args.a = in_place ? check_matrix_inout(c, rows, cols, in, pattern) : check_matrix(c, rows, cols, in, pattern);
        args.out = in_place ? args.a : check_matrix_out(c, rows, cols, out);
        double *scale = check_row_scale(c, rows);
        for (int64_t r = 0; r < rows; r++) /* gelu's negative tail ends near -6: beyond, the absolute error is 0 */
            scale[r] = fmin(check_row_largest(&args.a, r), 8) * check_row_largest(&args.b, r);
        check_judge(c,
                    &(check_case){
                        .call = check_call_gated_gelu,
                        .args = &args,
                        .args_bytes = sizeof args,
                        .output = check_view_matrix(&args.out),
                        .tolerance = {.relative = 16 * CHECK_ROUND_F32, .scaled = 4 * CHECK_ROUND_F32, .scale = scale},
                        .slices = CHECK_ROW_SLICES,
                        .slice = slice_gated_gelu});
    }
}

static void slice_add_table(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_add_table_args *args = opaque;
    kn_add_table_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->x.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->x = check_rows_of(&args->x, first, count);
    *covered = check_view_matrix(&sliced->out);
}

/* One f32 sum: the same bits everywhere, before a bf16 result is rounded. */
void check_add_table(check *c)
{
    for (int i = 0; i < check_rounds(c, 60); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = pick_cols(c);
        const kn_dtype in = pick_dtype(c);
        const bool in_place = check_coin(c);
        const kn_dtype out = in_place ? in : pick_dtype(c);
        const check_pattern pattern = pick_pattern(c);
        check_begin(c, "rows %lld cols %lld %s to %s%s, %s", (long long)rows, (long long)cols, check_dtype_name(in),
                    check_dtype_name(out), in_place ? " in place" : "", check_pattern_name(pattern));
        kn_add_table_args args = {.table = check_vector(c, cols, 0, 1)};
        args.x = in_place ? check_matrix_inout(c, rows, cols, in, pattern) : check_matrix(c, rows, cols, in, pattern);
        args.out = in_place ? args.x : check_matrix_out(c, rows, cols, out);
        check_judge(c, &(check_case){.call = check_call_add_table,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_matrix(&args.out),
                                     .tolerance = {.relative = 2 * CHECK_ROUND_F32, .nmse = nmse_bound(out, pattern)},
                                     .slices = CHECK_ROW_SLICES,
                                     .slice = slice_add_table});
    }
}

/* All that a step writes in one buffer: x, and with a history x_prev and m. */
static void slice_sampler_step(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_sampler_step_args *args = opaque;
    kn_sampler_step_args *sliced = sliced_opaque;
    int64_t first;
    check_row_range(args->count, index, &first, &sliced->count);
    sliced->x += first;
    for (int32_t v = 0; v < args->velocities; v++) sliced->velocity[v] += first;
    if (args->m) {
        sliced->m += first;
        sliced->x_prev += first;
        sliced->m_prev += first;
        if (args->corrected) sliced->m_prev2 += first;
    }
    covered->data = sliced->x;
    covered->count[2] = sliced->count;
}

void check_sampler_step(check *c)
{
    for (int i = 0; i < check_rounds(c, 80); i++) {
        check_begin(c, "choosing");
        const int64_t count = CHECK_PICK(c, 1, 2, 7, 16, 17, 31, 63, 65, 1000, 4096, 70001);
        const int32_t velocities = 1 + (int32_t)check_coin(c);
        const bool history = check_below(c, 4) != 0, corrected = history && check_coin(c);
        const check_pattern pattern = pick_pattern(c);
        check_begin(c, "count %lld, %d velocities%s%s, %s", (long long)count, velocities, history ? ", history" : "",
                    corrected ? ", corrected" : "", check_pattern_name(pattern));
        const kn_matrix state = check_matrix_inout(c, history ? 3 : 1, count, KN_F32, pattern);
        kn_sampler_step_args args = {.x = state.data, .count = count, .velocities = velocities, .corrected = corrected};
        for (int32_t v = 0; v < velocities; v++) {
            args.velocity[v] = check_matrix(c, 1, count, KN_F32, CHECK_NORMAL).data;
            args.velocity_weight[v] = (float)check_normal(c);
        }
        if (history) {
            args.x_prev = args.x + state.stride;
            args.m = args.x + 2 * state.stride;
            args.m_prev = check_matrix(c, 1, count, KN_F32, pattern).data;
        }
        if (corrected) args.m_prev2 = check_matrix(c, 1, count, KN_F32, CHECK_NORMAL).data;
        for (int j = 0; j < 4; j++) args.corrector[j] = (float)check_normal(c);
        for (int j = 0; j < 3; j++) args.predictor[j] = (float)check_normal(c);
        check_view view = check_view_matrix(&state);
        check_judge(c, &(check_case){.call = check_call_sampler_step,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = view,
                                     .tolerance = {.exact = true},
                                     .slices = CHECK_ROW_SLICES,
                                     .slice = slice_sampler_step});
    }
}

static void slice_embed(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_embed_args *args = opaque;
    kn_embed_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->out.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->ids += first;
    *covered = check_view_matrix(&sliced->out);
}

/* Widening is exact and narrowing to bf16 is rounded to nearest even: no freedom. */
void check_embed(check *c)
{
    for (int i = 0; i < check_rounds(c, 60); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = pick_cols(c), vocabulary = CHECK_PICK(c, 1, 2, 50);
        const kn_dtype in = (kn_dtype)check_below(c, 3), out = pick_dtype(c);
        check_begin(c, "ids %lld cols %lld vocabulary %lld %s to %s", (long long)rows, (long long)cols,
                    (long long)vocabulary, check_dtype_name(in), check_dtype_name(out));
        kn_embed_args args = {.table = check_matrix(c, vocabulary, cols, in, CHECK_NORMAL),
                              .ids = check_indices(c, rows, vocabulary)};
        args.out = check_matrix_out(c, rows, cols, out);
        check_judge(c, &(check_case){.call = check_call_embed,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_matrix(&args.out),
                                     .tolerance = {.exact = true},
                                     .slices = CHECK_ROW_SLICES,
                                     .slice = slice_embed});
    }
}

/* In f32 an angle up to 1000 is off by 1000 u, and its frequency by a few u more:
 * 4000 u = 2.4e-4 absolute, values being at most 1. */
void check_timestep_embed(check *c)
{
    for (int i = 0; i < check_rounds(c, 20); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = CHECK_PICK(c, 2, 4, 6, 14, 16, 34, 256);
        check_begin(c, "timesteps %lld cols %lld", (long long)rows, (long long)cols);
        kn_timestep_embed_args args = {.out = check_matrix_out(c, rows, cols, KN_F32)};
        float *timesteps = check_buffer_new(c, (size_t)rows * sizeof *timesteps, sizeof *timesteps, CHECK_INPUT);
        double *scale = check_row_scale(c, rows);
        for (int64_t r = 0; r < rows; r++) {
            timesteps[r] = (float)check_below(c, 1001) - (check_coin(c) ? 0.0f : 0.25f);
            scale[r] = fabs((double)timesteps[r]) + 1;
        }
        args.timesteps = timesteps;
        check_judge(c, &(check_case){
                           .call = check_call_timestep_embed,
                           .args = &args,
                           .args_bytes = sizeof args,
                           .output = check_view_matrix(&args.out),
                           .tolerance = {.relative = CHECK_ROUND_F32, .scaled = 4 * CHECK_ROUND_F32, .scale = scale}});
    }
}

/* Integers: the same bits. One output at a time, ragged shares that begin in the middle of a sequence. */
void check_pack_rows(check *c)
{
    for (int i = 0; i < 24; i++) {
        check_begin(c, "choosing");
        const int32_t sequences = (int32_t)CHECK_PICK(c, 1, 2, 3, 64);
        const bool positions = check_coin(c);
        int32_t *offsets = check_indices(c, sequences + 1, 1), *first = check_indices(c, sequences, 200);
        int32_t *height = check_indices(c, sequences, 7), *width = check_indices(c, sequences, 9);
        for (int32_t s = 0; s < sequences; s++) {
            offsets[s + 1] = offsets[s] + (int32_t)CHECK_PICK(c, 0, 1, 17, 300) + (s == 0);
            height[s]++;
            width[s]++;
        }
        const int64_t rows = offsets[sequences];
        kn_pack_rows_args args = {
            .sequences = sequences, .offsets = offsets, .first = first, .height = height, .width = width};
        check_view view = {.count = {rows, 1, positions ? 3 : 1}, .stride = {positions ? 3 : 1, 1}};
        if (positions) {
            view.data = args.positions = check_buffer_new(c, (size_t)rows * sizeof *args.positions, 2, CHECK_OUTPUT);
            view.dtype = KN_BF16;
        } else {
            view.data = args.sequence = check_buffer_new(c, (size_t)rows * sizeof *args.sequence, 4, CHECK_OUTPUT);
            view.dtype = KN_F32;
        }
        check_judge(c, &(check_case){.call = check_call_pack_rows,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = view,
                                     .tolerance = {.exact = true}});
    }
}

void check_patchify(check *c)
{
    for (int i = 0; i < check_rounds(c, 30); i++) {
        check_begin(c, "choosing");
        kn_patchify_args args = {.channels = (int32_t)CHECK_PICK(c, 1, 3, 16, 36),
                                 .t = (int32_t)CHECK_PICK(c, 1, 2, 3),
                                 .h = (int32_t)CHECK_PICK(c, 2, 4, 6, 10),
                                 .w = (int32_t)CHECK_PICK(c, 2, 4, 14, 34)};
        const kn_dtype out = pick_dtype(c);
        check_begin(c, "%d channels %dx%dx%d to %s", args.channels, args.t, args.h, args.w, check_dtype_name(out));
        const int64_t tokens = (int64_t)args.t * (args.h / 2) * (args.w / 2);
        args.latent = check_vector(c, tokens * 4 * args.channels, 0, 1);
        args.out = check_matrix_out(c, tokens, (int64_t)args.channels * 4, out);
        check_judge(c, &(check_case){.call = check_call_patchify,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_matrix(&args.out),
                                     .tolerance = {.exact = true}});
    }
}

void check_unpatchify(check *c)
{
    for (int i = 0; i < check_rounds(c, 30); i++) {
        check_begin(c, "choosing");
        kn_unpatchify_args args = {.channels = (int32_t)CHECK_PICK(c, 1, 3, 16, 48),
                                   .t = (int32_t)CHECK_PICK(c, 1, 2, 3),
                                   .h = (int32_t)CHECK_PICK(c, 2, 4, 6, 10),
                                   .w = (int32_t)CHECK_PICK(c, 2, 4, 14, 34)};
        const kn_dtype in = pick_dtype(c);
        check_begin(c, "%d channels %dx%dx%d from %s", args.channels, args.t, args.h, args.w, check_dtype_name(in));
        const int64_t tokens = (int64_t)args.t * (args.h / 2) * (args.w / 2), count = tokens * 4 * args.channels;
        args.x = check_matrix(c, tokens, (int64_t)args.channels * 4, in, CHECK_NORMAL);
        args.latent = check_matrix_out(c, 1, count, KN_F32).data;
        check_judge(c, &(check_case){.call = check_call_unpatchify,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = {.data = args.latent, .dtype = KN_F32, .count = {1, 1, count}},
                                     .tolerance = {.exact = true}});
    }
}
