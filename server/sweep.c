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
    DIR *listings[FOLDERS]; /* opened once and kept, so that the number of descriptors says something about leaks */
    bool begun;             /* the walk through folders[at] */
    int at;
    int64_t walks;
    uint64_t counting[FOLDERS], counted[FOLDERS];
};

/* False: it is not there. */
static bool open_folder(kn_sweep *s, int i)
{
    if (s->listings[i]) return true;
    char *path = kn_format("%s/%s", s->data, kn_artifact_folder(folders[i]));
    s->listings[i] = path ? opendir(path) : NULL;
    kn_free(path);
    return s->listings[i] != NULL;
}

kn_status kn_sweep_create(kn_sweep **out, const char *data, kn_sweep_wanted_fn *wanted, void *context)
{
    kn_sweep *s = kn_alloc(sizeof *s);
    if (!s) return KN_NOMEM;
    s->data = kn_strdup(data);
    s->wanted = wanted;
    s->context = context;
    *out = s;
    for (int i = 0; s->data && i < FOLDERS; i++) open_folder(s, i);
    if (s->data) return KN_OK;
    kn_sweep_destroy(out);
    return KN_NOMEM;
}

void kn_sweep_destroy(kn_sweep **sweep)
{
    kn_sweep *s = *sweep;
    if (!s) return;
    for (int i = 0; i < FOLDERS; i++)
        if (s->listings[i]) closedir(s->listings[i]);
    kn_free(s->data);
    kn_free(s);
    *sweep = NULL;
}

static void look_at(kn_sweep *s, const char *name)
{
    kn_artifact artifact;
    struct stat info;
    if (!kn_artifact_parse(&artifact, name)) return;
    /* Whether a row names a video costs a query each, and after the first walk every one has an owner who removes it.
     * An unfinished file whose job was then still at work under the lease that made it has none. */
    const bool judged = s->walks == 0 || artifact.temporary || artifact.kind == KN_ARTIFACT_CHECKPOINT;
    if (!judged || s->wanted(s->context, &artifact)) {
        if (fstatat(dirfd(s->listings[s->at]), name, &info, AT_SYMLINK_NOFOLLOW) == 0)
            s->counting[s->at] += (uint64_t)info.st_size;
    } else if (unlinkat(dirfd(s->listings[s->at]), name, 0) != 0 && errno != ENOENT) {
        kn_log(KN_LOG_WARNING, "%s: %s", name, strerror(errno));
    }
}

static bool begin(kn_sweep *s)
{
    s->counting[s->at] = 0;
    s->begun = open_folder(s, s->at);
    if (s->begun) rewinddir(s->listings[s->at]);
    return s->begun;
}

static void end(kn_sweep *s)
{
    s->begun = false;
    s->counted[s->at] = s->counting[s->at];
    s->at = (s->at + 1) % FOLDERS;
    s->walks += s->at == 0;
}

void kn_sweep_go(kn_sweep *s, int32_t entries)
{
    int ends = 0;
    if (!s->begun && !begin(s)) {
        end(s);
        return;
    }
    for (int32_t i = 0; i < entries; i++) {
        const struct dirent *entry = readdir(s->listings[s->at]);
        if (entry) {
            look_at(s, entry->d_name);
            continue;
        }
        end(s);
        if (++ends == FOLDERS) return; /* once around is enough for a call */
        if (!begin(s)) {
            end(s);
            return;
        }
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
