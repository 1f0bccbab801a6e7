/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as what a client sends after HTTP/2's preface, in pieces, with a handler that answers in several ways, resets,
 * holds bytes back and sends large bodies. Every stream that was introduced is closed exactly once, what is sent stays
 * bounded, and all memory is given back. */
#include <event2/buffer.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/h2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BYTES_MAX = 16 << 10, ROOM = 16 << 10, BODY_BYTES = 100 << 10 };

static int open_streams, blocks;

static void require(int condition)
{
    if (!condition) abort();
}

static void on_released(void *context)
{
    (void)context;
    blocks--;
}

static void answer(kn_h2_stream *s, unsigned way)
{
    static const uint8_t body[BODY_BYTES];
    static const kn_h2_field head[] = {{":status", "200", 7, 3, false}, {"x-copied", "yes", 8, 3, true}};
    if (way % 8 == 7) {
        kn_h2_reset(s, KN_H2_INTERNAL_ERROR);
        return;
    }
    kn_h2_respond(s, head, 2, way % 8 == 0);
    if (way % 8 == 0) return;
    blocks++;
    kn_h2_write(s, "prefix", 6, body, way % 2 ? sizeof body : 10, on_released, NULL);
    kn_h2_write(s, "", 0, "copied", 6, NULL, NULL);
    if (way % 8 < 5) kn_h2_trailers(s, &head[1], way % 8 < 3);
}

static void on_request(kn_h2_stream *s, const kn_h2_head *head, void *context)
{
    (void)context;
    size_t bytes = 0;
    open_streams++;
    require(head->count <= KN_H2_FIELDS_MAX);
    for (size_t i = 0; i < head->count; i++) {
        require(strlen(head->fields[i].name) == head->fields[i].name_bytes);
        bytes += head->fields[i].name_bytes + head->fields[i].value_bytes;
    }
    require(bytes <= KN_H2_HEADER_BYTES);
    kn_h2_stream_set_user(s, (void *)(uintptr_t)(bytes + 1));
    if (bytes % 3 == 0) answer(s, (unsigned)bytes);
}

static void on_data(kn_h2_stream *s, const uint8_t *bytes, size_t count, void *context)
{
    (void)bytes, (void)context;
    if ((uintptr_t)kn_h2_stream_user(s) % 5) kn_h2_consume(s, count);
}

static void on_end(kn_h2_stream *s, void *context)
{
    const uintptr_t user = (uintptr_t)kn_h2_stream_user(s);
    (void)context;
    if ((user - 1) % 3 != 0) answer(s, (unsigned)user);
}

static void on_drained(kn_h2_stream *s, void *context)
{
    (void)s, (void)context;
}

static void on_closed(kn_h2_stream *s, uint32_t error, void *context)
{
    (void)s, (void)error, (void)context;
    open_streams--;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const uint64_t held = kn_mem_read().bytes;
    kn_h2_shared shared = {.streams_max = 50};
    kn_h2 *h = NULL;
    if (size < 1 || size > BYTES_MAX) return 0;
    const kn_h2_params params = {.callbacks = {on_request, on_data, on_end, on_drained, on_closed},
                                 .shared = &shared,
                                 .streams = 40,
                                 .ping_ns = 1000000000,
                                 .now_ns = 1};
    struct evbuffer *out = evbuffer_new();
    require(kn_h2_create(&h, &params) == KN_OK);
    const size_t step = data[0] % 8 ? (size_t)data[0] * 16 : 1;
    kn_status st = kn_h2_receive(h, preface, sizeof preface - 1, 1);
    for (size_t at = 1; at < size && st == KN_OK && !kn_h2_finished(h); at += step) {
        const size_t count = size - at < step ? size - at : step;
        st = kn_h2_receive(h, data + at, count, (int64_t)at * 1000000);
        require(kn_h2_produce(h, out, ROOM, (int64_t)at * 1000000) == KN_OK);
        require(evbuffer_get_length(out) <= ROOM + (64 << 10) + KN_H2_FRAME_BYTES_MAX);
        require(kn_h2_streams(h) == shared.streams && shared.streams <= 50);
        if (data[0] % 2) evbuffer_drain(out, evbuffer_get_length(out));
    }
    kn_h2_produce(h, out, SIZE_MAX, 1);
    kn_h2_destroy(&h);
    evbuffer_free(out);
    require(open_streams == 0 && shared.streams == 0 && blocks == 0);
    require(kn_mem_read().bytes == held);
    return 0;
}
