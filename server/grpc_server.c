/* SPDX-License-Identifier: Apache-2.0
 *
 * The gRPC server, its clock, and its connections' sockets. Bytes go from a connection's input to HTTP/2 and from there
 * to the socket, in a scratch buffer where the system takes them at once; what it does not take waits in the
 * connection's output, and then nothing more is produced until that has drained.
 *
 * A connection is freed in four places only: after its own read or write, in its turn, by the clock and by the wake-up;
 * never below a function that a service called. */
#define _DEFAULT_SOURCE
#include <event2/bufferevent_ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/grpc_internal.h"

enum {
    TICK_MICROSECONDS = 100000,
    READ_BYTES = 8 << 10,            /* of a connection at a time, so that a flood on one leaves room for the others */
    UPLOAD_BYTES = 64 << 10,         /* the same where most of it is messages, which cost little to take */
    KERNEL_BYTES = KN_H2_WINDOW / 2, /* received by the system and not read yet; it takes as much again to keep them */
    OUTPUT_BYTES = 128 << 10,        /* of a connection, waiting for the system */
    SLICE_BYTES = 4 << 10,           /* read before what came of it is sent */
    PIECE_BYTES = 512,               /* the same of a connection that has to wait for its turns */
    PIECE_NS = 10000,                /* of a turn: no slice begins later */
    SHED_STREAMS = 16,               /* the same of what a client that is gone has left behind */
    DISCARD_BYTES = 16 << 10,        /* what still comes behind the end of a connection, at a time */
    TURN_BYTES = 2 << 20,            /* sent of one connection before the others have their turn */
};

#define NOTICE_NS INT64_C(300000000)  /* from the shutdown notice to the real GOAWAY */
#define LINGER_NS INT64_C(1000000000) /* for the client to read why, after an error */

/* ---- connections ---- */

static void free_connection(kn_grpc_connection *c)
{
    kn_grpc_server *s = c->server;
    c->dead = true;
    kn_h2_destroy(&c->h2);
    if (c->is_ready) TAILQ_REMOVE(&s->ready, c, ready);
    kn_turns_leave(s->turns, &c->turn);
    LIST_REMOVE(c, all);
    if (c->caller && --c->caller->references == 0) kn_free(c->caller);
    bufferevent_free(c->stream);
    kn_http_taken_release(&c->taken);
    s->stats.connections--;
    kn_free(c);
}

void kn_grpc_schedule(kn_grpc_connection *c)
{
    if (c->is_ready || c->dead || c->gone || c->reading) return;
    c->is_ready = true;
    TAILQ_INSERT_TAIL(&c->server->ready, c, ready);
    event_active(c->server->wake, EV_TIMEOUT, 0);
}

/* Only the bytes that the client still has to take are sent, then the socket closes. */
static void begin_closing(kn_grpc_connection *c)
{
    if (c->closing) return;
    c->closing = true;
    c->closing_ns = c->server->now_ns;
    if (!kn_h2_abused(c->h2)) return;
    c->standing = (kn_standing){0};
    c->server->stats.abused++;
    kn_log(KN_LOG_INFO, "grpc: a connection from %s was ended: %s", kn_http_taken_remote(c->taken),
           kn_h2_failure(c->h2));
}

/* What the system takes at once never enters the connection's own buffer. */
static kn_status send_scratch(kn_grpc_connection *c)
{
    struct evbuffer *scratch = c->server->scratch, *output = bufferevent_get_output(c->stream);
    if (!c->tls && evbuffer_get_length(output) == 0) {
        while (evbuffer_get_length(scratch) > 0)
            if (evbuffer_write(scratch, c->fd) <= 0) break; /* errors come back as an event of the stream */
    }
    if (evbuffer_get_length(scratch) == 0) return KN_OK;
    return evbuffer_add_buffer(output, scratch) == 0 ? KN_OK : KN_NOMEM;
}

