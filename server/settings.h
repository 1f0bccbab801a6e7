/* SPDX-License-Identifier: Apache-2.0
 *
 * The settings of kinora serve: one table of names with kinds, ranges and defaults, read from the command line and from
 * the --config file (server/toml.h).
 *
 * A setting "tls-cert" is the flag --tls-cert and the key tls_cert of the file. The command line wins over the file,
 * the file over the default. Keys the table does not have are refused with their
 * line. A secret is never a setting: at most the name of a file that holds one.
 *
 * A reload (SIGHUP) reads the file again beside the running settings and replaces them only if everything in it is
 * valid; settings that cannot change in a running server are named, so that the operator knows to restart.
 *
 *   models = "/srv/models"
 *   listen = ["0.0.0.0:443"]
 *   tls_cert = "/etc/kinora/cert.pem"
 *   tls_key = "/etc/kinora/key.pem"
 *   log_format = "json"
 *   moderation_prompt_hook = ["/usr/lib/kinora/check-prompt", "--strict"]
 *   [aliases]
 *   "sora-2" = "wan2.1-t2v-1.3b"
 *
 * One thread at a time. */
#ifndef KN_SERVER_SETTINGS_H
#define KN_SERVER_SETTINGS_H

#include "base/log.h"
#include "server/catalog.h"

enum {
    KN_SETTING_ITEMS = 64,  /* values of a list */
    KN_SETTING_BYTES = 4096 /* of one text, with the NUL */
};

/* Texts, NULL-terminated. */
typedef struct kn_setting_list {
    char *items[KN_SETTING_ITEMS + 1];
    size_t count;
} kn_setting_list;

/* Owned by the config; "R": a reload applies it to the running server. Texts are NULL when not set and without
 * default. The comment gives the default. */
typedef struct kn_server_config {
    /* What and where */
    char *models;               /* folder of model folders, or one model folder; required */
    char *data;                 /* data directory; required */
    kn_setting_list listen;     /* "127.0.0.1:8000" */
    kn_setting_list grpc;       /* none; "127.0.0.1:8001" */
    char *metrics_listen;       /* NULL: /metrics on the addresses above, with scope metrics */
    kn_setting_list devices;    /* setting "device": "auto"; or "cpu", "cuda:0", "cpu*4", "cuda:0-7", ... */
    int64_t threads;            /* of a CPU worker; 0: all cores, shared by the CPU workers */
    int64_t degree_max;         /* most devices that share a slice: 8 */
    int64_t degree_fixed;       /* 0; else as kn_scheduler_params.degree_fixed, for comparison */
    char *isa;                  /* NULL: what the processor has */
    kn_precision precision;     /* auto */
    kn_precision vae_precision; /* auto */
    char *tls_cert, *tls_key;   /* PEM files, both or neither; a reload reads the same files again */
    char *tls_client_ca;        /* PEM file; clients must show a certificate signed by it */
    bool keys;                  /* false: API keys are asked for as soon as one exists; true: always */
    char *region;               /* of this server; "" */
    kn_catalog_alias aliases[KN_CATALOG_ALIASES_MAX]; /* [aliases] */
    size_t alias_count;
    /* Limits */
    int64_t requests_per_minute;        /* R: of a key without a rate of its own; 0: no limit */
    int64_t tenant_requests_per_minute; /* R: of all keys of a tenant; 0: no limit */
    int64_t tenant_jobs;                /* R: queued and running, of a key without its own limit; 0: no limit */
    int64_t tenant_device_seconds;      /* R: device time a day, of a key without its own limit; 0: no limit */
    int64_t queue_max;                  /* R: jobs that wait: 1024 */
    int64_t finished_max;               /* R: finished jobs kept in memory for polls: 20000 */
    int64_t connections_max;            /* 4096 */
    int64_t grpc_streams_max;           /* calls of one connection: 1024 */
    int64_t grpc_idle_seconds;          /* of a connection without calls: 600 */
    int64_t grpc_age_seconds;           /* a connection's life: 0, unlimited */
    int64_t upload_bytes_max;           /* R: of one request body: 64 MiB */
    int64_t event_streams_max;          /* R: 256 */
    /* Jobs */
    int64_t checkpoint_interval_ms; /* between checkpoints of a running job: 2000; 0: after every step */
    int64_t retention_seconds;      /* R: of a result: 86400 */
    int64_t history_seconds;        /* R: of a job without a result, after its end: 30 days; 0: for ever */
    int64_t reserve_bytes;          /* of the file given up when the disk is full: 16 MiB; 0: none */
    int64_t job_attempts_max;       /* R: leases that may end in a worker's death: 2 */
    int64_t drain_seconds;          /* R: for running jobs to reach their end before they are checkpointed: 30 */
    /* Logging */
    kn_log_format log_format; /* R: timed */
    kn_log_level log_level;   /* R: info */
    /* Webhooks */
    bool webhooks;                 /* R: true */
    bool webhook_development;      /* false: https only; kn_webhook_policy */
    kn_setting_list webhook_allow; /* "host:port" whose address is not checked; kn_webhook_policy */
    char *webhook_ca;              /* PEM file of the authorities to trust instead of the system's */
    /* Moderation */
    kn_setting_list moderation_prompt_hook; /* program and arguments, or a URL; empty: none */
    kn_setting_list moderation_output_hook;
    kn_setting_list moderation_allow;   /* "host:port" of services at URLs: http:// and private addresses are fine */
    char *moderation_ca;                /* PEM file of the authorities to trust instead of the system's */
    int64_t moderation_time_limit_ms;   /* 10000 */
    int64_t moderation_running_max;     /* 4 */
    bool moderation_fail_open;          /* false */
    struct kn_setting_origins *origins; /* private: the flags, for a reload */
} kn_server_config;

