/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention over ragged sequences for Hopper: tensor memory copies, warpgroup matrix instructions, one warp that loads
 * and two warpgroups that compute (after Shah et al. 2024, FlashAttention-3, arXiv 2407.08608).
 *
 *   formula   for keys in blocks, the last block first:  s = q k^T,  m' = max(m, max s),  p = 2^(c (s - m')),
 *             l = l 2^(c (m - m')) + sum p,  o = o 2^(c (m - m')) + p v;  out = o / l;  c = scale log2 e
 *   tile      128 query rows of one head of one sequence, 64 for each computing warpgroup; KEYS keys in a block
 *   pipeline  for block n:      copies        k(n-2) v(n-1)      two buffers each, full and empty barriers
 *                               tensor cores  s(n-1) = q k(n-1), o += p(n) v(n)
 *                               other pipes   p(n-1) from s(n-1), while o += p(n) v(n) is still running
 *             and the two warpgroups take turns: one issues products while the other works on its softmax
 *   shared    q [warpgroup][panel][64][64], k and v [buffer][panel][KEYS][64], all swizzled by 128 bytes; a finished o
 *             goes out through the place of its q
 *   cluster   two CTAs with neighbouring query tiles of a head read each key block once between them: each loads half
 *             of it for both
 *   registers s KEYS / 2, p KEYS / 4, o HEAD / 2 per thread: 196 of 240 for 128 x 176
 *   limits    bf16; head size 128 or 64; rows of 16-byte aligned data; scale > 0; no relative bias
 *   tolerance that of bf16 operands with f32 sums; p is rounded to bf16 for its product and summed before
 *
 * A row's bits depend on its query and its sequence's keys alone: blocks of keys are counted from the sequence's first
 * key, their width follows from the sequence's number of keys, and rows of a tile do not mix. Every sequence has tensor
 * maps of its own, so that copies end where it ends: beyond the last key the block is zeros, never a neighbour's
 * values, which 0 * NaN would let through, and beyond the last query nothing is written. Clusters and the grid decide
 * who computes a tile, never what.
 *
 * The grid is one CTA per multiprocessor and CTA c takes tiles c, c + grid, ...; tiles of long sequences come first, so
 * that no CTA has more than one longest tile of work above any other. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sm90/pipeline.cuh"
#include "kernels/cuda/sm90/tensor_map.cuh"

KN_CUDA_BEGIN

enum {
    SEQUENCES_MAX = 16, /* in one launch: four tensor maps each, 8 KiB of parameters */
    FEW_KEYS = 512,     /* sequences with at most so many keys take blocks of 128 */
    GROUP_ROWS = 64,    /* query rows of one computing warpgroup */
    COMPUTING = 2,      /* computing warpgroups */
    THREADS = 384,      /* with the loading one, which is the first */
    TILE_ROWS = 128,    /* COMPUTING * GROUP_ROWS */
    BUFFERS = 2,        /* of keys, and of values */
    BARRIER_TURN = 1,   /* + warpgroup: its turn to issue products; named barriers */
    BARRIER_GROUP = 3,  /* + warpgroup: its own threads */
};

#define LOG2_E 1.44269504088896341f

struct attention_sequence {
    tensor_map q, out; /* boxes of 64 rows, all panels of a head */
    tensor_map k, v;   /* boxes of KEYS / CLUSTER rows, one panel */
};

struct attention_launch {
    attention_sequence sequence[SEQUENCES_MAX];
    int32_t keys[SEQUENCES_MAX];
    int32_t blocks[SEQUENCES_MAX];    /* query tiles of one head, whole clusters */
    int32_t tiles_end[SEQUENCES_MAX]; /* tiles of all heads, and of the sequences before */
    float tail_weight[SEQUENCES_MAX]; /* added to the last key's product, before scaling */
    float scale_log2;                 /* c */
    int32_t tiles;                    /* tiles_end of the last */
};

