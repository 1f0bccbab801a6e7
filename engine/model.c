/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/generation.h"

enum { SAMPLE_BYTES = 256, FINGERPRINT_BYTES = 96, DECODER_SIZES = 8 };

/* Random weights of a preset: small enough that activations stay finite through all layers. */
#define PRESET_DEVIATION 0.02f
#define PRESET_SEED 1u

/* What decoding latent frames of h x w takes. A dry run of the decoder finds it, which is more work than all the rest
 * of a plan, and most requests are of few sizes. */
typedef struct decoder_size {
    int32_t h, w;
    size_t bytes;
} decoder_size;

struct kn_model {
    kn_repository *repository;
    kn_device *device;
    kn_stream *stream;
    kn_weights *weights[KN_COMPONENT_COUNT];
    kn_dtype compute[KN_COMPONENT_COUNT];
    kn_tokenizer *tokenizer;
    kn_umt5 *text;
    kn_dit *dit;
    kn_vae *vae;
    kn_group group;
    void *workspace;
    size_t workspace_bytes;
    char fingerprint[FINGERPRINT_BYTES];
    decoder_size decoder_sizes[DECODER_SIZES]; /* a ring; h 0: none yet */
    int32_t next_decoder_size;
};

static kn_dtype resolve_precision(const kn_device *device, kn_precision precision)
{
    kn_device_info info;
    kn_device_describe(device, &info);
    if (precision == KN_PRECISION_AUTO) return info.native_bf16 ? KN_BF16 : KN_F32;
    return precision == KN_PRECISION_BFLOAT16 ? KN_BF16 : KN_F32;
}

/* FNV-1a, 64 bit: tells checkpoints apart, not attackers. */
static uint64_t hash(uint64_t h, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return h;
}

static void make_fingerprint(kn_model *m)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int c = 0; c < KN_COMPONENT_COUNT; c++) {
        const kn_weights *w = m->weights[c];
        for (size_t i = 0; i < kn_weights_count(w); i++) {
            const kn_weights_entry entry = kn_weights_entry_at(w, i);
            kn_tensor tensor;
            h = hash(h, entry.name, strlen(entry.name));
            h = hash(h, entry.dtype_name, strlen(entry.dtype_name));
            h = hash(h, entry.shape, (size_t)entry.rank * sizeof *entry.shape);
            if (kn_weights_find(w, entry.name, &tensor) != KN_OK) continue;
            h = hash(h, tensor.data, entry.bytes < SAMPLE_BYTES ? (size_t)entry.bytes : SAMPLE_BYTES);
        }
    }
    const kn_sampler_config *sampler = &m->repository->sampler; /* what a request does not carry */
    const int32_t settings[] = {sampler->num_train_timesteps, sampler->solver_order, sampler->lower_order_final};
    h = hash(h, settings, sizeof settings);
    h = hash(h, KN_VERSION, sizeof KN_VERSION);
    kn_device_info info;
    kn_device_describe(m->device, &info);
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    snprintf(m->fingerprint, sizeof m->fingerprint, "%s %016" PRIx64 " %s %s vae-%s", m->repository->class_name, h,
             info.tier, names[m->compute[KN_TRANSFORMER]], names[m->compute[KN_VAE]]);
}

static kn_status open_weights(kn_model *m, bool preset)
{
    kn_status st = KN_OK;
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) {
        if (preset) { /* as published: bfloat16 text encoder, float32 transformer and autoencoder */
            kn_dtype dtype = i == KN_TEXT_ENCODER ? KN_BF16 : KN_F32;
            KN_TRY(kn_weights_synthetic(&m->weights[i], PRESET_DEVIATION, dtype, PRESET_SEED + (unsigned)i));
        } else {
            KN_TRY(kn_weights_open(&m->weights[i], m->repository->component_directory[i],
                                   kn_component_stem((kn_component)i)));
        }
    }
    if (!preset) KN_TRY(kn_tokenizer_open(&m->tokenizer, m->repository->tokenizer_directory));
fail:
    return st;
}

kn_status kn_model_open(kn_model **out, const kn_model_params *params)
{
    kn_status st = KN_OK;
    KN_REQUIRE(out && params->device && !params->directory != !params->preset);
    kn_model *m = kn_alloc(sizeof *m);
    if (!m) return KN_NOMEM;
    m->device = params->device;
    m->group = kn_group_alone();
    m->compute[KN_TEXT_ENCODER] = m->compute[KN_TRANSFORMER] = resolve_precision(m->device, params->precision);
    m->compute[KN_VAE] = params->vae_precision == KN_PRECISION_BFLOAT16 ? KN_BF16 : KN_F32;
    if (params->preset)
        KN_TRY(kn_repository_preset(&m->repository, params->preset, params->preset_layers));
    else
        KN_TRY(kn_repository_open(&m->repository, params->directory));
    KN_TRY(kn_stream_create(&m->stream, m->device));
    KN_TRY(open_weights(m, params->preset != NULL));
    const kn_repository *r = m->repository;
    KN_TRY(kn_umt5_create(&m->text, &r->text, m->weights[KN_TEXT_ENCODER], m->stream, m->compute[KN_TEXT_ENCODER]));
    KN_TRY(kn_dit_create(&m->dit, &r->dit, m->weights[KN_TRANSFORMER], m->stream, m->compute[KN_TRANSFORMER]));
    KN_TRY(kn_vae_create(&m->vae, &r->vae, m->weights[KN_VAE], m->stream, m->compute[KN_VAE], KN_VAE_DECODER));
    if (r->dit.in_channels != r->vae.z_dim || r->dit.out_channels != r->vae.z_dim)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: the transformer takes %d and gives %d channels, the autoencoder has %d",
                       r->root, r->dit.in_channels, r->dit.out_channels, r->vae.z_dim));
    if (r->dit.text_dim != r->text.d_model)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: the transformer takes text of width %d, the text encoder gives %d", r->root,
                       r->dit.text_dim, r->text.d_model));
    make_fingerprint(m);
    *out = m;
    return KN_OK;
