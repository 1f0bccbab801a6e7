/* SPDX-License-Identifier: Apache-2.0
 *
 * The shapes: a transformer of width 1536 with 12 heads of 128 and a feed-forward
 * of 8960, at 1950 and 3510 tokens (5 and 9 latent frames of 240x416 pixels); its
 * VAE of base width 96; a text encoder of width 4096. On a GPU the same at 32760
 * tokens (21 latent frames of 480x832), and where it matters the 14 B model's
 * width of 5120 with 40 heads and a feed-forward of 13824. */
#include <math.h>
#include <stdio.h>

#include "tests/checkops/bench.h"

enum { WIDTH = 1536, HEADS = 12, HEAD_DIM = 128, FEED = 8960, TOKENS = 1950, TOKENS_LONG = 3510, TEXT = 512 };
enum { WIDTH_14B = 5120, FEED_14B = 13824, CLIP = 32760, CLIP_T = 21, CLIP_H = 60, CLIP_W = 104 };

static int64_t tokens(const bench *b)
{
    return b->gpu ? CLIP : TOKENS;
}

/* Pixels of a frame: 416 x 240, or on a GPU 832 x 480. */
static int32_t pixels(const bench *b, int32_t side)
{
    return b->gpu ? 2 * side : side;
}

static double matrix_bytes(const kn_matrix *m)
{
    return (double)m->rows * (double)m->cols * (double)kn_dtype_bytes(m->dtype);
}

static double frame_bytes(const kn_frame *f)
{
    return (double)f->height * f->width * f->channels * (double)kn_dtype_bytes(f->dtype);
}

/* ---- gemm ---- */

typedef struct gemm_shape {
    int64_t m, n, k;
    const char *what;
    kn_activation activation;
    bool residual, plain;
} gemm_shape;

static kn_status prepare_gemm(bench *b, const bench_tier *tier, void *opaque)
{
    kn_gemm_args *args = opaque;
    const kn_ops *ops = kn_device_ops(tier->device);
    kn_weight *prepared = bench_host(b, sizeof *prepared);
    void *memory = bench_block(b, ops->weight_bytes(args->w->n, args->w->k, args->w->compute));
    if (!prepared || !memory) return b->status;
    kn_status st = ops->weight_prepare(tier->stream, prepared, memory, args->w, args->w->compute);
    args->w = prepared;
    return st;
}

static void bench_one_gemm(bench *b, const gemm_shape *s, kn_dtype dtype)
{
    kn_matrix w = bench_matrix(b, s->n, s->k, dtype);
    kn_weight weight = {.data = w.data, .n = s->n, .k = s->k, .dtype = dtype, .compute = dtype};
    const kn_dtype out = s->residual && b->gpu ? KN_F32 : dtype; /* the residual stream stays float32 */
    kn_gemm_args args = {.out = bench_matrix(b, s->m, s->n, out),
                         .a = bench_matrix(b, s->m, s->k, dtype),
                         .w = &weight,
                         .bias = bench_vector(b, s->n),
                         .activation = s->activation};
    if (s->residual) {
        args.residual = args.out;
        args.gate = (kn_row_table){.data = bench_vector(b, s->n), .stride = s->n};
    }
    if (!s->plain && s->m > 1) bench_peer_gemm(b, &args, s->m, s->n, s->k, dtype);
    bench_measure(b,
                  &(bench_case){.call = check_call_gemm,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .prepare = s->plain ? NULL : prepare_gemm,
                                .operations = 2 * (double)s->m * (double)s->n * (double)s->k,
                                .bytes = matrix_bytes(&w) + matrix_bytes(&args.a) +
                                         matrix_bytes(&args.out) * (s->residual ? 2 : 1),
                                .compute = dtype},
                  "%lld x %lld x %lld, %s", (long long)s->m, (long long)s->n, (long long)s->k, s->what);
}

static void bench_gemms(bench *b, const gemm_shape *shapes, int count)
{
    for (int i = 0; i < count; i++) {
        if (!b->gpu || i == 0) bench_one_gemm(b, &shapes[i], KN_F32);
        bench_one_gemm(b, &shapes[i], KN_BF16);
    }
}

