/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over ragged packs: a block has 64 queries of one sequence and one head and walks that sequence's keys from
 * the first one in blocks of 64 with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022), so a query's
 * sums have one order whatever shares the call. Keys beyond the sequence's end are zeros in shared memory and minus
 * infinity as logits; rows of other sequences are never read.
 *
 * attention.cuda.bf16.d64, .d128: products by mma.sync, probabilities rounded to bf16 before they meet v, exp2 by the
 * special function unit. attention.cuda.any: f32 multiply-adds on values of either type, any head size; a block has 128
 * columns of the output and computes the logits for itself.
 *
 * Tolerance: see tests/checkops/check_attention.c. */
#include <assert.h>

#include "kernels/cuda/numbers.cuh"

KN_CUDA_BEGIN

enum { SEQUENCES = 64, QUERIES = 64, KEYS = 64 };

/* Sequences of one launch; offsets travel as parameters, so a pack costs no copy. */
struct pack_view {
    int sequences;
    int first_tile[SEQUENCES + 1]; /* of queries */
    int q[SEQUENCES], q_end[SEQUENCES], k[SEQUENCES], k_end[SEQUENCES];
    float tail[SEQUENCES];
};

/* What a block works on. */
struct tile_view {
    int q_row, queries; /* first row of the tile, rows in it */
    int i;              /* its number in the sequence */
    int k_row, keys;
    float tail;
};

__device__ static inline tile_view find_tile(const pack_view &pack, int tile)
{
    int s = 0;
    while (s + 1 < pack.sequences && tile >= pack.first_tile[s + 1]) s++;
    tile_view t;
    t.i = (tile - pack.first_tile[s]) * QUERIES;
    t.q_row = pack.q[s] + t.i;
    t.queries = minimum(pack.q_end[s] - t.q_row, QUERIES);
    t.k_row = pack.k[s];
    t.keys = pack.k_end[s] - pack.k[s];
    t.tail = pack.tail[s];
    return t;
}

/* The bias row of query i: entry j is that of key j. */
__device__ static inline const float *bias_of(const kn_attention_args &args, int head, int i)
{
    return args.relative_bias + (int64_t)head * (2 * (int64_t)args.relative_span - 1) + args.relative_span - 1 - i;
}

/* ---- bf16 ---- */

enum { BF16_THREADS = 128 };

template <int D> struct bf16_shared {
    enum { ROW = D * 2, TILE = KEYS * ROW };
    char q[QUERIES * ROW], k[2][TILE], v[2][TILE];

    __device__ static int at(int r, int piece)
    {
        return r * ROW + ((piece ^ (r & 7)) << 4);
    }
};

/* 64 rows of one head, columns beyond head_dim and rows beyond `rows` zero. */
template <int D>
__device__ static inline void copy_rows(char *shared, const kn_matrix &m, int64_t row, int rows, int64_t column,
                                        int head_dim, bool vectors)
{
    enum { PIECES = D / 8 };
#pragma unroll 1
    for (int i = threadIdx.x; i < KEYS * PIECES; i += BF16_THREADS) {
        const int r = i / PIECES, c = i % PIECES;
        const int count = r < rows ? minimum(head_dim - c * 8, 8) : 0;
        const int64_t index = (row + r) * m.stride + column + c * 8;
        char *to = shared + bf16_shared<D>::at(r, c);
        if (vectors) {
            cp_async16(to, count > 0 ? (const uint16_t *)m.data + index : m.data, count > 0 ? count * 2 : 0);
        } else {
            float x[VECTOR] = {};
            if (count > 0) load8(m.data, KN_BF16, index, count, x);
            *(uint4 *)to =
                make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
        }
    }
}

/* The running softmax of the two rows that a thread has in a fragment of mma_bf16. */
struct softmax_rows {
    float largest[2], sum[2];
};

