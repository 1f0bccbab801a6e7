/* SPDX-License-Identifier: Apache-2.0
 *
 * references.h: pictures only, each its tenant's own, gone after an hour, bounded in number. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/mem.h"
#include "server/references.h"

/* The header of a 2 x 3 PNG, and an empty data chunk; the sizes and sums are the format's. */
static const uint8_t png[] = {0x89, 'P',  'N',  'G', '\r', '\n', 0x1a, '\n', 0,    0,    0,    13,   'I',  'H',  'D',
                              'R',  0,    0,    0,   2,    0,    0,    0,    3,    8,    2,    0,    0,    0,    0x12,
                              0x16, 0xf1, 0x4d, 0,   0,    0,    0,    'I',  'D',  'A',  'T',  0x35, 0xaf, 0x06, 0x1e,
                              0,    0,    0,    0,   'I',  'E',  'N',  'D',  0xae, 0x42, 0x60, 0x82};

static uint8_t *copy(const void *bytes, size_t count)
{
    uint8_t *out = kn_alloc(count);
    memcpy(out, bytes, count);
    return out;
}

static const kn_reference *add(kn_references *r, const char *tenant, int64_t now_us)
{
    const kn_reference *reference = NULL;
    kn_api_error error;
    assert_int_equal(kn_references_add(r, tenant, copy(png, sizeof png), sizeof png, now_us, &reference, &error),
                     KN_OK);
    return reference;
}

static void a_picture_is_its_tenants_for_an_hour(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    kn_references *r;
    char id[KN_REFERENCE_ID_BYTES];
    assert_int_equal(kn_references_create(&r), KN_OK);
    const kn_reference *reference = add(r, "a", 1000);
    memcpy(id, reference->id, sizeof id);
    assert_int_equal(reference->info.width, 2);
    assert_int_equal(reference->info.height, 3);
    assert_int_equal(strncmp(id, "file_", 5), 0);
    assert_non_null(kn_references_find(r, "a", id, 1000));
    assert_null(kn_references_find(r, "b", id, 1000));
    assert_null(kn_references_find(r, "a", "file_0", 1000));
    assert_non_null(kn_references_find(r, "a", id, 1000 + KN_REFERENCE_SECONDS * INT64_C(1000000) - 1));
    assert_null(kn_references_find(r, "a", id, 1000 + KN_REFERENCE_SECONDS * INT64_C(1000000)));
    kn_references_destroy(&r);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void what_is_no_picture_is_refused(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    kn_references *r;
    const kn_reference *reference;
    kn_api_error error;
    assert_int_equal(kn_references_create(&r), KN_OK);
    assert_int_not_equal(kn_references_add(r, "a", NULL, 0, 0, &reference, &error), KN_OK);
    assert_string_equal(error.param, "data");
    for (size_t cut = 1; cut < 30; cut++) {
        assert_int_not_equal(kn_references_add(r, "a", copy(png, cut), cut, 0, &reference, &error), KN_OK);
        assert_int_equal(error.status, 400);
        assert_string_equal(error.param, "data");
    }
    kn_references_destroy(&r);
    assert_int_equal(kn_mem_read().bytes, held);
}

static void a_tenants_oldest_makes_room(void **state)
{
    (void)state;
    const uint64_t held = kn_mem_read().bytes;
    kn_references *r;
    char first[KN_REFERENCE_ID_BYTES], tenant[16];
    assert_int_equal(kn_references_create(&r), KN_OK);
    memcpy(first, add(r, "a", 0)->id, sizeof first);
    for (int i = 1; i < KN_REFERENCES_OF_TENANT_MAX; i++) add(r, "a", i);
    assert_non_null(kn_references_find(r, "a", first, 0));
    add(r, "a", 100);
    assert_null(kn_references_find(r, "a", first, 0));
    const kn_reference *reference;
    kn_api_error error;
    for (int i = KN_REFERENCES_OF_TENANT_MAX; i < KN_REFERENCES_MAX; i++) {
        snprintf(tenant, sizeof tenant, "t%d", i / 16);
        add(r, tenant, i);
    }
    assert_int_equal(kn_references_add(r, "new", copy(png, sizeof png), sizeof png, 0, &reference, &error),
                     KN_UNAVAILABLE);
    assert_int_equal(error.status, 503);
    kn_references_destroy(&r);
    assert_int_equal(kn_mem_read().bytes, held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_picture_is_its_tenants_for_an_hour),
        cmocka_unit_test(what_is_no_picture_is_refused),
        cmocka_unit_test(a_tenants_oldest_makes_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
