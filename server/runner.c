/* SPDX-License-Identifier: Apache-2.0
 *
 * What is the same for every device: the jobs held, when they are saved and under which names, where frames go, and
 * what each failure means. Generations and models are opaque here and belong to the backend. */
#define _POSIX_C_SOURCE 200809L
#include "server/runner.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "engine/media.h"
#include "server/thumbnail.h"

typedef struct model {
    char name[KN_MODEL_NAME_BYTES];
    void *handle; /* the backend's; NULL: free entry */
    uint64_t bytes;
    int32_t jobs;
} model;

typedef struct job {
    kn_runner *runner;
    kn_lease lease;
    bool held; /* false: free entry */
    bool done; /* the output is there; the generation is gone */
    model *model;
    void *generation; /* the backend's */
    kn_video_format format;
    char *request, *comment;
    int32_t crf;
    int32_t step;     /* denoise steps done */
    int64_t saved_ns; /* when it was saved last, or started */
    bool has_saved;
    kn_saved saved;                             /* latest; may be of an earlier epoch */
    int32_t kept[KN_ARTIFACT_CHECKPOINTS_KEPT]; /* steps of this epoch's checkpoints on disk, oldest first */
    int32_t kept_count;
    kn_media_writer *media;  /* from the first frame to mux */
    kn_thumbnail *thumbnail; /* as long; NULL also when pictures cannot be made */
} job;

typedef struct group {
    uint64_t epoch; /* 0: free entry */
    void *handle;   /* the backend's */
} group;

struct kn_runner {
    kn_backend backend;
    group groups[KN_RUNNER_GROUPS_MAX];
    char *models, *data;
    int64_t checkpoint_interval_ns;
    model loaded[KN_RUNNER_MODELS_MAX];
    job jobs[KN_RUNNER_JOBS_MAX];
};

const char *kn_fault_name(kn_fault fault)
{
    static const char *const names[KN_FAULTS] = {"none",   "checkpoint", "request", "numeric",
                                                 "memory", "storage",    "model",   "internal"};
    return names[fault];
}

/* ---- names ---- */

bool kn_model_name_valid(const char *name)
{
    static const char *const first = "abcdefghijklmnopqrstuvwxyz0123456789";
    static const char *const rest = "abcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t bytes = strnlen(name, KN_MODEL_NAME_BYTES);
    return bytes > 0 && bytes < KN_MODEL_NAME_BYTES && strchr(first, name[0]) && strspn(name, rest) == bytes;
}

static bool small_number(const char *text)
{
    const size_t digits = strspn(text, "0123456789");
    return digits >= 1 && digits <= 4 && text[digits] == '\0';
}

kn_status kn_runner_device_check(const char *device)
{
    if (strnlen(device, KN_RUNNER_DEVICE_BYTES) == KN_RUNNER_DEVICE_BYTES)
        return kn_fail(KN_INVALID, "device %.20s...: must have fewer than %d bytes", device, KN_RUNNER_DEVICE_BYTES);
    if (strncmp(device, "fake", 4) == 0 && (device[4] == '\0' || device[4] == ':')) {
        const kn_status st = kn_backend_fake_check(device[4] ? device + 5 : "");
        return st == KN_OK ? st : kn_fail_context(st, "device %s", device);
    }
    if (strcmp(device, "cpu") == 0 || (strncmp(device, "cpu:", 4) == 0 && small_number(device + 4))) return KN_OK;
    if (strncmp(device, "cuda:", 5) == 0 && small_number(device + 5)) return KN_OK;
    return kn_fail(KN_INVALID, "device %s: must be cpu, cpu:N, cuda:N or fake:OPTIONS", device);
}

/* ---- life ---- */

