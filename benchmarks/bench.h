/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora bench: parts that measure this machine and the engine on it, and rows
 * that report what they found.
 *
 * Everything runs with the shapes of a published model and random weights, or with
 * a model folder. Each time stands beside the least it could be on this machine,
 * which is measured first (roofline.h). benchmarks/README.md tells what each row
 * means. */
#ifndef KN_BENCHMARKS_BENCH_H
#define KN_BENCHMARKS_BENCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "benchmarks/roofline.h"
#include "engine/model.h"

/* In the order they run. */
typedef enum kn_bench_part {
    KN_BENCH_MACHINE,
    KN_BENCH_OPS,
    KN_BENCH_DIT,
    KN_BENCH_VAE,
    KN_BENCH_TEXT,
    KN_BENCH_GENERATE,
    KN_BENCH_STORE,
    KN_BENCH_HTTP,
    KN_BENCH_PARTS,
} kn_bench_part;

const char *kn_bench_part_name(kn_bench_part part);

enum { KN_BENCH_REPEAT_MAX = 100 };

typedef struct kn_bench_settings {
    uint32_t parts;              /* bit i: part i; the machine is measured whatever it says */
    const char *model;           /* a model folder; or NULL */
    const char *preset;          /* shapes of a published model, where no folder is given */
    int32_t layers, text_layers; /* of a preset */
    int32_t width, height;       /* pixels; 0: each part's own */
    int32_t frames, steps;       /* 0: each part's own */
    int32_t repeat;              /* runs of which the median is reported, 1..KN_BENCH_REPEAT_MAX */
    int32_t threads;             /* 0: all cores */
    const char *device, *isa;    /* isa may be NULL */
    kn_precision precision;      /* AUTO: float32, and bfloat16 where it is native; in `generate`, the engine's AUTO */
    kn_precision vae_precision;  /* the same; in `generate`, the engine's AUTO */
    bool thorough;               /* what takes long or writes temporary files too */
    bool json;                   /* no table */
    const char *out;             /* JSON document to write; or NULL */
} kn_bench_settings;

/* Runs the parts, printing rows as they come. */
kn_status kn_bench_run(const kn_bench_settings *settings);

/* ---- for the parts ---- */

typedef struct kn_bench {
    const kn_bench_settings *settings;
    kn_device *device;
    kn_device_info info;
    kn_stream *stream;
    kn_roofline bound;
    kn_bench_part part; /* the one running */
    double load;        /* load average over a minute, when the part began */
    bool headed;        /* the table has its head */
    json_t *machine, *results;
} kn_bench;

typedef struct kn_bench_row {
    char test[64];
    const char *type;    /* "float32", "bfloat16"; NULL: does not apply */
    double seconds;      /* median of a run; 0: not a time */
    double best_seconds; /* 0: measured once */
    int32_t repeat;
    double flop;   /* operations of a run; without seconds, per second */
    double bytes;  /* read and written by a run; without seconds, per second; 0: does not matter */
    bool bf16;     /* judged by the peak for bfloat16 products */
    char note[96]; /* for the table */
    json_t *extra; /* more members for the JSON object; taken */
} kn_bench_row;

kn_status kn_bench_put(kn_bench *bench, kn_bench_row *row);
kn_status kn_bench_write(const kn_bench *bench); /* the document, to standard output or file, as the settings say */

typedef kn_status kn_bench_fn(void *context);

/* Calls run() `warm` times untimed, then `repeat` times, at most KN_BENCH_REPEAT_MAX; fills seconds (the median),
 * best_seconds and repeat. */
kn_status kn_bench_time(kn_bench_row *row, int32_t warm, int32_t repeat, kn_bench_fn *run, void *context);

/* Types to measure for a precision setting; returns how many. */
int32_t kn_bench_types(const kn_bench *bench, kn_precision precision, kn_dtype out[2]);
const char *kn_bench_type_name(kn_dtype dtype);

/* Anonymous memory of the process that is resident now, in bytes; mapped files are not counted. */
uint64_t kn_bench_resident(void);

/* `count` normal values of this type in device memory, a block of them repeated. kn_device_free() them. */
kn_status kn_bench_random(kn_bench *bench, void **out, int64_t count, kn_dtype dtype);

/* Configuration and one component's weights, from the folder or the preset. */
typedef struct kn_bench_source {
    kn_repository *repository;
    kn_weights *weights;
} kn_bench_source;

kn_status kn_bench_open(kn_bench_source *out, const kn_bench_settings *settings, kn_component component);
void kn_bench_close(kn_bench_source *source);

kn_status kn_bench_ops(kn_bench *bench);
kn_status kn_bench_dit(kn_bench *bench);
kn_status kn_bench_vae(kn_bench *bench);
kn_status kn_bench_text(kn_bench *bench);
kn_status kn_bench_generate(kn_bench *bench);
kn_status kn_bench_startup(kn_bench *bench); /* part of `generate` */

#endif
