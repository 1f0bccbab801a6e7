/* SPDX-License-Identifier: Apache-2.0
 *
 * A client of the Videos API in C, as an example to copy from: libcurl for HTTP, jansson for the answers.
 *
 *   cc -o kinora_video kinora_video.c $(pkg-config --cflags --libs libcurl jansson)
 *   ./kinora_video http://127.0.0.1:8000 "a red ball rebounds off a backboard" ball.mp4 size=416x240 num_frames=17
 *
 * It submits under an idempotency key, so that a request that is sent again makes no second job; asks again as often as
 * the server says; and downloads to FILE.part, going on where a broken connection stopped. KINORA_API_KEY is sent where
 * it is set. Exit status: 0, 1: it failed, 2: usage. */
#define _POSIX_C_SOURCE 200809L
#include <curl/curl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { ANSWER_BYTES_MAX = 1 << 20, TRIES = 5 };

/* ---- answers ---- */

typedef struct answer {
    char bytes[ANSWER_BYTES_MAX];
    size_t count;
    long status;
    long poll_after_ms;
} answer;

static size_t take_body(char *bytes, size_t size, size_t count, void *context)
{
    answer *a = context;
    if (size * count > sizeof a->bytes - a->count) return 0; /* curl ends the transfer */
    memcpy(a->bytes + a->count, bytes, size * count);
    a->count += size * count;
    return size * count;
}

static size_t take_header(char *line, size_t size, size_t count, void *context)
{
    static const char name[] = "openai-poll-after-ms:";
    answer *a = context;
    if (size * count > sizeof name && strncmp(line, name, sizeof name - 1) == 0)
        a->poll_after_ms = strtol(line + sizeof name - 1, NULL, 10);
    return size * count;
}

/* The error's message and field, or what else there is to say. */
static void report(const char *what, const answer *a)
{
    json_t *root = json_loadb(a->bytes, a->count, 0, NULL);
    const json_t *error = json_object_get(root, "error");
    const char *message = json_string_value(json_object_get(error, "message"));
    const char *field = json_string_value(json_object_get(error, "param"));
    fprintf(stderr, "%s: %ld: %s%s%s\n", what, a->status, message ? message : "no reason given",
            field ? ", field " : "", field ? field : "");
    json_decref(root);
}

/* ---- requests ---- */

typedef struct client {
    CURL *curl;
    struct curl_slist *headers; /* of every request */
    char base[512];
} client;

static int begin(client *c, const char *base)
{
    unsigned char random[16];
    char line[512] = "Idempotency-Key: ";
    const char *key = getenv("KINORA_API_KEY");
    if (getrandom(random, sizeof random, 0) != sizeof random) return 0;
    for (size_t i = 0; i < sizeof random; i++) snprintf(line + strlen(line), 3, "%02x", random[i]);
    c->headers = curl_slist_append(NULL, line);
    if (key) {
        snprintf(line, sizeof line, "Authorization: Bearer %s", key);
        c->headers = curl_slist_append(c->headers, line);
    }
    snprintf(c->base, sizeof c->base, "%s", base);
    c->curl = curl_easy_init();
    return c->curl != NULL;
}

/* GET, or POST where there is a form. Returns whether an answer came; its status may be any. */
static int ask(client *c, const char *path, curl_mime *form, answer *a)
{
    char url[1024];
    snprintf(url, sizeof url, "%s%s", c->base, path);
    a->count = 0;
    a->poll_after_ms = 1000;
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, a);
    curl_easy_setopt(c->curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(c->curl, CURLOPT_HEADERDATA, a);
    if (form)
        curl_easy_setopt(c->curl, CURLOPT_MIMEPOST, form);
    else
        curl_easy_setopt(c->curl, CURLOPT_HTTPGET, 1L);
    const CURLcode code = curl_easy_perform(c->curl);
    if (code != CURLE_OK) {
        fprintf(stderr, "%s: %s\n", url, curl_easy_strerror(code));
        return 0;
    }
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &a->status);
    return 1;
}

