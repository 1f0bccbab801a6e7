/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora simulate: the scheduler in a simulated world (scheduler/simulation.h), one policy or all on the same trace. */
#define _POSIX_C_SOURCE 200809L
#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/table.h"
#include "scheduler/simulation.h"

enum {
    DEVICES = 8,
    DOMAIN = 8,
    JOBS = 2000,
    SCALES_MAX = 8,
    DEGREES_MAX = 5,
    BENCH_QUEUED = 10000,
    BENCH_DECISIONS = 2000000,
    BENCH_DECISIONS_MAX = 1000000000,
};

typedef struct settings {
    kn_simulate_params params;
    bool policies[KN_POLICIES];
    double scales[SCALES_MAX];
    int32_t scale_count;
    int32_t degrees[DEGREES_MAX]; /* 0: chosen by the policy */
    int32_t degree_count;
    bool json, bench;
    int32_t queued, decisions;
    double ageing; /* seconds; 0: the scheduler's default */
} settings;

/* ---- options ---- */

static kn_status parse_mix(const kn_option *option, const char *text)
{
    for (int i = 0; i < KN_MIXES; i++) {
        if (strcmp(text, kn_mix_name((kn_mix)i)) != 0) continue;
        *(kn_mix *)option->out = (kn_mix)i;
        return KN_OK;
    }
    return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be tetriserve, genserve, bursty, uniform or targets",
                   option->name, text);
}

static kn_status parse_policy(const kn_option *option, const char *text)
{
    bool *policies = option->out;
    const bool all = strcmp(text, "all") == 0;
    bool any = false;
    for (int i = 0; i < KN_POLICIES; i++) {
        policies[i] = all || strcmp(text, kn_policy_name((kn_policy_kind)i)) == 0;
        any = any || policies[i];
    }
    if (any) return KN_OK;
    return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be kinora, fifo, sjf, edf, srpt, edf-step or all", option->name,
                   text);
}

static kn_status parse_plant(const kn_option *option, const char *text)
{
    for (int i = 0; i < KN_PLANTS; i++) {
        if (strcmp(text, kn_plant_name((kn_plant)i)) != 0) continue;
        *(kn_plant *)option->out = (kn_plant)i;
        return KN_OK;
    }
    return kn_fail(KN_INVALID,
                   "--%s is \"%s\"; it must be none, double-booking, lost-job, overfill, skipped-text, repeated-slice, "
                   "starvation, idleness or stranger",
                   option->name, text);
}

/* "1.0,1.5" */
static kn_status parse_scales(const kn_option *option, const char *text)
{
    settings *s = option->out;
    char part[32];
    s->scale_count = 0;
    for (const char *at = text;; at++) {
        const size_t bytes = strcspn(at, ",");
        if (s->scale_count == SCALES_MAX)
            return kn_fail(KN_INVALID, "--%s has more than %d values", option->name, SCALES_MAX);
        if (bytes >= sizeof part)
            return kn_fail(KN_INVALID, "--%s is \"%s\"; not a list of numbers", option->name, text);
        memcpy(part, at, bytes);
        part[bytes] = '\0';
        const kn_option one = {.name = option->name, .out = &s->scales[s->scale_count++]};
        const kn_status st = kn_cli_double(&one, part);
        if (st != KN_OK) return st;
        at += bytes;
        if (*at == '\0') return KN_OK;
    }
}

/* "chosen,1,8" */
static kn_status parse_degrees(const kn_option *option, const char *text)
{
    static const char *const names[DEGREES_MAX] = {"chosen", "1", "2", "4", "8"};
    settings *s = option->out;
    s->degree_count = 0;
    for (const char *at = text;; at++) {
        const size_t bytes = strcspn(at, ",");
        int i = 0;
        while (i < DEGREES_MAX && (strlen(names[i]) != bytes || memcmp(names[i], at, bytes) != 0)) i++;
        if (i == DEGREES_MAX || s->degree_count == DEGREES_MAX)
            return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be some of chosen,1,2,4,8", option->name, text);
        s->degrees[s->degree_count++] = i == 0 ? 0 : 1 << (i - 1);
        at += bytes;
        if (*at == '\0') return KN_OK;
    }
}

