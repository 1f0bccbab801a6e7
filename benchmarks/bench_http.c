/* SPDX-License-Identifier: Apache-2.0
 *
 * The HTTP server on loopback: one thread runs it, the calling thread is its clients.
 *
 *   closed loop   every connection asks again as soon as it is answered: the most there is. The rate that counts is
 *                 per second of the server thread's own processor time, since the clients share the machine with it.
 *   open loop     requests fall due at half that rate whether or not the server keeps up, and a latency counts from
 *                 when its request was due (otherwise a stall would hide the requests it delayed).
 *   idle          connections that were answered once and wait: resident memory, the kernel's not included. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "benchmarks/bench_http.h"
#include "server/http.h"

enum {
    CONNECTIONS = 64,
    IDLE = 4000,
    OTHER_FILES = 256,
    LATENCIES = 1 << 20,
    BUFFER_BYTES = 4096,
    NANOSECONDS = 1000000000,
    LOAD_SECONDS = 3,
};

static const char request_text[] =
    "GET /v1/videos/video_0123456789abcdef0123456789abcdef HTTP/1.1\r\nHost: localhost\r\n"
    "Authorization: Bearer benchmark\r\nAccept: application/json\r\n\r\n";
static const char reply_text[] = "{\"id\":\"video_0123456789abcdef0123456789abcdef\",\"object\":\"video\","
                                 "\"status\":\"in_progress\",\"progress\":50,\"seconds\":\"4\",\"size\":\"1280x720\"}";

typedef struct bench_client {
    int fd;
    size_t left;    /* bytes of the reply still to come; 0: free */
    int64_t due_ns; /* when its request should have left */
} bench_client;

typedef struct http_bench {
    struct event_base *base;
    kn_turns *turns;
    kn_http_server *server;
    struct event *stop;
    int stop_pipe[2];
    pthread_t thread;
    bool running;
    size_t reply_bytes; /* of every reply, head included */
    int epoll;
    bench_client clients[CONNECTIONS];
    float *latencies; /* seconds, of the first LATENCIES replies */
    size_t answered;
} http_bench;

/* ---- the server ---- */

static void on_headers(kn_http_exchange *exchange, void *context)
{
    (void)exchange, (void)context;
}

static void on_request(kn_http_exchange *exchange, void *context)
{
    (void)context;
    (void)kn_http_reply(exchange, &(kn_http_response){.status = 200,
                                                      .content_type = "application/json",
                                                      .body = reply_text,
                                                      .body_bytes = sizeof reply_text - 1});
}

static void on_stop(evutil_socket_t fd, short what, void *context)
{
    (void)fd, (void)what;
    event_base_loopbreak(context);
}

static void *run_server(void *context)
{
    event_base_dispatch(((http_bench *)context)->base);
    return NULL;
}

static kn_status start(http_bench *u)
{
    kn_status st = KN_OK;
    static const char *const listen[] = {"127.0.0.1:0"};
    const kn_http_params params = {.listen = listen,
                                   .listen_count = 1,
                                   .limits = {.connections = IDLE + CONNECTIONS + 1},
                                   .callbacks = {.headers = on_headers, .request = on_request}};
    kn_http_params with_base = params;
    u->latencies = kn_alloc_array(LATENCIES, sizeof *u->latencies);
    u->base = event_base_new();
    if (!u->latencies || !u->base) KN_TRY(kn_fail(KN_NOMEM, "out of memory for the HTTP benchmark"));
    KN_TRY(kn_turns_create(&u->turns, u->base));
    with_base.base = u->base;
    with_base.turns = u->turns;
    KN_TRY(kn_http_server_create(&u->server, &with_base));
    u->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (u->epoll < 0 || pipe(u->stop_pipe) != 0) KN_TRY(kn_fail(KN_IO, "no descriptors: %s", strerror(errno)));
    u->stop = event_new(u->base, u->stop_pipe[0], EV_READ, on_stop, u->base);
    if (!u->stop || event_add(u->stop, NULL) != 0) KN_TRY(kn_fail(KN_NOMEM, "out of memory for the HTTP benchmark"));
    if (pthread_create(&u->thread, NULL, run_server, u) != 0) KN_TRY(kn_fail(KN_UNAVAILABLE, "no thread"));
    u->running = true;
fail:
    return st;
}

