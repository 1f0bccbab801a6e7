/* SPDX-License-Identifier: Apache-2.0
 *
 * What a request's header section says: a call of a method, a probe over plain HTTP/2, or neither. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "server/grpc_internal.h"

typedef struct request {
    const kn_h2_field *path, *method, *content_type, *timeout, *encoding, *accept, *authorization, *authority;
    size_t kept; /* bytes of the metadata that is kept */
} request;

/* Fields that are the transport's, and where they go. */
static const struct {
    const char *name;
    size_t offset;
} known[] = {
    {":path", offsetof(request, path)},
    {":method", offsetof(request, method)},
    {"content-type", offsetof(request, content_type)},
    {"grpc-timeout", offsetof(request, timeout)},
    {"grpc-encoding", offsetof(request, encoding)},
    {"grpc-accept-encoding", offsetof(request, accept)},
    {"authorization", offsetof(request, authorization)},
    {":authority", offsetof(request, authority)},
};

static bool is_kept(const char *name)
{
    static const char *const dropped[] = {"te",           "user-agent",   "accept-encoding", "host", "content-length",
                                          "content-type", "authorization"};
    if (name[0] == ':' || strncmp(name, "grpc-", 5) == 0) return false;
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        if (strcmp(name, dropped[i]) == 0) return false;
    return true;
}

static void sort_fields(request *r, const kn_h2_head *head)
{
    for (size_t i = 0; i < head->count; i++) {
        const kn_h2_field *field = &head->fields[i];
        if (is_kept(field->name)) {
            r->kept += field->name_bytes + field->value_bytes + 2;
            continue;
        }
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
            const kn_h2_field **slot = (const kn_h2_field **)(void *)((char *)r + known[k].offset);
            if (!*slot && strcmp(field->name, known[k].name) == 0) *slot = field;
        }
    }
}

/* A reply that is no gRPC. */
static void answer(kn_h2_stream *stream, int status, const char *body, bool with_body)
{
    char number[12];
    const size_t count = body ? strlen(body) : 0;
    const kn_h2_field fields[] = {{":status", number, 7, 3, true}, {"content-type", "application/json", 12, 16, false}};
    snprintf(number, sizeof number, "%d", status);
    kn_h2_respond(stream, fields, count > 0 ? 2 : 1, count == 0 || !with_body);
    if (count == 0 || !with_body) return;
    kn_h2_write(stream, "", 0, body, count, NULL, NULL);
    kn_h2_trailers(stream, NULL, 0);
}

/* GET and HEAD: probes and nothing else. */
static void probe(kn_grpc_server *s, kn_h2_stream *stream, const request *r)
{
    const char *body = NULL;
    const bool get = strcmp(r->method->value, "GET") == 0, head = strcmp(r->method->value, "HEAD") == 0;
    int status = 405;
    if (get || head) status = s->params.probe ? s->params.probe(s->params.context, r->path->value, &body) : 0;
    answer(stream, status > 0 ? status : 404, body, get);
}

static const char *known_type(const char *type)
{
    static const char *const types[] = {"application/grpc", "application/grpc+flatbuffers", "application/grpc+proto"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(type, types[i]) == 0) return types[i];
    return types[0];
}

static kn_status keep_metadata(kn_grpc_call *call, const kn_h2_head *head, size_t bytes)
{
    kn_grpc_connection *c = call->connection;
    if (bytes == 0) return KN_OK;
    if (c->kept_bytes + bytes + 1 > KN_GRPC_KEPT_BYTES) return KN_NOMEM;
    char *at = call->metadata = kn_alloc(bytes + 1);
    if (!at) return KN_NOMEM;
    call->metadata_bytes = bytes + 1;
    c->kept_bytes += bytes + 1;
    for (size_t i = 0; i < head->count; i++) {
        const kn_h2_field *field = &head->fields[i];
        if (!is_kept(field->name)) continue;
        memcpy(at, field->name, field->name_bytes + 1);
        at += field->name_bytes + 1;
        memcpy(at, field->value, field->value_bytes + 1);
        at += field->value_bytes + 1;
    }
    return KN_OK;
}

