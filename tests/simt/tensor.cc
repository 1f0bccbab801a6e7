// SPDX-License-Identifier: Apache-2.0
//
// The driver's tensor map encoder, with the restrictions it documents (CUDA Driver API, cuTensorMapEncodeTiled).
#include <string.h>

#include <cuda.h>
#include <cuda_runtime.h>

#include "tests/simt/tensor.h"

using namespace simt;

static int bytes_of(CUtensorMapDataType type)
{
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 4;
    }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base,
                                const cuuint64_t *sides, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill)
{
    (void)promotion;
    const cuuint64_t element = (cuuint64_t)bytes_of(type);
    if ((uintptr_t)map % 64 != 0 || rank == 0 || rank > TENSOR_RANK_MAX) return CUDA_ERROR_INVALID_VALUE;
    if (!base || (uintptr_t)base % 16 != 0 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
        return CUDA_ERROR_INVALID_VALUE;
    if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return CUDA_ERROR_INVALID_VALUE; // zeros only are modelled
    const cuuint64_t inner = box[0] * element;
    if (inner % 16 != 0) return CUDA_ERROR_INVALID_VALUE;
    if (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && inner > (16u << (int)swizzle)) return CUDA_ERROR_INVALID_VALUE;
    tensor t = {};
    t.magic = TENSOR_MAGIC;
    t.rank = (uint8_t)rank;
    t.element_bytes = (uint8_t)element;
    t.swizzle = (uint8_t)swizzle;
    t.base = (char *)base;
    for (cuuint32_t i = 0; i < rank; i++) {
        if (sides[i] == 0 || sides[i] > 0xffffffffu) return CUDA_ERROR_INVALID_VALUE;
        if (box[i] == 0 || box[i] > 256 || steps[i] == 0 || steps[i] > 8) return CUDA_ERROR_INVALID_VALUE;
        t.side[i] = (uint32_t)sides[i];
        t.box[i] = (uint16_t)box[i];
        t.step[i] = (uint8_t)steps[i];
        if (i == 0) continue;
        const cuuint64_t stride = strides[i - 1];
        if (stride % 16 != 0 || stride >= (cuuint64_t)1 << 40) return CUDA_ERROR_INVALID_VALUE;
        t.stride[i - 1] = stride;
    }
    memset(map, 0, sizeof *map);
    memcpy((void *)map, &t, sizeof t);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, cudaDriverEntryPointQueryResult *found)
{
    (void)version;
    (void)flags;
    const bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    if (found) *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return known ? cudaSuccess : cudaErrorSymbolNotFound;
}
