/* SPDX-License-Identifier: Apache-2.0
 *
 * Files, refusals and failures of engine/media; tests/engine/media_picture.c looks at the pictures. Run with one
 * argument the program writes the clip there: the second process of the determinism test. */
#define _POSIX_C_SOURCE 200809L
#include "tests/engine/media_clip.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/log.h"

extern char **environ;

static void assert_same_file(const char *one, const char *other)
{
    size_t bytes[2];
    uint8_t *data[2] = {read_file(one, &bytes[0]), read_file(other, &bytes[1])};
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    kn_free(data[0]);
    kn_free(data[1]);
}

static const uint8_t *find_bytes(const uint8_t *data, size_t count, const void *wanted, size_t bytes)
{
    for (size_t i = 0; i + bytes <= count; i++)
        if (memcmp(data + i, wanted, bytes) == 0) return data + i;
    return NULL;
}

static void mp4_index_comes_first(void **state)
{
    (void)state;
    const char *path = in_folder("clip.mp4");
    kn_media_params params = clip(path, NULL);
    write_clip(&params, FRAMES);
    size_t bytes;
    uint8_t *data = read_file(path, &bytes);
    size_t moov = 0, mdat = 0, at = 0, box = 0;
    for (; at + 8 <= bytes; at += box) {
        box = (size_t)data[at] << 24 | (size_t)data[at + 1] << 16 | (size_t)data[at + 2] << 8 | data[at + 3];
        assert_true(box >= 8);
        if (memcmp(data + at + 4, "moov", 4) == 0) moov = at;
        if (memcmp(data + at + 4, "mdat", 4) == 0) mdat = at;
    }
    assert_int_equal(at, bytes); /* the boxes fill the file exactly */
    assert_memory_equal(data + 4, "ftyp", 4);
    assert_true(moov > 0);
    assert_true(mdat > moov);
    /* Primaries, transfer and matrix 1 (BT.709), full range flag clear. */
    static const uint8_t colour[] = {'c', 'o', 'l', 'r', 'n', 'c', 'l', 'x', 0, 1, 0, 1, 0, 1, 0};
    assert_non_null(find_bytes(data + moov, mdat - moov, colour, sizeof colour));
    kn_free(data);
    sweep();
}

static void same_bytes_here_and_in_another_process(void **state)
{
    (void)state;
    const char *path = in_folder("clip.mp4"), *again = in_folder("again.mp4"), *other = in_folder("other.mp4");
    kn_media_params params = clip(path, NULL);
    write_clip(&params, FRAMES);
    params.path = again;
    write_clip(&params, FRAMES);
    assert_same_file(path, again);

    char *const arguments[] = {"media", (char *)other, NULL};
    pid_t child;
    int status = -1;
    assert_int_equal(posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ), 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_same_file(path, other);
    sweep();
}

static void encode_twice(const char *path, const char *encoder)
{
    char kept[PATH_BYTES];
    snprintf(kept, sizeof kept, "%s.kept", path);
    kn_media_params params = clip(path, encoder);
    write_clip(&params, FRAMES);
    assert_int_equal(rename(path, kept), 0);
    write_clip(&params, FRAMES);
    assert_same_file(path, kept);
}

static void every_encoder_repeats_its_bytes(void **state)
{
    (void)state;
    each_encoder(encode_twice);
}

static void one_png_takes_one_frame(void **state)
{
    (void)state;
    static float planes[3 * PIXELS];
    kn_media_params params = clip(in_folder("still.png"), NULL);
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_OK);
    assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_OK);
    assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "frame-%04d.png"));
    assert_int_equal(kn_media_finish(&writer), KN_OK); /* the first is unharmed */
    assert_true(is_there("still.png"));
    assert_int_equal(sweep(), 1);
}

