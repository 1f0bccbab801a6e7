/* SPDX-License-Identifier: Apache-2.0
 *
 * A call's life, and its replies. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/grpc_internal.h"

enum {
    COMPRESS_BYTES = 2 << 10, /* smaller messages are not worth it */
    COMPRESS_BYTES_MAX = 1 << 20,
    MESSAGE_BYTES = 1200, /* of grpc-message, encoded */
    DETAILS_BYTES = 4 << 10,
};

/* ---- names ---- */

static const char *const code_names[KN_GRPC_CODES] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

const char *kn_grpc_code_name(kn_grpc_code code)
{
    return (unsigned)code < KN_GRPC_CODES ? code_names[code] : "UNKNOWN";
}

kn_grpc_code kn_grpc_code_of(const kn_api_error *error)
{
    switch (error->status) {
    case 401: return KN_GRPC_UNAUTHENTICATED;
    case 403: return KN_GRPC_PERMISSION_DENIED;
    case 404: return KN_GRPC_NOT_FOUND;
    case 405: return KN_GRPC_UNIMPLEMENTED;
    case 408: return KN_GRPC_DEADLINE_EXCEEDED;
    case 409: /* another state, or an idempotency key that came with another request */
        return strcmp(error->code, "idempotency_key_reused") == 0 ? KN_GRPC_ALREADY_EXISTS
                                                                  : KN_GRPC_FAILED_PRECONDITION;
    case 410: return KN_GRPC_NOT_FOUND;
    case 413:
    case 429: return KN_GRPC_RESOURCE_EXHAUSTED;
    case 416: return KN_GRPC_OUT_OF_RANGE;
    case 503: return KN_GRPC_UNAVAILABLE;
    case 504: return KN_GRPC_DEADLINE_EXCEEDED;
    default: return error->status >= 500 ? KN_GRPC_INTERNAL : KN_GRPC_INVALID_ARGUMENT;
    }
}

/* ---- life ---- */

kn_grpc_call *kn_grpc_call_open(kn_grpc_connection *c, kn_h2_stream *stream)
{
    kn_grpc_call *call = kn_alloc(sizeof *call);
    if (!call) return NULL;
    call->connection = c;
    call->stream = stream;
    call->path = "";
    call->content_type = "application/grpc";
    call->started_ns = c->server->now_ns;
    call->reader.memory = &c->server->memory;
    call->code = KN_GRPC_CANCELLED;
    kn_h2_stream_set_user(stream, call);
    LIST_INSERT_HEAD(&c->calls, call, next);
    c->server->stats.calls++;
    c->server->stats.started++;
    return call;
}

static void free_call(kn_grpc_call *call)
{
    kn_grpc_connection *c = call->connection;
    kn_grpc_server *s = c->server;
    if (s->params.finished && call->method) {
        const kn_grpc_record record = {.path = call->path,
                                       .code = call->code,
                                       .duration_ns = s->now_ns - call->started_ns,
                                       .received_bytes = call->received_bytes,
                                       .sent_bytes = call->sent_bytes};
        s->params.finished(&record, s->params.context);
    }
    LIST_REMOVE(call, next);
    s->stats.calls--;
    c->busy_ns = s->now_ns;
    c->kept_bytes -= call->metadata_bytes;
    if (call->caller && --call->caller->references == 0) kn_free(call->caller);
    kn_grpc_reader_release(&call->reader);
    kn_free(call->held);
    kn_free(call->metadata);
    kn_free(call->trailers);
    kn_free(call);
}

/* A service has it from now on; and no more. */
static void mark_told(kn_grpc_call *call)
{
    if (!call->told && !call->over) call->connection->served++;
    call->told = true;
}

static void mark_over(kn_grpc_call *call)
{
    if (call->told && !call->over) call->connection->served--;
    call->over = true;
}

/* The service hears that it is over, and lets go. */
static void tell_closed(kn_grpc_call *call, kn_grpc_code code)
{
    if (call->over) return;
    call->code = code;
    if (call->told && call->method->closed) call->method->closed(call);
    mark_over(call);
}

void kn_grpc_on_closed(kn_h2_stream *stream, uint32_t error, void *context)
{
    kn_grpc_call *call = kn_h2_stream_user(stream);
    kn_standing *standing = &((kn_grpc_connection *)context)->standing;
    if (!call) {
        if (error == KN_H2_NO_ERROR) kn_standing_finish(standing, KN_STANDING_PROBE_NS);
        return;
    }
    tell_closed(call,
                call->connection->server->draining && call->connection->dead ? KN_GRPC_UNAVAILABLE : KN_GRPC_CANCELLED);
    if (error == KN_H2_NO_ERROR && call->code == KN_GRPC_OK) kn_standing_finish(standing, KN_STANDING_CALL_NS);
    free_call(call);
}

