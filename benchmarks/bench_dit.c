/* SPDX-License-Identifier: Apache-2.0
 *
 * The transformer alone: one forward of one sequence, without guidance. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "benchmarks/bench.h"
#include "engine/pack.h"

/* A sentence of about 25 words, and the same with every padding row computed, as others do. */
enum { TEXT_COUNT = 2 };
static const int32_t text_tokens[TEXT_COUNT] = {30, KN_TEXT_TOKENS};

/* Sizes with figures of other engines: 1950 and 3510 tokens. */
enum { SIZE_COUNT = 2, WIDTH = 416, HEIGHT = 240 };
static const int32_t size_frames[SIZE_COUNT] = {17, 33};

typedef struct dit_bench {
    kn_bench *bench;
    const kn_wan_dit_config *config;
    kn_dit *dit;
    kn_dtype type;
    void *text;               /* [512, text_dim] f32 device */
    void *memory[TEXT_COUNT]; /* of the contexts, device */
    kn_dit_context context[TEXT_COUNT];
    kn_arena arena;
    void *workspace;
    int32_t building; /* the context build_context makes */
    kn_dit_sequence sequence;
} dit_bench;

static kn_status build_context(void *opaque)
{
    dit_bench *d = opaque;
    const int i = d->building;
    const kn_matrix rows = {.data = d->text,
                            .rows = text_tokens[i],
                            .cols = d->config->text_dim,
                            .stride = d->config->text_dim,
                            .dtype = KN_F32};
    return kn_dit_context_build(d->dit, d->bench->stream, &d->arena, rows, d->memory[i], &d->context[i]);
}

static kn_status run_forward(void *opaque)
{
    dit_bench *d = opaque;
    kn_status st = kn_dit_forward(d->dit, d->bench->stream, &d->arena, &d->sequence, 1, NULL);
    return st == KN_OK ? kn_stream_synchronize(d->bench->stream) : st;
}

static kn_status set_workspace(dit_bench *d, size_t bytes)
{
    kn_device_free(d->bench->device, d->workspace);
    d->workspace = NULL;
    d->arena = (kn_arena){0};
    kn_status st = kn_device_alloc(d->bench->device, &d->workspace, bytes);
    if (st == KN_OK) d->arena = kn_arena_view(d->workspace, bytes);
    return st;
}

/* Keys and values of the text are made once a generation, not once a step; that they are is timed by itself. */
static kn_status bench_contexts(dit_bench *d)
{
    kn_status st = KN_OK;
    KN_TRY(kn_bench_random(d->bench, &d->text, (int64_t)KN_TEXT_TOKENS * d->config->text_dim, KN_F32));
    KN_TRY(set_workspace(d, kn_dit_context_workspace(d->dit, KN_TEXT_TOKENS)));
    for (int i = 0; i < TEXT_COUNT; i++) {
        kn_bench_row row = {.type = kn_bench_type_name(d->type)};
        KN_TRY(kn_device_alloc(d->bench->device, &d->memory[i], kn_dit_context_bytes(d->dit, text_tokens[i])));
        d->building = i;
        KN_TRY(kn_bench_time(&row, 1, d->bench->settings->repeat, build_context, d));
        snprintf(row.test, sizeof row.test, "text keys and values, %d rows", d->context[i].rows);
        snprintf(row.note, sizeof row.note, "once a generation");
        row.extra = json_pack("{s:s, s:i, s:i}", "kind", "context", "text_rows", d->context[i].rows, "layers",
                              d->config->num_layers);
        KN_TRY(kn_bench_put(d->bench, &row));
    }
fail:
    return st;
}

