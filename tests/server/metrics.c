/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/mem.h"
#include "server/metrics.h"

static const char *const colours[] = {"red", "gr\"e\\e\nn"};
static const char *const sizes[] = {"s", "l"};
static const double bounds[] = {0.5, 1, 1800};

static kn_metric *add(kn_metrics *metrics, const kn_metric_spec *spec)
{
    kn_metric *metric = NULL;
    assert_int_equal(kn_metrics_add(metrics, spec, &metric), KN_OK);
    return metric;
}

static void expect_text(const kn_metrics *metrics, kn_metrics_format format, const char *expected)
{
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(kn_metrics_text(metrics, format, &text, &bytes), KN_OK);
    assert_int_equal(bytes, strlen(text));
    assert_string_equal(text, expected);
    kn_free(text);
}

static kn_metrics *three_kinds(kn_metric *made[3])
{
    kn_metrics *metrics = NULL;
    assert_int_equal(kn_metrics_create(&metrics), KN_OK);
    made[0] = add(metrics, &(kn_metric_spec){.kind = KN_METRIC_COUNTER,
                                             .name = "balls_bounced_total",
                                             .help = "Balls \\ \"all\".",
                                             .labels = {{"colour", colours, 2, false}}});
    made[1] = add(metrics, &(kn_metric_spec){.kind = KN_METRIC_GAUGE,
                                             .name = "court_bytes",
                                             .help = "Court.",
                                             .unit = "bytes",
                                             .labels = {{"size", sizes, 2, true}}});
    made[2] = add(metrics, &(kn_metric_spec){.kind = KN_METRIC_HISTOGRAM,
                                             .name = "flight_seconds",
                                             .help = "Flight.",
                                             .unit = "seconds",
                                             .bounds = bounds,
                                             .bound_count = 3});
    return metrics;
}

static void the_text_is_as_the_format_says(void **state)
{
    (void)state;
    kn_metric *m[3];
    kn_metrics *metrics = three_kinds(m);
    kn_metric_add(m[0], 1, KN_LABELS("red"));
    kn_metric_add(m[0], 2.5, KN_LABELS("red"));
    kn_metric_set(m[1], -0.1, KN_LABELS("s"));
    kn_metric_add(m[1], 3, KN_LABELS("l"));
    kn_metric_observe(m[2], 0.5, KN_NO_LABELS); /* a bound belongs to its bucket */
    kn_metric_observe(m[2], 0.75, KN_NO_LABELS);
    kn_metric_observe(m[2], 1e9, KN_NO_LABELS);
    expect_text(metrics, KN_METRICS_PROMETHEUS,
                "# HELP balls_bounced_total Balls \\\\ \"all\".\n"
                "# TYPE balls_bounced_total counter\n"
                "balls_bounced_total{colour=\"red\"} 3.5\n"
                "balls_bounced_total{colour=\"gr\\\"e\\\\e\\nn\"} 0\n"
                "# HELP court_bytes Court.\n"
                "# TYPE court_bytes gauge\n"
                "court_bytes{size=\"s\"} -0.1\n"
                "court_bytes{size=\"l\"} 3\n"
                "# HELP flight_seconds Flight.\n"
                "# TYPE flight_seconds histogram\n"
                "flight_seconds_bucket{le=\"0.5\"} 1\n"
                "flight_seconds_bucket{le=\"1.0\"} 2\n"
                "flight_seconds_bucket{le=\"1800.0\"} 2\n"
                "flight_seconds_bucket{le=\"+Inf\"} 3\n"
                "flight_seconds_sum 1000000001.25\n"
                "flight_seconds_count 3\n");
    kn_metric_add(m[0], 1, KN_LABELS("purple"));
    expect_text(metrics, KN_METRICS_OPENMETRICS,
                "# HELP balls_bounced Balls \\\\ \\\"all\\\".\n"
                "# TYPE balls_bounced counter\n"
                "balls_bounced_total{colour=\"red\"} 3.5\n"
                "balls_bounced_total{colour=\"gr\\\"e\\\\e\\nn\"} 0\n"
                "balls_bounced_total{colour=\"other\"} 1\n"
                "# HELP court_bytes Court.\n"
                "# TYPE court_bytes gauge\n"
                "# UNIT court_bytes bytes\n"
                "court_bytes{size=\"s\"} -0.1\n"
                "court_bytes{size=\"l\"} 3\n"
                "# HELP flight_seconds Flight.\n"
                "# TYPE flight_seconds histogram\n"
                "# UNIT flight_seconds seconds\n"
                "flight_seconds_bucket{le=\"0.5\"} 1\n"
                "flight_seconds_bucket{le=\"1.0\"} 2\n"
                "flight_seconds_bucket{le=\"1800.0\"} 2\n"
                "flight_seconds_bucket{le=\"+Inf\"} 3\n"
                "flight_seconds_sum 1000000001.25\n"
                "flight_seconds_count 3\n"
                "# EOF\n");
    kn_metrics_destroy(&metrics);
    kn_metrics_destroy(&metrics);
}

