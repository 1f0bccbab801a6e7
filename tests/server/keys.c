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
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/keys.h"

static const kn_pepper pepper = {{1, 2, 3}};

static kn_key_row plain_row(void)
{
    return (kn_key_row){.tenant = "acme", .scopes = KN_SCOPE_SUBMIT | KN_SCOPE_READ, .priorities = 2};
}

static kn_keys *empty_table(void)
{
    kn_keys *keys = NULL;
    assert_int_equal(kn_keys_create(&keys, &pepper), KN_OK);
    return keys;
}

static kn_key_verdict check(const kn_keys *keys, const kn_secret *text, int64_t now)
{
    const kn_key *key;
    const char *shown = kn_secret_reveal(text);
    return kn_keys_check(keys, shown, strlen(shown), now, &key);
}

static void a_key_opens_its_row(void **state)
{
    (void)state;
    kn_key_row row = plain_row();
    kn_secret text;
    const kn_key *key = NULL;
    snprintf(row.models, sizeof row.models, "wan,demo");
    snprintf(row.region, sizeof row.region, "eu");
    row.requests_per_minute = 60;
    row.burst = 5;
    row.limits = (kn_store_limits){.max_active = 3, .device_us = 7, .window_us = 9};
    assert_int_equal(kn_key_mint(&row, &text, &pepper), KN_OK);
    const char *shown = kn_secret_reveal(&text);
    assert_int_equal(strlen(shown), KN_KEY_TEXT_BYTES - 1);
    assert_memory_equal(shown, "kinora_", 7);
    assert_memory_equal(shown + 7, row.id, 12);
    assert_int_equal(shown[19], '_');
    assert_true(kn_key_text_valid(shown, strlen(shown)));

    kn_keys *keys = empty_table();
    assert_int_equal(check(keys, &text, 1), KN_KEY_UNKNOWN);
    assert_int_equal(kn_keys_put(keys, &row), KN_OK);
    assert_int_equal(kn_keys_check(keys, shown, strlen(shown), 1, &key), KN_KEY_GOOD);
    assert_string_equal(key->tenant, "acme");
    assert_string_equal(key->models, "wan,demo");
    assert_string_equal(key->region, "eu");
    assert_int_equal(key->requests_per_minute, 60);
    assert_int_equal(key->burst, 5);
    assert_int_equal(key->limits.max_active, 3);
    assert_int_equal(key->scopes, KN_SCOPE_SUBMIT | KN_SCOPE_READ);

    kn_keys *elsewhere = NULL; /* the same rows under another pepper open nothing */
    assert_int_equal(kn_keys_create(&elsewhere, &(kn_pepper){{9}}), KN_OK);
    assert_int_equal(kn_keys_put(elsewhere, &row), KN_OK);
    assert_int_equal(check(elsewhere, &text, 1), KN_KEY_UNKNOWN);
    kn_keys_destroy(&elsewhere);
    kn_keys_destroy(&keys);
    kn_keys_destroy(&keys);
}

/* Every character of the text matters, and each change is seen before or by the hash. */
static void every_changed_character_is_refused(void **state)
{
    (void)state;
    kn_key_row row = plain_row();
    kn_secret text;
    kn_keys *keys = empty_table();
    const kn_key *key;
    assert_int_equal(kn_key_mint(&row, &text, &pepper), KN_OK);
    assert_int_equal(kn_keys_put(keys, &row), KN_OK);
    char copy[KN_KEY_TEXT_BYTES];
    for (size_t i = 0; i < sizeof copy - 1; i++) {
        for (int c = 0; c < 256; c += i % 7 ? 51 : 1) {
            memcpy(copy, kn_secret_reveal(&text), sizeof copy);
            if (copy[i] == (char)c) continue;
            copy[i] = (char)c;
            assert_int_equal(kn_keys_check(keys, copy, sizeof copy - 1, 1, &key), KN_KEY_MALFORMED);
            assert_null(key);
        }
    }
    memcpy(copy, kn_secret_reveal(&text), sizeof copy);
    for (size_t bytes = 0; bytes < sizeof copy + 1; bytes++)
        assert_int_equal(kn_keys_check(keys, copy, bytes, 1, &key) == KN_KEY_GOOD, bytes == sizeof copy - 1);
    kn_keys_destroy(&keys);
}

