/* SPDX-License-Identifier: Apache-2.0
 *
 * Any JSON text is either refused in one line or gives a configuration inside
 * the limits that the networks rely on. The first byte picks the component. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/repository_configs.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void ensure(int holds)
{
    if (!holds) abort();
}

static kn_status parse_text(const kn_config *config)
{
    kn_umt5_config c;
    kn_status st = kn_umt5_config_parse(config, &c);
    if (st != KN_OK) return st;
    ensure(c.vocab_size > 0 && c.d_model > 0 && c.d_ff > 0 && c.num_layers > 0);
    ensure(c.num_heads > 0 && c.d_kv > 0 && (int64_t)c.num_heads * c.d_kv <= 65536);
    ensure(c.relative_attention_max_distance > c.relative_attention_num_buckets / 4 && c.layer_norm_epsilon > 0);
    ensure(c.pad_token_id >= 0 && c.pad_token_id < c.vocab_size && c.eos_token_id < c.vocab_size);
    return KN_OK;
}

static kn_status parse_dit(const kn_config *config)
{
    kn_wan_dit_config c;
    kn_status st = kn_wan_dit_config_parse(config, &c);
    if (st != KN_OK) return st;
    ensure(c.attention_head_dim % 2 == 0 && c.attention_head_dim <= 256 && c.freq_dim % 2 == 0);
    ensure((int64_t)c.num_attention_heads * c.attention_head_dim <= 65536 && c.num_layers > 0 && c.eps > 0);
    ensure(c.in_channels == c.out_channels && c.in_channels <= KN_LATENT_CHANNELS_MAX && c.text_dim > 0);
    return KN_OK;
}

static kn_status parse_vae(const kn_config *config)
{
    kn_wan_vae_config c;
    kn_status st = kn_wan_vae_config_parse(config, &c);
    if (st != KN_OK) return st;
    ensure(c.stages >= 1 && c.stages <= KN_VAE_STAGES_MAX && c.z_dim >= 1 && c.z_dim <= KN_LATENT_CHANNELS_MAX);
    for (int32_t i = 0; i < c.z_dim; i++) ensure(isfinite(c.latents_mean[i]) && c.latents_std[i] > 0);
    for (int32_t i = 0; i < c.stages; i++) ensure((int64_t)c.dim_mult[i] * c.decoder_base_dim <= 65536);
    return KN_OK;
}

static kn_status parse_sampler(const kn_config *config, kn_sampler_kind kind)
{
    kn_sampler_config c;
    kn_status st = kn_sampler_config_parse(config, kind, &c);
    if (st != KN_OK) return st;
    ensure(c.kind == kind && c.solver_order >= 1 && c.solver_order <= 2 && c.shift > 0 && !c.use_dynamic_shifting);
    return KN_OK;
}

static kn_status parse_defaults(const kn_config *config)
{
    kn_repository repository = {.default_width = 16, .default_height = 16, .default_frames = 1, .default_steps = 1};
    repository.default_fps = 16.0f;
    repository.sampler.shift = 1.0f;
    kn_status st = kn_defaults_parse(config, &repository);
    if (st != KN_OK) return st;
    ensure(repository.default_width >= 16 && repository.default_steps >= 1 && repository.default_fps > 0);
    ensure(repository.default_guidance >= 0 && repository.sampler.shift > 0);
    return KN_OK;
}

static kn_status parse(const kn_config *config, unsigned component)
{
    kn_model_index index;
    switch (component) {
    case 0: return kn_model_index_parse(config, &index);
    case 1: return parse_text(config);
    case 2: return parse_dit(config);
    case 3: return parse_vae(config);
    case 4: return parse_sampler(config, KN_SAMPLER_UNIPC);
    case 5: return parse_sampler(config, KN_SAMPLER_EULER);
    default: return parse_defaults(config);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (count == 0) return -1;
    uint64_t held = kn_mem_read().bytes;
    json_t *root = NULL;
    kn_status st = kn_json_parse(&root, (const char *)bytes + 1, count - 1, "input.json", kn_config_limits());
    if (st == KN_OK) st = parse(&(kn_config){.object = root, .file = "input.json"}, (bytes[0] - '0') % 7u);
    if (st != KN_OK) {
        ensure(st == KN_CORRUPT || st == KN_UNSUPPORTED);
        ensure(strncmp(kn_fail_message(), "input.json: ", 12) == 0 && !strchr(kn_fail_message(), '\n'));
    }
    json_decref(root);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
