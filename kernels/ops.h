/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators on device memory. They know rows, offsets and frames; no models.
 *
 * An operator is a contract with several implementations ("tiers"): `ref`, plain
 * C with double accumulation, written to be read, and faster ones per device.
 * The argument struct below is the contract; tests/checkops holds every tier to
 * `ref`. Fill structs with designated initialisers: a field left out is zero,
 * and zero means "without".
 *
 * Determinism: one output element is one fixed sequence of operations on its own
 * inputs. It does not depend on how many rows, sequences or threads share the
 * call, nor where in the call its row lies. That is what makes a job's bytes the
 * same alone or batched.
 *
 * Shapes are written slowest first. Sizes are elements unless named bytes. All
 * pointers are device memory unless stated. Calls are ordered by their stream.
 * Data need only be aligned to its element; a view may end where memory ends.
 * Outputs overlap no input unless stated, and only elements of the view are written.
 * Subnormal numbers may be taken as zero. NaN reaches the elements that are
 * computed from it and no others.
 * Arguments are checked by the caller of the engine, not here: a violated
 * precondition is a bug (assert).
 */
#ifndef KN_KERNELS_OPS_H
#define KN_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_stream kn_stream;

typedef enum kn_dtype { KN_F32, KN_BF16, KN_F16 } kn_dtype;

static inline size_t kn_dtype_bytes(kn_dtype dtype)
{
    return dtype == KN_F32 ? 4 : 2;
}

/* A row-major matrix view; element (r, c) is at data[r * stride + c]. */
typedef struct kn_matrix {
    void *data;
    int64_t rows;
    int64_t cols;
    int64_t stride; /* >= cols */
    kn_dtype dtype; /* activations: KN_F32 or KN_BF16 */
} kn_matrix;

/* A linear layer's weight [n, k], y = x w^T, prepared for one device by
 * kn_ops.weight_prepare. PLAIN is the checkpoint's own row-major layout,
 * possibly the file mapping itself, and may be any dtype; PANEL is
 * [n/panel][k/pair][panel][pair], zero padded, in the compute dtype. */
typedef enum kn_weight_layout { KN_WEIGHT_PLAIN, KN_WEIGHT_PANEL } kn_weight_layout;

typedef struct kn_weight {
    const void *data;
    int64_t n, k;
    kn_dtype dtype; /* of data */
    kn_weight_layout layout;
    int32_t panel;    /* PANEL: output columns in one panel */
    int32_t pair;     /* PANEL: consecutive k stored side by side (2 for bf16 dot products) */
    kn_dtype compute; /* products are formed from values rounded to this type, summed in f32 */
} kn_weight;

typedef enum kn_activation { KN_ACT_NONE, KN_ACT_GELU_TANH, KN_ACT_SILU } kn_activation;

/* Per-row vectors: row r uses table[row_index[r] * stride + ...], or row 0 for
 * every r when row_index is NULL. */
typedef struct kn_row_table {
    const float *data; /* [entries, stride] f32; NULL: without */
    int64_t stride;
    const int32_t *row_index; /* [rows] */
} kn_row_table;

/* y = act(a w^T + bias); out = y, or out = residual + y, or out = residual + y * gate[row].
 * f32 accumulation in ascending k. `residual` may be `out` itself. */
typedef struct kn_gemm_args {
    kn_matrix out;      /* [m, n] */
    kn_matrix a;        /* [m, k] */
    const kn_weight *w; /* (n, k) */
    const float *bias;  /* [n] or NULL */
    kn_activation activation;
    kn_matrix residual; /* [m, n], dtype of out; data NULL: without */
    kn_row_table gate;  /* [entries, n]; only with residual */
} kn_gemm_args;

/* For every sequence s, head h and query row i in [q_offsets[s], q_offsets[s+1]):
 *   logit[j] = scale * <q_i, k_j> + relative_bias[h, j - i] (+ tail_log_weight[s] for the last key)
 *   out_i = sum_j softmax(logit)_j v_j     over keys j in [k_offsets[s], k_offsets[s+1])
 * In relative_bias, i and j count from the first query and key of their sequence.
 * tail_log_weight = ln(n) makes the last key count n times: the constant padding rows of a text
 * context are computed once. Softmax in f32. Every sequence has at least one key. q, k and v have one dtype; for
 * bf16, head_dim and k.stride are even. */
