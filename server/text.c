/* SPDX-License-Identifier: Apache-2.0
 *
 * A bounded text under construction; see text.h. */
#include "server/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "base/mem.h"

enum { FIRST_BYTES = 1024 };

kn_text kn_text_fixed(char *storage, size_t bytes)
{
    if (bytes > 0) storage[0] = '\0';
    return (kn_text){.bytes = storage, .capacity = bytes, .limit = bytes > 0 ? bytes - 1 : 0, .fixed = true};
}

kn_text kn_text_growing(size_t limit)
{
    return (kn_text){.limit = limit};
}

/* Room for `count` more bytes and the NUL. */
static bool reserve(kn_text *text, size_t count)
{
    if (text->status != KN_OK) return false;
    if (count > text->limit - text->count) {
        text->status = KN_INVALID;
        return false;
    }
    size_t needed = text->count + count + 1;
    if (needed <= text->capacity) return true;
    if (text->fixed) { /* storage of no bytes at all */
        text->status = KN_INVALID;
        return false;
    }
    size_t capacity = text->capacity < FIRST_BYTES ? FIRST_BYTES : 2 * text->capacity;
    if (capacity > text->limit + 1) capacity = text->limit + 1;
    if (capacity < needed) capacity = needed;
    char *bytes = kn_realloc(text->bytes, capacity);
    if (!bytes) {
        text->status = KN_NOMEM;
        return false;
    }
    text->bytes = bytes;
    text->capacity = capacity;
    return true;
}

void kn_text_append(kn_text *text, const void *bytes, size_t count)
{
    if (!reserve(text, count)) return;
    if (count > 0) memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
    text->bytes[text->count] = '\0';
}

void kn_text_string(kn_text *text, const char *string)
{
    kn_text_append(text, string, strlen(string));
}

void kn_text_format(kn_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (wanted < 0 && text->status == KN_OK) text->status = KN_INVALID;
    if (wanted < 0 || !reserve(text, (size_t)wanted)) return;
    va_start(arguments, format);
    vsnprintf(text->bytes + text->count, (size_t)wanted + 1, format, arguments);
    va_end(arguments);
    text->count += (size_t)wanted;
}

kn_status kn_text_status(const kn_text *text)
{
    if (text->status == KN_OK) return KN_OK;
    if (text->status == KN_NOMEM) return kn_fail(KN_NOMEM, "out of memory after %zu bytes of text", text->count);
    return kn_fail(text->status, "a text would be longer than %zu bytes or nested too deeply", text->limit);
}

void kn_text_clear(kn_text *text)
{
    text->count = 0;
    text->status = KN_OK;
    if (text->capacity > 0) text->bytes[0] = '\0';
}

char *kn_text_take(kn_text *text)
{
    char *bytes = text->bytes;
    if (!bytes && text->status == KN_OK) bytes = kn_strdup("");
    *text = kn_text_growing(text->limit);
    return bytes;
}

void kn_text_release(kn_text *text)
{
    if (!text || text->fixed) return;
    kn_free(text->bytes);
    *text = kn_text_growing(text->limit);
}

ptrdiff_t kn_text_characters(const char *bytes, size_t count)
{
    ptrdiff_t characters = 0;
    for (size_t at = 0; at < count; characters++) {
        int32_t code;
        utf8proc_ssize_t length =
            utf8proc_iterate((const utf8proc_uint8_t *)bytes + at, (utf8proc_ssize_t)(count - at), &code);
        if (length < 1 || code == 0) return -1;
        at += (size_t)length;
    }
    return characters;
}
