/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON of strangers: reading bodies within limits, and writing answers without a tree.
 *
 * Reading is engine/config.h's bounded parser (jansson for the grammar; bytes, depth and values counted before
 * anything is built) with the limits of a request body and a limit on keys. Duplicate keys, NaN, numbers out of range,
 * NUL and anything that is not UTF-8 are refused.
 *
 * Writing appends to a kn_text and allocates nothing else. Output is always valid JSON (RFC 8259) in valid UTF-8:
 * bytes that are not UTF-8 become U+FFFD, numbers that are not finite become null. */
#ifndef KN_SERVER_JSON_H
#define KN_SERVER_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/text.h"

enum {
    KN_BODY_JSON_BYTES_MAX = 1 << 20,
    KN_BODY_JSON_DEPTH_MAX = 32,
    KN_BODY_JSON_KEYS_MAX = 256,    /* of all objects together */
    KN_BODY_JSON_VALUES_MAX = 4096, /* scalars, arrays and objects together: memory in proportion to the body */
};

/* Makes jansson allocate with kn_alloc, so that its memory is counted, a test can refuse it, and kn_json_body_parse
 * notices when it ran out (jansson itself may then go on with a string cut short). jansson keeps this setting per
 * process: call it before the first use of jansson and before any thread. */
void kn_json_use_kn_alloc(void);

/* Parses a JSON object. `param` is the field the text came in, NULL for the whole body. The caller decrefs. Errors:
 * 413 above the byte limit, else 400 "invalid_body" (or "invalid_value" with param) naming position or limit. */
kn_status kn_json_body_parse(json_t **out, const char *bytes, size_t count, const char *param, kn_api_error *error);

/* Keys in all objects of a tree that is no deeper than the limits here and in form.h allow. */
size_t kn_json_count_keys(const json_t *value);

/* ---- writing ---- */

/* Separators are the writer's business: give keys and values in order. Nesting deeper than KN_BODY_JSON_DEPTH_MAX
 * makes the text fail with KN_INVALID. */
typedef struct kn_json_writer {
    kn_text *text;
    uint64_t filled; /* bit d: the object or array at depth d has a member */
    int32_t depth;
    bool after_key;
} kn_json_writer;

kn_json_writer kn_json_writer_on(kn_text *text);

void kn_json_write_object(kn_json_writer *w); /* { */
void kn_json_write_object_end(kn_json_writer *w);
void kn_json_write_array(kn_json_writer *w); /* [ */
void kn_json_write_array_end(kn_json_writer *w);
void kn_json_write_key(kn_json_writer *w, const char *key);
void kn_json_write_string(kn_json_writer *w, const char *value); /* NULL: null */
void kn_json_write_bytes(kn_json_writer *w, const char *value, size_t count);
void kn_json_write_int(kn_json_writer *w, int64_t value);
void kn_json_write_uint(kn_json_writer *w, uint64_t value);
void kn_json_write_double(kn_json_writer *w, double value); /* the shortest text that reads back the same */
void kn_json_write_bool(kn_json_writer *w, bool value);
void kn_json_write_null(kn_json_writer *w);
void kn_json_write_raw(kn_json_writer *w, const char *json); /* one value that is JSON already; NULL: null */

#endif
