/* SPDX-License-Identifier: Apache-2.0
 *
 * Layers of the Wan 2.1 autoencoder as they act on one frame at a time, shared by
 * decoder and encoder. Internal to the autoencoder's files.
 *
 * The stream between layers ("x") is float32 with a border of one zero pixel. A
 * layer that takes x owns it: it returns it to the pool or passes it on. */
#ifndef KN_ENGINE_VAE_INTERNAL_H
#define KN_ENGINE_VAE_INTERNAL_H

#include "engine/loader.h"
#include "engine/vae_frames.h"
#include "engine/vae_wan.h"

/* A prepared weight at least this large, on a device that reads host memory, is not kept: it belongs to a layer of
 * small frames and many channels, whose products (thousands per weight) dwarf the time to lay it out again. */
#define KN_VAE_LAZY_BYTES ((size_t)3 << 20)

enum { KN_VAE_RESNETS_MAX = 8, KN_VAE_HISTORIES_MAX = 128, KN_VAE_PIXEL_CHANNELS = 3 };

/* One convolution. A temporal one (kt = 3) has a history: its last two input frames. */
typedef struct kn_vae_conv {
    kn_conv_layer layer;
    int32_t kt, k; /* k x k pixels */
    int32_t in, out;
    kn_conv_mode mode;
    kn_dtype dtype;   /* of its input */
    int32_t history;  /* index; -1 for kt = 1 */
    kn_weight source; /* data not NULL: laid out from the mapping before each use, see KN_VAE_LAZY_BYTES */
} kn_vae_conv;

/* The last convolution, from many channels to three. Its temporal taps are three groups of outputs of one plane
 * convolution, and what is kept of the past is their sums, not their input: three planes in place of 96. */
enum { KN_VAE_TAPS = 3 };
typedef struct kn_vae_out_conv {
    kn_vae_conv taps;                        /* in -> KN_VAE_TAPS * 3 channels, oldest tap first; without bias */
    float scale, shift[KN_PICTURE_CHANNELS]; /* of the sum: from -1..1 to 0..1, with the bias */
} kn_vae_out_conv;

typedef struct kn_vae_resnet {
    const float *norm1, *norm2; /* [in], [out] */
    kn_vae_conv conv1, conv2, shortcut;
    bool has_shortcut; /* in != out */
} kn_vae_resnet;

typedef struct kn_vae_attention {
    const float *norm; /* [channels] */
    kn_linear qkv;     /* (3 channels, channels) */
    kn_vae_conv proj;
    int32_t channels;
} kn_vae_attention;

typedef struct kn_vae_middle {
    kn_vae_resnet before, after;
    kn_vae_attention attention;
} kn_vae_middle;

/* Change of resolution between stages. time: decoder, the even and the odd frame's half; encoder, time[0] only. */
typedef struct kn_vae_resample {
    kn_vae_conv space, time[2];
    bool temporal;
    int32_t counter; /* index of the run's frame counter, for `temporal` */
} kn_vae_resample;

typedef struct kn_vae_stage {
    kn_vae_resnet resnets[KN_VAE_RESNETS_MAX];
    int32_t resnet_count;
    kn_vae_resample resample;
    bool resamples; /* all stages but the last */
} kn_vae_stage;

typedef struct kn_vae_network {
    kn_vae_conv quant;             /* post_quant_conv or quant_conv */
    kn_vae_conv conv_in, conv_out; /* conv_out: the encoder's */
    kn_vae_out_conv to_pixels;     /* the decoder's */
    kn_vae_middle middle;
    kn_vae_stage stages[KN_VAE_STAGES_MAX];
    const float *norm_out;
    int32_t norm_out_channels;
    int32_t histories; /* temporal convolutions */
} kn_vae_network;

struct kn_vae {
    kn_wan_vae_config config;
    kn_dtype compute;
    kn_device *device;
    const kn_ops *ops;
    const kn_weights *weights;
    size_t weight_bytes;
    void *memory;      /* prepared weights of the halves; NULL before */
    bool keeps_all;    /* no weight is laid out before each use */
    size_t lazy_bytes; /* largest weight that is laid out before each use */
    void *lazy;        /* room for it, in memory */
    int halves;
    kn_vae_network decoder, encoder;
};

/* One pass over a clip: buffers and histories. */
typedef struct kn_vae_run {
    const kn_vae *vae;
    kn_stream *stream;
    kn_frame_pool pool;
    kn_frame history[KN_VAE_HISTORIES_MAX][2]; /* older, newer; empty before the clip */
    int64_t seen[KN_VAE_STAGES_MAX];           /* frames each temporal resample has been given */
    kn_matrix qkv;                             /* [h w, 3 channels] of the middle attention; h: of the whole picture */
    kn_group everyone;                         /* ranks of the run */
    kn_group group;                            /* those with rows of the picture: the first of them */
    kn_share rows;                             /* this rank's, of the latent's h */
    void *attention_workspace;
    double flop; /* of all convolutions and products so far */
} kn_vae_run;

/* ---- loading (vae_wan.c) ---- */

kn_status kn_vae_load_decoder(kn_loader *loader, kn_vae *vae);
kn_status kn_vae_load_encoder(kn_loader *loader, kn_vae *vae);

/* ---- running (vae_layers.c) ---- */

/* Which rows of a latent h high are this rank's; none for a rank that is not needed. */
void kn_vae_run_share(kn_vae_run *run, const kn_group *group, int32_t h);

/* Something that every rank has its rows of, made whole again. It has some parts, planes or one picture of all
 * channels, and in each `line` bytes for a row of the latent. */
typedef struct kn_vae_shares {
    const void *own;       /* [parts, this rank's rows, line] */
    void *whole;           /* [parts, all rows, line]; where it is wanted */
    int32_t parts, height; /* height: all rows, of the latent */
    size_t line;
    bool for_all; /* on every rank of the run, else on the first one */
} kn_vae_shares;

/* Called by every rank with rows, and by all others that it is for. */
kn_status kn_vae_run_gather(const kn_vae_run *run, const kn_vae_shares *shares);

/* Takes the middle attention's buffers for whole pictures of h x w pixels from the pool's arena. */
void kn_vae_run_reserve(kn_vae_run *run, const kn_vae_attention *attention, int32_t h, int32_t w);

kn_status kn_vae_take(kn_vae_run *run, kn_frame *out, int32_t h, int32_t w, int32_t channels, kn_dtype dtype);

/* A convolution without history (kt = 1). */
kn_status kn_vae_conv_run(kn_vae_run *run, const kn_vae_conv *conv, kn_frame in, kn_frame out, kn_frame residual);

/* A temporal convolution over its history and `in`; the history is unchanged. */
kn_status kn_vae_conv_look(kn_vae_run *run, const kn_vae_conv *conv, kn_frame in, kn_frame out, kn_frame residual);

/* `in` becomes the newest frame of the history, which owns it from now on. */
void kn_vae_conv_remember(kn_vae_run *run, const kn_vae_conv *conv, kn_frame *in);

/* RMS norm over channels, with SiLU; `out` is a fresh frame in the type of the convolution that reads it. */
kn_status kn_vae_norm(kn_vae_run *run, kn_frame x, const float *gamma, bool silu, kn_frame out);

kn_status kn_vae_resnet_run(kn_vae_run *run, const kn_vae_resnet *resnet, kn_frame *x);
kn_status kn_vae_middle_run(kn_vae_run *run, const kn_vae_middle *middle, kn_frame *x);

#endif
