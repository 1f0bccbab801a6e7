/* SPDX-License-Identifier: Apache-2.0
 *
 * The notifier's process: one loop around a curl multi handle and the socket to the server. A delivery waits in the
 * order of arrival until there is a connection for it and its host; then it is signed and sent. The address rule is
 * applied by server/outgoing.h.
 *
 * The process ends when the socket does. */
#define _GNU_SOURCE /* SOCK_CLOEXEC, explicit_bzero */
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/child.h"
#include "server/notify.h"
#include "server/notify_wire.h"
#include "server/outgoing.h"

enum {
    DESCRIPTORS_MAX = 256, /* connections, name lookups, certificates */
    WAIT_MS = 1000,
    HEADER_FIELDS = 4,
    HEADER_BYTES = KN_WEBHOOK_SIGNATURE_BYTES + 64,
};

typedef struct transfer {
    struct transfer *next; /* in the order of arrival */
    char *frame;           /* the payload that `asked` points into; holds secrets */
    size_t frame_bytes;
    kn_notify_deliver asked;
    kn_outgoing request;
    CURL *easy; /* NULL: waiting */
    struct curl_slist *headers;
    size_t header_bytes, body_bytes; /* read so far */
    bool headed;                     /* the empty line after the headers has come */
    bool cut;                        /* the body was longer than is read */
} transfer;

typedef struct child {
    int fd;
    CURLM *multi;
    char *policy_frame; /* the payload that `configuration` points into */
    kn_notify_configure configuration;
    kn_webhook_policy policy;
    transfer *first; /* waiting and sending */
    size_t count;
    size_t sending;
    char in[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX];
    size_t in_bytes;
} child;

/* ---- the socket to the server ---- */

