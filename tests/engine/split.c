/* SPDX-License-Identifier: Apache-2.0
 *
 * The same bytes, however many ranks share the work: every request of every fixture, and the demo model, on 1, 2, 3, 4
 * and 8 worker processes in float32 and bfloat16, with the degree changing between slices, and with ranks that die.
 * What one process makes alone is the judge, bit for bit; nothing is allowed for rounding, because no sum is divided.
 */
#define _GNU_SOURCE
#include "tests/engine/splitting.h"

static uint64_t sent_for_steps(const kn_comm *comm)
{
    const kn_comm_stats stats = kn_comm_read_stats(comm);
    return stats.sent[KN_COMM_ALL_TO_ALL] + stats.sent[KN_COMM_ALL_GATHER];
}

/* The bytes of a denoise step are those of the formula, and nothing else crosses. */
static void step_counted(const rank_context *ctx, kn_generation *g, const subject *s, const kn_request *r)
{
    const kn_latent_shape shape = kn_request_latent(r, kn_model_repository(s->model));
    const kn_dit_context context = {.rows = 7};
    kn_dit_sequence sequences[2];
    const int32_t count = r->guidance > 1.0 ? 2 : 1;
    for (int i = 0; i < 2; i++)
        sequences[i] = (kn_dit_sequence){.t = shape.t, .h = shape.h, .w = shape.w, .context = &context};
    const kn_comm_stats before = kn_comm_read_stats(ctx->comm);
    const uint64_t sent = sent_for_steps(ctx->comm);
    RANK_OK(kn_generation_step(&g, 1));
    const kn_comm_stats after = kn_comm_read_stats(ctx->comm);
    RANK_CHECK(sent_for_steps(ctx->comm) - sent ==
               kn_dit_exchanged(kn_model_dit(s->model), sequences, count, kn_model_group(s->model)));
    for (int kind = 0; kind < KN_COMM_KINDS; kind++)
        if (kind != KN_COMM_ALL_TO_ALL && kind != KN_COMM_ALL_GATHER)
            RANK_CHECK(after.sent[kind] == before.sent[kind] && after.calls[kind] == before.calls[kind]);
}

static kn_status run_split(rank_context *ctx)
{
    const work *w = ctx->user;
    subject s = open_on(ctx->device, w);
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    kn_model_set_group(s.model, &all);
    for (size_t i = 0; i < w->requests; i++) {
        kn_request request = work_request(w, i, &s);
        recording r = {0};
        kn_generation *g = NULL;
        const kn_frame_sink sink = recording_sink(&r, &request);
        const kn_tensor_tap tap = recording_tap(&r);
        RANK_OK(kn_generation_create(&g, s.model, &request, &sink, &tap));
        for (kn_slice slice; (slice = kn_generation_next(g)).kind != KN_SLICE_DONE;) {
            if (slice.kind == KN_SLICE_DENOISE && all.size > 1)
                step_counted(ctx, g, &s, &request);
            else
                RANK_OK(kn_generation_step(&g, 1));
        }
        RANK_CHECK(r.finished == (ctx->rank == 0) && r.frames == (ctx->rank == 0 ? request.frames : 0));
        check_bits(ctx, &r, &w->expected[i], ctx->rank == 0);
        kn_generation_destroy(&g);
        kn_request_release(&request);
        recording_free(&r);
    }
    kn_model_close(&s.model);
    return KN_OK;
}

static const int32_t degrees[] = {1, 2, 3, 4, 8};
enum { DEGREES = sizeof degrees / sizeof *degrees };

static void expect_same_on_all(const char *fixture, kn_precision precision)
{
    work w = {.fixture = fixture, .precision = precision};
    make_expected(&w);
    for (size_t i = 0; i < DEGREES; i++) ranks_run(degrees[i], run_split, &w);
    free_expected(&w);
}

static void float32_is_the_same_on_any_number(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) expect_same_on_all(fixture_names[i], KN_PRECISION_FLOAT32);
}

/* Trained weights; compared are the clip's own bits, not a reference's. */
static void the_demo_model_is_the_same_on_any_number(void **state)
{
    (void)state;
    expect_same_on_all(DEMO, KN_PRECISION_FLOAT32);
    expect_same_on_all(DEMO, KN_PRECISION_BFLOAT16);
}

static void bfloat16_is_the_same_on_any_number(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) expect_same_on_all(fixture_names[i], KN_PRECISION_BFLOAT16);
}

/* ---- encoding ---- */

