/* SPDX-License-Identifier: Apache-2.0
 *
 * Forward pass of the Wan 2.1 transformer. D = heads * head_dim, S = tokens of the
 * whole pack, n = sequences, F = ffn_dim.
 *
 *   x = patches W + b                                               [S, D]
 *   temb = W2 silu(W1 sinusoid(t)),  e = Wp silu(temb)              [n, D], [n, 6D]
 *   per block, m = table + e in the order shift, scale, gate (attention), shift, scale, gate (ffn):
 *     x += gate_a * Wo attention(rope(rms(Wq y)), rope(rms(Wk y)), Wv y),   y = LN(x) (1 + scale_a) + shift_a
 *     x += Wo attention(rms(Wq y), context k, context v),                   y = LN(x) w + b
 *     x += gate_f * W2 gelu(W1 y),                                          y = LN(x) (1 + scale_f) + shift_f
 *   out = Wout (LN(x) (1 + scale) + shift),  [shift, scale] = table2 + temb (temb as it is, without silu)
 */
#include "engine/dit_wan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/loader.h"
#include "engine/pack.h"
#include "engine/split.h"

enum {
    FFN_CHUNK_ROWS = 4096, /* the widest activation exists for this many rows at a time */
    MODULATION_ROWS = 6,
    NAME_BYTES = 96,
};

#define ROPE_THETA 10000.0

typedef struct attention_weights {
    kn_linear q, k, v, out;
    const float *norm_q, *norm_k; /* [D] */
} attention_weights;

typedef struct block_weights {
    attention_weights self, cross;
    const float *norm2_weight, *norm2_bias; /* [D], NULL when cross_attn_norm is off */
    kn_linear ffn_in, ffn_out;
    const float *table; /* [6, D] */
} block_weights;

struct kn_dit {
    kn_wan_dit_config config;
    kn_dtype act; /* activations between operators: the compute type */
    kn_device *device;
    const kn_ops *ops;
    const kn_weights *weights;
    size_t weight_bytes;
    void *memory;      /* prepared weights; NULL before */
    void *rope_memory; /* [3][positions][pairs][2] */
    int64_t dim;
    kn_rope rope; /* tables; positions belong to a pack */
    kn_linear patch, text_in, text_out, time_in, time_out, time_proj, proj_out;
    const float *table; /* [2, D] */
    block_weights *blocks;
};

/* ---- loading ---- */

static kn_status load_linear(kn_loader *l, kn_linear *out, const char *prefix, int64_t n, int64_t k, kn_dtype compute)
{
    return kn_loader_linear(l, out, prefix, 2, (int64_t[]){n, k}, n, compute, true);
}

static kn_status load_attention(kn_loader *l, attention_weights *a, const kn_dit *dit, const char *prefix)
{
    kn_status st = KN_OK;
    const int64_t d = dit->dim;
    char name[NAME_BYTES];
    struct {
        const char *suffix;
        kn_linear *linear;
    } const parts[] = {{"to_q", &a->q}, {"to_k", &a->k}, {"to_v", &a->v}, {"to_out.0", &a->out}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "%s.%s", prefix, parts[i].suffix);
        KN_TRY(load_linear(l, parts[i].linear, name, d, d, dit->act));
    }
    snprintf(name, sizeof name, "%s.norm_q.weight", prefix);
    KN_TRY(kn_loader_vector(l, &a->norm_q, name, 1, &d, dit->act));
    snprintf(name, sizeof name, "%s.norm_k.weight", prefix);
    KN_TRY(kn_loader_vector(l, &a->norm_k, name, 1, &d, dit->act));
fail:
    return st;
}

static kn_status load_block(kn_loader *l, block_weights *b, const kn_dit *dit, int index)
{
    kn_status st = KN_OK;
    const int64_t d = dit->dim, f = dit->config.ffn_dim;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blocks.%d.attn1", index);
    KN_TRY(load_attention(l, &b->self, dit, name));
    snprintf(name, sizeof name, "blocks.%d.attn2", index);
    KN_TRY(load_attention(l, &b->cross, dit, name));
    if (dit->config.cross_attn_norm) {
        snprintf(name, sizeof name, "blocks.%d.norm2.weight", index);
        KN_TRY(kn_loader_vector(l, &b->norm2_weight, name, 1, &d, KN_F32));
        snprintf(name, sizeof name, "blocks.%d.norm2.bias", index);
        KN_TRY(kn_loader_vector(l, &b->norm2_bias, name, 1, &d, KN_F32));
    }
    snprintf(name, sizeof name, "blocks.%d.ffn.net.0.proj", index);
    KN_TRY(load_linear(l, &b->ffn_in, name, f, d, dit->act));
    snprintf(name, sizeof name, "blocks.%d.ffn.net.2", index);
    KN_TRY(load_linear(l, &b->ffn_out, name, d, f, dit->act));
    snprintf(name, sizeof name, "blocks.%d.scale_shift_table", index);
    KN_TRY(kn_loader_vector(l, &b->table, name, 3, (int64_t[]){1, MODULATION_ROWS, d}, KN_F32));
fail:
    return st;
}

