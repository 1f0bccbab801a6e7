/* SPDX-License-Identifier: Apache-2.0
 *
 * A runner's backend without a device: a script of durations and accidents, for tests, demonstrations and campaigns of
 * faults. Everything else is real: requests are resolved against the model's folder, the state is a chain of hashes
 * over the request and the steps done, checkpoints carry it and are refused when they do not add up, and the video, 64
 * pixels wide, is drawn from the last hash. So equal requests give equal files, however often they were interrupted.
 *
 *   fake:OPTION,OPTION,...      times in milliseconds, slices counted from 1 in each process; a slice of a group takes
 *                               as many parts of its time as it has devices
 *   text_ms= step_ms= decode_ms= mux_ms= load_ms=   how long these take; 0
 *   pack_ms=      and for each further job of the slice; 0
 *   slow=xN       all of them N times
 *   memory_mb=    what the device says it has; 8192
 *   domain=N      it can share slices with other devices of domain N; 0: with none
 *   seed=         of the random accidents; 1
 *   crash_ppm=    chance of a crash in each slice, in millionths; 0
 *   crash_at=N    abort in slice N
 *   hang_at=N     slice N never ends
 *   stop_at=N     the whole process stops in slice N (SIGSTOP)
 *   oom_at=N      slice N is out of memory
 *   nan_at=N      slice N makes something that is not a number
 *   lost_at=N     the device is lost in slice N
 *   corrupt_at=N  garbage goes down the link before slice N
 *   poison=TEXT   abort in the first denoise step of a prompt with TEXT in it */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/comm_local.h"
#include "server/runner.h"

#define JOIN_NS (INT64_C(1000000) * KN_RUNNER_JOIN_MS)

enum { SIDE = 64, POISON_BYTES = 64, NUMBER_MAX = 1000000, STATE_BYTES = 32, FILE_MAX = 2 << 20 };

typedef struct script {
    int32_t text_ms, step_ms, decode_ms, mux_ms, load_ms, pack_ms, slow, memory_mb, seed;
    int32_t domain, crash_ppm, crash_at, hang_at, stop_at, oom_at, nan_at, lost_at, corrupt_at;
    char poison[POISON_BYTES];
} script;

typedef struct fake {
    script script;
    int corrupt_fd;
    int32_t slices; /* run so far, and parts of others' */
    uint64_t random;
    kn_device *cpu; /* for groups */
    kn_stream *stream;
} fake;

typedef struct generation {
    kn_request request; /* resolved */
    char *text;         /* the same as JSON */
    kn_frame_sink sink;
    int32_t latent_frames;
    bool text_done, finished;
    int32_t step, decoded;
    uint8_t state[STATE_BYTES]; /* hash of the request, then of the hash before and the step */
} generation;

/* ---- options ---- */

static kn_status parse_number(const char *name, const char *text, size_t bytes, int32_t *out)
{
    int64_t value = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9' || bytes > 7)
            return kn_fail(KN_INVALID, "%s: must be a number from 0 to %d", name, NUMBER_MAX);
        value = value * 10 + (text[i] - '0');
    }
    if (bytes == 0 || value > NUMBER_MAX)
        return kn_fail(KN_INVALID, "%s: must be a number from 0 to %d", name, NUMBER_MAX);
    *out = (int32_t)value;
    return KN_OK;
}

