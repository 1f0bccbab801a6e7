/* SPDX-License-Identifier: Apache-2.0 */
#include "server/toml.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

typedef char name[KN_TOML_KEY_BYTES];

typedef struct parser {
    const unsigned char *at, *end;
    int line;
    kn_toml_visit visit;
    void *context;
    name section;
    name *seen; /* [seen_count] keys of this section */
    size_t seen_count;
    name *sections; /* [section_count] */
    size_t section_count;
    char *texts; /* strings of the current value, each with its NUL */
    size_t text_bytes, text_room;
} parser;

const char *kn_toml_kind_name(kn_toml_kind kind)
{
    static const char *const names[] = {"a string", "a number", "true or false", "a list of strings"};
    return (unsigned)kind < 4 ? names[kind] : "unknown";
}

static kn_status refuse(const parser *p, const char *format, ...) KN_PRINTF(2, 3);

static kn_status refuse(const parser *p, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return kn_fail(KN_INVALID, "line %d: %s", p->line, text);
}

static int peek(const parser *p)
{
    return p->at < p->end ? *p->at : -1;
}

static void skip_blanks(parser *p)
{
    while (peek(p) == ' ' || peek(p) == '\t') p->at++;
}

/* A comment, up to but without the line's end. */
static kn_status skip_comment(parser *p)
{
    if (peek(p) != '#') return KN_OK;
    for (; p->at < p->end && *p->at != '\n'; p->at++) {
        bool ends_line = *p->at == '\r' && p->at + 1 < p->end && p->at[1] == '\n';
        if ((*p->at < 0x20 && *p->at != '\t' && !ends_line) || *p->at == 0x7f)
            return refuse(p, "a control character in a comment");
    }
    return KN_OK;
}

/* What may stand behind a value: blanks, a comment, and the end of the line or of the text. */
static kn_status end_line(parser *p)
{
    skip_blanks(p);
    kn_status st = skip_comment(p);
    if (st != KN_OK) return st;
    if (peek(p) == '\r' && p->at + 1 < p->end && p->at[1] == '\n') p->at++;
    if (peek(p) == -1) return KN_OK;
    if (*p->at != '\n') return refuse(p, "something stands behind the value; one key a line");
    p->at++;
    p->line++;
    return KN_OK;
}

/* ---- strings ---- */

static kn_status put_byte(parser *p, size_t start, unsigned byte)
{
    if (p->text_bytes - start >= KN_TOML_STRING_BYTES - 1 && byte)
        return refuse(p, "a string of more than %d bytes", KN_TOML_STRING_BYTES - 1);
    if (p->text_bytes == p->text_room) {
        size_t room = p->text_room ? 2 * p->text_room : 256;
        char *grown = kn_realloc(p->texts, room);
        if (!grown) return KN_NOMEM;
        p->texts = grown;
        p->text_room = room;
    }
    p->texts[p->text_bytes++] = (char)byte;
    return KN_OK;
}

static kn_status put_code(parser *p, size_t start, uint32_t code)
{
    kn_status st = KN_OK;
    if (code >= 0x10000) KN_TRY(put_byte(p, start, 0xf0 | code >> 18));
    if (code >= 0x800) KN_TRY(put_byte(p, start, code >= 0x10000 ? 0x80 | (code >> 12 & 0x3f) : 0xe0 | code >> 12));
    if (code >= 0x80) KN_TRY(put_byte(p, start, code >= 0x800 ? 0x80 | (code >> 6 & 0x3f) : 0xc0 | code >> 6));
    KN_TRY(put_byte(p, start, code >= 0x80 ? 0x80 | (code & 0x3f) : code));

fail:
    return st;
}

