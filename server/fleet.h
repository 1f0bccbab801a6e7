/* SPDX-License-Identifier: Apache-2.0
 *
 * The workers, seen from the server: one process per device, started, watched, killed and started again.
 *
 *                 spawn              up                     load / loaded
 *   RESTARTING ──────────► STARTING ─────► READY ◄─────────────────────────────► LOADING
 *       ▲  ▲                  │             │                                       │
 *       │  └──── exit, hang, garbage, fatal status, kn_fleet_kill ──────────────────┘
 *       │
 *     FAILED   the same as RESTARTING after three deaths in a row: still tried again, ever more slowly
 *
 * Commands are queued to a worker, which answers them in order; every answer becomes one event. A worker that is dead,
 * or kills the rules below, takes everything on it along: device_down lists its jobs, then device_up says that an empty
 * one has taken its place. Nothing of an earlier process is ever reported after its device_down.
 *
 * A worker is killed when it sends no sign of life for KN_FLEET_SILENCE_MS, takes longer over a command than that
 * command may (a slice: the larger of KN_FLEET_SLICE_MS_MIN and ten times its budget), or sends anything the protocol
 * does not have at that point, an old epoch included. Time during which the server itself did not run does not count.
 *
 * Everything here belongs to the thread of the event loop, whose process ignores SIGPIPE. Callbacks come from the loop,
 * never from inside a call below; they may make any call but kn_fleet_destroy. */
#ifndef KN_SERVER_FLEET_H
#define KN_SERVER_FLEET_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "server/runner.h"

enum {
    KN_FLEET_DEVICES_MAX = 64,
    KN_FLEET_COMMANDS_MAX = 256, /* unanswered, per device */
    KN_FLEET_GROUPS_MAX = 8,     /* kept ready, per device; the one used least recently makes room */
    KN_FLEET_GROUP_MS = 9000,    /* longest wait of one member for another */
    KN_FLEET_SILENCE_MS = 5000,
    KN_FLEET_SLICE_MS_MIN = 10 * 1000,
    KN_FLEET_SLICE_BUDGETS = 10,     /* a slice may take this many times its budget */
    KN_FLEET_COMMAND_MS = 60 * 1000, /* starting, releasing, previewing, coming up */
    KN_FLEET_LOAD_MS = 30 * 60 * 1000,
    KN_FLEET_STEADY_MS = 60 * 1000, /* a worker that lived this long is no longer counted as dying in a row */
    KN_FLEET_DEATHS_FAILED = 3,     /* in a row */
    KN_FLEET_REAP_MS = 10 * 1000,   /* a killed process that is still there after this is given up */
};

typedef enum kn_device_state {
    KN_DEVICE_STARTING, /* the process is there, the device is not open yet */
    KN_DEVICE_LOADING,  /* loading a model; commands queue behind it */
    KN_DEVICE_READY,
    KN_DEVICE_RESTARTING,
    KN_DEVICE_FAILED,
    KN_DEVICE_STATES,
} kn_device_state;

const char *kn_device_state_name(kn_device_state state); /* "starting", "loading", ... */

typedef enum kn_down_reason {
    KN_DOWN_EXITED,    /* code: its exit code */
    KN_DOWN_SIGNALLED, /* code: the signal that ended it, not ours */
    KN_DOWN_HANG,      /* no sign of life, or a command past its time */
    KN_DOWN_PROTOCOL,  /* sent garbage */
    KN_DOWN_FATAL,     /* code: the kn_status it reported, <= KN_FATAL */
    KN_DOWN_KILLED,    /* kn_fleet_kill */
    KN_DOWN_SPAWN,     /* could not be started; no process was there */
    KN_DOWN_REASONS,
} kn_down_reason;

const char *kn_down_reason_name(kn_down_reason reason); /* "exited", "signalled", "hang", ... */

typedef struct kn_down_job {
    kn_lease lease;
    bool running; /* in the slice that was running: the suspects */
} kn_down_job;

