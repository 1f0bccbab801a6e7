/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/meters.h"
#include "server/policy.h"

static const kn_pepper pepper = {{4, 5, 6}};

static const kn_scope scopes[] = {KN_SCOPE_SUBMIT, KN_SCOPE_READ, KN_SCOPE_CANCEL, KN_SCOPE_ADMIN, KN_SCOPE_METRICS};
enum { SCOPES = 5 };

typedef struct minted {
    kn_key_row row;
    kn_secret text;
} minted;

static minted mint(uint32_t key_scopes)
{
    minted m = {.row = {.tenant = "acme", .scopes = key_scopes, .priorities = 1u << KN_PRIORITY_DEFAULT}};
    assert_int_equal(kn_key_mint(&m.row, &m.text, &pepper), KN_OK);
    return m;
}

static const char *header_of(const kn_secret *text)
{
    static char header[128];
    snprintf(header, sizeof header, "Bearer %s", kn_secret_reveal(text));
    return header;
}

static kn_access ask(kn_policy *policy, const char *header, kn_scope scope, int64_t now_ns)
{
    kn_access access;
    kn_policy_request request = {.authorization = header,
                                 .authorization_bytes = header ? strlen(header) : 0,
                                 .scope = scope,
                                 .now_us = 1000000,
                                 .now_ns = now_ns};
    memset(&access, 0xa5, sizeof access); /* whatever was there before does not count */
    kn_policy_authorize(policy, &request, &access);
    return access;
}

typedef struct fixture {
    kn_keys *keys;
    kn_policy *policy;
} fixture;

static fixture make(const kn_policy_options *options)
{
    fixture f = {0};
    kn_policy_options all = *options;
    assert_int_equal(kn_keys_create(&f.keys, &pepper), KN_OK);
    all.keys = f.keys;
    assert_int_equal(kn_policy_create(&f.policy, &all), KN_OK);
    return f;
}

static void unmake(fixture *f)
{
    kn_policy_destroy(&f->policy);
    kn_policy_destroy(&f->policy);
    kn_keys_destroy(&f->keys);
}

static void expect(const kn_access *access, int status, const char *code)
{
    assert_false(access->allowed);
    assert_int_equal(access->error.status, status);
    if (code) assert_string_equal(access->error.code, code);
    assert_true(strlen(access->error.message) > 10);
}

/* Every required scope against every set of scopes a key can have. */
static void a_scope_opens_its_routes_only(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){0});
    for (uint32_t set = 1; set <= KN_SCOPES_ALL; set++) {
        minted key = mint(set);
        assert_int_equal(kn_keys_put(f.keys, &key.row), KN_OK);
        for (int i = 0; i < SCOPES; i++) {
            kn_access access = ask(f.policy, header_of(&key.text), scopes[i], 0);
            if (set & (uint32_t)scopes[i]) {
                assert_true(access.allowed);
                assert_string_equal(access.principal.tenant, "acme");
                assert_string_equal(access.principal.key_id, key.row.id);
                assert_int_equal(access.principal.scopes, set);
            } else {
                expect(&access, 403, NULL);
                assert_non_null(strstr(access.error.message, kn_scope_name(scopes[i])));
                assert_string_equal(access.principal.key_id, key.row.id); /* for the log */
            }
        }
        kn_access none = ask(f.policy, header_of(&key.text), (kn_scope)0, 0);
        assert_false(none.allowed); /* a route that forgot its scope is closed */
        kn_keys_remove(f.keys, key.row.id);
    }
    unmake(&f);
}

