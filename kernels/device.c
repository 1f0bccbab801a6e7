/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/device.h"

#include <stdio.h>
#include <string.h>

#include "kernels/device_cuda.h"
#include "kernels/device_internal.h"

kn_status kn_device_open(kn_device **out, const kn_device_params *params)
{
    KN_REQUIRE(out && params && params->name);
    if (strcmp(params->name, "auto") == 0) {
        char first[1][KN_DEVICE_NAME_BYTES];
        kn_device_params chosen = *params;
        kn_device_list(first, 1);
        chosen.name = first[0];
        return kn_device_open(out, &chosen);
    }
    if (strcmp(params->name, "cpu") == 0) return kn_device_cpu_open(out, params);
    if (strcmp(params->name, "cuda") == 0 || strncmp(params->name, "cuda:", 5) == 0)
        return kn_device_cuda_open(out, params);
    return kn_fail(KN_UNAVAILABLE, "device \"%s\" is not available; one of auto, cpu, cuda:N", params->name);
}

int32_t kn_device_list(char (*names)[KN_DEVICE_NAME_BYTES], int32_t capacity)
{
    const int32_t gpus = kn_device_cuda_count();
    const int32_t count = gpus > 0 ? gpus : 1;
    for (int32_t i = 0; i < count && i < capacity; i++) {
        if (gpus > 0)
            snprintf(names[i], KN_DEVICE_NAME_BYTES, "cuda:%d", i);
        else
            snprintf(names[i], KN_DEVICE_NAME_BYTES, "cpu");
    }
    return count;
}

void kn_device_close(kn_device **device)
{
    if (!*device) return;
    (*device)->backend->close(*device);
    *device = NULL;
}

void kn_device_describe(const kn_device *device, kn_device_info *out)
{
    *out = device->info;
}

const kn_ops *kn_device_ops(const kn_device *device)
{
    return &device->ops;
}

kn_status kn_device_alloc(kn_device *device, void **out, size_t bytes)
{
    KN_REQUIRE(device && out);
    return device->backend->alloc(device, out, bytes);
}

void kn_device_free(kn_device *device, void *pointer)
{
    if (pointer) device->backend->free(device, pointer);
}

kn_status kn_stream_create(kn_stream **out, kn_device *device)
{
    KN_REQUIRE(out && device);
    return device->backend->stream_create(out, device);
}

void kn_stream_destroy(kn_stream **stream)
{
    if (!*stream) return;
    (*stream)->device->backend->stream_destroy(*stream);
    *stream = NULL;
}

kn_device *kn_stream_device(const kn_stream *stream)
{
    return stream->device;
}

void *kn_stream_native(kn_stream *stream)
{
    return stream->device->backend->stream_native ? stream->device->backend->stream_native(stream) : NULL;
}

kn_status kn_stream_synchronize(kn_stream *stream)
{
    KN_REQUIRE(stream);
    return stream->device->backend->stream_synchronize(stream);
}

kn_status kn_stream_upload(kn_stream *stream, void *device_memory, const void *host, size_t bytes)
{
    KN_REQUIRE(stream && (bytes == 0 || (device_memory && host)));
    return bytes == 0 ? KN_OK : stream->device->backend->stream_upload(stream, device_memory, host, bytes);
}

kn_status kn_stream_download(kn_stream *stream, void *host, const void *device_memory, size_t bytes)
{
    KN_REQUIRE(stream && (bytes == 0 || (device_memory && host)));
    return bytes == 0 ? KN_OK : stream->device->backend->stream_download(stream, host, device_memory, bytes);
}

kn_status kn_stream_copy(kn_stream *stream, void *destination, const void *source, size_t bytes)
{
    KN_REQUIRE(stream && (bytes == 0 || (destination && source)));
    return bytes == 0 ? KN_OK : stream->device->backend->stream_copy(stream, destination, source, bytes);
}

kn_status kn_stream_copy_rows(kn_stream *stream, void *destination, size_t destination_stride, const void *source,
                              size_t source_stride, size_t row_bytes, int64_t rows)
{
    kn_status st = KN_OK;
    if (rows == 0 || row_bytes == 0) return KN_OK;
    KN_REQUIRE(stream && destination && source && row_bytes <= destination_stride && row_bytes <= source_stride);
    const kn_device_backend *backend = stream->device->backend;
    if (destination_stride == row_bytes && source_stride == row_bytes)
        return backend->stream_copy(stream, destination, source, (size_t)rows * row_bytes);
    if (backend->stream_copy_rows)
        return backend->stream_copy_rows(stream, destination, destination_stride, source, source_stride, row_bytes,
                                         rows);
    for (int64_t i = 0; i < rows; i++)
        KN_TRY(backend->stream_copy(stream, (char *)destination + (size_t)i * destination_stride,
                                    (const char *)source + (size_t)i * source_stride, row_bytes));
fail:
    return st;
}

kn_status kn_stream_zero(kn_stream *stream, void *device_memory, size_t bytes)
{
    KN_REQUIRE(stream && (bytes == 0 || device_memory));
    return bytes == 0 ? KN_OK : stream->device->backend->stream_zero(stream, device_memory, bytes);
}

kn_status kn_event_create(kn_event **out, kn_device *device)
{
    KN_REQUIRE(out && device);
    return device->backend->event_create(out, device);
}

void kn_event_destroy(kn_event **event)
{
    if (!*event) return;
    (*event)->device->backend->event_destroy(*event);
    *event = NULL;
}

kn_status kn_event_record(kn_event *event, kn_stream *stream)
{
    KN_REQUIRE(event && stream && event->device == stream->device);
    const kn_status st = stream->device->backend->event_record(event, stream);
    if (st == KN_OK) event->recorded = true;
    return st;
}

kn_status kn_event_wait(kn_event *event, kn_stream *stream)
{
    KN_REQUIRE(event && stream && event->device == stream->device);
    return stream->device->backend->event_wait(event, stream);
}

kn_status kn_event_elapsed(const kn_event *from, const kn_event *to, int64_t *ns)
{
    KN_REQUIRE(from && to && ns && from->device == to->device && from->recorded && to->recorded);
    return from->device->backend->event_elapsed(from, to, ns);
}
