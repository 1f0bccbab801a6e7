/* SPDX-License-Identifier: Apache-2.0
 *
 * grpc.health.v1: is this server, or one service or model of it, ready for calls? What kubelet, load balancers and
 * gRPC clients with health checking ask. Loop thread only. */
#ifndef KN_SERVER_HEALTH_H
#define KN_SERVER_HEALTH_H

#include "server/core.h"
#include "server/grpc.h"

extern const kn_grpc_service kn_health_service;

/* Tells who watches, where something has changed; from time to time, and when a drain begins. */
void kn_health_tell(kn_server *server);
/* A drain: who watches has been told NOT_SERVING and is asked to leave. */
void kn_health_end(kn_server *server);

#endif