/* A well-formed key with the id of one row and the secret of another. */
static void a_hash_fits_its_own_row_only(void **state)
{
    (void)state;
    kn_key_row a = plain_row(), b = plain_row();
    kn_secret text_a, text_b;
    kn_keys *keys = empty_table();
    assert_int_equal(kn_key_mint(&a, &text_a, &pepper), KN_OK);
    assert_int_equal(kn_key_mint(&b, &text_b, &pepper), KN_OK);
    assert_string_not_equal(a.id, b.id);
    assert_memory_not_equal(a.secret_hash, b.secret_hash, sizeof a.secret_hash);
    assert_string_not_equal(kn_secret_reveal(&text_a), kn_secret_reveal(&text_b));
    memcpy(a.secret_hash, b.secret_hash, sizeof a.secret_hash);
    assert_int_equal(kn_keys_put(keys, &a), KN_OK);
    assert_int_equal(kn_keys_put(keys, &b), KN_OK);
    assert_int_equal(check(keys, &text_a, 1), KN_KEY_UNKNOWN);
    assert_int_equal(check(keys, &text_b, 1), KN_KEY_GOOD);
    kn_keys_destroy(&keys);
}

static void expiry_and_revocation(void **state)
{
    (void)state;
    kn_key_row row = plain_row();
    kn_secret text;
    kn_keys *keys = empty_table();
    row.expires_at = 1000;
    assert_int_equal(kn_key_mint(&row, &text, &pepper), KN_OK);
    assert_int_equal(kn_keys_put(keys, &row), KN_OK);
    assert_int_equal(check(keys, &text, 999), KN_KEY_GOOD);
    assert_int_equal(check(keys, &text, 1000), KN_KEY_EXPIRED);
    assert_int_equal(kn_keys_revoke(keys, "nobodynobody", 5), KN_NOT_FOUND);
    assert_int_equal(kn_keys_revoke(keys, row.id, 500), KN_OK);
    assert_int_equal(check(keys, &text, 1), KN_KEY_REVOKED); /* at once, whatever the clock says */
    assert_int_equal(kn_keys_revoke(keys, row.id, 700), KN_OK);
    assert_int_equal(kn_keys_find(keys, row.id)->revoked_at, 500);
    row.revoked_at = 500; /* a refresh from the store does not bring it back */
    assert_int_equal(kn_keys_put(keys, &row), KN_OK);
    assert_int_equal(check(keys, &text, 1), KN_KEY_REVOKED);
    /* Who does not have the secret does not hear of it. */
    kn_key_row other = plain_row();
    kn_secret wrong;
    assert_int_equal(kn_key_mint(&other, &wrong, &pepper), KN_OK);
    assert_int_equal(check(keys, &wrong, 1), KN_KEY_UNKNOWN);
    kn_keys_remove(keys, row.id);
    kn_keys_remove(keys, row.id);
    assert_int_equal(check(keys, &text, 1), KN_KEY_UNKNOWN);
    assert_int_equal(kn_keys_count(keys), 0);
    kn_keys_destroy(&keys);
}

static void rows_out_of_range_are_refused(void **state)
{
    (void)state;
    kn_key_row good = plain_row();
    kn_secret text;
    assert_int_equal(kn_key_mint(&good, &text, &pepper), KN_OK);
    assert_int_equal(kn_key_row_check(&good), KN_OK);
#define REFUSED(change)                                                                                                \
    do {                                                                                                               \
        kn_key_row row = good;                                                                                         \
        change;                                                                                                        \
        assert_int_equal(kn_key_row_check(&row), KN_INVALID);                                                          \
    } while (0)
    REFUSED(row.id[0] = 'A');
    REFUSED(row.id[11] = '\0');
    REFUSED(row.id[12] = 'a');
    REFUSED(row.tenant[0] = '\0');
    REFUSED(row.tenant[0] = '.');
    REFUSED(row.tenant[1] = '\n');
    REFUSED(memset(row.tenant, 'a', sizeof row.tenant));
    REFUSED(row.scopes = 0);
    REFUSED(row.scopes = KN_SCOPES_ALL + 1);
    REFUSED(row.priorities = 0);
    REFUSED(row.priorities = 1u << KN_PRIORITIES);
    REFUSED(memset(row.models, 'a', sizeof row.models));
    REFUSED(snprintf(row.models, sizeof row.models, "a b"));
    REFUSED(snprintf(row.models, sizeof row.models, "a,,b"));
    REFUSED(snprintf(row.models, sizeof row.models, ",b"));
    REFUSED(memset(row.region, 'a', sizeof row.region));
    REFUSED(row.requests_per_minute = -1);
    REFUSED(row.requests_per_minute = KN_KEY_RATE_MAX + 1);
    REFUSED(row.burst = KN_KEY_RATE_MAX + 1);
    REFUSED(row.limits.max_active = -1);
    REFUSED(row.limits.device_us = 1);
    REFUSED(row.expires_at = -1);
    REFUSED(row.revoked_at = -1);
#undef REFUSED
    good.requests_per_minute = KN_KEY_RATE_MAX;
    good.tenant[0] = '0';
    assert_int_equal(kn_key_row_check(&good), KN_OK);
    kn_keys *keys = empty_table();
    good.scopes = 1u << 20;
    assert_int_equal(kn_keys_put(keys, &good), KN_INVALID);
    assert_int_equal(kn_keys_load(keys, &good), KN_OK); /* left out, the others still load */
    assert_int_equal(kn_keys_count(keys), 0);
    kn_secret unused;
    assert_int_equal(kn_key_mint(&good, &unused, &pepper), KN_INVALID);
    kn_keys_destroy(&keys);
}