static void flush(kn_grpc_connection *c)
{
    kn_grpc_server *s = c->server;
    struct evbuffer *output = bufferevent_get_output(c->stream);
    size_t turn = 0;
    while (evbuffer_get_length(output) < OUTPUT_BYTES && turn < TURN_BYTES) {
        kn_status st = kn_h2_produce(c->h2, s->scratch, OUTPUT_BYTES, s->now_ns);
        const size_t made = evbuffer_get_length(s->scratch);
        turn += made;
        if (st == KN_OK && made > 0) st = send_scratch(c);
        if (st != KN_OK) {
            evbuffer_drain(s->scratch, evbuffer_get_length(s->scratch));
            c->dead = true;
        }
        if (made == 0 || c->dead) break;
    }
    kn_standing_earn(&c->standing, (int64_t)turn * KN_STANDING_BYTE_NS);
    if (turn >= TURN_BYTES) kn_grpc_schedule(c);
    c->stuck = kn_h2_streams(c->h2) - c->served;
    if (kn_h2_finished(c->h2)) begin_closing(c);
    if (c->closing && evbuffer_get_length(output) == 0 && !c->tls) shutdown(c->fd, SHUT_WR);
}

static void wait_for_turn(kn_grpc_connection *c)
{
    kn_turns_wait(c->server->turns, &c->turn);
    bufferevent_disable(c->stream, EV_READ);
}

/* Nobody reads it any more; TCP drops it without a copy. */
static void discard(kn_grpc_connection *c, struct evbuffer *input)
{
    evbuffer_drain(input, evbuffer_get_length(input));
    if (!c->tls) recv(c->fd, NULL, DISCARD_BYTES, MSG_TRUNC | MSG_DONTWAIT); /* what fails there the stream will see */
}

/* A slice of what has come, and what came of it. False: the connection ends. */
static bool receive_slice(kn_grpc_connection *c, struct evbuffer *input)
{
    kn_grpc_server *s = c->server;
    const size_t most = kn_standing_good(&c->standing) ? SLICE_BYTES : PIECE_BYTES;
    const size_t there = evbuffer_get_contiguous_space(input), count = there < most ? there : most;
    const int64_t began_ns = s->now_ns;
    c->reading = true;
    const kn_status st = kn_h2_receive(c->h2, evbuffer_pullup(input, (ev_ssize_t)count), count, began_ns);
    evbuffer_drain(input, count);
    c->reading = false;
    flush(c);
    s->now_ns = kn_clock_ns();
    kn_standing_spend(&c->standing, s->now_ns - began_ns);
    return st == KN_OK && !c->dead && !c->closing;
}

static void receive(kn_grpc_connection *c)
{
    const kn_grpc_server *s = c->server;
    struct evbuffer *input = bufferevent_get_input(c->stream);
    const size_t waiting = evbuffer_get_length(input), data_before = c->data_bytes;
    const int64_t enough_ns = s->now_ns + PIECE_NS;
    if (c->closing) {
        discard(c, input);
        return;
    }
    if (waiting == 0) flush(c); /* the server's own first words */
    do {
        if (evbuffer_get_length(input) > 0 && !receive_slice(c, input)) return;
    } while (evbuffer_get_length(input) > 0 && (s->now_ns < enough_ns || kn_standing_good(&c->standing)));
    if (evbuffer_get_length(input) > 0) wait_for_turn(c);
    const bool uploads = c->data_bytes - data_before > waiting / 2;
    if (uploads == c->uploads) return;
    c->uploads = uploads;
    bufferevent_set_max_single_read(c->stream, uploads ? UPLOAD_BYTES : READ_BYTES);
}

static void on_turn(void *context)
{
    kn_grpc_connection *c = context;
    const bool unread = evbuffer_get_length(bufferevent_get_input(c->stream)) > 0 && !c->closing;
    c->server->now_ns = kn_clock_ns();
    if (!c->gone || unread)
        receive(c);
    else
        c->dead = !kn_h2_shed(c->h2, SHED_STREAMS);
    if (c->dead)
        free_connection(c);
    else if (c->gone)
        wait_for_turn(c);
    else if (!c->turn.waits)
        bufferevent_enable(c->stream, EV_READ);
}

