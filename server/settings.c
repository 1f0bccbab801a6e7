/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L /* strnlen */
#include "server/settings.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/config.h"
#include "server/hook_child.h"
#include "server/http.h"
#include "server/moderation.h"
#include "server/toml.h"
#include "server/webhook.h"

typedef enum setting_kind { TEXT, LIST, NUMBER, SWITCH, PRECISION, LOG_FORMAT, LOG_LEVEL, ALIAS } setting_kind;

typedef struct setting {
    const char *name;
    setting_kind kind;
    bool reloads;
    size_t offset;     /* in kn_server_config */
    int64_t low, high; /* NUMBER; LIST: fewest and most items */
    const char *initial;
    const char *placeholder, *help;
} setting;

#define AT(field) offsetof(kn_server_config, field)
#define DAY INT64_C(86400)

static const setting settings[] = {
    {"models", TEXT, false, AT(models), 0, 0, "", "DIR", "folder of model folders"},
    {"data", TEXT, false, AT(data), 0, 0, "", "DIR", "data directory: database, videos, checkpoints"},
    {"listen", LIST, false, AT(listen), 1, KN_HTTP_LISTEN_MAX, "127.0.0.1:8000", "ADDRESS:PORT", "where to listen"},
    {"grpc", LIST, false, AT(grpc), 0, KN_HTTP_LISTEN_MAX, "", "ADDRESS:PORT",
     "where to speak gRPC, and HTTP/1.1 on the same port"},
    {"metrics", TEXT, false, AT(metrics_listen), 0, 0, "", "ADDRESS:PORT",
     "where /metrics is served without a key; otherwise with scope metrics on the addresses above"},
    {"device", LIST, false, AT(devices), 1, KN_SETTING_ITEMS, "auto", "DEVICE",
     "auto (every GPU, or else the CPU), cpu, cuda:0, ...; cpu*4 and cuda:0-7 are several"},
    {"threads", NUMBER, false, AT(threads), 0, 4096, "0", "N",
     "threads of a CPU worker; 0: all cores, shared by the CPU workers"},
    {"degree-max", NUMBER, false, AT(degree_max), 1, KN_SCHEDULER_DEGREE_MAX, "8", "N",
     "devices of one kind that may share a slice; 1: none"},
    {"degree-fixed", NUMBER, false, AT(degree_fixed), 0, KN_SCHEDULER_DEGREE_MAX, "0", "N",
     "1, 2, 4 or 8 devices always work together, for comparison; 0: as many as help most"},
    {"isa", TEXT, false, AT(isa), 0, 0, "", "TIER", "instruction set of a CPU worker; best there is"},
    {"precision", PRECISION, false, AT(precision), 0, 0, "auto", "TYPE", "auto, float32 or bfloat16"},
    {"vae-precision", PRECISION, false, AT(vae_precision), 0, 0, "auto", "TYPE", "auto, float32 or bfloat16"},
    {"tls-cert", TEXT, false, AT(tls_cert), 0, 0, "", "FILE", "certificate chain, PEM; read again on reload"},
    {"tls-key", TEXT, false, AT(tls_key), 0, 0, "", "FILE", "its private key, PEM; read again on reload"},
    {"tls-client-ca", TEXT, false, AT(tls_client_ca), 0, 0, "", "FILE", "clients must have a certificate of these"},
    {"keys", SWITCH, false, AT(keys), 0, 0, "false", "BOOL", "ask for API keys even while there are none"},
    {"region", TEXT, false, AT(region), 0, 0, "", "NAME", "where this server is; keys may bind jobs to a region"},
    {"alias", ALIAS, false, 0, 0, 0, "", "NAME=MODEL", "another name for a model; [aliases] in the file"},
    {"requests-per-minute", NUMBER, true, AT(requests_per_minute), 0, 1000000, "0", "N",
     "of a key without a rate of its own; 0: no limit"},
    {"tenant-requests-per-minute", NUMBER, true, AT(tenant_requests_per_minute), 0, 1000000, "0", "N",
     "of all keys of a tenant together; 0: no limit"},
    {"tenant-jobs", NUMBER, true, AT(tenant_jobs), 0, 1000000, "0", "N",
     "queued and running of a tenant, for keys without a limit of their own; 0: no limit"},
    {"tenant-device-seconds", NUMBER, true, AT(tenant_device_seconds), 0, 100000 * DAY, "0", "N",
     "device time of a tenant in a day, for keys without a limit of their own; 0: no limit"},
    {"queue-max", NUMBER, true, AT(queue_max), 1, 1000000, "1024", "N", "jobs that may wait; further ones get 503"},
    {"finished-max", NUMBER, true, AT(finished_max), 1, 1000000, "20000", "N",
     "finished jobs kept in memory, so that polls of them need no disk"},
    {"connections-max", NUMBER, false, AT(connections_max), 1, 1000000, "4096", "N", "open connections"},
    {"grpc-streams-max", NUMBER, false, AT(grpc_streams_max), 1, 65536, "1024", "N", "calls of one gRPC connection"},
    {"grpc-idle-seconds", NUMBER, false, AT(grpc_idle_seconds), 1, DAY, "600", "N",
     "for a gRPC connection without calls, until it is ended"},
    {"grpc-age-seconds", NUMBER, false, AT(grpc_age_seconds), 0, 365 * DAY, "0", "N",
     "life of a gRPC connection, give or take a tenth, so that clients spread anew; 0: no limit"},
    {"upload-bytes-max", NUMBER, true, AT(upload_bytes_max), 1024, KN_HTTP_BODY_BYTES_MAX, "67108864", "N",
     "of one request's body"},
    {"event-streams-max", NUMBER, true, AT(event_streams_max), 0, 100000, "256", "N", "clients that follow events"},
    {"checkpoint-interval-ms", NUMBER, false, AT(checkpoint_interval_ms), 0, 3600000, "2000", "N",
     "between checkpoints of a running job; 0: after every step"},
    {"retention-seconds", NUMBER, true, AT(retention_seconds), 60, 36500 * DAY, "86400", "N",
     "how long a finished video is kept"},
    {"history-seconds", NUMBER, true, AT(history_seconds), 0, 36500 * DAY, "2592000", "N",
     "how long a failed, cancelled or expired job is remembered, a day at least; 0: for ever"},
    {"reserve-bytes", NUMBER, false, AT(reserve_bytes), 0, INT64_C(1) << 40, "16777216", "N",
     "disk space kept to finish what was accepted when the disk is full; 0: none"},
    {"job-attempts-max", NUMBER, true, AT(job_attempts_max), 1, 100, "2", "N",
     "workers a job may take with it before it fails"},
    {"drain-seconds", NUMBER, true, AT(drain_seconds), 0, 7 * DAY, "30", "N",
     "for running jobs to end before they are checkpointed, on SIGTERM"},
    {"log-format", LOG_FORMAT, true, AT(log_format), 0, 0, "timed", "FORMAT", "timed, text or json"},
    {"log-level", LOG_LEVEL, true, AT(log_level), 0, 0, "info", "LEVEL", "debug, info, warning or error"},
    {"webhooks", SWITCH, true, AT(webhooks), 0, 0, "true", "BOOL", "may clients register webhooks?"},
    {"webhook-development", SWITCH, false, AT(webhook_development), 0, 0, "false", "BOOL",
     "http:// too; never on a server others can reach"},
    {"webhook-allow", LIST, false, AT(webhook_allow), 0, KN_WEBHOOK_ALLOW_MAX, "", "HOST:PORT",
     "receivers whose address may be private"},
    {"webhook-ca", TEXT, false, AT(webhook_ca), 0, 0, "", "FILE", "authorities to trust instead of the system's"},
    {"moderation-prompt-hook", LIST, false, AT(moderation_prompt_hook), 0, KN_MODERATION_ARGUMENTS, "", "PROGRAM",
     "asked about every prompt, or a URL; again for each argument"},
    {"moderation-output-hook", LIST, false, AT(moderation_output_hook), 0, KN_MODERATION_ARGUMENTS, "", "PROGRAM",
     "asked about every video, or a URL; again for each argument"},
    {"moderation-allow", LIST, false, AT(moderation_allow), 0, KN_WEBHOOK_ALLOW_MAX, "", "HOST:PORT",
     "services at URLs that may have private addresses and speak http://"},
    {"moderation-ca", TEXT, false, AT(moderation_ca), 0, 0, "", "FILE", "authorities to trust instead of the system's"},
    {"moderation-time-limit-ms", NUMBER, false, AT(moderation_time_limit_ms), 1, 600000, "10000", "N",
     "for a hook's answer"},
    {"moderation-running-max", NUMBER, false, AT(moderation_running_max), 1, KN_MODERATION_RUNNING_MAX, "4", "N",
     "hooks at the same time"},
    {"moderation-fail-open", SWITCH, false, AT(moderation_fail_open), 0, 0, "false", "BOOL",
     "a hook that fails lets pass"},
};

