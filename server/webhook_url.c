/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a webhook may be sent: the URL's text (a narrow subset of RFC 3986, so that no two readers can disagree about
 * its host) and the resolved address (the special-purpose registries of RFC 6890 and its successors). */
#define _GNU_SOURCE /* struct in6_addr's members by name */
#include "server/webhook.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { LABEL_MAX = 63, PORT_HTTPS = 443, PORT_HTTP = 80 };

/* ---- addresses ---- */

typedef struct range4 {
    uint32_t base;
    int bits;
    const char *name;
} range4;

#define IPV4(a, b, c, d) ((uint32_t)(a) << 24 | (uint32_t)(b) << 16 | (uint32_t)(c) << 8 | (uint32_t)(d))

static const range4 forbidden4[] = {
    {IPV4(0, 0, 0, 0), 8, "unspecified"},
    {IPV4(10, 0, 0, 0), 8, "private"},
    {IPV4(100, 64, 0, 0), 10, "carrier NAT"},
    {IPV4(127, 0, 0, 0), 8, "loopback"},
    {IPV4(168, 63, 129, 16), 32, "cloud metadata"}, /* a public number with a private meaning: Azure's host agent */
    {IPV4(169, 254, 0, 0), 16, "link-local"},
    {IPV4(172, 16, 0, 0), 12, "private"},
    {IPV4(192, 0, 0, 0), 24, "protocol assignments"},
    {IPV4(192, 0, 2, 0), 24, "documentation"},
    {IPV4(192, 88, 99, 0), 24, "6to4 relay"},
    {IPV4(192, 168, 0, 0), 16, "private"},
    {IPV4(198, 18, 0, 0), 15, "benchmarking"},
    {IPV4(198, 51, 100, 0), 24, "documentation"},
    {IPV4(203, 0, 113, 0), 24, "documentation"},
    {IPV4(224, 0, 0, 0), 4, "multicast"},
    {IPV4(255, 255, 255, 255), 32, "broadcast"},
    {IPV4(240, 0, 0, 0), 4, "reserved"},
};

typedef struct range6 {
    uint8_t base[16];
    int bits;
    const char *name;
} range6;

/* The first match names the range; what none of them names must lie in 2000::/3 to be reachable at all. */
static const range6 forbidden6[] = {
    {{0}, 128, "unspecified"},
    {{[15] = 1}, 128, "loopback"},
    {{[10] = 0xff, 0xff}, 96, "IPv4-mapped"},
    {{[8] = 0xff, 0xff}, 96, "IPv4-translated"},
    {{0}, 96, "IPv4-compatible"},
    {{0x00, 0x64, 0xff, 0x9b}, 96, "NAT64"},
    {{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}, 48, "NAT64"},
    {{0x01, 0x00}, 64, "discard"},
    {{0x20, 0x01, 0x00, 0x00}, 32, "Teredo"},
    {{0x20, 0x01, 0x00, 0x02}, 48, "benchmarking"},
    {{0x20, 0x01, 0x0d, 0xb8}, 32, "documentation"},
    {{0x20, 0x01, 0x00}, 23, "protocol assignments"},
    {{0x20, 0x02}, 16, "6to4"},
    {{0x3f, 0xff, 0x00}, 20, "documentation"},
    {{0xfc, 0x00}, 7, "unique local"},
    {{0xfe, 0x80}, 10, "link-local"},
    {{0xfe, 0xc0}, 10, "site-local"},
    {{0xff, 0x00}, 8, "multicast"},
};

static bool has_prefix(const uint8_t *address, const uint8_t *base, int bits)
{
    const int whole = bits / 8, rest = bits % 8;
    if (memcmp(address, base, (size_t)whole) != 0) return false;
    return rest == 0 || ((address[whole] ^ base[whole]) >> (8 - rest)) == 0;
}

static const char *forbidden_v4(uint32_t address)
{
    for (size_t i = 0; i < sizeof forbidden4 / sizeof *forbidden4; i++) {
        const range4 *r = &forbidden4[i];
        if ((address ^ r->base) >> (32 - r->bits) == 0) return r->name;
    }
    return NULL;
}

static const char *forbidden_v6(const uint8_t address[16])
{
    for (size_t i = 0; i < sizeof forbidden6 / sizeof *forbidden6; i++)
        if (has_prefix(address, forbidden6[i].base, forbidden6[i].bits)) return forbidden6[i].name;
    return (address[0] & 0xe0) == 0x20 ? NULL : "reserved";
}

