/* SPDX-License-Identifier: Apache-2.0
 *
 * A FAKE of NCCL for tests on machines without GPUs: a shared library with the names and the calling rules that
 * engine/comm_nccl.c relies on, over shared memory and host pointers. It shows that the calls are made in a right order
 * and that faults are handled; it says nothing about NCCL itself, GPUs or speed. Every answer is "in progress" at
 * first, as a non-blocking communicator may answer. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/comm_local.h"

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, SYSTEM_ERROR = 2, IN_PROGRESS = 7, BLOCKS = 1024 };

typedef struct fake_id {
    char bytes[128];
} fake_id;

typedef struct fake_comm {
    kn_device *device;
    kn_stream *stream;
    kn_comm *comm;
    int polls; /* until a call has ended */
} fake_comm;

static struct {
    int depth, sends, receives;
    fake_comm *comm;
    kn_comm_block send[BLOCKS], receive[BLOCKS];
} group;

int ncclGetVersion(int *version);
int ncclGetUniqueId(fake_id *id);
int ncclCommInitRankConfig(void **out, int ranks, fake_id id, int rank, void *config);
int ncclCommSplit(void *comm, int color, int key, void **out, void *config);
int ncclCommGetAsyncError(void *comm, int *error);
int ncclCommAbort(void *comm);
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclSend(const void *data, size_t count, int type, int peer, void *comm, void *stream);
int ncclRecv(void *data, size_t count, int type, int peer, void *comm, void *stream);
const char *ncclGetErrorString(int error);

EXPORT int ncclGetVersion(int *version)
{
    /* Too old for a test that says so, in a variable that workers inherit. */
    const char *path = getenv("LD_LIBRARY_PATH");
    *version = path && strcmp(path, "/nowhere/old-nccl") == 0 ? 20000 : 22800;
    return SUCCESS;
}

static void describe(fake_id *id, int fd)
{
    snprintf(id->bytes, sizeof id->bytes, "/proc/%d/fd/%d", getpid(), fd);
}

/* The number of ranks is not known yet: a segment for every number. */
EXPORT int ncclGetUniqueId(fake_id *id)
{
    int first = -1;
    for (int32_t ranks = 1; ranks <= KN_COMM_RANKS_MAX; ranks++) {
        int fd;
        if (kn_comm_local_form(&fd, ranks, 1) != KN_OK) return SYSTEM_ERROR;
        if (first < 0) first = fcntl(fd, F_DUPFD_CLOEXEC, 300);
        if (dup2(fd, first + ranks) < 0) return SYSTEM_ERROR;
        close(fd);
    }
    describe(id, first);
    return SUCCESS;
}

static int join(void **out, const char *path, int rank)
{
    fake_comm *c = calloc(1, sizeof *c);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    kn_status st = kn_device_open(&c->device, &(kn_device_params){.name = "cpu", .threads = 1});
    if (st == KN_OK) st = kn_stream_create(&c->stream, c->device);
    if (st == KN_OK)
        st = kn_comm_local_join(&c->comm,
                                &(kn_comm_local_params){.fd = fd, .rank = rank, .epoch = 1, .stream = c->stream});
    close(fd);
    if (st != KN_OK) return SYSTEM_ERROR;
    c->polls = 2;
    *out = c;
    return IN_PROGRESS;
}

EXPORT int ncclCommInitRankConfig(void **out, int ranks, fake_id id, int rank, void *config)
{
    int process, fd;
    char path[64];
    const unsigned magic = *(const unsigned *)((const char *)config + sizeof(size_t));
    const int blocking = *(const int *)((const char *)config + sizeof(size_t) + 8);
    if (magic != 0xcafebeefu || blocking != 0) return SYSTEM_ERROR;
    if (sscanf(id.bytes, "/proc/%d/fd/%d", &process, &fd) != 2) return SYSTEM_ERROR;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", process, fd + ranks);
    return join(out, path, rank);
}

/* Everybody learns everybody's color; the first rank of each color makes its segment. */
EXPORT int ncclCommSplit(void *comm, int color, int key, void **out, void *config)
{
    fake_comm *parent = comm;
    const kn_group all = kn_group_of(parent->comm, UINT32_MAX);
    int colors[KN_COMM_RANKS_MAX] = {0}, result = SUCCESS;
    (void)key;
    (void)config;
    for (int32_t r = 0; r < all.size; r++) {
        colors[r] = color;
        if (kn_group_message(&all, r, &colors[r], sizeof colors[r]) != KN_OK) return SYSTEM_ERROR;
    }
    for (int32_t r = 0; r < all.size; r++) {
        int32_t ranks = 0, own = 0, first = r;
        fake_id id = {{0}};
        for (int32_t i = all.size - 1; i >= 0; i--) {
            if (colors[i] != colors[r]) continue;
            ranks++;
            own += i < all.index;
            first = i;
        }
        if (colors[r] < 0 || first != r) continue;
        if (all.index == r) {
            int fd;
            if (kn_comm_local_form(&fd, ranks, 1) != KN_OK) return SYSTEM_ERROR;
            describe(&id, fd);
        }
        if (kn_group_message(&all, r, &id, sizeof id) != KN_OK) return SYSTEM_ERROR;
        if (color == colors[r]) result = join(out, id.bytes, own);
    }
    parent->polls = 2;
    return result == SYSTEM_ERROR ? result : IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(void *comm, int *error)
{
    fake_comm *c = comm;
    *error = c && c->polls > 0 ? IN_PROGRESS : SUCCESS;
    if (c && c->polls > 0) c->polls--;
    return SUCCESS;
}

EXPORT int ncclCommAbort(void *comm)
{
    fake_comm *c = comm;
    kn_comm_destroy(&c->comm);
    kn_stream_destroy(&c->stream);
    kn_device_close(&c->device);
    free(c);
    return SUCCESS;
}

EXPORT int ncclGroupStart(void)
{
    group.depth++;
    return SUCCESS;
}

/* Here a lost rank shows at once; on a device it would be found by the watcher. */
EXPORT int ncclGroupEnd(void)
{
    if (--group.depth > 0 || !group.comm) return SUCCESS;
    fake_comm *c = group.comm;
    kn_status st = kn_comm_start(c->comm, KN_COMM_ALL_TO_ALL, group.send, group.sends, group.receive, group.receives);
    if (st == KN_OK) st = kn_comm_finish(c->comm);
    group.sends = group.receives = 0;
    group.comm = NULL;
    c->polls = 1;
    return st == KN_OK ? IN_PROGRESS : SYSTEM_ERROR;
}

static int add(kn_comm_block *blocks, int *count, void *data, size_t bytes, int type, int peer, void *comm)
{
    if (group.depth == 0 || type != 0 || *count == BLOCKS) return SYSTEM_ERROR;
    blocks[(*count)++] = (kn_comm_block){.data = data, .rows = 1, .row_bytes = bytes, .stride = bytes, .peer = peer};
    group.comm = comm;
    return SUCCESS;
}

EXPORT int ncclSend(const void *data, size_t count, int type, int peer, void *comm, void *stream)
{
    (void)stream;
    return add(group.send, &group.sends, (void *)(uintptr_t)data, count, type, peer, comm);
}

EXPORT int ncclRecv(void *data, size_t count, int type, int peer, void *comm, void *stream)
{
    (void)stream;
    return add(group.receive, &group.receives, data, count, type, peer, comm);
}

EXPORT const char *ncclGetErrorString(int error)
{
    return error == SYSTEM_ERROR ? "a fake system error" : "a fake error";
}
