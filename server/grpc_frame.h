/* SPDX-License-Identifier: Apache-2.0
 *
 * gRPC's own layer between HTTP/2 and messages (PROTOCOL-HTTP2), as functions of bytes: length-prefixed messages and
 * their compression, grpc-timeout, percent-encoded texts, base64 metadata, and google.rpc.Status.
 *
 * A reader grows on arrival, never on promise: a length of 4 GiB costs nothing. */
#ifndef KN_SERVER_GRPC_FRAME_H
#define KN_SERVER_GRPC_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/grpc.h"
#include "server/text.h"

enum { KN_GRPC_PREFIX_BYTES = 5 };

typedef enum kn_grpc_encoding { KN_GRPC_IDENTITY, KN_GRPC_GZIP, KN_GRPC_DEFLATE, KN_GRPC_OTHER } kn_grpc_encoding;

/* A grpc-encoding field's value; NULL is identity. */
kn_grpc_encoding kn_grpc_encoding_of(const char *value);
/* Does a grpc-accept-encoding list ("identity, deflate, gzip") name gzip? NULL: no. */
bool kn_grpc_accepts_gzip(const char *value);

/* Why a call ends by its bytes. */
typedef struct kn_grpc_refusal {
    kn_grpc_code code;
    char message[160];
} kn_grpc_refusal;

/* Memory that readers share; `held` never exceeds `limit`. */
typedef struct kn_grpc_memory {
    uint64_t held, limit;
} kn_grpc_memory;

typedef struct kn_grpc_reader {
    kn_grpc_memory *memory; /* borrowed */
    uint32_t limit;         /* of a message, compressed and not */
    kn_grpc_encoding encoding;
    uint8_t prefix[KN_GRPC_PREFIX_BYTES];
    uint8_t prefix_bytes;
    uint32_t size, have; /* of the message under way */
    uint8_t *bytes;      /* [room]; NULL: none yet */
    uint32_t room;
    uint8_t *plain; /* the last message, decompressed */
    size_t plain_room;
} kn_grpc_reader;

/* Takes from *bytes what belongs to the next message. KN_OK: *message of *message_bytes is complete, aligned to 64, and
 * valid until the next call; KN_AGAIN: all was taken and more is needed; KN_INVALID: *refusal. */
kn_status kn_grpc_read(kn_grpc_reader *reader, const uint8_t **bytes, size_t *count, const uint8_t **message,
                       size_t *message_bytes, kn_grpc_refusal *refusal);
/* Is a message begun and not complete? */
bool kn_grpc_reader_partial(const kn_grpc_reader *reader);
/* Memory of messages that are over is given back; a message under way stays. */
void kn_grpc_reader_trim(kn_grpc_reader *reader);
void kn_grpc_reader_release(kn_grpc_reader *reader);

void kn_grpc_write_prefix(uint8_t out[KN_GRPC_PREFIX_BYTES], bool compressed, uint32_t size);

/* gzip into out[room]; returns the size, 0: it does not fit, or there is no memory. */
size_t kn_grpc_compress(uint8_t *out, size_t room, const void *bytes, size_t count);

/* "5S", "300m", at most 8 digits. KN_INVALID. */
kn_status kn_grpc_parse_timeout(int64_t *out_ns, const char *value);

/* Everything outside 0x20..0x7E, and '%', as %XX. */
void kn_grpc_percent_encode(kn_text *out, const char *text);
void kn_grpc_base64(kn_text *out, const void *bytes, size_t count); /* without padding */

/* google.rpc.Status with BadRequest, ErrorInfo and RetryInfo, as far as the error has them. */
void kn_grpc_status_write(kn_text *out, kn_grpc_code code, const kn_api_error *error);

#endif