/* Logits, in base 2, of a warp's 16 queries against 64 keys become probabilities; returns by what older sums shrink. */
__device__ static inline void soften(softmax_rows &rows, float (&s)[KEYS / 8][4], float (&shrink)[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = rows.largest[half];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) largest = fmaxf(largest, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        const float base = largest == -INFINITY ? 0.0f : largest;
        shrink[half] = exp2_approx(rows.largest[half] - base);
        rows.largest[half] = largest;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
                s[j][e] = exp2_approx(s[j][e] - base);
                sum += s[j][e];
            }
        rows.sum[half] = rows.sum[half] * shrink[half] + sum;
    }
}

/* q k^T of a warp's rows. */
template <int D>
__device__ static inline void multiply_keys(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], const char *k)
{
    const int lane = threadIdx.x % LANES, r = lane % 8, part = lane / 8;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0;
#pragma unroll
    for (int step = 0; step < D / 16; step++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];
            ldmatrix_x4(b, k + bf16_shared<D>::at(j * 16 + part / 2 * 8 + r, step * 2 + part % 2));
            mma_bf16(s[2 * j], q[step], b[0], b[1]);
            mma_bf16(s[2 * j + 1], q[step], b[2], b[3]);
        }
}

/* out += p v, p rounded to bf16. */
template <int D>
__device__ static inline void multiply_values(float (&out)[D / 8][4], const float (&p)[KEYS / 8][4], const char *v)
{
    const int lane = threadIdx.x % LANES, r = lane % 8, part = lane / 8;
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        const uint32_t a[4] = {pack_bf16(p[2 * step][0], p[2 * step][1]), pack_bf16(p[2 * step][2], p[2 * step][3]),
                               pack_bf16(p[2 * step + 1][0], p[2 * step + 1][1]),
                               pack_bf16(p[2 * step + 1][2], p[2 * step + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, v + bf16_shared<D>::at(step * 16 + part % 2 * 8 + r, j * 2 + part / 2));
            mma_bf16(out[2 * j], a, b[0], b[1]);
            mma_bf16(out[2 * j + 1], a, b[2], b[3]);
        }
    }
}

/* Scale, bias and the last key's weight, in base 2; keys beyond the end do not count. `first` is the number of the
 * tile's first key. */
__device__ static inline void finish_logits(float (&s)[KEYS / 8][4], const kn_attention_args &args,
                                            const tile_view &tile, int head, int first)
{
    const float log2_e = 1.44269504088896341f, factor = args.scale * log2_e;
    const int lane = threadIdx.x % LANES, row = threadIdx.x / LANES * 16 + lane / 4;
    const bool whole = first + KEYS < tile.keys; /* nor the last key in it */
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[j][e] *= factor;
            if (whole && !args.relative_bias) continue;
            const int key = first + j * 8 + lane % 4 * 2 + e % 2;
            if (key >= tile.keys) {
                s[j][e] = -INFINITY;
                continue;
            }
            if (args.relative_bias && row + e / 2 * 8 < tile.queries)
                s[j][e] += bias_of(args, head, tile.i + row + e / 2 * 8)[key] * log2_e;
            if (key == tile.keys - 1) s[j][e] += tile.tail * log2_e;
        }
}

