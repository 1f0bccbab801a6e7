/* SPDX-License-Identifier: Apache-2.0
 *
 * From checkpoint tensors to device memory. A network's loading code runs twice:
 * once to count (it looks every tensor up, checks its shape and adds up bytes, so
 * a broken checkpoint is refused before anything is allocated), once to fill the
 * memory that was counted. */
#ifndef KN_ENGINE_LOADER_H
#define KN_ENGINE_LOADER_H

#include "base/arena.h"
#include "engine/weights.h"
#include "kernels/device.h"

typedef struct kn_loader {
    const kn_weights *weights;
    kn_stream *stream;
    kn_arena arena; /* base NULL: count only */
} kn_loader;

/* y = x w^T + bias. */
typedef struct kn_linear {
    kn_weight w;
    const float *bias; /* [n] device memory, or NULL */
} kn_linear;

/* `prefix`.weight (n, k) prepared for products in `compute`, and `prefix`.bias (n) if `bias`. A compute type of
 * bfloat16 also rounds the bias to it, as a checkpoint cast to bfloat16 would. A convolution with a 1x1 kernel or a
 * patch embedding may be read as a linear layer: `rank` and `shape` are then the tensor's own, n * k elements. */
kn_status kn_loader_linear(kn_loader *loader, kn_linear *out, const char *prefix, int32_t rank, const int64_t *shape,
                           int64_t n, kn_dtype compute, bool bias);

/* A tensor as float32 values in device memory, rounded to `precision` on the way. */
kn_status kn_loader_vector(kn_loader *loader, const float **out, const char *name, int32_t rank, const int64_t *shape,
                           kn_dtype precision);

/* A convolution's `prefix`.weight (n, c, kt, kh, kw), or (n, c, kh, kw) when `planar`, prepared for `shape`
 * (out.channels and in[kt - 1] give the channels and the compute type), and its bias. With parts > 1 the tensor has
 * parts times as many outputs, of which block `part` is taken. */
typedef struct kn_conv_layer {
    kn_weight w;
    const float *bias;
} kn_conv_layer;

/* The checkpoint's own values of such a weight, for kn_ops.conv_weight_prepare; takes no device memory. */
kn_status kn_loader_conv_source(kn_loader *loader, kn_weight *source, const char *prefix, const kn_conv_args *shape,
                                bool planar, int32_t parts, int32_t part);

/* The bias of such a convolution: outputs [part * n, (part + 1) * n). */
kn_status kn_loader_conv_bias(kn_loader *loader, const float **out, const char *prefix, int64_t n, int32_t parts,
                              int32_t part);

kn_status kn_loader_conv(kn_loader *loader, kn_conv_layer *out, const char *prefix, const kn_conv_args *shape,
                         bool planar, int32_t parts, int32_t part);

/* Runs `load(loader, context)` twice as described. *memory is the device block (kn_device_free it), *bytes its size.
 * With memory NULL only counts. */
typedef kn_status kn_load_fn(kn_loader *loader, void *context);
kn_status kn_loader_run(const kn_weights *weights, kn_stream *stream, kn_load_fn *load, void *context, void **memory,
                        size_t *bytes);

#endif
