/* SPDX-License-Identifier: Apache-2.0
 *
 * A set of tensor names over one or many checked files (safetensors.c): one
 * table sorted by name, searched by bisection. Names are unique over all files,
 * whether or not an index says where they are. Files that carry the original
 * Wan names are answered under their diffusers names (weights_wan_names.c). */
#define _GNU_SOURCE /* madvise */
#include "engine/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/half.h"
#include "base/mem.h"
#include "engine/config.h"
#include "engine/safetensors.h"
#include "engine/weights_synthetic.h"
#include "engine/weights_wan_names.h"

enum { SHARDS_MAX = 1024, FILE_NAME_MAX = 255, INDEX_VALUES_MAX = 1 << 21 };

#define INDEX_BYTES_MAX ((size_t)64 << 20)

typedef struct slot {
    const char *name; /* the one that is asked for */
    const kn_safetensors_tensor *tensor;
    const kn_safetensors_file *file;
} slot;

struct kn_weights {
    kn_safetensors_file **files; /* [file_count] */
    size_t file_count;
    slot *slots; /* [slot_count], sorted by name */
    size_t slot_count;
    char *renamed;           /* text of translated names */
    kn_synthetic *synthetic; /* instead of everything above */
};

int64_t kn_tensor_count(const kn_tensor *tensor)
{
    int64_t count = 1;
    for (int32_t i = 0; i < tensor->rank; i++) count *= tensor->shape[i];
    return count;
}

float kn_tensor_value(const kn_tensor *tensor, int64_t index)
{
    switch (tensor->dtype) {
    case KN_F32: return ((const float *)tensor->data)[index];
    case KN_BF16: return kn_bf16_to_float(((const uint16_t *)tensor->data)[index]);
    case KN_F16: return kn_f16_to_float(((const uint16_t *)tensor->data)[index]);
    }
    return 0.0f;
}

/* ---- the table ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const slot *)a)->name, ((const slot *)b)->name);
}

static const slot *find_slot(const kn_weights *weights, const char *name)
{
    slot key = {.name = name};
    return weights->slot_count ? bsearch(&key, weights->slots, weights->slot_count, sizeof key, by_name) : NULL;
}

static kn_status sort_slots(kn_weights *weights)
{
    qsort(weights->slots, weights->slot_count, sizeof *weights->slots, by_name);
    for (size_t i = 1; i < weights->slot_count; i++) {
        const slot *a = &weights->slots[i - 1];
        const slot *b = &weights->slots[i];
        if (strcmp(a->name, b->name) != 0) continue;
        if (a->file != b->file)
            return kn_fail(KN_CORRUPT, "%s: tensor %s is also in %s", b->file->path, b->name, a->file->path);
        return kn_fail(KN_CORRUPT, "%s: tensors %s and %s are both %s in diffusers' names", a->file->path,
                       a->tensor->entry.name, b->tensor->entry.name, a->name);
    }
    return KN_OK;
}

static kn_status collect_slots(kn_weights *weights)
{
    size_t count = 0;
    for (size_t i = 0; i < weights->file_count; i++) count += weights->files[i]->count;
    weights->slots = kn_alloc_array(count, sizeof *weights->slots);
    if (!weights->slots) return KN_NOMEM;
    for (size_t i = 0; i < weights->file_count; i++) {
        const kn_safetensors_file *file = weights->files[i];
        for (size_t k = 0; k < file->count; k++) {
            weights->slots[weights->slot_count++] =
                (slot){.name = file->tensors[k].entry.name, .tensor = &file->tensors[k], .file = file};
        }
    }
    return sort_slots(weights);
}

static kn_status rename_slots(kn_weights *weights)
{
    bool original = false;
    size_t bytes = 0;
    for (size_t i = 0; i < weights->slot_count; i++) {
        original = original || kn_wan_name_is_original(weights->slots[i].name);
        bytes += 2 * strlen(weights->slots[i].name) + 64;
    }
    if (!original) return KN_OK;
    weights->renamed = kn_alloc(bytes);
    if (!weights->renamed) return KN_NOMEM;
    char *place = weights->renamed;
    for (size_t i = 0; i < weights->slot_count; i++) {
        bool fits = kn_wan_name_translate(weights->slots[i].name, place, bytes - (size_t)(place - weights->renamed));
        assert(fits);
        if (!fits) return kn_fail(KN_BUG, "%s: no room to rename", weights->slots[i].name);
        weights->slots[i].name = place;
        place += strlen(place) + 1;
    }
    return sort_slots(weights);
}

/* ---- opening ---- */

