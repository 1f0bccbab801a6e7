/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits of an operation's fields, checked before it is queued, and its copy: one allocation with the node, the structs
 * it points to and all texts, so that the store thread depends on nobody's memory. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "server/store_internal.h"

enum { FIELDS_MAX = 8 };
#define COST_US_MAX (UINT64_C(1000000) * 3600 * 24 * 365 * 30) /* 30 years; a sum of many still fits 63 bits */

/* ---- limits ---- */

static kn_status check_text(const char *field, const char *text, size_t bytes_max, bool required)
{
    if (!text) return required ? kn_fail(KN_INVALID, "store: %s is missing", field) : KN_OK;
    if (required && *text == '\0') return kn_fail(KN_INVALID, "store: %s is empty", field);
    if (strnlen(text, bytes_max + 1) > bytes_max)
        return kn_fail(KN_INVALID, "store: %s is longer than %zu bytes", field, bytes_max);
    return KN_OK;
}

static kn_status check_file(const char *field, const char *name)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    kn_status st = KN_OK;
    KN_TRY(check_text(field, name, KN_STORE_FILE_BYTES - 1, true));
    if (*name == '.' || name[strspn(name, letters)] != '\0')
        return kn_fail(KN_INVALID, "store: %s is not a file name of ours", field);
fail:
    return st;
}

static kn_status check_number(const char *field, uint64_t value, uint64_t most)
{
    return value <= most ? KN_OK
                         : kn_fail(KN_INVALID, "store: %s is %llu, at most %llu", field, (unsigned long long)value,
                                   (unsigned long long)most);
}

static kn_status check_limits(const kn_store_limits *limits)
{
    kn_status st = KN_OK;
    if (limits->max_active < 0 || limits->window_us < 0) return kn_fail(KN_INVALID, "store: a limit is negative");
    KN_TRY(check_number("limits.device_us", limits->device_us, INT64_MAX / 2));
    if (limits->device_us > 0 && limits->window_us == 0)
        return kn_fail(KN_INVALID, "store: limits.device_us needs a window");
fail:
    return st;
}

static kn_status check_job(const kn_job *job)
{
    kn_status st = KN_OK;
    if (!job) return kn_fail(KN_INVALID, "store: job is missing");
    if (!kn_job_id_valid(job->id)) return kn_fail(KN_INVALID, "store: job.id is not an id");
    KN_TRY(check_text("job.tenant", job->tenant, KN_TENANT_BYTES - 1, true));
    KN_TRY(check_text("job.key_id", job->key_id, KN_TENANT_BYTES - 1, false));
    KN_TRY(check_text("job.model", job->model, KN_MODEL_NAME_BYTES - 1, true));
    KN_TRY(check_text("job.asked_model", job->asked_model, KN_MODEL_NAME_BYTES - 1, false));
    KN_TRY(check_text("job.prompt", job->prompt, KN_STORE_TEXT_BYTES, false));
    KN_TRY(check_text("job.request", job->request, KN_STORE_TEXT_BYTES, false));
    KN_TRY(check_text("job.extra", job->extra, KN_STORE_TEXT_BYTES, false));
    KN_TRY(check_number("job.cost_us", job->cost_us, COST_US_MAX));
    KN_TRY(check_number("job.priority", (uint64_t)job->priority, KN_PRIORITIES - 1));
    if (job->deadline_at < 0) return kn_fail(KN_INVALID, "store: job.deadline_at is negative");
fail:
    return st;
}

static kn_status check_endpoint(const kn_endpoint_row *row)
{
    kn_status st = KN_OK;
    if (!row) return kn_fail(KN_INVALID, "store: endpoint is missing");
    KN_TRY(check_text("endpoint.id", row->id, sizeof row->id - 1, true));
    KN_TRY(check_text("endpoint.tenant", row->tenant, sizeof row->tenant - 1, true));
    KN_TRY(check_text("endpoint.url", row->url, sizeof row->url - 1, true));
    KN_TRY(check_text("endpoint.name", row->name, sizeof row->name - 1, false));
    KN_TRY(check_text("endpoint.secret", row->secret, sizeof row->secret - 1, true));
    KN_TRY(check_number("endpoint.events", row->events, (1u << KN_WEBHOOK_EVENTS) - 1));
fail:
    return st;
}

static kn_status check_key(const kn_key_row *row)
{
    kn_status st = KN_OK;
    if (!row) return kn_fail(KN_INVALID, "store: key is missing");
    KN_TRY(check_text("key.id", row->id, sizeof row->id - 1, true));
    KN_TRY(check_text("key.tenant", row->tenant, sizeof row->tenant - 1, true));
    KN_TRY(check_text("key.models", row->models, sizeof row->models - 1, false));
    KN_TRY(check_text("key.region", row->region, sizeof row->region - 1, false));
    KN_TRY(check_limits(&row->limits));
    if (row->requests_per_minute < 0 || row->burst < 0 || row->expires_at < 0)
        return kn_fail(KN_INVALID, "store: a number of the key is negative");
fail:
    return st;
}

