/* SPDX-License-Identifier: Apache-2.0
 *
 * layernorm, rmsnorm (with and without rotary embedding), channel_norm.
 *
 * Tolerance. With u = 2^-24: a sum over n columns in a few f32 accumulators is off
 * by at most u (8 + sqrt(n)) of the sum of magnitudes. In a layer norm that is the
 * error of the mean, and (x - mean) / deviation turns it into
 * u (8 + sqrt(n)) max|x| / deviation: large for a row with an offset, as the contract
 * allows, yet far below what a one-pass variance would lose. A sum of squares
 * has no cancellation: RMS norms are good to u (8 + sqrt(n)) of the element.
 * A rotation keeps the length of a pair, so its error is relative to the row. */
#include <math.h>
#include <string.h>

#include "tests/checkops/checkops.h"

static int64_t pick_cols(check *c)
{
    return CHECK_PICK(c, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 96, 100, 127, 129, 384, 1536, 1543);
}

static int64_t pick_rows(check *c)
{
    return CHECK_PICK(c, 1, 2, 3, 8, 17, 33, 70);
}

static check_pattern pick_pattern(check *c)
{
    return (check_pattern)CHECK_PICK(c, CHECK_NORMAL, CHECK_NORMAL, CHECK_NASTY, CHECK_NASTY, CHECK_NAN);
}

static double nmse_bound(kn_dtype out, check_pattern pattern)
{
    if (pattern != CHECK_NORMAL) return 0;
    return out == KN_BF16 ? 1e-7 : 1e-12;
}

/* ---- layernorm ---- */

static void slice_layernorm(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_layernorm_args *args = opaque;
    kn_layernorm_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->x.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->x = check_rows_of(&args->x, first, count);
    sliced->scale = check_table_rows_of(&args->scale, first);
    sliced->shift = check_table_rows_of(&args->shift, first);
    *covered = check_view_matrix(&sliced->out);
}

static const double *layernorm_scale(check *c, const kn_layernorm_args *args)
{
    double *scale = check_row_scale(c, args->x.rows), n = (double)args->x.cols;
    for (int64_t r = 0; r < args->x.rows; r++) {
        double mean = 0, variance = 0, largest = check_row_largest(&args->x, r);
        for (int64_t i = 0; i < args->x.cols; i++)
            mean += check_load(args->x.data, args->x.dtype, r * args->x.stride + i) / n;
        for (int64_t i = 0; i < args->x.cols; i++) {
            double centred = check_load(args->x.data, args->x.dtype, r * args->x.stride + i) - mean;
            variance += centred * centred / n;
        }
        double deviation = sqrt((isfinite(variance) ? variance : 0) + args->eps);
        scale[r] = 5 * largest / deviation + 5; /* weights and scales stay below 5, biases too */
    }
    return scale;
}

void check_layernorm(check *c)
{
    for (int i = 0; i < check_rounds(c, 140); i++) {
        check_begin(c, "choosing");
        const int64_t rows = pick_rows(c), cols = pick_cols(c);
        const kn_dtype in = check_coin(c) ? KN_BF16 : KN_F32, out = check_coin(c) ? KN_BF16 : KN_F32;
        const check_pattern pattern = pick_pattern(c);
        const int mode = (int)check_below(c, 5);
        static const char *const modes[] = {"bare", "weight and bias", "weight", "one modulation", "modulated"};
        check_begin(c, "rows %lld cols %lld %s to %s, %s, %s", (long long)rows, (long long)cols, check_dtype_name(in),
                    check_dtype_name(out), modes[mode], check_pattern_name(pattern));
        kn_layernorm_args args = {.eps = 1e-6f};
        args.x = check_matrix(c, rows, cols, in, pattern);
        args.out = check_matrix_out(c, rows, cols, out);
        if (mode == 1 || mode == 2) args.weight = check_vector(c, cols, 1, 0.5);
        if (mode == 1) args.bias = check_vector(c, cols, 0, 1);
        if (mode >= 3) {
            args.scale = check_row_table(c, rows, cols, mode == 4);
            args.shift = check_row_table(c, rows, cols, mode == 4);
        }
        check_judge(c, &(check_case){.call = check_call_layernorm,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_matrix(&args.out),
                                     .tolerance = {.relative = CHECK_ROUND_F32 * (8 + sqrt((double)cols)),
                                                   .scaled = CHECK_ROUND_F32 * (8 + sqrt((double)cols)),
                                                   .scale = layernorm_scale(c, &args),
                                                   .nmse = cols >= 8 ? nmse_bound(out, pattern) : 0},
                                     .slices = CHECK_ROW_SLICES,
                                     .slice = slice_layernorm});
    }
}

/* ---- rmsnorm ---- */

static void slice_rmsnorm(const void *opaque, int index, void *sliced_opaque, check_view *covered)
{
    const kn_rmsnorm_args *args = opaque;
    kn_rmsnorm_args *sliced = sliced_opaque;
    int64_t first, count;
    check_row_range(args->x.rows, index, &first, &count);
    sliced->out = check_rows_of(&args->out, first, count);
    sliced->x = check_rows_of(&args->x, first, count);
    if (args->rope.positions) sliced->rope.positions += first;
    *covered = check_view_matrix(&sliced->out);
}

