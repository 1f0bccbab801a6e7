/* SPDX-License-Identifier: Apache-2.0
 *
 * Times, ceilings and clocks of a GPU. cuBLASLt and NVML are loaded when asked for, so that the program runs without.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>

#include <cublasLt.h>

#include "benchmarks/gpu_internal.cuh"
#include "kernels/cuda/device.cuh"

using namespace kn_cuda;

enum { REPEATS_MIN = 3, REPEATS_MAX = 200, WARM = 2, ALGORITHMS = 6 };
#define FLUSH_BYTES ((size_t)256 << 20) /* several times the second cache level of any GPU */
#define COPY_BYTES ((size_t)1 << 30)
#define WORKSPACE_BYTES ((size_t)64 << 20)

kn_status kn_gpu_open(kn_gpu **out, kn_stream *stream)
{
    kn_device_info info;
    kn_device_describe(kn_stream_device(stream), &info);
    *out = nullptr;
    if (strncmp(info.name, "cuda", 4) != 0) return kn_fail(KN_UNAVAILABLE, "%s is not a CUDA device", info.name);
    kn_gpu *g = (kn_gpu *)calloc(1, sizeof *g);
    if (!g) return kn_fail(KN_NOMEM, "no memory");
    g->device = kn_stream_device(stream);
    g->stream = stream_of(stream);
    cudaError_t error = cudaEventCreate(&g->begin);
    if (error == cudaSuccess) error = cudaEventCreate(&g->end);
    if (error == cudaSuccess) error = cudaMalloc(&g->flush, FLUSH_BYTES);
    if (error == cudaSuccess) error = cudaMalloc(&g->workspace, WORKSPACE_BYTES);
    if (error == cudaSuccess) {
        *out = g;
        return KN_OK;
    }
    kn_gpu_close(&g);
    return cuda_status(error, "memory for measuring");
}

void kn_gpu_close(kn_gpu **gpu)
{
    kn_gpu *g = *gpu;
    *gpu = nullptr;
    if (!g) return;
    if (g->begin) cudaEventDestroy(g->begin);
    if (g->end) cudaEventDestroy(g->end);
    cudaFree(g->flush);
    cudaFree(g->workspace);
    kn_gpu_cudnn_close(g);
    if (g->cublas) dlclose(g->cublas);
    if (g->nvml) dlclose(g->nvml);
    free(g);
}

/* ---- times ---- */

