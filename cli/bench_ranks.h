/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KN_CLI_BENCH_RANKS_H
#define KN_CLI_BENCH_RANKS_H

#include "benchmarks/bench.h"

/* Prints a row for every number of ranks whose bit is set. */
kn_status kn_bench_ranks(const kn_bench_settings *settings, uint32_t degrees);

#endif