/* Lets the caller in; the principal is shared with the call before, where it is the same. */
static bool admit(kn_grpc_call *call, const request *r)
{
    kn_grpc_connection *c = call->connection;
    kn_grpc_server *s = c->server;
    kn_principal principal = {.scopes = KN_SCOPES_ALL, .priorities = UINT32_MAX, .tenant = "default"};
    kn_api_error error;
    if (s->params.admit &&
        !s->params.admit(s->params.context, call->method, r->authorization ? r->authorization->value : NULL,
                         r->authority ? r->authority->value : "", &principal, &error)) {
        kn_grpc_fail(call, &error);
        return false;
    }
    if (!c->caller || memcmp(&c->caller->principal, &principal, sizeof principal) != 0) {
        kn_grpc_caller *fresh = kn_alloc(sizeof *fresh);
        if (!fresh) {
            kn_grpc_call_refuse(call, KN_GRPC_RESOURCE_EXHAUSTED, "the server is out of memory");
            return false;
        }
        fresh->principal = principal;
        fresh->references = 1;
        if (c->caller && --c->caller->references == 0) kn_free(c->caller);
        c->caller = fresh;
    }
    call->caller = c->caller;
    call->caller->references++;
    return true;
}

static void begin_call(kn_grpc_call *call, const request *r, const kn_h2_head *head)
{
    kn_grpc_server *s = call->connection->server;
    int64_t timeout_ns = 0;
    const char *encoding = r->encoding ? r->encoding->value : NULL;
    const kn_grpc_entry *entry = kn_grpc_find(s, r->path->value, r->path->value_bytes);
    call->content_type = known_type(r->content_type->value);
    if (!entry) {
        kn_grpc_call_refuse(call, KN_GRPC_UNIMPLEMENTED, "there is no such method");
        return;
    }
    call->method = entry->method;
    call->path = entry->path;
    call->reader.limit = entry->method->message_bytes ? entry->method->message_bytes : KN_GRPC_MESSAGE_BYTES_MAX;
    call->reader.encoding = kn_grpc_encoding_of(encoding);
    call->gzip_accepted = kn_grpc_accepts_gzip(r->accept ? r->accept->value : NULL);
    if (call->reader.encoding == KN_GRPC_OTHER) {
        kn_grpc_call_refuse(call, KN_GRPC_UNIMPLEMENTED, "grpc-encoding must be identity, gzip or deflate");
    } else if (r->timeout && kn_grpc_parse_timeout(&timeout_ns, r->timeout->value) != KN_OK) {
        kn_grpc_call_refuse(call, KN_GRPC_INTERNAL, kn_fail_message());
    } else if (r->timeout && timeout_ns == 0) {
        kn_grpc_call_refuse(call, KN_GRPC_DEADLINE_EXCEEDED, "the deadline had passed when the call came");
    } else if (keep_metadata(call, head, r->kept) != KN_OK) {
        kn_grpc_call_refuse(call, KN_GRPC_RESOURCE_EXHAUSTED, "this connection's calls have too much metadata");
    } else if (admit(call, r)) {
        call->deadline_ns = r->timeout ? call->started_ns + timeout_ns : 0;
        kn_grpc_call_begin(call, head->end);
    }
}

void kn_grpc_on_request(kn_h2_stream *stream, const kn_h2_head *head, void *context)
{
    kn_grpc_connection *c = context;
    request r = {0};
    if (c->stuck >= KN_GRPC_STUCK_MAX) {
        kn_h2_reset(stream, KN_H2_REFUSED_STREAM);
        return;
    }
    sort_fields(&r, head);
    if (!r.path || !r.method) { /* nghttp2 insists on both; they were beyond the limit */
        answer(stream, 431, NULL, false);
        return;
    }
    if (strcmp(r.method->value, "POST") != 0) {
        probe(c->server, stream, &r);
        return;
    }
    if (!r.content_type || strncmp(r.content_type->value, "application/grpc", 16) != 0) {
        answer(stream, head->oversized ? 431 : 415, NULL, false);
        return;
    }
    kn_grpc_call *call = kn_grpc_call_open(c, stream);
    if (!call)
        kn_h2_reset(stream, KN_H2_REFUSED_STREAM);
    else if (head->oversized)
        kn_grpc_call_refuse(call, KN_GRPC_RESOURCE_EXHAUSTED, "the header section is larger than 16 KiB or 100 fields");
    else
        begin_call(call, &r, head);
}
