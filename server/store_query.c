/* SPDX-License-Identifier: Apache-2.0
 *
 * Read connections, and the queries of jobs and quotas. Every statement is one bounded walk along an index; none of
 * them touches finished jobs it does not return. */
#include <inttypes.h>
#include <string.h>

#include "server/store_internal.h"

/* ---- read connections ---- */

sqlite3 *kn_store_take_reader(kn_store *store)
{
    sqlite3 *reader = NULL;
    pthread_mutex_lock(&store->mutex);
    while (!reader) {
        for (int i = 0; i < KN_STORE_READERS && !reader; i++)
            if (!store->reader_busy[i]) {
                store->reader_busy[i] = true;
                reader = store->readers[i];
            }
        if (!reader) pthread_cond_wait(&store->reader_free, &store->mutex);
    }
    pthread_mutex_unlock(&store->mutex);
    return reader;
}

void kn_store_give_reader(kn_store *store, sqlite3 *reader)
{
    pthread_mutex_lock(&store->mutex);
    for (int i = 0; i < KN_STORE_READERS; i++)
        if (store->readers[i] == reader) store->reader_busy[i] = false;
    pthread_cond_signal(&store->reader_free);
    pthread_mutex_unlock(&store->mutex);
}

kn_status kn_query_begin(kn_query *query, kn_store *store, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    *query = (kn_query){.store = store, .reader = kn_store_take_reader(store)};
    const int code = sqlite3_prepare_v2(query->reader, sql, -1, &statement, NULL);
    query->binder = kn_sql_bind_to(statement);
    return code == SQLITE_OK ? KN_OK : kn_sqlite_fail(query->reader, code, "store");
}

void kn_query_end(kn_query *query)
{
    if (!query->reader) return;
    sqlite3_finalize(query->binder.statement);
    kn_store_give_reader(query->store, query->reader);
    query->reader = NULL;
}

/* ---- jobs ---- */

static kn_status walk_jobs(kn_query *query, kn_store_job_fn *fn, void *context, int32_t limit, bool *more)
{
    kn_status st = KN_OK;
    kn_job job;
    bool row;
    KN_TRY(kn_sql_step(&query->binder, &row));
    for (int32_t n = 0; row; n++) {
        if (n == limit) {
            *more = true;
            return KN_OK;
        }
        KN_TRY(kn_column_job(query->binder.statement, &job));
        st = fn(context, &job);
        kn_job_release(&job);
        KN_TRY(st);
        KN_TRY(kn_sql_step(&query->binder, &row));
    }
fail:
    return st;
}

kn_status kn_store_load_unfinished(kn_store *store, kn_store_job_fn *fn, void *context)
{
    kn_status st = KN_OK;
    kn_query query;
    KN_TRY(kn_query_begin(
        &query, store, "SELECT " KN_JOB_COLUMNS " FROM jobs INDEXED BY jobs_unfinished WHERE state < 2 ORDER BY seq"));
    KN_TRY(walk_jobs(&query, fn, context, -1, NULL));
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_job_get(kn_store *store, const char *tenant, const char *id, kn_job *out)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT " KN_JOB_COLUMNS " FROM jobs WHERE id = ?1 AND tenant = ifnull(?2, tenant)"));
    kn_bind_text(&query.binder, id);
    kn_bind_text(&query.binder, tenant);
    KN_TRY(kn_sql_step(&query.binder, &row));
    st = row ? kn_column_job(query.binder.statement, out) : kn_fail(KN_NOT_FOUND, "there is no such job");
fail:
    kn_query_end(&query);
    return st;
}

static kn_status find_cursor(kn_store *store, const kn_store_list *list, int64_t *seq)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    *seq = list->ascending ? 0 : INT64_MAX;
    if (!list->after) return KN_OK;
    KN_TRY(kn_query_begin(&query, store, "SELECT seq FROM jobs WHERE id = ?1 AND tenant = ifnull(?2, tenant)"));
    kn_bind_text(&query.binder, list->after);
    kn_bind_text(&query.binder, list->tenant);
    KN_TRY(kn_sql_step(&query.binder, &row));
    if (row)
        *seq = sqlite3_column_int64(query.binder.statement, 0);
    else
        st = kn_fail(KN_NOT_FOUND, "there is no job the page could begin behind");