static void bad_patterns_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {
        "%s.png",   "%5d.png",   "%d-%d.png", "%%.png", "%%%d.png", "%04x.png", "%04.png",
        "%00d.png", "%010d.png", "%-4d.png",  "%n.png", "%ld.png",  "%d%.png",  "%.png",
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kn_media_params params = clip(in_folder(names[i]), NULL);
        kn_media_writer *writer = NULL;
        assert_int_equal(kn_media_open(&writer, &params), KN_INVALID);
        assert_null(writer);
        assert_non_null(strstr(kn_fail_message(), names[i]));
        assert_non_null(strstr(kn_fail_message(), "exactly one %d or %0Nd"));
    }
    /* A folder's name is no pattern, nor is a video's. */
    assert_int_equal(mkdir(in_folder("50%"), 0777), 0);
    kn_media_params params = clip(in_folder("50%/%d.png"), NULL);
    write_clip(&params, 11);
    assert_true(is_there("50%/0.png"));
    assert_true(is_there("50%/10.png"));
    for (int f = 0; f < 11; f++) {
        char name[32];
        snprintf(name, sizeof name, "50%%/%d.png", f);
        assert_int_equal(unlink(in_folder(name)), 0);
    }
    params.path = in_folder("50%d.mp4");
    write_clip(&params, 1);
    assert_true(is_there("50%d.mp4"));
    assert_int_equal(sweep(), 2);
}

static void bad_requests_say_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *name, *encoder;
        int width, height, fps_numerator, fps_denominator, crf;
        kn_status status;
        const char *says;
    } cases[] = {
        {"a.mp4", NULL, 95, 64, 24, 1, 0, KN_INVALID, "95x64 is odd"},
        {"a.webm", NULL, 96, 63, 24, 1, 0, KN_INVALID, "even width and height"},
        {"a.mp4", NULL, 0, 64, 24, 1, 0, KN_INVALID, "1..16384"},
        {"a.png", NULL, 96, -2, 24, 1, 0, KN_INVALID, "96x-2"},
        {"a.gif", NULL, 96, 16385, 24, 1, 0, KN_INVALID, "1..16384"},
        {"a.avi", NULL, 96, 64, 24, 1, 0, KN_INVALID, "known are .mp4, .webm, .gif and .png"},
        {"mp4", NULL, 96, 64, 24, 1, 0, KN_INVALID, "known are .mp4"},
        {"a.mp4", NULL, 96, 64, 0, 1, 0, KN_INVALID, "frame rate 0/1"},
        {"a.mp4", NULL, 96, 64, 24, 0, 0, KN_INVALID, "frame rate 24/0"},
        {"a.gif", NULL, 96, 64, 51, 1, 0, KN_INVALID, "50 frames per second"},
        {"a.mp4", NULL, 96, 64, 24, 1, -1, KN_INVALID, "crf -1"},
        {"a.webm", "libvpx-vp9", 96, 64, 24, 1, 64, KN_INVALID, "0..63 of libvpx-vp9"},
        {"a.mp4", "libx999", 96, 64, 24, 1, 0, KN_UNAVAILABLE, "no encoder libx999 for .mp4"},
        {"a.mp4", "png", 96, 64, 24, 1, 0, KN_UNAVAILABLE, "no encoder png for .mp4"},
        {"a.gif", "libx264", 96, 64, 24, 1, 0, KN_UNAVAILABLE, "available: gif"},
        {"nowhere/a.mp4", NULL, 96, 64, 24, 1, 0, KN_IO, "nowhere/a.mp4.tmp"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kn_media_params params = {.path = in_folder(cases[i].name),
                                  .encoder = cases[i].encoder,
                                  .width = cases[i].width,
                                  .height = cases[i].height,
                                  .fps_numerator = cases[i].fps_numerator,
                                  .fps_denominator = cases[i].fps_denominator,
                                  .crf = cases[i].crf};
        kn_media_writer *writer = NULL;
        kn_status st = kn_media_open(&writer, &params);
        if (st != cases[i].status || !strstr(kn_fail_message(), cases[i].says))
            fail_msg("case %zu: %s: %s", i, kn_status_name(st), kn_fail_message());
        assert_non_null(strstr(kn_fail_message(), cases[i].name));
        assert_null(writer);
    }
    assert_int_equal(sweep(), 0);
}

static void encoders_are_listed_in_order(void **state)
{
    (void)state;
    char names[256], message[300];
    kn_media_encoders("x.mp4", names, sizeof names);
    assert_non_null(strstr(names, "mpeg4")); /* FFmpeg's own; always there */
    if (has_encoder("x.mp4", "libx264")) assert_ptr_equal(strstr(names, "libx264"), names);
    snprintf(message, sizeof message, "available: %s", names);
    kn_media_params params = clip(in_folder("a.mp4"), "none");
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_UNAVAILABLE);
    assert_non_null(strstr(kn_fail_message(), message));
    kn_media_encoders("x.gif", names, sizeof names);
    assert_string_equal(names, "gif");
    kn_media_encoders("x.avi", names, sizeof names);
    assert_string_equal(names, "");
    kn_media_encoders("x.mp4", names, 4);
    assert_true(strlen(names) < 4);
}