typedef struct kn_attention_args {
    kn_matrix out; /* [q rows, heads * head_dim] */
    kn_matrix q;   /* [q rows, heads * head_dim] */
    kn_matrix k;   /* [k rows, heads * head_dim] */
    kn_matrix v;   /* [k rows, heads * head_dim] */
    int32_t heads;
    int32_t head_dim;
    float scale;
    int32_t sequences;
    const int32_t *q_offsets;     /* [sequences + 1], host memory, rows */
    const int32_t *k_offsets;     /* [sequences + 1], host memory, rows */
    const float *tail_log_weight; /* [sequences], host memory, or NULL */
    const float *relative_bias;   /* [heads, 2 * relative_span - 1] f32, entry (key - query) + span - 1; or NULL */
    int32_t relative_span;        /* >= longest sequence when relative_bias is set */
    void *workspace;              /* kn_ops.attention_workspace(args) bytes */
} kn_attention_args;

/* n = (x - mean) / sqrt(var + eps), biased variance, f32.
 * out = n * weight + bias (either may be NULL), or n * (1 + scale[row]) + shift[row], or n. */
typedef struct kn_layernorm_args {
    kn_matrix out;
    kn_matrix x;
    float eps;
    const float *weight; /* [cols] or NULL */
    const float *bias;   /* [cols] or NULL */
    kn_row_table scale;  /* both or neither */
    kn_row_table shift;
} kn_layernorm_args;

/* Rotary embedding over three axes (frame, row, column). Adjacent pairs (a, b) at
 * (2p, 2p+1) of every head become (a cos - b sin, a sin + b cos); the first pairs[0] pairs by the frame index, the next
 * pairs[1] by the row, the last pairs[2] by the column. */
typedef struct kn_position {
    uint16_t axis[3];
} kn_position;

typedef struct kn_rope {
    const float *table[3]; /* [positions, pairs[i], 2] f32: cos, sin */
    int32_t pairs[3];      /* sum = head_dim / 2 */
    int32_t head_dim;
    const kn_position *positions; /* [rows]; NULL: without rotary embedding */
} kn_rope;

/* out = x / sqrt(mean(x^2) + eps) * weight over the whole row, then rope. out may be x.
 * Statistics and products in f32, rounded once to out's dtype. */
typedef struct kn_rmsnorm_args {
    kn_matrix out;
    kn_matrix x;
    const float *weight; /* [cols] */
    float eps;
    kn_rope rope;
} kn_rmsnorm_args;

typedef struct kn_silu_args {
    kn_matrix out;
    kn_matrix x;
} kn_silu_args;

/* out = gelu_tanh(a) * b, rounded once. out may be a. */
typedef struct kn_gated_gelu_args {
    kn_matrix out;
    kn_matrix a;
    kn_matrix b;
} kn_gated_gelu_args;

typedef struct kn_embed_args {
    kn_matrix out;      /* [ids, cols] */
    kn_matrix table;    /* [vocabulary, cols], any dtype */
    const int32_t *ids; /* [out.rows], host memory, each < table.rows */
} kn_embed_args;

/* out[r, c] = x[r, c] + table[c]. f32 sum. out may be x. */
typedef struct kn_add_table_args {
    kn_matrix out;
    kn_matrix x;
    const float *table; /* [cols] */
} kn_add_table_args;

/* out[r, i] = cos(t[r] f_i), out[r, half + i] = sin(t[r] f_i), f_i = 10000^(-i / half),
 * half = cols / 2 (Vaswani et al. 2017, sec. 3.5, cosine first). */
typedef struct kn_timestep_embed_args {
    kn_matrix out;          /* [timesteps, cols] f32 */
    const float *timesteps; /* [rows], host memory */
} kn_timestep_embed_args;

/* What every row of a pack must know. Row r of sequence s (offsets[s] <= r < offsets[s + 1]) is token first[s] + r -
 * offsets[s] of a grid of frames with height[s] x width[s] tokens, frame-major, then row, then column. */