static kn_status load_all(kn_loader *l, void *context)
{
    kn_status st = KN_OK;
    kn_dit *dit = context;
    const kn_wan_dit_config *c = &dit->config;
    const int64_t d = dit->dim;
    const char *const embedder = "condition_embedder";
    char name[NAME_BYTES];
    KN_TRY(kn_loader_linear(l, &dit->patch, "patch_embedding", 5, (int64_t[]){d, c->in_channels, 1, 2, 2}, d, dit->act,
                            true));
    struct {
        const char *suffix;
        kn_linear *linear;
        int64_t n, k;
        kn_dtype compute; /* the time embedder stays in float32 */
    } const parts[] = {
        {"time_embedder.linear_1", &dit->time_in, d, c->freq_dim, KN_F32},
        {"time_embedder.linear_2", &dit->time_out, d, d, KN_F32},
        {"time_proj", &dit->time_proj, MODULATION_ROWS * d, d, dit->act},
        {"text_embedder.linear_1", &dit->text_in, d, c->text_dim, dit->act},
        {"text_embedder.linear_2", &dit->text_out, d, d, dit->act},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(name, sizeof name, "%s.%s", embedder, parts[i].suffix);
        KN_TRY(load_linear(l, parts[i].linear, name, parts[i].n, parts[i].k, parts[i].compute));
    }
    for (int i = 0; i < c->num_layers; i++) KN_TRY(load_block(l, &dit->blocks[i], dit, i));
    KN_TRY(kn_loader_vector(l, &dit->table, "scale_shift_table", 3, (int64_t[]){1, 2, d}, KN_F32));
    KN_TRY(load_linear(l, &dit->proj_out, "proj_out", c->out_channels * 4, d, dit->act));
fail:
    return st;
}

static size_t rope_bytes(const kn_dit *dit)
{
    return (size_t)dit->config.rope_max_seq_len * (size_t)dit->config.attention_head_dim * sizeof(float);
}

/* Angles in double, rounded once: float32 frequencies would drift over a long clip. */
static kn_status make_rope(kn_dit *dit, kn_stream *stream)
{
    kn_status st = KN_OK;
    const int32_t head = dit->config.attention_head_dim, positions = dit->config.rope_max_seq_len;
    const int32_t side = 2 * (head / 6);
    const int32_t dims[3] = {head - 2 * side, side, side};
    const size_t bytes = rope_bytes(dit);
    float *host = kn_alloc(bytes), *at = host;
    if (!host) return KN_NOMEM;
    KN_TRY(kn_device_alloc(dit->device, &dit->rope_memory, bytes));
    dit->rope.head_dim = head;
    for (int axis = 0; axis < 3; axis++) {
        dit->rope.table[axis] = (const float *)dit->rope_memory + (at - host);
        dit->rope.pairs[axis] = dims[axis] / 2;
        for (int32_t p = 0; p < positions; p++)
            for (int32_t i = 0; i < dims[axis] / 2; i++) {
                double angle = p * pow(ROPE_THETA, -2.0 * i / dims[axis]);
                *at++ = (float)cos(angle);
                *at++ = (float)sin(angle);
            }
    }
    KN_TRY(kn_stream_upload(stream, dit->rope_memory, host, bytes));
    KN_TRY(kn_stream_synchronize(stream));
fail:
    kn_free(host);
    return st;
}

