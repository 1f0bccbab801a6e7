/* SPDX-License-Identifier: Apache-2.0
 *
 * What others see in the files of engine/media: FFmpeg's tools (`ffprobe`, `ffmpeg` on the PATH; skipped without) read
 * them back. Expected colours come from the formulas of BT.709-6, not from libswscale. */
#define _POSIX_C_SOURCE 200809L
#include "tests/engine/media_clip.h"

static void need_tools(void)
{
    if (system("ffprobe -version >/dev/null 2>&1 && ffmpeg -version >/dev/null 2>&1") != 0) skip();
}

/* Standard output of a command, ending in NUL; kn_free it. The command must succeed. */
static uint8_t *output_of(size_t *bytes, const char *format, ...)
{
    char command[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    uint8_t *output = read_all(pipe, bytes);
    assert_int_equal(pclose(pipe), 0);
    return output;
}

static char *probe(const char *path)
{
    size_t bytes;
    return (char *)output_of(&bytes, "ffprobe -v error -count_frames -show_format -show_streams '%s'", path);
}

static void assert_line(const char *text, const char *line)
{
    size_t bytes = strlen(line);
    for (const char *at = text; (at = strstr(at, line)); at++)
        if ((at == text || at[-1] == '\n') && at[bytes] == '\n') return;
    fail_msg("no line \"%s\" in:\n%s", line, text);
}

/* [frames] of `pixels`, e.g. [H, W] Y, [H/2, W/2] Cb, [H/2, W/2] Cr for yuv420p. */
static uint8_t *decode(const char *path, const char *pixels, size_t expected_bytes)
{
    size_t bytes;
    uint8_t *data =
        output_of(&bytes, "ffmpeg -v error -i '%s' -fps_mode passthrough -f rawvideo -pix_fmt %s -", path, pixels);
    assert_int_equal(bytes, expected_bytes);
    return data;
}

/* BT.709-6 items 3.2 to 3.4, 8 bit narrow range; `rgb` 0..1. */
static void to_bt709(double out[3], const double rgb[3])
{
    double luma = 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2];
    out[0] = 16 + 219 * luma;
    out[1] = 128 + 224 * (rgb[2] - luma) / 1.8556;
    out[2] = 128 + 224 * (rgb[0] - luma) / 1.5748;
}

static void mp4_is_tagged_in_stream_and_container(void **state)
{
    (void)state;
    need_tools();
    if (!has_encoder("x.mp4", "libx264")) skip();
    const char *path = in_folder("clip.mp4");
    kn_media_params params = clip(path, NULL); /* libx264 comes first */
    params.fps_numerator = 24000;
    params.fps_denominator = 1001;
    write_clip(&params, FRAMES);
    char *text = probe(path);
    static const char *const lines[] = {
        "codec_name=h264",
        "profile=High",
        "pix_fmt=yuv420p",
        "width=96",
        "height=64",
        "r_frame_rate=24000/1001",
        "avg_frame_rate=24000/1001",
        "nb_frames=20",
        "nb_read_frames=20",
        "color_range=tv",
        "color_space=bt709",
        "color_transfer=bt709",
        "color_primaries=bt709",
        "chroma_location=left",
        "sample_aspect_ratio=1:1",
        "start_pts=0",
        "TAG:title=A red ball",
        "TAG:comment=model demo; seed 7",
        ("TAG:encoder=Kinora " KN_VERSION),
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) assert_line(text, lines[i]);
    assert_null(strstr(text, "creation_time"));
    kn_free(text);

    /* The elementary stream alone carries the colours too. */
    size_t bytes;
    text = (char *)output_of(
        &bytes, "ffmpeg -v error -i '%s' -c copy -f h264 - | ffprobe -v error -show_streams -f h264 -", path);
    for (size_t i = 9; i < 13; i++) assert_line(text, lines[i]);
    kn_free(text);
    assert_int_equal(sweep(), 1);
}

