/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear layers, and weights for them. A prepared weight is the checkpoint's rows in the compute type, each padded with
 * zeros to whole pieces of 16 bytes; a PLAIN one of any type, in device memory, works too, at the speed of ordinary
 * loads.
 *
 * Tolerance: f32 sums in ascending k, one chain per element. */
#include <assert.h>

#include "kernels/cuda/tile.cuh"

KN_CUDA_BEGIN

struct gemm_epilogue {
    int64_t rows;
    int columns;
    kn_matrix out, residual;
    const float *bias;
    kn_row_table gate;
    kn_activation activation;

    struct row_state {
        int64_t out, residual;
        const float *gate;
    };

    __device__ row_state row(int64_t m) const
    {
        row_state r;
        r.out = m * out.stride;
        r.residual = m * residual.stride;
        r.gate = gate.data ? row_vector(gate, m) : nullptr;
        return r;
    }

    __device__ void put(const row_state &r, int n, float y) const
    {
        if (bias) y += bias[n];
        if (activation == KN_ACT_GELU_TANH)
            y = gelu_tanh(y);
        else if (activation == KN_ACT_SILU)
            y = silu(y);
        if (r.gate) y *= r.gate[n];
        if (residual.data) y += load(residual.data, residual.dtype, r.residual + n);
        store(out.data, out.dtype, r.out + n, y);
    }
};

static bool any_gemm(const device_cuda *, const kn_gemm_args *)
{
    return true;
}

static kn_status run_plain(kn_stream *stream, const kn_gemm_args *args)
{
    const kn_weight *w = args->w;
    assert(args->a.cols == w->k && args->out.cols == w->n);
    gemm_epilogue epilogue;
    epilogue.rows = args->out.rows;
    epilogue.columns = (int)w->n;
    epilogue.out = args->out;
    epilogue.residual = args->residual;
    epilogue.bias = args->bias;
    epilogue.gate = args->gate;
    epilogue.activation = args->activation;
    const matrix_source a =
        source_of(args->a.data, args->a.rows, args->a.stride, args->a.cols, args->a.dtype, w->compute);
    return run_product("gemm", stream, a, w, epilogue);
}

static const variant<kn_gemm_args> table[] = {
    {"gemm.cuda.any", TIER_CUDA, any_gemm, run_plain, nullptr},
    {},
};

kn_status gemm_cuda(kn_stream *stream, const kn_gemm_args *args)
{
    const device_cuda *device = device_of(stream);
    const variant<kn_gemm_args> *v = choose(gemm_sm90, device, args);
    if (!v) v = choose(table, device, args);
    return v->run(stream, args);
}

/* ---- weights ---- */

size_t weight_bytes_cuda(int64_t n, int64_t k, kn_dtype compute)
{
    return (size_t)(n * padded_k(k)) * kn_dtype_bytes(compute);
}

/* Rows of the checkpoint to rows of the device: widened or rounded, zeros at the end. A thread has eight columns. */
__global__ void __launch_bounds__(256) prepare_kernel(void *to, kn_dtype to_type, const void *from, kn_dtype from_type,
                                                      int64_t rows, int64_t k, int64_t padded)
{
    const int64_t groups = padded / VECTOR, index = flat_index(), row = index / groups, c = index % groups * VECTOR;
    if (row >= rows) return;
    float values[VECTOR];
    load8(from, from_type, row * k + c, minimum(k - c, VECTOR), values);
    store8(to, to_type, row * padded + c, VECTOR, values);
}

/* As many rows at a time as the stream's scratch memory holds. */
kn_status weight_prepare_cuda(kn_stream *stream, kn_weight *out, void *destination, const kn_weight *source,
                              kn_dtype compute)
{
    assert(source->layout == KN_WEIGHT_PLAIN);
    kn_status st = KN_OK;
    const int64_t n = source->n, k = source->k, padded = padded_k(k);
    const size_t row_bytes = (size_t)k * kn_dtype_bytes(source->dtype);
    *out = kn_weight{destination, n, k, compute, KN_WEIGHT_PANEL, 1, (int32_t)padded, compute};
    if (source->dtype == compute && padded == k)
        return kn_stream_upload(stream, destination, source->data, (size_t)n * row_bytes);
    void *scratch;
    st = stream_scratch(stream, &scratch);
    const int64_t at_once = (int64_t)(SCRATCH_BYTES / row_bytes);
    assert(at_once > 0);
    for (int64_t row = 0; row < n && st == KN_OK; row += at_once) {
        const int64_t rows = n - row < at_once ? n - row : at_once;
        st = kn_stream_upload(stream, scratch, (const char *)source->data + (size_t)row * row_bytes,
                              (size_t)rows * row_bytes);
        if (st != KN_OK) break;
        st = KN_LAUNCH(prepare_kernel, (unsigned)divide_up(rows * padded / VECTOR, 256), 256, 0, stream_of(stream),
                       (char *)destination + (size_t)(row * padded) * kn_dtype_bytes(compute), compute, scratch,
                       source->dtype, rows, k, padded);
    }
    return st;
}

KN_CUDA_END
