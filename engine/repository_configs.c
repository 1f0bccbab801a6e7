/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration files of a Wan 2.1 text-to-video model: which keys matter,
 * their defaults in diffusers 0.42 and transformers, and the values this engine
 * runs. Keys that change nothing here (dropout, betas of unused schedules) are
 * not looked at. The limits are far above every published model and low enough
 * that products of a few of them stay inside 64 bits. */
#include "engine/repository_configs.h"

#include <stdio.h>
#include <string.h>

#include "engine/sampling.h"

enum {
    WIDTH_MAX = 65536,    /* elements of one token, model or hidden */
    HIDDEN_MAX = 1 << 20, /* feed-forward width */
    VOCABULARY_MAX = 1 << 24,
    LAYERS_MAX = 1024,
    HEADS_MAX = 1024,
    HEAD_SIZE_MAX = 256, /* the attention kernels' limit */
    HEAD_SIZE_MIN = 6,   /* one rotated pair for each of three axes */
    BUCKETS_MAX = 1024,
    POSITIONS_MAX = 65536, /* kn_position holds 16 bits */
    TRAIN_TIMESTEPS_MAX = 100000,
};

#define EPSILON_MIN 1e-12
#define EPSILON_MAX 1e-2
#define SHIFT_MIN 0.01
#define SHIFT_MAX 100.0

#define RULES(rules) (rules), sizeof(rules) / sizeof(rules)[0]

/* ---- model_index.json ---- */

/* A component is [library, class]. */
static kn_status component_class(const kn_config *config, const char *key, const char **out)
{
    const json_t *pair = json_object_get(config->object, key);
    if (!pair) return kn_fail(KN_CORRUPT, "%s: component \"%s\" is missing", config->file, key);
    const char *name = json_string_value(json_array_get(pair, 1));
    if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0)) || !name) {
        char text[48];
        kn_config_describe(config, key, text, sizeof text);
        return kn_fail(KN_CORRUPT, "%s: component \"%s\" is %s, not [library, class]", config->file, key, text);
    }
    *out = name;
    return KN_OK;
}

static kn_status component_is(const kn_config *config, const char *key, const char *first, const char *second,
                              int *which)
{
    const char *name = NULL;
    kn_status st = component_class(config, key, &name);
    if (st != KN_OK) return st;
    *which = strcmp(name, first) == 0 ? 0 : second && strcmp(name, second) == 0 ? 1 : -1;
    if (*which >= 0) return KN_OK;
    char text[64];
    snprintf(text, sizeof text, "%s", name);
    kn_one_line(text);
    return kn_fail(KN_UNSUPPORTED, "%s: %s is a %s; this engine runs %s%s%s", config->file, key, text, first,
                   second ? " or " : "", second ? second : "");
}

kn_status kn_model_index_parse(const kn_config *config, kn_model_index *out)
{
    kn_status st = KN_OK;
    int which = 0;
    static const kn_config_rule rules[] = {
        {.key = "transformer_2", .json = "[null,null]", .or_none = true},
        {.key = "boundary_ratio", .json = "null"},                     /* two experts: Wan 2.2 A14B */
        {.key = "expand_timesteps", .json = "false", .or_none = true}, /* a timestep per token: Wan 2.2 TI2V */
    };
    KN_TRY(kn_config_string(config, "_class_name", NULL, &out->class_name));
    if (strcmp(out->class_name, "WanPipeline") != 0) {
        char text[64];
        kn_config_describe(config, "_class_name", text, sizeof text);
        st = kn_fail(KN_UNSUPPORTED, "%s: the pipeline is %s; this engine runs WanPipeline", config->file, text);
        goto fail;
    }
    KN_TRY(component_is(config, "text_encoder", "UMT5EncoderModel", NULL, &which));
    KN_TRY(component_is(config, "tokenizer", "T5TokenizerFast", "T5Tokenizer", &which));
    KN_TRY(component_is(config, "transformer", "WanTransformer3DModel", NULL, &which));
    KN_TRY(component_is(config, "vae", "AutoencoderKLWan", NULL, &which));
    KN_TRY(component_is(config, "scheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", &which));
    out->sampler = which == 0 ? KN_SAMPLER_UNIPC : KN_SAMPLER_EULER;
    KN_TRY(kn_config_require(config, RULES(rules)));

fail:
    return st;
}

