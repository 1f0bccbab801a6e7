/* SPDX-License-Identifier: Apache-2.0
 *
 * A series is found by the indices of its label values in mixed radix. Its numbers lie at values[series * stride]: one
 * for a counter or gauge; the counts of each bucket, of what lies above the last bound, and the sum for a histogram. */
#define _POSIX_C_SOURCE 200809L
#include "server/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "server/text.h"

typedef struct label {
    char *name;
    char **values; /* [count], "other" last unless closed */
    size_t count;
    bool closed;
} label;

struct kn_metric {
    kn_metric_kind kind;
    bool sparse;
    char *name, *help, *unit;
    label labels[KN_METRIC_LABELS];
    size_t label_count;
    double *bounds; /* [bound_count] */
    size_t bound_count;
    size_t series, stride;
    double *values; /* [series * stride] */
    bool *shown;    /* [series] */
};

struct kn_metrics {
    kn_metric *families[KN_METRICS_MAX];
    size_t count;
};

static const char other[] = "other";

/* ---- declaring ---- */

kn_status kn_metrics_create(kn_metrics **out)
{
    *out = kn_alloc(sizeof **out);
    return *out ? KN_OK : KN_NOMEM;
}

static void destroy_family(kn_metric *m)
{
    if (!m) return;
    for (size_t i = 0; i < m->label_count; i++) {
        for (size_t v = 0; m->labels[i].values && v < m->labels[i].count; v++) kn_free(m->labels[i].values[v]);
        kn_free(m->labels[i].values);
        kn_free(m->labels[i].name);
    }
    kn_free(m->name);
    kn_free(m->help);
    kn_free(m->unit);
    kn_free(m->bounds);
    kn_free(m->values);
    kn_free(m->shown);
    kn_free(m);
}

void kn_metrics_destroy(kn_metrics **metrics)
{
    if (!metrics || !*metrics) return;
    for (size_t i = 0; i < (*metrics)->count; i++) destroy_family((*metrics)->families[i]);
    kn_free(*metrics);
    *metrics = NULL;
}

/* [a-z_][a-z0-9_]*: no colons, which belong to recording rules. */
static bool name_valid(const char *name)
{
    return name && *name && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name) &&
           !strchr("0123456789", name[0]);
}

static bool ends_with(const char *text, const char *end)
{
    size_t bytes = strlen(text), tail = strlen(end);
    return bytes > tail && strcmp(text + bytes - tail, end) == 0;
}

/* Bytes of the name without a counter's _total: the family's name in OpenMetrics. */
static size_t family_bytes(const char *name, kn_metric_kind kind)
{
    return strlen(name) - (kind == KN_METRIC_COUNTER ? strlen("_total") : 0);
}

static kn_status check_name(const kn_metric_spec *spec)
{
    if (!name_valid(spec->name))
        return kn_fail(KN_INVALID, "\"%s\" is not a metric's name", spec->name ? spec->name : "");
    if (ends_with(spec->name, "_total") != (spec->kind == KN_METRIC_COUNTER))
        return kn_fail(KN_INVALID, "%s: a counter's name, and no other, ends in _total", spec->name);
    if (!spec->help || !*spec->help || strchr(spec->help, '\n'))
        return kn_fail(KN_INVALID, "%s: the help is one line", spec->name);
    if (spec->unit) {
        size_t bytes = family_bytes(spec->name, spec->kind), unit = strlen(spec->unit);
        if (bytes <= unit + 1 || spec->name[bytes - unit - 1] != '_' ||
            memcmp(spec->name + bytes - unit, spec->unit, unit) != 0)
            return kn_fail(KN_INVALID, "%s: the name ends in its unit, %s", spec->name, spec->unit);
    }
    return KN_OK;
}

static kn_status check_bounds(const kn_metric_spec *spec)
{
    if ((spec->kind == KN_METRIC_HISTOGRAM) != (spec->bound_count > 0) || spec->bound_count > KN_METRIC_BUCKETS)
        return kn_fail(KN_INVALID, "%s: a histogram, and nothing else, has 1 to %d bounds", spec->name,
                       KN_METRIC_BUCKETS);
    for (size_t i = 0; i < spec->bound_count; i++)
        if (!isfinite(spec->bounds[i]) || (i && spec->bounds[i] <= spec->bounds[i - 1]))
            return kn_fail(KN_INVALID, "%s: the bounds of a histogram ascend", spec->name);
    return KN_OK;
}

