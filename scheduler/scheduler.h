/* SPDX-License-Identifier: Apache-2.0
 *
 * Decisions: which slice of which job runs next, on which device, with which others.
 *
 *   what happened ──► kn_scheduler_event(now) ──► state ──► kn_scheduler_decide(now) ──► what to start
 *
 * A pure state machine: no thread, socket, clock or disk. The server drives it with real time, `kinora simulate` drives
 * the same object code with simulated time. The same events at the same times give the same decisions. Not
 * thread-safe; one owner. All times are int64_t nanoseconds from one arbitrary start, given by the caller, and never
 * go back. Memory is allocated by kn_scheduler_create and by nothing else.
 *
 * A job is known by the caller's 64-bit key. It waits; is started on a device, where it then *resides* (its state
 * occupies memory there) and advances slice by slice; and ends. Between two slices the core decides again: a resident
 * job may go on, pause with its latents kept, or be released to make room, and then continue anywhere from where it
 * was, at the price of one more `text` slice. What a worker's death takes is the steps since the last checkpoint.
 *
 *   job        waiting ──assignment──► running ──slice done──► resident ──assignment──► running … ──► done
 *                 ▲                       │ slice failed, device down        │ release
 *                 └───────────────────────┴──────────────────────────────────┘
 *
 * How it decides (scheduler/choice.c): jobs with a deadline are planned on a device in order of deadline, as long as
 * every one of them can be met; when not all can, the plan gives up the job that costs most for its worth, which is
 * late alone instead of making the others late. Everything else shares what is left by priority class, inside a class
 * by weighted fair time between tenants, inside a tenant in order of arrival. A job that has not been served for
 * `ageing_ns` is aged: it gets a turn before all of this, the oldest first, at the latest after ageing_ns / 8 more,
 * until it is done. Aged jobs together have at least one part in KN_SCHEDULER_AGED_SHARE of a device's time, in
 * stretches of up to ageing_ns / 64. A job therefore waits at most 9/8 of ageing_ns, and KN_SCHEDULER_AGED_SHARE times
 * the aged jobs' work before it over all devices, while there are devices that can run it.
 *
 * Devices of one domain (kn_change_device.domain) can run a denoise or decode slice together. Their jobs with deadlines
 * share one plan, in which each gets as many devices as it needs to be in time, anew at every slice
 * (scheduler/packing.c); devices that nobody needs help in the slices that start (scheduler/group.c). */
#ifndef KN_SCHEDULER_H
#define KN_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Scheduling classes: what a client pays for and how long it may wait. "flex", "default" and "priority" in the API. */
typedef enum kn_priority { KN_PRIORITY_FLEX, KN_PRIORITY_DEFAULT, KN_PRIORITY_URGENT, KN_PRIORITIES } kn_priority;

const char *kn_priority_name(kn_priority priority); /* "flex", "default", "priority" */

enum {
    KN_SCHEDULER_DEVICES_MAX = 64,
    KN_SCHEDULER_MODELS_MAX = 16,
    KN_SCHEDULER_TENANTS_MAX = 4096,
    KN_SCHEDULER_JOBS_MAX = 1 << 16,
    KN_SCHEDULER_PACK_MAX = 16,      /* jobs in one slice */
    KN_SCHEDULER_DEGREE_MAX = 8,     /* devices that run one slice together */
    KN_SCHEDULER_RESIDENTS_MAX = 32, /* jobs that reside on one device */
    KN_SCHEDULER_STEPS_MAX = 10000,
    KN_SCHEDULER_AGED_SHARE = 8, /* aged jobs get one part in so many of a device's time while there are any */
    KN_SCHEDULER_REASON_BYTES = 200,
};

/* Largest duration or time accepted: a little over 36 years, so that sums of many do not overflow. */
#define KN_SCHEDULER_TIME_MAX (INT64_C(1) << 60)
#define KN_SCHEDULER_NO_DEADLINE INT64_C(0)
/* Largest size accepted: a pebibyte. */
#define KN_SCHEDULER_BYTES_MAX (INT64_C(1) << 50)

