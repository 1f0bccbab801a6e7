/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames through a real socket pair: in pieces, in crowds, cut off, too large, and against an end that does not read.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/link.h"
#include "server/wire.h"

typedef struct end {
    struct event_base *base;
    kn_link *link;
    int other; /* the far end's descriptor */
    int messages;
    size_t last_count, total;
    uint32_t sum; /* of all bytes, in order */
    bool closed, destroy_on_message, destroy_on_close;
    kn_status why;
    char reason[256];
} end;

static uint32_t add_sum(uint32_t sum, const unsigned char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) sum = sum * 31 + bytes[i];
    return sum;
}

static void on_message(void *context, const void *bytes, size_t count)
{
    end *e = context;
    assert_false(e->closed);
    e->messages++;
    e->last_count = count;
    e->total += count;
    e->sum = add_sum(e->sum, bytes, count);
    if (e->destroy_on_message) kn_link_destroy(&e->link);
}

static void on_closed(void *context, kn_status why)
{
    end *e = context;
    assert_false(e->closed);
    e->closed = true;
    e->why = why;
    snprintf(e->reason, sizeof e->reason, "%s", kn_fail_message());
    if (e->destroy_on_close) kn_link_destroy(&e->link);
}

static void open_end(end *e)
{
    int ends[2];
    *e = (end){.base = event_base_new()};
    assert_non_null(e->base);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    e->other = ends[1];
    const kn_link_events events = {.context = e, .message = on_message, .closed = on_closed};
    assert_int_equal(kn_link_create(&e->link, e->base, ends[0], &events), KN_OK);
}

static void close_end(end *e)
{
    kn_link_destroy(&e->link);
    if (e->other >= 0) close(e->other);
    event_base_free(e->base);
}

static void turn(end *e)
{
    for (int i = 0; i < 20; i++) event_base_loop(e->base, EVLOOP_NONBLOCK);
}

static unsigned char *frame(size_t count, size_t *bytes)
{
    unsigned char *made = malloc(count + KN_LINK_HEADER_BYTES);
    assert_non_null(made);
    for (int i = 0; i < KN_LINK_HEADER_BYTES; i++) made[i] = (unsigned char)(count >> 8 * i);
    for (size_t i = 0; i < count; i++) made[KN_LINK_HEADER_BYTES + i] = (unsigned char)(i * 7 + count);
    *bytes = count + KN_LINK_HEADER_BYTES;
    return made;
}

static void put(const end *e, const void *bytes, size_t count)
{
    assert_int_equal(send(e->other, bytes, count, MSG_NOSIGNAL), count);
}

/* ---- in the loop ---- */

static void test_pieces(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 3, 100, 5000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t bytes;
        unsigned char *whole = frame(sizes[s], &bytes);
        for (size_t piece = 1; piece <= 7; piece += 3) {
            end e;
            open_end(&e);
            for (size_t at = 0; at < bytes; at += piece) {
                assert_int_equal(e.messages, 0);
                put(&e, whole + at, bytes - at < piece ? bytes - at : piece);
                event_base_loop(e.base, EVLOOP_NONBLOCK);
            }
            turn(&e);
            assert_int_equal(e.messages, 1);
            assert_int_equal(e.last_count, sizes[s]);
            assert_int_equal(e.sum, add_sum(0, whole + KN_LINK_HEADER_BYTES, sizes[s]));
            close_end(&e);
        }
        free(whole);
    }
}

static void test_many_at_once(void **state)
{
    (void)state;
    end e;
    size_t bytes;
    unsigned char *one = frame(10, &bytes);
    static unsigned char all[1000 * (10 + KN_LINK_HEADER_BYTES)];
    open_end(&e);
    for (size_t i = 0; i < 1000; i++) memcpy(all + i * bytes, one, bytes);
    put(&e, all, sizeof all);
    close(e.other);
    e.other = -1;
    for (int i = 0; i < 100; i++) turn(&e);
    assert_int_equal(e.messages, 1000); /* all that came before the end */
    assert_true(e.closed);
    assert_int_equal(e.why, KN_CANCELLED);
    free(one);
    close_end(&e);
}

