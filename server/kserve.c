/* SPDX-License-Identifier: Apache-2.0
 *
 * What the inference protocol says of models and of the server: one list of inputs, one of outputs. */
#include "server/kserve.h"

#include <stdio.h>
#include <string.h>

static const char *const type_names[KN_KSERVE_TYPES] = {
    [KN_KSERVE_BOOL] = "BOOL",     [KN_KSERVE_UINT8] = "UINT8",   [KN_KSERVE_UINT16] = "UINT16",
    [KN_KSERVE_UINT32] = "UINT32", [KN_KSERVE_UINT64] = "UINT64", [KN_KSERVE_INT8] = "INT8",
    [KN_KSERVE_INT16] = "INT16",   [KN_KSERVE_INT32] = "INT32",   [KN_KSERVE_INT64] = "INT64",
    [KN_KSERVE_FP16] = "FP16",     [KN_KSERVE_FP32] = "FP32",     [KN_KSERVE_FP64] = "FP64",
    [KN_KSERVE_BYTES] = "BYTES",   [KN_KSERVE_BF16] = "BF16",
};

static const char *const config_names[KN_KSERVE_TYPES] = {
    [KN_KSERVE_BOOL] = "TYPE_BOOL",     [KN_KSERVE_UINT8] = "TYPE_UINT8",   [KN_KSERVE_UINT16] = "TYPE_UINT16",
    [KN_KSERVE_UINT32] = "TYPE_UINT32", [KN_KSERVE_UINT64] = "TYPE_UINT64", [KN_KSERVE_INT8] = "TYPE_INT8",
    [KN_KSERVE_INT16] = "TYPE_INT16",   [KN_KSERVE_INT32] = "TYPE_INT32",   [KN_KSERVE_INT64] = "TYPE_INT64",
    [KN_KSERVE_FP16] = "TYPE_FP16",     [KN_KSERVE_FP32] = "TYPE_FP32",     [KN_KSERVE_FP64] = "TYPE_FP64",
    [KN_KSERVE_BYTES] = "TYPE_STRING",  [KN_KSERVE_BF16] = "TYPE_BF16",
};

const char *kn_kserve_type_name(kn_kserve_type type)
{
    return type_names[type];
}

const char *kn_kserve_type_config_name(kn_kserve_type type)
{
    return config_names[type];
}

bool kn_kserve_type_find(kn_kserve_type *out, const char *name)
{
    for (int i = KN_KSERVE_BOOL; i < KN_KSERVE_TYPES; i++)
        if (strcmp(type_names[i], name) == 0) {
            *out = (kn_kserve_type)i;
            return true;
        }
    return false;
}

#define ONE(called, of_type, may_miss)                                                                                 \
    {                                                                                                                  \
        .name = called, .type = KN_KSERVE_##of_type, .rank = 1, .shape = {1}, .optional = may_miss                     \
    }

static const kn_kserve_spec inputs[] = {
    ONE("prompt", BYTES, false),
    ONE("negative_prompt", BYTES, true),
    ONE("size", BYTES, true),
    ONE("seconds", FP32, true),
    ONE("num_frames", INT32, true),
    ONE("fps", FP32, true),
    ONE("num_inference_steps", INT32, true),
    ONE("guidance_scale", FP32, true),
    ONE("flow_shift", FP32, true),
    ONE("seed", INT64, true),
    ONE("sampler", BYTES, true),
};

static const kn_kserve_spec outputs[KN_KSERVE_OUTPUTS] = {
    [KN_KSERVE_VIDEO] = ONE("video", BYTES, false),
    [KN_KSERVE_VIDEO_ID] = ONE("video_id", BYTES, false),
    [KN_KSERVE_STATUS] = ONE("status", BYTES, false),
    [KN_KSERVE_PROGRESS] = ONE("progress", INT32, false),
};

const kn_kserve_spec *kn_kserve_inputs(size_t *count)
{
    *count = sizeof inputs / sizeof *inputs;
    return inputs;
}

const kn_kserve_spec *kn_kserve_outputs(void)
{
    return outputs;
}

const char *const *kn_kserve_extensions(size_t *count)
{
    static const char *const names[] = {"binary_tensor_data", "model_configuration", "model_repository",
                                        "parameters",         "schedule_policy",     "statistics"};
    *count = sizeof names / sizeof *names;
    return names;
}

kn_kserve_model kn_kserve_describe(const char *name, bool ready, const char *reason, const kn_repository *repository)
{
    kn_kserve_model model = {.name = name, .ready = ready, .reason = ready ? "" : reason};
    if (!repository) return model;
    model.width = repository->default_width;
    model.height = repository->default_height;
    model.frames = repository->default_frames;
    model.steps = repository->default_steps;
    model.guidance = repository->default_guidance;
    model.fps = repository->default_fps;
    return model;
}

size_t kn_kserve_settings(kn_kserve_setting out[KN_KSERVE_SETTINGS_MAX], const kn_kserve_model *model)
{
    size_t count = 0;
    if (model->width == 0) return 0; /* the folder could not be read */
    out[count].key = "default_size";
    snprintf(out[count++].value, sizeof out->value, "%dx%d", model->width, model->height);
    out[count].key = "default_num_frames";
    snprintf(out[count++].value, sizeof out->value, "%d", model->frames);
    out[count].key = "default_fps";
    snprintf(out[count++].value, sizeof out->value, "%g", model->fps);
    out[count].key = "default_num_inference_steps";
    snprintf(out[count++].value, sizeof out->value, "%d", model->steps);
    out[count].key = "default_guidance_scale";
    snprintf(out[count++].value, sizeof out->value, "%g", model->guidance);
    return count;
}

kn_status kn_kserve_check_version(const char *model, const char *version, kn_api_error *error)
{
    if (!version[0] || strcmp(version, KN_KSERVE_VERSION) == 0) return KN_OK;
    kn_api_not_found(error, "version", version);
    snprintf(error->param, sizeof error->param, "model_version");
    snprintf(error->message, sizeof error->message, "The model '%.63s' has version '%s' alone, not '%.32s'.", model,
             KN_KSERVE_VERSION, version);
    return KN_NOT_FOUND;
}

kn_status kn_kserve_check_change(const char *parameter, kn_api_error *error)
{
    if (strcmp(parameter, "unload_dependents") == 0) return KN_OK; /* there are none */
    return kn_api_unsupported(error, parameter, "unsupported_parameter",
                              "Models are loaded from this server's own folders; '%.64s' cannot be given.", parameter);
}

/* ---- statistics ---- */

static void add(kn_kserve_duration *duration, double ns)
{
    duration->count++;
    if (ns > 0.0) duration->ns += (uint64_t)ns;
}

void kn_kserve_count(kn_kserve_counts *counts, const kn_kserve_ended *ended)
{
    counts->last_ms = (uint64_t)(ended->ended_us / 1000);
    add(ended->good ? &counts->success : &counts->fail, (double)(ended->ended_us - ended->created_us) * 1e3);
    if (!ended->good) return; /* as Triton counts: what follows is of those that came to something */
    add(&counts->queue, (double)(ended->started_us - ended->created_us) * 1e3);
    add(&counts->text, ended->text_s * 1e9);
    add(&counts->denoise, ended->denoise_s * 1e9);
    add(&counts->decode, ended->decode_s * 1e9);
}
