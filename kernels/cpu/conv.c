/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal 3-D convolution of one output frame, channels last, without im2col.
 *
 * Every kernel tap is a pointer into an input frame; the batch-reduce microkernel
 * walks taps and channels for a run of neighbouring output pixels, whose inputs lie
 * a constant distance apart. Frames carry a border of zeros, so no tap is ever
 * tested against an edge; a frame before the clip began (NULL) has its taps left
 * out, which is exact.
 *
 * A tile is a block of output rows and a block of output channels. Taps are grouped
 * so that a panel block stays in the first cache level:
 *
 *   for tap group, channel block:  for panel of NR outputs:  for row:  microkernel
 *
 * Nearest-neighbour enlargement (KN_CONV_UP_NEAREST) is folded in: an output pixel
 * of parity (py, px) sees only 2 x 2 input pixels, so each parity has its own 2x2
 * kernel whose taps are sums of the original ones: 4 products instead of 9. */
#include <assert.h>

#include "kernels/cpu/brgemm.h"
#include "kernels/cpu/tier.h"

enum {
    GROUP_UNITS = 384, /* panel block, as in gemm.c */
    TILE_PIXELS = 192,
    TILE_CHANNELS = 256,
    TAPS_MAX = 27,
    UP_TAPS = 4,
};

_Static_assert((size_t)(TILE_PIXELS + 64) * (TILE_CHANNELS + NR) * 4 < KN_CPU_SCRATCH_BYTES, "a tile fits the scratch");

typedef struct conv_job {
    const kn_conv_args *args;
    kn_device_cpu *device;
    int64_t units;      /* per tap: input channels in 32-bit units */
    int64_t tile_rows;  /* output rows (enlarging: rows of one vertical parity) */
    int64_t tile_width; /* output pixels of a row, or input pixels when enlarging */
    int64_t tile_channels;
    int64_t row_tiles, column_tiles, parities;
    int64_t columns; /* pixels a row is cut into tile_width runs of */
} conv_job;

static bool enlarges(const kn_conv_args *g)
{
    return g->mode == KN_CONV_UP_NEAREST;
}

/* Channel 0 of input pixel (y, x); may point into the border. */
static const char *pixel(const kn_frame *f, int64_t y, int64_t x)
{
    return (const char *)f->data + (y * f->row_stride + x) * f->channels * (int64_t)kn_dtype_bytes(f->dtype);
}

/* Pointers to the taps of output row y (enlarging: input row y, parity py, px), first pixel x, for panel taps
 * [first, first + count). Returns how many there are. */
static int tap_pointers(const kn_conv_args *g, const char **taps, int64_t y, int64_t x, int py, int px, int first,
                        int count)
{
    for (int i = 0; i < count; i++) {
        int tap = first + i;
        if (enlarges(g)) {
            taps[i] = pixel(&g->in[0], y - 1 + py + tap / 2, x - 1 + px + tap % 2);
            continue;
        }
        int dx = tap % g->kw, dy = tap / g->kw % g->kh, dt = tap / (g->kw * g->kh);
        const kn_frame *f = &g->in[dt];
        if (g->mode == KN_CONV_DOWN)
            taps[i] = pixel(f, 2 * y + dy, 2 * x + dx);
        else
            taps[i] = pixel(f, y + dy - g->kh / 2, x + dx - g->kw / 2);
    }
    return count;
}

typedef struct tile_place {
    int64_t y0, rows; /* output rows, or input rows when enlarging */
    int64_t x0, width;
    int64_t n0, channels;
    int py, px;
} tile_place;

