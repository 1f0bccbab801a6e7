/* SPDX-License-Identifier: Apache-2.0 */
#include "scheduler/scheduler.h"

const char *kn_priority_name(kn_priority priority)
{
    static const char *const names[KN_PRIORITIES] = {"flex", "default", "priority"};
    return (unsigned)priority < KN_PRIORITIES ? names[priority] : "unknown";
}
