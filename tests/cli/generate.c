/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora generate as its users meet it: the built binary, its exit codes and messages, its files, and that a process
 * killed at any slice and resumed in another ends in the same bytes. */
#define _GNU_SOURCE
#include "tests/cli/spawn.h"

#include <math.h>

#include "engine/checkpoint.h"
#include "engine/weights.h"

#define SMALL KN_SOURCE_DIR "/tests/golden/wan21-small/model"
#define HEAD128 KN_SOURCE_DIR "/tests/golden/wan21-head128/model"
#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static folder at; /* one for all tests; a process each anyway */

/* Its path; valid for fifteen more calls. */
static const char *file(const char *name)
{
    static char paths[16][512];
    static int next;
    char *path = paths[next++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s", at.path, name);
    return path;
}

static int set_up(void **state)
{
    (void)state;
    at = folder_create();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    folder_remove(&at);
    return 0;
}

static outcome kinora(const char *const *arguments)
{
    const command c = command_of(KN_KINORA, arguments);
    return command_run(&c);
}

/* A short generation: two steps, five frames of 32x32. */
static command short_run(const char *output, const char *const *more)
{
    command c = command_of(KN_KINORA,
                           LIST("generate", "--model", SMALL, "--prompt", "a blue cube", "--size", "32x32", "--frames",
                                "5", "--steps", "2", "--seed", "3", "--precision", "float32", "-o", output));
    command_add(&c, more);
    return c;
}

static void expect_code(const outcome *o, int code)
{
    if (o->code != code) fail_msg("exit code %d instead of %d: %s%s", o->code, code, o->out, o->err);
}

/* One line on standard error that says `text`, nothing on standard output. */
static void expect_refused(outcome *o, int code, const char *text)
{
    expect_code(o, code);
    assert_string_equal(o->out, "");
    if (strncmp(o->err, "kinora: ", 8) != 0 || !strstr(o->err, text))
        fail_msg("\"%s\" does not say \"%s\"", o->err, text);
    if (strchr(o->err, '\n') != o->err + strlen(o->err) - 1) fail_msg("\"%s\" is not one line", o->err);
    outcome_free(o);
}

/* ---- usage ---- */

static void help_and_version(void **state)
{
    (void)state;
    outcome o = kinora(LIST("--version"));
    expect_code(&o, 0);
    assert_string_equal(o.out, "kinora " KN_VERSION "\n");
    outcome_free(&o);
    o = kinora(LIST("--help"));
    expect_code(&o, 0);
    assert_non_null(strstr(o.out, "generate"));
    outcome_free(&o);
    o = kinora(LIST("generate", "--help"));
    expect_code(&o, 0);
    assert_non_null(strstr(o.out, "--negative-prompt TEXT"));
    assert_string_equal(o.err, "");
    outcome_free(&o);
    o = kinora(LIST("paint"));
    expect_code(&o, 64);
    assert_non_null(strstr(o.err, "\"paint\" is not a command"));
    outcome_free(&o);
    const command alone = {.argv = {KN_KINORA}, .count = 1};
    o = command_run(&alone);
    expect_code(&o, 64);
    outcome_free(&o);
}

/* Everything that is wrong before a model is opened: the folder named does not exist. */
static void wrong_options(void **state)
{
    (void)state;
    static const struct {
        const char *arguments[5], *text;
    } rows[] = {
        {{"--prompt", "x"}, "--model is missing"},
        {{"--model", "no"}, "--prompt is missing"},
        {{"--model"}, "--model needs DIR"},
        {{"--modle", "no"}, "--modle is not an option; see kinora generate --help"},
        {{"-x"}, "-x is not an option"},
        {{"word"}, "\"word\" is not an option"},
        {{"--json=yes"}, "--json takes no value"},
        {{"--seed", "1", "--seed=2"}, "--seed is given twice"},
        {{"--size", "832"}, "--size is \"832\""},
        {{"--size", "832x480x3"}, "--size is \"832x480x3\""},
        {{"--size", "0x480"}, "--size is \"0x480\""},
        {{"--size", "-832x480"}, "--size is \"-832x480\""},
        {{"--size", "4294967328x32"}, "--size is \"4294967328x32\""},
        {{"--frames", "0"}, "--frames is \"0\""},
        {{"--frames", "9.5"}, "--frames is \"9.5\""},
        {{"--frames", "99999999999"}, "--frames is \"99999999999\""},
        {{"--seconds", "soon"}, "--seconds is \"soon\""},
        {{"--seconds", "0"}, "--seconds is"},
        {{"--seconds", "-1"}, "--seconds is"},
        {{"--seconds", "3601"}, "--seconds is 3601"},
        {{"--fps", "0"}, "--fps is \"0\""},
        {{"--fps", "241"}, "--fps is \"241\""},
        {{"--fps", "nan"}, "--fps is \"nan\""},
        {{"--fps", "16/0"}, "--fps is \"16/0\""},
        {{"--fps", "0/0"}, "--fps is \"0/0\""},
        {{"--fps", "4294967312/1"}, "--fps is \"4294967312/1\""},
        {{"--steps", "-5"}, "--steps is \"-5\""},
        {{"--guidance", "high"}, "--guidance is \"high\""},
        {{"--guidance", "inf"}, "--guidance is \"inf\""},
        {{"--seed", "-1"}, "--seed is \"-1\""},
        {{"--seed", "18446744073709551616"}, "--seed is \"18446744073709551616\""},
        {{"--sampler", "ddim"}, "--sampler is \"ddim\"; it must be unipc or euler"},
        {{"--shift", ""}, "--shift is \"\""},
        {{"--sigmas", "1,,0.5"}, "--sigmas is \"1,,0.5\""},
        {{"--sigmas", "1,0.5,"}, "--sigmas is \"1,0.5,\""},
        {{"--precision", "half"}, "--precision is \"half\"; it must be auto, float32 or bfloat16"},
        {{"--vae-precision", "half"}, "--vae-precision is \"half\""},
        {{"--threads", "0"}, "--threads is \"0\""},
        {{"--crf", "x"}, "--crf is \"x\""},
        {{"--frames", "5", "--seconds", "1"}, "--frames and --seconds say the same"},
        {{"--resume", "a.ckpt", "--steps", "3"}, "--resume continues a saved request"},
        {{"--resume", "a.ckpt", "--seed", "3"}, "--resume continues a saved request"},
        {{"--resume", "a.ckpt", "--dump", "d"}, "--dump needs every step"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        command c = command_of(KN_KINORA, LIST("generate"));
        command_add(&c, rows[i].arguments);
        if (strstr(rows[i].text, " say the same")) command_add(&c, LIST("--prompt", "x"));
        if (strncmp(rows[i].text, "--model", 7) != 0 && strcmp(rows[i].arguments[0], "--model") != 0)
            command_add(&c, LIST("--model", "/no/such/model"));
        if (strstr(rows[i].text, "--seconds is")) command_add(&c, LIST("--prompt", "x"));
        outcome o = command_run(&c);
        expect_refused(&o, 64, rows[i].text);
    }
}

/* What only the model can judge, and what the output cannot be. */
static void wrong_requests(void **state)
{
    (void)state;
    static const struct {
        const char *arguments[5];
        int code;
        const char *text;
    } rows[] = {
        {{"--size", "8x32"}, 64, "width is 8; it must be 16 to 8192"},
        {{"--size", "32x8193"}, 64, "height is 8193; it must be 16 to 8192"},
        {{"--frames", "5000"}, 64, "frames is 5000; it must be 1 to 4093"},
        {{"--steps", "1001"}, 64, "steps is 1001; it must be 1 to 1000"},
        {{"--guidance", "101"}, 64, "guidance is 101; it must be 0 to 100"},
        {{"--shift", "0"}, 64, "shift is 0; it must be above 0"},
        {{"--sigmas", "0.5,0.75"}, 64, "sigmas[1] is 0.75 after 0.5"},
        {{"--sigmas", "1,0.5", "--steps", "3"}, 64, "steps is 3 but 2 sigmas were given"},
        {{"--output", "clip.avi"}, 64, "clip.avi: the extension decides the format"},
        {{"--output", "frame-%s.png"}, 64, "frame-%s.png: the pattern"},
        {{"--output", "/no/such/folder/clip.mp4"}, 74, "/no/such/folder/clip.mp4"},
        {{"--output", "/no/such/folder/clip.gif"}, 74, "/no/such/folder/clip.gif"},
        {{"--output", "one.png"}, 64, "one.png is one picture and there are 81 frames"},
        {{"--prompt=\xff"}, 64, "UTF-8"},
        {{"--encoder", "paintbox"}, 69, "no encoder paintbox"},
        {{"--device", "cuda:7"}, 69, "cuda:7"},
        {{"--isa", "mmx"}, 64, "isa \"mmx\" is unknown"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        command c = command_of(KN_KINORA, LIST("generate", "--model", SMALL));
        if (strncmp(rows[i].arguments[0], "--prompt", 8) != 0) command_add(&c, LIST("--prompt", "x"));
        if (strcmp(rows[i].arguments[0], "--output") != 0) command_add(&c, LIST("-o", file("wrong.mp4")));
        command_add(&c, rows[i].arguments);
        outcome o = command_run(&c);
        expect_refused(&o, rows[i].code, rows[i].text);
        assert_false(exists(file("wrong.mp4")));
        assert_false(exists(file("wrong.mp4.tmp")));
    }
}

/* What is written late is looked at early. */
static void unwritable_files(void **state)
{
    (void)state;
    static const char *const options[] = {"--checkpoint", "--dump", "--output"};
    folder_make(&at, "taken.mp4");
    for (int i = 0; i < 3; i++) {
        const char *const path = i < 2 ? "/no/such/folder/file" : "/no/such/folder/frame-%04d.png";
        command c = command_of(KN_KINORA, LIST("generate", "--model", SMALL, "--prompt", "x", options[i], path));
        if (i < 2) command_add(&c, LIST("-o", file("unwritable.mp4")));
        outcome o = command_run(&c);
        expect_refused(&o, 74, path);
        assert_false(exists(file("unwritable.mp4.tmp")));
    }
    outcome o = kinora(LIST("generate", "--model", SMALL, "--prompt", "x", "-o", file("taken.mp4")));
    expect_refused(&o, 64, "taken.mp4: is there and is not a regular file");
}

static void missing_and_broken_input(void **state)
{
    (void)state;
    outcome o = kinora(LIST("generate", "--model", "/no/such/model", "--prompt", "x", "-o", file("input.mp4")));
    expect_refused(&o, 66, "/no/such/model");
    folder_make(&at, "broken");
    folder_text(&at, "broken/model_index.json", "{\"_class_name\": ");
    o = kinora(LIST("generate", "--model", file("broken"), "--prompt", "x", "-o", file("input.mp4")));
    expect_refused(&o, 65, "model_index.json");
    o = kinora(LIST("generate", "--model", SMALL, "--resume", file("none.ckpt"), "-o", file("input.mp4")));
    expect_refused(&o, 66, "none.ckpt");
    folder_text(&at, "broken.ckpt", "this is not a checkpoint, although it is long enough for a header");
    o = kinora(LIST("generate", "--model", SMALL, "--resume", file("broken.ckpt"), "-o", file("input.mp4")));
    expect_refused(&o, 65, "broken.ckpt");
    assert_false(exists(file("input.mp4")));
    assert_false(exists(file("input.mp4.tmp")));
}

/* The small fixture with one bias made NaN, under `name` in the test's folder. */
static void make_broken_model(const char *name)
{
    static const char *const parts[] = {"model_index.json", "text_encoder",           "tokenizer", "vae",
                                        "scheduler",        "transformer/config.json"};
    char from[1024], to[1024], inside[200];
    folder_make(&at, name);
    snprintf(inside, sizeof inside, "%s/transformer", name);
    folder_make(&at, inside);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        snprintf(from, sizeof from, "%s/%s", SMALL, parts[i]);
        snprintf(to, sizeof to, "%s/%s/%s", at.path, name, parts[i]);
        assert_int_equal(symlink(from, to), 0);
    }
    size_t bytes;
    char *data = read_whole(SMALL "/transformer/diffusion_pytorch_model.safetensors", &bytes);
    uint64_t header;
    memcpy(&header, data, sizeof header);
    json_t *root = json_loadb(data + 8, (size_t)header, 0, NULL);
    json_t *offsets = json_object_get(json_object_get(root, "proj_out.bias"), "data_offsets");
    assert_non_null(offsets);
    const float nan_value = NAN;
    memcpy(data + 8 + header + json_integer_value(json_array_get(offsets, 0)), &nan_value, sizeof nan_value);
    snprintf(inside, sizeof inside, "%s/transformer/diffusion_pytorch_model.safetensors", name);
    folder_write(&at, inside, data, bytes);
    json_decref(root);
    free(data);
}

/* A film of black frames is not an answer: found before decoding, or by the first checkpoint. */
static void weights_that_are_not_finite(void **state)
{
    (void)state;
    make_broken_model("nan");
    for (int checkpoint = 0; checkpoint < 2; checkpoint++) {
        command c = command_of(KN_KINORA, LIST("generate", "--model", file("nan"), "--prompt", "x", "--size", "32x32",
                                               "--frames", "5", "--steps", "2", "-o", file("nan.mp4")));
        if (checkpoint) command_add(&c, LIST("--checkpoint", file("nan.ckpt")));
        outcome o = command_run(&c);
        expect_code(&o, 65);
        if (!strstr(o.err, checkpoint ? "not finite after step 1" : "not finite after step 2")) fail_msg("%s", o.err);
        outcome_free(&o);
        assert_false(exists(file("nan.mp4")));
        assert_false(exists(file("nan.mp4.tmp")));
    }
}

/* A reader of the JSON lines that went away, or a full disk under them. */
static void standard_output_that_fails(void **state)
{
    (void)state;
    const command c = short_run(file("lost.mp4"), LIST("--json"));
    const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(full >= 0);
    assert_int_equal(command_wait(command_start(&c, full, -1)), 74);
    close(full);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    close(ends[0]); /* nobody reads */
    assert_int_equal(command_wait(command_start(&c, ends[1], -1)), 74);
    close(ends[1]);
    assert_false(exists(file("lost.mp4")));
    assert_false(exists(file("lost.mp4.tmp")));
}

/* With --json the failure is a line of JSON as well. */
static void failures_as_json(void **state)
{
    (void)state;
    outcome o = kinora(LIST("generate", "--json", "--model", "/no/such/\"model\"", "--prompt", "x"));
    expect_code(&o, 66);
    assert_string_equal(o.err, "");
    json_t *line = json_loads(o.out, 0, NULL);
    assert_non_null(line);
    assert_string_equal(json_string_value(json_object_get(line, "event")), "error");
    assert_string_equal(json_string_value(json_object_get(line, "status")), "not_found");
    assert_non_null(strstr(json_string_value(json_object_get(line, "message")), "/no/such/\"model\""));
    json_decref(line);
    outcome_free(&o);
}

/* ---- progress ---- */

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    if (!text) fail_msg("no text \"%s\"", key);
    return text;
}

static double number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("no number \"%s\"", key);
    return json_number_value(value);
}

