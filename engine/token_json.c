/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads tokenizer.json, the format of the `tokenizers` library, as far as
 * converters of T5-family vocabularies use it. What is there but not known is
 * refused by name (KN_UNSUPPORTED): a tokenizer that skips a step would give
 * wrong ids without a word. "truncation", "padding" and "decoder" are not read;
 * the caller of kn_tokenizer_encode decides about the first two. */
#include "engine/token_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/log.h"
#include "base/mem.h"

enum { PATH_BYTES = 96, QUOTE_BYTES = 48 };

typedef struct reader {
    kn_tokenizer *tokenizer;
    const char *name; /* of the file, for messages */
} reader;

/* ---- fields ---- */

/* Text from the file, cut and without control characters, for a one-line message. */
typedef struct quote {
    char text[QUOTE_BYTES];
} quote;

static quote quote_of(const char *text)
{
    quote q = {{0}};
    for (size_t i = 0; i + 1 < sizeof q.text && text[i]; i++)
        q.text[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    return q;
}

static bool absent(const json_t *value)
{
    return !value || json_is_null(value);
}

static kn_status bad_field(const reader *r, const char *path, const char *key, const char *expected)
{
    return kn_fail(KN_CORRUPT, "%s: %s%s%s: expected %s", r->name, path, *path ? "." : "", key, expected);
}

/* A boolean member; `fallback` when it is absent. */
static kn_status read_flag(const reader *r, const json_t *object, const char *path, const char *key, bool fallback,
                           bool *out)
{
    const json_t *value = json_object_get(object, key);
    *out = absent(value) ? fallback : json_is_true(value);
    return absent(value) || json_is_boolean(value) ? KN_OK : bad_field(r, path, key, "true or false");
}

/* A string member of 1 to KN_TOKEN_PIECE_BYTES_MAX bytes (0 if `may_be_empty`), copied. */
static kn_status read_text(const reader *r, const json_t *object, const char *path, const char *key, bool may_be_empty,
                           kn_token_text *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) return bad_field(r, path, key, "a string");
    size_t bytes = json_string_length(value);
    if (bytes > KN_TOKEN_PIECE_BYTES_MAX || (bytes == 0 && !may_be_empty))
        return kn_fail(KN_UNSUPPORTED, "%s: %s.%s: a string of %zu bytes; supported are %d to %d", r->name, path, key,
                       bytes, may_be_empty ? 0 : 1, KN_TOKEN_PIECE_BYTES_MAX);
    return kn_token_text_append(out, json_string_value(value), bytes);
}

/* The "type" member; "" when there is none, as the oldest files left it out. */
static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static kn_status bad_type(const reader *r, const char *path, const char *type)
{
    return kn_fail(KN_UNSUPPORTED, "%s: %s: type \"%s\" is not supported", r->name, path, quote_of(type).text);
}

/* ---- normalizer ---- */

