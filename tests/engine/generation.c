/* SPDX-License-Identifier: Apache-2.0
 *
 * The promise that nothing but the request decides a generation's bytes: not the threads, not the pack, not where it
 * was interrupted. What the bytes should be is in diffusers.c. */
#define _XOPEN_SOURCE 700
#include "tests/engine/generating.h"

#include <math.h>

#include "engine/pack.h"
#include "tests/engine/folder.h"

#if defined(KN_SIMT_DEVICE)
#include "tests/simt/simt.h"
#endif

/* ---- threads ---- */

/* The tiers and types whose operators group rows differently. */
static const struct way {
    const char *isa;
    kn_precision precision;
} ways[] = {{NULL, KN_PRECISION_FLOAT32}, {NULL, KN_PRECISION_BFLOAT16}, {"avx2", KN_PRECISION_FLOAT32}};
enum { WAYS = sizeof ways / sizeof *ways };

static subject open_way(int fixture, int32_t threads, const struct way *way)
{
    subject s;
    ok(subject_try(&s, fixture, threads, way->isa, way->precision, way->precision));
    return s;
}

static void threads_of(int fixture, const struct way *way)
{
    static const int32_t others[] = {1, 3};
    subject two = open_way(fixture, 2, way);
    recording wanted[8];
    const size_t requests = fixture_requests(fixture);
    assert_true(requests <= 8);
    for (size_t i = 0; i < requests; i++) {
        kn_request request = fixture_request(fixture, i, &two);
        wanted[i] = run_alone(&two, &request);
        kn_request_release(&request);
    }
    for (size_t t = 0; t < sizeof others / sizeof *others; t++) {
        subject s = open_way(fixture, others[t], way);
        for (size_t i = 0; i < requests; i++) {
            char where[96];
            kn_request request = fixture_request(fixture, i, &s);
            recording got = run_alone(&s, &request);
            snprintf(where, sizeof where, "%s request %zu, %d threads, %s", fixture_names[fixture], i, (int)others[t],
                     kn_model_fingerprint(s.model));
            expect_same_bits(&got, &wanted[i], NULL, where);
            recording_free(&got);
            kn_request_release(&request);
        }
        subject_close(&s);
    }
    for (size_t i = 0; i < requests; i++) recording_free(&wanted[i]);
    subject_close(&two);
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    for (int w = 0; w < WAYS; w++)
        for (int fixture = 0; fixture < FIXTURES; fixture++)
            if (fixture_meets(fixture, w)) threads_of(fixture, &ways[w]);
}

/* ---- packs ---- */

enum { PACK_MAX = KN_PACK_SEQUENCES_MAX / 2 };

/* Generations of one model that advance together. */
typedef struct convoy {
    int32_t count;
    kn_request requests[PACK_MAX];
    recording alone[PACK_MAX], together[PACK_MAX];
    kn_generation *generations[PACK_MAX];
} convoy;

static void convoy_add(convoy *c, const subject *s, const kn_request *like, const char *prompt, int32_t width,
                       int32_t height, int32_t frames, int32_t steps, uint64_t seed)
{
    kn_request *r = &c->requests[c->count];
    recording *to = &c->together[c->count];
    *r = *like;
    r->prompt = kn_strdup(prompt);
    r->negative_prompt = kn_strdup(like->negative_prompt);
    r->width = width;
    r->height = height;
    r->frames = frames;
    r->steps = r->sigma_count > 0 ? r->sigma_count : steps;
    r->seed = seed;
    ok(kn_request_resolve(r, kn_model_repository(s->model), NULL));
    c->alone[c->count] = run_alone(s, r);
    const kn_frame_sink sink = recording_sink(to, r);
    const kn_tensor_tap tap = recording_tap(to);
    ok(kn_generation_create(&c->generations[c->count], s->model, r, &sink, &tap));
    c->count++;
}

