/* SPDX-License-Identifier: Apache-2.0
 *
 * Ranks of a group as processes of a test: each runs a function with a communicator and ends with what it returns.
 * A rank ends by a kn_status: its exit code is 100 + the index below for a failure that was wanted, 0 for success. */
#ifndef KN_TESTS_ENGINE_RANKS_H
#define KN_TESTS_ENGINE_RANKS_H

#include "tests/engine/golden.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/comm_local.h"

enum { RANK_FAILED = 90, RANK_UNAVAILABLE = 91, RANK_BUG = 92 };

typedef struct rank_context {
    int fd;
    int32_t rank, ranks;
    uint64_t epoch;
    kn_comm_params limits;
    void *user;
    kn_device *device;
    kn_stream *stream;
    kn_comm *comm;
} rank_context;

/* Checks inside a rank: cmocka's own may not be used in a child. */
#define RANK_CHECK(expression)                                                                                         \
    do {                                                                                                               \
        if (!(expression)) {                                                                                           \
            fprintf(stderr, "rank %d of %d, %s:%d: %s\n", ctx->rank, ctx->ranks, __FILE__, __LINE__, #expression);     \
            _exit(RANK_FAILED);                                                                                        \
        }                                                                                                              \
    } while (0)
#define RANK_OK(call)                                                                                                  \
    do {                                                                                                               \
        const kn_status rank_status = (call);                                                                          \
        if (rank_status != KN_OK) {                                                                                    \
            fprintf(stderr, "rank %d of %d, %s:%d: %s: %s\n", ctx->rank, ctx->ranks, __FILE__, __LINE__,               \
                    kn_status_name(rank_status), kn_fail_message());                                                   \
            _exit(RANK_FAILED);                                                                                        \
        }                                                                                                              \
    } while (0)

typedef kn_status rank_main(rank_context *ctx);

static inline int rank_code(kn_status st)
{
    return st == KN_OK ? 0 : st == KN_UNAVAILABLE ? RANK_UNAVAILABLE : st == KN_BUG ? RANK_BUG : RANK_FAILED;
}

static inline void rank_run(rank_context *ctx, rank_main *run)
{
    RANK_OK(kn_device_open(&ctx->device, &(kn_device_params){.name = "cpu", .threads = 1}));
    RANK_OK(kn_stream_create(&ctx->stream, ctx->device));
    kn_status st = kn_comm_local_join(
        &ctx->comm,
        &(kn_comm_local_params){
            .fd = ctx->fd, .rank = ctx->rank, .epoch = ctx->epoch, .stream = ctx->stream, .limits = ctx->limits});
    if (st == KN_OK) st = run(ctx);
    if (st != KN_OK && st != KN_UNAVAILABLE && st != KN_BUG)
        fprintf(stderr, "rank %d of %d: %s: %s\n", ctx->rank, ctx->ranks, kn_status_name(st), kn_fail_message());
    kn_comm_destroy(&ctx->comm);
    kn_stream_destroy(&ctx->stream);
    kn_device_close(&ctx->device);
    _exit(rank_code(st));
}

typedef struct rank_team {
    int fd;
    int32_t ranks;
    pid_t process[KN_COMM_RANKS_MAX];
    int code[KN_COMM_RANKS_MAX]; /* exit code; -signal */
} rank_team;

/* The test must not have threads of its own when it calls this. */
static inline rank_team ranks_start(int32_t ranks, rank_main *run, void *user, kn_comm_params limits)
{
    rank_team team = {.ranks = ranks};
    assert_int_equal(kn_comm_local_form(&team.fd, ranks, 1), KN_OK);
    fflush(NULL);
    for (int32_t r = 0; r < ranks; r++) {
        team.process[r] = fork();
        assert_true(team.process[r] >= 0);
        if (team.process[r] > 0) continue;
        alarm(300); /* a test that hangs must not leave processes behind */
        rank_run(&(rank_context){.fd = team.fd, .rank = r, .ranks = ranks, .epoch = 1, .limits = limits, .user = user},
                 run);
    }
    return team;
}

static inline void ranks_wait_one(rank_team *team, int32_t rank)
{
    int status;
    assert_int_equal(waitpid(team->process[rank], &status, 0), team->process[rank]);
    team->code[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    team->process[rank] = 0;
}

static inline void ranks_wait(rank_team *team)
{
    for (int32_t r = 0; r < team->ranks; r++)
        if (team->process[r] > 0) ranks_wait_one(team, r);
    close(team->fd);
}

/* Runs a team whose every rank must succeed. */
static inline void ranks_run(int32_t ranks, rank_main *run, void *user)
{
    rank_team team = ranks_start(ranks, run, user, (kn_comm_params){.silence_ns = INT64_C(60000000000)});
    ranks_wait(&team);
    for (int32_t r = 0; r < ranks; r++)
        if (team.code[r] != 0) fail_msg("rank %d of %d ended with %d", r, ranks, team.code[r]);
}

#endif
