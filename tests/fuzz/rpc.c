/* SPDX-License-Identifier: Apache-2.0
 *
 * Bytes as each of the service's requests: refused with an error that can be sent, or read within bounds; a submission
 * that is read is JSON that the API's own parser reads or refuses. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "server/json.h"
#include "server/rpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

static void submit(const uint8_t *bytes, size_t count)
{
    kn_api_error error = {0};
    kn_video_params params;
    char reference[KN_REFERENCE_ID_BYTES];
    kn_text json = kn_text_growing(KN_BODY_JSON_BYTES_MAX);
    if (kn_rpc_read_submit(&json, reference, bytes, count, 2.5, &error) != KN_OK) {
        require(error.status >= 400 && error.message[0]);
    } else if (kn_video_request_parse(&params, KN_VIDEO_CREATE, json.bytes, json.count, "application/json", &error) ==
               KN_OK) {
        kn_video_params_release(&params);
    } else {
        require(!error.code || strcmp(error.code, "invalid_body") != 0 || strstr(error.message, "keys") ||
                strstr(error.message, "twice") || strstr(error.message, "values"));
    }
    kn_text_release(&json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint64_t held = kn_mem_read().bytes;
    kn_api_error error = {0};
    if (size < 1 || size > 8192) return 0;
    const size_t count = size - 1;
    uint8_t *bytes = kn_alloc(count + 1); /* aligned, as a message is */
    memcpy(bytes, data + 1, count);
    char text[KN_MODEL_NAME_BYTES], id[KN_JOB_ID_BYTES + 8];
    kn_list_query list;
    kn_rpc_watch watch;
    kn_rpc_download download;
    const uint8_t *part;
    size_t part_bytes;
    kn_status st = KN_OK;
    switch (data[0] % 7) {
    case 0: submit(bytes, count); break;
    case 1: st = kn_rpc_read_id(id, bytes, count, &error); break;
    case 2:
        st = kn_rpc_read_list(&list, bytes, count, &error);
        require(st != KN_OK || (list.limit >= 0 && list.limit <= KN_LIST_LIMIT_MAX));
        break;
    case 3: st = kn_rpc_read_watch(&watch, bytes, count, &error); break;
    case 4:
        st = kn_rpc_read_download(&download, bytes, count, &error);
        require(st != KN_OK || download.chunk_bytes <= KN_RPC_CHUNK_BYTES_MAX);
        break;
    case 5:
        st = kn_rpc_read_part(&part, &part_bytes, bytes, count, &error);
        require(st != KN_OK || (part >= bytes && part + part_bytes <= bytes + count));
        break;
    default: st = kn_rpc_read_model(text, bytes, count, &error); break;
    }
    require(st == KN_OK || (error.status >= 400 && error.message[0]));
    kn_free(bytes);
    require(kn_mem_read().bytes == held);
    return 0;
}