/* Steps, as one call, those whose bit is set in `members` and whose next slice is of this kind. */
static int32_t convoy_step(convoy *c, kn_slice_kind kind, uint64_t members)
{
    kn_generation *chosen[PACK_MAX];
    int32_t count = 0;
    for (int32_t i = 0; i < c->count; i++)
        if ((members >> i & 1) && kn_generation_next(c->generations[i]).kind == kind)
            chosen[count++] = c->generations[i];
    if (count > 0) ok(kn_generation_step(chosen, count));
    return count;
}

/* To the end; in round r the members of masks[r % masks_count] advance. Returns the most that advanced at once. */
static int32_t convoy_run(convoy *c, const uint64_t *masks, size_t masks_count)
{
    int32_t most = 0;
    bool moved = true;
    for (size_t round = 0, idle = 0; moved || idle < masks_count; round++) {
        moved = false;
        for (int kind = KN_SLICE_TEXT; kind < KN_SLICE_DONE; kind++) {
            const int32_t count = convoy_step(c, (kn_slice_kind)kind, masks[round % masks_count]);
            moved = moved || count > 0;
            if (count > most) most = count;
        }
        idle = moved ? 0 : idle + 1;
    }
    return most;
}

static void convoy_check_and_free(convoy *c, const char *what)
{
    for (int32_t i = 0; i < c->count; i++) {
        char where[160];
        snprintf(where, sizeof where, "%s, generation %d", what, (int)i);
        assert_int_equal(kn_generation_next(c->generations[i]).kind, KN_SLICE_DONE);
        assert_true(c->together[i].finished);
        expect_same_bits(&c->together[i], &c->alone[i], NULL, where);
        kn_generation_destroy(&c->generations[i]);
        recording_free(&c->alone[i]);
        recording_free(&c->together[i]);
        kn_request_release(&c->requests[i]);
    }
    free(c);
}

/* Sizes, prompts, samplers, steps and guidance differ; who advances with whom changes from round to round. */
static void pack_of_different_jobs(int fixture, const struct way *way)
{
    static const uint64_t masks[] = {0x3f, 0x15, 0x2a, 0x01, 0x3c};
    subject s = open_way(fixture, 2, way);
    kn_request unipc = fixture_request(WAN_SMALL, 0, &s), euler = fixture_request(WAN_SMALL, 2, &s);
    convoy *c = calloc(1, sizeof *c);
    assert_non_null(c);
    convoy_add(c, &s, &unipc, unipc.prompt, 48, 32, 9, 4, 1);
    convoy_add(c, &s, &unipc, "dawn", 16, 16, 1, 7, 2);
    convoy_add(c, &s, &euler, "a blue cube and a green one behind it", 32, 48, 5, 0, 3);
    convoy_add(c, &s, &euler, "", 64, 16, 13, 0, 4);
    convoy_add(c, &s, &unipc, "two players", 32, 32, 5, 3, 5);
    convoy_add(c, &s, &unipc, unipc.prompt, 48, 32, 9, 4, 1); /* the first one again */
    assert_int_equal(convoy_run(c, masks, sizeof masks / sizeof *masks), 6);
    convoy_check_and_free(c, kn_model_fingerprint(s.model));
    kn_request_release(&unipc);
    kn_request_release(&euler);
    subject_close(&s);
}

static void packs_of_different_jobs(void **state)
{
    (void)state;
    for (int w = 0; w < WAYS; w++)
        for (int fixture = 0; fixture < FIXTURES; fixture++)
            if (fixture_meets(fixture, w + 1)) pack_of_different_jobs(fixture, &ways[w]);
}

/* As many as one pack takes, all with guidance. */
static void largest_pack(void **state)
{
    (void)state;
    static const uint64_t all[] = {UINT64_MAX};
    subject s = subject_open(WAN_SMALL, 2);
    kn_request like = fixture_request(WAN_SMALL, 1, &s);
    convoy *c = calloc(1, sizeof *c);
    assert_non_null(c);
    for (int32_t i = 0; i < PACK_MAX; i++)
        convoy_add(c, &s, &like, i % 3 ? "two basketball players at dawn" : "dawn", 16 + 16 * (i % 2), 16,
                   1 + 4 * (i % 4), 2, (uint64_t)i);
    assert_int_equal(convoy_run(c, all, 1), PACK_MAX);
    convoy_check_and_free(c, "the largest pack");
    kn_request_release(&like);
    subject_close(&s);
}

