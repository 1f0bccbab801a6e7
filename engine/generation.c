/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/generation.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/checkpoint.h"
#include "engine/pack.h"

enum { POSITIVE, NEGATIVE, BRANCHES };

struct kn_generation {
    kn_model *model;
    kn_device *device;
    kn_request request;
    kn_schedule schedule;
    kn_frame_sink sink;
    kn_tensor_tap tap;
    kn_latent_shape shape;
    int64_t elements; /* of one latent tensor */
    int32_t branches; /* 2 with guidance */
    bool text_done;
    int32_t step;      /* denoise steps done */
    int32_t decoded;   /* latent frames decoded */
    int64_t delivered; /* video frames the sink has been given */
    bool finished;
    bool lent; /* this slice is one with helpers */

    void *memory;
    /* All [C, T, H, W] f32 in device memory. */
    float *latents;
    float *velocity[BRANCHES];
    float *x_prev;               /* the corrected sample of the step before (UniPC) */
    float *m, *m_prev, *m_prev2; /* x0 predictions of this and the two steps before (UniPC) */

    void *context_memory[BRANCHES];
    kn_dit_context context[BRANCHES];
    kn_vae_decoder *decoder;
    void *host_picture; /* where frames are brought to, on a device without host memory */
};

const char *kn_slice_name(kn_slice_kind kind)
{
    static const char *const names[] = {"text", "denoise", "decode", "mux", "done"};
    return names[kind];
}

/* ---- life ---- */

static int32_t branches_of(const kn_request *request)
{
    return request->guidance > 1.0 ? BRANCHES : 1;
}

static void lay_out(kn_generation *g, kn_arena *arena)
{
    const size_t bytes = (size_t)g->elements * sizeof(float);
    g->latents = kn_arena_take(arena, bytes);
    for (int i = 0; i < g->branches; i++) g->velocity[i] = kn_arena_take(arena, bytes);
    if (g->schedule.kind == KN_SAMPLER_EULER) return;
    g->x_prev = kn_arena_take(arena, bytes);
    g->m = kn_arena_take(arena, bytes);
    g->m_prev = kn_arena_take(arena, bytes);
    g->m_prev2 = kn_arena_take(arena, bytes);
}

static kn_status copy_request(kn_request *out, const kn_request *in)
{
    *out = *in;
    out->prompt = kn_strdup(in->prompt);
    out->negative_prompt = kn_strdup(in->negative_prompt);
    return out->prompt && out->negative_prompt ? KN_OK : KN_NOMEM;
}

static kn_status create(kn_generation **out, kn_model *model, const kn_request *request, const kn_frame_sink *sink,
                        const kn_tensor_tap *tap)
{
    kn_status st = KN_OK;
    kn_generation *g = kn_alloc(sizeof *g);
    if (!g) return KN_NOMEM;
    g->model = model;
    g->device = kn_stream_device(kn_model_stream(model));
    g->sink = *sink;
    if (tap) g->tap = *tap;
    g->request = kn_request_empty();
    KN_TRY(copy_request(&g->request, request));
    KN_TRY(kn_request_schedule(&g->schedule, request, kn_model_repository(model)));
    g->shape = kn_request_latent(request, kn_model_repository(model));
    g->elements = (int64_t)g->shape.channels * g->shape.t * g->shape.h * g->shape.w;
    g->branches = branches_of(request);
    kn_arena arena = {0};
    lay_out(g, &arena);
    const size_t bytes = arena.peak;
    KN_TRY(kn_device_alloc(g->device, &g->memory, bytes));
    arena = kn_arena_view(g->memory, bytes);
    lay_out(g, &arena);
    *out = g;
    return KN_OK;
fail:
    kn_generation_destroy(&g);
    return st;
}

static kn_status tap_tensor(const kn_generation *g, const char *name, int64_t index, const float *device_data,
                            int32_t rank, const int64_t *shape)
{
    kn_status st = KN_OK;
    if (!g->tap.tensor) return KN_OK;
    int64_t count = 1;
    for (int i = 0; i < rank; i++) count *= shape[i];
    float *host = kn_alloc_array((size_t)count, sizeof *host);
    if (!host) return KN_NOMEM;
    KN_TRY(kn_stream_download(kn_model_stream(g->model), host, device_data, (size_t)count * sizeof *host));
    KN_TRY(kn_stream_synchronize(kn_model_stream(g->model)));
    KN_TRY(g->tap.tensor(g->tap.context, name, index, host, rank, shape));
fail:
    kn_free(host);
    return st;
}