void bench_gemm(bench *b)
{
    static const gemm_shape small[] = {
        {.m = TOKENS, .n = WIDTH, .k = WIDTH, .what = "query"},
        {.m = TOKENS, .n = FEED, .k = WIDTH, .what = "feed in, gelu", .activation = KN_ACT_GELU_TANH},
        {.m = TOKENS, .n = WIDTH, .k = FEED, .what = "feed out, gated", .residual = true},
        {.m = TOKENS_LONG, .n = WIDTH, .k = WIDTH, .what = "query"},
        {.m = TOKENS, .n = WIDTH, .k = WIDTH, .what = "plain weight", .plain = true},
        {.m = 1, .n = 6 * WIDTH, .k = WIDTH, .what = "time projection"},
    };
    static const gemm_shape clip[] = {
        {.m = CLIP, .n = WIDTH, .k = WIDTH, .what = "query"},
        {.m = CLIP, .n = WIDTH, .k = WIDTH, .what = "out, gated", .residual = true},
        {.m = CLIP, .n = FEED, .k = WIDTH, .what = "feed in, gelu", .activation = KN_ACT_GELU_TANH},
        {.m = CLIP, .n = WIDTH, .k = FEED, .what = "feed out, gated", .residual = true},
        {.m = CLIP, .n = WIDTH_14B, .k = WIDTH_14B, .what = "query"},
        {.m = CLIP, .n = WIDTH_14B, .k = WIDTH_14B, .what = "out, gated", .residual = true},
        {.m = CLIP, .n = FEED_14B, .k = WIDTH_14B, .what = "feed in, gelu", .activation = KN_ACT_GELU_TANH},
        {.m = CLIP, .n = WIDTH_14B, .k = FEED_14B, .what = "feed out, gated", .residual = true},
        {.m = 2, .n = 6 * WIDTH, .k = WIDTH, .what = "time projection"},
    };
    if (b->gpu)
        bench_gemms(b, clip, CHECK_COUNT(clip));
    else
        bench_gemms(b, small, CHECK_COUNT(small));
}

/* ---- attention ---- */

static kn_status prepare_attention(bench *b, const bench_tier *tier, void *opaque)
{
    kn_attention_args *args = opaque;
    args->workspace = bench_block(b, kn_device_ops(tier->device)->attention_workspace(args));
    return b->status;
}

enum { SEQUENCES_MAX = 8 };

/* A pack of sequences, by default one, each with its own keys; `keys` 0: attention to themselves. */
typedef struct attention_shape {
    int32_t heads, queries[SEQUENCES_MAX], keys;
    const char *what;
} attention_shape;

static void bench_one_attention(bench *b, const attention_shape *s, kn_dtype dtype)
{
    int32_t q_offsets[SEQUENCES_MAX + 1] = {0}, k_offsets[SEQUENCES_MAX + 1] = {0}, count = 0;
    float tail[SEQUENCES_MAX];
    double pairs = 0;
    for (; count < SEQUENCES_MAX && s->queries[count]; count++) {
        const int32_t queries = s->queries[count], keys = s->keys ? s->keys : queries;
        q_offsets[count + 1] = q_offsets[count] + queries;
        k_offsets[count + 1] = k_offsets[count] + keys;
        tail[count] = 5;
        pairs += (double)queries * keys;
    }
    const int64_t queries = q_offsets[count], keys = k_offsets[count], width = s->heads * HEAD_DIM;
    kn_attention_args args = {.out = bench_matrix(b, queries, width, dtype),
                              .q = bench_matrix(b, queries, width, dtype),
                              .k = bench_matrix(b, keys, width, dtype),
                              .v = bench_matrix(b, keys, width, dtype),
                              .heads = s->heads,
                              .head_dim = HEAD_DIM,
                              .scale = (float)(1 / sqrt(HEAD_DIM)),
                              .sequences = count,
                              .q_offsets = q_offsets,
                              .k_offsets = k_offsets,
                              .tail_log_weight = s->keys ? tail : NULL};
    const bench_case one = {.call = check_call_attention,
                            .args = &args,
                            .args_bytes = sizeof args,
                            .prepare = prepare_attention,
                            .operations = 4.0 * pairs * (double)width,
                            .bytes = 2 * matrix_bytes(&args.q) + 2 * matrix_bytes(&args.k),
                            .compute = dtype};
    char shape[96];
    snprintf(shape, sizeof shape, "%lld x %lld, %d x %d, %s", (long long)queries, (long long)keys, s->heads, HEAD_DIM,
             s->what);
    if (count == 1) bench_peer_attention(b, &args, &one, shape);
    bench_measure(b, &one, "%s", shape);
}

