/* SPDX-License-Identifier: Apache-2.0
 *
 * Every field of a request: each way to say it, each limit at n and n + 1, each refusal with its code and field. */
#include "tests/server/protocol.h"

#include <math.h>

#include "server/video_fields.h"

static kn_api_error error;

static kn_status read_as(kn_video_params *out, kn_video_operation operation, const char *file, const char *json)
{
    json_t *root = NULL;
    ok(kn_json_body_parse(&root, json, strlen(json), NULL, &error));
    kn_status st = kn_video_fields_read(out, operation, root, file, &error);
    json_decref(root);
    return st;
}

/* A prompt and these members: "\"seed\":1". */
static kn_status read(kn_video_params *out, const char *members)
{
    char *json = kn_format("{\"prompt\":\"a red ball\"%s%s}", members[0] ? "," : "", members);
    kn_status st = read_as(out, KN_VIDEO_CREATE, NULL, json);
    kn_free(json);
    return st;
}

static void refused(const char *members, const char *code, const char *param)
{
    kn_video_params p;
    kn_status st = read(&p, members);
    if (st == KN_OK) fail_msg("accepted: %s", members);
    expect_error(st, &error, 400, code, param);
    kn_video_params_release(&p);
}

static void nothing_but_a_prompt(void **state)
{
    (void)state;
    kn_video_params p;
    ok(read(&p, ""));
    assert_string_equal(p.prompt, "a red ball");
    assert_null(p.negative_prompt);
    assert_string_equal(p.model, "");
    assert_string_equal(p.seconds, "");
    assert_int_equal(p.width | p.height | p.frames | p.fps_numerator | p.fps_denominator | p.steps, 0);
    assert_true(isnan(p.guidance) && isnan(p.shift));
    assert_false(p.has_seed || p.has_sampler || p.has_priority);
    assert_int_equal(p.reference.kind, KN_REFERENCE_NONE);
    assert_int_equal(p.deadline, KN_DEADLINE_NONE);
    kn_video_params_release(&p);
    assert_int_equal(read_as(&p, KN_VIDEO_CREATE, NULL, "{}"), KN_INVALID);
    expect_error(KN_INVALID, &error, 400, "missing_required_parameter", "prompt");
    assert_int_equal(read_as(&p, KN_VIDEO_CREATE, NULL, "{\"prompt\":null}"), KN_INVALID);
    expect_error(KN_INVALID, &error, 400, "missing_required_parameter", "prompt");
    ok(read(&p, "\"seed\":null,\"size\":null,\"n\":null,\"extra_body\":null,\"input_reference\":null"));
    assert_int_equal(p.ignored_count, 0);
    kn_video_params_release(&p);
}

static void check_text(const char *field, const char *piece, int low, int high)
{
    for (int count = low - 1; count <= high + 1; count += count == low ? high - low : 1) {
        if (count < 0) continue;
        char *text = repeated(piece, (size_t)count);
        char *json = strcmp(field, "prompt") == 0 ? kn_format("{\"prompt\":\"%s\"}", text)
                                                  : kn_format("{\"prompt\":\"x\",\"%s\":\"%s\"}", field, text);
        kn_video_params p;
        kn_status st = read_as(&p, KN_VIDEO_CREATE, NULL, json);
        if (count >= low && count <= high)
            ok(st);
        else
            expect_error(st, &error, 400, "invalid_value", field);
        kn_video_params_release(&p);
        kn_free(json);
        kn_free(text);
    }
}

static void texts_count_code_points(void **state)
{
    (void)state;
    check_text("prompt", "x", 1, KN_API_PROMPT_CHARACTERS_MAX);
    check_text("prompt", "\xf0\x9f\x94\xb4", 1, KN_API_PROMPT_CHARACTERS_MAX);
    check_text("negative_prompt", "\xe4\xb8\xad", 0, KN_API_PROMPT_CHARACTERS_MAX);
    check_text("user", "\xc3\xa9", 0, KN_API_USER_CHARACTERS_MAX);
    check_text("model", "m", 0, KN_MODEL_NAME_BYTES - 1);
    refused("\"negative_prompt\":5", "invalid_type", "negative_prompt");
    refused("\"user\":{}", "invalid_type", "user");
    refused("\"model\":[]", "invalid_type", "model");
    refused("\"model\":\"a\\nb\"", "invalid_value", "model");
    kn_video_params p;
    assert_int_equal(read_as(&p, KN_VIDEO_CREATE, NULL, "{\"prompt\":[\"x\"]}"), KN_INVALID);
    assert_string_equal(error.message, "Invalid type for 'prompt': expected a string, but got an array instead.");
    ok(read(&p, "\"negative_prompt\":\"\",\"user\":\"\""));
    assert_true(!p.negative_prompt && !p.user); /* empty is none */
    kn_video_params_release(&p);
}

