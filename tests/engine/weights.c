/* SPDX-License-Identifier: Apache-2.0
 *
 * Safetensors reading: every malformed file is refused with a message that names
 * what is wrong, sharded sets are checked against their index, original Wan
 * names are answered, and no allocation failure leaks. The writer is in
 * safetensors_write.c. */
#define _XOPEN_SOURCE 700
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "base/mem.h"
#include "engine/weights.h"
#include "engine/weights_wan_names.h"
#include "tests/engine/folder.h"

/* Writes a file with this header and `data_bytes` bytes of data, byte i being i. */
static void put(const folder *in, const char *name, const char *header, size_t data_bytes)
{
    size_t length = strlen(header);
    unsigned char *bytes = calloc(1, 8 + length + data_bytes);
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + length + i] = (unsigned char)i;
    folder_write(in, name, bytes, 8 + length + data_bytes);
    free(bytes);
}

/* The same with the header padded by spaces, so that the data starts at a multiple of 8. */
static void put_aligned(const folder *in, const char *name, const char *header, size_t data_bytes)
{
    char padded[4096];
    size_t length = strlen(header);
    assert_true(length + 8 < sizeof padded);
    memset(padded, ' ', sizeof padded);
    memcpy(padded, header, length);
    padded[(length + 7) / 8 * 8] = '\0';
    put(in, name, padded, data_bytes);
}

static void assert_message(const char *part)
{
    const char *message = kn_fail_message();
    if (!strstr(message, part)) fail_msg("message \"%s\" lacks \"%s\"", message, part);
    if (strchr(message, '\n')) fail_msg("message \"%s\" has more than one line", message);
}

static void assert_refused(const folder *in, const char *file, kn_status status, const char *part)
{
    kn_weights *weights = NULL;
    kn_status st = kn_weights_open_file(&weights, folder_file(in, file));
    if (st != status) fail_msg("%s, wanted %s (%s)", kn_status_name(st), kn_status_name(status), part);
    assert_null(weights);
    assert_message(part);
    assert_message(file);
}

/* ---- one file ---- */

static void test_reads_names_shapes_and_bytes(void **state)
{
    (void)state;
    folder in = folder_create();
    put_aligned(&in, "a.safetensors",
                "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"\"},"
                "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[8,32]},"
                "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[0,8]},"
                "\"count\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[32,40]},"
                "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[40,40]}}",
                40);
    kn_weights *weights = NULL;
    assert_int_equal(kn_weights_open_file(&weights, folder_file(&in, "a.safetensors")), KN_OK);
    assert_int_equal(kn_weights_count(weights), 4);
    const char *order[] = {"b", "count", "none", "w"};
    for (size_t i = 0; i < 4; i++) assert_string_equal(kn_weights_entry_at(weights, i).name, order[i]);
    assert_string_equal(kn_weights_entry_at(weights, 1).dtype_name, "I64");
    assert_int_equal(kn_weights_entry_at(weights, 3).bytes, 24);
    assert_string_equal(kn_weights_metadata(weights, "format"), "pt");
    assert_string_equal(kn_weights_metadata(weights, "note"), "");
    assert_null(kn_weights_metadata(weights, "absent"));
    assert_true(kn_weights_file_bytes(weights) > 40);

    kn_tensor tensor;
    assert_int_equal(kn_weights_find(weights, "w", &tensor), KN_OK);
    assert_int_equal(tensor.dtype, KN_F32);
    assert_int_equal(tensor.rank, 2);
    assert_int_equal(kn_tensor_count(&tensor), 6);
    assert_int_equal(((const unsigned char *)tensor.data)[0], 8);
    assert_int_equal(((const unsigned char *)tensor.data)[23], 31);
    assert_int_equal(kn_weights_find(weights, "none", &tensor), KN_OK);
    assert_int_equal(kn_tensor_count(&tensor), 0);

    assert_int_equal(kn_weights_find(weights, "count", &tensor), KN_UNSUPPORTED);
    assert_message("tensor count has dtype I64");
    assert_true(kn_weights_has(weights, "count"));
    assert_false(kn_weights_has(weights, "c"));
    assert_int_equal(kn_weights_find(weights, "absent", &tensor), KN_NOT_FOUND);
    assert_message("a.safetensors: has no tensor absent");
    assert_int_equal(kn_weights_expect(weights, "w", 2, (int64_t[]){2, 3}, &tensor), KN_OK);
    assert_int_equal(kn_weights_expect(weights, "w", 2, (int64_t[]){3, 2}, &tensor), KN_CORRUPT);
    assert_message("tensor w has shape [2, 3], the model needs [3, 2]");
    assert_int_equal(kn_weights_expect(weights, "w", 1, (int64_t[]){6}, &tensor), KN_CORRUPT);
    kn_weights_close(&weights);
    assert_null(weights);
    kn_weights_close(&weights);
    folder_remove(&in);
}