template <int D>
__global__ void __launch_bounds__(BF16_THREADS, 2)
    attention_bf16_kernel(kn_attention_args args, pack_view pack, bool vectors)
{
    KN_DYNAMIC_SHARED(bf16_shared<D>, shared);
    const tile_view tile = find_tile(pack, blockIdx.x);
    const int head = blockIdx.y, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int64_t column = (int64_t)head * args.head_dim;
    const int blocks = (tile.keys + KEYS - 1) / KEYS;

    auto fetch = [&](int block) {
        if (block < blocks) {
            const int64_t row = tile.k_row + (int64_t)block * KEYS;
            const int rows = minimum(tile.keys - block * KEYS, KEYS);
            copy_rows<D>(shared->k[block % 2], args.k, row, rows, column, args.head_dim, vectors);
            copy_rows<D>(shared->v[block % 2], args.v, row, rows, column, args.head_dim, vectors);
        }
        cp_async_commit();
    };
    copy_rows<D>(shared->q, args.q, tile.q_row, tile.queries, column, args.head_dim, vectors);
    fetch(0);
    cp_async_wait<0>();
    __syncthreads();

    uint32_t q[D / 16][4];
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        ldmatrix_x4(q[step],
                    shared->q + bf16_shared<D>::at(warp * 16 + lane / 8 % 2 * 8 + lane % 8, step * 2 + lane / 16));
    float out[D / 8][4], s[KEYS / 8][4], shrink[2];
    softmax_rows rows;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[j][e] = 0;
    rows.largest[0] = rows.largest[1] = -INFINITY;
    rows.sum[0] = rows.sum[1] = 0;

#pragma unroll 1
    for (int block = 0; block < blocks; block++) {
        fetch(block + 1);
        cp_async_wait<1>();
        __syncthreads();
        multiply_keys<D>(s, q, shared->k[block % 2]);
        finish_logits(s, args, tile, head, block * KEYS);
        soften(rows, s, shrink);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[j][e] *= shrink[e / 2];
        multiply_values<D>(out, s, shared->v[block % 2]);
        __syncthreads(); /* everybody is done with what is fetched over next */
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = rows.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int row = warp * 16 + half * 8 + lane / 4;
        if (row >= tile.queries) continue;
        const int64_t at = (tile.q_row + row) * args.out.stride + column;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int c = j * 8 + lane % 4 * 2 + e;
                if (c < args.head_dim) store(args.out.data, args.out.dtype, at + c, out[j][half * 2 + e] / sum);
            }
    }
}

/* ---- any type, any head size ---- */

enum { ANY_THREADS = 256, DEPTH = 32, COLUMNS = 128, DEPTH_STRIDE = DEPTH + 4, P_STRIDE = KEYS + 4 };

struct any_shared {
    float q[QUERIES][DEPTH_STRIDE], k[KEYS][DEPTH_STRIDE]; /* a slice of the head */
    float p[QUERIES][P_STRIDE];
    float v[KEYS][COLUMNS];
};

/* A [64, WIDTH] piece of a head as floats; zeros where there is nothing. */
template <int WIDTH, int STRIDE>
__device__ static inline void widen_rows(float (*shared)[STRIDE], const kn_matrix &m, int64_t row, int rows,
                                         int64_t column, int columns)
{
    for (int i = threadIdx.x; i < KEYS * (WIDTH / VECTOR); i += ANY_THREADS) {
        const int r = i / (WIDTH / VECTOR), c = i % (WIDTH / VECTOR) * VECTOR;
        const int count = r < rows ? minimum(columns - c, VECTOR) : 0;
        float x[VECTOR] = {};
        if (count > 0) load8(m.data, m.dtype, (row + r) * m.stride + column + c, count, x);
        *(float4 *)&shared[r][c] = make_float4(x[0], x[1], x[2], x[3]);
        *(float4 *)&shared[r][c + 4] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

__device__ static inline void widen_slice(float (*to)[DEPTH_STRIDE], const kn_matrix &m, int64_t row, int rows,
                                          int64_t column, int columns)
{
    widen_rows<DEPTH, DEPTH_STRIDE>(to, m, row, rows, column, columns);
}

/* s[i][j] of query ty + 16 i and key tx + 16 j: one slice of the head. */
__device__ static inline void multiply_slice(float (&s)[4][4], const any_shared *shared, int tx, int ty)
{
#pragma unroll
    for (int d = 0; d < DEPTH; d += 4) {
        float4 q[4];
#pragma unroll
        for (int i = 0; i < 4; i++) q[i] = *(const float4 *)&shared->q[ty + i * 16][d];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 k = *(const float4 *)&shared->k[tx + j * 16][d];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[i][j] = fmaf(q[i].x, k.x, s[i][j]);
                s[i][j] = fmaf(q[i].y, k.y, s[i][j]);
                s[i][j] = fmaf(q[i].z, k.z, s[i][j]);
                s[i][j] = fmaf(q[i].w, k.w, s[i][j]);
            }
        }
    }
}

