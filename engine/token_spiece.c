/* SPDX-License-Identifier: Apache-2.0
 *
 * Reads spiece.model: a serialized sentencepiece ModelProto. Only the protobuf
 * wire format and these fields are known here, the rest is skipped:
 *
 *   ModelProto      1 pieces, 2 trainer_spec, 3 normalizer_spec
 *   SentencePiece   1 piece, 2 score (float), 3 type
 *   TrainerSpec     3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback, 47 eos_piece
 *   NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces
 */
#include "engine/token_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/mem.h"

typedef enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN = 2,
    PIECE_CONTROL = 3,
    PIECE_USER_DEFINED = 4,
    PIECE_UNUSED = 5,
    PIECE_BYTE = 6,
} piece_type;

enum { MODEL_UNIGRAM = 1 };

/* ---- protobuf wire format ---- */

typedef struct wire {
    const uint8_t *at, *end;
    const char *name; /* of the file, for messages */
} wire;

/* One field: its number, and either `number` (varint and fixed types) or `bytes`. */
typedef struct field {
    uint32_t tag;
    uint32_t type; /* 0 varint, 1 fixed64, 2 bytes, 5 fixed32 */
    uint64_t number;
    const uint8_t *bytes;
    size_t count;
} field;

static kn_status cut_short(const wire *w, const char *where)
{
    return kn_fail(KN_CORRUPT, "%s: %s: not a protobuf message, or cut short", w->name, where);
}

static bool read_varint(wire *w, uint64_t *out)
{
    *out = 0;
    for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t byte = *w->at++;
        *out |= (uint64_t)(byte & 0x7fu) << shift;
        if (!(byte & 0x80u)) return true;
    }
    return false;
}

static bool read_fixed(wire *w, unsigned bytes, uint64_t *out)
{
    if ((size_t)(w->end - w->at) < bytes) return false;
    *out = 0;
    for (unsigned i = 0; i < bytes; i++) *out |= (uint64_t)*w->at++ << (8 * i);
    return true;
}

static kn_status read_field(wire *w, const char *where, field *out)
{
    uint64_t key;
    *out = (field){0};
    if (!read_varint(w, &key) || key > UINT32_MAX || key >> 3 == 0) return cut_short(w, where);
    out->tag = (uint32_t)(key >> 3);
    out->type = (uint32_t)(key & 7u);
    switch (out->type) {
    case 0: return read_varint(w, &out->number) ? KN_OK : cut_short(w, where);
    case 1: return read_fixed(w, 8, &out->number) ? KN_OK : cut_short(w, where);
    case 5: return read_fixed(w, 4, &out->number) ? KN_OK : cut_short(w, where);
    case 2:
        if (!read_varint(w, &out->number) || out->number > (uint64_t)(w->end - w->at)) return cut_short(w, where);
        out->bytes = w->at;
        out->count = (size_t)out->number;
        w->at += out->count;
        return KN_OK;
    default: return kn_fail(KN_CORRUPT, "%s: %s: wire type %u", w->name, where, out->type);
    }
}

static kn_status expect_type(const wire *w, const field *f, uint32_t type, const char *where)
{
    return f->type == type ? KN_OK : kn_fail(KN_CORRUPT, "%s: %s: wire type %u", w->name, where, f->type);
}

/* ---- messages ---- */

typedef struct piece {
    const char *text; /* in the file's bytes */
    uint32_t bytes;
    piece_type type;
    float score;
} piece;

typedef struct model {
    kn_tokenizer *tokenizer;
    const char *name;
    piece *pieces;
    size_t piece_count;
    uint64_t model_type;
    const char *end_piece; /* in the file's bytes */
    size_t end_piece_bytes;
    const uint8_t *charsmap; /* in the file's bytes */
    size_t charsmap_bytes;
} model;

