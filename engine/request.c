/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/request.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "engine/config.h"
#include "engine/vae_wan.h"

kn_request kn_request_empty(void)
{
    return (kn_request){.guidance = NAN, .shift = NAN};
}

void kn_request_release(kn_request *request)
{
    kn_free(request->prompt);
    kn_free(request->negative_prompt);
    *request = kn_request_empty();
}

static void note(kn_request_notes *notes, const char *format, ...) KN_PRINTF(2, 3);

static void note(kn_request_notes *notes, const char *format, ...)
{
    if (!notes || notes->count == KN_REQUEST_NOTES_MAX) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(notes->text[notes->count++], KN_REQUEST_NOTE_BYTES, format, arguments);
    va_end(arguments);
}

static kn_status check_range(const char *field, int64_t value, int64_t low, int64_t high)
{
    if (value >= low && value <= high) return KN_OK;
    return kn_fail(KN_INVALID, "%s is %" PRId64 "; it must be %" PRId64 " to %" PRId64, field, value, low, high);
}

static kn_status check_text(const char *field, const char *text)
{
    const size_t bytes = strlen(text);
    if (bytes > KN_PROMPT_BYTES_MAX)
        return kn_fail(KN_INVALID, "%s has %zu bytes; at most %d", field, bytes, KN_PROMPT_BYTES_MAX);
    for (size_t at = 0; at < bytes;) {
        int32_t code;
        const utf8proc_ssize_t length =
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(bytes - at), &code);
        if (length < 1) return kn_fail(KN_INVALID, "%s is not valid UTF-8 at byte %zu", field, at);
        at += (size_t)length;
    }
    return KN_OK;
}

static int32_t floor_side(const char *field, int32_t side, int32_t multiple, kn_request_notes *notes)
{
    int32_t rounded = side / multiple * multiple;
    if (rounded != side) note(notes, "%s %d rounded to %d (a multiple of %d)", field, side, rounded, multiple);
    return rounded;
}

static kn_status resolve_size(kn_request *r, const kn_repository *repository, kn_request_notes *notes)
{
    kn_status st = KN_OK;
    const int32_t spatial = 2 * kn_vae_spatial_factor(&repository->vae);
    const int32_t temporal = kn_vae_temporal_factor(&repository->vae);
    const int32_t positions = repository->dit.rope_max_seq_len;
    const int64_t side_max = (int64_t)spatial * positions < KN_SIDE_MAX ? (int64_t)spatial * positions : KN_SIDE_MAX;
    if (r->width == 0) r->width = repository->default_width;
    if (r->height == 0) r->height = repository->default_height;
    if (r->frames == 0) r->frames = repository->default_frames;
    KN_TRY(check_range("width", r->width, spatial, side_max));
    KN_TRY(check_range("height", r->height, spatial, side_max));
    r->width = floor_side("width", r->width, spatial, notes);
    r->height = floor_side("height", r->height, spatial, notes);
    KN_TRY(check_range("frames", r->frames, 1, (int64_t)temporal * (positions - 1) + 1));
    if (r->frames % temporal != 1 && temporal > 1) {
        int32_t rounded = r->frames / temporal * temporal + 1; /* as diffusers rounds */
        note(notes, "frames %d rounded to %d (%dn + 1)", r->frames, rounded, temporal);
        r->frames = rounded;
    }
fail:
    return st;
}

static kn_status resolve_rate(kn_request *r, const kn_repository *repository)
{
    if (r->fps_numerator == 0 && r->fps_denominator == 0) {
        r->fps_numerator = (int32_t)lround(repository->default_fps * 1000.0);
        r->fps_denominator = 1000;
        while (r->fps_denominator > 1 && r->fps_numerator % 10 == 0) {
            r->fps_numerator /= 10;
            r->fps_denominator /= 10;
        }
    }
    if (r->fps_numerator < 1 || r->fps_denominator < 1 || r->fps_numerator > (int64_t)r->fps_denominator * KN_FPS_MAX ||
        (int64_t)r->fps_numerator * 10 < r->fps_denominator)
        return kn_fail(KN_INVALID, "fps is %d/%d; it must be 0.1 to %d", r->fps_numerator, r->fps_denominator,
                       KN_FPS_MAX);
    return KN_OK;
}

