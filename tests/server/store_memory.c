/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that runs out at the n-th allocation, n swept over opening, every kind of operation and every query; SQLite
 * allocates from the same counter. Each call succeeds or says KN_NOMEM (or, where SQLite turns a failed allocation into
 * an error of its own, another one); nothing is acknowledged that is not there, and nothing leaks.
 *
 * KN_STRIDE in the environment: 1 tries every allocation. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/log.h"
#include "tests/server/store_test.h"

enum { SIZE_BYTES = 16, STRIDE = 5, OPEN_STRIDE = 37 };

/* ---- SQLite's allocator: ours, with the size in front ---- */

static void *memory_take(int bytes)
{
    char *block = kn_alloc((size_t)bytes + SIZE_BYTES);
    if (!block) return NULL;
    memcpy(block, &bytes, sizeof bytes);
    return block + SIZE_BYTES;
}

static int memory_size(void *pointer)
{
    int bytes = 0;
    if (pointer) memcpy(&bytes, (char *)pointer - SIZE_BYTES, sizeof bytes);
    return bytes;
}

static void memory_give(void *pointer)
{
    if (pointer) kn_free((char *)pointer - SIZE_BYTES);
}

static void *memory_resize(void *pointer, int bytes)
{
    char *block = kn_realloc(pointer ? (char *)pointer - SIZE_BYTES : NULL, (size_t)bytes + SIZE_BYTES);
    if (!block) return NULL;
    memcpy(block, &bytes, sizeof bytes);
    return block + SIZE_BYTES;
}

static int memory_round(int bytes)
{
    return (bytes + 7) & ~7;
}

static int memory_begin(void *context)
{
    (void)context;
    return SQLITE_OK;
}

static void memory_end(void *context)
{
    (void)context;
}

/* ---- the sweep ---- */

typedef struct subject {
    char directory[PATH_BYTES];
    kn_store *store;
    kn_job job, other;
    bool done[KN_STORE_KINDS + 1]; /* operation i was acknowledged */
    int64_t delivery;
} subject;

static kn_status ignore_job(void *context, const kn_job *job)
{
    (void)context;
    assert_true(kn_job_id_valid(job->id));
    return KN_OK;
}

static kn_status note_delivery(void *context, const kn_delivery_row *row)
{
    ((subject *)context)->delivery = row->id;
    return KN_OK;
}

static kn_status ignore_endpoint(void *context, const kn_endpoint_row *row)
{
    (void)context;
    (void)row;
    return KN_OK;
}

static kn_status ignore_key(void *context, const kn_key_row *row)
{
    (void)context;
    (void)row;
    return KN_OK;
}

static void run_operations(subject *s)
{
    const kn_endpoint_row endpoint = endpoint_of("we_1", "acme", 3);
    const kn_key_row key = {.id = "k1", .tenant = "acme"};
    kn_store_op ops[] = {
        {.kind = KN_STORE_ENDPOINT_PUT, .endpoint = &endpoint},
        {.kind = KN_STORE_KEY_ADD, .key = &key},
        submit_of(&s->job),
        submit_of(&s->other), /* replayed */
        {.kind = KN_STORE_CLAIM, .id = s->job.id},
        {.kind = KN_STORE_CHECKPOINT, .id = s->job.id, .epoch = 1, .checkpoint = {.name = "a"}},
        {.kind = KN_STORE_COUNT_ATTEMPT, .id = s->job.id, .epoch = 1},
        {.kind = KN_STORE_RELEASE, .id = s->job.id, .epoch = 1},
        {.kind = KN_STORE_CLAIM, .id = s->job.id, .epoch = 1},
        finish_of(s->job.id, 2, KN_JOB_FAILED),
        {.kind = KN_STORE_RETRY, .id = s->job.id},
        {.kind = KN_STORE_CLAIM, .id = s->job.id, .epoch = 2},
        publish_of(s->job.id, 3),
        {.kind = KN_STORE_DELIVERY, .delivery = {.id = 1, .outcome = KN_DELIVERY_DONE}},
        {.kind = KN_STORE_EXPIRE, .batch = 10},
        {.kind = KN_STORE_REMOVE, .id = s->job.id, .tenant = "acme"},
        {.kind = KN_STORE_ENDPOINT_DISABLE, .id = "we_1"},
        {.kind = KN_STORE_ENDPOINT_REMOVE, .id = "we_1", .tenant = "acme"},
        {.kind = KN_STORE_KEY_REVOKE, .id = "k1"},
        {.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}},
        {.kind = KN_STORE_PURGE, .batch = 10},
    };
    ops[2].submit.idempotency_key = ops[3].submit.idempotency_key = "k";
    ops[12].publish.expires_at = 1;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        const kn_store_result r = perform(s->store, &ops[i]);
        assert_true(r.status == KN_OK || r.message[0] != '\0');
        assert_true(r.status == KN_OK || r.status == KN_NOMEM || r.status == KN_IO || r.status == KN_UNAVAILABLE);
        assert_int_not_equal(kn_store_health(s->store), KN_FATAL);
        if (ops[i].kind == KN_STORE_SUBMIT && r.status == KN_OK && r.outcome == KN_STORE_DONE) s->done[i] = true;
    }
}

