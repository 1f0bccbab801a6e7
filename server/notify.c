/* SPDX-License-Identifier: Apache-2.0
 *
 * The server's side of the notifier: a table of what the child has, and the child's life.
 *
 *   none      no child; a timer will start one            -> running   start_child
 *   running   messages flow                               -> none      replace_child: the socket closed, a message
 *                                                                      that may not be, KN_NOTIFIER_SILENCE_S
 *
 * What was in the child when it is replaced is reported as failed, once. */
#define _GNU_SOURCE /* SOCK_CLOEXEC */
#include "server/notify.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "server/child.h"
#include "server/notify_wire.h"

enum {
    WATCH_S = 1,          /* how often the child's progress is looked at */
    BACKOFF_MIN_MS = 250, /* before a child that lived only shortly is started again, doubling */
    BACKOFF_MAX_MS = 30000,
};
#define STABLE_NS (INT64_C(10) * 1000000000) /* a child that lived this long starts the back-off anew */

/* A delivery in the child. */
typedef struct slot {
    uint64_t ticket; /* 0: free */
    int64_t id;
    int32_t attempt;
    int64_t accepted_ns;
    uint16_t port;
    char host[KN_WEBHOOK_HOST_MAX + 1];
} slot;

struct kn_notifier {
    struct event_base *base;
    char *executable, *ca_file; /* or NULL */
    bool development;
    char *allow[KN_WEBHOOK_ALLOW_MAX];
    size_t allow_count;
    kn_delivery_fn *completed;
    void *context;
    int32_t silence_s;

    kn_child child;
    struct bufferevent *link; /* NULL: there is no child */
    struct event *restart, *watch;
    int64_t started_ns, progress_ns;
    int64_t backoff_ms;
    uint64_t restarts;

    uint64_t next_ticket;
    size_t used; /* slots that are not free */
    slot slots[KN_NOTIFIER_QUEUE_MAX];
    char frame[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX];
};

static kn_webhook_policy policy_of(const kn_notifier *n)
{
    return (kn_webhook_policy){
        .development = n->development, .allow = (const char *const *)n->allow, .allow_count = n->allow_count};
}

/* ---- completions ---- */

static void complete(kn_notifier *n, slot *s, kn_delivery_result result)
{
    result.id = s->id;
    result.attempt = s->attempt;
    result.elapsed_us = (kn_clock_ns() - s->accepted_ns) / 1000;
    *s = (slot){.ticket = 0};
    n->used--;
    n->completed(n->context, &result);
}

static slot *find_slot(kn_notifier *n, uint64_t ticket)
{
    for (size_t i = 0; i < KN_NOTIFIER_QUEUE_MAX; i++)
        if (n->slots[i].ticket == ticket) return &n->slots[i];
    return NULL;
}

/* KN_CORRUPT: a message the child may not send. */
static kn_status take_message(kn_notifier *n, const char *payload, size_t bytes)
{
    kn_notify_message message;
    const kn_status st = kn_notify_decode(&message, payload, bytes);
    if (st != KN_OK) return st;
    if (message.type != KN_NOTIFY_RESULT) return kn_fail(KN_CORRUPT, "a message of type %d", (int)message.type);
    const kn_notify_result *said = &message.result;
    slot *s = said->ticket != 0 ? find_slot(n, said->ticket) : NULL;
    if (!s) return kn_fail(KN_CORRUPT, "a result for a delivery it does not have");
    n->progress_ns = kn_clock_ns();
    complete(n, s,
             (kn_delivery_result){.outcome = said->outcome,
                                  .http_status = said->http_status,
                                  .retry_after_s = said->retry_after_s,
                                  .error = said->error});
    return KN_OK;
}

/* ---- the child's life ---- */

static kn_status start_child(kn_notifier *n);

static void schedule_restart(kn_notifier *n)
{
    if (kn_clock_ns() - n->started_ns >= STABLE_NS) n->backoff_ms = 0;
    const struct timeval wait = {.tv_sec = n->backoff_ms / 1000, .tv_usec = n->backoff_ms % 1000 * 1000};
    n->backoff_ms = n->backoff_ms ? 2 * n->backoff_ms : BACKOFF_MIN_MS;
    if (n->backoff_ms > BACKOFF_MAX_MS) n->backoff_ms = BACKOFF_MAX_MS;
    event_add(n->restart, &wait);
}

static void stop_child(kn_notifier *n)
{
    if (n->link) bufferevent_free(n->link);
    n->link = NULL;
    kn_child_kill(&n->child);
}

/* First without a child, then the callbacks: whatever they send is answered KN_AGAIN and is not lost with the old. */
static void replace_child(kn_notifier *n, const char *why)
{
    kn_log(KN_LOG_WARNING, "notifier: replaced, %zu deliveries to be tried again: %s", n->used, why);
    stop_child(n);
    schedule_restart(n);
    for (size_t i = 0; i < KN_NOTIFIER_QUEUE_MAX; i++)
        if (n->slots[i].ticket != 0)
            complete(n, &n->slots[i],
                     (kn_delivery_result){.outcome = KN_WEBHOOK_FAILED, .error = "the notifier was restarted"});
}

