/* SPDX-License-Identifier: Apache-2.0
 *
 * Bodies that go back: every key always there, only four states, exact bytes of the small ones, lines that cannot be
 * broken out of. */
#include "tests/server/protocol.h"

#include <math.h>

#include "engine/request.h"
#include "server/video_response.h"

#define REQUEST                                                                                                        \
    "{\"prompt\":\"p\",\"negative_prompt\":\"\",\"width\":832,\"height\":480,\"frames\":81,\"fps_numerator\":16,"      \
    "\"fps_denominator\":1,\"steps\":50,\"guidance\":5.0,\"seed\":\"9223372036854775807\",\"sampler\":\"unipc\","      \
    "\"shift\":3.0,\"sigmas\":[]}"
#define ID "video_0123456789abcdef0123456789abcdef"

static kn_job queued_job(void)
{
    return (kn_job){.id = ID,
                    .model = "wan2.1-1.3b",
                    .asked_model = "sora-2",
                    .state = KN_JOB_QUEUED,
                    .priority = KN_PRIORITY_DEFAULT,
                    .prompt = (char *)"a \"red\" ball",
                    .request = (char *)REQUEST,
                    .created_at = 1800000000999999};
}

static json_t *written(const kn_job *job, const kn_video_facts *facts)
{
    kn_video_summary summary;
    ok(kn_video_summary_read(&summary, job));
    kn_text text = kn_text_growing(KN_VIDEO_OBJECT_BYTES_MAX);
    kn_video_write(&text, &(kn_video_item){.job = job, .summary = &summary, .facts = *facts});
    ok(kn_text_status(&text));
    json_t *root = json_loadb(text.bytes, text.count, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    kn_text_release(&text);
    kn_video_summary_release(&summary);
    return root;
}

static void expect(json_t *root, const char *key, const char *json)
{
    json_t *value = json_object_get(root, key);
    if (!value) fail_msg("no %s", key);
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (strcmp(text, json) != 0) fail_msg("%s is %s instead of %s", key, text, json);
    kn_free(text);
}

static void byte_for_byte(void **state)
{
    (void)state;
    kn_job job = queued_job();
    job.extra = (char *)"{\"seconds\":\"5\",\"metadata\":{\"a\":\"b\"},\"user\":\"u\"}";
    kn_video_summary summary;
    ok(kn_video_summary_read(&summary, &job));
    summary.seed = 42;
    char storage[1024];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_video_write(&text, &(kn_video_item){
                              .job = &job,
                              .summary = &summary,
                              .facts = {.eta_seconds = 12.5, .queue_position = 3, .stage = "text"},
                          });
    ok(kn_text_status(&text));
    assert_string_equal(
        storage,
        "{\"id\":\"" ID "\",\"object\":\"video\",\"model\":\"sora-2\",\"status\":\"queued\",\"progress\":0,"
        "\"created_at\":1800000000,\"completed_at\":null,\"expires_at\":null,\"prompt\":\"a \\\"red\\\" ball\","
        "\"size\":\"832x480\",\"seconds\":\"5\",\"remixed_from_video_id\":null,\"error\":null,\"started_at\":null,"
        "\"deadline_at\":null,\"quality\":\"standard\",\"service_tier\":\"default\",\"stage\":\"text\","
        "\"eta_seconds\":12.5,\"queue_position\":3,\"num_frames\":81,\"fps\":16,\"num_inference_steps\":50,"
        "\"guidance_scale\":5,\"seed\":42,\"inference_time_s\":null,\"metadata\":{\"a\":\"b\"},\"user\":\"u\"}");
    kn_video_summary_release(&summary);
}

static void every_state(void **state)
{
    (void)state;
    const struct {
        kn_job_state state;
        const char *status, *error, *progress;
    } cases[] = {
        {KN_JOB_QUEUED, "\"queued\"", "null", "99"},
        {KN_JOB_RUNNING, "\"in_progress\"", "null", "99"},
        {KN_JOB_COMPLETED, "\"completed\"", "null", "100"},
        {KN_JOB_EXPIRED, "\"completed\"", "null", "100"},
        {KN_JOB_FAILED, "\"failed\"", "{\"code\":\"internal_error\",\"message\":\"The video failed.\"}", "99"},
        {KN_JOB_CANCELLED, "\"failed\"", "{\"code\":\"cancelled\",\"message\":\"The video was cancelled.\"}", "99"},
        {KN_JOB_DELETED, "\"failed\"", "{\"code\":\"internal_error\",\"message\":\"The video failed.\"}", "99"},
    };
    static const char *const keys[] = {
        "id",           "object",     "model",       "status",         "progress", "created_at",
        "completed_at", "expires_at", "prompt",      "size",           "seconds",  "remixed_from_video_id",
        "error",        "stage",      "eta_seconds", "queue_position", "seed"};
    kn_video_facts facts = kn_video_facts_none();
    facts.progress = 100; /* all steps are done, the file is not */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_job job = queued_job();
        job.state = cases[i].state;
        json_t *root = written(&job, &facts);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) assert_non_null(json_object_get(root, keys[k]));
        expect(root, "status", cases[i].status);
        expect(root, "error", cases[i].error);
        expect(root, "progress", cases[i].progress);
        assert_true(json_is_string(json_object_get(root, "seconds")));
        json_decref(root);
    }
}

