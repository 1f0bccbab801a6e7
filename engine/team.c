/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/team.h"

#include <string.h>

#include "base/mem.h"

typedef enum order_kind { ORDER_BEGIN, ORDER_STEP, ORDER_END, ORDER_LEAVE } order_kind;

typedef struct order {
    uint32_t kind;
    uint32_t bytes; /* BEGIN: of the request's JSON that follows */
} order;

enum { REQUEST_BYTES_MAX = 1 << 20 };

static kn_status tell(const kn_group *g, order_kind kind, size_t bytes)
{
    order o = {.kind = kind, .bytes = (uint32_t)bytes};
    return kn_group_message(g, 0, &o, sizeof o);
}

kn_status kn_team_begin(kn_generation *generation, kn_model *model)
{
    kn_status st = KN_OK;
    const kn_group *g = kn_model_group(model);
    char *json = NULL;
    if (g->size == 1) return KN_OK;
    KN_TRY(kn_request_to_json(&json, kn_generation_request(generation)));
    const size_t bytes = strlen(json) + 1;
    KN_REQUIRE(bytes <= REQUEST_BYTES_MAX);
    KN_TRY(tell(g, ORDER_BEGIN, bytes));
    KN_TRY(kn_group_message(g, 0, json, bytes));
    KN_TRY(kn_generation_share(generation, g, 0));
fail:
    kn_free(json);
    return st;
}

kn_status kn_team_step(kn_generation *generation, kn_model *model)
{
    kn_status st = KN_OK;
    const kn_group *g = kn_model_group(model);
    if (g->size > 1) KN_TRY(tell(g, ORDER_STEP, 0));
    KN_TRY(kn_generation_step(&generation, 1));
fail:
    if (st != KN_OK && g->size > 1) {
        kn_comm_abort(g->comm, kn_fail_message());
        if (st == KN_UNAVAILABLE) kn_generation_rewind(generation);
    }
    return st;
}

kn_status kn_team_end(kn_model *model, bool leave)
{
    const kn_group *g = kn_model_group(model);
    return g->size > 1 ? tell(g, leave ? ORDER_LEAVE : ORDER_END, 0) : KN_OK;
}

/* ---- following ---- */

static kn_status no_frame(void *context, int64_t index, const float *planes)
{
    (void)context;
    (void)index;
    (void)planes;
    return kn_fail(KN_BUG, "a frame reached a rank that follows");
}

static kn_status no_finish(void *context)
{
    return no_frame(context, 0, NULL);
}

static kn_status begin(kn_model *model, kn_generation **generation, size_t bytes)
{
    kn_status st = KN_OK;
    const kn_group *g = kn_model_group(model);
    const kn_frame_sink sink = {.frame = no_frame, .finish = no_finish};
    kn_request request = kn_request_empty();
    kn_generation_destroy(generation);
    if (bytes == 0 || bytes > REQUEST_BYTES_MAX) return kn_fail(KN_CORRUPT, "the leader sent no request");
    char *json = kn_alloc(bytes + 1);
    if (!json) return KN_NOMEM;
    KN_TRY(kn_group_message(g, 0, json, bytes));
    KN_TRY(kn_request_from_json(&request, json, "the leader's request"));
    KN_TRY(kn_request_resolve(&request, kn_model_repository(model), NULL));
    KN_TRY(kn_generation_create(generation, model, &request, &sink, NULL));
    KN_TRY(kn_generation_share(*generation, g, 0));
fail:
    kn_request_release(&request);
    kn_free(json);
    return st;
}

static kn_status obey(kn_model *model, kn_generation **generation, bool *leave)
{
    kn_status st = KN_OK;
    order o = {0};
    KN_TRY(kn_group_message(kn_model_group(model), 0, &o, sizeof o));
    switch (o.kind) {
    case ORDER_BEGIN: return begin(model, generation, o.bytes);
    case ORDER_STEP: KN_REQUIRE(*generation); return kn_generation_step(generation, 1);
    case ORDER_LEAVE: *leave = true; break;
    case ORDER_END: break;
    default: return kn_fail(KN_CORRUPT, "the leader's order %u is unknown", o.kind);
    }
    kn_generation_destroy(generation);
fail:
    return st;
}

kn_status kn_team_follow(kn_model *model)
{
    kn_status st = KN_OK;
    kn_generation *generation = NULL;
    for (bool leave = false; !leave && st == KN_OK;) st = obey(model, &generation, &leave);
    if (st != KN_OK) kn_comm_abort(kn_model_group(model)->comm, kn_fail_message());
    kn_generation_destroy(&generation);
    return st;
}
