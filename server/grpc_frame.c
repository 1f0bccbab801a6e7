/* SPDX-License-Identifier: Apache-2.0 */
#include "server/grpc_frame.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "base/mem.h"

enum {
    ROOM_FIRST = 4 << 10,
    ROOM_KEPT = 64 << 10, /* of decompressed bytes, between messages */
    WINDOW_BITS_GZIP = 15 + 16,
    WINDOW_BITS_ZLIB = 15,
    TIMEOUT_DIGITS = 8,
};

/* ---- encodings ---- */

kn_grpc_encoding kn_grpc_encoding_of(const char *value)
{
    if (!value || strcmp(value, "identity") == 0) return KN_GRPC_IDENTITY;
    if (strcmp(value, "gzip") == 0) return KN_GRPC_GZIP;
    return strcmp(value, "deflate") == 0 ? KN_GRPC_DEFLATE : KN_GRPC_OTHER;
}

bool kn_grpc_accepts_gzip(const char *value)
{
    static const char separators[] = ", \t";
    while (value && *value) {
        value += strspn(value, separators);
        const size_t count = strcspn(value, separators);
        if (count == 4 && memcmp(value, "gzip", 4) == 0) return true;
        value += count;
    }
    return false;
}

size_t kn_grpc_compress(uint8_t *out, size_t room, const void *bytes, size_t count)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)bytes, .avail_in = (uInt)count, .next_out = out, .avail_out = (uInt)room};
    if (count > UINT32_MAX / 2 || room > UINT32_MAX / 2) return 0;
    if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, WINDOW_BITS_GZIP, 8, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
    const size_t made = deflate(&z, Z_FINISH) == Z_STREAM_END ? z.total_out : 0;
    deflateEnd(&z);
    return made;
}

/* ---- reading ---- */

static kn_status refuse(kn_grpc_refusal *refusal, kn_grpc_code code, const char *message)
{
    refusal->code = code;
    snprintf(refusal->message, sizeof refusal->message, "%s", message);
    return KN_INVALID;
}

static kn_status refuse_size(const kn_grpc_reader *r, kn_grpc_refusal *refusal, uint64_t size)
{
    refusal->code = KN_GRPC_RESOURCE_EXHAUSTED;
    if (size > 0)
        snprintf(refusal->message, sizeof refusal->message, "Received message larger than max (%llu vs. %u)",
                 (unsigned long long)size, r->limit);
    else
        snprintf(refusal->message, sizeof refusal->message, "Decompressed message larger than max (%u)", r->limit);
    return KN_INVALID;
}

static void free_message(kn_grpc_reader *r)
{
    kn_free(r->bytes);
    r->memory->held -= r->room;
    r->bytes = NULL;
    r->room = r->have = r->size = 0;
}

/* Room for what has come and `count` bytes more, at most doubled. */
static kn_status make_room(kn_grpc_reader *r, size_t count, kn_grpc_refusal *refusal)
{
    const size_t need = r->have + count;
    if (need <= r->room) return KN_OK;
    size_t room = r->room ? 2 * (size_t)r->room : ROOM_FIRST;
    while (room < need) room *= 2;
    if (room > r->size) room = r->size;
    if (r->memory->held + (room - r->room) > r->memory->limit)
        return refuse(refusal, KN_GRPC_RESOURCE_EXHAUSTED, "too many messages are being received; try again");
    uint8_t *grown = kn_realloc(r->bytes, room);
    if (!grown) return refuse(refusal, KN_GRPC_RESOURCE_EXHAUSTED, "the server is out of memory");
    r->memory->held += room - r->room;
    r->bytes = grown;
    r->room = (uint32_t)room;
    return KN_OK;
}

