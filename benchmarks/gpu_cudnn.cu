/* SPDX-License-Identifier: Apache-2.0
 *
 * cuDNN's attention through its backend interface: descriptors of four tensors and a scale, one operation, the plans
 * its heuristics propose, the first that it can build. The library is loaded when asked for. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "benchmarks/gpu_internal.cuh"

#ifdef KN_HAS_CUDNN
#include <cudnn.h>

#define CUDNN_FUNCTIONS(F)                                                                                             \
    F(cudnnCreate)                                                                                                     \
    F(cudnnDestroy)                                                                                                    \
    F(cudnnSetStream)                                                                                                  \
    F(cudnnGetVersion)                                                                                                 \
    F(cudnnGetLastErrorString)                                                                                         \
    F(cudnnBackendCreateDescriptor)                                                                                    \
    F(cudnnBackendDestroyDescriptor)                                                                                   \
    F(cudnnBackendSetAttribute)                                                                                        \
    F(cudnnBackendGetAttribute)                                                                                        \
    F(cudnnBackendFinalize)                                                                                            \
    F(cudnnBackendExecute)

enum { DESCRIPTORS_MAX = 64, PLANS = 8, RANK = 4 };

struct gpu_cudnn {
    void *library;
    cudnnHandle_t handle;
    char name[32];
#define FIELD(function) decltype(&::function) function;
    CUDNN_FUNCTIONS(FIELD)
#undef FIELD
};

static kn_status cudnn_open(kn_gpu *g)
{
    if (g->cudnn) return KN_OK;
    if (g->cudnn_missing) return kn_fail(KN_UNAVAILABLE, "no libcudnn can be loaded");
    g->cudnn_missing = true; /* unless all goes well */
    gpu_cudnn *c = (gpu_cudnn *)calloc(1, sizeof *c);
    if (!c) return kn_fail(KN_NOMEM, "no memory");
    c->library = kn_gpu_library("libcudnn.so.9", "libcudnn.so", KN_CUDNN_LIBRARY);
    bool whole = c->library != nullptr;
