/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping and checking one safetensors file; see safetensors.h.
 *
 * Format: 8 bytes little-endian header length n, n bytes of JSON that start with
 * '{' and may end in spaces, then data. The JSON maps a tensor's name to
 * {"dtype", "shape", "data_offsets": [begin, end)} counted from the start of the
 * data, and "__metadata__" to a map of strings.
 * https://huggingface.co/docs/safetensors */
#define _POSIX_C_SOURCE 200809L
#include "engine/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/config.h"

enum { LENGTH_BYTES = 8, HEADER_DEPTH_MAX = 8, DTYPE_NAME_MAX = 32 };

/* A parsed value takes some 40 bytes; this bounds what a header of small values can make the parser hold. */
#define HEADER_VALUES_MAX ((size_t)16 << 20)

typedef struct element {
    const char *name;
    int32_t bits;
} element;

/* Every type of the format as of safetensors 0.6. */
static const element elements[] = {
    {"F32", 32}, {"BF16", 16},       {"F16", 16},    {"F64", 64},    {"I64", 64},    {"I32", 32},
    {"I16", 16}, {"I8", 8},          {"U64", 64},    {"U32", 32},    {"U16", 16},    {"U8", 8},
    {"BOOL", 8}, {"C64", 64},        {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F4", 4},   {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6},
};

static const element *element_find(const char *name)
{
    for (size_t i = 0; i < sizeof elements / sizeof elements[0]; i++) {
        if (strcmp(elements[i].name, name) == 0) return &elements[i];
    }
    return NULL;
}

bool kn_safetensors_readable(const char *dtype_name, kn_dtype *out)
{
    if (strcmp(dtype_name, "F32") == 0)
        *out = KN_F32;
    else if (strcmp(dtype_name, "BF16") == 0)
        *out = KN_BF16;
    else if (strcmp(dtype_name, "F16") == 0)
        *out = KN_F16;
    else
        return false;
    return true;
}

bool kn_shape_count(int32_t rank, const int64_t *shape, int64_t *out)
{
    int64_t count = 1;
    for (int32_t i = 0; i < rank; i++) {
        if (shape[i] < 0 || (shape[i] > 0 && count > INT64_MAX / shape[i])) return false;
        count *= shape[i];
    }
    *out = count;
    return true;
}

const char *kn_shape_text(char *out, int32_t rank, const int64_t *shape)
{
    size_t used = (size_t)snprintf(out, KN_SHAPE_TEXT_MAX, "[");
    for (int32_t i = 0; i < rank && used < KN_SHAPE_TEXT_MAX; i++)
        used += (size_t)snprintf(out + used, KN_SHAPE_TEXT_MAX - used, "%s%" PRId64, i ? ", " : "", shape[i]);
    if (used < KN_SHAPE_TEXT_MAX) snprintf(out + used, KN_SHAPE_TEXT_MAX - used, "]");
    return out;
}

/* ---- one tensor of the header ---- */

/* Tensor names go into one-line messages and are keys of a sorted table. */
static kn_status check_name(const char *path, const char *name)
{
    size_t bytes = strlen(name);
    if (bytes == 0) return kn_fail(KN_CORRUPT, "%s: a tensor has an empty name", path);
    if (bytes > KN_TENSOR_NAME_MAX)
        return kn_fail(KN_CORRUPT, "%s: a tensor's name has %zu bytes, the limit is %d", path, bytes,
                       KN_TENSOR_NAME_MAX);
    for (const char *c = name; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return kn_fail(KN_CORRUPT, "%s: a tensor's name holds a control character at byte %zu", path,
                           (size_t)(c - name));
    }
    return KN_OK;
}

static kn_status parse_dtype(const char *path, const char *name, const json_t *value, const char **out)
{
    if (!json_is_string(value)) return kn_fail(KN_CORRUPT, "%s: tensor %s has no dtype", path, name);
    const char *dtype = json_string_value(value);
    size_t bytes = strlen(dtype);
    bool plain = bytes > 0 && bytes <= DTYPE_NAME_MAX;
    for (const char *c = dtype; plain && *c; c++) plain = (unsigned char)*c > 0x20 && *c != 0x7f;
    if (!plain)
        return kn_fail(KN_CORRUPT, "%s: tensor %s: the dtype is not a word of 1..%d bytes", path, name, DTYPE_NAME_MAX);
    *out = dtype;
    return KN_OK;
}

static kn_status parse_shape(const char *path, const char *name, const json_t *value, kn_weights_entry *entry)
{
    if (!json_is_array(value)) return kn_fail(KN_CORRUPT, "%s: tensor %s has no shape", path, name);
    size_t rank = json_array_size(value);
    if (rank > KN_TENSOR_RANK_MAX)
        return kn_fail(KN_CORRUPT, "%s: tensor %s has rank %zu, the limit is %d", path, name, rank, KN_TENSOR_RANK_MAX);
    for (size_t i = 0; i < rank; i++) {
        const json_t *size = json_array_get(value, i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return kn_fail(KN_CORRUPT, "%s: tensor %s: shape[%zu] is not an integer >= 0", path, name, i);
        entry->shape[i] = json_integer_value(size);
    }
    entry->rank = (int32_t)rank;
    return KN_OK;
}

static kn_status parse_offsets(const char *path, const char *name, const json_t *value, uint64_t data_bytes,
                               uint64_t *begin, uint64_t *end)
{
    if (!json_is_array(value) || json_array_size(value) != 2)
        return kn_fail(KN_CORRUPT, "%s: tensor %s has no data_offsets [begin, end]", path, name);
    const json_t *first = json_array_get(value, 0);
    const json_t *second = json_array_get(value, 1);
    if (!json_is_integer(first) || !json_is_integer(second) || json_integer_value(first) < 0 ||
        json_integer_value(second) < 0)
        return kn_fail(KN_CORRUPT, "%s: tensor %s: data_offsets are not two integers >= 0", path, name);
    *begin = (uint64_t)json_integer_value(first);
    *end = (uint64_t)json_integer_value(second);
    if (*end < *begin)
        return kn_fail(KN_CORRUPT, "%s: tensor %s: data_offsets [%" PRIu64 ", %" PRIu64 "] are reversed", path, name,
                       *begin, *end);
    if (*end > data_bytes)
        return kn_fail(KN_CORRUPT,
                       "%s: tensor %s ends at byte %" PRIu64 " of the data, which has only %" PRIu64 " bytes", path,
                       name, *end, data_bytes);
    return KN_OK;
}

/* Of a dtype this build has not heard of only the place can be checked. */
static kn_status check_bytes(const char *path, const kn_safetensors_tensor *tensor)
{
    const kn_weights_entry *entry = &tensor->entry;
    char shape[KN_SHAPE_TEXT_MAX];
    int64_t count;
    if (!kn_shape_count(entry->rank, entry->shape, &count))
        return kn_fail(KN_CORRUPT, "%s: tensor %s: shape %s overflows 64 bits", path, entry->name,
                       kn_shape_text(shape, entry->rank, entry->shape));
    const element *type = element_find(entry->dtype_name);
    if (!type) return KN_OK;
    if (count > INT64_MAX / type->bits)
        return kn_fail(KN_CORRUPT, "%s: tensor %s: shape %s overflows 64 bits", path, entry->name,
                       kn_shape_text(shape, entry->rank, entry->shape));
    uint64_t bits = (uint64_t)count * (uint64_t)type->bits;
    if (bits % 8 != 0 || bits / 8 != entry->bytes)
        return kn_fail(KN_CORRUPT, "%s: tensor %s: %" PRIu64 " bytes of data, but shape %s of %s takes %" PRIu64, path,
                       entry->name, entry->bytes, kn_shape_text(shape, entry->rank, entry->shape), entry->dtype_name,
                       (bits + 7) / 8);
    kn_dtype readable;
    if (kn_safetensors_readable(entry->dtype_name, &readable) && tensor->offset % kn_dtype_bytes(readable) != 0)
        return kn_fail(KN_CORRUPT,
                       "%s: tensor %s starts at byte %" PRIu64 " of the file, not a multiple of its %zu-byte element",
                       path, entry->name, tensor->offset, kn_dtype_bytes(readable));
    return KN_OK;
}

/* Strings are the JSON tree's until keep_text() copies them. */
static kn_status parse_tensor(const kn_safetensors_file *file, uint64_t base, const char *name, const json_t *value,
                              kn_safetensors_tensor *out)
{
    const char *path = file->path;
    kn_status st = check_name(path, name);
    if (st != KN_OK) return st;
    if (!json_is_object(value)) return kn_fail(KN_CORRUPT, "%s: tensor %s is not an object", path, name);
    uint64_t begin = 0, end = 0;
    *out = (kn_safetensors_tensor){.entry = {.name = name, .file = path}};
    st = parse_dtype(path, name, json_object_get(value, "dtype"), &out->entry.dtype_name);
    if (st == KN_OK) st = parse_shape(path, name, json_object_get(value, "shape"), &out->entry);
    if (st == KN_OK)
        st = parse_offsets(path, name, json_object_get(value, "data_offsets"), file->bytes - base, &begin, &end);
    if (st != KN_OK) return st;
    out->entry.bytes = end - begin;
    out->offset = base + begin;
    return check_bytes(path, out);
}

/* ---- the header ---- */

static int by_place(const void *a, const void *b)
{
    const kn_safetensors_tensor *first = a;
    const kn_safetensors_tensor *second = b;
    if (first->offset != second->offset) return first->offset < second->offset ? -1 : 1;
    if (first->entry.bytes != second->entry.bytes) return first->entry.bytes < second->entry.bytes ? -1 : 1;
    return strcmp(first->entry.name, second->entry.name);
}

static kn_status check_tiling(const kn_safetensors_file *file, uint64_t base)
{
    uint64_t place = base;
    for (size_t i = 0; i < file->count; i++) {
        const kn_safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->offset < place)
            return kn_fail(KN_CORRUPT, "%s: the data of tensors %s and %s overlap", file->path,
                           file->tensors[i - 1].entry.name, tensor->entry.name);
        if (tensor->offset > place)
            return kn_fail(KN_CORRUPT, "%s: %" PRIu64 " bytes in front of tensor %s belong to no tensor", file->path,
                           tensor->offset - place, tensor->entry.name);
        place += tensor->entry.bytes;
    }
    if (place != file->bytes)
        return kn_fail(KN_CORRUPT, "%s: the last %" PRIu64 " bytes belong to no tensor", file->path,
                       file->bytes - place);
    return KN_OK;
}

static kn_status check_metadata(const char *path, json_t *metadata)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return kn_fail(KN_CORRUPT, "%s: __metadata__ is not an object", path);
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value))
            return kn_fail(KN_CORRUPT, "%s: __metadata__ holds a value that is not a string", path);
    }
    return KN_OK;
}

