/* SPDX-License-Identifier: Apache-2.0
 *
 * What the subcommands share: the table of commands, options, and how a command
 * ends. A command gets argv from its own name on and returns an exit code
 * (sysexits.h; base/status.h maps a kn_status). */
#ifndef KN_CLI_H
#define KN_CLI_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

typedef int kn_command_fn(int argc, char **argv);

kn_command_fn kn_cli_generate, kn_cli_model, kn_cli_bench, kn_cli_simulate, kn_cli_devices_show;
kn_command_fn kn_cli_rank; /* not for people: a rank of `generate` on several devices */
kn_command_fn kn_cli_serve, kn_cli_jobs, kn_cli_key, kn_cli_status, kn_cli_drain, kn_cli_backup;

/* The data directory a server would use: `given`, or the user's own. kn_alloc'ed; NULL: none is known. */
char *kn_cli_data(const char *given);

enum { KN_CLI_REPEATS = 1 }; /* a letter nobody can type */

/* One option of a command. Long names only; `letter` is an optional short form. */
typedef struct kn_option {
    const char *name;     /* "size" for --size */
    char letter;          /* 'o' for -o; 0: none; KN_CLI_REPEATS: none, and it may be given again */
    const char *argument; /* what to call it in the help, "WxH"; NULL: a switch */
    const char *help;
    kn_status (*parse)(const struct kn_option *option, const char *text); /* text is NULL for a switch */
    void *out;                                                            /* for parse */
    bool *given;                                                          /* set when the option occurs; may be NULL */
} kn_option;

/* Parses argv[1..]; every argument belongs to an option, but for up to `positional_max` others, which are stored in
 * order. KN_INVALID names the option and the limit. KN_CANCELLED: --help was asked for, and has been printed. */
kn_status kn_cli_parse(int argc, char **argv, const kn_option *options, size_t count, const char *usage,
                       const char **positional, int positional_max, int *positional_count);

/* Parsers for the `parse` field; `out` is of the type named. A number is refused unless the whole text is one. */
kn_status kn_cli_text(const kn_option *option, const char *text);   /* const char * */
kn_status kn_cli_switch(const kn_option *option, const char *text); /* bool */
kn_status kn_cli_int32(const kn_option *option, const char *text);  /* int32_t, 1 or more */
kn_status kn_cli_uint64(const kn_option *option, const char *text); /* uint64_t */
kn_status kn_cli_double(const kn_option *option, const char *text); /* double, finite */

/* Prints "kinora: message", or with `json` {"event":"error",...}, for the last kn_fail(); returns the exit code. */
int kn_cli_end(kn_status status, bool json);

/* A JSON string with its quotes. */
void kn_cli_put_json_string(FILE *out, const char *text);

/* Bytes as people read them: "5.31 GB" (decimal units), "812 KB". Returns `text`. */
const char *kn_cli_bytes(char text[16], uint64_t bytes);

/* Highest anonymous resident memory of this process so far, as far as it has been called; bytes. Pages of mapped
 * files are not counted. */
uint64_t kn_cli_resident_peak(void);

#endif