#define TENSOR(body) "{\"t\":{" body "}}"

static const struct malformed {
    const char *header;
    size_t data_bytes;
    const char *message;
} malformed_files[] = {
    {"[]", 0, "not a JSON object"},
    {" {}", 0, "not a JSON object"},
    {"", 0, "not a JSON object"},
    {"{\"t\":", 0, "not valid JSON"},
    {"{}{}", 0, "not valid JSON"},
    {"{\"a\\u0000b\":1}", 0, "not valid JSON"},
    {"{\"\xff\":1}", 0, "not valid JSON"},
    {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, "duplicate"},
    {"{\"t\":[[[[[[[[[[]]]]]]]]]]}", 0, "nested deeper than 8"},
    {"{\"t\":3}", 0, "tensor t is not an object"},
    {"{\"\":{}}", 0, "empty name"},
    {"{\"a\\nb\":{}}", 0, "control character at byte 1"},
    {TENSOR("\"shape\":[1],\"data_offsets\":[0,1]"), 1, "tensor t has no dtype"},
    {TENSOR("\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]"), 1, "tensor t has no dtype"},
    {TENSOR("\"dtype\":\"a b\",\"shape\":[1],\"data_offsets\":[0,1]"), 1, "the dtype is not a word"},
    {TENSOR("\"dtype\":\"U8\",\"data_offsets\":[0,1]"), 1, "tensor t has no shape"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1]"), 1, "tensor t has no data_offsets"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]"), 1, "tensor t has no data_offsets"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]"), 1, "tensor t has no data_offsets"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.5]"), 1, "not two integers >= 0"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]"), 1, "not two integers >= 0"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]"), 1, "rank 9, the limit is 8"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]"), 1, "shape[0] is not an integer >= 0"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1,\"1\"],\"data_offsets\":[0,1]"), 1, "shape[1] is not an integer >= 0"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]"), 1, "overflows 64 bits"},
    {TENSOR("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]"), 0, "overflows 64 bits"},
    {TENSOR("\"dtype\":\"ZZ\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]"), 1, "overflows 64 bits"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]"), 1, "[1, 0] are reversed"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]"), 1,
     "ends at byte 2 of the data, which has only 1"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,9223372036854775807]"), 1, "which has only 1"},
    {TENSOR("\"dtype\":\"ZZ\",\"shape\":[1],\"data_offsets\":[0,2]"), 1, "which has only 1"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,9223372036854775808]"), 1, "not valid JSON"},
    {TENSOR("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]"), 4,
     "4 bytes of data, but shape [2] of F32 takes 8"},
    {TENSOR("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]"), 1, "shape [3] of F4 takes 2"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]"), 2, "1 bytes in front of tensor t belong to no"},
    {TENSOR("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"), 3, "the last 2 bytes belong to no tensor"},
    {"{}", 1, "the last 1 bytes belong to no tensor"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, "tensors a and b overlap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     2, "tensors a and b overlap"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
     3, "1 bytes in front of tensor b"},
    {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ holds a value that is not a string"},
};

static void test_refuses_malformed_files(void **state)
{
    (void)state;
    folder in = folder_create();
    uint64_t before = kn_mem_read().bytes;
    for (size_t i = 0; i < sizeof malformed_files / sizeof malformed_files[0]; i++) {
        put(&in, "bad.safetensors", malformed_files[i].header, malformed_files[i].data_bytes);
        assert_refused(&in, "bad.safetensors", KN_CORRUPT, malformed_files[i].message);
    }
    assert_int_equal(kn_mem_read().bytes, before);
    folder_remove(&in);
}

