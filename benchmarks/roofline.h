/* SPDX-License-Identifier: Apache-2.0
 *
 * What this machine can do at most: the rate of multiply-adds with everything in
 * registers, per tier, and the rate of memory with nothing in cache. A time is
 * judged against max(operations / rate, bytes / bandwidth). */
#ifndef KN_BENCHMARKS_ROOFLINE_H
#define KN_BENCHMARKS_ROOFLINE_H

#include "kernels/cpu.h"

typedef struct kn_roofline {
    double f32_rate;     /* f32 multiplications and additions per second, all threads */
    double bf16_rate;    /* the same for products of bf16 values; f32_rate where the tier has no such instruction */
    double memory_bytes; /* bytes per second, read and written, beyond the last cache */
    int threads;
} kn_roofline;

/* Takes about a tenth of a second. The processor must have the tier. */
kn_status kn_roofline_measure(kn_roofline *out, kn_isa isa, int threads);
/* Bandwidth alone, the same for every tier; kn_roofline_measure leaves memory_bytes 0. About half a second. */
kn_status kn_roofline_measure_memory(double *bytes_per_second, int threads);

/* Least seconds for a call, and whether arithmetic or memory decides. */
double kn_roofline_seconds(const kn_roofline *bound, double operations, double bytes, bool bf16, const char **limit);

/* One tier's loop: runs `rounds` rounds of independent multiply-adds; returns the operations done. `sink`
 * receives a value that depends on all of them. */
typedef double kn_roofline_loop(int64_t rounds, float *sink);
kn_roofline_loop kn_roofline_f32_ref;
kn_roofline_loop kn_roofline_f32_avx2;
kn_roofline_loop kn_roofline_f32_avx512;
kn_roofline_loop kn_roofline_bf16_avx512bf16;

#endif
