/* SPDX-License-Identifier: Apache-2.0
 *
 * conv in its three modes, frame_pack and frame_unpack.
 *
 * Tolerance of conv: that of gemm (see check_gemm.c) with k = kt kh kw channels
 * and the largest norm of the values under the kernel. A tier that folds the
 * taps of KN_CONV_UP_NEAREST rounds sums of weights where the reference rounds
 * weights: 2^-9 of |w| |a| for each side in bf16, u in f32; that gives an NMSE of
 * about (2^-9)^2 / 3 per side, 2.5e-6 for both, four times that is allowed.
 * Packing is one multiplication and one addition: 2 u of their magnitudes. */
#include <math.h>
#include <string.h>

#include "tests/checkops/checkops.h"

/* ---- conv ---- */

typedef struct conv_config {
    int32_t height, width; /* of the output */
    int32_t channels, n;
    int32_t kt, side; /* kernel kt x side x side */
    kn_conv_mode mode;
    kn_dtype weight, compute;
    bool bias, residual, in_place;
    int32_t missing; /* leading NULL frames */
    check_pattern pattern;
} conv_config;

static kn_status prepare_weight(check *c, const check_tier *tier, void *opaque)
{
    kn_conv_args *args = opaque;
    const kn_ops *ops = kn_device_ops(tier->device[0]);
    const kn_weight *source = args->w;
    kn_conv_args shape = {.kt = args->kt, .kh = args->kh, .kw = args->kw, .mode = args->mode};
    shape.out.channels = args->out.channels;
    shape.in[args->kt - 1].channels = args->in[args->kt - 1].channels;
    shape.in[args->kt - 1].dtype = args->in[args->kt - 1].dtype;
    kn_weight *prepared = check_buffer_new(c, sizeof *prepared, _Alignof(kn_weight), CHECK_OUTPUT);
    void *memory = check_buffer_new(c, ops->conv_weight_bytes(&shape), 64, CHECK_OUTPUT);
    args->w = prepared;
    return ops->conv_weight_prepare(tier->stream[0], prepared, memory, source, &shape);
}

static kn_weight *make_weight(check *c, const conv_config *g, double *largest_norm)
{
    const int64_t k = (int64_t)g->kt * g->side * g->side * g->channels;
    const size_t element = kn_dtype_bytes(g->weight);
    void *data = check_buffer_new(c, (size_t)(g->n * k) * element, element, CHECK_INPUT);
    for (int64_t i = 0; i < g->n * k; i++) check_store(data, g->weight, i, check_normal(c) / sqrt((double)k));
    kn_matrix m = {.data = data, .rows = g->n, .cols = k, .stride = k, .dtype = g->weight};
    *largest_norm = 0;
    for (int64_t n = 0; n < g->n; n++) *largest_norm = fmax(*largest_norm, check_row_norm(&m, n));
    kn_weight *w = check_buffer_new(c, sizeof *w, _Alignof(kn_weight), CHECK_INPUT);
    *w = (kn_weight){.data = data, .n = g->n, .k = k, .dtype = g->weight, .compute = g->compute};
    return w;
}

/* Largest norm of a pixel's channels over all input frames. */
static double largest_pixel(const kn_conv_args *args)
{
    double largest = 0;
    for (int32_t t = 0; t < args->kt; t++) {
        const kn_frame *f = &args->in[t];
        for (int64_t y = 0; f->data && y < f->height; y++) {
            kn_matrix row = {.data =
                                 (char *)f->data + y * f->row_stride * f->channels * (int64_t)kn_dtype_bytes(f->dtype),
                             .rows = f->width,
                             .cols = f->channels,
                             .stride = f->channels,
                             .dtype = f->dtype};
            for (int64_t x = 0; x < f->width; x++) largest = fmax(largest, check_row_norm(&row, x));
        }
    }
    return largest;
}

