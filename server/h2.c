/* SPDX-License-Identifier: Apache-2.0 */
#include "server/h2.h"

#include <event2/buffer.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <string.h>
#include <sys/queue.h>

#include "base/log.h"
#include "base/mem.h"

enum {
    CONTINUATIONS_MAX = 4,
    FIELD_OVERHEAD = 32, /* RFC 9113, 6.5.2 */
    OVERSIZE_FACTOR = 4, /* a section this many times too long is an attack, not a mistake */
    PING_STRIKES = 2,
    SMALL_BYTES = 2048, /* a piece up to this is copied into the output */
    FRAME_HEAD_BYTES = 9,
    OPAQUE_BYTES = 8,
};

/* Tokens, `rate` a second, at most `burst`. */
typedef struct budget {
    double tokens, rate, burst;
    int64_t at_ns;
} budget;

/* Part of a reply's body. */
typedef struct piece {
    STAILQ_ENTRY(piece) next;
    void (*release)(void *context);
    void *context;
    const uint8_t *rest; /* of `bytes`, not sent yet */
    size_t rest_bytes;
    const uint8_t *head; /* in `copy`, not sent yet */
    size_t head_bytes;
    int32_t references; /* the queue's, and one for every part that lies in an output buffer */
    uint8_t copy[];
} piece;

struct kn_h2_stream {
    kn_h2 *h2;
    LIST_ENTRY(kn_h2_stream) next;
    void *user;
    int32_t id;
    bool introduced; /* request() was called */
    bool remote_end, begun, trailing, ended, deferred;
    int64_t opened_ns, moved_ns;
    STAILQ_HEAD(, piece) pieces;
    size_t queued;
    kn_h2_field *trailers; /* owned, texts behind the fields */
    size_t trailer_count;
};

struct kn_h2 {
    nghttp2_session *session;
    kn_h2_callbacks callbacks;
    void *context;
    kn_h2_shared *shared;
    LIST_HEAD(, kn_h2_stream) all;
    int32_t streams;
    int64_t now_ns;
    struct evbuffer *out; /* during kn_h2_produce */
    size_t room;
    /* The header section that is being read; there is never more than one. */
    kn_h2_stream *reading;
    kn_h2_field fields[KN_H2_FIELDS_MAX];
    char *text; /* [KN_H2_HEADER_BYTES + 2 * KN_H2_FIELDS_MAX]; between sections NULL */
    size_t field_count, text_bytes, section_bytes, section_fields;
    int32_t continuations;
    bool in_section, oversized;
    /* Budgets. */
    budget resets, pings, settings, idle_frames;
    int64_t ping_ns, last_ping_ns;
    int32_t strikes;
    bool traffic; /* since the last ping */
    char failure[64];
    bool failed, abused, said_goodbye;
    uint8_t error; /* what the client is told */
};

/* ---- budgets ---- */

static budget budget_of(double rate, double burst, int64_t now_ns)
{
    return (budget){.tokens = burst, .rate = rate, .burst = burst, .at_ns = now_ns};
}

static void earn(budget *b, double tokens)
{
    b->tokens = b->tokens + tokens > b->burst ? b->burst : b->tokens + tokens;
}

static bool spend(budget *b, int64_t now_ns)
{
    earn(b, b->rate * (double)(now_ns - b->at_ns) * 1e-9);
    b->at_ns = now_ns;
    b->tokens -= 1.0;
    return b->tokens >= 0.0;
}

