/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration file's syntax: a strict subset of TOML 1.0 (toml.io/en/v1.0.0).
 *
 *   # comment
 *   key = "basic string"         escapes \" \\ \n \t \r \b \f \uXXXX \UXXXXXXXX
 *   path = 'literal string'      no escapes
 *   count = 1_024                decimal, fits int64
 *   flag = true
 *   list = ["one", "two"]        strings only, may span lines, may end with a comma
 *   [section]                    one level, each once
 *   "quoted key" = "value"
 *
 * Why TOML: people know it and editors colour it; a key has a line of its own, so that an error can name the line (a
 * JSON document loses them, and has no comments); and this subset needs a page of code, where libconfig and the INI
 * readers each bring a dialect that would have to be explained. Floats, dates, dotted keys, inline and nested tables,
 * arrays of tables and multi-line strings are refused by name rather than half understood.
 *
 * A function of bytes: no files, no allocation that outlives it. */
#ifndef KN_SERVER_TOML_H
#define KN_SERVER_TOML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    KN_TOML_BYTES = 1 << 20,     /* of a document */
    KN_TOML_KEY_BYTES = 128,     /* of a key or section name, with the NUL */
    KN_TOML_STRING_BYTES = 4096, /* of a string, with the NUL */
    KN_TOML_ITEMS = 256,         /* strings in a list */
    KN_TOML_KEYS = 1024,         /* keys in a section, and sections in a document */
};

typedef enum kn_toml_kind { KN_TOML_STRING, KN_TOML_INTEGER, KN_TOML_BOOLEAN, KN_TOML_LIST } kn_toml_kind;

const char *kn_toml_kind_name(kn_toml_kind kind); /* "a string", "a number", "true or false", "a list of strings" */

/* Valid during the callback. */
typedef struct kn_toml_entry {
    const char *section; /* "" before the first [section] */
    const char *key;
    int line; /* 1-based, of the key */
    kn_toml_kind kind;
    const char *text;         /* string */
    int64_t integer;          /* number */
    bool boolean;             /* true or false */
    const char *const *items; /* list: [item_count] */
    size_t item_count;
} kn_toml_entry;

/* Any status but KN_OK stops the parsing and is passed on, its message prefixed with the line. */
typedef kn_status (*kn_toml_visit)(void *context, const kn_toml_entry *entry);

/* Calls `visit` for each key in order. KN_INVALID and "line N: ..." for what is not in the subset, a key that is given
 * twice, or a limit. */
kn_status kn_toml_parse(const char *text, size_t bytes, kn_toml_visit visit, void *context);

#endif
