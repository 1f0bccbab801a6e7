/* SPDX-License-Identifier: Apache-2.0
 *
 * The tiers that are judged: those of this processor, or, with --device simt, the CUDA kernels on the executor in
 * tests/simt (docs: tests/simt/README.md). */
#include "kernels/device_cuda.h"
#include "tests/checkops/checkops.h"
#ifdef KN_HAS_SIMT
#include "tests/simt/simt.h"
#endif

int check_rounds(const check *c, int rounds)
{
    enum { SIMT_SHARE = 8, SIMT_LEAST = 12 };
    if (!c->simt || rounds < SIMT_LEAST) return rounds;
    return rounds / SIMT_SHARE < SIMT_LEAST ? SIMT_LEAST : rounds / SIMT_SHARE;
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
    for (int t = 0; t < CHECK_THREADS; t++)
        if (t == 0 || !tier->simt) kn_device_close(&tier->device[t]);
}

#ifdef KN_HAS_SIMT

static kn_status open_simt(check_tier *tier, const char *name)
{
    kn_status st = KN_OK;
    kn_device_params params = {.name = "simt", .isa = name};
    tier->name = name;
    tier->simt = true;
    KN_TRY(kn_device_simt_open(&tier->device[0], &params));
    for (int t = 0; t < CHECK_THREADS; t++) {
        tier->device[t] = tier->device[0];
        KN_TRY(kn_stream_create(&tier->stream[t], tier->device[t]));
    }
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
}

void check_unshare(const check *c, void *memory)
{
    if (c->simt) simt_unregister(memory);
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

void check_revive(check_tier *tier)
{
    (void)tier;
}

void check_share(const check *c, void *memory, size_t bytes)
{
    (void)c;
    (void)memory;
    (void)bytes;
}

void check_unshare(const check *c, void *memory)
{
    (void)c;
    (void)memory;
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
