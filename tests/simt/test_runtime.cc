// SPDX-License-Identifier: Apache-2.0
//
// The runtime that stands in for CUDA's, the device built on it, and conversions: what a stream has not been waited for
// has not happened, errors stay when they are sticky, and every call of the runtime can fail.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tests/simt/planted.h"
#include "tests/simt/simt.h"

extern "C" {
#include "base/half.h"
#include "base/mem.h"
#include "kernels/device_cuda.h"
}

static int passed, failed;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (condition) {                                                                                               \
            passed++;                                                                                                  \
        } else {                                                                                                       \
            failed++;                                                                                                  \
            printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition);                                              \
        }                                                                                                              \
    } while (0)

// ---- conversions, against other implementations ----

static void test_conversions()
{
    int wrong = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        const float f = simt_half_float((unsigned short)bits), other = kn_f16_to_float((uint16_t)bits);
        if (!(f == other || (f != f && other != other))) wrong++;
        if (f == f && simt_half_bits(f) != bits) wrong++;
        const float b = simt_bf16_float((unsigned short)bits);
        if (b == b && simt_bf16_bits(b) != bits) wrong++;
    }
    CHECK(wrong == 0);
    uint64_t random = 1;
    for (int i = 0; i < 2000000; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const float f = __uint_as_float((unsigned)(random >> 32));
        if (f != f) continue;
        const _Float16 h = (_Float16)f; // the compiler's own rounding
        unsigned short want;
        memcpy(&want, &h, sizeof want);
        if (simt_half_bits(f) != want) wrong++;
        if (simt_bf16_bits(f) != kn_bf16_from_float(f)) wrong++;
    }
    CHECK(wrong == 0);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(-3e9f) == (int)0x80000000u && __float2int_rn(NAN) == 0);
    CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7531) == 0x77553311u);
    CHECK(__funnelshift_l(0x80000000u, 1, 1) == 3 && __brev(1) == 0x80000000u);
}

// ---- streams and events ----