static const char *keep(char **place, const char *text)
{
    size_t bytes = strlen(text) + 1;
    const char *kept = memcpy(*place, text, bytes);
    *place += bytes;
    return kept;
}

/* Copies every string out of the JSON tree into one block. */
static kn_status keep_text(kn_safetensors_file *file, json_t *metadata)
{
    const char *key;
    json_t *value;
    size_t bytes = 0;
    for (size_t i = 0; i < file->count; i++)
        bytes += strlen(file->tensors[i].entry.name) + strlen(file->tensors[i].entry.dtype_name) + 2;
    json_object_foreach(metadata, key, value) bytes += strlen(key) + json_string_length(value) + 2;
    file->metadata_count = json_object_size(metadata);
    file->metadata = kn_alloc_array(2 * file->metadata_count, sizeof *file->metadata);
    file->text = kn_alloc(bytes);
    if (!file->metadata || !file->text) return KN_NOMEM;

    char *place = file->text;
    for (size_t i = 0; i < file->count; i++) {
        kn_weights_entry *entry = &file->tensors[i].entry;
        const element *type = element_find(entry->dtype_name);
        entry->name = keep(&place, entry->name);
        entry->dtype_name = type ? type->name : keep(&place, entry->dtype_name);
    }
    const char **pair = file->metadata;
    json_object_foreach(metadata, key, value)
    {
        *pair++ = keep(&place, key);
        *pair++ = keep(&place, json_string_value(value));
    }
    return KN_OK;
}

