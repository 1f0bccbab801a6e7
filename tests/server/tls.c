/* SPDX-License-Identifier: Apache-2.0
 *
 * Handshakes between our server side and OpenSSL's client side, in memory. */
#define _GNU_SOURCE
#include "server/tls.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "base/mem.h"
#include "tests/server/tls_files.h"

static folder files;

static int make_files(void **state)
{
    (void)state;
    files = folder_create();
    make_certificate(&files, "one", 1, 3600, NULL);
    make_certificate(&files, "two", 2, 3600, NULL);
    make_certificate(&files, "old", 3, -60, NULL);
    make_certificate(&files, "locked", 4, 3600, "secret");
    make_certificate(&files, "client", 5, 3600, NULL);
    folder_text(&files, "junk", "not a certificate\n");
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    folder_remove(&files);
    return 0;
}

static kn_tls *open_tls(const char *certificate, const char *key, const char *client_ca, bool http2)
{
    kn_tls *tls = NULL;
    const kn_tls_params params = {
        .certificate = folder_file(&files, certificate),
        .key = folder_file(&files, key),
        .client_ca = client_ca ? folder_file(&files, client_ca) : NULL,
        .http2 = http2,
    };
    if (kn_tls_create(&tls, &params) != KN_OK) fail_msg("%s", kn_fail_message());
    return tls;
}

static void bad_files_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *certificate, *key, *client_ca;
        kn_status status;
        const char *named;
    } cases[] = {
        {"none.crt", "one.key", NULL, KN_NOT_FOUND, "none.crt"},
        {"one.crt", "none.key", NULL, KN_NOT_FOUND, "none.key"},
        {"junk", "one.key", NULL, KN_INVALID, "junk"},
        {"one.crt", "junk", NULL, KN_INVALID, "junk"},
        {"one.crt", "two.key", NULL, KN_INVALID, "two.key"},
        {"old.crt", "old.key", NULL, KN_INVALID, "expired"},
        {"locked.crt", "locked.key", NULL, KN_INVALID, "locked.key"}, /* nobody is asked for the passphrase */
        {"one.crt", "one.key", "none.crt", KN_NOT_FOUND, "none.crt"},
        {"one.crt", "one.key", "junk", KN_INVALID, "junk"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_tls *tls = NULL;
        const kn_tls_params params = {
            .certificate = folder_file(&files, cases[i].certificate),
            .key = folder_file(&files, cases[i].key),
            .client_ca = cases[i].client_ca ? folder_file(&files, cases[i].client_ca) : NULL,
        };
        const kn_status st = kn_tls_create(&tls, &params);
        if (st != cases[i].status || !strstr(kn_fail_message(), cases[i].named))
            fail_msg("case %zu: %s: %s", i, kn_status_name(st), kn_fail_message());
        assert_null(tls);
        assert_int_equal(ERR_peek_error(), 0);
    }
}

typedef struct pair {
    SSL_CTX *context;
    SSL *server, *client;
    bool agreed;
} pair;

/* A client that offers `alpn` (wire form, NULL: none), at most TLS version `version` (0: any). */
static pair shake_hands(kn_tls *tls, const char *alpn, int version, const char *ciphers, const char *identity)
{
    pair p = {.context = SSL_CTX_new(TLS_client_method())};
    BIO *a = NULL, *b = NULL;
    char file[64];
    assert_non_null(p.context);
    SSL_CTX_set_security_level(p.context, 0); /* the server must be the one who refuses */
    SSL_CTX_set_min_proto_version(p.context, TLS1_VERSION);
    if (version) SSL_CTX_set_max_proto_version(p.context, version);
    if (ciphers) assert_int_equal(SSL_CTX_set_cipher_list(p.context, ciphers), 1);
    if (alpn) SSL_CTX_set_alpn_protos(p.context, (const unsigned char *)alpn, (unsigned)strlen(alpn));
    if (identity) {
        snprintf(file, sizeof file, "%s.crt", identity);
        assert_int_equal(SSL_CTX_use_certificate_file(p.context, folder_file(&files, file), SSL_FILETYPE_PEM), 1);
        snprintf(file, sizeof file, "%s.key", identity);
        assert_int_equal(SSL_CTX_use_PrivateKey_file(p.context, folder_file(&files, file), SSL_FILETYPE_PEM), 1);
    }
    assert_int_equal(kn_tls_session(tls, &p.server), KN_OK);
    p.client = SSL_new(p.context);
    assert_int_equal(BIO_new_bio_pair(&a, 0, &b, 0), 1);
    SSL_set_bio(p.server, a, a);
    SSL_set_bio(p.client, b, b);
    SSL_set_accept_state(p.server);
    SSL_set_connect_state(p.client);
    for (int i = 0; i < 10; i++) {
        SSL_do_handshake(p.client);
        SSL_do_handshake(p.server);
    }
    p.agreed = SSL_is_init_finished(p.client) && SSL_is_init_finished(p.server);
    ERR_clear_error();
    return p;
}

static void part(pair *p)
{
    SSL_free(p->client);
    SSL_free(p->server);
    SSL_CTX_free(p->context);
}

static bool agrees(kn_tls *tls, const char *alpn, int version, const char *ciphers, const char *identity)
{
    pair p = shake_hands(tls, alpn, version, ciphers, identity);
    part(&p);
    return p.agreed;
}

