/* SPDX-License-Identifier: Apache-2.0
 *
 * Linear layers for Hopper: out = act(a w^T + bias), or out = residual + gate * (a w^T + bias) for those that add to
 * the residual stream, everything after the product in registers.
 *
 *   tile      128 rows by 256 columns; two computing warpgroups with 64 rows each, one warp that loads
 *   pipeline  four buffers of 64 columns of k: a [128][64], w [256][64], swizzled by 128 bytes
 *   cluster   two CTAs with neighbouring rows share each block of w: each loads half of it for both
 *   order     k ascending in steps of 16, one chain of sums per element; what a row gives does not depend on its tile
 *   grid      one CTA per multiprocessor; tiles in bands of BAND rows of tiles, columns within, so that what is in
 *             flight together shares a and w in the second cache level
 *   registers sums 128 per thread of 232
 *   limits    a and w bf16, k a multiple of 64; with residual no activation, f32 or bf16; without, bf16 out; out and
 *             residual aligned for pairs of elements
 *   tolerance that of bf16 operands with f32 sums
 *
 * A library's product would need another pass over the output for a gate per row and the residual, and chooses its
 * algorithm, and so the order of sums, by the number of rows. */
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/sm90/pipeline.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"

KN_CUDA_BEGIN

enum {
    TILE_M = 128,
    TILE_N = 256,
    TILE_K = 64,
    GROUP_M = 64, /* rows of a computing warpgroup */
    BUFFERS = 4,
    BAND = 16,   /* rows of tiles */
    AT_ONCE = 8, /* column groups whose residual is read ahead of their stores */
    THREADS = 384,
    A_BYTES = TILE_M * ROW_BYTES,
    W_BYTES = TILE_N * ROW_BYTES,
    W_OFFSET = BUFFERS * A_BYTES,
    BARRIERS_OFFSET = W_OFFSET + BUFFERS * W_BYTES,
    SHARED_BYTES = BARRIERS_OFFSET + 2 * BUFFERS * 8,
};

struct gemm_launch {
    tensor_map a, w; /* boxes of 128 rows, of 256 / CLUSTER rows */
    const float *bias;
    const float *gate;
    const int32_t *gate_index;
    int64_t gate_stride;
    char *out;
    const char *residual;
    int64_t out_stride, residual_stride;
    int32_t rows, columns, k_blocks;
    int32_t element_bytes;    /* of out and residual */
    bool prefetch;            /* rows of the residual are 16-byte aligned pieces */
    int32_t tiles_m, tiles_n; /* tiles_m: whole clusters */
};

struct gemm_barriers {
    uint64_t full[BUFFERS], empty[BUFFERS];
};

struct gemm_place {
    int row, column;
};

static __device__ __forceinline__ gemm_place place_of(const gemm_launch &p, int tile)
{
    int band = tile / (BAND * p.tiles_n), within = tile % (BAND * p.tiles_n);
    int height = min((int)BAND, p.tiles_m - band * BAND);
    return {(band * BAND + within % height) * TILE_M, within / height * TILE_N};
}

/* The tile's rows [begin, end) of the residual stream into the second cache level, a few with every block of k, so that
 * the end of the tile need not wait for memory. */
static __device__ __forceinline__ void prefetch_residual(const gemm_launch &p, gemm_place at, int begin, int end)
{
    if (at.column >= p.columns) return;
    int columns = min((int)TILE_N, p.columns - at.column);
    for (int row = at.row + begin; row < at.row + end && row < p.rows; row++)
        bulk_prefetch(p.residual + (row * p.residual_stride + at.column) * p.element_bytes, columns * p.element_bytes);
}

template <int CLUSTER>
static __device__ __forceinline__ void load_tiles(const gemm_launch &p, unsigned char *shared, gemm_barriers *barrier)
{
    ring<BUFFERS> buffer = {0, 0};
    int part = CLUSTER > 1 ? (int)cluster_rank() * (TILE_N / CLUSTER) : 0;
    for (int tile = blockIdx.x; tile < p.tiles_m * p.tiles_n; tile += gridDim.x) {
        gemm_place at = place_of(p, tile);
        for (int block = 0; block < p.k_blocks; block++) {
            uint64_t *full = &barrier->full[buffer.index];
            mbarrier_wait(&barrier->empty[buffer.index], buffer.parity ^ PARITY_FREE);
            mbarrier_arrive_expect(full, A_BYTES + W_BYTES);
            tma_load_3d(shared + buffer.index * A_BYTES, &p.a, 0, at.row, block, full);
            unsigned char *w = shared + W_OFFSET + buffer.index * W_BYTES + part * ROW_BYTES;
            if constexpr (CLUSTER == 1)
                tma_load_3d(w, &p.w, 0, at.column, block, full);
            else
                tma_load_3d_multicast(w, &p.w, 0, at.column + part, block, full, (1 << CLUSTER) - 1);
            buffer.next();
            if (p.prefetch) prefetch_residual(p, at, TILE_M * block / p.k_blocks, TILE_M * (block + 1) / p.k_blocks);
        }
    }
}

