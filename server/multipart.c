/* SPDX-License-Identifier: Apache-2.0
 *
 * multipart/form-data as it arrives; see multipart.h.
 *
 * The delimiter is CR LF "--" boundary. Its first byte occurs nowhere else in it, so a match that breaks off can only
 * start again at the byte that broke it: no table and no copy of what came before are needed, because the bytes held
 * back are the delimiter's own. The body is read as if a CR LF came before it, so that a boundary may start it. */
#define _POSIX_C_SOURCE 200809L
#include "server/multipart.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "server/text.h"

typedef enum state {
    PREAMBLE,
    TAIL,      /* after a delimiter: "--", or padding, then CR LF */
    TAIL_DASH, /* the first '-' seen */
    TAIL_PAD,
    TAIL_CR,
    HEADERS,
    CONTENT,
    EPILOGUE,
} state;

struct kn_multipart {
    kn_multipart_sink sink;
    state state;
    char delimiter[4 + KN_MULTIPART_BOUNDARY_MAX + 1];
    size_t delimiter_count;
    size_t matched;    /* bytes of the delimiter seen, in PREAMBLE and CONTENT */
    uint64_t position; /* bytes of the body read so far */
    int32_t parts;
    kn_multipart_part part;
    size_t header_count;
    char header[KN_MULTIPART_HEADER_BYTES_MAX + 1];
    size_t text_bytes; /* of the text parts before this one */
    kn_text text;
};

/* ---- header values ---- */

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

