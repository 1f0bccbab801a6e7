/* SPDX-License-Identifier: Apache-2.0
 *
 * Form fields to a JSON tree: application/x-www-form-urlencoded (WHATWG URL, section 5) and the bracket names that
 * OpenAI's clients put into urlencoded and multipart bodies alike.
 *
 *   name                "name": "value"
 *   name[key]           "name": {"key": "value"}
 *   name[]              "name": ["value", ...], one per field
 *   name[][key]         "name": [{"key": "value"}, ...]
 *
 * The last form does not say where one element ends. Fields are taken in order, and a new element starts when the
 * field would set something that the current element already has. Leaves are strings; whoever reads the tree decides
 * what "true" and "8" are. A plain name given twice, or as two different shapes, is refused. */
#ifndef KN_SERVER_FORM_H
#define KN_SERVER_FORM_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "server/api_error.h"

enum {
    KN_FORM_BYTES_MAX = 1 << 20,
    KN_FORM_FIELDS_MAX = 256,
    KN_FORM_NAME_BYTES_MAX = 255, /* after decoding, brackets included */
    KN_FORM_DEPTH_MAX = 8,        /* brackets in a name */
};

/* A tree under construction. */
typedef struct kn_form {
    json_t *root; /* object; owned */
    size_t fields;
} kn_form;

kn_status kn_form_begin(kn_form *form, kn_api_error *error);
/* Adds one decoded field. Name and value must be UTF-8 without NUL. */
kn_status kn_form_add(kn_form *form, const char *name, size_t name_count, const char *value, size_t value_count,
                      kn_api_error *error);
/* The tree, now the caller's to decref. */
json_t *kn_form_take(kn_form *form);
void kn_form_release(kn_form *form);

/* A whole urlencoded body. The caller decrefs *out. */
kn_status kn_form_parse(json_t **out, const char *bytes, size_t count, kn_api_error *error);

/* Decodes %XX and, when `plus_is_space`, '+'. out [count]; returns the bytes written, or -1 when an escape is
 * malformed. In place (out == bytes) is fine. */
ptrdiff_t kn_percent_decode(char *out, const char *bytes, size_t count, bool plus_is_space);

#endif
