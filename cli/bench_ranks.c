/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora bench --devices: the scaling curve. One generation on 1, 2, ... ranks of this machine, all of its cores in
 * every row, or a GPU each; bytes that cross are held against the formula of engine/split.h. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/bench_ranks.h"
#include "cli/ranks.h"
#include "cli/table.h"
#include "engine/pack.h"

enum { SIDE = 256, FRAMES = 17, STEPS = 4, STEPS_MAX = 64 };

static const char prompt[] = "a red ball bounces off the backboard";

typedef struct scaling {
    const kn_bench_settings *s;
    kn_cli_devices devices;
    kn_device *device;
    kn_model *model;
    kn_ranks *ranks;
    kn_generation *generation;
    kn_request request;
    double step[STEPS_MAX]; /* seconds, of all but the first */
    int32_t steps;
    double decode;          /* seconds, of all decode slices */
    uint64_t sent, formula; /* bytes of one step, by the first rank */
    double waited;          /* of the steps' time, inside calls */
    int64_t moving_ns, exposed_ns;
} scaling;

static kn_status take_frame(void *context, int64_t index, const float *planes)
{
    (void)context;
    (void)index;
    (void)planes;
    return KN_OK;
}

static kn_status take_end(void *context)
{
    (void)context;
    return KN_OK;
}

static kn_status open_all(scaling *r, int32_t ranks)
{
    kn_status st = KN_OK;
    const kn_bench_settings *s = r->s;
    kn_request *q = &r->request;
    const long cores = s->threads > 0 ? s->threads : sysconf(_SC_NPROCESSORS_ONLN);
    const int32_t threads = cores > ranks ? (int32_t)(cores / ranks) : 1;
    char list[16];
    if (strncmp(s->device, "cuda", 4) == 0)
        snprintf(list, sizeof list, "cuda:0-%d", ranks - 1);
    else
        snprintf(list, sizeof list, "cpu:%d", ranks);
    KN_TRY(kn_cli_parse_devices(&(kn_option){.name = "devices", .out = &r->devices}, list));
    KN_TRY(
        kn_device_open(&r->device, &(kn_device_params){.name = r->devices.name[0], .threads = threads, .isa = s->isa}));
    KN_TRY(kn_model_open(&r->model, &(kn_model_params){.directory = s->model,
                                                       .preset = s->model ? NULL : s->preset,
                                                       .preset_layers = s->model ? 0 : s->layers,
                                                       .device = r->device,
                                                       .precision = s->precision,
                                                       .vae_precision = s->vae_precision}));
    *q = kn_request_empty();
    q->prompt = kn_strdup(prompt);
    if (!q->prompt) KN_TRY(KN_NOMEM);
    q->width = s->width ? s->width : SIDE;
    q->height = s->height ? s->height : SIDE;
    q->frames = s->frames ? s->frames : FRAMES;
    q->steps = s->steps ? s->steps : STEPS;
    q->seed = 1;
    KN_TRY(kn_request_resolve(q, kn_model_repository(r->model), NULL));
    const kn_frame_sink sink = {.frame = take_frame, .finish = take_end};
    KN_TRY(kn_generation_create(&r->generation, r->model, q, &sink, NULL));
    KN_TRY(kn_ranks_start(&r->ranks, &(kn_ranks_params){.devices = &r->devices,
                                                        .model = r->model,
                                                        .directory = s->model,
                                                        .preset = s->model ? NULL : s->preset,
                                                        .preset_layers = s->model ? 0 : s->layers,
                                                        .precision = s->precision,
                                                        .vae_precision = s->vae_precision,
                                                        .isa = s->isa,
                                                        .threads = threads}));
fail:
    return st;
}

static uint64_t formula(const scaling *r)
{
    const kn_latent_shape shape = kn_request_latent(&r->request, kn_model_repository(r->model));
    const kn_dit_context context = {.rows = 1}; /* text does not cross */
    kn_dit_sequence sequences[2];
    for (int i = 0; i < 2; i++)
        sequences[i] = (kn_dit_sequence){.t = shape.t, .h = shape.h, .w = shape.w, .context = &context};
    return kn_dit_exchanged(kn_model_dit(r->model), sequences, r->request.guidance > 1.0 ? 2 : 1,
                            kn_model_group(r->model));
}

static uint64_t step_bytes(const kn_comm_stats *stats)
{
    return stats->sent[KN_COMM_ALL_TO_ALL] + stats->sent[KN_COMM_ALL_GATHER];
}

