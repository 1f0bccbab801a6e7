/* SPDX-License-Identifier: Apache-2.0
 *
 * Every message survives the trip; no damage to its bytes does more than be refused. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "tests/server/wire_samples.h"

typedef struct packet {
    unsigned char *bytes;
    size_t count;
} packet;

static packet encode(const kn_wire_message *m)
{
    packet p = {0};
    void *bytes = NULL;
    if (kn_wire_encode(m, &bytes, &p.count) != KN_OK) fail_msg("%s: %s", kn_wire_kind_name(m->kind), kn_fail_message());
    p.bytes = bytes;
    return p;
}

static void expect_refused(const kn_wire_message *m, const char *text)
{
    kn_wire_message out;
    packet p = encode(m);
    assert_int_equal(kn_wire_decode(&out, p.bytes, p.count), KN_CORRUPT);
    if (!strstr(kn_fail_message(), text)) fail_msg("\"%s\" does not say \"%s\"", kn_fail_message(), text);
    assert_null(out.storage);
    kn_free(p.bytes);
}

static void expect_same_pointers(const kn_wire_message *a, kn_wire_message *b)
{
    if (a->kind == KN_WIRE_CONFIGURE) {
        const kn_runner_params *p = &a->configure.params;
        kn_runner_params *q = &b->configure.params;
        assert_string_equal(p->device, q->device);
        assert_string_equal(p->models, q->models);
        assert_string_equal(p->data, q->data);
        assert_string_equal(p->isa, q->isa);
        q->device = p->device;
        q->models = p->models;
        q->data = p->data;
        q->isa = p->isa;
    } else if (a->kind == KN_WIRE_START) {
        assert_string_equal(a->start.request, b->start.request);
        b->start.request = a->start.request;
    } else if (a->kind == KN_WIRE_PREVIEWED) {
        assert_int_equal(a->previewed.count, b->previewed.count);
        assert_memory_equal(a->previewed.image, b->previewed.image, a->previewed.count);
        b->previewed.image = a->previewed.image;
    }
}

/* Structs are compared byte by byte: both started as zeroes. */
static void test_round_trip(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    for (int kind = KN_WIRE_NONE + 1; kind < KN_WIRE_KINDS; kind++)
        for (int32_t count = 1; count <= KN_RUNNER_PACK_MAX; count += KN_RUNNER_PACK_MAX - 1) {
            static kn_wire_message m, out; /* zero between fields too */
            m = sample_message((kn_wire_kind)kind, count);
            packet p = encode(&m);
            if (kn_wire_decode(&out, p.bytes, p.count) != KN_OK) fail_msg("%s", kn_fail_message());
            void *storage = out.storage;
            assert_int_equal(out.kind, kind);
            expect_same_pointers(&m, &out);
            packet again = encode(&out);
            assert_int_equal(again.count, p.count);
            assert_memory_equal(again.bytes, p.bytes, p.count);
            out.storage = storage;
            kn_wire_release(&out);
            kn_free(p.bytes);
            kn_free(again.bytes);
        }
    assert_int_equal(kn_mem_read().bytes, held);
}

static void touch(const kn_wire_message *m)
{
    if (m->kind == KN_WIRE_START) assert_in_range(strlen(m->start.request), 0, KN_RUNNER_REQUEST_BYTES - 1);
    if (m->kind == KN_WIRE_CONFIGURE) assert_in_range(strlen(m->configure.params.data), 0, KN_WIRE_PATH_BYTES - 1);
    if (m->kind == KN_WIRE_RAN) assert_in_range(m->ran.count, 1, KN_RUNNER_PACK_MAX);
    if (m->kind == KN_WIRE_RUN) assert_true(kn_lease_valid(&m->run.leases[m->run.count - 1]));
}

static bool decodes(const unsigned char *bytes, size_t count)
{
    kn_wire_message out;
    const kn_status st = kn_wire_decode(&out, bytes, count);
    if (st != KN_OK && st != KN_CORRUPT) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
    if (st == KN_OK) touch(&out);
    kn_wire_release(&out);
    return st == KN_OK;
}

