/* SPDX-License-Identifier: Apache-2.0
 *
 * A pack: the rows of several sequences laid end to end, and what each row must
 * know of its sequence. Pure bookkeeping; the transformer runs it. */
#ifndef KN_ENGINE_PACK_H
#define KN_ENGINE_PACK_H

#include "engine/dit_wan.h"

enum { KN_PACK_SEQUENCES_MAX = 64 };

typedef struct kn_pack {
    int32_t sequences;
    int64_t rows;
    int64_t context_rows;
    int32_t row_offsets[KN_PACK_SEQUENCES_MAX + 1];     /* first row of each sequence */
    int32_t context_offsets[KN_PACK_SEQUENCES_MAX + 1]; /* first text row of each sequence */
    float tail_log_weight[KN_PACK_SEQUENCES_MAX];
    float timesteps[KN_PACK_SEQUENCES_MAX];
} kn_pack;

/* Tokens of a sequence: one per 1x2x2 patch. */
int64_t kn_sequence_rows(const kn_dit_sequence *sequence);

/* KN_INVALID: no sequence or more than KN_PACK_SEQUENCES_MAX, an odd or empty size, more than 2^31 rows. */
kn_status kn_pack_build(kn_pack *out, const kn_dit_sequence *sequences, int32_t count);

/* Fills the per-row tables in device memory: sequence index and (frame, row, column). */
kn_status kn_pack_rows(const kn_pack *pack, const kn_dit_sequence *sequences, kn_stream *stream, int32_t *row_sequence,
                       kn_position *positions);

#endif