static void check_start(const json_t *start)
{
    assert_string_equal(text_of(start, "event"), "start");
    assert_string_equal(text_of(start, "version"), KN_VERSION);
    assert_string_equal(text_of(start, "device"), "cpu");
    assert_string_equal(text_of(start, "precision"), "float32");
    assert_string_equal(text_of(start, "vae_precision"), "float32");
    assert_true(number_of(start, "threads") == 2);
    assert_true(number_of(start, "planned_bytes") > 1e6);
    const json_t *request = json_object_get(start, "request");
    assert_string_equal(text_of(request, "prompt"), "a blue cube");
    assert_string_equal(text_of(request, "seed"), "3");
    assert_true(number_of(request, "width") == 32 && number_of(request, "frames") == 5);
    assert_true(number_of(request, "steps") == 2);
}

static void check_done(const json_t *done)
{
    static const char *const kinds[] = {"load", "text", "denoise", "decode", "mux"};
    assert_string_equal(text_of(done, "event"), "done");
    assert_string_equal(text_of(done, "output"), file("json.mp4"));
    assert_true(number_of(done, "frames") == 5);
    assert_true(number_of(done, "seed") == 3);
    const json_t *seconds = json_object_get(done, "seconds");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const double value = number_of(seconds, kinds[i]);
        assert_true(value > 0.0 && value < 600.0);
    }
    const double planned = number_of(done, "planned_bytes"), peak = number_of(done, "allocated_peak_bytes");
    if (!(fabs(peak / planned - 1.0) <= 0.02)) fail_msg("planned %.0f bytes, allocated %.0f", planned, peak);
    assert_true(number_of(done, "resident_peak_bytes") > 0.0);
}

