/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the tokenizer share. A tokenizer is a chain of pure steps:
 *
 *   text -> added tokens split off -> normalizers -> splitters -> unigram model -> ids
 *
 * token.c runs the chain, token_json.c and token_spiece.c fill it from a file,
 * token_normalize.c changes text, token_trie.c finds pieces, token_text.c holds
 * UTF-8. Everything here is written once, by the reader of the file, and only
 * read afterwards. */
#ifndef KN_ENGINE_TOKEN_INTERNAL_H
#define KN_ENGINE_TOKEN_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/token.h"

/* Bounds on files. The largest published vocabularies of this kind hold 256300 pieces of at most 64 bytes. */
enum {
    KN_TOKEN_FILE_BYTES_MAX = 256 << 20,
    KN_TOKEN_PIECES_MAX = 1 << 22,
    KN_TOKEN_PIECE_BYTES_MAX = 1024, /* also of added tokens, and of what a normalizer looks for or writes */
    KN_TOKEN_ADDED_MAX = 1 << 16,
    KN_TOKEN_STEPS_MAX = 32,      /* normalizers, or splitters, in one file */
    KN_TOKEN_DEPTH_MAX = 8,       /* sequences inside sequences */
    KN_TOKEN_TEXT_MAX = 16 << 20, /* bytes of a text while it is normalized */
};

/* ---- token_text.c: UTF-8 ---- */

typedef struct kn_token_text {
    char *data;
    size_t bytes;
    size_t capacity; /* bytes at data */
} kn_token_text;

/* Refuses to grow a text above KN_TOKEN_TEXT_MAX. */
kn_status kn_token_text_append(kn_token_text *text, const char *data, size_t bytes);
void kn_token_text_free(kn_token_text *text);

/* Bytes of the first character, 1 to 4; `bytes` must be positive. *code is -1 where the text is not UTF-8, and then
 * the result is the length of what one U+FFFD stands for: the longest start of a valid sequence (Unicode 3.9). */
size_t kn_token_utf8_read(const char *text, size_t bytes, int32_t *code);
/* As above, of the last character that ends at text + bytes; the text must be valid. */
size_t kn_token_utf8_read_last(const char *text, size_t bytes, int32_t *code);
size_t kn_token_utf8_write(int32_t code, char out[4]);
/* Appends `data` with U+FFFD in place of what is not UTF-8. */
kn_status kn_token_text_append_valid(kn_token_text *text, const char *data, size_t bytes);

/* `code`, or one of the same class for grapheme clusters that every Unicode version knows: marks that came with Unicode
 * 15.1 to 17, and the code points reserved as invisible. The `tokenizers` library segments by Unicode 17, the Unicode
 * library here need not. */
int32_t kn_token_as_known(int32_t code);
bool kn_token_is_space(int32_t code); /* Unicode White_Space */
bool kn_token_is_word(int32_t code);  /* \w of the regular expressions that added tokens use */

/* ---- token_trie.c ---- */

/* Nodes in breadth-first order, so that the children of a node are neighbours and `first` alone says how many. */
typedef struct kn_token_trie {
    uint32_t *first; /* [node_count + 1] index of a node's first child; children ascend by label */
    int32_t *id;     /* [node_count] of the piece that ends here, or -1 */
    uint8_t *label;  /* [node_count] byte on the way from the parent */
    uint32_t node_count;
} kn_token_trie;

typedef struct kn_token_piece {
    const char *text; /* borrowed */
    uint32_t bytes;
    int32_t id;
} kn_token_piece;

/* Sorts `pieces`. Empty pieces are left out; of equal ones the highest id stays. */
kn_status kn_token_trie_build(kn_token_trie *trie, kn_token_piece *pieces, size_t count);
void kn_token_trie_free(kn_token_trie *trie);

/* The child over `byte`, or 0 (the root is nobody's child). A trie that was never built has no children. */
uint32_t kn_token_trie_child(const kn_token_trie *trie, uint32_t node, uint8_t byte);
/* Length of the longest piece that `text` starts with, its id in *id; 0 when there is none. */
size_t kn_token_trie_longest(const kn_token_trie *trie, const char *text, size_t bytes, int32_t *id);
/* The id of a whole piece, or -1. */
int32_t kn_token_trie_find(const kn_token_trie *trie, const char *text, size_t bytes);

/* ---- token_normalize.c ---- */