/* KINORA is the policy above. The others are for comparison and ignore priority, tenants and ageing; they share packs,
 * memory and cost model. FIFO, SJF and EDF run a job they have started to its end; SRPT and EDF_STEP may change to
 * another job after every slice. */
typedef enum kn_policy_kind {
    KN_POLICY_KINORA,
    KN_POLICY_FIFO,     /* first come, first served */
    KN_POLICY_SJF,      /* shortest job first */
    KN_POLICY_EDF,      /* earliest deadline first */
    KN_POLICY_SRPT,     /* shortest remaining time first */
    KN_POLICY_EDF_STEP, /* earliest deadline first, at every step */
    KN_POLICIES,
} kn_policy_kind;

const char *kn_policy_name(kn_policy_kind policy); /* "kinora", "fifo", "sjf", "edf", "srpt", "edf-step" */

typedef struct kn_scheduler_params {
    kn_policy_kind policy;
    int32_t jobs;             /* most jobs at a time, queued and running; 0: 1,024 */
    int32_t tenants;          /* most tenants; 0: 256 */
    int32_t pack;             /* most jobs in one slice; 0: KN_SCHEDULER_PACK_MAX */
    int64_t ageing_ns;        /* see above; 0: ten minutes */
    int64_t fair_quantum_ns;  /* a tenant may run ahead of one that waits by so much; 0: 20 s */
    int32_t admission_margin; /* percent a deadline promise allows for what the cost model does not know; 0: 5 */
    int32_t degree_max;       /* most devices in a group; 0: KN_SCHEDULER_DEGREE_MAX; 1: no groups */
    int32_t degree_fixed;     /* 0: chosen at every slice. 1, 2, 4, 8: for comparison. Devices i d .. i d + d - 1 of
                                 one domain are a group for good, which is scheduled as one device */
} kn_scheduler_params;

typedef struct kn_scheduler kn_scheduler;

/* KN_INVALID names the field and its limit. */
kn_status kn_scheduler_create(kn_scheduler **out, const kn_scheduler_params *params);
void kn_scheduler_destroy(kn_scheduler **scheduler);

/* ---- what things cost ---- */

/* One diffusion model, as far as its slices' cost goes. FLOP count multiply and add separately. */
typedef struct kn_cost_model {
    int32_t layers, width, ffn; /* transformer; 0 layers: an unused index */
    int32_t heads_width;        /* heads x head dimension; attention's inner width */
    uint64_t transformer_bytes; /* weights, read once per denoise slice */
    double text_flop_per_token; /* text encoder and the transformer's keys and values of the text */
    uint64_t text_bytes;        /* encoder weights, read once per text slice */
    double decode_flop;         /* VAE: per pixel of one video frame */
    int32_t frames_per_latent;  /* video frames of every latent frame but the first, which has one; Wan: 4 */
    uint64_t resident_bytes;    /* device memory while the model is loaded */
} kn_cost_model;

/* What a device is thought to do before anything has been measured on it. */
typedef struct kn_device_seed {
    double flop_per_second;       /* sustained, on the transformer */
    double decode_efficiency;     /* of that, in the VAE; 0: 0.2 */
    double bytes_per_second;      /* memory: weights of a slice are read at this rate */
    int64_t slice_ns;             /* cost of any slice, however small */
    double link_bytes_per_second; /* to another device of its domain, each way; 0: 370 GB/s, eight GPUs over NVLink */
    int64_t exchange_ns;          /* of one exchange in a group, whatever its size; 0: 12 us */
} kn_device_seed;

/* Declares or replaces the model at an index below KN_SCHEDULER_MODELS_MAX. Before jobs of it are admitted. */
kn_status kn_scheduler_set_model(kn_scheduler *scheduler, int32_t index, const kn_cost_model *model);

/* ---- jobs ---- */

/* What a job is. Every field is the job's own share; nothing here changes during its life. */
typedef struct kn_job_shape {
    int32_t model;            /* index given to kn_scheduler_set_model */
    int32_t tokens;           /* transformer rows of one sequence */
    int32_t sequences;        /* 2 with guidance, else 1 */
    int32_t text_tokens;      /* of all prompts together */
    int32_t steps;            /* denoise slices; 1 .. KN_SCHEDULER_STEPS_MAX */
    int32_t latent_frames;    /* decode slices */
    int32_t pixels;           /* width x height of a video frame */
    uint64_t state_bytes;     /* held while the job resides */
    uint64_t workspace_bytes; /* on top, during its text and denoise slices */
    uint64_t decoder_bytes;   /* on top, from its first decode slice until it is done or released */
} kn_job_shape;