static void on_read(struct bufferevent *stream, void *context)
{
    kn_grpc_connection *c = context;
    kn_grpc_server *s = c->server;
    (void)stream;
    if (c->turn.waits || !kn_standing_good(&c->standing)) {
        wait_for_turn(c);
        return;
    }
    s->now_ns = kn_clock_ns();
    receive(c);
    if (c->dead) free_connection(c);
    kn_turns_passed(s->turns, s->now_ns);
}

static void on_write(struct bufferevent *stream, void *context)
{
    kn_grpc_connection *c = context;
    kn_grpc_server *s = c->server;
    (void)stream;
    c->moved_ns = s->now_ns = kn_clock_ns();
    flush(c);
    if (c->dead) free_connection(c);
    kn_turns_passed(s->turns, s->now_ns);
}

static void on_event(struct bufferevent *stream, short what, void *context)
{
    (void)stream;
    if (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) {
        kn_grpc_connection *c = context;
        c->gone = true;
        wait_for_turn(c);
    }
}

static int64_t jittered(const kn_grpc_server *s)
{
    uint8_t random = 0;
    if (s->limits.age_ns == 0) return 0;
    if (getrandom(&random, sizeof random, 0) < 0) random = 0;
    return s->limits.age_ns / 10 * 9 + s->limits.age_ns / 1280 * random;
}

bool kn_grpc_server_take(kn_grpc_server *s, kn_http_taken *taken, struct bufferevent *stream)
{
    const int64_t now_ns = s->now_ns = kn_clock_ns();
    kn_grpc_connection *c = kn_alloc(sizeof *c);
    if (!c) return false;
    const kn_h2_params params = {.callbacks = {.request = kn_grpc_on_request,
                                               .data = kn_grpc_on_data,
                                               .end = kn_grpc_on_end,
                                               .drained = kn_grpc_on_drained,
                                               .closed = kn_grpc_on_closed},
                                 .context = c,
                                 .shared = &s->shared,
                                 .streams = s->limits.streams,
                                 .ping_ns = s->limits.ping_ns,
                                 .now_ns = now_ns};
    c->server = s;
    if (kn_h2_create(&c->h2, &params) != KN_OK) {
        kn_free(c);
        return false;
    }
    c->taken = taken;
    c->turn = (kn_turn){.run = on_turn, .context = c};
    c->stream = stream;
    c->fd = bufferevent_getfd(stream);
    c->tls = bufferevent_openssl_get_ssl(stream) != NULL;
    c->opened_ns = c->busy_ns = c->moved_ns = now_ns;
    c->age_ns = jittered(s);
    LIST_INIT(&c->calls);
    LIST_INSERT_HEAD(&s->connections, c, all);
    s->stats.connections++;
    s->stats.accepted++;
    /* The system's buffer grows to megabytes otherwise, which only a client that ignores HTTP/2's window can fill. */
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &(int){KERNEL_BYTES}, sizeof(int));
    bufferevent_set_max_single_read(stream, READ_BYTES);
    bufferevent_setwatermark(stream, EV_READ, 0, UPLOAD_BYTES);
    bufferevent_setwatermark(stream, EV_WRITE, OUTPUT_BYTES / 2, 0);
    bufferevent_setcb(stream, on_read, on_write, on_event, c);
    if (s->draining) kn_h2_goaway(c->h2, KN_H2_NO_ERROR, "draining");
    wait_for_turn(c);
    return true;
}

/* ---- the clock ---- */

static void check_call(kn_grpc_call *call, int64_t now_ns)
{
    kn_grpc_server *s = call->connection->server;
    const bool stalled = now_ns - kn_h2_stream_moved_ns(call->stream) > s->limits.stall_ns;
    if (!call->over && call->deadline_ns && now_ns >= call->deadline_ns) {
        kn_grpc_call_end(call, KN_GRPC_DEADLINE_EXCEEDED, "the deadline has passed");
    } else if (stalled && kn_h2_queued(call->stream) > 0) { /* its client takes nothing of what it asked for */
        s->stats.stalled++;
        kn_grpc_call_end(call, KN_GRPC_CANCELLED, "");
        kn_h2_reset(call->stream, KN_H2_ENHANCE_YOUR_CALM);
        kn_grpc_schedule(call->connection);
    } else if (stalled && !call->over && !call->half_closed && !call->paused && call->method &&
               !(call->method->client_streams && call->method->server_streams)) {
        s->stats.stalled++;
        kn_grpc_call_end(call, KN_GRPC_CANCELLED, "the rest of the request did not come");
    }
}