static kn_status tap_latent(const kn_generation *g, const char *name, int64_t index, const float *data)
{
    const int64_t shape[] = {g->shape.channels, g->shape.t, g->shape.h, g->shape.w};
    return tap_tensor(g, name, index, data, 4, shape);
}

kn_status kn_generation_create(kn_generation **out, kn_model *model, const kn_request *request,
                               const kn_frame_sink *sink, const kn_tensor_tap *tap)
{
    kn_status st = KN_OK;
    kn_generation *g = NULL;
    float *noise = NULL;
    KN_TRY(create(&g, model, request, sink, tap));
    noise = kn_alloc_array((size_t)g->elements, sizeof *noise);
    if (!noise) {
        st = KN_NOMEM;
        goto fail;
    }
    kn_noise_normal(noise, g->elements, request->seed);
    KN_TRY(kn_stream_upload(kn_model_stream(model), g->latents, noise, (size_t)g->elements * sizeof *noise));
    KN_TRY(kn_stream_synchronize(kn_model_stream(model)));
    KN_TRY(tap_latent(g, "noise", 0, g->latents));
    kn_free(noise);
    *out = g;
    return KN_OK;
fail:
    kn_free(noise);
    kn_generation_destroy(&g);
    return st;
}

kn_status kn_generation_blank(kn_generation **out, kn_model *model, const kn_request *request)
{
    const kn_frame_sink none = {0}; /* frames come to the first member */
    return create(out, model, request, &none, NULL);
}

static void free_decoder(kn_generation *g)
{
    kn_vae_decoder_destroy(&g->decoder);
    kn_free(g->host_picture);
    g->host_picture = NULL;
}

void kn_generation_destroy(kn_generation **handle)
{
    kn_generation *g = *handle;
    if (!g) return;
    free_decoder(g);
    for (int i = 0; i < BRANCHES; i++) kn_device_free(g->device, g->context_memory[i]);
    kn_device_free(g->device, g->memory);
    kn_request_release(&g->request);
    kn_free(g);
    *handle = NULL;
}

const kn_request *kn_generation_request(const kn_generation *g)
{
    return &g->request;
}

kn_model *kn_generation_model(const kn_generation *g)
{
    return g->model;
}

const kn_schedule *kn_generation_schedule(const kn_generation *g)
{
    return &g->schedule;
}

kn_slice kn_generation_next(const kn_generation *g)
{
    if (g->finished) return (kn_slice){KN_SLICE_DONE, 0, 0};
    if (g->step == g->schedule.steps) { /* also after a resume: decoding needs no text */
        if (g->decoded == g->shape.t) return (kn_slice){KN_SLICE_MUX, 0, 1};
        return (kn_slice){KN_SLICE_DECODE, g->decoded, g->shape.t};
    }
    if (!g->text_done) return (kn_slice){KN_SLICE_TEXT, 0, 1};
    return (kn_slice){KN_SLICE_DENOISE, g->step, g->schedule.steps};
}

static int32_t gather_sequences(kn_generation *const *gs, int32_t count, kn_dit_sequence *out)
{
    int32_t n = 0;
    for (int i = 0; i < count; i++) {
        const kn_generation *g = gs[i];
        for (int b = 0; b < g->branches; b++)
            out[n++] = (kn_dit_sequence){.t = g->shape.t,
                                         .h = g->shape.h,
                                         .w = g->shape.w,
                                         .timestep = g->schedule.timesteps[g->step],
                                         .context = &g->context[b],
                                         .latent = g->latents,
                                         .velocity = g->velocity[b]};
    }
    return n;
}

/* ---- text ---- */

typedef struct text_pack {
    int32_t *ids; /* all prompts end to end */
    int32_t offsets[KN_PACK_SEQUENCES_MAX + 1];
    int32_t sequences;
} text_pack;

