/* SPDX-License-Identifier: Apache-2.0
 *
 * Collectives between processes: right for every size and number of ranks, and back within their limits when a rank
 * dies, stops or stays silent at any point of a call. A rank is made to die or stop in the middle of a call by giving
 * it a block whose memory ends there. */
#define _GNU_SOURCE
#include "tests/engine/ranks.h"

#include <sys/mman.h>
#include <time.h>

static unsigned char byte_of(int32_t from, int32_t to, int64_t i)
{
    return (unsigned char)((uint64_t)(from * 31 + to * 7 + i * 13 + (i >> 8)) * 2654435761u >> 5);
}

static char *buffer(rank_context *ctx, size_t bytes)
{
    char *data = calloc(bytes + 1, 1);
    RANK_CHECK(data);
    return data;
}

/* ---- right results ---- */

/* Rank r sends every peer p rows of 10 + r + p bytes out of wider ones, as many as `user` says. */
static kn_status all_to_all(rank_context *ctx)
{
    const int64_t rows = *(const int64_t *)ctx->user;
    kn_comm_block send[KN_COMM_RANKS_MAX], receive[KN_COMM_RANKS_MAX];
    const int32_t own = ctx->rank;
    for (int32_t p = 0; p < ctx->ranks; p++) {
        const size_t bytes = (size_t)(10 + own + p), stride = bytes + 5;
        char *out = buffer(ctx, (size_t)rows * stride), *in = buffer(ctx, (size_t)rows * (stride + 3));
        for (int64_t i = 0; i < rows; i++)
            for (size_t j = 0; j < bytes; j++)
                out[(size_t)i * stride + j] = (char)byte_of(own, p, i * (int64_t)bytes + (int64_t)j);
        send[p] = (kn_comm_block){out, rows, bytes, stride, p};
        receive[p] = (kn_comm_block){in, rows, bytes, stride + 3, p};
    }
    RANK_OK(kn_comm_start(ctx->comm, KN_COMM_ALL_TO_ALL, send, ctx->ranks, receive, ctx->ranks));
    RANK_OK(kn_comm_finish(ctx->comm));
    uint64_t expected = 0;
    for (int32_t p = 0; p < ctx->ranks; p++) {
        const size_t bytes = receive[p].row_bytes, stride = receive[p].stride;
        if (p != own) expected += (uint64_t)rows * bytes;
        for (int64_t i = 0; i < rows; i++)
            for (size_t j = 0; j < stride; j++) {
                const char got = ((char *)receive[p].data)[(size_t)i * stride + j];
                RANK_CHECK(got == (j < bytes ? (char)byte_of(p, own, i * (int64_t)bytes + (int64_t)j) : 0));
            }
        free(send[p].data);
        free(receive[p].data);
    }
    RANK_CHECK(kn_comm_read_stats(ctx->comm).sent[KN_COMM_ALL_TO_ALL] == expected);
    return KN_OK;
}