static kn_status header_length(const kn_safetensors_file *file, uint64_t *out)
{
    if (file->bytes < LENGTH_BYTES)
        return kn_fail(KN_CORRUPT, "%s: %" PRIu64 " bytes are too short for a safetensors file", file->path,
                       file->bytes);
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | file->data[i];
    if (length > KN_SAFETENSORS_HEADER_MAX)
        return kn_fail(KN_CORRUPT, "%s: the header has %" PRIu64 " bytes, the limit is %" PRIu64, file->path, length,
                       KN_SAFETENSORS_HEADER_MAX);
    if (length > file->bytes - LENGTH_BYTES)
        return kn_fail(KN_CORRUPT, "%s: the header has %" PRIu64 " bytes, but only %" PRIu64 " follow", file->path,
                       length, file->bytes - LENGTH_BYTES);
    if (length == 0 || file->data[LENGTH_BYTES] != '{')
        return kn_fail(KN_CORRUPT, "%s: the header is not a JSON object", file->path);
    *out = length;
    return KN_OK;
}

static kn_status parse_header(kn_safetensors_file *file)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    uint64_t length = 0;
    const char *name;
    json_t *value;
    KN_TRY(header_length(file, &length));
    uint64_t base = LENGTH_BYTES + length;
    kn_json_limits limits = {
        .bytes = (size_t)KN_SAFETENSORS_HEADER_MAX, .values = HEADER_VALUES_MAX, .depth = HEADER_DEPTH_MAX};
    KN_TRY(kn_json_parse(&root, (const char *)file->data + LENGTH_BYTES, (size_t)length, file->path, limits));

    json_t *metadata = json_object_get(root, "__metadata__");
    if (metadata) KN_TRY(check_metadata(file->path, metadata));
    file->tensors = kn_alloc_array(json_object_size(root), sizeof *file->tensors);
    if (!file->tensors) {
        st = KN_NOMEM;
        goto fail;
    }
    json_object_foreach(root, name, value)
    {
        if (value == metadata) continue;
        KN_TRY(parse_tensor(file, base, name, value, &file->tensors[file->count]));
        file->count++;
    }
    qsort(file->tensors, file->count, sizeof *file->tensors, by_place);
    KN_TRY(check_tiling(file, base));
    KN_TRY(keep_text(file, metadata));