fail:
    kn_query_end(&query);
    return st;
}

static kn_status check_limit(int32_t limit)
{
    return limit >= 1 && limit <= KN_STORE_LIST_MAX
               ? KN_OK
               : kn_fail(KN_INVALID, "store: limit is %d; 1..%d", limit, KN_STORE_LIST_MAX);
}

kn_status kn_store_job_list(kn_store *store, const kn_store_list *list, kn_store_job_fn *fn, void *context, bool *more)
{
    /* By tenant or all, newest or oldest first; seq has the order of created_at. */
    static const char *const texts[2][2] = {
        {"SELECT " KN_JOB_COLUMNS " FROM jobs WHERE state <> 6 AND seq < ?1 ORDER BY seq DESC LIMIT ?2",
         "SELECT " KN_JOB_COLUMNS " FROM jobs WHERE state <> 6 AND seq > ?1 ORDER BY seq LIMIT ?2"},
        {"SELECT " KN_JOB_COLUMNS " FROM jobs INDEXED BY jobs_tenant WHERE tenant = ?3 AND state <> 6 AND seq < ?1"
         " ORDER BY seq DESC LIMIT ?2",
         "SELECT " KN_JOB_COLUMNS " FROM jobs INDEXED BY jobs_tenant WHERE tenant = ?3 AND state <> 6 AND seq > ?1"
         " ORDER BY seq LIMIT ?2"},
    };
    kn_status st = KN_OK;
    int64_t seq;
    bool further = false;
    kn_query query = {0};
    KN_TRY(check_limit(list->limit));
    KN_TRY(find_cursor(store, list, &seq));
    KN_TRY(kn_query_begin(&query, store, texts[list->tenant != NULL][list->ascending]));
    kn_bind_int(&query.binder, seq);
    kn_bind_int(&query.binder, (int64_t)list->limit + 1);
    if (list->tenant) kn_bind_text(&query.binder, list->tenant);
    KN_TRY(walk_jobs(&query, fn, context, list->limit, &further));
    if (more) *more = further;
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_recent_errors(kn_store *store, int32_t limit, kn_store_job_fn *fn, void *context)
{
    kn_status st = KN_OK;
    kn_query query = {0};
    KN_TRY(check_limit(limit));
    KN_TRY(kn_query_begin(&query, store,
                          "SELECT " KN_JOB_COLUMNS " FROM jobs INDEXED BY jobs_failed WHERE state = 3"
                          " ORDER BY completed_at DESC LIMIT ?"));
    kn_bind_int(&query.binder, limit);
    KN_TRY(walk_jobs(&query, fn, context, -1, NULL));
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_counts(kn_store *store, int64_t counts[KN_JOB_STATES])
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    memset(counts, 0, KN_JOB_STATES * sizeof *counts);
    KN_TRY(kn_query_begin(&query, store, "SELECT state, jobs FROM counts"));
    KN_TRY(kn_sql_step(&query.binder, &row));
    while (row) {
        const int64_t state = sqlite3_column_int64(query.binder.statement, 0);
        if (state >= 0 && state < KN_JOB_STATES) counts[state] = sqlite3_column_int64(query.binder.statement, 1);
        KN_TRY(kn_sql_step(&query.binder, &row));
    }
fail:
    kn_query_end(&query);
    return st;
}

kn_status kn_store_tenant_usage(kn_store *store, const char *tenant, kn_store_usage *out)
{
    kn_status st = KN_OK;
    bool row;
    kn_query query;
    *out = (kn_store_usage){0};
    KN_TRY(kn_query_begin(&query, store, KN_SQL_TENANT_USAGE));
    kn_bind_text(&query.binder, tenant);
    KN_TRY(kn_sql_step(&query.binder, &row));
    if (row) kn_store_read_usage(query.binder.statement, out);
fail:
    kn_query_end(&query);
    return st;
}
