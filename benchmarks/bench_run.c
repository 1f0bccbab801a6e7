/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame around the parts: the device, the machine's ceilings, the order, and
 * what the parts share. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/mem.h"
#include "benchmarks/bench.h"
#include "benchmarks/bench_http.h"
#include "benchmarks/bench_store.h"
#include "benchmarks/gpu.h"

enum { RANDOM_BLOCK = 1 << 20, RANDOM_SEED = 7 };

/* As kn_model opens a preset. */
#define WEIGHT_DEVIATION 0.02f

const char *kn_bench_part_name(kn_bench_part part)
{
    static const char *const names[KN_BENCH_PARTS] = {"machine", "ops",      "dit",   "vae",
                                                      "text",    "generate", "store", "http"};
    return names[part];
}

const char *kn_bench_type_name(kn_dtype dtype)
{
    return dtype == KN_BF16 ? "bfloat16" : "float32";
}

int32_t kn_bench_types(const kn_bench *bench, kn_precision precision, kn_dtype out[2])
{
    out[0] = precision == KN_PRECISION_BFLOAT16 ? KN_BF16 : KN_F32;
    out[1] = KN_BF16;
    return precision == KN_PRECISION_AUTO && bench->info.native_bf16 ? 2 : 1;
}

uint64_t kn_bench_resident(void)
{
    char line[256];
    uint64_t kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %" SCNu64, &kilobytes) == 1) break;
    fclose(file);
    return kilobytes * 1024;
}

static double load_average(void)
{
    double load = 0.0;
    FILE *file = fopen("/proc/loadavg", "r");
    if (!file) return load;
    if (fscanf(file, "%lf", &load) != 1) load = 0.0;
    fclose(file);
    return load;
}

/* ---- timing ---- */

static int compare_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

kn_status kn_bench_time(kn_bench_row *row, int32_t warm, int32_t repeat, kn_bench_fn *run, void *context)
{
    kn_status st = KN_OK;
    double seconds[KN_BENCH_REPEAT_MAX];
    KN_REQUIRE(repeat >= 1 && repeat <= KN_BENCH_REPEAT_MAX);
    for (int32_t i = 0; i < warm; i++) KN_TRY(run(context));
    for (int32_t i = 0; i < repeat; i++) {
        const int64_t start = kn_clock_ns();
        KN_TRY(run(context));
        seconds[i] = kn_clock_seconds(kn_clock_ns() - start);
    }
    qsort(seconds, (size_t)repeat, sizeof *seconds, compare_seconds);
    row->seconds = repeat % 2 ? seconds[repeat / 2] : 0.5 * (seconds[repeat / 2 - 1] + seconds[repeat / 2]);
    row->best_seconds = seconds[0];
    row->repeat = repeat;
fail:
    return st;
}

/* ---- data ---- */

kn_status kn_bench_random(kn_bench *bench, void **out, int64_t count, kn_dtype dtype)
{
    kn_status st = KN_OK;
    const size_t bytes = kn_dtype_bytes(dtype);
    const int64_t block = count < RANDOM_BLOCK ? count : RANDOM_BLOCK;
    float *values = kn_alloc_array((size_t)block, sizeof *values);
    *out = NULL;
    if (!values) return KN_NOMEM;
    kn_noise_normal(values, block, RANDOM_SEED);
    if (dtype == KN_BF16) /* in place: element i is read before anything behind it is written */
        for (int64_t i = 0; i < block; i++) {
            const uint16_t half = kn_bf16_from_float(values[i]);
            memcpy((char *)values + (size_t)i * sizeof half, &half, sizeof half);
        }
    KN_TRY(kn_device_alloc(bench->device, out, (size_t)count * bytes));
    for (int64_t done = 0; done < count; done += block) {
        const int64_t part = count - done < block ? count - done : block;
        KN_TRY(kn_stream_upload(bench->stream, (char *)*out + (size_t)done * bytes, values, (size_t)part * bytes));
    }
    KN_TRY(kn_stream_synchronize(bench->stream));
fail:
    kn_free(values);
    return st;
}

kn_status kn_bench_open(kn_bench_source *out, const kn_bench_settings *settings, kn_component component)
{
    kn_status st = KN_OK;
    const bool text = component == KN_TEXT_ENCODER;
    *out = (kn_bench_source){0};
    if (settings->model) {
        KN_TRY(kn_repository_open(&out->repository, settings->model));
        KN_TRY(kn_weights_open(&out->weights, out->repository->component_directory[component],
                               kn_component_stem(component)));
        return KN_OK;
    }
    KN_TRY(kn_repository_preset(&out->repository, settings->preset, text ? settings->text_layers : settings->layers));
    KN_TRY(kn_weights_synthetic(&out->weights, WEIGHT_DEVIATION, text ? KN_BF16 : KN_F32, (uint64_t)component + 1));
    return KN_OK;
fail:
    kn_bench_close(out);
    return st;
}

