// SPDX-License-Identifier: Apache-2.0
//
// The executor on Hopper's instructions: what is right gives the right result for every seed, and every planted bug is
// stopped with a text, or shows in the result.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include <cuda_bf16.h>

#include "tests/simt/planted_hopper.h"
#include "tests/simt/simt.h"

using namespace kn_simt;

enum { SEEDS = 9 };

struct hopper_case {
    const char *name;
    int bug;
    int rows, depth;
    const char *expected; // part of the failure; "" any; NULL: none
    bool wrong_result;    // stands in the result, with no other sign
};

static const hopper_case cases[] = {
    {"product", BUG_NO_PRODUCT, 64, 256, nullptr, false},
    {"product of ragged rows", BUG_NO_PRODUCT, 50, 192, nullptr, false},
    {"mbarrier init not fenced", BUG_NO_INIT_FENCE, 64, 256, "fence for the asynchronous proxy", false},
    {"empty barrier expects half", BUG_EMPTY_COUNT, 64, 256, "", false},
    {"producer does not wait for empty", BUG_NO_EMPTY_WAIT, 64, 256, "", false},
    {"transaction count too small", BUG_FEW_BYTES, 64, 256, "", false},
    {"transaction count too large", BUG_MANY_BYTES, 64, 256, "deadlock", false},
    {"consumer does not wait for full", BUG_NO_FULL_WAIT, 64, 256, "", false},
    {"no wgmma.fence", BUG_NO_WGMMA_FENCE, 64, 256, "wgmma.fence", false},
    {"wrong swizzle in the descriptor", BUG_SWIZZLE, 64, 256, nullptr, true},
    {"no wgmma.wait_group", BUG_NO_WGMMA_WAIT, 64, 128, "before its wait", false},
    {"stage released before the wait", BUG_EARLY_RELEASE, 64, 512, "race", false},
    {"store", BUG_NO_STORE, 150, 64, nullptr, false},
    {"ragged tail off by one", BUG_STORE_TAIL, 150, 64, "of allocation", false},
    {"no cp.async.wait_group", BUG_NO_COPY_WAIT, 150, 64, "wait is missing", false},
    {"no barrier after cp.async", BUG_NO_COPY_BARRIER, 150, 64, "", false},
    {"tile not swizzled", BUG_STORE_SWIZZLE, 150, 64, nullptr, true},
    {"no fence.proxy.async", BUG_NO_PROXY_FENCE, 150, 64, "fence.proxy.async is missing", false},
    {"no cp.async.bulk.wait_group", BUG_NO_STORE_WAIT, 150, 64, "bulk store", false},
    {"tile reused after the wait", BUG_REUSE, 150, 64, nullptr, false},
    {"tile reused before the wait", BUG_REUSE_EARLY, 150, 64, "race", false},
    {"named barriers", BUG_NO_TURNS, 64, 64, nullptr, false},
    {"named barrier, arrival missing", BUG_NO_ARRIVE, 64, 64, "deadlock", false},
    {"named barrier, wrong count", BUG_BAR_COUNT, 64, 64, "", false},
    {"cluster", BUG_NO_CLUSTER, 128, 64, nullptr, false},
    {"cluster without its barrier", BUG_NO_CLUSTER_BARRIER, 128, 64, "", false},
};

static int passed, failed;

static void judge(bool good, const std::string &label, const std::string &text)
{
    good ? passed++ : failed++;
    if (!good) printf("FAILED %s: %s\n", label.c_str(), text.c_str());
}

static float value_at(int row, int column, int salt)
{
    return (float)((row * 31 + column * 17 + salt) % 15 - 7) / 4; // exact in bf16, sums exact in float
}

static std::vector<uint16_t> matrix(int rows, int columns, int salt)
{
    std::vector<uint16_t> m((size_t)rows * columns);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) m[(size_t)r * columns + c] = simt_bf16_bits(value_at(r, c, salt));
    return m;
}

static bool product_is_right(const hopper_case &c, const std::vector<uint8_t> &out)
{
    const float *got = (const float *)out.data();
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 128; j++) {
            float want = 0;
            for (int k = 0; k < c.depth && i < c.rows; k++) want += value_at(i, k, 1) * value_at(j, k, 2);
            if (got[i * 128 + j] != want) return false;
        }
    return true;
}

static bool store_is_right(const hopper_case &c, const std::vector<uint8_t> &out)
{
    const uint16_t *got = (const uint16_t *)out.data();
    for (int i = 0; i < c.rows; i++)
        for (int j = 0; j < 64; j++)
            if (simt_bf16_float(got[i * 64 + j]) != 2 * value_at(i, j, 1)) return false;
    return true;
}

static bool turns_are_right(const std::vector<uint8_t> &out)
{
    const int *got = (const int *)out.data();
    for (int i = 0; i < 64; i++)
        if (got[i] != (i % 32) * (i % 32)) return false;
    return true;
}

static bool cluster_is_right(const std::vector<uint8_t> &out)
{
    const uint16_t *got = (const uint16_t *)out.data();
    for (int i = 0; i < 256; i++)
        if (simt_bf16_float(got[i]) != value_at(i % 128, 0, 1)) return false;
    return true;
}

static bool is_right(const hopper_case &c, const std::vector<uint8_t> &out)
{
    switch (c.bug) {
    case BUG_NO_PRODUCT:
    case BUG_SWIZZLE: return product_is_right(c, out);
    case BUG_NO_TURNS: return turns_are_right(out);
    case BUG_NO_CLUSTER: return cluster_is_right(out);
    default: return store_is_right(c, out);
    }
}

static void run_case(const hopper_case &c, uint64_t seed)
{
    const std::vector<uint16_t> a = matrix(c.rows, c.depth, 1), b = matrix(128, c.depth, 2);
    std::vector<uint8_t> out(64 * 128 * 4);
    hopper_call call = {c.bug, c.rows, c.depth, nullptr, nullptr, nullptr, nullptr};
    simt_seed(seed);
    simt_catch();
    cudaMalloc(&call.a, a.size() * 2);
    cudaMalloc(&call.b, b.size() * 2);
    cudaMalloc(&call.out, out.size());
    cudaMemcpy(call.a, a.data(), a.size() * 2, cudaMemcpyHostToDevice);
    cudaMemcpy(call.b, b.data(), b.size() * 2, cudaMemcpyHostToDevice);
    run_hopper(&call);
    cudaDeviceSynchronize();
    const std::string text = simt_failure(), label = std::string(c.name) + ", seed " + std::to_string(seed);
    if (seed == 1 && c.expected) printf("%s:\n    %s\n", c.name, text.c_str());
    simt_fail_at(0, 0);
    cudaMemcpy(out.data(), call.out, out.size(), cudaMemcpyDeviceToHost);
    if (c.expected)
        judge(!text.empty() && text.find(c.expected) != std::string::npos, label, text.empty() ? "not noticed" : text);
    else
        judge(text.empty() && is_right(c, out) != c.wrong_result, label,
              !text.empty()    ? text
              : c.wrong_result ? "the result does not show it"
                               : "the result is wrong");
    cudaFree(call.a);
    cudaFree(call.b);
    cudaFree(call.out);
    simt_release();
    simt_clear();
}

int main()
{
    for (const hopper_case &c : cases)
        for (uint64_t seed = 1; seed <= SEEDS; seed++) run_case(c, seed);
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
