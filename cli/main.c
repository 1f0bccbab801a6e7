/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "server/server.h"

static const struct {
    const char *name;
    kn_command_fn *run;
    const char *help;
} commands[] = {
    {"generate", kn_cli_generate, "turn a prompt into a video file"},
    {"serve", kn_cli_serve, "serve models over HTTP"},
    {"jobs", kn_cli_jobs, "list, show, cancel and retry a server's jobs"},
    {"key", kn_cli_key, "create, list and revoke API keys"},
    {"status", kn_cli_status, "how a server is doing"},
    {"drain", kn_cli_drain, "let a server finish what runs, save the rest and stop"},
    {"backup", kn_cli_backup, "copy a server's data directory, while it serves or not"},
    {"simulate", kn_cli_simulate, "run the scheduler through a made-up day"},
    {"model", kn_cli_model, "inspect a model folder"},
    {"bench", kn_cli_bench, "measure this machine, the operators and the networks"},
    {"devices", kn_cli_devices_show, "list devices, how they are connected and which groups they can form"},
};

static int print_help(FILE *out)
{
    fputs("usage: kinora COMMAND [OPTIONS]\n\n", out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n\"kinora COMMAND --help\" lists a command's options. Version " KN_VERSION ".\n", out);
    return out == stdout ? 0 : kn_status_exit_code(KN_INVALID);
}

int main(int argc, char **argv)
{
    kn_server_prepare_process();
    if (argc < 2) return print_help(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) return print_help(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        puts("kinora " KN_VERSION);
        return 0;
    }
    bool known;
    const int code = kn_server_child(argc - 1, argv + 1, &known);
    if (known) return code;
    if (strcmp(argv[1], "rank") == 0) return kn_cli_rank(argc - 1, argv + 1);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "kinora: \"%s\" is not a command\n", argv[1]);
    return print_help(stderr);
}
