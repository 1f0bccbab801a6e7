/* SPDX-License-Identifier: Apache-2.0
 *
 * A copy of the data directory as of one moment. The order makes it whole: first the database, read in one transaction,
 * then the files its rows name. A file that is gone by then was removed by an expiry or a deletion that came after that
 * moment; in the copy its job counts as expired. A checkpoint that was replaced meanwhile does not fit its row's hash
 * any more, and is dropped when the job is taken up, as after a crash.
 *
 * The running server's database is opened read-only and never checkpointed: SQLite before 3.51.3 can damage a database
 * to which two connections write at the same moment. Where no server runs, the lock is held so that none starts in the
 * middle. */
#define _GNU_SOURCE /* copy_file_range, syncfs */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/artifact.h"
#include "server/server.h"
#include "server/store.h"

enum { BUSY_MS = 10000, CHUNK_BYTES = 1 << 20 };

typedef struct backup {
    const char *data;
    char *partial;        /* where the copy grows */
    int lock;             /* of the data directory, where no server runs; -1 */
    sqlite3 *from, *copy; /* NULL: not open */
    kn_backup_report *report;
} backup;

/* ---- files ---- */

static kn_status disk_fail(const char *path)
{
    const kn_status st = errno == ENOSPC || errno == EDQUOT ? KN_UNAVAILABLE : errno == ENOMEM ? KN_NOMEM : KN_IO;
    return kn_fail(st, "%s: %s", path, strerror(errno));
}

/* Falls back to reading and writing where the file systems do not copy between each other. */
static kn_status copy_bytes(int from, int to, const char *path, uint64_t *bytes)
{
    char *buffer = NULL;
    kn_status st = KN_OK;
    for (;;) {
        ssize_t got = buffer ? read(from, buffer, CHUNK_BYTES) : copy_file_range(from, NULL, to, NULL, CHUNK_BYTES, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && !buffer && (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)) {
            buffer = kn_alloc(CHUNK_BYTES);
            if (!buffer) return KN_NOMEM;
            continue;
        }
        if (got < 0) st = disk_fail(path);
        if (got <= 0) break;
        for (ssize_t at = 0; buffer && at < got && st == KN_OK;) {
            const ssize_t wrote = write(to, buffer + at, (size_t)(got - at));
            if (wrote < 0 && errno != EINTR) st = disk_fail(path);
            if (wrote > 0) at += wrote;
        }
        if (st != KN_OK) break;
        *bytes += (uint64_t)got;
    }
    kn_free(buffer);
    return st;
}

