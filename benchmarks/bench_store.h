/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KN_BENCHMARKS_BENCH_STORE_H
#define KN_BENCHMARKS_BENCH_STORE_H

#include "benchmarks/bench.h"

/* The part "store": durable submits, and the start beside a million finished jobs, in $TMPDIR (0.6 GB for a while).
 * Needs no device. */
kn_status kn_bench_store(kn_bench *bench);

#endif
