/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests in protobuf: typed and raw contents, every refusal by name. Answers are read back with protobuf-c. */
#include "server/kserve_proto.h"

#include <inference.pb-c.h>
#include "tests/server/protocol.h"

static kn_api_error error;
static kn_kserve_request request;

typedef Inference__ModelInferRequest infer_request;
typedef Inference__ModelInferRequest__InferInputTensor input_tensor;

static int64_t one[] = {1};

/* A request with one input, whose parts a test changes. */
typedef struct made {
    infer_request request;
    input_tensor input, *inputs[1];
    Inference__InferTensorContents contents;
    ProtobufCBinaryData raw, text;
} made;

static void begin(made *m)
{
    m->request = (infer_request)INFERENCE__MODEL_INFER_REQUEST__INIT;
    m->input = (input_tensor)INFERENCE__MODEL_INFER_REQUEST__INFER_INPUT_TENSOR__INIT;
    m->contents = (Inference__InferTensorContents)INFERENCE__INFER_TENSOR_CONTENTS__INIT;
    m->inputs[0] = &m->input;
    m->input.name = "prompt";
    m->input.datatype = "BYTES";
    m->input.n_shape = 1;
    m->input.shape = one;
    m->request.model_name = "m";
    m->request.id = "x";
    m->request.n_inputs = 1;
    m->request.inputs = m->inputs;
    m->raw = (ProtobufCBinaryData){.len = 6, .data = (uint8_t *)"\x02\x00\x00\x00hi"};
    m->text = (ProtobufCBinaryData){.len = 2, .data = (uint8_t *)"hi"};
}

static void use_raw(made *m)
{
    m->request.n_raw_input_contents = 1;
    m->request.raw_input_contents = &m->raw;
}

static void use_contents(made *m)
{
    m->contents.n_bytes_contents = 1;
    m->contents.bytes_contents = &m->text;
    m->input.contents = &m->contents;
}

/* What the message means; `check` looks at it while it is there. */
static kn_status parse(const made *m, void (*check)(void))
{
    kn_text text = kn_text_growing(1 << 16);
    ProtobufCMessage *message;
    kn_proto_write(&text, &m->request.base);
    ok(kn_text_status(&text));
    const kn_status st = kn_kserve_proto_infer(&request, &message, text.bytes, text.count, &error);
    if (st != KN_OK) assert_null(message);
    if (st == KN_OK && check) check();
    kn_proto_free(&message);
    kn_text_release(&text);
    return st;
}

static void check_prompt(void)
{
    assert_string_equal(request.model, "m");
    assert_string_equal(request.id, "x");
    assert_int_equal(request.input_count, 1);
    assert_string_equal(request.inputs[0].name, "prompt");
    assert_int_equal(request.inputs[0].value.bytes, 2);
    assert_memory_equal(request.inputs[0].value.text, "hi", 2);
}

static void raw_and_typed_contents_mean_the_same(void **state)
{
    (void)state;
    made m;
    begin(&m);
    use_raw(&m);
    ok(parse(&m, check_prompt));
    begin(&m);
    use_contents(&m);
    ok(parse(&m, check_prompt));
}

static void contents_are_one_element_of_their_type(void **state)
{
    (void)state;
    made m;
    begin(&m);
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "prompt"); /* none */
    use_contents(&m);
    use_raw(&m);
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "prompt"); /* both */
    begin(&m);
    use_contents(&m);
    m.contents.n_int64_contents = 1;
    m.contents.int64_contents = one;
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "prompt"); /* two */
    m.contents.n_bytes_contents = 0;
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "prompt"); /* of another type */
    m.input.datatype = "INT64";
    m.input.name = "seed";
    ok(parse(&m, NULL));
    m.input.datatype = "INT32";
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "seed");
    m.input.datatype = "FP16";
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "seed");
    begin(&m);
    use_raw(&m);
    m.request.n_inputs = 0;
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "raw_input_contents");
    begin(&m);
    use_raw(&m);
    m.input.n_shape = 0;
    ok(parse(&m, NULL));
    m.request.id = (char[KN_KSERVE_ID_BYTES_MAX + 2]){0};
    memset(m.request.id, 'a', KN_KSERVE_ID_BYTES_MAX + 1);
    expect_error(parse(&m, NULL), &error, 400, "invalid_value", "id");
}

