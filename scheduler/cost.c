/* SPDX-License-Identifier: Apache-2.0 */
#include "scheduler/cost.h"

#include <math.h>
#include <string.h>

#define FORGET (1.0 / 64)            /* weight of a new measurement in the fit */
#define SCALE_STEP (1.0 / 16)        /* and in the common scale */
#define ERROR_STEP (1.0 / 32)        /* and in the error */
#define ERROR_START 0.25             /* before anything was measured */
#define PULL 0.1                     /* of the common scale, in measurements */
#define TOLERANCE 3.0                /* errors beyond so many usual ones are cut */
#define TOLERANCE_LEAST 0.15         /* relative; noise of a healthy device */
#define PART_LEAST 0.02              /* fixed and rate stay above this part of their scaled seed */
#define DECODE_EFFICIENCY 0.2        /* convolutions of published decoders reach 12 to 18 % of a GPU's peak */
#define MUX_NS_PER_PIXEL_FRAME 0.1   /* closing a file: copying compressed bytes */
#define HEAD_WIDTH 128               /* of published models: heads are not divided between devices */
#define STATE_BYTES_PER_TOKEN 768    /* latents and two older predictions, 64 floats each */
#define LINK_BYTES_PER_SECOND 3.7e11 /* all-to-all, each way; as benchmarks/scaling_model.py assumes */
#define EXCHANGE_NS 12000

enum {
    EXCHANGES_PER_LAYER = 4, /* queries, keys, values and the result (engine/split.h) */
    EXCHANGES_PER_SLICE = 3, /* state and text at the start, velocity at the end */
    /* Of a decode slice: 90 rows of neighbours, keys and pictures in Wan's decoder, and twice 63 for its memory, two
     * frames of each of 31 convolutions over time and the last one's sums. */
    EXCHANGES_PER_FRAME = 216,
};

/* A group's two guidance branches go to two halves where it has halves. Of one branch's g members each sends 1 - 1/g of
 * its rows at every exchange. */
static void count_shared(kn_cost_work *out, const kn_cost_model *model, const kn_job_shape *shape, double attention)
{
    const int32_t heads = (model->heads_width + HEAD_WIDTH - 1) / HEAD_WIDTH;
    for (int32_t degree = 1; degree <= KN_SCHEDULER_DEGREE_MAX; degree++) {
        const int32_t branches = degree % 2 == 0 ? shape->sequences : 1, group = degree / branches;
        const double sequences = (double)shape->sequences / branches;
        const double share = (double)((heads + group - 1) / group) / heads;
        const double rows = sequences * shape->tokens / group;
        const double row = 2.0 * model->heads_width * (1 - 1.0 / group);
        out->part[degree - 1] =
            degree == 1 ? out->denoise : (out->denoise - attention) / degree + attention / branches * share;
        out->sent[degree - 1] = degree == 1 ? 0
                                            : EXCHANGES_PER_LAYER * model->layers * rows * row +
                                                  (double)shape->tokens * STATE_BYTES_PER_TOKEN +
                                                  2.0 * shape->text_tokens * model->width;
    }
}

void kn_cost_count(kn_cost_work *out, const kn_cost_model *model, const kn_job_shape *shape)
{
    const double n = shape->tokens, d = model->width, a = model->heads_width;
    const double text = (double)shape->text_tokens / shape->sequences;
    /* Query, key, value, output; feed-forward; cross attention's query and output; the two attentions. */
    const double layer = 8 * n * d * a + 4 * n * d * model->ffn + 4 * n * d * a + 4 * n * n * a + 4 * n * text * a;
    const double pixels = shape->pixels;
    out->text = shape->text_tokens * model->text_flop_per_token;
    out->denoise = shape->sequences * model->layers * layer;
    count_shared(out, model, shape, shape->sequences * model->layers * 4 * n * n * a);
    out->decode_first = pixels * model->decode_flop;
    out->decode = out->decode_first * model->frames_per_latent;
    out->remembered = (double)shape->decoder_bytes;
    out->mux = pixels * (1 + (shape->latent_frames - 1.0) * model->frames_per_latent);
}