static kn_status parse_settings(settings *s, int argc, char **argv)
{
    kn_simulate_params *p = &s->params;
    const kn_option options[] = {
        {"mix", 0, "NAME", "tetriserve (default), genserve, bursty, uniform or targets", parse_mix, &p->mix, NULL},
        {"policy", 'p', "NAME", "kinora, fifo, sjf, edf, srpt, edf-step; default all", parse_policy, s->policies, NULL},
        {"seed", 0, "N", "of the trace and the world; default 1", kn_cli_uint64, &p->seed, NULL},
        {"devices", 0, "N", "simulated devices; default 8", kn_cli_int32, &p->devices, NULL},
        {"domain", 0, "N", "devices that can form groups together; default 0: none, 8 for targets", kn_cli_int32,
         &p->domain, NULL},
        {"degree", 0, "N,...", "with --domain: chosen (kinora only), 1, 2, 4, 8 for all slices; default all",
         parse_degrees, s, NULL},
        {"jobs", 'n', "N", "requests in the trace; default 2000", kn_cli_int32, &p->jobs, NULL},
        {"load", 0, "X", "work that arrives / what the devices can do; default 0.9", kn_cli_double, &p->load, NULL},
        {"slo-scale", 0, "X,...", "deadlines' multiples; default 1.0,1.1,1.2,1.5", parse_scales, s, NULL},
        {"ageing", 0, "S", "seconds without service until a job is aged; default 600", kn_cli_double, &s->ageing, NULL},
        {"failures", 0, "S", "mean seconds between failures of a device; default none", kn_cli_double, &p->failure_mean,
         NULL},
        {"cancelled", 0, "X", "part of the requests that are cancelled; default 0", kn_cli_double, &p->cancelled, NULL},
        {"admission", 0, NULL, "refuse deadlines that cannot be promised", kn_cli_switch, &p->admission, NULL},
        {"tight-memory", 0, NULL, "devices hold few jobs at a time", kn_cli_switch, &p->tight_memory, NULL},
        {"plant", 0, "BUG", "plant a bug the checker must find: lost-job, overfill, ...", parse_plant, &p->plant, NULL},
        {"bench", 0, NULL, "time decisions with a long queue instead", kn_cli_switch, &s->bench, NULL},
        {"queued", 0, "N", "jobs that wait meanwhile; default 10000", kn_cli_int32, &s->queued, NULL},
        {"decisions", 0, "N", "decisions to time; default 2000000", kn_cli_int32, &s->decisions, NULL},
        {"json", 0, NULL, "one JSON document instead of the table", kn_cli_switch, &s->json, NULL},
    };
    kn_status st = KN_OK;
    KN_TRY(kn_cli_parse(argc, argv, options, sizeof options / sizeof *options, "simulate [OPTIONS]", NULL, 0, NULL));
    if (!(s->ageing >= 0 && s->ageing <= 1e8))
        return kn_fail(KN_INVALID, "--ageing is %g; it must be 0 to 1e8 seconds", s->ageing);
    if (s->decisions > BENCH_DECISIONS_MAX)
        return kn_fail(KN_INVALID, "--decisions is %d; at most %d", s->decisions, BENCH_DECISIONS_MAX);
    p->ageing_ns = (int64_t)(s->ageing * 1e9);
    if (p->domain < 0) p->domain = p->mix == KN_MIX_TARGETS ? DOMAIN : 0;
fail:
    return st;
}

/* ---- the bench ---- */

static kn_status run_bench(const settings *s)
{
    kn_status st = KN_OK;
    kn_simulate_bench b;
    KN_TRY(kn_simulate_measure(s->params.devices, s->queued, s->decisions, kn_clock_ns, &b));
    const double each = (double)b.total_ns / (double)b.decisions;
    if (s->json)
        printf("{\"devices\":%d,\"queued\":%d,\"decisions\":%lld,\"decisions_per_second\":%.0f,\"p50_ns\":%lld,"
               "\"p999_ns\":%lld,\"longest_ns\":%lld,\"admission_ns\":%.0f,\"estimate_ns\":%.0f}\n",
               b.devices, b.queued, (long long)b.decisions, 1e9 / each, (long long)b.p50_ns, (long long)b.p999_ns,
               (long long)b.longest_ns, b.admission_ns, b.estimate_ns);
    else
        printf(
            "%d devices, %d jobs queued, %lld decisions: %.2f M/s (with the event before each: mean %.0f ns, p50 %lld "
            "ns, p99.9 %lld ns, longest %.0f us); admission %.0f ns, estimate %.0f ns\n",
            b.devices, b.queued, (long long)b.decisions, 1e3 / each, each, (long long)b.p50_ns, (long long)b.p999_ns,
            (double)b.longest_ns * 1e-3, b.admission_ns, b.estimate_ns);
fail:
    return st;
}