/* The kinds of slice, as kn_slice_kind in engine/generation.h, in its order. */
typedef enum kn_stage { KN_STAGE_TEXT, KN_STAGE_DENOISE, KN_STAGE_DECODE, KN_STAGE_MUX, KN_STAGE_DONE } kn_stage;

enum { KN_STAGES = KN_STAGE_DONE }; /* that take time */

const char *kn_stage_name(kn_stage stage); /* "text", "denoise", "decode", "mux", "done" */

/* How far a job is; kn_generation_next's rules: step < steps: text once, then denoise[step]; then decode[decoded];
 * then mux. A resumed job starts with text false and decoded 0. */
typedef struct kn_job_progress {
    int32_t step;    /* denoise slices done */
    int32_t decoded; /* decode slices done */
    bool text;       /* the text slice is done where the job resides */
    bool done;       /* mux is done */
} kn_job_progress;

kn_stage kn_job_next_stage(const kn_job_shape *shape, const kn_job_progress *progress);

typedef struct kn_job_terms {
    kn_priority priority;
    int32_t tenant;        /* index below params.tenants */
    int32_t tenant_weight; /* 1 .. 1000; of the tenant, from now on */
    int64_t submitted_ns;
    int64_t deadline_ns; /* KN_SCHEDULER_NO_DEADLINE: none */
    bool promised;       /* kn_scheduler_admission said yes: never given up for a job that came later */
} kn_job_terms;

/* ---- what happens ---- */

typedef enum kn_change_kind {
    KN_CHANGE_JOB_ADMITTED, /* job: a new job, or one loaded at start, at the progress its checkpoint gives it */
    KN_CHANGE_JOB_REMOVED,  /* job.key: cancelled or finished elsewhere. One whose slice runs keeps its memory till the
                              slice is done; a resident one is reported in the next assignment's release list */
    KN_CHANGE_JOB_RELEASED, /* job.key, job.progress: it no longer resides on its device and waits; the progress is what
                              it can continue from. Also corrects a waiting job (a checkpoint that proved bad), and
                              takes a job out of the slice its device has been given */
    KN_CHANGE_DEVICE_UP,    /* device: ready for slices. Again for one that is up: new seed and capacity */
    KN_CHANGE_DEVICE_DOWN,  /* device.index: its jobs wait again, at their last checkpoint (slice.saved_step). So do the
                              jobs of a slice that it helped in, which has failed thereby: the slice's other members
                              are idle from now on, and nothing more is said of it */
    KN_CHANGE_MODEL_LOADED, /* device.index, device.models, load_ns: these models are loaded now, others are not */
    KN_CHANGE_SLICE_DONE,   /* slice; a job whose progress says done resides there no longer and is forgotten. Jobs of
                              the assignment that are not named never ran, and wait again at their checkpoint */
    KN_CHANGE_SLICE_FAILED, /* slice: its jobs are released, at the progress given (their checkpoint) */
    KN_CHANGE_DRAIN,        /* drain: true: running slices finish, nothing new starts; false: go on */
    KN_CHANGES,
} kn_change_kind;

typedef struct kn_change_job {
    uint64_t key;
    kn_job_shape shape;
    kn_job_terms terms;
    kn_job_progress progress;
} kn_change_job;

typedef struct kn_change_device {
    int32_t index;
    uint64_t memory_bytes; /* for models, states, workspaces and decoders */
    uint32_t models;       /* bit per model index: loaded */
    uint32_t loadable;     /* bit per model index: loaded or can be */
    int64_t load_ns;       /* UP: what loading a model is expected to take; MODEL_LOADED: what it took */
    kn_device_seed seed;
    int32_t domain;     /* UP: devices of the same domain and with the same seed at their first UP can form groups;
                           0: this one is alone. The same at every UP of a device */
    int32_t degree_max; /* UP: largest group it can be in; 0: KN_SCHEDULER_DEGREE_MAX */
} kn_change_device;

