/* SPDX-License-Identifier: Apache-2.0
 *
 * Submit, Get, List, Cancel, Delete, Models. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/json.h"
#include "server/references.h"
#include "server/rpc_service.h"

/* ---- answers ---- */

void kn_rpc_reply(kn_grpc_call *call, kn_status st, kn_rpc_block *block)
{
    kn_api_error error;
    if (st == KN_OK) st = kn_grpc_send_owned(call, block->bytes, block->count, kn_rpc_block_unref, block);
    if (st == KN_OK) {
        kn_grpc_finish(call, KN_GRPC_OK, NULL);
        return;
    }
    kn_api_from_status(&error, st);
    kn_grpc_fail(call, &error);
}

static kn_status write_live(kn_server *s, kn_live *live, kn_rpc_block **block)
{
    const bool final = live->phase == KN_LIVE_ENDED && kn_job_state_final(live->job.state);
    const kn_video_item item = {.job = &live->job,
                                .summary = &live->summary,
                                .facts = final ? kn_video_facts_none() : kn_dispatch_facts(s, live)};
    return kn_rpc_write_video(block, &item);
}

static void answer_error(kn_call *call, const kn_api_error *error)
{
    kn_grpc_fail(call->grpc, error);
}

static void answer_video(kn_call *call, kn_live *live)
{
    kn_rpc_block *block = NULL;
    const kn_status st = write_live(call->server, live, &block);
    kn_rpc_reply(call->grpc, st, block);
}

static void answer_deleted(kn_call *call)
{
    kn_rpc_block *block = NULL;
    const kn_status st = kn_rpc_write_deleted(&block, call->live->job.id);
    kn_rpc_reply(call->grpc, st, block);
}

static void answer_drain(kn_call *call)
{
    kn_api_error error;
    kn_api_overloaded(&error, 10, "This server is being shut down; the video goes on when it is back.");
    kn_grpc_fail(call->grpc, &error);
}

const kn_call_front kn_rpc_front = {
    .error = answer_error, .video = answer_video, .deleted = answer_deleted, .drain = answer_drain};

/* ---- Submit ---- */

static const kn_route submit_route = {.pattern = "/kinora.v1.Kinora/Submit", .scope = KN_SCOPE_SUBMIT};

static void on_submit(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    const int64_t deadline_ns = kn_grpc_deadline_ns(grpc);
    const double left = deadline_ns ? kn_clock_seconds(deadline_ns - kn_clock_ns()) : NAN;
    kn_call *call = kn_call_open_grpc(s, grpc, &kn_rpc_front, &submit_route, "");
    if (!call) return;
    char reference[KN_REFERENCE_ID_BYTES] = "";
    kn_text json = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    kn_status st = kn_rpc_read_submit(&json, reference, bytes, count, left, &error);
    if (st == KN_OK && reference[0] &&
        !kn_references_find(s->references, call->principal.tenant, reference, kn_now_us()))
        st = kn_api_invalid_value(&error, "reference", "There is no uploaded picture \"%s\" (any more).", reference);
    if (st == KN_OK) {
        kn_intake_begin(call, json.bytes, json.count, "application/json");
    } else {
        kn_metric_add(s->meters->jobs_refused, 1.0, KN_LABELS("invalid"));
        kn_call_error(call, &error);
    }
    kn_text_release(&json);
}

/* ---- Get ---- */

