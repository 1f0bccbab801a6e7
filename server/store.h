/* SPDX-License-Identifier: Apache-2.0
 *
 * The durable state of a server: jobs, idempotency keys, quotas, webhook deliveries, API keys and the audit log, in one
 * SQLite database below the data directory.
 *
 *   any thread        kn_store_submit_op(op) ──► queue ─┐
 *   store thread                                        ├─► BEGIN; op; op; ...; COMMIT (fsync)
 *                                                       └─► finished list ──► params.notify()
 *   loop thread       kn_store_drain() ──► op's completion(context, result)
 *
 * One thread owns the only connection that writes and checkpoints. It takes everything that is queued, runs it in one
 * transaction, from which only those that fail are left out, and acknowledges nothing before COMMIT has returned:
 * durable, then acknowledged. Operations run in the order they were submitted. Queries use read-only connections on the
 * caller's thread and see everything that was acknowledged before they began.
 *
 * What an operation decides is its outcome; whether the decision stands is its status:
 *   status KN_OK           the transaction is on stable storage; `outcome` says what was decided
 *   status KN_INVALID      the operation breaks a stated limit; nothing changed
 *   status KN_UNAVAILABLE  the disk is full; nothing changed; the store works again when there is space
 *   status KN_IO, KN_NOMEM this transaction failed; nothing changed; the store is still usable
 *   status KN_FATAL        storage can no longer be trusted (a failed fsync, a damaged page): it may or may not have
 *                          changed; every further operation is refused until the store is closed and opened again
 *
 * Times are wall-clock microseconds since 1970. created_at strictly increases from job to job even when the clock steps
 * back; everything else follows the clock but is never before the job's creation.
 *
 * Kept out of here: blobs and checkpoints themselves (the caller writes them before the row and removes them after). */
#ifndef KN_SERVER_STORE_H
#define KN_SERVER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/audit.h"
#include "server/job.h"

enum {
    KN_STORE_BATCH_MAX = 1024,       /* operations of one transaction */
    KN_STORE_BATCH_BYTES = 16 << 20, /* of its operations, after which it takes no further one */
    KN_STORE_PENDING_DEFAULT = 4096, /* operations submitted and not drained */
    KN_STORE_PENDING_MAX = 1 << 20,  /* of params.max_pending */
    KN_STORE_TEXT_BYTES = 1 << 20,   /* of prompt, request and extra each, without the NUL */
    KN_STORE_MESSAGE_BYTES = 256,    /* of a result's message, with the NUL */
    KN_STORE_ERROR_BYTES = 1024,     /* of a job's error_message and a delivery's error, without the NUL */
    KN_STORE_FILE_BYTES = 96,        /* name of a blob or checkpoint, with the NUL: [A-Za-z0-9_-][A-Za-z0-9._-]* */
    KN_STORE_LIST_MAX = 1000,        /* rows of one list, expire or purge */
    KN_STORE_COMMITS_KEPT = 1024,    /* for kn_store_take_commits */
    KN_STORE_READERS = 4,            /* queries that run at the same time; a fifth waits */

    KN_ENDPOINT_ID_BYTES = 40,         /* "we_" and 32 hexadecimal digits, or the operator's; with the NUL */
    KN_EVENT_ID_BYTES = 40,            /* "evt_" and 32 hexadecimal digits, with the NUL */
    KN_ENDPOINT_URL_BYTES = 2049,      /* with the NUL */
    KN_ENDPOINT_NAME_BYTES = 257,      /* what its owner calls it, or ""; with the NUL */
    KN_ENDPOINT_SECRET_BYTES = 400,    /* one to four, "whsec_...", separated by spaces; with the NUL */
    KN_ENDPOINTS_PER_TENANT = 16,      /* the next one is refused with KN_INVALID */
    KN_KEY_MODELS_BYTES = 4096,        /* comma separated names, with the NUL */
    KN_REGION_BYTES = 32,              /* with the NUL */
    KN_STORE_WAL_CHECKPOINT = 4 << 20, /* bytes of write-ahead log after which it is copied back; more on slow disks */
    KN_STORE_WAL_MAX = 64 << 20,       /* bytes after which the copy waits for readers */
    KN_STORE_PENDING_BYTES_MAX = 256 << 20 /* of all operations submitted and not drained */
};

