/* SPDX-License-Identifier: Apache-2.0
 *
 * The scheduler's state, and what its files do with it.
 *
 *   jobs.c      slots and keys
 *   place.c     where a job that does not run belongs: a plan, the spare queue, its tenant's queue
 *   residence.c memory and residents of a device
 *   change.c    what happened
 *   choice.c    which job leads the next slice of a device
 *   packing.c   time and devices for the planned jobs of a domain
 *   group.c     who leads and who helps there
 *   decide.c    its pack mates, its room, the assignment
 *   estimate.c  promises
 *
 * Every job has a slot. A job that is not finished is in exactly one place:
 *
 *   plan       it has a deadline and a pool keeps work in order of deadline to meet it; resident or not
 *   spare      it has a deadline that could be met, but in no plan without breaking another; not resident
 *   fair       it waits in its tenant's queue of its class; not resident
 *   nowhere    it resides on a device without being planned, or its release there is not confirmed yet
 *
 * A pool is the devices that share a plan: one device, or where groups are chosen all of one kind in a domain. It is
 * known by the device that was up first, which has the plan. */
#ifndef KN_SCHEDULER_STATE_H
#define KN_SCHEDULER_STATE_H

#include "scheduler/cost.h"
#include "scheduler/queue.h"
#include "scheduler/scheduler.h"

enum {
    KN_CLASS_LATE, /* below all others: jobs whose deadline has been given up */
    KN_CLASSES = 1 + KN_PRIORITIES,
    KN_NO_SLOT = -1,
    KN_NO_DEVICE = -1,
};

/* Stands for no deadline wherever deadlines are compared. */
#define KN_DEADLINE_FAR (INT64_C(1) << 60)

typedef enum kn_place { KN_PLACE_NOWHERE, KN_PLACE_PLAN, KN_PLACE_SPARE, KN_PLACE_FAIR } kn_place;

typedef struct kn_core_job {
    uint64_t key;
    uint64_t seq; /* order of admission; unique */
    kn_job_shape shape;
    kn_job_terms terms;
    kn_job_progress progress;
    int32_t saved_step; /* of its durable checkpoint */
    kn_cost_work work;
    int64_t served_ns;   /* end of its last slice, or when it was submitted */
    int64_t left_ns;     /* device time still needed, after the slice that runs */
    int32_t device;      /* where it resides or is being released; or KN_NO_DEVICE */
    int32_t last_device; /* where it resided before */
    int32_t plan;        /* pool of the plan it is in */
    kn_place place;
    bool used;      /* the slot holds a job */
    bool running;   /* in a slice */
    bool releasing; /* told to leave `device`; not confirmed */
    bool removed;   /* gone but for its memory on `device` */
    bool late;      /* deadline given up */
    bool aged;      /* waited ageing_ns once; served first until it is done */
    int32_t next_free;
} kn_core_job;

typedef struct kn_core_device {
    bool up, known; /* known: was up once */
    bool busy;
    kn_change_device terms;
    int32_t pool;     /* see above */
    uint64_t members; /* of a pool: bit per device, up or not */
    int64_t slack_ns; /* of a pool: time to spare of the jobs with deadlines that came lately, when they came; mean */
    int64_t timed_ns; /* when the last of them came */
    int64_t held_ns;  /* idle for the sake of jobs that may come since then; 0: it is not */
    int32_t leader;   /* busy: device that leads its slice; itself, or another one that it helps */
    uint64_t memory_used; /* models, states and decoders; workspaces are only there during a slice */
    int32_t residents[KN_SCHEDULER_RESIDENTS_MAX]; /* slots, in order of start */
    int32_t resident_count;
    int32_t running[KN_SCHEDULER_PACK_MAX]; /* slots in the current or last slice; KN_NO_SLOT: gone since */
    int32_t running_count;
    int32_t running_model;
    int32_t running_degree;
    uint64_t helpers; /* bit per device; of the slice it leads */
    kn_stage running_stage;
    bool running_planned; /* a planned job led it */
    bool running_aged;    /* an aged job leads it */
    int64_t free_ns;      /* busy: expected end of the slice */
    int64_t busy_ns;      /* spent in slices */
    uint64_t slices;
    int64_t aged_ns;      /* credit for aged jobs; a slice of theirs may start while it is not negative */
    int64_t fair_left_ns; /* left_ns of its residents that are not planned */
    int64_t spare_key;    /* where in the spare queue it looks next */
    uint64_t spare_seq;
    int32_t shed;  /* resident to release at the next slice boundary, for an idle device; or KN_NO_SLOT */
    kn_queue plan; /* of a pool; nodes: job slots; key: deadline */
    kn_cost_fit fits[KN_SCHEDULER_MODELS_MAX][KN_STAGES];
    kn_cost_fit shared[KN_SCHEDULER_MODELS_MAX][KN_COST_SHAREABLE][KN_SCHEDULER_DEGREE_MAX - 1]; /* groups of 2 + i */
    kn_cost_fit basis[KN_SCHEDULER_MODELS_MAX][KN_STAGES]; /* as they were when left_ns was last brought up to date */
} kn_core_device;

