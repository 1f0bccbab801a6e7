/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as a body of an inference: the first two say how long its JSON is (0: all of it). Refused with a typed
 * error, or a request within its bounds whose body the Videos API's reader can be asked about. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/kserve_json.h"
#include "server/video_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void ensure(int holds)
{
    if (!holds) abort();
}

static void check_body(const kn_kserve_request *request)
{
    kn_api_error error;
    kn_video_params params;
    kn_text text = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    kn_status st = kn_kserve_body(&text, request, "m", &error);
    if (st == KN_OK) {
        st = kn_video_request_parse(&params, KN_VIDEO_CREATE, text.bytes, text.count, "application/json", &error);
        if (st == KN_OK) kn_video_params_release(&params);
    }
    ensure(st == KN_OK || (error.status >= 400 && error.message[0]));
    kn_text_release(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kn_json_use_kn_alloc();
    const uint64_t held = kn_mem_read().bytes;
    kn_kserve_request request;
    kn_api_error error;
    json_t *root;
    if (count < 2) return 0;
    const int64_t json_bytes = bytes[0] | bytes[1] << 8;
    const char *body = (const char *)bytes + 2;
    const kn_status st = kn_kserve_json_parse(&request, &root, body, count - 2, json_bytes ? json_bytes : -1, &error);
    if (st == KN_OK) {
        ensure(request.input_count <= KN_KSERVE_INPUTS_MAX && request.parameter_count <= KN_KSERVE_PARAMETERS_MAX);
        ensure(kn_kserve_answered(&request) < 1u << KN_KSERVE_OUTPUTS);
        check_body(&request);
    } else {
        ensure(root == NULL && error.status >= 400 && error.message[0]);
    }
    json_decref(root);
    ensure(kn_mem_read().bytes == held);
    return 0;
}