/* ---- interruptions ---- */

/* Saves, throws generation and model away, and resumes with fresh ones, as a new process would. */
static void restart(subject *s, int fixture, kn_generation **g, const char *path, recording *r)
{
    const kn_request *request = kn_generation_request(*g);
    const kn_frame_sink sink = recording_sink(r, request);
    const kn_tensor_tap tap = recording_tap(r);
    ok(kn_generation_save(*g, path));
    kn_generation_destroy(g);
    subject_close(s);
    *s = subject_open(fixture, 1);
    ok(kn_generation_resume(g, s->model, path, &sink, &tap));
}

/* What a resumed run shows again must be what was seen before. */
static void expect_frames(const recording *got, const recording *wanted, const char *where)
{
    assert_true(got->finished);
    assert_int_equal(got->frames, wanted->frames);
    expect_same_bits(got, wanted, "frames", where);
}

/* A restart after `at` slices, then on to the end. False: there are no more than `at` slices. */
static bool interrupted_once(int fixture, const kn_request *request, const recording *wanted, const char *path, int at)
{
    char where[64];
    subject s = subject_open(fixture, 2);
    recording before = {0}, after = {0};
    const kn_frame_sink sink = recording_sink(&before, request);
    kn_generation *g = NULL;
    ok(kn_generation_create(&g, s.model, request, &sink, NULL));
    for (int i = 0; i < at && kn_generation_next(g).kind != KN_SLICE_DONE; i++) ok(kn_generation_step(&g, 1));
    const bool more = kn_generation_next(g).kind != KN_SLICE_DONE;
    const kn_slice slice = kn_generation_next(g);
    snprintf(where, sizeof where, "%s, restart before %s[%d]", fixture_names[fixture], kn_slice_name(slice.kind),
             (int)slice.index);
    restart(&s, fixture, &g, path, &after);
    if (slice.kind == KN_SLICE_DENOISE && slice.index > 0) { /* keys and values are made again */
        assert_int_equal(kn_generation_next(g).kind, KN_SLICE_TEXT);
    }
    run_to_end(g);
    expect_frames(&after, wanted, where);
    for (size_t i = 0; i < after.count; i++) { /* steps are not repeated, and those run give the same */
        const record *r = &after.records[i], *w = recording_find(wanted, r->name, r->index);
        assert_non_null(w);
        assert_memory_equal(r->data, w->data, (size_t)r->count * sizeof(float));
        if (strcmp(r->name, "latents") == 0 && slice.kind == KN_SLICE_DENOISE) assert_true(r->index >= slice.index);
    }
    kn_generation_destroy(&g);
    recording_free(&before);
    recording_free(&after);
    subject_close(&s);
    return more;
}

static void resume_after_each_slice(void **state)
{
    (void)state;
    static const int cases[][2] = {{WAN_SMALL, 2}, {WAN_SMALL, 0}, {WAN_SMALL, 3}, {WAN_HEAD128, 0}, {WAN_WIDE, 1}};
    folder at = folder_create();
    for (size_t i = 0; i < (SANITIZED ? 1 : sizeof cases / sizeof *cases); i++) {
        subject s = subject_open(cases[i][0], 2);
        kn_request request = fixture_request(cases[i][0], (size_t)cases[i][1], &s);
        recording wanted = run_alone(&s, &request);
        int slices = 0;
        while (interrupted_once(cases[i][0], &request, &wanted, folder_file(&at, "state"), slices)) slices++;
        const kn_latent_shape shape = kn_request_latent(&request, kn_model_repository(s.model));
        assert_int_equal(slices, 1 + request.steps + shape.t + 1); /* text, denoise, decode, mux */
        recording_free(&wanted);
        kn_request_release(&request);
        subject_close(&s);
    }
    assert_int_equal(folder_count(&at), 1);
    folder_remove(&at);
}

