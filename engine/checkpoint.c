/* SPDX-License-Identifier: Apache-2.0
 *
 * Checkpoints on top of the safetensors writer and reader, which see to atomic
 * replacement and to a file's inner consistency. Here: what a checkpoint means.
 * The same check runs on what is about to be written and on what was read. */
#include "engine/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "engine/sampling.h"
#include "engine/weights.h"

enum { TENSORS_MAX = 4, RANK = 4, METADATA_COUNT = 5, NUMBER_DIGITS_MAX = 9 };

static const char *const FORMAT = "kinora.checkpoint";
static const char *const tensor_names[TENSORS_MAX] = {"latents", "x_prev", "m_prev", "m_prev2"};

static const float *tensor_of(const kn_checkpoint *checkpoint, int32_t index)
{
    const float *const all[TENSORS_MAX] = {checkpoint->latents, checkpoint->x_prev, checkpoint->m_prev,
                                           checkpoint->m_prev2};
    return all[index];
}

/* ---- what holds for every checkpoint; `status` is what a violation means to the caller ---- */

static kn_status check_shape(const int64_t *shape, kn_status status, const char *path, int64_t *elements)
{
    int64_t count = 1;
    for (int32_t k = 0; k < RANK; k++) {
        if (shape[k] < 1 || shape[k] > KN_CHECKPOINT_ELEMENTS_MAX / count)
            return kn_fail(status,
                           "%s: shape [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64
                           "]: sizes must be at least 1 and make at most %d elements",
                           path, shape[0], shape[1], shape[2], shape[3], KN_CHECKPOINT_ELEMENTS_MAX);
        count *= shape[k];
    }
    *elements = count;
    return KN_OK;
}

static kn_status check_history(const kn_checkpoint *checkpoint, kn_status status, const char *path)
{
    if (!checkpoint->x_prev != !checkpoint->m_prev)
        return kn_fail(status, "%s: %s without %s", path, checkpoint->x_prev ? "x_prev" : "m_prev",
                       checkpoint->x_prev ? "m_prev" : "x_prev");
    if (checkpoint->m_prev2 && !checkpoint->m_prev) return kn_fail(status, "%s: m_prev2 without m_prev", path);
    int32_t depth = checkpoint->m_prev2 ? 2 : checkpoint->m_prev ? 1 : 0;
    if (checkpoint->next_step < depth)
        return kn_fail(status, "%s: %s at next_step %d: there is none before step %d", path,
                       depth == 2 ? "m_prev2" : "m_prev", checkpoint->next_step, depth);
    return KN_OK;
}

static kn_status check_finite(const kn_checkpoint *checkpoint, int64_t elements, kn_status status, const char *path)
{
    for (int32_t t = 0; t < TENSORS_MAX; t++) {
        const float *values = tensor_of(checkpoint, t);
        if (!values) continue;
        for (int64_t i = 0; i < elements; i++) {
            if (!isfinite(values[i]))
                return kn_fail(status, "%s: %s[%" PRId64 "] is %g: must be finite", path, tensor_names[t], i,
                               (double)values[i]);
        }
    }
    return KN_OK;
}

static kn_status check(const kn_checkpoint *checkpoint, kn_status status, const char *path, int64_t *elements)
{
    kn_status st = KN_OK;
    size_t request_bytes = strlen(checkpoint->request), model_bytes = strlen(checkpoint->model);
    if (request_bytes < 1 || request_bytes > KN_CHECKPOINT_TEXT_MAX)
        return kn_fail(status, "%s: the request has %zu bytes: must be 1 to %d", path, request_bytes,
                       KN_CHECKPOINT_TEXT_MAX);
    if (model_bytes < 1 || model_bytes > KN_CHECKPOINT_MODEL_MAX)
        return kn_fail(status, "%s: the model fingerprint has %zu bytes: must be 1 to %d", path, model_bytes,
                       KN_CHECKPOINT_MODEL_MAX);
    if (checkpoint->next_step < 0 || checkpoint->next_step > KN_STEPS_MAX)
        return kn_fail(status, "%s: next_step is %d: must be 0 to %d", path, checkpoint->next_step, KN_STEPS_MAX);
    KN_TRY(check_shape(checkpoint->shape, status, path, elements));
    KN_TRY(check_history(checkpoint, status, path));
    KN_TRY(check_finite(checkpoint, *elements, status, path));
fail:
    return st;
}

