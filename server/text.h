/* SPDX-License-Identifier: Apache-2.0
 *
 * A bounded text under construction: into the caller's storage, or growing up to a limit.
 *
 * Appending never fails in the middle of a writer: the first append that does not fit (or finds no memory) leaves the
 * text as it was, and every later one does nothing. The writer asks once, at the end, with kn_text_status. Not
 * thread-safe; one text belongs to one thread at a time. */
#ifndef KN_SERVER_TEXT_H
#define KN_SERVER_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct kn_text {
    char *bytes;      /* [count], then a NUL; NULL in a growing text that is still empty */
    size_t count;     /* without the NUL */
    size_t capacity;  /* of `bytes`, with room for the NUL */
    size_t limit;     /* most `count` may become */
    bool fixed;       /* `bytes` is the caller's */
    kn_status status; /* the first failure */
} kn_text;

/* Writes into storage[bytes], of which one byte is the NUL. */
kn_text kn_text_fixed(char *storage, size_t bytes);
/* Grows by kn_alloc up to `limit` bytes. */
kn_text kn_text_growing(size_t limit);

void kn_text_append(kn_text *text, const void *bytes, size_t count);
void kn_text_string(kn_text *text, const char *string);
void kn_text_format(kn_text *text, const char *format, ...) KN_PRINTF(2, 3);

/* KN_OK; KN_INVALID: the limit would have been passed; KN_NOMEM. The failure is described again for kn_fail_message. */
kn_status kn_text_status(const kn_text *text);

/* Forgets the content and a failure, keeps the memory. */
void kn_text_clear(kn_text *text);
/* The content as a kn_alloc'ed string ended by a NUL, now the caller's; the text is empty afterwards. NULL without
 * memory. For growing texts only. */
char *kn_text_take(kn_text *text);
/* Frees a growing text's memory. Accepts NULL. */
void kn_text_release(kn_text *text);

/* Unicode code points of a UTF-8 text; -1 when it is not UTF-8 (RFC 3629: no surrogates, no overlong forms) or has a
 * NUL. */
ptrdiff_t kn_text_characters(const char *bytes, size_t count);

#endif