kn_status kn_runner_open(kn_runner **out, const kn_runner_params *params)
{
    KN_REQUIRE(params->device && params->models && params->data && params->checkpoint_interval_ns >= 0);
    kn_status st = KN_OK;
    kn_runner *r = kn_alloc(sizeof *r);
    if (!r) return KN_NOMEM;
    KN_TRY(kn_runner_device_check(params->device));
    r->models = kn_strdup(params->models);
    r->data = kn_strdup(params->data);
    r->checkpoint_interval_ns = params->checkpoint_interval_ns;
    if (!r->models || !r->data) KN_TRY(KN_NOMEM);
    KN_TRY(kn_artifact_prepare(r->data));
    const bool fake = strncmp(params->device, "fake", 4) == 0;
    KN_TRY(fake ? kn_backend_fake_open(&r->backend, params) : kn_backend_engine_open(&r->backend, params));
    *out = r;
    return KN_OK;
fail:
    kn_runner_close(&r);
    return st;
}

static void drop_media(job *j)
{
    kn_media_abandon(&j->media);
    kn_thumbnail_destroy(&j->thumbnail);
}

static void drop_generation(job *j)
{
    if (j->generation) j->runner->backend.destroy(j->runner->backend.self, j->generation);
    j->generation = NULL;
}

static void drop_job(job *j)
{
    if (!j->held) return;
    drop_media(j);
    drop_generation(j);
    kn_free(j->request);
    kn_free(j->comment);
    j->model->jobs--;
    *j = (job){0};
}

void kn_runner_close(kn_runner **runner)
{
    kn_runner *r = *runner;
    if (!r) return;
    for (int i = 0; i < KN_RUNNER_JOBS_MAX; i++) drop_job(&r->jobs[i]);
    for (int i = 0; i < KN_RUNNER_GROUPS_MAX; i++)
        if (r->groups[i].epoch) kn_runner_leave(r, r->groups[i].epoch);
    for (int i = 0; i < KN_RUNNER_MODELS_MAX; i++)
        if (r->loaded[i].handle) r->backend.unload(r->backend.self, r->loaded[i].handle);
    if (r->backend.close) r->backend.close(r->backend.self);
    kn_free(r->models);
    kn_free(r->data);
    kn_free(r);
    *runner = NULL;
}

void kn_runner_describe(const kn_runner *runner, kn_device_info *out)
{
    runner->backend.describe(runner->backend.self, out);
}

/* ---- models ---- */

static model *find_model(kn_runner *r, const char *name)
{
    for (int i = 0; i < KN_RUNNER_MODELS_MAX; i++)
        if (r->loaded[i].handle && strcmp(r->loaded[i].name, name) == 0) return &r->loaded[i];
    return NULL;
}

/* <models>/<name>, or the models folder itself where that is a model. */
static char *model_folder(const kn_runner *r, const char *name)
{
    char *index = kn_format("%s/%s/model_index.json", r->models, name);
    char *alone = kn_format("%s/model_index.json", r->models);
    char *folder = NULL;
    if (index && alone) {
        const bool single = access(index, F_OK) != 0 && access(alone, F_OK) == 0;
        folder = single ? kn_strdup(r->models) : kn_format("%s/%s", r->models, name);
    }
    kn_free(index);
    kn_free(alone);
    return folder;
}

kn_status kn_runner_load(kn_runner *r, const char *name, uint64_t *bytes)
{
    if (!kn_model_name_valid(name)) return kn_fail(KN_INVALID, "model: not a name of a model folder");
    model *m = find_model(r, name);
    *bytes = m ? m->bytes : 0;
    if (m) return KN_OK;
    for (int i = 0; i < KN_RUNNER_MODELS_MAX && !m; i++)
        if (!r->loaded[i].handle) m = &r->loaded[i];
    if (!m) return kn_fail(KN_INVALID, "model %s: %d models are loaded already", name, KN_RUNNER_MODELS_MAX);
    char *folder = model_folder(r, name);
    if (!folder) return KN_NOMEM;
    const kn_status st = r->backend.load(r->backend.self, &m->handle, name, folder, &m->bytes);
    kn_free(folder);
    if (st != KN_OK) {
        *m = (model){0};
        return st;
    }
    snprintf(m->name, sizeof m->name, "%s", name);
    *bytes = m->bytes;
    return KN_OK;
}

