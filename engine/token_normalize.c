/* SPDX-License-Identifier: Apache-2.0
 *
 * Text normalization as the two readers of a T5 vocabulary do it.
 *
 * Both use the same compiled rules, but not in the same way. sentencepiece
 * walks bytes and takes the longest rule. The `tokenizers` library walks
 * extended grapheme clusters: a cluster below six bytes is replaced as a whole
 * by its *shortest* matching rule (what the rule does not cover is lost), any
 * other character by character. Identifiers have to agree with the library the
 * model was served with, so each quirk is kept where it lives. */
#include "engine/token_internal.h"

#include <string.h>

#include <utf8proc.h>

#include "base/mem.h"

enum { CLUSTER_BYTES = 6, CHARSMAP_BYTES_MAX = 16 << 20 };

static const char REPLACEMENT[] = "\xef\xbf\xbd"; /* U+FFFD */
static const char META[] = "\xe2\x96\x81";        /* U+2581, a space inside pieces */

/* ---- compiled rules ---- */

static uint32_t read_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

kn_status kn_token_charsmap_parse(kn_token_charsmap *map, const uint8_t *bytes, size_t count, const char *where)
{
    kn_status st = KN_OK;
    if (count < 4 || count > CHARSMAP_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "%s: %zu bytes; expected 4 to %d", where, count, CHARSMAP_BYTES_MAX);
    uint32_t trie_bytes = read_u32(bytes);
    if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > count - 4)
        return kn_fail(KN_CORRUPT, "%s: a trie of %u bytes in %zu", where, trie_bytes, count);

    map->unit_count = trie_bytes / 4;
    map->replacement_bytes = (uint32_t)(count - 4 - trie_bytes);
    map->units = kn_alloc_array(map->unit_count, sizeof *map->units);
    map->replacements = kn_alloc((size_t)map->replacement_bytes + 1);
    if (!map->units || !map->replacements) KN_TRY(KN_NOMEM);
    for (uint32_t i = 0; i < map->unit_count; i++) map->units[i] = read_u32(bytes + 4 + 4 * (size_t)i);
    if (map->replacement_bytes > 0) memcpy(map->replacements, bytes + 4 + trie_bytes, map->replacement_bytes);
    for (size_t i = 0; i < map->replacement_bytes;) {
        int32_t code;
        i += kn_token_utf8_read(map->replacements + i, map->replacement_bytes - i, &code);
        if (code < 0) KN_TRY(kn_fail(KN_CORRUPT, "%s: replacement text is not UTF-8 before byte %zu", where, i));
    }
    return KN_OK;

fail:
    kn_token_charsmap_free(map);
    return st;
}

void kn_token_charsmap_free(kn_token_charsmap *map)
{
    kn_free(map->units);
    kn_free(map->replacements);
    *map = (kn_token_charsmap){0};
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The longest rule that `text` starts with, or the shortest: its length in bytes, 0 when there is none. A rule that
 * points outside the replacements, or into a character, is no rule. */
static size_t charsmap_match(const kn_token_charsmap *map, const char *text, size_t bytes, bool longest,
                             const char **replacement)
{
    size_t matched = 0;
    if (map->unit_count == 0) return 0;
    uint32_t position = unit_offset(map->units[0]);
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)text[i];
        position ^= byte;
        if (byte == 0 || position >= map->unit_count) break;
        uint32_t unit = map->units[position];
        if ((unit & 0x800000ffu) != byte) break;
        position ^= unit_offset(unit);
        if (!(unit & 0x100u)) continue; /* no rule ends here */
        if (position >= map->unit_count) break;
        uint32_t value = map->units[position] & 0x7fffffffu;
        if (value > map->replacement_bytes || ((uint8_t)map->replacements[value] & 0xc0u) == 0x80u) break;
        *replacement = map->replacements + value;
        matched = i + 1;
        if (!longest) break;
    }
    return matched;
}

/* ---- steps of tokenizer.json ---- */

/* How many leading bytes stand for the first character: all that one character became, else one of them. */
static size_t origin_of(const char *text, size_t bytes, size_t taken)
{
    int32_t code;
    if (bytes == 0) return 0;
    return taken == 1 ? bytes : kn_token_utf8_read(text, bytes, &code);
}

