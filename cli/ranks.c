/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "cli/ranks.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "engine/comm_local.h"
#include "engine/comm_nccl.h"
#include "server/child.h"

#define JOIN_NS INT64_C(20000000000) /* a rank joins before it opens the model */

enum { ATTEMPTS = 3, ARGUMENTS = 13, ARGUMENT_BYTES = 24 };

struct kn_ranks {
    kn_ranks_params params;
    kn_cli_devices devices;
    uint64_t epoch;
    kn_comm *comm;
    kn_child children[KN_COMM_RANKS_MAX]; /* [0] is this process: none */
    kn_comm_stats past;                   /* of earlier epochs */
    bool begun;                           /* the others have the generation */
    bool alone;                           /* there is no NCCL: this device computes by itself */
};

/* ---- options ---- */

kn_status kn_cli_parse_devices(const kn_option *option, const char *text)
{
    kn_cli_devices *out = option->out;
    *out = (kn_cli_devices){.cpu = strncmp(text, "cpu:", 4) == 0};
    const bool cuda = strncmp(text, "cuda:", 5) == 0;
    const char *at = text + (out->cpu ? 4 : 5);
    bool good = out->cpu || cuda;
    for (bool more = good; more && good;) {
        char *end;
        good = *at >= '0' && *at <= '9';
        const long first = good ? strtol(at, &end, 10) : 0;
        long last = first;
        if (good && cuda && *end == '-') {
            good = end[1] >= '0' && end[1] <= '9';
            if (good) last = strtol(end + 1, &end, 10);
        }
        more = good && cuda && *end == ',';
        good = good && (more || *end == '\0') && last >= first && last < 1024;
        if (out->cpu && good) {
            good = first >= 1 && first <= KN_COMM_RANKS_MAX;
            for (long i = 0; good && i < first; i++) snprintf(out->name[out->count++], sizeof out->name[0], "cpu");
        }
        for (long i = first; cuda && good && i <= last; i++) {
            good = out->count < KN_COMM_RANKS_MAX;
            if (good) snprintf(out->name[out->count++], sizeof out->name[0], "cuda:%ld", i);
        }
        at = end + 1;
    }
    if (good && out->count > 0) return KN_OK;
    return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be cpu:N, cuda:A-B or cuda:A,B with at most %d devices",
                   option->name, text, KN_COMM_RANKS_MAX);
}

int32_t kn_ranks_threads(const kn_cli_devices *devices, int32_t given)
{
    if (given > 0 || !devices->cpu) return given;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > devices->count ? (int32_t)(cores / devices->count) : 1;
}

/* ---- this process ---- */

/* kinora rank RANK EPOCH DEVICE THREADS ISA PRECISION VAE_PRECISION KIND LAYERS MODEL; "-": none. */
static kn_status start_child(kn_ranks *r, int32_t rank, int fd)
{
    const kn_ranks_params *p = &r->params;
    char number[6][ARGUMENT_BYTES];
    const long long values[] = {rank,         (long long)r->epoch, p->threads,
                                p->precision, p->vae_precision,    p->preset_layers};
    for (int i = 0; i < 6; i++) snprintf(number[i], sizeof number[i], "%lld", values[i]);
    const char *const argv[ARGUMENTS] = {"kinora",
                                         "rank",
                                         number[0],
                                         number[1],
                                         r->devices.name[rank],
                                         number[2],
                                         p->isa ? p->isa : "-",
                                         number[3],
                                         number[4],
                                         p->preset ? "preset" : "directory",
                                         number[5],
                                         p->preset ? p->preset : p->directory,
                                         NULL};
    return kn_child_start(&r->children[rank],
                          &(kn_child_params){.argv = argv, .fds = &fd, .fd_count = 1, .keep_stderr = true});
}

static void disband(kn_ranks *r)
{
    if (r->comm) {
        const kn_comm_stats stats = kn_comm_read_stats(r->comm);
        for (int i = 0; i < KN_COMM_KINDS; i++) {
            r->past.sent[i] += stats.sent[i];
            r->past.calls[i] += stats.calls[i];
        }
        r->past.waited_ns += stats.waited_ns;
        r->past.moving_ns += stats.moving_ns;
        r->past.exposed_ns += stats.exposed_ns;
    }
    kn_model_set_group(r->params.model, NULL);
    kn_comm_destroy(&r->comm);
    for (int32_t i = 1; i < r->devices.count; i++) kn_child_kill(&r->children[i]);
    r->begun = false;
}

/* GPUs talk through NCCL, over `*comm` as its control. */
static kn_status use_nccl(kn_comm **comm)
{
    kn_comm *made = NULL;
    const kn_status st = kn_comm_nccl_create(&made, &(kn_comm_nccl_params){.control = *comm});
    if (st == KN_OK) *comm = made;
    return st;
}

static kn_status form(kn_ranks *r)
{
    kn_status st = KN_OK;
    int fd = -1, pidfds[KN_COMM_RANKS_MAX];
    disband(r);
    r->epoch++;
    KN_TRY(kn_comm_local_form(&fd, r->devices.count, r->epoch));
    for (int32_t i = 1; i < r->devices.count; i++) KN_TRY(start_child(r, i, fd));
    for (int32_t i = 0; i < r->devices.count; i++) pidfds[i] = r->children[i].pidfd;
    KN_TRY(kn_comm_local_join(&r->comm, &(kn_comm_local_params){.fd = fd,
                                                                .epoch = r->epoch,
                                                                .pidfds = pidfds,
                                                                .limits = {.join_ns = JOIN_NS},
                                                                .stream = kn_model_stream(r->params.model)}));
    if (!r->devices.cpu) st = use_nccl(&r->comm);
    if (st == KN_UNSUPPORTED) {
        kn_log(KN_LOG_WARNING, "%s; %s computes alone", kn_fail_message(), r->devices.name[0]);
        disband(r);
        r->alone = true;
        st = KN_OK;
        goto fail;
    }
    KN_TRY(st);
    const kn_group all = kn_group_of(r->comm, UINT32_MAX);
    kn_model_set_group(r->params.model, &all);
fail:
    if (fd >= 0) close(fd);
    if (st != KN_OK) disband(r);
    return st;
}