/* id, tenant and epoch, as the table in store.h has them. */
static kn_status check_subject(const kn_store_op *op)
{
    static const struct {
        bool job, id, tenant;
        int64_t least_epoch; /* -1: not used */
    } subjects[KN_STORE_KINDS] = {
        [KN_STORE_SUBMIT] = {false, false, false, -1},        [KN_STORE_CLAIM] = {true, true, false, 0},
        [KN_STORE_RELEASE] = {true, true, false, 1},          [KN_STORE_CHECKPOINT] = {true, true, false, 1},
        [KN_STORE_COUNT_ATTEMPT] = {true, true, false, 1},    [KN_STORE_PUBLISH] = {true, true, false, 1},
        [KN_STORE_FINISH] = {true, true, false, 0},           [KN_STORE_RETRY] = {true, true, false, -1},
        [KN_STORE_EXPIRE] = {false, false, false, -1},        [KN_STORE_REMOVE] = {true, true, true, -1},
        [KN_STORE_PURGE] = {false, false, false, -1},         [KN_STORE_ENDPOINT_PUT] = {false, false, false, -1},
        [KN_STORE_ENDPOINT_REMOVE] = {false, true, true, -1}, [KN_STORE_ENDPOINT_DISABLE] = {false, true, false, -1},
        [KN_STORE_DELIVERY] = {false, false, false, -1},      [KN_STORE_KEY_ADD] = {false, false, false, -1},
        [KN_STORE_KEY_REVOKE] = {false, true, false, -1},     [KN_STORE_AUDIT] = {false, true, false, -1},
        [KN_STORE_REPLAY] = {false, false, true, -1},
    };
    kn_status st = KN_OK;
    if ((unsigned)op->kind >= KN_STORE_KINDS) return kn_fail(KN_INVALID, "store: no such operation");
    KN_TRY(check_text("actor", op->actor, KN_TENANT_BYTES - 1, false));
    KN_TRY(check_text("id", op->id, KN_AUDIT_SUBJECT_BYTES - 1, subjects[op->kind].id));
    KN_TRY(check_text("tenant", op->tenant, KN_TENANT_BYTES - 1, subjects[op->kind].tenant));
    if (subjects[op->kind].job && !kn_job_id_valid(op->id)) return kn_fail(KN_INVALID, "store: id is not a job's");
    if (op->epoch < subjects[op->kind].least_epoch) return kn_fail(KN_INVALID, "store: epoch is not a lease's");
fail:
    return st;
}

static kn_status check_delivery(const kn_store_op *op)
{
    if ((unsigned)op->delivery.outcome >= KN_DELIVERY_OUTCOMES)
        return kn_fail(KN_INVALID, "store: no such delivery outcome");
    return check_text("delivery.error", op->delivery.error, KN_STORE_ERROR_BYTES, false);
}

kn_status kn_store_check_op(const kn_store_op *op)
{
    kn_status st = KN_OK;
    KN_TRY(check_subject(op));
    switch (op->kind) {
    case KN_STORE_SUBMIT:
        KN_TRY(check_job(op->submit.job));
        KN_TRY(check_text("idempotency key", op->submit.idempotency_key, KN_IDEMPOTENCY_KEY_BYTES - 1,
                          op->submit.idempotency_key != NULL));
        KN_TRY(check_limits(&op->submit.limits));
        break;
    case KN_STORE_REPLAY:
        KN_TRY(check_text("idempotency key", op->submit.idempotency_key, KN_IDEMPOTENCY_KEY_BYTES - 1, true));
        break;
    case KN_STORE_CHECKPOINT:
        if (op->checkpoint.name) KN_TRY(check_file("checkpoint.name", op->checkpoint.name));
        if (op->checkpoint.step < 0) return kn_fail(KN_INVALID, "store: checkpoint.step is negative");
        KN_TRY(check_number("checkpoint.used_us", op->checkpoint.used_us, COST_US_MAX));
        break;
    case KN_STORE_PUBLISH:
        KN_TRY(check_file("publish.blob", op->publish.blob));
        KN_TRY(check_number("publish.bytes", op->publish.bytes, INT64_MAX));
        KN_TRY(check_number("publish.used_us", op->publish.used_us, COST_US_MAX));
        if (op->publish.expires_at < 0) return kn_fail(KN_INVALID, "store: publish.expires_at is negative");
        break;
    case KN_STORE_FINISH:
        if (op->finish.state != KN_JOB_FAILED && op->finish.state != KN_JOB_CANCELLED)
            return kn_fail(KN_INVALID, "store: finish.state must be failed or cancelled");
        KN_TRY(check_text("finish.code", op->finish.code, KN_ERROR_CODE_BYTES - 1, true));
        KN_TRY(check_text("finish.message", op->finish.message, KN_STORE_ERROR_BYTES, false));
        KN_TRY(check_number("finish.used_us", op->finish.used_us, COST_US_MAX));
        break;
    case KN_STORE_EXPIRE:
    case KN_STORE_PURGE:
        if (op->batch < 1 || op->batch > KN_STORE_LIST_MAX)
            return kn_fail(KN_INVALID, "store: batch is %d; 1..%d", op->batch, KN_STORE_LIST_MAX);
        if (op->ended_us < 0) return kn_fail(KN_INVALID, "store: ended_us is negative");
        break;
    case KN_STORE_ENDPOINT_PUT: KN_TRY(check_endpoint(op->endpoint)); break;
    case KN_STORE_DELIVERY: KN_TRY(check_delivery(op)); break;
    case KN_STORE_KEY_ADD: KN_TRY(check_key(op->key)); break;
    case KN_STORE_AUDIT: KN_TRY(check_text("action", op->audit.action, KN_AUDIT_ACTION_BYTES - 1, true)); break;
    default: break;
    }
fail:
    return st;
}

