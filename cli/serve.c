/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora serve: the settings of server/settings.h as options. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "server/server.h"

enum { OPTIONS_MAX = 64 };

static kn_status parse_setting(const kn_option *option, const char *text)
{
    return kn_server_config_flag(option->out, option->name, text);
}

/* $XDG_DATA_HOME/kinora, or ~/.local/share/kinora; made with the folders above it. NULL: neither is set. */
static char *default_data(void)
{
    const char *base = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    char *path = base && base[0] == '/'   ? kn_format("%s/kinora", base)
                 : home && home[0] == '/' ? kn_format("%s/.local/share/kinora", home)
                                          : NULL;
    for (char *slash = path ? strchr(path + 1, '/') : NULL; slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700); /* what fails here fails again where the directory is opened */
        *slash = '/';
    }
    return path;
}

char *kn_cli_data(const char *given)
{
    return given ? kn_strdup(given) : default_data();
}

static kn_status parse(kn_server_config *config, int argc, char **argv, const char **file, bool *json)
{
    kn_option options[OPTIONS_MAX];
    kn_setting_help setting;
    size_t count = 0;
    options[count++] =
        (kn_option){"config", 'c', "FILE", "settings as lines of TOML; options win", kn_cli_text, file, NULL};
    options[count++] = (kn_option){"json", 0, NULL, "the ready line as JSON", kn_cli_switch, json, NULL};
    for (size_t i = 0; kn_settings_at(i, &setting) && count < OPTIONS_MAX; i++)
        options[count++] = (kn_option){.name = setting.name,
                                       .argument = setting.placeholder,
                                       .help = setting.help,
                                       .parse = parse_setting,
                                       .letter = KN_CLI_REPEATS,
                                       .out = config};
    return kn_cli_parse(argc, argv, options, count, "serve --models DIR [OPTIONS]", NULL, 0, NULL);
}

int kn_cli_serve(int argc, char **argv)
{
    kn_status st = KN_OK;
    kn_server_config *config = NULL;
    const char *file = NULL;
    bool json = false;
    KN_TRY(kn_server_config_create(&config));
    st = parse(config, argc, argv, &file, &json);
    if (st == KN_CANCELLED) { /* --help */
        kn_server_config_destroy(&config);
        return 0;
    }
    if (st != KN_OK) goto fail;
    if (file) KN_TRY(kn_server_config_read(config, file));
    if (!config->data) {
        char *data = default_data();
        if (data) st = kn_server_config_flag(config, "data", data);
        kn_free(data);
        if (st != KN_OK) goto fail;
    }
    KN_TRY(kn_server_config_check(config));
    const kn_serve_params params = {.config = config, .config_path = file, .json = json};
    config = NULL;
    st = kn_serve(&params);
fail:
    kn_server_config_destroy(&config);
    return kn_cli_end(st, json);
}
