/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "server/kserve_core.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"

kn_status kn_kserve_find(kn_server *s, const char *name, const char *version, kn_catalog_model **out,
                         kn_api_error *error)
{
    *out = name[0] ? kn_catalog_find(s->catalog, name) : NULL;
    if (!*out) {
        kn_api_not_found(error, "model", name);
        snprintf(error->param, sizeof error->param, "model_name");
        return KN_NOT_FOUND;
    }
    return kn_kserve_check_version(name, version, error);
}

bool kn_kserve_model_ready(const kn_server *s, const kn_catalog_model *model)
{
    return kn_catalog_serves(model) && !s->draining;
}

kn_kserve_model kn_kserve_model_of(const kn_server *s, const kn_catalog_model *model)
{
    const char *reason = model->offline ? "unloaded" : !model->available ? model->error : "the server is shutting down";
    return kn_kserve_describe(model->name, kn_kserve_model_ready(s, model), reason,
                              model->available ? model->repository : NULL);
}

size_t kn_kserve_list(const kn_server *s, bool ready_only, kn_kserve_model out[KN_CATALOG_MODELS_MAX])
{
    size_t count = 0;
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        out[count] = kn_kserve_model_of(s, kn_catalog_at(s->catalog, i));
        count += !ready_only || out[count].ready;
    }
    return count;
}

kn_status kn_kserve_read_statistics(kn_server *s, const char *name, const char *version,
                                    kn_kserve_model models[KN_CATALOG_MODELS_MAX],
                                    kn_kserve_counts counts[KN_CATALOG_MODELS_MAX], size_t *count, kn_api_error *error)
{
    kn_catalog_model *only = NULL;
    *count = 0;
    if (name[0] && kn_kserve_find(s, name, version, &only, error) != KN_OK) return KN_NOT_FOUND;
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        const kn_catalog_model *model = kn_catalog_at(s->catalog, i);
        if (only && model != only) continue;
        models[*count] = kn_kserve_model_of(s, model);
        counts[(*count)++] = s->kserve_counts[i];
    }
    return KN_OK;
}

void kn_kserve_job_ended(kn_server *s, const kn_live *live)
{
    const kn_job *job = &live->job;
    if (!live->model) return; /* its folder was gone before this start */
    const kn_kserve_ended ended = {.good = job->state == KN_JOB_COMPLETED,
                                   .created_us = job->created_at,
                                   .started_us = job->started_at,
                                   .ended_us = job->completed_at,
                                   .text_s = live->stage_seconds[KN_SLICE_TEXT],
                                   .denoise_s = live->stage_seconds[KN_SLICE_DENOISE],
                                   .decode_s =
                                       live->stage_seconds[KN_SLICE_DECODE] + live->stage_seconds[KN_SLICE_MUX]};
    kn_kserve_count(&s->kserve_counts[kn_catalog_index(s->catalog, live->model)], &ended);
}

/* ---- load and unload ---- */

typedef struct usage {
    const kn_catalog_model *model;
    bool used;
} usage;

static void look_at(void *context, kn_live *live)
{
    usage *u = context;
    u->used |= live->model == u->model;
}

static void free_device(kn_server *s, int32_t device, int32_t model)
{
    kn_seat *seat = &s->seats[device];
    if (kn_fleet_unload(s->fleet, device, kn_catalog_at(s->catalog, model)->name) != KN_OK) {
        kn_log(KN_LOG_WARNING, "a model was not unloaded: %s", kn_fail_message());
        return;
    }
    seat->loaded &= ~(1u << model);
    const kn_change change = {.kind = KN_CHANGE_MODEL_LOADED, .device = {.index = device, .models = seat->loaded}};
    if (kn_scheduler_event(s->scheduler, &change, kn_clock_ns()) != KN_OK)
        kn_log(KN_LOG_ERROR, "model unloaded: %s", kn_fail_message());
}

