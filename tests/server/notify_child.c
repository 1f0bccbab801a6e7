/* SPDX-License-Identifier: Apache-2.0
 *
 * What the notifier's process does with receivers of every kind: polite, broken, hostile. */
#define _GNU_SOURCE
#include <openssl/hmac.h>

#include "server/notify.h"
#include "tests/engine/folder.h"
#include "tests/server/delivering.h"
#include "tests/server/receiver.h"

static char listed[64]; /* the receiver as an allow list names it */
static const char *const allow[] = {listed};

static const char *url_of(const receiver *r, const char *path)
{
    static char urls[8][128];
    static int next;
    char *url = urls[next++ % 8];
    snprintf(url, sizeof urls[0], "%s://127.0.0.1:%d%s", r->tls ? "https" : "http", r->port, path);
    return url;
}

/* A plain receiver, listed, and a notifier that may reach it. */
static office *open_plain(receiver *r)
{
    *r = receiver_start(receiver_memory(), NULL);
    snprintf(listed, sizeof listed, "127.0.0.1:%d", r->port);
    return office_open((kn_notifier_params){.policy = {.development = true, .allow = allow, .allow_count = 1}});
}

static void close_plain(receiver *r, office *o)
{
    office_close(o);
    receiver_stop(r);
    munmap(r->seen, sizeof *r->seen);
}

/* ---- what arrives ---- */

static void header_value(const char *request, const char *name, char *out, size_t bytes)
{
    char start[64];
    snprintf(start, sizeof start, "\r\n%s: ", name);
    const char *at = strcasestr(request, start);
    if (!at) fail_msg("no header %s in:\n%s", name, request);
    at += strlen(start);
    assert_null(strcasestr(at, start)); /* once */
    snprintf(out, bytes, "%.*s", (int)strcspn(at, "\r"), at);
}

/* HMAC by another route than the one under test: its own message, the library's one-shot function. */
static void assert_signed(const char *signature, const void *key, int key_bytes, const char *id, const char *timestamp,
                          const char *body)
{
    char message[1024], expected[64] = "v1,";
    unsigned char code[32];
    const int count = snprintf(message, sizeof message, "%s.%s.%s", id, timestamp, body);
    assert_non_null(HMAC(EVP_sha256(), key, key_bytes, (unsigned char *)message, (size_t)count, code, NULL));
    EVP_EncodeBlock((unsigned char *)expected + 3, code, sizeof code);
    if (!strstr(signature, expected)) fail_msg("%s is not in %s", expected, signature);
}

static void test_a_delivery_as_it_arrives(void **state)
{
    (void)state;
    receiver r;
    setenv("http_proxy", "http://127.0.0.1:1", 1); /* must not be heeded */
    setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
    office *o = open_plain(&r);
    const char *const secrets[] = {office_secret, "a plain text secret of 33 letters"};
    const char *body = "{\"type\":\"video.failed\",\"text\":\"\xc3\xa4\"}";
    assert_int_equal(kn_notifier_send(o->notifier, &(kn_delivery){.id = 77,
                                                                  .attempt = 3,
                                                                  .url = url_of(&r, "/ok?a=b"),
                                                                  .secrets = secrets,
                                                                  .secret_count = 2,
                                                                  .event_id = "evt_77",
                                                                  .body = body,
                                                                  .body_bytes = strlen(body)}),
                     KN_OK);
    office_wait(o, 1);
    unsetenv("http_proxy");
    unsetenv("ALL_PROXY");
    assert_int_equal(o->results[0].as.id, 77);
    assert_int_equal(o->results[0].as.attempt, 3);
    const char *request = r.seen->request;
    assert_int_equal(strncmp(request, "POST /ok?a=b HTTP/1.1\r\n", 23), 0);
    char id[64], timestamp[32], signature[256], type[64], agent[64], host[64];
    header_value(request, "webhook-id", id, sizeof id);
    header_value(request, "webhook-timestamp", timestamp, sizeof timestamp);
    header_value(request, "webhook-signature", signature, sizeof signature);
    header_value(request, "content-type", type, sizeof type);
    header_value(request, "user-agent", agent, sizeof agent);
    header_value(request, "host", host, sizeof host);
    assert_string_equal(id, "evt_77");
    assert_string_equal(type, "application/json");
    assert_string_equal(agent, "Kinora/" KN_VERSION);
    assert_string_equal(host, listed);
    assert_null(strcasestr(request, "\r\nexpect:"));
    assert_null(strcasestr(request, "\r\naccept-encoding:"));
    assert_string_equal(strstr(request, "\r\n\r\n") + 4, body);
    const long long off = strtoll(timestamp, NULL, 10) - (long long)time(NULL);
    assert_true(off > -KN_WEBHOOK_TOLERANCE_S && off < KN_WEBHOOK_TOLERANCE_S);
    unsigned char key[64];
    const int key_bytes = EVP_DecodeBlock(key, (const unsigned char *)office_secret + 6, 32);
    assert_signed(signature, key, key_bytes, id, timestamp, body);
    assert_signed(signature, secrets[1], (int)strlen(secrets[1]), id, timestamp, body);
    assert_int_equal(
        kn_webhook_verify(secrets, 2, id, strtoll(timestamp, NULL, 10), body, strlen(body), signature, time(NULL)),
        KN_OK);
    close_plain(&r, o);
}

