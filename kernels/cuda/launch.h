/* SPDX-License-Identifier: Apache-2.0
 *
 * How device code is launched, and the few words in which the two ways it is compiled differ: nvcc for a GPU, or, with
 * KN_SIMT defined, the host's C++ compiler for tests/simt, which executes blocks and threads on the CPU. CUDA C++ only;
 * nothing of C sees this header.
 *
 * Everything under kernels/cuda stands between KN_CUDA_BEGIN and KN_CUDA_END, a namespace that differs between the two,
 * so that one program can hold both. Inline assembly is in ptx.cuh alone. */
#ifndef KN_KERNELS_CUDA_LAUNCH_H
#define KN_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime.h>

extern "C" {
#include "base/status.h"
}

#if defined(KN_SIMT)
#define KN_CUDA_BEGIN                                                                                                  \
    namespace kn_simt                                                                                                  \
    {
#include "tests/simt/launch.h" /* simt::launch, simt::dynamic_shared */
#else
#define KN_CUDA_BEGIN                                                                                                  \
    namespace kn_cuda                                                                                                  \
    {
#endif
#define KN_CUDA_END }

/* `type *name`: the block's dynamic shared memory, aligned for swizzled tiles. Once in a kernel. */
#if defined(KN_SIMT)
#define KN_DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(simt::dynamic_shared())
#else
#define KN_DYNAMIC_SHARED(type, name)                                                                                  \
    extern __shared__ __align__(1024) unsigned char kn_dynamic_shared[];                                               \
    type *name = reinterpret_cast<type *>(kn_dynamic_shared)
#endif

KN_CUDA_BEGIN

/* Describes a failed call of the runtime with CUDA's own text. Errors that leave the context unusable (illegal
 * addresses, launch timeouts, uncorrectable memory, ...) become KN_DEVICE_LOST, out of memory KN_NOMEM, others
 * KN_BUG. */
kn_status cuda_status(cudaError_t error, const char *what);

#define KN_CUDA_TRY(call)                                                                                              \
    do {                                                                                                               \
        cudaError_t kn_cuda_error = (call);                                                                            \
        if (kn_cuda_error != cudaSuccess) return cuda_status(kn_cuda_error, #call);                                    \
    } while (0)

struct launch_shape {
    dim3 grid, block;
    size_t shared; /* dynamic, bytes */
    cudaStream_t stream;
    dim3 cluster; /* blocks of a cluster; {1, 1, 1}: without */
};

template <typename T> struct same {
    typedef T type;
};

/* `kernel<<<shape>>>(args...)`; the arguments become the kernel's parameter types. More than 48 KiB of dynamic shared
 * memory is asked for here, so a kernel needs no set-up call. An empty grid does nothing. */
template <typename... P>
kn_status launch(const char *name, const launch_shape &shape, void (*kernel)(P...), typename same<P>::type... args)
{
    if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return KN_OK;
#if defined(KN_SIMT)
    cudaError_t error = simt::launch(name, shape.grid, shape.block, shape.cluster, shape.shared, shape.stream,
                                     [=]() { kernel(args...); });
#else
    cudaError_t error = cudaSuccess;
    if (shape.shared > 48 * 1024)
        error =
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.shared);
    void *pointers[] = {(void *)&args...};
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared;
    config.stream = shape.stream;
    cudaLaunchAttribute attribute;
    if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = shape.cluster.x;
        attribute.val.clusterDim.y = shape.cluster.y;
        attribute.val.clusterDim.z = shape.cluster.z;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    if (error == cudaSuccess) error = cudaLaunchKernelExC(&config, (const void *)kernel, pointers);
#endif
    return error == cudaSuccess ? KN_OK : cuda_status(error, name);
}

/* The name of the kernel is its text, so a failure says which. A template's name goes in parentheses. */
#define KN_LAUNCH(kernel, grid_, block_, shared_, stream_, ...)                                                        \
    launch(#kernel, launch_shape{dim3(grid_), dim3(block_), (size_t)(shared_), (stream_), dim3(1)}, kernel, __VA_ARGS__)
#define KN_LAUNCH_CLUSTER(kernel, cluster_, grid_, block_, shared_, stream_, ...)                                      \
    launch(#kernel, launch_shape{dim3(grid_), dim3(block_), (size_t)(shared_), (stream_), dim3(cluster_)}, kernel,     \
           __VA_ARGS__)

KN_CUDA_END

#endif
