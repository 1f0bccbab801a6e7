/* SPDX-License-Identifier: Apache-2.0
 *
 * The process that decodes one upload. It gives up, in this order: the means to grow (rlimits), the file system and the
 * network (Landlock, where the kernel has it), and, once the one decoder is open and both memory files are mapped,
 * every system call but those that manage its own memory, report and end (seccomp). Only then does a byte of the file
 * reach the decoder.
 *
 *   argv  sandbox KIND WIDTH HEIGHT BYTES [PROBE]
 *
 * A probe does what an attacker would, at the same point, so that a test can see it held back. */
#define _GNU_SOURCE /* MAP_ANONYMOUS, syscall */
#include <errno.h>
#include <fcntl.h>
#include <libavcodec/avcodec.h>
#include <libavutil/imgutils.h>
#include <libavutil/mem.h>
#include <libswscale/swscale.h>
#include <linux/futex.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "server/child.h"
#include "server/image_strip.h"
#include "server/sandbox.h"
#include "server/sandbox_wire.h"

enum {
    DESCRIPTORS_MAX = 8,
    ROW_PADDING = 128, /* pixels; above what any decoder aligns to */
};

typedef struct decoding {
    kn_image_kind kind;
    int32_t width, height;
    size_t bytes;
    const char *probe; /* or NULL */
    uint8_t *input;    /* [bytes + KN_SANDBOX_PADDING], a private copy */
    uint8_t *output;   /* [height, width, 3] */
    AVCodecContext *decoder;
    AVPacket *packet;
    AVFrame *frame, *rgb;
} decoding;

static void report(const decoding *d, kn_sandbox_code code)
{
    const kn_sandbox_report said = {
        .magic = KN_SANDBOX_REPORT_MAGIC, .code = code, .width = d->width, .height = d->height};
    const ssize_t n = write(KN_SANDBOX_REPORT_FD, &said, sizeof said);
    (void)n; /* a report that does not arrive is a failure to the server */
}

/* ---- confinement ---- */

static kn_status limit(int resource, rlim_t value)
{
    const struct rlimit both = {value, value};
    if (setrlimit(resource, &both) == 0) return KN_OK;
    return kn_fail(KN_UNAVAILABLE, "sandbox: a limit cannot be set: %s", strerror(errno));
}

static kn_status set_limits(void)
{
    kn_status st = KN_OK;
    if (!KN_SANITIZED) KN_TRY(limit(RLIMIT_AS, KN_SANDBOX_MEMORY));
    KN_TRY(limit(RLIMIT_CPU, KN_SANDBOX_CPU_S));
    KN_TRY(limit(RLIMIT_FSIZE, 0));
    KN_TRY(limit(RLIMIT_NOFILE, DESCRIPTORS_MAX));
    KN_TRY(limit(RLIMIT_NPROC, 0));
    KN_TRY(limit(RLIMIT_MEMLOCK, 0));
    KN_TRY(limit(RLIMIT_MSGQUEUE, 0));
fail:
    return st;
}

/* linux/landlock.h as of ABI 6; the distribution's header may be older than the kernel. */
typedef struct landlock_rules {
    uint64_t files;  /* LANDLOCK_ACCESS_FS_*: ABI 1 has bits 0..12, 2 adds 13, 3 adds 14, 5 adds 15 */
    uint64_t net;    /* LANDLOCK_ACCESS_NET_*: bits 0..1 from ABI 4 */
    uint64_t scoped; /* LANDLOCK_SCOPE_*: bits 0..1 from ABI 6 */
} landlock_rules;

/* A ruleset that handles every kind of access and allows none. False: this kernel has no Landlock. */
static bool forbid_files(void)
{
    const long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    if (abi < 1) return false;
    landlock_rules rules = {.files = (UINT64_C(1) << 13) - 1};
    if (abi >= 2) rules.files |= UINT64_C(1) << 13;
    if (abi >= 3) rules.files |= UINT64_C(1) << 14;
    if (abi >= 5) rules.files |= UINT64_C(1) << 15;
    if (abi >= 4) rules.net = 3;
    if (abi >= 6) rules.scoped = 3;
    const size_t size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
    const long set = syscall(SYS_landlock_create_ruleset, &rules, size, 0);
    if (set < 0) return false;
    const bool done = syscall(SYS_landlock_restrict_self, (int)set, 0) == 0;
    close((int)set);
    return done;
}