static void make_frames(check *c, const conv_config *g, kn_conv_args *args)
{
    kn_frame in = {.height = g->height, .width = g->width, .channels = g->channels, .dtype = g->compute};
    if (g->mode == KN_CONV_UP_NEAREST) {
        in.height /= 2;
        in.width /= 2;
    } else if (g->mode == KN_CONV_DOWN) { /* an odd size loses its last pixel to the stride */
        in.height = 2 * in.height + (int32_t)check_below(c, 2);
        in.width = 2 * in.width + (int32_t)check_below(c, 2);
    }
    in.border = g->side == 3 ? 1 : (int32_t)check_below(c, 2);
    const kn_frame first = check_frame(c, &in, g->pattern, CHECK_INPUT);
    for (int32_t t = 0; t < g->kt; t++) {
        in = args->in[t] = first; /* equal geometry, row_stride too */
        if (t < g->missing) {
            args->in[t] = (kn_frame){0};
        } else if (t > 0) {
            const int64_t element = (int64_t)kn_dtype_bytes(in.dtype), b = in.border;
            const int64_t pixels = (in.height + 2 * b - 1) * in.row_stride + in.width + 2 * b;
            const int64_t inset = (b * in.row_stride + b) * in.channels * element;
            char *copy = check_buffer_new(c, (size_t)(pixels * in.channels * element), (size_t)element, CHECK_INPUT);
            memcpy(copy, (const char *)first.data - inset, (size_t)(pixels * in.channels * element));
            args->in[t].data = copy + inset;
            for (int64_t x = 0; x < in.width * in.channels; x++) /* not the same frame again */
                check_store(args->in[t].data, in.dtype, x, check_normal(c));
        }
    }
}

static void check_one(check *c, const conv_config *g)
{
    static const char *const modes[] = {"same", "down", "up"};
    check_begin(c, "%s out %dx%d channels %d to %d kernel %dx%dx%d weight %s compute %s%s%s%s missing %d %s",
                modes[g->mode], g->height, g->width, g->channels, g->n, g->kt, g->side, g->side,
                check_dtype_name(g->weight), check_dtype_name(g->compute), g->bias ? " bias" : "",
                g->residual ? " residual" : "", g->in_place ? " in place" : "", g->missing,
                check_pattern_name(g->pattern));
    kn_conv_args args = {.kt = g->kt, .kh = g->side, .kw = g->side, .mode = g->mode};
    double weight_norm;
    make_frames(c, g, &args);
    args.w = make_weight(c, g, &weight_norm);
    if (g->bias) args.bias = check_vector(c, g->n, 0, 1);
    kn_frame out = {.height = g->height, .width = g->width, .channels = g->n, .border = (int32_t)check_below(c, 2)};
    args.out = check_frame(c, &out, CHECK_NORMAL, CHECK_OUTPUT);
    if (g->residual) args.residual = g->in_place ? args.out : check_frame(c, &out, CHECK_NORMAL, CHECK_INPUT);

    const double u = CHECK_ROUND_F32, k = (double)args.w->k;
    const double field = largest_pixel(&args) * sqrt(g->kt * g->side * g->side);
    const bool folded = g->mode == KN_CONV_UP_NEAREST, bf16 = g->compute == KN_BF16;
    double *scale = check_row_scale(c, (int64_t)g->height * g->width);
    for (int64_t i = 0; i < (int64_t)g->height * g->width; i++) scale[i] = weight_norm * field + 5;
    double nmse = 16 * 0.04 * u * u * (k + 25) + (folded && bf16 ? 1e-5 : 0);
    check_judge(c,
                &(check_case){.call = check_call_conv,
                              .args = &args,
                              .args_bytes = sizeof args,
                              .output = check_view_frame(&args.out),
                              .tolerance = {.relative = 4 * u,
                                            .scaled = u * (8 + sqrt(k)) + (folded && bf16 ? 2 * CHECK_ROUND_BF16 : 0),
                                            .scale = scale,
                                            .nmse = g->pattern == CHECK_NORMAL ? nmse : 0},
                              .prepare = prepare_weight});
}