/* The compiled normalization rules of sentencepiece: a double array from keys to offsets of NUL-ended replacements. */
typedef struct kn_token_charsmap {
    uint32_t *units; /* [unit_count] */
    uint32_t unit_count;
    char *replacements; /* [replacement_bytes], then one NUL */
    uint32_t replacement_bytes;
} kn_token_charsmap;

/* `where` names file and field in messages. */
kn_status kn_token_charsmap_parse(kn_token_charsmap *map, const uint8_t *bytes, size_t count, const char *where);
void kn_token_charsmap_free(kn_token_charsmap *map);

typedef enum kn_token_normalizer_kind {
    KN_NORMALIZER_CHARSMAP,
    KN_NORMALIZER_STRIP,
    KN_NORMALIZER_REPLACE, /* a string */
    KN_NORMALIZER_RUN,     /* `run_min` or more of one character, or of white space */
    KN_NORMALIZER_PREPEND,
    KN_NORMALIZER_NMT,
    KN_NORMALIZER_UNICODE, /* NFC, NFD, NFKC, NFKD */
} kn_token_normalizer_kind;

typedef struct kn_token_normalizer {
    kn_token_normalizer_kind kind;
    kn_token_charsmap charsmap;
    bool strip_left, strip_right;
    int32_t run_code;         /* code point, or -1 for any white space */
    uint32_t run_min;         /* characters */
    bool compose, compatible; /* of the Unicode forms: C, K */
    kn_token_text pattern;
    kn_token_text content; /* put in place of a match, or in front */
} kn_token_normalizer;

void kn_token_normalizer_free(kn_token_normalizer *step);

/* Applies the steps in order to `text`, which must be valid UTF-8. *origin is the number of leading bytes that its
 * first character became, 0 when they were stripped: the "first" rule of a splitter asks. */
kn_status kn_token_normalize(const kn_token_normalizer *steps, size_t count, kn_token_text *text, size_t *origin);

typedef struct kn_token_spiece_rules {
    kn_token_charsmap charsmap;
    kn_token_trie symbols; /* user-defined pieces: taken as they stand */
    bool add_dummy_prefix;
    bool remove_extra_whitespaces;
    bool escape_whitespaces;
} kn_token_spiece_rules;

/* sentencepiece's own normalization of bytes that need not be UTF-8, appended to `out`. */
kn_status kn_token_spiece_normalize(const kn_token_spiece_rules *rules, const char *text, size_t bytes,
                                    kn_token_text *out);

/* ---- the tokenizer ---- */

typedef enum kn_token_prepend { KN_PREPEND_ALWAYS, KN_PREPEND_FIRST, KN_PREPEND_NEVER } kn_token_prepend;

/* One pre-tokenizer. */
typedef struct kn_token_splitter {
    bool metaspace; /* otherwise split at white space and drop it */
    kn_token_prepend prepend;
    bool split;
    char replacement[4]; /* UTF-8 of the character that stands for a space */
    size_t replacement_bytes;
} kn_token_splitter;

typedef struct kn_token_added {
    int32_t id;
    bool single_word, lstrip, rstrip, normalized;
    kn_token_text content; /* after normalization, if `normalized` */
} kn_token_added;

struct kn_tokenizer {
    int32_t vocabulary; /* ids are below */

    /* unigram model */
    kn_token_trie pieces;
    double *scores; /* [piece_count] log probability */
    int32_t piece_count;
    int32_t unknown_id;
    double unknown_score; /* of one character that no piece covers */
    bool float_scores;    /* sums are rounded to float32, as sentencepiece keeps them */
    bool byte_fallback;
    int32_t byte_ids[256]; /* of the pieces <0x00> to <0xFF>, or -1 */

    /* spiece.model */
    bool spiece;
    kn_token_spiece_rules rules;

    /* tokenizer.json */
    kn_token_normalizer normalizers[KN_TOKEN_STEPS_MAX];
    size_t normalizer_count;
    kn_token_splitter splitters[KN_TOKEN_STEPS_MAX];
    size_t splitter_count;
    kn_token_added *added;
    size_t added_count;
    kn_token_trie added_raw;        /* index into added; matched before normalization */
    kn_token_trie added_normalized; /* matched after */

    /* ids around every text */
    int32_t *prefix, *suffix;
    int32_t prefix_count, suffix_count;
};

/* A number that "<0x41>" spells, or -1. */
int32_t kn_token_byte_of_piece(const char *text, size_t bytes);

#endif
