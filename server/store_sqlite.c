/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing, and everything that knows SQLite itself.
 *
 * WAL mode with synchronous=FULL: a commit is one append to the log and one fsync of it. SQLite before 3.51.3 can
 * damage a WAL database when two connections write or checkpoint at the same moment, so exactly one connection does
 * both, in one thread, and the read connections are opened read-only and never checkpoint.
 *
 * After a failed fsync the kernel may hold pages as clean that never reached the disk, and a second fsync would report
 * success (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). Such a store is given up, and
 * the next opening copies the whole log into the database, which writes those pages afresh, before anything is
 * acknowledged on top of them. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/store_internal.h"

enum { BUSY_MS = 1000, OPEN_BUSY_MS = 20000, PID_BYTES = 24, LENGTH_LIMIT = 8 << 20 };
#define HOUR_US (INT64_C(3600) * 1000000)
#define SPREAD_MAX 8.0 /* times KN_STORE_WAL_CHECKPOINT: half of KN_STORE_WAL_MAX */

static const char WRITER_SETTINGS[] =
    "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;"
    "PRAGMA mmap_size=0; PRAGMA cell_size_check=ON; PRAGMA cache_size=-16384; PRAGMA temp_store=MEMORY;"
    "PRAGMA secure_delete=ON";
static const char READER_SETTINGS[] =
    "PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0; PRAGMA trusted_schema=OFF; PRAGMA mmap_size=0;"
    "PRAGMA cell_size_check=ON; PRAGMA cache_size=-2048; PRAGMA temp_store=MEMORY";

/* ---- errors ---- */

static bool is_damage(int code)
{
    return (code & 0xff) == SQLITE_CORRUPT || (code & 0xff) == SQLITE_NOTADB;
}

static kn_status status_of(sqlite3 *db, int code)
{
    const int number = db ? sqlite3_system_errno(db) : 0;
    if (is_damage(code)) return KN_CORRUPT;
    switch (code) {
    case SQLITE_IOERR_NOMEM: return KN_NOMEM;
    case SQLITE_IOERR_FSYNC:
    case SQLITE_IOERR_DIR_FSYNC: return KN_FATAL;
    default: break;
    }
    switch (code & 0xff) {
    case SQLITE_NOMEM: return KN_NOMEM;
    case SQLITE_FULL: return KN_UNAVAILABLE;
    case SQLITE_IOERR: return number == ENOSPC || number == EDQUOT ? KN_UNAVAILABLE : KN_IO;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return KN_UNAVAILABLE;
    case SQLITE_CONSTRAINT: return KN_BUG;
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH: return KN_IO;
    default: return KN_BUG;
    }
}

kn_status kn_sqlite_fail(sqlite3 *db, int code, const char *what)
{
    const kn_status status = status_of(db, code);
    const int number = db ? sqlite3_system_errno(db) : 0;
    const char *text = status == KN_UNAVAILABLE && (code & 0xff) != SQLITE_BUSY && (code & 0xff) != SQLITE_LOCKED
                           ? "the disk is full"
                       : db && code != SQLITE_NOMEM ? sqlite3_errmsg(db)
                                                    : sqlite3_errstr(code);
    if (status == KN_IO && number != 0)
        return kn_fail(status, "%s: %s: %s (SQLite error %d)", what, text, strerror(number), code);
    return kn_fail(status, "%s: %s (SQLite error %d)", what, text, code);
}

/* What the last call on this connection failed with. */
kn_store_error kn_sqlite_error_kind(sqlite3 *db)
{
    const int number = sqlite3_system_errno(db);
    switch (sqlite3_errcode(db) & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return KN_STORE_ERROR_BUSY;
    case SQLITE_FULL: return KN_STORE_ERROR_FULL;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return KN_STORE_ERROR_CORRUPT;
    case SQLITE_IOERR:
        if (sqlite3_extended_errcode(db) == SQLITE_IOERR_NOMEM) return KN_STORE_ERROR_OTHER;
        return number == ENOSPC || number == EDQUOT ? KN_STORE_ERROR_FULL : KN_STORE_ERROR_IO;
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM: return KN_STORE_ERROR_IO;
    default: return KN_STORE_ERROR_OTHER;
    }
}

