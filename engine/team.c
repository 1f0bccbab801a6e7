/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/team.h"

#include <string.h>

#include "base/mem.h"
#include "engine/pack.h"

typedef enum order_kind { ORDER_BEGIN, ORDER_STEP, ORDER_END, ORDER_LEAVE, ORDER_HELP } order_kind;

typedef struct order {
    uint32_t kind;
    uint32_t bytes; /* BEGIN, HELP: of the request's JSON that follows. STEP, to helpers: 1: the last one */
} order;

enum { REQUEST_BYTES_MAX = 1 << 20, PACK_MAX = KN_PACK_SEQUENCES_MAX / 2 };

static kn_status tell(const kn_group *g, order_kind kind, size_t bytes)
{
    order o = {.kind = kind, .bytes = (uint32_t)bytes};
    return kn_group_message(g, 0, &o, sizeof o);
}

/* An order about a generation, and its request. */
static kn_status tell_request(const kn_group *g, order_kind kind, const kn_generation *generation)
{
    kn_status st = KN_OK;
    char *json = NULL;
    KN_TRY(kn_request_to_json(&json, kn_generation_request(generation)));
    const size_t bytes = strlen(json) + 1;
    KN_REQUIRE(bytes <= REQUEST_BYTES_MAX);
    KN_TRY(tell(g, kind, bytes));
    KN_TRY(kn_group_message(g, 0, json, bytes));
fail:
    kn_free(json);
    return st;
}

kn_status kn_team_begin(kn_generation *generation, kn_model *model)
{
    kn_status st = KN_OK;
    const kn_group *g = kn_model_group(model);
    if (g->size == 1) return KN_OK;
    KN_TRY(tell_request(g, ORDER_BEGIN, generation));
    KN_TRY(kn_generation_share(generation, g, 0));
fail:
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

kn_status kn_team_lead(kn_generation *const *generations, int32_t count, kn_model *model, bool last)
{
    kn_status st = KN_OK;
    const kn_group *g = kn_model_group(model);
    KN_REQUIRE(g->size > 1 && g->index == 0 && count >= 1 && count <= PACK_MAX);
    for (int32_t i = 0; i < count; i++) {
        KN_TRY(tell_request(g, ORDER_HELP, generations[i]));
        KN_TRY(kn_generation_lend(generations[i]));
    }
    KN_TRY(tell(g, ORDER_STEP, last));
    KN_TRY(kn_generation_step(generations, count));
fail:
    if (st != KN_OK) kn_comm_abort(g->comm, kn_fail_message());
    for (int32_t i = 0; i < count; i++) kn_generation_keep(generations[i]);
    return st;
}

/* ---- following ---- */

/* A generation of the request that the leader sends, without state. */
static kn_status receive_blank(kn_generation **out, kn_model *model, size_t bytes)
{
    kn_status st = KN_OK;
    kn_request request = kn_request_empty();
    if (bytes == 0 || bytes > REQUEST_BYTES_MAX) return kn_fail(KN_CORRUPT, "the leader sent no request");
    char *json = kn_alloc(bytes + 1);
    if (!json) return KN_NOMEM;
    KN_TRY(kn_group_message(kn_model_group(model), 0, json, bytes));
    KN_TRY(kn_request_from_json(&request, json, "the leader's request"));
    KN_TRY(kn_request_resolve(&request, kn_model_repository(model), NULL));
    KN_TRY(kn_generation_blank(out, model, &request));
fail:
    kn_request_release(&request);
    kn_free(json);
    return st;
}

static kn_status begin(kn_model *model, kn_generation **generation, size_t bytes)
{
    kn_status st = KN_OK;
    kn_generation_destroy(generation);
    KN_TRY(receive_blank(generation, model, bytes));
    KN_TRY(kn_generation_share(*generation, kn_model_group(model), 0));
fail:
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

/* ---- helping ---- */

/* One pack. */
static kn_status help(kn_model *model, kn_generation **generations, int32_t *count, bool *last)
{
    kn_status st = KN_OK;
    order o = {.kind = ORDER_HELP};
    while (o.kind == ORDER_HELP) {
        KN_TRY(kn_group_message(kn_model_group(model), 0, &o, sizeof o));
        if (o.kind != ORDER_HELP) continue;
        if (*count == PACK_MAX) return kn_fail(KN_CORRUPT, "the leader's pack has more than %d generations", PACK_MAX);
        KN_TRY(receive_blank(&generations[*count], model, o.bytes));
        KN_TRY(kn_generation_lend(generations[(*count)++]));
    }
    if (o.kind != ORDER_STEP || *count == 0) return kn_fail(KN_CORRUPT, "the leader's order %u is unknown", o.kind);
    *last = o.bytes != 0;
    KN_TRY(kn_generation_step(generations, *count));
fail:
    return st;
}

kn_status kn_team_assist(kn_model *model)
{
    kn_status st = KN_OK;
    for (bool last = false; !last && st == KN_OK;) {
        kn_generation *generations[PACK_MAX] = {0};
        int32_t count = 0;
        st = help(model, generations, &count, &last);
        if (st != KN_OK) kn_comm_abort(kn_model_group(model)->comm, kn_fail_message());
        for (int32_t i = 0; i < PACK_MAX; i++) kn_generation_destroy(&generations[i]);
    }
    return st;
}
