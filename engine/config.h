/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON files of a model folder: reading them within limits and taking typed
 * values out of them. Every refusal is one line that names file, key and limit.
 *
 * jansson does the grammar (UTF-8, numbers, duplicate keys). What it does not
 * bound is bounded here before it runs: bytes, nesting depth and number of
 * values, so that a hostile file costs memory in proportion to a limit. */
#ifndef KN_ENGINE_CONFIG_H
#define KN_ENGINE_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { KN_CONFIG_BYTES_MAX = 1 << 20, KN_CONFIG_DEPTH_MAX = 16, KN_CONFIG_VALUES_MAX = 1 << 16 };

typedef struct kn_json_limits {
    size_t bytes;  /* of the text */
    size_t values; /* scalars, arrays and objects together */
    int depth;     /* nested arrays and objects */
} kn_json_limits;

/* The whole of a regular file, ended by a NUL that `count` leaves out. KN_NOT_FOUND when it is not there, KN_CORRUPT
 * when it is longer than `limit`. *bytes is the caller's, to kn_free. */
kn_status kn_file_read(char **bytes, size_t *count, const char *path, size_t limit);

/* Parses a JSON object. `file` appears in messages only. The caller decrefs. */
kn_status kn_json_parse(json_t **out, const char *bytes, size_t count, const char *file, kn_json_limits limits);

/* kn_file_read and kn_json_parse. */
kn_status kn_json_load(json_t **out, const char *path, kn_json_limits limits);

/* An object and the file it came from. Borrows both. */
typedef struct kn_config {
    const json_t *object;
    const char *file;
} kn_config;

static inline kn_json_limits kn_config_limits(void)
{
    return (kn_json_limits){.bytes = KN_CONFIG_BYTES_MAX, .values = KN_CONFIG_VALUES_MAX, .depth = KN_CONFIG_DEPTH_MAX};
}

/* True when the key is missing or null, the two ways in which a Python config says "none". */
bool kn_config_none(const kn_config *config, const char *key);

/* Typed values. Key missing: *fallback when given, else KN_CORRUPT. Wrong type or outside [low, high]: KN_CORRUPT,
 * also for an integer's fallback. */
kn_status kn_config_int(const kn_config *config, const char *key, int32_t low, int32_t high, const int32_t *fallback,
                        int32_t *out);
kn_status kn_config_double(const kn_config *config, const char *key, double low, double high, const double *fallback,
                           double *out);
kn_status kn_config_bool(const kn_config *config, const char *key, const bool *fallback, bool *out);
/* *out is borrowed from the object. */
kn_status kn_config_string(const kn_config *config, const char *key, const char *fallback, const char **out);

/* A required array of low..high entries. */
kn_status kn_config_array(const kn_config *config, const char *key, size_t low, size_t high, const json_t **out);
/* Entry `index` of such an array, in messages "key[index]". */
kn_status kn_config_int_at(const kn_config *config, const char *key, const json_t *array, size_t index, int32_t low,
                           int32_t high, int32_t *out);
kn_status kn_config_float_at(const kn_config *config, const char *key, const json_t *array, size_t index, double low,
                             double high, float *out);

/* A setting of which the engine runs one value. `json` is that value as JSON text ("false", "\"bh2\"", "null",
 * "[1,2,2]", "[]"). */
typedef struct kn_config_rule {
    const char *key;
    const char *json;
    bool required; /* a missing key means another value */
    bool or_none;  /* null is the same as `json` */
} kn_config_rule;

/* KN_UNSUPPORTED names the key, its value and the one that is supported. */
kn_status kn_config_require(const kn_config *config, const kn_config_rule *rules, size_t count);

/* The value of a key as short JSON text on one line, for messages. */
void kn_config_describe(const kn_config *config, const char *key, char *out, size_t bytes);

/* Replaces control characters, so that foreign text stays on one line. */
void kn_one_line(char *text);

#endif