static void json_lines(void **state)
{
    (void)state;
    static const struct {
        const char *kind;
        int index, count;
    } slices[] = {{"text", 0, 1},   {"denoise", 0, 2}, {"denoise", 1, 2},
                  {"decode", 0, 2}, {"decode", 1, 2},  {"mux", 0, 1}};
    const command c = short_run(file("json.mp4"), LIST("--json", "--threads", "2"));
    listener l = listener_start(&c, file("err"));
    json_t *line = listener_next(&l);
    assert_non_null(line);
    check_start(line);
    json_decref(line);
    for (size_t i = 0; i < sizeof slices / sizeof *slices; i++) {
        line = listener_next(&l);
        assert_non_null(line);
        assert_string_equal(text_of(line, "event"), "slice");
        assert_string_equal(text_of(line, "kind"), slices[i].kind);
        assert_true(number_of(line, "index") == slices[i].index);
        assert_true(number_of(line, "count") == slices[i].count);
        assert_true(number_of(line, "seconds") >= 0.0 && number_of(line, "seconds") < 600.0);
        json_decref(line);
    }
    line = listener_next(&l);
    assert_non_null(line);
    check_done(line);
    json_decref(line);
    assert_null(listener_next(&l));
    assert_int_equal(listener_end(&l), 0);
    assert_true(exists(file("json.mp4")));
    assert_false(exists(file("json.mp4.tmp")));
}

