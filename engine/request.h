/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client asks for, completed with the model's defaults and checked. */
#ifndef KN_ENGINE_REQUEST_H
#define KN_ENGINE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/repository.h"
#include "engine/sampling.h"

enum {
    KN_PROMPT_BYTES_MAX = 1 << 17, /* 32,000 characters of four bytes */
    KN_FPS_MAX = 240,
    KN_SIDE_MAX = 8192, /* pixels; positions of the transformer may allow less */
    KN_REQUEST_NOTES_MAX = 4,
    KN_REQUEST_NOTE_BYTES = 128,
};

/* Zero (NULL, 0) means "the model's default" until resolved, except guidance and shift: NaN. */
typedef struct kn_request {
    char *prompt;          /* owned; required */
    char *negative_prompt; /* owned; NULL: "" */
    int32_t width, height; /* pixels */
    int32_t frames;
    int32_t fps_numerator, fps_denominator;
    int32_t steps;
    double guidance; /* above 1: classifier-free guidance with the negative prompt */
    uint64_t seed;
    bool has_sampler;
    kn_sampler_kind sampler;
    double shift;        /* of the sigmas */
    int32_t sigma_count; /* explicit sigmas; 0: the sampler's own grid */
    double sigmas[KN_STEPS_MAX];
} kn_request;

/* What resolving changed, one line each: "frames 80 rounded to 81 (4n + 1)". */
typedef struct kn_request_notes {
    int32_t count;
    char text[KN_REQUEST_NOTES_MAX][KN_REQUEST_NOTE_BYTES];
} kn_request_notes;

/* An empty request: everything default, no prompt. */
kn_request kn_request_empty(void);
void kn_request_release(kn_request *request);

/* Fills defaults, rounds the size down to a multiple of twice the spatial factor and the frames as diffusers does,
 * and checks every field. KN_INVALID names the field and the limit. `notes` may be NULL. */
kn_status kn_request_resolve(kn_request *request, const kn_repository *repository, kn_request_notes *notes);

/* The schedule of a resolved request. */
kn_status kn_request_schedule(kn_schedule *out, const kn_request *request, const kn_repository *repository);

/* A resolved request as one line of JSON, and back; for checkpoints and logs. The text is kn_alloc'ed. */
kn_status kn_request_to_json(char **out, const kn_request *request);
kn_status kn_request_from_json(kn_request *out, const char *text, const char *file);

/* Latent frames, rows and columns of a resolved request. */
typedef struct kn_latent_shape {
    int32_t channels, t, h, w;
} kn_latent_shape;
kn_latent_shape kn_request_latent(const kn_request *request, const kn_repository *repository);

#endif
