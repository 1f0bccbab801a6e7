/* SPDX-License-Identifier: Apache-2.0
 *
 * The head is read line by line: a line is looked at when its LF is there, its length is judged before its text, and
 * nothing is judged twice, so that every way to cut the input gives the same verdict. The chunked body is a machine
 * that takes byte by byte what frames the data, and runs of data whole. */
#define _POSIX_C_SOURCE 200809L
#include "server/http_parse.h"

#include <string.h>
#include <strings.h>

/* ---- characters ---- */

enum {
    TOKEN = 1,    /* letters, digits, !#$%&'*+-.^_`|~ */
    VALUE = 2,    /* tab, space, and everything above but DEL */
    PATH = 4,     /* pchar, '/' and '%' (RFC 3986) */
    HOST = 8,     /* letters, digits, -._ */
    HEX = 16,     /* hexadecimal digits */
    TARGET = 32,  /* visible ASCII but '#' */
    ADDRESS = 64, /* hexadecimal digits, ':' and '.': an IPv6 address */
};

/* The classes of the ASCII characters; all above are VALUE. */
static const unsigned char classes[128] = {
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /* controls */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /* controls */
    0x02, 0x27, 0x22, 0x03, 0x27, 0x27, 0x27, 0x27, 0x26, 0x26, 0x27, 0x27, 0x26, 0x2f, 0x6f, 0x26, /* space to / */
    0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x66, 0x26, 0x22, 0x26, 0x22, 0x22, /* 0 to ? */
    0x26, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, /* @ to O */
    0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x22, 0x22, 0x22, 0x23, 0x2f, /* P to _ */
    0x23, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, /* ` to o */
    0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x2f, 0x22, 0x23, 0x22, 0x27, 0x00, /* p to DEL */
};

static unsigned class_of(char c)
{
    return (unsigned char)c < 128 ? classes[(unsigned char)c] : VALUE;
}

static bool all_of(unsigned class, const char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!(class_of(bytes[i]) & class)) return false;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static unsigned hex_value(char c)
{
    return is_digit(c) ? (unsigned)(c - '0') : (unsigned)((c | 32) - 'a') + 10;
}

static bool is_text(const char *bytes, size_t count, const char *text)
{
    return count == strlen(text) && strncasecmp(bytes, text, count) == 0;
}

bool kn_http_is_token(const char *bytes, size_t count)
{
    return count > 0 && all_of(TOKEN, bytes, count);
}

bool kn_http_is_field_value(const char *bytes, size_t count)
{
    return all_of(VALUE, bytes, count);
}

static const char *const method_names[KN_HTTP_METHODS] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"};

const char *kn_http_method_name(kn_http_method method)
{
    return (unsigned)method < KN_HTTP_METHODS ? method_names[method] : "-";
}

static kn_status refuse(kn_http_refusal *refusal, int status, const char *message)
{
    *refusal = (kn_http_refusal){.status = status, .message = message};
    return KN_INVALID;
}

/* ---- request line ---- */

/* A host name or address and an optional port, without user information. */
static bool is_authority(const char *bytes, size_t count)
{
    size_t host = 0;
    if (count > 0 && bytes[0] == '[') {
        for (host = 1; host < count && class_of(bytes[host]) & ADDRESS;) host++;
        if (host == 1 || host == count || bytes[host++] != ']') return false;
    } else {
        while (host < count && class_of(bytes[host]) & HOST) host++;
        if (host == 0) return false;
    }
    if (host == count) return true;
    if (bytes[host] != ':' || count - host > 6) return false;
    for (size_t i = host + 1; i < count; i++)
        if (!is_digit(bytes[i])) return false;
    return true;
}

/* Cuts the target into its parts: origin, absolute or asterisk form (RFC 9112 3.2). */
static kn_status split_target(kn_http_head *head, const char *bytes, kn_http_refusal *refusal)
{
    uint32_t at = head->target.start;
    const uint32_t end = at + head->target.bytes;
    if (head->target.bytes == 1 && bytes[at] == '*' && head->method == KN_HTTP_OPTIONS) {
        head->path = head->target;
        return KN_OK;
    }
    if (bytes[at] != '/') {
        const uint32_t scheme = head->target.bytes > 7 && strncasecmp(bytes + at, "http://", 7) == 0    ? 7
                                : head->target.bytes > 8 && strncasecmp(bytes + at, "https://", 8) == 0 ? 8
                                                                                                        : 0;
        uint32_t slash = at + scheme;
        if (scheme == 0) return refuse(refusal, 400, "the request target must start with '/' or be an http URL");
        while (slash < end && bytes[slash] != '/' && bytes[slash] != '?') slash++;
        head->authority = (kn_http_span){at + scheme, slash - at - scheme};
        if (!is_authority(bytes + at + scheme, head->authority.bytes))
            return refuse(refusal, 400, "the request target's host is malformed");
        at = slash;
    }
    const char *question = memchr(bytes + at, '?', end - at);
    const uint32_t path_end = question ? (uint32_t)(question - bytes) : end;
    head->path = (kn_http_span){at, path_end - at};
    if (question) head->query = (kn_http_span){path_end + 1, end - path_end - 1};
    if (!all_of(PATH, bytes + at, head->path.bytes))
        return refuse(refusal, 400, "the request target's path has a character that must be percent-encoded");
    return KN_OK;
}