typedef struct kn_store kn_store;

/* ---- life ---- */

typedef struct kn_store_params {
    const char *directory;             /* exists, is ours alone; holds lock, kinora.db, kinora.db-wal, kinora.db-shm */
    int64_t (*now)(void *now_context); /* wall clock, microseconds; NULL: CLOCK_REALTIME; called on the store thread */
    void *now_context;
    void (*notify)(void *notify_context); /* on the store thread: completions are ready; must not block; or NULL */
    void *notify_context;
    int32_t max_pending;      /* 0: KN_STORE_PENDING_DEFAULT */
    int64_t idempotency_us;   /* how long a key is remembered; 0: 24 h */
    int64_t tombstone_us;     /* how long a removed job's id is remembered, >= idempotency_us; 0: 24 h */
    int64_t delivery_us;      /* how long a delivery is kept after it ended; 0: 72 h */
    bool quick_check;         /* read the whole database and check it before use */
    int64_t checkpoint_bytes; /* of write-ahead log; 0: KN_STORE_WAL_CHECKPOINT; at most KN_STORE_WAL_MAX */
    const char *vfs;          /* SQLite VFS, for tests; NULL: the default */
} kn_store_params;

/* Opens the store, making it when the directory has none, and starts its thread. A database of an older version is
 * brought forward in one transaction. Ownership of the directory is a lock that ends with the process; it is not
 * inherited by exec, but a child that only forks must close the descriptors it does not need.
 *   KN_UNAVAILABLE  another process has it (its pid is in the message)
 *   KN_CORRUPT      it is damaged, or not ours; it is left as it is
 *   KN_UNSUPPORTED  it was written by a newer version
 *   KN_NOT_FOUND    no such directory
 *   KN_IO           the disk refused */
kn_status kn_store_open(kn_store **out, const kn_store_params *params);

/* Runs what is queued to its end, then the completions, on the calling thread. Accepts NULL. No other thread may be
 * inside the store. */
void kn_store_close(kn_store **store);

/* KN_OK; KN_UNAVAILABLE while the disk is full; KN_FATAL. Any thread. For readiness. */
kn_status kn_store_health(const kn_store *store);

/* Why a transaction failed. */
typedef enum kn_store_error {
    KN_STORE_ERROR_BUSY, /* another process holds a lock on the database */
    KN_STORE_ERROR_IO,
    KN_STORE_ERROR_FULL, /* no space, or over a quota of the file system */
    KN_STORE_ERROR_CORRUPT,
    KN_STORE_ERROR_OTHER, /* no memory, mostly */
    KN_STORE_ERRORS,
} kn_store_error;

typedef struct kn_store_stats {
    int32_t pending;                  /* submitted and not drained */
    uint64_t operations;              /* committed */
    uint64_t transactions;            /* committed; operations / transactions is the batch size */
    uint64_t failed;                  /* operations that got a status other than KN_OK */
    uint64_t commit_ns;               /* time spent in COMMIT, all together */
    uint64_t checkpoints;             /* of the write-ahead log */
    uint64_t errors[KN_STORE_ERRORS]; /* transactions and checkpoints that failed, by kn_store_error */
    uint64_t wal_bytes;               /* now */
    uint64_t memory_bytes;            /* that SQLite holds now, in this process: page caches, most of all */
} kn_store_stats;

kn_store_stats kn_store_read_stats(const kn_store *store); /* any thread */

/* One transaction that was committed. */
typedef struct kn_store_commit {
    uint64_t ns;        /* from BEGIN to stable storage */
    int32_t operations; /* that it held */
} kn_store_commit;

/* Takes the commits since the last call, oldest first, and returns how many. Only the last KN_STORE_COMMITS_KEPT are
 * kept between calls. Any thread. */
int32_t kn_store_take_commits(kn_store *store, kn_store_commit *out, int32_t max);

/* ---- operations ---- */

