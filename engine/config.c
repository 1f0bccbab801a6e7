/* SPDX-License-Identifier: Apache-2.0
 *
 * Bounded reading of files and JSON; see config.h. */
#define _POSIX_C_SOURCE 200809L
#include "engine/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

void kn_one_line(char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
    }
}

/* ---- files ---- */

static kn_status read_exactly(int file, char *bytes, size_t count, const char *path)
{
    size_t done = 0;
    while (done < count) {
        ssize_t got = read(file, bytes + done, count - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return kn_fail(KN_IO, "%s: reading failed: %s", path, strerror(errno));
        if (got == 0) return kn_fail(KN_IO, "%s: shrank while it was read", path);
        done += (size_t)got;
    }
    return KN_OK;
}

kn_status kn_file_read(char **bytes, size_t *count, const char *path, size_t limit)
{
    kn_status st = KN_OK;
    char *text = NULL;
    /* Non-blocking, so that opening a pipe by mistake does not wait for its other end. */
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        if (errno == ENOENT || errno == ENOTDIR) return kn_fail(KN_NOT_FOUND, "%s: not found", path);
        return kn_fail(KN_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    struct stat info;
    if (fstat(file, &info) != 0) {
        st = kn_fail(KN_IO, "%s: cannot read its size: %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode)) {
        st = kn_fail(KN_CORRUPT, "%s: not a regular file", path);
        goto fail;
    }
    if ((uint64_t)info.st_size > limit) {
        st = kn_fail(KN_CORRUPT, "%s: %lld bytes, the limit is %zu", path, (long long)info.st_size, limit);
        goto fail;
    }
    text = kn_alloc((size_t)info.st_size + 1);
    if (!text) {
        st = KN_NOMEM;
        goto fail;
    }
    KN_TRY(read_exactly(file, text, (size_t)info.st_size, path));
    close(file);
    *bytes = text;
    *count = (size_t)info.st_size;
    return KN_OK;

fail:
    kn_free(text);
    close(file);
    return st;
}

/* ---- JSON ---- */

/* Counts values and depth without building anything. Malformed text may be miscounted; the parser refuses it later. */
static kn_status scan(const char *bytes, size_t count, const char *file, kn_json_limits limits)
{
    size_t values = 1;
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < count; i++) {
        char c = bytes[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > limits.depth)
                return kn_fail(KN_CORRUPT, "%s: JSON nested deeper than %d", file, limits.depth);
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',') {
            values++;
        }
    }
    if (values > limits.values) return kn_fail(KN_CORRUPT, "%s: more than %zu JSON values", file, limits.values);
    return KN_OK;
}

kn_status kn_json_parse(json_t **out, const char *bytes, size_t count, const char *file, kn_json_limits limits)
{
    if (count > limits.bytes)
        return kn_fail(KN_CORRUPT, "%s: %zu bytes of JSON, the limit is %zu", file, count, limits.bytes);
    kn_status st = scan(bytes, count, file, limits);
    if (st != KN_OK) return st;
    json_error_t error;
    json_t *root = json_loadb(bytes, count, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!root) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return kn_fail(KN_NOMEM, "%s: out of memory parsing %zu bytes of JSON", file, count);
        kn_one_line(error.text);
        return kn_fail(KN_CORRUPT, "%s: not valid JSON at byte %d: %s", file, error.position, error.text);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return kn_fail(KN_CORRUPT, "%s: the JSON is not an object", file);
    }
    *out = root;
    return KN_OK;
}

kn_status kn_json_load(json_t **out, const char *path, kn_json_limits limits)
{
    char *bytes = NULL;
    size_t count = 0;
    kn_status st = kn_file_read(&bytes, &count, path, limits.bytes);
    if (st == KN_OK) st = kn_json_parse(out, bytes, count, path, limits);
    kn_free(bytes);
    return st;
}

/* ---- typed values ---- */