typedef struct kn_core_tenant {
    int32_t weight;
    int64_t virtual_ns; /* service / weight; never behind the queue's when it comes back */
    int64_t service_ns;
    int32_t unfinished;           /* jobs */
    kn_queue waiting[KN_CLASSES]; /* nodes: job slots; key: submission */
} kn_core_tenant;

struct kn_scheduler {
    kn_scheduler_params params;
    kn_cost_model models[KN_SCHEDULER_MODELS_MAX];
    bool draining;
    int64_t now_ns; /* of the last call */
    uint64_t next_seq;
    int32_t job_count, free_slot;
    uint64_t up, idle;            /* bit per device */
    int64_t virtual_ns;           /* of the tenant served last */
    int32_t refresh;              /* slots below are up to date with the cost model */
    int32_t orphans;              /* removed jobs that still reside somewhere */
    int64_t backlog_ns;           /* left_ns of all unfinished jobs */
    int64_t class_ns[KN_CLASSES]; /* left_ns of those in tenants' queues */
    int32_t class_count[KN_CLASSES];
    kn_scheduler_stats stats;

    kn_core_job *jobs;        /* [params.jobs] */
    kn_queue_node *nodes;     /* [params.jobs]: plans, spare, tenants' queues */
    kn_queue_node *age_nodes; /* [params.jobs] */
    int32_t *slots;           /* [slot_mask + 1]: key to slot, open addressing */
    uint32_t slot_mask;
    kn_core_tenant *tenants;      /* [params.tenants] */
    kn_queue_node *tenant_nodes;  /* [params.tenants][KN_CLASSES] */
    kn_queue classes[KN_CLASSES]; /* nodes: tenants with waiting jobs of the class; key: virtual time, or earlier */
    kn_queue spare;               /* key: work, the shortest first */
    kn_queue age;                 /* key: served_ns; jobs in tenants' queues */
    kn_core_device devices[KN_SCHEDULER_DEVICES_MAX];
};

/* ---- change.c ---- */

kn_status kn_core_check_shape(const kn_scheduler *s, const kn_job_shape *shape);
kn_status kn_core_check_terms(const kn_scheduler *s, const kn_job_terms *terms);

/* Fits of a model on a device, from its seed. */
void kn_core_seed(kn_core_device *d, int32_t index, const kn_cost_model *model);

/* ---- jobs.c ---- */

int32_t kn_core_find(const kn_scheduler *s, uint64_t key); /* slot or KN_NO_SLOT */
int32_t kn_core_add(kn_scheduler *s, uint64_t key);        /* zeroed but for key and seq; KN_NO_SLOT: full */
void kn_core_forget(kn_scheduler *s, int32_t slot);        /* frees a slot that is in no place and resides nowhere */

static inline bool kn_core_plain(const kn_scheduler *s)
{
    return s->params.policy != KN_POLICY_KINORA;
}

/* Are groups chosen in this domain? Then its devices of one kind are one pool. */
static inline bool kn_core_chooses(const kn_scheduler *s, int32_t domain)
{
    return domain != 0 && !kn_core_plain(s) && s->params.degree_max > 1 && s->params.degree_fixed == 0;
}

/* Devices that run every denoise slice of this one together, and every decode slice that is faster so; 1 where groups
 * are chosen. */
static inline int32_t kn_core_fixed(const kn_scheduler *s, int32_t device)
{
    return s->params.degree_fixed > 1 && s->devices[device].terms.domain != 0 ? s->params.degree_fixed : 1;
}

static inline kn_queue *kn_core_plan_of(kn_scheduler *s, int32_t device)
{
    return &s->devices[s->devices[device].pool].plan;
}

