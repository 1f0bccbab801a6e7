/* SPDX-License-Identifier: Apache-2.0
 *
 * What a slice costs. Time of a slice on a device = fixed + rate x work, with work in FLOP summed over the jobs of the
 * pack: the weights are read and the kernels launched once for all, which is what packing saves. The two numbers are
 * seeded from the model's dimensions and the device's speed and then fitted, per device, model and kind of slice, to
 * what was measured.
 *
 * In a group of d devices the work is what each of them does, work / d, rounded up to whole attention heads, and the
 * bytes that it sends, in FLOP by the ratio of compute speed and link rate; the fixed cost has every exchange's own in
 * addition. Weights are still read and kernels still launched on every device, so that small slices gain little. A
 * decode slice's bytes are what the decoder remembers of the frames before: its leader hands it out and has it brought
 * back, but for the first frame and the last one. Every degree has a fit of its own for denoise and for decode slices;
 * one for which little was measured yet follows the one measured most.
 *
 * The fit is least squares on ratios to the seed, in the coordinates (fixed / seeded fixed, rate / seeded rate), with
 * exponential forgetting and a weak pull towards a common scale, so that a device that only ever sees one size is
 * scaled as a whole. A measurement far from the prediction counts as if it were nearer (Huber 1964): one hiccup moves
 * little, and a lasting change is followed because the tolerance grows with the error. */
#ifndef KN_SCHEDULER_COST_H
#define KN_SCHEDULER_COST_H

#include "scheduler/scheduler.h"

enum { KN_COST_WARMUP = 5 }; /* measurements of which the median sets the first scale */

typedef struct kn_cost_fit {
    double seed_fixed, seed_rate; /* ns; ns per FLOP */
    double fixed, rate;           /* fitted, same units */
    double scale;                 /* common factor on the seed */
    double xx, xy, yy, xr, yr;    /* decayed normal equations; x + y = 1 are the shares of a seeded prediction */
    double warmup[KN_COST_WARMUP];
    double error;     /* decayed mean of |measured - predicted| / predicted, each at most 1 */
    int64_t measured; /* measurements so far */
} kn_cost_fit;

/* The work of one job's slices, FLOP. */
typedef struct kn_cost_work {
    double text, denoise, decode_first, decode, mux; /* each slice; decode_first: the first latent frame */
    double part[KN_SCHEDULER_DEGREE_MAX];            /* of a denoise slice in a group of 1 + i: FLOP of one member */
    double sent[KN_SCHEDULER_DEGREE_MAX]; /* and the bytes it sends, and is sent at the slice's start and end */
    double remembered;                    /* bytes a decoder has kept from one slice for the next */
} kn_cost_work;

/* Kinds of slice that a group can share. */
typedef enum kn_cost_shareable { KN_COST_DENOISE, KN_COST_DECODE, KN_COST_SHAREABLE } kn_cost_shareable;

static inline bool kn_cost_is_shareable(kn_stage stage)
{
    return stage == KN_STAGE_DENOISE || stage == KN_STAGE_DECODE;
}

static inline kn_cost_shareable kn_cost_shareable_of(kn_stage stage)
{
    return stage == KN_STAGE_DECODE ? KN_COST_DECODE : KN_COST_DENOISE;
}

void kn_cost_count(kn_cost_work *out, const kn_cost_model *model, const kn_job_shape *shape);

/* Work of the slice a job with this progress runs next. */
double kn_cost_next(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress);

/* Work of a job's denoise slice for one member of a group, exchange included, FLOP. */
double kn_cost_shared_step(const kn_cost_work *work, const kn_device_seed *seed, int32_t degree);

/* The same of all decode slices that a job with this progress has still to run; of `degree` 1 too. */
double kn_cost_shared_frames(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress,
                             const kn_device_seed *seed, int32_t degree);

/* The same of the slice that is next, which is of one of these two kinds. */
double kn_cost_shared(const kn_cost_work *work, const kn_job_shape *shape, const kn_job_progress *progress,
                      const kn_device_seed *seed, int32_t degree);

/* A fit that knows only the seed. A degree above 1 is of a slice that can be shared. */
void kn_cost_seed(kn_cost_fit *fit, const kn_cost_model *model, const kn_device_seed *seed, kn_stage stage,
                  int32_t degree);

/* Scales a fit for which little was measured like one for which something was. */
void kn_cost_follow(kn_cost_fit *fit, const kn_cost_fit *measured);

/* A slice of `work` FLOP took `measured_ns`. */
void kn_cost_learn(kn_cost_fit *fit, double work, int64_t measured_ns);

static inline double kn_cost_predict(const kn_cost_fit *fit, double work)
{
    return fit->fixed + fit->rate * work;
}

/* Nanoseconds that all remaining decode slices take, by a fit for this degree. */
double kn_cost_decoding(const kn_cost_fit *fit, const kn_cost_work *work, const kn_job_shape *shape,
                        const kn_job_progress *progress, const kn_device_seed *seed, int32_t degree);

/* Nanoseconds a job alone still needs, by the fits of one device and model, [KN_STAGES], with `step_ns` for a denoise
 * slice and `decoding_ns` for all decode slices that remain. */
double kn_cost_remaining(const kn_cost_fit *fits, double step_ns, double decoding_ns, const kn_cost_work *work,
                         const kn_job_shape *shape, const kn_job_progress *progress);

#endif