static kn_status bench_size(dit_bench *d, const kn_repository *repository, int32_t width, int32_t height,
                            int32_t frames)
{
    kn_status st = KN_OK;
    kn_bench *b = d->bench;
    void *latent = NULL, *velocity = NULL;
    kn_request request = kn_request_empty();
    request.prompt = kn_strdup("");
    if (!request.prompt) return KN_NOMEM;
    request.width = width;
    request.height = height;
    request.frames = frames;
    KN_TRY(kn_request_resolve(&request, repository, NULL));
    const kn_latent_shape shape = kn_request_latent(&request, repository);
    const int64_t pixels = (int64_t)shape.t * shape.h * shape.w;
    KN_TRY(kn_bench_random(b, &latent, pixels * d->config->in_channels, KN_F32));
    KN_TRY(kn_device_alloc(b->device, &velocity, (size_t)(pixels * d->config->out_channels) * sizeof(float)));
    d->sequence = (kn_dit_sequence){
        .t = shape.t, .h = shape.h, .w = shape.w, .timestep = 500.0f, .latent = latent, .velocity = velocity};
    for (int i = 0; i < TEXT_COUNT; i++) {
        kn_bench_row row = {.type = kn_bench_type_name(d->type), .bf16 = d->type == KN_BF16};
        const int64_t tokens = kn_sequence_rows(&d->sequence);
        d->sequence.context = &d->context[i];
        const size_t workspace = kn_dit_workspace(d->dit, &d->sequence, 1, NULL);
        KN_TRY(set_workspace(d, workspace));
        KN_TRY(kn_bench_time(&row, 1, b->settings->repeat, run_forward, d));
        row.flop = kn_dit_flop(d->config, &d->sequence, 1);
        snprintf(row.test, sizeof row.test, "%d tokens, %d text rows", (int)tokens, d->context[i].rows);
        snprintf(row.note, sizeof row.note, "%d layers, %dx%d, %d frames", d->config->num_layers, request.width,
                 request.height, request.frames);
        row.extra =
            json_pack("{s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:f, s:I}", "kind", "forward", "tokens", (json_int_t)tokens,
                      "text_rows", d->context[i].rows, "layers", d->config->num_layers, "width", request.width,
                      "height", request.height, "frames", request.frames, "seconds_per_layer",
                      row.seconds / d->config->num_layers, "workspace_bytes", (json_int_t)workspace);
        KN_TRY(kn_bench_put(b, &row));
    }
fail:
    kn_request_release(&request);
    kn_device_free(b->device, latent);
    kn_device_free(b->device, velocity);
    return st;
}

static kn_status bench_type(kn_bench *b, const kn_bench_source *source, kn_dtype type)
{
    kn_status st = KN_OK;
    const kn_bench_settings *s = b->settings;
    dit_bench d = {.bench = b, .config = &source->repository->dit, .type = type};
    KN_TRY(kn_dit_create(&d.dit, d.config, source->weights, b->stream, type));
    KN_TRY(kn_dit_prepare(d.dit, b->stream));
    KN_TRY(bench_contexts(&d));
    if (s->width || s->frames) {
        KN_TRY(bench_size(&d, source->repository, s->width ? s->width : WIDTH, s->height ? s->height : HEIGHT,
                          s->frames ? s->frames : size_frames[0]));
    } else {
        for (int i = 0; i < SIZE_COUNT; i++) KN_TRY(bench_size(&d, source->repository, WIDTH, HEIGHT, size_frames[i]));
    }
fail:
    kn_device_free(b->device, d.workspace);
    for (int i = 0; i < TEXT_COUNT; i++) kn_device_free(b->device, d.memory[i]);
    kn_device_free(b->device, d.text);
    kn_dit_destroy(&d.dit);
    return st;
}

kn_status kn_bench_dit(kn_bench *b)
{
    kn_status st = KN_OK;
    kn_bench_source source = {0};
    kn_dtype types[2];
    const int32_t count = kn_bench_types(b, b->settings->precision, types);
    KN_TRY(kn_bench_open(&source, b->settings, KN_TRANSFORMER));
    for (int32_t i = 0; i < count; i++) KN_TRY(bench_type(b, &source, types[i]));
fail:
    kn_bench_close(&source);
    return st;
}
