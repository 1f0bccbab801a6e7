/* SPDX-License-Identifier: Apache-2.0
 *
 * Another library's matrix product, timed beside ours. peer_onednn.c where
 * oneDNN was found, else peer_none.c. */
#ifndef KN_TESTS_CHECKOPS_PEER_H
#define KN_TESTS_CHECKOPS_PEER_H

#include "kernels/ops.h"

/* "oneDNN 2.6.3"; NULL when there is none. */
const char *peer_name(void);

/* Best seconds for one out[m, n] = a[m, k] w[n, k]^T with a, w and out in `dtype` and w in the library's own layout.
 * KN_UNAVAILABLE when there is no peer; KN_UNSUPPORTED when it cannot do this here. */
kn_status peer_gemm_seconds(double *seconds, int64_t m, int64_t n, int64_t k, kn_dtype dtype, int threads);

#endif