static void say_goodbye(kn_grpc_connection *c, int64_t now_ns, const char *why)
{
    if (c->notice_ns == 0) {
        c->notice_ns = now_ns;
        kn_h2_shutdown_notice(c->h2);
    } else if (!c->goaway && now_ns - c->notice_ns >= NOTICE_NS) {
        c->goaway = true;
        kn_h2_goaway(c->h2, KN_H2_NO_ERROR, why);
    } else {
        return;
    }
    kn_grpc_schedule(c);
}

static void check_connection(kn_grpc_connection *c, int64_t now_ns)
{
    kn_grpc_server *s = c->server;
    const size_t waiting = evbuffer_get_length(bufferevent_get_output(c->stream));
    kn_grpc_call *call, *next;
    for (call = LIST_FIRST(&c->calls); call; call = next) {
        next = LIST_NEXT(call, next); /* a call is freed by HTTP/2 alone, and that is not run from here */
        check_call(call, now_ns);
    }
    if (waiting == 0 || waiting < c->output_seen) c->moved_ns = now_ns;
    c->output_seen = waiting;
    if (now_ns - c->moved_ns > s->limits.stall_ns ||
        (c->closing && now_ns - c->closing_ns > LINGER_NS && waiting == 0)) {
        s->stats.stalled += !c->closing;
        c->dead = true;
    } else if (s->draining) {
        say_goodbye(c, now_ns, "draining");
    } else if (c->age_ns > 0 && now_ns - c->opened_ns > c->age_ns) {
        say_goodbye(c, now_ns, "max_age");
    } else if (kn_h2_streams(c->h2) == 0 && now_ns - c->busy_ns > s->limits.idle_ns) {
        say_goodbye(c, now_ns, "max_idle");
    }
}

static void on_tick(evutil_socket_t fd, short what, void *context)
{
    kn_grpc_server *s = context;
    kn_grpc_connection *c, *next;
    (void)fd, (void)what;
    s->now_ns = kn_clock_ns();
    for (c = LIST_FIRST(&s->connections); c; c = next) {
        next = LIST_NEXT(c, all);
        check_connection(c, s->now_ns);
        if (c->dead) free_connection(c);
    }
}

static void on_wake(evutil_socket_t fd, short what, void *context)
{
    kn_grpc_server *s = context;
    kn_grpc_connection *c;
    kn_grpc_call *call, *next;
    (void)fd, (void)what;
    TAILQ_HEAD(, kn_grpc_connection) turn = TAILQ_HEAD_INITIALIZER(turn);
    TAILQ_CONCAT(&turn, &s->ready, ready);
    s->now_ns = kn_clock_ns();
    while ((c = TAILQ_FIRST(&turn)) != NULL) { /* what is scheduled meanwhile waits for the loop's next turn */
        TAILQ_REMOVE(&turn, c, ready);
        c->is_ready = false;
        for (call = LIST_FIRST(&c->calls); call; call = next) {
            next = LIST_NEXT(call, next);
            if (call->resumed) kn_grpc_call_run(call);
        }
        flush(c);
        if (c->dead) free_connection(c);
    }
    kn_turns_passed(s->turns, s->now_ns);
}

/* ---- methods ---- */

static int by_path(const void *a, const void *b)
{
    return strcmp(((const kn_grpc_entry *)a)->path, ((const kn_grpc_entry *)b)->path);
}

