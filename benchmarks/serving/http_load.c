/* SPDX-License-Identifier: Apache-2.0
 *
 * Asks an HTTP/1.1 server on this machine the same thing over and over, from one thread, and says how it answered, as
 * one JSON object on standard output. Two ways of asking:
 *
 *   closed loop   each connection asks again as soon as it has its answer: the rate is what the server makes of it
 *   open loop     --rate R: request k is due at k / R seconds and goes over whichever connection is free. A request's
 *                 latency counts from when it was due, not from when a connection was free at last, so that a server
 *                 that stands still is charged with everybody who waited meanwhile
 *
 *   http_load --port N [--connections N] [--seconds S] [--count N] [--rate R] [--ids FILE] [--keep FILE]
 *             METHOD PATH [BODY]
 *
 * A "{}" in PATH becomes the next line of --ids. --keep writes the ids ("id":"...") of the answers with 200, a line
 * each. Latencies are kept in buckets of 1.6 %. Connections that are closed are opened again. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

enum {
    CONNECTIONS_MAX = 1024,
    OUT_BYTES = 8 << 10,
    IN_BYTES = 64 << 10, /* a reply's head and body */
    ID_BYTES = 64,
    OUTCOMES_MAX = 8,
    SUB_BUCKETS = 64, /* of a power of two */
    BUCKETS = 48 * SUB_BUCKETS,
    SETTLE_MS = 20000, /* for the last answers */
};

typedef struct outcome {
    int status;
    uint64_t count;
    int64_t max_ns;
    uint64_t buckets[BUCKETS];
} outcome;

typedef struct connection {
    int fd;
    bool busy;
    int64_t due_ns;
    size_t to_send, sent, got;
    char out[OUT_BYTES], in[IN_BYTES];
} connection;

typedef struct load {
    int port, connection_count;
    double seconds, rate; /* rate 0: closed loop */
    uint64_t count;       /* requests at most; 0: no limit */
    const char *method, *path, *body;
    char (*ids)[ID_BYTES]; /* [id_count] */
    size_t id_count, next_id;
    FILE *keep;
    int epoll;
    connection *connections; /* [connection_count] */
    int *idle;               /* [idle_count] */
    int idle_count;
    int64_t start_ns, last_ns;
    uint64_t issued, answered, broken, without_retry_after, reply_bytes;
    outcome outcomes[OUTCOMES_MAX];
    int outcome_count;
} load;

static void die(const char *what)
{
    fprintf(stderr, "http_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- latencies ---- */

static int bucket_of(int64_t ns)
{
    const uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    if (value < SUB_BUCKETS) return (int)value;
    const int shift = 63 - __builtin_clzll(value) - 6;
    const int bucket = (shift + 1) * SUB_BUCKETS + (int)((value >> shift) - SUB_BUCKETS);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/* The upper end of a bucket, in nanoseconds. */
static double value_of(int bucket)
{
    if (bucket < SUB_BUCKETS) return bucket;
    const int shift = bucket / SUB_BUCKETS - 1;
    return (double)((uint64_t)(bucket % SUB_BUCKETS + SUB_BUCKETS + 1) << shift);
}

static void record(load *l, int status, int64_t ns)
{
    outcome *o = l->outcomes;
    while (o < l->outcomes + l->outcome_count && o->status != status) o++;
    if (o == l->outcomes + OUTCOMES_MAX) return;
    if (o == l->outcomes + l->outcome_count) {
        l->outcome_count++;
        o->status = status;
    }
    o->count++;
    o->buckets[bucket_of(ns)]++;
    if (ns > o->max_ns) o->max_ns = ns;
}

static double quantile_ms(const outcome *o, double part)
{
    uint64_t before = 0;
    const double wanted = part * (double)o->count;
    for (int i = 0; i < BUCKETS; i++) {
        before += o->buckets[i];
        if (before > 0 && (double)before >= wanted) {
            const double ns = value_of(i);
            return (ns < (double)o->max_ns ? ns : (double)o->max_ns) * 1e-6;
        }
    }
    return 0.0;
}

static void print_report(const load *l)
{
    const double seconds = kn_clock_seconds(l->last_ns - l->start_ns);
    printf("{\"seconds\":%.6f,\"requests\":%" PRIu64 ",\"per_second\":%.1f,\"unanswered\":%" PRIu64
           ",\"broken\":%" PRIu64 ",\"without_retry_after\":%" PRIu64 ",\"reply_bytes\":%" PRIu64 ",\"statuses\":{",
           seconds, l->answered, seconds > 0.0 ? (double)l->answered / seconds : 0.0, l->issued - l->answered,
           l->broken, l->without_retry_after, l->reply_bytes);
    for (int i = 0; i < l->outcome_count; i++) {
        const outcome *o = &l->outcomes[i];
        printf("%s\"%d\":{\"count\":%" PRIu64 ",\"p50_ms\":%.4f,\"p90_ms\":%.4f,\"p99_ms\":%.4f,\"p999_ms\":%.4f,"
               "\"max_ms\":%.4f}",
               i ? "," : "", o->status, o->count, quantile_ms(o, 0.5), quantile_ms(o, 0.9), quantile_ms(o, 0.99),
               quantile_ms(o, 0.999), (double)o->max_ns * 1e-6);
    }
    printf("}}\n");
}

/* ---- connections ---- */

static void connect_one(load *l, int index)
{
    connection *c = &l->connections[index];
    const int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)l->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fcntl(c->fd, F_SETFL, O_NONBLOCK) != 0) die("fcntl");
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0) die("epoll_ctl");
}