static void sizes(void **state)
{
    (void)state;
    static const char *const same[] = {"\"size\":\"1280x720\"", "\"width\":1280,\"height\":720",
                                       "\"width\":\"1280\",\"height\":\"720\"", "\"width\":1280.0,\"height\":7.2e2",
                                       "\"size\":\"1280x720\",\"width\":1280,\"height\":720"};
    kn_video_params p;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        ok(read(&p, same[i]));
        assert_int_equal(p.width, 1280);
        assert_int_equal(p.height, 720);
        kn_video_params_release(&p);
    }
    ok(read(&p, "\"size\":\"16384x1\""));
    kn_video_params_release(&p);
    static const char *const bad[] = {"",         "x",          "1280",          "1280x",     "x720",
                                      "1280X720", "1280x720x3", " 1280x720",     "1280x720 ", "0x720",
                                      "-1x720",   "16385x1",    "99999999999x1", "1280*720",  "auto"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *members = kn_format("\"size\":\"%s\"", bad[i]);
        refused(members, "invalid_value", "size");
        kn_free(members);
    }
    refused("\"size\":720", "invalid_type", "size");
    refused("\"width\":1280", "missing_required_parameter", "height");
    refused("\"height\":720", "missing_required_parameter", "width");
    refused("\"size\":\"1280x720\",\"width\":720,\"height\":1280", "invalid_value", "size");
    refused("\"width\":0,\"height\":1", "invalid_value", "width");
    refused("\"width\":1,\"height\":16385", "invalid_value", "height");
}

static void durations(void **state)
{
    (void)state;
    static const char *const same[][2] = {{"\"8\"", "8"},     {"8", "8"},       {"8.0", "8"},     {"\"8.0\"", "8"},
                                          {"\"2.5\"", "2.5"}, {"25e-1", "2.5"}, {"3600", "3600"}, {"0.001", "0.001"}};
    kn_video_params p;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char *members = kn_format("\"seconds\":%s", same[i][0]);
        ok(read(&p, members));
        assert_string_equal(p.seconds, same[i][1]);
        kn_video_params_release(&p);
        kn_free(members);
    }
    refused("\"seconds\":0", "invalid_value", "seconds");
    refused("\"seconds\":-1", "invalid_value", "seconds");
    refused("\"seconds\":3600.001", "invalid_value", "seconds");
    static const char *const bad[] = {"\"\"",
                                      "\"8s\"",
                                      "\" 8\"",
                                      "\"0x10\"",
                                      "\"nan\"",
                                      "\"inf\"",
                                      "\"1e999\"",
                                      "true",
                                      "[8]",
                                      "\"--8\"",
                                      "\"00000000000000000000000000000000000000001\""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *members = kn_format("\"seconds\":%s", bad[i]);
        refused(members, "invalid_type", "seconds");
        kn_free(members);
    }
}

static void rates(void **state)
{
    (void)state;
    const struct {
        const char *text;
        int32_t numerator, denominator;
    } cases[] = {{"16", 16, 1},        {"\"24\"", 24, 1}, {"23.976", 2997, 125},
                 {"29.97", 2997, 100}, {"0.1", 1, 10},    {"240", 240, 1}};
    kn_video_params p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *members = kn_format("\"fps\":%s", cases[i].text);
        ok(read(&p, members));
        assert_int_equal(p.fps_numerator, cases[i].numerator);
        assert_int_equal(p.fps_denominator, cases[i].denominator);
        kn_video_params_release(&p);
        kn_free(members);
    }
    refused("\"fps\":0", "invalid_value", "fps");
    refused("\"fps\":0.09", "invalid_value", "fps");
    refused("\"fps\":240.1", "invalid_value", "fps");
}

