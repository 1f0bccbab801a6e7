/* SPDX-License-Identifier: Apache-2.0
 *
 * The queue, the thread that empties it, and the way back of the results.
 *
 * While one batch is being synced the next one gathers, so that the number of operations behind one fsync grows with
 * the load by itself: one alone waits for its own fsync only, a thousand share one. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/point.h"
#include "server/store_internal.h"

static kn_store_run *const runs[KN_STORE_KINDS] = {
    [KN_STORE_SUBMIT] = kn_store_run_submit,
    [KN_STORE_REPLAY] = kn_store_run_replay,
    [KN_STORE_CLAIM] = kn_store_run_claim,
    [KN_STORE_RELEASE] = kn_store_run_release,
    [KN_STORE_CHECKPOINT] = kn_store_run_checkpoint,
    [KN_STORE_COUNT_ATTEMPT] = kn_store_run_count_attempt,
    [KN_STORE_PUBLISH] = kn_store_run_publish,
    [KN_STORE_FINISH] = kn_store_run_finish,
    [KN_STORE_RETRY] = kn_store_run_retry,
    [KN_STORE_EXPIRE] = kn_store_run_expire,
    [KN_STORE_REMOVE] = kn_store_run_remove,
    [KN_STORE_PURGE] = kn_store_run_purge,
    [KN_STORE_ENDPOINT_PUT] = kn_store_run_endpoint_put,
    [KN_STORE_ENDPOINT_REMOVE] = kn_store_run_endpoint_remove,
    [KN_STORE_ENDPOINT_DISABLE] = kn_store_run_endpoint_disable,
    [KN_STORE_DELIVERY] = kn_store_run_delivery,
    [KN_STORE_KEY_ADD] = kn_store_run_key_add,
    [KN_STORE_KEY_REVOKE] = kn_store_run_key_revoke,
    [KN_STORE_AUDIT] = kn_store_run_audit,
};

/* ---- lists of nodes ---- */

static void append(kn_store_nodes *list, kn_store_node *node)
{
    node->next = NULL;
    if (list->last)
        list->last->next = node;
    else
        list->first = node;
    list->last = node;
}

static kn_store_node *take_first(kn_store_nodes *list)
{
    kn_store_node *node = list->first;
    if (!node) return NULL;
    list->first = node->next;
    if (!list->first) list->last = NULL;
    return node;
}

static void free_node(kn_store_node *node)
{
    kn_store_result_release(&node->result);
    kn_free(node);
}

void kn_store_result_release(kn_store_result *result)
{
    if (!result) return;
    kn_job_release(&result->job);
    kn_free(result->files);
    result->files = NULL;
    result->file_count = 0;
}

/* ---- one batch ---- */

static void fail_node(kn_store_node *node, kn_status status, const char *message)
{
    kn_store_result_release(&node->result);
    node->result = (kn_store_result){.kind = node->op.kind, .status = status};
    snprintf(node->result.message, sizeof node->result.message, "%s", message);
}

/* Those that would have been acknowledged. */
static void fail_batch(const kn_store_nodes *batch, kn_status status)
{
    for (kn_store_node *node = batch->first; node; node = node->next)
        if (node->result.status == KN_OK) fail_node(node, status, kn_fail_message());
}

/* How long a transaction took. */
typedef struct timing {
    int64_t begun;      /* monotonic */
    uint64_t commit_ns; /* of it, in COMMIT */
} timing;

/* `t` NULL: it was not committed. */
static void count_batch(kn_store *store, const kn_store_nodes *batch, const timing *t)
{
    int32_t good = 0;
    pthread_mutex_lock(&store->mutex);
    for (const kn_store_node *node = batch->first; node; node = node->next)
        if (node->result.status == KN_OK)
            good++;
        else
            store->stats.failed++;
    store->stats.operations += (uint64_t)good;
    if (t) {
        store->commit_ns += ((int64_t)t->commit_ns - store->commit_ns) / 16;
        store->stats.transactions++;
        store->stats.commit_ns += t->commit_ns;
        store->commits[store->commit_count++ % KN_STORE_COMMITS_KEPT] =
            (kn_store_commit){.ns = (uint64_t)(kn_clock_ns() - t->begun), .operations = good};
    }
    store->stats.wal_bytes = (uint64_t)store->wal_bytes;
    pthread_mutex_unlock(&store->mutex);
}

