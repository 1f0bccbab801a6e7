/* SPDX-License-Identifier: Apache-2.0
 *
 * What a worker gives up before it reads anything of a job: a system call filter that refuses (EPERM) to run other
 * programs, to make sockets other than Unix ones, to look into or signal other processes, and the administration of the
 * machine. It lists what is refused and lets the rest pass: drivers and codecs use calls nobody can list. A refused
 * call fails and the worker goes on.
 *
 * Not refused, and so not held back by this: files that the server's user may read or write. */
#ifndef KN_SERVER_CONFINE_H
#define KN_SERVER_CONFINE_H

#include <stdbool.h>

#include "base/status.h"

/* For this process and its threads, for good; call it with one thread and after kn_child_enter(). With `sockets` those
 * of all kinds may be made: NCCL's ranks find each other over TCP. KN_UNAVAILABLE: the kernel has no filters. */
kn_status kn_confine_worker(bool sockets);

#endif