/* Two neighbouring elements of `OUT`: float, or uint16_t for bf16. */
static __device__ __forceinline__ float2 load_pair(const float *from)
{
    return *reinterpret_cast<const float2 *>(from);
}

static __device__ __forceinline__ void store_pair(float *to, float2 value)
{
    *reinterpret_cast<float2 *>(to) = value;
}

static __device__ __forceinline__ float2 load_pair(const uint16_t *from)
{
    uint32_t both = *reinterpret_cast<const uint32_t *>(from);
    return {from_bits(both << 16), from_bits(both & 0xffff0000u)};
}

static __device__ __forceinline__ void store_pair(uint16_t *to, float2 value)
{
    *reinterpret_cast<uint32_t *>(to) = pack_bf16(value.x, value.y);
}

/* Each thread has columns 8j + 2 (lane % 4), + 1 of two rows, lane / 4 and 8 below. */
template <typename OUT>
static __device__ __forceinline__ void add_to_stream(const gemm_launch &p, const float (&sum)[TILE_N / 2], int row0,
                                                     int column0)
{
    int lane = threadIdx.x % 32;
    OUT *out[2];
    const OUT *residual[2];
    const float *gate[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t row = row0 + lane / 4 + 8 * half;
        if (row >= p.rows) row = p.rows - 1; /* to be read, not written */
        out[half] = reinterpret_cast<OUT *>(p.out) + row * p.out_stride;
        residual[half] = reinterpret_cast<const OUT *>(p.residual) + row * p.residual_stride;
        gate[half] = p.gate ? p.gate + (p.gate_index ? p.gate_index[row] : 0) * p.gate_stride : nullptr;
    }
    bool there[2] = {row0 + lane / 4 < p.rows, row0 + lane / 4 + 8 < p.rows};
    /* In batches: `residual` may be `out`, so the compiler cannot move a later load before an earlier store. */
#pragma unroll
    for (int batch = 0; batch < TILE_N / 8; batch += AT_ONCE) {
        float2 before[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int column = column0 + 8 * (batch + i) + lane % 4 * 2;
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (there[half] && column < p.columns) before[i][half] = load_pair(residual[half] + column);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int j = batch + i, column = column0 + 8 * j + lane % 4 * 2;
            if (column >= p.columns) continue;
            float2 bias = p.bias ? float2{p.bias[column], p.bias[column + 1]} : float2{0.0f, 0.0f};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (!there[half]) continue;
                float2 y = {sum[4 * j + 2 * half] + bias.x, sum[4 * j + 2 * half + 1] + bias.y};
                if (p.gate) y = {y.x * gate[half][column], y.y * gate[half][column + 1]};
                store_pair(out[half] + column, {y.x + before[i][half].x, y.y + before[i][half].y});
            }
        }
    }
}

/* gelu_tanh(x) = x / (1 + 2^(-2 log2(e) u)), u = sqrt(2 / pi) (x + 0.044715 x^3). */
static __device__ __forceinline__ float gelu_approx(float x)
{
    const float factor = -2 * 1.44269504088896341f * 0.797884560802865356f;
    return x * reciprocal_approx(1.0f + exp2_approx(factor * x * fmaf(0.044715f * x, x, 1.0f)));
}

template <bool GELU>
static __device__ __forceinline__ void store_new(const gemm_launch &p, const float (&sum)[TILE_N / 2], int row0,
                                                 int column0)
{
    int lane = threadIdx.x % 32, row = row0 + lane / 4;
    uint16_t *out = reinterpret_cast<uint16_t *>(p.out) + row * p.out_stride;
#pragma unroll
    for (int j = 0; j < TILE_N / 8; j++) {
        int column = column0 + 8 * j + lane % 4 * 2;
        if (column >= p.columns) continue;
        float2 bias = p.bias ? float2{p.bias[column], p.bias[column + 1]} : float2{0.0f, 0.0f};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (row + 8 * half >= p.rows) continue;
            float2 y = {sum[4 * j + 2 * half] + bias.x, sum[4 * j + 2 * half + 1] + bias.y};
            if (GELU) y = {gelu_approx(y.x), gelu_approx(y.y)};
            store_pair(out + 8 * half * p.out_stride + column, y);
        }
    }
}

