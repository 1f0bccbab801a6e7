/* SPDX-License-Identifier: Apache-2.0
 *
 * kinora generate: one prompt, one file. Opens the model, resolves the request,
 * runs slices until done; between two slices it looks for an interrupt, saves a
 * checkpoint and reports. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/dump.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/ranks.h"
#include "engine/generation.h"
#include "engine/media.h"

typedef struct settings {
    const char *model, *output, *device, *isa, *encoder, *checkpoint, *resume, *dump;
    kn_precision precision, vae_precision;
    kn_cli_devices devices; /* several; or none given */
    int32_t threads, crf;
    double seconds; /* of video; 0: not given */
    bool json, preview, has_seed, has_seconds, verbose;
    bool request_given; /* an option that a resumed request fixes already */
    kn_request request;
} settings;

typedef struct run {
    const settings *s;
    kn_device *device;
    kn_model *model;
    kn_request request; /* resolved */
    kn_memory_plan plan;
    uint64_t media_bytes; /* what the video encoder is expected to hold */
    kn_media_writer *media;
    kn_generation *generation;
    kn_ranks *ranks; /* NULL: on one device */
    int32_t lost;    /* times the ranks had to be replaced */
    kn_dump dump;
    kn_progress progress;
    double load_seconds;
    int64_t previewed_ns;
} run;

/* ---- options ---- */

static kn_status parse_prompt(const kn_option *option, const char *text)
{
    char **out = option->out;
    kn_free(*out);
    *out = kn_strdup(text);
    return *out ? KN_OK : KN_NOMEM;
}

static kn_status parse_size(const kn_option *option, const char *text)
{
    kn_request *r = option->out;
    kn_cli_extent size;
    kn_status st = kn_cli_size(&(kn_option){.name = option->name, .out = &size}, text);
    if (st != KN_OK) return st;
    r->width = size.width;
    r->height = size.height;
    return KN_OK;
}

/* "24", "23.976" or "24000/1001". */
static kn_status parse_fps(const kn_option *option, const char *text)
{
    kn_request *r = option->out;
    if (kn_cli_pair(text, '/', &r->fps_numerator, &r->fps_denominator)) return KN_OK;
    double value;
    kn_status st = kn_cli_double(&(kn_option){.name = option->name, .out = &value}, text);
    if (st != KN_OK) return st;
    if (!(value > 0.0 && value <= KN_FPS_MAX))
        return kn_fail(KN_INVALID, "--fps is \"%s\"; it must be above 0 and at most %d", text, KN_FPS_MAX);
    r->fps_denominator = value == floor(value) ? 1 : 1000;
    r->fps_numerator = (int32_t)lround(value * r->fps_denominator);
    return KN_OK;
}

static kn_status parse_sampler(const kn_option *option, const char *text)
{
    kn_request *r = option->out;
    if (strcmp(text, "unipc") != 0 && strcmp(text, "euler") != 0)
        return kn_fail(KN_INVALID, "--sampler is \"%s\"; it must be unipc or euler", text);
    r->sampler = strcmp(text, "euler") == 0 ? KN_SAMPLER_EULER : KN_SAMPLER_UNIPC;
    r->has_sampler = true;
    return KN_OK;
}

static kn_status parse_sigmas(const kn_option *option, const char *text)
{
    kn_request *r = option->out;
    r->sigma_count = 0;
    for (const char *at = text;; at++) {
        char *end;
        if (r->sigma_count == KN_STEPS_MAX)
            return kn_fail(KN_INVALID, "--sigmas has more than %d values", KN_STEPS_MAX);
        r->sigmas[r->sigma_count++] = strtod(at, &end);
        if (end == at || (*end && *end != ','))
            return kn_fail(KN_INVALID, "--sigmas is \"%s\"; it must be numbers separated by commas", text);
        if (!*end) return KN_OK;
        at = end;
    }
}