kn_status kn_dit_create(kn_dit **out, const kn_wan_dit_config *config, const kn_weights *weights, kn_stream *stream,
                        kn_dtype compute)
{
    kn_status st = KN_OK;
    kn_dit *dit = kn_alloc(sizeof *dit);
    if (!dit) return KN_NOMEM;
    dit->config = *config;
    dit->act = compute;
    dit->weights = weights;
    dit->device = kn_stream_device(stream);
    dit->ops = kn_device_ops(dit->device);
    dit->dim = (int64_t)config->num_attention_heads * config->attention_head_dim;
    dit->blocks = kn_alloc_array((size_t)config->num_layers, sizeof *dit->blocks);
    if (!dit->blocks) {
        st = KN_NOMEM;
        goto fail;
    }
    KN_TRY(kn_loader_run(weights, stream, load_all, dit, NULL, &dit->weight_bytes));
    *out = dit;
    return KN_OK;
fail:
    kn_dit_destroy(&dit);
    return st;
}

kn_status kn_dit_prepare(kn_dit *dit, kn_stream *stream)
{
    kn_status st = KN_OK;
    if (dit->memory) return KN_OK;
    if (!dit->rope_memory) KN_TRY(make_rope(dit, stream));
    KN_TRY(kn_loader_run(dit->weights, stream, load_all, dit, &dit->memory, &dit->weight_bytes));
fail:
    return st;
}

size_t kn_dit_weight_bytes(const kn_dit *dit)
{
    return dit->weight_bytes + rope_bytes(dit);
}

void kn_dit_destroy(kn_dit **handle)
{
    kn_dit *dit = *handle;
    if (!dit) return;
    kn_device_free(dit->device, dit->memory);
    kn_device_free(dit->device, dit->rope_memory);
    kn_free(dit->blocks);
    kn_free(dit);
    *handle = NULL;
}

/* ---- operators, spelled for this file; a rank may have no rows ---- */

static kn_matrix matrix(void *data, int64_t rows, int64_t cols, kn_dtype dtype)
{
    return (kn_matrix){.data = data, .rows = rows, .cols = cols, .stride = cols, .dtype = dtype};
}

static kn_matrix rows_of(kn_matrix m, int64_t first, int64_t count)
{
    m.data = (char *)m.data + (size_t)(first * m.stride) * kn_dtype_bytes(m.dtype);
    m.rows = count;
    return m;
}

static kn_matrix take(kn_arena *arena, int64_t rows, int64_t cols, kn_dtype dtype)
{
    return matrix(kn_arena_take(arena, (size_t)(rows * cols) * kn_dtype_bytes(dtype)), rows, cols, dtype);
}

static kn_status linear(const kn_dit *dit, kn_stream *s, kn_matrix out, kn_matrix a, const kn_linear *w,
                        kn_activation activation)
{
    if (a.rows == 0) return KN_OK;
    return dit->ops->gemm(s,
                          &(kn_gemm_args){.out = out, .a = a, .w = &w->w, .bias = w->bias, .activation = activation});
}

/* x += gate * (a w + b), or x += a w + b. */
static kn_status linear_add(const kn_dit *dit, kn_stream *s, kn_matrix x, kn_matrix a, const kn_linear *w,
                            kn_row_table gate)
{
    if (a.rows == 0) return KN_OK;
    return dit->ops->gemm(s,
                          &(kn_gemm_args){.out = x, .a = a, .w = &w->w, .bias = w->bias, .residual = x, .gate = gate});
}

static kn_status rms(const kn_dit *dit, kn_stream *s, kn_matrix x, const float *weight, const kn_position *positions)
{
    kn_rope rope = dit->rope;
    rope.positions = positions;
    if (x.rows == 0) return KN_OK;
    return dit->ops->rmsnorm(
        s, &(kn_rmsnorm_args){.out = x, .x = x, .weight = weight, .eps = (float)dit->config.eps, .rope = rope});
}

/* ---- text context ---- */

int32_t kn_dit_context_rows(int32_t tokens)
{
    return tokens < KN_TEXT_TOKENS ? tokens + 1 : tokens;
}

size_t kn_dit_context_bytes(const kn_dit *dit, int32_t tokens)
{
    return (size_t)dit->config.num_layers * 2 * (size_t)(kn_dit_context_rows(tokens) * dit->dim) *
           kn_dtype_bytes(dit->act);
}

typedef struct context_buffers {
    kn_matrix text, hidden, embedded;
} context_buffers;

static context_buffers lay_out_context(const kn_dit *dit, kn_arena *arena, int32_t tokens)
{
    const int64_t rows = kn_dit_context_rows(tokens);
    context_buffers b;
    b.text = take(arena, rows, dit->config.text_dim, KN_F32);
    b.hidden = take(arena, rows, dit->dim, dit->act);
    b.embedded = take(arena, rows, dit->dim, dit->act);
    return b;
}

