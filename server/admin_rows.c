/* SPDX-License-Identifier: Apache-2.0 */
#include "server/admin_rows.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "server/keys.h"

enum { DAY_SECONDS = 86400 };

static void write_seconds(kn_json_writer *w, const char *key, int64_t us)
{
    kn_json_write_key(w, key);
    if (us)
        kn_json_write_int(w, us / 1000000);
    else
        kn_json_write_null(w);
}

void kn_admin_write_job(kn_json_writer *w, const kn_job *job)
{
    kn_json_write_object(w);
    kn_json_write_key(w, "id");
    kn_json_write_string(w, job->id);
    kn_json_write_key(w, "tenant");
    kn_json_write_string(w, job->tenant);
    kn_json_write_key(w, "model");
    kn_json_write_string(w, job->model);
    kn_json_write_key(w, "state");
    kn_json_write_string(w, kn_job_state_name(job->state));
    kn_json_write_key(w, "priority");
    kn_json_write_string(w, kn_priority_name(job->priority));
    kn_json_write_key(w, "epoch");
    kn_json_write_int(w, job->epoch);
    kn_json_write_key(w, "attempts");
    kn_json_write_int(w, job->attempts);
    write_seconds(w, "created_at", job->created_at);
    write_seconds(w, "started_at", job->started_at);
    write_seconds(w, "completed_at", job->completed_at);
    write_seconds(w, "expires_at", job->expires_at);
    kn_json_write_key(w, "device_seconds");
    kn_json_write_double(w, (double)job->used_us * 1e-6);
    kn_json_write_key(w, "checkpoint_step");
    kn_json_write_int(w, job->checkpoint_step);
    kn_json_write_key(w, "error_code");
    kn_json_write_string(w, job->error_code[0] ? job->error_code : NULL);
    kn_json_write_key(w, "error_message");
    kn_json_write_string(w, job->error_message);
    kn_json_write_key(w, "bytes");
    kn_json_write_uint(w, job->blob_bytes);
    kn_json_write_object_end(w);
}

static kn_status add_job(void *context, const kn_job *job)
{
    kn_admin_write_job(context, job);
    return KN_OK;
}

kn_status kn_admin_write_jobs(kn_json_writer *w, kn_store *store, const kn_store_list *list)
{
    bool more = false;
    kn_json_write_object(w);
    kn_json_write_key(w, "data");
    kn_json_write_array(w);
    const kn_status st = kn_store_job_list(store, list, add_job, w, &more);
    kn_json_write_array_end(w);
    kn_json_write_key(w, "has_more");
    kn_json_write_bool(w, more);
    kn_json_write_object_end(w);
    return st;
}

void kn_admin_write_key(kn_json_writer *w, const kn_key_row *row, const kn_secret *secret)
{
    char scopes[64], priorities[64];
    kn_scopes_format(scopes, row->scopes);
    kn_priorities_format(priorities, row->priorities);
    kn_json_write_object(w);
    kn_json_write_key(w, "id");
    kn_json_write_string(w, row->id);
    kn_json_write_key(w, "tenant");
    kn_json_write_string(w, row->tenant);
    kn_json_write_key(w, "scopes");
    kn_json_write_string(w, scopes);
    kn_json_write_key(w, "priorities");
    kn_json_write_string(w, priorities);
    kn_json_write_key(w, "models");
    kn_json_write_string(w, row->models[0] ? row->models : NULL);
    kn_json_write_key(w, "region");
    kn_json_write_string(w, row->region[0] ? row->region : NULL);
    kn_json_write_key(w, "max_active");
    kn_json_write_int(w, row->limits.max_active);
    kn_json_write_key(w, "device_seconds_per_day");
    kn_json_write_uint(w, row->limits.device_us / 1000000);
    kn_json_write_key(w, "requests_per_minute");
    kn_json_write_int(w, row->requests_per_minute);
    write_seconds(w, "created_at", row->created_at);
    write_seconds(w, "expires_at", row->expires_at);
    write_seconds(w, "revoked_at", row->revoked_at);
    if (secret) {
        kn_json_write_key(w, "key");
        kn_json_write_string(w, kn_secret_reveal(secret));
    }
    kn_json_write_object_end(w);
}

