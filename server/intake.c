/* SPDX-License-Identifier: Apache-2.0
 *
 * From a request to an acknowledged job:
 *
 *   read the body ─► complete it with the model's defaults ─► may they? ─► does it fit? ─► the operator's prompt hook
 *   ─► the store: job, idempotency key and quota in one commit ─► 200 ─► the scheduler
 *
 * Nothing is acknowledged before the commit, and a client that went away meanwhile has its job all the same. A request
 * that is refused for want of room or time, but carries an idempotency key, is looked up first: it may repeat one that
 * was taken, whose answer was lost. */
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/api.h"

static kn_intake *intake_of(kn_call *call)
{
    if (!call->intake) call->intake = kn_alloc(sizeof *call->intake);
    return call->intake;
}

static void refuse(kn_call *call, const kn_api_error *error, const char *reason)
{
    kn_metric_add(call->server->meters->jobs_refused, 1.0, KN_LABELS(reason));
    kn_call_error(call, error);
}

/* Of a refusal before anything was asked of the store. */
static const char *reason_of(const kn_call *call, int status)
{
    switch (status) {
    case 403: return "forbidden";
    case 429: return "deadline";
    case 503: return call->server->draining ? "draining" : call->server->reserve.held ? "queue_full" : "storage";
    default: return "invalid";
    }
}

/* ---- is there room? ---- */

/* Jobs the store is about to take count too, or a burst would go beyond what the scheduler has room for. */
static kn_status check_room(kn_server *s, kn_api_error *error)
{
    if (kn_live_count(s->live).unfinished + s->submitting < s->config->queue_max) return KN_OK;
    return kn_api_overloaded(error, kn_limits_retry_after_s(kn_scheduler_next_place_ns(s->scheduler)),
                             "%" PRId64 " videos are queued or running already, as many as this server takes.",
                             s->config->queue_max);
}

/* In an overload most requests end here, before anything of them is read, so that saying no costs next to nothing. */
bool kn_api_turn_back(kn_call *call)
{
    kn_api_error error;
    const char *key = kn_call_header(call, "idempotency-key");
    if ((key && *key) || check_room(call->server, &error) == KN_OK) return false;
    refuse(call, &error, "queue_full");
    return true;
}

/* ---- reading ---- */

static kn_video_operation operation_of(const kn_call *call)
{
    const char *pattern = call->route->pattern;
    return strstr(pattern, "edits")        ? KN_VIDEO_EDIT
           : strstr(pattern, "extensions") ? KN_VIDEO_EXTEND
           : strstr(pattern, "characters") ? KN_VIDEO_CHARACTER
           : strstr(pattern, "remix")      ? KN_VIDEO_REMIX
                                           : KN_VIDEO_CREATE;
}

static kn_status read_body(kn_call *call, kn_intake *in, const void *body, size_t bytes, const char *content_type,
                           kn_api_error *error)
{
    kn_status st = KN_OK;
    KN_TRY(kn_video_request_parse(&in->params, operation_of(call), body, bytes, content_type, error));
    KN_TRY(kn_idempotency_key_parse(in->key, kn_call_header(call, "idempotency-key"), error));
    st = kn_video_params_fingerprint(in->fingerprint, &in->params);
    if (st != KN_OK) kn_api_from_status(error, st);
fail:
    return st;
}

static kn_status choose_model(kn_call *call, kn_intake *in, kn_api_error *error)
{
    kn_catalog_model *model = kn_catalog_find(call->server->catalog, in->params.model);
    if (!model && !in->params.model[0])
        return kn_api_overloaded(error, 30, "No model is available on this server at the moment.");
    if (!model)
        return kn_api_invalid_value(error, "model", "There is no model \"%s\"; GET /v1/models lists those there are.",
                                    in->params.model);
    if (model->offline)
        return kn_api_overloaded(error, 30, "The model \"%s\" has been unloaded; an operator loads it again.",
                                 model->name);
    if (!model->available)
        return kn_api_overloaded(error, 30, "The model \"%s\" is not available at the moment.", model->name);
    in->model = model;
    return KN_OK;
}

static kn_priority priority_of(const kn_call *call, const kn_video_params *params)
{
    if (params->has_priority) return params->priority;
    if (call->principal.priorities >> KN_PRIORITY_DEFAULT & 1) return KN_PRIORITY_DEFAULT;
    return call->principal.priorities >> KN_PRIORITY_FLEX & 1 ? KN_PRIORITY_FLEX : KN_PRIORITY_URGENT;
}