template <int HEAD, int KEYS, int QUERIES, int CLUSTER> struct attention_shape {
    static constexpr int panels = HEAD / PANEL;
    static constexpr int q_group_bytes = GROUP_ROWS * HEAD * 2;
    static constexpr int q_bytes = TILE_ROWS * HEAD * 2;
    static constexpr int panel_bytes = KEYS * ROW_BYTES; /* of k or v */
    static constexpr int block_bytes = panels * panel_bytes;
    static constexpr int part_rows = KEYS / CLUSTER; /* loaded by one CTA */
    static constexpr int q_offset = 0;
    static constexpr int k_offset = QUERIES * q_bytes;
    static constexpr int v_offset = k_offset + BUFFERS * block_bytes;
    static constexpr int barriers_offset = v_offset + BUFFERS * block_bytes;
    static constexpr int shared_bytes = barriers_offset + 8 * (2 * QUERIES + 4 * BUFFERS);
    static_assert(part_rows * ROW_BYTES % 1024 == 0, "each part begins with a whole swizzle");
    static_assert(KEYS % 16 == 0 && HEAD % PANEL == 0, "whole steps of products");
    static_assert(shared_bytes <= 227 * 1024, "a block's shared memory on sm_90");
};

/* Barriers in shared memory; _full counts bytes, _empty the warps that are done, of every CTA of the cluster. */
template <int QUERIES> struct attention_barriers {
    uint64_t q_full[QUERIES], q_empty[QUERIES];
    uint64_t k_full[BUFFERS], k_empty[BUFFERS];
    uint64_t v_full[BUFFERS], v_empty[BUFFERS];
};

struct attention_tile {
    int sequence, head, row; /* row: first query */
    int key_blocks;
};

template <int KEYS> static __device__ __forceinline__ attention_tile tile_of(const attention_launch &p, int tile)
{
    attention_tile t;
    t.sequence = 0;
    while (tile >= p.tiles_end[t.sequence]) t.sequence++;
    int first = t.sequence ? p.tiles_end[t.sequence - 1] : 0;
    int blocks = p.blocks[t.sequence];
    t.head = (tile - first) / blocks;
    t.row = (tile - first) % blocks * TILE_ROWS;
    t.key_blocks = (p.keys[t.sequence] + KEYS - 1) / KEYS;
    return t;
}

/* ---- the loading warp: one thread ---- */

template <int HEAD, int KEYS, int QUERIES, int CLUSTER> struct attention_loader {
    typedef attention_shape<HEAD, KEYS, QUERIES, CLUSTER> shape;
    typedef attention_barriers<QUERIES> barriers;

    unsigned char *shared;
    barriers *barrier;
    int rank; /* in the cluster */
    ring<QUERIES> q;
    ring<BUFFERS> k, v;

    /* This CTA's part of a block of keys (or values), to every CTA of the cluster. */
    __device__ __forceinline__ void block(const tensor_map *map, const attention_tile &t, int n, unsigned char *to,
                                          uint64_t *full)
    {
        mbarrier_arrive_expect(full, shape::block_bytes);
        int part = rank * shape::part_rows;
#pragma unroll
        for (int panel = 0; panel < shape::panels; panel++) {
            unsigned char *place = to + panel * shape::panel_bytes + part * ROW_BYTES;
            int z = t.head * shape::panels + panel;
            if constexpr (CLUSTER == 1)
                tma_load_3d(place, map, 0, n * KEYS + part, z, full);
            else
                tma_load_3d_multicast(place, map, 0, n * KEYS + part, z, full, (1 << CLUSTER) - 1);
        }
    }

    __device__ __forceinline__ void load_k(const attention_launch &p, const attention_tile &t, int n)
    {
        mbarrier_wait(&barrier->k_empty[k.index], k.parity ^ PARITY_FREE);
        block(&p.sequence[t.sequence].k, t, n, shared + shape::k_offset + k.index * shape::block_bytes,
              &barrier->k_full[k.index]);
        k.next();
    }

    __device__ __forceinline__ void load_v(const attention_launch &p, const attention_tile &t, int n)
    {
        mbarrier_wait(&barrier->v_empty[v.index], v.parity ^ PARITY_FREE);
        block(&p.sequence[t.sequence].v, t, n, shared + shape::v_offset + v.index * shape::block_bytes,
              &barrier->v_full[v.index]);
        v.next();
    }

    __device__ __forceinline__ void load_q(const attention_launch &p, const attention_tile &t)
    {
        mbarrier_wait(&barrier->q_empty[q.index], q.parity ^ PARITY_FREE);
        uint64_t *full = &barrier->q_full[q.index];
        mbarrier_arrive_expect(full, shape::q_bytes);
        unsigned char *to = shared + shape::q_offset + q.index * shape::q_bytes;
#pragma unroll
        for (int group = 0; group < COMPUTING; group++)
            tma_load_3d(to + group * shape::q_group_bytes, &p.sequence[t.sequence].q, 0, t.row + group * GROUP_ROWS,
                        t.head * shape::panels, full);
        q.next();
    }

    /* In the order in which the products want them. */
    __device__ __forceinline__ void tile(const attention_launch &p, const attention_tile &t)
    {
        int n = t.key_blocks - 1;
        load_k(p, t, n);
        load_q(p, t);
        for (; n > 0; n--) {
            load_k(p, t, n - 1);
            load_v(p, t, n);
        }
        load_v(p, t, 0);
    }
};

