/* SPDX-License-Identifier: Apache-2.0
 *
 * The text of URLs and the numbers of addresses, as tables: what is taken, what is not, and why. */
#define _XOPEN_SOURCE 700
#include "server/webhook.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

static const char *address_of(const char *text)
{
    struct sockaddr_storage storage = {.ss_family = AF_INET};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1)
        memcpy(&storage, &v4, sizeof v4);
    else if (inet_pton(AF_INET6, text, &v6.sin6_addr) == 1)
        memcpy(&storage, &v6, sizeof v6);
    else
        fail_msg("%s is no address", text);
    return kn_webhook_address_forbidden((const struct sockaddr *)&storage);
}

static void test_forbidden_addresses(void **state)
{
    (void)state;
    static const struct {
        const char *first, *last, *name;
    } ranges[] = {
        {"0.0.0.0", "0.255.255.255", "unspecified"},
        {"10.0.0.0", "10.255.255.255", "private"},
        {"100.64.0.0", "100.127.255.255", "carrier NAT"},
        {"127.0.0.0", "127.255.255.255", "loopback"},
        {"168.63.129.16", "168.63.129.16", "cloud metadata"},
        {"169.254.0.0", "169.254.169.254", "link-local"},
        {"169.254.170.2", "169.254.255.255", "link-local"},
        {"172.16.0.0", "172.31.255.255", "private"},
        {"192.0.0.0", "192.0.0.255", "protocol assignments"},
        {"192.0.2.0", "192.0.2.255", "documentation"},
        {"192.88.99.0", "192.88.99.255", "6to4 relay"},
        {"192.168.0.0", "192.168.255.255", "private"},
        {"198.18.0.0", "198.19.255.255", "benchmarking"},
        {"198.51.100.0", "198.51.100.255", "documentation"},
        {"203.0.113.0", "203.0.113.255", "documentation"},
        {"224.0.0.0", "239.255.255.255", "multicast"},
        {"240.0.0.0", "255.255.255.254", "reserved"},
        {"255.255.255.255", "255.255.255.255", "broadcast"},
        {"::", "::", "unspecified"},
        {"::1", "::1", "loopback"},
        {"::2", "::ffff", "IPv4-compatible"},
        {"::8.8.8.8", "::255.255.255.255", "IPv4-compatible"},
        {"::ffff:8.8.8.8", "::ffff:127.0.0.1", "IPv4-mapped"},
        {"::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8", "IPv4-translated"},
        {"64:ff9b::", "64:ff9b::255.255.255.255", "NAT64"},
        {"64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "NAT64"},
        {"100::", "100::ffff:ffff:ffff:ffff", "discard"},
        {"2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "Teredo"},
        {"2001:2::", "2001:2:0:ffff::", "benchmarking"},
        {"2001:10::", "2001:1ff:ffff::", "protocol assignments"},
        {"2001:db8::", "2001:db8:ffff::", "documentation"},
        {"2002::", "2002:7f00:1::", "6to4"},
        {"3fff::", "3fff:fff:ffff::", "documentation"},
        {"fc00::", "fdff:ffff::", "unique local"},
        {"fd00:ec2::254", "fd20:ce::254", "unique local"},
        {"fe80::1", "febf:ffff::", "link-local"},
        {"fec0::", "feff:ffff::", "site-local"},
        {"ff00::", "ff02::1", "multicast"},
        {"5f00::", "5f00:ffff::", "reserved"},
        {"1fff:ffff::", "4000::", "reserved"},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const char *const ends[] = {ranges[i].first, ranges[i].last};
        for (int e = 0; e < 2; e++) {
            const char *name = address_of(ends[e]);
            if (!name || strcmp(name, ranges[i].name) != 0)
                fail_msg("%s: %s, expected %s", ends[e], name ? name : "allowed", ranges[i].name);
        }
    }
}

static void test_addresses_beside_the_ranges(void **state)
{
    (void)state;
    static const char *const good[] = {
        "1.0.0.0",         "8.8.8.8",       "9.255.255.255",   "11.0.0.0",
        "100.63.255.255",  "100.128.0.0",   "126.255.255.255", "128.0.0.0",
        "168.63.129.15",   "168.63.129.17", "169.253.255.255", "169.255.0.0",
        "172.15.255.255",  "172.32.0.0",    "192.0.1.0",       "192.0.3.0",
        "192.167.255.255", "192.169.0.0",   "198.17.255.255",  "198.20.0.0",
        "198.51.99.255",   "198.51.101.0",  "203.0.112.255",   "203.0.114.0",
        "223.255.255.255", "2000::1",       "2001:200::1",     "2001:4860:4860::8888",
        "2001:db7::1",     "2001:db9::1",   "2003::1",         "2606:4700::1111",
        "2a00:1450::1",    "3ffe:ffff::1",  "3fff:1000::1",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (address_of(good[i])) fail_msg("%s: %s", good[i], address_of(good[i]));
    struct sockaddr_un other = {.sun_family = AF_UNIX};
    assert_non_null(kn_webhook_address_forbidden((const struct sockaddr *)&other));
}

static void test_urls_that_are_taken(void **state)
{
    (void)state;
    static const struct {
        const char *url, *text;
    } rows[] = {
        {"https://example.com", "https://example.com:443/"},
        {"https://example.com/", "https://example.com:443/"},
        {"HTTPS://EXAMPLE.com:443/Hook?A=b&c=%20", "https://example.com:443/Hook?A=b&c=%20"},
        {"https://example.com?x=1", "https://example.com:443/?x=1"},
        {"https://a_b-c.xn--bcher-kva.example/a/../b", "https://a_b-c.xn--bcher-kva.example:443/a/../b"},
        {"https://8.8.8.8/x", "https://8.8.8.8:443/x"},
        {"https://[2606:4700::1111]/x", "https://[2606:4700::1111]:443/x"},
        {"https://[2606:4700::1111]:443/x", "https://[2606:4700::1111]:443/x"},
        {"https://example.com/@user:pass", "https://example.com:443/@user:pass"},
        {"https://example.com/?u=https://10.0.0.1/", "https://example.com:443/?u=https://10.0.0.1/"},
        {"https://1password.com/", "https://1password.com:443/"},
        {"https://hook.0xyz.example/", "https://hook.0xyz.example:443/"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kn_webhook_url url;
        char text[KN_WEBHOOK_URL_MAX + 16];
        if (kn_webhook_url_parse(&url, rows[i].url, NULL) != KN_OK) fail_msg("%s: %s", rows[i].url, kn_fail_message());
        assert_int_equal(kn_webhook_url_text(&url, text, sizeof text), KN_OK);
        assert_string_equal(text, rows[i].text);
        assert_true(url.tls && !url.listed && url.port == 443);
        assert_int_equal(kn_webhook_url_text(&url, text, strlen(rows[i].text)), KN_INVALID);
    }
}

static const char *const bad_urls[] = {
    "",
    "example.com",
    "//example.com/",
    "https:/example.com",
    "https:///x",
    "https://",
    "https://:443/",
    "http://example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "httpss://example.com/",
    "javascript:alert(1)",
    " https://example.com/",
    "https://example.com/ x",
    "https://example.com/\r\nx: y",
    "https://example.com/\t",
    "https://example.com/#x",
    "https://example.com#@x",
    "https://ex\xc3\xa4mple.com/",
    "https://example.com/\x7f",
    "https://user@example.com/",
    "https://user:pass@example.com/",
    "https://@example.com/",
    "https://example.com@10.0.0.1/",
    "https://example.com\\@10.0.0.1/",
    "https://example.com\\x",
    "https://example.com:80/",
    "https://example.com:8443/",
    "https://example.com:/",
    "https://example.com:0443/",
    "https://example.com:443x/",
    "https://example.com:65536/",
    "https://example.com:99999999999/",
    "https://example.com:-1/",
    "https://example.com:443:443/",
    "https://example..com/",
    "https://.example.com/",
    "https://example.com./",
    "https://exa%6dple.com/",
    "https://exa*mple.com/",
    "https://example.com,x/",
    "https://127.0.0.1/",
    "https://10.1.2.3/",
    "https://169.254.169.254/latest/meta-data/",
    "https://0.0.0.0/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://1.2.3/",
    "https://8.8.8.8.8/",
    "https://8.8.8.08/",
    "https://example.1/",
    "https://example.0x1/",
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:8.8.8.8]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[64:ff9b::8.8.8.8]/",
    "https://[2002:7f00:1::]/",
    "https://[2606:4700::1111",
    "https://[2606:4700::1111]x/",
    "https://[]/",
    "https://[8.8.8.8]/",
    "https://2606:4700::1111/",
    "https://]/",
    "https://[v1.x]/",
};

static void test_urls_that_are_not(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_urls / sizeof *bad_urls; i++) {
        kn_webhook_url url;
        if (kn_webhook_url_parse(&url, bad_urls[i], NULL) != KN_INVALID) fail_msg("%s was taken", bad_urls[i]);
        assert_int_equal(strncmp(kn_fail_message(), "url: ", 5), 0);
    }
}

static void test_length_limits(void **state)
{
    (void)state;
    char text[KN_WEBHOOK_URL_MAX + 16];
    kn_webhook_url url;
    const int head = snprintf(text, sizeof text, "https://example.com/");
    memset(text + head, 'a', sizeof text - (size_t)head);
    text[KN_WEBHOOK_URL_MAX + 1] = '\0';
    assert_int_equal(kn_webhook_url_parse(&url, text, NULL), KN_INVALID);
    text[KN_WEBHOOK_URL_MAX] = '\0';
    assert_int_equal(kn_webhook_url_parse(&url, text, NULL), KN_OK);
    char whole[KN_WEBHOOK_URL_MAX + 16];
    assert_int_equal(kn_webhook_url_text(&url, whole, sizeof whole), KN_OK);

    char host[KN_WEBHOOK_HOST_MAX + 2];
    memset(host, 'h', sizeof host);
    for (size_t i = 63; i < sizeof host; i += 64) host[i] = '.';
    for (size_t length = KN_WEBHOOK_HOST_MAX; length <= KN_WEBHOOK_HOST_MAX + 1; length++) {
        snprintf(text, sizeof text, "https://%.*s/", (int)length, host);
        assert_int_equal(kn_webhook_url_parse(&url, text, NULL), length == KN_WEBHOOK_HOST_MAX ? KN_OK : KN_INVALID);
    }
    snprintf(text, sizeof text, "https://%063d.example/", 0);
    assert_int_equal(kn_webhook_url_parse(&url, text, NULL), KN_OK);
    snprintf(text, sizeof text, "https://%064d.example/", 0);
    assert_int_equal(kn_webhook_url_parse(&url, text, NULL), KN_INVALID);
}

static void test_development_and_the_allow_list(void **state)
{
    (void)state;
    static const char *const allow[] = {"127.0.0.1:8080", "Hooks.example:9443", "[::1]:443", "10.0.0.1:80"};
    const kn_webhook_policy strict = {.allow = allow, .allow_count = 4};
    const kn_webhook_policy development = {.development = true, .allow = allow, .allow_count = 4};
    static const struct {
        const char *url;
        bool strict, development;
    } rows[] = {
        {"https://127.0.0.1:8080/x", true, true},
        {"http://127.0.0.1:8080/x", false, true},
        {"https://hooks.EXAMPLE:9443/", true, true},
        {"https://hooks.example/", true, true}, /* checked at connect */
        {"https://hooks.example:9444/", false, false},
        {"https://[::1]/", true, true},
        {"https://[0:0::1]/", false, false}, /* the same address in another spelling is not on the list */
        {"http://10.0.0.1/", false, true},
        {"https://10.0.0.1/", false, false},
        {"http://example.com/", false, true},
        {"http://example.com:8080/", false, false},
        {"http://example.com:443/", false, false},
        {"https://127.0.0.1:8081/", false, false},
        {"https://x127.0.0.1:8080/", false, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kn_webhook_url url;
        if ((kn_webhook_url_parse(&url, rows[i].url, &strict) == KN_OK) != rows[i].strict) fail_msg("%s", rows[i].url);
        if ((kn_webhook_url_parse(&url, rows[i].url, &development) == KN_OK) != rows[i].development)
            fail_msg("development: %s", rows[i].url);
    }
    kn_webhook_url url;
    assert_int_equal(kn_webhook_url_parse(&url, "https://hooks.example/", &strict), KN_OK);
    assert_false(url.listed); /* another port: the address is still checked */
    assert_int_equal(kn_webhook_url_parse(&url, "https://hooks.example:9443/", &strict), KN_OK);
    assert_true(url.listed);
}

static void test_allow_list_entries(void **state)
{
    (void)state;
    static const char *const good[] = {"a:1", "127.0.0.1:65535", "[::1]:80", "hooks.example:8443"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_int_equal(kn_webhook_check_allow(good[i]), KN_OK);
    static const char *const bad[] = {"",     "a",     "a:",     ":1",    "a:0",      "a:65536", "https://a:1",
                                      "a:1/", "[::1]", "::1:80", "a b:1", "127.1:80", "*:80"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (kn_webhook_check_allow(bad[i]) != KN_INVALID) fail_msg("%s was taken", bad[i]);
        assert_int_equal(strncmp(kn_fail_message(), "allow list: ", 12), 0);
    }
    char entry[KN_WEBHOOK_HOST_MAX + 16];
    memset(entry, 'a', sizeof entry);
    for (size_t i = 63; i < sizeof entry; i += 64) entry[i] = '.';
    snprintf(entry + KN_WEBHOOK_HOST_MAX, 8, ":65535");
    assert_int_equal(kn_webhook_check_allow(entry), KN_OK);
    entry[KN_WEBHOOK_HOST_MAX] = 'a';
    snprintf(entry + KN_WEBHOOK_HOST_MAX + 1, 8, ":65535");
    assert_int_equal(kn_webhook_check_allow(entry), KN_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forbidden_addresses), cmocka_unit_test(test_addresses_beside_the_ranges),
        cmocka_unit_test(test_urls_that_are_taken), cmocka_unit_test(test_urls_that_are_not),
        cmocka_unit_test(test_length_limits),       cmocka_unit_test(test_development_and_the_allow_list),
        cmocka_unit_test(test_allow_list_entries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
