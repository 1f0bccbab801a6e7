/* SPDX-License-Identifier: Apache-2.0
 *
 * How jobs end. The end counts once the store has it: until then a client sees the state before, and a crash now makes
 * the same decision again. An end the store could not take (a full disk) is offered again until it can. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/core.h"
#include "server/kserve_core.h"
#include "server/watch.h"

void kn_end_remove_files(kn_server *s, const kn_store_result *result)
{
    for (int32_t i = 0; i < result->file_count; i++) {
        const kn_store_file *file = &result->files[i];
        kn_artifact artifact;
        if (!kn_artifact_parse(&artifact, file->name)) continue;
        const unsigned kinds =
            file->blob ? 1u << KN_ARTIFACT_VIDEO | 1u << KN_ARTIFACT_THUMBNAIL | 1u << KN_ARTIFACT_SPRITESHEET
                       : 1u << KN_ARTIFACT_CHECKPOINT;
        kn_artifact_remove(s->data, &artifact.lease, kinds);
    }
}

static void count_end(kn_server *s, const kn_live *live)
{
    const kn_job *job = &live->job;
    const bool good = job->state == KN_JOB_COMPLETED;
    kn_metric_add(s->meters->jobs, 1.0,
                  KN_LABELS(job->model, kn_job_state_name(job->state), good ? "none" : job->error_code));
    kn_metric_observe(s->meters->job_device_seconds, (double)job->used_us * 1e-6, KN_LABELS(job->model));
    if (!good) return;
    kn_metric_observe(s->meters->job_e2e_seconds, (double)(job->completed_at - job->created_at) * 1e-6,
                      KN_LABELS(job->model));
    kn_metric_add(s->meters->frames, live->summary.frames, KN_LABELS(job->model));
    kn_metric_add(s->meters->video_seconds,
                  (double)live->summary.frames * live->summary.fps_denominator / live->summary.fps_numerator,
                  KN_LABELS(job->model));
}

/* The store has the end. */
static void ended(kn_server *s, kn_live *live, const kn_store_result *result)
{
    live->job.completed_at = result->at;
    kn_free(live->job.checkpoint);
    live->job.checkpoint = NULL;
    kn_log_event(KN_LOG_INFO,
                 KN_LOG_WITH(kn_log_job(live->job.id), kn_log_text("state", kn_job_state_name(live->job.state)),
                             kn_log_text("code", live->job.error_code),
                             kn_log_real("device_seconds", (double)live->job.used_us * 1e-6)),
                 "job ended");
    count_end(s, live);
    kn_kserve_job_ended(s, live);
    kn_live_ended(s->live, live);
    kn_end_remove_files(s, result);
    kn_tell_state(s, live);
    if (result->deliveries > 0) kn_webhooks_soon(s);
    kn_live_trim(s->live);
}

/* What was asked for and who asked; by id, since an ended job may be forgotten meanwhile. */
typedef struct asking {
    kn_server *server;
    char id[KN_JOB_ID_BYTES];
} asking;

static kn_live *take_answer(void *context, kn_server **server)
{
    asking *a = context;
    *server = a->server;
    kn_live *live = kn_live_find(a->server->live, a->id);
    kn_free(a);
    if (!live || live->phase != KN_LIVE_ENDING) return NULL;
    live->asked = false;
    return live;
}

static bool ask(kn_server *s, kn_live *live, const kn_store_op *op, kn_store_done *done)
{
    asking *a = kn_alloc(sizeof *a);
    live->phase = KN_LIVE_ENDING;
    if (!a) return false;
    a->server = s;
    memcpy(a->id, live->job.id, sizeof a->id);
    live->asked = true;
    if (kn_store_submit_op(s->store, op, done, a) == KN_OK) return true;
    kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "the job's end was not taken: %s",
                 kn_fail_message());
    live->asked = false;
    kn_free(a);
    return false;
}

/* ---- failed and cancelled ---- */

