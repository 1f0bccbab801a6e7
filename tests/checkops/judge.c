/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs one case on the reference and on every tier, and decides. */
#define _GNU_SOURCE
#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/checkops/checkops.h"

check_view check_view_matrix(const kn_matrix *m)
{
    return (check_view){.data = m->data, .dtype = m->dtype, .count = {1, m->rows, m->cols}, .stride = {0, m->stride}};
}

check_view check_view_frame(const kn_frame *f)
{
    return (check_view){.data = f->data,
                        .dtype = f->dtype,
                        .count = {f->height, f->width, f->channels},
                        .stride = {(int64_t)f->row_stride * f->channels, f->channels}};
}

void check_row_range(int64_t rows, int index, int64_t *first, int64_t *count)
{
    const int64_t half = rows / 2;
    const int64_t ranges[CHECK_ROW_SLICES][2] = {
        {0, 1},
        {rows - 1, 1},
        {0, half},
        {half, rows - half},
        {rows / 3, (rows + 2) / 3},
        {rows > 1, rows - (rows > 1)},
    };
    *first = ranges[index][0];
    *count = ranges[index][1];
}

kn_matrix check_rows_of(const kn_matrix *m, int64_t first, int64_t count)
{
    kn_matrix part = *m;
    part.data = (char *)m->data + first * m->stride * (int64_t)kn_dtype_bytes(m->dtype);
    part.rows = count;
    return part;
}

kn_row_table check_table_rows_of(const kn_row_table *table, int64_t first)
{
    kn_row_table part = *table;
    if (part.row_index) part.row_index += first;
    return part;
}

/* ---- runs ---- */

static void restore(check *c)
{
    for (int i = 0; i < c->buffer_count; i++)
        if (c->buffers[i].kind == CHECK_OUTPUT) memcpy(c->buffers[i].begin, c->buffers[i].saved, c->buffers[i].bytes);
}

static void save(check_buffer *b)
{
    if (b->saved) return;
    b->saved = kn_alloc(b->bytes);
    if (!b->saved) _exit(2);
    memcpy(b->saved, b->begin, b->bytes);
}

static check_buffer *buffer_of(check *c, const void *data)
{
    for (int i = 0; i < c->buffer_count; i++) {
        check_buffer *b = &c->buffers[i];
        if ((const char *)data >= b->data && (const char *)data < b->data + b->data_bytes) return b;
    }
    assert(!"the output lies in a buffer of this configuration");
    return NULL;
}

static size_t element_bytes(const check_view *v)
{
    return v->bytes ? 1 : kn_dtype_bytes(v->dtype);
}

static double value_of(const check_view *v, const char *element)
{
    return v->bytes ? *(const unsigned char *)element : check_load(element, v->dtype, 0);
}

static char *element_of(const check_view *v, int64_t i, int64_t j, int64_t l)
{
    return (char *)v->data + (i * v->stride[0] + j * v->stride[1] + l) * (int64_t)element_bytes(v);
}

typedef struct verdict {
    char text[400]; /* "" while nothing is wrong */
} verdict;

static void object(verdict *v, const char *format, ...) KN_PRINTF(2, 3);
static void object(verdict *v, const char *format, ...)
{
    if (v->text[0]) return;
    va_list list;
    va_start(list, format);
    vsnprintf(v->text, sizeof v->text, format, list);
    va_end(list);
}

/* After a run: `covered` may differ from what was saved, nothing else. */
static void check_surroundings(check *c, const check_view *covered, verdict *v)
{
    check_buffer *target = buffer_of(c, covered->data);
    const size_t row_bytes = (size_t)covered->count[2] * element_bytes(covered);
    for (int64_t i = 0; i < covered->count[0]; i++) /* the output takes part in what is expected ... */
        for (int64_t j = 0; j < covered->count[1]; j++) {
            char *row = element_of(covered, i, j, 0);
            memcpy(target->saved + (row - target->begin), row, row_bytes);
        }
    for (int b = 0; b < c->buffer_count; b++) {
        check_buffer *one = &c->buffers[b];
        if (one->kind == CHECK_WORKSPACE) memcpy(one->saved + (one->data - one->begin), one->data, one->data_bytes);
        if (memcmp(one->saved, one->begin, one->bytes) == 0) continue;
        size_t at = 0;
        while (one->saved[at] == one->begin[at]) at++;
        int64_t offset = (int64_t)at - (one->data - one->begin);
        if (one->kind == CHECK_INPUT)
            object(v, "input %d changed at byte %lld of %zu", b, (long long)offset, one->data_bytes);
        else
            object(v, "wrote outside the output: byte %lld of a buffer of %zu bytes", (long long)offset,
                   one->data_bytes);
        memcpy(one->begin, one->saved, one->bytes);
    }
}

