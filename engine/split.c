/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/split.h"

enum { SPLIT_BLOCKS_MAX = KN_PACK_SEQUENCES_MAX * KN_COMM_RANKS_MAX };

/* Both branches of a job stand side by side: same latent, same size. */
static bool is_pairs(const kn_dit_sequence *sequences, int32_t count)
{
    if (count % 2 != 0) return false;
    for (int32_t i = 0; i < count; i += 2)
        if (sequences[i].latent != sequences[i + 1].latent || sequences[i].t != sequences[i + 1].t ||
            sequences[i].h != sequences[i + 1].h || sequences[i].w != sequences[i + 1].w)
            return false;
    return true;
}

kn_split kn_split_of(const kn_group *group, const kn_dit_sequence *sequences, int32_t count, int32_t heads,
                     size_t head_bytes)
{
    kn_split s = {.all = group ? *group : kn_group_alone(), .branches = 1, .heads_wide = (int32_t)head_bytes};
    s.rows = s.all;
    if (s.all.size > 1 && s.all.size % 2 == 0 && is_pairs(sequences, count)) {
        const int32_t each = s.all.size / 2;
        s.branches = 2;
        s.branch = s.all.index / each;
        s.rows = kn_group_part(&s.all, s.branch * each, each, 1);
    }
    s.heads = kn_share_of(heads, s.rows.size, s.rows.index);
    return s;
}

int32_t kn_split_select(const kn_split *split, const kn_dit_sequence *sequences, int32_t count, kn_dit_sequence *out)
{
    int32_t n = 0;
    for (int32_t i = split->branch; i < count; i += split->branches) out[n++] = sequences[i];
    return n;
}

static kn_comm_block block_of(kn_matrix m, int64_t first_row, int64_t rows, size_t first_byte, size_t bytes,
                              int32_t peer)
{
    const size_t stride = (size_t)m.stride * kn_dtype_bytes(m.dtype);
    return (kn_comm_block){.data = (char *)m.data + (size_t)first_row * stride + first_byte,
                           .rows = rows,
                           .row_bytes = bytes,
                           .stride = stride,
                           .peer = peer};
}

/* What a rank has of others' heads and what others have of its heads, for each sequence and each rank: `mine` is own
 * rows under their heads, `theirs` their rows under own heads. */
static int32_t heads_blocks(const kn_split *split, const kn_pack *pack, kn_matrix rows, kn_matrix whole,
                            kn_comm_block *mine, kn_comm_block *theirs)
{
    int32_t n = 0;
    const size_t wide = (size_t)split->heads_wide;
    const int32_t heads = (int32_t)((size_t)rows.cols * kn_dtype_bytes(rows.dtype) / wide);
    for (int32_t p = 0; p < split->rows.size; p++) {
        const kn_share h = kn_share_of(heads, split->rows.size, p);
        for (int32_t i = 0; i < pack->sequences; i++, n++) {
            const int64_t own = pack->row_offsets[i + 1] - pack->row_offsets[i];
            const int64_t all = pack->whole_offsets[i + 1] - pack->whole_offsets[i];
            const kn_share r = kn_share_of(all, split->rows.size, p);
            mine[n] = block_of(rows, pack->row_offsets[i], own, (size_t)h.first * wide, (size_t)h.count * wide,
                               split->rows.member[p]);
            theirs[n] = block_of(whole, pack->whole_offsets[i] + r.first, r.count, 0, (size_t)split->heads.count * wide,
                                 split->rows.member[p]);
        }
    }
    return n;
}

kn_status kn_split_to_heads(const kn_split *split, const kn_pack *pack, kn_matrix rows, kn_matrix whole)
{
    kn_comm_block send[SPLIT_BLOCKS_MAX], receive[SPLIT_BLOCKS_MAX];
    const int32_t n = heads_blocks(split, pack, rows, whole, send, receive);
    return kn_comm_start(split->all.comm, KN_COMM_ALL_TO_ALL, send, n, receive, n);
}

kn_status kn_split_to_rows(const kn_split *split, const kn_pack *pack, kn_matrix whole, kn_matrix rows)
{
    kn_comm_block send[SPLIT_BLOCKS_MAX], receive[SPLIT_BLOCKS_MAX];
    const int32_t n = heads_blocks(split, pack, rows, whole, receive, send);
    return kn_comm_start(split->all.comm, KN_COMM_ALL_TO_ALL, send, n, receive, n);
}

kn_status kn_split_gather(const kn_split *split, const kn_pack *pack, const kn_dit_sequence *sequences, int32_t count,
                          kn_matrix own, kn_matrix all)
{
    kn_comm_block send[SPLIT_BLOCKS_MAX], receive[SPLIT_BLOCKS_MAX];
    const size_t bytes = (size_t)own.cols * kn_dtype_bytes(own.dtype);
    int32_t sends = 0, receives = 0;
    for (int32_t p = 0; p < split->all.size; p++) {
        const int32_t branch = p / split->rows.size, index = p % split->rows.size, rank = split->all.member[p];
        for (int32_t i = 0; i < pack->sequences; i++)
            send[sends++] =
                block_of(own, pack->row_offsets[i], pack->row_offsets[i + 1] - pack->row_offsets[i], 0, bytes, rank);
        int64_t first = 0; /* of sequence i among all */
        for (int32_t i = 0; i < count; i++) {
            const int64_t rows = kn_sequence_rows(&sequences[i]);
            const kn_share r = kn_share_of(rows, split->rows.size, index);
            if (i % split->branches == branch)
                receive[receives++] = block_of(all, first + r.first, r.count, 0, bytes, rank);
            first += rows;
        }
    }
    kn_status st = kn_comm_start(split->all.comm, KN_COMM_ALL_GATHER, send, sends, receive, receives);
    return st == KN_OK ? kn_comm_finish(split->all.comm) : st;
}

uint64_t kn_split_bytes(const kn_split *split, const kn_pack *pack, int32_t layers, int64_t width, kn_dtype dtype,
                        int32_t channels)
{
    const uint64_t row = (uint64_t)width * kn_dtype_bytes(dtype), rows = (uint64_t)pack->rows;
    const uint64_t others = (uint64_t)pack->whole_rows - rows;
    const uint64_t heads = (uint64_t)split->heads.count * (uint64_t)split->heads_wide; /* bytes of a row that stay */
    const uint64_t layer = 3 * rows * (row - heads) + others * heads;
    return (uint64_t)layers * layer + rows * 4 * (uint64_t)channels * sizeof(float) * (uint64_t)(split->all.size - 1);
}