enum finish { ADD_F32, ADD_BF16, STORE_BF16, STORE_GELU_BF16 };

template <int FINISH>
static __device__ __forceinline__ void finish_tile(const gemm_launch &p, const float (&sum)[TILE_N / 2], int row0,
                                                   int column0)
{
    if constexpr (FINISH == ADD_F32)
        add_to_stream<float>(p, sum, row0, column0);
    else if constexpr (FINISH == ADD_BF16)
        add_to_stream<uint16_t>(p, sum, row0, column0);
    else
        store_new<FINISH == STORE_GELU_BF16>(p, sum, row0, column0);
}

template <int CLUSTER, int FINISH>
static __device__ __forceinline__ void compute_tiles(const gemm_launch &p, unsigned char *shared,
                                                     gemm_barriers *barrier, int group)
{
    ring<BUFFERS> buffer = {0, 0};
    for (int tile = blockIdx.x; tile < p.tiles_m * p.tiles_n; tile += gridDim.x) {
        gemm_place at = place_of(p, tile);
        float sum[TILE_N / 2];
        uint64_t *reading = nullptr; /* the buffer of the products that may still run */
        for (int block = 0; block < p.k_blocks; block++) {
            mbarrier_wait(&barrier->full[buffer.index], buffer.parity);
            uint64_t a = wgmma_descriptor(shared + buffer.index * A_BYTES + group * GROUP_M * ROW_BYTES, 0);
            uint64_t w = wgmma_descriptor(shared + W_OFFSET + buffer.index * W_BYTES, 0);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < TILE_K / 16; step++)
                wgmma_ss<TILE_N>(sum, wgmma_advance(a, 32 * step), wgmma_advance(w, 32 * step), block > 0 || step > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (reading) release<CLUSTER>(reading);
            reading = &barrier->empty[buffer.index];
            buffer.next();
        }
        wgmma_wait<0>();
        hold(sum);
        release<CLUSTER>(reading);
        finish_tile<FINISH>(p, sum, at.row + group * GROUP_M + uniform(threadIdx.x / 32 % 4) * 16, at.column);
    }
}