static kn_status add_prompt(text_pack *pack, const kn_model *model, const char *prompt)
{
    kn_status st = KN_OK;
    char *clean = NULL;
    int32_t *ids = NULL, count = 0;
    const int32_t used = pack->offsets[pack->sequences];
    if (kn_model_tokenizer(model)) {
        KN_TRY(kn_prompt_clean(&clean, prompt));
        KN_TRY(kn_tokenizer_encode(kn_model_tokenizer(model), clean, strlen(clean), KN_TEXT_TOKENS, &ids, &count));
    } else { /* shapes only: one token a byte will do */
        count = (int32_t)strlen(prompt) + 1;
        if (count > KN_TEXT_TOKENS) count = KN_TEXT_TOKENS;
        ids = kn_alloc_array((size_t)count, sizeof *ids);
        if (!ids) st = KN_NOMEM;
        for (int32_t i = 0; ids && i < count; i++) ids[i] = i + 1 < count ? (unsigned char)prompt[i] : 1;
        if (!ids) goto fail;
    }
    int32_t *all = kn_realloc(pack->ids, (size_t)(used + count) * sizeof *all);
    if (!all) {
        st = KN_NOMEM;
        goto fail;
    }
    pack->ids = all;
    memcpy(all + used, ids, (size_t)count * sizeof *ids);
    pack->offsets[++pack->sequences] = used + count;
fail:
    kn_free(clean);
    kn_free(ids);
    return st;
}

/* Keys and values of one branch from its encoded rows. */
static kn_status build_context(kn_generation *g, int branch, kn_arena *arena, kn_matrix rows)
{
    kn_status st = KN_OK;
    kn_dit *dit = kn_model_dit(g->model);
    KN_TRY(tap_tensor(g, branch == POSITIVE ? "text_positive" : "text_negative", 0, rows.data, 2,
                      (int64_t[]){rows.rows, rows.cols}));
    KN_TRY(kn_device_alloc(g->device, &g->context_memory[branch], kn_dit_context_bytes(dit, (int32_t)rows.rows)));
    KN_TRY(kn_dit_context_build(dit, kn_model_stream(g->model), arena, rows, g->context_memory[branch],
                                &g->context[branch]));
fail:
    return st;
}

/* Bytes of the pack's encoded text and of encoding it. */
static size_t text_bytes(const kn_model *model, const int32_t *offsets, int32_t sequences)
{
    const size_t rows = (size_t)offsets[sequences] * (size_t)kn_model_repository(model)->text.d_model * sizeof(float);
    size_t encode = kn_umt5_workspace(kn_model_text(model), offsets, sequences);
    size_t context = kn_dit_context_workspace(kn_model_dit(model), KN_TEXT_TOKENS);
    return rows + KN_ARENA_ALIGN + (encode > context ? encode : context);
}

/* Room for these generations' steps, so that not even the first of them allocates. */
static kn_status reserve_steps(kn_generation *const *gs, int32_t count)
{
    kn_model *model = gs[0]->model;
    kn_arena arena;
    kn_dit_sequence sequences[KN_PACK_SEQUENCES_MAX];
    const int32_t n = gather_sequences(gs, count, sequences);
    return kn_model_workspace(model, kn_dit_workspace(kn_model_dit(model), sequences, n, kn_model_group(model)),
                              &arena);
}

static kn_status step_text(kn_generation *const *gs, int32_t count)
{
    kn_status st = KN_OK;
    kn_model *model = gs[0]->model;
    text_pack pack = {0};
    kn_arena arena;
    const int64_t d = kn_model_repository(model)->text.d_model;
    for (int i = 0; i < count; i++) {
        KN_TRY(add_prompt(&pack, model, gs[i]->request.prompt));
        if (gs[i]->branches > 1) KN_TRY(add_prompt(&pack, model, gs[i]->request.negative_prompt));
    }
    KN_TRY(kn_model_workspace(model, text_bytes(model, pack.offsets, pack.sequences), &arena));
    kn_matrix rows = {.rows = pack.offsets[pack.sequences], .cols = d, .stride = d, .dtype = KN_F32};
    rows.data = kn_arena_take(&arena, (size_t)(rows.rows * d) * sizeof(float));
    const kn_group *group = kn_model_group(model);
    if (group->index == 0)
        KN_TRY(kn_umt5_encode(kn_model_text(model), kn_model_stream(model), &arena, pack.ids, pack.offsets,
                              pack.sequences, rows));
    KN_TRY(kn_group_broadcast(group, 0, rows.data, (size_t)(rows.rows * d) * sizeof(float)));
    KN_TRY(kn_model_prepare(model, KN_TRANSFORMER));
    for (int i = 0, s = 0; i < count; i++)
        for (int b = 0; b < gs[i]->branches; b++, s++) {
            kn_matrix part = rows;
            part.data = (float *)rows.data + pack.offsets[s] * d;
            part.rows = pack.offsets[s + 1] - pack.offsets[s];
            KN_TRY(build_context(gs[i], b, &arena, part));
        }
    KN_TRY(reserve_steps(gs, count));
    for (int i = 0; i < count; i++) gs[i]->text_done = true;
fail:
    kn_free(pack.ids);
    return st;
}