double kn_cost_next(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress)
{
    switch (kn_job_next_stage(shape, progress)) {
    case KN_STAGE_TEXT: return work->text;
    case KN_STAGE_DENOISE: return work->denoise;
    case KN_STAGE_DECODE: return progress->decoded == 0 ? work->decode_first : work->decode;
    case KN_STAGE_MUX: return work->mux;
    case KN_STAGE_DONE: break;
    }
    return 0;
}

/* FLOP in the time that a byte takes to another device. */
static double flop_per_byte(const kn_device_seed *seed)
{
    return seed->flop_per_second /
           (seed->link_bytes_per_second > 0 ? seed->link_bytes_per_second : LINK_BYTES_PER_SECOND);
}

double kn_cost_shared_step(const kn_cost_work *work, const kn_device_seed *seed, int32_t degree)
{
    return work->part[degree - 1] + work->sent[degree - 1] * flop_per_byte(seed);
}

/* `trips`: times that a decoder's memory crosses, all but the leader's own share of it. */
static double shared_decode(const kn_cost_work *work, const kn_device_seed *seed, int32_t degree, double flop,
                            int32_t trips)
{
    /* Decoding runs at a part of the device's speed, as its rate says; the link does not. */
    const double efficiency = seed->decode_efficiency > 0 ? seed->decode_efficiency : DECODE_EFFICIENCY;
    return flop / degree + trips * work->remembered * (1 - 1.0 / degree) * flop_per_byte(seed) * efficiency;
}

double kn_cost_shared_frames(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress,
                             const kn_device_seed *seed, int32_t degree)
{
    const int32_t frames = shape->latent_frames - progress->decoded;
    if (frames <= 0) return 0;
    const double flop = frames * work->decode - (progress->decoded == 0 ? work->decode - work->decode_first : 0);
    return shared_decode(work, seed, degree, flop, 2 * frames - 1 - (progress->decoded == 0));
}

double kn_cost_shared(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress,
                      const kn_device_seed *seed, int32_t degree)
{
    if (kn_job_next_stage(shape, progress) != KN_STAGE_DECODE) return kn_cost_shared_step(work, seed, degree);
    const int32_t trips = (progress->decoded > 0) + (progress->decoded + 1 < shape->latent_frames);
    return shared_decode(work, seed, degree, progress->decoded == 0 ? work->decode_first : work->decode, trips);
}

void kn_cost_seed(kn_cost_fit *fit, const kn_cost_model *model, const kn_device_seed *seed, kn_stage stage,
                  int32_t degree)
{
    const double ns_per_flop = 1e9 / seed->flop_per_second;
    const double efficiency = seed->decode_efficiency > 0 ? seed->decode_efficiency : DECODE_EFFICIENCY;
    double fixed = (double)seed->slice_ns + 1, rate = ns_per_flop;
    switch (stage) {
    case KN_STAGE_TEXT: fixed += 1e9 * (double)model->text_bytes / seed->bytes_per_second; break;
    case KN_STAGE_DENOISE: fixed += 1e9 * (double)model->transformer_bytes / seed->bytes_per_second; break;
    case KN_STAGE_DECODE: rate /= efficiency; break;
    case KN_STAGE_MUX: rate = MUX_NS_PER_PIXEL_FRAME; break;
    case KN_STAGE_DONE: break;
    }
    if (degree > 1)
        fixed += (double)(seed->exchange_ns > 0 ? seed->exchange_ns : EXCHANGE_NS) *
                 (stage == KN_STAGE_DECODE ? EXCHANGES_PER_FRAME
                                           : EXCHANGES_PER_LAYER * model->layers + EXCHANGES_PER_SLICE);
    memset(fit, 0, sizeof *fit);
    fit->seed_fixed = fit->fixed = fixed;
    fit->seed_rate = fit->rate = rate;
    fit->scale = 1;
    fit->error = ERROR_START;
}