static void test_refuses_bad_lengths_and_kinds(void **state)
{
    (void)state;
    folder in = folder_create();
    unsigned char length[16] = {0};
    folder_write(&in, "empty", "", 0);
    assert_refused(&in, "empty", KN_CORRUPT, "0 bytes are too short");
    folder_write(&in, "seven", length, 7);
    assert_refused(&in, "seven", KN_CORRUPT, "7 bytes are too short");
    folder_write(&in, "eight", length, 8);
    assert_refused(&in, "eight", KN_CORRUPT, "not a JSON object");
    length[0] = 9;
    folder_write(&in, "beyond", length, 16);
    assert_refused(&in, "beyond", KN_CORRUPT, "9 bytes, but only 8 follow");
    memset(length, 0xff, 8);
    folder_write(&in, "huge", length, 16);
    assert_refused(&in, "huge", KN_CORRUPT, "18446744073709551615 bytes, the limit is 104857600");
    folder_make(&in, "folder");
    assert_refused(&in, "folder", KN_CORRUPT, "not a regular file");
    assert_int_equal(mkfifo(folder_file(&in, "pipe"), 0600), 0);
    assert_refused(&in, "pipe", KN_CORRUPT, "not a regular file");
    assert_refused(&in, "absent", KN_NOT_FOUND, "not found");

    char name[300];
    memset(name, 'n', sizeof name);
    char header[400];
    snprintf(header, sizeof header, "{\"%.*s\":{}}", 257, name);
    put(&in, "name", header, 0);
    assert_refused(&in, "name", KN_CORRUPT, "257 bytes, the limit is 256");
    folder_remove(&in);
}

