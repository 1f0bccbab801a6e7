/* SPDX-License-Identifier: Apache-2.0
 *
 * Bodies of the Videos API in any dialect to one JSON tree, and what a file part is by its first bytes. The fields of
 * the tree are video_fields.c's. */
#define _POSIX_C_SOURCE 200809L
#include "server/video_request.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "server/form.h"
#include "server/json.h"
#include "server/multipart.h"
#include "server/text.h"
#include "server/video_fields.h"

typedef enum dialect { DIALECT_JSON, DIALECT_URLENCODED, DIALECT_MULTIPART } dialect;

struct kn_video_reader {
    kn_video_operation operation;
    dialect dialect;
    kn_video_file_sink sink;
    kn_text body;            /* JSON, URLENCODED */
    kn_multipart *multipart; /* MULTIPART, with the two below */
    kn_form form;
    EVP_MD_CTX *digest;
    bool has_file; /* a file part with a name or content came */
    kn_multipart_part file;
    uint64_t file_bytes;
    uint8_t file_sha256[KN_SHA256_BYTES];
    size_t head_count;
    uint8_t head[KN_MEDIA_MAGIC_BYTES]; /* first bytes of the file */
};

/* ---- media types ---- */

kn_media_kind kn_media_sniff(const void *bytes, size_t count)
{
    static const struct {
        kn_media_kind kind;
        size_t offset, count;
        const char *magic;
    } kinds[] = {
        {KN_MEDIA_JPEG, 0, 3, "\xff\xd8\xff"}, {KN_MEDIA_PNG, 0, 8, "\x89PNG\r\n\x1a\n"}, {KN_MEDIA_WEBP, 8, 4, "WEBP"},
        {KN_MEDIA_GIF, 0, 4, "GIF8"},          {KN_MEDIA_WEBM, 0, 4, "\x1a\x45\xdf\xa3"}, {KN_MEDIA_MP4, 4, 4, "ftyp"},
    };
    const char *at = bytes;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (count < kinds[i].offset + kinds[i].count) continue;
        if (memcmp(at + kinds[i].offset, kinds[i].magic, kinds[i].count) != 0) continue;
        if (kinds[i].kind != KN_MEDIA_WEBP || memcmp(at, "RIFF", 4) == 0) return kinds[i].kind;
    }
    return KN_MEDIA_UNKNOWN;
}

const char *kn_media_type(kn_media_kind kind)
{
    switch (kind) {
    case KN_MEDIA_JPEG: return "image/jpeg";
    case KN_MEDIA_PNG: return "image/png";
    case KN_MEDIA_WEBP: return "image/webp";
    case KN_MEDIA_GIF: return "image/gif";
    case KN_MEDIA_MP4: return "video/mp4";
    case KN_MEDIA_WEBM: return "video/webm";
    default: return "application/octet-stream";
    }
}

/* ---- parts of a form ---- */

static kn_status take_text(void *context, const kn_multipart_part *part, const char *value, size_t count,
                           kn_api_error *error)
{
    kn_video_reader *reader = context;
    return kn_form_add(&reader->form, part->name, strlen(part->name), value, count, error);
}

static kn_status begin_file(void *context, const kn_multipart_part *part, kn_api_error *error)
{
    kn_video_reader *reader = context;
    if (reader->has_file)
        return kn_api_invalid_value(error, part->name, "There are two files, '%s' and '%s'; at most one is accepted.",
                                    reader->file.name, part->name);
    reader->file = *part;
    reader->has_file = part->filename[0] != '\0';
    reader->file_bytes = 0;
    reader->head_count = 0;
    if (!reader->digest) reader->digest = EVP_MD_CTX_new();
    if (!reader->digest || EVP_DigestInit_ex(reader->digest, EVP_sha256(), NULL) != 1)
        return kn_api_from_status(error, KN_NOMEM);
    return KN_OK;
}

static kn_status take_file(void *context, const void *bytes, size_t count, kn_api_error *error)
{
    kn_video_reader *reader = context;
    reader->has_file = true;
    reader->file_bytes += count;
    size_t wanted = sizeof reader->head - reader->head_count;
    if (wanted > count) wanted = count;
    memcpy(reader->head + reader->head_count, bytes, wanted);
    reader->head_count += wanted;
    if (EVP_DigestUpdate(reader->digest, bytes, count) != 1) return kn_api_internal(error);
    return reader->sink.write ? reader->sink.write(reader->sink.context, bytes, count, error) : KN_OK;
}

static kn_status end_file(void *context, kn_api_error *error)
{
    kn_video_reader *reader = context;
    if (EVP_DigestFinal_ex(reader->digest, reader->file_sha256, NULL) != 1) return kn_api_internal(error);
    return KN_OK;
}

/* ---- reader ---- */

