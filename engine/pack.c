/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/pack.h"

int64_t kn_sequence_rows(const kn_dit_sequence *q)
{
    return (int64_t)q->t * (q->h / 2) * (q->w / 2);
}

kn_status kn_pack_build(kn_pack *out, const kn_dit_sequence *sequences, int32_t count, const kn_group *group)
{
    if (count < 1 || count > KN_PACK_SEQUENCES_MAX)
        return kn_fail(KN_INVALID, "a pack has %d sequences; it must be 1 to %d", count, KN_PACK_SEQUENCES_MAX);
    *out = (kn_pack){.sequences = count};
    for (int i = 0; i < count; i++) {
        const kn_dit_sequence *q = &sequences[i];
        if (q->t < 1 || q->h < 2 || q->w < 2 || q->h % 2 != 0 || q->w % 2 != 0)
            return kn_fail(KN_INVALID,
                           "sequence %d is %d x %d x %d latents; height and width must be even and positive", i, q->t,
                           q->h, q->w);
        const int64_t rows = kn_sequence_rows(q);
        const kn_share share = group ? kn_share_of(rows, group->size, group->index) : (kn_share){0, rows};
        out->rows += share.count;
        out->whole_rows += rows;
        out->context_rows += q->context->rows;
        if (out->whole_rows > INT32_MAX || out->context_rows > INT32_MAX)
            return kn_fail(KN_INVALID, "a pack has more than %d rows", INT32_MAX);
        out->first[i] = (int32_t)share.first;
        out->row_offsets[i + 1] = (int32_t)out->rows;
        out->whole_offsets[i + 1] = (int32_t)out->whole_rows;
        out->context_offsets[i + 1] = (int32_t)out->context_rows;
        out->tail_log_weight[i] = q->context->tail_log_weight;
        out->timesteps[i] = q->timestep;
    }
    return KN_OK;
}

kn_status kn_pack_rows(const kn_pack *pack, const kn_dit_sequence *sequences, kn_stream *stream, int32_t *row_sequence,
                       kn_position *positions)
{
    int32_t height[KN_PACK_SEQUENCES_MAX], width[KN_PACK_SEQUENCES_MAX];
    for (int i = 0; i < pack->sequences; i++) {
        height[i] = sequences[i].h / 2;
        width[i] = sequences[i].w / 2;
    }
    return kn_device_ops(kn_stream_device(stream))
        ->pack_rows(stream, &(kn_pack_rows_args){.sequence = row_sequence,
                                                 .positions = positions,
                                                 .sequences = pack->sequences,
                                                 .offsets = pack->row_offsets,
                                                 .first = pack->first,
                                                 .height = height,
                                                 .width = width});
}