static void make_idle(load *l, connection *c)
{
    c->busy = false;
    l->idle[l->idle_count++] = (int)(c - l->connections);
}

/* Its request, if it has one, gets no answer any more. */
static void reopen(load *l, connection *c)
{
    const int index = (int)(c - l->connections);
    close(c->fd);
    connect_one(l, index);
    if (!c->busy) return;
    l->broken++;
    make_idle(l, c);
}

static void watch(load *l, const connection *c, bool writing)
{
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0u),
                                .data.u32 = (uint32_t)(c - l->connections)};
    if (epoll_ctl(l->epoll, EPOLL_CTL_MOD, c->fd, &event) != 0) die("epoll_ctl");
}

static void push(load *l, connection *c)
{
    const bool waited = c->sent > 0;
    while (c->sent < c->to_send) {
        const ssize_t got = send(c->fd, c->out + c->sent, c->to_send - c->sent, MSG_NOSIGNAL);
        if (got > 0) {
            c->sent += (size_t)got;
        } else if (got < 0 && errno == EAGAIN) {
            watch(l, c, true);
            return;
        } else {
            reopen(l, c);
            return;
        }
    }
    if (waited) watch(l, c, false);
}

static void ask(load *l, int64_t due_ns)
{
    connection *c = &l->connections[l->idle[--l->idle_count]];
    const char *hole = l->id_count > 0 ? strstr(l->path, "{}") : NULL;
    const char *id = hole ? l->ids[l->next_id++ % l->id_count] : "";
    const int head = hole ? (int)(hole - l->path) : (int)strlen(l->path);
    int bytes;
    if (l->body)
        bytes = snprintf(c->out, OUT_BYTES,
                         "%s %.*s%s%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         "Content-Length: %zu\r\n\r\n%s",
                         l->method, head, l->path, id, hole ? hole + 2 : "", strlen(l->body), l->body);
    else
        bytes = snprintf(c->out, OUT_BYTES, "%s %.*s%s%s HTTP/1.1\r\nHost: localhost\r\n\r\n", l->method, head, l->path,
                         id, hole ? hole + 2 : "");
    if (bytes < 0 || bytes >= OUT_BYTES) {
        fprintf(stderr, "http_load: the request is longer than %d bytes\n", OUT_BYTES);
        exit(1);
    }
    c->busy = true;
    c->due_ns = due_ns;
    c->to_send = (size_t)bytes;
    c->sent = c->got = 0;
    l->issued++;
    push(l, c);
}

/* ---- replies ---- */

static const char *field(const char *head, const char *end, const char *name)
{
    const size_t count = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n"))
        if (strncasecmp(line + 2, name, count) == 0 && line[2 + count] == ':') return line + count + 3;
    return NULL;
}

static void keep_id(const load *l, const char *body)
{
    const char *id = strstr(body, "\"id\":\"");
    if (!id) return;
    id += 6;
    fprintf(l->keep, "%.*s\n", (int)strcspn(id, "\""), id);
}

/* Bytes have come. */
static void take(load *l, connection *c)
{
    const ssize_t got = recv(c->fd, c->in + c->got, IN_BYTES - 1 - c->got, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0 || !c->busy) {
        reopen(l, c);
        return;
    }
    c->got += (size_t)got;
    c->in[c->got] = '\0';
    const char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return;
    const char *length = field(c->in, end, "content-length");
    const size_t total = (size_t)(end + 4 - c->in) + (length ? strtoul(length, NULL, 10) : 0);
    if (total > IN_BYTES - 1) {
        fprintf(stderr, "http_load: a reply is longer than %d bytes\n", IN_BYTES);
        exit(1);
    }
    if (c->got < total) return;
    const int status = (int)strtol(c->in + sizeof "HTTP/1.1", NULL, 10);
    const int64_t now = kn_clock_ns();
    record(l, status, now - c->due_ns);
    l->last_ns = now;
    l->answered++;
    l->reply_bytes += total;
    if ((status == 429 || status == 503) && !field(c->in, end, "retry-after")) l->without_retry_after++;
    if (status == 200 && l->keep) keep_id(l, end);
    make_idle(l, c);
    const char *close_after = field(c->in, end, "connection");
    if (close_after && strncasecmp(close_after + 1, "close", 5) == 0) reopen(l, c);
}

