/* SPDX-License-Identifier: Apache-2.0
 *
 * Control of the executor from a test: seeds, registered memory, expected failures. C and C++.
 *
 * A launch that does something wrong (a race, an access out of bounds, a barrier that not all reach, a deadlock) is
 * stopped with a text that names kernel, block and thread. Without further ado that text goes to stderr and the process
 * aborts; between simt_catch() and the next launch it is kept instead, and the runtime answers as after a failed
 * launch. */
#ifndef KN_TESTS_SIMT_H
#define KN_TESTS_SIMT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Decides the order of blocks and threads, and how late asynchronous work lands. Every launch mixes in its number.
 * The default is the environment's KN_SIMT_SEED, else 1. */
void simt_seed(uint64_t seed);

/* Host memory that kernels may use as if the runtime had allocated it, e.g. fenced test buffers. */
void simt_register(void *memory, size_t bytes);
void simt_unregister(void *memory);

/* Keeps the text of a failed launch instead of aborting, from now until simt_release(). */
void simt_catch(void);
void simt_release(void);
/* "" when no launch failed since simt_catch() or the last simt_clear(). */
const char *simt_failure(void);
void simt_clear(void);

/* The n-th call of the runtime from now (1 = the next) fails with this error code, once; 0 switches off. A sticky code
 * is answered from then on, as CUDA does. */
void simt_fail_at(uint64_t n, int error);

typedef struct simt_stats {
    uint64_t launches, blocks, threads, switches, accesses;
} simt_stats;
simt_stats simt_read_stats(void);

/* Calls of the runtime so far, whoever made them: memory taken (the device's or pinned), copies from and to the host's
 * memory, waits for the device (freeing memory waits too). A denoise step makes none of them before its end. */
typedef struct simt_calls {
    uint64_t allocations, uploads, downloads, waits;
} simt_calls;
simt_calls simt_read_calls(void);

/* A hash of the names of the kernels launched since the last call: equal for two calls that took the same way. */
uint64_t simt_trace(void);

#ifdef __cplusplus
}
#endif

#endif
