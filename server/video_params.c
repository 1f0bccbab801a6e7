/* SPDX-License-Identifier: Apache-2.0
 *
 * What follows from a completed kn_video_params: the engine's request, the deadline, the record's extra JSON, the
 * fingerprint. And the Idempotency-Key header, whose keys are compared by that fingerprint. */
#include "server/video_request.h"

#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/text.h"

enum {
    EXTRA_BYTES_MAX = 256 << 10,
    FINGERPRINT_BYTES_MAX = 12 * KN_API_PROMPT_CHARACTERS_MAX + 6 * KN_BODY_JSON_BYTES_MAX + EXTRA_BYTES_MAX,
};

void kn_video_params_release(kn_video_params *params)
{
    if (!params) return;
    kn_free(params->prompt);
    kn_free(params->negative_prompt);
    kn_free(params->reference.text);
    kn_free(params->metadata);
    kn_free(params->user);
    *params = (kn_video_params){.guidance = NAN, .shift = NAN};
}

/* ---- engine request ---- */

/* The engine's messages start with its field; these are the API's names of the same. */
static kn_status translate(kn_api_error *error, const kn_video_params *params)
{
    const struct {
        const char *engine, *api;
    } names[] = {
        {"negative_prompt", "negative_prompt"},
        {"prompt", "prompt"},
        {"width", "size"},
        {"height", "size"},
        {"frames", params->frames > 0 ? "num_frames" : "seconds"},
        {"fps", "fps"},
        {"steps", "num_inference_steps"},
        {"guidance", "guidance_scale"},
        {"shift", "flow_shift"},
        {"sigma", "num_inference_steps"},
    };
    char message[KN_API_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", kn_fail_message());
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strncmp(message, names[i].engine, strlen(names[i].engine)) != 0) continue;
        return kn_api_invalid_value(error, names[i].api, "Invalid value for '%s': %s.", names[i].api, message);
    }
    return kn_api_invalid_value(error, NULL, "Invalid value: %s.", message);
}

static kn_status refuse_inputs(const kn_video_params *params, const kn_video_model *model, kn_api_error *error)
{
    const kn_video_reference *reference = &params->reference;
    if (reference->kind != KN_REFERENCE_NONE && !model->image_input)
        return kn_api_unsupported(error, "input_reference", "unsupported_parameter",
                                  "The model '%s' makes videos from text alone and takes no 'input_reference'.",
                                  model->name);
    if (reference->kind == KN_REFERENCE_FILE && reference->media != KN_MEDIA_JPEG && reference->media != KN_MEDIA_PNG &&
        reference->media != KN_MEDIA_WEBP)
        return kn_api_invalid_value(error, "input_reference",
                                    "Invalid value for 'input_reference': the file is %s; it must be image/jpeg, "
                                    "image/png or image/webp.",
                                    kn_media_type(reference->media));
    if (params->character_count > 0 && !model->characters)
        return kn_api_unsupported(error, "characters", "unsupported_parameter", "The model '%s' takes no 'characters'.",
                                  model->name);
    return KN_OK;
}

static kn_status set_frames(kn_request *r, const kn_video_params *params, const kn_repository *repository,
                            kn_api_error *error)
{
    r->frames = params->frames;
    if (params->frames > 0 || params->seconds[0] == '\0') return KN_OK;
    double fps =
        params->fps_denominator > 0 ? (double)params->fps_numerator / params->fps_denominator : repository->default_fps;
    double frames = strtod(params->seconds, NULL) * fps;
    if (!(frames >= 0.5 && frames < KN_API_FRAMES_MAX))
        return kn_api_invalid_value(error, "seconds",
                                    "Invalid value for 'seconds': %s at %g frames per second is not a whole frame or "
                                    "more than %d.",
                                    params->seconds, fps, KN_API_FRAMES_MAX);
    r->frames = (int32_t)lround(frames);
    return KN_OK;
}

