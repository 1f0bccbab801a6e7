/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON of request bodies and answers; see json.h. */
#include "server/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"
#include "engine/config.h"

/* When an allocation fails inside a string, jansson says "invalid token" or, worse, goes on with the string cut short.
 * Neither may reach a client, so the allocator remembers, per thread as kn_fail does. */
static _Thread_local bool allocation_failed;

static void *allocate(size_t bytes)
{
    void *memory = kn_alloc(bytes);
    if (!memory) allocation_failed = true;
    return memory;
}

void kn_json_use_kn_alloc(void)
{
    json_set_alloc_funcs(allocate, kn_free);
}

/* ---- reading ---- */

size_t kn_json_count_keys(const json_t *value)
{
    size_t count = 0;
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) count += kn_json_count_keys(json_array_get(value, i));
    } else if (json_is_object(value)) {
        json_t *object = (json_t *)value; /* jansson's iterators take no const */
        count = json_object_size(object);
        for (void *at = json_object_iter(object); at; at = json_object_iter_next(object, at))
            count += kn_json_count_keys(json_object_iter_value(at));
    }
    return count;
}

kn_status kn_json_body_parse(json_t **out, const char *bytes, size_t count, const char *param, kn_api_error *error)
{
    const kn_json_limits limits = {
        .bytes = KN_BODY_JSON_BYTES_MAX, .values = KN_BODY_JSON_VALUES_MAX, .depth = KN_BODY_JSON_DEPTH_MAX};
    const char *what = param ? param : "body";
    if (count > limits.bytes) return kn_api_too_large(error, "The JSON", limits.bytes);
    json_t *root = NULL;
    allocation_failed = false;
    /* jansson loses a NUL that follows a number or a literal. */
    kn_status st = memchr(bytes, '\0', count) ? kn_fail(KN_CORRUPT, "%s: not valid JSON: it has a NUL", what) : KN_OK;
    if (st == KN_OK) st = kn_json_parse(&root, bytes, count, what, limits);
    if (st == KN_NOMEM || allocation_failed) {
        json_decref(root);
        return kn_api_from_status(error, KN_NOMEM);
    }
    if (st != KN_OK && param) return kn_api_invalid_value(error, param, "%s", kn_fail_message());
    if (st != KN_OK) return kn_api_invalid_body(error, "%s", kn_fail_message());
    size_t keys = kn_json_count_keys(root);
    if (keys > KN_BODY_JSON_KEYS_MAX) {
        json_decref(root);
        return kn_api_invalid_body(error, "The JSON has %zu keys; at most %d are accepted.", keys,
                                   KN_BODY_JSON_KEYS_MAX);
    }
    *out = root;
    return KN_OK;
}

/* ---- writing ---- */

kn_json_writer kn_json_writer_on(kn_text *text)
{
    return (kn_json_writer){.text = text};
}

/* Before a value: a comma, unless the value is the first of its container or follows its key. */
static void separate(kn_json_writer *w)
{
    const uint64_t bit = (uint64_t)1 << w->depth;
    if (!w->after_key && (w->filled & bit)) kn_text_append(w->text, ",", 1);
    w->after_key = false;
    w->filled |= bit;
}

static void open_container(kn_json_writer *w, const char *bracket)
{
    separate(w);
    if (w->depth == KN_BODY_JSON_DEPTH_MAX) {
        if (w->text->status == KN_OK) w->text->status = KN_INVALID;
        return;
    }
    kn_text_append(w->text, bracket, 1);
    w->depth++;
    w->filled &= ~((uint64_t)1 << w->depth);
}

static void close_container(kn_json_writer *w, const char *bracket)
{
    if (w->depth > 0) w->depth--;
    kn_text_append(w->text, bracket, 1);
}

void kn_json_write_object(kn_json_writer *w)
{
    open_container(w, "{");
}

void kn_json_write_object_end(kn_json_writer *w)
{
    close_container(w, "}");
}

void kn_json_write_array(kn_json_writer *w)
{
    open_container(w, "[");
}

void kn_json_write_array_end(kn_json_writer *w)
{
    close_container(w, "]");
}