/* ---- a computing warpgroup ---- */

/* s = q k^T, issued. */
template <int HEAD, int KEYS>
static __device__ __forceinline__ void issue_logits(float (&s)[KEYS / 2], uint64_t q, uint64_t k)
{
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) {
        int panel = step / 4, within = step % 4 * 32;
        wgmma_ss<KEYS>(s, wgmma_advance(q, panel * GROUP_ROWS * ROW_BYTES + within),
                       wgmma_advance(k, panel * KEYS * ROW_BYTES + within), step > 0);
    }
}

/* o = (accumulate ? o : 0) + p v, issued. */
template <int HEAD, int KEYS>
static __device__ __forceinline__ void issue_values(float (&o)[HEAD / 2], const uint32_t (&p)[KEYS / 16][4], uint64_t v,
                                                    bool accumulate)
{
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++)
        wgmma_rs_mn<HEAD>(o, p[step], wgmma_advance(v, step * 16 * ROW_BYTES), accumulate || step > 0);
}

/* Each thread has two rows of s: r = 0 in elements 4j, 4j + 1 and r = 1 in 4j + 2, 4j + 3; columns 8j + 2 (lane % 4),
 * + 1. The four lanes of a row agree on its maximum; each keeps its own part of the sum. */
struct attention_rows {
    float maximum[2], sum[2];
};

/* Keys from `valid` on are not there; the last that is gets the tail's weight. */
template <int KEYS> static __device__ __forceinline__ void mask_tail(float (&s)[KEYS / 2], int valid, float weight)
{
    int first = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        int key = first + i / 4 * 8 + i % 2;
        if (key == valid - 1) s[i] += weight;
        if (key >= valid) s[i] = -INFINITY;
    }
}

/* s becomes p, and correction[r] what sums over earlier blocks must be multiplied by. */
template <int KEYS>
static __device__ __forceinline__ void softmax_block(float (&s)[KEYS / 2], attention_rows &rows, float (&correction)[2],
                                                     float c)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top[2] = {rows.maximum[r], rows.maximum[r]};
#pragma unroll
        for (int i = 2 * r; i < KEYS / 2; i += 4) {
            top[0] = fmaxf(top[0], s[i]);
            top[1] = fmaxf(top[1], s[i + 1]);
        }
        float maximum = fmaxf(top[0], top[1]);
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffff, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffff, maximum, 2));
        correction[r] = exp2_approx((rows.maximum[r] - maximum) * c);
        rows.maximum[r] = maximum;
        /* (s - m) c, not s c - m c with one rounding: with large logits the latter is not 0 for the largest. */
        float sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int i = 2 * r; i < KEYS / 2; i += 4) {
            s[i] = exp2_approx((s[i] - maximum) * c);
            s[i + 1] = exp2_approx((s[i + 1] - maximum) * c);
            sum[0] += s[i];
            sum[1] += s[i + 1];
        }
        rows.sum[r] = fmaf(rows.sum[r], correction[r], sum[0] + sum[1]);
    }
}