/* RFC 9110 token. */
static bool is_token(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

bool kn_media_type_is(const char *content_type, const char *type)
{
    size_t count = strlen(type);
    if (strncasecmp(content_type, type, count) != 0) return false;
    const char *rest = content_type + count;
    while (is_space(*rest)) rest++;
    return *rest == '\0' || *rest == ';';
}

/* Copies a quoted string or a token to out; the character after it, or NULL. Only \" and \\ are escapes: paths with
 * backslashes are sent as they are. */
static const char *take_value(const char *at, char *out, size_t bytes)
{
    size_t count = 0;
    const bool quoted = *at == '"';
    if (quoted) at++;
    while (quoted ? *at && *at != '"' : is_token(*at)) {
        if (quoted && *at == '\\' && (at[1] == '"' || at[1] == '\\')) at++;
        if (count + 1 >= bytes) return NULL;
        out[count++] = *at++;
    }
    out[count] = '\0';
    if (!quoted) return count > 0 ? at : NULL;
    return *at == '"' ? at + 1 : NULL;
}

kn_status kn_header_parameter(const char *value, const char *name, char *out, size_t bytes)
{
    char other[KN_MULTIPART_HEADER_BYTES_MAX + 1]; /* a value that is skipped */
    bool found = false;
    const char *at = value + strcspn(value, ";");
    while (*at) {
        if (*at != ';') return KN_INVALID;
        at++;
        while (is_space(*at)) at++;
        if (*at == '\0' || *at == ';') continue; /* "a/b; " and "a/b;;c=d" occur */
        size_t count = 0;
        while (is_token(at[count])) count++;
        if (count == 0 || at[count] != '=') return KN_INVALID;
        bool wanted = count == strlen(name) && strncasecmp(at, name, count) == 0;
        if (wanted && found) return KN_INVALID;
        found |= wanted;
        at = take_value(at + count + 1, wanted ? out : other, wanted ? bytes : sizeof other);
        if (!at) return KN_INVALID;
        while (is_space(*at)) at++;
    }
    return found ? KN_OK : KN_NOT_FOUND;
}

/* ---- part headers ---- */

/* What is left of a client's file name: the last component, without control characters, cut between characters. */
static void keep_filename(char *out, const char *sent)
{
    const char *last = sent;
    for (const char *at = sent; *at; at++) {
        if (*at == '/' || *at == '\\') last = at + 1;
    }
    size_t count = strlen(last);
    if (count > KN_MULTIPART_FILENAME_BYTES_MAX) {
        count = KN_MULTIPART_FILENAME_BYTES_MAX;
        while (count > 0 && ((unsigned char)last[count] & 0xc0) == 0x80) count--;
    }
    if (kn_text_characters(last, count) < 0) count = 0;
    memcpy(out, last, count);
    out[count] = '\0';
}

static kn_status read_disposition(kn_multipart_part *part, const char *value, kn_api_error *error)
{
    char filename[KN_MULTIPART_HEADER_BYTES_MAX + 1];
    if (part->name[0]) return kn_api_invalid_body(error, "A part of the form has two Content-Disposition headers.");
    if (!kn_media_type_is(value, "form-data"))
        return kn_api_invalid_body(error, "A part's Content-Disposition is not form-data.");
    kn_status st = kn_header_parameter(value, "name", part->name, sizeof part->name);
    if (st != KN_OK || part->name[0] == '\0' || kn_text_characters(part->name, strlen(part->name)) < 0)
        return kn_api_invalid_body(error, "A part's Content-Disposition has no name of 1 to %d bytes of UTF-8.",
                                   KN_MULTIPART_NAME_BYTES_MAX);
    st = kn_header_parameter(value, "filename", filename, sizeof filename);
    if (st == KN_INVALID) return kn_api_invalid_body(error, "The filename of the part '%s' is malformed.", part->name);
    part->is_file = st == KN_OK;
    if (st == KN_OK) keep_filename(part->filename, filename);
    /* RFC 7578 4.2 forbids filename*; whoever sends it anyway means a file. */
    if (kn_header_parameter(value, "filename*", filename, sizeof filename) == KN_OK) part->is_file = true;
    return KN_OK;
}

static kn_status read_type(kn_multipart_part *part, const char *value, kn_api_error *error)
{
    if (part->content_type[0]) return kn_api_invalid_body(error, "A part of the form has two Content-Type headers.");
    size_t count = strlen(value);
    if (count == 0 || count > KN_MULTIPART_TYPE_BYTES_MAX)
        return kn_api_invalid_body(error, "A part's Content-Type has %zu bytes; 1 to %d are accepted.", count,
                                   KN_MULTIPART_TYPE_BYTES_MAX);
    if (strncasecmp(value, "multipart/", 10) == 0)
        return kn_api_invalid_body(error, "A multipart inside a part is not accepted; send each file as its own part.");
    memcpy(part->content_type, value, count + 1);
    return KN_OK;
}

static kn_status read_header(kn_multipart_part *part, const char *name, const char *value, kn_api_error *error)
{
    if (strcasecmp(name, "content-disposition") == 0) return read_disposition(part, value, error);
    if (strcasecmp(name, "content-type") == 0) return read_type(part, value, error);
    if (strcasecmp(name, "content-transfer-encoding") == 0 && strcasecmp(value, "binary") != 0 &&
        strcasecmp(value, "8bit") != 0 && strcasecmp(value, "7bit") != 0)
        return kn_api_invalid_body(error, "A part has Content-Transfer-Encoding '%.40s'; send it as it is.", value);
    return KN_OK;
}

/* One line without its CR LF, changed in place. */
static kn_status read_line(kn_multipart_part *part, char *line, size_t count, kn_api_error *error)
{
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)line[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return kn_api_invalid_body(error, "A part header has the control character 0x%02x.", c);
    }
    line[count] = '\0';
    size_t name = 0;
    while (is_token(line[name])) name++;
    if (name == 0 || line[name] != ':')
        return kn_api_invalid_body(error, "A part header is not 'name: value' on one line: '%.60s'.", line);
    line[name] = '\0';
    char *value = line + name + 1;
    while (is_space(*value)) value++;
    char *end = line + count;
    while (end > value && is_space(end[-1])) *--end = '\0';
    return read_header(part, line, value, error);
}

static kn_status check_charset(const kn_multipart_part *part, kn_api_error *error)
{
    char charset[KN_MULTIPART_TYPE_BYTES_MAX + 1];
    kn_status st = kn_header_parameter(part->content_type, "charset", charset, sizeof charset);
    if (st == KN_NOT_FOUND) return KN_OK;
    if (st == KN_OK && (strcasecmp(charset, "utf-8") == 0 || strcasecmp(charset, "us-ascii") == 0)) return KN_OK;
    return kn_api_invalid_body(error, "The part '%s' is not marked as UTF-8 text: '%s'.", part->name,
                               part->content_type);
}

