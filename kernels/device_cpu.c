/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU as a device: host memory, a stream that runs every call at once, and
 * a pool of threads that share out an operator's tiles. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cpu.h"

static void cpu_close(kn_device *device)
{
    kn_device_cpu *cpu = (kn_device_cpu *)device;
    kn_pool_destroy(&cpu->pool);
    kn_free(cpu->scratch);
    kn_free(cpu);
}

static kn_status cpu_alloc(kn_device *device, void **out, size_t bytes)
{
    (void)device;
    *out = kn_alloc(bytes);
    return *out ? KN_OK : KN_NOMEM;
}

static void cpu_free(kn_device *device, void *pointer)
{
    (void)device;
    kn_free(pointer);
}

static kn_status cpu_stream_create(kn_stream **out, kn_device *device)
{
    kn_stream *stream = kn_alloc(sizeof *stream);
    if (!stream) return KN_NOMEM;
    stream->device = device;
    *out = stream;
    return KN_OK;
}

static void cpu_stream_destroy(kn_stream *stream)
{
    kn_free(stream);
}

static kn_status cpu_stream_synchronize(kn_stream *stream)
{
    (void)stream;
    return KN_OK;
}

static kn_status cpu_stream_copy(kn_stream *stream, void *destination, const void *source, size_t bytes)
{
    (void)stream;
    memmove(destination, source, bytes);
    return KN_OK;
}

static kn_status cpu_stream_zero(kn_stream *stream, void *memory, size_t bytes)
{
    (void)stream;
    memset(memory, 0, bytes);
    return KN_OK;
}

typedef struct event_cpu {
    kn_event base;
    int64_t at_ns;
} event_cpu;

static kn_status cpu_event_create(kn_event **out, kn_device *device)
{
    event_cpu *event = kn_alloc(sizeof *event);
    if (!event) return KN_NOMEM;
    event->base.device = device;
    *out = &event->base;
    return KN_OK;
}

static void cpu_event_destroy(kn_event *event)
{
    kn_free(event);
}

static kn_status cpu_event_record(kn_event *event, kn_stream *stream)
{
    (void)stream;
    ((event_cpu *)event)->at_ns = kn_clock_ns();
    return KN_OK;
}

/* A recorded event is already in the past. */
static kn_status cpu_event_wait(kn_event *event, kn_stream *stream)
{
    (void)event;
    (void)stream;
    return KN_OK;
}

static kn_status cpu_event_elapsed(const kn_event *from, const kn_event *to, int64_t *ns)
{
    *ns = ((const event_cpu *)to)->at_ns - ((const event_cpu *)from)->at_ns;
    return KN_OK;
}

static const kn_device_backend cpu_backend = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_synchronize = cpu_stream_synchronize,
    .stream_upload = cpu_stream_copy,
    .stream_download = cpu_stream_copy,
    .stream_copy = cpu_stream_copy,
    .stream_zero = cpu_stream_zero,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_wait = cpu_event_wait,
    .event_elapsed = cpu_event_elapsed,
};

static void read_processor_name(char *out, size_t bytes)
{
    snprintf(out, bytes, "unknown processor");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) return;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, bytes, "%s", colon + 2);
        break;
    }
    fclose(file);
}

static kn_status choose_isa(kn_isa *out, const char *wanted)
{
    kn_isa best = kn_isa_detect();
    *out = best;
    if (!wanted) return KN_OK;
    kn_isa isa = kn_isa_parse(wanted);
    if (isa == KN_ISA_COUNT)
        return kn_fail(KN_INVALID, "isa \"%s\" is unknown; one of ref, avx2, avx512, avx512bf16", wanted);
    if (isa > best)
        return kn_fail(KN_UNAVAILABLE, "isa \"%s\" is not supported by this processor; the best is %s", wanted,
                       kn_isa_name(best));
    *out = isa;
    return KN_OK;
}

kn_status kn_device_cpu_open(kn_device **out, const kn_device_params *params)
{
    kn_status st = KN_OK;
    kn_device *device = NULL;
    kn_isa isa;
    KN_TRY(choose_isa(&isa, params->isa));

    kn_device_cpu *cpu = kn_alloc(sizeof *cpu);
    if (!cpu) return KN_NOMEM;
    device = &cpu->base;
    device->backend = &cpu_backend;
    kn_ops_fill(&device->ops, isa);
    KN_TRY(kn_pool_create(&cpu->pool, params->threads));
    int threads = kn_pool_threads(cpu->pool);
    cpu->scratch = kn_alloc_array((size_t)threads, KN_CPU_SCRATCH_BYTES);
    if (!cpu->scratch) {
        st = KN_NOMEM;
        goto fail;
    }

    kn_device_info *info = &device->info;
    snprintf(info->name, sizeof info->name, "cpu");
    read_processor_name(info->description, sizeof info->description);
    snprintf(info->tier, sizeof info->tier, "%s", kn_isa_name(isa));
    info->threads = threads;
    info->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    info->native_bf16 = isa >= KN_ISA_AVX512BF16;
    info->host_memory = true;
    info->domain = 1;
    *out = device;
    return KN_OK;

fail:
    kn_device_close(&device);
    return st;
}
