/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "base/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* The header before a block is no place for anybody else: an index of -1 into an array of small things lands in it. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FORBID(start, bytes) ASAN_POISON_MEMORY_REGION(start, bytes)
#define ALLOW(start, bytes) ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#else
#define FORBID(start, bytes) ((void)0)
#define ALLOW(start, bytes) ((void)0)
#endif

/* Each block carries its size in the 64 bytes in front of it, so that freeing
 * needs no table and the payload keeps its alignment. Large blocks come from
 * mmap: they are zero already, and a resident page exists only once touched.
 * Others come from malloc and are aligned here: glibc's aligned_alloc goes past
 * the caches of a thread and cuts every block into three. */
enum { HEADER_BYTES = 64, SLACK_BYTES = HEADER_BYTES - _Alignof(max_align_t) };
#define MMAP_BYTES ((size_t)1 << 20)

typedef struct header {
    size_t bytes;  /* payload */
    size_t mapped; /* bytes given to munmap, 0 for malloc'ed blocks */
    void *origin;  /* what malloc gave */
} header;

static atomic_uint_fast64_t allocations;
static atomic_uint_fast64_t held;
static atomic_uint_fast64_t peak;
static atomic_uint_fast64_t fail_countdown;

static int refused(void)
{
    uint64_t left = atomic_load(&fail_countdown);
    while (left != 0) {
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1)) return left == 1;
    }
    return 0;
}

static void account(size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    uint64_t now = atomic_fetch_add(&held, bytes) + bytes;
    uint64_t high = atomic_load(&peak);
    while (now > high && !atomic_compare_exchange_weak(&peak, &high, now)) {
    }
}

/* Until the block is freed, or forbidden again. */
static header *header_of(void *pointer)
{
    header *block = (header *)((char *)pointer - HEADER_BYTES);
    ALLOW(block, HEADER_BYTES);
    return block;
}

void *kn_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX / 2 || refused()) goto fail;
    size_t total = (bytes + 2 * HEADER_BYTES - 1) / HEADER_BYTES * HEADER_BYTES;
    header *block = NULL;
    void *origin = NULL;
    size_t mapped = 0;
    if (total >= MMAP_BYTES) {
        void *map = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) goto fail;
        /* Weights and activations are read in long runs: large pages spare TLB misses. */
        madvise(map, total, MADV_HUGEPAGE);
        block = map;
        mapped = total;
    } else {
        origin = malloc(HEADER_BYTES + SLACK_BYTES + bytes);
        if (!origin) goto fail;
        block = (header *)(((uintptr_t)origin + HEADER_BYTES - 1) / HEADER_BYTES * HEADER_BYTES);
        memset((char *)block + HEADER_BYTES, 0, bytes);
    }
    block->bytes = bytes;
    block->mapped = mapped;
    block->origin = origin;
    FORBID(block, HEADER_BYTES);
    account(bytes);
    return (char *)block + HEADER_BYTES;

fail:
    kn_fail(KN_NOMEM, "out of memory asking for %zu bytes", bytes);
    return NULL;
}

void *kn_alloc_array(size_t count, size_t bytes)
{
    if (bytes != 0 && count > SIZE_MAX / bytes) {
        kn_fail(KN_NOMEM, "out of memory asking for %zu x %zu bytes", count, bytes);
        return NULL;
    }
    return kn_alloc(count * bytes);
}

void *kn_realloc(void *pointer, size_t bytes)
{
    if (!pointer) return kn_alloc(bytes);
    size_t old = header_of(pointer)->bytes;
    FORBID((char *)pointer - HEADER_BYTES, HEADER_BYTES);
    void *fresh = kn_alloc(bytes);
    if (!fresh) return NULL;
    memcpy(fresh, pointer, old < bytes ? old : bytes);
    kn_free(pointer);
    return fresh;
}

void kn_free(void *pointer)
{
    if (!pointer) return;
    header *block = header_of(pointer);
    atomic_fetch_sub(&held, block->bytes);
    if (block->mapped)
        munmap(block, block->mapped);
    else
        free(block->origin);
}

char *kn_strndup(const char *text, size_t count)
{
    size_t bytes = strnlen(text, count);
    char *copy = kn_alloc(bytes + 1);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

char *kn_strdup(const char *text)
{
    return kn_strndup(text, SIZE_MAX);
}

char *kn_format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (bytes < 0) return NULL;
    char *text = kn_alloc((size_t)bytes + 1);
    if (!text) return NULL;
    va_start(arguments, format);
    vsnprintf(text, (size_t)bytes + 1, format, arguments);
    va_end(arguments);
    return text;
}

kn_mem_stats kn_mem_read(void)
{
    return (kn_mem_stats){
        .allocations = atomic_load(&allocations),
        .bytes = atomic_load(&held),
        .peak_bytes = atomic_load(&peak),
    };
}

void kn_mem_reset_peak(void)
{
    atomic_store(&peak, atomic_load(&held));
}

void kn_mem_fail_at(uint64_t n)
{
    atomic_store(&fail_countdown, n);
}
