/* SPDX-License-Identifier: Apache-2.0
 *
 * Normal noise against torch.randn: short and long, aligned and not, seeds of every width.
 *
 * The bound is 2.5e-7 below one and 3.5e-7 of the value above (measured over 15 million values: 1.8e-7 and 3.2e-7).
 * torch's vector logarithm and cosine are off by up to two roundings, and one rounding above 4 is already 4.8e-7. */
#include "tests/engine/golden.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/sampling.h"

static void check_close(float actual, float wanted, const char *what, int64_t index)
{
    double size = fabs((double)wanted);
    double limit = size < 1 ? 2.5e-7 : 3.5e-7 * size;
    if (!(fabs((double)actual - (double)wanted) <= limit))
        fail_msg("%s [%lld] is %.9g, torch has %.9g", what, (long long)index, (double)actual, (double)wanted);
}

static void test_cases(void **state)
{
    (void)state;
    json_t *root = golden_json("sampling_cases.json");
    json_t *cases = golden_get(root, "noise"), *item;
    size_t index;
    int64_t longest = 0;
    json_array_foreach(cases, index, item)
    {
        uint64_t seed = strtoull(golden_string(item, "seed"), NULL, 10);
        int64_t count = (int64_t)golden_number(item, "count");
        if (count > longest) longest = count;
        float *values = kn_alloc_array((size_t)count, sizeof *values);
        assert_non_null(values);
        kn_noise_normal(values, count, seed);
        char label[96];
        snprintf(label, sizeof label, "seed %s count %lld", golden_string(item, "seed"), (long long)count);
        json_t *at = golden_get(item, "at"), *wanted = golden_get(item, "values");
        assert_int_equal(json_array_size(at), json_array_size(wanted));
        for (size_t i = 0; i < json_array_size(at); i++) {
            int64_t place = json_integer_value(json_array_get(at, i));
            check_close(values[place], (float)json_number_value(json_array_get(wanted, i)), label, place);
        }
        kn_free(values);
    }
    assert_true(longest >= 1000000);
    json_decref(root);
}

static void check_fixture(const char *fixture)
{
    char name[128];
    snprintf(name, sizeof name, "%s/case.json", fixture);
    json_t *root = golden_json(name);
    kn_weights *expected = golden_expected(fixture);
    json_t *requests = golden_get(root, "requests"), *request;
    size_t index;
    json_array_foreach(requests, index, request)
    {
        int64_t count;
        const float *wanted = golden_request(expected, index, "noise", &count, NULL);
        float *values = kn_alloc_array((size_t)count, sizeof *values);
        assert_non_null(values);
        kn_noise_normal(values, count, (uint64_t)golden_number(request, "seed"));
        for (int64_t i = 0; i < count; i++) check_close(values[i], wanted[i], fixture, i);
        kn_free(values);
    }
    kn_weights_close(&expected);
    json_decref(root);
}

static void test_fixtures(void **state)
{
    (void)state;
    check_fixture("wan21-small");
    check_fixture("wan21-head128");
    check_fixture("wan21-wide");
}

/* The last group is drawn anew, so a count that is no multiple of 16 changes values before it, and nothing is written
 * outside. */
static void test_tail_and_guard(void **state)
{
    (void)state;
    enum { GUARD = 4, COUNT = 35 };
    float padded[GUARD + COUNT + GUARD], whole[48];
    for (size_t i = 0; i < sizeof padded / sizeof *padded; i++) padded[i] = 123.0f;
    kn_noise_normal(padded + GUARD, COUNT, 9);
    kn_noise_normal(whole, 48, 9);
    for (int i = 0; i < GUARD; i++) {
        assert_true(padded[i] == 123.0f);
        assert_true(padded[GUARD + COUNT + i] == 123.0f);
    }
    for (int i = 0; i < COUNT - 16; i++) assert_true(padded[GUARD + i] == whole[i]);
    assert_true(padded[GUARD + COUNT - 16] != whole[COUNT - 16]);

    float untouched = 5.0f;
    kn_noise_normal(&untouched, 0, 9);
    assert_true(untouched == 5.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_fixtures),
        cmocka_unit_test(test_tail_and_guard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
