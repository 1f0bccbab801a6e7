/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a multipart body with the boundary "b": the same parts and the same answer whole and in pieces, and
 * names that are text and no path. The first byte is the size of the pieces. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/multipart.h"
#include "server/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

typedef struct transcript {
    kn_text text;
    const char *body;
    size_t count;
    uint64_t at; /* where the current part's content is read from, in the body */
} transcript;

static void ensure(int holds)
{
    if (!holds) abort();
}

static void describe(transcript *t, const kn_multipart_part *part)
{
    ensure(part->name[0] && kn_text_characters(part->name, strlen(part->name)) > 0);
    ensure(kn_text_characters(part->filename, strlen(part->filename)) >= 0 && !strpbrk(part->filename, "/\\"));
    ensure(part->offset <= t->count);
    t->at = part->offset;
    kn_text_format(&t->text, "%s|%s|%s|%d|%llu:", part->name, part->filename, part->content_type, part->is_file,
                   (unsigned long long)part->offset);
}

static kn_status on_text(void *context, const kn_multipart_part *part, const char *value, size_t count,
                         kn_api_error *error)
{
    (void)error;
    transcript *t = context;
    describe(t, part);
    ensure(!part->is_file && count <= t->count - part->offset && memcmp(t->body + part->offset, value, count) == 0);
    kn_text_append(&t->text, value, count);
    return KN_OK;
}

static kn_status on_begin(void *context, const kn_multipart_part *part, kn_api_error *error)
{
    (void)error;
    ensure(part->is_file);
    describe(context, part);
    return KN_OK;
}

/* A file is one run of the body that starts at the part's offset. */
static kn_status on_data(void *context, const void *bytes, size_t count, kn_api_error *error)
{
    (void)error;
    transcript *t = context;
    ensure(count > 0 && count <= t->count - t->at && memcmp(t->body + t->at, bytes, count) == 0);
    t->at += count;
    kn_text_append(&t->text, bytes, count);
    return KN_OK;
}

static kn_status on_end(void *context, kn_api_error *error)
{
    (void)error;
    kn_text_string(&((transcript *)context)->text, "\nend\n");
    return KN_OK;
}

static kn_status parse(transcript *t, size_t piece, kn_api_error *error)
{
    const kn_multipart_sink sink = {
        .context = t, .text = on_text, .file_begin = on_begin, .file_data = on_data, .file_end = on_end};
    kn_multipart *parser = NULL;
    kn_status st = kn_multipart_create(&parser, "multipart/form-data; boundary=b", sink, error);
    for (size_t at = 0; st == KN_OK && at < t->count; at += piece)
        st = kn_multipart_feed(parser, t->body + at, piece < t->count - at ? piece : t->count - at, error);
    if (st == KN_OK) st = kn_multipart_finish(parser, error);
    kn_multipart_destroy(&parser);
    return st;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (count == 0) return -1;
    uint64_t held = kn_mem_read().bytes;
    const char *body = (const char *)bytes + 1;
    kn_api_error whole_error = {0}, error = {0};
    transcript whole = {.text = kn_text_growing(2 * count + (1 << 16)), .body = body, .count = count - 1};
    transcript pieces = whole;
    kn_status st = parse(&whole, count, &whole_error);
    ensure(parse(&pieces, 1 + bytes[0] % 64, &error) == st);
    if (st == KN_OK)
        ensure(whole.text.count == pieces.text.count &&
               (whole.text.count == 0 || memcmp(whole.text.bytes, pieces.text.bytes, whole.text.count) == 0));
    else
        ensure(strcmp(whole_error.message, error.message) == 0 && error.status >= 400 && error.status < 500);
    kn_text_release(&whole.text);
    kn_text_release(&pieces.text);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
