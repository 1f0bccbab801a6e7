/* SPDX-License-Identifier: Apache-2.0
 *
 * The text encoder, whose weights are used where they lie in the file: a layer
 * cannot be faster than reading it, nor than multiplying by it. Both bounds are
 * reported.
 *
 * With random weights a few layers are measured and the rest follows by
 * multiplication. Their window shows one small block again and again, which a
 * cache may hold; the thorough run writes the layers to a temporary file and
 * maps that, as a model folder's are. */
#define _XOPEN_SOURCE 700
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "benchmarks/bench.h"

enum { LENGTHS = 2, NAME_BYTES = 128, MATRICES = 7, LAYER_TENSORS = MATRICES + 3, VOCABULARY = 1024, FIRST_ID = 3 };
static const int32_t lengths[LENGTHS] = {30, KN_TEXT_TOKENS};

typedef struct text_bench {
    kn_bench *bench;
    kn_umt5_config config; /* with the layers measured */
    int32_t all_layers;    /* of the model */
    const kn_weights *weights;
    const char *where; /* the weights are, for the note */
    kn_dtype type;
    kn_umt5 *encoder;
    kn_arena arena;
    void *workspace;
    int32_t ids[KN_TEXT_TOKENS];
    int32_t offsets[2];
    kn_matrix out;
} text_bench;

static kn_status run_encode(void *opaque)
{
    kn_status st = KN_OK;
    text_bench *t = opaque;
    KN_TRY(kn_umt5_encode(t->encoder, t->bench->stream, &t->arena, t->ids, t->offsets, 1, t->out));
    KN_TRY(kn_stream_synchronize(t->bench->stream));
fail:
    return st;
}

/* ---- the layers in a file ---- */

typedef struct tensor_list {
    kn_safetensors_spec *specs;
    char (*names)[NAME_BYTES];
    size_t count;
} tensor_list;

static void add_tensor(tensor_list *list, const char *name, int64_t rows, int64_t cols)
{
    kn_safetensors_spec *spec = &list->specs[list->count];
    snprintf(list->names[list->count], NAME_BYTES, "%s", name);
    *spec = (kn_safetensors_spec){
        .name = list->names[list->count], .dtype = KN_BF16, .rank = cols ? 2 : 1, .shape = {rows, cols}};
    list->count++;
}

static void list_layer(tensor_list *list, const kn_umt5_config *c, int32_t layer)
{
    const int64_t inner = (int64_t)c->num_heads * c->d_kv, d = c->d_model, f = c->d_ff;
    const struct {
        const char *name;
        int64_t rows, cols;
    } tensors[LAYER_TENSORS] = {
        {"0.SelfAttention.q", inner, d},
        {"0.SelfAttention.k", inner, d},
        {"0.SelfAttention.v", inner, d},
        {"0.SelfAttention.o", d, inner},
        {"1.DenseReluDense.wi_0", f, d},
        {"1.DenseReluDense.wi_1", f, d},
        {"1.DenseReluDense.wo", d, f},
        {"0.layer_norm", d, 0},
        {"1.layer_norm", d, 0},
        {"0.SelfAttention.relative_attention_bias", c->relative_attention_num_buckets, c->num_heads},
    };
    for (int i = 0; i < LAYER_TENSORS; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "encoder.block.%d.layer.%s.weight", layer, tensors[i].name);
        add_tensor(list, name, tensors[i].rows, tensors[i].cols);
    }
}

static kn_status write_layers(const char *path, const tensor_list *list, const kn_weights *source)
{
    kn_status st = KN_OK;
    kn_safetensors_writer *writer = NULL;
    KN_TRY(kn_safetensors_create(&writer, path, list->specs, list->count, NULL, NULL, 0));
    for (size_t i = 0; i < list->count; i++) {
        kn_tensor tensor;
        KN_TRY(kn_weights_expect(source, list->specs[i].name, list->specs[i].rank, list->specs[i].shape, &tensor));
        KN_TRY(kn_safetensors_write(writer, i, 0, tensor.data, (size_t)kn_tensor_count(&tensor) * sizeof(uint16_t)));
    }
    return kn_safetensors_finish(&writer);
fail:
    kn_safetensors_abandon(&writer);
    return st;
}

/* The layers as a file of their own; its name is gone when this returns, the mapping keeps the bytes. */
static kn_status map_layers(kn_weights **out, text_bench *t, const kn_weights *source)
{
    kn_status st = KN_OK;
    const char *root = getenv("TMPDIR");
    char *folder = kn_format("%s/kinora-bench-XXXXXX", root ? root : "/tmp"), *path = NULL;
    const size_t capacity = (size_t)t->config.num_layers * LAYER_TENSORS + 2;
    tensor_list list = {.specs = kn_alloc_array(capacity, sizeof *list.specs),
                        .names = kn_alloc_array(capacity, sizeof *list.names)};
    bool made = false;
    if (!folder || !list.specs || !list.names) KN_TRY(KN_NOMEM);
    if (!mkdtemp(folder)) KN_TRY(kn_fail(KN_IO, "%s: cannot make a temporary folder", folder));
    made = true;
    path = kn_format("%s/layers.safetensors", folder);
    if (!path) KN_TRY(KN_NOMEM);
    t->config.vocab_size = VOCABULARY; /* the table is only looked up in */
    for (int32_t i = 0; i < t->config.num_layers; i++) list_layer(&list, &t->config, i);
    add_tensor(&list, "encoder.final_layer_norm.weight", t->config.d_model, 0);
    add_tensor(&list, "shared.weight", VOCABULARY, t->config.d_model);
    KN_TRY(write_layers(path, &list, source));
    KN_TRY(kn_weights_open_file(out, path));
fail:
    if (path) unlink(path);
    if (made) rmdir(folder);
    kn_free(path);
    kn_free(folder);
    kn_free(list.specs);
    kn_free(list.names);
    return st;
}

