// SPDX-License-Identifier: Apache-2.0
//
// The executor's own tests: kernels that are right give the right result in every order of threads, and every planted
// bug stops the launch with a text that names it.
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

#include "tests/simt/planted.h"
#include "tests/simt/simt.h"

using namespace kn_simt;

enum { SEEDS = 12 };

struct test_case {
    const char *name;
    planted_kernel kernel;
    int bug;
    int blocks, threads, count;
    const char *expected; // part of the failure; NULL: none
};

static const test_case cases[] = {
    {"block sum", PLANTED_BLOCK_SUM, BUG_NONE, 3, 256, 700, nullptr},
    {"block sum, ragged tail off", PLANTED_BLOCK_SUM, BUG_TAIL, 3, 256, 700, "of allocation"},
    {"block sum, no __syncthreads", PLANTED_BLOCK_SUM, BUG_NO_BARRIER, 1, 256, 256, "race: "},
    {"block sum, shared race", PLANTED_BLOCK_SUM, BUG_RACE, 1, 256, 256, "race: "},
    {"reverse", PLANTED_REVERSE, BUG_NONE, 4, 64, 256, nullptr},
    {"reverse in eight warps", PLANTED_REVERSE, BUG_NONE, 2, 256, 512, nullptr},
    {"reverse in one warp, where eight were", PLANTED_REVERSE, BUG_NONE, 4, 32, 128, nullptr},
    {"reverse, shared bounds", PLANTED_REVERSE, BUG_SHARED_BOUNDS, 4, 64, 256, "dynamic shared memory"},
    {"reverse, early return", PLANTED_REVERSE, BUG_DIVERGENT, 4, 64, 256, ""},
    {"float4", PLANTED_MISALIGNED, BUG_NONE, 1, 32, 64, nullptr},
    {"float4 misaligned", PLANTED_MISALIGNED, BUG_MISALIGNED, 1, 32, 64, "misaligned"},
    {"atomics", PLANTED_BETWEEN_BLOCKS, BUG_NONE, 4, 32, 64, nullptr},
    {"no atomics between blocks", PLANTED_BETWEEN_BLOCKS, BUG_NO_ATOMIC, 4, 1, 64, "between blocks"},
    {"local memory of another thread", PLANTED_LOCAL, BUG_RACE, 1, 32, 64, "another thread's local memory"},
    {"shuffles", PLANTED_SHUFFLE, BUG_NONE, 1, 32, 64, nullptr},
    {"shuffle from outside the mask", PLANTED_SHUFFLE, BUG_MASK, 1, 32, 64, "not in mask"},
    {"shuffle with an absent lane", PLANTED_SHUFFLE, BUG_ABSENT, 1, 32, 64, ""},
};

static int failed, passed;

static void judge(const char *name, bool good, const char *text)
{
    good ? passed++ : failed++;
    if (!good) printf("FAILED %s: %s\n", name, text);
}

// What block_sum and reverse should give, else nothing is compared.
static std::string check_result(const test_case &c, const std::vector<float> &in, const float *out)
{
    for (int i = 0; i < c.count; i++) {
        float want = 0;
        if (c.kernel == PLANTED_BLOCK_SUM)
            for (int j = i / c.threads * c.threads; j < (i / c.threads + 1) * c.threads && j < c.count; j++)
                want += in[(size_t)j];
        else if (c.kernel == PLANTED_REVERSE)
            want = in[(size_t)(i / c.threads * c.threads + c.threads - 1 - i % c.threads)];
        else
            return "";
        if (out[i] != want) return "element " + std::to_string(i) + " is " + std::to_string(out[i]);
    }
    return "";
}

static void run_case(const test_case &c, uint64_t seed)
{
    std::vector<float> in((size_t)c.count);
    for (int i = 0; i < c.count; i++) in[(size_t)i] = (float)(i % 37 - 18);
    float *device_in, *device_out;
    const size_t bytes = (size_t)c.count * sizeof(float);
    simt_seed(seed);
    simt_catch();
    cudaMalloc(&device_in, bytes);
    cudaMalloc(&device_out, bytes);
    cudaMemcpy(device_in, in.data(), bytes, cudaMemcpyHostToDevice);
    cudaMemcpy(device_out, in.data(), bytes, cudaMemcpyHostToDevice);
    const planted p = {c.kernel, c.bug, c.blocks, c.threads, c.count, device_out, device_in, nullptr};
    run_planted(&p);
    cudaDeviceSynchronize();
    const std::string text = simt_failure();
    const std::string label = std::string(c.name) + ", seed " + std::to_string(seed);
    if (c.expected)
        judge(label.c_str(), !text.empty() && text.find(c.expected) != std::string::npos,
              text.empty() ? "was not noticed" : text.c_str());
    else
        judge(label.c_str(), text.empty(), text.c_str());
    if (seed == 1 && c.expected) printf("%s:\n    %s\n", c.name, text.c_str());
    simt_fail_at(0, 0);
    std::vector<float> out((size_t)c.count);
    cudaMemcpy(out.data(), device_out, bytes, cudaMemcpyDeviceToHost);
    if (!c.expected)
        judge(label.c_str(), check_result(c, in, out.data()).empty(), check_result(c, in, out.data()).c_str());
    cudaFree(device_in);
    cudaFree(device_out);
    simt_release();
    simt_clear();
}

int main()
{
    for (const test_case &c : cases)
        for (uint64_t seed = 1; seed <= SEEDS; seed++) run_case(c, seed);
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
