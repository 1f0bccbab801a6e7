/* SPDX-License-Identifier: Apache-2.0
 *
 * Layer norm and RMS norm over rows. The row is read two or three times, but
 * from memory only once: it stays in the first level cache between the passes.
 * Layer norm takes the mean first and sums squares around it, because
 * E[x^2] - E[x]^2 loses every digit when the mean is large.
 *
 * Rotary embedding (Su et al. 2021, sec. 3.4.2): the row's angles are copied from
 * the three axis tables once and serve all heads; the rotation is applied to the
 * f32 value of the norm, before the only rounding.
 *
 * Tolerance: statistics are f32 sums of 64 partial sums; an output is within a
 * few units of f32's last place of the exact one, then rounded to its type. */
#include <math.h>

#include "kernels/cpu/rowwise.h"

enum { HEAD_DIM_MAX = 256 };

typedef struct layernorm_job {
    const kn_layernorm_args *args;
    int64_t block; /* rows of one tile */
} layernorm_job;

KN_INLINE vf normalise(vf x, vf mean, vf scale)
{
    return v_mul(v_sub(x, mean), scale);
}

/* out = n * gain + offset; `plus_one` adds 1 to gain. NULL gain is 1, NULL offset 0. */
KN_INLINE void layernorm_row(void *out, const void *x, int64_t cols, float eps, const float *gain, const float *offset,
                             bool plus_one, kn_dtype x_dtype, kn_dtype out_dtype)
{
    float mean = row_sum(x, cols, x_dtype) / (float)cols;
    float variance = row_square_sum(x, cols, mean, x_dtype) / (float)cols;
    vf centre = v_set1(mean), scale = v_set1(1.0f / sqrtf(variance + eps));
    vf one = v_set1(1.0f);
    int64_t i = 0;
    for (; i + VL <= cols; i += VL) {
        vf n = normalise(v_read(x, x_dtype, i), centre, scale);
        vf g = gain ? v_load(gain + i) : one;
        if (plus_one) g = v_add(one, g);
        v_write(out, out_dtype, i, v_fma(n, g, offset ? v_load(offset + i) : v_zero()));
    }
    if (i < cols) {
        int64_t rest = cols - i;
        vf n = normalise(v_read_n(x, x_dtype, i, rest), centre, scale);
        vf g = gain ? v_load_n(gain + i, rest) : one;
        if (plus_one) g = v_add(one, g);
        v_write_n(out, out_dtype, i, v_fma(n, g, offset ? v_load_n(offset + i, rest) : v_zero()), rest);
    }
}

KN_INLINE void layernorm_rows(const kn_layernorm_args *args, int64_t begin, int64_t end, kn_dtype x_dtype,
                              kn_dtype out_dtype)
{
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        const void *x = kn_row(&args->x, r);
        if (args->scale.data)
            layernorm_row(out, x, args->x.cols, args->eps, table_row(&args->scale, r), table_row(&args->shift, r), true,
                          x_dtype, out_dtype);
        else
            layernorm_row(out, x, args->x.cols, args->eps, args->weight, args->bias, false, x_dtype, out_dtype);
    }
}

static void layernorm_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const layernorm_job *job = context;
    const kn_layernorm_args *args = job->args;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, args->x.rows);
    KN_BY_DTYPES(args->x.dtype, args->out.dtype, layernorm_rows, args, begin, end);
}

kn_status KN_TIERED(kn_layernorm)(kn_stream *stream, const kn_layernorm_args *args)
{
    assert(args->out.rows == args->x.rows && args->out.cols == args->x.cols);
    assert(!args->scale.data == !args->shift.data);
    layernorm_job job = {.args = args, .block = rows_per_tile(args->x.cols)};
    kn_cpu_run(stream, kn_tiles(args->x.rows, job.block), layernorm_tile, &job);
    return KN_OK;
}

typedef struct rmsnorm_job {
    const kn_rmsnorm_args *args;
    int64_t block; /* rows of one tile */
} rmsnorm_job;