/* The engine's request, checked and complete, and the job around it. */
static kn_status complete(kn_call *call, kn_intake *in, kn_request *request, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_job *job = &in->job;
    kn_request_notes notes = {0};
    uint64_t random = 0;
    const kn_video_model model = {.name = in->params.model[0] ? in->params.model : in->model->name,
                                  .repository = in->model->repository};
    if (getrandom(&random, sizeof(uint32_t), 0) != sizeof(uint32_t)) return kn_api_internal(error);
    KN_TRY(kn_video_params_to_request(request, &in->params, &model, random, &notes, error));
    KN_TRY(kn_video_params_deadline(&job->deadline_at, &in->params, kn_now_us(), error));
    job->priority = priority_of(call, &in->params);
    KN_TRY(kn_policy_check_job(&call->principal, in->model->name, job->priority,
                               call->server->config->region ? call->server->config->region : "", error));
    st = kn_job_new_id(job->id);
    if (st == KN_OK) st = kn_request_to_json(&job->request, request);
    if (st == KN_OK) st = kn_video_params_extra(&job->extra, &in->params, &notes);
    if (st == KN_OK) st = kn_catalog_measure(&in->size, in->model, request);
    if (st != KN_OK) {
        kn_api_from_status(error, st);
        goto fail;
    }
    memcpy(job->tenant, call->principal.tenant, sizeof job->tenant);
    memcpy(job->key_id, call->principal.key_id, sizeof call->principal.key_id);
    memcpy(job->model, in->model->name, sizeof job->model);
    memcpy(job->asked_model, in->params.model[0] ? in->params.model : in->model->name, sizeof job->asked_model);
    job->prompt = in->params.prompt;
    in->params.prompt = NULL;
fail:
    return st;
}

/* ---- does it fit? ---- */

static kn_status judge(kn_call *call, kn_intake *in, const kn_request *request, kn_api_error *error)
{
    kn_server *s = call->server;
    kn_admission a;
    kn_status st = kn_dispatch_admission(s, in->model, &in->size, request, in->job.priority, in->job.tenant,
                                         in->job.deadline_at, &a);
    if (st != KN_OK) return kn_api_overloaded(error, 10, "The scheduler cannot take this job: %s.", kn_fail_message());
    in->job.cost_us = (uint64_t)(a.device_ns / 1000);
    const int32_t retry = kn_limits_retry_after_s(a.retry_after_ns);
    switch (a.verdict) {
    case KN_VERDICT_FITS: break;
    case KN_VERDICT_TOO_LARGE: return kn_api_unsupported(error, "size", "request_too_large", "%s", a.reason);
    case KN_VERDICT_QUEUE_FULL: return kn_api_overloaded(error, retry, "%s", a.reason);
    case KN_VERDICT_DRAINING: return kn_api_overloaded(error, 10, "This server is being shut down.");
    case KN_VERDICT_DEADLINE: return kn_api_rate_limited(error, "deadline_unattainable", retry, "%s", a.reason);
    case KN_VERDICT_NO_DEVICE: /* the queue is durable: it waits, unless a promise was asked for */
        if (in->job.deadline_at)
            return kn_api_overloaded(error, 10, "No device is ready, so no deadline can be promised.");
        break;
    }
    if (s->draining) return kn_api_overloaded(error, 10, "This server is being shut down.");
    if (!s->reserve.held)
        return kn_api_overloaded(error, 30, "Storage is full: new videos are refused until there is space.");
    return KN_OK;
}

/* ---- the commit ---- */

static void answer(kn_call *call, kn_live *live);

/* A job the store has: put it to work. */
static kn_live *take_on(kn_server *s, kn_job *job, const kn_intake *in)
{
    kn_live *live;
    kn_status st = kn_live_add(s->live, job, &live);
    if (st == KN_OK) {
        live->model = in->model;
        live->size = in->size;
        st = kn_dispatch_admit(s, live);
        if (st != KN_OK) kn_end_job(s, live, KN_JOB_FAILED, "internal", "The scheduler did not take this video.");
    }
    if (st != KN_OK)
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(job->id)), "a job was not taken on: %s", kn_fail_message());
    return st == KN_OK ? live : NULL;
}

/* The job of a key that was used before; NULL: the client has been told that it was another request's, or the job is
 * gone. */