/* Exactly sized blocks, so that a sanitizer sees one byte too far. */
static void test_damage(void **state)
{
    (void)state;
    static const unsigned char damage[] = {0x01, 0x02, 0x04, 0x80, 0x7f, 0xff};
    size_t refused = 0;
    for (int kind = KN_WIRE_NONE + 1; kind < KN_WIRE_KINDS; kind++) {
        const kn_wire_message m = sample_message((kn_wire_kind)kind, 3);
        packet p = encode(&m);
        unsigned char *copy = malloc(p.count);
        assert_non_null(copy);
        memcpy(copy, p.bytes, p.count);
        for (size_t i = 0; i < p.count; i++)
            for (size_t k = 0; k < sizeof damage; k++) {
                copy[i] ^= damage[k];
                refused += !decodes(copy, p.count);
                copy[i] = p.bytes[i];
            }
        for (size_t cut = 0; cut < p.count; cut++) {
            unsigned char *piece = malloc(cut ? cut : 1);
            assert_non_null(piece);
            memcpy(piece, p.bytes, cut);
            refused += !decodes(piece, cut);
            free(piece);
        }
        free(copy);
        kn_free(p.bytes);
    }
    assert_true(refused > 1000);
}

static void test_size(void **state)
{
    (void)state;
    unsigned char *large = calloc(1, (size_t)KN_WIRE_BYTES_MAX + 1);
    assert_non_null(large);
    assert_false(decodes(large, KN_WIRE_BYTES_MAX));
    assert_false(decodes(large, (size_t)KN_WIRE_BYTES_MAX + 1));
    assert_non_null(strstr(kn_fail_message(), "16777216"));
    assert_false(decodes(large, 0));
    free(large);
}

static void test_texts(void **state)
{
    (void)state;
    char *text = malloc(KN_RUNNER_REQUEST_BYTES + 1);
    kn_wire_message m = sample_message(KN_WIRE_START, 1);
    void *bytes = NULL;
    size_t count;
    assert_non_null(text);
    memset(text, 'x', KN_RUNNER_REQUEST_BYTES);
    text[KN_RUNNER_REQUEST_BYTES - 1] = '\0';
    m.start.request = text;
    packet p = encode(&m);
    assert_true(decodes(p.bytes, p.count));
    unsigned char *inside = memchr(p.bytes, 'x', p.count);
    inside[100] = '\0';
    assert_false(decodes(p.bytes, p.count));
    assert_non_null(strstr(kn_fail_message(), "NUL"));
    kn_free(p.bytes);
    text[KN_RUNNER_REQUEST_BYTES - 1] = 'x';
    text[KN_RUNNER_REQUEST_BYTES] = '\0';
    assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
    m.start.request = NULL;
    assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
    free(text);

    static const char *const lines[][2] = {{"two\nlines\x1b[2J", "two?lines?[2J"}, {"caf\xc3\xa9", "caf??"}};
    for (size_t i = 0; i < 2; i++) {
        kn_wire_message fatal = sample_message(KN_WIRE_FATAL, 1), out;
        snprintf(fatal.fatal.message, sizeof fatal.fatal.message, "%s", lines[i][0]);
        p = encode(&fatal);
        assert_int_equal(kn_wire_decode(&out, p.bytes, p.count), KN_OK);
        assert_string_equal(out.fatal.message, lines[i][1]);
        kn_wire_release(&out);
        kn_free(p.bytes);
    }
}

static void test_counts(void **state)
{
    (void)state;
    void *bytes = NULL;
    size_t count;
    for (int32_t n = 0; n <= KN_RUNNER_PACK_MAX + 1; n += KN_RUNNER_PACK_MAX + 1) {
        kn_wire_message m = sample_message(KN_WIRE_RUN, 1);
        m.run.count = n;
        assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
        m = sample_message(KN_WIRE_RAN, 1);
        m.ran.count = n;
        assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
    }
    kn_wire_message m = sample_message(KN_WIRE_PREVIEWED, 1);
    m.previewed.count = KN_RUNNER_PREVIEW_BYTES + 1;
    assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
    m.kind = KN_WIRE_KINDS;
    assert_int_equal(kn_wire_encode(&m, &bytes, &count), KN_INVALID);
}