/* In a log: a line a stage, and on standard output the name of the file alone. What was rounded is said. */
static void plain_lines(void **state)
{
    (void)state;
    outcome o = kinora(LIST("generate", "-m", SMALL, "-p", "x", "--size=40x33", "--seconds=0.2", "--steps", "2", "-o",
                            file("plain.mp4")));
    char expected[512];
    expect_code(&o, 0);
    snprintf(expected, sizeof expected, "%s\n", file("plain.mp4"));
    assert_string_equal(o.out, expected);
    static const char *const said[] = {"note: width 40 rounded to 32 (a multiple of 16)",
                                       "note: height 33 rounded to 32 (a multiple of 16)",
                                       "note: frames 3 rounded to 1 (4n + 1)",
                                       "32x32, 1 frames at 16 fps, 2 steps, guidance 5, seed ",
                                       "\ntext     1/1",
                                       "\ndenoise  2/2",
                                       "\ndecode   1/1",
                                       "memory planned "};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (!strstr(o.err, said[i])) fail_msg("not said: %s\n%s", said[i], o.err);
    assert_null(strchr(o.err, '\r'));
    outcome_free(&o);
}

/* ---- files ---- */

/* ffprobe's answer for one entry of the video stream; false where there is no ffprobe. */
static bool probe(const char *path, const char *entry, char *out, size_t bytes)
{
    char show[64];
    snprintf(show, sizeof show, "stream=%s", entry);
    const command c = command_of("ffprobe", LIST("-v", "error", "-count_frames", "-select_streams", "v:0",
                                                 "-show_entries", show, "-of", "csv=p=0", path));
    outcome o = command_run(&c);
    if (o.code == 127) {
        outcome_free(&o);
        return false;
    }
    expect_code(&o, 0);
    o.out[strcspn(o.out, ",\r\n")] = '\0';
    snprintf(out, bytes, "%s", o.out);
    outcome_free(&o);
    return true;
}