/* Ends the connection; what nghttp2 returns from its callback to stop reading. */
static int fail(kn_h2 *h, const char *why)
{
    if (!h->failed) {
        h->failed = h->abused = true;
        h->error = NGHTTP2_ENHANCE_YOUR_CALM;
        snprintf(h->failure, sizeof h->failure, "%s", why);
    }
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

/* The same for what nghttp2 lets pass. */
static int violate(kn_h2 *h, uint8_t error, const char *why)
{
    const bool first = !h->failed;
    fail(h, why);
    if (first) h->error = error;
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int spend_idle(kn_h2 *h)
{
    return spend(&h->idle_frames, h->now_ns) ? 0 : fail(h, "too_many_frames");
}

/* ---- pieces ---- */

static void let_go(piece *p)
{
    if (--p->references > 0) return;
    if (p->release) p->release(p->context);
    kn_free(p);
}

static void on_output_freed(const void *bytes, size_t count, void *context)
{
    (void)bytes, (void)count;
    let_go(context);
}

static void drop_pieces(kn_h2_stream *s)
{
    piece *p;
    while ((p = STAILQ_FIRST(&s->pieces)) != NULL) {
        STAILQ_REMOVE_HEAD(&s->pieces, next);
        let_go(p);
    }
    s->queued = 0;
}

static kn_status hand_over(struct evbuffer *out, piece *p, const uint8_t *bytes, size_t count)
{
    if (count <= SMALL_BYTES) return evbuffer_add(out, bytes, count) == 0 ? KN_OK : KN_NOMEM;
    p->references++;
    if (evbuffer_add_reference(out, bytes, count, on_output_freed, p) == 0) return KN_OK;
    p->references--;
    return KN_NOMEM;
}

/* The next `count` bytes of a stream, without a copy where they are many. */
static kn_status take_pieces(kn_h2_stream *s, struct evbuffer *out, size_t count)
{
    kn_status st = KN_OK;
    s->queued -= count;
    while (count > 0 && st == KN_OK) {
        piece *p = STAILQ_FIRST(&s->pieces);
        const size_t head = p->head_bytes < count ? p->head_bytes : count;
        if (head > 0) st = evbuffer_add(out, p->head, head) == 0 ? KN_OK : KN_NOMEM;
        p->head += head;
        p->head_bytes -= head;
        count -= head;
        const size_t body = p->rest_bytes < count ? p->rest_bytes : count;
        if (body > 0 && st == KN_OK) st = hand_over(out, p, p->rest, body);
        p->rest += body;
        p->rest_bytes -= body;
        count -= body;
        if (p->head_bytes + p->rest_bytes > 0) continue;
        STAILQ_REMOVE_HEAD(&s->pieces, next);
        let_go(p);
    }
    return st;
}

/* ---- streams ---- */

static kn_h2_stream *open_stream(kn_h2 *h, int32_t id)
{
    kn_h2_stream *s = kn_alloc(sizeof *s);
    if (!s) return NULL;
    s->h2 = h;
    s->id = id;
    s->opened_ns = s->moved_ns = h->now_ns;
    STAILQ_INIT(&s->pieces);
    LIST_INSERT_HEAD(&h->all, s, next);
    h->streams++;
    h->shared->streams++;
    return s;
}

static void free_stream(kn_h2_stream *s)
{
    LIST_REMOVE(s, next);
    s->h2->streams--;
    s->h2->shared->streams--;
    if (s->h2->reading == s) s->h2->reading = NULL;
    drop_pieces(s);
    kn_free(s->trailers);
    kn_free(s);
}

static void close_stream(kn_h2_stream *s, uint32_t error)
{
    s->ended = true;
    if (s->introduced) s->h2->callbacks.closed(s, error, s->h2->context);
    free_stream(s);
}

/* ---- reading: nghttp2's callbacks ---- */

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *context)
{
    kn_h2 *h = context;
    (void)session;
    switch (head->type) {
    case NGHTTP2_CONTINUATION: return ++h->continuations <= CONTINUATIONS_MAX ? 0 : fail(h, "too_many_continuations");
    case NGHTTP2_HEADERS: h->continuations = 0; return spend_idle(h); /* a request earns more than that */
    case NGHTTP2_PRIORITY:
        return head->stream_id == 0 ? violate(h, NGHTTP2_PROTOCOL_ERROR, "PRIORITY: stream_id == 0") : spend_idle(h);
    case NGHTTP2_DATA:
    case NGHTTP2_RST_STREAM:
    case NGHTTP2_SETTINGS:
    case NGHTTP2_PING: return 0; /* looked at when they are complete */
    default: return spend_idle(h);
    }
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    kn_h2 *h = context;
    h->field_count = h->text_bytes = h->section_bytes = h->section_fields = 0;
    h->oversized = false;
    h->in_section = true;
    if (!h->text) h->text = kn_alloc(KN_H2_HEADER_BYTES + 2 * KN_H2_FIELDS_MAX);
    if (!h->text) return fail(h, "memory");
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0; /* trailers */
    h->traffic = true;
    earn(&h->idle_frames, 4.0);
    if (h->shared->streams >= h->shared->streams_max) {
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM);
        return 0;
    }
    kn_h2_stream *s = open_stream(h, frame->hd.stream_id);
    if (!s) return fail(h, "memory");
    h->reading = s;
    return nghttp2_session_set_stream_user_data(session, s->id, s) == 0 ? 0 : fail(h, "memory");
}