static kn_status find_dialect(dialect *out, const char *content_type, kn_api_error *error)
{
    static const char *const types[] = {
        [DIALECT_JSON] = "application/json",
        [DIALECT_URLENCODED] = "application/x-www-form-urlencoded",
        [DIALECT_MULTIPART] = "multipart/form-data",
    };
    char charset[32];
    const char *type = content_type ? content_type : "";
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!kn_media_type_is(type, types[i])) continue;
        kn_status st = kn_header_parameter(type, "charset", charset, sizeof charset);
        if (st == KN_NOT_FOUND || (st == KN_OK && strcasecmp(charset, "utf-8") == 0) || i == DIALECT_MULTIPART) {
            *out = (dialect)i;
            return KN_OK;
        }
        return kn_api_unsupported_media_type(error, "The Content-Type's charset is not UTF-8.");
    }
    return kn_api_unsupported_media_type(error, "The Content-Type is '%.80s'; it must be %s, %s or %s.", type, types[0],
                                         types[1], types[2]);
}

uint64_t kn_video_body_limit(const char *content_type)
{
    return content_type && kn_media_type_is(content_type, "multipart/form-data") ? KN_MULTIPART_BODY_BYTES_MAX
                                                                                 : KN_BODY_JSON_BYTES_MAX;
}

kn_status kn_video_reader_create(kn_video_reader **out, kn_video_operation operation, const char *content_type,
                                 kn_video_file_sink sink, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_video_reader *reader = NULL;
    dialect found = DIALECT_JSON;
    KN_TRY(find_dialect(&found, content_type, error));
    reader = kn_alloc(sizeof *reader);
    if (!reader) KN_TRY(kn_api_from_status(error, KN_NOMEM));
    reader->operation = operation;
    reader->dialect = found;
    reader->sink = sink;
    reader->body = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    if (found == DIALECT_MULTIPART) {
        const kn_multipart_sink parts = {.context = reader,
                                         .text = take_text,
                                         .file_begin = begin_file,
                                         .file_data = take_file,
                                         .file_end = end_file};
        KN_TRY(kn_form_begin(&reader->form, error));
        KN_TRY(kn_multipart_create(&reader->multipart, content_type, parts, error));
    }
    *out = reader;
    return KN_OK;
fail:
    kn_video_reader_destroy(&reader);
    return st;
}

kn_status kn_video_reader_feed(kn_video_reader *reader, const void *bytes, size_t count, kn_api_error *error)
{
    if (reader->dialect == DIALECT_MULTIPART) return kn_multipart_feed(reader->multipart, bytes, count, error);
    kn_text_append(&reader->body, bytes, count);
    if (reader->body.status == KN_INVALID) return kn_api_too_large(error, "The request's body", KN_BODY_JSON_BYTES_MAX);
    return reader->body.status == KN_OK ? KN_OK : kn_api_from_status(error, reader->body.status);
}

/* The body as a tree; a new reference. */
static kn_status read_tree(kn_video_reader *reader, json_t **out, kn_api_error *error)
{
    const char *bytes = reader->body.count > 0 ? reader->body.bytes : "";
    if (reader->dialect == DIALECT_JSON) return kn_json_body_parse(out, bytes, reader->body.count, NULL, error);
    if (reader->dialect == DIALECT_URLENCODED) return kn_form_parse(out, bytes, reader->body.count, error);
    kn_status st = kn_multipart_finish(reader->multipart, error);
    if (st == KN_OK) *out = kn_form_take(&reader->form);
    return st;
}

kn_status kn_video_reader_finish(kn_video_reader *reader, kn_video_params *out, kn_api_error *error)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    *out = (kn_video_params){0};
    KN_TRY(read_tree(reader, &root, error));
    KN_TRY(kn_video_fields_read(out, reader->operation, root, reader->has_file ? reader->file.name : NULL, error));
    if (reader->has_file) {
        if (reader->file_bytes == 0)
            KN_TRY(kn_api_invalid_value(error, reader->file.name, "The file '%s' is empty.", reader->file.name));
        out->reference = (kn_video_reference){.kind = KN_REFERENCE_FILE,
                                              .media = kn_media_sniff(reader->head, reader->head_count),
                                              .bytes = reader->file_bytes,
                                              .offset = reader->file.offset};
        memcpy(out->reference.sha256, reader->file_sha256, sizeof reader->file_sha256);
    }
fail:
    json_decref(root);
    if (st != KN_OK) kn_video_params_release(out);
    return st;
}

void kn_video_reader_destroy(kn_video_reader **reader)
{
    if (!reader || !*reader) return;
    kn_text_release(&(*reader)->body);
    kn_multipart_destroy(&(*reader)->multipart);
    kn_form_release(&(*reader)->form);
    EVP_MD_CTX_free((*reader)->digest);
    kn_free(*reader);
    *reader = NULL;
}

kn_status kn_video_request_parse(kn_video_params *out, kn_video_operation operation, const void *body, size_t count,
                                 const char *content_type, kn_api_error *error)
{
    kn_status st = KN_OK;
    kn_video_reader *reader = NULL;
    *out = (kn_video_params){0};
    KN_TRY(kn_video_reader_create(&reader, operation, content_type, (kn_video_file_sink){0}, error));
    KN_TRY(kn_video_reader_feed(reader, body, count, error));
    KN_TRY(kn_video_reader_finish(reader, out, error));
fail:
    kn_video_reader_destroy(&reader);
    return st;
}