kn_status kn_runner_unload(kn_runner *r, const char *name)
{
    model *m = find_model(r, name);
    if (!m) return kn_fail(KN_NOT_FOUND, "model %s: is not loaded", name);
    if (m->jobs > 0) return kn_fail(KN_INVALID, "model %s: %d jobs use it", name, m->jobs);
    r->backend.unload(r->backend.self, m->handle);
    *m = (model){0};
    return KN_OK;
}

/* ---- outcomes ---- */

static kn_fault fault_of(kn_status status)
{
    switch (status) {
    case KN_OK: return KN_FAULT_NONE;
    case KN_CORRUPT: return KN_FAULT_NUMERIC;
    case KN_NOMEM: return KN_FAULT_MEMORY;
    case KN_IO: return KN_FAULT_STORAGE;
    case KN_INVALID:
    case KN_UNSUPPORTED: return KN_FAULT_REQUEST;
    default: return KN_FAULT_INTERNAL;
    }
}

static kn_status set_failed(kn_outcome *out, kn_status status, kn_fault fault)
{
    out->status = status;
    out->fault = fault;
    snprintf(out->message, sizeof out->message, "%s", status == KN_NOMEM ? "out of memory" : kn_fail_message());
    return status;
}

static job *find_job(kn_runner *r, const kn_lease *lease)
{
    for (int i = 0; i < KN_RUNNER_JOBS_MAX; i++)
        if (r->jobs[i].held && kn_lease_equal(&r->jobs[i].lease, lease)) return &r->jobs[i];
    return NULL;
}

static kn_slice next_of(const job *j)
{
    if (j->done) return (kn_slice){.kind = KN_SLICE_DONE};
    return j->runner->backend.next(j->runner->backend.self, j->generation);
}

/* ---- frames ---- */

static char *artifact_path(const job *j, kn_artifact_kind kind, int32_t step)
{
    return kn_artifact_path(j->runner->data, &(kn_artifact){.kind = kind, .lease = j->lease, .step = step});
}

static kn_status open_media(job *j)
{
    kn_status st = KN_OK;
    const kn_video_format *f = &j->format;
    char *path = artifact_path(j, KN_ARTIFACT_VIDEO, 0);
    if (!path) return KN_NOMEM;
    KN_TRY(kn_media_open(&j->media, &(kn_media_params){.path = path,
                                                       .width = f->width,
                                                       .height = f->height,
                                                       .fps_numerator = f->fps_numerator,
                                                       .fps_denominator = f->fps_denominator,
                                                       .crf = j->crf,
                                                       .comment = j->comment}));
    if (kn_thumbnail_create(&j->thumbnail, f->width, f->height, f->frames) != KN_OK)
        kn_log(KN_LOG_WARNING, "job %s: no pictures will be made: %s", j->lease.job, kn_fail_message());
fail:
    kn_free(path);
    return st;
}

static kn_status check_finite(const job *j, int64_t index, const float *planes)
{
    const int64_t count = (int64_t)3 * j->format.width * j->format.height;
    float sum = 0.0f; /* x - x is 0, or NaN for an infinity and a NaN */
    for (int64_t i = 0; i < count; i++) sum += planes[i] - planes[i];
    return sum == 0.0f ? KN_OK : kn_fail(KN_CORRUPT, "the picture is not finite in frame %" PRId64, index);
}

static kn_status on_frame(void *context, int64_t index, const float *planes)
{
    kn_status st = KN_OK;
    job *j = context;
    if (index == 0) { /* decoding may have begun before, under a checkpoint that was resumed */
        drop_media(j);
        KN_TRY(open_media(j));
    }
    KN_TRY(check_finite(j, index, planes));
    KN_TRY(kn_media_write(j->media, planes, (int64_t)j->format.width * j->format.height));
    if (j->thumbnail && kn_thumbnail_frame(j->thumbnail, index, planes) != KN_OK) kn_thumbnail_destroy(&j->thumbnail);
fail:
    return st;
}