/* ---- denoise ---- */

/* One sampler step with guidance: v = v_negative + guidance (v_positive - v_negative), x += delta v. */
static kn_status solve(kn_generation *g)
{
    const kn_solver_step s = kn_solver_at(&g->schedule, g->step);
    const float guidance = (float)g->request.guidance, delta = g->m ? -s.sigma : s.euler_delta;
    kn_sampler_step_args args = {
        .x = g->latents,
        .count = g->elements,
        .velocities = g->branches,
        .velocity = {g->velocity[POSITIVE], g->velocity[NEGATIVE]},
        .velocity_weight = {g->branches > 1 ? delta * guidance : delta, delta * (1.0f - guidance)},
        .m = g->m, /* NULL for Euler */
        .x_prev = g->x_prev,
        .m_prev = g->m_prev,
        .m_prev2 = g->m_prev2,
        .corrected = s.corrected};
    memcpy(args.corrector, s.corrector, sizeof args.corrector);
    memcpy(args.predictor, s.predictor, sizeof args.predictor);
    const kn_status st = kn_device_ops(g->device)->sampler_step(kn_model_stream(g->model), &args);
    if (st != KN_OK || !g->m) return st;
    float *oldest = g->m_prev2;
    g->m_prev2 = g->m_prev;
    g->m_prev = g->m;
    g->m = oldest;
    return KN_OK;
}

static kn_status step_denoise(kn_generation *const *gs, int32_t count)
{
    kn_status st = KN_OK;
    kn_model *model = gs[0]->model;
    kn_dit_sequence sequences[KN_PACK_SEQUENCES_MAX];
    const kn_group *group = kn_model_group(model);
    const int32_t n = gather_sequences(gs, count, sequences);
    kn_arena arena;
    KN_TRY(kn_model_workspace(model, kn_dit_workspace(kn_model_dit(model), sequences, n, group), &arena));
    KN_TRY(kn_dit_forward(kn_model_dit(model), kn_model_stream(model), &arena, sequences, n, group));
    KN_TRY(kn_comm_confirm(group->comm)); /* before the state changes */
    for (int i = 0; i < count; i++) {
        kn_generation *g = gs[i];
        for (int b = 0; b < g->branches; b++)
            KN_TRY(tap_latent(g, "velocity", (int64_t)g->step * g->branches + b, g->velocity[b]));
        KN_TRY(solve(g));
        KN_TRY(tap_latent(g, "latents", g->step, g->latents));
        g->step++;
    }
    KN_TRY(kn_stream_synchronize(kn_model_stream(model)));
fail:
    return st;
}

/* ---- decode ---- */

/* Weights that overflow, or are NaN, would otherwise become a film of black frames. */
static kn_status check_finite(const kn_generation *g, const float *host)
{
    for (int64_t i = 0; i < g->elements; i++)
        if (!isfinite(host[i]))
            return kn_fail(KN_CORRUPT, "%s: the model's output is not finite after step %d: latent %" PRId64 " is %g",
                           kn_model_repository(g->model)->root, g->step, i, (double)host[i]);
    return KN_OK;
}

static kn_status check_latents(const kn_generation *g)
{
    kn_status st = KN_OK;
    float *host = kn_alloc_array((size_t)g->elements, sizeof *host);
    if (!host) return KN_NOMEM;
    KN_TRY(kn_stream_download(kn_model_stream(g->model), host, g->latents, (size_t)g->elements * sizeof *host));
    KN_TRY(kn_stream_synchronize(kn_model_stream(g->model)));
    KN_TRY(check_finite(g, host));
fail:
    kn_free(host);
    return st;
}

/* Several ranks gather planes, also for a sink of pictures: the others do not know this one's. */
static kn_picture_layout layout_of(const kn_generation *g, const kn_group *group)
{
    return g->sink.picture && (!group || group->size == 1) ? KN_PICTURE_RGB24 : KN_PICTURE_PLANES;
}