/* The fragment of s is that of p as a left factor, sixteen keys a step. */
template <int KEYS>
static __device__ __forceinline__ void round_p(uint32_t (&p)[KEYS / 16][4], const float (&s)[KEYS / 2])
{
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

template <int HEAD, int KEYS, int QUERIES, int CLUSTER> struct attention_worker {
    typedef attention_shape<HEAD, KEYS, QUERIES, CLUSTER> shape;
    typedef attention_barriers<QUERIES> barriers;

    unsigned char *shared;
    barriers *barrier;
    int group; /* which computing warpgroup */
    ring<QUERIES> q;
    ring<BUFFERS> k, v;

    __device__ __forceinline__ uint64_t k_descriptor()
    {
        return wgmma_descriptor(shared + shape::k_offset + k.index * shape::block_bytes, 0);
    }

    __device__ __forceinline__ uint64_t v_descriptor()
    {
        return wgmma_descriptor(shared + shape::v_offset + v.index * shape::block_bytes, shape::panel_bytes);
    }

    __device__ __forceinline__ unsigned char *q_place()
    {
        return shared + shape::q_offset + q.index * shape::q_bytes + group * shape::q_group_bytes;
    }

    /* o / l over the place of q, then to memory. */
    __device__ __forceinline__ void store(const attention_launch &p, const attention_tile &t,
                                          const float (&o)[HEAD / 2])
    {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        int row = warp * 16 + lane % 16; /* whose address this lane gives */
        unsigned char *place = q_place();
        bar_sync(BARRIER_GROUP + group, GROUP); /* every warp is done with q */
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++) {
            int panel = i / 4, chunk = i % 4 * 2 + lane / 16;
            stmatrix_x4(place + panel * GROUP_ROWS * ROW_BYTES + row * ROW_BYTES + ((chunk ^ row % 8) << 4),
                        pack_bf16(o[8 * i], o[8 * i + 1]), pack_bf16(o[8 * i + 2], o[8 * i + 3]),
                        pack_bf16(o[8 * i + 4], o[8 * i + 5]), pack_bf16(o[8 * i + 6], o[8 * i + 7]));
        }
        fence_proxy_async();
        bar_sync(BARRIER_GROUP + group, GROUP);
        if (threadIdx.x % GROUP == 0) {
            tma_store_3d(&p.sequence[t.sequence].out, place, 0, t.row + group * GROUP_ROWS, t.head * shape::panels);
            bulk_commit();
            bulk_wait_read<0>();
            mbarrier_arrive(&barrier->q_empty[q.index]);
        }
    }

    __device__ __forceinline__ void tile(const attention_launch &launch, const attention_tile &t)
    {
        float s[KEYS / 2], o[HEAD / 2], correction[2];
        uint32_t p[KEYS / 16][4];
        attention_rows rows = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};

        /* The last block of keys, which alone may be short. */
        mbarrier_wait(&barrier->q_full[q.index], q.parity);
        mbarrier_wait(&barrier->k_full[k.index], k.parity);
        uint64_t q_descriptor = wgmma_descriptor(q_place(), 0);
        wgmma_fence();
        issue_logits<HEAD, KEYS>(s, q_descriptor, k_descriptor());
        wgmma_commit();
        wgmma_wait<0>();
        hold(s);
        release<CLUSTER>(&barrier->k_empty[k.index]);
        k.next();
        mask_tail<KEYS>(s, launch.keys[t.sequence] - (t.key_blocks - 1) * KEYS, launch.tail_weight[t.sequence]);
        softmax_block<KEYS>(s, rows, correction, launch.scale_log2);
        round_p<KEYS>(p, s);

        bool accumulate = false;
        mbarrier_wait(&barrier->v_full[v.index], v.parity);
        for (int n = t.key_blocks - 2; n >= 0; n--) {
            mbarrier_wait(&barrier->k_full[k.index], k.parity);
            bar_sync(BARRIER_TURN + group, COMPUTING * GROUP);
            wgmma_fence();
            issue_logits<HEAD, KEYS>(s, q_descriptor, k_descriptor());
            wgmma_commit();
            wgmma_fence();
            issue_values<HEAD, KEYS>(o, p, v_descriptor(), accumulate);
            wgmma_commit();
            bar_arrive(BARRIER_TURN + 1 - group, COMPUTING * GROUP);
            wgmma_wait<1>();
            hold(s);
            release<CLUSTER>(&barrier->k_empty[k.index]);
            k.next();
            softmax_block<KEYS>(s, rows, correction, launch.scale_log2);
            uint64_t *read = &barrier->v_empty[v.index];
            v.next();
            mbarrier_wait(&barrier->v_full[v.index],
                          v.parity); /* its branch keeps the exponentials before the next wait */
            wgmma_wait<0>();
            hold(o);
            release<CLUSTER>(read);
            round_p<KEYS>(p, s);
#pragma unroll
            for (int i = 0; i < HEAD / 2; i++) o[i] *= correction[i / 2 % 2];
            accumulate = true;
        }

        wgmma_fence();
        issue_values<HEAD, KEYS>(o, p, v_descriptor(), accumulate);
        wgmma_commit();
#pragma unroll
        for (int r = 0; r < 2; r++) {
            rows.sum[r] += __shfl_xor_sync(0xffffffff, rows.sum[r], 1);
            rows.sum[r] += __shfl_xor_sync(0xffffffff, rows.sum[r], 2);
            correction[r] = 1.0f / rows.sum[r];
        }
        wgmma_wait<0>();
        hold(o);
        release<CLUSTER>(&barrier->v_empty[v.index]);
        v.next();
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++) o[i] *= correction[i / 2 % 2];
        store(launch, t, o);
        q.next();
    }
};

