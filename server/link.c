/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* MSG_CMSG_CLOEXEC */
#include "server/link.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/loop.h"
#include "server/wire.h"

/* For one descriptor beside the bytes; aligned as the kernel wants it. */
typedef union descriptor_room {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
} descriptor_room;

static void put_length(unsigned char header[KN_LINK_HEADER_BYTES], size_t count)
{
    for (int i = 0; i < KN_LINK_HEADER_BYTES; i++) header[i] = (unsigned char)(count >> 8 * i);
}

static kn_status get_length(const unsigned char header[KN_LINK_HEADER_BYTES], size_t *count)
{
    *count = 0;
    for (int i = 0; i < KN_LINK_HEADER_BYTES; i++) *count |= (size_t)header[i] << 8 * i;
    if (*count < 1 || *count > KN_WIRE_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "link: a frame of %zu bytes: must be 1 to %d", *count, KN_WIRE_BYTES_MAX);
    return KN_OK;
}

/* ---- in the event loop ---- */

struct kn_link {
    struct bufferevent *stream;
    kn_link_events events;
    bool closed; /* told so; nothing is sent or received any more */
    bool mute;   /* the other end takes nothing any more */
    bool busy;   /* inside a callback; destroy waits for its end */
    bool destroyed;
};

static void release(kn_link *link)
{
    if (link->stream) { /* libevent closes the descriptor when the loop turns next; the other end is to know now */
        shutdown(bufferevent_getfd(link->stream), SHUT_RDWR);
        bufferevent_free(link->stream);
    }
    kn_free(link);
}

static void tell_closed(kn_link *link, kn_status why)
{
    link->closed = true;
    bufferevent_disable(link->stream, EV_READ | EV_WRITE);
    link->events.closed(link->events.context, why);
}

/* Hands over the first frame of the input. KN_AGAIN: it is not all there yet. */
static kn_status take_frame(kn_link *link)
{
    unsigned char header[KN_LINK_HEADER_BYTES];
    struct evbuffer *input = bufferevent_get_input(link->stream);
    size_t count;
    const size_t held = evbuffer_get_length(input);
    if (held < sizeof header) return KN_AGAIN;
    evbuffer_copyout(input, header, sizeof header);
    kn_status st = get_length(header, &count);
    if (st != KN_OK) return st;
    const size_t whole = sizeof header + count;
    if (held < whole) { /* wake up when it has arrived; until then read as much as it takes, and a turn's worth more */
        bufferevent_setwatermark(link->stream, EV_READ, whole, whole + KN_LINK_READ_BYTES);
        return KN_AGAIN;
    }
    const unsigned char *bytes = evbuffer_pullup(input, (ev_ssize_t)whole);
    if (!bytes) return kn_fail(KN_NOMEM, "no memory for a frame of %zu bytes", count);
    link->events.message(link->events.context, bytes + sizeof header, count);
    if (link->destroyed) return KN_AGAIN;
    evbuffer_drain(input, whole);
    bufferevent_setwatermark(link->stream, EV_READ, 0, KN_LINK_READ_BYTES);
    return KN_OK;
}

/* KN_OK: all whole frames were handed over. */
static kn_status take_frames(kn_link *link)
{
    kn_status st = KN_OK;
    while (st == KN_OK) st = take_frame(link);
    return st == KN_AGAIN ? KN_OK : st;
}

static void on_read(struct bufferevent *stream, void *context)
{
    (void)stream;
    kn_link *link = context;
    if (link->closed) return;
    link->busy = true;
    const kn_status st = take_frames(link);
    if (st != KN_OK && !link->destroyed) tell_closed(link, st);
    link->busy = false;
    if (link->destroyed) release(link);
}

static kn_status end_of_stream(short what, int error)
{
    if (what & BEV_EVENT_EOF || error == ECONNRESET) /* the latter: it had not read everything when it closed */
        return kn_fail(KN_CANCELLED, "link: the other end closed");
    return kn_fail(KN_IO, "link: %s", error ? strerror(error) : "the socket failed");
}