static kn_status read_piece(const model *m, const field *message, size_t index)
{
    kn_status st = KN_OK;
    wire w = {.at = message->bytes, .end = message->bytes + message->count, .name = m->name};
    piece *p = &m->pieces[index];
    uint64_t type = PIECE_NORMAL;
    *p = (piece){.text = ""};
    while (w.at < w.end) {
        field f;
        KN_TRY(read_field(&w, "pieces", &f));
        switch (f.tag) {
        case 1:
            KN_TRY(expect_type(&w, &f, 2, "pieces.piece"));
            if (f.count > KN_TOKEN_PIECE_BYTES_MAX)
                return kn_fail(KN_CORRUPT, "%s: pieces[%zu].piece: %zu bytes; the limit is %d", m->name, index, f.count,
                               KN_TOKEN_PIECE_BYTES_MAX);
            p->text = (const char *)f.bytes;
            p->bytes = (uint32_t)f.count;
            break;
        case 2:
            KN_TRY(expect_type(&w, &f, 5, "pieces.score"));
            p->score = kn_float_from_bits((uint32_t)f.number);
            break;
        case 3:
            KN_TRY(expect_type(&w, &f, 0, "pieces.type"));
            type = f.number;
            break;
        default: break;
        }
    }
    for (size_t i = 0; i < p->bytes;) {
        int32_t code;
        i += kn_token_utf8_read(p->text + i, p->bytes - i, &code);
        if (code < 0) return kn_fail(KN_CORRUPT, "%s: pieces[%zu].piece: not UTF-8", m->name, index);
    }
    if (p->bytes == 0 || memchr(p->text, '\0', p->bytes))
        return kn_fail(KN_CORRUPT, "%s: pieces[%zu].piece: empty, or with a NUL inside", m->name, index);
    if (!isfinite(p->score)) return kn_fail(KN_CORRUPT, "%s: pieces[%zu].score: not finite", m->name, index);
    if (type < PIECE_NORMAL || type > PIECE_BYTE)
        return kn_fail(KN_CORRUPT, "%s: pieces[%zu].type: %llu", m->name, index, (unsigned long long)type);
    p->type = (piece_type)type;

fail:
    return st;
}

static kn_status read_trainer(model *m, const field *message)
{
    kn_status st = KN_OK;
    wire w = {.at = message->bytes, .end = message->bytes + message->count, .name = m->name};
    while (w.at < w.end) {
        field f;
        KN_TRY(read_field(&w, "trainer_spec", &f));
        switch (f.tag) {
        case 3:
            KN_TRY(expect_type(&w, &f, 0, "trainer_spec.model_type"));
            m->model_type = f.number;
            break;
        case 24:
            KN_TRY(expect_type(&w, &f, 0, "trainer_spec.treat_whitespace_as_suffix"));
            if (f.number)
                return kn_fail(KN_UNSUPPORTED, "%s: trainer_spec.treat_whitespace_as_suffix is not supported", m->name);
            break;
        case 35:
            KN_TRY(expect_type(&w, &f, 0, "trainer_spec.byte_fallback"));
            m->tokenizer->byte_fallback = f.number != 0;
            break;
        case 47:
            KN_TRY(expect_type(&w, &f, 2, "trainer_spec.eos_piece"));
            m->end_piece = (const char *)f.bytes;
            m->end_piece_bytes = f.count;
            break;
        default: break;
        }
    }

fail:
    return st;
}

static kn_status read_normalizer(model *m, const field *message)
{
    kn_status st = KN_OK;
    wire w = {.at = message->bytes, .end = message->bytes + message->count, .name = m->name};
    kn_token_spiece_rules *rules = &m->tokenizer->rules;
    while (w.at < w.end) {
        field f;
        KN_TRY(read_field(&w, "normalizer_spec", &f));
        if (f.tag < 2 || f.tag > 5) continue;
        KN_TRY(expect_type(&w, &f, f.tag == 2 ? 2 : 0, "normalizer_spec"));
        switch (f.tag) {
        case 2:
            m->charsmap = f.bytes;
            m->charsmap_bytes = f.count;
            break;
        case 3: rules->add_dummy_prefix = f.number != 0; break;
        case 4: rules->remove_extra_whitespaces = f.number != 0; break;
        default: rules->escape_whitespaces = f.number != 0; break;
        }
    }

fail:
    return st;
}