static kn_status parse_option(script *s, const char *text, size_t bytes)
{
    const struct {
        const char *name;
        int32_t *value;
    } numbers[] = {{"text_ms", &s->text_ms},       {"step_ms", &s->step_ms}, {"decode_ms", &s->decode_ms},
                   {"mux_ms", &s->mux_ms},         {"load_ms", &s->load_ms}, {"pack_ms", &s->pack_ms},
                   {"memory_mb", &s->memory_mb},   {"seed", &s->seed},       {"crash_ppm", &s->crash_ppm},
                   {"crash_at", &s->crash_at},     {"hang_at", &s->hang_at}, {"stop_at", &s->stop_at},
                   {"oom_at", &s->oom_at},         {"nan_at", &s->nan_at},   {"lost_at", &s->lost_at},
                   {"corrupt_at", &s->corrupt_at}, {"domain", &s->domain}};
    const char *equals = memchr(text, '=', bytes);
    if (!equals) return kn_fail(KN_INVALID, "%.*s: must be NAME=VALUE", (int)bytes, text);
    const size_t name = (size_t)(equals - text), value = bytes - name - 1;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strlen(numbers[i].name) == name && strncmp(text, numbers[i].name, name) == 0)
            return parse_number(numbers[i].name, equals + 1, value, numbers[i].value);
    if (name == 4 && strncmp(text, "slow", name) == 0 && value > 1 && equals[1] == 'x')
        return parse_number("slow", equals + 2, value - 1, &s->slow);
    if (name == 6 && strncmp(text, "poison", name) == 0 && value > 0 && value < POISON_BYTES) {
        memcpy(s->poison, equals + 1, value);
        return KN_OK;
    }
    return kn_fail(KN_INVALID, "%.*s: no such option, or not such a value", (int)bytes, text);
}

static kn_status parse_script(script *out, const char *options)
{
    *out = (script){.slow = 1, .memory_mb = 8192, .seed = 1};
    while (*options) {
        const size_t bytes = strcspn(options, ",");
        const kn_status st = parse_option(out, options, bytes);
        if (st != KN_OK) return st;
        options += bytes + (options[bytes] == ',');
    }
    return KN_OK;
}

kn_status kn_backend_fake_check(const char *options)
{
    script ignored;
    return parse_script(&ignored, options);
}

/* ---- device and models ---- */