/* The whole of a compressed message into r->plain; a bomb is found out at the limit. */
static kn_status decompress(kn_grpc_reader *r, const uint8_t *bytes, size_t count, size_t *made,
                            kn_grpc_refusal *refusal)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)bytes, .avail_in = (uInt)count};
    int got = Z_OK;
    kn_status st = KN_OK;
    if (inflateInit2(&z, r->encoding == KN_GRPC_GZIP ? WINDOW_BITS_GZIP : WINDOW_BITS_ZLIB) != Z_OK)
        return refuse(refusal, KN_GRPC_RESOURCE_EXHAUSTED, "the server is out of memory");
    while (got == Z_OK && st == KN_OK) {
        if (z.total_out == r->plain_room) {
            size_t room = r->plain_room ? 2 * r->plain_room : ROOM_FIRST;
            if (room > (size_t)r->limit + 1) room = (size_t)r->limit + 1;
            uint8_t *grown = room > r->plain_room ? kn_realloc(r->plain, room) : NULL;
            if (!grown) break;
            r->plain = grown;
            r->plain_room = room;
        }
        z.next_out = r->plain + z.total_out;
        z.avail_out = (uInt)(r->plain_room - z.total_out);
        got = inflate(&z, Z_NO_FLUSH);
        if (z.total_out > r->limit) st = refuse_size(r, refusal, 0);
    }
    *made = z.total_out;
    if (st == KN_OK && (got != Z_STREAM_END || z.avail_in > 0))
        st = refuse(refusal, KN_GRPC_INTERNAL, "a compressed message is damaged");
    inflateEnd(&z);
    return st;
}

static kn_status begin(kn_grpc_reader *r, kn_grpc_refusal *refusal)
{
    const uint8_t *p = r->prefix;
    const uint32_t size = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
    if (p[0] > 1) return refuse(refusal, KN_GRPC_INTERNAL, "a message's first byte must be 0 or 1");
    if (p[0] == 1 && r->encoding == KN_GRPC_IDENTITY)
        return refuse(refusal, KN_GRPC_INTERNAL, "a message is marked compressed without grpc-encoding");
    if (size > r->limit) return refuse_size(r, refusal, size);
    r->size = size;
    return KN_OK;
}

kn_status kn_grpc_read(kn_grpc_reader *r, const uint8_t **bytes, size_t *count, const uint8_t **message,
                       size_t *message_bytes, kn_grpc_refusal *refusal)
{
    static _Alignas(64) const uint8_t empty[64];
    kn_status st = KN_OK;
    if (r->prefix_bytes == KN_GRPC_PREFIX_BYTES && r->have == r->size) { /* the one before has been used */
        free_message(r);
        r->prefix_bytes = 0;
    }
    while (r->prefix_bytes < KN_GRPC_PREFIX_BYTES) {
        if (*count == 0) return KN_AGAIN;
        r->prefix[r->prefix_bytes++] = *(*bytes)++;
        --*count;
        if (r->prefix_bytes == KN_GRPC_PREFIX_BYTES) KN_TRY(begin(r, refusal));
    }
    const size_t left = r->size - r->have, take = *count < left ? *count : left;
    if (take > 0) {
        KN_TRY(make_room(r, take, refusal));
        memcpy(r->bytes + r->have, *bytes, take);
        r->have += (uint32_t)take;
        *bytes += take;
        *count -= take;
    }
    if (r->have < r->size) return KN_AGAIN;
    *message = r->bytes ? r->bytes : empty;
    *message_bytes = r->size;
    if (r->prefix[0] == 1) {
        KN_TRY(decompress(r, *message, r->size, message_bytes, refusal));
        *message = r->plain;
    }
fail:
    return st;
}

bool kn_grpc_reader_partial(const kn_grpc_reader *r)
{
    return r->prefix_bytes > 0 && (r->prefix_bytes < KN_GRPC_PREFIX_BYTES || r->have < r->size);
}

void kn_grpc_reader_trim(kn_grpc_reader *r)
{
    if (r->prefix_bytes == KN_GRPC_PREFIX_BYTES && r->have == r->size) {
        free_message(r);
        r->prefix_bytes = 0;
    }
    if (r->plain_room > ROOM_KEPT) {
        kn_free(r->plain);
        r->plain = NULL;
        r->plain_room = 0;
    }
}

void kn_grpc_reader_release(kn_grpc_reader *r)
{
    if (r->memory) free_message(r);
    kn_free(r->plain);
    r->plain = NULL;
    r->plain_room = 0;
    r->prefix_bytes = 0;
}

/* ---- writing ---- */

void kn_grpc_write_prefix(uint8_t out[KN_GRPC_PREFIX_BYTES], bool compressed, uint32_t size)
{
    out[0] = compressed;
    out[1] = (uint8_t)(size >> 24);
    out[2] = (uint8_t)(size >> 16);
    out[3] = (uint8_t)(size >> 8);
    out[4] = (uint8_t)size;
}

