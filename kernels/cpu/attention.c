/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over ragged sequences with an online softmax (Milakov and Gimelshein
 * 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135).
 *
 * First every head's keys and values are packed into panels, once. Then a tile is
 * one block of query rows of one head and walks the keys in blocks, always from the
 * first key and always in the same blocks:
 *
 *   s = q k^T                          microkernel, panels of keys
 *   m' = max(m, max s),  p = 2^(c (s - m')),  l = l 2^(c (m - m')) + sum p
 *   o = o 2^(c (m - m')) + p v         microkernel, panels of value columns
 *
 * A row's result depends on its own query and the keys alone: blocks of keys do not
 * depend on where queries are cut. Exponentials are in base 2 (c = scale log2 e).
 * With bf16 inputs the probabilities are rounded to bf16 for the second product and
 * summed before rounding. */
#include <assert.h>
#include <math.h>

#include "kernels/cpu/brgemm.h"
#include "kernels/cpu/tier.h"

enum {
    QUERY_BLOCK = 96, /* rows of s, p, o in the second cache level; whole microkernel rows */
#if defined(KN_TIER_AVX2)
    KEY_BLOCK = 128,
#else
    KEY_BLOCK = 256,
#endif
    PACK_KEYS = KEY_BLOCK,
};

#define LOG2_E 1.44269504088896341f

typedef struct attention_job {
    const kn_attention_args *args;
    kn_device_cpu *device;
    bool bf16;
    int64_t head_units;   /* head_dim in 32-bit units */
    int64_t value_panels; /* panels across head_dim */
    uint32_t *keys;       /* [sequence][head][key panel][head_units][NR] */
    uint32_t *values;     /* [sequence][head][value panel][key units][NR] */
} attention_job;

static int64_t padded_keys(int64_t keys)
{
    return kn_tiles(keys, NR) * NR;
}

static int64_t key_count(const kn_attention_args *g, int s)
{
    return g->k_offsets[s + 1] - g->k_offsets[s];
}

/* Units of all heads' packed keys (or values) before sequence s. */
static int64_t packed_units_before(const attention_job *job, int s, bool values)
{
    const kn_attention_args *g = job->args;
    int64_t units = 0;
    for (int i = 0; i < s; i++) {
        int64_t keys = padded_keys(key_count(g, i));
        units += g->heads * (values ? job->value_panels * NR * units_of(keys, job->bf16 ? KN_BF16 : KN_F32)
                                    : keys * job->head_units);
    }
    return units;
}

static attention_job job_of(const kn_attention_args *g)
{
    attention_job job = {.args = g, .bf16 = g->q.dtype == KN_BF16};
    job.head_units = units_of(g->head_dim, g->q.dtype);
    job.value_panels = kn_tiles(g->head_dim, NR);
    return job;
}

size_t KN_TIERED(kn_attention_workspace)(const kn_attention_args *g)
{
    attention_job job = job_of(g);
    return (size_t)(packed_units_before(&job, g->sequences, false) + packed_units_before(&job, g->sequences, true)) * 4;
}

/* A tile index to (sequence, head, block), blocks of `block` rows of the offsets given. */
typedef struct tile_place {
    int s, head;
    int64_t row0, rows; /* in the sequence */
} tile_place;

static int64_t count_tiles(const kn_attention_args *g, const int32_t *offsets, int64_t block)
{
    int64_t tiles = 0;
    for (int s = 0; s < g->sequences; s++) tiles += g->heads * kn_tiles(offsets[s + 1] - offsets[s], block);
    return tiles;
}

static tile_place place_of(const kn_attention_args *g, const int32_t *offsets, int64_t block, int64_t tile)
{
    int s = 0;
    int64_t rows = 0, blocks = 0;
    for (;; s++) {
        rows = offsets[s + 1] - offsets[s];
        blocks = kn_tiles(rows, block);
        if (tile < g->heads * blocks) break;
        tile -= g->heads * blocks;
    }
    tile_place p = {.s = s, .head = (int)(tile / blocks), .row0 = tile % blocks * block};
    p.rows = rows - p.row0 < block ? rows - p.row0 : block;
    return p;
}

static const char *head_row(const kn_matrix *m, int64_t row, int64_t column)
{
    return (const char *)m->data + (size_t)(row * m->stride + column) * kn_dtype_bytes(m->dtype);
}

static uint32_t *packed_keys(const attention_job *job, int s, int head)
{
    int64_t per_head = padded_keys(key_count(job->args, s)) * job->head_units;
    return job->keys + packed_units_before(job, s, false) + head * per_head;
}

static uint32_t *packed_values(const attention_job *job, int s, int head, int64_t *panel_units)
{
    *panel_units = units_of(padded_keys(key_count(job->args, s)), job->bf16 ? KN_BF16 : KN_F32);
    return job->values + packed_units_before(job, s, true) + head * job->value_panels * *panel_units * NR;
}

static void pack_values(const attention_job *job, uint32_t *panel, int64_t row, int64_t keys, int64_t padded,
                        int64_t column, int64_t columns)
{
    const kn_attention_args *g = job->args;
    if (job->bf16) {
        for (int64_t u = 0; u < padded / 2; u++, panel += NR) {
            bool has0 = 2 * u < keys, has1 = 2 * u + 1 < keys;
            const uint16_t *v0 = has0 ? (const uint16_t *)head_row(&g->v, row + 2 * u, column) : NULL;
            const uint16_t *v1 = has1 ? (const uint16_t *)head_row(&g->v, row + 2 * u + 1, column) : NULL;
            for (int64_t j = 0; j < NR; j++) {
                uint32_t low = has0 && j < columns ? v0[j] : 0, high = has1 && j < columns ? v1[j] : 0;
                panel[j] = low | high << 16;
            }
        }
        return;
    }
    for (int64_t u = 0; u < padded; u++, panel += NR) {
        memset(panel, 0, NR * 4);
        if (u < keys) memcpy(panel, head_row(&g->v, row + u, column), (size_t)columns * 4);
    }
}

static void pack_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const attention_job *job = context;
    const kn_attention_args *g = job->args;
    const tile_place p = place_of(g, g->k_offsets, PACK_KEYS, tile);
    const int64_t row = g->k_offsets[p.s] + p.row0;
    const int64_t column = (int64_t)p.head * g->head_dim;
    const int64_t padded = padded_keys(p.rows);
    const size_t element = kn_dtype_bytes(g->k.dtype);

    uint32_t *keys = packed_keys(job, p.s, p.head) + p.row0 * job->head_units;
    for (int64_t i = 0; i < p.rows; i += NR)
        pack_transposed(keys + i * job->head_units, (const uint32_t *)head_row(&g->k, row + i, column),
                        (int64_t)((size_t)g->k.stride * element / 4), p.rows - i < NR ? p.rows - i : NR,
                        job->head_units);

    int64_t panel_units;
    uint32_t *values = packed_values(job, p.s, p.head, &panel_units);
    int64_t first_unit = units_of(p.row0, job->bf16 ? KN_BF16 : KN_F32);
    for (int64_t v = 0; v < job->value_panels; v++) {
        int64_t columns = g->head_dim - v * NR < NR ? g->head_dim - v * NR : NR;
        pack_values(job, values + (v * panel_units + first_unit) * NR, row, p.rows, padded, column + v * NR, columns);
    }
}

/* State of one query row between key blocks. */
typedef struct softmax_row {
    float max; /* of the logits, before they are scaled */
    float sum;
} softmax_row;

/* One row of logits to probabilities, in place (f32) or packed to bf16 at the same
 * address; columns [keys, padded) become zero. Returns the factor for o. */
KN_INLINE float softmax_block(softmax_row *state, float *s, uint16_t *p, float c, const float *bias, int64_t keys,
                              int64_t padded, bool first)
{
    int64_t i = 0;
    if (bias) {
        for (; i < keys; i++) s[i] = s[i] * c + bias[i] * LOG2_E;
        c = 1.0f;
    }
    for (i = keys; i < padded; i++) s[i] = -INFINITY;
    vf high0 = v_load(s), high1 = v_load(s + VL);
    for (i = 2 * VL; i < padded; i += 2 * VL) {
        high0 = v_max(high0, v_load(s + i));
        high1 = v_max(high1, v_load(s + i + VL));
    }
    float max = v_max_of(v_max(high0, high1));
    if (!first && state->max > max) max = state->max;
    float factor = first ? 0.0f : exp2f((state->max - max) * c);

    vf sum0 = v_zero(), sum1 = v_zero();
    vf scale = v_set1(c), highest = v_set1(max);
    for (i = 0; i < padded; i += 2 * VL) { /* padded is a multiple of NR = 2 VL */
        /* Subtracted before it is scaled: the largest logit gives exactly 2^0, however large it is. */
        vf a = v_mul(v_sub(v_load(s + i), highest), scale);
        vf b = v_mul(v_sub(v_load(s + i + VL), highest), scale);
        if (p) {
            a = v_exp2_short(a);
            b = v_exp2_short(b);
            v_store_bf16_pair(p + i, a, b);
        } else {
            a = v_exp2(a);
            b = v_exp2(b);
            v_store(s + i, a);
            v_store(s + i + VL, b);
        }
        sum0 = v_add(sum0, a);
        sum1 = v_add(sum1, b);
    }
    state->max = max;
    state->sum = state->sum * factor + v_sum(v_add(sum0, sum1));
    return factor;
}

static void scale_row(float *o, int64_t count, float factor)
{
    vf f = v_set1(factor);
    for (int64_t i = 0; i < count; i += VL) v_store(o + i, v_mul(v_load(o + i), f));
}

static void write_row(const kn_attention_args *g, int64_t row, int64_t column, const float *o, float sum)
{
    void *out = (char *)kn_row(&g->out, row) + (size_t)column * kn_dtype_bytes(g->out.dtype);
    vf inverse = v_set1(1.0f / sum);
    for (int64_t i = 0; i < g->head_dim; i += VL) {
        int64_t n = g->head_dim - i < VL ? g->head_dim - i : VL;
        vf y = v_mul(v_load(o + i), inverse);
        if (n == VL)
            v_write(out, g->out.dtype, i, y);
        else
            v_write_n(out, g->out.dtype, i, y, n);
    }
}

static void attention_tile(void *context, int64_t tile, int worker)
{
    const attention_job *job = context;
    const kn_attention_args *g = job->args;
    const tile_place at = place_of(g, g->q_offsets, QUERY_BLOCK, tile);
    const int64_t keys = key_count(g, at.s);
    const int64_t row = g->q_offsets[at.s] + at.row0, column = (int64_t)at.head * g->head_dim;
    const int64_t o_stride = job->value_panels * NR;
    const char *q = head_row(&g->q, row, column);
    const int64_t q_stride = g->q.stride * (int64_t)kn_dtype_bytes(g->q.dtype);
    const uint32_t *packed_k = packed_keys(job, at.s, at.head);
    int64_t panel_units;
    const uint32_t *packed_v = packed_values(job, at.s, at.head, &panel_units);
    const float *bias = NULL;
    if (g->relative_bias) bias = g->relative_bias + at.head * (2 * g->relative_span - 1) + g->relative_span - 1;

    kn_arena scratch = kn_arena_view(kn_cpu_scratch(job->device, worker), KN_CPU_SCRATCH_BYTES);
    float *s = kn_arena_take(&scratch, QUERY_BLOCK * KEY_BLOCK * 4);
    uint16_t *p = kn_arena_take(&scratch, job->bf16 ? QUERY_BLOCK * KEY_BLOCK * 2 : 0);
    float *o = kn_arena_take(&scratch, (size_t)(QUERY_BLOCK * o_stride) * 4);
    softmax_row *state = kn_arena_take(&scratch, QUERY_BLOCK * sizeof *state);
    memset(state, 0, QUERY_BLOCK * sizeof *state);

    for (int64_t k0 = 0; k0 < keys; k0 += KEY_BLOCK) {
        const int64_t count = keys - k0 < KEY_BLOCK ? keys - k0 : KEY_BLOCK;
        const int64_t padded = padded_keys(count);
        const bool first = k0 == 0;
        for (int64_t j = 0; j < padded; j += NR)
            brgemm(job->bf16, at.rows, &q, 1, q_stride, job->head_units, packed_k + (k0 + j) * job->head_units, s + j,
                   KEY_BLOCK, true);
        for (int64_t i = 0; i < at.rows; i++) {
            float *logits = s + i * KEY_BLOCK;
            if (g->tail_log_weight && k0 + count == keys) logits[count - 1] += g->tail_log_weight[at.s] / g->scale;
            const float *row_bias = bias ? bias + k0 - (at.row0 + i) : NULL;
            uint16_t *row_p = job->bf16 ? p + i * KEY_BLOCK : NULL;
            float factor = softmax_block(&state[i], logits, row_p, g->scale * LOG2_E, row_bias, count, padded, first);
            if (!first && factor != 1.0f) scale_row(o + i * o_stride, o_stride, factor);
        }
        const char *a = job->bf16 ? (const char *)p : (const char *)s;
        const int64_t a_stride = job->bf16 ? KEY_BLOCK * 2 : KEY_BLOCK * 4;
        const int64_t unit0 = job->bf16 ? k0 / 2 : k0, units = job->bf16 ? padded / 2 : padded;
        for (int64_t v = 0; v < job->value_panels; v++)
            brgemm(job->bf16, at.rows, &a, 1, a_stride, units, packed_v + (v * panel_units + unit0) * NR, o + v * NR,
                   o_stride, first);
    }
    for (int64_t i = 0; i < at.rows; i++) write_row(g, row + i, column, o + i * o_stride, state[i].sum);
}

kn_status KN_TIERED(kn_attention)(kn_stream *stream, const kn_attention_args *g)
{
    assert(g->q.dtype == g->k.dtype && g->k.dtype == g->v.dtype);
    assert(g->q.dtype == KN_F32 || (g->head_dim % 2 == 0 && g->k.stride % 2 == 0));
    assert((size_t)QUERY_BLOCK * (KEY_BLOCK * 6 + (size_t)kn_tiles(g->head_dim, NR) * NR * 4 + 64) <
           KN_CPU_SCRATCH_BYTES);
    attention_job job = job_of(g);
    job.device = kn_cpu_of(stream);
    job.keys = g->workspace;
    job.values = job.keys + packed_units_before(&job, g->sequences, false);
    kn_cpu_run(stream, count_tiles(g, g->k_offsets, PACK_KEYS), pack_tile, &job);
    kn_cpu_run(stream, count_tiles(g, g->q_offsets, QUERY_BLOCK), attention_tile, &job);
    return KN_OK;
}