static kn_status deliver(void *context, int64_t index, const void *picture)
{
    kn_status st = KN_OK;
    kn_generation *g = context;
    kn_stream *stream = kn_model_stream(g->model);
    const bool bytes = layout_of(g, kn_model_group(g->model)) == KN_PICTURE_RGB24;
    if (index < g->delivered) return KN_OK; /* decoding began again */
    if (g->host_picture) {
        const size_t values = (size_t)KN_PICTURE_CHANNELS * (size_t)g->request.width * (size_t)g->request.height;
        KN_TRY(kn_stream_download(stream, g->host_picture, picture, bytes ? values : values * sizeof(float)));
        KN_TRY(kn_stream_synchronize(stream));
        picture = g->host_picture;
    }
    KN_TRY(bytes ? g->sink.picture(g->sink.context, index, picture) : g->sink.frame(g->sink.context, index, picture));
    g->delivered = index + 1;
fail:
    return st;
}

/* Room for either layout: which one comes may change with the group. */
static kn_status prepare_host_picture(kn_generation *g)
{
    kn_device_info info;
    kn_device_describe(g->device, &info);
    if (info.host_memory || g->host_picture) return KN_OK;
    g->host_picture = kn_alloc((size_t)3 * (size_t)g->request.width * (size_t)g->request.height * sizeof(float));
    return g->host_picture ? KN_OK : KN_NOMEM;
}

static kn_status make_decoder(kn_generation *g, const kn_group *group)
{
    return kn_vae_decoder_create(&g->decoder, kn_model_vae(g->model), kn_model_stream(g->model), g->shape.h, g->shape.w,
                                 layout_of(g, group), group);
}

static kn_status open_decoder(kn_generation *g)
{
    kn_status st = KN_OK;
    kn_model_workspace_release(g->model);
    KN_TRY(check_latents(g));
    KN_TRY(kn_model_prepare(g->model, KN_VAE));
    KN_TRY(make_decoder(g, kn_model_group(g->model)));
    KN_TRY(prepare_host_picture(g));
fail:
    return st;
}

/* A frame in shares. The decoder of the whole picture, the first member's, is made when there is something to bring
 * back; shares' decoders live as long as this. */
static kn_status decode_with_helpers(kn_generation *g)
{
    kn_status st = KN_OK;
    kn_vae_decoder *share = NULL;
    const kn_group *group = kn_model_group(g->model);
    const int64_t plane = (int64_t)g->shape.h * g->shape.w;
    const bool first = g->decoded == 0, last = g->decoded + 1 == g->shape.t;
    bool returning = false;
    if (first && group->index == 0) KN_TRY(check_latents(g));
    kn_model_workspace_release(g->model);
    KN_TRY(kn_model_prepare(g->model, KN_VAE));
    KN_TRY(kn_vae_decoder_create(&share, kn_model_vae(g->model), kn_model_stream(g->model), g->shape.h, g->shape.w,
                                 layout_of(g, group), group));
    KN_TRY(prepare_host_picture(g));
    if (!first) KN_TRY(kn_vae_decoder_hand_out(share, g->decoder));
    KN_TRY(kn_vae_decode(share, g->latents + g->decoded * plane, g->shape.t * plane, true, deliver, g));
    if (!last) {
        if (!g->decoder && group->index == 0) KN_TRY(make_decoder(g, NULL));
        returning = true;
        KN_TRY(kn_vae_decoder_bring_back(share, g->decoder));
    }
    KN_TRY(kn_comm_confirm(group->comm)); /* before it counts */
    if (++g->decoded == g->shape.t) free_decoder(g);
fail:
    kn_vae_decoder_destroy(&share);
    if (st != KN_OK && returning) kn_generation_rewind(g);
    return st;
}

static kn_status step_decode(kn_generation *g)
{
    kn_status st = KN_OK;
    const int64_t plane = (int64_t)g->shape.h * g->shape.w;
    if (g->lent) return decode_with_helpers(g);
    if (!g->decoder) KN_TRY(open_decoder(g));
    KN_TRY(kn_vae_decode(g->decoder, g->latents + g->decoded * plane, g->shape.t * plane, true, deliver, g));
    if (++g->decoded == g->shape.t) free_decoder(g);
fail:
    return st;
}

static kn_status step_finish(kn_generation *g)
{
    kn_status st = kn_model_group(g->model)->index == 0 ? g->sink.finish(g->sink.context) : KN_OK;
    if (st == KN_OK) g->finished = true;
    return st;
}

