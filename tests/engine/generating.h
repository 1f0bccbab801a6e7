/* SPDX-License-Identifier: Apache-2.0
 *
 * Running generations in a test: a fixture's model on a device of the test's choosing, its requests, and a recorder
 * for everything a generation shows. The recorder uses calloc, so that the counters of base/mem.h see the engine
 * alone. A failure here fails the running test with the reason. */
#ifndef KN_TESTS_ENGINE_GENERATING_H
#define KN_TESTS_ENGINE_GENERATING_H

#include "tests/engine/golden.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/generation.h"

#if defined(KN_SIMT_DEVICE) /* the CUDA kernels, executed on the CPU (tests/simt) */
#include "kernels/device_cuda.h"
#endif

/* With a sanitizer a generation takes ten times as long, and what is looked for is in the code and not in the numbers:
 * one case for each path. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* Folders of tests/golden, in the order of fixture_names. */
enum { WAN_SMALL, WAN_HEAD128, WAN_WIDE, FIXTURES };
static const char *const fixture_names[FIXTURES] = {"wan21-small", "wan21-head128", "wan21-wide"};

/* Whether case `i` of a list is to be run with this fixture: all with all, or with a sanitizer each with one. */
static inline bool fixture_meets(int fixture, int i)
{
    return !SANITIZED || i % FIXTURES == fixture;
}

static inline void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

static inline void expect_failure(kn_status st, kn_status wanted, const char *text)
{
    if (st != wanted) fail_msg("%s instead of %s: %s", kn_status_name(st), kn_status_name(wanted), kn_fail_message());
    if (!strstr(kn_fail_message(), text)) fail_msg("\"%s\" does not say \"%s\"", kn_fail_message(), text);
    if (strchr(kn_fail_message(), '\n')) fail_msg("\"%s\" has more than one line", kn_fail_message());
}

/* ---- models ---- */

typedef struct subject {
    kn_device *device;
    kn_model *model;
} subject;

static inline kn_status open_device(kn_device **out, int32_t threads, const char *isa)
{
#if defined(KN_SIMT_DEVICE)
    (void)threads;
    return kn_device_simt_open(out, &(kn_device_params){.name = "simt", .isa = isa});
#else
    return kn_device_open(out, &(kn_device_params){.name = "cpu", .threads = threads, .isa = isa});
#endif
}

/* A model folder, given from the root of the tree. KN_UNAVAILABLE, and nothing opened, where the processor lacks the
 * tier. */
static inline kn_status subject_at(subject *out, const char *folder, int32_t threads, const char *isa,
                                   kn_precision precision, kn_precision vae_precision)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", KN_SOURCE_DIR, folder);
    *out = (subject){0};
    kn_status st = open_device(&out->device, threads, isa);
    if (st != KN_OK) return st;
    return kn_model_open(&out->model, &(kn_model_params){.directory = path,
                                                         .device = out->device,
                                                         .precision = precision,
                                                         .vae_precision = vae_precision});
}

static inline kn_status subject_try(subject *out, int fixture, int32_t threads, const char *isa, kn_precision precision,
                                    kn_precision vae_precision)
{
    char folder[128];
    snprintf(folder, sizeof folder, "tests/golden/%s/model", fixture_names[fixture]);
    return subject_at(out, folder, threads, isa, precision, vae_precision);
}

/* In float32 on the best tier. */
static inline subject subject_open(int fixture, int32_t threads)
{
    subject s;
    ok(subject_try(&s, fixture, threads, NULL, KN_PRECISION_FLOAT32, KN_PRECISION_FLOAT32));
    return s;
}

static inline void subject_close(subject *s)
{
    kn_model_close(&s->model);
    kn_device_close(&s->device);
}

/* ---- requests ---- */

static inline char *copy_text(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_string(value) ? kn_strdup(json_string_value(value)) : NULL;
}

static inline size_t case_requests(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/case.json", name);
    json_t *root = golden_json(path);
    const size_t count = json_array_size(golden_get(root, "requests"));
    json_decref(root);
    return count;
}

static inline size_t fixture_requests(int fixture)
{
    return case_requests(fixture_names[fixture]);
}

/* requests[index] of a folder of tests/golden, resolved; release it. */
static inline kn_request case_request(const char *name, size_t index, const subject *s)
{
    char path[128];
    snprintf(path, sizeof path, "%s/case.json", name);
    json_t *root = golden_json(path);
    const json_t *object = json_array_get(golden_get(root, "requests"), index);
    assert_non_null(object);
    const json_t *scheduler = golden_get(object, "scheduler"), *sigmas = json_object_get(object, "sigmas");
    kn_request r = kn_request_empty();
    r.prompt = copy_text(object, "prompt");
    r.negative_prompt = copy_text(object, "negative_prompt");
    r.width = (int32_t)golden_number(object, "width");
    r.height = (int32_t)golden_number(object, "height");
    r.frames = (int32_t)golden_number(object, "frames");
    r.guidance = golden_number(object, "guidance");
    r.seed = (uint64_t)golden_number(object, "seed");
    r.has_sampler = true;
    r.sampler = strcmp(golden_string(scheduler, "kind"), "euler") == 0 ? KN_SAMPLER_EULER : KN_SAMPLER_UNIPC;
    r.shift = golden_number(scheduler, "shift");
    r.steps = (int32_t)golden_number(object, "steps");
    r.sigma_count = (int32_t)json_array_size(sigmas);
    for (int32_t i = 0; i < r.sigma_count; i++) r.sigmas[i] = json_number_value(json_array_get(sigmas, (size_t)i));
    json_decref(root);
    kn_request_notes notes;
    ok(kn_request_resolve(&r, kn_model_repository(s->model), &notes));
    assert_int_equal(notes.count, 0);
    return r;
}