enum { ENCODINGS_MAX = 4, NOISE_FRAMES = 9, NOISE_HEIGHT = 40, NOISE_WIDTH = 32 };

/* The clips of a fixture, or a clip of noise for the demo model, and what one process makes of them. */
typedef struct encoding {
    const char *fixture;
    kn_precision precision;
    kn_tensor clip[ENCODINGS_MAX]; /* [3, frames, height, width] */
    float *alone[ENCODINGS_MAX];   /* [latents, z_dim, h, w] */
    int64_t values[ENCODINGS_MAX];
    int32_t clips;
} encoding;

typedef struct latents {
    float *data;
    int64_t each, seen; /* values of a latent; latents so far */
} latents;

static kn_status keep_latent(void *context, int64_t index, const float *latent)
{
    latents *l = context;
    KN_REQUIRE(index == l->seen);
    memcpy(l->data + l->seen++ * l->each, latent, (size_t)l->each * sizeof *latent);
    return KN_OK;
}

/* A model's autoencoder, both halves. */
typedef struct coder {
    kn_repository *repository;
    kn_weights *weights;
    kn_stream *stream;
    kn_vae *vae;
} coder;

static kn_status coder_open(coder *c, const encoding *e, kn_device *device)
{
    kn_status st = KN_OK;
    char path[1024];
    if (strcmp(e->fixture, DEMO) == 0)
        snprintf(path, sizeof path, "%s/models/demo", KN_SOURCE_DIR);
    else
        snprintf(path, sizeof path, "%s/tests/golden/%s/model", KN_SOURCE_DIR, e->fixture);
    const kn_dtype type = e->precision == KN_PRECISION_FLOAT32 ? KN_F32 : KN_BF16;
    KN_TRY(kn_repository_open(&c->repository, path));
    KN_TRY(kn_weights_open(&c->weights, c->repository->component_directory[KN_VAE], kn_component_stem(KN_VAE)));
    KN_TRY(kn_stream_create(&c->stream, device));
    KN_TRY(kn_vae_create(&c->vae, &c->repository->vae, c->weights, c->stream, type, KN_VAE_DECODER | KN_VAE_ENCODER));
    KN_TRY(kn_vae_prepare(c->vae, c->stream));
fail:
    return st;
}

static void coder_close(coder *c)
{
    kn_vae_destroy(&c->vae);
    kn_stream_destroy(&c->stream);
    kn_weights_close(&c->weights);
    kn_repository_close(&c->repository);
}

/* [latents, z_dim, h, w]; free it. */
static kn_status encode(const coder *c, const kn_tensor *clip, const kn_group *group, float **out, int64_t *values)
{
    kn_status st = KN_OK;
    kn_vae_encoder *encoder = NULL;
    const int64_t frames = clip->shape[1], plane = clip->shape[2] * clip->shape[3];
    const int32_t factor = kn_vae_spatial_factor(&c->repository->vae);
    const int64_t count = (frames - 1) / kn_vae_temporal_factor(&c->repository->vae) + 1;
    latents l = {.each = c->repository->vae.z_dim * plane / (factor * factor)};
    *values = count * l.each;
    *out = l.data = calloc((size_t)*values, sizeof *l.data);
    KN_TRY(kn_vae_encoder_create(&encoder, c->vae, c->stream, (int32_t)clip->shape[2], (int32_t)clip->shape[3], group));
    for (int64_t t = 0; t < frames; t++)
        KN_TRY(kn_vae_encode(encoder, (const float *)clip->data + t * plane, frames * plane, keep_latent, &l));
    KN_REQUIRE(l.seen == count);
fail:
    kn_vae_encoder_destroy(&encoder);
    return st;
}

/* Every rank is given the same latents, as one process alone makes them. */
static kn_status run_encoding(rank_context *ctx)
{
    const encoding *e = ctx->user;
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    coder c = {0};
    RANK_OK(coder_open(&c, e, ctx->device));
    kn_comm_bind(ctx->comm, c.stream);
    for (int32_t i = 0; i < e->clips; i++) {
        float *got;
        int64_t values;
        RANK_OK(encode(&c, &e->clip[i], &all, &got, &values));
        RANK_CHECK(values == e->values[i]);
        RANK_CHECK(memcmp(got, e->alone[i], (size_t)values * sizeof *got) == 0);
        free(got);
    }
    const kn_comm_stats stats = kn_comm_read_stats(ctx->comm);
    RANK_CHECK(all.size > 1 ? stats.sent[KN_COMM_ALL_GATHER] > 0 || ctx->rank > 1 : stats.calls[KN_COMM_HALO] == 0);
    coder_close(&c);
    return KN_OK;
}

