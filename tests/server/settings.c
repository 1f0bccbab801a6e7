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
#include <unistd.h>

#include "base/mem.h"
#include "server/settings.h"

static char path[] = "/tmp/kinora-settings-XXXXXX";

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    fclose(file);
}

static kn_server_config *defaults(void)
{
    kn_server_config *config = NULL;
    assert_int_equal(kn_server_config_create(&config), KN_OK);
    return config;
}

static kn_status parse(kn_server_config *config, const char *text)
{
    return kn_server_config_parse(config, text, strlen(text), "kinora.toml");
}

static void flag(kn_server_config *config, const char *name, const char *value)
{
    if (kn_server_config_flag(config, name, value) != KN_OK) fail_msg("%s", kn_fail_message());
}

static void the_defaults(void **state)
{
    (void)state;
    kn_server_config *c = defaults();
    assert_null(c->models);
    assert_int_equal(c->listen.count, 1);
    assert_string_equal(c->listen.items[0], "127.0.0.1:8000");
    assert_string_equal(c->devices.items[0], "auto");
    assert_int_equal(c->queue_max, 1024);
    assert_int_equal(c->connections_max, 4096);
    assert_int_equal(c->upload_bytes_max, 64 << 20);
    assert_int_equal(c->event_streams_max, 256);
    assert_int_equal(c->checkpoint_interval_ms, 2000);
    assert_int_equal(c->retention_seconds, 86400);
    assert_int_equal(c->log_format, KN_LOG_TIMED);
    assert_int_equal(c->log_level, KN_LOG_INFO);
    assert_true(c->webhooks);
    assert_false(c->keys);
    assert_false(c->moderation_fail_open);
    assert_int_equal(c->moderation_prompt_hook.count, 0);
    kn_server_config_destroy(&c);
    kn_server_config_destroy(&c);
}

static void a_file_sets_every_setting(void **state)
{
    (void)state;
    kn_server_config *c = defaults();
    assert_int_equal(parse(c,
                           "models = '/srv/models'\ndata = '/srv/data'\nlisten = ['0.0.0.0:443', '[::1]:80']\n"
                           "metrics = '127.0.0.1:9090'\ndevice = ['cuda:0', 'cuda:1']\nthreads = 8\nisa = 'avx2'\n"
                           "precision = 'bfloat16'\nvae_precision = 'float32'\ntls_cert = 'c'\ntls_key = 'k'\n"
                           "tls_client_ca = 'ca'\nkeys = true\nregion = 'eu'\nrequests_per_minute = 1\n"
                           "tenant_requests_per_minute = 2\ntenant_jobs = 3\ntenant_device_seconds = 4\nqueue_max = 5\n"
                           "grpc_streams_max = 11\ngrpc_idle_seconds = 12\ngrpc_age_seconds = 13\n"
                           "connections_max = 6\nupload_bytes_max = 7000\nevent_streams_max = 8\n"
                           "checkpoint_interval_ms = 0\nretention_seconds = 60\njob_attempts_max = 1\n"
                           "drain_seconds = 0\nlog_format = 'json'\nlog_level = 'debug'\nwebhooks = false\n"
                           "webhook_development = true\nwebhook_allow = ['hooks.corp:8443']\nwebhook_ca = 'w'\n"
                           "moderation_prompt_hook = ['/bin/p', '-x']\nmoderation_output_hook = ['/bin/o']\n"
                           "moderation_time_limit_ms = 9\nmoderation_running_max = 10\nmoderation_fail_open = true\n"
                           "[aliases]\n\"sora-2\" = 'wan'\n'Wan-AI/Wan2.1' = \"wan\"\n"),
                     KN_OK);
    assert_string_equal(c->models, "/srv/models");
    assert_int_equal(c->listen.count, 2);
    assert_string_equal(c->listen.items[1], "[::1]:80");
    assert_null(c->listen.items[2]);
    assert_string_equal(c->devices.items[1], "cuda:1");
    assert_int_equal(c->precision, KN_PRECISION_BFLOAT16);
    assert_int_equal(c->vae_precision, KN_PRECISION_FLOAT32);
    assert_true(c->keys);
    assert_int_equal(c->requests_per_minute, 1);
    assert_int_equal(c->tenant_device_seconds, 4);
    assert_int_equal(c->event_streams_max, 8);
    assert_int_equal(c->grpc_streams_max, 11);
    assert_int_equal(c->grpc_idle_seconds, 12);
    assert_int_equal(c->grpc_age_seconds, 13);
    assert_int_equal(c->log_format, KN_LOG_JSON);
    assert_int_equal(c->log_level, KN_LOG_DEBUG);
    assert_false(c->webhooks);
    assert_int_equal(c->moderation_prompt_hook.count, 2);
    assert_string_equal(c->moderation_prompt_hook.items[1], "-x");
    assert_int_equal(c->moderation_running_max, 10);
    assert_int_equal(c->alias_count, 2);
    assert_string_equal(c->aliases[0].name, "sora-2");
    assert_string_equal(c->aliases[1].name, "Wan-AI/Wan2.1");
    assert_string_equal(c->aliases[1].model, "wan");
    kn_server_config_destroy(&c);
}

