/* SPDX-License-Identifier: Apache-2.0
 *
 * A process that works on a store is killed at random moments, again and again, and tells what was acknowledged to it
 * through a pipe. After each kill everything acknowledged must be there, nothing twice, and the invariants hold. A kill
 * keeps what the kernel was given: this proves that a process may die anywhere, and store_power.c what a machine may
 * do.
 *
 * Job n of round r has the id, the prompt and the idempotency key r and n spell, so that the parent finds it again and
 * the next round can submit the same keys: the answer to an acknowledged one must be its job.
 *
 * KN_KILLS in the environment: how many; KN_SEED: of what random numbers. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "base/clock.h"
#include "tests/server/store_test.h"

enum {
    KILLS = 160,
    KILLS_MAX = 20000,
    JOBS = 48,
    IN_FLIGHT = 8,
    KILL_AFTER_US = 30000,
    OPENED = UINT8_MAX, /* instead of a kind: the store is open */
    PATIENCE_US = 60 * 1000000,
    CHECK_EVERY = 10
};

typedef struct acknowledgement {
    uint8_t kind, outcome, state;
    int32_t round, number; /* of the job */
    int64_t epoch;
    int32_t status;
} acknowledgement;

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* `again`: the id a client offers with a key it used before. */
static void name_job(char id[KN_JOB_ID_BYTES], int round, int number, bool again)
{
    snprintf(id, KN_JOB_ID_BYTES, "video_%08x%08x%016x", again ? 1u : 0u, (unsigned)round, (unsigned)number);
}

static void read_name(const char *id, int *round, int *number)
{
    unsigned again, r, n;
    assert_int_equal(sscanf(id, "video_%8x%8x%16x", &again, &r, &n), 3);
    *round = (int)r;
    *number = (int)n;
}

/* ---- the child ---- */

typedef struct worker {
    kn_store *store;
    int pipe, round, next, in_flight;
    uint64_t seed;
} worker;

typedef struct errand {
    worker *worker;
    acknowledgement ack;
    char id[KN_JOB_ID_BYTES], key[KN_JOB_ID_BYTES];
} errand;

static void acknowledged(void *context, kn_store_result *result);

static void send_op(worker *w, errand *e, kn_store_op *op)
{
    op->id = e->id;
    e->ack.kind = (uint8_t)op->kind;
    if (kn_store_submit_op(w->store, op, acknowledged, e) != KN_OK) _exit(3);
    w->in_flight++;
}

static void send_submit(worker *w, int round, int number)
{
    errand *e = kn_alloc(sizeof *e);
    kn_job job = {.tenant = "acme", .model = "demo", .cost_us = 1000, .priority = KN_PRIORITY_DEFAULT};
    if (!e) _exit(4);
    *e = (errand){.worker = w, .ack = {.round = round, .number = number}};
    name_job(e->key, round, number, false);
    name_job(e->id, round, number, round < w->round); /* as a client that lost the answer does */
    memcpy(job.id, e->id, sizeof job.id);
    job.prompt = e->key;
    kn_store_op op = submit_of(&job);
    op.submit.idempotency_key = e->key;
    send_op(w, e, &op);
}

static void send_next(worker *w, errand *e)
{
    const uint64_t dice = next_random(&w->seed) % 16;
    const int64_t epoch = e->ack.epoch;
    kn_store_op op = {.kind = KN_STORE_CHECKPOINT, .epoch = epoch, .checkpoint = {.name = "c", .step = 1}};
    if (e->ack.state == KN_JOB_QUEUED)
        op = (kn_store_op){.kind = KN_STORE_CLAIM, .epoch = epoch};
    else if (dice < 6)
        op = publish_of(e->id, epoch);
    else if (dice == 6)
        op = finish_of(e->id, epoch, KN_JOB_FAILED);
    else if (dice == 7)
        op = finish_of(e->id, 0, KN_JOB_CANCELLED);
    else if (dice == 8)
        op = (kn_store_op){.kind = KN_STORE_RELEASE, .epoch = epoch};
    else if (dice == 9)
        op = (kn_store_op){.kind = KN_STORE_REMOVE, .tenant = "acme"};
    else if (dice == 10)
        op = (kn_store_op){.kind = KN_STORE_COUNT_ATTEMPT, .epoch = epoch};
    send_op(w, e, &op);
}

static void acknowledged(void *context, kn_store_result *result)
{
    errand *e = context;
    worker *w = e->worker;
    w->in_flight--;
    e->ack.status = result->status;
    e->ack.outcome = (uint8_t)result->outcome;
    e->ack.state = (uint8_t)result->state;
    e->ack.epoch = result->epoch;
    if (result->kind == KN_STORE_SUBMIT) {
        e->ack.epoch = result->job.epoch;
        memcpy(e->id, result->job.id, sizeof e->id);
        if (result->status == KN_OK && strcmp(result->job.prompt ? result->job.prompt : e->key, e->key) != 0) _exit(6);
    }
    if (write(w->pipe, &e->ack, sizeof e->ack) != sizeof e->ack) _exit(5);
    if (result->status != KN_OK) _exit(7);
    if (kn_job_state_final((kn_job_state)e->ack.state) || e->ack.round < w->round)
        kn_free(e);
    else
        send_next(w, e);
}

