/* SPDX-License-Identifier: Apache-2.0
 *
 * turns.h: who waits is served in order, a piece at a time, behind everybody else and yet beside them. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>

#include <cmocka.h>

#include <event2/event.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/loop.h"
#include "server/turns.h"

enum { WAITERS = 5, CALLBACKS_MAX = 1000 };

typedef struct waiter {
    kn_turn turn;
    char name;
    int32_t again; /* turns it wants after this one */
} waiter;

static struct {
    struct event_base *base;
    kn_turns *turns;
    struct event *better; /* somebody of good standing */
    bool stays;           /* who has always something to do */
    char order[64];
    int64_t now_ns;
    int32_t callbacks, served_at[WAITERS], served;
    waiter waiters[WAITERS];
} here;

static void note(char name)
{
    const size_t count = strlen(here.order);
    assert_in_range(count, 0, sizeof here.order - 2);
    here.order[count] = name;
}

static void on_turn(void *context)
{
    waiter *w = context;
    assert_false(w->turn.waits);
    note(w->name);
    if (here.served < WAITERS) here.served_at[here.served++] = here.callbacks;
    if (w->again-- > 0) kn_turns_wait(here.turns, &w->turn);
    if (here.better && !here.stays) event_active(here.better, EV_TIMEOUT, 0);
}

/* A tenth of the share's time goes by with each. */
static void on_better(evutil_socket_t fd, short what, void *context)
{
    (void)fd, (void)what, (void)context;
    here.now_ns += KN_TURNS_SHARE_NS / 10;
    if (!here.stays) {
        note('-');
    } else if (++here.callbacks < CALLBACKS_MAX && here.served < WAITERS) {
        event_active(here.better, EV_TIMEOUT, 0);
        kn_turns_passed(here.turns, here.now_ns);
    }
}

static int start(void **state)
{
    (void)state;
    memset(&here, 0, sizeof here);
    here.base = event_base_new();
    assert_int_equal(event_base_priority_init(here.base, KN_LOOP_PRIORITIES), 0);
    assert_int_equal(kn_turns_create(&here.turns, here.base), KN_OK);
    here.better = event_new(here.base, -1, 0, on_better, NULL);
    for (int i = 0; i < WAITERS; i++) {
        here.waiters[i] = (waiter){.name = (char)('a' + i)};
        here.waiters[i].turn = (kn_turn){.run = on_turn, .context = &here.waiters[i]};
    }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    event_free(here.better);
    kn_turns_destroy(&here.turns);
    assert_null(here.turns);
    kn_turns_destroy(&here.turns);
    event_base_free(here.base);
    return 0;
}

static void wait_all(int count)
{
    for (int i = 0; i < count; i++) kn_turns_wait(here.turns, &here.waiters[i].turn);
}

static void one_piece_between_two_looks_at_the_others(void **state)
{
    (void)state;
    wait_all(3);
    kn_turns_wait(here.turns, &here.waiters[0].turn); /* once is enough */
    event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_string_equal(here.order, "a-b-c-");
}

static void who_wants_more_waits_behind_the_others(void **state)
{
    (void)state;
    here.waiters[0].again = 2;
    wait_all(3);
    event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_string_equal(here.order, "a-b-c-a-a-");
}

static void who_leaves_is_not_called(void **state)
{
    (void)state;
    wait_all(3);
    kn_turns_leave(here.turns, &here.waiters[1].turn);
    kn_turns_leave(here.turns, &here.waiters[1].turn);
    kn_turns_leave(here.turns, &here.waiters[4].turn); /* never waited */
    event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_string_equal(here.order, "a-c-");
    kn_turns_passed(here.turns, kn_clock_ns() + 2 * KN_TURNS_SHARE_NS); /* and nobody is left */
    assert_string_equal(here.order, "a-c-");
}

/* The others have something to do in every turn of the loop, so that the queue's own event never runs. */
static void nobody_goes_without(void **state)
{
    (void)state;
    here.stays = true;
    here.now_ns = kn_clock_ns() + KN_TURNS_SHARE_NS;
    event_active(here.better, EV_TIMEOUT, 0);
    wait_all(WAITERS);
    event_base_loop(here.base, EVLOOP_NONBLOCK);
    assert_string_equal(here.order, "abcde");
    assert_int_equal(here.served_at[0], 1);
    for (int i = 1; i < WAITERS; i++) assert_int_equal(here.served_at[i] - here.served_at[i - 1], 10);
}

static void standing_is_earned_and_spent(void **state)
{
    (void)state;
    kn_standing s = {0};
    assert_false(kn_standing_good(&s)); /* a newcomer */
    kn_standing_spend(&s, 1000000000);
    assert_false(kn_standing_good(&s));
    kn_standing_finish(&s, KN_STANDING_PROBE_NS);
    assert_true(kn_standing_good(&s));
    kn_standing_spend(&s, 1000000000); /* the piece of work that finished a call, however long it was */
    assert_true(kn_standing_good(&s));
    kn_standing_spend(&s, KN_STANDING_PROBE_NS); /* the next one finished none */
    assert_false(kn_standing_good(&s));
    kn_standing_earn(&s, 1000 * KN_STANDING_BYTE_NS);
    assert_true(kn_standing_good(&s));
    kn_standing_spend(&s, 1000 * KN_STANDING_BYTE_NS); /* few bytes for so much work */
    assert_false(kn_standing_good(&s));
    for (int i = 0; i < 1000; i++) {
        kn_standing_finish(&s, KN_STANDING_CALL_NS);
        kn_standing_earn(&s, KN_STANDING_CALL_NS);
    }
    kn_standing_spend(&s, 0);
    kn_standing_spend(&s, 5 * KN_STANDING_CALL_NS - 1);
    assert_true(kn_standing_good(&s));
    kn_standing_spend(&s, 1); /* a thousand calls are no licence */
    assert_false(kn_standing_good(&s));
}

static void without_memory_there_are_none(void **state)
{
    (void)state;
    kn_turns *turns = NULL;
    kn_mem_fail_at(1);
    assert_int_equal(kn_turns_create(&turns, here.base), KN_NOMEM);
    kn_mem_fail_at(0);
    assert_null(turns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_piece_between_two_looks_at_the_others, start, stop),
        cmocka_unit_test_setup_teardown(who_wants_more_waits_behind_the_others, start, stop),
        cmocka_unit_test_setup_teardown(who_leaves_is_not_called, start, stop),
        cmocka_unit_test_setup_teardown(nobody_goes_without, start, stop),
        cmocka_unit_test(standing_is_earned_and_spent),
        cmocka_unit_test_setup_teardown(without_memory_there_are_none, start, stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
