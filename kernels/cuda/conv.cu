/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal convolutions as implicit products: row m is an output pixel, k runs over taps and channels, and a piece of 16
 * bytes lies in one pixel of one input frame. The border in memory is read like any pixel (it is zero, or a neighbour's
 * where a picture is divided); frames before the clip are zeros that are never read.
 *
 * Nearest-neighbour enlargement is folded into the weights: an output pixel of parity (py, px) sees only 2 x 2 input
 * pixels, so each parity has its own 2x2 kernel whose taps are sums of the original ones. That is four products over
 * the input's pixels, 16 taps instead of 36 for four outputs, and the enlarged frame does not exist. */
#include <assert.h>

#include "kernels/cuda/tile.cuh"

KN_CUDA_BEGIN

struct conv_source {
    const void *data; /* any address inside the input: what a copy of nothing may name */
    const void *frames[KN_CONV_FRAMES_MAX];
    int64_t rows;
    int across; /* rows of the product in one line of pixels */
    int height, width, border, channels, row_stride;
    int kh, kw, k;
    int step, before_y, before_x; /* row (y, x) begins at input pixel (y * step - before_y, x * step - before_x) */
    kn_dtype dtype;
    bool vectors;

    struct row_state {
        int y, x; /* of the first tap; y far below zero: outside */
    };
    struct column_state {
        int dt, dy, dx, c;
    };

    __device__ row_state row(int64_t m) const
    {
        row_state r;
        const int y = (int)(m / across), x = (int)(m % across);
        r.y = m < rows ? y * step - before_y : INT32_MIN / 2;
        r.x = x * step - before_x;
        return r;
    }
    __device__ column_state column(int at) const
    {
        column_state c;
        const int tap = at / channels;
        c.c = at - tap * channels;
        c.dx = tap % kw;
        c.dy = tap / kw % kh;
        c.dt = tap / (kw * kh);
        return c;
    }
    /* Index of the element, or -1. */
    __device__ int64_t place(const row_state &r, const column_state &c) const
    {
        const int y = r.y + c.dy, x = r.x + c.dx;
        if (y < -border || x < -border || y >= height + border || x >= width + border || !frames[c.dt]) return -1;
        return ((int64_t)y * row_stride + x) * channels + c.c;
    }
    __device__ const void *piece(const row_state &r, const column_state &c, int *count) const
    {
        *count = 0;
        if (c.dt >= KN_CONV_FRAMES_MAX) return nullptr; /* beyond k */
        const int64_t at = place(r, c);
        if (at < 0) return nullptr;
        *count = VECTOR;
        return (const char *)frames[c.dt] + at * (dtype == KN_F32 ? 4 : 2);
    }
    __device__ float value(const row_state &r, int at) const
    {
        if (at >= k) return 0.0f;
        const column_state c = column(at);
        const int64_t index = place(r, c);
        return index < 0 ? 0.0f : load(frames[c.dt], dtype, index);
    }
};

struct conv_epilogue {
    int64_t rows;
    int columns;
    int across, step, py, px; /* row (y, x) is output pixel (y * step + py, x * step + px) */
    kn_frame out, residual;
    const float *bias;

    struct row_state {
        int64_t out, residual;
    };

    __device__ row_state row(int64_t m) const
    {
        row_state r;
        const int64_t y = m / across * step + py, x = m % across * step + px;
        r.out = pixel_of(out, y, x);
        r.residual = pixel_of(residual, y, x);
        return r;
    }

    __device__ void put(const row_state &r, int n, float y) const
    {
        if (bias) y += bias[n];
        if (residual.data) y += load(residual.data, residual.dtype, r.residual + n);
        store(out.data, out.dtype, r.out + n, y);
    }
};

static bool enlarges(const kn_conv_args *args)
{
    return args->mode == KN_CONV_UP_NEAREST;
}

/* Rows and columns of the kernel as it is multiplied. */
static int taps_across(const kn_conv_args *args, int across)
{
    return enlarges(args) ? 2 : across;
}

static conv_source source_of(const kn_conv_args *args, int py, int px)
{
    const kn_frame *in = &args->in[args->kt - 1];
    conv_source s = {};
    const size_t pixel_bytes = (size_t)in->channels * kn_dtype_bytes(in->dtype);
    s.vectors = pixel_bytes % 16 == 0;
    for (int t = 0; t < args->kt; t++) {
        s.frames[t] = args->in[t].data;
        s.vectors = s.vectors && (uintptr_t)s.frames[t] % 16 == 0;
    }
    s.data = in->data;
    s.height = in->height;
    s.width = in->width;
    s.border = in->border;
    s.channels = in->channels;
    s.row_stride = in->row_stride;
    s.kh = taps_across(args, args->kh);
    s.kw = taps_across(args, args->kw);
    s.k = (int)args->w->k;
    s.step = args->mode == KN_CONV_DOWN ? 2 : 1;
    s.before_y = args->mode == KN_CONV_DOWN ? 0 : enlarges(args) ? 1 - py : args->kh / 2;
    s.before_x = args->mode == KN_CONV_DOWN ? 0 : enlarges(args) ? 1 - px : args->kw / 2;
    s.across = enlarges(args) ? in->width : args->out.width;
    s.rows = enlarges(args) ? (int64_t)in->height * in->width : (int64_t)args->out.height * args->out.width;
    s.dtype = in->dtype;
    return s;
}

