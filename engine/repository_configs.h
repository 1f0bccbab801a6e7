/* SPDX-License-Identifier: Apache-2.0
 *
 * One component's JSON object into one struct of repository.h, checked alone:
 * types, ranges, and that it says nothing the engine would have to ignore.
 * repository.c reads the files and checks the components against each other.
 *
 * KN_CORRUPT: missing, mistyped or out of range. KN_UNSUPPORTED: a meaning that
 * the networks here do not have. */
#ifndef KN_ENGINE_REPOSITORY_CONFIGS_H
#define KN_ENGINE_REPOSITORY_CONFIGS_H

#include "engine/config.h"
#include "engine/repository.h"

/* model_index.json: class and components. `class_name` is borrowed from the JSON; the sampler's kind is what the
 * "scheduler" entry names. */
typedef struct kn_model_index {
    const char *class_name;
    kn_sampler_kind sampler;
} kn_model_index;

kn_status kn_model_index_parse(const kn_config *config, kn_model_index *out);
kn_status kn_umt5_config_parse(const kn_config *config, kn_umt5_config *out);
kn_status kn_wan_dit_config_parse(const kn_config *config, kn_wan_dit_config *out);
kn_status kn_wan_vae_config_parse(const kn_config *config, kn_wan_vae_config *out);
kn_status kn_sampler_config_parse(const kn_config *config, kn_sampler_kind kind, kn_sampler_config *out);

/* kinora.json: replaces the defaults (and sampler.shift) that it names. */
kn_status kn_defaults_parse(const kn_config *config, kn_repository *repository);

#endif