kn_status kn_generation_step(kn_generation *const *gs, int32_t count)
{
    kn_status st = KN_OK;
    KN_REQUIRE(count >= 1 && count <= KN_PACK_SEQUENCES_MAX / BRANCHES);
    const kn_slice_kind kind = kn_generation_next(gs[0]).kind;
    for (int i = 1; i < count; i++) {
        KN_REQUIRE(gs[i]->model == gs[0]->model);
        KN_REQUIRE(kn_generation_next(gs[i]).kind == kind);
    }
    switch (kind) {
    case KN_SLICE_TEXT: return step_text(gs, count);
    case KN_SLICE_DENOISE: return step_denoise(gs, count);
    case KN_SLICE_DECODE:
        for (int i = 0; i < count; i++) KN_TRY(step_decode(gs[i]));
        return KN_OK;
    case KN_SLICE_MUX:
        for (int i = 0; i < count; i++) KN_TRY(step_finish(gs[i]));
        return KN_OK;
    case KN_SLICE_DONE: return kn_fail(KN_INVALID, "the generation is done");
    }
fail:
    return st;
}

/* ---- checkpoints ---- */

/* The state tensors a step needs: x_prev and m_prev after one step, m_prev2 after two (UniPC only). */
static void state_tensors(const kn_generation *g, const float *out[4])
{
    const bool history = g->schedule.kind == KN_SAMPLER_UNIPC;
    out[0] = g->latents;
    out[1] = history && g->step >= 1 ? g->x_prev : NULL;
    out[2] = history && g->step >= 1 ? g->m_prev : NULL;
    out[3] = history && g->step >= 2 ? g->m_prev2 : NULL;
}

kn_status kn_generation_save(const kn_generation *g, const char *path)
{
    kn_status st = KN_OK;
    const float *device[4];
    float *host[4] = {0};
    char *request = NULL;
    const size_t bytes = (size_t)g->elements * sizeof(float);
    state_tensors(g, device);
    for (int i = 0; i < 4; i++) {
        if (!device[i]) continue;
        host[i] = kn_alloc(bytes);
        if (!host[i]) {
            st = KN_NOMEM;
            goto fail;
        }
        KN_TRY(kn_stream_download(kn_model_stream(g->model), host[i], device[i], bytes));
    }
    KN_TRY(kn_stream_synchronize(kn_model_stream(g->model)));
    KN_TRY(check_finite(g, host[0]));
    KN_TRY(kn_request_to_json(&request, &g->request));
    KN_TRY(kn_checkpoint_save(&(kn_checkpoint){.request = request,
                                               .model = kn_model_fingerprint(g->model),
                                               .next_step = g->step,
                                               .shape = {g->shape.channels, g->shape.t, g->shape.h, g->shape.w},
                                               .latents = host[0],
                                               .x_prev = host[1],
                                               .m_prev = host[2],
                                               .m_prev2 = host[3]},
                              path));
fail:
    for (int i = 0; i < 4; i++) kn_free(host[i]);
    kn_free(request);
    return st;
}

kn_status kn_generation_saved_request(kn_request *out, const char *path)
{
    kn_status st = KN_OK;
    kn_checkpoint checkpoint = {0};
    KN_TRY(kn_checkpoint_load(&checkpoint, path));
    KN_TRY(kn_request_from_json(out, checkpoint.request, path));
fail:
    kn_checkpoint_release(&checkpoint);
    return st;
}

static kn_status restore(kn_generation *g, const kn_checkpoint *c, const char *path)
{
    kn_status st = KN_OK;
    const int64_t shape[] = {g->shape.channels, g->shape.t, g->shape.h, g->shape.w};
    if (memcmp(shape, c->shape, sizeof shape) != 0)
        return kn_fail(KN_CORRUPT, "%s: the latents are not of the size the request asks for", path);
    if (c->next_step > g->schedule.steps)
        return kn_fail(KN_CORRUPT, "%s: next_step is %d but the request has %d steps", path, c->next_step,
                       g->schedule.steps);
    g->step = c->next_step;
    const float *device[4];
    const float *const saved[4] = {c->latents, c->x_prev, c->m_prev, c->m_prev2};
    state_tensors(g, device);
    for (int i = 0; i < 4; i++) {
        if (!device[i] != !saved[i])
            return kn_fail(KN_CORRUPT, "%s: the sampler's history does not fit step %d", path, g->step);
        if (!saved[i]) continue;
        KN_TRY(kn_stream_upload(kn_model_stream(g->model), (void *)(uintptr_t)device[i], saved[i],
                                (size_t)g->elements * sizeof(float)));
    }
    KN_TRY(kn_stream_synchronize(kn_model_stream(g->model)));
fail:
    return st;
}

