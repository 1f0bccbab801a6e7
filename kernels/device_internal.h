/* SPDX-License-Identifier: Apache-2.0
 *
 * What a back end provides. device.c checks arguments and calls through this
 * table; back ends assume them. */
#ifndef KN_KERNELS_DEVICE_INTERNAL_H
#define KN_KERNELS_DEVICE_INTERNAL_H

#include "kernels/device.h"

typedef struct kn_device_backend {
    void (*close)(kn_device *device);
    kn_status (*alloc)(kn_device *device, void **out, size_t bytes);
    void (*free)(kn_device *device, void *pointer);
    kn_status (*stream_create)(kn_stream **out, kn_device *device);
    void (*stream_destroy)(kn_stream *stream);
    void *(*stream_native)(kn_stream *stream); /* NULL: there is none */
    kn_status (*stream_synchronize)(kn_stream *stream);
    /* From host memory, to host memory, inside the device. */
    kn_status (*stream_upload)(kn_stream *stream, void *destination, const void *source, size_t bytes);
    kn_status (*stream_download)(kn_stream *stream, void *destination, const void *source, size_t bytes);
    kn_status (*stream_copy)(kn_stream *stream, void *destination, const void *source, size_t bytes);
    /* NULL: row by row with stream_copy. */
    kn_status (*stream_copy_rows)(kn_stream *stream, void *destination, size_t destination_stride, const void *source,
                                  size_t source_stride, size_t row_bytes, int64_t rows);
    kn_status (*stream_zero)(kn_stream *stream, void *memory, size_t bytes);
    kn_status (*event_create)(kn_event **out, kn_device *device);
    void (*event_destroy)(kn_event *event);
    kn_status (*event_record)(kn_event *event, kn_stream *stream);
    kn_status (*event_wait)(kn_event *event, kn_stream *stream);
    kn_status (*event_elapsed)(const kn_event *from, const kn_event *to, int64_t *ns);
} kn_device_backend;

/* Back ends embed these as their first member. */
struct kn_device {
    const kn_device_backend *backend;
    kn_ops ops;
    kn_device_info info;
};

struct kn_stream {
    kn_device *device;
};

struct kn_event {
    kn_device *device;
    bool recorded;
};

kn_status kn_device_cpu_open(kn_device **out, const kn_device_params *params);

#endif
