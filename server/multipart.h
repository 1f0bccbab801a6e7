/* SPDX-License-Identifier: Apache-2.0
 *
 * multipart/form-data (RFC 7578 on RFC 2046 section 5.1), read as it arrives. Fed in any pieces, it calls its sink
 * with the same parts and the same bytes (file data may come in different pieces, never different bytes).
 *
 *   preamble --boundary CRLF headers CRLF CRLF content CRLF --boundary CRLF ... CRLF --boundary-- epilogue
 *
 * A part with a filename is a file and streams to the sink; any other part is text, collected and handed over whole.
 * Part headers are found by name, in any order. Refused: folded headers, control characters, a part without
 * form-data name, a transfer encoding, a multipart inside a part, a charset other than UTF-8 on text, and a body that
 * ends before its closing boundary. A filename is the last component of what was sent and is for messages only. */
#ifndef KN_SERVER_MULTIPART_H
#define KN_SERVER_MULTIPART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"

enum {
    KN_MULTIPART_BODY_BYTES_MAX = 64 << 20, /* everything, boundaries included */
    KN_MULTIPART_PARTS_MAX = 16,
    KN_MULTIPART_HEADER_BYTES_MAX = 8 << 10, /* of one part, up to and including the empty line */
    KN_MULTIPART_TEXT_BYTES_MAX = 1 << 20,   /* of all text parts together */
    KN_MULTIPART_BOUNDARY_MAX = 70,
    KN_MULTIPART_NAME_BYTES_MAX = 255,
    KN_MULTIPART_FILENAME_BYTES_MAX = 255, /* longer ones are cut */
    KN_MULTIPART_TYPE_BYTES_MAX = 127,
};

typedef struct kn_multipart_part {
    char name[KN_MULTIPART_NAME_BYTES_MAX + 1];         /* UTF-8 */
    char filename[KN_MULTIPART_FILENAME_BYTES_MAX + 1]; /* UTF-8, no separator, no control character */
    char content_type[KN_MULTIPART_TYPE_BYTES_MAX + 1]; /* as sent, with parameters; "" when there was none */
    bool is_file;
    uint64_t offset; /* of the content's first byte in the body: a caller that holds the body needs no copy */
} kn_multipart_part;

/* Called in the order of the body. A callback that does not return KN_OK fills *error and ends the parse. */
typedef struct kn_multipart_sink {
    void *context;
    kn_status (*text)(void *context, const kn_multipart_part *part, const char *value, size_t count,
                      kn_api_error *error);
    kn_status (*file_begin)(void *context, const kn_multipart_part *part, kn_api_error *error);
    kn_status (*file_data)(void *context, const void *bytes, size_t count, kn_api_error *error);
    kn_status (*file_end)(void *context, kn_api_error *error);
} kn_multipart_sink;

typedef struct kn_multipart kn_multipart;

/* `content_type` is the request's header value. 400 when the boundary is missing or malformed, 415 when it is not
 * multipart/form-data. */
kn_status kn_multipart_create(kn_multipart **out, const char *content_type, kn_multipart_sink sink,
                              kn_api_error *error);
/* The next bytes. After a failure only kn_multipart_destroy may follow. */
kn_status kn_multipart_feed(kn_multipart *parser, const void *bytes, size_t count, kn_api_error *error);
/* The body has ended. */
kn_status kn_multipart_finish(kn_multipart *parser, kn_api_error *error);
void kn_multipart_destroy(kn_multipart **parser);

/* ---- header values with parameters: type/subtype; name=value; name="value" ---- */

/* Does the media type of a Content-Type value equal `type` ("application/json"), letter case aside? */
bool kn_media_type_is(const char *content_type, const char *type);
/* The value of a parameter, unquoted, into out [bytes]. KN_NOT_FOUND: not there. KN_INVALID: malformed, given twice
 * or longer than bytes - 1. Not described with kn_fail. */
kn_status kn_header_parameter(const char *value, const char *name, char *out, size_t bytes);

#endif