static int base64_digit(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* RFC 4648 with padding. `out` holds count / 4 * 3 bytes. Returns the bytes made, or -1. */
static int64_t base64_decode(uint8_t *out, const char *text, size_t count)
{
    if (count % 4 != 0) return -1;
    int64_t made = 0;
    for (size_t i = 0; i < count; i += 4) {
        bool last = i + 4 == count;
        int padding = last && text[i + 3] == '=' ? (text[i + 2] == '=' ? 2 : 1) : 0;
        uint32_t group = 0;
        for (int k = 0; k < 4; k++) {
            int digit = k >= 4 - padding ? 0 : base64_digit((unsigned char)text[i + (size_t)k]);
            if (digit < 0) return -1;
            group = group << 6 | (uint32_t)digit;
        }
        for (int k = 0; k < 3 - padding; k++) out[made++] = (uint8_t)(group >> (16 - 8 * k));
    }
    return made;
}

static kn_status read_charsmap(const reader *r, const json_t *object, const char *path, kn_token_normalizer *step)
{
    kn_status st = KN_OK;
    uint8_t *bytes = NULL;
    char where[PATH_BYTES + 256];
    const json_t *value = json_object_get(object, "precompiled_charsmap");
    if (!json_is_string(value)) return bad_field(r, path, "precompiled_charsmap", "a base64 string");
    snprintf(where, sizeof where, "%s: %s.precompiled_charsmap", r->name, path);

    bytes = kn_alloc(json_string_length(value) / 4 * 3);
    if (!bytes) KN_TRY(KN_NOMEM);
    int64_t count = base64_decode(bytes, json_string_value(value), json_string_length(value));
    if (count < 0) KN_TRY(bad_field(r, path, "precompiled_charsmap", "a base64 string"));
    step->kind = KN_NORMALIZER_CHARSMAP;
    KN_TRY(kn_token_charsmap_parse(&step->charsmap, bytes, (size_t)count, where));

fail:
    kn_free(bytes);
    return st;
}

/* The regular expressions converters write are a repeated character: " {2,}", "\s+", "-+". A text without special
 * characters means itself. Anything else is not understood. */
static bool parse_expression(kn_token_normalizer *step)
{
    static const char special[] = "\\^$.|?*+()[]{}";
    const char *text = step->pattern.data;
    size_t bytes = step->pattern.bytes;
    size_t plain = 0;
    while (plain < bytes && text[plain] && !strchr(special, text[plain])) plain++;
    if (plain == bytes) return true;

    size_t at = 0;
    if (text[0] == '\\') {
        if (bytes < 3) return false;
        step->run_code = text[1] == 's' ? -1 : text[1];
        if (text[1] != 's' && (!text[1] || !strchr(special, text[1]))) return false;
        at = 2;
    } else {
        if (!text[0] || strchr(special, text[0])) return false;
        at = kn_token_utf8_read(text, bytes, &step->run_code);
    }
    step->kind = KN_NORMALIZER_RUN;
    step->run_min = 1;
    if (bytes - at == 1 && text[at] == '+') return true;
    if (bytes - at < 4 || bytes - at > 8 || text[at] != '{' || memcmp(text + bytes - 2, ",}", 2) != 0) return false;
    step->run_min = 0;
    for (at++; at < bytes - 2; at++) {
        if (text[at] < '0' || text[at] > '9') return false;
        step->run_min = step->run_min * 10 + (uint32_t)(text[at] - '0');
    }
    return step->run_min > 0;
}

static kn_status read_replace(const reader *r, const json_t *object, const char *path, kn_token_normalizer *step)
{
    kn_status st = KN_OK;
    const json_t *pattern = json_object_get(object, "pattern");
    char inner[PATH_BYTES];
    snprintf(inner, sizeof inner, "%s.pattern", path);
    step->kind = KN_NORMALIZER_REPLACE;
    KN_TRY(read_text(r, object, path, "content", true, &step->content));
    if (json_object_get(pattern, "String")) return read_text(r, pattern, inner, "String", false, &step->pattern);
    if (!json_object_get(pattern, "Regex"))
        return bad_field(r, path, "pattern", "{\"String\": ...} or {\"Regex\": ...}");

    KN_TRY(read_text(r, pattern, inner, "Regex", false, &step->pattern));
    KN_TRY(kn_token_text_append(&step->pattern, "", 1)); /* the buffer as a C string too */
    step->pattern.bytes--;
    if (!parse_expression(step))
        return kn_fail(KN_UNSUPPORTED, "%s: %s: regular expression \"%s\" is not supported", r->name, inner,
                       quote_of(step->pattern.data).text);
    if (memchr(step->content.data, '$', step->content.bytes))
        return kn_fail(KN_UNSUPPORTED, "%s: %s.content: \"$\" beside a regular expression is not supported", r->name,
                       path);

fail:
    return st;
}

static kn_status read_normalizer(const reader *r, const json_t *object, const char *path, int depth)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    if (!json_is_object(object)) return kn_fail(KN_CORRUPT, "%s: %s: expected an object", r->name, path);
    const char *type = type_of(object);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(object, "normalizers");
        if (!json_is_array(list)) return bad_field(r, path, "normalizers", "an array");
        if (depth >= KN_TOKEN_DEPTH_MAX)
            return kn_fail(KN_UNSUPPORTED, "%s: %s: more than %d nested sequences", r->name, path, KN_TOKEN_DEPTH_MAX);
        for (size_t i = 0; i < json_array_size(list); i++) {
            char inner[PATH_BYTES];
            snprintf(inner, sizeof inner, "%.56s.normalizers[%zu]", path, i);
            KN_TRY(read_normalizer(r, json_array_get(list, i), inner, depth + 1));
        }
        return KN_OK;
    }

    if (t->normalizer_count == KN_TOKEN_STEPS_MAX)
        return kn_fail(KN_UNSUPPORTED, "%s: %s: more than %d normalizers", r->name, path, KN_TOKEN_STEPS_MAX);
    kn_token_normalizer *step = &t->normalizers[t->normalizer_count++];
    if (strcmp(type, "Precompiled") == 0) return read_charsmap(r, object, path, step);
    if (strcmp(type, "Replace") == 0) return read_replace(r, object, path, step);
    if (strcmp(type, "Strip") == 0) {
        step->kind = KN_NORMALIZER_STRIP;
        KN_TRY(read_flag(r, object, path, "strip_left", false, &step->strip_left));
        return read_flag(r, object, path, "strip_right", false, &step->strip_right);
    }
    if (strcmp(type, "Prepend") == 0) {
        step->kind = KN_NORMALIZER_PREPEND;
        return read_text(r, object, path, "prepend", true, &step->content);
    }
    if (strcmp(type, "Nmt") == 0) {
        step->kind = KN_NORMALIZER_NMT;
        return KN_OK;
    }
    if (strcmp(type, "NFC") != 0 && strcmp(type, "NFD") != 0 && strcmp(type, "NFKC") != 0 && strcmp(type, "NFKD") != 0)
        return bad_type(r, path, type);
    step->kind = KN_NORMALIZER_UNICODE;
    step->compatible = type[2] == 'K';
    step->compose = type[strlen(type) - 1] == 'C';