kn_status kn_request_resolve(kn_request *r, const kn_repository *repository, kn_request_notes *notes)
{
    kn_status st = KN_OK;
    if (notes) *notes = (kn_request_notes){0};
    if (!r->prompt) return kn_fail(KN_INVALID, "prompt is missing");
    if (!r->negative_prompt) r->negative_prompt = kn_strdup("");
    if (!r->negative_prompt) return KN_NOMEM;
    KN_TRY(check_text("prompt", r->prompt));
    KN_TRY(check_text("negative_prompt", r->negative_prompt));
    KN_TRY(resolve_size(r, repository, notes));
    KN_TRY(resolve_rate(r, repository));
    if (!r->has_sampler) r->sampler = repository->sampler.kind;
    r->has_sampler = true;
    if (r->sigma_count > 0) {
        if (r->steps != 0 && r->steps != r->sigma_count)
            return kn_fail(KN_INVALID, "steps is %d but %d sigmas were given", r->steps, r->sigma_count);
        r->steps = r->sigma_count;
    }
    if (r->steps == 0) r->steps = repository->default_steps;
    KN_TRY(check_range("steps", r->steps, 1, KN_STEPS_MAX));
    if (isnan(r->guidance)) r->guidance = repository->default_guidance;
    if (!(r->guidance >= 0.0 && r->guidance <= 100.0))
        return kn_fail(KN_INVALID, "guidance is %g; it must be 0 to 100", r->guidance);
    if (isnan(r->shift)) r->shift = repository->sampler.shift;
    if (!(r->shift > 0.0 && r->shift <= 1000.0))
        return kn_fail(KN_INVALID, "shift is %g; it must be above 0 and at most 1000", r->shift);
    kn_schedule schedule;
    KN_TRY(kn_request_schedule(&schedule, r, repository));
fail:
    return st;
}

kn_status kn_request_schedule(kn_schedule *out, const kn_request *r, const kn_repository *repository)
{
    kn_sampler_config config = repository->sampler;
    if (r->sampler != config.kind) { /* another solver on the same noise levels */
        config.kind = r->sampler;
        config.solver_order = 2;
        config.lower_order_final = true;
    }
    return kn_schedule_build(out, &config, r->steps, r->shift, r->sigma_count > 0 ? r->sigmas : NULL, r->sigma_count);
}

kn_latent_shape kn_request_latent(const kn_request *r, const kn_repository *repository)
{
    const int32_t spatial = kn_vae_spatial_factor(&repository->vae);
    const int32_t temporal = kn_vae_temporal_factor(&repository->vae);
    return (kn_latent_shape){.channels = repository->vae.z_dim,
                             .t = (r->frames - 1) / temporal + 1,
                             .h = r->height / spatial,
                             .w = r->width / spatial};
}

/* ---- JSON ---- */

static const char *sampler_name(kn_sampler_kind kind)
{
    return kind == KN_SAMPLER_UNIPC ? "unipc" : "euler";
}

