/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading what tests/golden holds. A failure here fails the running test with the reason. */
#ifndef KN_TESTS_ENGINE_GOLDEN_H
#define KN_TESTS_ENGINE_GOLDEN_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>

#include "engine/weights.h"

/* tests/golden/`name` as JSON; json_decref() it. */
static inline json_t *golden_json(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s", KN_SOURCE_DIR, name);
    json_error_t error;
    json_t *root = json_load_file(path, 0, &error);
    if (!root) fail_msg("%s:%d: %s", path, error.line, error.text);
    return root;
}

/* A member that has to be there. */
static inline json_t *golden_get(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    if (!value) fail_msg("no member \"%s\"", key);
    return value;
}

static inline double golden_number(const json_t *object, const char *key)
{
    json_t *value = golden_get(object, key);
    if (!json_is_number(value)) fail_msg("\"%s\" is not a number", key);
    return json_number_value(value);
}

static inline const char *golden_string(const json_t *object, const char *key)
{
    json_t *value = golden_get(object, key);
    if (!json_is_string(value)) fail_msg("\"%s\" is not a string", key);
    return json_string_value(value);
}

/* tests/golden/`fixture`/expected.safetensors; kn_weights_close() it. */
static inline kn_weights *golden_expected(const char *fixture)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s/expected.safetensors", KN_SOURCE_DIR, fixture);
    kn_weights *weights = NULL;
    if (kn_weights_open_file(&weights, path) != KN_OK) fail_msg("%s", kn_fail_message());
    return weights;
}

/* requestI.`part`: float32 values; *count elements, *first the size of its first dimension (either may be NULL). */
static inline const float *golden_request(const kn_weights *weights, size_t request, const char *part, int64_t *count,
                                          int64_t *first)
{
    char name[64];
    snprintf(name, sizeof name, "request%zu.%s", request, part);
    kn_tensor tensor;
    if (kn_weights_find(weights, name, &tensor) != KN_OK) fail_msg("%s", kn_fail_message());
    assert_int_equal(tensor.dtype, KN_F32);
    if (count) *count = kn_tensor_count(&tensor);
    if (first) *first = tensor.shape[0];
    return tensor.data;
}

#endif