typedef struct kn_pack_rows_args {
    int32_t *sequence;      /* [rows] s; or NULL */
    kn_position *positions; /* [rows] frame, row and column; or NULL */
    int32_t sequences;
    const int32_t *offsets;        /* [sequences + 1], host memory, rows */
    const int32_t *first;          /* [sequences], host memory, tokens */
    const int32_t *height, *width; /* [sequences], host memory, tokens */
} kn_pack_rows_args;

/* rows[token(t, y, x), ((c * 2 + dy) * 2 + dx)] = latent[c, t, 2y + dy, 2x + dx];
 * tokens frame-major, then row, then column. */
typedef struct kn_patchify_args {
    kn_matrix out;             /* [t * h/2 * w/2, channels * 4] */
    const float *latent;       /* [channels, t, h, w] f32 */
    int32_t channels, t, h, w; /* h, w even */
} kn_patchify_args;

/* The inverse with the other nesting (channel fastest):
 * latent[c, t, 2y + dy, 2x + dx] = rows[token(t, y, x), (dy * 2 + dx) * channels + c]. */
typedef struct kn_unpatchify_args {
    float *latent; /* [channels, t, h, w] f32 */
    kn_matrix x;   /* [t * h/2 * w/2, channels * 4] */
    int32_t channels, t, h, w;
} kn_unpatchify_args;

/* One step of a sampler over one generation's latents, guidance included, in one pass over memory. Arrays are [count]
 * f32. With p = m_prev, pp = m_prev2, coefficients a (velocity), c (corrector), b (predictor):
 *   m      = (x + a[0] * velocity[0]) + a[1] * velocity[1]              one velocity: without the second term
 *   x_prev = ((c[0] * x_prev + c[1] * pp) + c[2] * p) + c[3] * m        or x, where not `corrected`
 *   x      = (b[0] * x_prev + b[1] * p) + b[2] * m
 * or, where m is NULL, x = the first line alone (Euler). With guidance g and step d, a = {d g, d (1 - g)} for the
 * velocities of prompt and negative prompt (Ho and Salimans 2022); engine/sampling.h has the others. Every product
 * and sum is rounded by itself (no fused multiply-add), so every tier gives the same bits. */
typedef struct kn_sampler_step_args {
    float *x; /* in: the sample; out: the next */
    int64_t count;
    int32_t velocities; /* 1 or 2 */
    const float *velocity[2];
    float velocity_weight[2];
    float *m;                      /* out; NULL: a first-order step, and nothing below is read */
    float *x_prev;                 /* in, where corrected, and out */
    const float *m_prev, *m_prev2; /* m of the two steps before; m_prev2 is read where corrected */
    bool corrected;
    float corrector[4], predictor[3];
} kn_sampler_step_args;

/* A frame of pixels, channels last: channel c of pixel (y, x) is at
 * data[(y * row_stride + x) * channels + c]. A convolution may read `border`
 * pixels outside on every side; they exist in memory and are zero. */
typedef struct kn_frame {
    void *data; /* pixel (0, 0); NULL as a convolution's input: a frame of zeros */
    int32_t height, width, channels;
    int32_t row_stride; /* pixels, >= width + 2 * border */
    int32_t border;     /* 0 or 1 */
    kn_dtype dtype;     /* KN_F32, or KN_BF16 for the input of a convolution whose weight computes in bf16 */
} kn_frame;

enum { KN_CONV_FRAMES_MAX = 3 };

typedef enum kn_conv_mode {
    KN_CONV_SAME,       /* stride 1; a 3x3 kernel reads one pixel around (border >= 1) */
    KN_CONV_DOWN,       /* 3x3, stride 2, zero pad right and bottom only: out (y, x) is centred on in (2y+1, 2x+1) */
    KN_CONV_UP_NEAREST, /* 3x3 stride 1 over the input enlarged 2x by repetition; never materialised */
} kn_conv_mode;

/* One output frame of a convolution with kernel (kt, kh, kw), kh = kw in {1, 3}, kt in {1, 3}:
 *   out[y, x, n] = bias[n] + sum over dt, dy, dx, c of w[n, ((dt * kh + dy) * kw + dx) * channels + c] * in[dt][...]
 *                  (+ residual[y, x, n])
 * in[0] is the oldest frame. A NULL frame is skipped: its products are exactly zero. The last, in[kt - 1],
 * is never NULL. DOWN and UP_NEAREST have kt = 1. For bf16 the input channels are even. */