static kn_status parse_settings(settings *s, int argc, char **argv)
{
    kn_request *r = &s->request;
    bool *fixed = &s->request_given;
    const kn_option options[] = {
        {"model", 'm', "DIR", "model folder in diffusers layout (required)", kn_cli_text, &s->model, NULL},
        {"prompt", 'p', "TEXT", "what to show (required unless resuming)", parse_prompt, &r->prompt, fixed},
        {"negative-prompt", 'n', "TEXT", "what to avoid; default none", parse_prompt, &r->negative_prompt, fixed},
        {"size", 0, "WxH", "pixels; rounded down to a multiple of 16", parse_size, r, fixed},
        {"frames", 0, "N", "video frames; rounded to 4n + 1", kn_cli_int32, &r->frames, fixed},
        {"seconds", 0, "S", "length instead of frames", kn_cli_double, &s->seconds, &s->has_seconds},
        {"fps", 0, "R", "frames per second: 16, 23.976 or 24000/1001", parse_fps, r, fixed},
        {"steps", 0, "N", "denoise steps", kn_cli_int32, &r->steps, fixed},
        {"guidance", 'g', "G", "guidance scale; 1 or less switches it off", kn_cli_double, &r->guidance, fixed},
        {"seed", 's', "N", "default: a random one, which is reported", kn_cli_uint64, &r->seed, &s->has_seed},
        {"sampler", 0, "NAME", "unipc or euler; default the model's", parse_sampler, r, fixed},
        {"shift", 0, "X", "shift of the noise levels", kn_cli_double, &r->shift, fixed},
        {"sigmas", 0, "A,B,C", "explicit noise levels, decreasing, in (0, 1]", parse_sigmas, r, fixed},
        {"precision", 0, "TYPE", "auto, float32 or bfloat16", kn_cli_precision, &s->precision, NULL},
        {"vae-precision", 0, "TYPE", "the same for the autoencoder; auto is float32", kn_cli_precision,
         &s->vae_precision, NULL},
        {"device", 0, "NAME", "auto (a GPU, else the CPU), cpu or cuda:N", kn_cli_text, &s->device, NULL},
        {"devices", 0, "LIST", "several that share the work: cpu:N, cuda:A-B or cuda:A,B", kn_cli_parse_devices,
         &s->devices, NULL},
        {"threads", 0, "N", "CPU threads; default all cores", kn_cli_int32, &s->threads, NULL},
        {"isa", 0, "TIER", "highest CPU tier: ref, avx2, avx512, avx512bf16", kn_cli_text, &s->isa, NULL},
        {"output", 'o', "FILE", "out.mp4, .webm, .gif or frame-%04d.png; default out.mp4", kn_cli_text, &s->output,
         NULL},
        {"encoder", 0, "NAME", "video encoder; default the container's first available", kn_cli_text, &s->encoder,
         NULL},
        {"crf", 0, "N", "quality on the encoder's own scale", kn_cli_int32, &s->crf, NULL},
        {"checkpoint", 0, "FILE", "save the state here after every denoise step", kn_cli_text, &s->checkpoint, NULL},
        {"resume", 0, "FILE", "go on from a checkpoint; its request stands", kn_cli_text, &s->resume, NULL},
        {"dump", 0, "FILE", "write intermediate tensors (safetensors)", kn_cli_text, &s->dump, NULL},
        {"preview", 0, NULL, "keep a PNG of the first frame up to date beside the output", kn_cli_switch, &s->preview,
         NULL},
        {"json", 0, NULL, "JSON lines on standard output", kn_cli_switch, &s->json, NULL},
        {"verbose", 'v', NULL, "more messages", kn_cli_switch, &s->verbose, NULL},
    };
    return kn_cli_parse(argc, argv, options, sizeof options / sizeof *options,
                        "generate --model DIR --prompt TEXT [OPTIONS]", NULL, 0, NULL);
}

/* A file that is written late must not turn out impossible after the work. */
static kn_status check_writable(const char *option, const char *path)
{
    kn_status st = KN_OK;
    struct stat there;
    if (!path) return KN_OK;
    const char *slash = strrchr(path, '/');
    char *folder = slash == path ? kn_strdup("/") : slash ? kn_strndup(path, (size_t)(slash - path)) : kn_strdup(".");
    if (!folder) return KN_NOMEM;
    if (stat(path, &there) == 0 && !S_ISREG(there.st_mode))
        st = kn_fail(KN_INVALID, "--%s %s: is there and is not a regular file; it is not replaced", option, path);
    else if (access(folder, W_OK | X_OK) != 0)
        st = kn_fail(KN_IO, "--%s %s: cannot be written: %s", option, path, strerror(errno));
    kn_free(folder);
    return st;
}