static void on_get(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    char id[KN_JOB_ID_BYTES + 8];
    kn_live *live = NULL;
    kn_status st = kn_rpc_read_id(id, bytes, count, &error);
    if (st == KN_OK) live = kn_api_find(s, kn_grpc_principal(grpc)->tenant, id);
    if (st == KN_OK && !live) st = kn_api_not_found(&error, "video", id);
    if (st != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    kn_rpc_block *block = NULL;
    st = write_live(s, live, &block);
    kn_rpc_reply(grpc, st, block);
}

/* ---- List ---- */

static void write_page(void *context, const kn_video_item *items, size_t count, bool more)
{
    kn_rpc_block *block = NULL;
    const kn_status st = kn_rpc_write_list(&block, items, count, more);
    kn_rpc_reply(context, st, block);
}

static void on_list(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    kn_api_error error;
    kn_list_query query;
    kn_status st = kn_rpc_read_list(&query, bytes, count, &error);
    if (st == KN_OK)
        st = kn_api_list_page(kn_grpc_context(grpc), kn_grpc_principal(grpc)->tenant, &query, write_page, grpc, &error);
    if (st != KN_OK) kn_grpc_fail(grpc, &error);
}

/* ---- Cancel, Delete ---- */

static const kn_route cancel_route = {.pattern = "/kinora.v1.Kinora/Cancel", .scope = KN_SCOPE_CANCEL};

static void with_video(kn_grpc_call *grpc, const void *bytes, size_t count, void (*handle)(kn_call *call))
{
    kn_api_error error;
    char id[KN_JOB_ID_BYTES + 8];
    if (kn_rpc_read_id(id, bytes, count, &error) != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    kn_call *call = kn_call_open_grpc(kn_grpc_context(grpc), grpc, &kn_rpc_front, &cancel_route, id);
    if (call) handle(call);
}

static void on_cancel(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    with_video(grpc, bytes, count, kn_api_cancel);
}

static void on_delete(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    with_video(grpc, bytes, count, kn_api_delete);
}

/* ---- Models ---- */

static void on_models(kn_grpc_call *grpc, const void *bytes, size_t count)
{
    const kn_server *s = kn_grpc_context(grpc);
    kn_api_error error;
    kn_rpc_model models[KN_CATALOG_MODELS_MAX];
    kn_rpc_block *block = NULL;
    size_t found = 0;
    if (kn_rpc_read_empty(bytes, count, &error) != KN_OK) {
        kn_grpc_fail(grpc, &error);
        return;
    }
    for (int32_t i = 0; i < kn_catalog_count(s->catalog); i++) {
        const kn_catalog_model *model = kn_catalog_at(s->catalog, i);
        if (kn_catalog_serves(model))
            models[found++] =
                (kn_rpc_model){.name = model->name, .created_at = model->created * 1000000, .ready = true};
    }
    const kn_status st = kn_rpc_write_models(&block, models, found);
    kn_rpc_reply(grpc, st, block);
}

/* ---- the service ---- */

enum { SMALL = 4 << 10 };

static const kn_grpc_method methods[] = {
    {.name = "Submit", .scope = KN_SCOPE_SUBMIT, .message = on_submit, .closed = kn_call_closed_grpc},
    {.name = "Get", .scope = KN_SCOPE_READ, .message_bytes = SMALL, .message = on_get},
    {.name = "List", .scope = KN_SCOPE_READ, .message_bytes = SMALL, .message = on_list},
    {.name = "Cancel",
     .scope = KN_SCOPE_CANCEL,
     .message_bytes = SMALL,
     .message = on_cancel,
     .closed = kn_call_closed_grpc},
    {.name = "Delete",
     .scope = KN_SCOPE_CANCEL,
     .message_bytes = SMALL,
     .message = on_delete,
     .closed = kn_call_closed_grpc},
    {.name = "Watch",
     .scope = KN_SCOPE_READ,
     .server_streams = true,
     .message_bytes = SMALL,
     .message = kn_rpc_watch_message,
     .closed = kn_rpc_watch_closed},
    {.name = "Download",
     .scope = KN_SCOPE_READ,
     .server_streams = true,
     .message_bytes = SMALL,
     .message = kn_rpc_download_message,
     .writable = kn_rpc_download_writable,
     .closed = kn_rpc_download_closed},
    {.name = "UploadReference",
     .scope = KN_SCOPE_SUBMIT,
     .client_streams = true,
     .message_bytes = KN_RPC_CHUNK_BYTES_MAX + SMALL,
     .message = kn_rpc_upload_message,
     .half_closed = kn_rpc_upload_end,
     .closed = kn_rpc_upload_closed},
    {.name = "Models", .scope = KN_SCOPE_READ, .message_bytes = SMALL, .message = on_models},
};

const kn_grpc_service kn_rpc_videos_service = {"kinora.v1.Kinora", methods, sizeof methods / sizeof *methods};
