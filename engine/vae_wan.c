/* SPDX-License-Identifier: Apache-2.0
 *
 * Graph and tensor names of the Wan 2.1 autoencoder. Channel widths follow the
 * config: with base_dim 96 and dim_mult 1 2 4 4 the decoder's stages are
 * 384-384, 192-384, 192-192, 96-96 (each upsampler halves what the next stage
 * receives), the encoder's 96-96, 96-192, 192-384, 384-384. */
#include "engine/vae_wan.h"

#include <stdio.h>

#include "base/mem.h"
#include "engine/vae_internal.h"

enum { PREFIX_BYTES = 96, NAME_BYTES = 160 };

/* ---- layers ---- */

/* bfloat16 products take channels in pairs. */
static kn_dtype product_type(const kn_vae *vae, int32_t channels)
{
    return channels % 2 == 0 ? vae->compute : KN_F32;
}

static kn_conv_args shape_of(const kn_vae_conv *conv)
{
    kn_conv_args shape = {.kt = conv->kt, .kh = conv->k, .kw = conv->k, .mode = conv->mode, .out.channels = conv->out};
    shape.in[conv->kt - 1] = (kn_frame){.channels = conv->in, .dtype = conv->dtype};
    return shape;
}

static kn_status load_conv(kn_loader *l, kn_vae *vae, kn_vae_conv *conv, int32_t *histories, const char *prefix,
                           int32_t kt, int32_t k, int32_t in, int32_t out, kn_dtype dtype, kn_conv_mode mode,
                           int32_t parts, int32_t part)
{
    *conv = (kn_vae_conv){.kt = kt, .k = k, .in = in, .out = out, .mode = mode, .dtype = dtype, .history = -1};
    if (kt == 3 && part == 0) conv->history = (*histories)++;
    if (kt == 3 && part > 0) conv->history = *histories - 1; /* parts look at the same frames */
    if (*histories > KN_VAE_HISTORIES_MAX)
        return kn_fail(KN_UNSUPPORTED, "the autoencoder has more than %d temporal convolutions", KN_VAE_HISTORIES_MAX);
    const kn_conv_args shape = shape_of(conv);
    const bool planar = mode != KN_CONV_SAME;
    const size_t bytes = vae->ops->conv_weight_bytes(&shape);
    if (!vae->keeps_all && mode == KN_CONV_SAME && bytes >= KN_VAE_LAZY_BYTES) {
        kn_status st = kn_loader_conv_source(l, &conv->source, prefix, &shape, planar, parts, part);
        if (bytes > vae->lazy_bytes) vae->lazy_bytes = bytes;
        return st == KN_OK ? kn_loader_conv_bias(l, &conv->layer.bias, prefix, out, parts, part) : st;
    }
    return kn_loader_conv(l, &conv->layer, prefix, &shape, planar, parts, part);
}

static kn_status load_gamma(kn_loader *l, const float **out, const char *prefix, const char *suffix, int32_t channels)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    return kn_loader_vector(l, out, name, 4, (int64_t[]){channels, 1, 1, 1}, KN_F32);
}

static kn_status load_resnet(kn_loader *l, kn_vae *vae, kn_vae_resnet *r, int32_t *histories, const char *prefix,
                             int32_t in, int32_t out)
{
    kn_status st = KN_OK;
    char name[NAME_BYTES];
    KN_TRY(load_gamma(l, &r->norm1, prefix, "norm1.gamma", in));
    KN_TRY(load_gamma(l, &r->norm2, prefix, "norm2.gamma", out));
    snprintf(name, sizeof name, "%s.conv1", prefix);
    KN_TRY(load_conv(l, vae, &r->conv1, histories, name, 3, 3, in, out, product_type(vae, in), KN_CONV_SAME, 1, 0));
    snprintf(name, sizeof name, "%s.conv2", prefix);
    KN_TRY(load_conv(l, vae, &r->conv2, histories, name, 3, 3, out, out, product_type(vae, out), KN_CONV_SAME, 1, 0));
    r->has_shortcut = in != out;
    if (r->has_shortcut) {
        snprintf(name, sizeof name, "%s.conv_shortcut", prefix);
        KN_TRY(load_conv(l, vae, &r->shortcut, histories, name, 1, 1, in, out, KN_F32, KN_CONV_SAME, 1, 0));
    }
fail:
    return st;
}

