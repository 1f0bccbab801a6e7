/* SPDX-License-Identifier: Apache-2.0
 *
 * A runner executes slices of jobs on one device: what a worker process does, without the process. It keeps the
 * models that were loaded and the jobs that were started, advances them, saves checkpoints as time goes by and leaves
 * finished videos in the data directory.
 *
 *   runner.c         jobs, checkpoints, outputs: the same for every device
 *   runner_engine.c  real models on a kn_device
 *   runner_fake.c    a device that follows a script: slices take the time they are told to, faults come when asked
 *                    for, and every byte depends on the request alone
 *
 * One thread uses a runner. A job that fails is dropped, and the others of its slice go on. A status at or below
 * KN_FATAL from any call means that the device is lost and the runner is good for nothing but kn_runner_close. */
#ifndef KN_SERVER_RUNNER_H
#define KN_SERVER_RUNNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/generation.h"
#include "engine/model.h"
#include "server/artifact.h"

enum {
    KN_RUNNER_PACK_MAX = 32,   /* jobs in one slice: two sequences each fill KN_PACK_SEQUENCES_MAX */
    KN_RUNNER_JOBS_MAX = 64,   /* jobs held at a time */
    KN_RUNNER_MODELS_MAX = 8,  /* models held at a time */
    KN_RUNNER_GROUPS_MAX = 16, /* groups a runner is in at a time */
    KN_RUNNER_JOIN_MS = 10 * 1000,
    KN_RUNNER_MESSAGE_BYTES = 512, /* one line, with the NUL */
    KN_RUNNER_DEVICE_BYTES = 256,  /* device string, with the NUL */
    KN_RUNNER_THREADS_MAX = 1024,
    KN_RUNNER_CRF_MAX = 63,
    KN_RUNNER_PREVIEW_SIDE = 512, /* pixels, longest side */
    KN_RUNNER_PREVIEW_BYTES = 4 << 20,
    KN_RUNNER_REQUEST_BYTES = 1 << 20, /* JSON of one request */
};

/* Why a job failed: what the server should do about it. */
typedef enum kn_fault {
    KN_FAULT_NONE,
    KN_FAULT_CHECKPOINT, /* torn, altered, of another job or model: start again without it */
    KN_FAULT_REQUEST,    /* this model cannot run this request: final */
    KN_FAULT_NUMERIC,    /* not a number where a picture should be: final, never published */
    KN_FAULT_MEMORY,     /* does not fit beside the others now: try later or elsewhere */
    KN_FAULT_STORAGE,    /* the data directory could not be written: try again once it can */
    KN_FAULT_MODEL,      /* the model is not loaded here */
    KN_FAULT_INTERNAL,   /* anything else */
    KN_FAULTS,
} kn_fault;

const char *
kn_fault_name(kn_fault fault); /* "none", "checkpoint", "request", "numeric", ...; stable, for error codes */

/* A checkpoint on disk, in checkpoints/. */
typedef struct kn_saved {
    char name[KN_ARTIFACT_NAME_BYTES];
    uint8_t sha256[KN_SHA256_BYTES];
    int32_t step; /* denoise step it resumes at */
} kn_saved;

/* A finished video on disk, in blobs/, complete and synced. */
typedef struct kn_output {
    char name[KN_ARTIFACT_NAME_BYTES];
    uint64_t bytes;
    uint8_t sha256[KN_SHA256_BYTES];
    bool thumbnail, spritesheet; /* are there beside it (kn_artifact_name) */
} kn_output;

/* What one call did for one job. */
typedef struct kn_outcome {
    kn_lease lease;
    kn_status status;                      /* KN_OK, or why the job was dropped */
    kn_fault fault;                        /* NONE exactly when status is KN_OK */
    char message[KN_RUNNER_MESSAGE_BYTES]; /* one line, "" when nothing failed; has no prompt in it */
    kn_slice next;                         /* of a job that goes on; KN_SLICE_DONE once the output is there */
    bool has_checkpoint, has_output;
    kn_saved checkpoint; /* saved in this call */
    kn_output output;    /* finished in this call */
} kn_outcome;