static kn_status add_key(void *context, const kn_key_row *row)
{
    kn_admin_write_key(context, row, NULL);
    return KN_OK;
}

kn_status kn_admin_write_keys(kn_json_writer *w, kn_store *store)
{
    kn_json_write_object(w);
    kn_json_write_key(w, "data");
    kn_json_write_array(w);
    const kn_status st = kn_store_keys(store, NULL, add_key, w);
    kn_json_write_array_end(w);
    kn_json_write_object_end(w);
    return st;
}

/* ---- a new key ---- */

static kn_status read_text(const json_t *body, const char *name, char *out, size_t bytes, kn_api_error *error)
{
    const json_t *value = json_object_get(body, name);
    if (!value || json_is_null(value)) return KN_OK;
    if (!json_is_string(value)) return kn_api_invalid_type(error, name, "%s must be a string.", name);
    if (json_string_length(value) >= bytes)
        return kn_api_invalid_value(error, name, "%s has at most %zu characters.", name, bytes - 1);
    memcpy(out, json_string_value(value), json_string_length(value) + 1);
    return KN_OK;
}

static kn_status read_count(const json_t *body, const char *name, int64_t *out, kn_api_error *error)
{
    const json_t *value = json_object_get(body, name);
    *out = 0;
    if (!value || json_is_null(value)) return KN_OK;
    if (!json_is_integer(value)) return kn_api_invalid_type(error, name, "%s must be a whole number.", name);
    *out = json_integer_value(value);
    if (*out < 0 || *out > INT64_C(1000000000000))
        return kn_api_invalid_value(error, name, "%s must be 0 to 10^12.", name);
    return KN_OK;
}

kn_status kn_admin_read_key(kn_key_row *out, const char *bytes, size_t count, kn_api_error *error)
{
    kn_status st = KN_OK;
    char scopes[128] = "submit,read,cancel", priorities[64] = "flex,default,priority";
    int64_t device_seconds, expires;
    json_t *body = NULL;
    *out = (kn_key_row){0};
    KN_TRY(kn_json_body_parse(&body, bytes, count, NULL, error));
    KN_TRY(read_text(body, "tenant", out->tenant, sizeof out->tenant, error));
    if (!out->tenant[0]) KN_TRY(kn_api_missing_parameter(error, "tenant"));
    KN_TRY(read_text(body, "scopes", scopes, sizeof scopes, error));
    KN_TRY(read_text(body, "priorities", priorities, sizeof priorities, error));
    KN_TRY(read_text(body, "models", out->models, sizeof out->models, error));
    KN_TRY(read_text(body, "region", out->region, sizeof out->region, error));
    KN_TRY(read_count(body, "max_active", &out->limits.max_active, error));
    KN_TRY(read_count(body, "device_seconds_per_day", &device_seconds, error));
    KN_TRY(read_count(body, "requests_per_minute", &out->requests_per_minute, error));
    KN_TRY(read_count(body, "expires_at", &expires, error));
    out->limits.device_us = (uint64_t)device_seconds * 1000000;
    out->limits.window_us = device_seconds ? INT64_C(1000000) * DAY_SECONDS : 0;
    out->expires_at = expires * 1000000;
    if (kn_scopes_parse(&out->scopes, scopes) != KN_OK)
        KN_TRY(kn_api_invalid_value(error, "scopes", "%s", kn_fail_message()));
    if (kn_priorities_parse(&out->priorities, priorities) != KN_OK)
        KN_TRY(kn_api_invalid_value(error, "priorities", "%s", kn_fail_message()));
fail:
    json_decref(body);
    return st;
}
