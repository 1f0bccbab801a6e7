/* SPDX-License-Identifier: Apache-2.0 */
#include "server/references.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "server/image_strip.h"

struct kn_references {
    kn_reference all[KN_REFERENCES_MAX]; /* [count], oldest first */
    int32_t count;
    size_t bytes;
};

kn_status kn_references_create(kn_references **out)
{
    *out = kn_alloc(sizeof **out);
    return *out ? KN_OK : KN_NOMEM;
}

static void drop(kn_references *r, int32_t at)
{
    r->bytes -= r->all[at].count;
    kn_free(r->all[at].bytes);
    r->count--;
    memmove(&r->all[at], &r->all[at + 1], (size_t)(r->count - at) * sizeof r->all[0]);
}

void kn_references_destroy(kn_references **references)
{
    if (!references || !*references) return;
    while ((*references)->count > 0) drop(*references, (*references)->count - 1);
    kn_free(*references);
    *references = NULL;
}

static void drop_expired(kn_references *r, int64_t now_us)
{
    for (int32_t i = r->count - 1; i >= 0; i--)
        if (r->all[i].expires_at <= now_us) drop(r, i);
}

/* A tenant with as many as it may have loses its oldest. */
static void make_room(kn_references *r, const char *tenant)
{
    int32_t own = 0, oldest = -1;
    for (int32_t i = r->count - 1; i >= 0; i--)
        if (strcmp(r->all[i].tenant, tenant) == 0) {
            own++;
            oldest = i;
        }
    if (own >= KN_REFERENCES_OF_TENANT_MAX) drop(r, oldest);
}

static kn_status check(kn_image_info *info, const uint8_t *bytes, size_t count, kn_api_error *error)
{
    if (count == 0) return kn_api_missing_parameter(error, "data");
    switch (kn_image_sniff(info, bytes, count)) {
    case KN_OK: return KN_OK;
    case KN_UNSUPPORTED:
        return kn_api_invalid_value(error, "data", "A reference must be a still PNG, JPEG or WebP picture.");
    case KN_INVALID: return kn_api_invalid_value(error, "data", "The picture is too large: %s.", kn_fail_message());
    default: return kn_api_invalid_value(error, "data", "The picture is damaged: %s.", kn_fail_message());
    }
}

static kn_status new_id(char id[KN_REFERENCE_ID_BYTES])
{
    uint8_t random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random) return KN_IO;
    int length = snprintf(id, KN_REFERENCE_ID_BYTES, "file_");
    for (size_t i = 0; i < sizeof random; i++)
        length += snprintf(id + length, (size_t)(KN_REFERENCE_ID_BYTES - length), "%02x", random[i]);
    return KN_OK;
}

kn_status kn_references_add(kn_references *r, const char *tenant, uint8_t *bytes, size_t count, int64_t now_us,
                            const kn_reference **out, kn_api_error *error)
{
    kn_image_info info;
    kn_status st = check(&info, bytes, count, error);
    drop_expired(r, now_us);
    make_room(r, tenant);
    if (st == KN_OK && (r->count >= KN_REFERENCES_MAX || r->bytes + count > KN_REFERENCES_BYTES))
        st = kn_api_overloaded(error, 60, "All room for uploaded pictures is taken.");
    kn_reference *reference = &r->all[r->count < KN_REFERENCES_MAX ? r->count : 0];
    if (st == KN_OK && new_id(reference->id) != KN_OK) st = kn_api_internal(error);
    if (st != KN_OK) {
        kn_free(bytes);
        return st;
    }
    snprintf(reference->tenant, sizeof reference->tenant, "%s", tenant);
    reference->info = info;
    reference->bytes = bytes;
    reference->count = kn_image_strip(info.kind, bytes, count);
    reference->expires_at = now_us + KN_REFERENCE_SECONDS * INT64_C(1000000);
    r->bytes += reference->count;
    r->count++;
    *out = reference;
    return KN_OK;
}

const kn_reference *kn_references_find(kn_references *r, const char *tenant, const char *id, int64_t now_us)
{
    drop_expired(r, now_us);
    for (int32_t i = 0; i < r->count; i++)
        if (strcmp(r->all[i].id, id) == 0 && strcmp(r->all[i].tenant, tenant) == 0) return &r->all[i];
    return NULL;
}
