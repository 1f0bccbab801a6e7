/* SPDX-License-Identifier: Apache-2.0
 *
 * A GPU as a device: its memory, streams and events. Uploads go through a ring of pinned memory that several threads
 * fill, so that reading a mapped file, converting it on the device and copying overlap. Nothing here frees or waits on
 * a context that has reported a sticky error: those calls would fail, or hang. */
#include "kernels/cuda/device.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern "C" {
#include "base/mem.h"
}

KN_CUDA_BEGIN

static const size_t STAGING_BYTES = (size_t)8 << 20;
static const size_t SLICE_BYTES = (size_t)256 << 10; /* of a part, copied by one thread */

/* Errors after which every later call on the context fails as well (CUDA runtime API, "sticky"). */
static bool is_sticky(cudaError_t error)
{
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorExternalDevice:
    case cudaErrorMpsClientTerminated: return true;
    default: return false;
    }
}

kn_status cuda_status(cudaError_t error, const char *what)
{
    cudaGetLastError(); /* an error that is not sticky must not be found by the next launch */
    kn_status st = is_sticky(error) ? KN_DEVICE_LOST : error == cudaErrorMemoryAllocation ? KN_NOMEM : KN_BUG;
    return kn_fail(st, "%.80s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* A failure of a call on `device`; remembers the sticky ones. */
static kn_status failed(device_cuda *device, cudaError_t error, const char *what)
{
    kn_status st = cuda_status(error, what);
    if (st == KN_DEVICE_LOST && !device->lost) {
        device->lost = true;
        snprintf(device->lost_why, sizeof device->lost_why, "%s", kn_fail_message());
    }
    return kn_fail_context(st, "%s", device->base.info.name);
}

static kn_status lost(const device_cuda *device)
{
    return kn_fail(KN_DEVICE_LOST, "%s was lost before: %s", device->base.info.name, device->lost_why);
}

#define ON(device_, call)                                                                                              \
    do {                                                                                                               \
        if ((device_)->lost) return lost(device_);                                                                     \
        cudaError_t on_error = (call);                                                                                 \
        if (on_error != cudaSuccess) return failed(device_, on_error, #call);                                          \
    } while (0)

/* ---- memory ---- */

static kn_status cuda_alloc(kn_device *base, void **out, size_t bytes)
{
    device_cuda *device = (device_cuda *)base;
    void *memory = nullptr;
    if (bytes == 0) bytes = 1;
    if (device->lost) return lost(device);
    cudaError_t error = cudaSetDevice(device->ordinal);
    device->counts.allocations++;
    if (error == cudaSuccess) error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total);
        return kn_fail(KN_NOMEM, "%s: %zu MiB of device memory were asked for, %zu of %zu MiB are free",
                       base->info.name, bytes >> 20, free_bytes >> 20, total >> 20);
    }
    if (error != cudaSuccess) return failed(device, error, "cudaMalloc");
    error = cudaMemset(memory, 0, bytes);
    if (error == cudaSuccess) error = cudaDeviceSynchronize(); /* streams here do not wait for the default one */
    if (error != cudaSuccess) {
        if (!is_sticky(error)) cudaFree(memory);
        return failed(device, error, "cudaMemset");
    }
    *out = memory;
    return KN_OK;
}

static void cuda_free(kn_device *base, void *pointer)
{
    device_cuda *device = (device_cuda *)base;
    if (device->lost) return; /* the driver takes it back with the process */
    cudaSetDevice(device->ordinal);
    cudaError_t error = cudaFree(pointer);
    if (error != cudaSuccess) failed(device, error, "cudaFree");
}

/* ---- streams ---- */

static void stream_release(stream_cuda *stream)
{
    device_cuda *device = (device_cuda *)stream->base.device;
    if (!device->lost) {
        cudaSetDevice(device->ordinal);
        if (stream->stream) cudaStreamSynchronize(stream->stream);
        for (int i = 0; i < STAGING_PARTS; i++)
            if (stream->staged[i]) cudaEventDestroy(stream->staged[i]);
        if (stream->staging) cudaFreeHost(stream->staging);
        if (stream->scratch) cudaFree(stream->scratch);
        if (stream->stream) cudaStreamDestroy(stream->stream);
    }
    kn_free(stream);
}

static void cuda_stream_destroy(kn_stream *stream)
{
    stream_release((stream_cuda *)stream);
}

static kn_status cuda_stream_create(kn_stream **out, kn_device *base)
{
    device_cuda *device = (device_cuda *)base;
    if (device->lost) return lost(device);
    stream_cuda *stream = (stream_cuda *)kn_alloc(sizeof *stream);
    if (!stream) return KN_NOMEM;
    stream->base.device = base;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking);
    if (error != cudaSuccess) {
        kn_status st = failed(device, error, "cudaStreamCreateWithFlags");
        stream_release(stream);
        return st;
    }
    *out = &stream->base;
    return KN_OK;
}