const char *kn_webhook_address_forbidden(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, address, sizeof v4);
        return forbidden_v4(ntohl(v4.sin_addr.s_addr));
    }
    if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, address, sizeof v6);
        return forbidden_v6(v6.sin6_addr.s6_addr);
    }
    return "not an internet address";
}

/* ---- the host ---- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_host_character(char c)
{
    return (c >= 'a' && c <= 'z') || is_digit(c) || c == '-' || c == '_';
}

/* Host names end in a label that is not a number. What does, "127.1" or "0x7f.1" or "2130706433", is an address to some
 * resolvers and a name to others; only four full decimal numbers are taken (inet_pton reads no other form). */
static bool ends_in_number(const char *host)
{
    const char *dot = strrchr(host, '.');
    const char *label = dot ? dot + 1 : host;
    if (label[0] == '0' && label[1] == 'x') return true;
    while (is_digit(*label)) label++;
    return *label == '\0';
}

static kn_status check_name(const char *host)
{
    size_t label = 0;
    for (const char *c = host;; c++) {
        if (*c == '.' || *c == '\0') {
            if (label == 0) return kn_fail(KN_INVALID, "url: the host has an empty label");
            if (label > LABEL_MAX)
                return kn_fail(KN_INVALID, "url: a label of the host is longer than %d characters", LABEL_MAX);
            if (*c == '\0') return KN_OK;
            label = 0;
        } else if (is_host_character(*c)) {
            label++;
        } else {
            return kn_fail(KN_INVALID, "url: the host may hold letters, digits, \"-\", \"_\" and \".\" only; write an "
                                       "international name in its xn-- form");
        }
    }
}