typedef struct kn_conv_args {
    kn_frame out;                    /* f32 */
    kn_frame in[KN_CONV_FRAMES_MAX]; /* kt of them, equal geometry, dtype = w->compute */
    int32_t kt, kh, kw;
    kn_conv_mode mode;
    const kn_weight *w; /* (out channels, kt * kh * kw * in channels), prepared by kn_conv_weight_prepare */
    const float *bias;  /* [out channels] or NULL */
    kn_frame residual;  /* f32, height, width and channels of out; data NULL: without; may be out */
} kn_conv_args;

/* y = x / max(sqrt(sum_c x^2), 1e-12) * sqrt(channels) * gamma[c]; out = silu(y) or y.
 * Writes only the frame's pixels, never its border. out may be x. */
typedef struct kn_channel_norm_args {
    kn_frame out;
    kn_frame x;
    const float *gamma; /* [channels] */
    bool silu;
} kn_channel_norm_args;

/* out[y, x, c] = planes[c * plane_stride + y * width + x] * scale[c] + shift[c]; NULL scale = 1, NULL shift = 0. */
typedef struct kn_frame_pack_args {
    kn_frame out;
    const float *planes;
    int64_t plane_stride; /* elements between channels */
    const float *scale;   /* [channels], host memory */
    const float *shift;
} kn_frame_pack_args;

/* planes[c * plane_stride + y * width + x] = clamp(x[y, x, c] * scale[c] + shift[c], low, high). */
typedef struct kn_frame_unpack_args {
    float *planes;
    int64_t plane_stride;
    kn_frame x;
    const float *scale; /* [channels], host memory, or NULL */
    const float *shift;
    float low, high; /* low < high: clamp; equal: none */
} kn_frame_unpack_args;

enum { KN_PICTURE_TERMS_MAX = 3, KN_PICTURE_CHANNELS = 3 };

typedef enum kn_picture_layout {
    KN_PICTURE_PLANES, /* [3, height, width] f32 in 0..1 */
    KN_PICTURE_RGB24,  /* [height, width, 3] bytes: floor(255 v + 0.5), NaN is 0 */
} kn_picture_layout;

/* A finished picture, for c < 3 and every pixel:
 *   s = (x[0][y, x, first[0] + c] + x[1][y, x, first[1] + c]) + ...      `terms` of them
 *   v = clamp(s * scale + shift[c], 0, 1)
 * Every sum and product is rounded by itself, so every tier gives the same bits. */
typedef struct kn_picture_args {
    void *out;
    kn_picture_layout layout;
    int32_t terms;                    /* 1..KN_PICTURE_TERMS_MAX */
    kn_frame x[KN_PICTURE_TERMS_MAX]; /* f32, equal height and width; channels >= first + 3 */
    int32_t first[KN_PICTURE_TERMS_MAX];
    float scale, shift[KN_PICTURE_CHANNELS];
} kn_picture_args;

/* The table of one device: the best allowed implementation of each operator. */
typedef struct kn_ops {
#define KN_OP(name, summary) kn_status (*name)(kn_stream * stream, const kn_##name##_args *args);
#include "kernels/ops.inc"
#undef KN_OP
    /* Bytes of kn_attention_args.workspace; data pointers need not be set. */
    size_t (*attention_workspace)(const kn_attention_args *args);
    /* Bytes a weight takes once prepared, and the preparation itself. `source` is PLAIN in any dtype; its `compute` is
     * not read. Sets every field of `out`, with out->data = destination (64-byte aligned). */
    size_t (*weight_bytes)(int64_t n, int64_t k, kn_dtype compute);
    kn_status (*weight_prepare)(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                kn_dtype compute);
    /* The same for a convolution: `source` is (n, c, kt, kh, kw) as checkpoints store it, k = c * kt * kh * kw. Of
     * `shape` only out.channels, the channels and dtype (the compute type) of in[kt - 1], kt, kh, kw and mode are read.
     * For KN_CONV_UP_NEAREST a tier may fold the nine taps into four 2x2 kernels, one per output parity. */
    size_t (*conv_weight_bytes)(const kn_conv_args *shape);
    kn_status (*conv_weight_prepare)(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                     const kn_conv_args *shape);
} kn_ops;

#endif