static void on_finished(void *context, kn_store_result *result)
{
    kn_server *s;
    kn_live *live = take_answer(context, &s);
    if (!live) return;
    if (result->status != KN_OK) {
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)), "the job's end could not be written: %s",
                     result->message);
        return; /* kn_end_retry */
    }
    kn_point(KN_POINT_finish_committed);
    live->job.state = live->stop.state;
    memcpy(live->job.error_code, live->stop.code, sizeof live->job.error_code);
    kn_free(live->job.error_message);
    live->job.error_message = kn_strdup(live->stop.message);
    const kn_lease lease = kn_live_lease(live);
    if (lease.epoch > 0) kn_artifact_remove(s->data, &lease, (1u << KN_ARTIFACT_KINDS) - 1);
    ended(s, live, result);
}

static void finish(kn_server *s, kn_live *live)
{
    kn_store_op op = {.kind = KN_STORE_FINISH, .id = live->job.id};
    kn_point(KN_POINT_finish_begin);
    op.finish.state = live->stop.state;
    op.finish.code = live->stop.code;
    op.finish.message = live->stop.message;
    op.finish.used_us = live->job.used_us;
    ask(s, live, &op, on_finished);
}

void kn_end_advance(kn_server *s, kn_live *live)
{
    if (live->stop.state == KN_JOB_QUEUED) return;
    if (live->phase == KN_LIVE_RESIDENT && !live->in_slice) {
        const kn_lease lease = kn_live_lease(live);
        if (kn_fleet_release(s->fleet, live->device, &lease, KN_RELEASE_DISCARD) != KN_OK)
            kn_log(KN_LOG_DEBUG, "job not released: %s", kn_fail_message()); /* the device is gone */
        live->phase = KN_LIVE_WAITING;
        live->device = -1;
    }
    if (live->phase == KN_LIVE_WAITING) finish(s, live);
}

void kn_end_job(kn_server *s, kn_live *live, kn_job_state state, const char *code, const char *format, ...)
{
    va_list arguments;
    if (live->stop.state != KN_JOB_QUEUED || live->phase == KN_LIVE_ENDING || live->phase == KN_LIVE_ENDED) return;
    live->stop.state = state;
    snprintf(live->stop.code, sizeof live->stop.code, "%s", code);
    va_start(arguments, format);
    vsnprintf(live->stop.message, sizeof live->stop.message, format, arguments);
    va_end(arguments);
    const kn_change change = {.kind = KN_CHANGE_JOB_REMOVED, .job = {.key = live->key}};
    const kn_status st = kn_scheduler_event(s->scheduler, &change, kn_clock_ns());
    if (st != KN_OK && st != KN_NOT_FOUND) kn_log(KN_LOG_ERROR, "job removed: %s", kn_fail_message());
    kn_end_advance(s, live);
    kn_dispatch_soon(s);
}

/* ---- completed ---- */

static void release_published(kn_server *s, const kn_live *live, kn_release_mode mode)
{
    const kn_lease lease = kn_live_lease(live);
    if (live->device >= 0 && kn_fleet_release(s->fleet, live->device, &lease, mode) == KN_OK) return;
    kn_artifact_remove(s->data, &lease,
                       mode == KN_RELEASE_PUBLISHED ? 1u << KN_ARTIFACT_CHECKPOINT : (1u << KN_ARTIFACT_KINDS) - 1);
}

static void on_published(void *context, kn_store_result *result)
{
    kn_server *s;
    kn_live *live = take_answer(context, &s);
    if (!live) return;
    if (result->status != KN_OK) {
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)), "the video could not be published: %s",
                     result->message);
        return; /* kn_end_retry */
    }
    if (result->outcome != KN_STORE_DONE) { /* the lease is not ours any more: somebody else decides about this job */
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)),
                     "the video was not published: the store has the job as %s, epoch %lld",
                     kn_job_state_name(result->state), (long long)result->epoch);
        release_published(s, live, KN_RELEASE_DISCARD);
        live->job.state = result->state;
        kn_live_ended(s->live, live);
        return;
    }
    kn_point(KN_POINT_publish_committed);
    char *blob = kn_strdup(live->output.name);
    release_published(s, live, KN_RELEASE_PUBLISHED);
    live->job.state = KN_JOB_COMPLETED;
    live->job.blob = blob;
    live->job.blob_bytes = live->output.bytes;
    memcpy(live->job.blob_sha256, live->output.sha256, KN_SHA256_BYTES);
    ended(s, live, result);
}