/* Two walks over the file: how many pieces, then the pieces. */
static kn_status read_messages(model *m, const uint8_t *bytes, size_t count)
{
    kn_status st = KN_OK;
    size_t pieces = 0;
    for (wire w = {.at = bytes, .end = bytes + count, .name = m->name}; w.at < w.end;) {
        field f;
        KN_TRY(read_field(&w, "model", &f));
        if (f.tag >= 1 && f.tag <= 3) KN_TRY(expect_type(&w, &f, 2, "model"));
        pieces += f.tag == 1;
    }
    if (pieces < 1 || pieces > KN_TOKEN_PIECES_MAX)
        return kn_fail(KN_CORRUPT, "%s: pieces: %zu; expected 1 to %d", m->name, pieces, KN_TOKEN_PIECES_MAX);
    m->pieces = kn_alloc_array(pieces, sizeof *m->pieces);
    if (!m->pieces) return KN_NOMEM;
    for (wire w = {.at = bytes, .end = bytes + count, .name = m->name}; w.at < w.end;) {
        field f;
        KN_TRY(read_field(&w, "model", &f));
        if (f.tag == 1) {
            KN_TRY(read_piece(m, &f, m->piece_count));
            m->piece_count++;
        } else if (f.tag == 2) {
            KN_TRY(read_trainer(m, &f));
        } else if (f.tag == 3) {
            KN_TRY(read_normalizer(m, &f));
        }
    }

fail:
    return st;
}

/* ---- from messages to a tokenizer ---- */

static kn_status assign_special_pieces(const model *m)
{
    kn_tokenizer *t = m->tokenizer;
    t->unknown_id = -1;
    for (size_t i = 0; i < m->piece_count; i++) {
        const piece *p = &m->pieces[i];
        if (p->type == PIECE_UNKNOWN) {
            if (t->unknown_id >= 0) return kn_fail(KN_CORRUPT, "%s: pieces[%zu]: a second unknown piece", m->name, i);
            t->unknown_id = (int32_t)i;
        }
        if (p->type == PIECE_BYTE) {
            int32_t byte = kn_token_byte_of_piece(p->text, p->bytes);
            if (byte < 0) return kn_fail(KN_CORRUPT, "%s: pieces[%zu]: not the name of a byte", m->name, i);
            t->byte_ids[byte] = (int32_t)i;
        }
    }
    if (t->unknown_id < 0) return kn_fail(KN_CORRUPT, "%s: pieces: no unknown piece", m->name);
    for (int byte = 0; t->byte_fallback && byte < 256; byte++) {
        if (t->byte_ids[byte] < 0)
            return kn_fail(KN_CORRUPT, "%s: pieces: byte_fallback without <0x%02X>", m->name, (unsigned)byte);
    }
    return KN_OK;
}

/* Only what may stand for text enters the tries. Scores follow sentencepiece 0.2.3: a user-defined piece gains by its
 * length instead of costing, so no other way through its bytes is better. */
