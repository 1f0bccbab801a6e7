/* SPDX-License-Identifier: Apache-2.0 */
#include "server/turns.h"

#include <event2/event.h>

#include "base/clock.h"
#include "base/mem.h"

#define CREDIT_NS_MAX INT64_C(500000)

struct kn_turns {
    struct event_base *base;
    struct event *next; /* active while somebody waits */
    int64_t served_ns;
    TAILQ_HEAD(, kn_turn) queue;
};

static void serve(kn_turns *turns, int64_t now_ns)
{
    kn_turn *turn = TAILQ_FIRST(&turns->queue);
    kn_turns_leave(turns, turn);
    turns->served_ns = now_ns;
    turn->run(turn->context);
}

/* One piece of work, then a look at who has come meanwhile. */
static void on_next(evutil_socket_t fd, short what, void *context)
{
    kn_turns *turns = context;
    (void)fd, (void)what;
    if (!TAILQ_EMPTY(&turns->queue)) serve(turns, kn_clock_ns());
    if (!TAILQ_EMPTY(&turns->queue)) event_active(turns->next, EV_TIMEOUT, 0);
    event_base_loopcontinue(turns->base);
}

kn_status kn_turns_create(kn_turns **out, struct event_base *base)
{
    kn_turns *turns = kn_alloc(sizeof *turns);
    if (!turns) return KN_NOMEM;
    turns->base = base;
    turns->served_ns = kn_clock_ns();
    TAILQ_INIT(&turns->queue);
    turns->next = event_new(base, -1, 0, on_next, turns);
    if (!turns->next || event_priority_set(turns->next, event_base_get_npriorities(base) - 1) != 0) {
        kn_turns_destroy(&turns);
        return kn_fail(KN_NOMEM, "no memory for the connections' queue");
    }
    *out = turns;
    return KN_OK;
}

void kn_turns_destroy(kn_turns **turns)
{
    if (!turns || !*turns) return;
    if ((*turns)->next) event_free((*turns)->next);
    kn_free(*turns);
    *turns = NULL;
}

void kn_turns_wait(kn_turns *turns, kn_turn *turn)
{
    if (turn->waits) return;
    turn->waits = true;
    TAILQ_INSERT_TAIL(&turns->queue, turn, next);
    event_active(turns->next, EV_TIMEOUT, 0);
}

void kn_turns_leave(kn_turns *turns, kn_turn *turn)
{
    if (!turn->waits) return;
    turn->waits = false;
    TAILQ_REMOVE(&turns->queue, turn, next);
}

void kn_turns_passed(kn_turns *turns, int64_t now_ns)
{
    if (!TAILQ_EMPTY(&turns->queue) && now_ns - turns->served_ns >= KN_TURNS_SHARE_NS) serve(turns, now_ns);
}

/* ---- standing ---- */

static int64_t at_most(int64_t credit_ns)
{
    return credit_ns < CREDIT_NS_MAX ? credit_ns : CREDIT_NS_MAX;
}

bool kn_standing_good(const kn_standing *standing)
{
    return standing->credit_ns + standing->finished_ns > 0;
}

void kn_standing_earn(kn_standing *standing, int64_t ns)
{
    standing->credit_ns = at_most(standing->credit_ns + ns);
}

void kn_standing_finish(kn_standing *standing, int64_t ns)
{
    standing->finished_ns = at_most(standing->finished_ns + ns);
}

void kn_standing_spend(kn_standing *standing, int64_t ns)
{
    const int64_t left_ns = standing->credit_ns > ns ? standing->credit_ns - ns : 0;
    *standing = (kn_standing){.credit_ns = at_most(left_ns + standing->finished_ns)};
}