static void integers(void **state)
{
    (void)state;
    const struct {
        const char *field;
        long long low, high;
    } fields[] = {{"num_frames", 1, KN_API_FRAMES_MAX}, {"num_inference_steps", 1, KN_API_STEPS_MAX}};
    kn_video_params p;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        for (int quoted = 0; quoted < 2; quoted++) {
            const char *q = quoted ? "\"" : "";
            for (int end = 0; end < 2; end++) {
                char *good = kn_format("\"%s\":%s%lld%s", fields[i].field, q, end ? fields[i].high : fields[i].low, q);
                char *bad =
                    kn_format("\"%s\":%s%lld%s", fields[i].field, q, end ? fields[i].high + 1 : fields[i].low - 1, q);
                ok(read(&p, good));
                kn_video_params_release(&p);
                refused(bad, "invalid_value", fields[i].field);
                kn_free(good);
                kn_free(bad);
            }
        }
        char *bad = kn_format("\"%s\":1.5", fields[i].field);
        refused(bad, "invalid_type", fields[i].field);
        kn_free(bad);
    }
    refused("\"num_frames\":\"-\"", "invalid_type", "num_frames");
    refused("\"num_frames\":\"1-\"", "invalid_type", "num_frames");
    refused("\"num_frames\":true", "invalid_type", "num_frames");
    refused("\"num_frames\":1e300", "invalid_type", "num_frames");
}

static void seeds(void **state)
{
    (void)state;
    const struct {
        const char *text;
        bool has;
        uint64_t seed;
    } cases[] = {{"0", true, 0},
                 {"\"42\"", true, 42},
                 {"42.0", true, 42},
                 {"9223372036854775807", true, INT64_MAX},
                 {"\"9223372036854775807\"", true, INT64_MAX},
                 {"-1", false, 0},
                 {"\"-1\"", false, 0}};
    kn_video_params p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *members = kn_format("\"seed\":%s", cases[i].text);
        ok(read(&p, members));
        assert_int_equal(p.has_seed, cases[i].has);
        assert_true(p.seed == cases[i].seed);
        kn_video_params_release(&p);
        kn_free(members);
    }
    refused("\"seed\":-2", "invalid_value", "seed");
    refused("\"seed\":\"9223372036854775808\"", "invalid_value", "seed");
    refused("\"seed\":\"-9223372036854775809\"", "invalid_value", "seed");
    refused("\"seed\":\"x\"", "invalid_type", "seed");
}

static void sampling(void **state)
{
    (void)state;
    kn_video_params p;
    ok(read(&p, "\"guidance_scale\":\"5.5\",\"flow_shift\":3,\"sampler\":\"euler\""));
    assert_true(p.guidance == 5.5 && p.shift == 3);
    assert_true(p.has_sampler && p.sampler == KN_SAMPLER_EULER);
    kn_video_params_release(&p);
    ok(read(&p, "\"guidance_scale\":100,\"flow_shift\":1000,\"sampler\":\"unipc\""));
    assert_true(p.has_sampler && p.sampler == KN_SAMPLER_UNIPC);
    kn_video_params_release(&p);
    ok(read(&p, "\"guidance_scale\":-0.0"));
    assert_false(signbit(p.guidance));
    kn_video_params_release(&p);
    refused("\"guidance_scale\":-0.1", "invalid_value", "guidance_scale");
    refused("\"guidance_scale\":100.1", "invalid_value", "guidance_scale");
    refused("\"guidance_scale\":\"nan\"", "invalid_type", "guidance_scale");
    refused("\"flow_shift\":0", "invalid_value", "flow_shift");
    refused("\"flow_shift\":1000.5", "invalid_value", "flow_shift");
    refused("\"sampler\":\"ddim\"", "invalid_value", "sampler");
    refused("\"sampler\":5", "invalid_value", "sampler");
}