/* One run that is restarted at every slice until its latents are done. */
static void resume_again_and_again(void **state)
{
    (void)state;
    folder at = folder_create();
    for (int fixture = 0; fixture < FIXTURES; fixture++) {
        subject s = subject_open(fixture, 2);
        kn_request request = fixture_request(fixture, fixture == WAN_SMALL ? 1 : 0, &s);
        recording wanted = run_alone(&s, &request), got = {0};
        const kn_frame_sink sink = recording_sink(&got, &request);
        kn_generation *g = NULL;
        ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
        while (kn_generation_next(g).kind <= KN_SLICE_DENOISE) {
            const kn_slice_kind kind = kn_generation_next(g).kind;
            ok(kn_generation_step(&g, 1));
            if (kind != KN_SLICE_DENOISE) continue; /* a restart here would only do the text again */
            recording_free(&got);
            restart(&s, fixture, &g, folder_file(&at, "state"), &got);
        }
        run_to_end(g);
        expect_frames(&got, &wanted, fixture_names[fixture]);
        kn_generation_destroy(&g);
        recording_free(&got);
        recording_free(&wanted);
        kn_request_release(&request);
        subject_close(&s);
    }
    folder_remove(&at);
}

/* Saved from the middle of a pack, resumed alone. */
static void leave_a_pack(void **state)
{
    (void)state;
    folder at = folder_create();
    const char *path = folder_file(&at, "state");
    subject s = subject_open(WAN_SMALL, 2);
    kn_request a = fixture_request(WAN_SMALL, 0, &s), b = fixture_request(WAN_SMALL, 1, &s), saved;
    recording wanted = run_alone(&s, &a), got = {0}, other = {0};
    kn_generation *pack[2] = {0};
    const kn_frame_sink sinks[] = {recording_sink(&got, &a), recording_sink(&other, &b)};
    ok(kn_generation_create(&pack[0], s.model, &a, &sinks[0], NULL));
    ok(kn_generation_create(&pack[1], s.model, &b, &sinks[1], NULL));
    for (int i = 0; i < 3; i++) ok(kn_generation_step(pack, 2));
    ok(kn_generation_save(pack[0], path));
    kn_generation_destroy(&pack[0]);
    ok(kn_generation_step(&pack[1], 1)); /* the other one goes on */
    ok(kn_generation_saved_request(&saved, path));
    assert_string_equal(saved.prompt, a.prompt);
    assert_int_equal(saved.seed, a.seed);
    ok(kn_generation_resume(&pack[0], s.model, path, &sinks[0], NULL));
    run_to_end(pack[0]);
    expect_frames(&got, &wanted, "after leaving a pack");
    for (int i = 0; i < 2; i++) kn_generation_destroy(&pack[i]);
    kn_request_release(&saved);
    kn_request_release(&a);
    kn_request_release(&b);
    recording_free(&got);
    recording_free(&other);
    recording_free(&wanted);
    subject_close(&s);
    folder_remove(&at);
}

static void expect_refused(const char *path, int fixture, const char *isa, kn_precision precision,
                           kn_precision vae_precision, const char *text)
{
    subject s;
    recording r = {0};
    kn_request request = kn_request_empty();
    const kn_frame_sink sink = recording_sink(&r, &request);
    kn_generation *g = NULL;
    ok(subject_try(&s, fixture, 1, isa, precision, vae_precision));
    kn_status st = kn_generation_resume(&g, s.model, path, &sink, NULL);
    assert_null(g);
    expect_failure(st, KN_UNSUPPORTED, path);
    expect_failure(st, KN_UNSUPPORTED, text);
    expect_failure(st, KN_UNSUPPORTED, kn_model_fingerprint(s.model));
    subject_close(&s);
}

