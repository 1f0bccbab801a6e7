/* SPDX-License-Identifier: Apache-2.0
 *
 * The operators that decide the networks' speed, at the networks' shapes.
 * `checkops --bench` has all of them in more shapes. */
#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "benchmarks/bench.h"

enum { TOKENS = 3510, HEIGHT = 240, WIDTH = 416, BUFFERS = 8 };

/* One operator call, and the memory it works on. */
typedef struct op_call {
    kn_bench *bench;
    const kn_ops *ops;
    kn_dtype type;
    void *buffers[BUFFERS]; /* device */
    int32_t count;
    int32_t offsets[2][2];
    kn_weight weight;
    kn_attention_args attention;
    kn_gemm_args gemm;
    kn_layernorm_args layernorm;
    kn_conv_args conv;
} op_call;

static op_call start(kn_bench *b, kn_dtype type)
{
    return (op_call){.bench = b, .ops = kn_device_ops(b->device), .type = type};
}

static void finish(op_call *c)
{
    for (int32_t i = 0; i < c->count; i++) kn_device_free(c->bench->device, c->buffers[i]);
}

static kn_status take(op_call *c, void **out, int64_t count, kn_dtype type)
{
    kn_status st = kn_bench_random(c->bench, out, count, type);
    if (st == KN_OK) c->buffers[c->count++] = *out;
    return st;
}

static kn_status take_matrix(op_call *c, kn_matrix *out, int64_t rows, int64_t cols)
{
    *out = (kn_matrix){.rows = rows, .cols = cols, .stride = cols, .dtype = c->type};
    return take(c, &out->data, rows * cols, c->type);
}

static kn_status report(op_call *c, kn_bench_row *row, kn_bench_fn *run)
{
    kn_status st = KN_OK;
    row->type = kn_bench_type_name(c->type);
    row->bf16 = c->type == KN_BF16;
    KN_TRY(kn_bench_time(row, 1, c->bench->settings->repeat, run, c));
    KN_TRY(kn_bench_put(c->bench, row));
fail:
    json_decref(row->extra);
    return st;
}

/* A GPU only queues its work. */
static kn_status finished(const op_call *c, kn_status queued)
{
    return queued == KN_OK ? kn_stream_synchronize(c->bench->stream) : queued;
}

/* ---- attention ---- */

static kn_status run_attention(void *opaque)
{
    op_call *c = opaque;
    return finished(c, c->ops->attention(c->bench->stream, &c->attention));
}

static kn_status bench_attention(kn_bench *b, const kn_wan_dit_config *config, kn_dtype type, int32_t keys)
{
    kn_status st = KN_OK;
    op_call c = start(b, type);
    const int64_t width = (int64_t)config->num_attention_heads * config->attention_head_dim;
    c.offsets[0][1] = TOKENS;
    c.offsets[1][1] = keys;
    kn_attention_args *a = &c.attention;
    *a = (kn_attention_args){.heads = config->num_attention_heads,
                             .head_dim = config->attention_head_dim,
                             .scale = 1.0f / sqrtf((float)config->attention_head_dim),
                             .sequences = 1,
                             .q_offsets = c.offsets[0],
                             .k_offsets = c.offsets[1]};
    KN_TRY(take_matrix(&c, &a->q, TOKENS, width));
    KN_TRY(take_matrix(&c, &a->k, keys, width));
    KN_TRY(take_matrix(&c, &a->v, keys, width));
    KN_TRY(take_matrix(&c, &a->out, TOKENS, width));
    KN_TRY(kn_device_alloc(b->device, &a->workspace, c.ops->attention_workspace(a)));
    c.buffers[c.count++] = a->workspace;
    kn_bench_row row = {.flop = 4.0 * TOKENS * keys * (double)width};
    snprintf(row.test, sizeof row.test, "attention %dx%d, %d x %d", a->heads, a->head_dim, TOKENS, keys);
    row.extra = json_pack("{s:s, s:i, s:i, s:i, s:i}", "kind", "attention", "heads", a->heads, "head_dim", a->head_dim,
                          "queries", TOKENS, "keys", keys);
    KN_TRY(report(&c, &row, run_attention));
fail:
    finish(&c);
    return st;
}

/* ---- matrix products ---- */

static kn_status run_gemm(void *opaque)
{
    op_call *c = opaque;
    return finished(c, c->ops->gemm(c->bench->stream, &c->gemm));
}

static kn_status bench_gemm(kn_bench *b, kn_dtype type, int64_t n, int64_t k, kn_activation activation)
{
    kn_status st = KN_OK;
    op_call c = start(b, type);
    void *plain, *prepared, *bias;
    KN_TRY(take(&c, &plain, n * k, KN_F32));
    KN_TRY(take(&c, &bias, n, KN_F32));
    KN_TRY(kn_device_alloc(b->device, &prepared, c.ops->weight_bytes(n, k, type)));
    c.buffers[c.count++] = prepared;
    const kn_weight source = {.data = plain, .n = n, .k = k, .dtype = KN_F32, .layout = KN_WEIGHT_PLAIN};
    KN_TRY(c.ops->weight_prepare(b->stream, &c.weight, prepared, &source, type));
    c.gemm = (kn_gemm_args){.w = &c.weight, .bias = bias, .activation = activation};
    KN_TRY(take_matrix(&c, &c.gemm.a, TOKENS, k));
    KN_TRY(take_matrix(&c, &c.gemm.out, TOKENS, n));
    kn_bench_row row = {.flop = 2.0 * TOKENS * (double)n * (double)k};
    snprintf(row.test, sizeof row.test, "gemm %d x %d x %d%s", TOKENS, (int)n, (int)k,
             activation == KN_ACT_GELU_TANH ? ", gelu" : "");
    row.extra = json_pack("{s:s, s:i, s:I, s:I}", "kind", "gemm", "m", TOKENS, "n", (json_int_t)n, "k", (json_int_t)k);
    KN_TRY(report(&c, &row, run_gemm));
fail:
    finish(&c);
    return st;
}

