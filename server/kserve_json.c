/* SPDX-License-Identifier: Apache-2.0 */
#include "server/kserve_json.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"

/* ---- reading ---- */

/* The binary part of a body, as far as it has not been handed out. */
typedef struct binary_part {
    const char *bytes;
    size_t count;
} binary_part;

kn_status kn_kserve_json_length(int64_t *out, const char *value, kn_api_error *error)
{
    *out = -1;
    if (!value) return KN_OK;
    int64_t number = 0;
    const char *at = value;
    while (*at >= '0' && *at <= '9' && number <= KN_BODY_JSON_BYTES_MAX) number = 10 * number + (*at++ - '0');
    if (at == value || *at || number == 0)
        return kn_api_invalid_value(error, "Inference-Header-Content-Length",
                                    "Inference-Header-Content-Length must be the JSON's length, 1 to %d bytes.",
                                    KN_BODY_JSON_BYTES_MAX);
    *out = number;
    return KN_OK;
}

static kn_status take_text(const char **out, const json_t *object, const char *key, bool required, kn_api_error *error)
{
    const json_t *value = json_object_get(object, key);
    *out = "";
    if (!value && !required) return KN_OK;
    if (!value) return kn_api_missing_parameter(error, key);
    if (!json_is_string(value)) return kn_api_invalid_type(error, key, "'%s' must be a string.", key);
    if (json_string_length(value) > KN_KSERVE_ID_BYTES_MAX)
        return kn_api_invalid_value(error, key, "'%s' has more than %d bytes.", key, KN_KSERVE_ID_BYTES_MAX);
    *out = json_string_value(value);
    return KN_OK;
}

static kn_status value_of(kn_kserve_value *out, const char *name, const json_t *json, kn_api_error *error)
{
    *out = (kn_kserve_value){0};
    if (json_is_boolean(json)) {
        out->kind = KN_KSERVE_IS_BOOL;
        out->boolean = json_is_true(json);
    } else if (json_is_integer(json)) {
        out->kind = KN_KSERVE_IS_INT;
        out->integer = json_integer_value(json);
    } else if (json_is_real(json)) {
        out->kind = KN_KSERVE_IS_DOUBLE;
        out->real = json_real_value(json);
    } else if (json_is_string(json)) {
        out->kind = KN_KSERVE_IS_TEXT;
        out->text = json_string_value(json);
        out->bytes = json_string_length(json);
    } else {
        return kn_api_invalid_type(error, name, "'%.64s' must be a boolean, a number or a string.", name);
    }
    return KN_OK;
}

static kn_status parse_parameters(kn_kserve_request *out, const json_t *object, bool *all_binary, kn_api_error *error)
{
    kn_status st = KN_OK;
    json_t *parameters = json_object_get(object, "parameters");
    if (!parameters) return KN_OK;
    if (!json_is_object(parameters)) return kn_api_invalid_type(error, "parameters", "'parameters' must be an object.");
    for (void *at = json_object_iter(parameters); at; at = json_object_iter_next(parameters, at)) {
        const char *name = json_object_iter_key(at);
        kn_kserve_value value;
        KN_TRY(value_of(&value, name, json_object_iter_value(at), error));
        KN_TRY(kn_kserve_add_parameter(out, name, &value, error));
        if (strcmp(name, "binary_data_output") == 0) *all_binary = value.kind == KN_KSERVE_IS_BOOL && value.boolean;
    }
fail:
    return st;
}

static kn_status parse_shape(const json_t *tensor, const char *name, kn_api_error *error)
{
    int64_t shape[KN_KSERVE_RANK_MAX];
    const json_t *json = json_object_get(tensor, "shape");
    const size_t rank = json_array_size(json);
    if (!json_is_array(json)) return kn_api_missing_parameter(error, "shape");
    for (size_t i = 0; i < rank && i < KN_KSERVE_RANK_MAX; i++) {
        const json_t *extent = json_array_get(json, i);
        if (!json_is_integer(extent)) return kn_api_invalid_type(error, "shape", "'shape' must hold whole numbers.");
        shape[i] = json_integer_value(extent);
    }
    return kn_kserve_check_shape(name, shape, rank, error);
}

