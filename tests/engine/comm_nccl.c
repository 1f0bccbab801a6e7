/* SPDX-License-Identifier: Apache-2.0
 *
 * The NCCL back end over a FAKE of NCCL (tests/nccl/fake_nccl.c), because no GPU is asked of a test machine: order of
 * calls, packing, groups made ahead, and faults. NCCL's own calls and GPUs are not exercised here. */
#define _GNU_SOURCE
#include "tests/engine/ranks.h"

#include "engine/comm_nccl.h"

/* Over `ctx->comm`, which it takes. */
static kn_comm *open_nccl(rank_context *ctx)
{
    kn_comm *made = NULL;
    RANK_OK(kn_comm_nccl_create(&made, &(kn_comm_nccl_params){.control = ctx->comm, .library = KN_FAKE_NCCL}));
    ctx->comm = made;
    return made;
}

/* Every rank's square of ranks x 3 bytes a row, its column block p to rank p, twice in flight. */
static void exchange(const rank_context *ctx, kn_comm *comm)
{
    enum { ROWS = 500 };
    const int32_t n = kn_comm_ranks(comm), own = kn_comm_rank(comm);
    static char out[2][ROWS][24], in[2][KN_COMM_RANKS_MAX][ROWS][3];
    kn_comm_block send[KN_COMM_RANKS_MAX], receive[KN_COMM_RANKS_MAX];
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 3 * n; j++) out[turn][i][j] = (char)(turn * 50 + own * 7 + i * 3 + j);
        for (int32_t p = 0; p < n; p++) {
            send[p] = (kn_comm_block){&out[turn][0][3 * p], ROWS, 3, 24, p};
            receive[p] = (kn_comm_block){in[turn][p], ROWS, 3, 3, p};
        }
        RANK_OK(kn_comm_start(comm, KN_COMM_ALL_TO_ALL, send, n, receive, n));
    }
    RANK_OK(kn_comm_finish(comm));
    RANK_OK(kn_comm_confirm(comm));
    for (int turn = 0; turn < 2; turn++)
        for (int32_t p = 0; p < n; p++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < 3; j++)
                    RANK_CHECK(in[turn][p][i][j] == (char)(turn * 50 + p * 7 + i * 3 + 3 * own + j));
}

static kn_status moves(rank_context *ctx)
{
    kn_comm *comm = open_nccl(ctx);
    const kn_group all = kn_group_of(comm, UINT32_MAX);
    char data[64];
    for (int i = 0; i < 3; i++) {
        const kn_comm_stats before = kn_comm_read_stats(comm);
        exchange(ctx, comm);
        const kn_comm_stats after = kn_comm_read_stats(comm);
        RANK_CHECK((after.moving_ns > before.moving_ns) == (ctx->ranks > 1) && after.exposed_ns >= before.exposed_ns);
        RANK_OK(kn_comm_confirm(comm)); /* of a slice without transfers: what was timed counts once */
        RANK_CHECK(kn_comm_read_stats(comm).moving_ns == after.moving_ns);
    }
    memset(data, ctx->rank == ctx->ranks - 1 ? 5 : 1, sizeof data);
    RANK_OK(kn_group_broadcast(&all, ctx->ranks - 1, data, sizeof data));
    RANK_OK(kn_comm_confirm(comm));
    RANK_CHECK(data[0] == 5 && data[63] == 5);
    RANK_OK(kn_group_message(&all, 0, data, sizeof data));
    return kn_group_barrier(&all);
}

static void blocks_move(void **state)
{
    (void)state;
    for (int32_t ranks = 1; ranks <= 8; ranks *= 2) ranks_run(ranks, moves, NULL);
}

/* Even and odd ranks; the segments of their control communicators come from the test. */
static kn_status splits(rank_context *ctx)
{
    const int *fds = ctx->user;
    kn_comm *comm = open_nccl(ctx), *control = NULL, *part = NULL;
    const int color = ctx->rank % 2;
    if (ctx->rank < 4)
        RANK_OK(kn_comm_local_join(
            &control,
            &(kn_comm_local_params){
                .fd = fds[color], .rank = ctx->rank / 2, .epoch = 1, .stream = ctx->stream, .limits = ctx->limits}));
    RANK_OK(kn_comm_nccl_split(&part, comm, control, color));
    RANK_CHECK(!part == (ctx->rank == 4));
    if (part) exchange(ctx, part);
    exchange(ctx, comm);
    const kn_group all = kn_group_of(comm, UINT32_MAX);
    RANK_OK(kn_group_barrier(&all));
    kn_comm_destroy(&part);
    return KN_OK;
}

static void groups_are_made_ahead(void **state)
{
    (void)state;
    int fds[2];
    for (int i = 0; i < 2; i++) assert_int_equal(kn_comm_local_form(&fds[i], 2, 1), KN_OK);
    ranks_run(5, splits, fds);
    for (int i = 0; i < 2; i++) close(fds[i]);
}

static kn_status dies(rank_context *ctx)
{
    kn_comm *comm = open_nccl(ctx);
    const kn_group all = kn_group_of(comm, UINT32_MAX);
    exchange(ctx, comm);
    RANK_OK(kn_group_barrier(&all)); /* nobody is in the middle of it any more */
    if (ctx->rank == 1) raise(SIGKILL);
    char data[8] = {0};
    kn_status st = kn_group_broadcast(&all, 1, data, sizeof data);
    if (st == KN_OK) st = kn_comm_confirm(comm);
    RANK_CHECK(st == KN_UNAVAILABLE);
    RANK_CHECK(kn_comm_confirm(comm) == KN_UNAVAILABLE);
    return kn_group_broadcast(&all, 1, data, sizeof data);
}

static void a_lost_rank_ends_the_group(void **state)
{
    (void)state;
    rank_team team = ranks_start(3, dies, NULL, (kn_comm_params){.silence_ns = INT64_C(60000000000)});
    ranks_wait(&team);
    assert_int_equal(team.code[0], RANK_UNAVAILABLE);
    assert_int_equal(team.code[1], -SIGKILL);
    assert_int_equal(team.code[2], RANK_UNAVAILABLE);
}

/* One rank has no library: all are told, and the control communicator goes on. */
static kn_status misses(rank_context *ctx)
{
    kn_comm *made = NULL;
    kn_status st = kn_comm_nccl_create(
        &made, &(kn_comm_nccl_params){.control = ctx->comm,
                                      .library = ctx->rank == 1 ? "libnccl-that-is-not-there.so" : KN_FAKE_NCCL});
    RANK_CHECK(st == KN_UNSUPPORTED && !made);
    RANK_CHECK(strstr(kn_fail_message(), "libnccl-that-is-not-there.so"));
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    return kn_group_barrier(&all);
}

static void a_missing_library_is_told_to_all(void **state)
{
    (void)state;
    ranks_run(3, misses, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_move),
        cmocka_unit_test(groups_are_made_ahead),
        cmocka_unit_test(a_lost_rank_ends_the_group),
        cmocka_unit_test(a_missing_library_is_told_to_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