typedef struct kn_runner_params {
    const char *device; /* "cpu", "cpu:N" (N only tells workers apart), "cuda:N", "fake[:OPTION,...]" */
    const char *models; /* folder of model folders */
    const char *data;   /* data directory; blobs/ and checkpoints/ are made in it */
    int32_t threads;    /* CPU threads; 0: all cores */
    const char *isa;    /* highest CPU tier; NULL or "": what the processor has */
    kn_precision precision, vae_precision;
    int64_t checkpoint_interval_ns; /* least time between two saves of one job; 0: after every denoise slice */
    int corrupt_fd;                 /* where a fake device told to corrupt writes garbage; -1: nowhere */
} kn_runner_params;

/* One job as it is handed over. Borrowed for the call. */
typedef struct kn_runner_job {
    kn_lease lease;
    char model[KN_MODEL_NAME_BYTES];
    const char *request; /* kn_request_to_json */
    bool has_checkpoint;
    kn_saved checkpoint; /* to resume from; made by an epoch not later than this one */
    int32_t crf;         /* 0: the encoder's default */
} kn_runner_job;

typedef struct kn_runner kn_runner;

/* A place in a group of devices that can run a slice together (engine/comm.h). */
typedef struct kn_runner_group {
    uint64_t epoch; /* its name; not 0 */
    int32_t ranks, rank;
    bool nccl; /* between GPUs; else through shared memory alone */
} kn_runner_group;

/* What remains of a job that is let go. */
typedef enum kn_release_mode {
    KN_RELEASE_SAVE,      /* a checkpoint of where it stands is saved first */
    KN_RELEASE_KEEP,      /* files stay as they are */
    KN_RELEASE_PUBLISHED, /* the video stays; its checkpoints of all epochs are removed */
    KN_RELEASE_DISCARD,   /* checkpoints, video and pictures are removed */
    KN_RELEASE_MODES,
} kn_release_mode;

/* Is this a device string a runner could be opened for? Looks at the text only. KN_INVALID says what is wrong. */
kn_status kn_runner_device_check(const char *device);
/* Is this a name below the models folder? [a-z0-9][a-z0-9._-]* */
bool kn_model_name_valid(const char *name);

/* KN_INVALID, KN_UNAVAILABLE: no such device. Copies what it keeps of `params`. */
kn_status kn_runner_open(kn_runner **out, const kn_runner_params *params);
/* Drops all jobs without saving them. */
void kn_runner_close(kn_runner **runner);

void kn_runner_describe(const kn_runner *runner, kn_device_info *out);

/* Opens the model, prepares all its networks and runs one tiny generation through them, so that a loaded model has
 * worked. Loading a loaded model does nothing. `bytes`: what it holds. */
kn_status kn_runner_load(kn_runner *runner, const char *model, uint64_t *bytes);
/* KN_INVALID while jobs of it are held; KN_NOT_FOUND. */
kn_status kn_runner_unload(kn_runner *runner, const char *model);

/* Takes a job on, from its checkpoint when there is one; out->next is its first slice. Returns out->status. */
kn_status kn_runner_start(kn_runner *runner, const kn_runner_job *job, kn_outcome *out);

/* Runs the next slice, of this kind, of every job given: 1 to KN_RUNNER_PACK_MAX different ones of one model.
 * out: [count]. KN_OK also when jobs failed; else a fatal status, and out is meaningless. */
kn_status kn_runner_run(kn_runner *runner, kn_slice_kind kind, const kn_lease *leases, int32_t count, kn_outcome *out);

/* ---- groups: one slice on several devices; jobs live on the first one's, the leader's, runner alone ---- */

/* Waits until all ranks are there, KN_RUNNER_JOIN_MS at most. `fd` is the group's shared memory (comm_local.h) and
 * stays the caller's. KN_UNAVAILABLE: a rank did not come. KN_UNSUPPORTED: there is no NCCL. */
