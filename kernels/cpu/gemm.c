/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear layers: out = residual + gate * act(a w^T + bias).
 *
 * The output is cut into tiles of rows x columns. A tile walks k in blocks small
 * enough that a panel's block stays in the first cache level, accumulates in
 * float32 scratch, and finishes with the epilogue, so `out` is written once.
 *
 *   for k block:  for panel of NR columns:  for MR rows:  microkernel
 *
 * Weights are PANEL (prepared at load), or PLAIN: then the tile packs each panel
 * block from the checkpoint's own rows first and spends it on many rows, which is
 * how a text encoder larger than memory streams through. */
#include <assert.h>

#include "kernels/cpu/brgemm.h"
#include "kernels/cpu/tier.h"

enum {
#if defined(KN_TIER_AVX2)
    K_BLOCK_UNITS = 256, /* panel block 16 KiB: half of a 32 KiB first level */
    TILE_ROWS = 96,
#else
    K_BLOCK_UNITS = 384, /* 48 KiB: streams from the second level ahead of use */
    TILE_ROWS = 192,
#endif
    TILE_COLUMNS = 256,
    PLAIN_TILE_ROWS = 512, /* a packed panel is used for this many rows */
    PLAIN_TILE_COLUMNS = 64,
};

typedef struct gemm_job {
    const kn_gemm_args *args;
    kn_device_cpu *device;
    int64_t row_tiles;
    int64_t tile_rows, tile_columns;
    bool convert_a; /* a is not in the compute type, or its rows end in half a unit */
} gemm_job;

_Static_assert(((size_t)PLAIN_TILE_ROWS * (PLAIN_TILE_COLUMNS + K_BLOCK_UNITS) + (size_t)NR * K_BLOCK_UNITS) * 4 +
                       65536 <
                   KN_CPU_SCRATCH_BYTES,
               "a plain tile fits the scratch");
_Static_assert(((size_t)TILE_ROWS * (TILE_COLUMNS + K_BLOCK_UNITS) + (size_t)NR * K_BLOCK_UNITS) * 4 + 65536 <
                   KN_CPU_SCRATCH_BYTES,
               "a panel tile fits the scratch");

void KN_TIERED(kn_convert_row)(uint32_t *units, kn_dtype compute, const void *source, kn_dtype dtype, int64_t k)
{
    int64_t i = 0;
    float *as_float = (float *)units;
    uint16_t *as_bf16 = (uint16_t *)units;
    bool to_bf16 = compute == KN_BF16;
    if (to_bf16) units[units_of(k, compute) - 1] = 0; /* the odd half */
    if (dtype == KN_BF16 && to_bf16) {
        memcpy(units, source, (size_t)k * 2);
        return;
    }
    if (dtype == KN_F32 && !to_bf16) {
        memcpy(units, source, (size_t)k * 4);
        return;
    }
    for (; i + VL <= k; i += VL) {
        vf x = dtype == KN_F32    ? v_load((const float *)source + i)
               : dtype == KN_BF16 ? v_load_bf16((const uint16_t *)source + i)
                                  : v_load_f16((const uint16_t *)source + i);
        if (to_bf16)
            v_store_bf16(as_bf16 + i, x);
        else
            v_store(as_float + i, x);
    }
    for (; i < k; i++) {
        float x = dtype == KN_F32    ? ((const float *)source)[i]
                  : dtype == KN_BF16 ? kn_bf16_to_float(((const uint16_t *)source)[i])
                                     : kn_f16_to_float(((const uint16_t *)source)[i]);
        if (to_bf16)
            as_bf16[i] = kn_bf16_from_float(x);
        else
            as_float[i] = x;
    }
}

/* One panel block [units][NR] from rows n0.. of a PLAIN weight, columns k0 .. k0 + k. */
static void pack_plain(uint32_t *panel, uint32_t *row, const kn_weight *w, int64_t n0, int64_t k0, int64_t k)
{
    int64_t columns = w->n - n0 < NR ? w->n - n0 : NR;
    int64_t units = units_of(k, w->compute);
    const char *source = (const char *)w->data + (size_t)(n0 * w->k + k0) * kn_dtype_bytes(w->dtype);
    size_t row_bytes = (size_t)w->k * kn_dtype_bytes(w->dtype);
    bool direct = w->dtype == w->compute && (w->compute == KN_F32 || (k % 2 == 0 && w->k % 2 == 0)) &&
                  ((uintptr_t)source & 3) == 0;
    if (direct) {
        pack_transposed(panel, (const uint32_t *)source, (int64_t)(row_bytes / 4), columns, units);
        return;
    }
    for (int64_t j = 0; j < columns; j++)
        KN_TIERED(kn_convert_row)(row + j * units, w->compute, source + (size_t)j * row_bytes, w->dtype, k);
    pack_transposed(panel, row, units, columns, units);
}

