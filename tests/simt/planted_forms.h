/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of forms.cu, each about one instruction, and the bugs that can be planted in them. */
#ifndef KN_TESTS_SIMT_PLANTED_FORMS_H
#define KN_TESTS_SIMT_PLANTED_FORMS_H

#include "kernels/cuda/launch.h"

KN_CUDA_BEGIN

enum form_bug {
    FORM_RIGHT,
    FORM_SWAPPED,    /* two registers of a fragment exchanged */
    FORM_NOT_TURNED, /* ldmatrix without .trans where the matrix lies the other way */
    FORM_MISALIGNED, /* a row of ldmatrix or stmatrix that is not 16-byte aligned */
    FORM_FEW_LANES,  /* half of a warp at an instruction of all lanes */
    FORM_NO_BARRIER, /* what stmatrix wrote is read by other lanes without __syncwarp */
    FORM_NO_FENCE,   /* wgmma reads what the generic proxy wrote, unfenced */
    FORM_LEADING,    /* a descriptor's leading bytes are those of half a tile */
    FORM_WRITTEN,    /* registers of a wgmma are written before its wait */
    FORM_FEW_BYTES,  /* a box completes more bytes than its mbarrier expects */
    FORM_RANK,       /* a copy of another rank than its tensor map's */
    FORM_NO_WAIT,    /* shared memory is read before the copy has landed */
};

/* product[16, 16] = a[16, 16] b[16, 16] and its bf16 copy by stmatrix. b: [k, n] where `turned`, else [n, k]. */
struct warp_call {
    int bug;
    bool turned;
    const uint16_t *a, *b;
    float *product;
    uint16_t *rounded;
    cudaStream_t stream;
};
kn_status run_warp(const warp_call *call);

/* c[64, 128] = a[64, 16] b[16, 128]: a in registers, b with rows along k. */
struct warpgroup_call {
    int bug;
    const uint16_t *a, *b;
    float *c;
    cudaStream_t stream;
};
kn_status run_warpgroup(const warpgroup_call *call);

enum { FORM_RANKS = 5, FORM_BOX_BYTES = 4096 };

/* One box of a bf16 tensor of 1 to 5 dimensions, innermost first, to the bytes of shared memory as it lies there, and
 * from there into a second tensor of the same shape. */
struct box_call {
    int bug, rank, swizzle; /* swizzle: a CUtensorMapSwizzle */
    uint64_t side[FORM_RANKS], stride[FORM_RANKS - 1];
    uint32_t box[FORM_RANKS];
    int at[FORM_RANKS];
    void *from, *to; /* device memory */
    uint8_t *shared; /* [FORM_BOX_BYTES] device memory: out */
    cudaStream_t stream;
};
kn_status run_box(const box_call *call);

KN_CUDA_END

#endif