kn_status kn_runner_join(kn_runner *runner, const kn_runner_group *group, int fd);
/* One that is not known, or was lost, counts as left. */
void kn_runner_leave(kn_runner *runner, uint64_t epoch);

/* Leader, rank 0 of the group: as kn_runner_run, for denoise and decode slices, with the other ranks' help. When the
 * group is lost *lost is set, kn_fail_message says why, the group counts as left, and every outcome that did not fail
 * says where its job now is: where it was before, or one slice further. `limit_ns`: longest wait for another rank. */
kn_status kn_runner_lead(kn_runner *runner, kn_slice_kind kind, const kn_lease *leases, int32_t count, uint64_t epoch,
                         int64_t limit_ns, kn_outcome *out, bool *lost);
/* Helper: its part of a slice that another runner leads. KN_UNAVAILABLE: the group was lost, and counts as left, as
 * after any other failure. */
kn_status kn_runner_assist(kn_runner *runner, const char *model, uint64_t epoch, int64_t limit_ns);

/* Lets a job go. The job is gone whatever is returned; a job that is not held counts as gone. */
kn_status kn_runner_release(kn_runner *runner, const kn_lease *lease, kn_release_mode mode, kn_outcome *out);

/* A small picture of what is coming, kn_alloc'ed: the first frame of the current estimate, longest side at most
 * KN_RUNNER_PREVIEW_SIDE. `mime` is a literal. KN_INVALID before the first denoise step; the job goes on. */
kn_status kn_runner_preview(kn_runner *runner, const kn_lease *lease, void **bytes, size_t *count, const char **mime);

/* ---- what a device has to offer; implemented by runner_engine.c and runner_fake.c ---- */

/* Frames as they will be delivered to the sink. */
typedef struct kn_video_format {
    int32_t width, height; /* pixels */
    int32_t frames;
    int32_t fps_numerator, fps_denominator;
} kn_video_format;

/* A generation as the backend keeps it; opaque here. `self` is the backend's own, first argument of each. */
typedef struct kn_backend {
    void *self;
    void (*close)(void *self);
    void (*describe)(const void *self, kn_device_info *out);
    kn_status (*load)(void *self, void **model, const char *name, const char *folder, uint64_t *bytes);
    void (*unload)(void *self, void *model);
    /* checkpoint: path, or NULL to start from noise. KN_CORRUPT and KN_UNSUPPORTED are the checkpoint's fault if there
     * is one. The sink is copied. comment: one line about how it was made, kn_alloc'ed, for the file's metadata. */
    kn_status (*create)(void *self, void *model, const char *request, const char *checkpoint, const kn_frame_sink *sink,
                        void **generation, kn_video_format *format, char **comment);
    void (*destroy)(void *self, void *generation);
    kn_slice (*next)(const void *self, const void *generation);
    /* As kn_generation_step. KN_CORRUPT: not finite. */
    kn_status (*step)(void *self, void *const *generations, int32_t count);
    /* Groups. `group` is the backend's own. lead: as step, with the group's help, the last step of a slice or not;
     * assist: the others' part of a whole slice. Any failure of either gives the group up. */
    kn_status (*join)(void *self, const kn_runner_group *params, int fd, void **group);
    void (*leave)(void *self, void *group);
    kn_status (*lead)(void *self, void *const *generations, int32_t count, void *group, int64_t limit_ns, bool last);
    kn_status (*assist)(void *self, void *model, void *group, int64_t limit_ns);
    kn_status (*save)(void *self, const void *generation, const char *path);
    /* planes: [3, height, width], kn_alloc'ed. */
    kn_status (*preview)(void *self, const void *generation, float **planes);
} kn_backend;

kn_status kn_backend_engine_open(kn_backend *out, const kn_runner_params *params);
kn_status kn_backend_fake_open(kn_backend *out, const kn_runner_params *params);
/* Options of a fake device, the text behind "fake" or "fake:". KN_INVALID names the option. See runner_fake.c. */
kn_status kn_backend_fake_check(const char *options);

#endif
