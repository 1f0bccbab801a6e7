/* SPDX-License-Identifier: Apache-2.0
 *
 * checkops [--device cpu|simt|cuda:N] [--seed N] [--op NAME] [--isa NAME] [--verbose] [--list]
 * checkops --bench [--op NAME] [--isa NAME] [--threads N] [--device cuda:N] [--json] */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/checkops/bench.h"
#include "tests/checkops/checkops.h"

#define KN_OP(name, summary)                                                                                           \
    kn_status check_call_##name(const kn_ops *ops, kn_stream *stream, const void *args)                                \
    {                                                                                                                  \
        return ops->name(stream, args);                                                                                \
    }
#include "kernels/ops.inc"
#undef KN_OP

typedef struct operator_entry {
    const char *name;
    const char *summary;
    void (*check)(check *c);
    void (*bench)(bench *b);
} operator_entry;

static const operator_entry operators[] = {
#define KN_OP(name, summary) {#name, summary, check_##name, bench_##name},
#include "kernels/ops.inc"
#undef KN_OP
};

/* ---- a crash names its configuration ---- */

/* A signal handler can be given nothing, so this one text is global. */
static char running[512];

void check_note(const char *op, const char *tier, int threads, const char *config)
{
    snprintf(running, sizeof running, "\nCRASH in %s.%s, %d thread(s): %s\n", op, tier, threads, config);
}

static void report_crash(int signal_number)
{
    ssize_t ignored = write(STDOUT_FILENO, running, strlen(running));
    (void)ignored;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void catch_crashes(void)
{
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
    for (int i = 0; i < CHECK_COUNT(signals); i++) signal(signals[i], report_crash);
}

/* ---- tiers ---- */

/* Which tier's code an operator runs on each tier. */
static void list_operators(void)
{
    kn_ops tables[KN_ISA_COUNT];
    printf("%-16s", "operator");
    for (int isa = 0; isa < KN_ISA_COUNT; isa++) {
        kn_ops_fill(&tables[isa], (kn_isa)isa);
        printf(" %-11s", kn_isa_name((kn_isa)isa));
    }
    printf("\n");
#define KN_OP(op, summary)                                                                                             \
    {                                                                                                                  \
        int owner = 0;                                                                                                 \
        printf("%-16s", #op);                                                                                          \
        for (int isa = 0; isa < KN_ISA_COUNT; isa++) {                                                                 \
            if (isa > 0 && tables[isa].op != tables[isa - 1].op) owner = isa;                                          \
            printf(" %-11s", kn_isa_name((kn_isa)owner));                                                              \
        }                                                                                                              \
        printf(" %s\n", summary);                                                                                      \
    }
#include "kernels/ops.inc"
#undef KN_OP
    printf("this processor: %s\n", kn_isa_name(kn_isa_detect()));
}

/* ---- options ---- */

typedef struct options {
    const char *op;
    kn_isa isa;         /* of the CPU; KN_ISA_COUNT: all */
    const char *tier;   /* the same as it was given; NULL: all */
    const char *device; /* NULL: the CPU */
    uint64_t seed;
    int threads; /* bench; 0: all cores */
    bool list, bench, json, verbose;
} options;

static int usage(void)
{
    fprintf(stderr,
            "usage: checkops [--device cpu|simt|cuda:N] [--seed N] [--op NAME] [--isa NAME] [--verbose] [--list]\n"
            "       checkops --bench [--op NAME] [--isa NAME] [--threads N] [--device cuda:N] [--json]\n");
    return 2;
}

static bool known_operator(const char *name)
{
    for (int i = 0; i < CHECK_COUNT(operators); i++)
        if (strcmp(operators[i].name, name) == 0) return true;
    return false;
}

static bool known_tier(const char *name)
{
    return kn_isa_parse(name) != KN_ISA_COUNT || strcmp(name, "cuda") == 0 || strcmp(name, "sm90") == 0;
}

static bool known_device(const char *name)
{
    return strcmp(name, "cpu") == 0 || strcmp(name, "simt") == 0 || strncmp(name, "cuda", 4) == 0;
}

static bool parse(options *o, int argc, char **argv)
{
    *o = (options){.isa = KN_ISA_COUNT, .seed = 1};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--list") == 0) {
            o->list = true;
        } else if (strcmp(argv[i], "--bench") == 0) {
            o->bench = true;
        } else if (strcmp(argv[i], "--json") == 0) {
            o->json = true;
        } else if (strcmp(argv[i], "--verbose") == 0) {
            o->verbose = true;
        } else if (strcmp(argv[i], "--seed") == 0 && value) {
            o->seed = strtoull(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--threads") == 0 && value) {
            o->threads = (int)strtol(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--device") == 0 && value && known_device(value)) {
            o->device = argv[++i];
        } else if (strcmp(argv[i], "--op") == 0 && value && known_operator(value)) {
            o->op = argv[++i];
        } else if (strcmp(argv[i], "--isa") == 0 && value && known_tier(value)) {
            o->tier = argv[++i];
            o->isa = kn_isa_parse(o->tier);
        } else {
            fprintf(stderr, "checkops: cannot use \"%s%s%s\"\n", argv[i], value ? " " : "", value ? value : "");
            return false;
        }
    }
    return true;
}

static bool on_gpu(const options *o)
{
    return o->device && strncmp(o->device, "cuda", 4) == 0;
}

static int run_checks(const options *o)
{
    static check state; /* large; one run per process */
    check *c = &state;
    *c = (check){.only_op = o->op, .only_tier = o->tier, .seed = o->seed, .verbose = o->verbose};
    c->simt = o->device && strcmp(o->device, "simt") == 0;
    c->gpu = on_gpu(o) ? o->device : NULL;
    if (check_open_tiers(c) != KN_OK) {
        fprintf(stderr, "checkops: %s\n", kn_fail_message());
        return 2;
    }
    printf("seed %llu, tiers up to %s\n", (unsigned long long)c->seed, c->tiers[c->tier_count - 1].name);
    for (int i = 0; i < CHECK_COUNT(operators); i++) {
        if (o->op && strcmp(o->op, operators[i].name) != 0) continue;
        int passed = c->passed, failed = c->failed;
        int64_t start = kn_clock_ns();
        c->op = operators[i].name;
        c->config_index = 0;
        c->spent = 0;
        operators[i].check(c);
        printf("%-16s %5d passed %5d failed  %6.2f s, of which reference %.2f s\n", c->op, c->passed - passed,
               c->failed - failed, kn_clock_seconds(kn_clock_ns() - start), c->spent);
        fflush(stdout);
    }
    check_begin(c, "end");
    check_close_tiers(c);
    printf("%d passed, %d failed\n", c->passed, c->failed);
    return c->failed == 0 ? 0 : 1;
}

static int run_benches(const options *o)
{
    bench b;
    kn_status st = on_gpu(o) ? bench_open_gpu(&b, o->device, o->json) : bench_open(&b, o->isa, o->threads, o->json);
    for (int i = 0; st == KN_OK && i < CHECK_COUNT(operators); i++)
        if (!o->op || strcmp(o->op, operators[i].name) == 0) {
            b.op = operators[i].name;
            operators[i].bench(&b);
            st = b.status;
        }
    bench_close(&b);
    if (st != KN_OK) fprintf(stderr, "checkops: %s\n", kn_fail_message());
    return st == KN_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    options o;
    if (!parse(&o, argc, argv)) return usage();
    if (o.list) {
        list_operators();
        return 0;
    }
    catch_crashes();
    return o.bench ? run_benches(&o) : run_checks(&o);
}