static void expect_probe(const char *path, const char *entry, const char *wanted)
{
    char got[64];
    if (!probe(path, entry, got, sizeof got)) return;
    if (strcmp(got, wanted) != 0) fail_msg("%s: %s is %s, expected %s", path, entry, got, wanted);
}

static void run_short(const char *output, const char *const *more)
{
    const command c = short_run(output, more);
    outcome o = command_run(&c);
    expect_code(&o, 0);
    outcome_free(&o);
}

static void every_container(void **state)
{
    (void)state;
    run_short(file("clip.mp4"), LIST("--fps", "24000/1001"));
    expect_probe(file("clip.mp4"), "nb_read_frames", "5");
    expect_probe(file("clip.mp4"), "r_frame_rate", "24000/1001");
    expect_probe(file("clip.mp4"), "width", "32");
    expect_probe(file("clip.mp4"), "pix_fmt", "yuv420p");
    expect_probe(file("clip.mp4"), "color_space", "bt709");
    run_short(file("clip.webm"), LIST("--fps", "16"));
    expect_probe(file("clip.webm"), "codec_name", "vp9");
    expect_probe(file("clip.webm"), "nb_read_frames", "5");
    run_short(file("clip.gif"), LIST("--fps", "10"));
    expect_probe(file("clip.gif"), "nb_read_frames", "5");
    run_short(file("frame-%02d.png"), LIST("--fps", "10"));
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "frame-%02d.png", i);
        assert_int_equal(exists(file(name)), i < 5);
    }
    expect_probe(file("frame-04.png"), "height", "32");
    static const char *const left[] = {"clip.mp4.tmp", "clip.webm.tmp", "clip.gif.tmp", "frame-00.png.tmp"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) assert_false(exists(file(left[i])));
}