fail:
    return st;
}

/* ---- pre_tokenizer ---- */

static kn_status read_metaspace(const reader *r, const json_t *object, const char *path, kn_token_splitter *splitter)
{
    kn_status st = KN_OK;
    const json_t *replacement = json_object_get(object, "replacement");
    const char *text = json_string_value(replacement);
    int32_t code = -1;
    size_t bytes = text ? json_string_length(replacement) : 0;
    if (bytes == 0 || kn_token_utf8_read(text, bytes, &code) != bytes || code < 0)
        return bad_field(r, path, "replacement", "a string of one character");
    splitter->metaspace = true;
    splitter->replacement_bytes = bytes;
    memcpy(splitter->replacement, text, bytes);
    KN_TRY(read_flag(r, object, path, "split", true, &splitter->split));

    const json_t *scheme = json_object_get(object, "prepend_scheme");
    const char *name = absent(scheme) ? "always" : json_string_value(scheme);
    if (name && strcmp(name, "always") == 0)
        splitter->prepend = KN_PREPEND_ALWAYS;
    else if (name && strcmp(name, "first") == 0)
        splitter->prepend = KN_PREPEND_FIRST;
    else if (name && strcmp(name, "never") == 0)
        splitter->prepend = KN_PREPEND_NEVER;
    else
        return bad_field(r, path, "prepend_scheme", "\"always\", \"first\" or \"never\"");

    bool add_prefix_space; /* the older name; false says never */
    KN_TRY(read_flag(r, object, path, "add_prefix_space", true, &add_prefix_space));
    if (!add_prefix_space) {
        if (!absent(scheme) && splitter->prepend != KN_PREPEND_NEVER)
            return bad_field(r, path, "add_prefix_space", "what prepend_scheme says");
        splitter->prepend = KN_PREPEND_NEVER;
    }

fail:
    return st;
}

