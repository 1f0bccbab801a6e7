/* SPDX-License-Identifier: Apache-2.0
 *
 * Prompt cleaning as diffusers' WanPipeline does it where ftfy is not
 * installed: html.unescape twice, str.strip, re.sub(r"\s+", " "), strip.
 *
 * A character reference is "&" followed by "#" and decimal digits, "#x" and hex
 * digits, or 1 to 32 characters none of which is tab, newline, form feed,
 * space, "<", "&", "#" or ";"; then perhaps ";". Of a name that is not in the
 * table the longest start that is, of at least two characters, is replaced. */
#include "engine/token_internal.h"

#include <string.h>

#include "base/mem.h"

enum { NAME_CHARACTERS_MAX = 32, CODE_POINT_END = 0x110000 };

typedef struct entity {
    const char *name; /* with its ";" where that is part of the name */
    const char *text; /* UTF-8 */
} entity;

/* Sorted by name, bytewise. */
static const entity entities[] = {
#define KN_ENTITY(name, text) {name, text},
#include "engine/html_entities.inc"
#undef KN_ENTITY
};

static const char *find_entity(const char *name, size_t bytes)
{
    size_t low = 0;
    size_t high = sizeof entities / sizeof entities[0];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strncmp(entities[middle].name, name, bytes);
        if (order == 0 && entities[middle].name[bytes] == '\0') return entities[middle].text;
        if (order < 0)
            low = middle + 1;
        else
            high = middle; /* also where the entry only starts with the name: the name sorts before it */
    }
    return NULL;
}

/* What the C1 control numbers mean in HTML: windows-1252. 0 keeps the number. */
static const uint16_t c1_meaning[32] = {
    0x20ac, 0,      0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
    0x2039, 0x0152, 0,      0x017d, 0,      0,      0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0,      0x017e, 0x0178,
};

/* The code point a numeric reference stands for, or -1 for nothing. */
static int32_t meaning_of_number(uint32_t number)
{
    if (number == 0 || (number >= 0xd800 && number <= 0xdfff) || number >= CODE_POINT_END) return 0xfffd;
    if (number >= 0x80 && number <= 0x9f) {
        uint16_t meaning = c1_meaning[number - 0x80];
        return meaning ? meaning : (int32_t)number;
    }
    bool control =
        (number < 0x20 && number != '\t' && number != '\n' && number != '\f' && number != '\r') || number == 0x7f;
    bool no_character = (number >= 0xfdd0 && number <= 0xfdef) || (number & 0xfffeu) == 0xfffeu;
    return control || no_character ? -1 : (int32_t)number;
}