static void preview_beside_the_output(void **state)
{
    (void)state;
    run_short(file("seen.mp4"), LIST("--preview"));
    run_short(file("unseen.mp4"), LIST("--threads", "1"));
    size_t bytes;
    char *picture = read_whole(file("seen.mp4.preview.png"), &bytes);
    assert_non_null(picture);
    assert_memory_equal(picture, "\x89PNG\r\n\x1a\n", 8);
    free(picture);
    expect_probe(file("seen.mp4.preview.png"), "width", "32");
    expect_same_file(file("seen.mp4"), file("unseen.mp4"));
}

/* Again, and on other numbers of threads: the same bytes. Another seed: others. */
static void equal_bytes(void **state)
{
    (void)state;
    static const char *const precisions[] = {"--precision=float32", "--precision=bfloat16"};
    for (int p = 0; p < 2; p++) {
        static const char *const names[] = {"same-a.mp4", "same-b.mp4", "same-c.mp4"};
        static const char *const threads[] = {"1", "1", "3"};
        for (int i = 0; i < 3; i++) {
            outcome o = kinora(LIST("generate", "-m", SMALL, "-p", "dawn", "--size", "48x32", "--frames", "9",
                                    "--steps", "3", "--seed", "18446744073709551615", precisions[p], "--threads",
                                    threads[i], "-o", file(names[i])));
            expect_code(&o, 0);
            outcome_free(&o);
        }
        expect_same_file(file("same-a.mp4"), file("same-b.mp4"));
        expect_same_file(file("same-a.mp4"), file("same-c.mp4"));
    }
}

/* --dump: the names and shapes of the fixture, and its values within the bound of the frames. */
static void dump_is_the_fixture(void **state)
{
    (void)state;
    outcome o = kinora(LIST("generate", "--model", SMALL, "--prompt", "two basketball players at dawn", "-n",
                            "slow motion", "--size", "32x48", "--frames", "13", "--steps", "10", "-g", "6", "-s", "7",
                            "--sampler", "unipc", "--shift", "5", "--precision", "float32", "--dump",
                            file("dump.safetensors"), "-o", file("dump.mp4")));
    expect_code(&o, 0);
    outcome_free(&o);
    kn_weights *dump = NULL, *expected = NULL;
    assert_int_equal(kn_weights_open_file(&dump, file("dump.safetensors")), KN_OK);
    assert_int_equal(kn_weights_open_file(&expected, KN_SOURCE_DIR "/tests/golden/wan21-small/expected.safetensors"),
                     KN_OK);
    size_t matched = 0;
    for (size_t i = 0; i < kn_weights_count(expected); i++) {
        const kn_weights_entry entry = kn_weights_entry_at(expected, i);
        kn_tensor got, wanted;
        if (strncmp(entry.name, "request1.", 9) != 0) continue;
        assert_int_equal(kn_weights_find(expected, entry.name, &wanted), KN_OK);
        if (kn_weights_find(dump, entry.name + 9, &got) != KN_OK) fail_msg("the dump has no %s", entry.name + 9);
        assert_int_equal(got.dtype, KN_F32);
        assert_int_equal(got.rank, wanted.rank);
        assert_memory_equal(got.shape, wanted.shape, (size_t)wanted.rank * sizeof *wanted.shape);
        const float *a = got.data, *b = wanted.data;
        for (int64_t j = 0; j < kn_tensor_count(&wanted); j++)
            if (!(fabsf(a[j] - b[j]) <= 2e-3f * fmaxf(1.0f, fabsf(b[j]))))
                fail_msg("%s[%d] is %g, expected %g", entry.name, (int)j, a[j], b[j]);
        matched++;
    }
    assert_int_equal(matched, 8);
    assert_int_equal(kn_weights_count(dump), matched);
    kn_weights_close(&dump);
    kn_weights_close(&expected);
}

/* ---- interruptions ---- */

typedef struct job {
    const char *model, *sampler;
    int slices; /* lines of an undisturbed run, "start" included */
} job;

static const job jobs[] = {{HEAD128, "unipc", 1 + 1 + 3 + 3 + 1}, {SMALL, "euler", 1 + 1 + 3 + 3 + 1}};

static command job_run(const job *j, const char *output, const char *const *more)
{
    command c = command_of(KN_KINORA, LIST("generate", "--json", "--model", j->model, "--prompt", "a cat", "--sampler",
                                           j->sampler, "--size", "64x48", "--frames", "9", "--steps", "3", "--seed",
                                           "11", "--precision", "float32", "--output", output));
    command_add(&c, more);
    return c;
}

