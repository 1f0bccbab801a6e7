/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs that exist: retrieve, list, cancel, delete. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/api.h"
#include "server/query.h"

void kn_api_get(kn_call *call)
{
    kn_live *live = kn_call_find(call);
    if (live) kn_call_video(call, live);
}

/* ---- list ---- */

/* One page. Unfinished jobs are newer in memory than in the store. */
typedef struct page {
    kn_server *server;
    size_t count;
    kn_job jobs[KN_LIST_LIMIT_MAX];
    kn_video_summary summaries[KN_LIST_LIMIT_MAX];
    kn_video_item items[KN_LIST_LIMIT_MAX];
} page;

static kn_status add_row(void *context, const kn_job *row)
{
    kn_status st = KN_OK;
    page *p = context;
    kn_job *job = &p->jobs[p->count];
    kn_video_item *item = &p->items[p->count];
    *item = (kn_video_item){.job = job, .summary = &p->summaries[p->count], .facts = kn_video_facts_none()};
    KN_TRY(kn_job_copy(job, row));
    p->count++;
    KN_TRY(kn_video_summary_read(&p->summaries[p->count - 1], job));
    kn_live *live = kn_job_state_final(row->state) ? NULL : kn_live_find(p->server->live, row->id);
    if (!live) return KN_OK;
    item->job = &live->job;
    item->facts = kn_dispatch_facts(p->server, live);
fail:
    return st;
}

static void list_error(kn_api_error *error, kn_status st, const kn_list_query *query)
{
    if (st == KN_NOT_FOUND)
        kn_api_invalid_value(error, "after", "There is no video \"%s\" to list from.", query->after);
    else
        kn_api_from_status(error, st);
}

kn_status kn_api_list_page(kn_server *s, const char *tenant, const kn_list_query *query, kn_api_page_fn *write,
                           void *context, kn_api_error *error)
{
    bool more = false;
    const kn_store_list list = {.tenant = tenant,
                                .after = query->after[0] ? query->after : NULL,
                                .limit = query->limit > 0 ? query->limit : 1,
                                .ascending = query->ascending};
    page *p = kn_alloc(sizeof *p);
    if (!p) return kn_api_from_status(error, KN_NOMEM);
    p->server = s;
    const kn_status st = kn_store_job_list(s->store, &list, add_row, p, &more);
    if (st == KN_OK)
        write(context, p->items, query->limit > 0 ? p->count : 0, query->limit > 0 ? more : p->count > 0);
    else
        list_error(error, st, query);
    for (size_t i = 0; i < p->count; i++) {
        kn_job_release(&p->jobs[i]);
        kn_video_summary_release(&p->summaries[i]);
    }
    kn_free(p);
    return st;
}

static void send_page(void *context, const kn_video_item *items, size_t count, bool more)
{
    kn_text out = kn_text_growing((size_t)KN_VIDEO_OBJECT_BYTES_MAX * KN_LIST_LIMIT_MAX);
    kn_video_list_write(&out, items, count, more);
    kn_call_json(context, &out, NULL, 0);
}

void kn_api_list(kn_call *call)
{
    kn_api_error error;
    kn_list_query query;
    const char *text = kn_http_query(call->exchange);
    kn_status st = kn_list_query_parse(&query, text, strlen(text), &error);
    if (st == KN_OK) st = kn_api_list_page(call->server, call->principal.tenant, &query, send_page, call, &error);
    if (st != KN_OK) kn_call_error(call, &error);
}

/* ---- cancel ---- */

static void send_object(kn_call *call)
{
    kn_call_video(call, call->live);
}

void kn_api_cancel(kn_call *call)
{
    kn_api_error error;
    kn_live *live = kn_call_find(call);
    if (!live) return;
    if (live->job.state == KN_JOB_CANCELLED) { /* asked twice: the same answer */
        kn_call_video(call, live);
    } else if (kn_job_state_final(live->job.state)) {
        kn_api_conflict(&error, "video_ended", 0, "This video is %s already and cannot be cancelled.",
                        kn_job_state_name(live->job.state));
        kn_call_error(call, &error);
    } else {
        kn_end_job(call->server, live, KN_JOB_CANCELLED, "cancelled", "The video was cancelled.");
        kn_call_wait(call, live, send_object);
    }
}

/* ---- delete ---- */

static void on_removed(void *context, kn_store_result *result)
{
    kn_call *call = context;
    kn_server *s = call->server;
    kn_api_error error;
    const bool gone = result->status == KN_OK;
    if (gone) {
        kn_point(KN_POINT_remove_committed);
        kn_end_remove_files(s, result);
        call->live->job.state = KN_JOB_DELETED; /* forgotten when the last call that has it is over */
        if (kn_call_waits(call)) kn_call_deleted(call);
    } else if (kn_call_waits(call)) {
        kn_log(KN_LOG_ERROR, "delete: %s", result->message);
        kn_api_overloaded(&error, 5, "Storage did not take the deletion; nothing was deleted.");
        kn_call_error(call, &error);
    }
    kn_call_release(call);
}

static void remove_ended(kn_call *call)
{
    kn_api_error error;
    const kn_store_op op = {.kind = KN_STORE_REMOVE,
                            .id = call->live->job.id,
                            .tenant = call->principal.tenant,
                            .actor = call->principal.key_id[0] ? call->principal.key_id : NULL};
    kn_call_hold(call);
    if (kn_store_submit_op(call->server->store, &op, on_removed, call) == KN_OK) return;
    kn_api_overloaded(&error, 1, "Storage is busy; nothing was deleted.");
    kn_call_error(call, &error);
    kn_call_release(call);
}

/* One that runs is cancelled first. */
void kn_api_delete(kn_call *call)
{
    kn_live *live = kn_call_find(call);
    if (!live) return;
    if (kn_job_state_final(live->job.state)) {
        kn_call_pin(call, live);
        remove_ended(call);
        return;
    }
    kn_end_job(call->server, live, KN_JOB_CANCELLED, "cancelled", "The video was deleted.");
    kn_call_wait(call, live, remove_ended);
}
