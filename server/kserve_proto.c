/* SPDX-License-Identifier: Apache-2.0 */
#include "server/kserve_proto.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include <inference.pb-c.h>

typedef Inference__InferParameter parameter;
typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;
typedef Inference__ModelInferResponse infer_response;
typedef Inference__ModelInferResponse__InferOutputTensor output_tensor;

/* protobuf-c's structs are not const where they are only read. */
static char *plain(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* ---- reading ---- */

static kn_status value_of(kn_kserve_value *out, const char *name, const parameter *p, kn_api_error *error)
{
    *out = (kn_kserve_value){0};
    switch (p ? p->parameter_choice_case : INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE__NOT_SET) {
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM:
        out->kind = KN_KSERVE_IS_BOOL;
        out->boolean = p->bool_param;
        return KN_OK;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_INT64_PARAM:
        out->kind = KN_KSERVE_IS_INT;
        out->integer = p->int64_param;
        return KN_OK;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_STRING_PARAM:
        out->kind = KN_KSERVE_IS_TEXT;
        out->text = p->string_param;
        out->bytes = strlen(p->string_param);
        return KN_OK;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_DOUBLE_PARAM:
        out->kind = KN_KSERVE_IS_DOUBLE;
        out->real = p->double_param;
        return KN_OK;
    case INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_UINT64_PARAM:
        out->kind = KN_KSERVE_IS_UINT;
        out->natural = p->uint64_param;
        return KN_OK;
    default: return kn_api_invalid_type(error, name, "The parameter '%.64s' has no value.", name);
    }
}

static kn_status read_parameters(kn_kserve_request *out, const infer_request *request, kn_api_error *error)
{
    kn_status st = KN_OK;
    for (size_t i = 0; i < request->n_parameters; i++) {
        kn_kserve_value value;
        const char *name = request->parameters[i]->key;
        KN_TRY(value_of(&value, name, request->parameters[i]->value, error));
        KN_TRY(kn_kserve_add_parameter(out, name, &value, error));
    }
fail:
    return st;
}

/* The one element inside typed contents. False: there is another number of elements, or another type. */
static bool value_inside(kn_kserve_value *out, kn_kserve_type type, const Inference__InferTensorContents *c)
{
    const size_t all = c->n_bool_contents + c->n_int_contents + c->n_int64_contents + c->n_uint_contents +
                       c->n_uint64_contents + c->n_fp32_contents + c->n_fp64_contents + c->n_bytes_contents;
    *out = (kn_kserve_value){0};
    if (all != 1) return false;
    switch (type) {
    case KN_KSERVE_BOOL:
        out->kind = KN_KSERVE_IS_BOOL;
        out->boolean = c->n_bool_contents == 1 && c->bool_contents[0];
        return c->n_bool_contents == 1;
    case KN_KSERVE_INT8:
    case KN_KSERVE_INT16:
    case KN_KSERVE_INT32:
        out->kind = KN_KSERVE_IS_INT;
        out->integer = c->n_int_contents == 1 ? c->int_contents[0] : 0;
        return c->n_int_contents == 1;
    case KN_KSERVE_INT64:
        out->kind = KN_KSERVE_IS_INT;
        out->integer = c->n_int64_contents == 1 ? c->int64_contents[0] : 0;
        return c->n_int64_contents == 1;
    case KN_KSERVE_UINT8:
    case KN_KSERVE_UINT16:
    case KN_KSERVE_UINT32:
        out->kind = KN_KSERVE_IS_UINT;
        out->natural = c->n_uint_contents == 1 ? c->uint_contents[0] : 0;
        return c->n_uint_contents == 1;
    case KN_KSERVE_UINT64:
        out->kind = KN_KSERVE_IS_UINT;
        out->natural = c->n_uint64_contents == 1 ? c->uint64_contents[0] : 0;
        return c->n_uint64_contents == 1;
    case KN_KSERVE_FP32:
        out->kind = KN_KSERVE_IS_FLOAT;
        out->real = c->n_fp32_contents == 1 ? (double)c->fp32_contents[0] : 0.0;
        return c->n_fp32_contents == 1;
    case KN_KSERVE_FP64:
        out->kind = KN_KSERVE_IS_DOUBLE;
        out->real = c->n_fp64_contents == 1 ? c->fp64_contents[0] : 0.0;
        return c->n_fp64_contents == 1;
    case KN_KSERVE_BYTES:
        if (c->n_bytes_contents != 1) return false;
        out->kind = KN_KSERVE_IS_TEXT;
        out->text = c->bytes_contents[0].len ? (const char *)c->bytes_contents[0].data : "";
        out->bytes = c->bytes_contents[0].len;
        return true;
    default: return false;
    }
}

static kn_status read_input(kn_kserve_request *out, const input_tensor *tensor, const ProtobufCBinaryData *raw,
                            kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_kserve_type type;
    kn_kserve_value value;
    const char *name = tensor->name;
    KN_TRY(kn_kserve_check_type(name, tensor->datatype, &type, error));
    KN_TRY(kn_kserve_check_shape(name, tensor->shape, tensor->n_shape, error));
    for (size_t i = 0; i < tensor->n_parameters; i++)
        if (strncmp(tensor->parameters[i]->key, "shared_memory_", 14) == 0)
            return kn_api_unsupported(error, tensor->parameters[i]->key, "unsupported_parameter",
                                      "Shared memory is not offered.");
    if (raw && tensor->contents)
        st = kn_api_invalid_value(error, name, "The input '%.64s' has both contents and raw contents.", name);
    else if (raw)
        st = kn_kserve_value_raw(&value, name, type, raw->len ? (const void *)raw->data : "", raw->len, error);
    else if (!tensor->contents || !value_inside(&value, type, tensor->contents))
        st = kn_api_invalid_value(error, name, "The contents of '%.64s' must be one element of %s.", name,
                                  kn_kserve_type_name(type));
    if (st == KN_OK) st = kn_kserve_add_input(out, name, &value, error);
fail:
    return st;
}

static kn_status read_tensors(kn_kserve_request *out, const infer_request *request, kn_api_error *error)
{
    kn_status st = KN_OK;
    if (request->n_inputs > KN_KSERVE_INPUTS_MAX)
        return kn_api_invalid_value(error, "inputs", "At most %d inputs are taken.", KN_KSERVE_INPUTS_MAX);
    if (request->n_raw_input_contents > 0 && request->n_raw_input_contents != request->n_inputs)
        return kn_api_invalid_value(error, "raw_input_contents", "%zu inputs have %zu raw contents.", request->n_inputs,
                                    request->n_raw_input_contents);
    for (size_t i = 0; i < request->n_inputs; i++)
        KN_TRY(read_input(out, request->inputs[i],
                          request->n_raw_input_contents ? &request->raw_input_contents[i] : NULL, error));
    for (size_t i = 0; i < request->n_outputs; i++) {
        for (size_t k = 0; k < request->outputs[i]->n_parameters; k++)
            if (strcmp(request->outputs[i]->parameters[k]->key, "classification") == 0)
                return kn_api_unsupported(error, "classification", "unsupported_parameter",
                                          "Nothing here is classified.");
        KN_TRY(kn_kserve_add_output(out, request->outputs[i]->name, true, error));
    }
fail:
    return st;
}

kn_status kn_kserve_proto_infer(kn_kserve_request *out, ProtobufCMessage **message, const void *bytes, size_t count,
                                kn_api_error *error)
{
    kn_status st = KN_OK;
    *out = (kn_kserve_request){.model = "", .version = "", .id = ""};
    KN_TRY(kn_proto_read(message, &inference__model_infer_request__descriptor, bytes, count, error));
    const infer_request *request = (const infer_request *)*message;
    out->model = request->model_name;
    out->version = request->model_version;
    out->id = request->id;
    if (strlen(out->id) > KN_KSERVE_ID_BYTES_MAX)
        KN_TRY(kn_api_invalid_value(error, "id", "'id' has more than %d bytes.", KN_KSERVE_ID_BYTES_MAX));
    KN_TRY(read_parameters(out, request, error));
    KN_TRY(read_tensors(out, request, error));
    return KN_OK;
fail:
    kn_proto_free(message);
    out->model = out->version = out->id = ""; /* they were the message's */
    return st;
}

static kn_status copy_name(char *out, size_t room, const char *field, const char *text, kn_api_error *error)
{
    if (strlen(text) >= room)
        return kn_api_invalid_value(error, field, "'%s' has more than %zu bytes.", field, room - 1);
    memcpy(out, text, strlen(text) + 1);
    return KN_OK;
}

kn_status kn_kserve_proto_name(kn_kserve_name *out, const void *bytes, size_t count, kn_api_error *error)
{
    kn_status st = KN_OK;
    ProtobufCMessage *message = NULL;
    KN_TRY(kn_proto_read(&message, &inference__model_ready_request__descriptor, bytes, count, error));
    const Inference__ModelReadyRequest *request = (const Inference__ModelReadyRequest *)message;
    KN_TRY(copy_name(out->name, sizeof out->name, "name", request->name, error));
    KN_TRY(copy_name(out->version, sizeof out->version, "version", request->version, error));
fail:
    kn_proto_free(&message);
    return st;
}

kn_status kn_kserve_proto_index_request(bool *ready_only, const void *bytes, size_t count, kn_api_error *error)
{
    ProtobufCMessage *message;
    const kn_status st = kn_proto_read(&message, &inference__repository_index_request__descriptor, bytes, count, error);
    if (st != KN_OK) return st;
    *ready_only = ((const Inference__RepositoryIndexRequest *)message)->ready;
    kn_proto_free(&message);
    return KN_OK;
}

kn_status kn_kserve_proto_change(kn_kserve_name *out, const void *bytes, size_t count, kn_api_error *error)
{
    kn_status st = KN_OK;
    ProtobufCMessage *message = NULL;
    KN_TRY(kn_proto_read(&message, &inference__repository_model_load_request__descriptor, bytes, count, error));
    const Inference__RepositoryModelLoadRequest *request = (const Inference__RepositoryModelLoadRequest *)message;
    out->version[0] = '\0';
    KN_TRY(copy_name(out->name, sizeof out->name, "model_name", request->model_name, error));
    for (size_t i = 0; i < request->n_parameters; i++)
        KN_TRY(kn_kserve_check_change(request->parameters[i]->key, error));
fail:
    kn_proto_free(&message);
    return st;
}

/* ---- descriptions ---- */

void kn_kserve_proto_boolean(kn_text *out, bool value)
{
    Inference__ServerLiveResponse response = INFERENCE__SERVER_LIVE_RESPONSE__INIT;
    response.live = value;
    kn_proto_write(out, &response.base);
}

void kn_kserve_proto_server(kn_text *out)
{
    size_t count;
    char *extensions[KN_KSERVE_INPUTS_MAX];
    const char *const *names = kn_kserve_extensions(&count);
    Inference__ServerMetadataResponse response = INFERENCE__SERVER_METADATA_RESPONSE__INIT;
    for (size_t i = 0; i < count && i < KN_KSERVE_INPUTS_MAX; i++) extensions[i] = plain(names[i]);
    response.name = plain("kinora");
    response.version = plain(KN_VERSION);
    response.n_extensions = count;
    response.extensions = extensions;
    kn_proto_write(out, &response.base);
}

typedef Inference__ModelMetadataResponse__TensorMetadata tensor_metadata;

static void describe_tensors(tensor_metadata *tensors, tensor_metadata **list, const kn_kserve_spec *specs,
                             size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tensors[i] = (tensor_metadata)INFERENCE__MODEL_METADATA_RESPONSE__TENSOR_METADATA__INIT;
        tensors[i].name = plain(specs[i].name);
        tensors[i].datatype = plain(kn_kserve_type_name(specs[i].type));
        tensors[i].n_shape = (size_t)specs[i].rank;
        tensors[i].shape = (int64_t *)(uintptr_t)specs[i].shape;
        list[i] = &tensors[i];
    }
}

