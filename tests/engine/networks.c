/* SPDX-License-Identifier: Apache-2.0
 *
 * Each network alone against diffusers and transformers (tests/golden), in float32
 * and where a fixture exists in bfloat16. Errors are the largest difference over the
 * standard deviation of the expected tensor.
 *
 * float32: 1e-4 is the promise. Sums here and in torch run in different orders; with
 * k terms of unit size that is about sqrt(k) * 6e-8, amplified over the layers; what
 * these networks reach is about 1e-5, and the bound keeps a factor for other tiers.
 * bfloat16: each rounding is worth 2^-9 = 2e-3 of its value, and a forward has some
 * ten of them per block in a chain; 4e-2 of the deviation for the largest element.
 * And no further from float32 than 1.25 times what diffusers' own bfloat16 is, root
 * mean square: ten independent roundings each, added up in another order. */
#include "tests/engine/golden.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "engine/dit_wan.h"
#include "engine/repository.h"
#include "engine/sampling.h"
#include "engine/text_umt5.h"
#include "engine/vae_internal.h"

#if defined(KN_SIMT_DEVICE) /* the CUDA kernels, executed on the CPU (tests/simt): the smallest fixture */
#include "kernels/device_cuda.h"
#endif

#define FLOAT32_BOUND 1e-4
#define BFLOAT16_RATIO 1.25

typedef struct fixture {
    const char *name;
    kn_weights *expected;
    kn_repository *repository;
    kn_weights *weights[KN_COMPONENT_COUNT];
    kn_device *device;
    kn_stream *stream;
} fixture;

static const char *const fixtures[] = {"wan21-small", "wan21-head128", "wan21-wide"};
#if defined(KN_SIMT_DEVICE)
enum { FIXTURES = 1 };
#else
enum { FIXTURES = sizeof fixtures / sizeof *fixtures };
#endif

static void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

static kn_status open_device(kn_device **out)
{
#if defined(KN_SIMT_DEVICE)
    return kn_device_simt_open(out, &(kn_device_params){.name = "simt", .isa = "cuda"});
#else
    return kn_device_open(out, &(kn_device_params){.name = "cpu"});
#endif
}

static fixture open_fixture(const char *name)
{
    fixture f = {.name = name, .expected = golden_expected(name)};
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s/model", KN_SOURCE_DIR, name);
    ok(kn_repository_open(&f.repository, path));
    for (int i = 0; i < KN_COMPONENT_COUNT; i++)
        ok(kn_weights_open(&f.weights[i], f.repository->component_directory[i], kn_component_stem((kn_component)i)));
    ok(open_device(&f.device));
    ok(kn_stream_create(&f.stream, f.device));
    return f;
}

static void close_fixture(fixture *f)
{
    kn_stream_destroy(&f->stream);
    kn_device_close(&f->device);
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) kn_weights_close(&f->weights[i]);
    kn_repository_close(&f->repository);
    kn_weights_close(&f->expected);
}

typedef struct difference {
    double largest; /* over the standard deviation */
    double rms;
} difference;

static difference compare(const float *got, const float *expected, int64_t count)
{
    double sum = 0.0, squares = 0.0, error = 0.0, largest = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double d = fabs((double)got[i] - (double)expected[i]);
        if (!(d <= largest)) largest = d; /* NaN sticks */
        error += d * d;
        sum += expected[i];
        squares += (double)expected[i] * expected[i];
    }
    double mean = sum / (double)count, deviation = sqrt(squares / (double)count - mean * mean);
    return (difference){largest / deviation, sqrt(error / (double)count) / deviation};
}

static void expect_close(const fixture *f, const char *what, const float *got, const float *expected, int64_t count,
                         double bound)
{
    difference d = compare(got, expected, count);
    printf("  %s %s: %.1e of the deviation (rms %.1e)\n", f->name, what, d.largest, d.rms);
    if (!(d.largest <= bound)) fail_msg("%s %s: %.3e of the deviation, bound %.0e", f->name, what, d.largest, bound);
}

static kn_tensor find(const fixture *f, const char *name)
{
    kn_tensor tensor;
    ok(kn_weights_find(f->expected, name, &tensor));
    return tensor;
}

