/* SPDX-License-Identifier: Apache-2.0
 *
 * A context is built whole from the files, checked, and only then takes the old one's place; sessions hold a
 * reference to the context they were made from. */
#include "server/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <string.h>

#include "base/mem.h"

struct kn_tls {
    SSL_CTX *context;
    char *certificate, *key, *client_ca;
    bool http2;
};

/* The first of the reasons OpenSSL gives for a failure; leaves its queue empty. */
static kn_status fail_with_reason(const char *path, const char *what)
{
    const unsigned long code = ERR_peek_error();
    const int error = ERR_SYSTEM_ERROR(code) ? ERR_GET_REASON(code) : 0;
    const char *reason = error ? strerror(error) : ERR_reason_error_string(code);
    ERR_clear_error();
    if (error) return kn_fail(error == ENOENT ? KN_NOT_FOUND : KN_IO, "%s: %s", path, reason);
    return kn_fail(KN_INVALID, "%s: %s%s%s", path, what, reason ? ": " : "", reason ? reason : "");
}

/* What the server speaks, best first: with HTTP/2 and without. Static, since handshakes may outlive the kn_tls. */
static const unsigned char protocols[] = "\x02h2\x08http/1.1";

/* ALPN, strict: a client that names protocols must name one of ours (RFC 7301 3.2). */
static int choose_protocol(SSL *session, const unsigned char **out, unsigned char *out_bytes,
                           const unsigned char *offered, unsigned offered_bytes, void *context)
{
    const unsigned char *ours = context;
    unsigned char *chosen = NULL;
    (void)session;
    if (SSL_select_next_proto(&chosen, out_bytes, ours, (unsigned)(protocols + sizeof protocols - 1 - ours), offered,
                              offered_bytes) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

/* Instead of asking on the terminal. */
static int no_passphrase(char *buffer, int room, int writing, void *context)
{
    (void)buffer, (void)room, (void)writing, (void)context;
    return 0;
}

static kn_status load_certificate(SSL_CTX *context, const kn_tls *tls)
{
    if (SSL_CTX_use_certificate_chain_file(context, tls->certificate) != 1)
        return fail_with_reason(tls->certificate, "not a PEM certificate chain");
    if (SSL_CTX_use_PrivateKey_file(context, tls->key, SSL_FILETYPE_PEM) != 1)
        return fail_with_reason(tls->key, "not the PEM private key of the certificate");
    if (SSL_CTX_check_private_key(context) != 1)
        return fail_with_reason(tls->key, "does not belong to the certificate");
    if (X509_cmp_current_time(X509_get0_notAfter(SSL_CTX_get0_certificate(context))) <= 0)
        return kn_fail(KN_INVALID, "%s: the certificate has expired", tls->certificate);
    if (!tls->client_ca) return KN_OK;
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(tls->client_ca);
    if (!names || SSL_CTX_load_verify_file(context, tls->client_ca) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return fail_with_reason(tls->client_ca, "not PEM certificates");
    }
    SSL_CTX_set_client_CA_list(context, names); /* taken */
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return KN_OK;
}

static kn_status build_context(SSL_CTX **out, const kn_tls *tls)
{
    kn_status st = KN_OK;
    ERR_clear_error();
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context) return kn_fail(KN_NOMEM, "no memory for a TLS context");
    SSL_CTX_set_options(context, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_SINGLE_ECDH_USE);
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS); /* an idle connection holds no record buffers */
    SSL_CTX_set_security_level(context, 2);
    SSL_CTX_set_alpn_select_cb(context, choose_protocol, (void *)(uintptr_t)(tls->http2 ? protocols : protocols + 3));
    SSL_CTX_set_default_passwd_cb(context, no_passphrase);
    if (SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20") != 1 ||
        SSL_CTX_set1_groups_list(context, "X25519:P-256:P-384") != 1)
        KN_TRY(fail_with_reason("TLS", "this OpenSSL lacks the ciphers"));
    KN_TRY(load_certificate(context, tls));
    *out = context;
    return KN_OK;
fail:
    SSL_CTX_free(context);
    return st;
}

static kn_status copy_path(char **out, const char *path)
{
    *out = path ? kn_strdup(path) : NULL;
    return path && !*out ? KN_NOMEM : KN_OK;
}

kn_status kn_tls_create(kn_tls **out, const kn_tls_params *params)
{
    kn_status st = KN_OK;
    KN_REQUIRE(params->certificate && params->key);
    kn_tls *tls = kn_alloc(sizeof *tls);
    if (!tls) return KN_NOMEM;
    tls->http2 = params->http2;
    KN_TRY(copy_path(&tls->certificate, params->certificate));
    KN_TRY(copy_path(&tls->key, params->key));
    KN_TRY(copy_path(&tls->client_ca, params->client_ca));
    KN_TRY(build_context(&tls->context, tls));
    *out = tls;
    return KN_OK;
fail:
    kn_tls_destroy(&tls);
    return st;
}

void kn_tls_destroy(kn_tls **tls)
{
    if (!tls || !*tls) return;
    SSL_CTX_free((*tls)->context);
    kn_free((*tls)->certificate);
    kn_free((*tls)->key);
    kn_free((*tls)->client_ca);
    kn_free(*tls);
    *tls = NULL;
}

kn_status kn_tls_reload(kn_tls *tls)
{
    SSL_CTX *fresh = NULL;
    const kn_status st = build_context(&fresh, tls);
    if (st != KN_OK) return st;
    SSL_CTX_free(tls->context);
    tls->context = fresh;
    return KN_OK;
}

kn_status kn_tls_session(kn_tls *tls, SSL **out)
{
    *out = SSL_new(tls->context);
    if (*out) return KN_OK;
    ERR_clear_error();
    return kn_fail(KN_NOMEM, "no memory for a TLS connection");
}

bool kn_tls_agreed_http2(const SSL *session)
{
    const unsigned char *name = NULL;
    unsigned bytes = 0;
    SSL_get0_alpn_selected(session, &name, &bytes);
    return bytes == 2 && memcmp(name, "h2", 2) == 0;
}
