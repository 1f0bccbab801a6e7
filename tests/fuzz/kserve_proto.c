/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as each of the protobuf messages this server reads; the first byte says which. Refused with a typed error,
 * or a request within its bounds. Memory stays in proportion to the message. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/kserve_proto.h"
#include "server/reflection.h"
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

static kn_status read_infer(const void *bytes, size_t count, kn_api_error *error)
{
    kn_kserve_request request;
    ProtobufCMessage *message;
    const kn_status st = kn_kserve_proto_infer(&request, &message, bytes, count, error);
    if (st == KN_OK) {
        ensure(request.input_count <= KN_KSERVE_INPUTS_MAX && request.parameter_count <= KN_KSERVE_PARAMETERS_MAX);
        ensure(strlen(request.id) <= KN_KSERVE_ID_BYTES_MAX);
        check_body(&request);
    } else {
        ensure(message == NULL);
    }
    kn_proto_free(&message);
    return st;
}

static void look_up(const void *bytes, size_t count)
{
    kn_definition definition;
    char *name = kn_strndup(bytes, count);
    if (name && kn_definition_of_symbol(&definition, name)) ensure(definition.count > 0);
    if (name && kn_definition_of_file(&definition, name)) ensure(definition.count > 0);
    kn_free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    kn_json_use_kn_alloc();
    const uint64_t held = kn_mem_read().bytes;
    kn_api_error error;
    kn_kserve_name name;
    bool ready_only;
    kn_status st = KN_OK;
    if (count == 0) return 0;
    const uint8_t *message = bytes + 1;
    switch (bytes[0] % 5) {
    case 0: st = read_infer(message, count - 1, &error); break;
    case 1: st = kn_kserve_proto_name(&name, message, count - 1, &error); break;
    case 2: st = kn_kserve_proto_index_request(&ready_only, message, count - 1, &error); break;
    case 3: st = kn_kserve_proto_change(&name, message, count - 1, &error); break;
    default: look_up(message, count - 1);
    }
    ensure(st == KN_OK || (error.status >= 400 && error.message[0]));
    ensure(kn_mem_read().bytes == held);
    return 0;
}
