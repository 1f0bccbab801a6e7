/* SPDX-License-Identifier: Apache-2.0
 *
 * Operators in which an element depends on the elements at its own place only:
 * activations, table rows, steps of a sampler, and the sinusoids of timesteps.
 * They are bound by memory; tiles are a few rows, or 32 Ki elements of a vector.
 *
 * Tolerance: exponentials are within two units of f32's last place (vec.h), the
 * quotients of silu and gelu within about four, then rounded to the output type.
 * A sampler's step is exact: each product and each sum is rounded by itself. */
#include <math.h>

#include "kernels/cpu/rowwise.h"

enum { VECTOR_BLOCK = 32 * 1024 };

typedef struct silu_job {
    const kn_silu_args *args;
    int64_t block; /* rows of one tile */
} silu_job;

KN_INLINE void silu_rows(const kn_silu_args *args, int64_t begin, int64_t end, kn_dtype x_dtype, kn_dtype out_dtype)
{
    int64_t cols = args->x.cols;
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        const void *x = kn_row(&args->x, r);
        int64_t i = 0;
        for (; i + VL <= cols; i += VL) v_write(out, out_dtype, i, v_silu(v_read(x, x_dtype, i)));
        if (i < cols) v_write_n(out, out_dtype, i, v_silu(v_read_n(x, x_dtype, i, cols - i)), cols - i);
    }
}

static void silu_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const silu_job *job = context;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, job->args->x.rows);
    KN_BY_DTYPES(job->args->x.dtype, job->args->out.dtype, silu_rows, job->args, begin, end);
}

kn_status KN_TIERED(kn_silu)(kn_stream *stream, const kn_silu_args *args)
{
    assert(args->out.rows == args->x.rows && args->out.cols == args->x.cols);
    silu_job job = {.args = args, .block = rows_per_tile(args->x.cols)};
    kn_cpu_run(stream, kn_tiles(args->x.rows, job.block), silu_tile, &job);
    return KN_OK;
}

typedef struct gated_gelu_job {
    const kn_gated_gelu_args *args;
    int64_t block; /* rows of one tile */
} gated_gelu_job;

KN_INLINE void gated_gelu_rows(const kn_gated_gelu_args *args, int64_t begin, int64_t end, kn_dtype x_dtype,
                               kn_dtype out_dtype)
{
    int64_t cols = args->a.cols;
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        const void *a = kn_row(&args->a, r);
        const void *b = kn_row(&args->b, r);
        int64_t i = 0;
        for (; i + VL <= cols; i += VL)
            v_write(out, out_dtype, i, v_mul(v_gelu_tanh(v_read(a, x_dtype, i)), v_read(b, x_dtype, i)));
        if (i < cols) {
            int64_t rest = cols - i;
            vf product = v_mul(v_gelu_tanh(v_read_n(a, x_dtype, i, rest)), v_read_n(b, x_dtype, i, rest));
            v_write_n(out, out_dtype, i, product, rest);
        }
    }
}

static void gated_gelu_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const gated_gelu_job *job = context;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, job->args->a.rows);
    KN_BY_DTYPES(job->args->a.dtype, job->args->out.dtype, gated_gelu_rows, job->args, begin, end);
}

kn_status KN_TIERED(kn_gated_gelu)(kn_stream *stream, const kn_gated_gelu_args *args)
{
    assert(args->out.rows == args->a.rows && args->out.cols == args->a.cols);
    assert(args->b.rows == args->a.rows && args->b.cols == args->a.cols && args->b.dtype == args->a.dtype);
    gated_gelu_job job = {.args = args, .block = rows_per_tile(args->a.cols)};
    kn_cpu_run(stream, kn_tiles(args->a.rows, job.block), gated_gelu_tile, &job);
    return KN_OK;
}

typedef struct embed_job {
    const kn_embed_args *args;
    int64_t block; /* rows of one tile */
} embed_job;

/* A conversion, or the bits themselves when the types are equal. */
KN_INLINE void copy_row(void *out, const void *x, int64_t cols, kn_dtype x_dtype, kn_dtype out_dtype)
{
    if (x_dtype == out_dtype) {
        memcpy(out, x, (size_t)cols * kn_dtype_bytes(out_dtype));
        return;
    }
    int64_t i = 0;
    for (; i + VL <= cols; i += VL) v_write(out, out_dtype, i, v_read(x, x_dtype, i));
    if (i < cols) v_write_n(out, out_dtype, i, v_read_n(x, x_dtype, i, cols - i), cols - i);
}

KN_INLINE void copy_f16_row(void *out, const uint16_t *x, int64_t cols, kn_dtype out_dtype)
{
    int64_t i = 0;
    for (; i + VL <= cols; i += VL) v_write(out, out_dtype, i, v_load_f16(x + i));
    if (i < cols) {
        uint16_t lanes[VL] = {0};
        memcpy(lanes, x + i, (size_t)(cols - i) * sizeof *x);
        v_write_n(out, out_dtype, i, v_load_f16(lanes), cols - i);
    }
}

static void embed_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const embed_job *job = context;
    const kn_embed_args *args = job->args;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, args->out.rows);
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        assert(args->ids[r] >= 0 && args->ids[r] < args->table.rows);
        const void *x = kn_row(&args->table, args->ids[r]);
        if (args->table.dtype == KN_F16)
            copy_f16_row(out, x, args->out.cols, args->out.dtype);
        else
            KN_BY_DTYPES(args->table.dtype, args->out.dtype, copy_row, out, x, args->out.cols);
    }
}

