/* SPDX-License-Identifier: Apache-2.0
 *
 * oneDNN's matrix product: weights reordered once to the layout it asks for,
 * then the best of several runs. Written for the interfaces of versions 2 and 3,
 * which differ in how descriptors are made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#include <oneapi/dnnl/dnnl.h>

#include "base/clock.h"
#include "base/half.h"
#include "base/mem.h"
#include "tests/checkops/peer.h"

enum { REPEATS_MIN = 3, REPEATS_MAX = 200 };

#define PEER_TRY(call)                                                                                                 \
    do {                                                                                                               \
        dnnl_status_t peer_status = (call);                                                                            \
        if (peer_status != dnnl_success) {                                                                             \
            st = kn_fail(KN_UNSUPPORTED, "oneDNN: %s returned %d", #call, (int)peer_status);                           \
            goto fail;                                                                                                 \
        }                                                                                                              \
    } while (0)

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t descriptor;
typedef const_dnnl_memory_desc_t descriptor_view;

static dnnl_status_t describe(descriptor *out, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(out, 2, dims, type, tag);
}

static void forget(descriptor *d)
{
    if (*d) dnnl_memory_desc_destroy(*d);
}

static descriptor_view view_of(const descriptor *d)
{
    return *d;
}

static dnnl_status_t describe_matmul(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const descriptor *a,
                                     const descriptor *w, const descriptor *y)
{
    return dnnl_matmul_primitive_desc_create(out, engine, *a, *w, NULL, *y, NULL);
}
#else
typedef dnnl_memory_desc_t descriptor;
typedef const dnnl_memory_desc_t *descriptor_view;

static dnnl_status_t describe(descriptor *out, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(out, 2, dims, type, tag);
}

static void forget(descriptor *d)
{
    (void)d;
}

static descriptor_view view_of(const descriptor *d)
{
    return d;
}

static dnnl_status_t describe_matmul(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const descriptor *a,
                                     const descriptor *w, const descriptor *y)
{
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_matmul_desc_init(&matmul, a, w, NULL, y);
    return status != dnnl_success ? status : dnnl_primitive_desc_create(out, &matmul, NULL, engine, NULL);
}
#endif

typedef struct peer_gemm {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    descriptor a, w_plain, w_any, y;
    dnnl_primitive_desc_t matmul_desc, reorder_desc;
    dnnl_primitive_t matmul, reorder;
    dnnl_memory_t a_memory, w_memory, w_packed, y_memory;
} peer_gemm;

static void peer_close(peer_gemm *p)
{
    const dnnl_memory_t memories[] = {p->a_memory, p->w_memory, p->w_packed, p->y_memory};
    for (int i = 0; i < 4; i++)
        if (memories[i]) dnnl_memory_destroy(memories[i]);
    if (p->matmul) dnnl_primitive_destroy(p->matmul);
    if (p->reorder) dnnl_primitive_destroy(p->reorder);
    if (p->matmul_desc) dnnl_primitive_desc_destroy(p->matmul_desc);
    if (p->reorder_desc) dnnl_primitive_desc_destroy(p->reorder_desc);
    forget(&p->a);
    forget(&p->w_plain);
    forget(&p->w_any);
    forget(&p->y);
    if (p->stream) dnnl_stream_destroy(p->stream);
    if (p->engine) dnnl_engine_destroy(p->engine);
}

/* The library is built with OpenMP or with its own threads; only the former has a number to set. */
static void set_threads(int threads)
{
    void (*set)(int);
    *(void **)&set = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (set) set(threads);
}

