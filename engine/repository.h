/* SPDX-License-Identifier: Apache-2.0
 *
 * A model folder in diffusers layout, read and checked: model_index.json, each
 * component's config.json and scheduler_config.json. Unknown keys are
 * tolerated; a wrong type, a missing required key or a value outside what the
 * networks can run is refused, naming file, key and limit.
 *
 * Weights are not opened here; `kn_weights_open(root/component, stem)` does that. */
#ifndef KN_ENGINE_REPOSITORY_H
#define KN_ENGINE_REPOSITORY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { KN_LATENT_CHANNELS_MAX = 64, KN_VAE_STAGES_MAX = 8 };

/* transformers UMT5Config (encoder). */
typedef struct kn_umt5_config {
    int32_t vocab_size;
    int32_t d_model;
    int32_t d_kv; /* head size; heads * d_kv need not equal d_model */
    int32_t d_ff;
    int32_t num_heads;
    int32_t num_layers;
    int32_t relative_attention_num_buckets;  /* 32 */
    int32_t relative_attention_max_distance; /* 128 */
    double layer_norm_epsilon;
    int32_t pad_token_id, eos_token_id;
} kn_umt5_config;

/* diffusers WanTransformer3DModel, text-to-video subset. */
typedef struct kn_wan_dit_config {
    int32_t num_attention_heads;
    int32_t attention_head_dim;
    int32_t in_channels, out_channels; /* out null in the file: in */
    int32_t text_dim;
    int32_t freq_dim;
    int32_t ffn_dim;
    int32_t num_layers;
    bool cross_attn_norm;
    double eps;
    int32_t rope_max_seq_len;
} kn_wan_dit_config;

/* diffusers AutoencoderKLWan, the Wan 2.1 form (is_residual false, patch_size null). */
typedef struct kn_wan_vae_config {
    int32_t base_dim, decoder_base_dim; /* decoder null: base */
    int32_t z_dim;
    int32_t stages; /* entries of dim_mult */
    int32_t dim_mult[KN_VAE_STAGES_MAX];
    int32_t num_res_blocks;
    bool temporal_downsample[KN_VAE_STAGES_MAX]; /* stages - 1 entries ("temperal_downsample") */
    float latents_mean[KN_LATENT_CHANNELS_MAX];  /* [z_dim] */
    float latents_std[KN_LATENT_CHANNELS_MAX];
} kn_wan_vae_config;

typedef enum kn_sampler_kind { KN_SAMPLER_UNIPC, KN_SAMPLER_EULER } kn_sampler_kind;

/* scheduler_config.json of UniPCMultistepScheduler (flow prediction, flow sigmas, bh2, predict_x0) or
 * FlowMatchEulerDiscreteScheduler. Settings outside what solver.h implements are refused. */
typedef struct kn_sampler_config {
    kn_sampler_kind kind;
    int32_t num_train_timesteps; /* 1000 */
    int32_t solver_order;        /* UniPC: 1 or 2 */
    bool lower_order_final;      /* UniPC */
    double shift;                /* flow_shift or shift */
    bool use_dynamic_shifting;   /* Euler: refused unless false */
} kn_sampler_config;

typedef enum kn_component { KN_TEXT_ENCODER, KN_TRANSFORMER, KN_VAE, KN_COMPONENT_COUNT } kn_component;

typedef struct kn_repository {
    char *root;                                    /* as given */
    char *class_name;                              /* "WanPipeline" */
    char *component_directory[KN_COMPONENT_COUNT]; /* root/text_encoder, ... */
    char *tokenizer_directory;
    kn_umt5_config text;
    kn_wan_dit_config dit;
    kn_wan_vae_config vae;
    kn_sampler_config sampler;
    int32_t default_width, default_height, default_frames,
        default_steps; /* from an optional kinora.json, else published defaults */
    double default_guidance;
    double default_fps;
} kn_repository;

/* KN_NOT_FOUND: no folder or no model_index.json. KN_UNSUPPORTED: a pipeline or component class this engine does
 * not run (names it). KN_CORRUPT: a malformed file. */
kn_status kn_repository_open(kn_repository **out, const char *directory);

/* Real shapes without files, for benchmarks: "wan2.1-1.3b", "wan2.1-14b". `layers` > 0 replaces the transformer's
 * and text encoder's layer count. KN_NOT_FOUND lists the names. `root` is the name; the
 * directories are NULL. */
kn_status kn_repository_preset(kn_repository **out, const char *name, int32_t layers);

void kn_repository_close(kn_repository **repository);

/* File stem of a component's weights: "model" or "diffusion_pytorch_model". */
const char *kn_component_stem(kn_component component);
const char *kn_component_name(kn_component component); /* "text_encoder", "transformer", "vae" */

#endif
