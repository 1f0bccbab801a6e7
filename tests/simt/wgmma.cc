// SPDX-License-Identifier: Apache-2.0
//
// wgmma: PTX ISA, "Asynchronous warpgroup level matrix instructions". Each of a warpgroup's four warps computes its own
// 16 rows of d. An operation reads its operands and writes its sums when its group is waited for, not before: until
// then the sums hold poison, registers of a must keep their values, and what it reads of shared memory must stay.
#include <stdio.h>
#include <string.h>

#include <algorithm>

#include <cuda_bf16.h>

#include "tests/simt/instructions.h"
#include "tests/simt/machine.h"
#include "tests/simt/tensor.h"

namespace simt
{

enum { M = 64, K = 16, N_MAX = 256, FULL = -1 };

// One thread's sums of operations in flight.
struct accumulator {
    float *where;
    int count; // of floats
    int open;  // operations in flight
    float value[N_MAX / 2];
};

struct matrix_op {
    int n, line;
    bool accumulate, a_mn, b_mn, from_registers;
    uint64_t a_descriptor, b_descriptor;
    const uint32_t *a_registers[WARP];
    uint32_t a_saved[WARP][4];
    accumulator *sums[WARP];
    actor by;
    vclock *issued;
};

// ---- descriptors: PTX ISA, "Matrix-descriptor" ----

struct tile_view {
    uint32_t start, leading, stride;
    int swizzle; // 0 none, 1: 32, 2: 64, 3: 128 bytes
};

static tile_view decode(uint64_t d)
{
    static const int modes[] = {0, 3, 2, 1};
    if (d >> 49 & 7) fail("wgmma: a matrix descriptor with a base offset is not modelled");
    const tile_view v = {(uint32_t)(d & 0x3fff) << 4, (uint32_t)(d >> 16 & 0x3fff) << 4,
                         (uint32_t)(d >> 32 & 0x3fff) << 4, modes[d >> 62]};
    return v;
}

// Window address of 16-bit element (major, k) with rows of K side by side ("K-major"): eight rows are a group of
// 8 x 16, 32, 64 or 128 bytes, groups are `stride` apart; without swizzle, `leading` separates chunks of 8 along k.
static uint32_t address_k_major(const tile_view &v, int row, int k)
{
    if (v.swizzle == 0)
        return v.start + (uint32_t)(row / 8) * v.stride + (uint32_t)(row % 8) * 16 + (uint32_t)(k / 8) * v.leading +
               (uint32_t)(k % 8) * 2;
    const uint32_t pitch = 16u << v.swizzle;
    return swizzled(v.start + (uint32_t)(row / 8) * v.stride + (uint32_t)(row % 8) * pitch + (uint32_t)k * 2,
                    v.swizzle);
}

// Rows of M or N side by side ("MN-major"): a span along the rows, eight k one below the other; `leading` separates
// spans, `stride` groups of eight k.
static uint32_t address_mn_major(const tile_view &v, int row, int k)
{
    const int span = v.swizzle == 0 ? 8 : (16 << v.swizzle) / 2; // elements
    const uint32_t pitch = (uint32_t)span * 2;
    const uint32_t across = v.swizzle == 0 ? v.stride : v.leading, down = v.swizzle == 0 ? v.leading : v.stride;
    const uint32_t at = v.start + (uint32_t)(row / span) * across + (uint32_t)(row % span) * 2 +
                        (uint32_t)(k % 8) * pitch + (uint32_t)(k / 8) * down;
    return v.swizzle == 0 ? at : swizzled(at, v.swizzle);
}

static const char *element_at(const matrix_op *op, const tile_view &v, bool mn, int row, int k)
{
    const uint32_t at = mn ? address_mn_major(v, row, k) : address_k_major(v, row, k);
    return op->by.who->owner->shared + (int64_t)at - DYNAMIC_OFFSET;
}

// Eight elements that lie side by side are one access.
static bool touch_tile(const matrix_op *op, uint64_t descriptor, bool mn, int first, int rows)
{
    const tile_view v = decode(descriptor);
    for (int row = first; row < first + rows; row += mn ? 8 : 1)
        for (int k = 0; k < K; k += mn ? 1 : 8)
            if (!touch(op->by, element_at(op, v, mn, row, k), 16, ACCESS_READ | ACCESS_ASYNC)) return false;
    return true;
}

// [rows][K] floats.
static void load_tile(const matrix_op *op, uint64_t descriptor, bool mn, int first, int rows, float *out)
{
    const tile_view v = decode(descriptor);
    for (int row = 0; row < rows; row++)
        for (int k = 0; k < K; k++) {
            uint16_t bits;
            memcpy(&bits, element_at(op, v, mn, first + row, k), 2);
            out[row * K + k] = simt_bf16_float(bits);
        }
}

// ---- issue ----

static const uint32_t POISON = 0xffffffffu;

static void poison_sums(accumulator *s)
{
    for (int i = 0; i < s->count; i++) memcpy(&s->where[i], &POISON, sizeof POISON);
}

static bool sums_untouched(const accumulator *s)
{
    for (int i = 0; i < s->count; i++)
        if (memcmp(&s->where[i], &POISON, sizeof POISON) != 0) return false;
    return true;
}

// The thread's sums at `d`: in flight already, or taken over from its registers now.
static accumulator *take_sums(thread *t, const wgmma_operands &o)
{
    const int count = o.n / 2;
    for (accumulator *s : t->accumulators) {
        if (s->where == o.d && s->count == count) {
            s->open++;
            return s;
        }
        if (o.d < s->where + s->count && s->where < o.d + count) {
            fail_of(t, "wgmma: sums overlap those of an operation of another shape in flight");
            return nullptr;
        }
    }
    if (!t->register_fence) {
        fail_of(t, "wgmma on registers with no wgmma.fence since they could last be written");
        return nullptr;
    }
    accumulator *s = new accumulator();
    s->where = o.d;
    s->count = count;
    s->open = 1;
    memcpy(s->value, o.d, (size_t)count * sizeof *o.d);
    poison_sums(s);
    t->accumulators.push_back(s);
    return s;
}

static bool same(const wgmma_operands &a, const wgmma_operands &b)
{
    return a.n == b.n && a.accumulate == b.accumulate && (a.a_registers == nullptr) == (b.a_registers == nullptr) &&
           (a.a_registers || a.a_descriptor == b.a_descriptor) && a.b_descriptor == b.b_descriptor &&
           a.a_mn == b.a_mn && a.b_mn == b.b_mn;
}

static void set_actor(matrix_op *op, thread *t)
{
    op->issued = clock_keep(t->clock);
    op->by = actor_of(t);
    op->by.clock = op->issued;
    const uint32_t lane = running->next_async++ % ASYNC_SLOTS;
    op->by.slot = running->slots - ASYNC_SLOTS + lane;
    op->by.moment = ++running->async_moment[lane];
}

static void issue(meeting &m)
{
    thread *t = m.lane[0];
    const wgmma_operands &first = *(const wgmma_operands *)m.payload[0];
    matrix_op *op = new matrix_op();
    op->n = first.n;
    op->line = m.line;
    op->accumulate = first.accumulate;
    op->a_mn = first.a_mn;
    op->b_mn = first.b_mn;
    op->from_registers = first.a_registers != nullptr;
    op->a_descriptor = first.a_descriptor;
    op->b_descriptor = first.b_descriptor;
    set_actor(op, t);
    for (int i = 0; i < WARP; i++) {
        const wgmma_operands &o = *(const wgmma_operands *)m.payload[i];
        if (!same(o, first)) return fail_of(m.lane[i], "wgmma at line %d: operands differ inside the warp", m.line);
        if (op->from_registers) {
            if (!m.lane[i]->register_fence)
                return fail_of(m.lane[i], "wgmma at line %d reads registers with no wgmma.fence before", m.line);
            op->a_registers[i] = o.a_registers;
            memcpy(op->a_saved[i], o.a_registers, sizeof op->a_saved[i]);
        }
        op->sums[i] = take_sums(m.lane[i], o);
        if (!op->sums[i]) return;
    }
    if (!op->from_registers && !touch_tile(op, op->a_descriptor, op->a_mn, 0, M)) return;
    if (!touch_tile(op, op->b_descriptor, op->b_mn, 0, op->n)) return;
    t->in->matrix_open.push_back(op);
    t->in->matrix_issued++;
}

void wgmma(int line, const wgmma_operands &o)
{
    if (o.n < 8 || o.n > N_MAX || o.n % 8 != 0) fail("wgmma: n %d is not a multiple of 8 up to 256", o.n);
    meet("wgmma.mma_async", line, (uint32_t)FULL, (void *)&o, issue);
}

// ---- execution ----

static void gather_a(const matrix_op *op, float a[16 * K])
{
    if (!op->from_registers) {
        load_tile(op, op->a_descriptor, op->a_mn, (int)(op->by.who->in->number % 4) * 16, 16, a);
        return;
    }
    for (int lane = 0; lane < WARP; lane++)
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++) {
                const int row = lane / 4 + 8 * (i & 1), k = lane % 4 * 2 + h + 8 * (i >> 1);
                a[row * K + k] = simt_bf16_float((uint16_t)(op->a_saved[lane][i] >> (16 * h)));
            }
}