static void references(void **state)
{
    (void)state;
    kn_video_params p;
    static const char *const urls[] = {
        "{\"image_url\":\"http://x/y.png\"}", "{\"image_url\":{\"url\":\"http://x/y.png\",\"detail\":\"auto\"}}",
        "\"{\\\"image_url\\\":\\\"http://x/y.png\\\"}\"", "{\"image_url\":\"http://x/y.png\",\"file_id\":null}"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        char *members = kn_format("\"input_reference\":%s", urls[i]);
        ok(read(&p, members));
        assert_int_equal(p.reference.kind, KN_REFERENCE_IMAGE_URL);
        assert_string_equal(p.reference.text, "http://x/y.png");
        kn_video_params_release(&p);
        kn_free(members);
    }
    ok(read(&p, "\"input_reference\":{\"file_id\":\"file-1\"}"));
    assert_int_equal(p.reference.kind, KN_REFERENCE_FILE_ID);
    assert_string_equal(p.reference.text, "file-1");
    kn_video_params_release(&p);
    refused("\"input_reference\":\"ball.png\"", "invalid_type", "input_reference");
    assert_string_equal(error.message,
                        "Invalid type for 'input_reference': expected a file, but got a string instead.");
    refused("\"input_reference\":5", "invalid_type", "input_reference");
    refused("\"input_reference\":{}", "invalid_value", "input_reference");
    refused("\"input_reference\":{\"image_url\":\"a\",\"file_id\":\"b\"}", "invalid_value", "input_reference");
    refused("\"input_reference\":{\"image_url\":\"a\",\"x\":1}", "invalid_value", "input_reference");
    refused("\"input_reference\":{\"image_url\":\"\"}", "invalid_value", "input_reference.image_url");
    refused("\"input_reference\":{\"image_url\":5}", "invalid_type", "input_reference.image_url");
    refused("\"input_reference\":{\"image_url\":{\"href\":\"x\"}}", "invalid_type", "input_reference.image_url");
    refused("\"input_reference\":{\"file_id\":5}", "invalid_type", "input_reference.file_id");
    refused("\"input_reference\":\"{\"", "invalid_value", "input_reference");
    assert_int_equal(read_as(&p, KN_VIDEO_CREATE, "input_reference", "{\"prompt\":\"x\"}"), KN_OK);
    kn_video_params_release(&p);
    expect_error(read_as(&p, KN_VIDEO_CREATE, "mask", "{\"prompt\":\"x\"}"), &error, 400, "unknown_parameter", "mask");
    expect_error(
        read_as(&p, KN_VIDEO_CREATE, "input_reference", "{\"prompt\":\"x\",\"input_reference\":{\"file_id\":\"f\"}}"),
        &error, 400, "invalid_value", "input_reference");
}

static void characters(void **state)
{
    (void)state;
    kn_video_params p;
    ok(read(&p, "\"characters\":[{\"id\":\"char_1\"},{\"id\":\"char_2\"}]"));
    assert_int_equal(p.character_count, KN_API_CHARACTERS_MAX);
    assert_string_equal(p.characters[1], "char_2");
    kn_video_params_release(&p);
    refused("\"characters\":[{\"id\":\"1\"},{\"id\":\"2\"},{\"id\":\"3\"}]", "invalid_value", "characters");
    refused("\"characters\":{\"id\":\"1\"}", "invalid_type", "characters");
    refused("\"characters\":[\"1\"]", "invalid_value", "characters");
    refused("\"characters\":[{}]", "invalid_value", "characters");
    refused("\"characters\":[{\"id\":\"\"}]", "invalid_value", "characters");
    refused("\"characters\":[{\"id\":\"1\",\"name\":\"x\"}]", "invalid_value", "characters");
}

