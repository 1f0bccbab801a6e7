/* SPDX-License-Identifier: Apache-2.0
 *
 * Causal convolutions as implicit products: row m is an output pixel, k runs over taps and channels, and a piece of 16
 * bytes lies in one pixel of one input frame. The border in memory is read like any pixel (it is zero, or a neighbour's
 * where a picture is divided); frames before the clip are zeros that are never read. Nearest-neighbour enlargement is
 * an address: output pixel y reads input row y / 2, so the enlarged frame does not exist. */
#include <assert.h>

#include "kernels/cuda/tile.cuh"

KN_CUDA_BEGIN

struct conv_source {
    const void *data; /* any address inside the input: what a copy of nothing may name */
    const void *frames[KN_CONV_FRAMES_MAX];
    int64_t rows;
    int out_width, height, width, border, channels, row_stride;
    int kh, kw, k;
    kn_conv_mode mode;
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
        const int y = (int)(m / out_width), x = (int)(m % out_width), step = mode == KN_CONV_DOWN ? 2 : 1;
        const int before_y = mode == KN_CONV_DOWN ? 0 : kh / 2, before_x = mode == KN_CONV_DOWN ? 0 : kw / 2;
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
        int y = r.y + c.dy, x = r.x + c.dx;
        if (mode == KN_CONV_UP_NEAREST) {
            y >>= 1; /* rounds down: -1 stays -1 */
            x >>= 1;
        }
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
    kn_frame out, residual;
    const float *bias;

    struct row_state {
        int64_t out, residual;
    };

    __device__ row_state row(int64_t m) const
    {
        row_state r;
        const int64_t y = m / out.width, x = m % out.width;
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

static conv_source source_of(const kn_conv_args *args)
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
    s.rows = (int64_t)args->out.height * args->out.width;
    s.out_width = args->out.width;
    s.height = in->height;
    s.width = in->width;
    s.border = in->border;
    s.channels = in->channels;
    s.row_stride = in->row_stride;
    s.kh = args->kh;
    s.kw = args->kw;
    s.k = (int)args->w->k;
    s.mode = args->mode;
    s.dtype = in->dtype;
    return s;
}

kn_status conv_cuda(kn_stream *stream, const kn_conv_args *args)
{
    const kn_weight *w = args->w;
    assert(w->layout == KN_WEIGHT_PANEL && w->n == args->out.channels);
    assert(w->k == (int64_t)args->kt * args->kh * args->kw * args->in[args->kt - 1].channels);
    conv_epilogue epilogue;
    epilogue.rows = (int64_t)args->out.height * args->out.width;
    epilogue.columns = (int)w->n;
    epilogue.out = args->out;
    epilogue.residual = args->residual;
    epilogue.bias = args->bias;
    return run_product("conv", stream, source_of(args), w, epilogue);
}

/* ---- weights ---- */

static int64_t depth_of(const kn_conv_args *shape)
{
    return (int64_t)shape->kt * shape->kh * shape->kw * shape->in[shape->kt - 1].channels;
}

size_t conv_weight_bytes_cuda(const kn_conv_args *shape)
{
    return weight_bytes_cuda(shape->out.channels, depth_of(shape), shape->in[shape->kt - 1].dtype);
}

/* The channel moves from the slowest to the fastest place of k: w[n, tap, c] = source[n, c, tap]. */
__global__ void __launch_bounds__(256)
    prepare_conv_kernel(void *to, kn_dtype to_type, const void *from, kn_dtype from_type, int64_t rows, int channels,
                        int taps, int64_t padded)
{
    const int64_t index = flat_index(), row = index / padded, k = index % padded;
    if (row >= rows) return;
    const int64_t tap = k / channels, c = k % channels;
    float value = 0;
    if (tap < taps) value = load(from, from_type, (row * channels + c) * taps + tap);
    store(to, to_type, index, value);
}

kn_status conv_weight_prepare_cuda(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                                   const kn_conv_args *shape)
{
    const kn_dtype compute = shape->in[shape->kt - 1].dtype;
    const int64_t n = shape->out.channels, k = depth_of(shape), padded = padded_k(k);
    const int channels = shape->in[shape->kt - 1].channels;
    assert(source->layout == KN_WEIGHT_PLAIN && source->n == n && source->k == k);
    const size_t row_bytes = (size_t)k * kn_dtype_bytes(source->dtype);
    *out = kn_weight{destination, n, k, compute, KN_WEIGHT_PANEL, 1, (int32_t)padded, compute};
    void *scratch;
    kn_status st = stream_scratch(stream, &scratch);
    const int64_t at_once = (int64_t)(SCRATCH_BYTES / row_bytes);
    assert(at_once > 0);
    for (int64_t row = 0; row < n && st == KN_OK; row += at_once) {
        const int64_t rows = n - row < at_once ? n - row : at_once;
        st = kn_stream_upload(stream, scratch, (const char *)source->data + (size_t)row * row_bytes,
                              (size_t)rows * row_bytes);
        if (st != KN_OK) break;
        st = KN_LAUNCH(prepare_conv_kernel, (unsigned)divide_up(rows * padded, 256), 256, 0, stream_of(stream),
                       (char *)destination + (size_t)(row * padded) * kn_dtype_bytes(compute), compute, scratch,
                       source->dtype, rows, channels, (int)(k / channels), padded);
    }
    return st;
}

KN_CUDA_END