static kn_status send_result(child *c, const kn_notify_result *result)
{
    char frame[KN_NOTIFY_HEAD_BYTES + KN_NOTIFY_FRAME_MAX];
    size_t bytes;
    const kn_notify_message message = {.type = KN_NOTIFY_RESULT, .result = *result};
    const kn_status st = kn_notify_encode(frame, &bytes, &message);
    if (st != KN_OK) return st;
    for (size_t sent = 0; sent < bytes;) {
        const ssize_t n = send(c->fd, frame + sent, bytes - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return kn_fail(KN_CANCELLED, "the server has gone");
        sent += (size_t)n;
    }
    return KN_OK;
}

/* At most one payload; *frame, the caller's, is NULL when none is complete yet. `flags`: of recv. */
static kn_status next_payload(child *c, char **frame, size_t *bytes, int flags)
{
    *frame = NULL;
    size_t wanted = KN_NOTIFY_HEAD_BYTES;
    for (;;) {
        if (c->in_bytes >= KN_NOTIFY_HEAD_BYTES) {
            const kn_status st = kn_notify_length(bytes, c->in);
            if (st != KN_OK) return st;
            wanted = KN_NOTIFY_HEAD_BYTES + *bytes;
            if (c->in_bytes == wanted) break;
        }
        const ssize_t n = recv(c->fd, c->in + c->in_bytes, wanted - c->in_bytes, flags);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return KN_OK;
        if (n <= 0) return kn_fail(KN_CANCELLED, "the server has gone");
        c->in_bytes += (size_t)n;
    }
    *frame = kn_alloc(*bytes);
    if (*frame) memcpy(*frame, c->in + KN_NOTIFY_HEAD_BYTES, *bytes);
    explicit_bzero(c->in, c->in_bytes);
    c->in_bytes = 0;
    return *frame ? KN_OK : KN_NOMEM;
}

static kn_status read_configuration(child *c)
{
    size_t bytes;
    kn_notify_message message;
    kn_status st = next_payload(c, &c->policy_frame, &bytes, 0);
    if (st == KN_OK) st = kn_notify_decode(&message, c->policy_frame, bytes);
    if (st != KN_OK) return st;
    if (message.type != KN_NOTIFY_CONFIGURE) return kn_fail(KN_CORRUPT, "the first message is not the configuration");
    c->configuration = message.configure;
    c->policy = (kn_webhook_policy){.development = message.configure.development,
                                    .allow = c->configuration.allow,
                                    .allow_count = message.configure.allow_count};
    return KN_OK;
}

/* ---- what curl asks while it works ---- */

static size_t on_header(char *bytes, size_t size, size_t count, void *context)
{
    transfer *t = context;
    t->headed |= size * count >= 1 && size * count <= 2 && bytes[size * count - 1] == '\n';
    t->header_bytes += size * count;
    return t->header_bytes <= KN_NOTIFIER_RESPONSE_MAX ? size * count : 0; /* 0 ends the transfer */
}

/* Nothing of a body is kept; it is read so that the receiver can finish its answer, up to the limit. */
static size_t on_body(char *bytes, size_t size, size_t count, void *context)
{
    (void)bytes;
    transfer *t = context;
    t->body_bytes += size * count;
    t->cut = t->body_bytes > KN_NOTIFIER_RESPONSE_MAX;
    return t->cut ? 0 : size * count;
}

/* ---- one delivery ---- */

static void free_transfer(child *c, transfer *t)
{
    if (t->easy) {
        curl_multi_remove_handle(c->multi, t->easy);
        curl_easy_cleanup(t->easy);
        c->sending--;
    }
    curl_slist_free_all(t->headers);
    if (t->frame) explicit_bzero(t->frame, t->frame_bytes);
    kn_free(t->frame);
    kn_free(t);
}

/* Answers and forgets a delivery. `error` may come from the library, and so from the receiver: it becomes one line of
 * printable ASCII. */
static kn_status finish(child *c, transfer *t, kn_notify_result result, const char *error)
{
    char line[KN_NOTIFIER_ERROR_BYTES];
    snprintf(line, sizeof line, "%s", error);
    for (char *at = line; *at; at++)
        if (*at < ' ' || *at > '~') *at = '?';
    result.ticket = t->asked.ticket;
    result.error = line;
    const kn_status st = send_result(c, &result);
    for (transfer **at = &c->first; *at; at = &(*at)->next) {
        if (*at != t) continue;
        *at = t->next;
        break;
    }
    free_transfer(c, t);
    c->count--;
    return st;
}

static bool add_header(transfer *t, const char *format, const char *value)
{
    char line[HEADER_BYTES];
    snprintf(line, sizeof line, format, value);
    struct curl_slist *longer = curl_slist_append(t->headers, line);
    if (longer) t->headers = longer;
    return longer != NULL;
}

static kn_status sign(transfer *t)
{
    char signature[KN_WEBHOOK_SIGNATURE_BYTES], timestamp[24];
    const int64_t now = (int64_t)time(NULL);
    const kn_status st = kn_webhook_sign(signature, t->asked.secrets, t->asked.secret_count, t->asked.event_id, now,
                                         t->asked.body, t->asked.body_bytes);
    if (st != KN_OK) return st;
    snprintf(timestamp, sizeof timestamp, "%" PRId64, now);
    if (!add_header(t, "webhook-id: %s", t->asked.event_id) || !add_header(t, "webhook-timestamp: %s", timestamp) ||
        !add_header(t, "webhook-signature: %s", signature) || !add_header(t, "%s", "content-type: application/json") ||
        !add_header(t, "%s", "Expect:")) /* without a value: left out, so that no answer is waited for in between */
        return kn_fail(KN_NOMEM, "no memory for headers");
    return KN_OK;
}

/* Every option must be taken: one that this libcurl does not know would be a rule that silently does not hold. */
static bool configure_easy(const child *c, transfer *t)
{
    CURL *easy = t->easy;
    const kn_outgoing_options options = {.ca_file = c->configuration.ca_file,
                                         .timeout_ms = KN_NOTIFIER_TIMEOUT_MS,
                                         .connect_timeout_ms = KN_NOTIFIER_CONNECT_TIMEOUT_MS,
                                         .headers = t->headers};
    return kn_outgoing_configure(easy, &t->request, &options) &&
           curl_easy_setopt(easy, CURLOPT_POSTFIELDS, t->asked.body) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, (long)t->asked.body_bytes) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_HEADERDATA, t) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_WRITEDATA, t) == CURLE_OK &&
           curl_easy_setopt(easy, CURLOPT_PRIVATE, t) == CURLE_OK;
}