/* ---- measuring ---- */

/* Bytes of a layer's matrices, as they are stored. */
static kn_status layer_bytes(const text_bench *t, double *out)
{
    kn_tensor wo;
    const kn_umt5_config *c = &t->config;
    const double inner = (double)c->num_heads * c->d_kv;
    kn_status st = kn_weights_expect(t->weights, "encoder.block.0.layer.1.DenseReluDense.wo.weight", 2,
                                     (int64_t[]){c->d_model, c->d_ff}, &wo);
    if (st == KN_OK)
        *out = (4.0 * inner * c->d_model + 3.0 * (double)c->d_model * c->d_ff) * (double)kn_dtype_bytes(wo.dtype);
    return st;
}

static kn_status bench_length(text_bench *t, int32_t tokens)
{
    kn_status st = KN_OK;
    kn_bench *b = t->bench;
    double bytes;
    const char *limit;
    kn_bench_row row = {.type = kn_bench_type_name(t->type), .bf16 = t->type == KN_BF16};
    t->offsets[1] = tokens;
    t->out = (kn_matrix){.rows = tokens, .cols = t->config.d_model, .stride = t->config.d_model, .dtype = KN_F32};
    for (int32_t i = 0; i < tokens; i++) t->ids[i] = FIRST_ID + i % (t->config.vocab_size - FIRST_ID);
    const size_t workspace = kn_umt5_workspace(t->encoder, t->offsets, 1);
    KN_TRY(kn_device_alloc(b->device, &t->out.data, (size_t)(t->out.rows * t->out.cols) * sizeof(float)));
    KN_TRY(kn_device_alloc(b->device, &t->workspace, workspace));
    t->arena = kn_arena_view(t->workspace, workspace);
    KN_TRY(kn_bench_time(&row, 1, b->settings->repeat, run_encode, t));
    KN_TRY(layer_bytes(t, &bytes));
    const double layers = t->config.num_layers;
    row.flop = kn_umt5_flop(&t->config, tokens);
    row.bytes = bytes * layers;
    const double reading = bytes / b->bound.memory_bytes;
    const double products = kn_roofline_seconds(&b->bound, row.flop / layers, 0.0, row.bf16, &limit);
    snprintf(row.test, sizeof row.test, "%d tokens, %d of %d layers", tokens, t->config.num_layers, t->all_layers);
    snprintf(row.note, sizeof row.note, "%.3f s a layer; reading %.3f, products %.3f; all %.2f s; %s",
             row.seconds / layers, reading, products, row.seconds / layers * t->all_layers, t->where);
    row.extra =
        json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:s}", "kind", "encode", "tokens", tokens, "layers",
                  t->config.num_layers, "all_layers", t->all_layers, "seconds_per_layer", row.seconds / layers,
                  "layer_bytes", bytes, "reading_bound_seconds_per_layer", reading, "products_bound_seconds_per_layer",
                  products, "all_layers_seconds", row.seconds / layers * t->all_layers, "weights", t->where);
    KN_TRY(kn_bench_put(b, &row));
fail:
    kn_device_free(b->device, t->workspace);
    kn_device_free(b->device, t->out.data);
    t->workspace = t->out.data = NULL;
    return st;
}

static kn_status bench_type(text_bench *t)
{
    kn_status st = KN_OK;
    KN_TRY(kn_umt5_create(&t->encoder, &t->config, t->weights, t->bench->stream, t->type));
    for (int i = 0; i < LENGTHS; i++) KN_TRY(bench_length(t, lengths[i]));
fail:
    kn_umt5_destroy(&t->encoder);
    return st;
}

kn_status kn_bench_text(kn_bench *b)
{
    kn_status st = KN_OK;
    const kn_bench_settings *s = b->settings;
    kn_bench_source source = {0};
    kn_repository *published = NULL;
    kn_weights *mapped = NULL;
    kn_dtype types[2];
    const int32_t count = kn_bench_types(b, s->precision, types);
    KN_TRY(kn_bench_open(&source, s, KN_TEXT_ENCODER));
    if (!s->model) KN_TRY(kn_repository_preset(&published, s->preset, 0));
    text_bench t = {.bench = b,
                    .config = source.repository->text,
                    .weights = source.weights,
                    .where = s->model ? "the folder's" : "one cached block"};
    t.all_layers = published ? published->text.num_layers : t.config.num_layers;
    if (s->thorough && !s->model) {
        KN_TRY(map_layers(&mapped, &t, source.weights));
        t.weights = mapped;
        t.where = "a mapped file";
    }
    for (int32_t i = 0; i < count; i++) {
        t.type = types[i];
        KN_TRY(bench_type(&t));
    }
fail:
    kn_weights_close(&mapped);
    kn_repository_close(&published);
    kn_bench_close(&source);
    return st;
}