static void refuse_what_would_differ(void **state)
{
    (void)state;
    folder at = folder_create();
    const char *path = folder_file(&at, "state");
    subject s;
    ok(subject_try(&s, WAN_SMALL, 2, "avx2", KN_PRECISION_FLOAT32, KN_PRECISION_FLOAT32));
    kn_request request = fixture_request(WAN_SMALL, 0, &s);
    recording r = {0};
    const kn_frame_sink sink = recording_sink(&r, &request);
    kn_generation *g = NULL;
    ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
    for (int i = 0; i < 2; i++) ok(kn_generation_step(&g, 1));
    ok(kn_generation_save(g, path));
    kn_generation_destroy(&g);
    expect_refused(path, WAN_SMALL, "avx2", KN_PRECISION_BFLOAT16, KN_PRECISION_FLOAT32, "bfloat16 vae-float32");
    expect_refused(path, WAN_SMALL, "avx2", KN_PRECISION_FLOAT32, KN_PRECISION_BFLOAT16, "float32 vae-bfloat16");
    expect_refused(path, WAN_SMALL, "ref", KN_PRECISION_FLOAT32, KN_PRECISION_FLOAT32, " ref float32");
    expect_refused(path, WAN_HEAD128, "avx2", KN_PRECISION_FLOAT32, KN_PRECISION_FLOAT32, "avx2 float32");
    expect_failure(kn_generation_resume(&g, s.model, folder_file(&at, "none"), &sink, NULL), KN_NOT_FOUND, "none");
    folder_text(&at, "cut", "not a checkpoint");
    expect_failure(kn_generation_resume(&g, s.model, folder_file(&at, "cut"), &sink, NULL), KN_CORRUPT, "cut");
    assert_null(g);
    kn_request_release(&request);
    recording_free(&r);
    subject_close(&s);
    folder_remove(&at);
}

/* ---- memory ---- */

static kn_status skip_frame(void *context, int64_t index, const float *planes)
{
    (void)index;
    (void)planes;
    ++*(int64_t *)context;
    return KN_OK;
}

static kn_status skip_finish(void *context)
{
    (void)context;
    return KN_OK;
}

/* Only the first denoise and the first decode slice of a generation allocate. */
static void slices_do_not_allocate(void **state)
{
    (void)state;
    for (int fixture = 0; fixture < (SANITIZED ? 1 : FIXTURES); fixture++) {
        subject s = subject_open(fixture, 2);
        for (size_t i = 0; i < fixture_requests(fixture); i++) {
            kn_request request = fixture_request(fixture, i, &s);
            int64_t frames = 0;
            const kn_frame_sink sink = {.context = &frames, .frame = skip_frame, .finish = skip_finish};
            kn_generation *g = NULL;
            ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
            for (kn_slice slice; (slice = kn_generation_next(g)).kind != KN_SLICE_DONE;) {
                const uint64_t before = kn_mem_read().allocations;
                ok(kn_generation_step(&g, 1));
                const uint64_t made = kn_mem_read().allocations - before;
                if ((slice.kind == KN_SLICE_TEXT || slice.index == 0) && slice.kind != KN_SLICE_MUX) continue;
                if (made > 0)
                    fail_msg("%s request %zu: %s[%d] allocated %d times", fixture_names[fixture], i,
                             kn_slice_name(slice.kind), (int)slice.index, (int)made);
            }
            assert_int_equal(frames, request.frames);
            kn_generation_destroy(&g);
            kn_request_release(&request);
        }
        subject_close(&s);
    }
}

/* ---- failing sinks, previews ---- */

static kn_status full_disk(void *context, int64_t index, const float *planes)
{
    (void)planes;
    return index < *(int64_t *)context ? KN_OK : kn_fail(KN_IO, "frame %d: no space left", (int)index);
}

static kn_status full_disk_finish(void *context)
{
    (void)context;
    return kn_fail(KN_IO, "no space left to finish");
}