/* Cosine and sine of every pair of one head at `position`: turns[head_dim]. */
KN_INLINE void gather_turns(float *turns, const kn_rope *rope, const kn_position *position)
{
    for (int axis = 0; axis < 3; axis++) {
        int64_t count = 2 * (int64_t)rope->pairs[axis];
        if (count == 0) continue;
        memcpy(turns, rope->table[axis] + position->axis[axis] * count, (size_t)count * sizeof *turns);
        turns += count;
    }
}

KN_INLINE void scale_row(void *out, const void *x, int64_t cols, float inverse, const float *weight, kn_dtype x_dtype,
                         kn_dtype out_dtype)
{
    vf scale = v_set1(inverse);
    int64_t i = 0;
    for (; i + VL <= cols; i += VL)
        v_write(out, out_dtype, i, v_mul(v_mul(v_read(x, x_dtype, i), scale), v_load(weight + i)));
    if (i < cols) {
        int64_t rest = cols - i;
        vf n = v_mul(v_read_n(x, x_dtype, i, rest), scale);
        v_write_n(out, out_dtype, i, v_mul(n, v_load_n(weight + i, rest)), rest);
    }
}

/* scale_row, then the rotation, for one head after the other. */
KN_INLINE void scale_and_rotate_row(void *out, const void *x, int64_t cols, float inverse, const float *weight,
                                    const float *turns, int64_t head_dim, kn_dtype x_dtype, kn_dtype out_dtype)
{
    vf scale = v_set1(inverse);
    for (int64_t head = 0; head < cols; head += head_dim) {
        int64_t i = 0;
        for (; i + VL <= head_dim; i += VL) {
            vf n = v_mul(v_mul(v_read(x, x_dtype, head + i), scale), v_load(weight + head + i));
            v_write(out, out_dtype, head + i, v_rotate_pairs(n, v_load(turns + i)));
        }
        if (i < head_dim) {
            int64_t rest = head_dim - i;
            vf n = v_mul(v_mul(v_read_n(x, x_dtype, head + i, rest), scale), v_load_n(weight + head + i, rest));
            v_write_n(out, out_dtype, head + i, v_rotate_pairs(n, v_load_n(turns + i, rest)), rest);
        }
    }
}

KN_INLINE void rmsnorm_rows(const kn_rmsnorm_args *args, int64_t begin, int64_t end, kn_dtype x_dtype,
                            kn_dtype out_dtype)
{
    const kn_rope *rope = &args->rope;
    int64_t cols = args->x.cols;
    float turns[HEAD_DIM_MAX];
    for (int64_t r = begin; r < end; r++) {
        void *out = kn_row(&args->out, r);
        const void *x = kn_row(&args->x, r);
        float mean_square = row_square_sum(x, cols, 0.0f, x_dtype) / (float)cols;
        float inverse = 1.0f / sqrtf(mean_square + args->eps);
        if (rope->positions) {
            gather_turns(turns, rope, &rope->positions[r]);
            scale_and_rotate_row(out, x, cols, inverse, args->weight, turns, rope->head_dim, x_dtype, out_dtype);
        } else {
            scale_row(out, x, cols, inverse, args->weight, x_dtype, out_dtype);
        }
    }
}

static void rmsnorm_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const rmsnorm_job *job = context;
    const kn_rmsnorm_args *args = job->args;
    int64_t begin = tile * job->block;
    int64_t end = smaller(begin + job->block, args->x.rows);
    KN_BY_DTYPES(args->x.dtype, args->out.dtype, rmsnorm_rows, args, begin, end);
}

kn_status KN_TIERED(kn_rmsnorm)(kn_stream *stream, const kn_rmsnorm_args *args)
{
    const kn_rope *rope = &args->rope;
    assert(args->out.rows == args->x.rows && args->out.cols == args->x.cols);
    if (rope->positions) {
        assert(rope->head_dim > 0 && rope->head_dim <= HEAD_DIM_MAX && args->x.cols % rope->head_dim == 0);
        assert(2 * (rope->pairs[0] + rope->pairs[1] + rope->pairs[2]) == rope->head_dim);
    }
    rmsnorm_job job = {.args = args, .block = rows_per_tile(args->x.cols)};
    kn_cpu_run(stream, kn_tiles(args->x.rows, job.block), rmsnorm_tile, &job);
    return KN_OK;
}
