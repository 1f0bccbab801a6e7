/* SPDX-License-Identifier: Apache-2.0
 *
 * Time and devices for the planned jobs of a pool in which groups are chosen.
 *
 * A job's denoise and decode slices are malleable work: on d devices one takes each[d], less than on fewer and more
 * than each[1] / d. Jobs are laid in order of deadline into what is free of devices x time, each as early as it goes in
 * the smallest group with which it is in time; where fewer devices are free for a while it goes on with those. This is
 * deadline packing (TetriServe, Lu et al. 2025: the degree of every step from the deadline, the least device time
 * first) without rounds: it is done anew at every slice boundary, from what is true then, so that a job's group changes
 * from slice to slice. When a job finds no room, the one that costs most for its worth among those up to it goes
 * without a place (Moore 1968, as in queue.h). */
#include "scheduler/packing.h"

#include <math.h>
#include <string.h>

enum {
    SEGMENTS = 4 * KN_PACKING_JOBS + KN_SCHEDULER_DEVICES_MAX + 4,
    PIECES = SEGMENTS + 4,
    PHASES = 4, /* text on one device, denoising, decoding, the rest on one device */
};

#define MARGIN 0.05
#define MARGIN_SLICES 1.0
#define SWAP_GAIN 1.1F /* a job goes without a place for one that is so much lighter */

typedef struct profile {
    int32_t count;
    int64_t at[SEGMENTS];   /* ns; a segment lasts to the next one, the last for ever */
    int32_t free[SEGMENTS]; /* devices */
} profile;

typedef struct piece {
    int64_t from, to;
    int32_t devices;
} piece;

static void start_profile(profile *p, const kn_packing *packing)
{
    int64_t times[KN_SCHEDULER_DEVICES_MAX];
    int32_t n = 0;
    for (uint64_t left = packing->devices; left; left &= left - 1) {
        const int64_t at = packing->free_ns[__builtin_ctzll(left)];
        const int64_t from = at > packing->now_ns ? at : packing->now_ns;
        int32_t i = n++;
        for (; i > 0 && times[i - 1] > from; i--) times[i] = times[i - 1];
        times[i] = from;
    }
    p->count = 1;
    p->at[0] = packing->now_ns;
    p->free[0] = 0;
    for (int32_t i = 0; i < n; i++) {
        if (times[i] > p->at[p->count - 1]) {
            p->at[p->count] = times[i];
            p->free[p->count] = i;
            p->count++;
        }
        p->free[p->count - 1]++;
    }
}

static int32_t segment_at(const profile *p, int64_t at)
{
    int32_t i = p->count - 1;
    while (i > 0 && p->at[i] > at) i--;
    return i;
}

/* A segment starts at `at` from now on. */
static int32_t split(profile *p, int64_t at)
{
    const int32_t i = segment_at(p, at);
    if (p->at[i] == at || p->count == SEGMENTS) return i;
    memmove(&p->at[i + 2], &p->at[i + 1], (size_t)(p->count - i - 1) * sizeof *p->at);
    memmove(&p->free[i + 2], &p->free[i + 1], (size_t)(p->count - i - 1) * sizeof *p->free);
    p->count++;
    p->at[i + 1] = at;
    p->free[i + 1] = p->free[i];
    return i + 1;
}

static void occupy(profile *p, const piece *pieces, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        const int32_t first = split(p, pieces[i].from), end = split(p, pieces[i].to);
        for (int32_t k = first; k < end; k++) p->free[k] -= pieces[i].devices;
    }
}

/* Where the job would lie with at most `cap` devices; returns when it would be done. */
static int64_t lay(const profile *p, const kn_packed *job, int32_t cap, piece pieces[PIECES], int32_t *count)
{
    const kn_malleable *const shared[PHASES] = {NULL, &job->denoise, &job->decode, NULL};
    double left[PHASES] = {(double)job->head_ns, job->denoise.slices, job->decode.slices, (double)job->tail_ns};
    int64_t at = job->ready_ns > p->at[0] ? job->ready_ns : p->at[0];
    int32_t i = segment_at(p, at), phase = 0;
    *count = 0;
    while (phase < PHASES) {
        const bool last = i + 1 == p->count;
        const kn_malleable *slices = shared[phase];
        const int32_t most = slices ? cap : 1, room = p->free[i] < most ? p->free[i] : most;
        const int32_t devices = slices && room > 0 ? slices->best[room] : room;
        if (left[phase] <= 0) {
            phase++;
            continue;
        }
        if (devices <= 0) {
            if (last) return INT64_MAX;
            at = p->at[++i];
            continue;
        }
        const double each = slices ? slices->each[devices] : 1, span = left[phase] * each;
        const bool ends = last || span <= (double)(p->at[i + 1] - at);
        const int64_t to = ends ? at + (int64_t)ceil(span) : p->at[i + 1];
        if (*count < PIECES && to > at) pieces[(*count)++] = (piece){at, to, devices};
        left[phase] = ends ? 0 : left[phase] - (double)(to - at) / each;
        at = to;
        if (!last && at >= p->at[i + 1]) i++;
    }
    return at;
}

