/* SPDX-License-Identifier: Apache-2.0
 *
 *   x = embedding[ids]
 *   per layer:  y = rms(x) w;  x += Wo attention(Wq y, Wk y, Wv y, bias), without 1/sqrt(d)
 *               y = rms(x) w;  x += Wo (gelu_tanh(W0 y) * (W1 y))
 *   out = rms(x) w
 */
#include "engine/text_umt5.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "engine/loader.h"

enum { NAME_BYTES = 128 };

typedef struct layer_norms {
    const float *attention, *ffn; /* [d_model] device */
} layer_norms;

struct kn_umt5 {
    kn_umt5_config config;
    const kn_weights *weights;
    kn_device *device;
    const kn_ops *ops;
    kn_dtype compute;
    void *memory;
    layer_norms *layers;
    const float *final_norm;
    kn_tensor embedding; /* (vocab_size, d_model) in the mapping */
    bool resident;       /* the device cannot read the mapping: its matrices are prepared once and kept */
    void *matrices;      /* prepared weights; NULL before */
    size_t matrix_bytes;
    kn_weight *prepared; /* [num_layers][MATRICES] */
};

/* A layer's matrices, views into the mapping. */
enum { Q, K, V, O, WI_0, WI_1, WO, MATRICES };
static const char *const matrix_names[MATRICES] = {
    "0.SelfAttention.q",     "0.SelfAttention.k",     "0.SelfAttention.v",   "0.SelfAttention.o",
    "1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1", "1.DenseReluDense.wo",
};

typedef struct layer_view {
    kn_tensor tensors[MATRICES];
    kn_weight weights[MATRICES];
    kn_tensor bias; /* (buckets, heads) */
} layer_view;

static kn_status view_layer(const kn_umt5 *e, int layer, layer_view *view)
{
    kn_status st = KN_OK;
    const kn_umt5_config *c = &e->config;
    const int64_t inner = (int64_t)c->num_heads * c->d_kv;
    char name[NAME_BYTES];
    for (int i = 0; i < MATRICES; i++) {
        int64_t n = i == O || i == WO ? c->d_model : i < O ? inner : c->d_ff;
        int64_t k = i == O ? inner : i == WO ? c->d_ff : c->d_model;
        snprintf(name, sizeof name, "encoder.block.%d.layer.%s.weight", layer, matrix_names[i]);
        KN_TRY(kn_weights_expect(e->weights, name, 2, (int64_t[]){n, k}, &view->tensors[i]));
        view->weights[i] = (kn_weight){.data = view->tensors[i].data,
                                       .n = n,
                                       .k = k,
                                       .dtype = view->tensors[i].dtype,
                                       .layout = KN_WEIGHT_PLAIN,
                                       .compute = e->compute};
    }
    snprintf(name, sizeof name, "encoder.block.%d.layer.0.SelfAttention.relative_attention_bias.weight", layer);
    KN_TRY(kn_weights_expect(e->weights, name, 2, (int64_t[]){c->relative_attention_num_buckets, c->num_heads},
                             &view->bias));
fail:
    return st;
}

static kn_status load_norms(kn_loader *l, void *context)
{
    kn_status st = KN_OK;
    kn_umt5 *e = context;
    const int64_t d = e->config.d_model;
    char name[NAME_BYTES];
    for (int i = 0; i < e->config.num_layers; i++) {
        snprintf(name, sizeof name, "encoder.block.%d.layer.0.layer_norm.weight", i);
        KN_TRY(kn_loader_vector(l, &e->layers[i].attention, name, 1, &d, KN_F32));
        snprintf(name, sizeof name, "encoder.block.%d.layer.1.layer_norm.weight", i);
        KN_TRY(kn_loader_vector(l, &e->layers[i].ffn, name, 1, &d, KN_F32));
    }
    KN_TRY(kn_loader_vector(l, &e->final_norm, "encoder.final_layer_norm.weight", 1, &d, KN_F32));
fail:
    return st;
}

static kn_status load_matrices(kn_loader *l, void *context)
{
    kn_status st = KN_OK;
    kn_umt5 *e = context;
    layer_view view;
    for (int i = 0; i < e->config.num_layers; i++) {
        KN_TRY(view_layer(e, i, &view));
        for (int j = 0; j < MATRICES; j++) {
            const kn_weight *source = &view.weights[j];
            void *memory = kn_arena_take(&l->arena, e->ops->weight_bytes(source->n, source->k, e->compute));
            if (!memory) continue; /* counting */
            kn_weight *out = &e->prepared[i * MATRICES + j];
            KN_TRY(e->ops->weight_prepare(l->stream, out, memory, source, e->compute));
            kn_weights_release(e->weights, &view.tensors[j]);
        }
    }
fail:
    return st;
}

