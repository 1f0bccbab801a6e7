/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing a safetensors file; the contract is in weights.h, the format in
 * safetensors.c.
 *
 * Tensors are laid out by element size, largest first, and in the declared order
 * within a size, and the header is padded to a multiple of 8: so every tensor
 * is aligned, as readers that map the file need it. All bytes go to
 * `path`.tmp, which takes the place of `path` only once they are on disk. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/safetensors.h"
#include "engine/weights.h"

enum { LENGTH_BYTES = 8, HEADER_ALIGN = 8 };

typedef struct placement {
    char *name;
    uint64_t offset; /* bytes from the start of the file */
    uint64_t bytes;
    uint64_t written; /* bytes taken so far */
} placement;

struct kn_safetensors_writer {
    char *path;
    char *temporary;    /* path.tmp */
    char *folder;       /* where path is */
    int file;           /* -1: not open */
    bool created;       /* `temporary` is ours to remove */
    placement *targets; /* [count] as declared */
    size_t count;
};

static const char *dtype_name(kn_dtype dtype)
{
    switch (dtype) {
    case KN_F32: return "F32";
    case KN_BF16: return "BF16";
    case KN_F16: return "F16";
    }
    return NULL;
}

static kn_status write_all(int file, const char *path, const void *data, size_t bytes, uint64_t offset)
{
    const char *from = data;
    while (bytes > 0) {
        ssize_t done = pwrite(file, from, bytes, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return kn_fail(KN_IO, "%s: writing failed: %s", path, strerror(done < 0 ? errno : ENOSPC));
        from += done;
        bytes -= (size_t)done;
        offset += (uint64_t)done;
    }
    return KN_OK;
}

/* ---- the header ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const kn_safetensors_spec *const *)a)->name, (*(const kn_safetensors_spec *const *)b)->name);
}

static kn_status check_spec(const char *path, const kn_safetensors_spec *spec, uint64_t *bytes)
{
    if (!spec->name || !spec->name[0] || strlen(spec->name) > KN_TENSOR_NAME_MAX ||
        strcmp(spec->name, "__metadata__") == 0)
        return kn_fail(KN_INVALID, "%s: a tensor's name is empty, reserved or longer than %d bytes", path,
                       KN_TENSOR_NAME_MAX);
    for (const char *c = spec->name; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return kn_fail(KN_INVALID, "%s: a tensor's name holds a control character", path);
    }
    int64_t elements;
    if (!dtype_name(spec->dtype) || spec->rank < 0 || spec->rank > KN_TENSOR_RANK_MAX)
        return kn_fail(KN_INVALID, "%s: tensor %s: unknown dtype or a rank outside 0..%d", path, spec->name,
                       KN_TENSOR_RANK_MAX);
    if (!kn_shape_count(spec->rank, spec->shape, &elements) || elements > INT64_MAX / 64) {
        char shape[KN_SHAPE_TEXT_MAX];
        return kn_fail(KN_INVALID, "%s: tensor %s: shape %s is negative or too large", path, spec->name,
                       kn_shape_text(shape, spec->rank, spec->shape));
    }
    *bytes = (uint64_t)elements * kn_dtype_bytes(spec->dtype);
    return KN_OK;
}

static kn_status check_names(const char *path, const kn_safetensors_spec *specs, size_t count)
{
    kn_status st = KN_OK;
    const kn_safetensors_spec **sorted = kn_alloc_array(count, sizeof *sorted);
    if (!sorted) return KN_NOMEM;
    for (size_t i = 0; i < count; i++) sorted[i] = &specs[i];
    qsort(sorted, count, sizeof *sorted, by_name);
    for (size_t i = 1; i < count && st == KN_OK; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            st = kn_fail(KN_INVALID, "%s: tensor %s is declared twice", path, sorted[i]->name);
    }
    kn_free(sorted);
    return st;
}

/* Places every tensor relative to the start of the data. */
static kn_status place_targets(kn_safetensors_writer *writer, const kn_safetensors_spec *specs)
{
    uint64_t place = 0;
    for (size_t size = 4; size >= 2; size /= 2) {
        for (size_t i = 0; i < writer->count; i++) {
            if (kn_dtype_bytes(specs[i].dtype) != size) continue;
            placement *target = &writer->targets[i];
            target->offset = place;
            if (target->bytes > (uint64_t)INT64_MAX / 2 - place)
                return kn_fail(KN_INVALID, "%s: the tensors up to %s exceed %" PRId64 " bytes", writer->path,
                               specs[i].name, INT64_MAX / 2);
            place += target->bytes;
        }
    }
    return KN_OK;
}

/* jansson answers a NULL value with -1, so each line needs no check of its own. */
static int describe_tensor(json_t *root, const kn_safetensors_spec *spec, const placement *target)
{
    json_t *shape = json_array();
    int failed = shape ? 0 : -1;
    for (int32_t k = 0; k < spec->rank; k++) failed |= json_array_append_new(shape, json_integer(spec->shape[k]));
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(spec->dtype), "shape", shape, "data_offsets",
                              (json_int_t)target->offset, (json_int_t)(target->offset + target->bytes));
    return failed | json_object_set_new(root, spec->name, entry);
}

