/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/1.1 requests as a function of bytes: the request line and header section, and the body's framing (RFC 9110,
 * 9112, 3986). No socket, clock or allocation here; a fuzz target.
 *
 * The parser is strict where servers and proxies are known to disagree, because a disagreement about where a request
 * ends lets one client put words into another's mouth ("request smuggling"). It accepts one spelling of everything:
 * lines end in CRLF; a field is name, colon, value on one line; a body has one Content-Length or exactly
 * "Transfer-Encoding: chunked", never both. Everything else is refused, and the connection with it. */
#ifndef KN_SERVER_HTTP_PARSE_H
#define KN_SERVER_HTTP_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* Limits of one request. The first four are also ceilings: a server may be configured lower. */
enum {
    KN_HTTP_FIELDS_MAX = 100,             /* header fields */
    KN_HTTP_HEADER_BYTES_MAX = 16 << 10,  /* all field lines with their CRLFs */
    KN_HTTP_TARGET_BYTES_MAX = 8 << 10,   /* request target, as sent */
    KN_HTTP_METHOD_BYTES_MAX = 16,        /* longer than any registered method this server could meet */
    KN_HTTP_CHUNKS_MAX = 65536,           /* chunks of one body: 1 KiB each at the largest body */
    KN_HTTP_CHUNK_EXTENSION_BYTES = 1024, /* ignored bytes after chunk sizes, over the whole body */
    KN_HTTP_TRAILER_BYTES = 4096,         /* ignored trailer section */
};

typedef enum kn_http_method {
    KN_HTTP_GET,
    KN_HTTP_HEAD,
    KN_HTTP_POST,
    KN_HTTP_PUT,
    KN_HTTP_PATCH,
    KN_HTTP_DELETE,
    KN_HTTP_OPTIONS,
    KN_HTTP_METHODS,
} kn_http_method;

const char *kn_http_method_name(kn_http_method method); /* "GET", ... */

/* Why a request is refused: a status for the client and one line a person can act on (static text). */
typedef struct kn_http_refusal {
    int status; /* 400, 413, 414, 431, 501, 505; 0: not refused */
    const char *message;
} kn_http_refusal;

typedef struct kn_http_parse_limits {
    uint32_t fields;       /* 1..KN_HTTP_FIELDS_MAX */
    uint32_t header_bytes; /* 1..KN_HTTP_HEADER_BYTES_MAX */
    uint32_t target_bytes; /* 1..KN_HTTP_TARGET_BYTES_MAX */
} kn_http_parse_limits;

/* A piece of the head's bytes. */
typedef struct kn_http_span {
    uint32_t start, bytes;
} kn_http_span;

typedef struct kn_http_field {
    kn_http_span name, value; /* the value without the white space around it */
} kn_http_field;

/* The head so far. Offsets, not pointers, so that the bytes may move between calls. */
typedef struct kn_http_head {
    /* Where the next call goes on. */
    uint32_t line;    /* start of the line being read */
    uint32_t scanned; /* bytes searched for a line's end */
    uint32_t header;  /* start of the header section; 0: still in the request line */
    /* The result, complete once kn_http_parse_head returned KN_OK. */
    uint32_t bytes; /* of the whole head, with the empty line that ends it */
    kn_http_method method;
    uint8_t minor;          /* HTTP/1.0 or 1.1 */
    kn_http_span target;    /* as sent */
    kn_http_span path;      /* still percent-encoded; "*" for OPTIONS of the whole server; empty: "/" */
    kn_http_span query;     /* after the '?'; bytes 0: none */
    kn_http_span authority; /* of an absolute-form target, or the value of Host */
    int64_t content_length; /* -1: none given */
    bool chunked;
    bool keep_alive;      /* what version and Connection say */
    bool expect_continue; /* the client waits for "100 Continue" */
    bool expect_other;    /* an expectation nobody can meet: 417 */
    bool encoded;         /* Content-Encoding other than identity: 415 */
    /* While reading: what was seen of the fields that decide. */
    bool has_length, has_coding, has_host, says_close, says_keep_alive;
    kn_http_span host;
    uint32_t fields;
    kn_http_field field[KN_HTTP_FIELDS_MAX]; /* last: the others are cleared without it */
} kn_http_head;

/* Before the first call for a request. */
static inline void kn_http_head_clear(kn_http_head *head)
{
    memset(head, 0, offsetof(kn_http_head, field));
}

/* Reads what has arrived. `bytes` holds everything received of this request so far, with what the earlier calls saw
 * at the same offsets. KN_AGAIN: more is needed (all of it was looked at, once). KN_OK: `head` is complete, its length
 * head->bytes. KN_INVALID: *refusal says why; the connection cannot go on. The result does not depend on how the
 * bytes were cut. */
kn_status kn_http_parse_head(kn_http_head *head, const char *bytes, size_t count, const kn_http_parse_limits *limits,
                             kn_http_refusal *refusal);

/* Decodes a path of pchar and '/' into `out` (`bytes` + 1 of room), with a NUL. KN_INVALID: an escape that is not two
 * hexadecimal digits; one that stands for NUL, a control, '/', '\' or anything outside printable ASCII; a "." or ".."
 * segment, escaped or not. So a decoded path never means something else than the one a proxy looked at. */
kn_status kn_http_decode_path(char *out, const char *path, size_t bytes);

/* ---- chunked bodies ---- */

/* Zero it before the first byte. */
typedef struct kn_http_chunks {
    uint8_t state;
    uint8_t digits;   /* of the chunk size being read */
    uint64_t left;    /* bytes of the chunk still to come */
    uint32_t chunks;  /* begun so far */
    uint32_t ignored; /* extension bytes so far */
    uint32_t trailer; /* trailer bytes so far */
    bool named;       /* the trailer line being read has passed its colon */
} kn_http_chunks;

/* Reads from `bytes` until a run of body bytes, the end of the body, or the end of the input.
 *
 * *used: bytes read, to be dropped. *data, *data_bytes: a run of body bytes inside `bytes`, before `used`; 0: none.
 * KN_OK: the body is complete. KN_AGAIN: call again with the rest, or with more when everything was used. KN_INVALID:
 * *refusal says why. */
kn_status kn_http_parse_chunks(kn_http_chunks *chunks, const char *bytes, size_t count, size_t *used, const char **data,
                               size_t *data_bytes, kn_http_refusal *refusal);

/* ---- pieces of the grammar, for others ---- */

bool kn_http_is_token(const char *bytes, size_t count);       /* a method, a field name: RFC 9110 5.6.2, not empty */
bool kn_http_is_field_value(const char *bytes, size_t count); /* no control but the tab; bytes above 127 are fine */

#endif
