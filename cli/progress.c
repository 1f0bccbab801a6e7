/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "cli/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

enum { BAR_CELLS = 28 };
#define LOG_INTERVAL_NS INT64_C(5000000000)

kn_progress kn_progress_start(bool json)
{
    return (kn_progress){.json = json, .terminal = !json && isatty(STDERR_FILENO), .kind = KN_SLICE_DONE};
}

void kn_progress_break(kn_progress *p)
{
    if (p->terminal && p->kind != KN_SLICE_DONE) fputc('\n', stderr);
    p->kind = KN_SLICE_DONE;
}

static void put_duration(char text[16], double seconds)
{
    const int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 16, "%d:%02d:%02d", (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    else
        snprintf(text, 16, "%d:%02d", (int)(s / 60), (int)(s % 60));
}

/* Slices per second of this stage, or seconds per slice where that is longer. */
static void put_rate(char text[24], int32_t done, double seconds)
{
    if (seconds <= 0.0)
        snprintf(text, 24, "-");
    else if (done >= seconds)
        snprintf(text, 24, "%.2f/s", done / seconds);
    else
        snprintf(text, 24, "%.2f s each", seconds / done);
}

static void draw(kn_progress *p, kn_slice slice, bool last)
{
    const int32_t done = slice.index + 1 - p->first;
    const double seconds = kn_clock_seconds(kn_clock_ns() - p->started_ns);
    char rate[24], eta[16];
    put_rate(rate, done, seconds);
    put_duration(eta, last ? seconds : seconds / done * (slice.count - slice.index - 1));
    if (!p->terminal) {
        fprintf(stderr, "%-8s %d/%d  %s  %s %s\n", kn_slice_name(slice.kind), slice.index + 1, slice.count, rate,
                last ? "took" : "ETA", eta);
        return;
    }
    char bar[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++) bar[i] = i * slice.count < (slice.index + 1) * BAR_CELLS ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    fprintf(stderr, "\r%-8s [%s] %d/%d  %s  %s %s\033[K", kn_slice_name(slice.kind), bar, slice.index + 1, slice.count,
            rate, last ? "took" : "ETA", eta);
    if (last) fputc('\n', stderr);
}

void kn_progress_slice(kn_progress *p, kn_slice slice, double seconds)
{
    const int64_t now = kn_clock_ns();
    p->seconds[slice.kind] += seconds;
    p->slices[slice.kind]++;
    if (p->kind != slice.kind) {
        p->kind = slice.kind;
        p->first = slice.index;
        p->started_ns = now - (int64_t)(seconds * 1e9);
        p->printed_ns = p->started_ns;
    }
    if (p->json) {
        printf("{\"event\":\"slice\",\"kind\":\"%s\",\"index\":%d,\"count\":%d,\"seconds\":%.6f}\n",
               kn_slice_name(slice.kind), slice.index, slice.count, seconds);
        fflush(stdout);
        return;
    }
    const bool last = slice.index + 1 == slice.count;
    if (!p->terminal && !last && now - p->printed_ns < LOG_INTERVAL_NS) return;
    p->printed_ns = now;
    draw(p, slice, last);
    if (last) p->kind = KN_SLICE_DONE;
}
