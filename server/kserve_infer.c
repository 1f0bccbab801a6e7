/* SPDX-License-Identifier: Apache-2.0
 *
 * ModelInfer and ModelStreamInfer. Each request becomes a kn_call that waits for its job, as one of POST
 * /v1/videos/sync does; when the client cancels, goes away or its deadline passes, so does the job.
 *
 * A *stream* has several requests under way at a time. Each has a kn_call of its own; the stream has one too, which
 * stands in the list of what a drain ends. A request's answers are progress, left out when the client reads too
 * slowly, and a last one, which then waits until there is room. A request that failed ends with an error message in the
 * stream, and the stream goes on. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/json.h"
#include "server/kserve_core.h"
#include "server/kserve_grpc.h"
#include "server/kserve_proto.h"

enum {
    STREAM_REQUESTS_MAX = 16, /* of one stream at a time; then no more of its messages are read */
    FRONT_BYTES_MAX = 16 << 10,
};

/* What these methods are to the intake: a submission. */
static const kn_route infer_route = {.method = KN_HTTP_POST, .pattern = "ModelInfer", .scope = KN_SCOPE_SUBMIT};

/* ---- requests ---- */

/* The body of the same request to the Videos API, and what its answer is to hold. NULL: *error says why. */
static kn_kserve_wish *read_request(kn_server *s, const void *bytes, size_t count, kn_text *body, char *id,
                                    kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_kserve_request request;
    kn_catalog_model *model;
    kn_kserve_wish *wish = NULL;
    ProtobufCMessage *message = NULL;
    KN_TRY(kn_kserve_proto_infer(&request, &message, bytes, count, error));
    snprintf(id, KN_KSERVE_ID_BYTES_MAX + 1, "%s", request.id);
    KN_TRY(kn_kserve_find(s, request.model, request.version, &model, error));
    KN_TRY(kn_kserve_body(body, &request, request.model, error));
    wish = kn_kserve_wish_of(&request, model);
    if (!wish) kn_api_from_status(error, KN_NOMEM);
fail:
    kn_proto_free(&message);
    return wish;
}

/* The whole message with its file, kn_alloc'ed. NULL: *error says why. */
static void *make_answer(kn_server *s, const kn_live *live, kn_kserve_answer *answer, size_t *bytes,
                         kn_api_error *error)
{
    int fd;
    uint64_t file_bytes;
    char *all = NULL;
    if (kn_kserve_open_answer(s, live, answer, &fd, &file_bytes, error) != KN_OK) return NULL;
    kn_text front = kn_text_growing(FRONT_BYTES_MAX);
    kn_kserve_proto_answer(&front, answer, file_bytes);
    if (kn_text_status(&front) == KN_OK) all = kn_alloc(front.count + file_bytes + 1);
    if (all) {
        memcpy(all, front.bytes, front.count);
        *bytes = front.count + file_bytes;
    }
    if (!all || (fd >= 0 && !kn_kserve_read_file(fd, all + front.count, file_bytes))) {
        kn_api_from_status(error, KN_NOMEM);
        kn_free(all);
        all = NULL;
    }
    if (fd >= 0) close(fd);
    kn_text_release(&front);
    return all;
}

static void release(void *memory)
{
    kn_free(memory);
}

/* ---- ModelInfer ---- */

static void fail_unary(kn_call *call, const kn_api_error *error)
{
    kn_grpc_fail(call->grpc, error);
}

static const kn_call_front unary_front = {.error = fail_unary};

static void deliver_unary(kn_call *call)
{
    kn_api_error error;
    size_t bytes;
    kn_kserve_answer answer = kn_kserve_answer_to(call->wish);
    void *all = make_answer(call->server, call->live, &answer, &bytes, &error);
    if (!all) {
        kn_call_error(call, &error);
        return;
    }
    if (kn_grpc_send_owned(call->grpc, all, bytes, release, all) == KN_OK)
        kn_grpc_finish(call->grpc, KN_GRPC_OK, NULL);
    else
        kn_grpc_finish(call->grpc, KN_GRPC_RESOURCE_EXHAUSTED, kn_fail_message());
    kn_call_over(call);
}

void kn_infer_message(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    char id[KN_KSERVE_ID_BYTES_MAX + 1];
    kn_text body = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    kn_kserve_wish *wish = read_request(s, bytes, count, &body, id, &error);
    kn_call *call = wish ? kn_call_open_grpc(s, grpc, &unary_front, &infer_route, "") : NULL;
    if (call) {
        call->wish = wish;
        call->sync = true;
        call->deliver = deliver_unary;
        kn_intake_begin(call, body.bytes, body.count, "application/json");
    } else if (!wish) {
        kn_grpc_fail(grpc, &error);
    } else {
        kn_free(wish);
    }
    kn_text_release(&body);
}