static void test_streams()
{
    float *pinned, *device, *back;
    cudaStream_t one, two;
    cudaEvent_t event;
    CHECK(cudaHostAlloc((void **)&pinned, 64, 0) == cudaSuccess && cudaHostAlloc((void **)&back, 64, 0) == cudaSuccess);
    CHECK(cudaMalloc(&device, 64) == cudaSuccess);
    CHECK(cudaStreamCreate(&one) == cudaSuccess && cudaStreamCreate(&two) == cudaSuccess);
    CHECK(cudaEventCreate(&event) == cudaSuccess);
    pinned[0] = 1;
    CHECK(cudaMemcpyAsync(device, pinned, 64, cudaMemcpyHostToDevice, one) == cudaSuccess);
    pinned[0] = 2; // overwritten too early: the copy has not happened yet
    CHECK(cudaMemcpyAsync(back, device, 64, cudaMemcpyDeviceToHost, one) == cudaSuccess);
    back[0] = 0;
    CHECK(cudaStreamSynchronize(one) == cudaSuccess);
    CHECK(back[0] == 2);

    // What another stream did is there after its event, not before.
    pinned[0] = 3;
    CHECK(cudaMemcpyAsync(device, pinned, 64, cudaMemcpyHostToDevice, one) == cudaSuccess);
    CHECK(cudaMemcpyAsync(back, device, 64, cudaMemcpyDeviceToHost, two) == cudaSuccess);
    CHECK(cudaStreamSynchronize(two) == cudaSuccess);
    CHECK(back[0] == 2);
    CHECK(cudaEventRecord(event, one) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(two, event, 0) == cudaSuccess);
    CHECK(cudaMemcpyAsync(back, device, 64, cudaMemcpyDeviceToHost, two) == cudaSuccess);
    CHECK(cudaStreamSynchronize(two) == cudaSuccess);
    CHECK(back[0] == 3);
    CHECK(cudaEventSynchronize(event) == cudaSuccess);

    // Pageable memory is staged: it may be reused at once.
    float plain = 4;
    CHECK(cudaMemcpyAsync(device, &plain, sizeof plain, cudaMemcpyHostToDevice, one) == cudaSuccess);
    plain = 5;
    CHECK(cudaMemcpyAsync(&plain, device, sizeof plain, cudaMemcpyDeviceToHost, one) == cudaSuccess);
    CHECK(plain == 4);

    CHECK(cudaMemcpyAsync(device, pinned, 65, cudaMemcpyHostToDevice, one) == cudaErrorInvalidValue);
    CHECK(cudaMemsetAsync(&plain, 0, 4, one) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
    cudaStreamDestroy(one);
    cudaStreamDestroy(two);
    CHECK(cudaStreamSynchronize(one) == cudaErrorInvalidResourceHandle);
    cudaEventDestroy(event);
    CHECK(cudaFree(device) == cudaSuccess && cudaFree(device) == cudaErrorInvalidValue);
    cudaFreeHost(pinned);
    cudaFreeHost(back);
    void *huge;
    CHECK(cudaMalloc(&huge, (size_t)1 << 40) == cudaErrorMemoryAllocation);
    cudaGetLastError();
}

static void test_errors()
{
    void *memory;
    simt_fail_at(2, cudaErrorMemoryAllocation);
    CHECK(cudaSetDevice(0) == cudaSuccess);
    CHECK(cudaMalloc(&memory, 16) == cudaErrorMemoryAllocation);
    CHECK(cudaMalloc(&memory, 16) == cudaSuccess && cudaFree(memory) == cudaSuccess);
    simt_fail_at(1, cudaErrorIllegalAddress);
    CHECK(cudaMalloc(&memory, 16) == cudaErrorIllegalAddress);
    CHECK(cudaSetDevice(0) == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress); // sticky
    simt_fail_at(0, 0);
    CHECK(cudaGetLastError() == cudaSuccess);
}

// ---- the device of kernels/cuda on it ----

// Uploads, copies, zeroes and downloads; whatever fails is reported, and nothing leaks.
static kn_status use_device(const char **wrong)
{
    kn_status st = KN_OK;
    kn_device *device = nullptr;
    kn_stream *stream = nullptr, *other = nullptr;
    kn_event *event = nullptr, *later = nullptr;
    int64_t ns = -1;
    void *a = nullptr, *b = nullptr;
    kn_device_params params = {};
    char in[1000], out[1000];
    for (int i = 0; i < 1000; i++) in[i] = (char)(i * 7);
    memset(out, 1, sizeof out);
    params.name = "simt";
    KN_TRY(kn_device_simt_open(&device, &params));
    KN_TRY(kn_device_alloc(device, &a, sizeof in));
    KN_TRY(kn_device_alloc(device, &b, sizeof in));
    KN_TRY(kn_stream_create(&stream, device));
    KN_TRY(kn_stream_create(&other, device));
    KN_TRY(kn_event_create(&event, device));
    KN_TRY(kn_event_create(&later, device));
    KN_TRY(kn_stream_upload(stream, a, in, sizeof in));
    KN_TRY(kn_stream_zero(stream, b, sizeof in));
    KN_TRY(kn_stream_copy(stream, b, a, 500));
    KN_TRY(kn_event_record(event, stream));
    KN_TRY(kn_event_wait(event, other));
    KN_TRY(kn_stream_download(other, out, b, sizeof out));
    KN_TRY(kn_event_record(later, other));
    KN_TRY(kn_stream_synchronize(other));
    KN_TRY(kn_event_elapsed(event, later, &ns));
    if (ns < 0) *wrong = "what waited was there before what it waited for";
    for (int i = 0; i < 1000; i++)
        if (out[i] != (i < 500 ? in[i] : 0)) *wrong = "the bytes are wrong";
fail:
    if (event) kn_event_destroy(&event);
    if (later) kn_event_destroy(&later);
    if (other) kn_stream_destroy(&other);
    if (stream) kn_stream_destroy(&stream);
    if (device) {
        kn_device_free(device, a);
        kn_device_free(device, b);
        kn_device_close(&device);
    }
    return st;
}

// Every call of the runtime fails in turn, in a way that passes and in a way that does not.
static void test_device_failures()
{
    enum { CALLS_MAX = 400 };
    const cudaError_t errors[] = {cudaErrorMemoryAllocation, cudaErrorLaunchFailure, cudaErrorUnknown};
    const char *wrong = nullptr;
    const uint64_t held = kn_mem_read().bytes;
    CHECK(use_device(&wrong) == KN_OK && !wrong);
    for (cudaError_t error : errors) {
        int n = 1, reported = 0;
        for (; n < CALLS_MAX; n++) {
            simt_fail_at((uint64_t)n, error);
            const kn_status st = use_device(&wrong);
            const bool hit = cudaPeekAtLastError() != cudaSuccess || st != KN_OK;
            reported += st != KN_OK;
            if (st == KN_OK && wrong) break;
            // Before the device is open nothing can be lost: it is not to be had.
            if (st != KN_OK && error == cudaErrorLaunchFailure && st != KN_DEVICE_LOST && st != KN_UNAVAILABLE)
                wrong = "sticky, not lost";
            if (st != KN_OK && !strstr(kn_fail_message(), cudaGetErrorString(error)) &&
                error != cudaErrorMemoryAllocation)
                wrong = "the text lacks CUDA's";
            if (wrong) break;
            simt_fail_at(0, 0);
            if (!hit && n > 20) break; // past the last call
        }
        if (wrong) printf("call %d, error %d: %s: %s\n", n, (int)error, wrong, kn_fail_message());
        CHECK(!wrong && reported >= 10);
        simt_fail_at(0, 0);
        wrong = nullptr;
    }
    CHECK(kn_mem_read().bytes == held);
}

int main()
{
    test_conversions();
    test_streams();
    test_errors();
    test_device_failures();
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
