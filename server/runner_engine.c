/* SPDX-License-Identifier: Apache-2.0
 *
 * A runner's backend on a real device: kn_model and kn_generation as they are. */
#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "engine/comm_local.h"
#include "engine/comm_nccl.h"
#include "engine/team.h"
#include "server/runner.h"

#define JOIN_NS (INT64_C(1000000) * KN_RUNNER_JOIN_MS)

typedef struct engine {
    kn_device *device;
    kn_stream *stream; /* groups are joined on it, and bound to a model's when that is known */
    kn_precision precision, vae_precision;
} engine;

static void close_engine(void *self)
{
    engine *e = self;
    kn_stream_destroy(&e->stream);
    kn_device_close(&e->device);
    kn_free(e);
}

static void describe(const void *self, kn_device_info *out)
{
    const engine *e = self;
    kn_device_describe(e->device, out);
}

/* ---- models ---- */

static kn_status ignore_frame(void *context, int64_t index, const float *planes)
{
    (void)context;
    (void)index;
    (void)planes;
    return KN_OK;
}

static kn_status ignore_end(void *context)
{
    (void)context;
    return KN_OK;
}

/* One step and one frame of the smallest size: every network runs, what is mapped from files is read, and weights that
 * make no pictures are found before a job needs them. */
static kn_status warm_up(kn_model *model)
{
    kn_status st = KN_OK;
    kn_generation *generation = NULL;
    kn_request request = kn_request_empty();
    const int32_t stages = kn_model_repository(model)->vae.stages;
    const kn_frame_sink sink = {.frame = ignore_frame, .finish = ignore_end};
    request.prompt = kn_strdup("warm-up");
    if (!request.prompt) KN_TRY(KN_NOMEM);
    request.width = request.height = 2 << (stages - 1); /* one patch of 2x2 latents */
    request.frames = request.steps = 1;
    request.guidance = 1.0;
    KN_TRY(kn_request_resolve(&request, kn_model_repository(model), NULL));
    KN_TRY(kn_generation_create(&generation, model, &request, &sink, NULL));
    while (kn_generation_next(generation).kind != KN_SLICE_DONE) KN_TRY(kn_generation_step(&generation, 1));
fail:
    kn_generation_destroy(&generation);
    kn_request_release(&request);
    return st;
}

static void unload(void *self, void *model)
{
    (void)self;
    kn_model *m = model;
    kn_model_close(&m);
}

static kn_status load(void *self, void **out, const char *name, const char *folder, uint64_t *bytes)
{
    kn_status st = KN_OK;
    const engine *e = self;
    kn_model *model = NULL;
    const uint64_t before = kn_mem_read().bytes;
    KN_TRY(kn_model_open(&model, &(kn_model_params){.directory = folder,
                                                    .device = e->device,
                                                    .precision = e->precision,
                                                    .vae_precision = e->vae_precision}));
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) KN_TRY(kn_model_prepare(model, (kn_component)i));
    st = warm_up(model);
    if (st != KN_OK) KN_TRY(kn_fail_context(st, "model %s: a first tiny generation", name));
    kn_model_workspace_release(model);
    *bytes = kn_mem_read().bytes - before;
    *out = model;
    return KN_OK;
fail:
    kn_model_close(&model);
    return st;
}

/* ---- generations ---- */

/* Both as text, so that a checkpoint of another request is told apart in every field. */
static kn_status check_same_request(const kn_generation *generation, const kn_request *wanted)
{
    kn_status st = KN_OK;
    char *a = NULL, *b = NULL;
    KN_TRY(kn_request_to_json(&a, kn_generation_request(generation)));
    KN_TRY(kn_request_to_json(&b, wanted));
    if (strcmp(a, b) != 0) KN_TRY(kn_fail(KN_CORRUPT, "checkpoint: made for another request"));
fail:
    kn_free(a);
    kn_free(b);
    return st;
}

static kn_status parse(kn_request *out, const char *text, const kn_model *model)
{
    kn_status st = kn_request_from_json(out, text, "request");
    if (st == KN_OK) st = kn_request_resolve(out, kn_model_repository(model), NULL);
    if (st == KN_CORRUPT) st = kn_fail_context(KN_INVALID, "job"); /* CORRUPT is kept for checkpoints */
    return st;
}

static kn_status create(void *self, void *model, const char *text, const char *checkpoint, const kn_frame_sink *sink,
                        void **out, kn_video_format *format, char **comment)
{
    (void)self;
    kn_status st = KN_OK;
    kn_generation *generation = NULL;
    kn_request request = kn_request_empty();
    KN_TRY(parse(&request, text, model));
    if (checkpoint) {
        KN_TRY(kn_generation_resume(&generation, model, checkpoint, sink, NULL));
        KN_TRY(check_same_request(generation, &request));
    } else {
        KN_TRY(kn_generation_create(&generation, model, &request, sink, NULL));
    }
    const char *root = kn_model_repository(model)->root, *slash = strrchr(root, '/');
    *comment = kn_format("Kinora " KN_VERSION ", model %s, seed %" PRIu64 ", %d steps, guidance %g",
                         slash ? slash + 1 : root, request.seed, request.steps, request.guidance);
    if (!*comment) KN_TRY(KN_NOMEM);
    *format = (kn_video_format){.width = request.width,
                                .height = request.height,
                                .frames = request.frames,
                                .fps_numerator = request.fps_numerator,
                                .fps_denominator = request.fps_denominator};
    *out = generation;
    generation = NULL;
fail:
    kn_generation_destroy(&generation);
    kn_request_release(&request);
    return st;
}