static kn_status check_settings(settings *s)
{
    kn_status st = KN_OK;
    if (!s->model) return kn_fail(KN_INVALID, "--model is missing");
    if (!s->output) s->output = "out.mp4";
    if (s->device && s->devices.count > 0) return kn_fail(KN_INVALID, "--device and --devices say the same; give one");
    if (s->devices.count > 0) s->device = s->devices.name[0];
    if (!s->device) s->device = s->isa ? "cpu" : "auto"; /* tiers are named for a device that is named, or the CPU */
    s->threads = kn_ranks_threads(&s->devices, s->threads);
    KN_TRY(check_writable("output", s->output));
    KN_TRY(check_writable("checkpoint", s->checkpoint));
    KN_TRY(check_writable("dump", s->dump));
    const char *const files[] = {s->output, s->checkpoint, s->dump};
    for (int i = 0; i < 3; i++)
        for (int j = i + 1; j < 3; j++)
            if (files[i] && files[j] && strcmp(files[i], files[j]) == 0)
                return kn_fail(KN_INVALID, "%s is named for two files; each needs its own", files[i]);
    if (s->resume) {
        if (s->request_given || s->has_seed || s->has_seconds)
            return kn_fail(KN_INVALID, "--resume continues a saved request; only output and device options go with it");
        if (s->dump) return kn_fail(KN_INVALID, "--dump needs every step and does not go with --resume");
        if (!s->checkpoint) s->checkpoint = s->resume;
        return KN_OK;
    }
    if (!s->request.prompt) return kn_fail(KN_INVALID, "--prompt is missing");
    if (s->has_seconds && s->request.frames != 0)
        return kn_fail(KN_INVALID, "--frames and --seconds say the same; give one");
    if (s->has_seconds && !(s->seconds > 0.0 && s->seconds <= 3600.0))
        return kn_fail(KN_INVALID, "--seconds is %g; it must be above 0 and at most 3600", s->seconds);
    if (!s->has_seed && getrandom(&s->request.seed, sizeof(uint32_t), 0) != sizeof(uint32_t))
        return kn_fail(KN_IO, "no random seed could be had; give --seed");
fail:
    return st;
}

/* ---- sinks ---- */

static kn_status on_frame(void *context, int64_t index, const float *planes)
{
    kn_status st = KN_OK;
    run *r = context;
    const int64_t plane = (int64_t)r->request.width * r->request.height;
    KN_TRY(kn_media_write(r->media, planes, plane));
    if (r->s->dump) KN_TRY(kn_dump_frame(&r->dump, index, planes));
fail:
    return st;
}

static kn_status on_picture(void *context, int64_t index, const uint8_t *rgb)
{
    (void)index;
    const run *r = context;
    return kn_media_write_rgb(r->media, rgb);
}

static kn_status on_finish(void *context)
{
    run *r = context;
    return kn_media_finish(&r->media);
}

/* ---- set-up ---- */

static kn_status open_model(run *r)
{
    kn_status st = KN_OK;
    const settings *s = r->s;
    const int64_t start = kn_clock_ns();
    KN_TRY(kn_device_open(&r->device, &(kn_device_params){.name = s->device, .threads = s->threads, .isa = s->isa}));
    KN_TRY(kn_model_open(&r->model, &(kn_model_params){.directory = s->model,
                                                       .device = r->device,
                                                       .precision = s->precision,
                                                       .vae_precision = s->vae_precision}));
    if (s->devices.count > 1)
        KN_TRY(kn_ranks_start(&r->ranks, &(kn_ranks_params){.devices = &s->devices,
                                                            .model = r->model,
                                                            .directory = s->model,
                                                            .precision = s->precision,
                                                            .vae_precision = s->vae_precision,
                                                            .isa = s->isa,
                                                            .threads = s->threads}));
    r->load_seconds = kn_clock_seconds(kn_clock_ns() - start);
fail:
    return st;
}