enum { SETTINGS = sizeof settings / sizeof *settings };
enum { FLAGS_MAX = 1024 };

/* One flag of the command line, kept to be applied again before a reload. */
typedef struct flag {
    char *name, *value;
} flag;

struct kn_setting_origins {
    bool by_flag[SETTINGS];
    size_t alias_flags; /* the first aliases came from flags */
    flag *flags;
    size_t flag_count;
};

static void *field_of(kn_server_config *config, const setting *s)
{
    return (char *)config + s->offset;
}

/* ---- one value ---- */

static void clear_list(kn_setting_list *list)
{
    for (size_t i = 0; i < list->count; i++) kn_free(list->items[i]);
    *list = (kn_setting_list){0};
}

static kn_status copy_text(char **out, const char *name, const char *value)
{
    if (strnlen(value, KN_SETTING_BYTES) == KN_SETTING_BYTES)
        return kn_fail(KN_INVALID, "%s: more than %d bytes", name, KN_SETTING_BYTES - 1);
    *out = kn_strdup(value);
    return *out ? KN_OK : KN_NOMEM;
}

static kn_status append(kn_setting_list *list, const setting *s, const char *value)
{
    if (!*value) return kn_fail(KN_INVALID, "%s: an empty item", s->name);
    if ((int64_t)list->count == s->high)
        return kn_fail(KN_INVALID, "%s: more than %" PRId64 " items", s->name, s->high);
    kn_status st = copy_text(&list->items[list->count], s->name, value);
    list->count += st == KN_OK;
    return st;
}