static command job_resume(const job *j, const char *output, const char *checkpoint)
{
    return command_of(KN_KINORA, LIST("generate", "--json", "--model", j->model, "--resume", checkpoint, "--precision",
                                      "float32", "--threads", "1", "-o", output));
}

static void run_quietly(const command *c)
{
    outcome o = command_run(c);
    expect_code(&o, 0);
    outcome_free(&o);
}

/* Line `n` of an undisturbed run of a job: start, then its slices in order. */
static void expect_line(const json_t *line, int n)
{
    static const struct {
        const char *kind;
        int index;
    } slices[] = {{"text", 0},   {"denoise", 0}, {"denoise", 1}, {"denoise", 2},
                  {"decode", 0}, {"decode", 1},  {"decode", 2},  {"mux", 0}};
    assert_string_equal(text_of(line, "event"), n == 0 ? "start" : "slice");
    if (n == 0) return;
    assert_true((size_t)n <= sizeof slices / sizeof *slices);
    assert_string_equal(text_of(line, "kind"), slices[n - 1].kind);
    assert_true(number_of(line, "index") == slices[n - 1].index);
}

/* Reads the first `lines` lines and leaves the process one line ahead at most. */
static void listen(listener *l, int lines)
{
    for (int i = 0; i < lines; i++) {
        json_t *object = listener_next(l);
        assert_non_null(object);
        json_decref(object);
    }
}

/* The last line; those before it, from line *n on, are slices. *n becomes its number. */
static json_t *last_line(listener *l, int *n)
{
    json_t *last = listener_next(l);
    assert_non_null(last);
    for (json_t *line; (line = listener_next(l)); ++*n) {
        expect_line(last, *n);
        json_decref(last);
        last = line;
    }
    return last;
}

/* Killed after each line in turn; what is under the final name is whole or not there, and another process goes on to
 * the same bytes. */
static void killed_at_every_slice(void **state)
{
    (void)state;
    for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++) {
        command c = job_run(&jobs[j], file("whole.mp4"), LIST("--threads", "2"));
        run_quietly(&c);
        for (int k = 1; k <= jobs[j].slices; k++) {
            unlink(file("killed.mp4"));
            unlink(file("killed.ckpt"));
            c = job_run(&jobs[j], file("killed.mp4"), LIST("--checkpoint", file("killed.ckpt")));
            listener l = listener_start(&c, file("err"));
            listen(&l, k);
            assert_int_equal(kill(l.id, SIGKILL), 0);
            const int code = listener_end(&l);
            if (l.paced && k < jobs[j].slices - 1) assert_int_equal(code, -SIGKILL); /* not two lines ahead */
            if (exists(file("killed.mp4"))) {
                assert_true(!l.paced || k >= jobs[j].slices - 2);
                expect_same_file(file("killed.mp4"), file("whole.mp4"));
            }
            if (k >= 2) assert_true(exists(file("killed.ckpt"))); /* a slice is told after its checkpoint is written */
            if (exists(file("killed.ckpt"))) c = job_resume(&jobs[j], file("killed.mp4"), file("killed.ckpt"));
            run_quietly(&c);
            expect_same_file(file("killed.mp4"), file("whole.mp4"));
            assert_false(exists(file("killed.mp4.tmp")));
        }
    }
}

/* Killed again and again: each process gets a little further. */
static void killed_every_time(void **state)
{
    (void)state;
    const job *j = &jobs[0];
    command c = job_run(j, file("whole.mp4"), LIST("--threads", "2"));
    run_quietly(&c);
    c = job_run(j, file("often.mp4"), LIST("--checkpoint", file("often.ckpt")));
    for (int round = 0; round < 3; round++) {
        listener l = listener_start(&c, file("err"));
        listen(&l, 3); /* start, text, one denoise step */
        assert_int_equal(kill(l.id, SIGKILL), 0);
        const int code = listener_end(&l);
        assert_true(code == -SIGKILL || !l.paced);
        c = job_resume(j, file("often.mp4"), file("often.ckpt"));
    }
    run_quietly(&c);
    expect_same_file(file("often.mp4"), file("whole.mp4"));
}

