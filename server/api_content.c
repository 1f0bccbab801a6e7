/* SPDX-License-Identifier: Apache-2.0
 *
 * Results and events: the files of a finished video, and the stream of what happens to one. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/api.h"
#include "server/query.h"

static const struct variant {
    const char *name, *type, *extension;
    kn_artifact_kind kind;
} variants[] = {
    {"video", "video/mp4", "mp4", KN_ARTIFACT_VIDEO},
    {"thumbnail", "image/webp", "webp", KN_ARTIFACT_THUMBNAIL},
    {"spritesheet", "image/jpeg", "jpg", KN_ARTIFACT_SPRITESHEET},
};

/* ---- files ---- */

static bool still_allowed(void *context)
{
    const kn_live *live = context;
    return live->job.state == KN_JOB_COMPLETED;
}

static void let_go(void *context)
{
    kn_live *live = context;
    live->pins--;
}

kn_status kn_api_open_result(kn_server *s, const kn_live *live, kn_artifact_kind kind, int *out, uint64_t *bytes,
                             kn_api_error *error)
{
    struct stat there;
    kn_artifact artifact;
    const char *name = "file";
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        if (variants[i].kind == kind) name = variants[i].name;
    /* The row names the file: the epoch that published may not be the last. */
    char *path = live->job.blob && kn_artifact_parse(&artifact, live->job.blob)
                     ? (artifact.kind = kind, kn_artifact_path(s->data, &artifact))
                     : NULL;
    const int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;
    kn_free(path);
    if (fd < 0 || fstat(fd, &there) != 0) {
        kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_job(live->job.id)), "the %s of a completed video: %s", name,
                     strerror(errno));
        if (fd >= 0) close(fd);
        return kn_api_not_found(error, name, live->job.id);
    }
    *out = fd;
    *bytes = (uint64_t)there.st_size;
    return KN_OK;
}

void kn_api_etag(char etag[KN_API_ETAG_BYTES], const kn_live *live, kn_artifact_kind kind)
{
    int length = snprintf(etag, KN_API_ETAG_BYTES, "\"%c",
                          kind == KN_ARTIFACT_VIDEO       ? 'v'
                          : kind == KN_ARTIFACT_THUMBNAIL ? 't'
                                                          : 's');
    for (int i = 0; i < 16; i++)
        length += snprintf(etag + length, KN_API_ETAG_BYTES - (size_t)length, "%02x", live->job.blob_sha256[i]);
    snprintf(etag + length, KN_API_ETAG_BYTES - (size_t)length, "\"");
}

static void send_file(kn_call *call, kn_live *live, const struct variant *variant)
{
    kn_api_error error;
    char etag[KN_API_ETAG_BYTES], name[96];
    int fd;
    uint64_t bytes;
    if (kn_api_open_result(call->server, live, variant->kind, &fd, &bytes, &error) != KN_OK) {
        kn_call_error(call, &error);
        return;
    }
    kn_api_etag(etag, live, variant->kind);
    snprintf(name, sizeof name, "attachment; filename=\"%s.%s\"", live->job.id, variant->extension);
    const kn_http_reply_header headers[] = {{"content-disposition", name}, {"cache-control", "private"}};
    live->pins++;
    const kn_http_file file = {.fd = fd,
                               .bytes = bytes,
                               .content_type = variant->type,
                               .etag = etag,
                               .headers = headers,
                               .header_count = sizeof headers / sizeof *headers,
                               .ranges = true,
                               .allowed = still_allowed,
                               .done = let_go,
                               .context = live};
    if (kn_http_reply_file(call->exchange, &file) != KN_OK) kn_log(KN_LOG_ERROR, "content: %s", kn_fail_message());
    kn_call_over(call);
}

kn_status kn_api_check_content(const kn_live *live, kn_api_error *error)
{
    const kn_job *job = &live->job;
    switch (job->state) {
    case KN_JOB_COMPLETED:
        if (job->expires_at && job->expires_at <= kn_now_us()) break;
        return KN_OK;
    case KN_JOB_EXPIRED: break;
    case KN_JOB_FAILED:
    case KN_JOB_CANCELLED:
        return kn_api_conflict(error, "video_failed", 0, "This video failed (%s) and has no content.", job->error_code);
    default:
        return kn_api_conflict(error, "video_not_ready", 0,
                               "This video is still %s; its content comes with completion.",
                               kn_video_status_name(job->state));
    }
    return kn_api_gone(error, "This video has expired; its content is kept no longer.");
}

void kn_api_content(kn_call *call)
{
    static const char *const names[] = {"variant", NULL};
    kn_api_error error;
    kn_query query;
    const char *text = kn_http_query(call->exchange);
    const struct variant *variant = NULL;
    kn_live *live = kn_call_find(call);
    if (!live) return;
    kn_status st = kn_query_parse(&query, text, strlen(text), &error);
    if (st == KN_OK) st = kn_query_only(&query, names, &error);
    if (st == KN_OK) {
        const char *asked = kn_query_get(&query, "variant");
        for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
            if (strcmp(asked && asked[0] ? asked : "video", variants[i].name) == 0) variant = &variants[i];
        if (!variant) st = kn_api_invalid_value(&error, "variant", "variant must be video, thumbnail or spritesheet.");
    }
    if (st == KN_OK) st = kn_api_check_content(live, &error);
    if (st == KN_OK)
        send_file(call, live, variant);
    else
        kn_call_error(call, &error);
}