static void no_value_adds_a_series(void **state)
{
    (void)state;
    kn_metric *m[3];
    char *text = NULL;
    size_t before = 0, after = 0;
    kn_metrics *metrics = three_kinds(m);
    kn_metric_add(m[0], 1, KN_LABELS("other"));
    assert_int_equal(kn_metrics_text(metrics, KN_METRICS_PROMETHEUS, &text, &before), KN_OK);
    kn_free(text);
    for (int i = 0; i < 8; i++) {
        char value[32];
        snprintf(value, sizeof value, "label-%d", i);
        kn_metric_add(m[0], 1, KN_LABELS(value));
        kn_metric_add(m[0], 1, KN_NO_LABELS);
        kn_metric_add(m[1], 1, KN_LABELS(value)); /* closed: not counted at all */
    }
    assert_true(kn_metric_value(m[0], KN_LABELS("anything")) == 17);
    assert_true(isnan(kn_metric_value(m[1], KN_LABELS("label-1"))));
    assert_int_equal(kn_metrics_text(metrics, KN_METRICS_PROMETHEUS, &text, &after), KN_OK);
    kn_free(text);
    assert_int_equal(after, before + 1); /* 1 has become 17 */
    kn_metrics_destroy(&metrics);
}

static void kinds_take_what_is_theirs(void **state)
{
    (void)state;
    kn_metric *m[3];
    kn_metrics *metrics = three_kinds(m);
    kn_metric_add(m[0], 5, KN_LABELS("red"));
    kn_metric_add(m[0], -1, KN_LABELS("red"));
    kn_metric_add(m[0], NAN, KN_LABELS("red"));
    kn_metric_add(m[0], INFINITY, KN_LABELS("red"));
    kn_metric_set(m[0], 4, KN_LABELS("red")); /* a counter never falls */
    kn_metric_observe(m[0], 4, KN_LABELS("red"));
    assert_true(kn_metric_value(m[0], KN_LABELS("red")) == 5);
    kn_metric_set(m[0], 8, KN_LABELS("red"));
    assert_true(kn_metric_value(m[0], KN_LABELS("red")) == 8);
    kn_metric_set(m[1], INFINITY, KN_LABELS("s"));
    assert_true(isinf(kn_metric_value(m[1], KN_LABELS("s"))));
    kn_metric_observe(m[2], NAN, KN_NO_LABELS);
    kn_metric_add(m[2], 1, KN_NO_LABELS);
    kn_metric_set(m[2], 1, KN_NO_LABELS);
    assert_true(kn_metric_value(m[2], KN_NO_LABELS) == 0);
    kn_metric_observe(m[2], INFINITY, KN_NO_LABELS);
    assert_true(kn_metric_value(m[2], KN_NO_LABELS) == 1);
    kn_metrics_destroy(&metrics);
}

