/* SPDX-License-Identifier: Apache-2.0
 *
 * Text to ids: split off added tokens, normalize what is between them, split it
 * into words, and find for each word the pieces with the highest sum of log
 * probabilities. The search is a forward pass over byte positions that keeps
 * the best way to reach each position; of equal sums the earlier found stays.
 *
 * Two oracles, two habits. The `tokenizers` library sums in float64, looks a run
 * of unknown characters up as one piece, and falls back to bytes only if every
 * byte has a piece. sentencepiece keeps sums in float32 and sees one word. */
#define _POSIX_C_SOURCE 200809L
#include "engine/token_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static const double REBASE_ABOVE = 100000.0;

/* The best known way to reach a byte position. */
typedef struct node {
    double score; /* sum of log probabilities */
    int32_t from; /* byte position where its last piece starts, or -1 */
    int32_t id;   /* of that piece */
} node;

/* One call of kn_tokenizer_encode. */
typedef struct encoding {
    const kn_tokenizer *tokenizer;
    int32_t *ids;
    size_t count, capacity;
    size_t wanted; /* ids; the text behind them is not looked at */
    node *nodes;
    size_t node_capacity;
} encoding;

/* ---- unigram model ---- */

static kn_status emit(encoding *e, int32_t id)
{
    if (e->count == e->capacity) {
        size_t capacity = e->capacity < 64 ? 64 : e->capacity * 2;
        int32_t *grown = kn_realloc(e->ids, capacity * sizeof *grown);
        if (!grown) return KN_NOMEM;
        e->ids = grown;
        e->capacity = capacity;
    }
    e->ids[e->count++] = id;
    return KN_OK;
}

static void reach(const kn_tokenizer *t, node *target, double score, size_t from, int32_t id)
{
    if (t->float_scores) score = (double)(float)score;
    if (target->from >= 0 && !(score > target->score)) return;
    *target = (node){.score = score, .from = (int32_t)from, .id = id};
}

/* Long sums lose the low bits of float32; sentencepiece starts them from zero again, and so do we to find the same. */
static void rebase(node *nodes, size_t start, size_t frontier)
{
    double offset = nodes[start].score;
    if (offset >= -REBASE_ABOVE && offset <= REBASE_ABOVE) return;
    for (size_t i = start; i <= frontier; i++) {
        if (i == start || nodes[i].from >= 0) nodes[i].score = (double)(float)(nodes[i].score - offset);
    }
}

static void search(const kn_tokenizer *t, node *nodes, const char *word, size_t bytes)
{
    size_t frontier = 0; /* the last position reached */
    for (size_t i = 0; i <= bytes; i++) nodes[i] = (node){.from = -1};
    for (size_t start = 0; start < bytes;) {
        int32_t code;
        if (t->float_scores) rebase(nodes, start, frontier);
        size_t character = kn_token_utf8_read(word + start, bytes - start, &code);
        double so_far = nodes[start].score;
        bool covered = false; /* one piece is exactly this character */
        uint32_t at = 0;
        for (size_t end = start; end < bytes;) {
            at = kn_token_trie_child(&t->pieces, at, (uint8_t)word[end]);
            if (at == 0) break;
            end++;
            int32_t id = t->pieces.id[at];
            if (id < 0) continue;
            reach(t, &nodes[end], t->scores[id] + so_far, start, id);
            if (end > frontier) frontier = end;
            if (end - start == character) covered = true;
        }
        if (!covered) {
            reach(t, &nodes[start + character], t->unknown_score + so_far, start, t->unknown_id);
            if (start + character > frontier) frontier = start + character;
        }
        start += character;
    }
}

/* Turns the links from the end into links from the start: then nodes[i].from is where the piece at i ends. */
static void reverse_links(node *nodes, size_t bytes)
{
    node next = {.from = -1};
    for (int32_t at = (int32_t)bytes; at >= 0;) {
        node here = nodes[at];
        nodes[at] = next;
        next = (node){.from = at, .id = here.id};
        at = here.from;
    }
}

static kn_status emit_unknown(encoding *e, const char *text, size_t bytes)
{
    kn_status st = KN_OK;
    const kn_tokenizer *t = e->tokenizer;
    int32_t id = t->spiece ? -1 : kn_token_trie_find(&t->pieces, text, bytes);
    bool as_bytes = t->byte_fallback && id < 0;
    for (size_t i = 0; as_bytes && i < bytes; i++) as_bytes = t->byte_ids[(uint8_t)text[i]] >= 0;
    if (!as_bytes) return emit(e, id >= 0 ? id : t->unknown_id);
    for (size_t i = 0; i < bytes; i++) KN_TRY(emit(e, t->byte_ids[(uint8_t)text[i]]));

fail:
    return st;
}