static kn_status set_text(char **field, const setting *s, const char *value)
{
    char *copy = NULL;
    kn_status st = *value ? copy_text(&copy, s->name, value) : KN_OK;
    if (st != KN_OK) return st;
    kn_free(*field);
    *field = copy;
    return KN_OK;
}

static kn_status set_number(int64_t *field, const setting *s, int64_t value)
{
    if (value < s->low || value > s->high)
        return kn_fail(KN_INVALID, "%s: %" PRId64 " is outside %" PRId64 " to %" PRId64, s->name, value, s->low,
                       s->high);
    *field = value;
    return KN_OK;
}

static kn_status parse_number(int64_t *out, const setting *s, const char *value)
{
    char *end;
    errno = 0;
    long long number = strtoll(value, &end, 10);
    if ((*value != '-' && (*value < '0' || *value > '9')) || *end || errno)
        return kn_fail(KN_INVALID, "%s: \"%.40s\" is not a whole number", s->name, value);
    *out = number;
    return KN_OK;
}

static kn_status parse_precision(kn_precision *out, const setting *s, const char *value)
{
    static const char *const names[] = {
        [KN_PRECISION_AUTO] = "auto", [KN_PRECISION_FLOAT32] = "float32", [KN_PRECISION_BFLOAT16] = "bfloat16"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], value) != 0) continue;
        *out = (kn_precision)i;
        return KN_OK;
    }
    return kn_fail(KN_INVALID, "%s: precisions are auto, float32 and bfloat16", s->name);
}

