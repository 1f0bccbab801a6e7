/* SPDX-License-Identifier: Apache-2.0
 *
 * Any bytes as the URL of a webhook are either refused or taken apart into a host that means one thing: put together
 * again and read a second time they give the same parts, a literal address has passed the address rule, and curl's own
 * parser finds the same host and port. The first byte chooses the policy; what follows a line feed is an allow list's
 * entry. */
#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "server/webhook.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static void check_literal(const kn_webhook_url *url)
{
    struct sockaddr_storage storage = {.ss_family = AF_UNSPEC};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (url->literal6 && inet_pton(AF_INET6, url->host, &v6.sin6_addr) == 1)
        memcpy(&storage, &v6, sizeof v6);
    else if (inet_pton(AF_INET, url->host, &v4.sin_addr) == 1)
        memcpy(&storage, &v4, sizeof v4);
    else if (url->literal6)
        abort();
    else
        return;
    if (!url->listed && kn_webhook_address_forbidden((const struct sockaddr *)&storage)) abort();
}

static void check_other_reader(const kn_webhook_url *url, const char *text)
{
    CURLU *parser = curl_url();
    char *host = NULL, *port = NULL, *user = NULL, ours[KN_WEBHOOK_HOST_MAX + 8], number[8];
    if (!parser || curl_url_set(parser, CURLUPART_URL, text, CURLU_PATH_AS_IS) != CURLUE_OK) abort();
    if (curl_url_get(parser, CURLUPART_HOST, &host, 0) != CURLUE_OK) abort();
    if (curl_url_get(parser, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) != CURLUE_OK) abort();
    if (curl_url_get(parser, CURLUPART_USER, &user, 0) != CURLUE_NO_USER) abort();
    snprintf(ours, sizeof ours, url->literal6 ? "[%s]" : "%s", url->host);
    snprintf(number, sizeof number, "%d", url->port);
    /* curl writes IPv6 addresses in their shortest form. */
    if ((!url->literal6 && strcmp(ours, host) != 0) || (url->literal6 && host[0] != '[') || strcmp(number, port) != 0)
        abort();
    curl_free(host);
    curl_free(port);
    curl_url_cleanup(parser);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (count == 0 || count > 4 * KN_WEBHOOK_URL_MAX) return 0;
    char input[4 * KN_WEBHOOK_URL_MAX + 1];
    memcpy(input, bytes + 1, count - 1);
    input[count - 1] = '\0';
    char *entry = strchr(input, '\n');
    if (entry) *entry++ = '\0';
    const char *const allow[] = {entry};
    const bool listing = entry && kn_webhook_check_allow(entry) == KN_OK;
    const kn_webhook_policy policy = {.development = bytes[0] & 1, .allow = allow, .allow_count = listing ? 1 : 0};
    kn_webhook_url url, again;
    if (kn_webhook_url_parse(&url, input, &policy) != KN_OK) {
        if (strncmp(kn_fail_message(), "url: ", 5) != 0 || strchr(kn_fail_message(), '\n')) abort();
        return 0;
    }
    if (!url.tls && !policy.development) abort();
    if (!url.listed && url.port != (url.tls ? 443 : 80)) abort();
    if (strpbrk(url.host, "@/\\?#% \t\r\n") || url.host[0] == '\0' || url.path[0] != '/') abort();
    check_literal(&url);
    char text[KN_WEBHOOK_URL_MAX + 16];
    if (kn_webhook_url_text(&url, text, sizeof text) != KN_OK) abort();
    check_other_reader(&url, text);
    /* With the port and a path written out it may be longer than a URL may be. */
    if (strlen(text) > KN_WEBHOOK_URL_MAX) return 0;
    if (kn_webhook_url_parse(&again, text, &policy) != KN_OK || strcmp(again.host, url.host) != 0 ||
        again.port != url.port || again.tls != url.tls || again.listed != url.listed ||
        strcmp(again.path, url.path) != 0)
        abort();
    return 0;
}