template <int CLUSTER, int FINISH> static __device__ __forceinline__ void gemm_body(const gemm_launch &p)
{
    KN_DYNAMIC_SHARED(unsigned char, shared);
    gemm_barriers *barrier = reinterpret_cast<gemm_barriers *>(shared + BARRIERS_OFFSET);
    int warpgroup = uniform(threadIdx.x / GROUP);
    if (threadIdx.x == 0) {
        for (int i = 0; i < BUFFERS; i++) {
            mbarrier_init(&barrier->full[i], 1);
            mbarrier_init(&barrier->empty[i], CLUSTER * 8);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    cluster_barrier<CLUSTER>();
    if (warpgroup == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) load_tiles<CLUSTER>(p, shared, barrier);
    } else {
        setmaxnreg_inc<232>();
        compute_tiles<CLUSTER, FINISH>(p, shared, barrier, warpgroup - 1);
    }
    cluster_barrier<CLUSTER>();
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_add_f32(const __grid_constant__ gemm_launch p)
{
    gemm_body<1, ADD_F32>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_add_f32_cluster(const __grid_constant__ gemm_launch p)
{
    gemm_body<2, ADD_F32>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_add_bf16(const __grid_constant__ gemm_launch p)
{
    gemm_body<1, ADD_BF16>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_add_bf16_cluster(const __grid_constant__ gemm_launch p)
{
    gemm_body<2, ADD_BF16>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_bf16(const __grid_constant__ gemm_launch p)
{
    gemm_body<1, STORE_BF16>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_bf16_cluster(const __grid_constant__ gemm_launch p)
{
    gemm_body<2, STORE_BF16>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_gelu_bf16(const __grid_constant__ gemm_launch p)
{
    gemm_body<1, STORE_GELU_BF16>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void gemm_sm90_gelu_bf16_cluster(const __grid_constant__ gemm_launch p)
{
    gemm_body<2, STORE_GELU_BF16>(p);
}

/* ---- host ---- */

/* A weight as it is in the checkpoint, or prepared: rows with zeros behind (weight_prepare_cuda). */
static kn_matrix matrix_of(const kn_weight *w)
{
    return kn_matrix{(void *)w->data, w->n, w->k, w->layout == KN_WEIGHT_PANEL ? w->pair : w->k, w->dtype};
}

/* Two elements side by side can be moved as one. */
static bool pairs(const kn_matrix *m)
{
    return (uintptr_t)m->data % 8 == 0 && m->stride % 2 == 0;
}

static bool products_accepted(const kn_gemm_args *g)
{
    kn_matrix w = matrix_of(g->w);
    return g->w->compute == KN_BF16 && (g->w->layout == KN_WEIGHT_PLAIN || g->w->panel == 1) &&
           tensor_map_accepts(&g->a) && tensor_map_accepts(&w) && g->w->n % 2 == 0 && pairs(&g->out);
}

static bool accepts_add(const device_cuda *device, const kn_gemm_args *g)
{
    (void)device;
    return g->residual.data && pairs(&g->residual) && g->activation == KN_ACT_NONE && products_accepted(g);
}

static bool accepts_store(const device_cuda *device, const kn_gemm_args *g)
{
    (void)device;
    return !g->residual.data && g->out.dtype == KN_BF16 && g->activation != KN_ACT_SILU && products_accepted(g);
}

static finish finish_of(const kn_gemm_args *g)
{
    if (g->residual.data) return g->out.dtype == KN_F32 ? ADD_F32 : ADD_BF16;
    return g->activation == KN_ACT_GELU_TANH ? STORE_GELU_BF16 : STORE_BF16;
}

struct gemm_kernel {
    void (*run)(gemm_launch);
    const char *name;
};

#define KN_GEMM(name)                                                                                                  \
    {                                                                                                                  \
        name, #name                                                                                                    \
    }
static const gemm_kernel kernels[][2] = {
    {KN_GEMM(gemm_sm90_add_f32), KN_GEMM(gemm_sm90_add_f32_cluster)},
    {KN_GEMM(gemm_sm90_add_bf16), KN_GEMM(gemm_sm90_add_bf16_cluster)},
    {KN_GEMM(gemm_sm90_bf16), KN_GEMM(gemm_sm90_bf16_cluster)},
    {KN_GEMM(gemm_sm90_gelu_bf16), KN_GEMM(gemm_sm90_gelu_bf16_cluster)},
};
#undef KN_GEMM

static kn_status gemm_run(kn_stream *stream, const kn_gemm_args *g)
{
    if (g->out.rows == 0) return KN_OK;
    gemm_launch p = {};
    int64_t blocks = divide_up(g->out.rows, TILE_M);
    int cluster = blocks % 2 == 0 || blocks >= 64 ? 2 : 1;
    kn_matrix w = matrix_of(g->w);
    kn_status st = tensor_map_rows(&p.a, &g->a, 0, g->a.rows, TILE_M, 1);
    if (st == KN_OK) st = tensor_map_rows(&p.w, &w, 0, w.rows, TILE_N / cluster, 1);
    if (st != KN_OK) return st;
    p.bias = g->bias;
    p.gate = g->gate.data;
    p.gate_index = g->gate.row_index;
    p.gate_stride = g->gate.stride;
    p.out = (char *)g->out.data;
    p.residual = (const char *)g->residual.data;
    p.out_stride = g->out.stride;
    p.residual_stride = g->residual.stride;
    p.element_bytes = (int32_t)kn_dtype_bytes(g->out.dtype);
    p.prefetch = p.residual && (uintptr_t)p.residual % 16 == 0 && p.residual_stride % 8 == 0 && g->w->n % 8 == 0;
    p.rows = (int32_t)g->out.rows;
    p.columns = (int32_t)g->w->n;
    p.k_blocks = (int32_t)(g->w->k / TILE_K);
    p.tiles_m = (int32_t)(divide_up(blocks, cluster) * cluster);
    p.tiles_n = (int32_t)divide_up(g->w->n, TILE_N);
    int64_t tiles = (int64_t)p.tiles_m * p.tiles_n;
    int64_t places = device_of(stream)->multiprocessors / cluster * cluster;
    if (places < cluster) places = cluster;
    launch_shape shape = {dim3((unsigned)(tiles < places ? tiles : places)), dim3(THREADS), SHARED_BYTES,
                          stream_of(stream), dim3(cluster)};
    const gemm_kernel *kernel = &kernels[finish_of(g)][cluster - 1];
    return launch(kernel->name, shape, kernel->run, p);
}

extern const variant<kn_gemm_args> gemm_sm90[] = {
    {"gemm.sm90.bf16.add", TIER_SM90, accepts_add, gemm_run, nullptr},
    {"gemm.sm90.bf16.store", TIER_SM90, accepts_store, gemm_run, nullptr},
    {},
};

KN_CUDA_END
