/* SPDX-License-Identifier: Apache-2.0
 *
 * The audit log's hash chain: its bytes, and that no change of the stored log stays unseen. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/sha.h>

#include "tests/server/store_test.h"

enum { RECORDS = 40 };

/* The bytes the header promises, put together by hand. */
static void test_canonical_bytes(void **state)
{
    (void)state;
    kn_audit_head head = {0};
    kn_audit_record record = {.at = 0x0102030405060708, .actor = "me", .action = "job.x", .subject = "s"};
    memset(record.detail, 0xdd, sizeof record.detail);
    uint8_t bytes[32 + 16 + 2 + 2 + 2 + 5 + 2 + 1 + 32] = {0}, hash[32];
    bytes[32 + 7] = 1;
    memcpy(bytes + 40, "\1\2\3\4\5\6\7\10", 8);
    memcpy(bytes + 48, "\0\2me\0\5job.x\0\1s", 14);
    memset(bytes + 62, 0xdd, 32);
    SHA256(bytes, sizeof bytes, hash);
    kn_audit_append(&head, &record);
    assert_int_equal(record.sequence, 1);
    assert_memory_equal(record.hash, hash, 32);
    assert_memory_equal(head.hash, hash, 32);
    assert_int_equal(head.sequence, 1);
}

static void test_follow(void **state)
{
    (void)state;
    kn_audit_head head = {0}, check = {0};
    kn_audit_record records[3] = {{.at = 1, .actor = "a", .action = "b", .subject = "c"}};
    records[1] = records[2] = records[0];
    for (int i = 0; i < 3; i++) kn_audit_append(&head, &records[i]);
    assert_int_equal(kn_audit_follow(&check, &records[1]), KN_CORRUPT); /* not the first */
    assert_int_equal(kn_audit_follow(&check, &records[0]), KN_OK);
    assert_int_equal(kn_audit_follow(&check, &records[0]), KN_CORRUPT); /* twice */
    assert_int_equal(kn_audit_follow(&check, &records[1]), KN_OK);
    kn_audit_record moved = records[2]; /* the text of one field in the next: the lengths tell */
    snprintf(moved.actor, sizeof moved.actor, "ab");
    snprintf(moved.action, sizeof moved.action, "%s", "");
    assert_int_equal(kn_audit_follow(&check, &moved), KN_CORRUPT);
    assert_int_equal(kn_audit_follow(&check, &records[2]), KN_OK);
    assert_memory_equal(&check, &head, sizeof head);
}

/* Ten thousand random changes of one bit, of a chain in memory. */
static void test_every_bit_counts(void **state)
{
    (void)state;
    enum { CHAIN = 16, CHANGES = 10000 };
    kn_audit_record records[CHAIN];
    kn_audit_head head = {0};
    uint64_t random = 88172645463325252u;
    for (int i = 0; i < CHAIN; i++) {
        records[i] = (kn_audit_record){.at = START + i, .actor = "operator", .action = "key.revoke", .subject = "k1"};
        kn_audit_append(&head, &records[i]);
    }
    for (int n = 0; n < CHANGES; n++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        kn_audit_record *r = &records[random % CHAIN];
        struct {
            void *bytes;
            size_t count;
        } fields[] = {{&r->sequence, 8}, {&r->at, 8},     {r->actor, 8}, {r->action, 10},
                      {r->subject, 2},   {r->detail, 32}, {r->hash, 32}};
        const size_t field = (random >> 8) % 7;
        uint8_t *byte = (uint8_t *)fields[field].bytes + (random >> 16) % fields[field].count;
        const uint8_t flip = (uint8_t)(1u << ((random >> 32) % 8));
        *byte ^= flip;
        kn_audit_head check = {0};
        kn_status st = KN_OK;
        for (int i = 0; i < CHAIN && st == KN_OK; i++) st = kn_audit_follow(&check, &records[i]);
        *byte ^= flip;
        if (st != KN_CORRUPT) fail_msg("change %d of field %d was not found", n, (int)field);
    }
}

static void fill_log(fixture *f)
{
    kn_job job;
    while (true) {
        kn_audit_head head;
        assert_int_equal(kn_store_audit_head(f->store, &head), KN_OK);
        if (head.sequence >= RECORDS) return;
        submit_job(f->store, &job, "acme");
        atomic_fetch_add(&f->now, SECOND);
    }
}

