/* SPDX-License-Identifier: Apache-2.0 */
#include "server/names.h"

#include <string.h>

#include "base/mem.h"

enum { FIRST_SLOTS = 16, NOBODY = 0 };

typedef struct entry {
    char name[KN_NAME_BYTES]; /* "" while the number is free */
    uint32_t next_free;       /* number + 1 of the next free entry */
} entry;

struct kn_names {
    entry *entries;  /* [span] of [room] */
    uint32_t *slots; /* [mask + 1] number + 1, or NOBODY; at most half are taken */
    size_t span, room, count, count_max, mask;
    uint32_t first_free; /* number + 1 */
};

/* FNV-1a, 64 bits. The names are ours (key ids, tenants of rows), not a client's to choose. */
static size_t hash_of(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return (size_t)(hash ^ hash >> 32);
}

kn_status kn_names_create(kn_names **out, size_t count_max)
{
    KN_REQUIRE(count_max > 0 && count_max < UINT32_MAX / 4);
    kn_names *names = kn_alloc(sizeof *names);
    if (!names) return KN_NOMEM;
    names->count_max = count_max;
    names->mask = FIRST_SLOTS - 1;
    names->slots = kn_alloc_array(FIRST_SLOTS, sizeof *names->slots);
    if (!names->slots) {
        kn_names_destroy(&names);
        return KN_NOMEM;
    }
    *out = names;
    return KN_OK;
}

void kn_names_destroy(kn_names **names)
{
    if (!names || !*names) return;
    kn_free((*names)->entries);
    kn_free((*names)->slots);
    kn_free(*names);
    *names = NULL;
}

/* The slot that has the name, or the empty one where it would go. */
static size_t slot_of(const kn_names *names, const char *name)
{
    size_t slot = hash_of(name) & names->mask;
    while (names->slots[slot] != NOBODY && strcmp(names->entries[names->slots[slot] - 1].name, name) != 0)
        slot = (slot + 1) & names->mask;
    return slot;
}

bool kn_names_find(const kn_names *names, const char *name, uint32_t *number)
{
    if (!*name) return false;
    uint32_t taken = names->slots[slot_of(names, name)];
    if (taken == NOBODY) return false;
    *number = taken - 1;
    return true;
}

static kn_status grow(kn_names *names)
{
    if (!names->first_free && names->span == names->room) {
        size_t room = names->room ? 2 * names->room : FIRST_SLOTS / 2;
        entry *entries = kn_realloc(names->entries, room * sizeof *entries);
        if (!entries) return KN_NOMEM;
        names->entries = entries;
        names->room = room;
    }
    if (2 * (names->count + 1) <= names->mask + 1) return KN_OK;
    size_t slots = 2 * (names->mask + 1);
    uint32_t *fresh = kn_alloc_array(slots, sizeof *fresh);
    if (!fresh) return KN_NOMEM;
    kn_free(names->slots);
    names->slots = fresh;
    names->mask = slots - 1;
    for (size_t i = 0; i < names->span; i++)
        if (names->entries[i].name[0]) names->slots[slot_of(names, names->entries[i].name)] = (uint32_t)i + 1;
    return KN_OK;
}

kn_status kn_names_add(kn_names *names, const char *name, uint32_t *number)
{
    size_t bytes = strlen(name) + 1;
    if (bytes == 1 || bytes > KN_NAME_BYTES) return kn_fail(KN_INVALID, "a name has 1 to %d bytes", KN_NAME_BYTES - 1);
    if (kn_names_find(names, name, number)) return KN_OK;
    if (names->count == names->count_max)
        return kn_fail(KN_UNAVAILABLE, "the table is full: it has %zu names", names->count_max);
    kn_status st = grow(names);
    if (st != KN_OK) return st;
    if (names->first_free) {
        *number = names->first_free - 1;
        names->first_free = names->entries[*number].next_free;
    } else {
        *number = (uint32_t)names->span++;
    }
    memcpy(names->entries[*number].name, name, bytes);
    names->slots[slot_of(names, name)] = *number + 1;
    names->count++;
    return KN_OK;
}

void kn_names_remove(kn_names *names, const char *name)
{
    uint32_t number;
    if (!kn_names_find(names, name, &number)) return;
    size_t hole = slot_of(names, name);
    /* Move back whoever the hole now cuts off from its first slot. */
    for (size_t next = (hole + 1) & names->mask; names->slots[next] != NOBODY; next = (next + 1) & names->mask) {
        size_t home = hash_of(names->entries[names->slots[next] - 1].name) & names->mask;
        if (((next - home) & names->mask) < ((next - hole) & names->mask)) continue;
        names->slots[hole] = names->slots[next];
        hole = next;
    }
    names->slots[hole] = NOBODY;
    names->entries[number] = (entry){.next_free = names->first_free};
    names->first_free = number + 1;
    names->count--;
}

size_t kn_names_count(const kn_names *names)
{
    return names->count;
}

size_t kn_names_span(const kn_names *names)
{
    return names->span;
}

const char *kn_names_at(const kn_names *names, uint32_t number)
{
    return number < names->span && names->entries[number].name[0] ? names->entries[number].name : NULL;
}
