/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora model inspect: what it says about the fixtures, and how it refuses
 * folders that are broken. */
#define _XOPEN_SOURCE 700
#include "tests/cli/command.h"

#include <jansson.h>

#include "engine/weights.h"
#include "tests/engine/folder.h"

#define SMALL KN_SOURCE_DIR "/tests/golden/wan21-small/model"

/* ---- a fixture with one component replaced ---- */

static const char *const parts[] = {"model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"};

static void copy(const folder *to, const char *name, const char *from)
{
    static char bytes[4 << 20];
    FILE *file = fopen(from, "rb");
    assert_non_null(file);
    const size_t count = fread(bytes, 1, sizeof bytes, file);
    assert_true(count < sizeof bytes);
    fclose(file);
    folder_write(to, name, bytes, count);
}

/* The small fixture by links; `own` becomes a folder with copies of config and weights, or stays away when it is a
 * file. */
static folder variant(const char *own)
{
    folder made = folder_create();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char target[512];
        snprintf(target, sizeof target, SMALL "/%s", parts[i]);
        if (strcmp(parts[i], own) == 0) continue;
        assert_int_equal(symlink(target, folder_file(&made, parts[i])), 0);
    }
    if (strchr(own, '.')) return made;
    folder_make(&made, own);
    const char *const files[] = {"config.json", "diffusion_pytorch_model.safetensors", "model.safetensors"};
    for (size_t i = 0; i < 3; i++) {
        char name[128], from[512];
        snprintf(name, sizeof name, "%s/%s", own, files[i]);
        snprintf(from, sizeof from, SMALL "/%s", name);
        if (access(from, R_OK) == 0) copy(&made, name, from);
    }
    return made;
}

/* Replaces the first `old` in a file by `fresh` of the same length. */
static void patch(const folder *in, const char *name, const char *old, const char *fresh)
{
    static char bytes[4 << 20];
    assert_int_equal(strlen(old), strlen(fresh));
    FILE *file = fopen(folder_file(in, name), "rb");
    assert_non_null(file);
    const size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    for (size_t i = 0; i + strlen(old) <= count; i++) {
        if (memcmp(bytes + i, old, strlen(old)) != 0) continue;
        memcpy(bytes + i, fresh, strlen(fresh));
        folder_write(in, name, bytes, count);
        return;
    }
    fail_msg("%s has no \"%s\"", name, old);
}

static void assert_refused(const folder *in, int code, const char *file, const char *what)
{
    assert_int_equal(command("model inspect '%s'", in->path), code);
    assert_one_line();
    assert_printed(file);
    assert_printed(what);
    folder_remove(in);
}

/* ---- what it says ---- */

static json_t *inspect_json(const char *arguments)
{
    json_error_t error;
    assert_int_equal(command("model inspect %s --json", arguments), 0);
    json_t *root = json_loads(command_output, 0, &error);
    if (!root) fail_msg("%s in:\n%s", error.text, command_output);
    return root;
}

static json_int_t number(const json_t *root, const char *object, const char *key)
{
    const json_t *value = json_object_get(json_object_get(root, object), key);
    if (!json_is_integer(value)) fail_msg("%s.%s is not an integer", object, key);
    return json_integer_value(value);
}

static void prints_components_and_plan(void **state)
{
    (void)state;
    assert_int_equal(command("model inspect '" SMALL "' --size 100x64 --frames 7 --threads 1 --precision float32"), 0);
    const char *const expected[] = {"WanPipeline",
                                    "| text_encoder | UMT5EncoderModel ",
                                    "2 layers, 4 heads x 8, width 32",
                                    "WanTransformer3DModel",
                                    "2 heads x 24, width 48",
                                    "AutoencoderKLWan",
                                    "unigram from tokenizer.json, 1000 ids",
                                    "UniPCMultistepScheduler, order 2, shift 3",
                                    "width 100 rounded to 96",
                                    "frames 7 rounded to 5",
                                    "96x64, 5 frames",
                                    "1 thread\n",
                                    "float32, autoencoder float32",
                                    "| denoise_workspace ",
                                    "| peak "};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) assert_printed(expected[i]);
    assert_null(strstr(command_output, "blocks.0."));
}

