/* SPDX-License-Identifier: Apache-2.0
 *
 * A SQLite VFS on top of the system's that counts every operation on files (not on shared memory and locks), and can
 *   - fail the n-th of a kind, once or from then on, in the ways a disk does;
 *   - keep, for every file, what was synced and what was written since, and from that build the state in which a
 * machine that lost its power at this moment may find its disk: each write that was not synced is there, is not there,
 * is there in some of its sectors, or left garbage where it was to be, whatever became of the others. One store at a
 * time; its threads may all use it. */
#ifndef KN_TESTS_SERVER_FAULT_VFS_H
#define KN_TESTS_SERVER_FAULT_VFS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/server/store_test.h"

typedef enum fault_kind {
    FAULT_WRITE_ERROR, /* EIO */
    FAULT_WRITE_FULL,  /* ENOSPC */
    FAULT_WRITE_SHORT, /* half of it arrives, then ENOSPC */
    FAULT_SYNC_ERROR,  /* EIO from fsync */
    FAULT_READ_ERROR,  /* EIO */
    FAULT_TRUNCATE,    /* EIO */
    FAULT_OPEN,        /* EMFILE */
    FAULT_KINDS,
} fault_kind;

enum { VFS_FILES_MAX = 8, SECTOR = 512 };

/* A write (or with bytes NULL a truncation to `at`) since the last sync of its file. */
typedef struct vfs_write {
    struct vfs_write *next;
    int64_t at;
    int count;
    uint8_t *bytes;
} vfs_write;

/* What a power failure would leave of a file. */
typedef struct vfs_disk {
    char name[64]; /* the last part of its path; "": none */
    uint8_t *bytes;
    int64_t count;
    bool durable; /* its name too was synced */
    vfs_write *first, *last;
} vfs_disk;

typedef struct fault_vfs {
    sqlite3_vfs base;
    sqlite3_vfs *under;
    pthread_mutex_t mutex;
    /* Faults. */
    bool armed, forever;
    fault_kind kind;
    int64_t fail_at;           /* the n-th operation of the kind since arming fails */
    int64_t seen, fired;       /* operations of the kind, and failures, since arming */
    int64_t syncs_after_error; /* of a file, after a failed sync of it */
    /* Power. */
    bool recording;
    vfs_disk disks[VFS_FILES_MAX];
    void (*before)(void *context); /* before each operation that changes a file, while recording */
    void *context;
    int64_t operations; /* such operations so far */
} fault_vfs;

typedef struct vfs_file {
    sqlite3_file base;
    fault_vfs *vfs;
    vfs_disk *disk; /* NULL: not recorded */
    bool sync_failed;
    sqlite3_file *under; /* behind this struct */
} vfs_file;

/* ---- faults ---- */

static bool fault_now(fault_vfs *v, fault_kind kind)
{
    bool fire = false;
    pthread_mutex_lock(&v->mutex);
    if (v->armed && v->kind == kind) {
        v->seen++;
        fire = v->forever ? v->seen >= v->fail_at : v->seen == v->fail_at;
        v->fired += fire;
    }
    pthread_mutex_unlock(&v->mutex);
    return fire;
}

HELPER void fault_arm(fault_vfs *v, fault_kind kind, int64_t nth, bool forever)
{
    pthread_mutex_lock(&v->mutex);
    v->armed = true;
    v->kind = kind;
    v->fail_at = nth;
    v->forever = forever;
    v->seen = v->fired = v->syncs_after_error = 0;
    pthread_mutex_unlock(&v->mutex);
}

/* Failures since arming. */
HELPER int64_t fault_disarm(fault_vfs *v)
{
    pthread_mutex_lock(&v->mutex);
    v->armed = false;
    const int64_t fired = v->fired;
    pthread_mutex_unlock(&v->mutex);
    return fired;
}

/* ---- what was written and what was synced ---- */

static void disk_apply(uint8_t **bytes, int64_t *count, const vfs_write *w)
{
    const int64_t end = w->at + w->count;
    if (end > *count || !w->bytes) {
        uint8_t *grown = realloc(*bytes, (size_t)(end > 0 ? end : 1));
        if (!grown) abort();
        if (end > *count) memset(grown + *count, 0, (size_t)(end - *count));
        *bytes = grown;
        *count = end;
    }
    if (w->bytes) memcpy(*bytes + w->at, w->bytes, (size_t)w->count);
}

static void disk_note(vfs_file *f, const void *bytes, int count, int64_t at)
{
    vfs_write *w = calloc(1, sizeof *w + (size_t)count);
    if (!w) abort();
    w->at = at;
    w->count = count;
    if (bytes) w->bytes = memcpy(w + 1, bytes, (size_t)count);
    if (f->disk->last)
        f->disk->last->next = w;
    else
        f->disk->first = w;
    f->disk->last = w;
}