static kn_status open_one(kn_weights *weights, const char *path)
{
    weights->files = kn_alloc(sizeof(kn_safetensors_file *));
    if (!weights->files) return KN_NOMEM;
    kn_status st = kn_safetensors_file_open(&weights->files[0], path);
    if (st != KN_OK) return st;
    weights->file_count = 1;
    return collect_slots(weights);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A folder's index may only name files of that folder. */
static kn_status check_shard_name(const char *path, const char *tensor, const char *name)
{
    size_t bytes = strlen(name);
    bool plain = bytes > 0 && bytes <= FILE_NAME_MAX && name[0] != '.';
    for (const char *c = name; plain && *c; c++)
        plain = *c != '/' && *c != '\\' && (unsigned char)*c >= 0x20 && *c != 0x7f;
    if (plain) return KN_OK;
    char text[64], key[64];
    snprintf(text, sizeof text, "%s", name);
    snprintf(key, sizeof key, "%s", tensor);
    kn_one_line(text);
    kn_one_line(key);
    return kn_fail(KN_CORRUPT,
                   "%s: tensor %s is mapped to \"%s\", not a plain file name of 1..%d bytes in the same folder", path,
                   key, text, FILE_NAME_MAX);
}

/* Opens each shard that the map names, once, in name order. */
static kn_status open_shards(kn_weights *weights, const char *directory, const char *path, json_t *map)
{
    kn_status st = KN_OK;
    const char *tensor;
    json_t *value;
    size_t count = 0;
    const char **names = kn_alloc_array(json_object_size(map), sizeof *names);
    if (!names) return KN_NOMEM;
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        KN_TRY(check_shard_name(path, tensor, name ? name : ""));
        names[count++] = name;
    }
    qsort(names, count, sizeof *names, by_text);
    size_t unique = 0;
    for (size_t i = 0; i < count; i++) {
        if (unique == 0 || strcmp(names[unique - 1], names[i]) != 0) names[unique++] = names[i];
    }
    if (unique == 0 || unique > SHARDS_MAX) {
        st = kn_fail(KN_CORRUPT, "%s: weight_map names %zu files, outside 1..%d", path, unique, SHARDS_MAX);
        goto fail;
    }
    weights->files = kn_alloc_array(unique, sizeof(kn_safetensors_file *));
    if (!weights->files) {
        st = KN_NOMEM;
        goto fail;
    }
    for (size_t i = 0; i < unique; i++) {
        char *shard = kn_format("%s/%s", directory, names[i]);
        st = shard ? kn_safetensors_file_open(&weights->files[i], shard) : KN_NOMEM;
        kn_free(shard);
        if (st == KN_NOT_FOUND) kn_fail_context(st, "%s names a shard that is missing", path);
        if (st != KN_OK) goto fail;
        weights->file_count++;
    }

fail:
    kn_free(names);
    return st;
}

static kn_status check_map(const kn_weights *weights, const char *path, json_t *map)
{
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value)
    {
        const slot *found = find_slot(weights, tensor);
        const char *shard = json_string_value(value);
        const char *holder = found ? strrchr(found->file->path, '/') : NULL;
        if (holder && strcmp(holder + 1, shard) == 0) continue;
        char key[KN_TENSOR_NAME_MAX + 1];
        snprintf(key, sizeof key, "%s", tensor);
        kn_one_line(key);
        return kn_fail(KN_CORRUPT, "%s: tensor %s is mapped to %s, which does not hold it", path, key, shard);
    }
    return KN_OK;
}

static kn_status open_index(kn_weights *weights, const char *directory, const char *path)
{
    kn_status st = KN_OK;
    json_t *root = NULL;
    kn_json_limits limits = {.bytes = INDEX_BYTES_MAX, .values = INDEX_VALUES_MAX, .depth = KN_CONFIG_DEPTH_MAX};
    KN_TRY(kn_json_load(&root, path, limits));
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        st = kn_fail(KN_CORRUPT, "%s: \"weight_map\" is missing or not an object", path);
        goto fail;
    }
    KN_TRY(open_shards(weights, directory, path, map));
    KN_TRY(collect_slots(weights));
    KN_TRY(check_map(weights, path, map));