static void fill(kn_h2_field *out, const char *name, const char *value, bool copy)
{
    *out = (kn_h2_field){name, value, strlen(name), strlen(value), copy};
}

/* The reply's head, without a status yet. */
static void respond(kn_grpc_call *call)
{
    kn_h2_field fields[5];
    size_t count = 0;
    if (call->responded) return;
    call->responded = true;
    fill(&fields[count++], ":status", "200", false);
    fill(&fields[count++], "content-type", call->content_type, false);
    if (call->gzip) fill(&fields[count++], "grpc-encoding", "gzip", false);
    fill(&fields[count++], "grpc-accept-encoding", "identity, deflate, gzip", false);
    kn_h2_respond(call->stream, fields, count, false);
}

static size_t add_trailers(const kn_grpc_call *call, kn_h2_field *fields, size_t count)
{
    const char *at = call->trailers;
    for (int32_t i = 0; i < call->trailer_count; i++) {
        const char *value = at + strlen(at) + 1;
        fill(&fields[count++], at, value, true);
        at = value + strlen(value) + 1;
    }
    return count;
}

/* Trailers, or where nothing was said before the head and trailers in one. */
static void conclude(kn_grpc_call *call, kn_grpc_code code, const char *message)
{
    char number[12], storage[MESSAGE_BYTES];
    kn_h2_field fields[4 + KN_GRPC_TRAILERS_MAX + 1];
    size_t count = 0;
    kn_text text = kn_text_fixed(storage, sizeof storage);
    const bool alone = !call->responded;
    mark_over(call);
    call->code = code;
    snprintf(number, sizeof number, "%d", code);
    if (alone) {
        fill(&fields[count++], ":status", "200", false);
        fill(&fields[count++], "content-type", call->content_type, false);
        fill(&fields[count++], "grpc-accept-encoding", "identity, deflate, gzip", false);
    }
    fill(&fields[count++], "grpc-status", number, true);
    if (message && message[0] && code != KN_GRPC_OK) {
        kn_grpc_percent_encode(&text, message);
        fill(&fields[count++], "grpc-message", text.bytes, true);
    }
    count = add_trailers(call, fields, count);
    if (alone)
        kn_h2_respond(call->stream, fields, count, true);
    else
        kn_h2_trailers(call->stream, fields, count);
    kn_grpc_schedule(call->connection);
}

void kn_grpc_call_refuse(kn_grpc_call *call, kn_grpc_code code, const char *message)
{
    conclude(call, code, message);
}

void kn_grpc_call_end(kn_grpc_call *call, kn_grpc_code code, const char *message)
{
    const bool over = call->over;
    tell_closed(call, code);
    if (!over) conclude(call, code, message);
}

/* ---- requests ---- */

/* The service's callbacks end a call as they please; what follows looks at `over`. */
static void hand_message(kn_grpc_call *call, const uint8_t *bytes, size_t count)
{
    mark_told(call);
    call->running = true;
    call->received_bytes += count;
    call->method->message(call, bytes, count);
    call->running = false;
}

static void hand_end(kn_grpc_call *call)
{
    const kn_grpc_method *method = call->method;
    if (!method->client_streams) {
        if (call->has_request) {
            call->has_request = false;
            hand_message(call, call->request, call->request_bytes);
            kn_grpc_reader_trim(&call->reader);
        } else {
            kn_grpc_call_end(call, KN_GRPC_UNIMPLEMENTED, "this method takes exactly one message");
        }
    } else if (method->half_closed) {
        mark_told(call);
        call->running = true;
        method->half_closed(call);
        call->running = false;
    }
}

/* False: the call has ended, or no more is to be read. */
static bool take_message(kn_grpc_call *call, const uint8_t *message, size_t count)
{
    if (call->method->client_streams) {
        hand_message(call, message, count);
        return !call->over && !call->paused;
    }
    if (call->has_request) {
        kn_grpc_call_end(call, KN_GRPC_UNIMPLEMENTED, "this method takes exactly one message");
        return false;
    }
    call->has_request = true;
    call->request = message;
    call->request_bytes = count;
    return true;
}

/* Reads what it may; returns how many bytes were used. */
static size_t feed(kn_grpc_call *call, const uint8_t *bytes, size_t count)
{
    kn_grpc_refusal refusal;
    const uint8_t *at = bytes, *message;
    size_t left = count, message_bytes;
    while (!call->over && !call->paused && (left > 0)) {
        if (call->has_request) { /* its bytes stay where they are until the end, so nothing may follow */
            take_message(call, NULL, 0);
            break;
        }
        const kn_status st = kn_grpc_read(&call->reader, &at, &left, &message, &message_bytes, &refusal);
        if (st == KN_AGAIN) break;
        if (st != KN_OK)
            kn_grpc_call_end(call, refusal.code, refusal.message);
        else
            take_message(call, message, message_bytes);
    }
    if (call->method->client_streams && !call->over) kn_grpc_reader_trim(&call->reader);
    return call->over ? count : count - left;
}

