/* SPDX-License-Identifier: Apache-2.0
 *
 * gRPC's server reflection, v1 and v1alpha: which services there are, and the definitions of those that speak protobuf,
 * for grpcurl, grpc_cli and clients that build messages at run time. Kinora's own service speaks FlatBuffers: it is
 * listed, and has no protobuf definition to show. */
#ifndef KN_SERVER_REFLECTION_H
#define KN_SERVER_REFLECTION_H

#include "server/grpc.h"

extern const kn_grpc_service kn_reflection_service;
extern const kn_grpc_service kn_reflection_alpha_service;

/* ---- definitions; pure functions ---- */

typedef struct kn_definition {
    const void *bytes; /* a FileDescriptorProto */
    size_t count;
} kn_definition;

/* By the file's name, or by the full name of anything defined in it ("inference.ModelInferRequest",
 * "inference.GRPCInferenceService.ModelInfer"). False: there is none. */
bool kn_definition_of_file(kn_definition *out, const char *name);
bool kn_definition_of_symbol(kn_definition *out, const char *name);

#endif