fail:
    json_decref(root);
    return st;
}

static kn_status open_directory(kn_weights *weights, const char *directory, const char *stem)
{
    kn_status st = KN_OK;
    char *index = NULL;
    char *single = kn_format("%s/%s.safetensors", directory, stem);
    if (!single) return KN_NOMEM;
    if (access(single, F_OK) == 0) {
        KN_TRY(open_one(weights, single));
    } else {
        index = kn_format("%s.index.json", single);
        if (!index) {
            st = KN_NOMEM;
            goto fail;
        }
        if (access(index, F_OK) != 0) {
            st = kn_fail(KN_NOT_FOUND, "%s: neither it nor %s.safetensors.index.json is there", single, stem);
            goto fail;
        }
        KN_TRY(open_index(weights, directory, index));
    }

fail:
    kn_free(index);
    kn_free(single);
    return st;
}

kn_status kn_weights_open(kn_weights **out, const char *directory, const char *stem)
{
    kn_status st = KN_OK;
    kn_weights *weights = kn_alloc(sizeof *weights);
    if (!weights) return KN_NOMEM;
    KN_TRY(open_directory(weights, directory, stem));
    KN_TRY(rename_slots(weights));
    *out = weights;
    return KN_OK;

fail:
    kn_weights_close(&weights);
    return st;
}

kn_status kn_weights_open_file(kn_weights **out, const char *path)
{
    kn_status st = KN_OK;
    kn_weights *weights = kn_alloc(sizeof *weights);
    if (!weights) return KN_NOMEM;
    KN_TRY(open_one(weights, path));
    KN_TRY(rename_slots(weights));
    *out = weights;
    return KN_OK;

fail:
    kn_weights_close(&weights);
    return st;
}

kn_status kn_weights_synthetic(kn_weights **out, float deviation, kn_dtype dtype, uint64_t seed)
{
    kn_weights *weights = kn_alloc(sizeof *weights);
    if (!weights) return KN_NOMEM;
    kn_status st = kn_synthetic_create(&weights->synthetic, deviation, dtype, seed);
    if (st == KN_OK)
        *out = weights;
    else
        kn_weights_close(&weights);
    return st;
}

void kn_weights_close(kn_weights **weights)
{
    if (!weights || !*weights) return;
    kn_weights *old = *weights;
    for (size_t i = 0; i < old->file_count; i++) kn_safetensors_file_close(&old->files[i]);
    kn_synthetic_destroy(&old->synthetic);
    kn_free(old->files);
    kn_free(old->slots);
    kn_free(old->renamed);
    kn_free(old);
    *weights = NULL;
}

/* ---- asking ---- */

kn_status kn_weights_find(const kn_weights *weights, const char *name, kn_tensor *out)
{
    if (weights->synthetic)
        return kn_fail(KN_INVALID, "tensor %s: synthetic weights have no shapes of their own; use expect", name);
    const slot *found = find_slot(weights, name);
    if (!found) {
        const char *where = weights->files[0]->path;
        if (weights->file_count == 1) return kn_fail(KN_NOT_FOUND, "%s: has no tensor %s", where, name);
        return kn_fail(KN_NOT_FOUND, "%s and %zu more shards: have no tensor %s", where, weights->file_count - 1, name);
    }
    const kn_weights_entry *entry = &found->tensor->entry;
    kn_tensor tensor = {.data = found->file->data + found->tensor->offset, .rank = entry->rank};
    memcpy(tensor.shape, entry->shape, sizeof tensor.shape);
    if (!kn_safetensors_readable(entry->dtype_name, &tensor.dtype))
        return kn_fail(KN_UNSUPPORTED, "%s: tensor %s has dtype %s; F32, F16 and BF16 can be read", entry->file, name,
                       entry->dtype_name);
    *out = tensor;
    return KN_OK;
}