kn_status kn_generation_resume(kn_generation **out, kn_model *model, const char *path, const kn_frame_sink *sink,
                               const kn_tensor_tap *tap)
{
    kn_status st = KN_OK;
    kn_checkpoint checkpoint = {0};
    kn_request request = kn_request_empty();
    kn_generation *g = NULL;
    KN_TRY(kn_checkpoint_load(&checkpoint, path));
    if (strcmp(checkpoint.model, kn_model_fingerprint(model)) != 0)
        KN_TRY(kn_fail(KN_UNSUPPORTED, "%s: made with \"%s\"; this is \"%s\", whose bytes would differ", path,
                       checkpoint.model, kn_model_fingerprint(model)));
    KN_TRY(kn_request_from_json(&request, checkpoint.request, path));
    st = kn_request_resolve(&request, kn_model_repository(model), NULL);
    if (st != KN_OK) KN_TRY(kn_fail_context(KN_CORRUPT, "%s: request", path));
    KN_TRY(create(&g, model, &request, sink, tap));
    KN_TRY(restore(g, &checkpoint, path));
    *out = g;
    g = NULL;
fail:
    kn_generation_destroy(&g);
    kn_request_release(&request);
    kn_checkpoint_release(&checkpoint);
    return st;
}

/* ---- several ranks ---- */

void kn_generation_rewind(kn_generation *g)
{
    free_decoder(g);
    g->decoded = 0;
}

/* Where a generation is, as one rank tells the others. */
typedef struct position {
    int32_t step, text_done, decoded, context_rows[BRANCHES];
    float tail_log_weight[BRANCHES];
} position;

static kn_status share_context(kn_generation *g, const kn_group *group, int32_t root, const position *at, int branch)
{
    kn_status st = KN_OK;
    const int32_t rows = at->context_rows[branch];
    const size_t bytes = kn_dit_context_bytes(kn_model_dit(g->model), rows - 1); /* the last row pads */
    if (!g->context_memory[branch]) KN_TRY(kn_device_alloc(g->device, &g->context_memory[branch], bytes));
    KN_TRY(kn_group_broadcast(group, root, g->context_memory[branch], bytes));
    g->context[branch] = (kn_dit_context){
        .memory = g->context_memory[branch], .rows = rows, .tail_log_weight = at->tail_log_weight[branch]};
fail:
    return st;
}

/* Position and the first `count` state tensors of the member `root`, to all; *at_out is the position. */
static kn_status share_state(kn_generation *g, const kn_group *group, int32_t root, int count, position *at_out)
{
    kn_status st = KN_OK;
    position at = {.step = g->step, .text_done = g->text_done, .decoded = g->decoded};
    const float *tensors[4];
    for (int b = 0; b < g->branches; b++) {
        at.context_rows[b] = g->context[b].rows;
        at.tail_log_weight[b] = g->context[b].tail_log_weight;
    }
    KN_TRY(kn_group_message(group, root, &at, sizeof at));
    KN_REQUIRE(at.step >= 0 && at.step <= g->schedule.steps && at.decoded >= 0 && at.decoded <= g->shape.t);
    *at_out = at;
    g->step = at.step;
    state_tensors(g, tensors);
    for (int i = 0; i < count; i++)
        if (tensors[i])
            KN_TRY(kn_group_broadcast(group, root, (void *)(uintptr_t)tensors[i], (size_t)g->elements * sizeof(float)));
    if (at.text_done && at.step < g->schedule.steps) { /* decoding needs no text */
        KN_TRY(kn_model_prepare(g->model, KN_TRANSFORMER));
        for (int b = 0; b < g->branches; b++) KN_TRY(share_context(g, group, root, &at, b));
    }
    g->text_done = at.text_done && at.step < g->schedule.steps;
    KN_TRY(kn_stream_synchronize(kn_model_stream(g->model)));
fail:
    return st;
}