static kn_status take_up(void *context, const kn_job *job)
{
    worker *w = context;
    errand *e = kn_alloc(sizeof *e);
    if (!e) _exit(4);
    *e = (errand){.worker = w, .ack = {.state = KN_JOB_QUEUED, .epoch = job->epoch}};
    memcpy(e->id, job->id, sizeof e->id);
    read_name(e->id, &e->ack.round, &e->ack.number);
    send_next(w, e); /* a claim; with it the job stays for the next round */
    return w->in_flight < IN_FLIGHT ? KN_OK : KN_CANCELLED;
}

static void work(const char *directory, int pipe, int round, int known, uint64_t seed)
{
    worker w = {.pipe = pipe, .round = round, .seed = seed};
    const kn_store_params params = {.directory = directory, .checkpoint_bytes = 256 << 10};
    if (kn_store_open(&w.store, &params) != KN_OK) _exit(2);
    const acknowledgement opened = {.kind = OPENED};
    if (write(pipe, &opened, sizeof opened) != sizeof opened) _exit(5);
    const kn_status st = kn_store_load_unfinished(w.store, take_up, &w);
    if (st != KN_OK && st != KN_CANCELLED) _exit(2);
    for (int i = 0; i < known && round > 0; i++) send_submit(&w, round - 1, i);
    for (;;) {
        while (w.in_flight < IN_FLIGHT && w.next < JOBS) send_submit(&w, round, w.next++);
        if (w.in_flight == 0) break;
        kn_store_wait(w.store, -1);
        kn_store_drain(w.store);
    }
    kn_store_close(&w.store);
    _exit(0);
}

/* ---- the parent ---- */

typedef struct known {
    bool acknowledged;
    uint8_t state;
    int64_t epoch;
} known;

typedef struct book {
    char directory[PATH_BYTES];
    known *jobs;           /* [rounds][JOBS] */
    int rounds, submitted; /* in the last round: numbers below were submitted for sure */
    int64_t acknowledgements, kills;
    kn_audit_head head;
} book;

static void note(book *b, const acknowledgement *a)
{
    known *job = &b->jobs[a->round * JOBS + a->number];
    assert_int_equal(a->status, KN_OK);
    if (a->kind == KN_STORE_SUBMIT && a->round < b->rounds) {
        assert_true(a->outcome == KN_STORE_REPLAYED || (a->outcome == KN_STORE_DONE && !job->acknowledged));
    } else if (a->outcome != KN_STORE_DONE) {
        fail_msg("operation %d of a job nobody else touches: outcome %d", a->kind, a->outcome);
    }
    *job = (known){true, a->state, a->epoch};
    if (a->round == b->rounds && a->kind == KN_STORE_SUBMIT && a->number >= b->submitted) b->submitted = a->number + 1;
    b->acknowledgements++;
}

/* Waits for the next acknowledgement until `until` (ns); false when there is none in time. */
static bool wait_for_one(int pipe, int64_t until)
{
    struct pollfd ready = {.fd = pipe, .events = POLLIN};
    const int64_t left = until - kn_clock_ns();
    if (left <= 0) return false;
    const struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = (long)(left % 1000000000)};
    return ppoll(&ready, 1, &wait, NULL) > 0;
}

/* Kills the child `after_us` after its start, or after its store was open, and reads what it was told to the end. */
static void listen_and_kill(book *b, int pipe, pid_t child, int64_t after_us, bool after_opening)
{
    int64_t until = kn_clock_ns() + (after_opening ? PATIENCE_US : after_us) * 1000;
    acknowledgement a;
    bool killed = false;
    for (;;) {
        if (!killed && !wait_for_one(pipe, until)) {
            kill(child, SIGKILL);
            killed = true;
            b->kills++;
        }
        const ssize_t got = read(pipe, &a, sizeof a);
        if (got == 0) break;
        if (got < 0 && errno == EINTR) continue;
        assert_int_equal(got, sizeof a);
        if (a.kind != OPENED)
            note(b, &a);
        else if (after_opening)
            until = kn_clock_ns() + after_us * 1000;
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status))
        assert_int_equal(WTERMSIG(status), SIGKILL);
    else
        assert_int_equal(WEXITSTATUS(status), 0); /* it had done all its jobs */
}