static void lists_of_words(void **state)
{
    (void)state;
    uint32_t bits = 77;
    char text[64];
    assert_int_equal(kn_scopes_parse(&bits, "metrics,submit"), KN_OK);
    assert_int_equal(bits, KN_SCOPE_METRICS | KN_SCOPE_SUBMIT);
    kn_scopes_format(text, bits);
    assert_string_equal(text, "submit,metrics");
    kn_scopes_format(text, UINT32_MAX);
    assert_string_equal(text, "submit,read,cancel,admin,metrics");
    static const char *const bad[] = {"", "submit,", ",submit", "Submit", "submit read", "root"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(kn_scopes_parse(&bits, bad[i]), KN_INVALID);
        assert_non_null(strstr(kn_fail_message(), "submit,read,cancel,admin,metrics"));
    }
    assert_int_equal(kn_priorities_parse(&bits, "flex,priority"), KN_OK);
    assert_int_equal(bits, 1u << KN_PRIORITY_FLEX | 1u << KN_PRIORITY_URGENT);
    kn_priorities_format(text, bits);
    assert_string_equal(text, "flex,priority");
    assert_int_equal(kn_priorities_parse(&bits, "urgent"), KN_INVALID);
    for (int i = 0; i < 5; i++) assert_string_not_equal(kn_scope_name((kn_scope)(1 << i)), "unknown");
    assert_string_equal(kn_scope_name(KN_SCOPES_ALL), "unknown");
    assert_true(kn_models_allow("", "anything"));
    assert_true(kn_models_allow("a,bc,d", "bc"));
    assert_true(kn_models_allow("a,bc,d", "d"));
    assert_false(kn_models_allow("a,bc,d", "b"));
    assert_false(kn_models_allow("a,bc,d", "bcd"));
    assert_false(kn_models_allow("a", ""));
}

static void many_keys(void **state)
{
    (void)state;
    enum { MANY = 2000 };
    static char ids[MANY][KN_KEY_ID_BYTES];
    static kn_secret texts[MANY];
    kn_keys *keys = empty_table();
    for (int i = 0; i < MANY; i++) {
        kn_key_row row = plain_row();
        assert_int_equal(kn_key_mint(&row, &texts[i], &pepper), KN_OK);
        memcpy(ids[i], row.id, sizeof ids[i]);
        assert_int_equal(kn_keys_put(keys, &row), KN_OK);
    }
    assert_int_equal(kn_keys_count(keys), MANY);
    for (int i = 0; i < MANY; i += 2) kn_keys_remove(keys, ids[i]);
    for (int i = 0; i < MANY; i++) assert_int_equal(check(keys, &texts[i], 1), i % 2 ? KN_KEY_GOOD : KN_KEY_UNKNOWN);
    kn_keys_destroy(&keys);
}

/* KN_KEYS_MAX and one more. The ids are counted up, the hashes do not matter. */
static void the_table_is_bounded(void **state)
{
    (void)state;
    kn_keys *keys = empty_table();
    kn_key_row row = plain_row();
    for (int i = 0; i <= KN_KEYS_MAX; i++) {
        snprintf(row.id, sizeof row.id, "%012d", i);
        assert_int_equal(kn_keys_put(keys, &row), i < KN_KEYS_MAX ? KN_OK : KN_UNAVAILABLE);
    }
    assert_int_equal(kn_keys_count(keys), KN_KEYS_MAX);
    snprintf(row.id, sizeof row.id, "%012d", 5);
    assert_int_equal(kn_keys_put(keys, &row), KN_OK); /* a known one still changes */
    kn_keys_destroy(&keys);
}

static void no_memory_leaves_the_table(void **state)
{
    (void)state;
    kn_key_row row = plain_row();
    kn_secret text;
    assert_int_equal(kn_key_mint(&row, &text, &pepper), KN_OK);
    for (uint64_t n = 1;; n++) {
        kn_keys *keys = NULL;
        uint64_t bytes = kn_mem_read().bytes;
        kn_mem_fail_at(n);
        kn_status st = kn_keys_create(&keys, &pepper);
        if (st == KN_OK) st = kn_keys_put(keys, &row);
        if (st == KN_OK) st = kn_keys_put(keys, &row);
        kn_mem_fail_at(0);
        if (keys && st != KN_OK && kn_keys_count(keys)) assert_int_equal(check(keys, &text, 1), KN_KEY_GOOD);
        kn_keys_destroy(&keys);
        assert_int_equal(kn_mem_read().bytes, bytes);
        if (st == KN_OK) break;
        assert_int_equal(st, KN_NOMEM);
        assert_in_range(n, 1, 50);
    }
}