static kn_live *find_replayed(kn_call *call, const kn_store_result *result)
{
    kn_api_error error;
    if (result->outcome == KN_STORE_REPLAYED) {
        kn_live *live = kn_live_find(call->server->live, result->job.id);
        return live ? live : kn_api_recall(call->server, call->principal.tenant, result->job.id);
    }
    kn_api_key_reused(&error);
    kn_call_error(call, &error);
    return NULL;
}

/* The last thing an answer of the store leads to. */
static void conclude(kn_call *call, kn_live *live)
{
    kn_api_error error;
    if (live) {
        answer(call, live);
        kn_point(KN_POINT_submit_answered);
    } else if (kn_call_waits(call)) { /* accepted, but not to be found: deleted meanwhile, or no memory */
        kn_api_internal(&error);
        kn_call_error(call, &error);
    }
    kn_call_release(call);
}

static void on_submitted(void *context, kn_store_result *result)
{
    kn_call *call = context;
    kn_server *s = call->server;
    kn_api_error error;
    kn_live *live = NULL;
    s->submitting--;
    if (result->status != KN_OK) {
        if (result->status == KN_UNAVAILABLE)
            kn_api_overloaded(&error, 30, "Storage is full: new videos are refused until there is space.");
        else
            kn_api_overloaded(&error, 5, "Storage did not take the video; nothing was kept.");
        kn_log(KN_LOG_ERROR, "submit: %s", result->message);
        refuse(call, &error, "storage");
    } else if (result->outcome == KN_STORE_DONE) {
        kn_log_event(KN_LOG_INFO,
                     KN_LOG_WITH(kn_log_job(result->job.id), kn_log_text("model", result->job.model),
                                 kn_log_integer("prompt_bytes", (int64_t)strlen(result->job.prompt))),
                     "job accepted");
        kn_metric_add(s->meters->jobs_submitted, 1.0,
                      KN_LABELS(result->job.model, kn_priority_name(result->job.priority)));
        kn_point(KN_POINT_submit_committed);
        live = take_on(s, &result->job, call->intake);
        call->owner = call->sync;
    } else if (result->outcome == KN_STORE_OVER_QUOTA) {
        kn_policy_over_quota(&error, &result->quota, kn_now_us());
        refuse(call, &error, "quota");
    } else {
        live = find_replayed(call, result);
    }
    conclude(call, live);
}

/* ---- repeats of what there is no room for now ---- */

static void on_looked_up(void *context, kn_store_result *result)
{
    kn_call *call = context;
    const kn_intake *in = call->intake;
    kn_live *live = NULL;
    if (result->status != KN_OK || result->outcome == KN_STORE_NOT_FOUND)
        refuse(call, &in->refusal, in->refusal_reason);
    else
        live = find_replayed(call, result);
    conclude(call, live);
}

static void refuse_unless_repeated(kn_call *call, const kn_api_error *error, const char *reason)
{
    kn_intake *in = call->intake;
    if (in && in->key[0] && (error->status == 429 || error->status == 503)) {
        kn_store_op op = {.kind = KN_STORE_REPLAY, .tenant = call->principal.tenant};
        op.submit.idempotency_key = in->key;
        memcpy(op.submit.fingerprint, in->fingerprint, sizeof in->fingerprint);
        in->refusal = *error;
        in->refusal_reason = reason;
        kn_call_hold(call);
        if (kn_store_submit_op(call->server->store, &op, on_looked_up, call) == KN_OK) return;
        kn_call_release(call);
    }
    refuse(call, error, reason);
}

/* ---- submitting ---- */

static void submit(kn_call *call)
{
    kn_intake *in = call->intake;
    kn_api_error error;
    kn_store_op op = {.kind = KN_STORE_SUBMIT};
    if (check_room(call->server, &error) != KN_OK) { /* others came while the operator's hook thought about it */
        refuse_unless_repeated(call, &error, "queue_full");
        return;
    }
    op.submit.job = &in->job;
    op.submit.idempotency_key = in->key[0] ? in->key : NULL;
    memcpy(op.submit.fingerprint, in->fingerprint, sizeof in->fingerprint);
    op.submit.limits = call->principal.limits;
    kn_call_hold(call);
    call->server->submitting++;
    if (kn_store_submit_op(call->server->store, &op, on_submitted, call) == KN_OK) return;
    call->server->submitting--;
    kn_api_overloaded(&error, 1, "Too many videos are being submitted at this moment.");
    refuse(call, &error, "queue_full");
    kn_call_release(call);
}