static void print_note(const run *r, const char *text)
{
    if (r->s->json) {
        printf("{\"event\":\"note\",\"message\":");
        kn_cli_put_json_string(stdout, text);
        printf("}\n");
    } else {
        fprintf(stderr, "note: %s\n", text);
    }
}

static kn_status resolve(run *r)
{
    kn_status st = KN_OK;
    settings *s = (settings *)(uintptr_t)r->s;
    kn_request_notes notes = {0};
    if (s->resume) {
        KN_TRY(kn_generation_saved_request(&r->request, s->resume));
    } else {
        r->request = s->request; /* takes the strings */
        s->request.prompt = s->request.negative_prompt = NULL;
    }
    if (s->seconds > 0.0) {
        kn_request rate = r->request; /* the rate may be the model's default */
        rate.frames = 1;
        rate.negative_prompt = NULL;
        KN_TRY(kn_request_resolve(&rate, kn_model_repository(r->model), NULL));
        kn_free(rate.negative_prompt);
        double frames = s->seconds * rate.fps_numerator / rate.fps_denominator;
        r->request.frames = frames < 1.0 ? 1 : frames > INT32_MAX ? INT32_MAX : (int32_t)lround(frames);
    }
    KN_TRY(kn_request_resolve(&r->request, kn_model_repository(r->model), &notes));
    for (int i = 0; i < notes.count; i++) print_note(r, notes.text[i]);
fail:
    return st;
}

static kn_status open_media(run *r)
{
    kn_status st = KN_OK;
    const settings *s = r->s;
    const char *name = strrchr(s->model, '/') && strrchr(s->model, '/')[1] ? strrchr(s->model, '/') + 1 : s->model;
    kn_device_info info;
    kn_device_describe(r->device, &info);
    char *comment = kn_format("Kinora " KN_VERSION ", model %s, seed %" PRIu64 ", %d steps, guidance %g, %s %s", name,
                              r->request.seed, r->request.steps, r->request.guidance, info.tier,
                              kn_cli_type_name(kn_model_compute(r->model, KN_TRANSFORMER)));
    if (!comment) return KN_NOMEM;
    const kn_media_params params = {.path = s->output,
                                    .encoder = s->encoder,
                                    .width = r->request.width,
                                    .height = r->request.height,
                                    .fps_numerator = r->request.fps_numerator,
                                    .fps_denominator = r->request.fps_denominator,
                                    .crf = s->crf,
                                    .title = r->request.prompt,
                                    .comment = comment};
    const char *extension = strrchr(s->output, '.');
    if (extension && strcmp(extension, ".png") == 0 && !strchr(s->output, '%') && r->request.frames > 1)
        KN_TRY(kn_fail(KN_INVALID,
                       "--output %s is one picture and there are %d frames; a pattern such as "
                       "frame-%%04d.png takes them",
                       s->output, r->request.frames));
    KN_TRY(kn_model_plan(r->model, &r->request, &r->plan));
    r->media_bytes = kn_media_bytes(&params);
    KN_TRY(kn_media_open(&r->media, &params));
fail:
    kn_free(comment);
    return st;
}

static kn_status open_generation(run *r)
{
    kn_status st = KN_OK;
    const settings *s = r->s;
    const kn_frame_sink sink = {/* a dump wants floats */
                                .context = r,
                                .frame = on_frame,
                                .picture = s->dump ? NULL : on_picture,
                                .finish = on_finish};
    if (s->resume) return kn_generation_resume(&r->generation, r->model, s->resume, &sink, NULL);
    kn_tensor_tap tap = {0};
    if (s->dump) {
        KN_TRY(kn_dump_create(&r->dump, &r->request, kn_model_repository(r->model)));
        tap = kn_dump_tap(&r->dump);
    }
    KN_TRY(kn_generation_create(&r->generation, r->model, &r->request, &sink, &tap));
fail:
    return st;
}

