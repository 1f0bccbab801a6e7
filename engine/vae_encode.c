/* SPDX-License-Identifier: Apache-2.0
 *
 * Encoding: the decoder's mirror. A temporal downsampler lets the first frame
 * through and afterwards turns frames 2k-1 and 2k, with 2k-2 before them, into one. */
#include "base/mem.h"
#include "engine/vae_internal.h"

enum { SIZING_FRAMES = 21 };

struct kn_vae_encoder {
    kn_vae *vae;
    kn_vae_run run;
    int32_t height, width; /* of this rank's rows, in pixels; height is 0 for a rank without any */
    int32_t h, w;          /* of the whole latent */
    float *moments;        /* [2 z_dim, this rank's rows, w]; mean, then log-variance */
    float *whole;          /* [z_dim, h, w], on each of several ranks */
    int64_t frames;        /* given so far */
    int64_t latents;       /* made so far */
    void *memory;
    kn_vae_latent_fn *sink;
    void *context;
};

/* Every rank is given the whole latent: it is state, which all of them have. */
static kn_status hand_on(kn_vae_encoder *e)
{
    kn_status st = KN_OK;
    const bool divided = e->run.everyone.size > 1;
    if (divided)
        KN_TRY(kn_vae_run_gather(&e->run, &(kn_vae_shares){.own = e->moments,
                                                           .whole = e->whole,
                                                           .parts = e->vae->config.z_dim,
                                                           .height = e->h,
                                                           .line = (size_t)e->w * sizeof(float),
                                                           .for_all = true}));
    KN_TRY(kn_comm_confirm(e->run.everyone.comm)); /* before somebody sees it */
    KN_TRY(e->sink(e->context, e->latents++, divided ? e->whole : e->moments));
fail:
    return st;
}

static kn_status emit(kn_vae_encoder *e, kn_frame *x)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &e->run;
    const kn_vae_network *net = &e->vae->encoder;
    const int32_t h = x->height, w = x->width;
    kn_frame normed = {0}, moments = {0}, quantized = {0};
    KN_TRY(kn_vae_middle_run(run, &net->middle, x));
    KN_TRY(kn_vae_take(run, &normed, h, w, net->conv_out.in, net->conv_out.dtype));
    KN_TRY(kn_vae_norm(run, *x, net->norm_out, true, normed));
    kn_frame_give(&run->pool, x);
    KN_TRY(kn_vae_take(run, &moments, h, w, net->conv_out.out, KN_F32));
    KN_TRY(kn_vae_conv_look(run, &net->conv_out, normed, moments, (kn_frame){0}));
    kn_vae_conv_remember(run, &net->conv_out, &normed);
    KN_TRY(kn_vae_take(run, &quantized, h, w, net->quant.out, KN_F32));
    KN_TRY(kn_vae_conv_run(run, &net->quant, moments, quantized, (kn_frame){0}));
    kn_frame_give(&run->pool, &moments);
    if (!run->pool.dry) {
        KN_TRY(e->vae->ops->frame_unpack(
            run->stream,
            &(kn_frame_unpack_args){.planes = e->moments, .plane_stride = (int64_t)h * w, .x = quantized}));
        KN_TRY(hand_on(e));
    }
    kn_frame_give(&run->pool, &quantized);
fail:
    return st;
}

static kn_status push(kn_vae_encoder *e, int index, kn_frame *x);

/* A temporal downsampler's turn; passes on what it makes, if anything. */
static kn_status shorten(kn_vae_encoder *e, int index, kn_frame *x)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &e->run;
    const kn_vae_resample *r = &e->vae->encoder.stages[index].resample;
    const kn_vae_conv *time = &r->time[0];
    const int64_t i = run->seen[r->counter]++;
    kn_frame out = {0};
    if (i % 2 == 1) {
        kn_vae_conv_remember(run, time, x);
        return KN_OK;
    }
    KN_TRY(kn_vae_take(run, &out, x->height, x->width, time->out, KN_F32));
    if (i > 0) {
        KN_TRY(kn_vae_conv_look(run, time, *x, out, (kn_frame){0}));
    } else if (!run->pool.dry) { /* it goes on as it is and stays behind as history */
        const size_t bytes = kn_frame_bytes(x->height, x->width, x->channels, x->dtype, x->border);
        const size_t before = (size_t)(x->border * (x->row_stride + 1)) * (size_t)x->channels * sizeof(float);
        KN_TRY(kn_stream_copy(run->stream, (char *)out.data - before, (char *)x->data - before, bytes));
    }
    kn_vae_conv_remember(run, time, x);
    KN_TRY(push(e, index + 1, &out));
fail:
    return st;
}

