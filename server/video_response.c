/* SPDX-License-Identifier: Apache-2.0
 *
 * Bodies that go back; see video_response.h. Field names are OpenAI's where it has one, other engines' where they
 * agree on one. */
#include "server/video_response.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "engine/config.h"
#include "engine/request.h"
#include "server/json.h"

/* ---- summary ---- */

static kn_status read_text(char **out, const json_t *value)
{
    if (!value) return KN_OK;
    *out = json_is_string(value) ? kn_strdup(json_string_value(value)) : NULL;
    return *out ? KN_OK : json_is_string(value) ? KN_NOMEM : kn_fail(KN_CORRUPT, "extra: user is not a string");
}

static kn_status read_metadata(char **out, const json_t *value)
{
    const size_t flags = JSON_COMPACT | JSON_SORT_KEYS;
    if (!value) return KN_OK;
    if (!json_is_object(value)) return kn_fail(KN_CORRUPT, "extra: metadata is not an object");
    size_t bytes = json_dumpb(value, NULL, 0, flags);
    *out = bytes > 0 ? kn_alloc(bytes + 1) : NULL;
    if (!*out || json_dumpb(value, *out, bytes, flags) != bytes)
        return kn_fail(KN_NOMEM, "out of memory writing metadata");
    return KN_OK;
}

static kn_status read_extra(kn_video_summary *out, const char *extra)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    const char *seconds = NULL;
    if (!extra) return KN_OK;
    KN_TRY(kn_json_parse(&root, extra, strlen(extra), "extra", kn_config_limits()));
    const kn_config config = {.object = root, .file = "extra"};
    KN_TRY(kn_config_string(&config, "seconds", "", &seconds));
    if (strlen(seconds) >= sizeof out->seconds) KN_TRY(kn_fail(KN_CORRUPT, "extra: seconds is too long"));
    memcpy(out->seconds, seconds, strlen(seconds) + 1);
    KN_TRY(read_text(&out->user, json_object_get(root, "user")));
    KN_TRY(read_metadata(&out->metadata, json_object_get(root, "metadata")));
fail:
    json_decref(root);
    return st;
}

kn_status kn_video_summary_read(kn_video_summary *out, const kn_job *job)
{
    kn_status st = KN_OK;
    kn_request request = kn_request_empty();
    *out = (kn_video_summary){0};
    if (!job->request) return kn_fail(KN_CORRUPT, "%s has no request", job->id);
    KN_TRY(kn_request_from_json(&request, job->request, job->id));
    out->width = request.width;
    out->height = request.height;
    out->frames = request.frames;
    out->fps_numerator = request.fps_numerator;
    out->fps_denominator = request.fps_denominator;
    out->steps = request.steps;
    out->guidance = request.guidance;
    out->seed = request.seed;
    KN_TRY(read_extra(out, job->extra));
    if (out->seconds[0] == '\0') {
        double seconds = (double)request.frames * request.fps_denominator / request.fps_numerator;
        snprintf(out->seconds, sizeof out->seconds, "%.0f", fmax(1.0, round(seconds)));
    }
fail:
    kn_request_release(&request);
    if (st != KN_OK) kn_video_summary_release(out);
    return st;
}

void kn_video_summary_release(kn_video_summary *summary)
{
    if (!summary) return;
    kn_free(summary->metadata);
    kn_free(summary->user);
    *summary = (kn_video_summary){0};
}

/* ---- video ---- */

kn_video_facts kn_video_facts_none(void)
{
    return (kn_video_facts){.eta_seconds = NAN, .queue_position = -1};
}

const char *kn_video_status_name(kn_job_state state)
{
    switch (state) {
    case KN_JOB_QUEUED: return "queued";
    case KN_JOB_RUNNING: return "in_progress";
    case KN_JOB_COMPLETED:
    case KN_JOB_EXPIRED: return "completed";
    default: return "failed";
    }
}

static bool failed(const kn_job *job)
{
    return strcmp(kn_video_status_name(job->state), "failed") == 0;
}

