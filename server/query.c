/* SPDX-License-Identifier: Apache-2.0
 *
 * Query strings; see query.h. */
#include "server/query.h"

#include <stdio.h>
#include <string.h>

#include "server/form.h"

/* Decodes one name or value to `to`; NULL when it is malformed. */
static char *decode(char *to, const char *bytes, size_t count)
{
    ptrdiff_t written = kn_percent_decode(to, bytes, count, true);
    if (written < 0 || kn_text_characters(to, (size_t)written) < 0) return NULL;
    to[written] = '\0';
    return to + written + 1;
}

kn_status kn_query_parse(kn_query *out, const char *bytes, size_t count, kn_api_error *error)
{
    out->count = 0;
    if (count == 0) return KN_OK; /* bytes may be NULL */
    if (count > KN_QUERY_BYTES_MAX)
        return kn_api_invalid_body(error, "The query has %zu bytes; at most %d are accepted.", count,
                                   KN_QUERY_BYTES_MAX);
    char *to = out->text;
    for (const char *at = bytes, *end = bytes + count; at < end;) {
        const char *stop = memchr(at, '&', (size_t)(end - at));
        if (!stop) stop = end;
        if (stop == at) {
            at++;
            continue;
        }
        if (out->count == KN_QUERY_FIELDS_MAX)
            return kn_api_invalid_body(error, "The query has more than %d fields.", KN_QUERY_FIELDS_MAX);
        const char *equals = memchr(at, '=', (size_t)(stop - at));
        const char *name_end = equals ? equals : stop;
        const char *value = equals ? equals + 1 : stop;
        const char *name_text = to;
        to = decode(to, at, (size_t)(name_end - at));
        const char *value_text = to;
        if (to) to = decode(to, value, (size_t)(stop - value));
        if (!to) return kn_api_invalid_body(error, "The query is not percent-encoded UTF-8 without NUL.");
        if (kn_query_get(out, name_text))
            return kn_api_invalid_value(error, name_text, "'%s' is given twice.", name_text);
        out->fields[out->count].name = name_text;
        out->fields[out->count].value = value_text;
        out->count++;
        at = stop < end ? stop + 1 : end;
    }
    return KN_OK;
}

const char *kn_query_get(const kn_query *query, const char *name)
{
    for (size_t i = 0; i < query->count; i++) {
        if (strcmp(query->fields[i].name, name) == 0) return query->fields[i].value;
    }
    return NULL;
}

kn_status kn_query_only(const kn_query *query, const char *const *names, kn_api_error *error)
{
    for (size_t i = 0; i < query->count; i++) {
        const char *const *known = names;
        while (*known && strcmp(*known, query->fields[i].name) != 0) known++;
        if (!*known) return kn_api_unknown_parameter(error, query->fields[i].name);
    }
    return KN_OK;
}

static kn_status parse_limit(int32_t *out, const char *text, kn_api_error *error)
{
    int32_t value = 0;
    size_t digits = strspn(text, "0123456789");
    bool good = digits > 0 && text[digits] == '\0';
    for (size_t i = 0; good && i < digits; i++) {
        value = 10 * value + (text[i] - '0');
        good = value <= KN_LIST_LIMIT_MAX;
    }
    if (!good)
        return kn_api_invalid_value(error, "limit", "limit is '%s'; it must be a whole number from 0 to %d.", text,
                                    KN_LIST_LIMIT_MAX);
    *out = value;
    return KN_OK;
}

kn_status kn_list_query_parse(kn_list_query *out, const char *bytes, size_t count, kn_api_error *error)
{
    static const char *const names[] = {"after", "limit", "order", NULL};
    kn_query query;
    *out = (kn_list_query){.limit = KN_LIST_LIMIT_DEFAULT};
    kn_status st = kn_query_parse(&query, bytes, count, error);
    if (st == KN_OK) st = kn_query_only(&query, names, error);
    if (st != KN_OK) return st;
    const char *after = kn_query_get(&query, "after");
    if (after && !kn_job_id_valid(after))
        return kn_api_invalid_value(error, "after", "after is '%s', which is not the id of a video.", after);
    if (after) snprintf(out->after, sizeof out->after, "%s", after);
    const char *order = kn_query_get(&query, "order");
    if (order && strcmp(order, "asc") != 0 && strcmp(order, "desc") != 0)
        return kn_api_invalid_value(error, "order", "order is '%s'; it must be 'asc' or 'desc'.", order);
    out->ascending = order && strcmp(order, "asc") == 0;
    const char *limit = kn_query_get(&query, "limit");
    return limit ? parse_limit(&out->limit, limit, error) : KN_OK;
}