static void two_labels_and_sparse(void **state)
{
    (void)state;
    kn_metrics *metrics = NULL;
    assert_int_equal(kn_metrics_create(&metrics), KN_OK);
    kn_metric *m = add(metrics, &(kn_metric_spec){.kind = KN_METRIC_COUNTER,
                                                  .name = "x_total",
                                                  .help = "X.",
                                                  .labels = {{"size", sizes, 2, true}, {"colour", colours, 1, false}},
                                                  .sparse = true});
    expect_text(metrics, KN_METRICS_PROMETHEUS, "# HELP x_total X.\n# TYPE x_total counter\n");
    kn_metric_add(m, 2, KN_LABELS("l", "red"));
    kn_metric_add(m, 3, KN_LABELS("s", "blue"));
    expect_text(metrics, KN_METRICS_PROMETHEUS,
                "# HELP x_total X.\n# TYPE x_total counter\n"
                "x_total{size=\"s\",colour=\"other\"} 3\nx_total{size=\"l\",colour=\"red\"} 2\n");
    assert_true(kn_metric_value(m, KN_LABELS("l", "red")) == 2);
    assert_true(kn_metric_value(m, KN_LABELS("s", "red")) == 0);
    kn_metrics_destroy(&metrics);
}

static void declarations_are_checked(void **state)
{
    (void)state;
    static const double falling[] = {2, 1}, infinite[] = {1, INFINITY}, many[KN_METRIC_BUCKETS + 1];
    static const char *const twice[] = {"a", "a"}, *const clash[] = {"other"};
    static const char *values[KN_METRIC_VALUES + 1];
    static char texts[KN_METRIC_VALUES + 1][12];
    static char long_value[KN_METRIC_VALUE_BYTES + 1];
    memset(long_value, 'v', KN_METRIC_VALUE_BYTES);
    const char *const long_values[] = {long_value};
    for (int i = 0; i <= KN_METRIC_VALUES; i++) {
        snprintf(texts[i], sizeof texts[i], "%d", i);
        values[i] = texts[i];
    }
    const kn_metric_spec bad[] = {
        {.kind = KN_METRIC_GAUGE, .name = NULL, .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "", .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "1a", .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "a:b", .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "a b", .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "a_total", .help = "h"},
        {.kind = KN_METRIC_COUNTER, .name = "a", .help = "h"},
        {.kind = KN_METRIC_COUNTER, .name = "_total", .help = "h"},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = ""},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "two\nlines"},
        {.kind = KN_METRIC_GAUGE, .name = "a_bytes", .help = "h", .unit = "seconds"},
        {.kind = KN_METRIC_GAUGE, .name = "bytes", .help = "h", .unit = "bytes"},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .bounds = bounds, .bound_count = 1},
        {.kind = KN_METRIC_HISTOGRAM, .name = "a", .help = "h"},
        {.kind = KN_METRIC_HISTOGRAM, .name = "a", .help = "h", .bounds = falling, .bound_count = 2},
        {.kind = KN_METRIC_HISTOGRAM, .name = "a", .help = "h", .bounds = infinite, .bound_count = 2},
        {.kind = KN_METRIC_HISTOGRAM, .name = "a", .help = "h", .bounds = many, .bound_count = KN_METRIC_BUCKETS + 1},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"le", sizes, 2, true}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"__x", sizes, 2, true}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", sizes, 0, true}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", twice, 2, true}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", clash, 1, false}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", long_values, 1, true}}},
        {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", values, KN_METRIC_VALUES + 1, true}}},
        {.kind = KN_METRIC_GAUGE,
         .name = "a",
         .help = "h",
         .labels = {{"x", values, 128, true}, {"y", values, 129, true}}}, /* 128 x 128 is KN_METRIC_SERIES */
    };
    kn_metrics *metrics = NULL;
    kn_metric *m = NULL;
    assert_int_equal(kn_metrics_create(&metrics), KN_OK);
    uint64_t bytes = kn_mem_read().bytes;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kn_metrics_add(metrics, &bad[i], &m), KN_INVALID);
        assert_int_equal(kn_mem_read().bytes, bytes);
    }
    long_value[KN_METRIC_VALUE_BYTES - 1] = '\0';
    kn_metric_spec good = {.kind = KN_METRIC_GAUGE, .name = "a", .help = "h", .labels = {{"x", long_values, 1, true}}};
    assert_int_equal(kn_metrics_add(metrics, &good, &m), KN_OK);
    assert_int_equal(kn_metrics_add(metrics, &good, &m), KN_INVALID); /* twice */
    good.name = "b";
    good.labels[0] = (kn_metric_label){"x", values, 128, true};
    good.labels[1] = (kn_metric_label){"y", values, 128, true};
    assert_int_equal(kn_metrics_add(metrics, &good, &m), KN_OK);
    for (int i = 2; i <= KN_METRICS_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "g%d", i);
        assert_int_equal(
            kn_metrics_add(metrics, &(kn_metric_spec){.kind = KN_METRIC_GAUGE, .name = name, .help = "h"}, &m),
            i < KN_METRICS_MAX ? KN_OK : KN_INVALID);
    }
    kn_metrics_destroy(&metrics);
}

