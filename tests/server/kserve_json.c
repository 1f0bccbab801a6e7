/* SPDX-License-Identifier: Apache-2.0
 *
 * The REST bodies: binary tensors at every wrong length, and answers read back with an independent parser. */
#include "server/kserve_json.h"

#include "tests/server/protocol.h"

static kn_api_error error;
static kn_kserve_request request;

#define PROMPT "{\"name\":\"prompt\",\"shape\":[1],\"datatype\":\"BYTES\","

static kn_status parse(const char *body, size_t count, int64_t json_bytes)
{
    json_t *root;
    const kn_status st = kn_kserve_json_parse(&request, &root, body, count, json_bytes, &error);
    if (st != KN_OK) assert_null(root);
    json_decref(root);
    return st;
}

static kn_status parse_text(const char *body)
{
    return parse(body, strlen(body), -1);
}

static void json_tensors_are_read(void **state)
{
    (void)state;
    static const char body[] = "{\"id\":\"x\",\"inputs\":[" PROMPT "\"data\":[\"a ball\"]},"
                               "{\"name\":\"seed\",\"shape\":[1,1],\"datatype\":\"INT64\",\"data\":[[7]]}],"
                               "\"parameters\":{\"num_frames\":9}}";
    json_t *root;
    ok(kn_kserve_json_parse(&request, &root, body, strlen(body), -1, &error));
    assert_string_equal(request.id, "x");
    assert_int_equal(request.input_count, 2);
    assert_string_equal(request.inputs[0].name, "prompt");
    assert_memory_equal(request.inputs[0].value.text, "a ball", 6);
    assert_int_equal(request.inputs[1].value.integer, 7);
    assert_int_equal(request.parameter_count, 1);
    assert_int_equal(request.binary, 0);
    json_decref(root);
}

