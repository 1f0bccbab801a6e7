/* SPDX-License-Identifier: Apache-2.0
 *
 * The product that linear layers and convolutions share: a block computes BM x BN sums over k of a[m, k] * b[n, k].
 *
 *   source    gives both operands, row by row along k: a matrix, or the pixels under a convolution's kernel
 *   shared    STAGES slices of BK along k in flight, 16 bytes at a time by cp.async; what cannot be copied like that
 *             (unaligned views, other types) is gathered by ordinary loads on the way
 *   product   bf16: mma.sync m16n8k16, f32 sums; f32: fused multiply-adds
 *   epilogue  bias, activation, gate, residual on the sums while they are in registers
 *
 * One element is one chain of sums in ascending k, whatever the tile's size, so tiles are chosen by shape freely. */
#ifndef KN_KERNELS_CUDA_TILE_CUH
#define KN_KERNELS_CUDA_TILE_CUH

#include "kernels/cuda/numbers.cuh"

KN_CUDA_BEGIN

/* ---- sources ---- */

/* A source has, besides `vectors` (every piece of 16 bytes is aligned, of the compute type and inside one tap):
 *   row_state row(int64_t m)              what is known of a row; rows outside give zeros
 *   column_state column(int k)            what is known of a place along k
 *   const void *piece(row, column, &n)    16 bytes, of which n elements exist (0: none)
 *   float value(row, k)                   one element, widened */
struct matrix_source {
    const void *data;
    int64_t rows, stride;
    int k;
    kn_dtype dtype;
    bool vectors;

    struct row_state {
        const char *at; /* NULL: outside */
    };
    struct column_state {
        int k;
    };

    __device__ row_state row(int64_t m) const
    {
        row_state r;
        r.at = m < rows ? (const char *)data + m * stride * (dtype == KN_F32 ? 4 : 2) : nullptr;
        return r;
    }
    __device__ column_state column(int at) const
    {
        column_state c;
        c.k = at;
        return c;
    }
    __device__ const void *piece(const row_state &r, const column_state &c, int *count) const
    {
        *count = r.at ? k - c.k : 0;
        return r.at + (int64_t)c.k * (dtype == KN_F32 ? 4 : 2);
    }
    __device__ float value(const row_state &r, int at) const
    {
        return r.at && at < k ? load(r.at, dtype, at) : 0.0f;
    }
};

static inline matrix_source source_of(const void *data, int64_t rows, int64_t stride, int64_t k, kn_dtype dtype,
                                      kn_dtype compute)
{
    matrix_source s;
    s.data = data;
    s.rows = rows;
    s.stride = stride;
    s.k = (int)k;
    s.dtype = dtype;
    s.vectors = dtype == compute && (uintptr_t)data % 16 == 0 && (size_t)stride * kn_dtype_bytes(dtype) % 16 == 0;
    return s;
}

/* Elements of a row of a prepared weight: whole pieces of 16 bytes in both types. */
static inline int64_t padded_k(int64_t k)
{
    return divide_up(k, 8) * 8;
}

/* A weight's rows: prepared ones have panel = 1 and pair = their padded length. */
static inline matrix_source source_of(const kn_weight *w)
{
    return source_of(w->data, w->n, w->layout == KN_WEIGHT_PANEL ? w->pair : w->k, w->k, w->dtype, w->compute);
}

/* ---- shapes ---- */

/* ROWS x COLUMNS warps, each with MT x NT tiles of m16n8. */
template <int ROWS, int COLUMNS, int MT, int NT> struct bf16_tile {
    enum { BM = ROWS * MT * 16, BN = COLUMNS * NT * 8, BK = 64, THREADS = ROWS * COLUMNS * LANES };
    enum { STAGES = 3, PIECES = BK / 8, ROW_BYTES = BK * 2, BLOCKS = 256 / THREADS + 1 };
    enum { WARP_COLUMNS = COLUMNS, MTILES = MT, NTILES = NT };
    static const kn_dtype type = KN_BF16;

    /* Piece c of row r; the swizzle lets ldmatrix read eight rows from eight banks of 16 bytes. */
    __device__ static int piece_at(int r, int c)
    {
        return r * ROW_BYTES + ((c ^ (r & 7)) << 4);
    }
};

/* 16 x 16 threads, each with TM x TN elements, 16 rows and columns apart. */
template <int TM, int TN> struct f32_tile {
    enum { BM = 16 * TM, BN = 16 * TN, BK = 16, THREADS = 256 };
    enum { STAGES = 3, PIECES = BK / 4, ROW_BYTES = BK * 4 + 16, BLOCKS = TM * TN > 32 ? 1 : 2 };
    static const kn_dtype type = KN_F32;

    /* Rows are 20 words apart: eight of them have no bank in common. */
    __device__ static int piece_at(int r, int c)
    {
        return r * ROW_BYTES + (c << 4);
    }
};

