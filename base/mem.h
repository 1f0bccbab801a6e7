/* SPDX-License-Identifier: Apache-2.0
 *
 * The only heap allocator in the tree. It counts, so that a test can assert
 * that a denoise step allocates nothing and a run can compare its planned
 * bytes with its peak; and it can refuse the n-th request, so that a test can
 * break every allocation in turn. Thread-safe. */
#ifndef KN_BASE_MEM_H
#define KN_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Zeroed memory, aligned to 64 bytes (a cache line and the widest vector).
 * NULL when it cannot be had, and then kn_fail_message() says how much was
 * asked for. kn_alloc(0) returns a unique pointer. */
void *kn_alloc(size_t bytes);

/* As kn_alloc for count x bytes, refusing a product that overflows. */
void *kn_alloc_array(size_t count, size_t bytes);

/* Grows or shrinks; the old block stays valid when NULL is returned. New bytes
 * are zero. `pointer` may be NULL. */
void *kn_realloc(void *pointer, size_t bytes);

/* Accepts NULL. */
void kn_free(void *pointer);

/* A copy of a string, or of its first `count` bytes; ends in NUL. */
char *kn_strdup(const char *text);
char *kn_strndup(const char *text, size_t count);

/* "%s..." into a fresh string; NULL without memory. */
char *kn_format(const char *format, ...) KN_PRINTF(1, 2);

typedef struct kn_mem_stats {
    uint64_t allocations; /* calls that returned memory since start */
    uint64_t bytes;       /* bytes held now */
    uint64_t peak_bytes;  /* highest `bytes` since start or kn_mem_reset_peak() */
} kn_mem_stats;

kn_mem_stats kn_mem_read(void);
void kn_mem_reset_peak(void);

/* Fails the n-th allocation from now (1 = the next one), once; 0 switches off.
 * For tests. */
void kn_mem_fail_at(uint64_t n);

#endif