kn_status kn_weights_expect(const kn_weights *weights, const char *name, int32_t rank, const int64_t *shape,
                            kn_tensor *out)
{
    KN_REQUIRE(rank >= 0 && rank <= KN_TENSOR_RANK_MAX);
    if (weights->synthetic) return kn_synthetic_view(weights->synthetic, name, rank, shape, out);
    kn_tensor tensor;
    kn_status st = kn_weights_find(weights, name, &tensor);
    if (st == KN_NOT_FOUND) return KN_CORRUPT; /* the file is there; what it lacks is a fault of its content */
    if (st != KN_OK) return st;
    if (tensor.rank != rank || (rank > 0 && memcmp(tensor.shape, shape, (size_t)rank * sizeof *shape) != 0)) {
        char has[KN_SHAPE_TEXT_MAX], wants[KN_SHAPE_TEXT_MAX];
        return kn_fail(KN_CORRUPT, "%s: tensor %s has shape %s, the model needs %s",
                       find_slot(weights, name)->file->path, name, kn_shape_text(has, tensor.rank, tensor.shape),
                       kn_shape_text(wants, rank, shape));
    }
    *out = tensor;
    return KN_OK;
}

bool kn_weights_has(const kn_weights *weights, const char *name)
{
    return weights->synthetic || find_slot(weights, name);
}

size_t kn_weights_count(const kn_weights *weights)
{
    return weights->slot_count;
}

kn_weights_entry kn_weights_entry_at(const kn_weights *weights, size_t index)
{
    assert(index < weights->slot_count);
    kn_weights_entry entry = weights->slots[index].tensor->entry;
    entry.name = weights->slots[index].name;
    return entry;
}

uint64_t kn_weights_file_bytes(const kn_weights *weights)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < weights->file_count; i++) bytes += weights->files[i]->bytes;
    return bytes;
}

const char *kn_weights_metadata(const kn_weights *weights, const char *key)
{
    for (size_t i = 0; i < weights->file_count; i++) {
        const kn_safetensors_file *file = weights->files[i];
        for (size_t k = 0; k < file->metadata_count; k++) {
            if (strcmp(file->metadata[2 * k], key) == 0) return file->metadata[2 * k + 1];
        }
    }
    return NULL;
}

/* ---- hints ---- */

typedef struct page_range {
    uintptr_t begin, end; /* page aligned; empty when begin >= end */
} page_range;

/* The pages of a tensor: those it touches, or only those it fills. Empty for a tensor of no mapped file. */
static page_range tensor_pages(const kn_weights *weights, const kn_tensor *tensor, bool whole)
{
    uintptr_t begin = (uintptr_t)tensor->data;
    uintptr_t end = begin + (uintptr_t)kn_tensor_count(tensor) * kn_dtype_bytes(tensor->dtype);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < weights->file_count; i++) {
        uintptr_t first = (uintptr_t)weights->files[i]->data;
        uintptr_t last = first + (uintptr_t)weights->files[i]->bytes;
        if (begin < first || end > last) continue;
        uintptr_t up = page - 1;
        return whole ? (page_range){(begin + up) / page * page, end / page * page}
                     : (page_range){begin / page * page, (end + up) / page * page};
    }
    return (page_range){0, 0};
}

static void advise(page_range range, int advice)
{
    /* Only hints: a kernel that refuses them loses nothing but time. */
    if (range.begin < range.end) (void)madvise((void *)range.begin, range.end - range.begin, advice);
}

void kn_weights_prefetch(const kn_weights *weights, const kn_tensor *tensor)
{
    advise(tensor_pages(weights, tensor, false), MADV_WILLNEED);
}

void kn_weights_populate(const kn_weights *weights, const kn_tensor *tensor)
{
#if defined(MADV_POPULATE_READ) /* Linux 5.14; an older kernel refuses it, and pages fault in as they are used */
    advise(tensor_pages(weights, tensor, false), MADV_POPULATE_READ);
#else
    advise(tensor_pages(weights, tensor, false), MADV_WILLNEED);
#endif
}

void kn_weights_release(const kn_weights *weights, const kn_tensor *tensor)
{
    /* Pages shared with a neighbour stay: it may be in use. */
    advise(tensor_pages(weights, tensor, true), MADV_DONTNEED);
}
