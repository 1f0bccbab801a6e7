/* SPDX-License-Identifier: Apache-2.0
 *
 * Certificates and keys as files, made on the spot. Needs _GNU_SOURCE. */
#ifndef KN_TESTS_SERVER_TLS_FILES_H
#define KN_TESTS_SERVER_TLS_FILES_H

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "tests/engine/folder.h"

/* A self-signed certificate for localhost and 127.0.0.1 with this serial number, valid from an hour ago until
 * `seconds` from now, in folder/NAME.crt, and its key in folder/NAME.key, encrypted where `passphrase` is given. */
static inline void make_certificate(const folder *in, const char *name, long serial, long seconds,
                                    const char *passphrase)
{
    char file[64];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *made = X509_new();
    X509V3_CTX context;
    if (!key || !made) abort();
    X509_set_version(made, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(made), serial);
    X509_gmtime_adj(X509_getm_notBefore(made), -3600);
    X509_gmtime_adj(X509_getm_notAfter(made), seconds);
    X509_set_pubkey(made, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1,
                               -1, 0);
    X509_set_issuer_name(made, X509_get_subject_name(made));
    X509V3_set_ctx(&context, made, made, NULL, NULL, 0);
    X509_EXTENSION *names = X509V3_EXT_conf_nid(NULL, &context, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
    if (!names || !X509_add_ext(made, names, -1) || !X509_sign(made, key, EVP_sha256())) abort();
    X509_EXTENSION_free(names);
    snprintf(file, sizeof file, "%s.crt", name);
    FILE *out = fopen(folder_file(in, file), "w");
    if (!out || !PEM_write_X509(out, made) || fclose(out) != 0) abort();
    snprintf(file, sizeof file, "%s.key", name);
    out = fopen(folder_file(in, file), "w");
    if (!out ||
        !PEM_write_PrivateKey(out, key, passphrase ? EVP_aes_128_cbc() : NULL, NULL, 0, NULL,
                              (void *)(uintptr_t)passphrase) ||
        fclose(out) != 0)
        abort();
    X509_free(made);
    EVP_PKEY_free(key);
}

static inline long serial_of(const SSL *session)
{
    X509 *shown = SSL_get1_peer_certificate(session);
    const long serial = shown ? ASN1_INTEGER_get(X509_get0_serialNumber(shown)) : -1;
    X509_free(shown);
    return serial;
}

#endif