/* Every scope against every state of credentials that is not a good key. */
static void no_other_credentials_open_anything(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){0});
    minted expired = mint(KN_SCOPES_ALL), revoked = mint(KN_SCOPES_ALL), unknown = mint(KN_SCOPES_ALL);
    minted good = mint(KN_SCOPES_ALL);
    expired.row.expires_at = 1000000;
    revoked.row.revoked_at = 1;
    assert_int_equal(kn_keys_put(f.keys, &expired.row), KN_OK);
    assert_int_equal(kn_keys_put(f.keys, &revoked.row), KN_OK);
    assert_int_equal(kn_keys_put(f.keys, &good.row), KN_OK);
    char wrong[128], basic[128], bare[128], twice[300];
    snprintf(wrong, sizeof wrong, "%s", header_of(&good.text));
    wrong[40] = wrong[40] == 'a' ? 'b' : 'a';
    snprintf(basic, sizeof basic, "Basic %s", kn_secret_reveal(&good.text));
    snprintf(bare, sizeof bare, "%s", kn_secret_reveal(&good.text));
    snprintf(twice, sizeof twice, "%s, %s", header_of(&good.text), header_of(&good.text));
    const struct {
        const char *header, *says;
    } cases[] = {{NULL, "didn't provide"},
                 {"", "didn't provide"},
                 {"Bearer", "didn't provide"},
                 {"Bearer ", "Incorrect"},
                 {"Bearer      ", "Incorrect"},
                 {"Bearer x", "Incorrect"},
                 {basic, "didn't provide"},
                 {bare, "didn't provide"},
                 {wrong, "Incorrect"},
                 {twice, "Incorrect"},
                 {NULL, NULL}};
    for (int i = 0; i < SCOPES; i++) {
        for (size_t c = 0; cases[c].says; c++) {
            kn_access access = ask(f.policy, cases[c].header, scopes[i], 0);
            expect(&access, 401, "invalid_api_key");
            assert_non_null(strstr(access.error.message, cases[c].says));
            assert_string_equal(access.principal.tenant, "");
            assert_int_equal(access.principal.scopes, 0);
        }
        kn_access access = ask(f.policy, header_of(&unknown.text), scopes[i], 0);
        expect(&access, 401, "invalid_api_key");
        assert_non_null(strstr(access.error.message, "Incorrect"));
        access = ask(f.policy, header_of(&expired.text), scopes[i], 0);
        expect(&access, 401, "invalid_api_key");
        assert_non_null(strstr(access.error.message, "expired"));
        access = ask(f.policy, header_of(&revoked.text), scopes[i], 0);
        expect(&access, 401, "invalid_api_key");
        assert_non_null(strstr(access.error.message, "revoked"));
        assert_true(ask(f.policy, header_of(&good.text), scopes[i], 0).allowed);
    }
    char spaced[128];
    snprintf(spaced, sizeof spaced, "bEARER   %s \t", kn_secret_reveal(&good.text));
    assert_true(ask(f.policy, spaced, KN_SCOPE_READ, 0).allowed);
    assert_int_equal(kn_keys_revoke(f.keys, good.row.id, 5), KN_OK);
    assert_false(ask(f.policy, spaced, KN_SCOPE_READ, 0).allowed); /* the very next request */
    unmake(&f);
}

/* A server whose keys are all gone does not fall open. */
static void no_keys_is_not_open(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){0});
    for (int i = 0; i < SCOPES; i++) assert_false(ask(f.policy, NULL, scopes[i], 0).allowed);
    unmake(&f);
    kn_policy *policy = NULL;
    assert_int_equal(kn_policy_create(&policy, &(kn_policy_options){.open = false}), KN_INVALID);
}

static void open_mode_is_one_tenant(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){.open = true, .limits = {.max_active = 9}});
    for (int i = 0; i < SCOPES; i++) {
        kn_access access = ask(f.policy, i % 2 ? "Bearer nonsense" : NULL, scopes[i], 0);
        assert_true(access.allowed);
        assert_string_equal(access.principal.tenant, "default");
        assert_string_equal(access.principal.key_id, "");
        assert_int_equal(access.principal.limits.max_active, 9);
        kn_api_error error;
        for (int p = 0; p < KN_PRIORITIES; p++)
            assert_int_equal(kn_policy_check_job(&access.principal, "any", (kn_priority)p, "", &error), KN_OK);
    }
    unmake(&f);
}

static void the_first_key_ends_open_mode(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){.open = true});
    assert_true(ask(f.policy, NULL, KN_SCOPE_READ, 0).allowed);
    minted key = mint(KN_SCOPE_READ);
    assert_int_equal(kn_keys_put(f.keys, &key.row), KN_OK);
    kn_access access = ask(f.policy, NULL, KN_SCOPE_READ, 0);
    expect(&access, 401, "invalid_api_key");
    assert_true(ask(f.policy, header_of(&key.text), KN_SCOPE_READ, 0).allowed);
    kn_keys_remove(f.keys, key.row.id);
    assert_false(ask(f.policy, NULL, KN_SCOPE_READ, 0).allowed); /* and stays ended */
    unmake(&f);
}

