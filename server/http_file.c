/* SPDX-License-Identifier: Apache-2.0
 *
 * Replies from a file. At most KN_HTTP_WINDOW_BYTES of it wait in the connection's output; whenever half of that is
 * gone the next pieces are read into the output's own memory. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/log.h"
#include "server/http_internal.h"
#include "server/http_range.h"

enum {
    PIECE_BYTES = (64 << 10) - 256,          /* with libevent's header it fits a block of 64 KiB */
    REFILL_BYTES = KN_HTTP_WINDOW_BYTES / 2, /* waiting less than this: read on */
};

void kn_http_file_close(kn_http_exchange *exchange)
{
    if (exchange->file >= 0) close(exchange->file);
    exchange->file = -1;
    exchange->file_left = 0;
    if (exchange->file_done) exchange->file_done(exchange->file_context);
    exchange->file_done = NULL;
}

/* One piece into the output. */
static kn_status read_piece(kn_http_exchange *exchange, struct evbuffer *output)
{
    struct evbuffer_iovec room;
    const size_t wanted = exchange->file_left < PIECE_BYTES ? (size_t)exchange->file_left : PIECE_BYTES;
    if (evbuffer_reserve_space(output, (ev_ssize_t)wanted, &room, 1) != 1)
        return kn_fail(KN_NOMEM, "no memory for a piece of a file");
    ssize_t got;
    do got = pread(exchange->file, room.iov_base, wanted, (off_t)exchange->file_offset);
    while (got < 0 && errno == EINTR);
    if (got < 0) return kn_fail(KN_IO, "cannot read on: %s", strerror(errno));
    if (got == 0) return kn_fail(KN_CORRUPT, "the file is %" PRIu64 " bytes shorter than said", exchange->file_left);
    room.iov_len = (size_t)got;
    if (evbuffer_commit_space(output, &room, 1) != 0) return kn_fail(KN_NOMEM, "no memory for a piece of a file");
    exchange->file_offset += (uint64_t)got;
    exchange->file_left -= (uint64_t)got;
    exchange->connection->queued += (uint64_t)got;
    return KN_OK;
}

void kn_http_file_refill(kn_http_exchange *exchange)
{
    kn_http_connection *connection = exchange->connection;
    struct evbuffer *output = bufferevent_get_output(connection->stream);
    while (exchange->file_left > 0 && !connection->broken && evbuffer_get_length(output) < REFILL_BYTES) {
        if (exchange->file_allowed && !exchange->file_allowed(exchange->file_context)) {
            connection->broken = true;
        } else if (read_piece(exchange, output) != KN_OK) {
            kn_log(KN_LOG_ERROR, "%s: file reply cut off: %s", exchange->id, kn_fail_message());
            connection->broken = true;
        }
    }
    bufferevent_setwatermark(connection->stream, EV_WRITE, exchange->file_left > 0 ? REFILL_BYTES / 2 : 0, 0);
}

static kn_http_selection select_bytes(const kn_http_exchange *exchange, const kn_http_file *file)
{
    const bool get = exchange->head.method == KN_HTTP_GET;
    if (!get && exchange->head.method != KN_HTTP_HEAD) return (kn_http_selection){.status = 200, .bytes = file->bytes};
    const kn_http_conditions conditions = {
        .if_match = kn_http_header(exchange, "if-match"),
        .if_none_match = kn_http_header(exchange, "if-none-match"),
        .if_range = kn_http_header(exchange, "if-range"),
        .range = kn_http_header_count(exchange, "range") == 1 ? kn_http_header(exchange, "range") : NULL,
        .etag = file->etag,
        .bytes = file->bytes,
        .ranges = get && file->ranges,
    };
    return kn_http_select(&conditions);
}

static kn_status begin_file(kn_http_exchange *exchange, const kn_http_file *file, const kn_http_selection *selection)
{
    char range[80];
    kn_http_reply_header own[3];
    size_t own_count = 0, head_bytes = 0;
    const bool content = selection->status == 200 || selection->status == 206;
    if (file->etag) own[own_count++] = (kn_http_reply_header){"ETag", file->etag};
    if (file->ranges) own[own_count++] = (kn_http_reply_header){"Accept-Ranges", "bytes"};
    if (selection->status == 206)
        snprintf(range, sizeof range, "bytes %" PRIu64 "-%" PRIu64 "/%" PRIu64, selection->first,
                 selection->first + selection->bytes - 1, file->bytes);
    else
        snprintf(range, sizeof range, "bytes */%" PRIu64, file->bytes);
    if (selection->status == 206 || selection->status == 416)
        own[own_count++] = (kn_http_reply_header){"Content-Range", range};
    const kn_http_outgoing outgoing = {
        .status = selection->status,
        .content_type = content ? file->content_type : NULL,
        .headers = file->headers,
        .header_count = file->header_count,
        .own = own,
        .own_count = own_count,
        .length = (int64_t)(selection->bytes + file->prefix_bytes),
    };
    if (file->etag && !kn_http_is_field_value(file->etag, strlen(file->etag)))
        return kn_fail(KN_INVALID, "a reply's ETag is malformed");
    const kn_status st = kn_http_begin_reply(exchange, &outgoing, &head_bytes);
    if (st != KN_OK) return st;
    const bool body = file->prefix_bytes > 0 && kn_http_has_body(exchange, selection->status);
    const struct iovec pieces[] = {
        {.iov_base = exchange->connection->server->head, .iov_len = head_bytes},
        {.iov_base = (void *)(uintptr_t)file->prefix, .iov_len = body ? file->prefix_bytes : 0},
    };
    kn_http_connection_send(exchange->connection, pieces, body ? 2 : 1);
    return KN_OK;
}

kn_status kn_http_reply_file(kn_http_exchange *exchange, const kn_http_file *file)
{
    const kn_http_selection selection = select_bytes(exchange, file);
    const bool begun = exchange->begun;
    const kn_status st = begin_file(exchange, file, &selection);
    if (begun) { /* by an earlier reply, whose file must stay */
        close(file->fd);
        if (file->done) file->done(file->context);
        return st;
    }
    exchange->file = file->fd;
    exchange->file_allowed = file->allowed;
    exchange->file_done = file->done;
    exchange->file_context = file->context;
    if (st != KN_OK) return kn_http_fail_reply(exchange); /* the file is closed with the exchange */
    if (kn_http_has_body(exchange, selection.status)) {
        exchange->file_offset = selection.first;
        exchange->file_left = selection.bytes;
        exchange->reply_bytes = selection.bytes + file->prefix_bytes;
    }
    kn_http_end_reply(exchange);
    return KN_OK;
}