size_t kn_dit_context_workspace(const kn_dit *dit, int32_t tokens)
{
    kn_arena count = {0};
    lay_out_context(dit, &count, tokens);
    return count.peak + KN_ARENA_ALIGN;
}

/* Keys (which = 0) or values (1) of one layer. */
static kn_matrix context_matrix(const kn_dit *dit, const kn_dit_context *context, int layer, int which)
{
    size_t bytes = (size_t)(context->rows * dit->dim) * kn_dtype_bytes(dit->act);
    return matrix((char *)context->memory + (size_t)(layer * 2 + which) * bytes, context->rows, dit->dim, dit->act);
}

kn_status kn_dit_context_build(kn_dit *dit, kn_stream *stream, kn_arena *arena, kn_matrix text, void *memory,
                               kn_dit_context *out)
{
    kn_status st = KN_OK;
    const size_t mark = kn_arena_mark(arena);
    const int32_t tokens = (int32_t)text.rows;
    KN_REQUIRE(dit->memory && tokens >= 0 && tokens <= KN_TEXT_TOKENS && text.cols == dit->config.text_dim &&
               text.dtype == KN_F32);
    *out = (kn_dit_context){.memory = memory, .rows = kn_dit_context_rows(tokens)};
    if (out->rows > tokens) out->tail_log_weight = logf((float)(KN_TEXT_TOKENS - tokens));

    const context_buffers b = lay_out_context(dit, arena, tokens);
    KN_REQUIRE(!kn_arena_overflowed(arena));
    const size_t row_bytes = (size_t)text.cols * sizeof(float);
    KN_TRY(kn_stream_zero(stream, b.text.data, (size_t)out->rows * row_bytes));
    KN_TRY(kn_stream_copy(stream, b.text.data, text.data, (size_t)tokens * row_bytes));
    KN_TRY(linear(dit, stream, b.hidden, b.text, &dit->text_in, KN_ACT_GELU_TANH));
    KN_TRY(linear(dit, stream, b.embedded, b.hidden, &dit->text_out, KN_ACT_NONE));
    for (int i = 0; i < dit->config.num_layers; i++) {
        const attention_weights *w = &dit->blocks[i].cross;
        kn_matrix k = context_matrix(dit, out, i, 0), v = context_matrix(dit, out, i, 1);
        KN_TRY(linear(dit, stream, k, b.embedded, &w->k, KN_ACT_NONE));
        KN_TRY(rms(dit, stream, k, w->norm_k, NULL));
        KN_TRY(linear(dit, stream, v, b.embedded, &w->v, KN_ACT_NONE));
    }
fail:
    kn_arena_reset(arena, mark);
    return st;
}

/* ---- forward ---- */

/* Everything one forward needs, cut from the arena. Self-attention, cross-attention and the feed-forward network
 * follow each other, so their buffers share memory. */
typedef struct buffers {
    kn_pack pack;
    kn_split split;
    int32_t *row_sequence;                               /* [S] */
    kn_position *positions;                              /* [S] */
    kn_matrix patches;                                   /* [whole S, 4 C] */
    kn_matrix x, y;                                      /* [S, D] */
    kn_matrix sinusoid, time_hidden, temb, temb_silu, e; /* [n, ...] */
    kn_matrix modulation;                                /* [n, 6 D] of one block, or [n, 2 D] of the output */
    kn_matrix q, k, v;                                   /* [S, D] */
    kn_matrix whole_q, whole_k, whole_v, whole_y;        /* [whole S, heads here]; undivided: q, k, v, y themselves */
    void *self_workspace;
    kn_matrix cross_q;              /* [S, D] */
    kn_matrix context_k, context_v; /* [context rows, D] */
    void *cross_workspace;
    kn_matrix hidden; /* [FFN_CHUNK_ROWS, F] */
    kn_matrix out;    /* [S, 4 C_out] f32 */
    kn_matrix all;    /* [S of all sequences of all ranks, 4 C_out] f32; undivided: out itself */
} buffers;

static kn_attention_args self_attention(const kn_dit *dit, const buffers *b)
{
    return (kn_attention_args){.out = b->whole_y,
                               .q = b->whole_q,
                               .k = b->whole_k,
                               .v = b->whole_v,
                               .heads = (int32_t)b->split.heads.count,
                               .head_dim = dit->config.attention_head_dim,
                               .scale = 1.0f / sqrtf((float)dit->config.attention_head_dim),
                               .sequences = b->pack.sequences,
                               .q_offsets = b->pack.whole_offsets,
                               .k_offsets = b->pack.whole_offsets,
                               .workspace = b->self_workspace};
}

