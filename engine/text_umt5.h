/* SPDX-License-Identifier: Apache-2.0
 *
 * The UMT5 encoder (transformers UMT5EncoderModel; Raffel et al. 2020, with a
 * relative position bias in every layer).
 *
 * At XXL size the weights (11.4 GB in bfloat16) are larger than the host's memory
 * may be: there they are never prepared. Each layer's matrices are used straight
 * out of the file mapping, in the type they are stored in, and the pages are let go
 * afterwards. A device that cannot read the mapping has them prepared once, in the
 * compute type, and keeps them. */
#ifndef KN_ENGINE_TEXT_UMT5_H
#define KN_ENGINE_TEXT_UMT5_H

#include "base/arena.h"
#include "engine/repository.h"
#include "engine/weights.h"
#include "kernels/device.h"

typedef struct kn_umt5 kn_umt5;

/* Checks every tensor's name and shape. `weights` is kept and must outlive the encoder. `compute` rounds the
 * operands of products; the residual stream stays in float32. */
kn_status kn_umt5_create(kn_umt5 **out, const kn_umt5_config *config, const kn_weights *weights, kn_stream *stream,
                         kn_dtype compute);
void kn_umt5_destroy(kn_umt5 **encoder);

/* Prepares the matrices where the device does not read host memory (the first encode does so too); nothing elsewhere.
 */
kn_status kn_umt5_prepare(kn_umt5 *encoder, kn_stream *stream);
/* Device bytes that takes; 0 where nothing is prepared. */
size_t kn_umt5_prepared_bytes(const kn_umt5 *encoder);

/* Device bytes held between calls: the norms. */
size_t kn_umt5_weight_bytes(const kn_umt5_config *config);

/* Encodes `sequences` token lists at once, each of its true length: padding would be masked, so it is left out.
 * ids: [offsets[sequences]] host, each < vocab_size. out: [offsets[sequences], d_model] f32 device. */
kn_status kn_umt5_encode(kn_umt5 *encoder, kn_stream *stream, kn_arena *arena, const int32_t *ids,
                         const int32_t *offsets, int32_t sequences, kn_matrix out);
size_t kn_umt5_workspace(const kn_umt5 *encoder, const int32_t *offsets, int32_t sequences);

/* T5's bidirectional bucket of a distance key - query (Raffel et al. 2020; transformers T5Attention). */
int32_t kn_umt5_bucket(int32_t distance, int32_t buckets, int32_t max_distance);

/* Floating-point operations of one encode, and bytes of weights it reads. */
double kn_umt5_flop(const kn_umt5_config *config, int32_t tokens);

#endif