/* The lines of an interrupted process end in how to go on, and tell every step that its checkpoint holds. */
static void expect_interrupted(listener *l, int lines)
{
    json_t *last = last_line(l, &lines);
    kn_checkpoint checkpoint;
    assert_string_equal(text_of(last, "event"), "error");
    assert_string_equal(text_of(last, "status"), "cancelled");
    assert_non_null(strstr(text_of(last, "message"), "to go on: kinora generate --model "));
    assert_non_null(strstr(text_of(last, "message"), file("stop.ckpt")));
    json_decref(last);
    assert_int_equal(kn_checkpoint_load(&checkpoint, file("stop.ckpt")), KN_OK);
    const int told = lines - 2; /* besides start and text */
    assert_int_equal(checkpoint.next_step, told < 0 ? 0 : told > 3 ? 3 : told);
    kn_checkpoint_release(&checkpoint);
    assert_false(exists(file("stop.mp4")));
    assert_false(exists(file("stop.mp4.tmp")));
}

/* Ctrl-C: the running slice ends, then the process, with 130 and no partial output. */
static void interrupted_at_every_slice(void **state)
{
    (void)state;
    const job *j = &jobs[0];
    command c = job_run(j, file("whole.mp4"), LIST("--threads", "2"));
    run_quietly(&c);
    for (int k = 1; k < j->slices - 2; k++) { /* later ones can meet a process that has finished the file */
        unlink(file("stop.ckpt"));
        unlink(file("stop.mp4"));
        c = job_run(j, file("stop.mp4"), LIST("--checkpoint", file("stop.ckpt")));
        listener l = listener_start(&c, file("err"));
        listen(&l, k);
        if (k % 2) usleep(50000); /* by now it waits to write a line, which the signal must not cost us */
        assert_int_equal(kill(l.id, k % 2 ? SIGINT : SIGTERM), 0);
        if (k % 2) usleep(50000); /* let it see the signal before it sees room in the pipe */
        if (l.paced) expect_interrupted(&l, k);
        const int code = listener_end(&l);
        if (l.paced && code != 130) fail_msg("after line %d: exit code %d", k, code);
        if (code == 130) c = job_resume(j, file("stop.mp4"), file("stop.ckpt"));
        run_quietly(&c);
        expect_same_file(file("stop.mp4"), file("whole.mp4"));
    }
}

/* Without --checkpoint there is nothing to go on from, and that is said. */
static void interrupted_without_checkpoint(void **state)
{
    (void)state;
    const command c = job_run(&jobs[0], file("lost.mp4"), LIST("--threads", "1"));
    listener l = listener_start(&c, file("err"));
    listen(&l, 2);
    assert_int_equal(kill(l.id, SIGINT), 0);
    int lines = 2;
    json_t *last = last_line(&l, &lines);
    assert_int_equal(listener_end(&l), 130);
    assert_non_null(strstr(text_of(last, "message"), "interrupted; nothing was kept"));
    json_decref(last);
    assert_false(exists(file("lost.mp4")));
    assert_false(exists(file("lost.mp4.tmp")));
}

/* A checkpoint of another model or precision is refused before anything is written. */
static void foreign_checkpoints(void **state)
{
    (void)state;
    command c = short_run(file("own.mp4"), LIST("--checkpoint", file("own.ckpt")));
    run_quietly(&c);
    outcome o = kinora(LIST("generate", "--model", HEAD128, "--resume", file("own.ckpt"), "--precision", "float32",
                            "-o", file("foreign.mp4")));
    expect_code(&o, 65);
    assert_non_null(strstr(o.err, "whose bytes would differ"));
    outcome_free(&o);
    o = kinora(LIST("generate", "--model", SMALL, "--resume", file("own.ckpt"), "--precision", "bfloat16", "-o",
                    file("foreign.mp4")));
    expect_code(&o, 65);
    assert_non_null(strstr(o.err, "bfloat16"));
    outcome_free(&o);
    assert_false(exists(file("foreign.mp4")));
    assert_false(exists(file("foreign.mp4.tmp")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_and_version),
        cmocka_unit_test(wrong_options),
        cmocka_unit_test(wrong_requests),
        cmocka_unit_test(unwritable_files),
        cmocka_unit_test(missing_and_broken_input),
        cmocka_unit_test(weights_that_are_not_finite),
        cmocka_unit_test(standard_output_that_fails),
        cmocka_unit_test(failures_as_json),
        cmocka_unit_test(json_lines),
        cmocka_unit_test(plain_lines),
        cmocka_unit_test(every_container),
        cmocka_unit_test(preview_beside_the_output),
        cmocka_unit_test(equal_bytes),
        cmocka_unit_test(dump_is_the_fixture),
        cmocka_unit_test(killed_at_every_slice),
        cmocka_unit_test(killed_every_time),
        cmocka_unit_test(interrupted_at_every_slice),
        cmocka_unit_test(interrupted_without_checkpoint),
        cmocka_unit_test(foreign_checkpoints),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