static void *cuda_stream_native(kn_stream *base)
{
    return stream_of(base);
}

static kn_status cuda_stream_synchronize(kn_stream *base)
{
    device_cuda *device = device_of(base);
    device->counts.waits++;
    ON(device, cudaStreamSynchronize(stream_of(base)));
    return KN_OK;
}

/* ---- copies ---- */

typedef struct split_copy {
    char *to;
    const char *from;
    size_t bytes;
} split_copy;

static void copy_slice(void *context, int64_t tile, int worker)
{
    (void)worker;
    const split_copy *c = (const split_copy *)context;
    size_t first = (size_t)tile * SLICE_BYTES;
    size_t bytes = c->bytes - first < SLICE_BYTES ? c->bytes - first : SLICE_BYTES;
    memcpy(c->to + first, c->from + first, bytes);
}

static kn_status staging_ready(stream_cuda *stream)
{
    device_cuda *device = (device_cuda *)stream->base.device;
    if (!device->pool) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        kn_status st = kn_pool_create(&device->pool, cores < 1 ? 1 : cores > 8 ? 8 : (int)cores);
        if (st != KN_OK) return st;
    }
    if (stream->staging) return KN_OK;
    ON(device, cudaSetDevice(device->ordinal));
    for (int i = 0; i < STAGING_PARTS; i++)
        if (!stream->staged[i]) ON(device, cudaEventCreateWithFlags(&stream->staged[i], cudaEventDisableTiming));
    ON(device, cudaHostAlloc((void **)&stream->staging, STAGING_PARTS * STAGING_BYTES, cudaHostAllocDefault));
    return KN_OK;
}

/* Parts are reused in turn: the host waits only when the copy engine is a whole ring behind. The last part is filled by
 * several small uploads in turn, so that a vector of a few KiB does not cost a part. */
static kn_status cuda_stream_upload(kn_stream *base, void *destination, const void *source, size_t bytes)
{
    stream_cuda *stream = (stream_cuda *)base;
    device_cuda *device = device_of(base);
    kn_status st = staging_ready(stream);
    if (st != KN_OK) return st;
    device->counts.uploads++;
    for (size_t done = 0; done < bytes;) {
        if (stream->part_used == STAGING_BYTES) {
            stream->part = (stream->part + 1) % STAGING_PARTS;
            ON(device, cudaEventSynchronize(stream->staged[stream->part]));
            stream->part_used = 0;
        }
        size_t space = STAGING_BYTES - stream->part_used;
        size_t now = bytes - done < space ? bytes - done : space;
        char *pinned = stream->staging + (size_t)stream->part * STAGING_BYTES + stream->part_used;
        split_copy copy = {pinned, (const char *)source + done, now};
        if (now > SLICE_BYTES)
            kn_pool_run(device->pool, divide_up((int64_t)now, (int64_t)SLICE_BYTES), copy_slice, &copy);
        else
            memcpy(pinned, copy.from, now);
        ON(device, cudaMemcpyAsync((char *)destination + done, pinned, now, cudaMemcpyHostToDevice, stream->stream));
        ON(device, cudaEventRecord(stream->staged[stream->part], stream->stream));
        stream->part_used += (now + 63) / 64 * 64;
        if (stream->part_used > STAGING_BYTES) stream->part_used = STAGING_BYTES;
        done += now;
    }
    return KN_OK;
}

/* To pageable memory this waits for the copy; downloads are latents and frames, at the end of a slice. */
static kn_status cuda_stream_download(kn_stream *base, void *destination, const void *source, size_t bytes)
{
    ON(device_of(base), cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToHost, stream_of(base)));
    return KN_OK;
}

static kn_status cuda_stream_copy(kn_stream *base, void *destination, const void *source, size_t bytes)
{
    ON(device_of(base), cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToDevice, stream_of(base)));
    return KN_OK;
}

