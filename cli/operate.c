/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora jobs, key, status, drain: they ask the server that has the data directory or, where none runs, its store.
 * kinora backup copies the directory. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "server/server.h"

typedef struct settings {
    const char *data;
    bool json;
    const char *words[3]; /* "list"; "show", ID */
    int word_count;
    int32_t limit;
    const char *tenant, *scopes, *priorities, *models, *region;
    int32_t expires_days, max_active, device_seconds, requests;
} settings;

static kn_status parse(settings *s, int argc, char **argv, const char *usage, bool keys)
{
    const kn_option common[] = {
        {"data", 'd', "DIR", "the server's data directory", kn_cli_text, &s->data, NULL},
        {"json", 0, NULL, "the answer as JSON", kn_cli_switch, &s->json, NULL},
        {"limit", 0, "N", "list: newest N", kn_cli_int32, &s->limit, NULL},
        {"tenant", 0, "NAME", "create: whose key it is", kn_cli_text, &s->tenant, NULL},
        {"scopes", 0, "LIST", "create: of submit,read,cancel,admin,metrics", kn_cli_text, &s->scopes, NULL},
        {"priorities", 0, "LIST", "create: of flex,default,priority", kn_cli_text, &s->priorities, NULL},
        {"only-models", 0, "LIST", "create: models it may use", kn_cli_text, &s->models, NULL},
        {"region", 0, "NAME", "create: where its jobs must stay", kn_cli_text, &s->region, NULL},
        {"expires-days", 0, "N", "create: how long it is good for", kn_cli_int32, &s->expires_days, NULL},
        {"max-active", 0, "N", "create: queued and running jobs at a time", kn_cli_int32, &s->max_active, NULL},
        {"device-seconds", 0, "N", "create: device time a day", kn_cli_int32, &s->device_seconds, NULL},
        {"requests", 0, "N", "create: requests a minute", kn_cli_int32, &s->requests, NULL},
    };
    const size_t count = keys ? sizeof common / sizeof *common : 3;
    return kn_cli_parse(argc, argv, common, count, usage, s->words, 3, &s->word_count);
}

/* ---- asking ---- */

static kn_status ask(const settings *s, const char *method, const char *path, const char *body, json_t **answer,
                     char **text)
{
    kn_status st = KN_OK;
    kn_admin *admin = NULL;
    char *data = kn_cli_data(s->data);
    if (!data) return kn_fail(KN_INVALID, "--data is missing");
    KN_TRY(kn_admin_open(&admin, data));
    KN_TRY(kn_admin_ask(admin, method, path, body, text));
    *answer = json_loads(*text, 0, NULL);
    if (!*answer) st = kn_fail(KN_CORRUPT, "the server's answer is not JSON");
fail:
    kn_admin_close(&admin);
    kn_free(data);
    return st;
}

static const char *field(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "-";
}

static void put_time(char out[24], const json_t *value)
{
    const time_t at = (time_t)json_integer_value(value);
    struct tm parts;
    if (!json_is_integer(value) || !gmtime_r(&at, &parts) || strftime(out, 24, "%Y-%m-%d %H:%M:%SZ", &parts) == 0)
        memcpy(out, "-", 2);
}

/* ---- jobs ---- */

static void print_jobs(const json_t *answer)
{
    size_t index;
    const json_t *job;
    printf("%-38s  %-9s  %-8s  %-16s  %-20s  %8s  %s\n", "id", "state", "priority", "model", "created", "device s",
           "error");
    json_array_foreach(json_object_get(answer, "data"), index, job)
    {
        char created[24];
        put_time(created, json_object_get(job, "created_at"));
        printf("%-38s  %-9s  %-8s  %-16s  %-20s  %8.2f  %s\n", field(job, "id"), field(job, "state"),
               field(job, "priority"), field(job, "model"), created,
               json_number_value(json_object_get(job, "device_seconds")), field(job, "error_code"));
    }
}

static void print_object(const json_t *answer)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)answer, name, value)
    {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
        if (json_is_string(value))
            printf("%-24s%s\n", name, json_string_value(value));
        else if (text && !json_is_null(value))
            printf("%-24s%s\n", name, text);
        kn_free(text); /* jansson allocates with kn_alloc here */
    }
}

