/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/artifact.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

enum {
    ID_BYTES = 38,
    READ_BYTES = 256 << 10,
    NAMED_EPOCHS = 64, /* of a job with more leases, files are looked for by going through the folder */
};

static const char *const endings[KN_ARTIFACT_KINDS] = {NULL, ".mp4", ".webp", ".jpg"};

bool kn_lease_valid(const kn_lease *lease)
{
    return lease->epoch >= 1 && memchr(lease->job, 0, sizeof lease->job) && kn_job_id_valid(lease->job);
}

bool kn_lease_equal(const kn_lease *a, const kn_lease *b)
{
    return a->epoch == b->epoch && strcmp(a->job, b->job) == 0;
}

/* ---- names ---- */

void kn_artifact_name(char out[KN_ARTIFACT_NAME_BYTES], const kn_artifact *a)
{
    char step[16];
    snprintf(step, sizeof step, ".%d", a->step);
    snprintf(out, KN_ARTIFACT_NAME_BYTES, "%s.%" PRId64 "%s%s", a->lease.job, a->lease.epoch,
             a->kind == KN_ARTIFACT_CHECKPOINT ? step : endings[a->kind], a->temporary ? ".tmp" : "");
}

/* Reads loosely, then asks whether the name is the one that belongs to what was read. */
bool kn_artifact_parse(kn_artifact *out, const char *name)
{
    kn_artifact a = {0};
    char again[KN_ARTIFACT_NAME_BYTES];
    const size_t bytes = strnlen(name, KN_ARTIFACT_NAME_BYTES);
    if (bytes == KN_ARTIFACT_NAME_BYTES || bytes <= ID_BYTES || name[ID_BYTES] != '.') return false;
    memcpy(a.lease.job, name, ID_BYTES);
    errno = 0;
    char *end = NULL;
    const long long epoch = strtoll(name + ID_BYTES + 1, &end, 10);
    a.lease.epoch = epoch;
    if (errno != 0 || !kn_lease_valid(&a.lease)) return false;
    const size_t left = strlen(end);
    a.temporary = left > 4 && strcmp(end + left - 4, ".tmp") == 0;
    const size_t ending = a.temporary ? left - 4 : left;
    for (int kind = KN_ARTIFACT_VIDEO; kind < KN_ARTIFACT_KINDS; kind++)
        if (strlen(endings[kind]) == ending && strncmp(end, endings[kind], ending) == 0)
            a.kind = (kn_artifact_kind)kind;
    if (a.kind == KN_ARTIFACT_CHECKPOINT) {
        if (end[0] != '.') return false;
        const long step = strtol(end + 1, NULL, 10);
        if (errno != 0 || step < 0 || step > INT32_MAX) return false;
        a.step = (int32_t)step;
    }
    kn_artifact_name(again, &a);
    if (strcmp(again, name) != 0) return false;
    *out = a;
    return true;
}

const char *kn_artifact_folder(kn_artifact_kind kind)
{
    return kind == KN_ARTIFACT_CHECKPOINT ? "checkpoints" : "blobs";
}

char *kn_artifact_path(const char *data, const kn_artifact *artifact)
{
    char name[KN_ARTIFACT_NAME_BYTES];
    kn_artifact_name(name, artifact);
    return kn_format("%s/%s/%s", data, kn_artifact_folder(artifact->kind), name);
}

/* ---- folders and files ---- */

kn_status kn_artifact_prepare(const char *data)
{
    const kn_artifact_kind kinds[] = {KN_ARTIFACT_CHECKPOINT, KN_ARTIFACT_VIDEO};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char *path = kn_format("%s/%s", data, kn_artifact_folder(kinds[i]));
        if (!path) return KN_NOMEM;
        const bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        const kn_status st = made ? KN_OK : kn_fail(KN_IO, "%s: cannot be made: %s", path, strerror(errno));
        kn_free(path);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

static kn_status write_all(int file, const char *bytes, size_t count)
{
    while (count > 0) {
        const ssize_t wrote = write(file, bytes, count);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return KN_IO;
        bytes += wrote;
        count -= (size_t)wrote;
    }
    return fsync(file) == 0 ? KN_OK : KN_IO;
}

/* Makes a rename in the folder of `path` durable; a file system that cannot is as durable as it can be (EINVAL). */
static kn_status sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? kn_strndup(path, (size_t)(slash - path) + 1) : kn_strdup(".");
    if (!folder) return KN_NOMEM;
    const int file = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    kn_free(folder);
    const bool synced = file >= 0 && (fsync(file) == 0 || errno == EINVAL);
    const int error = errno;
    if (file >= 0) close(file);
    return synced ? KN_OK : kn_fail(KN_IO, "%s: its folder cannot be synced: %s", path, strerror(error));
}