static kn_status on_finish(void *context)
{
    job *j = context;
    return kn_media_finish(&j->media);
}

/* A picture beside the video is a convenience: without it the job is done all the same. */
static bool write_picture(const job *j, kn_artifact_kind kind,
                          kn_status make(const kn_thumbnail *thumbnail, void **bytes, size_t *count))
{
    void *bytes = NULL;
    size_t count = 0;
    char *path = artifact_path(j, kind, 0);
    kn_status st = path ? make(j->thumbnail, &bytes, &count) : KN_NOMEM;
    if (st == KN_OK) st = kn_artifact_write(path, bytes, count);
    if (st != KN_OK) kn_log(KN_LOG_WARNING, "job %s: %s", j->lease.job, kn_fail_message());
    kn_free(bytes);
    kn_free(path);
    return st == KN_OK;
}

/* The video is on disk under its name. */
static kn_status describe_output(job *j, kn_output *out)
{
    char *path = artifact_path(j, KN_ARTIFACT_VIDEO, 0);
    if (!path) return KN_NOMEM;
    kn_status st = kn_artifact_digest(path, out->sha256, &out->bytes);
    kn_free(path);
    if (st != KN_OK) return st;
    kn_artifact_name(out->name, &(kn_artifact){.kind = KN_ARTIFACT_VIDEO, .lease = j->lease});
    if (j->thumbnail) {
        out->thumbnail = write_picture(j, KN_ARTIFACT_THUMBNAIL, kn_thumbnail_picture);
        out->spritesheet = write_picture(j, KN_ARTIFACT_SPRITESHEET, kn_thumbnail_sheet);
    }
    return KN_OK;
}

static kn_status finish(job *j, kn_outcome *out)
{
    const kn_status st = describe_output(j, &out->output);
    out->has_output = st == KN_OK;
    j->done = true;
    drop_media(j);
    drop_generation(j);
    return st;
}

/* ---- checkpoints ---- */

static void forget_oldest(job *j)
{
    if (j->kept_count < KN_ARTIFACT_CHECKPOINTS_KEPT) return;
    char *path = artifact_path(j, KN_ARTIFACT_CHECKPOINT, j->kept[0]);
    if (path && unlink(path) != 0) kn_log(KN_LOG_WARNING, "%s: cannot be removed", path);
    kn_free(path);
    j->kept_count--;
    memmove(j->kept, j->kept + 1, (size_t)j->kept_count * sizeof *j->kept);
}

/* Saves where the job stands as j->saved. KN_CORRUPT: it stands at something that is not finite. */
static kn_status save(job *j)
{
    kn_status st = KN_OK;
    const kn_backend *b = &j->runner->backend;
    kn_saved saved = {.step = j->step};
    uint64_t bytes;
    char *path = artifact_path(j, KN_ARTIFACT_CHECKPOINT, j->step);
    if (!path) return KN_NOMEM;
    st = b->save(b->self, j->generation, path);
    if (st == KN_INVALID) st = KN_CORRUPT; /* the only value of a checkpoint that is not ours is a sample */
    if (st != KN_OK) goto fail;
    KN_TRY(kn_artifact_digest(path, saved.sha256, &bytes));
    kn_artifact_name(saved.name, &(kn_artifact){.kind = KN_ARTIFACT_CHECKPOINT, .lease = j->lease, .step = j->step});
    if (j->kept_count == 0 || j->kept[j->kept_count - 1] != j->step) {
        forget_oldest(j);
        j->kept[j->kept_count++] = j->step;
    }
    j->saved = saved;
    j->has_saved = true;
fail:
    j->saved_ns = kn_clock_ns(); /* also after a failure: the next attempt comes an interval later */
    kn_free(path);
    return st;
}

static bool saved_here(const job *j)
{
    return j->has_saved && j->saved.step == j->step;
}