static void hold(kn_grpc_call *call, const uint8_t *bytes, size_t count)
{
    uint8_t *grown = kn_realloc(call->held, call->held_bytes + count);
    if (!grown) {
        kn_grpc_call_end(call, KN_GRPC_RESOURCE_EXHAUSTED, "the server is out of memory");
        kn_h2_consume(call->stream, count);
        return;
    }
    memcpy(grown + call->held_bytes, bytes, count); /* bounded by the stream's window */
    call->held = grown;
    call->held_bytes += count;
}

void kn_grpc_on_data(kn_h2_stream *stream, const uint8_t *bytes, size_t count, void *context)
{
    kn_grpc_call *call = kn_h2_stream_user(stream);
    kn_grpc_connection *c = context;
    size_t used = count;
    c->data_bytes += count;
    if (call && !call->over && call->method) {
        kn_standing_earn(&c->standing, (int64_t)count * KN_STANDING_BYTE_NS);
        used = call->held_bytes > 0 ? 0 : feed(call, bytes, count);
        if (used < count) hold(call, bytes + used, count - used);
    }
    if (used > 0) kn_h2_consume(stream, used);
}

static void end_requests(kn_grpc_call *call)
{
    if (call->over || !call->half_closed || call->held_bytes > 0 || call->paused) return;
    if (kn_grpc_reader_partial(&call->reader))
        kn_grpc_call_end(call, KN_GRPC_INTERNAL, "the request ends inside a message");
    else
        hand_end(call);
}

void kn_grpc_on_end(kn_h2_stream *stream, void *context)
{
    kn_grpc_call *call = kn_h2_stream_user(stream);
    (void)context;
    if (!call || call->half_closed) return;
    call->half_closed = true;
    if (call->method) end_requests(call);
}

void kn_grpc_call_run(kn_grpc_call *call)
{
    if (!call->resumed || call->over || call->paused) return;
    call->resumed = false;
    if (call->held_bytes > 0) {
        uint8_t *bytes = call->held;
        const size_t count = call->held_bytes, used = feed(call, bytes, count);
        if (used < count) memmove(bytes, bytes + used, count - used);
        call->held_bytes = count - used;
        if (used == count) {
            kn_free(bytes);
            call->held = NULL;
        }
        kn_h2_consume(call->stream, used);
    }
    if (call->half_closed) end_requests(call);
}

void kn_grpc_call_begin(kn_grpc_call *call, bool end)
{
    call->half_closed = end;
    if (call->method->start) {
        mark_told(call);
        call->running = true;
        call->method->start(call);
        call->running = false;
    }
    if (end && !call->over) end_requests(call);
}

void kn_grpc_pause(kn_grpc_call *call)
{
    call->paused = true;
}

void kn_grpc_resume(kn_grpc_call *call)
{
    if (!call->paused) return;
    call->paused = false;
    call->resumed = true;
    kn_grpc_schedule(call->connection);
}

/* ---- replies ---- */

kn_status kn_grpc_trailer(kn_grpc_call *call, const char *name, const char *value)
{
    const size_t name_bytes = strlen(name) + 1, value_bytes = strlen(value) + 1;
    KN_REQUIRE(call->trailer_count < KN_GRPC_TRAILERS_MAX && value_bytes <= 8 << 10);
    char *grown = kn_realloc(call->trailers, call->trailers_bytes + name_bytes + value_bytes);
    if (!grown) return KN_NOMEM;
    memcpy(grown + call->trailers_bytes, name, name_bytes);
    memcpy(grown + call->trailers_bytes + name_bytes, value, value_bytes);
    call->trailers = grown;
    call->trailers_bytes += name_bytes + value_bytes;
    call->trailer_count++;
    return KN_OK;
}

bool kn_grpc_has_room(kn_grpc_call *call)
{
    if (kn_h2_queued(call->stream) < KN_GRPC_QUEUE_BYTES) return true;
    call->wants_room = true;
    return false;
}

static kn_status may_send(kn_grpc_call *call, size_t count)
{
    KN_REQUIRE(!call->over && count <= KN_GRPC_REPLY_BYTES_MAX);
    return kn_grpc_has_room(call) ? KN_OK : KN_AGAIN;
}

static void release_block(void *context)
{
    kn_free(context);
}

/* 0: it goes as it is. */
static size_t try_compress(kn_grpc_call *call, uint8_t **out, const void *bytes, size_t count)
{
    if (!call->responded) call->gzip = call->gzip_accepted && count >= COMPRESS_BYTES;
    if (!call->gzip || count < COMPRESS_BYTES || count > COMPRESS_BYTES_MAX) return 0;
    *out = kn_alloc(count);
    const size_t made = *out ? kn_grpc_compress(*out, count - count / 8, bytes, count) : 0;
    if (made == 0) kn_free(*out);
    return made;
}

