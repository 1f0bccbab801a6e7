/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE /* getrandom, O_CLOEXEC */
#include "server/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/names.h"

static const char prefix[] = "kinora_";
static const char base62[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
static const char base36[] = "0123456789abcdefghijklmnopqrstuvwxyz";

enum {
    PREFIX = sizeof prefix - 1,
    ID = KN_KEY_ID_BYTES - 1,
    SECRET = 43, /* 62^43 > 2^256 */
    CHECKSUM = 6,
    SIGNED = ID + 1 + SECRET, /* "<keyid>_<secret>" */
    TEXT = PREFIX + SIGNED + CHECKSUM,
};
_Static_assert(TEXT + 1 == KN_KEY_TEXT_BYTES, "the parts make the whole");
_Static_assert((int)KN_KEY_TEXT_BYTES <= (int)KN_SECRET_BYTES, "a key is a secret");

/* ---- lists of words ---- */

static const char *const scope_names[] = {"submit", "read", "cancel", "admin", "metrics"};
enum { SCOPES = sizeof scope_names / sizeof *scope_names };
_Static_assert(KN_SCOPES_ALL == (1 << SCOPES) - 1, "every scope has a name");

static const char *scope_at(int index)
{
    return index < SCOPES ? scope_names[index] : NULL;
}

static const char *priority_at(int index)
{
    return index < KN_PRIORITIES ? kn_priority_name((kn_priority)index) : NULL;
}

const char *kn_scope_name(kn_scope scope)
{
    for (int i = 0; i < SCOPES; i++)
        if ((int)scope == 1 << i) return scope_names[i];
    return "unknown";
}

/* Words separated by commas to bits, in the order of `at`. */
static kn_status parse_words(uint32_t *bits, const char *text, const char *what, const char *(*at)(int))
{
    uint32_t found = 0;
    for (const char *word = text;;) {
        size_t bytes = strcspn(word, ",");
        int index = 0;
        while (at(index) && !(strlen(at(index)) == bytes && memcmp(at(index), word, bytes) == 0)) index++;
        if (!at(index)) {
            char all[64];
            (at == scope_at ? kn_scopes_format : kn_priorities_format)(all, UINT32_MAX);
            return kn_fail(KN_INVALID, "\"%.*s\" is not a %s; there are %s", bytes < 40 ? (int)bytes : 40, word, what,
                           all);
        }
        found |= 1u << index;
        if (!word[bytes]) break;
        word += bytes + 1;
    }
    *bits = found;
    return KN_OK;
}

static void format_words(char out[64], uint32_t bits, const char *(*at)(int))
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; at(i); i++)
        if (bits & 1u << i) used += (size_t)snprintf(out + used, 64 - used, "%s%s", used ? "," : "", at(i));
}

kn_status kn_scopes_parse(uint32_t *scopes, const char *text)
{
    return parse_words(scopes, text, "scope", scope_at);
}

void kn_scopes_format(char out[64], uint32_t scopes)
{
    format_words(out, scopes, scope_at);
}

kn_status kn_priorities_parse(uint32_t *priorities, const char *text)
{
    return parse_words(priorities, text, "priority", priority_at);
}

void kn_priorities_format(char out[64], uint32_t priorities)
{
    format_words(out, priorities, priority_at);
}

bool kn_models_allow(const char *models, const char *model)
{
    size_t bytes = strlen(model);
    if (!*models) return true;
    for (const char *word = models;; word++) {
        size_t count = strcspn(word, ",");
        if (count == bytes && memcmp(word, model, bytes) == 0) return true;
        word += count;
        if (!*word) return false;
    }
}

/* ---- the text of a key ---- */