/* ---- results ---- */

typedef struct report {
    kn_table table;
    json_t *runs; /* NULL: a table is wanted */
    double bound; /* of the current scale; 0: not computed */
    int64_t violations;
    char violation[KN_SCHEDULER_REASON_BYTES];
} report;

static json_t *kinds_json(const kn_simulate_result *r)
{
    json_t *kinds = json_object();
    for (int32_t i = 0; i < r->kind_count; i++)
        json_object_set_new(kinds, r->kinds[i].name,
                            json_pack("{s:i,s:i}", "deadlines", r->kinds[i].timed, "on_time", r->kinds[i].on_time));
    return kinds;
}

static void add_json(report *out, const kn_simulate_params *p, const kn_simulate_result *r, double rate)
{
    json_t *run = json_pack("{s:s,s:f,s:f,s:f,s:i,s:i,s:i,s:i,s:i,s:i,s:o}", "policy", kn_policy_name(p->policy),
                            "slo_scale", p->slo_scale, "attainment", r->attainment, "bound", out->bound, "jobs",
                            r->jobs, "finished", r->finished, "cancelled", r->cancelled, "refused", r->refused,
                            "deadlines", r->timed, "on_time", r->on_time, "kinds", kinds_json(r));
    json_t *more =
        json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "p50_s", r->p50, "p95_s", r->p95, "p99_s", r->p99,
                  "mean_s", r->mean, "utilisation", r->utilisation, "jain", r->jain, "packing", r->packing,
                  "longest_wait_s", r->longest_wait, "span_s", r->span, "cost_error", r->cost_error);
    json_t *counts =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:I,s:s}", "decisions", (json_int_t)r->decisions, "preemptions",
                  (json_int_t)r->preemptions, "releases", (json_int_t)r->releases, "moves", (json_int_t)r->moves,
                  "demotions", (json_int_t)r->demotions, "failures", (json_int_t)r->failures, "decisions_per_second",
                  rate, "violations", (json_int_t)r->violations, "violation", r->violation);
    json_t *groups = json_pack("{s:i,s:f,s:I,s:I,s:I}", "degree_fixed", p->degree_fixed, "degree_mean", r->degree,
                               "decide_p50_ns", (json_int_t)r->decide_p50_ns, "decide_p99_ns",
                               (json_int_t)r->decide_p99_ns, "decide_max_ns", (json_int_t)r->decide_max_ns);
    char fingerprint[17];
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)r->fingerprint);
    json_object_set_new(run, "fingerprint", json_string(fingerprint));
    json_object_update(run, more);
    json_object_update(run, counts);
    json_object_update(run, groups);
    json_decref(groups);
    json_decref(more);
    json_decref(counts);
    json_array_append_new(out->runs, run);
}

static void add_row(report *out, const kn_simulate_params *p, const kn_simulate_result *r)
{
    kn_table *t = &out->table;
    kn_table_cell(t, "%.2f", p->slo_scale);
    kn_table_cell(t, "%s", kn_policy_name(p->policy));
    if (p->domain > 0 && p->degree_fixed == 0)
        kn_table_cell(t, "%.2f", r->degree);
    else
        kn_table_cell(t, "%d fixed", p->degree_fixed > 0 ? p->degree_fixed : 1);
    kn_table_cell(t, "%.1f %%", 100 * r->attainment);
    if (out->bound > 0)
        kn_table_cell(t, "%.1f %%", 100 * out->bound);
    else
        kn_table_cell(t, "-");
    kn_table_cell(t, "%.1f", r->p50);
    kn_table_cell(t, "%.1f", r->p95);
    kn_table_cell(t, "%.1f", r->p99);
    kn_table_cell(t, "%.1f %%", 100 * r->utilisation);
    kn_table_cell(t, "%.3f", r->jain);
    kn_table_cell(t, "%llu", (unsigned long long)r->preemptions);
    kn_table_cell(t, "%.1f", (double)r->decide_p99_ns * 1e-3);
}