// sums += a b for one warp. Products are exact in float; sums in float in ascending k.
static void multiply(const matrix_op *op, const float *a, const float *b)
{
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < op->n; column++) {
            const int lane = row % 8 * 4 + column % 8 / 2;
            float *d = &op->sums[lane]->value[column / 8 * 4 + row / 8 * 2 + column % 2];
            float sum = op->accumulate ? *d : 0.0f;
            for (int k = 0; k < K; k++) sum += a[row * K + k] * b[column * K + k];
            *d = sum;
        }
}

static bool check_registers(const matrix_op *op, meeting &m)
{
    for (int i = 0; op->from_registers && i < WARP; i++)
        if (memcmp(op->a_saved[i], op->a_registers[i], sizeof op->a_saved[i]) != 0) {
            fail_of(m.lane[i], "registers of a of the wgmma at line %d changed before its wait", op->line);
            return false;
        }
    for (int i = 0; i < WARP; i++)
        if (!sums_untouched(op->sums[i])) {
            fail_of(m.lane[i], "sums of the wgmma at line %d were written to before its wait", op->line);
            return false;
        }
    return true;
}

static void see(thread *t, const matrix_op *op)
{
    vclock *c = clock_copy(t->clock);
    c->seen[op->by.slot] = std::max(c->seen[op->by.slot], op->by.moment);
    clock_drop(t->clock);
    t->clock = c;
}