/* ---- text_encoder/config.json ---- */

/* T5 keeps one relative bias table, in its first layer, for all layers; UMT5 has one in each. */
static kn_status check_text_model(const kn_config *config)
{
    const char *type = NULL;
    kn_status st = kn_config_string(config, "model_type", "umt5", &type);
    if (st != KN_OK) return st;
    const json_t *architectures = json_object_get(config->object, "architectures");
    const char *class_name = json_string_value(json_array_get(architectures, 0));
    if (strcmp(type, "umt5") == 0 && (!class_name || strncmp(class_name, "UMT5", 4) == 0)) return KN_OK;
    char text[64];
    kn_config_describe(config, strcmp(type, "umt5") != 0 ? "model_type" : "architectures", text, sizeof text);
    return kn_fail(KN_UNSUPPORTED,
                   "%s: the text encoder is %s; this engine runs UMT5, which has a relative bias in every layer",
                   config->file, text);
}

kn_status kn_umt5_config_parse(const kn_config *config, kn_umt5_config *out)
{
    static const kn_config_rule rules[] = {
        {.key = "feed_forward_proj", .json = "\"gated-gelu\""},
        {.key = "dense_act_fn", .json = "\"gelu_new\""},
        {.key = "is_gated_act", .json = "true"},
        {.key = "is_decoder", .json = "false"},
    };
    kn_status st = KN_OK;
    const int32_t buckets = 32, distance = 128, pad = 0, eos = 1;
    const double epsilon = 1e-6;
    kn_umt5_config c = {0};
    KN_TRY(check_text_model(config));
    KN_TRY(kn_config_require(config, RULES(rules)));
    KN_TRY(kn_config_int(config, "vocab_size", 1, VOCABULARY_MAX, NULL, &c.vocab_size));
    KN_TRY(kn_config_int(config, "d_model", 1, WIDTH_MAX, NULL, &c.d_model));
    KN_TRY(kn_config_int(config, "d_kv", 1, HEAD_SIZE_MAX, NULL, &c.d_kv));
    KN_TRY(kn_config_int(config, "d_ff", 1, HIDDEN_MAX, NULL, &c.d_ff));
    KN_TRY(kn_config_int(config, "num_heads", 1, HEADS_MAX, NULL, &c.num_heads));
    KN_TRY(kn_config_int(config, "num_layers", 1, LAYERS_MAX, NULL, &c.num_layers));
    KN_TRY(kn_config_int(config, "relative_attention_num_buckets", 4, BUCKETS_MAX, &buckets,
                         &c.relative_attention_num_buckets));
    KN_TRY(kn_config_int(config, "relative_attention_max_distance", 1, 1 << 20, &distance,
                         &c.relative_attention_max_distance));
    KN_TRY(kn_config_double(config, "layer_norm_epsilon", EPSILON_MIN, EPSILON_MAX, &epsilon, &c.layer_norm_epsilon));
    KN_TRY(kn_config_int(config, "pad_token_id", 0, c.vocab_size - 1, &pad, &c.pad_token_id));
    KN_TRY(kn_config_int(config, "eos_token_id", 0, c.vocab_size - 1, &eos, &c.eos_token_id));
    if ((int64_t)c.num_heads * c.d_kv > WIDTH_MAX) {
        st =
            kn_fail(KN_CORRUPT, "%s: num_heads %d x d_kv %d is above %d", config->file, c.num_heads, c.d_kv, WIDTH_MAX);
        goto fail;
    }
    /* Half the buckets are for each direction, half of those for exact distances; the rest grow up to the maximum. */
    if (c.relative_attention_num_buckets % 4 != 0 ||
        c.relative_attention_max_distance <= c.relative_attention_num_buckets / 4) {
        st = kn_fail(KN_CORRUPT,
                     "%s: relative_attention_num_buckets %d is not a multiple of 4, or relative_attention_max_distance "
                     "%d is not above a quarter of it",
                     config->file, c.relative_attention_num_buckets, c.relative_attention_max_distance);
        goto fail;
    }
    *out = c;

fail:
    return st;
}

/* ---- transformer/config.json ---- */