kn_status kn_sqlite_run(sqlite3 *db, const char *sql)
{
    const int code = sqlite3_exec(db, sql, NULL, NULL, NULL);
    return code == SQLITE_OK ? KN_OK : kn_sqlite_fail(db, code, "store");
}

kn_status kn_sqlite_number(sqlite3 *db, const char *sql, int64_t *out)
{
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);
    *out = 0;
    if (code == SQLITE_OK) {
        code = sqlite3_step(statement);
        if (code == SQLITE_ROW) *out = sqlite3_column_int64(statement, 0);
        if (code == SQLITE_ROW || code == SQLITE_DONE) code = SQLITE_OK;
    }
    const kn_status st = code == SQLITE_OK ? KN_OK : kn_sqlite_fail(db, code, "store");
    sqlite3_finalize(statement);
    return st;
}

/* ---- statements ---- */

kn_binder kn_sql_bind_to(sqlite3_stmt *statement)
{
    return (kn_binder){.statement = statement, .next = 1, .code = SQLITE_OK};
}

kn_binder kn_sql_bind(kn_store *store, kn_sql which)
{
    assert(pthread_equal(store->thread, pthread_self())); /* one thread writes */
    sqlite3_reset(store->statements[which]);
    return kn_sql_bind_to(store->statements[which]);
}

static void keep_error(kn_binder *binder, int code)
{
    if (binder->code == SQLITE_OK) binder->code = code;
}

void kn_bind_int(kn_binder *binder, int64_t value)
{
    keep_error(binder, sqlite3_bind_int64(binder->statement, binder->next++, value));
}

void kn_bind_text(kn_binder *binder, const char *text)
{
    keep_error(binder, text ? sqlite3_bind_text(binder->statement, binder->next++, text, -1, SQLITE_STATIC)
                            : sqlite3_bind_null(binder->statement, binder->next++));
}

void kn_bind_blob(kn_binder *binder, const uint8_t *bytes, int count)
{
    keep_error(binder, sqlite3_bind_blob(binder->statement, binder->next++, bytes, count, SQLITE_STATIC));
}

kn_status kn_sql_step(kn_binder *binder, bool *row)
{
    sqlite3 *db = sqlite3_db_handle(binder->statement);
    if (row) *row = false;
    if (binder->code != SQLITE_OK) return kn_sqlite_fail(db, binder->code, "store");
    const int code = sqlite3_step(binder->statement);
    if (code == SQLITE_ROW && row) {
        *row = true;
        return KN_OK;
    }
    const kn_status st = code == SQLITE_DONE || code == SQLITE_ROW ? KN_OK : kn_sqlite_fail(db, code, "store");
    sqlite3_reset(binder->statement);
    return st;
}

void kn_sql_done(kn_binder *binder)
{
    sqlite3_reset(binder->statement);
}

kn_status kn_sql_change_one(kn_binder *binder)
{
    const kn_status st = kn_sql_step(binder, NULL);
    if (st != KN_OK) return st;
    const int changes = sqlite3_changes(sqlite3_db_handle(binder->statement));
    return changes == 1 ? KN_OK : kn_fail(KN_BUG, "store: %d rows changed instead of one", changes);
}

/* ---- columns ---- */

static kn_status bad_column(sqlite3_stmt *statement, int column)
{
    if (sqlite3_errcode(sqlite3_db_handle(statement)) == SQLITE_NOMEM)
        return kn_fail(KN_NOMEM, "store: no memory to read a row");
    return kn_fail(KN_CORRUPT, "store: column %s of a row is not what it should be",
                   sqlite3_column_name(statement, column));
}

kn_status kn_column_text(sqlite3_stmt *statement, int column, char *out, size_t bytes)
{
    const unsigned char *text = sqlite3_column_text(statement, column);
    const size_t length = (size_t)sqlite3_column_bytes(statement, column);
    if (!text || length >= bytes) return bad_column(statement, column);
    memcpy(out, text, length);
    memset(out + length, 0, bytes - length);
    return KN_OK;
}