static kn_status cuda_stream_copy_rows(kn_stream *base, void *destination, size_t destination_stride,
                                       const void *source, size_t source_stride, size_t row_bytes, int64_t rows)
{
    ON(device_of(base), cudaMemcpy2DAsync(destination, destination_stride, source, source_stride, row_bytes,
                                          (size_t)rows, cudaMemcpyDeviceToDevice, stream_of(base)));
    return KN_OK;
}

static kn_status cuda_stream_zero(kn_stream *base, void *memory, size_t bytes)
{
    ON(device_of(base), cudaMemsetAsync(memory, 0, bytes, stream_of(base)));
    return KN_OK;
}

kn_status stream_scratch(kn_stream *base, void **out)
{
    stream_cuda *stream = (stream_cuda *)base;
    if (!stream->scratch) {
        device_of(base)->counts.allocations++;
        ON(device_of(base), cudaMalloc(&stream->scratch, SCRATCH_BYTES));
    }
    *out = stream->scratch;
    return KN_OK;
}

/* ---- events ---- */

typedef struct event_cuda {
    kn_event base;
    cudaEvent_t event;
} event_cuda;

static kn_status cuda_event_create(kn_event **out, kn_device *base)
{
    device_cuda *device = (device_cuda *)base;
    if (device->lost) return lost(device);
    event_cuda *event = (event_cuda *)kn_alloc(sizeof *event);
    if (!event) return KN_NOMEM;
    event->base.device = base;
    cudaError_t error = cudaSetDevice(device->ordinal);
    if (error == cudaSuccess) error = cudaEventCreate(&event->event);
    if (error != cudaSuccess) {
        kn_free(event);
        return failed(device, error, "cudaEventCreate");
    }
    *out = &event->base;
    return KN_OK;
}

static void cuda_event_destroy(kn_event *base)
{
    event_cuda *event = (event_cuda *)base;
    if (!((device_cuda *)base->device)->lost) cudaEventDestroy(event->event);
    kn_free(event);
}

static kn_status cuda_event_record(kn_event *event, kn_stream *stream)
{
    ON(device_of(stream), cudaEventRecord(((event_cuda *)event)->event, stream_of(stream)));
    return KN_OK;
}

static kn_status cuda_event_wait(kn_event *event, kn_stream *stream)
{
    ON(device_of(stream), cudaStreamWaitEvent(stream_of(stream), ((event_cuda *)event)->event, 0));
    return KN_OK;
}

static kn_status cuda_event_elapsed(const kn_event *from, const kn_event *to, int64_t *ns)
{
    float milliseconds = 0.0f;
    ON((device_cuda *)from->device, cudaEventElapsedTime(&milliseconds, ((const event_cuda *)from)->event,
                                                         ((const event_cuda *)to)->event));
    *ns = (int64_t)(1e6 * (double)milliseconds);
    return KN_OK;
}

/* ---- the device ---- */

static void cuda_close(kn_device *base)
{
    device_cuda *device = (device_cuda *)base;
    kn_pool_destroy(&device->pool);
    kn_free(device);
}

static kn_device_backend make_backend()
{
    kn_device_backend b = {};
    b.close = cuda_close;
    b.alloc = cuda_alloc;
    b.free = cuda_free;
    b.stream_create = cuda_stream_create;
    b.stream_destroy = cuda_stream_destroy;
    b.stream_native = cuda_stream_native;
    b.stream_synchronize = cuda_stream_synchronize;
    b.stream_upload = cuda_stream_upload;
    b.stream_download = cuda_stream_download;
    b.stream_copy = cuda_stream_copy;
    b.stream_copy_rows = cuda_stream_copy_rows;
    b.stream_zero = cuda_stream_zero;
    b.event_create = cuda_event_create;
    b.event_destroy = cuda_event_destroy;
    b.event_record = cuda_event_record;
    b.event_wait = cuda_event_wait;
    b.event_elapsed = cuda_event_elapsed;
    return b;
}

static const kn_device_backend cuda_backend = make_backend();

static const char *const tier_names[TIER_COUNT] = {"cuda", "sm90"};

static kn_status choose_tier(enum tier *out, const char *wanted, int sm)
{
    enum tier best = sm / 10 == 9 ? TIER_SM90 : TIER_CUDA; /* wgmma and its kin exist on 9.x alone */
    *out = best;
    if (!wanted) return KN_OK;
    for (int i = 0; i < TIER_COUNT; i++) {
        if (strcmp(wanted, tier_names[i]) != 0) continue;
        if (i > best)
            return kn_fail(KN_UNAVAILABLE, "isa \"%s\" is not supported by this GPU (sm_%d); the best is %s", wanted,
                           sm, tier_names[best]);
        *out = (enum tier)i;
        return KN_OK;
    }
    return kn_fail(KN_INVALID, "isa \"%s\" is unknown for a GPU; one of cuda, sm90", wanted);
}

