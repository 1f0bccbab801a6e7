/* SPDX-License-Identifier: Apache-2.0
 *
 * Checkpoint tensors: safetensors files, memory-mapped, one or many shards.
 *
 * A file is checked completely when it is opened (header inside the file, every
 * tensor's bytes equal to its shape, no overlaps, no gaps beyond the file, no
 * duplicate names), so a lookup can trust it. Failures name file, tensor and
 * limit in one line.
 *
 * Format: https://huggingface.co/docs/safetensors (8-byte little-endian header
 * length, JSON header, data). Thread-safe for reading once open. */
#ifndef KN_ENGINE_WEIGHTS_H
#define KN_ENGINE_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/ops.h"

enum { KN_TENSOR_RANK_MAX = 8 };

/* A borrowed view of a tensor in host memory, row-major, dense. `data` is
 * aligned only as the file aligns it (possibly to 1 byte is refused at open:
 * offsets must be multiples of the element size). */
typedef struct kn_tensor {
    const void *data;
    kn_dtype dtype;
    int32_t rank;
    int64_t shape[KN_TENSOR_RANK_MAX];
} kn_tensor;

int64_t kn_tensor_count(const kn_tensor *tensor);              /* elements */
float kn_tensor_value(const kn_tensor *tensor, int64_t index); /* one element, widened exactly */

typedef struct kn_weights kn_weights;

/* Opens `directory`/`stem`.safetensors, or the shards named by
 * `directory`/`stem`.safetensors.index.json. Shard names must be plain file
 * names: one that leaves the folder is refused. */
kn_status kn_weights_open(kn_weights **out, const char *directory, const char *stem);

/* One file by its path. Both open functions answer a file with the original Wan transformer names
 * ("blocks.0.self_attn.q.weight", also behind "model.diffusion_model.") under the diffusers names. */
kn_status kn_weights_open_file(kn_weights **out, const char *path);

/* Tensors of any name and shape, filled with normal values of the given standard
 * deviation from one shared block: real shapes without a checkpoint, for
 * benchmarks. kn_weights_expect() answers; there is nothing to enumerate. At most
 * 8 GiB a tensor; memory is that of one block whatever is asked for. */
kn_status kn_weights_synthetic(kn_weights **out, float deviation, kn_dtype dtype, uint64_t seed);

void kn_weights_close(kn_weights **weights);

/* KN_NOT_FOUND without the name. KN_UNSUPPORTED for a dtype other than F32, F16, BF16. */
kn_status kn_weights_find(const kn_weights *weights, const char *name, kn_tensor *out);

/* As find, and the shape must match exactly. KN_CORRUPT names what is missing, or tells both shapes. */
kn_status kn_weights_expect(const kn_weights *weights, const char *name, int32_t rank, const int64_t *shape,
                            kn_tensor *out);

/* Synthetic weights have every name. */
bool kn_weights_has(const kn_weights *weights, const char *name);

/* Enumeration in name order. dtype_name is the file's own ("BF16", "I64", ...). */
typedef struct kn_weights_entry {
    const char *name;
    const char *dtype_name;
    int32_t rank;
    int64_t shape[KN_TENSOR_RANK_MAX];
    uint64_t bytes;
    const char *file; /* path of the shard */
} kn_weights_entry;

size_t kn_weights_count(const kn_weights *weights);
kn_weights_entry kn_weights_entry_at(const kn_weights *weights, size_t index);
uint64_t kn_weights_file_bytes(const kn_weights *weights); /* all shards */

/* Value of a key in the header's __metadata__, or NULL. First shard that has it. */
const char *kn_weights_metadata(const kn_weights *weights, const char *key);

/* Hints for streaming. prefetch: read ahead soon, without waiting. populate: have the pages mapped now, in one call
 * instead of a fault for every few; waits for those still being read. release: drop the pages from this process (they
 * stay in the page cache). No effect on synthetic weights. */
void kn_weights_prefetch(const kn_weights *weights, const kn_tensor *tensor);
void kn_weights_populate(const kn_weights *weights, const kn_tensor *tensor);
void kn_weights_release(const kn_weights *weights, const kn_tensor *tensor);

/* ---- writing ---- */

typedef struct kn_safetensors_writer kn_safetensors_writer;

typedef struct kn_safetensors_spec {
    const char *name;
    kn_dtype dtype;
    int32_t rank;
    int64_t shape[KN_TENSOR_RANK_MAX];
} kn_safetensors_spec;

/* Declares every tensor first, then takes their data in any order and in pieces.
 * Written to `path`.tmp; finish() syncs and renames, so `path` is either absent,
 * its old self or complete. metadata_keys/values: `metadata_count` strings each. */
kn_status kn_safetensors_create(kn_safetensors_writer **out, const char *path, const kn_safetensors_spec *specs,
                                size_t count, const char *const *metadata_keys, const char *const *metadata_values,
                                size_t metadata_count);
/* Writes `bytes` at `offset` bytes inside tensor `index`. */
kn_status kn_safetensors_write(kn_safetensors_writer *writer, size_t index, uint64_t offset, const void *data,
                               size_t bytes);
kn_status kn_safetensors_finish(kn_safetensors_writer **writer); /* takes the writer, also on failure */
void kn_safetensors_abandon(kn_safetensors_writer **writer);     /* removes the temporary file */

#endif