/* ---- save ---- */

kn_status kn_checkpoint_save(const kn_checkpoint *checkpoint, const char *path)
{
    KN_REQUIRE(checkpoint->request && checkpoint->model && checkpoint->latents);
    kn_status st = KN_OK;
    kn_safetensors_writer *writer = NULL;
    char *version = NULL, *next_step = NULL;
    int64_t elements = 0;
    KN_TRY(check(checkpoint, KN_INVALID, path, &elements));

    kn_safetensors_spec specs[TENSORS_MAX];
    const float *sources[TENSORS_MAX];
    size_t count = 0;
    for (int32_t t = 0; t < TENSORS_MAX; t++) {
        if (!tensor_of(checkpoint, t)) continue;
        sources[count] = tensor_of(checkpoint, t);
        specs[count] = (kn_safetensors_spec){.name = tensor_names[t], .dtype = KN_F32, .rank = RANK};
        memcpy(specs[count].shape, checkpoint->shape, sizeof checkpoint->shape);
        count++;
    }
    version = kn_format("%d", KN_CHECKPOINT_VERSION);
    next_step = kn_format("%d", checkpoint->next_step);
    if (!version || !next_step) {
        st = KN_NOMEM;
        goto fail;
    }
    const char *const keys[METADATA_COUNT] = {"format", "version", "request", "model", "next_step"};
    const char *const values[METADATA_COUNT] = {FORMAT, version, checkpoint->request, checkpoint->model, next_step};
    KN_TRY(kn_safetensors_create(&writer, path, specs, count, keys, values, METADATA_COUNT));
    for (size_t i = 0; i < count; i++)
        KN_TRY(kn_safetensors_write(writer, i, 0, sources[i], (size_t)elements * sizeof *sources[i]));
    KN_TRY(kn_safetensors_finish(&writer));

fail:
    kn_safetensors_abandon(&writer);
    kn_free(next_step);
    kn_free(version);
    return st;
}

/* ---- load ---- */

static kn_status metadata(const kn_weights *file, const char *path, const char *key, const char **out)
{
    *out = kn_weights_metadata(file, key);
    return *out ? KN_OK : kn_fail(KN_CORRUPT, "%s: no \"%s\" in the metadata", path, key);
}

static kn_status metadata_number(const kn_weights *file, const char *path, const char *key, int32_t *out)
{
    const char *text;
    kn_status st = metadata(file, path, key, &text);
    if (st != KN_OK) return st;
    size_t digits = strspn(text, "0123456789");
    if (digits < 1 || digits > NUMBER_DIGITS_MAX || text[digits] != '\0')
        return kn_fail(KN_CORRUPT, "%s: \"%s\" is \"%.20s\": must be a number of 1 to %d digits", path, key, text,
                       NUMBER_DIGITS_MAX);
    *out = 0;
    for (size_t i = 0; i < digits; i++) *out = *out * 10 + (text[i] - '0');
    return KN_OK;
}

/* Comes before everything else, so that a file of a later version is called that and not corrupt. */
static kn_status check_format(const kn_weights *file, const char *path)
{
    const char *format = kn_weights_metadata(file, "format");
    if (!format || strcmp(format, FORMAT) != 0)
        return kn_fail(KN_CORRUPT, "%s: not a checkpoint: \"format\" is not \"%s\"", path, FORMAT);
    int32_t version;
    kn_status st = metadata_number(file, path, "version", &version);
    if (st == KN_OK && version != KN_CHECKPOINT_VERSION)
        st = kn_fail(KN_UNSUPPORTED, "%s: checkpoint version %d; this build reads version %d", path, version,
                     KN_CHECKPOINT_VERSION);
    return st;
}