/* "cuda" or "cuda:N". */
static kn_status parse_name(int *ordinal, const char *name)
{
    const char *digits = strchr(name, ':');
    *ordinal = 0;
    if (!digits) return KN_OK;
    int value = 0, length = 0;
    for (const char *c = digits + 1; *c >= '0' && *c <= '9' && length < 4; c++, length++) value = value * 10 + *c - '0';
    if (length == 0 || digits[1 + length] != '\0')
        return kn_fail(KN_INVALID, "device \"%.40s\" is not of the form cuda or cuda:N", name);
    *ordinal = value;
    return KN_OK;
}

static kn_status describe(device_cuda *device, const char *prefix)
{
    cudaDeviceProp properties;
    KN_CUDA_TRY(cudaGetDeviceProperties(&properties, device->ordinal));
    device->sm = properties.major * 10 + properties.minor;
    device->multiprocessors = properties.multiProcessorCount;
    device->shared_max = properties.sharedMemPerBlockOptin;
    kn_device_info *info = &device->base.info;
    snprintf(info->name, sizeof info->name, "%s:%d", prefix, device->ordinal);
    snprintf(info->description, sizeof info->description, "%.100s (sm_%d)", properties.name, device->sm);
    info->threads = properties.multiProcessorCount;
    info->memory_bytes = properties.totalGlobalMem;
    info->native_bf16 = true;
    info->host_memory = false;
    info->domain = 1; /* NCCL finds a way between any two GPUs of a machine */
    if (device->sm < 80)
        return kn_fail(KN_UNAVAILABLE, "%s is a %s; compute capability 8.0 or newer is needed", info->name,
                       info->description);
    return KN_OK;
}

static kn_status open_device(kn_device **out, const kn_device_params *params, const char *prefix)
{
    int count = 0, ordinal;
    kn_status st = parse_name(&ordinal, params->name);
    if (st != KN_OK) return st;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        cudaGetLastError();
        return kn_fail(KN_UNAVAILABLE, "device \"%s\": %s", params->name, cudaGetErrorString(error));
    }
    if (ordinal >= count)
        return kn_fail(KN_UNAVAILABLE, "device \"%s\" is not there; this machine has %d GPU%s", params->name, count,
                       count == 1 ? "" : "s");
    device_cuda *device = (device_cuda *)kn_alloc(sizeof *device);
    if (!device) return KN_NOMEM;
    device->base.backend = &cuda_backend;
    device->ordinal = ordinal;
    st = describe(device, prefix);
    if (st == KN_OK) st = choose_tier(&device->tier, params->isa, device->sm);
    if (st == KN_OK) {
        error = cudaSetDevice(ordinal);
        if (error == cudaSuccess) error = cudaFree(nullptr); /* makes the context */
        if (error != cudaSuccess) st = cuda_status(error, "cudaSetDevice");
    }
    if (st != KN_OK) {
        kn_free(device);
        return st;
    }
    fill_ops(&device->base.ops);
    snprintf(device->base.info.tier, sizeof device->base.info.tier, "%s", tier_names[device->tier]);
    *out = &device->base;
    return KN_OK;
}

KN_CUDA_END

extern "C" {
#if defined(KN_SIMT)
kn_status kn_device_simt_open(kn_device **out, const kn_device_params *params)
{
    return kn_simt::open_device(out, params, "simt");
}
#else
kn_status kn_device_cuda_open(kn_device **out, const kn_device_params *params)
{
    return kn_cuda::open_device(out, params, "cuda");
}

/* Counts device files, as far as CUDA_VISIBLE_DEVICES shows them: a process that has asked the driver cannot fork
 * workers that use it. */
int kn_device_cuda_count(void)
{
    enum { GPUS_MAX = 64 };
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    int count = 0, shown = visible && *visible && *visible != '-' ? 1 : 0;
    char path[32];
    while (count < GPUS_MAX) {
        snprintf(path, sizeof path, "/dev/nvidia%d", count);
        if (access(path, R_OK | W_OK) != 0) break;
        count++;
    }
    for (const char *c = visible; c && *c; c++) shown += *c == ',';
    return visible && shown < count ? shown : count;
}
#endif
}
