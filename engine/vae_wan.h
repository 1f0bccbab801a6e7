/* SPDX-License-Identifier: Apache-2.0
 *
 * The Wan 2.1 causal video autoencoder (diffusers AutoencoderKLWan with
 * is_residual false).
 *
 * Both directions stream: frames are pushed one at a time, every causal
 * convolution keeps the two frames before, and what comes out does not depend on
 * how the pushes are grouped. Memory does not grow with the length of the clip. */
#ifndef KN_ENGINE_VAE_WAN_H
#define KN_ENGINE_VAE_WAN_H

#include "engine/comm.h"
#include "engine/repository.h"
#include "engine/weights.h"
#include "kernels/device.h"

typedef struct kn_vae kn_vae;

typedef enum kn_vae_half { KN_VAE_DECODER = 1, KN_VAE_ENCODER = 2 } kn_vae_half;

/* Checks every tensor of the halves asked for (a bit set) and computes sizes; prepares nothing yet. `weights` is kept
 * until prepared. `compute` KN_BF16 rounds the operands of the residual blocks' convolutions; sums and the residual
 * stream stay in float32. */
kn_status kn_vae_create(kn_vae **out, const kn_wan_vae_config *config, const kn_weights *weights, kn_stream *stream,
                        kn_dtype compute, int halves);
void kn_vae_destroy(kn_vae **vae);

/* Device bytes of the prepared weights. */
size_t kn_vae_weight_bytes(const kn_vae *vae);

/* Lays the weights out in device memory, once; later calls do nothing. Decoding and encoding need it, sizes do not. */
kn_status kn_vae_prepare(kn_vae *vae, kn_stream *stream);

/* A finished frame in device memory, of the decoder's layout, valid during the call. `index` counts from 0. */
typedef kn_status kn_vae_frame_fn(void *context, int64_t index, const void *picture);
/* A finished latent frame of the encoder, [z_dim, h, w], the posterior's mean, not normalised. */
typedef kn_status kn_vae_latent_fn(void *context, int64_t index, const float *latent);

/* ---- decoding ---- */

typedef struct kn_vae_decoder kn_vae_decoder;

/* For latents of h x w; frames come as `layout`, in device memory. Allocates everything it will ever need.
 *
 * With a group of several ranks (NULL: alone) every member decodes the same latents with a decoder of its own and has a
 * share of each picture's rows; at every 3x3 convolution neighbours give each other one row, around the middle
 * attention all rows are gathered, and whole frames reach the first member alone. Members beyond the first h have
 * nothing to do. */
kn_status kn_vae_decoder_create(kn_vae_decoder **out, kn_vae *vae, kn_stream *stream, int32_t h, int32_t w,
                                kn_picture_layout layout, const kn_group *group);
void kn_vae_decoder_destroy(kn_vae_decoder **decoder);

/* Bytes a decoder of this size allocates. */
kn_status kn_vae_decoder_bytes(size_t *out, kn_vae *vae, kn_stream *stream, int32_t h, int32_t w,
                               const kn_group *group);

/* Decodes the next latent frame: channel c of it is latent[c * plane_stride ...] in device memory. With `normalized`
 * the latent is multiplied by latents_std and shifted by latents_mean first. The first frame gives one video frame,
 * each later one four (two per temporal stage), in 0..1. Frames are whole, and come on the group's first member only.
 */
kn_status kn_vae_decode(kn_vae_decoder *decoder, const float *latent, int64_t plane_stride, bool normalized,
                        kn_vae_frame_fn *frame, void *context);

/* What decoding remembers of the frames so far, between a decoder of whole pictures, which the group's first member has
 * (NULL on the others), and the shares' decoders of all members: handed out to shares that have decoded nothing yet,
 * and brought back. So a group can decode one frame of a clip and keep nothing. Bytes sent: all of the histories but
 * the first member's own share, and for the way out two border rows of each frame more. */
kn_status kn_vae_decoder_hand_out(kn_vae_decoder *share, const kn_vae_decoder *whole);
kn_status kn_vae_decoder_bring_back(const kn_vae_decoder *share, kn_vae_decoder *whole);

/* Video frames a clip of `latent_frames` has. */
int64_t kn_vae_frames(const kn_wan_vae_config *config, int64_t latent_frames);
int32_t kn_vae_spatial_factor(const kn_wan_vae_config *config);  /* 8 */
int32_t kn_vae_temporal_factor(const kn_wan_vae_config *config); /* 4 */

/* Floating-point operations of decoding, multiply and add counted separately, as executed: folded upsampling and
 * skipped zero frames are not counted. */
double kn_vae_decode_flop(const kn_vae *vae, int64_t latent_frames, int32_t h, int32_t w);

/* ---- encoding ---- */

typedef struct kn_vae_encoder kn_vae_encoder;

/* For frames of height x width pixels (multiples of the spatial factor).
 *
 * With a group of several ranks (NULL: alone) every member pushes the same frames to an encoder of its own and has a
 * share of the latent's rows and of the pixels they stand for, exchanged as in decoding; whole latents come on every
 * member, since all of them hold a generation's state. Members beyond the latent's rows compute nothing. */
kn_status kn_vae_encoder_create(kn_vae_encoder **out, kn_vae *vae, kn_stream *stream, int32_t height, int32_t width,
                                const kn_group *group);
void kn_vae_encoder_destroy(kn_vae_encoder **encoder);

/* Pushes the next video frame, planar in -1..1 in device memory. A latent comes out for the first frame and then for
 * every fourth. */
kn_status kn_vae_encode(kn_vae_encoder *encoder, const float *planes, int64_t plane_stride, kn_vae_latent_fn *latent,
                        void *context);

#endif
