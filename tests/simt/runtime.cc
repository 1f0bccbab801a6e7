// SPDX-License-Identifier: Apache-2.0
//
// The CUDA runtime: memory with guards around it, streams, events, errors. Work on a stream happens at once, or, when
// the seed says so, as late as the API allows: at the synchronisation, event wait or query that makes it visible.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <deque>
#include <functional>
#include <mutex>
#include <set>

#include <cuda_runtime.h>

#include "tests/simt/launch.h"
#include "tests/simt/machine.h"

using namespace simt;

// ---- errors ----

static std::recursive_mutex api;
static cudaError_t last_error, sticky_error;
static uint64_t fail_countdown;
static cudaError_t fail_code;

static simt_calls calls;

simt_calls simt_read_calls(void)
{
    return calls;
}

static bool is_sticky(cudaError_t e)
{
    return e == cudaErrorECCUncorrectable || (e >= cudaErrorIllegalAddress && e <= cudaErrorExternalDevice);
}

static cudaError_t answer(cudaError_t e)
{
    if (e != cudaSuccess && e != cudaErrorNotReady) last_error = e;
    if (is_sticky(e)) sticky_error = e;
    return e;
}

// Every call begins here: a dead context answers its error, an injected failure comes when its turn has come.
static cudaError_t enter()
{
    if (sticky_error != cudaSuccess) return answer(sticky_error);
    if (fail_countdown > 0 && --fail_countdown == 0) return answer(fail_code);
    return cudaSuccess;
}

#define ENTER()                                                                                                        \
    std::lock_guard<std::recursive_mutex> lock(api);                                                                   \
    do {                                                                                                               \
        cudaError_t entered = enter();                                                                                 \
        if (entered != cudaSuccess) return entered;                                                                    \
    } while (0)

#define ERRORS(E)                                                                                                      \
    E(cudaSuccess, "no error")                                                                                         \
    E(cudaErrorInvalidValue, "invalid argument")                                                                       \
    E(cudaErrorMemoryAllocation, "out of memory")                                                                      \
    E(cudaErrorInitializationError, "initialization error")                                                            \
    E(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                 \
    E(cudaErrorNoDevice, "no CUDA-capable device is detected")                                                         \
    E(cudaErrorInvalidDevice, "invalid device ordinal")                                                                \
    E(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")                     \
    E(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                                \
    E(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                       \
    E(cudaErrorNotReady, "device not ready")                                                                           \
    E(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                             \
    E(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                               \
    E(cudaErrorAssert, "device-side assert triggered")                                                                 \
    E(cudaErrorIllegalInstruction, "an illegal instruction was encountered")                                           \
    E(cudaErrorMisalignedAddress, "misaligned address")                                                                \
    E(cudaErrorLaunchFailure, "unspecified launch failure")                                                            \
    E(cudaErrorNotSupported, "operation not supported")                                                                \
    E(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define NAME(code, text)                                                                                               \
    case code: return #code;
        ERRORS(NAME)
#undef NAME
    default: return "unrecognized error code";
    }
}

const char *cudaGetErrorString(cudaError_t error)
{
    if (error == cudaErrorLaunchFailure && simt_failure()[0]) return simt_failure();
    switch (error) {
#define TEXT(code, text)                                                                                               \
    case code: return text;
        ERRORS(TEXT)
#undef TEXT
    default: return "unrecognized error code";
    }
}

cudaError_t cudaGetLastError(void)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    cudaError_t e = sticky_error != cudaSuccess ? sticky_error : last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError(void)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    return sticky_error != cudaSuccess ? sticky_error : last_error;
}

void simt_fail_at(uint64_t n, int error)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    fail_countdown = n;
    fail_code = (cudaError_t)error;
    if (n == 0) sticky_error = last_error = cudaSuccess; // a test's way back to a working device
}

// ---- devices ----

static int device_count()
{
    const char *text = getenv("KN_SIMT_DEVICES");
    return text ? atoi(text) : 1;
}

static size_t memory_total = (size_t)8 << 30, memory_used;