/* The header block is complete; the next byte is content. */
static kn_status begin_part(kn_multipart *parser, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_multipart_part *part = &parser->part;
    *part = (kn_multipart_part){.offset = parser->position};
    char *end = parser->header + parser->header_count - 2;
    for (char *line = parser->header; line < end;) {
        char *stop = strstr(line, "\r\n"); /* there: the block ends in one, and its NULs end the search as an error */
        if (!stop) return kn_api_invalid_body(error, "A part header has the control character 0x00.");
        KN_TRY(read_line(part, line, (size_t)(stop - line), error));
        line = stop + 2;
    }
    if (part->name[0] == '\0') return kn_api_invalid_body(error, "A part of the form has no Content-Disposition.");
    parser->state = CONTENT;
    parser->matched = 0;
    if (part->is_file) return parser->sink.file_begin(parser->sink.context, part, error);
    kn_text_clear(&parser->text);
    parser->text.limit = KN_MULTIPART_TEXT_BYTES_MAX - parser->text_bytes;
    KN_TRY(check_charset(part, error));
fail:
    return st;
}

/* ---- the body ---- */

static kn_status emit(kn_multipart *parser, const char *bytes, size_t count, kn_api_error *error)
{
    if (count == 0) return KN_OK;
    if (parser->part.is_file) return parser->sink.file_data(parser->sink.context, bytes, count, error);
    kn_text_append(&parser->text, bytes, count);
    if (parser->text.status == KN_INVALID)
        return kn_api_too_large(error, "The text of the form", KN_MULTIPART_TEXT_BYTES_MAX);
    return parser->text.status == KN_OK ? KN_OK : kn_api_from_status(error, parser->text.status);
}

static kn_status end_part(kn_multipart *parser, kn_api_error *error)
{
    if (parser->part.is_file) return parser->sink.file_end(parser->sink.context, error);
    parser->text_bytes += parser->text.count;
    return parser->sink.text(parser->sink.context, &parser->part, parser->text.count > 0 ? parser->text.bytes : "",
                             parser->text.count, error);
}

/* Reads content (or the preamble, which goes nowhere) up to the end of the piece or of a delimiter. */
static kn_status read_content(kn_multipart *parser, const char **at, const char *end, kn_api_error *error)
{
    kn_status st = KN_OK;
    const bool content = parser->state == CONTENT;
    while (*at < end) {
        if (parser->matched == 0) {
            const char *stop = memchr(*at, '\r', (size_t)(end - *at));
            if (!stop) stop = end;
            if (content) KN_TRY(emit(parser, *at, (size_t)(stop - *at), error));
            parser->position += (uint64_t)(stop - *at);
            *at = stop;
            if (stop == end) break;
        }
        if (**at != parser->delimiter[parser->matched]) {
            size_t held = parser->matched;
            parser->matched = 0;
            if (content) KN_TRY(emit(parser, parser->delimiter, held, error));
            continue; /* this byte may start the delimiter */
        }
        ++*at;
        parser->position++;
        if (++parser->matched == parser->delimiter_count) {
            parser->state = TAIL;
            if (content) KN_TRY(end_part(parser, error));
            break;
        }
    }
fail:
    return st;
}

static kn_status read_tail(kn_multipart *parser, char c, kn_api_error *error)
{
    if (parser->state == TAIL && c == '-') {
        parser->state = TAIL_DASH;
    } else if (parser->state == TAIL_DASH && c == '-') {
        parser->state = EPILOGUE;
    } else if ((parser->state == TAIL || parser->state == TAIL_PAD) && is_space(c)) {
        parser->state = TAIL_PAD;
    } else if ((parser->state == TAIL || parser->state == TAIL_PAD) && c == '\r') {
        parser->state = TAIL_CR;
    } else if (parser->state == TAIL_CR && c == '\n') {
        if (++parser->parts > KN_MULTIPART_PARTS_MAX)
            return kn_api_invalid_body(error, "The form has more than %d parts.", KN_MULTIPART_PARTS_MAX);
        parser->state = HEADERS;
        parser->header_count = 0;
    } else {
        return kn_api_invalid_body(error, "A boundary of the form is followed by something other than a line's end.");
    }
    return KN_OK;
}

