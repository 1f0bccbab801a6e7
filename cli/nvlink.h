/* SPDX-License-Identifier: Apache-2.0
 *
 * Which GPUs NVLink joins, as NVIDIA's management library (NVML) tells; it comes with the driver and is loaded at run
 * time. */
#ifndef KN_CLI_NVLINK_H
#define KN_CLI_NVLINK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { KN_NVLINK_GPUS_MAX = 64 };

typedef struct kn_nvlinks {
    int32_t count;
    int32_t direct[KN_NVLINK_GPUS_MAX][KN_NVLINK_GPUS_MAX]; /* active links between two */
    int32_t switched[KN_NVLINK_GPUS_MAX]; /* to anything else: switches, which join all that are on them */
} kn_nvlinks;

/* addresses: [count] as in sysfs, "0000:17:00.0". `library` NULL: libnvidia-ml.so.1. KN_UNSUPPORTED: there is no NVML,
 * or it does not know one of the devices; *out then has no links. */
kn_status kn_nvlink_read(kn_nvlinks *out, const char *library, const char *const *addresses, int32_t count);

/* Do two GPUs reach each other over NVLink? */
bool kn_nvlink_joins(const kn_nvlinks *links, int32_t a, int32_t b);

#endif