static json_t *describe(const kn_safetensors_writer *writer, const kn_safetensors_spec *specs,
                        const char *const *metadata_keys, const char *const *metadata_values, size_t metadata_count)
{
    json_t *root = json_object();
    int failed = root ? 0 : -1;
    if (metadata_count > 0) {
        json_t *metadata = json_object();
        for (size_t i = 0; i < metadata_count; i++)
            failed |= json_object_set_new(metadata, metadata_keys[i], json_string(metadata_values[i]));
        failed |= json_object_set_new(root, "__metadata__", metadata);
    }
    for (size_t i = 0; i < writer->count; i++) failed |= describe_tensor(root, &specs[i], &writer->targets[i]);
    if (failed) {
        json_decref(root);
        return NULL;
    }
    return root;
}

/* Writes length and header, and moves the targets behind them. */
static kn_status write_header(kn_safetensors_writer *writer, const json_t *root)
{
    size_t length = json_dumpb(root, NULL, 0, JSON_COMPACT);
    size_t padded = (length + HEADER_ALIGN - 1) / HEADER_ALIGN * HEADER_ALIGN;
    if (length == 0 || padded > KN_SAFETENSORS_HEADER_MAX)
        return kn_fail(KN_INVALID, "%s: the header would have %zu bytes, the limit is %" PRIu64, writer->path, padded,
                       KN_SAFETENSORS_HEADER_MAX);
    char *text = kn_alloc(LENGTH_BYTES + padded);
    if (!text) return KN_NOMEM;
    for (size_t i = 0; i < LENGTH_BYTES; i++) text[i] = (char)(unsigned char)((uint64_t)padded >> 8 * i & 0xff);
    memset(text + LENGTH_BYTES, ' ', padded);
    json_dumpb(root, text + LENGTH_BYTES, length, JSON_COMPACT);
    kn_status st = write_all(writer->file, writer->temporary, text, LENGTH_BYTES + padded, 0);
    kn_free(text);
    for (size_t i = 0; i < writer->count; i++) writer->targets[i].offset += LENGTH_BYTES + padded;
    return st;
}

/* ---- the writer ---- */

static kn_status declare(kn_safetensors_writer *writer, const char *path, const kn_safetensors_spec *specs,
                         size_t count)
{
    writer->path = kn_strdup(path);
    writer->temporary = kn_format("%s.tmp", path);
    const char *slash = strrchr(path, '/');
    writer->folder = slash ? kn_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : kn_strdup(".");
    writer->targets = kn_alloc_array(count, sizeof *writer->targets);
    if (!writer->path || !writer->temporary || !writer->folder || !writer->targets) return KN_NOMEM;
    writer->count = count;
    for (size_t i = 0; i < count; i++) {
        kn_status st = check_spec(path, &specs[i], &writer->targets[i].bytes);
        if (st != KN_OK) return st;
        writer->targets[i].name = kn_strdup(specs[i].name);
        if (!writer->targets[i].name) return KN_NOMEM;
    }
    kn_status st = check_names(path, specs, count);
    return st == KN_OK ? place_targets(writer, specs) : st;
}

