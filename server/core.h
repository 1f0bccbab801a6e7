/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's parts and how they hang together. Everything here belongs to the loop thread.
 *
 *   api_*.c      HTTP exchanges in, replies out        intake.c    from a checked request to an acknowledged job
 *   dispatch.c   scheduler, store and workers          ending.c    how a job ends: publishing, failing, cancelling
 *   seats.c      one assignment on one device          webhooks.c  due deliveries to the notifier
 *   together.c   assignments that devices share
 *   server.c     life: start, reload, drain, stop      admin.c     what `kinora jobs|key|drain|status` ask for */
#ifndef KN_SERVER_CORE_H
#define KN_SERVER_CORE_H

#include <event2/event.h>

#include "scheduler/scheduler.h"
#include "server/catalog.h"
#include "server/fleet.h"
#include "server/grpc.h"
#include "server/http.h"
#include "server/kserve.h"
#include "server/live.h"
#include "server/meters.h"
#include "server/moderation.h"
#include "server/names.h"
#include "server/notify.h"
#include "server/policy.h"
#include "server/reserve.h"
#include "server/settings.h"
#include "server/store.h"
#include "server/tls.h"
#include "server/turns.h"
#include "server/watch.h"

enum { KN_SERVER_TENANTS_MAX = 4096 };

/* A device as the dispatcher sees it: carrying out at most one assignment. */
typedef struct kn_seat {
    char name[64]; /* for logs and metrics: "cpu", "cuda:0", "fake", "fake#2" */
    bool up;
    kn_device_info info;
    uint32_t loaded;          /* bit per model of the catalog */
    uint32_t refused;         /* bit per model: could not be loaded; tried again after a rescan */
    bool busy;                /* `assignment` is under way */
    bool running;             /* its slice has been sent to the worker */
    int32_t waiting;          /* answers that must come before: leases, starts, a model */
    uint64_t number;          /* of the assignment; what comes back under another number is too late */
    kn_assignment assignment; /* jobs that dropped out are 0 */
    double busy_seconds;
    uint32_t measured[KN_STAGES]; /* bit per model: the cost of such a slice is known from this device, not guessed */
    uint32_t measured_shared[KN_STAGES];  /* the same of slices that it led */
    int32_t domain;                       /* 0: not up yet, or always alone */
    int32_t helps;                        /* the device that leads a slice with this one's help, + 1; 0: nobody */
    const char *seen_leader, *seen_model; /* of a shared slice, as last shown in the metrics; model NULL: none */
    bool down_untold, up_untold;          /* the scheduler hears of it when that slice has ended (together.c) */
} kn_seat;

typedef struct kn_server {
    struct event_base *base;
    kn_turns *turns;
    kn_server_config *config;
    const char *config_path; /* NULL: flags only */
    char *data;              /* absolute */
    uint32_t start;          /* random; tells this start from others in event ids */
    int64_t started_us;

    kn_store *store;
    int store_wakeup; /* eventfd */
    struct event *store_event;
    kn_catalog *catalog;
    kn_live_table *live;
    kn_names *tenants; /* the scheduler's numbers */
    kn_scheduler *scheduler;
    kn_fleet *fleet;
    kn_seat seats[KN_FLEET_DEVICES_MAX];
    int32_t seat_count;
    uint64_t assignments;
    struct event *pump_event;
    bool pumping;

    kn_pepper pepper;
    kn_keys *keys;
    kn_policy *policy;
    bool open; /* no keys were asked for at the start */
    kn_meters *meters;
    kn_kserve_counts kserve_counts[KN_CATALOG_MODELS_MAX]; /* per model of the catalog */
    kn_moderation *moderation;
    kn_notifier *notifier; /* NULL: webhooks are off */
    struct event *webhook_event;
    void *deliveries; /* under way; webhooks.c */
    kn_tls *tls;
    kn_http_server *http;
    kn_http_server *admin;                   /* on loopback, for who can read the data directory */
    char admin_token[65], admin_address[64]; /* "http://127.0.0.1:PORT" */
    kn_http_server *metrics;                 /* --metrics; NULL: none of its own */
    kn_grpc_server *grpc;                    /* --grpc (front.h); NULL: none */
    kn_http_server *grpc_http;               /* its listeners */
    kn_tls *grpc_tls;                        /* the same certificate, and HTTP/2 */
    struct kn_rpc_spares *spares;            /* of chunks over gRPC; rpc.h */
    struct kn_references *references;        /* uploaded pictures; references.h */
    size_t upload_bytes;                     /* of pictures that are on their way */
    struct {                                 /* the latest event over gRPC; rpc_watch.c */
        const kn_live *live;
        const char *name;
        char id[KN_WATCH_ID_BYTES];
        struct kn_rpc_block *block;
    } rpc_event;
    struct kn_health_watch *health_watches; /* who is told of a change (health.h) */
    struct kn_call *stream_calls;           /* server-sent events (api.h) */
    int32_t streams;
    int32_t calls;      /* requests being answered */
    int32_t submitting; /* jobs the store has been asked to take */

    struct kn_housekeeping *housekeeping;
    kn_reserve reserve;
    struct event *signal_events[4];
    int64_t claims_after_ns; /* the store refused a lease: none is asked for before this */
    bool draining;
    bool stopping; /* drained: the loop is about to end */
    int64_t drain_until_ns;
    struct event *drain_event;
    kn_status failure; /* what ended the loop, unless KN_OK */
} kn_server;

