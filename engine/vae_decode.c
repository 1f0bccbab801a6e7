/* SPDX-License-Identifier: Apache-2.0
 *
 * Decoding, depth first: a frame travels through a stage to the next as soon as it
 * exists, so that at full resolution one frame is in flight at a time. A temporal
 * upsampler lets its first frame through and turns every later one into two. */
#include <string.h>

#include "base/mem.h"
#include "engine/vae_internal.h"

/* Enough latent frames for every history to be full: the dry run that sizes the pool. */
enum { SIZING_FRAMES = 6 };

struct kn_vae_decoder {
    kn_vae *vae;
    kn_vae_run run;
    int32_t h, w;    /* of this rank's rows; h is 0 for a rank without any */
    int32_t whole_h; /* of the latent */
    kn_picture_layout layout;
    void *picture;      /* of the frame just made; room for either format */
    void *whole;        /* the same of the whole picture, on the first of several ranks */
    float *taps;        /* [KN_VAE_TAPS, taps_count] of the last frames, frame t at t % KN_VAE_TAPS */
    int64_t taps_count; /* height * width * KN_VAE_TAPS * 3 */
    int64_t frames;     /* made so far */
    void *memory;
    kn_vae_frame_fn *frame;
    void *context;
};

/* The taps of frame t, channels last. */
static kn_frame taps_of(const kn_vae_decoder *d, int64_t t, int32_t height, int32_t width)
{
    return (kn_frame){.data = d->taps ? d->taps + t % KN_VAE_TAPS * d->taps_count : NULL,
                      .height = height,
                      .width = width,
                      .channels = d->vae->decoder.to_pixels.taps.out,
                      .row_stride = width,
                      .dtype = KN_F32};
}

/* Sums of the taps of the last three frames: newest[t] + middle[t - 1] + oldest[t - 2]. */
static kn_status combine_taps(kn_vae_decoder *d, int32_t height, int32_t width)
{
    const kn_vae_out_conv *out = &d->vae->decoder.to_pixels;
    kn_picture_args args = {.out = d->picture, .layout = d->layout, .scale = out->scale};
    for (int32_t back = 0; back < KN_VAE_TAPS && back <= d->frames; back++) {
        args.x[args.terms] = taps_of(d, d->frames - back, height, width);
        args.first[args.terms++] = (KN_VAE_TAPS - 1 - back) * KN_PICTURE_CHANNELS;
    }
    for (int c = 0; c < KN_PICTURE_CHANNELS; c++) args.shift[c] = out->shift[c];
    return d->vae->ops->picture(d->run.stream, &args);
}

/* Every rank's rows of the picture into the first rank's whole one. */
static kn_status gather_picture(kn_vae_decoder *d)
{
    const bool planes = d->layout == KN_PICTURE_PLANES;
    const size_t factor = (size_t)kn_vae_spatial_factor(&d->vae->config);
    const size_t pixel = planes ? sizeof(float) : KN_PICTURE_CHANNELS;
    return kn_vae_run_gather(&d->run, &(kn_vae_shares){.own = d->picture,
                                                       .whole = d->whole,
                                                       .parts = planes ? KN_PICTURE_CHANNELS : 1,
                                                       .height = d->whole_h,
                                                       .line = factor * factor * (size_t)d->w * pixel});
}

static kn_status hand_on(kn_vae_decoder *d)
{
    kn_status st = KN_OK;
    if (d->run.group.size > 1) KN_TRY(gather_picture(d));
    KN_TRY(kn_comm_confirm(d->run.group.comm)); /* before somebody sees it */
    if (d->run.group.index == 0) KN_TRY(d->frame(d->context, d->frames, d->run.group.size > 1 ? d->whole : d->picture));
fail:
    return st;
}

static kn_status emit(kn_vae_decoder *d, kn_frame *x)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &d->run;
    const kn_vae_out_conv *out = &d->vae->decoder.to_pixels;
    kn_frame normed = {0};
    const int32_t height = x->height, width = x->width;
    KN_TRY(kn_vae_take(run, &normed, height, width, out->taps.in, out->taps.dtype));
    KN_TRY(kn_vae_norm(run, *x, d->vae->decoder.norm_out, true, normed));
    kn_frame_give(&run->pool, x);
    KN_TRY(kn_vae_conv_run(run, &out->taps, normed, taps_of(d, d->frames, height, width), (kn_frame){0}));
    kn_frame_give(&run->pool, &normed);
    if (!run->pool.dry) {
        KN_TRY(combine_taps(d, height, width));
        KN_TRY(hand_on(d));
    }
    d->frames++;
fail:
    return st;
}

static kn_status push(kn_vae_decoder *d, int stage, kn_frame *x);

