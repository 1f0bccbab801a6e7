/* SPDX-License-Identifier: Apache-2.0
 *
 * The durable store: submits that are on stable storage before they are answered, for several numbers of clients that
 * each wait for their answer, and how long a start takes beside a million finished jobs.
 *
 * A submit cannot be answered before an fsync has returned, and operations share one; the bound is therefore the syncs
 * this directory can do in a second, the better of right before and right after, times the operations that really
 * shared one. Files lie in a folder
 * of their own below $TMPDIR, on whose disk all of this depends. */
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "benchmarks/bench_store.h"
#include "server/store.h"

enum {
    PATH_BYTES = 256,
    NAME_BYTES = PATH_BYTES + 32,
    SYNC_BLOCK = 4096,
    SYNC_COUNT = 200,
    SAMPLES_MAX = 400000,
    CLIENTS_MAX = 1024,
    UNFINISHED = 1000,
    FINISHED = 1000000,
};
static const int32_t client_counts[] = {1, 8, 64, CLIENTS_MAX};
#define RUN_NS (INT64_C(3) * 1000000000)
#define WARM_NS (RUN_NS / 10)

typedef struct store_bench {
    kn_bench *bench;
    char directory[PATH_BYTES];
    double syncs; /* per second, now */
} store_bench;

/* ---- files ---- */

static kn_status make_directory(char path[PATH_BYTES])
{
    const char *base = getenv("TMPDIR");
    snprintf(path, PATH_BYTES, "%s/kinora-bench-XXXXXX", base && strlen(base) < PATH_BYTES - 32 ? base : "/tmp");
    return mkdtemp(path) ? KN_OK : kn_fail(KN_IO, "%s: %s", path, strerror(errno));
}