/* Lower case, without brackets. `text` is `length` characters up to the port. */
static kn_status read_host(kn_webhook_url *out, const char *text, size_t length, const char **forbidden)
{
    *forbidden = NULL;
    out->literal6 = length >= 2 && text[0] == '[' && text[length - 1] == ']';
    if (out->literal6) {
        text++;
        length -= 2;
    }
    if (length == 0) return kn_fail(KN_INVALID, "url: there is no host");
    if (length > KN_WEBHOOK_HOST_MAX)
        return kn_fail(KN_INVALID, "url: the host is longer than %d characters", KN_WEBHOOK_HOST_MAX);
    for (size_t i = 0; i < length; i++) {
        const char c = text[i];
        out->host[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    out->host[length] = '\0';
    if (out->literal6) {
        struct in6_addr v6;
        if (inet_pton(AF_INET6, out->host, &v6) != 1)
            return kn_fail(KN_INVALID, "url: what is in brackets is not an IPv6 address");
        *forbidden = forbidden_v6(v6.s6_addr);
        return KN_OK;
    }
    const kn_status st = check_name(out->host);
    if (st != KN_OK || !ends_in_number(out->host)) return st;
    struct in_addr v4;
    if (inet_pton(AF_INET, out->host, &v4) != 1)
        return kn_fail(KN_INVALID, "url: a host that ends in a number must be an IPv4 address of four decimal numbers");
    *forbidden = forbidden_v4(ntohl(v4.s_addr));
    return KN_OK;
}

/* 1..65535 without leading zeros, up to `end`. */
static kn_status read_port(uint16_t *out, const char *text, const char *end)
{
    uint32_t port = 0;
    if (text == end || end - text > 5 || *text == '0') goto fail;
    for (; text < end; text++) {
        if (!is_digit(*text)) goto fail;
        port = port * 10 + (uint32_t)(*text - '0');
    }
    if (port > UINT16_MAX) goto fail;
    *out = (uint16_t)port;
    return KN_OK;
fail:
    return kn_fail(KN_INVALID, "url: the port must be a number from 1 to 65535");
}

/* "host" or "host:port" from `text` to `end`; the port is left alone when there is none. */
static kn_status read_authority(kn_webhook_url *out, const char *text, const char *end, bool *has_port,
                                const char **forbidden)
{
    const char *host_end = end;
    if (text < end && *text == '[') {
        host_end = memchr(text, ']', (size_t)(end - text));
        if (!host_end) return kn_fail(KN_INVALID, "url: \"[\" without \"]\"");
        host_end++;
        if (host_end < end && *host_end != ':') return kn_fail(KN_INVALID, "url: after \"]\" comes a port or the path");
    } else {
        const char *colon = memchr(text, ':', (size_t)(end - text));
        if (colon) host_end = colon;
    }
    *has_port = host_end < end;
    const kn_status st = read_host(out, text, (size_t)(host_end - text), forbidden);
    if (st != KN_OK || !*has_port) return st;
    return read_port(&out->port, host_end + 1, end);
}

kn_status kn_webhook_check_allow(const char *entry)
{
    KN_REQUIRE(entry);
    kn_webhook_url url = {.port = 0};
    bool has_port = false;
    const char *forbidden;
    const size_t length = strnlen(entry, KN_WEBHOOK_HOST_MAX + 9);
    const kn_status st = read_authority(&url, entry, entry + length, &has_port, &forbidden);
    if (st != KN_OK) return kn_fail_context(st, "allow list");
    if (!has_port) return kn_fail(KN_INVALID, "allow list: \"%.*s\" has no port", (int)length, entry);
    return KN_OK;
}

static bool is_listed(const kn_webhook_url *url, const kn_webhook_policy *policy)
{
    for (size_t i = 0; i < policy->allow_count; i++) {
        const char *entry = policy->allow[i];
        kn_webhook_url allowed = {.port = 0};
        bool has_port = false;
        const char *forbidden;
        if (read_authority(&allowed, entry, entry + strlen(entry), &has_port, &forbidden) != KN_OK || !has_port)
            continue;
        if (allowed.port == url->port && allowed.literal6 == url->literal6 && strcmp(allowed.host, url->host) == 0)
            return true;
    }
    return false;
}

/* ---- the URL ---- */

static bool starts_with(const char *text, const char *lower_prefix)
{
    for (; *lower_prefix; text++, lower_prefix++) {
        const char c = *text >= 'A' && *text <= 'Z' ? (char)(*text - 'A' + 'a') : *text;
        if (c != *lower_prefix) return false;
    }
    return true;
}

static kn_status check_characters(const char *url, size_t length)
{
    if (length > KN_WEBHOOK_URL_MAX) return kn_fail(KN_INVALID, "url: longer than %d characters", KN_WEBHOOK_URL_MAX);
    for (size_t i = 0; i < length; i++)
        if (url[i] <= ' ' || url[i] >= 0x7f || strchr("\\\"<>^`{|}", url[i]))
            return kn_fail(KN_INVALID, "url: character %zu must be percent-encoded", i);
    if (memchr(url, '#', length)) return kn_fail(KN_INVALID, "url: a fragment (#) is not sent; leave it out");
    return KN_OK;
}

kn_status kn_webhook_url_parse(kn_webhook_url *out, const char *url, const kn_webhook_policy *policy)
{
    static const kn_webhook_policy strict = {.development = false};
    KN_REQUIRE(url);
    if (!policy) policy = &strict;
    *out = (kn_webhook_url){.tls = false};
    const size_t length = strnlen(url, KN_WEBHOOK_URL_MAX + 1);
    kn_status st = check_characters(url, length);
    if (st != KN_OK) return st;
    out->tls = starts_with(url, "https://");
    if (!out->tls && !(policy->development && starts_with(url, "http://")))
        return kn_fail(KN_INVALID, "url: must begin with https://");
    const uint16_t usual = out->tls ? PORT_HTTPS : PORT_HTTP;
    out->port = usual;
    const char *host = url + (out->tls ? 8 : 7);
    const size_t authority = strcspn(host, "/?");
    if (memchr(host, '@', authority)) return kn_fail(KN_INVALID, "url: must not hold a user or password");
    bool has_port = false;
    const char *forbidden;
    st = read_authority(out, host, host + authority, &has_port, &forbidden);
    if (st != KN_OK) return st;
    out->listed = is_listed(out, policy);
    if (!out->listed && out->port != usual) return kn_fail(KN_INVALID, "url: the port must be %d", usual);
    if (!out->listed && forbidden)
        return kn_fail(KN_INVALID, "url: the address is not one on the internet (%s)", forbidden);
    const char *rest = host + authority;
    snprintf(out->path, sizeof out->path, "%s%s", *rest == '/' ? "" : "/", rest);
    return KN_OK;
}

kn_status kn_webhook_url_text(const kn_webhook_url *url, char *out, size_t bytes)
{
    const char *open = url->literal6 ? "[" : "", *close = url->literal6 ? "]" : "";
    const int count = snprintf(out, bytes, "%s://%s%s%s:%d%s", url->tls ? "https" : "http", open, url->host, close,
                               url->port, url->path);
    return count > 0 && (size_t)count < bytes ? KN_OK : kn_fail(KN_INVALID, "url: longer than %zu bytes", bytes);
}
