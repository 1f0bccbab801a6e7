/* SPDX-License-Identifier: Apache-2.0 */
#define _XOPEN_SOURCE 700

#include "server/catalog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"
#include "engine/pack.h"

#define SMALL KN_SOURCE_DIR "/tests/golden/wan21-small/model"

/* A models directory with links to fixtures. */
static char root[] = "/tmp/kn-catalog-XXXXXX";

static void link_model(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_int_equal(symlink(SMALL, path), 0);
}

static void remove_entry(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_int_equal(remove(path), 0);
}

static int make_root(void **state)
{
    (void)state;
    return mkdtemp(root) == NULL;
}

static int remove_root(void **state)
{
    (void)state;
    return rmdir(root);
}

static void folders_are_found_measured_and_named(void **state)
{
    (void)state;
    kn_catalog *catalog = NULL;
    const kn_catalog_alias aliases[] = {{"house", "wan21-small"}};
    link_model("wan21-small");
    link_model("another");
    link_model("Not A Name");
    assert_int_equal(kn_catalog_open(&catalog, root, aliases, 1), KN_OK);
    assert_int_equal(kn_catalog_count(catalog), 2);
    kn_catalog_model *small = kn_catalog_find(catalog, "wan21-small");
    assert_non_null(small);
    assert_true(small->available);
    assert_true(small->created > 0);
    assert_ptr_equal(kn_catalog_find(catalog, "house"), small);
    assert_null(kn_catalog_find(catalog, "wan99"));
    kn_catalog_model *first = kn_catalog_find(catalog, NULL);
    assert_string_equal(first->name, "another");
    assert_ptr_equal(kn_catalog_find(catalog, "sora-2"), first);
    assert_ptr_equal(kn_catalog_at(catalog, kn_catalog_index(catalog, small)), small);

    kn_request request = kn_request_empty();
    request.prompt = kn_strdup("a red ball");
    assert_int_equal(kn_request_resolve(&request, small->repository, NULL), KN_OK);
    kn_catalog_size size;
    assert_int_equal(kn_catalog_measure(&size, small, &request), KN_OK);
    const kn_latent_shape latent = kn_request_latent(&request, small->repository);
    assert_int_equal(size.tokens, latent.t * (latent.h / 2) * (latent.w / 2));
    assert_int_equal(size.latent_frames, latent.t);
    assert_int_equal(size.sequences, request.guidance > 1.0 ? 2 : 1);
    assert_true(size.text_tokens >= 2 && size.text_tokens < 40);
    assert_true(size.state_bytes > 0 && size.workspace_bytes > 0 && size.decoder_bytes > 0);
    kn_cost_model cost;
    assert_int_equal(kn_catalog_cost(&cost, small), KN_OK);
    assert_int_equal(cost.layers, small->repository->dit.num_layers);
    assert_int_equal(cost.frames_per_latent, 4);
    assert_true(cost.transformer_bytes > 0 && cost.decode_flop > 0.0 && cost.text_flop_per_token > 0.0);
    kn_request_release(&request);
    kn_catalog_close(&catalog);
    assert_null(catalog);
    remove_entry("wan21-small");
    remove_entry("another");
    remove_entry("Not A Name");
}

static void a_model_folder_is_a_catalog_of_one(void **state)
{
    (void)state;
    kn_catalog *catalog = NULL;
    assert_int_equal(kn_catalog_open(&catalog, SMALL, NULL, 0), KN_OK);
    assert_int_equal(kn_catalog_count(catalog), 1);
    assert_string_equal(kn_catalog_at(catalog, 0)->name, "model");
    kn_catalog_close(&catalog);
}

static void what_cannot_be_used_is_said(void **state)
{
    (void)state;
    kn_catalog *catalog = NULL;
    assert_int_equal(kn_catalog_open(&catalog, "/nonexistent/models", NULL, 0), KN_NOT_FOUND);
    assert_non_null(strstr(kn_fail_message(), "/nonexistent/models"));
    assert_int_equal(kn_catalog_open(&catalog, KN_SOURCE_DIR "/docs", NULL, 0), KN_NOT_FOUND);
    assert_non_null(strstr(kn_fail_message(), "model_index.json"));
    const kn_catalog_alias alias = {"house", "nobody"};
    assert_int_equal(kn_catalog_open(&catalog, SMALL, &alias, 1), KN_NOT_FOUND);
    assert_non_null(strstr(kn_fail_message(), "nobody"));
    assert_null(catalog);
}

static void a_rescan_sees_folders_come_and_go(void **state)
{
    (void)state;
    char broken[64], index[96];
    snprintf(broken, sizeof broken, "%s/broken", root);
    snprintf(index, sizeof index, "%s/model_index.json", broken);
    assert_int_equal(mkdir(broken, 0700), 0);
    FILE *file = fopen(index, "w");
    assert_non_null(file);
    fputs("{not json", file);
    fclose(file);
    kn_catalog *catalog = NULL;
    assert_int_equal(kn_catalog_open(&catalog, root, NULL, 0), KN_OK);
    assert_int_equal(kn_catalog_count(catalog), 1);
    assert_false(kn_catalog_at(catalog, 0)->available);
    assert_non_null(strstr(kn_catalog_at(catalog, 0)->error, "model_index.json"));
    assert_null(kn_catalog_find(catalog, NULL));
    link_model("ours");
    assert_int_equal(kn_catalog_rescan(catalog), KN_OK);
    assert_true(kn_catalog_find(catalog, "ours")->available);
    remove_entry("ours");
    assert_int_equal(kn_catalog_rescan(catalog), KN_OK);
    assert_false(kn_catalog_find(catalog, "ours")->available);
    kn_catalog_close(&catalog);
    assert_int_equal(unlink(index), 0);
    remove_entry("broken");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_are_found_measured_and_named),
        cmocka_unit_test(a_model_folder_is_a_catalog_of_one),
        cmocka_unit_test(what_cannot_be_used_is_said),
        cmocka_unit_test(a_rescan_sees_folders_come_and_go),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