/* The element inside "data", which clients nest as deep as the shape has dimensions, or not. */
static kn_status parse_data(kn_kserve_value *out, const char *name, kn_kserve_type type, const json_t *data,
                            kn_api_error *error)
{
    const json_t *element = data;
    while (json_is_array(element) && json_array_size(element) == 1) element = json_array_get(element, 0);
    if (!json_is_array(data) || json_is_array(element))
        return kn_api_invalid_value(error, name, "The 'data' of '%.64s' must be an array of one element.", name);
    if (value_of(out, name, element, error) != KN_OK) return KN_INVALID;
    const bool whole = type != KN_KSERVE_BYTES && type != KN_KSERVE_BOOL && type != KN_KSERVE_FP16 &&
                       type != KN_KSERVE_BF16 && type != KN_KSERVE_FP32 && type != KN_KSERVE_FP64;
    const bool fits = type == KN_KSERVE_BYTES  ? out->kind == KN_KSERVE_IS_TEXT
                      : type == KN_KSERVE_BOOL ? out->kind == KN_KSERVE_IS_BOOL
                      : whole                  ? out->kind == KN_KSERVE_IS_INT
                                               : out->kind == KN_KSERVE_IS_INT || out->kind == KN_KSERVE_IS_DOUBLE;
    if (fits) return KN_OK;
    return kn_api_invalid_type(error, name, "The 'data' of '%.64s' is not %s.", name, kn_kserve_type_name(type));
}

/* Bytes behind the JSON that are this tensor's. */
static kn_status take_binary(binary_part *binary, const char *name, const json_t *size, const char **raw, size_t *count,
                             kn_api_error *error)
{
    const json_int_t bytes = json_integer_value(size);
    if (!json_is_integer(size) || bytes < 0 || (uint64_t)bytes > binary->count)
        return kn_api_invalid_value(error, name, "The binary_data_size of '%.64s' is not a number of bytes that came.",
                                    name);
    *raw = binary->bytes;
    *count = (size_t)bytes;
    binary->bytes += *count;
    binary->count -= *count;
    return KN_OK;
}

static kn_status parse_input(kn_kserve_request *out, const json_t *tensor, binary_part *binary, kn_api_error *error)
{
    kn_status st = KN_OK;
    const char *name, *datatype, *raw = "";
    size_t count = 0;
    kn_kserve_type type;
    kn_kserve_value value;
    const json_t *size = json_object_get(json_object_get(tensor, "parameters"), "binary_data_size");
    const json_t *data = json_object_get(tensor, "data");
    if (!json_is_object(tensor)) return kn_api_invalid_type(error, "inputs", "'inputs' must hold objects.");
    KN_TRY(take_text(&name, tensor, "name", true, error));
    KN_TRY(take_text(&datatype, tensor, "datatype", true, error));
    KN_TRY(kn_kserve_check_type(name, datatype, &type, error));
    KN_TRY(parse_shape(tensor, name, error));
    if (size && data) {
        st = kn_api_invalid_value(error, name, "The input '%.64s' has both 'data' and 'binary_data_size'.", name);
    } else if (size) {
        KN_TRY(take_binary(binary, name, size, &raw, &count, error));
        st = kn_kserve_value_raw(&value, name, type, raw, count, error);
    } else if (data) {
        st = parse_data(&value, name, type, data, error);
    } else {
        st = kn_api_missing_parameter(error, "data");
    }
    if (st == KN_OK) st = kn_kserve_add_input(out, name, &value, error);
fail:
    return st;
}

static kn_status parse_output(kn_kserve_request *out, const json_t *tensor, bool all_binary, kn_api_error *error)
{
    kn_status st = KN_OK;
    const char *name;
    const json_t *parameters = json_object_get(tensor, "parameters");
    const json_t *binary = json_object_get(parameters, "binary_data");
    if (!json_is_object(tensor)) return kn_api_invalid_type(error, "outputs", "'outputs' must hold objects.");
    KN_TRY(take_text(&name, tensor, "name", true, error));
    if (binary && !json_is_boolean(binary))
        return kn_api_invalid_type(error, "binary_data", "'binary_data' must be a boolean.");
    if (json_integer_value(json_object_get(parameters, "classification")) != 0)
        return kn_api_unsupported(error, "classification", "unsupported_parameter", "Nothing here is classified.");
    if (json_object_get(parameters, "shared_memory_region"))
        return kn_api_unsupported(error, "shared_memory_region", "unsupported_parameter",
                                  "Shared memory is not offered.");
    KN_TRY(kn_kserve_add_output(out, name, binary ? json_is_true(binary) : all_binary, error));
fail:
    return st;
}