static kn_status encode_word(encoding *e, const char *word, size_t bytes)
{
    kn_status st = KN_OK;
    const kn_tokenizer *t = e->tokenizer;
    if (bytes == 0 || e->count >= e->wanted) return KN_OK;
    if (bytes + 1 > e->node_capacity) {
        size_t capacity = bytes + 1 + (bytes < 4096 ? bytes : 4096);
        kn_free(e->nodes);
        e->nodes = kn_alloc_array(capacity, sizeof *e->nodes);
        e->node_capacity = e->nodes ? capacity : 0;
        if (!e->nodes) return KN_NOMEM;
    }
    search(t, e->nodes, word, bytes);
    reverse_links(e->nodes, bytes);
    for (size_t at = 0; at < bytes && e->count < e->wanted;) {
        int32_t id = e->nodes[at].id;
        size_t end = (size_t)e->nodes[at].from;
        if (id != t->unknown_id) {
            KN_TRY(emit(e, id));
        } else {
            while (end < bytes && e->nodes[end].id == t->unknown_id) end = (size_t)e->nodes[end].from;
            KN_TRY(emit_unknown(e, word + at, end - at));
        }
        at = end;
    }

fail:
    return st;
}

/* ---- splitters ---- */

static kn_status split(encoding *e, size_t step, const char *text, size_t bytes, size_t origin);

static kn_status split_at_spaces(encoding *e, size_t step, const char *text, size_t bytes, size_t origin)
{
    kn_status st = KN_OK;
    size_t start = 0;
    for (size_t at = 0; at < bytes;) {
        int32_t code;
        size_t length = kn_token_utf8_read(text + at, bytes - at, &code);
        if (kn_token_is_space(code)) {
            KN_TRY(split(e, step + 1, text + start, at - start, start < origin ? origin - start : 0));
            start = at + length;
        }
        at += length;
    }
    return split(e, step + 1, text + start, bytes - start, start < origin ? origin - start : 0);

fail:
    return st;
}

static kn_status split_metaspace(encoding *e, size_t step, const char *text, size_t bytes, size_t origin)
{
    kn_status st = KN_OK;
    const kn_token_splitter *s = &e->tokenizer->splitters[step];
    size_t width = s->replacement_bytes;
    kn_token_text marked = {0};
    bool starts_marked = bytes > 0 && (text[0] == ' ' || (bytes >= width && memcmp(text, s->replacement, width) == 0));
    if (!starts_marked && (s->prepend == KN_PREPEND_ALWAYS || (s->prepend == KN_PREPEND_FIRST && origin > 0)))
        KN_TRY(kn_token_text_append(&marked, s->replacement, width));
    size_t start = 0;
    for (size_t at = 0; at < bytes; at++) {
        if (text[at] != ' ') continue;
        KN_TRY(kn_token_text_append(&marked, text + start, at - start));
        KN_TRY(kn_token_text_append(&marked, s->replacement, width));
        start = at + 1;
    }
    KN_TRY(kn_token_text_append(&marked, text + start, bytes - start));

    start = 0; /* every mark begins a word */
    for (size_t at = 1; s->split && at + width <= marked.bytes; at++) {
        if (memcmp(marked.data + at, s->replacement, width) != 0) continue;
        KN_TRY(split(e, step + 1, marked.data + start, at - start, start < origin ? origin - start : 0));
        start = at;
    }
    KN_TRY(split(e, step + 1, marked.data + start, marked.bytes - start, start < origin ? origin - start : 0));

fail:
    kn_token_text_free(&marked);
    return st;
}

/* `origin`: this many leading bytes stand for the first character of the whole input. */
static kn_status split(encoding *e, size_t step, const char *text, size_t bytes, size_t origin)
{
    if (bytes == 0 || e->count >= e->wanted) return KN_OK;
    if (step == e->tokenizer->splitter_count) return encode_word(e, text, bytes);
    return e->tokenizer->splitters[step].metaspace ? split_metaspace(e, step, text, bytes, origin)
                                                   : split_at_spaces(e, step, text, bytes, origin);
}

/* ---- added tokens ---- */

/* One found added token: the bytes it takes, white space included where it strips. */
typedef struct match {
    size_t start, end;
    int32_t id;
} match;

static bool stands_alone(const char *text, size_t bytes, size_t start, size_t end)
{
    int32_t code;
    if (start > 0) {
        kn_token_utf8_read_last(text, start, &code);
        if (kn_token_is_word(code)) return false;
    }
    if (end < bytes) {
        kn_token_utf8_read(text + end, bytes - end, &code);
        if (kn_token_is_word(code)) return false;
    }
    return true;
}