static void run_queries(subject *s)
{
    kn_job job;
    kn_key_row key;
    kn_store_usage usage;
    kn_audit_head head;
    int64_t counts[KN_JOB_STATES], at;
    const kn_store_list list = {.tenant = "acme", .limit = 10};
    const kn_status all[] = {
        kn_store_load_unfinished(s->store, ignore_job, NULL),
        kn_store_job_list(s->store, &list, ignore_job, NULL, NULL),
        kn_store_recent_errors(s->store, 5, ignore_job, NULL),
        kn_store_counts(s->store, counts),
        kn_store_tenant_usage(s->store, "acme", &usage),
        kn_store_deliveries_due(s->store, INT64_MAX, 5, note_delivery, s),
        kn_store_next_delivery(s->store, &at),
        kn_store_endpoints(s->store, "acme", ignore_endpoint, NULL),
        kn_store_keys(s->store, NULL, ignore_key, NULL),
        kn_store_key_get(s->store, "none", &key),
        kn_store_audit_head(s->store, &head),
        kn_store_audit_verify(s->store, NULL, NULL),
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_true(all[i] == KN_OK || all[i] == KN_NOMEM || all[i] == KN_NOT_FOUND || all[i] == KN_IO);
    if (kn_store_job_get(s->store, "acme", s->job.id, &job) == KN_OK) kn_job_release(&job);
}

static void sweep(uint64_t stride, bool opening)
{
    subject *s = kn_alloc(sizeof *s);
    assert_non_null(s);
    uint64_t nth = 0, total = 0, tries = 0; /* the first round has memory, and counts */
    for (; nth <= total; nth += nth == 0 ? 1 : stride, tries++) {
        const uint64_t before = kn_mem_read().bytes;
        *s = (subject){.store = NULL};
        make_fast_directory(s->directory);
        const kn_store_params params = {.directory = s->directory};
        fill_job(&s->job, "acme");
        fill_job(&s->other, "acme");
        const uint64_t start = kn_mem_read().allocations;
        if (opening) kn_mem_fail_at(nth);
        kn_status st = kn_store_open(&s->store, &params);
        if (opening && nth == 0) total = kn_mem_read().allocations - start;
        kn_mem_fail_at(0);
        assert_true(st == KN_OK || s->store == NULL);
        if (st != KN_OK) st = kn_store_open(&s->store, &params); /* with memory it works */
        if (st != KN_OK) fail_msg("allocation %d: %s", (int)nth, kn_fail_message());
        const uint64_t first = kn_mem_read().allocations;
        if (!opening) kn_mem_fail_at(nth);
        run_operations(s);
        run_queries(s);
        if (!opening && nth == 0) total = kn_mem_read().allocations - first;
        kn_mem_fail_at(0);
        kn_job job;
        if (s->done[2]) assert_int_equal(kn_store_job_get(s->store, NULL, s->job.id, &job), KN_OK);
        if (s->done[2]) kn_job_release(&job);
        assert_int_equal(kn_store_audit_verify(s->store, NULL, NULL), KN_OK);
        kn_store_close(&s->store);
        check_invariants(s->directory);
        remove_directory(s->directory);
        assert_int_equal(kn_mem_read().bytes, before);
    }
    print_message("%d of %d allocations\n", (int)tries - 1, (int)total);
    assert_true(total > 100);
    kn_free(s);
}

static uint64_t stride_or(uint64_t otherwise)
{
    const char *text = getenv("KN_STRIDE");
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static void test_operations_without_memory(void **state)
{
    (void)state;
    sweep(stride_or(STRIDE), false);
}

static void test_opening_without_memory(void **state)
{
    (void)state;
    sweep(stride_or(OPEN_STRIDE), true);
}

int main(void)
{
    static const sqlite3_mem_methods methods = {memory_take,  memory_give,  memory_resize, memory_size,
                                                memory_round, memory_begin, memory_end,    NULL};
    kn_log_configure(KN_LOG_ERROR + 1, 0);
    if (sqlite3_config(SQLITE_CONFIG_MALLOC, &methods) != SQLITE_OK || sqlite3_initialize() != SQLITE_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_operations_without_memory),
        cmocka_unit_test(test_opening_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