static void probe_one(const char *path, const char *encoder)
{
    kn_media_params params = clip(path, encoder);
    params.fps_numerator = 16;
    write_clip(&params, FRAMES);
    char *text = probe(path);
    assert_line(text, "nb_read_frames=20");
    if (strstr(path, ".gif")) { /* hundredths of a second: 20 frames in 1.25 s all the same */
        assert_line(text, "duration=1.250000");
    } else {
        assert_line(text, "r_frame_rate=16/1");
        assert_line(text, "color_space=bt709");
        assert_line(text, "color_range=tv");
        assert_line(text, "pix_fmt=yuv420p");
    }
    if (!strstr(path, ".gif")) assert_non_null(strstr(text, "=model demo; seed 7"));
    kn_free(text);
}

static void every_encoder_keeps_frames_and_rate(void **state)
{
    (void)state;
    need_tools();
    each_encoder(probe_one);
}

static void one_frame_is_a_clip(void **state)
{
    (void)state;
    need_tools();
    const char *path = in_folder("one.mp4");
    kn_media_params params = clip(path, NULL);
    params.fps_numerator = 25;
    write_clip(&params, 1);
    char *text = probe(path);
    assert_line(text, "nb_read_frames=1");
    assert_line(text, "duration=0.040000");
    kn_free(text);
    sweep();
}

static void key_frames_at_most_two_seconds_apart(void **state)
{
    (void)state;
    need_tools();
    const char *path = in_folder("long.mp4");
    kn_media_params params = clip(path, NULL);
    params.fps_numerator = 8;
    write_clip(&params, 40);
    size_t bytes;
    char *text = (char *)output_of(
        &bytes, "ffprobe -v error -show_entries packet=pts_time,flags -of csv=p=0 '%s' | grep K", path);
    double last = 0;
    int keys = 0;
    for (char *line = text; *line; line = strchr(line, '\n') + 1, keys++) {
        double time = strtod(line, NULL);
        assert_true(time - last <= 2);
        last = time;
    }
    assert_true(keys >= 3 && last >= 3);
    kn_free(text);
    sweep();
}

/* 192 flat tiles of 16x16 at the best quality: the quantiser's step is below one code value, so what comes back is what
 * the conversion made. A full grey ramp, then a walk through the colour cube. */
static void conversion_follows_bt709(void **state)
{
    (void)state;
    need_tools();
    if (!has_encoder("x.mp4", "libx264")) skip();
    enum { ACROSS = 16, DOWN = 12, TILE = 16, W = ACROSS * TILE, H = DOWN * TILE };
    float *planes = kn_alloc_array(3 * W * H, sizeof *planes);
    double colours[ACROSS * DOWN][3];
    for (int t = 0; t < ACROSS * DOWN; t++) {
        int code[3] = {t * 4, t * 4, t * 4};
        if (t >= 64) {
            code[0] = (t - 64) * 2;
            code[1] = (t * 37) & 255;
            code[2] = (t * 101 + 50) & 255;
        }
        if (t == 63 || t >= 184) /* white, then the eight corners */
            for (int c = 0; c < 3; c++) code[c] = t == 63 || (t - 184) >> c & 1 ? 255 : 0;
        for (int c = 0; c < 3; c++) colours[t][c] = code[c] / 255.0;
    }
    for (int y = 0; y < H; y++)
        for (int x = 0; x < W; x++) set_pixel(planes, W * H, y * W + x, colours[y / TILE * ACROSS + x / TILE]);

    const char *path = in_folder("tiles.mp4");
    kn_media_params params = clip(path, "libx264");
    params.width = W;
    params.height = H;
    params.crf = 1;
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_OK);
    assert_int_equal(kn_media_write(writer, planes, W * H), KN_OK);
    assert_int_equal(kn_media_finish(&writer), KN_OK);
    uint8_t *yuv = decode(path, "yuv420p", W * H * 3 / 2);
    for (int t = 0; t < ACROSS * DOWN; t++) {
        int left = t % ACROSS * TILE, top = t / ACROSS * TILE;
        double expected[3], chroma[3] = {0};
        to_bt709(expected, colours[t]);
        for (int i = 0; i < TILE * TILE; i++)
            assert_true(fabs(yuv[(top + i / TILE) * W + left + i % TILE] - expected[0]) <= 1);
        /* Chroma keeps away from the neighbours, which its filter mixes in; the mean, as the encoder leaves single
         * values up to 1.5 off. */
        for (int i = 0; i < 16; i++)
            for (int c = 1; c < 3; c++)
                chroma[c] += yuv[W * H + (c - 1) * W * H / 4 + (top / 2 + 2 + i / 4) * (W / 2) + left / 2 + 2 + i % 4];
        for (int c = 1; c < 3; c++) assert_true(fabs(chroma[c] / 16 - expected[c]) <= 1);
    }
    kn_free(yuv);
    kn_free(planes);
    sweep();
}