static void check_parameters(void)
{
    assert_int_equal(request.parameter_count, 5);
    assert_true(request.parameters[0].value.boolean);
    assert_int_equal(request.parameters[1].value.integer, -5);
    assert_string_equal(request.parameters[2].value.text, "euler");
    assert_true(request.parameters[3].value.real == 2.5);
    assert_true(request.parameters[4].value.natural == UINT64_MAX);
}

static void parameters_of_every_kind_are_read(void **state)
{
    (void)state;
    enum { COUNT = 5 };
    static char *const names[COUNT] = {"a", "b", "c", "d", "e"};
    Inference__InferParameter values[COUNT];
    Inference__ModelInferRequest__ParametersEntry entries[COUNT], *list[COUNT];
    for (int i = 0; i < COUNT; i++) {
        values[i] = (Inference__InferParameter)INFERENCE__INFER_PARAMETER__INIT;
        values[i].parameter_choice_case = (Inference__InferParameter__ParameterChoiceCase)(i + 1);
        entries[i] =
            (Inference__ModelInferRequest__ParametersEntry)INFERENCE__MODEL_INFER_REQUEST__PARAMETERS_ENTRY__INIT;
        entries[i].key = names[i];
        entries[i].value = &values[i];
        list[i] = &entries[i];
    }
    values[0].bool_param = true;
    values[1].int64_param = -5;
    values[2].string_param = "euler";
    values[3].double_param = 2.5;
    values[4].uint64_param = UINT64_MAX;
    made m;
    begin(&m);
    use_raw(&m);
    m.request.n_parameters = COUNT;
    m.request.parameters = list;
    ok(parse(&m, check_parameters));
    entries[1].value = NULL;
    expect_error(parse(&m, NULL), &error, 400, "invalid_type", "b");
}

static void small_requests_are_read(void **state)
{
    (void)state;
    kn_kserve_name name;
    bool ready_only;
    ok(kn_kserve_proto_name(&name,
                            "\x0a\x01m\x12\x01"
                            "1",
                            6, &error));
    assert_string_equal(name.name, "m");
    assert_string_equal(name.version, "1");
    ok(kn_kserve_proto_name(&name, "", 0, &error));
    assert_string_equal(name.name, "");
    char longer[3 + 64] = "\x0a\x40";
    memset(longer + 2, 'm', 64);
    expect_error(kn_kserve_proto_name(&name, longer, 66, &error), &error, 400, "invalid_value", "name");
    ok(kn_kserve_proto_index_request(&ready_only, "\x10\x01", 2, &error));
    assert_true(ready_only);
    ok(kn_kserve_proto_change(&name, "\x12\x01m", 3, &error));
    assert_string_equal(name.name, "m");
    expect_error(kn_kserve_proto_change(&name,
                                        "\x12\x01m\x1a\x08\x0a\x06"
                                        "config",
                                        13, &error),
                 &error, 400, "unsupported_parameter", "config");
    expect_error(kn_kserve_proto_change(&name, "\x12", 1, &error), &error, 400, "invalid_body", NULL);
}