typedef struct kn_device_down {
    kn_down_reason reason;
    int32_t code;
    const char *message;     /* one line for the log */
    const kn_down_job *jobs; /* [count] all that were started and not released, in the order they were started */
    int32_t count;
    bool was_up;         /* a device_up had been reported */
    uint64_t assignment; /* the run that was under way, 0: none */
    int64_t restart_ns;  /* the next process starts after this long */
} kn_device_down;

typedef struct kn_model_loaded {
    const char *model;
    kn_status status; /* KN_OK, or why not; the device goes on without it */
    const char *message;
    double seconds;
    uint64_t bytes; /* what it holds on the device */
} kn_model_loaded;

typedef struct kn_slice_done {
    uint64_t assignment;
    kn_slice_kind kind;
    double seconds;             /* of the worker, whole slice */
    const kn_outcome *outcomes; /* [count] the jobs that go on or are complete, in the order they were given */
    int32_t count;              /* 0 when every job failed */
    int32_t degree;             /* devices that shared it; 1: the device alone, whatever was asked for */
    bool lost; /* its group was: the jobs are still here, where outcomes say, some or all where they were before */
    const char *why; /* lost: one line */
} kn_slice_done;

typedef struct kn_preview {
    kn_lease lease;
    kn_status status; /* KN_OK, or why there is none; the job goes on */
    const char *message;
    const char *mime;  /* "image/webp" or "image/jpeg" */
    const void *bytes; /* [count], valid during the call */
    size_t count;
} kn_preview;

/* All are required. Pointers are valid during the call. `device` counts from 0 as in the parameters. */
typedef struct kn_fleet_events {
    void *context;
    void (*device_up)(void *context, int32_t device, const kn_device_info *info);
    void (*device_down)(void *context, int32_t device, const kn_device_down *down);
    void (*model_loaded)(void *context, int32_t device, const kn_model_loaded *loaded);
    /* The answer to kn_fleet_start: the job is on the device and outcome->next is its first slice. */
    void (*job_started)(void *context, int32_t device, const kn_outcome *outcome);
    /* Comes once per run, after job_failed for those of its jobs that failed. */
    void (*slice_done)(void *context, int32_t device, const kn_slice_done *done);
    /* While starting or in a slice. The job is no longer on the device and needs no release. */
    void (*job_failed)(void *context, int32_t device, const kn_outcome *outcome);
    /* The answer to kn_fleet_release; status is that of the save that was asked for. */
    void (*job_released)(void *context, int32_t device, const kn_outcome *outcome);
    void (*preview)(void *context, int32_t device, const kn_preview *preview);
} kn_fleet_events;

typedef struct kn_fleet_params {
    struct event_base *base;
    const char *executable; /* started as "<executable> worker --fd 3"; NULL: /proc/self/exe */
    const char *const
        *devices;              /* [device_count] kn_runner_device_check; the same one twice is refused, but for fakes */
    int32_t device_count;      /* 1..KN_FLEET_DEVICES_MAX */
    const char *models, *data; /* folders, made absolute by the caller */
    int32_t threads;           /* per worker; 0: all cores */
    bool sockets;              /* workers may make any sockets, as NCCL does */
    const char *isa;           /* NULL: what the processor has */
    kn_precision precision, vae_precision;
    int64_t checkpoint_interval_ns;                     /* -1: the default, two seconds; 0: every denoise slice */
    int64_t restart_delay_min_ns, restart_delay_max_ns; /* 0: one second, five minutes */
    bool log_debug, log_json;                           /* how workers log, to the same standard error */
    int64_t grace_ns; /* destroy: from closing the sockets to SIGKILL; 0: two seconds */
    kn_fleet_events events;
} kn_fleet_params;

typedef struct kn_fleet kn_fleet;

/* Starts one worker per device; device_up follows from the loop. Strings are copied. KN_INVALID names the device. A
 * process that cannot be started is a device_down, not a failure here. */
kn_status kn_fleet_create(kn_fleet **out, const kn_fleet_params *params);

/* Closes the sockets, which ends the workers wherever they are; SIGKILL for those still there after the grace. Waits
 * for them, without events. Release jobs with KN_RELEASE_SAVE before, and wait for the answers, to lose nothing. */
void kn_fleet_destroy(kn_fleet **fleet);