/* ---- the loop ---- */

/* Asks what is due; returns when the next one is, or -1 when that depends on an answer. */
static int64_t ask_due(load *l, int64_t now)
{
    while (l->idle_count > 0 && (l->count == 0 || l->issued < l->count)) {
        if (l->rate <= 0.0) {
            ask(l, kn_clock_ns());
            continue;
        }
        const int64_t due = l->start_ns + (int64_t)((double)l->issued / l->rate * 1e9);
        if (due > now) return due;
        ask(l, due);
    }
    return -1;
}

static void wait_for_events(load *l, int64_t until)
{
    struct epoll_event events[256];
    const int64_t left = until - kn_clock_ns(), ns = left > 0 ? left : 0;
    const struct timespec timeout = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    const int count = epoll_pwait2(l->epoll, events, 256, &timeout, NULL);
    if (count < 0 && errno != EINTR) die("epoll_pwait2");
    for (int i = 0; i < count; i++) {
        connection *c = &l->connections[events[i].data.u32];
        if (events[i].events & EPOLLOUT) push(l, c);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take(l, c);
    }
}

static void run(load *l)
{
    l->start_ns = l->last_ns = kn_clock_ns();
    const int64_t end = l->start_ns + (int64_t)(l->seconds * 1e9);
    for (int64_t now = l->start_ns; now < end; now = kn_clock_ns()) {
        if (l->count > 0 && l->issued >= l->count && l->idle_count == l->connection_count) return;
        const int64_t next = ask_due(l, now);
        wait_for_events(l, next >= 0 && next < end ? next : end);
    }
    const int64_t late = end + INT64_C(1000000) * SETTLE_MS;
    while (l->idle_count < l->connection_count && kn_clock_ns() < late) wait_for_events(l, late);
}

static void read_ids(load *l, const char *path)
{
    FILE *file = fopen(path, "r");
    size_t room = 0;
    char line[ID_BYTES];
    if (!file) die(path);
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (l->id_count == room) {
            room = room ? 2 * room : 1024;
            l->ids = kn_realloc(l->ids, room * sizeof *l->ids);
            if (!l->ids) die("memory");
        }
        memcpy(l->ids[l->id_count++], line, sizeof line);
    }
    fclose(file);
}

static void usage(void)
{
    fputs("usage: http_load --port N [--connections N] [--seconds S] [--count N] [--rate R] [--ids FILE] [--keep FILE]"
          " METHOD PATH [BODY]\n",
          stderr);
    exit(64);
}

static void read_arguments(load *l, int argc, char **argv)
{
    int i = 1;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        const char *name = argv[i] + 2, *value = argv[i + 1];
        if (strcmp(name, "port") == 0)
            l->port = (int)strtol(value, NULL, 10);
        else if (strcmp(name, "connections") == 0)
            l->connection_count = (int)strtol(value, NULL, 10);
        else if (strcmp(name, "seconds") == 0)
            l->seconds = strtod(value, NULL);
        else if (strcmp(name, "count") == 0)
            l->count = strtoull(value, NULL, 10);
        else if (strcmp(name, "rate") == 0)
            l->rate = strtod(value, NULL);
        else if (strcmp(name, "ids") == 0)
            read_ids(l, value);
        else if (strcmp(name, "keep") == 0)
            l->keep = fopen(value, "w");
        else
            usage();
    }
    if (argc - i < 2 || argc - i > 3 || l->port <= 0 || l->connection_count < 1 ||
        l->connection_count > CONNECTIONS_MAX || (l->id_count == 0 && strstr(argv[i + 1], "{}")))
        usage();
    l->method = argv[i];
    l->path = argv[i + 1];
    l->body = argc - i == 3 ? argv[i + 2] : NULL;
}

int main(int argc, char **argv)
{
    load *l = kn_alloc(sizeof *l);
    if (!l) die("memory");
    l->connection_count = 1;
    l->seconds = 10.0;
    read_arguments(l, argc, argv);
    prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->connections = kn_alloc_array((size_t)l->connection_count, sizeof *l->connections);
    l->idle = kn_alloc_array((size_t)l->connection_count, sizeof *l->idle);
    if (l->epoll < 0 || !l->connections || !l->idle) die("memory");
    for (int i = 0; i < l->connection_count; i++) {
        connect_one(l, i);
        make_idle(l, &l->connections[i]);
    }
    run(l);
    print_report(l);
    for (int i = 0; i < l->connection_count; i++) close(l->connections[i].fd);
    if (l->keep && fclose(l->keep) != 0) die("--keep");
    close(l->epoll);
    kn_free(l->ids);
    kn_free(l->idle);
    kn_free(l->connections);
    kn_free(l);
    return 0;
}
