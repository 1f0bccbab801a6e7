/* SPDX-License-Identifier: Apache-2.0
 *
 * The Wan 2.1 text-to-video transformer (diffusers WanTransformer3DModel; Wan
 * Team 2025, arXiv 2503.20314), on ragged packs.
 *
 * A pack is the tokens of several sequences laid end to end. Each sequence is one
 * generation under one guidance branch, with its own size, text and timestep;
 * guidance is two sequences. Rows are independent but for attention, which stays
 * inside its sequence, so a sequence's result does not depend on the pack. */
#ifndef KN_ENGINE_DIT_WAN_H
#define KN_ENGINE_DIT_WAN_H

#include "base/arena.h"
#include "engine/comm.h"
#include "engine/repository.h"
#include "engine/weights.h"
#include "kernels/device.h"

typedef struct kn_dit kn_dit;

/* Checks that every tensor is there with its shape and computes sizes; prepares nothing yet. `weights` is kept until
 * prepared. `compute` KN_BF16 keeps in float32 what diffusers keeps: norms, time embedder, modulation tables,
 * softmax; the residual stream is bfloat16. */
kn_status kn_dit_create(kn_dit **out, const kn_wan_dit_config *config, const kn_weights *weights, kn_stream *stream,
                        kn_dtype compute);
void kn_dit_destroy(kn_dit **dit);

/* Device bytes of the prepared weights. */
size_t kn_dit_weight_bytes(const kn_dit *dit);

/* Lays the weights out in device memory, once; later calls do nothing. What follows below needs it, but for the
 * sizes. */
kn_status kn_dit_prepare(kn_dit *dit, kn_stream *stream);

/* Text padded to KN_TEXT_TOKENS rows of zeros, as the model was trained: no mask. All padding rows embed to the same
 * vector, so one row stands for them, weighted in the softmax. */
enum { KN_TEXT_TOKENS = 512 };

/* Keys and values of one text for every layer; the same for all steps of a generation. */
typedef struct kn_dit_context {
    void *memory;          /* [layers][2 (k, v)][rows][D], activation type, device; the caller's */
    int32_t rows;          /* text tokens, + 1 when there is padding */
    float tail_log_weight; /* ln(number of padding rows) for the last row; 0 without */
} kn_dit_context;

/* Rows of a context of so many tokens. */
int32_t kn_dit_context_rows(int32_t tokens);
size_t kn_dit_context_bytes(const kn_dit *dit, int32_t tokens);
/* text: [tokens, text_dim] f32 device rows. `memory` holds kn_dit_context_bytes. The arena needs
 * kn_dit_context_workspace. */
kn_status kn_dit_context_build(kn_dit *dit, kn_stream *stream, kn_arena *arena, kn_matrix text, void *memory,
                               kn_dit_context *out);
size_t kn_dit_context_workspace(const kn_dit *dit, int32_t tokens);

typedef struct kn_dit_sequence {
    int32_t t, h, w; /* latent frames, rows, columns; h, w even */
    float timestep;  /* as the schedule gives it, 0..1000 */
    const kn_dit_context *context;
    const float *latent; /* [in_channels, t, h, w] device */
    float *velocity;     /* [out_channels, t, h, w] device; written */
} kn_dit_sequence;

/* One forward. Everything temporary comes from the arena (kn_dit_workspace); the arena's mark is restored. With a group
 * of several ranks every member calls this with the same sequences, and has all velocities afterwards (engine/split.h);
 * NULL: alone. */
kn_status kn_dit_forward(kn_dit *dit, kn_stream *stream, kn_arena *arena, const kn_dit_sequence *sequences,
                         int32_t count, const kn_group *group);
size_t kn_dit_workspace(const kn_dit *dit, const kn_dit_sequence *sequences, int32_t count, const kn_group *group);

/* Bytes this rank sends to others in such a forward: the formula of engine/split.h. */
uint64_t kn_dit_exchanged(const kn_dit *dit, const kn_dit_sequence *sequences, int32_t count, const kn_group *group);

/* Floating-point operations of a forward, multiply and add counted separately (models with constant padding
 * rows collapsed). */
double kn_dit_flop(const kn_wan_dit_config *config, const kn_dit_sequence *sequences, int32_t count);

#endif