#define LOAD(function)                                                                                                 \
    if (whole) *(void **)&c->function = dlsym(c->library, #function);                                                  \
    whole = whole && c->function;
    CUDNN_FUNCTIONS(LOAD)
#undef LOAD
    if (!whole || c->cudnnCreate(&c->handle) != CUDNN_STATUS_SUCCESS) {
        if (c->library) dlclose(c->library);
        free(c);
        return kn_fail(KN_UNAVAILABLE, "no libcudnn can be loaded");
    }
    const size_t version = c->cudnnGetVersion(); /* 91900 */
    snprintf(c->name, sizeof c->name, "cuDNN %zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
    c->cudnnSetStream(c->handle, g->stream);
    g->cudnn = c;
    g->cudnn_missing = false;
    return KN_OK;
}

void kn_gpu_cudnn_close(kn_gpu *g)
{
    if (!g->cudnn) return;
    g->cudnn->cudnnDestroy(g->cudnn->handle);
    dlclose(g->cudnn->library);
    free(g->cudnn);
    g->cudnn = nullptr;
}

const char *kn_gpu_attention_name(const kn_gpu *g)
{
    return g->cudnn ? g->cudnn->name : nullptr;
}

/* ---- descriptors: all of a case are kept and destroyed together ---- */

struct sdpa {
    gpu_cudnn *api;
    cudnnBackendDescriptor_t made[DESCRIPTORS_MAX];
    int count;
    cudnnStatus_t status; /* the first failure; later calls do nothing */
    cudnnBackendDescriptor_t plan, pack;
    kn_gpu *gpu;
};

static cudnnBackendDescriptor_t make(sdpa *s, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t d = nullptr;
    if (s->status == CUDNN_STATUS_SUCCESS && s->count == DESCRIPTORS_MAX) s->status = CUDNN_STATUS_ALLOC_FAILED;
    if (s->status == CUDNN_STATUS_SUCCESS) s->status = s->api->cudnnBackendCreateDescriptor(type, &d);
    if (d) s->made[s->count++] = d;
    return d;
}

static void set(sdpa *s, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                int64_t count, const void *values)
{
    if (s->status == CUDNN_STATUS_SUCCESS) s->status = s->api->cudnnBackendSetAttribute(d, name, type, count, values);
}

static void seal(sdpa *s, cudnnBackendDescriptor_t d)
{
    if (s->status == CUDNN_STATUS_SUCCESS) s->status = s->api->cudnnBackendFinalize(d);
}

static cudnnBackendDescriptor_t tensor(sdpa *s, int64_t id, const int64_t (&sides)[RANK],
                                       const int64_t (&strides)[RANK], cudnnDataType_t type, bool by_value)
{
    const int64_t alignment = 16;
    cudnnBackendDescriptor_t d = make(s, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(s, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(s, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, RANK, sides);
    set(s, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, RANK, strides);
    set(s, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
    set(s, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (by_value) set(s, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    seal(s, d);
    return d;
}

/* [1, heads, rows, head_dim] in a row-major matrix of heads side by side. */
static cudnnBackendDescriptor_t rows_of_heads(sdpa *s, int64_t id, const kn_attention_args *g, const kn_matrix *m,
                                              int64_t rows)
{
    const int64_t sides[RANK] = {1, g->heads, rows, g->head_dim};
    const int64_t strides[RANK] = {rows * m->stride, g->head_dim, m->stride, 1};
    return tensor(s, id, sides, strides, CUDNN_DATA_BFLOAT16, false);
}

/* The first plan of the heuristics' list that can be built. */
static void choose_plan(sdpa *s, cudnnBackendDescriptor_t graph)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t heuristics = make(s, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), configs[PLANS];
    set(s, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph);
    set(s, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    seal(s, heuristics);
    for (int i = 0; i < PLANS; i++) configs[i] = make(s, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t found = 0;
    if (s->status == CUDNN_STATUS_SUCCESS)
        s->status = s->api->cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, PLANS, &found, configs);
    if (s->status == CUDNN_STATUS_SUCCESS && found == 0) s->status = CUDNN_STATUS_NOT_SUPPORTED;
    for (int64_t i = 0; i < found && i < PLANS && !s->plan; i++) {
        if (s->status != CUDNN_STATUS_SUCCESS) return;
        cudnnBackendDescriptor_t plan = make(s, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(s, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &s->api->handle);
        set(s, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &configs[i]);
        seal(s, plan);
        if (s->status == CUDNN_STATUS_SUCCESS)
            s->plan = plan;
        else if (i + 1 < found)
            s->status = CUDNN_STATUS_SUCCESS; /* the next may do */
    }
}

static void build(sdpa *s, const kn_attention_args *g, int64_t queries, int64_t keys, float *scale, void **workspace)
{
    const int64_t one[RANK] = {1, 1, 1, 1}, ids[] = {1, 2, 3, 4, 5};
    cudnnBackendDescriptor_t q = rows_of_heads(s, 1, g, &g->q, queries), k = rows_of_heads(s, 2, g, &g->k, keys);
    cudnnBackendDescriptor_t v = rows_of_heads(s, 3, g, &g->v, keys), o = rows_of_heads(s, 4, g, &g->out, queries);
    cudnnBackendDescriptor_t c = tensor(s, 5, one, one, CUDNN_DATA_FLOAT, true);
    cudnnBackendDescriptor_t op = make(s, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    set(s, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &q);
    set(s, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &k);
    set(s, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &v);
    set(s, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &o);
    set(s, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c);
    seal(s, op);
    cudnnBackendDescriptor_t graph = make(s, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(s, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &s->api->handle);
    set(s, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &op);
    seal(s, graph);
    choose_plan(s, graph);
    int64_t bytes = 0, count = 0;
    if (s->status == CUDNN_STATUS_SUCCESS)
        s->status = s->api->cudnnBackendGetAttribute(s->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                     CUDNN_TYPE_INT64, 1, &count, &bytes);
    if (s->status == CUDNN_STATUS_SUCCESS && bytes > 0 && cudaMalloc(workspace, (size_t)bytes) != cudaSuccess)
        s->status = CUDNN_STATUS_ALLOC_FAILED;
    void *pointers[] = {g->q.data, g->k.data, g->v.data, g->out.data, scale};
    s->pack = make(s, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(s, s->pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 5, pointers);
    set(s, s->pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 5, ids);
    set(s, s->pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, workspace);
    seal(s, s->pack);
}

static kn_status run_plan(void *opaque)
{
    sdpa *s = (sdpa *)opaque;
    s->status = s->api->cudnnBackendExecute(s->api->handle, s->plan, s->pack);
    return s->status == CUDNN_STATUS_SUCCESS ? KN_OK
                                             : kn_fail(KN_UNSUPPORTED, "cudnnBackendExecute: %d", (int)s->status);
}

kn_status kn_gpu_attention(kn_gpu *g, kn_gpu_times *times, const kn_attention_args *args, int32_t queries, int32_t keys)
{
    kn_status st = cudnn_open(g);
    if (st != KN_OK) return st;
    float scale = args->scale;
    void *workspace = nullptr;
    sdpa s = {};
    s.api = g->cudnn;
    s.gpu = g;
    build(&s, args, queries, keys, &scale, &workspace);
    if (s.status == CUDNN_STATUS_SUCCESS) {
        st = kn_gpu_time(g, times, 0.3, run_plan, &s);
    } else {
        char text[512] = "";
        s.api->cudnnGetLastErrorString(text, sizeof text);
        st = kn_fail(KN_UNSUPPORTED, "%s has no plan for this attention: status %d, %s", s.api->name, (int)s.status,
                     text);
    }
    for (int i = 0; i < s.count; i++) s.api->cudnnBackendDestroyDescriptor(s.made[i]);
    cudaFree(workspace);
    return st;
}

#else /* built without cuDNN's headers */

kn_status kn_gpu_attention(kn_gpu *, kn_gpu_times *, const kn_attention_args *, int32_t, int32_t)
{
    return kn_fail(KN_UNAVAILABLE, "built without cuDNN");
}

const char *kn_gpu_attention_name(const kn_gpu *)
{
    return nullptr;
}

void kn_gpu_cudnn_close(kn_gpu *)
{
}

#endif
