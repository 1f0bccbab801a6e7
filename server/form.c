/* SPDX-License-Identifier: Apache-2.0
 *
 * Form fields to a JSON tree; see form.h.
 *
 * A name is split into steps: the first is a key, each bracket pair a key or (empty) "append". A field is placed by
 * walking the steps. Whether an array's last element can take the rest is asked first, without changing anything. */
#include "server/form.h"

#include <string.h>

#include "base/mem.h"

typedef struct step {
    const char *key; /* ended by NUL; NULL: append to an array */
} step;

typedef struct field_path {
    char name[KN_FORM_NAME_BYTES_MAX + 1]; /* brackets replaced by NUL */
    step steps[1 + KN_FORM_DEPTH_MAX];
    size_t count;
} field_path;

kn_status kn_form_begin(kn_form *form, kn_api_error *error)
{
    *form = (kn_form){.root = json_object()};
    return form->root ? KN_OK : kn_api_from_status(error, KN_NOMEM);
}

json_t *kn_form_take(kn_form *form)
{
    json_t *root = form->root;
    *form = (kn_form){0};
    return root;
}

void kn_form_release(kn_form *form)
{
    json_decref(form->root);
    *form = (kn_form){0};
}

/* a[b][] to {"a"}, {"b"}, {NULL}. False: brackets that are not pairs at the end of the name, or too many. */
static bool split(field_path *out, const char *name, size_t count)
{
    memcpy(out->name, name, count);
    out->name[count] = '\0';
    char *at = out->name;
    char *bracket = strchr(at, '[');
    if (bracket == at || count == 0) return false;
    out->steps[0] = (step){.key = at};
    out->count = 1;
    if (!bracket) return strchr(at, ']') == NULL;
    *bracket = '\0';
    if (strchr(at, ']')) return false;
    for (at = bracket + 1;;) {
        char *end = strchr(at, ']');
        char *nested = strchr(at, '[');
        if (!end || (nested && nested < end) || out->count == 1 + KN_FORM_DEPTH_MAX) return false;
        *end = '\0';
        out->steps[out->count++] = (step){.key = end > at ? at : NULL};
        if (end[1] == '\0') return true;
        if (end[1] != '[') return false;
        at = end + 2;
    }
}

/* Can the steps from `from` on be placed in `container` without setting anything twice? Changes nothing. */
static bool fits(const json_t *container, const field_path *path, size_t from)
{
    for (size_t i = from; i < path->count; i++) {
        if (!path->steps[i].key) return json_is_array(container); /* an element can always be added */
        if (!json_is_object(container)) return false;
        container = json_object_get(container, path->steps[i].key);
        if (!container) return true;
    }
    return false; /* every step is there: the field repeats */
}

/* The value of step i within `container`, made when it is not there. Borrowed; NULL without memory. */
static json_t *descend(json_t *container, const field_path *path, size_t i)
{
    const step *next = &path->steps[i + 1];
    const char *key = path->steps[i].key;
    if (key) {
        json_t *found = json_object_get(container, key);
        if (found) return found;
    } else {
        size_t elements = json_array_size(container);
        json_t *last = elements > 0 ? json_array_get(container, elements - 1) : NULL;
        if (last && next->key && fits(last, path, i + 1)) return last;
    }
    json_t *fresh = next->key ? json_object() : json_array();
    int failed = key ? json_object_set_new(container, key, fresh) : json_array_append_new(container, fresh);
    return failed ? NULL : fresh;
}

static kn_status place(json_t *root, const field_path *path, const char *value, size_t value_count, kn_api_error *error)
{
    json_t *container = root;
    for (size_t i = 0; i + 1 < path->count; i++) {
        container = descend(container, path, i);
        if (!container) return kn_api_from_status(error, KN_NOMEM);
    }
    json_t *leaf = json_stringn(value, value_count);
    const char *key = path->steps[path->count - 1].key;
    int failed = key ? json_object_set_new(container, key, leaf) : json_array_append_new(container, leaf);
    return failed ? kn_api_from_status(error, KN_NOMEM) : KN_OK;
}