kn_status kn_umt5_prepare(kn_umt5 *e, kn_stream *stream)
{
    if (!e->resident || e->matrices) return KN_OK;
    return kn_loader_run(e->weights, stream, load_matrices, e, &e->matrices, &e->matrix_bytes);
}

size_t kn_umt5_prepared_bytes(const kn_umt5 *e)
{
    return e->matrix_bytes;
}

size_t kn_umt5_weight_bytes(const kn_umt5_config *c)
{
    kn_arena count = {0};
    for (int i = 0; i < 2 * c->num_layers + 1; i++) kn_arena_take(&count, (size_t)c->d_model * sizeof(float));
    return count.peak;
}

kn_status kn_umt5_create(kn_umt5 **out, const kn_umt5_config *config, const kn_weights *weights, kn_stream *stream,
                         kn_dtype compute)
{
    kn_status st = KN_OK;
    size_t bytes;
    kn_device_info info;
    kn_umt5 *e = kn_alloc(sizeof *e);
    if (!e) return KN_NOMEM;
    e->config = *config;
    e->weights = weights;
    e->device = kn_stream_device(stream);
    e->ops = kn_device_ops(e->device);
    e->compute = config->d_kv % 2 == 0 ? compute : KN_F32; /* bfloat16 attention takes a head's elements in pairs */
    kn_device_describe(e->device, &info);
    e->resident = !info.host_memory;
    e->layers = kn_alloc_array((size_t)config->num_layers, sizeof *e->layers);
    e->prepared = kn_alloc_array((size_t)config->num_layers * MATRICES, sizeof *e->prepared);
    if (!e->layers || !e->prepared) {
        st = KN_NOMEM;
        goto fail;
    }
    const char *embedding =
        kn_weights_has(weights, "shared.weight") || !kn_weights_has(weights, "encoder.embed_tokens.weight")
            ? "shared.weight"
            : "encoder.embed_tokens.weight"; /* tied: either may be stored */
    KN_TRY(kn_weights_expect(weights, embedding, 2, (int64_t[]){config->vocab_size, config->d_model}, &e->embedding));
    layer_view view;
    for (int i = 0; i < config->num_layers; i++) KN_TRY(view_layer(e, i, &view));
    KN_TRY(kn_loader_run(weights, stream, load_norms, e, &e->memory, &bytes));
    if (e->resident) KN_TRY(kn_loader_run(weights, stream, load_matrices, e, NULL, &e->matrix_bytes));
    *out = e;
    return KN_OK;
fail:
    kn_umt5_destroy(&e);
    return st;
}

void kn_umt5_destroy(kn_umt5 **handle)
{
    kn_umt5 *e = *handle;
    if (!e) return;
    kn_device_free(e->device, e->memory);
    kn_device_free(e->device, e->matrices);
    kn_free(e->prepared);
    kn_free(e->layers);
    kn_free(e);
    *handle = NULL;
}

/* Half the buckets for each direction; in each, distances below a quarter of all buckets have their own, larger ones
 * share logarithmically up to max_distance. */
int32_t kn_umt5_bucket(int32_t distance, int32_t buckets, int32_t max_distance)
{
    const int32_t half = buckets / 2, exact = half / 2;
    const int32_t base = distance > 0 ? half : 0;
    const int32_t n = distance < 0 ? -distance : distance;
    if (n < exact) return base + n;
    float scaled = logf((float)n / (float)exact) / logf((float)max_distance / (float)exact) * (float)(half - exact);
    int32_t large = exact + (int32_t)scaled;
    return base + (large < half - 1 ? large : half - 1);
}

/* [heads, 2 * span - 1]: the bias of every distance, so that a query row reads a contiguous run. */
static void fill_bias(const kn_umt5 *e, const kn_tensor *source, float *bias, int32_t span)
{
    const int32_t heads = e->config.num_heads;
    for (int32_t distance = -(span - 1); distance < span; distance++) {
        int32_t bucket = kn_umt5_bucket(distance, e->config.relative_attention_num_buckets,
                                        e->config.relative_attention_max_distance);
        for (int32_t h = 0; h < heads; h++) {
            bias[(int64_t)h * (2 * span - 1) + distance + span - 1] =
                kn_tensor_value(source, (int64_t)bucket * heads + h);
        }
    }
}

typedef struct buffers {
    kn_matrix x;          /* [tokens, d_model] f32 residual */
    kn_matrix y;          /* [tokens, d_model] */
    kn_matrix q, k, v, o; /* [tokens, heads * d_kv] */
    kn_matrix a, b;       /* [tokens, d_ff] */
    float *bias;          /* [heads, 2 span - 1] */
    int32_t span;
    const int32_t *offsets;
    int32_t sequences;
    void *workspace;
} buffers;