static void rates_of_keys_and_tenants(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){.rates = {.key = {.requests_per_minute = 2}}});
    minted a = mint(KN_SCOPE_READ), b = mint(KN_SCOPE_READ);
    b.row.requests_per_minute = 60; /* of its own */
    b.row.burst = 1;
    assert_int_equal(kn_keys_put(f.keys, &a.row), KN_OK);
    assert_int_equal(kn_keys_put(f.keys, &b.row), KN_OK);
    kn_access access = ask(f.policy, header_of(&a.text), KN_SCOPE_READ, 0);
    assert_true(access.allowed);
    assert_string_equal(access.headers.limit, "2");
    assert_string_equal(access.headers.remaining, "1");
    assert_string_equal(access.headers.reset, "30s");
    access = ask(f.policy, header_of(&a.text), KN_SCOPE_ADMIN, 0); /* a refusal costs too */
    expect(&access, 403, NULL);
    access = ask(f.policy, header_of(&a.text), KN_SCOPE_READ, 0);
    expect(&access, 429, "rate_limit_exceeded");
    assert_string_equal(access.error.type, "rate_limit_error");
    assert_int_equal(access.error.retry_after_s, 30);
    assert_string_equal(access.headers.remaining, "0");
    assert_string_equal(access.principal.key_id, a.row.id);
    assert_true(ask(f.policy, header_of(&b.text), KN_SCOPE_READ, 0).allowed);
    assert_int_equal(ask(f.policy, header_of(&b.text), KN_SCOPE_READ, 0).error.retry_after_s, 1);

    /* The tenant's rate binds its keys together; what it refuses is not held against the key. */
    kn_policy_set(f.policy, &(kn_policy_rates){.tenant = {.requests_per_minute = 1}}, &(kn_store_limits){0});
    const int64_t later = INT64_C(3600000000000);
    assert_true(ask(f.policy, header_of(&b.text), KN_SCOPE_READ, later).allowed);
    access = ask(f.policy, header_of(&a.text), KN_SCOPE_READ, later);
    expect(&access, 429, "rate_limit_exceeded");
    assert_string_equal(access.headers.limit, "1");
    assert_int_equal(access.error.retry_after_s, 60);
    kn_policy_set(f.policy, &(kn_policy_rates){0}, &(kn_store_limits){0});
    assert_true(ask(f.policy, header_of(&a.text), KN_SCOPE_READ, later).allowed);
    unmake(&f);
}

static void limits_fall_back_to_the_servers(void **state)
{
    (void)state;
    fixture f = make(&(kn_policy_options){.limits = {.max_active = 7, .device_us = 8, .window_us = 9}});
    minted a = mint(KN_SCOPE_READ), b = mint(KN_SCOPE_READ);
    b.row.limits = (kn_store_limits){.max_active = 1, .device_us = 2, .window_us = 3};
    assert_int_equal(kn_keys_put(f.keys, &a.row), KN_OK);
    assert_int_equal(kn_keys_put(f.keys, &b.row), KN_OK);
    kn_store_limits limits = ask(f.policy, header_of(&a.text), KN_SCOPE_READ, 0).principal.limits;
    assert_int_equal(limits.max_active, 7);
    assert_int_equal(limits.device_us, 8);
    assert_int_equal(limits.window_us, 9);
    limits = ask(f.policy, header_of(&b.text), KN_SCOPE_READ, 0).principal.limits;
    assert_int_equal(limits.max_active, 1);
    assert_int_equal(limits.device_us, 2);
    assert_int_equal(limits.window_us, 3);
    unmake(&f);
}

static void jobs_within_what_a_key_may(void **state)
{
    (void)state;
    kn_api_error error = {0};
    kn_principal p = {.tenant = "acme", .priorities = 1u << KN_PRIORITY_FLEX, .models = "a,b", .region = "eu"};
    assert_int_equal(kn_policy_check_job(&p, "b", KN_PRIORITY_FLEX, "eu", &error), KN_OK);
    assert_int_not_equal(kn_policy_check_job(&p, "c", KN_PRIORITY_FLEX, "eu", &error), KN_OK);
    assert_int_equal(error.status, 403);
    assert_non_null(strstr(error.message, "'c'"));
    assert_int_not_equal(kn_policy_check_job(&p, "a", KN_PRIORITY_URGENT, "eu", &error), KN_OK);
    assert_non_null(strstr(error.message, "'priority'"));
    assert_int_not_equal(kn_policy_check_job(&p, "a", KN_PRIORITIES, "eu", &error), KN_OK);
    assert_int_not_equal(kn_policy_check_job(&p, "a", KN_PRIORITY_FLEX, "us", &error), KN_OK);
    assert_int_not_equal(kn_policy_check_job(&p, "a", KN_PRIORITY_FLEX, "", &error), KN_OK);
    p.region[0] = '\0';
    assert_int_equal(kn_policy_check_job(&p, "a", KN_PRIORITY_FLEX, "us", &error), KN_OK);
}