static kn_status add_label(kn_metric *m, const kn_metric_label *from)
{
    if (!name_valid(from->name) || strcmp(from->name, "le") == 0 || strncmp(from->name, "__", 2) == 0)
        return kn_fail(KN_INVALID, "%s: \"%s\" is not a label's name", m->name, from->name);
    if (!from->count || from->count > KN_METRIC_VALUES)
        return kn_fail(KN_INVALID, "%s: label %s has %zu values; there may be 1 to %d", m->name, from->name,
                       from->count, KN_METRIC_VALUES);
    label *to = &m->labels[m->label_count++];
    to->closed = from->closed;
    to->name = kn_strdup(from->name);
    to->values = kn_alloc_array(from->count + 1, sizeof *to->values);
    if (!to->name || !to->values) return KN_NOMEM;
    for (size_t v = 0; v < from->count + !from->closed; v++) {
        const char *value = v < from->count ? from->values[v] : other;
        if (strlen(value) >= KN_METRIC_VALUE_BYTES)
            return kn_fail(KN_INVALID, "%s: a value of label %s has more than %d bytes", m->name, from->name,
                           KN_METRIC_VALUE_BYTES - 1);
        for (size_t i = 0; i < to->count; i++)
            if (strcmp(to->values[i], value) == 0)
                return kn_fail(KN_INVALID, "%s: label %s has the value \"%s\" twice", m->name, from->name, value);
        to->values[to->count] = kn_strdup(value);
        if (!to->values[to->count]) return KN_NOMEM;
        to->count++;
    }
    return KN_OK;
}

/* Is one of the series' label values "other"? */
static bool is_other(const kn_metric *m, size_t series)
{
    for (size_t i = m->label_count; i-- > 0; series /= m->labels[i].count)
        if (!m->labels[i].closed && series % m->labels[i].count == m->labels[i].count - 1) return true;
    return false;
}

static kn_status make_series(kn_metric *m, const kn_metric_spec *spec)
{
    m->stride = m->kind == KN_METRIC_HISTOGRAM ? spec->bound_count + 2 : 1;
    m->series = 1;
    for (size_t i = 0; i < m->label_count; i++) m->series *= m->labels[i].count; /* 257^3 fits */
    if (m->series > KN_METRIC_SERIES)
        return kn_fail(KN_INVALID, "%s: %zu series; there may be %d", m->name, m->series, KN_METRIC_SERIES);
    m->values = kn_alloc_array(m->series * m->stride, sizeof *m->values);
    m->shown = kn_alloc_array(m->series, sizeof *m->shown);
    m->bounds = kn_alloc_array(spec->bound_count, sizeof *m->bounds);
    if (!m->values || !m->shown || !m->bounds) return KN_NOMEM;
    for (size_t i = 0; i < m->series; i++) m->shown[i] = !m->sparse && !is_other(m, i);
    if (spec->bound_count) memcpy(m->bounds, spec->bounds, spec->bound_count * sizeof *m->bounds);
    m->bound_count = spec->bound_count;
    return KN_OK;
}

kn_status kn_metrics_add(kn_metrics *metrics, const kn_metric_spec *spec, kn_metric **out)
{
    kn_status st = KN_OK;
    kn_metric *m = NULL;
    KN_TRY(check_name(spec));
    KN_TRY(check_bounds(spec));
    for (size_t i = 0; i < metrics->count; i++)
        if (strcmp(metrics->families[i]->name, spec->name) == 0)
            return kn_fail(KN_INVALID, "%s is declared twice", spec->name);
    if (metrics->count == KN_METRICS_MAX)
        return kn_fail(KN_INVALID, "%s: more than %d metrics", spec->name, KN_METRICS_MAX);
    m = kn_alloc(sizeof *m);
    if (!m) KN_TRY(KN_NOMEM);
    m->kind = spec->kind;
    m->sparse = spec->sparse;
    m->name = kn_strdup(spec->name);
    m->help = kn_strdup(spec->help);
    m->unit = kn_strdup(spec->unit ? spec->unit : "");
    if (!m->name || !m->help || !m->unit) KN_TRY(KN_NOMEM);
    for (size_t i = 0; i < KN_METRIC_LABELS && spec->labels[i].name; i++) KN_TRY(add_label(m, &spec->labels[i]));
    KN_TRY(make_series(m, spec));
    metrics->families[metrics->count++] = m;
    *out = m;
    return KN_OK;

fail:
    destroy_family(m);
    return st;
}

/* ---- counting ---- */