static void describe(const json_t *value, char *out, size_t bytes)
{
    memset(out, 0, bytes);
    size_t wanted = json_dumpb(value, out, bytes - 1, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    if (wanted >= bytes) {
        /* json_dumpb stopped at the first piece that did not fit; mark the cut. */
        size_t used = strlen(out);
        snprintf(out + (used < bytes - 4 ? used : bytes - 4), 4, "...");
    }
    kn_one_line(out);
}

void kn_config_describe(const kn_config *config, const char *key, char *out, size_t bytes)
{
    const json_t *value = json_object_get(config->object, key);
    if (value)
        describe(value, out, bytes);
    else
        snprintf(out, bytes, "missing");
}

bool kn_config_none(const kn_config *config, const char *key)
{
    const json_t *value = json_object_get(config->object, key);
    return !value || json_is_null(value);
}

static kn_status missing(const kn_config *config, const char *key)
{
    return kn_fail(KN_CORRUPT, "%s: key \"%s\" is missing", config->file, key);
}

static kn_status mistyped(const kn_config *config, const char *key, const json_t *value, const char *wanted)
{
    char text[48];
    describe(value, text, sizeof text);
    return kn_fail(KN_CORRUPT, "%s: \"%s\" is %s, not %s", config->file, key, text, wanted);
}

static kn_status take_int(const kn_config *config, const char *key, const json_t *value, int32_t low, int32_t high,
                          int32_t *out)
{
    if (!json_is_integer(value)) return mistyped(config, key, value, "an integer");
    json_int_t number = json_integer_value(value);
    if (number < low || number > high)
        return kn_fail(KN_CORRUPT, "%s: \"%s\" is %lld, outside %d..%d", config->file, key, (long long)number, low,
                       high);
    *out = (int32_t)number;
    return KN_OK;
}

static kn_status take_double(const kn_config *config, const char *key, const json_t *value, double low, double high,
                             double *out)
{
    if (!json_is_number(value)) return mistyped(config, key, value, "a number");
    double number = json_number_value(value);
    if (!(number >= low && number <= high))
        return kn_fail(KN_CORRUPT, "%s: \"%s\" is %g, outside %g..%g", config->file, key, number, low, high);
    *out = number;
    return KN_OK;
}

kn_status kn_config_int(const kn_config *config, const char *key, int32_t low, int32_t high, const int32_t *fallback,
                        int32_t *out)
{
    const json_t *value = json_object_get(config->object, key);
    if (value) return take_int(config, key, value, low, high, out);
    if (!fallback) return missing(config, key);
    /* A limit may depend on another key, so that the default is outside. */
    if (*fallback < low || *fallback > high)
        return kn_fail(KN_CORRUPT, "%s: \"%s\" is missing and its default %d is outside %d..%d", config->file, key,
                       *fallback, low, high);
    *out = *fallback;
    return KN_OK;
}

kn_status kn_config_double(const kn_config *config, const char *key, double low, double high, const double *fallback,
                           double *out)
{
    const json_t *value = json_object_get(config->object, key);
    if (value) return take_double(config, key, value, low, high, out);
    if (!fallback) return missing(config, key);
    *out = *fallback;
    return KN_OK;
}

kn_status kn_config_bool(const kn_config *config, const char *key, const bool *fallback, bool *out)
{
    const json_t *value = json_object_get(config->object, key);
    if (value) {
        if (!json_is_boolean(value)) return mistyped(config, key, value, "true or false");
        *out = json_is_true(value);
        return KN_OK;
    }
    if (!fallback) return missing(config, key);
    *out = *fallback;
    return KN_OK;
}

kn_status kn_config_string(const kn_config *config, const char *key, const char *fallback, const char **out)
{
    const json_t *value = json_object_get(config->object, key);
    if (value) {
        if (!json_is_string(value)) return mistyped(config, key, value, "a string");
        *out = json_string_value(value);
        return KN_OK;
    }
    if (!fallback) return missing(config, key);
    *out = fallback;
    return KN_OK;
}

kn_status kn_config_array(const kn_config *config, const char *key, size_t low, size_t high, const json_t **out)
{
    const json_t *value = json_object_get(config->object, key);
    if (!value) return missing(config, key);
    if (!json_is_array(value)) return mistyped(config, key, value, "an array");
    size_t count = json_array_size(value);
    if (count < low || count > high)
        return kn_fail(KN_CORRUPT, "%s: \"%s\" has %zu entries, outside %zu..%zu", config->file, key, count, low, high);
    *out = value;
    return KN_OK;
}

static const char *indexed(char *out, size_t bytes, const char *key, size_t index)
{
    snprintf(out, bytes, "%s[%zu]", key, index);
    return out;
}

kn_status kn_config_int_at(const kn_config *config, const char *key, const json_t *array, size_t index, int32_t low,
                           int32_t high, int32_t *out)
{
    char name[64];
    return take_int(config, indexed(name, sizeof name, key, index), json_array_get(array, index), low, high, out);
}

kn_status kn_config_float_at(const kn_config *config, const char *key, const json_t *array, size_t index, double low,
                             double high, float *out)
{
    char name[64];
    double number;
    kn_status st =
        take_double(config, indexed(name, sizeof name, key, index), json_array_get(array, index), low, high, &number);
    if (st == KN_OK) *out = (float)number;
    return st;
}

static kn_status require(const kn_config *config, const kn_config_rule *rule)
{
    const json_t *value = json_object_get(config->object, rule->key);
    if (!value && !rule->required) return KN_OK;
    if (value && rule->or_none && json_is_null(value)) return KN_OK;
    if (value) {
        json_t *wanted = json_loads(rule->json, JSON_DECODE_ANY, NULL);
        if (!wanted) return kn_fail(KN_NOMEM, "%s: out of memory checking \"%s\"", config->file, rule->key);
        bool same = json_equal(value, wanted) != 0;
        json_decref(wanted);
        if (same) return KN_OK;
    }
    char text[48];
    kn_config_describe(config, rule->key, text, sizeof text);
    return kn_fail(KN_UNSUPPORTED, "%s: \"%s\" is %s; this engine runs %s only", config->file, rule->key, text,
                   rule->json);
}

kn_status kn_config_require(const kn_config *config, const kn_config_rule *rules, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        kn_status st = require(config, &rules[i]);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}