static void flags_win_over_the_file(void **state)
{
    (void)state;
    kn_server_config *c = defaults();
    flag(c, "listen", "127.0.0.1:1");
    flag(c, "listen", "127.0.0.1:2");
    flag(c, "queue-max", "7");
    flag(c, "log-level", "error");
    flag(c, "keys", "true");
    flag(c, "data", "/flag");
    flag(c, "alias", "sora-2=flag");
    assert_int_equal(
        parse(c, "listen = ['127.0.0.1:3']\nqueue_max = 8\nlog_level = 'debug'\nkeys = false\ndata = '/file'\n"
                 "models = '/file'\n[aliases]\n'sora-2' = 'file'\n'sora-3' = 'file'\n"),
        KN_OK);
    assert_int_equal(c->listen.count, 2);
    assert_string_equal(c->listen.items[1], "127.0.0.1:2");
    assert_int_equal(c->queue_max, 7);
    assert_int_equal(c->log_level, KN_LOG_ERROR);
    assert_true(c->keys);
    assert_string_equal(c->data, "/flag");
    assert_string_equal(c->models, "/file");
    assert_int_equal(c->alias_count, 2);
    assert_string_equal(c->aliases[0].model, "flag");
    assert_string_equal(c->aliases[1].model, "file");
    /* What a flag hides is looked at all the same. */
    assert_int_equal(parse(c, "queue_max = 0"), KN_INVALID);
    assert_int_equal(parse(c, "data = 1"), KN_INVALID);
    assert_int_equal(parse(c, "log_level = 'loud'"), KN_INVALID);
    kn_server_config_destroy(&c);
}

static void mistakes_are_named_with_their_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"\nretention = 5", "kinora.toml: line 2: there is no setting retention"},
        {"retention-seconds = 500", "there is no setting retention-seconds"}, /* one spelling */
        {"alias = 'a=b'", "there is no setting alias"},
        {"retention_seconds = '1d'", "line 1: retention_seconds is a string; it must be a number"},
        {"retention_seconds = true", "is true or false; it must be a number"},
        {"keys = 'true'", "keys is a string; it must be true or false"},
        {"listen = '127.0.0.1:1'", "listen is a string; it must be a list of strings"},
        {"data = ['a']", "data is a list of strings; it must be a string"},
        {"listen = []", "listen: an empty list"},
        {"listen = ['']", "listen: an empty item"},
        {"queue_max = 0", "queue-max: 0 is outside 1 to 1000000"},
        {"queue_max = 1000001", "queue-max: 1000001 is outside 1 to 1000000"},
        {"log_level = 'loud'", "log-level: log levels are"},
        {"log_format = 'xml'", "log-format: log formats are"},
        {"precision = 'int8'", "precision: precisions are auto, float32 and bfloat16"},
        {"[limits]\nqueue_max = 5", "line 2: there is no section [limits]"},
        {"[aliases]\n'a b' = 'c'", "line 2: alias \"a b\": a name is"},
        {"[aliases]\n'' = 'c'", "a name is"},
        {"[aliases]\na = '../c'", "alias a: a model is"},
        {"[aliases]\na = '/etc'", "alias a: a model is"},
        {"[aliases]\na = 'C'", "alias a: a model is"},
        {"[aliases]\na = 1", "alias a: a model's name was expected"},
        {"a = 1\na = 2", "line 1: there is no setting a"},
        {"queue_max = 1\nqueue_max = 2", "line 2: key queue_max is there twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_server_config *c = defaults();
        assert_int_equal(parse(c, cases[i].text), KN_INVALID);
        if (!strstr(kn_fail_message(), cases[i].says)) fail_msg("%s: %s", cases[i].text, kn_fail_message());
        kn_server_config_destroy(&c);
    }
}