static double span_of(const kn_malleable *m, int32_t degree)
{
    return m->slices > 0 ? m->slices * m->each[m->best[degree]] : 0;
}

/* Does a group of so many finish sooner than smaller ones? */
static bool gains(const kn_packed *job, int32_t degree)
{
    return (job->denoise.slices > 0 && job->denoise.best[degree] == degree) ||
           (job->decode.slices > 0 && job->decode.best[degree] == degree);
}

/* What may go wrong: a part of what is left, and that a slice or two take longer. */
static int64_t margin_of(const kn_packed *job, int32_t cap)
{
    const kn_malleable *next = job->denoise.slices > 0 ? &job->denoise : &job->decode;
    if (next->slices <= 0) return 0;
    return (int64_t)(MARGIN * span_of(next, cap) + MARGIN_SLICES * next->each[next->best[cap]]);
}

/* In the smallest group that leaves a margin; without one, as early as it goes. */
static void place(profile *p, kn_packed *job, int32_t largest)
{
    piece pieces[PIECES], best[PIECES];
    int32_t count, best_count = 0;
    int64_t done = INT64_MAX;
    job->eased = false;
    for (int32_t cap = job->smallest > 1 ? job->smallest : 1; cap <= largest && cap <= job->largest; cap++) {
        if (cap > 1 && !gains(job, cap)) continue; /* the smaller group did as well */
        const double least =
            (double)(job->head_ns + job->tail_ns) + span_of(&job->denoise, cap) + span_of(&job->decode, cap);
        const int64_t from = job->ready_ns > p->at[0] ? job->ready_ns : p->at[0];
        if ((double)from + least > (double)job->deadline_ns) continue;
        const int64_t at = lay(p, job, cap, pieces, &count);
        if (at > job->deadline_ns || at >= done) continue;
        done = at;
        best_count = count;
        memcpy(best, pieces, (size_t)count * sizeof *pieces);
        job->eased = done + margin_of(job, cap) <= job->deadline_ns;
        if (job->eased) break;
    }
    job->fits = done != INT64_MAX;
    job->devices = 0;
    if (!job->fits) return;
    job->done_ns = done;
    job->start_ns = best_count > 0 ? best[0].from : job->ready_ns;
    if (best_count > 0 && best[0].from == p->at[0]) job->devices = best[0].devices;
    occupy(p, best, best_count);
}

int32_t kn_packing_lay(kn_packing *packing)
{
    profile p;
    int32_t score = 0;
    start_profile(&p, packing);
    packing->total_ns = 0;
    for (int32_t i = 0; i < packing->count; i++) {
        kn_packed *job = &packing->jobs[i];
        job->fits = job->eased = false;
        job->devices = 0;
        if (job->dropped) continue;
        place(&p, job, packing->largest);
        score += job->fits + job->eased;
        if (job->fits) packing->total_ns += job->done_ns - packing->now_ns;
    }
    return score;
}

/* Of the jobs up to `last`, the one to go without a place. */
static int32_t heaviest(const kn_packing *packing, int32_t last)
{
    int32_t best = last;
    float most = packing->jobs[last].burden * SWAP_GAIN;
    for (int32_t i = 0; i < last; i++) {
        if (packing->jobs[i].dropped || packing->jobs[i].burden <= most) continue;
        best = i;
        most = packing->jobs[i].burden;
    }
    return best;
}

int32_t kn_packing_resolve(kn_packing *packing)
{
    int32_t score = kn_packing_lay(packing);
    for (int32_t n = 0; n < packing->count; n++) {
        int32_t bad = 0;
        while (bad < packing->count && (packing->jobs[bad].fits || packing->jobs[bad].dropped)) bad++;
        if (bad == packing->count) break;
        packing->jobs[heaviest(packing, bad)].dropped = true;
        score = kn_packing_lay(packing);
    }
    return score;
}

/* ---- what there is to lay ---- */

