/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/hook_child.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/config.h"
#include "server/child.h"
#include "server/json.h"
#include "server/moderation.h"
#include "server/outgoing.h"

enum { INPUT_BYTES = 4 << 20, CONFIGURATION_BYTES = 1 << 17 };

kn_status kn_hook_url_parse(kn_webhook_url *out, const char *url, const char *const *allow, size_t allow_count)
{
    const kn_webhook_policy policy = {.development = true, .allow = allow, .allow_count = allow_count};
    const kn_status st = kn_webhook_url_parse(out, url, &policy);
    if (st == KN_OK && !out->tls && !out->listed)
        return kn_fail(KN_INVALID, "http:// is for services that moderation-allow lists; others need https://");
    return st;
}

typedef struct hook {
    char *input; /* [input_bytes] the configuration's line, then the question */
    size_t input_bytes;
    json_t *configuration, *question;
    const char *allow[KN_WEBHOOK_ALLOW_MAX];
    kn_outgoing request;
    CURL *easy;
    struct curl_slist *headers;
    curl_mime *form;
    char *body; /* the question as it is posted */
    char answer[KN_MODERATION_ANSWER_BYTES + 1];
    size_t answer_bytes;
} hook;

static kn_status read_input(hook *h)
{
    h->input = kn_alloc(INPUT_BYTES);
    if (!h->input) return KN_NOMEM;
    while (h->input_bytes < INPUT_BYTES) {
        const ssize_t got = read(STDIN_FILENO, h->input + h->input_bytes, INPUT_BYTES - h->input_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return kn_fail(KN_IO, "standard input: %s", strerror(errno));
        if (got == 0) return KN_OK;
        h->input_bytes += (size_t)got;
    }
    return kn_fail(KN_INVALID, "the question is too long");
}

static kn_status parse_input(hook *h)
{
    kn_status st = KN_OK;
    const kn_json_limits line_limits = {.bytes = CONFIGURATION_BYTES, .values = 256, .depth = 3};
    const kn_json_limits question_limits = {.bytes = INPUT_BYTES, .values = 32, .depth = 2};
    const char *end = memchr(h->input, '\n', h->input_bytes);
    if (!end) return kn_fail(KN_INVALID, "there is no configuration");
    const size_t line = (size_t)(end - h->input), rest = h->input_bytes - line - 1;
    KN_TRY(kn_json_parse(&h->configuration, h->input, line, "the configuration", line_limits));
    KN_TRY(kn_json_parse(&h->question, end + 1, rest, "the question", question_limits));
    const char *url = json_string_value(json_object_get(h->configuration, "url"));
    const json_t *allow = json_object_get(h->configuration, "allow");
    const size_t count = json_array_size(allow);
    if (!url || count > KN_WEBHOOK_ALLOW_MAX) return kn_fail(KN_INVALID, "the configuration is not one");
    for (size_t i = 0; i < count; i++) {
        h->allow[i] = json_string_value(json_array_get(allow, i));
        if (!h->allow[i]) return kn_fail(KN_INVALID, "the configuration is not one");
    }
    KN_TRY(kn_hook_url_parse(&h->request.url, url, h->allow, count));
fail:
    return st;
}

static size_t take_answer(char *bytes, size_t size, size_t count, void *context)
{
    hook *h = context;
    const size_t more = size * count;
    if (more > sizeof h->answer - h->answer_bytes) return 0; /* ends the transfer */
    memcpy(h->answer + h->answer_bytes, bytes, more);
    h->answer_bytes += more;
    return more;
}

/* A file name is this machine's business: the service gets the file itself. */
static bool set_body(hook *h)
{
    char *file = NULL;
    const char *name = json_string_value(json_object_get(h->question, "file"));
    if (name) file = kn_strdup(name);
    json_object_del(h->question, "file");
    h->body = json_dumps(h->question, JSON_COMPACT);
    bool good = h->body && (!name || file);
    if (good && !file) {
        good = curl_easy_setopt(h->easy, CURLOPT_POSTFIELDS, h->body) == CURLE_OK &&
               curl_easy_setopt(h->easy, CURLOPT_POSTFIELDSIZE, (long)strlen(h->body)) == CURLE_OK;
    } else if (good) {
        h->form = curl_mime_init(h->easy);
        curl_mimepart *question = h->form ? curl_mime_addpart(h->form) : NULL;
        curl_mimepart *video = question ? curl_mime_addpart(h->form) : NULL;
        good = video && curl_mime_name(question, "question") == CURLE_OK &&
               curl_mime_data(question, h->body, CURL_ZERO_TERMINATED) == CURLE_OK &&
               curl_mime_type(question, "application/json") == CURLE_OK && curl_mime_name(video, "video") == CURLE_OK &&
               curl_mime_filedata(video, file) == CURLE_OK && curl_mime_filename(video, "video.mp4") == CURLE_OK &&
               curl_mime_type(video, "video/mp4") == CURLE_OK &&
               curl_easy_setopt(h->easy, CURLOPT_MIMEPOST, h->form) == CURLE_OK;
    }
    kn_free(file);
    return good;
}

static kn_status ask(hook *h)
{
    long status = 0;
    const bool form = json_object_get(h->question, "file") != NULL;
    const long limit = (long)json_integer_value(json_object_get(h->configuration, "time_limit_ms"));
    struct curl_slist *more = NULL;
    h->easy = curl_easy_init();
    h->headers = curl_slist_append(NULL, "Expect:"); /* without a value: left out */
    if (h->headers && !form) more = curl_slist_append(h->headers, "content-type: application/json");
    if (!h->easy || !h->headers || (!form && !more)) return kn_fail(KN_NOMEM, "no memory for a request");
    const kn_outgoing_options options = {.ca_file = json_string_value(json_object_get(h->configuration, "ca")),
                                         .timeout_ms = limit > 0 ? limit : KN_MODERATION_TIME_LIMIT_MS,
                                         .connect_timeout_ms = limit > 0 ? limit : KN_MODERATION_TIME_LIMIT_MS,
                                         .headers = h->headers};
    if (!kn_outgoing_configure(h->easy, &h->request, &options) || !set_body(h) ||
        curl_easy_setopt(h->easy, CURLOPT_WRITEFUNCTION, take_answer) != CURLE_OK ||
        curl_easy_setopt(h->easy, CURLOPT_WRITEDATA, h) != CURLE_OK)
        return kn_fail(KN_UNSUPPORTED, "the transfer library refused an option");
    const CURLcode code = curl_easy_perform(h->easy);
    if (h->request.forbidden && !h->request.opened)
        return kn_fail(KN_INVALID, "the host resolves to an address that is not one on the internet (%s)",
                       h->request.forbidden);
    if (code != CURLE_OK) return kn_fail(KN_IO, "%s", curl_easy_strerror(code));
    curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
    return status == 200 ? KN_OK : kn_fail(KN_IO, "the service answered %ld", status);
}

static kn_status write_answer(const hook *h)
{
    for (size_t at = 0; at < h->answer_bytes;) {
        const ssize_t wrote = write(STDOUT_FILENO, h->answer + at, h->answer_bytes - at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return kn_fail(KN_IO, "standard output: %s", strerror(errno));
        at += (size_t)wrote;
    }
    return KN_OK;
}

int kn_hook_main(int argc, char **argv)
{
    kn_status st = KN_OK;
    (void)argv;
    hook *h = NULL;
    if (argc != 1) KN_TRY(kn_fail(KN_INVALID, "this command is started by \"kinora serve\" only"));
    KN_TRY(kn_child_enter());
    h = kn_alloc(sizeof *h);
    if (!h) KN_TRY(KN_NOMEM);
    KN_TRY(read_input(h));
    KN_TRY(parse_input(h));
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        KN_TRY(kn_fail(KN_IO, "the transfer library does not start"));
    KN_TRY(ask(h));
    KN_TRY(write_answer(h));
fail:
    if (st != KN_OK) fprintf(stderr, "kinora hook: %s\n", kn_fail_message());
    if (h) {
        curl_easy_cleanup(h->easy);
        curl_mime_free(h->form);
        curl_slist_free_all(h->headers);
        json_decref(h->configuration);
        json_decref(h->question);
        kn_free(h->body); /* jansson allocates with kn_alloc here */
        kn_free(h->input);
        kn_free(h);
    }
    curl_global_cleanup();
    return st == KN_OK ? 0 : kn_status_exit_code(st);
}