static kn_status push(kn_vae_encoder *e, int index, kn_frame *x)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &e->run;
    const kn_vae_stage *stage = &e->vae->encoder.stages[index];
    const kn_vae_conv *space = &stage->resample.space;
    kn_frame small = {0};
    for (int i = 0; i < stage->resnet_count; i++) KN_TRY(kn_vae_resnet_run(run, &stage->resnets[i], x));
    if (!stage->resamples) return emit(e, x);
    KN_TRY(kn_vae_take(run, &small, x->height / 2, x->width / 2, space->out, KN_F32));
    KN_TRY(kn_vae_conv_run(run, space, *x, small, (kn_frame){0}));
    kn_frame_give(&run->pool, x);
    if (stage->resample.temporal) return shorten(e, index, &small);
    KN_TRY(push(e, index + 1, &small));
fail:
    return st;
}

/* Of this rank's pixels, in the whole frame. */
static int64_t first_row(const kn_vae_encoder *e)
{
    return e->run.rows.first * kn_vae_spatial_factor(&e->vae->config);
}

kn_status kn_vae_encode(kn_vae_encoder *e, const float *planes, int64_t plane_stride, kn_vae_latent_fn *latent,
                        void *context)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &e->run;
    const kn_vae_conv *conv_in = &e->vae->encoder.conv_in;
    kn_frame pixels = {0}, x = {0};
    KN_REQUIRE(run->pool.dry || e->vae->memory);
    e->sink = latent;
    e->context = context;
    const bool completes = e->frames++ % kn_vae_temporal_factor(&e->vae->config) == 0; /* a latent */
    if (e->height == 0) return completes && !run->pool.dry ? hand_on(e) : KN_OK;
    KN_TRY(kn_vae_take(run, &pixels, e->height, e->width, KN_VAE_PIXEL_CHANNELS, KN_F32));
    if (!run->pool.dry)
        KN_TRY(e->vae->ops->frame_pack(run->stream, &(kn_frame_pack_args){.out = pixels,
                                                                          .planes = planes + first_row(e) * e->width,
                                                                          .plane_stride = plane_stride}));
    KN_TRY(kn_vae_take(run, &x, e->height, e->width, conv_in->out, KN_F32));
    KN_TRY(kn_vae_conv_look(run, conv_in, pixels, x, (kn_frame){0}));
    kn_vae_conv_remember(run, conv_in, &pixels);
    KN_TRY(push(e, 0, &x));
fail:
    return st;
}

static kn_status begin(kn_vae_encoder *e, kn_vae *vae, kn_stream *stream, int32_t height, int32_t width,
                       const kn_group *group)
{
    const int32_t factor = kn_vae_spatial_factor(&vae->config);
    KN_REQUIRE((vae->halves & KN_VAE_ENCODER) && height > 0 && width > 0);
    KN_REQUIRE(height % factor == 0 && width % factor == 0);
    kn_arena *arena = &e->run.pool.arena;
    e->vae = vae;
    e->h = height / factor;
    e->w = width / factor;
    kn_vae_run_share(&e->run, group, e->h);
    e->height = (int32_t)e->run.rows.count * factor;
    e->width = width;
    e->run.vae = vae;
    e->run.stream = stream;
    const size_t line = (size_t)e->w * sizeof(float), rows = (size_t)e->run.rows.count;
    e->moments = kn_arena_take(arena, (size_t)vae->encoder.quant.out * rows * line);
    if (e->run.everyone.size > 1) e->whole = kn_arena_take(arena, (size_t)vae->config.z_dim * (size_t)e->h * line);
    if (rows > 0) kn_vae_run_reserve(&e->run, &vae->encoder.middle.attention, e->h, e->w);
    return KN_OK;
}

kn_status kn_vae_encoder_create(kn_vae_encoder **out, kn_vae *vae, kn_stream *stream, int32_t height, int32_t width,
                                const kn_group *group)
{
    kn_status st = KN_OK;
    kn_vae_encoder *e = kn_alloc(sizeof *e), *sizing = kn_alloc(sizeof *sizing);
    if (!e || !sizing) {
        st = KN_NOMEM;
        goto fail;
    }
    sizing->run.pool.dry = true;
    KN_TRY(begin(sizing, vae, stream, height, width, group));
    for (int i = 0; i < SIZING_FRAMES; i++) KN_TRY(kn_vae_encode(sizing, NULL, 0, NULL, NULL));
    const size_t bytes = sizing->run.pool.arena.peak;
    e->vae = vae;
    KN_TRY(kn_device_alloc(vae->device, &e->memory, bytes));
    e->run.pool.arena = kn_arena_view(e->memory, bytes);
    KN_TRY(begin(e, vae, stream, height, width, group));
    kn_free(sizing);
    *out = e;
    return KN_OK;
fail:
    kn_free(sizing);
    kn_vae_encoder_destroy(&e);
    return st;
}

void kn_vae_encoder_destroy(kn_vae_encoder **handle)
{
    kn_vae_encoder *e = *handle;
    if (!e) return;
    if (e->vae) kn_device_free(e->vae->device, e->memory);
    kn_free(e);
    *handle = NULL;
}
