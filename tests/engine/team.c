/* SPDX-License-Identifier: Apache-2.0
 *
 * Slices with helpers, which know nothing of a generation before and after: the same bytes whatever members each slice
 * has, alone or in a pack; and a helper that is late, out of memory or dead costs the slice, which its leader then runs
 * again with others, or alone. */
#define _GNU_SOURCE
#include "tests/engine/splitting.h"

#include <time.h>

#include "engine/team.h"

#ifdef __SANITIZE_ADDRESS__ /* four ranks take ten times as long */
enum { CHANGES = 20 };
#else
enum { CHANGES = 200 };
#endif
enum { RANKS = 4, PACK = 2 };

/* Every rank counts slices by itself: those left out see nothing of the generation. */
static kn_slice_kind kind_of(int32_t slice, int32_t steps, int32_t frames)
{
    return slice == 0                ? KN_SLICE_TEXT
           : slice <= steps          ? KN_SLICE_DENOISE
           : slice <= steps + frames ? KN_SLICE_DECODE
                                     : KN_SLICE_MUX;
}

static bool is_shared(kn_slice_kind kind)
{
    return kind == KN_SLICE_DENOISE || kind == KN_SLICE_DECODE;
}

/* The next slice, of `count` generations, on the ranks of `mask`; the first rank leads. */
static kn_status step_on(rank_context *ctx, const subject *s, uint32_t mask, kn_generation *const *gs, int32_t count)
{
    if (mask == 1) return ctx->rank == 0 ? kn_generation_step(gs, count) : KN_OK;
    const kn_group group = kn_group_of(ctx->comm, mask);
    if (group.index < 0) return KN_OK;
    kn_model_set_group(s->model, &group);
    const kn_status st = ctx->rank == 0 ? kn_team_lead(gs, count, s->model, true) : kn_team_assist(s->model);
    kn_model_set_group(s->model, NULL);
    return st;
}

/* ---- any members at every slice ---- */

static kn_status run_lending(rank_context *ctx)
{
    const work *w = ctx->user;
    uint64_t random = w->seed;
    subject s = open_on(ctx->device, w);
    for (int32_t changes = 0, round = 0; changes < CHANGES; round++) {
        const size_t i = (size_t)round % w->requests;
        kn_request request = work_request(w, i, &s);
        recording r[PACK] = {{0}};
        kn_generation *g[PACK] = {NULL};
        const int32_t count = round % PACK + 1;
        for (int32_t k = 0; ctx->rank == 0 && k < count; k++) {
            const kn_frame_sink sink = recording_sink(&r[k], &request);
            const kn_tensor_tap tap = recording_tap(&r[k]);
            RANK_OK(kn_generation_create(&g[k], s.model, &request, &sink, &tap));
        }
        const int32_t steps = request.steps, frames = kn_request_latent(&request, kn_model_repository(s.model)).t;
        uint32_t before = 0;
        for (int32_t slice = 0; slice < 1 + steps + frames + 1; slice++) {
            const uint32_t mask =
                is_shared(kind_of(slice, steps, frames)) ? (draw(&random) % (1u << ctx->ranks)) | 1 : 1;
            changes += mask != before;
            before = mask;
            RANK_OK(step_on(ctx, &s, mask, g, count));
        }
        for (int32_t k = 0; k < count; k++) {
            if (ctx->rank == 0) RANK_CHECK(r[k].finished);
            if (ctx->rank == 0) check_bits(ctx, &r[k], &w->expected[i], true);
            kn_generation_destroy(&g[k]);
            recording_free(&r[k]);
        }
        kn_request_release(&request);
    }
    kn_model_close(&s.model);
    return KN_OK;
}

static void any_members_at_every_slice(void **state)
{
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        work w = {.fixture = fixture_names[i], .precision = KN_PRECISION_FLOAT32, .seed = (uint64_t)i + 1};
        make_expected(&w);
        ranks_run(RANKS, run_lending, &w);
        free_expected(&w);
    }
    work w = {.fixture = DEMO, .precision = KN_PRECISION_BFLOAT16, .seed = 7};
    make_expected(&w);
    ranks_run(RANKS, run_lending, &w);
    free_expected(&w);
}

/* ---- helpers that fail ---- */

enum { TRIO = 3, LIMIT_MS = 3000, LATE_MS = 2000 }; /* long, for machines that have other things to do */

typedef enum trouble { DIES, RUNS_OUT_OF_MEMORY, IS_LATE, IS_SLOW, TROUBLES } trouble;

typedef struct failing {
    work w;
    trouble trouble;
    int32_t slice;        /* in which the last rank fails */
    uint64_t allocations; /* RUNS_OUT_OF_MEMORY: the one that is refused */
    int fd;               /* of the group */
} failing;

static void nap_ms(int64_t ms)
{
    const struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&left, NULL);
}

/* The last rank gets into trouble before, or in, one slice. */
static void fall_ill(const failing *f)
{
    switch (f->trouble) {
    case DIES: raise(SIGKILL); break;
    case RUNS_OUT_OF_MEMORY: kn_mem_fail_at(f->allocations); break;
    case IS_LATE: nap_ms(LIMIT_MS + LATE_MS); break;
    case IS_SLOW: nap_ms(LIMIT_MS / 10); break; /* within the limit: nobody minds */
    case TROUBLES: break;
    }
}

/* Rank 0 leads with all ranks until the group is given up, then goes on alone. The helpers end with what they were
 * told. */