static kn_status parse_unicode(parser *p, size_t start, int digits)
{
    uint32_t code = 0;
    for (int i = 0; i < digits; i++, p->at++) {
        int c = peek(p);
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (c < 0 || digit < 0) return refuse(p, "an escape needs %d hexadecimal digits", digits);
        code = code << 4 | (uint32_t)digit;
    }
    if (!code || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
        return refuse(p, "an escape that is no character: U+%04X", (unsigned)code);
    return put_code(p, start, code);
}

static kn_status parse_escape(parser *p, size_t start)
{
    static const char from[] = "\"\\ntrbf", to[] = "\"\\\n\t\r\b\f";
    int c = peek(p);
    if (c == 'u' || c == 'U') {
        p->at++;
        return parse_unicode(p, start, c == 'u' ? 4 : 8);
    }
    const char *found = c > 0 ? strchr(from, c) : NULL;
    if (!found) return refuse(p, "an unknown escape in a string; a backslash itself is \\\\");
    p->at++;
    return put_byte(p, start, (unsigned char)to[found - from]);
}

/* Appends the string at p->at, with its NUL, to p->texts. */
static kn_status parse_string(parser *p)
{
    kn_status st = KN_OK;
    int quote = *p->at++;
    size_t start = p->text_bytes;
    if (p->end - p->at >= 2 && p->at[0] == quote && p->at[1] == quote)
        return refuse(p, "strings of several lines are not understood");
    for (;;) {
        int c = peek(p);
        if (c == -1 || c == '\n' || c == '\r') return refuse(p, "a string that does not end on its line");
        if ((c < 0x20 && c != '\t') || c == 0x7f) return refuse(p, "a control character in a string");
        p->at++;
        if (c == quote) return put_byte(p, start, 0);
        if (c == '\\' && quote == '"')
            KN_TRY(parse_escape(p, start));
        else
            KN_TRY(put_byte(p, start, (unsigned)c));
    }
fail:
    return st;
}

/* ---- keys and values ---- */

static bool is_bare(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

static kn_status parse_key(parser *p, name key)
{
    size_t bytes = 0;
    if (peek(p) == '"' || peek(p) == '\'') {
        p->text_bytes = 0;
        kn_status st = parse_string(p);
        if (st != KN_OK) return st;
        bytes = p->text_bytes - 1;
        if (bytes < KN_TOML_KEY_BYTES) memcpy(key, p->texts, bytes);
    } else {
        for (; is_bare(peek(p)); p->at++, bytes++)
            if (bytes < KN_TOML_KEY_BYTES) key[bytes] = (char)*p->at;
        if (!bytes) return refuse(p, "a key was expected: letters, digits, _ and -");
    }
    if (bytes >= KN_TOML_KEY_BYTES) return refuse(p, "a key of more than %d bytes", KN_TOML_KEY_BYTES - 1);
    key[bytes] = '\0';
    skip_blanks(p);
    if (peek(p) == '.') return refuse(p, "dotted keys are not understood");
    return KN_OK;
}

/* Remembers a key or section; refuses one that was there before. */
static kn_status remember(const parser *p, name **list, size_t *count, const name key, const char *what)
{
    for (size_t i = 0; i < *count; i++)
        if (strcmp((*list)[i], key) == 0) return refuse(p, "%s %s is there twice", what, key);
    if (*count == KN_TOML_KEYS) return refuse(p, "more than %d keys", KN_TOML_KEYS);
    if ((*count & (*count - 1)) == 0) { /* full at every power of two */
        name *grown = kn_realloc(*list, (*count ? 2 * *count : 1) * sizeof *grown);
        if (!grown) return KN_NOMEM;
        *list = grown;
    }
    memcpy((*list)[(*count)++], key, sizeof(name));
    return KN_OK;
}

static kn_status parse_number(parser *p, int64_t *value)
{
    bool negative = peek(p) == '-';
    if (peek(p) == '-' || peek(p) == '+') p->at++;
    const unsigned char *first = p->at;
    int64_t number = 0;
    for (bool digit = false; p->at < p->end; p->at++) {
        int c = *p->at;
        if (c == '_' && digit && p->at + 1 < p->end && p->at[1] >= '0' && p->at[1] <= '9') {
            digit = false;
            continue;
        }
        if (c < '0' || c > '9') break;
        digit = true;
        if (__builtin_mul_overflow(number, 10, &number) || __builtin_sub_overflow(number, c - '0', &number))
            return refuse(p, "a number that does not fit 64 bits");
    }
    if (p->at == first || (*first == '0' && p->at - first > 1))
        return refuse(p, "a value is a \"string\", a number, true, false or a [\"list\"]");
    if (is_bare(peek(p)) || peek(p) == '.' || peek(p) == ':')
        return refuse(p, "numbers are whole and decimal; anything else is a \"string\"");
    if (!negative && number == INT64_MIN) return refuse(p, "a number that does not fit 64 bits");
    *value = negative ? number : -number;
    return KN_OK;
}

/* Blanks, comments and line ends inside a list. */
static kn_status skip_lines(parser *p)
{
    for (;;) {
        skip_blanks(p);
        if (peek(p) != '#' && peek(p) != '\n' && peek(p) != '\r') return KN_OK;
        kn_status st = end_line(p);
        if (st != KN_OK) return st;
    }
}

static kn_status parse_list(parser *p, kn_toml_entry *entry, const char **items)
{
    kn_status st = KN_OK;
    size_t starts[KN_TOML_ITEMS];
    entry->kind = KN_TOML_LIST;
    p->at++;
    for (;;) {
        KN_TRY(skip_lines(p));
        if (peek(p) == ']') break;
        if (peek(p) != '"' && peek(p) != '\'') return refuse(p, "a list holds \"strings\" and ends with ]");
        if (entry->item_count == KN_TOML_ITEMS) return refuse(p, "a list of more than %d items", KN_TOML_ITEMS);
        starts[entry->item_count++] = p->text_bytes;
        KN_TRY(parse_string(p));
        KN_TRY(skip_lines(p));
        if (peek(p) == ',')
            p->at++;
        else if (peek(p) != ']')
            return refuse(p, "between the items of a list stands a comma");
    }
    p->at++;
    for (size_t i = 0; i < entry->item_count; i++) items[i] = p->texts + starts[i]; /* only now they stay in place */
    entry->items = items;

fail:
    return st;
}

static bool take_word(parser *p, const char *word)
{
    size_t bytes = strlen(word);
    if ((size_t)(p->end - p->at) < bytes || memcmp(p->at, word, bytes) != 0) return false;
    if ((size_t)(p->end - p->at) > bytes && is_bare(p->at[bytes])) return false;
    p->at += bytes;
    return true;
}

static kn_status parse_value(parser *p, kn_toml_entry *entry, const char **items)
{
    kn_status st;
    p->text_bytes = 0;
    if (peek(p) == '"' || peek(p) == '\'') {
        st = parse_string(p);
        entry->kind = KN_TOML_STRING;
        entry->text = p->texts;
        return st;
    }
    if (peek(p) == '[') return parse_list(p, entry, items);
    if (peek(p) == '{') return refuse(p, "inline tables are not understood; use a [section]");
    entry->kind = KN_TOML_BOOLEAN;
    entry->boolean = take_word(p, "true");
    if (entry->boolean || take_word(p, "false")) return KN_OK;
    entry->kind = KN_TOML_INTEGER;
    return parse_number(p, &entry->integer);
}

static kn_status parse_section(parser *p)
{
    kn_status st = KN_OK;
    p->at++;
    if (peek(p) == '[') return refuse(p, "arrays of tables are not understood");
    skip_blanks(p);
    KN_TRY(parse_key(p, p->section));
    if (!p->section[0]) return refuse(p, "a section needs a name");
    if (peek(p) != ']') return refuse(p, "a section's name ends with ]");
    p->at++;
    KN_TRY(remember(p, &p->sections, &p->section_count, p->section, "section"));
    p->seen_count = 0;
    return end_line(p);

fail:
    return st;
}

static kn_status parse_pair(parser *p)
{
    kn_status st = KN_OK;
    name key;
    const char *items[KN_TOML_ITEMS];
    kn_toml_entry entry = {.section = p->section, .key = key, .line = p->line};
    KN_TRY(parse_key(p, key));
    if (peek(p) != '=') return refuse(p, "behind the key stands = and a value");
    p->at++;
    skip_blanks(p);
    KN_TRY(remember(p, &p->seen, &p->seen_count, key, "key"));
    KN_TRY(parse_value(p, &entry, items));
    KN_TRY(end_line(p));
    st = p->visit(p->context, &entry);
    if (st != KN_OK) return kn_fail_context(st, "line %d", entry.line);

fail:
    return st;
}

/* RFC 3629, over the whole document: what is understood later may then assume it. */
static kn_status check_utf8(parser *p)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *at = p->at;
    for (int line = 1; at < p->end;) {
        size_t count = *at < 0x80 ? 1 : *at < 0xc0 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf5 ? 4 : 0;
        uint32_t code = count <= 1 ? *at : *at & (0x7fu >> count);
        bool whole = count && count <= (size_t)(p->end - at);
        for (size_t i = 1; whole && i < count; i++) {
            whole = (at[i] & 0xc0) == 0x80;
            code = code << 6 | (at[i] & 0x3f);
        }
        if (!whole || code < least[count] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff) || !code) {
            p->line = line;
            return refuse(p, "not UTF-8 text");
        }
        line += code == '\n';
        at += count;
    }
    return KN_OK;
}

kn_status kn_toml_parse(const char *text, size_t bytes, kn_toml_visit visit, void *context)
{
    kn_status st = KN_OK;
    parser p = {.at = (const unsigned char *)text, .line = 1, .visit = visit, .context = context};
    p.end = p.at + bytes;
    if (bytes > KN_TOML_BYTES) return kn_fail(KN_INVALID, "more than %d bytes", KN_TOML_BYTES);
    KN_TRY(check_utf8(&p));
    while (p.at < p.end) {
        skip_blanks(&p);
        if (peek(&p) == '[')
            KN_TRY(parse_section(&p));
        else if (peek(&p) == '#' || peek(&p) == '\n' || peek(&p) == '\r' || peek(&p) == -1)
            KN_TRY(end_line(&p));
        else
            KN_TRY(parse_pair(&p));
    }

fail:
    kn_free(p.seen);
    kn_free(p.sections);
    kn_free(p.texts);
    return st;
}