void kn_kserve_proto_metadata(kn_text *out, const kn_kserve_model *model)
{
    size_t count;
    const kn_kserve_spec *specs = kn_kserve_inputs(&count);
    tensor_metadata inputs[KN_KSERVE_INPUTS_MAX], *input_list[KN_KSERVE_INPUTS_MAX];
    tensor_metadata outputs[KN_KSERVE_OUTPUTS], *output_list[KN_KSERVE_OUTPUTS];
    char *versions[] = {plain(KN_KSERVE_VERSION)};
    Inference__ModelMetadataResponse response = INFERENCE__MODEL_METADATA_RESPONSE__INIT;
    describe_tensors(inputs, input_list, specs, count);
    describe_tensors(outputs, output_list, kn_kserve_outputs(), KN_KSERVE_OUTPUTS);
    response.name = plain(model->name);
    response.platform = plain(KN_KSERVE_PLATFORM);
    response.n_versions = 1;
    response.versions = versions;
    response.n_inputs = count;
    response.inputs = input_list;
    response.n_outputs = KN_KSERVE_OUTPUTS;
    response.outputs = output_list;
    kn_proto_write(out, &response.base);
}

static size_t describe_inputs(Inference__ModelInput *inputs, Inference__ModelInput **list)
{
    size_t count;
    const kn_kserve_spec *specs = kn_kserve_inputs(&count);
    for (size_t i = 0; i < count; i++) {
        inputs[i] = (Inference__ModelInput)INFERENCE__MODEL_INPUT__INIT;
        inputs[i].name = plain(specs[i].name);
        inputs[i].data_type = (Inference__DataType)specs[i].type;
        inputs[i].n_dims = (size_t)specs[i].rank;
        inputs[i].dims = (int64_t *)(uintptr_t)specs[i].shape;
        inputs[i].optional = specs[i].optional;
        list[i] = &inputs[i];
    }
    return count;
}

