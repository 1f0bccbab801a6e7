/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "engine/vae_internal.h"

kn_status kn_vae_take(kn_vae_run *run, kn_frame *out, int32_t h, int32_t w, int32_t channels, kn_dtype dtype)
{
    return kn_frame_take(&run->pool, out, h, w, channels, dtype, 1);
}

void kn_vae_run_share(kn_vae_run *run, const kn_group *group, int32_t h)
{
    run->everyone = run->group = group ? *group : kn_group_alone();
    if (run->group.size > h) { /* a rank without rows has no neighbours */
        const int32_t index = run->group.index;
        run->group = kn_group_part(&run->group, 0, h, 1);
        if (index >= h) return;
    }
    run->rows = kn_share_of(h, run->group.size, run->group.index);
}

kn_status kn_vae_run_gather(const kn_vae_run *run, const kn_vae_shares *shares)
{
    const kn_group *from = &run->group, *all = &run->everyone;
    const int32_t receivers = shares->for_all ? all->size : 1;
    const size_t own = (size_t)run->rows.count * shares->line, plane = (size_t)shares->height * shares->line;
    kn_comm_block send[KN_COMM_RANKS_MAX], receive[KN_COMM_RANKS_MAX];
    const int32_t sends = run->rows.count > 0 ? receivers : 0, receives = all->index < receivers ? from->size : 0;
    for (int32_t i = 0; i < sends; i++)
        send[i] = (kn_comm_block){.data = (void *)(uintptr_t)shares->own,
                                  .rows = shares->parts,
                                  .row_bytes = own,
                                  .stride = own,
                                  .peer = all->member[i]};
    for (int32_t i = 0; i < receives; i++) {
        const kn_share rows = kn_share_of(shares->height, from->size, i);
        receive[i] = (kn_comm_block){.data = (char *)shares->whole + (size_t)rows.first * shares->line,
                                     .rows = shares->parts,
                                     .row_bytes = (size_t)rows.count * shares->line,
                                     .stride = plane,
                                     .peer = from->member[i]};
    }
    kn_status st =
        kn_comm_start(all->comm, shares->for_all ? KN_COMM_ALL_GATHER : KN_COMM_GATHER, send, sends, receive, receives);
    return st == KN_OK ? kn_comm_finish(all->comm) : st;
}

/* Fills the border rows that neighbours have. The outer borders of the picture stay zero. */
static kn_status meet_neighbours(kn_vae_run *run, const kn_frame *f)
{
    const size_t bytes = (size_t)f->row_stride * (size_t)f->channels * kn_dtype_bytes(f->dtype);
    char *first = (char *)f->data - (size_t)f->border * (size_t)f->channels * kn_dtype_bytes(f->dtype);
    char *last = first + (size_t)(f->height - 1) * bytes;
    return kn_group_halo(
        &run->group,
        &(kn_halo){.first = first, .last = last, .before = first - bytes, .after = last + bytes, .bytes = bytes});
}

static kn_status launch(kn_vae_run *run, kn_conv_args *args, const kn_vae_conv *conv)
{
    kn_status st = KN_OK;
    kn_weight fresh;
    int frames = 0;
    for (int i = 0; i < conv->kt; i++) frames += args->in[i].data != NULL;
    const double taps = conv->mode == KN_CONV_UP_NEAREST ? 4.0 : (double)conv->k * conv->k * frames;
    run->flop += 2.0 * taps * conv->in * conv->out * args->out.height * args->out.width;
    if (run->pool.dry) return KN_OK;
    if (conv->k > 1) KN_TRY(meet_neighbours(run, &args->in[conv->kt - 1])); /* older frames kept theirs */
    if (conv->source.data) {
        KN_TRY(run->vae->ops->conv_weight_prepare(run->stream, &fresh, run->vae->lazy, &conv->source, args));
        args->w = &fresh;
    }
    KN_TRY(run->vae->ops->conv(run->stream, args));
fail:
    return st;
}