static void disk_sync(vfs_disk *d)
{
    while (d->first) {
        vfs_write *w = d->first;
        d->first = w->next;
        disk_apply(&d->bytes, &d->count, w);
        free(w);
    }
    d->last = NULL;
    d->durable = true;
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static vfs_disk *disk_find(fault_vfs *v, const char *path, bool add)
{
    const char *name = last_part(path);
    for (int i = 0; i < VFS_FILES_MAX; i++)
        if (strcmp(v->disks[i].name, name) == 0) return &v->disks[i];
    for (int i = 0; add && i < VFS_FILES_MAX; i++)
        if (v->disks[i].name[0] == '\0') {
            snprintf(v->disks[i].name, sizeof v->disks[i].name, "%s", name);
            return &v->disks[i];
        }
    return NULL;
}

static void disk_forget(vfs_disk *d)
{
    disk_sync(d);
    free(d->bytes);
    *d = (vfs_disk){.name = ""};
}

static void before_change(fault_vfs *v)
{
    if (!v->recording) return;
    v->operations++;
    if (v->before) v->before(v->context);
}

/* A random state of this file after a power failure; free() the bytes. False: it is not there. */
HELPER bool disk_after_power_loss(const vfs_disk *d, uint64_t (*random)(uint64_t *), uint64_t *seed, uint8_t **bytes,
                                  int64_t *count)
{
    *bytes = malloc((size_t)(d->count > 0 ? d->count : 1));
    if (!*bytes) abort();
    memcpy(*bytes, d->bytes ? d->bytes : (const uint8_t *)"", (size_t)d->count);
    *count = d->count;
    if (!d->durable && random(seed) % 2) return false;
    const unsigned lost = (unsigned)(random(seed) % 5); /* of four; all or nothing are among the moods of a disk */
    for (const vfs_write *w = d->first; w; w = w->next) {
        const bool torn = w->bytes && random(seed) % 4 == 0, garbage = random(seed) % 16 == 0;
        if (!torn) {
            if (random(seed) % 4 >= lost) disk_apply(bytes, count, w);
            continue;
        }
        for (int done = 0; done < w->count;) { /* sector by sector */
            const int room = SECTOR - (int)((w->at + done) % SECTOR), left = w->count - done;
            uint8_t noise[SECTOR];
            vfs_write part = {.at = w->at + done, .count = left < room ? left : room, .bytes = w->bytes + done};
            for (int i = 0; i < SECTOR; i++) noise[i] = (uint8_t)random(seed);
            if (garbage) part.bytes = noise;
            if (random(seed) % 2) disk_apply(bytes, count, &part);
            done += part.count;
        }
    }
    return true;
}

/* ---- a file's methods ---- */

static int file_close(sqlite3_file *base)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods ? f->under->pMethods->xClose(f->under) : SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *bytes, int count, sqlite3_int64 at)
{
    vfs_file *f = (vfs_file *)base;
    if (fault_now(f->vfs, FAULT_READ_ERROR)) return SQLITE_IOERR_READ;
    return f->under->pMethods->xRead(f->under, bytes, count, at);
}

static int file_write(sqlite3_file *base, const void *bytes, int count, sqlite3_int64 at)
{
    vfs_file *f = (vfs_file *)base;
    before_change(f->vfs);
    if (fault_now(f->vfs, FAULT_WRITE_ERROR)) return SQLITE_IOERR_WRITE;
    if (fault_now(f->vfs, FAULT_WRITE_FULL)) return SQLITE_FULL;
    if (fault_now(f->vfs, FAULT_WRITE_SHORT)) {
        f->under->pMethods->xWrite(f->under, bytes, count / 2, at);
        return SQLITE_FULL;
    }
    if (f->disk && f->vfs->recording) disk_note(f, bytes, count, at);
    return f->under->pMethods->xWrite(f->under, bytes, count, at);
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    vfs_file *f = (vfs_file *)base;
    before_change(f->vfs);
    if (fault_now(f->vfs, FAULT_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
    if (f->disk && f->vfs->recording) disk_note(f, NULL, 0, size);
    return f->under->pMethods->xTruncate(f->under, size);
}

static int file_sync(sqlite3_file *base, int flags)
{
    vfs_file *f = (vfs_file *)base;
    before_change(f->vfs);
    if (f->sync_failed) {
        pthread_mutex_lock(&f->vfs->mutex);
        f->vfs->syncs_after_error++;
        pthread_mutex_unlock(&f->vfs->mutex);
    }
    if (fault_now(f->vfs, FAULT_SYNC_ERROR)) {
        f->sync_failed = true;
        return SQLITE_IOERR_FSYNC;
    }
    if (f->disk && f->vfs->recording) disk_sync(f->disk);
    return f->under->pMethods->xSync(f->under, flags);
}

static int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xFileSize(f->under, size);
}

static int file_lock(sqlite3_file *base, int level)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xLock(f->under, level);
}