static void wrong_bodies_name_their_field(void **state)
{
    (void)state;
    static const struct {
        const char *body, *code, *param;
    } cases[] = {
        {"{}", "missing_required_parameter", "inputs"},
        {"{\"inputs\":{}}", "missing_required_parameter", "inputs"},
        {"{\"inputs\":[1]}", "invalid_type", "inputs"},
        {"{\"inputs\":[{}]}", "missing_required_parameter", "name"},
        {"{\"inputs\":[{\"name\":1}]}", "invalid_type", "name"},
        {"{\"inputs\":[{\"name\":\"prompt\"}]}", "missing_required_parameter", "datatype"},
        {"{\"inputs\":[{\"name\":\"prompt\",\"datatype\":\"TEXT\"}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[{\"name\":\"prompt\",\"datatype\":\"BYTES\"}]}", "missing_required_parameter", "shape"},
        {"{\"inputs\":[{\"name\":\"prompt\",\"datatype\":\"BYTES\",\"shape\":[\"1\"]}]}", "invalid_type", "shape"},
        {"{\"inputs\":[{\"name\":\"prompt\",\"datatype\":\"BYTES\",\"shape\":[2]}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[{\"name\":\"prompt\",\"datatype\":\"BYTES\",\"shape\":[1]}]}", "missing_required_parameter",
         "data"},
        {"{\"inputs\":[" PROMPT "\"data\":[1]}]}", "invalid_type", "prompt"},
        {"{\"inputs\":[" PROMPT "\"data\":\"a\"}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[" PROMPT "\"data\":[]}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[" PROMPT "\"data\":[\"a\",\"b\"]}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[" PROMPT "\"data\":[{}]}]}", "invalid_type", "prompt"},
        {"{\"inputs\":[" PROMPT "\"data\":[\"a\"],\"parameters\":{\"binary_data_size\":0}}]}", "invalid_value",
         "prompt"},
        {"{\"inputs\":[" PROMPT "\"parameters\":{\"binary_data_size\":5}}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[" PROMPT "\"parameters\":{\"binary_data_size\":-1}}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[" PROMPT "\"parameters\":{\"binary_data_size\":\"5\"}}]}", "invalid_value", "prompt"},
        {"{\"inputs\":[],\"outputs\":{}}", "invalid_type", "outputs"},
        {"{\"inputs\":[],\"outputs\":[1]}", "invalid_type", "outputs"},
        {"{\"inputs\":[],\"outputs\":[{\"name\":\"x\"}]}", "invalid_value", "outputs"},
        {"{\"inputs\":[],\"outputs\":[{\"name\":\"video\",\"parameters\":{\"binary_data\":1}}]}", "invalid_type",
         "binary_data"},
        {"{\"inputs\":[],\"outputs\":[{\"name\":\"video\",\"parameters\":{\"classification\":2}}]}",
         "unsupported_parameter", "classification"},
        {"{\"inputs\":[],\"parameters\":[]}", "invalid_type", "parameters"},
        {"{\"inputs\":[],\"parameters\":{\"a\":null}}", "invalid_type", "a"},
        {"{\"inputs\":[],\"parameters\":{\"a\":[1]}}", "invalid_type", "a"},
        {"{\"inputs\":[],\"id\":7}", "invalid_type", "id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_error(parse_text(cases[i].body), &error, 400, cases[i].code, cases[i].param);
}

static void binary_tensors_take_every_byte(void **state)
{
    (void)state;
    static const char json[] = "{\"inputs\":[" PROMPT "\"parameters\":{\"binary_data_size\":6}},{\"name\":\"seed\","
                               "\"shape\":[1],\"datatype\":\"INT32\",\"parameters\":{\"binary_data_size\":4}}],"
                               "\"parameters\":{\"binary_data_output\":true}}";
    static const char data[] = "\x02\x00\x00\x00hi\x07\x00\x00\x00";
    char body[sizeof json + 16] = "";
    const size_t head = strlen(json), all = head + 10;
    memcpy(body, json, head);
    memcpy(body + head, data, 10);
    ok(parse(body, all, (int64_t)head));
    assert_int_equal(request.inputs[1].value.integer, 7);
    assert_int_equal(request.binary, kn_kserve_answered(&request));
    for (size_t count = head; count < all; count++)
        expect_error(parse(body, count, (int64_t)head), &error, 400, "invalid_value",
                     count < head + 6 ? "prompt" : "seed");
    expect_error(parse(body, all + 1, (int64_t)head), &error, 400, "invalid_body", NULL);
    expect_error(parse(body, all, (int64_t)all + 1), &error, 400, "invalid_value", "Inference-Header-Content-Length");
}

static void the_length_header_is_digits(void **state)
{
    (void)state;
    int64_t length;
    ok(kn_kserve_json_length(&length, NULL, &error));
    assert_int_equal(length, -1);
    ok(kn_kserve_json_length(&length, "17", &error));
    assert_int_equal(length, 17);
    static const char *const wrong[] = {"", "0", "-1", "+1", "1x", "0x1", "99999999999999999999", " 1"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect_error(kn_kserve_json_length(&length, wrong[i], &error), &error, 400, "invalid_value",
                     "Inference-Header-Content-Length");
}

/* Parses what was written; the caller decrefs. */
static json_t *read_back(kn_text *text)
{
    ok(kn_text_status(text));
    json_t *root = json_loadb(text->bytes, text->count, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    kn_text_release(text);
    return root;
}

static void descriptions_are_json(void **state)
{
    (void)state;
    const kn_kserve_model models[] = {{.name = "a", .ready = true, .reason = "", .width = 64, .height = 64},
                                      {.name = "b", .reason = "un\"loaded\""}};
    const kn_kserve_counts counts[2] = {{.success = {2, 30}, .denoise = {2, 20}}};
    kn_text text = kn_text_growing(1 << 16);
    kn_kserve_json_server(&text);
    json_t *root = read_back(&text);
    assert_string_equal(json_string_value(json_object_get(root, "name")), "kinora");
    assert_int_equal(json_array_size(json_object_get(root, "extensions")), 6);
    json_decref(root);

    text = kn_text_growing(1 << 16);
    kn_kserve_json_metadata(&text, &models[0]);
    root = read_back(&text);
    assert_int_equal(json_array_size(json_object_get(root, "outputs")), KN_KSERVE_OUTPUTS);
    json_decref(root);

    text = kn_text_growing(1 << 16);
    kn_kserve_json_config(&text, &models[0]);
    root = read_back(&text);
    const json_t *first = json_array_get(json_object_get(root, "input"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "data_type")), "TYPE_STRING");
    json_decref(root);

    text = kn_text_growing(1 << 16);
    kn_kserve_json_statistics(&text, models, counts, 2);
    root = read_back(&text);
    const json_t *stats = json_object_get(json_array_get(json_object_get(root, "model_stats"), 0), "inference_stats");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(stats, "compute_infer"), "ns")), 20);
    json_decref(root);

    text = kn_text_growing(1 << 16);
    kn_kserve_json_index(&text, models, 2);
    root = read_back(&text);
    assert_string_equal(json_string_value(json_object_get(json_array_get(root, 1), "reason")), "un\"loaded\"");
    json_decref(root);
}

