/* SPDX-License-Identifier: Apache-2.0
 *
 * The gRPC front: which services there are, who is let in, and its listeners. Its ports speak HTTP/1.1 too, with the
 * whole API, so that one port is enough where only one can be opened. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/front.h"
#include "server/health.h"
#include "server/kserve_grpc.h"
#include "server/reflection.h"
#include "server/references.h"
#include "server/rpc_service.h"

/* ---- services: each is a table in a file of its own; ended by NULL ---- */

static const kn_grpc_service *const services[] = {
    &kn_rpc_videos_service,
    &kn_rpc_admin_service,
    &kn_inference_service,
    &kn_health_service,
    &kn_reflection_service,
    &kn_reflection_alpha_service,
    NULL, /* the end */
};

static size_t service_count(void)
{
    size_t count = 0;
    while (services[count]) count++;
    return count;
}

size_t kn_front_methods(char paths[][KN_FRONT_PATH_BYTES], size_t max)
{
    size_t count = 0;
    for (size_t i = 0; services[i]; i++)
        for (size_t m = 0; m < services[i]->method_count && count < max; m++)
            snprintf(paths[count++], KN_FRONT_PATH_BYTES, "/%s/%s", services[i]->name, services[i]->methods[m].name);
    return count;
}

/* ---- who is let in ---- */

static bool admit(void *context, const kn_grpc_method *method, const char *authorization, const char *authority,
                  kn_principal *principal, kn_api_error *error)
{
    kn_server *s = context;
    kn_access access;
    if (method->scope != 0 && s->open && !kn_api_from_here(authority, NULL, error)) return false;
    const bool allowed = kn_api_authorize(s, method->scope, authorization, &access);
    *principal = access.principal;
    if (!allowed) *error = access.error;
    return allowed;
}

static void on_finished(const kn_grpc_record *record, void *context)
{
    const kn_server *s = context;
    kn_metric_observe(s->meters->grpc_call_seconds, (double)record->duration_ns * 1e-9,
                      KN_LABELS(record->path, kn_grpc_code_name(record->code)));
    if (record->received_bytes + record->sent_bytes == 0) return;
    kn_metric_add(s->meters->grpc_message_bytes, (double)record->received_bytes, KN_LABELS("received"));
    kn_metric_add(s->meters->grpc_message_bytes, (double)record->sent_bytes, KN_LABELS("sent"));
}

/* Over HTTP/2 without gRPC only the probes are there: they cost nothing and ask for no key. */
static int probe(void *context, const char *path, const char **body)
{
    const kn_server *s = context;
    char why[128];
    const bool live = strcmp(path, "/livez") == 0 || strcmp(path, "/healthz") == 0;
    const bool v2_live = strcmp(path, "/v2/health/live") == 0, v2_ready = strcmp(path, "/v2/health/ready") == 0;
    if (live || v2_live) {
        if (live) *body = "{\"status\":\"ok\"}";
        return 200;
    }
    if (!v2_ready && strcmp(path, "/readyz") != 0 && strcmp(path, "/health") != 0) return 404;
    const bool ready = kn_server_ready(s, why, sizeof why);
    if (v2_ready) return ready ? 200 : 400;
    *body = ready ? "{\"status\":\"ready\"}" : "{\"status\":\"not_ready\"}";
    return ready ? 200 : 503;
}

/* ---- life ---- */

static bool on_sniff(kn_http_taken *taken, struct bufferevent *stream, void *context)
{
    const kn_server *s = context;
    return kn_grpc_server_take(s->grpc, taken, stream);
}

kn_status kn_front_start(kn_server *s)
{
    kn_status st = KN_OK;
    const kn_server_config *c = s->config;
    kn_http_callbacks callbacks = kn_api_callbacks();
    callbacks.sniff = on_sniff;
    if (c->grpc.count == 0) return KN_OK;
    KN_TRY(kn_references_create(&s->references));
    s->spares = kn_alloc(sizeof *s->spares);
    if (!s->spares) return KN_NOMEM;
    if (c->tls_cert)
        KN_TRY(kn_tls_create(&s->grpc_tls, &(kn_tls_params){.certificate = c->tls_cert,
                                                            .key = c->tls_key,
                                                            .client_ca = c->tls_client_ca,
                                                            .http2 = true}));
    KN_TRY(kn_grpc_server_create(&s->grpc,
                                 &(kn_grpc_params){.base = s->base,
                                                   .turns = s->turns,
                                                   .services = services,
                                                   .service_count = service_count(),
                                                   .limits = {.streams = (int32_t)c->grpc_streams_max,
                                                              .idle_ns = c->grpc_idle_seconds * INT64_C(1000000000),
                                                              .age_ns = c->grpc_age_seconds * INT64_C(1000000000)},
                                                   .admit = admit,
                                                   .finished = on_finished,
                                                   .probe = probe,
                                                   .context = s}));
    KN_TRY(
        kn_http_server_create(&s->grpc_http, &(kn_http_params){.base = s->base,
                                                               .turns = s->turns,
                                                               .listen = (const char *const *)c->grpc.items,
                                                               .listen_count = c->grpc.count,
                                                               .tls = s->grpc_tls,
                                                               .limits = {.connections = (int32_t)c->connections_max},
                                                               .callbacks = callbacks,
                                                               .context = s}));
fail:
    return st;
}

kn_status kn_front_reload(kn_server *s)
{
    return s->grpc_tls ? kn_tls_reload(s->grpc_tls) : KN_OK;
}

void kn_front_drain(kn_server *s)
{
    if (!s->grpc) return;
    kn_health_end(s);
    kn_grpc_server_drain(s->grpc);
    kn_http_server_drain(s->grpc_http, NULL, NULL);
}

int32_t kn_front_connections(const kn_server *s)
{
    return s->grpc_http ? kn_http_server_stats(s->grpc_http).connections : 0;
}

void kn_front_stop(kn_server *s)
{
    kn_grpc_server_destroy(&s->grpc);
    kn_http_server_destroy(&s->grpc_http);
    kn_tls_destroy(&s->grpc_tls);
    kn_references_destroy(&s->references);
    if (s->spares) kn_rpc_spares_release(s->spares);
    kn_free(s->spares);
    kn_rpc_block_unref(s->rpc_event.block);
    s->rpc_event.block = NULL;
}