template <typename Tile> constexpr int stage_bytes()
{
    return (Tile::BM + Tile::BN) * Tile::ROW_BYTES;
}

template <typename Tile> constexpr size_t shared_bytes()
{
    return (size_t)Tile::STAGES * stage_bytes<Tile>();
}

/* ---- filling shared memory ---- */

/* The rows of one operand that a thread copies, always at the same piece of k. */
template <typename Tile, typename Source, int ROWS> struct filler {
    enum { COUNT = ROWS * Tile::PIECES / Tile::THREADS, APART = Tile::THREADS / Tile::PIECES };
    static_assert(COUNT * Tile::THREADS == ROWS * Tile::PIECES, "every thread copies as many pieces");
    typename Source::row_state rows[COUNT];

    __device__ void start(const Source &source, int64_t first)
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) rows[i] = source.row(first + threadIdx.x / Tile::PIECES + i * APART);
    }

    __device__ void fill(const Source &source, char *shared, int k0) const
    {
        const int c = threadIdx.x % Tile::PIECES, elements = Tile::type == KN_F32 ? 4 : 8;
        const int element = Tile::type == KN_F32 ? 4 : 2, k = k0 + c * elements;
        const typename Source::column_state column = source.column(k);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            char *to = shared + Tile::piece_at(threadIdx.x / Tile::PIECES + i * APART, c);
            if (source.vectors) {
                int count;
                const void *from = source.piece(rows[i], column, &count);
                count = count < 0 ? 0 : count > elements ? elements : count;
                cp_async16(to, count ? from : source.data, count * element); /* an address is needed even for nothing */
            } else if (Tile::type == KN_F32) {
                float4 v = make_float4(source.value(rows[i], k), source.value(rows[i], k + 1),
                                       source.value(rows[i], k + 2), source.value(rows[i], k + 3));
                *(float4 *)to = v;
            } else {
                uint32_t words[4];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    words[j] = pack_bf16(source.value(rows[i], k + 2 * j), source.value(rows[i], k + 2 * j + 1));
                *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
};

/* ---- products ---- */

template <typename Tile> struct sums;

template <int ROWS, int COLUMNS, int MT, int NT> struct sums<bf16_tile<ROWS, COLUMNS, MT, NT>> {
    typedef bf16_tile<ROWS, COLUMNS, MT, NT> Tile;
    float d[MT][NT][4];

    __device__ void clear()
    {
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) d[i][j][e] = 0;
    }

    __device__ void add(const char *a, const char *b)
    {
        const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, r = lane % 8, part = lane / 8;
        const int m0 = warp / COLUMNS * MT * 16, n0 = warp % COLUMNS * NT * 8;
#pragma unroll 2
        for (int k = 0; k < Tile::PIECES; k += 2) {
            uint32_t fa[MT][4], fb[NT / 2][4];
#pragma unroll
            for (int i = 0; i < MT; i++)
                ldmatrix_x4(fa[i], a + Tile::piece_at(m0 + i * 16 + part % 2 * 8 + r, k + part / 2));
#pragma unroll
            for (int j = 0; j < NT / 2; j++)
                ldmatrix_x4(fb[j], b + Tile::piece_at(n0 + j * 16 + part / 2 * 8 + r, k + part % 2));
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma_bf16(d[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }

    /* Gives each element to the epilogue. */
    template <typename Epilogue> __device__ void finish(const Epilogue &epilogue, int64_t m, int n) const
    {
        const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
        const int64_t m0 = m + warp / COLUMNS * MT * 16 + lane / 4;
        const int n0 = n + warp % COLUMNS * NT * 8 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t row = m0 + i * 16 + half * 8;
                if (row >= epilogue.rows) continue;
                const typename Epilogue::row_state state = epilogue.row(row);
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    if (n0 + j * 8 < epilogue.columns) epilogue.put(state, n0 + j * 8, d[i][j][half * 2]);
                    if (n0 + j * 8 + 1 < epilogue.columns) epilogue.put(state, n0 + j * 8 + 1, d[i][j][half * 2 + 1]);
                }
            }
    }
};

template <int TM, int TN> struct sums<f32_tile<TM, TN>> {
    typedef f32_tile<TM, TN> Tile;
    float d[TM][TN];

    __device__ void clear()
    {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) d[i][j] = 0;
    }

    __device__ void add(const char *a, const char *b)
    {
        const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
        for (int k = 0; k < Tile::PIECES; k++) {
            float4 va[TM];
#pragma unroll
            for (int i = 0; i < TM; i++) va[i] = *(const float4 *)(a + Tile::piece_at(ty + i * 16, k));
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const float4 vb = *(const float4 *)(b + Tile::piece_at(tx + j * 16, k));
#pragma unroll
                for (int i = 0; i < TM; i++) {
                    d[i][j] = fmaf(va[i].x, vb.x, d[i][j]);
                    d[i][j] = fmaf(va[i].y, vb.y, d[i][j]);
                    d[i][j] = fmaf(va[i].z, vb.z, d[i][j]);
                    d[i][j] = fmaf(va[i].w, vb.w, d[i][j]);
                }
            }
        }
    }

    template <typename Epilogue> __device__ void finish(const Epilogue &epilogue, int64_t m, int n) const
    {
        const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
        for (int i = 0; i < TM; i++) {
            const int64_t row = m + ty + i * 16;
            if (row >= epilogue.rows) continue;
            const typename Epilogue::row_state state = epilogue.row(row);
#pragma unroll
            for (int j = 0; j < TN; j++)
                if (n + tx + j * 16 < epilogue.columns) epilogue.put(state, n + tx + j * 16, d[i][j]);
        }
    }
};