static void tiers(void **state)
{
    (void)state;
    const struct {
        const char *members;
        bool has;
        kn_priority priority;
    } cases[] = {
        {"\"service_tier\":\"auto\"", false, KN_PRIORITY_FLEX},
        {"\"service_tier\":\"flex\"", true, KN_PRIORITY_FLEX},
        {"\"service_tier\":\"default\"", true, KN_PRIORITY_DEFAULT},
        {"\"service_tier\":\"priority\"", true, KN_PRIORITY_URGENT},
        {"\"priority\":-5", true, KN_PRIORITY_URGENT},
        {"\"priority\":\"0\"", true, KN_PRIORITY_DEFAULT},
        {"\"priority\":3", true, KN_PRIORITY_FLEX},
        {"\"priority\":3,\"service_tier\":\"flex\"", true, KN_PRIORITY_FLEX},
    };
    kn_video_params p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ok(read(&p, cases[i].members));
        assert_int_equal(p.has_priority, cases[i].has);
        assert_int_equal(p.priority, cases[i].priority);
        kn_video_params_release(&p);
    }
    refused("\"service_tier\":\"gold\"", "invalid_value", "service_tier");
    refused("\"service_tier\":1", "invalid_type", "service_tier");
    refused("\"priority\":\"high\"", "invalid_type", "priority");
    refused("\"priority\":1,\"service_tier\":\"priority\"", "invalid_value", "service_tier");
}

static void deadlines(void **state)
{
    (void)state;
    const struct {
        const char *text;
        kn_deadline_kind kind;
        int64_t us;
    } cases[] = {
        {"60", KN_DEADLINE_FROM_NOW, 60000000},
        {"\"0.5\"", KN_DEADLINE_FROM_NOW, 500000},
        {"2592000", KN_DEADLINE_FROM_NOW, 2592000000000},
        {"1000000000", KN_DEADLINE_AT, 1000000000000000},
        {"\"1900000000.5\"", KN_DEADLINE_AT, 1900000000500000},
        {"\"1970-01-01T00:00:00Z\"", KN_DEADLINE_AT, 0},
        {"\"2000-02-29T12:34:56.789z\"", KN_DEADLINE_AT, 951827696000000},
        {"\"2030-01-31 12:00:00+05:30\"", KN_DEADLINE_AT, 1896071400000000},
        {"\"2030-12-31t23:59:60-01:00\"", KN_DEADLINE_AT, 1924995600000000},
        {"\"2100-03-01T00:00:00Z\"", KN_DEADLINE_AT, 4107542400000000},
    };
    kn_video_params p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *members = kn_format("\"deadline\":%s", cases[i].text);
        ok(read(&p, members));
        assert_int_equal(p.deadline, cases[i].kind);
        assert_int_equal(p.deadline_us, cases[i].us);
        kn_video_params_release(&p);
        kn_free(members);
    }
    refused("\"deadline\":0", "invalid_value", "deadline");
    refused("\"deadline\":-1", "invalid_value", "deadline");
    refused("\"deadline\":2592001", "invalid_value", "deadline");
    refused("\"deadline\":1e12", "invalid_value", "deadline");
    static const char *const bad[] = {
        "",
        "tomorrow",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2030-01-31T12:00:00z1",
        "2030-1-31T12:00:00Z",
        "2030-02-29T12:00:00Z",
        "2030-13-01T00:00:00Z",
        "2030-00-01T00:00:00Z",
        "2030-01-00T00:00:00Z",
        "2030-01-31T24:00:00Z",
        "2030-01-31T12:60:00Z",
        "2030-01-31T12:00:61Z",
        "2030-01-31T12:00:00.Z",
        "2030-01-31T12:00:00+1:00",
        "2030-01-31T12:00:00+24:00",
        "2030-01-31T12:00:00+01:60",
        "2030-01-31T12:00:00+01:000",
        "1969-12-31T23:59:59Z",
        "2030/01/31T12:00:00Z",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *members = kn_format("\"deadline\":\"%s\"", bad[i]);
        refused(members, "invalid_type", "deadline");
        kn_free(members);
    }
    refused("\"deadline\":true", "invalid_type", "deadline");
}