/* All defaults. */
kn_status kn_server_config_create(kn_server_config **out);
void kn_server_config_destroy(kn_server_config **config);

/* A flag: `name` without the dashes, `value` as typed. Lists: the flag again adds an item. Switches take "true" or
 * "false". "alias" takes "sora-2=wan2.1". All flags come before the file. KN_NOT_FOUND: there is no such setting. */
kn_status kn_server_config_flag(kn_server_config *config, const char *name, const char *value);

/* A file, whose values do not override flags. The message names file and line. After a failure the config must not be
 * used. */
kn_status kn_server_config_read(kn_server_config *config, const char *path);

/* The same from memory; `origin` stands for the file name in messages. */
kn_status kn_server_config_parse(kn_server_config *config, const char *text, size_t bytes, const char *origin);

/* What only shows in the whole: required settings, pairs that belong together, addresses that parse. Files are not
 * opened. */
kn_status kn_server_config_check(const kn_server_config *config);

/* A URL rather than a program? */
bool kn_settings_hook_is_url(const kn_setting_list *hook);

/* Reads the file again under the same flags. KN_OK: *config is the new one, the old one destroyed, and `restart` (when
 * not NULL) names the settings, separated by ", ", that differ but need a restart; those keep their old values. Any
 * failure: *config is untouched. */
kn_status kn_server_config_reload(kn_server_config **config, const char *path, char *restart, size_t restart_bytes);

/* ---- the table, for usage texts and the manual ---- */

typedef struct kn_setting_help {
    const char *name;        /* "tls-cert" */
    const char *placeholder; /* "FILE", "N", "BOOL", ... */
    const char *help;        /* one line */
    const char *initial;     /* as it would be typed; "" without */
    bool reloads;            /* a reload applies it */
    bool repeats;            /* the flag may be given again and adds an item */
    bool is_switch;          /* true or false */
} kn_setting_help;

size_t kn_settings_count(void);
/* false past the end. */
bool kn_settings_at(size_t index, kn_setting_help *out);

#endif