/* The header's length decides where the data starts, so alignment is a property of the file, not of the offset. */
static void test_alignment_is_of_the_file_position(void **state)
{
    (void)state;
    static const char header[] = "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    static const char wide[] = "{\"t\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}";
    folder in = folder_create();
    kn_weights *weights = NULL;
    for (int pad = 0; pad < 4; pad++) {
        char text[128];
        size_t base = 8 + (size_t)snprintf(text, sizeof text, "%s%*s", header, pad, "");
        put(&in, "t.safetensors", text, 4);
        if (base % 4 == 0) {
            assert_int_equal(kn_weights_open_file(&weights, folder_file(&in, "t.safetensors")), KN_OK);
            kn_weights_close(&weights);
        } else {
            char part[96];
            snprintf(part, sizeof part, "starts at byte %zu of the file, not a multiple of its 4-byte", base);
            assert_refused(&in, "t.safetensors", KN_CORRUPT, part);
        }
        /* Types that cannot be asked for need no alignment. */
        snprintf(text, sizeof text, "%s%*s", wide, pad, "");
        put(&in, "w.safetensors", text, 8);
        assert_int_equal(kn_weights_open_file(&weights, folder_file(&in, "w.safetensors")), KN_OK);
        kn_weights_close(&weights);
    }
    folder_remove(&in);
}

static void test_unknown_dtype_is_carried(void **state)
{
    (void)state;
    folder in = folder_create();
    put_aligned(&in, "u.safetensors",
                "{\"q\":{\"dtype\":\"NVFP4\",\"shape\":[5],\"data_offsets\":[4,7],\"extra\":true},"
                "\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                7);
    kn_weights *weights = NULL;
    kn_tensor tensor;
    assert_int_equal(kn_weights_open_file(&weights, folder_file(&in, "u.safetensors")), KN_OK);
    assert_int_equal(kn_weights_find(weights, "w", &tensor), KN_OK);
    assert_int_equal(kn_weights_find(weights, "q", &tensor), KN_UNSUPPORTED);
    assert_message("tensor q has dtype NVFP4; F32, F16 and BF16 can be read");
    assert_string_equal(kn_weights_entry_at(weights, 0).dtype_name, "NVFP4");
    kn_weights_close(&weights);
    folder_remove(&in);
}

static void test_hints_change_nothing(void **state)
{
    (void)state;
    folder in = folder_create();
    put_aligned(&in, "h.safetensors", "{\"t\":{\"dtype\":\"F32\",\"shape\":[65536],\"data_offsets\":[0,262144]}}",
                262144);
    kn_weights *weights = NULL;
    kn_tensor tensor;
    assert_int_equal(kn_weights_open_file(&weights, folder_file(&in, "h.safetensors")), KN_OK);
    assert_int_equal(kn_weights_find(weights, "t", &tensor), KN_OK);
    kn_weights_prefetch(weights, &tensor);
    kn_weights_release(weights, &tensor);
    const unsigned char *bytes = tensor.data;
    for (size_t i = 0; i < 262144; i++) assert_int_equal(bytes[i], (unsigned char)i);
    float elsewhere = 1.0f;
    kn_weights_release(weights, &(kn_tensor){.data = &elsewhere, .dtype = KN_F32, .rank = 1, .shape = {1}});
    assert_true(elsewhere == 1.0f);
    kn_weights_close(&weights);
    folder_remove(&in);
}

/* ---- shards ---- */

#define BYTE_TENSOR(name) "{\"" name "\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}"

static void assert_index_refused(const folder *in, const char *index, kn_status status, const char *part)
{
    kn_weights *weights = NULL;
    folder_text(in, "m.safetensors.index.json", index);
    kn_status st = kn_weights_open(&weights, in->path, "m");
    if (st != status) fail_msg("%s, wanted %s (%s)", kn_status_name(st), kn_status_name(status), part);
    assert_null(weights);
    assert_message(part);
}

static void test_shards(void **state)
{
    (void)state;
    folder in = folder_create();
    uint64_t before = kn_mem_read().bytes;
    put_aligned(&in, "m-1.safetensors", BYTE_TENSOR("a"), 2);
    put_aligned(&in, "m-2.safetensors", BYTE_TENSOR("b"), 2);
    put_aligned(&in, "again.safetensors", BYTE_TENSOR("a"), 2);
    put(&in, "odd.safetensors", "{}", 1);
    kn_weights *weights = NULL;
    kn_tensor tensor;
    assert_int_equal(kn_weights_open(&weights, in.path, "m"), KN_NOT_FOUND);
    assert_message("m.safetensors.index.json");

    folder_text(&in, "m.safetensors.index.json",
                "{\"metadata\":{\"total_size\":4},"
                "\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\"}}");
    assert_int_equal(kn_weights_open(&weights, in.path, "m"), KN_OK);
    assert_int_equal(kn_weights_count(weights), 2);
    assert_int_equal(kn_weights_find(weights, "b", &tensor), KN_OK);
    assert_non_null(strstr(kn_weights_entry_at(weights, 1).file, "m-2.safetensors"));
    assert_int_equal(kn_weights_find(weights, "c", &tensor), KN_NOT_FOUND);
    assert_message("1 more shards");
    kn_weights_close(&weights);

    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"gone.safetensors\"}}", KN_NOT_FOUND,
                         "gone.safetensors: not found");
    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\"}}", KN_CORRUPT,
                         "tensor b is mapped to m-1.safetensors, which does not hold it");
    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"m-2.safetensors\",\"b\":\"m-1.safetensors\"}}", KN_CORRUPT,
                         "which does not hold it");
    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"again.safetensors\"}}", KN_CORRUPT,
                         "tensor a is also in");
    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"odd.safetensors\"}}", KN_CORRUPT,
                         "odd.safetensors: the last 1");
    assert_index_refused(&in, "{\"weight_map\":{}}", KN_CORRUPT, "names 0 files, outside 1..1024");
    assert_index_refused(&in, "{\"weights\":{}}", KN_CORRUPT, "\"weight_map\" is missing");
    assert_index_refused(&in, "{\"weight_map\":[\"a\"]}", KN_CORRUPT, "\"weight_map\" is missing or not an object");
    assert_index_refused(&in, "[]", KN_CORRUPT, "not an object");
    assert_index_refused(&in, "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"a\":\"m-2.safetensors\"}}", KN_CORRUPT,
                         "duplicate");
    static const char *const leaving[] = {"\"../m-1.safetensors\"",
                                          "\"/etc/passwd\"",
                                          "\"x/m-1.safetensors\"",
                                          "\"\"",
                                          "\".hidden\"",
                                          "\"..\"",
                                          "\"a\\nb.safetensors\"",
                                          "\"a\\\\b\"",
                                          "7",
                                          "null",
                                          "[\"m-1.safetensors\"]"};
    for (size_t i = 0; i < sizeof leaving / sizeof leaving[0]; i++) {
        char index[128];
        snprintf(index, sizeof index, "{\"weight_map\":{\"a\":%s}}", leaving[i]);
        assert_index_refused(&in, index, KN_CORRUPT, "tensor a is mapped to");
        assert_message("not a plain file name");
    }
    assert_int_equal(kn_mem_read().bytes, before);
    folder_remove(&in);
}

/* ---- original names ---- */

