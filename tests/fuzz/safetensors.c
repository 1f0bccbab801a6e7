/* SPDX-License-Identifier: Apache-2.0
 *
 * A file of any bytes is either refused or every tensor in it can be read to its
 * last byte. The bytes go through a memory file, so the mapping itself is
 * under test. */
#define _GNU_SOURCE /* memfd_create */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void read_everything(const kn_weights *weights)
{
    uint64_t total = 0;
    for (size_t i = 0; i < kn_weights_count(weights); i++) {
        kn_weights_entry entry = kn_weights_entry_at(weights, i);
        if (i > 0 && strcmp(kn_weights_entry_at(weights, i - 1).name, entry.name) >= 0) abort();
        total += entry.bytes;
        if (!kn_weights_has(weights, entry.name)) abort();
        kn_tensor tensor;
        kn_status st = kn_weights_find(weights, entry.name, &tensor);
        if (st == KN_UNSUPPORTED) continue;
        if (st != KN_OK) abort();
        size_t size = kn_dtype_bytes(tensor.dtype);
        if ((uint64_t)kn_tensor_count(&tensor) * size != entry.bytes || (uintptr_t)tensor.data % size != 0) abort();
        uint64_t sum = 0;
        for (uint64_t k = 0; k < entry.bytes; k++) sum += ((const unsigned char *)tensor.data)[k];
        if (sum > 255 * entry.bytes) abort();
        kn_weights_prefetch(weights, &tensor);
        kn_weights_release(weights, &tensor);
    }
    if (total > kn_weights_file_bytes(weights)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    int file = memfd_create("input", MFD_CLOEXEC);
    if (file < 0 || write(file, bytes, count) != (ssize_t)count) abort();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    uint64_t held = kn_mem_read().bytes;
    kn_weights *weights = NULL;
    if (kn_weights_open_file(&weights, path) == KN_OK)
        read_everything(weights);
    else if (weights || !strstr(kn_fail_message(), path) || strchr(kn_fail_message(), '\n'))
        abort();
    kn_weights_close(&weights);
    if (kn_mem_read().bytes != held) abort();
    close(file);
    return 0;
}