/* After a denoise slice. A disk that takes no checkpoint costs safety, not the job. */
static kn_status save_when_due(job *j, kn_outcome *out)
{
    if (saved_here(j) || kn_clock_ns() - j->saved_ns < j->runner->checkpoint_interval_ns) return KN_OK;
    const kn_status st = save(j);
    if (st == KN_CORRUPT || st <= KN_FATAL) return st;
    if (st != KN_OK) {
        kn_log(KN_LOG_WARNING, "job %s: step %d is not saved: %s", j->lease.job, j->step, kn_fail_message());
        return KN_OK;
    }
    out->has_checkpoint = true;
    out->checkpoint = j->saved;
    return KN_OK;
}

/* ---- starting ---- */

static kn_status check_checkpoint(const kn_runner *r, const kn_runner_job *in, char **path)
{
    kn_artifact a;
    uint8_t sha256[KN_SHA256_BYTES];
    uint64_t bytes;
    const kn_saved *saved = &in->checkpoint;
    if (!kn_artifact_parse(&a, saved->name) || a.kind != KN_ARTIFACT_CHECKPOINT || a.temporary ||
        a.step != saved->step || strcmp(a.lease.job, in->lease.job) != 0 || a.lease.epoch > in->lease.epoch)
        return kn_fail(KN_CORRUPT, "checkpoint: the name is not one of this job");
    *path = kn_artifact_path(r->data, &a);
    if (!*path) return KN_NOMEM;
    const kn_status st = kn_artifact_digest(*path, sha256, &bytes);
    if (st != KN_OK) return st;
    if (memcmp(sha256, saved->sha256, sizeof sha256) != 0)
        return kn_fail(KN_CORRUPT, "checkpoint %s: not the bytes that were saved (SHA-256)", saved->name);
    return KN_OK;
}

static job *free_entry(kn_runner *r)
{
    for (int i = 0; i < KN_RUNNER_JOBS_MAX; i++)
        if (!r->jobs[i].held) return &r->jobs[i];
    return NULL;
}

/* Makes j->generation, from the checkpoint at `path` unless NULL. */
static kn_status create(job *j, const char *request, const char *path)
{
    const kn_backend *b = &j->runner->backend;
    const kn_frame_sink sink = {.context = j, .frame = on_frame, .finish = on_finish};
    kn_free(j->comment);
    j->comment = NULL;
    return b->create(b->self, j->model->handle, request, path, &sink, &j->generation, &j->format, &j->comment);
}

static bool blames_checkpoint(kn_status st)
{
    return st == KN_CORRUPT || st == KN_UNSUPPORTED || st == KN_NOT_FOUND || st == KN_IO;
}

kn_status kn_runner_start(kn_runner *r, const kn_runner_job *in, kn_outcome *out)
{
    kn_status st = KN_OK;
    char *path = NULL;
    kn_fault fault = KN_FAULT_INTERNAL;
    *out = (kn_outcome){.lease = in->lease};
    job *j = free_entry(r);
    model *m = find_model(r, in->model);
    if (!kn_lease_valid(&in->lease) || find_job(r, &in->lease))
        return set_failed(out, kn_fail(KN_INVALID, "job: no valid lease, or one that is held already"), fault);
    if (!j) return set_failed(out, kn_fail(KN_NOMEM, "%d jobs are held already", KN_RUNNER_JOBS_MAX), KN_FAULT_MEMORY);
    if (!m)
        return set_failed(out, kn_fail(KN_NOT_FOUND, "model %s: is not loaded on this device", in->model),
                          KN_FAULT_MODEL);
    *j = (job){.runner = r, .lease = in->lease, .model = m, .held = true, .crf = in->crf};
    m->jobs++;
    j->request = kn_strdup(in->request);
    if (!j->request) KN_TRY(KN_NOMEM);
    if (in->has_checkpoint) KN_TRY(check_checkpoint(r, in, &path));
    KN_TRY(create(j, j->request, path));
    j->has_saved = in->has_checkpoint;
    if (in->has_checkpoint) j->saved = in->checkpoint;
    j->step = in->has_checkpoint ? in->checkpoint.step : 0;
    j->saved_ns = kn_clock_ns();
    out->next = next_of(j);
    kn_free(path);
    return KN_OK;

fail:
    fault = in->has_checkpoint && blames_checkpoint(st) ? KN_FAULT_CHECKPOINT
            : st == KN_CORRUPT                          ? KN_FAULT_REQUEST
                                                        : fault_of(st);
    drop_job(j);
    kn_free(path);
    return set_failed(out, st, fault);
}