static char *keep_text(kn_h2 *h, const uint8_t *bytes, size_t count)
{
    char *at = h->text + h->text_bytes;
    memcpy(at, bytes, count);
    at[count] = '\0';
    h->text_bytes += count + 1;
    return at;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                     const uint8_t *value, size_t value_bytes, uint8_t flags, void *context)
{
    kn_h2 *h = context;
    (void)session, (void)flags, (void)frame;
    h->section_bytes += name_bytes + value_bytes + FIELD_OVERHEAD;
    h->section_fields++;
    if (h->section_bytes > OVERSIZE_FACTOR * KN_H2_HEADER_BYTES ||
        h->section_fields > OVERSIZE_FACTOR * KN_H2_FIELDS_MAX)
        return fail(h, "header_section_too_large");
    h->oversized |= h->section_bytes > KN_H2_HEADER_BYTES || h->section_fields > KN_H2_FIELDS_MAX;
    if (h->oversized) return 0;
    kn_h2_field *field = &h->fields[h->field_count++];
    field->name = keep_text(h, name, name_bytes);
    field->name_bytes = name_bytes;
    field->value = keep_text(h, value, value_bytes);
    field->value_bytes = value_bytes;
    return 0;
}

static void end_request(kn_h2 *h, kn_h2_stream *s)
{
    if (s->remote_end) return;
    s->remote_end = true;
    if (s->introduced && !s->ended) h->callbacks.end(s, h->context);
}

static void take_headers(kn_h2 *h, const nghttp2_frame *frame)
{
    kn_h2_stream *s = nghttp2_session_get_stream_user_data(h->session, frame->hd.stream_id);
    const bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (!s) return;
    s->moved_ns = h->now_ns;
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST || s->introduced) {
        if (end) end_request(h, s);
        return;
    }
    h->reading = NULL;
    s->introduced = true;
    s->remote_end = end;
    const kn_h2_head head = {.fields = h->fields, .count = h->field_count, .oversized = h->oversized, .end = end};
    h->callbacks.request(s, &head, h->context);
}

/* gRFC A8: a ping that comes too soon after the last one, with nothing else in between, is a strike. */
static int take_ping(kn_h2 *h)
{
    if (!spend(&h->pings, h->now_ns)) return fail(h, "too_many_pings");
    if (h->traffic || h->last_ping_ns == 0 || h->now_ns - h->last_ping_ns >= h->ping_ns) {
        h->strikes = h->traffic ? 0 : h->strikes;
    } else if (++h->strikes > PING_STRIKES) {
        return fail(h, "too_many_pings");
    }
    h->traffic = false;
    h->last_ping_ns = h->now_ns;
    return 0;
}

static int take_reset(kn_h2 *h, const nghttp2_frame *frame)
{
    const kn_h2_stream *s = nghttp2_session_get_stream_user_data(h->session, frame->hd.stream_id);
    if (!s) return spend_idle(h); /* a stream that is over: both crossed on the way */
    if (h->now_ns - s->opened_ns >= 1000000000) return 0;
    return spend(&h->resets, h->now_ns) ? 0 : fail(h, "too_many_resets");
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    kn_h2 *h = context;
    kn_h2_stream *s;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        h->in_section = false;
        take_headers(h, frame);
        return h->failed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
    case NGHTTP2_DATA:
        s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
        if (frame->hd.length == frame->data.padlen && !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
            return spend_idle(h);
        if (s && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) end_request(h, s);
        return 0;
    case NGHTTP2_RST_STREAM: return take_reset(h, frame);
    case NGHTTP2_PING: return frame->hd.flags & NGHTTP2_FLAG_ACK ? spend_idle(h) : take_ping(h);
    case NGHTTP2_SETTINGS:
        if (frame->hd.flags & NGHTTP2_FLAG_ACK) return spend_idle(h);
        return spend(&h->settings, h->now_ns) ? 0 : fail(h, "too_many_settings");
    default: return 0;
    }
}