static kn_status run_statement(kn_store *store, kn_sql which)
{
    kn_binder binder = kn_sql_bind(store, which);
    return kn_sql_step(&binder, NULL);
}

/* A page that contradicts itself is not a fault of the operation that met it. */
static kn_status judge(kn_store *store, kn_status st)
{
    const int code = sqlite3_errcode(store->writer) & 0xff;
    return st == KN_CORRUPT && (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) ? KN_FATAL : st;
}

static void reset_statements(kn_store *store)
{
    for (int i = 0; i < KN_SQL_COUNT; i++) sqlite3_reset(store->statements[i]);
}

/* In a savepoint of its own. KN_OK when the transaction goes on, whether or not this operation was taken into it. */
static kn_status run_guarded(kn_store *store, kn_store_node *node)
{
    const kn_store_marks marks = store->marks;
    kn_status st = KN_OK;
    KN_TRY(run_statement(store, KN_SQL_SAVEPOINT));
    st = runs[node->op.kind](store, &node->op, &node->result);
    if (st == KN_OK) return run_statement(store, KN_SQL_RELEASE);

    st = judge(store, st);
    fail_node(node, st, kn_fail_message());
    reset_statements(store);
    if (st == KN_FATAL || sqlite3_get_autocommit(store->writer)) return st; /* SQLite gave the transaction up */
    store->marks = marks;
    KN_TRY(run_statement(store, KN_SQL_ROLLBACK_TO));
    KN_TRY(run_statement(store, KN_SQL_RELEASE));
fail:
    return st;
}

/* `guarded`: each operation in a savepoint. Without, the first that fails ends it, with `refused` set. */
static kn_status run_transaction(kn_store *store, const kn_store_nodes *batch, bool guarded, bool *refused, timing *t)
{
    kn_status st = KN_OK;
    *refused = false;
    t->begun = kn_clock_ns();
    KN_TRY(run_statement(store, KN_SQL_BEGIN));
    kn_point(KN_POINT_store_begin);
    for (kn_store_node *node = batch->first; node; node = node->next) {
        st = guarded ? run_guarded(store, node) : runs[node->op.kind](store, &node->op, &node->result);
        *refused = st != KN_OK && !guarded;
        KN_TRY(st);
    }
    const int64_t start = kn_clock_ns();
    kn_point(KN_POINT_store_commit);
    KN_TRY(run_statement(store, KN_SQL_COMMIT));
    kn_point(KN_POINT_store_committed);
    t->commit_ns = (uint64_t)(kn_clock_ns() - start);
    return KN_OK;
fail:
    return judge(store, st);
}

static void set_health(kn_store *store, kn_status st)
{
    const kn_status before = (kn_status)atomic_load(&store->health);
    if (before == KN_FATAL || st == before) return;
    atomic_store(&store->health, st);
    if (st == KN_OK)
        kn_log(KN_LOG_INFO, "store: works again");
    else
        kn_log(KN_LOG_ERROR, "%s", kn_fail_message());
}

/* After a transaction that failed: as if it had not been. */
static void undo(kn_store *store, const kn_store_marks *marks)
{
    store->marks = *marks;
    reset_statements(store);
    if (!sqlite3_get_autocommit(store->writer) && run_statement(store, KN_SQL_ROLLBACK) != KN_OK)
        set_health(store, KN_FATAL); /* a transaction that can be neither ended nor undone */
}

static void forget_results(const kn_store_nodes *batch)
{
    for (kn_store_node *node = batch->first; node; node = node->next) {
        kn_store_result_release(&node->result);
        node->result = (kn_store_result){.kind = node->op.kind};
    }
}

/* Operations hardly ever fail, and savepoints make SQLite copy every page an operation touches (a fifth of the work): a
 * batch runs without them first, and with them only after one of its operations was refused. */
