/* SPDX-License-Identifier: Apache-2.0
 *
 * How one forward of the transformer is divided over the ranks of a group.
 *
 *   ranks      0   1   2   3 │ 4   5   6   7        two branch groups of four
 *   sequences  job A +, B +  │ job A -, B -         of each: a quarter of the rows
 *
 * Every rank holds a contiguous share of the rows of its sequences, and everything but self-attention works on that
 * share alone. Before self-attention rows are exchanged for heads (Jacobs et al. 2023, arXiv 2309.14509): a rank then
 * holds some heads of all rows, and shares of heads differ by one at most. The other two exchanges of a forward are its
 * end, where every rank is given every velocity, and nothing else.
 *
 * Guidance branches go to different ranks where the degree is even and every job of the pack has both: they never meet
 * before the end, so half as many ranks exchange, and fewer heads are left over.
 *
 * Bytes this rank sends in a forward, with P ranks in its branch group, its rows s and heads a of S and A, D wide:
 *   layers * bytes(type) * (3 s D (1 - a/A) + (S - s) D a/A)    q, k, v there; the result back
 *   + 4 * s * 4 C * (ranks - 1)                                  velocity, float32                                */
#ifndef KN_ENGINE_SPLIT_H
#define KN_ENGINE_SPLIT_H

#include "engine/comm.h"
#include "engine/pack.h"

typedef struct kn_split {
    kn_group all;       /* every rank of the forward */
    kn_group rows;      /* those that share this rank's sequences */
    int32_t branches;   /* branch groups: 1, or 2 */
    int32_t branch;     /* this rank's; it has the sequences with index % branches == branch */
    kn_share heads;     /* of self-attention */
    int32_t heads_wide; /* bytes of one head of a row */
} kn_split;

/* `group` NULL or of one: not divided. `heads` of `head_bytes` each. */
kn_split kn_split_of(const kn_group *group, const kn_dit_sequence *sequences, int32_t count, int32_t heads,
                     size_t head_bytes);

static inline bool kn_split_is_whole(const kn_split *split)
{
    return split->all.size == 1;
}

/* This rank's sequences, in order; returns their number. */
int32_t kn_split_select(const kn_split *split, const kn_dit_sequence *sequences, int32_t count, kn_dit_sequence *out);

/* rows: [pack->rows, all heads]; whole: [pack->whole_rows, this rank's heads]. Done after kn_comm_finish. */
kn_status kn_split_to_heads(const kn_split *split, const kn_pack *pack, kn_matrix rows, kn_matrix whole);
kn_status kn_split_to_rows(const kn_split *split, const kn_pack *pack, kn_matrix whole, kn_matrix rows);

/* own: this rank's rows of its sequences, as in `pack`; all: [rows of all sequences], in the order given. Finishes. */
kn_status kn_split_gather(const kn_split *split, const kn_pack *pack, const kn_dit_sequence *sequences, int32_t count,
                          kn_matrix own, kn_matrix all);

/* The formula above, exactly, for this rank; `width` elements of `dtype` in a row, `channels` of the velocity. */
uint64_t kn_split_bytes(const kn_split *split, const kn_pack *pack, int32_t layers, int64_t width, kn_dtype dtype,
                        int32_t channels);

#endif