static void *device_copy(const fixture *f, const void *host, size_t bytes)
{
    void *memory;
    ok(kn_device_alloc(f->device, &memory, bytes));
    if (host) ok(kn_stream_upload(f->stream, memory, host, bytes));
    return memory;
}

static kn_arena device_arena(const fixture *f, size_t bytes)
{
    return kn_arena_view(device_copy(f, NULL, bytes), bytes);
}

/* ---- text ---- */

/* Every request's prompt, all in one pack. */
static void text_encoder_matches(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f = open_fixture(fixtures[i]);
        char path[128];
        snprintf(path, sizeof path, "%s/case.json", f.name);
        json_t *root = golden_json(path), *requests = golden_get(root, "requests");
        int32_t ids[4096], offsets[65] = {0};
        const int32_t count = (int32_t)json_array_size(requests);
        for (int32_t r = 0; r < count; r++) {
            json_t *list = golden_get(json_array_get(requests, (size_t)r), "prompt_ids");
            offsets[r + 1] = offsets[r] + (int32_t)json_array_size(list);
            for (int32_t j = offsets[r]; j < offsets[r + 1]; j++)
                ids[j] = (int32_t)json_integer_value(json_array_get(list, (size_t)(j - offsets[r])));
        }
        kn_umt5 *encoder;
        ok(kn_umt5_create(&encoder, &f.repository->text, f.weights[KN_TEXT_ENCODER], f.stream, KN_F32));
        kn_arena arena = device_arena(&f, kn_umt5_workspace(encoder, offsets, count));
        const int64_t d = f.repository->text.d_model;
        float *out = device_copy(&f, NULL, (size_t)(offsets[count] * d) * sizeof *out);
        const kn_matrix rows = {.data = out, .rows = offsets[count], .cols = d, .stride = d, .dtype = KN_F32};
        ok(kn_umt5_encode(encoder, f.stream, &arena, ids, offsets, count, rows));
        ok(kn_stream_synchronize(f.stream));
        for (int32_t r = 0; r < count; r++) {
            int64_t elements;
            const float *expected = golden_request(f.expected, (size_t)r, "text_positive", &elements, NULL);
            assert_int_equal(elements, (offsets[r + 1] - offsets[r]) * d);
            expect_close(&f, "text", out + offsets[r] * d, expected, elements, FLOAT32_BOUND);
        }
        kn_device_free(f.device, arena.base);
        kn_device_free(f.device, out);
        kn_umt5_destroy(&encoder);
        json_decref(root);
        close_fixture(&f);
    }
}

/* bfloat16 attention takes elements in pairs; heads of an odd size are computed in float32 instead. */
static void odd_heads_use_float32(void **state)
{
    (void)state;
    enum { TOKENS = 5, WIDTH = 14 };
    static const kn_umt5_config config = {.vocab_size = 64,
                                          .d_model = WIDTH,
                                          .d_kv = 7,
                                          .d_ff = 21,
                                          .num_heads = 3,
                                          .num_layers = 2,
                                          .relative_attention_num_buckets = 32,
                                          .relative_attention_max_distance = 128,
                                          .layer_norm_epsilon = 1e-6};
    static const int32_t ids[TOKENS] = {3, 1, 63, 0, 7}, offsets[] = {0, TOKENS};
    fixture f = {.name = "synthetic"};
    kn_weights *weights;
    float *out[2];
    ok(kn_weights_synthetic(&weights, 0.3f, KN_F32, 5));
    ok(open_device(&f.device));
    ok(kn_stream_create(&f.stream, f.device));
    for (kn_dtype compute = KN_F32; compute <= KN_BF16; compute++) {
        kn_umt5 *encoder;
        ok(kn_umt5_create(&encoder, &config, weights, f.stream, compute));
        kn_arena arena = device_arena(&f, kn_umt5_workspace(encoder, offsets, 1));
        out[compute] = device_copy(&f, NULL, TOKENS * WIDTH * sizeof(float));
        const kn_matrix rows = {.data = out[compute], .rows = TOKENS, .cols = WIDTH, .stride = WIDTH, .dtype = KN_F32};
        ok(kn_umt5_encode(encoder, f.stream, &arena, ids, offsets, 1, rows));
        kn_device_free(f.device, arena.base);
        kn_umt5_destroy(&encoder);
    }
    assert_true(out[0][0] != 0.0f && isfinite(out[0][0]));
    assert_memory_equal(out[0], out[1], TOKENS * WIDTH * sizeof(float));
    for (int i = 0; i < 2; i++) kn_device_free(f.device, out[i]);
    kn_stream_destroy(&f.stream);
    kn_device_close(&f.device);
    kn_weights_close(&weights);
}

