/* SPDX-License-Identifier: Apache-2.0
 *
 * Whose turn it is among connections. A flood costs most where nothing comes of it: connections that are opened, read
 * and thrown away again. So what a connection may cost depends on what has come of it so far, its *standing*: a call
 * that was finished earns time, reading what the client sends spends it, and who has none left waits in one queue,
 * first come first served, a short piece of work at a time. Newcomers, listening sockets included, begin there.
 *
 * The queue is served when nobody of better standing has anything to do, and beside others who always have, once every
 * KN_TURNS_SHARE_NS: nobody goes without for longer than the queue is long.
 *
 * One object, one thread: that of the event loop. */
#ifndef KN_SERVER_TURNS_H
#define KN_SERVER_TURNS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/status.h"

struct event_base;

typedef struct kn_turns kn_turns;

#define KN_TURNS_SHARE_NS INT64_C(1000000)

/* Part of whoever waits, which fills in the first two. */
typedef struct kn_turn {
    void (*run)(void *context); /* a short piece of work; its owner may be gone when it returns */
    void *context;
    bool waits; /* false again when run() is called */
    TAILQ_ENTRY(kn_turn) next;
} kn_turn;

/* The queue is served in the last of the base's priorities. */
kn_status kn_turns_create(kn_turns **out, struct event_base *base);
void kn_turns_destroy(kn_turns **turns); /* nobody waits any more */

/* run() will be called once, from the loop. Nothing where it waits already. */
void kn_turns_wait(kn_turns *turns, kn_turn *turn);
void kn_turns_leave(kn_turns *turns, kn_turn *turn); /* where it waits */

/* Somebody of good standing was served at `now_ns`; may call a run(). From the loop, as a callback's last act. */
void kn_turns_passed(kn_turns *turns, int64_t now_ns);

/* ---- standing ---- */

#define KN_STANDING_CALL_NS INT64_C(100000) /* what a finished call is worth */
#define KN_STANDING_PROBE_NS INT64_C(10000) /* what one is that needs no caller */
#define KN_STANDING_BYTE_NS INT64_C(2)      /* what a byte is of a body that somebody wanted, either way */

/* 0: a newcomer's. */
typedef struct kn_standing {
    int64_t credit_ns;   /* 0..0.5 ms */
    int64_t finished_ns; /* by the piece of work that goes on; not for that piece to spend */
} kn_standing;

bool kn_standing_good(const kn_standing *standing);
void kn_standing_earn(kn_standing *standing, int64_t ns);
/* A call was finished. There are no debts, so whatever that has cost, the standing is good now. */
void kn_standing_finish(kn_standing *standing, int64_t ns);
/* A piece of work has taken so long. */
void kn_standing_spend(kn_standing *standing, int64_t ns);

#endif
