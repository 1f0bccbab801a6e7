/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KN_BENCHMARKS_BENCH_HTTP_H
#define KN_BENCHMARKS_BENCH_HTTP_H

#include "benchmarks/bench.h"

/* The part "http": what the HTTP server costs on this machine's loopback. Needs no device. */
kn_status kn_bench_http(kn_bench *bench);

#endif
