/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes back: the video object and the other bodies of the Videos API, webhook payloads and server-sent events.
 * Everything is appended to a kn_text; ask kn_text_status once at the end. Pure functions of their arguments. */
#ifndef KN_SERVER_VIDEO_RESPONSE_H
#define KN_SERVER_VIDEO_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/job.h"
#include "server/text.h"
#include "server/video_request.h"

enum {
    /* A prompt of 32,000 characters escaped at its worst (6 bytes for one), metadata likewise, and the rest. */
    KN_VIDEO_OBJECT_BYTES_MAX = 6 * KN_API_PROMPT_CHARACTERS_MAX + (128 << 10),
};

/* What of a job's request and extra JSON a client sees; read once per job, not once per poll. */
typedef struct kn_video_summary {
    int32_t width, height;
    int32_t frames;
    int32_t fps_numerator, fps_denominator;
    int32_t steps;
    double guidance;
    uint64_t seed;
    char seconds[KN_API_SECONDS_BYTES]; /* asked for, or the frames' duration rounded to a whole number, at least 1 */
    char *metadata;                     /* JSON object, or NULL; owned */
    char *user;                         /* or NULL; owned */
} kn_video_summary;

/* KN_CORRUPT when job->request or job->extra are not what video_request.h wrote. */
kn_status kn_video_summary_read(kn_video_summary *out, const kn_job *job);
void kn_video_summary_release(kn_video_summary *summary);

/* What is known only while a job lives. kn_video_facts_none() for a job about which nothing is known. */
typedef struct kn_video_facts {
    int32_t progress;       /* percent; clamped to 0..99 unless completed, which is always 100 */
    double eta_seconds;     /* until completion; NaN: null */
    int64_t queue_position; /* 0 is next; -1: null */
    const char *stage;      /* "text", "denoise", ...; NULL: null */
} kn_video_facts;

kn_video_facts kn_video_facts_none(void);

typedef struct kn_video_item {
    const kn_job *job;
    const kn_video_summary *summary;
    kn_video_facts facts;
} kn_video_item;

/* "queued", "in_progress", "completed" or "failed": clients' poll loops end on anything else. Cancelled is failed
 * (with error.code "cancelled"), expired is completed. */
const char *kn_video_status_name(kn_job_state state);

/* The video object: every key of the specification and ours, always; null where there is nothing. */
void kn_video_write(kn_text *out, const kn_video_item *item);
/* {"object":"list","data":[...],"first_id","last_id","has_more"} */
void kn_video_list_write(kn_text *out, const kn_video_item *items, size_t count, bool has_more);
/* {"id","object":"video.deleted","deleted":true} */
void kn_video_deleted_write(kn_text *out, const char *id);

typedef struct kn_model_entry {
    const char *id;
    int64_t created; /* Unix seconds */
    const char *owned_by;
} kn_model_entry;

void kn_model_write(kn_text *out, const kn_model_entry *model);
void kn_model_list_write(kn_text *out, const kn_model_entry *models, size_t count);

/* {"id":event_id,"object":"event","created_at":seconds,"type":"video.completed","data":{"id":video_id}} */
void kn_video_event_write(kn_text *out, const char *event_id, int64_t created_at, const char *type,
                          const char *video_id);

/* One server-sent event (WHATWG HTML, section 9.2). `event` and `id` may be NULL; a line break in them would start
 * another field, so it becomes a space (and an id with a NUL cannot be given). Data of several lines becomes several
 * data fields. */
void kn_sse_write(kn_text *out, const char *event, const char *id, const char *data, size_t count);
/* ": text", which clients skip: keeps proxies from closing an idle stream. */
void kn_sse_comment_write(kn_text *out, const char *comment);

#endif