/* ---- ModelStreamInfer ---- */

typedef struct stream stream;

/* One request of a stream, from its message to its last answer. */
typedef struct item {
    stream *stream;
    kn_call *call;      /* NULL: over, and `error` is still to be sent */
    bool ended;         /* the job has; its answer waits for room, and the call is held meanwhile */
    int32_t told;       /* percent of the last progress that was sent; -1: none */
    kn_job_state state; /* likewise */
    kn_api_error error;
    char id[KN_KSERVE_ID_BYTES_MAX + 1];
    char model[KN_MODEL_NAME_BYTES];
    struct item *next;
} item;

struct stream {
    kn_server *server;
    kn_grpc_call *grpc;
    kn_call *call; /* its own, in the list of what a drain ends; NULL: drained */
    item *items;
    int32_t count;
    bool half_closed;
};

static void remove_item(item *i)
{
    stream *st = i->stream;
    for (item **link = &st->items; *link; link = &(*link)->next)
        if (*link == i) {
            *link = i->next;
            break;
        }
    st->count--;
    kn_free(i);
}

/* Ends the stream once nothing is left to be answered; goes on reading where it stopped. */
static void go_on(stream *st)
{
    if (st->count < STREAM_REQUESTS_MAX) kn_grpc_resume(st->grpc);
    if (st->call && st->server->draining) return; /* the drain walks over calls; drain_stream() comes */
    if (st->count > 0 || (st->call && !st->half_closed)) return;
    if (st->call)
        kn_grpc_finish(st->grpc, KN_GRPC_OK, NULL);
    else
        kn_grpc_finish(st->grpc, KN_GRPC_UNAVAILABLE, "This server is being shut down.");
    if (st->call) kn_call_over(st->call);
    kn_free(st);
}

static bool send_error(item *i)
{
    kn_text text = kn_text_growing(FRONT_BYTES_MAX);
    kn_kserve_proto_stream_error(&text, i->model, i->id, &i->error);
    const bool sent = kn_text_status(&text) == KN_OK && kn_grpc_send(i->stream->grpc, text.bytes, text.count) == KN_OK;
    kn_text_release(&text);
    return sent;
}

/* False: later. On an error of the answer's own, that is sent in its place. */
static bool send_answer(item *i)
{
    size_t bytes;
    kn_kserve_answer answer = kn_kserve_answer_to(i->call->wish);
    answer.streamed = true;
    void *all = make_answer(i->stream->server, i->call->live, &answer, &bytes, &i->error);
    return all ? kn_grpc_send_owned(i->stream->grpc, all, bytes, release, all) == KN_OK : send_error(i);
}

/* The intake, a drain or the wait itself says no: the call is over when this returns. */
static void fail_item(kn_call *call, const kn_api_error *error)
{
    item *i = call->wish->stream;
    stream *st = i->stream;
    i->error = *error;
    i->call = NULL;
    i->ended = false;
    if (!send_error(i)) return; /* writable() comes */
    remove_item(i);
    go_on(st);
}

static const kn_call_front item_front = {.error = fail_item};

static void deliver_item(kn_call *call)
{
    item *i = call->wish->stream;
    stream *st = i->stream;
    if (send_answer(i)) {
        remove_item(i);
        kn_call_over(call);
        go_on(st);
    } else {
        i->ended = true;
        kn_call_hold(call); /* as kn_call_wait did: the job stays in memory until there is room */
    }
}

/* Progress, where it has changed and the client keeps up. */
static void observe_item(kn_call *call)
{
    item *i = call->wish->stream;
    const kn_live *live = call->live;
    kn_kserve_answer answer = kn_kserve_answer_to(call->wish);
    const kn_video_facts facts = kn_dispatch_facts(call->server, call->live);
    answer.progress = facts.progress < 0 ? 0 : facts.progress > 99 ? 99 : facts.progress;
    if ((answer.progress == i->told && live->job.state == i->state) || kn_grpc_queued(i->stream->grpc) > 0) return;
    answer.outputs = 1u << KN_KSERVE_VIDEO_ID | 1u << KN_KSERVE_STATUS | 1u << KN_KSERVE_PROGRESS;
    answer.video_id = live->job.id;
    answer.status = kn_video_status_name(live->job.state);
    answer.streamed = true;
    answer.last = false;
    kn_text text = kn_text_growing(FRONT_BYTES_MAX);
    kn_kserve_proto_answer(&text, &answer, 0);
    if (kn_text_status(&text) == KN_OK && kn_grpc_send(i->stream->grpc, text.bytes, text.count) == KN_OK)
        i->told = answer.progress, i->state = live->job.state;
    kn_text_release(&text);
}

