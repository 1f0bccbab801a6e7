// SPDX-License-Identifier: Apache-2.0
//
// Matrix instructions of one warp. PTX ISA, "Warp-level matrix instructions".
#include <math.h>
#include <string.h>

#include <cuda_bf16.h>

#include "tests/simt/instructions.h"
#include "tests/simt/machine.h"

namespace simt
{

enum { ALL_LANES = -1, ROW_BYTES = 16 };

namespace
{
struct tile_access {
    uint32_t *r;
    int count;
    char *row;
    bool transposed, store;
};
} // namespace

static bool check_row(const meeting &m, int lane, char *row, bool store)
{
    const thread *t = m.lane[lane];
    if ((uintptr_t)row % ROW_BYTES != 0) {
        fail_of(t, "%s at line %d: the row of lane %d is not 16-byte aligned: %s", m.name, m.line, lane,
                describe_address(row).c_str());
        return false;
    }
    if (!is_shared(row)) {
        fail_of(t, "%s at line %d: the row of lane %d is not in shared memory: %s", m.name, m.line, lane,
                describe_address(row).c_str());
        return false;
    }
    return touch(actor_of(t), row, ROW_BYTES, store ? ACCESS_WRITE : ACCESS_READ);
}

// "ldmatrix", "stmatrix": lane 8 i + j names row j of matrix i; lane l holds elements 2 (l % 4), + 1 of row l / 4, or
// of column l / 4 when transposed.
static void move_tiles(meeting &m)
{
    const tile_access *first = (const tile_access *)m.payload[0];
    for (int lane = 0; lane < 8 * first->count; lane++)
        if (!check_row(m, lane, ((tile_access *)m.payload[lane])->row, first->store)) return;
    for (int i = 0; i < first->count; i++)
        for (int lane = 0; lane < WARP; lane++)
            for (int half = 0; half < 2; half++) {
                tile_access *mine = (tile_access *)m.payload[lane];
                int row = lane / 4, column = lane % 4 * 2 + half;
                if (mine->transposed) std::swap(row, column);
                char *element = ((tile_access *)m.payload[8 * i + row])->row + 2 * column;
                uint16_t *held = (uint16_t *)&mine->r[i] + half;
                if (first->store)
                    memcpy(element, held, 2);
                else
                    memcpy(held, element, 2);
            }
}

void ldmatrix(int line, uint32_t *r, int count, const void *row, bool transposed)
{
    tile_access access = {r, count, (char *)row, transposed, false};
    meet("ldmatrix", line, (uint32_t)ALL_LANES, &access, move_tiles);
}

void stmatrix(int line, const uint32_t *r, int count, void *row)
{
    tile_access access = {(uint32_t *)r, count, (char *)row, false, true};
    meet("stmatrix", line, (uint32_t)ALL_LANES, &access, move_tiles);
}

namespace
{
struct product {
    float *d;
    const uint32_t *a, *b;
};
} // namespace

static float element(uint32_t pair, int half)
{
    return simt_bf16_float((uint16_t)(pair >> (16 * half)));
}

// "Matrix fragments for mma.m16n8k16 with floating point type": lane l, g = l / 4, t = l % 4 holds of a rows g and
// g + 8, columns 2 t, + 1 and those + 8; of b the same columns as rows, in column g; of d rows g, g + 8, columns 2 t,
// + 1.
static void gather(const meeting &m, float a[16][16], float b[16][8])
{
    for (int lane = 0; lane < WARP; lane++) {
        const product *p = (const product *)m.payload[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int h = 0; h < 2; h++) a[g + 8 * (i & 1)][2 * t + h + 8 * (i >> 1)] = element(p->a[i], h);
        for (int i = 0; i < 2; i++)
            for (int h = 0; h < 2; h++) b[2 * t + h + 8 * i][g] = element(p->b[i], h);
    }
}

// Products are exact in float; sums are of at least single precision in an order that the manual leaves open. Here:
// ascending k, in float.
static void multiply(meeting &m)
{
    float a[16][16], b[16][8];
    gather(m, a, b);
    for (int lane = 0; lane < WARP; lane++) {
        product *p = (product *)m.payload[lane];
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            const int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
            float sum = p->d[i];
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
            p->d[i] = sum;
        }
    }
}

void mma_bf16(int line, float *d, const uint32_t *a, const uint32_t *b)
{
    product p = {d, a, b};
    meet("mma.bf16", line, (uint32_t)ALL_LANES, &p, multiply);
}

// "ex2": at most 2 units in the last place, subnormal inputs and results become zero with .ftz.
float exp2_approx(float x)
{
    return simt_flush(exp2f(simt_flush(x)));
}

float reciprocal_approx(float x)
{
    return simt_flush(1.0f / simt_flush(x));
}

} // namespace simt
