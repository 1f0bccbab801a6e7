/* SPDX-License-Identifier: Apache-2.0
 *
 * One block of normal values, mapped repeatedly; see weights_synthetic.h. */
#define _GNU_SOURCE /* memfd_create */
#include "engine/weights_synthetic.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/half.h"
#include "base/mem.h"
#include "engine/safetensors.h"

/* A multiple of every page size in use, and small enough to give thousands of starting places. */
enum { START_BYTES = 65536 };

struct kn_synthetic {
    char *window;        /* [window_bytes], the block over and over */
    size_t window_bytes; /* largest tensor plus one block, for the starting place */
    size_t block_bytes;
    kn_dtype dtype;
};

/* SplitMix64 (Steele, Lea, Flood 2014): the value at a counter, without state. */
static uint64_t mix(uint64_t counter)
{
    uint64_t z = counter + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Box-Muller on the two halves of one counter value; the first uniform is in (0, 1]. */
static void normal_pair(uint64_t seed, uint64_t index, float deviation, float pair[2])
{
    uint64_t bits = mix(mix(seed) + index);
    double radius = sqrt(-2.0 * log(((double)(bits >> 32) + 1.0) * 0x1p-32)) * deviation;
    double angle = 6.283185307179586 * ((double)(bits & 0xffffffffu) * 0x1p-32);
    pair[0] = (float)(radius * cos(angle));
    pair[1] = (float)(radius * sin(angle));
}

/* Round to nearest even; underflows to subnormals and overflows to infinity as IEEE 754 asks. */
static uint16_t half_from_float(float value)
{
    uint32_t bits = kn_float_bits(value);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        /* Below 2^-14 a half counts in steps of 2^-24. */
        return (uint16_t)(sign | (uint16_t)lrintf(kn_float_from_bits(magnitude) * 0x1p24f));
    }
    uint32_t rebased = magnitude - 0x38000000u;
    return (uint16_t)(sign | (uint16_t)((rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13));
}

static void fill(char *block, float deviation, kn_dtype dtype, uint64_t seed)
{
    float *floats = (float *)(void *)block;
    uint16_t *halves = (uint16_t *)(void *)block;
    for (int64_t i = 0; i < KN_SYNTHETIC_BLOCK_ELEMENTS; i += 2) {
        float pair[2];
        normal_pair(seed, (uint64_t)i, deviation, pair);
        for (int64_t k = 0; k < 2; k++) {
            if (dtype == KN_F32)
                floats[i + k] = pair[k];
            else
                halves[i + k] = dtype == KN_BF16 ? kn_bf16_from_float(pair[k]) : half_from_float(pair[k]);
        }
    }
}

static kn_status map_window(kn_synthetic *synthetic, int file)
{
    size_t bytes = (size_t)KN_SYNTHETIC_TENSOR_BYTES_MAX + synthetic->block_bytes;
    void *range = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return kn_fail(KN_NOMEM, "synthetic weights: cannot reserve %zu bytes of addresses: %s", bytes,
                       strerror(errno));
    synthetic->window = range;
    synthetic->window_bytes = bytes;
    for (size_t at = 0; at < bytes; at += synthetic->block_bytes) {
        void *place = synthetic->window + at;
        if (mmap(place, synthetic->block_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED)
            return kn_fail(KN_NOMEM, "synthetic weights: cannot map the block at %zu of %zu bytes: %s", at, bytes,
                           strerror(errno));
    }
    return KN_OK;
}

kn_status kn_synthetic_create(kn_synthetic **out, float deviation, kn_dtype dtype, uint64_t seed)
{
    KN_REQUIRE(deviation >= 0 && isfinite(deviation));
    KN_REQUIRE(dtype == KN_F32 || dtype == KN_BF16 || dtype == KN_F16);
    kn_status st = KN_OK;
    int file = -1;
    kn_synthetic *synthetic = kn_alloc(sizeof *synthetic);
    if (!synthetic) return KN_NOMEM;
    synthetic->dtype = dtype;
    synthetic->block_bytes = (size_t)KN_SYNTHETIC_BLOCK_ELEMENTS * kn_dtype_bytes(dtype);
    file = memfd_create("kinora-synthetic-weights", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)synthetic->block_bytes) != 0) {
        st = kn_fail(KN_IO, "synthetic weights: no memory file of %zu bytes: %s", synthetic->block_bytes,
                     strerror(errno));
        goto fail;
    }
    void *block = mmap(NULL, synthetic->block_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (block == MAP_FAILED) {
        st = kn_fail(KN_NOMEM, "synthetic weights: cannot map %zu bytes: %s", synthetic->block_bytes, strerror(errno));
        goto fail;
    }
    fill(block, deviation, dtype, seed);
    munmap(block, synthetic->block_bytes);
    KN_TRY(map_window(synthetic, file));
    close(file);
    *out = synthetic;
    return KN_OK;

fail:
    if (file >= 0) close(file);
    kn_synthetic_destroy(&synthetic);
    return st;
}

void kn_synthetic_destroy(kn_synthetic **synthetic)
{
    if (!synthetic || !*synthetic) return;
    if ((*synthetic)->window) munmap((*synthetic)->window, (*synthetic)->window_bytes);
    kn_free(*synthetic);
    *synthetic = NULL;
}

kn_status kn_synthetic_view(const kn_synthetic *synthetic, const char *name, int32_t rank, const int64_t *shape,
                            kn_tensor *out)
{
    int64_t count;
    int64_t limit = KN_SYNTHETIC_TENSOR_BYTES_MAX / (int64_t)kn_dtype_bytes(synthetic->dtype);
    if (!kn_shape_count(rank, shape, &count) || count > limit) {
        char text[KN_SHAPE_TEXT_MAX];
        return kn_fail(KN_INVALID, "synthetic weights: tensor %s %s has more than %" PRId64 " elements", name,
                       kn_shape_text(text, rank, shape), limit);
    }
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    size_t start = (size_t)(mix(hash) % (synthetic->block_bytes / START_BYTES)) * START_BYTES;
    *out = (kn_tensor){.data = synthetic->window + start, .dtype = synthetic->dtype, .rank = rank};
    if (rank > 0) memcpy(out->shape, shape, (size_t)rank * sizeof *shape);
    return KN_OK;
}