static void describe_outputs(Inference__ModelOutput *outputs, Inference__ModelOutput **list)
{
    const kn_kserve_spec *specs = kn_kserve_outputs();
    for (size_t i = 0; i < KN_KSERVE_OUTPUTS; i++) {
        outputs[i] = (Inference__ModelOutput)INFERENCE__MODEL_OUTPUT__INIT;
        outputs[i].name = plain(specs[i].name);
        outputs[i].data_type = (Inference__DataType)specs[i].type;
        outputs[i].n_dims = (size_t)specs[i].rank;
        outputs[i].dims = (int64_t *)(uintptr_t)specs[i].shape;
        list[i] = &outputs[i];
    }
}

typedef Inference__ModelConfig__ParametersEntry config_entry;

void kn_kserve_proto_config(kn_text *out, const kn_kserve_model *model)
{
    Inference__ModelInput inputs[KN_KSERVE_INPUTS_MAX], *input_list[KN_KSERVE_INPUTS_MAX];
    Inference__ModelOutput outputs[KN_KSERVE_OUTPUTS], *output_list[KN_KSERVE_OUTPUTS];
    kn_kserve_setting settings[KN_KSERVE_SETTINGS_MAX];
    Inference__ModelParameter values[KN_KSERVE_SETTINGS_MAX];
    config_entry entries[KN_KSERVE_SETTINGS_MAX], *entry_list[KN_KSERVE_SETTINGS_MAX];
    Inference__ModelConfig config = INFERENCE__MODEL_CONFIG__INIT;
    Inference__ModelVersionPolicy policy = INFERENCE__MODEL_VERSION_POLICY__INIT;
    Inference__ModelVersionPolicy__Latest latest = INFERENCE__MODEL_VERSION_POLICY__LATEST__INIT;
    Inference__ModelTransactionPolicy transactions = INFERENCE__MODEL_TRANSACTION_POLICY__INIT;
    Inference__ModelConfigResponse response = INFERENCE__MODEL_CONFIG_RESPONSE__INIT;
    latest.num_versions = 1;
    policy.policy_choice_case = INFERENCE__MODEL_VERSION_POLICY__POLICY_CHOICE_LATEST;
    policy.latest = &latest;
    transactions.decoupled = true;
    config.name = plain(model->name);
    config.backend = plain(KN_KSERVE_PLATFORM);
    config.version_policy = &policy;
    config.model_transaction_policy = &transactions;
    config.n_input = describe_inputs(inputs, input_list);
    config.input = input_list;
    describe_outputs(outputs, output_list);
    config.n_output = KN_KSERVE_OUTPUTS;
    config.output = output_list;
    config.n_parameters = kn_kserve_settings(settings, model);
    config.parameters = entry_list;
    for (size_t i = 0; i < config.n_parameters; i++) {
        values[i] = (Inference__ModelParameter)INFERENCE__MODEL_PARAMETER__INIT;
        values[i].string_value = settings[i].value;
        entries[i] = (config_entry)INFERENCE__MODEL_CONFIG__PARAMETERS_ENTRY__INIT;
        entries[i].key = plain(settings[i].key);
        entries[i].value = &values[i];
        entry_list[i] = &entries[i];
    }
    response.config = &config;
    kn_proto_write(out, &response.base);
}