KN_INLINE void epilogue_row(const kn_gemm_args *g, const float *c, int64_t r, int64_t n0, int64_t columns)
{
    const kn_dtype dtype = g->out.dtype;
    void *out = kn_row(&g->out, r);
    const void *residual = g->residual.data ? kn_row(&g->residual, r) : NULL;
    const float *gate = NULL;
    if (g->gate.data) gate = g->gate.data + (g->gate.row_index ? g->gate.row_index[r] : 0) * g->gate.stride + n0;
    for (int64_t j = 0; j < columns; j += VL) {
        int64_t n = columns - j < VL ? columns - j : VL;
        vf y = v_load(c + j); /* scratch rows are whole panels */
        if (g->bias) y = v_add(y, n == VL ? v_load(g->bias + n0 + j) : v_load_n(g->bias + n0 + j, n));
        if (g->activation == KN_ACT_GELU_TANH) y = v_gelu_tanh(y);
        if (g->activation == KN_ACT_SILU) y = v_silu(y);
        if (residual) {
            vf x = n == VL ? v_read(residual, dtype, n0 + j) : v_read_n(residual, dtype, n0 + j, n);
            vf scale = !gate ? v_set1(1.0f) : n == VL ? v_load(gate + j) : v_load_n(gate + j, n);
            y = v_fma(y, scale, x);
        }
        if (n == VL)
            v_write(out, dtype, n0 + j, y);
        else
            v_write_n(out, dtype, n0 + j, y, n);
    }
}

static void gemm_tile(void *context, int64_t tile, int worker)
{
    const gemm_job *job = context;
    const kn_gemm_args *g = job->args;
    const kn_weight *w = g->w;
    const bool bf16 = w->compute == KN_BF16;
    const int64_t m0 = tile % job->row_tiles * job->tile_rows;
    const int64_t n0 = tile / job->row_tiles * job->tile_columns;
    const int64_t rows = g->out.rows - m0 < job->tile_rows ? g->out.rows - m0 : job->tile_rows;
    const int64_t columns = w->n - n0 < job->tile_columns ? w->n - n0 : job->tile_columns;
    const int64_t panels = kn_tiles(columns, NR);
    const int64_t total_units = units_of(w->k, w->compute);
    const int64_t unit_k = bf16 ? 2 : 1;

    kn_arena scratch = kn_arena_view(kn_cpu_scratch(job->device, worker), KN_CPU_SCRATCH_BYTES);
    const int64_t c_stride = panels * NR;
    float *c = kn_arena_take(&scratch, (size_t)(rows * c_stride) * 4);
    uint32_t *copy = kn_arena_take(&scratch, job->convert_a ? (size_t)rows * K_BLOCK_UNITS * 4 : 0);
    uint32_t *pack = kn_arena_take(&scratch, (size_t)NR * K_BLOCK_UNITS * 4);
    uint32_t *line = kn_arena_take(&scratch, w->layout == KN_WEIGHT_PLAIN ? (size_t)NR * K_BLOCK_UNITS * 4 : 0);

    for (int64_t u0 = 0; u0 < total_units; u0 += K_BLOCK_UNITS) {
        int64_t units = total_units - u0 < K_BLOCK_UNITS ? total_units - u0 : K_BLOCK_UNITS;
        int64_t k0 = u0 * unit_k;
        int64_t k = w->k - k0 < units * unit_k ? w->k - k0 : units * unit_k;
        const char *a = (const char *)kn_row(&g->a, m0) + (size_t)k0 * kn_dtype_bytes(g->a.dtype);
        int64_t a_stride = g->a.stride * (int64_t)kn_dtype_bytes(g->a.dtype);
        if (job->convert_a) {
            for (int64_t r = 0; r < rows; r++)
                KN_TIERED(kn_convert_row)(copy + r * units, w->compute, a + r * a_stride, g->a.dtype, k);
            a = (const char *)copy;
            a_stride = units * 4;
        }
        for (int64_t p = 0; p < panels; p++) {
            const uint32_t *panel = pack;
            if (w->layout == KN_WEIGHT_PLAIN)
                pack_plain(pack, line, w, n0 + p * NR, k0, k);
            else
                panel = (const uint32_t *)w->data + ((n0 / NR + p) * total_units + u0) * NR;
            brgemm(bf16, rows, &a, 1, a_stride, units, panel, c + p * NR, c_stride, u0 == 0);
        }
    }
    for (int64_t r = 0; r < rows; r++) epilogue_row(g, c + r * c_stride, m0 + r, n0, columns);
}