/* ---- groups ---- */

static group *find_group(kn_runner *r, uint64_t epoch)
{
    for (int i = 0; i < KN_RUNNER_GROUPS_MAX; i++)
        if (r->groups[i].epoch == epoch) return &r->groups[i];
    return NULL;
}

kn_status kn_runner_join(kn_runner *r, const kn_runner_group *params, int fd)
{
    group *g = find_group(r, 0);
    if (params->epoch == 0 || find_group(r, params->epoch))
        return kn_fail(KN_INVALID, "group: has no epoch, or one that is taken");
    if (!g) return kn_fail(KN_INVALID, "group: %d are held already", KN_RUNNER_GROUPS_MAX);
    const kn_status st = r->backend.join(r->backend.self, params, fd, &g->handle);
    if (st == KN_OK) g->epoch = params->epoch;
    return st;
}

void kn_runner_leave(kn_runner *r, uint64_t epoch)
{
    group *g = epoch ? find_group(r, epoch) : NULL;
    if (!g) return;
    r->backend.leave(r->backend.self, g->handle);
    *g = (group){0};
}

kn_status kn_runner_assist(kn_runner *r, const char *name, uint64_t epoch, int64_t limit_ns)
{
    model *m = find_model(r, name);
    group *g = epoch ? find_group(r, epoch) : NULL;
    if (!g) return kn_fail(KN_UNAVAILABLE, "the group is not there any more");
    kn_status st = m ? r->backend.assist(r->backend.self, m->handle, g->handle, limit_ns)
                     : kn_fail(KN_NOT_FOUND, "model %s: is not loaded on this device", name);
    if (st != KN_OK) kn_runner_leave(r, epoch); /* which the leader notices, if it does not know yet */
    return st;
}

/* ---- slices ---- */

/* With whose help: NULL: alone. */
typedef struct helpers {
    uint64_t epoch;
    int64_t limit_ns;
    bool lost, last; /* last: they are not needed after the next step */
} helpers;

static kn_status step(job *const *jobs, int32_t count, helpers *with)
{
    void *generations[KN_RUNNER_PACK_MAX];
    kn_runner *r = jobs[0]->runner;
    const kn_backend *b = &r->backend;
    for (int32_t i = 0; i < count; i++) generations[i] = jobs[i]->generation;
    if (!with) return b->step(b->self, generations, count);
    const group *g = find_group(r, with->epoch);
    const kn_status st = g ? b->lead(b->self, generations, count, g->handle, with->limit_ns, with->last)
                           : kn_fail(KN_UNAVAILABLE, "the group is not there any more");
    if (st != KN_OK) kn_runner_leave(r, with->epoch);
    with->lost = st == KN_UNAVAILABLE;
    return st;
}

/* After a pack has failed nobody knows whose fault it was, and its generations may only be saved or destroyed: each is
 * saved, opened again and led through the slice alone. */
static kn_status step_alone(job *j, kn_slice slice)
{
    kn_status st = KN_OK;
    const kn_slice stands = next_of(j);
    const bool behind = stands.kind == slice.kind && stands.index == slice.index;
    if (slice.kind == KN_SLICE_DENOISE) j->step = behind ? slice.index : slice.index + 1;
    KN_TRY(save(j));
    drop_generation(j);
    char *path = artifact_path(j, KN_ARTIFACT_CHECKPOINT, j->step);
    if (!path) return KN_NOMEM;
    st = create(j, j->request, path);
    kn_free(path);
    if (st != KN_OK) goto fail;
    for (kn_slice next = next_of(j); next.kind < slice.kind || (next.kind == slice.kind && next.index <= slice.index);
         next = next_of(j))
        KN_TRY(step(&j, 1, NULL));
fail:
    return st;
}

