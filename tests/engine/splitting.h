/* SPDX-License-Identifier: Apache-2.0
 *
 * Generations spread over ranks in a test: a model and its requests, what one process alone makes of them, and the
 * comparison, bit for bit. */
#ifndef KN_TESTS_ENGINE_SPLITTING_H
#define KN_TESTS_ENGINE_SPLITTING_H

#include "tests/engine/generating.h"
#include "tests/engine/ranks.h"

/* In place of a fixture: the demo model, whose clips are cut short, since what one process makes is the judge. */
#define DEMO "demo"
enum { DEMO_FRAMES = 9, DEMO_STEPS = 3 };

typedef struct work {
    const char *fixture; /* a folder of tests/golden, or DEMO */
    size_t requests;
    kn_precision precision;
    recording *expected; /* [requests] */
    uint64_t seed;
    int spare_fd; /* the segment of the next epoch */
} work;

static inline subject open_on(kn_device *device, const work *w)
{
    char path[1024];
    subject s = {.device = device};
    if (strcmp(w->fixture, DEMO) == 0)
        snprintf(path, sizeof path, "%s/models/demo", KN_SOURCE_DIR);
    else
        snprintf(path, sizeof path, "%s/tests/golden/%s/model", KN_SOURCE_DIR, w->fixture);
    if (kn_model_open(&s.model, &(kn_model_params){.directory = path,
                                                   .device = device,
                                                   .precision = w->precision,
                                                   .vae_precision = w->precision}) != KN_OK) {
        fprintf(stderr, "%s\n", kn_fail_message());
        abort();
    }
    return s;
}

static inline size_t work_requests(const work *w)
{
    return strcmp(w->fixture, DEMO) == 0 ? 1 : case_requests(w->fixture);
}

/* Release it. */
static inline kn_request work_request(const work *w, size_t index, const subject *s)
{
    if (strcmp(w->fixture, DEMO) != 0) return case_request(w->fixture, index, s);
    kn_request r = kn_request_empty();
    r.prompt = kn_strdup("a red ball bounces on the floor, by day");
    r.frames = DEMO_FRAMES;
    r.steps = DEMO_STEPS;
    r.guidance = 3.0; /* both branches */
    ok(kn_request_resolve(&r, kn_model_repository(s->model), NULL));
    return r;
}

/* What one process makes. No threads: the ranks are forked from this process. */
static inline void make_expected(work *w)
{
    subject s = {0};
    ok(kn_device_open(&s.device, &(kn_device_params){.name = "cpu", .threads = 1}));
    s = open_on(s.device, w);
    w->requests = work_requests(w);
    w->expected = calloc(w->requests, sizeof *w->expected);
    for (size_t i = 0; i < w->requests; i++) {
        kn_request request = work_request(w, i, &s);
        w->expected[i] = run_alone(&s, &request);
        kn_request_release(&request);
    }
    subject_close(&s);
}

static inline void free_expected(work *w)
{
    for (size_t i = 0; i < w->requests; i++) recording_free(&w->expected[i]);
    free(w->expected);
}

/* Everything a rank saw is what was expected; the first rank saw all of it. */
static inline void check_bits(const rank_context *ctx, const recording *got, const recording *wanted, bool frames)
{
    size_t seen = 0;
    for (size_t i = 0; i < wanted->count; i++) {
        const record *b = &wanted->records[i], *a = recording_find(got, b->name, b->index);
        if (!a) {
            RANK_CHECK(!frames || strcmp(b->name, "frames") != 0);
            continue;
        }
        if (a->count != b->count || memcmp(a->data, b->data, (size_t)a->count * sizeof *a->data) != 0) {
            fprintf(stderr, "rank %d of %d: %s[%d] differs\n", ctx->rank, ctx->ranks, a->name, (int)a->index);
            _exit(RANK_FAILED);
        }
        seen++;
    }
    RANK_CHECK(seen == got->count && seen > 0);
}

static inline uint32_t draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

#endif