kn_status kn_column_copy(sqlite3_stmt *statement, int column, char **out)
{
    *out = NULL;
    if (sqlite3_column_type(statement, column) == SQLITE_NULL) return KN_OK;
    const unsigned char *text = sqlite3_column_text(statement, column);
    if (!text) return bad_column(statement, column);
    *out = kn_strndup((const char *)text, (size_t)sqlite3_column_bytes(statement, column));
    return *out ? KN_OK : KN_NOMEM;
}

kn_status kn_column_blob(sqlite3_stmt *statement, int column, uint8_t *out, int bytes)
{
    memset(out, 0, (size_t)bytes);
    if (sqlite3_column_type(statement, column) == SQLITE_NULL) return KN_OK;
    const void *blob = sqlite3_column_blob(statement, column);
    if (!blob || sqlite3_column_bytes(statement, column) != bytes) return bad_column(statement, column);
    memcpy(out, blob, (size_t)bytes);
    return KN_OK;
}

kn_status kn_column_job(sqlite3_stmt *s, kn_job *out)
{
    kn_status st = KN_OK;
    int i = 0;
    *out = (kn_job){0};
    KN_TRY(kn_column_text(s, i++, out->id, sizeof out->id));
    KN_TRY(kn_column_text(s, i++, out->tenant, sizeof out->tenant));
    KN_TRY(kn_column_text(s, i++, out->key_id, sizeof out->key_id));
    KN_TRY(kn_column_text(s, i++, out->model, sizeof out->model));
    KN_TRY(kn_column_text(s, i++, out->asked_model, sizeof out->asked_model));
    out->state = (kn_job_state)sqlite3_column_int(s, i++);
    out->priority = (kn_priority)sqlite3_column_int(s, i++);
    out->epoch = sqlite3_column_int64(s, i++);
    out->attempts = sqlite3_column_int(s, i++);
    KN_TRY(kn_column_copy(s, i++, &out->prompt));
    KN_TRY(kn_column_copy(s, i++, &out->request));
    KN_TRY(kn_column_copy(s, i++, &out->extra));
    out->created_at = sqlite3_column_int64(s, i++);
    out->started_at = sqlite3_column_int64(s, i++);
    out->completed_at = sqlite3_column_int64(s, i++);
    out->expires_at = sqlite3_column_int64(s, i++);
    out->deadline_at = sqlite3_column_int64(s, i++);
    out->cost_us = (uint64_t)sqlite3_column_int64(s, i++);
    out->used_us = (uint64_t)sqlite3_column_int64(s, i++);
    KN_TRY(kn_column_text(s, i++, out->error_code, sizeof out->error_code));
    KN_TRY(kn_column_copy(s, i++, &out->error_message));
    KN_TRY(kn_column_copy(s, i++, &out->checkpoint));
    KN_TRY(kn_column_blob(s, i++, out->checkpoint_sha256, KN_SHA256_BYTES));
    out->checkpoint_step = sqlite3_column_int(s, i++);
    KN_TRY(kn_column_copy(s, i++, &out->blob));
    out->blob_bytes = (uint64_t)sqlite3_column_int64(s, i++);
    KN_TRY(kn_column_blob(s, i++, out->blob_sha256, KN_SHA256_BYTES));
    return KN_OK;
fail:
    kn_job_release(out);
    return st;
}

/* ---- time and checkpoints ---- */

