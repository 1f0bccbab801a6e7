/* SPDX-License-Identifier: Apache-2.0
 *
 * The autoencoder's decoder: time, and the memory it takes, which must not grow
 * with the length of the clip. */
#include <stdio.h>

#include "base/mem.h"
#include "benchmarks/bench.h"

enum { WIDTH = 416, HEIGHT = 240, FRAMES = 17 };
/* Lengths that are decoded to see that memory stays the same; small pictures, so that the longest takes seconds. */
enum { LENGTHS = 3, SMALL_SIDE = 32, THOROUGH_WIDTH = 96, THOROUGH_HEIGHT = 64 };
static const int32_t length_frames[LENGTHS] = {17, 81, 161};

typedef struct vae_bench {
    kn_bench *bench;
    kn_vae *vae;
    const kn_wan_vae_config *config;
    kn_dtype type;
    int32_t t, h, w;   /* latent */
    float *latent;     /* [z_dim, t, h, w] device */
    int64_t frames;    /* seen in the last run */
    uint64_t resident; /* most so far */
} vae_bench;

static kn_status count_frame(void *opaque, int64_t index, const void *picture)
{
    vae_bench *v = opaque;
    (void)picture;
    v->frames = index + 1;
    const uint64_t resident = kn_bench_resident();
    if (resident > v->resident) v->resident = resident;
    return KN_OK;
}

/* A decoder of its own each time, as every generation has one: touching its memory first is part of the work. */
static kn_status run_decode(void *opaque)
{
    kn_status st = KN_OK;
    vae_bench *v = opaque;
    kn_vae_decoder *decoder = NULL;
    const int64_t plane = (int64_t)v->h * v->w;
    KN_TRY(kn_vae_decoder_create(&decoder, v->vae, v->bench->stream, v->h, v->w, KN_PICTURE_RGB24, NULL));
    for (int32_t i = 0; i < v->t; i++)
        KN_TRY(kn_vae_decode(decoder, v->latent + i * plane, v->t * plane, true, count_frame, v));
    KN_TRY(kn_stream_synchronize(v->bench->stream));
fail:
    kn_vae_decoder_destroy(&decoder);
    return st;
}

static kn_status bench_clip(vae_bench *v, int32_t width, int32_t height, int32_t frames, int32_t repeat)
{
    kn_status st = KN_OK;
    kn_bench *b = v->bench;
    void *latent = NULL;
    size_t decoder_bytes;
    const int32_t factor = kn_vae_spatial_factor(v->config);
    kn_bench_row row = {.type = kn_bench_type_name(v->type), .bf16 = v->type == KN_BF16};
    v->t = (frames - 1) / kn_vae_temporal_factor(v->config) + 1;
    v->h = height / factor;
    v->w = width / factor;
    if (v->h < 1 || v->w < 1)
        return kn_fail(KN_INVALID, "--size is %dx%d; the autoencoder needs %d pixels a side", width, height, factor);
    KN_TRY(kn_bench_random(b, &latent, (int64_t)v->config->z_dim * v->t * v->h * v->w, KN_F32));
    v->latent = latent;
    KN_TRY(kn_vae_decoder_bytes(&decoder_bytes, v->vae, b->stream, v->h, v->w, NULL));
    const uint64_t before = kn_bench_resident();
    v->resident = before;
    KN_TRY(kn_bench_time(&row, 0, repeat, run_decode, v));
    row.flop = kn_vae_decode_flop(v->vae, v->t, v->h, v->w);
    snprintf(row.test, sizeof row.test, "decode %d frames of %dx%d", (int)v->frames, v->w * factor, v->h * factor);
    snprintf(row.note, sizeof row.note, "decoder %.1f MB, weights %.1f MB, resident peak %.1f MB",
             (double)decoder_bytes * 1e-6, (double)kn_vae_weight_bytes(v->vae) * 1e-6, (double)v->resident * 1e-6);
    row.extra =
        json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:f}", "kind", "decode", "width", v->w * factor, "height",
                  v->h * factor, "frames", (json_int_t)v->frames, "decoder_bytes", (json_int_t)decoder_bytes,
                  "weight_bytes", (json_int_t)kn_vae_weight_bytes(v->vae), "resident_before_bytes", (json_int_t)before,
                  "resident_peak_bytes", (json_int_t)v->resident, "seconds_per_frame", row.seconds / (double)v->frames);
    KN_TRY(kn_bench_put(b, &row));
fail:
    kn_device_free(b->device, latent);
    return st;
}

static kn_status bench_type(kn_bench *b, const kn_bench_source *source, kn_dtype type, bool lengths)
{
    kn_status st = KN_OK;
    const kn_bench_settings *s = b->settings;
    vae_bench v = {.bench = b, .config = &source->repository->vae, .type = type};
    KN_TRY(kn_vae_create(&v.vae, v.config, source->weights, b->stream, type, KN_VAE_DECODER));
    KN_TRY(kn_vae_prepare(v.vae, b->stream));
    KN_TRY(bench_clip(&v, s->width ? s->width : WIDTH, s->height ? s->height : HEIGHT, s->frames ? s->frames : FRAMES,
                      s->repeat));
    for (int i = 0; lengths && i < LENGTHS; i++)
        KN_TRY(s->thorough ? bench_clip(&v, THOROUGH_WIDTH, THOROUGH_HEIGHT, length_frames[i], 1)
                           : bench_clip(&v, SMALL_SIDE, SMALL_SIDE, length_frames[i], 1));
fail:
    kn_vae_destroy(&v.vae);
    return st;
}

kn_status kn_bench_vae(kn_bench *b)
{
    kn_status st = KN_OK;
    kn_bench_source source = {0};
    kn_dtype types[2];
    const int32_t count = kn_bench_types(b, b->settings->vae_precision, types);
    KN_TRY(kn_bench_open(&source, b->settings, KN_VAE));
    for (int32_t i = 0; i < count; i++) KN_TRY(bench_type(b, &source, types[i], i == 0));
fail:
    kn_bench_close(&source);
    return st;
}