void bench_attention(bench *b)
{
    static const attention_shape small[] = {
        {HEADS, {TOKENS}, 0, "self"}, {HEADS, {TOKENS_LONG}, 0, "self"}, {HEADS, {TOKENS}, 40, "text with tail"}};
    static const attention_shape clip[] = {
        {12, {4096}, 0, "self"},
        {12, {8192}, 0, "self"},
        {12, {16384}, 0, "self"},
        {12, {CLIP}, 0, "self"},
        {12, {75600}, 0, "self"},
        {40, {4096}, 0, "self"},
        {40, {8192}, 0, "self"},
        {40, {16384}, 0, "self"},
        {40, {CLIP}, 0, "self"},
        {40, {75600}, 0, "self"},
        {12, {16384, 16384, 16384, 16384}, 0, "4 sequences, even"},
        {12, {24571, 18433, 9217, 6001}, 0, "4 sequences, ragged"},
        {12, {CLIP, CLIP}, 0, "guidance"},
        {12, {CLIP}, 512, "text with tail"},
        {12, {CLIP}, 77, "text with tail"},
        {40, {CLIP}, 512, "text with tail"},
    };
    if (b->gpu) {
        for (int i = 0; i < CHECK_COUNT(clip); i++) bench_one_attention(b, &clip[i], KN_BF16);
        bench_one_attention(b, &clip[1], KN_F32);
        return;
    }
    for (kn_dtype dtype = KN_F32; dtype <= KN_BF16; dtype++)
        for (int i = 0; i < CHECK_COUNT(small); i++) bench_one_attention(b, &small[i], dtype);
}

/* ---- norms ---- */

void bench_layernorm(bench *b)
{
    for (kn_dtype out = KN_F32; out <= KN_BF16; out++) {
        kn_layernorm_args args = {.out = bench_matrix(b, tokens(b), WIDTH, out),
                                  .x = bench_matrix(b, tokens(b), WIDTH, KN_F32),
                                  .eps = 1e-6f,
                                  .scale = {.data = bench_vector(b, WIDTH), .stride = WIDTH},
                                  .shift = {.data = bench_vector(b, WIDTH), .stride = WIDTH}};
        bench_measure(b,
                      &(bench_case){.call = check_call_layernorm,
                                    .args = &args,
                                    .args_bytes = sizeof args,
                                    .bytes = matrix_bytes(&args.x) + matrix_bytes(&args.out),
                                    .compute = out},
                      "%lld x %d, modulated", (long long)tokens(b), WIDTH);
    }
}

void bench_rmsnorm(bench *b)
{
    for (kn_dtype dtype = KN_F32; dtype <= KN_BF16; dtype++) {
        kn_matrix x = bench_matrix(b, tokens(b), WIDTH, dtype);
        kn_rmsnorm_args args = {.out = x, .x = x, .weight = bench_vector(b, WIDTH), .eps = 1e-6f};
        args.rope = (kn_rope){
            .table = {bench_vector(b, 64 * 22 * 2), bench_vector(b, 64 * 21 * 2), bench_vector(b, 64 * 21 * 2)},
            .pairs = {22, 21, 21},
            .head_dim = HEAD_DIM};
        const int32_t h = b->gpu ? CLIP_H / 2 : 15, w = b->gpu ? CLIP_W / 2 : 26;
        kn_position *positions = bench_host(b, (size_t)tokens(b) * sizeof *positions);
        for (int32_t i = 0; positions && i < tokens(b); i++)
            positions[i] = (kn_position){{(uint16_t)(i / (h * w)), (uint16_t)(i % (h * w) / w), (uint16_t)(i % w)}};
        if (positions) args.rope.positions = bench_upload(b, positions, (size_t)tokens(b) * sizeof *positions);
        bench_measure(b,
                      &(bench_case){.call = check_call_rmsnorm,
                                    .args = &args,
                                    .args_bytes = sizeof args,
                                    .bytes = 2 * matrix_bytes(&x),
                                    .compute = dtype},
                      "%lld x %d, rope, in place", (long long)tokens(b), WIDTH);
    }
}