kn_status kn_video_params_to_request(kn_request *out, const kn_video_params *params, const kn_video_model *model,
                                     uint64_t random_seed, kn_request_notes *notes, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_request r = kn_request_empty();
    *out = kn_request_empty();
    KN_TRY(refuse_inputs(params, model, error));
    r.width = params->width;
    r.height = params->height;
    r.fps_numerator = params->fps_numerator;
    r.fps_denominator = params->fps_denominator;
    r.steps = params->steps;
    r.guidance = params->guidance;
    r.shift = params->shift;
    r.seed = params->has_seed ? params->seed : random_seed;
    r.has_sampler = params->has_sampler;
    r.sampler = params->sampler;
    KN_TRY(set_frames(&r, params, model->repository, error));
    r.prompt = kn_strdup(params->prompt);
    r.negative_prompt = kn_strdup(params->negative_prompt ? params->negative_prompt : "");
    if (!r.prompt || !r.negative_prompt) KN_TRY(kn_api_from_status(error, KN_NOMEM));
    st = kn_request_resolve(&r, model->repository, notes);
    if (st == KN_INVALID)
        st = translate(error, params);
    else if (st == KN_UNSUPPORTED)
        st = kn_api_unsupported(error, "sampler", "unsupported_parameter", "The model '%s' cannot run this: %s.",
                                model->name, kn_fail_message());
    else if (st != KN_OK)
        st = kn_api_from_status(error, st);
    if (st != KN_OK) goto fail;
    *out = r;
    return KN_OK;
fail:
    kn_request_release(&r);
    return st;
}

kn_status kn_video_params_deadline(int64_t *out, const kn_video_params *params, int64_t now_us, kn_api_error *error)
{
    *out = 0;
    if (params->deadline == KN_DEADLINE_NONE) return KN_OK;
    const int64_t at = params->deadline == KN_DEADLINE_AT ? params->deadline_us : now_us + params->deadline_us;
    if (at <= now_us) return kn_api_invalid_value(error, "deadline", "Invalid value for 'deadline': it has passed.");
    if (at - now_us > (int64_t)KN_API_DEADLINE_MAX * 1000000)
        return kn_api_invalid_value(error, "deadline",
                                    "Invalid value for 'deadline': it must be at most %d seconds from now.",
                                    KN_API_DEADLINE_MAX);
    *out = at;
    return KN_OK;
}

/* ---- record ---- */

static void write_strings(kn_json_writer *w, const char *key, const char *strings, int32_t count, size_t stride)
{
    if (count == 0) return;
    kn_json_write_key(w, key);
    kn_json_write_array(w);
    for (int32_t i = 0; i < count; i++) kn_json_write_string(w, strings + (size_t)i * stride);
    kn_json_write_array_end(w);
}

kn_status kn_video_params_extra(char **out, const kn_video_params *params, const kn_request_notes *notes)
{
    *out = NULL;
    kn_text text = kn_text_growing(EXTRA_BYTES_MAX);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_object(&w);
    if (params->seconds[0] && params->frames == 0) {
        kn_json_write_key(&w, "seconds");
        kn_json_write_string(&w, params->seconds);
    }
    if (params->metadata) {
        kn_json_write_key(&w, "metadata");
        kn_json_write_raw(&w, params->metadata);
    }
    if (params->user) {
        kn_json_write_key(&w, "user");
        kn_json_write_string(&w, params->user);
    }
    write_strings(&w, "ignored", params->ignored[0], params->ignored_count, KN_API_IGNORED_BYTES);
    if (notes) write_strings(&w, "notes", notes->text[0], notes->count, KN_REQUEST_NOTE_BYTES);
    kn_json_write_object_end(&w);
    kn_status st = kn_text_status(&text);
    if (st == KN_OK && text.count > 2) {
        *out = kn_text_take(&text);
        if (!*out) st = KN_NOMEM;
    }
    kn_text_release(&text);
    return st;
}

/* ---- fingerprint ---- */