int64_t kn_now_us(void); /* wall clock */

/* ---- dispatch.c ---- */

/* Offers a device to the scheduler, or again with what has changed. */
void kn_dispatch_device_ready(kn_server *server, int32_t device, int64_t load_ns);
/* Tells the scheduler that it is gone. */
void kn_dispatch_device_gone(kn_server *server, int32_t device);

/* Puts an unfinished job to the scheduler. */
kn_status kn_dispatch_admit(kn_server *server, kn_live *live);
/* Asks the scheduler what is to be done, soon; any number of calls make one. */
void kn_dispatch_soon(kn_server *server);
void kn_dispatch_pump(kn_server *server);
kn_fleet_events kn_dispatch_events(kn_server *server);
/* Loads every model's terms into the scheduler. */
kn_status kn_dispatch_models(kn_server *server);
/* How a job would fare, before there is one. */
kn_status kn_dispatch_admission(kn_server *server, const kn_catalog_model *model, const kn_catalog_size *size,
                                const kn_request *request, kn_priority priority, const char *tenant,
                                int64_t deadline_us, kn_admission *out);
/* Progress, ETA and place in the queue, as of now. */
kn_video_facts kn_dispatch_facts(kn_server *server, kn_live *live);
/* A watcher wants pictures: asks the worker for one where that is possible and not too often. */
void kn_dispatch_preview(kn_server *server, kn_live *live);
/* Jobs on devices are saved and released, for a stop. Returns how many are left. */
int32_t kn_dispatch_save_all(kn_server *server);

/* ---- seats.c ---- */

void kn_seat_begin(kn_server *server, const kn_assignment *assignment);
void kn_seat_started(kn_server *server, int32_t device, const kn_outcome *outcome);
void kn_seat_loaded(kn_server *server, int32_t device, const kn_model_loaded *loaded);
/* The job is not part of the assignment any more; may let the slice begin or end it. */
void kn_seat_drop(kn_server *server, int32_t device, kn_live *live);

/* A helper that this device's assignment waited for will not answer any more. */
void kn_seat_helper_gone(kn_server *server, int32_t leader);
/* Ends the assignment: nothing of it is under way any more. */
void kn_seat_end(kn_server *server, int32_t device);

/* ---- together.c ---- */

/* Devices of one kind that can share slices have the same number; it never changes. */
int32_t kn_together_domain(kn_server *server, int32_t device);
/* The helpers of a new assignment belong to it; loads the model where it is missing. Returns how many answers that will
 * give. */
int32_t kn_together_begin(kn_server *server, const kn_assignment *assignment);
/* A helper has been given its model, or not; true: its leader has waited for that. */
bool kn_together_loaded(kn_server *server, int32_t device, const kn_catalog_model *model);
/* Who runs the assignment of this device now: members[0] is the device. Returns their number. */
int32_t kn_together_members(kn_server *server, int32_t device, int32_t members[KN_SCHEDULER_DEGREE_MAX]);
/* A slice whose group was lost is repeated; for a while without one. */
void kn_together_lost(kn_live *live);
/* The leader's assignment has ended; its helpers are free, and what the scheduler was not told of them it is told. */
void kn_together_end(kn_server *server, int32_t leader);
/* A device that helps has gone down: true: the scheduler is told later. */
bool kn_together_down(kn_server *server, int32_t device);

