/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* SOCK_CLOEXEC, MSG_NOSIGNAL */
#include "server/notify_ready.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static kn_status send_message(const char *message)
{
    const char *path = getenv("NOTIFY_SOCKET");
    if (!path || !*path) return KN_OK;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t bytes = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || bytes < 2 || bytes >= sizeof address.sun_path)
        return kn_fail(KN_INVALID,
                       "NOTIFY_SOCKET is neither an absolute path nor an abstract name of %zu bytes at most",
                       sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, bytes);
    if (path[0] == '@') address.sun_path[0] = '\0'; /* abstract: no file, and no NUL at the end */
    socklen_t address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes);
    int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return kn_fail(KN_IO, "the service manager's socket: %s", strerror(errno));
    kn_status st = KN_OK;
    if (sendto(descriptor, message, strlen(message), MSG_NOSIGNAL | MSG_DONTWAIT, (struct sockaddr *)&address,
               address_bytes) < 0)
        st = kn_fail(KN_IO, "the service manager at %s: %s", path, strerror(errno));
    close(descriptor);
    return st;
}

/* One line of status: what follows a line end would be another assignment. */
static kn_status send_status(const char *first, const char *status)
{
    char message[KN_NOTIFY_BYTES];
    size_t bytes = strcspn(status, "\r\n");
    snprintf(message, sizeof message, "%sSTATUS=%.*s\n", first, bytes < 256 ? (int)bytes : 256, status);
    return send_message(message);
}

kn_status kn_notify_ready(const char *status)
{
    return send_status("READY=1\n", status);
}

kn_status kn_notify_status(const char *status)
{
    return send_status("", status);
}

kn_status kn_notify_stopping(const char *status)
{
    return send_status("STOPPING=1\n", status);
}

static kn_status send_number(const char *name, int64_t value)
{
    char message[128];
    snprintf(message, sizeof message, "%s%" PRId64 "\n", name, value);
    return send_message(message);
}

kn_status kn_notify_reloading(int64_t now_ns)
{
    return send_number("RELOADING=1\nMONOTONIC_USEC=", now_ns / 1000);
}

kn_status kn_notify_watchdog(void)
{
    return send_message("WATCHDOG=1\n");
}

kn_status kn_notify_extend(int64_t microseconds)
{
    return send_number("EXTEND_TIMEOUT_USEC=", microseconds);
}

/* A decimal number and nothing else; 0 otherwise. */
static int64_t number_of(const char *text)
{
    char *end;
    if (!text || *text < '0' || *text > '9') return 0;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    return errno || *end ? 0 : value;
}

int64_t kn_notify_watchdog_ns(void)
{
    int64_t period_us = number_of(getenv("WATCHDOG_USEC"));
    const char *process = getenv("WATCHDOG_PID");
    if (process && number_of(process) != getpid()) return 0;
    return period_us > INT64_MAX / 1000 ? 0 : period_us * 1000 / 2;
}