kn_status kn_generation_share(kn_generation *g, const kn_group *group, int32_t root)
{
    position at;
    const kn_status st = share_state(g, group, root, 4, &at);
    if (st == KN_OK) kn_generation_rewind(g);
    return st;
}

kn_status kn_generation_lend(kn_generation *g)
{
    position at;
    const kn_group *group = kn_model_group(g->model);
    KN_REQUIRE(group->size > 1);
    /* The latents alone: a helper's solver step works on anything, and is dropped with the helper's generation. */
    const kn_status st = share_state(g, group, 0, 1, &at);
    if (st != KN_OK) return st;
    g->decoded = at.decoded;
    g->lent = true;
    return KN_OK;
}

void kn_generation_keep(kn_generation *g)
{
    g->lent = false;
}

/* ---- preview and plan ---- */

typedef struct preview {
    float *planes;
    size_t bytes;
    kn_stream *stream;
} preview;

static kn_status keep_preview(void *context, int64_t index, const void *picture)
{
    const preview *p = context;
    return index == 0 ? kn_stream_download(p->stream, p->planes, picture, p->bytes) : KN_OK;
}

kn_status kn_generation_preview(const kn_generation *g, float *planes)
{
    kn_status st = KN_OK;
    kn_vae_decoder *decoder = NULL;
    kn_stream *stream = kn_model_stream(g->model);
    KN_REQUIRE(g->step > 0);
    /* UniPC keeps its estimate of the clean latents. Euler's sample is a mixture; at the end it is the estimate. */
    const float *estimate = g->schedule.kind == KN_SAMPLER_UNIPC ? g->m_prev : g->latents;
    preview p = {planes, (size_t)3 * (size_t)g->request.width * (size_t)g->request.height * sizeof(float), stream};
    KN_TRY(kn_model_prepare(g->model, KN_VAE));
    KN_TRY(kn_vae_decoder_create(&decoder, kn_model_vae(g->model), stream, g->shape.h, g->shape.w, KN_PICTURE_PLANES,
                                 NULL));
    KN_TRY(kn_vae_decode(decoder, estimate, (int64_t)g->shape.t * g->shape.h * g->shape.w, true, keep_preview, &p));
    KN_TRY(kn_stream_synchronize(stream));
fail:
    kn_vae_decoder_destroy(&decoder);
    return st;
}

/* Tokens of each branch: the prompts' own where there is a prompt, else as many as there can be. */
static kn_status count_tokens(const kn_model *model, const kn_request *request, int32_t branches, text_pack *pack)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < branches; i++) {
        if (request->prompt)
            KN_TRY(add_prompt(pack, model, i == POSITIVE ? request->prompt : request->negative_prompt));
        else
            pack->offsets[i + 1] = pack->offsets[i] + KN_TEXT_TOKENS;
    }
    pack->sequences = branches;
fail:
    kn_free(pack->ids);
    pack->ids = NULL;
    return st;
}

kn_status kn_generation_bytes(const kn_model *model, const kn_request *request, kn_memory_plan *plan)
{
    kn_status st = KN_OK;
    const kn_dit *dit = kn_model_dit(model);
    kn_generation g = {.branches = branches_of(request),
                       .shape = kn_request_latent(request, kn_model_repository(model))};
    text_pack pack = {0};
    kn_arena arena = {0};
    KN_TRY(count_tokens(model, request, g.branches, &pack));
    g.schedule.kind = request->sampler;
    g.elements = (int64_t)g.shape.channels * g.shape.t * g.shape.h * g.shape.w;
    lay_out(&g, &arena);
    plan->state = arena.peak + sizeof g;
    kn_dit_sequence sequences[BRANCHES];
    kn_dit_context contexts[BRANCHES];
    for (int i = 0; i < g.branches; i++) {
        const int32_t tokens = pack.offsets[i + 1] - pack.offsets[i];
        plan->state += kn_dit_context_bytes(dit, tokens);
        contexts[i] = (kn_dit_context){.rows = kn_dit_context_rows(tokens)};
        sequences[i] = (kn_dit_sequence){.t = g.shape.t, .h = g.shape.h, .w = g.shape.w, .context = &contexts[i]};
    }
    plan->text_tokens = pack.offsets[g.branches];
    plan->text_workspace = text_bytes(model, pack.offsets, g.branches);
    plan->denoise_workspace = kn_dit_workspace(dit, sequences, g.branches, kn_model_group(model));
fail:
    return st;
}
