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

/* Rows are written a line at a time through a small host buffer: no allocation inside a step. */
enum { LINE_MAX = 4096 };

kn_status kn_pack_rows(const kn_pack *pack, const kn_dit_sequence *sequences, kn_stream *stream, int32_t *row_sequence,
                       kn_position *positions)
{
    kn_status st = KN_OK;
    int32_t index[LINE_MAX];
    kn_position line[LINE_MAX];
    int64_t row = 0;
    for (int i = 0; i < pack->sequences; i++) {
        const int64_t rows = pack->row_offsets[i + 1] - pack->row_offsets[i];
        const int32_t h = sequences[i].h / 2, w = sequences[i].w / 2;
        for (int64_t first = 0; first < rows; first += LINE_MAX) {
            const int64_t count = rows - first < LINE_MAX ? rows - first : LINE_MAX;
            for (int64_t j = 0; j < count; j++) {
                const int64_t token = pack->first[i] + first + j;
                index[j] = i;
                line[j] = (kn_position){
                    {(uint16_t)(token / ((int64_t)h * w)), (uint16_t)(token / w % h), (uint16_t)(token % w)}};
            }
            KN_TRY(kn_stream_upload(stream, row_sequence + row, index, (size_t)count * sizeof *index));
            KN_TRY(kn_stream_upload(stream, positions + row, line, (size_t)count * sizeof *line));
            KN_TRY(kn_stream_synchronize(stream)); /* the buffers are reused */
            row += count;
        }
    }
fail:
    return st;
}