void bench_channel_norm(bench *b)
{
    const int32_t shapes[][3] = {{240, 416, 96}, {120, 208, 192}, {30, 52, 384}};
    for (int i = 0; i < CHECK_COUNT(shapes); i++) {
        const int32_t h = pixels(b, shapes[i][0]), w = pixels(b, shapes[i][1]), channels = shapes[i][2];
        kn_channel_norm_args args = {.out = bench_frame(b, h, w, channels, 1, i == 0 ? KN_F32 : KN_BF16),
                                     .x = bench_frame(b, h, w, channels, 0, KN_F32),
                                     .gamma = bench_vector(b, channels),
                                     .silu = true};
        bench_measure(b,
                      &(bench_case){.call = check_call_channel_norm,
                                    .args = &args,
                                    .args_bytes = sizeof args,
                                    .bytes = frame_bytes(&args.x) + frame_bytes(&args.out),
                                    .compute = args.out.dtype},
                      "%d x %d x %d, silu", h, w, channels);
    }
}

/* ---- rows ---- */

void bench_silu(bench *b)
{
    kn_silu_args args = {.out = bench_matrix(b, tokens(b), WIDTH, KN_F32),
                         .x = bench_matrix(b, tokens(b), WIDTH, KN_F32)};
    bench_measure(
        b,
        &(bench_case){
            .call = check_call_silu, .args = &args, .args_bytes = sizeof args, .bytes = 2 * matrix_bytes(&args.x)},
        "%lld x %d", (long long)tokens(b), WIDTH);
}

void bench_gated_gelu(bench *b)
{
    for (kn_dtype dtype = KN_F32; dtype <= KN_BF16; dtype++) {
        kn_gated_gelu_args args = {.a = bench_matrix(b, TEXT, 10240, dtype), .b = bench_matrix(b, TEXT, 10240, dtype)};
        args.out = bench_matrix(b, TEXT, 10240, dtype); /* in place, repeated, it would end among subnormals */
        bench_measure(b,
                      &(bench_case){.call = check_call_gated_gelu,
                                    .args = &args,
                                    .args_bytes = sizeof args,
                                    .bytes = 3 * matrix_bytes(&args.a),
                                    .compute = dtype},
                      "%d x %d", TEXT, 10240);
    }
}

void bench_embed(bench *b)
{
    kn_embed_args args = {.out = bench_matrix(b, TEXT, 4096, KN_F32), .table = bench_matrix(b, 8192, 4096, KN_BF16)};
    int32_t *ids = bench_host(b, TEXT * sizeof *ids);
    for (int32_t i = 0; ids && i < TEXT; i++) ids[i] = i * 2731 % 8192;
    args.ids = ids;
    bench_measure(
        b,
        &(bench_case){
            .call = check_call_embed, .args = &args, .args_bytes = sizeof args, .bytes = 1.5 * matrix_bytes(&args.out)},
        "%d x %d from bf16", TEXT, 4096);
}

void bench_add_table(bench *b)
{
    kn_matrix x = bench_matrix(b, tokens(b), 6 * WIDTH, KN_F32);
    kn_add_table_args args = {.out = x, .x = x, .table = bench_vector(b, 6 * WIDTH)};
    bench_measure(
        b,
        &(bench_case){
            .call = check_call_add_table, .args = &args, .args_bytes = sizeof args, .bytes = 2 * matrix_bytes(&x)},
        "%lld x %d, in place", (long long)tokens(b), 6 * WIDTH);
}

void bench_timestep_embed(bench *b)
{
    static const float timesteps[] = {999.0f, 417.25f};
    kn_timestep_embed_args args = {.out = bench_matrix(b, 2, 256, KN_F32), .timesteps = timesteps};
    bench_measure(b,
                  &(bench_case){.call = check_call_timestep_embed,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = matrix_bytes(&args.out)},
                  "%d x %d", 2, 256);
}