/* Enlarges x and hands it to the next stage. */
static kn_status enlarge(kn_vae_decoder *d, int stage, kn_frame *x)
{
    kn_status st = KN_OK;
    const kn_vae_conv *space = &d->vae->decoder.stages[stage].resample.space;
    kn_frame large = {0};
    KN_TRY(kn_vae_take(&d->run, &large, x->height * 2, x->width * 2, space->out, KN_F32));
    KN_TRY(kn_vae_conv_run(&d->run, space, *x, large, (kn_frame){0}));
    kn_frame_give(&d->run.pool, x);
    KN_TRY(push(d, stage + 1, &large));
fail:
    return st;
}

static kn_status push(kn_vae_decoder *d, int index, kn_frame *x)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &d->run;
    const kn_vae_stage *stage = &d->vae->decoder.stages[index];
    const kn_vae_resample *r = &stage->resample;
    kn_frame halves[2] = {{0}, {0}};
    for (int i = 0; i < stage->resnet_count; i++) KN_TRY(kn_vae_resnet_run(run, &stage->resnets[i], x));
    if (!stage->resamples) return emit(d, x);
    /* The clip's first frame has no predecessor: it is neither doubled nor seen by the temporal convolution. */
    if (!r->temporal || run->seen[r->counter]++ == 0) return enlarge(d, index, x);

    for (int i = 0; i < 2; i++) {
        KN_TRY(kn_vae_take(run, &halves[i], x->height, x->width, r->time[i].out, KN_F32));
        KN_TRY(kn_vae_conv_look(run, &r->time[i], *x, halves[i], (kn_frame){0}));
    }
    kn_vae_conv_remember(run, &r->time[0], x);
    for (int i = 0; i < 2; i++) KN_TRY(enlarge(d, index, &halves[i]));
fail:
    return st;
}

kn_status kn_vae_decode(kn_vae_decoder *d, const float *latent, int64_t plane_stride, bool normalized,
                        kn_vae_frame_fn *frame, void *context)
{
    kn_status st = KN_OK;
    kn_vae_run *run = &d->run;
    const kn_vae_network *net = &d->vae->decoder;
    const kn_wan_vae_config *c = &d->vae->config;
    kn_frame z = {0}, quantized = {0}, x = {0};
    if (d->h == 0) return KN_OK;
    KN_REQUIRE(run->pool.dry || d->vae->memory);
    d->frame = frame;
    d->context = context;
    KN_TRY(kn_vae_take(run, &z, d->h, d->w, c->z_dim, KN_F32));
    if (!run->pool.dry)
        KN_TRY(
            d->vae->ops->frame_pack(run->stream, &(kn_frame_pack_args){.out = z,
                                                                       .planes = latent + run->rows.first * d->w,
                                                                       .plane_stride = plane_stride,
                                                                       .scale = normalized ? c->latents_std : NULL,
                                                                       .shift = normalized ? c->latents_mean : NULL}));
    KN_TRY(kn_vae_take(run, &quantized, d->h, d->w, c->z_dim, KN_F32));
    KN_TRY(kn_vae_conv_run(run, &net->quant, z, quantized, (kn_frame){0}));
    kn_frame_give(&run->pool, &z);
    KN_TRY(kn_vae_take(run, &x, d->h, d->w, net->conv_in.out, KN_F32));
    KN_TRY(kn_vae_conv_look(run, &net->conv_in, quantized, x, (kn_frame){0}));
    kn_vae_conv_remember(run, &net->conv_in, &quantized);
    KN_TRY(kn_vae_middle_run(run, &net->middle, &x));
    KN_TRY(push(d, 0, &x));
fail:
    return st;
}

/* ---- between shares and a whole ---- */

/* One frame of a history, whatever its height in a decoder of other rows. */
typedef struct kept_frame {
    int32_t there, scale; /* scale: rows of the frame for each row of the latent */
    int32_t width, channels, dtype;
} kept_frame;

/* What must be known of a decoder before its memory can be moved. */
typedef struct kept {
    int64_t frames, seen[KN_VAE_STAGES_MAX];
    kept_frame history[KN_VAE_HISTORIES_MAX][2];
} kept;

static void describe_kept(kept *out, const kn_vae_decoder *whole)
{
    *out = (kept){.frames = whole->frames};
    memcpy(out->seen, whole->run.seen, sizeof out->seen);
    for (int32_t i = 0; i < whole->vae->decoder.histories; i++)
        for (int j = 0; j < 2; j++) {
            const kn_frame *f = &whole->run.history[i][j];
            if (f->data) out->history[i][j] = (kept_frame){1, f->height / whole->h, f->width, f->channels, f->dtype};
        }
}