/* ---- answers ---- */

static void test_answers_of_every_kind(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        kn_webhook_outcome outcome;
        int status;
    } rows[] = {
        {"/ok", KN_WEBHOOK_DELIVERED, 200},      {"/204", KN_WEBHOOK_DELIVERED, 204},
        {"/500", KN_WEBHOOK_FAILED, 500},        {"/404", KN_WEBHOOK_FAILED, 404},
        {"/410", KN_WEBHOOK_GONE, 410},          {"/429", KN_WEBHOOK_THROTTLED, 429},
        {"/redirect", KN_WEBHOOK_FAILED, 302},   {"/redirect-home", KN_WEBHOOK_FAILED, 307},
        {"/cut", KN_WEBHOOK_FAILED, 0},          {"/half-head", KN_WEBHOOK_FAILED, 0},
        {"/nothing", KN_WEBHOOK_FAILED, 0},      {"/garbage", KN_WEBHOOK_FAILED, 0},
        {"/old", KN_WEBHOOK_FAILED, 0},          {"/huge", KN_WEBHOOK_DELIVERED, 200},
        {"/headers", KN_WEBHOOK_FAILED, 0},      {"/strange", KN_WEBHOOK_DELIVERED, 200},
        {"/many-headers", KN_WEBHOOK_FAILED, 0},
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    receiver r;
    office *o = open_plain(&r);
    for (int i = 0; i < ROWS; i++) assert_int_equal(office_send(o, i, url_of(&r, rows[i].path)), KN_OK);
    office_wait(o, ROWS);
    for (int i = 0; i < ROWS; i++) {
        const office_result *result = office_find(o, i);
        if (result->as.outcome != rows[i].outcome || result->as.http_status != rows[i].status)
            fail_msg("%s: %s, %d, %s", rows[i].path, kn_webhook_outcome_name(result->as.outcome),
                     result->as.http_status, result->error);
        for (const char *c = result->error; *c; c++) assert_true(*c >= ' ' && *c <= '~');
        assert_int_equal(result->as.retry_after_s, strcmp(rows[i].path, "/429") == 0 ? 120 : 0);
    }
    assert_int_equal(atomic_load(&r.seen->requests), ROWS); /* no redirect was followed */
    /* Of ten gigabytes, and of endless headers, no more went out than the kernel's buffers hold. */
    assert_true(atomic_load(&r.seen->sent) < 64LL << 20);
    close_plain(&r, o);
}

/* Both end after KN_NOTIFIER_TIMEOUT_MS, and meanwhile others are served. */
static void test_receivers_that_hang(void **state)
{
    (void)state;
    receiver r;
    office *o = open_plain(&r);
    assert_int_equal(office_send(o, 1, url_of(&r, "/hang")), KN_OK);
    assert_int_equal(office_send(o, 2, url_of(&r, "/trickle")), KN_OK);
    assert_int_equal(office_send(o, 3, url_of(&r, "/ok")), KN_OK);
    office_wait(o, 3);
    assert_int_equal(o->results[0].as.id, 3);
    assert_int_equal(office_find(o, 1)->as.outcome, KN_WEBHOOK_FAILED);
    assert_int_equal(office_find(o, 2)->as.outcome, KN_WEBHOOK_FAILED);
    assert_int_equal(office_find(o, 2)->as.http_status, 0); /* half an answer is none */
    assert_true(office_find(o, 1)->as.elapsed_us >= KN_NOTIFIER_TIMEOUT_MS * INT64_C(900));
    close_plain(&r, o);
}