__global__ void __launch_bounds__(ANY_THREADS, 2) attention_any_kernel(kn_attention_args args, pack_view pack)
{
    KN_DYNAMIC_SHARED(any_shared, shared);
    const tile_view tile = find_tile(pack, blockIdx.x);
    const int head = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const int64_t column = (int64_t)head * args.head_dim;
    const int c0 = blockIdx.z * COLUMNS, columns = minimum(args.head_dim - c0, COLUMNS);

    float out[4][COLUMNS / 16], largest[4], sum[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        largest[i] = -INFINITY;
        sum[i] = 0;
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++) out[i][j] = 0;
    }
#pragma unroll 1
    for (int first = 0; first < tile.keys; first += KEYS) {
        const int rows = minimum(tile.keys - first, KEYS);
        float s[4][4] = {};
#pragma unroll 1
        for (int d = 0; d < args.head_dim; d += DEPTH) {
            const int depth = minimum(args.head_dim - d, DEPTH);
            __syncthreads();
            widen_slice(shared->q, args.q, tile.q_row, tile.queries, column + d, depth);
            widen_slice(shared->k, args.k, tile.k_row + first, rows, column + d, depth);
            if (d == 0) widen_rows<COLUMNS, COLUMNS>(shared->v, args.v, tile.k_row + first, rows, column + c0, columns);
            __syncthreads();
            multiply_slice(s, shared, tx, ty);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = ty + i * 16;
            float highest = largest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int key = first + tx + j * 16;
                s[i][j] *= args.scale;
                if (key < tile.keys && args.relative_bias && row < tile.queries)
                    s[i][j] += bias_of(args, head, tile.i + row)[key];
                if (key == tile.keys - 1) s[i][j] += tile.tail;
                if (key >= tile.keys) s[i][j] = -INFINITY;
                highest = fmaxf(highest, s[i][j]);
            }
#pragma unroll
            for (int offset = 8; offset > 0; offset /= 2)
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, offset));
            const float base = highest == -INFINITY ? 0.0f : highest, shrink = expf(largest[i] - base);
            largest[i] = highest;
            float part = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float p = expf(s[i][j] - base);
                shared->p[row][tx + j * 16] = p;
                part += p;
            }
            sum[i] = sum[i] * shrink + part;
#pragma unroll
            for (int j = 0; j < COLUMNS / 16; j++) out[i][j] *= shrink;
        }
        __syncthreads();
#pragma unroll 2
        for (int key = 0; key < KEYS; key += 4) {
            float4 p[4];
#pragma unroll
            for (int i = 0; i < 4; i++) p[i] = *(const float4 *)&shared->p[ty + i * 16][key];
#pragma unroll
            for (int j = 0; j < COLUMNS / 16; j++) {
                const float *v = &shared->v[key][tx + j * 16];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    out[i][j] = fmaf(p[i].x, v[0], out[i][j]);
                    out[i][j] = fmaf(p[i].y, v[COLUMNS], out[i][j]);
                    out[i][j] = fmaf(p[i].z, v[2 * COLUMNS], out[i][j]);
                    out[i][j] = fmaf(p[i].w, v[3 * COLUMNS], out[i][j]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int offset = 8; offset > 0; offset /= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], offset);
        const int row = ty + i * 16;
        if (row >= tile.queries) continue;
        const int64_t at = (tile.q_row + row) * args.out.stride + column + c0;
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++)
            if (tx + j * 16 < columns) store(args.out.data, args.out.dtype, at + tx + j * 16, out[i][j] / sum[i]);
    }
}

