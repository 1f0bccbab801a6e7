/* SPDX-License-Identifier: Apache-2.0
 *
 * An ordered queue that answers questions about sums: a treap (Seidel and Aragon 1996) whose nodes live in an array of
 * the caller's, so that a job's slot is also its node. Everything is O(log n).
 *
 * Read as a plan, the queue is work done one after the other in order of `key`, where key is a deadline. With P the sum
 * of `work` up to and including a node, the node's slack is key - P: the plan holds when it starts at t iff no slack is
 * below t. That is the processor demand test of earliest-deadline-first scheduling (Liu and Layland 1973), and the
 * tree keeps its minimum. Giving up the largest of the jobs up to the first late one is Moore's and Hodgson's
 * rule (Moore 1968), by which the fewest jobs are late. */
#ifndef KN_SCHEDULER_QUEUE_H
#define KN_SCHEDULER_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

enum { KN_QUEUE_NONE = -1 };

/* Bounds that keep every sum of 65,536 works, and key - sum, inside 63 bits. */
#define KN_QUEUE_WORK_MAX (INT64_C(1) << 45) /* ns; 9.8 hours */
#define KN_QUEUE_KEY_MAX (INT64_C(1) << 60)

typedef struct kn_queue_node {
    int64_t key;  /* order; a deadline in a plan */
    uint64_t seq; /* order among equal keys; unique */
    int64_t work; /* ns, 0 .. KN_QUEUE_WORK_MAX */
    float burden; /* work for its worth: the largest is given up first */
    /* Kept by the queue. */
    float burden_max; /* over the subtree */
    int64_t sum;      /* of work over the subtree */
    int64_t slack;    /* least slack over the subtree, were it to start at 0 */
    int32_t left, right, parent;
    int32_t count; /* nodes in the subtree */
    uint32_t rank; /* heap order */
} kn_queue_node;

typedef struct kn_queue {
    int32_t root, first; /* KN_QUEUE_NONE: empty */
} kn_queue;

static inline kn_queue kn_queue_empty(void)
{
    return (kn_queue){KN_QUEUE_NONE, KN_QUEUE_NONE};
}

/* The node's key, seq, work and burden are set. */
void kn_queue_insert(kn_queue_node *nodes, kn_queue *queue, int32_t node);
void kn_queue_remove(kn_queue_node *nodes, kn_queue *queue, int32_t node);
/* After a change of work or burden. */
void kn_queue_update(kn_queue_node *nodes, int32_t node);

int32_t kn_queue_next(const kn_queue_node *nodes, int32_t node);

/* First node at or after the place of (key, seq); NONE behind the last. */
int32_t kn_queue_from(const kn_queue_node *nodes, const kn_queue *queue, int64_t key, uint64_t seq);

static inline int32_t kn_queue_count(const kn_queue_node *nodes, const kn_queue *queue)
{
    return queue->root < 0 ? 0 : nodes[queue->root].count;
}

static inline int64_t kn_queue_sum(const kn_queue_node *nodes, const kn_queue *queue)
{
    return queue->root < 0 ? 0 : nodes[queue->root].sum;
}

/* Least slack of all; INT64_MAX when empty. */
static inline int64_t kn_queue_slack(const kn_queue_node *nodes, const kn_queue *queue)
{
    return queue->root < 0 ? INT64_MAX : nodes[queue->root].slack;
}

typedef struct kn_queue_place {
    int32_t count;        /* nodes before the place */
    int64_t work;         /* sum of their work */
    int64_t slack_before; /* their least slack; INT64_MAX without any */
    int64_t slack_after;  /* least slack of the nodes at and after the place */
} kn_queue_place;

/* What surrounds the place of (key, seq), whether or not a node is there. */
kn_queue_place kn_queue_find(const kn_queue_node *nodes, const kn_queue *queue, int64_t key, uint64_t seq);

/* First node whose slack is below `start`; NONE: the plan holds. */
int32_t kn_queue_first_late(const kn_queue_node *nodes, const kn_queue *queue, int64_t start);

/* Last node whose slack is below `start`. */
int32_t kn_queue_last_late(const kn_queue_node *nodes, const kn_queue *queue, int64_t start);

/* Of the nodes up to and including `last`, one with the largest burden: the first of several. */
int32_t kn_queue_heaviest(const kn_queue_node *nodes, const kn_queue *queue, int32_t last);

#endif