/* What follows a slice that went well. */
static kn_status settle(job *j, kn_slice slice, kn_outcome *out)
{
    kn_status st = KN_OK;
    if (slice.kind == KN_SLICE_DENOISE) {
        j->step = slice.index + 1;
        KN_TRY(save_when_due(j, out));
    }
    if (slice.kind == KN_SLICE_MUX) KN_TRY(finish(j, out));
    out->next = next_of(j);
fail:
    return st;
}

/* Is the job where the call says it is? A mistake of the caller, but no reason to lose the others. */
static kn_status check_position(const job *j, const job *first, kn_slice_kind kind)
{
    if (!j) return kn_fail(KN_NOT_FOUND, "the job is not held");
    if (next_of(j).kind != kind)
        return kn_fail(KN_INVALID, "the job's next slice is %s, not %s", kn_slice_name(next_of(j).kind),
                       kn_slice_name(kind));
    if (first && first->model != j->model) return kn_fail(KN_INVALID, "the slice has jobs of several models");
    return KN_OK;
}

typedef struct packed {
    job *jobs[KN_RUNNER_PACK_MAX];
    kn_slice slices[KN_RUNNER_PACK_MAX]; /* as they were before */
    kn_outcome *outcomes[KN_RUNNER_PACK_MAX];
    int32_t count;
} packed;

/* The group is gone, and from `first` on nothing has happened. */
static kn_status say_where(const packed *p, int32_t first)
{
    for (int32_t i = first; i < p->count; i++) p->outcomes[i]->next = next_of(p->jobs[i]);
    return KN_OK;
}

static kn_status run_pack(packed *p, kn_slice_kind kind, helpers *with)
{
    const bool together = kind == KN_SLICE_TEXT || kind == KN_SLICE_DENOISE;
    kn_status all = KN_OK;
    if (together) {
        if (with) with->last = true;
        all = step(p->jobs, p->count, with);
        if (all <= KN_FATAL) return all;
        if (with && with->lost) return say_where(p, 0);
    }
    const bool again = all != KN_OK && p->count > 1;
    if (again) kn_log(KN_LOG_WARNING, "a slice of %d jobs failed (%s); each goes alone", p->count, kn_fail_message());
    for (int32_t i = 0; i < p->count; i++) {
        job *j = p->jobs[i];
        if (with) with->last = i == p->count - 1;
        kn_status st = again ? step_alone(j, p->slices[i]) : together ? all : step(&j, 1, with);
        if (with && with->lost) return say_where(p, i);
        if (st == KN_OK) st = settle(j, p->slices[i], p->outcomes[i]);
        if (st <= KN_FATAL) return st;
        if (st == KN_OK) continue;
        set_failed(p->outcomes[i], st, fault_of(st));
        p->outcomes[i]->has_checkpoint = p->outcomes[i]->has_output = false;
        drop_job(j);
    }
    return KN_OK;
}

static kn_status run(kn_runner *r, kn_slice_kind kind, const kn_lease *leases, int32_t count, helpers *with,
                     kn_outcome *out)
{
    KN_REQUIRE(count >= 1 && count <= KN_RUNNER_PACK_MAX && kind < KN_SLICE_DONE);
    packed p = {.count = 0};
    for (int32_t i = 0; i < count; i++) {
        job *j = find_job(r, &leases[i]);
        out[i] = (kn_outcome){.lease = leases[i]};
        const kn_status st = check_position(j, p.count > 0 ? p.jobs[0] : NULL, kind);
        if (st != KN_OK) {
            set_failed(&out[i], st, KN_FAULT_INTERNAL);
            if (j) drop_job(j);
            continue;
        }
        p.jobs[p.count] = j;
        p.slices[p.count] = next_of(j);
        p.outcomes[p.count++] = &out[i];
    }
    if (p.count > 0) return run_pack(&p, kind, with);
    if (with) kn_runner_leave(r, with->epoch); /* the others wait for it */
    return KN_OK;
}

