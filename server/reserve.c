/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/reserve.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

/* The file is as long as it should be and its blocks are its own. */
static bool is_whole(const char *path, int64_t bytes)
{
    struct stat info;
    return lstat(path, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == bytes &&
           (int64_t)info.st_blocks * 512 >= bytes;
}

static bool take(const char *path, int64_t bytes)
{
    const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    const int error = file < 0 ? errno : posix_fallocate(file, 0, bytes);
    if (file >= 0) close(file);
    if (error == 0) return true;
    if (file >= 0) unlink(path);
    if (error != ENOSPC) kn_log(KN_LOG_WARNING, "%s: no space can be reserved: %s", path, strerror(error));
    return false;
}

static int64_t measure(const char *path)
{
    struct statvfs info;
    const char *slash = strrchr(path, '/');
    char *folder = slash ? kn_strndup(path, (size_t)(slash - path) + 1) : NULL;
    const bool known = folder && statvfs(folder, &info) == 0;
    kn_free(folder);
    return known ? (int64_t)(info.f_bavail * info.f_frsize) : -1;
}

kn_status kn_reserve_open(kn_reserve *out, const char *directory, int64_t bytes)
{
    *out = (kn_reserve){.path = kn_format("%s/reserve", directory), .bytes = bytes, .held = bytes == 0};
    if (!out->path) return KN_NOMEM;
    if (bytes == 0) {
        unlink(out->path);
        out->free_bytes = measure(out->path);
    } else if (is_whole(out->path, bytes)) {
        out->held = true;
        out->free_bytes = measure(out->path);
    } else {
        unlink(out->path); /* of another size: what it holds is room too */
        kn_reserve_tend(out, false);
    }
    return KN_OK;
}

bool kn_reserve_tend(kn_reserve *r, bool full)
{
    r->free_bytes = measure(r->path);
    if (r->bytes == 0 || r->free_bytes < 0) return false;
    if (r->held && (full || r->free_bytes < r->bytes / 4)) {
        if (unlink(r->path) != 0 && errno != ENOENT)
            kn_log(KN_LOG_ERROR, "%s: cannot be given up: %s", r->path, strerror(errno));
        r->held = false;
        return true;
    }
    if (r->held || full || r->free_bytes / 2 < r->bytes || !take(r->path, r->bytes)) return false;
    r->held = true;
    return true;
}

void kn_reserve_close(kn_reserve *r)
{
    kn_free(r->path);
    *r = (kn_reserve){0};
}
