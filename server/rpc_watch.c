/* SPDX-License-Identifier: Apache-2.0
 *
 * Watch: what happens to a job, as a stream. Events are made once and sent to all who watch: they come one after the
 * other, so the latest block is kept for the next watcher. */
#include <string.h>

#include "base/log.h"
#include "server/rpc_service.h"

enum { LATE_BYTES = 64 << 10 }; /* waiting for a client: progress and pictures are left out from here on */

static const kn_route watch_route = {.pattern = "/kinora.v1.Kinora/Watch", .scope = KN_SCOPE_READ};

static kn_status write_state(kn_server *s, kn_live *live, const kn_watch_event *event, kn_rpc_block **out)
{
    const bool final = kn_job_state_final(live->job.state);
    const kn_video_item item = {.job = &live->job,
                                .summary = &live->summary,
                                .facts = final ? kn_video_facts_none() : kn_dispatch_facts(s, live)};
    return kn_rpc_write_state(out, event->id, &item);
}

static kn_status write_part(kn_server *s, kn_live *live, const kn_watch_event *event, kn_rpc_block **out)
{
    if (strcmp(event->name, "video.preview") == 0)
        return kn_rpc_write_preview(out, event->id, live->next.index, live->preview_mime, live->preview,
                                    live->preview_bytes);
    const kn_video_facts facts = kn_dispatch_facts(s, live);
    const kn_rpc_progress progress = {.stage = kn_slice_name(live->next.kind),
                                      .percent = facts.progress < 0    ? 0
                                                 : facts.progress > 99 ? 99
                                                                       : facts.progress,
                                      .step = live->next.index,
                                      .steps = live->next.count,
                                      .eta_seconds = facts.eta_seconds};
    return kn_rpc_write_progress(out, event->id, &progress);
}

/* Progress and pictures only: they are published and never told again, so an id and a name mean one message. */
static kn_status shared_part(kn_server *s, kn_live *live, const kn_watch_event *event, kn_rpc_block **out)
{
    if (s->rpc_event.live != live || s->rpc_event.name != event->name || strcmp(s->rpc_event.id, event->id) != 0) {
        kn_rpc_block *fresh = NULL;
        const kn_status st = write_part(s, live, event, &fresh);
        if (st != KN_OK) return st;
        kn_rpc_block_unref(s->rpc_event.block);
        s->rpc_event.block = fresh;
        s->rpc_event.live = live;
        s->rpc_event.name = event->name;
        memcpy(s->rpc_event.id, event->id, sizeof s->rpc_event.id);
    }
    *out = s->rpc_event.block;
    (*out)->references++;
    return KN_OK;
}

static bool is_state(const kn_watch_event *event)
{
    return strcmp(event->name, "video.progress") != 0 && strcmp(event->name, "video.preview") != 0;
}

static kn_status on_event(void *context, const kn_watch_event *event)
{
    kn_call *call = context;
    kn_rpc_block *block = NULL;
    kn_status st;
    if (is_state(event)) {
        st = write_state(call->server, call->live, event, &block);
    } else {
        const bool picture = strcmp(event->name, "video.preview") == 0;
        if (kn_grpc_queued(call->grpc) > LATE_BYTES || (picture ? call->no_previews : call->no_progress)) return KN_OK;
        st = shared_part(call->server, call->live, event, &block);
    }
    if (st == KN_OK) st = kn_grpc_send_owned(call->grpc, block->bytes, block->count, kn_rpc_block_unref, block);
    if (st == KN_OK && !event->last) return KN_OK;
    call->watcher = NULL; /* the watch lets go of it when this returns */
    call->owner = false;
    if (st == KN_OK)
        kn_grpc_finish(call->grpc, KN_GRPC_OK, NULL);
    else
        kn_grpc_finish(call->grpc, KN_GRPC_RESOURCE_EXHAUSTED, "events come faster than they are read");
    kn_call_over(call);
    return st;
}

static kn_status begin(kn_call *call, const kn_rpc_watch *asked, kn_api_error *error)
{
    kn_server *s = call->server;
    call->no_progress = asked->no_progress;
    call->no_previews = asked->no_previews;
    if (s->streams >= s->config->event_streams_max)
        return kn_api_overloaded(error, 5, "All %d event streams are taken.", s->streams);
    if (asked->cancel_with_call && !kn_principal_has(&call->principal, KN_SCOPE_CANCEL))
        return kn_api_forbidden(error, "cancel_with_call needs a key that may cancel videos.");
    return KN_OK;
}

void kn_rpc_watch_message(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    kn_rpc_watch asked;
    kn_watcher *watcher;
    if (kn_rpc_read_watch(&asked, bytes, count, &error) != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    kn_call *call = kn_call_open_grpc(s, grpc, &kn_rpc_front, &watch_route, asked.id);
    kn_live *live = call ? kn_call_find(call) : NULL;
    if (!live) return;
    if (begin(call, &asked, &error) != KN_OK) {
        kn_call_error(call, &error);
        return;
    }
    kn_call_pin(call, live);
    call->stream = true;
    call->owner = asked.cancel_with_call;
    kn_call_list(call);
    s->streams++;
    kn_call_hold(call);
    if (kn_tell_watch(s, live, &watcher, on_event, call, asked.after[0] ? asked.after : NULL) != KN_OK) {
        kn_api_overloaded(&error, 1, "Too many clients watch this video.");
        call->owner = false;
        kn_call_error(call, &error);
    } else if (watcher) {
        call->watcher = watcher;
    }
    kn_call_release(call);
}

void kn_rpc_watch_closed(kn_grpc_call *grpc)
{
    kn_call_closed_grpc(grpc);
}