static void a_clip_without_frames_leaves_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"a.mp4", "a.webm", "a.gif", "a.png", "%d.png"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kn_media_params params = clip(in_folder(names[i]), NULL);
        kn_media_writer *writer = NULL;
        assert_int_equal(kn_media_open(&writer, &params), KN_OK);
        assert_int_equal(kn_media_finish(&writer), KN_INVALID);
        assert_null(writer);
        assert_non_null(strstr(kn_fail_message(), names[i]));
        assert_non_null(strstr(kn_fail_message(), "no frame"));
        assert_int_equal(sweep(), 0);
    }
}

static void abandoned_work_leaves_what_was_there(void **state)
{
    (void)state;
    static float planes[3 * PIXELS];
    static const char *const names[] = {"a.mp4", "a.webm", "a.gif", "%d.png"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kn_media_params params = clip(in_folder(names[i]), NULL);
        const char *first = strchr(names[i], '%') ? "0.png" : names[i];
        FILE *file = fopen(in_folder(first), "w");
        assert_non_null(file);
        fputs("older", file);
        fclose(file);
        kn_media_writer *writer = NULL;
        assert_int_equal(kn_media_open(&writer, &params), KN_OK);
        for (int f = 0; f < 3; f++) assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_OK);
        kn_media_abandon(&writer);
        assert_null(writer);
        size_t bytes;
        uint8_t *data = read_file(in_folder(first), &bytes);
        assert_string_equal((char *)data, "older");
        kn_free(data);
        write_clip(&params, 3); /* and finishing replaces it */
        data = read_file(in_folder(first), &bytes);
        assert_true(bytes > 100);
        kn_free(data);
        assert_int_equal(sweep(), strchr(names[i], '%') ? 3 : 1);
    }
    kn_media_abandon(NULL);
}

static void taken_names_are_reported(void **state)
{
    (void)state;
    kn_media_params params = clip(in_folder("a.mp4"), NULL);
    assert_int_equal(mkdir(in_folder("a.mp4.tmp"), 0777), 0);
    assert_int_equal(try_clip(&params, 2), KN_IO);
    assert_non_null(strstr(kn_fail_message(), "a.mp4.tmp"));
    assert_int_equal(rmdir(in_folder("a.mp4.tmp")), 0); /* still there: it was not ours */

    assert_int_equal(mkdir(in_folder("a.mp4"), 0777), 0);
    assert_int_equal(try_clip(&params, 2), KN_IO);
    assert_non_null(strstr(kn_fail_message(), "a.mp4"));
    assert_non_null(strstr(kn_fail_message(), "renamed"));
    assert_int_equal(sweep(), 1);

    /* The second of three pictures cannot take its name: none stays. */
    params.path = in_folder("%d.png");
    assert_int_equal(mkdir(in_folder("1.png"), 0777), 0);
    assert_int_equal(try_clip(&params, 3), KN_IO);
    assert_non_null(strstr(kn_fail_message(), "1.png"));
    assert_int_equal(sweep(), 1);
}

/* A limit on file size stands in for a full disk. */
static void a_full_disk_names_the_file_and_leaves_nothing(void **state)
{
    (void)state;
    static float planes[3 * PIXELS];
    static const char *const names[] = {"full.mp4", "full.webm", "full.gif", "full-%d.png"};
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kn_media_params params = clip(in_folder(names[i]), NULL);
        params.crf = strstr(names[i], ".mp4") || strstr(names[i], ".webm") ? 4 : 0;
        kn_media_writer *writer = NULL;
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){4096, before.rlim_max}), 0);
        kn_status st = kn_media_open(&writer, &params);
        for (int f = 0; f < 60 && st == KN_OK; f++) {
            noise(planes, 3 * PIXELS, (unsigned)f);
            st = kn_media_write(writer, planes, PIXELS);
        }
        if (st == KN_OK) {
            st = kn_media_finish(&writer);
        } else {
            assert_non_null(strstr(kn_fail_message(), "full"));
            assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_INVALID);
            assert_non_null(strstr(kn_fail_message(), "earlier frame"));
            assert_int_equal(kn_media_finish(&writer), KN_INVALID);
        }
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(st, KN_IO);
        assert_non_null(strstr(kn_fail_message(), "full"));
        assert_null(writer);
        assert_int_equal(sweep(), 0);
    }
    signal(SIGXFSZ, SIG_DFL);
}

