/* SPDX-License-Identifier: Apache-2.0
 *
 * The operator's side of admin.c: finds the server that has a data directory and asks it; where none runs, opens the
 * store and does what needs no server. */
#define _POSIX_C_SOURCE 200809L

#include <curl/curl.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "engine/config.h"
#include "server/admin_rows.h"
#include "server/keys.h"
#include "server/server.h"

enum { ANSWER_BYTES_MAX = 64 << 20, TIMEOUT_SECONDS = 60 };

struct kn_admin {
    char *data;
    char address[64], authorization[96]; /* "" where no server runs */
    kn_store *store;                     /* where no server runs */
};

/* ---- finding the server ---- */

static kn_status read_address(kn_admin *a, const char *path)
{
    json_error_t problem;
    const char *address, *token;
    json_t *file = json_load_file(path, 0, &problem);
    if (!file || json_unpack(file, "{s:s,s:s}", "address", &address, "token", &token) != 0 ||
        strlen(address) >= sizeof a->address || strlen(token) >= 80) {
        json_decref(file);
        return kn_fail(KN_CORRUPT, "%s is not what a server writes", path);
    }
    snprintf(a->address, sizeof a->address, "%s", address);
    snprintf(a->authorization, sizeof a->authorization, "Authorization: Bearer %s", token);
    json_decref(file);
    return KN_OK;
}

kn_status kn_admin_open(kn_admin **out, const char *data)
{
    kn_status st = KN_OK;
    struct stat there;
    char *path = NULL;
    kn_admin *a = kn_alloc(sizeof *a);
    if (!a) return KN_NOMEM;
    if (stat(data, &there) != 0 || !S_ISDIR(there.st_mode))
        KN_TRY(kn_fail(KN_NOT_FOUND, "--data %s: there is no such directory", data));
    a->data = kn_strdup(data);
    path = kn_format("%s/admin.json", data);
    if (!a->data || !path) {
        st = KN_NOMEM;
        goto fail;
    }
    /* The lock tells whether a server runs; the file alone may be left over from one that was killed. */
    st = kn_store_open(&a->store, &(kn_store_params){.directory = data});
    if (st == KN_UNAVAILABLE) st = read_address(a, path);
    if (st != KN_OK) goto fail;
    *out = a;
    kn_free(path);
    return KN_OK;
fail:
    kn_free(path);
    kn_admin_close(&a);
    return st;
}

void kn_admin_close(kn_admin **admin)
{
    kn_admin *a = *admin;
    if (!a) return;
    kn_store_close(&a->store);
    kn_free(a->data);
    memset(a, 0, sizeof *a);
    kn_free(a);
    *admin = NULL;
}

bool kn_admin_live(const kn_admin *a)
{
    return a->store == NULL;
}

/* ---- over HTTP ---- */

static size_t take_bytes(char *bytes, size_t size, size_t count, void *context)
{
    kn_text *text = context;
    kn_text_append(text, bytes, size * count);
    return kn_text_status(text) == KN_OK ? size * count : 0;
}

static kn_status refusal(long status, const char *body)
{
    json_t *answer = json_loads(body, 0, NULL);
    const char *message = "";
    if (answer) json_unpack(answer, "{s:{s:s}}", "error", "message", &message);
    const kn_status st = kn_fail(status == 404   ? KN_NOT_FOUND
                                 : status >= 500 ? KN_UNAVAILABLE
                                                 : KN_INVALID,
                                 "the server refused (%ld): %s", status, message);
    json_decref(answer);
    return st;
}

static kn_status ask_server(const kn_admin *a, const char *method, const char *path, const char *body, char **answer)
{
    kn_status st = KN_OK;
    long status = 0;
    kn_text text = kn_text_growing(ANSWER_BYTES_MAX);
    char *url = kn_format("%s%s", a->address, path);
    struct curl_slist *headers = curl_slist_append(NULL, a->authorization);
    CURL *curl = curl_easy_init();
    if (!url || !headers || !curl) {
        st = kn_fail(KN_NOMEM, "no memory for a request");
        goto fail;
    }
    headers = curl_slist_append(headers, "Content-Type: application/json");
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)TIMEOUT_SECONDS);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &text);
    if (body) curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    const CURLcode code = curl_easy_perform(curl);
    if (code != CURLE_OK)
        KN_TRY(kn_fail(KN_UNAVAILABLE, "the server at %s does not answer: %s", a->address, curl_easy_strerror(code)));
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) KN_TRY(refusal(status, text.count ? text.bytes : ""));
    *answer = kn_text_take(&text);
    if (!*answer) st = KN_NOMEM;
fail:
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    kn_text_release(&text);
    kn_free(url);
    return st;
}

/* ---- without a server ---- */