static void remove_files(const char *directory)
{
    static const char *const names[] = {"kinora.db", "kinora.db-wal", "kinora.db-shm", "lock", "sync"};
    char path[NAME_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
}

/* Blocks written over existing ones, each synced: the least a commit can be. */
static kn_status count_syncs(const store_bench *s, double *per_second)
{
    kn_status st = KN_OK;
    char path[NAME_BYTES], block[SYNC_BLOCK] = {1};
    snprintf(path, sizeof path, "%s/sync", s->directory);
    const int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    bool good = file >= 0;
    for (int i = 0; good && i < SYNC_COUNT; i++)
        good = pwrite(file, block, sizeof block, (off_t)i * SYNC_BLOCK) == (ssize_t)sizeof block;
    good = good && fsync(file) == 0;
    const int64_t start = kn_clock_ns();
    for (int i = 0; good && i < SYNC_COUNT; i++) {
        block[0] = (char)i;
        good =
            pwrite(file, block, sizeof block, (off_t)i * SYNC_BLOCK) == (ssize_t)sizeof block && fdatasync(file) == 0;
    }
    *per_second = SYNC_COUNT / kn_clock_seconds(kn_clock_ns() - start);
    if (!good) st = kn_fail(KN_IO, "%s: %s", path, strerror(errno));
    if (file >= 0) close(file);
    return st;
}

static kn_status measure_syncs(store_bench *s)
{
    kn_status st = KN_OK;
    kn_bench_row row = {.test = "write and sync 4 KiB"};
    KN_TRY(count_syncs(s, &s->syncs));
    row.seconds = 1.0 / s->syncs;
    snprintf(row.note, sizeof row.note, "%.0f syncs/s in $TMPDIR", s->syncs);
    KN_TRY(kn_bench_put(s->bench, &row));
fail:
    return st;
}

/* ---- clients ---- */

typedef struct load load;

typedef struct client {
    load *load;
    int64_t sent; /* ns */
} client;

struct load {
    kn_store *store;
    client clients[CLIENTS_MAX];
    double *latencies; /* seconds, [samples] */
    size_t samples;
    int64_t from, until; /* ns: what is answered in between counts */
    int32_t waiting;
    kn_status st;
};

static void answered(void *context, kn_store_result *result);

static kn_status send_submit(client *c)
{
    static char prompt[] = "A red ball rebounds off a backboard in a sunlit gym while the camera slowly moves around "
                           "it, dust in the light, shallow depth of field, 35 mm film.";
    static char request[] = "{\"size\":\"832x480\",\"frames\":81,\"steps\":30,\"seed\":1234567,\"guidance\":5.0,"
                            "\"shift\":3.0,\"solver\":\"unipc\",\"negative_prompt\":\"blurry\"}";
    kn_status st = KN_OK;
    kn_job job = {.tenant = "bench",
                  .model = "demo",
                  .asked_model = "sora-2",
                  .priority = KN_PRIORITY_DEFAULT,
                  .prompt = prompt,
                  .request = request,
                  .cost_us = 1000000};
    KN_TRY(kn_job_new_id(job.id));
    const kn_store_op op = {.kind = KN_STORE_SUBMIT, .submit = {.job = &job, .idempotency_key = job.id}};
    c->sent = kn_clock_ns();
    KN_TRY(kn_store_submit_op(c->load->store, &op, answered, c));
    c->load->waiting++;
fail:
    return st;
}

static void answered(void *context, kn_store_result *result)
{
    client *c = context;
    load *l = c->load;
    const int64_t now = kn_clock_ns();
    l->waiting--;
    if (result->status != KN_OK) l->st = kn_fail(result->status, "%s", result->message);
    if (now >= l->from && now < l->until && l->samples < SAMPLES_MAX)
        l->latencies[l->samples++] = kn_clock_seconds(now - c->sent);
    if (l->st == KN_OK && now < l->until) l->st = send_submit(c);
}

static int compare_numbers(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static kn_status put_load(const store_bench *s, load *l, int32_t clients, double seconds, double batch)
{
    kn_bench_row row = {.repeat = 1};
    if (l->samples == 0) return kn_fail(KN_UNAVAILABLE, "no submit was answered in time");
    qsort(l->latencies, l->samples, sizeof *l->latencies, compare_numbers);
    const double rate = (double)l->samples / seconds, p99 = l->latencies[(l->samples - 1) * 99 / 100];
    const double bound = s->syncs * batch;
    row.seconds = l->latencies[l->samples / 2];
    row.best_seconds = l->latencies[0];
    snprintf(row.test, sizeof row.test, "durable submit, %d client%s", clients, clients == 1 ? "" : "s");
    snprintf(row.note, sizeof row.note, "median; %.0f/s, p99 %.2f ms, %.1f a sync, %.0f %% of bound", rate, p99 * 1e3,
             batch, 100.0 * rate / bound);
    row.extra =
        json_pack("{s:i, s:f, s:f, s:f, s:f, s:f}", "clients", clients, "submits_per_second", rate, "p99_seconds", p99,
                  "submits_per_sync", batch, "syncs_per_second", s->syncs, "bound_submits_per_second", bound);
    return kn_bench_put(s->bench, &row);
}

static kn_status measure_load(store_bench *s, int32_t clients)
{
    kn_status st = KN_OK;
    const kn_store_params params = {.directory = s->directory};
    load *l = kn_alloc(sizeof *l);
    if (!l) return KN_NOMEM;
    l->latencies = kn_alloc_array(SAMPLES_MAX, sizeof *l->latencies);
    if (!l->latencies) KN_TRY(KN_NOMEM);
    double after = 0.0;
    remove_files(s->directory);
    KN_TRY(count_syncs(s, &s->syncs));
    KN_TRY(kn_store_open(&l->store, &params));
    l->from = kn_clock_ns() + WARM_NS;
    l->until = l->from + RUN_NS;
    for (int32_t i = 0; i < clients; i++) {
        l->clients[i].load = l;
        KN_TRY(send_submit(&l->clients[i]));
    }
    while (l->waiting > 0) {
        kn_store_wait(l->store, -1);
        kn_store_drain(l->store);
    }
    KN_TRY(l->st);
    const kn_store_stats stats = kn_store_read_stats(l->store);
    KN_TRY(count_syncs(s, &after));
    if (after > s->syncs) s->syncs = after;
    KN_TRY(put_load(s, l, clients, kn_clock_seconds(RUN_NS), (double)stats.operations / (double)stats.transactions));
fail:
    kn_store_close(&l->store);
    kn_free(l->latencies);
    kn_free(l);
    return st;
}

/* ---- the start ---- */

/* Finished jobs and some that are not, in one transaction beside the store. */
static kn_status fill_database(const store_bench *s)
{
    kn_status st = KN_OK;
    char path[NAME_BYTES], sql[1024];
    sqlite3 *db = NULL;
    snprintf(path, sizeof path, "%s/kinora.db", s->directory);
    snprintf(sql, sizeof sql,
             "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)"
             " INSERT INTO jobs(id, tenant, key_id, model, asked_model, state, priority, prompt, request, created_at,"
             " completed_at, expires_at, cost_us, charged_us, blob, blob_sha256, epoch)"
             " SELECT printf('video_%%032x', i), printf('tenant%%d', i %% 100), '', 'demo', 'demo',"
             " iif(i > %d, i %% 2, 2), 1, 'a red ball rebounds off a backboard', '{\"seed\":1}', i, i, i + 1, 1000,"
             " iif(i > %d, 0, 1000), 'video.mp4', zeroblob(32), 1 FROM n; COMMIT",
             FINISHED + UNFINISHED, FINISHED, FINISHED);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK ||
        sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        st = kn_fail(KN_IO, "%s: %s", path, db ? sqlite3_errmsg(db) : "no memory");
    sqlite3_close(db);
    return st;
}

static kn_status count_job(void *context, const kn_job *job)
{
    (void)job;
    ++*(int32_t *)context;
    return KN_OK;
}

static kn_status start_store(void *opaque)
{
    store_bench *s = opaque;
    kn_status st = KN_OK;
    kn_store *store = NULL;
    int32_t count = 0;
    const kn_store_params params = {.directory = s->directory};
    KN_TRY(kn_store_open(&store, &params));
    KN_TRY(kn_store_load_unfinished(store, count_job, &count));
    if (count != UNFINISHED)
        st = kn_fail(KN_BUG, "%d unfinished jobs were loaded, and there are %d", count, UNFINISHED);
fail:
    kn_store_close(&store);
    return st;
}

static kn_status measure_start(store_bench *s)
{
    kn_status st = KN_OK;
    kn_store *store = NULL;
    const kn_store_params params = {.directory = s->directory};
    kn_bench_row row = {.test = "open, load, close; 1,000,000 finished"};
    remove_files(s->directory);
    KN_TRY(kn_store_open(&store, &params));
    kn_store_close(&store);
    KN_TRY(fill_database(s));
    KN_TRY(kn_bench_time(&row, 1, s->bench->settings->repeat, start_store, s));
    snprintf(row.note, sizeof row.note, "and %d unfinished, which are loaded", UNFINISHED);
    KN_TRY(kn_bench_put(s->bench, &row));
fail:
    return st;
}

kn_status kn_bench_store(kn_bench *bench)
{
    kn_status st = KN_OK;
    store_bench s = {.bench = bench};
    KN_TRY(make_directory(s.directory));
    KN_TRY(measure_syncs(&s));
    for (size_t i = 0; i < sizeof client_counts / sizeof *client_counts; i++)
        KN_TRY(measure_load(&s, client_counts[i]));
    KN_TRY(measure_start(&s));
fail:
    if (s.directory[0]) {
        remove_files(s.directory);
        rmdir(s.directory);
    }
    return st;
}