static void every_allocation_can_fail(void **state)
{
    (void)state;
    static const char *const names[] = {"a.mp4", "%d.png"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kn_media_params params = clip(in_folder(names[i]), NULL);
        uint64_t held = kn_mem_read().bytes;
        kn_status st = KN_NOMEM;
        int failures = 0;
        for (; st != KN_OK; failures++) {
            kn_mem_fail_at((uint64_t)failures + 1);
            st = try_clip(&params, 2);
            kn_mem_fail_at(0);
            assert_int_equal(kn_mem_read().bytes, held);
            if (st == KN_OK) break;
            assert_int_equal(st, KN_NOMEM);
            assert_int_equal(sweep(), 0);
        }
        assert_true(failures >= 4);
        sweep();
    }
}

static void png_of_one_picture_checks_its_name(void **state)
{
    (void)state;
    float planes[3] = {0};
    assert_int_equal(kn_media_write_png(in_folder("a.jpg"), planes, 1, 1, 1), KN_INVALID);
    assert_non_null(strstr(kn_fail_message(), "a.jpg"));
    assert_int_equal(kn_media_write_png(in_folder("a.png"), planes, 1, 2, 1), KN_INVALID); /* planes overlap */
    assert_int_equal(kn_media_write_png(in_folder("gone/a.png"), planes, 1, 1, 1), KN_IO);
    assert_non_null(strstr(kn_fail_message(), "gone/a.png"));
    assert_int_equal(sweep(), 0);
}

static void ffmpeg_speaks_at_debug_level_only(void **state)
{
    (void)state;
    kn_media_params params = clip(in_folder("a.mp4"), NULL);
    for (int debug = 0; debug < 2; debug++) {
        const char *log = in_folder("log");
        fflush(stderr);
        int saved = dup(STDERR_FILENO), file = open(log, O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_true(saved >= 0 && file >= 0);
        dup2(file, STDERR_FILENO);
        kn_log_configure(debug ? KN_LOG_DEBUG : KN_LOG_INFO, 0);
        kn_status st = try_clip(&params, 2);
        kn_log_configure(KN_LOG_INFO, 0);
        fflush(stderr);
        dup2(saved, STDERR_FILENO);
        close(saved);
        close(file);
        assert_int_equal(st, KN_OK);
        size_t bytes;
        char *text = (char *)read_file(log, &bytes);
        if (debug)
            assert_non_null(strstr(text, "debug: ffmpeg: ["));
        else
            assert_string_equal(text, "");
        kn_free(text);
    }
    sweep();
}

static void memory_estimate_grows_with_the_picture(void **state)
{
    (void)state;
    kn_media_params params = {.path = "a.mp4", .width = 832, .height = 480, .fps_numerator = 16, .fps_denominator = 1};
    uint64_t large = kn_media_bytes(&params);
    /* 70.4 MiB were measured with libx264. */
    if (has_encoder("x.mp4", "libx264")) assert_in_range(large, 70 << 20, 100 << 20);
    params.width = 240;
    params.height = 416;
    uint64_t small = kn_media_bytes(&params);
    assert_true(small > 240 * 416 * 5 && small < large);
    params.path = "a.avi";
    assert_int_equal(kn_media_bytes(&params), 0);
}

int main(int argc, char **argv)
{
    if (argc == 2) {
        kn_media_params params = clip(argv[1], NULL);
        return try_clip(&params, FRAMES) == KN_OK ? 0 : 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mp4_index_comes_first),
        cmocka_unit_test(same_bytes_here_and_in_another_process),
        cmocka_unit_test(every_encoder_repeats_its_bytes),
        cmocka_unit_test(one_png_takes_one_frame),
        cmocka_unit_test(bad_patterns_are_refused),
        cmocka_unit_test(bad_requests_say_what_is_wrong),
        cmocka_unit_test(encoders_are_listed_in_order),
        cmocka_unit_test(a_clip_without_frames_leaves_nothing),
        cmocka_unit_test(abandoned_work_leaves_what_was_there),
        cmocka_unit_test(taken_names_are_reported),
        cmocka_unit_test(a_full_disk_names_the_file_and_leaves_nothing),
        cmocka_unit_test(every_allocation_can_fail),
        cmocka_unit_test(png_of_one_picture_checks_its_name),
        cmocka_unit_test(ffmpeg_speaks_at_debug_level_only),
        cmocka_unit_test(memory_estimate_grows_with_the_picture),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