/* ---- statistics and repository ---- */

static Inference__StatisticDuration *duration(Inference__StatisticDuration *out, kn_kserve_duration from)
{
    *out = (Inference__StatisticDuration)INFERENCE__STATISTIC_DURATION__INIT;
    out->count = from.count;
    out->ns = from.ns;
    return out;
}

static void write_statistics(kn_text *out, const kn_kserve_model *model, const kn_kserve_counts *c)
{
    Inference__StatisticDuration d[8];
    Inference__InferStatistics all = INFERENCE__INFER_STATISTICS__INIT;
    Inference__InferBatchStatistics batch = INFERENCE__INFER_BATCH_STATISTICS__INIT, *batches[] = {&batch};
    Inference__ModelStatistics stats = INFERENCE__MODEL_STATISTICS__INIT;
    all.success = duration(&d[0], c->success);
    all.fail = duration(&d[1], c->fail);
    all.queue = duration(&d[2], c->queue);
    all.compute_input = batch.compute_input = duration(&d[3], c->text);
    all.compute_infer = batch.compute_infer = duration(&d[4], c->denoise);
    all.compute_output = batch.compute_output = duration(&d[5], c->decode);
    all.cache_hit = duration(&d[6], (kn_kserve_duration){0});
    all.cache_miss = duration(&d[7], (kn_kserve_duration){0});
    batch.batch_size = 1;
    stats.name = plain(model->name);
    stats.version = plain(KN_KSERVE_VERSION);
    stats.last_inference = c->last_ms;
    stats.inference_count = stats.execution_count = c->success.count;
    stats.inference_stats = &all;
    stats.n_batch_stats = c->success.count > 0;
    stats.batch_stats = batches;
    kn_proto_write_length(out, 1, protobuf_c_message_get_packed_size(&stats.base));
    kn_proto_write(out, &stats.base);
}

