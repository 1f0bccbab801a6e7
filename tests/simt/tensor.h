/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor maps as the executor keeps them in the 128 opaque bytes, and the swizzles. */
#ifndef KN_TESTS_SIMT_TENSOR_H
#define KN_TESTS_SIMT_TENSOR_H

#include <stdint.h>

namespace simt
{

enum { TENSOR_RANK_MAX = 5, TENSOR_MAGIC = 0x6b6e746d };

struct tensor {
    uint32_t magic;
    uint8_t rank, element_bytes, swizzle, reserved;
    char *base;
    uint32_t side[TENSOR_RANK_MAX];       /* elements, innermost first */
    uint64_t stride[TENSOR_RANK_MAX - 1]; /* bytes, of dimension 1 on */
    uint16_t box[TENSOR_RANK_MAX];
    uint8_t step[TENSOR_RANK_MAX];
};
static_assert(sizeof(tensor) <= 128, "fits a CUtensorMap");

/* PTX ISA, "Swizzling modes": inside a span of 32, 64 or 128 bytes the place of a 16-byte chunk is exchanged by the
 * address bits above the span's. `address` is one of the shared window, mode 1, 2, 3 for 32, 64, 128 bytes. */
static inline uint32_t swizzled(uint32_t address, int mode)
{
    const uint32_t bits = (1u << mode) - 1;
    return address ^ ((address >> 7 & bits) << 4);
}

} // namespace simt

#endif
