/* SPDX-License-Identifier: Apache-2.0
 *
 * A model on a device: its folder, its weights and the networks made of them. */
#ifndef KN_ENGINE_MODEL_H
#define KN_ENGINE_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/dit_wan.h"
#include "engine/repository.h"
#include "engine/request.h"
#include "engine/text_umt5.h"
#include "engine/token.h"
#include "engine/vae_wan.h"
#include "kernels/device.h"

typedef struct kn_model kn_model;

/* AUTO: bfloat16 where the device computes it natively, else float32. */
typedef enum kn_precision { KN_PRECISION_AUTO, KN_PRECISION_FLOAT32, KN_PRECISION_BFLOAT16 } kn_precision;

typedef struct kn_model_params {
    const char *directory;      /* a folder in diffusers layout; or */
    const char *preset;         /* shapes of a published model with random weights (kn_repository_preset) */
    int32_t preset_layers;      /* 0: as published */
    kn_device *device;          /* kept; must outlive the model */
    kn_precision precision;     /* transformer and text encoder */
    kn_precision vae_precision; /* AUTO is float32: diffusers' own advice for this autoencoder */
} kn_model_params;

/* Maps the weights and checks every tensor the networks will ask for; prepares nothing yet. */
kn_status kn_model_open(kn_model **out, const kn_model_params *params);
void kn_model_close(kn_model **model);

/* Prepares a component's weights on the device unless that is done already. Generations do so when they first
 * need it. */
kn_status kn_model_prepare(kn_model *model, kn_component component);

const kn_repository *kn_model_repository(const kn_model *model);
const kn_weights *kn_model_weights(const kn_model *model, kn_component component);
const kn_tokenizer *kn_model_tokenizer(const kn_model *model); /* NULL for a preset */
kn_stream *kn_model_stream(const kn_model *model);
kn_dtype kn_model_compute(const kn_model *model, kn_component component);

/* Prepared networks; NULL before kn_model_prepare. */
kn_umt5 *kn_model_text(const kn_model *model);
kn_dit *kn_model_dit(const kn_model *model);
kn_vae *kn_model_vae(const kn_model *model);

/* The ranks that share every following slice of this model's generations (engine/comm.h); the same on each of them,
 * between two slices. NULL: this process alone, as in the beginning. Copied; its communicator is the caller's. */
void kn_model_set_group(kn_model *model, const kn_group *group);
const kn_group *kn_model_group(const kn_model *model);

/* Identifies what decides a generation's bytes: tensors (names, shapes, a sample of their values), sampler settings,
 * precision, device tier, this version. One short line. */
const char *kn_model_fingerprint(const kn_model *model);

/* Memory for the length of one slice, at least `bytes`; grows, is kept, and is the model's. Not nested. */
kn_status kn_model_workspace(kn_model *model, size_t bytes, kn_arena *out);
/* Gives it back, before something large is allocated. */
void kn_model_workspace_release(kn_model *model);

/* What a generation will allocate, in bytes, computed from shapes before it runs. */
typedef struct kn_memory_plan {
    uint64_t process;          /* held when the plan is made: threads' scratch, tokenizer, norms */
    uint64_t transformer, vae; /* prepared weights */
    uint64_t text_encoder;     /* its prepared matrices on a GPU; 0 on a CPU, where they stay in the page cache */
    uint64_t state;            /* latents, sampler history, the text's keys and values */
    uint64_t text_workspace, denoise_workspace; /* during those slices */
    uint64_t decoder;                           /* frames kept while decoding */
    uint64_t peak;                              /* highest sum over the slices */
    int32_t text_tokens;                        /* not bytes: what the text slice encodes, over all sequences */
} kn_memory_plan;

/* For a resolved request and a model nothing has been generated with yet. Without a prompt, text is counted at its
 * largest. The media encoder's memory is its own affair (kn_media_bytes). */
kn_status kn_model_plan(kn_model *model, const kn_request *request, kn_memory_plan *out);

#endif