/* Finds the tensors that are there: F32, all of the latents' shape, and none besides. */
static kn_status find_tensors(const kn_weights *file, const char *path, int64_t *shape,
                              const float *found[static TENSORS_MAX])
{
    size_t count = 0;
    if (!kn_weights_has(file, tensor_names[0])) return kn_fail(KN_CORRUPT, "%s: has no tensor latents", path);
    for (int32_t t = 0; t < TENSORS_MAX; t++) {
        found[t] = NULL;
        if (!kn_weights_has(file, tensor_names[t])) continue;
        kn_tensor tensor;
        kn_status st = kn_weights_find(file, tensor_names[t], &tensor);
        if (st != KN_OK || tensor.dtype != KN_F32)
            return kn_fail(KN_CORRUPT, "%s: tensor %s is not of type F32", path, tensor_names[t]);
        if (tensor.rank != RANK)
            return kn_fail(KN_CORRUPT, "%s: tensor %s has rank %d: must be %d", path, tensor_names[t], tensor.rank,
                           RANK);
        size_t bytes = RANK * sizeof *shape;
        if (t == 0) memcpy(shape, tensor.shape, bytes);
        if (memcmp(shape, tensor.shape, bytes) != 0)
            return kn_fail(KN_CORRUPT, "%s: tensor %s does not have the shape of latents", path, tensor_names[t]);
        found[t] = tensor.data;
        count++;
    }
    if (count != kn_weights_count(file))
        return kn_fail(KN_CORRUPT, "%s: has %zu tensors, of which a checkpoint knows %zu", path, kn_weights_count(file),
                       count);
    return KN_OK;
}

/* Moves what the fields point to from the mapped file into one block of our own. */
static kn_status take_over(kn_checkpoint *checkpoint, int64_t elements)
{
    size_t request_bytes = strlen(checkpoint->request) + 1, model_bytes = strlen(checkpoint->model) + 1;
    size_t tensor_bytes = (size_t)elements * sizeof(float);
    const float **fields[TENSORS_MAX] = {&checkpoint->latents, &checkpoint->x_prev, &checkpoint->m_prev,
                                         &checkpoint->m_prev2};
    size_t total = request_bytes + model_bytes;
    for (int32_t t = 0; t < TENSORS_MAX; t++) total += *fields[t] ? tensor_bytes : 0;
    char *place = checkpoint->storage = kn_alloc(total);
    if (!place) return KN_NOMEM;
    for (int32_t t = 0; t < TENSORS_MAX; t++) {
        if (!*fields[t]) continue;
        *fields[t] = memcpy(place, *fields[t], tensor_bytes);
        place += tensor_bytes;
    }
    checkpoint->request = memcpy(place, checkpoint->request, request_bytes);
    checkpoint->model = memcpy(place + request_bytes, checkpoint->model, model_bytes);
    return KN_OK;
}

kn_status kn_checkpoint_load(kn_checkpoint *out, const char *path)
{
    kn_status st = KN_OK;
    kn_weights *file = NULL;
    kn_checkpoint read = {0};
    const float *found[TENSORS_MAX];
    int64_t elements = 0;
    *out = (kn_checkpoint){0};
    KN_TRY(kn_weights_open_file(&file, path));
    KN_TRY(check_format(file, path));
    KN_TRY(metadata(file, path, "request", &read.request));
    KN_TRY(metadata(file, path, "model", &read.model));
    KN_TRY(metadata_number(file, path, "next_step", &read.next_step));
    KN_TRY(find_tensors(file, path, read.shape, found));
    read.latents = found[0];
    read.x_prev = found[1];
    read.m_prev = found[2];
    read.m_prev2 = found[3];
    KN_TRY(check(&read, KN_CORRUPT, path, &elements));
    KN_TRY(take_over(&read, elements));
    *out = read;

fail:
    kn_weights_close(&file);
    return st;
}

void kn_checkpoint_release(kn_checkpoint *checkpoint)
{
    if (!checkpoint) return;
    kn_free(checkpoint->storage);
    *checkpoint = (kn_checkpoint){0};
}