typedef struct writer {
    int fd;
    const unsigned char *bytes;
    size_t count;
} writer;

static void *write_all(void *context)
{
    const writer *w = context;
    for (size_t at = 0; at < w->count;) {
        const ssize_t n = send(w->fd, w->bytes + at, w->count - at, MSG_NOSIGNAL);
        if (n <= 0) break;
        at += (size_t)n;
    }
    return NULL;
}

/* The largest frame there is, and one byte more. */
static void test_largest(void **state)
{
    (void)state;
    end e;
    pthread_t thread;
    size_t bytes;
    unsigned char *whole = frame(KN_WIRE_BYTES_MAX, &bytes);
    open_end(&e);
    writer w = {e.other, whole, bytes};
    assert_int_equal(pthread_create(&thread, NULL, write_all, &w), 0);
    while (e.messages == 0 && !e.closed) event_base_loop(e.base, EVLOOP_ONCE);
    pthread_join(thread, NULL);
    assert_int_equal(e.last_count, KN_WIRE_BYTES_MAX);
    assert_int_equal(e.sum, add_sum(0, whole + KN_LINK_HEADER_BYTES, KN_WIRE_BYTES_MAX));
    put(&e, (const unsigned char[]){1, 0, 0, 1}, 4);
    turn(&e);
    assert_true(e.closed);
    assert_int_equal(e.why, KN_CORRUPT);
    assert_non_null(strstr(e.reason, "16777217"));
    assert_int_equal(kn_link_send(e.link, "x", 1), KN_IO);
    free(whole);
    close_end(&e);
}

static void test_refused(void **state)
{
    (void)state;
    static const unsigned char wrong[][4] = {{0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 0, 0x80}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        end e;
        open_end(&e);
        put(&e, (const unsigned char[]){1, 0, 0, 0, 'a'}, 5);
        put(&e, wrong[i], 4);
        put(&e, (const unsigned char[]){1, 0, 0, 0, 'b'}, 5);
        turn(&e);
        assert_int_equal(e.messages, 1); /* nothing after it is read */
        assert_true(e.closed);
        assert_int_equal(e.why, KN_CORRUPT);
        close_end(&e);
    }
}

static void test_cut_off(void **state)
{
    (void)state;
    size_t bytes;
    unsigned char *whole = frame(50, &bytes);
    for (size_t cut = 0; cut < bytes; cut += 3) {
        end e;
        open_end(&e);
        put(&e, whole, cut > 0 ? cut : bytes);
        close(e.other);
        e.other = -1;
        turn(&e);
        assert_int_equal(e.messages, cut == 0);
        assert_true(e.closed);
        assert_int_equal(e.why, KN_CANCELLED);
        close_end(&e);
    }
    free(whole);
}

static void test_destroyed_in_callbacks(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    end e;
    open_end(&e);
    e.destroy_on_message = true;
    for (int i = 0; i < 3; i++) put(&e, (const unsigned char[]){1, 0, 0, 0, 'a'}, 5);
    turn(&e);
    assert_int_equal(e.messages, 1);
    assert_false(e.closed);
    assert_null(e.link);
    char byte;
    assert_int_equal(recv(e.other, &byte, 1, MSG_DONTWAIT), 0); /* the descriptor is closed */
    close_end(&e);
    open_end(&e);
    e.destroy_on_close = true;
    close(e.other);
    e.other = -1;
    turn(&e);
    assert_true(e.closed && !e.link);
    close_end(&e);
    assert_int_equal(kn_mem_read().bytes, held);
}

/* The far end learns at once, without the loop. */
static void test_destroy_is_seen(void **state)
{
    (void)state;
    end e;
    open_end(&e);
    kn_link_destroy(&e.link);
    char byte;
    assert_int_equal(recv(e.other, &byte, 1, 0), 0);
    close_end(&e);
}