/* ---- the copy ---- */

/* Texts of the operation, and of a job it points to. */
static int list_texts(kn_store_op *op, kn_job *job, const char **fields[FIELDS_MAX], char **texts[FIELDS_MAX],
                      int *text_count)
{
    int n = 0;
    *text_count = 0;
    fields[n++] = &op->actor;
    fields[n++] = &op->id;
    fields[n++] = &op->tenant;
    switch (op->kind) {
    case KN_STORE_SUBMIT:
        fields[n++] = &op->submit.idempotency_key;
        texts[0] = &job->prompt;
        texts[1] = &job->request;
        texts[2] = &job->extra;
        *text_count = 3;
        break;
    case KN_STORE_REPLAY: fields[n++] = &op->submit.idempotency_key; break;
    case KN_STORE_CHECKPOINT: fields[n++] = &op->checkpoint.name; break;
    case KN_STORE_PUBLISH: fields[n++] = &op->publish.blob; break;
    case KN_STORE_FINISH:
        fields[n++] = &op->finish.code;
        fields[n++] = &op->finish.message;
        break;
    case KN_STORE_DELIVERY: fields[n++] = &op->delivery.error; break;
    case KN_STORE_AUDIT: fields[n++] = &op->audit.action; break;
    default: break;
    }
    return n;
}

/* A struct the operation points to, and its size. */
static const void *attached(const kn_store_op *op, size_t *bytes)
{
    switch (op->kind) {
    case KN_STORE_SUBMIT: *bytes = sizeof *op->submit.job; return op->submit.job;
    case KN_STORE_ENDPOINT_PUT: *bytes = sizeof *op->endpoint; return op->endpoint;
    case KN_STORE_KEY_ADD: *bytes = sizeof *op->key; return op->key;
    default: *bytes = 0; return NULL;
    }
}

static char *move_text(char **at, const char *text)
{
    const size_t bytes = strlen(text) + 1;
    char *copy = *at;
    memcpy(copy, text, bytes);
    *at += bytes;
    return copy;
}

kn_status kn_store_copy_op(kn_store_node **out, const kn_store_op *op)
{
    enum { ALIGNMENT = 16 };
    const char **fields[FIELDS_MAX];
    char **texts[FIELDS_MAX];
    kn_store_op copy = *op;
    kn_job job = {0};
    size_t struct_bytes;
    int text_count;
    const void *source = attached(op, &struct_bytes);
    if (op->kind == KN_STORE_SUBMIT) job = *op->submit.job;
    const int field_count = list_texts(&copy, &job, fields, texts, &text_count);
    const size_t struct_at = (sizeof(kn_store_node) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t bytes = struct_at + struct_bytes;
    for (int i = 0; i < field_count; i++) bytes += *fields[i] ? strlen(*fields[i]) + 1 : 0;
    for (int i = 0; i < text_count; i++) bytes += *texts[i] ? strlen(*texts[i]) + 1 : 0;

    kn_store_node *node = kn_alloc(bytes);
    *out = node;
    if (!node) return KN_NOMEM;
    node->bytes = bytes;
    char *at = (char *)node + struct_at + struct_bytes;
    for (int i = 0; i < field_count; i++)
        if (*fields[i]) *fields[i] = move_text(&at, *fields[i]);
    for (int i = 0; i < text_count; i++)
        if (*texts[i]) *texts[i] = move_text(&at, *texts[i]);
    void *target = (char *)node + struct_at;
    if (op->kind == KN_STORE_SUBMIT) {
        job.blob = job.checkpoint = job.error_message = NULL; /* not part of a submit */
        memcpy(target, &job, sizeof job);
        copy.submit.job = target;
    } else if (source) {
        memcpy(target, source, struct_bytes);
        if (op->kind == KN_STORE_ENDPOINT_PUT)
            copy.endpoint = target;
        else
            copy.key = target;
    }
    node->op = copy;
    node->result.kind = op->kind;
    return KN_OK;
}
