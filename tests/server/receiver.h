/* SPDX-License-Identifier: Apache-2.0
 *
 * A webhook receiver in a process of its own on 127.0.0.1, with the manners its paths are named after, plain or over
 * TLS with a certificate made for the test. Each connection has its own process, so that one that hangs holds up
 * nobody. What it sees is in memory shared with the test. Needs _GNU_SOURCE. */
#ifndef KN_TESTS_SERVER_RECEIVER_H
#define KN_TESTS_SERVER_RECEIVER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct receiver_seen {
    atomic_int requests;     /* whole requests */
    atomic_int open, widest; /* connections in /slow now, and at most */
    atomic_llong sent;       /* bytes of answers */
    char request[1 << 16];   /* the last one: head and body */
} receiver_seen;

typedef struct receiver {
    pid_t process;
    int port;
    receiver_seen *seen; /* may be shared by several */
    SSL_CTX *tls;        /* or NULL */
} receiver;

typedef struct receiver_peer {
    int socket;
    SSL *tls; /* or NULL */
    receiver_seen *seen;
} receiver_peer;

static inline ssize_t receiver_read(receiver_peer *p, void *bytes, size_t count)
{
    return p->tls ? SSL_read(p->tls, bytes, (int)count) : recv(p->socket, bytes, count, 0);
}

static inline bool receiver_write(receiver_peer *p, const void *bytes, size_t count)
{
    const ssize_t n = p->tls ? SSL_write(p->tls, bytes, (int)count) : send(p->socket, bytes, count, MSG_NOSIGNAL);
    if (n > 0) atomic_fetch_add(&p->seen->sent, n);
    return n == (ssize_t)count;
}

static inline void receiver_say(receiver_peer *p, const char *answer)
{
    receiver_write(p, answer, strlen(answer));
}

static inline void receiver_wait_ms(int ms)
{
    poll(NULL, 0, ms);
}

/* Up to the end of the body; false when the sender goes away before. */
static inline bool receiver_read_request(receiver_peer *p, char *text, size_t bytes)
{
    size_t count = 0;
    for (;;) {
        text[count] = '\0';
        const char *end = strstr(text, "\r\n\r\n");
        const char *length = strcasestr(text, "\r\ncontent-length:");
        if (end && length && count >= (size_t)(end + 4 - text) + strtoul(length + 17, NULL, 10)) return true;
        if (count == bytes - 1) return false;
        const ssize_t n = receiver_read(p, text + count, bytes - 1 - count);
        if (n <= 0) return false;
        count += (size_t)n;
    }
}

static inline void receiver_flood(receiver_peer *p, const char *head, const char *line)
{
    receiver_say(p, head);
    char block[16384];
    size_t used = 0;
    for (const size_t n = strlen(line); used + n <= sizeof block; used += n) memcpy(block + used, line, n);
    for (long long total = 0; total < 10LL << 30; total += (long long)used)
        if (!receiver_write(p, block, used)) return;
}