static kn_attention_args cross_attention(const kn_dit *dit, const buffers *b)
{
    kn_attention_args args = self_attention(dit, b);
    args.out = b->y;
    args.heads = dit->config.num_attention_heads;
    args.q_offsets = b->pack.row_offsets;
    args.q = b->cross_q;
    args.k = b->context_k;
    args.v = b->context_v;
    args.k_offsets = b->pack.context_offsets;
    args.tail_log_weight = b->pack.tail_log_weight;
    args.workspace = b->cross_workspace;
    return args;
}

/* Queries, keys and values by heads, where ranks share the rows. */
static void lay_out_whole(const kn_dit *dit, kn_arena *arena, buffers *b)
{
    kn_matrix *const whole[] = {&b->whole_q, &b->whole_k, &b->whole_v, &b->whole_y};
    const kn_matrix rows[] = {b->q, b->k, b->v, b->y};
    for (int i = 0; i < 4; i++)
        *whole[i] = b->split.rows.size == 1 ? rows[i]
                                            : take(arena, b->pack.whole_rows,
                                                   b->split.heads.count * dit->config.attention_head_dim, dit->act);
}

static size_t attention_bytes(const kn_dit *dit, const kn_attention_args *args)
{
    return args->heads > 0 ? dit->ops->attention_workspace(args) : 0;
}

/* all_rows: of every sequence of every rank. */
static buffers lay_out(const kn_dit *dit, kn_arena *arena, const kn_pack *pack, const kn_split *split, int64_t all_rows)
{
    const kn_wan_dit_config *c = &dit->config;
    const int64_t s = pack->rows, d = dit->dim, n = pack->sequences;
    buffers b = {.pack = *pack, .split = *split};
    b.row_sequence = kn_arena_take(arena, (size_t)s * sizeof *b.row_sequence);
    b.positions = kn_arena_take(arena, (size_t)s * sizeof *b.positions);
    b.x = take(arena, s, d, dit->act);
    b.y = take(arena, s, d, dit->act);
    b.sinusoid = take(arena, n, c->freq_dim, KN_F32);
    b.time_hidden = take(arena, n, d, KN_F32);
    b.temb = take(arena, n, d, KN_F32);
    b.temb_silu = take(arena, n, d, dit->act);
    b.e = take(arena, n, MODULATION_ROWS * d, KN_F32);
    b.modulation = take(arena, n, MODULATION_ROWS * d, KN_F32);

    const size_t shared = kn_arena_mark(arena);
    b.patches = take(arena, pack->whole_rows, c->in_channels * 4, dit->act);
    kn_arena_reset(arena, shared);
    b.q = take(arena, s, d, dit->act);
    b.k = take(arena, s, d, dit->act);
    b.v = take(arena, s, d, dit->act);
    lay_out_whole(dit, arena, &b);
    kn_attention_args args = self_attention(dit, &b);
    b.self_workspace = kn_arena_take(arena, attention_bytes(dit, &args));
    kn_arena_reset(arena, shared);
    b.cross_q = take(arena, s, d, dit->act);
    b.context_k = take(arena, pack->context_rows, d, dit->act);
    b.context_v = take(arena, pack->context_rows, d, dit->act);
    args = cross_attention(dit, &b);
    b.cross_workspace = kn_arena_take(arena, attention_bytes(dit, &args));
    kn_arena_reset(arena, shared);
    b.hidden = take(arena, s < FFN_CHUNK_ROWS ? s : FFN_CHUNK_ROWS, c->ffn_dim, dit->act);
    kn_arena_reset(arena, shared);
    b.out = take(arena, s, c->out_channels * 4, KN_F32);
    b.all = kn_split_is_whole(split) ? b.out : take(arena, all_rows, c->out_channels * 4, KN_F32);
    return b;
}