void kn_kserve_sweep(kn_server *s)
{
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        usage u = {.model = kn_catalog_at(s->catalog, i)};
        bool held = false;
        for (int32_t d = 0; d < s->seat_count; d++) held |= s->seats[d].up && s->seats[d].loaded >> i & 1;
        if (!u.model->offline || !held) continue;
        kn_live_each_unfinished(s->live, look_at, &u);
        for (int32_t d = 0; !u.used && d < s->seat_count; d++)
            if (s->seats[d].up && !s->seats[d].busy && s->seats[d].loaded >> i & 1) free_device(s, d, i);
    }
}

kn_status kn_kserve_unload(kn_server *s, const char *name, const char *who, kn_api_error *error)
{
    kn_catalog_model *model;
    if (kn_kserve_find(s, name, "", &model, error) != KN_OK) return KN_NOT_FOUND;
    model->offline = true;
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("model", model->name), kn_log_text("key", who)),
                 "model unloaded: no new jobs");
    kn_kserve_sweep(s);
    return KN_OK;
}

kn_status kn_kserve_load(kn_server *s, const char *name, const char *who, kn_api_error *error)
{
    kn_catalog_model *model;
    kn_status st = KN_OK;
    if (kn_catalog_rescan(s->catalog) != KN_OK || kn_dispatch_models(s) != KN_OK)
        kn_log(KN_LOG_WARNING, "the model folders were not read again: %s", kn_fail_message());
    KN_TRY(kn_kserve_find(s, name, "", &model, error));
    if (!model->available)
        return kn_api_unsupported(error, "model_name", "model_unavailable", "failed to load '%s': %s", model->name,
                                  model->error);
    model->offline = false;
    for (int32_t d = 0; d < s->seat_count; d++) s->seats[d].refused &= ~(1u << kn_catalog_index(s->catalog, model));
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("model", model->name), kn_log_text("key", who)), "model loaded");
    kn_dispatch_soon(s);
fail:
    return st;
}

/* ---- answers ---- */

kn_kserve_wish *kn_kserve_wish_of(const kn_kserve_request *request, const kn_catalog_model *model)
{
    kn_kserve_wish *wish = kn_alloc(sizeof *wish);
    if (!wish) return NULL;
    *wish = (kn_kserve_wish){.outputs = kn_kserve_answered(request), .binary = request->binary};
    snprintf(wish->id, sizeof wish->id, "%s", request->id);
    snprintf(wish->model, sizeof wish->model, "%s", model->name);
    return wish;
}

kn_kserve_answer kn_kserve_answer_to(const kn_kserve_wish *wish)
{
    return (kn_kserve_answer){
        .model = wish->model, .id = wish->id, .outputs = wish->outputs, .binary = wish->binary, .last = true};
}

bool kn_kserve_read_file(int fd, void *out, uint64_t bytes)
{
    for (uint64_t got = 0; got < bytes;) {
        const ssize_t more = pread(fd, (char *)out + got, bytes - got, (off_t)got);
        if (more <= 0) return false;
        got += (uint64_t)more;
    }
    return true;
}

kn_status kn_kserve_open_answer(kn_server *s, const kn_live *live, kn_kserve_answer *a, int *fd, uint64_t *file_bytes,
                                kn_api_error *error)
{
    kn_status st = KN_OK;
    *fd = -1;
    *file_bytes = 0;
    KN_TRY(kn_api_check_result(live, error));
    a->video_id = live->job.id;
    a->status = kn_video_status_name(live->job.state);
    a->progress = 100;
    if (!(a->outputs >> KN_KSERVE_VIDEO & 1)) return KN_OK;
    KN_TRY(kn_api_open_result(s, live, KN_ARTIFACT_VIDEO, fd, file_bytes, error));
    a->video_bytes = *file_bytes;
    if (*file_bytes <= KN_KSERVE_FILE_BYTES_MAX) return KN_OK;
    close(*fd);
    *fd = -1;
    return kn_api_unsupported(error, "video", "answer_too_large",
                              "The video is finished and has %llu bytes, more than the %d an answer may hold; "
                              "GET /v1/videos/%s/content has it.",
                              (unsigned long long)*file_bytes, KN_KSERVE_FILE_BYTES_MAX, live->job.id);
fail:
    return st;
}
