/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the protocol cores share. A test group that uses the two fixtures counts every byte that jansson
 * and the room allocate, and fails when one is left. */
#ifndef KN_TESTS_SERVER_PROTOCOL_H
#define KN_TESTS_SERVER_PROTOCOL_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/api_error.h"
#include "server/json.h"

static inline int count_allocations(void **state)
{
    (void)state;
    kn_json_use_kn_alloc();
    return 0;
}

static inline int nothing_left(void **state)
{
    (void)state;
    return kn_mem_read().bytes != 0;
}

static inline void ok(kn_status st)
{
    if (st != KN_OK) fail_msg("%s: %s", kn_status_name(st), kn_fail_message());
}

/* `st` failed with this HTTP status, code and field (NULL: none). */
static inline void expect_error(kn_status st, const kn_api_error *error, int status, const char *code,
                                const char *param)
{
    const char *field = param ? param : "";
    if (st == KN_OK) fail_msg("accepted instead of %d %s %s", status, code, field);
    if (error->status != status || !error->code || strcmp(error->code, code) != 0 || strcmp(error->param, field) != 0)
        fail_msg("%d %s %s \"%s\" instead of %d %s %s", error->status, error->code, error->param, error->message,
                 status, code, field);
    assert_true(error->message[0] != '\0');
}

/* A string of `count` times `piece`; kn_free it. */
static inline char *repeated(const char *piece, size_t count)
{
    const size_t bytes = strlen(piece);
    char *text = kn_alloc(bytes * count + 1);
    for (size_t i = 0; i < count; i++) memcpy(text + i * bytes, piece, bytes);
    return text;
}

#endif
