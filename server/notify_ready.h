/* SPDX-License-Identifier: Apache-2.0
 *
 * Telling the service manager, after sd_notify(3): one datagram of lines "NAME=value" to the socket that $NOTIFY_SOCKET
 * names. The protocol is a page of text, so there is no library for it here. Without a service manager nothing happens.
 *
 * The environment is read when called; a message never blocks. */
#ifndef KN_SERVER_NOTIFY_READY_H
#define KN_SERVER_NOTIFY_READY_H

#include <stdint.h>

#include "base/status.h"

enum { KN_NOTIFY_BYTES = 512 }; /* of one message */

/* KN_OK when it was sent or nobody asked; KN_IO and a reason otherwise, which is worth a warning and no more. */
kn_status kn_notify_ready(const char *status);    /* READY=1, STATUS=... */
kn_status kn_notify_status(const char *status);   /* STATUS=..., for systemctl status */
kn_status kn_notify_reloading(int64_t now_ns);    /* RELOADING=1, MONOTONIC_USEC=...; ended by kn_notify_ready() */
kn_status kn_notify_stopping(const char *status); /* STOPPING=1, STATUS=... */
kn_status kn_notify_watchdog(void);               /* WATCHDOG=1: the loop still turns */
kn_status kn_notify_extend(int64_t microseconds); /* EXTEND_TIMEOUT_USEC=...: stopping or starting takes longer */

/* How often the manager wants to hear kn_notify_watchdog(), in nanoseconds: half of $WATCHDOG_USEC, when that is meant
 * for this process; 0: not at all. */
int64_t kn_notify_watchdog_ns(void);

#endif