static int64_t system_now(void *context)
{
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int64_t kn_store_now(const kn_store *store)
{
    return store->params.now(store->params.now_context);
}

/* Called by SQLite after each commit that wrote. */
static int count_pages(void *opaque, sqlite3 *db, const char *name, int pages)
{
    enum { FRAME_BYTES = 4096 + 24, HEADER_BYTES = 32 }; /* a page and its header; SQLite file format, section 4 */
    kn_store *store = opaque;
    (void)db;
    (void)name;
    store->wal_bytes = HEADER_BYTES + (int64_t)pages * FRAME_BYTES;
    return SQLITE_OK;
}

/* Copying the log back keeps everybody waiting, for its pages on a fast disk and for its own syncs on a slow one. So it
 * is done in small pieces where syncs are quick, and seldom where they are not: fewer than one answer in a hundred is
 * late for it, whichever the disk. */
static int64_t next_checkpoint(const kn_store *store)
{
    const double ms = (double)store->commit_ns * 1e-6, factor = 1.0 + 2.0 * ms;
    if (!store->spread) return store->params.checkpoint_bytes;
    return (int64_t)((double)store->params.checkpoint_bytes * (factor < SPREAD_MAX ? factor : SPREAD_MAX));
}

kn_status kn_store_checkpoint(kn_store *store)
{
    int frames = 0, copied = 0;
    if (store->wal_bytes < store->checkpoint_at) return KN_OK;
    /* The copy does not wait for readers; only a log grown past its cap does. */
    const int mode = store->wal_bytes >= KN_STORE_WAL_MAX ? SQLITE_CHECKPOINT_RESTART : SQLITE_CHECKPOINT_PASSIVE;
    const int code = sqlite3_wal_checkpoint_v2(store->writer, NULL, mode, &frames, &copied);
    store->checkpoint_at = store->wal_bytes + next_checkpoint(store);
    if (code == SQLITE_OK && frames == copied) {
        store->wal_bytes = 0; /* the next commit begins the log again */
        store->checkpoint_at = next_checkpoint(store);
        pthread_mutex_lock(&store->mutex);
        store->stats.checkpoints++;
        pthread_mutex_unlock(&store->mutex);
    } else if (mode == SQLITE_CHECKPOINT_RESTART || code != SQLITE_OK) {
        kn_log(KN_LOG_WARNING, "store: the write-ahead log has %" PRId64 " bytes and cannot be emptied: %s",
               store->wal_bytes, code == SQLITE_OK ? "a reader is in the way" : sqlite3_errmsg(store->writer));
    }
    if (code == SQLITE_OK) return KN_OK;
    pthread_mutex_lock(&store->mutex);
    store->stats.errors[kn_sqlite_error_kind(store->writer)]++;
    pthread_mutex_unlock(&store->mutex);
    const kn_status st = kn_sqlite_fail(store->writer, code, "store: checkpoint");
    return st == KN_FATAL || st == KN_CORRUPT ? st : KN_OK;
}

/* ---- opening ---- */

static kn_status take_lock(kn_store *store)
{
    char pid[PID_BYTES] = "";
    kn_status st = KN_OK;
    char *path = kn_format("%s/lock", store->directory);
    if (!path) return KN_NOMEM;
    store->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->lock < 0) {
        st = kn_fail(errno == ENOENT || errno == ENOTDIR ? KN_NOT_FOUND : KN_IO, "%s: %s", path, strerror(errno));
    } else if (flock(store->lock, LOCK_EX | LOCK_NB) != 0) {
        const ssize_t got = pread(store->lock, pid, sizeof pid - 1, 0);
        pid[got > 0 ? got : 0] = '\0';
        pid[strcspn(pid, "\n")] = '\0';
        st = errno == EWOULDBLOCK || got >= 0 ? kn_fail(KN_UNAVAILABLE, "%s is in use by another server (process %s)",
                                                        store->directory, *pid ? pid : "unknown")
                                              : kn_fail(KN_IO, "%s: %s", path, strerror(errno));
        close(store->lock);
        store->lock = -1;
    } else {
        const int bytes = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
        if (ftruncate(store->lock, 0) != 0 || pwrite(store->lock, pid, (size_t)bytes, 0) != bytes)
            st = kn_fail(KN_IO, "%s: %s", path, strerror(errno));
    }
    kn_free(path);
    return st;
}