kn_status kn_runner_run(kn_runner *r, kn_slice_kind kind, const kn_lease *leases, int32_t count, kn_outcome *out)
{
    return run(r, kind, leases, count, NULL, out);
}

kn_status kn_runner_lead(kn_runner *r, kn_slice_kind kind, const kn_lease *leases, int32_t count, uint64_t epoch,
                         int64_t limit_ns, kn_outcome *out, bool *lost)
{
    KN_REQUIRE(epoch != 0 && (kind == KN_SLICE_DENOISE || kind == KN_SLICE_DECODE));
    helpers with = {.epoch = epoch, .limit_ns = limit_ns};
    const kn_status st = run(r, kind, leases, count, &with, out);
    *lost = with.lost;
    return st;
}

/* ---- letting go ---- */

static kn_status save_to_go(job *j, kn_outcome *out)
{
    if (j->done || j->step == 0) return KN_OK; /* nothing to keep that would not be made again as fast */
    if (!saved_here(j)) {
        const kn_status st = save(j);
        if (st != KN_OK) return set_failed(out, st, fault_of(st));
    }
    out->has_checkpoint = j->kept_count > 0; /* else it stands where it was resumed, and that one is known */
    if (out->has_checkpoint) out->checkpoint = j->saved;
    return KN_OK;
}

kn_status kn_runner_release(kn_runner *r, const kn_lease *lease, kn_release_mode mode, kn_outcome *out)
{
    kn_status st = KN_OK;
    const unsigned all = (1u << KN_ARTIFACT_KINDS) - 1, checkpoints = 1u << KN_ARTIFACT_CHECKPOINT;
    *out = (kn_outcome){.lease = *lease};
    job *j = find_job(r, lease);
    if (j) {
        out->next = next_of(j);
        if (mode == KN_RELEASE_SAVE) st = save_to_go(j, out);
        if (st <= KN_FATAL) return st;
        drop_job(j);
    }
    if (mode == KN_RELEASE_PUBLISHED) kn_artifact_remove(r->data, lease, checkpoints);
    if (mode == KN_RELEASE_DISCARD) kn_artifact_remove(r->data, lease, all);
    return st;
}

/* ---- previews ---- */

kn_status kn_runner_preview(kn_runner *r, const kn_lease *lease, void **bytes, size_t *count, const char **mime)
{
    kn_status st = KN_OK;
    float *planes = NULL;
    kn_picture picture = {0};
    const job *j = find_job(r, lease);
    if (!j || j->done || j->step == 0)
        return kn_fail(KN_INVALID, "there is nothing to see of this job yet, or any more");
    KN_TRY(r->backend.preview(r->backend.self, j->generation, &planes));
    KN_TRY(kn_picture_shrink(&picture, planes, j->format.width, j->format.height, KN_RUNNER_PREVIEW_SIDE));
    kn_picture_format format = KN_PICTURE_WEBP;
    st = kn_picture_encode(bytes, count, &picture, format);
    if (st == KN_UNAVAILABLE) st = kn_picture_encode(bytes, count, &picture, format = KN_PICTURE_JPEG);
    if (st == KN_OK && *count > KN_RUNNER_PREVIEW_BYTES) {
        kn_free(*bytes);
        *bytes = NULL;
        st = kn_fail(KN_INVALID, "the picture has %zu bytes, %d at most", *count, KN_RUNNER_PREVIEW_BYTES);
    }
    *mime = kn_picture_mime(format);
fail:
    kn_picture_release(&picture);
    kn_free(planes);
    return st;
}