const kn_grpc_entry *kn_grpc_find(const kn_grpc_server *s, const char *path, size_t bytes)
{
    size_t low = 0, high = s->entry_count;
    (void)bytes;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(path, s->entries[middle].path);
        if (order == 0) return &s->entries[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static kn_status list_methods(kn_grpc_server *s)
{
    size_t count = 0;
    for (size_t i = 0; i < s->params.service_count; i++) count += s->params.services[i]->method_count;
    s->entries = kn_alloc_array(count + 1, sizeof *s->entries);
    if (!s->entries) return KN_NOMEM;
    for (size_t i = 0; i < s->params.service_count; i++) {
        const kn_grpc_service *service = s->params.services[i];
        for (size_t m = 0; m < service->method_count; m++) {
            KN_REQUIRE(service->methods[m].message);
            char *path = kn_format("/%s/%s", service->name, service->methods[m].name);
            if (!path) return KN_NOMEM;
            s->entries[s->entry_count++] =
                (kn_grpc_entry){.path = path, .path_bytes = strlen(path), .method = &service->methods[m]};
        }
    }
    qsort(s->entries, s->entry_count, sizeof *s->entries, by_path);
    return KN_OK;
}

size_t kn_grpc_service_count(const kn_grpc_server *s)
{
    return s->params.service_count;
}

const kn_grpc_service *kn_grpc_service_at(const kn_grpc_server *s, size_t index)
{
    return s->params.services[index];
}

/* ---- create, drain, destroy ---- */

static const kn_grpc_limits defaults = {.streams = KN_GRPC_STREAMS_MAX,
                                        .streams_total = 16384,
                                        .memory_bytes = 32 << 20,
                                        .stall_ns = INT64_C(30000000000),
                                        .idle_ns = INT64_C(600000000000),
                                        .ping_ns = INT64_C(10000000000)};

#define FILL(field)                                                                                                    \
    if (s->limits.field == 0) s->limits.field = defaults.field

kn_status kn_grpc_server_create(kn_grpc_server **out, const kn_grpc_params *params)
{
    kn_status st = KN_OK;
    const struct timeval tick = {.tv_usec = TICK_MICROSECONDS};
    KN_REQUIRE(params->base && params->turns && params->service_count <= KN_GRPC_SERVICES_MAX);
    kn_grpc_server *s = kn_alloc(sizeof *s);
    if (!s) return KN_NOMEM;
    s->base = params->base;
    s->turns = params->turns;
    s->params = *params;
    s->limits = params->limits;
    FILL(streams);
    FILL(streams_total);
    FILL(memory_bytes);
    FILL(stall_ns);
    FILL(idle_ns);
    FILL(ping_ns);
    s->memory.limit = s->limits.memory_bytes;
    s->shared.streams_max = s->limits.streams_total;
    TAILQ_INIT(&s->ready);
    LIST_INIT(&s->connections);
    KN_TRY(list_methods(s));
    s->scratch = evbuffer_new();
    s->tick = event_new(s->base, -1, EV_PERSIST, on_tick, s);
    s->wake = event_new(s->base, -1, 0, on_wake, s);
    if (!s->scratch || !s->tick || !s->wake || event_add(s->tick, &tick) != 0)
        KN_TRY(kn_fail(KN_NOMEM, "no memory for the gRPC server"));
    *out = s;
    return KN_OK;
fail:
    kn_grpc_server_destroy(&s);
    return st;
}

#undef FILL

void kn_grpc_server_drain(kn_grpc_server *s)
{
    s->draining = true; /* the clock tells the connections */
}

void kn_grpc_server_destroy(kn_grpc_server **server)
{
    if (!server || !*server) return;
    kn_grpc_server *s = *server;
    kn_grpc_connection *c;
    s->draining = true;
    while ((c = LIST_FIRST(&s->connections)) != NULL) free_connection(c);
    for (size_t i = 0; i < s->entry_count; i++) kn_free(s->entries[i].path);
    kn_free(s->entries);
    if (s->scratch) evbuffer_free(s->scratch);
    if (s->tick) event_free(s->tick);
    if (s->wake) event_free(s->wake);
    kn_free(s);
    *server = NULL;
}

kn_grpc_stats kn_grpc_server_stats(const kn_grpc_server *s)
{
    kn_grpc_stats stats = s->stats;
    stats.memory_bytes = s->memory.held;
    return stats;
}