static void stop(http_bench *u)
{
    if (u->running && write(u->stop_pipe[1], "x", 1) == 1) pthread_join(u->thread, NULL);
    for (int i = 0; i < CONNECTIONS; i++)
        if (u->clients[i].fd >= 0) close(u->clients[i].fd);
    for (int i = 0; i < 2; i++)
        if (u->stop_pipe[i] >= 0) close(u->stop_pipe[i]);
    if (u->epoll >= 0) close(u->epoll);
    kn_http_server_destroy(&u->server);
    if (u->stop) event_free(u->stop);
    if (u->base) {
        event_base_loop(u->base, EVLOOP_NONBLOCK);
        kn_turns_destroy(&u->turns);
        event_base_free(u->base);
    }
    kn_free(u->latencies);
}

/* Processor time the server's thread has used, in seconds. */
static double server_seconds(const http_bench *u)
{
    clockid_t clock;
    struct timespec used;
    if (pthread_getcpuclockid(u->thread, &clock) != 0 || clock_gettime(clock, &used) != 0) return 0.0;
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

/* ---- clients ---- */

static kn_status open_client(const http_bench *u, int *out)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(kn_http_server_port(u->server, 0)),
                                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        if (fd >= 0) close(fd);
        return kn_fail(KN_IO, "cannot connect to the benchmark's own server: %s", strerror(errno));
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    *out = fd;
    return KN_OK;
}

/* One request and its whole reply; returns the reply's bytes, 0 on failure. */
static size_t ask_once(int fd)
{
    char buffer[BUFFER_BYTES];
    size_t used = 0;
    if (send(fd, request_text, sizeof request_text - 1, MSG_NOSIGNAL) != (ssize_t)(sizeof request_text - 1)) return 0;
    for (;;) {
        const ssize_t got = recv(fd, buffer + used, sizeof buffer - 1 - used, 0);
        if (got <= 0) return 0;
        used += (size_t)got;
        buffer[used] = '\0';
        const char *end = strstr(buffer, "\r\n\r\n");
        if (end && used >= (size_t)(end - buffer) + 4 + sizeof reply_text - 1) return used;
    }
}

static kn_status open_clients(http_bench *u)
{
    kn_status st = KN_OK;
    for (int i = 0; i < CONNECTIONS; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data = {.u32 = (uint32_t)i}};
        KN_TRY(open_client(u, &u->clients[i].fd));
        u->reply_bytes = ask_once(u->clients[i].fd); /* warm, and its length: all replies have the same */
        if (u->reply_bytes == 0) KN_TRY(kn_fail(KN_IO, "the benchmark's own server does not answer"));
        if (epoll_ctl(u->epoll, EPOLL_CTL_ADD, u->clients[i].fd, &event) != 0)
            KN_TRY(kn_fail(KN_IO, "epoll_ctl: %s", strerror(errno)));
    }
fail:
    return st;
}

static kn_status ask(http_bench *u, bench_client *client, int64_t due_ns)
{
    client->due_ns = due_ns;
    client->left = u->reply_bytes;
    if (send(client->fd, request_text, sizeof request_text - 1, MSG_NOSIGNAL | MSG_DONTWAIT) ==
        (ssize_t)(sizeof request_text - 1))
        return KN_OK;
    return kn_fail(KN_IO, "the benchmark's own server hung up: %s", strerror(errno));
}