static kn_status read_splitter(const reader *r, const json_t *object, const char *path, int depth)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    if (!json_is_object(object)) return kn_fail(KN_CORRUPT, "%s: %s: expected an object", r->name, path);
    const char *type = type_of(object);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(object, "pretokenizers");
        if (!json_is_array(list)) return bad_field(r, path, "pretokenizers", "an array");
        if (depth >= KN_TOKEN_DEPTH_MAX)
            return kn_fail(KN_UNSUPPORTED, "%s: %s: more than %d nested sequences", r->name, path, KN_TOKEN_DEPTH_MAX);
        for (size_t i = 0; i < json_array_size(list); i++) {
            char inner[PATH_BYTES];
            snprintf(inner, sizeof inner, "%.56s.pretokenizers[%zu]", path, i);
            KN_TRY(read_splitter(r, json_array_get(list, i), inner, depth + 1));
        }
        return KN_OK;
    }

    if (t->splitter_count == KN_TOKEN_STEPS_MAX)
        return kn_fail(KN_UNSUPPORTED, "%s: %s: more than %d pre-tokenizers", r->name, path, KN_TOKEN_STEPS_MAX);
    kn_token_splitter *splitter = &t->splitters[t->splitter_count++];
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(r, object, path, splitter);
    if (strcmp(type, "WhitespaceSplit") != 0) return bad_type(r, path, type);

fail:
    return st;
}

/* ---- model ---- */

static kn_status read_piece(const reader *r, const json_t *entry, size_t index, kn_token_piece *piece)
{
    kn_tokenizer *t = r->tokenizer;
    const json_t *text = json_array_get(entry, 0);
    const json_t *score = json_array_get(entry, 1);
    if (json_array_size(entry) != 2 || !json_is_string(text) || !json_is_number(score))
        return kn_fail(KN_CORRUPT, "%s: model.vocab[%zu]: expected [piece, score]", r->name, index);
    if (json_string_length(text) > KN_TOKEN_PIECE_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "%s: model.vocab[%zu]: a piece of %zu bytes; the limit is %d", r->name, index,
                       json_string_length(text), KN_TOKEN_PIECE_BYTES_MAX);
    t->scores[index] = json_number_value(score);
    if (!isfinite(t->scores[index]))
        return kn_fail(KN_CORRUPT, "%s: model.vocab[%zu]: score is not finite", r->name, index);
    *piece = (kn_token_piece){
        .text = json_string_value(text), .bytes = (uint32_t)json_string_length(text), .id = (int32_t)index};
    return KN_OK;
}

static kn_status read_vocabulary(const reader *r, const json_t *list)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    size_t count = json_array_size(list);
    kn_token_piece *pieces = kn_alloc_array(count, sizeof *pieces);
    t->scores = kn_alloc_array(count, sizeof *t->scores);
    t->piece_count = (int32_t)count;
    if (!pieces || !t->scores) KN_TRY(KN_NOMEM);

    double least = HUGE_VAL;
    for (size_t i = 0; i < count; i++) {
        KN_TRY(read_piece(r, json_array_get(list, i), i, &pieces[i]));
        if (t->scores[i] < least) least = t->scores[i];
        int32_t byte = kn_token_byte_of_piece(pieces[i].text, pieces[i].bytes);
        if (byte >= 0) t->byte_ids[byte] = (int32_t)i;
    }
    t->unknown_score = least - 10.0;
    KN_TRY(kn_token_trie_build(&t->pieces, pieces, count));

fail:
    kn_free(pieces);
    return st;
}

static kn_status read_model(const reader *r, const json_t *model)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    if (!json_is_object(model)) return kn_fail(KN_CORRUPT, "%s: model: expected an object", r->name);
    const char *type = type_of(model);
    if (*type && strcmp(type, "Unigram") != 0) return bad_type(r, "model", type);
    const json_t *list = json_object_get(model, "vocab");
    if (!json_is_array(list)) return bad_field(r, "model", "vocab", "an array of [piece, score]");
    size_t count = json_array_size(list);
    if (count < 1 || count > KN_TOKEN_PIECES_MAX)
        return kn_fail(KN_CORRUPT, "%s: model.vocab: %zu pieces; expected 1 to %d", r->name, count,
                       KN_TOKEN_PIECES_MAX);

    const json_t *unknown = json_object_get(model, "unk_id");
    if (!json_is_integer(unknown)) return bad_field(r, "model", "unk_id", "the id of the unknown piece");
    json_int_t id = json_integer_value(unknown);
    if (id < 0 || id >= (json_int_t)count)
        return kn_fail(KN_CORRUPT, "%s: model.unk_id: %lld is outside the %zu pieces", r->name, (long long)id, count);
    t->unknown_id = (int32_t)id;
    KN_TRY(read_flag(r, model, "model", "byte_fallback", false, &t->byte_fallback));
    KN_TRY(read_vocabulary(r, list));
    t->vocabulary = t->piece_count;