void bench_pack_rows(bench *b)
{
    static const int32_t first[] = {0, 0}, height[] = {15, 15}, width[] = {26, 26};
    static int32_t offsets[3];
    offsets[1] = (int32_t)tokens(b);
    offsets[2] = 2 * offsets[1];
    kn_matrix places = bench_matrix(b, offsets[2], 3, KN_BF16);
    kn_pack_rows_args args = {
        .positions = places.data, .sequences = 2, .offsets = offsets, .first = first, .height = height, .width = width};
    bench_measure(
        b,
        &(bench_case){
            .call = check_call_pack_rows, .args = &args, .args_bytes = sizeof args, .bytes = matrix_bytes(&places)},
        "2 x %d tokens", (int)offsets[1]);
}

void bench_patchify(bench *b)
{
    const int32_t t = b->gpu ? CLIP_T : 5, h = b->gpu ? CLIP_H : 30, w = b->gpu ? CLIP_W : 52;
    kn_patchify_args args = {.channels = 16, .t = t, .h = h, .w = w};
    args.latent = bench_vector(b, (int64_t)16 * t * h * w);
    args.out = bench_matrix(b, tokens(b), 64, KN_F32);
    bench_measure(b,
                  &(bench_case){.call = check_call_patchify,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 2 * matrix_bytes(&args.out)},
                  "16 x %d x %d x %d", t, h, w);
}

void bench_unpatchify(bench *b)
{
    const int32_t t = b->gpu ? CLIP_T : 5, h = b->gpu ? CLIP_H : 30, w = b->gpu ? CLIP_W : 52;
    kn_unpatchify_args args = {.channels = 16, .t = t, .h = h, .w = w};
    args.x = bench_matrix(b, tokens(b), 64, KN_F32);
    args.latent = bench_matrix(b, tokens(b), 64, KN_F32).data;
    bench_measure(b,
                  &(bench_case){.call = check_call_unpatchify,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 2 * matrix_bytes(&args.x)},
                  "16 x %d x %d x %d", t, h, w);
}

/* UniPC of second order with guidance: six arrays are read, three written. */
void bench_sampler_step(bench *b)
{
    const int64_t count = (int64_t)16 * 21 * 60 * 104;
    kn_sampler_step_args args = {.count = count,
                                 .velocities = 2,
                                 .velocity_weight = {-2.5f, 2.0f},
                                 .corrected = true,
                                 .corrector = {0.75f, 0.125f, -0.25f, 0.375f},
                                 .predictor = {0.5f, -0.125f, 0.625f}};
    args.x = bench_matrix(b, 1, count, KN_F32).data;
    args.x_prev = bench_matrix(b, 1, count, KN_F32).data;
    args.m = bench_matrix(b, 1, count, KN_F32).data;
    args.m_prev = bench_vector(b, count);
    args.m_prev2 = bench_vector(b, count);
    for (int v = 0; v < args.velocities; v++) args.velocity[v] = bench_vector(b, count);
    bench_measure(b,
                  &(bench_case){.call = check_call_sampler_step,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 9.0 * (double)count * 4},
                  "UniPC, guided, 16 x 21 x 60 x 104");
}

/* ---- VAE ---- */

typedef struct conv_shape {
    int32_t height, width, channels, n, kt; /* of the output */
    kn_conv_mode mode;
} conv_shape;

static kn_status prepare_conv(bench *b, const bench_tier *tier, void *opaque)
{
    kn_conv_args *args = opaque;
    const kn_ops *ops = kn_device_ops(tier->device);
    kn_weight *prepared = bench_host(b, sizeof *prepared);
    void *memory = bench_block(b, ops->conv_weight_bytes(args));
    if (!prepared || !memory) return b->status;
    kn_status st = ops->conv_weight_prepare(tier->stream, prepared, memory, args->w, args);
    args->w = prepared;
    return st;
}