static kn_status read_version(kn_http_head *head, const char *version, size_t count, kn_http_refusal *refusal)
{
    if (count != 8 || memcmp(version, "HTTP/", 5) != 0 || !is_digit(version[5]) || version[6] != '.' ||
        !is_digit(version[7]))
        return refuse(refusal, 400, "the request line must be: method, space, target, space, HTTP/1.1");
    if (version[5] != '1' || version[7] > '1')
        return refuse(refusal, 505, "this server speaks HTTP/1.1 and HTTP/1.0 on this connection");
    head->minor = (uint8_t)(version[7] - '0');
    return KN_OK;
}

/* `end`: of the text, before CRLF. */
static kn_status read_request_line(kn_http_head *head, const char *bytes, uint32_t end,
                                   const kn_http_parse_limits *limits, kn_http_refusal *refusal)
{
    const uint32_t start = head->line;
    const char *space = memchr(bytes + start, ' ', end - start);
    const uint32_t method_end = space ? (uint32_t)(space - bytes) : end;
    const char *second = space ? memchr(space + 1, ' ', end - method_end - 1) : NULL;
    const uint32_t target_end = second ? (uint32_t)(second - bytes) : end;
    if (!second || !kn_http_is_token(bytes + start, method_end - start) || target_end == method_end + 1)
        return refuse(refusal, 400, "the request line must be: method, space, target, space, HTTP/1.1");
    head->target = (kn_http_span){method_end + 1, target_end - method_end - 1};
    if (!all_of(TARGET, bytes + head->target.start, head->target.bytes))
        return refuse(refusal, 400, "the request target has a character that must be percent-encoded");
    if (read_version(head, second + 1, end - target_end - 1, refusal) != KN_OK) return KN_INVALID;
    if (head->target.bytes > limits->target_bytes)
        return refuse(refusal, 414, "the request target is longer than this server takes (8 KiB by default)");
    int method = 0;
    while (method < KN_HTTP_METHODS && (strlen(method_names[method]) != method_end - start ||
                                        memcmp(method_names[method], bytes + start, method_end - start) != 0))
        method++;
    if (method == KN_HTTP_METHODS) return refuse(refusal, 501, "this request method is not implemented");
    head->method = (kn_http_method)method;
    return split_target(head, bytes, refusal);
}

/* ---- header section ---- */

static kn_status read_content_length(kn_http_head *head, const char *value, size_t count, kn_http_refusal *refusal)
{
    int64_t length = 0;
    if (head->has_length) return refuse(refusal, 400, "Content-Length is given twice");
    head->has_length = true;
    for (size_t i = 0; i < count; i++) {
        if (!is_digit(value[i]) || length > (INT64_MAX - 9) / 10)
            return refuse(refusal, 400, "Content-Length is not a number of bytes");
        length = length * 10 + (value[i] - '0');
    }
    if (count == 0) return refuse(refusal, 400, "Content-Length is not a number of bytes");
    head->content_length = length;
    return KN_OK;
}

static kn_status read_coding(kn_http_head *head, const char *value, size_t count, kn_http_refusal *refusal)
{
    if (head->has_coding) return refuse(refusal, 400, "Transfer-Encoding is given twice");
    head->has_coding = true;
    if (!is_text(value, count, "chunked")) return refuse(refusal, 400, "Transfer-Encoding must be \"chunked\"");
    if (head->minor == 0) return refuse(refusal, 400, "HTTP/1.0 has no Transfer-Encoding");
    head->chunked = true;
    return KN_OK;
}

