/* SPDX-License-Identifier: Apache-2.0
 *
 * Between a latent (channels, frames, height, width) and rows of 1x2x2 patches.
 * One tile is one line of patches: two lines of pixels of every channel, and as
 * many rows as the line has patches. The two directions nest differently
 * (ops.h): channel slowest going in, channel fastest coming out. */
#include "kernels/cpu/rowwise.h"

enum { GROUP = 16 }; /* channels */

/* One row, GROUP channels at a time: gathered as f32, then rounded by vectors. */
KN_INLINE void patchify_row(void *out, const float *pixel, int64_t width, int64_t plane, int64_t channels,
                            kn_dtype dtype)
{
    float patch[GROUP * 4] = {0};
    for (int64_t begin = 0; begin < channels; begin += GROUP) {
        int64_t count = smaller(GROUP, channels - begin);
        for (int64_t c = 0; c < count; c++, pixel += plane) {
            memcpy(patch + 4 * c, pixel, 2 * sizeof *patch);
            memcpy(patch + 4 * c + 2, pixel + width, 2 * sizeof *patch);
        }
        int64_t i = 0;
        for (; i + VL <= 4 * count; i += VL) v_write(out, dtype, 4 * begin + i, v_load(patch + i));
        if (i < 4 * count) v_write_n(out, dtype, 4 * begin + i, v_load(patch + i), 4 * count - i);
    }
}

static void patchify_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const kn_patchify_args *args = context;
    int64_t width = args->w;
    int64_t across = width / 2, down = args->h / 2;
    int64_t frame = tile / down, y = tile % down;
    int64_t plane = (int64_t)args->t * args->h * width; /* elements of one channel */
    const float *line = args->latent + (frame * args->h + 2 * y) * width;
    for (int64_t x = 0; x < across; x++) {
        void *out = kn_row(&args->out, tile * across + x);
        if (args->out.dtype == KN_F32)
            patchify_row(out, line + 2 * x, width, plane, args->channels, KN_F32);
        else
            patchify_row(out, line + 2 * x, width, plane, args->channels, KN_BF16);
    }
}

/* Ten bytes a row once per forward: one thread, counting up. */
kn_status KN_TIERED(kn_pack_rows)(kn_stream *stream, const kn_pack_rows_args *args)
{
    (void)stream;
    for (int32_t s = 0; s < args->sequences; s++) {
        const int32_t h = args->height[s], w = args->width[s];
        int32_t x = args->first[s] % w, y = args->first[s] / w % h, t = args->first[s] / w / h;
        for (int32_t r = args->offsets[s]; r < args->offsets[s + 1]; r++) {
            if (args->sequence) args->sequence[r] = s;
            if (args->positions) args->positions[r] = (kn_position){{(uint16_t)t, (uint16_t)y, (uint16_t)x}};
            if (++x < w) continue;
            x = 0;
            if (++y < h) continue;
            y = 0;
            t++;
        }
    }
    return KN_OK;
}

kn_status KN_TIERED(kn_patchify)(kn_stream *stream, const kn_patchify_args *args)
{
    assert(args->h % 2 == 0 && args->w % 2 == 0);
    assert(args->out.rows == (int64_t)args->t * (args->h / 2) * (args->w / 2));
    assert(args->out.cols == (int64_t)args->channels * 4);
    kn_patchify_args job = *args;
    kn_cpu_run(stream, (int64_t)args->t * (args->h / 2), patchify_tile, &job);
    return KN_OK;
}

/* Channel by channel along the line, so that writes are consecutive; the rows of
 * one line, a few ten kilobytes, stay in cache while they are read column-wise. */
KN_INLINE void unpatchify_line(const kn_unpatchify_args *args, int64_t line, kn_dtype dtype)
{
    int64_t width = args->w, channels = args->channels;
    int64_t across = width / 2, down = args->h / 2;
    int64_t frame = line / down, y = line % down;
    int64_t plane = (int64_t)args->t * args->h * width; /* elements of one channel */
    float *first = args->latent + (frame * args->h + 2 * y) * width;
    for (int64_t c = 0; c < channels; c++) {
        float *upper = first + c * plane, *lower = upper + width;
        for (int64_t x = 0; x < across; x++) {
            const void *row = kn_row(&args->x, line * across + x);
            upper[2 * x] = row_element(row, dtype, c);
            upper[2 * x + 1] = row_element(row, dtype, channels + c);
            lower[2 * x] = row_element(row, dtype, 2 * channels + c);
            lower[2 * x + 1] = row_element(row, dtype, 3 * channels + c);
        }
    }
}

static void unpatchify_tile(void *context, int64_t tile, int worker)
{
    (void)worker;
    const kn_unpatchify_args *args = context;
    if (args->x.dtype == KN_F32)
        unpatchify_line(args, tile, KN_F32);
    else
        unpatchify_line(args, tile, KN_BF16);
}

kn_status KN_TIERED(kn_unpatchify)(kn_stream *stream, const kn_unpatchify_args *args)
{
    assert(args->h % 2 == 0 && args->w % 2 == 0);
    assert(args->x.rows == (int64_t)args->t * (args->h / 2) * (args->w / 2));
    assert(args->x.cols == (int64_t)args->channels * 4);
    kn_unpatchify_args job = *args;
    kn_cpu_run(stream, (int64_t)args->t * (args->h / 2), unpatchify_tile, &job);
    return KN_OK;
}
