/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS for the servers of this room: OpenSSL 3, TLS 1.3 and 1.2, authenticated encryption with forward secrecy only
 * (RFC 8446, RFC 9325), no compression, no renegotiation, no tickets and no session cache (a resumption secret that
 * lives as long as the process would undo the forward secrecy).
 *
 * One object, one thread: that of the event loop. */
#ifndef KN_SERVER_TLS_H
#define KN_SERVER_TLS_H

#include <stdbool.h>

#include "base/status.h"

typedef struct kn_tls kn_tls;
struct ssl_st;

/* Paths are copied, and read again by kn_tls_reload(). */
typedef struct kn_tls_params {
    const char *certificate; /* PEM: the server's certificate, then the chain up to the root, which may be left out */
    const char *key;         /* PEM: its private key, without a passphrase */
    const char *client_ca;   /* PEM: clients must show a certificate signed by one of these; NULL: none is asked for */
    bool http2;              /* agree on "h2" (ALPN) where the client offers it; "http/1.1" always */
} kn_tls_params;

/* KN_NOT_FOUND, KN_INVALID (not PEM, a key that does not belong to the certificate, an expired certificate) name the
 * file. */
kn_status kn_tls_create(kn_tls **out, const kn_tls_params *params);
void kn_tls_destroy(kn_tls **tls); /* connections made from it live on */

/* Reads the files again. On failure the old certificate stays in use. Connections that exist keep theirs. */
kn_status kn_tls_reload(kn_tls *tls);

/* A fresh server-side SSL; the caller owns it (SSL_free, or a bufferevent that takes it). */
kn_status kn_tls_session(kn_tls *tls, struct ssl_st **out);

/* Did the handshake agree on "h2"? */
bool kn_tls_agreed_http2(const struct ssl_st *session);

#endif
