/* SPDX-License-Identifier: Apache-2.0
 *
 * Pictures that were uploaded to be referred to by a submission: kept in memory for an hour, bounded in number and
 * bytes, each its tenant's own. Only formats and sizes that kn_image_sniff lets pass, without their metadata; nothing
 * is decoded here. Loop thread only. */
#ifndef KN_SERVER_REFERENCES_H
#define KN_SERVER_REFERENCES_H

#include "base/status.h"
#include "server/api_error.h"
#include "server/image_sniff.h"
#include "server/job.h"

enum {
    KN_REFERENCES_MAX = 256,
    KN_REFERENCES_OF_TENANT_MAX = 32, /* the tenant's oldest makes room for the next */
    KN_REFERENCES_BYTES = 128 << 20,
    KN_REFERENCE_ID_BYTES = 40, /* "file_" and 32 hexadecimal digits, with the NUL */
    KN_REFERENCE_SECONDS = 3600,
};

typedef struct kn_references kn_references;

typedef struct kn_reference {
    char id[KN_REFERENCE_ID_BYTES];
    char tenant[KN_TENANT_BYTES];
    kn_image_info info;
    uint8_t *bytes; /* owned by the table */
    size_t count;
    int64_t expires_at; /* microseconds since 1970 */
} kn_reference;

kn_status kn_references_create(kn_references **out);
void kn_references_destroy(kn_references **references);

/* Takes `bytes` (kn_alloc'ed), on every path. 400 where it is no picture, 413, or 503 where all room is taken. The
 * result is valid until the next call. */
kn_status kn_references_add(kn_references *references, const char *tenant, uint8_t *bytes, size_t count, int64_t now_us,
                            const kn_reference **out, kn_api_error *error);
/* NULL: there is none (any more), or it is another tenant's. */
const kn_reference *kn_references_find(kn_references *references, const char *tenant, const char *id, int64_t now_us);

#endif