/* ---- norms ---- */

static kn_status run_layernorm(void *opaque)
{
    op_call *c = opaque;
    return finished(c, c->ops->layernorm(c->bench->stream, &c->layernorm));
}

static kn_status bench_layernorm(kn_bench *b, kn_dtype type, int64_t cols)
{
    kn_status st = KN_OK;
    op_call c = start(b, type);
    void *table;
    KN_TRY(take(&c, &table, 2 * cols, KN_F32));
    c.layernorm = (kn_layernorm_args){.eps = 1e-6f,
                                      .scale = {.data = table, .stride = cols},
                                      .shift = {.data = (float *)table + cols, .stride = cols}};
    KN_TRY(take_matrix(&c, &c.layernorm.x, TOKENS, cols));
    KN_TRY(take_matrix(&c, &c.layernorm.out, TOKENS, cols));
    kn_bench_row row = {.bytes = 2.0 * TOKENS * (double)cols * (double)kn_dtype_bytes(type)};
    snprintf(row.test, sizeof row.test, "layernorm, modulated, %d x %d", TOKENS, (int)cols);
    row.extra = json_pack("{s:s, s:i, s:I}", "kind", "layernorm", "rows", TOKENS, "cols", (json_int_t)cols);
    KN_TRY(report(&c, &row, run_layernorm));
fail:
    finish(&c);
    return st;
}

/* ---- convolution ---- */

static kn_status run_conv(void *opaque)
{
    op_call *c = opaque;
    return finished(c, c->ops->conv(c->bench->stream, &c->conv));
}

static kn_status take_frame(op_call *c, kn_frame *out, int32_t channels, int32_t border, kn_dtype type)
{
    const int32_t stride = WIDTH + 2 * border;
    void *memory;
    *out = (kn_frame){
        .height = HEIGHT, .width = WIDTH, .channels = channels, .row_stride = stride, .border = border, .dtype = type};
    kn_status st = take(c, &memory, (int64_t)(HEIGHT + 2 * border) * stride * channels, type);
    if (st == KN_OK)
        out->data = (char *)memory + (size_t)(border * (stride + 1)) * (size_t)channels * kn_dtype_bytes(type);
    return st;
}

/* The border may hold values here: the time does not depend on them. */
static kn_status bench_conv(kn_bench *b, kn_dtype type, int32_t channels)
{
    kn_status st = KN_OK;
    op_call c = start(b, type);
    enum { TAPS = 27 };
    void *plain, *prepared;
    c.conv = (kn_conv_args){.kt = 3, .kh = 3, .kw = 3, .mode = KN_CONV_SAME, .w = &c.weight};
    for (int i = 0; i < 3; i++) KN_TRY(take_frame(&c, &c.conv.in[i], channels, 1, type));
    KN_TRY(take_frame(&c, &c.conv.out, channels, 0, KN_F32));
    KN_TRY(take(&c, &plain, (int64_t)TAPS * channels * channels, KN_F32));
    KN_TRY(kn_device_alloc(b->device, &prepared, c.ops->conv_weight_bytes(&c.conv)));
    c.buffers[c.count++] = prepared;
    const kn_weight source = {
        .data = plain, .n = channels, .k = (int64_t)TAPS * channels, .dtype = KN_F32, .layout = KN_WEIGHT_PLAIN};
    KN_TRY(c.ops->conv_weight_prepare(b->stream, &c.weight, prepared, &source, &c.conv));
    kn_bench_row row = {.flop = 2.0 * TAPS * (double)channels * channels * HEIGHT * WIDTH};
    snprintf(row.test, sizeof row.test, "conv 3x3x3, %d to %d, %dx%d", channels, channels, WIDTH, HEIGHT);
    row.extra =
        json_pack("{s:s, s:i, s:i, s:i}", "kind", "conv", "channels", channels, "width", WIDTH, "height", HEIGHT);
    KN_TRY(report(&c, &row, run_conv));
fail:
    finish(&c);
    return st;
}

/* ---- all ---- */

static kn_status bench_type(kn_bench *b, const kn_repository *repository, kn_dtype type)
{
    kn_status st = KN_OK;
    const kn_wan_dit_config *config = &repository->dit;
    const int64_t width = (int64_t)config->num_attention_heads * config->attention_head_dim;
    KN_TRY(bench_attention(b, config, type, TOKENS));
    KN_TRY(bench_attention(b, config, type, KN_TEXT_TOKENS));
    KN_TRY(bench_gemm(b, type, width, width, KN_ACT_NONE));
    KN_TRY(bench_gemm(b, type, config->ffn_dim, width, KN_ACT_GELU_TANH));
    KN_TRY(bench_gemm(b, type, width, config->ffn_dim, KN_ACT_NONE));
    KN_TRY(bench_layernorm(b, type, width));
    KN_TRY(bench_conv(b, type, repository->vae.base_dim));
fail:
    return st;
}

kn_status kn_bench_ops(kn_bench *b)
{
    kn_status st = KN_OK;
    kn_bench_source source = {0};
    kn_dtype types[2];
    const int32_t count = kn_bench_types(b, b->settings->precision, types);
    KN_TRY(kn_bench_open(&source, b->settings, KN_TRANSFORMER));
    for (int32_t i = 0; i < count; i++) KN_TRY(bench_type(b, source.repository, types[i]));
fail:
    kn_bench_close(&source);
    return st;
}