static bool name_valid(const char *name, const char *alphabet)
{
    size_t bytes = strlen(name);
    return bytes && bytes < KN_MODEL_NAME_BYTES && name[0] != '.' && name[0] != '-' && strspn(name, alphabet) == bytes;
}

static kn_status put_alias(kn_server_config *config, const char *name, const char *model, bool by_flag)
{
#define LOWER "abcdefghijklmnopqrstuvwxyz0123456789._-"
    if (!name_valid(name, LOWER "ABCDEFGHIJKLMNOPQRSTUVWXYZ/"))
        return kn_fail(KN_INVALID, "alias \"%.80s\": a name is 1 to %d characters of [A-Za-z0-9._/-]", name,
                       KN_MODEL_NAME_BYTES - 1);
    if (!name_valid(model, LOWER))
        return kn_fail(KN_INVALID, "alias %s: a model is 1 to %d characters of [a-z0-9._-]", name,
                       KN_MODEL_NAME_BYTES - 1);
#undef LOWER
    size_t i = 0;
    while (i < config->alias_count && strcmp(config->aliases[i].name, name) != 0) i++;
    if (!by_flag && i < config->origins->alias_flags) return KN_OK; /* the command line wins */
    if (i == KN_CATALOG_ALIASES_MAX) return kn_fail(KN_INVALID, "more than %d aliases", KN_CATALOG_ALIASES_MAX);
    if (by_flag && i == config->alias_count && i > config->origins->alias_flags)
        return kn_fail(KN_BUG, "the flag alias after the file");
    config->aliases[i] = (kn_catalog_alias){0};
    snprintf(config->aliases[i].name, sizeof config->aliases[i].name, "%s", name);
    snprintf(config->aliases[i].model, sizeof config->aliases[i].model, "%s", model);
    if (i == config->alias_count) config->alias_count++;
    if (by_flag) config->origins->alias_flags = config->alias_count;
    return KN_OK;
}