static int digit_of(char c, unsigned base)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (base == 16 && c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (base == 16 && c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* `text` starts behind "&#". *taken is 0 when this is no reference. */
static kn_status unescape_number(const char *text, size_t bytes, kn_token_text *out, size_t *taken)
{
    size_t at = 0;
    unsigned base = 10;
    *taken = 0;
    if (bytes > 0 && (text[0] == 'x' || text[0] == 'X')) {
        base = 16;
        at = 1;
    }
    size_t digits = at;
    uint32_t number = 0;
    for (; at < bytes && digit_of(text[at], base) >= 0; at++) {
        number = number * base + (uint32_t)digit_of(text[at], base);
        if (number > CODE_POINT_END) number = CODE_POINT_END;
    }
    if (at == digits) return KN_OK;
    if (at < bytes && text[at] == ';') at++;
    *taken = at;
    int32_t code = meaning_of_number(number);
    if (code < 0) return KN_OK;
    char utf8[4];
    return kn_token_text_append(out, utf8, kn_token_utf8_write(code, utf8));
}

/* `text` starts behind "&". *taken is 0 when this is no reference. */
static kn_status unescape_name(const char *text, size_t bytes, kn_token_text *out, size_t *taken)
{
    kn_status st = KN_OK;
    size_t end = 0;
    *taken = 0;
    for (int characters = 0; end < bytes && characters < NAME_CHARACTERS_MAX; characters++) {
        if (!text[end] || strchr("\t\n\f <&#;", text[end])) break;
        int32_t code;
        end += kn_token_utf8_read(text + end, bytes - end, &code);
    }
    if (end == 0) return KN_OK;
    if (end < bytes && text[end] == ';') end++;
    *taken = end;

    const char *meaning = find_entity(text, end);
    size_t named = end;
    while (!meaning && --named >= 2) meaning = find_entity(text, named);
    if (!meaning) {
        KN_TRY(kn_token_text_append(out, "&", 1));
        named = 0;
    } else {
        KN_TRY(kn_token_text_append(out, meaning, strlen(meaning)));
    }
    return kn_token_text_append(out, text + named, end - named);

fail:
    return st;
}

static kn_status unescape(const kn_token_text *in, kn_token_text *out)
{
    kn_status st = KN_OK;
    for (size_t at = 0; at < in->bytes;) {
        const char *ampersand = memchr(in->data + at, '&', in->bytes - at);
        size_t plain = ampersand ? (size_t)(ampersand - in->data) - at : in->bytes - at;
        KN_TRY(kn_token_text_append(out, in->data + at, plain));
        at += plain;
        if (!ampersand) break;
        const char *rest = ampersand + 1;
        size_t left = in->bytes - at - 1;
        size_t taken = 0;
        if (left > 0 && rest[0] == '#') {
            KN_TRY(unescape_number(rest + 1, left - 1, out, &taken));
            taken += taken > 0;
        } else {
            KN_TRY(unescape_name(rest, left, out, &taken));
        }
        if (taken == 0) KN_TRY(kn_token_text_append(out, "&", 1));
        at += 1 + taken;
    }

fail:
    return st;
}

/* What str.strip removes: Unicode White_Space and the four separators of ASCII. The pipeline's \s, of the `regex`
 * module and not of `re`, does not hold those four. */
static bool is_python_space(int32_t code)
{
    return kn_token_is_space(code) || (code >= 0x1c && code <= 0x1f);
}

/* Strips both ends, then makes every run of white space one space. */
static kn_status collapse_spaces(const kn_token_text *in, kn_token_text *out)
{
    kn_status st = KN_OK;
    size_t first = in->bytes, last = 0; /* of what is left when stripped */
    bool pending = false;
    for (size_t at = 0; at < in->bytes;) {
        int32_t code;
        size_t length = kn_token_utf8_read(in->data + at, in->bytes - at, &code);
        if (!is_python_space(code)) {
            if (at < first) first = at;
            last = at + length;
        }
        at += length;
    }
    for (size_t at = first; at < last;) {
        int32_t code;
        size_t length = kn_token_utf8_read(in->data + at, in->bytes - at, &code);
        if (kn_token_is_space(code)) {
            pending = true;
        } else {
            if (pending) KN_TRY(kn_token_text_append(out, " ", 1));
            KN_TRY(kn_token_text_append(out, in->data + at, length));
            pending = false;
        }
        at += length;
    }

fail:
    return st;
}

kn_status kn_prompt_clean(char **out, const char *text)
{
    kn_status st = KN_OK;
    kn_token_text a = {0};
    kn_token_text b = {0};
    KN_REQUIRE(out && text);
    *out = NULL;
    size_t bytes = strlen(text);
    if (bytes > KN_TEXT_BYTES_MAX)
        KN_TRY(kn_fail(KN_INVALID, "prompt of %zu bytes; the limit is %d", bytes, KN_TEXT_BYTES_MAX));
    KN_TRY(kn_token_text_append_valid(&a, text, bytes));
    KN_TRY(unescape(&a, &b));
    a.bytes = 0;
    KN_TRY(unescape(&b, &a));
    b.bytes = 0;
    KN_TRY(collapse_spaces(&a, &b));
    *out = kn_strndup(b.data ? b.data : "", b.bytes);
    if (!*out) st = KN_NOMEM;

fail:
    kn_token_text_free(&a);
    kn_token_text_free(&b);
    return st;
}