static void buckets_match_t5(void **state)
{
    (void)state;
    /* First distance of each bucket, from transformers' T5Attention with 32 buckets up to 128. */
    static const int first[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
    for (int b = 0; b < 16; b++) {
        int last = b + 1 < 16 ? first[b + 1] - 1 : 1000;
        assert_int_equal(kn_umt5_bucket(-first[b], 32, 128), b);
        assert_int_equal(kn_umt5_bucket(-last, 32, 128), b);
        if (first[b] > 0) assert_int_equal(kn_umt5_bucket(first[b], 32, 128), 16 + b);
        if (last > 0) assert_int_equal(kn_umt5_bucket(last, 32, 128), 16 + b);
    }
}

/* ---- transformer ---- */

/* The fixture's context is all 512 rows; those after the last that is not zero are padding. */
static int32_t text_tokens(const kn_tensor *context)
{
    const float *data = context->data;
    int32_t tokens = (int32_t)context->shape[0];
    for (; tokens > 0; tokens--)
        for (int64_t i = 0; i < context->shape[1]; i++)
            if (data[(tokens - 1) * context->shape[1] + i] != 0.0f) return tokens;
    return 0;
}

typedef struct forward {
    kn_dit *dit;
    kn_dit_context context;
    float *latent, *velocity;
    kn_dit_sequence sequence;
} forward;

static forward open_forward(const fixture *f, kn_dtype compute)
{
    forward w;
    const kn_tensor input = find(f, "dit.input"), context = find(f, "dit.context"), timestep = find(f, "dit.timestep");
    ok(kn_dit_create(&w.dit, &f->repository->dit, f->weights[KN_TRANSFORMER], f->stream, compute));
    ok(kn_dit_prepare(w.dit, f->stream));
    const int32_t tokens = text_tokens(&context);
    const int64_t d = context.shape[1];
    float *text = device_copy(f, context.data, (size_t)(tokens * d) * sizeof *text);
    kn_arena arena = device_arena(f, kn_dit_context_workspace(w.dit, tokens));
    void *memory = device_copy(f, NULL, kn_dit_context_bytes(w.dit, tokens));
    const kn_matrix rows = {.data = text, .rows = tokens, .cols = d, .stride = d, .dtype = KN_F32};
    ok(kn_dit_context_build(w.dit, f->stream, &arena, rows, memory, &w.context));
    kn_device_free(f->device, arena.base);
    kn_device_free(f->device, text);
    const size_t bytes = (size_t)kn_tensor_count(&input) * sizeof(float);
    w.latent = device_copy(f, input.data, bytes);
    w.velocity = device_copy(f, NULL, bytes);
    w.sequence = (kn_dit_sequence){.t = (int32_t)input.shape[1],
                                   .h = (int32_t)input.shape[2],
                                   .w = (int32_t)input.shape[3],
                                   .timestep = *(const float *)timestep.data,
                                   .latent = w.latent,
                                   .velocity = w.velocity};
    return w;
}

static void close_forward(const fixture *f, forward *w)
{
    kn_device_free(f->device, w->context.memory);
    kn_device_free(f->device, w->latent);
    kn_device_free(f->device, w->velocity);
    kn_dit_destroy(&w->dit);
}

/* The distances of two bfloat16 results from the float32 one. */
static void expect_as_close(const fixture *f, const float *got)
{
    const kn_tensor exact = find(f, "dit.output.float32"), theirs = find(f, "dit.output.bfloat16");
    const difference ours = compare(got, exact.data, kn_tensor_count(&exact));
    const difference peer = compare(theirs.data, exact.data, kn_tensor_count(&exact));
    printf("  %s bfloat16 from float32: rms %.2e, largest %.2e; diffusers' %.2e, %.2e: %.2f times\n", f->name, ours.rms,
           ours.largest, peer.rms, peer.largest, ours.rms / peer.rms);
    if (!(ours.rms <= BFLOAT16_RATIO * peer.rms))
        fail_msg("%s: bfloat16 is %.3e from float32, diffusers' is %.3e", f->name, ours.rms, peer.rms);
}

static void transformer_matches(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f = open_fixture(fixtures[i]);
        for (kn_dtype compute = KN_F32; compute <= KN_BF16; compute++) {
            forward w = open_forward(&f, compute);
            w.sequence.context = &w.context;
            kn_arena arena = device_arena(&f, kn_dit_workspace(w.dit, &w.sequence, 1, NULL));
            ok(kn_dit_forward(w.dit, f.stream, &arena, &w.sequence, 1, NULL));
            ok(kn_stream_synchronize(f.stream));
            const kn_tensor expected = find(&f, compute == KN_F32 ? "dit.output.float32" : "dit.output.bfloat16");
            expect_close(&f, compute == KN_F32 ? "transformer float32" : "transformer bfloat16", w.velocity,
                         expected.data, kn_tensor_count(&expected), compute == KN_F32 ? FLOAT32_BOUND : 4e-2);
            if (compute == KN_BF16) expect_as_close(&f, w.velocity);
            kn_device_free(f.device, arena.base);
            close_forward(&f, &w);
        }
        close_fixture(&f);
    }
}