/* A ramp in blue: chroma taken at the left pixel of a pair differs from chroma taken between the two by half a step,
 * 0.88 code values here. */
static void chroma_sits_on_the_left(void **state)
{
    (void)state;
    need_tools();
    if (!has_encoder("x.mp4", "libx264")) skip();
    static float planes[3 * PIXELS];
    for (int i = 0; i < PIXELS; i++) set_pixel(planes, PIXELS, i, (double[]){0.5, 0.5, i % WIDTH * 2.625 / 255});
    const char *path = in_folder("ramp.mp4");
    kn_media_params params = clip(path, "libx264");
    params.crf = 1;
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_OK);
    assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_OK);
    assert_int_equal(kn_media_finish(&writer), KN_OK);
    uint8_t *yuv = decode(path, "yuv420p", PIXELS * 3 / 2);
    double sum = 0;
    int count = 0;
    for (int y = 4; y < HEIGHT / 2 - 4; y++) {
        for (int x = 4; x < WIDTH / 2 - 4; x++, count++) {
            double expected[3];
            to_bt709(expected, (double[]){0.5, 0.5, 2 * x * 2.625 / 255});
            sum += yuv[PIXELS + y * (WIDTH / 2) + x] - expected[1];
        }
    }
    assert_true(fabs(sum / count) < 0.25);
    kn_free(yuv);
    sweep();
}

static void look_alike(const char *path, const char *encoder)
{
    if (strcmp(encoder, "gif") == 0) return;
    kn_media_params params = clip(path, encoder);
    write_clip(&params, FRAMES);
    uint8_t *yuv = decode(path, "yuv420p", (size_t)FRAMES * PIXELS * 3 / 2);
    static float planes[3 * PIXELS];
    double squares = 0;
    for (int f = 0; f < FRAMES; f++) {
        paint(planes, PIXELS, f);
        for (int i = 0; i < PIXELS; i++) {
            double expected[3];
            to_bt709(expected, (double[]){planes[i], planes[PIXELS + i], planes[2 * PIXELS + i]});
            double difference = yuv[f * PIXELS * 3 / 2 + i] - expected[0];
            squares += difference * difference;
        }
    }
    double psnr = 10 * log10(255.0 * 255.0 * FRAMES * PIXELS / squares);
    if (psnr < 40) fail_msg("%s: %.1f dB", encoder, psnr);
    kn_free(yuv);
}

static void video_looks_like_its_frames(void **state)
{
    (void)state;
    need_tools();
    each_encoder(look_alike);
}

static void gif_keeps_palette_colours_and_averages(void **state)
{
    (void)state;
    need_tools();
    static float planes[3 * PIXELS];
    /* Left: a colour of the palette, 51 x (5, 0, 2) with green 0. Right: a grey between its levels. */
    for (int i = 0; i < PIXELS; i++) {
        int left = i % WIDTH < WIDTH / 2;
        set_pixel(planes, PIXELS, i, left ? (double[]){1, 0, 0.4} : (double[]){100 / 255.0, 100 / 255.0, 100 / 255.0});
    }
    const char *path = in_folder("still.gif");
    kn_media_params params = clip(path, NULL);
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_OK);
    for (int f = 0; f < 2; f++) assert_int_equal(kn_media_write(writer, planes, PIXELS), KN_OK);
    assert_int_equal(kn_media_finish(&writer), KN_OK);
    uint8_t *rgb = decode(path, "rgb24", 2 * 3 * PIXELS);
    assert_memory_equal(rgb, rgb + 3 * PIXELS, 3 * PIXELS); /* a still stays still */
    double sum[3] = {0};
    for (int i = 0; i < PIXELS; i++) {
        const uint8_t *pixel = rgb + 3 * i;
        if (i % WIDTH < WIDTH / 2) {
            assert_memory_equal(pixel, ((uint8_t[]){255, 0, 102}), 3);
        } else {
            for (int c = 0; c < 3; c++) sum[c] += pixel[c];
        }
    }
    for (int c = 0; c < 3; c++) assert_true(fabs(sum[c] / (PIXELS / 2) - 100) < 1);
    kn_free(rgb);
    sweep();
}