static int on_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t count,
                    void *context)
{
    kn_h2 *h = context;
    kn_h2_stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)flags;
    h->traffic = true;
    earn(&h->idle_frames, 0.5);
    if (!s || s->ended || !s->introduced) {
        nghttp2_session_consume(session, id, count);
        return 0;
    }
    s->moved_ns = h->now_ns;
    h->callbacks.data(s, bytes, count, h->context);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *context)
{
    kn_h2_stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)context;
    if (s) close_stream(s, error);
    return 0;
}

/* Types we do not know: asked for so that they are counted, and then left alone. */
static int on_extension_chunk(nghttp2_session *session, const nghttp2_frame_hd *head, const uint8_t *bytes,
                              size_t count, void *context)
{
    (void)session, (void)head, (void)bytes, (void)count, (void)context;
    return NGHTTP2_ERR_CANCEL;
}

static int on_extension(nghttp2_session *session, void **payload, const nghttp2_frame_hd *head, void *context)
{
    (void)session, (void)payload, (void)head, (void)context;
    return NGHTTP2_ERR_CANCEL;
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *context)
{
    kn_h2 *h = context;
    (void)session, (void)frame, (void)error;
    return spend(&h->resets, h->now_ns) ? 0 : fail(h, "too_many_errors");
}

/* ---- writing: nghttp2's callbacks ---- */

static void note_goaway(kn_h2 *h, const nghttp2_frame *frame)
{
    h->said_goodbye |= frame->goaway.last_stream_id != INT32_MAX;
    if (frame->goaway.error_code == NGHTTP2_NO_ERROR || h->abused) return;
    h->abused = true;
    snprintf(h->failure, sizeof h->failure, "%s", nghttp2_http2_strerror(frame->goaway.error_code));
}

/* A stream error is a reset that the client provoked. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    kn_h2 *h = context;
    if (frame->hd.type == NGHTTP2_GOAWAY) note_goaway(h, frame);
    if (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) {
        h->traffic = true;
        h->strikes = 0;
        earn(&h->idle_frames, 2.0);
    }
    if (frame->hd.type == NGHTTP2_RST_STREAM) {
        const uint32_t error = frame->rst_stream.error_code;
        if (error == NGHTTP2_REFUSED_STREAM)
            spend_idle(h); /* failures here: kn_h2_produce looks */
        else if (error != NGHTTP2_NO_ERROR && error != NGHTTP2_CANCEL && !spend(&h->resets, h->now_ns))
            fail(h, "too_many_resets");
    }
    /* RFC 9113, 8.1: the reply is complete before the request is, so the rest is not wanted. */
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *frame_head, size_t count,
                        nghttp2_data_source *source, void *context)
{
    kn_h2 *h = context;
    kn_h2_stream *s = source->ptr;
    (void)session, (void)frame;
    if (evbuffer_get_length(h->out) >= h->room) return NGHTTP2_ERR_WOULDBLOCK;
    if (s->queued < count) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* dropped by a reset meanwhile */
    if (evbuffer_add(h->out, frame_head, FRAME_HEAD_BYTES) != 0 || take_pieces(s, h->out, count) != KN_OK)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    s->moved_ns = h->now_ns;
    if (s->queued == 0 && !s->trailing && !s->ended) h->callbacks.drained(s, h->context);
    return 0;
}

static ssize_t frame_bytes(nghttp2_session *session, uint8_t type, int32_t id, int32_t connection_window,
                           int32_t stream_window, uint32_t frame_max, void *context)
{
    (void)session, (void)type, (void)id, (void)context;
    int64_t bytes = frame_max < KN_H2_FRAME_BYTES_MAX ? frame_max : KN_H2_FRAME_BYTES_MAX;
    if (bytes > connection_window) bytes = connection_window;
    return (ssize_t)(bytes > stream_window ? stream_window : bytes);
}