kn_status kn_grpc_send(kn_grpc_call *call, const void *bytes, size_t count)
{
    uint8_t prefix[KN_GRPC_PREFIX_BYTES], *packed = NULL;
    kn_status st = may_send(call, count);
    if (st != KN_OK) return st;
    const size_t made = try_compress(call, &packed, bytes, count);
    respond(call);
    kn_grpc_write_prefix(prefix, made > 0, (uint32_t)(made > 0 ? made : count));
    if (made > 0)
        st = kn_h2_write(call->stream, prefix, sizeof prefix, packed, made, release_block, packed);
    else
        st = kn_h2_write(call->stream, prefix, sizeof prefix, bytes, count, NULL, NULL);
    call->sent_bytes += count;
    kn_grpc_schedule(call->connection);
    return st;
}

kn_status kn_grpc_send_owned(kn_grpc_call *call, const void *bytes, size_t count, void (*release)(void *context),
                             void *context)
{
    uint8_t prefix[KN_GRPC_PREFIX_BYTES];
    kn_status st = may_send(call, count);
    if (st != KN_OK) {
        release(context);
        return st;
    }
    respond(call);
    kn_grpc_write_prefix(prefix, false, (uint32_t)count);
    st = kn_h2_write(call->stream, prefix, sizeof prefix, bytes, count, release, context);
    call->sent_bytes += count;
    kn_grpc_schedule(call->connection);
    return st;
}

void kn_grpc_on_drained(kn_h2_stream *stream, void *context)
{
    kn_grpc_call *call = kn_h2_stream_user(stream);
    (void)context;
    if (!call || call->over || !call->wants_room) return;
    call->wants_room = false;
    if (call->method->writable) call->method->writable(call);
}

size_t kn_grpc_queued(const kn_grpc_call *call)
{
    return kn_h2_queued(call->stream);
}

void kn_grpc_finish(kn_grpc_call *call, kn_grpc_code code, const char *message)
{
    if (call->over) return;
    if (code == KN_GRPC_OK) respond(call); /* a stream without messages has a head all the same */
    conclude(call, code, message);
}

void kn_grpc_reply(kn_grpc_call *call, const void *bytes, size_t count)
{
    const kn_status st = kn_grpc_send(call, bytes, count);
    if (st == KN_OK)
        kn_grpc_finish(call, KN_GRPC_OK, NULL);
    else
        kn_grpc_finish(call, KN_GRPC_INTERNAL, "the reply could not be made");
}

void kn_grpc_fail(kn_grpc_call *call, const kn_api_error *error)
{
    char storage[DETAILS_BYTES], encoded[DETAILS_BYTES * 4 / 3 + 4], ms[16];
    const kn_grpc_code code = kn_grpc_code_of(error);
    kn_text details = kn_text_fixed(storage, sizeof storage), text = kn_text_fixed(encoded, sizeof encoded);
    kn_grpc_status_write(&details, code, error);
    if (kn_text_status(&details) == KN_OK) {
        kn_grpc_base64(&text, details.bytes, details.count);
        kn_grpc_trailer(call, "grpc-status-details-bin", text.bytes);
    }
    if (error->retry_after_s > 0 || error->no_retry) { /* gRFC A6: negative is "do not" */
        snprintf(ms, sizeof ms, "%d", error->no_retry ? -1 : error->retry_after_s * 1000);
        kn_grpc_trailer(call, "grpc-retry-pushback-ms", ms);
    }
    kn_grpc_finish(call, code, error->message);
}

/* ---- what a call is ---- */

kn_grpc_server *kn_grpc_call_server(const kn_grpc_call *call)
{
    return call->connection->server;
}

void *kn_grpc_context(const kn_grpc_call *call)
{
    return call->connection->server->params.context;
}

const kn_grpc_method *kn_grpc_call_method(const kn_grpc_call *call)
{
    return call->method;
}

const kn_principal *kn_grpc_principal(const kn_grpc_call *call)
{
    return &call->caller->principal;
}

int64_t kn_grpc_deadline_ns(const kn_grpc_call *call)
{
    return call->deadline_ns;
}

kn_grpc_code kn_grpc_closed_code(const kn_grpc_call *call)
{
    return call->code;
}

void kn_grpc_set_user(kn_grpc_call *call, void *user)
{
    call->user = user;
}

void *kn_grpc_user(const kn_grpc_call *call)
{
    return call->user;
}

const char *kn_grpc_metadata(const kn_grpc_call *call, const char *name)
{
    for (const char *at = call->metadata; at && *at;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, name) == 0) return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}
