/* SPDX-License-Identifier: Apache-2.0
 *
 * A bump allocator over memory somebody else owns: activations of one step are
 * taken from it and given back together. With `base` NULL it only counts, so
 * the code that lays out a step also computes how large its arena must be, and
 * the two can never disagree. Not thread-safe; one owner. */
#ifndef KN_BASE_ARENA_H
#define KN_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

enum { KN_ARENA_ALIGN = 64 };

typedef struct kn_arena {
    char *base;      /* NULL: count only */
    size_t capacity; /* bytes at base */
    size_t used;
    size_t peak;
} kn_arena;

static inline kn_arena kn_arena_view(void *base, size_t capacity)
{
    kn_arena arena = {(char *)base, capacity, 0, 0};
    return arena;
}

/* `bytes` bytes at the next multiple of KN_ARENA_ALIGN. NULL when counting or
 * when the arena is too small; `peak` then tells what would have been enough. */
static inline void *kn_arena_take(kn_arena *arena, size_t bytes)
{
    size_t start = (arena->used + KN_ARENA_ALIGN - 1) / KN_ARENA_ALIGN * KN_ARENA_ALIGN;
    arena->used = start + bytes;
    if (arena->used > arena->peak) arena->peak = arena->used;
    return arena->base && arena->used <= arena->capacity ? arena->base + start : NULL;
}

static inline size_t kn_arena_mark(const kn_arena *arena)
{
    return arena->used;
}

static inline void kn_arena_reset(kn_arena *arena, size_t mark)
{
    arena->used = mark;
}

static inline int kn_arena_overflowed(const kn_arena *arena)
{
    return arena->base && arena->peak > arena->capacity;
}

#endif