kn_status kn_vae_conv_run(kn_vae_run *run, const kn_vae_conv *conv, kn_frame in, kn_frame out, kn_frame residual)
{
    return launch(run,
                  &(kn_conv_args){.out = out,
                                  .in = {in},
                                  .kt = 1,
                                  .kh = conv->k,
                                  .kw = conv->k,
                                  .mode = conv->mode,
                                  .w = &conv->layer.w,
                                  .bias = conv->layer.bias,
                                  .residual = residual},
                  conv);
}

kn_status kn_vae_conv_look(kn_vae_run *run, const kn_vae_conv *conv, kn_frame in, kn_frame out, kn_frame residual)
{
    const kn_frame *history = run->history[conv->history];
    return launch(run,
                  &(kn_conv_args){.out = out,
                                  .in = {history[0], history[1], in},
                                  .kt = 3,
                                  .kh = conv->k,
                                  .kw = conv->k,
                                  .mode = conv->mode,
                                  .w = &conv->layer.w,
                                  .bias = conv->layer.bias,
                                  .residual = residual},
                  conv);
}

void kn_vae_conv_remember(kn_vae_run *run, const kn_vae_conv *conv, kn_frame *in)
{
    kn_frame *history = run->history[conv->history];
    kn_frame_give(&run->pool, &history[0]);
    history[0] = history[1];
    history[1] = *in;
    *in = (kn_frame){0};
}

kn_status kn_vae_norm(kn_vae_run *run, kn_frame x, const float *gamma, bool silu, kn_frame out)
{
    if (run->pool.dry) return KN_OK;
    return run->vae->ops->channel_norm(run->stream,
                                       &(kn_channel_norm_args){.out = out, .x = x, .gamma = gamma, .silu = silu});
}

/* out = conv(silu(norm(x))) (+ residual); the normed frame becomes history. */
static kn_status norm_conv(kn_vae_run *run, const float *gamma, const kn_vae_conv *conv, kn_frame x, kn_frame out,
                           kn_frame residual)
{
    kn_status st = KN_OK;
    kn_frame normed = {0};
    KN_TRY(kn_vae_take(run, &normed, x.height, x.width, conv->in, conv->dtype));
    KN_TRY(kn_vae_norm(run, x, gamma, true, normed));
    KN_TRY(kn_vae_conv_look(run, conv, normed, out, residual));
    kn_vae_conv_remember(run, conv, &normed);
fail:
    return st;
}

kn_status kn_vae_resnet_run(kn_vae_run *run, const kn_vae_resnet *r, kn_frame *x)
{
    kn_status st = KN_OK;
    const kn_frame none = {0};
    kn_frame y = {0}, wide = {0}, normed = {0};
    /* In float32 the first convolution's output is normed in place and becomes the second one's input. */
    const bool in_place = r->conv2.dtype == KN_F32;
    KN_TRY(kn_vae_take(run, &y, x->height, x->width, r->conv1.out, KN_F32));
    KN_TRY(norm_conv(run, r->norm1, &r->conv1, *x, y, none));
    if (r->has_shortcut) {
        KN_TRY(kn_vae_take(run, &wide, x->height, x->width, r->shortcut.out, KN_F32));
        KN_TRY(kn_vae_conv_run(run, &r->shortcut, *x, wide, none));
        kn_frame_give(&run->pool, x);
        *x = wide;
    }
    if (in_place)
        normed = y;
    else
        KN_TRY(kn_vae_take(run, &normed, x->height, x->width, r->conv2.in, r->conv2.dtype));
    KN_TRY(kn_vae_norm(run, y, r->norm2, true, normed));
    if (!in_place) kn_frame_give(&run->pool, &y);
    KN_TRY(kn_vae_conv_look(run, &r->conv2, normed, *x, *x));
    kn_vae_conv_remember(run, &r->conv2, &normed);
fail:
    return st;
}