/* Commands. KN_UNAVAILABLE: the device is not up (STARTING, RESTARTING, FAILED). KN_AGAIN: too many unanswered
 * commands or jobs. KN_INVALID: the call breaks the contract. Nothing was sent in any of these cases. */

/* Answered by model_loaded. The device is LOADING until then. */
kn_status kn_fleet_load(kn_fleet *fleet, int32_t device, const char *model);
/* The device must hold no jobs of it. No event. */
kn_status kn_fleet_unload(kn_fleet *fleet, int32_t device, const char *model);

/* Puts a job on the device. Answered by job_started or job_failed; KN_FAULT_CHECKPOINT there means that the checkpoint
 * was refused and the job can be started again without one. KN_INVALID: the job is on this device already. */
kn_status kn_fleet_start(kn_fleet *fleet, int32_t device, const kn_runner_job *job);

/* Runs one slice of this kind for jobs that have been started, 1 to KN_RUNNER_PACK_MAX different ones of one model;
 * answered by slice_done. One at a time: KN_INVALID while another is under way. budget_ns: how long it is expected to
 * take. assignment: any number but 0, returned with the event. */
kn_status kn_fleet_run(kn_fleet *fleet, int32_t device, uint64_t assignment, kn_slice_kind kind, const kn_lease *leases,
                       int32_t count, int64_t budget_ns);

/* The same, shared by members[0 .. degree - 1], different devices, the first of which leads and is the one that the
 * jobs are on and that answers; the others hold nothing of them before and after. Denoise and decode slices only are
 * shared. Where a helper is not up, or its group cannot be formed, the leader runs alone (slice_done.degree).
 *
 * A member that dies, stays silent, keeps the others waiting for longer than the larger of KN_FLEET_GROUP_MS and the
 * budget, or runs out of memory, costs the slice: slice_done.lost. Who was to blame for a wait is killed. */
kn_status kn_fleet_run_shared(kn_fleet *fleet, const int32_t *members, int32_t degree, uint64_t assignment,
                              kn_slice_kind kind, const kn_lease *leases, int32_t count, int64_t budget_ns);

/* Lets a job go once what was asked before is done, also one that is in the slice under way or has not answered to its
 * start. Answered by job_released, unless the job fails before. */
kn_status kn_fleet_release(kn_fleet *fleet, int32_t device, const kn_lease *lease, kn_release_mode mode);

/* Answered by preview. */
kn_status kn_fleet_preview(kn_fleet *fleet, int32_t device, const kn_lease *lease);

/* SIGKILL; device_down follows (KN_DOWN_KILLED with `why` in its message), then a restart. */
kn_status kn_fleet_kill(kn_fleet *fleet, int32_t device, const char *why);

typedef struct kn_device_health {
    kn_device_state state;
    kn_device_info info;   /* of the last device_up; zero before */
    int32_t jobs;          /* started and not released */
    uint64_t assignment;   /* under way; 0: idle */
    int64_t progress_ns;   /* kn_clock_ns of the last answered command; 0: none yet */
    int64_t beat_age_ns;   /* since the last sign of life; -1: no process */
    int64_t restart_in_ns; /* RESTARTING, FAILED: until the next start; else 0 */
    int32_t deaths_in_row;
    int32_t pid; /* 0: no process */
    /* Since kn_fleet_create. */
    uint64_t spawns, deaths, hangs, protocol_errors, slices, slice_jobs;
    double busy_seconds; /* in slices, as the worker measured them */
    /* The shared slice under way. */
    int32_t degree;                     /* 0: none */
    int32_t members[KN_COMM_RANKS_MAX]; /* [degree], the leader first */
    int32_t groups;                     /* kept ready */
    /* Since kn_fleet_create. */
    uint64_t assists;       /* parts of slices that others led, the failed ones not counted */
    double assist_seconds;  /* in them */
    uint64_t shared_slices; /* led */
    uint64_t lost_slices;   /* led, and lost with their group */
} kn_device_health;

int32_t kn_fleet_device_count(const kn_fleet *fleet);
const char *kn_fleet_device_name(const kn_fleet *fleet, int32_t device); /* as given */
void kn_fleet_health(const kn_fleet *fleet, int32_t device, kn_device_health *out);

#endif