static kn_status run_jobs(const settings *s, json_t **answer, char **text)
{
    kn_status st = KN_OK;
    char *path = NULL;
    const char *verb = s->word_count > 0 ? s->words[0] : "list";
    const bool list = strcmp(verb, "list") == 0, show = strcmp(verb, "show") == 0;
    if (!list && !show && strcmp(verb, "cancel") != 0 && strcmp(verb, "retry") != 0)
        return kn_fail(KN_INVALID, "\"%s\": jobs list, show ID, cancel ID or retry ID", verb);
    if (list ? s->word_count > 1 : s->word_count != 2)
        return kn_fail(KN_INVALID, "jobs %s takes %s", verb, list ? "no id" : "one id");
    path = list   ? kn_format("/admin/jobs?limit=%d", s->limit ? s->limit : 50)
           : show ? kn_format("/admin/jobs/%s", s->words[1])
                  : kn_format("/admin/jobs/%s/%s", s->words[1], verb);
    if (!path) return KN_NOMEM;
    KN_TRY(ask(s, list || show ? "GET" : "POST", path, list || show ? NULL : "", answer, text));
    if (s->json) goto fail;
    if (list)
        print_jobs(*answer);
    else
        print_object(*answer);
fail:
    kn_free(path);
    return st;
}

/* ---- keys ---- */

static void print_keys(const json_t *answer)
{
    size_t index;
    const json_t *key;
    printf("%-14s  %-16s  %-26s  %-20s  %-20s  %s\n", "id", "tenant", "scopes", "created", "expires", "revoked");
    json_array_foreach(json_object_get(answer, "data"), index, key)
    {
        char created[24], expires[24], revoked[24];
        put_time(created, json_object_get(key, "created_at"));
        put_time(expires, json_object_get(key, "expires_at"));
        put_time(revoked, json_object_get(key, "revoked_at"));
        printf("%-14s  %-16s  %-26s  %-20s  %-20s  %s\n", field(key, "id"), field(key, "tenant"), field(key, "scopes"),
               created, expires, revoked);
    }
}

static void set_text(json_t *body, const char *name, const char *text)
{
    if (text) json_object_set_new(body, name, json_string(text));
}

static void set_count(json_t *body, const char *name, int64_t count)
{
    if (count) json_object_set_new(body, name, json_integer(count));
}

static kn_status create_key(const settings *s, json_t **answer, char **text)
{
    json_t *body = json_object();
    set_text(body, "tenant", s->tenant ? s->tenant : "default");
    set_text(body, "scopes", s->scopes);
    set_text(body, "priorities", s->priorities);
    set_text(body, "models", s->models);
    set_text(body, "region", s->region);
    set_count(body, "expires_at", s->expires_days ? (int64_t)time(NULL) + INT64_C(86400) * s->expires_days : 0);
    set_count(body, "max_active", s->max_active);
    set_count(body, "device_seconds_per_day", s->device_seconds);
    set_count(body, "requests_per_minute", s->requests);
    char *json = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    if (!json) return kn_fail(KN_NOMEM, "no memory for a request");
    const kn_status st = ask(s, "POST", "/admin/keys", json, answer, text);
    kn_free(json);
    if (st != KN_OK || s->json) return st;
    fprintf(stderr, "key %s of tenant %s; it is shown this once\n", field(*answer, "id"), field(*answer, "tenant"));
    printf("%s\n", field(*answer, "key"));
    return KN_OK;
}

static kn_status run_key(const settings *s, json_t **answer, char **text)
{
    kn_status st = KN_OK;
    char *path = NULL;
    const char *verb = s->word_count > 0 ? s->words[0] : "";
    if (strcmp(verb, "create") == 0 && s->word_count == 1) return create_key(s, answer, text);
    if (strcmp(verb, "list") == 0 && s->word_count == 1) {
        KN_TRY(ask(s, "GET", "/admin/keys", NULL, answer, text));
        if (!s->json) print_keys(*answer);
        return KN_OK;
    }
    if (strcmp(verb, "revoke") != 0 || s->word_count != 2)
        return kn_fail(KN_INVALID, "key create [OPTIONS], key list or key revoke ID");
    path = kn_format("/admin/keys/%s", s->words[1]);
    if (!path) return KN_NOMEM;
    KN_TRY(ask(s, "DELETE", path, NULL, answer, text));
    if (!s->json) printf("revoked %s\n", s->words[1]);
fail:
    kn_free(path);
    return st;
}

/* ---- status, drain ---- */