static void test_nobody_listens(void **state)
{
    (void)state;
    receiver r;
    office *o = open_plain(&r);
    receiver_stop(&r);
    assert_int_equal(office_send(o, 1, url_of(&r, "/ok")), KN_OK);
    office_wait(o, 1);
    assert_int_equal(o->results[0].as.outcome, KN_WEBHOOK_FAILED);
    office_close(o);
    munmap(r.seen, sizeof *r.seen);
}

/* ---- addresses ---- */

static void test_a_name_for_this_machine_is_refused(void **state)
{
    (void)state;
    office *o = office_open((kn_notifier_params){.policy = {.development = true}});
    assert_int_equal(office_send(o, 1, "https://localhost/"), KN_OK);
    assert_int_equal(office_send(o, 2, "http://localhost/"), KN_OK);
    assert_int_equal(office_send(o, 3, "https://127.0.0.1/"), KN_INVALID); /* a literal is refused before */
    assert_int_equal(office_send(o, 4, "http://169.254.169.254/"), KN_INVALID);
    office_wait(o, 2);
    for (int i = 1; i <= 2; i++) {
        const office_result *result = office_find(o, i);
        assert_int_equal(result->as.outcome, KN_WEBHOOK_REFUSED);
        assert_int_equal(result->as.http_status, 0);
        assert_non_null(strstr(result->error, "loopback"));
    }
    office_close(o);
}

static void test_a_name_that_does_not_exist_is_tried_again(void **state)
{
    (void)state;
    office *o = office_open((kn_notifier_params){.policy = {.development = false}});
    assert_int_equal(office_send(o, 1, "https://no-such-host.invalid/"), KN_OK);
    office_wait(o, 1);
    assert_int_equal(o->results[0].as.outcome, KN_WEBHOOK_FAILED);
    office_close(o);
}

/* ---- TLS ---- */

static kn_webhook_outcome over_tls(const char *ca_file, const char *url, SSL_CTX *tls, receiver_seen *seen)
{
    receiver r = receiver_start(seen, tls);
    char names[2][64], whole[128];
    snprintf(names[0], sizeof names[0], "127.0.0.1:%d", r.port);
    snprintf(names[1], sizeof names[1], "localhost:%d", r.port);
    const char *const both[] = {names[0], names[1]};
    office *o = office_open((kn_notifier_params){.ca_file = ca_file, .policy = {.allow = both, .allow_count = 2}});
    snprintf(whole, sizeof whole, url, r.port);
    assert_int_equal(office_send(o, 1, whole), KN_OK);
    office_wait(o, 1);
    const kn_webhook_outcome outcome = o->results[0].as.outcome;
    office_close(o);
    receiver_stop(&r);
    return outcome;
}

static void test_certificates(void **state)
{
    (void)state;
    folder at = folder_create();
    receiver_seen *seen = receiver_memory();
    SSL_CTX *tls = receiver_tls(folder_file(&at, "own.pem"));
    SSL_CTX *other = receiver_tls(folder_file(&at, "other.pem"));
    char own_ca[512], other_ca[512];
    snprintf(own_ca, sizeof own_ca, "%s", folder_file(&at, "own.pem"));
    snprintf(other_ca, sizeof other_ca, "%s", folder_file(&at, "other.pem"));
    assert_int_equal(over_tls(own_ca, "https://localhost:%d/ok", tls, seen), KN_WEBHOOK_DELIVERED);
    assert_int_equal(over_tls(own_ca, "https://127.0.0.1:%d/ok", tls, seen), KN_WEBHOOK_DELIVERED);
    assert_int_equal(atomic_load(&seen->requests), 2);
    /* An authority nobody knows, another than the one we know, and no TLS at all. Nothing is sent to these. */
    assert_int_equal(over_tls(NULL, "https://localhost:%d/ok", tls, seen), KN_WEBHOOK_FAILED);
    assert_int_equal(over_tls(other_ca, "https://localhost:%d/ok", tls, seen), KN_WEBHOOK_FAILED);
    assert_int_equal(over_tls(own_ca, "https://localhost:%d/ok", NULL, seen), KN_WEBHOOK_FAILED);
    /* TLS 1.1 is too old. */
    SSL_CTX_set_security_level(tls, 0);
    SSL_CTX_set_min_proto_version(tls, TLS1_VERSION);
    SSL_CTX_set_max_proto_version(tls, TLS1_1_VERSION);
    assert_int_equal(over_tls(own_ca, "https://localhost:%d/ok", tls, seen), KN_WEBHOOK_FAILED);
    assert_int_equal(atomic_load(&seen->requests), 2);
    SSL_CTX_free(tls);
    SSL_CTX_free(other);
    munmap(seen, sizeof *seen);
    folder_remove(&at);
}