static const char *const wan_names[][2] = {
    {"patch_embedding.weight", "patch_embedding.weight"},
    {"time_embedding.0.weight", "condition_embedder.time_embedder.linear_1.weight"},
    {"time_embedding.2.bias", "condition_embedder.time_embedder.linear_2.bias"},
    {"time_projection.1.weight", "condition_embedder.time_proj.weight"},
    {"text_embedding.0.bias", "condition_embedder.text_embedder.linear_1.bias"},
    {"text_embedding.2.weight", "condition_embedder.text_embedder.linear_2.weight"},
    {"head.head.bias", "proj_out.bias"},
    {"head.modulation", "scale_shift_table"},
    {"blocks.0.modulation", "blocks.0.scale_shift_table"},
    {"blocks.12.self_attn.q.weight", "blocks.12.attn1.to_q.weight"},
    {"blocks.12.self_attn.k.bias", "blocks.12.attn1.to_k.bias"},
    {"blocks.12.self_attn.v.bias", "blocks.12.attn1.to_v.bias"},
    {"blocks.12.self_attn.o.weight", "blocks.12.attn1.to_out.0.weight"},
    {"blocks.3.self_attn.norm_q.weight", "blocks.3.attn1.norm_q.weight"},
    {"blocks.3.self_attn.norm_k.weight", "blocks.3.attn1.norm_k.weight"},
    {"blocks.3.cross_attn.q.weight", "blocks.3.attn2.to_q.weight"},
    {"blocks.3.cross_attn.k.weight", "blocks.3.attn2.to_k.weight"},
    {"blocks.3.cross_attn.v.weight", "blocks.3.attn2.to_v.weight"},
    {"blocks.3.cross_attn.o.bias", "blocks.3.attn2.to_out.0.bias"},
    {"blocks.3.cross_attn.norm_k.weight", "blocks.3.attn2.norm_k.weight"},
    {"blocks.3.cross_attn.k_img.bias", "blocks.3.attn2.add_k_proj.bias"},
    {"blocks.3.cross_attn.v_img.weight", "blocks.3.attn2.add_v_proj.weight"},
    {"blocks.3.cross_attn.norm_k_img.weight", "blocks.3.attn2.norm_added_k.weight"},
    {"blocks.3.norm3.weight", "blocks.3.norm2.weight"}, /* the trap */
    {"blocks.3.ffn.0.weight", "blocks.3.ffn.net.0.proj.weight"},
    {"blocks.3.ffn.2.bias", "blocks.3.ffn.net.2.bias"},
    {"img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight"},
    {"img_emb.proj.1.bias", "condition_embedder.image_embedder.ff.net.0.proj.bias"},
    {"img_emb.proj.3.weight", "condition_embedder.image_embedder.ff.net.2.weight"},
    {"img_emb.proj.4.bias", "condition_embedder.image_embedder.norm2.bias"},
    {"img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"},
    {"blocks.x.modulation", "blocks.x.modulation"},
    {"blocks.", "blocks."},
    {"blocks.7", "blocks.7"},
    {"head.modulation2", "head.modulation2"},
    {"model.diffusion_model.head.modulation", "scale_shift_table"},
    {"model.diffusion_model.blocks.9.ffn.2.bias", "blocks.9.ffn.net.2.bias"},
    {"model.diffusion_model.other", "other"},
};

static void test_wan_names(void **state)
{
    (void)state;
    char out[512];
    for (size_t i = 0; i < sizeof wan_names / sizeof wan_names[0]; i++) {
        size_t room = 2 * strlen(wan_names[i][0]) + 64;
        assert_true(kn_wan_name_translate(wan_names[i][0], out, room));
        assert_string_equal(out, wan_names[i][1]);
        size_t needed = strlen(wan_names[i][1]) + 1;
        assert_true(kn_wan_name_translate(wan_names[i][0], out, needed));
        assert_false(kn_wan_name_translate(wan_names[i][0], out, needed - 1));
    }
    assert_true(kn_wan_name_is_original("head.modulation"));
    assert_true(kn_wan_name_is_original("model.diffusion_model.blocks.0.self_attn.q.weight"));
    assert_false(kn_wan_name_is_original("blocks.0.attn1.to_q.weight"));
    assert_false(kn_wan_name_is_original("scale_shift_table"));
}