/* Calls that take no argument worth looking at. */
static const int allowed_calls[] = {
    SCMP_SYS(exit),   SCMP_SYS(exit_group),    SCMP_SYS(rt_sigreturn), SCMP_SYS(brk),         SCMP_SYS(munmap),
    SCMP_SYS(mremap), SCMP_SYS(madvise),       SCMP_SYS(futex),        SCMP_SYS(sched_yield), SCMP_SYS(getpid),
    SCMP_SYS(gettid), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(getrandom),   SCMP_SYS(rt_sigprocmask)};

static struct scmp_arg_cmp argument(unsigned index, enum scmp_compare compare, scmp_datum_t a, scmp_datum_t b)
{
    return (struct scmp_arg_cmp){.arg = index, .op = compare, .datum_a = a, .datum_b = b};
}

static int allow_calls(scmp_filter_ctx filter)
{
    int error = 0;
    for (size_t i = 0; i < sizeof allowed_calls / sizeof *allowed_calls && !error; i++)
        error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed_calls[i], 0);
    /* What a sanitizer asks before a function that does not return. */
    if (KN_SANITIZED && !error) error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(sigaltstack), 0);
    /* A sanitizer's words, and the report. */
    const struct scmp_arg_cmp to_stderr = argument(0, SCMP_CMP_EQ, STDERR_FILENO, 0);
    const struct scmp_arg_cmp to_server = argument(0, SCMP_CMP_EQ, KN_SANDBOX_REPORT_FD, 0);
    if (!error) error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(write), 1, to_stderr);
    if (!error) error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(write), 1, to_server);
    /* Memory of its own, never code. */
    const struct scmp_arg_cmp no_code = argument(2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp no_file = argument(3, SCMP_CMP_MASKED_EQ, MAP_ANONYMOUS, MAP_ANONYMOUS);
    if (!error) error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 2, no_code, no_file);
    if (!error) error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, no_code);
    return error;
}

static kn_status forbid_calls(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) return kn_fail(KN_UNAVAILABLE, "sandbox: no system call filter");
    int error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error) error = allow_calls(filter);
    if (!error) error = seccomp_load(filter);
    seccomp_release(filter);
    return error ? kn_fail(KN_UNAVAILABLE, "sandbox: the system call filter: %s", strerror(-error)) : KN_OK;
}

/* ---- decoding ---- */

static const enum AVCodecID codecs[KN_IMAGE_KINDS] = {AV_CODEC_ID_PNG, AV_CODEC_ID_MJPEG, AV_CODEC_ID_WEBP};

/* The file is not the decoder's to free. */
static void keep(void *opaque, uint8_t *data)
{
    (void)opaque;
    (void)data;
}

static kn_status open_decoder(decoding *d)
{
    av_log_set_level(AV_LOG_QUIET);
    av_max_alloc(KN_SANDBOX_ALLOCATION);
    const AVCodec *codec = avcodec_find_decoder(codecs[d->kind]);
    if (!codec) return kn_fail(KN_UNAVAILABLE, "sandbox: no decoder for %s", kn_image_kind_name(d->kind));
    d->decoder = avcodec_alloc_context3(codec);
    d->packet = av_packet_alloc();
    d->frame = av_frame_alloc();
    d->rgb = av_frame_alloc();
    if (!d->decoder || !d->packet || !d->frame || !d->rgb) return kn_fail(KN_NOMEM, "sandbox: no memory");
    d->decoder->thread_count = 1;
    /* Damage is an error, not a picture with holes. */
    d->decoder->err_recognition = AV_EF_CRCCHECK | AV_EF_BITSTREAM | AV_EF_BUFFER | AV_EF_EXPLODE;
    /* A second header in the file cannot ask for more than the first, which the server has checked; the library counts
     * the rows as it pads them. */
    d->decoder->max_pixels = (int64_t)(d->width + ROW_PADDING) * (d->height + ROW_PADDING);
    if (avcodec_open2(d->decoder, codec, NULL) != 0)
        return kn_fail(KN_UNAVAILABLE, "sandbox: the decoder for %s does not open", codec->name);
    d->packet->buf = av_buffer_create(d->input, d->bytes + KN_SANDBOX_PADDING, keep, NULL, AV_BUFFER_FLAG_READONLY);
    if (!d->packet->buf) return kn_fail(KN_NOMEM, "sandbox: no memory");
    return KN_OK;
}