static void refusals_read_well(void **state)
{
    (void)state;
    kn_api_error error = {0};
    kn_store_quota quota = {.which = KN_QUOTA_ACTIVE_JOBS, .limit = 10, .used = 10, .asked = 1};
    assert_int_not_equal(kn_policy_over_quota(&error, &quota, 0), KN_OK);
    assert_int_equal(error.status, 429);
    assert_string_equal(error.code, "rate_limit_exceeded");
    assert_int_equal(error.retry_after_s, KN_JOBS_RETRY_S);
    quota = (kn_store_quota){.which = KN_QUOTA_DEVICE_TIME,
                             .limit = 3600000000,
                             .used = 3595000000,
                             .asked = 20000000,
                             .frees_at = 21600000000 + 5};
    assert_int_not_equal(kn_policy_over_quota(&error, &quota, 5), KN_OK);
    assert_string_equal(error.code, "insufficient_quota");
    assert_true(error.no_retry);
    assert_non_null(strstr(error.message, "3600.0 s"));
    assert_non_null(strstr(error.message, "renewed in 6h0m0s"));
    quota.frees_at = 0;
    assert_int_not_equal(kn_policy_over_quota(&error, &quota, 5), KN_OK);
    assert_null(strstr(error.message, "renewed"));
    assert_int_not_equal(kn_policy_moderated(&error), KN_OK);
    assert_int_equal(error.status, 400);
    assert_string_equal(error.code, "moderation_blocked");
}

static void addresses_others_can_reach_need_keys_and_tls(void **state)
{
    (void)state;
    static const char *const near[] = {"127.0.0.1:8000", "127.9.9.9:1", "[::1]:8000"};
    static const char *const far[] = {"0.0.0.0:8000",
                                      "[::]:8000",
                                      "192.168.1.2:80",
                                      "10.0.0.1:80",
                                      "[fe80::1]:80",
                                      "128.0.0.1:80",
                                      "126.255.1.1:80",
                                      "localhost.evil.org:80",
                                      "1127.0.0.1:80",
                                      "127.0.0.1.evil:80",
                                      ":8000",
                                      "*:8000",
                                      "[::ffff:8.8.8.8]:80",
                                      ""};
    for (int keys = 0; keys < 2; keys++) {
        for (int tls = 0; tls < 2; tls++) {
            for (size_t i = 0; i < sizeof near / sizeof *near; i++)
                assert_int_equal(kn_policy_check_bind(near[i], keys, tls), KN_OK);
            for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
                assert_int_equal(kn_policy_check_bind(far[i], keys, tls), keys && tls ? KN_OK : KN_INVALID);
                if (keys && tls) continue;
                assert_int_equal(strstr(kn_fail_message(), "kinora key create") != NULL, !keys);
                assert_int_equal(strstr(kn_fail_message(), "--tls-cert FILE --tls-key FILE") != NULL, !tls);
            }
        }
    }
}

/* ---- canary ---- */

static FILE *captured;
static int saved_stderr;

static void begin_capture(void)
{
    captured = tmpfile();
    assert_non_null(captured);
    saved_stderr = dup(STDERR_FILENO);
    assert_true(dup2(fileno(captured), STDERR_FILENO) >= 0);
}

static size_t end_capture(char *text, size_t bytes)
{
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(captured);
    size_t count = fread(text, 1, bytes, captured);
    fclose(captured);
    return count;
}

/* No run of eight characters of the secret is anywhere in these bytes. */
static void assert_absent(const void *bytes, size_t count, const kn_secret *secret)
{
    const char *text = kn_secret_reveal(secret) + 7 + 13; /* the part after "kinora_<id>_" */
    for (size_t i = 0; i + 8 <= strlen(text); i++) assert_null(memmem(bytes, count, text + i, 8));
}

/* Secrets go through every path that could write them down: refusals of all kinds, headers, principals, rows, lists,
 * metrics, failures' texts, logs. */
