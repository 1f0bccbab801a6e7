/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/loader.h"

#include <stdio.h>

#include "base/half.h"
#include "base/mem.h"

enum { NAME_BYTES = 256 };

static const kn_ops *ops_of(const kn_loader *loader)
{
    return kn_device_ops(kn_stream_device(loader->stream));
}

kn_status kn_loader_vector(kn_loader *loader, const float **out, const char *name, int32_t rank, const int64_t *shape,
                           kn_dtype precision)
{
    kn_status st = KN_OK;
    float *values = NULL;
    kn_tensor tensor;
    KN_TRY(kn_weights_expect(loader->weights, name, rank, shape, &tensor));
    int64_t count = kn_tensor_count(&tensor);
    float *memory = kn_arena_take(&loader->arena, (size_t)count * sizeof *memory);
    if (!memory) return KN_OK; /* counting */
    values = kn_alloc_array((size_t)count, sizeof *values);
    if (!values) return KN_NOMEM;
    for (int64_t i = 0; i < count; i++) {
        float value = kn_tensor_value(&tensor, i);
        values[i] = precision == KN_BF16 ? kn_bf16_round(value) : value;
    }
    KN_TRY(kn_stream_upload(loader->stream, memory, values, (size_t)count * sizeof *values));
    KN_TRY(kn_stream_synchronize(loader->stream));
    *out = memory;
fail:
    kn_free(values);
    return st;
}

static kn_status load_bias(kn_loader *loader, const float **out, const char *prefix, int64_t n, kn_dtype compute)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.bias", prefix);
    return kn_loader_vector(loader, out, name, 1, &n, compute);
}

kn_status kn_loader_linear(kn_loader *loader, kn_linear *out, const char *prefix, int32_t rank, const int64_t *shape,
                           int64_t n, kn_dtype compute, bool bias)
{
    kn_status st = KN_OK;
    char name[NAME_BYTES];
    kn_tensor tensor;
    snprintf(name, sizeof name, "%s.weight", prefix);
    KN_TRY(kn_weights_expect(loader->weights, name, rank, shape, &tensor));
    const kn_weight source = {.data = tensor.data,
                              .n = n,
                              .k = kn_tensor_count(&tensor) / n,
                              .dtype = tensor.dtype,
                              .layout = KN_WEIGHT_PLAIN};
    const kn_ops *ops = ops_of(loader);
    void *memory = kn_arena_take(&loader->arena, ops->weight_bytes(n, source.k, compute));
    if (memory) {
        KN_TRY(ops->weight_prepare(loader->stream, &out->w, memory, &source, compute));
        kn_weights_release(loader->weights, &tensor);
    }
    if (bias) KN_TRY(load_bias(loader, &out->bias, prefix, n, compute));
fail:
    return st;
}

kn_status kn_loader_conv_source(kn_loader *loader, kn_weight *source, const char *prefix, const kn_conv_args *conv,
                                bool planar, int32_t parts, int32_t part)
{
    kn_status st = KN_OK;
    char name[NAME_BYTES];
    kn_tensor tensor;
    const int64_t n = conv->out.channels, c = conv->in[conv->kt - 1].channels;
    const int64_t k = c * conv->kt * conv->kh * conv->kw;
    const int64_t solid[] = {n * parts, c, conv->kt, conv->kh, conv->kw};
    const int64_t flat[] = {n * parts, c, conv->kh, conv->kw};
    snprintf(name, sizeof name, "%s.weight", prefix);
    KN_TRY(kn_weights_expect(loader->weights, name, planar ? 4 : 5, planar ? flat : solid, &tensor));
    *source = (kn_weight){.data = (const char *)tensor.data + (size_t)(part * n * k) * kn_dtype_bytes(tensor.dtype),
                          .n = n,
                          .k = k,
                          .dtype = tensor.dtype,
                          .layout = KN_WEIGHT_PLAIN};
fail:
    return st;
}

kn_status kn_loader_conv_bias(kn_loader *loader, const float **out, const char *prefix, int64_t n, int32_t parts,
                              int32_t part)
{
    const float *bias = NULL;
    kn_status st = load_bias(loader, &bias, prefix, n * parts, KN_F32);
    *out = bias ? bias + part * n : NULL; /* NULL while counting */
    return st;
}

kn_status kn_loader_conv(kn_loader *loader, kn_conv_layer *out, const char *prefix, const kn_conv_args *conv,
                         bool planar, int32_t parts, int32_t part)
{
    kn_status st = KN_OK;
    kn_weight source;
    const kn_ops *ops = ops_of(loader);
    KN_TRY(kn_loader_conv_source(loader, &source, prefix, conv, planar, parts, part));
    void *memory = kn_arena_take(&loader->arena, ops->conv_weight_bytes(conv));
    if (memory) KN_TRY(ops->conv_weight_prepare(loader->stream, &out->w, memory, &source, conv));
    KN_TRY(kn_loader_conv_bias(loader, &out->bias, prefix, conv->out.channels, parts, part));
fail:
    return st;
}

kn_status kn_loader_run(const kn_weights *weights, kn_stream *stream, kn_load_fn *load, void *context, void **memory,
                        size_t *bytes)
{
    kn_status st = KN_OK;
    void *block = NULL;
    kn_loader loader = {.weights = weights, .stream = stream};
    KN_TRY(load(&loader, context));
    *bytes = loader.arena.peak;
    if (!memory) return KN_OK;
    KN_TRY(kn_device_alloc(kn_stream_device(stream), &block, *bytes));
    loader.arena = kn_arena_view(block, *bytes);
    KN_TRY(load(&loader, context));
    *memory = block;
    return KN_OK;
fail:
    kn_device_free(kn_stream_device(stream), block);
    return st;
}
