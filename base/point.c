/* SPDX-License-Identifier: Apache-2.0 */
#define _POSIX_C_SOURCE 200809L

#include "base/point.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define KN_POINT_NAME(name) #name,
    KN_POINTS(KN_POINT_NAME)
#undef KN_POINT_NAME
};

/* Of the whole process, because the environment is. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int armed = -1;
static atomic_long left;

static void read_environment(void)
{
    const char *text = getenv("KINORA_KILL_AT");
    if (!text) return;
    const size_t length = strcspn(text, ":");
    for (int i = 0; i < KN_POINT_COUNT; i++)
        if (strlen(names[i]) == length && strncmp(names[i], text, length) == 0) armed = i;
    atomic_store(&left, text[length] == ':' ? strtol(text + length + 1, NULL, 10) : 1);
}

void kn_point(kn_point_name point)
{
    pthread_once(&once, read_environment);
    if ((int)point == armed && atomic_fetch_sub(&left, 1) == 1) raise(SIGKILL);
}

const char *kn_point_text(int index)
{
    return index >= 0 && index < KN_POINT_COUNT ? names[index] : NULL;
}