/* What a verifier of offsets has no opinion on. */
static void test_meaning(void **state)
{
    (void)state;
    kn_wire_message m = sample_message(KN_WIRE_STARTED, 1);
    m.outcome.checkpoint = sample_saved(&(kn_lease){.job = "video_000000000000000000000000000000ff", .epoch = 3}, 4);
    expect_refused(&m, "not a file of this job");
    m = sample_message(KN_WIRE_STARTED, 1);
    m.outcome.checkpoint.step = 5; /* and the name says 4 */
    expect_refused(&m, "not a file of this job");
    m = sample_message(KN_WIRE_STARTED, 1);
    snprintf(m.outcome.checkpoint.name, sizeof m.outcome.checkpoint.name, "../../etc/passwd");
    expect_refused(&m, "not a file of this job");
    m = sample_message(KN_WIRE_START, 1);
    m.start.checkpoint = sample_saved(&(kn_lease){.job = "video_00000000000000000000000000000007", .epoch = 3}, 2);
    expect_refused(&m, "not a file of this job"); /* of a later epoch than the job's */
    m = sample_message(KN_WIRE_START, 1);
    snprintf(m.start.model, sizeof m.start.model, "../demo");
    expect_refused(&m, "not a model's name");
    m = sample_message(KN_WIRE_START, 1);
    snprintf(m.start.lease.job, sizeof m.start.lease.job, "video_1");
    expect_refused(&m, "lease");
    m = sample_message(KN_WIRE_RELEASE, 1);
    m.lease.lease.epoch = 0;
    expect_refused(&m, "lease");
    m = sample_message(KN_WIRE_RELEASE, 1);
    m.lease.mode = KN_RELEASE_MODES;
    expect_refused(&m, "mode");
    m = sample_message(KN_WIRE_RAN, 1);
    m.ran.seconds = NAN;
    expect_refused(&m, "seconds");
    m = sample_message(KN_WIRE_RAN, 2);
    m.ran.outcomes[0].fault = KN_FAULT_MEMORY;
    expect_refused(&m, "contradicts status");
    m = sample_message(KN_WIRE_RAN, 2);
    m.ran.outcomes[1].next.kind = KN_SLICE_MUX;
    expect_refused(&m, "not done");
    m = sample_message(KN_WIRE_FATAL, 1);
    m.fatal.status = KN_IO;
    expect_refused(&m, "not fatal");
    m = sample_message(KN_WIRE_FATAL, 1);
    m.fatal.status = (kn_status)-1;
    expect_refused(&m, "status");
    m = sample_message(KN_WIRE_PREVIEWED, 1);
    m.previewed.status = KN_IO;
    expect_refused(&m, "contradicts status");
}

static void test_meaning_of_groups(void **state)
{
    (void)state;
    static const int32_t ranks[][2] = {{1, 0}, {KN_COMM_RANKS_MAX + 1, 0}, {4, 4}, {4, -1}, {-4, 0}};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        kn_wire_message m = sample_message(KN_WIRE_JOIN, 1);
        m.group.group.ranks = ranks[i][0];
        m.group.group.rank = ranks[i][1];
        expect_refused(&m, "rank");
    }
    static const kn_wire_kind named[] = {KN_WIRE_JOIN, KN_WIRE_JOINED, KN_WIRE_LEAVE, KN_WIRE_LEFT};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        kn_wire_message m = sample_message(named[i], 1);
        m.group.group.epoch = 0;
        expect_refused(&m, "epoch");
    }
    kn_wire_message m = sample_message(KN_WIRE_ASSIST, 1);
    m.assist.group = 0;
    expect_refused(&m, "epoch");
    m = sample_message(KN_WIRE_ASSIST, 1);
    m.assist.limit_ns = -1;
    expect_refused(&m, "limit_ns");
    m = sample_message(KN_WIRE_ASSIST, 1);
    snprintf(m.assist.model, sizeof m.assist.model, "../demo");
    expect_refused(&m, "not a model's name");
    m = sample_message(KN_WIRE_ASSISTED, 1);
    m.assist.seconds = -1.0;
    expect_refused(&m, "seconds");
    m = sample_message(KN_WIRE_RUN, 1);
    m.run.limit_ns = -1;
    expect_refused(&m, "limit_ns");
}

static void test_no_memory(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    for (int kind = KN_WIRE_NONE + 1; kind < KN_WIRE_KINDS; kind++) {
        const kn_wire_message m = sample_message((kn_wire_kind)kind, 32);
        kn_status st = KN_NOMEM;
        int n = 1;
        for (; st != KN_OK && n < 100; n++) {
            void *bytes = NULL;
            size_t count = 0;
            kn_wire_message out = {0};
            kn_mem_fail_at((uint64_t)n);
            st = kn_wire_encode(&m, &bytes, &count);
            if (st == KN_OK) st = kn_wire_decode(&out, bytes, count);
            kn_mem_fail_at(0);
            if (st != KN_OK) assert_int_equal(st, KN_NOMEM);
            kn_wire_release(&out);
            kn_free(bytes);
        }
        assert_in_range(n, 3, 50);
    }
    assert_int_equal(kn_mem_read().bytes, held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_size),       cmocka_unit_test(test_texts),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_meaning),
        cmocka_unit_test(test_no_memory),  cmocka_unit_test(test_meaning_of_groups),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