/* A value as it is typed. Lists grow by it. */
static kn_status set_typed(kn_server_config *config, const setting *s, const char *value)
{
    void *field = field_of(config, s);
    kn_status st = KN_OK;
    switch (s->kind) {
    case TEXT: return set_text(field, s, value);
    case LIST: return append(field, s, value);
    case NUMBER: {
        int64_t number = 0;
        st = parse_number(&number, s, value);
        return st == KN_OK ? set_number(field, s, number) : st;
    }
    case SWITCH:
        if (strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
            return kn_fail(KN_INVALID, "%s: true or false", s->name);
        *(bool *)field = strcmp(value, "true") == 0;
        return KN_OK;
    case PRECISION: return parse_precision(field, s, value);
    case LOG_FORMAT: st = kn_log_format_parse(field, value); break;
    case LOG_LEVEL: st = kn_log_level_parse(field, value); break;
    case ALIAS: {
        kn_catalog_alias pair = {0};
        size_t bytes = strcspn(value, "=");
        if (!value[bytes] || bytes >= sizeof pair.name) return kn_fail(KN_INVALID, "alias: NAME=MODEL was expected");
        memcpy(pair.name, value, bytes);
        return put_alias(config, pair.name, value + bytes + 1, true);
    }
    }
    return st == KN_OK ? st : kn_fail_context(st, "%s", s->name);
}

/* ---- the whole ---- */

kn_status kn_server_config_create(kn_server_config **out)
{
    kn_status st = KN_OK;
    kn_server_config *config = kn_alloc(sizeof *config);
    if (!config) return KN_NOMEM;
    config->origins = kn_alloc(sizeof *config->origins);
    if (!config->origins) KN_TRY(KN_NOMEM);
    for (size_t i = 0; i < SETTINGS; i++)
        if (settings[i].initial[0]) KN_TRY(set_typed(config, &settings[i], settings[i].initial));
    *out = config;
    return KN_OK;

fail:
    kn_server_config_destroy(&config);
    return st;
}

void kn_server_config_destroy(kn_server_config **config)
{
    if (!config || !*config) return;
    for (size_t i = 0; i < SETTINGS; i++) {
        void *field = field_of(*config, &settings[i]);
        if (settings[i].kind == TEXT) kn_free(*(char **)field);
        if (settings[i].kind == LIST) clear_list(field);
    }
    struct kn_setting_origins *origins = (*config)->origins;
    for (size_t i = 0; origins && i < origins->flag_count; i++) {
        kn_free(origins->flags[i].name);
        kn_free(origins->flags[i].value);
    }
    if (origins) kn_free(origins->flags);
    kn_free(origins);
    kn_free(*config);
    *config = NULL;
}

static kn_status remember_flag(struct kn_setting_origins *origins, const char *name, const char *value)
{
    if (origins->flag_count == FLAGS_MAX) return kn_fail(KN_INVALID, "more than %d flags", FLAGS_MAX);
    flag *grown = kn_realloc(origins->flags, (origins->flag_count + 1) * sizeof *grown);
    if (!grown) return KN_NOMEM;
    origins->flags = grown;
    flag one = {.name = kn_strdup(name), .value = kn_strdup(value)};
    if (!one.name || !one.value) {
        kn_free(one.name);
        kn_free(one.value);
        return KN_NOMEM;
    }
    grown[origins->flag_count++] = one;
    return KN_OK;
}

kn_status kn_server_config_flag(kn_server_config *config, const char *name, const char *value)
{
    for (size_t i = 0; i < SETTINGS; i++) {
        const setting *s = &settings[i];
        if (strcmp(s->name, name) != 0) continue;
        if (s->kind == LIST && !config->origins->by_flag[i]) clear_list(field_of(config, s));
        config->origins->by_flag[i] = true;
        kn_status st = set_typed(config, s, value);
        return st == KN_OK ? remember_flag(config->origins, name, value) : kn_fail_context(st, "--%s", name);
    }
    return kn_fail(KN_NOT_FOUND, "there is no setting %s", name);
}

/* The setting a file's key names: the same words, joined by _. */
static const setting *setting_of_key(const char *key)
{
    for (size_t i = 0; i < SETTINGS; i++) {
        const char *name = settings[i].name, *k = key;
        while (*name && (*k == '_' ? '-' : *k == '-' ? '\0' : *k) == *name) name++, k++;
        if (!*name && !*k && settings[i].kind != ALIAS) return &settings[i];
    }
    return NULL;
}

static kn_toml_kind wanted_kind(setting_kind kind)
{
    return kind == LIST     ? KN_TOML_LIST
           : kind == NUMBER ? KN_TOML_INTEGER
           : kind == SWITCH ? KN_TOML_BOOLEAN
                            : KN_TOML_STRING;
}

static kn_status set_from_file(void *context, const kn_toml_entry *entry)
{
    kn_server_config *config = context;
    if (strcmp(entry->section, "aliases") == 0) {
        if (entry->kind != KN_TOML_STRING)
            return kn_fail(KN_INVALID, "alias %s: a model's name was expected", entry->key);
        return put_alias(config, entry->key, entry->text, false);
    }
    if (entry->section[0]) return kn_fail(KN_INVALID, "there is no section [%s]; there is [aliases]", entry->section);
    const setting *s = setting_of_key(entry->key);
    if (!s) return kn_fail(KN_INVALID, "there is no setting %s", entry->key);
    kn_toml_kind wanted = wanted_kind(s->kind);
    if (entry->kind != wanted)
        return kn_fail(KN_INVALID, "%s is %s; it must be %s", entry->key, kn_toml_kind_name(entry->kind),
                       kn_toml_kind_name(wanted));
    /* A value that the command line overrides must be valid all the same. */
    kn_server_config scratch = {.origins = config->origins};
    bool hidden = config->origins->by_flag[s - settings];
    kn_server_config *into = hidden ? &scratch : config;
    void *field = field_of(into, s);
    kn_status st = KN_OK;
    if (wanted == KN_TOML_LIST) {
        if ((int64_t)entry->item_count < s->low) return kn_fail(KN_INVALID, "%s: an empty list", entry->key);
        clear_list(field);
        for (size_t i = 0; i < entry->item_count && st == KN_OK; i++) st = append(field, s, entry->items[i]);
    } else if (wanted == KN_TOML_INTEGER) {
        st = set_number(field, s, entry->integer);
    } else if (wanted == KN_TOML_BOOLEAN) {
        *(bool *)field = entry->boolean;
    } else {
        st = set_typed(into, s, entry->text);
    }
    if (hidden && s->kind == TEXT) kn_free(*(char **)field);
    if (hidden && s->kind == LIST) clear_list(field);
    return st;
}

kn_status kn_server_config_parse(kn_server_config *config, const char *text, size_t bytes, const char *origin)
{
    kn_status st = kn_toml_parse(text, bytes, set_from_file, config);
    return st == KN_OK ? st : kn_fail_context(st, "%s", origin);
}

kn_status kn_server_config_read(kn_server_config *config, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    kn_status st = kn_file_read(&text, &bytes, path, KN_TOML_BYTES);
    if (st == KN_OK) st = kn_server_config_parse(config, text, bytes, path);
    kn_free(text);
    return st;
}

static kn_status check_moderation(const kn_server_config *config)
{
    kn_webhook_url url;
    const kn_setting_list *const hooks[] = {&config->moderation_prompt_hook, &config->moderation_output_hook};
    for (size_t i = 0; i < config->moderation_allow.count; i++) {
        const kn_status st = kn_webhook_check_allow(config->moderation_allow.items[i]);
        if (st != KN_OK) return kn_fail_context(st, "moderation-allow");
    }
    for (size_t i = 0; i < 2; i++) {
        const char *stage = i ? "output" : "prompt", *first = hooks[i]->count ? hooks[i]->items[0] : NULL;
        if (!first) continue;
        if (kn_settings_hook_is_url(hooks[i])) {
            const kn_status st = kn_hook_url_parse(&url, first, (const char *const *)config->moderation_allow.items,
                                                   config->moderation_allow.count);
            if (st != KN_OK) return kn_fail_context(st, "moderation-%s-hook", stage);
            if (hooks[i]->count > 1) return kn_fail(KN_INVALID, "moderation-%s-hook: a URL takes no arguments", stage);
        } else if (first[0] != '/') {
            return kn_fail(KN_INVALID, "moderation-%s-hook: %s is not an absolute path", stage, first);
        }
    }
    return KN_OK;
}

bool kn_settings_hook_is_url(const kn_setting_list *hook)
{
    const char *first = hook->count > 0 ? hook->items[0] : "";
    return strncmp(first, "https://", 8) == 0 || strncmp(first, "http://", 7) == 0;
}

kn_status kn_server_config_check(const kn_server_config *config)
{
    kn_status st = KN_OK;
    if (!config->models) return kn_fail(KN_INVALID, "models: give the folder of models (--models DIR)");
    if (!config->data) return kn_fail(KN_INVALID, "data: give the data directory (--data DIR)");
    if (!config->tls_cert != !config->tls_key)
        return kn_fail(KN_INVALID, "%s is missing: tls-cert and tls-key belong together",
                       config->tls_cert ? "tls-key" : "tls-cert");
    if (config->history_seconds > 0 && config->history_seconds < DAY)
        return kn_fail(KN_INVALID,
                       "history-seconds: %" PRId64 " is less than a day, as long as an idempotency key is kept",
                       config->history_seconds);
    if (config->tls_client_ca && !config->tls_cert)
        return kn_fail(KN_INVALID, "tls-client-ca needs tls-cert and tls-key");
    if (config->webhook_development)
        for (size_t i = 0; i < config->listen.count; i++)
            if (!kn_http_address_is_loopback(config->listen.items[i]))
                return kn_fail(KN_INVALID, "webhook-development is for servers that only this machine can reach");
    if (config->webhook_development)
        for (size_t i = 0; i < config->grpc.count; i++)
            if (!kn_http_address_is_loopback(config->grpc.items[i]))
                return kn_fail(KN_INVALID, "webhook-development is for servers that only this machine can reach");
    for (size_t i = 0; i < config->webhook_allow.count; i++) {
        st = kn_webhook_check_allow(config->webhook_allow.items[i]);
        if (st != KN_OK) return kn_fail_context(st, "webhook-allow");
    }
    return check_moderation(config);
}

/* ---- reload ---- */

static bool same_list(const kn_setting_list *a, const kn_setting_list *b)
{
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (strcmp(a->items[i], b->items[i]) != 0) return false;
    return true;
}

static size_t field_bytes(setting_kind kind)
{
    switch (kind) {
    case TEXT: return sizeof(char *);
    case LIST: return sizeof(kn_setting_list);
    case NUMBER: return sizeof(int64_t);
    case SWITCH: return sizeof(bool);
    case PRECISION: return sizeof(kn_precision);
    case LOG_FORMAT: return sizeof(kn_log_format);
    case LOG_LEVEL: return sizeof(kn_log_level);
    case ALIAS: break;
    }
    return 0;
}

static bool same_value(const setting *s, kn_server_config *a, kn_server_config *b)
{
    void *left = field_of(a, s), *right = field_of(b, s);
    const char *l, *r;
    switch (s->kind) {
    case TEXT: l = *(char **)left, r = *(char **)right; return l && r ? strcmp(l, r) == 0 : l == r;
    case LIST: return same_list(left, right);
    case ALIAS:
        return a->alias_count == b->alias_count &&
               memcmp(a->aliases, b->aliases, a->alias_count * sizeof *a->aliases) == 0;
    default: return memcmp(left, right, field_bytes(s->kind)) == 0;
    }
}

/* Gives `fresh` the value of `old` and the other way round, which then owns what is to go. */
static void exchange(const setting *s, kn_server_config *old, kn_server_config *fresh)
{
    if (s->kind == ALIAS) {
        memcpy(fresh->aliases, old->aliases, sizeof old->aliases);
        fresh->alias_count = old->alias_count;
        return;
    }
    char held[sizeof(kn_setting_list)];
    size_t bytes = field_bytes(s->kind);
    memcpy(held, field_of(old, s), bytes);
    memcpy(field_of(old, s), field_of(fresh, s), bytes);
    memcpy(field_of(fresh, s), held, bytes);
}

kn_status kn_server_config_reload(kn_server_config **config, const char *path, char *restart, size_t restart_bytes)
{
    kn_status st = KN_OK;
    kn_server_config *fresh = NULL, *old = *config;
    if (restart && restart_bytes) restart[0] = '\0';
    KN_TRY(kn_server_config_create(&fresh));
    for (size_t i = 0; i < old->origins->flag_count; i++)
        KN_TRY(kn_server_config_flag(fresh, old->origins->flags[i].name, old->origins->flags[i].value));
    if (path) KN_TRY(kn_server_config_read(fresh, path));
    KN_TRY(kn_server_config_check(fresh));
    for (size_t i = 0; i < SETTINGS; i++) {
        const setting *s = &settings[i];
        if (s->reloads || same_value(s, old, fresh)) continue;
        exchange(s, old, fresh);
        size_t used = restart ? strlen(restart) : 0;
        if (restart && used < restart_bytes)
            snprintf(restart + used, restart_bytes - used, "%s%s", used ? ", " : "", s->name);
    }
    kn_server_config_destroy(config);
    *config = fresh;
    return KN_OK;

fail:
    kn_server_config_destroy(&fresh);
    return st;
}

/* ---- usage ---- */

size_t kn_settings_count(void)
{
    return SETTINGS;
}

bool kn_settings_at(size_t index, kn_setting_help *out)
{
    if (index >= SETTINGS) return false;
    const setting *s = &settings[index];
    *out = (kn_setting_help){.name = s->name,
                             .placeholder = s->placeholder,
                             .help = s->help,
                             .initial = s->initial,
                             .reloads = s->reloads,
                             .repeats = s->kind == LIST || s->kind == ALIAS,
                             .is_switch = s->kind == SWITCH};
    return true;
}