static kn_matrix take(kn_arena *arena, int64_t rows, int64_t cols, kn_dtype dtype)
{
    return (kn_matrix){.data = kn_arena_take(arena, (size_t)(rows * cols) * kn_dtype_bytes(dtype)),
                       .rows = rows,
                       .cols = cols,
                       .stride = cols,
                       .dtype = dtype};
}

static kn_attention_args attention_of(const kn_umt5 *e, const buffers *b)
{
    return (kn_attention_args){.out = b->o,
                               .q = b->q,
                               .k = b->k,
                               .v = b->v,
                               .heads = e->config.num_heads,
                               .head_dim = e->config.d_kv,
                               .scale = 1.0f,
                               .sequences = b->sequences,
                               .q_offsets = b->offsets,
                               .k_offsets = b->offsets,
                               .relative_bias = b->bias,
                               .relative_span = b->span,
                               .workspace = b->workspace};
}

static buffers lay_out(const kn_umt5 *e, kn_arena *arena, const int32_t *offsets, int32_t sequences)
{
    const kn_umt5_config *c = &e->config;
    const int64_t tokens = offsets[sequences], inner = (int64_t)c->num_heads * c->d_kv;
    buffers b = {.offsets = offsets, .sequences = sequences, .span = 1};
    for (int i = 0; i < sequences; i++)
        if (offsets[i + 1] - offsets[i] > b.span) b.span = offsets[i + 1] - offsets[i];
    b.x = take(arena, tokens, c->d_model, KN_F32);
    b.y = take(arena, tokens, c->d_model, e->compute);
    const size_t shared = kn_arena_mark(arena);
    b.q = take(arena, tokens, inner, e->compute);
    b.k = take(arena, tokens, inner, e->compute);
    b.v = take(arena, tokens, inner, e->compute);
    b.o = take(arena, tokens, inner, e->compute);
    b.bias = kn_arena_take(arena, (size_t)c->num_heads * (size_t)(2 * b.span - 1) * sizeof *b.bias);
    kn_attention_args args = attention_of(e, &b);
    b.workspace = kn_arena_take(arena, e->ops->attention_workspace(&args));
    kn_arena_reset(arena, shared);
    b.a = take(arena, tokens, c->d_ff, e->compute);
    b.b = take(arena, tokens, c->d_ff, e->compute);
    return b;
}

size_t kn_umt5_workspace(const kn_umt5 *e, const int32_t *offsets, int32_t sequences)
{
    kn_arena arena = {0};
    lay_out(e, &arena, offsets, sequences);
    return arena.peak + KN_ARENA_ALIGN;
}

static kn_status rms(const kn_umt5 *e, kn_stream *s, kn_matrix out, kn_matrix x, const float *weight)
{
    return e->ops->rmsnorm(
        s, &(kn_rmsnorm_args){.out = out, .x = x, .weight = weight, .eps = (float)e->config.layer_norm_epsilon});
}

static kn_status product(const kn_umt5 *e, kn_stream *s, kn_matrix out, kn_matrix a, const kn_weight *w, bool add)
{
    return e->ops->gemm(s, &(kn_gemm_args){.out = out, .a = a, .w = w, .residual = add ? out : (kn_matrix){0}});
}

static size_t bias_count(const kn_umt5 *e, int32_t span)
{
    return (size_t)e->config.num_heads * (size_t)(2 * span - 1);
}

/* The layer's bias into device memory, by way of `host` where the device does not read the host's. */
static kn_status place_bias(const kn_umt5 *e, kn_stream *s, const buffers *b, const layer_view *view, float *host)
{
    fill_bias(e, &view->bias, host ? host : b->bias, b->span);
    return host ? kn_stream_upload(s, b->bias, host, bias_count(e, b->span) * sizeof *host) : KN_OK;
}

/* `host`: see place_bias. */
static kn_status run_layer(const kn_umt5 *e, kn_stream *s, const buffers *b, const layer_view *view, int layer,
                           float *host)
{
    kn_status st = KN_OK;
    const layer_norms *norms = &e->layers[layer];
    const kn_weight *w = e->resident ? &e->prepared[(ptrdiff_t)layer * MATRICES] : view->weights;
    KN_TRY(rms(e, s, b->y, b->x, norms->attention));
    KN_TRY(product(e, s, b->q, b->y, &w[Q], false));
    KN_TRY(product(e, s, b->k, b->y, &w[K], false));
    KN_TRY(product(e, s, b->v, b->y, &w[V], false));
    KN_TRY(place_bias(e, s, b, view, host));
    const kn_attention_args args = attention_of(e, b);
    KN_TRY(e->ops->attention(s, &args));
    KN_TRY(product(e, s, b->x, b->o, &w[O], true));

    KN_TRY(rms(e, s, b->y, b->x, norms->ffn));
    KN_TRY(product(e, s, b->a, b->y, &w[WI_0], false));
    KN_TRY(product(e, s, b->b, b->y, &w[WI_1], false));
    KN_TRY(e->ops->gated_gelu(s, &(kn_gated_gelu_args){.out = b->a, .a = b->a, .b = b->b}));
    KN_TRY(product(e, s, b->x, b->a, &w[WO], true));
fail:
    return st;
}

