/* SPDX-License-Identifier: Apache-2.0
 *
 * A job: one video somebody asked for, as the store keeps it and everything else in the room passes it on.
 *
 *   state       may become                                  written by
 *   queued      running, cancelled, failed, deleted         submit
 *   running     running (next epoch), completed, failed,    claim
 *               cancelled, queued (drain), deleted
 *   completed   expired, deleted                            publish
 *   failed      queued (an operator's retry), deleted       finish
 *   cancelled   queued (an operator's retry), deleted       finish
 *   expired     deleted                                     expire
 *   deleted     nothing; a tombstone for the key's lifetime delete
 *
 * Every write to a running job carries the epoch of the lease it was made under and changes nothing when the row has
 * moved on: a worker that was thought dead cannot publish. */
#ifndef KN_SERVER_JOB_H
#define KN_SERVER_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "scheduler/scheduler.h"

enum {
    KN_JOB_ID_BYTES = 40,     /* "video_" and 32 hexadecimal digits, with the NUL */
    KN_TENANT_BYTES = 64,     /* [a-z0-9][a-z0-9._-]*, with the NUL */
    KN_MODEL_NAME_BYTES = 64, /* folder below --models: [a-z0-9][a-z0-9._-]*, with the NUL */
    KN_ERROR_CODE_BYTES = 48, /* "cancelled", "worker_lost", ... with the NUL */
    KN_REQUEST_ID_BYTES = 40, /* "req_" and 32 hexadecimal digits, with the NUL */
    KN_SHA256_BYTES = 32,
    KN_IDEMPOTENCY_KEY_BYTES = 256, /* 255 visible ASCII characters and the NUL */
};

typedef enum kn_job_state {
    KN_JOB_QUEUED,
    KN_JOB_RUNNING,
    KN_JOB_COMPLETED,
    KN_JOB_FAILED,
    KN_JOB_CANCELLED,
    KN_JOB_EXPIRED,
    KN_JOB_DELETED,
    KN_JOB_STATES,
} kn_job_state;

/* Times are wall-clock microseconds since 1970, 0: not yet. Strings are owned; NULL where there is none. */
typedef struct kn_job {
    char id[KN_JOB_ID_BYTES];
    char tenant[KN_TENANT_BYTES];
    char key_id[KN_TENANT_BYTES]; /* the API key it came with; "" without keys */
    char model[KN_MODEL_NAME_BYTES];
    char asked_model[KN_MODEL_NAME_BYTES]; /* as the client called it: an alias such as "sora-2" */
    kn_job_state state;
    kn_priority priority;
    int64_t epoch;    /* of the current or last lease; 0: never claimed */
    int32_t attempts; /* leases that ended in the worker's death while a slice of this job ran */
    char *prompt;     /* as the client sent it */
    char *request;    /* resolved, kn_request_to_json */
    char *extra; /* JSON object of what the client set beyond the engine's request: "seconds", "metadata"; or NULL */
    int64_t created_at, started_at, completed_at, expires_at, deadline_at;
    uint64_t cost_us; /* estimated device time at submit; held against the tenant's quota until the job ends */
    uint64_t used_us; /* device time spent so far, over all leases */
    char error_code[KN_ERROR_CODE_BYTES];
    char *error_message; /* one line for the client */
    /* Checkpoint of the current state, "" when there is none: file name below data/checkpoints. */
    char *checkpoint;
    uint8_t checkpoint_sha256[KN_SHA256_BYTES];
    int32_t checkpoint_step; /* denoise step it resumes at */
    /* Result, once completed: file name below data/blobs. */
    char *blob;
    uint64_t blob_bytes;
    uint8_t blob_sha256[KN_SHA256_BYTES];
} kn_job;

/* Deep copy, and release of the strings (the struct itself is the caller's). */
kn_status kn_job_copy(kn_job *out, const kn_job *job);
void kn_job_release(kn_job *job);

const char *kn_job_state_name(kn_job_state state); /* "queued", ... as in the store and in logs */
bool kn_job_state_final(kn_job_state state);       /* completed and after */

/* May a job go from one state to the other? The table above. */
bool kn_job_transition_allowed(kn_job_state from, kn_job_state to);

/* A fresh "video_..." id: the time in milliseconds, then 80 bits from the system's random numbers. */
kn_status kn_job_new_id(char id[KN_JOB_ID_BYTES]);
/* Is this text an id this server could have given? Checked before anything is looked up. */
bool kn_job_id_valid(const char *id);

#endif