/* One job of a slice that ended. */
typedef struct kn_slice_job {
    uint64_t key;
    kn_job_progress progress; /* after the slice */
    int32_t saved_step;       /* denoise step of its durable checkpoint; 0: none */
} kn_slice_job;

typedef struct kn_change_slice {
    int32_t device;
    int64_t measured_ns; /* of the slice itself, without loading a model; 0: not known, the cost model learns nothing */
    int32_t count;
    const kn_slice_job *jobs; /* [count], in any order; valid during the call */
    int32_t degree;           /* devices it really ran on; 0: as assigned. Else the cost model learns nothing from it */
} kn_change_slice;

typedef struct kn_change {
    kn_change_kind kind;
    kn_change_job job;
    kn_change_device device;
    kn_change_slice slice;
    bool drain;
} kn_change;

/* Takes in what happened at `now_ns`. A failed one changes nothing.
 *   KN_NOT_FOUND    a key that is not known (it was removed): harmless
 *   KN_UNAVAILABLE  JOB_ADMITTED: params.jobs are there already
 *   KN_INVALID      anything that contradicts the contract, with the field and its limit */
kn_status kn_scheduler_event(kn_scheduler *scheduler, const kn_change *change, int64_t now_ns);

/* ---- decisions ---- */

/* One slice to run on one device now, or on a group of them. In order: save and free the jobs of `release` and answer
 * each with KN_CHANGE_JOB_RELEASED (until then it is not started elsewhere; a removed one needs no answer), unload and
 * load models, start the jobs of start_mask (resume from their checkpoint where there is one), run the slice.
 *
 * In a group `device` leads and members[1 ..] help. Jobs reside on the leader only: a helper is handed what it needs
 * when the slice starts (latents, the solver's history, text rows; what the decoder remembers), needs the jobs'
 * workspace_bytes meanwhile, or for decoding decoder_bytes, which the leader then needs a second time, and keeps
 * nothing. All members are busy until KN_CHANGE_SLICE_DONE or _FAILED of the leader. The group is another one, or none,
 * at every slice; only denoise and decode slices run in groups. The model has to be loaded on every member. */
typedef struct kn_assignment {
    int32_t device;
    int32_t model;
    kn_stage stage;
    bool load_model;                          /* `model` is not loaded there; answer with KN_CHANGE_MODEL_LOADED */
    uint32_t unload_models;                   /* bit per model index; of the leader */
    int32_t degree;                           /* devices that run it, 1 .. */
    int32_t members[KN_SCHEDULER_DEGREE_MAX]; /* [degree] distinct devices of one domain; [0] is `device` */
    uint32_t load_members; /* bit i, i > 0: `model` is not loaded on members[i]; answer as for load_model */
    int32_t count;
    uint64_t jobs[KN_SCHEDULER_PACK_MAX];
    uint32_t start_mask; /* bit i: jobs[i] does not reside there yet */
    int32_t release_count;
    uint64_t release[KN_SCHEDULER_RESIDENTS_MAX]; /* jobs that reside there and shall not: paused or removed */
    int64_t expected_ns;                          /* of the slice on its members, by the cost model; without loading */
} kn_assignment;

/* The slices to start at `now_ns`, every idle device in at most one of them and at most `max`; returns their number. A
 * second call at the same time with nothing in between returns 0, unless max was too small. */
int32_t kn_scheduler_decide(kn_scheduler *scheduler, int64_t now_ns, kn_assignment *out, int32_t max);

/* Removed jobs that still reside on an idle device, so that their memory can be freed though nothing starts there.
 * Each is reported once, here or in a release list. Returns the number written; *device is the device of all. */
int32_t kn_scheduler_orphans(kn_scheduler *scheduler, int32_t *device, uint64_t *keys, int32_t max);

/* ---- promises ---- */

typedef struct kn_estimate {
    int32_t position; /* 0: running or resident; else its place in the queue, from 1 */
    int64_t start_ns; /* of its next slice; now when it runs */
    int64_t completion_ns;
    int64_t remaining_ns; /* device time still to spend */
    int64_t total_ns; /* of the whole job, on the same device as remaining_ns: where it resides, or one that could */
    bool late;        /* it has a deadline and is not expected to meet it */
    double error;     /* relative error the cost model has had lately: |measured - predicted| / predicted */
} kn_estimate;