static kn_status read_header_byte(kn_multipart *parser, char c, kn_api_error *error)
{
    char *header = parser->header;
    if (parser->header_count == KN_MULTIPART_HEADER_BYTES_MAX)
        return kn_api_invalid_body(error, "The headers of a part are longer than %d bytes.",
                                   KN_MULTIPART_HEADER_BYTES_MAX);
    header[parser->header_count++] = c;
    size_t count = parser->header_count;
    header[count] = '\0';
    bool complete = count == 2 ? memcmp(header, "\r\n", 2) == 0
                               : count >= 4 && c == '\n' && memcmp(header + count - 4, "\r\n\r\n", 4) == 0;
    return complete ? begin_part(parser, error) : KN_OK;
}

kn_status kn_multipart_feed(kn_multipart *parser, const void *bytes, size_t count, kn_api_error *error)
{
    kn_status st = KN_OK;
    if (count == 0) return KN_OK; /* bytes may be NULL */
    const char *at = bytes, *end = at + count;
    if (count > KN_MULTIPART_BODY_BYTES_MAX - parser->position)
        return kn_api_too_large(error, "The form", KN_MULTIPART_BODY_BYTES_MAX);
    while (at < end) {
        switch (parser->state) {
        case PREAMBLE:
        case CONTENT: KN_TRY(read_content(parser, &at, end, error)); break;
        case EPILOGUE:
            parser->position += (uint64_t)(end - at);
            at = end;
            break;
        case HEADERS:
            parser->position++;
            KN_TRY(read_header_byte(parser, *at++, error));
            break;
        default:
            parser->position++;
            KN_TRY(read_tail(parser, *at++, error));
            break;
        }
    }
fail:
    return st;
}

kn_status kn_multipart_finish(kn_multipart *parser, kn_api_error *error)
{
    if (parser->state == EPILOGUE) return KN_OK;
    return kn_api_invalid_body(error, "The form ends before its closing boundary.");
}

/* RFC 2046: 1 to 70 characters of this set, the last not a space. */
static bool is_boundary(const char *text)
{
    size_t count = strlen(text);
    if (count == 0 || count > KN_MULTIPART_BOUNDARY_MAX || text[count - 1] == ' ') return false;
    for (size_t i = 0; i < count; i++) {
        char c = text[i];
        bool letter = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !strchr("'()+_,-./:=? ", c)) return false;
    }
    return true;
}

kn_status kn_multipart_create(kn_multipart **out, const char *content_type, kn_multipart_sink sink, kn_api_error *error)
{
    char boundary[KN_MULTIPART_BOUNDARY_MAX + 1];
    if (!kn_media_type_is(content_type, "multipart/form-data"))
        return kn_api_unsupported_media_type(error, "The Content-Type is not multipart/form-data.");
    kn_status st = kn_header_parameter(content_type, "boundary", boundary, sizeof boundary);
    if (st != KN_OK || !is_boundary(boundary))
        return kn_api_invalid_body(error, "The Content-Type has no boundary of 1 to %d permitted characters.",
                                   KN_MULTIPART_BOUNDARY_MAX);
    kn_multipart *parser = kn_alloc(sizeof *parser);
    if (!parser) return kn_api_from_status(error, KN_NOMEM);
    parser->sink = sink;
    parser->delimiter_count = (size_t)snprintf(parser->delimiter, sizeof parser->delimiter, "\r\n--%s", boundary);
    parser->matched = 2; /* as if a line had ended before the body */
    parser->text = kn_text_growing(KN_MULTIPART_TEXT_BYTES_MAX);
    *out = parser;
    return KN_OK;
}

void kn_multipart_destroy(kn_multipart **parser)
{
    if (!parser || !*parser) return;
    kn_text_release(&(*parser)->text);
    kn_free(*parser);
    *parser = NULL;
}