static kn_status parse_tensors(kn_kserve_request *out, const json_t *root, binary_part *binary, kn_api_error *error)
{
    kn_status st = KN_OK;
    bool all_binary = false;
    const json_t *inputs = json_object_get(root, "inputs"), *outputs = json_object_get(root, "outputs");
    KN_TRY(take_text(&out->id, root, "id", false, error));
    KN_TRY(parse_parameters(out, root, &all_binary, error));
    if (!json_is_array(inputs)) return kn_api_missing_parameter(error, "inputs");
    if (json_array_size(inputs) > KN_KSERVE_INPUTS_MAX)
        return kn_api_invalid_value(error, "inputs", "At most %d inputs are taken.", KN_KSERVE_INPUTS_MAX);
    for (size_t i = 0; i < json_array_size(inputs); i++)
        KN_TRY(parse_input(out, json_array_get(inputs, i), binary, error));
    if (binary->count > 0)
        return kn_api_invalid_body(error, "%zu bytes behind the JSON belong to no input.", binary->count);
    if (outputs && !json_is_array(outputs)) return kn_api_invalid_type(error, "outputs", "'outputs' must be an array.");
    for (size_t i = 0; i < json_array_size(outputs); i++)
        KN_TRY(parse_output(out, json_array_get(outputs, i), all_binary, error));
    if (!out->wanted && all_binary) out->binary = kn_kserve_answered(out);
fail:
    return st;
}

kn_status kn_kserve_json_parse(kn_kserve_request *out, json_t **root, const char *body, size_t count,
                               int64_t json_bytes, kn_api_error *error)
{
    kn_status st = KN_OK;
    *out = (kn_kserve_request){.model = "", .version = "", .id = ""};
    *root = NULL;
    if (json_bytes > (int64_t)count)
        return kn_api_invalid_value(error, "Inference-Header-Content-Length",
                                    "Inference-Header-Content-Length is larger than the body.");
    const size_t head = json_bytes < 0 ? count : (size_t)json_bytes;
    binary_part binary = {.bytes = body + head, .count = count - head};
    KN_TRY(kn_json_body_parse(root, body, head, NULL, error));
    KN_TRY(parse_tensors(out, *root, &binary, error));
    return KN_OK;
fail:
    json_decref(*root);
    *root = NULL;
    return st;
}

/* ---- writing ---- */

static void write_text(kn_json_writer *w, const char *key, const char *value)
{
    kn_json_write_key(w, key);
    kn_json_write_string(w, value);
}

static void write_count(kn_json_writer *w, const char *key, uint64_t value)
{
    kn_json_write_key(w, key);
    kn_json_write_uint(w, value);
}

static void write_array(kn_json_writer *w, const char *key, const int64_t *values, int32_t count)
{
    kn_json_write_key(w, key);
    kn_json_write_array(w);
    for (int32_t i = 0; i < count; i++) kn_json_write_int(w, values[i]);
    kn_json_write_array_end(w);
}

void kn_kserve_json_error(kn_text *out, const kn_api_error *error)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    write_text(&w, "error", error->message);
    if (error->code) write_text(&w, "code", error->code);
    if (error->param[0]) write_text(&w, "param", error->param);
    kn_json_write_object_end(&w);
}

void kn_kserve_json_server(kn_text *out)
{
    size_t count;
    const char *const *names = kn_kserve_extensions(&count);
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    write_text(&w, "name", "kinora");
    write_text(&w, "version", KN_VERSION);
    kn_json_write_key(&w, "extensions");
    kn_json_write_array(&w);
    for (size_t i = 0; i < count; i++) kn_json_write_string(&w, names[i]);
    kn_json_write_array_end(&w);
    kn_json_write_object_end(&w);
}

static void write_specs(kn_json_writer *w, const char *key, const kn_kserve_spec *specs, size_t count)
{
    kn_json_write_key(w, key);
    kn_json_write_array(w);
    for (size_t i = 0; i < count; i++) {
        kn_json_write_object(w);
        write_text(w, "name", specs[i].name);
        write_text(w, "datatype", kn_kserve_type_name(specs[i].type));
        write_array(w, "shape", specs[i].shape, specs[i].rank);
        kn_json_write_object_end(w);
    }
    kn_json_write_array_end(w);
}

void kn_kserve_json_metadata(kn_text *out, const kn_kserve_model *model)
{
    size_t inputs;
    kn_json_writer w = kn_json_writer_on(out);
    const kn_kserve_spec *specs = kn_kserve_inputs(&inputs);
    kn_json_write_object(&w);
    write_text(&w, "name", model->name);
    kn_json_write_key(&w, "versions");
    kn_json_write_array(&w);
    kn_json_write_string(&w, KN_KSERVE_VERSION);
    kn_json_write_array_end(&w);
    write_text(&w, "platform", KN_KSERVE_PLATFORM);
    write_specs(&w, "inputs", specs, inputs);
    write_specs(&w, "outputs", kn_kserve_outputs(), KN_KSERVE_OUTPUTS);
    kn_json_write_object_end(&w);
}