fail:
    kn_model_close(&m);
    return st;
}

void kn_model_close(kn_model **handle)
{
    kn_model *m = *handle;
    if (!m) return;
    kn_device_free(m->device, m->workspace);
    kn_vae_destroy(&m->vae);
    kn_dit_destroy(&m->dit);
    kn_umt5_destroy(&m->text);
    kn_tokenizer_close(&m->tokenizer);
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) kn_weights_close(&m->weights[i]);
    kn_stream_destroy(&m->stream);
    kn_repository_close(&m->repository);
    kn_free(m);
    *handle = NULL;
}

kn_status kn_model_prepare(kn_model *m, kn_component component)
{
    switch (component) {
    case KN_TEXT_ENCODER: return kn_umt5_prepare(m->text, m->stream);
    case KN_TRANSFORMER: return kn_dit_prepare(m->dit, m->stream);
    case KN_VAE: return kn_vae_prepare(m->vae, m->stream);
    default: return KN_OK;
    }
}

const kn_repository *kn_model_repository(const kn_model *m)
{
    return m->repository;
}

const kn_weights *kn_model_weights(const kn_model *m, kn_component component)
{
    return m->weights[component];
}

const kn_tokenizer *kn_model_tokenizer(const kn_model *m)
{
    return m->tokenizer;
}

kn_stream *kn_model_stream(const kn_model *m)
{
    return m->stream;
}

kn_dtype kn_model_compute(const kn_model *m, kn_component component)
{
    return m->compute[component];
}

kn_umt5 *kn_model_text(const kn_model *m)
{
    return m->text;
}

kn_dit *kn_model_dit(const kn_model *m)
{
    return m->dit;
}

kn_vae *kn_model_vae(const kn_model *m)
{
    return m->vae;
}

void kn_model_set_group(kn_model *m, const kn_group *group)
{
    m->group = group ? *group : kn_group_alone();
    memset(m->decoder_sizes, 0, sizeof m->decoder_sizes); /* a share is smaller */
}

const kn_group *kn_model_group(const kn_model *m)
{
    return &m->group;
}

const char *kn_model_fingerprint(const kn_model *m)
{
    return m->fingerprint;
}

kn_status kn_model_workspace(kn_model *m, size_t bytes, kn_arena *out)
{
    if (bytes > m->workspace_bytes) {
        kn_model_workspace_release(m);
        kn_status st = kn_device_alloc(m->device, &m->workspace, bytes);
        if (st != KN_OK) return st;
        m->workspace_bytes = bytes;
    }
    *out = kn_arena_view(m->workspace, m->workspace_bytes);
    return KN_OK;
}

void kn_model_workspace_release(kn_model *m)
{
    kn_device_free(m->device, m->workspace);
    m->workspace = NULL;
    m->workspace_bytes = 0;
}

static uint64_t max_of(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static kn_status decoder_bytes(kn_model *m, int32_t h, int32_t w, size_t *out)
{
    for (int32_t i = 0; i < DECODER_SIZES; i++)
        if (m->decoder_sizes[i].h == h && m->decoder_sizes[i].w == w) {
            *out = m->decoder_sizes[i].bytes;
            return KN_OK;
        }
    const kn_status st = kn_vae_decoder_bytes(out, m->vae, m->stream, h, w, &m->group);
    if (st != KN_OK) return st;
    m->decoder_sizes[m->next_decoder_size] = (decoder_size){.h = h, .w = w, .bytes = *out};
    m->next_decoder_size = (m->next_decoder_size + 1) % DECODER_SIZES;
    return KN_OK;
}

kn_status kn_model_plan(kn_model *m, const kn_request *request, kn_memory_plan *out)
{
    kn_status st = KN_OK;
    size_t decoder;
    const kn_latent_shape shape = kn_request_latent(request, m->repository);
    kn_memory_plan p = {
        .process = kn_mem_read().bytes, .transformer = kn_dit_weight_bytes(m->dit), .vae = kn_vae_weight_bytes(m->vae)};
    p.text_encoder = kn_umt5_prepared_bytes(m->text);
    KN_TRY(kn_generation_bytes(m, request, &p));
    KN_TRY(decoder_bytes(m, shape.h, shape.w, &decoder));
    p.decoder = decoder;
    const uint64_t kept =
        p.process + p.text_encoder + p.transformer + p.state; /* prepared while the text slice still holds its own */
    p.peak = max_of(kept + p.text_workspace, kept + max_of(p.text_workspace, p.denoise_workspace));
    p.peak = max_of(p.peak, kept + p.vae + p.decoder);
    *out = p;
fail:
    return st;
}
