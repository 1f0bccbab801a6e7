/* SPDX-License-Identifier: Apache-2.0
 *
 * inference.GRPCInferenceService: the open inference protocol and Triton's extensions over gRPC. Loop thread only. */
#ifndef KN_SERVER_KSERVE_GRPC_H
#define KN_SERVER_KSERVE_GRPC_H

#include "server/core.h"
#include "server/grpc.h"

extern const kn_grpc_service kn_inference_service;

/* ---- kserve_infer.c: the two methods that make videos ---- */

void kn_infer_message(kn_grpc_call *call, const void *bytes, size_t count); /* closed: kn_call_closed_grpc */

void kn_infer_stream_message(kn_grpc_call *call, const void *bytes, size_t count);
void kn_infer_stream_half_closed(kn_grpc_call *call);
void kn_infer_stream_writable(kn_grpc_call *call);
void kn_infer_stream_closed(kn_grpc_call *call);

#endif