static kn_status read_host(kn_http_head *head, const char *bytes, kn_http_span value, kn_http_refusal *refusal)
{
    if (head->has_host) return refuse(refusal, 400, "Host is given twice");
    head->has_host = true;
    head->host = value;
    if (!is_authority(bytes + value.start, value.bytes)) return refuse(refusal, 400, "Host is malformed");
    return KN_OK;
}

static void read_connection(kn_http_head *head, const char *value, size_t count)
{
    for (size_t at = 0; at <= count;) {
        const char *comma = memchr(value + at, ',', count - at);
        size_t end = comma ? (size_t)(comma - value) : count, next = end + 1;
        while (at < end && (value[at] == ' ' || value[at] == '\t')) at++;
        while (end > at && (value[end - 1] == ' ' || value[end - 1] == '\t')) end--;
        if (is_text(value + at, end - at, "close")) head->says_close = true;
        if (is_text(value + at, end - at, "keep-alive")) head->says_keep_alive = true;
        at = next;
    }
}

/* The fields that decide how the request is read. */
static kn_status interpret(kn_http_head *head, const char *bytes, const kn_http_field *field, kn_http_refusal *refusal)
{
    const char *name = bytes + field->name.start, *value = bytes + field->value.start;
    const size_t name_bytes = field->name.bytes, value_bytes = field->value.bytes;
    if (is_text(name, name_bytes, "host")) return read_host(head, bytes, field->value, refusal);
    if (is_text(name, name_bytes, "content-length")) return read_content_length(head, value, value_bytes, refusal);
    if (is_text(name, name_bytes, "transfer-encoding")) return read_coding(head, value, value_bytes, refusal);
    if (is_text(name, name_bytes, "connection")) read_connection(head, value, value_bytes);
    if (is_text(name, name_bytes, "content-encoding") && !is_text(value, value_bytes, "identity")) head->encoded = true;
    if (is_text(name, name_bytes, "expect") && head->minor > 0) {
        if (is_text(value, value_bytes, "100-continue"))
            head->expect_continue = true;
        else
            head->expect_other = true;
    }
    return KN_OK;
}

static kn_status read_field(kn_http_head *head, const char *bytes, uint32_t end, const kn_http_parse_limits *limits,
                            kn_http_refusal *refusal)
{
    const uint32_t start = head->line;
    if (bytes[start] == ' ' || bytes[start] == '\t') return refuse(refusal, 400, "a header field must be on one line");
    const char *colon = memchr(bytes + start, ':', end - start);
    const uint32_t name_end = colon ? (uint32_t)(colon - bytes) : start;
    if (!kn_http_is_token(bytes + start, name_end - start))
        return refuse(refusal, 400, "a header field must be: name, colon, value");
    uint32_t value = name_end + 1, value_end = end;
    while (value < value_end && (bytes[value] == ' ' || bytes[value] == '\t')) value++;
    while (value_end > value && (bytes[value_end - 1] == ' ' || bytes[value_end - 1] == '\t')) value_end--;
    if (!kn_http_is_field_value(bytes + value, value_end - value))
        return refuse(refusal, 400, "a header field's value has a control character");
    if (head->fields == limits->fields)
        return refuse(refusal, 431, "there are more header fields than this server takes (100 by default)");
    kn_http_field *field = &head->field[head->fields++];
    *field = (kn_http_field){.name = {start, name_end - start}, .value = {value, value_end - value}};
    return interpret(head, bytes, field, refusal);
}

static kn_status finish_head(kn_http_head *head, const char *bytes, kn_http_refusal *refusal)
{
    if (head->has_length && head->has_coding)
        return refuse(refusal, 400, "Content-Length and Transfer-Encoding exclude each other");
    if (!head->has_host && head->minor > 0) return refuse(refusal, 400, "Host is missing");
    if (head->authority.bytes > 0 && head->has_host &&
        (head->authority.bytes != head->host.bytes ||
         strncasecmp(bytes + head->authority.start, bytes + head->host.start, head->host.bytes) != 0))
        return refuse(refusal, 400, "Host and the request target name different hosts");
    if (head->authority.bytes == 0) head->authority = head->host;
    if (!head->has_length) head->content_length = -1;
    head->keep_alive = !head->says_close && (head->minor > 0 || head->says_keep_alive);
    return KN_OK;
}

/* Is what has come of this line, `bytes` with the LF where `complete`, more than a line may have? A header section's
 * limit does not count the empty line, whose CR alone may already be there. */
static bool too_long(const kn_http_head *head, uint32_t end, bool complete, bool empty,
                     const kn_http_parse_limits *limits)
{
    if (head->header == 0) return end - head->line > KN_HTTP_METHOD_BYTES_MAX + 1 + limits->target_bytes + 1 + 8 + 2;
    return !empty && end - head->header > limits->header_bytes + (complete ? 0u : 1u);
}