kn_status kn_request_to_json(char **out, const kn_request *r)
{
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, r->seed); /* JSON integers stop at 2^63 */
    json_t *sigmas = json_array();
    for (int32_t i = 0; i < r->sigma_count; i++) json_array_append_new(sigmas, json_real(r->sigmas[i]));
    json_t *root = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:s, s:s, s:f, s:o}", "prompt", r->prompt,
                             "negative_prompt", r->negative_prompt ? r->negative_prompt : "", "width", r->width,
                             "height", r->height, "frames", r->frames, "fps_numerator", r->fps_numerator,
                             "fps_denominator", r->fps_denominator, "steps", r->steps, "guidance", r->guidance, "seed",
                             seed, "sampler", sampler_name(r->sampler), "shift", r->shift, "sigmas", sigmas);
    if (!root) return kn_fail(KN_INVALID, "the prompt is not valid UTF-8");
    const size_t flags = JSON_COMPACT | JSON_REAL_PRECISION(17), bytes = json_dumpb(root, NULL, 0, flags);
    *out = kn_alloc(bytes + 1);
    if (*out) json_dumpb(root, *out, bytes, flags);
    json_decref(root);
    return *out ? KN_OK : KN_NOMEM;
}

static kn_status read_sigmas(kn_request *r, const json_t *array, const char *file)
{
    if (!json_is_array(array) || json_array_size(array) > KN_STEPS_MAX)
        return kn_fail(KN_CORRUPT, "%s: request: sigmas must be an array of at most %d numbers", file, KN_STEPS_MAX);
    r->sigma_count = (int32_t)json_array_size(array);
    for (int32_t i = 0; i < r->sigma_count; i++) {
        const json_t *value = json_array_get(array, (size_t)i);
        if (!json_is_number(value)) return kn_fail(KN_CORRUPT, "%s: request: sigmas[%d] is not a number", file, i);
        r->sigmas[i] = json_number_value(value);
    }
    return KN_OK;
}

static kn_status read_number(const json_t *root, const char *key, const char *file, double *out)
{
    const json_t *value = json_object_get(root, key);
    if (!json_is_number(value)) return kn_fail(KN_CORRUPT, "%s: request: %s is not a number", file, key);
    *out = json_number_value(value);
    return KN_OK;
}

static kn_status read_text(const kn_config *config, const char *key, char **out)
{
    const char *text;
    kn_status st = kn_config_string(config, key, NULL, &text);
    if (st != KN_OK) return st;
    *out = kn_strdup(text);
    return *out ? KN_OK : KN_NOMEM;
}

kn_status kn_request_from_json(kn_request *out, const char *text, const char *file)
{
    kn_status st = KN_OK;
    kn_request r = kn_request_empty();
    json_t *root = NULL;
    const char *string, *end;
    KN_TRY(kn_json_parse(&root, text, strlen(text), file, kn_config_limits()));
    const kn_config config = {.object = root, .file = file};
    KN_TRY(read_text(&config, "prompt", &r.prompt));
    KN_TRY(read_text(&config, "negative_prompt", &r.negative_prompt));
    struct {
        const char *key;
        int32_t *out;
    } const integers[] = {{"width", &r.width},
                          {"height", &r.height},
                          {"frames", &r.frames},
                          {"steps", &r.steps},
                          {"fps_numerator", &r.fps_numerator},
                          {"fps_denominator", &r.fps_denominator}};
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++)
        KN_TRY(kn_config_int(&config, integers[i].key, 1, INT32_MAX, NULL, integers[i].out));
    KN_TRY(read_number(root, "guidance", file, &r.guidance));
    KN_TRY(read_number(root, "shift", file, &r.shift));
    KN_TRY(kn_config_string(&config, "seed", NULL, &string));
    errno = 0;
    r.seed = strtoull(string, (char **)&end, 10);
    if (*string < '0' || *string > '9' || *end || errno)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: request: seed is not a number", file));
    KN_TRY(kn_config_string(&config, "sampler", NULL, &string));
    r.has_sampler = true;
    r.sampler = strcmp(string, "euler") == 0 ? KN_SAMPLER_EULER : KN_SAMPLER_UNIPC;
    if (strcmp(string, sampler_name(r.sampler)) != 0)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: request: sampler \"%s\" is unknown", file, string));
    KN_TRY(read_sigmas(&r, json_object_get(root, "sigmas"), file));
    *out = r;
    json_decref(root);
    return KN_OK;
fail:
    json_decref(root);
    kn_request_release(&r);
    return st;
}
