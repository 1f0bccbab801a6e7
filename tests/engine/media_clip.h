/* SPDX-License-Identifier: Apache-2.0
 *
 * What the two tests of engine/media share: a folder of its own, and a small moving clip. */
#ifndef KN_TESTS_ENGINE_MEDIA_CLIP_H
#define KN_TESTS_ENGINE_MEDIA_CLIP_H

#include "engine/media.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"

enum { WIDTH = 96, HEIGHT = 64, PIXELS = WIDTH * HEIGHT, FRAMES = 20, PATH_BYTES = 512 };

static char folder[] = "/tmp/kinora-media-XXXXXX";

static inline const char *in_folder(const char *name)
{
    static char paths[4][PATH_BYTES];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, PATH_BYTES, "%s/%s", folder, name);
    return path;
}

static inline int is_there(const char *name)
{
    struct stat info;
    return stat(in_folder(name), &info) == 0;
}

/* Removes the files of the folder; their number. */
static inline int sweep(void)
{
    int count = 0;
    DIR *listing = opendir(folder);
    assert_non_null(listing);
    for (struct dirent *entry; (entry = readdir(listing));) {
        if (entry->d_name[0] == '.') continue;
        count++;
        assert_int_equal(remove(in_folder(entry->d_name)), 0);
    }
    closedir(listing);
    return count;
}

static inline uint8_t *read_all(FILE *file, size_t *bytes)
{
    size_t room = 1 << 16;
    uint8_t *data = kn_alloc(room);
    *bytes = 0;
    for (size_t got; (got = fread(data + *bytes, 1, room - *bytes - 1, file)) > 0;) {
        *bytes += got;
        if (room - *bytes < 4096) data = kn_realloc(data, room *= 2);
        assert_non_null(data);
    }
    data[*bytes] = 0;
    return data;
}

static inline uint8_t *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    uint8_t *data = read_all(file, bytes);
    fclose(file);
    return data;
}

static inline void set_pixel(float *planes, int64_t stride, int64_t at, const double rgb[3])
{
    for (int c = 0; c < 3; c++) planes[c * stride + at] = (float)rgb[c];
}

/* A smooth, moving picture, different in each channel. */
static inline void paint(float *planes, int64_t stride, int frame)
{
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
            double across = (double)(x + 2 * frame) / (WIDTH + 2 * FRAMES), down = (double)y / HEIGHT;
            set_pixel(planes, stride, y * WIDTH + x, (double[]){across, down, 0.5 + 0.4 * sin(4 * across + 3 * down)});
        }
}

static inline void noise(float *planes, int64_t count, unsigned seed)
{
    for (int64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        planes[i] = (float)(seed >> 24) / 255.0f;
    }
}

static inline kn_media_params clip(const char *path, const char *encoder)
{
    return (kn_media_params){.path = path,
                             .encoder = encoder,
                             .width = WIDTH,
                             .height = HEIGHT,
                             .fps_numerator = 24,
                             .fps_denominator = 1,
                             .title = "A red ball",
                             .comment = "model demo; seed 7"};
}

/* `frames` moving frames; the first failure, with nothing held. */
static inline kn_status try_clip(const kn_media_params *params, int frames)
{
    static float planes[3 * PIXELS];
    kn_media_writer *writer = NULL;
    kn_status st = KN_OK;
    KN_TRY(kn_media_open(&writer, params));
    for (int i = 0; i < frames; i++) {
        paint(planes, PIXELS, i);
        KN_TRY(kn_media_write(writer, planes, PIXELS));
    }
    KN_TRY(kn_media_finish(&writer));
fail:
    kn_media_abandon(&writer);
    return st;
}

static inline void write_clip(const kn_media_params *params, int frames)
{
    if (try_clip(params, frames) != KN_OK) fail_msg("%s", kn_fail_message());
}

static inline int has_encoder(const char *path, const char *name)
{
    char names[256];
    kn_media_encoders(path, names, sizeof names);
    return strstr(names, name) != NULL;
}

/* Calls `visit` for each encoder this FFmpeg has, on a path of its container. */
static inline void each_encoder(void (*visit)(const char *path, const char *encoder))
{
    static const char *const paths[] = {"clip.mp4", "clip.webm", "clip.gif"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        char names[256], *rest = NULL;
        kn_media_encoders(paths[i], names, sizeof names);
        for (char *name = strtok_r(names, ", ", &rest); name; name = strtok_r(NULL, ", ", &rest)) {
            visit(in_folder(paths[i]), name);
            sweep();
        }
    }
}

static inline int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static inline int remove_folder(void **state)
{
    (void)state;
    sweep();
    return rmdir(folder);
}

#endif