static kn_status load_attention(kn_loader *l, kn_vae_attention *a, const char *prefix, int32_t channels)
{
    kn_status st = KN_OK;
    const int64_t c = channels;
    char name[NAME_BYTES];
    a->channels = channels;
    snprintf(name, sizeof name, "%s.norm.gamma", prefix);
    KN_TRY(kn_loader_vector(l, &a->norm, name, 3, (int64_t[]){c, 1, 1}, KN_F32));
    snprintf(name, sizeof name, "%s.to_qkv", prefix);
    KN_TRY(kn_loader_linear(l, &a->qkv, name, 4, (int64_t[]){3 * c, c, 1, 1}, 3 * c, KN_F32, true));
    a->proj = (kn_vae_conv){.kt = 1, .k = 1, .in = channels, .out = channels, .dtype = KN_F32, .history = -1};
    kn_conv_args shape = {.kt = 1, .kh = 1, .kw = 1, .out.channels = channels};
    shape.in[0] = (kn_frame){.channels = channels, .dtype = KN_F32};
    snprintf(name, sizeof name, "%s.proj", prefix);
    KN_TRY(kn_loader_conv(l, &a->proj.layer, name, &shape, true, 1, 0));
fail:
    return st;
}

static kn_status load_middle(kn_loader *l, kn_vae *vae, kn_vae_network *net, const char *half, int32_t channels)
{
    kn_status st = KN_OK;
    kn_vae_middle *m = &net->middle;
    char name[PREFIX_BYTES];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", half);
    KN_TRY(load_resnet(l, vae, &m->before, &net->histories, name, channels, channels));
    snprintf(name, sizeof name, "%s.mid_block.attentions.0", half);
    KN_TRY(load_attention(l, &m->attention, name, channels));
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", half);
    KN_TRY(load_resnet(l, vae, &m->after, &net->histories, name, channels, channels));
fail:
    return st;
}

/* ---- halves ---- */

static kn_status load_upsampler(kn_loader *l, kn_vae *vae, kn_vae_network *net, kn_vae_resample *r, const char *prefix,
                                int32_t channels)
{
    kn_status st = KN_OK;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.resample.1", prefix);
    KN_TRY(load_conv(l, vae, &r->space, &net->histories, name, 1, 3, channels, channels / 2, KN_F32, KN_CONV_UP_NEAREST,
                     1, 0));
    if (!r->temporal) return KN_OK;
    snprintf(name, sizeof name, "%s.time_conv", prefix);
    for (int part = 0; part < 2; part++) /* output channels [0, C) are the even frame, [C, 2C) the odd one */
        KN_TRY(load_conv(l, vae, &r->time[part], &net->histories, name, 3, 1, channels, channels, KN_F32, KN_CONV_SAME,
                         2, part));
fail:
    return st;
}

/* decoder.conv_out (3, c, 3, 3, 3) with its temporal taps as outputs: (9, c, 1, 3, 3). */
static kn_status load_to_pixels(kn_loader *l, kn_vae *vae, kn_vae_network *net)
{
    kn_status st = KN_OK;
    kn_vae_out_conv *out = &net->to_pixels;
    const int32_t c = net->norm_out_channels, pixels = KN_VAE_PIXEL_CHANNELS, plane = 3 * 3;
    float *order = NULL;
    kn_tensor weight, bias;
    out->taps = (kn_vae_conv){
        .kt = 1, .k = 3, .in = c, .out = KN_VAE_TAPS * pixels, .dtype = product_type(vae, c), .history = -1};
    const kn_conv_args shape = shape_of(&out->taps);
    KN_TRY(kn_weights_expect(l->weights, "decoder.conv_out.weight", 5, (int64_t[]){pixels, c, KN_VAE_TAPS, 3, 3},
                             &weight));
    KN_TRY(kn_weights_expect(l->weights, "decoder.conv_out.bias", 1, (int64_t[]){pixels}, &bias));
    void *memory = kn_arena_take(&l->arena, vae->ops->conv_weight_bytes(&shape));
    if (!memory) return KN_OK; /* counting */
    order = kn_alloc_array((size_t)kn_tensor_count(&weight), sizeof *order);
    if (!order) return KN_NOMEM;
    for (int64_t i = 0; i < kn_tensor_count(&weight); i++) {
        const int64_t at = i % plane, t = i / plane % KN_VAE_TAPS, channel = i / (plane * KN_VAE_TAPS) % c;
        const int64_t n = i / ((int64_t)plane * KN_VAE_TAPS * c);
        order[((t * pixels + n) * c + channel) * plane + at] = kn_tensor_value(&weight, i);
    }
    const kn_weight source = {.data = order, .n = out->taps.out, .k = (int64_t)c * plane, .dtype = KN_F32};
    KN_TRY(vae->ops->conv_weight_prepare(l->stream, &out->taps.layer.w, memory, &source, &shape));
    KN_TRY(kn_stream_synchronize(l->stream));
    out->scale = 0.5f;
    for (int32_t i = 0; i < pixels; i++) out->shift[i] = 0.5f + 0.5f * kn_tensor_value(&bias, i);
fail:
    kn_free(order);
    return st;
}