/* IEEE 802.3, bit by bit: the text is short. */
static uint32_t crc32_of(const char *text, size_t bytes)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= (unsigned char)text[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void put_checksum(char out[CHECKSUM], const char *text)
{
    uint32_t crc = crc32_of(text, PREFIX + SIGNED);
    for (int i = CHECKSUM - 1; i >= 0; i--, crc /= 62) out[i] = base62[crc % 62];
}

static bool all_of(const char *text, size_t bytes, const char *alphabet)
{
    for (size_t i = 0; i < bytes; i++)
        if (!text[i] || !strchr(alphabet, text[i])) return false;
    return true;
}

static bool id_valid(const char *id)
{
    return strnlen(id, KN_KEY_ID_BYTES) == ID && all_of(id, ID, base36);
}

bool kn_key_text_valid(const char *text, size_t bytes)
{
    char checksum[CHECKSUM];
    if (bytes != TEXT || memcmp(text, prefix, PREFIX) != 0 || text[PREFIX + ID] != '_') return false;
    if (!all_of(text + PREFIX, ID, base36) || !all_of(text + PREFIX + ID + 1, SECRET + CHECKSUM, base62)) return false;
    put_checksum(checksum, text);
    return memcmp(checksum, text + PREFIX + SIGNED, CHECKSUM) == 0;
}

/* `count` characters drawn evenly from an alphabet: bytes beyond its largest multiple are thrown away. */
static kn_status draw(char *out, size_t count, const char *alphabet)
{
    size_t letters = strlen(alphabet), limit = 256 - 256 % letters, have = 0;
    while (have < count) {
        unsigned char random[64];
        ssize_t got = getrandom(random, sizeof random, 0);
        if (got < 0 && errno != EINTR) return kn_fail(KN_IO, "no random numbers for a key: %s", strerror(errno));
        for (ssize_t i = 0; i < got && have < count; i++)
            if (random[i] < limit) out[have++] = alphabet[random[i] % letters];
        OPENSSL_cleanse(random, sizeof random);
    }
    return KN_OK;
}

/* HMAC-SHA-256(pepper, "<keyid>_<secret>"): with the id in it a hash fits its own row only. */
static bool hash_key(uint8_t hash[KN_SHA256_BYTES], const kn_pepper *pepper, const char *id_and_secret)
{
    return HMAC(EVP_sha256(), pepper->bytes, sizeof pepper->bytes, (const unsigned char *)id_and_secret, SIGNED, hash,
                NULL) != NULL;
}

kn_status kn_key_row_check(const kn_key_row *row)
{
    if (!id_valid(row->id)) return kn_fail(KN_INVALID, "a key's id has %d characters of [0-9a-z]", ID);
    size_t tenant = strnlen(row->tenant, KN_TENANT_BYTES);
    if (!tenant || tenant == KN_TENANT_BYTES || !strchr(base36, row->tenant[0]) ||
        strspn(row->tenant, "0123456789abcdefghijklmnopqrstuvwxyz._-") != tenant)
        return kn_fail(KN_INVALID, "a tenant is 1 to %d characters of [a-z0-9._-] and begins with a letter or digit",
                       KN_TENANT_BYTES - 1);
    if (!row->scopes || row->scopes & ~(uint32_t)KN_SCOPES_ALL) return kn_fail(KN_INVALID, "a key needs known scopes");
    if (!row->priorities || row->priorities >> KN_PRIORITIES)
        return kn_fail(KN_INVALID, "a key needs known priorities");
    if (strnlen(row->models, sizeof row->models) == sizeof row->models || strpbrk(row->models, " \t\n") ||
        row->models[0] == ',' || strstr(row->models, ",,"))
        return kn_fail(KN_INVALID, "models are names separated by single commas, %d characters at most",
                       KN_KEY_MODELS_BYTES - 1);
    if (strnlen(row->region, sizeof row->region) == sizeof row->region)
        return kn_fail(KN_INVALID, "a region has at most %d characters", KN_REGION_BYTES - 1);
    if (row->requests_per_minute < 0 || row->requests_per_minute > KN_KEY_RATE_MAX || row->burst < 0 ||
        row->burst > KN_KEY_RATE_MAX)
        return kn_fail(KN_INVALID, "requests per minute and burst are 0 (no limit) to %d", KN_KEY_RATE_MAX);
    if (row->limits.max_active < 0 || row->limits.device_us > INT64_MAX ||
        (row->limits.device_us && row->limits.window_us <= 0))
        return kn_fail(KN_INVALID, "the limits of active jobs and device time are 0 (none) or more");
    if (row->expires_at < 0 || row->revoked_at < 0) return kn_fail(KN_INVALID, "a key's times are after 1970");
    return KN_OK;
}

kn_status kn_key_mint(kn_key_row *row, kn_secret *text, const kn_pepper *pepper)
{
    kn_status st = KN_OK;
    char whole[TEXT];
    memcpy(whole, prefix, PREFIX);
    whole[PREFIX + ID] = '_';
    KN_TRY(draw(whole + PREFIX, ID, base36));
    KN_TRY(draw(whole + PREFIX + ID + 1, SECRET, base62));
    put_checksum(whole + PREFIX + SIGNED, whole);
    memset(row->id, 0, sizeof row->id);
    memcpy(row->id, whole + PREFIX, ID);
    KN_TRY(kn_key_row_check(row));
    if (!hash_key(row->secret_hash, pepper, whole + PREFIX)) KN_TRY(kn_fail(KN_NOMEM, "no memory for a key's hash"));
    KN_TRY(kn_secret_set(text, whole, TEXT));

fail:
    OPENSSL_cleanse(whole, sizeof whole);
    return st;
}

/* ---- the table ---- */

struct kn_keys {
    kn_names *names;
    kn_key *keys; /* [span of names]; models: owned */
    size_t room;
    kn_pepper pepper;
    uint8_t nobody[KN_SHA256_BYTES]; /* what an unknown id is compared with: random */
};

kn_status kn_keys_create(kn_keys **out, const kn_pepper *pepper)
{
    kn_status st = KN_OK;
    kn_keys *keys = kn_alloc(sizeof *keys);
    if (!keys) return KN_NOMEM;
    keys->pepper = *pepper;
    KN_TRY(kn_names_create(&keys->names, KN_KEYS_MAX));
    if (getrandom(keys->nobody, sizeof keys->nobody, 0) != sizeof keys->nobody)
        KN_TRY(kn_fail(KN_IO, "no random numbers for the key table: %s", strerror(errno)));
    *out = keys;
    return KN_OK;

fail:
    kn_keys_destroy(&keys);
    return st;
}

static void drop(kn_key *key)
{
    kn_free((char *)key->models);
    *key = (kn_key){0};
}

void kn_keys_destroy(kn_keys **keys)
{
    if (!keys || !*keys) return;
    for (size_t i = 0; i < (*keys)->room; i++) drop(&(*keys)->keys[i]);
    kn_free((*keys)->keys);
    kn_names_destroy(&(*keys)->names);
    kn_pepper_wipe(&(*keys)->pepper);
    kn_free(*keys);
    *keys = NULL;
}

kn_status kn_keys_put(kn_keys *keys, const kn_key_row *row)
{
    kn_status st = kn_key_row_check(row);
    if (st != KN_OK) return st;
    size_t needed = kn_names_span(keys->names) + 1;
    if (needed > keys->room) {
        size_t room = keys->room ? 2 * keys->room : 16;
        kn_key *grown = kn_realloc(keys->keys, room * sizeof *grown);
        if (!grown) return KN_NOMEM;
        keys->keys = grown;
        keys->room = room;
    }
    char *models = kn_strdup(row->models);
    if (!models) return KN_NOMEM;
    uint32_t number;
    st = kn_names_add(keys->names, row->id, &number);
    if (st != KN_OK) {
        kn_free(models);
        return st;
    }
    kn_key *key = &keys->keys[number];
    drop(key);
    memcpy(key->id, row->id, KN_KEY_ID_BYTES);
    memcpy(key->tenant, row->tenant, sizeof key->tenant);
    memcpy(key->hash, row->secret_hash, sizeof key->hash);
    memcpy(key->region, row->region, sizeof key->region);
    key->scopes = row->scopes;
    key->priorities = row->priorities;
    key->models = models;
    key->limits = row->limits;
    key->requests_per_minute = (int32_t)row->requests_per_minute;
    key->burst = (int32_t)row->burst;
    key->expires_at = row->expires_at;
    key->revoked_at = row->revoked_at;
    return KN_OK;
}

kn_status kn_keys_load(void *context, const kn_key_row *row)
{
    kn_status st = kn_keys_put(context, row);
    if (st != KN_INVALID) return st;
    kn_log_event(KN_LOG_ERROR, KN_LOG_WITH(kn_log_text("key", row->id)), "an API key is left out: %s",
                 kn_fail_message());
    return KN_OK;
}

kn_status kn_keys_revoke(kn_keys *keys, const char *id, int64_t now_us)
{
    uint32_t number;
    if (!kn_names_find(keys->names, id, &number)) return kn_fail(KN_NOT_FOUND, "there is no key with this id");
    kn_key *key = &keys->keys[number];
    if (!key->revoked_at || key->revoked_at > now_us) key->revoked_at = now_us > 0 ? now_us : 1;
    return KN_OK;
}

void kn_keys_remove(kn_keys *keys, const char *id)
{
    uint32_t number;
    if (!kn_names_find(keys->names, id, &number)) return;
    kn_names_remove(keys->names, id);
    drop(&keys->keys[number]);
}

size_t kn_keys_count(const kn_keys *keys)
{
    return kn_names_count(keys->names);
}

const kn_key *kn_keys_find(const kn_keys *keys, const char *id)
{
    uint32_t number;
    return kn_names_find(keys->names, id, &number) ? &keys->keys[number] : NULL;
}

kn_key_verdict kn_keys_check(const kn_keys *keys, const char *text, size_t bytes, int64_t now_us, const kn_key **key)
{
    static const char nothing[TEXT] = {0};
    bool well_formed = kn_key_text_valid(text, bytes);
    char id[KN_KEY_ID_BYTES] = "";
    if (well_formed) memcpy(id, text + PREFIX, ID);
    const kn_key *known = kn_keys_find(keys, id);
    uint8_t hash[KN_SHA256_BYTES] = {0};
    bool hashed = hash_key(hash, &keys->pepper, (well_formed ? text : nothing) + PREFIX);
    bool same = CRYPTO_memcmp(hash, known ? known->hash : keys->nobody, sizeof hash) == 0;
    OPENSSL_cleanse(hash, sizeof hash);
    *key = NULL;
    if (!well_formed) return KN_KEY_MALFORMED;
    if (!hashed || !known || !same) return KN_KEY_UNKNOWN;
    *key = known;
    if (known->revoked_at) return KN_KEY_REVOKED;
    if (known->expires_at && known->expires_at <= now_us) return KN_KEY_EXPIRED;
    return KN_KEY_GOOD;
}

/* ---- pepper ---- */

void kn_pepper_wipe(kn_pepper *pepper)
{
    OPENSSL_cleanse(pepper, sizeof *pepper);
}

/* KN_NOT_FOUND when there is no such file. */
static kn_status read_pepper(kn_pepper *out, int folder, const char *data)
{
    struct stat file;
    int descriptor = openat(folder, KN_PEPPER_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0)
        return kn_fail(errno == ENOENT ? KN_NOT_FOUND : KN_IO, "%s/%s: %s", data, KN_PEPPER_FILE, strerror(errno));
    kn_status st = KN_OK;
    uint8_t bytes[KN_PEPPER_BYTES + 1];
    if (fstat(descriptor, &file) != 0)
        st = kn_fail(KN_IO, "%s/%s: %s", data, KN_PEPPER_FILE, strerror(errno));
    else if (!S_ISREG(file.st_mode))
        st = kn_fail(KN_INVALID, "%s/%s is not a regular file", data, KN_PEPPER_FILE);
    else if (file.st_mode & 077)
        st = kn_fail(KN_INVALID, "%s/%s can be read by others: chmod 600 it, and make new keys if they have read it",
                     data, KN_PEPPER_FILE);
    else if (read(descriptor, bytes, sizeof bytes) != KN_PEPPER_BYTES)
        st = kn_fail(KN_CORRUPT,
                     "%s/%s does not have %d bytes; the keys made with it are lost, restore it from a backup", data,
                     KN_PEPPER_FILE, KN_PEPPER_BYTES);
    close(descriptor);
    if (st == KN_OK) memcpy(out->bytes, bytes, sizeof out->bytes);
    OPENSSL_cleanse(bytes, sizeof bytes);
    return st;
}

/* Writes random bytes beside the name and links them to it, so that the name never stands for less than all of them
 * and the first of two processes wins. */
static kn_status make_pepper(int folder, const char *data)
{
    kn_status st = KN_OK;
    char beside[40];
    uint8_t bytes[KN_PEPPER_BYTES];
    snprintf(beside, sizeof beside, KN_PEPPER_FILE ".%ld", (long)getpid());
    unlinkat(folder, beside, 0); /* of a process that had this number and did not finish */
    int descriptor = openat(folder, beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) return kn_fail(KN_IO, "%s/%s: %s", data, beside, strerror(errno));
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes || write(descriptor, bytes, sizeof bytes) != sizeof bytes ||
        fsync(descriptor) != 0 || (linkat(folder, beside, folder, KN_PEPPER_FILE, 0) != 0 && errno != EEXIST))
        st = kn_fail(KN_IO, "%s/%s cannot be made: %s", data, KN_PEPPER_FILE, strerror(errno));
    close(descriptor);
    unlinkat(folder, beside, 0);
    if (st == KN_OK && fsync(folder) != 0) st = kn_fail(KN_IO, "%s: %s", data, strerror(errno));
    OPENSSL_cleanse(bytes, sizeof bytes);
    return st;
}

kn_status kn_pepper_open(kn_pepper *out, const char *data)
{
    int folder = open(data, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return kn_fail(errno == ENOENT ? KN_NOT_FOUND : KN_IO, "%s: %s", data, strerror(errno));
    kn_status st = read_pepper(out, folder, data);
    if (st == KN_NOT_FOUND) {
        st = make_pepper(folder, data);
        if (st == KN_OK) st = read_pepper(out, folder, data);
    }
    close(folder);
    return st;
}
