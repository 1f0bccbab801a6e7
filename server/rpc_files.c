/* SPDX-License-Identifier: Apache-2.0
 *
 * Download and UploadReference: files in chunks, one after the other as the other side takes and gives them. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/references.h"
#include "server/rpc_service.h"

/* ---- Download ---- */

typedef struct download {
    kn_live *live; /* pinned */
    int fd;
    uint64_t at, end, total;
    uint32_t chunk_bytes;
    bool begun;
    kn_artifact_kind kind;
} download;

static void end_download(download *d)
{
    d->live->pins--;
    close(d->fd);
    kn_free(d);
}

static const char *mime_of(kn_artifact_kind kind)
{
    return kind == KN_ARTIFACT_VIDEO ? "video/mp4" : kind == KN_ARTIFACT_THUMBNAIL ? "image/webp" : "image/jpeg";
}

static kn_status read_chunk(download *d, uint8_t *out, size_t count)
{
    for (size_t have = 0; have < count;) {
        const ssize_t got = pread(d->fd, out + have, count - have, (off_t)(d->at + have));
        if (got > 0)
            have += (size_t)got;
        else if (got == 0 || errno != EINTR)
            return kn_fail(KN_IO, "the file of a completed video ends early: %s", got < 0 ? strerror(errno) : "cut");
    }
    return KN_OK;
}

/* KN_AGAIN: the client has enough for now. */
static kn_status send_chunk(kn_grpc_call *grpc, download *d)
{
    const size_t count = d->end - d->at < d->chunk_bytes ? (size_t)(d->end - d->at) : d->chunk_bytes;
    char etag[KN_API_ETAG_BYTES];
    kn_rpc_block *block = NULL;
    uint8_t *data;
    if (!kn_grpc_has_room(grpc)) return KN_AGAIN;
    kn_api_etag(etag, d->live, d->kind);
    kn_server *s = kn_grpc_context(grpc);
    kn_status st = kn_rpc_write_chunk(&block, s->spares, &data, count, d->at, d->total,
                                      d->begun ? NULL : mime_of(d->kind), d->begun ? NULL : etag);
    if (st != KN_OK) return st;
    st = read_chunk(d, data, count);
    if (st != KN_OK) {
        kn_rpc_block_unref(block);
        return st;
    }
    st = kn_grpc_send_owned(grpc, block->bytes, block->count, kn_rpc_block_unref, block);
    if (st != KN_OK) return st;
    d->at += count;
    d->begun = true;
    return KN_OK;
}

void kn_rpc_download_writable(kn_grpc_call *grpc)
{
    download *d = kn_grpc_user(grpc);
    kn_api_error error;
    kn_status st = KN_OK;
    while (st == KN_OK && d->at < d->end && d->live->job.state == KN_JOB_COMPLETED) st = send_chunk(grpc, d);
    if (st == KN_AGAIN) return;
    if (st != KN_OK) {
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(d->live->job.id)), "download: %s", kn_fail_message());
        kn_api_internal(&error);
        kn_grpc_fail(grpc, &error);
    } else if (d->at < d->end) {
        kn_api_gone(&error, "This video has expired or was deleted; its content is kept no longer.");
        kn_grpc_fail(grpc, &error);
    } else {
        kn_grpc_finish(grpc, KN_GRPC_OK, NULL);
    }
    end_download(d);
}

static kn_status check_download(const kn_rpc_download *asked, const kn_live *live, uint64_t total, kn_api_error *error)
{
    char etag[KN_API_ETAG_BYTES];
    kn_api_etag(etag, live, asked->kind);
    if (asked->etag[0] && strcmp(asked->etag, etag) != 0)
        return kn_api_conflict(error, "content_changed", 0, "The content is not what etag says; start at offset 0.");
    if (asked->offset <= total) return KN_OK;
    kn_api_invalid_value(error, "offset", "offset is behind the end: the file has %llu bytes.",
                         (unsigned long long)total);
    error->status = 416;
    return KN_INVALID;
}