static kn_status start(child *c, transfer *t)
{
    kn_status st = sign(t);
    if (st != KN_OK) return st;
    CURL *easy = curl_easy_init();
    if (!easy) return kn_fail(KN_NOMEM, "no memory for a connection");
    t->easy = easy;
    const bool good = configure_easy(c, t) && curl_multi_add_handle(c->multi, easy) == CURLM_OK;
    c->sending++; /* free_transfer counts back */
    return good ? KN_OK : kn_fail(KN_UNSUPPORTED, "the transfer library refused an option");
}

static size_t sending_to(const child *c, const kn_webhook_url *url)
{
    size_t count = 0;
    for (const transfer *t = c->first; t; t = t->next)
        if (t->easy && t->request.url.port == url->port && strcmp(t->request.url.host, url->host) == 0) count++;
    return count;
}

static kn_status start_waiting(child *c)
{
    kn_status st = KN_OK;
    for (transfer *t = c->first, *next; t && c->sending < KN_NOTIFIER_CONCURRENT_MAX && st == KN_OK; t = next) {
        next = t->next;
        if (t->easy || sending_to(c, &t->request.url) >= KN_NOTIFIER_HOST_CONCURRENT_MAX) continue;
        if (start(c, t) != KN_OK) {
            char why[KN_NOTIFIER_ERROR_BYTES];
            snprintf(why, sizeof why, "%s", kn_fail_message());
            st = finish(c, t, (kn_notify_result){.outcome = KN_WEBHOOK_FAILED}, why);
        }
    }
    return st;
}

/* An answer counts when it is complete, or when only its body was longer than we read. The library takes a connection
 * that closes among the headers for the end of the answer; here it is none. */
static kn_status finish_transfer(child *c, transfer *t, CURLcode code)
{
    char line[KN_NOTIFIER_ERROR_BYTES];
    if (code == CURLE_OK && !t->headed) code = CURLE_PARTIAL_FILE;
    if (code == CURLE_OK || (code == CURLE_WRITE_ERROR && t->cut)) {
        long status = 0;
        curl_off_t wait = 0;
        curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(t->easy, CURLINFO_RETRY_AFTER, &wait);
        if (status < 0 || status > 999) status = 0;
        const kn_webhook_outcome outcome = kn_webhook_classify((int)status);
        snprintf(line, sizeof line, "the receiver answered %ld", status);
        return finish(c, t,
                      (kn_notify_result){.outcome = outcome,
                                         .http_status = (int32_t)status,
                                         .retry_after_s = wait > 0 ? (int64_t)wait : 0},
                      outcome == KN_WEBHOOK_DELIVERED ? "" : line);
    }
    if (t->request.forbidden && !t->request.opened) {
        snprintf(line, sizeof line, "the host resolves to an address that is not one on the internet (%s)",
                 t->request.forbidden);
        return finish(c, t, (kn_notify_result){.outcome = KN_WEBHOOK_REFUSED}, line);
    }
    snprintf(line, sizeof line, "%s", t->request.error[0] ? t->request.error : curl_easy_strerror(code));
    return finish(c, t, (kn_notify_result){.outcome = KN_WEBHOOK_FAILED}, line);
}

static kn_status finish_done(child *c, bool *any)
{
    kn_status st = KN_OK;
    int left;
    *any = false;
    for (CURLMsg *message; st == KN_OK && (message = curl_multi_info_read(c->multi, &left));) {
        char *owner = NULL;
        if (message->msg != CURLMSG_DONE) continue;
        *any = true;
        const CURLcode code = message->data.result; /* the message ends with its handle */
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &owner);
        st = finish_transfer(c, (transfer *)owner, code);
    }
    return st;
}

/* ---- deliveries from the server ---- */

