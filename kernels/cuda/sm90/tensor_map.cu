/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor maps by the driver's encoder, found at run time: nothing links against libcuda. */
#include <cuda.h>

#include "kernels/cuda/sm90/tensor_map.cuh"

KN_CUDA_BEGIN

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static kn_status find_encoder(encode_tiled *out)
{
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    KN_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess || !entry)
        return kn_fail(KN_UNAVAILABLE, "this driver has no cuTensorMapEncodeTiled (CUDA 12 or later is needed)");
    *out = (encode_tiled)entry;
    return KN_OK;
}

kn_status tensor_map_rows(tensor_map *out, const kn_matrix *m, int64_t row0, int64_t rows, int box_rows, int box_panels)
{
    static_assert(sizeof(CUtensorMap) == sizeof(tensor_map), "a tensor map is a CUtensorMap");
    static encode_tiled encode; /* the same for every device; written twice with one value at worst */
    if (!encode) {
        kn_status st = find_encoder(&encode);
        if (st != KN_OK) return st;
    }
    void *base = (char *)m->data + row0 * m->stride * 2;
    const cuuint64_t sides[3] = {TENSOR_MAP_COLUMNS, (cuuint64_t)rows, (cuuint64_t)(m->cols / TENSOR_MAP_COLUMNS)};
    const cuuint64_t strides[2] = {(cuuint64_t)m->stride * 2, TENSOR_MAP_COLUMNS * 2}; /* bytes, from side 1 on */
    const cuuint32_t box[3] = {TENSOR_MAP_COLUMNS, (cuuint32_t)box_rows, (cuuint32_t)box_panels};
    const cuuint32_t steps[3] = {1, 1, 1};
    CUtensorMap map;
    CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, base, sides, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return kn_fail(KN_BUG, "cuTensorMapEncodeTiled refuses %lld rows of %lld columns, stride %lld (CUresult %d)",
                       (long long)rows, (long long)m->cols, (long long)m->stride, (int)result);
    memcpy(out, &map, sizeof map);
    return KN_OK;
}

KN_CUDA_END