static kn_status check_dit_shape(const kn_config *config, const kn_wan_dit_config *c)
{
    if (c->attention_head_dim % 2 != 0)
        return kn_fail(KN_CORRUPT, "%s: \"attention_head_dim\" is %d, not even", config->file, c->attention_head_dim);
    if (c->freq_dim % 2 != 0) return kn_fail(KN_CORRUPT, "%s: \"freq_dim\" is %d, not even", config->file, c->freq_dim);
    if ((int64_t)c->num_attention_heads * c->attention_head_dim > WIDTH_MAX)
        return kn_fail(KN_CORRUPT, "%s: num_attention_heads %d x attention_head_dim %d is above %d", config->file,
                       c->num_attention_heads, c->attention_head_dim, WIDTH_MAX);
    if (c->in_channels != c->out_channels)
        return kn_fail(KN_UNSUPPORTED,
                       "%s: in_channels %d differs from out_channels %d (image-to-video); this engine runs "
                       "text-to-video models",
                       config->file, c->in_channels, c->out_channels);
    return KN_OK;
}

kn_status kn_wan_dit_config_parse(const kn_config *config, kn_wan_dit_config *out)
{
    static const kn_config_rule rules[] = {
        {.key = "_class_name", .json = "\"WanTransformer3DModel\""},
        {.key = "patch_size", .json = "[1,2,2]"},
        {.key = "qk_norm", .json = "\"rms_norm_across_heads\""},
        /* Set in image-to-video models only. */
        {.key = "image_dim", .json = "null"},
        {.key = "added_kv_proj_dim", .json = "null"},
        {.key = "pos_embed_seq_len", .json = "null"},
        {.key = "vace_layers", .json = "null"},
    };
    kn_status st = KN_OK;
    const int32_t frequencies = 256, positions = 1024;
    const bool yes = true;
    const double epsilon = 1e-6;
    kn_wan_dit_config c = {0};
    KN_TRY(kn_config_require(config, RULES(rules)));
    KN_TRY(kn_config_int(config, "num_attention_heads", 1, HEADS_MAX, NULL, &c.num_attention_heads));
    KN_TRY(kn_config_int(config, "attention_head_dim", HEAD_SIZE_MIN, HEAD_SIZE_MAX, NULL, &c.attention_head_dim));
    KN_TRY(kn_config_int(config, "in_channels", 1, KN_LATENT_CHANNELS_MAX, NULL, &c.in_channels));
    c.out_channels = c.in_channels;
    if (!kn_config_none(config, "out_channels"))
        KN_TRY(kn_config_int(config, "out_channels", 1, KN_LATENT_CHANNELS_MAX, NULL, &c.out_channels));
    KN_TRY(kn_config_int(config, "text_dim", 1, WIDTH_MAX, NULL, &c.text_dim));
    KN_TRY(kn_config_int(config, "freq_dim", 2, WIDTH_MAX, &frequencies, &c.freq_dim));
    KN_TRY(kn_config_int(config, "ffn_dim", 1, HIDDEN_MAX, NULL, &c.ffn_dim));
    KN_TRY(kn_config_int(config, "num_layers", 1, LAYERS_MAX, NULL, &c.num_layers));
    KN_TRY(kn_config_bool(config, "cross_attn_norm", &yes, &c.cross_attn_norm));
    KN_TRY(kn_config_double(config, "eps", EPSILON_MIN, EPSILON_MAX, &epsilon, &c.eps));
    KN_TRY(kn_config_int(config, "rope_max_seq_len", 1, POSITIONS_MAX, &positions, &c.rope_max_seq_len));
    KN_TRY(check_dit_shape(config, &c));
    *out = c;

fail:
    return st;
}

/* ---- vae/config.json ---- */

static kn_status parse_vae_stages(const kn_config *config, kn_wan_vae_config *c)
{
    kn_status st = KN_OK;
    const json_t *multipliers = NULL, *temporal = NULL;
    KN_TRY(kn_config_array(config, "dim_mult", 1, KN_VAE_STAGES_MAX, &multipliers));
    c->stages = (int32_t)json_array_size(multipliers);
    for (int32_t i = 0; i < c->stages; i++)
        KN_TRY(kn_config_int_at(config, "dim_mult", multipliers, (size_t)i, 1, 64, &c->dim_mult[i]));
    size_t downsamplers = (size_t)c->stages - 1;
    KN_TRY(kn_config_array(config, "temperal_downsample", downsamplers, downsamplers, &temporal));
    for (size_t i = 0; i < downsamplers; i++) {
        const json_t *value = json_array_get(temporal, i);
        if (!json_is_boolean(value)) {
            st = kn_fail(KN_CORRUPT, "%s: \"temperal_downsample[%zu]\" is not true or false", config->file, i);
            goto fail;
        }
        c->temporal_downsample[i] = json_is_true(value);
    }

fail:
    return st;
}