static void json_counts_what_the_files_hold(void **state)
{
    (void)state;
    json_t *root = inspect_json("'" SMALL "' --tensors --size 64x32 --frames 5 --precision float32");
    const char *const components[] = {"text_encoder", "transformer", "vae"};
    const char *const stems[] = {"model", "diffusion_pytorch_model", "diffusion_pytorch_model"};
    const json_t *all = json_object_get(root, "components");
    size_t tensors = 0;
    for (int c = 0; c < 3; c++) {
        char directory[512];
        json_int_t parameters = 0;
        kn_weights *weights = NULL;
        snprintf(directory, sizeof directory, SMALL "/%s", components[c]);
        assert_int_equal(kn_weights_open(&weights, directory, stems[c]), KN_OK);
        for (size_t i = 0; i < kn_weights_count(weights); i++) {
            kn_tensor tensor;
            assert_int_equal(kn_weights_find(weights, kn_weights_entry_at(weights, i).name, &tensor), KN_OK);
            parameters += kn_tensor_count(&tensor);
        }
        tensors += kn_weights_count(weights);
        assert_int_equal(number(all, components[c], "parameters"), parameters);
        assert_int_equal(number(all, components[c], "tensors"), kn_weights_count(weights));
        assert_int_equal(number(all, components[c], "file_bytes"), kn_weights_file_bytes(weights));
        const json_t *types = json_object_get(json_object_get(all, components[c]), "types");
        assert_int_equal(number(types, "F32", "bytes"), 4 * parameters);
        kn_weights_close(&weights);
    }
    assert_int_equal(json_array_size(json_object_get(root, "tensors")), tensors);
    assert_int_equal(number(root, "request", "tokens"), 2 * 4 * 2); /* of the 2x8x4 latents, two by two */
    json_decref(root);
}

static void the_plan_grows_with_the_size(void **state)
{
    (void)state;
    json_t *small = inspect_json("'" SMALL "' --size 64x64 --frames 5");
    json_t *larger = inspect_json("'" SMALL "' --size 128x64 --frames 5");
    json_t *longer = inspect_json("'" SMALL "' --size 64x64 --frames 81");
    assert_true(number(larger, "memory", "decoder") > number(small, "memory", "decoder"));
    assert_int_equal(number(longer, "memory", "decoder"), number(small, "memory", "decoder"));
    assert_true(number(longer, "memory", "state") > number(small, "memory", "state"));
    assert_int_equal(number(longer, "memory", "transformer"), number(small, "memory", "transformer"));
    json_decref(small);
    json_decref(larger);
    json_decref(longer);
}

static void a_preset_needs_no_files(void **state)
{
    (void)state;
    json_t *root = inspect_json("--preset wan2.1-1.3b --layers 1 --size 416x240 --frames 17");
    assert_int_equal(number(root, "request", "tokens"), 1950);
    assert_true(json_is_null(json_object_get(root, "tokenizer")));
    assert_null(json_object_get(json_object_get(json_object_get(root, "components"), "vae"), "parameters"));
    json_decref(root);
    assert_int_equal(command("model inspect --preset wan9"), 66);
    assert_printed("there are wan2.1-1.3b and wan2.1-14b");
}

/* ---- what it refuses ---- */