static void escape(kn_text *text, unsigned char c)
{
    switch (c) {
    case '"': kn_text_append(text, "\\\"", 2); return;
    case '\\': kn_text_append(text, "\\\\", 2); return;
    case '\n': kn_text_append(text, "\\n", 2); return;
    case '\r': kn_text_append(text, "\\r", 2); return;
    case '\t': kn_text_append(text, "\\t", 2); return;
    default: kn_text_format(text, "\\u%04x", c); return;
    }
}

/* Stands for itself in a string, and is one byte of UTF-8. */
static inline bool is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* Quotes; runs that need no escape are copied in one piece. */
static void quote(kn_text *text, const char *value, size_t count)
{
    size_t run = 0; /* start of what is not copied yet */
    kn_text_append(text, "\"", 1);
    for (size_t at = 0; at < count;) {
        unsigned char c = (unsigned char)value[at];
        size_t length = 1;
        bool plain = is_plain(c);
        while (plain && at + 1 < count && is_plain((unsigned char)value[at + 1])) at++;
        if (c >= 0x80) {
            int32_t code;
            utf8proc_ssize_t got =
                utf8proc_iterate((const utf8proc_uint8_t *)value + at, (utf8proc_ssize_t)(count - at), &code);
            plain = got > 0;
            if (plain) length = (size_t)got;
        }
        if (!plain) {
            kn_text_append(text, value + run, at - run);
            if (c < 0x80)
                escape(text, c);
            else
                kn_text_append(text, "\xef\xbf\xbd", 3); /* U+FFFD */
            run = at + 1;
        }
        at += length;
    }
    kn_text_append(text, value + run, count - run);
    kn_text_append(text, "\"", 1);
}

void kn_json_write_key(kn_json_writer *w, const char *key)
{
    separate(w);
    quote(w->text, key, strlen(key));
    kn_text_append(w->text, ":", 1);
    w->after_key = true;
}

void kn_json_write_bytes(kn_json_writer *w, const char *value, size_t count)
{
    separate(w);
    quote(w->text, value, count);
}

void kn_json_write_string(kn_json_writer *w, const char *value)
{
    if (value)
        kn_json_write_bytes(w, value, strlen(value));
    else
        kn_json_write_null(w);
}

void kn_json_write_int(kn_json_writer *w, int64_t value)
{
    if (value < 0) {
        separate(w);
        kn_text_format(w->text, "%" PRId64, value);
    } else {
        kn_json_write_uint(w, (uint64_t)value);
    }
}

void kn_json_write_uint(kn_json_writer *w, uint64_t value)
{
    char digits[20];
    char *at = digits + sizeof digits;
    separate(w);
    do *--at = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    kn_text_append(w->text, at, (size_t)(digits + sizeof digits - at));
}

/* A number with at most three decimals and fifteen digits is the only such one that reads back as this double, so its
 * digits are what "%.15g" prints, at a tenth of the time. Most numbers of an answer are of this kind. */
static bool write_thousandths(kn_json_writer *w, double value)
{
    if (!(value >= 0.001 && value < 1e12)) return false;
    const uint64_t scaled = (uint64_t)(value * 1000.0 + 0.5);
    if ((double)scaled / 1000.0 != value) return false;
    char digits[4] = {'.', (char)('0' + scaled / 100 % 10), (char)('0' + scaled / 10 % 10), (char)('0' + scaled % 10)};
    size_t count = sizeof digits;
    while (count > 1 && digits[count - 1] == '0') count--;
    kn_json_write_uint(w, scaled / 1000);
    if (count > 1) kn_text_append(w->text, digits, count);
    return true;
}

void kn_json_write_double(kn_json_writer *w, double value)
{
    char digits[32];
    if (!isfinite(value)) {
        kn_json_write_null(w);
        return;
    }
    if (write_thousandths(w, value)) return;
    for (int precision = 15; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) break;
    }
    kn_json_write_raw(w, digits);
}

void kn_json_write_bool(kn_json_writer *w, bool value)
{
    kn_json_write_raw(w, value ? "true" : "false");
}

void kn_json_write_null(kn_json_writer *w)
{
    kn_json_write_raw(w, "null");
}

void kn_json_write_raw(kn_json_writer *w, const char *json)
{
    separate(w);
    kn_text_string(w->text, json ? json : "null");
}