/* The next token at or after *at, whose text is the longest of those that start leftmost. *at moves behind that text,
 * not behind white space stripped after it; `taken` is the end of the match before. */
static bool next_added(const kn_tokenizer *t, const kn_token_trie *trie, const char *text, size_t bytes, size_t *at,
                       size_t taken, match *out)
{
    while (*at < bytes) {
        int32_t index = -1;
        int32_t code;
        size_t start = *at;
        size_t length = kn_token_trie_longest(trie, text + start, bytes - start, &index);
        if (length == 0) {
            ++*at;
            continue;
        }
        size_t end = start + length;
        *at = end;
        const kn_token_added *added = &t->added[index];
        if (added->single_word && !stands_alone(text, bytes, start, end)) continue;
        while (added->lstrip && start > 0) {
            size_t space = kn_token_utf8_read_last(text, start, &code);
            if (!kn_token_is_space(code)) break;
            start -= space;
        }
        if (added->lstrip && start < taken) start = taken;
        while (added->rstrip && end < bytes) {
            size_t space = kn_token_utf8_read(text + end, bytes - end, &code);
            if (!kn_token_is_space(code)) break;
            end += space;
        }
        *out = (match){.start = start, .end = end, .id = added->id};
        return true;
    }
    return false;
}

/* Text between added tokens as written: normalize, then split off the added tokens that are matched after it. */
static kn_status encode_between(encoding *e, const char *text, size_t bytes, bool first)
{
    kn_status st = KN_OK;
    const kn_tokenizer *t = e->tokenizer;
    kn_token_text normal = {0};
    size_t origin;
    KN_TRY(kn_token_text_append(&normal, text, bytes));
    KN_TRY(kn_token_normalize(t->normalizers, t->normalizer_count, &normal, &origin));
    if (!first) origin = 0;

    size_t taken = 0;
    size_t at = 0;
    match m;
    while (t->added_normalized.node_count > 1 && e->count < e->wanted &&
           next_added(t, &t->added_normalized, normal.data, normal.bytes, &at, taken, &m)) {
        if (taken < m.start)
            KN_TRY(split(e, 0, normal.data + taken, m.start - taken, taken < origin ? origin - taken : 0));
        KN_TRY(emit(e, m.id));
        taken = m.end;
    }
    if (taken < normal.bytes)
        KN_TRY(split(e, 0, normal.data + taken, normal.bytes - taken, taken < origin ? origin - taken : 0));

fail:
    kn_token_text_free(&normal);
    return st;
}

static kn_status encode_json(encoding *e, const char *text, size_t bytes)
{
    kn_status st = KN_OK;
    const kn_tokenizer *t = e->tokenizer;
    kn_token_text valid = {0};
    KN_TRY(kn_token_text_append_valid(&valid, text, bytes));
    size_t taken = 0;
    size_t at = 0;
    match m;
    while (e->count < e->wanted && next_added(t, &t->added_raw, valid.data, valid.bytes, &at, taken, &m)) {
        if (taken < m.start) KN_TRY(encode_between(e, valid.data + taken, m.start - taken, taken == 0));
        KN_TRY(emit(e, m.id));
        taken = m.end;
    }
    if (taken < valid.bytes) KN_TRY(encode_between(e, valid.data + taken, valid.bytes - taken, taken == 0));

fail:
    kn_token_text_free(&valid);
    return st;
}

static kn_status encode_spiece(encoding *e, const char *text, size_t bytes)
{
    kn_status st = KN_OK;
    kn_token_text normal = {0};
    KN_TRY(kn_token_spiece_normalize(&e->tokenizer->rules, text, bytes, &normal));
    KN_TRY(encode_word(e, normal.data, normal.bytes));

fail:
    kn_token_text_free(&normal);
    return st;
}

kn_status kn_tokenizer_encode(const kn_tokenizer *tokenizer, const char *text, size_t bytes, int32_t limit,
                              int32_t **ids, int32_t *count)
{
    kn_status st = KN_OK;
    KN_REQUIRE(tokenizer && ids && count && (text || bytes == 0));
    encoding e = {.tokenizer = tokenizer};
    int32_t around = tokenizer->prefix_count + tokenizer->suffix_count;
    *ids = NULL;
    *count = 0;
    if (bytes > KN_TEXT_BYTES_MAX)
        return kn_fail(KN_INVALID, "text of %zu bytes; the limit is %d", bytes, KN_TEXT_BYTES_MAX);
    if (limit < around)
        return kn_fail(KN_INVALID, "limit of %d ids leaves no room for the end token; the least is %d", (int)limit,
                       (int)around);

    e.wanted = (size_t)limit - (size_t)tokenizer->suffix_count;
    for (int32_t i = 0; i < tokenizer->prefix_count; i++) KN_TRY(emit(&e, tokenizer->prefix[i]));
    if (bytes > 0) KN_TRY(tokenizer->spiece ? encode_spiece(&e, text, bytes) : encode_json(&e, text, bytes));
    if (e.count > e.wanted) e.count = e.wanted; /* bytes of one unknown character arrive together */
    for (int32_t i = 0; i < tokenizer->suffix_count; i++) KN_TRY(emit(&e, tokenizer->suffix[i]));
    *ids = e.ids;
    *count = (int32_t)e.count;
    e.ids = NULL;

fail:
    kn_free(e.ids);
    kn_free(e.nodes);
    return st;
}

