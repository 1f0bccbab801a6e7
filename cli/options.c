/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

bool kn_cli_pair(const char *text, char between, int32_t *first, int32_t *second)
{
    char *end;
    if (*text < '0' || *text > '9') return false;
    const long long a = strtoll(text, &end, 10); /* saturates */
    if (*end != between || end[1] < '0' || end[1] > '9') return false;
    const long long b = strtoll(end + 1, &end, 10);
    if (*end || a < 1 || a > INT32_MAX || b < 1 || b > INT32_MAX) return false;
    *first = (int32_t)a;
    *second = (int32_t)b;
    return true;
}

kn_status kn_cli_size(const kn_option *option, const char *text)
{
    kn_cli_extent *size = option->out;
    if (!kn_cli_pair(text, 'x', &size->width, &size->height))
        return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be WxH in pixels, such as 832x480", option->name, text);
    return KN_OK;
}

kn_status kn_cli_precision(const kn_option *option, const char *text)
{
    static const char *const names[] = {"auto", "float32", "bfloat16"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) == 0) {
            *(kn_precision *)option->out = (kn_precision)i;
            return KN_OK;
        }
    }
    return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be auto, float32 or bfloat16", option->name, text);
}

const char *kn_cli_type_name(kn_dtype dtype)
{
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return names[dtype];
}