static kn_status open_download(kn_grpc_call *grpc, const kn_rpc_download *asked, kn_api_error *error)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_status st = KN_OK;
    uint64_t total;
    int fd = -1;
    kn_live *live = kn_api_find(s, kn_grpc_principal(grpc)->tenant, asked->id);
    if (!live) return kn_api_not_found(error, "video", asked->id);
    KN_TRY(kn_api_check_content(live, error));
    KN_TRY(kn_api_open_result(s, live, asked->kind, &fd, &total, error));
    KN_TRY(check_download(asked, live, total, error));
    download *d = kn_alloc(sizeof *d);
    if (!d) KN_TRY(kn_api_from_status(error, KN_NOMEM));
    const uint64_t left = total - asked->offset;
    *d = (download){.live = live,
                    .fd = fd,
                    .at = asked->offset,
                    .end = asked->offset + (asked->length && asked->length < left ? asked->length : left),
                    .total = total,
                    .chunk_bytes = asked->chunk_bytes,
                    .kind = asked->kind};
    live->pins++;
    kn_grpc_set_user(grpc, d);
    return KN_OK;
fail:
    if (fd >= 0) close(fd);
    return st;
}

void kn_rpc_download_message(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_api_error error;
    kn_rpc_download asked;
    kn_status st = kn_rpc_read_download(&asked, bytes, count, &error);
    if (st == KN_OK) st = open_download(grpc, &asked, &error);
    if (st == KN_OK)
        kn_rpc_download_writable(grpc);
    else
        kn_grpc_fail(grpc, &error);
}

void kn_rpc_download_closed(kn_grpc_call *grpc)
{
    if (kn_grpc_user(grpc)) end_download(kn_grpc_user(grpc));
}

/* ---- UploadReference ---- */

typedef struct upload {
    uint8_t *bytes;
    size_t count, room;
} upload;

static void end_upload(kn_grpc_call *grpc)
{
    upload *u = kn_grpc_user(grpc);
    kn_server *s = kn_grpc_context(grpc);
    if (!u) return;
    s->upload_bytes -= u->room;
    kn_free(u->bytes);
    kn_free(u);
    kn_grpc_set_user(grpc, NULL);
}

static kn_status append(kn_server *s, upload *u, const uint8_t *data, size_t count, kn_api_error *error)
{
    const size_t limit =
        s->config->upload_bytes_max < KN_IMAGE_BYTES_MAX ? (size_t)s->config->upload_bytes_max : KN_IMAGE_BYTES_MAX;
    if (u->count + count > limit) return kn_api_too_large(error, "The picture", limit);
    if (u->count + count > u->room) {
        size_t room = u->room ? 2 * u->room : 64 << 10;
        while (room < u->count + count) room *= 2;
        if (s->upload_bytes + room - u->room > KN_REFERENCES_BYTES)
            return kn_api_overloaded(error, 5, "Too many pictures are being uploaded.");
        uint8_t *grown = kn_realloc(u->bytes, room);
        if (!grown) return kn_api_from_status(error, KN_NOMEM);
        s->upload_bytes += room - u->room;
        u->bytes = grown;
        u->room = room;
    }
    if (count > 0) memcpy(u->bytes + u->count, data, count);
    u->count += count;
    return KN_OK;
}

void kn_rpc_upload_message(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    const uint8_t *data;
    size_t data_bytes;
    upload *u = kn_grpc_user(grpc);
    if (!u) kn_grpc_set_user(grpc, u = kn_alloc(sizeof *u));
    kn_status st = u ? KN_OK : kn_api_from_status(&error, KN_NOMEM);
    if (st == KN_OK) st = kn_rpc_read_part(&data, &data_bytes, bytes, count, &error);
    if (st == KN_OK) st = append(s, u, data, data_bytes, &error);
    if (st == KN_OK) return;
    end_upload(grpc);
    kn_grpc_fail(grpc, &error);
}

void kn_rpc_upload_end(kn_grpc_call *grpc)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    const kn_reference *reference;
    kn_rpc_block *block = NULL;
    upload *u = kn_grpc_user(grpc);
    uint8_t *bytes = u ? u->bytes : NULL;
    const size_t count = u ? u->count : 0;
    if (u) u->bytes = NULL; /* taken */
    end_upload(grpc);
    kn_status st = kn_references_add(s->references, kn_grpc_principal(grpc)->tenant, bytes, count, kn_now_us(),
                                     &reference, &error);
    if (st != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    const kn_rpc_reference answer = {.id = reference->id,
                                     .mime = kn_image_media_type(reference->info.kind),
                                     .bytes = reference->count,
                                     .width = reference->info.width,
                                     .height = reference->info.height,
                                     .expires_at = reference->expires_at};
    st = kn_rpc_write_reference(&block, &answer);
    kn_rpc_reply(grpc, st, block);
}

void kn_rpc_upload_closed(kn_grpc_call *grpc)
{
    end_upload(grpc);
}
