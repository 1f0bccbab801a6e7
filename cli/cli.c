/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "cli/cli.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/log.h"

/* ---- options ---- */

static void print_usage(const kn_option *options, size_t count, const char *usage)
{
    printf("usage: kinora %s\n\n", usage);
    for (size_t i = 0; i < count; i++) {
        const kn_option *o = &options[i];
        char left[64];
        const bool has_letter = o->letter > KN_CLI_REPEATS;
        snprintf(left, sizeof left, "%s%c%s--%s%s%s", has_letter ? "-" : "  ", has_letter ? o->letter : ' ',
                 has_letter ? ", " : " ", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
        printf("  %-34s %s\n", left, o->help);
    }
}

/* The option an argument names, and its "=value" if it has one. */
static const kn_option *match(const kn_option *options, size_t count, const char *argument, const char **value)
{
    *value = NULL;
    for (size_t i = 0; i < count; i++) {
        const kn_option *o = &options[i];
        if (argument[1] != '-') {
            if (o->letter == argument[1] && argument[2] == '\0') return o;
            continue;
        }
        const size_t bytes = strlen(o->name);
        if (strncmp(argument + 2, o->name, bytes) != 0) continue;
        if (argument[2 + bytes] == '\0') return o;
        if (argument[2 + bytes] == '=') {
            *value = argument + 2 + bytes + 1;
            return o;
        }
    }
    return NULL;
}

static kn_status apply(const kn_option *option, const char *value, int argc, char **argv, int *i)
{
    if (!option->argument && value) return kn_fail(KN_INVALID, "--%s takes no value", option->name);
    if (option->argument && !value) {
        if (*i + 1 >= argc) return kn_fail(KN_INVALID, "--%s needs %s", option->name, option->argument);
        value = argv[++*i];
    }
    if (option->given) *option->given = true;
    return option->parse(option, value);
}

kn_status kn_cli_parse(int argc, char **argv, const kn_option *options, size_t count, const char *usage,
                       const char **positional, int positional_max, int *positional_count)
{
    int others = 0;
    uint64_t seen = 0;
    assert(count <= 64);
    for (int i = 1; i < argc; i++) {
        const char *value;
        if (argv[i][0] != '-' || argv[i][1] == '\0') {
            if (others == positional_max)
                return kn_fail(KN_INVALID, "\"%s\" is not an option; see kinora %s --help", argv[i], argv[0]);
            positional[others++] = argv[i];
            continue;
        }
        if (strcmp(argv[i], "--help") == 0) {
            print_usage(options, count, usage);
            return KN_CANCELLED;
        }
        const kn_option *option = match(options, count, argv[i], &value);
        if (!option) return kn_fail(KN_INVALID, "%s is not an option; see kinora %s --help", argv[i], argv[0]);
        const uint64_t bit = UINT64_C(1) << (option - options);
        if (seen & bit && option->letter != KN_CLI_REPEATS)
            return kn_fail(KN_INVALID, "--%s is given twice", option->name);
        seen |= bit;
        kn_status st = apply(option, value, argc, argv, &i);
        if (st != KN_OK) return st;
    }
    if (positional_count) *positional_count = others;
    return KN_OK;
}

kn_status kn_cli_text(const kn_option *option, const char *text)
{
    *(const char **)option->out = text;
    return KN_OK;
}

kn_status kn_cli_switch(const kn_option *option, const char *text)
{
    (void)text;
    *(bool *)option->out = true;
    return KN_OK;
}

kn_status kn_cli_int32(const kn_option *option, const char *text)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < 1 || value > INT32_MAX)
        return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be a whole number from 1 to %d", option->name, text,
                       INT32_MAX);
    *(int32_t *)option->out = (int32_t)value;
    return KN_OK;
}

kn_status kn_cli_uint64(const kn_option *option, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end || errno || strchr(text, '-'))
        return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be a whole number from 0 to %" PRIu64, option->name, text,
                       UINT64_MAX);
    *(uint64_t *)option->out = value;
    return KN_OK;
}

kn_status kn_cli_double(const kn_option *option, const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value))
        return kn_fail(KN_INVALID, "--%s is \"%s\"; it must be a number", option->name, text);
    *(double *)option->out = value;
    return KN_OK;
}

/* ---- ending ---- */

void kn_cli_put_json_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int32_t code;
        utf8proc_ssize_t length = utf8proc_iterate(p, -1, &code);
        if (length < 1) { /* not UTF-8, which JSON must be */
            fputs("\\ufffd", out);
            p++;
            continue;
        }
        if (code == '"' || code == '\\')
            fprintf(out, "\\%c", (char)code);
        else if (code < 0x20)
            fprintf(out, "\\u%04x", (unsigned)code);
        else
            fwrite(p, 1, (size_t)length, out);
        p += length;
    }
    fputc('"', out);
}

int kn_cli_end(kn_status status, bool json)
{
    if (status == KN_OK) return 0;
    if (json) {
        printf("{\"event\":\"error\",\"status\":\"%s\",\"message\":", kn_status_name(status));
        kn_cli_put_json_string(stdout, kn_fail_message());
        printf("}\n");
        fflush(stdout);
    } else {
        fprintf(stderr, "kinora: %s\n", kn_fail_message());
    }
    return kn_status_exit_code(status);
}

const char *kn_cli_bytes(char text[16], uint64_t bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    double value = (double)bytes;
    int unit = 0;
    for (; value >= 1000.0 && unit < 4; unit++) value /= 1000.0;
    snprintf(text, 16,
             value < 10.0 && unit > 0    ? "%.2f %s"
             : value < 100.0 && unit > 0 ? "%.1f %s"
                                         : "%.0f %s",
             value, units[unit]);
    return text;
}

uint64_t kn_cli_resident_peak(void)
{
    static uint64_t peak; /* the process has one */
    FILE *file = fopen("/proc/self/status", "r");
    if (!file) return peak;
    char line[256];
    uint64_t kilobytes = 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %" SCNu64, &kilobytes) == 1) break;
    fclose(file);
    if (kilobytes * 1024 > peak) peak = kilobytes * 1024;
    return peak;
}