static void metadata(void **state)
{
    (void)state;
    kn_video_params p;
    ok(read(&p, "\"metadata\":{\"b\":\"2\",\"a\":\"\\u00e9\"}"));
    assert_string_equal(p.metadata, "{\"a\":\"\xc3\xa9\",\"b\":\"2\"}");
    kn_video_params_release(&p);
    ok(read(&p, "\"metadata\":\"{\\\"a\\\":\\\"1\\\"}\""));
    assert_string_equal(p.metadata, "{\"a\":\"1\"}");
    kn_video_params_release(&p);
    ok(read(&p, "\"metadata\":{}"));
    assert_null(p.metadata);
    kn_video_params_release(&p);
    refused("\"metadata\":{\"a\":1}", "invalid_type", "metadata");
    refused("\"metadata\":[]", "invalid_type", "metadata");
    refused("\"metadata\":\"x\"", "invalid_value", "metadata");
    for (int extra = 0; extra <= 1; extra++) {
        char *key = repeated("\xc3\xa9", KN_API_METADATA_KEY_CHARACTERS_MAX + (size_t)extra);
        char *value = repeated("\xc3\xa9", KN_API_METADATA_VALUE_CHARACTERS_MAX + (size_t)extra);
        char *members[3] = {kn_format("\"metadata\":{\"%s\":\"x\"}", key),
                            kn_format("\"metadata\":{\"x\":\"%s\"}", value)};
        kn_text pairs = kn_text_growing(1000);
        for (int i = 0; i < KN_API_METADATA_PAIRS_MAX + extra; i++)
            kn_text_format(&pairs, "%s\"k%d\":\"\"", i ? "," : "\"metadata\":{", i);
        kn_text_string(&pairs, "}");
        members[2] = kn_text_take(&pairs);
        for (int i = 0; i < 3; i++) {
            if (extra) {
                refused(members[i], "invalid_value", "metadata");
            } else {
                ok(read(&p, members[i]));
                kn_video_params_release(&p);
            }
            kn_free(members[i]);
        }
        kn_free(key);
        kn_free(value);
    }
}

static void ignored_and_unknown(void **state)
{
    (void)state;
    kn_video_params p;
    ok(read(&p, "\"n\":1,\"quality\":\"standard\",\"enable_teacache\":false,\"generator_device\":\"cuda\""));
    assert_int_equal(p.ignored_count, 4);
    assert_string_equal(p.ignored[0], "n");
    assert_string_equal(p.ignored[3], "generator_device");
    kn_video_params_release(&p);
    ok(read(
        &p,
        "\"n\":\"1\",\"enable_teacache\":\"False\",\"num_outputs_per_prompt\":1,\"stream\":false,\"format\":\"mp4\","
        "\"generate_sound\":false,\"generate_audio\":false,\"response_format\":\"url\",\"request_id\":\"r\","
        "\"safety_identifier\":\"s\""));
    assert_int_equal(p.ignored_count, KN_API_IGNORED_MAX); /* the list is full; the fields are accepted all the same */
    kn_video_params_release(&p);
    refused("\"n\":2", "unsupported_value", "n");
    refused("\"quality\":\"hd\"", "unsupported_value", "quality");
    refused("\"quality\":\"\"", "unsupported_value", "quality");
    refused("\"quality\":[]", "unsupported_value", "quality");
    refused("\"enable_teacache\":true", "unsupported_value", "enable_teacache");
    refused("\"response_format\":\"b64_json\"", "unsupported_value", "response_format");
    refused("\"guidance_scale_2\":3", "unknown_parameter", "guidance_scale_2");
    refused("\"Prompt\":\"x\"", "unknown_parameter", "Prompt");
    refused("\"lora\":{\"path\":\"x\"}", "unknown_parameter", "lora");
    refused("\"\":1", "unknown_parameter", "");
}

static void extra_bodies(void **state)
{
    (void)state;
    kn_video_params p;
    static const char *const same[] = {"\"extra_body\":{\"num_frames\":81,\"seed\":7}",
                                       "\"extra_body\":\"{\\\"num_frames\\\":81,\\\"seed\\\":\\\"7\\\"}\"",
                                       "\"extra_params\":\"{\\\"num_frames\\\":81}\",\"extra_body\":{\"seed\":7}",
                                       "\"num_frames\":81,\"extra_body\":{\"num_frames\":81,\"seed\":7}",
                                       "\"num_frames\":\"81\",\"extra_body\":{\"num_frames\":81,\"seed\":7}",
                                       "\"num_frames\":null,\"extra_body\":{\"num_frames\":81,\"seed\":7}"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        ok(read(&p, same[i]));
        assert_int_equal(p.frames, 81);
        assert_true(p.has_seed && p.seed == 7);
        kn_video_params_release(&p);
    }
    refused("\"num_frames\":81,\"extra_body\":{\"num_frames\":5}", "invalid_value", "num_frames");
    refused("\"num_frames\":[],\"extra_body\":{\"num_frames\":{}}", "invalid_value", "num_frames");
    refused("\"extra_body\":{\"unheard_of\":1}", "unknown_parameter", "unheard_of");
    refused("\"extra_body\":{\"extra_body\":{}}", "unknown_parameter", "extra_body");
    refused("\"extra_body\":[]", "invalid_type", "extra_body");
    refused("\"extra_body\":\"[]\"", "invalid_value", "extra_body");
    refused("\"extra_body\":\"{\"", "invalid_value", "extra_body");
}