static void secrets_are_in_no_output(void **state)
{
    (void)state;
    static char log[1 << 16];
    static const char *const names[] = {"demo"};
    const kn_meter_device cpu = {"cpu", ""};
    kn_meters *meters = NULL;
    fixture f = make(&(kn_policy_options){.rates = {.key = {.requests_per_minute = 3}}});
    minted good = mint(KN_SCOPE_READ), expired = mint(KN_SCOPE_READ), stranger = mint(KN_SCOPE_READ);
    const minted *const all[] = {&good, &expired, &stranger};
    expired.row.expires_at = 1;
    assert_int_equal(kn_keys_put(f.keys, &good.row), KN_OK);
    assert_int_equal(kn_keys_put(f.keys, &expired.row), KN_OK);
    const kn_meters_options options = {
        .models = names, .model_count = 1, .routes = names, .route_count = 1, .devices = &cpu, .device_count = 1};
    assert_int_equal(kn_meters_create(&meters, &options), KN_OK);
    begin_capture();
    for (int format = 0; format < 3; format++) {
        kn_log_configure(KN_LOG_DEBUG, (kn_log_format)format);
        for (size_t k = 0; k < 3; k++) {
            const char *secret = kn_secret_reveal(&all[k]->text), *header = header_of(&all[k]->text);
            for (int i = 0; i < SCOPES; i++) {
                kn_access access = ask(f.policy, header, scopes[i], 0);
                for (size_t s = 0; s < 3; s++) assert_absent(&access, sizeof access, &all[s]->text);
                kn_text body = kn_text_growing(4096);
                if (!access.allowed) {
                    kn_api_error_write(&body, &access.error);
                    assert_absent(body.bytes, body.count, &all[k]->text);
                }
                kn_text_release(&body);
                kn_log_event(KN_LOG_INFO, KN_LOG_WITH(kn_log_text("authorization", header)), "%s %s",
                             access.error.message, header);
                kn_metric_add(meters->authorizations, 1, KN_LABELS(secret));
                kn_metric_add(meters->jobs, 1, KN_LABELS(secret, secret, secret));
            }
            kn_log(KN_LOG_ERROR, "a client sent %s", secret);
            kn_key_row broken = all[k]->row;
            broken.scopes = 0;
            assert_int_equal(kn_keys_load(f.keys, &broken), KN_OK); /* logs why */
            assert_absent(kn_fail_message(), strlen(kn_fail_message()), &all[k]->text);
            assert_absent(&all[k]->row, sizeof all[k]->row, &all[k]->text);
            assert_int_equal(kn_scopes_parse(&broken.scopes, "x"), KN_INVALID);
        }
    }
    kn_log_configure(KN_LOG_INFO, KN_LOG_TEXT);
    size_t count = end_capture(log, sizeof log);
    assert_in_range(count, 1000, sizeof log - 1);
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(kn_metrics_text(meters->registry, KN_METRICS_PROMETHEUS, &text, &bytes), KN_OK);
    for (size_t k = 0; k < 3; k++) {
        assert_absent(log, count, &all[k]->text);
        assert_absent(text, bytes, &all[k]->text);
    }
    assert_non_null(memmem(log, count, good.row.id, 12) ? log : NULL); /* the search does find what is there */
    kn_free(text);
    kn_meters_destroy(&meters);
    unmake(&f);
}

static void no_memory_is_no_policy(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        kn_policy *policy = NULL;
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_policy_create(&policy, &(kn_policy_options){.open = true, .rates.tenant = {60, 0}});
        kn_access access = {0};
        if (st == KN_OK) access = ask(policy, NULL, KN_SCOPE_READ, 0);
        kn_mem_fail_at(0);
        if (st == KN_OK && !access.allowed) assert_int_equal(access.error.status, 429); /* in doubt refused */
        kn_policy_destroy(&policy);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (access.allowed) break;
        assert_in_range(n, 1, 50);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_scope_opens_its_routes_only),
        cmocka_unit_test(no_other_credentials_open_anything),
        cmocka_unit_test(no_keys_is_not_open),
        cmocka_unit_test(open_mode_is_one_tenant),
        cmocka_unit_test(the_first_key_ends_open_mode),
        cmocka_unit_test(rates_of_keys_and_tenants),
        cmocka_unit_test(limits_fall_back_to_the_servers),
        cmocka_unit_test(jobs_within_what_a_key_may),
        cmocka_unit_test(refusals_read_well),
        cmocka_unit_test(addresses_others_can_reach_need_keys_and_tls),
        cmocka_unit_test(secrets_are_in_no_output),
        cmocka_unit_test(no_memory_is_no_policy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