/*                          id        tenant    epoch     outcomes other than DONE             audited as
 * SUBMIT                   (job)     (job)     -         REPLAYED KEY_REUSED OVER_QUOTA       job.submit
 *                                                        CONFLICT (the id exists)
 * REPLAY                   -         yes       -         REPLAYED KEY_REUSED NOT_FOUND        -
 * CLAIM                    job       -         expected  NOT_FOUND FENCED                     -
 * RELEASE                  job       -         lease     NOT_FOUND FENCED                     -
 * CHECKPOINT               job       -         lease     NOT_FOUND FENCED                     -
 * COUNT_ATTEMPT            job       -         lease     NOT_FOUND FENCED                     -
 * PUBLISH                  job       -         lease     NOT_FOUND FENCED                     job.publish
 * FINISH                   job       -         lease, 0  NOT_FOUND FENCED CONFLICT            job.fail, job.cancel
 * RETRY                    job       -         -         NOT_FOUND CONFLICT                   job.retry
 * EXPIRE                   -         -         -         -                                    job.expire (each)
 * REMOVE                   job       yes       -         NOT_FOUND                            job.remove
 * PURGE                    -         -         -         -                                    job.purge (each)
 * ENDPOINT_PUT             (row)     (row)     -         CONFLICT (another tenant's id)       endpoint.put
 * ENDPOINT_REMOVE          endpoint  yes       -         NOT_FOUND                            endpoint.remove
 * ENDPOINT_DISABLE         endpoint  -         -         NOT_FOUND                            endpoint.disable
 * DELIVERY                 -         -         -         NOT_FOUND                            -
 * KEY_ADD                  (row)     (row)     -         CONFLICT (the id exists)             key.add
 * KEY_REVOKE               key       or NULL   -         NOT_FOUND                            key.revoke
 * AUDIT                    subject   -         -         -                                    as asked
 *
 * FENCED: the job is not running, or under another epoch than the caller's lease: the caller no longer owns it. */
typedef enum kn_store_kind {
    KN_STORE_SUBMIT,           /* queued, with its key and its hold */
    KN_STORE_REPLAY,           /* what SUBMIT says to a key that was used, for a job that cannot be taken now */
    KN_STORE_CLAIM,            /* queued or running -> running under the next epoch */
    KN_STORE_RELEASE,          /* running -> queued; the checkpoint stays */
    KN_STORE_CHECKPOINT,       /* where a running job would resume; without a name: drops it */
    KN_STORE_COUNT_ATTEMPT,    /* one more lease ended in the worker's death */
    KN_STORE_PUBLISH,          /* running -> completed */
    KN_STORE_FINISH,           /* queued or running -> failed or cancelled */
    KN_STORE_RETRY,            /* failed or cancelled -> queued, attempts 0, held again whatever the quota */
    KN_STORE_EXPIRE,           /* completed jobs past expires_at -> expired */
    KN_STORE_REMOVE,           /* any state -> deleted: a tombstone without prompt, request and result */
    KN_STORE_PURGE,            /* forgets old idempotency keys, ended jobs, tombstones and ended deliveries */
    KN_STORE_ENDPOINT_PUT,     /* adds or changes a webhook endpoint */
    KN_STORE_ENDPOINT_REMOVE,  /* with its deliveries */
    KN_STORE_ENDPOINT_DISABLE, /* and gives up its deliveries */
    KN_STORE_DELIVERY,         /* how an attempt to deliver went */
    KN_STORE_KEY_ADD,
    KN_STORE_KEY_REVOKE,
    KN_STORE_AUDIT, /* a record about something kept elsewhere */
    KN_STORE_KINDS,
} kn_store_kind;

typedef enum kn_store_outcome {
    KN_STORE_DONE,
    KN_STORE_REPLAYED,   /* the key was used for the same body: result.job is the job it made */
    KN_STORE_KEY_REUSED, /* the key was used for another body: result.job.id names the job it made */
    KN_STORE_OVER_QUOTA, /* result.quota says which limit */
    KN_STORE_FENCED,     /* result.state, epoch: as the row is */
    KN_STORE_NOT_FOUND,
    KN_STORE_CONFLICT, /* not from the state it is in (result.state), or the id exists */
} kn_store_outcome;

/* What a tenant may have. 0: no limit. */
typedef struct kn_store_limits {
    int64_t max_active; /* queued and running jobs */
    uint64_t device_us; /* device time of a window: spent in it, and held by jobs that are not finished */
    int64_t window_us;  /* its length, > 0 where device_us is; windows begin at multiples of it */
} kn_store_limits;

