/* SPDX-License-Identifier: Apache-2.0
 *
 * Secrets, signatures, answers and the retry schedule; Standard Webhooks 1.0. Where a webhook may be sent is
 * webhook_url.c. */
#define _GNU_SOURCE /* getrandom, explicit_bzero */
#include "server/webhook.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define PREFIX "whsec_"
#define SCHEME "v1,"

enum {
    PREFIX_CHARACTERS = sizeof PREFIX - 1,
    SCHEME_CHARACTERS = sizeof SCHEME - 1,
    NEW_KEY_BYTES = 32,
    MAC_BYTES = 32,
    MAC_CHARACTERS = 44, /* base64 of MAC_BYTES */
    HEADER_MAX = 1024,   /* characters of a signature header that is looked at */
};

typedef struct key {
    unsigned char bytes[KN_WEBHOOK_SECRET_BYTES_MAX];
    size_t count;
} key;

/* ---- secrets ---- */

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict: padded to a multiple of four, no other characters, no stray bits in the last digit. Every receiver's library
 * then reads the same key. */
static bool base64_decode(key *out, const char *text, size_t length)
{
    if (length == 0 || length % 4 != 0) return false;
    size_t digits = length;
    while (digits > length - 2 && text[digits - 1] == '=') digits--;
    uint32_t bits = 0;
    int held = 0;
    out->count = 0;
    for (size_t i = 0; i < digits; i++) {
        const int digit = base64_digit(text[i]);
        if (digit < 0) return false;
        bits = (bits << 6 | (uint32_t)digit) & 0xffffffu;
        held += 6;
        if (held < 8) continue;
        held -= 8;
        if (out->count == sizeof out->bytes) return false;
        out->bytes[out->count++] = (unsigned char)(bits >> held);
    }
    return (bits & ((1u << held) - 1)) == 0 && held < 6;
}

static kn_status read_key(key *out, const char *secret)
{
    KN_REQUIRE(secret);
    const size_t length = strnlen(secret, KN_WEBHOOK_SECRET_TEXT_MAX + 1);
    if (length > KN_WEBHOOK_SECRET_TEXT_MAX)
        return kn_fail(KN_INVALID, "webhook secret: longer than %d characters", KN_WEBHOOK_SECRET_TEXT_MAX);
    if (strncmp(secret, PREFIX, PREFIX_CHARACTERS) == 0) {
        if (!base64_decode(out, secret + PREFIX_CHARACTERS, length - PREFIX_CHARACTERS))
            return kn_fail(KN_INVALID,
                           "webhook secret: \"" PREFIX "\" must be followed by the base64 of %d to %d bytes",
                           KN_WEBHOOK_SECRET_BYTES_MIN, KN_WEBHOOK_SECRET_BYTES_MAX);
    } else {
        out->count = length;
        if (length <= sizeof out->bytes) memcpy(out->bytes, secret, length);
    }
    if (out->count < KN_WEBHOOK_SECRET_BYTES_MIN || out->count > KN_WEBHOOK_SECRET_BYTES_MAX)
        return kn_fail(KN_INVALID, "webhook secret: %zu bytes, must be %d to %d", out->count,
                       KN_WEBHOOK_SECRET_BYTES_MIN, KN_WEBHOOK_SECRET_BYTES_MAX);
    return KN_OK;
}

kn_status kn_webhook_check_secret(const char *secret)
{
    key k;
    const kn_status st = read_key(&k, secret);
    explicit_bzero(&k, sizeof k);
    return st;
}

kn_status kn_webhook_new_secret(char secret[KN_WEBHOOK_SECRET_TEXT_MAX + 1])
{
    unsigned char bytes[NEW_KEY_BYTES];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return kn_fail(KN_IO, "webhook secret: no random bytes from the system: %s", strerror(errno));
    memcpy(secret, PREFIX, PREFIX_CHARACTERS);
    EVP_EncodeBlock((unsigned char *)secret + PREFIX_CHARACTERS, bytes, NEW_KEY_BYTES);
    explicit_bzero(bytes, sizeof bytes);
    return KN_OK;
}