/* ---- concurrency ---- */

static void test_connections_to_one_host_are_bounded(void **state)
{
    (void)state;
    enum { DELIVERIES = 12 };
    receiver r;
    office *o = open_plain(&r);
    for (int i = 0; i < DELIVERIES; i++) assert_int_equal(office_send(o, i, url_of(&r, "/slow")), KN_OK);
    office_wait(o, DELIVERIES);
    for (int i = 0; i < DELIVERIES; i++) assert_int_equal(office_find(o, i)->as.outcome, KN_WEBHOOK_DELIVERED);
    assert_int_equal(atomic_load(&r.seen->requests), DELIVERIES);
    assert_in_range(atomic_load(&r.seen->widest), 2, KN_NOTIFIER_HOST_CONCURRENT_MAX);
    close_plain(&r, o);
}

static void test_connections_are_bounded(void **state)
{
    (void)state;
    enum { HOSTS = 12, EACH = 8 };
    receiver_seen *seen = receiver_memory();
    receiver r[HOSTS];
    char names[HOSTS][64];
    const char *list[HOSTS];
    for (int h = 0; h < HOSTS; h++) {
        r[h] = receiver_start(seen, NULL);
        snprintf(names[h], sizeof names[h], "127.0.0.1:%d", r[h].port);
        list[h] = names[h];
    }
    office *o = office_open((kn_notifier_params){.policy = {.development = true, .allow = list, .allow_count = HOSTS}});
    for (int i = 0; i < HOSTS * EACH; i++) assert_int_equal(office_send(o, i, url_of(&r[i / EACH], "/slow")), KN_OK);
    office_wait(o, HOSTS * EACH);
    for (int i = 0; i < HOSTS * EACH; i++) assert_int_equal(office_find(o, i)->as.outcome, KN_WEBHOOK_DELIVERED);
    assert_in_range(atomic_load(&seen->widest), KN_NOTIFIER_HOST_CONCURRENT_MAX + 1, KN_NOTIFIER_CONCURRENT_MAX);
    office_close(o);
    for (int h = 0; h < HOSTS; h++) receiver_stop(&r[h]);
    munmap(seen, sizeof *seen);
}

static void test_the_command_refuses_other_arguments(void **state)
{
    (void)state;
    char name[] = "notifier", fd[] = "--fd", word[] = "3x", low[] = "0", other[] = "--df", three[] = "3";
    char *cases[][3] = {{name, fd, word}, {name, fd, low}, {name, other, three}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_int_not_equal(kn_notifier_main(3, cases[i]), 0);
    assert_int_not_equal(kn_notifier_main(1, cases[0]), 0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "notifier") == 0) return kn_notifier_main(argc - 1, argv + 1);
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_delivery_as_it_arrives),
        cmocka_unit_test(test_answers_of_every_kind),
        cmocka_unit_test(test_receivers_that_hang),
        cmocka_unit_test(test_nobody_listens),
        cmocka_unit_test(test_a_name_for_this_machine_is_refused),
        cmocka_unit_test(test_a_name_that_does_not_exist_is_tried_again),
        cmocka_unit_test(test_certificates),
        cmocka_unit_test(test_connections_to_one_host_are_bounded),
        cmocka_unit_test(test_connections_are_bounded),
        cmocka_unit_test(test_the_command_refuses_other_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