static kn_sandbox_code code_of(int error)
{
    return error == AVERROR(ENOMEM) ? KN_SANDBOX_NO_MEMORY : KN_SANDBOX_DAMAGED;
}

/* Through a frame of the library's own alignment: its converters write a little past a row's end. */
static kn_sandbox_code convert(decoding *d)
{
    const AVFrame *from = d->frame;
    d->rgb->format = AV_PIX_FMT_RGB24;
    d->rgb->width = d->width;
    d->rgb->height = d->height;
    int error = av_frame_get_buffer(d->rgb, 0);
    if (error) return code_of(error);
    const int flags = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_BITEXACT;
    struct SwsContext *scaler = sws_getContext(d->width, d->height, (enum AVPixelFormat)from->format, d->width,
                                               d->height, AV_PIX_FMT_RGB24, flags, NULL, NULL, NULL);
    if (!scaler) return KN_SANDBOX_NO_MEMORY;
    const int *bt601 = sws_getCoefficients(SWS_CS_ITU601);
    int *unused_from, *unused_to, from_range, to_range, brightness, contrast, saturation;
    /* Fails for formats without a matrix (grey, RGB), which need none. */
    if (from->color_range == AVCOL_RANGE_JPEG &&
        sws_getColorspaceDetails(scaler, &unused_from, &from_range, &unused_to, &to_range, &brightness, &contrast,
                                 &saturation) >= 0)
        sws_setColorspaceDetails(scaler, bt601, 1, bt601, 1, brightness, contrast, saturation);
    const int rows = sws_scale(scaler, (const uint8_t *const *)from->data, from->linesize, 0, d->height, d->rgb->data,
                               d->rgb->linesize);
    sws_freeContext(scaler);
    if (rows != d->height) return KN_SANDBOX_DAMAGED;
    av_image_copy_plane(d->output, d->width * 3, d->rgb->data[0], d->rgb->linesize[0], d->width * 3, d->height);
    return KN_SANDBOX_DECODED;
}

static kn_sandbox_code decode(decoding *d)
{
    const size_t bytes = kn_image_strip(d->kind, d->input, d->bytes);
    memset(d->input + bytes, 0, d->bytes - bytes); /* padding again */
    d->packet->data = d->input;
    d->packet->size = (int)bytes;
    int error = avcodec_send_packet(d->decoder, d->packet);
    if (!error) error = avcodec_receive_frame(d->decoder, d->frame);
    if (error == AVERROR(EAGAIN)) {
        error = avcodec_send_packet(d->decoder, NULL);
        if (!error) error = avcodec_receive_frame(d->decoder, d->frame);
    }
    if (error) return code_of(error);
    if (d->frame->decode_error_flags || (d->frame->flags & AV_FRAME_FLAG_CORRUPT)) return KN_SANDBOX_DAMAGED;
    if (d->frame->width != d->width || d->frame->height != d->height) return KN_SANDBOX_OTHER_SIZE;
    return convert(d);
}

/* ---- probes ---- */

/* What is done before the system call filter is on: it shows what Landlock and the limits hold back by themselves. */
static bool probe_before_filter(decoding *d, bool landlock)
{
    if (strcmp(d->probe, "landlock") == 0) {
        const int file = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        report(d, !landlock ? KN_SANDBOX_PROBE_ABSENT : file < 0 ? KN_SANDBOX_PROBE_HELD : KN_SANDBOX_PROBE_FREE);
        return true;
    }
    if (strcmp(d->probe, "memory") == 0) {
        const void *map = mmap(NULL, KN_SANDBOX_MEMORY, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        report(d, KN_SANITIZED        ? KN_SANDBOX_PROBE_ABSENT
                  : map == MAP_FAILED ? KN_SANDBOX_PROBE_HELD
                                      : KN_SANDBOX_PROBE_FREE);
        return true;
    }
    if (strcmp(d->probe, "descriptors") == 0) {
        int copy = STDERR_FILENO;
        for (int i = 0; i < DESCRIPTORS_MAX && copy >= 0; i++) copy = dup(STDERR_FILENO);
        report(d, copy < 0 ? KN_SANDBOX_PROBE_HELD : KN_SANDBOX_PROBE_FREE);
        return true;
    }
    return false;
}

static void probe_call(const char *name)
{
    char *const argv[] = {NULL};
    if (strcmp(name, "open") == 0) open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (strcmp(name, "socket") == 0) socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strcmp(name, "fork") == 0) syscall(SYS_fork);
    if (strcmp(name, "exec") == 0) execve("/proc/self/exe", argv, argv);
    if (strcmp(name, "kill") == 0) kill(getppid(), 0);
    if (strcmp(name, "code") == 0) mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (strcmp(name, "map-file") == 0) mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, KN_SANDBOX_INPUT_FD, 0);
    if (strcmp(name, "write") == 0 && write(KN_SANDBOX_OUTPUT_FD, "", 1) == 0) return;
    if (strcmp(name, "crash") == 0) __builtin_trap();
    if (strcmp(name, "spin") == 0)
        for (volatile int forever = 1; forever;) continue;
    if (strcmp(name, "sleep") == 0)
        for (int word = 0;;) syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
}

