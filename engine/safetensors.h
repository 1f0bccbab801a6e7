/* SPDX-License-Identifier: Apache-2.0
 *
 * One safetensors file, mapped read-only and checked. weights.c joins several of
 * them into one set of names; nothing else includes this.
 *
 * After open() every tensor lies inside the file, its bytes equal its shape times
 * its element, the tensors tile the data area without holes or overlaps, and
 * the readable ones (F32, F16, BF16) are aligned to their element. The mapping
 * follows the file: a file that another program cuts short while it is open
 * raises SIGBUS on access, so checkpoints are replaced by renaming, never
 * rewritten in place. Immutable once open. */
#ifndef KN_ENGINE_SAFETENSORS_H
#define KN_ENGINE_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/weights.h"

enum { KN_TENSOR_NAME_MAX = 256, KN_SHAPE_TEXT_MAX = 192 };

#define KN_SAFETENSORS_HEADER_MAX ((uint64_t)100 << 20) /* bytes; the reference implementation's limit */

typedef struct kn_safetensors_tensor {
    kn_weights_entry entry; /* name as in the file */
    uint64_t offset;        /* bytes from the start of the file */
} kn_safetensors_tensor;

typedef struct kn_safetensors_file {
    char *path;
    const unsigned char *data; /* [bytes], the whole file */
    uint64_t bytes;
    size_t count;
    kn_safetensors_tensor *tensors; /* [count], in the order of their data */
    size_t metadata_count;
    const char **metadata; /* [metadata_count][2]: key, value */
    char *text;            /* holds the strings above */
} kn_safetensors_file;

/* KN_NOT_FOUND, KN_IO, KN_CORRUPT, KN_NOMEM. */
kn_status kn_safetensors_file_open(kn_safetensors_file **out, const char *path);
void kn_safetensors_file_close(kn_safetensors_file **file);

/* False for dtypes that are carried but cannot be asked for. */
bool kn_safetensors_readable(const char *dtype_name, kn_dtype *out);

/* product(shape); false when negative or beyond INT64_MAX. */
bool kn_shape_count(int32_t rank, const int64_t *shape, int64_t *out);

/* "[2, 3]"; returns `out`, KN_SHAPE_TEXT_MAX bytes. */
const char *kn_shape_text(char *out, int32_t rank, const int64_t *shape);

#endif
