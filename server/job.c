/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/job.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/mem.h"

enum { TIME_BYTES = 6 }; /* of an id */

#define BIT(state) (1u << (state))

static const struct {
    const char *name;
    unsigned next; /* BIT() of the states it may become */
} states[KN_JOB_STATES] = {
    [KN_JOB_QUEUED] = {"queued",
                       BIT(KN_JOB_RUNNING) | BIT(KN_JOB_FAILED) | BIT(KN_JOB_CANCELLED) | BIT(KN_JOB_DELETED)},
    [KN_JOB_RUNNING] = {"running", BIT(KN_JOB_RUNNING) | BIT(KN_JOB_QUEUED) | BIT(KN_JOB_COMPLETED) |
                                       BIT(KN_JOB_FAILED) | BIT(KN_JOB_CANCELLED) | BIT(KN_JOB_DELETED)},
    [KN_JOB_COMPLETED] = {"completed", BIT(KN_JOB_EXPIRED) | BIT(KN_JOB_DELETED)},
    [KN_JOB_FAILED] = {"failed", BIT(KN_JOB_QUEUED) | BIT(KN_JOB_DELETED)},
    [KN_JOB_CANCELLED] = {"cancelled", BIT(KN_JOB_QUEUED) | BIT(KN_JOB_DELETED)},
    [KN_JOB_EXPIRED] = {"expired", BIT(KN_JOB_DELETED)},
    [KN_JOB_DELETED] = {"deleted", 0},
};

const char *kn_job_state_name(kn_job_state state)
{
    return (unsigned)state < KN_JOB_STATES ? states[state].name : "unknown";
}

bool kn_job_state_final(kn_job_state state)
{
    return state != KN_JOB_QUEUED && state != KN_JOB_RUNNING;
}

bool kn_job_transition_allowed(kn_job_state from, kn_job_state to)
{
    return (unsigned)from < KN_JOB_STATES && (unsigned)to < KN_JOB_STATES && (states[from].next & BIT(to)) != 0;
}

void kn_job_release(kn_job *job)
{
    if (!job) return;
    char **const texts[] = {&job->prompt, &job->request,    &job->extra,
                            &job->blob,   &job->checkpoint, &job->error_message};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        kn_free(*texts[i]);
        *texts[i] = NULL;
    }
}

kn_status kn_job_copy(kn_job *out, const kn_job *job)
{
    *out = *job;
    char **const to[] = {&out->prompt, &out->request, &out->extra, &out->blob, &out->checkpoint, &out->error_message};
    char *const from[] = {job->prompt, job->request, job->extra, job->blob, job->checkpoint, job->error_message};
    kn_status st = KN_OK;
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        *to[i] = from[i] && st == KN_OK ? kn_strdup(from[i]) : NULL;
        if (from[i] && !*to[i]) st = KN_NOMEM;
    }
    if (st != KN_OK) kn_job_release(out);
    return st;
}

/* Milliseconds since 1970 first, as in a UUID of version 7 (RFC 9562 5.7), then 80 random bits, which nobody guesses.
 * New ids are neighbours in the store's index: a batch of jobs touches one of its pages, not one for each job. */
kn_status kn_job_new_id(char id[KN_JOB_ID_BYTES])
{
    unsigned char bytes[16];
    struct timespec now;
    ssize_t got;
    clock_gettime(CLOCK_REALTIME, &now);
    const uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    for (int i = 0; i < TIME_BYTES; i++) bytes[i] = (unsigned char)(ms >> 8 * (TIME_BYTES - 1 - i));
    do got = getrandom(bytes + TIME_BYTES, sizeof bytes - TIME_BYTES, 0);
    while (got < 0 && errno == EINTR);
    if (got != sizeof bytes - TIME_BYTES) return kn_fail(KN_IO, "no random numbers for a job id: %s", strerror(errno));
    memcpy(id, "video_", 6);
    for (size_t i = 0; i < sizeof bytes; i++) {
        id[6 + 2 * i] = "0123456789abcdef"[bytes[i] >> 4];
        id[7 + 2 * i] = "0123456789abcdef"[bytes[i] & 15];
    }
    id[6 + 2 * sizeof bytes] = '\0';
    return KN_OK;
}

bool kn_job_id_valid(const char *id)
{
    return strncmp(id, "video_", 6) == 0 && strspn(id + 6, "0123456789abcdef") == 32 && id[38] == '\0';
}