kn_status kn_safetensors_create(kn_safetensors_writer **out, const char *path, const kn_safetensors_spec *specs,
                                size_t count, const char *const *metadata_keys, const char *const *metadata_values,
                                size_t metadata_count)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    kn_safetensors_writer *writer = kn_alloc(sizeof *writer);
    if (!writer) return KN_NOMEM;
    writer->file = -1;
    KN_TRY(declare(writer, path, specs, count));
    root = describe(writer, specs, metadata_keys, metadata_values, metadata_count);
    if (!root) {
        st = kn_fail(KN_INVALID, "%s: a name or metadata string is not UTF-8, or memory ran out", path);
        goto fail;
    }
    /* The finished file takes the place of what is there; of a device, a pipe or a folder it must not. */
    struct stat there;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode)) {
        st = kn_fail(KN_INVALID, "%s: is there and is not a regular file; it is not replaced", path);
        goto fail;
    }
    /* A link planted under the temporary name must not lead the bytes elsewhere. */
    writer->file = open(writer->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (writer->file < 0) {
        st = kn_fail(KN_IO, "%s: cannot create: %s", writer->temporary, strerror(errno));
        goto fail;
    }
    writer->created = true;
    KN_TRY(write_header(writer, root));
    json_decref(root);
    *out = writer;
    return KN_OK;

fail:
    json_decref(root);
    kn_safetensors_abandon(&writer);
    return st;
}

kn_status kn_safetensors_write(kn_safetensors_writer *writer, size_t index, uint64_t offset, const void *data,
                               size_t bytes)
{
    KN_REQUIRE(index < writer->count);
    placement *target = &writer->targets[index];
    if (offset > target->bytes || bytes > target->bytes - offset)
        return kn_fail(KN_INVALID,
                       "%s: tensor %s: %zu bytes at %" PRIu64 " leave the tensor, which has %" PRIu64 " bytes",
                       writer->path, target->name, bytes, offset, target->bytes);
    kn_status st = write_all(writer->file, writer->temporary, data, bytes, target->offset + offset);
    if (st == KN_OK) target->written += bytes;
    return st;
}

/* Makes the rename itself durable. */
static kn_status sync_folder(const char *folder)
{
    kn_status st = KN_OK;
    int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some filesystems cannot sync a folder and say EINVAL; the rename is then as durable as they make it. */
    if (file < 0 || (fsync(file) != 0 && errno != EINVAL))
        st = kn_fail(KN_IO, "%s: cannot sync the folder: %s", folder, strerror(errno));
    if (file >= 0) close(file);
    return st;
}

kn_status kn_safetensors_finish(kn_safetensors_writer **writer)
{
    kn_status st = KN_OK;
    kn_safetensors_writer *w = *writer;
    for (size_t i = 0; i < w->count; i++) {
        const placement *target = &w->targets[i];
        if (target->written < target->bytes) {
            st = kn_fail(KN_INVALID, "%s: tensor %s: %" PRIu64 " of %" PRIu64 " bytes were written", w->path,
                         target->name, target->written, target->bytes);
            goto fail;
        }
    }
    if (fsync(w->file) != 0) {
        st = kn_fail(KN_IO, "%s: cannot sync: %s", w->temporary, strerror(errno));
        goto fail;
    }
    int closed = close(w->file);
    w->file = -1;
    if (closed != 0 || rename(w->temporary, w->path) != 0) {
        st = kn_fail(KN_IO, "%s: cannot take the name %s: %s", w->temporary, w->path, strerror(errno));
        goto fail;
    }
    w->created = false;
    KN_TRY(sync_folder(w->folder));

fail:
    kn_safetensors_abandon(writer);
    return st;
}

void kn_safetensors_abandon(kn_safetensors_writer **writer)
{
    if (!writer || !*writer) return;
    kn_safetensors_writer *old = *writer;
    if (old->file >= 0) close(old->file);
    if (old->created) unlink(old->temporary);
    for (size_t i = 0; old->targets && i < old->count; i++) kn_free(old->targets[i].name);
    kn_free(old->targets);
    kn_free(old->folder);
    kn_free(old->temporary);
    kn_free(old->path);
    kn_free(old);
    *writer = NULL;
}
