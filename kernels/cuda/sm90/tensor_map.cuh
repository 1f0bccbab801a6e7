/* SPDX-License-Identifier: Apache-2.0
 *
 * Host side of TMA: a tensor map describes a strided tensor in global memory and the box that one copy moves. Made on
 * the host for a launch and passed to it as a grid constant, so that it needs no memory of its own.
 *
 * Kinora's one layout: bf16, boxes whose innermost side is 64 elements (128 bytes), swizzled by 128 bytes in shared
 * memory (kernels/cuda/ptx.cuh, wgmma_descriptor). */
#ifndef KN_KERNELS_CUDA_SM90_TENSOR_MAP_CUH
#define KN_KERNELS_CUDA_SM90_TENSOR_MAP_CUH

#include "kernels/cuda/ptx.cuh"

extern "C" {
#include "kernels/ops.h"
}

KN_CUDA_BEGIN

enum { TENSOR_MAP_COLUMNS = 64 }; /* innermost side of every box */

/* True if rows of `m` can be described: bf16, data and row stride multiples of 16 bytes, columns of 64. */
static inline bool tensor_map_accepts(const kn_matrix *m)
{
    return m->dtype == KN_BF16 && (uintptr_t)m->data % 16 == 0 && m->stride % 8 == 0 &&
           m->cols % TENSOR_MAP_COLUMNS == 0;
}

/* Rows [row0, row0 + rows) of `m` as a tensor (64, rows, cols / 64): element (x, y, z) is m[row0 + y, 64 z + x]. One
 * copy moves a box (64, box_rows, box_panels), in shared memory [panel][row][64]; box_rows <= 256. Rows outside are
 * zeros when read and left alone when written. At least one row. KN_BUG if the driver refuses. */
kn_status tensor_map_rows(tensor_map *out, const kn_matrix *m, int64_t row0, int64_t rows, int box_rows,
                          int box_panels);

KN_CUDA_END

#endif