kn_status kn_webhook_split_secrets(char *text, const char *secrets[KN_WEBHOOK_SECRETS_MAX], size_t *secret_count)
{
    *secret_count = 0;
    for (char *next = text; next;) {
        char *secret = next;
        next = strchr(secret, ' ');
        if (next) *next++ = '\0';
        if (*secret_count == KN_WEBHOOK_SECRETS_MAX)
            return kn_fail(KN_INVALID, "webhook secrets: more than %d", KN_WEBHOOK_SECRETS_MAX);
        const kn_status st = kn_webhook_check_secret(secret);
        if (st != KN_OK) return st;
        secrets[(*secret_count)++] = secret;
    }
    return KN_OK;
}

/* ---- signatures ---- */

static kn_status check_message(const char *id, int64_t timestamp, const void *body, size_t body_bytes)
{
    KN_REQUIRE(id && timestamp >= 0 && (body || body_bytes == 0));
    const size_t length = strnlen(id, KN_WEBHOOK_ID_MAX + 1);
    if (length == 0 || length > KN_WEBHOOK_ID_MAX)
        return kn_fail(KN_INVALID, "webhook id: must have 1 to %d characters", KN_WEBHOOK_ID_MAX);
    for (size_t i = 0; i < length; i++) {
        const char c = id[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-'))
            return kn_fail(KN_INVALID, "webhook id: character %zu is not one of A-Z a-z 0-9 _ -", i);
    }
    if (body_bytes > KN_WEBHOOK_BODY_MAX)
        return kn_fail(KN_INVALID, "webhook body: %zu bytes, the limit is %d", body_bytes, KN_WEBHOOK_BODY_MAX);
    return KN_OK;
}

/* "<id>.<timestamp>." and the body, under one key. */
static kn_status mac(unsigned char out[MAC_BYTES], const key *k, const char *id, int64_t timestamp, const void *body,
                     size_t body_bytes)
{
    char message[KN_WEBHOOK_ID_MAX + 24 + KN_WEBHOOK_BODY_MAX];
    const int head = snprintf(message, sizeof message, "%s.%" PRId64 ".", id, timestamp);
    if (body_bytes > 0) memcpy(message + head, body, body_bytes);
    unsigned int bytes = 0;
    if (!HMAC(EVP_sha256(), k->bytes, (int)k->count, (const unsigned char *)message, (size_t)head + body_bytes, out,
              &bytes) ||
        bytes != MAC_BYTES)
        return kn_fail(KN_UNAVAILABLE, "webhook: the library has no HMAC-SHA256");
    return KN_OK;
}

kn_status kn_webhook_sign(char signature[KN_WEBHOOK_SIGNATURE_BYTES], const char *const *secrets, size_t secret_count,
                          const char *id, int64_t timestamp, const void *body, size_t body_bytes)
{
    kn_status st = KN_OK;
    key k = {.count = 0};
    unsigned char code[MAC_BYTES];
    signature[0] = '\0';
    KN_REQUIRE(secrets && secret_count >= 1 && secret_count <= KN_WEBHOOK_SECRETS_MAX);
    KN_TRY(check_message(id, timestamp, body, body_bytes));
    char *at = signature;
    for (size_t i = 0; i < secret_count; i++) {
        KN_TRY(read_key(&k, secrets[i]));
        KN_TRY(mac(code, &k, id, timestamp, body, body_bytes));
        if (i > 0) *at++ = ' ';
        memcpy(at, SCHEME, SCHEME_CHARACTERS);
        EVP_EncodeBlock((unsigned char *)at + SCHEME_CHARACTERS, code, MAC_BYTES);
        at += SCHEME_CHARACTERS + MAC_CHARACTERS;
    }
fail:
    explicit_bzero(&k, sizeof k);
    if (st != KN_OK) signature[0] = '\0';
    return st;
}

/* Every candidate is compared, whether an earlier one fitted or not. */
static bool any_matches(const char *header, size_t length, const char expected[MAC_CHARACTERS])
{
    unsigned found = 0;
    for (size_t start = 0; start < length;) {
        size_t end = start;
        while (end < length && header[end] != ' ') end++;
        if (end - start == SCHEME_CHARACTERS + MAC_CHARACTERS && memcmp(header + start, SCHEME, SCHEME_CHARACTERS) == 0)
            found |= CRYPTO_memcmp(header + start + SCHEME_CHARACTERS, expected, MAC_CHARACTERS) == 0;
        start = end + 1;
    }
    return found != 0;
}

kn_status kn_webhook_verify(const char *const *secrets, size_t secret_count, const char *id, int64_t timestamp,
                            const void *body, size_t body_bytes, const char *signature, int64_t now)
{
    KN_REQUIRE(signature && now >= 0);
    char expected[KN_WEBHOOK_SIGNATURE_BYTES];
    const kn_status st = kn_webhook_sign(expected, secrets, secret_count, id, timestamp, body, body_bytes);
    if (st != KN_OK) return st;
    if ((timestamp > now ? timestamp - now : now - timestamp) > KN_WEBHOOK_TOLERANCE_S)
        return kn_fail(KN_INVALID, "webhook timestamp: more than %d s off", KN_WEBHOOK_TOLERANCE_S);
    const size_t length = strnlen(signature, HEADER_MAX + 1);
    if (length > HEADER_MAX) return kn_fail(KN_INVALID, "webhook signature: longer than %d characters", HEADER_MAX);
    bool good = false;
    for (size_t i = 0; i < secret_count; i++) {
        const char *one = expected + i * (SCHEME_CHARACTERS + MAC_CHARACTERS + 1) + SCHEME_CHARACTERS;
        good |= any_matches(signature, length, one);
    }
    return good ? KN_OK : kn_fail(KN_INVALID, "webhook signature: fits none of the secrets");
}

/* ---- answers and retries ---- */

const char *kn_webhook_outcome_name(kn_webhook_outcome outcome)
{
    switch (outcome) {
    case KN_WEBHOOK_DELIVERED: return "delivered";
    case KN_WEBHOOK_FAILED: return "failed";
    case KN_WEBHOOK_THROTTLED: return "throttled";
    case KN_WEBHOOK_GONE: return "gone";
    case KN_WEBHOOK_REFUSED: return "refused";
    }
    return "unknown";
}

bool kn_webhook_outcome_retries(kn_webhook_outcome outcome)
{
    return outcome == KN_WEBHOOK_FAILED || outcome == KN_WEBHOOK_THROTTLED;
}

kn_webhook_outcome kn_webhook_classify(int http_status)
{
    if (http_status >= 200 && http_status <= 299) return KN_WEBHOOK_DELIVERED;
    if (http_status == 410) return KN_WEBHOOK_GONE;
    if (http_status == 429 || http_status == 502 || http_status == 504) return KN_WEBHOOK_THROTTLED;
    return KN_WEBHOOK_FAILED;
}

#define SECOND_US INT64_C(1000000)
#define HOUR_US (3600 * SECOND_US)

/* Before attempt 2, 3, ...; the last one repeats. */
static const int64_t schedule_us[] = {5 * SECOND_US, 300 * SECOND_US, HOUR_US / 2,  2 * HOUR_US, 5 * HOUR_US,
                                      10 * HOUR_US,  14 * HOUR_US,    20 * HOUR_US, 24 * HOUR_US};

int64_t kn_webhook_retry_delay_us(const kn_webhook_retry *retry)
{
    const int32_t last = (int32_t)(sizeof schedule_us / sizeof *schedule_us) - 1;
    if (retry->attempt <= 0) return 0;
    const int64_t age = retry->age_us > 0 ? retry->age_us : 0;
    if (age >= KN_WEBHOOK_RETRY_SPAN_US) return -1;
    const int64_t base = schedule_us[retry->attempt - 1 < last ? retry->attempt - 1 : last];
    int64_t delay = base - base / 10 + (int64_t)(retry->random % (uint64_t)(base / 5 + 1));
    int64_t asked_s = retry->retry_after_s;
    if (asked_s > 24 * 3600) asked_s = 24 * 3600;
    if (asked_s > 0 && delay < asked_s * SECOND_US) delay = asked_s * SECOND_US;
    const int64_t left = KN_WEBHOOK_RETRY_SPAN_US - age;
    return delay < left ? delay : left;
}
