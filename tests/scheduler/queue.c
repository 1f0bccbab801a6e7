/* SPDX-License-Identifier: Apache-2.0
 *
 * The treap against a sorted array, through many random changes. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>

#include "scheduler/queue.h"
#include "scheduler/trace.h"

enum { NODES = 200, CHANGES = 20000 };

typedef struct model {
    kn_queue_node nodes[NODES];
    bool in[NODES];
    int32_t order[NODES]; /* those in the queue, sorted */
    int32_t count;
} model;

static bool is_before(const kn_queue_node *a, const kn_queue_node *b)
{
    return a->key != b->key ? a->key < b->key : a->seq < b->seq;
}

static void sort(model *m)
{
    m->count = 0;
    for (int32_t i = 0; i < NODES; i++) {
        if (!m->in[i]) continue;
        int32_t at = m->count++;
        for (; at > 0 && is_before(&m->nodes[i], &m->nodes[m->order[at - 1]]); at--) m->order[at] = m->order[at - 1];
        m->order[at] = i;
    }
}

static void check_order(const model *m, const kn_queue *q)
{
    int32_t at = q->first;
    for (int32_t i = 0; i < m->count; i++) {
        assert_int_equal(at, m->order[i]);
        at = kn_queue_next(m->nodes, at);
    }
    assert_int_equal(at, KN_QUEUE_NONE);
    assert_int_equal(kn_queue_count(m->nodes, q), m->count);
}

static void check_sums(const model *m, const kn_queue *q, int64_t start)
{
    int64_t sum = 0, slack = INT64_MAX;
    int32_t first_late = KN_QUEUE_NONE, last_late = KN_QUEUE_NONE;
    for (int32_t i = 0; i < m->count; i++) {
        const kn_queue_node *n = &m->nodes[m->order[i]];
        sum += n->work;
        if (n->key - sum < slack) slack = n->key - sum;
        if (n->key - sum < start) {
            last_late = m->order[i];
            if (first_late < 0) first_late = m->order[i];
        }
    }
    assert_int_equal(kn_queue_sum(m->nodes, q), sum);
    assert_int_equal(kn_queue_slack(m->nodes, q), slack);
    assert_int_equal(kn_queue_first_late(m->nodes, q, start), first_late);
    assert_int_equal(kn_queue_last_late(m->nodes, q, start), last_late);
}

/* What surrounds a place, and the heaviest up to a node. */
static void check_places(const model *m, const kn_queue *q, kn_random *random)
{
    const kn_queue_node probe = {.key = kn_random_below(random, 1000), .seq = (uint64_t)kn_random_below(random, NODES)};
    int64_t before = 0, sum = 0, slack_before = INT64_MAX, slack_after = INT64_MAX;
    int32_t count = 0, from = KN_QUEUE_NONE;
    for (int32_t i = 0; i < m->count; i++) {
        const kn_queue_node *n = &m->nodes[m->order[i]];
        sum += n->work;
        int64_t *slack = is_before(n, &probe) ? &slack_before : &slack_after;
        if (n->key - sum < *slack) *slack = n->key - sum;
        if (is_before(n, &probe)) {
            before = sum;
            count++;
        } else if (from < 0) {
            from = m->order[i];
        }
    }
    const kn_queue_place place = kn_queue_find(m->nodes, q, probe.key, probe.seq);
    assert_int_equal(place.count, count);
    assert_int_equal(place.work, before);
    assert_int_equal(place.slack_before, slack_before);
    assert_int_equal(place.slack_after, slack_after);
    assert_int_equal(kn_queue_from(m->nodes, q, probe.key, probe.seq), from);
    if (m->count == 0) return;
    const int32_t last = kn_random_below(random, m->count);
    int32_t heaviest = m->order[0];
    for (int32_t i = 1; i <= last; i++)
        if (m->nodes[m->order[i]].burden > m->nodes[heaviest].burden) heaviest = m->order[i];
    assert_int_equal(kn_queue_heaviest(m->nodes, q, m->order[last]), heaviest);
}

static void agrees_with_a_sorted_array(void **state)
{
    (void)state;
    static model m;
    kn_queue q = kn_queue_empty();
    kn_random random = {7};
    for (int32_t n = 0; n < CHANGES; n++) {
        const int32_t i = kn_random_below(&random, NODES);
        const int64_t work = kn_random_below(&random, 50);
        const float burden = (float)kn_random_below(&random, 20);
        if (m.in[i] && kn_random_below(&random, 3) == 0) {
            m.nodes[i].work = work;
            m.nodes[i].burden = burden;
            kn_queue_update(m.nodes, i);
        } else if (m.in[i]) {
            kn_queue_remove(m.nodes, &q, i);
            m.in[i] = false;
        } else {
            m.nodes[i] = (kn_queue_node){
                .key = kn_random_below(&random, 1000), .seq = (uint64_t)i, .work = work, .burden = burden};
            kn_queue_insert(m.nodes, &q, i);
            m.in[i] = true;
        }
        if (n % 10) continue;
        sort(&m);
        check_order(&m, &q);
        check_sums(&m, &q, kn_random_below(&random, 1000) - 500);
        check_places(&m, &q, &random);
    }
}

static int32_t depth(const kn_queue_node *nodes, int32_t at)
{
    if (at < 0) return 0;
    const int32_t left = depth(nodes, nodes[at].left), right = depth(nodes, nodes[at].right);
    return 1 + (left > right ? left : right);
}

/* Sorted arrivals are the usual case; a tree that grew to one side would make every decision slow. */
static void stays_shallow(void **state)
{
    (void)state;
    enum { MANY = 1 << 16 };
    kn_queue_node *nodes = calloc(MANY, sizeof *nodes);
    kn_queue q = kn_queue_empty();
    assert_non_null(nodes);
    for (int32_t i = 0; i < MANY; i++) {
        nodes[i] = (kn_queue_node){.key = i, .seq = (uint64_t)i, .work = KN_QUEUE_WORK_MAX};
        kn_queue_insert(nodes, &q, i);
    }
    assert_true(depth(nodes, q.root) < 64);
    assert_true(kn_queue_sum(nodes, &q) == (int64_t)MANY * KN_QUEUE_WORK_MAX); /* the largest sum there is */
    assert_true(kn_queue_slack(nodes, &q) == MANY - 1 - (int64_t)MANY * KN_QUEUE_WORK_MAX);
    free(nodes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_a_sorted_array),
        cmocka_unit_test(stays_shallow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