/* Rows of the embedding table. A device that does not read the host's memory gets them widened, which is exact: the
 * table stays in the mapping, as a prompt needs few of its rows. */
static kn_status embed(const kn_umt5 *e, kn_stream *stream, kn_matrix x, const int32_t *ids)
{
    kn_status st = KN_OK;
    const int64_t width = e->config.d_model;
    const kn_matrix table = {.data = (void *)(uintptr_t)e->embedding.data,
                             .rows = e->config.vocab_size,
                             .cols = width,
                             .stride = width,
                             .dtype = e->embedding.dtype};
    if (!e->resident) return e->ops->embed(stream, &(kn_embed_args){.out = x, .table = table, .ids = ids});
    float *rows = kn_alloc_array((size_t)x.rows, (size_t)width * sizeof *rows);
    if (!rows) return KN_NOMEM;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < width; c++) rows[r * width + c] = kn_tensor_value(&e->embedding, ids[r] * width + c);
    KN_TRY(kn_stream_upload(stream, x.data, rows, (size_t)(x.rows * width) * sizeof *rows));
    KN_TRY(kn_stream_synchronize(stream)); /* before `rows` goes */
fail:
    kn_free(rows);
    return st;
}

/* All layers on a device that has them. The biases of all are made on the host and stay until the end. */
static kn_status run_resident(kn_umt5 *e, kn_stream *stream, const buffers *b)
{
    kn_status st = KN_OK;
    layer_view view;
    const size_t count = bias_count(e, b->span);
    float *host = kn_alloc_array((size_t)e->config.num_layers, count * sizeof *host);
    if (!host) return KN_NOMEM;
    KN_TRY(kn_umt5_prepare(e, stream));
    for (int i = 0; i < e->config.num_layers; i++) {
        KN_TRY(view_layer(e, i, &view));
        KN_TRY(run_layer(e, stream, b, &view, i, host + (size_t)i * count));
    }
    KN_TRY(kn_stream_synchronize(stream));
fail:
    kn_free(host);
    return st;
}

/* Layer by layer out of the mapping: the next one is read from disk while this one computes. */
static kn_status run_streamed(kn_umt5 *e, kn_stream *stream, const buffers *b)
{
    kn_status st = KN_OK;
    layer_view view;
    KN_TRY(view_layer(e, 0, &view));
    for (int i = 0; i < e->config.num_layers; i++) {
        layer_view next = view;
        if (i + 1 < e->config.num_layers) {
            KN_TRY(view_layer(e, i + 1, &next));
            for (int j = 0; j < MATRICES; j++) kn_weights_prefetch(e->weights, &next.tensors[j]);
        }
        for (int j = 0; j < MATRICES; j++) kn_weights_populate(e->weights, &view.tensors[j]);
        KN_TRY(run_layer(e, stream, b, &view, i, NULL));
        for (int j = 0; j < MATRICES; j++) kn_weights_release(e->weights, &view.tensors[j]);
        view = next;
    }
fail:
    return st;
}

kn_status kn_umt5_encode(kn_umt5 *e, kn_stream *stream, kn_arena *arena, const int32_t *ids, const int32_t *offsets,
                         int32_t sequences, kn_matrix out)
{
    kn_status st = KN_OK;
    const size_t mark = kn_arena_mark(arena);
    KN_REQUIRE(sequences > 0 && out.rows == offsets[sequences] && out.cols == e->config.d_model);
    for (int32_t i = 0; i < offsets[sequences]; i++)
        if (ids[i] < 0 || ids[i] >= e->config.vocab_size)
            return kn_fail(KN_INVALID, "token id %d is outside the text encoder's vocabulary of %d", ids[i],
                           e->config.vocab_size);
    const buffers b = lay_out(e, arena, offsets, sequences);
    KN_REQUIRE(!kn_arena_overflowed(arena));
    KN_TRY(embed(e, stream, b.x, ids));
    KN_TRY(e->resident ? run_resident(e, stream, &b) : run_streamed(e, stream, &b));
    KN_TRY(rms(e, stream, out, b.x, e->final_norm));
fail:
    kn_arena_reset(arena, mark);
    return st;
}

double kn_umt5_flop(const kn_umt5_config *c, int32_t tokens)
{
    const double inner = (double)c->num_heads * c->d_kv, n = tokens;
    return c->num_layers * (n * (8.0 * inner * c->d_model + 6.0 * (double)c->d_model * c->d_ff) + 4.0 * n * n * inner);
}