static kn_status connect_to(const kn_store *store, const char *path, bool writer, sqlite3 **out)
{
    kn_status st = KN_OK;
    const int flags = (writer ? SQLITE_OPEN_READWRITE : SQLITE_OPEN_READONLY) | SQLITE_OPEN_NOMUTEX |
                      SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE;
    const int code = sqlite3_open_v2(path, out, flags, store->vfs);
    if (code != SQLITE_OK) return kn_sqlite_fail(*out, code, "open");
    sqlite3_busy_timeout(*out, BUSY_MS);
    sqlite3_limit(*out, SQLITE_LIMIT_LENGTH, LENGTH_LIMIT);
    sqlite3_limit(*out, SQLITE_LIMIT_ATTACHED, 0);
    sqlite3_db_config(*out, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(*out, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, NULL);
    if (!writer) sqlite3_db_config(*out, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    KN_TRY(kn_sqlite_run(*out, writer ? WRITER_SETTINGS : READER_SETTINGS));
fail:
    return st;
}

static kn_status sync_path(const char *path, int flags)
{
    const int file = open(path, O_RDONLY | O_CLOEXEC | flags);
    const bool good = file >= 0 && fsync(file) == 0;
    const kn_status st = good ? KN_OK : kn_fail(KN_IO, "%s: %s", path, strerror(errno));
    if (file >= 0) close(file);
    return st;
}

/* Built under another name: a file called kinora.db has been complete once, so an empty one is damage. */
static kn_status create_database(kn_store *store)
{
    kn_status st = KN_OK;
    sqlite3 *db = NULL;
    int file = -1;
    char *fresh = kn_format("%s.new", store->path);
    if (!fresh) return KN_NOMEM;
    unlink(fresh);
    file = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) KN_TRY(kn_fail(KN_IO, "cannot be made: %s", strerror(errno)));
    close(file);
    KN_TRY(connect_to(store, fresh, true, &db));
    KN_TRY(kn_sqlite_run(db, "PRAGMA journal_mode=MEMORY"));
    KN_TRY(kn_store_migrate(db, 0));
    sqlite3_close(db);
    db = NULL;
    KN_TRY(sync_path(fresh, 0));
    if (rename(fresh, store->path) != 0) KN_TRY(kn_fail(KN_IO, "cannot be made: %s", strerror(errno)));
    KN_TRY(sync_path(store->directory, O_DIRECTORY));
fail:
    sqlite3_close(db);
    kn_free(fresh);
    return st;
}

static kn_status find_database(kn_store *store)
{
    kn_status st = KN_OK;
    struct stat info;
    char *log = NULL;
    if (stat(store->path, &info) == 0) {
        if (!S_ISREG(info.st_mode) || info.st_size == 0)
            return kn_fail(KN_CORRUPT, "it is %s", info.st_size == 0 ? "empty" : "not a regular file");
        return KN_OK;
    }
    if (errno != ENOENT) return kn_fail(KN_IO, "%s", strerror(errno));
    log = kn_format("%s-wal", store->path);
    if (!log) return KN_NOMEM;
    if (stat(log, &info) == 0 && info.st_size > 0)
        KN_TRY(kn_fail(KN_CORRUPT, "it is missing, but its log kinora.db-wal is there"));
    KN_TRY(create_database(store));
fail:
    kn_free(log);
    return st;
}

static kn_status check_version(kn_store *store)
{
    kn_status st = KN_OK;
    int64_t application = 0, version = 0;
    KN_TRY(kn_sqlite_number(store->writer, "PRAGMA application_id", &application));
    KN_TRY(kn_sqlite_number(store->writer, "PRAGMA user_version", &version));
    if (application != KN_STORE_APPLICATION || version < 1)
        KN_TRY(kn_fail(KN_CORRUPT, "it is a database of another program"));
    if (version > kn_store_schema_version())
        return kn_fail(KN_UNSUPPORTED,
                       "it has version %" PRId64 " and this program knows up to %" PRId64
                       ": use the newer program, or a backup from before it",
                       version, kn_store_schema_version());
    KN_TRY(kn_store_migrate(store->writer, version));
fail:
    return st;
}

static kn_status check_pages(kn_store *store)
{
    sqlite3_stmt *statement = NULL;
    kn_status st = KN_OK;
    int code = sqlite3_prepare_v2(store->writer, "PRAGMA quick_check(1)", -1, &statement, NULL);
    if (code == SQLITE_OK) code = sqlite3_step(statement);
    if (code != SQLITE_ROW)
        st = kn_sqlite_fail(store->writer, code, "check");
    else if (strcmp((const char *)sqlite3_column_text(statement, 0), "ok") != 0)
        st = kn_fail(KN_CORRUPT, "%s", (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return st;
}

static kn_status enter_wal(kn_store *store)
{
    sqlite3_stmt *statement = NULL;
    kn_status st = KN_OK;
    int code = sqlite3_prepare_v2(store->writer, "PRAGMA journal_mode=WAL", -1, &statement, NULL);
    if (code == SQLITE_OK) code = sqlite3_step(statement);
    if (code != SQLITE_ROW)
        st = kn_sqlite_fail(store->writer, code, "write-ahead log");
    else if (strcmp((const char *)sqlite3_column_text(statement, 0), "wal") != 0)
        st = kn_fail(KN_UNSUPPORTED, "no write-ahead log can be kept there (is it a network file system?)");
    sqlite3_finalize(statement);
    if (st != KN_OK) return st;
    sqlite3_busy_timeout(store->writer, OPEN_BUSY_MS); /* a backup may be reading */
    code = sqlite3_wal_checkpoint_v2(store->writer, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_busy_timeout(store->writer, BUSY_MS);
    if (code != SQLITE_OK) return kn_sqlite_fail(store->writer, code, "write-ahead log");
    sqlite3_wal_hook(store->writer, count_pages, store);
    store->checkpoint_at = store->params.checkpoint_bytes;
    return KN_OK;
}

static kn_status read_marks(kn_store *store)
{
    sqlite3_stmt *statement = NULL;
    kn_status st = KN_OK;
    kn_store_marks *m = &store->marks;
    KN_TRY(kn_sqlite_number(store->writer, "SELECT created_at FROM jobs ORDER BY seq DESC LIMIT 1", &m->created_at));
    int code = sqlite3_prepare_v2(store->writer, "SELECT sequence, at, hash FROM audit ORDER BY sequence DESC LIMIT 1",
                                  -1, &statement, NULL);
    if (code == SQLITE_OK) code = sqlite3_step(statement);
    if (code != SQLITE_ROW && code != SQLITE_DONE) KN_TRY(kn_sqlite_fail(store->writer, code, "audit log"));
    if (code == SQLITE_ROW) {
        m->head.sequence = sqlite3_column_int64(statement, 0);
        m->audited_at = sqlite3_column_int64(statement, 1);
        KN_TRY(kn_column_blob(statement, 2, m->head.hash, KN_SHA256_BYTES));
    }
    if (m->audited_at > m->created_at) m->created_at = m->audited_at; /* the newest job may be purged */
fail:
    sqlite3_finalize(statement);
    return st;
}

static kn_status prepare_statements(kn_store *store)
{
    static const char *const texts[KN_SQL_COUNT] = {
#define KN_SQL(name, text) text,
#include "server/store_sql.inc"
#undef KN_SQL
    };
    for (int i = 0; i < KN_SQL_COUNT; i++) {
        const int code =
            sqlite3_prepare_v3(store->writer, texts[i], -1, SQLITE_PREPARE_PERSISTENT, &store->statements[i], NULL);
        if (code != SQLITE_OK) return kn_sqlite_fail(store->writer, code, "store");
    }
    return KN_OK;
}

static kn_status open_database(kn_store *store)
{
    kn_status st = KN_OK;
    KN_TRY(find_database(store));
    KN_TRY(connect_to(store, store->path, true, &store->writer));
    KN_TRY(check_version(store));
    if (store->params.quick_check) KN_TRY(check_pages(store));
    KN_TRY(enter_wal(store));
    KN_TRY(read_marks(store));
    KN_TRY(prepare_statements(store));
    for (int i = 0; i < KN_STORE_READERS; i++) {
        KN_TRY(connect_to(store, store->path, false, &store->readers[i]));
        assert(sqlite3_db_readonly(store->readers[i], "main") == 1);
    }
fail:
    switch (st) {
    case KN_OK: return KN_OK;
    case KN_FATAL: st = KN_IO; break; /* nothing was acknowledged yet */
    case KN_CORRUPT:
        kn_fail_context(st, "left as it is; restore it from a backup, or move the directory away to begin empty");
        break;
    default: break;
    }
    return kn_fail_context(st, "%s", store->path);
}

static kn_status take_params(kn_store *store, const kn_store_params *params)
{
    kn_store_params *p = &store->params;
    *p = *params;
    if (!p->now) p->now = system_now;
    if (p->max_pending == 0) p->max_pending = KN_STORE_PENDING_DEFAULT;
    if (p->idempotency_us == 0) p->idempotency_us = 24 * HOUR_US;
    if (p->tombstone_us == 0) p->tombstone_us = 24 * HOUR_US;
    if (p->delivery_us == 0) p->delivery_us = 72 * HOUR_US;
    store->spread = p->checkpoint_bytes == 0;
    if (store->spread) p->checkpoint_bytes = KN_STORE_WAL_CHECKPOINT;
    if (p->checkpoint_bytes < 0 || p->checkpoint_bytes > KN_STORE_WAL_MAX)
        return kn_fail(KN_INVALID, "store: checkpoint_bytes must be 0..%d", KN_STORE_WAL_MAX);
    if (p->max_pending < 0 || p->max_pending > KN_STORE_PENDING_MAX)
        return kn_fail(KN_INVALID, "store: max_pending is %d; 1..%d", p->max_pending, KN_STORE_PENDING_MAX);
    if (p->idempotency_us < 0 || p->delivery_us < 0 || p->tombstone_us < p->idempotency_us)
        return kn_fail(KN_INVALID, "store: a tombstone must live at least as long as an idempotency key");
    store->directory = kn_strdup(params->directory);
    store->path = kn_format("%s/kinora.db", params->directory);
    store->vfs = params->vfs ? kn_strdup(params->vfs) : NULL;
    return store->directory && store->path && (store->vfs || !params->vfs) ? KN_OK : KN_NOMEM;
}

kn_status kn_store_open(kn_store **out, const kn_store_params *params)
{
    kn_status st = KN_OK;
    KN_REQUIRE(params->directory);
    KN_REQUIRE(sqlite3_threadsafe());
    kn_store *store = kn_alloc(sizeof *store);
    *out = NULL;
    if (!store) return KN_NOMEM;
    store->lock = -1;
    pthread_mutex_init(&store->mutex, NULL);
    pthread_cond_init(&store->queued, NULL);
    pthread_cond_init(&store->finished, NULL);
    pthread_cond_init(&store->reader_free, NULL);
    KN_TRY(take_params(store, params));
    KN_TRY(take_lock(store));
    KN_TRY(open_database(store));
    KN_TRY(kn_store_start(store));
    *out = store;
    return KN_OK;
fail:
    kn_store_close(&store);
    return st;
}

void kn_store_close(kn_store **handle)
{
    kn_store *store = *handle;
    if (!store) return;
    *handle = NULL;
    kn_store_stop(store);
    for (int i = 0; i < KN_SQL_COUNT; i++) sqlite3_finalize(store->statements[i]);
    for (int i = 0; i < KN_STORE_READERS; i++) sqlite3_close(store->readers[i]);
    /* The last connection copies the log into the database, unless storage is in doubt: the log is the truth then. */
    if (store->writer && atomic_load(&store->health) == KN_FATAL)
        sqlite3_db_config(store->writer, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    sqlite3_close(store->writer);
    if (store->lock >= 0) close(store->lock);
    pthread_cond_destroy(&store->reader_free);
    pthread_cond_destroy(&store->finished);
    pthread_cond_destroy(&store->queued);
    pthread_mutex_destroy(&store->mutex);
    kn_free(store->vfs);
    kn_free(store->path);
    kn_free(store->directory);
    kn_free(store);
}