static void destroy(void *self, void *generation)
{
    (void)self;
    kn_generation *g = generation;
    kn_generation_destroy(&g);
}

static kn_slice next(const void *self, const void *generation)
{
    (void)self;
    return kn_generation_next(generation);
}

static kn_status step(void *self, void *const *generations, int32_t count)
{
    (void)self;
    kn_generation *pack[KN_RUNNER_PACK_MAX];
    for (int32_t i = 0; i < count; i++) pack[i] = generations[i];
    return kn_generation_step(pack, count);
}

/* ---- groups ---- */

static kn_status join(void *self, const kn_runner_group *params, int fd, void **out)
{
    kn_status st = KN_OK;
    const engine *e = self;
    kn_comm *comm = NULL, *over_nccl = NULL;
    KN_TRY(kn_comm_local_join(&comm, &(kn_comm_local_params){.fd = fd,
                                                             .rank = params->rank,
                                                             .epoch = params->epoch,
                                                             .stream = e->stream,
                                                             .limits = {.join_ns = JOIN_NS}}));
    if (params->nccl) {
        KN_TRY(kn_comm_nccl_create(&over_nccl, &(kn_comm_nccl_params){.control = comm}));
        comm = over_nccl;
    }
    *out = comm;
    return KN_OK;
fail:
    kn_comm_destroy(&comm);
    return st;
}

static void leave(void *self, void *group)
{
    (void)self;
    kn_comm *comm = group;
    kn_comm_destroy(&comm);
}

/* The model's slices are the group's until it is set free. */
static void set_group(kn_model *model, kn_comm *comm, int64_t limit_ns)
{
    const kn_group all = kn_group_of(comm, UINT32_MAX);
    kn_comm_bind(comm, kn_model_stream(model));
    kn_comm_set_limit(comm, limit_ns);
    kn_model_set_group(model, &all);
}

static kn_status lead(void *self, void *const *generations, int32_t count, void *group, int64_t limit_ns, bool last)
{
    (void)self;
    kn_generation *pack[KN_RUNNER_PACK_MAX];
    for (int32_t i = 0; i < count; i++) pack[i] = generations[i];
    kn_model *model = kn_generation_model(pack[0]);
    set_group(model, group, limit_ns);
    const kn_status st = kn_team_lead(pack, count, model, last);
    kn_model_set_group(model, NULL);
    return st;
}

static kn_status assist(void *self, void *model, void *group, int64_t limit_ns)
{
    (void)self;
    set_group(model, group, limit_ns);
    const kn_status st = kn_team_assist(model);
    kn_model_set_group(model, NULL);
    return st;
}

static kn_status save(void *self, const void *generation, const char *path)
{
    (void)self;
    return kn_generation_save(generation, path);
}

static kn_status preview(void *self, const void *generation, float **out)
{
    (void)self;
    const kn_request *request = kn_generation_request(generation);
    float *planes = kn_alloc_array((size_t)3 * (size_t)request->width, (size_t)request->height * sizeof *planes);
    if (!planes) return KN_NOMEM;
    const kn_status st = kn_generation_preview(generation, planes);
    if (st == KN_OK)
        *out = planes;
    else
        kn_free(planes);
    return st;
}

kn_status kn_backend_engine_open(kn_backend *out, const kn_runner_params *params)
{
    kn_status st = KN_OK;
    engine *e = kn_alloc(sizeof *e);
    if (!e) return KN_NOMEM;
    e->precision = params->precision;
    e->vae_precision = params->vae_precision;
    const bool cpu = strncmp(params->device, "cpu", 3) == 0; /* a number behind it only tells workers apart */
    KN_TRY(kn_device_open(&e->device, &(kn_device_params){.name = cpu ? "cpu" : params->device,
                                                          .threads = params->threads,
                                                          .isa = params->isa && params->isa[0] ? params->isa : NULL}));
    KN_TRY(kn_stream_create(&e->stream, e->device));
    *out = (kn_backend){.self = e,
                        .close = close_engine,
                        .describe = describe,
                        .load = load,
                        .unload = unload,
                        .create = create,
                        .destroy = destroy,
                        .next = next,
                        .step = step,
                        .join = join,
                        .leave = leave,
                        .lead = lead,
                        .assist = assist,
                        .save = save,
                        .preview = preview};
    return KN_OK;
fail:
    close_engine(e);
    return st;
}