fail:
    return st;
}

/* ---- added_tokens ---- */

/* Equal contents are one token, with the properties written last; `slots` says where it went, plus one. `known` finds
 * the last entry of a content. The id is what the vocabulary says, or the next free one: the library goes by the
 * content and only warns when "id" disagrees. */
static kn_status read_added_token(const reader *r, const json_t *entry, size_t index, const kn_token_trie *known,
                                  int32_t *slots)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    kn_token_added added = {0};
    char path[PATH_BYTES];
    bool special;
    snprintf(path, sizeof path, "added_tokens[%zu]", index);
    if (!json_is_object(entry)) KN_TRY(kn_fail(KN_CORRUPT, "%s: %s: expected an object", r->name, path));
    KN_TRY(read_text(r, entry, path, "content", false, &added.content));
    KN_TRY(read_flag(r, entry, path, "special", false, &special));
    KN_TRY(read_flag(r, entry, path, "single_word", false, &added.single_word));
    KN_TRY(read_flag(r, entry, path, "lstrip", false, &added.lstrip));
    KN_TRY(read_flag(r, entry, path, "rstrip", false, &added.rstrip));
    KN_TRY(read_flag(r, entry, path, "normalized", !special, &added.normalized));
    const json_t *id = json_object_get(entry, "id");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= INT32_MAX)
        KN_TRY(bad_field(r, path, "id", "an id"));

    int32_t *slot = &slots[kn_token_trie_find(known, added.content.data, added.content.bytes)];
    if (*slot == 0) {
        added.id = kn_token_trie_find(&t->pieces, added.content.data, added.content.bytes);
        if (added.id < 0) added.id = t->vocabulary++;
        *slot = (int32_t)++t->added_count;
    } else {
        added.id = t->added[*slot - 1].id;
        kn_token_text_free(&t->added[*slot - 1].content);
    }
    if (added.id != json_integer_value(id))
        kn_log(KN_LOG_WARNING, "%s: %s.id: %lld, but \"%s\" has id %d", r->name, path,
               (long long)json_integer_value(id), quote_of(json_string_value(json_object_get(entry, "content"))).text,
               (int)added.id);
    t->added[*slot - 1] = added;
    return KN_OK;

fail:
    kn_token_text_free(&added.content);
    return st;
}

static kn_status index_contents(const reader *r, const json_t *list, kn_token_piece *pieces, kn_token_trie *known)
{
    size_t count = json_array_size(list);
    for (size_t i = 0; i < count; i++) {
        const json_t *content = json_object_get(json_array_get(list, i), "content");
        size_t bytes = json_is_string(content) ? json_string_length(content) : 0;
        if (bytes > KN_TOKEN_PIECE_BYTES_MAX)
            return kn_fail(KN_UNSUPPORTED, "%s: added_tokens[%zu].content: %zu bytes; the limit is %d", r->name, i,
                           bytes, KN_TOKEN_PIECE_BYTES_MAX);
        pieces[i] = (kn_token_piece){.text = json_string_value(content), .bytes = (uint32_t)bytes, .id = (int32_t)i};
        if (!pieces[i].text) pieces[i].text = "";
    }
    return kn_token_trie_build(known, pieces, count);
}