void kn_infer_stream_writable(kn_grpc_call *grpc)
{
    stream *st = kn_grpc_user(grpc);
    for (item *i = st->items, *next; i; i = next) {
        next = i->next;
        kn_call *call = i->call;
        if (call && !i->ended) continue;
        if (!(call ? send_answer(i) : send_error(i))) return;
        remove_item(i);
        if (!call) continue;
        kn_call_over(call);
        kn_call_release(call); /* what deliver_item held */
    }
    go_on(st);
}

/* ---- a stream's life ---- */

static void drain_stream(kn_call *call)
{
    stream *st = call->wish->stream;
    st->call = NULL; /* over when this returns */
    go_on(st);
}

static const kn_call_front stream_front = {.drain = drain_stream};

static stream *open_stream(kn_grpc_call *grpc)
{
    kn_server *s = kn_grpc_context(grpc);
    stream *st = kn_grpc_user(grpc);
    kn_api_error error;
    if (st) return st;
    if (s->draining || s->streams >= s->config->event_streams_max) {
        kn_api_overloaded(&error, 5, s->draining ? "This server is being shut down." : "All event streams are taken.");
        kn_grpc_fail(grpc, &error);
        return NULL;
    }
    st = kn_alloc(sizeof *st);
    kn_kserve_wish *wish = kn_alloc(sizeof *wish);
    kn_call *call = st && wish ? kn_call_share_grpc(s, grpc, &stream_front, &infer_route, "") : NULL;
    if (!call) {
        kn_grpc_finish(grpc, KN_GRPC_RESOURCE_EXHAUSTED, "The server is out of memory.");
        kn_free(st);
        kn_free(wish);
        return NULL;
    }
    *st = (stream){.server = s, .grpc = grpc, .call = call};
    *wish = (kn_kserve_wish){.stream = st};
    call->wish = wish;
    call->stream = true;
    s->streams++;
    kn_call_list(call);
    kn_grpc_set_user(grpc, st);
    return st;
}

/* Begins the request, or says in the stream why not. */
static void begin_item(stream *st, item *i, const void *bytes, size_t count)
{
    kn_text body = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    kn_kserve_wish *wish = read_request(st->server, bytes, count, &body, i->id, &i->error);
    kn_call *call = wish ? kn_call_share_grpc(st->server, st->grpc, &item_front, &infer_route, "") : NULL;
    if (call) {
        wish->stream = i;
        memcpy(i->model, wish->model, sizeof i->model);
        i->call = call;
        call->wish = wish;
        call->sync = true;
        call->deliver = deliver_item;
        call->observe = observe_item;
        kn_intake_begin(call, body.bytes, body.count, "application/json");
    } else {
        if (wish) kn_api_from_status(&i->error, KN_NOMEM);
        kn_free(wish);
        if (send_error(i)) remove_item(i);
    }
    kn_text_release(&body);
}

void kn_infer_stream_message(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    stream *st = open_stream(grpc);
    if (!st) return;
    item *i = kn_alloc(sizeof *i);
    if (!i) return; /* the deadline of who waits for it ends it */
    *i = (item){.stream = st, .told = -1, .next = st->items};
    st->items = i;
    st->count++;
    if (st->count >= STREAM_REQUESTS_MAX) kn_grpc_pause(grpc);
    begin_item(st, i, bytes, count);
}

void kn_infer_stream_half_closed(kn_grpc_call *grpc)
{
    stream *st = kn_grpc_user(grpc);
    if (!st) {
        kn_grpc_finish(grpc, KN_GRPC_OK, NULL);
        return;
    }
    st->half_closed = true;
    go_on(st);
}

/* The client has gone: so do its jobs. */
void kn_infer_stream_closed(kn_grpc_call *grpc)
{
    stream *st = kn_grpc_user(grpc);
    if (!st) return;
    while (st->items) {
        kn_call *call = st->items->call;
        const bool held = st->items->ended;
        remove_item(st->items);
        if (!call) continue;
        if (held) kn_call_release(call);
        kn_call_gone(call);
    }
    if (st->call) kn_call_over(st->call);
    kn_free(st);
}