/* Takes the frame. The server has checked the URL already; the policy decides here again, for what is started here. */
static kn_status accept_delivery(child *c, char *frame, size_t bytes)
{
    kn_notify_message message;
    kn_status st = kn_notify_decode(&message, frame, bytes);
    if (st == KN_OK && message.type != KN_NOTIFY_DELIVER) st = kn_fail(KN_CORRUPT, "a message the server never sends");
    if (st == KN_OK && c->count == KN_NOTIFIER_QUEUE_MAX) st = kn_fail(KN_CORRUPT, "more deliveries than agreed");
    transfer *t = st == KN_OK ? kn_alloc(sizeof *t) : NULL;
    if (!t) {
        explicit_bzero(frame, bytes);
        kn_free(frame);
        return st == KN_OK ? KN_NOMEM : st;
    }
    t->frame = frame;
    t->frame_bytes = bytes;
    t->asked = message.deliver;
    transfer **last = &c->first;
    while (*last) last = &(*last)->next;
    *last = t;
    c->count++;
    if (kn_webhook_url_parse(&t->request.url, t->asked.url, &c->policy) == KN_OK) return KN_OK;
    char why[KN_NOTIFIER_ERROR_BYTES];
    snprintf(why, sizeof why, "%s", kn_fail_message());
    return finish(c, t, (kn_notify_result){.outcome = KN_WEBHOOK_REFUSED}, why);
}

static kn_status read_deliveries(child *c)
{
    for (;;) {
        char *frame;
        size_t bytes;
        kn_status st = next_payload(c, &frame, &bytes, MSG_DONTWAIT);
        if (st == KN_OK && !frame) return KN_OK;
        if (st == KN_OK) st = accept_delivery(c, frame, bytes);
        if (st != KN_OK) return st;
    }
}

static kn_status serve(child *c)
{
    for (;;) {
        kn_status st = start_waiting(c);
        if (st != KN_OK) return st;
        struct curl_waitfd server = {.fd = c->fd, .events = CURL_WAIT_POLLIN};
        int running;
        if (curl_multi_perform(c->multi, &running) != CURLM_OK) return kn_fail(KN_FATAL, "the transfer library failed");
        bool finished;
        st = finish_done(c, &finished);
        if (st != KN_OK) return st;
        if (finished) continue; /* what waited may start */
        if (curl_multi_poll(c->multi, &server, 1, WAIT_MS, NULL) != CURLM_OK)
            return kn_fail(KN_FATAL, "the transfer library failed");
        if (server.revents) st = read_deliveries(c);
        if (st != KN_OK) return st;
    }
}

static kn_status read_arguments(int argc, char **argv, int *fd)
{
    char *end = NULL;
    const long number = argc == 3 && strcmp(argv[1], "--fd") == 0 ? strtol(argv[2], &end, 10) : -1;
    if (!end || *end != '\0' || number < KN_CHILD_FIRST_FD || number > DESCRIPTORS_MAX)
        return kn_fail(KN_INVALID, "this command is started by \"kinora serve\" only");
    *fd = (int)number;
    return KN_OK;
}

int kn_notifier_main(int argc, char **argv)
{
    kn_status st = KN_OK;
    child *c = NULL;
    int fd = -1;
    const struct rlimit descriptors = {DESCRIPTORS_MAX, DESCRIPTORS_MAX};
    KN_TRY(read_arguments(argc, argv, &fd));
    KN_TRY(kn_child_enter());
    signal(SIGPIPE, SIG_IGN);
    if (setrlimit(RLIMIT_NOFILE, &descriptors) != 0) kn_log(KN_LOG_WARNING, "notifier: no limit on descriptors");
    c = kn_alloc(sizeof *c);
    if (!c) {
        st = KN_NOMEM;
        goto fail;
    }
    c->fd = fd;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK) c->multi = curl_multi_init();
    if (!c->multi) {
        st = kn_fail(KN_UNAVAILABLE, "the transfer library does not start");
        goto fail;
    }
    KN_TRY(read_configuration(c));
    st = serve(c);
fail:
    if (st != KN_CANCELLED) kn_log(KN_LOG_ERROR, "notifier: %s", kn_fail_message());
    while (c && c->first) {
        transfer *t = c->first;
        c->first = t->next;
        free_transfer(c, t);
    }
    if (c) {
        curl_multi_cleanup(c->multi);
        kn_free(c->policy_frame);
        explicit_bzero(c, sizeof *c);
    }
    kn_free(c);
    curl_global_cleanup();
    return st == KN_CANCELLED ? 0 : kn_status_exit_code(st);
}
