/* SPDX-License-Identifier: Apache-2.0
 *
 * Between fleet.c (the calls) and fleet_device.c (one device's process: birth, answers, watching, death). */
#ifndef KN_SERVER_FLEET_INTERNAL_H
#define KN_SERVER_FLEET_INTERNAL_H

#include "server/child.h"
#include "server/fleet.h"
#include "server/link.h"
#include "server/wire.h"

#define KN_FLEET_MS INT64_C(1000000) /* in nanoseconds */

typedef struct kn_fleet_command {
    kn_wire_kind kind;
    int64_t limit_ns;
    char model[KN_MODEL_NAME_BYTES]; /* load, unload */
    kn_lease lease;                  /* start, release, preview */
    uint64_t assignment, epoch;      /* assist; join, leave, assist: of the group */
} kn_fleet_command;

typedef struct kn_fleet_job {
    kn_lease lease;
    char model[KN_MODEL_NAME_BYTES];
    bool started; /* the answer to its start has come */
    bool leaving; /* its release is asked for */
} kn_fleet_job;

typedef struct kn_fleet_device {
    kn_fleet *fleet;
    int32_t index;
    char *name;
    kn_child child;
    struct event *exit_event; /* on the pidfd */
    struct event *restart_event;
    kn_link *link;
    bool up;        /* has said so */
    bool condemned; /* nothing it sends counts any more */
    bool exited;    /* reaped */
    bool abandoned; /* could not be killed; buried already */
    kn_child_end end;
    kn_down_reason reason; /* when condemned */
    int32_t code;
    char message[KN_RUNNER_MESSAGE_BYTES];
    /* kn_clock_ns; moved on when the server itself stalls */
    int64_t spawned_ns, beat_ns, head_ns, farewell_ns, up_ns;
    uint64_t beats;

    kn_fleet_command commands[KN_FLEET_COMMANDS_MAX]; /* a ring: the oldest at `first` */
    int32_t first, waiting;
    kn_fleet_job jobs[KN_RUNNER_JOBS_MAX]; /* in the order they were started */
    int32_t job_count;
    kn_wire_run run; /* under way while assignment is not 0 */
    int32_t degree;  /* of that; 1: alone */
    int64_t restart_at_ns;
    kn_device_health health;
} kn_fleet_device;

/* Devices that have joined, or are joining. */
typedef struct kn_fleet_group {
    uint64_t epoch; /* 0: free entry */
    int fd;         /* its shared memory */
    int32_t degree;
    int32_t members[KN_COMM_RANKS_MAX]; /* by rank */
    uint64_t assignment;                /* under way; 0: idle */
    int64_t used_ns;
} kn_fleet_group;

enum { KN_FLEET_GROUPS_TABLE = KN_FLEET_DEVICES_MAX * KN_FLEET_GROUPS_MAX / 2 };

struct kn_fleet {
    struct event_base *base;
    char *executable, *models, *data, *isa; /* executable: NULL for this program */
    kn_fleet_params params;                 /* numbers and callbacks; its pointers are not used */
    struct event *tick_event;
    int64_t ticked_ns;
    int32_t device_count;
    kn_fleet_device *devices; /* [device_count] */
    uint64_t epochs;          /* of groups, so far */
    kn_fleet_group groups[KN_FLEET_GROUPS_TABLE];
    kn_wire_message sent; /* large; one at a time */
};

/* ---- fleet_device.c ---- */

struct timeval kn_fleet_timeval(int64_t ns);

/* Kills the process; nothing it has sent or may still send is believed from here on. */
void kn_fleet_condemn(kn_fleet_device *device, kn_down_reason reason, int32_t code, const char *format, ...)
    KN_PRINTF(4, 5);

/* Sets the timer for the next process; the callback that starts it. */
void kn_fleet_arm(kn_fleet_device *device);
void kn_fleet_on_restart(evutil_socket_t fd, short what, void *device);

/* fleet->sent, emptied. */
kn_wire_message *kn_fleet_compose(kn_fleet *fleet, kn_wire_kind kind);
/* Longest time an answer may take. */
int64_t kn_fleet_limit(kn_wire_kind kind, int64_t budget_ns);
/* Sends fleet->sent and remembers what its answer will be. */
kn_status kn_fleet_post(kn_fleet_device *device, const kn_fleet_command *command);
/* With a descriptor, which stays the caller's. */
kn_status kn_fleet_post_with(kn_fleet_device *device, const kn_fleet_command *command, int fd);

kn_fleet_job *kn_fleet_find_job(kn_fleet_device *device, const kn_lease *lease);

/* Condemns who is silent or slow and buries the dead. */
void kn_fleet_watch(kn_fleet_device *device, int64_t now_ns);
/* The server itself did not run for so long. */
void kn_fleet_move_on(kn_fleet_device *device, int64_t stall_ns);

/* ---- fleet.c ---- */

/* The device, if it takes commands. */
kn_status kn_fleet_find_up(kn_fleet *fleet, int32_t index, kn_fleet_device **out);
/* May this slice run there? */
kn_status kn_fleet_check_run(kn_fleet_device *device, const kn_lease *leases, int32_t count);
/* Posts a run; run->group says with whom. */
kn_status kn_fleet_post_run(kn_fleet_device *device, const kn_wire_run *run, int64_t budget_ns);

/* ---- fleet_group.c ---- */

/* A device is gone, or about to go: so are its groups. */
void kn_fleet_lose_groups(kn_fleet_device *device, const char *why);
void kn_fleet_drop_all_groups(kn_fleet *fleet);
/* NULL: there is none, or it was given up. */
kn_fleet_group *kn_fleet_find_group(kn_fleet *fleet, uint64_t epoch);
void kn_fleet_answer_joined(kn_fleet_device *device, const kn_wire_group *answer);
void kn_fleet_answer_assisted(kn_fleet_device *device, uint64_t epoch, const kn_wire_assist *answer);
/* The leader has answered; `failed`: with a group that is good for nothing any more. */
void kn_fleet_group_ran(kn_fleet_device *leader, uint64_t epoch, bool failed, const char *why);

#endif