/* ---- opening ---- */

int32_t kn_token_byte_of_piece(const char *text, size_t bytes)
{
    static const char digits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    const char *high = memchr(digits, text[3], 16);
    const char *low = memchr(digits, text[4], 16);
    return high && low ? (int32_t)((high - digits) * 16 + (low - digits)) : -1;
}

/* A whole file of at most KN_TOKEN_FILE_BYTES_MAX bytes. */
static kn_status read_file(const char *path, char **out, size_t *count)
{
    kn_status st = KN_OK;
    char *bytes = NULL;
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return kn_fail(errno == ENOENT ? KN_NOT_FOUND : KN_IO, "%s: %s", path, strerror(errno));
    if (fstat(file, &info) != 0) KN_TRY(kn_fail(KN_IO, "%s: %s", path, strerror(errno)));
    if (!S_ISREG(info.st_mode)) KN_TRY(kn_fail(KN_IO, "%s: not a regular file", path));
    if (info.st_size > KN_TOKEN_FILE_BYTES_MAX)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: %lld bytes; the limit is %d", path, (long long)info.st_size,
                       KN_TOKEN_FILE_BYTES_MAX));
    size_t size = (size_t)info.st_size;
    bytes = kn_alloc(size);
    if (!bytes) KN_TRY(KN_NOMEM);
    size_t done = 0;
    while (done < size) {
        ssize_t got = read(file, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) KN_TRY(kn_fail(KN_IO, "%s: %s", path, strerror(errno)));
        if (got == 0) break;
        done += (size_t)got;
    }
    *out = bytes;
    *count = done;
    bytes = NULL;

fail:
    kn_free(bytes);
    close(file);
    return st;
}

kn_status kn_tokenizer_open(kn_tokenizer **out, const char *directory)
{
    kn_status st = KN_OK;
    char *bytes = NULL;
    char *path = NULL;
    size_t count = 0;
    KN_REQUIRE(out && directory);
    *out = NULL;
    path = kn_format("%s/tokenizer.json", directory);
    if (!path) KN_TRY(KN_NOMEM);
    st = read_file(path, &bytes, &count);
    if (st == KN_OK) {
        KN_TRY(kn_tokenizer_from_json(out, bytes, count, path));
        goto fail;
    }
    if (st != KN_NOT_FOUND) goto fail;

    kn_free(path);
    path = kn_format("%s/spiece.model", directory);
    if (!path) KN_TRY(KN_NOMEM);
    st = read_file(path, &bytes, &count);
    if (st == KN_NOT_FOUND)
        KN_TRY(kn_fail(KN_NOT_FOUND, "%s: neither tokenizer.json nor spiece.model is there", directory));
    KN_TRY(st);
    KN_TRY(kn_tokenizer_from_spiece(out, bytes, count, path));

fail:
    kn_free(bytes);
    kn_free(path);
    return st;
}

void kn_tokenizer_close(kn_tokenizer **tokenizer)
{
    if (!tokenizer || !*tokenizer) return;
    kn_tokenizer *t = *tokenizer;
    kn_token_trie_free(&t->pieces);
    kn_token_trie_free(&t->rules.symbols);
    kn_token_trie_free(&t->added_raw);
    kn_token_trie_free(&t->added_normalized);
    kn_token_charsmap_free(&t->rules.charsmap);
    for (size_t i = 0; i < t->normalizer_count; i++) kn_token_normalizer_free(&t->normalizers[i]);
    for (size_t i = 0; i < t->added_count; i++) kn_token_text_free(&t->added[i].content);
    kn_free(t->added);
    kn_free(t->scores);
    kn_free(t->prefix);
    kn_free(t->suffix);
    kn_free(t);
    *tokenizer = NULL;
}

int32_t kn_tokenizer_vocabulary(const kn_tokenizer *tokenizer)
{
    return tokenizer->vocabulary;
}
