/* SPDX-License-Identifier: Apache-2.0
 *
 * The inference protocol as protobuf messages. Pure functions of their arguments; texts are appended to, ask
 * kn_text_status at the end. */
#ifndef KN_SERVER_KSERVE_PROTO_H
#define KN_SERVER_KSERVE_PROTO_H

#include "server/kserve.h"
#include "server/proto.h"

/* Reads a ModelInferRequest. What *out points to lives in *message and in `bytes`; kn_proto_free *message (NULL on
 * failure). */
kn_status kn_kserve_proto_infer(kn_kserve_request *out, ProtobufCMessage **message, const void *bytes, size_t count,
                                kn_api_error *error);

/* Name and version of a ModelReady, ModelMetadata, ModelConfig or ModelStatistics request, which are one message. */
typedef struct kn_kserve_name {
    char name[64], version[16];
} kn_kserve_name;
kn_status kn_kserve_proto_name(kn_kserve_name *out, const void *bytes, size_t count, kn_api_error *error);
/* A RepositoryIndexRequest. */
kn_status kn_kserve_proto_index_request(bool *ready_only, const void *bytes, size_t count, kn_api_error *error);
/* A RepositoryModelLoadRequest or ...UnloadRequest, which are one message; parameters that cannot be had are refused.
 * The version is left empty. */
kn_status kn_kserve_proto_change(kn_kserve_name *out, const void *bytes, size_t count, kn_api_error *error);

/* ServerLive, ServerReady and ModelReady answer with one boolean in field 1. */
void kn_kserve_proto_boolean(kn_text *out, bool value);
void kn_kserve_proto_server(kn_text *out);
void kn_kserve_proto_metadata(kn_text *out, const kn_kserve_model *model);
void kn_kserve_proto_config(kn_text *out, const kn_kserve_model *model);
void kn_kserve_proto_statistics(kn_text *out, const kn_kserve_model *models, const kn_kserve_counts *counts,
                                size_t count);
void kn_kserve_proto_index(kn_text *out, const kn_kserve_model *models, size_t count);

/* A ModelInferResponse up to where the file's bytes come, which end it; `file_bytes` of them (0: no output is a file).
 * Of a streamed answer (a ModelStreamInferResponse) likewise. */
void kn_kserve_proto_answer(kn_text *out, const kn_kserve_answer *answer, uint64_t file_bytes);
/* A ModelStreamInferResponse that says what went wrong with the request of this id. */
void kn_kserve_proto_stream_error(kn_text *out, const char *model, const char *id, const kn_api_error *error);

#endif