/* "name" below both directories. *found false: there is no such file. */
static kn_status copy_file(backup *b, const char *name, bool *found)
{
    kn_status st = KN_OK;
    struct stat info;
    int from = -1, to = -1;
    char *source = kn_format("%s/%s", b->data, name), *target = kn_format("%s/%s", b->partial, name);
    *found = false;
    if (!source || !target) KN_TRY(KN_NOMEM);
    from = open(source, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (from < 0 && errno == ENOENT) goto fail; /* KN_OK */
    if (from < 0 || fstat(from, &info) != 0) KN_TRY(disk_fail(source));
    if (!S_ISREG(info.st_mode)) KN_TRY(kn_fail(KN_CORRUPT, "%s is not a regular file", source));
    to = open(target, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0) KN_TRY(disk_fail(target));
    KN_TRY(copy_bytes(from, to, target, &b->report->bytes));
    *found = true;
fail:
    if (from >= 0) close(from);
    if (to >= 0 && close(to) != 0 && st == KN_OK) st = disk_fail(target);
    kn_free(source);
    kn_free(target);
    return st;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info, (void)kind, (void)walk;
    return remove(path);
}

/* ---- the database ---- */

static kn_status sql_fail(sqlite3 *db, int code, const char *what)
{
    const int primary = code & 0xff;
    return kn_fail(primary == SQLITE_FULL                                  ? KN_UNAVAILABLE
                   : primary == SQLITE_NOMEM                               ? KN_NOMEM
                   : primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB ? KN_CORRUPT
                                                                           : KN_IO,
                   "%s: %s", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
}

static kn_status run(sqlite3 *db, const char *sql)
{
    const int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? KN_OK : sql_fail(db, code, "the copied database");
}

static kn_status open_database(const char *path, int flags, sqlite3 **out)
{
    const int code = sqlite3_open_v2(path, out, flags | SQLITE_OPEN_EXRESCODE, NULL);
    if (code != SQLITE_OK) return sql_fail(*out, code, path);
    sqlite3_busy_timeout(*out, BUSY_MS);
    sqlite3_db_config(*out, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    if (flags & SQLITE_OPEN_READONLY) sqlite3_db_config(*out, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    return KN_OK;
}

/* All pages in one step: one read transaction, whatever is written meanwhile. */
static kn_status copy_database(backup *b)
{
    kn_status st = KN_OK;
    struct stat info;
    char *source = kn_format("%s/kinora.db", b->data), *target = kn_format("%s/kinora.db", b->partial);
    if (!source || !target) KN_TRY(KN_NOMEM);
    if (stat(source, &info) != 0) KN_TRY(kn_fail(KN_NOT_FOUND, "%s: %s", source, strerror(errno)));
    KN_TRY(open_database(source, SQLITE_OPEN_READONLY, &b->from));
    KN_TRY(open_database(target, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &b->copy));
    sqlite3_backup *pages = sqlite3_backup_init(b->copy, "main", b->from, "main");
    if (!pages) KN_TRY(sql_fail(b->copy, sqlite3_errcode(b->copy), target));
    const int step = sqlite3_backup_step(pages, -1), code = sqlite3_backup_finish(pages);
    if (step != SQLITE_DONE) KN_TRY(sql_fail(NULL, code != SQLITE_OK ? code : step, source));
    sqlite3_close(b->from);
    b->from = NULL;
    KN_TRY(run(b->copy, "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; CREATE TEMP TABLE gone(id TEXT)"));
    chmod(target, 0600);
fail:
    kn_free(source);
    kn_free(target);
    return st;
}

static kn_status note_gone(backup *b, const char *id)
{
    sqlite3_stmt *s = NULL;
    int code = sqlite3_prepare_v2(b->copy, "INSERT INTO gone VALUES(?)", -1, &s, NULL);
    if (code == SQLITE_OK) code = sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
    if (code == SQLITE_OK) code = sqlite3_step(s);
    sqlite3_finalize(s);
    b->report->gone++;
    return code == SQLITE_DONE ? KN_OK : sql_fail(b->copy, code, "the copied database");
}

/* A video, its pictures where it has them; checked against what was published. */
static kn_status copy_result(backup *b, const char *id, const char *blob, const void *sha256, int sha256_bytes)
{
    static const kn_artifact_kind pictures[] = {KN_ARTIFACT_THUMBNAIL, KN_ARTIFACT_SPRITESHEET};
    kn_status st = KN_OK;
    kn_artifact artifact;
    char name[KN_ARTIFACT_NAME_BYTES], path[KN_ARTIFACT_NAME_BYTES + 16];
    char *copied = NULL;
    uint8_t found_sha256[KN_SHA256_BYTES];
    uint64_t bytes;
    bool found;
    if (!kn_artifact_parse(&artifact, blob))
        return kn_fail(KN_CORRUPT, "job %s: \"%s\" is not a video's name", id, blob);
    snprintf(path, sizeof path, "blobs/%s", blob);
    KN_TRY(copy_file(b, path, &found));
    if (!found) return note_gone(b, id);
    b->report->files++;
    copied = kn_format("%s/%s", b->partial, path);
    if (!copied) KN_TRY(KN_NOMEM);
    KN_TRY(kn_artifact_digest(copied, found_sha256, &bytes));
    if (sha256_bytes != KN_SHA256_BYTES || memcmp(sha256, found_sha256, KN_SHA256_BYTES) != 0) {
        kn_log(KN_LOG_WARNING, "%s/%s is damaged: it has not the bytes that were published", b->data, path);
        b->report->damaged++;
    }
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures; i++) {
        artifact.kind = pictures[i];
        kn_artifact_name(name, &artifact);
        snprintf(path, sizeof path, "blobs/%s", name);
        KN_TRY(copy_file(b, path, &found));
        b->report->files += found;
    }
fail:
    kn_free(copied);
    return st;
}

static kn_status copy_named(backup *b, sqlite3_stmt *s)
{
    kn_status st = KN_OK;
    kn_artifact artifact;
    bool found;
    char path[KN_STORE_FILE_BYTES + 16];
    const char *id = (const char *)sqlite3_column_text(s, 0), *blob = (const char *)sqlite3_column_text(s, 1);
    const char *checkpoint = (const char *)sqlite3_column_text(s, 3);
    if (!id) return kn_fail(KN_NOMEM, "no memory for a row");
    if (blob) KN_TRY(copy_result(b, id, blob, sqlite3_column_blob(s, 2), sqlite3_column_bytes(s, 2)));
    if (!checkpoint || !kn_artifact_parse(&artifact, checkpoint)) return KN_OK;
    snprintf(path, sizeof path, "checkpoints/%s", checkpoint);
    KN_TRY(copy_file(b, path, &found)); /* without one the job begins again */
    b->report->files += found;
fail:
    return st;
}

static kn_status copy_files(backup *b)
{
    kn_status st = KN_OK;
    sqlite3_stmt *s = NULL;
    int code = sqlite3_prepare_v2(b->copy,
                                  "SELECT id, blob, blob_sha256, checkpoint FROM jobs"
                                  " WHERE blob IS NOT NULL OR checkpoint IS NOT NULL",
                                  -1, &s, NULL);
    if (code != SQLITE_OK) KN_TRY(sql_fail(b->copy, code, "the copied database"));
    while ((code = sqlite3_step(s)) == SQLITE_ROW) KN_TRY(copy_named(b, s));
    if (code != SQLITE_DONE) KN_TRY(sql_fail(b->copy, code, "the copied database"));
    sqlite3_finalize(s);
    s = NULL;
    KN_TRY(run(b->copy, "UPDATE jobs SET state = 5, blob = NULL WHERE state = 2 AND id IN (SELECT id FROM gone)"));
fail:
    sqlite3_finalize(s);
    return st;
}

/* ---- the whole ---- */

/* Opened as a server would; every page is read, and the chain of audit records. */
static kn_status check_copy(backup *b)
{
    kn_status st = KN_OK;
    kn_store *store = NULL;
    kn_audit_head head;
    struct stat info;
    int64_t counts[KN_JOB_STATES];
    kn_backup_report *r = b->report;
    char *lock = kn_format("%s/lock", b->partial), *path = kn_format("%s/kinora.db", b->partial);
    if (!lock || !path) KN_TRY(KN_NOMEM);
    sqlite3_close(b->copy);
    b->copy = NULL;
    KN_TRY(kn_store_open(&store, &(kn_store_params){.directory = b->partial, .quick_check = true}));
    KN_TRY(kn_store_audit_verify(store, NULL, NULL));
    KN_TRY(kn_store_audit_head(store, &head));
    KN_TRY(kn_store_counts(store, counts));
    for (int i = 0; i < KN_JOB_STATES; i++) r->jobs += i == KN_JOB_DELETED ? 0 : counts[i];
    r->unfinished = counts[KN_JOB_QUEUED] + counts[KN_JOB_RUNNING];
    r->audit_sequence = head.sequence;
    for (int i = 0; i < KN_SHA256_BYTES; i++) snprintf(r->audit_hash + 2 * i, 3, "%02x", head.hash[i]);
    kn_store_close(&store);
    unlink(lock);
    if (stat(path, &info) == 0) r->bytes += (uint64_t)info.st_size;
fail:
    kn_store_close(&store);
    kn_free(lock);
    kn_free(path);
    return st;
}

/* Where no server runs: none may start until the copy is made. */
static kn_status take_lock(backup *b)
{
    char *path = kn_format("%s/lock", b->data);
    if (!path) return KN_NOMEM;
    b->lock = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    b->report->live = b->lock >= 0 && flock(b->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    kn_free(path);
    return KN_OK;
}

static kn_status prepare(backup *b, const char *destination)
{
    kn_status st = KN_OK;
    struct stat info;
    if (stat(b->data, &info) != 0 || !S_ISDIR(info.st_mode))
        return kn_fail(KN_NOT_FOUND, "--data %s: there is no such directory", b->data);
    if (lstat(destination, &info) == 0)
        return kn_fail(KN_INVALID, "%s is there already; name a directory that a backup can be made as", destination);
    b->partial = kn_format("%s.partial", destination);
    if (!b->partial) return KN_NOMEM;
    if (mkdir(b->partial, 0700) != 0) {
        if (errno == EEXIST)
            st = kn_fail(KN_INVALID, "%s is there: another backup runs, or one broke off; remove it then", b->partial);
        else
            st = disk_fail(b->partial);
        kn_free(b->partial);
        b->partial = NULL; /* not ours to remove */
        return st;
    }
    char inside[4096], root[4096]; /* PATH_MAX on Linux */
    if (!realpath(b->data, root) || !realpath(b->partial, inside))
        st = disk_fail(b->partial);
    else if (strncmp(inside, root, strlen(root)) == 0 && inside[strlen(root)] == '/')
        st = kn_fail(KN_INVALID, "%s lies within the data directory", destination);
    return st == KN_OK ? kn_artifact_prepare(b->partial) : st;
}

/* Everything is on the disk before it has its name. */
static kn_status finish(backup *b, const char *destination)
{
    kn_status st = KN_OK;
    const int folder = open(b->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || syncfs(folder) != 0) st = disk_fail(b->partial);
    if (st == KN_OK && rename(b->partial, destination) != 0) st = disk_fail(destination);
    if (st == KN_OK && syncfs(folder) != 0) st = disk_fail(destination);
    if (folder >= 0) close(folder);
    return st;
}

kn_status kn_backup(const char *data, const char *destination, kn_backup_report *out)
{
    kn_status st = KN_OK;
    bool found;
    *out = (kn_backup_report){0};
    backup b = {.data = data, .lock = -1, .report = out};
    KN_TRY(prepare(&b, destination));
    KN_TRY(take_lock(&b));
    KN_TRY(copy_database(&b));
    KN_TRY(copy_files(&b));
    KN_TRY(copy_file(&b, "key.pepper", &found));
    KN_TRY(check_copy(&b));
    KN_TRY(finish(&b, destination));
fail:
    sqlite3_close(b.from);
    sqlite3_close(b.copy);
    if (b.lock >= 0) close(b.lock);
    if (st != KN_OK && b.partial) nftw(b.partial, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    kn_free(b.partial);
    return st;
}
