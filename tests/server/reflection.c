/* SPDX-License-Identifier: Apache-2.0
 *
 * Every symbol of the definitions is found in its file, and nothing else is. */
#include "server/reflection.h"

#include "tests/server/protocol.h"

static void symbols_lead_to_their_file(void **state)
{
    (void)state;
    static const struct {
        const char *symbol, *file;
    } cases[] = {
        {"grpc.health.v1.Health", "health.proto"},
        {"grpc.health.v1.Health.Check", "health.proto"},
        {"grpc.health.v1.HealthCheckResponse", "health.proto"},
        {"grpc.health.v1.HealthCheckResponse.status", "health.proto"},
        {"grpc.health.v1.HealthCheckResponse.ServingStatus", "health.proto"},
        {"grpc.reflection.v1.ServerReflection", "reflection.proto"},
        {"grpc.reflection.v1alpha.ServerReflection", "reflection_alpha.proto"},
        {"grpc.reflection.v1alpha.ErrorResponse.error_code", "reflection_alpha.proto"},
        {"inference.GRPCInferenceService.ModelInfer", "inference.proto"},
        {"inference.ModelInferRequest.InferInputTensor.name", "inference.proto"},
        {"inference.DataType", "inference.proto"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_definition by_symbol, by_file;
        if (!kn_definition_of_symbol(&by_symbol, cases[i].symbol)) fail_msg("no %s", cases[i].symbol);
        assert_true(kn_definition_of_file(&by_file, cases[i].file));
        assert_ptr_equal(by_symbol.bytes, by_file.bytes);
        assert_int_equal(by_symbol.count, by_file.count);
        assert_true(by_file.count > 100);
    }
}

static void other_names_lead_nowhere(void **state)
{
    (void)state;
    static const char *const symbols[] = {
        "",
        ".",
        "inference",
        "inference.",
        "inference.NoSuch",
        "inference.ModelInferReques",
        "inference.ModelInferRequest.",
        "inference.ModelInferRequest.nothing",
        "inference.GRPCInferenceService.No",
        "grpc.health.v1.HealthCheckResponse.ServingStatus.",
        "kinora.v1.Kinora",
        "grpc.reflection",
        "inference.1",
    };
    kn_definition definition;
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++)
        if (kn_definition_of_symbol(&definition, symbols[i])) fail_msg("%s is defined", symbols[i]);
    assert_false(kn_definition_of_file(&definition, "inference"));
    assert_false(kn_definition_of_file(&definition, "../inference.proto"));
    assert_false(kn_definition_of_file(&definition, ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(symbols_lead_to_their_file),
        cmocka_unit_test(other_names_lead_nowhere),
    };
    return cmocka_run_group_tests(tests, count_allocations, nothing_left);
}