/* The numbers of a series, NULL when a closed label does not have the value. */
static double *series_of(const kn_metric *m, const char *const *values, size_t *index)
{
    size_t series = 0;
    for (size_t i = 0; i < m->label_count; i++) {
        const label *l = &m->labels[i];
        const char *value = values && values[i] ? values[i] : other;
        size_t v = 0;
        while (v < l->count && strcmp(l->values[v], value) != 0) v++;
        if (v == l->count && l->closed) return NULL;
        series = series * l->count + (v == l->count ? v - 1 : v);
    }
    *index = series;
    return m->values + series * m->stride;
}

void kn_metric_add(kn_metric *metric, double amount, const char *const *labels)
{
    size_t index;
    double *value = series_of(metric, labels, &index);
    if (!value || !isfinite(amount) || metric->kind == KN_METRIC_HISTOGRAM) return;
    if (metric->kind == KN_METRIC_COUNTER && amount < 0) return;
    *value += amount;
    metric->shown[index] = true;
}

void kn_metric_set(kn_metric *metric, double value, const char *const *labels)
{
    size_t index;
    double *now = series_of(metric, labels, &index);
    if (!now || metric->kind == KN_METRIC_HISTOGRAM) return;
    if (metric->kind == KN_METRIC_COUNTER && !(value > *now && isfinite(value))) return;
    *now = value;
    metric->shown[index] = true;
}

void kn_metric_observe(kn_metric *metric, double value, const char *const *labels)
{
    size_t index, bucket = 0;
    double *counts = series_of(metric, labels, &index);
    if (!counts || metric->kind != KN_METRIC_HISTOGRAM || isnan(value)) return;
    while (bucket < metric->bound_count && value > metric->bounds[bucket]) bucket++;
    counts[bucket]++;
    counts[metric->bound_count + 1] += value;
    metric->shown[index] = true;
}

static double count_of(const kn_metric *m, const double *numbers)
{
    double count = 0;
    for (size_t b = 0; b <= m->bound_count; b++) count += numbers[b];
    return count;
}

double kn_metric_value(const kn_metric *metric, const char *const *labels)
{
    size_t index;
    const double *numbers = series_of(metric, labels, &index);
    if (!numbers) return NAN;
    return metric->kind == KN_METRIC_HISTOGRAM ? count_of(metric, numbers) : *numbers;
}

/* ---- text ---- */

/* As strconv.ParseFloat of Go reads it. `with_point`: bounds are "1.0" in both formats, so that a scraper that changes
 * format goes on with the same series. */
static void put_number(kn_text *out, double value, bool with_point)
{
    char text[40];
    if (!isfinite(value)) {
        kn_text_string(out, isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf");
        return;
    }
    if (value == trunc(value) && fabs(value) < 1e15) {
        snprintf(text, sizeof text, with_point ? "%.1f" : "%.0f", value);
    } else {
        snprintf(text, sizeof text, "%.15g", value);
        if (strtod(text, NULL) != value) snprintf(text, sizeof text, "%.17g", value);
    }
    kn_text_string(out, text);
}

static void put_escaped(kn_text *out, const char *text, bool quotes)
{
    for (; *text; text++) {
        if (*text == '\\' || (*text == '"' && quotes))
            kn_text_format(out, "\\%c", *text);
        else if (*text == '\n')
            kn_text_string(out, "\\n");
        else
            kn_text_append(out, text, 1);
    }
}

/* name{label="value",...} and, for a bucket, its bound. */
static void put_series(kn_text *out, const kn_metric *m, const char *suffix, size_t series, const double *bound)
{
    size_t index[KN_METRIC_LABELS];
    for (size_t i = m->label_count; i-- > 0; series /= m->labels[i].count) index[i] = series % m->labels[i].count;
    kn_text_string(out, m->name);
    kn_text_string(out, suffix);
    const char *before = "{";
    for (size_t i = 0; i < m->label_count; i++, before = ",") {
        kn_text_format(out, "%s%s=\"", before, m->labels[i].name);
        put_escaped(out, m->labels[i].values[index[i]], true);
        kn_text_string(out, "\"");
    }
    if (bound) {
        kn_text_format(out, "%sle=\"", before);
        put_number(out, *bound, true);
        kn_text_string(out, "\"");
    }
    kn_text_string(out, m->label_count || bound ? "} " : " ");
}

static void put_value(kn_text *out, double value)
{
    put_number(out, value, false);
    kn_text_string(out, "\n");
}

static void put_histogram(kn_text *out, const kn_metric *m, size_t series)
{
    const double *numbers = m->values + series * m->stride;
    const double infinite = INFINITY;
    double below = 0;
    for (size_t b = 0; b <= m->bound_count; b++) {
        below += numbers[b];
        put_series(out, m, "_bucket", series, b < m->bound_count ? &m->bounds[b] : &infinite);
        put_value(out, below);
    }
    put_series(out, m, "_sum", series, NULL);
    put_value(out, numbers[m->bound_count + 1]);
    put_series(out, m, "_count", series, NULL);
    put_value(out, below);
}

static void put_family(kn_text *out, const kn_metric *m, kn_metrics_format format)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    bool open = format == KN_METRICS_OPENMETRICS;
    int bytes = (int)(open ? family_bytes(m->name, m->kind) : strlen(m->name));
    kn_text_format(out, "# HELP %.*s ", bytes, m->name);
    put_escaped(out, m->help, open);
    kn_text_format(out, "\n# TYPE %.*s %s\n", bytes, m->name, kinds[m->kind]);
    if (open && m->unit[0]) kn_text_format(out, "# UNIT %.*s %s\n", bytes, m->name, m->unit);
    for (size_t s = 0; s < m->series; s++) {
        if (!m->shown[s]) continue;
        if (m->kind == KN_METRIC_HISTOGRAM) {
            put_histogram(out, m, s);
        } else {
            put_series(out, m, "", s, NULL);
            put_value(out, m->values[s]);
        }
    }
}

