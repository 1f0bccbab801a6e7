/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as requests on one connection: heads, bodies by length or in chunks, one after the other, whole and byte by
 * byte. What the parser accepts must hold what the server relies on, and may not depend on how the bytes were cut.
 * Header values go on to the range and precondition code. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/http_parse.h"
#include "server/http_range.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { BYTES_MAX = 64 << 10, REQUESTS_MAX = 64 };

static const kn_http_parse_limits limits = {KN_HTTP_FIELDS_MAX, KN_HTTP_HEADER_BYTES_MAX, KN_HTTP_TARGET_BYTES_MAX};

static void require(int condition)
{
    if (!condition) abort();
}

static kn_status parse_in_steps(kn_http_head *head, const char *bytes, size_t count, size_t step,
                                kn_http_refusal *refusal)
{
    kn_status st = KN_AGAIN;
    memset(head, 0, sizeof *head);
    for (size_t have = 0; st == KN_AGAIN && have < count;) {
        have = count - have < step ? count : have + step;
        st = kn_http_parse_head(head, bytes, have, &limits, refusal);
    }
    return st;
}

static void check_field(const kn_http_head *head, const char *bytes, const kn_http_field *field)
{
    char value[256];
    uint64_t first = 0, count = 0;
    const char *text = bytes + field->value.start;
    require(field->name.start + field->name.bytes < field->value.start + 1);
    require(field->value.start + field->value.bytes <= head->bytes - 4);
    require(kn_http_is_token(bytes + field->name.start, field->name.bytes));
    require(kn_http_is_field_value(text, field->value.bytes));
    if (field->value.bytes >= sizeof value) return;
    memcpy(value, text, field->value.bytes);
    value[field->value.bytes] = '\0';
    (void)kn_http_etag_listed(value, "\"a\"", true);
    if (kn_http_parse_range(value, 1000, &first, &count) == KN_OK)
        require(count >= 1 && first < 1000 && count <= 1000 - first);
}

static void check_head(const kn_http_head *head, const char *bytes)
{
    static char path[KN_HTTP_TARGET_BYTES_MAX + 1];
    require(!head->chunked || (head->content_length == -1 && head->minor == 1));
    require(head->content_length >= -1 && (head->minor == 0 || head->has_host));
    require(head->fields <= KN_HTTP_FIELDS_MAX && memcmp(bytes + head->bytes - 4, "\r\n\r\n", 4) == 0);
    require(head->path.bytes + head->query.bytes <= head->target.bytes);
    for (uint32_t i = 0; i < head->fields; i++) check_field(head, bytes, &head->field[i]);
    if (kn_http_decode_path(path, bytes + head->path.start, head->path.bytes) != KN_OK) return;
    require(!memchr(path, '\\', strlen(path)) && !strstr(path, "/../") && strlen(path) <= head->path.bytes);
}

typedef struct body {
    kn_status status;
    size_t read, bytes;
    uint64_t sum;
} body;

static body decode_in_steps(const char *bytes, size_t count, size_t step)
{
    body out = {.status = KN_AGAIN};
    kn_http_chunks chunks = {0};
    kn_http_refusal refusal = {0};
    while (out.status == KN_AGAIN && out.read < count) {
        const char *data;
        size_t used, data_bytes, left = count - out.read;
        out.status = kn_http_parse_chunks(&chunks, bytes + out.read, left < step ? left : step, &used, &data,
                                          &data_bytes, &refusal);
        require(used > 0 && used <= left && data >= bytes && data + data_bytes <= bytes + out.read + used);
        for (size_t i = 0; i < data_bytes; i++) out.sum = out.sum * 31 + (unsigned char)data[i];
        out.bytes += data_bytes;
        out.read += used;
    }
    require(out.status != KN_INVALID || refusal.status >= 400);
    return out;
}

/* One request at `bytes`; how many bytes it took, 0 when the connection would end. */
static size_t run_request(const char *bytes, size_t count)
{
    static kn_http_head whole, cut;
    kn_http_refusal refusal = {0}, cut_refusal = {0};
    const kn_status st = parse_in_steps(&whole, bytes, count, count, &refusal);
    require(parse_in_steps(&cut, bytes, count, count > 2048 ? 61 : 1, &cut_refusal) == st);
    require(refusal.status == cut_refusal.status && (refusal.status >= 400) == (st == KN_INVALID));
    if (st != KN_OK) return 0;
    require(memcmp(&whole, &cut, sizeof whole) == 0 && whole.bytes <= count);
    check_head(&whole, bytes);
    if (!whole.chunked) {
        const uint64_t length = whole.content_length > 0 ? (uint64_t)whole.content_length : 0;
        return length <= count - whole.bytes ? whole.bytes + (size_t)length : 0;
    }
    const body a = decode_in_steps(bytes + whole.bytes, count - whole.bytes, SIZE_MAX);
    const body b = decode_in_steps(bytes + whole.bytes, count - whole.bytes, 1);
    require(a.status == b.status && a.read == b.read && a.bytes == b.bytes && a.sum == b.sum);
    return a.status == KN_OK ? whole.bytes + a.read : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data;
    if (size > BYTES_MAX) return 0;
    for (size_t at = 0, requests = 0; at < size && requests < REQUESTS_MAX; requests++) {
        const size_t used = run_request(bytes + at, size - at);
        if (used == 0) break;
        at += used;
    }
    return 0;
}