/* How this rank's part of a forward looks. */
static kn_status plan(const kn_dit *dit, const kn_dit_sequence *sequences, int32_t count, const kn_group *group,
                      kn_split *split, kn_pack *pack, int64_t *all_rows)
{
    kn_dit_sequence mine[KN_PACK_SEQUENCES_MAX];
    kn_status st = kn_pack_build(pack, sequences, count, NULL); /* checks all of them */
    if (st != KN_OK) return st;
    *all_rows = pack->rows;
    *split = kn_split_of(group, sequences, count, dit->config.num_attention_heads,
                         (size_t)dit->config.attention_head_dim * kn_dtype_bytes(dit->act));
    if (kn_split_is_whole(split)) return KN_OK;
    return kn_pack_build(pack, mine, kn_split_select(split, sequences, count, mine), &split->rows);
}

size_t kn_dit_workspace(const kn_dit *dit, const kn_dit_sequence *sequences, int32_t count, const kn_group *group)
{
    kn_arena arena = {0};
    kn_pack pack;
    kn_split split;
    int64_t all_rows;
    if (plan(dit, sequences, count, group, &split, &pack, &all_rows) != KN_OK) return 0;
    lay_out(dit, &arena, &pack, &split, all_rows);
    return arena.peak + KN_ARENA_ALIGN;
}

uint64_t kn_dit_exchanged(const kn_dit *dit, const kn_dit_sequence *sequences, int32_t count, const kn_group *group)
{
    kn_pack pack;
    kn_split split;
    int64_t all_rows;
    if (plan(dit, sequences, count, group, &split, &pack, &all_rows) != KN_OK) return 0;
    return kn_split_bytes(&split, &pack, dit->config.num_layers, dit->dim, dit->act, dit->config.out_channels);
}

static kn_row_table table_of(const buffers *b, int row, int64_t d)
{
    return (kn_row_table){.data = (const float *)b->modulation.data + row * d,
                          .stride = b->modulation.stride,
                          .row_index = b->row_sequence};
}

static kn_status modulated_norm(const kn_dit *dit, kn_stream *s, const buffers *b, int shift, int scale)
{
    if (b->x.rows == 0) return KN_OK;
    return dit->ops->layernorm(s, &(kn_layernorm_args){.out = b->y,
                                                       .x = b->x,
                                                       .eps = (float)dit->config.eps,
                                                       .scale = table_of(b, scale, dit->dim),
                                                       .shift = table_of(b, shift, dit->dim)});
}

static kn_status embed_time(const kn_dit *dit, kn_stream *s, const buffers *b)
{
    kn_status st = KN_OK;
    KN_TRY(dit->ops->timestep_embed(s, &(kn_timestep_embed_args){.out = b->sinusoid, .timesteps = b->pack.timesteps}));
    KN_TRY(linear(dit, s, b->time_hidden, b->sinusoid, &dit->time_in, KN_ACT_SILU));
    KN_TRY(linear(dit, s, b->temb, b->time_hidden, &dit->time_out, KN_ACT_NONE));
    KN_TRY(dit->ops->silu(s, &(kn_silu_args){.out = b->temb_silu, .x = b->temb}));
    KN_TRY(linear(dit, s, b->e, b->temb_silu, &dit->time_proj, KN_ACT_NONE));
fail:
    return st;
}

/* Patches are made of whole sequences, they cost nothing; of them this rank's rows are embedded. */
static kn_status embed_patches(const kn_dit *dit, kn_stream *s, const buffers *b, const kn_dit_sequence *sequences)
{
    kn_status st = KN_OK;
    const kn_pack *pack = &b->pack;
    for (int i = 0; i < pack->sequences; i++) {
        const kn_dit_sequence *q = &sequences[i];
        kn_matrix rows = rows_of(b->patches, pack->whole_offsets[i], kn_sequence_rows(q));
        KN_TRY(dit->ops->patchify(s, &(kn_patchify_args){.out = rows,
                                                         .latent = q->latent,
                                                         .channels = dit->config.in_channels,
                                                         .t = q->t,
                                                         .h = q->h,
                                                         .w = q->w}));
    }
    if (pack->rows == pack->whole_rows) return linear(dit, s, b->x, b->patches, &dit->patch, KN_ACT_NONE);
    for (int i = 0; i < pack->sequences; i++) {
        const int64_t rows = pack->row_offsets[i + 1] - pack->row_offsets[i];
        KN_TRY(linear(dit, s, rows_of(b->x, pack->row_offsets[i], rows),
                      rows_of(b->patches, pack->whole_offsets[i] + pack->first[i], rows), &dit->patch, KN_ACT_NONE));
    }
fail:
    return st;
}