static kn_status print_start(const run *r)
{
    kn_status st = KN_OK;
    kn_device_info info;
    char *request = NULL, planned[16], media[16];
    const kn_request *q = &r->request;
    kn_device_describe(r->device, &info);
    if (r->s->json) {
        KN_TRY(kn_request_to_json(&request, q));
        printf("{\"event\":\"start\",\"version\":\"" KN_VERSION "\",\"device\":\"%s\",\"tier\":\"%s\",\"threads\":%d,"
               "\"ranks\":%d,"
               "\"precision\":\"%s\",\"vae_precision\":\"%s\",\"planned_bytes\":%" PRIu64
               ",\"planned_media_bytes\":%" PRIu64 ",\"request\":%s}\n",
               info.name, info.tier, info.threads, kn_model_group(r->model)->size,
               kn_cli_type_name(kn_model_compute(r->model, KN_TRANSFORMER)),
               kn_cli_type_name(kn_model_compute(r->model, KN_VAE)), r->plan.peak, r->media_bytes, request);
        fflush(stdout);
    } else {
        fprintf(stderr, "%s: %s, %s, %d thread%s, %s", info.name, info.description, info.tier, info.threads,
                info.threads == 1 ? "" : "s", kn_cli_type_name(kn_model_compute(r->model, KN_TRANSFORMER)));
        if (r->ranks) fprintf(stderr, ", on each of %d ranks", kn_model_group(r->model)->size);
        fputc('\n', stderr);
        fprintf(stderr,
                "%dx%d, %d frames at %g fps, %d steps, guidance %g, seed %" PRIu64
                "; memory planned %s, video encoder about %s\n",
                q->width, q->height, q->frames, (double)q->fps_numerator / q->fps_denominator, q->steps, q->guidance,
                q->seed, kn_cli_bytes(planned, r->plan.peak), kn_cli_bytes(media, r->media_bytes));
    }
fail:
    kn_free(request);
    return st;
}

/* ---- the run ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

/* The first interrupt is taken between slices; a second one ends the process at once. */
static void catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is a failed write, found in check_stdout */
}

/* Whoever reads the JSON lines must not be told less than happened. */
static kn_status check_stdout(void)
{
    return ferror(stdout) ? kn_fail(KN_IO, "standard output cannot be written") : KN_OK;
}

/* out.mp4 -> out.mp4.preview.png, at most every two seconds. */
static kn_status write_preview(run *r, kn_slice slice)
{
    kn_status st = KN_OK;
    const int64_t now = kn_clock_ns();
    const bool last = slice.index + 1 == slice.count;
    if (!last && r->previewed_ns != 0 && now - r->previewed_ns < INT64_C(2000000000)) return KN_OK;
    r->previewed_ns = now;
    const int64_t plane = (int64_t)r->request.width * r->request.height;
    float *planes = kn_alloc_array((size_t)plane * 3, sizeof *planes);
    char *path = kn_format("%s.preview.png", r->s->output);
    if (!planes || !path) {
        st = KN_NOMEM;
        goto fail;
    }
    KN_TRY(kn_generation_preview(r->generation, planes));
    KN_TRY(kn_media_write_png(path, planes, plane, r->request.width, r->request.height));
fail:
    kn_free(planes);
    kn_free(path);
    return st;
}

static kn_status stop_here(run *r)
{
    kn_progress_break(&r->progress);
    if (r->s->checkpoint) {
        kn_status st = kn_generation_save(r->generation, r->s->checkpoint); /* there is none before the first slice */
        if (st != KN_OK) return st;
        return kn_fail(KN_CANCELLED, "interrupted; to go on: kinora generate --model %s --resume %s -o %s", r->s->model,
                       r->s->checkpoint, r->s->output);
    }
    return kn_fail(KN_CANCELLED, "interrupted; nothing was kept (--checkpoint FILE would keep the steps done)");
}

static kn_status run_slices(run *r)
{
    kn_status st = KN_OK;
    for (kn_slice slice; (slice = kn_generation_next(r->generation)).kind != KN_SLICE_DONE;) {
        if (interrupted) return stop_here(r);
        const int64_t start = kn_clock_ns();
        KN_TRY(r->ranks ? kn_ranks_step(r->ranks, r->generation, &r->lost) : kn_generation_step(&r->generation, 1));
        const double seconds = kn_clock_seconds(kn_clock_ns() - start);
        if (r->s->checkpoint && (slice.kind == KN_SLICE_TEXT || slice.kind == KN_SLICE_DENOISE))
            KN_TRY(kn_generation_save(r->generation, r->s->checkpoint));
        kn_cli_resident_peak();
        kn_progress_slice(&r->progress, slice, seconds);
        KN_TRY(check_stdout());
        if (r->s->preview && slice.kind == KN_SLICE_DENOISE) KN_TRY(write_preview(r, slice));
    }
    if (r->s->dump) KN_TRY(kn_dump_write(&r->dump, r->s->dump));
fail:
    kn_progress_break(&r->progress);
    return st;
}

