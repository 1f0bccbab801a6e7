/* SPDX-License-Identifier: Apache-2.0
 *
 * A model folder: reads the components' files, checks that they fit each other,
 * and knows the published shapes by name. What one file may say is in
 * repository_configs.c. */
#define _POSIX_C_SOURCE 200809L
#include "engine/repository.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "engine/config.h"
#include "engine/repository_configs.h"

enum { PRESET_LAYERS_MAX = 1024 };

static const char *const component_names[KN_COMPONENT_COUNT] = {"text_encoder", "transformer", "vae"};
static const char *const component_stems[KN_COMPONENT_COUNT] = {"model", "diffusion_pytorch_model",
                                                                "diffusion_pytorch_model"};

const char *kn_component_name(kn_component component)
{
    return component >= 0 && component < KN_COMPONENT_COUNT ? component_names[component] : "unknown";
}

const char *kn_component_stem(kn_component component)
{
    return component >= 0 && component < KN_COMPONENT_COUNT ? component_stems[component] : "unknown";
}

/* ---- reading ---- */

/* A parsed file under the root, with the name that messages use. */
typedef struct document {
    char *path;
    json_t *root;
    kn_config config; /* borrows both */
} document;

static kn_status document_load(document *out, const char *directory, const char *name)
{
    out->path = kn_format("%s/%s", directory, name);
    if (!out->path) return KN_NOMEM;
    kn_status st = kn_json_load(&out->root, out->path, kn_config_limits());
    if (st == KN_OK) out->config = (kn_config){.object = out->root, .file = out->path};
    return st;
}

static void document_drop(document *doc)
{
    json_decref(doc->root);
    kn_free(doc->path);
    doc->root = NULL;
    doc->path = NULL;
}

static kn_status read_index(kn_repository *repository)
{
    kn_status st = KN_OK;
    document doc = {0};
    kn_model_index index;
    st = document_load(&doc, repository->root, "model_index.json");
    if (st == KN_NOT_FOUND) kn_fail_context(st, "%s is not a model folder in diffusers layout", repository->root);
    if (st != KN_OK) goto fail;
    KN_TRY(kn_model_index_parse(&doc.config, &index));
    repository->sampler.kind = index.sampler;
    repository->class_name = kn_strdup(index.class_name);
    if (!repository->class_name) st = KN_NOMEM;

fail:
    document_drop(&doc);
    return st;
}

static kn_status read_components(kn_repository *repository)
{
    kn_status st = KN_OK;
    document text = {0}, dit = {0}, vae = {0}, sampler = {0};
    KN_TRY(document_load(&text, repository->root, "text_encoder/config.json"));
    KN_TRY(document_load(&dit, repository->root, "transformer/config.json"));
    KN_TRY(document_load(&vae, repository->root, "vae/config.json"));
    KN_TRY(document_load(&sampler, repository->root, "scheduler/scheduler_config.json"));
    KN_TRY(kn_umt5_config_parse(&text.config, &repository->text));
    KN_TRY(kn_wan_dit_config_parse(&dit.config, &repository->dit));
    KN_TRY(kn_wan_vae_config_parse(&vae.config, &repository->vae));
    KN_TRY(kn_sampler_config_parse(&sampler.config, repository->sampler.kind, &repository->sampler));

    if (repository->dit.text_dim != repository->text.d_model) {
        st = kn_fail(KN_CORRUPT, "%s: text_dim %d differs from d_model %d of %s", dit.path, repository->dit.text_dim,
                     repository->text.d_model, text.path);
        goto fail;
    }
    if (repository->dit.in_channels != repository->vae.z_dim)
        st = kn_fail(KN_CORRUPT, "%s: in_channels %d differs from z_dim %d of %s", dit.path,
                     repository->dit.in_channels, repository->vae.z_dim, vae.path);

fail:
    document_drop(&text);
    document_drop(&dit);
    document_drop(&vae);
    document_drop(&sampler);
    return st;
}

/* A latent pixel covers 2^(stages - 1) pixels, a token 2 x 2 of them; the first frame stands alone in time. */
static kn_status check_defaults(const kn_repository *repository, const char *path)
{
    const kn_wan_vae_config *vae = &repository->vae;
    int32_t cell = 1 << vae->stages;
    int32_t group = 1;
    for (int32_t i = 0; i + 1 < vae->stages; i++) group *= vae->temporal_downsample[i] ? 2 : 1;
    if (repository->default_width % cell != 0 || repository->default_height % cell != 0)
        return kn_fail(KN_CORRUPT, "%s: %d x %d pixels are not multiples of %d", path, repository->default_width,
                       repository->default_height, cell);
    if ((repository->default_frames - 1) % group != 0)
        return kn_fail(KN_CORRUPT, "%s: frames %d is not 1 more than a multiple of %d", path,
                       repository->default_frames, group);
    return KN_OK;
}

static kn_status read_defaults(kn_repository *repository)
{
    document doc = {0};
    kn_status st = document_load(&doc, repository->root, "kinora.json");
    if (st == KN_NOT_FOUND) {
        st = KN_OK;
    } else if (st == KN_OK) {
        st = kn_defaults_parse(&doc.config, repository);
        if (st == KN_OK) st = check_defaults(repository, doc.path);
    }
    document_drop(&doc);
    return st;
}

