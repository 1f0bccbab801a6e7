/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes are either refused with a typed error or are one JSON object within the limits; and any bytes written as a
 * JSON string read back as JSON. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void ensure(int holds)
{
    if (!holds) abort();
}

static void read_body(const char *bytes, size_t count)
{
    json_t *root = NULL;
    kn_api_error error;
    kn_status st = kn_json_body_parse(&root, bytes, count, NULL, &error);
    if (st == KN_OK) {
        ensure(json_is_object(root) && kn_json_count_keys(root) <= KN_BODY_JSON_KEYS_MAX);
        ensure(kn_text_characters(bytes, count) >= 0);
    } else {
        ensure(st == KN_INVALID && (error.status == 400 || error.status == 413) && !strchr(error.message, '\n'));
        ensure(kn_text_characters(error.message, strlen(error.message)) > 0);
    }
    json_decref(root);
}

static void write_string(const char *bytes, size_t count)
{
    kn_text text = kn_text_growing(8 * count + 64);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_json_write_array(&w);
    kn_json_write_bytes(&w, bytes, count);
    kn_json_write_array_end(&w);
    ensure(kn_text_status(&text) == KN_OK);
    json_t *back = json_loadb(text.bytes, text.count, JSON_ALLOW_NUL, NULL);
    const json_t *value = json_array_get(back, 0);
    ensure(json_is_string(value));
    /* What was text comes back the same. */
    if (kn_text_characters(bytes, count) >= 0)
        ensure(json_string_length(value) == count && memcmp(json_string_value(value), bytes, count) == 0);
    json_decref(back);
    kn_text_release(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kn_json_use_kn_alloc();
    uint64_t held = kn_mem_read().bytes;
    read_body((const char *)bytes, count);
    write_string((const char *)bytes, count);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