static kn_status build_added(const reader *r, kn_token_piece *pieces)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    for (int normalized = 0; normalized < 2; normalized++) {
        kn_token_trie *trie = normalized ? &t->added_normalized : &t->added_raw;
        size_t count = 0;
        for (size_t i = 0; i < t->added_count; i++) {
            kn_token_added *added = &t->added[i];
            if (added->normalized != (normalized != 0)) continue;
            size_t origin;
            if (normalized) KN_TRY(kn_token_normalize(t->normalizers, t->normalizer_count, &added->content, &origin));
            if (added->content.bytes == 0)
                KN_TRY(kn_fail(KN_UNSUPPORTED, "%s: added token %d is empty after normalization", r->name,
                               (int)added->id));
            pieces[count++] = (kn_token_piece){
                .text = added->content.data, .bytes = (uint32_t)added->content.bytes, .id = (int32_t)i};
        }
        KN_TRY(kn_token_trie_build(trie, pieces, count));
        for (size_t i = 1; i < count; i++) {
            if (pieces[i].bytes == pieces[i - 1].bytes &&
                memcmp(pieces[i].text, pieces[i - 1].text, pieces[i].bytes) == 0)
                KN_TRY(kn_fail(KN_UNSUPPORTED, "%s: added tokens %d and %d are the same after normalization", r->name,
                               (int)t->added[pieces[i - 1].id].id, (int)t->added[pieces[i].id].id));
        }
    }

fail:
    return st;
}

static kn_status read_added_tokens(const reader *r, const json_t *list)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    kn_token_piece *pieces = NULL;
    int32_t *slots = NULL;
    kn_token_trie known = {0};
    if (absent(list)) return KN_OK;
    if (!json_is_array(list)) return kn_fail(KN_CORRUPT, "%s: added_tokens: expected an array", r->name);
    size_t count = json_array_size(list);
    if (count > KN_TOKEN_ADDED_MAX)
        return kn_fail(KN_CORRUPT, "%s: added_tokens: %zu entries; the limit is %d", r->name, count,
                       KN_TOKEN_ADDED_MAX);
    pieces = kn_alloc_array(count, sizeof *pieces);
    t->added = kn_alloc_array(count, sizeof *t->added);
    slots = kn_alloc_array(count, sizeof *slots);
    if (!pieces || !t->added || !slots) KN_TRY(KN_NOMEM);
    KN_TRY(index_contents(r, list, pieces, &known));
    for (size_t i = 0; i < count; i++) KN_TRY(read_added_token(r, json_array_get(list, i), i, &known, slots));
    KN_TRY(build_added(r, pieces));

fail:
    kn_token_trie_free(&known);
    kn_free(slots);
    kn_free(pieces);
    return st;
}

/* ---- post_processor ---- */

static kn_status append_ids(const reader *r, const json_t *ids, const char *path, int32_t **list, int32_t *count)
{
    size_t more = json_array_size(ids);
    if (!json_is_array(ids) || more < 1 || more > KN_TOKEN_STEPS_MAX)
        return kn_fail(KN_CORRUPT, "%s: %s: expected 1 to %d ids", r->name, path, KN_TOKEN_STEPS_MAX);
    int32_t *grown = kn_realloc(*list, ((size_t)*count + more) * sizeof **list);
    if (!grown) return KN_NOMEM;
    *list = grown;
    for (size_t i = 0; i < more; i++) {
        const json_t *id = json_array_get(ids, i);
        json_int_t value = json_is_integer(id) ? json_integer_value(id) : -1;
        if (value < 0 || value >= r->tokenizer->vocabulary)
            return kn_fail(KN_CORRUPT, "%s: %s[%zu]: expected an id below %d", r->name, path, i,
                           (int)r->tokenizer->vocabulary);
        grown[(*count)++] = (int32_t)value;
    }
    return KN_OK;
}

static kn_status read_template(const reader *r, const json_t *object)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = r->tokenizer;
    const json_t *single = json_object_get(object, "single");
    const json_t *special = json_object_get(object, "special_tokens");
    bool text_seen = false;
    if (!json_is_array(single) || json_array_size(single) > KN_TOKEN_STEPS_MAX)
        return bad_field(r, "post_processor", "single", "a short array");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const char *sequence = json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        const char *token = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (sequence && strcmp(sequence, "A") == 0 && !text_seen) {
            text_seen = true;
            continue;
        }
        if (!token)
            return kn_fail(KN_UNSUPPORTED, "%s: post_processor.single[%zu]: expected a special token, or A once",
                           r->name, i);
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "post_processor.special_tokens.%s.ids", quote_of(token).text);
        const json_t *ids = json_object_get(json_object_get(special, token), "ids");
        KN_TRY(append_ids(r, ids, path, text_seen ? &t->suffix : &t->prefix,
                          text_seen ? &t->suffix_count : &t->prefix_count));
    }
    if (!text_seen) return bad_field(r, "post_processor", "single", "the sequence A");
    if (t->suffix_count == 0)
        return kn_fail(KN_UNSUPPORTED, "%s: post_processor.single: no end token after the text", r->name);