/* Reads what has come; *freed counts connections whose reply is complete. */
static kn_status collect(http_bench *u)
{
    struct epoll_event events[CONNECTIONS];
    char buffer[BUFFER_BYTES];
    const int count = epoll_wait(u->epoll, events, CONNECTIONS, 0);
    for (int i = 0; i < count; i++) {
        bench_client *client = &u->clients[events[i].data.u32];
        const ssize_t got = recv(client->fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (got <= 0 || (size_t)got > client->left)
            return kn_fail(KN_IO, "the benchmark's own server sent a reply of another length");
        client->left -= (size_t)got;
        if (client->left > 0) continue;
        if (u->answered < LATENCIES)
            u->latencies[u->answered] = (float)kn_clock_seconds(kn_clock_ns() - client->due_ns);
        u->answered++;
    }
    return KN_OK;
}

/* rate 0: closed loop. Seconds it took in *elapsed. */
static kn_status load(http_bench *u, double rate, double *elapsed)
{
    kn_status st = KN_OK;
    const int64_t start_ns = kn_clock_ns();
    int64_t asked = 0, now_ns = start_ns;
    bool busy = true;
    u->answered = 0;
    while (busy || now_ns - start_ns < (int64_t)LOAD_SECONDS * NANOSECONDS) {
        busy = false;
        for (int i = 0; i < CONNECTIONS; i++) {
            const int64_t due_ns = rate > 0.0 ? start_ns + (int64_t)((double)asked / rate * 1e9) : now_ns;
            if (u->clients[i].left > 0) {
                busy = true;
            } else if (due_ns <= now_ns && now_ns - start_ns < (int64_t)LOAD_SECONDS * NANOSECONDS) {
                KN_TRY(ask(u, &u->clients[i], due_ns));
                asked++;
                busy = true;
            }
        }
        KN_TRY(collect(u));
        now_ns = kn_clock_ns();
    }
    *elapsed = kn_clock_seconds(now_ns - start_ns);
fail:
    return st;
}

/* ---- rows ---- */

static int compare_latencies(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double latency(http_bench *u, double share)
{
    const size_t count = u->answered < LATENCIES ? u->answered : LATENCIES;
    return count > 0 ? (double)u->latencies[(size_t)(share * (double)(count - 1))] : 0.0;
}

static kn_status measure_load(kn_bench *b, http_bench *u, double rate, double *per_second)
{
    kn_status st = KN_OK;
    kn_bench_row row = {0};
    double elapsed = 0.0;
    const double before = server_seconds(u);
    KN_TRY(load(u, rate, &elapsed));
    const double used = server_seconds(u) - before;
    *per_second = (double)u->answered / elapsed;
    qsort(u->latencies, u->answered < LATENCIES ? u->answered : LATENCIES, sizeof *u->latencies, compare_latencies);
    const double p50 = latency(u, 0.50), p99 = latency(u, 0.99), per_core = (double)u->answered / used;
    snprintf(row.test, sizeof row.test, "%d connections, %s loop", CONNECTIONS, rate > 0.0 ? "open" : "closed");
    snprintf(row.note, sizeof row.note, "%.0f replies/s, %.0f a core second; p50 %.3f ms, p99 %.3f ms", *per_second,
             per_core, p50 * 1e3, p99 * 1e3);
    row.extra = json_pack("{s:s, s:f, s:f, s:f, s:f}", "kind", "http", "replies_per_second", *per_second,
                          "replies_per_core_second", per_core, "p50_seconds", p50, "p99_seconds", p99);
    KN_TRY(kn_bench_put(b, &row));
fail:
    return st;
}

static kn_status measure_idle(kn_bench *b, http_bench *u)
{
    kn_status st = KN_OK;
    kn_bench_row row = {.test = "idle connections"};
    struct rlimit files = {0};
    getrlimit(RLIMIT_NOFILE, &files);
    const int64_t room = ((int64_t)files.rlim_cur - OTHER_FILES - 2 * CONNECTIONS) / 2; /* both ends are ours */
    const int wanted = room < IDLE ? (int)room : IDLE;
    int count = 0, *fds = wanted > 0 ? kn_alloc_array((size_t)wanted, sizeof *fds) : NULL;
    if (!fds) KN_TRY(kn_fail(KN_UNAVAILABLE, "the limit of open files leaves no room for idle connections"));
    const uint64_t before = kn_bench_resident();
    while (count < wanted) {
        KN_TRY(open_client(u, &fds[count]));
        if (ask_once(fds[count++]) == 0) KN_TRY(kn_fail(KN_IO, "the benchmark's own server does not answer"));
    }
    const double grown = (double)kn_bench_resident() - (double)before;
    snprintf(row.note, sizeof row.note, "%d connections hold %.1f MB, %.0f bytes each", count, grown * 1e-6,
             grown / count);
    row.extra = json_pack("{s:s, s:i, s:f}", "kind", "http_idle", "connections", count, "resident_bytes", grown);
    KN_TRY(kn_bench_put(b, &row));
fail:
    for (int i = 0; i < count; i++) close(fds[i]);
    kn_free(fds);
    return st;
}

kn_status kn_bench_http(kn_bench *b)
{
    kn_status st = KN_OK;
    double most = 0.0, half = 0.0;
    http_bench *u = kn_alloc(sizeof *u);
    if (!u) return KN_NOMEM;
    u->epoll = u->stop_pipe[0] = u->stop_pipe[1] = -1;
    for (int i = 0; i < CONNECTIONS; i++) u->clients[i].fd = -1;
    KN_TRY(start(u));
    KN_TRY(open_clients(u));
    KN_TRY(measure_load(b, u, 0.0, &most));
    KN_TRY(measure_load(b, u, most / 2.0, &half));
    KN_TRY(measure_idle(b, u));
fail:
    stop(u);
    kn_free(u);
    return st;
}
