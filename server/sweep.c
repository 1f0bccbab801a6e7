/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L
#include "server/sweep.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"

enum { FOLDERS = 2 };
static const kn_artifact_kind folders[FOLDERS] = {KN_ARTIFACT_VIDEO, KN_ARTIFACT_CHECKPOINT};

struct kn_sweep {
    char *data;
    kn_sweep_wanted_fn *wanted;
    void *context;
    DIR *listing; /* of folders[at]; NULL: not begun */
    int at;
    int64_t walks;
    uint64_t counting[FOLDERS], counted[FOLDERS];
};

kn_status kn_sweep_create(kn_sweep **out, const char *data, kn_sweep_wanted_fn *wanted, void *context)
{
    kn_sweep *s = kn_alloc(sizeof *s);
    if (!s) return KN_NOMEM;
    s->data = kn_strdup(data);
    s->wanted = wanted;
    s->context = context;
    *out = s;
    if (s->data) return KN_OK;
    kn_sweep_destroy(out);
    return KN_NOMEM;
}

void kn_sweep_destroy(kn_sweep **sweep)
{
    kn_sweep *s = *sweep;
    if (!s) return;
    if (s->listing) closedir(s->listing);
    kn_free(s->data);
    kn_free(s);
    *sweep = NULL;
}

static void look_at(kn_sweep *s, const char *name)
{
    kn_artifact artifact;
    struct stat info;
    if (!kn_artifact_parse(&artifact, name)) return;
    if (s->walks > 0 || s->wanted(s->context, &artifact)) {
        if (fstatat(dirfd(s->listing), name, &info, AT_SYMLINK_NOFOLLOW) == 0)
            s->counting[s->at] += (uint64_t)info.st_size;
    } else if (unlinkat(dirfd(s->listing), name, 0) != 0 && errno != ENOENT) {
        kn_log(KN_LOG_WARNING, "%s: %s", name, strerror(errno));
    }
}

static bool begin(kn_sweep *s)
{
    char *path = kn_format("%s/%s", s->data, kn_artifact_folder(folders[s->at]));
    s->listing = path ? opendir(path) : NULL;
    kn_free(path);
    s->counting[s->at] = 0;
    return s->listing != NULL;
}

static void end(kn_sweep *s)
{
    if (s->listing) closedir(s->listing);
    s->listing = NULL;
    s->counted[s->at] = s->counting[s->at];
    s->at = (s->at + 1) % FOLDERS;
    s->walks += s->at == 0;
}

void kn_sweep_go(kn_sweep *s, int32_t entries)
{
    int ends = 0;
    if (!s->listing && !begin(s)) {
        end(s);
        return;
    }
    for (int32_t i = 0; i < entries; i++) {
        const struct dirent *entry = readdir(s->listing);
        if (entry) {
            look_at(s, entry->d_name);
            continue;
        }
        end(s);
        if (++ends == FOLDERS || !begin(s)) return; /* once around is enough for a call */
    }
}

int64_t kn_sweep_walks(const kn_sweep *s)
{
    return s->walks;
}

uint64_t kn_sweep_bytes(const kn_sweep *s, kn_artifact_kind kind)
{
    const int i = kind == KN_ARTIFACT_CHECKPOINT;
    return s->walks > 0 ? s->counted[i] : s->counting[i];
}