/* ---- the operator's hook ---- */

static void on_verdict(void *context, const kn_moderation_verdict *verdict)
{
    kn_call *call = context;
    kn_server *s = call->server;
    kn_api_error error;
    kn_metric_observe(s->meters->moderation_seconds, (double)verdict->elapsed_ns * 1e-9,
                      KN_LABELS("prompt", verdict->failed    ? "failed"
                                          : verdict->allowed ? "allow"
                                                             : "block"));
    if (verdict->allowed) {
        submit(call);
    } else {
        kn_policy_moderated(&error);
        refuse(call, &error, "moderation");
    }
    kn_call_release(call);
}

static void moderate(kn_call *call)
{
    kn_server *s = call->server;
    kn_api_error error;
    uint64_t ticket;
    const kn_job *job = &call->intake->job;
    const kn_moderation_subject subject = {.stage = KN_MODERATION_PROMPT,
                                           .job_id = job->id,
                                           .tenant = job->tenant,
                                           .model = job->model,
                                           .prompt = job->prompt};
    if (!kn_moderation_active(s->moderation, KN_MODERATION_PROMPT)) {
        submit(call);
        return;
    }
    kn_call_hold(call);
    if (kn_moderation_ask(s->moderation, &subject, on_verdict, call, &ticket) == KN_OK) return;
    kn_api_overloaded(&error, 2, "Too many prompts wait to be checked.");
    refuse(call, &error, "queue_full");
    kn_call_release(call);
}

/* ---- handlers ---- */

void kn_intake_begin(kn_call *call, const void *body, size_t bytes, const char *content_type)
{
    kn_api_error error;
    if (kn_api_turn_back(call)) return;
    kn_request request = kn_request_empty();
    kn_intake *in = intake_of(call);
    kn_status st = in ? KN_OK : kn_api_from_status(&error, KN_NOMEM);
    if (st == KN_OK) st = read_body(call, in, body, bytes, content_type, &error);
    if (st == KN_OK) st = choose_model(call, in, &error);
    if (st == KN_OK) st = complete(call, in, &request, &error);
    if (st == KN_OK) st = judge(call, in, &request, &error);
    if (st == KN_OK) st = check_room(call->server, &error);
    kn_request_release(&request);
    if (st == KN_OK)
        moderate(call);
    else
        refuse_unless_repeated(call, &error, reason_of(call, error.status));
}

void kn_api_create(kn_call *call)
{
    size_t bytes;
    const char *body = kn_http_body(call->exchange, &bytes);
    kn_intake_begin(call, body, bytes, kn_http_header(call->exchange, "content-type"));
}

void kn_api_sync(kn_call *call)
{
    call->sync = true;
    kn_api_create(call);
}

/* Their bodies are read, so that a client hears of its own mistakes first. */
void kn_api_not_offered(kn_call *call)
{
    kn_api_error error;
    size_t bytes;
    const char *body = kn_http_body(call->exchange, &bytes);
    kn_intake *in = intake_of(call);
    kn_status st = in ? KN_OK : kn_api_from_status(&error, KN_NOMEM);
    if (call->route->method == KN_HTTP_GET)
        st = kn_api_not_found(&error, "character", call->parameter);
    else if (st == KN_OK)
        st = read_body(call, in, body, bytes, kn_http_header(call->exchange, "content-type"), &error);
    if (st == KN_OK) kn_api_unsupported(&error, NULL, "unsupported_operation", "No model on this server does this.");
    kn_call_error(call, &error);
}

/* ---- the answer ---- */

static void send_result(kn_call *call)
{
    kn_api_send_video(call, call->live);
}

static void answer(kn_call *call, kn_live *live)
{
    if (!kn_call_waits(call)) {
        if (call->owner && live->phase != KN_LIVE_ENDED)
            kn_end_job(call->server, live, KN_JOB_CANCELLED, "cancelled",
                       "The client that waited for this video went away.");
    } else if (!call->sync) {
        kn_call_video(call, live);
    } else if (call->server->draining && live->phase != KN_LIVE_ENDED) {
        kn_call_pin(call, live);
        kn_api_turn_away(call);
    } else {
        kn_call_list(call);
        kn_call_wait(call, live, call->deliver ? call->deliver : send_result);
    }
}