static kn_status run_status(const settings *s, json_t **answer, char **text)
{
    kn_status st = KN_OK;
    size_t index;
    const json_t *device;
    KN_TRY(ask(s, "GET", "/admin/status", NULL, answer, text));
    if (s->json) return KN_OK;
    json_t *devices = json_incref(json_object_get(*answer, "devices"));
    json_object_del(*answer, "devices");
    print_object(*answer);
    json_array_foreach(devices, index, device) printf(
        "device %-17s%s, %s, %lld jobs, %lld slices, %lld deaths\n", field(device, "name"), field(device, "state"),
        field(device, "description"), (long long)json_integer_value(json_object_get(device, "jobs")),
        (long long)json_integer_value(json_object_get(device, "slices")),
        (long long)json_integer_value(json_object_get(device, "deaths")));
    json_decref(devices);
fail:
    return st;
}

static kn_status run_drain(const settings *s, json_t **answer, char **text)
{
    const kn_status st = ask(s, "POST", "/admin/drain", "", answer, text);
    if (st == KN_OK && !s->json) printf("draining\n");
    return st;
}

static int operate(int argc, char **argv, const char *usage, bool keys,
                   kn_status (*run)(const settings *, json_t **, char **))
{
    settings s = {0};
    json_t *answer = NULL;
    char *text = NULL;
    kn_status st = parse(&s, argc, argv, usage, keys);
    if (st == KN_CANCELLED) return 0; /* --help */
    if (st == KN_OK) st = run(&s, &answer, &text);
    if (st == KN_OK && s.json) printf("%s\n", text);
    json_decref(answer);
    kn_free(text);
    return kn_cli_end(st, s.json);
}

int kn_cli_jobs(int argc, char **argv)
{
    return operate(argc, argv, "jobs list | show ID | cancel ID | retry ID [OPTIONS]", false, run_jobs);
}

int kn_cli_key(int argc, char **argv)
{
    return operate(argc, argv, "key create | list | revoke ID [OPTIONS]", true, run_key);
}

int kn_cli_status(int argc, char **argv)
{
    return operate(argc, argv, "status [OPTIONS]", false, run_status);
}

int kn_cli_drain(int argc, char **argv)
{
    return operate(argc, argv, "drain [OPTIONS]", false, run_drain);
}

/* ---- backup ---- */

static void print_backup(const kn_backup_report *r, const char *destination, bool json)
{
    char bytes[16];
    if (json) {
        printf("{\"event\":\"backup\",\"destination\":");
        kn_cli_put_json_string(stdout, destination);
        printf(",\"jobs\":%" PRId64 ",\"unfinished\":%" PRId64 ",\"files\":%" PRId64 ",\"bytes\":%" PRIu64
               ",\"gone\":%" PRId64 ",\"damaged\":%" PRId64 ",\"audit_sequence\":%" PRId64
               ",\"audit_hash\":\"%s\",\"live\":%s}\n",
               r->jobs, r->unfinished, r->files, r->bytes, r->gone, r->damaged, r->audit_sequence, r->audit_hash,
               r->live ? "true" : "false");
        return;
    }
    printf("%s: %" PRId64 " jobs (%" PRId64 " unfinished), %" PRId64 " files, %s\n", destination, r->jobs,
           r->unfinished, r->files, kn_cli_bytes(bytes, r->bytes));
    printf("audit log: %" PRId64 " records, the last one %s\n", r->audit_sequence, r->audit_hash);
    if (r->gone) printf("%" PRId64 " videos were removed meanwhile; their jobs are expired in the copy\n", r->gone);
    if (r->damaged) printf("%" PRId64 " videos are damaged, in the data directory itself\n", r->damaged);
}

int kn_cli_backup(int argc, char **argv)
{
    const char *given = NULL, *destination = NULL;
    bool json = false;
    int count = 0;
    char *data = NULL;
    kn_backup_report report;
    const kn_option options[] = {
        {"data", 'd', "DIR", "the server's data directory", kn_cli_text, &given, NULL},
        {"json", 0, NULL, "the answer as JSON", kn_cli_switch, &json, NULL},
    };
    kn_status st = kn_cli_parse(argc, argv, options, sizeof options / sizeof *options, "backup DIR [OPTIONS]",
                                &destination, 1, &count);
    if (st == KN_CANCELLED) return 0; /* --help */
    if (st == KN_OK && count != 1) st = kn_fail(KN_INVALID, "backup takes the directory to make");
    if (st == KN_OK) {
        data = kn_cli_data(given);
        st = data ? kn_backup(data, destination, &report) : kn_fail(KN_INVALID, "--data is missing");
    }
    if (st == KN_OK) print_backup(&report, destination, json);
    kn_free(data);
    return kn_cli_end(st, json);
}