static void only_good_versions_and_ciphers_are_agreed_on(void **state)
{
    (void)state;
    kn_tls *tls = open_tls("one.crt", "one.key", NULL, false);
    pair p = shake_hands(tls, NULL, 0, NULL, NULL);
    assert_true(p.agreed);
    assert_string_equal(SSL_get_version(p.client), "TLSv1.3");
    assert_int_equal(serial_of(p.client), 1);
    assert_false(SSL_session_reused(p.client));
    assert_false(kn_tls_agreed_http2(p.server));
    part(&p);
    p = shake_hands(tls, NULL, TLS1_2_VERSION, NULL, NULL);
    assert_true(p.agreed);
    assert_int_equal(SSL_CIPHER_is_aead(SSL_get_current_cipher(p.client)), 1);
    assert_null(SSL_get_current_compression(p.client));
    part(&p);
    assert_true(agrees(tls, NULL, TLS1_2_VERSION, "ECDHE+CHACHA20", NULL));
    assert_false(agrees(tls, NULL, TLS1_2_VERSION, "ECDHE-ECDSA-AES128-SHA256", NULL)); /* CBC */
    assert_false(agrees(tls, NULL, TLS1_2_VERSION, "AES128-GCM-SHA256", NULL));         /* no forward secrecy */
    assert_false(agrees(tls, NULL, TLS1_1_VERSION, NULL, NULL));
    assert_false(agrees(tls, NULL, TLS1_VERSION, NULL, NULL));
    kn_tls_destroy(&tls);
    assert_null(tls);
}

static void alpn_is_strict(void **state)
{
    (void)state;
    kn_tls *plain = open_tls("one.crt", "one.key", NULL, false), *both = open_tls("one.crt", "one.key", NULL, true);
    assert_true(agrees(plain, "\x08http/1.1", 0, NULL, NULL));
    assert_true(agrees(plain, "\x02h2\x08http/1.1", 0, NULL, NULL));
    assert_false(agrees(plain, "\x02h2", 0, NULL, NULL));
    assert_false(agrees(plain,
                        "\x03"
                        "foo",
                        0, NULL, NULL));
    pair p = shake_hands(both, "\x08http/1.1\x02h2", 0, NULL, NULL);
    assert_true(p.agreed && kn_tls_agreed_http2(p.server)); /* our preference */
    part(&p);
    p = shake_hands(both, "\x08http/1.1", 0, NULL, NULL);
    assert_true(p.agreed && !kn_tls_agreed_http2(p.server));
    part(&p);
    kn_tls_destroy(&plain);
    kn_tls_destroy(&both);
}

static void clients_show_a_certificate_where_one_is_asked_for(void **state)
{
    (void)state;
    kn_tls *tls = open_tls("one.crt", "one.key", "client.crt", false);
    assert_true(agrees(tls, NULL, TLS1_2_VERSION, NULL, "client"));
    assert_true(agrees(tls, NULL, 0, NULL, "client"));
    assert_false(agrees(tls, NULL, TLS1_2_VERSION, NULL, NULL));
    assert_false(agrees(tls, NULL, TLS1_2_VERSION, NULL, "two"));
    pair p = shake_hands(tls, NULL, 0, NULL, NULL); /* in 1.3 the client learns of it later; the server knows */
    assert_false(SSL_is_init_finished(p.server));
    part(&p);
    kn_tls_destroy(&tls);
}

static void reloading_changes_new_sessions_only_and_only_when_it_can(void **state)
{
    (void)state;
    make_certificate(&files, "live", 10, 3600, NULL);
    kn_tls *tls = open_tls("live.crt", "live.key", NULL, false);
    SSL *early = NULL;
    assert_int_equal(kn_tls_session(tls, &early), KN_OK);
    make_certificate(&files, "live", 11, 3600, NULL);
    pair p = shake_hands(tls, NULL, 0, NULL, NULL);
    assert_int_equal(serial_of(p.client), 10); /* not before it is asked to */
    part(&p);
    assert_int_equal(kn_tls_reload(tls), KN_OK);
    p = shake_hands(tls, NULL, 0, NULL, NULL);
    assert_int_equal(serial_of(p.client), 11);
    folder_text(&files, "live.key", "torn");
    assert_int_equal(kn_tls_reload(tls), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "live.key"));
    pair q = shake_hands(tls, NULL, 0, NULL, NULL);
    assert_int_equal(serial_of(q.client), 11);
    make_certificate(&files, "live", 12, -60, NULL);
    assert_int_equal(kn_tls_reload(tls), KN_INVALID);
    kn_tls_destroy(&tls); /* sessions live on */
    char byte = 0;
    assert_int_equal(SSL_write(q.client, "x", 1), 1);
    assert_int_equal(SSL_read(q.server, &byte, 1), 1);
    assert_int_equal(byte, 'x');
    part(&p);
    part(&q);
    SSL_free(early);
}

static void no_memory_is_an_error_and_no_leak(void **state)
{
    (void)state;
    kn_status st = KN_NOMEM;
    for (uint64_t n = 1; st == KN_NOMEM; n++) {
        kn_tls *tls = NULL;
        const kn_tls_params params = {.certificate = folder_file(&files, "one.crt"),
                                      .key = folder_file(&files, "one.key"),
                                      .client_ca = folder_file(&files, "client.crt")};
        const uint64_t held = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        st = kn_tls_create(&tls, &params);
        kn_mem_fail_at(0);
        kn_tls_destroy(&tls);
        assert_int_equal(kn_mem_read().bytes, held);
        assert_true(n < 100 && (st == KN_OK || n < 10));
    }
    assert_int_equal(st, KN_OK);
    kn_tls_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files_are_named),
        cmocka_unit_test(only_good_versions_and_ciphers_are_agreed_on),
        cmocka_unit_test(alpn_is_strict),
        cmocka_unit_test(clients_show_a_certificate_where_one_is_asked_for),
        cmocka_unit_test(reloading_changes_new_sessions_only_and_only_when_it_can),
        cmocka_unit_test(no_memory_is_an_error_and_no_leak),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
