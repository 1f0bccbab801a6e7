/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#undef kn_fail /* only the analyzer sees macros of these names */
#undef kn_fail_context

enum { MESSAGE_BYTES = 1024 };

static _Thread_local char message[MESSAGE_BYTES];

kn_status kn_fail(kn_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

kn_status kn_fail_context(kn_status status, const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (used < 0) used = 0;
    size_t start = (size_t)used < sizeof text - 3 ? (size_t)used : sizeof text - 3;
    size_t room = sizeof text - start - 3; /* after ": ", before the NUL */
    size_t tail = strnlen(message, room);
    memcpy(text + start, ": ", 2);
    memcpy(text + start + 2, message, tail);
    text[start + 2 + tail] = '\0';
    memcpy(message, text, sizeof message);
    return status;
}

const char *kn_fail_message(void)
{
    return message;
}

const char *kn_status_name(kn_status status)
{
    switch (status) {
    case KN_OK: return "ok";
    case KN_AGAIN: return "again";
    case KN_CANCELLED: return "cancelled";
    case KN_INVALID: return "invalid";
    case KN_NOT_FOUND: return "not_found";
    case KN_UNSUPPORTED: return "unsupported";
    case KN_CORRUPT: return "corrupt";
    case KN_NOMEM: return "no_memory";
    case KN_IO: return "io";
    case KN_UNAVAILABLE: return "unavailable";
    case KN_FATAL: return "fatal";
    case KN_DEVICE_LOST: return "device_lost";
    case KN_BUG: return "bug";
    }
    return "unknown";
}

/* sysexits.h gives the numbers; 130 is the shell's 128 + SIGINT. */
int kn_status_exit_code(kn_status status)
{
    switch (status) {
    case KN_OK: return 0;
    case KN_CANCELLED: return 130;
    case KN_INVALID: return 64;
    case KN_CORRUPT:
    case KN_UNSUPPORTED: return 65;
    case KN_NOT_FOUND: return 66;
    case KN_UNAVAILABLE:
    case KN_DEVICE_LOST: return 69;
    case KN_NOMEM: return 71;
    case KN_IO: return 74;
    default: return 70;
    }
}