static bool completed(const kn_job *job)
{
    return job->state == KN_JOB_COMPLETED || job->state == KN_JOB_EXPIRED;
}

static void key_string(kn_json_writer *w, const char *key, const char *value)
{
    kn_json_write_key(w, key);
    kn_json_write_string(w, value);
}

static void key_int(kn_json_writer *w, const char *key, int64_t value)
{
    kn_json_write_key(w, key);
    kn_json_write_int(w, value);
}

static void key_double(kn_json_writer *w, const char *key, double value)
{
    kn_json_write_key(w, key);
    kn_json_write_double(w, value);
}

/* A time in microseconds as Unix seconds; null when it has not come. */
static void key_time(kn_json_writer *w, const char *key, int64_t microseconds)
{
    kn_json_write_key(w, key);
    if (microseconds > 0)
        kn_json_write_int(w, microseconds / 1000000);
    else
        kn_json_write_null(w);
}

static void write_error(kn_json_writer *w, const kn_job *job)
{
    kn_json_write_key(w, "error");
    if (!failed(job)) {
        kn_json_write_null(w);
        return;
    }
    const char *code = job->error_code;
    if (!code[0]) code = job->state == KN_JOB_CANCELLED ? "cancelled" : "internal_error";
    const char *message = job->error_message;
    if (!message) message = job->state == KN_JOB_CANCELLED ? "The video was cancelled." : "The video failed.";
    kn_json_write_object(w);
    key_string(w, "code", code);
    key_string(w, "message", message);
    kn_json_write_object_end(w);
}

static int32_t progress_of(const kn_video_item *item)
{
    if (completed(item->job)) return 100;
    if (item->facts.progress < 0) return 0;
    return item->facts.progress < 99 ? item->facts.progress : 99;
}

/* What OpenAI's specification requires. */
static void write_standard(kn_json_writer *w, const kn_video_item *item)
{
    const kn_job *job = item->job;
    char size[32];
    snprintf(size, sizeof size, "%" PRId32 "x%" PRId32, item->summary->width, item->summary->height);
    key_string(w, "id", job->id);
    key_string(w, "object", "video");
    key_string(w, "model", job->asked_model[0] ? job->asked_model : job->model);
    key_string(w, "status", kn_video_status_name(job->state));
    key_int(w, "progress", progress_of(item));
    key_int(w, "created_at", job->created_at / 1000000);
    key_time(w, "completed_at", job->completed_at);
    key_time(w, "expires_at", job->expires_at);
    key_string(w, "prompt", job->prompt);
    key_string(w, "size", size);
    key_string(w, "seconds", item->summary->seconds);
    key_string(w, "remixed_from_video_id", NULL);
    write_error(w, job);
}

static void write_extensions(kn_json_writer *w, const kn_video_item *item)
{
    const kn_job *job = item->job;
    const kn_video_summary *s = item->summary;
    const bool waiting = job->state == KN_JOB_QUEUED, live = waiting || job->state == KN_JOB_RUNNING;
    key_time(w, "started_at", job->started_at);
    key_time(w, "deadline_at", job->deadline_at);
    key_string(w, "quality", "standard");
    key_string(w, "service_tier", kn_priority_name(job->priority));
    key_string(w, "stage", live ? item->facts.stage : NULL);
    key_double(w, "eta_seconds", live ? item->facts.eta_seconds : NAN);
    kn_json_write_key(w, "queue_position");
    if (waiting && item->facts.queue_position >= 0)
        kn_json_write_int(w, item->facts.queue_position);
    else
        kn_json_write_null(w);
    key_int(w, "num_frames", s->frames);
    key_double(w, "fps", (double)s->fps_numerator / s->fps_denominator);
    key_int(w, "num_inference_steps", s->steps);
    key_double(w, "guidance_scale", s->guidance);
    kn_json_write_key(w, "seed");
    kn_json_write_uint(w, s->seed);
    key_double(w, "inference_time_s", job->used_us > 0 ? (double)job->used_us / 1e6 : NAN);
    kn_json_write_key(w, "metadata");
    kn_json_write_raw(w, s->metadata);
    key_string(w, "user", s->user);
}