static void bench_one_conv(bench *b, const conv_shape *s, kn_dtype dtype)
{
    static const char *const modes[] = {"same", "down", "up"};
    const int64_t k = (int64_t)s->kt * 9 * s->channels;
    const int32_t out_height = pixels(b, s->height), out_width = pixels(b, s->width);
    int32_t height = out_height, width = out_width;
    if (s->mode == KN_CONV_DOWN) {
        height *= 2;
        width *= 2;
    } else if (s->mode == KN_CONV_UP_NEAREST) {
        height /= 2;
        width /= 2;
    }
    kn_matrix w = bench_matrix(b, s->n, k, dtype);
    kn_weight weight = {.data = w.data, .n = s->n, .k = k, .dtype = dtype, .compute = dtype};
    kn_conv_args args = {.out = bench_frame(b, out_height, out_width, s->n, 0, KN_F32),
                         .kt = s->kt,
                         .kh = 3,
                         .kw = 3,
                         .mode = s->mode,
                         .w = &weight,
                         .bias = bench_vector(b, s->n)};
    for (int32_t t = 0; t < s->kt; t++) args.in[t] = bench_frame(b, height, width, s->channels, 1, dtype);
    /* Enlarging needs four products per output and channel pair, not nine: taps that meet the same pixel add up. */
    const double products = s->mode == KN_CONV_UP_NEAREST ? 4.0 * s->channels : (double)k;
    bench_measure(b,
                  &(bench_case){.call = check_call_conv,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .prepare = prepare_conv,
                                .operations = 2.0 * out_height * out_width * s->n * products,
                                .bytes = s->kt * frame_bytes(&args.in[0]) + frame_bytes(&args.out) + matrix_bytes(&w),
                                .compute = dtype},
                  "%s %d x %d, %d to %d, %dx3x3", modes[s->mode], out_height, out_width, s->channels, s->n, s->kt);
}

void bench_conv(bench *b)
{
    const conv_shape shapes[] = {
        {240, 416, 96, 96, 3, KN_CONV_SAME}, {120, 208, 192, 192, 3, KN_CONV_SAME},
        {30, 52, 384, 384, 3, KN_CONV_SAME}, {240, 416, 192, 96, 1, KN_CONV_UP_NEAREST},
        {120, 208, 96, 96, 1, KN_CONV_DOWN}, {240, 416, 96, 3, 3, KN_CONV_SAME},
    };
    for (int i = 0; i < CHECK_COUNT(shapes); i++) {
        bench_one_conv(b, &shapes[i], KN_F32);
        bench_one_conv(b, &shapes[i], KN_BF16);
    }
}

void bench_frame_pack(bench *b)
{
    const int32_t h = pixels(b, 240), w = pixels(b, 416);
    kn_frame_pack_args args = {
        .out = bench_frame(b, h, w, 3, 1, KN_F32), .planes = bench_vector(b, 3 * h * w), .plane_stride = h * w};
    bench_measure(b,
                  &(bench_case){.call = check_call_frame_pack,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 2 * frame_bytes(&args.out)},
                  "%d x %d x 3", h, w);
}

void bench_frame_unpack(bench *b)
{
    const int32_t h = pixels(b, 240), w = pixels(b, 416);
    kn_frame_unpack_args args = {.x = bench_frame(b, h, w, 3, 0, KN_F32),
                                 .planes = bench_matrix(b, 3, h * w, KN_F32).data,
                                 .plane_stride = h * w,
                                 .low = -1,
                                 .high = 1};
    bench_measure(b,
                  &(bench_case){.call = check_call_frame_unpack,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 2 * frame_bytes(&args.x)},
                  "%d x %d x 3, clamped", h, w);
}

/* The taps of three frames to bytes: a third of every pixel's nine channels is used, all of them are read. */
void bench_picture(bench *b)
{
    const int32_t h = pixels(b, 240), w = pixels(b, 416);
    kn_picture_args args = {.layout = KN_PICTURE_RGB24, .terms = 3, .first = {6, 3, 0}, .scale = 0.5f};
    for (int i = 0; i < args.terms; i++) args.x[i] = bench_frame(b, h, w, 9, 0, KN_F32);
    args.out = bench_matrix(b, h, w, KN_F32).data;
    bench_measure(b,
                  &(bench_case){.call = check_call_picture,
                                .args = &args,
                                .args_bytes = sizeof args,
                                .bytes = 3 * frame_bytes(&args.x[0]) + 3.0 * h * w},
                  "%d x %d, 3 of 9 channels, 3 terms to RGB24", h, w);
}
