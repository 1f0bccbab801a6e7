/* SPDX-License-Identifier: Apache-2.0
 *
 * What watchers of a job are told: its whole video object whenever its state changes, small progress records after
 * each slice, and pictures when there are new ones. */
#include <openssl/evp.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/core.h"
#include "server/json.h"

static const char *state_event(kn_job_state state)
{
    switch (state) {
    case KN_JOB_QUEUED: return "video.queued";
    case KN_JOB_RUNNING: return "video.in_progress";
    case KN_JOB_COMPLETED:
    case KN_JOB_EXPIRED: return "video.completed";
    case KN_JOB_DELETED: return "video.deleted";
    default: return "video.failed";
    }
}

/* {"type": name, "video": {...}} */
static void write_state(kn_server *s, kn_live *live, kn_text *text, const char *name)
{
    kn_text_format(text, "{\"type\":\"%s\",\"video\":", name);
    const kn_video_item item = {.job = &live->job, .summary = &live->summary, .facts = kn_dispatch_facts(s, live)};
    kn_video_write(text, &item);
    kn_text_string(text, "}");
}

static kn_status watch_of(kn_server *s, kn_live *live)
{
    return live->watch ? KN_OK : kn_watch_create(&live->watch, s->start);
}

void kn_tell_state(kn_server *s, kn_live *live)
{
    kn_text text = kn_text_growing(KN_WATCH_EVENT_BYTES_MAX);
    const char *name = state_event(live->job.state);
    if (kn_watch_count(live->watch) == 0 && !live->watch) return; /* nobody ever watched: nobody comes back */
    write_state(s, live, &text, name);
    if (kn_text_status(&text) != KN_OK ||
        kn_watch_publish(live->watch, name, text.bytes, text.count, true, kn_job_state_final(live->job.state)) != KN_OK)
        kn_log_event(KN_LOG_WARNING, KN_LOG_WITH(kn_log_job(live->job.id)), "watchers were not told: %s",
                     kn_fail_message());
    kn_text_release(&text);
}

static void tell_present(kn_server *s, kn_live *live, kn_watcher **watcher)
{
    kn_text text = kn_text_growing(KN_WATCH_EVENT_BYTES_MAX);
    const char *name = state_event(live->job.state);
    write_state(s, live, &text, name);
    if (kn_text_status(&text) == KN_OK)
        kn_watch_tell(live->watch, watcher, name, text.bytes, text.count, kn_job_state_final(live->job.state));
    kn_text_release(&text);
}

void kn_tell_progress(kn_server *s, kn_live *live)
{
    char storage[512];
    if (kn_watch_count(live->watch) == 0) return;
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_json_writer w = kn_json_writer_on(&text);
    const kn_video_facts facts = kn_dispatch_facts(s, live);
    kn_json_write_object(&w);
    kn_json_write_key(&w, "type");
    kn_json_write_string(&w, "video.progress");
    kn_json_write_key(&w, "id");
    kn_json_write_string(&w, live->job.id);
    kn_json_write_key(&w, "progress");
    kn_json_write_int(&w, facts.progress < 0 ? 0 : facts.progress > 99 ? 99 : facts.progress);
    kn_json_write_key(&w, "stage");
    kn_json_write_string(&w, kn_slice_name(live->next.kind));
    kn_json_write_key(&w, "step");
    kn_json_write_int(&w, live->next.index);
    kn_json_write_key(&w, "steps");
    kn_json_write_int(&w, live->next.count);
    kn_json_write_key(&w, "eta_seconds");
    kn_json_write_double(&w, facts.eta_seconds);
    kn_json_write_object_end(&w);
    if (kn_text_status(&text) == KN_OK)
        kn_watch_publish(live->watch, "video.progress", text.bytes, text.count, false, false);
    kn_dispatch_preview(s, live);
}

void kn_tell_preview(kn_server *s, kn_live *live)
{
    (void)s;
    if (kn_watch_count(live->watch) == 0) return;
    kn_text text = kn_text_growing(KN_WATCH_EVENT_BYTES_MAX);
    unsigned char *picture = kn_alloc(4 * (live->preview_bytes / 3 + 1) + 1);
    if (picture) {
        EVP_EncodeBlock(picture, live->preview, (int)live->preview_bytes);
        kn_text_format(&text, "{\"type\":\"video.preview\",\"id\":\"%s\",\"step\":%d,\"url\":\"data:%s;base64,",
                       live->job.id, live->next.index, live->preview_mime);
        kn_text_string(&text, (const char *)picture);
        kn_text_string(&text, "\"}");
        if (kn_text_status(&text) == KN_OK)
            kn_watch_publish(live->watch, "video.preview", text.bytes, text.count, false, false);
    }
    kn_free(picture);
    kn_text_release(&text);
}

kn_status kn_tell_watch(kn_server *s, kn_live *live, kn_watcher **out, kn_watch_fn *fn, void *context, const char *seen)
{
    kn_status st = KN_OK;
    bool replayed;
    *out = NULL;
    KN_TRY(watch_of(s, live));
    KN_TRY(kn_watch_add(live->watch, out, fn, context, seen, &replayed));
    if (*out && (!replayed || kn_job_state_final(live->job.state))) tell_present(s, live, out);
fail:
    return st;
}
