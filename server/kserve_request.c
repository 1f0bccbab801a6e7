/* SPDX-License-Identifier: Apache-2.0
 *
 * A request for an inference, checked and turned into the body of a request for a video. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "server/json.h"
#include "server/kserve.h"

/* ---- tensors ---- */

kn_status kn_kserve_check_type(const char *name, const char *datatype, kn_kserve_type *out, kn_api_error *error)
{
    if (kn_kserve_type_find(out, datatype)) return KN_OK;
    return kn_api_invalid_value(error, name, "The tensor '%.64s' has the datatype '%.32s', which is none of v2's.",
                                name, datatype);
}

kn_status kn_kserve_check_shape(const char *name, const int64_t *shape, size_t rank, kn_api_error *error)
{
    bool one = rank <= KN_KSERVE_RANK_MAX;
    for (size_t i = 0; one && i < rank; i++) one = shape[i] == 1;
    if (one) return KN_OK;
    return kn_api_invalid_value(
        error, name, "The tensor '%.64s' must have the shape [1]: one video a request, without a batch.", name);
}

static uint64_t little_endian(const unsigned char *bytes, size_t count)
{
    uint64_t value = 0;
    for (size_t i = count; i > 0; i--) value = value << 8 | bytes[i - 1];
    return value;
}

static size_t element_bytes(kn_kserve_type type)
{
    switch (type) {
    case KN_KSERVE_BOOL:
    case KN_KSERVE_UINT8:
    case KN_KSERVE_INT8: return 1;
    case KN_KSERVE_UINT16:
    case KN_KSERVE_INT16:
    case KN_KSERVE_FP16:
    case KN_KSERVE_BF16: return 2;
    case KN_KSERVE_UINT32:
    case KN_KSERVE_INT32:
    case KN_KSERVE_FP32: return 4;
    default: return 8;
    }
}

static void read_number(kn_kserve_value *out, kn_kserve_type type, const unsigned char *raw, size_t width)
{
    const uint64_t bits = little_endian(raw, width);
    float single;
    const uint32_t low = (uint32_t)bits;
    switch (type) {
    case KN_KSERVE_BOOL:
        out->kind = KN_KSERVE_IS_BOOL;
        out->boolean = bits != 0;
        break;
    case KN_KSERVE_FP32:
        out->kind = KN_KSERVE_IS_FLOAT;
        memcpy(&single, &low, sizeof single);
        out->real = (double)single;
        break;
    case KN_KSERVE_FP64:
        out->kind = KN_KSERVE_IS_DOUBLE;
        memcpy(&out->real, &bits, sizeof out->real);
        break;
    case KN_KSERVE_INT8:
    case KN_KSERVE_INT16:
    case KN_KSERVE_INT32:
    case KN_KSERVE_INT64: {
        const uint64_t sign = (uint64_t)1 << (8 * width - 1);
        out->kind = KN_KSERVE_IS_INT;
        out->integer = (int64_t)((bits ^ sign) - sign);
        break;
    }
    default: out->kind = KN_KSERVE_IS_UINT; out->natural = bits;
    }
}

kn_status kn_kserve_value_raw(kn_kserve_value *out, const char *name, kn_kserve_type type, const void *raw,
                              size_t count, kn_api_error *error)
{
    const unsigned char *bytes = raw;
    *out = (kn_kserve_value){0};
    if (type == KN_KSERVE_FP16 || type == KN_KSERVE_BF16)
        return kn_api_invalid_value(error, name, "The tensor '%.64s' cannot be %s here; FP32 will do.", name,
                                    kn_kserve_type_name(type));
    if (type == KN_KSERVE_BYTES) {
        if (count < 4 || little_endian(bytes, 4) != count - 4)
            return kn_api_invalid_value(error, name,
                                        "The tensor '%.64s' must be one element of BYTES: its length in four bytes, "
                                        "little-endian, and as many bytes; %zu bytes came.",
                                        name, count);
        out->kind = KN_KSERVE_IS_TEXT;
        out->text = (const char *)bytes + 4;
        out->bytes = count - 4;
        return KN_OK;
    }
    const size_t width = element_bytes(type);
    if (count != width)
        return kn_api_invalid_value(error, name, "The tensor '%.64s' must be one element of %s, %zu bytes; %zu came.",
                                    name, kn_kserve_type_name(type), width, count);
    read_number(out, type, bytes, width);
    return KN_OK;
}

/* ---- inputs, parameters, outputs ---- */

static bool named(const kn_kserve_field *fields, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, name) == 0) return true;
    return false;
}

static bool is_number(const kn_kserve_value *value)
{
    return value->kind != KN_KSERVE_IS_TEXT && value->kind != KN_KSERVE_IS_BOOL;
}