static void fill_nv(nghttp2_nv *out, const kn_h2_field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (nghttp2_nv){.name = (uint8_t *)(uintptr_t)fields[i].name,
                              .value = (uint8_t *)(uintptr_t)fields[i].value,
                              .namelen = fields[i].name_bytes,
                              .valuelen = fields[i].value_bytes,
                              .flags = fields[i].copy ? NGHTTP2_NV_FLAG_NONE
                                                      : NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

static ssize_t read_pieces(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t room, uint32_t *flags,
                           nghttp2_data_source *source, void *context)
{
    kn_h2_stream *s = source->ptr;
    nghttp2_nv nv[KN_H2_REPLY_FIELDS_MAX];
    (void)buffer, (void)context;
    const size_t count = s->queued < room ? s->queued : room;
    if (count == 0 && !s->trailing) {
        s->deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (count < s->queued || !s->trailing) return (ssize_t)count;
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (s->trailer_count == 0) return (ssize_t)count;
    *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
    fill_nv(nv, s->trailers, s->trailer_count);
    return nghttp2_submit_trailer(session, id, nv, s->trailer_count) == 0 ? (ssize_t)count
                                                                          : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* ---- replies ---- */

static kn_status give_up(kn_h2_stream *s)
{
    kn_h2_reset(s, KN_H2_INTERNAL_ERROR);
    return kn_fail(KN_NOMEM, "no memory for a reply");
}

kn_status kn_h2_respond(kn_h2_stream *s, const kn_h2_field *fields, size_t count, bool end)
{
    nghttp2_nv nv[KN_H2_REPLY_FIELDS_MAX];
    const nghttp2_data_provider provider = {.source.ptr = s, .read_callback = read_pieces};
    KN_REQUIRE(!s->begun && count <= KN_H2_REPLY_FIELDS_MAX);
    s->begun = true;
    s->ended = end;
    fill_nv(nv, fields, count);
    if (nghttp2_submit_response(s->h2->session, s->id, nv, count, end ? NULL : &provider) != 0) return give_up(s);
    return KN_OK;
}

static void wake(kn_h2_stream *s)
{
    if (!s->deferred) return;
    s->deferred = false;
    nghttp2_session_resume_data(s->h2->session, s->id);
}

kn_status kn_h2_write(kn_h2_stream *s, const void *head, size_t head_bytes, const void *bytes, size_t count,
                      void (*release)(void *context), void *context)
{
    const size_t copied = head_bytes + (release ? 0 : count);
    piece *p = kn_alloc(sizeof *p + copied);
    if (!p) {
        if (release) release(context);
        return give_up(s);
    }
    memcpy(p->copy, head, head_bytes);
    if (!release && count > 0) memcpy(p->copy + head_bytes, bytes, count);
    p->references = 1;
    p->release = release;
    p->context = context;
    p->head = p->copy;
    p->head_bytes = head_bytes;
    p->rest = release ? bytes : p->copy + head_bytes;
    p->rest_bytes = count;
    if (s->queued == 0) s->moved_ns = s->h2->now_ns; /* what it waits for begins now */
    STAILQ_INSERT_TAIL(&s->pieces, p, next);
    s->queued += head_bytes + count;
    wake(s);
    return KN_OK;
}

kn_status kn_h2_trailers(kn_h2_stream *s, const kn_h2_field *fields, size_t count)
{
    size_t text = 0;
    KN_REQUIRE(s->begun && !s->trailing && count <= KN_H2_REPLY_FIELDS_MAX);
    s->trailing = s->ended = true;
    if (count == 0) { /* an end, and nothing to say */
        wake(s);
        return KN_OK;
    }
    for (size_t i = 0; i < count; i++)
        if (fields[i].copy) text += fields[i].name_bytes + fields[i].value_bytes;
    s->trailers = kn_alloc(count * sizeof *fields + text);
    if (!s->trailers) return give_up(s);
    s->trailer_count = count;
    char *at = (char *)(s->trailers + count);
    for (size_t i = 0; i < count; i++) {
        s->trailers[i] = fields[i];
        if (!fields[i].copy) continue;
        memcpy(at, fields[i].name, fields[i].name_bytes);
        s->trailers[i].name = at;
        at += fields[i].name_bytes;
        memcpy(at, fields[i].value, fields[i].value_bytes);
        s->trailers[i].value = at;
        at += fields[i].value_bytes;
    }
    wake(s);
    return KN_OK;
}

size_t kn_h2_queued(const kn_h2_stream *s)
{
    return s->queued;
}

void kn_h2_reset(kn_h2_stream *s, uint32_t error)
{
    s->ended = true;
    drop_pieces(s);
    nghttp2_submit_rst_stream(s->h2->session, NGHTTP2_FLAG_NONE, s->id, error);
}

void kn_h2_consume(kn_h2_stream *s, size_t count)
{
    nghttp2_session_consume(s->h2->session, s->id, count);
}

void kn_h2_stream_set_user(kn_h2_stream *s, void *user)
{
    s->user = user;
}

void *kn_h2_stream_user(const kn_h2_stream *s)
{
    return s->user;
}

int64_t kn_h2_stream_moved_ns(const kn_h2_stream *s)
{
    return s->moved_ns;
}

/* ---- the connection ---- */

static kn_status open_session(kn_h2 *h, int32_t streams)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, (uint32_t)streams},
                                               {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, KN_H2_STREAM_WINDOW},
                                               {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, KN_H2_HEADER_BYTES},
                                               {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1}};
    int bad = nghttp2_session_callbacks_new(&callbacks) | nghttp2_option_new(&option);
    if (bad == 0) {
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
        nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_chunk);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
        nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
        nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, frame_bytes);
        nghttp2_session_callbacks_set_on_extension_chunk_recv_callback(callbacks, on_extension_chunk);
        nghttp2_session_callbacks_set_unpack_extension_callback(callbacks, on_extension);
        for (unsigned type = NGHTTP2_CONTINUATION + 1; type <= UINT8_MAX; type++)
            nghttp2_option_set_user_recv_extension_type(option, (uint8_t)type);
        nghttp2_option_set_no_auto_window_update(option, 1);
        nghttp2_option_set_no_closed_streams(option, 1);
        nghttp2_option_set_max_outbound_ack(option, 128);
        bad = nghttp2_session_server_new2(&h->session, callbacks, h, option);
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    if (bad == 0)
        bad = nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof *settings);
    if (bad == 0) bad = nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE, 0, KN_H2_WINDOW);
    return bad == 0 ? KN_OK : kn_fail(KN_NOMEM, "no memory for an HTTP/2 connection");
}

