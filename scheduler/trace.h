/* SPDX-License-Identifier: Apache-2.0
 *
 * Traces of requests, and the world they run in. Nothing is copied from a published trace; the statistics of one are
 * (Alibaba GenTD26: execution times p50 23 s, p99 106 s, mean 28.7 s, arrivals of CV 12). */
#ifndef KN_SCHEDULER_TRACE_H
#define KN_SCHEDULER_TRACE_H

#include "scheduler/cost.h"
#include "scheduler/simulation.h"

typedef struct kn_random {
    uint64_t state;
} kn_random;

uint64_t kn_random_next(kn_random *random);                /* splitmix64 */
double kn_random_unit(kn_random *random);                  /* 0 <= x < 1 */
int32_t kn_random_below(kn_random *random, int32_t limit); /* 0 .. limit - 1 */
double kn_random_exponential(kn_random *random, double mean);

typedef struct kn_trace_job {
    kn_job_shape shape;
    kn_job_terms terms;
    int64_t cancel_ns; /* 0: not cancelled */
    int64_t alone_ns;  /* what it takes alone on an idle device, at best */
    int64_t group_ns;  /* and in the best group there can be, at best */
    int64_t least_ns;  /* device time it takes at least, in the fullest pack */
    int32_t kind;
} kn_trace_job;

enum { KN_TRACE_MODELS = 2 };

typedef struct kn_trace {
    kn_trace_job *jobs; /* in order of submission */
    int32_t count;
    int32_t tenants;
    int32_t kind_count;
    const char *kinds[KN_SIMULATE_KINDS_MAX];
    int32_t model_count;
    kn_cost_model models[KN_TRACE_MODELS];
    kn_cost_fit truth[KN_TRACE_MODELS][KN_STAGES]; /* what slices really cost, before noise, which only adds */
    kn_cost_fit shared[KN_TRACE_MODELS][KN_COST_SHAREABLE][KN_SCHEDULER_DEGREE_MAX - 1]; /* groups of 2 + i */
    kn_device_seed seed;                                                                 /* of the truth */
    kn_change_device device;                                                             /* as the scheduler is told */
    int64_t work_ns;                                                                     /* of all jobs, each alone */
} kn_trace;

/* What such slices really cost. */
static inline const kn_cost_fit *kn_trace_fit(const kn_trace *trace, int32_t model, kn_stage stage, int32_t degree)
{
    return degree == 1 ? &trace->truth[model][stage] : &trace->shared[model][kn_cost_shareable_of(stage)][degree - 2];
}

kn_status kn_trace_create(kn_trace *out, const kn_simulate_params *params);
void kn_trace_release(kn_trace *trace);

/* No schedule finishes more than this part of the jobs with a deadline in time (bound.c). */
kn_status kn_trace_bound(const kn_trace *trace, int32_t devices, double *out);

#endif