/* Every "encode...frames" of a fixture. */
static void find_clips(encoding *e, const kn_weights *expected)
{
    for (size_t i = 0; i < kn_weights_count(expected); i++) {
        const char *name = kn_weights_entry_at(expected, i).name, *suffix = strrchr(name, '.');
        if (strncmp(name, "encode.", 7) != 0 || strcmp(suffix, ".frames") != 0) continue;
        assert_true(e->clips < ENCODINGS_MAX);
        ok(kn_weights_find(expected, name, &e->clip[e->clips++]));
    }
    assert_true(e->clips > 0);
}

static void expect_same_encoding(encoding *e)
{
    kn_device *device;
    coder c = {0};
    ok(kn_device_open(&device, &(kn_device_params){.name = "cpu", .threads = 1}));
    ok(coder_open(&c, e, device));
    for (int32_t i = 0; i < e->clips; i++) ok(encode(&c, &e->clip[i], NULL, &e->alone[i], &e->values[i]));
    coder_close(&c);
    kn_device_close(&device); /* no threads: the ranks are forked from this process */
    for (size_t i = 0; i < DEGREES; i++) ranks_run(degrees[i], run_encoding, e);
    for (int32_t i = 0; i < e->clips; i++) free(e->alone[i]);
}

/* The judge is one process alone, which tests/engine/networks.c holds to diffusers with the same clips. */
static void encoding_is_the_same_on_any_number(void **state)
{
    (void)state;
    static const kn_precision precisions[] = {KN_PRECISION_FLOAT32, KN_PRECISION_BFLOAT16};
    static float noise[3 * NOISE_FRAMES * NOISE_HEIGHT * NOISE_WIDTH];
    const kn_tensor clip = {
        .data = noise, .dtype = KN_F32, .rank = 4, .shape = {3, NOISE_FRAMES, NOISE_HEIGHT, NOISE_WIDTH}};
    kn_noise_normal(noise, kn_tensor_count(&clip), 1);
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < FIXTURES; i++) {
            encoding e = {.fixture = fixture_names[i], .precision = precisions[p]};
            kn_weights *expected = golden_expected(e.fixture);
            find_clips(&e, expected);
            expect_same_encoding(&e);
            kn_weights_close(&expected);
        }
        encoding e = {.fixture = DEMO, .precision = precisions[p], .clip = {clip}, .clips = 1};
        expect_same_encoding(&e);
    }
}

/* ---- degrees that change ---- */

typedef struct wandering {
    kn_generation *g;
    uint32_t mask;  /* ranks of the last slice */
    uint32_t fresh; /* ranks that have its state */
    int changes;
} wandering;

/* The same on every rank: they all draw the same numbers. */
static void wander(rank_context *ctx, const subject *s, wandering *at, uint32_t mask, bool decoding)
{
    const uint32_t needy = mask & ~at->fresh;
    if (mask != at->mask) at->changes++;
    if (needy || (decoding && mask != at->mask)) {
        const uint32_t root = at->fresh & -at->fresh; /* the lowest that has it */
        const kn_group with = kn_group_of(ctx->comm, decoding ? mask | root : needy | root);
        int32_t index = 0;
        while (1u << with.member[index] != root) index++;
        if (with.index >= 0) RANK_OK(kn_generation_share(at->g, &with, index));
    }
    const kn_group group = kn_group_of(ctx->comm, mask);
    kn_model_set_group(s->model, &group);
    at->fresh = mask;
    at->mask = mask;
}

