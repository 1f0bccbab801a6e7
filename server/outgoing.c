/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* SOCK_CLOEXEC */
#include "server/outgoing.h"

#include <sys/socket.h>

#include "engine/config.h"

static curl_socket_t on_open(void *context, curlsocktype purpose, struct curl_sockaddr *address)
{
    kn_outgoing *r = context;
    const char *forbidden = r->url.listed ? NULL : kn_webhook_address_forbidden(&address->addr);
    if (purpose != CURLSOCKTYPE_IPCXN) forbidden = "not a connection";
    if (forbidden) {
        r->forbidden = forbidden;
        return CURL_SOCKET_BAD;
    }
    r->opened = true;
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

typedef struct number_option {
    CURLoption option;
    long value;
} number_option;

static const number_option number_options[] = {
    {CURLOPT_NOSIGNAL, 1},
    {CURLOPT_POST, 1},
    {CURLOPT_FOLLOWLOCATION, 0},
    {CURLOPT_NETRC, CURL_NETRC_IGNORED},
    {CURLOPT_DISALLOW_USERNAME_IN_URL, 1},
    {CURLOPT_PATH_AS_IS, 1},
    {CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1},
    {CURLOPT_HTTP_CONTENT_DECODING, 0},
    {CURLOPT_SSL_VERIFYPEER, 1},
    {CURLOPT_SSL_VERIFYHOST, 2},
    {CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2},
    /* Each request resolves and checks anew. */
    {CURLOPT_DNS_CACHE_TIMEOUT, 0},
    {CURLOPT_FRESH_CONNECT, 1},
    {CURLOPT_FORBID_REUSE, 1},
    /* A name lookup that hangs may not hold up others when its own request is over. */
    {CURLOPT_QUICK_EXIT, 1},
};

bool kn_outgoing_configure(CURL *easy, kn_outgoing *request, const kn_outgoing_options *options)
{
    char url[KN_WEBHOOK_URL_MAX + 16];
    if (kn_webhook_url_text(&request->url, url, sizeof url) != KN_OK) return false;
    CURLcode code = CURLE_OK;
    for (size_t i = 0; i < sizeof number_options / sizeof *number_options && code == CURLE_OK; i++)
        code = curl_easy_setopt(easy, number_options[i].option, number_options[i].value);
    const char *protocol = request->url.tls ? "https" : "http";
    bool good = code == CURLE_OK && curl_easy_setopt(easy, CURLOPT_URL, url) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, options->timeout_ms) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, options->connect_timeout_ms) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, protocol) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, "https") == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_PROXY, "") == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_NOPROXY, "*") == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_USERAGENT, "Kinora/" KN_VERSION) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_HTTPHEADER, options->headers) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, request) == CURLE_OK &&
                curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, request->error) == CURLE_OK;
    if (good && options->ca_file && options->ca_file[0] != '\0')
        good = curl_easy_setopt(easy, CURLOPT_CAINFO, options->ca_file) == CURLE_OK &&
               curl_easy_setopt(easy, CURLOPT_CAPATH, NULL) == CURLE_OK;
    return good;
}