static void check_jobs(book *b, sqlite3 *db)
{
    sqlite3_stmt *s = NULL;
    int64_t found = 0, expected = 0;
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT ifnull(prompt, ''), state, epoch, id FROM jobs", -1, &s, NULL), 0);
    while (sqlite3_step(s) == SQLITE_ROW) {
        const char *key = (const char *)sqlite3_column_text(s, 0);
        int round, number;
        if (*key == '\0') key = (const char *)sqlite3_column_text(s, 3); /* a tombstone has no prompt */
        read_name(key, &round, &number);
        assert_true(round >= 0 && round <= b->rounds && number >= 0 && number < JOBS);
        known *job = &b->jobs[round * JOBS + number];
        const kn_job_state state = (kn_job_state)sqlite3_column_int(s, 1);
        const int64_t epoch = sqlite3_column_int64(s, 2);
        found++;
        /* As acknowledged, or one operation further: a job has one on its way at most. */
        const bool same = state == (kn_job_state)job->state && epoch == job->epoch;
        const bool further = kn_job_transition_allowed((kn_job_state)job->state, state) &&
                             epoch == job->epoch + (state == KN_JOB_RUNNING);
        if (job->acknowledged && !same && !further)
            fail_msg("job %d of round %d: %s under %d was acknowledged, and it is %s under %d", number, round,
                     kn_job_state_name((kn_job_state)job->state), (int)job->epoch, kn_job_state_name(state),
                     (int)epoch);
        *job = (known){true, (uint8_t)state, epoch}; /* what was seen once stays */
    }
    sqlite3_finalize(s);
    for (int i = 0; i < (b->rounds + 1) * JOBS; i++) expected += b->jobs[i].acknowledged;
    assert_int_equal(found, expected); /* none is lost */
    assert_int_equal(query_number(db, "SELECT count(*) FROM (SELECT prompt FROM jobs WHERE prompt IS NOT NULL"
                                      " GROUP BY prompt HAVING count(*) > 1)"),
                     0); /* none is double */
    assert_int_equal(query_number(db, "SELECT count(*) FROM jobs AS j WHERE state = 2 AND 1 <> (SELECT count(*) FROM"
                                      " deliveries WHERE job = j.id)"),
                     0); /* each has its webhook */
}

static void check_after_kill(book *b, bool thorough)
{
    kn_store *store = NULL;
    const kn_store_params params = {.directory = b->directory};
    if (kn_store_open(&store, &params) != KN_OK) fail_msg("%s", kn_fail_message());
    if (b->rounds == 0 || thorough) {
        if (kn_store_audit_verify(store, &b->head, NULL) != KN_OK) fail_msg("%s", kn_fail_message());
        assert_int_equal(kn_store_audit_head(store, &b->head), KN_OK);
    }
    kn_store_close(&store);
    sqlite3 *db = open_database(b->directory);
    check_jobs(b, db);
    const char *broken = thorough ? broken_invariant(db) : NULL;
    if (broken) fail_msg("after %d kills: %s", (int)b->kills, broken);
    sqlite3_close(db);
}

static int64_t setting(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 0) : otherwise;
}

static void add_endpoint(const char *directory)
{
    kn_store *store = NULL;
    const kn_store_params params = {.directory = directory};
    assert_int_equal(kn_store_open(&store, &params), KN_OK);
    const kn_endpoint_row row = endpoint_of("we_1", "acme", 3);
    const kn_store_op op = {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &row};
    assert_outcome(perform(store, &op), KN_STORE_DONE);
    kn_store_close(&store);
}

static void test_killed_at_random(void **state)
{
    (void)state;
    book b = {.rounds = 0};
    const int64_t kills = setting("KN_KILLS", KILLS);
    uint64_t seed = (uint64_t)setting("KN_SEED", 20261122);
    assert_true(kills > 0 && kills <= KILLS_MAX);
    const int rounds_max = (int)kills * 2 + 10;
    b.jobs = kn_alloc_array((size_t)rounds_max * JOBS, sizeof *b.jobs);
    assert_non_null(b.jobs);
    make_directory(b.directory);
    add_endpoint(b.directory);
    int before = 0;
    for (; b.kills < kills && b.rounds < rounds_max - 1; b.rounds++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        const int64_t after = (int64_t)(next_random(&seed) % KILL_AFTER_US);
        const uint64_t child_seed = next_random(&seed) | 1;
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            close(ends[0]);
            work(b.directory, ends[1], b.rounds, before, child_seed);
        }
        close(ends[1]);
        b.submitted = 0;
        listen_and_kill(&b, ends[0], child, after, b.rounds % 4 != 0);
        close(ends[0]);
        before = b.submitted + IN_FLIGHT < JOBS ? b.submitted + IN_FLIGHT : JOBS;
        check_after_kill(&b, b.rounds % CHECK_EVERY == 0 || b.kills == kills);
    }
    assert_int_equal(b.kills, kills);
    assert_true(b.acknowledgements > kills);
    print_message("%d kills, %d acknowledged operations, 0 lost\n", (int)b.kills, (int)b.acknowledgements);
    check_invariants(b.directory);
    remove_directory(b.directory);
    kn_free(b.jobs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_killed_at_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