static kn_kserve_answer some_answer(unsigned outputs, unsigned binary)
{
    return (kn_kserve_answer){.model = "m",
                              .id = "",
                              .video_id = "video_1",
                              .status = "completed",
                              .progress = 100,
                              .video_bytes = 5,
                              .outputs = outputs,
                              .binary = binary};
}

/* Sizes in the JSON add up to the tail and the file behind it. */
static void binary_sizes_add_up(void **state)
{
    (void)state;
    const unsigned all = (1u << KN_KSERVE_OUTPUTS) - 1;
    kn_text json = kn_text_growing(4096), tail = kn_text_growing(4096);
    const kn_kserve_answer answer = some_answer(all, all);
    kn_kserve_json_answer(&json, &tail, &answer, NULL);
    json_t *root = read_back(&json);
    const json_t *outputs = json_object_get(root, "outputs");
    json_int_t sum = 0;
    for (size_t k = 0; k < json_array_size(outputs); k++)
        sum += json_integer_value(
            json_object_get(json_object_get(json_array_get(outputs, k), "parameters"), "binary_data_size"));
    ok(kn_text_status(&tail));
    assert_int_equal(sum, tail.count + 5);
    assert_memory_equal(tail.bytes,
                        "\x07\x00\x00\x00video_1\x09\x00\x00\x00"
                        "completed"
                        "\x64\x00\x00\x00",
                        28);
    const json_t *last = json_array_get(outputs, json_array_size(outputs) - 1);
    assert_string_equal(json_string_value(json_object_get(last, "name")), "video");
    json_decref(root);
    kn_text_release(&tail);
}

static void a_video_inside_json_is_base64(void **state)
{
    (void)state;
    kn_text json = kn_text_growing(4096), tail = kn_text_growing(64);
    const kn_kserve_answer answer = some_answer(1u << KN_KSERVE_VIDEO, 0);
    kn_kserve_json_answer(&json, &tail, &answer, "\x00\x01\x02\xff\xfe");
    assert_int_equal(tail.count, 0);
    json_t *root = read_back(&json);
    const json_t *video = json_array_get(json_object_get(root, "outputs"), 0);
    assert_string_equal(json_string_value(json_array_get(json_object_get(video, "data"), 0)), "AAEC//4=");
    assert_string_equal(json_string_value(json_object_get(json_object_get(video, "parameters"), "content_type")),
                        "base64");
    json_decref(root);
    kn_text_release(&tail);
}

static void errors_are_one_string(void **state)
{
    (void)state;
    kn_text text = kn_text_growing(4096);
    kn_api_invalid_value(&error, "seed", "no \"%s\"", "seed");
    kn_kserve_json_error(&text, &error);
    json_t *root = read_back(&text);
    assert_string_equal(json_string_value(json_object_get(root, "error")), "no \"seed\"");
    assert_string_equal(json_string_value(json_object_get(root, "param")), "seed");
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_tensors_are_read),          cmocka_unit_test(wrong_bodies_name_their_field),
        cmocka_unit_test(binary_tensors_take_every_byte), cmocka_unit_test(the_length_header_is_digits),
        cmocka_unit_test(descriptions_are_json),          cmocka_unit_test(binary_sizes_add_up),
        cmocka_unit_test(a_video_inside_json_is_base64),  cmocka_unit_test(errors_are_one_string),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}
