/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/cpu.h"

static const char *const names[KN_ISA_COUNT] = {"ref", "avx2", "avx512", "avx512bf16"};

const char *kn_isa_name(kn_isa isa)
{
    return names[isa];
}

kn_isa kn_isa_parse(const char *name)
{
    for (int i = 0; i < KN_ISA_COUNT; i++)
        if (strcmp(name, names[i]) == 0) return (kn_isa)i;
    return KN_ISA_COUNT;
}

/* __builtin_cpu_supports also asks the operating system whether it saves the
 * wide registers. */
kn_isa kn_isa_detect(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return KN_ISA_REF;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return KN_ISA_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? KN_ISA_AVX512BF16 : KN_ISA_AVX512;
#else
    return KN_ISA_REF;
#endif
}

void kn_ops_fill(kn_ops *ops, kn_isa isa)
{
    kn_ops_fill_ref(ops);
    if (isa >= KN_ISA_AVX2) kn_ops_fill_avx2(ops);
    if (isa >= KN_ISA_AVX512) kn_ops_fill_avx512(ops);
    if (isa >= KN_ISA_AVX512BF16) kn_ops_fill_avx512bf16(ops);
}
