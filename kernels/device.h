/* SPDX-License-Identifier: Apache-2.0
 *
 * Devices: where memory lives and operators run. A device is opened by name
 * ("cpu"; "cuda:0" where the build has CUDA) and carries its own table
 * of operators. Nothing about a device is global, so several can be open.
 *
 * Threading: one thread owns a device, its streams and its buffers. */
#ifndef KN_KERNELS_DEVICE_H
#define KN_KERNELS_DEVICE_H

#include "base/arena.h"
#include "base/status.h"
#include "kernels/ops.h"

typedef struct kn_device kn_device;
typedef struct kn_event kn_event;

typedef struct kn_device_params {
    const char *name; /* "cpu", "cuda:0" ("cuda" is the same), "auto": the first of kn_device_list */
    int32_t threads;  /* CPU: worker threads including the caller; 0: all cores */
    const char *isa;  /* highest tier to use: "ref", "avx2", "avx512", "avx512bf16"; on a GPU "cuda", "sm90"; NULL: the
                         best there is */
} kn_device_params;

/* KN_INVALID: a tier that does not exist. KN_UNAVAILABLE: no such device, or a
 * tier this processor lacks. */
kn_status kn_device_open(kn_device **out, const kn_device_params *params);
void kn_device_close(kn_device **device);

enum { KN_DEVICE_NAME_BYTES = 32 };

/* The devices that "auto" means: every GPU of this machine, or else "cpu". Writes the first `capacity` names and
 * returns how many there are. Opens nothing. */
int32_t kn_device_list(char (*names)[KN_DEVICE_NAME_BYTES], int32_t capacity);

typedef struct kn_device_info {
    char name[32];         /* "cpu", "cuda:0" */
    char description[128]; /* processor or board name */
    char tier[16];         /* best operator tier in the table */
    int32_t threads;       /* CPU threads, or multiprocessors */
    uint64_t memory_bytes; /* total */
    bool native_bf16;      /* bf16 products at full rate */
    bool host_memory;      /* device pointers can be read and written by the host */
    int32_t domain;        /* devices of one kind and domain can share slices; 0: it is always alone */
} kn_device_info;

void kn_device_describe(const kn_device *device, kn_device_info *out);
const kn_ops *kn_device_ops(const kn_device *device);

/* Device memory, zeroed, 64-byte aligned. Free accepts NULL. */
kn_status kn_device_alloc(kn_device *device, void **out, size_t bytes);
void kn_device_free(kn_device *device, void *pointer);

/* A stream orders operators and copies; on a CPU each call has finished when it
 * returns. */
kn_status kn_stream_create(kn_stream **out, kn_device *device);
void kn_stream_destroy(kn_stream **stream);
kn_device *kn_stream_device(const kn_stream *stream);
/* The stream as the maker's libraries know it: cudaStream_t; NULL on a CPU. */
void *kn_stream_native(kn_stream *stream);

/* Waits until everything queued has finished; reports what failed meanwhile. */
kn_status kn_stream_synchronize(kn_stream *stream);

/* Host to device and back, in stream order. The host block may be reused after
 * the next synchronisation. Large uploads from ordinary memory overlap reading it
 * with copying (a GPU's go through pinned memory). */
kn_status kn_stream_upload(kn_stream *stream, void *device_memory, const void *host, size_t bytes);
kn_status kn_stream_download(kn_stream *stream, void *host, const void *device_memory, size_t bytes);
/* Inside the device. */
kn_status kn_stream_copy(kn_stream *stream, void *destination, const void *source, size_t bytes);
kn_status kn_stream_zero(kn_stream *stream, void *device_memory, size_t bytes);

/* Copies `rows` rows of `row_bytes`; strides in bytes. Inside the device. */
kn_status kn_stream_copy_rows(kn_stream *stream, void *destination, size_t destination_stride, const void *source,
                              size_t source_stride, size_t row_bytes, int64_t rows);

/* Marks a point in one stream that another can wait for. */
kn_status kn_event_create(kn_event **out, kn_device *device);
void kn_event_destroy(kn_event **event);
kn_status kn_event_record(kn_event *event, kn_stream *stream);
kn_status kn_event_wait(kn_event *event, kn_stream *stream);
/* The device's time from one recorded point to another, in nanoseconds; negative where `to` was passed first. Both are
 * in the past (a stream that waited for them was synchronised); KN_INVALID: one was never recorded. */
kn_status kn_event_elapsed(const kn_event *from, const kn_event *to, int64_t *ns);

#endif