static void write_reference(kn_json_writer *w, const kn_video_reference *reference)
{
    char hex[2 * KN_SHA256_BYTES + 1] = "";
    kn_json_write_int(w, reference->kind);
    kn_json_write_string(w, reference->text);
    if (reference->kind != KN_REFERENCE_FILE) return;
    for (size_t i = 0; i < KN_SHA256_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", reference->sha256[i]);
    kn_json_write_string(w, hex);
}

/* Everything that has a meaning, in a fixed order, each field in one spelling. */
static void write_canonical(kn_json_writer *w, const kn_video_params *params)
{
    kn_json_write_array(w);
    kn_json_write_int(w, params->operation);
    kn_json_write_string(w, params->prompt);
    kn_json_write_string(w, params->negative_prompt);
    kn_json_write_string(w, params->model);
    kn_json_write_int(w, params->width);
    kn_json_write_int(w, params->height);
    kn_json_write_string(w, params->seconds);
    kn_json_write_int(w, params->frames);
    kn_json_write_int(w, params->fps_numerator);
    kn_json_write_int(w, params->fps_denominator);
    kn_json_write_int(w, params->steps);
    kn_json_write_double(w, params->guidance);
    kn_json_write_double(w, params->shift);
    kn_json_write_bool(w, params->has_seed);
    kn_json_write_uint(w, params->seed);
    kn_json_write_bool(w, params->has_sampler);
    kn_json_write_int(w, params->sampler);
    write_reference(w, &params->reference);
    kn_json_write_int(w, params->character_count);
    for (int32_t i = 0; i < params->character_count; i++) kn_json_write_string(w, params->characters[i]);
    kn_json_write_bool(w, params->has_priority);
    kn_json_write_int(w, params->priority);
    kn_json_write_int(w, params->deadline);
    kn_json_write_int(w, params->deadline_us);
    kn_json_write_raw(w, params->metadata);
    kn_json_write_string(w, params->user);
    kn_json_write_array_end(w);
}

kn_status kn_video_params_fingerprint(uint8_t out[KN_SHA256_BYTES], const kn_video_params *params)
{
    kn_text text = kn_text_growing(FINGERPRINT_BYTES_MAX);
    kn_json_writer w = kn_json_writer_on(&text);
    write_canonical(&w, params);
    kn_status st = kn_text_status(&text);
    if (st == KN_OK && EVP_Digest(text.bytes, text.count, out, NULL, EVP_sha256(), NULL) != 1)
        st = kn_fail(KN_NOMEM, "SHA-256 of a request failed");
    kn_text_release(&text);
    return st;
}

/* ---- Idempotency-Key ---- */

kn_status kn_idempotency_key_parse(char out[KN_IDEMPOTENCY_KEY_BYTES], const char *value, kn_api_error *error)
{
    size_t count = 0;
    const char *at = value ? value : "";
    const char *end = at + strlen(at);
    out[0] = '\0';
    if (!value) return KN_OK;
    while (at < end && (*at == ' ' || *at == '\t')) at++;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t')) end--;
    const bool quoted = end - at >= 2 && *at == '"' && end[-1] == '"';
    if (quoted) {
        at++;
        end--;
    }
    bool good = at < end;
    for (; good && at < end; at++) {
        if (quoted && *at == '\\' && at + 1 < end && (at[1] == '"' || at[1] == '\\')) {
            at++;
        } else if (quoted && (*at == '"' || *at == '\\')) {
            good = false;
        }
        good = good && *at > 0x20 && *at < 0x7f && count + 1 < KN_IDEMPOTENCY_KEY_BYTES;
        if (good) out[count++] = *at;
    }
    if (good) {
        out[count] = '\0';
        return KN_OK;
    }
    out[0] = '\0';
    return kn_api_invalid_value(error, "Idempotency-Key",
                                "The Idempotency-Key header must be 1 to %d visible ASCII characters, bare or quoted.",
                                KN_IDEMPOTENCY_KEY_BYTES - 1);
}