kn_status kn_h2_create(kn_h2 **out, const kn_h2_params *params)
{
    kn_h2 *h = kn_alloc(sizeof *h);
    if (!h) return KN_NOMEM;
    h->callbacks = params->callbacks;
    h->context = params->context;
    h->shared = params->shared;
    h->now_ns = params->now_ns;
    h->ping_ns = params->ping_ns;
    h->resets = budget_of(33.0, 200.0, params->now_ns);
    h->pings = budget_of(10.0, 50.0, params->now_ns);
    h->settings = budget_of(10.0, 20.0, params->now_ns);
    h->idle_frames = budget_of(1000.0, 4000.0, params->now_ns);
    const kn_status st = open_session(h, params->streams);
    if (st != KN_OK)
        kn_h2_destroy(&h);
    else
        *out = h;
    return st;
}

bool kn_h2_shed(kn_h2 *h, int32_t count)
{
    for (kn_h2_stream *s; count > 0 && (s = LIST_FIRST(&h->all)) != NULL; count--) {
        nghttp2_session_set_stream_user_data(h->session, s->id, NULL);
        close_stream(s, KN_H2_CANCEL);
    }
    return !LIST_EMPTY(&h->all);
}

void kn_h2_destroy(kn_h2 **h2)
{
    if (!h2 || !*h2) return;
    kn_h2 *h = *h2;
    kn_h2_shed(h, INT32_MAX);
    nghttp2_session_del(h->session);
    kn_free(h->text);
    kn_free(h);
    *h2 = NULL;
}