static kn_status run_failing(rank_context *ctx)
{
    const failing *f = ctx->user;
    subject s = open_on(ctx->device, &f->w);
    kn_request request = work_request(&f->w, 0, &s);
    recording r = {0};
    kn_generation *g = NULL;
    kn_status st = KN_OK;
    const uint32_t all = (1u << ctx->ranks) - 1;
    const int32_t steps = request.steps, frames = kn_request_latent(&request, kn_model_repository(s.model)).t;
    for (int i = 0; i < KN_COMPONENT_COUNT; i++) RANK_OK(kn_model_prepare(s.model, (kn_component)i));
    kn_comm_set_limit(ctx->comm, LIMIT_MS * INT64_C(1000000));
    if (ctx->rank == 0) {
        const kn_frame_sink sink = recording_sink(&r, &request);
        RANK_OK(kn_generation_create(&g, s.model, &request, &sink, NULL));
    }
    const kn_group everyone = kn_group_of(ctx->comm, all);
    RANK_OK(kn_group_barrier(&everyone)); /* loading is nobody's lateness */
    bool lost = false;
    for (int32_t slice = 0; slice < 1 + steps + frames + 1; slice++) {
        const bool shared = is_shared(kind_of(slice, steps, frames)) && !lost;
        if (shared && slice == f->slice && ctx->rank == ctx->ranks - 1) fall_ill(f);
        st = step_on(ctx, &s, shared ? all : 1, &g, 1);
        kn_mem_fail_at(0);
        if (st == KN_OK) continue;
        if (ctx->rank > 0) break;
        RANK_CHECK(st == KN_UNAVAILABLE && shared);
        RANK_CHECK(slice == f->slice ||
                   (f->trouble == DIES && slice == f->slice - 1)); /* it was done before the rest */
        RANK_CHECK(kn_generation_next(g).kind == kind_of(slice, steps, frames));
        lost = true;
        slice--; /* once more, alone */
        st = KN_OK;
    }
    /* Decoding begins again where the loss fell into bringing the shares home. */
    for (int32_t again = 0; lost && again < frames && kn_generation_next(g).kind != KN_SLICE_DONE; again++)
        RANK_OK(step_on(ctx, &s, 1, &g, 1));
    if (ctx->rank == 0) {
        RANK_CHECK(r.finished && lost == (f->trouble != IS_SLOW));
        check_bits(ctx, &r, &f->w.expected[0], true);
    }
    kn_generation_destroy(&g);
    kn_request_release(&request);
    recording_free(&r);
    kn_model_close(&s.model);
    return st;
}

/* Codes of the ranks, and whom the group blames. */
static void expect_trouble(failing *f, int last_code, bool blamed, const char *reason)
{
    char why[160];
    bool given_up = false;
    uint32_t mask = 0;
    rank_team team = ranks_start(TRIO, run_failing, f, (kn_comm_params){.silence_ns = INT64_C(60000000000)});
    for (int32_t r = 0; r < TRIO; r++) ranks_wait_one(&team, r);
    ok(kn_comm_local_look(team.fd, &given_up, &mask, why, sizeof why));
    close(team.fd);
    const bool harmless = f->trouble == IS_SLOW;
    assert_int_equal(team.code[0], 0);
    assert_int_equal(team.code[1], harmless ? 0 : RANK_UNAVAILABLE);
    assert_int_equal(team.code[2], last_code);
    assert_int_equal(given_up, !harmless);
    assert_int_equal(mask, blamed ? 1u << (TRIO - 1) : 0);
    if (!strstr(why, reason)) fail_msg("\"%s\" does not say \"%s\"", why, reason);
}

static failing trouble_of(trouble t)
{
    return (failing){.trouble = t, .w = {.fixture = fixture_names[WAN_SMALL], .precision = KN_PRECISION_FLOAT32}};
}

static void a_dead_helper_costs_a_slice(void **state)
{
    (void)state;
    failing f = trouble_of(DIES);
    make_expected(&f.w);
    for (f.slice = 1; f.slice < 8; f.slice++) expect_trouble(&f, -SIGKILL, false, "has died");
    free_expected(&f.w);
}

static void a_late_helper_is_blamed(void **state)
{
    (void)state;
    failing f = trouble_of(IS_LATE);
    make_expected(&f.w);
    for (f.slice = 2; f.slice < 8; f.slice += 4) expect_trouble(&f, RANK_UNAVAILABLE, true, "kept rank");
    free_expected(&f.w);
}

static void a_slow_helper_is_waited_for(void **state)
{
    (void)state;
    failing f = trouble_of(IS_SLOW);
    make_expected(&f.w);
    for (f.slice = 2; f.slice < 8; f.slice += 4) expect_trouble(&f, 0, false, "");
    free_expected(&f.w);
}

/* Each of a helper's allocations in a denoise and in a decode slice is refused once. */
static void a_helper_without_memory_costs_a_slice(void **state)
{
    (void)state;
    failing f = trouble_of(RUNS_OUT_OF_MEMORY);
    make_expected(&f.w);
    for (f.slice = 3; f.slice < 8; f.slice += 3)
        for (f.allocations = 1; f.allocations <= 4; f.allocations++) expect_trouble(&f, RANK_FAILED, false, "");
    free_expected(&f.w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_members_at_every_slice),
        cmocka_unit_test(a_dead_helper_costs_a_slice),
        cmocka_unit_test(a_late_helper_is_blamed),
        cmocka_unit_test(a_slow_helper_is_waited_for),
        cmocka_unit_test(a_helper_without_memory_costs_a_slice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