static void write_video(kn_json_writer *w, const kn_video_item *item)
{
    kn_json_write_object(w);
    write_standard(w, item);
    write_extensions(w, item);
    kn_json_write_object_end(w);
}

void kn_video_write(kn_text *out, const kn_video_item *item)
{
    kn_json_writer w = kn_json_writer_on(out);
    write_video(&w, item);
}

void kn_video_list_write(kn_text *out, const kn_video_item *items, size_t count, bool has_more)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    key_string(&w, "object", "list");
    kn_json_write_key(&w, "data");
    kn_json_write_array(&w);
    for (size_t i = 0; i < count; i++) write_video(&w, &items[i]);
    kn_json_write_array_end(&w);
    key_string(&w, "first_id", count > 0 ? items[0].job->id : NULL);
    key_string(&w, "last_id", count > 0 ? items[count - 1].job->id : NULL);
    kn_json_write_key(&w, "has_more");
    kn_json_write_bool(&w, has_more);
    kn_json_write_object_end(&w);
}

void kn_video_deleted_write(kn_text *out, const char *id)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    key_string(&w, "id", id);
    key_string(&w, "object", "video.deleted");
    kn_json_write_key(&w, "deleted");
    kn_json_write_bool(&w, true);
    kn_json_write_object_end(&w);
}

/* ---- models ---- */

static void write_model(kn_json_writer *w, const kn_model_entry *model)
{
    kn_json_write_object(w);
    key_string(w, "id", model->id);
    key_string(w, "object", "model");
    key_int(w, "created", model->created);
    key_string(w, "owned_by", model->owned_by);
    kn_json_write_object_end(w);
}

void kn_model_write(kn_text *out, const kn_model_entry *model)
{
    kn_json_writer w = kn_json_writer_on(out);
    write_model(&w, model);
}

void kn_model_list_write(kn_text *out, const kn_model_entry *models, size_t count)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    key_string(&w, "object", "list");
    kn_json_write_key(&w, "data");
    kn_json_write_array(&w);
    for (size_t i = 0; i < count; i++) write_model(&w, &models[i]);
    kn_json_write_array_end(&w);
    kn_json_write_object_end(&w);
}

/* ---- events ---- */

void kn_video_event_write(kn_text *out, const char *event_id, int64_t created_at, const char *type,
                          const char *video_id)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    key_string(&w, "id", event_id);
    key_string(&w, "object", "event");
    key_int(&w, "created_at", created_at);
    key_string(&w, "type", type);
    kn_json_write_key(&w, "data");
    kn_json_write_object(&w);
    key_string(&w, "id", video_id);
    kn_json_write_object_end(&w);
    kn_json_write_object_end(&w);
}

/* "name: value" with line breaks made spaces. */
static void write_line(kn_text *out, const char *name, const char *value)
{
    kn_text_string(out, name);
    for (const char *at = value; *at;) {
        size_t run = strcspn(at, "\r\n");
        kn_text_append(out, at, run);
        at += run;
        if (*at) {
            kn_text_append(out, " ", 1);
            at++;
        }
    }
    kn_text_append(out, "\n", 1);
}

void kn_sse_write(kn_text *out, const char *event, const char *id, const char *data, size_t count)
{
    if (event) write_line(out, "event: ", event);
    if (id) write_line(out, "id: ", id);
    const char *end = data + count;
    for (const char *at = data;;) {
        const char *stop = at;
        while (stop < end && *stop != '\r' && *stop != '\n') stop++;
        kn_text_string(out, "data: ");
        kn_text_append(out, at, (size_t)(stop - at));
        kn_text_append(out, "\n", 1);
        if (stop == end) break;
        at = stop + (end - stop > 1 && stop[0] == '\r' && stop[1] == '\n' ? 2 : 1);
    }
    kn_text_append(out, "\n", 1);
}

void kn_sse_comment_write(kn_text *out, const char *comment)
{
    write_line(out, ": ", comment);
    kn_text_append(out, "\n", 1);
}