static void live_facts(void **state)
{
    (void)state;
    kn_job job = queued_job();
    kn_video_facts facts = {.progress = -3, .eta_seconds = 1.25, .queue_position = 0, .stage = "denoise"};
    json_t *root = written(&job, &facts);
    expect(root, "progress", "0");
    expect(root, "queue_position", "0");
    expect(root, "stage", "\"denoise\"");
    json_decref(root);
    job.state = KN_JOB_RUNNING;
    job.asked_model[0] = '\0';
    job.used_us = 2500000;
    job.started_at = 1800000001000000;
    job.deadline_at = 1800000100000000;
    facts.progress = 42;
    root = written(&job, &facts);
    expect(root, "progress", "42");
    expect(root, "queue_position", "null"); /* it does not wait any more */
    expect(root, "eta_seconds", "1.25");
    expect(root, "model", "\"wan2.1-1.3b\"");
    expect(root, "inference_time_s", "2.5");
    expect(root, "started_at", "1800000001");
    expect(root, "deadline_at", "1800000100");
    json_decref(root);
    job.state = KN_JOB_COMPLETED;
    job.completed_at = 1800000050999999;
    job.expires_at = 1800003650000000;
    root = written(&job, &facts);
    expect(root, "stage", "null");
    expect(root, "eta_seconds", "null");
    expect(root, "completed_at", "1800000050");
    expect(root, "expires_at", "1800003650");
    json_decref(root);
    job.state = KN_JOB_FAILED;
    snprintf(job.error_code, sizeof job.error_code, "worker_lost");
    job.error_message = (char *)"The worker died twice.";
    root = written(&job, &facts);
    expect(root, "error", "{\"code\":\"worker_lost\",\"message\":\"The worker died twice.\"}");
    json_decref(root);
}

static void summaries(void **state)
{
    (void)state;
    kn_job job = queued_job();
    kn_video_summary s;
    ok(kn_video_summary_read(&s, &job));
    assert_string_equal(s.seconds, "5"); /* 81 frames at 16 a second are 5.06 */
    assert_true(s.seed == INT64_MAX && s.guidance == 5.0 && s.steps == 50 && s.frames == 81);
    assert_true(!s.metadata && !s.user);
    kn_video_summary_release(&s);
    static const char *const bad[] = {"",
                                      "[]",
                                      "{\"seconds\":5}",
                                      "{\"seconds\":\"0123456789012345678901234\"}",
                                      "{\"metadata\":[]}",
                                      "{\"user\":1}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        job.extra = (char *)bad[i];
        assert_int_equal(kn_video_summary_read(&s, &job), KN_CORRUPT);
    }
    job.extra = NULL;
    job.request = (char *)"{}";
    assert_int_equal(kn_video_summary_read(&s, &job), KN_CORRUPT);
    job.request = NULL;
    assert_int_equal(kn_video_summary_read(&s, &job), KN_CORRUPT);
    kn_video_summary_release(NULL);
}

static void the_longest_prompt_fits(void **state)
{
    (void)state;
    kn_job job = queued_job();
    job.prompt = repeated("\x01", KN_API_PROMPT_CHARACTERS_MAX);
    const kn_video_facts none = kn_video_facts_none();
    json_t *root = written(&job, &none);
    assert_int_equal(json_string_length(json_object_get(root, "prompt")), KN_API_PROMPT_CHARACTERS_MAX);
    json_decref(root);
    kn_free(job.prompt);
}