typedef enum kn_store_quota_kind { KN_QUOTA_ACTIVE_JOBS, KN_QUOTA_DEVICE_TIME } kn_store_quota_kind;

typedef struct kn_store_quota {
    kn_store_quota_kind which;
    uint64_t limit, used, asked; /* jobs, or microseconds: used + asked > limit */
    int64_t frees_at;            /* when the window ends; 0: when a job ends, or never where asked > limit */
} kn_store_quota;

/* Webhook events; an endpoint's `events` has bit i for event i. */
typedef enum kn_webhook_event { KN_EVENT_VIDEO_COMPLETED, KN_EVENT_VIDEO_FAILED, KN_WEBHOOK_EVENTS } kn_webhook_event;

const char *kn_webhook_event_name(kn_webhook_event event); /* "video.completed", "video.failed" */

typedef struct kn_endpoint_row {
    char id[KN_ENDPOINT_ID_BYTES];
    char tenant[KN_TENANT_BYTES];
    char url[KN_ENDPOINT_URL_BYTES];
    char name[KN_ENDPOINT_NAME_BYTES];
    char secret[KN_ENDPOINT_SECRET_BYTES]; /* all that sign now, the newest first */
    int64_t old_until;                     /* when all but the first stop signing; 0: never */
    uint32_t events;                       /* bits of kn_webhook_event */
    bool enabled;
    int64_t created_at; /* set by the store */
} kn_endpoint_row;

/* An API key as kept: the secret itself is not. Built and judged by the policy. */
typedef struct kn_key_row {
    char id[KN_TENANT_BYTES];
    char tenant[KN_TENANT_BYTES];
    uint8_t secret_hash[KN_SHA256_BYTES];
    uint32_t scopes;                  /* bits, the policy's */
    uint32_t priorities;              /* bit i: kn_priority i */
    char models[KN_KEY_MODELS_BYTES]; /* comma separated; "": all */
    kn_store_limits limits;
    int64_t requests_per_minute; /* 0: no limit */
    int64_t burst;               /* requests at once; 0: the policy's default */
    char region[KN_REGION_BYTES];
    int64_t expires_at; /* 0: never */
    int64_t created_at; /* set by the store */
    int64_t revoked_at; /* 0: not; set by the store */
} kn_key_row;

typedef enum kn_delivery_outcome {
    KN_DELIVERY_DONE,  /* answered 2xx */
    KN_DELIVERY_RETRY, /* again at next_at */
    KN_DELIVERY_DEAD,  /* given up */
    KN_DELIVERY_OUTCOMES,
} kn_delivery_outcome;

/* An operation. Everything it points to is copied by kn_store_submit_op. */
typedef struct kn_store_op {
    kn_store_kind kind;
    const char *actor;  /* who, for the audit log: a key id, "operator"; NULL: "server"; < KN_TENANT_BYTES */
    const char *id;     /* as the table above says */
    const char *tenant; /* as the table above says */
    int64_t epoch;      /* as the table above says; FINISH with 0: under no lease, whatever the row's epoch */
    union {
        struct {
            /* Used: id, tenant, key_id, model, asked_model, priority, prompt, request, extra, deadline_at, cost_us.
             * result.job has created_at. Where actor is NULL the audit log names key_id. */
            const kn_job *job;
            const char *idempotency_key;          /* NULL: none; scope: the tenant */
            uint8_t fingerprint[KN_SHA256_BYTES]; /* of the route and the body; compared when the key is known */
            kn_store_limits limits;
        } submit; /* REPLAY: idempotency_key and fingerprint alone */
        struct {
            const char *name; /* below data/checkpoints; NULL: there is none any more */
            uint8_t sha256[KN_SHA256_BYTES];
            int32_t step;
            uint64_t used_us; /* device time of the job so far, over all leases; never lowered */
        } checkpoint;
        struct {
            const char *blob; /* below data/blobs, on stable storage already */
            uint64_t bytes;
            uint8_t sha256[KN_SHA256_BYTES];
            uint64_t used_us;
            int64_t expires_at; /* 0: never */
        } publish;
        struct {
            kn_job_state state; /* KN_JOB_FAILED or KN_JOB_CANCELLED */
            const char *code, *message;
            uint64_t used_us;
        } finish;
        struct {
            int32_t batch;    /* EXPIRE, PURGE: rows at most (of each kind), 1..KN_STORE_LIST_MAX */
            int64_t ended_us; /* PURGE: also failed, cancelled and expired jobs that ended so long ago, at least
                               * params.idempotency_us; 0: none */
        };
        const kn_endpoint_row *endpoint; /* ENDPOINT_PUT */
        const kn_key_row *key;           /* KEY_ADD */
        struct {
            int64_t id; /* kn_delivery_row.id */
            kn_delivery_outcome outcome;
            int64_t next_at;     /* of KN_DELIVERY_RETRY */
            int32_t http_status; /* 0: no answer */
            const char *error;   /* one line, or NULL */
        } delivery;
        struct {
            const char *action; /* "consent.revoke", ... < KN_AUDIT_ACTION_BYTES */
            uint8_t detail[KN_SHA256_BYTES];
        } audit;
    };
} kn_store_op;