static void flags_are_checked(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"queue-max", "0"}, {"queue-max", "5x"},
        {"queue-max", ""},  {"queue-max", " 5"},
        {"keys", "yes"},    {"keys", ""},
        {"listen", ""},     {"alias", "a"},
        {"alias", "=b"},    {"alias", "a="},
        {"alias", "a=b=c"}, {"log-level", ""},
        {"precision", ""},  {"queue-max", "9999999999999999999999"},
    };
    kn_server_config *c = defaults();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kn_server_config_flag(c, bad[i][0], bad[i][1]), KN_INVALID);
        assert_memory_equal(kn_fail_message(), "--", 2);
    }
    assert_int_equal(kn_server_config_flag(c, "queue_max", "5"), KN_NOT_FOUND);
    assert_int_equal(kn_server_config_flag(c, "", "5"), KN_NOT_FOUND);
    char text[KN_SETTING_BYTES + 1];
    memset(text, 'x', sizeof text);
    text[KN_SETTING_BYTES] = '\0';
    assert_int_equal(kn_server_config_flag(c, "data", text), KN_INVALID);
    text[KN_SETTING_BYTES - 1] = '\0';
    flag(c, "data", text);
    for (int i = 0; i < KN_SETTING_ITEMS; i++) flag(c, "device", "cpu");
    assert_int_equal(kn_server_config_flag(c, "device", "cpu"), KN_INVALID); /* n + 1 */
    for (int i = 0; i < KN_CATALOG_ALIASES_MAX; i++) {
        snprintf(text, sizeof text, "a%d=m", i);
        flag(c, "alias", text);
    }
    assert_int_equal(kn_server_config_flag(c, "alias", "more=m"), KN_INVALID);
    flag(c, "alias", "a5=n");
    assert_string_equal(c->aliases[5].model, "n");
    memset(text, 'm', sizeof text);
    memcpy(text, "a1=", 3);
    text[3 + KN_MODEL_NAME_BYTES] = '\0';
    assert_int_equal(kn_server_config_flag(c, "alias", text), KN_INVALID);
    text[3 + KN_MODEL_NAME_BYTES - 1] = '\0';
    flag(c, "alias", text);
    kn_server_config_destroy(&c);
}

/* Flags that make a configuration valid, then one change that breaks it. */
static void the_whole_is_checked(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *says;
    } cases[] = {
        {NULL, NULL, NULL},
        {"models", "", "--models DIR"},
        {"data", "", "--data DIR"},
        {"tls-cert", "c", "tls-key is missing"},
        {"tls-key", "c", "tls-cert is missing"},
        {"tls-client-ca", "c", "needs tls-cert"},
        {"moderation-prompt-hook", "check", "moderation-prompt-hook: check is not an absolute path"},
        {"moderation-output-hook", "./x", "moderation-output-hook"},
        {"webhook-allow", "no port", "webhook-allow"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kn_server_config *c = defaults();
        flag(c, "models", "/m");
        flag(c, "data", "/d");
        if (cases[i].name) flag(c, cases[i].name, cases[i].value);
        assert_int_equal(kn_server_config_check(c), cases[i].name ? KN_INVALID : KN_OK);
        if (cases[i].says && !strstr(kn_fail_message(), cases[i].says)) fail_msg("%s", kn_fail_message());
        kn_server_config_destroy(&c);
    }
    kn_server_config *c = defaults();
    flag(c, "models", "/m");
    flag(c, "data", "/d");
    flag(c, "webhook-development", "true");
    assert_int_equal(kn_server_config_check(c), KN_OK);
    flag(c, "listen", "0.0.0.0:8000");
    assert_int_equal(kn_server_config_check(c), KN_INVALID);
    kn_server_config_destroy(&c);
}

