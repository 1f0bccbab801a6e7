/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes are either refused or give a message that can be sent again and read back the same. The mutator starts from
 * one valid message of each kind, which chance would never find. */
#include <stdint.h>
#include <stdlib.h>

#include "base/mem.h"
#include "tests/server/wire_samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t count, size_t room, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t count, size_t room);

static void ensure(int holds)
{
    if (!holds) abort();
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t count, size_t room, unsigned seed)
{
    if (count < 16 || seed % 64 == 0) {
        const kn_wire_kind kind = (kn_wire_kind)(1 + seed / 64 % (KN_WIRE_KINDS - 1));
        const kn_wire_message m = sample_message(kind, 1 + (int32_t)(seed / 4096 % 3));
        void *made = NULL;
        size_t size = 0;
        ensure(kn_wire_encode(&m, &made, &size) == KN_OK);
        if (size <= room) memcpy(bytes, made, count = size);
        kn_free(made);
    }
    return LLVMFuzzerMutate(bytes, count, room);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    const uint64_t held = kn_mem_read().bytes;
    kn_wire_message m, again;
    const kn_status st = kn_wire_decode(&m, bytes, count);
    if (st == KN_OK) {
        void *sent = NULL;
        size_t size = 0;
        ensure(kn_wire_encode(&m, &sent, &size) == KN_OK);
        ensure(kn_wire_decode(&again, sent, size) == KN_OK && again.kind == m.kind);
        kn_wire_release(&again);
        kn_free(sent);
    } else {
        ensure(st == KN_CORRUPT && strncmp(kn_fail_message(), "link: ", 6) == 0);
    }
    kn_wire_release(&m);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