/* One of q, k, v from y. Where rows are shared, its exchange starts while the next one is computed. */
static kn_status project(const kn_dit *dit, kn_stream *s, const buffers *b, kn_matrix out, const kn_linear *w,
                         const float *norm, kn_matrix whole)
{
    kn_status st = KN_OK;
    KN_TRY(linear(dit, s, out, b->y, w, KN_ACT_NONE));
    if (norm) KN_TRY(rms(dit, s, out, norm, b->positions)); /* over all heads together, before they are split */
    if (b->split.rows.size > 1) KN_TRY(kn_split_to_heads(&b->split, &b->pack, out, whole));
fail:
    return st;
}

static kn_status self_attention_part(const kn_dit *dit, kn_stream *s, const buffers *b, const attention_weights *w)
{
    kn_status st = KN_OK;
    const bool shared = b->split.rows.size > 1;
    KN_TRY(modulated_norm(dit, s, b, 0, 1));
    KN_TRY(project(dit, s, b, b->q, &w->q, w->norm_q, b->whole_q));
    KN_TRY(project(dit, s, b, b->k, &w->k, w->norm_k, b->whole_k));
    KN_TRY(project(dit, s, b, b->v, &w->v, NULL, b->whole_v));
    if (shared) KN_TRY(kn_comm_finish(b->split.all.comm));
    const kn_attention_args args = self_attention(dit, b);
    if (args.heads > 0) KN_TRY(dit->ops->attention(s, &args));
    if (shared) {
        KN_TRY(kn_split_to_rows(&b->split, &b->pack, b->whole_y, b->y));
        KN_TRY(kn_comm_finish(b->split.all.comm));
    }
    KN_TRY(linear_add(dit, s, b->x, b->y, &w->out, table_of(b, 2, dit->dim)));
fail:
    return st;
}

static kn_status cross_attention_part(const kn_dit *dit, kn_stream *s, const buffers *b, const block_weights *w,
                                      const kn_dit_sequence *sequences, int layer)
{
    kn_status st = KN_OK;
    if (b->x.rows == 0) return KN_OK;
    for (int i = 0; i < b->pack.sequences; i++) {
        const kn_dit_context *context = sequences[i].context;
        const kn_matrix k = context_matrix(dit, context, layer, 0), v = context_matrix(dit, context, layer, 1);
        const int64_t first = b->pack.context_offsets[i];
        const size_t bytes = (size_t)(k.rows * k.cols) * kn_dtype_bytes(k.dtype);
        KN_TRY(kn_stream_copy(s, rows_of(b->context_k, first, k.rows).data, k.data, bytes));
        KN_TRY(kn_stream_copy(s, rows_of(b->context_v, first, v.rows).data, v.data, bytes));
    }
    kn_matrix y = b->x; /* without cross_attn_norm the norm is the identity */
    if (dit->config.cross_attn_norm) {
        KN_TRY(dit->ops->layernorm(s, &(kn_layernorm_args){.out = b->y,
                                                           .x = b->x,
                                                           .eps = (float)dit->config.eps,
                                                           .weight = w->norm2_weight,
                                                           .bias = w->norm2_bias}));
        y = b->y;
    }
    KN_TRY(linear(dit, s, b->cross_q, y, &w->cross.q, KN_ACT_NONE));
    KN_TRY(rms(dit, s, b->cross_q, w->cross.norm_q, NULL));
    const kn_attention_args args = cross_attention(dit, b);
    KN_TRY(dit->ops->attention(s, &args));
    KN_TRY(linear_add(dit, s, b->x, b->y, &w->cross.out, (kn_row_table){0}));
fail:
    return st;
}

static kn_status ffn_part(const kn_dit *dit, kn_stream *s, const buffers *b, const block_weights *w)
{
    kn_status st = KN_OK;
    KN_TRY(modulated_norm(dit, s, b, 3, 4));
    for (int64_t first = 0; first < b->x.rows; first += FFN_CHUNK_ROWS) {
        int64_t rows = b->x.rows - first < FFN_CHUNK_ROWS ? b->x.rows - first : FFN_CHUNK_ROWS;
        kn_matrix hidden = rows_of(b->hidden, 0, rows);
        kn_row_table gate = table_of(b, 5, dit->dim);
        gate.row_index += first;
        KN_TRY(linear(dit, s, hidden, rows_of(b->y, first, rows), &w->ffn_in, KN_ACT_GELU_TANH));
        KN_TRY(linear_add(dit, s, rows_of(b->x, first, rows), hidden, &w->ffn_out, gate));
    }
fail:
    return st;
}