static tile_place place_of(const conv_job *job, int64_t tile)
{
    const kn_conv_args *g = job->args;
    tile_place p = {0};
    int64_t height = enlarges(g) ? g->out.height / 2 : g->out.height;
    int64_t column = tile % job->column_tiles;
    tile /= job->column_tiles;
    int64_t row = tile % job->row_tiles;
    tile /= job->row_tiles;
    int64_t parity = tile % job->parities;
    tile /= job->parities;
    p.py = (int)(parity / 2);
    p.px = (int)(parity % 2);
    p.y0 = row * job->tile_rows;
    p.rows = height - p.y0 < job->tile_rows ? height - p.y0 : job->tile_rows;
    p.x0 = column * job->tile_width;
    p.width = job->columns - p.x0 < job->tile_width ? job->columns - p.x0 : job->tile_width;
    p.n0 = tile * job->tile_channels;
    p.channels = g->w->n - p.n0 < job->tile_channels ? g->w->n - p.n0 : job->tile_channels;
    return p;
}

/* Scratch row to output pixels: bias, residual, store. */
static void store_row(const kn_conv_args *g, const tile_place *p, int64_t row, const float *c, int64_t c_stride)
{
    const int64_t up = enlarges(g) ? 2 : 1;
    for (int64_t i = 0; i < p->width; i++, c += c_stride) {
        int64_t y = (p->y0 + row) * up + p->py, x = (p->x0 + i) * up + p->px;
        float *out = (float *)g->out.data + (y * g->out.row_stride + x) * g->out.channels + p->n0;
        const float *residual = NULL;
        if (g->residual.data)
            residual =
                (const float *)g->residual.data + (y * g->residual.row_stride + x) * g->residual.channels + p->n0;
        for (int64_t j = 0; j < p->channels; j += VL) {
            int64_t n = p->channels - j < VL ? p->channels - j : VL;
            vf v = v_load(c + j);
            if (n == VL) {
                if (g->bias) v = v_add(v, v_load(g->bias + p->n0 + j));
                if (residual) v = v_add(v, v_load(residual + j));
                v_store(out + j, v);
            } else {
                if (g->bias) v = v_add(v, v_load_n(g->bias + p->n0 + j, n));
                if (residual) v = v_add(v, v_load_n(residual + j, n));
                v_store_n(out + j, v, n);
            }
        }
    }
}

static void conv_tile(void *context, int64_t tile, int worker)
{
    const conv_job *job = context;
    const kn_conv_args *g = job->args;
    const tile_place p = place_of(job, tile);
    const bool bf16 = g->w->compute == KN_BF16;
    const int taps = enlarges(g) ? UP_TAPS : g->kt * g->kh * g->kw;
    const int taps_per_frame = taps / g->kt;
    const int64_t panels = kn_tiles(p.channels, NR), all_panels = kn_tiles(g->w->n, NR);
    const int64_t c_stride = panels * NR;
    const int64_t a_stride =
        g->in[g->kt - 1].channels * (int64_t)kn_dtype_bytes(g->in[g->kt - 1].dtype) * (g->mode == KN_CONV_DOWN ? 2 : 1);
    const uint32_t *weights = (const uint32_t *)g->w->data + (p.py * 2 + p.px) * all_panels * UP_TAPS * job->units * NR;
    float *c = kn_cpu_scratch(job->device, worker);
    bool first = true;

    /* Several small taps at once, or one tap in several channel blocks. */
    int group = job->units >= GROUP_UNITS ? 1 : (int)(GROUP_UNITS / job->units);
    for (int t0 = 0, count; t0 < taps; t0 += count) {
        int in_frame = taps_per_frame - t0 % taps_per_frame;
        count = group < in_frame ? group : in_frame;
        if (!g->in[t0 / taps_per_frame].data) continue;
        for (int64_t u0 = 0; u0 < job->units; u0 += GROUP_UNITS) {
            int64_t units = job->units - u0 < GROUP_UNITS ? job->units - u0 : GROUP_UNITS;
            for (int64_t q = 0; q < panels; q++) {
                const uint32_t *panel = weights + ((p.n0 / NR + q) * taps + t0) * job->units * NR + u0 * NR;
                for (int64_t row = 0; row < p.rows; row++) {
                    const char *pointers[TAPS_MAX];
                    tap_pointers(g, pointers, p.y0 + row, p.x0, p.py, p.px, t0, count);
                    for (int i = 0; i < count; i++) pointers[i] += u0 * 4;
                    brgemm(bf16, p.width, pointers, count, a_stride, units, panel,
                           c + row * p.width * c_stride + q * NR, c_stride, first);
                }
            }
            first = false;
        }
    }
    if (first) memset(c, 0, (size_t)(p.rows * p.width * c_stride) * 4); /* nothing but frames of zeros */
    for (int64_t row = 0; row < p.rows; row++) store_row(g, &p, row, c + row * p.width * c_stride, c_stride);
}

