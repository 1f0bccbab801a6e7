/* SPDX-License-Identifier: Apache-2.0
 *
 * The methods that describe, and the service's table. What they say is kserve_core.h's; REST says the same. */
#include "server/kserve_grpc.h"

#include "server/api.h"
#include "server/kserve_core.h"
#include "server/kserve_proto.h"

enum { ANSWER_BYTES_MAX = 256 << 10, REQUEST_BYTES_MAX = 16 << 10 };

/* Takes the text. */
static void reply(kn_grpc_call *call, kn_text *text)
{
    kn_api_error error;
    const kn_status st = kn_text_status(text);
    if (st == KN_OK) {
        kn_grpc_reply(call, text->bytes ? text->bytes : "", text->count);
    } else {
        kn_api_from_status(&error, st);
        kn_grpc_fail(call, &error);
    }
    kn_text_release(text);
}

static void reply_boolean(kn_grpc_call *call, bool value)
{
    kn_text text = kn_text_growing(16);
    kn_kserve_proto_boolean(&text, value);
    reply(call, &text);
}

static void on_server_live(kn_grpc_call *call, const void *bytes, size_t count)
{
    (void)bytes, (void)count;
    reply_boolean(call, true);
}

static void on_server_ready(kn_grpc_call *call, const void *bytes, size_t count)
{
    char why[128];
    (void)bytes, (void)count;
    reply_boolean(call, kn_server_ready(kn_grpc_context(call), why, sizeof why));
}

static void on_server_metadata(kn_grpc_call *call, const void *bytes, size_t count)
{
    (void)bytes, (void)count;
    kn_text text = kn_text_growing(4096);
    kn_kserve_proto_server(&text);
    reply(call, &text);
}

/* The model a request names; NULL: the call has been told. */
static kn_catalog_model *model_of(kn_grpc_call *call, const void *bytes, size_t count)
{
    kn_api_error error;
    kn_kserve_name name;
    kn_catalog_model *model;
    kn_status st = kn_kserve_proto_name(&name, bytes, count, &error);
    if (st == KN_OK) st = kn_kserve_find(kn_grpc_context(call), name.name, name.version, &model, &error);
    if (st == KN_OK) return model;
    kn_grpc_fail(call, &error);
    return NULL;
}

static void on_model_ready(kn_grpc_call *call, const void *bytes, size_t count)
{
    const kn_catalog_model *model = model_of(call, bytes, count);
    if (model) reply_boolean(call, kn_kserve_model_ready(kn_grpc_context(call), model));
}

static void describe(kn_grpc_call *call, const void *bytes, size_t count,
                     void (*write)(kn_text *out, const kn_kserve_model *model))
{
    const kn_catalog_model *model = model_of(call, bytes, count);
    if (!model) return;
    const kn_kserve_model described = kn_kserve_model_of(kn_grpc_context(call), model);
    kn_text text = kn_text_growing(ANSWER_BYTES_MAX);
    write(&text, &described);
    reply(call, &text);
}

static void on_model_metadata(kn_grpc_call *call, const void *bytes, size_t count)
{
    describe(call, bytes, count, kn_kserve_proto_metadata);
}

static void on_model_config(kn_grpc_call *call, const void *bytes, size_t count)
{
    describe(call, bytes, count, kn_kserve_proto_config);
}

static void on_model_statistics(kn_grpc_call *call, const void *bytes, size_t count)
{
    kn_api_error error;
    kn_kserve_name name;
    kn_kserve_model models[KN_CATALOG_MODELS_MAX];
    kn_kserve_counts counts[KN_CATALOG_MODELS_MAX];
    size_t found = 0;
    kn_status st = kn_kserve_proto_name(&name, bytes, count, &error);
    if (st == KN_OK)
        st = kn_kserve_read_statistics(kn_grpc_context(call), name.name, name.version, models, counts, &found, &error);
    if (st != KN_OK) {
        kn_grpc_fail(call, &error);
        return;
    }
    kn_text text = kn_text_growing(ANSWER_BYTES_MAX);
    kn_kserve_proto_statistics(&text, models, counts, found);
    reply(call, &text);
}

static void on_index(kn_grpc_call *call, const void *bytes, size_t count)
{
    kn_api_error error;
    bool ready_only;
    kn_kserve_model models[KN_CATALOG_MODELS_MAX];
    if (kn_kserve_proto_index_request(&ready_only, bytes, count, &error) != KN_OK) {
        kn_grpc_fail(call, &error);
        return;
    }
    kn_text text = kn_text_growing(ANSWER_BYTES_MAX);
    kn_kserve_proto_index(&text, models, kn_kserve_list(kn_grpc_context(call), ready_only, models));
    reply(call, &text);
}

static void change_model(kn_grpc_call *call, const void *bytes, size_t count,
                         kn_status (*change)(kn_server *s, const char *name, const char *who, kn_api_error *error))
{
    kn_api_error error;
    kn_kserve_name name;
    kn_status st = kn_kserve_proto_change(&name, bytes, count, &error);
    if (st == KN_OK) st = change(kn_grpc_context(call), name.name, kn_grpc_principal(call)->key_id, &error);
    if (st == KN_OK)
        kn_grpc_reply(call, "", 0);
    else
        kn_grpc_fail(call, &error);
}

static void on_load(kn_grpc_call *call, const void *bytes, size_t count)
{
    change_model(call, bytes, count, kn_kserve_load);
}

static void on_unload(kn_grpc_call *call, const void *bytes, size_t count)
{
    change_model(call, bytes, count, kn_kserve_unload);
}

#define ASK(called, of_scope, function)                                                                                \
    {                                                                                                                  \
        .name = called, .scope = of_scope, .message_bytes = REQUEST_BYTES_MAX, .message = function                     \
    }

static const kn_grpc_method methods[] = {
    ASK("ServerLive", 0, on_server_live),
    ASK("ServerReady", 0, on_server_ready),
    ASK("ModelReady", 0, on_model_ready),
    ASK("ServerMetadata", 0, on_server_metadata),
    ASK("ModelMetadata", KN_SCOPE_READ, on_model_metadata),
    ASK("ModelConfig", KN_SCOPE_READ, on_model_config),
    ASK("ModelStatistics", KN_SCOPE_METRICS, on_model_statistics),
    ASK("RepositoryIndex", KN_SCOPE_READ, on_index),
    ASK("RepositoryModelLoad", KN_SCOPE_ADMIN, on_load),
    ASK("RepositoryModelUnload", KN_SCOPE_ADMIN, on_unload),
    {.name = "ModelInfer",
     .scope = KN_SCOPE_SUBMIT,
     .message_bytes = 1 << 20,
     .message = kn_infer_message,
     .closed = kn_call_closed_grpc},
    {.name = "ModelStreamInfer",
     .scope = KN_SCOPE_SUBMIT,
     .client_streams = true,
     .server_streams = true,
     .message_bytes = 1 << 20,
     .message = kn_infer_stream_message,
     .half_closed = kn_infer_stream_half_closed,
     .writable = kn_infer_stream_writable,
     .closed = kn_infer_stream_closed},
};

const kn_grpc_service kn_inference_service = {
    .name = "inference.GRPCInferenceService", .methods = methods, .method_count = sizeof methods / sizeof *methods};
