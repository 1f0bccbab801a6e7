/* SPDX-License-Identifier: Apache-2.0
 *
 * T5-family unigram tokenizer, read from `tokenizer.json` (preferred: it is what
 * transformers reads) or from `spiece.model`. Normalizer, pre-tokenizer, byte
 * fallback, added tokens and the end token come from the file. Immutable and
 * thread-safe once open. */
#ifndef KN_ENGINE_TOKEN_H
#define KN_ENGINE_TOKEN_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_tokenizer kn_tokenizer;

/* `directory` holds tokenizer.json and/or spiece.model. */
kn_status kn_tokenizer_open(kn_tokenizer **out, const char *directory);
/* From bytes, for tests and fuzzing; the bytes may be freed afterwards. */
kn_status kn_tokenizer_from_json(kn_tokenizer **out, const char *bytes, size_t count, const char *name);
kn_status kn_tokenizer_from_spiece(kn_tokenizer **out, const void *bytes, size_t count, const char *name);
void kn_tokenizer_close(kn_tokenizer **tokenizer);

int32_t kn_tokenizer_vocabulary(const kn_tokenizer *tokenizer); /* ids are below this */

/* Ids of UTF-8 `text` (need not end in NUL), the end token appended, at most `limit` in all: the text's own ids are
 * cut to limit - 1. Invalid UTF-8 is replaced by U+FFFD, not refused. *ids is kn_alloc'ed for the caller.
 * Texts above KN_TEXT_BYTES_MAX are refused. */
enum { KN_TEXT_BYTES_MAX = 1 << 20 };
kn_status kn_tokenizer_encode(const kn_tokenizer *tokenizer, const char *text, size_t bytes, int32_t limit,
                              int32_t **ids, int32_t *count);

/* The prompt cleaning of diffusers' WanPipeline without ftfy: HTML entities unescaped twice (HTML5 names, as Python's
 * html.unescape), runs of white space (\s of the regex module) become one space, ends stripped as
 * str.strip does. kn_alloc'ed. */
kn_status kn_prompt_clean(char **out, const char *text);

#endif