static void answers_are_read_back_with_their_file(void **state)
{
    (void)state;
    static const struct {
        unsigned outputs;
        bool streamed;
    } cases[] = {{0x0f, false}, {0x0f, true}, {0x06, false}, {0x0e, true}, {0x01, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kn_kserve_answer answer = {.model = "m",
                                         .id = "x",
                                         .video_id = "video_1",
                                         .status = "completed",
                                         .progress = 100,
                                         .outputs = cases[i].outputs,
                                         .streamed = cases[i].streamed,
                                         .last = true};
        const kn_kserve_output file = kn_kserve_file_of(answer.outputs);
        const uint64_t file_bytes = file == KN_KSERVE_OUTPUTS ? 0 : 6;
        kn_text text = kn_text_growing(4096);
        kn_kserve_proto_answer(&text, &answer, file_bytes);
        kn_text_append(&text, "abcdef", file_bytes);
        ok(kn_text_status(&text));
        ProtobufCMessage *message;
        ok(kn_proto_read(&message,
                         cases[i].streamed ? &inference__model_stream_infer_response__descriptor
                                           : &inference__model_infer_response__descriptor,
                         text.bytes, text.count, &error));
        const Inference__ModelInferResponse *r = cases[i].streamed
                                                     ? ((Inference__ModelStreamInferResponse *)message)->infer_response
                                                     : (Inference__ModelInferResponse *)message;
        assert_string_equal(r->id, "x");
        assert_int_equal(r->n_outputs, r->n_raw_output_contents);
        assert_int_equal(r->n_outputs, __builtin_popcount(answer.outputs));
        assert_int_equal(r->n_parameters, cases[i].streamed);
        if (file != KN_KSERVE_OUTPUTS) {
            const ProtobufCBinaryData *raw = &r->raw_output_contents[r->n_outputs - 1];
            assert_int_equal(raw->len, 4 + 6);
            assert_memory_equal(raw->data,
                                "\x06\x00\x00\x00"
                                "abcdef",
                                10);
        }
        kn_proto_free(&message);
        kn_text_release(&text);
    }
}

static void descriptions_are_read_back(void **state)
{
    (void)state;
    const kn_kserve_model models[] = {{.name = "a", .ready = true, .reason = "", .width = 64, .height = 64},
                                      {.name = "b", .reason = "unloaded"}};
    const kn_kserve_counts counts[2] = {{.success = {2, 30}, .denoise = {2, 20}}};
    ProtobufCMessage *message;
    kn_text text = kn_text_growing(1 << 16);
    kn_kserve_proto_config(&text, &models[0]);
    ok(kn_proto_read(&message, &inference__model_config_response__descriptor, text.bytes, text.count, &error));
    const Inference__ModelConfig *config = ((Inference__ModelConfigResponse *)message)->config;
    assert_int_equal(config->input[0]->data_type, INFERENCE__DATA_TYPE__TYPE_STRING);
    assert_int_equal(config->n_parameters, 5);
    kn_proto_free(&message);
    kn_text_clear(&text);
    kn_kserve_proto_statistics(&text, models, counts, 2);
    ok(kn_proto_read(&message, &inference__model_statistics_response__descriptor, text.bytes, text.count, &error));
    const Inference__ModelStatisticsResponse *stats = (Inference__ModelStatisticsResponse *)message;
    assert_int_equal(stats->n_model_stats, 2);
    assert_int_equal(stats->model_stats[0]->inference_stats->compute_infer->ns, 20);
    assert_int_equal(stats->model_stats[0]->n_batch_stats, 1);
    assert_int_equal(stats->model_stats[1]->n_batch_stats, 0);
    kn_proto_free(&message);
    kn_text_clear(&text);
    kn_kserve_proto_index(&text, models, 2);
    ok(kn_proto_read(&message, &inference__repository_index_response__descriptor, text.bytes, text.count, &error));
    const Inference__RepositoryIndexResponse *index = (Inference__RepositoryIndexResponse *)message;
    assert_int_equal(index->n_models, 2);
    assert_string_equal(index->models[1]->reason, "unloaded");
    kn_proto_free(&message);
    kn_text_clear(&text);
    kn_api_missing_parameter(&error, "prompt");
    kn_kserve_proto_stream_error(&text, "m", "x", &error);
    ok(kn_proto_read(&message, &inference__model_stream_infer_response__descriptor, text.bytes, text.count, &error));
    assert_non_null(strstr(((Inference__ModelStreamInferResponse *)message)->error_message, "prompt"));
    kn_proto_free(&message);
    kn_text_release(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(raw_and_typed_contents_mean_the_same),
        cmocka_unit_test(contents_are_one_element_of_their_type),
        cmocka_unit_test(parameters_of_every_kind_are_read),
        cmocka_unit_test(small_requests_are_read),
        cmocka_unit_test(answers_are_read_back_with_their_file),
        cmocka_unit_test(descriptions_are_read_back),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}