static kn_status build_pieces(const model *m)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = m->tokenizer;
    kn_token_piece *pieces = kn_alloc_array(m->piece_count, sizeof *pieces);
    t->scores = kn_alloc_array(m->piece_count, sizeof *t->scores);
    if (!pieces || !t->scores) KN_TRY(KN_NOMEM);

    float least = FLT_MAX;
    for (size_t i = 0; i < m->piece_count; i++) {
        if (m->pieces[i].type == PIECE_NORMAL && m->pieces[i].score < least) least = m->pieces[i].score;
    }
    t->unknown_score = (double)(least - 10.0f);

    size_t symbols = 0;
    for (size_t i = 0; i < m->piece_count; i++) {
        const piece *p = &m->pieces[i];
        t->scores[i] = p->score;
        if (p->type != PIECE_USER_DEFINED) continue;
        t->scores[i] = (float)(0.1 * (double)(p->bytes - 1));
        pieces[symbols++] = (kn_token_piece){.text = p->text, .bytes = p->bytes, .id = (int32_t)i};
    }
    KN_TRY(kn_token_trie_build(&t->rules.symbols, pieces, symbols));
    size_t count = 0;
    for (size_t i = 0; i < m->piece_count; i++) {
        const piece *p = &m->pieces[i];
        if (p->type == PIECE_NORMAL || p->type == PIECE_USER_DEFINED)
            pieces[count++] = (kn_token_piece){.text = p->text, .bytes = p->bytes, .id = (int32_t)i};
    }
    KN_TRY(kn_token_trie_build(&t->pieces, pieces, count));
    for (size_t i = 1; i < count; i++) {
        if (pieces[i].bytes == pieces[i - 1].bytes && memcmp(pieces[i].text, pieces[i - 1].text, pieces[i].bytes) == 0)
            KN_TRY(kn_fail(KN_CORRUPT, "%s: pieces[%d] repeats pieces[%d]", m->name, (int)pieces[i].id,
                           (int)pieces[i - 1].id));
    }

fail:
    kn_free(pieces);
    return st;
}

static kn_status assign_end(const model *m)
{
    kn_tokenizer *t = m->tokenizer;
    for (size_t i = 0; i < m->piece_count; i++) {
        const piece *p = &m->pieces[i];
        if (p->bytes != m->end_piece_bytes || memcmp(p->text, m->end_piece, p->bytes) != 0) continue;
        t->suffix = kn_alloc(sizeof *t->suffix);
        if (!t->suffix) return KN_NOMEM;
        t->suffix[0] = (int32_t)i;
        t->suffix_count = 1;
        return KN_OK;
    }
    return kn_fail(KN_UNSUPPORTED, "%s: trainer_spec.eos_piece: there is no such piece", m->name);
}

kn_status kn_tokenizer_from_spiece(kn_tokenizer **out, const void *bytes, size_t count, const char *name)
{
    kn_status st = KN_OK;
    kn_tokenizer *t = NULL;
    model m = {.name = name, .model_type = MODEL_UNIGRAM, .end_piece = "</s>", .end_piece_bytes = 4};
    KN_REQUIRE(out && (bytes || count == 0) && name);
    *out = NULL;
    if (count > KN_TOKEN_FILE_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "%s: %zu bytes; the limit is %d", name, count, KN_TOKEN_FILE_BYTES_MAX);
    t = kn_alloc(sizeof *t);
    if (!t) KN_TRY(KN_NOMEM);
    for (int i = 0; i < 256; i++) t->byte_ids[i] = -1;
    t->spiece = true;
    t->float_scores = true;
    t->rules.add_dummy_prefix = t->rules.remove_extra_whitespaces = t->rules.escape_whitespaces = true;
    m.tokenizer = t;

    KN_TRY(read_messages(&m, count > 0 ? bytes : (const void *)"", count));
    if (m.model_type != MODEL_UNIGRAM)
        KN_TRY(kn_fail(KN_UNSUPPORTED, "%s: trainer_spec.model_type: %llu; only unigram (1) is supported", name,
                       (unsigned long long)m.model_type));
    t->piece_count = t->vocabulary = (int32_t)m.piece_count;
    if (m.charsmap_bytes > 0)
        st = kn_token_charsmap_parse(&t->rules.charsmap, m.charsmap, m.charsmap_bytes,
                                     "normalizer_spec.precompiled_charsmap");
    if (st != KN_OK) KN_TRY(kn_fail_context(st, "%s", name));
    KN_TRY(assign_special_pieces(&m));
    KN_TRY(build_pieces(&m));
    KN_TRY(assign_end(&m));
    *out = t;
    t = NULL;

fail:
    kn_free(m.pieces);
    kn_tokenizer_close(&t);
    return st;
}