/* The sink's failure comes through as it is, from a frame and from the end; a saved generation is not lost. */
static void sink_failures_come_through(void **state)
{
    (void)state;
    folder at = folder_create();
    const char *path = folder_file(&at, "state");
    subject s = subject_open(WAN_SMALL, 2);
    kn_request request = fixture_request(WAN_SMALL, 0, &s);
    recording wanted = run_alone(&s, &request), got = {0};
    for (int64_t room = 2; room <= request.frames; room += request.frames - 2) {
        const kn_frame_sink sink = {.context = &room, .frame = full_disk, .finish = full_disk_finish};
        kn_generation *g = NULL;
        kn_status st = KN_OK;
        ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
        while (st == KN_OK) st = kn_generation_step(&g, 1);
        expect_failure(st, KN_IO, room == 2 ? "frame 2: no space left" : "no space left to finish");
        ok(kn_generation_save(g, path));
        kn_generation_destroy(&g);
        const kn_frame_sink good = recording_sink(&got, &request);
        ok(kn_generation_resume(&g, s.model, path, &good, NULL));
        run_to_end(g);
        expect_frames(&got, &wanted, "after a full disk");
        recording_free(&got);
        kn_generation_destroy(&g);
    }
    recording_free(&wanted);
    kn_request_release(&request);
    subject_close(&s);
    folder_remove(&at);
}

/* After the last step the preview is the first frame itself; looking earlier changes nothing. */
static void previews(void **state)
{
    (void)state;
    subject s = subject_open(WAN_SMALL, 2);
    for (size_t i = 0; i < fixture_requests(WAN_SMALL); i++) {
        kn_request request = fixture_request(WAN_SMALL, i, &s);
        recording wanted = run_alone(&s, &request), got = {0};
        const kn_frame_sink sink = recording_sink(&got, &request);
        kn_generation *g = NULL;
        const size_t pixels = (size_t)(3 * request.width * request.height);
        float *planes = calloc(pixels, sizeof *planes);
        assert_non_null(planes);
        ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
        for (int step = 0; step <= request.steps; step++) {
            ok(kn_generation_step(&g, 1));
            if (step > 0) ok(kn_generation_preview(g, planes));
        }
        const double error = largest_difference(planes, recording_find(&wanted, "frames", 0)->data, (int64_t)pixels);
        if (!(error <= 1e-6)) fail_msg("request %zu: the last preview is %.1e off the first frame", i, error);
        run_to_end(g);
        expect_frames(&got, &wanted, "with previews");
        free(planes);
        kn_generation_destroy(&g);
        recording_free(&got);
        recording_free(&wanted);
        kn_request_release(&request);
    }
    subject_close(&s);
}

/* ---- finished pictures ---- */

typedef struct album {
    uint8_t *rgb; /* of all frames */
    int64_t frames, bytes;
    bool finished;
} album;

static kn_status keep_picture(void *context, int64_t index, const uint8_t *rgb)
{
    album *a = context;
    assert_int_equal(index, a->frames++);
    memcpy(a->rgb + index * a->bytes, rgb, (size_t)a->bytes);
    return KN_OK;
}

static kn_status no_planes(void *context, int64_t index, const float *planes)
{
    (void)context;
    (void)index;
    (void)planes;
    return kn_fail(KN_BUG, "planes came to a sink of pictures");
}

static kn_status close_album(void *context)
{
    ((album *)context)->finished = true;
    return KN_OK;
}

/* A sink that takes bytes gets the planes of one that takes floats, rounded. */
static void pictures_are_the_planes_rounded(void **state)
{
    (void)state;
    subject s = subject_open(WAN_SMALL, 2);
    kn_request request = fixture_request(WAN_SMALL, 2, &s);
    request.width = 16;
    request.frames = 1;
    recording wanted = run_alone(&s, &request);
    const int64_t pixels = (int64_t)request.width * request.height;
    album got = {.rgb = calloc((size_t)request.frames, (size_t)(3 * pixels)), .bytes = 3 * pixels};
    assert_non_null(got.rgb);
    const kn_frame_sink sink = {.context = &got, .frame = no_planes, .picture = keep_picture, .finish = close_album};
    kn_generation *g = NULL;
    ok(kn_generation_create(&g, s.model, &request, &sink, NULL));
    run_to_end(g);
    assert_true(got.finished);
    assert_int_equal(got.frames, request.frames);
    for (int64_t f = 0; f < got.frames; f++) {
        const float *planes = recording_find(&wanted, "frames", f)->data;
        for (int64_t i = 0; i < got.bytes; i++)
            assert_int_equal(got.rgb[f * got.bytes + i], (int)(255 * planes[i % 3 * pixels + i / 3] + 0.5f));
    }
    kn_generation_destroy(&g);
    free(got.rgb);
    recording_free(&wanted);
    kn_request_release(&request);
    subject_close(&s);
}