static kn_status refuse_long(const kn_http_head *head, kn_http_refusal *refusal)
{
    return head->header == 0
               ? refuse(refusal, 414, "the request target is longer than this server takes (8 KiB by default)")
               : refuse(refusal, 431, "the header section is longer than this server takes (16 KiB by default)");
}

/* One line with its CRLF, up to `next`. KN_AGAIN: the head goes on. */
static kn_status read_line(kn_http_head *head, const char *bytes, uint32_t next, const kn_http_parse_limits *limits,
                           kn_http_refusal *refusal)
{
    kn_status st = KN_OK;
    const uint32_t start = head->line;
    if (next - start < 2 || bytes[next - 2] != '\r') return refuse(refusal, 400, "a line must end in CR LF");
    const bool empty = next - start == 2;
    if (head->header > 0 && empty) {
        head->bytes = next;
        return finish_head(head, bytes, refusal);
    }
    if (head->header == 0 && empty) { /* RFC 9112 2.2: one is left over after the body of some old clients */
        if (start > 0) return refuse(refusal, 400, "empty lines before the request line");
    } else if (head->header == 0) {
        st = read_request_line(head, bytes, next - 2, limits, refusal);
        head->header = next;
    } else {
        st = read_field(head, bytes, next - 2, limits, refusal);
    }
    head->line = next;
    return st == KN_OK ? KN_AGAIN : st;
}

kn_status kn_http_parse_head(kn_http_head *head, const char *bytes, size_t count, const kn_http_parse_limits *limits,
                             kn_http_refusal *refusal)
{
    const size_t longest = 2 + KN_HTTP_METHOD_BYTES_MAX + 1 + limits->target_bytes + 1 + 8 + 2 + limits->header_bytes;
    if (count > longest + 2) count = longest + 2; /* no head is longer, so the offsets cannot overflow */
    while (head->scanned < count) {
        const char *lf = memchr(bytes + head->scanned, '\n', count - head->scanned);
        const uint32_t next = (uint32_t)(lf ? lf - bytes + 1 : (ptrdiff_t)count);
        const bool empty = lf && next - head->line == 2 && bytes[head->line] == '\r';
        head->scanned = next;
        if (too_long(head, next, lf != NULL, empty, limits)) return refuse_long(head, refusal);
        if (!lf) break;
        const kn_status st = read_line(head, bytes, next, limits, refusal);
        if (st != KN_AGAIN) return st;
    }
    return KN_AGAIN;
}

/* ---- path ---- */

static bool is_dots(const char *segment, size_t bytes)
{
    return (bytes == 1 && segment[0] == '.') || (bytes == 2 && segment[0] == '.' && segment[1] == '.');
}

kn_status kn_http_decode_path(char *out, const char *path, size_t bytes)
{
    size_t used = 0, segment = 0;
    for (size_t i = 0; i < bytes; i++) {
        char c = path[i];
        if (c == '%') {
            if (bytes - i < 3 || !all_of(HEX, path + i + 1, 2)) return KN_INVALID;
            const unsigned value = hex_value(path[i + 1]) << 4 | hex_value(path[i + 2]);
            if (value < 0x20 || value > 0x7e || value == '/' || value == '\\') return KN_INVALID;
            c = (char)value;
            i += 2;
        } else if (c == '/') {
            if (is_dots(out + segment, used - segment)) return KN_INVALID;
            segment = used + 1;
        }
        out[used++] = c;
    }
    if (is_dots(out + segment, used - segment)) return KN_INVALID;
    out[used] = '\0';
    return KN_OK;
}

/* ---- chunked bodies (RFC 9112 7.1) ---- */

enum {
    CHUNK_SIZE,
    CHUNK_EXTENSION,
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    TRAILER_LINE, /* at the start of one */
    TRAILER,
    TRAILER_LF,
    LAST_LF,
    COMPLETE,
};

enum { SIZE_DIGITS_MAX = 15 }; /* so that a size fits in 60 bits */

static kn_status read_size(kn_http_chunks *chunks, char c, kn_http_refusal *refusal)
{
    if (class_of(c) & HEX) {
        if (chunks->digits++ == SIZE_DIGITS_MAX) return refuse(refusal, 400, "a chunk size has too many digits");
        chunks->left = chunks->left << 4 | hex_value(c);
        return KN_OK;
    }
    if (chunks->digits == 0 || (c != ';' && c != '\r'))
        return refuse(refusal, 400, "a chunk must start with its size in hexadecimal digits and CR LF");
    chunks->state = c == ';' ? CHUNK_EXTENSION : CHUNK_SIZE_LF;
    return KN_OK;
}