static void run_batch(kn_store *store, const kn_store_nodes *batch)
{
    const kn_store_marks marks = store->marks;
    const int64_t changes = sqlite3_total_changes64(store->writer);
    timing t = {0};
    bool refused;
    if (atomic_load(&store->health) == KN_FATAL) {
        fail_batch(batch, kn_fail(KN_FATAL, "store: it failed before and must be opened again"));
        count_batch(store, batch, NULL);
        return;
    }
    kn_status st = run_transaction(store, batch, false, &refused, &t);
    if (refused && st != KN_FATAL) {
        undo(store, &marks);
        forget_results(batch);
        st = run_transaction(store, batch, true, &refused, &t);
    }
    if (st == KN_OK) {
        if (sqlite3_total_changes64(store->writer) != changes) set_health(store, KN_OK); /* the disk took something */
        count_batch(store, batch, &t);
        return;
    }
    const kn_store_error kind = kn_sqlite_error_kind(store->writer);
    pthread_mutex_lock(&store->mutex);
    store->stats.errors[kind]++;
    pthread_mutex_unlock(&store->mutex);
    fail_batch(batch, st);
    count_batch(store, batch, NULL);
    if (st == KN_FATAL || st == KN_UNAVAILABLE) set_health(store, st);
    undo(store, &marks);
    /* On a full disk the log may still be copied into pages the database has, and begun again. */
    if (st == KN_UNAVAILABLE) store->checkpoint_at = 0;
}

/* ---- the thread ---- */

static kn_store_nodes wait_for_batch(kn_store *store)
{
    kn_store_nodes batch = {0};
    pthread_mutex_lock(&store->mutex);
    while (!store->queue.first && !store->closing) pthread_cond_wait(&store->queued, &store->mutex);
    size_t bytes = 0;
    for (int i = 0; i < KN_STORE_BATCH_MAX && bytes < KN_STORE_BATCH_BYTES && store->queue.first; i++) {
        bytes += store->queue.first->bytes;
        append(&batch, take_first(&store->queue));
    }
    pthread_mutex_unlock(&store->mutex);
    return batch;
}

static void *run_thread(void *opaque)
{
    kn_store *store = opaque;
    pthread_mutex_lock(&store->mutex); /* kn_store_start is done with `thread` */
    pthread_mutex_unlock(&store->mutex);
    for (;;) {
        kn_store_nodes batch = wait_for_batch(store);
        if (!batch.first) return NULL;
        run_batch(store, &batch);
        pthread_mutex_lock(&store->mutex);
        while (batch.first) append(&store->done, take_first(&batch));
        pthread_cond_broadcast(&store->finished);
        pthread_mutex_unlock(&store->mutex);
        if (store->params.notify) store->params.notify(store->params.notify_context);
        /* After the acknowledgement: what is committed is safe in the log. */
        const kn_status st = kn_store_checkpoint(store);
        if (st != KN_OK) set_health(store, KN_FATAL);
    }
}

kn_status kn_store_start(kn_store *store)
{
    pthread_mutex_lock(&store->mutex);
    const int failed = pthread_create(&store->thread, NULL, run_thread, store);
    store->started = failed == 0;
    pthread_mutex_unlock(&store->mutex);
    return failed ? kn_fail(KN_UNAVAILABLE, "store: no thread: %s", strerror(failed)) : KN_OK;
}

void kn_store_stop(kn_store *store)
{
    if (!store->started) return;
    pthread_mutex_lock(&store->mutex);
    store->closing = true;
    pthread_cond_signal(&store->queued);
    pthread_mutex_unlock(&store->mutex);
    pthread_join(store->thread, NULL);
    while (kn_store_drain(store) > 0) {
    }
}

/* ---- the caller's side ---- */