fail:
    return st;
}

/* Without a template the end token is "</s>", which every T5 model expects. */
static kn_status read_end(const reader *r)
{
    static const char end[] = "</s>";
    kn_tokenizer *t = r->tokenizer;
    int32_t id = kn_token_trie_find(&t->pieces, end, sizeof end - 1);
    for (size_t i = 0; id < 0 && i < t->added_count; i++) {
        const kn_token_text *content = &t->added[i].content;
        if (content->bytes == sizeof end - 1 && memcmp(content->data, end, sizeof end - 1) == 0) id = t->added[i].id;
    }
    if (id < 0) return kn_fail(KN_UNSUPPORTED, "%s: post_processor: absent, and there is no \"%s\"", r->name, end);
    t->suffix = kn_alloc(sizeof *t->suffix);
    if (!t->suffix) return KN_NOMEM;
    t->suffix[0] = id;
    t->suffix_count = 1;
    return KN_OK;
}

static kn_status read_post_processor(const reader *r, const json_t *object)
{
    if (absent(object)) return read_end(r);
    if (!json_is_object(object)) return kn_fail(KN_CORRUPT, "%s: post_processor: expected an object", r->name);
    const char *type = type_of(object);
    if (strcmp(type, "TemplateProcessing") != 0) return bad_type(r, "post_processor", type);
    return read_template(r, object);
}

/* ---- the file ---- */

static kn_status parse(json_t **root, const char *bytes, size_t count, const char *name)
{
    json_error_t error;
    if (count > KN_TOKEN_FILE_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "%s: %zu bytes; the limit is %d", name, count, KN_TOKEN_FILE_BYTES_MAX);
    *root = json_loadb(bytes, count, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (*root && json_is_object(*root)) return KN_OK;
    if (*root) return kn_fail(KN_CORRUPT, "%s: expected a JSON object", name);
    char *near = strstr(error.text, " near '"); /* what follows is raw text of the file */
    if (near) *near = '\0';
    return kn_fail(KN_CORRUPT, "%s: line %d: %s", name, error.line, error.text);
}

kn_status kn_tokenizer_from_json(kn_tokenizer **out, const char *bytes, size_t count, const char *name)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    kn_tokenizer *t = NULL;
    KN_REQUIRE(out && (bytes || count == 0) && name);
    *out = NULL;
    KN_TRY(parse(&root, bytes ? bytes : "", count, name));
    t = kn_alloc(sizeof *t);
    if (!t) KN_TRY(KN_NOMEM);
    for (int i = 0; i < 256; i++) t->byte_ids[i] = -1;

    reader r = {.tokenizer = t, .name = name};
    const json_t *version = json_object_get(root, "version");
    if (!absent(version) && (!json_is_string(version) || strcmp(json_string_value(version), "1.0") != 0))
        KN_TRY(kn_fail(KN_UNSUPPORTED, "%s: version: expected \"1.0\"", name));
    KN_TRY(read_model(&r, json_object_get(root, "model")));
    const json_t *normalizer = json_object_get(root, "normalizer");
    if (!absent(normalizer)) KN_TRY(read_normalizer(&r, normalizer, "normalizer", 0));
    const json_t *splitter = json_object_get(root, "pre_tokenizer");
    if (!absent(splitter)) KN_TRY(read_splitter(&r, splitter, "pre_tokenizer", 0));
    KN_TRY(read_added_tokens(&r, json_object_get(root, "added_tokens")));
    KN_TRY(read_post_processor(&r, json_object_get(root, "post_processor")));
    *out = t;
    t = NULL;

fail:
    json_decref(root);
    kn_tokenizer_close(&t);
    return st;
}
