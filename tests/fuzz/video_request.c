/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a request of the Videos API. What is refused has a typed error; what is accepted becomes a resolved
 * request of the engine or a typed error, has a fingerprint, and is shown again as valid JSON. The first byte picks the
 * dialect and the operation. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/video_request.h"
#include "server/video_response.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void ensure(int holds)
{
    if (!holds) abort();
}

static void ensure_told(kn_status st, const kn_api_error *error)
{
    ensure(st == KN_INVALID || st == KN_UNSUPPORTED);
    ensure(error->status >= 400 && error->status < 500 && error->type && error->code && error->message[0]);
    ensure(!strpbrk(error->message, "\r\n") && kn_text_characters(error->message, strlen(error->message)) > 0);
}

static void show(const kn_video_params *params, const kn_request *request, const kn_request_notes *notes)
{
    kn_job job = {.id = "video_0123456789abcdef0123456789abcdef", .model = "m", .state = KN_JOB_QUEUED};
    job.prompt = params->prompt;
    ensure(kn_video_params_extra(&job.extra, params, notes) == KN_OK);
    ensure(kn_request_to_json(&job.request, request) == KN_OK);
    kn_video_summary summary;
    ensure(kn_video_summary_read(&summary, &job) == KN_OK);
    const kn_video_item item = {.job = &job, .summary = &summary, .facts = kn_video_facts_none()};
    kn_text text = kn_text_growing(KN_VIDEO_OBJECT_BYTES_MAX);
    kn_video_write(&text, &item);
    ensure(kn_text_status(&text) == KN_OK);
    json_t *back = json_loadb(text.bytes, text.count, 0, NULL);
    ensure(back && strcmp(json_string_value(json_object_get(back, "prompt")), params->prompt) == 0);
    json_decref(back);
    kn_text_release(&text);
    kn_video_summary_release(&summary);
    kn_free(job.request);
    kn_free(job.extra);
}

static void use(const kn_video_params *params, const kn_repository *repository)
{
    kn_api_error error;
    uint8_t fingerprint[KN_SHA256_BYTES];
    int64_t deadline;
    const kn_video_model model = {.name = "m", .repository = repository, .image_input = true};
    kn_request request;
    kn_request_notes notes;
    ensure(kn_video_params_fingerprint(fingerprint, params) == KN_OK);
    kn_status st = kn_video_params_deadline(&deadline, params, 1800000000000000, &error);
    if (st != KN_OK) ensure_told(st, &error);
    st = kn_video_params_to_request(&request, params, &model, 7, &notes, &error);
    if (st == KN_OK)
        show(params, &request, &notes);
    else
        ensure_told(st, &error);
    kn_request_release(&request);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    static const char *const types[] = {"application/json", "application/x-www-form-urlencoded",
                                        "multipart/form-data; boundary=b"};
    if (count == 0) return -1;
    kn_json_use_kn_alloc();
    uint64_t held = kn_mem_read().bytes;
    kn_repository *repository = NULL;
    ensure(kn_repository_preset(&repository, "wan2.1-1.3b", 1) == KN_OK);
    kn_video_params params;
    kn_api_error error;
    const kn_video_operation operation = bytes[0] % 4 == 3 ? (kn_video_operation)(bytes[0] / 4 % 5) : KN_VIDEO_CREATE;
    kn_status st = kn_video_request_parse(&params, operation, bytes + 1, count - 1, types[bytes[0] % 3], &error);
    if (st == KN_OK)
        use(&params, repository);
    else
        ensure_told(st, &error);
    kn_video_params_release(&params);
    kn_repository_close(&repository);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