/* A sequence's velocity has the same bits alone, and between others of other sizes and timesteps. */
static void pack_does_not_matter(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f = open_fixture(fixtures[i]);
        for (kn_dtype compute = KN_F32; compute <= KN_BF16; compute++) {
            forward w = open_forward(&f, compute);
            w.sequence.context = &w.context;
            const int64_t count = kn_tensor_count(&(kn_tensor){
                .rank = 4, .shape = {f.repository->dit.out_channels, w.sequence.t, w.sequence.h, w.sequence.w}});
            float *alone = device_copy(&f, NULL, (size_t)count * 4), *other = device_copy(&f, NULL, (size_t)count * 4);
            kn_dit_sequence pack[3] = {w.sequence, w.sequence, w.sequence};
            pack[1].velocity = alone;
            kn_arena arena = device_arena(&f, kn_dit_workspace(w.dit, pack, 3, NULL));
            ok(kn_dit_forward(w.dit, f.stream, &arena, &pack[1], 1, NULL));
            pack[0].t = 1;
            pack[0].w = 2;
            pack[0].timestep = 3.0f;
            pack[0].velocity = other;
            pack[1].velocity = w.velocity;
            pack[2].h -= 2;
            pack[2].timestep = 999.0f;
            pack[2].velocity = other;
            ok(kn_dit_forward(w.dit, f.stream, &arena, pack, 3, NULL));
            ok(kn_stream_synchronize(f.stream));
            assert_memory_equal(alone, w.velocity, (size_t)count * 4);
            kn_device_free(f.device, alone);
            kn_device_free(f.device, other);
            kn_device_free(f.device, arena.base);
            close_forward(&f, &w);
        }
        close_fixture(&f);
    }
}

#if defined(KN_SIMT_DEVICE)
/* A forward neither allocates nor waits nor copies from the host: counted by the device. */
static void a_forward_only_launches(void **state)
{
    (void)state;
    fixture f = open_fixture(fixtures[0]);
    forward w = open_forward(&f, KN_BF16);
    w.sequence.context = &w.context;
    kn_arena arena = device_arena(&f, kn_dit_workspace(w.dit, &w.sequence, 1, NULL));
    ok(kn_stream_synchronize(f.stream));
    const kn_device_cuda_counts before = kn_device_cuda_read_counts(f.device);
    ok(kn_dit_forward(w.dit, f.stream, &arena, &w.sequence, 1, NULL));
    const kn_device_cuda_counts after = kn_device_cuda_read_counts(f.device);
    assert_int_equal(after.allocations, before.allocations);
    assert_int_equal(after.uploads, before.uploads);
    assert_int_equal(after.waits, before.waits);
    assert_true(before.allocations > 0 && before.uploads > 0 && before.waits > 0);
    kn_device_free(f.device, arena.base);
    close_forward(&f, &w);
    close_fixture(&f);
}
#endif