/* `d` has these frames from now on, with anything in them. Those it has keep their memory. */
static kn_status make_room(kn_vae_decoder *d, const kept *k)
{
    kn_status st = KN_OK;
    d->frames = k->frames;
    memcpy(d->run.seen, k->seen, sizeof k->seen);
    for (int32_t i = 0; i < d->vae->decoder.histories; i++)
        for (int j = 0; j < 2; j++) {
            const kept_frame *f = &k->history[i][j];
            kn_frame *own = &d->run.history[i][j];
            if (f->there && !own->data)
                KN_TRY(kn_vae_take(&d->run, own, d->h * f->scale, f->width, f->channels, (kn_dtype)f->dtype));
        }
fail:
    return st;
}

/* Rows of a history frame that belong to `rows` of the latent, with `border` rows around them; the frame starts at the
 * latent's row `first`. */
static kn_comm_block frame_rows(const kn_frame *f, int64_t scale, kn_share rows, int64_t first, int32_t border,
                                int32_t peer)
{
    const size_t pixel = (size_t)f->channels * kn_dtype_bytes(f->dtype), row = (size_t)f->row_stride * pixel;
    char *top = (char *)f->data - (size_t)f->border * pixel; /* row 0, from its left border on */
    return (kn_comm_block){.data = top + ((rows.first - first) * scale - border) * (int64_t)row,
                           .rows = rows.count * scale + 2 * border,
                           .row_bytes = row,
                           .stride = row,
                           .peer = peer};
}

/* The same of the sums of taps of the last frames. */
static kn_comm_block tap_rows(const kn_vae_decoder *d, kn_share rows, int64_t first, int32_t peer)
{
    const size_t factor = (size_t)kn_vae_spatial_factor(&d->vae->config);
    const size_t pixel = KN_VAE_TAPS * KN_VAE_PIXEL_CHANNELS * sizeof(float);
    const size_t line = factor * (size_t)d->w * factor * pixel; /* of one latent row */
    return (kn_comm_block){.data = (char *)d->taps + (size_t)(rows.first - first) * line,
                           .rows = KN_VAE_TAPS,
                           .row_bytes = (size_t)rows.count * line,
                           .stride = (size_t)d->h * line,
                           .peer = peer};
}

/* Moves one thing between the whole and every share: `of_whole` [members] and this rank's own. */
static kn_status move_shares(const kn_group *g, bool out, const kn_comm_block *of_whole, kn_comm_block own)
{
    const int32_t wholes = of_whole ? g->size : 0;
    const kn_comm_kind kind = out ? KN_COMM_BROADCAST : KN_COMM_GATHER;
    own.peer = g->member[0];
    kn_status st = out ? kn_comm_start(g->comm, kind, of_whole, wholes, &own, 1)
                       : kn_comm_start(g->comm, kind, &own, 1, of_whole, wholes);
    return st == KN_OK ? kn_comm_finish(g->comm) : st;
}

static kn_status move_kept(const kn_vae_decoder *share, const kn_vae_decoder *whole, bool out, const kept *k)
{
    kn_status st = KN_OK;
    kn_comm_block parts[KN_COMM_RANKS_MAX];
    const kn_group *g = &share->run.group;
    for (int32_t i = 0; i < share->vae->decoder.histories; i++)
        for (int j = 0; j < 2; j++) {
            const kept_frame *f = &k->history[i][j];
            if (!f->there) continue;
            for (int32_t m = 0; whole && m < g->size; m++)
                parts[m] = frame_rows(&whole->run.history[i][j], f->scale, kn_share_of(share->whole_h, g->size, m), 0,
                                      out, g->member[m]);
            KN_TRY(move_shares(
                g, out, whole ? parts : NULL,
                frame_rows(&share->run.history[i][j], f->scale, share->run.rows, share->run.rows.first, out, 0)));
        }
    for (int32_t m = 0; whole && m < g->size; m++)
        parts[m] = tap_rows(whole, kn_share_of(share->whole_h, g->size, m), 0, g->member[m]);
    KN_TRY(move_shares(g, out, whole ? parts : NULL, tap_rows(share, share->run.rows, share->run.rows.first, 0)));
fail:
    return st;
}

kn_status kn_vae_decoder_hand_out(kn_vae_decoder *share, const kn_vae_decoder *whole)
{
    kn_status st = KN_OK;
    kept *k = NULL;
    if (share->h == 0) return KN_OK;
    k = kn_alloc(sizeof *k);
    if (!k) return KN_NOMEM;
    if (whole) describe_kept(k, whole);
    KN_TRY(kn_group_message(&share->run.group, 0, k, sizeof *k));
    KN_TRY(make_room(share, k));
    if (k->frames > 0) KN_TRY(move_kept(share, whole, true, k));
fail:
    kn_free(k);
    return st;
}