/* ---- pepper ---- */

static char folder[] = "/tmp/kinora-keys-XXXXXX";

static const char *below(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void a_pepper_is_made_once(void **state)
{
    (void)state;
    kn_pepper first, second;
    struct stat file;
    assert_int_equal(kn_pepper_open(&first, folder), KN_OK);
    assert_int_equal(stat(below(KN_PEPPER_FILE), &file), 0);
    assert_int_equal(file.st_mode & 0777, 0600);
    assert_int_equal(file.st_size, KN_PEPPER_BYTES);
    assert_int_equal(kn_pepper_open(&second, folder), KN_OK);
    assert_memory_equal(&first, &second, sizeof first);
    assert_memory_not_equal(&first, &(kn_pepper){0}, sizeof first);
    kn_pepper_wipe(&first);
    assert_memory_equal(&first, &(kn_pepper){0}, sizeof first);
    assert_int_equal(unlink(below(KN_PEPPER_FILE)), 0);
}

/* Many processes at once; all end with the same bytes, and nothing is left beside them. */
static void peppers_of_rivals_are_one(void **state)
{
    (void)state;
    enum { RIVALS = 8 };
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t processes[RIVALS];
    for (int i = 0; i < RIVALS; i++) {
        processes[i] = fork();
        assert_true(processes[i] >= 0);
        if (processes[i] > 0) continue;
        kn_pepper mine;
        bool good = kn_pepper_open(&mine, folder) == KN_OK && write(ends[1], &mine, sizeof mine) == sizeof mine;
        _exit(good ? 0 : 1);
    }
    kn_pepper first, next;
    for (int i = 0; i < RIVALS; i++) {
        int status;
        assert_int_equal(waitpid(processes[i], &status, 0), processes[i]);
        assert_int_equal(status, 0);
        assert_int_equal(read(ends[0], i ? &next : &first, sizeof first), sizeof first);
        if (i) assert_memory_equal(&first, &next, sizeof first);
    }
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(unlink(below(KN_PEPPER_FILE)), 0);
    assert_int_equal(rmdir(folder), 0); /* empty: no temporary files */
    assert_int_equal(mkdir(folder, 0700), 0);
}

static void write_file(const char *path, size_t bytes, mode_t mode)
{
    static const char zeros[64];
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(file >= 0);
    assert_int_equal(write(file, zeros, bytes), bytes);
    assert_int_equal(fchmod(file, mode), 0);
    close(file);
}

static void doubtful_peppers_are_refused(void **state)
{
    (void)state;
    kn_pepper unused;
    assert_int_equal(kn_pepper_open(&unused, below("nowhere")), KN_NOT_FOUND);
    write_file(below(KN_PEPPER_FILE), KN_PEPPER_BYTES, 0640);
    assert_int_equal(kn_pepper_open(&unused, folder), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "chmod 600"));
    write_file(below(KN_PEPPER_FILE), KN_PEPPER_BYTES - 1, 0600);
    assert_int_equal(kn_pepper_open(&unused, folder), KN_CORRUPT);
    write_file(below(KN_PEPPER_FILE), KN_PEPPER_BYTES + 1, 0600);
    assert_int_equal(kn_pepper_open(&unused, folder), KN_CORRUPT);
    assert_int_equal(unlink(below(KN_PEPPER_FILE)), 0);
    assert_int_equal(mkfifo(below(KN_PEPPER_FILE), 0600), 0);
    assert_int_equal(kn_pepper_open(&unused, folder), KN_INVALID); /* and does not wait for a writer */
    assert_int_equal(unlink(below(KN_PEPPER_FILE)), 0);
    assert_int_equal(symlink("/dev/zero", below(KN_PEPPER_FILE)), 0);
    assert_int_equal(kn_pepper_open(&unused, folder), KN_IO);
    assert_int_equal(unlink(below(KN_PEPPER_FILE)), 0);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_opens_its_row),
        cmocka_unit_test(every_changed_character_is_refused),
        cmocka_unit_test(a_hash_fits_its_own_row_only),
        cmocka_unit_test(expiry_and_revocation),
        cmocka_unit_test(rows_out_of_range_are_refused),
        cmocka_unit_test(lists_of_words),
        cmocka_unit_test(many_keys),
        cmocka_unit_test(the_table_is_bounded),
        cmocka_unit_test(no_memory_leaves_the_table),
        cmocka_unit_test(a_pepper_is_made_once),
        cmocka_unit_test(peppers_of_rivals_are_one),
        cmocka_unit_test(doubtful_peppers_are_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
