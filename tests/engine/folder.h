/* SPDX-License-Identifier: Apache-2.0
 *
 * A folder for one test: files are written by name and everything is removed
 * at the end. Needs _XOPEN_SOURCE 700. */
#ifndef KN_TESTS_ENGINE_FOLDER_H
#define KN_TESTS_ENGINE_FOLDER_H

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct folder {
    char path[256];
} folder;

static inline folder folder_create(void)
{
    folder made;
    const char *root = getenv("TMPDIR");
    snprintf(made.path, sizeof made.path, "%s/kinora-test-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(made.path)) abort();
    return made;
}

/* "folder/name"; valid for three more calls. */
static inline const char *folder_file(const folder *in, const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", in->path, name);
    return path;
}

static inline void folder_write(const folder *in, const char *name, const void *bytes, size_t count)
{
    int file = open(folder_file(in, name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, bytes, count) != (ssize_t)count || close(file) != 0) abort();
}

static inline void folder_text(const folder *in, const char *name, const char *text)
{
    folder_write(in, name, text, strlen(text));
}

static inline void folder_make(const folder *in, const char *name)
{
    if (mkdir(folder_file(in, name), 0700) != 0) abort();
}

static inline int folder_count(const folder *in)
{
    int count = 0;
    DIR *listing = opendir(in->path);
    if (!listing) abort();
    while (readdir(listing)) count++;
    closedir(listing);
    return count - 2; /* "." and ".." */
}

static inline int folder_unlink(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info;
    (void)kind;
    (void)walk;
    return remove(path);
}

static inline void folder_remove(const folder *in)
{
    nftw(in->path, folder_unlink, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