/* A client that waits wants the reason, not that there is no content. */
kn_status kn_api_check_result(const kn_live *live, kn_api_error *error)
{
    const kn_status st = kn_api_check_content(live, error);
    if (st == KN_OK) return KN_OK;
    if (live->job.state == KN_JOB_FAILED) {
        const bool blocked = strcmp(live->job.error_code, KN_MODERATION_CODE) == 0;
        error->status = blocked ? 400 : 500;
        if (!blocked) error->type = "server_error";
    }
    if (live->job.error_code[0]) error->code = live->job.error_code;
    if (live->job.error_message) snprintf(error->message, sizeof error->message, "%s", live->job.error_message);
    return st;
}

void kn_api_send_video(kn_call *call, kn_live *live)
{
    kn_api_error error;
    if (kn_api_check_result(live, &error) == KN_OK)
        send_file(call, live, &variants[0]);
    else
        kn_call_error(call, &error);
}

/* ---- server-sent events ---- */

static kn_status on_event(void *context, const kn_watch_event *event)
{
    kn_call *call = context;
    kn_text text = kn_text_growing(KN_WATCH_EVENT_BYTES_MAX * 2);
    kn_sse_write(&text, event->name, event->id, event->data, event->bytes);
    if (event->last) kn_text_string(&text, "data: [DONE]\n\n");
    kn_status st = kn_text_status(&text);
    if (st == KN_OK) st = kn_http_stream_write(call->exchange, text.bytes, text.count);
    kn_text_release(&text);
    if (st == KN_OK && !event->last) return KN_OK;
    call->watcher = NULL;              /* the watch lets go of it when this returns */
    if (st == KN_CANCELLED) return st; /* closed() comes */
    if (st == KN_OK)
        kn_http_stream_end(call->exchange);
    else
        kn_http_abort(call->exchange); /* reads too slowly; it may come back with the last id it saw */
    kn_call_over(call);
    return st == KN_OK ? KN_OK : st;
}

void kn_api_events(kn_call *call)
{
    static const kn_http_reply_header headers[] = {{"cache-control", "no-cache"}, {"x-accel-buffering", "no"}};
    kn_server *s = call->server;
    kn_api_error error;
    kn_watcher *watcher;
    kn_live *live = kn_call_find(call);
    if (!live) return;
    if (s->streams >= s->config->event_streams_max) {
        kn_api_overloaded(&error, 5, "All %d event streams are taken.", s->streams);
        kn_call_error(call, &error);
        return;
    }
    char seen[KN_WATCH_ID_BYTES] = "";
    const char *last = kn_http_header(call->exchange, "last-event-id");
    if (last && strlen(last) < sizeof seen) memcpy(seen, last, strlen(last) + 1);
    const kn_http_response response = {.status = 200,
                                       .content_type = "text/event-stream",
                                       .headers = headers,
                                       .header_count = sizeof headers / sizeof *headers};
    if (kn_http_stream_begin(call->exchange, &response) != KN_OK) {
        kn_call_over(call);
        return;
    }
    kn_call_pin(call, live);
    call->stream = true;
    kn_call_list(call);
    s->streams++;
    kn_call_hold(call);
    if (kn_tell_watch(s, live, &watcher, on_event, call, seen[0] ? seen : NULL) != KN_OK) {
        kn_http_abort(call->exchange);
        call->exchange = NULL;
    } else if (watcher) {
        call->watcher = watcher;
    }
    kn_call_release(call);
}

/* The job is saved, and the same request with the same key finds it again; without a key, sent again, it would be a
 * second job. */
void kn_api_turn_away(kn_call *call)
{
    kn_api_error error;
    kn_api_overloaded(&error, 10, "This server is being shut down. %s goes on when it is back; ask for it then.",
                      call->live->job.id);
    error.no_retry = !call->intake->key[0];
    kn_call_error(call, &error);
}

void kn_api_end_streams(kn_server *s)
{
    for (kn_call *call = s->stream_calls, *next; call; call = next) {
        next = call->next_stream;
        if (!kn_call_waits(call)) continue;
        if (call->watcher) kn_watch_remove(call->live->watch, &call->watcher);
        if (call->stream) {
            if (call->front)
                call->front->drain(call);
            else
                kn_http_stream_end(call->exchange);
            kn_call_over(call);
        } else {
            kn_api_turn_away(call);
            kn_call_release(call); /* what kn_call_wait holds */
        }
    }
}

void kn_api_heartbeat(kn_server *s)
{
    char storage[32];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_sse_comment_write(&text, "");
    for (kn_call *call = s->stream_calls, *next; call; call = next) {
        next = call->next_stream;
        if (call->stream && call->exchange &&
            kn_http_stream_write(call->exchange, text.bytes, text.count) == KN_AGAIN) {
            kn_http_abort(call->exchange);
            kn_call_over(call);
        }
    }
}
