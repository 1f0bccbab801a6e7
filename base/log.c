/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static atomic_int threshold = KN_LOG_INFO;
static atomic_int as_json;

static const char *const names[] = {"debug", "info", "warning", "error"};

void kn_log_configure(kn_log_level level, int json)
{
    atomic_store(&threshold, (int)level);
    atomic_store(&as_json, json);
}

static void put_json_string(FILE *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            fprintf(out, "\\%c", *p);
        else if (*p < 0x20)
            fprintf(out, "\\u%04x", *p);
        else
            fputc(*p, out);
    }
}

void kn_log(kn_log_level level, const char *format, ...)
{
    if ((int)level < atomic_load(&threshold)) return;
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    flockfile(stderr); /* a line is never torn by another thread */
    if (atomic_load(&as_json)) {
        fprintf(stderr, "{\"level\":\"%s\",\"message\":\"", names[level]);
        put_json_string(stderr, text);
        fputs("\"}\n", stderr);
    } else {
        fprintf(stderr, "%s: %s\n", names[level], text);
    }
    funlockfile(stderr);
}