static conv_config random_config(check *c)
{
    conv_config g = {
        .height = (int32_t)CHECK_PICK(c, 1, 2, 3, 5, 8),
        .width = (int32_t)CHECK_PICK(c, 1, 2, 3, 7, 8, 15, 16, 17, 33),
        .channels = (int32_t)CHECK_PICK(c, 1, 2, 3, 4, 12, 16, 17, 32, 33, 48),
        .n = (int32_t)CHECK_PICK(c, 1, 3, 8, 12, 16, 17, 31, 33, 48, 65, 96),
        .kt = (int32_t)CHECK_PICK(c, 1, 3),
        .side = (int32_t)CHECK_PICK(c, 1, 3, 3),
        .mode = (kn_conv_mode)CHECK_PICK(c, KN_CONV_SAME, KN_CONV_SAME, KN_CONV_DOWN, KN_CONV_UP_NEAREST),
        .weight = (kn_dtype)check_below(c, 3),
        .compute = check_coin(c) ? KN_BF16 : KN_F32,
        .bias = check_coin(c),
        .residual = check_coin(c),
        .pattern = (check_pattern)CHECK_PICK(c, CHECK_NORMAL, CHECK_NORMAL, CHECK_NORMAL, CHECK_NASTY, CHECK_NAN),
    };
    g.in_place = g.residual && check_coin(c);
    if (g.compute == KN_BF16) g.channels += g.channels % 2;
    g.missing = g.kt == 3 ? (int32_t)check_below(c, 3) : 0;
    if (g.mode != KN_CONV_SAME) {
        g.side = 3;
        g.kt = 1;
        g.missing = 0;
    }
    if (g.mode == KN_CONV_UP_NEAREST) {
        g.height = 2 * ((g.height + 1) / 2);
        g.width = 2 * ((g.width + 1) / 2);
    }
    return g;
}

void check_conv(check *c)
{
    const conv_config large[] = {
        {.height = 5, .width = 52, .channels = 96, .n = 96, .kt = 3, .side = 3, .bias = true, .residual = true},
        {.height = 3, .width = 17, .channels = 384, .n = 100, .kt = 3, .side = 3, .bias = true, .missing = 1},
        {.height = 3, .width = 300, .channels = 96, .n = 3, .kt = 1, .side = 3, .bias = true},
        {.height = 6, .width = 34, .channels = 192, .n = 96, .kt = 1, .side = 3, .mode = KN_CONV_UP_NEAREST},
        {.height = 4, .width = 33, .channels = 96, .n = 96, .kt = 1, .side = 3, .mode = KN_CONV_DOWN, .bias = true},
        {.height = 7, .width = 33, .channels = 384, .n = 515, .kt = 3, .side = 1},
    };
    for (int i = 0; i < CHECK_COUNT(large); i++) {
        for (int variant = 0; variant < 2; variant++) {
            conv_config g = large[i];
            g.compute = g.weight = variant ? KN_BF16 : KN_F32;
            check_one(c, &g);
        }
    }
    for (int i = 0; i < check_rounds(c, 240); i++) {
        check_begin(c, "choosing");
        conv_config g = random_config(c);
        check_one(c, &g);
    }
}

/* ---- frame_pack, frame_unpack, picture ---- */

static kn_frame random_frame(check *c)
{
    return (kn_frame){.height = (int32_t)CHECK_PICK(c, 1, 2, 7),
                      .width = (int32_t)CHECK_PICK(c, 1, 2, 5, 16, 17, 50),
                      .channels = (int32_t)CHECK_PICK(c, 1, 3, 12, 16, 17, 48),
                      .border = (int32_t)check_below(c, 2)};
}

void check_frame_pack(check *c)
{
    for (int i = 0; i < check_rounds(c, 40); i++) {
        check_begin(c, "choosing");
        kn_frame shape = random_frame(c);
        const bool scale = check_coin(c), shift = check_coin(c);
        shape.dtype = check_coin(c) ? KN_BF16 : KN_F32;
        check_begin(c, "%dx%dx%d to %s%s%s", shape.height, shape.width, shape.channels, check_dtype_name(shape.dtype),
                    scale ? " scale" : "", shift ? " shift" : "");
        const int64_t pixels = (int64_t)shape.height * shape.width;
        kn_frame_pack_args args = {.plane_stride = pixels + check_below(c, 5)};
        args.planes = check_vector(c, (shape.channels - 1) * args.plane_stride + pixels, 0, 1);
        if (scale) args.scale = check_vector(c, shape.channels, 1, 0.5);
        if (shift) args.shift = check_vector(c, shape.channels, 0, 1);
        args.out = check_frame(c, &shape, CHECK_NORMAL, CHECK_OUTPUT);
        double *magnitude = check_row_scale(c, pixels);
        for (int64_t p = 0; p < pixels; p++) magnitude[p] = 16; /* 3.5 x 2.75 + 3.5 */
        check_judge(c, &(check_case){.call = check_call_frame_pack,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = check_view_frame(&args.out),
                                     .tolerance = {.scaled = scale || shift ? 2 * CHECK_ROUND_F32 : 0,
                                                   .scale = magnitude,
                                                   .nmse = shape.dtype == KN_BF16 ? 1e-7 : 0,
                                                   .exact = !scale && !shift}});
    }
}