static bool is_whole(const kn_kserve_value *value)
{
    return value->kind == KN_KSERVE_IS_INT || value->kind == KN_KSERVE_IS_UINT;
}

static kn_status check_text(const char *name, const kn_kserve_value *value, kn_api_error *error)
{
    if (value->kind != KN_KSERVE_IS_TEXT) return KN_OK;
    if (value->bytes > KN_KSERVE_TEXT_BYTES_MAX)
        return kn_api_invalid_value(error, name, "'%.64s' has %zu bytes; at most %d are taken.", name, value->bytes,
                                    KN_KSERVE_TEXT_BYTES_MAX);
    if (kn_text_characters(value->text, value->bytes) < 0)
        return kn_api_invalid_value(error, name, "'%.64s' must be UTF-8 without NUL.", name);
    return KN_OK;
}

kn_status kn_kserve_add_input(kn_kserve_request *request, const char *name, const kn_kserve_value *value,
                              kn_api_error *error)
{
    size_t count;
    const kn_kserve_spec *specs = kn_kserve_inputs(&count), *spec = NULL;
    for (size_t i = 0; i < count; i++)
        if (strcmp(specs[i].name, name) == 0) spec = &specs[i];
    if (!spec)
        return kn_api_invalid_value(error, name,
                                    "There is no input '%.64s'; the model's metadata lists those there are.", name);
    if (named(request->inputs, request->input_count, name))
        return kn_api_invalid_value(error, name, "The input '%.64s' is there twice.", name);
    const bool fits = spec->type == KN_KSERVE_BYTES  ? value->kind == KN_KSERVE_IS_TEXT
                      : spec->type == KN_KSERVE_FP32 ? is_number(value)
                                                     : is_whole(value);
    if (!fits)
        return kn_api_invalid_type(error, name, "The input '%.64s' must be %s.", name, kn_kserve_type_name(spec->type));
    if (is_number(value) && !is_whole(value) && !isfinite(value->real))
        return kn_api_invalid_value(error, name, "The input '%.64s' must be finite.", name);
    if (check_text(name, value, error) != KN_OK) return KN_INVALID;
    request->inputs[request->input_count++] = (kn_kserve_field){.name = spec->name, .value = *value};
    return KN_OK;
}

kn_status kn_kserve_add_parameter(kn_kserve_request *request, const char *name, const kn_kserve_value *value,
                                  kn_api_error *error)
{
    /* Understood by the fronts, or without a meaning for what has no sequences. */
    static const char *const passed_over[] = {"binary_data_output", "sequence_start", "sequence_end",
                                              "triton_enable_empty_final_response"};
    static const char *const elsewhere[] = {"model", "prompt"};
    for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over; i++)
        if (strcmp(name, passed_over[i]) == 0) return KN_OK;
    if (strcmp(name, "sequence_id") == 0) {
        const bool none = (value->kind == KN_KSERVE_IS_INT && value->integer == 0) ||
                          (value->kind == KN_KSERVE_IS_UINT && value->natural == 0) ||
                          (value->kind == KN_KSERVE_IS_TEXT && value->bytes == 0);
        return none ? KN_OK
                    : kn_api_unsupported(error, name, "unsupported_parameter", "Models here have no sequences.");
    }
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (strcmp(name, elsewhere[i]) == 0)
            return kn_api_invalid_value(error, name, "'%s' is not a parameter: %s says it.", name,
                                        i ? "the input of this name" : "the request's own field");
    if (named(request->parameters, request->parameter_count, name))
        return kn_api_invalid_value(error, name, "The parameter '%.64s' is there twice.", name);
    if (request->parameter_count == KN_KSERVE_PARAMETERS_MAX)
        return kn_api_invalid_value(error, "parameters", "At most %d parameters are taken.", KN_KSERVE_PARAMETERS_MAX);
    if (is_number(value) && !is_whole(value) && !isfinite(value->real))
        return kn_api_invalid_value(error, name, "The parameter '%.64s' must be finite.", name);
    if (check_text(name, value, error) != KN_OK) return KN_INVALID;
    request->parameters[request->parameter_count++] = (kn_kserve_field){.name = name, .value = *value};
    return KN_OK;
}

kn_status kn_kserve_add_output(kn_kserve_request *request, const char *name, bool binary, kn_api_error *error)
{
    int32_t found = KN_KSERVE_OUTPUTS;
    for (int32_t i = 0; i < KN_KSERVE_OUTPUTS; i++)
        if (strcmp(kn_kserve_outputs()[i].name, name) == 0) found = i;
    if (found == KN_KSERVE_OUTPUTS)
        return kn_api_invalid_value(error, "outputs",
                                    "There is no output '%.64s'; the model's metadata lists those there are.", name);
    if (request->wanted >> found & 1)
        return kn_api_invalid_value(error, "outputs", "The output '%.64s' is there twice.", name);
    request->wanted |= 1u << found;
    if (binary) request->binary |= 1u << found;
    return KN_OK;
}