/* Of a stage that can be shared where the degree is above 1. */
static inline const kn_cost_fit *kn_core_read_fit(const kn_core_device *d, int32_t model, kn_stage stage,
                                                  int32_t degree)
{
    return degree == 1 ? &d->fits[model][stage] : &d->shared[model][kn_cost_shareable_of(stage)][degree - 2];
}

static inline kn_cost_fit *kn_core_fit(kn_core_device *d, int32_t model, kn_stage stage, int32_t degree)
{
    return (kn_cost_fit *)(uintptr_t)kn_core_read_fit(d, model, stage, degree); /* the device can be written */
}

/* What a device's account of aged jobs grows to at most, and goes into debt by: time in which their share comes to an
 * eighth of ageing_ns. */
static inline int64_t kn_core_aged_credit(const kn_scheduler *s)
{
    return s->params.ageing_ns / (8 * KN_SCHEDULER_AGED_SHARE);
}

static inline int64_t kn_core_deadline(const kn_core_job *job)
{
    return job->terms.deadline_ns == KN_SCHEDULER_NO_DEADLINE ? KN_DEADLINE_FAR : job->terms.deadline_ns;
}

/* ---- place.c ---- */

/* Progress after the slice that is next. */
void kn_core_advance(const kn_job_shape *shape, kn_job_progress *progress);
/* Largest group a device can lead or help in. */
int32_t kn_core_largest(const kn_scheduler *s, int32_t device);
/* A device of the pool on which such a job could run; KN_NO_DEVICE: none. */
int32_t kn_core_in_pool(const kn_scheduler *s, const kn_job_shape *shape, int32_t pool);
/* Shortest time in which the job can be done, where it resides or would likely run. */
int64_t kn_core_least(const kn_scheduler *s, const kn_core_job *job);
/* Cost of a denoise slice of a job alone, in a group of so many that are like the device. */
double kn_core_step_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device, int32_t degree);
/* Of all its decode slices from that progress on. */
double kn_core_decoding_ns(const kn_scheduler *s, const kn_core_job *job, const kn_job_progress *progress,
                           int32_t device, int32_t degree);
/* Cost of the job's next slice alone, which can be shared if the degree is above 1. */
double kn_core_shared_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device, int32_t degree);
/* What a job with this progress still needs there, with every denoise slice in such a group, and its decode slices
 * where that is faster. */
double kn_core_remaining(const kn_scheduler *s, const kn_core_job *job, const kn_job_progress *progress, int32_t device,
                         int32_t degree);
/* Device time a job still needs on a device; KN_NO_DEVICE: on the one it would likely run on. */
int64_t kn_core_left(const kn_scheduler *s, const kn_core_job *job, int32_t device);
/* A device that is up on which such a job could run; KN_NO_DEVICE: none. */
int32_t kn_core_reference(const kn_scheduler *s, const kn_job_shape *shape);
/* When a device can start something else. */
int64_t kn_core_free_at(const kn_scheduler *s, int32_t device, int64_t now_ns);
/* When a pool's plan can start something else: on average, where several devices share it. */
int64_t kn_core_plan_start(const kn_scheduler *s, int32_t pool, int64_t now_ns);
/* A job's part of a plan: its time on the device; where groups are chosen, the device time it takes to be just in time,
 * shared by the devices of the pool. */
int64_t kn_core_plan_work(const kn_scheduler *s, const kn_core_job *job, int32_t pool, int64_t left_ns);
int kn_core_class(const kn_scheduler *s, const kn_core_job *job);
int32_t kn_core_tenant_of(const kn_scheduler *s, const kn_core_job *job);

/* Finds a place for a job that does not reside anywhere and is in no place. */
void kn_core_place(kn_scheduler *s, int32_t slot, int64_t now_ns);
/* Takes a job out of its place. */
void kn_core_unplace(kn_scheduler *s, int32_t slot);
/* Moves a job into the plan of a device's pool if that keeps every deadline there; a resident one only where it
 * resides. */
