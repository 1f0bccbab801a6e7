/* SPDX-License-Identifier: Apache-2.0
 *
 * A static byte trie: 9 bytes a node. The sorted pieces below one node are one
 * range, so a breadth-first walk over ranges emits nodes whose children are
 * neighbours; a child is then found by bisection over its siblings. */
#include "engine/token_internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static int compare_pieces(const void *a, const void *b)
{
    const kn_token_piece *p = a;
    const kn_token_piece *q = b;
    int order = memcmp(p->text, q->text, p->bytes < q->bytes ? p->bytes : q->bytes);
    if (order != 0) return order;
    if (p->bytes != q->bytes) return p->bytes < q->bytes ? -1 : 1;
    return p->id < q->id ? -1 : p->id > q->id;
}

/* One node more for every byte that a piece does not share with its predecessor. */
static size_t count_nodes(const kn_token_piece *pieces, size_t count)
{
    size_t nodes = 1;
    for (size_t i = 0; i < count; i++) {
        size_t shared = 0;
        if (i > 0) {
            size_t least = pieces[i].bytes < pieces[i - 1].bytes ? pieces[i].bytes : pieces[i - 1].bytes;
            while (shared < least && pieces[i].text[shared] == pieces[i - 1].text[shared]) shared++;
        }
        nodes += pieces[i].bytes - shared;
    }
    return nodes;
}

/* The pieces below one node. */
typedef struct range {
    uint32_t low, high;
    uint32_t depth; /* bytes from the root */
} range;

static void fill_nodes(kn_token_trie *trie, const kn_token_piece *pieces, size_t count, range *ranges)
{
    uint32_t used = 1;
    ranges[0] = (range){.low = 0, .high = (uint32_t)count};
    trie->label[0] = 0;
    for (uint32_t node = 0; node < trie->node_count; node++) {
        range r = ranges[node];
        trie->first[node] = used;
        trie->id[node] = -1;
        for (; r.low < r.high && pieces[r.low].bytes == r.depth; r.low++) {
            if (r.depth > 0) trie->id[node] = pieces[r.low].id;
        }
        while (r.low < r.high) {
            uint8_t label = (uint8_t)pieces[r.low].text[r.depth];
            uint32_t end = r.low + 1;
            while (end < r.high && (uint8_t)pieces[end].text[r.depth] == label) end++;
            trie->label[used] = label;
            ranges[used++] = (range){.low = r.low, .high = end, .depth = r.depth + 1};
            r.low = end;
        }
    }
    trie->first[trie->node_count] = used;
}

kn_status kn_token_trie_build(kn_token_trie *trie, kn_token_piece *pieces, size_t count)
{
    kn_status st = KN_OK;
    range *ranges = NULL;
    *trie = (kn_token_trie){0};
    if (count > 1) qsort(pieces, count, sizeof *pieces, compare_pieces);
    size_t nodes = count_nodes(pieces, count);
    if (nodes >= UINT32_MAX) return kn_fail(KN_UNSUPPORTED, "vocabulary needs %zu trie nodes", nodes);

    trie->node_count = (uint32_t)nodes;
    trie->first = kn_alloc_array(nodes + 1, sizeof *trie->first);
    trie->id = kn_alloc_array(nodes, sizeof *trie->id);
    trie->label = kn_alloc_array(nodes, sizeof *trie->label);
    ranges = kn_alloc_array(nodes, sizeof *ranges);
    if (!trie->first || !trie->id || !trie->label || !ranges) KN_TRY(KN_NOMEM);
    fill_nodes(trie, pieces, count, ranges);

fail:
    kn_free(ranges);
    if (st != KN_OK) kn_token_trie_free(trie);
    return st;
}

void kn_token_trie_free(kn_token_trie *trie)
{
    kn_free(trie->first);
    kn_free(trie->id);
    kn_free(trie->label);
    *trie = (kn_token_trie){0};
}

uint32_t kn_token_trie_child(const kn_token_trie *trie, uint32_t node, uint8_t byte)
{
    if (trie->node_count == 0) return 0;
    uint32_t low = trie->first[node];
    uint32_t high = trie->first[node + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (trie->label[middle] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low < trie->first[node + 1] && trie->label[low] == byte ? low : 0;
}

size_t kn_token_trie_longest(const kn_token_trie *trie, const char *text, size_t bytes, int32_t *id)
{
    size_t longest = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < bytes && (node = kn_token_trie_child(trie, node, (uint8_t)text[i])) != 0; i++) {
        if (trie->id[node] < 0) continue;
        longest = i + 1;
        *id = trie->id[node];
    }
    return longest;
}

int32_t kn_token_trie_find(const kn_token_trie *trie, const char *text, size_t bytes)
{
    uint32_t node = 0;
    if (bytes == 0) return -1;
    for (size_t i = 0; i < bytes; i++) {
        node = kn_token_trie_child(trie, node, (uint8_t)text[i]);
        if (node == 0) return -1;
    }
    return trie->id[node];
}