kn_status kn_vae_load_decoder(kn_loader *l, kn_vae *vae)
{
    kn_status st = KN_OK;
    const kn_wan_vae_config *c = &vae->config;
    kn_vae_network *net = &vae->decoder;
    char name[PREFIX_BYTES];
    const int32_t top = c->decoder_base_dim * c->dim_mult[c->stages - 1];
    net->histories = 0;
    KN_TRY(load_conv(l, vae, &net->quant, &net->histories, "post_quant_conv", 1, 1, c->z_dim, c->z_dim, KN_F32,
                     KN_CONV_SAME, 1, 0));
    KN_TRY(load_conv(l, vae, &net->conv_in, &net->histories, "decoder.conv_in", 3, 3, c->z_dim, top, KN_F32,
                     KN_CONV_SAME, 1, 0));
    KN_TRY(load_middle(l, vae, net, "decoder", top));
    int32_t in = top;
    for (int i = 0; i < c->stages; i++) {
        kn_vae_stage *stage = &net->stages[i];
        const int32_t out = c->decoder_base_dim * c->dim_mult[c->stages - 1 - i];
        stage->resnet_count = c->num_res_blocks + 1;
        for (int j = 0; j < stage->resnet_count; j++) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", i, j);
            KN_TRY(load_resnet(l, vae, &stage->resnets[j], &net->histories, name, j == 0 ? in : out, out));
        }
        stage->resamples = i + 1 < c->stages;
        if (stage->resamples) {
            stage->resample.temporal = c->temporal_downsample[c->stages - 2 - i];
            stage->resample.counter = i;
            snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0", i);
            KN_TRY(load_upsampler(l, vae, net, &stage->resample, name, out));
        }
        in = out / 2;
        net->norm_out_channels = out;
    }
    KN_TRY(load_gamma(l, &net->norm_out, "decoder", "norm_out.gamma", net->norm_out_channels));
    KN_TRY(load_to_pixels(l, vae, net));
fail:
    return st;
}

static kn_status load_downsampler(kn_loader *l, kn_vae *vae, kn_vae_network *net, kn_vae_resample *r,
                                  const char *prefix, int32_t channels)
{
    kn_status st = KN_OK;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.resample.1", prefix);
    KN_TRY(load_conv(l, vae, &r->space, &net->histories, name, 1, 3, channels, channels, KN_F32, KN_CONV_DOWN, 1, 0));
    if (!r->temporal) return KN_OK;
    snprintf(name, sizeof name, "%s.time_conv", prefix);
    KN_TRY(load_conv(l, vae, &r->time[0], &net->histories, name, 3, 1, channels, channels, KN_F32, KN_CONV_SAME, 1, 0));
fail:
    return st;
}