void kn_bench_close(kn_bench_source *source)
{
    kn_weights_close(&source->weights);
    kn_repository_close(&source->repository);
}

/* ---- the machine ---- */

static kn_status measure_cpu(kn_bench *b)
{
    kn_status st = KN_OK;
    double memory;
    KN_TRY(kn_roofline_measure_memory(&memory, b->info.threads));
    KN_TRY(kn_roofline_measure(&b->bound, kn_isa_parse(b->info.tier), b->info.threads));
    b->bound.memory_bytes = memory;
fail:
    return st;
}

static kn_status measure_gpu(kn_bench *b)
{
    kn_gpu *gpu = NULL;
    kn_status st = kn_gpu_open(&gpu, b->stream);
    if (st == KN_OK) st = kn_gpu_bounds(gpu, b->stream, &b->bound);
    kn_gpu_close(&gpu);
    return st;
}

static kn_status measure_machine(kn_bench *b)
{
    kn_status st = KN_OK;
    KN_TRY(b->info.host_memory ? measure_cpu(b) : measure_gpu(b));
    b->machine =
        json_pack("{s:s, s:s, s:i, s:b, s:I, s:f, s:f, s:f, s:f}", "processor", b->info.description, "tier",
                  b->info.tier, "threads", b->info.threads, "native_bf16", b->info.native_bf16, "memory_bytes",
                  (json_int_t)b->info.memory_bytes, "load_average", b->load, "f32_flop_per_second", b->bound.f32_rate,
                  "bf16_flop_per_second", b->bound.bf16_rate, "bandwidth_bytes_per_second", b->bound.memory_bytes);
    if (!b->machine) KN_TRY(kn_fail(KN_NOMEM, "out of memory for the description of the machine"));
    if (!b->settings->json)
        printf("Kinora " KN_VERSION ": %s, %s, %d %s%s, load %.2f\n\n", b->info.description, b->info.tier,
               b->info.threads, b->info.host_memory ? "thread" : "multiprocessor", b->info.threads == 1 ? "" : "s",
               b->load);
    static const char *const cpu[] = {"fused multiply-add", "dot product of pairs", "memory, triad"};
    static const char *const gpu[] = {"cuBLASLt, 8192 cubed", "cuBLASLt, 8192 cubed", "memory, copy"};
    kn_bench_row rows[] = {{.type = "float32", .flop = b->bound.f32_rate},
                           {.type = "bfloat16", .bf16 = true, .flop = b->bound.bf16_rate},
                           {.bytes = b->bound.memory_bytes}};
    for (int i = 0; i < 3; i++) {
        snprintf(rows[i].test, sizeof rows[i].test, "%s", (b->info.host_memory ? cpu : gpu)[i]);
        if (!rows[i].bf16 || b->info.native_bf16) KN_TRY(kn_bench_put(b, &rows[i]));
    }
fail:
    return st;
}

/* ---- the order ---- */

/* A folder or a name that is not there is told before anything is measured. */
static kn_status check_model(const kn_bench_settings *settings)
{
    kn_repository *repository = NULL;
    kn_status st = settings->model ? kn_repository_open(&repository, settings->model)
                                   : kn_repository_preset(&repository, settings->preset, settings->layers);
    kn_repository_close(&repository);
    return st;
}

kn_status kn_bench_run(const kn_bench_settings *settings)
{
    static kn_status (*const parts[KN_BENCH_PARTS])(kn_bench *) = {
        measure_machine, kn_bench_ops,      kn_bench_dit,   kn_bench_vae,
        kn_bench_text,   kn_bench_generate, kn_bench_store, kn_bench_http,
    };
    kn_status st = KN_OK;
    kn_bench b = {.settings = settings, .results = json_array()};
    if (!b.results) return kn_fail(KN_NOMEM, "out of memory for the results");
    KN_TRY(check_model(settings));
    KN_TRY(kn_device_open(
        &b.device, &(kn_device_params){.name = settings->device, .threads = settings->threads, .isa = settings->isa}));
    kn_device_describe(b.device, &b.info);
    KN_TRY(kn_stream_create(&b.stream, b.device));
    for (int i = 0; i < KN_BENCH_PARTS; i++) {
        b.part = (kn_bench_part)i;
        b.load = load_average();
        if (i == KN_BENCH_MACHINE || (settings->parts & 1u << i)) KN_TRY(parts[i](&b));
    }
    KN_TRY(kn_bench_write(&b));
fail:
    json_decref(b.results);
    json_decref(b.machine);
    kn_stream_destroy(&b.stream);
    kn_device_close(&b.device);
    return st;
}