kn_status kn_artifact_write(const char *path, const void *bytes, size_t count)
{
    kn_status st = KN_OK;
    char *temporary = kn_format("%s.tmp", path);
    if (!temporary) return KN_NOMEM;
    const int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) {
        st = kn_fail(KN_IO, "%s: cannot be written: %s", temporary, strerror(errno));
        kn_free(temporary);
        return st;
    }
    st = write_all(file, bytes, count);
    if (close(file) != 0) st = KN_IO;
    if (st != KN_OK) KN_TRY(kn_fail(KN_IO, "%s: cannot be written: %s", temporary, strerror(errno)));
    if (rename(temporary, path) != 0)
        KN_TRY(kn_fail(KN_IO, "%s: cannot be renamed to %s: %s", temporary, path, strerror(errno)));
    kn_free(temporary);
    return sync_folder(path);

fail:
    unlink(temporary);
    kn_free(temporary);
    return st;
}

static kn_status digest(int file, const char *path, EVP_MD_CTX *sum, char *buffer, uint64_t *bytes)
{
    for (;;) {
        const ssize_t got = read(file, buffer, READ_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return kn_fail(KN_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0) return KN_OK;
        if (EVP_DigestUpdate(sum, buffer, (size_t)got) != 1) return kn_fail(KN_BUG, "SHA-256 failed");
        *bytes += (uint64_t)got;
    }
}

kn_status kn_artifact_digest(const char *path, uint8_t sha256[KN_SHA256_BYTES], uint64_t *bytes)
{
    kn_status st = KN_OK;
    struct stat info;
    EVP_MD_CTX *sum = EVP_MD_CTX_new();
    char *buffer = kn_alloc(READ_BYTES);
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    *bytes = 0;
    if (!sum || !buffer) KN_TRY(KN_NOMEM);
    if (file < 0) KN_TRY(kn_fail(errno == ENOENT ? KN_NOT_FOUND : KN_IO, "%s: %s", path, strerror(errno)));
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) KN_TRY(kn_fail(KN_IO, "%s: is not a regular file", path));
    if (EVP_DigestInit_ex(sum, EVP_sha256(), NULL) != 1) KN_TRY(kn_fail(KN_BUG, "SHA-256 cannot be had"));
    KN_TRY(digest(file, path, sum, buffer, bytes));
    if (EVP_DigestFinal_ex(sum, sha256, NULL) != 1) KN_TRY(kn_fail(KN_BUG, "SHA-256 failed"));
fail:
    if (file >= 0) close(file);
    kn_free(buffer);
    EVP_MD_CTX_free(sum);
    return st;
}

static void remove_file(int folder, const char *path, const char *name)
{
    if (unlinkat(folder, name, 0) != 0 && errno != ENOENT)
        kn_log(KN_LOG_WARNING, "%s/%s: cannot be removed: %s", path, name, strerror(errno));
}

static void remove_listed(DIR *listing, const char *path, const kn_lease *lease, unsigned kinds)
{
    kn_artifact found;
    for (const struct dirent *entry; (entry = readdir(listing));) {
        if (!kn_artifact_parse(&found, entry->d_name) || !(kinds >> found.kind & 1u)) continue;
        if (strcmp(found.lease.job, lease->job) != 0 || found.lease.epoch > lease->epoch) continue;
        remove_file(dirfd(listing), path, entry->d_name);
    }
}

/* By the names there may be: blobs/ has the results of all jobs, and is not gone through for one of them. */
static void remove_named(int folder, const char *path, const kn_lease *lease, unsigned kinds)
{
    char name[KN_ARTIFACT_NAME_BYTES];
    for (int64_t epoch = 1; epoch <= lease->epoch; epoch++)
        for (unsigned i = 2 * KN_ARTIFACT_VIDEO; i < 2 * KN_ARTIFACT_KINDS; i++) {
            kn_artifact a = {.kind = (kn_artifact_kind)(i / 2), .lease = *lease, .temporary = i % 2};
            if (!(kinds >> a.kind & 1u)) continue;
            a.lease.epoch = epoch;
            kn_artifact_name(name, &a);
            remove_file(folder, path, name);
        }
}

static void remove_from(const char *data, kn_artifact_kind folder, const kn_lease *lease, unsigned kinds)
{
    char *path = kn_format("%s/%s", data, kn_artifact_folder(folder));
    DIR *listing = path ? opendir(path) : NULL;
    const bool named = folder != KN_ARTIFACT_CHECKPOINT && lease->epoch <= NAMED_EPOCHS;
    if (listing && named) remove_named(dirfd(listing), path, lease, kinds);
    if (listing && !named) remove_listed(listing, path, lease, kinds);
    if (!listing) kn_log(KN_LOG_WARNING, "%s: cannot be listed: %s", path ? path : data, strerror(errno));
    if (listing) closedir(listing);
    kn_free(path);
}

void kn_artifact_remove(const char *data, const kn_lease *lease, unsigned kinds)
{
    const unsigned checkpoints = 1u << KN_ARTIFACT_CHECKPOINT;
    if (kinds & checkpoints) remove_from(data, KN_ARTIFACT_CHECKPOINT, lease, kinds);
    if (kinds & ~checkpoints) remove_from(data, KN_ARTIFACT_VIDEO, lease, kinds);
}