kn_status KN_TIERED(kn_embed)(kn_stream *stream, const kn_embed_args *args)
{
    assert(args->out.cols == args->table.cols);
    embed_job job = {.args = args, .block = rows_per_tile(args->out.cols)};
    kn_cpu_run(stream, kn_tiles(args->out.rows, job.block), embed_tile, &job);
    return KN_OK;
}

typedef struct add_table_job {
    const kn_add_table_args *args;
    int64_t block; /* rows of one tile */
} add_table_job;

KN_INLINE void add_table_rows(const kn_add_table_args *args, int64_t begin, int64_t end, kn_dtype x_dtype,
                              kn_dtype out_dtype)
{
    int64_t cols = args->x.cols;
    const float *table = args->table;
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        const void *x = kn_row(&args->x, r);
        int64_t i = 0;
        for (; i + VL <= cols; i += VL) v_write(out, out_dtype, i, v_add(v_read(x, x_dtype, i), v_load(table + i)));
        if (i < cols) {
            int64_t rest = cols - i;
            v_write_n(out, out_dtype, i, v_add(v_read_n(x, x_dtype, i, rest), v_load_n(table + i, rest)), rest);
        }
    }
}

static void add_table_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const add_table_job *job = context;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, job->args->x.rows);
    KN_BY_DTYPES(job->args->x.dtype, job->args->out.dtype, add_table_rows, job->args, begin, end);
}

kn_status KN_TIERED(kn_add_table)(kn_stream *stream, const kn_add_table_args *args)
{
    assert(args->out.rows == args->x.rows && args->out.cols == args->x.cols);
    add_table_job job = {.args = args, .block = rows_per_tile(args->x.cols)};
    kn_cpu_run(stream, kn_tiles(args->x.rows, job.block), add_table_tile, &job);
    return KN_OK;
}

/* A handful of rows a step. Frequency and angle are rounded to f32 where the
 * model's own code rounds them, so the angle differs from the exact one: by up to
 * t f |ln f| 2^-23 + t f 2^-24, which is below 1e-4 at t = 1000. */
kn_status KN_TIERED(kn_timestep_embed)(kn_stream *stream, const kn_timestep_embed_args *args)
{
    (void)stream;
    assert(args->out.dtype == KN_F32 && args->out.cols % 2 == 0);
    int64_t half = args->out.cols / 2;
    for (int64_t i = 0; i < half; i++) {
        float frequency = expf(-9.210340371976184f * (float)i / (float)half); /* -ln 10000 */
        for (int64_t r = 0; r < args->out.rows; r++) {
            float *out = kn_row(&args->out, r);
            float angle = args->timesteps[r] * frequency;
            out[i] = cosf(angle);
            out[half + i] = sinf(angle);
        }
    }
    return KN_OK;
}

/* Lanes past `n` read as zero. */
KN_INLINE vf read_lanes(const float *x, int64_t i, int64_t n)
{
    return n == VL ? v_load(x + i) : v_load_n(x + i, n);
}

KN_INLINE void write_lanes(float *x, int64_t i, int64_t n, vf value)
{
    if (n == VL)
        v_store(x + i, value);
    else
        v_store_n(x + i, value, n);
}

/* sum + weight * x, rounded twice. */
KN_INLINE vf add_product(vf sum, float weight, vf x)
{
    return v_add(sum, v_mul(v_set1(weight), x));
}

KN_INLINE void sampler_lanes(const kn_sampler_step_args *args, int64_t i, int64_t n)
{
    const float *c = args->corrector, *b = args->predictor;
    const vf x = read_lanes(args->x, i, n);
    vf m = x;
    for (int32_t v = 0; v < args->velocities; v++)
        m = add_product(m, args->velocity_weight[v], read_lanes(args->velocity[v], i, n));
    if (!args->m) {
        write_lanes(args->x, i, n, m);
        return;
    }
    const vf m_prev = read_lanes(args->m_prev, i, n);
    vf corrected = x;
    if (args->corrected) {
        corrected = v_mul(v_set1(c[0]), read_lanes(args->x_prev, i, n));
        corrected = add_product(corrected, c[1], read_lanes(args->m_prev2, i, n));
        corrected = add_product(corrected, c[2], m_prev);
        corrected = add_product(corrected, c[3], m);
    }
    const vf predicted = add_product(add_product(v_mul(v_set1(b[0]), corrected), b[1], m_prev), b[2], m);
    write_lanes(args->m, i, n, m);
    write_lanes(args->x_prev, i, n, corrected);
    write_lanes(args->x, i, n, predicted);
}

static void sampler_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const kn_sampler_step_args *args = context;
    int64_t i = tile * VECTOR_BLOCK;
    const int64_t end = smaller(i + VECTOR_BLOCK, args->count);
    for (; i + VL <= end; i += VL) sampler_lanes(args, i, VL);
    if (i < end) sampler_lanes(args, i, end - i);
}

kn_status KN_TIERED(kn_sampler_step)(kn_stream *stream, const kn_sampler_step_args *args)
{
    assert(args->velocities == 1 || args->velocities == 2);
    kn_sampler_step_args job = *args;
    kn_cpu_run(stream, kn_tiles(args->count, VECTOR_BLOCK), sampler_tile, &job);
    return KN_OK;
}
