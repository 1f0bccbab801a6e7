/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a urlencoded form and as a query: refused with a typed error, or a tree of text with a bounded depth. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/form.h"
#include "server/json.h"
#include "server/query.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void ensure(int holds)
{
    if (!holds) abort();
}

static void check_tree(json_t *value, int depth)
{
    ensure(depth <= KN_FORM_DEPTH_MAX + 1);
    if (json_is_array(value)) {
        ensure(json_array_size(value) > 0);
        for (size_t i = 0; i < json_array_size(value); i++) check_tree(json_array_get(value, i), depth + 1);
    } else if (json_is_object(value)) {
        for (void *at = json_object_iter(value); at; at = json_object_iter_next(value, at))
            check_tree(json_object_iter_value(at), depth + 1);
    } else {
        ensure(json_is_string(value));
        ensure(kn_text_characters(json_string_value(value), json_string_length(value)) >= 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kn_json_use_kn_alloc();
    uint64_t held = kn_mem_read().bytes;
    const char *text = (const char *)bytes;
    kn_api_error error;
    json_t *root = NULL;
    kn_status st = kn_form_parse(&root, text, count, &error);
    if (st == KN_OK)
        check_tree(root, 0);
    else
        ensure(st == KN_INVALID && (error.status == 400 || error.status == 413));
    json_decref(root);

    kn_query query;
    st = kn_query_parse(&query, text, count, &error);
    for (size_t i = 0; st == KN_OK && i < query.count; i++) {
        ensure(query.fields[i].name >= query.text && query.fields[i].value < query.text + sizeof query.text);
        ensure(kn_query_get(&query, query.fields[i].name) == query.fields[i].value);
    }
    kn_list_query list;
    if (kn_list_query_parse(&list, text, count, &error) == KN_OK)
        ensure(list.limit >= 0 && list.limit <= KN_LIST_LIMIT_MAX && (!list.after[0] || kn_job_id_valid(list.after)));
    ensure(kn_mem_read().bytes == held);
    return 0;
}