const char *peer_name(void)
{
    static char name[32]; /* written with the same text every time */
    const dnnl_version_t *version = dnnl_version();
    snprintf(name, sizeof name, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
    return name;
}

static void fill(void *data, int64_t count, kn_dtype dtype)
{
    for (int64_t i = 0; i < count; i++) {
        float value = (float)(i * 2654435761u % 1024) / 512 - 1;
        if (dtype == KN_F32)
            ((float *)data)[i] = value;
        else
            ((uint16_t *)data)[i] = kn_bf16_from_float(value);
    }
}

static kn_status build(peer_gemm *p, int64_t m, int64_t n, int64_t k, kn_dtype dtype, void *a, void *w, void *y)
{
    kn_status st = KN_OK;
    const dnnl_data_type_t type = dtype == KN_F32 ? dnnl_f32 : dnnl_bf16;
    PEER_TRY(dnnl_engine_create(&p->engine, dnnl_cpu, 0));
    PEER_TRY(dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
    PEER_TRY(describe(&p->a, (dnnl_dims_t){m, k}, type, dnnl_ab));
    PEER_TRY(describe(&p->w_plain, (dnnl_dims_t){k, n}, type, dnnl_ba));
    PEER_TRY(describe(&p->w_any, (dnnl_dims_t){k, n}, type, dnnl_format_tag_any));
    PEER_TRY(describe(&p->y, (dnnl_dims_t){m, n}, type, dnnl_ab));
    PEER_TRY(describe_matmul(&p->matmul_desc, p->engine, &p->a, &p->w_any, &p->y));
    descriptor_view wanted = dnnl_primitive_desc_query_md(p->matmul_desc, dnnl_query_weights_md, 0);
    PEER_TRY(dnnl_memory_create(&p->a_memory, view_of(&p->a), p->engine, a));
    PEER_TRY(dnnl_memory_create(&p->w_memory, view_of(&p->w_plain), p->engine, w));
    PEER_TRY(dnnl_memory_create(&p->w_packed, wanted, p->engine, DNNL_MEMORY_ALLOCATE));
    PEER_TRY(dnnl_memory_create(&p->y_memory, view_of(&p->y), p->engine, y));
    PEER_TRY(
        dnnl_reorder_primitive_desc_create(&p->reorder_desc, view_of(&p->w_plain), p->engine, wanted, p->engine, NULL));
    PEER_TRY(dnnl_primitive_create(&p->reorder, p->reorder_desc));
    PEER_TRY(dnnl_primitive_create(&p->matmul, p->matmul_desc));
    const dnnl_exec_arg_t reorder[] = {{DNNL_ARG_FROM, p->w_memory}, {DNNL_ARG_TO, p->w_packed}};
    PEER_TRY(dnnl_primitive_execute(p->reorder, p->stream, 2, reorder));
    PEER_TRY(dnnl_stream_wait(p->stream));

fail:
    return st;
}

static kn_status time_best(const peer_gemm *p, double *seconds)
{
    kn_status st = KN_OK;
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->a_memory}, {DNNL_ARG_WEIGHTS, p->w_packed}, {DNNL_ARG_DST, p->y_memory}};
    double total = 0;
    *seconds = 1e30;
    for (int i = 0; i < REPEATS_MAX && (i < REPEATS_MIN || total < 0.25); i++) {
        int64_t start = kn_clock_ns();
        PEER_TRY(dnnl_primitive_execute(p->matmul, p->stream, 3, args));
        PEER_TRY(dnnl_stream_wait(p->stream));
        double elapsed = kn_clock_seconds(kn_clock_ns() - start);
        total += elapsed;
        if (elapsed < *seconds) *seconds = elapsed;
    }

fail:
    return st;
}

kn_status peer_gemm_seconds(double *seconds, int64_t m, int64_t n, int64_t k, kn_dtype dtype, int threads)
{
    kn_status st = KN_OK;
    peer_gemm p = {0};
    const size_t element = kn_dtype_bytes(dtype);
    void *a = kn_alloc((size_t)(m * k) * element), *w = kn_alloc((size_t)(n * k) * element);
    void *y = kn_alloc((size_t)(m * n) * element);
    if (!a || !w || !y) {
        st = KN_NOMEM;
        goto fail;
    }
    fill(a, m * k, dtype);
    fill(w, n * k, dtype);
    set_threads(threads);
    KN_TRY(build(&p, m, n, k, dtype, a, w, y));
    KN_TRY(time_best(&p, seconds));

fail:
    peer_close(&p);
    kn_free(a);
    kn_free(w);
    kn_free(y);
    return st;
}