/* The product of one parity; the only one where nothing is enlarged. */
static kn_status run_parity(kn_stream *stream, const kn_conv_args *args, int py, int px)
{
    kn_weight w = *args->w;
    const conv_source source = source_of(args, py, px);
    w.data = (const char *)w.data + (size_t)(py * 2 + px) * weight_bytes_cuda(w.n, w.k, w.compute);
    conv_epilogue epilogue;
    epilogue.rows = source.rows;
    epilogue.columns = (int)w.n;
    epilogue.across = source.across;
    epilogue.step = enlarges(args) ? 2 : 1;
    epilogue.py = py;
    epilogue.px = px;
    epilogue.out = args->out;
    epilogue.residual = args->residual;
    epilogue.bias = args->bias;
    return run_product("conv", stream, source, &w, epilogue);
}

kn_status conv_cuda(kn_stream *stream, const kn_conv_args *args)
{
    assert(args->w->layout == KN_WEIGHT_PANEL && args->w->n == args->out.channels);
    assert(args->w->k == (int64_t)args->kt * taps_across(args, args->kh) * taps_across(args, args->kw) *
                             args->in[args->kt - 1].channels);
    const int parities = enlarges(args) ? 4 : 1;
    kn_status st = KN_OK;
    for (int parity = 0; parity < parities && st == KN_OK; parity++)
        st = run_parity(stream, args, parity / 2, parity % 2);
    return st;
}

/* ---- weights ---- */

static int64_t depth_of(const kn_conv_args *shape)
{
    return (int64_t)shape->kt * taps_across(shape, shape->kh) * taps_across(shape, shape->kw) *
           shape->in[shape->kt - 1].channels;
}

size_t conv_weight_bytes_cuda(const kn_conv_args *shape)
{
    return (enlarges(shape) ? 4 : 1) *
           weight_bytes_cuda(shape->out.channels, depth_of(shape), shape->in[shape->kt - 1].dtype);
}

struct conv_weight_job {
    void *to; /* [parities][n][padded] */
    kn_dtype to_type;
    const void *from; /* [rows][channels][taps], rows first.. of the n */
    kn_dtype from_type;
    int64_t first, rows, n, padded;
    int channels, taps, parities;
};

/* Sum of the original taps that meet the same pixel: row tap 0 of parity 0 is the original row 0, row tap 1 the sum of
 * rows 1 and 2; parity 1 sums rows 0 and 1 first. Columns likewise. In double, rounded once. */
__device__ static float folded_tap(const conv_weight_job &job, int64_t base, int tap, int py, int px)
{
    const int ty = tap / 2, tx = tap % 2;
    const int y0 = ty == 0 ? 0 : 1 + py, y1 = ty == 0 ? py : 2, x0 = tx == 0 ? 0 : 1 + px, x1 = tx == 0 ? px : 2;
    double sum = 0;
    for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++) sum += (double)load(job.from, job.from_type, base + y * 3 + x);
    return (float)sum;
}

/* The channel moves from the slowest to the fastest place of k: w[n, tap, c] = source[n, c, tap]. */
__global__ void __launch_bounds__(256) prepare_conv_kernel(conv_weight_job job)
{
    const int64_t index = flat_index(), row = index / job.padded % job.rows, k = index % job.padded;
    const int parity = (int)(index / job.padded / job.rows);
    if (parity >= job.parities) return;
    const int64_t tap = k / job.channels, base = (row * job.channels + k % job.channels) * job.taps;
    float value = 0;
    if (job.parities > 1) {
        if (tap < 4) value = folded_tap(job, base, (int)tap, parity / 2, parity % 2);
    } else if (tap < job.taps) {
        value = load(job.from, job.from_type, base + tap);
    }
    store(job.to, job.to_type, (parity * job.n + job.first + row) * job.padded + k, value);
}

kn_status conv_weight_prepare_cuda(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                   const kn_conv_args *shape)
{
    const kn_dtype compute = shape->in[shape->kt - 1].dtype;
    const int64_t n = shape->out.channels, k = depth_of(shape);
    assert(source->layout == KN_WEIGHT_PLAIN && source->n == n);
    const size_t row_bytes = (size_t)source->k * kn_dtype_bytes(source->dtype);
    const int64_t at_once = (int64_t)(SCRATCH_BYTES / row_bytes);
    assert(at_once > 0);
    *out = kn_weight{destination, n, k, compute, KN_WEIGHT_PANEL, 1, (int32_t)padded_k(k), compute};
    conv_weight_job job = {};
    job.to = destination;
    job.to_type = compute;
    job.from_type = source->dtype;
    job.n = n;
    job.padded = padded_k(k);
    job.channels = shape->in[shape->kt - 1].channels;
    job.taps = (int)(source->k / job.channels);
    job.parities = enlarges(shape) ? 4 : 1;
    assert(job.taps == shape->kt * shape->kh * shape->kw);
    void *scratch;
    kn_status st = stream_scratch(stream, &scratch);
    job.from = scratch;
    for (; job.first < n && st == KN_OK; job.first += at_once) {
        job.rows = n - job.first < at_once ? n - job.first : at_once;
        st = kn_stream_upload(stream, scratch, (const char *)source->data + (size_t)job.first * row_bytes,
                              (size_t)job.rows * row_bytes);
        if (st != KN_OK) break;
        st = KN_LAUNCH(prepare_conv_kernel, (unsigned)divide_up(job.parities * job.rows * job.padded, 256), 256, 0,
                       stream_of(stream), job);
    }
    return st;
}

KN_CUDA_END
