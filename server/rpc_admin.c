/* SPDX-License-Identifier: Apache-2.0
 *
 * The Admin service: what an operator asks of a server from afar. Keys are made on the machine itself (kinora key). */
#include "base/log.h"
#include "server/kserve_core.h"
#include "server/rpc_service.h"

static const char *who(const kn_grpc_call *grpc)
{
    return kn_grpc_principal(grpc)->key_id;
}

static void send_statistics(kn_grpc_call *grpc)
{
    kn_server *s = kn_grpc_context(grpc);
    char why[128];
    kn_rpc_block *block = NULL;
    kn_rpc_statistics statistics = {.uptime_seconds = (double)(kn_now_us() - s->started_us) * 1e-6,
                                    .ready = kn_server_ready(s, why, sizeof why),
                                    .reason = why,
                                    .connections = kn_http_server_stats(s->http).connections +
                                                   kn_http_server_stats(s->grpc_http).connections,
                                    .calls = kn_grpc_server_stats(s->grpc).calls,
                                    .watchers = s->streams};
    kn_server_queue_stats(s, &statistics.queue);
    const kn_status st = kn_rpc_write_statistics(&block, &statistics);
    kn_rpc_reply(grpc, st, block);
}

static bool is_empty(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_api_error error;
    if (kn_rpc_read_empty(bytes, count, &error) == KN_OK) return true;
    kn_grpc_fail(grpc, &error);
    return false;
}

static void on_statistics(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    if (is_empty(grpc, bytes, count)) send_statistics(grpc);
}

static void on_drain(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    if (!is_empty(grpc, bytes, count)) return;
    kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("key", who(grpc))), "a drain was asked for over gRPC");
    if (!s->draining) kn_server_drain(s); /* asked twice is not "now": that is for the machine's own operator */
    send_statistics(grpc);
}

static void change_model(kn_grpc_call *grpc, const void *bytes, size_t count,
                         kn_status (*change)(kn_server *s, const char *name, const char *by, kn_api_error *error))
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    char name[KN_MODEL_NAME_BYTES];
    kn_rpc_block *block = NULL;
    kn_status st = kn_rpc_read_model(name, bytes, count, &error);
    if (st == KN_OK) st = change(s, name, who(grpc), &error);
    if (st != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    const kn_catalog_model *model = kn_catalog_find(s->catalog, name);
    const kn_rpc_model answer = {.name = model->name,
                                 .created_at = model->created * 1000000,
                                 .ready = kn_kserve_model_ready(s, model),
                                 .reason = model->offline ? "unloaded" : NULL};
    st = kn_rpc_write_model(&block, &answer);
    kn_rpc_reply(grpc, st, block);
}

static void on_load(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    change_model(grpc, bytes, count, kn_kserve_load);
}

static void on_unload(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    change_model(grpc, bytes, count, kn_kserve_unload);
}

static const kn_grpc_method methods[] = {
    {.name = "Statistics", .scope = KN_SCOPE_ADMIN, .message_bytes = 4096, .message = on_statistics},
    {.name = "Drain", .scope = KN_SCOPE_ADMIN, .message_bytes = 4096, .message = on_drain},
    {.name = "LoadModel", .scope = KN_SCOPE_ADMIN, .message_bytes = 4096, .message = on_load},
    {.name = "UnloadModel", .scope = KN_SCOPE_ADMIN, .message_bytes = 4096, .message = on_unload},
};

const kn_grpc_service kn_rpc_admin_service = {"kinora.v1.Admin", methods, sizeof methods / sizeof *methods};
