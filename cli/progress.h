/* SPDX-License-Identifier: Apache-2.0
 *
 * Showing a generation's slices: a bar on a terminal, a line per stage in a log,
 * or JSON lines. */
#ifndef KN_CLI_PROGRESS_H
#define KN_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/generation.h"

typedef struct kn_progress {
    bool json;          /* JSON lines on standard output */
    bool terminal;      /* a bar, redrawn, on standard error */
    kn_slice_kind kind; /* stage being shown */
    int32_t first;      /* its first index here; above 0 after a resume */
    int64_t started_ns, printed_ns;
    double seconds[KN_SLICE_DONE]; /* spent in each kind */
    int32_t slices[KN_SLICE_DONE]; /* run of each kind */
} kn_progress;

kn_progress kn_progress_start(bool json);

/* After each slice, with what it was and how long it took. */
void kn_progress_slice(kn_progress *progress, kn_slice slice, double seconds);

/* Ends a bar, so that other text starts on its own line. */
void kn_progress_break(kn_progress *progress);

#endif
