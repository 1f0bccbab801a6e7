/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors without a checkpoint: normal values from one block that a window of
 * address space shows again and again. Used by weights.c only.
 *
 * The values live in an anonymous memory file of 4 Mi elements. It is mapped end
 * to end over a reserved range of 8 GiB, so any tensor up to that size is a
 * plain pointer into the range and costs no memory beyond the block; UMT5's
 * embedding alone would be 4.2 GB in F32. A tensor begins at the page that a hash
 * of its name picks, so different tensors differ and the same name always gives
 * the same values. Immutable, hence thread-safe.
 *
 * Trap for benchmarks: tensors read straight from the window share physical
 * pages, which a large cache may hold. Copies made of them do not. */
#ifndef KN_ENGINE_WEIGHTS_SYNTHETIC_H
#define KN_ENGINE_WEIGHTS_SYNTHETIC_H

#include <stdint.h>

#include "base/status.h"
#include "engine/weights.h"

#define KN_SYNTHETIC_BLOCK_ELEMENTS ((int64_t)4 << 20)
#define KN_SYNTHETIC_TENSOR_BYTES_MAX ((int64_t)8 << 30)

typedef struct kn_synthetic kn_synthetic;

kn_status kn_synthetic_create(kn_synthetic **out, float deviation, kn_dtype dtype, uint64_t seed);
void kn_synthetic_destroy(kn_synthetic **synthetic);

kn_status kn_synthetic_view(const kn_synthetic *synthetic, const char *name, int32_t rank, const int64_t *shape,
                            kn_tensor *out);

#endif