/* ---- choice ---- */

static bool whole_pieces(const kn_matrix *m)
{
    return (uintptr_t)m->data % 16 == 0 && m->stride % 8 == 0;
}

/* Sequences [first, first + count) of the call. */
static pack_view view_of(const kn_attention_args *args, int first, int count)
{
    pack_view pack = {};
    pack.sequences = count;
    for (int s = 0; s < count; s++) {
        pack.q[s] = args->q_offsets[first + s];
        pack.q_end[s] = args->q_offsets[first + s + 1];
        pack.k[s] = args->k_offsets[first + s];
        pack.k_end[s] = args->k_offsets[first + s + 1];
        pack.tail[s] = args->tail_log_weight ? args->tail_log_weight[first + s] : 0.0f;
        pack.first_tile[s + 1] = pack.first_tile[s] + (int)divide_up(pack.q_end[s] - pack.q[s], QUERIES);
    }
    return pack;
}

template <int D> static kn_status run_bf16(kn_stream *stream, const kn_attention_args *args)
{
    const bool vectors =
        args->head_dim % 8 == 0 && whole_pieces(&args->q) && whole_pieces(&args->k) && whole_pieces(&args->v);
    for (int first = 0; first < args->sequences; first += SEQUENCES) {
        const pack_view pack = view_of(args, first, minimum(args->sequences - first, SEQUENCES));
        const dim3 grid((unsigned)pack.first_tile[pack.sequences], (unsigned)args->heads);
        kn_status st = KN_LAUNCH(attention_bf16_kernel<D>, grid, BF16_THREADS, sizeof(bf16_shared<D>),
                                 stream_of(stream), *args, pack, vectors);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

static kn_status run_any(kn_stream *stream, const kn_attention_args *args)
{
    for (int first = 0; first < args->sequences; first += SEQUENCES) {
        const pack_view pack = view_of(args, first, minimum(args->sequences - first, SEQUENCES));
        const dim3 grid((unsigned)pack.first_tile[pack.sequences], (unsigned)args->heads,
                        (unsigned)divide_up(args->head_dim, COLUMNS));
        kn_status st =
            KN_LAUNCH(attention_any_kernel, grid, ANY_THREADS, sizeof(any_shared), stream_of(stream), *args, pack);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

static bool takes_d64(const device_cuda *, const kn_attention_args *args)
{
    return args->q.dtype == KN_BF16 && args->head_dim <= 64;
}

static bool takes_d128(const device_cuda *, const kn_attention_args *args)
{
    return args->q.dtype == KN_BF16 && args->head_dim <= 128;
}

static bool takes_any(const device_cuda *, const kn_attention_args *)
{
    return true;
}

static const variant<kn_attention_args> table[] = {
    {"attention.cuda.bf16.d64", TIER_CUDA, takes_d64, run_bf16<64>, nullptr},
    {"attention.cuda.bf16.d128", TIER_CUDA, takes_d128, run_bf16<128>, nullptr},
    {"attention.cuda.any", TIER_CUDA, takes_any, run_any, nullptr},
    {},
};

kn_status attention_cuda(kn_stream *stream, const kn_attention_args *args)
{
    const device_cuda *device = device_of(stream);
    const variant<kn_attention_args> *v = choose(attention_sm90, device, args);
    if (!v) v = choose(table, device, args);
    assert(args->q.dtype == args->k.dtype && args->q.dtype == args->v.dtype);
    return v->run(stream, args);
}

/* The largest that any variant may want: data pointers, and so the choice, are not known yet. */
size_t attention_workspace_cuda(const kn_attention_args *args)
{
    size_t bytes = 0;
    for (const variant<kn_attention_args> *v = attention_sm90; v->name; v++)
        if (v->workspace && v->workspace(args) > bytes) bytes = v->workspace(args);
    return bytes;
}

KN_CUDA_END
