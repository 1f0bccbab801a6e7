/* SPDX-License-Identifier: Apache-2.0
 *
 * The normal values torch draws on a CPU, so that a seed means the same latent here and there: MT19937 (Matsumoto and
 * Nishimura 1998) and the Box-Muller transform, in the order torch consumes them.
 *
 *   count >= 16   one 24-bit uniform per output; each group of 16 makes its outputs in place, out[j] and out[j + 8]
 *                 from the uniforms j and j + 8. If the count is no multiple of 16, the last 16 outputs are drawn anew.
 *   count < 16    one at a time in double: two 53-bit uniforms give a pair, the sine half is kept for the next call
 *
 * The grouped form rounds to float after the logarithm, the angle and the cosine, as torch's vector code does, but
 * takes the functions themselves from double: the result is the same with every C library, and is off torch's by a
 * rounding or two. (torch without AVX2 rounds the angle differently and is up to 2.2e-6 away from both.) */
#include "engine/sampling.h"

#include <math.h>

enum { STATE_WORDS = 624, STATE_SHIFT = 397, GROUP = 16, HALF = GROUP / 2 };

static const double TWO_PI = 6.283185307179586476925;

typedef struct twister {
    uint32_t words[STATE_WORDS];
    int32_t next; /* word to hand out; STATE_WORDS: refill first */
} twister;

static void twister_seed(twister *state, uint32_t seed)
{
    state->words[0] = seed;
    for (uint32_t i = 1; i < STATE_WORDS; i++) {
        uint32_t before = state->words[i - 1];
        state->words[i] = 1812433253u * (before ^ before >> 30) + i;
    }
    state->next = STATE_WORDS;
}

static void twister_refill(twister *state)
{
    uint32_t *words = state->words;
    for (int32_t i = 0; i < STATE_WORDS; i++) {
        uint32_t joined = (words[i] & 0x80000000u) | (words[(i + 1) % STATE_WORDS] & 0x7fffffffu);
        words[i] = words[(i + STATE_SHIFT) % STATE_WORDS] ^ joined >> 1 ^ (joined & 1 ? 0x9908b0dfu : 0);
    }
    state->next = 0;
}

static uint32_t twister_draw(twister *state)
{
    if (state->next == STATE_WORDS) twister_refill(state);
    uint32_t word = state->words[state->next++];
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680u;
    word ^= word << 15 & 0xefc60000u;
    return word ^ word >> 18;
}

/* [0, 1) in steps of 2^-24. */
static float uniform_float(twister *state)
{
    return (float)(twister_draw(state) & 0xffffffu) * 0x1p-24f;
}

/* [0, 1) in steps of 2^-53; the first word drawn is the high one. */
static double uniform_double(twister *state)
{
    uint64_t high = twister_draw(state);
    uint64_t word = high << 32 | twister_draw(state);
    return (double)(word & 0x1fffffffffffffu) * 0x1p-53;
}

/* GROUP outputs from GROUP fresh uniforms. 1 - u is never 0, so the logarithm is finite. */
static void draw_group(float *out, twister *state)
{
    float uniforms[GROUP];
    for (int32_t j = 0; j < GROUP; j++) uniforms[j] = uniform_float(state);
    for (int32_t j = 0; j < HALF; j++) {
        float logarithm = (float)log((double)(1 - uniforms[j]));
        float radius = sqrtf(-2 * logarithm);
        float angle = (float)TWO_PI * uniforms[j + HALF];
        out[j] = radius * (float)cos((double)angle);
        out[j + HALF] = radius * (float)sin((double)angle);
    }
}

static void draw_pairs(float *out, int64_t count, twister *state)
{
    for (int64_t i = 0; i < count; i += 2) {
        double angle = TWO_PI * uniform_double(state);
        double radius = sqrt(-2 * log1p(-uniform_double(state)));
        out[i] = (float)(radius * cos(angle));
        if (i + 1 < count) out[i + 1] = (float)(radius * sin(angle));
    }
}

void kn_noise_normal(float *out, int64_t count, uint64_t seed)
{
    twister state;
    twister_seed(&state, (uint32_t)seed);
    if (count < GROUP) {
        draw_pairs(out, count, &state);
        return;
    }
    int64_t whole = count / GROUP * GROUP;
    for (int64_t i = 0; i < whole; i += GROUP) draw_group(out + i, &state);
    if (whole == count) return;
    /* torch has drawn a uniform for every output before it redraws the last group. */
    for (int64_t i = whole; i < count; i++) twister_draw(&state);
    draw_group(out + count - GROUP, &state);
}