static void blocks_of_any_size_arrive(void **state)
{
    (void)state;
    static const int64_t rows[] = {0, 1, 7, 5000, 60000}; /* the last two do not fit a ring */
    for (int32_t ranks = 1; ranks <= KN_COMM_RANKS_MAX; ranks++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
            if (ranks <= 4 || rows[i] < 10000) ranks_run(ranks, all_to_all, (void *)(uintptr_t)&rows[i]);
}

static kn_status collectives(rank_context *ctx)
{
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    RANK_CHECK(all.size == ctx->ranks && all.index == ctx->rank);
    for (int32_t root = 0; root < ctx->ranks; root++) {
        char data[1000], host[3];
        memset(data, ctx->rank == root ? root + 1 : 99, sizeof data);
        memset(host, ctx->rank == root ? root + 1 : 99, sizeof host);
        RANK_OK(kn_group_broadcast(&all, root, data, sizeof data));
        RANK_OK(kn_group_message(&all, root, host, sizeof host));
        for (size_t i = 0; i < sizeof data; i++) RANK_CHECK(data[i] == root + 1);
        RANK_CHECK(host[0] == root + 1 && host[2] == root + 1);
        RANK_OK(kn_group_barrier(&all));
    }
    for (int64_t rows = 0; rows < 20; rows++) {
        char data[20][3];
        memset(data, 99, sizeof data);
        const kn_share own = kn_share_of(rows, ctx->ranks, ctx->rank);
        for (int64_t r = own.first; r < own.first + own.count; r++) memset(data[r], (int)r, 3);
        RANK_OK(kn_group_all_gather(&all, data, rows, 3));
        for (int64_t r = 0; r < 20; r++) RANK_CHECK(data[r][0] == (r < rows ? r : 99) && data[r][2] == data[r][0]);
    }
    char rows[4][5];
    for (int i = 0; i < 4; i++) memset(rows[i], i == 1 || i == 2 ? 10 * ctx->rank + i : 99, 5);
    RANK_OK(kn_group_halo(
        &all, &(kn_halo){.first = rows[1], .last = rows[2], .before = rows[0], .after = rows[3], .bytes = 5}));
    RANK_CHECK(rows[0][4] == (ctx->rank > 0 ? 10 * (ctx->rank - 1) + 2 : 99));
    RANK_CHECK(rows[3][4] == (ctx->rank + 1 < ctx->ranks ? 10 * (ctx->rank + 1) + 1 : 99));
    return KN_OK;
}

static void collectives_are_right(void **state)
{
    (void)state;
    for (int32_t ranks = 1; ranks <= KN_COMM_RANKS_MAX; ranks++) ranks_run(ranks, collectives, NULL);
}

/* Even and odd ranks are groups of their own, and make different numbers of calls. */
static kn_status parts(rank_context *ctx)
{
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    const kn_group mine = kn_group_part(&all, ctx->rank % 2, (ctx->ranks + 1 - ctx->rank % 2) / 2, 2);
    RANK_CHECK(mine.index == ctx->rank / 2 && mine.member[mine.index] == ctx->rank);
    for (int i = 0; i < 5 + ctx->rank % 2; i++) {
        int data[KN_COMM_RANKS_MAX] = {0};
        data[mine.index] = ctx->rank;
        RANK_OK(kn_group_all_gather(&mine, data, mine.size, sizeof *data));
        for (int32_t k = 0; k < mine.size; k++) RANK_CHECK(data[k] == mine.member[k]);
    }
    return kn_group_barrier(&all);
}

static void groups_do_not_disturb_each_other(void **state)
{
    (void)state;
    for (int32_t ranks = 2; ranks <= 6; ranks++) ranks_run(ranks, parts, NULL);
}

static void shares_cover_everything(void **state)
{
    (void)state;
    for (int64_t count = 0; count < 30; count++)
        for (int32_t n = 1; n <= KN_COMM_RANKS_MAX; n++) {
            int64_t next = 0;
            for (int32_t i = 0; i < n; i++) {
                const kn_share s = kn_share_of(count, n, i);
                assert_int_equal(s.first, next);
                assert_in_range(s.count, count / n, (count + n - 1) / n);
                next += s.count;
            }
            assert_int_equal(next, count);
        }
}

/* ---- faults ---- */

typedef struct fault {
    int32_t victim;
    size_t at; /* bytes of its block it can touch */
    bool stops;
} fault;

static void stop_self(int number)
{
    (void)number;
    raise(SIGSTOP);
    _exit(RANK_FAILED); /* it is killed while it is stopped */
}

enum { FAULT_BYTES = 1 << 20 };

/* The victim's memory has a hole. */
static kn_status fall_into(rank_context *ctx)
{
    const fault *f = ctx->user;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *data = mmap(NULL, FAULT_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    RANK_CHECK(data != MAP_FAILED);
    signal(SIGSEGV, f->stops ? stop_self : SIG_DFL);
    if (ctx->rank == f->victim) RANK_CHECK(mprotect(data + f->at, FAULT_BYTES + page - f->at, PROT_NONE) == 0);
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    kn_status st = KN_OK;
    for (int i = 0; i < 3 && st == KN_OK; i++) st = kn_group_all_gather(&all, data, FAULT_BYTES / 16, 16);
    RANK_CHECK(st == KN_UNAVAILABLE);
    RANK_CHECK(strstr(kn_fail_message(), f->stops ? "silent" : "died"));
    RANK_CHECK(kn_group_barrier(&all) == KN_UNAVAILABLE);
    return st;
}

static void expect_group_down(fault f, int32_t ranks, int64_t silence_ns)
{
    rank_team team = ranks_start(ranks, fall_into, &f, (kn_comm_params){.silence_ns = silence_ns});
    for (int32_t r = 0; r < ranks; r++)
        if (r != f.victim) ranks_wait_one(&team, r);
    if (f.stops) kill(team.process[f.victim], SIGKILL);
    ranks_wait(&team);
    for (int32_t r = 0; r < ranks; r++) {
        const int wanted = r != f.victim ? RANK_UNAVAILABLE : f.stops ? -SIGKILL : -SIGSEGV;
        if (team.code[r] != wanted)
            fail_msg("victim %d at %zu of %d: rank %d ended with %d", f.victim, f.at, ranks, r, team.code[r]);
    }
}

static void a_death_anywhere_ends_the_call(void **state)
{
    (void)state;
    for (int32_t ranks = 2; ranks <= 4; ranks += 2)
        for (int32_t victim = 0; victim < ranks; victim += ranks - 1)
            for (size_t at = 0; at < FAULT_BYTES; at += FAULT_BYTES / 8)
                expect_group_down((fault){victim, at, false}, ranks, INT64_C(60000000000));
}

static void a_stop_anywhere_ends_the_call(void **state)
{
    (void)state;
    for (size_t at = 0; at < FAULT_BYTES; at += FAULT_BYTES / 4)
        expect_group_down((fault){1, at, true}, 3, INT64_C(1500000000));
}

static kn_status leave_early(rank_context *ctx)
{
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    if (ctx->rank == 0) return KN_OK;
    kn_status st = kn_group_barrier(&all);
    RANK_CHECK(st == KN_UNAVAILABLE && strstr(kn_fail_message(), "rank 0 of 3 has left"));
    return st;
}

static kn_status disagree(rank_context *ctx)
{
    char data[64] = {0};
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    return kn_group_broadcast(&all, 0, data, ctx->rank == 0 ? 64 : 63);
}

static kn_status one_aborts(rank_context *ctx)
{
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    if (ctx->rank == 1) {
        kn_comm_abort(ctx->comm, "out of memory on rank 1");
        kn_comm_abort(ctx->comm, "a second reason");
    }
    kn_status st = kn_group_barrier(&all);
    RANK_CHECK(strstr(kn_fail_message(), "out of memory on rank 1"));
    return st;
}

/* Rank 0 is alive, but does not come in time. */
static kn_status too_late(rank_context *ctx)
{
    const kn_group all = kn_group_of(ctx->comm, UINT32_MAX);
    const struct timespec nap = {.tv_sec = 1};
    if (ctx->rank == 0) nanosleep(&nap, NULL);
    return kn_group_barrier(&all);
}

static void expect_codes(int32_t ranks, rank_main *run, kn_comm_params limits, int first, int others)
{
    rank_team team = ranks_start(ranks, run, NULL, limits);
    ranks_wait(&team);
    for (int32_t r = 0; r < ranks; r++) assert_int_equal(team.code[r], r == 0 ? first : others);
}

static void misuse_and_absence_are_told(void **state)
{
    (void)state;
    const kn_comm_params patient = {.silence_ns = INT64_C(60000000000)};
    expect_codes(3, leave_early, patient, 0, RANK_UNAVAILABLE);
    expect_codes(3, one_aborts, patient, RANK_UNAVAILABLE, RANK_UNAVAILABLE);
    /* The sender may have gone on before anybody looked. */
    rank_team team = ranks_start(2, disagree, NULL, patient);
    ranks_wait(&team);
    assert_int_equal(team.code[1], RANK_BUG);
    expect_codes(2, too_late, (kn_comm_params){.silence_ns = patient.silence_ns, .call_ns = 300000000},
                 RANK_UNAVAILABLE, RANK_UNAVAILABLE);
}

static void joining_is_checked(void **state)
{
    (void)state;
    kn_device *device = NULL;
    kn_stream *stream = NULL;
    kn_comm *comm = NULL;
    int fd;
    assert_int_equal(kn_device_open(&device, &(kn_device_params){.name = "cpu", .threads = 1}), KN_OK);
    assert_int_equal(kn_stream_create(&stream, device), KN_OK);
    assert_int_equal(kn_comm_local_form(&fd, 2, 7), KN_OK);
    kn_comm_local_params params = {.fd = fd, .epoch = 6, .stream = stream, .limits = {.join_ns = 200000000}};
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_UNAVAILABLE); /* a late rank of an old epoch */
    assert_non_null(strstr(kn_fail_message(), "epoch 7"));
    params.epoch = 7;
    params.rank = 2;
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_INVALID);
    params.rank = 1;
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_UNAVAILABLE);
    assert_non_null(strstr(kn_fail_message(), "rank 0 of 2 has not joined"));
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "taken"));
    close(fd);
    assert_int_equal(kn_comm_local_form(&fd, 2, 8), KN_OK);
    assert_int_equal(kn_comm_local_give_up(fd, "the server says so"), KN_OK);
    params = (kn_comm_local_params){.fd = fd, .epoch = 8, .stream = stream};
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_UNAVAILABLE);
    assert_non_null(strstr(kn_fail_message(), "the server says so"));
    close(fd);
    fd = memfd_create("other", MFD_CLOEXEC);
    params.fd = fd;
    assert_int_equal(kn_comm_local_join(&comm, &params), KN_CORRUPT);
    close(fd);
    assert_null(comm);
    kn_stream_destroy(&stream);
    kn_device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shares_cover_everything),        cmocka_unit_test(collectives_are_right),
        cmocka_unit_test(blocks_of_any_size_arrive),      cmocka_unit_test(groups_do_not_disturb_each_other),
        cmocka_unit_test(a_death_anywhere_ends_the_call), cmocka_unit_test(a_stop_anywhere_ends_the_call),
        cmocka_unit_test(misuse_and_absence_are_told),    cmocka_unit_test(joining_is_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
