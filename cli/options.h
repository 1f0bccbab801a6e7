/* SPDX-License-Identifier: Apache-2.0
 *
 * Parsers for options that several commands share; for kn_option.parse. */
#ifndef KN_CLI_OPTIONS_H
#define KN_CLI_OPTIONS_H

#include "cli/cli.h"
#include "engine/model.h"

/* Pixels, "WxH". */
typedef struct kn_cli_extent {
    int32_t width, height; /* 0: not given */
} kn_cli_extent;

/* Two whole numbers of 1 or more with `between` between them, and nothing else. */
bool kn_cli_pair(const char *text, char between, int32_t *first, int32_t *second);

kn_status kn_cli_size(const kn_option *option, const char *text);      /* kn_cli_extent */
kn_status kn_cli_precision(const kn_option *option, const char *text); /* kn_precision: auto, float32, bfloat16 */

/* "float32", "bfloat16", "float16". */
const char *kn_cli_type_name(kn_dtype dtype);

#endif
