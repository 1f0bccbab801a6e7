/* SPDX-License-Identifier: Apache-2.0
 *
 * Between a latent and its tokens, and where a token lies. One patch is one frame deep and 2x2 wide; the
 * way in keeps channels slowest, the way out keeps them fastest. */
#include "kernels/ref/ref.h"

typedef struct latent_shape {
    int64_t channels, t, h, w;
} latent_shape;

static int64_t latent_index(const latent_shape *s, int64_t c, int64_t t, int64_t y, int64_t x)
{
    return ((c * s->t + t) * s->h + y) * s->w + x;
}

/* Row of the patch that holds pixel (y, x) of frame t. */
static int64_t token(const latent_shape *s, int64_t t, int64_t y, int64_t x)
{
    return (t * (s->h / 2) + y / 2) * (s->w / 2) + x / 2;
}

kn_status kn_pack_rows_ref(kn_stream *stream, const kn_pack_rows_args *args)
{
    (void)stream;
    for (int32_t s = 0; s < args->sequences; s++)
        for (int32_t r = args->offsets[s]; r < args->offsets[s + 1]; r++) {
            const int64_t place = (int64_t)args->first[s] + r - args->offsets[s], w = args->width[s];
            const int64_t y = place / w % args->height[s], t = place / w / args->height[s];
            if (args->sequence) args->sequence[r] = s;
            if (args->positions) args->positions[r] = (kn_position){{(uint16_t)t, (uint16_t)y, (uint16_t)(place % w)}};
        }
    return KN_OK;
}

kn_status kn_patchify_ref(kn_stream *stream, const kn_patchify_args *args)
{
    (void)stream;
    const latent_shape s = {args->channels, args->t, args->h, args->w};
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t t = 0; t < s.t; t++)
            for (int64_t y = 0; y < s.h; y++)
                for (int64_t x = 0; x < s.w; x++)
                    kn_ref_set(&args->out, token(&s, t, y, x), (c * 2 + y % 2) * 2 + x % 2,
                               args->latent[latent_index(&s, c, t, y, x)]);
    return KN_OK;
}

kn_status kn_unpatchify_ref(kn_stream *stream, const kn_unpatchify_args *args)
{
    (void)stream;
    const latent_shape s = {args->channels, args->t, args->h, args->w};
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t t = 0; t < s.t; t++)
            for (int64_t y = 0; y < s.h; y++)
                for (int64_t x = 0; x < s.w; x++)
                    args->latent[latent_index(&s, c, t, y, x)] =
                        (float)kn_ref_get(&args->x, token(&s, t, y, x), (y % 2 * 2 + x % 2) * s.channels + c);
    return KN_OK;
}