static void wait_ms(const fake *f, int64_t ms)
{
    ms *= f->script.slow;
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

static void close_fake(void *self)
{
    fake *f = self;
    kn_stream_destroy(&f->stream);
    kn_device_close(&f->cpu);
    kn_free(f);
}

static void describe(const void *self, kn_device_info *out)
{
    const fake *f = self;
    *out = (kn_device_info){.name = "fake",
                            .description = "scripted device",
                            .tier = "fake",
                            .threads = 1,
                            .memory_bytes = (uint64_t)f->script.memory_mb << 20,
                            .host_memory = true,
                            .domain = f->script.domain};
}

static kn_status load(void *self, void **out, const char *name, const char *folder, uint64_t *bytes)
{
    (void)name;
    const fake *f = self;
    kn_repository *repository = NULL;
    const kn_status st = kn_repository_open(&repository, folder);
    if (st != KN_OK) return st;
    wait_ms(f, f->script.load_ms);
    *bytes = UINT64_C(1) << 20;
    *out = repository;
    return KN_OK;
}

static void unload(void *self, void *model)
{
    (void)self;
    kn_repository *repository = model;
    kn_repository_close(&repository);
}

/* ---- state ---- */

static kn_status hash(uint8_t out[STATE_BYTES], const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    EVP_MD_CTX *sum = EVP_MD_CTX_new();
    const bool done = sum && EVP_DigestInit_ex(sum, EVP_sha256(), NULL) == 1 &&
                      EVP_DigestUpdate(sum, a, a_bytes) == 1 && EVP_DigestUpdate(sum, b, b_bytes) == 1 &&
                      EVP_DigestFinal_ex(sum, out, NULL) == 1;
    EVP_MD_CTX_free(sum);
    return done ? KN_OK : kn_fail(KN_BUG, "SHA-256 failed");
}

static void destroy(void *self, void *handle)
{
    (void)self;
    generation *g = handle;
    kn_request_release(&g->request);
    kn_free(g->text);
    kn_free(g);
}

static kn_slice next(const void *self, const void *handle)
{
    (void)self;
    const generation *g = handle;
    if (g->finished) return (kn_slice){.kind = KN_SLICE_DONE};
    if (g->step == g->request.steps) {
        if (g->decoded == g->latent_frames) return (kn_slice){KN_SLICE_MUX, 0, 1};
        return (kn_slice){KN_SLICE_DECODE, g->decoded, g->latent_frames};
    }
    if (!g->text_done) return (kn_slice){KN_SLICE_TEXT, 0, 1};
    return (kn_slice){KN_SLICE_DENOISE, g->step, g->request.steps};
}

/* "kinora.fake 1 STEP\n", the state, the request, and the SHA-256 of all that. */
static kn_status save(void *self, const void *handle, const char *path)
{
    (void)self;
    const generation *g = handle;
    char head[32];
    const size_t head_bytes = (size_t)snprintf(head, sizeof head, "kinora.fake 1 %d\n", g->step);
    const size_t text_bytes = strlen(g->text), body = head_bytes + STATE_BYTES + text_bytes;
    uint8_t *file = kn_alloc(body + STATE_BYTES);
    if (!file) return KN_NOMEM;
    memcpy(file, head, head_bytes);
    memcpy(file + head_bytes, g->state, STATE_BYTES);
    memcpy(file + head_bytes + STATE_BYTES, g->text, text_bytes);
    kn_status st = hash(file + body, file, body, "", 0);
    if (st == KN_OK) st = kn_artifact_write(path, file, body + STATE_BYTES);
    kn_free(file);
    return st;
}

static kn_status read_file(const char *path, char **out, size_t *count)
{
    struct stat info;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return kn_fail(KN_NOT_FOUND, "%s: %s", path, strerror(errno));
    kn_status st = KN_OK;
    char *bytes = NULL;
    if (fstat(file, &info) != 0 || info.st_size < 1 || info.st_size > FILE_MAX)
        st = kn_fail(KN_CORRUPT, "%s: not a fake device's checkpoint", path);
    else if (!(bytes = kn_alloc((size_t)info.st_size)))
        st = KN_NOMEM;
    else if (read(file, bytes, (size_t)info.st_size) != info.st_size)
        st = kn_fail(KN_IO, "%s: cannot be read", path);
    close(file);
    *out = bytes;
    *count = (size_t)info.st_size;
    return st;
}

static kn_status restore(generation *g, const char *path)
{
    kn_status st = KN_OK;
    char head[32], *bytes = NULL;
    size_t count = 0;
    uint8_t sum[STATE_BYTES];
    KN_TRY(read_file(path, &bytes, &count));
    const char *line = memchr(bytes, '\n', count < sizeof head ? count : sizeof head);
    const size_t head_bytes = line ? (size_t)(line - bytes) + 1 : 0, text_bytes = strlen(g->text);
    if (head_bytes == 0 || count != head_bytes + 2 * STATE_BYTES + text_bytes)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: not a checkpoint of this request", path));
    KN_TRY(hash(sum, bytes, count - STATE_BYTES, "", 0));
    memcpy(head, bytes, head_bytes - 1);
    head[head_bytes - 1] = '\0';
    if (sscanf(head, "kinora.fake 1 %d", &g->step) != 1 || g->step < 0 || g->step > g->request.steps ||
        memcmp(sum, bytes + count - STATE_BYTES, STATE_BYTES) != 0 ||
        memcmp(bytes + head_bytes + STATE_BYTES, g->text, text_bytes) != 0)
        KN_TRY(kn_fail(KN_CORRUPT, "%s: not a checkpoint of this request", path));
    memcpy(g->state, bytes + head_bytes, STATE_BYTES);
fail:
    kn_free(bytes);
    return st;
}

static kn_status create(void *self, void *model, const char *text, const char *checkpoint, const kn_frame_sink *sink,
                        void **out, kn_video_format *format, char **comment)
{
    kn_status st = KN_OK;
    generation *g = kn_alloc(sizeof *g);
    if (!g) return KN_NOMEM;
    g->request = kn_request_empty();
    g->sink = *sink;
    st = kn_request_from_json(&g->request, text, "request");
    if (st == KN_OK) st = kn_request_resolve(&g->request, model, NULL);
    if (st == KN_CORRUPT) st = kn_fail_context(KN_INVALID, "job");
    if (st != KN_OK) goto fail;
    KN_TRY(kn_request_to_json(&g->text, &g->request));
    g->latent_frames = kn_request_latent(&g->request, model).t;
    KN_TRY(hash(g->state, g->text, strlen(g->text), "", 0));
    if (checkpoint) KN_TRY(restore(g, checkpoint));
    *comment = kn_format("Kinora " KN_VERSION ", a fake device, seed %" PRIu64, g->request.seed);
    if (!*comment) KN_TRY(KN_NOMEM);
    *format = (kn_video_format){.width = SIDE,
                                .height = SIDE,
                                .frames = g->latent_frames, /* one each */
                                .fps_numerator = g->request.fps_numerator,
                                .fps_denominator = g->request.fps_denominator};
    *out = g;
    return KN_OK;
fail:
    destroy(self, g);
    return st;
}

/* ---- slices ---- */

/* SplitMix64 (Steele, Lea, Flood, 2014). */
static uint64_t draw(fake *f)
{
    uint64_t z = f->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void have_accidents(fake *f)
{
    const script *s = &f->script;
    const int32_t n = ++f->slices;
    static const unsigned char garbage[16] = {0xff, 0xff, 0xff, 0xff, 'g', 'a', 'r', 'b', 'a', 'g', 'e'};
    if (n == s->crash_at || (int64_t)(draw(f) % 1000000) < s->crash_ppm) abort();
    if (n == s->stop_at) raise(SIGSTOP);
    while (n == s->hang_at) wait_ms(f, 1000);
    if (n == s->corrupt_at && f->corrupt_fd >= 0 && write(f->corrupt_fd, garbage, sizeof garbage) < 0) abort();
}

static bool has_poison(const fake *f, const generation *g)
{
    return f->script.poison[0] && strstr(g->request.prompt, f->script.poison);
}

/* A square that drifts over a ground of two colours; place and colours are the hash's. */
static kn_status draw_frame(generation *g)
{
    const int32_t plane = SIDE * SIDE;
    float *planes = kn_alloc_array((size_t)3 * SIDE * SIDE, sizeof *planes);
    if (!planes) return KN_NOMEM;
    const uint8_t *h = g->state;
    for (int32_t i = 0; i < plane; i++) {
        const int32_t x = i % SIDE, y = i / SIDE, k = g->decoded;
        const int32_t dx = (x + h[0] + k * (1 + h[1] % 3)) % SIDE, dy = (y + h[2] + k * (1 + h[3] % 3)) % SIDE;
        const bool inside = dx < 24 && dy < 24;
        for (int32_t c = 0; c < 3; c++) planes[c * plane + i] = (float)h[(inside ? 4 : 7) + c] / 255.0f;
    }
    const kn_status st = g->sink.frame(g->sink.context, g->decoded, planes);
    kn_free(planes);
    if (st == KN_OK) g->decoded++;
    return st;
}

static kn_status advance(fake *f, generation *g, kn_slice_kind kind)
{
    kn_status st = KN_OK;
    switch (kind) {
    case KN_SLICE_TEXT: g->text_done = true; return KN_OK;
    case KN_SLICE_DENOISE:
        if (has_poison(f, g)) abort();
        KN_TRY(hash(g->state, g->state, STATE_BYTES, &g->step, sizeof g->step));
        g->step++;
        return KN_OK;
    case KN_SLICE_DECODE: return draw_frame(g);
    case KN_SLICE_MUX:
        KN_TRY(g->sink.finish(g->sink.context));
        g->finished = true;
        return KN_OK;
    case KN_SLICE_DONE: return KN_OK;
    }
fail:
    return st;
}

/* The time and the accidents of a slice, of which this device has one part in `parts`. */
static kn_status work(fake *f, kn_slice_kind kind, int32_t count, int32_t parts)
{
    const script *s = &f->script;
    const int32_t ms[] = {s->text_ms, s->step_ms, s->decode_ms, s->mux_ms, 0};
    have_accidents(f);
    wait_ms(f, (ms[kind] + (int64_t)(count - 1) * s->pack_ms) / parts);
    if (f->slices == s->oom_at) return kn_fail(KN_NOMEM, "the fake device is out of memory");
    if (f->slices == s->nan_at) return kn_fail(KN_CORRUPT, "the fake device's latents are not finite");
    if (f->slices == s->lost_at) return kn_fail(KN_DEVICE_LOST, "the fake device is lost");
    return KN_OK;
}

static kn_status advance_all(fake *f, void *const *generations, int32_t count, kn_slice_kind kind)
{
    for (int32_t i = 0; i < count; i++) {
        const kn_status st = advance(f, generations[i], kind);
        if (st != KN_OK) return st;
    }
    return KN_OK;
}

static kn_status step(void *self, void *const *generations, int32_t count)
{
    const kn_slice_kind kind = next(self, generations[0]).kind;
    const kn_status st = work(self, kind, count, 1);
    return st == KN_OK ? advance_all(self, generations, count, kind) : st;
}

/* ---- groups: a real communicator, over which the leader says what there is to do and all say that it is done ---- */

typedef struct order {
    int32_t kind, count, last;
} order;

static kn_status join(void *self, const kn_runner_group *params, int fd, void **out)
{
    kn_status st = KN_OK;
    fake *f = self;
    kn_comm *comm = NULL;
    if (!f->cpu) KN_TRY(kn_device_open(&f->cpu, &(kn_device_params){.name = "cpu", .threads = 1}));
    if (!f->stream) KN_TRY(kn_stream_create(&f->stream, f->cpu));
    KN_TRY(kn_comm_local_join(&comm, &(kn_comm_local_params){.fd = fd,
                                                             .rank = params->rank,
                                                             .epoch = params->epoch,
                                                             .stream = f->stream,
                                                             .limits = {.join_ns = JOIN_NS}}));
    *out = comm;
fail:
    return st;
}

static void leave(void *self, void *group)
{
    (void)self;
    kn_comm *comm = group;
    kn_comm_destroy(&comm);
}

/* One step of all ranks; the leader's order is *o. */
static kn_status work_together(fake *f, kn_comm *comm, int64_t limit_ns, order *o)
{
    kn_status st = KN_OK;
    const kn_group all = kn_group_of(comm, UINT32_MAX);
    kn_comm_set_limit(comm, limit_ns);
    KN_TRY(kn_group_message(&all, 0, o, sizeof *o));
    KN_TRY(work(f, (kn_slice_kind)o->kind, o->count, all.size));
    KN_TRY(kn_group_barrier(&all));
    return KN_OK;
fail:
    kn_comm_abort(comm, kn_fail_message());
    return st;
}

static kn_status lead(void *self, void *const *generations, int32_t count, void *group, int64_t limit_ns, bool last)
{
    const kn_slice_kind kind = next(self, generations[0]).kind;
    order o = {.kind = kind, .count = count, .last = last};
    const kn_status st = work_together(self, group, limit_ns, &o);
    return st == KN_OK ? advance_all(self, generations, count, kind) : st;
}

static kn_status assist(void *self, void *model, void *group, int64_t limit_ns)
{
    (void)model;
    order o = {0};
    kn_status st = KN_OK;
    while (st == KN_OK && !o.last) st = work_together(self, group, limit_ns, &o);
    return st;
}

static kn_status preview(void *self, const void *handle, float **out)
{
    (void)self;
    const generation *g = handle;
    float *planes = kn_alloc_array((size_t)3 * SIDE * SIDE, sizeof *planes);
    if (!planes) return KN_NOMEM;
    for (int32_t i = 0; i < 3 * SIDE * SIDE; i++) planes[i] = (float)g->state[i / (SIDE * SIDE)] / 255.0f;
    *out = planes;
    return KN_OK;
}

kn_status kn_backend_fake_open(kn_backend *out, const kn_runner_params *params)
{
    fake *f = kn_alloc(sizeof *f);
    if (!f) return KN_NOMEM;
    const kn_status st = parse_script(&f->script, params->device[4] == ':' ? params->device + 5 : "");
    if (st != KN_OK) {
        kn_free(f);
        return st;
    }
    f->corrupt_fd = params->corrupt_fd;
    f->random = (uint64_t)f->script.seed << 32 ^ (uint64_t)getpid(); /* another course for each process */
    *out = (kn_backend){.self = f,
                        .close = close_fake,
                        .describe = describe,
                        .load = load,
                        .unload = unload,
                        .create = create,
                        .destroy = destroy,
                        .next = next,
                        .step = step,
                        .join = join,
                        .leave = leave,
                        .lead = lead,
                        .assist = assist,
                        .save = save,
                        .preview = preview};
    return KN_OK;
}