kn_status kn_metrics_text(const kn_metrics *metrics, kn_metrics_format format, char **text, size_t *bytes)
{
    kn_text out = kn_text_growing(KN_METRICS_TEXT_MAX);
    for (size_t i = 0; i < metrics->count; i++) put_family(&out, metrics->families[i], format);
    if (format == KN_METRICS_OPENMETRICS) kn_text_string(&out, "# EOF\n");
    kn_status st = kn_text_status(&out);
    if (st == KN_OK) {
        *bytes = out.count;
        *text = kn_text_take(&out);
        if (!*text) st = KN_NOMEM;
    }
    kn_text_release(&out);
    return st;
}

/* ---- negotiation: RFC 9110, section 12.5.1 ---- */

/* One media range and its parameters: "type/subtype; name=value". Moves *at behind it. */
typedef struct media_range {
    char type[48];
    char version[16];
    double quality;
} media_range;

static void trim_copy(char *out, size_t room, const char *from, size_t bytes)
{
    while (bytes && (*from == ' ' || *from == '\t')) from++, bytes--;
    while (bytes && (from[bytes - 1] == ' ' || from[bytes - 1] == '\t')) bytes--;
    if (bytes >= room) bytes = 0; /* nothing we know is that long */
    memcpy(out, from, bytes);
    out[bytes] = '\0';
}

static media_range next_range(const char **at)
{
    media_range range = {.quality = 1};
    size_t bytes = strcspn(*at, ",;");
    trim_copy(range.type, sizeof range.type, *at, bytes);
    for (*at += bytes; **at == ';'; *at += bytes) {
        char parameter[64];
        ++*at;
        bytes = strcspn(*at, ",;");
        trim_copy(parameter, sizeof parameter, *at, bytes);
        if (strncasecmp(parameter, "q=", 2) == 0) range.quality = strtod(parameter + 2, NULL);
        if (strncasecmp(parameter, "version=", 8) == 0)
            snprintf(range.version, sizeof range.version, "%.15s", parameter + 8);
    }
    if (**at == ',') ++*at;
    return range;
}

kn_metrics_format kn_metrics_negotiate(const char *accept)
{
    double open = 0, text = 0, any = 0;
    for (const char *at = accept ? accept : ""; *at;) {
        media_range range = next_range(&at);
        if (!(range.quality >= 0 && range.quality <= 1)) continue;
        if (strcasecmp(range.type, "application/openmetrics-text") == 0 &&
            (!range.version[0] || strcmp(range.version, "1.0.0") == 0))
            open = range.quality > open ? range.quality : open;
        else if (strcasecmp(range.type, "text/plain") == 0)
            text = range.quality > text ? range.quality : text;
        else if (strcmp(range.type, "*/*") == 0 || strcasecmp(range.type, "text/*") == 0)
            any = range.quality > any ? range.quality : any;
    }
    return open > (text > 0 ? text : any) ? KN_METRICS_OPENMETRICS : KN_METRICS_PROMETHEUS;
}

const char *kn_metrics_content_type(kn_metrics_format format)
{
    return format == KN_METRICS_OPENMETRICS ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                            : "text/plain; version=0.0.4; charset=utf-8";
}