static void write_config_tensors(kn_json_writer *w, const char *key, const kn_kserve_spec *specs, size_t count,
                                 bool inputs)
{
    kn_json_write_key(w, key);
    kn_json_write_array(w);
    for (size_t i = 0; i < count; i++) {
        kn_json_write_object(w);
        write_text(w, "name", specs[i].name);
        write_text(w, "data_type", kn_kserve_type_config_name(specs[i].type));
        write_array(w, "dims", specs[i].shape, specs[i].rank);
        if (inputs) {
            kn_json_write_key(w, "optional");
            kn_json_write_bool(w, specs[i].optional);
        }
        kn_json_write_object_end(w);
    }
    kn_json_write_array_end(w);
}

void kn_kserve_json_config(kn_text *out, const kn_kserve_model *model)
{
    size_t inputs;
    kn_kserve_setting settings[KN_KSERVE_SETTINGS_MAX];
    const size_t setting_count = kn_kserve_settings(settings, model);
    const kn_kserve_spec *specs = kn_kserve_inputs(&inputs);
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    write_text(&w, "name", model->name);
    write_text(&w, "platform", "");
    write_text(&w, "backend", KN_KSERVE_PLATFORM);
    kn_json_write_key(&w, "version_policy");
    kn_json_write_raw(&w, "{\"latest\":{\"num_versions\":1}}");
    kn_json_write_key(&w, "max_batch_size");
    kn_json_write_int(&w, 0);
    write_config_tensors(&w, "input", specs, inputs, true);
    write_config_tensors(&w, "output", kn_kserve_outputs(), KN_KSERVE_OUTPUTS, false);
    kn_json_write_key(&w, "parameters");
    kn_json_write_object(&w);
    for (size_t i = 0; i < setting_count; i++) {
        kn_json_write_key(&w, settings[i].key);
        kn_json_write_object(&w);
        write_text(&w, "string_value", settings[i].value);
        kn_json_write_object_end(&w);
    }
    kn_json_write_object_end(&w);
    kn_json_write_key(&w, "model_transaction_policy");
    kn_json_write_raw(&w, "{\"decoupled\":true}");
    kn_json_write_object_end(&w);
}

static void write_duration(kn_json_writer *w, const char *key, kn_kserve_duration duration)
{
    kn_json_write_key(w, key);
    kn_json_write_object(w);
    write_count(w, "count", duration.count);
    write_count(w, "ns", duration.ns);
    kn_json_write_object_end(w);
}

static void write_statistics(kn_json_writer *w, const kn_kserve_model *model, const kn_kserve_counts *c)
{
    kn_json_write_object(w);
    write_text(w, "name", model->name);
    write_text(w, "version", KN_KSERVE_VERSION);
    write_count(w, "last_inference", c->last_ms);
    write_count(w, "inference_count", c->success.count);
    write_count(w, "execution_count", c->success.count);
    kn_json_write_key(w, "inference_stats");
    kn_json_write_object(w);
    write_duration(w, "success", c->success);
    write_duration(w, "fail", c->fail);
    write_duration(w, "queue", c->queue);
    write_duration(w, "compute_input", c->text);
    write_duration(w, "compute_infer", c->denoise);
    write_duration(w, "compute_output", c->decode);
    write_duration(w, "cache_hit", (kn_kserve_duration){0});
    write_duration(w, "cache_miss", (kn_kserve_duration){0});
    kn_json_write_object_end(w);
    kn_json_write_key(w, "response_stats");
    kn_json_write_raw(w, "{}");
    kn_json_write_key(w, "batch_stats");
    kn_json_write_array(w);
    if (c->success.count > 0) {
        kn_json_write_object(w);
        write_count(w, "batch_size", 1);
        write_duration(w, "compute_input", c->text);
        write_duration(w, "compute_infer", c->denoise);
        write_duration(w, "compute_output", c->decode);
        kn_json_write_object_end(w);
    }
    kn_json_write_array_end(w);
    kn_json_write_key(w, "memory_usage");
    kn_json_write_raw(w, "[]");
    kn_json_write_object_end(w);
}

void kn_kserve_json_statistics(kn_text *out, const kn_kserve_model *models, const kn_kserve_counts *counts,
                               size_t count)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "model_stats");
    kn_json_write_array(&w);
    for (size_t i = 0; i < count; i++) write_statistics(&w, &models[i], &counts[i]);
    kn_json_write_array_end(&w);
    kn_json_write_object_end(&w);
}

