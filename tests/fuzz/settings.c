/* SPDX-License-Identifier: Apache-2.0
 *
 * The configuration file of a server: syntax, names, kinds, ranges. Anything but a clean refusal is a bug. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "server/settings.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    kn_server_config *config = NULL;
    if (kn_server_config_create(&config) != KN_OK) return 0;
    kn_status st = kn_server_config_parse(config, (const char *)data, size, "fuzz");
    if (st != KN_OK && st != KN_INVALID && st != KN_NOMEM) __builtin_trap();
    if (st == KN_INVALID && strncmp(kn_fail_message(), "fuzz: ", 6) != 0) __builtin_trap();
    kn_server_config_destroy(&config);
    return 0;
}