/* Runs on a clean output; leaves the result in place and, in *result, a copy of
 * the whole output buffer when wanted. */
static void run(check *c, const check_case *one, const check_tier *tier, int threads, const void *args,
                const check_view *covered, char *result, verdict *v)
{
    check_note(c->op, tier->name, threads, c->config);
    restore(c);
    check_buffer *target = buffer_of(c, covered->data);
    char *clean = kn_alloc(target->bytes);
    if (!clean) _exit(2);
    memcpy(clean, target->saved, target->bytes);

    kn_device *device = tier->device[threads - 1];
    kn_stream *stream = tier->stream[threads - 1];
    check_seed_run(tier, threads);
    kn_status st = one->call(kn_device_ops(device), stream, args);
    if (st == KN_OK) st = kn_stream_synchronize(stream);
    if (st != KN_OK) object(v, "returned %s: %s", kn_status_name(st), kn_fail_message());
    check_surroundings(c, covered, v);
    memcpy(target->saved, clean, target->bytes);
    kn_free(clean);
    if (result) memcpy(result, target->begin, target->bytes);
}

/* ---- comparisons ---- */

static double row_largest(const check_view *v, int64_t i, int64_t j, ptrdiff_t shift)
{
    double largest = 0;
    for (int64_t l = 0; l < v->count[2]; l++) {
        double value = fabs(value_of(v, element_of(v, i, j, l) + shift));
        if (isfinite(value)) largest = fmax(largest, value);
    }
    return largest;
}

/* Below this a tier may have flushed to zero, or held an exponential at the edge
 * of its range: 100 e^-88. */
#define UNDERFLOW_ALLOWANCE 1e-35

static bool close_enough(double got, double want, double bound)
{
    if (isnan(want) || isnan(got)) return isnan(want) && isnan(got);
    if (isinf(want) || isinf(got)) return want == got;
    return fabs(got - want) <= bound;
}

/* `got` and `want` are copies of the output buffer that begins at `begin`. */
static void compare(const check_case *one, const char *begin, const char *got, const char *want, verdict *v)
{
    const check_view *out = &one->output;
    const check_tolerance *t = &one->tolerance;
    const ptrdiff_t to_got = got - begin, to_want = want - begin;
    double error = 0, power = 0, largest = 0;
    for (int64_t i = 0; i < out->count[0]; i++) {
        for (int64_t j = 0; j < out->count[1]; j++) {
            double scale = t->scale ? t->scale[i * out->count[1] + j] : row_largest(out, i, j, to_want);
            for (int64_t l = 0; l < out->count[2]; l++) {
                double w = value_of(out, element_of(out, i, j, l) + to_want);
                double g = value_of(out, element_of(out, i, j, l) + to_got);
                double bound = t->relative * fabs(w) + t->scaled * scale + UNDERFLOW_ALLOWANCE;
                if (!out->bytes && out->dtype == KN_BF16)
                    bound += 4 * CHECK_ROUND_BF16 * fabs(w); /* the neighbouring bf16 value */
                if (t->exact) bound = 0;
                if (!close_enough(g, w, bound))
                    object(v, "element (%lld, %lld, %lld) is %.9g, want %.9g, difference %.3g, allowed %.3g",
                           (long long)i, (long long)j, (long long)l, g, w, fabs(g - w), bound);
                if (isfinite(g) && isfinite(w)) {
                    error += (g - w) * (g - w);
                    power += w * w;
                    largest = fmax(largest, fabs(w));
                }
            }
        }
    }
    /* Two bf16 values that land on the other side of a rounding boundary weigh much in a small output. */
    double allowed = t->nmse * power + 1e-60;
    if (out->dtype == KN_BF16) allowed += 2 * pow(4 * CHECK_ROUND_BF16 * largest, 2);
    if (t->nmse > 0 && error > allowed) object(v, "NMSE is %.3g, allowed %.3g", error / power, allowed / power);
}

/* The covered elements of two copies have the same bits. */
static void compare_bits(const check_view *covered, const char *begin, const char *got, const char *want,
                         const char *what, verdict *v)
{
    const size_t element = element_bytes(covered);
    for (int64_t i = 0; i < covered->count[0]; i++)
        for (int64_t j = 0; j < covered->count[1]; j++)
            for (int64_t l = 0; l < covered->count[2]; l++) {
                ptrdiff_t at = element_of(covered, i, j, l) - begin;
                if (memcmp(got + at, want + at, element) != 0)
                    object(v, "%s: element (%lld, %lld, %lld) is %.9g, the whole call on one thread gave %.9g", what,
                           (long long)i, (long long)j, (long long)l, value_of(covered, got + at),
                           value_of(covered, want + at));
            }
}