static kn_rope make_rope(check *c, int64_t rows, int32_t head_dim)
{
    enum { POSITIONS = 11 };
    /* The split of head_dim over (frame, row, column) that Wan uses. */
    const int32_t side = head_dim / 6;
    kn_rope rope = {.head_dim = head_dim, .pairs = {head_dim / 2 - 2 * side, side, side}};
    for (int axis = 0; axis < 3; axis++) {
        float *table =
            check_buffer_new(c, (size_t)(POSITIONS * rope.pairs[axis]) * 2 * sizeof *table, sizeof *table, CHECK_INPUT);
        for (int64_t i = 0; i < (int64_t)POSITIONS * rope.pairs[axis]; i++) {
            double angle = 3 * check_normal(c);
            table[2 * i] = (float)cos(angle);
            table[2 * i + 1] = (float)sin(angle);
        }
        rope.table[axis] = table;
    }
    kn_position *positions = check_buffer_new(c, (size_t)rows * sizeof *positions, _Alignof(kn_position), CHECK_INPUT);
    for (int64_t r = 0; r < rows; r++)
        for (int axis = 0; axis < 3; axis++) positions[r].axis[axis] = (uint16_t)check_below(c, POSITIONS);
    rope.positions = positions;
    return rope;
}

void check_rmsnorm(check *c)
{
    for (int i = 0; i < check_rounds(c, 160); i++) {
        check_begin(c, "choosing");
        const bool rope = check_coin(c), in_place = check_coin(c);
        const int32_t head_dim = (int32_t)CHECK_PICK(c, 2, 6, 8, 12, 14, 24, 64, 128);
        const int64_t rows = pick_rows(c), cols = rope ? head_dim * CHECK_PICK(c, 1, 2, 3, 12) : pick_cols(c);
        const kn_dtype in = check_coin(c) ? KN_BF16 : KN_F32;
        const kn_dtype out = in_place || check_coin(c) ? in : KN_F32;
        const check_pattern pattern = pick_pattern(c);
        check_begin(c, "rows %lld cols %lld %s to %s%s%s head %d, %s", (long long)rows, (long long)cols,
                    check_dtype_name(in), check_dtype_name(out), in_place ? " in place" : "", rope ? " rope" : "",
                    head_dim, check_pattern_name(pattern));
        kn_rmsnorm_args args = {.eps = 1e-6f, .weight = check_vector(c, cols, 1, 0.5)};
        if (in_place) {
            args.out = args.x = check_matrix_inout(c, rows, cols, in, pattern);
        } else {
            args.x = check_matrix(c, rows, cols, in, pattern);
            args.out = check_matrix_out(c, rows, cols, out);
        }
        if (rope) args.rope = make_rope(c, rows, head_dim);
        const double error = CHECK_ROUND_F32 * (8 + sqrt((double)cols));
        check_judge(
            c, &(check_case){
                   .call = check_call_rmsnorm,
                   .args = &args,
                   .args_bytes = sizeof args,
                   .output = check_view_matrix(&args.out),
                   .tolerance = {.relative = error, .scaled = rope ? 2 * error : 0, .nmse = nmse_bound(out, pattern)},
                   .slices = CHECK_ROW_SLICES,
                   .slice = slice_rmsnorm});
    }
}

/* ---- channel_norm ---- */

void check_channel_norm(check *c)
{
    for (int i = 0; i < check_rounds(c, 80); i++) {
        check_begin(c, "choosing");
        kn_frame shape = {.height = (int32_t)CHECK_PICK(c, 1, 2, 3, 9),
                          .width = (int32_t)CHECK_PICK(c, 1, 2, 5, 17, 33),
                          .channels = (int32_t)CHECK_PICK(c, 1, 3, 7, 16, 17, 33, 96, 100, 384)};
        const check_pattern pattern = pick_pattern(c);
        const bool silu = check_coin(c), in_place = check_below(c, 4) == 0;
        const kn_dtype out = !in_place && check_coin(c) ? KN_BF16 : KN_F32;
        check_begin(c, "%dx%dx%d to %s%s%s, %s", shape.height, shape.width, shape.channels, check_dtype_name(out),
                    silu ? " silu" : "", in_place ? " in place" : "", check_pattern_name(pattern));
        kn_channel_norm_args args = {.gamma = check_vector(c, shape.channels, 1, 0.5), .silu = silu};
        shape.border = (int32_t)check_below(c, 2);
        args.x = check_frame(c, &shape, pattern, in_place ? CHECK_OUTPUT : CHECK_INPUT);
        shape.border = (int32_t)check_below(c, 2);
        shape.dtype = out;
        args.out = in_place ? args.x : check_frame(c, &shape, CHECK_NORMAL, CHECK_OUTPUT);
        /* silu(y) turns an error of y, which may be as large as the row, into 1.1 of it; its own exp costs some u. */
        const double error = CHECK_ROUND_F32 * (8 + sqrt(shape.channels));
        check_judge(
            c, &(check_case){.call = check_call_channel_norm,
                             .args = &args,
                             .args_bytes = sizeof args,
                             .output = check_view_frame(&args.out),
                             .tolerance = {.relative = silu ? 24 * error : error, .nmse = nmse_bound(out, pattern)}});
    }
}
