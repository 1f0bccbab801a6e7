/* SPDX-License-Identifier: Apache-2.0
 *
 * What each PTX instruction does in the executor; ptx.h gives these the names of kernels/cuda/ptx.cuh. Every function
 * is one instruction as the PTX ISA manual (9.0) describes it, section in quotes. `line` is where the kernel has it. */
#ifndef KN_TESTS_SIMT_INSTRUCTIONS_H
#define KN_TESTS_SIMT_INSTRUCTIONS_H

#include <stddef.h>
#include <stdint.h>

namespace simt
{

/* ---- matrices of a warp (matrix.cc) ---- */

void ldmatrix(int line, uint32_t *r, int count, const void *row, bool transposed);
void stmatrix(int line, const uint32_t *r, int count, void *row);
/* m16n8k16: 4 registers of a, 2 of b. */
void mma_bf16(int line, float *d, const uint32_t *a, const uint32_t *b);

/* ---- a thread's own copies, bulk copies, mbarriers (copy.cc) ---- */

void cp_async(void *shared, const void *global, uint32_t bytes, uint32_t source_bytes);
void cp_async_commit();
void cp_async_wait(uint32_t pending);

void mbarrier_init(void *barrier, uint32_t count);
void mbarrier_arrive(void *barrier, uint32_t count);
void mbarrier_expect(void *barrier, uint32_t bytes);
bool mbarrier_wait_some(void *barrier, uint32_t parity, bool may_wait);
void fence_proxy_async();

/* The same place in another block of the cluster ("mapa"). */
void *map_to_rank(const void *shared, uint32_t rank);
uint32_t cluster_rank();

/* `map` is 128 bytes made by cuTensorMapEncodeTiled. `ranks` 0: this block alone. */
void tensor_load(void *shared, const void *map, const int *coordinates, int rank, void *barrier, uint32_t ranks);
void tensor_store(const void *map, const void *shared, const int *coordinates, int rank);
void bulk_prefetch(const void *global, uint32_t bytes);
void bulk_commit();
void bulk_wait_read(uint32_t pending);

/* ---- matrices of a warpgroup (wgmma.cc) ---- */

void wgmma_fence();
void wgmma_commit(int line);
void wgmma_wait(int line, uint32_t pending);
/* d is the thread's n / 2 sums. a: descriptor, or the thread's 4 registers. _mn: rows along k, contiguous along m or n.
 */
struct wgmma_operands {
    float *d;
    int n;
    bool accumulate;
    const uint32_t *a_registers; /* NULL: a_descriptor */
    uint64_t a_descriptor, b_descriptor;
    bool a_mn, b_mn;
};
void wgmma(int line, const wgmma_operands &operands);

/* ---- others (sync.cc) ---- */

void set_registers(int line, int count, bool more);
float exp2_approx(float x);
float reciprocal_approx(float x);

} // namespace simt

#endif