static inline void receiver_slow(receiver_peer *p)
{
    const int now = atomic_fetch_add(&p->seen->open, 1) + 1;
    int widest = atomic_load(&p->seen->widest);
    while (now > widest && !atomic_compare_exchange_weak(&p->seen->widest, &widest, now)) continue;
    receiver_wait_ms(200);
    atomic_fetch_sub(&p->seen->open, 1);
    receiver_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

static inline void receiver_answer(receiver_peer *p, const char *path)
{
    static const struct {
        const char *path, *answer;
    } fixed[] = {
        {"/ok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
        {"/204", "HTTP/1.1 204 No Content\r\n\r\n"},
        {"/500", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"},
        {"/410", "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"},
        {"/404", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nRetry-After: x\r\n\r\n"},
        {"/429", "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"},
        {"/redirect", "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"},
        {"/redirect-home", "HTTP/1.1 307 Temporary Redirect\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n"},
        {"/cut", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nten bytes."},
        {"/half-head", "HTTP/1.1 200 OK\r\nContent-Le"},
        {"/nothing", ""},
        {"/garbage", "\x16\x03\x01 this is not HTTP\r\n\r\n"},
        {"/old", "no status line at all"},
        {"/strange", "HTTP/1.1 200 \x1b[31m\x01OK\r\nContent-Length: 0\r\n\r\n"},
    };
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (strcmp(path, fixed[i].path) == 0) receiver_say(p, fixed[i].answer);
    if (strcmp(path, "/hang") == 0) receiver_wait_ms(60000);
    if (strcmp(path, "/trickle") == 0) {
        receiver_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
        for (int i = 0; i < 100; i++) {
            receiver_wait_ms(500);
            receiver_say(p, "x");
        }
    }
    if (strcmp(path, "/huge") == 0)
        receiver_flood(p, "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n", "0123456789abcdef");
    if (strcmp(path, "/headers") == 0) receiver_flood(p, "HTTP/1.1 200 OK\r\n", "x-more: 0123456789abcdef\r\n");
    if (strcmp(path, "/many-headers") == 0) { /* 78 KiB, and then a proper end */
        receiver_say(p, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n");
        for (int i = 0; i < 3072; i++) receiver_say(p, "x-more: 0123456789abcdef\r\n");
        receiver_say(p, "\r\n");
    }
    if (strcmp(path, "/slow") == 0) receiver_slow(p);
}

static inline void receiver_serve(receiver_peer *p)
{
    static char request[1 << 16];
    char path[256] = "";
    if (!receiver_read_request(p, request, sizeof request)) return;
    memcpy(p->seen->request, request, sizeof request);
    atomic_fetch_add(&p->seen->requests, 1);
    if (sscanf(request, "POST %255s HTTP/1.1", path) == 1) receiver_answer(p, path);
}

static inline void receiver_loop(const receiver *r, int listener)
{
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        receiver_peer p = {.socket = accept(listener, NULL, NULL), .seen = r->seen};
        if (p.socket < 0) _exit(1);
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (r->tls) {
                p.tls = SSL_new(r->tls);
                SSL_set_fd(p.tls, p.socket);
                if (SSL_accept(p.tls) != 1) _exit(1);
            }
            receiver_serve(&p);
            if (p.tls) SSL_shutdown(p.tls);
            _exit(0);
        }
        close(p.socket);
    }
}

static inline receiver_seen *receiver_memory(void)
{
    void *shared = mmap(NULL, sizeof(receiver_seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    return shared;
}

/* `tls`: NULL for plain HTTP; stays the caller's. */
static inline receiver receiver_start(receiver_seen *seen, SSL_CTX *tls)
{
    receiver r = {.seen = seen, .tls = tls};
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof at;
    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(listener, 128), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &bytes), 0);
    r.port = ntohs(at.sin_port);
    r.process = fork();
    assert_true(r.process >= 0);
    if (r.process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        receiver_loop(&r, listener);
    }
    close(listener);
    return r;
}

static inline void receiver_stop(receiver *r)
{
    kill(r->process, SIGKILL);
    waitpid(r->process, NULL, 0);
    r->process = 0;
}

/* ---- a certificate ---- */

static inline X509 *receiver_certificate(EVP_PKEY *key)
{
    X509 *x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)"test", -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(x));
    const int kinds[] = {NID_basic_constraints, NID_subject_alt_name};
    const char *const values[] = {"critical,CA:TRUE", "DNS:localhost,IP:127.0.0.1"};
    for (int i = 0; i < 2; i++) {
        X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, kinds[i], values[i]);
        assert_non_null(extension);
        X509_add_ext(x, extension, -1);
        X509_EXTENSION_free(extension);
    }
    assert_true(X509_sign(x, key, EVP_sha256()) > 0);
    return x;
}

/* A context with a fresh certificate for localhost, which is its own authority and is written to `path`. */
static inline SSL_CTX *receiver_tls(const char *path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    assert_non_null(key);
    X509 *certificate = receiver_certificate(key);
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    assert_int_equal(PEM_write_X509(out, certificate), 1);
    fclose(out);
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    assert_non_null(tls);
    assert_int_equal(SSL_CTX_use_certificate(tls, certificate), 1);
    assert_int_equal(SSL_CTX_use_PrivateKey(tls, key), 1);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return tls;
}

#endif
