// SPDX-License-Identifier: Apache-2.0
//
// The executor on single instructions whose results are known: fragments of a warp, a warpgroup's product with a in
// registers, and boxes of tensors of one to five dimensions under every swizzle, computed here from the manual's words
// and not from the executor's code. Each with the bugs that are easily made.
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include <cuda.h>
#include <cuda_bf16.h>

#include "tests/simt/planted_forms.h"
#include "tests/simt/simt.h"

using namespace kn_simt;

enum { SEEDS = 3 };

static int passed, failed;

static void judge(bool good, const std::string &label, const std::string &text)
{
    good ? passed++ : failed++;
    if (!good) printf("FAILED %s: %s\n", label.c_str(), text.c_str());
}

// What a run must end in.
struct outcome {
    const char *text; // part of the failure; "" any; NULL: none
    bool wrong;       // without a failure, a wrong result
};

static void judge_run(const std::string &label, const outcome &o, bool right)
{
    const std::string text = simt_failure();
    if (o.text)
        judge(!text.empty() && text.find(o.text) != std::string::npos, label, text.empty() ? "not noticed" : text);
    else
        judge(text.empty() && right != o.wrong, label,
              !text.empty() ? text
              : right       ? "the result does not show it"
                            : "the result is wrong");
    simt_release();
    simt_clear();
}

static float value_at(int row, int column, int salt)
{
    return (float)((row * 31 + column * 17 + salt) % 15 - 7) / 4; // exact in bf16, sums exact in float
}

// The failure of a launch is sticky, as CUDA's are; memory must be read and freed after it.
static void finish_run()
{
    cudaDeviceSynchronize();
    simt_fail_at(0, 0);
}

// Device memory that holds a copy of `host`.
template <typename T> static T *put(const std::vector<T> &host)
{
    void *memory = nullptr;
    cudaMalloc(&memory, host.size() * sizeof(T));
    cudaMemcpy(memory, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
    return (T *)memory;
}

template <typename T> static void take(std::vector<T> *host, T *memory)
{
    cudaMemcpy(host->data(), memory, host->size() * sizeof(T), cudaMemcpyDeviceToHost);
    cudaFree(memory);
}

// ---- ldmatrix, mma, stmatrix ----

static void warp(const char *name, int bug, bool turned, const outcome &o, uint64_t seed)
{
    enum { N = 16 };
    std::vector<uint16_t> a(N * N), b(N * N), rounded(N * N);
    std::vector<float> product(N * N);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            a[i * N + j] = simt_bf16_bits(value_at(i, j, 1));
            b[turned ? i * N + j : j * N + i] = simt_bf16_bits(value_at(i, j, 2)); // b(k, n)
        }
    simt_seed(seed);
    simt_catch();
    uint16_t *da = put(a), *db = put(b), *dr = put(rounded);
    float *dp = put(product);
    const warp_call call = {bug, turned, da, db, dp, dr, nullptr};
    run_warp(&call);
    finish_run();
    take(&product, dp);
    take(&rounded, dr);
    bool right = true;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            float want = 0;
            for (int k = 0; k < N; k++) want += value_at(i, k, 1) * value_at(k, j, 2);
            right = right && product[i * N + j] == want && rounded[i * N + j] == simt_bf16_bits(want);
        }
    cudaFree(da);
    cudaFree(db);
    judge_run(name, o, right);
}

static void warps(uint64_t seed)
{
    warp("fragments", FORM_RIGHT, false, {nullptr, false}, seed);
    warp("fragments, transposed on the way", FORM_RIGHT, true, {nullptr, false}, seed);
    warp("fragment's registers exchanged", FORM_SWAPPED, false, {nullptr, true}, seed);
    warp("not transposed", FORM_NOT_TURNED, true, {nullptr, true}, seed);
    warp("row not aligned", FORM_MISALIGNED, false, {"not 16-byte aligned", false}, seed);
    warp("half a warp", FORM_FEW_LANES, false, {"", false}, seed);
    warp("no barrier after stmatrix", FORM_NO_BARRIER, false, {"race", false}, seed);
}

// ---- wgmma ----

static void warpgroup(const char *name, int bug, const outcome &o, uint64_t seed)
{
    enum { M = 64, N = 128, K = 16 };
    std::vector<uint16_t> a(M * K), b(K * N);
    std::vector<float> c(M * N);
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) a[i * K + k] = simt_bf16_bits(value_at(i, k, 1));
    for (int k = 0; k < K; k++)
        for (int j = 0; j < N; j++) b[k * N + j] = simt_bf16_bits(value_at(k, j, 2));
    simt_seed(seed);
    simt_catch();
    uint16_t *da = put(a), *db = put(b);
    float *dc = put(c);
    const warpgroup_call call = {bug, da, db, dc, nullptr};
    run_warpgroup(&call);
    finish_run();
    take(&c, dc);
    bool right = true;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float want = 0;
            for (int k = 0; k < K; k++) want += value_at(i, k, 1) * value_at(k, j, 2);
            right = right && c[i * N + j] == want;
        }
    cudaFree(da);
    cudaFree(db);
    judge_run(name, o, right);
}

static void warpgroups(uint64_t seed)
{
    warpgroup("registers by rows along k", FORM_RIGHT, {nullptr, false}, seed);
    warpgroup("no fence before wgmma", FORM_NO_FENCE, {"fence", false}, seed);
    warpgroup("sums written before the wait", FORM_WRITTEN, {"", false}, seed);
    warpgroup("leading bytes of half a tile", FORM_LEADING, {nullptr, true}, seed);
}

