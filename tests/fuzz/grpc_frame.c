/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as the body of a gRPC request: whole and byte by byte, plain and compressed. What comes out may not depend on
 * how the bytes were cut, no message is longer than the limit, and the shared memory is bounded and given back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/grpc_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LIMIT = 64 << 10, BYTES_MAX = 32 << 10 };

typedef struct outcome {
    kn_status status;
    kn_grpc_code code;
    size_t messages, bytes;
    uint64_t sum;
} outcome;

static void require(int condition)
{
    if (!condition) abort();
}

static outcome run(const uint8_t *data, size_t size, size_t step, kn_grpc_encoding encoding)
{
    kn_grpc_memory memory = {.limit = LIMIT};
    kn_grpc_reader reader = {.memory = &memory, .limit = LIMIT, .encoding = encoding};
    kn_grpc_refusal refusal = {0};
    outcome out = {.status = KN_AGAIN};
    for (size_t at = 0; at < size && out.status != KN_INVALID; at += step) {
        const uint8_t *bytes = data + at, *message = NULL;
        size_t left = size - at < step ? size - at : step, count = 0;
        while (left > 0 && out.status != KN_INVALID) {
            out.status = kn_grpc_read(&reader, &bytes, &left, &message, &count, &refusal);
            require(memory.held <= memory.limit);
            if (out.status != KN_OK) continue;
            require(count <= LIMIT && (uintptr_t)message % 64 == 0);
            for (size_t i = 0; i < count; i++) out.sum = out.sum * 31 + message[i];
            out.bytes += count;
            out.messages++;
        }
    }
    require(out.status != KN_INVALID || refusal.code != KN_GRPC_OK);
    out.code = refusal.code;
    kn_grpc_reader_release(&reader);
    require(memory.held == 0);
    return out;
}

static void texts(const uint8_t *data, size_t size)
{
    int64_t ns;
    char *text = kn_strndup((const char *)data, size < 64 ? size : 64);
    if (kn_grpc_parse_timeout(&ns, text) == KN_OK) require(ns >= 0 && ns <= INT64_MAX / 4);
    (void)kn_grpc_accepts_gzip(text);
    kn_text encoded = kn_text_growing(1024);
    kn_grpc_percent_encode(&encoded, text);
    for (size_t i = 0; i < encoded.count; i++) require(encoded.bytes[i] >= 0x20 && encoded.bytes[i] <= 0x7e);
    kn_text_release(&encoded);
    kn_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > BYTES_MAX) return 0;
    const kn_grpc_encoding encoding = data[0] % 3;
    texts(data + 1, size - 1);
    const outcome whole = run(data + 1, size - 1, size, encoding), cut = run(data + 1, size - 1, 1, encoding);
    require(whole.status == cut.status && whole.code == cut.code && whole.messages == cut.messages);
    require(whole.bytes == cut.bytes && whole.sum == cut.sum);
    return 0;
}