static int compare_seconds(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static kn_status time_once(kn_gpu *g, double *seconds, kn_gpu_fn *run, void *context)
{
    float milliseconds;
    KN_CUDA_TRY(cudaMemsetAsync(g->flush, 0, FLUSH_BYTES, g->stream));
    KN_CUDA_TRY(cudaEventRecord(g->begin, g->stream));
    kn_status st = run(context);
    if (st != KN_OK) return st;
    KN_CUDA_TRY(cudaEventRecord(g->end, g->stream));
    KN_CUDA_TRY(cudaEventSynchronize(g->end));
    KN_CUDA_TRY(cudaEventElapsedTime(&milliseconds, g->begin, g->end));
    *seconds = milliseconds * 1e-3;
    return KN_OK;
}

kn_status kn_gpu_time(kn_gpu *g, kn_gpu_times *out, double budget, kn_gpu_fn *run, void *context)
{
    double seconds[REPEATS_MAX], total = 0;
    int count = 0;
    for (int i = 0; i < WARM; i++) {
        kn_status st = time_once(g, &seconds[0], run, context);
        if (st != KN_OK) return st;
        if (seconds[0] > budget) break;
    }
    while (count < REPEATS_MAX && (count < REPEATS_MIN || total < budget)) {
        kn_status st = time_once(g, &seconds[count], run, context);
        if (st != KN_OK) return st;
        total += seconds[count++];
    }
    qsort(seconds, (size_t)count, sizeof *seconds, compare_seconds);
    out->median = count % 2 ? seconds[count / 2] : 0.5 * (seconds[count / 2 - 1] + seconds[count / 2]);
    out->best = seconds[0];
    out->repeats = count;
    return KN_OK;
}

/* ---- ceilings ---- */

struct copy_context {
    kn_gpu *gpu;
    void *to, *from;
};

static kn_status run_copy(void *opaque)
{
    copy_context *c = (copy_context *)opaque;
    KN_CUDA_TRY(cudaMemcpyAsync(c->to, c->from, COPY_BYTES, cudaMemcpyDeviceToDevice, c->gpu->stream));
    return KN_OK;
}

kn_status kn_gpu_copy_rate(kn_gpu *g, double *bytes_per_second)
{
    copy_context c = {g, nullptr, nullptr};
    kn_gpu_times times;
    kn_status st = kn_device_alloc(g->device, &c.to, COPY_BYTES);
    if (st == KN_OK) st = kn_device_alloc(g->device, &c.from, COPY_BYTES);
    if (st == KN_OK) st = kn_gpu_time(g, &times, 0.2, run_copy, &c);
    if (st == KN_OK) *bytes_per_second = 2.0 * COPY_BYTES / times.best;
    kn_device_free(g->device, c.to);
    kn_device_free(g->device, c.from);
    return st;
}

struct blas_api {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};

#define LOAD(field, symbol)                                                                                            \
    *(void **)&api->field = dlsym(library, symbol);                                                                    \
    if (!api->field) return false

static bool load_blas(blas_api *api, void *library)
{
    LOAD(create, "cublasLtCreate");
    LOAD(destroy, "cublasLtDestroy");
    LOAD(matmul, "cublasLtMatmul");
    LOAD(desc_create, "cublasLtMatmulDescCreate");
    LOAD(desc_destroy, "cublasLtMatmulDescDestroy");
    LOAD(desc_set, "cublasLtMatmulDescSetAttribute");
    LOAD(layout_create, "cublasLtMatrixLayoutCreate");
    LOAD(layout_destroy, "cublasLtMatrixLayoutDestroy");
    LOAD(preference_create, "cublasLtMatmulPreferenceCreate");
    LOAD(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    LOAD(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    LOAD(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    return true;
}

/* Row-major out = a w^T is, column by column, out^T = w a^T: w read as [k][n] transposed, a as [k][m]. */
struct matmul_context {
    kn_gpu *gpu;
    blas_api api;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w_layout, a_layout, out_layout;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulAlgo_t algorithm;
    void *out;
    const void *a, *w;
};

static kn_status run_matmul(void *opaque)
{
    matmul_context *c = (matmul_context *)opaque;
    const float one = 1.0f, zero = 0.0f;
    cublasStatus_t status =
        c->api.matmul(c->handle, c->operation, &one, c->w, c->w_layout, c->a, c->a_layout, &zero, c->out, c->out_layout,
                      c->out, c->out_layout, &c->algorithm, c->gpu->workspace, WORKSPACE_BYTES, c->gpu->stream);
    return status == CUBLAS_STATUS_SUCCESS ? KN_OK : kn_fail(KN_UNSUPPORTED, "cublasLtMatmul: status %d", (int)status);
}

static cublasStatus_t describe_matmul(matmul_context *c, int64_t m, int64_t n, int64_t k, kn_dtype dtype)
{
    const cudaDataType_t type = dtype == KN_F32 ? CUDA_R_32F : CUDA_R_16BF;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const size_t workspace = WORKSPACE_BYTES;
    cublasStatus_t s = c->api.create(&c->handle);
    if (!s) s = c->api.desc_create(&c->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!s) s = c->api.desc_set(c->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!s) s = c->api.layout_create(&c->w_layout, type, (uint64_t)k, (uint64_t)n, k);
    if (!s) s = c->api.layout_create(&c->a_layout, type, (uint64_t)k, (uint64_t)m, k);
    if (!s) s = c->api.layout_create(&c->out_layout, type, (uint64_t)n, (uint64_t)m, n);
    if (!s) s = c->api.preference_create(&c->preference);
    if (!s)
        s = c->api.preference_set(c->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                  sizeof workspace);
    return s;
}

static void forget_matmul(matmul_context *c)
{
    if (c->preference) c->api.preference_destroy(c->preference);
    if (c->out_layout) c->api.layout_destroy(c->out_layout);
    if (c->a_layout) c->api.layout_destroy(c->a_layout);
    if (c->w_layout) c->api.layout_destroy(c->w_layout);
    if (c->operation) c->api.desc_destroy(c->operation);
    if (c->handle) c->api.destroy(c->handle);
}

static kn_status fastest(matmul_context *c, kn_gpu_times *times)
{
    cublasLtMatmulHeuristicResult_t proposals[ALGORITHMS];
    int count = 0;
    kn_status st = KN_UNSUPPORTED;
    cublasStatus_t s = c->api.heuristic(c->handle, c->operation, c->w_layout, c->a_layout, c->out_layout, c->out_layout,
                                        c->preference, ALGORITHMS, proposals, &count);
    if (s || count == 0) return kn_fail(KN_UNSUPPORTED, "cuBLASLt proposes no algorithm (status %d)", (int)s);
    for (int i = 0; i < count; i++) {
        kn_gpu_times one;
        c->algorithm = proposals[i].algo;
        kn_status tried = kn_gpu_time(c->gpu, &one, 0.1, run_matmul, c);
        if (tried == KN_DEVICE_LOST) return tried;
        if (tried == KN_OK && (st != KN_OK || one.median < times->median)) {
            *times = one;
            st = KN_OK;
        }
    }
    return st;
}

kn_status kn_gpu_matmul(kn_gpu *g, kn_gpu_times *times, int64_t m, int64_t n, int64_t k, kn_dtype dtype, void *out,
                        const void *a, const void *w)
{
    matmul_context c = {};
    c.gpu = g;
    c.out = out;
    c.a = a;
    c.w = w;
    if (!g->cublas) g->cublas = kn_gpu_library("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so");
    if (!g->cublas || !load_blas(&c.api, g->cublas)) return kn_fail(KN_UNAVAILABLE, "no libcublasLt can be loaded");
    cublasStatus_t s = describe_matmul(&c, m, n, k, dtype);
    kn_status st = s ? kn_fail(KN_UNSUPPORTED, "cuBLASLt: status %d", (int)s) : fastest(&c, times);
    forget_matmul(&c);
    return st;
}

void *kn_gpu_library(const char *first, const char *second, const char *third)
{
    const char *const names[] = {first, second, third};
    for (const char *name : names) {
        void *library = name ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : nullptr;
        if (library) return library;
    }
    return nullptr;
}

/* ---- clocks and power ---- */

/* NVML's own numbers; its header is not in every toolkit. */
enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEMORY = 2, NVML_TEMPERATURE_GPU = 0 };
typedef void *nvml_device;

template <typename... A> static bool nvml_call(void *library, const char *name, A... arguments)
{
    int (*call)(A...);
    *(void **)&call = dlsym(library, name);
    return call && call(arguments...) == 0;
}

static bool find_nvml(kn_gpu *g, nvml_device *device)
{
    char bus[32];
    if (!g->nvml) g->nvml = kn_gpu_library("libnvidia-ml.so.1", "libnvidia-ml.so", nullptr);
    if (!g->nvml || !nvml_call(g->nvml, "nvmlInit_v2")) return false;
    const int ordinal = ((device_cuda *)g->device)->ordinal;
    return cudaDeviceGetPCIBusId(bus, sizeof bus, ordinal) == cudaSuccess &&
           nvml_call(g->nvml, "nvmlDeviceGetHandleByPciBusId_v2", (const char *)bus, device);
}

static int32_t nvml_number(kn_gpu *g, const char *name, nvml_device device, int what)
{
    unsigned value;
    return nvml_call(g->nvml, name, device, what, &value) ? (int32_t)value : -1;
}

void kn_gpu_state_read(kn_gpu *g, kn_gpu_state *out)
{
    *out = kn_gpu_state{};
    out->sm_mhz = out->sm_mhz_max = out->memory_mhz = out->temperature = out->throttle = -1;
    out->watts = out->watts_limit = -1;
    nvml_device device;
    if (!find_nvml(g, &device)) return;
    unsigned milliwatts;
    unsigned long long reasons;
    nvml_call(g->nvml, "nvmlSystemGetDriverVersion", (char *)out->driver, (unsigned)sizeof out->driver);
    out->sm_mhz = nvml_number(g, "nvmlDeviceGetClockInfo", device, NVML_CLOCK_SM);
    out->sm_mhz_max = nvml_number(g, "nvmlDeviceGetMaxClockInfo", device, NVML_CLOCK_SM);
    out->memory_mhz = nvml_number(g, "nvmlDeviceGetClockInfo", device, NVML_CLOCK_MEMORY);
    out->temperature = nvml_number(g, "nvmlDeviceGetTemperature", device, NVML_TEMPERATURE_GPU);
    if (nvml_call(g->nvml, "nvmlDeviceGetPowerUsage", device, &milliwatts)) out->watts = milliwatts * 1e-3;
    if (nvml_call(g->nvml, "nvmlDeviceGetEnforcedPowerLimit", device, &milliwatts))
        out->watts_limit = milliwatts * 1e-3;
    if (nvml_call(g->nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", device, &reasons))
        out->throttle = (int32_t)reasons;
}