static inline kn_request fixture_request(int fixture, size_t index, const subject *s)
{
    return case_request(fixture_names[fixture], index, s);
}

/* ---- recordings ---- */

typedef struct record {
    char name[24]; /* a tap's name, or "frames" */
    int64_t index;
    int64_t count; /* elements */
    float *data;
} record;

typedef struct recording {
    record *records;
    size_t count;
    int64_t frames; /* delivered */
    int64_t height, width;
    bool finished;
} recording;

static inline void recording_free(recording *r)
{
    for (size_t i = 0; i < r->count; i++) free(r->records[i].data);
    free(r->records);
    *r = (recording){0};
}

/* NULL when there is none. */
static inline const record *recording_find(const recording *r, const char *name, int64_t index)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->records[i].index == index && strcmp(r->records[i].name, name) == 0) return &r->records[i];
    return NULL;
}

static inline void recording_add(recording *r, const char *name, int64_t index, const float *data, int64_t count)
{
    assert_null(recording_find(r, name, index)); /* nothing is shown twice */
    record *records = realloc(r->records, (r->count + 1) * sizeof *records);
    assert_non_null(records);
    r->records = records;
    record *added = &records[r->count++];
    *added = (record){.index = index, .count = count, .data = calloc((size_t)count, sizeof *data)};
    assert_non_null(added->data);
    snprintf(added->name, sizeof added->name, "%s", name);
    memcpy(added->data, data, (size_t)count * sizeof *data);
}

static inline kn_status record_tensor(void *context, const char *name, int64_t index, const float *data, int32_t rank,
                                      const int64_t *shape)
{
    int64_t count = 1;
    for (int32_t i = 0; i < rank; i++) count *= shape[i];
    recording_add(context, name, index, data, count);
    return KN_OK;
}

static inline kn_status record_frame(void *context, int64_t index, const float *planes)
{
    recording *r = context;
    assert_int_equal(index, r->frames++);
    assert_false(r->finished);
    recording_add(r, "frames", index, planes, 3 * r->height * r->width);
    return KN_OK;
}

static inline kn_status record_finish(void *context)
{
    recording *r = context;
    assert_false(r->finished);
    r->finished = true;
    return KN_OK;
}

static inline kn_frame_sink recording_sink(recording *r, const kn_request *request)
{
    r->height = request->height;
    r->width = request->width;
    return (kn_frame_sink){.context = r, .frame = record_frame, .finish = record_finish};
}

static inline kn_tensor_tap recording_tap(recording *r)
{
    return (kn_tensor_tap){.context = r, .tensor = record_tensor};
}

/* Every record called `name` in `got` (all of them when NULL) is in `wanted`, bit for bit, and there are as many. */
static inline void expect_same_bits(const recording *got, const recording *wanted, const char *name, const char *where)
{
    size_t seen = 0, expected = 0;
    for (size_t i = 0; i < wanted->count; i++) expected += !name || strcmp(wanted->records[i].name, name) == 0;
    for (size_t i = 0; i < got->count; i++) {
        const record *a = &got->records[i], *b = recording_find(wanted, a->name, a->index);
        if (name && strcmp(a->name, name) != 0) continue;
        if (!b) fail_msg("%s: %s[%d] was not expected", where, a->name, (int)a->index);
        if (a->count != b->count || memcmp(a->data, b->data, (size_t)a->count * sizeof *a->data) != 0)
            fail_msg("%s: %s[%d] differs", where, a->name, (int)a->index);
        seen++;
    }
    if (seen != expected || seen == 0) fail_msg("%s: %zu records instead of %zu", where, seen, expected);
}

static inline double largest_difference(const float *got, const float *wanted, int64_t count)
{
    double largest = 0.0;
    for (int64_t i = 0; i < count; i++) {
        const double d = fabs((double)got[i] - (double)wanted[i]);
        if (!(d <= largest)) largest = d; /* NaN sticks */
    }
    return largest;
}

/* ---- runs ---- */

static inline void run_to_end(kn_generation *g)
{
    while (kn_generation_next(g).kind != KN_SLICE_DONE) ok(kn_generation_step(&g, 1));
}

/* One request alone, in one go. Free the recording. */
static inline recording run_alone(const subject *s, const kn_request *request)
{
    recording r = {0};
    kn_generation *g = NULL;
    const kn_frame_sink sink = recording_sink(&r, request);
    const kn_tensor_tap tap = recording_tap(&r);
    ok(kn_generation_create(&g, s->model, request, &sink, &tap));
    run_to_end(g);
    assert_true(r.finished);
    assert_int_equal(r.frames, request->frames);
    kn_generation_destroy(&g);
    return r;
}

#endif