/* To other ranks, by this one. */
static uint64_t bytes_sent(const run *r)
{
    uint64_t sum = 0;
    if (!r->ranks) return 0;
    const kn_comm_stats stats = kn_ranks_stats(r->ranks);
    for (int i = 0; i < KN_COMM_KINDS; i++) sum += stats.sent[i];
    return sum;
}

static void print_end(const run *r)
{
    const kn_progress *p = &r->progress;
    const kn_mem_stats memory = kn_mem_read();
    const uint64_t resident = kn_cli_resident_peak(), sent = bytes_sent(r);
    if (r->s->json) {
        printf("{\"event\":\"done\",\"output\":");
        kn_cli_put_json_string(stdout, r->s->output);
        printf(",\"frames\":%d,\"seed\":%" PRIu64 ",\"seconds\":{\"load\":%.6f", r->request.frames, r->request.seed,
               r->load_seconds);
        for (int i = 0; i < KN_SLICE_DONE; i++) printf(",\"%s\":%.6f", kn_slice_name((kn_slice_kind)i), p->seconds[i]);
        printf("},\"planned_bytes\":%" PRIu64 ",\"allocated_peak_bytes\":%" PRIu64 ",\"resident_peak_bytes\":%" PRIu64
               ",\"lost_ranks\":%d,\"sent_bytes\":%" PRIu64 "}\n",
               r->plan.peak, memory.peak_bytes, resident, r->lost, sent);
        fflush(stdout);
        return;
    }
    char planned[16], peak[16], held[16], given[16];
    fprintf(stderr, "load %.2f s", r->load_seconds);
    for (int i = 0; i < KN_SLICE_DONE; i++)
        if (p->slices[i] > 0) fprintf(stderr, ", %s %.2f s", kn_slice_name((kn_slice_kind)i), p->seconds[i]);
    fprintf(stderr, "; memory planned %s, allocated %s, resident %s\n", kn_cli_bytes(planned, r->plan.peak),
            kn_cli_bytes(peak, memory.peak_bytes), kn_cli_bytes(held, resident));
    if (r->ranks)
        fprintf(stderr, "sent to other ranks %s, ranks replaced %d times\n", kn_cli_bytes(given, sent), r->lost);
    printf("%s\n", r->s->output);
}

static kn_status generate(run *r)
{
    kn_status st = KN_OK;
    catch_interrupts(); /* before the output's temporary file exists */
    KN_TRY(open_model(r));
    KN_TRY(resolve(r));
    KN_TRY(open_media(r));
    KN_TRY(print_start(r));
    KN_TRY(open_generation(r));
    KN_TRY(run_slices(r));
    print_end(r);
    fflush(stdout);
    KN_TRY(check_stdout());
fail:
    kn_ranks_stop(&r->ranks);
    kn_generation_destroy(&r->generation);
    kn_media_abandon(&r->media);
    kn_dump_destroy(&r->dump);
    kn_request_release(&r->request);
    kn_model_close(&r->model);
    kn_device_close(&r->device);
    return st;
}

int kn_cli_generate(int argc, char **argv)
{
    kn_status st;
    settings s = {.request = kn_request_empty()};
    st = parse_settings(&s, argc, argv);
    if (st == KN_CANCELLED) { /* --help */
        kn_request_release(&s.request);
        return 0;
    }
    kn_log_configure(s.verbose ? KN_LOG_DEBUG : KN_LOG_WARNING, s.json);
    if (st == KN_OK) st = check_settings(&s);
    if (st == KN_OK) {
        run r = {.s = &s, .request = kn_request_empty(), .progress = kn_progress_start(s.json)};
        st = generate(&r);
    }
    kn_request_release(&s.request);
    return kn_cli_end(st, s.json);
}