kn_status kn_vae_load_encoder(kn_loader *l, kn_vae *vae)
{
    kn_status st = KN_OK;
    const kn_wan_vae_config *c = &vae->config;
    kn_vae_network *net = &vae->encoder;
    char name[PREFIX_BYTES];
    int32_t in = c->base_dim, block = 0;
    net->histories = 0;
    KN_TRY(load_conv(l, vae, &net->conv_in, &net->histories, "encoder.conv_in", 3, 3, KN_VAE_PIXEL_CHANNELS, in, KN_F32,
                     KN_CONV_SAME, 1, 0));
    for (int i = 0; i < c->stages; i++) { /* down_blocks is one flat list over all stages */
        kn_vae_stage *stage = &net->stages[i];
        const int32_t out = c->base_dim * c->dim_mult[i];
        stage->resnet_count = c->num_res_blocks;
        for (int j = 0; j < stage->resnet_count; j++, block++, in = out) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d", block);
            KN_TRY(load_resnet(l, vae, &stage->resnets[j], &net->histories, name, in, out));
        }
        stage->resamples = i + 1 < c->stages;
        if (stage->resamples) {
            stage->resample.temporal = c->temporal_downsample[i];
            stage->resample.counter = i;
            snprintf(name, sizeof name, "encoder.down_blocks.%d", block++);
            KN_TRY(load_downsampler(l, vae, net, &stage->resample, name, out));
        }
    }
    net->norm_out_channels = in;
    KN_TRY(load_middle(l, vae, net, "encoder", in));
    KN_TRY(load_gamma(l, &net->norm_out, "encoder", "norm_out.gamma", in));
    KN_TRY(load_conv(l, vae, &net->conv_out, &net->histories, "encoder.conv_out", 3, 3, in, 2 * c->z_dim,
                     product_type(vae, in), KN_CONV_SAME, 1, 0));
    KN_TRY(load_conv(l, vae, &net->quant, &net->histories, "quant_conv", 1, 1, 2 * c->z_dim, 2 * c->z_dim, KN_F32,
                     KN_CONV_SAME, 1, 0));
fail:
    return st;
}

static kn_status load_halves(kn_loader *l, void *context)
{
    kn_status st = KN_OK;
    kn_vae *vae = context;
    if (vae->halves & KN_VAE_DECODER) KN_TRY(kn_vae_load_decoder(l, vae));
    if (vae->halves & KN_VAE_ENCODER) KN_TRY(kn_vae_load_encoder(l, vae));
    vae->lazy = kn_arena_take(&l->arena, vae->lazy_bytes);
fail:
    return st;
}

kn_status kn_vae_create(kn_vae **out, const kn_wan_vae_config *config, const kn_weights *weights, kn_stream *stream,
                        kn_dtype compute, int halves)
{
    kn_status st = KN_OK;
    if (config->num_res_blocks + 1 > KN_VAE_RESNETS_MAX)
        return kn_fail(KN_UNSUPPORTED, "vae num_res_blocks is %d; at most %d", config->num_res_blocks,
                       KN_VAE_RESNETS_MAX - 1);
    kn_device_info info;
    kn_vae *vae = kn_alloc(sizeof *vae);
    if (!vae) return KN_NOMEM;
    vae->config = *config;
    vae->compute = compute;
    vae->weights = weights;
    vae->device = kn_stream_device(stream);
    vae->ops = kn_device_ops(vae->device);
    vae->halves = halves;
    kn_device_describe(vae->device, &info);
    vae->keeps_all = !info.host_memory;
    KN_TRY(kn_loader_run(weights, stream, load_halves, vae, NULL, &vae->weight_bytes));
    *out = vae;
    return KN_OK;
fail:
    kn_vae_destroy(&vae);
    return st;
}

kn_status kn_vae_prepare(kn_vae *vae, kn_stream *stream)
{
    if (vae->memory) return KN_OK;
    return kn_loader_run(vae->weights, stream, load_halves, vae, &vae->memory, &vae->weight_bytes);
}

size_t kn_vae_weight_bytes(const kn_vae *vae)
{
    return vae->weight_bytes;
}

void kn_vae_destroy(kn_vae **handle)
{
    kn_vae *vae = *handle;
    if (!vae) return;
    kn_device_free(vae->device, vae->memory);
    kn_free(vae);
    *handle = NULL;
}

int32_t kn_vae_spatial_factor(const kn_wan_vae_config *config)
{
    return 1 << (config->stages - 1);
}

int32_t kn_vae_temporal_factor(const kn_wan_vae_config *config)
{
    int32_t factor = 1;
    for (int i = 0; i + 1 < config->stages; i++) factor *= config->temporal_downsample[i] ? 2 : 1;
    return factor;
}

int64_t kn_vae_frames(const kn_wan_vae_config *config, int64_t latent_frames)
{
    return (latent_frames - 1) * kn_vae_temporal_factor(config) + 1;
}