static void choose_best(kn_malleable *m, int32_t degree)
{
    const int32_t before = m->best[degree - 1];
    m->best[degree] = degree == 1 || m->each[degree] < m->each[before] ? degree : before;
}

void kn_packing_job(const kn_scheduler *s, const kn_core_job *job, int32_t device, int64_t now_ns, kn_packed *out)
{
    const kn_core_device *d = &s->devices[device];
    kn_job_progress next = job->progress;
    *out = (kn_packed){.slot = KN_NO_SLOT, .deadline_ns = job->terms.deadline_ns, .ready_ns = now_ns};
    if (job->running) {
        kn_core_advance(&job->shape, &next);
        out->ready_ns = kn_core_free_at(s, job->device, now_ns);
    }
    const kn_cost_fit *fits = d->fits[job->shape.model];
    const int32_t frames = job->shape.latent_frames - next.decoded;
    out->denoise.slices = job->shape.steps - next.step;
    out->decode.slices = frames;
    if (out->denoise.slices > 0 && !next.text)
        out->head_ns = (int64_t)kn_cost_predict(&fits[KN_STAGE_TEXT], job->work.text);
    if (!(d->terms.models >> job->shape.model & 1)) out->head_ns += d->terms.load_ns;
    if (!next.done) out->tail_ns = (int64_t)kn_cost_predict(&fits[KN_STAGE_MUX], job->work.mux);
    out->largest = kn_core_largest(s, device);
    for (int32_t degree = 1; degree <= out->largest; degree++) {
        out->denoise.each[degree] = kn_core_step_ns(s, job, device, degree);
        if (frames > 0) out->decode.each[degree] = kn_core_decoding_ns(s, job, &next, device, degree) / frames;
        choose_best(&out->denoise, degree);
        choose_best(&out->decode, degree);
    }
}

double kn_packing_demand(const kn_packed *job, int64_t now_ns)
{
    const double time = (double)(job->deadline_ns - now_ns - job->head_ns - job->tail_ns);
    const double single = (double)(job->head_ns + job->tail_ns);
    double before = span_of(&job->denoise, 1) + span_of(&job->decode, 1);
    double cost = before; /* device time of the slices that can be shared */
    for (int32_t degree = 2; degree <= job->largest && before > time; degree++) {
        if (!gains(job, degree)) continue;
        const double denoise = span_of(&job->denoise, degree), decode = span_of(&job->decode, degree);
        const double span = denoise + decode;
        const double all = job->denoise.best[degree] * denoise + job->decode.best[degree] * decode;
        if (span <= time) { /* some of the slices in the smaller group, so that it is just in time */
            const double part = (before - time) / (before - span);
            return single + cost + part * (all - cost);
        }
        before = span;
        cost = all;
    }
    return single + cost;
}

double kn_packing_least(const kn_packed *job)
{
    return (double)(job->head_ns + job->tail_ns) + span_of(&job->denoise, job->largest) +
           span_of(&job->decode, job->largest);
}

void kn_packing_collect(const kn_scheduler *s, int32_t pool, int64_t now_ns, kn_packing *out)
{
    out->count = 0;
    out->now_ns = now_ns;
    out->devices = s->up & s->devices[pool].members;
    out->largest = __builtin_popcountll(out->devices);
    if (out->largest > s->params.degree_max) out->largest = s->params.degree_max;
    for (uint64_t left = out->devices; left; left &= left - 1) {
        const int32_t device = __builtin_ctzll(left);
        out->free_ns[device] = kn_core_free_at(s, device, now_ns);
    }
    int32_t slot = s->devices[pool].plan.first;
    for (; slot >= 0 && out->count < KN_PACKING_JOBS; slot = kn_queue_next(s->nodes, slot)) {
        const kn_core_job *job = &s->jobs[slot];
        const int32_t device = job->device != KN_NO_DEVICE ? job->device : kn_core_in_pool(s, &job->shape, pool);
        if (device == KN_NO_DEVICE) continue;
        kn_packed *packed = &out->jobs[out->count++];
        kn_packing_job(s, job, device, now_ns, packed);
        packed->slot = slot;
        packed->burden = s->nodes[slot].burden;
    }
}

void kn_packing_add(kn_packing *packing, const kn_packed *job)
{
    int32_t at = packing->count;
    while (at > 0 && packing->jobs[at - 1].deadline_ns > job->deadline_ns) at--;
    if (packing->count < KN_PACKING_JOBS) packing->count++;
    if (at == packing->count) at--;
    for (int32_t i = packing->count - 1; i > at; i--) packing->jobs[i] = packing->jobs[i - 1];
    packing->jobs[at] = *job;
}
