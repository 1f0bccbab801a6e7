/* SPDX-License-Identifier: Apache-2.0
 *
 * Embeddings: of token ids, by table; of timesteps, by sinusoids. */
#include <assert.h>
#include <math.h>

#include "kernels/ref/ref.h"

kn_status kn_embed_ref(kn_stream *stream, const kn_embed_args *args)
{
    (void)stream;
    for (int64_t r = 0; r < args->out.rows; r++) {
        assert(args->ids[r] >= 0 && args->ids[r] < args->table.rows);
        for (int64_t c = 0; c < args->out.cols; c++)
            kn_ref_set(&args->out, r, c, kn_ref_get(&args->table, args->ids[r], c));
    }
    return KN_OK;
}

kn_status kn_timestep_embed_ref(kn_stream *stream, const kn_timestep_embed_args *args)
{
    (void)stream;
    const int64_t half = args->out.cols / 2;
    for (int64_t r = 0; r < args->out.rows; r++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = args->timesteps[r] * pow(10000, -(double)i / (double)half);
            kn_ref_set(&args->out, r, i, cos(angle));
            kn_ref_set(&args->out, r, half + i, sin(angle));
        }
    }
    return KN_OK;
}