static kn_status run_wandering(rank_context *ctx)
{
    const work *w = ctx->user;
    uint64_t random = w->seed;
    int changes = 0;
    subject s = open_on(ctx->device, w);
    const uint32_t everyone = (1u << ctx->ranks) - 1;
    for (int round = 0; changes < 200; round++) {
        const size_t i = (size_t)round % w->requests;
        kn_request request = work_request(w, i, &s);
        recording r = {0};
        const kn_frame_sink sink = recording_sink(&r, &request);
        const kn_tensor_tap tap = recording_tap(&r);
        wandering at = {.mask = everyone, .fresh = everyone};
        RANK_OK(kn_generation_create(&at.g, s.model, &request, &sink, &tap));
        /* Every rank counts slices by itself: those left out do not see the generation advance. */
        const int32_t steps = kn_generation_schedule(at.g)->steps;
        const int32_t frames = kn_request_latent(&request, kn_model_repository(s.model)).t;
        int32_t rewinds = 0;
        for (int32_t slice = 0; slice < 1 + steps + frames + 1; slice++) {
            const bool decoding = slice > steps;
            uint32_t mask = draw(&random) % everyone + 1;
            if (decoding) { /* frames must come to one place; a change starts decoding again */
                if (rewinds == 2) mask = at.mask;
                mask |= 1;
                if (slice == 1 + steps + frames) mask = at.mask;
                if (mask != at.mask && slice > 1 + steps) {
                    rewinds++;
                    slice = 1 + steps;
                }
            }
            wander(ctx, &s, &at, mask, decoding);
            if (kn_model_group(s.model)->index >= 0) RANK_OK(kn_generation_step(&at.g, 1));
        }
        RANK_CHECK(r.finished == (ctx->rank == 0));
        check_bits(ctx, &r, &w->expected[i], ctx->rank == 0);
        changes += at.changes;
        kn_generation_destroy(&at.g);
        kn_request_release(&request);
        recording_free(&r);
    }
    kn_model_close(&s.model);
    return KN_OK;
}

static void degrees_may_change_at_every_slice(void **state)
{
    (void)state;
    work w = {.fixture = fixture_names[WAN_SMALL], .precision = KN_PRECISION_FLOAT32, .seed = 1};
    make_expected(&w);
    ranks_run(4, run_wandering, &w);
    free_expected(&w);
}

/* ---- ranks that die ---- */

enum { DYING_RANKS = 3 };

/* The last rank dies before slice `seed`; the others form a group of two and go on. */
static kn_status run_dying(rank_context *ctx)
{
    const work *w = ctx->user;
    subject s = open_on(ctx->device, w);
    kn_request request = work_request(w, 0, &s);
    recording r = {0};
    const kn_frame_sink sink = recording_sink(&r, &request);
    kn_generation *g = NULL;
    kn_comm *next = NULL;
    kn_group group = kn_group_of(ctx->comm, UINT32_MAX);
    RANK_OK(kn_generation_create(&g, s.model, &request, &sink, NULL));
    kn_model_set_group(s.model, &group);
    for (uint64_t slices = 0; kn_generation_next(g).kind != KN_SLICE_DONE; slices++) {
        if (slices == w->seed && ctx->rank == DYING_RANKS - 1) raise(SIGKILL);
        kn_status st = kn_generation_step(&g, 1);
        if (st == KN_OK) continue;
        RANK_CHECK(st == KN_UNAVAILABLE && !next);
        RANK_OK(kn_comm_local_join(
            &next,
            &(kn_comm_local_params){
                .fd = w->spare_fd, .rank = ctx->rank, .epoch = 2, .stream = ctx->stream, .limits = ctx->limits}));
        group = kn_group_of(next, UINT32_MAX);
        kn_model_set_group(s.model, &group);
        RANK_OK(kn_generation_share(g, &group, 0)); /* one of them may have got further than the other */
    }
    RANK_CHECK(next && r.finished == (ctx->rank == 0));
    if (ctx->rank == 0) check_bits(ctx, &r, &w->expected[0], true);
    kn_comm_destroy(&next);
    kn_generation_destroy(&g);
    kn_request_release(&request);
    recording_free(&r);
    kn_model_close(&s.model);
    return KN_OK;
}

static void the_others_go_on_when_one_dies(void **state)
{
    (void)state;
    work w = {.fixture = fixture_names[WAN_SMALL], .precision = KN_PRECISION_FLOAT32};
    make_expected(&w);
    for (w.seed = 0; w.seed < 8; w.seed++) { /* text, four steps, three latent frames */
        ok(kn_comm_local_form(&w.spare_fd, 2, 2));
        rank_team team = ranks_start(DYING_RANKS, run_dying, &w, (kn_comm_params){.silence_ns = INT64_C(60000000000)});
        ranks_wait(&team);
        close(w.spare_fd);
        for (int32_t i = 0; i < DYING_RANKS; i++)
            if (team.code[i] != (i == DYING_RANKS - 1 ? -SIGKILL : 0))
                fail_msg("death before slice %d: rank %d ended with %d", (int)w.seed, i, team.code[i]);
    }
    free_expected(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32_is_the_same_on_any_number),
        cmocka_unit_test(bfloat16_is_the_same_on_any_number),
        cmocka_unit_test(the_demo_model_is_the_same_on_any_number),
        cmocka_unit_test(encoding_is_the_same_on_any_number),
        cmocka_unit_test(degrees_may_change_at_every_slice),
        cmocka_unit_test(the_others_go_on_when_one_dies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