static void on_readable(struct bufferevent *link, void *context)
{
    kn_notifier *n = context;
    struct evbuffer *input = bufferevent_get_input(link);
    while (evbuffer_get_length(input) >= KN_NOTIFY_HEAD_BYTES) {
        size_t bytes;
        evbuffer_copyout(input, n->frame, KN_NOTIFY_HEAD_BYTES);
        kn_status st = kn_notify_length(&bytes, n->frame);
        if (st == KN_OK && evbuffer_get_length(input) < KN_NOTIFY_HEAD_BYTES + bytes) return;
        if (st == KN_OK) {
            char payload[KN_NOTIFY_FRAME_MAX]; /* not n->frame: a callback may send */
            evbuffer_drain(input, KN_NOTIFY_HEAD_BYTES);
            evbuffer_remove(input, payload, bytes);
            st = take_message(n, payload, bytes);
        }
        if (st != KN_OK) {
            replace_child(n, kn_fail_message());
            return;
        }
    }
}

static void on_closed(struct bufferevent *link, short what, void *context)
{
    (void)link;
    (void)what;
    replace_child(context, "its process ended");
}

static void on_restart(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_notifier *n = context;
    if (start_child(n) == KN_OK) {
        n->restarts++;
        return;
    }
    kn_log(KN_LOG_ERROR, "notifier: %s", kn_fail_message());
    schedule_restart(n);
}

static void on_watch(evutil_socket_t fd, short what, void *context)
{
    (void)fd;
    (void)what;
    kn_notifier *n = context;
    const int64_t silent_ns = kn_clock_ns() - n->progress_ns;
    if (n->link && n->used > 0 && silent_ns > INT64_C(1000000000) * n->silence_s)
        replace_child(n, "it completed nothing for too long");
}

static kn_status send_configuration(kn_notifier *n)
{
    kn_notify_message message = {.type = KN_NOTIFY_CONFIGURE,
                                 .configure = {.development = n->development,
                                               .ca_file = n->ca_file ? n->ca_file : "",
                                               .allow_count = n->allow_count}};
    for (size_t i = 0; i < n->allow_count; i++) message.configure.allow[i] = n->allow[i];
    size_t bytes;
    const kn_status st = kn_notify_encode(n->frame, &bytes, &message);
    if (st != KN_OK) return st;
    return bufferevent_write(n->link, n->frame, bytes) == 0 ? KN_OK : kn_fail(KN_NOMEM, "no memory for a message");
}

static kn_status start_child(kn_notifier *n)
{
    kn_status st = KN_OK;
    int ends[2] = {-1, -1};
    n->started_ns = kn_clock_ns();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        st = kn_fail(KN_IO, "socketpair: %s", strerror(errno));
        goto fail;
    }
    evutil_make_socket_nonblocking(ends[0]);
    const char *const argv[] = {"kinora", "notifier", "--fd", "3", NULL};
    KN_TRY(kn_child_start(
        &n->child,
        &(kn_child_params){
            .executable = n->executable, .argv = argv, .fds = &ends[1], .fd_count = 1, .keep_stderr = true}));
    n->link = bufferevent_socket_new(n->base, ends[0], BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
    if (!n->link) {
        st = kn_fail(KN_NOMEM, "no memory for the notifier's socket");
        goto fail;
    }
    ends[0] = -1; /* the link's */
    bufferevent_setcb(n->link, on_readable, NULL, on_closed, n);
    KN_TRY(send_configuration(n));
    if (bufferevent_enable(n->link, EV_READ | EV_WRITE) != 0) st = kn_fail(KN_IO, "cannot watch the notifier");
fail:
    if (ends[0] >= 0) close(ends[0]);
    if (ends[1] >= 0) close(ends[1]);
    if (st != KN_OK) stop_child(n);
    return st;
}

/* ---- public ---- */

static kn_status copy_text(char **out, const char *text)
{
    *out = text ? kn_strdup(text) : NULL;
    return text && !*out ? KN_NOMEM : KN_OK;
}

static kn_status copy_params(kn_notifier *n, const kn_notifier_params *params)
{
    const kn_webhook_policy *policy = &params->policy;
    kn_status st = KN_OK;
    if (policy->allow_count > KN_WEBHOOK_ALLOW_MAX)
        return kn_fail(KN_INVALID, "allow list: %zu entries, the limit is %d", policy->allow_count,
                       KN_WEBHOOK_ALLOW_MAX);
    for (size_t i = 0; i < policy->allow_count; i++) {
        KN_TRY(kn_webhook_check_allow(policy->allow[i]));
        KN_TRY(copy_text(&n->allow[i], policy->allow[i]));
        n->allow_count = i + 1;
    }
    KN_TRY(copy_text(&n->executable, params->executable));
    KN_TRY(copy_text(&n->ca_file, params->ca_file));
    n->development = policy->development;
    n->base = params->base;
    n->completed = params->completed;
    n->context = params->context;
    n->silence_s = params->silence_s > 0 ? params->silence_s : KN_NOTIFIER_SILENCE_S;
fail:
    return st;
}

