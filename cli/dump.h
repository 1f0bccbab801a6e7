/* SPDX-License-Identifier: Apache-2.0
 *
 * --dump: every intermediate tensor of one generation in one safetensors file, in
 * the names and shapes of tests/golden. Tensors are kept in memory until the end. */
#ifndef KN_CLI_DUMP_H
#define KN_CLI_DUMP_H

#include "engine/generation.h"

enum { KN_DUMP_TENSORS_MAX = 16 };

typedef struct kn_dump_tensor {
    const char *name;
    int32_t rank;
    int64_t shape[5];
    int64_t item; /* elements written at a time; index i goes to i * item */
    float *data;
} kn_dump_tensor;

typedef struct kn_dump {
    int32_t count;
    kn_dump_tensor tensors[KN_DUMP_TENSORS_MAX];
    int64_t height, width;
} kn_dump;

/* Allocates what the request's tensors need. */
kn_status kn_dump_create(kn_dump *dump, const kn_request *request, const kn_repository *repository);
void kn_dump_destroy(kn_dump *dump);

/* For kn_generation_create; context is the kn_dump. */
kn_tensor_tap kn_dump_tap(kn_dump *dump);
/* A video frame, [3, height, width]. */
kn_status kn_dump_frame(kn_dump *dump, int64_t index, const float *planes);

kn_status kn_dump_write(const kn_dump *dump, const char *path);

#endif