static void on_event(struct bufferevent *stream, short what, void *context)
{
    (void)stream;
    kn_link *link = context;
    const int error = errno;
    if (link->closed) return;
    if (what & BEV_EVENT_WRITING) { /* what it sent before it went is still to be read, and ends with its end */
        link->mute = true;
        return;
    }
    link->busy = true;
    kn_status st = take_frames(link); /* what came before the end counts */
    if (!link->destroyed) tell_closed(link, st == KN_OK ? end_of_stream(what, error) : st);
    link->busy = false;
    if (link->destroyed) release(link);
}

kn_status kn_link_create(kn_link **out, struct event_base *base, int fd, const kn_link_events *events)
{
    kn_link *link = kn_alloc(sizeof *link);
    const bool quick = evutil_make_socket_nonblocking(fd) == 0;
    if (link && quick) link->stream = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (!link || !link->stream) {
        close(fd);
        kn_free(link);
        return quick ? KN_NOMEM : kn_fail(KN_IO, "link: the descriptor cannot be made non-blocking");
    }
    link->events = *events;
    bufferevent_priority_set(link->stream, KN_LOOP_FIRST);
    bufferevent_setcb(link->stream, on_read, NULL, on_event, link);
    bufferevent_setwatermark(link->stream, EV_READ, 0, KN_LINK_READ_BYTES);
    bufferevent_enable(link->stream, EV_READ | EV_WRITE);
    *out = link;
    return KN_OK;
}

void kn_link_destroy(kn_link **handle)
{
    kn_link *link = *handle;
    if (!link) return;
    *handle = NULL;
    link->destroyed = true;
    if (link->busy)
        bufferevent_disable(link->stream, EV_READ | EV_WRITE);
    else
        release(link);
}

/* What the socket takes at once, without a turn of the loop: the device at the other end waits for it. An error is left
 * for the stream to find. */