kn_status kn_ranks_start(kn_ranks **out, const kn_ranks_params *params)
{
    kn_ranks *r = kn_alloc(sizeof *r);
    if (!r) return KN_NOMEM;
    r->params = *params;
    r->devices = *params->devices;
    for (int i = 0; i < KN_COMM_RANKS_MAX; i++) r->children[i] = KN_CHILD_NONE;
    kn_status st = KN_UNAVAILABLE;
    for (int attempt = 0; attempt < ATTEMPTS && st == KN_UNAVAILABLE; attempt++) st = form(r);
    if (st != KN_OK)
        kn_ranks_stop(&r);
    else
        *out = r;
    return st;
}

void kn_ranks_stop(kn_ranks **handle)
{
    kn_ranks *r = *handle;
    if (!r) return;
    disband(r);
    kn_free(r);
    *handle = NULL;
}

static kn_status try_step(kn_ranks *r, kn_generation *generation)
{
    kn_status st = KN_OK;
    if (!r->begun) KN_TRY(kn_team_begin(generation, r->params.model));
    r->begun = true;
    KN_TRY(kn_team_step(generation, r->params.model));
fail:
    return st;
}

kn_status kn_ranks_step(kn_ranks *r, kn_generation *generation, int32_t *lost)
{
    kn_status st = KN_OK;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if (!r->comm && !r->alone) st = form(r);
        if (st == KN_OK) st = try_step(r, generation);
        if (st != KN_UNAVAILABLE) return st;
        (*lost)++;
        kn_log(KN_LOG_WARNING, "%s; the group forms again", kn_fail_message());
        disband(r);
        st = KN_OK;
    }
    return kn_fail(KN_UNAVAILABLE, "ranks were lost %d times in one slice, the last time: %s", ATTEMPTS,
                   kn_fail_message());
}

kn_comm_stats kn_ranks_stats(const kn_ranks *r)
{
    kn_comm_stats sum = r->past;
    if (!r->comm) return sum;
    const kn_comm_stats now = kn_comm_read_stats(r->comm);
    for (int i = 0; i < KN_COMM_KINDS; i++) {
        sum.sent[i] += now.sent[i];
        sum.calls[i] += now.calls[i];
    }
    sum.waited_ns += now.waited_ns;
    sum.moving_ns += now.moving_ns;
    sum.exposed_ns += now.exposed_ns;
    return sum;
}

/* ---- the others ---- */

/* The leader wrote it. */
static int32_t number_of(const char *text)
{
    return (int32_t)strtol(text, NULL, 10);
}

typedef struct follower {
    kn_device *device;
    kn_stream *stream; /* until the model brings its own */
    kn_model *model;
    kn_comm *comm;
} follower;

static kn_status follow(follower *f, char **argv)
{
    kn_status st = KN_OK;
    const bool preset = strcmp(argv[8], "preset") == 0;
    KN_TRY(kn_child_enter());
    KN_TRY(kn_device_open(&f->device, &(kn_device_params){.name = argv[3],
                                                          .threads = number_of(argv[4]),
                                                          .isa = strcmp(argv[5], "-") == 0 ? NULL : argv[5]}));
    KN_TRY(kn_stream_create(&f->stream, f->device));
    KN_TRY(kn_comm_local_join(&f->comm, &(kn_comm_local_params){.fd = KN_CHILD_FIRST_FD,
                                                                .rank = number_of(argv[1]),
                                                                .epoch = strtoull(argv[2], NULL, 10),
                                                                .stream = f->stream}));
    if (strcmp(argv[3], "cpu") != 0) KN_TRY(use_nccl(&f->comm)); /* now, as the leader does */
    KN_TRY(kn_model_open(&f->model, &(kn_model_params){.directory = preset ? NULL : argv[10],
                                                       .preset = preset ? argv[10] : NULL,
                                                       .preset_layers = number_of(argv[9]),
                                                       .device = f->device,
                                                       .precision = (kn_precision)number_of(argv[6]),
                                                       .vae_precision = (kn_precision)number_of(argv[7])}));
    kn_comm_bind(f->comm, kn_model_stream(f->model));
    const kn_group all = kn_group_of(f->comm, UINT32_MAX);
    kn_model_set_group(f->model, &all);
    KN_TRY(kn_team_follow(f->model));
fail:
    return st;
}

int kn_cli_rank(int argc, char **argv)
{
    if (argc != ARGUMENTS - 2) {
        fputs("kinora: \"rank\" is started by other commands\n", stderr);
        return kn_status_exit_code(KN_INVALID);
    }
    follower f = {0};
    const kn_status st = follow(&f, argv);
    if (st != KN_OK && st != KN_UNAVAILABLE) { /* a lost group is the leader's to report */
        char reason[128];
        snprintf(reason, sizeof reason, "rank %s: %s", argv[1], kn_fail_message());
        kn_comm_local_give_up(KN_CHILD_FIRST_FD, reason);
    }
    kn_comm_destroy(&f.comm);
    kn_model_close(&f.model);
    kn_stream_destroy(&f.stream);
    kn_device_close(&f.device);
    return kn_status_exit_code(st);
}
