/* SPDX-License-Identifier: Apache-2.0
 *
 * An upper bound on the number of deadlines any scheduler could meet, though it knew the whole trace before.
 *
 * The relaxation: all devices are one that is as fast as all together and may split every job as finely as it likes,
 * preempting without cost; a job needs only the device time it takes on one device in the fullest pack (least_ns):
 * groups take more; parts of a job count as parts. Jobs that could not be in time alone on idle devices, in the best
 * group (group_ns) and without the fixed costs that a pack could save (least_ns), are late in any schedule and are left
 * out. Every real schedule is one of the relaxed ones, so the relaxed optimum is not below it.
 *
 * The optimum: the amounts of work that fit between release times and deadlines form a polymatroid, and a job's part
 * is worth the same for every job, so work of short jobs is worth most: taking jobs in order of size and giving each
 * as much as still fits is optimal (Edmonds 1970). Whether amounts fit, earliest deadline first tells (Horn 1974); how
 * much of one job fits, bisection. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "scheduler/trace.h"

enum { BISECTIONS = 20 };

typedef struct item {
    double release, deadline, work; /* seconds; work on one device */
    double amount;                  /* of it that fits */
} item;

typedef struct relaxed {
    item *items;      /* in order of release */
    int32_t *by_work; /* indices */
    int32_t *heap;    /* indices, least deadline first */
    double *left;     /* [count] */
    int32_t count;
    double speed; /* devices */
} relaxed;

static int compare_items(const void *a, const void *b)
{
    const item *x = a, *y = b;
    return (x->release > y->release) - (x->release < y->release);
}

static void sift(const relaxed *r, int32_t count, int32_t at)
{
    for (;;) {
        int32_t least = at;
        for (int32_t child = 2 * at + 1; child <= 2 * at + 2 && child < count; child++)
            if (r->items[r->heap[child]].deadline < r->items[r->heap[least]].deadline) least = child;
        if (least == at) return;
        const int32_t swapped = r->heap[at];
        r->heap[at] = r->heap[least];
        r->heap[least] = swapped;
        at = least;
    }
}

static void heap_push(const relaxed *r, int32_t *count, int32_t index)
{
    int32_t at = (*count)++;
    for (; at > 0 && r->items[r->heap[(at - 1) / 2]].deadline > r->items[index].deadline; at = (at - 1) / 2)
        r->heap[at] = r->heap[(at - 1) / 2];
    r->heap[at] = index;
}

/* Do the amounts fit? Earliest deadline first on one device of `speed`. */
static bool fits(const relaxed *r)
{
    int32_t waiting = 0, next = 0;
    double now = 0;
    for (int32_t i = 0; i < r->count; i++) r->left[i] = r->items[i].amount;
    while (waiting > 0 || next < r->count) {
        if (waiting == 0 && r->items[next].release > now) now = r->items[next].release;
        for (; next < r->count && r->items[next].release <= now; next++)
            if (r->left[next] > 0) heap_push(r, &waiting, next);
        if (waiting == 0) continue;
        const int32_t first = r->heap[0];
        double until = now + r->left[first] / r->speed;
        const bool interrupted = next < r->count && r->items[next].release < until;
        if (interrupted) until = r->items[next].release;
        if (until > r->items[first].deadline * (1 + 1e-12)) return false;
        r->left[first] -= (until - now) * r->speed;
        now = until;
        if (interrupted) continue;
        r->heap[0] = r->heap[--waiting];
        sift(r, waiting, 0);
    }
    return true;
}

static void give_most(const relaxed *r, item *job)
{
    double low = 0, high = job->work;
    job->amount = high;
    if (fits(r)) return;
    for (int i = 0; i < BISECTIONS; i++) {
        job->amount = 0.5 * (low + high);
        if (fits(r))
            low = job->amount;
        else
            high = job->amount;
    }
    job->amount = low; /* feasible; what is missing to the optimum is added below */
}

static double optimum(const relaxed *r)
{
    double sum = 0;
    for (int32_t i = 0; i < r->count; i++) {
        item *job = &r->items[r->by_work[i]];
        give_most(r, job);
        const double part = job->amount / job->work + (job->amount < job->work ? 0x1p-20 : 0);
        sum += part < 1 ? part : 1;
    }
    return sum;
}

/* Sorts indices by work, the shortest first: merge sort, so that equal ones keep their order. */
static void sort_by_work(const relaxed *r, int32_t *indices, int32_t *spare, int32_t count)
{
    if (count < 2) return;
    const int32_t half = count / 2;
    sort_by_work(r, indices, spare, half);
    sort_by_work(r, indices + half, spare, count - half);
    memcpy(spare, indices, (size_t)half * sizeof *spare);
    int32_t a = 0, b = half, out = 0;
    while (a < half && b < count)
        indices[out++] = r->items[indices[b]].work < r->items[spare[a]].work ? indices[b++] : spare[a++];
    while (a < half) indices[out++] = spare[a++];
}

kn_status kn_trace_bound(const kn_trace *trace, int32_t devices, double *out)
{
    kn_status st = KN_OK;
    const size_t n = (size_t)trace->count;
    int32_t timed = 0;
    relaxed r = {.speed = devices};
    r.items = kn_alloc_array(n, sizeof *r.items);
    r.by_work = kn_alloc_array(n, sizeof *r.by_work);
    r.heap = kn_alloc_array(n, sizeof *r.heap);
    r.left = kn_alloc_array(n, sizeof *r.left);
    if (!r.items || !r.by_work || !r.heap || !r.left) KN_TRY(KN_NOMEM);
    for (int32_t i = 0; i < trace->count; i++) {
        const kn_trace_job *job = &trace->jobs[i];
        if (job->terms.deadline_ns == KN_SCHEDULER_NO_DEADLINE || job->cancel_ns > 0) continue;
        timed++;
        /* Alone, but for what a pack could save it: a mate's text slice may stand for its own. */
        const int64_t saved = job->alone_ns - job->least_ns;
        if (job->terms.submitted_ns + job->group_ns - saved > job->terms.deadline_ns) continue;
        r.items[r.count++] = (item){.release = (double)job->terms.submitted_ns * 1e-9,
                                    .deadline = (double)job->terms.deadline_ns * 1e-9,
                                    .work = (double)job->least_ns * 1e-9};
    }
    qsort(r.items, (size_t)r.count, sizeof *r.items, compare_items);
    for (int32_t i = 0; i < r.count; i++) r.by_work[i] = i;
    sort_by_work(&r, r.by_work, r.heap, r.count);
    *out = timed ? optimum(&r) / timed : 1;
    if (*out > 1) *out = 1;
fail:
    kn_free(r.items);
    kn_free(r.by_work);
    kn_free(r.heap);
    kn_free(r.left);
    return st;
}