/* KN_NOT_FOUND: no such job. KN_UNAVAILABLE: no device is up; position and remaining_ns are filled in all the same. */
kn_status kn_scheduler_estimate(const kn_scheduler *scheduler, uint64_t key, int64_t now_ns, kn_estimate *out);

typedef enum kn_verdict {
    KN_VERDICT_FITS,
    KN_VERDICT_TOO_LARGE,  /* for every device that is up */
    KN_VERDICT_QUEUE_FULL, /* params.jobs */
    KN_VERDICT_DEADLINE,   /* cannot be met without breaking another promise */
    KN_VERDICT_NO_DEVICE,  /* none is up, or none can load the model: nothing can be promised */
    KN_VERDICT_DRAINING,
} kn_verdict;

const char *kn_verdict_name(kn_verdict verdict); /* "fits", "too_large", "queue_full", "deadline", ... */

typedef struct kn_admission {
    kn_verdict verdict;
    int64_t completion_ns;  /* FITS, DEADLINE: earliest completion; 0: not known */
    int64_t device_ns;      /* device time it will take: cost to hold against a quota */
    int64_t retry_after_ns; /* QUEUE_FULL, DEADLINE: when the same request may fit; 0: never, or not known */
    char reason[KN_SCHEDULER_REASON_BYTES]; /* one line for the client; "" when it fits */
} kn_admission;

/* What would become of a job with this shape and these terms, before it exists. Changes nothing. KN_INVALID: a shape
 * or term outside its range. */
kn_status kn_scheduler_admission(const kn_scheduler *scheduler, const kn_job_shape *shape, const kn_job_terms *terms,
                                 int64_t now_ns, kn_admission *out);

/* When a place in a full queue may be free: after one job's share of the backlog, on average, and at least a second. */
int64_t kn_scheduler_next_place_ns(const kn_scheduler *scheduler);

/* Predicted device time of a whole job alone on the fastest device that is up; 0 without one. */
int64_t kn_scheduler_job_ns(const kn_scheduler *scheduler, const kn_job_shape *shape);

/* ---- figures ---- */

typedef struct kn_scheduler_stats {
    int32_t queued[KN_PRIORITIES];               /* waiting */
    int32_t paused[KN_PRIORITIES];               /* resident, no slice runs */
    int32_t running[KN_PRIORITIES];              /* in a slice */
    int32_t planned;                             /* jobs whose deadline is planned for */
    int32_t late;                                /* unfinished jobs whose deadline can no longer be met */
    int64_t backlog_ns;                          /* device time all unfinished jobs still need */
    uint64_t decisions;                          /* assignments so far */
    uint64_t packed;                             /* jobs in them */
    uint64_t by_degree[KN_SCHEDULER_DEGREE_MAX]; /* of them on 1 + i devices */
    uint64_t preemptions;                        /* slices after which an unfinished job was paused for another */
    uint64_t releases;                           /* unfinished jobs released to make room */
    uint64_t moves;                              /* jobs started on another device than before */
    uint64_t demotions;                          /* deadlines given up */
    double cost_error;                           /* as kn_estimate.error, over all devices and kinds */
} kn_scheduler_stats;

void kn_scheduler_read_stats(const kn_scheduler *scheduler, kn_scheduler_stats *out);

typedef struct kn_device_stats {
    bool up, busy;
    int64_t busy_ns; /* in slices that ended */
    uint64_t slices;
    uint64_t memory_used, memory_bytes;
    int32_t residents;
    double error; /* as kn_estimate.error */
} kn_device_stats;

/* KN_INVALID: an index that was never up. */
kn_status kn_scheduler_read_device(const kn_scheduler *scheduler, int32_t device, kn_device_stats *out);

/* Device nanoseconds a tenant's jobs have taken; a pack's time is shared by work. */
int64_t kn_scheduler_tenant_service(const kn_scheduler *scheduler, int32_t tenant);

#endif