kn_status kn_notifier_create(kn_notifier **out, const kn_notifier_params *params)
{
    *out = NULL;
    KN_REQUIRE(params->base && params->completed);
    kn_status st = KN_OK;
    kn_notifier *n = kn_alloc(sizeof *n);
    if (!n) return KN_NOMEM;
    n->child = KN_CHILD_NONE;
    n->next_ticket = 1;
    KN_TRY(copy_params(n, params));
    n->restart = event_new(n->base, -1, 0, on_restart, n);
    n->watch = event_new(n->base, -1, EV_PERSIST, on_watch, n);
    if (!n->restart || !n->watch || event_add(n->watch, &(struct timeval){.tv_sec = WATCH_S}) != 0) {
        st = kn_fail(KN_NOMEM, "notifier: no memory for timers");
        goto fail;
    }
    KN_TRY(start_child(n));
    *out = n;
    return KN_OK;
fail:
    kn_notifier_destroy(&n);
    return st;
}

void kn_notifier_destroy(kn_notifier **notifier)
{
    kn_notifier *n = *notifier;
    *notifier = NULL;
    if (!n) return;
    stop_child(n);
    if (n->restart) event_free(n->restart);
    if (n->watch) event_free(n->watch);
    for (size_t i = 0; i < n->allow_count; i++) kn_free(n->allow[i]);
    kn_free(n->executable);
    kn_free(n->ca_file);
    explicit_bzero(n, sizeof *n); /* the last frame may hold a secret */
    kn_free(n);
}

static kn_status check_delivery(const kn_notifier *n, const kn_delivery *delivery, kn_webhook_url *url)
{
    const kn_webhook_policy policy = policy_of(n);
    kn_status st = kn_webhook_url_parse(url, delivery->url, &policy);
    if (st != KN_OK) return st;
    if (delivery->body_bytes == 0) return kn_fail(KN_INVALID, "webhook body: empty");
    char signature[KN_WEBHOOK_SIGNATURE_BYTES]; /* signing is the check of everything that is signed */
    return kn_webhook_sign(signature, delivery->secrets, delivery->secret_count, delivery->event_id, 0, delivery->body,
                           delivery->body_bytes);
}

/* A free place, unless the host has its share already. */
static slot *choose_slot(kn_notifier *n, const kn_webhook_url *url)
{
    slot *free_slot = NULL;
    size_t same_host = 0;
    for (size_t i = 0; i < KN_NOTIFIER_QUEUE_MAX; i++) {
        slot *s = &n->slots[i];
        if (s->ticket == 0)
            free_slot = free_slot ? free_slot : s;
        else if (s->port == url->port && strcmp(s->host, url->host) == 0)
            same_host++;
    }
    return same_host < KN_NOTIFIER_HOST_QUEUE_MAX ? free_slot : NULL;
}

kn_status kn_notifier_send(kn_notifier *notifier, const kn_delivery *delivery)
{
    kn_notifier *n = notifier;
    kn_webhook_url url;
    kn_status st = check_delivery(n, delivery, &url);
    if (st != KN_OK) return st;
    if (!n->link) return kn_fail(KN_AGAIN, "notifier: being restarted");
    slot *s = choose_slot(n, &url);
    if (!s)
        return kn_fail(KN_AGAIN, "notifier: %s is full",
                       n->used == KN_NOTIFIER_QUEUE_MAX ? "the queue" : "this host's share of the queue");
    kn_notify_message message = {.type = KN_NOTIFY_DELIVER,
                                 .deliver = {.ticket = n->next_ticket,
                                             .url = delivery->url,
                                             .event_id = delivery->event_id,
                                             .secret_count = delivery->secret_count,
                                             .body = delivery->body,
                                             .body_bytes = delivery->body_bytes}};
    for (size_t i = 0; i < delivery->secret_count; i++) message.deliver.secrets[i] = delivery->secrets[i];
    size_t bytes;
    st = kn_notify_encode(n->frame, &bytes, &message);
    if (st == KN_OK && bufferevent_write(n->link, n->frame, bytes) != 0)
        st = kn_fail(KN_NOMEM, "notifier: no memory for a message");
    explicit_bzero(n->frame, sizeof n->frame);
    if (st != KN_OK) return st;
    if (n->used == 0) n->progress_ns = kn_clock_ns();
    *s = (slot){.ticket = n->next_ticket++,
                .id = delivery->id,
                .attempt = delivery->attempt,
                .accepted_ns = kn_clock_ns(),
                .port = url.port};
    memcpy(s->host, url.host, sizeof s->host);
    n->used++;
    return KN_OK;
}

size_t kn_notifier_room(const kn_notifier *notifier)
{
    return notifier->link ? KN_NOTIFIER_QUEUE_MAX - notifier->used : 0;
}

uint64_t kn_notifier_restarts(const kn_notifier *notifier)
{
    return notifier->restarts;
}

int32_t kn_notifier_process(const kn_notifier *notifier)
{
    return notifier->child.process;
}