static kn_status name_folders(kn_repository *repository)
{
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) {
        repository->component_directory[i] = kn_format("%s/%s", repository->root, component_names[i]);
        if (!repository->component_directory[i]) return KN_NOMEM;
    }
    repository->tokenizer_directory = kn_format("%s/tokenizer", repository->root);
    return repository->tokenizer_directory ? KN_OK : KN_NOMEM;
}

static kn_status check_folder(const char *directory)
{
    struct stat info;
    if (stat(directory, &info) != 0) {
        if (errno == ENOENT || errno == ENOTDIR) return kn_fail(KN_NOT_FOUND, "%s: no such folder", directory);
        return kn_fail(KN_IO, "%s: cannot open: %s", directory, strerror(errno));
    }
    return S_ISDIR(info.st_mode) ? KN_OK : kn_fail(KN_NOT_FOUND, "%s: not a folder", directory);
}

/* Defaults of diffusers' WanPipeline; 16 frames a second is what Wan 2.1 was trained on. */
static kn_status create(kn_repository **out, const char *root)
{
    kn_repository *repository = kn_alloc(sizeof *repository);
    if (!repository) return KN_NOMEM;
    repository->default_width = 832;
    repository->default_height = 480;
    repository->default_frames = 81;
    repository->default_steps = 50;
    repository->default_guidance = 5.0;
    repository->default_fps = 16.0;
    *out = repository;
    repository->root = kn_strdup(root);
    return repository->root ? KN_OK : KN_NOMEM;
}

kn_status kn_repository_open(kn_repository **out, const char *directory)
{
    kn_status st = KN_OK;
    kn_repository *repository = NULL;
    KN_TRY(create(&repository, directory));
    KN_TRY(check_folder(directory));
    KN_TRY(name_folders(repository));
    KN_TRY(read_index(repository));
    KN_TRY(read_components(repository));
    KN_TRY(read_defaults(repository));
    *out = repository;
    return KN_OK;

fail:
    kn_repository_close(&repository);
    return st;
}

void kn_repository_close(kn_repository **repository)
{
    if (!repository || !*repository) return;
    kn_repository *old = *repository;
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) kn_free(old->component_directory[i]);
    kn_free(old->tokenizer_directory);
    kn_free(old->class_name);
    kn_free(old->root);
    kn_free(old);
    *repository = NULL;
}

/* ---- published shapes ---- */

typedef struct preset {
    const char *name;
    kn_wan_dit_config dit;
} preset;

#define WAN_DIT(heads, ffn, layers)                                                                                    \
    {                                                                                                                  \
        .num_attention_heads = (heads), .attention_head_dim = 128, .in_channels = 16, .out_channels = 16,              \
        .text_dim = 4096, .freq_dim = 256, .ffn_dim = (ffn), .num_layers = (layers), .cross_attn_norm = true,          \
        .eps = 1e-6, .rope_max_seq_len = 1024                                                                          \
    }

static const preset presets[] = {
    {"wan2.1-1.3b", WAN_DIT(12, 8960, 30)},
    {"wan2.1-14b", WAN_DIT(40, 13824, 40)},
};

/* UMT5-XXL. */
static const kn_umt5_config umt5_xxl = {
    .vocab_size = 256384,
    .d_model = 4096,
    .d_kv = 64,
    .d_ff = 10240,
    .num_heads = 64,
    .num_layers = 24,
    .relative_attention_num_buckets = 32,
    .relative_attention_max_distance = 128,
    .layer_norm_epsilon = 1e-6,
    .pad_token_id = 0,
    .eos_token_id = 1,
};

static const kn_wan_vae_config wan21_vae = {
    .base_dim = 96,
    .decoder_base_dim = 96,
    .z_dim = 16,
    .stages = 4,
    .dim_mult = {1, 2, 4, 4},
    .num_res_blocks = 2,
    .temporal_downsample = {false, true, true},
    .latents_mean = {-0.7571f, -0.7089f, -0.9113f, 0.1075f, -0.1745f, 0.9653f, -0.1517f, 1.5508f, 0.4134f, -0.0715f,
                     0.5517f, -0.3632f, -0.1922f, -0.9497f, 0.2503f, -0.2921f},
    .latents_std = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f, 3.2687f, 2.1526f, 2.8652f,
                    1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f},
};

static const kn_sampler_config wan21_sampler = {
    .kind = KN_SAMPLER_UNIPC,
    .num_train_timesteps = 1000,
    .solver_order = 2,
    .lower_order_final = true,
    .shift = 3.0,
};

kn_status kn_repository_preset(kn_repository **out, const char *name, int32_t layers)
{
    kn_status st = KN_OK;
    kn_repository *repository = NULL;
    const preset *found = NULL;
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(presets[i].name, name) == 0) found = &presets[i];
    }
    if (!found) return kn_fail(KN_NOT_FOUND, "no preset \"%s\"; there are wan2.1-1.3b and wan2.1-14b", name);
    if (layers > PRESET_LAYERS_MAX)
        return kn_fail(KN_INVALID, "preset %s: %d layers, the limit is %d", name, layers, PRESET_LAYERS_MAX);
    KN_TRY(create(&repository, name));
    repository->class_name = kn_strdup("WanPipeline");
    if (!repository->class_name) {
        st = KN_NOMEM;
        goto fail;
    }
    repository->text = umt5_xxl;
    repository->dit = found->dit;
    repository->vae = wan21_vae;
    repository->sampler = wan21_sampler;
    if (layers > 0) repository->text.num_layers = repository->dit.num_layers = layers;
    *out = repository;
    return KN_OK;

fail:
    kn_repository_close(&repository);
    return st;
}