void kn_kserve_json_index(kn_text *out, const kn_kserve_model *models, size_t count)
{
    kn_json_writer w = kn_json_writer_on(out);
    kn_json_write_array(&w);
    for (size_t i = 0; i < count; i++) {
        kn_json_write_object(&w);
        write_text(&w, "name", models[i].name);
        write_text(&w, "version", KN_KSERVE_VERSION);
        write_text(&w, "state", models[i].ready ? "READY" : "UNAVAILABLE");
        write_text(&w, "reason", models[i].reason);
        kn_json_write_object_end(&w);
    }
    kn_json_write_array_end(&w);
}

/* ---- the answer ---- */

static void append_little_endian(kn_text *text, uint32_t value)
{
    const unsigned char bytes[4] = {(unsigned char)value, (unsigned char)(value >> 8), (unsigned char)(value >> 16),
                                    (unsigned char)(value >> 24)};
    kn_text_append(text, bytes, sizeof bytes);
}

static void write_base64(kn_json_writer *w, const void *bytes, size_t count)
{
    unsigned char *text = kn_alloc(4 * (count / 3 + 1) + 3);
    if (!text) {
        w->text->status = KN_NOMEM;
        return;
    }
    text[0] = '"';
    const int length = EVP_EncodeBlock(text + 1, bytes, (int)count);
    memcpy(text + 1 + length, "\"", 2);
    kn_json_write_raw(w, (const char *)text);
    kn_free(text);
}

static void write_data(kn_json_writer *w, const kn_kserve_answer *a, kn_kserve_output output, const void *file)
{
    kn_json_write_key(w, "data");
    kn_json_write_array(w);
    switch (output) {
    case KN_KSERVE_VIDEO: write_base64(w, file, a->video_bytes); break;
    case KN_KSERVE_VIDEO_ID: kn_json_write_string(w, a->video_id); break;
    case KN_KSERVE_STATUS: kn_json_write_string(w, a->status); break;
    default: kn_json_write_int(w, a->progress);
    }
    kn_json_write_array_end(w);
}

/* Returns how many bytes stand behind the JSON for it, the file's own included. */
static uint64_t append_binary(kn_text *tail, const kn_kserve_answer *a, kn_kserve_output output)
{
    const char *text = output == KN_KSERVE_VIDEO_ID ? a->video_id : a->status;
    switch (output) {
    case KN_KSERVE_VIDEO: append_little_endian(tail, (uint32_t)a->video_bytes); return 4 + a->video_bytes;
    case KN_KSERVE_PROGRESS: append_little_endian(tail, (uint32_t)a->progress); return 4;
    default:
        append_little_endian(tail, (uint32_t)strlen(text));
        kn_text_string(tail, text);
        return 4 + strlen(text);
    }
}

static void write_output(kn_json_writer *w, kn_text *tail, const kn_kserve_answer *a, kn_kserve_output output,
                         const void *file)
{
    const kn_kserve_spec *spec = &kn_kserve_outputs()[output];
    kn_json_write_object(w);
    write_text(w, "name", spec->name);
    write_text(w, "datatype", kn_kserve_type_name(spec->type));
    write_array(w, "shape", spec->shape, spec->rank);
    if (a->binary >> output & 1) {
        kn_json_write_key(w, "parameters");
        kn_json_write_object(w);
        write_count(w, "binary_data_size", append_binary(tail, a, output));
        kn_json_write_object_end(w);
    } else {
        if (output == KN_KSERVE_VIDEO) {
            kn_json_write_key(w, "parameters");
            kn_json_write_raw(w, "{\"content_type\":\"base64\"}");
        }
        write_data(w, a, output, file);
    }
    kn_json_write_object_end(w);
}

void kn_kserve_json_answer(kn_text *json, kn_text *tail, const kn_kserve_answer *a, const void *file)
{
    const kn_kserve_output last = kn_kserve_file_of(a->outputs);
    kn_json_writer w = kn_json_writer_on(json);
    kn_json_write_object(&w);
    write_text(&w, "model_name", a->model);
    write_text(&w, "model_version", KN_KSERVE_VERSION);
    if (a->id[0]) write_text(&w, "id", a->id);
    kn_json_write_key(&w, "outputs");
    kn_json_write_array(&w);
    for (int32_t i = 0; i < KN_KSERVE_OUTPUTS; i++)
        if (a->outputs >> i & 1 && i != (int32_t)last) write_output(&w, tail, a, (kn_kserve_output)i, file);
    if (last != KN_KSERVE_OUTPUTS) write_output(&w, tail, a, last, file); /* its bytes come behind all others */
    kn_json_write_array_end(&w);
    kn_json_write_object_end(&w);
}