kn_status KN_TIERED(kn_conv)(kn_stream *stream, const kn_conv_args *g)
{
    const kn_frame *in = &g->in[g->kt - 1]; /* the newest frame is always there */
    assert(in->data && in->dtype == g->w->compute && g->w->panel == NR && g->out.channels == g->w->n);
    assert(g->kh == 1 || in->border >= 1);
    assert(in->dtype == KN_F32 || in->channels % 2 == 0);
    assert(g->mode == KN_CONV_SAME || (g->kt == 1 && g->kh == 3 && g->kw == 3));
    conv_job job = {.args = g, .device = kn_cpu_of(stream)};
    job.units = units_of(in->channels, in->dtype);
    job.parities = enlarges(g) ? 4 : 1;
    job.columns = enlarges(g) ? in->width : g->out.width;
    int64_t height = enlarges(g) ? in->height : g->out.height;
    /* Even runs of at most TILE_PIXELS, in whole microkernel rows where the width allows. */
    job.column_tiles = kn_tiles(job.columns, TILE_PIXELS);
    job.tile_width = kn_tiles(kn_tiles(job.columns, job.column_tiles), MR) * MR;
    if (job.tile_width > job.columns) job.tile_width = job.columns;
    job.column_tiles = kn_tiles(job.columns, job.tile_width);
    job.tile_rows = TILE_PIXELS / job.tile_width > 0 ? TILE_PIXELS / job.tile_width : 1;
    job.tile_channels = TILE_CHANNELS;
    int64_t wanted = 4 * (int64_t)kn_pool_threads(job.device->pool);
    while (job.tile_rows > 1 && kn_tiles(height, job.tile_rows) * job.column_tiles * job.parities < wanted)
        job.tile_rows = (job.tile_rows + 1) / 2;
    job.row_tiles = kn_tiles(height, job.tile_rows);
    int64_t tiles = job.column_tiles * job.row_tiles * job.parities * kn_tiles(g->w->n, job.tile_channels);
    kn_cpu_run(stream, tiles, conv_tile, &job);
    return KN_OK;
}

/* ---- weights ---- */

static int64_t conv_taps(const kn_conv_args *g)
{
    return enlarges(g) ? UP_TAPS : (int64_t)g->kt * g->kh * g->kw;
}

size_t KN_TIERED(kn_conv_weight_bytes)(const kn_conv_args *g)
{
    const kn_frame *in = &g->in[g->kt - 1];
    int64_t units = units_of(in->channels, in->dtype);
    return (size_t)(kn_tiles(g->out.channels, NR) * NR * conv_taps(g) * units * (enlarges(g) ? 4 : 1)) * 4;
}

typedef struct conv_prepare_job {
    const kn_weight *source; /* (n, c, kt, kh, kw) */
    const kn_conv_args *shape;
    uint32_t *destination;
    int64_t panels;
} conv_prepare_job;

static float source_value(const kn_weight *w, int64_t index)
{
    switch (w->dtype) {
    case KN_F32: return ((const float *)w->data)[index];
    case KN_BF16: return kn_bf16_to_float(((const uint16_t *)w->data)[index]);
    case KN_F16: return kn_f16_to_float(((const uint16_t *)w->data)[index]);
    }
    return 0.0f;
}