static kn_status parse_latent_statistics(const kn_config *config, kn_wan_vae_config *c)
{
    kn_status st = KN_OK;
    const json_t *mean = NULL, *deviation = NULL;
    size_t channels = (size_t)c->z_dim;
    KN_TRY(kn_config_array(config, "latents_mean", channels, channels, &mean));
    KN_TRY(kn_config_array(config, "latents_std", channels, channels, &deviation));
    for (size_t i = 0; i < channels; i++) {
        KN_TRY(kn_config_float_at(config, "latents_mean", mean, i, -1e6, 1e6, &c->latents_mean[i]));
        KN_TRY(kn_config_float_at(config, "latents_std", deviation, i, 1e-6, 1e6, &c->latents_std[i]));
    }

fail:
    return st;
}

static kn_status check_vae_shape(const kn_config *config, const kn_wan_vae_config *c)
{
    kn_status st = KN_OK;
    int32_t spatial = 1 << (c->stages - 1), temporal = 1;
    for (int32_t i = 0; i < c->stages; i++) {
        int32_t width = c->decoder_base_dim * c->dim_mult[i];
        if (width > WIDTH_MAX || c->base_dim * c->dim_mult[i] > WIDTH_MAX)
            return kn_fail(KN_CORRUPT, "%s: base_dim %d x dim_mult[%d] %d is above %d", config->file, c->base_dim, i,
                           c->dim_mult[i], WIDTH_MAX);
        if (i + 1 < c->stages && c->temporal_downsample[i]) temporal *= 2;
    }
    /* Written by newer diffusers; they follow from the stages. */
    int32_t stated = 0;
    KN_TRY(kn_config_int(config, "scale_factor_spatial", spatial, spatial, &spatial, &stated));
    KN_TRY(kn_config_int(config, "scale_factor_temporal", temporal, temporal, &temporal, &stated));

fail:
    return st;
}

kn_status kn_wan_vae_config_parse(const kn_config *config, kn_wan_vae_config *out)
{
    static const kn_config_rule rules[] = {
        {.key = "_class_name", .json = "\"AutoencoderKLWan\""},
        {.key = "is_residual", .json = "false", .or_none = true}, /* Wan 2.2 TI2V */
        {.key = "patch_size", .json = "null"},                    /* Wan 2.2 TI2V */
        {.key = "attn_scales", .json = "[]", .or_none = true},
        {.key = "in_channels", .json = "3"},
        {.key = "out_channels", .json = "3"},
    };
    kn_status st = KN_OK;
    kn_wan_vae_config c = {0};
    KN_TRY(kn_config_require(config, RULES(rules)));
    KN_TRY(kn_config_int(config, "base_dim", 1, WIDTH_MAX, NULL, &c.base_dim));
    c.decoder_base_dim = c.base_dim;
    if (!kn_config_none(config, "decoder_base_dim"))
        KN_TRY(kn_config_int(config, "decoder_base_dim", 1, WIDTH_MAX, NULL, &c.decoder_base_dim));
    KN_TRY(kn_config_int(config, "z_dim", 1, KN_LATENT_CHANNELS_MAX, NULL, &c.z_dim));
    KN_TRY(kn_config_int(config, "num_res_blocks", 1, 16, NULL, &c.num_res_blocks));
    KN_TRY(parse_vae_stages(config, &c));
    KN_TRY(parse_latent_statistics(config, &c));
    KN_TRY(check_vae_shape(config, &c));
    *out = c;

fail:
    return st;
}

/* ---- scheduler/scheduler_config.json ---- */

