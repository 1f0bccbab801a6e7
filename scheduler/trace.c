/* SPDX-License-Identifier: Apache-2.0
 *
 * The mixes. Models have the dimensions of published ones, devices the speed of one H100; the world's truth is slower
 * than the seed by TRUTH_SLOWER, and its kernels cost more to launch. */
#include "scheduler/trace.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

enum {
    IMAGE_MODEL, /* a 12 B text-to-image transformer with a 4.7 B text encoder */
    VIDEO_MODEL, /* Wan 2.1 1.3B */
    TENANTS = 8,
    WEIGHTS_MAX = 4,
    TOKENS_MAX = 200000,
};

#define GIB (UINT64_C(1) << 30)
#define TRUTH_SLOWER 1.25
#define SECOND 1e9
#define BURST_CV 12.0
#define EXECUTION_MEDIAN 23.0 /* seconds */
#define EXECUTION_SIGMA 0.657 /* of its logarithm: p99 is 106 s */

/* ---- random numbers ---- */

uint64_t kn_random_next(kn_random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

double kn_random_unit(kn_random *random)
{
    return (double)(kn_random_next(random) >> 11) * 0x1p-53;
}

int32_t kn_random_below(kn_random *random, int32_t limit)
{
    return (int32_t)(kn_random_unit(random) * limit);
}

double kn_random_exponential(kn_random *random, double mean)
{
    return -mean * log1p(-kn_random_unit(random));
}

/* Box and Muller 1958. */
static double normal(kn_random *random)
{
    const double radius = sqrt(-2 * log1p(-kn_random_unit(random)));
    return radius * cos(6.283185307179586 * kn_random_unit(random));
}

/* ---- the world ---- */

static const kn_cost_model models[KN_TRACE_MODELS] = {
    [IMAGE_MODEL] = {.layers = 57,
                     .width = 3072,
                     .ffn = 18432,
                     .heads_width = 3072,
                     .transformer_bytes = 24 * GIB,
                     .text_flop_per_token = 9.5e9,
                     .text_bytes = 9 * GIB,
                     .decode_flop = 2.5e6,
                     .frames_per_latent = 1,
                     .resident_bytes = 34 * GIB},
    [VIDEO_MODEL] = {.layers = 30,
                     .width = 1536,
                     .ffn = 8960,
                     .heads_width = 1536,
                     .transformer_bytes = 3 * GIB,
                     .text_flop_per_token = 9.5e9,
                     .text_bytes = 9 * GIB,
                     .decode_flop = 8.5e6, /* 275 TFLOP for 81 frames of 832x480 */
                     .frames_per_latent = 4,
                     .resident_bytes = 15 * GIB},
};

static void build_world(kn_trace *t, const kn_simulate_params *p)
{
    const kn_device_seed told = {
        .flop_per_second = 650e12, .decode_efficiency = 0.3, .bytes_per_second = 2.8e12, .slice_ns = 300000};
    kn_device_seed truth = told;
    truth.flop_per_second /= TRUTH_SLOWER;
    truth.slice_ns = 1500000;
    truth.link_bytes_per_second = 300e9;
    truth.exchange_ns = 15000;
    t->seed = truth;
    t->model_count = KN_TRACE_MODELS;
    memcpy(t->models, models, sizeof models);
    for (int m = 0; m < KN_TRACE_MODELS; m++)
        for (int k = 0; k < KN_STAGES; k++) kn_cost_seed(&t->truth[m][k], &models[m], &truth, (kn_stage)k, 1);
    static const kn_stage stages[KN_COST_SHAREABLE] = {KN_STAGE_DENOISE, KN_STAGE_DECODE};
    for (int m = 0; m < KN_TRACE_MODELS; m++)
        for (int k = 0; k < KN_COST_SHAREABLE; k++)
            for (int32_t degree = 2; degree <= KN_SCHEDULER_DEGREE_MAX; degree++)
                kn_cost_seed(&t->shared[m][k][degree - 2], &models[m], &truth, stages[k], degree);
    const uint64_t all = (1u << KN_TRACE_MODELS) - 1;
    t->device = (kn_change_device){.memory_bytes = p->tight_memory ? 62 * GIB : 80 * GIB,
                                   .models = (uint32_t)all,
                                   .loadable = (uint32_t)all,
                                   .load_ns = (int64_t)(2 * SECOND),
                                   .seed = told};
}

/* With every step, and all decoding, in the group that is fastest for it, of at most so many. */
static int64_t fastest_ns(const kn_trace *t, const kn_job_shape *shape, int32_t most)
{
    const kn_job_progress start = {0};
    double step = 0, decoding = 0;
    kn_cost_work work;
    kn_cost_count(&work, &t->models[shape->model], shape);
    for (int32_t degree = 1; degree <= most; degree++) {
        const double step_ns = kn_cost_predict(kn_trace_fit(t, shape->model, KN_STAGE_DENOISE, degree),
                                               kn_cost_shared_step(&work, &t->seed, degree));
        const double decoding_ns = kn_cost_decoding(kn_trace_fit(t, shape->model, KN_STAGE_DECODE, degree), &work,
                                                    shape, &start, &t->seed, degree);
        step = degree == 1 ? step_ns : fmin(step, step_ns);
        decoding = degree == 1 ? decoding_ns : fmin(decoding, decoding_ns);
    }
    return (int64_t)kn_cost_remaining(t->truth[shape->model], step, decoding, &work, shape, &start);
}

static int64_t alone_ns(const kn_trace *t, const kn_job_shape *shape)
{
    return fastest_ns(t, shape, 1);
}

/* As far as there can be such groups. */
static int64_t group_ns(const kn_trace *t, const kn_simulate_params *p, const kn_job_shape *shape)
{
    int32_t most = p->degree_max > 0 ? p->degree_max : KN_SCHEDULER_DEGREE_MAX;
    if (most > p->domain) most = p->domain;
    if (most > p->devices) most = p->devices;
    return fastest_ns(t, shape, most > 1 ? most : 1);
}

/* As alone, with every slice's fixed cost shared by the fullest pack. */
static int64_t least_ns(const kn_trace *t, const kn_job_shape *shape)
{
    double fixed = 0;
    const kn_cost_fit *truth = t->truth[shape->model];
    fixed += truth[KN_STAGE_TEXT].fixed + shape->steps * truth[KN_STAGE_DENOISE].fixed;
    fixed += shape->latent_frames * truth[KN_STAGE_DECODE].fixed + truth[KN_STAGE_MUX].fixed;
    return alone_ns(t, shape) - (int64_t)(fixed * (1 - 1.0 / KN_SCHEDULER_PACK_MAX));
}

static kn_job_shape image(int32_t side, int32_t steps)
{
    const int32_t tokens = side / 16 * (side / 16);
    return (kn_job_shape){.model = IMAGE_MODEL,
                          .tokens = tokens,
                          .sequences = 1,
                          .text_tokens = 256,
                          .steps = steps,
                          .latent_frames = 1,
                          .pixels = side * side,
                          .state_bytes = (uint64_t)tokens * 64 * 4 * 3 + (64 << 20),
                          .workspace_bytes = (uint64_t)tokens * 3072 * 2 * 14,
                          .decoder_bytes = (uint64_t)side * (uint64_t)side * 512};
}

static kn_job_shape video(int32_t width, int32_t height, int32_t frames, int32_t steps)
{
    const int32_t latents = 1 + (frames - 1) / 4, tokens = latents * (width / 16) * (height / 16);
    return (kn_job_shape){.model = VIDEO_MODEL,
                          .tokens = tokens,
                          .sequences = 2,
                          .text_tokens = 512,
                          .steps = steps,
                          .latent_frames = latents,
                          .pixels = width * height,
                          .state_bytes = (uint64_t)tokens * 64 * 4 * 3 + (200 << 20),
                          .workspace_bytes = (uint64_t)tokens * 1536 * 2 * 2 * 14,
                          .decoder_bytes = (uint64_t)width * (uint64_t)height * 6000};
}

/* ---- the mixes ---- */

/* A request of the mix, without its times. `slack` is the deadline as a multiple of the time alone; 0: none. */
typedef double draw_fn(kn_trace *t, kn_random *random, kn_trace_job *job);

/* Sizes equally often, 50 steps. The published targets (1.5, 2, 3 and 5 s on eight devices that share one request) are
 * about these multiples of the best time for each size; here a request runs on one device. */
static double draw_tetriserve(kn_trace *t, kn_random *random, kn_trace_job *job)
{
    static const int32_t sides[] = {256, 512, 1024, 2048};
    static const char *const names[] = {"256px", "512px", "1024px", "2048px"};
    static const double slack[] = {1.5, 1.67, 1.67, 1.25};
    job->kind = kn_random_below(random, 4);
    t->kind_count = 4;
    for (int i = 0; i < 4; i++) t->kinds[i] = names[i];
    job->shape = image(sides[job->kind], 50);
    return slack[job->kind];
}

/* Sizes equally often, and the published targets in seconds for eight H100. The 28 steps are a common setting for such
 * a model: with 50, eight devices of this speed take longer for the largest size than its target. */
static double draw_targets(kn_trace *t, kn_random *random, kn_trace_job *job)
{
    static const int32_t sides[] = {256, 512, 1024, 2048};
    static const char *const names[] = {"256px", "512px", "1024px", "2048px"};
    static const double seconds[] = {1.5, 2, 3, 5};
    job->kind = kn_random_below(random, 4);
    t->kind_count = 4;
    for (int i = 0; i < 4; i++) t->kinds[i] = names[i];
    job->shape = image(sides[job->kind], 28);
    return seconds[job->kind] * SECOND / (double)alone_ns(t, &job->shape);
}

/* Four images to a video, each kind of request with its own target. */
static double draw_genserve(kn_trace *t, kn_random *random, kn_trace_job *job)
{
    static const char *const names[] = {"image", "video"};
    const bool is_video = kn_random_unit(random) < 0.2;
    t->kind_count = 2;
    for (int i = 0; i < 2; i++) t->kinds[i] = names[i];
    job->kind = is_video;
    if (is_video)
        job->shape = kn_random_unit(random) < 0.5 ? video(832, 480, 49, 30) : video(832, 480, 81, 30);
    else
        job->shape = image(kn_random_unit(random) < 0.5 ? 512 : 1024, 28);
    return is_video ? 1.5 : 2.0;
}

static void draw_terms(kn_random *random, kn_trace_job *job)
{
    const double who = kn_random_unit(random), class = kn_random_unit(random);
    job->terms.tenant = (int32_t)(who * who * TENANTS); /* the first ask more than the last */
    job->terms.priority = class < 0.2 ? KN_PRIORITY_FLEX : class < 0.8 ? KN_PRIORITY_DEFAULT : KN_PRIORITY_URGENT;
}

static double draw_bursty(kn_trace *t, kn_random *random, kn_trace_job *job)
{
    const double wanted = EXECUTION_MEDIAN * exp(EXECUTION_SIGMA * normal(random)) * SECOND;
    int32_t low = 64, high = TOKENS_MAX;
    t->kind_count = 1;
    t->kinds[0] = "request";
    job->shape = image(1024, 30);
    while (high - low > 16) {
        job->shape.tokens = low + (high - low) / 2;
        if ((double)alone_ns(t, &job->shape) < wanted)
            low = job->shape.tokens;
        else
            high = job->shape.tokens;
    }
    draw_terms(random, job);
    return kn_random_unit(random) < 0.5 ? 0 : 4 + 8 * kn_random_unit(random);
}

static double draw_uniform(kn_trace *t, kn_random *random, kn_trace_job *job)
{
    static const int32_t widths[] = {416, 832, 1280}, heights[] = {240, 480, 720}, steps[] = {4, 20, 50};
    static const char *const names[] = {"240p", "480p", "720p"};
    t->kind_count = 3;
    for (int i = 0; i < 3; i++) t->kinds[i] = names[i];
    job->kind = kn_random_below(random, 3);
    const int32_t frames = 1 + 4 * (4 + kn_random_below(random, 17)), length = steps[kn_random_below(random, 3)];
    job->shape = video(widths[job->kind], heights[job->kind], frames, length);
    draw_terms(random, job);
    return kn_random_unit(random) < 0.5 ? 0 : 1.5 + 6 * kn_random_unit(random);
}

/* Time to the next arrival. CV 12: two exponentials with balanced means. */
static double gap(kn_random *random, double mean, bool bursts)
{
    if (!bursts) return kn_random_exponential(random, mean);
    const double square = BURST_CV * BURST_CV;
    const double p = 0.5 * (1 + sqrt((square - 1) / (square + 1)));
    return kn_random_unit(random) < p ? kn_random_exponential(random, 0.5 * mean / p)
                                      : kn_random_exponential(random, 0.5 * mean / (1 - p));
}

static void set_times(kn_trace *t, const kn_simulate_params *p, kn_random *random, const double *slack)
{
    const double mean = (double)t->work_ns / t->count / p->devices / p->load;
    double now = 0;
    for (int32_t i = 0; i < t->count; i++) {
        kn_trace_job *job = &t->jobs[i];
        now += gap(random, mean, p->mix == KN_MIX_BURSTY);
        job->terms.submitted_ns = 1 + (int64_t)now;
        if (slack[i] > 0)
            job->terms.deadline_ns =
                job->terms.submitted_ns + (int64_t)(slack[i] * p->slo_scale * (double)job->alone_ns);
        if (kn_random_unit(random) < p->cancelled)
            job->cancel_ns =
                job->terms.submitted_ns + 1 + (int64_t)(3 * kn_random_unit(random) * (double)job->alone_ns);
    }
}

kn_status kn_trace_create(kn_trace *out, const kn_simulate_params *p)
{
    static draw_fn *const draw[KN_MIXES] = {draw_tetriserve, draw_genserve, draw_bursty, draw_uniform, draw_targets};
    kn_status st = KN_OK;
    kn_random random = {p->seed ^ (uint64_t)p->mix << 56};
    random.state = kn_random_next(&random); /* neighbouring seeds would be one stream, shifted */
    double *slack = NULL;
    kn_trace *t = out;
    memset(t, 0, sizeof *t);
    build_world(t, p);
    t->count = p->jobs;
    t->tenants = TENANTS;
    t->jobs = kn_alloc_array((size_t)p->jobs, sizeof *t->jobs);
    slack = kn_alloc_array((size_t)p->jobs, sizeof *slack);
    if (!t->jobs || !slack) KN_TRY(KN_NOMEM);
    for (int32_t i = 0; i < p->jobs; i++) {
        kn_trace_job *job = &t->jobs[i];
        job->terms.priority = KN_PRIORITY_DEFAULT;
        slack[i] = draw[p->mix](t, &random, job);
        job->terms.tenant_weight = p->mix == KN_MIX_UNIFORM ? 1 + job->terms.tenant % WEIGHTS_MAX : 1;
        job->alone_ns = alone_ns(t, &job->shape);
        job->least_ns = least_ns(t, &job->shape);
        job->group_ns = group_ns(t, p, &job->shape);
        t->work_ns += job->alone_ns;
    }
    set_times(t, p, &random, slack);
fail:
    kn_free(slack);
    if (st != KN_OK) kn_trace_release(t);
    return st;
}

void kn_trace_release(kn_trace *trace)
{
    kn_free(trace->jobs);
    trace->jobs = NULL;
}