/* Weight of output n, input channel c at panel tap `tap` of parity (py, px). Enlarging: row tap 0 of parity 0 is
 * the original row 0, row tap 1 the sum of rows 1 and 2; parity 1 sums rows 0 and 1 first. Columns likewise. */
static float tap_value(const conv_prepare_job *job, int64_t n, int64_t c, int tap, int py, int px)
{
    const kn_conv_args *g = job->shape;
    const int64_t kernel = (int64_t)g->kt * g->kh * g->kw;
    const int64_t base = (n * g->in[g->kt - 1].channels + c) * kernel;
    if (!enlarges(g)) return source_value(job->source, base + tap);
    int ty = tap / 2, tx = tap % 2;
    int y0 = ty == 0 ? 0 : 1 + py, y1 = ty == 0 ? py : 2;
    int x0 = tx == 0 ? 0 : 1 + px, x1 = tx == 0 ? px : 2;
    double sum = 0.0;
    for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++) sum += (double)source_value(job->source, base + y * 3 + x);
    return (float)sum;
}

static void prepare_conv_panel(void *context, int64_t index, int worker)
{
    (void)worker;
    const conv_prepare_job *job = context;
    const kn_conv_args *g = job->shape;
    const kn_frame *in = &g->in[g->kt - 1];
    const int taps = (int)conv_taps(g);
    const int64_t units = units_of(in->channels, in->dtype);
    const int parity = (int)(index / job->panels);
    const int64_t n0 = index % job->panels * NR;
    uint32_t *panel = job->destination + index * taps * units * NR;
    const int64_t columns = g->out.channels - n0 < NR ? g->out.channels - n0 : NR;
    const bool bf16 = in->dtype == KN_BF16;
    memset(panel, 0, (size_t)(taps * units * NR) * 4);
    if (!bf16 && job->source->dtype == KN_F32 && !enlarges(g)) {
        /* The common case, and laid out anew before each use in large autoencoders: `columns` rows are read side by
         * side, each in order, and a panel line is written at once. */
        const float *source = (const float *)job->source->data + n0 * in->channels * taps;
        const int64_t stride = (int64_t)in->channels * taps;
        for (int64_t c = 0; c < in->channels; c++)
            for (int tap = 0; tap < taps; tap++) {
                float *line = (float *)panel + (tap * units + c) * NR;
                for (int64_t j = 0; j < columns; j++) line[j] = source[j * stride + c * taps + tap];
            }
        return;
    }
    for (int64_t j = 0; j < columns; j++)
        for (int64_t c = 0; c < in->channels; c++)
            for (int tap = 0; tap < taps; tap++) {
                float value = tap_value(job, n0 + j, c, tap, parity / 2, parity % 2);
                if (bf16) {
                    int64_t unit = (tap * units + c / 2) * NR + j;
                    ((uint16_t *)(panel + unit))[c % 2] = kn_bf16_from_float(value);
                } else {
                    ((float *)panel)[(tap * units + c) * NR + j] = value;
                }
            }
}

kn_status KN_TIERED(kn_conv_weight_prepare)(kn_stream *stream, kn_weight *out, void *destination,
                                            const kn_weight *source, const kn_conv_args *g)
{
    const kn_frame *in = &g->in[g->kt - 1];
    conv_prepare_job job = {.source = source, .shape = g, .destination = destination};
    job.panels = kn_tiles(g->out.channels, NR);
    kn_cpu_run(stream, job.panels * (enlarges(g) ? 4 : 1), prepare_conv_panel, &job);
    *out = (kn_weight){.data = destination,
                       .n = g->out.channels,
                       .k = conv_taps(g) * in->channels,
                       .dtype = in->dtype,
                       .layout = KN_WEIGHT_PANEL,
                       .panel = NR,
                       .pair = in->dtype == KN_BF16 ? 2 : 1,
                       .compute = in->dtype};
    return KN_OK;
}