/* `characters` in the cluster; *origin is set by the first part that leaves something. */
static kn_status normalize_cluster(const kn_token_charsmap *map, const char *text, size_t bytes, size_t characters,
                                   kn_token_text *out, size_t *origin)
{
    kn_status st = KN_OK;
    const char *replacement = NULL;
    if (bytes < CLUSTER_BYTES && charsmap_match(map, text, bytes, false, &replacement) > 0) {
        KN_TRY(kn_token_text_append(out, replacement, strlen(replacement)));
        if (*origin == 0) *origin = origin_of(out->data, out->bytes, characters);
        return KN_OK;
    }
    for (size_t at = 0; at < bytes;) {
        int32_t code;
        size_t length = kn_token_utf8_read(text + at, bytes - at, &code);
        if (charsmap_match(map, text + at, length, false, &replacement) > 0)
            KN_TRY(kn_token_text_append(out, replacement, strlen(replacement)));
        else
            KN_TRY(kn_token_text_append(out, text + at, length));
        if (*origin == 0) *origin = origin_of(out->data, out->bytes, 1);
        at += length;
    }

fail:
    return st;
}

static kn_status apply_charsmap(const kn_token_charsmap *map, const kn_token_text *in, kn_token_text *out,
                                size_t *origin)
{
    kn_status st = KN_OK;
    size_t start = 0;      /* of the cluster */
    size_t characters = 0; /* in it */
    int32_t previous = 0;
    utf8proc_int32_t state = 0;
    *origin = 0;
    for (size_t at = 0; at < in->bytes;) {
        int32_t code;
        size_t length = kn_token_utf8_read(in->data + at, in->bytes - at, &code);
        code = kn_token_as_known(code);
        if (at > 0 && utf8proc_grapheme_break_stateful(previous, code, &state)) {
            KN_TRY(normalize_cluster(map, in->data + start, at - start, characters, out, origin));
            start = at;
            characters = 0;
        }
        previous = code;
        characters++;
        at += length;
    }
    KN_TRY(normalize_cluster(map, in->data + start, in->bytes - start, characters, out, origin));

fail:
    return st;
}

static kn_status apply_strip(const kn_token_normalizer *step, const kn_token_text *in, kn_token_text *out,
                             size_t *origin)
{
    size_t low = 0;
    size_t high = in->bytes;
    int32_t code;
    while (step->strip_left && low < high) {
        size_t length = kn_token_utf8_read(in->data + low, high - low, &code);
        if (!kn_token_is_space(code)) break;
        low += length;
    }
    while (step->strip_right && high > low) {
        size_t length = kn_token_utf8_read_last(in->data + low, high - low, &code);
        if (!kn_token_is_space(code)) break;
        high -= length;
    }
    *origin = low < *origin ? *origin - low : 0;
    return kn_token_text_append(out, in->data + low, high - low);
}

/* Bytes of the match that starts `text`, or 0; its number of characters in *characters. */
static size_t match_pattern(const kn_token_normalizer *step, const char *text, size_t bytes, uint32_t *characters)
{
    *characters = 0;
    size_t at = 0;
    if (step->kind == KN_NORMALIZER_REPLACE) {
        size_t needed = step->pattern.bytes;
        if (needed > bytes || memcmp(text, step->pattern.data, needed) != 0) return 0;
        for (; at < needed; at++) *characters += ((uint8_t)text[at] & 0xc0u) != 0x80u;
        return needed;
    }
    while (at < bytes) {
        int32_t code;
        size_t length = kn_token_utf8_read(text + at, bytes - at, &code);
        if (step->run_code < 0 ? !kn_token_is_space(code) : code != step->run_code) break;
        at += length;
        ++*characters;
    }
    return at;
}

static kn_status apply_replace(const kn_token_normalizer *step, const kn_token_text *in, kn_token_text *out,
                               size_t *origin)
{
    kn_status st = KN_OK;
    size_t kept = 0; /* start of the bytes not copied yet */
    for (size_t at = 0; at < in->bytes;) {
        uint32_t characters;
        size_t length = match_pattern(step, in->data + at, in->bytes - at, &characters);
        if (length == 0) {
            int32_t code;
            at += kn_token_utf8_read(in->data + at, in->bytes - at, &code);
            continue;
        }
        if (step->kind == KN_NORMALIZER_REPLACE || characters >= step->run_min) {
            KN_TRY(kn_token_text_append(out, in->data + kept, at - kept));
            KN_TRY(kn_token_text_append(out, step->content.data, step->content.bytes));
            /* What is written stands for the last character it replaced. */
            if (at == 0) *origin = characters == 1 ? step->content.bytes : 0;
            kept = at + length;
        }
        at += length;
    }
    return kn_token_text_append(out, in->data + kept, in->bytes - kept);

fail:
    return st;
}