fail:
    json_decref(root);
    return st;
}

/* ---- the file ---- */

static kn_status map_file(kn_safetensors_file *file)
{
    kn_status st = KN_OK;
    /* Non-blocking, so that opening a pipe by mistake does not wait for its other end. */
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        if (errno == ENOENT || errno == ENOTDIR) return kn_fail(KN_NOT_FOUND, "%s: not found", file->path);
        return kn_fail(KN_IO, "%s: cannot open: %s", file->path, strerror(errno));
    }
    struct stat info;
    if (fstat(descriptor, &info) != 0) {
        st = kn_fail(KN_IO, "%s: cannot read its size: %s", file->path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode)) {
        st = kn_fail(KN_CORRUPT, "%s: not a regular file", file->path);
        goto fail;
    }
    uint64_t bytes = (uint64_t)info.st_size;
    if (bytes >= LENGTH_BYTES) {
        void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (map == MAP_FAILED) {
            st = kn_fail(KN_IO, "%s: cannot map %" PRIu64 " bytes: %s", file->path, bytes, strerror(errno));
            goto fail;
        }
        file->data = map;
    }
    file->bytes = bytes;

fail:
    close(descriptor);
    return st;
}

kn_status kn_safetensors_file_open(kn_safetensors_file **out, const char *path)
{
    kn_status st = KN_OK;
    kn_safetensors_file *file = kn_alloc(sizeof *file);
    if (!file) return KN_NOMEM;
    file->path = kn_strdup(path);
    if (!file->path) {
        st = KN_NOMEM;
        goto fail;
    }
    KN_TRY(map_file(file));
    KN_TRY(parse_header(file));
    *out = file;
    return KN_OK;

fail:
    kn_safetensors_file_close(&file);
    return st;
}

void kn_safetensors_file_close(kn_safetensors_file **file)
{
    if (!file || !*file) return;
    kn_safetensors_file *old = *file;
    /* munmap takes the address without const; the pages are read-only. */
    if (old->data) munmap((void *)(uintptr_t)old->data, (size_t)old->bytes);
    kn_free(old->tensors);
    kn_free(old->metadata);
    kn_free(old->text);
    kn_free(old->path);
    kn_free(old);
    *file = NULL;
}