void kn_kserve_proto_statistics(kn_text *out, const kn_kserve_model *models, const kn_kserve_counts *counts,
                                size_t count)
{
    for (size_t i = 0; i < count; i++) write_statistics(out, &models[i], &counts[i]);
}

void kn_kserve_proto_index(kn_text *out, const kn_kserve_model *models, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        Inference__RepositoryIndexResponse__ModelIndex entry = INFERENCE__REPOSITORY_INDEX_RESPONSE__MODEL_INDEX__INIT;
        entry.name = plain(models[i].name);
        entry.version = plain(KN_KSERVE_VERSION);
        entry.state = plain(models[i].ready ? "READY" : "UNAVAILABLE");
        entry.reason = plain(models[i].reason);
        kn_proto_write_length(out, 1, protobuf_c_message_get_packed_size(&entry.base));
        kn_proto_write(out, &entry.base);
    }
}

/* ---- answers ---- */

enum { RAW_OUTPUT_CONTENTS = 6, STREAM_INFER_RESPONSE = 2 }; /* field numbers */

static void little_endian(unsigned char *out, uint32_t value)
{
    for (int i = 0; i < 4; i++) out[i] = (unsigned char)(value >> 8 * i);
}

/* The raw form of an output that is no file. */
static ProtobufCBinaryData raw_of(const kn_kserve_answer *a, kn_kserve_output output, unsigned char *storage)
{
    const char *text = output == KN_KSERVE_VIDEO_ID ? a->video_id : a->status;
    if (output == KN_KSERVE_PROGRESS) {
        little_endian(storage, (uint32_t)a->progress);
        return (ProtobufCBinaryData){.len = 4, .data = storage};
    }
    little_endian(storage, (uint32_t)strlen(text));
    memcpy(storage + 4, text, strlen(text));
    return (ProtobufCBinaryData){.len = 4 + strlen(text), .data = storage};
}

static output_tensor *describe_output(output_tensor *out, kn_kserve_output output)
{
    const kn_kserve_spec *spec = &kn_kserve_outputs()[output];
    *out = (output_tensor)INFERENCE__MODEL_INFER_RESPONSE__INFER_OUTPUT_TENSOR__INIT;
    out->name = plain(spec->name);
    out->datatype = plain(kn_kserve_type_name(spec->type));
    out->n_shape = (size_t)spec->rank;
    out->shape = (int64_t *)(uintptr_t)spec->shape;
    return out;
}

