/* SPDX-License-Identifier: Apache-2.0
 *
 * A registry of counters, gauges and histograms, and their text for Prometheus.
 *
 * Every family is declared once, with the closed set of values of each of its labels; all its series exist from then
 * on, and a value that was not declared counts as "other" (shown once there is one). So nothing a client sends can add
 * a series, the cost of a scrape is bounded, and a counter that has not moved yet is there with 0.
 *
 * Text: Prometheus exposition format 0.0.4, or OpenMetrics 1.0.0 where the scraper prefers it. In OpenMetrics a
 * counter's family is named without _total. Belongs to one thread. */
#ifndef KN_SERVER_METRICS_H
#define KN_SERVER_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_METRICS_MAX = 128,         /* families of a registry */
    KN_METRIC_LABELS = 3,         /* labels of a family */
    KN_METRIC_VALUES = 256,       /* declared values of a label */
    KN_METRIC_SERIES = 16384,     /* series of a family */
    KN_METRIC_BUCKETS = 32,       /* bounds of a histogram */
    KN_METRIC_VALUE_BYTES = 128,  /* of a label value, with the NUL */
    KN_METRICS_TEXT_MAX = 1 << 26 /* bytes of one exposition */
};

typedef struct kn_metrics kn_metrics;
typedef struct kn_metric kn_metric; /* one family; lives as long as its registry */

typedef enum kn_metric_kind { KN_METRIC_COUNTER, KN_METRIC_GAUGE, KN_METRIC_HISTOGRAM } kn_metric_kind;

typedef struct kn_metric_label {
    const char *name;
    const char *const *values; /* [count] */
    size_t count;
    bool closed; /* every value is known: there is no "other", and an undeclared value is not counted at all */
} kn_metric_label;

typedef struct kn_metric_spec {
    kn_metric_kind kind;
    const char *name; /* a counter's ends in _total */
    const char *help; /* one line */
    const char *unit; /* "seconds", "bytes", or NULL: the end of the name, before _total */
    kn_metric_label labels[KN_METRIC_LABELS];
    const double *bounds; /* histogram: ascending upper bounds, without +Inf */
    size_t bound_count;
    bool sparse; /* a series is shown from its first count on; for families most of whose series never move */
} kn_metric_spec;

kn_status kn_metrics_create(kn_metrics **out);
void kn_metrics_destroy(kn_metrics **metrics);

/* Declares a family; the texts are copied. KN_INVALID names what breaks the format's or our rules. */
kn_status kn_metrics_add(kn_metrics *metrics, const kn_metric_spec *spec, kn_metric **out);

/* Label values in the order of the declaration, for the three calls below: KN_LABELS("wan", "default"). A family
 * without labels takes KN_NO_LABELS. */
#define KN_LABELS(...) ((const char *const[KN_METRIC_LABELS]){__VA_ARGS__})
#define KN_NO_LABELS NULL

/* Counter: adds (a negative or non-finite amount is ignored). Gauge: adds. */
void kn_metric_add(kn_metric *metric, double amount, const char *const *labels);
/* Gauge: sets. Counter: raises to the value, for counts kept elsewhere (a lower value is ignored). */
void kn_metric_set(kn_metric *metric, double value, const char *const *labels);
/* Histogram: one observation. */
void kn_metric_observe(kn_metric *metric, double value, const char *const *labels);

/* Value of a counter or gauge, count of a histogram; NaN when there is no such series. */
double kn_metric_value(const kn_metric *metric, const char *const *labels);

typedef enum kn_metrics_format { KN_METRICS_PROMETHEUS, KN_METRICS_OPENMETRICS } kn_metrics_format;

/* What the Accept header prefers (NULL: none was sent), by quality; in doubt KN_METRICS_PROMETHEUS. */
kn_metrics_format kn_metrics_negotiate(const char *accept);
const char *kn_metrics_content_type(kn_metrics_format format);

/* The whole text, ending in NUL, for the caller to kn_free. */
kn_status kn_metrics_text(const kn_metrics *metrics, kn_metrics_format format, char **text, size_t *bytes);

#endif
