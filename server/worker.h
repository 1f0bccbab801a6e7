/* SPDX-License-Identifier: Apache-2.0
 *
 * The worker process: owns one device, does what the messages on its socket say, one after the other, and answers each
 * in order (wire.h). A second thread sends a sign of life every second and watches for the server's end: when the
 * socket closes, the process ends at once, in the middle of a slice if need be. It ignores SIGINT and SIGTERM, which a
 * terminal or a service manager sends to the whole group; when a worker ends is the server's decision alone.
 *
 * Exit codes: 0 the server closed the socket; KN_WORKER_EXIT_FATAL the device is lost; else sysexits.h, said on
 * standard error (a bad command line, a malformed message, a device that cannot be opened). */
#ifndef KN_SERVER_WORKER_H
#define KN_SERVER_WORKER_H

#include <stdint.h>

enum {
    KN_WORKER_FD = 3, /* the descriptor the fleet hands over */
    KN_WORKER_BEAT_MS = 1000,
    KN_WORKER_EXIT_FATAL = 88,
};

/* The hidden subcommand "worker --fd N [--sockets]"; the latter as in confine.h. Returns the process's exit code, or
 * does not return. Closes every other descriptor above 2. */
int kn_worker_main(int argc, char **argv);

#endif