/* The character filter sentencepiece's "nmt" rules begin with. */
static kn_status apply_nmt(const kn_token_text *in, kn_token_text *out, size_t *origin)
{
    kn_status st = KN_OK;
    for (size_t at = 0; at < in->bytes;) {
        int32_t c;
        size_t length = kn_token_utf8_read(in->data + at, in->bytes - at, &c);
        bool drop =
            (c >= 0x01 && c <= 0x08) || c == 0x0b || (c >= 0x0e && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f;
        bool space = c == 0x09 || c == 0x0a || c == 0x0c || c == 0x0d || c == 0x1680 || (c >= 0x200b && c <= 0x200f) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xfeff || c == 0xfffd;
        if (at == 0) *origin = drop ? 0 : space ? 1 : length;
        if (space)
            KN_TRY(kn_token_text_append(out, " ", 1));
        else if (!drop)
            KN_TRY(kn_token_text_append(out, in->data + at, length));
        at += length;
    }
    return KN_OK;

fail:
    return st;
}

static unsigned combining_class(utf8proc_int32_t code)
{
    return (unsigned)utf8proc_get_property(code)->combining_class & 0xffu;
}

/* Stable sort of each run of combining marks by class (Unicode 3.11), by counting: long runs stay linear. */
static void order_marks(utf8proc_int32_t *codes, utf8proc_int32_t *scratch, size_t count)
{
    for (size_t start = 0; start < count; start++) {
        size_t end = start;
        while (end < count && combining_class(codes[end]) != 0) end++;
        if (end - start < 2) continue;
        size_t place[257] = {0}; /* [class + 1] members, then [class] where the next member goes */
        for (size_t i = start; i < end; i++) place[combining_class(codes[i]) + 1]++;
        for (unsigned kind = 1; kind <= 256; kind++) place[kind] += place[kind - 1];
        for (size_t i = start; i < end; i++) scratch[place[combining_class(codes[i])]++] = codes[i];
        memcpy(codes + start, scratch, (end - start) * sizeof *codes);
        start = end;
    }
}

static kn_status apply_unicode(const kn_token_normalizer *step, const kn_token_text *in, kn_token_text *out,
                               size_t *origin)
{
    kn_status st = KN_OK;
    utf8proc_int32_t *codes = NULL;
    utf8proc_int32_t *scratch = NULL;
    utf8proc_option_t options =
        (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (step->compatible ? UTF8PROC_COMPAT : 0));
    size_t count = 0;
    utf8proc_int32_t one[32]; /* the longest decomposition has 18 characters */
    for (size_t at = 0; at < in->bytes;) {
        int32_t code;
        at += kn_token_utf8_read(in->data + at, in->bytes - at, &code);
        int boundary = 0;
        utf8proc_ssize_t made = utf8proc_decompose_char(code, one, 32, options, &boundary);
        if (made < 0 || made > 32) KN_TRY(kn_fail(KN_BUG, "U+%04X cannot be decomposed", (unsigned)code));
        count += (size_t)made;
    }
    if (count > KN_TOKEN_TEXT_MAX / sizeof *codes)
        KN_TRY(kn_fail(KN_INVALID, "text grows above %zu characters while it is normalized",
                       KN_TOKEN_TEXT_MAX / sizeof *codes));
    codes = kn_alloc_array(count + 1, sizeof *codes);
    scratch = kn_alloc_array(count + 1, sizeof *scratch);
    if (!codes || !scratch) KN_TRY(KN_NOMEM);

    size_t used = 0;
    for (size_t at = 0; at < in->bytes;) {
        int32_t code;
        at += kn_token_utf8_read(in->data + at, in->bytes - at, &code);
        int boundary = 0;
        used +=
            (size_t)utf8proc_decompose_char(code, codes + used, (utf8proc_ssize_t)(count - used), options, &boundary);
    }
    order_marks(codes, scratch, count);
    if (step->compose) {
        utf8proc_ssize_t left =
            utf8proc_normalize_utf32(codes, (utf8proc_ssize_t)count, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        count = left < 0 ? 0 : (size_t)left;
    }
    for (size_t i = 0; i < count; i++) {
        char bytes[4];
        KN_TRY(kn_token_text_append(out, bytes, kn_token_utf8_write(codes[i], bytes)));
    }
    *origin = origin_of(out->data, out->bytes, 0);

fail:
    kn_free(codes);
    kn_free(scratch);
    return st;
}

static kn_status apply(const kn_token_normalizer *step, const kn_token_text *in, kn_token_text *out, size_t *origin)
{
    kn_status st = KN_OK;
    if (in->bytes == 0) return KN_OK; /* no step makes something of nothing */
    switch (step->kind) {
    case KN_NORMALIZER_CHARSMAP: return apply_charsmap(&step->charsmap, in, out, origin);
    case KN_NORMALIZER_STRIP: return apply_strip(step, in, out, origin);
    case KN_NORMALIZER_REPLACE:
    case KN_NORMALIZER_RUN: return apply_replace(step, in, out, origin);
    case KN_NORMALIZER_PREPEND:
        *origin += step->content.bytes;
        KN_TRY(kn_token_text_append(out, step->content.data, step->content.bytes));
        return kn_token_text_append(out, in->data, in->bytes);
    case KN_NORMALIZER_NMT: return apply_nmt(in, out, origin);
    case KN_NORMALIZER_UNICODE: return apply_unicode(step, in, out, origin);
    }
    return kn_fail(KN_BUG, "normalizer of kind %d", (int)step->kind);

fail:
    return st;
}

kn_status kn_token_normalize(const kn_token_normalizer *steps, size_t count, kn_token_text *text, size_t *origin)
{
    kn_status st = KN_OK;
    kn_token_text out = {0};
    *origin = origin_of(text->data, text->bytes, 0);
    for (size_t i = 0; i < count; i++) {
        out.bytes = 0;
        KN_TRY(apply(&steps[i], text, &out, origin));
        kn_token_text swap = *text;
        *text = out;
        out = swap;
    }

fail:
    kn_token_text_free(&out);
    return st;
}

void kn_token_normalizer_free(kn_token_normalizer *step)
{
    kn_token_charsmap_free(&step->charsmap);
    kn_token_text_free(&step->pattern);
    kn_token_text_free(&step->content);
}

/* ---- spiece.model ---- */

/* What the first character (or rule, or symbol) of `text` becomes; returns the bytes it takes. */
static size_t spiece_prefix(const kn_token_spiece_rules *rules, const char *text, size_t bytes, const char **made,
                            size_t *made_bytes)
{
    int32_t code = -1;
    size_t length = kn_token_trie_longest(&rules->symbols, text, bytes, &code);
    *made = text;
    *made_bytes = length;
    if (length > 0) return length;

    length = charsmap_match(&rules->charsmap, text, bytes, true, made);
    if (length > 0) {
        *made_bytes = strlen(*made);
        return length;
    }
    length = kn_token_utf8_read(text, bytes, &code);
    if (code < 0) { /* one U+FFFD a byte here */
        *made = REPLACEMENT;
        *made_bytes = 3;
        return 1;
    }
    *made_bytes = length;
    return length;
}

static kn_status append_escaped(const kn_token_spiece_rules *rules, const char *text, size_t bytes, kn_token_text *out)
{
    kn_status st = KN_OK;
    size_t start = 0;
    for (size_t i = 0; rules->escape_whitespaces && i < bytes; i++) {
        if (text[i] != ' ') continue;
        KN_TRY(kn_token_text_append(out, text + start, i - start));
        KN_TRY(kn_token_text_append(out, META, 3));
        start = i + 1;
    }
    return kn_token_text_append(out, text + start, bytes - start);

fail:
    return st;
}

kn_status kn_token_spiece_normalize(const kn_token_spiece_rules *rules, const char *text, size_t bytes,
                                    kn_token_text *out)
{
    kn_status st = KN_OK;
    const char *made;
    size_t made_bytes;
    size_t at = 0;
    while (rules->remove_extra_whitespaces && at < bytes) {
        size_t length = spiece_prefix(rules, text + at, bytes - at, &made, &made_bytes);
        if (made_bytes != 1 || made[0] != ' ') break;
        at += length;
    }
    if (at == bytes) return KN_OK;

    size_t base = out->bytes;
    if (rules->add_dummy_prefix) KN_TRY(append_escaped(rules, " ", 1, out));
    bool after_space = rules->remove_extra_whitespaces;
    while (at < bytes) {
        at += spiece_prefix(rules, text + at, bytes - at, &made, &made_bytes);
        for (; after_space && made_bytes > 0 && made[0] == ' '; made_bytes--) made++;
        if (made_bytes > 0) {
            KN_TRY(append_escaped(rules, made, made_bytes, out));
            after_space = rules->remove_extra_whitespaces && made[made_bytes - 1] == ' ';
        }
    }
    if (rules->remove_extra_whitespaces) {
        const char *space = rules->escape_whitespaces ? META : " ";
        size_t length = strlen(space);
        while (out->bytes - base >= length && memcmp(out->data + out->bytes - length, space, length) == 0)
            out->bytes -= length;
    }
    return KN_OK;

fail:
    return st;
}