static kn_status parse_unipc(const kn_config *config, kn_sampler_config *c)
{
    static const kn_config_rule rules[] = {
        {.key = "_class_name", .json = "\"UniPCMultistepScheduler\""},
        {.key = "prediction_type", .json = "\"flow_prediction\"", .required = true},
        {.key = "use_flow_sigmas", .json = "true", .required = true},
        {.key = "solver_type", .json = "\"bh2\""},
        {.key = "predict_x0", .json = "true"},
        {.key = "thresholding", .json = "false"},
        {.key = "disable_corrector", .json = "[]", .or_none = true},
        {.key = "solver_p", .json = "null"},
        {.key = "use_karras_sigmas", .json = "false", .or_none = true},
        {.key = "use_exponential_sigmas", .json = "false", .or_none = true},
        {.key = "use_beta_sigmas", .json = "false", .or_none = true},
        {.key = "final_sigmas_type", .json = "\"zero\""},
        {.key = "rescale_betas_zero_snr", .json = "false"},
        {.key = "use_dynamic_shifting", .json = "false", .or_none = true},
        {.key = "shift_terminal", .json = "null"},
        {.key = "sigma_min", .json = "null"},
        {.key = "sigma_max", .json = "null"},
    };
    kn_status st = KN_OK;
    const int32_t order = 2;
    const bool yes = true;
    const double one = 1.0;
    KN_TRY(kn_config_require(config, RULES(rules)));
    KN_TRY(kn_config_int(config, "solver_order", 1, 2, &order, &c->solver_order));
    KN_TRY(kn_config_bool(config, "lower_order_final", &yes, &c->lower_order_final));
    KN_TRY(kn_config_double(config, "flow_shift", SHIFT_MIN, SHIFT_MAX, &one, &c->shift));

fail:
    return st;
}

static kn_status parse_euler(const kn_config *config, kn_sampler_config *c)
{
    static const kn_config_rule rules[] = {
        {.key = "_class_name", .json = "\"FlowMatchEulerDiscreteScheduler\""},
        {.key = "use_dynamic_shifting", .json = "false", .or_none = true},
        {.key = "shift_terminal", .json = "null"},
        {.key = "use_karras_sigmas", .json = "false", .or_none = true},
        {.key = "use_exponential_sigmas", .json = "false", .or_none = true},
        {.key = "use_beta_sigmas", .json = "false", .or_none = true},
        {.key = "invert_sigmas", .json = "false", .or_none = true},
        {.key = "stochastic_sampling", .json = "false", .or_none = true},
    };
    const double one = 1.0;
    kn_status st = kn_config_require(config, RULES(rules));
    if (st != KN_OK) return st;
    c->solver_order = 1;
    return kn_config_double(config, "shift", SHIFT_MIN, SHIFT_MAX, &one, &c->shift);
}

kn_status kn_sampler_config_parse(const kn_config *config, kn_sampler_kind kind, kn_sampler_config *out)
{
    const int32_t thousand = 1000;
    kn_sampler_config c = {.kind = kind};
    kn_status st = kind == KN_SAMPLER_UNIPC ? parse_unipc(config, &c) : parse_euler(config, &c);
    if (st != KN_OK) return st;
    st = kn_config_int(config, "num_train_timesteps", 1, TRAIN_TIMESTEPS_MAX, &thousand, &c.num_train_timesteps);
    if (st == KN_OK) *out = c;
    return st;
}

/* ---- kinora.json ---- */

kn_status kn_defaults_parse(const kn_config *config, kn_repository *repository)
{
    kn_status st = KN_OK;
    kn_repository *r = repository;
    KN_TRY(kn_config_int(config, "width", 16, 16384, &r->default_width, &r->default_width));
    KN_TRY(kn_config_int(config, "height", 16, 16384, &r->default_height, &r->default_height));
    KN_TRY(kn_config_int(config, "frames", 1, 100000, &r->default_frames, &r->default_frames));
    KN_TRY(kn_config_int(config, "steps", 1, KN_STEPS_MAX, &r->default_steps, &r->default_steps));
    KN_TRY(kn_config_double(config, "guidance", 0.0, 100.0, &r->default_guidance, &r->default_guidance));
    KN_TRY(kn_config_double(config, "fps", 0.1, 240.0, &r->default_fps, &r->default_fps));
    KN_TRY(kn_config_double(config, "shift", SHIFT_MIN, SHIFT_MAX, &r->sampler.shift, &r->sampler.shift));

fail:
    return st;
}