void check_frame_unpack(check *c)
{
    for (int i = 0; i < check_rounds(c, 40); i++) {
        check_begin(c, "choosing");
        kn_frame shape = random_frame(c);
        const bool scale = check_coin(c), shift = check_coin(c), clamp = check_coin(c);
        check_begin(c, "%dx%dx%d%s%s%s", shape.height, shape.width, shape.channels, scale ? " scale" : "",
                    shift ? " shift" : "", clamp ? " clamp" : "");
        const int64_t pixels = (int64_t)shape.height * shape.width;
        kn_frame_unpack_args args = {.plane_stride = pixels + check_below(c, 5)};
        args.x = check_frame(c, &shape, check_below(c, 4) == 0 ? CHECK_NAN : CHECK_NORMAL, CHECK_INPUT);
        args.planes = check_matrix_out(c, 1, (shape.channels - 1) * args.plane_stride + pixels, KN_F32).data;
        if (scale) args.scale = check_vector(c, shape.channels, 1, 0.5);
        if (shift) args.shift = check_vector(c, shape.channels, 0, 1);
        if (clamp) {
            args.low = -0.5f;
            args.high = 1;
        }
        double *magnitude = check_row_scale(c, shape.channels);
        for (int32_t channel = 0; channel < shape.channels; channel++) magnitude[channel] = 16;
        check_judge(c, &(check_case){.call = check_call_frame_unpack,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = {.data = args.planes,
                                                .dtype = KN_F32,
                                                .count = {shape.channels, 1, pixels},
                                                .stride = {args.plane_stride, pixels}},
                                     .tolerance = {.scaled = scale || shift ? 2 * CHECK_ROUND_F32 : 0,
                                                   .scale = magnitude,
                                                   .exact = !scale && !shift}});
    }
}

/* Sums, product and clamp in a fixed order: the same bits, as floats and as bytes. */
void check_picture(check *c)
{
    for (int i = 0; i < check_rounds(c, 60); i++) {
        check_begin(c, "choosing");
        kn_picture_args args = {.layout = (kn_picture_layout)check_below(c, 2),
                                .terms = (int32_t)(1 + check_below(c, KN_PICTURE_TERMS_MAX)),
                                .scale = 0.5f};
        const int64_t height = CHECK_PICK(c, 1, 2, 7), width = CHECK_PICK(c, 1, 2, 3, 5, 16, 17, 50);
        const bool rgb = args.layout == KN_PICTURE_RGB24, with_nan = check_below(c, 4) == 0;
        check_begin(c, "%lldx%lld, %d terms to %s%s", (long long)height, (long long)width, args.terms,
                    rgb ? "RGB24" : "planes", with_nan ? ", nan" : "");
        for (int32_t t = 0; t < args.terms; t++) {
            const kn_frame shape = {.height = (int32_t)height,
                                    .width = (int32_t)width,
                                    .channels = (int32_t)CHECK_PICK(c, 3, 9, 16),
                                    .border = (int32_t)check_below(c, 2)};
            args.x[t] = check_frame(c, &shape, with_nan ? CHECK_NAN : CHECK_NORMAL, CHECK_INPUT);
            args.first[t] = (int32_t)check_below(c, shape.channels - 2);
        }
        for (int j = 0; j < KN_PICTURE_CHANNELS; j++) args.shift[j] = 0.5f + 0.25f * (float)check_normal(c);
        const int64_t values = height * width * KN_PICTURE_CHANNELS;
        args.out =
            rgb ? check_buffer_new(c, (size_t)values, 1, CHECK_OUTPUT) : check_matrix_out(c, 1, values, KN_F32).data;
        check_judge(c, &(check_case){.call = check_call_picture,
                                     .args = &args,
                                     .args_bytes = sizeof args,
                                     .output = {.data = args.out, .count = {1, 1, values}, .bytes = rgb},
                                     .tolerance = {.exact = true}});
    }
}