static void other_operations(void **state)
{
    (void)state;
    const struct {
        kn_video_operation operation;
        const char *file, *json, *code, *param;
    } cases[] = {
        {KN_VIDEO_REMIX, NULL, "{\"prompt\":\"x\"}", "unsupported_operation", NULL},
        {KN_VIDEO_REMIX, NULL, "{}", "missing_required_parameter", "prompt"},
        {KN_VIDEO_REMIX, NULL, "{\"prompt\":\"\"}", "invalid_value", "prompt"},
        {KN_VIDEO_EDIT, NULL, "{\"prompt\":\"x\",\"video\":{\"id\":\"v\"}}", "unsupported_operation", NULL},
        {KN_VIDEO_EDIT, "video", "{\"prompt\":\"x\"}", "unsupported_operation", NULL},
        {KN_VIDEO_EDIT, NULL, "{\"prompt\":\"x\"}", "missing_required_parameter", "video"},
        {KN_VIDEO_EDIT, NULL, "{\"prompt\":\"x\",\"video\":{}}", "missing_required_parameter", "video.id"},
        {KN_VIDEO_EDIT, NULL, "{\"prompt\":\"x\",\"video\":\"v\"}", "invalid_type", "video"},
        {KN_VIDEO_EDIT, "image", "{\"prompt\":\"x\"}", "unknown_parameter", "image"},
        {KN_VIDEO_EXTEND, "video", "{\"prompt\":\"x\",\"seconds\":\"8\"}", "unsupported_operation", NULL},
        {KN_VIDEO_EXTEND, "video", "{\"prompt\":\"x\"}", "missing_required_parameter", "seconds"},
        {KN_VIDEO_EXTEND, "video", "{\"prompt\":\"x\",\"seconds\":\"y\"}", "invalid_type", "seconds"},
        {KN_VIDEO_CHARACTER, "video", "{\"name\":\"x\"}", "unsupported_operation", NULL},
        {KN_VIDEO_CHARACTER, "video", "{}", "missing_required_parameter", "name"},
        {KN_VIDEO_CHARACTER, "video", "{\"name\":\"\"}", "invalid_value", "name"},
        {KN_VIDEO_CHARACTER, NULL, "{\"name\":\"x\"}", "missing_required_parameter", "video"},
        {KN_VIDEO_CHARACTER, NULL, "{\"name\":\"x\",\"video\":{\"id\":\"v\"}}", "invalid_type", "video"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_video_params p;
        kn_status st = read_as(&p, cases[i].operation, cases[i].file, cases[i].json);
        expect_error(st, &error, 400, cases[i].code, cases[i].param);
        kn_video_params_release(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_but_a_prompt),
        cmocka_unit_test(texts_count_code_points),
        cmocka_unit_test(sizes),
        cmocka_unit_test(durations),
        cmocka_unit_test(rates),
        cmocka_unit_test(integers),
        cmocka_unit_test(seeds),
        cmocka_unit_test(sampling),
        cmocka_unit_test(references),
        cmocka_unit_test(characters),
        cmocka_unit_test(tiers),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(metadata),
        cmocka_unit_test(ignored_and_unknown),
        cmocka_unit_test(extra_bodies),
        cmocka_unit_test(other_operations),
    };
    return cmocka_run_group_tests_name("video_fields", tests, count_allocations, nothing_left);
}