/* Applies a change behind the store's back and says what the verification finds. */
static kn_status tamper(fixture *f, const char *sql, const kn_audit_head *kept, int64_t *first_bad)
{
    kn_store_close(&f->store);
    sqlite3 *db = open_database(f->directory);
    assert_int_equal(sqlite3_exec(db, "CREATE TABLE kept AS SELECT * FROM audit", NULL, NULL, NULL), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
    open_store(f);
    *first_bad = -1;
    const kn_status st = kn_store_audit_verify(f->store, kept, first_bad);
    kn_store_close(&f->store);
    db = open_database(f->directory);
    const char *back = "DELETE FROM audit; INSERT INTO audit SELECT * FROM kept; DROP TABLE kept";
    assert_int_equal(sqlite3_exec(db, back, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    open_store(f);
    assert_int_equal(kn_store_audit_verify(f->store, kept, NULL), KN_OK);
    return st;
}

static void test_tampering_is_found(void **state)
{
    fixture *f = *state;
    static const struct {
        const char *sql;
        int64_t bad;
    } changes[] = {
        {"UPDATE audit SET actor = 'somebody' WHERE sequence = 7", 7},
        {"UPDATE audit SET action = 'job.cancel' WHERE sequence = 1", 1},
        {"UPDATE audit SET subject = subject || 'x' WHERE sequence = 7", 7},
        {"UPDATE audit SET at = at + 1 WHERE sequence = 40", 40},
        {"UPDATE audit SET detail = randomblob(32) WHERE sequence = 9", 9},
        {"UPDATE audit SET hash = zeroblob(32) WHERE sequence = 9", 9},
        {"UPDATE audit SET hash = x'00' WHERE sequence = 9", 9},
        {"UPDATE audit SET actor = '' WHERE sequence = 9", 9},
        {"DELETE FROM audit WHERE sequence = 20", 21},
        {"DELETE FROM audit WHERE sequence <= 3", 4},
        {"DELETE FROM audit WHERE sequence = 20; UPDATE audit SET sequence = sequence - 1 WHERE sequence > 20", 20},
        {"UPDATE audit SET sequence = 100 WHERE sequence = 10; UPDATE audit SET sequence = 10 WHERE sequence = 11;"
         "UPDATE audit SET sequence = 11 WHERE sequence = 100",
         10},
        {"INSERT INTO audit SELECT 0, at, actor, action, subject, detail, hash FROM audit WHERE sequence = 1", 0},
        {"INSERT INTO audit SELECT 41, at, actor, action, subject, detail, hash FROM audit WHERE sequence = 40", 41},
        {"DELETE FROM audit WHERE sequence > 30", 31}, /* needs the head that was kept */
        {"DELETE FROM audit", 1},
    };
    kn_audit_head head;
    int64_t bad;
    fill_log(f);
    assert_int_equal(kn_store_audit_head(f->store, &head), KN_OK);
    assert_int_equal(head.sequence, RECORDS);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        const kn_status st = tamper(f, changes[i].sql, &head, &bad);
        if (st != KN_CORRUPT || bad != changes[i].bad)
            fail_msg("%s: %s, first bad %d", changes[i].sql, kn_status_name(st), (int)bad);
    }
    assert_int_equal(tamper(f, "DELETE FROM audit WHERE sequence > 30", NULL, &bad), KN_OK); /* unseen without it */
    kn_audit_head forged = head;
    forged.hash[5] ^= 1;
    assert_int_equal(kn_store_audit_verify(f->store, &forged, &bad), KN_CORRUPT);
    assert_int_equal(bad, RECORDS);
}

/* More records than one snapshot of the walk holds. */
static void test_a_long_log(void **state)
{
    fixture *f = *state;
    enum { LONG = 4500 };
    int64_t bad;
    for (int sent = 0; sent < LONG;) {
        const kn_store_op op = {.kind = KN_STORE_AUDIT, .id = "x", .audit = {.action = "test"}};
        const kn_status st = kn_store_submit_op(f->store, &op, NULL, NULL);
        assert_true(st == KN_OK || st == KN_AGAIN);
        sent += st == KN_OK;
        if (st == KN_AGAIN) kn_store_wait(f->store, -1);
        kn_store_drain(f->store);
    }
    while (kn_store_read_stats(f->store).pending > 0) {
        kn_store_wait(f->store, -1);
        kn_store_drain(f->store);
    }
    assert_int_equal(tamper(f, "DELETE FROM audit WHERE sequence = 4097", NULL, &bad), KN_CORRUPT);
    assert_int_equal(bad, 4098);
}

typedef struct seen {
    int count;
    kn_audit_record last;
} seen;

static kn_status see(void *context, const kn_audit_record *record)
{
    seen *s = context;
    assert_true(record->at >= s->last.at);
    s->last = *record;
    s->count++;
    return KN_OK;
}

static void test_what_is_recorded(void **state)
{
    fixture *f = *state;
    seen s = {0};
    kn_job job;
    submit_job(f->store, &job, "acme");
    assert_int_equal(kn_store_audit_list(f->store, 0, 10, see, &s), KN_OK);
    assert_int_equal(s.count, 1);
    assert_string_equal(s.last.action, "job.submit");
    assert_string_equal(s.last.actor, "server");
    assert_string_equal(s.last.subject, job.id);

    kn_store_op op = {
        .kind = KN_STORE_AUDIT, .actor = "operator", .id = "cameo_1", .audit = {.action = "consent.revoke"}};
    op.audit.detail[3] = 9;
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    atomic_store(&f->now, START - HOUR); /* its times never decrease */
    assert_outcome(claim(f->store, job.id, 0), KN_STORE_DONE);
    op = publish_of(job.id, 1);
    op.actor = "worker";
    assert_outcome(perform(f->store, &op), KN_STORE_DONE);
    assert_int_equal(kn_store_audit_list(f->store, 1, 1, see, &s), KN_OK);
    assert_int_equal(s.count, 2);
    assert_string_equal(s.last.action, "consent.revoke");
    assert_string_equal(s.last.actor, "operator");
    assert_int_equal(s.last.detail[3], 9);
    assert_int_equal(kn_store_audit_list(f->store, 2, 10, see, &s), KN_OK);
    assert_int_equal(s.count, 3); /* a claim is not recorded */
    assert_string_equal(s.last.action, "job.publish");
    assert_int_equal(s.last.detail[0], 1); /* what was published */
    assert_int_equal(kn_store_audit_list(f->store, 0, KN_STORE_LIST_MAX + 1, see, &s), KN_INVALID);

    reopen_store(f); /* and goes on where it was */
    submit_job(f->store, &job, "acme");
    assert_int_equal(kn_store_audit_verify(f->store, NULL, NULL), KN_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canonical_bytes),  cmocka_unit_test(test_follow),
        cmocka_unit_test(test_every_bit_counts), STORE_TEST(test_a_long_log),
        STORE_TEST(test_tampering_is_found),     STORE_TEST(test_what_is_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