static kn_status read_extension(kn_http_chunks *chunks, char c, kn_http_refusal *refusal)
{
    if (c == '\r') {
        chunks->state = CHUNK_SIZE_LF;
        return KN_OK;
    }
    if (!(class_of(c) & VALUE)) return refuse(refusal, 400, "a chunk extension has a control character");
    if (chunks->ignored++ == KN_HTTP_CHUNK_EXTENSION_BYTES)
        return refuse(refusal, 400, "there are more than 1,024 bytes of chunk extensions");
    return KN_OK;
}

static kn_status begin_chunk(kn_http_chunks *chunks, kn_http_refusal *refusal)
{
    chunks->digits = 0;
    chunks->state = chunks->left > 0 ? CHUNK_DATA : TRAILER_LINE;
    if (chunks->left > 0 && chunks->chunks++ == KN_HTTP_CHUNKS_MAX)
        return refuse(refusal, 400, "there are more than 65,536 chunks");
    return KN_OK;
}

/* Trailer fields are checked like header fields, and dropped. */
static kn_status read_trailer(kn_http_chunks *chunks, char c, kn_http_refusal *refusal)
{
    const unsigned class = class_of(c);
    if (chunks->state == TRAILER_LINE && c == '\r') {
        chunks->state = LAST_LF;
        return KN_OK;
    }
    if (chunks->trailer++ == KN_HTTP_TRAILER_BYTES)
        return refuse(refusal, 431, "the trailer section is longer than 4,096 bytes");
    if (chunks->state == TRAILER_LINE) {
        chunks->named = false;
        chunks->state = TRAILER;
        return class & TOKEN ? KN_OK : refuse(refusal, 400, "a trailer field must be: name, colon, value");
    }
    if (chunks->named && c == '\r')
        chunks->state = TRAILER_LF;
    else if (!chunks->named && c == ':')
        chunks->named = true;
    else if (!(class & (chunks->named ? VALUE : TOKEN)))
        return refuse(refusal, 400, "a trailer field must be: name, colon, value");
    return KN_OK;
}

/* A byte that must be this one; the state it leads to. */
static kn_status expect(kn_http_chunks *chunks, char c, char wanted, uint8_t next, kn_http_refusal *refusal)
{
    chunks->state = next;
    return c == wanted ? KN_OK : refuse(refusal, 400, "a chunk and its size must each end in CR LF");
}

static kn_status read_frame(kn_http_chunks *chunks, char c, kn_http_refusal *refusal)
{
    switch (chunks->state) {
    case CHUNK_SIZE: return read_size(chunks, c, refusal);
    case CHUNK_EXTENSION: return read_extension(chunks, c, refusal);
    case CHUNK_SIZE_LF:
        return c == '\n' ? begin_chunk(chunks, refusal) : expect(chunks, c, '\n', CHUNK_SIZE_LF, refusal);
    case CHUNK_DATA_CR: return expect(chunks, c, '\r', CHUNK_DATA_LF, refusal);
    case CHUNK_DATA_LF: return expect(chunks, c, '\n', CHUNK_SIZE, refusal);
    case TRAILER_LF: return expect(chunks, c, '\n', TRAILER_LINE, refusal);
    case LAST_LF: return expect(chunks, c, '\n', COMPLETE, refusal);
    default: return read_trailer(chunks, c, refusal);
    }
}

kn_status kn_http_parse_chunks(kn_http_chunks *chunks, const char *bytes, size_t count, size_t *used, const char **data,
                               size_t *data_bytes, kn_http_refusal *refusal)
{
    *used = *data_bytes = 0;
    *data = bytes;
    while (*used < count && chunks->state != COMPLETE) {
        if (chunks->state == CHUNK_DATA) {
            const size_t left = count - *used;
            *data = bytes + *used;
            *data_bytes = chunks->left < left ? (size_t)chunks->left : left;
            *used += *data_bytes;
            chunks->left -= *data_bytes;
            if (chunks->left == 0) chunks->state = CHUNK_DATA_CR;
            return KN_AGAIN;
        }
        if (read_frame(chunks, bytes[(*used)++], refusal) != KN_OK) return KN_INVALID;
    }
    return chunks->state == COMPLETE ? KN_OK : KN_AGAIN;
}