/* ---- the kernel ---- */

/* One block, one tile; column tiles are neighbours, so that a strip of `a` stays in the L2 cache while the weights,
 * which fit there, pass by. */
template <typename Tile, typename Source, typename Epilogue>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    tile_kernel(Source a, matrix_source b, Epilogue epilogue, int k)
{
    KN_DYNAMIC_SHARED(char, shared);
    const unsigned across = (epilogue.columns + Tile::BN - 1) / Tile::BN;
    const int64_t m = (int64_t)(blockIdx.x / across) * Tile::BM;
    const int n = (int)(blockIdx.x % across) * Tile::BN, steps = (k + Tile::BK - 1) / Tile::BK;

    filler<Tile, Source, Tile::BM> fill_a;
    filler<Tile, matrix_source, Tile::BN> fill_b;
    fill_a.start(a, m);
    fill_b.start(b, n);
    auto fill = [&](int step) {
        char *stage = shared + step % Tile::STAGES * stage_bytes<Tile>();
        if (step < steps) {
            fill_a.fill(a, stage, step * Tile::BK);
            fill_b.fill(b, stage + Tile::BM * Tile::ROW_BYTES, step * Tile::BK);
        }
        cp_async_commit(); /* empty groups too: the wait counts groups */
    };
    sums<Tile> d;
    d.clear();
#pragma unroll
    for (int step = 0; step < Tile::STAGES - 1; step++) fill(step);
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads(); /* this slice is there, and nobody reads the one that is filled next */
        fill(step + Tile::STAGES - 1);
        const char *stage = shared + step % Tile::STAGES * stage_bytes<Tile>();
        d.add(stage, stage + Tile::BM * Tile::ROW_BYTES);
    }
    d.finish(epilogue, m, n);
}

template <typename Tile, typename Source, typename Epilogue>
kn_status run_tiles(const char *name, kn_stream *stream, const Source &a, const matrix_source &b,
                    const Epilogue &epilogue, int64_t k)
{
    const int64_t blocks = divide_up(epilogue.rows, Tile::BM) * divide_up(epilogue.columns, Tile::BN);
    launch_shape shape = {dim3((unsigned)blocks), dim3(Tile::THREADS), shared_bytes<Tile>(), stream_of(stream),
                          dim3(1)};
    return launch(name, shape, tile_kernel<Tile, Source, Epilogue>, a, b, epilogue, (int)k);
}

typedef bf16_tile<2, 4, 4, 4> bf16_large; /* 128 x 128 */
typedef bf16_tile<2, 2, 2, 4> bf16_small; /* 64 x 64 */
typedef f32_tile<8, 8> f32_large;         /* 128 x 128 */
typedef f32_tile<4, 4> f32_small;         /* 64 x 64 */

/* The tile that wastes less; the sums are the same in each. */
template <typename Source, typename Epilogue>
kn_status run_product(const char *name, kn_stream *stream, const Source &a, const kn_weight *w,
                      const Epilogue &epilogue)
{
    const matrix_source b = source_of(w);
    const int64_t large = divide_up(epilogue.rows, 128) * divide_up(epilogue.columns, 128);
    const bool small = epilogue.columns <= 64 || epilogue.rows <= 64 || large < device_of(stream)->multiprocessors;
    if (w->compute == KN_BF16)
        return small ? run_tiles<bf16_small>(name, stream, a, b, epilogue, w->k)
                     : run_tiles<bf16_large>(name, stream, a, b, epilogue, w->k);
    return small ? run_tiles<f32_small>(name, stream, a, b, epilogue, w->k)
                 : run_tiles<f32_large>(name, stream, a, b, epilogue, w->k);
}

KN_CUDA_END

#endif