static kn_status create_key(kn_admin *a, const char *body, kn_json_writer *w)
{
    kn_status st = KN_OK;
    kn_api_error error;
    kn_pepper pepper = {0};
    kn_secret secret = {0};
    kn_key_row row;
    kn_store_result result = {0};
    if (kn_admin_read_key(&row, body, strlen(body), &error) != KN_OK) KN_TRY(kn_fail(KN_INVALID, "%s", error.message));
    KN_TRY(kn_pepper_open(&pepper, a->data));
    KN_TRY(kn_key_mint(&row, &secret, &pepper));
    KN_TRY(kn_store_perform(a->store, &(kn_store_op){.kind = KN_STORE_KEY_ADD, .key = &row, .actor = "operator"},
                            &result));
    row.created_at = result.at;
    kn_admin_write_key(w, &row, &secret);
fail:
    kn_store_result_release(&result);
    kn_secret_wipe(&secret);
    kn_pepper_wipe(&pepper);
    return st;
}

static kn_status change(kn_admin *a, kn_store_kind kind, const char *id, kn_json_writer *w)
{
    kn_status st = KN_OK;
    kn_store_result result = {0};
    kn_store_op op = {.kind = kind, .id = id, .actor = "operator"};
    if (kind == KN_STORE_FINISH) {
        op.finish.state = KN_JOB_CANCELLED;
        op.finish.code = "cancelled";
        op.finish.message = "The video was cancelled by the operator.";
    }
    KN_TRY(kn_store_perform(a->store, &op, &result));
    if (result.outcome == KN_STORE_NOT_FOUND) KN_TRY(kn_fail(KN_NOT_FOUND, "there is no \"%s\"", id));
    if (result.outcome != KN_STORE_DONE)
        KN_TRY(kn_fail(KN_INVALID, "not from the state it is in: %s", kn_job_state_name(result.state)));
    kn_json_write_object(w);
    kn_json_write_key(w, "ok");
    kn_json_write_bool(w, true);
    kn_json_write_object_end(w);
fail:
    kn_store_result_release(&result);
    return st;
}

static kn_status show_job(kn_admin *a, const char *id, kn_json_writer *w)
{
    kn_job job;
    const kn_status st = kn_store_job_get(a->store, NULL, id, &job);
    if (st != KN_OK) return kn_fail(st, "there is no video \"%s\"", id);
    kn_admin_write_job(w, &job);
    kn_job_release(&job);
    return KN_OK;
}

/* "/admin/jobs/{id}/cancel" and the like. */
static kn_status on_job(kn_admin *a, const char *method, const char *rest, kn_json_writer *w)
{
    char id[KN_JOB_ID_BYTES];
    const size_t length = strcspn(rest, "/");
    snprintf(id, sizeof id, "%.*s", (int)length, rest);
    if (!kn_job_id_valid(id) || length >= sizeof id) return kn_fail(KN_NOT_FOUND, "there is no video \"%s\"", rest);
    if (strcmp(method, "GET") == 0 && rest[length] == '\0') return show_job(a, id, w);
    if (strcmp(rest + length, "/cancel") == 0) return change(a, KN_STORE_FINISH, id, w);
    return change(a, KN_STORE_RETRY, id, w);
}

static kn_status ask_store(kn_admin *a, const char *method, const char *path, const char *body, kn_json_writer *w)
{
    static const char jobs[] = "/admin/jobs/", keys[] = "/admin/keys/";
    const bool get = strcmp(method, "GET") == 0;
    if (get && strncmp(path, "/admin/jobs", 11) == 0 && (path[11] == '\0' || path[11] == '?')) {
        const kn_store_list list = {.limit = 50};
        return kn_admin_write_jobs(w, a->store, &list);
    }
    if (strncmp(path, jobs, sizeof jobs - 1) == 0) return on_job(a, method, path + sizeof jobs - 1, w);
    if (get && strcmp(path, "/admin/keys") == 0) return kn_admin_write_keys(w, a->store);
    if (strcmp(method, "POST") == 0 && strcmp(path, "/admin/keys") == 0) return create_key(a, body, w);
    if (strcmp(method, "DELETE") == 0 && strncmp(path, keys, sizeof keys - 1) == 0)
        return change(a, KN_STORE_KEY_REVOKE, path + sizeof keys - 1, w);
    return kn_fail(KN_UNAVAILABLE, "no server runs on %s", a->data);
}

kn_status kn_admin_ask(kn_admin *a, const char *method, const char *path, const char *body, char **answer)
{
    if (kn_admin_live(a)) return ask_server(a, method, path, body, answer);
    kn_text text = kn_text_growing(ANSWER_BYTES_MAX);
    kn_json_writer w = kn_json_writer_on(&text);
    kn_status st = ask_store(a, method, path, body, &w);
    if (st == KN_OK) st = kn_text_status(&text);
    if (st == KN_OK) {
        *answer = kn_text_take(&text);
        if (!*answer) st = KN_NOMEM;
    }
    kn_text_release(&text);
    return st;
}