kn_status kn_h2_receive(kn_h2 *h, const void *bytes, size_t count, int64_t now_ns)
{
    h->now_ns = now_ns;
    if (h->failed) return KN_CORRUPT;
    const ssize_t used = nghttp2_session_mem_recv(h->session, bytes, count);
    if (!h->in_section) { /* no section is half read: its memory is not kept for an idle connection */
        kn_free(h->text);
        h->text = NULL;
    }
    if (used >= 0 && !h->failed) return KN_OK;
    if (!h->failed) {
        h->failed = true;
        h->abused = used != NGHTTP2_ERR_NOMEM;
        h->error = used == NGHTTP2_ERR_FLOODED ? NGHTTP2_ENHANCE_YOUR_CALM
                   : h->abused                 ? NGHTTP2_PROTOCOL_ERROR
                                               : NGHTTP2_INTERNAL_ERROR;
        snprintf(h->failure, sizeof h->failure, "%s", nghttp2_strerror((int)used));
    }
    return h->abused ? KN_CORRUPT : KN_NOMEM;
}

/* By hand: nghttp2 takes no more calls after a callback has stopped it. */
static kn_status say_calm_down(kn_h2 *h, struct evbuffer *out)
{
    const size_t debug = strlen(h->failure), size = OPAQUE_BYTES + debug;
    const uint32_t last = (uint32_t)nghttp2_session_get_last_proc_stream_id(h->session);
    const uint8_t frame[FRAME_HEAD_BYTES + OPAQUE_BYTES] = {0,
                                                            (uint8_t)(size >> 8),
                                                            (uint8_t)size,
                                                            NGHTTP2_GOAWAY,
                                                            0,
                                                            0,
                                                            0,
                                                            0,
                                                            0,
                                                            (uint8_t)(last >> 24),
                                                            (uint8_t)(last >> 16),
                                                            (uint8_t)(last >> 8),
                                                            (uint8_t)last,
                                                            0,
                                                            0,
                                                            0,
                                                            h->error};
    h->said_goodbye = true;
    if (evbuffer_add(out, frame, sizeof frame) != 0 || evbuffer_add(out, h->failure, debug) != 0) return KN_NOMEM;
    return KN_OK;
}

kn_status kn_h2_produce(kn_h2 *h, struct evbuffer *out, size_t room, int64_t now_ns)
{
    const uint8_t *bytes;
    kn_status st = KN_OK;
    h->now_ns = now_ns;
    h->out = out;
    h->room = room;
    while (!h->failed && st == KN_OK && evbuffer_get_length(out) < room) {
        const ssize_t count = nghttp2_session_mem_send(h->session, &bytes);
        if (count == 0) break;
        if (count < 0) {
            h->failed = true;
            h->error = NGHTTP2_INTERNAL_ERROR;
        } else if (evbuffer_add(out, bytes, (size_t)count) != 0) {
            st = KN_NOMEM;
        }
    }
    h->out = NULL;
    if (h->failed && !h->said_goodbye) st = say_calm_down(h, out);
    return st;
}

bool kn_h2_wants_write(const kn_h2 *h)
{
    return !h->failed && nghttp2_session_want_write(h->session);
}

bool kn_h2_finished(const kn_h2 *h)
{
    return h->failed || (!nghttp2_session_want_read(h->session) && !nghttp2_session_want_write(h->session)) ||
           (h->said_goodbye && h->streams == 0 && !nghttp2_session_want_write(h->session));
}

bool kn_h2_abused(const kn_h2 *h)
{
    return h->abused;
}

const char *kn_h2_failure(const kn_h2 *h)
{
    return h->failure;
}

int32_t kn_h2_streams(const kn_h2 *h)
{
    return h->streams;
}

void kn_h2_shutdown_notice(kn_h2 *h)
{
    if (!h->failed) nghttp2_submit_shutdown_notice(h->session);
}

void kn_h2_goaway(kn_h2 *h, uint32_t error, const char *debug)
{
    if (h->failed) return;
    nghttp2_submit_goaway(h->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(h->session), error,
                          (const uint8_t *)debug, strlen(debug));
}