cudaError_t cudaGetDeviceCount(int *count)
{
    ENTER();
    *count = device_count();
    return *count > 0 ? cudaSuccess : answer(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    ENTER();
    return device >= 0 && device < device_count() ? cudaSuccess : answer(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    ENTER();
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    ENTER();
    if (device < 0 || device >= device_count()) return answer(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "simt executor");
    p->totalGlobalMem = memory_total;
    p->sharedMemPerBlock = 48 << 10;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->major = 9;
    p->minor = 0;
    p->multiProcessorCount = 4; // few, so that persistent kernels go round
    p->l2CacheSize = 50 << 20;
    p->asyncEngineCount = 2;
    p->unifiedAddressing = 1;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlockOptin = SHARED_MAX;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess) return e;
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; return cudaSuccess;
    default: return answer(cudaErrorInvalidValue);
    }
}

cudaError_t cudaDriverGetVersion(int *version)
{
    ENTER();
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return cudaDriverGetVersion(version);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    ENTER();
    *total = memory_total;
    *free_bytes = memory_total - memory_used;
    return cudaSuccess;
}

// ---- memory: aligned as CUDA's, with guards on both sides, filled with NaN ----

enum { GUARD = 512, ALIGNMENT = 256, GUARD_BYTE = 0xa5 };

namespace
{
struct guarded {
    char *raw;
    size_t bytes;
};
} // namespace

static std::map<void *, guarded> device_blocks, host_blocks;
static std::set<void *> registered;