unsigned kn_kserve_answered(const kn_kserve_request *request)
{
    return request->wanted ? request->wanted : (1u << KN_KSERVE_OUTPUTS) - 1;
}

kn_kserve_output kn_kserve_file_of(unsigned answered)
{
    return answered >> KN_KSERVE_VIDEO & 1 ? KN_KSERVE_VIDEO : KN_KSERVE_OUTPUTS;
}

/* ---- as a request for a video ---- */

static void write_value(kn_json_writer *w, const kn_kserve_value *value)
{
    char digits[40];
    switch (value->kind) {
    case KN_KSERVE_IS_BOOL: kn_json_write_bool(w, value->boolean); break;
    case KN_KSERVE_IS_INT: kn_json_write_int(w, value->integer); break;
    case KN_KSERVE_IS_UINT: kn_json_write_uint(w, value->natural); break;
    case KN_KSERVE_IS_DOUBLE: kn_json_write_double(w, value->real); break;
    case KN_KSERVE_IS_TEXT: kn_json_write_bytes(w, value->text, value->bytes); break;
    case KN_KSERVE_IS_FLOAT: /* the shortest digits that are this float: 0.1, not 0.10000000149011612 */
        for (int precision = 6; precision <= 9; precision++) {
            float back;
            snprintf(digits, sizeof digits, "%.*g", precision, value->real);
            if (sscanf(digits, "%f", &back) == 1 && (double)back == value->real) break;
        }
        kn_json_write_raw(w, digits);
    }
}

static kn_status whole_of(const kn_kserve_field *field, uint64_t max, uint64_t *out, kn_api_error *error)
{
    const kn_kserve_value *value = &field->value;
    const bool good = (value->kind == KN_KSERVE_IS_UINT && value->natural <= max) ||
                      (value->kind == KN_KSERVE_IS_INT && value->integer >= 0 && (uint64_t)value->integer <= max);
    if (!good)
        return kn_api_invalid_value(error, field->name, "The parameter '%s' must be a whole number from 0 to %llu.",
                                    field->name, (unsigned long long)max);
    *out = value->kind == KN_KSERVE_IS_UINT ? value->natural : (uint64_t)value->integer;
    return KN_OK;
}

/* Triton's schedule policy: priority 1 is the first, 0 the default; a timeout in microseconds is how long the request
 * may take before nobody wants the answer. */
static kn_status write_policy(kn_json_writer *w, const kn_kserve_field *field, bool *done, kn_api_error *error)
{
    static const char *const tiers[KN_KSERVE_TIERS] = {"priority", "default", "flex"};
    uint64_t number = 0;
    kn_status st = KN_OK;
    *done = true;
    if (strcmp(field->name, "priority") == 0) {
        KN_TRY(whole_of(field, KN_KSERVE_TIERS, &number, error));
        if (number == 0) return KN_OK;
        kn_json_write_key(w, "service_tier");
        kn_json_write_string(w, tiers[number - 1]);
    } else if (strcmp(field->name, "timeout") == 0) {
        KN_TRY(whole_of(field, (uint64_t)30 * 24 * 3600 * 1000000, &number, error));
        if (number == 0) return KN_OK;
        kn_json_write_key(w, "deadline");
        kn_json_write_double(w, (double)number * 1e-6);
    } else {
        *done = false;
    }
fail:
    return st;
}

kn_status kn_kserve_body(kn_text *out, const kn_kserve_request *request, const char *model, kn_api_error *error)
{
    kn_status st = KN_OK;
    bool done;
    kn_json_writer w = kn_json_writer_on(out);
    if (!named(request->inputs, request->input_count, "prompt")) return kn_api_missing_parameter(error, "prompt");
    kn_json_write_object(&w);
    kn_json_write_key(&w, "model");
    kn_json_write_string(&w, model);
    for (size_t i = 0; i < request->input_count; i++) {
        kn_json_write_key(&w, request->inputs[i].name);
        write_value(&w, &request->inputs[i].value);
    }
    for (size_t i = 0; i < request->parameter_count; i++) {
        const kn_kserve_field *field = &request->parameters[i];
        if (named(request->inputs, request->input_count, field->name))
            return kn_api_invalid_value(error, field->name, "'%s' is both an input and a parameter.", field->name);
        KN_TRY(write_policy(&w, field, &done, error));
        if (done) continue;
        kn_json_write_key(&w, field->name);
        write_value(&w, &field->value);
    }
    kn_json_write_object_end(&w);
    st = kn_text_status(out);
    if (st != KN_OK) kn_api_from_status(error, st);
fail:
    return st;
}