/* Reads so many bytes at the far end while the loop goes on. */
static void drain(end *e, size_t count)
{
    static char buffer[1 << 16];
    while (count > 0) {
        event_base_loop(e->base, EVLOOP_NONBLOCK);
        const ssize_t n = recv(e->other, buffer, count < sizeof buffer ? count : sizeof buffer, MSG_DONTWAIT);
        if (n > 0) count -= (size_t)n;
    }
}

static void test_queue_is_bounded(void **state)
{
    (void)state;
    end e;
    enum { FRAME = 1 << 20, FRAMES = KN_LINK_QUEUE_BYTES / FRAME - 1 }; /* one more and their headers are too many */
    char *bytes = calloc(2, FRAME); /* what the socket has taken is room for more than a frame */
    void *got = NULL;
    size_t count = 0;
    assert_non_null(bytes);
    open_end(&e);
    for (int i = 0; i < FRAMES; i++) assert_int_equal(kn_link_send(e.link, bytes, FRAME), KN_OK);
    int taken = 0; /* by the socket, of the first frame */
    assert_int_equal(ioctl(e.other, FIONREAD, &taken), 0);
    assert_in_range(taken, 1, FRAME);
    const size_t queued = FRAMES * (size_t)(FRAME + KN_LINK_HEADER_BYTES) - (size_t)taken;
    const size_t left = KN_LINK_QUEUE_BYTES - queued - KN_LINK_HEADER_BYTES;
    assert_int_equal(kn_link_send(e.link, bytes, left + 1), KN_AGAIN);
    assert_int_equal(kn_link_send(e.link, bytes, left), KN_OK);
    assert_int_equal(kn_link_send(e.link, bytes, 1), KN_AGAIN);
    turn(&e);
    assert_false(e.closed); /* slow is not dead */
    drain(&e, KN_LINK_QUEUE_BYTES + (size_t)taken);
    assert_int_equal(kn_link_send(e.link, "last", 4), KN_OK);
    turn(&e);
    assert_int_equal(kn_link_receive(e.other, &got, &count), KN_OK);
    assert_int_equal(count, 4);
    assert_memory_equal(got, "last", 4);
    kn_free(got);
    assert_int_equal(kn_link_send(e.link, bytes, 0), KN_INVALID);
    assert_int_equal(kn_link_send(e.link, bytes, (size_t)KN_WIRE_BYTES_MAX + 1), KN_INVALID);
    free(bytes);
    close_end(&e);
}

/* The far end is gone and had something to say before it went. */
static void test_last_words(void **state)
{
    (void)state;
    end e;
    open_end(&e);
    put(&e, (const unsigned char[]){1, 0, 0, 0, 'a'}, 5);
    close(e.other);
    e.other = -1;
    assert_int_equal(kn_link_send(e.link, "to nobody", 9), KN_OK);
    turn(&e);
    assert_int_equal(e.messages, 1);
    assert_true(e.closed);
    assert_int_equal(e.why, KN_CANCELLED);
    close_end(&e);
}

/* ---- blocking ---- */

static void test_blocking(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 65535, 65536, 65537, 300000, KN_WIRE_BYTES_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int ends[2];
        size_t bytes, count = 0;
        void *got = NULL;
        pthread_t thread;
        unsigned char *whole = frame(sizes[i], &bytes);
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        writer w = {ends[1], whole, bytes};
        assert_int_equal(pthread_create(&thread, NULL, write_all, &w), 0);
        assert_int_equal(kn_link_receive(ends[0], &got, &count), KN_OK);
        pthread_join(thread, NULL);
        assert_int_equal(count, sizes[i]);
        assert_memory_equal(got, whole + KN_LINK_HEADER_BYTES, count);
        kn_free(got);
        close(ends[1]);
        assert_int_equal(kn_link_receive(ends[0], &got, &count), KN_CANCELLED);
        assert_int_equal(kn_link_transmit(ends[0], "x", 1), KN_CANCELLED);
        close(ends[0]);
        free(whole);
    }
}