static void test_original_names_are_answered(void **state)
{
    (void)state;
    static const char *const prefixes[] = {"", "model.diffusion_model."};
    folder in = folder_create();
    for (size_t i = 0; i < 2; i++) {
        char header[512];
        snprintf(header, sizeof header,
                 "{\"%shead.modulation\":{\"dtype\":\"BF16\",\"shape\":[1,2,1],\"data_offsets\":[0,4]},"
                 "\"%sblocks.0.norm3.bias\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[4,6]}}",
                 prefixes[i], prefixes[i]);
        put_aligned(&in, "m.safetensors", header, 6);
        kn_weights *weights = NULL;
        kn_tensor tensor;
        assert_int_equal(kn_weights_open(&weights, in.path, "m"), KN_OK);
        assert_int_equal(kn_weights_expect(weights, "scale_shift_table", 3, (int64_t[]){1, 2, 1}, &tensor), KN_OK);
        assert_int_equal(kn_weights_find(weights, "blocks.0.norm2.bias", &tensor), KN_OK);
        assert_int_equal(((const unsigned char *)tensor.data)[0], 4);
        assert_false(kn_weights_has(weights, "head.modulation"));
        assert_string_equal(kn_weights_entry_at(weights, 0).name, "blocks.0.norm2.bias");
        kn_weights_close(&weights);
    }
    /* Both names of one tensor in one file: which is meant cannot be known. */
    put_aligned(&in, "m.safetensors",
                "{\"head.modulation\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]},"
                "\"scale_shift_table\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[2,4]}}",
                4);
    assert_refused(&in, "m.safetensors", KN_CORRUPT, "are both scale_shift_table");
    folder_remove(&in);
}

/* ---- allocation failures ---- */

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    folder in = folder_create();
    put_aligned(&in, "m-1.safetensors", BYTE_TENSOR("head.modulation"), 2);
    put_aligned(&in, "m-2.safetensors",
                "{\"__metadata__\":{\"k\":\"v\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2);
    folder_text(&in, "m.safetensors.index.json",
                "{\"weight_map\":{\"b\":\"m-2.safetensors\",\"head.modulation\":\"m-1.safetensors\"}}");
    uint64_t before = kn_mem_read().bytes;
    kn_weights *weights = NULL;
    uint64_t n = 0;
    kn_status st;
    do {
        kn_mem_fail_at(++n);
        st = kn_weights_open(&weights, in.path, "m");
        kn_mem_fail_at(0);
        if (st != KN_OK) {
            assert_int_equal(st, KN_NOMEM);
            assert_null(weights);
            assert_int_equal(kn_mem_read().bytes, before);
        }
    } while (st != KN_OK && n < 1000);
    assert_int_equal(st, KN_OK);
    assert_true(n > 10);
    assert_true(kn_weights_has(weights, "scale_shift_table"));
    kn_weights_close(&weights);
    assert_int_equal(kn_mem_read().bytes, before);
    folder_remove(&in);
}

/* ---- synthetic ---- */

static double value_at(const kn_tensor *tensor, size_t index)
{
    if (tensor->dtype == KN_F32) return ((const float *)tensor->data)[index];
    uint16_t bits = ((const uint16_t *)tensor->data)[index];
    return tensor->dtype == KN_BF16 ? kn_bf16_to_float(bits) : kn_f16_to_float(bits);
}

static void test_synthetic_weights_are_normal(void **state)
{
    (void)state;
    static const kn_dtype dtypes[] = {KN_F32, KN_BF16, KN_F16};
    for (size_t d = 0; d < 3; d++) {
        kn_weights *weights = NULL;
        kn_tensor tensor, other, again;
        assert_int_equal(kn_weights_synthetic(&weights, 0.02f, dtypes[d], 7), KN_OK);
        assert_int_equal(kn_weights_count(weights), 0);
        assert_int_equal(kn_weights_file_bytes(weights), 0);
        assert_int_equal(kn_weights_expect(weights, "a", 2, (int64_t[]){1000, 1000}, &tensor), KN_OK);
        assert_int_equal(tensor.dtype, dtypes[d]);
        double sum = 0, squares = 0;
        for (size_t i = 0; i < 1000000; i++) {
            sum += value_at(&tensor, i);
            squares += value_at(&tensor, i) * value_at(&tensor, i);
        }
        /* Standard errors: 2e-5 and 1.4e-5 (0.07 %). */
        assert_true(fabs(sum / 1e6) < 1e-4);
        assert_true(fabs(sqrt(squares / 1e6) - 0.02) < 1e-4);
        assert_int_equal(kn_weights_expect(weights, "b", 1, (int64_t[]){16}, &other), KN_OK);
        assert_int_equal(kn_weights_expect(weights, "a", 1, (int64_t[]){16}, &again), KN_OK);
        assert_ptr_equal(again.data, tensor.data);
        assert_memory_not_equal(other.data, tensor.data, 32);
        kn_weights_prefetch(weights, &tensor);
        kn_weights_release(weights, &tensor);
        assert_true(kn_weights_has(weights, "anything"));
        assert_int_equal(kn_weights_find(weights, "a", &tensor), KN_INVALID);
        assert_message("use expect");
        kn_weights_close(&weights);
    }
}

