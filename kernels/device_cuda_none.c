/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands in for the CUDA back end in a build without the toolkit. */
#include "kernels/device_cuda.h"

kn_status kn_device_cuda_open(kn_device **out, const kn_device_params *params)
{
    (void)out;
    return kn_fail(KN_UNAVAILABLE, "device \"%s\" is not available; this build has no CUDA", params->name);
}

int kn_device_cuda_count(void)
{
    return 0;
}