kn_status kn_store_submit_op(kn_store *store, const kn_store_op *op, kn_store_done *done, void *context)
{
    kn_store_node *node = NULL;
    kn_status st = KN_OK;
    if (atomic_load(&store->health) == KN_FATAL)
        return kn_fail(KN_FATAL, "store: it failed before and must be opened again");
    KN_TRY(kn_store_check_op(op));
    KN_TRY(kn_store_copy_op(&node, op));
    node->done = done;
    node->context = context;
    pthread_mutex_lock(&store->mutex);
    if (store->closing) {
        st = kn_fail(KN_UNAVAILABLE, "store: it is being closed");
    } else if (store->stats.pending >= store->params.max_pending) {
        st = kn_fail(KN_AGAIN, "store: %d operations are pending, the limit", store->stats.pending);
    } else if (store->pending_bytes + node->bytes > KN_STORE_PENDING_BYTES_MAX) {
        st = kn_fail(KN_AGAIN, "store: pending operations hold %zu bytes, the limit is %d", store->pending_bytes,
                     KN_STORE_PENDING_BYTES_MAX);
    } else {
        store->stats.pending++;
        store->pending_bytes += node->bytes;
        append(&store->queue, node);
        node = NULL;
        pthread_cond_signal(&store->queued);
    }
    pthread_mutex_unlock(&store->mutex);
fail:
    if (node) free_node(node);
    return st;
}

int32_t kn_store_drain(kn_store *store)
{
    int32_t count = 0;
    pthread_mutex_lock(&store->mutex);
    kn_store_nodes ready = store->done;
    store->done = (kn_store_nodes){0};
    pthread_mutex_unlock(&store->mutex);
    for (kn_store_node *node = take_first(&ready); node; node = take_first(&ready)) {
        if (node->done) node->done(node->context, &node->result);
        pthread_mutex_lock(&store->mutex);
        store->stats.pending--;
        store->pending_bytes -= node->bytes;
        pthread_mutex_unlock(&store->mutex);
        free_node(node);
        count++;
    }
    return count;
}

bool kn_store_wait(kn_store *store, int32_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&store->mutex);
    int code = 0;
    while (!store->done.first && code != ETIMEDOUT)
        code = timeout_ms < 0 ? pthread_cond_wait(&store->finished, &store->mutex)
                              : pthread_cond_timedwait(&store->finished, &store->mutex, &until);
    const bool ready = store->done.first != NULL;
    pthread_mutex_unlock(&store->mutex);
    return ready;
}

typedef struct performed {
    kn_store_result *result;
    bool finished;
} performed;

static void take_result(void *context, kn_store_result *result)
{
    performed *p = context;
    *p->result = *result;
    p->finished = true;
    *result = (kn_store_result){0}; /* taken: nothing is left to release */
}

kn_status kn_store_perform(kn_store *store, const kn_store_op *op, kn_store_result *result)
{
    performed p = {.result = result};
    *result = (kn_store_result){.kind = op->kind};
    kn_status st = kn_store_submit_op(store, op, take_result, &p);
    if (st != KN_OK) {
        result->status = st;
        snprintf(result->message, sizeof result->message, "%s", kn_fail_message());
        return st;
    }
    while (!p.finished) {
        kn_store_wait(store, -1);
        kn_store_drain(store);
    }
    return result->status == KN_OK ? KN_OK : kn_fail(result->status, "%s", result->message);
}

int32_t kn_store_take_commits(kn_store *store, kn_store_commit *out, int32_t max)
{
    int32_t count = 0;
    pthread_mutex_lock(&store->mutex);
    if (store->commit_count - store->commits_taken > KN_STORE_COMMITS_KEPT)
        store->commits_taken = store->commit_count - KN_STORE_COMMITS_KEPT;
    while (count < max && store->commits_taken < store->commit_count)
        out[count++] = store->commits[store->commits_taken++ % KN_STORE_COMMITS_KEPT];
    pthread_mutex_unlock(&store->mutex);
    return count;
}

kn_status kn_store_health(const kn_store *store)
{
    return (kn_status)atomic_load(&store->health);
}

kn_store_stats kn_store_read_stats(const kn_store *store)
{
    kn_store *lockable = (kn_store *)(uintptr_t)store; /* a lock is no change one could see */
    pthread_mutex_lock(&lockable->mutex);
    kn_store_stats stats = store->stats;
    pthread_mutex_unlock(&lockable->mutex);
    stats.memory_bytes = (uint64_t)sqlite3_memory_used();
    return stats;
}