/* ---- autoencoder ---- */

typedef struct collected {
    float *data;           /* (C, frames, pixels) */
    int64_t frames, plane; /* pixels of a plane */
    int32_t channels;
    int64_t seen;
    kn_stream *stream; /* the frames are made on */
} collected;

static kn_status collect(void *context, int64_t index, const float *planes)
{
    collected *c = context;
    assert_int_equal(index, c->seen++);
    assert_true(index < c->frames);
    ok(kn_stream_synchronize(c->stream));
    for (int32_t ch = 0; ch < c->channels; ch++)
        memcpy(c->data + (ch * c->frames + index) * c->plane, planes + ch * c->plane, (size_t)c->plane * sizeof(float));
    return KN_OK;
}

static kn_status collect_picture(void *context, int64_t index, const void *picture)
{
    return collect(context, index, picture);
}

#if defined(KN_SIMT_DEVICE)
/* One frame wider than high, and as many as make every history full; the others are the same code over more pixels. */
static bool chosen(const char *shape)
{
    return strcmp(shape, "1x4x6") == 0 || strcmp(shape, "5x2x2") == 0;
}
#else
static bool chosen(const char *shape)
{
    (void)shape;
    return true;
}
#endif

/* Every "decode.TxHxW.latent" (or "encode...frames") of a fixture. */
static void vae_cases(const fixture *f, kn_vae *vae, bool decode)
{
    int cases = 0;
    for (size_t i = 0; i < kn_weights_count(f->expected); i++) {
        const kn_weights_entry entry = kn_weights_entry_at(f->expected, i);
        char shape[64], name[128];
        const char *format = decode ? "decode.%63[0-9x].latent" : "encode.%63[0-9x].frames";
        const char *suffix = strrchr(entry.name, '.');
        if (sscanf(entry.name, format, shape) != 1 || strcmp(suffix, decode ? ".latent" : ".frames") != 0) continue;
        if (!chosen(shape)) continue;
        cases++;
        const kn_tensor input = find(f, entry.name);
        snprintf(name, sizeof name, decode ? "decode.%s.frames" : "encode.%s.mean", shape);
        const kn_tensor expected = find(f, name);
        collected out = {.frames = expected.shape[1],
                         .plane = expected.shape[2] * expected.shape[3],
                         .channels = (int32_t)expected.shape[0],
                         .stream = f->stream};
        out.data = device_copy(f, NULL, (size_t)kn_tensor_count(&expected) * sizeof(float));
        const int64_t in_frames = input.shape[1], in_plane = input.shape[2] * input.shape[3];
        kn_vae_decoder *decoder = NULL;
        kn_vae_encoder *encoder = NULL;
        float *given = device_copy(f, input.data, (size_t)kn_tensor_count(&input) * sizeof *given);
        if (decode)
            ok(kn_vae_decoder_create(&decoder, vae, f->stream, (int32_t)input.shape[2], (int32_t)input.shape[3],
                                     KN_PICTURE_PLANES, NULL));
        else
            ok(kn_vae_encoder_create(&encoder, vae, f->stream, (int32_t)input.shape[2], (int32_t)input.shape[3], NULL));
        for (int64_t t = 0; t < in_frames; t++) {
            const float *planes = given + t * in_plane;
            if (decode)
                ok(kn_vae_decode(decoder, planes, in_frames * in_plane, false, collect_picture, &out));
            else
                ok(kn_vae_encode(encoder, planes, in_frames * in_plane, collect, &out));
        }
        assert_int_equal(out.seen, out.frames);
        if (decode) /* the fixture is in -1..1 */
            for (int64_t j = 0; j < kn_tensor_count(&expected); j++) out.data[j] = out.data[j] * 2.0f - 1.0f;
        expect_close(f, name, out.data, expected.data, kn_tensor_count(&expected), FLOAT32_BOUND);
        kn_vae_decoder_destroy(&decoder);
        kn_vae_encoder_destroy(&encoder);
        kn_device_free(f->device, given);
        kn_device_free(f->device, out.data);
    }
    assert_true(cases > 0);
}

