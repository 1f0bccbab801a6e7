/* SPDX-License-Identifier: Apache-2.0 */
#include "server/health.h"

#include <string.h>

#include "base/mem.h"
#include <health.pb-c.h>
#include "server/proto.h"

/* One who watches. */
typedef struct kn_health_watch {
    kn_server *server;
    kn_grpc_call *call;
    bool known; /* the service is one of this server's */
    int told;   /* the status sent last; -1: none */
    struct kn_health_watch *next, *previous;
} kn_health_watch;

/* "" is the server as a whole; its services are there as long as it is. */
static bool known(const kn_grpc_server *grpc, const char *service)
{
    if (!service[0]) return true;
    for (size_t i = 0; i < kn_grpc_service_count(grpc); i++)
        if (strcmp(kn_grpc_service_at(grpc, i)->name, service) == 0) return true;
    return false;
}

static int status_of(const kn_server *s)
{
    char why[128];
    return kn_server_ready(s, why, sizeof why) ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                                               : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

static kn_text write_status(char *storage, size_t bytes, int status)
{
    kn_text text = kn_text_fixed(storage, bytes);
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    kn_proto_write(&text, &response.base);
    return text;
}

/* False: the call has been told what is wrong. */
static bool read_request(kn_grpc_call *call, const void *bytes, size_t count, bool *is_known, char *name, size_t room)
{
    ProtobufCMessage *message;
    kn_api_error error;
    if (kn_proto_read(&message, &grpc__health__v1__health_check_request__descriptor, bytes, count, &error) != KN_OK) {
        kn_grpc_fail(call, &error);
        return false;
    }
    const char *service = ((Grpc__Health__V1__HealthCheckRequest *)message)->service;
    *is_known = known(kn_grpc_call_server(call), service);
    snprintf(name, room, "%s", service);
    kn_proto_free(&message);
    return true;
}

static void on_check(kn_grpc_call *call, const void *bytes, size_t count)
{
    bool is_known;
    char storage[16], name[64], words[128];
    if (!read_request(call, bytes, count, &is_known, name, sizeof name)) return;
    if (is_known) {
        const kn_text text = write_status(storage, sizeof storage, status_of(kn_grpc_context(call)));
        kn_grpc_reply(call, text.bytes, text.count);
    } else {
        snprintf(words, sizeof words, "There is no service '%s' here.", name);
        kn_grpc_finish(call, KN_GRPC_NOT_FOUND, words);
    }
}

/* ---- watching ---- */

static void forget(kn_health_watch *watch)
{
    kn_server *s = watch->server;
    if (watch->next) watch->next->previous = watch->previous;
    *(watch->previous ? &watch->previous->next : &s->health_watches) = watch->next;
    kn_free(watch);
}

static void tell(kn_health_watch *watch, int status)
{
    char storage[16];
    if (!watch->known) status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
    if (status == watch->told) return;
    const kn_text text = write_status(storage, sizeof storage, status);
    if (kn_grpc_send(watch->call, text.bytes, text.count) == KN_OK) watch->told = status; /* else the next time */
}

static void on_watch(kn_grpc_call *call, const void *bytes, size_t count)
{
    bool is_known;
    char name[64];
    kn_server *s = kn_grpc_context(call);
    if (!read_request(call, bytes, count, &is_known, name, sizeof name)) return;
    kn_health_watch *watch = s->draining ? NULL : kn_alloc(sizeof *watch);
    if (!watch) {
        kn_grpc_finish(call, KN_GRPC_UNAVAILABLE, s->draining ? "This server is being shut down." : "No memory.");
        return;
    }
    *watch = (kn_health_watch){.server = s, .call = call, .known = is_known, .told = -1, .next = s->health_watches};
    if (watch->next) watch->next->previous = watch;
    s->health_watches = watch;
    kn_grpc_set_user(call, watch);
    tell(watch, status_of(s));
}

static void on_watch_closed(kn_grpc_call *call)
{
    kn_health_watch *watch = kn_grpc_user(call);
    if (watch) forget(watch);
}

void kn_health_tell(kn_server *s)
{
    const int status = s->health_watches ? status_of(s) : 0;
    for (kn_health_watch *watch = s->health_watches; watch; watch = watch->next) tell(watch, status);
}

void kn_health_end(kn_server *s)
{
    kn_health_tell(s);
    for (kn_health_watch *watch = s->health_watches, *next; watch; watch = next) {
        next = watch->next;
        kn_grpc_call *call = watch->call;
        forget(watch);
        kn_grpc_finish(call, KN_GRPC_UNAVAILABLE, "This server is being shut down.");
    }
}

static const kn_grpc_method methods[] = {
    {.name = "Check", .message_bytes = 1024, .message = on_check},
    {.name = "Watch", .message_bytes = 1024, .server_streams = true, .message = on_watch, .closed = on_watch_closed},
};

const kn_grpc_service kn_health_service = {
    .name = "grpc.health.v1.Health", .methods = methods, .method_count = sizeof methods / sizeof *methods};