#if defined(KN_SIMT_DEVICE)
/* ---- the CUDA device, executed ---- */

/* Bits decided by the request alone: run again in a pack, with another order of threads and blocks, they are the same.
 */
static void orders_and_packs_do_not_matter(void **state)
{
    (void)state;
    static const struct way bf16 = {"sm90", KN_PRECISION_BFLOAT16}, f32 = {"cuda", KN_PRECISION_FLOAT32};
    static const struct way *const both[] = {&f32, &bf16};
    static const uint64_t masks[] = {3, 1, 2};
    for (size_t w = 0; w < 2; w++) {
        subject s = open_way(WAN_SMALL, 1, both[w]);
        kn_request unipc = fixture_request(WAN_SMALL, 0, &s), euler = fixture_request(WAN_SMALL, 2, &s);
        convoy *c = calloc(1, sizeof *c);
        assert_non_null(c);
        simt_seed(11);
        convoy_add(c, &s, &unipc, "a red ball", 16, 16, 1, 3, 1);
        convoy_add(c, &s, &euler, "dawn", 16, 16, 1, 0, 2);
        simt_seed(12);
        assert_int_equal(convoy_run(c, masks, sizeof masks / sizeof *masks), 2);
        convoy_check_and_free(c, kn_model_fingerprint(s.model));
        kn_request_release(&unipc);
        kn_request_release(&euler);
        subject_close(&s);
    }
}

/* A denoise step is launches and, at its end, one wait. No step takes memory or copies from or to the host, not even
 * the first, and for a pack no more than alone. Counted by the runtime itself. */
static void a_step_only_launches(void **state)
{
    (void)state;
    subject s = subject_open(WAN_SMALL, 1);
    kn_request request = fixture_request(WAN_SMALL, 0, &s);
    request.steps = 4; /* both corrector and predictor, at every order */
    request.frames = 1;
    kn_generation *pack[2];
    int64_t frames[2] = {0};
    for (int i = 0; i < 2; i++) {
        const kn_frame_sink sink = {.context = &frames[i], .frame = skip_frame, .finish = skip_finish};
        ok(kn_generation_create(&pack[i], s.model, &request, &sink, NULL));
    }
    ok(kn_generation_step(pack, 2));
    for (int step = 0; step < request.steps; step++) {
        assert_int_equal(kn_generation_next(pack[0]).kind, KN_SLICE_DENOISE);
        const simt_calls before = simt_read_calls();
        ok(kn_generation_step(pack, 1 + (step != 1))); /* the second one stays behind once */
        const simt_calls after = simt_read_calls();
        assert_true(before.allocations > 0 && before.uploads > 0 && before.waits > 0);
        assert_int_equal(after.allocations, before.allocations);
        assert_int_equal(after.uploads, before.uploads);
        assert_int_equal(after.downloads, before.downloads);
        assert_int_equal(after.waits, before.waits + 1);
    }
    assert_int_equal(kn_generation_next(pack[0]).kind, KN_SLICE_DECODE);
    for (int i = 0; i < 2; i++) kn_generation_destroy(&pack[i]);
    kn_request_release(&request);
    subject_close(&s);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
#if defined(KN_SIMT_DEVICE)
        cmocka_unit_test(a_step_only_launches),
        cmocka_unit_test(orders_and_packs_do_not_matter),
        cmocka_unit_test(pictures_are_the_planes_rounded),
#else
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(packs_of_different_jobs),
        cmocka_unit_test(largest_pack),
        cmocka_unit_test(resume_after_each_slice),
        cmocka_unit_test(resume_again_and_again),
        cmocka_unit_test(leave_a_pack),
        cmocka_unit_test(refuse_what_would_differ),
        cmocka_unit_test(slices_do_not_allocate),
        cmocka_unit_test(sink_failures_come_through),
        cmocka_unit_test(previews),
        cmocka_unit_test(pictures_are_the_planes_rounded),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