static void release_sums(thread *t, accumulator *s)
{
    if (--s->open > 0) return;
    memcpy(s->where, s->value, (size_t)s->count * sizeof *s->where);
    t->accumulators.erase(std::find(t->accumulators.begin(), t->accumulators.end(), s));
    delete s;
}

static bool execute(matrix_op *op, meeting &m)
{
    static float a[16 * K], b[N_MAX * K];
    if (!check_registers(op, m)) return false;
    gather_a(op, a);
    load_tile(op, op->b_descriptor, op->b_mn, 0, op->n, b);
    multiply(op, a, b);
    return true;
}

static void finish_ops(meeting &m, size_t count)
{
    warp *w = m.lane[0]->in;
    for (size_t i = 0; i < count; i++)
        if (!execute(w->matrix_open[i], m)) return;
    for (size_t i = 0; i < count; i++) {
        matrix_op *op = w->matrix_open[i];
        for (int lane = 0; lane < WARP; lane++) {
            see(m.lane[lane], op);
            release_sums(m.lane[lane], op->sums[lane]);
        }
        clock_drop(op->issued);
        delete op;
    }
    w->matrix_open.erase(w->matrix_open.begin(), w->matrix_open.begin() + (ptrdiff_t)count);
    for (size_t &end : w->matrix_groups) end -= count;
}

// ---- fences, groups, waits ----

void wgmma_fence()
{
    current->register_fence = true;
}

void wgmma_commit(int line)
{
    meet("wgmma.commit_group", line, (uint32_t)FULL, nullptr,
         [](meeting &m) { m.lane[0]->in->matrix_groups.push_back(m.lane[0]->in->matrix_open.size()); });
}

void wgmma_wait(int line, uint32_t pending)
{
    meet("wgmma.wait_group", line, (uint32_t)FULL, nullptr, [pending](meeting &m) {
        warp *w = m.lane[0]->in;
        const size_t groups = w->matrix_groups.size();
        if (groups > pending) {
            const size_t finished = groups - pending;
            finish_ops(m, w->matrix_groups[finished - 1]);
            w->matrix_groups.erase(w->matrix_groups.begin(), w->matrix_groups.begin() + (ptrdiff_t)finished);
        }
        for (int i = 0; i < WARP; i++) m.lane[i]->register_fence = false; // its registers may change from here on
    });
}

bool in_flight_sums(const thread *t, const void *address)
{
    for (const accumulator *s : t->accumulators)
        if ((const char *)address - (const char *)s->where < (ptrdiff_t)(s->count * sizeof *s->where) &&
            (const char *)address >= (const char *)s->where)
            return true;
    return false;
}

void check_matrix_exit(thread *t)
{
    if (!t->accumulators.empty()) fail("returns with wgmmas it has not waited for");
}

void check_warpgroups(block *b)
{
    for (size_t w = 0; w < b->warps.size(); w++) {
        const warp &first = b->warps[w / 4 * 4];
        if (b->warps[w].matrix_issued != first.matrix_issued)
            return fail_of(b->warps[w].lane[0], "warpgroup %zu: warps issued different numbers of wgmmas (%u and %u)",
                           w / 4, b->warps[w].matrix_issued, first.matrix_issued);
    }
}

} // namespace simt