static void a_reload_applies_what_it_may(void **state)
{
    (void)state;
    char restart[256] = "?";
    kn_server_config *c = defaults();
    flag(c, "models", "/m");
    flag(c, "retention-seconds", "120");
    flag(c, "alias", "x=flag");
    write_file("data = '/d'\nqueue_max = 10\nlisten = ['127.0.0.1:1']\n[aliases]\ny = 'one'\n");
    assert_int_equal(kn_server_config_read(c, path), KN_OK);
    assert_int_equal(kn_server_config_reload(&c, path, restart, sizeof restart), KN_OK);
    assert_string_equal(restart, "");
    write_file("data = '/elsewhere'\nqueue_max = 20\nretention_seconds = 999\nlog_level = 'debug'\n"
               "listen = ['127.0.0.1:2']\nkeys = true\n[aliases]\ny = 'two'\n");
    assert_int_equal(kn_server_config_reload(&c, path, restart, sizeof restart), KN_OK);
    assert_string_equal(restart, "data, listen, keys, alias");
    assert_string_equal(c->data, "/d");
    assert_string_equal(c->listen.items[0], "127.0.0.1:1");
    assert_false(c->keys);
    assert_int_equal(c->queue_max, 20);
    assert_int_equal(c->retention_seconds, 120); /* the flag still wins */
    assert_int_equal(c->log_level, KN_LOG_DEBUG);
    assert_int_equal(c->alias_count, 2);
    assert_string_equal(c->aliases[1].model, "one");
    write_file("data = '/d'\n"); /* what is no longer there is the default again */
    assert_int_equal(kn_server_config_reload(&c, path, restart, 8), KN_OK);
    assert_string_equal(restart, "listen,"); /* cut */
    assert_int_equal(c->queue_max, 1024);
    assert_int_equal(kn_server_config_reload(&c, path, NULL, 0), KN_OK);
    kn_server_config_destroy(&c);
}

static void a_bad_file_changes_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {"queue_max = 20\nretention_seconds = 0\n", "queue_max = 20\nx = 1\n",
                                      "queue_max = 20\ntls_cert = 'c'\n", "queue_max = 20\n\xff"};
    kn_server_config *c = defaults();
    flag(c, "models", "/m");
    flag(c, "data", "/d");
    write_file("queue_max = 10\n");
    assert_int_equal(kn_server_config_read(c, path), KN_OK);
    kn_server_config *before = c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file(bad[i]);
        assert_int_equal(kn_server_config_reload(&c, path, NULL, 0), KN_INVALID);
        assert_ptr_equal(c, before);
        assert_int_equal(c->queue_max, 10);
    }
    assert_non_null(strstr(kn_fail_message(), path));
    unlink(path);
    assert_int_equal(kn_server_config_reload(&c, path, NULL, 0), KN_NOT_FOUND);
    write_file("queue_max = 20\n");
    for (uint64_t n = 1;; n++) {
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_server_config_reload(&c, path, NULL, 0);
        kn_mem_fail_at(0);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_ptr_equal(c, before);
        assert_int_equal(kn_mem_read().bytes, bytes);
        assert_in_range(n, 1, 200);
    }
    assert_int_equal(c->queue_max, 20);
    kn_server_config_destroy(&c);
}

/* The table says of itself what a usage text needs, and every default passes for a flag. */
static void the_table_describes_itself(void **state)
{
    (void)state;
    kn_setting_help help;
    kn_server_config *c = defaults();
    assert_true(kn_settings_count() > 30);
    for (size_t i = 0; i < kn_settings_count(); i++) {
        assert_true(kn_settings_at(i, &help));
        assert_int_equal(strspn(help.name, "abcdefghijklmnopqrstuvwxyz-"), strlen(help.name));
        assert_true(strlen(help.help) > 5 && strlen(help.placeholder) > 0);
        if (help.initial[0]) flag(c, help.name, help.initial);
        assert_true(!help.is_switch || help.initial[0]);
        kn_setting_help other;
        for (size_t j = 0; j < i; j++) {
            assert_true(kn_settings_at(j, &other));
            assert_string_not_equal(other.name, help.name);
        }
    }
    assert_false(kn_settings_at(kn_settings_count(), &help));
    kn_server_config_destroy(&c);
}

static int begin(void **state)
{
    (void)state;
    int file = mkstemp(path);
    if (file < 0) return -1;
    return close(file);
}

static int end(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_defaults),
        cmocka_unit_test(a_file_sets_every_setting),
        cmocka_unit_test(flags_win_over_the_file),
        cmocka_unit_test(mistakes_are_named_with_their_line),
        cmocka_unit_test(flags_are_checked),
        cmocka_unit_test(the_whole_is_checked),
        cmocka_unit_test(a_reload_applies_what_it_may),
        cmocka_unit_test(a_bad_file_changes_nothing),
        cmocka_unit_test(the_table_describes_itself),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