typedef struct kn_store_file {
    bool blob; /* below data/blobs, else below data/checkpoints */
    char id[KN_JOB_ID_BYTES];
    char name[KN_STORE_FILE_BYTES];
} kn_store_file;

typedef struct kn_store_result {
    kn_store_kind kind;
    kn_status status;
    char message[KN_STORE_MESSAGE_BYTES]; /* when status is not KN_OK */
    kn_store_outcome outcome;             /* when status is KN_OK; what follows too */
    kn_job_state state;                   /* of the job, now */
    int64_t epoch;                        /* of the job, now: CLAIM's new lease */
    int32_t attempts;                     /* of the job, now */
    int64_t at;                           /* time written with the change: started_at, completed_at, ... */
    kn_job job;                           /* SUBMIT: the record; a completion may take its strings by clearing them */
    kn_store_quota quota;                 /* OVER_QUOTA */
    int32_t deliveries;                   /* webhook deliveries that were queued by this change */
    /* No row names these any more: the caller removes them. A checkpoint replaced by one of the same name is not among
     * them. */
    kn_store_file *files;
    int32_t file_count;
    int32_t count; /* EXPIRE, PURGE: rows changed; not less than the batch: there may be more */
} kn_store_result;

/* Frees what the result holds, not the struct. */
void kn_store_result_release(kn_store_result *result);

/* Called by kn_store_drain; the result is released when it returns. May submit further operations. */
typedef void kn_store_done(void *context, kn_store_result *result);

/* Queues an operation and returns; `done` (may be NULL) is called exactly once when KN_OK was returned, else never. Any
 * thread; operations from one thread keep their order.
 *   KN_AGAIN    params.max_pending operations or KN_STORE_PENDING_BYTES_MAX bytes are pending: try later
 *   KN_INVALID  a field breaks its limit; kn_fail_message() names it
 *   KN_NOMEM    no memory for the copy
 *   KN_FATAL    the store failed before */
kn_status kn_store_submit_op(kn_store *store, const kn_store_op *op, kn_store_done *done, void *context);

/* Runs the completions that are ready, in order; returns how many. One thread at a time. */
int32_t kn_store_drain(kn_store *store);

/* Waits until a completion is ready or `timeout_ms` passed (< 0: for ever); true when one is. */
bool kn_store_wait(kn_store *store, int32_t timeout_ms);

/* Submits, waits and drains until this operation is finished: for commands and tests without a loop. The result is the
 * caller's to release, also after a failure. Returns result->status. */
kn_status kn_store_perform(kn_store *store, const kn_store_op *op, kn_store_result *result);

/* ---- queries: any thread, read-only ---- */

/* Rows are valid during the call. A status other than KN_OK ends the walk and is returned. The callback must be quick
 * and must not call queries: while it runs the write-ahead log cannot shrink. */
typedef kn_status kn_store_job_fn(void *context, const kn_job *job);

/* Every queued and running job, oldest first. */
kn_status kn_store_load_unfinished(kn_store *store, kn_store_job_fn *fn, void *context);

/* One job; kn_job_release() it. Tombstones are found too (state deleted). KN_NOT_FOUND also for another tenant's.
 * `tenant` NULL: the operator asks, any tenant's. */