kn_status kn_form_add(kn_form *form, const char *name, size_t name_count, const char *value, size_t value_count,
                      kn_api_error *error)
{
    field_path path;
    if (++form->fields > KN_FORM_FIELDS_MAX)
        return kn_api_invalid_body(error, "The form has more than %d fields.", KN_FORM_FIELDS_MAX);
    if (name_count > KN_FORM_NAME_BYTES_MAX)
        return kn_api_invalid_body(error, "A form field's name has %zu bytes; at most %d are accepted.", name_count,
                                   KN_FORM_NAME_BYTES_MAX);
    if (kn_text_characters(name, name_count) < 0)
        return kn_api_invalid_body(error, "A form field's name is not UTF-8 without NUL.");
    if (!split(&path, name, name_count))
        return kn_api_invalid_body(error,
                                   "The form field name '%.*s' is not a name followed by at most %d pairs of brackets.",
                                   (int)name_count, name, KN_FORM_DEPTH_MAX);
    if (kn_text_characters(value, value_count) < 0)
        return kn_api_invalid_value(error, path.steps[0].key, "The form field is not UTF-8 without NUL.");
    if (!fits(form->root, &path, 0))
        return kn_api_invalid_value(error, path.steps[0].key,
                                    "The form field '%.*s' is given twice, or as different shapes.", (int)name_count,
                                    name);
    return place(form->root, &path, value, value_count, error);
}

/* ---- application/x-www-form-urlencoded ---- */

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

ptrdiff_t kn_percent_decode(char *out, const char *bytes, size_t count, bool plus_is_space)
{
    size_t written = 0;
    for (size_t at = 0; at < count; at++) {
        char c = bytes[at];
        if (c == '%') {
            int high = count - at > 2 ? hex(bytes[at + 1]) : -1;
            int low = count - at > 2 ? hex(bytes[at + 2]) : -1;
            if (high < 0 || low < 0) return -1;
            c = (char)(high << 4 | low);
            at += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        out[written++] = c;
    }
    return (ptrdiff_t)written;
}

/* One name=value, decoded in `scratch`, which has room for all of it. */
static kn_status add_pair(kn_form *form, char *scratch, const char *bytes, size_t count, kn_api_error *error)
{
    const char *equals = memchr(bytes, '=', count);
    size_t name_count = equals ? (size_t)(equals - bytes) : count;
    size_t value_count = equals ? count - name_count - 1 : 0;
    ptrdiff_t name = kn_percent_decode(scratch, bytes, name_count, true);
    ptrdiff_t value = kn_percent_decode(scratch + name_count, equals ? equals + 1 : bytes, value_count, true);
    if (name < 0 || value < 0)
        return kn_api_invalid_body(error, "The form has a '%%' that is not followed by two hexadecimal digits.");
    return kn_form_add(form, scratch, (size_t)name, scratch + name_count, (size_t)value, error);
}

kn_status kn_form_parse(json_t **out, const char *bytes, size_t count, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_form form = {0};
    char *scratch = NULL;
    if (count > KN_FORM_BYTES_MAX) return kn_api_too_large(error, "The form", KN_FORM_BYTES_MAX);
    KN_TRY(kn_form_begin(&form, error));
    scratch = kn_alloc(count);
    if (!scratch) KN_TRY(kn_api_from_status(error, KN_NOMEM));
    for (size_t at = 0; at < count;) {
        const char *stop = memchr(bytes + at, '&', count - at);
        size_t pair = stop ? (size_t)(stop - bytes) - at : count - at;
        if (pair > 0) KN_TRY(add_pair(&form, scratch, bytes + at, pair, error));
        at += pair + 1;
    }
    *out = kn_form_take(&form);
fail:
    kn_free(scratch);
    kn_form_release(&form);
    return st;
}
