/* SPDX-License-Identifier: Apache-2.0
 *
 * UTF-8 for the tokenizer: reading with the replacement rule of the Unicode
 * standard (chapter 3.9, "maximal subparts"), a growing buffer, and the two
 * character classes that added tokens ask about. */
#include "engine/token_internal.h"

#include <string.h>

#include <utf8proc.h>

#include "base/mem.h"

kn_status kn_token_text_append(kn_token_text *text, const char *data, size_t bytes)
{
    if (bytes > KN_TOKEN_TEXT_MAX - text->bytes)
        return kn_fail(KN_INVALID, "text grows above %d bytes while it is normalized", KN_TOKEN_TEXT_MAX);
    size_t needed = text->bytes + bytes;
    if (needed > text->capacity || !text->data) {
        size_t capacity = text->capacity < 64 ? 64 : text->capacity * 2;
        if (capacity < needed) capacity = needed;
        char *grown = kn_realloc(text->data, capacity);
        if (!grown) return KN_NOMEM;
        text->data = grown;
        text->capacity = capacity;
    }
    if (bytes > 0) memcpy(text->data + text->bytes, data, bytes);
    text->bytes = needed;
    return KN_OK;
}

void kn_token_text_free(kn_token_text *text)
{
    kn_free(text->data);
    *text = (kn_token_text){0};
}

size_t kn_token_utf8_read(const char *text, size_t bytes, int32_t *code)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned lead = s[0];
    if (lead < 0x80) {
        *code = (int32_t)lead;
        return 1;
    }
    *code = -1;
    if (lead < 0xc2 || lead > 0xf4) return 1;
    size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* The second byte is narrower after four leads: no overlong forms, no surrogates, nothing above U+10FFFF. */
    unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    int32_t value = (int32_t)(lead & (0x7fu >> length));
    for (size_t i = 1; i < length; i++) {
        if (i >= bytes || s[i] < low || s[i] > high) return i;
        value = value << 6 | (int32_t)(s[i] & 0x3fu);
        low = 0x80;
        high = 0xbf;
    }
    *code = value;
    return length;
}

size_t kn_token_utf8_read_last(const char *text, size_t bytes, int32_t *code)
{
    size_t start = bytes - 1;
    while (start > 0 && bytes - start < 4 && ((unsigned char)text[start] & 0xc0u) == 0x80u) start--;
    kn_token_utf8_read(text + start, bytes - start, code);
    return bytes - start;
}

size_t kn_token_utf8_write(int32_t code, char out[4])
{
    uint32_t c = (uint32_t)code;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0u | c >> 6);
        out[1] = (char)(0x80u | (c & 0x3fu));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0u | c >> 12);
        out[1] = (char)(0x80u | (c >> 6 & 0x3fu));
        out[2] = (char)(0x80u | (c & 0x3fu));
        return 3;
    }
    out[0] = (char)(0xf0u | c >> 18);
    out[1] = (char)(0x80u | (c >> 12 & 0x3fu));
    out[2] = (char)(0x80u | (c >> 6 & 0x3fu));
    out[3] = (char)(0x80u | (c & 0x3fu));
    return 4;
}

kn_status kn_token_text_append_valid(kn_token_text *text, const char *data, size_t bytes)
{
    kn_status st = KN_OK;
    size_t clean = 0; /* start of the valid bytes not copied yet */
    size_t at = 0;
    while (at < bytes) {
        int32_t code;
        size_t length = kn_token_utf8_read(data + at, bytes - at, &code);
        if (code < 0) {
            KN_TRY(kn_token_text_append(text, data + clean, at - clean));
            KN_TRY(kn_token_text_append(text, "\xef\xbf\xbd", 3));
            clean = at + length;
        }
        at += length;
    }
    return kn_token_text_append(text, data + clean, bytes - clean);

fail:
    return st;
}

bool kn_token_is_space(int32_t code)
{
    return (code >= 0x09 && code <= 0x0d) || code == 0x20 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
           code == 0x3000;
}

/* Known to every Unicode version, one of each class. */
enum { SOME_MARK = 0x0300, SOME_PREPENDED = 0x0600, SOME_CONTROL = 0x200b, SOME_LETTER = 0x0061 };

int32_t kn_token_as_known(int32_t code)
{
    static const struct {
        int32_t first, last, stand_in;
    } ranges[] = {
        {0x00897, 0x00897, SOME_MARK},      {0x01acf, 0x01add, SOME_MARK},    {0x01ae0, 0x01aeb, SOME_MARK},
        {0x02065, 0x02065, SOME_CONTROL},   {0x0fff0, 0x0fff8, SOME_CONTROL}, {0x10d69, 0x10d6d, SOME_MARK},
        {0x10efa, 0x10efc, SOME_MARK},      {0x113b8, 0x113c0, SOME_MARK},    {0x113c2, 0x113c2, SOME_MARK},
        {0x113c5, 0x113c5, SOME_MARK},      {0x113c7, 0x113ca, SOME_MARK},    {0x113cc, 0x113d0, SOME_MARK},
        {0x113d1, 0x113d1, SOME_PREPENDED}, {0x113d2, 0x113d2, SOME_MARK},    {0x113e1, 0x113e2, SOME_MARK},
        {0x11a3a, 0x11a3a, SOME_LETTER},    {0x11b60, 0x11b67, SOME_MARK},    {0x11f5a, 0x11f5a, SOME_MARK},
        {0x1611e, 0x1612f, SOME_MARK},      {0x1e5ee, 0x1e5ef, SOME_MARK},    {0x1e6e3, 0x1e6e3, SOME_MARK},
        {0x1e6e6, 0x1e6e6, SOME_MARK},      {0x1e6ee, 0x1e6ef, SOME_MARK},    {0x1e6f5, 0x1e6f5, SOME_MARK},
        {0xe0000, 0xe0000, SOME_CONTROL},   {0xe0002, 0xe001f, SOME_CONTROL}, {0xe0080, 0xe00ff, SOME_CONTROL},
        {0xe01f0, 0xe0fff, SOME_CONTROL},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0] && ranges[i].first <= code; i++) {
        if (code <= ranges[i].last) return ranges[i].stand_in;
    }
    return code;
}

bool kn_token_is_word(int32_t code)
{
    if (kn_token_as_known(code) == SOME_MARK) return true;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
    }
    /* Joiners, and the enclosed letters that are alphabetic by a property of their own. */
    return code == 0x200c || code == 0x200d || (code >= 0x24b6 && code <= 0x24e9) ||
           (code >= 0x1f130 && code <= 0x1f149) || (code >= 0x1f150 && code <= 0x1f169) ||
           (code >= 0x1f170 && code <= 0x1f189);
}