/* ---- ending.c ---- */

/* Ends a job for good as soon as its device allows: `state` is KN_JOB_CANCELLED or KN_JOB_FAILED. Does nothing when it
 * is ending already. */
void kn_end_job(kn_server *server, kn_live *live, kn_job_state state, const char *code, const char *format, ...)
    KN_PRINTF(5, 6);
/* Goes on with ending a job whose phase has changed. */
void kn_end_advance(kn_server *server, kn_live *live);
/* Asks the store again about jobs whose end could not be written. */
void kn_end_retry(kn_server *server);
/* The last slice is done and the file is there. */
void kn_end_publish(kn_server *server, kn_live *live, const kn_output *output);
/* Removes files no row names any more. */
void kn_end_remove_files(kn_server *server, const kn_store_result *result);

/* ---- tell.c: events to watchers ---- */

/* "video.queued", "video.in_progress", "video.completed", "video.failed": the whole video object. */
void kn_tell_state(kn_server *server, kn_live *live);
void kn_tell_progress(kn_server *server, kn_live *live);
void kn_tell_preview(kn_server *server, kn_live *live);
/* Adds a watcher and brings it up to date: behind the event it has `seen` where that is still known, else with the
 * present state. *out is NULL when it is gone already: its function refused, or the job has ended and it was told. */
kn_status kn_tell_watch(kn_server *server, kn_live *live, kn_watcher **out, kn_watch_fn *fn, void *context,
                        const char *seen);

/* ---- webhooks.c ---- */

kn_status kn_webhooks_start(kn_server *server);
void kn_webhooks_soon(kn_server *server);
void kn_webhooks_stop(kn_server *server);
int32_t kn_webhooks_pending(const kn_server *server); /* handed to the notifier */

/* How a sample event was answered; `result` NULL: the server is stopping. */
typedef void kn_webhook_tested(void *context, const kn_delivery_result *result);
/* Sends a sample event now and once, without a row. KN_OK: `done` is called exactly once, later. KN_AGAIN: too much is
 * under way. KN_INVALID: the URL is against the policy. */
kn_status kn_webhooks_test(kn_server *server, const kn_endpoint_row *row, kn_webhook_event event,
                           kn_webhook_tested *done, void *context);

/* ---- api.c ---- */

kn_http_callbacks kn_api_callbacks(void); /* context: the kn_server */
/* Asks the policy, and counts what it says. */
bool kn_api_authorize(kn_server *server, unsigned scope, const char *authorization, kn_access *access);
/* Without keys: was this server called by a name of its own machine, and by no other site? Both may be NULL. */
bool kn_api_from_here(const char *host, const char *origin, kn_api_error *error);
/* Event streams and waiting requests end, so that the connections can; their clients come back elsewhere. */
void kn_api_end_streams(kn_server *server);

/* ---- admin.c ---- */

kn_status kn_admin_start(kn_server *server);
void kn_admin_stop(kn_server *server);

/* ---- housekeeping.c ---- */

kn_status kn_housekeeping_start(kn_server *server);
void kn_housekeeping_stop(kn_server *server);
kn_http_callbacks kn_metrics_callbacks(void);         /* of --metrics */
size_t kn_api_routes(const char **names, size_t max); /* for the metrics; returns how many were written */

/* ---- server.c ---- */

void kn_server_drain(kn_server *server);
kn_status kn_server_reload(kn_server *server);
/* A job the store has queued again after its end. */
void kn_server_revive(kn_server *server, kn_live *live);
/* Brings gauges up to date. */
void kn_server_measure(kn_server *server);
/* Takes the store's commits into the histograms; often enough that none is lost. */
void kn_server_observe_commits(kn_server *server);
void kn_server_queue_stats(kn_server *server, kn_queue_stats *out);
bool kn_server_ready(const kn_server *server, char *why, size_t bytes);

#endif
