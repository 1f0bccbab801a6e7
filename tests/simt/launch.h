/* SPDX-License-Identifier: Apache-2.0
 *
 * What kernels/cuda/launch.h calls when it is compiled for the executor. */
#ifndef KN_TESTS_SIMT_LAUNCH_H
#define KN_TESTS_SIMT_LAUNCH_H

#include <cuda_runtime.h>

namespace simt
{

/* Runs the whole grid before it returns. `entry` is called once in every thread. Everything before it on the stream has
 * already happened. */
cudaError_t launch_raw(const char *name, const dim3 &grid, const dim3 &block, const dim3 &cluster, size_t shared,
                       const void *params, size_t params_bytes, void (*entry)(const void *params));

cudaError_t launch_on_stream(const char *name, const dim3 &grid, const dim3 &block, const dim3 &cluster, size_t shared,
                             cudaStream_t stream, const void *params, size_t params_bytes,
                             void (*entry)(const void *params));

template <typename Body>
cudaError_t launch(const char *name, const dim3 &grid, const dim3 &block, const dim3 &cluster, size_t shared,
                   cudaStream_t stream, const Body &body)
{
    return launch_on_stream(name, grid, block, cluster, shared, stream, &body, sizeof body,
                            [](const void *params) { (*(const Body *)params)(); });
}

/* The running block's dynamic shared memory, 1024-byte aligned. */
void *dynamic_shared();

} // namespace simt

#endif