static kn_status run_one(const settings *s, kn_simulate_params *p, report *out)
{
    kn_status st = KN_OK;
    kn_simulate_result r;
    const int64_t start = kn_clock_ns();
    KN_TRY(kn_simulate_run(p, &r));
    const double rate = (double)r.decisions / kn_clock_seconds(kn_clock_ns() - start);
    if (r.violations > 0 && out->violations == 0) memcpy(out->violation, r.violation, sizeof out->violation);
    out->violations += r.violations;
    if (s->json)
        add_json(out, p, &r, rate);
    else
        add_row(out, p, &r);
fail:
    return st;
}

/* Once, or where there can be groups, with each of the degrees asked for. */
static kn_status run_degrees(const settings *s, kn_simulate_params *p, report *out)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < s->degree_count; i++) {
        p->degree_fixed = p->domain > 0 ? s->degrees[i] : 0;
        if (p->domain == 0 && i > 0) break;
        if (p->domain > 0 && (p->degree_fixed > p->domain || p->degree_fixed > p->devices)) continue;
        if (p->domain > 0 && p->degree_fixed == 0 && p->policy != KN_POLICY_KINORA) continue; /* they choose none */
        KN_TRY(run_one(s, p, out));
    }
fail:
    return st;
}

static void put_head(const settings *s, kn_table *table)
{
    static const char *const head[] = {"scale", "policy", "devices", "on time", "bound",     "p50 s",
                                       "p95 s", "p99 s",  "busy",    "Jain",    "preempted", "decide p99 us"};
    printf("mix %s, %d requests, %d devices, load %.2f, seed %llu\n", kn_mix_name(s->params.mix), s->params.jobs,
           s->params.devices, s->params.load, (unsigned long long)s->params.seed);
    if (s->params.domain > 0) printf("groups among %d devices each\n", s->params.domain);
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) kn_table_cell(table, "%s", head[i]);
}

static kn_status run_all(const settings *s)
{
    kn_status st = KN_OK, ended = KN_OK;
    report out = {.table = kn_table_start("rlrrrrrrrrrr"), .runs = s->json ? json_array() : NULL};
    kn_simulate_params p = s->params;
    if (!s->json) put_head(s, &out.table);
    for (int32_t k = 0; k < s->scale_count; k++) {
        p.slo_scale = s->scales[k];
        out.bound = 0;
        if (p.jobs <= KN_SIMULATE_BOUND_MAX) KN_TRY(kn_simulate_bound(&p, &out.bound));
        for (int i = 0; i < KN_POLICIES; i++) {
            if (!s->policies[i]) continue;
            p.policy = (kn_policy_kind)i;
            KN_TRY(run_degrees(s, &p, &out));
        }
    }
    if (s->json) {
        json_t *root =
            json_pack("{s:s,s:I,s:i,s:i,s:i,s:f,s:O}", "mix", kn_mix_name(p.mix), "seed", (json_int_t)p.seed, "devices",
                      p.devices, "domain", p.domain, "jobs", p.jobs, "load", p.load, "runs", out.runs);
        if (!root || json_dumpf(root, stdout, JSON_INDENT(1)) != 0)
            st = kn_fail(KN_IO, "cannot write the JSON document");
        json_decref(root);
        putchar('\n');
    }
fail:
    ended = s->json ? KN_OK : kn_table_finish(&out.table, stdout);
    json_decref(out.runs);
    if (st == KN_OK) st = ended;
    if (st == KN_OK && out.violations > 0)
        st = kn_fail(KN_BUG, "%lld violations of the scheduler's properties; the first at %s",
                     (long long)out.violations, out.violation);
    return st;
}

int kn_cli_simulate(int argc, char **argv)
{
    settings s = {
        .params = {.seed = 1, .devices = DEVICES, .domain = -1, .jobs = JOBS, .load = 0.9, .clock = kn_clock_ns},
        .policies = {true, true, true, true, true, true},
        .scales = {1.0, 1.1, 1.2, 1.5},
        .scale_count = 4,
        .degrees = {0, 1, 2, 4, 8},
        .degree_count = DEGREES_MAX,
        .queued = BENCH_QUEUED,
        .decisions = BENCH_DECISIONS};
    kn_status st = parse_settings(&s, argc, argv);
    if (st == KN_CANCELLED) return 0; /* --help */
    if (st == KN_OK) st = s.bench ? run_bench(&s) : run_all(&s);
    return kn_cli_end(st, s.json);
}
