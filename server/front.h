/* SPDX-License-Identifier: Apache-2.0
 *
 * The gRPC front of the server (--grpc): see front.c. Loop thread only. */
#ifndef KN_SERVER_FRONT_H
#define KN_SERVER_FRONT_H

#include "server/core.h"
#include "server/grpc.h"

enum { KN_FRONT_PATH_BYTES = 96, KN_FRONT_METHODS_MAX = 64 };

kn_status kn_front_start(kn_server *server); /* nothing where no address was given */
kn_status kn_front_reload(kn_server *server);
void kn_front_drain(kn_server *server);
void kn_front_stop(kn_server *server);
int32_t kn_front_connections(const kn_server *server);

/* For the metrics: the paths of all methods; returns how many were written. */
size_t kn_front_methods(char paths[][KN_FRONT_PATH_BYTES], size_t max);

#endif
