/* SPDX-License-Identifier: Apache-2.0
 *
 * Moderation hooks: the operator's own program says whether a prompt may be generated and whether a finished video may
 * be published. This is the only verdict there is; no model of ours judges.
 *
 * A hook is an executable and its arguments, run without a shell, once per question, with a clean environment (PATH and
 * LANG), standard error closed off and a process group of its own. On standard input it finds one JSON object:
 *
 *   {"version": 1, "stage": "prompt", "job": "video_...", "tenant": "...", "model": "...", "prompt": "..."}
 *   {"version": 1, "stage": "output", "job": "video_...", "tenant": "...", "model": "...", "prompt": "...",
 *    "file": "/var/lib/kinora/blobs/video_....mp4"}
 *
 * and on standard output it answers with one, then exits with 0:
 *
 *   {"verdict": "allow"}        {"verdict": "block", "reason": "violence"}
 *
 * where reason is [a-z0-9_.-]{1,48}. Anything else is a failure of the hook: another exit status, a signal, no answer
 * within the time limit (the whole group is killed), more than KN_MODERATION_ANSWER_BYTES, an unknown key. A failure
 * blocks, unless the operator chose to fail open. At most `running_max` hooks run at once, the others wait in a bounded
 * queue; the time limit counts from the start of the process.
 *
 * A hook may also be a URL: the program is then `kinora hook` (server/hook_child.h), which asks the service there and
 * passes on its verdict. The server itself opens no outgoing connections.
 *
 * Everything happens on the event loop's thread; nothing blocks. Exits are seen through pidfds, so this does not touch
 * SIGCHLD; nobody else may wait for children they did not start. */
#ifndef KN_SERVER_MODERATION_H
#define KN_SERVER_MODERATION_H

#include <event2/event.h>

#include "server/job.h"

enum {
    KN_MODERATION_ANSWER_BYTES = 16384, /* of the hook's standard output */
    KN_MODERATION_REASON_BYTES = 49,    /* with the NUL */
    KN_MODERATION_ARGUMENTS = 32,       /* of a hook, the program included */
    KN_MODERATION_RUNNING = 4,          /* default for running_max */
    KN_MODERATION_RUNNING_MAX = 64,
    KN_MODERATION_QUEUE = 1024,           /* default for queue_max */
    KN_MODERATION_TIME_LIMIT_MS = 10000,  /* default */
    KN_MODERATION_PROMPT_BYTES = 1 << 18, /* of prompt text passed to a hook; a request's prompt is shorter */
};

/* What a job that a hook blocked ends with. */
#define KN_MODERATION_CODE "moderation_blocked"
#define KN_MODERATION_MESSAGE "Your request was blocked by our moderation system."

typedef enum kn_moderation_stage {
    KN_MODERATION_PROMPT,
    KN_MODERATION_OUTPUT,
    KN_MODERATION_STAGES
} kn_moderation_stage;

const char *kn_moderation_stage_name(kn_moderation_stage stage); /* "prompt", "output" */

typedef struct kn_moderation_options {
    /* [stage] The program, found without PATH (an absolute path), and its arguments, NULL at the end; NULL: no hook at
     * this stage. Copied. */
    const char *const *hooks[KN_MODERATION_STAGES];
    /* [stage] Instead: an https:// URL, or http:// where `allow` lists it; NULL: none. Copied. */
    const char *urls[KN_MODERATION_STAGES];
    const char *const *allow; /* "host:port" whose address is not checked */
    size_t allow_count;       /* <= KN_WEBHOOK_ALLOW_MAX */
    const char *ca_file;      /* PEM; NULL: the system's authorities */
    const char *executable;   /* that has the command "hook"; NULL: this one */
    int32_t time_limit_ms;    /* 0: the default */
    int32_t running_max;      /* 0: the default */
    int32_t queue_max;        /* 0: the default */
    bool fail_open;           /* a hook that fails allows */
} kn_moderation_options;

/* Borrowed for the call. */
typedef struct kn_moderation_subject {
    kn_moderation_stage stage;
    const char *job_id, *tenant, *model;
    const char *prompt; /* UTF-8 */
    const char *file;   /* output stage: absolute path of the video */
} kn_moderation_subject;

typedef struct kn_moderation_verdict {
    bool allowed;
    bool failed;                             /* the hook gave no verdict; `allowed` is then the operator's choice */
    char reason[KN_MODERATION_REASON_BYTES]; /* the hook's, or "hook_timeout", "hook_failed", "hook_malformed"; "" */
    int64_t elapsed_ns;                      /* from the start of the process, for a histogram */
} kn_moderation_verdict;

typedef void (*kn_moderation_done)(void *context, const kn_moderation_verdict *verdict);

typedef struct kn_moderation kn_moderation;

/* `base` must outlive it. KN_INVALID names a hook that is not an absolute path to an executable file, or the rule that
 * a URL breaks. */
kn_status kn_moderation_create(kn_moderation **out, struct event_base *base, const kn_moderation_options *options);

/* Kills what runs and waits for it; pending callbacks are not called. */
void kn_moderation_destroy(kn_moderation **moderation);

/* Is there a hook at this stage? Without one there is nothing to ask. */
bool kn_moderation_active(const kn_moderation *moderation, kn_moderation_stage stage);

/* Asks. KN_OK: `done` is called exactly once, later, from the loop (never from inside this call), unless the question
 * is withdrawn. KN_UNAVAILABLE: the queue is full; the caller answers 503. *ticket is for kn_moderation_withdraw(). */
kn_status kn_moderation_ask(kn_moderation *moderation, const kn_moderation_subject *subject, kn_moderation_done done,
                            void *context, uint64_t *ticket);

/* The answer is no longer wanted (the job was cancelled): its process is killed, `done` is not called. An unknown or
 * answered ticket is nothing. */
void kn_moderation_withdraw(kn_moderation *moderation, uint64_t ticket);

int32_t kn_moderation_running(const kn_moderation *moderation);
int32_t kn_moderation_queued(const kn_moderation *moderation);

#endif