kn_status kn_store_job_get(kn_store *store, const char *tenant, const char *id, kn_job *out);

typedef struct kn_store_list {
    const char *tenant; /* NULL: the operator asks, all tenants' */
    const char *after;  /* job id the page begins behind; NULL: from the beginning */
    int32_t limit;      /* 1..KN_STORE_LIST_MAX */
    bool ascending;     /* by created_at; else newest first */
} kn_store_list;

/* A page of jobs, without tombstones. `more` (may be NULL): there are further ones. KN_NOT_FOUND when `after` is not a
 * job of this tenant. */
kn_status kn_store_job_list(kn_store *store, const kn_store_list *list, kn_store_job_fn *fn, void *context, bool *more);

/* The last jobs that failed, newest first. */
kn_status kn_store_recent_errors(kn_store *store, int32_t limit, kn_store_job_fn *fn, void *context);

/* How many jobs are in each state, without touching them. */
kn_status kn_store_counts(kn_store *store, int64_t counts[KN_JOB_STATES]);

typedef struct kn_store_usage {
    int64_t active;    /* queued and running jobs */
    uint64_t held_us;  /* by them */
    uint64_t spent_us; /* in the window */
    int64_t window_start, window_us;
} kn_store_usage;

/* Zeros for a tenant that never submitted. */
kn_status kn_store_tenant_usage(kn_store *store, const char *tenant, kn_store_usage *out);

typedef struct kn_delivery_row {
    int64_t id;
    char event_id[KN_EVENT_ID_BYTES]; /* "evt_...": the same in every attempt and for every endpoint */
    kn_webhook_event event;
    int64_t event_at; /* of the event */
    char job_id[KN_JOB_ID_BYTES];
    char tenant[KN_TENANT_BYTES];
    char endpoint_id[KN_ENDPOINT_ID_BYTES];
    char url[KN_ENDPOINT_URL_BYTES];
    char secret[KN_ENDPOINT_SECRET_BYTES]; /* those that sign at this time */
    int32_t attempts;                      /* made so far */
    int64_t next_at;
} kn_delivery_row;

typedef kn_status kn_store_delivery_fn(void *context, const kn_delivery_row *row);

/* Deliveries due at `now`, the longest overdue first, at most `limit` (<= KN_STORE_LIST_MAX). One that is under way is
 * reported again until its KN_STORE_DELIVERY operation is finished: the caller remembers which it has. */
kn_status kn_store_deliveries_due(kn_store *store, int64_t now, int32_t limit, kn_store_delivery_fn *fn, void *context);

/* When the next delivery is due; 0: there is none. */
kn_status kn_store_next_delivery(kn_store *store, int64_t *at);

typedef kn_status kn_store_endpoint_fn(void *context, const kn_endpoint_row *row);
kn_status kn_store_endpoints(kn_store *store, const char *tenant, kn_store_endpoint_fn *fn, void *context);

typedef kn_status kn_store_key_fn(void *context, const kn_key_row *row);
/* Every key, revoked ones too; of one tenant, or of all with NULL. */
kn_status kn_store_keys(kn_store *store, const char *tenant, kn_store_key_fn *fn, void *context);
kn_status kn_store_key_get(kn_store *store, const char *id, kn_key_row *out); /* KN_NOT_FOUND */

/* The last record of the audit log: keep it elsewhere, and a log cut off at its end is found out. */
kn_status kn_store_audit_head(kn_store *store, kn_audit_head *out);

/* Walks the audit log from its beginning. KN_CORRUPT when a record was edited, reordered or removed: `first_bad` (may
 * be NULL) is its sequence number. With `kept`, a head taken earlier, also when the log ends before it or has another
 * record there. */
kn_status kn_store_audit_verify(kn_store *store, const kn_audit_head *kept, int64_t *first_bad);

typedef kn_status kn_store_audit_fn(void *context, const kn_audit_record *record);
/* Records after `sequence` (0: from the beginning), at most `limit` (<= KN_STORE_LIST_MAX). */
kn_status kn_store_audit_list(kn_store *store, int64_t sequence, int32_t limit, kn_store_audit_fn *fn, void *context);

#endif
