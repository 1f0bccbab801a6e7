/* SPDX-License-Identifier: Apache-2.0
 *
 * Kinora's own service on the gRPC front: schema/kinora.fbs says what it offers. Handlers go through the same calls,
 * intake, store and scheduler as the Videos API.
 *
 *   rpc_videos.c    Submit, Get, List, Cancel, Delete, Models        rpc_files.c    Download, UploadReference
 *   rpc_watch.c     Watch                                            rpc_admin.c    the Admin service */
#ifndef KN_SERVER_RPC_SERVICE_H
#define KN_SERVER_RPC_SERVICE_H

#include "server/api.h"
#include "server/rpc.h"

extern const kn_grpc_service kn_rpc_videos_service, kn_rpc_admin_service;

/* Answers with the block, which is taken, or with what became of making it. */
void kn_rpc_reply(kn_grpc_call *call, kn_status st, kn_rpc_block *block);

/* For calls of the API that answer with a job, or its deletion. */
extern const kn_call_front kn_rpc_front;

void kn_rpc_watch_message(kn_grpc_call *call, const void *bytes, size_t count); /* rpc_watch.c */
void kn_rpc_watch_closed(kn_grpc_call *call);

void kn_rpc_download_message(kn_grpc_call *call, const void *bytes, size_t count); /* rpc_files.c */
void kn_rpc_download_writable(kn_grpc_call *call);
void kn_rpc_download_closed(kn_grpc_call *call);
void kn_rpc_upload_message(kn_grpc_call *call, const void *bytes, size_t count);
void kn_rpc_upload_end(kn_grpc_call *call);
void kn_rpc_upload_closed(kn_grpc_call *call);

#endif
