/* SPDX-License-Identifier: Apache-2.0
 *
 * The treap of queue.h. `slack` composes: a subtree's is the least of its left child's, its own node's after the left
 * child's work, and its right child's after both. */
#include "scheduler/queue.h"

static int64_t sum_of(const kn_queue_node *nodes, int32_t node)
{
    return node < 0 ? 0 : nodes[node].sum;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Slack of a subtree that starts after `work`; an empty one has no limit. */
static int64_t slack_of(const kn_queue_node *nodes, int32_t node, int64_t work)
{
    return node < 0 ? INT64_MAX : nodes[node].slack - work;
}

static bool before(const kn_queue_node *a, int64_t key, uint64_t seq)
{
    return a->key != key ? a->key < key : a->seq < seq;
}

static void pull(kn_queue_node *nodes, int32_t at)
{
    kn_queue_node *n = &nodes[at];
    const int32_t l = n->left, r = n->right;
    const int64_t through = sum_of(nodes, l) + n->work;
    int64_t slack = n->key - through;
    float burden = n->burden;
    int32_t count = 1;
    n->sum = through;
    if (l >= 0) {
        slack = least(slack, nodes[l].slack);
        burden = nodes[l].burden_max > burden ? nodes[l].burden_max : burden;
        count += nodes[l].count;
    }
    if (r >= 0) {
        slack = least(slack, nodes[r].slack - through);
        burden = nodes[r].burden_max > burden ? nodes[r].burden_max : burden;
        count += nodes[r].count;
        n->sum += nodes[r].sum;
    }
    n->slack = slack;
    n->burden_max = burden;
    n->count = count;
}

static void replace_child(kn_queue_node *nodes, kn_queue *queue, int32_t parent, int32_t old, int32_t child)
{
    if (parent < 0)
        queue->root = child;
    else if (nodes[parent].left == old)
        nodes[parent].left = child;
    else
        nodes[parent].right = child;
    if (child >= 0) nodes[child].parent = parent;
}

/* Lifts `node` above its parent; the parent's figures are right afterwards, the node's are not yet. */
static void lift(kn_queue_node *nodes, kn_queue *queue, int32_t node)
{
    const int32_t parent = nodes[node].parent;
    const bool is_left = nodes[parent].left == node;
    const int32_t inner = is_left ? nodes[node].right : nodes[node].left;
    replace_child(nodes, queue, nodes[parent].parent, parent, node);
    if (is_left) {
        nodes[parent].left = inner;
        nodes[node].right = parent;
    } else {
        nodes[parent].right = inner;
        nodes[node].left = parent;
    }
    if (inner >= 0) nodes[inner].parent = parent;
    nodes[parent].parent = node;
    pull(nodes, parent);
}

void kn_queue_update(kn_queue_node *nodes, int32_t node)
{
    for (; node >= 0; node = nodes[node].parent) pull(nodes, node);
}

/* Finalizer of splitmix64 (Steele, Lea and Flood 2014): heap order that does not follow the order of arrival. */
static uint32_t rank_of(uint64_t seq)
{
    uint64_t z = seq + UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(z >> 32);
}

void kn_queue_insert(kn_queue_node *nodes, kn_queue *queue, int32_t node)
{
    kn_queue_node *n = &nodes[node];
    int32_t parent = KN_QUEUE_NONE;
    bool is_left = false, is_first = true;
    for (int32_t at = queue->root; at >= 0;) {
        parent = at;
        is_left = !before(&nodes[at], n->key, n->seq);
        is_first = is_first && is_left;
        at = is_left ? nodes[at].left : nodes[at].right;
    }
    n->left = n->right = KN_QUEUE_NONE;
    n->parent = parent;
    n->rank = rank_of(n->seq);
    if (parent < 0)
        queue->root = node;
    else if (is_left)
        nodes[parent].left = node;
    else
        nodes[parent].right = node;
    if (is_first) queue->first = node;
    pull(nodes, node);
    while (n->parent >= 0 && n->rank < nodes[n->parent].rank) lift(nodes, queue, node);
    kn_queue_update(nodes, node);
}

void kn_queue_remove(kn_queue_node *nodes, kn_queue *queue, int32_t node)
{
    kn_queue_node *n = &nodes[node];
    if (queue->first == node) queue->first = kn_queue_next(nodes, node);
    while (n->left >= 0 && n->right >= 0)
        lift(nodes, queue, nodes[n->left].rank < nodes[n->right].rank ? n->left : n->right);
    const int32_t parent = n->parent;
    replace_child(nodes, queue, parent, node, n->left >= 0 ? n->left : n->right);
    kn_queue_update(nodes, parent);
}

int32_t kn_queue_next(const kn_queue_node *nodes, int32_t node)
{
    if (nodes[node].right >= 0) {
        node = nodes[node].right;
        while (nodes[node].left >= 0) node = nodes[node].left;
        return node;
    }
    int32_t parent = nodes[node].parent;
    while (parent >= 0 && nodes[parent].right == node) {
        node = parent;
        parent = nodes[node].parent;
    }
    return parent;
}

int32_t kn_queue_from(const kn_queue_node *nodes, const kn_queue *queue, int64_t key, uint64_t seq)
{
    int32_t found = KN_QUEUE_NONE;
    for (int32_t at = queue->root; at >= 0;) {
        const bool is_before = before(&nodes[at], key, seq);
        if (!is_before) found = at;
        at = is_before ? nodes[at].right : nodes[at].left;
    }
    return found;
}

kn_queue_place kn_queue_find(const kn_queue_node *nodes, const kn_queue *queue, int64_t key, uint64_t seq)
{
    kn_queue_place place = {0, 0, INT64_MAX, INT64_MAX};
    for (int32_t at = queue->root; at >= 0;) {
        const kn_queue_node *n = &nodes[at];
        const int64_t through = place.work + sum_of(nodes, n->left) + n->work;
        if (before(n, key, seq)) {
            place.slack_before = least(place.slack_before, slack_of(nodes, n->left, place.work));
            place.slack_before = least(place.slack_before, n->key - through);
            place.count += 1 + (n->left >= 0 ? nodes[n->left].count : 0);
            place.work = through;
            at = n->right;
        } else {
            place.slack_after = least(place.slack_after, n->key - through);
            place.slack_after = least(place.slack_after, slack_of(nodes, n->right, through));
            at = n->left;
        }
    }
    return place;
}

int32_t kn_queue_first_late(const kn_queue_node *nodes, const kn_queue *queue, int64_t start)
{
    int64_t work = 0;
    int32_t at = queue->root;
    if (at < 0 || nodes[at].slack >= start) return KN_QUEUE_NONE;
    for (;;) {
        const kn_queue_node *n = &nodes[at];
        if (slack_of(nodes, n->left, work) < start) {
            at = n->left;
            continue;
        }
        work += sum_of(nodes, n->left) + n->work;
        if (n->key - work < start) return at;
        at = n->right;
    }
}

int32_t kn_queue_last_late(const kn_queue_node *nodes, const kn_queue *queue, int64_t start)
{
    int64_t work = 0;
    int32_t at = queue->root;
    if (at < 0 || nodes[at].slack >= start) return KN_QUEUE_NONE;
    for (;;) {
        const kn_queue_node *n = &nodes[at];
        const int64_t through = work + sum_of(nodes, n->left) + n->work;
        if (slack_of(nodes, n->right, through) < start) {
            work = through;
            at = n->right;
            continue;
        }
        if (n->key - through < start) return at;
        at = n->left;
    }
}

/* First node of the subtree with the subtree's largest burden. */
static int32_t heaviest_below(const kn_queue_node *nodes, int32_t at)
{
    for (;;) {
        const kn_queue_node *n = &nodes[at];
        if (n->left >= 0 && nodes[n->left].burden_max == n->burden_max)
            at = n->left;
        else if (n->burden == n->burden_max)
            return at;
        else
            at = n->right;
    }
}

int32_t kn_queue_heaviest(const kn_queue_node *nodes, const kn_queue *queue, int32_t last)
{
    int32_t best = KN_QUEUE_NONE;
    bool whole = false; /* the best so far stands for a subtree */
    float burden = 0;
    const kn_queue_node *end = &nodes[last];
    for (int32_t at = queue->root; at >= 0;) {
        const kn_queue_node *n = &nodes[at];
        if (at != last && !before(n, end->key, end->seq)) {
            at = n->left;
            continue;
        }
        if (n->left >= 0 && (best < 0 || nodes[n->left].burden_max > burden)) {
            best = n->left;
            burden = nodes[n->left].burden_max;
            whole = true;
        }
        if (best < 0 || n->burden > burden) {
            best = at;
            burden = n->burden;
            whole = false;
        }
        at = at == last ? KN_QUEUE_NONE : n->right;
    }
    return whole ? heaviest_below(nodes, best) : best;
}