/* ---- one case ---- */

enum { SIMT_SLICES = 4 };

typedef struct copies {
    char *want, *whole, *part; /* copies of the output buffer: reference, this tier, this tier otherwise */
} copies;

/* What preparation wrote stays inside its buffers and is an input from then on. */
static void prepare(check *c, const check_case *one, const check_tier *tier, void *args, verdict *v)
{
    check_note(c->op, tier->name, 0, c->config);
    int first = c->buffer_count;
    check_seed_run(tier, 1);
    kn_status st = one->prepare(c, tier, args);
    if (st == KN_OK) st = kn_stream_synchronize(tier->stream[0]);
    if (st != KN_OK) object(v, "preparation returned %s: %s", kn_status_name(st), kn_fail_message());
    for (int i = first; i < c->buffer_count; i++) {
        check_buffer *b = &c->buffers[i];
        for (const char *p = b->begin; p < b->begin + b->bytes; p++)
            if ((p < b->data || p >= b->data + b->data_bytes) && *p != (char)0xff)
                object(v, "preparation wrote byte %td of a buffer of %zu", p - b->data, b->data_bytes);
        if (b->kind == CHECK_OUTPUT) b->kind = CHECK_INPUT;
        save(b);
    }
}

static void judge_tier(check *c, const check_case *one, const check_tier *tier, const copies *copy, verdict *v)
{
    _Alignas(64) char args[CHECK_ARGS_BYTES], sliced[CHECK_ARGS_BYTES];
    const char *begin = buffer_of(c, one->output.data)->begin;
    memcpy(args, one->args, one->args_bytes);
    if (one->prepare) prepare(c, one, tier, args, v);
    check_way(tier);
    run(c, one, tier, 1, args, &one->output, copy->whole, v);
    const uint64_t way = check_way(tier), before = c->way;
    c->way = way;
    if (tier->reference) memcpy(copy->want, copy->whole, buffer_of(c, one->output.data)->bytes);
    compare(one, begin, copy->whole, copy->want, v);
    if (tier->reference) return;           /* one thread, one order: nothing more to learn */
    if (way != 0 && way == before) return; /* the same kernels as on the tier before */

    const int last = tier->simt ? CHECK_THREADS - 1 : CHECK_THREADS;
    for (int threads = 2; threads <= last; threads++) {
        char what[32];
        snprintf(what, sizeof what, "%d threads", threads);
        run(c, one, tier, threads, args, &one->output, copy->part, v);
        compare_bits(&one->output, begin, copy->part, copy->whole, what, v);
    }
    const int step = tier->simt && one->slices > SIMT_SLICES ? 2 : 1; /* every other one: they cost milliseconds */
    for (int index = (int)check_below(c, step); index < one->slices; index += step) {
        char what[32];
        check_view covered = one->output;
        memcpy(sliced, args, one->args_bytes);
        one->slice(args, index, sliced, &covered);
        if (covered.count[0] * covered.count[1] * covered.count[2] == 0) continue;
        snprintf(what, sizeof what, "slice %d", index);
        run(c, one, tier, 1 + index % CHECK_THREADS, sliced, &covered, copy->part, v);
        compare_bits(&covered, begin, copy->part, copy->whole, what, v);
    }
}

void check_judge(check *c, const check_case *one)
{
    assert(one->args_bytes <= CHECK_ARGS_BYTES);
    for (int i = 0; i < c->buffer_count; i++) save(&c->buffers[i]);
    const size_t bytes = buffer_of(c, one->output.data)->bytes;
    copies copy = {kn_alloc(bytes), kn_alloc(bytes), kn_alloc(bytes)};
    if (!copy.want || !copy.whole || !copy.part) _exit(2);

    for (int i = 0; i < c->tier_count; i++) {
        check_tier *tier = &c->tiers[i];
        if (!tier->reference && c->only_tier && strcmp(tier->name, c->only_tier) != 0) continue;
        verdict v = {{0}};
        int64_t start = kn_clock_ns();
        judge_tier(c, one, tier, &copy, &v);
        if (tier->reference) c->spent += kn_clock_seconds(kn_clock_ns() - start);
        if (v.text[0]) {
            printf("FAIL %s.%s [%d] %s: %s\n", c->op, tier->name, c->config_index, c->config, v.text);
            fflush(stdout);
            c->failed++;
            check_revive(tier);
        } else {
            c->passed++;
        }
    }
    kn_free(copy.want);
    kn_free(copy.whole);
    kn_free(copy.part);
}
