/* SPDX-License-Identifier: Apache-2.0
 *
 * Rows: one table line each as soon as they are known, and one object each in the
 * JSON document at the end. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "benchmarks/bench.h"

/* Columns are fixed, as a row is printed before the next is known. */
static void print_head(void)
{
    printf("| %-8s | %-36s | %-8s | %10s | %13s | %8s | %s\n", "part", "test", "type", "seconds", "rate", "of bound",
           "note |");
    puts("|----------|--------------------------------------|----------|-----------:|--------------:|---------:|------"
         "|");
}

/* The least a run can take here, and of what; 0 where nothing bounds it. */
static double bound_of(const kn_bench *bench, const kn_bench_row *row, const char **limit)
{
    if (row->seconds <= 0.0 || (row->flop <= 0.0 && row->bytes <= 0.0)) return 0.0;
    return kn_roofline_seconds(&bench->bound, row->flop, row->bytes, row->bf16, limit);
}

static void print_row(const kn_bench *bench, const kn_bench_row *row)
{
    char seconds[16] = "", rate[24] = "", share[16] = "";
    const char *limit = "";
    const double bound = bound_of(bench, row, &limit), each = row->seconds > 0.0 ? row->seconds : 1.0;
    if (row->seconds > 0.0) snprintf(seconds, sizeof seconds, row->seconds < 10.0 ? "%.4f" : "%.2f", row->seconds);
    if (row->flop > 0.0 && strcmp(limit, "memory") != 0)
        snprintf(rate, sizeof rate, "%.1f GFLOP/s", row->flop / each * 1e-9);
    else if (row->bytes > 0.0)
        snprintf(rate, sizeof rate, "%.2f GB/s", row->bytes / each * 1e-9);
    if (bound > 0.0) snprintf(share, sizeof share, "%.1f %%", 100.0 * bound / row->seconds);
    printf("| %-8s | %-36s | %-8s | %10s | %13s | %8s | %s%s|\n", kn_bench_part_name(bench->part), row->test,
           row->type ? row->type : "", seconds, rate, share, row->note, row->note[0] ? " " : "");
    fflush(stdout);
}

static json_t *json_row(const kn_bench *bench, const kn_bench_row *row)
{
    const char *limit = "";
    const double bound = bound_of(bench, row, &limit), each = row->seconds > 0.0 ? row->seconds : 1.0;
    json_t *out = json_pack("{s:s, s:s, s:f}", "part", kn_bench_part_name(bench->part), "test", row->test,
                            "load_average", bench->load);
    if (row->type) json_object_set_new(out, "type", json_string(row->type));
    if (row->seconds > 0.0) json_object_set_new(out, "seconds", json_real(row->seconds));
    if (row->repeat > 0) {
        json_object_set_new(out, "best_seconds", json_real(row->best_seconds));
        json_object_set_new(out, "repeat", json_integer(row->repeat));
    }
    if (row->flop > 0.0) {
        if (row->seconds > 0.0) json_object_set_new(out, "flop", json_real(row->flop));
        json_object_set_new(out, "flop_per_second", json_real(row->flop / each));
    }
    if (row->bytes > 0.0) {
        if (row->seconds > 0.0) json_object_set_new(out, "bytes", json_real(row->bytes));
        json_object_set_new(out, "bytes_per_second", json_real(row->bytes / each));
    }
    if (bound > 0.0) {
        json_object_set_new(out, "bound", json_string(limit));
        json_object_set_new(out, "bound_seconds", json_real(bound));
        json_object_set_new(out, "of_bound", json_real(bound / row->seconds));
    }
    if (row->note[0]) json_object_set_new(out, "note", json_string(row->note));
    if (row->extra) json_object_update(out, row->extra);
    return out;
}

kn_status kn_bench_put(kn_bench *bench, kn_bench_row *row)
{
    if (!bench->settings->json) {
        if (!bench->headed) print_head();
        bench->headed = true;
        print_row(bench, row);
    }
    const int failed = json_array_append_new(bench->results, json_row(bench, row));
    json_decref(row->extra);
    row->extra = NULL;
    return failed ? kn_fail(KN_NOMEM, "out of memory for the results") : KN_OK;
}

kn_status kn_bench_write(const kn_bench *bench)
{
    const kn_bench_settings *s = bench->settings;
    kn_status st = KN_OK;
    char now[32];
    struct tm utc;
    const time_t seconds = time(NULL);
    strftime(now, sizeof now, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &utc));
    json_t *document = json_pack("{s:s, s:s, s:s, s:s, s:i, s:O, s:O}", "format", "kinora.bench.1", "version",
                                 KN_VERSION, "time", now, "model", s->model ? s->model : s->preset, "repeat", s->repeat,
                                 "machine", bench->machine, "results", bench->results);
    if (!document) return kn_fail(KN_NOMEM, "out of memory for the results");
    const size_t flags = JSON_INDENT(1) | JSON_REAL_PRECISION(9);
    if (s->json && (json_dumpf(document, stdout, flags) != 0 || putchar('\n') == EOF))
        st = kn_fail(KN_IO, "cannot write the results to standard output");
    if (st == KN_OK && s->out && json_dump_file(document, s->out, flags) != 0)
        st = kn_fail(KN_IO, "%s: cannot write the results", s->out);
    json_decref(document);
    return st;
}
