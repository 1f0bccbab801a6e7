/* SPDX-License-Identifier: Apache-2.0
 *
 * The inference protocol as REST bodies: JSON, and Triton's binary tensors behind it. Pure functions of their
 * arguments; texts are appended to, ask kn_text_status at the end. */
#ifndef KN_SERVER_KSERVE_JSON_H
#define KN_SERVER_KSERVE_JSON_H

#include <jansson.h>

#include "server/kserve.h"

/* Reads a body of POST .../infer. `json_bytes` is the Inference-Header-Content-Length, -1 without that header: the
 * JSON is the whole body. What *out points to lives in `body` and in *root, which the caller decrefs (NULL on
 * failure). */
kn_status kn_kserve_json_parse(kn_kserve_request *out, json_t **root, const char *body, size_t count,
                               int64_t json_bytes, kn_api_error *error);
/* The header's value: digits of a number, NULL: -1. */
kn_status kn_kserve_json_length(int64_t *out, const char *value, kn_api_error *error);

/* {"error": message}, as Triton's clients expect it. */
void kn_kserve_json_error(kn_text *out, const kn_api_error *error);
void kn_kserve_json_server(kn_text *out);
void kn_kserve_json_metadata(kn_text *out, const kn_kserve_model *model);
void kn_kserve_json_config(kn_text *out, const kn_kserve_model *model);
void kn_kserve_json_statistics(kn_text *out, const kn_kserve_model *models, const kn_kserve_counts *counts,
                               size_t count);
void kn_kserve_json_index(kn_text *out, const kn_kserve_model *models, size_t count);

/* The JSON into `json`, the binary outputs into `tail`; the file's bytes come behind them where it is among the binary
 * outputs. `file` is needed (video_bytes of it) only for a video that is not: it is written as base64. */
void kn_kserve_json_answer(kn_text *json, kn_text *tail, const kn_kserve_answer *answer, const void *file);

#endif
