/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators against numbers worked out by hand from kernels/ops.h. checkops holds
 * the fast tiers to the reference; this holds the reference, and with it the
 * meaning of every index order, to the contract. Every tier is asked. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/half.h"
#include "kernels/cpu.h"

typedef struct tier {
    kn_device *device;
    kn_stream *stream;
    const kn_ops *ops;
} tier;

static void open_tier(tier *t, kn_isa isa)
{
    kn_device_params params = {.name = "cpu", .threads = 1, .isa = kn_isa_name(isa)};
    assert_int_equal(kn_device_open(&t->device, &params), KN_OK);
    assert_int_equal(kn_stream_create(&t->stream, t->device), KN_OK);
    t->ops = kn_device_ops(t->device);
}

static void on_every_tier(void (*check)(const tier *t))
{
    for (kn_isa isa = KN_ISA_REF; isa <= kn_isa_detect(); isa++) {
        tier t;
        open_tier(&t, isa);
        check(&t);
        kn_stream_destroy(&t.stream);
        kn_device_close(&t.device);
    }
}

static kn_matrix matrix(void *data, int64_t rows, int64_t cols)
{
    return (kn_matrix){.data = data, .rows = rows, .cols = cols, .stride = cols};
}

static void expect(const float *got, const float *want, int count)
{
    for (int i = 0; i < count; i++) assert_float_equal(got[i], want[i], 1e-5f * (1 + fabsf(want[i])));
}

#define EXPECT(got, ...)                                                                                               \
    expect(got, (const float[]){__VA_ARGS__}, (int)(sizeof((const float[]){__VA_ARGS__}) / sizeof(float)))

/* ---- gemm ---- */

static void check_gemm(const tier *t)
{
    float a[] = {1, 2}, w[] = {3, 4, 5, 6}, bias[] = {1, -1}, out[2], residual[] = {100, 200};
    float gates[] = {0, 0, 2, 0.5f};
    const int32_t second[] = {1};
    const kn_weight weight = {.data = w, .n = 2, .k = 2};
    kn_gemm_args args = {.out = matrix(out, 1, 2), .a = matrix(a, 1, 2), .w = &weight, .bias = bias};
    assert_int_equal(t->ops->gemm(t->stream, &args), KN_OK);
    EXPECT(out, 12, 16);

    args.residual = matrix(residual, 1, 2);
    args.gate = (kn_row_table){.data = gates, .stride = 2, .row_index = second};
    assert_int_equal(t->ops->gemm(t->stream, &args), KN_OK);
    EXPECT(out, 124, 208);

    args.bias = (const float[]){-11, -16};
    args.activation = KN_ACT_GELU_TANH;
    args.residual = (kn_matrix){0};
    args.gate = (kn_row_table){0};
    assert_int_equal(t->ops->gemm(t->stream, &args), KN_OK);
    EXPECT(out, 0, 0.8411920f);
}

/* 1 + 2^-9 is a tie in bf16 and goes to the even 1; 3 stays. */
static void check_gemm_rounds_to_compute(const tier *t)
{
    float a[] = {1.001953125f}, w[] = {3}, out[1];
    _Alignas(64) char memory[4096];
    const kn_weight source = {.data = w, .n = 1, .k = 1};
    for (kn_dtype compute = KN_F32; compute <= KN_BF16; compute++) {
        kn_weight prepared, plain = source;
        plain.compute = compute;
        assert_true(t->ops->weight_bytes(1, 1, compute) <= sizeof memory);
        assert_int_equal(t->ops->weight_prepare(t->stream, &prepared, memory, &source, compute), KN_OK);
        const kn_weight *both[] = {&plain, &prepared};
        for (int i = 0; i < 2; i++) {
            kn_gemm_args args = {.out = matrix(out, 1, 1), .a = matrix(a, 1, 1), .w = both[i]};
            assert_int_equal(t->ops->gemm(t->stream, &args), KN_OK);
            assert_true(out[0] == (compute == KN_BF16 ? 3.0f : 3.005859375f));
        }
    }
}

/* ---- attention ---- */