/* The message without its file. */
static void write_answer(kn_text *out, const kn_kserve_answer *a)
{
    enum { STORAGE = 4 + KN_KSERVE_ID_BYTES_MAX };
    unsigned char storage[KN_KSERVE_OUTPUTS][STORAGE];
    output_tensor outputs[KN_KSERVE_OUTPUTS], *list[KN_KSERVE_OUTPUTS];
    ProtobufCBinaryData raw[KN_KSERVE_OUTPUTS];
    parameter final = INFERENCE__INFER_PARAMETER__INIT;
    Inference__ModelInferResponse__ParametersEntry entry = INFERENCE__MODEL_INFER_RESPONSE__PARAMETERS_ENTRY__INIT;
    Inference__ModelInferResponse__ParametersEntry *entries[] = {&entry};
    infer_response response = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    const kn_kserve_output file = kn_kserve_file_of(a->outputs);
    response.model_name = plain(a->model);
    response.model_version = plain(KN_KSERVE_VERSION);
    response.id = plain(a->id);
    for (int32_t i = 0; i < KN_KSERVE_OUTPUTS; i++) {
        if (!(a->outputs >> i & 1) || i == (int32_t)file) continue;
        raw[response.n_raw_output_contents] = raw_of(a, (kn_kserve_output)i, storage[i]);
        list[response.n_raw_output_contents++] = describe_output(&outputs[i], (kn_kserve_output)i);
    }
    response.n_outputs = response.n_raw_output_contents;
    if (file != KN_KSERVE_OUTPUTS) list[response.n_outputs++] = describe_output(&outputs[file], file);
    response.outputs = list;
    response.raw_output_contents = raw;
    if (a->streamed) {
        final.parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
        final.bool_param = a->last;
        entry.key = plain("triton_final_response");
        entry.value = &final;
        response.n_parameters = 1;
        response.parameters = entries;
    }
    kn_proto_write(out, &response.base);
}

void kn_kserve_proto_answer(kn_text *out, const kn_kserve_answer *a, uint64_t file_bytes)
{
    unsigned char length[4];
    kn_text inner = kn_text_growing(8192);
    const kn_kserve_output file = kn_kserve_file_of(a->outputs);
    write_answer(&inner, a);
    if (file != KN_KSERVE_OUTPUTS) {
        little_endian(length, (uint32_t)file_bytes); /* BYTES have their length in front */
        kn_proto_write_length(&inner, RAW_OUTPUT_CONTENTS, sizeof length + file_bytes);
        kn_text_append(&inner, length, sizeof length);
    }
    if (a->streamed) kn_proto_write_length(out, STREAM_INFER_RESPONSE, inner.count + file_bytes);
    kn_text_append(out, inner.bytes ? inner.bytes : "", inner.count);
    if (kn_text_status(&inner) != KN_OK && out->status == KN_OK) out->status = kn_text_status(&inner);
    kn_text_release(&inner);
}

void kn_kserve_proto_stream_error(kn_text *out, const char *model, const char *id, const kn_api_error *error)
{
    Inference__ModelStreamInferResponse response = INFERENCE__MODEL_STREAM_INFER_RESPONSE__INIT;
    infer_response inner = INFERENCE__MODEL_INFER_RESPONSE__INIT;
    parameter final = INFERENCE__INFER_PARAMETER__INIT;
    Inference__ModelInferResponse__ParametersEntry entry = INFERENCE__MODEL_INFER_RESPONSE__PARAMETERS_ENTRY__INIT;
    Inference__ModelInferResponse__ParametersEntry *entries[] = {&entry};
    final.parameter_choice_case = INFERENCE__INFER_PARAMETER__PARAMETER_CHOICE_BOOL_PARAM;
    final.bool_param = true;
    entry.key = plain("triton_final_response");
    entry.value = &final;
    inner.model_name = plain(model);
    inner.id = plain(id);
    inner.n_parameters = 1;
    inner.parameters = entries;
    response.error_message = plain(error->message);
    response.infer_response = &inner;
    kn_proto_write(out, &response.base);
}