/* UMT5's embedding in F32 takes 4.2 GB; here it must cost one block. */
static void test_synthetic_weights_repeat(void **state)
{
    (void)state;
    kn_weights *weights = NULL;
    kn_tensor tensor;
    const size_t period = (size_t)4 << 20;
    const int64_t rows = 256384, columns = 4096;
    assert_int_equal(kn_weights_synthetic(&weights, 1.0f, KN_F32, 1), KN_OK);
    uint64_t held = kn_mem_read().bytes;
    assert_int_equal(kn_weights_expect(weights, "shared.weight", 2, (int64_t[]){rows, columns}, &tensor), KN_OK);
    const float *values = tensor.data;
    size_t last = (size_t)rows * (size_t)columns - 1;
    assert_true(values[last] == values[last % period]);
    assert_true(values[period] == values[0] && values[3 * period + 5] == values[5]);
    assert_int_equal(kn_mem_read().bytes, held);

    assert_int_equal(kn_weights_expect(weights, "x", 1, (int64_t[]){(int64_t)2 << 30}, &tensor), KN_OK);
    assert_true(((const float *)tensor.data)[((size_t)2 << 30) - 1] < 10.0f);
    assert_int_equal(kn_weights_expect(weights, "x", 2, (int64_t[]){(int64_t)2 << 30, 2}, &tensor), KN_INVALID);
    assert_message("tensor x [2147483648, 2] has more than 2147483648 elements");
    assert_int_equal(kn_weights_expect(weights, "x", 1, (int64_t[]){-1}, &tensor), KN_INVALID);
    assert_int_equal(kn_weights_expect(weights, "x", 9, (int64_t[9]){1}, &tensor), KN_INVALID);
    assert_int_equal(kn_weights_expect(weights, "x", 0, NULL, &tensor), KN_OK);
    kn_weights_close(&weights);
    assert_int_equal(kn_weights_synthetic(&weights, NAN, KN_F32, 1), KN_INVALID);
    assert_null(weights);
}

static void test_synthetic_weights_follow_the_seed(void **state)
{
    (void)state;
    kn_weights *one = NULL, *same = NULL, *two = NULL;
    kn_tensor a, b, c;
    const int64_t shape[] = {64};
    assert_int_equal(kn_weights_synthetic(&one, 1.0f, KN_BF16, 1), KN_OK);
    assert_int_equal(kn_weights_synthetic(&same, 1.0f, KN_BF16, 1), KN_OK);
    assert_int_equal(kn_weights_synthetic(&two, 1.0f, KN_BF16, 2), KN_OK);
    assert_int_equal(kn_weights_expect(one, "t", 1, shape, &a), KN_OK);
    assert_int_equal(kn_weights_expect(same, "t", 1, shape, &b), KN_OK);
    assert_int_equal(kn_weights_expect(two, "t", 1, shape, &c), KN_OK);
    assert_memory_equal(a.data, b.data, 128);
    assert_memory_not_equal(a.data, c.data, 128);
    kn_weights_close(&one);
    kn_weights_close(&same);
    kn_weights_close(&two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_names_shapes_and_bytes),
        cmocka_unit_test(test_refuses_malformed_files),
        cmocka_unit_test(test_refuses_bad_lengths_and_kinds),
        cmocka_unit_test(test_alignment_is_of_the_file_position),
        cmocka_unit_test(test_unknown_dtype_is_carried),
        cmocka_unit_test(test_hints_change_nothing),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_wan_names),
        cmocka_unit_test(test_original_names_are_answered),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_synthetic_weights_are_normal),
        cmocka_unit_test(test_synthetic_weights_repeat),
        cmocka_unit_test(test_synthetic_weights_follow_the_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