static void autoencoder_matches(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f = open_fixture(fixtures[i]);
        kn_vae *vae;
        ok(kn_vae_create(&vae, &f.repository->vae, f.weights[KN_VAE], f.stream, KN_F32,
                         KN_VAE_DECODER | KN_VAE_ENCODER));
        ok(kn_vae_prepare(vae, f.stream));
        vae_cases(&f, vae, true);
        vae_cases(&f, vae, false);
        kn_vae_destroy(&vae);
        close_fixture(&f);
    }
}

/* Weights too large to keep are laid out before each use; that changes memory, not one bit of the result. */
static void lazy_weights_change_nothing(void **state)
{
    (void)state;
    enum { H = 2, W = 4, FRAMES = 2 };
    static const kn_wan_vae_config config = {.base_dim = 96,
                                             .decoder_base_dim = 96,
                                             .z_dim = 16,
                                             .stages = 4,
                                             .dim_mult = {1, 2, 4, 4},
                                             .num_res_blocks = 1,
                                             .temporal_downsample = {false, true, true}};
    fixture f = {.name = "synthetic"};
    kn_weights *weights;
    ok(kn_weights_synthetic(&weights, 0.02f, KN_F32, 3));
    ok(open_device(&f.device));
    ok(kn_stream_create(&f.stream, f.device));
    const int64_t count = 3 * 5 * 64 * H * W;
    float *latent = device_copy(&f, NULL, 16 * FRAMES * H * W * sizeof *latent), *out[2];
    kn_noise_normal(latent, 16 * FRAMES * H * W, 1);
    size_t bytes[2];
    for (int keep = 0; keep < 2; keep++) {
        kn_vae *vae;
        kn_vae_decoder *decoder;
        ok(kn_vae_create(&vae, &config, weights, f.stream, KN_F32, KN_VAE_DECODER));
        vae->keeps_all = keep == 1;
        ok(kn_vae_prepare(vae, f.stream));
        bytes[keep] = kn_vae_weight_bytes(vae);
        out[keep] = device_copy(&f, NULL, (size_t)count * sizeof(float));
        collected c = {.data = out[keep], .frames = 5, .plane = 64 * H * W, .channels = 3, .stream = f.stream};
        ok(kn_vae_decoder_create(&decoder, vae, f.stream, H, W, KN_PICTURE_PLANES, NULL));
        for (int t = 0; t < FRAMES; t++)
            ok(kn_vae_decode(decoder, latent + t * H * W, FRAMES * H * W, false, collect_picture, &c));
        assert_int_equal(c.seen, 5);
        kn_vae_decoder_destroy(&decoder);
        kn_vae_destroy(&vae);
    }
    assert_true(bytes[0] < bytes[1] / 3); /* most of the weights are in wide layers */
    assert_memory_equal(out[0], out[1], (size_t)count * sizeof(float));
    for (int keep = 0; keep < 2; keep++) kn_device_free(f.device, out[keep]);
    kn_device_free(f.device, latent);
    kn_stream_destroy(&f.stream);
    kn_device_close(&f.device);
    kn_weights_close(&weights);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#if defined(KN_SIMT_DEVICE)
        cmocka_unit_test(text_encoder_matches),
        cmocka_unit_test(transformer_matches),
        cmocka_unit_test(pack_does_not_matter),
        cmocka_unit_test(a_forward_only_launches),
        cmocka_unit_test(autoencoder_matches),
#else
        cmocka_unit_test(odd_heads_use_float32),
        cmocka_unit_test(buckets_match_t5),
        cmocka_unit_test(text_encoder_matches),
        cmocka_unit_test(transformer_matches),
        cmocka_unit_test(pack_does_not_matter),
        cmocka_unit_test(autoencoder_matches),
        cmocka_unit_test(lazy_weights_change_nothing),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