static cudaError_t allocate(std::map<void *, guarded> *blocks, void **memory, size_t bytes, const char *kind)
{
    if (bytes == 0) {
        *memory = nullptr;
        return cudaSuccess;
    }
    if (bytes > memory_total - memory_used) return answer(cudaErrorMemoryAllocation);
    char *raw = (char *)malloc(bytes + 2 * GUARD + ALIGNMENT);
    if (!raw) return answer(cudaErrorMemoryAllocation);
    char *data = (char *)(((uintptr_t)raw + GUARD + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset(data - GUARD, GUARD_BYTE, GUARD);
    memset(data + bytes, GUARD_BYTE, GUARD);
    poison(data, bytes);
    (*blocks)[data] = {raw, bytes};
    allocation_add(data, bytes, kind);
    memory_used += bytes;
    *memory = data;
    return cudaSuccess;
}

// Kernels' accesses were checked one by one; this finds what copies and the host wrote beyond.
static void check_guards(void *data, const guarded &g)
{
    const unsigned char *low = (const unsigned char *)data - GUARD, *high = (const unsigned char *)data + g.bytes;
    for (int i = 0; i < GUARD; i++)
        if (low[i] != GUARD_BYTE || high[i] != GUARD_BYTE) {
            fprintf(stderr, "simt: the guard %s an allocation of %zu bytes was written to\n",
                    low[i] != GUARD_BYTE ? "before" : "behind", g.bytes);
            abort();
        }
}

static void drain_all();

static cudaError_t release(std::map<void *, guarded> *blocks, void *memory)
{
    if (!memory) return cudaSuccess;
    auto at = blocks->find(memory);
    if (at == blocks->end()) return answer(cudaErrorInvalidValue);
    check_guards(memory, at->second);
    allocation_remove(memory);
    memory_used -= at->second.bytes;
    free(at->second.raw);
    blocks->erase(at);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    ENTER();
    calls.allocations++;
    return allocate(&device_blocks, memory, bytes, "allocation");
}

cudaError_t cudaFree(void *memory)
{
    ENTER();
    calls.waits++;
    drain_all(); // cudaFree waits for the device
    return release(&device_blocks, memory);
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    (void)flags;
    ENTER();
    calls.allocations++;
    return allocate(&host_blocks, memory, bytes, "pinned allocation");
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    return cudaHostAlloc(memory, bytes, 0);
}

cudaError_t cudaFreeHost(void *memory)
{
    ENTER();
    drain_all();
    return release(&host_blocks, memory);
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    (void)flags;
    ENTER();
    if (!registered.insert(memory).second) return answer(cudaErrorInvalidValue);
    allocation_add(memory, bytes, "registered host memory");
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    ENTER();
    drain_all();
    if (registered.erase(memory) == 0) return answer(cudaErrorInvalidValue);
    allocation_remove(memory);
    return cudaSuccess;
}

void simt_register(void *memory, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    allocation_add(memory, bytes, "buffer");
}

void simt_unregister(void *memory)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    drain_all();
    allocation_remove(memory);
}

// ---- streams: queues whose entries happen now or when somebody must see them ----

struct CUevent_st {
    uint64_t recorded = 0, happened = 0; // numbers of its records
    double time = 0;
};

namespace
{
struct work {
    std::function<cudaError_t()> run;
    CUevent_st *waits_for = nullptr; // an event's record that must have happened before
    uint64_t record = 0;
};
} // namespace

struct CUstream_st {
    std::deque<work> queue;
    bool lazy = false;
};

static std::set<CUstream_st *> streams;
static CUstream_st default_stream;

static CUstream_st *stream_of(cudaStream_t stream)
{
    return stream ? stream : &default_stream;
}

static CUstream_st *recorder_of(CUevent_st *event, uint64_t record);

// Runs the queue's front until it is empty; what it waits for on other streams first.
static cudaError_t drain(CUstream_st *s)
{
    while (!s->queue.empty()) {
        work w = s->queue.front();
        s->queue.pop_front();
        if (w.waits_for && w.waits_for->happened < w.record)
            if (CUstream_st *other = recorder_of(w.waits_for, w.record)) drain(other);
        if (!w.run) continue;
        cudaError_t e = w.run();
        if (e != cudaSuccess) {
            s->queue.clear();
            return answer(e);
        }
    }
    return cudaSuccess;
}

static std::map<std::pair<CUevent_st *, uint64_t>, CUstream_st *> recorders;

static CUstream_st *recorder_of(CUevent_st *event, uint64_t record)
{
    auto at = recorders.find({event, record});
    return at == recorders.end() ? nullptr : at->second;
}

static void drain_all()
{
    drain(&default_stream);
    for (CUstream_st *s : streams) drain(s);
}

static cudaError_t enqueue(cudaStream_t stream, work w)
{
    CUstream_st *s = stream_of(stream);
    if (stream && !streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
    s->queue.push_back(std::move(w));
    return s->lazy ? cudaSuccess : drain(s);
}

static cudaError_t check_range(const void *memory, size_t bytes, bool device)
{
    const size_t left = allocation_left(memory);
    if (device && left == 0) return cudaErrorInvalidValue; // not device memory at all
    if (left != 0 && left < bytes) {
        fprintf(stderr, "simt: a copy of %zu bytes at %s leaves its memory\n", bytes, describe_address(memory).c_str());
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    ENTER();
    CUstream_st *s = new CUstream_st();
    const char *lazy = getenv("KN_SIMT_LAZY");
    s->lazy = lazy ? atoi(lazy) != 0 : true;
    streams.insert(s);
    *stream = s;
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    ENTER();
    calls.waits++;
    if (stream && !streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
    return drain(stream_of(stream));
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    return cudaStreamSynchronize(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    ENTER();
    if (!streams.count(stream)) return answer(cudaErrorInvalidResourceHandle);
    drain(stream);
    for (auto at = recorders.begin(); at != recorders.end();) at = at->second == stream ? recorders.erase(at) : ++at;
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    ENTER();
    calls.waits++;
    drain_all();
    return sticky_error;
}

cudaError_t cudaDeviceReset(void)
{
    std::lock_guard<std::recursive_mutex> lock(api);
    drain_all();
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    ENTER();
    calls.uploads += kind == cudaMemcpyHostToDevice;
    calls.downloads += kind == cudaMemcpyDeviceToHost;
    if (bytes == 0) return cudaSuccess;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    cudaError_t e = check_range(to, bytes, to_device);
    if (e == cudaSuccess) e = check_range(from, bytes, from_device);
    if (e != cudaSuccess) return answer(e);
    work w;
    w.run = [=]() {
        memmove(to, from, bytes);
        return cudaSuccess;
    };
    if (allocation_left(to) && allocation_left(from)) return enqueue(stream, std::move(w));
    // Pageable memory: from it the runtime has staged the bytes when it returns, to it the copy has happened (CUDA
    // Runtime API, "API synchronization behavior").
    if (!allocation_left(from)) {
        char *staged = (char *)malloc(bytes);
        if (!staged) return answer(cudaErrorMemoryAllocation);
        memcpy(staged, from, bytes);
        w.run = [=]() {
            memcpy(to, staged, bytes);
            free(staged);
            return cudaSuccess;
        };
        return enqueue(stream, std::move(w));
    }
    e = enqueue(stream, std::move(w));
    return e == cudaSuccess ? drain(stream_of(stream)) : e;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return e == cudaSuccess ? cudaStreamSynchronize(nullptr) : e;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    for (size_t row = 0; row < height; row++) {
        cudaError_t e =
            cudaMemcpyAsync((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind, stream);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    ENTER();
    if (bytes == 0) return cudaSuccess;
    cudaError_t e = check_range(memory, bytes, true);
    if (e != cudaSuccess) return answer(e);
    work w;
    w.run = [=]() {
        memset(memory, value, bytes);
        return cudaSuccess;
    };
    return enqueue(stream, std::move(w));
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    return cudaMalloc(memory, bytes);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    (void)stream;
    return cudaFree(memory);
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    ENTER();
    *event = new CUevent_st();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    ENTER();
    if (!event) return answer(cudaErrorInvalidResourceHandle);
    if (event->happened < event->recorded)
        if (CUstream_st *s = recorder_of(event, event->recorded)) drain(s);
    for (auto at = recorders.begin(); at != recorders.end();)
        at = at->first.first == event ? recorders.erase(at) : ++at;
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ENTER();
    const uint64_t record = ++event->recorded;
    recorders[{event, record}] = stream_of(stream);
    work w;
    w.run = [=]() {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        event->time = 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
        event->happened = record;
        recorders.erase({event, record});
        return cudaSuccess;
    };
    return enqueue(stream, std::move(w));
}

static cudaError_t finish_event(cudaEvent_t event)
{
    if (event->happened >= event->recorded) return cudaSuccess;
    CUstream_st *s = recorder_of(event, event->recorded);
    return s ? drain(s) : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER();
    calls.waits++;
    return finish_event(event);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return cudaEventSynchronize(event);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    ENTER();
    if (event->happened >= event->recorded) return cudaSuccess;
    work w;
    w.waits_for = event;
    w.record = event->recorded;
    return enqueue(stream, std::move(w));
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t stop)
{
    ENTER();
    if (start->happened == 0 || stop->happened == 0) return answer(cudaErrorNotReady);
    *milliseconds = (float)(stop->time - start->time);
    return cudaSuccess;
}

// ---- kernels, entry points, graphs ----

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    (void)kernel;
    ENTER();
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > SHARED_MAX)
        return answer(cudaErrorInvalidValue);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode)
{
    ENTER();
    return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    ENTER();
    *graph = nullptr;
    return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long)
{
    ENTER();
    return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t)
{
    ENTER();
    return answer(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t)
{
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t)
{
    return cudaSuccess;
}

cudaError_t simt::launch_on_stream(const char *name, const dim3 &grid, const dim3 &block_dim, const dim3 &cluster,
                                   size_t shared, cudaStream_t stream, const void *params, size_t params_bytes,
                                   void (*entry)(const void *params))
{
    ENTER();
    if (block_dim.x * block_dim.y * block_dim.z > 1024 || shared > SHARED_MAX)
        return answer(cudaErrorInvalidConfiguration);
    // Kernel arguments are plain bytes, copied at the launch as CUDA does.
    char *copy = (char *)aligned_alloc(64, (params_bytes + 64) / 64 * 64);
    if (!copy) return answer(cudaErrorMemoryAllocation);
    memcpy(copy, params, params_bytes);
    const dim3 g = grid, b = block_dim, c = cluster;
    const std::string kept = name;
    work w;
    w.run = [=]() {
        cudaError_t e = launch_raw(kept.c_str(), g, b, c, shared, copy, params_bytes, entry);
        free(copy);
        return e;
    };
    return enqueue(stream, std::move(w));
}
