/* SPDX-License-Identifier: Apache-2.0
 *
 * One generation: a resumable state machine that advances by slices.
 *
 *   text ──► denoise[0] ──► … ──► denoise[steps - 1] ──► decode[0] ──► … ──► decode[t - 1] ──► mux ──► done
 *
 *   transition          done by
 *   text                encode both prompts, build the transformer's keys and values for them
 *   denoise[i]          one forward (two sequences with guidance), one solver step
 *   decode[k]           one latent frame: one video frame for k = 0, four for every other, handed to the sink
 *   mux                 the sink closes the file
 *
 * Between slices, and nowhere else, a generation can be stopped, saved, packed with
 * others or left out. A saved generation resumes at the denoise step it had reached;
 * decoding starts again from its first frame. The bytes are the same either way. */
#ifndef KN_ENGINE_GENERATION_H
#define KN_ENGINE_GENERATION_H

#include "engine/model.h"
#include "engine/request.h"

typedef struct kn_generation kn_generation;

typedef enum kn_slice_kind {
    KN_SLICE_TEXT,
    KN_SLICE_DENOISE,
    KN_SLICE_DECODE,
    KN_SLICE_MUX,
    KN_SLICE_DONE,
} kn_slice_kind;

typedef struct kn_slice {
    kn_slice_kind kind;
    int32_t index, count; /* denoise: step of steps; decode: latent frame of all */
} kn_slice;

const char *kn_slice_name(kn_slice_kind kind); /* "text", "denoise", "decode", "mux", "done" */

/* On several ranks (kn_model_set_group) each has a generation of the same request, and all run the same slices. All
 * hold the whole state after every slice, so any of them can go on without the others. Frames and the end of the file
 * come to the sink of the group's first member alone; that of the others may be empty. A slice that fails with
 * KN_UNAVAILABLE because a rank was lost leaves the state of the slice before: set another group, bring new ranks up to
 * date (kn_generation_share) and run it again. */

/* Where frames go: each comes once, to `frame` or to `picture`. planes: [3, height, width] f32 in 0..1, red first.
 * rgb: [height, width, 3] bytes, floor(255 v + 0.5). Both in host memory, valid during the call. A sink that has
 * `picture` gets bytes where the device makes them, a quarter of the floats; on several ranks it gets planes. */
typedef struct kn_frame_sink {
    void *context;
    kn_status (*frame)(void *context, int64_t index, const float *planes);
    kn_status (*picture)(void *context, int64_t index, const uint8_t *rgb); /* may be NULL */
    kn_status (*finish)(void *context);
} kn_frame_sink;

/* Sees intermediate tensors, for dumps and tests. data: host memory, f32, dense. Names: text_positive, text_negative,
 * noise, velocity (index counts forwards, positive first), latents (index = step). NULL: nobody looks. */
typedef struct kn_tensor_tap {
    void *context;
    kn_status (*tensor)(void *context, const char *name, int64_t index, const float *data, int32_t rank,
                        const int64_t *shape);
} kn_tensor_tap;

/* `request` is resolved and copied. The model is kept and must outlive the generation. Allocates the generation's
 * state. `sink` and `tap` are copied; tap may be NULL. */
kn_status kn_generation_create(kn_generation **out, kn_model *model, const kn_request *request,
                               const kn_frame_sink *sink, const kn_tensor_tap *tap);
void kn_generation_destroy(kn_generation **generation);

const kn_request *kn_generation_request(const kn_generation *generation);
kn_model *kn_generation_model(const kn_generation *generation);
const kn_schedule *kn_generation_schedule(const kn_generation *generation);

/* The slice kn_generation_step would run. */
kn_slice kn_generation_next(const kn_generation *generation);

/* Runs the next slice of every generation given: 1 to KN_PACK_SEQUENCES_MAX / 2 of one model, whose next slices are
 * of one kind. Text and denoise slices run as one pack; the others one after the other. After a failure the
 * generations may only be destroyed or saved. */
kn_status kn_generation_step(kn_generation *const *generations, int32_t count);

/* Saves what the slices so far have made (checkpoint.h). Any time between slices. */
kn_status kn_generation_save(const kn_generation *generation, const char *path);

/* The request a checkpoint was made for. Release it. */
kn_status kn_generation_saved_request(kn_request *out, const char *path);

/* A generation as it was saved. KN_UNSUPPORTED when the checkpoint belongs to another model, precision or device
 * tier: the bytes would differ. */
kn_status kn_generation_resume(kn_generation **out, kn_model *model, const char *path, const kn_frame_sink *sink,
                               const kn_tensor_tap *tap);

/* Brings every member of `group` to the state that its member `root` has: what a new rank needs, and nothing that the
 * ranks before need again. Called by all of them. Decoding begins again at the first frame, and what the sink was given
 * already is not given twice. */
kn_status kn_generation_share(kn_generation *generation, const kn_group *group, int32_t root);

/* One slice with helpers, ranks that know nothing of the generation before and after. Called by every rank of the
 * model's group, between kn_model_set_group and kn_generation_step: the group's first member has the generation, the
 * others a blank one of the same request (kn_generation_blank), good for this slice and then to be destroyed. Until
 * kn_generation_keep the first member's is on loan: what a decode slice remembers is handed out to the shares before
 * and brought back after, so that the next slice may have another group, or none.
 *
 * A slice that fails with KN_UNAVAILABLE leaves the first member's generation at the slice it was at, or, where the
 * group was lost while a decoder's memory came back, at the first decode slice (kn_generation_rewind). */
kn_status kn_generation_lend(kn_generation *generation);
void kn_generation_keep(kn_generation *generation);

/* As kn_generation_create, without the noise and for no sink: a helper's, which kn_generation_lend fills. */
kn_status kn_generation_blank(kn_generation **out, kn_model *model, const kn_request *request);

/* Decoding begins again at the first frame, under the model's present group; the sink misses and repeats nothing. To
 * be called on every rank when the group changes after the first decode slice. */
void kn_generation_rewind(kn_generation *generation);

/* A look at what is coming: the first video frame of the current estimate of the clean latents, into host memory
 * [3, height, width]. After at least one denoise step. Allocates a decoder for the length of the call. */
kn_status kn_generation_preview(const kn_generation *generation, float *planes);

/* Fills in a generation's share of a memory plan: state and workspaces. */
kn_status kn_generation_bytes(const kn_model *model, const kn_request *request, kn_memory_plan *plan);

#endif