static void publish(kn_server *s, kn_live *live)
{
    kn_store_op op = {.kind = KN_STORE_PUBLISH, .id = live->job.id, .epoch = live->job.epoch};
    kn_point(KN_POINT_publish_begin);
    op.publish.blob = live->output.name;
    op.publish.bytes = live->output.bytes;
    op.publish.used_us = live->job.used_us;
    op.publish.expires_at = live->job.expires_at = kn_now_us() + s->config->retention_seconds * 1000000;
    memcpy(op.publish.sha256, live->output.sha256, KN_SHA256_BYTES);
    ask(s, live, &op, on_published);
}

static void on_output_verdict(void *context, const kn_moderation_verdict *verdict)
{
    kn_server *s;
    kn_live *live = take_answer(context, &s);
    if (!live) return;
    kn_metric_observe(s->meters->moderation_seconds, (double)verdict->elapsed_ns * 1e-9,
                      KN_LABELS("output", verdict->failed    ? "failed"
                                          : verdict->allowed ? "allow"
                                                             : "block"));
    if (verdict->allowed) {
        publish(s, live);
        return;
    }
    release_published(s, live, KN_RELEASE_DISCARD);
    live->stop.state = KN_JOB_FAILED;
    snprintf(live->stop.code, sizeof live->stop.code, "%s", KN_MODERATION_CODE);
    snprintf(live->stop.message, sizeof live->stop.message, "%s", KN_MODERATION_MESSAGE);
    finish(s, live);
}

/* Asks the operator's hook; false: it cannot be asked now. */
static bool ask_hook(kn_server *s, kn_live *live)
{
    const kn_lease lease = kn_live_lease(live);
    asking *a = kn_alloc(sizeof *a);
    char *file = kn_artifact_path(s->data, &(kn_artifact){.kind = KN_ARTIFACT_VIDEO, .lease = lease});
    uint64_t ticket;
    bool asked = false;
    if (a && file) {
        a->server = s;
        memcpy(a->id, live->job.id, sizeof a->id);
        const kn_moderation_subject subject = {.stage = KN_MODERATION_OUTPUT,
                                               .job_id = live->job.id,
                                               .tenant = live->job.tenant,
                                               .model = live->job.model,
                                               .prompt = live->job.prompt,
                                               .file = file};
        asked = kn_moderation_ask(s->moderation, &subject, on_output_verdict, a, &ticket) == KN_OK;
    }
    if (!asked) kn_free(a);
    kn_free(file);
    live->asked = asked;
    return asked;
}

static void publish_checked(kn_server *s, kn_live *live)
{
    live->phase = KN_LIVE_ENDING;
    if (!kn_moderation_active(s->moderation, KN_MODERATION_OUTPUT))
        publish(s, live);
    else
        ask_hook(s, live); /* if not now: kn_end_retry */
}

void kn_end_publish(kn_server *s, kn_live *live, const kn_output *output)
{
    live->output = *output;
    publish_checked(s, live);
}

static void retry(void *context, kn_live *live)
{
    kn_server *s = context;
    if (live->phase != KN_LIVE_ENDING || live->asked) return;
    if (live->stop.state != KN_JOB_QUEUED)
        finish(s, live);
    else
        publish_checked(s, live); /* a hook may be asked twice; its answer is about the same bytes */
}

void kn_end_retry(kn_server *s)
{
    kn_live_each_unfinished(s->live, retry, s);
}
