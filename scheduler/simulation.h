/* SPDX-License-Identifier: Apache-2.0
 *
 * Simulated days in seconds: a seeded trace of requests, simulated devices, and the scheduler's own object code. The
 * world differs from what the scheduler is told, as it does in life: devices are slower than their seed says, slices
 * take a little longer or shorter, some hang a while, devices die and come back. A property checker that keeps its own
 * books watches every change and every assignment. From one seed everything is the same again. */
#ifndef KN_SCHEDULER_SIMULATION_H
#define KN_SCHEDULER_SIMULATION_H

#include "scheduler/scheduler.h"

typedef enum kn_mix {
    KN_MIX_TETRISERVE, /* images of 256 to 2048 pixels a side, Poisson, every one with a tight deadline */
    KN_MIX_GENSERVE,   /* images and videos on the same devices, Poisson, deadlines */
    KN_MIX_BURSTY,     /* execution times and arrivals (CV 12) of a production trace; tenants, classes */
    KN_MIX_UNIFORM,    /* videos of many sizes, Poisson; tenants with weights, classes, some deadlines */
    KN_MIX_TARGETS, /* images as in TETRISERVE, with the published targets: 1.5, 2, 3 and 5 s whatever a device does */
    KN_MIXES,
} kn_mix;

const char *kn_mix_name(kn_mix mix); /* "tetriserve", "genserve", "bursty", "uniform", "targets" */

/* Bugs planted between the scheduler and the world, to see that the checker notices them. */
typedef enum kn_plant {
    KN_PLANT_NONE,
    KN_PLANT_DOUBLE_BOOKING, /* now and then an assignment is given twice */
    KN_PLANT_LOST_JOB,       /* the scheduler is never told of one job in a hundred */
    KN_PLANT_OVERFILL,       /* the scheduler believes in twice the memory */
    KN_PLANT_SKIPPED_TEXT,   /* now and then a text slice is left out */
    KN_PLANT_REPEATED_SLICE, /* now and then the scheduler does not learn that a text slice was done */
    KN_PLANT_STARVATION,     /* ageing is switched off, the checker still expects it */
    KN_PLANT_IDLENESS,       /* the scheduler is never told of the first device */
    KN_PLANT_STRANGER,       /* now and then a device is in a group twice */
    KN_PLANTS,
} kn_plant;

const char *kn_plant_name(kn_plant plant); /* "none", "double-booking", ... */

enum {
    KN_SIMULATE_JOBS_MAX = 1 << 20,  /* in a trace */
    KN_SIMULATE_QUEUE_MAX = 1 << 16, /* at a time: KN_SCHEDULER_JOBS_MAX */
    KN_SIMULATE_KINDS_MAX = 8,       /* of request in a mix */
    KN_SIMULATE_BOUND_MAX = 4000,    /* jobs of a trace the offline bound is computed for */
};

typedef struct kn_simulate_params {
    uint64_t seed;
    kn_mix mix;
    kn_policy_kind policy;
    int32_t devices;                  /* 1 .. KN_SCHEDULER_DEVICES_MAX */
    int32_t domain;                   /* devices per domain, which can form groups; 0: each is alone */
    int32_t degree_max, degree_fixed; /* as in kn_scheduler_params */
    int32_t jobs;                     /* requests in the trace */
    double load;         /* work that arrives per second / work the devices can do alone, without packing */
    double slo_scale;    /* deadlines are this many times their base */
    int64_t ageing_ns;   /* 0: the scheduler's default */
    int32_t pack;        /* 0: the scheduler's default */
    double failure_mean; /* seconds between two failures of a device; 0: none */
    double cancelled;    /* part of the requests that are cancelled some time after they arrive */
    bool admission;      /* ask kn_scheduler_admission first and drop what it refuses */
    bool tight_memory;   /* devices hold two or three jobs instead of many */
    int64_t wait_max_ns; /* longest time without service the checker accepts; 0: computed from the trace */
    kn_plant plant;
    int64_t (*clock)(void); /* nanoseconds, to time decisions by; NULL: they are not timed */
} kn_simulate_params;

typedef struct kn_simulate_kind {
    const char *name; /* "2048px" */
    int32_t timed;    /* requests with a deadline */
    int32_t on_time;
} kn_simulate_kind;

typedef struct kn_simulate_result {
    int32_t jobs, finished, cancelled, refused, timed, on_time;
    double attainment;          /* on_time / timed; refused requests are not on time */
    double p50, p95, p99, mean; /* seconds from submission to completion, of finished jobs */
    double utilisation;         /* busy device time / device time until the last job ended */
    double packing;             /* mean jobs per slice */
    double jain;         /* fairness between tenants: Jain's index of their jobs' mean speed, alone / as served */
    double span;         /* seconds simulated */
    double cost_error;   /* of the scheduler's predictions at the end, mean over kinds of slice */
    double longest_wait; /* seconds a job was without service */
    double degree;       /* mean devices per denoise slice */
    int64_t decide_p50_ns, decide_p99_ns, decide_max_ns; /* of one kn_scheduler_decide, by params.clock */
    uint64_t decisions, preemptions, releases, moves, demotions, failures;
    int32_t kind_count;
    kn_simulate_kind kinds[KN_SIMULATE_KINDS_MAX];
    uint64_t fingerprint;                      /* of every decision */
    int64_t violations;                        /* of the properties */
    char violation[KN_SCHEDULER_REASON_BYTES]; /* the first; "" */
} kn_simulate_result;

/* Runs one trace under one policy. The same mix, seed, devices, jobs, load and slo_scale give the same trace whatever
 * the policy. KN_INVALID names the parameter and its limit. */
kn_status kn_simulate_run(const kn_simulate_params *params, kn_simulate_result *out);

/* An upper bound on `attainment` under any policy, were it to know the whole trace before (bound.c says how). For at
 * most KN_SIMULATE_BOUND_MAX jobs. */
kn_status kn_simulate_bound(const kn_simulate_params *params, double *out);

typedef struct kn_simulate_bench {
    int32_t devices, queued;
    int64_t decisions, slices_done;      /* decisions made; jobs in them */
    int64_t total_ns;                    /* of the calls, decide and event, by `clock` */
    int64_t p50_ns, p999_ns, longest_ns; /* of a pair of calls; on a busy machine the last is the operating system's */
    double admission_ns, estimate_ns;
} kn_simulate_bench;

/* Times `decisions` decisions, each with the event that ends its slice, while `queued` jobs of the given mix of
 * deadlines, tenants and classes wait. `clock` gives nanoseconds. */
kn_status kn_simulate_measure(int32_t devices, int32_t queued, int64_t decisions, int64_t (*clock)(void),
                              kn_simulate_bench *out);

#endif