void kn_cost_follow(kn_cost_fit *fit, const kn_cost_fit *measured)
{
    fit->fixed = fit->seed_fixed * (measured->fixed / measured->seed_fixed);
    fit->rate = fit->seed_rate * (measured->rate / measured->seed_rate);
    fit->scale = measured->scale;
    fit->error = measured->error;
}

static double median(const double *values, int64_t count)
{
    double sorted[KN_COST_WARMUP] = {0};
    for (int64_t i = 0; i < count; i++) {
        int64_t j = i;
        for (; j > 0 && sorted[j - 1] > values[i]; j--) sorted[j] = sorted[j - 1];
        sorted[j] = values[i];
    }
    return count % 2 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

/* Least squares with the pull towards `scale`:
 *     | xx + pull   xy        | |a|   | xr + pull scale |
 *     | xy          yy + pull | |b| = | yr + pull scale |     fixed = a seed_fixed, rate = b seed_rate */
static void solve(kn_cost_fit *fit)
{
    const double xx = fit->xx + PULL, yy = fit->yy + PULL;
    const double xr = fit->xr + PULL * fit->scale, yr = fit->yr + PULL * fit->scale;
    const double determinant = xx * yy - fit->xy * fit->xy; /* positive: both diagonals have the pull */
    const double least = PART_LEAST * fit->scale;
    fit->fixed = fit->seed_fixed * fmax((xr * yy - yr * fit->xy) / determinant, least);
    fit->rate = fit->seed_rate * fmax((yr * xx - xr * fit->xy) / determinant, least);
}

void kn_cost_learn(kn_cost_fit *fit, double work, int64_t measured_ns)
{
    const double seeded = fit->seed_fixed + fit->seed_rate * work;
    const double predicted = kn_cost_predict(fit, work);
    const double miss = (double)measured_ns / predicted - 1;
    double ratio = (double)measured_ns / seeded;
    if (fit->measured < KN_COST_WARMUP) {
        fit->warmup[fit->measured++] = ratio;
        fit->scale = median(fit->warmup, fit->measured);
        if (fit->measured > 1) fit->error += (fmin(fabs(miss), 1) - fit->error) / (double)fit->measured;
        solve(fit);
        return;
    }
    const double limit = fmax(TOLERANCE * fit->error, TOLERANCE_LEAST);
    const double cut = fmax(fmin(miss, limit), -fmin(limit, 0.9));
    fit->measured++;
    fit->error += ERROR_STEP * (fmin(fabs(miss), 1) - fit->error);
    ratio = predicted * (1 + cut) / seeded;
    fit->scale += SCALE_STEP * (ratio - fit->scale);
    const double x = fit->seed_fixed / seeded, y = 1 - x;
    fit->xx += x * x - FORGET * fit->xx;
    fit->xy += x * y - FORGET * fit->xy;
    fit->yy += y * y - FORGET * fit->yy;
    fit->xr += x * ratio - FORGET * fit->xr;
    fit->yr += y * ratio - FORGET * fit->yr;
    solve(fit);
}

double kn_cost_decoding(const kn_cost_fit *fit, const kn_cost_work *work, const kn_job_shape *shape,
                        const kn_job_progress *progress, const kn_device_seed *seed, int32_t degree)
{
    const int32_t frames = shape->latent_frames - progress->decoded;
    if (frames <= 0) return 0;
    return frames * fit->fixed + fit->rate * kn_cost_shared_frames(work, shape, progress, seed, degree);
}

double kn_cost_remaining(const kn_cost_fit *fits, double step_ns, double decoding_ns, const kn_cost_work *work,
                         const kn_job_shape *shape, const kn_job_progress *progress)
{
    const int32_t steps = shape->steps - progress->step;
    double ns = decoding_ns;
    if (progress->done) return 0;
    if (steps > 0) {
        if (!progress->text) ns += kn_cost_predict(&fits[KN_STAGE_TEXT], work->text);
        ns += steps * step_ns;
    }
    return ns + kn_cost_predict(&fits[KN_STAGE_MUX], work->mux);
}