// ---- boxes ----

// PTX ISA, "Swizzling modes": the 16-byte chunks of a row of 32, 64 or 128 bytes are exchanged by the number of the row
// of 128 bytes they lie in: chunk c of that row goes to c ^ (row % 2, 4, 8), within its span.
static uint32_t place_of(uint32_t byte, int swizzle)
{
    static const uint32_t chunks[] = {1, 2, 4, 8}; // of a span
    const uint32_t row = byte / 128, chunk = byte % 128 / 16;
    return row * 128 + (chunk ^ row % chunks[swizzle]) * 16 + byte % 16;
}

static uint16_t content(uint64_t element)
{
    return (uint16_t)(element * 40503u >> 3);
}

struct shape {
    int rank, swizzle;
    uint64_t side[FORM_RANKS];
    uint32_t box[FORM_RANKS];
    int at[FORM_RANKS];
};

static void box(const shape &s, int bug, const outcome &o, uint64_t seed)
{
    box_call call = {};
    uint64_t elements = 1, places = 1;
    call.bug = bug;
    call.rank = s.rank;
    call.swizzle = s.swizzle;
    for (int i = 0; i < s.rank; i++) {
        call.side[i] = s.side[i];
        call.box[i] = s.box[i];
        call.at[i] = s.at[i];
        elements *= i == 0 ? (s.side[0] + 7) / 8 * 8 : s.side[i]; // strides are multiples of 16 bytes
        if (i + 1 < s.rank) call.stride[i] = elements * 2;
        places *= s.box[i];
    }
    std::vector<uint16_t> from(elements), to(elements, 0xabcd);
    std::vector<uint8_t> shared(FORM_BOX_BYTES);
    for (uint64_t i = 0; i < elements; i++) from[i] = content(i);
    simt_seed(seed);
    simt_catch();
    uint16_t *df = put(from), *dt = put(to);
    uint8_t *ds = put(shared);
    call.from = df;
    call.to = dt;
    call.shared = ds;
    run_box(&call);
    finish_run();
    take(&to, dt);
    take(&shared, ds);
    cudaFree(df);
    std::vector<uint16_t> want_to(elements, 0xabcd);
    bool right = true;
    for (uint64_t p = 0; p < places; p++) {
        uint64_t rest = p, element = 0;
        bool inside = true;
        for (int i = 0; i < s.rank; i++) {
            const int64_t at = s.at[i] + (int64_t)(rest % s.box[i]);
            rest /= s.box[i];
            inside = inside && at >= 0 && at < (int64_t)s.side[i];
            if (inside) element += (uint64_t)at * (i == 0 ? 1 : call.stride[i - 1] / 2);
        }
        const uint16_t want = inside ? content(element) : 0;
        if (inside) want_to[element] = want;
        const uint32_t byte = place_of((uint32_t)(2 * p), s.swizzle);
        right = right && shared[byte] == (want & 0xff) && shared[byte + 1] == want >> 8;
    }
    right = right && to == want_to;
    char label[96];
    snprintf(label, sizeof label, "box of rank %d at (%d, %d, ...), swizzle %d, bug %d, seed %d", s.rank, s.at[0],
             s.at[1], s.swizzle, bug, (int)seed);
    judge_run(label, o, right);
}

static const shape shapes[] = {
    {1, CU_TENSOR_MAP_SWIZZLE_NONE, {100}, {64}, {50}},
    {1, CU_TENSOR_MAP_SWIZZLE_32B, {40}, {16}, {-3}},
    {2, CU_TENSOR_MAP_SWIZZLE_NONE, {70, 9}, {72, 5}, {-2, 6}},
    {2, CU_TENSOR_MAP_SWIZZLE_32B, {33, 40}, {16, 32}, {20, 11}},
    {2, CU_TENSOR_MAP_SWIZZLE_64B, {33, 40}, {32, 33}, {-1, -1}},
    {2, CU_TENSOR_MAP_SWIZZLE_128B, {64, 40}, {64, 21}, {0, 20}},
    {3, CU_TENSOR_MAP_SWIZZLE_64B, {32, 7, 6}, {32, 5, 3}, {0, -2, 4}},
    {4, CU_TENSOR_MAP_SWIZZLE_NONE, {24, 5, 4, 3}, {8, 3, 4, 2}, {17, 3, -1, 2}},
    {4, CU_TENSOR_MAP_SWIZZLE_128B, {48, 5, 4, 3}, {64, 2, 3, 2}, {-7, 4, 0, 1}},
    {5, CU_TENSOR_MAP_SWIZZLE_32B, {16, 3, 4, 3, 5}, {16, 2, 3, 2, 3}, {1, 2, -1, 2, 3}},
    {5, CU_TENSOR_MAP_SWIZZLE_64B, {40, 3, 4, 3, 2}, {32, 3, 2, 2, 2}, {16, 0, 3, 1, -1}},
};

static void boxes(uint64_t seed)
{
    for (const shape &s : shapes) box(s, FORM_RIGHT, {nullptr, false}, seed);
    box(shapes[7], FORM_FEW_BYTES, {"", false}, seed);
    box(shapes[7], FORM_RANK, {"of rank 5 with a tensor map of rank 4", false}, seed);
    box(shapes[9], FORM_NO_WAIT, {"", false}, seed);
}

int main()
{
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        warps(seed);
        warpgroups(seed);
        boxes(seed);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