/* Two sequences; the second has one key, so its query gets that value. */
static void check_attention(const tier *t)
{
    float q[] = {1, 0, 5, 5}, k[] = {0.69314718f, 0, 0, 0, 9, 9}, v[] = {3, 0, 0, 3, 7, 8}, out[4];
    const int32_t q_offsets[] = {0, 1, 2}, k_offsets[] = {0, 2, 3};
    _Alignas(64) static char workspace[1 << 20];
    kn_attention_args args = {.out = matrix(out, 2, 2),
                              .q = matrix(q, 2, 2),
                              .k = matrix(k, 3, 2),
                              .v = matrix(v, 3, 2),
                              .heads = 1,
                              .head_dim = 2,
                              .scale = 1,
                              .sequences = 2,
                              .q_offsets = q_offsets,
                              .k_offsets = k_offsets,
                              .workspace = workspace};
    assert_true(t->ops->attention_workspace(&args) <= sizeof workspace);
    assert_int_equal(t->ops->attention(t->stream, &args), KN_OK);
    EXPECT(out, 2, 1, 7, 8); /* probabilities 2 : 1 */

    args.tail_log_weight = (const float[]){1.38629436f, 0};
    assert_int_equal(t->ops->attention(t->stream, &args), KN_OK);
    EXPECT(out, 1, 2, 7, 8); /* the last key counts four times: 2 : 4 */

    args.tail_log_weight = NULL;
    args.relative_bias = (const float[]){50, 0, 1.38629436f}; /* key - query = -1, 0, 1 */
    args.relative_span = 2;
    assert_int_equal(t->ops->attention(t->stream, &args), KN_OK);
    EXPECT(out, 1, 2, 7, 8);
}

/* ---- norms ---- */

static void check_norms(const tier *t)
{
    float x[] = {1, 3}, out[2], scale[] = {1, 1}, shift[] = {0.5f, 0.5f}, weight[] = {3, 5}, bias[] = {1, 2};
    kn_layernorm_args layer = {.out = matrix(out, 1, 2), .x = matrix(x, 1, 2), .eps = 1e-12f};
    assert_int_equal(t->ops->layernorm(t->stream, &layer), KN_OK);
    EXPECT(out, -1, 1);
    layer.weight = weight;
    layer.bias = bias;
    assert_int_equal(t->ops->layernorm(t->stream, &layer), KN_OK);
    EXPECT(out, -2, 7);
    layer.weight = NULL;
    layer.bias = NULL;
    layer.scale = (kn_row_table){.data = scale, .stride = 2};
    layer.shift = (kn_row_table){.data = shift, .stride = 2};
    assert_int_equal(t->ops->layernorm(t->stream, &layer), KN_OK);
    EXPECT(out, -1.5f, 2.5f);

    /* The root mean square of (3, 4, 3, 4) is sqrt(12.5); the weight takes it back. Head 2 long, one pair, turned
     * by a quarter for its row index. */
    const float root = sqrtf(12.5f);
    float y[] = {3, 4, 3, 4}, back[] = {root, root, 2 * root, 2 * root}, turned[4];
    const float none[2] = {0, 0}, rows[] = {1, 0, 0, 1};
    const kn_position positions[] = {{{0, 1, 0}}};
    kn_rmsnorm_args rms = {.out = matrix(turned, 1, 4), .x = matrix(y, 1, 4), .weight = back, .eps = 1e-12f};
    assert_int_equal(t->ops->rmsnorm(t->stream, &rms), KN_OK);
    EXPECT(turned, 3, 4, 6, 8);
    rms.rope = (kn_rope){.table = {none, rows, none}, .pairs = {0, 1, 0}, .head_dim = 2, .positions = positions};
    assert_int_equal(t->ops->rmsnorm(t->stream, &rms), KN_OK);
    EXPECT(turned, -4, 3, -8, 6);
}

/* ---- moves ---- */