static kn_status run_slices(scaling *r)
{
    kn_status st = KN_OK;
    int32_t lost = 0;
    double total = 0.0;
    for (kn_slice slice; (slice = kn_generation_next(r->generation)).kind != KN_SLICE_DONE;) {
        const kn_comm_stats before = kn_ranks_stats(r->ranks);
        const int64_t start = kn_clock_ns();
        KN_TRY(kn_ranks_step(r->ranks, r->generation, &lost));
        const double seconds = kn_clock_seconds(kn_clock_ns() - start);
        const kn_comm_stats after = kn_ranks_stats(r->ranks);
        if (slice.kind == KN_SLICE_DECODE) r->decode += seconds;
        if (slice.kind != KN_SLICE_DENOISE || slice.index == 0 || r->steps == STEPS_MAX) continue;
        r->step[r->steps++] = seconds;
        r->sent = step_bytes(&after) - step_bytes(&before);
        r->waited += kn_clock_seconds(after.waited_ns - before.waited_ns);
        r->moving_ns += after.moving_ns - before.moving_ns;
        r->exposed_ns += after.exposed_ns - before.exposed_ns;
        total += seconds;
    }
    r->formula = formula(r);
    r->waited = total > 0.0 ? r->waited / total : 0.0;
    if (lost > 0) st = kn_fail(KN_UNAVAILABLE, "a rank was lost; nothing was measured");
fail:
    return st;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void add_row(kn_table *table, scaling *r, int32_t ranks, const double base[2])
{
    char sent[16], expected[16];
    const double step = r->step[r->steps / 2];
    kn_table_cell(table, "%d", ranks);
    kn_table_cell(table, "%.4f", step);
    kn_table_cell(table, "%.2f", base[0] / step);
    kn_table_cell(table, "%.3f", r->decode);
    kn_table_cell(table, "%.2f", base[1] / r->decode);
    kn_table_cell(table, "%s", kn_cli_bytes(sent, r->sent));
    kn_table_cell(table, "%s", kn_cli_bytes(expected, r->formula));
    kn_table_cell(table, "%+.2f %%", r->formula ? 100.0 * ((double)r->sent / (double)r->formula - 1.0) : 0.0);
    kn_table_cell(table, "%.1f %%", 100.0 * r->waited);
    kn_table_cell(table, "%.1f %%",
                  r->moving_ns > 0 ? 100.0 * (1.0 - (double)r->exposed_ns / (double)r->moving_ns) : 0.0);
}

static void close_all(scaling *r)
{
    kn_ranks_stop(&r->ranks);
    kn_generation_destroy(&r->generation);
    kn_request_release(&r->request);
    kn_model_close(&r->model);
    kn_device_close(&r->device);
}

kn_status kn_bench_ranks(const kn_bench_settings *settings, uint32_t degrees)
{
    kn_status st = KN_OK;
    static const char *const head[] = {"ranks", "step s",  "speed", "decode s", "speed",
                                       "sent",  "formula", "off",   "in calls", "hidden"};
    double base[2] = {0.0, 0.0};
    kn_table table = kn_table_start("rrrrrrrrrr");
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) kn_table_cell(&table, "%s", head[i]);
    for (int32_t ranks = 1; ranks <= KN_COMM_RANKS_MAX; ranks++) {
        if (!(degrees >> ranks & 1)) continue;
        scaling r = {.s = settings};
        st = open_all(&r, ranks);
        if (st == KN_OK) st = run_slices(&r);
        if (st == KN_OK && r.steps == 0) st = kn_fail(KN_INVALID, "--steps is %d; at least 2", r.request.steps);
        if (st == KN_OK) {
            qsort(r.step, (size_t)r.steps, sizeof *r.step, compare);
            if (base[0] == 0.0) {
                base[0] = r.step[r.steps / 2];
                base[1] = r.decode;
            }
            add_row(&table, &r, ranks, base);
        }
        close_all(&r);
        if (st != KN_OK) break;
    }
    const kn_status printed = kn_table_finish(&table, stdout);
    if (st == KN_OK)
        puts("speed: against the first row; sent: by the first rank in one denoise step; formula: engine/split.h;\n"
             "hidden: of the time in which NCCL moved something, what computation covered (CPU ranks move by "
             "themselves)");
    return st == KN_OK ? printed : st;
}