static void refuses_wrong_usage(void **state)
{
    (void)state;
    const struct {
        const char *arguments, *says;
    } cases[] = {
        {"model", "inspect DIR"},
        {"model list x", "inspect DIR"},
        {"model inspect", "is missing"},
        {"model inspect '" SMALL "' --preset wan2.1-1.3b", "exclude"},
        {"model inspect '" SMALL "' --layers 2", "--layers"},
        {"model inspect '" SMALL "' --size 64", "--size is \"64\""},
        {"model inspect '" SMALL "' --frames 0", "--frames is \"0\""},
        {"model inspect '" SMALL "' --precision half", "auto, float32 or bfloat16"},
        {"model inspect '" SMALL "' --isa mmx", "mmx"},
        {"model inspect '" SMALL "' --nothing", "--nothing is not an option"},
        {"model inspect '" SMALL "' --size 99999x16", "width is 99999"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(command("%s", cases[i].arguments), 64);
        assert_one_line();
        assert_printed(cases[i].says);
    }
    assert_int_equal(command("model inspect '" SMALL "' --device cuda:0"), 69);
    assert_int_equal(command("model --help"), 0);
    assert_printed("--tensors");
}

static void refuses_what_is_not_there(void **state)
{
    (void)state;
    assert_int_equal(command("model inspect /nowhere/at/all"), 66);
    assert_one_line();
    assert_printed("/nowhere/at/all: no such folder");
    assert_int_equal(command("model inspect /nowhere/at/all --json"), 66);
    assert_printed("{\"event\":\"error\",\"status\":\"not_found\"");

    folder in = variant("model_index.json");
    assert_refused(&in, 66, "model_index.json", "not a model folder");
    in = variant("vae");
    unlink(folder_file(&in, "vae/diffusion_pytorch_model.safetensors"));
    assert_refused(&in, 66, "vae", "diffusion_pytorch_model");
}

static void refuses_broken_configs(void **state)
{
    (void)state;
    folder in = variant("model_index.json");
    folder_text(&in, "model_index.json", "{\"_class_name\": \"FluxPipeline\"}");
    assert_refused(&in, 65, "model_index.json", "FluxPipeline");
    in = variant("model_index.json");
    folder_text(&in, "model_index.json", "{\"_class_name\": \"WanPipeline\", \"_class_name\": 1}");
    assert_refused(&in, 65, "model_index.json", "duplicate");
    in = variant("transformer");
    patch(&in, "transformer/config.json", "\"num_layers\": 2", "\"num_layers\":-2");
    assert_refused(&in, 65, "transformer/config.json", "num_layers");
    in = variant("vae");
    folder_text(&in, "vae/config.json", "[1, 2");
    assert_refused(&in, 65, "vae/config.json", "vae/config.json");
}

static void refuses_broken_weights(void **state)
{
    (void)state;
    static const char weights[] = "transformer/diffusion_pytorch_model.safetensors";
    folder in = variant("transformer");
    assert_int_equal(truncate(folder_file(&in, weights), 50000), 0);
    assert_refused(&in, 65, weights, "tensor ");
    in = variant("transformer");
    assert_int_equal(truncate(folder_file(&in, weights), 100), 0);
    assert_refused(&in, 65, weights, "92 follow");
    in = variant("transformer");
    folder_write(&in, weights, "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
    assert_refused(&in, 65, weights, "the limit is");

    in = variant("transformer"); /* a tensor gone: renamed to something nobody asks for */
    patch(&in, weights, "\"blocks.1.attn2.norm_k.weight\"", "\"blocks.1.attn2.norm_z.weight\"");
    assert_refused(&in, 65, weights, "has no tensor blocks.1.attn2.norm_k.weight");
    in = variant("transformer"); /* the same bytes under another shape */
    patch(&in, weights, "[96,48]", "[48,96]");
    assert_refused(&in, 65, weights, "has shape [48, 96], the model needs [96, 48]");
    in = variant("text_encoder");
    patch(&in, "text_encoder/model.safetensors", "\"F32\"", "\"I32\"");
    assert_refused(&in, 65, "text_encoder/model.safetensors", "I32");
}

static void refuses_a_broken_tokenizer(void **state)
{
    (void)state;
    folder in = variant("tokenizer");
    folder_text(&in, "tokenizer/tokenizer.json", "{\"model\": {\"type\": \"BPE\"}}");
    assert_refused(&in, 65, "tokenizer/tokenizer.json", "BPE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prints_components_and_plan),   cmocka_unit_test(json_counts_what_the_files_hold),
        cmocka_unit_test(the_plan_grows_with_the_size), cmocka_unit_test(a_preset_needs_no_files),
        cmocka_unit_test(refuses_wrong_usage),          cmocka_unit_test(refuses_what_is_not_there),
        cmocka_unit_test(refuses_broken_configs),       cmocka_unit_test(refuses_broken_weights),
        cmocka_unit_test(refuses_a_broken_tokenizer),
    };
    return cmocka_run_group_tests_name("inspect", tests, NULL, NULL);
}