static void pause_ms(long ms)
{
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* ---- a video ---- */

/* The job's id; fields are "name=value". */
static int submit(client *c, const char *prompt, char *const *fields, int count, char *id, size_t room, answer *a)
{
    curl_mime *form = curl_mime_init(c->curl);
    curl_mimepart *part = curl_mime_addpart(form);
    int answered = 0;
    curl_mime_name(part, "prompt");
    curl_mime_data(part, prompt, CURL_ZERO_TERMINATED);
    for (int i = 0; i < count; i++) {
        char name[64];
        const size_t length = strcspn(fields[i], "=");
        snprintf(name, sizeof name, "%.*s", (int)(length < 63 ? length : 63), fields[i]);
        part = curl_mime_addpart(form);
        curl_mime_name(part, name);
        curl_mime_data(part, fields[i] + length + (fields[i][length] == '='), CURL_ZERO_TERMINATED);
    }
    for (int i = 0; i < TRIES && !answered; i++) { /* the same key: at most one job */
        answered = ask(c, "/v1/videos", form, a) && a->status != 503;
        if (!answered) pause_ms(1000);
    }
    curl_mime_free(form);
    if (!answered || a->status != 200) {
        report("submit", a);
        return 0;
    }
    json_t *root = json_loadb(a->bytes, a->count, 0, NULL);
    const char *given = json_string_value(json_object_get(root, "id"));
    if (given) snprintf(id, room, "%s", given);
    json_decref(root);
    return given != NULL;
}

/* 1: it is finished, 0: it failed. */
static int wait_for(client *c, const char *id, answer *a)
{
    char path[128], status[32] = "";
    snprintf(path, sizeof path, "/v1/videos/%s", id);
    for (int failures = 0; failures < TRIES;) {
        if (!ask(c, path, NULL, a) || a->status != 200) {
            failures++;
            pause_ms(1000);
            continue;
        }
        failures = 0;
        json_t *root = json_loadb(a->bytes, a->count, 0, NULL);
        const char *given = json_string_value(json_object_get(root, "status"));
        snprintf(status, sizeof status, "%s", given ? given : "");
        fprintf(stderr, "%s %s %d %%\n", id, status, (int)json_integer_value(json_object_get(root, "progress")));
        json_decref(root);
        if (strcmp(status, "completed") == 0) return 1;
        if (strcmp(status, "failed") == 0) break;
        pause_ms(a->poll_after_ms);
    }
    report(id, a);
    return 0;
}

static int download(client *c, const char *id, const char *file)
{
    char url[1024], part[1024];
    long status = 0;
    snprintf(url, sizeof url, "%s/v1/videos/%s/content", c->base, id);
    snprintf(part, sizeof part, "%s.part", file);
    FILE *out = fopen(part, "wb");
    if (!out) {
        perror(part);
        return 0;
    }
    curl_easy_reset(c->curl);
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, out);
    curl_easy_setopt(c->curl, CURLOPT_FAILONERROR, 1L);
    CURLcode code = CURLE_OK;
    for (int i = 0; i < TRIES; i++) { /* a result never changes: its bytes may come in pieces */
        curl_easy_setopt(c->curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)ftell(out));
        code = curl_easy_perform(c->curl);
        curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
        if (code == CURLE_OK || (status >= 400 && status < 500)) break;
        pause_ms(1000);
    }
    if (code != CURLE_OK) fprintf(stderr, "%s: %s\n", url, curl_easy_strerror(code));
    const int written = fclose(out) == 0 && code == CURLE_OK;
    return written && rename(part, file) == 0;
}

int main(int argc, char **argv)
{
    static answer a;
    client c = {0};
    char id[64];
    if (argc < 4) {
        fprintf(stderr, "usage: kinora_video URL PROMPT FILE [FIELD=VALUE ...]\n");
        return 2;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    const int good = begin(&c, argv[1]) && submit(&c, argv[2], argv + 4, argc - 4, id, sizeof id, &a) &&
                     wait_for(&c, id, &a) && download(&c, id, argv[3]);
    if (good) printf("%s\n", argv[3]);
    if (c.curl) curl_easy_cleanup(c.curl);
    curl_slist_free_all(c.headers);
    curl_global_cleanup();
    return good ? 0 : 1;
}