kn_status KN_TIERED(kn_gemm)(kn_stream *stream, const kn_gemm_args *g)
{
    const kn_weight *w = g->w;
    assert(g->a.cols == w->k && g->out.cols == w->n && g->a.rows == g->out.rows);
    assert(w->layout == KN_WEIGHT_PLAIN || w->panel == NR);
    assert(!g->gate.data || g->residual.data);
    if (g->out.rows == 0 || w->n == 0) return KN_OK;
    gemm_job job = {.args = g, .device = kn_cpu_of(stream)};
    bool plain = w->layout == KN_WEIGHT_PLAIN;
    job.tile_rows = plain ? PLAIN_TILE_ROWS : TILE_ROWS;
    job.tile_columns = plain ? PLAIN_TILE_COLUMNS : TILE_COLUMNS;
    job.convert_a = g->a.dtype != w->compute || (w->compute == KN_BF16 && w->k % 2 != 0);
    job.row_tiles = kn_tiles(g->out.rows, job.tile_rows);
    /* Few rows: narrower tiles, so that every thread has some. The result does not depend on it. */
    int64_t wanted = 4 * (int64_t)kn_pool_threads(job.device->pool);
    while (job.tile_columns > NR && job.row_tiles * kn_tiles(w->n, job.tile_columns) < wanted) job.tile_columns /= 2;
    kn_cpu_run(stream, job.row_tiles * kn_tiles(w->n, job.tile_columns), gemm_tile, &job);
    return KN_OK;
}

/* ---- weights ---- */

size_t KN_TIERED(kn_weight_bytes)(int64_t n, int64_t k, kn_dtype compute)
{
    return (size_t)(kn_tiles(n, NR) * NR * units_of(k, compute)) * 4;
}

typedef struct prepare_job {
    kn_weight source; /* PLAIN, with the target's compute type */
    uint32_t *destination;
    kn_device_cpu *device;
} prepare_job;

static void prepare_panel(void *context, int64_t panel, int worker)
{
    const prepare_job *job = context;
    const kn_weight *w = &job->source;
    const int64_t total_units = units_of(w->k, w->compute);
    const int64_t unit_k = w->compute == KN_BF16 ? 2 : 1;
    uint32_t *line = kn_cpu_scratch(job->device, worker);
    for (int64_t u0 = 0; u0 < total_units; u0 += K_BLOCK_UNITS) {
        int64_t units = total_units - u0 < K_BLOCK_UNITS ? total_units - u0 : K_BLOCK_UNITS;
        int64_t k0 = u0 * unit_k;
        int64_t k = w->k - k0 < units * unit_k ? w->k - k0 : units * unit_k;
        pack_plain(job->destination + (panel * total_units + u0) * NR, line, w, panel * NR, k0, k);
    }
}

kn_status KN_TIERED(kn_weight_prepare)(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                       kn_dtype compute)
{
    assert(source->layout == KN_WEIGHT_PLAIN && (compute == KN_F32 || compute == KN_BF16));
    prepare_job job = {.source = *source, .destination = destination, .device = kn_cpu_of(stream)};
    job.source.compute = compute;
    kn_cpu_run(stream, kn_tiles(source->n, NR), prepare_panel, &job);
    *out = (kn_weight){.data = destination,
                       .n = source->n,
                       .k = source->k,
                       .dtype = compute,
                       .layout = KN_WEIGHT_PANEL,
                       .panel = NR,
                       .pair = compute == KN_BF16 ? 2 : 1,
                       .compute = compute};
    return KN_OK;
}