void kn_vae_run_reserve(kn_vae_run *run, const kn_vae_attention *a, int32_t h, int32_t w)
{
    const int64_t rows = (int64_t)h * w, cols = 3 * (int64_t)a->channels;
    const int32_t offsets[2] = {0, (int32_t)rows};
    run->qkv = (kn_matrix){.data = kn_arena_take(&run->pool.arena, (size_t)(rows * cols) * sizeof(float)),
                           .rows = rows,
                           .cols = cols,
                           .stride = cols,
                           .dtype = KN_F32};
    const kn_attention_args shape = {.q.dtype = KN_F32,
                                     .heads = 1,
                                     .head_dim = a->channels,
                                     .sequences = 1,
                                     .q_offsets = offsets,
                                     .k_offsets = offsets};
    run->attention_workspace = kn_arena_take(&run->pool.arena, run->vae->ops->attention_workspace(&shape));
}

static kn_matrix columns_of(kn_matrix m, int64_t first, int64_t count)
{
    m.data = (float *)m.data + first;
    m.cols = count;
    return m;
}

static kn_matrix rows_of(kn_matrix m, int64_t first, int64_t count)
{
    m.data = (float *)m.data + first * m.stride;
    m.rows = count;
    return m;
}

/* Over the pixels of one frame, one head of all channels, scale 1 / sqrt(channels). A rank asks with its own pixels,
 * all answer. */
static kn_status attend(kn_vae_run *run, const kn_vae_attention *a, kn_matrix rows)
{
    kn_status st = KN_OK;
    const kn_ops *ops = run->vae->ops;
    const int32_t offsets[2] = {0, (int32_t)rows.rows}, whole[2] = {0, (int32_t)run->qkv.rows};
    const int64_t width = rows.rows / run->rows.count, height = run->qkv.rows / width;
    const kn_matrix own = rows_of(run->qkv, run->rows.first * width, rows.rows);
    KN_TRY(ops->gemm(run->stream, &(kn_gemm_args){.out = own, .a = rows, .w = &a->qkv.w, .bias = a->qkv.bias}));
    KN_TRY(kn_group_all_gather(&run->group, run->qkv.data, height, (size_t)(width * own.stride) * sizeof(float)));
    KN_TRY(ops->attention(run->stream,
                          &(kn_attention_args){.out = rows,
                                               .q = columns_of(own, 0, a->channels),
                                               .k = columns_of(run->qkv, a->channels, a->channels),
                                               .v = columns_of(run->qkv, 2 * (int64_t)a->channels, a->channels),
                                               .heads = 1,
                                               .head_dim = a->channels,
                                               .scale = 1.0f / sqrtf((float)a->channels),
                                               .sequences = 1,
                                               .q_offsets = offsets,
                                               .k_offsets = whole,
                                               .workspace = run->attention_workspace}));
fail:
    return st;
}

static kn_status attention_run(kn_vae_run *run, const kn_vae_attention *a, kn_frame x)
{
    kn_status st = KN_OK;
    kn_frame dense = {0}; /* no border: its pixels are the rows of a matrix */
    const int64_t pixels = (int64_t)x.height * x.width, c = a->channels;
    KN_TRY(kn_frame_take(&run->pool, &dense, x.height, x.width, a->channels, KN_F32, 0));
    KN_TRY(kn_vae_norm(run, x, a->norm, false, dense));
    run->flop += 2.0 * (double)pixels * 3.0 * (double)(c * c) + 4.0 * (double)pixels * (double)pixels * (double)c;
    if (!run->pool.dry)
        KN_TRY(
            attend(run, a, (kn_matrix){.data = dense.data, .rows = pixels, .cols = c, .stride = c, .dtype = KN_F32}));
    KN_TRY(kn_vae_conv_run(run, &a->proj, dense, x, x));
    kn_frame_give(&run->pool, &dense);
fail:
    return st;
}

kn_status kn_vae_middle_run(kn_vae_run *run, const kn_vae_middle *middle, kn_frame *x)
{
    kn_status st = KN_OK;
    KN_TRY(kn_vae_resnet_run(run, &middle->before, x));
    KN_TRY(attention_run(run, &middle->attention, *x));
    KN_TRY(kn_vae_resnet_run(run, &middle->after, x));
fail:
    return st;
}