static void png_keeps_every_bit(void **state)
{
    (void)state;
    need_tools();
    enum { W = 37, H = 23, STRIDE = W * H + 5 }; /* odd is fine; planes lie apart */
    static float planes[3 * STRIDE];
    static uint8_t bytes[3 * W * H];
    kn_media_params params = clip(in_folder("frame-%04d.png"), NULL);
    params.width = W;
    params.height = H;
    kn_media_writer *writer = NULL;
    assert_int_equal(kn_media_open(&writer, &params), KN_OK);
    for (int f = 0; f < 3; f++) {
        noise(planes, 3 * STRIDE, (unsigned)f);
        for (int i = 0; i < 3 * W * H; i++) bytes[i] = (uint8_t)lrint(255.0 * planes[i % 3 * STRIDE + i / 3]);
        if (f == 1) /* floats and bytes may alternate */
            assert_int_equal(kn_media_write_rgb(writer, bytes), KN_OK);
        else
            assert_int_equal(kn_media_write(writer, planes, STRIDE), KN_OK);
        assert_false(is_there("frame-0000.png")); /* all appear together */
    }
    assert_int_equal(kn_media_finish(&writer), KN_OK);
    for (int f = 0; f < 3; f++) {
        char name[32];
        snprintf(name, sizeof name, "frame-%04d.png", f);
        uint8_t *rgb = decode(in_folder(name), "rgb24", 3 * W * H);
        noise(planes, 3 * STRIDE, (unsigned)f);
        for (int i = 0; i < W * H; i++)
            for (int c = 0; c < 3; c++) assert_int_equal(rgb[3 * i + c], lrint(255.0 * planes[c * STRIDE + i]));
        kn_free(rgb);
    }
    assert_int_equal(sweep(), 3);
}

static void values_are_clamped_and_rounded_half_up(void **state)
{
    (void)state;
    need_tools();
    static const struct {
        float value;
        int code;
    } cases[] = {{-1, 0},       {NAN, 0},      {0, 0},   {0.0019f, 0}, {0.002f, 1},     {0.5f, 128},
                 {0.997f, 254}, {0.999f, 255}, {1, 255}, {2, 255},     {INFINITY, 255}, {-INFINITY, 0}};
    enum { CASES = sizeof cases / sizeof cases[0] };
    float planes[3 * CASES];
    for (int i = 0; i < 3 * CASES; i++) planes[i] = cases[i % CASES].value;
    const char *path = in_folder("100%d.PNG"); /* one picture: the name is taken as it is */
    assert_int_equal(kn_media_write_png(path, planes, CASES, CASES, 1), KN_OK);
    assert_true(is_there("100%d.PNG"));
    const char *plain = in_folder("plain.png"); /* which ffmpeg does not take for a pattern */
    assert_int_equal(rename(path, plain), 0);
    uint8_t *rgb = decode(plain, "rgb24", 3 * CASES);
    for (int i = 0; i < 3 * CASES; i++) assert_int_equal(rgb[i], cases[i / 3].code);
    kn_free(rgb);
    assert_int_equal(sweep(), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mp4_is_tagged_in_stream_and_container),
        cmocka_unit_test(every_encoder_keeps_frames_and_rate),
        cmocka_unit_test(one_frame_is_a_clip),
        cmocka_unit_test(key_frames_at_most_two_seconds_apart),
        cmocka_unit_test(conversion_follows_bt709),
        cmocka_unit_test(chroma_sits_on_the_left),
        cmocka_unit_test(video_looks_like_its_frames),
        cmocka_unit_test(gif_keeps_palette_colours_and_averages),
        cmocka_unit_test(png_keeps_every_bit),
        cmocka_unit_test(values_are_clamped_and_rounded_half_up),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
