/* SPDX-License-Identifier: Apache-2.0
 *
 * Protobuf messages of strangers: protobuf-c behind a bound on memory. A message of a few bytes can ask for very many
 * small allocations (each empty element of a repeated message costs two bytes), so what reading one may allocate is
 * bounded by its length. */
#ifndef KN_SERVER_PROTO_H
#define KN_SERVER_PROTO_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "server/api_error.h"
#include "server/text.h"

enum {
    KN_PROTO_MEMORY_BASE = 64 << 10, /* reading a message of n bytes may allocate KN_PROTO_MEMORY_TIMES * n more */
    KN_PROTO_MEMORY_TIMES = 2,
};

/* Reads a message of this type; *out is freed with kn_proto_free. 400 "invalid_body": it is not such a message, or
 * asks for too much memory. Strings are checked to be UTF-8 as deep as messages are nested. */
kn_status kn_proto_read(ProtobufCMessage **out, const ProtobufCMessageDescriptor *type, const void *bytes, size_t count,
                        kn_api_error *error);
void kn_proto_free(ProtobufCMessage **message);

/* Appends the message's bytes; ask kn_text_status at the end. */
void kn_proto_write(kn_text *out, const ProtobufCMessage *message);

/* By hand, for what goes in front of bytes that are not in memory: field number and length of a length-delimited
 * field. */
void kn_proto_write_length(kn_text *out, uint32_t field, uint64_t bytes);

#endif