kn_status kn_vae_decoder_bring_back(const kn_vae_decoder *share, kn_vae_decoder *whole)
{
    kn_status st = KN_OK;
    kept *k = NULL;
    if (share->h == 0) return KN_OK;
    k = kn_alloc(sizeof *k);
    if (!k) return KN_NOMEM;
    describe_kept(k, share); /* the same on every rank, but for the rows */
    if (whole) KN_TRY(make_room(whole, k));
    KN_TRY(move_kept(share, whole, false, k));
fail:
    kn_free(k);
    return st;
}

/* ---- life ---- */

static kn_status begin(kn_vae_decoder *d, kn_vae *vae, kn_stream *stream, int32_t whole_h, int32_t w,
                       const kn_group *group)
{
    KN_REQUIRE((vae->halves & KN_VAE_DECODER) && whole_h > 0 && w > 0);
    const size_t factor = (size_t)kn_vae_spatial_factor(&vae->config);
    kn_vae_run_share(&d->run, group, whole_h);
    const int32_t h = (int32_t)d->run.rows.count;
    d->vae = vae;
    d->h = h;
    d->whole_h = whole_h;
    d->w = w;
    d->run.vae = vae;
    d->run.stream = stream;
    const size_t pixels = factor * (size_t)h * factor * (size_t)w;
    d->taps_count = (int64_t)(KN_VAE_TAPS * KN_VAE_PIXEL_CHANNELS * pixels);
    d->picture = kn_arena_take(&d->run.pool.arena, KN_VAE_PIXEL_CHANNELS * pixels * sizeof(float));
    d->taps = kn_arena_take(&d->run.pool.arena, KN_VAE_TAPS * (size_t)d->taps_count * sizeof *d->taps);
    if (d->run.group.size > 1 && d->run.group.index == 0)
        d->whole = kn_arena_take(&d->run.pool.arena,
                                 KN_VAE_PIXEL_CHANNELS * factor * factor * (size_t)whole_h * (size_t)w * sizeof(float));
    if (h > 0) kn_vae_run_reserve(&d->run, &vae->decoder.middle.attention, whole_h, w);
    return KN_OK;
}

/* Bytes and operations of decoding `latents` frames, without decoding them. */
static kn_status dry_run(size_t *bytes, double *flop, kn_vae *vae, kn_stream *stream, int32_t h, int32_t w,
                         const kn_group *group, int64_t latents)
{
    kn_status st = KN_OK;
    kn_vae_decoder *d = kn_alloc(sizeof *d);
    if (!d) return KN_NOMEM;
    d->run.pool.dry = true;
    KN_TRY(begin(d, vae, stream, h, w, group));
    for (int64_t i = 0; i < latents; i++) KN_TRY(kn_vae_decode(d, NULL, 0, false, NULL, NULL));
    *bytes = d->run.pool.arena.peak;
    *flop = d->run.flop;
fail:
    kn_free(d);
    return st;
}

kn_status kn_vae_decoder_bytes(size_t *out, kn_vae *vae, kn_stream *stream, int32_t h, int32_t w, const kn_group *group)
{
    double flop;
    kn_status st = dry_run(out, &flop, vae, stream, h, w, group, SIZING_FRAMES);
    *out += sizeof(kn_vae_decoder);
    return st;
}

double kn_vae_decode_flop(const kn_vae *vae, int64_t latent_frames, int32_t h, int32_t w)
{
    size_t bytes;
    double flop = 0.0;
    dry_run(&bytes, &flop, (kn_vae *)(uintptr_t)vae, NULL, h, w, NULL, latent_frames);
    return flop;
}

kn_status kn_vae_decoder_create(kn_vae_decoder **out, kn_vae *vae, kn_stream *stream, int32_t h, int32_t w,
                                kn_picture_layout layout, const kn_group *group)
{
    kn_status st = KN_OK;
    size_t bytes;
    double flop;
    kn_vae_decoder *d = kn_alloc(sizeof *d);
    if (!d) return KN_NOMEM;
    KN_TRY(dry_run(&bytes, &flop, vae, stream, h, w, group, SIZING_FRAMES));
    d->vae = vae;
    d->layout = layout;
    KN_TRY(kn_device_alloc(vae->device, &d->memory, bytes + KN_ARENA_ALIGN)); /* none needed without rows */
    d->run.pool.arena = kn_arena_view(d->memory, bytes);
    KN_TRY(begin(d, vae, stream, h, w, group));
    *out = d;
    return KN_OK;
fail:
    kn_vae_decoder_destroy(&d);
    return st;
}

void kn_vae_decoder_destroy(kn_vae_decoder **handle)
{
    kn_vae_decoder *d = *handle;
    if (!d) return;
    if (d->vae) kn_device_free(d->vae->device, d->memory);
    kn_free(d);
    *handle = NULL;
}
