/* SPDX-License-Identifier: Apache-2.0
 *
 * The tiers that are judged: those of this processor; or, with --device simt, the CUDA kernels on the executor in
 * tests/simt (docs: tests/simt/README.md); or, with --device cuda:N, on a GPU, which reads and writes the fenced host
 * memory through its mapping, so that an access behind a view's end is a fault there too. */
#include "kernels/device_cuda.h"
#include "tests/checkops/checkops.h"
#ifdef KN_HAS_SIMT
#include "tests/simt/simt.h"
#endif
#ifdef KN_HAS_CUDA
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#endif

int check_rounds(const check *c, int rounds)
{
    enum { SIMT_SHARE = 8, SIMT_LEAST = 12, SANITIZED_SHARE = 3, SANITIZED_LEAST = 100 };
    const int share = c->simt ? SIMT_SHARE : SANITIZED_SHARE, least = c->simt ? SIMT_LEAST : SANITIZED_LEAST;
    if ((!c->simt && !CHECK_SANITIZED) || rounds < least) return rounds;
    return rounds / share < least ? least : rounds / share;
}

static kn_status open_cpu(check_tier *tier, kn_isa isa)
{
    kn_status st = KN_OK;
    tier->name = kn_isa_name(isa);
    tier->reference = isa == KN_ISA_REF;
    for (int t = 0; t < CHECK_THREADS; t++) {
        kn_device_params params = {.name = "cpu", .threads = t + 1, .isa = tier->name};
        KN_TRY(kn_device_open(&tier->device[t], &params));
        KN_TRY(kn_stream_create(&tier->stream[t], tier->device[t]));
    }
fail:
    return st;
}

static void close_tier(check_tier *tier)
{
    for (int t = 0; t < CHECK_THREADS; t++) kn_stream_destroy(&tier->stream[t]);
    for (int t = CHECK_THREADS - 1; t >= 0; t--)
        if (t == 0 || tier->device[t] != tier->device[0]) kn_device_close(&tier->device[t]);
}

/* One device under the streams of all "thread counts". */
static kn_status share_device(check_tier *tier)
{
    kn_status st = KN_OK;
    for (int t = 0; t < CHECK_THREADS; t++) {
        tier->device[t] = tier->device[0];
        KN_TRY(kn_stream_create(&tier->stream[t], tier->device[t]));
    }
fail:
    return st;
}

static kn_status open_gpu(check *c)
{
    static const char *const names[] = {"cuda", "sm90"};
    kn_status st = KN_OK;
    for (int i = 0; i < CHECK_COUNT(names); i++) {
        check_tier *tier = &c->tiers[c->tier_count];
        kn_device_params params = {.name = c->gpu, .isa = names[i]};
        st = kn_device_open(&tier->device[0], &params);
        if (st == KN_UNAVAILABLE && i > 0) return KN_OK; /* an older GPU */
        if (st != KN_OK) return st;
        tier->name = names[i];
        c->tier_count++;
        KN_TRY(share_device(tier));
    }
fail:
    return st;
}

#ifdef KN_HAS_CUDA

/* The pages of a block, without the unreadable one behind. */
static void *pages_of(void *memory, size_t bytes, size_t *span)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)memory / page * page;
    *span = ((uintptr_t)memory + bytes + page - 1) / page * page - begin;
    return (void *)begin;
}

static void share_gpu(void *memory, size_t bytes)
{
    size_t span;
    void *pages = pages_of(memory, bytes, &span);
    cudaError_t error = cudaHostRegister(pages, span, cudaHostRegisterDefault);
    if (error == cudaSuccess) return;
    fprintf(stderr, "checkops: this GPU cannot use host memory: %s\n", cudaGetErrorString(error));
    exit(2);
}

static void unshare_gpu(void *memory)
{
    size_t span;
    cudaHostUnregister(pages_of(memory, 1, &span));
}

#else

static void share_gpu(void *memory, size_t bytes)
{
    (void)memory;
    (void)bytes;
}

static void unshare_gpu(void *memory)
{
    (void)memory;
}

#endif

#ifdef KN_HAS_SIMT

static kn_status open_simt(check_tier *tier, const char *name)
{
    kn_status st = KN_OK;
    kn_device_params params = {.name = "simt", .isa = name};
    tier->name = name;
    tier->simt = true;
    KN_TRY(kn_device_simt_open(&tier->device[0], &params));
    KN_TRY(share_device(tier));
fail:
    return st;
}

static kn_status open_all_simt(check *c)
{
    simt_catch();
    kn_status st = open_simt(&c->tiers[c->tier_count++], "cuda");
    if (st == KN_OK) st = open_simt(&c->tiers[c->tier_count++], "sm90");
    return st;
}

void check_seed_run(const check_tier *tier, int threads)
{
    if (tier->simt) simt_seed((uint64_t)threads);
}

uint64_t check_way(const check_tier *tier)
{
    return tier->simt ? simt_trace() : 0;
}

void check_revive(check_tier *tier)
{
    if (!tier->simt) return;
    simt_fail_at(0, 0);
    simt_clear();
    close_tier(tier);
    if (open_simt(tier, tier->name) != KN_OK) tier->simt = false;
}

void check_share(const check *c, void *memory, size_t bytes)
{
    if (c->simt) simt_register(memory, bytes);
    if (c->gpu) share_gpu(memory, bytes);
}

void check_unshare(const check *c, void *memory)
{
    if (c->simt) simt_unregister(memory);
    if (c->gpu) unshare_gpu(memory);
}

#else

static kn_status open_all_simt(check *c)
{
    (void)c;
    return kn_fail(KN_UNAVAILABLE, "this build leaves tests/simt out (it was built with a sanitizer)");
}

void check_seed_run(const check_tier *tier, int threads)
{
    (void)tier;
    (void)threads;
}

uint64_t check_way(const check_tier *tier)
{
    (void)tier;
    return 0;
}

void check_revive(check_tier *tier)
{
    (void)tier;
}

void check_share(const check *c, void *memory, size_t bytes)
{
    if (c->gpu) share_gpu(memory, bytes);
}

void check_unshare(const check *c, void *memory)
{
    if (c->gpu) unshare_gpu(memory);
}

#endif

kn_status check_open_tiers(check *c)
{
    kn_status st = KN_OK;
    KN_TRY(open_cpu(&c->tiers[c->tier_count++], KN_ISA_REF));
    if (c->simt) {
        KN_TRY(open_all_simt(c));
        return KN_OK;
    }
    if (c->gpu) {
        KN_TRY(open_gpu(c));
        return KN_OK;
    }
    for (kn_isa isa = KN_ISA_REF + 1; isa <= kn_isa_detect(); isa++) KN_TRY(open_cpu(&c->tiers[c->tier_count++], isa));
    return KN_OK;

fail:
    check_close_tiers(c);
    return st;
}

void check_close_tiers(check *c)
{
    for (int i = 0; i < c->tier_count; i++) close_tier(&c->tiers[i]);
    c->tier_count = 0;
}