static int file_unlock(sqlite3_file *base, int level)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xUnlock(f->under, level);
}

static int file_reserved(sqlite3_file *base, int *reserved)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xCheckReservedLock(f->under, reserved);
}

static int file_control(sqlite3_file *base, int operation, void *argument)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xFileControl(f->under, operation, argument);
}

static int file_sector(sqlite3_file *base)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xSectorSize(f->under);
}

static int file_characteristics(sqlite3_file *base)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xDeviceCharacteristics(f->under);
}

static int file_shm_map(sqlite3_file *base, int region, int size, int extend, void volatile **out)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xShmMap(f->under, region, size, extend, out);
}

static int file_shm_lock(sqlite3_file *base, int offset, int count, int flags)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xShmLock(f->under, offset, count, flags);
}

static void file_shm_barrier(sqlite3_file *base)
{
    vfs_file *f = (vfs_file *)base;
    f->under->pMethods->xShmBarrier(f->under);
}

static int file_shm_unmap(sqlite3_file *base, int remove)
{
    vfs_file *f = (vfs_file *)base;
    return f->under->pMethods->xShmUnmap(f->under, remove);
}

/* ---- the VFS ---- */

static int vfs_open(sqlite3_vfs *base, const char *path, sqlite3_file *file, int flags, int *out_flags)
{
    static const sqlite3_io_methods methods = {2,
                                               file_close,
                                               file_read,
                                               file_write,
                                               file_truncate,
                                               file_sync,
                                               file_size,
                                               file_lock,
                                               file_unlock,
                                               file_reserved,
                                               file_control,
                                               file_sector,
                                               file_characteristics,
                                               file_shm_map,
                                               file_shm_lock,
                                               file_shm_barrier,
                                               file_shm_unmap,
                                               NULL,
                                               NULL};
    fault_vfs *v = (fault_vfs *)base;
    vfs_file *f = (vfs_file *)file;
    *f = (vfs_file){.vfs = v, .under = (sqlite3_file *)(f + 1)};
    if (fault_now(v, FAULT_OPEN)) return SQLITE_CANTOPEN;
    const int code = v->under->xOpen(v->under, path, f->under, flags, out_flags);
    if (code != SQLITE_OK) return code;
    f->base.pMethods = &methods;
    if (v->recording && path && flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) f->disk = disk_find(v, path, true);
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *base, const char *path, int sync_directory)
{
    fault_vfs *v = (fault_vfs *)base;
    before_change(v);
    vfs_disk *disk = v->recording ? disk_find(v, path, false) : NULL;
    const int code = v->under->xDelete(v->under, path, sync_directory);
    if (disk && code == SQLITE_OK) disk_forget(disk);
    return code;
}

static int vfs_access(sqlite3_vfs *base, const char *path, int flags, int *out)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xAccess(under, path, flags, out);
}

static int vfs_full_path(sqlite3_vfs *base, const char *path, int bytes, char *out)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xFullPathname(under, path, bytes, out);
}

static int vfs_random(sqlite3_vfs *base, int bytes, char *out)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xRandomness(under, bytes, out);
}

static int vfs_sleep(sqlite3_vfs *base, int us)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xSleep(under, us);
}

static int vfs_time(sqlite3_vfs *base, double *days)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xCurrentTime(under, days);
}

static int vfs_last_error(sqlite3_vfs *base, int bytes, char *out)
{
    sqlite3_vfs *under = ((fault_vfs *)base)->under;
    return under->xGetLastError(under, bytes, out);
}

/* Registers it as "fault". The struct must outlive every use; vfs_remove() ends it. */
static void vfs_install(fault_vfs *v)
{
    *v = (fault_vfs){.under = sqlite3_vfs_find(NULL)};
    v->base = (sqlite3_vfs){.iVersion = 1,
                            .szOsFile = (int)sizeof(vfs_file) + v->under->szOsFile,
                            .mxPathname = v->under->mxPathname,
                            .zName = "fault",
                            .xOpen = vfs_open,
                            .xDelete = vfs_delete,
                            .xAccess = vfs_access,
                            .xFullPathname = vfs_full_path,
                            .xRandomness = vfs_random,
                            .xSleep = vfs_sleep,
                            .xCurrentTime = vfs_time,
                            .xGetLastError = vfs_last_error};
    pthread_mutex_init(&v->mutex, NULL);
    sqlite3_vfs_register(&v->base, 0);
}

static void vfs_remove(fault_vfs *v)
{
    sqlite3_vfs_unregister(&v->base);
    for (int i = 0; i < VFS_FILES_MAX; i++) disk_forget(&v->disks[i]);
    pthread_mutex_destroy(&v->mutex);
}

#endif