/* Confined as a decoder is. */
static void probe_after_filter(decoding *d)
{
    if (strcmp(d->probe, "silent") == 0) return;
    if (strcmp(d->probe, "liar") == 0) {
        d->width++;
        report(d, KN_SANDBOX_DECODED);
        return;
    }
    probe_call(d->probe);
    report(d, KN_SANDBOX_PROBE_FREE); /* whatever was tried has not ended the process */
}

/* ---- the program ---- */

static bool read_number(const char *text, long max, long *out)
{
    char *end;
    errno = 0;
    *out = strtol(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *out >= 1 && *out <= max;
}

static kn_status read_arguments(decoding *d, int argc, char **argv)
{
    long width, height, bytes;
    d->kind = KN_IMAGE_KINDS;
    for (int i = 0; argc >= 5 && i < KN_IMAGE_KINDS; i++)
        if (strcmp(argv[1], kn_image_kind_name((kn_image_kind)i)) == 0) d->kind = (kn_image_kind)i;
    if (d->kind == KN_IMAGE_KINDS || argc > 6 || !read_number(argv[2], KN_IMAGE_SIDE_MAX, &width) ||
        !read_number(argv[3], KN_IMAGE_SIDE_MAX, &height) || !read_number(argv[4], KN_IMAGE_BYTES_MAX, &bytes) ||
        width * height > KN_IMAGE_PIXELS_MAX)
        return kn_fail(KN_INVALID, "this command is started by \"kinora serve\" only");
    d->width = (int32_t)width;
    d->height = (int32_t)height;
    d->bytes = (size_t)bytes;
    d->probe = argc == 6 ? argv[5] : NULL;
    return KN_OK;
}

static kn_status map_files(decoding *d)
{
    d->input = mmap(NULL, d->bytes + KN_SANDBOX_PADDING, PROT_READ | PROT_WRITE, MAP_PRIVATE, KN_SANDBOX_INPUT_FD, 0);
    d->output = mmap(NULL, (size_t)d->width * (size_t)d->height * 3, PROT_READ | PROT_WRITE, MAP_SHARED,
                     KN_SANDBOX_OUTPUT_FD, 0);
    if (d->input != MAP_FAILED && d->output != MAP_FAILED) return KN_OK;
    return kn_fail(KN_UNAVAILABLE, "sandbox: the memory files cannot be mapped: %s", strerror(errno));
}

/* Nothing is given back: the process ends, and memory of a decoder that was taken over is not walked through again. */
int kn_sandbox_main(int argc, char **argv)
{
    decoding d = {.probe = NULL};
    kn_status st = KN_OK;
    KN_TRY(read_arguments(&d, argc, argv));
    KN_TRY(kn_child_enter());
    KN_TRY(map_files(&d));
    KN_TRY(set_limits());
    const bool landlock = forbid_files();
    if (!landlock) kn_log(KN_LOG_DEBUG, "sandbox: this kernel has no Landlock");
    KN_TRY(open_decoder(&d));
    if (d.probe && probe_before_filter(&d, landlock)) _exit(0);
    KN_TRY(forbid_calls());
    if (d.probe)
        probe_after_filter(&d);
    else
        report(&d, decode(&d));
    _exit(0);
fail:
    if (d.bytes > 0) report(&d, KN_SANDBOX_UNPREPARED); /* the arguments are the server's */
    kn_log(KN_LOG_ERROR, "%s", kn_fail_message());
    return kn_status_exit_code(st);
}