static void lists(void **state)
{
    (void)state;
    char storage[4096];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_video_list_write(&text, NULL, 0, false);
    assert_string_equal(storage,
                        "{\"object\":\"list\",\"data\":[],\"first_id\":null,\"last_id\":null,\"has_more\":false}");
    kn_job jobs[2] = {queued_job(), queued_job()};
    jobs[1].id[6] = 'f';
    kn_video_summary summary;
    ok(kn_video_summary_read(&summary, &jobs[0]));
    kn_video_item items[2];
    for (int i = 0; i < 2; i++)
        items[i] = (kn_video_item){.job = &jobs[i], .summary = &summary, .facts = kn_video_facts_none()};
    kn_text_clear(&text);
    kn_video_list_write(&text, items, 2, true);
    ok(kn_text_status(&text));
    json_t *root = json_loadb(text.bytes, text.count, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(root, "data")), 2);
    expect(root, "first_id", "\"" ID "\"");
    expect(root, "last_id", "\"video_f123456789abcdef0123456789abcdef\""); /* the SDK pages on from here */
    expect(root, "has_more", "true");
    json_decref(root);
    kn_video_summary_release(&summary);
}

static void small_bodies(void **state)
{
    (void)state;
    char storage[512];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_video_deleted_write(&text, "video_1");
    assert_string_equal(storage, "{\"id\":\"video_1\",\"object\":\"video.deleted\",\"deleted\":true}");
    kn_text_clear(&text);
    const kn_model_entry model = {.id = "sora-2", .created = 1800000000, .owned_by = "kinora"};
    kn_model_write(&text, &model);
    assert_string_equal(storage,
                        "{\"id\":\"sora-2\",\"object\":\"model\",\"created\":1800000000,\"owned_by\":\"kinora\"}");
    kn_text_clear(&text);
    kn_model_list_write(&text, &model, 1);
    assert_string_equal(storage, "{\"object\":\"list\",\"data\":[{\"id\":\"sora-2\",\"object\":\"model\","
                                 "\"created\":1800000000,\"owned_by\":\"kinora\"}]}");
    kn_text_clear(&text);
    kn_video_event_write(&text, "evt_1", 1800000000, "video.completed", "video_1");
    assert_string_equal(storage, "{\"id\":\"evt_1\",\"object\":\"event\",\"created_at\":1800000000,"
                                 "\"type\":\"video.completed\",\"data\":{\"id\":\"video_1\"}}");
}

static void events(void **state)
{
    (void)state;
    char storage[512];
    kn_text text = kn_text_fixed(storage, sizeof storage);
    kn_sse_write(&text, "video.progress", "7", "{\"a\":1}", 7);
    assert_string_equal(storage, "event: video.progress\nid: 7\ndata: {\"a\":1}\n\n");
    kn_text_clear(&text);
    kn_sse_write(&text, NULL, NULL, "", 0);
    assert_string_equal(storage, "data: \n\n");
    kn_text_clear(&text);
    kn_sse_write(&text, "a\ndata: x", "1\r\n\r\n2", "one\ntwo\r\nthree\rfour\n", 20);
    assert_string_equal(storage,
                        "event: a data: x\nid: 1    2\ndata: one\ndata: two\ndata: three\ndata: four\ndata: \n\n");
    kn_text_clear(&text);
    kn_sse_comment_write(&text, "ping\nevent: x");
    assert_string_equal(storage, ": ping event: x\n\n");
}

static void without_memory(void **state)
{
    (void)state;
    kn_job job = queued_job();
    job.extra = (char *)"{\"seconds\":\"5\",\"metadata\":{\"a\":\"b\"},\"user\":\"u\"}";
    int refused = 0;
    for (uint64_t n = 1;; n++) {
        kn_video_summary s;
        uint64_t held = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_video_summary_read(&s, &job);
        kn_mem_fail_at(0);
        if (st == KN_OK) {
            kn_video_summary_release(&s);
            break;
        }
        assert_int_equal(kn_mem_read().bytes, held);
        refused++;
    }
    assert_true(refused > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(byte_for_byte),
        cmocka_unit_test(every_state),
        cmocka_unit_test(live_facts),
        cmocka_unit_test(summaries),
        cmocka_unit_test(the_longest_prompt_fits),
        cmocka_unit_test(lists),
        cmocka_unit_test(small_bodies),
        cmocka_unit_test(events),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests_name("video_response", tests, count_allocations, nothing_left);
}