static void check_patches(const tier *t)
{
    float latent[16], rows[16], back[16]; /* 2 channels, 1 frame, 2 x 4 */
    for (int i = 0; i < 16; i++) latent[i] = (float)i;
    kn_patchify_args in = {.out = matrix(rows, 2, 8), .latent = latent, .channels = 2, .t = 1, .h = 2, .w = 4};
    assert_int_equal(t->ops->patchify(t->stream, &in), KN_OK);
    EXPECT(rows, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    for (int i = 0; i < 16; i++) rows[i] = (float)i;
    kn_unpatchify_args out = {.latent = back, .x = matrix(rows, 2, 8), .channels = 2, .t = 1, .h = 2, .w = 4};
    assert_int_equal(t->ops->unpatchify(t->stream, &out), KN_OK);
    EXPECT(back, 0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15);
}

static void check_embeddings(const tier *t)
{
    uint16_t table[] = {0x3c00, 0x4000, 0xc200, 0x0001}; /* f16: 1, 2; -3, 2^-24 */
    const int32_t ids[] = {1, 0};
    float out[4], timesteps[4];
    kn_matrix words = matrix(table, 2, 2);
    words.dtype = KN_F16;
    kn_embed_args embed = {.out = matrix(out, 2, 2), .table = words, .ids = ids};
    assert_int_equal(t->ops->embed(t->stream, &embed), KN_OK);
    EXPECT(out, -3, 0x1p-24f, 1, 2);
    kn_timestep_embed_args time = {.out = matrix(timesteps, 1, 4), .timesteps = (const float[]){1}};
    assert_int_equal(t->ops->timestep_embed(t->stream, &time), KN_OK);
    EXPECT(timesteps, 0.5403023f, 0.99995f, 0.8414710f, 0.0099998f);
}

static void check_pointwise(const tier *t)
{
    float x[] = {1, -1}, b[] = {2, 3}, out[2];
    kn_silu_args silu = {.out = matrix(out, 1, 2), .x = matrix(x, 1, 2)};
    assert_int_equal(t->ops->silu(t->stream, &silu), KN_OK);
    EXPECT(out, 0.7310586f, -0.2689414f);
    kn_gated_gelu_args gated = {.out = matrix(out, 1, 2), .a = matrix(x, 1, 2), .b = matrix(b, 1, 2)};
    assert_int_equal(t->ops->gated_gelu(t->stream, &gated), KN_OK);
    EXPECT(out, 1.6823840f, -0.4764240f);
    kn_add_table_args add = {.out = matrix(out, 1, 2), .x = matrix(x, 1, 2), .table = b};
    assert_int_equal(t->ops->add_table(t->stream, &add), KN_OK);
    EXPECT(out, 3, 2);

    /* (1 + 2^-12)^2 is 1 + 2^-11 after rounding; a fused multiply-add would keep 2^-24. */
    float near_one[] = {1.000244140625f};
    float zero[] = {-1.00048828125f};
    kn_sampler_step_args step = {
        .x = zero, .count = 1, .velocities = 1, .velocity = {near_one}, .velocity_weight = {1.000244140625f}};
    assert_int_equal(t->ops->sampler_step(t->stream, &step), KN_OK);
    assert_true(zero[0] == 0.0f);

    /* m = 10 - 2 * 3 + 0.5 * 4 = 6; x_prev = 1 * 20 + 2 * 8 + 3 * 7 + 4 * m = 81; x = 81 / 2 - 7 + 2 m = 45.5 */
    float sample[] = {10}, x_prev[] = {20}, m[1], m_prev[] = {7}, m_prev2[] = {8}, positive[] = {3}, negative[] = {4};
    kn_sampler_step_args unipc = {.x = sample,
                                  .count = 1,
                                  .velocities = 2,
                                  .velocity = {positive, negative},
                                  .velocity_weight = {-2, 0.5f},
                                  .m = m,
                                  .x_prev = x_prev,
                                  .m_prev = m_prev,
                                  .m_prev2 = m_prev2,
                                  .corrected = true,
                                  .corrector = {1, 2, 3, 4},
                                  .predictor = {0.5f, -1, 2}};
    assert_int_equal(t->ops->sampler_step(t->stream, &unipc), KN_OK);
    assert_true(m[0] == 6 && x_prev[0] == 81 && sample[0] == 45.5f);
    unipc.corrected = false; /* m = 45.5 - 6 + 2 = 41.5; x_prev is the sample before; x = 45.5 / 2 - 7 + 83 */
    assert_int_equal(t->ops->sampler_step(t->stream, &unipc), KN_OK);
    assert_true(m[0] == 41.5f && x_prev[0] == 45.5f && sample[0] == 98.75f);
}

/* ---- frames ---- */

enum { SIDE_MAX = 6 };

/* A one-channel input of up to 4 x 4 pixels in a frame with a border of zeros. */
static kn_frame bordered(float *memory, const float *values, int32_t height, int32_t width)
{
    memset(memory, 0, SIDE_MAX * SIDE_MAX * sizeof *memory);
    kn_frame f = {.data = memory + SIDE_MAX + 1, .height = height, .width = width, .channels = 1, .border = 1};
    f.row_stride = SIDE_MAX;
    for (int y = 0; y < height; y++) memcpy((float *)f.data + y * SIDE_MAX, values + y * width, (size_t)width * 4);
    return f;
}

static void run_conv(const tier *t, kn_conv_args *args, const float *weights)
{
    _Alignas(64) static char memory[1 << 16];
    const int64_t k = (int64_t)args->kt * args->kh * args->kw * args->in[args->kt - 1].channels;
    const kn_weight source = {.data = weights, .n = args->out.channels, .k = k};
    kn_weight prepared;
    assert_true(t->ops->conv_weight_bytes(args) <= sizeof memory);
    assert_int_equal(t->ops->conv_weight_prepare(t->stream, &prepared, memory, &source, args), KN_OK);
    args->w = &prepared;
    assert_int_equal(t->ops->conv(t->stream, args), KN_OK);
}

static void check_conv_time(const tier *t)
{
    float frames[3] = {1, 2, 3}, out[1], bias[] = {1000};
    kn_frame pixel = {.height = 1, .width = 1, .channels = 1, .row_stride = 1};
    kn_conv_args args = {.out = pixel, .kt = 3, .kh = 1, .kw = 1, .bias = bias};
    args.out.data = out;
    for (int i = 0; i < 3; i++) {
        args.in[i] = pixel;
        args.in[i].data = &frames[i];
    }
    const float weights[] = {1, 10, 100};
    run_conv(t, &args, weights);
    EXPECT(out, 1321);
    args.in[0].data = NULL;
    run_conv(t, &args, weights);
    EXPECT(out, 1320);
}

static void check_conv_space(const tier *t)
{
    float memory[SIDE_MAX * SIDE_MAX], values[16], out[16];
    for (int i = 0; i < 16; i++) values[i] = (float)i;
    kn_conv_args args = {.kt = 1, .kh = 3, .kw = 3, .mode = KN_CONV_DOWN};
    args.out = (kn_frame){.data = out, .height = 2, .width = 2, .channels = 1, .row_stride = 2};
    args.in[0] = bordered(memory, values, 4, 4);
    run_conv(t, &args, (const float[]){1, 0, 0, 0, 0, 0, 0, 0, 0});
    EXPECT(out, 0, 2, 8, 10);
    run_conv(t, &args, (const float[]){0, 0, 0, 0, 0, 0, 0, 0, 1});
    EXPECT(out, 10, 0, 0, 0);

    args.mode = KN_CONV_UP_NEAREST;
    args.out = (kn_frame){.data = out, .height = 2, .width = 4, .channels = 1, .row_stride = 4};
    args.in[0] = bordered(memory, (const float[]){1, 2}, 1, 2);
    run_conv(t, &args, (const float[]){1, 1, 1, 1, 1, 1, 1, 1, 1});
    EXPECT(out, 4, 8, 10, 8, 4, 8, 10, 8);
    run_conv(t, &args, (const float[]){0, 0, 0, 1, 0, 0, 0, 0, 0}); /* the left neighbour */
    EXPECT(out, 0, 1, 1, 2, 0, 1, 1, 2);
}

/* Two channels: the checkpoint's order is channel, row, column. */
static void check_conv_channels(const tier *t)
{
    float memory[2 * 4 * 4] = {0}, out[4], residual[] = {100, 200, 300, 400};
    kn_frame in = {.data = memory + 2 * 5, .height = 2, .width = 2, .channels = 2, .row_stride = 4, .border = 1};
    for (int i = 0; i < 4; i++) memory[2 * (5 + i / 2 * 4 + i % 2) + 1] = (float)(i + 1); /* channel 1: 1 2; 3 4 */
    float weights[18] = {0};
    weights[9 + 0] = 1; /* channel 1, row 0, column 0: the pixel above and to the left */
    kn_conv_args args = {.in = {in}, .kt = 1, .kh = 3, .kw = 3};
    args.out = (kn_frame){.data = out, .height = 2, .width = 2, .channels = 1, .row_stride = 2};
    args.residual = args.out;
    args.residual.data = residual;
    run_conv(t, &args, weights);
    EXPECT(out, 100, 200, 300, 401);
}

static void check_frames(const tier *t)
{
    float x[] = {3, 4}, gamma[] = {1, 2}, out[2], planes[4];
    kn_frame pixel = {.data = x, .height = 1, .width = 1, .channels = 2, .row_stride = 1}, to = pixel;
    to.data = out;
    kn_channel_norm_args norm = {.out = to, .x = pixel, .gamma = gamma};
    assert_int_equal(t->ops->channel_norm(t->stream, &norm), KN_OK);
    EXPECT(out, 0.8485281f, 2.2627417f);
    kn_frame_pack_args pack = {.out = to,
                               .planes = (const float[]){5, -1, 7},
                               .plane_stride = 2,
                               .scale = (const float[]){2, 3},
                               .shift = (const float[]){0.5f, -1}};
    assert_int_equal(t->ops->frame_pack(t->stream, &pack), KN_OK);
    EXPECT(out, 10.5f, 20);
    kn_frame_unpack_args unpack = {.planes = planes, .plane_stride = 3, .x = pixel, .low = 0, .high = 3.5f};
    assert_int_equal(t->ops->frame_unpack(t->stream, &unpack), KN_OK);
    assert_true(planes[0] == 3.0f && planes[3] == 3.5f);

    /* Two pixels of four channels: the sums 1.5 2 -3 and 0.25 0 9, halved, and a shift. */
    float newest[] = {9, 1, 2, 3, 9, 0.5f, 0, 8}, older[] = {0.5f, 0, -6, 9, -0.25f, 0, 1, 9}, colours[6];
    kn_picture_args picture = {.out = colours, .terms = 2, .first = {1, 0}, .scale = 0.5f, .shift = {0, -0.25f, 0}};
    picture.x[0] = (kn_frame){.data = newest, .height = 1, .width = 2, .channels = 4, .row_stride = 2};
    picture.x[1] = picture.x[0];
    picture.x[1].data = older;
    assert_int_equal(t->ops->picture(t->stream, &picture), KN_OK);
    EXPECT(colours, 0.75f, 0.125f, 0.75f, 0, 0, 1);
    unsigned char rgb[6];
    picture.out = rgb;
    picture.layout = KN_PICTURE_RGB24;
    assert_int_equal(t->ops->picture(t->stream, &picture), KN_OK);
    assert_memory_equal(rgb, ((const unsigned char[]){191, 191, 0, 32, 0, 255}), 6);
}

#define TEST(name)                                                                                                     \
    static void test_##name(void **state)                                                                              \
    {                                                                                                                  \
        (void)state;                                                                                                   \
        on_every_tier(check_##name);                                                                                   \
    }
TEST(gemm)
TEST(gemm_rounds_to_compute)
TEST(attention)
TEST(norms)
TEST(patches)
TEST(embeddings)
TEST(pointwise)
TEST(conv_time)
TEST(conv_space)
TEST(conv_channels)
TEST(frames)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),       cmocka_unit_test(test_gemm_rounds_to_compute),
        cmocka_unit_test(test_attention),  cmocka_unit_test(test_norms),
        cmocka_unit_test(test_patches),    cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_pointwise),  cmocka_unit_test(test_conv_time),
        cmocka_unit_test(test_conv_space), cmocka_unit_test(test_conv_channels),
        cmocka_unit_test(test_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
