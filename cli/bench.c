/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora bench: options of benchmarks/bench.h. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "benchmarks/bench.h"
#include "cli/bench_ranks.h"
#include "cli/cli.h"
#include "cli/options.h"

enum { LAYERS = 6, TEXT_LAYERS = 2, REPEAT = 3 };

/* "dit,vae": a bit for each. */
static kn_status parse_parts(const kn_option *option, const char *text)
{
    uint32_t *parts = option->out;
    *parts = 0;
    for (const char *at = text;;) {
        const size_t bytes = strcspn(at, ",");
        int part = 0;
        while (part < KN_BENCH_PARTS && (strlen(kn_bench_part_name((kn_bench_part)part)) != bytes ||
                                         strncmp(kn_bench_part_name((kn_bench_part)part), at, bytes) != 0))
            part++;
        if (part == KN_BENCH_PARTS)
            return kn_fail(KN_INVALID,
                           "--%s is \"%s\"; its parts are machine, ops, dit, vae, text, generate, store and http",
                           option->name, text);
        *parts |= 1u << part;
        at += bytes;
        if (*at == '\0') return KN_OK;
        at++;
    }
}

/* "1,2,4": a bit for each number of ranks. */
static kn_status parse_degrees(const kn_option *option, const char *text)
{
    uint32_t *degrees = option->out;
    *degrees = 0;
    for (const char *at = text;; at += 2) {
        if (*at < '1' || *at > '8' || (at[1] != ',' && at[1] != '\0'))
            return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be numbers of 1 to 8, separated by commas",
                           option->name, text);
        *degrees |= 1u << (*at - '0');
        if (at[1] == '\0') return KN_OK;
    }
}

static kn_status parse_settings(kn_bench_settings *s, uint32_t *degrees, int argc, char **argv)
{
    kn_cli_extent size = {0};
    bool layers_given = false;
    const kn_option options[] = {
        {"only", 0, "PARTS", "some of machine,ops,dit,vae,text,generate,store,http; default all but the last two",
         parse_parts, &s->parts, NULL},
        {"model", 'm', "DIR", "a model folder, with all its layers", kn_cli_text, &s->model, NULL},
        {"preset", 0, "NAME", "random weights of wan2.1-1.3b (default) or wan2.1-14b", kn_cli_text, &s->preset, NULL},
        {"layers", 0, "N", "transformer layers of the preset; default 6", kn_cli_int32, &s->layers, &layers_given},
        {"text-layers", 0, "N", "text encoder layers of the preset; default 2", kn_cli_int32, &s->text_layers,
         &layers_given},
        {"size", 0, "WxH", "pixels; default 416x240, a whole generation 128x128", kn_cli_size, &size, NULL},
        {"frames", 0, "N", "video frames; default 17, the transformer also 33", kn_cli_int32, &s->frames, NULL},
        {"steps", 0, "N", "denoise steps of a whole generation; default 4", kn_cli_int32, &s->steps, NULL},
        {"precision", 0, "TYPE", "float32 or bfloat16; auto: both where bfloat16 is native", kn_cli_precision,
         &s->precision, NULL},
        {"vae-precision", 0, "TYPE", "the same for the autoencoder", kn_cli_precision, &s->vae_precision, NULL},
        {"device", 0, "NAME", "cpu", kn_cli_text, &s->device, NULL},
        {"threads", 0, "N", "CPU threads; default all cores", kn_cli_int32, &s->threads, NULL},
        {"isa", 0, "TIER", "highest CPU tier: ref, avx2, avx512, avx512bf16", kn_cli_text, &s->isa, NULL},
        {"devices", 0, "N,...", "instead: a generation on so many CPU ranks (--device cuda: GPUs), 1 to 8",
         parse_degrees, degrees, NULL},
        {"repeat", 'r', "N", "runs of which the median is reported; default 3", kn_cli_int32, &s->repeat, NULL},
        {"long", 0, NULL, "longer clips, and text weights from a temporary file (0.8 GB in $TMPDIR)", kn_cli_switch,
         &s->thorough, NULL},
        {"json", 0, NULL, "one JSON document on standard output instead of the table", kn_cli_switch, &s->json, NULL},
        {"out", 'o', "FILE", "also write the JSON document to a file", kn_cli_text, &s->out, NULL},
    };
    kn_status st = KN_OK;
    KN_TRY(kn_cli_parse(argc, argv, options, sizeof options / sizeof *options, "bench [OPTIONS]", NULL, 0, NULL));
    s->width = size.width;
    s->height = size.height;
    if (s->model && (s->preset || layers_given))
        return kn_fail(KN_INVALID, "--model measures the folder as it is; --preset and layers do not go with it");
    if (s->repeat > KN_BENCH_REPEAT_MAX)
        return kn_fail(KN_INVALID, "--repeat is %d; at most %d", s->repeat, KN_BENCH_REPEAT_MAX);
    if (!s->preset) s->preset = "wan2.1-1.3b";
fail:
    return st;
}

int kn_cli_bench(int argc, char **argv)
{
    kn_bench_settings s = {.parts = (1u << KN_BENCH_STORE) - 1,
                           .layers = LAYERS,
                           .text_layers = TEXT_LAYERS,
                           .repeat = REPEAT,
                           .device = "cpu"};
    uint32_t degrees = 0;
    kn_status st = parse_settings(&s, &degrees, argc, argv);
    if (st == KN_CANCELLED) return 0; /* --help */
    if (st == KN_OK) st = degrees ? kn_bench_ranks(&s, degrees) : kn_bench_run(&s);
    return kn_cli_end(st, s.json);
}