/* sequences: of the whole forward; every rank writes every velocity. */
static kn_status write_velocity(const kn_dit *dit, kn_stream *s, buffers *b, const kn_dit_sequence *sequences,
                                int32_t count)
{
    kn_status st = KN_OK;
    const int64_t d = dit->dim;
    b->modulation.cols = b->modulation.stride = 2 * d;
    for (int i = 0; i < 2; i++) { /* shift, scale */
        kn_matrix part = b->modulation;
        part.data = (float *)part.data + i * d;
        part.cols = d;
        KN_TRY(dit->ops->add_table(s, &(kn_add_table_args){.out = part, .x = b->temb, .table = dit->table + i * d}));
    }
    KN_TRY(modulated_norm(dit, s, b, 0, 1));
    KN_TRY(linear(dit, s, b->out, b->y, &dit->proj_out, KN_ACT_NONE));
    if (!kn_split_is_whole(&b->split)) KN_TRY(kn_split_gather(&b->split, &b->pack, sequences, count, b->out, b->all));
    int64_t first = 0;
    for (int i = 0; i < count; i++) {
        const kn_dit_sequence *q = &sequences[i];
        const int64_t rows = kn_sequence_rows(q);
        KN_TRY(dit->ops->unpatchify(s, &(kn_unpatchify_args){.latent = q->velocity,
                                                             .x = rows_of(b->all, first, rows),
                                                             .channels = dit->config.out_channels,
                                                             .t = q->t,
                                                             .h = q->h,
                                                             .w = q->w}));
        first += rows;
    }
fail:
    return st;
}

kn_status kn_dit_forward(kn_dit *dit, kn_stream *stream, kn_arena *arena, const kn_dit_sequence *sequences,
                         int32_t count, const kn_group *group)
{
    kn_status st = KN_OK;
    kn_pack pack;
    kn_split split;
    int64_t all_rows;
    kn_dit_sequence mine[KN_PACK_SEQUENCES_MAX];
    const size_t mark = kn_arena_mark(arena);
    KN_REQUIRE(dit->memory && (!group || group->index >= 0));
    KN_TRY(plan(dit, sequences, count, group, &split, &pack, &all_rows));
    for (int i = 0; i < count; i++) {
        int32_t longest = sequences[i].t;
        if (sequences[i].h / 2 > longest) longest = sequences[i].h / 2;
        if (sequences[i].w / 2 > longest) longest = sequences[i].w / 2;
        KN_REQUIRE(longest <= dit->config.rope_max_seq_len);
    }
    kn_split_select(&split, sequences, count, mine);
    buffers b = lay_out(dit, arena, &pack, &split, all_rows);
    KN_REQUIRE(!kn_arena_overflowed(arena));
    KN_TRY(kn_pack_rows(&pack, mine, stream, b.row_sequence, b.positions));
    KN_TRY(embed_time(dit, stream, &b));
    KN_TRY(embed_patches(dit, stream, &b, mine));
    for (int i = 0; i < dit->config.num_layers; i++) {
        const block_weights *w = &dit->blocks[i];
        KN_TRY(dit->ops->add_table(stream, &(kn_add_table_args){.out = b.modulation, .x = b.e, .table = w->table}));
        KN_TRY(self_attention_part(dit, stream, &b, &w->self));
        KN_TRY(cross_attention_part(dit, stream, &b, w, mine, i));
        KN_TRY(ffn_part(dit, stream, &b, w));
    }
    KN_TRY(write_velocity(dit, stream, &b, sequences, count));
fail:
    kn_arena_reset(arena, mark);
    return st;
}

double kn_dit_flop(const kn_wan_dit_config *c, const kn_dit_sequence *sequences, int32_t count)
{
    const double d = (double)c->num_attention_heads * c->attention_head_dim, f = c->ffn_dim;
    double total = 0.0;
    for (int i = 0; i < count; i++) {
        const double s = (double)kn_sequence_rows(&sequences[i]);
        const double linear_flop = s * (12.0 * d * d + 4.0 * d * f); /* q k v o, q o, two of the ffn */
        const double keys = sequences[i].context ? sequences[i].context->rows : KN_TEXT_TOKENS;
        total += c->num_layers * (linear_flop + 4.0 * s * s * d + 4.0 * s * keys * d);
        total += 2.0 * s * d * 4.0 * (c->in_channels + c->out_channels);
    }
    return total;
}
