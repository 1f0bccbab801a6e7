/* SPDX-License-Identifier: Apache-2.0
 *
 * A pack: the rows of several sequences laid end to end, and what each row must
 * know of its sequence. Where ranks share the work (engine/split.h), a rank holds
 * a contiguous share of every sequence. Pure bookkeeping; the transformer runs it. */
#ifndef KN_ENGINE_PACK_H
#define KN_ENGINE_PACK_H

#include "engine/dit_wan.h"

enum { KN_PACK_SEQUENCES_MAX = 64 };

typedef struct kn_pack {
    int32_t sequences;
    int64_t rows;       /* held here */
    int64_t whole_rows; /* of the whole sequences; the same when nothing is shared */
    int64_t context_rows;
    int32_t row_offsets[KN_PACK_SEQUENCES_MAX + 1];     /* first row of each sequence, of those held here */
    int32_t whole_offsets[KN_PACK_SEQUENCES_MAX + 1];   /* first row of each whole sequence */
    int32_t first[KN_PACK_SEQUENCES_MAX];               /* token of each sequence that is its first row here */
    int32_t context_offsets[KN_PACK_SEQUENCES_MAX + 1]; /* first text row of each sequence */
    float tail_log_weight[KN_PACK_SEQUENCES_MAX];
    float timesteps[KN_PACK_SEQUENCES_MAX];
} kn_pack;

/* Tokens of a sequence: one per 1x2x2 patch. */
int64_t kn_sequence_rows(const kn_dit_sequence *sequence);

/* The share of the member with this group's index; NULL: all. KN_INVALID: no sequence or more than
 * KN_PACK_SEQUENCES_MAX, an odd or empty size, more than 2^31 rows. */
kn_status kn_pack_build(kn_pack *out, const kn_dit_sequence *sequences, int32_t count, const kn_group *rows);

/* Fills the per-row tables in device memory: sequence index and (frame, row, column). */
kn_status kn_pack_rows(const kn_pack *pack, const kn_dit_sequence *sequences, kn_stream *stream, int32_t *row_sequence,
                       kn_position *positions);

#endif
