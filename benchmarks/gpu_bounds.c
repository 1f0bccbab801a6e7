/* SPDX-License-Identifier: Apache-2.0
 *
 * A GPU's ceilings, measured: what its own copy moves and what the vendor's library multiplies. */
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/mem.h"
#include "benchmarks/gpu.h"

enum { SIDE = 8192, NORMAL_BLOCK = 1 << 20 };

static void put(void *data, kn_dtype dtype, int64_t index, float value)
{
    if (dtype == KN_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = kn_bf16_from_float(value);
}

void kn_gpu_normal(void *out, int64_t count, kn_dtype dtype)
{
    uint32_t state = 1;
    const int64_t block = count < NORMAL_BLOCK ? count : NORMAL_BLOCK;
    for (int64_t i = 0; i < block; i++) { /* Box and Muller 1958 */
        state = state * 1664525u + 1013904223u;
        const double radius = sqrt(-2 * log(((double)(state >> 8) + 0.5) / (1 << 24)));
        state = state * 1664525u + 1013904223u;
        put(out, dtype, i, (float)(radius * cos(6.283185307179586 * (state >> 8) / (1 << 24))));
    }
    const size_t bytes = kn_dtype_bytes(dtype);
    for (int64_t i = block; i < count; i += block)
        memcpy((char *)out + (size_t)i * bytes, out, (size_t)(count - i < block ? count - i : block) * bytes);
}

static kn_status matmul_rate(kn_gpu *gpu, kn_stream *stream, kn_dtype dtype, double *rate)
{
    kn_status st = KN_OK;
    kn_gpu_times times;
    kn_device *device = kn_stream_device(stream);
    const size_t bytes = (size_t)SIDE * SIDE * kn_dtype_bytes(dtype);
    void *block[3] = {NULL, NULL, NULL}, *host = kn_alloc(bytes);
    if (!host) return KN_NOMEM;
    kn_gpu_normal(host, (int64_t)SIDE * SIDE, dtype);
    for (int i = 0; i < 3; i++) {
        KN_TRY(kn_device_alloc(device, &block[i], bytes));
        KN_TRY(kn_stream_upload(stream, block[i], host, bytes));
    }
    KN_TRY(kn_stream_synchronize(stream));
    KN_TRY(kn_gpu_matmul(gpu, &times, SIDE, SIDE, SIDE, dtype, block[0], block[1], block[2]));
    *rate = 2.0 * SIDE * SIDE * SIDE / times.median;

fail:
    for (int i = 0; i < 3; i++) kn_device_free(device, block[i]);
    kn_free(host);
    return st;
}

kn_status kn_gpu_bounds(kn_gpu *gpu, kn_stream *stream, kn_roofline *out)
{
    kn_status st = KN_OK;
    *out = (kn_roofline){0};
    KN_TRY(kn_gpu_copy_rate(gpu, &out->memory_bytes));
    KN_TRY(matmul_rate(gpu, stream, KN_F32, &out->f32_rate));
    KN_TRY(matmul_rate(gpu, stream, KN_BF16, &out->bf16_rate));

fail:
    return st;
}