kn_status kn_grpc_parse_timeout(int64_t *out_ns, const char *value)
{
    int64_t number = 0;
    const size_t digits = strspn(value, "0123456789");
    if (digits == 0 || digits > TIMEOUT_DIGITS || value[digits] == '\0' || value[digits + 1] != '\0')
        return kn_fail(KN_INVALID, "grpc-timeout must be 1 to 8 digits and one of H M S m u n");
    for (size_t i = 0; i < digits; i++) number = 10 * number + (value[i] - '0');
    int64_t unit;
    switch (value[digits]) {
    case 'H': unit = INT64_C(3600000000000); break;
    case 'M': unit = INT64_C(60000000000); break;
    case 'S': unit = 1000000000; break;
    case 'm': unit = 1000000; break;
    case 'u': unit = 1000; break;
    case 'n': unit = 1; break;
    default: return kn_fail(KN_INVALID, "grpc-timeout must end in one of H M S m u n");
    }
    const int64_t most = INT64_MAX / 4; /* so that a deadline can be computed from it */
    *out_ns = number > most / unit ? most : number * unit;
    return KN_OK;
}

void kn_grpc_percent_encode(kn_text *out, const char *text)
{
    static const char hex[] = "0123456789ABCDEF";
    for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
        const char escaped[3] = {'%', hex[*at >> 4], hex[*at & 15]};
        const bool plain = *at >= 0x20 && *at <= 0x7e && *at != '%';
        kn_text_append(out, plain ? (const void *)at : escaped, plain ? 1 : sizeof escaped);
    }
}

void kn_grpc_base64(kn_text *out, const void *bytes, size_t count)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *in = bytes;
    for (size_t i = 0; i < count; i += 3) {
        const size_t have = count - i < 3 ? count - i : 3;
        const uint32_t bits =
            (uint32_t)in[i] << 16 | (have > 1 ? (uint32_t)in[i + 1] << 8 : 0) | (have > 2 ? in[i + 2] : 0u);
        const char text[4] = {digits[bits >> 18], digits[bits >> 12 & 63], digits[bits >> 6 & 63], digits[bits & 63]};
        kn_text_append(out, text, have + 1);
    }
}

/* ---- google.rpc.Status: protobuf, as far as it is needed here ---- */

enum { VARINT = 0, BYTES = 2 };

static void put_varint(kn_text *out, uint64_t value)
{
    do {
        const uint8_t byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        kn_text_append(out, &byte, 1);
        value >>= 7;
    } while (value);
}

static void put_bytes(kn_text *out, unsigned field, const void *bytes, size_t count)
{
    put_varint(out, field << 3 | BYTES);
    put_varint(out, count);
    kn_text_append(out, bytes, count);
}

static void put_string(kn_text *out, unsigned field, const char *string)
{
    put_bytes(out, field, string, strlen(string));
}

static void put_detail(kn_text *out, const char *type, const kn_text *value)
{
    char storage[1536], url[80];
    kn_text any = kn_text_fixed(storage, sizeof storage);
    snprintf(url, sizeof url, "type.googleapis.com/google.rpc.%s", type);
    put_string(&any, 1, url);
    put_bytes(&any, 2, value->bytes, value->count);
    if (kn_text_status(&any) == KN_OK) put_bytes(out, 3, any.bytes, any.count);
}

void kn_grpc_status_write(kn_text *out, kn_grpc_code code, const kn_api_error *error)
{
    char storage[1024], inner[768];
    kn_text detail = kn_text_fixed(storage, sizeof storage), part = kn_text_fixed(inner, sizeof inner);
    put_varint(out, 1 << 3 | VARINT);
    put_varint(out, code);
    put_string(out, 2, error->message);
    if (error->param[0]) { /* BadRequest { repeated FieldViolation { field = 1, description = 2 } = 1 } */
        put_string(&part, 1, error->param);
        put_string(&part, 2, error->message);
        put_bytes(&detail, 1, part.bytes, part.count);
        put_detail(out, "BadRequest", &detail);
        kn_text_clear(&detail);
    }
    if (error->code) { /* ErrorInfo { reason = 1, domain = 2 } */
        put_string(&detail, 1, error->code);
        put_string(&detail, 2, "kinora");
        put_detail(out, "ErrorInfo", &detail);
        kn_text_clear(&detail);
    }
    if (error->retry_after_s > 0) { /* RetryInfo { Duration { seconds = 1 } = 1 } */
        kn_text_clear(&part);
        put_varint(&part, 1 << 3 | VARINT);
        put_varint(&part, (uint64_t)error->retry_after_s);
        put_bytes(&detail, 1, part.bytes, part.count);
        put_detail(out, "RetryInfo", &detail);
    }
}
