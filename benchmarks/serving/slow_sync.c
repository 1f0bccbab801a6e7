/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk that is slow to say that it has the data: with LD_PRELOAD, fsync and fdatasync of a process take SLOW_SYNC_MS
 * milliseconds longer. What is bound by the disk's syncs can then be measured on a machine whose disk is so fast that
 * its processors are the bound. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

typedef int sync_fn(int);

static void wait_a_while(void)
{
    const char *text = getenv("SLOW_SYNC_MS");
    const double seconds = text ? strtod(text, NULL) * 1e-3 : 0.0;
    const struct timespec time = {.tv_sec = (time_t)seconds,
                                  .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static int sync_slowly(const char *name, int file)
{
    sync_fn *real = NULL;
    *(void **)&real = dlsym(RTLD_NEXT, name);
    wait_a_while();
    return real ? real(file) : -1;
}

int fsync(int file)
{
    return sync_slowly("fsync", file);
}

int fdatasync(int file)
{
    return sync_slowly("fdatasync", file);
}