template <int HEAD, int KEYS, int QUERIES, int CLUSTER>
static __device__ __forceinline__ void attention_body(const attention_launch &p)
{
    typedef attention_shape<HEAD, KEYS, QUERIES, CLUSTER> shape;
    typedef attention_barriers<QUERIES> barriers;
    KN_DYNAMIC_SHARED(unsigned char, shared);
    barriers *barrier = reinterpret_cast<barriers *>(shared + shape::barriers_offset);
    int warpgroup = uniform(threadIdx.x / GROUP);
    int rank = CLUSTER > 1 ? (int)cluster_rank() : 0;

    if (threadIdx.x == 0) {
        for (int i = 0; i < QUERIES; i++) {
            mbarrier_init(&barrier->q_full[i], 1);
            mbarrier_init(&barrier->q_empty[i], COMPUTING);
        }
        for (int i = 0; i < BUFFERS; i++) {
            mbarrier_init(&barrier->k_full[i], 1);
            mbarrier_init(&barrier->v_full[i], 1);
            mbarrier_init(&barrier->k_empty[i], CLUSTER * COMPUTING * 4);
            mbarrier_init(&barrier->v_empty[i], CLUSTER * COMPUTING * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    cluster_barrier<CLUSTER>();

    if (warpgroup == 0) {
        setmaxnreg_dec<40>();
        if (threadIdx.x == 0) {
            attention_loader<HEAD, KEYS, QUERIES, CLUSTER> loader = {shared, barrier, rank, {0, 0}, {0, 0}, {0, 0}};
            for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) loader.tile(p, tile_of<KEYS>(p, tile));
        }
    } else {
        setmaxnreg_inc<232>();
        int group = warpgroup - 1;
        attention_worker<HEAD, KEYS, QUERIES, CLUSTER> worker = {shared, barrier, group, {0, 0}, {0, 0}, {0, 0}};
        if (group == 1) bar_arrive(BARRIER_TURN + 0, COMPUTING * GROUP); /* the first has the first turn */
        for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) worker.tile(p, tile_of<KEYS>(p, tile));
        if (group == 0) bar_sync(BARRIER_TURN + 0, COMPUTING * GROUP); /* takes back the turn that is left */
    }
    cluster_barrier<CLUSTER>();
}

static __global__ __launch_bounds__(THREADS,
                                    1) void attention_sm90_128x176_cluster(const __grid_constant__ attention_launch p)
{
    attention_body<128, 176, 1, 2>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void attention_sm90_128x176(const __grid_constant__ attention_launch p)
{
    attention_body<128, 176, 1, 1>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void attention_sm90_128x128(const __grid_constant__ attention_launch p)
{
    attention_body<128, 128, 2, 1>(p);
}

static __global__ __launch_bounds__(THREADS, 1) void attention_sm90_64x128(const __grid_constant__ attention_launch p)
{
    attention_body<64, 128, 2, 1>(p);
}

/* ---- host ---- */

struct attention_kernel {
    void (*run)(attention_launch);
    const char *name;
    int head, keys, cluster, shared_bytes;
};

#define KN_ATTENTION(head, keys, queries, cluster, function)                                                           \
    {                                                                                                                  \
        function, #function, head, keys, cluster, attention_shape<head, keys, queries, cluster>::shared_bytes          \
    }
static const attention_kernel wide_pairs = KN_ATTENTION(128, 176, 1, 2, attention_sm90_128x176_cluster);
static const attention_kernel wide = KN_ATTENTION(128, 176, 1, 1, attention_sm90_128x176);
static const attention_kernel narrow = KN_ATTENTION(128, 128, 2, 1, attention_sm90_128x128);
static const attention_kernel half = KN_ATTENTION(64, 128, 2, 1, attention_sm90_64x128);
#undef KN_ATTENTION

static int rows_of(const int32_t *offsets, int s)
{
    return offsets[s + 1] - offsets[s];
}

/* The sequences that one kernel takes, in the order of their tiles. */
struct attention_list {
    const kn_attention_args *args;
    int sequence[SEQUENCES_MAX];
    int count;
};

/* Pairs of tiles cost a whole tile where a head's number of tiles is odd. */
static bool pairs_pay(const attention_list *list)
{
    int64_t tiles = 0, paired = 0;
    for (int i = 0; i < list->count; i++) {
        int64_t blocks = divide_up(rows_of(list->args->q_offsets, list->sequence[i]), TILE_ROWS);
        tiles += blocks;
        paired += divide_up(blocks, 2) * 2;
    }
    return paired * 64 <= tiles * 65;
}

static kn_status describe(attention_launch *p, const attention_kernel *kernel, const attention_list *list, int i)
{
    const kn_attention_args *g = list->args;
    int s = list->sequence[i], panels = kernel->head / PANEL;
    int64_t q0 = g->q_offsets[s], q_rows = rows_of(g->q_offsets, s);
    int64_t k0 = g->k_offsets[s], keys = rows_of(g->k_offsets, s);
    attention_sequence *to = &p->sequence[i];
    kn_status st = tensor_map_rows(&to->q, &g->q, q0, q_rows, GROUP_ROWS, panels);
    if (st == KN_OK) st = tensor_map_rows(&to->out, &g->out, q0, q_rows, GROUP_ROWS, panels);
    if (st == KN_OK) st = tensor_map_rows(&to->k, &g->k, k0, keys, kernel->keys / kernel->cluster, 1);
    if (st == KN_OK) st = tensor_map_rows(&to->v, &g->v, k0, keys, kernel->keys / kernel->cluster, 1);
    int64_t blocks = divide_up(divide_up(q_rows, TILE_ROWS), kernel->cluster) * kernel->cluster;
    p->keys[i] = (int32_t)keys;
    p->blocks[i] = (int32_t)blocks;
    p->tiles_end[i] = (int32_t)((i ? p->tiles_end[i - 1] : 0) + g->heads * blocks);
    p->tail_weight[i] = g->tail_log_weight ? g->tail_log_weight[s] / g->scale : 0.0f;
    return st;
}

static kn_status launch_list(kn_stream *stream, const attention_kernel *kernel, const attention_list *list)
{
    if (list->count == 0) return KN_OK;
    attention_launch p = {};
    p.scale_log2 = list->args->scale * LOG2_E;
    for (int i = 0; i < list->count; i++) {
        kn_status st = describe(&p, kernel, list, i);
        if (st != KN_OK) return st;
    }
    p.tiles = p.tiles_end[list->count - 1];
    int places = device_of(stream)->multiprocessors / kernel->cluster * kernel->cluster;
    if (places < kernel->cluster) places = kernel->cluster;
    int grid = p.tiles < places ? p.tiles : places;
    launch_shape shape = {dim3(grid), dim3(THREADS), (size_t)kernel->shared_bytes, stream_of(stream),
                          dim3(kernel->cluster)};
    return launch(kernel->name, shape, kernel->run, p);
}

/* Longest first, equal ones in their order. */
static void insert_by_keys(attention_list *list, int s)
{
    const int32_t *offsets = list->args->k_offsets;
    int i = list->count++;
    for (; i > 0 && rows_of(offsets, list->sequence[i - 1]) < rows_of(offsets, s); i--)
        list->sequence[i] = list->sequence[i - 1];
    list->sequence[i] = s;
}

static kn_status launch_wide(kn_stream *stream, const attention_list *list)
{
    return launch_list(stream, pairs_pay(list) ? &wide_pairs : &wide, list);
}

/* The width of key blocks, and so the bits, follow from the sequence alone. */
static kn_status attention_128(kn_stream *stream, const kn_attention_args *g)
{
    attention_list few = {g, {}, 0}, many = {g, {}, 0};
    for (int s = 0; s < g->sequences; s++) {
        if (rows_of(g->q_offsets, s) == 0) continue;
        insert_by_keys(rows_of(g->k_offsets, s) <= FEW_KEYS ? &few : &many, s);
        kn_status st = KN_OK;
        if (few.count == SEQUENCES_MAX) {
            st = launch_list(stream, &narrow, &few);
            few.count = 0;
        }
        if (many.count == SEQUENCES_MAX) {
            st = launch_wide(stream, &many);
            many.count = 0;
        }
        if (st != KN_OK) return st;
    }
    kn_status st = launch_wide(stream, &many);
    return st == KN_OK ? launch_list(stream, &narrow, &few) : st;
}

static kn_status attention_64(kn_stream *stream, const kn_attention_args *g)
{
    attention_list list = {g, {}, 0};
    for (int s = 0; s < g->sequences; s++) {
        if (rows_of(g->q_offsets, s) == 0) continue;
        insert_by_keys(&list, s);
        if (list.count < SEQUENCES_MAX) continue;
        kn_status st = launch_list(stream, &half, &list);
        if (st != KN_OK) return st;
        list.count = 0;
    }
    return launch_list(stream, &half, &list);
}

static bool accepts(const kn_attention_args *g, int head)
{
    return g->head_dim == head && !g->relative_bias && g->scale > 0 && tensor_map_accepts(&g->q) &&
           tensor_map_accepts(&g->k) && tensor_map_accepts(&g->v) && tensor_map_accepts(&g->out);
}

static bool accepts_128(const device_cuda *device, const kn_attention_args *g)
{
    (void)device;
    return accepts(g, 128);
}

static bool accepts_64(const device_cuda *device, const kn_attention_args *g)
{
    (void)device;
    return accepts(g, 64);
}

extern const variant<kn_attention_args> attention_sm90[] = {
    {"attention.sm90.bf16.d128", TIER_SM90, accepts_128, attention_128, nullptr},
    {"attention.sm90.bf16.d64", TIER_SM90, accepts_64, attention_64, nullptr},
    {},
};

KN_CUDA_END