static size_t send_now(const kn_link *link, unsigned char *header, const void *bytes, size_t count, int fd)
{
    descriptor_room room;
    struct iovec pieces[] = {{.iov_base = header, .iov_len = KN_LINK_HEADER_BYTES},
                             {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    if (fd >= 0) {
        memset(&room, 0, sizeof room);
        message.msg_control = room.bytes;
        message.msg_controllen = sizeof room.bytes;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    const ssize_t sent = sendmsg(bufferevent_getfd(link->stream), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent > 0 ? (size_t)sent : 0;
}

static kn_status send_frame(kn_link *link, const void *bytes, size_t count, int fd)
{
    unsigned char header[KN_LINK_HEADER_BYTES];
    if (count < 1 || count > KN_WIRE_BYTES_MAX)
        return kn_fail(KN_INVALID, "link: a frame of %zu bytes: must be 1 to %d", count, KN_WIRE_BYTES_MAX);
    if (link->closed || link->mute || link->destroyed) return kn_fail(KN_IO, "link: closed");
    struct evbuffer *output = bufferevent_get_output(link->stream);
    if (evbuffer_get_length(output) + sizeof header + count > KN_LINK_QUEUE_BYTES)
        return kn_fail(KN_AGAIN, "link: %zu bytes are waiting to be sent: %d at most", evbuffer_get_length(output),
                       KN_LINK_QUEUE_BYTES);
    put_length(header, count);
    const size_t sent = evbuffer_get_length(output) == 0 ? send_now(link, header, bytes, count, fd) : 0;
    if (sent == 0 && fd >= 0) return kn_fail(KN_AGAIN, "link: other frames wait to be sent before a descriptor");
    const size_t head = sent < sizeof header ? sent : sizeof header, body = sent - head;
    if (body == count) return KN_OK;
    if (evbuffer_expand(output, sizeof header + count - sent) != 0 && sent == 0) return KN_NOMEM;
    if (evbuffer_add(output, header + head, sizeof header - head) != 0 ||
        evbuffer_add(output, (const char *)bytes + body, count - body) != 0) {
        link->mute = true; /* half a frame is gone: nothing that follows could be read */
        return kn_fail(KN_IO, "link: no memory for the rest of a frame");
    }
    return KN_OK;
}

kn_status kn_link_send(kn_link *link, const void *bytes, size_t count)
{
    return send_frame(link, bytes, count, -1);
}

kn_status kn_link_send_with(kn_link *link, const void *bytes, size_t count, int fd)
{
    KN_REQUIRE(fd >= 0);
    return send_frame(link, bytes, count, fd);
}

/* ---- blocking ---- */

/* As recv; a descriptor that comes with the bytes goes to *passed, and one too many is closed. The kernel never merges
 * bytes sent with a descriptor and bytes sent before them, so it arrives with the header it was sent with. */
static ssize_t receive_piece(int fd, char *bytes, size_t count, int *passed)
{
    descriptor_room room;
    struct iovec piece = {.iov_base = bytes, .iov_len = count};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = room.bytes, .msg_controllen = sizeof room.bytes};
    const ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!head || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) return n;
    if (*passed >= 0) close(*passed);
    memcpy(passed, CMSG_DATA(head), sizeof *passed);
    return n;
}

/* *got < count: the end of the stream came first. */
static kn_status read_all(int fd, char *bytes, size_t count, size_t *got, int *passed)
{
    for (*got = 0; *got < count;) {
        const ssize_t n = receive_piece(fd, bytes + *got, count - *got, passed);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == ECONNRESET) return KN_OK;
        if (n < 0) return kn_fail(KN_IO, "link: %s", strerror(errno));
        if (n == 0) return KN_OK;
        *got += (size_t)n;
    }
    return KN_OK;
}

kn_status kn_link_receive(int fd, void **bytes, size_t *count)
{
    int passed;
    const kn_status st = kn_link_receive_with(fd, bytes, count, &passed);
    if (st == KN_OK && passed >= 0) close(passed);
    return st;
}

kn_status kn_link_receive_with(int fd, void **bytes, size_t *count, int *passed)
{
    kn_status st = KN_OK;
    *passed = -1;
    unsigned char header[KN_LINK_HEADER_BYTES];
    char *buffer = NULL;
    size_t got, wanted, held = 0;
    KN_TRY(read_all(fd, (char *)header, sizeof header, &got, passed));
    if (got < sizeof header) KN_TRY(kn_fail(KN_CANCELLED, "link: the other end closed"));
    KN_TRY(get_length(header, &wanted));
    while (held < wanted) { /* at most twice what has come */
        const size_t room = held > 0 ? held : KN_LINK_READ_BYTES;
        const size_t step = wanted - held < room ? wanted - held : room;
        char *grown = kn_realloc(buffer, held + step);
        if (!grown) KN_TRY(KN_NOMEM);
        buffer = grown;
        KN_TRY(read_all(fd, buffer + held, step, &got, passed));
        if (got < step) KN_TRY(kn_fail(KN_CANCELLED, "link: the other end closed"));
        held += step;
    }
    *bytes = buffer;
    *count = wanted;
    return KN_OK;

fail:
    kn_free(buffer);
    if (*passed >= 0) close(*passed);
    *passed = -1;
    return st;
}

static kn_status write_all(int fd, const char *bytes, size_t count)
{
    while (count > 0) {
        const ssize_t n = send(fd, bytes, count, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return kn_fail(KN_CANCELLED, "link: the other end is closed");
        if (n < 0) return kn_fail(KN_IO, "link: %s", strerror(errno));
        bytes += n;
        count -= (size_t)n;
    }
    return KN_OK;
}

kn_status kn_link_transmit(int fd, const void *bytes, size_t count)
{
    unsigned char header[KN_LINK_HEADER_BYTES];
    if (count < 1 || count > KN_WIRE_BYTES_MAX)
        return kn_fail(KN_INVALID, "link: a frame of %zu bytes: must be 1 to %d", count, KN_WIRE_BYTES_MAX);
    put_length(header, count);
    kn_status st = write_all(fd, (const char *)header, sizeof header);
    return st == KN_OK ? write_all(fd, bytes, count) : st;
}