static void test_blocking_refusals(void **state)
{
    (void)state;
    static const struct {
        unsigned char bytes[8];
        size_t count;
        kn_status wanted;
    } cases[] = {{{0}, 4, KN_CORRUPT},
                 {{1, 0, 0, 1}, 4, KN_CORRUPT},
                 {{9, 0}, 2, KN_CANCELLED},
                 {{9, 0, 0, 0, 1}, 5, KN_CANCELLED},
                 {{0}, 0, KN_CANCELLED}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int ends[2];
        void *got = NULL;
        size_t count;
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
        assert_int_equal(send(ends[1], cases[i].bytes, cases[i].count, 0), cases[i].count);
        close(ends[1]);
        assert_int_equal(kn_link_receive(ends[0], &got, &count), cases[i].wanted);
        assert_null(got);
        close(ends[0]);
    }
    void *got = NULL;
    size_t count;
    assert_int_equal(kn_link_receive(-1, &got, &count), KN_IO);
    assert_int_equal(kn_link_transmit(-1, "x", 1), KN_IO);
    assert_int_equal(kn_link_transmit(-1, "x", 0), KN_INVALID);
    assert_int_equal(kn_link_transmit(-1, "x", (size_t)KN_WIRE_BYTES_MAX + 1), KN_INVALID);
}

/* Three frames at once, a descriptor with the second: it arrives with that one, is the same file, and is closed on
 * exec. Behind a queue none is taken. */
static void test_descriptors(void **state)
{
    (void)state;
    end e;
    open_end(&e);
    int pipe_ends[2], passed[3];
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(kn_link_send(e.link, "first", 5), KN_OK);
    assert_int_equal(kn_link_send_with(e.link, "second", 6, pipe_ends[1]), KN_OK);
    assert_int_equal(kn_link_send(e.link, "third", 5), KN_OK);
    for (int i = 0; i < 3; i++) {
        void *got = NULL;
        size_t count;
        assert_int_equal(kn_link_receive_with(e.other, &got, &count, &passed[i]), KN_OK);
        assert_int_equal(count, i == 1 ? 6 : 5);
        kn_free(got);
    }
    assert_int_equal(passed[0], -1);
    assert_int_equal(passed[2], -1);
    assert_true(passed[1] >= 0 && passed[1] != pipe_ends[1]);
    assert_true(fcntl(passed[1], F_GETFD) & FD_CLOEXEC);
    char byte = 0;
    assert_int_equal(write(passed[1], "x", 1), 1);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 1);
    assert_int_equal(byte, 'x');
    close(passed[1]);

    static char large[1 << 20]; /* more than a socket holds */
    kn_status st = KN_OK;
    assert_int_equal(kn_link_send(e.link, large, sizeof large), KN_OK);
    st = kn_link_send_with(e.link, "fourth", 6, pipe_ends[1]);
    assert_int_equal(st, KN_AGAIN);
    close(pipe_ends[1]); /* nobody else has it */
    assert_int_equal(read(pipe_ends[0], &byte, 1), 0);
    close(pipe_ends[0]);
    close_end(&e);
}

/* Who does not ask for a descriptor does not keep one. */
static void test_unwanted_descriptor(void **state)
{
    (void)state;
    end e;
    open_end(&e);
    int pipe_ends[2];
    void *got = NULL;
    size_t count;
    char byte;
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(kn_link_send_with(e.link, "frame", 5, pipe_ends[1]), KN_OK);
    close(pipe_ends[1]);
    assert_int_equal(kn_link_receive(e.other, &got, &count), KN_OK);
    assert_int_equal(read(pipe_ends[0], &byte, 1), 0);
    kn_free(got);
    close(pipe_ends[0]);
    close_end(&e);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cut_off),
        cmocka_unit_test(test_destroyed_in_callbacks),
        cmocka_unit_test(test_destroy_is_seen),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_last_words),
        cmocka_unit_test(test_blocking),
        cmocka_unit_test(test_blocking_refusals),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_unwanted_descriptor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