bool kn_core_plan(kn_scheduler *s, int32_t slot, int32_t device, int64_t now_ns);
/* Takes a job out of its plan, for which it is too much. */
void kn_core_displace(kn_scheduler *s, int32_t slot, int64_t now_ns);
/* Gives up deadlines of a pool's plan until the rest can be met. */
void kn_core_relieve(kn_scheduler *s, int32_t device, int64_t now_ns);
/* Its deadline will not be met: from now on it is of the lowest class. Not for a job in a tenant's queue. */
void kn_core_give_up(kn_scheduler *s, int32_t slot);
/* Sets left_ns and whatever depends on it. */
void kn_core_set_left(kn_scheduler *s, int32_t slot, int64_t left_ns);
/* Brings some jobs' left_ns up to date after the cost model changed. */
void kn_core_refresh(kn_scheduler *s);
/* Waiting job of a tenant's queue a device should take next, and its class; KN_NO_SLOT. */
int32_t kn_core_fair_first(kn_scheduler *s, int32_t device, int *job_class);
/* A tenant has used a device for so long. */
void kn_core_charge(kn_scheduler *s, int32_t tenant, int64_t ns);

/* ---- residence.c ---- */

/* Largest sum of memory such a job needs on a device with nothing else there. */
uint64_t kn_core_need(const kn_scheduler *s, const kn_job_shape *shape);
bool kn_core_fits(const kn_scheduler *s, const kn_job_shape *shape, int32_t device);
/* What a job holds on its device between slices. */
uint64_t kn_core_held(const kn_core_job *job);
/* What its next slice needs on top. */
uint64_t kn_core_extra(const kn_core_job *job);
void kn_core_reside(kn_scheduler *s, int32_t slot, int32_t device);
/* Takes a resident off its device's list and memory; its place and `device` field are the caller's affair. */
void kn_core_leave(kn_scheduler *s, int32_t slot);
/* Progress of a job that has to start again from a checkpoint at `step`. */
kn_job_progress kn_core_restart(const kn_core_job *job, int32_t step);

/* Memory that each device needs for a share of the job's next slice, beside what it holds; 0: it cannot be shared. */
uint64_t kn_core_share_bytes(const kn_core_job *job);
/* Can the next slice of these residents be shared, and has their device room for its share? */
bool kn_core_can_lead(const kn_scheduler *s, int32_t device, const int32_t *slots, int32_t count);
/* Can the device help in a slice of the model that needs so much memory? */
bool kn_core_can_help(const kn_scheduler *s, int32_t device, int32_t leader, int32_t model, uint64_t bytes);

/* ---- decide.c ---- */

/* Starts a slice of an idle device that this job leads, on that device alone or in its fixed group. */
void kn_core_start(kn_scheduler *s, int32_t device, int32_t lead, bool aged, int64_t now_ns, kn_assignment *out);
/* More idle devices, bit per device, help in a slice that has been started just now and can be shared. */
void kn_core_join(kn_scheduler *s, uint64_t helpers, int64_t now_ns, kn_assignment *out);
/* What the slice would take on so many devices, without loading. */
double kn_core_slice_ns(const kn_scheduler *s, const kn_assignment *slice, int32_t degree);

/* ---- choice.c ---- */

/* Brings the plan of a device's pool in order. */
void kn_core_tidy(kn_scheduler *s, int32_t device, int64_t now_ns);
/* The aged job that the device owes time; KN_NO_SLOT: none. */
int32_t kn_core_aged_lead(const kn_scheduler *s, int32_t device, int64_t now_ns);
/* The best of the jobs that are not planned, and its class; KN_NO_SLOT: none. */
int32_t kn_core_fair_lead(kn_scheduler *s, int32_t device, int *job_class);
/* Does a planned job come before that one? */
bool kn_core_comes_first(const kn_scheduler *s, int32_t planned, int32_t fair, int fair_class, int32_t device,
                         int64_t now_ns);
/* For a device with nothing else to do; KN_NO_SLOT: nothing. */
int32_t kn_core_last_resort(kn_scheduler *s, int32_t device, int64_t now_ns);
/* What its next slice takes on a device, alone. */
int64_t kn_core_next_ns(const kn_scheduler *s, const kn_core_job *job, int32_t device);
/* The job that leads the device's next slice; KN_NO_SLOT: nothing to do. */
int32_t kn_core_lead(kn_scheduler *s, int32_t device, int64_t now_ns, bool *aged);

/* ---- group.c ---- */

/* Slices for the idle devices of a pool in which groups are chosen; returns their number. */
int32_t kn_core_decide_pool(kn_scheduler *s, int32_t pool, int64_t now_ns, kn_assignment *out, int32_t max);

#endif