static void the_scraper_chooses(void **state)
{
    (void)state;
    static const struct {
        const char *accept;
        kn_metrics_format format;
    } cases[] = {
        {NULL, KN_METRICS_PROMETHEUS},
        {"", KN_METRICS_PROMETHEUS},
        {"*/*", KN_METRICS_PROMETHEUS},
        {"text/html", KN_METRICS_PROMETHEUS},
        {"application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
         "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
         KN_METRICS_OPENMETRICS},
        {"application/openmetrics-text; version=0.0.1; charset=utf-8,text/plain;version=0.0.4;q=0.5",
         KN_METRICS_PROMETHEUS},
        {"Application/OpenMetrics-Text", KN_METRICS_OPENMETRICS},
        {"application/openmetrics-text;q=0.2, text/plain;q=0.3", KN_METRICS_PROMETHEUS},
        {"application/openmetrics-text;q=0", KN_METRICS_PROMETHEUS},
        {"application/openmetrics-text;q=7", KN_METRICS_PROMETHEUS},
        {"application/openmetrics-text;q=nan", KN_METRICS_PROMETHEUS},
        {"application/openmetrics-text, */*;q=0.8", KN_METRICS_OPENMETRICS},
        {";;,,;q=,;q=1,application/openmetrics-text ; q=0.9 ; version=1.0.0", KN_METRICS_OPENMETRICS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(kn_metrics_negotiate(cases[i].accept), cases[i].format);
    assert_string_equal(kn_metrics_content_type(KN_METRICS_PROMETHEUS), "text/plain; version=0.0.4; charset=utf-8");
    assert_non_null(strstr(kn_metrics_content_type(KN_METRICS_OPENMETRICS), "version=1.0.0"));
}

static void no_memory_is_reported(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        kn_metrics *metrics = NULL;
        kn_metric *m = NULL;
        char *text = NULL;
        size_t count = 0;
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_metrics_create(&metrics);
        if (st == KN_OK)
            st = kn_metrics_add(metrics,
                                &(kn_metric_spec){.kind = KN_METRIC_HISTOGRAM,
                                                  .name = "a",
                                                  .help = "h",
                                                  .labels = {{"colour", colours, 2, false}},
                                                  .bounds = bounds,
                                                  .bound_count = 3},
                                &m);
        if (st == KN_OK) st = kn_metrics_text(metrics, KN_METRICS_PROMETHEUS, &text, &count);
        kn_mem_fail_at(0);
        kn_free(text);
        kn_metrics_destroy(&metrics);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_in_range(n, 1, 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_is_as_the_format_says), cmocka_unit_test(no_value_adds_a_series),
        cmocka_unit_test(kinds_take_what_is_theirs),      cmocka_unit_test(two_labels_and_sparse),
        cmocka_unit_test(declarations_are_checked),       cmocka_unit_test(the_scraper_chooses),
        cmocka_unit_test(no_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
