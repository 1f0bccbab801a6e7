/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/options.h"

#include <inttypes.h>
#include <string.h>

kn_status kn_cli_size(const kn_option *option, const char *text)
{
    kn_cli_extent *size = option->out;
    int used = 0;
    if (sscanf(text, "%5" SCNd32 "x%5" SCNd32 "%n", &size->width, &size->height, &used) != 2 || text[used] ||
        size->width < 1 || size->height < 1)
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
