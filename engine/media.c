/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames into files.
 *
 * A frame goes: planar float -> interleaved 8-bit RGB (`source`) -> the encoder's pixels (`picture`) -> packets ->
 * file. What an output can be is two tables: `containers` (by extension) and `coders` (encoders with settings that were
 * tried, in order of preference). Files are made under a temporary name and take their own name only when they are
 * complete and on disk, so a reader never sees half a video and a failure leaves nothing.
 *
 * Colour: Y'CbCr of ITU-R BT.709-6 section 3, 8 bit narrow range: Y = 16 + 219 Y', C = 128 + 224 C'. The picture's
 * R'G'B' is passed on as it is and tagged BT.709 throughout. Chroma sits on the left of its pair of pixels, where H.264
 * and VP9 players expect it when nothing is said.
 *
 * Equal bytes for equal frames: one encoder thread, the bit-exact modes of scaler, encoder and muxer (no dates, no
 * random identifiers), and x264 told to choose no algorithm by CPU: without that its files differ between AVX2 and
 * plain C. Another version of FFmpeg or of an encoder may write other bytes.
 *
 * FFmpeg has one log for the whole process; the first writer directs it to kn_log, at debug level, for good. */
#define _POSIX_C_SOURCE 200809L
#include "engine/media.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/dict.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>

#include "base/log.h"
#include "base/mem.h"

typedef struct container {
    const char *extension;
    const char *muxer;   /* NULL: each packet is a file */
    const char *options; /* of the muxer, "key=value:key=value" */
    int fps_max;         /* frames per second it can state */
    int needs_trailer;   /* to free what the muxer holds, also when the file is given up */
} container;

static const container containers[] = {
    {".mp4", "mp4", "movflags=+faststart", 1000, 0},
    {".webm", "webm", "", 1000, 0},
    {".gif", "gif", "loop=0", 50, 1}, /* delays are hundredths of a second, and viewers slow down anything below two */
    {".png", NULL, "", 1000, 0},
};
enum { CONTAINERS = sizeof containers / sizeof containers[0] };

typedef struct coder {
    const char *name;
    const char *extension;
    enum AVPixelFormat format;
    int quality, quality_max;   /* default and worst on the encoder's own scale, best is 1; 0, 0: it has none */
    const char *quality_option; /* NULL: a fixed quantiser */
    double bits_per_pixel;      /* target bit rate in bits per pixel and frame; 0: quality alone decides */
    const char *options;        /* of the encoder, as above */
    int bytes_per_pixel;        /* held per pixel of the padded picture, and */
    int bytes_fixed;            /* besides; see kn_media_bytes */
} coder;

/* x264's preset: medium, for which its CRF numbers are quoted, encodes 832x480 at 50 frames a second on one server
 * core, seconds for a clip that took minutes to generate; slower ones would save a few percent of size. */
static const coder coders[] = {
    {"libx264", ".mp4", AV_PIX_FMT_YUV420P, 18, 51, "crf", 0,
     "preset=medium:profile=high:x264-params=cpu-independent=1", 8, 2 << 20},
    {"libopenh264", ".mp4", AV_PIX_FMT_YUV420P, 0, 0, NULL, 0.25, "profile=high:allow_skip_frames=0", 52, 1 << 20},
    {"mpeg4", ".mp4", AV_PIX_FMT_YUV420P, 3, 31, NULL, 0, "", 24, 1 << 20},
    {"libvpx-vp9", ".webm", AV_PIX_FMT_YUV420P, 24, 63, "crf", 0, "deadline=good:cpu-used=3:row-mt=0", 140, 18 << 20},
    {"libvpx", ".webm", AV_PIX_FMT_YUV420P, 10, 63, "crf", 0.5, "deadline=good:cpu-used=2", 52, 1 << 20},
    {"gif", ".gif", AV_PIX_FMT_PAL8, 0, 0, NULL, 0, "", 21, 1 << 20},
    {"png", ".png", AV_PIX_FMT_RGB24, 0, 0, NULL, 0, "pred=up", 20, 1 << 20}, /* mixed: 4 % smaller, 3 times slower */
};
enum { CODERS = sizeof coders / sizeof coders[0] };

enum {
    SIDE_MAX = 16384, /* pixels; all these encoders can do it */
    DIGITS_MAX = 9,   /* N of %0Nd */
    NAME_EXTRA = 32,  /* bytes a frame number and ".tmp" add to the path */
    GIF_RED = 6,
    GIF_GREEN = 7,
    GIF_BLUE = 6, /* levels of the palette: 252 colours, the eye is keenest in green */
};

struct kn_media_writer {
    const container *container;
    const coder *coder;
    char *path;            /* as given */
    char *name;            /* final name of the file in hand; room for path + NAME_EXTRA */
    char *temporary;       /* name + ".tmp" */
    size_t prefix, suffix; /* of the file name pattern in `path`: bytes before the conversion, offset behind it */
    int digits;            /* of the pattern's number: -1 no pattern, 0 as many as it takes */
    int32_t width, height;
    int64_t frames;          /* accepted */
    int64_t created;         /* temporary files begun */
    int64_t published;       /* of these, renamed */
    int headed;              /* the muxer has written its header but no trailer */
    int broken;              /* a frame was lost; the file cannot be right any more */
    AVFormatContext *format; /* NULL for .png */
    AVStream *stream;
    AVCodecContext *codec;
    AVPacket *packet;
    struct SwsContext *scaler; /* only for yuv420p */
    AVFrame *source;           /* [height, width, 3] 8-bit R'G'B' */
    AVFrame *picture;          /* what the encoder takes; NULL: `source` itself */
};

/* ---- messages ---- */

static kn_status fail_av(kn_status status, int code, const char *subject, const char *doing)
{
    char text[AV_ERROR_MAX_STRING_SIZE];
    av_strerror(code, text, sizeof text);
    return kn_fail(code == AVERROR(ENOMEM) ? KN_NOMEM : status, "%s: %s: %s", subject, doing, text);
}

static void on_ffmpeg_log(void *object, int level, const char *format, va_list arguments)
{
    level &= 0xff; /* above are colours */
    if (level > AV_LOG_VERBOSE) return;
    char line[1024];
    int prefix = 1;
    int bytes = av_log_format_line2(object, level, format, arguments, line, sizeof line, &prefix);
    if (bytes < 0) return;
    line[strcspn(line, "\r\n")] = 0;
    if (line[0]) kn_log(KN_LOG_DEBUG, "ffmpeg: %s", line);
}

static void take_ffmpeg_log(void)
{
    av_log_set_callback(on_ffmpeg_log);
}

/* ---- names ---- */

static const container *container_of_path(const char *path)
{
    size_t bytes = strlen(path);
    for (int i = 0; i < CONTAINERS; i++) {
        size_t tail = strlen(containers[i].extension);
        if (bytes > tail && strcasecmp(path + bytes - tail, containers[i].extension) == 0) return &containers[i];
    }
    return NULL;
}

/* Finds the one %d or %0Nd of the last component of `path`; folders are taken as they are. */
static kn_status parse_pattern(kn_media_writer *writer)
{
    const char *file = strrchr(writer->path, '/');
    const char *at = strchr(file ? file : writer->path, '%');
    writer->digits = -1;
    if (!at) return KN_OK;
    const char *next = at + 1;
    int digits = 0;
    if (next[0] == '0' && next[1] >= '1' && next[1] <= '0' + DIGITS_MAX) {
        digits = next[1] - '0';
        next += 2;
    }
    if (*next != 'd' || strchr(next, '%'))
        return kn_fail(KN_INVALID, "%s: the pattern of a frame's name takes exactly one %%d or %%0Nd, N 1 to %d",
                       writer->path, DIGITS_MAX);
    writer->digits = digits;
    writer->prefix = (size_t)(at - writer->path);
    writer->suffix = (size_t)(next + 1 - writer->path);
    return KN_OK;
}

/* Sets `name` and `temporary` to those of the index-th file. */
static void select_file(kn_media_writer *writer, int64_t index)
{
    size_t room = strlen(writer->path) + NAME_EXTRA;
    if (writer->digits < 0)
        snprintf(writer->name, room, "%s", writer->path);
    else
        snprintf(writer->name, room, "%.*s%0*lld%s", (int)writer->prefix, writer->path, writer->digits,
                 (long long)index, writer->path + writer->suffix);
    snprintf(writer->temporary, room, "%s.tmp", writer->name);
}

static kn_status allocate_names(kn_media_writer *writer, const char *path)
{
    size_t room = strlen(path) + NAME_EXTRA;
    writer->path = kn_strdup(path);
    writer->name = kn_alloc(room);
    writer->temporary = kn_alloc(room);
    return writer->path && writer->name && writer->temporary ? KN_OK : KN_NOMEM;
}

/* ---- what to write with ---- */

void kn_media_encoders(const char *path, char *out, size_t bytes)
{
    if (bytes == 0) return;
    out[0] = 0;
    const container *kind = path ? container_of_path(path) : NULL;
    size_t used = 0;
    for (int i = 0; kind && i < CODERS; i++) {
        if (strcmp(coders[i].extension, kind->extension) != 0) continue;
        if (!avcodec_find_encoder_by_name(coders[i].name)) continue;
        int more = snprintf(out + used, bytes - used, "%s%s", used ? ", " : "", coders[i].name);
        if (more < 0 || (size_t)more >= bytes - used) return;
        used += (size_t)more;
    }
}

/* The named coder of this container, or with NULL its first that FFmpeg has; NULL if none. */
static const coder *find_coder(const container *kind, const char *name)
{
    for (int i = 0; i < CODERS; i++) {
        if (strcmp(coders[i].extension, kind->extension) != 0) continue;
        if (name && strcmp(coders[i].name, name) != 0) continue;
        if (avcodec_find_encoder_by_name(coders[i].name)) return &coders[i];
    }
    return NULL;
}

static kn_status choose(const kn_media_params *params, const container **container_out, const coder **coder_out)
{
    const char *path = params->path;
    *container_out = container_of_path(path);
    if (!*container_out)
        return kn_fail(KN_INVALID, "%s: the extension decides the format; known are .mp4, .webm, .gif and .png", path);
    *coder_out = find_coder(*container_out, params->encoder);
    if (!*coder_out) {
        char names[256];
        kn_media_encoders(path, names, sizeof names);
        return kn_fail(KN_UNAVAILABLE, "%s: no encoder %s for %s here; available: %s", path,
                       params->encoder ? params->encoder : "at all", (*container_out)->extension,
                       names[0] ? names : "none");
    }
    return KN_OK;
}

static kn_status check(const kn_media_params *params, const container *kind, const coder *with)
{
    const char *path = params->path;
    if (params->width < 1 || params->height < 1 || params->width > SIDE_MAX || params->height > SIDE_MAX)
        return kn_fail(KN_INVALID, "%s: size %dx%d is outside 1..%d", path, params->width, params->height, SIDE_MAX);
    if (with->format == AV_PIX_FMT_YUV420P && (params->width % 2 || params->height % 2))
        return kn_fail(KN_INVALID, "%s: size %dx%d is odd; %s video needs an even width and height", path,
                       params->width, params->height, kind->extension);
    if (params->fps_numerator < 1 || params->fps_denominator < 1 ||
        params->fps_numerator > (int64_t)kind->fps_max * params->fps_denominator)
        return kn_fail(KN_INVALID, "%s: frame rate %d/%d is outside what %s can state, above 0 to %d frames per second",
                       path, params->fps_numerator, params->fps_denominator, kind->extension, kind->fps_max);
    if (params->crf < 0 || (with->quality_max > 0 && params->crf > with->quality_max))
        return kn_fail(KN_INVALID, "%s: crf %d is outside 0..%d of %s", path, params->crf, with->quality_max,
                       with->name);
    return KN_OK;
}

/* ---- opening ---- */

/* Frames in two seconds: close enough for a browser to seek. */
static int key_frame_distance(const kn_media_params *params)
{
    int64_t frames = (2LL * params->fps_numerator + params->fps_denominator / 2) / params->fps_denominator;
    return frames > 1 ? (int)frames : 1;
}

static void describe_colour(AVCodecContext *codec)
{
    codec->color_primaries = AVCOL_PRI_BT709;
    codec->color_trc = AVCOL_TRC_BT709;
    codec->colorspace = AVCOL_SPC_BT709;
    codec->color_range = AVCOL_RANGE_MPEG;
    codec->chroma_sample_location = AVCHROMA_LOC_LEFT;
}

static kn_status set_options(AVDictionary **options, const char *text, const char *path)
{
    int code = av_dict_parse_string(options, text, "=", ":", 0);
    return code < 0 ? fail_av(KN_BUG, code, path, text) : KN_OK;
}

static kn_status open_codec(kn_media_writer *writer, const kn_media_params *params)
{
    kn_status st = KN_OK;
    AVDictionary *options = NULL;
    const coder *with = writer->coder;
    const AVCodec *found = avcodec_find_encoder_by_name(with->name);
    AVCodecContext *codec = writer->codec = avcodec_alloc_context3(found);
    writer->packet = av_packet_alloc();
    if (!codec || !writer->packet) return kn_fail(KN_NOMEM, "%s: no memory for %s", writer->path, with->name);
    int numerator = 0, denominator = 0; /* reduced: MPEG-4 part 2 states no rate above 65535 ticks a second */
    av_reduce(&numerator, &denominator, params->fps_numerator, params->fps_denominator, INT32_MAX);

    codec->width = writer->width;
    codec->height = writer->height;
    codec->pix_fmt = with->format;
    codec->framerate = (AVRational){numerator, denominator};
    codec->time_base = (AVRational){denominator, numerator};
    codec->sample_aspect_ratio = (AVRational){1, 1};
    codec->thread_count = 1;
    codec->flags |= AV_CODEC_FLAG_BITEXACT;
    if (writer->format && writer->format->oformat->flags & AVFMT_GLOBALHEADER)
        codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    if (with->format == AV_PIX_FMT_YUV420P) {
        codec->gop_size = key_frame_distance(params);
        describe_colour(codec);
    }
    double rate = with->bits_per_pixel * writer->width * writer->height * numerator / denominator;
    codec->bit_rate = (int64_t)rate;

    KN_TRY(set_options(&options, with->options, writer->path));
    int quality = params->crf > 0 ? params->crf : with->quality;
    if (with->quality_option) {
        av_dict_set_int(&options, with->quality_option, quality, 0);
    } else if (with->quality_max > 0) {
        codec->flags |= AV_CODEC_FLAG_QSCALE;
        codec->global_quality = quality * FF_QP2LAMBDA;
    }
    int code = avcodec_open2(codec, found, &options);
    if (code < 0) KN_TRY(fail_av(KN_UNAVAILABLE, code, writer->path, with->name));
    const AVDictionaryEntry *left = av_dict_get(options, "", NULL, AV_DICT_IGNORE_SUFFIX);
    if (left) kn_log(KN_LOG_WARNING, "%s: %s here does not know its option %s", writer->path, with->name, left->key);

fail:
    av_dict_free(&options);
    return st;
}

/* Creates the temporary file and writes the container's header. */
static kn_status open_muxer(kn_media_writer *writer, const kn_media_params *params)
{
    kn_status st = KN_OK;
    AVDictionary *options = NULL;
    AVFormatContext *format = writer->format;
    AVStream *stream = writer->stream = avformat_new_stream(format, NULL);
    if (!stream) return kn_fail(KN_NOMEM, "%s: no memory for a stream", writer->path);
    int code = avcodec_parameters_from_context(stream->codecpar, writer->codec);
    if (code < 0) return fail_av(KN_NOMEM, code, writer->path, "describing the stream");
    stream->time_base = writer->codec->time_base;
    stream->avg_frame_rate = writer->codec->framerate;
    stream->r_frame_rate = writer->codec->framerate;
    stream->sample_aspect_ratio = writer->codec->sample_aspect_ratio;
    format->flags |= AVFMT_FLAG_BITEXACT;
    if (params->title) av_dict_set(&format->metadata, "title", params->title, 0);
    if (params->comment) av_dict_set(&format->metadata, "comment", params->comment, 0);

    /* mp4's "encoder" tag proper is libavformat's own; the stream's is free, and players show either. */
    av_dict_set(&stream->metadata, "encoder", "Kinora " KN_VERSION, 0);

    code = avio_open(&format->pb, format->url, AVIO_FLAG_WRITE);
    if (code < 0) return fail_av(KN_IO, code, writer->temporary, "cannot be written");
    writer->created = 1;
    KN_TRY(set_options(&options, writer->container->options, writer->path));
    code = avformat_write_header(format, &options);
    if (code < 0) KN_TRY(fail_av(KN_IO, code, writer->temporary, "writing the header"));
    writer->headed = 1;

fail:
    av_dict_free(&options);
    return st;
}

static kn_status allocate_frame(AVFrame **out, const kn_media_writer *writer, enum AVPixelFormat pixels)
{
    AVFrame *frame = *out = av_frame_alloc();
    if (frame) {
        frame->width = writer->width;
        frame->height = writer->height;
        frame->format = pixels;
        frame->quality = writer->codec->global_quality;
        frame->sample_aspect_ratio = writer->codec->sample_aspect_ratio;
    }
    if (!frame || av_frame_get_buffer(frame, 0) < 0)
        return kn_fail(KN_NOMEM, "%s: no memory for a %dx%d frame", writer->path, writer->width, writer->height);
    return KN_OK;
}

static kn_status open_scaler(kn_media_writer *writer)
{
    struct SwsContext *scaler = writer->scaler = sws_alloc_context();
    if (!scaler) return kn_fail(KN_NOMEM, "%s: no memory for the pixel conversion", writer->path);
    /* Chroma from all pixels, then halved by [1 2 1] across and [1 3 3 1] down, which is what bilinear is here. */
    const int flags = SWS_BILINEAR | SWS_FULL_CHR_H_INP | SWS_ACCURATE_RND | SWS_BITEXACT;
    const struct {
        const char *name;
        int value;
    } settings[] = {
        {"srcw", writer->width}, {"srch", writer->height}, {"src_format", AV_PIX_FMT_RGB24},
        {"dstw", writer->width}, {"dsth", writer->height}, {"dst_format", AV_PIX_FMT_YUV420P},
        {"sws_flags", flags},    {"src_range", 1},         {"dst_range", 0},
        {"dst_h_chr_pos", 0},    {"dst_v_chr_pos", 128}, /* 1/256 of a pixel: left, between the rows */
    };
    int code = 0;
    for (size_t i = 0; i < sizeof settings / sizeof settings[0] && code >= 0; i++)
        code = av_opt_set_int(scaler, settings[i].name, settings[i].value, 0);
    if (code >= 0) code = sws_init_context(scaler, NULL, NULL);
    const int *bt709 = sws_getCoefficients(SWS_CS_ITU709);
    if (code >= 0) code = sws_setColorspaceDetails(scaler, bt709, 1, bt709, 0, 0, 1 << 16, 1 << 16);
    return code < 0 ? fail_av(KN_UNAVAILABLE, code, writer->path, "setting up the pixel conversion") : KN_OK;
}

static void set_gif_palette(AVFrame *picture)
{
    uint32_t *palette = (uint32_t *)(void *)picture->data[1]; /* [256] ARGB; unused ones stay transparent */
    memset(palette, 0, AVPALETTE_SIZE);
    for (int i = 0; i < GIF_RED * GIF_GREEN * GIF_BLUE; i++) {
        uint32_t red = (uint32_t)(i / (GIF_GREEN * GIF_BLUE)) * 255 / (GIF_RED - 1);
        uint32_t green = ((uint32_t)(i / GIF_BLUE % GIF_GREEN) * 255 + (GIF_GREEN - 1) / 2) / (GIF_GREEN - 1);
        uint32_t blue = (uint32_t)(i % GIF_BLUE) * 255 / (GIF_BLUE - 1);
        palette[i] = 0xff000000u | red << 16 | green << 8 | blue;
    }
}

static kn_status open_frames(kn_media_writer *writer)
{
    kn_status st = KN_OK;
    enum AVPixelFormat format = writer->coder->format;
    KN_TRY(allocate_frame(&writer->source, writer, AV_PIX_FMT_RGB24));
    if (format != AV_PIX_FMT_RGB24) KN_TRY(allocate_frame(&writer->picture, writer, format));
    if (format == AV_PIX_FMT_PAL8) set_gif_palette(writer->picture);
    if (format == AV_PIX_FMT_YUV420P) {
        writer->picture->color_primaries = AVCOL_PRI_BT709;
        writer->picture->color_trc = AVCOL_TRC_BT709;
        writer->picture->colorspace = AVCOL_SPC_BT709;
        writer->picture->color_range = AVCOL_RANGE_MPEG;
        writer->picture->chroma_location = AVCHROMA_LOC_LEFT;
        KN_TRY(open_scaler(writer));
    }
fail:
    return st;
}

static kn_status open_format(kn_media_writer *writer)
{
    char *url = kn_format("file:%s", writer->temporary); /* else a name with a colon is a protocol */
    if (!url) return KN_NOMEM;
    int code = avformat_alloc_output_context2(&writer->format, NULL, writer->container->muxer, url);
    kn_free(url);
    return code < 0 ? fail_av(KN_UNAVAILABLE, code, writer->path, writer->container->muxer) : KN_OK;
}

/* With `literal` a percent sign in the name is itself. */
static kn_status open_writer(kn_media_writer **out, const kn_media_params *params, int literal)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, take_ffmpeg_log);
    kn_status st = KN_OK;
    kn_media_writer *writer = NULL;
    const container *kind = NULL;
    const coder *with = NULL;
    *out = NULL;
    KN_TRY(choose(params, &kind, &with));
    KN_TRY(check(params, kind, with));
    writer = kn_alloc(sizeof *writer);
    if (!writer) KN_TRY(KN_NOMEM);
    writer->container = kind;
    writer->coder = with;
    writer->width = params->width;
    writer->height = params->height;
    writer->digits = -1;
    KN_TRY(allocate_names(writer, params->path));
    if (!kind->muxer && !literal) KN_TRY(parse_pattern(writer));
    select_file(writer, 0);
    if (kind->muxer) KN_TRY(open_format(writer));
    KN_TRY(open_codec(writer, params));
    KN_TRY(open_frames(writer));
    if (kind->muxer) KN_TRY(open_muxer(writer, params));
    *out = writer;
    return KN_OK;

fail:
    kn_media_abandon(&writer);
    return st;
}

kn_status kn_media_open(kn_media_writer **out, const kn_media_params *params)
{
    KN_REQUIRE(out && params && params->path);
    return open_writer(out, params, 0);
}

/* ---- frames in ---- */

/* NaN becomes black. */
static uint8_t to_8bit(float value)
{
    return value >= 1 ? 255 : value > 0 ? (uint8_t)(255 * value + 0.5f) : 0;
}

static void fill_source(kn_media_writer *writer, const float *planes, int64_t plane_stride)
{
    for (int32_t y = 0; y < writer->height; y++) {
        uint8_t *row = writer->source->data[0] + (ptrdiff_t)y * writer->source->linesize[0];
        const float *from = planes + (int64_t)y * writer->width;
        for (int32_t x = 0; x < writer->width; x++)
            for (int c = 0; c < 3; c++) row[3 * x + c] = to_8bit(from[c * plane_stride + x]);
    }
}

/* Threshold of ordered dither, 0..63: the bits of x ^ y and y interleaved, lowest first (Bayer's matrix of order 8). */
static int dither_threshold(int x, int y)
{
    int mixed = x ^ y, threshold = 0;
    for (int bit = 0; bit < 3; bit++) threshold = threshold << 2 | (mixed >> bit & 1) << 1 | (y >> bit & 1);
    return threshold;
}

/* A fixed palette and a fixed screen: nothing is learnt from the frames, so a still area stays still. */
static void dither_picture(kn_media_writer *writer)
{
    static const int levels[3] = {GIF_RED, GIF_GREEN, GIF_BLUE};
    for (int32_t y = 0; y < writer->height; y++) {
        const uint8_t *from = writer->source->data[0] + (ptrdiff_t)y * writer->source->linesize[0];
        uint8_t *to = writer->picture->data[0] + (ptrdiff_t)y * writer->picture->linesize[0];
        for (int32_t x = 0; x < writer->width; x++) {
            int threshold = dither_threshold(x & 7, y & 7) * 2 + 1; /* of 128; a colour of the palette stays itself */
            int index = 0;
            for (int c = 0; c < 3; c++)
                index = index * levels[c] + (from[3 * x + c] * (levels[c] - 1) * 128 + threshold * 255) / (255 * 128);
            to[x] = (uint8_t)index;
        }
    }
}

static kn_status make_picture(kn_media_writer *writer)
{
    if (!writer->picture) return KN_OK;
    int code = av_frame_make_writable(writer->picture); /* the encoder may still hold the last one */
    if (code < 0) return fail_av(KN_NOMEM, code, writer->path, "copying a frame");
    if (writer->coder->format == AV_PIX_FMT_PAL8) {
        dither_picture(writer);
        return KN_OK;
    }
    code = sws_scale(writer->scaler, (const uint8_t *const *)writer->source->data, writer->source->linesize, 0,
                     writer->height, writer->picture->data, writer->picture->linesize);
    return code < 0 ? fail_av(KN_UNAVAILABLE, code, writer->path, "converting pixels") : KN_OK;
}

/* ---- packets out ---- */

static kn_status write_whole_file(kn_media_writer *writer, const uint8_t *bytes, int count)
{
    const char *name = writer->temporary;
    int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) return kn_fail(KN_IO, "%s: cannot be written: %s", name, strerror(errno));
    writer->created++;
    int done = 0;
    while (done < count) {
        ssize_t wrote = write(file, bytes + done, (size_t)(count - done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) break;
        done += (int)wrote;
    }
    int failed = done < count ? errno : 0;
    if (close(file) != 0 && !failed) failed = errno;
    return failed ? kn_fail(KN_IO, "%s: cannot be written: %s", name, strerror(failed)) : KN_OK;
}

static kn_status write_packet(kn_media_writer *writer)
{
    AVPacket *packet = writer->packet;
    if (!writer->format) {
        select_file(writer, writer->created);
        return write_whole_file(writer, packet->data, packet->size);
    }
    packet->stream_index = writer->stream->index;
    packet->duration = 1; /* not every encoder fills it in; it is how long the last frame stays */
    av_packet_rescale_ts(packet, writer->codec->time_base, writer->stream->time_base);
    int code = av_interleaved_write_frame(writer->format, packet);
    return code < 0 ? fail_av(KN_IO, code, writer->temporary, "cannot be written") : KN_OK;
}

/* Gives the encoder a frame, or NULL at the end, and writes what it has ready. */
static kn_status encode(kn_media_writer *writer, const AVFrame *frame)
{
    kn_status st = KN_OK;
    int code = avcodec_send_frame(writer->codec, frame);
    if (code < 0) return fail_av(KN_UNAVAILABLE, code, writer->path, writer->coder->name);
    while ((code = avcodec_receive_packet(writer->codec, writer->packet)) >= 0) {
        st = write_packet(writer);
        av_packet_unref(writer->packet);
        if (st != KN_OK) return st;
    }
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return KN_OK;
    return fail_av(KN_UNAVAILABLE, code, writer->path, writer->coder->name);
}

/* Whether one more frame may come. */
static kn_status ready(const kn_media_writer *writer)
{
    if (writer->broken) return kn_fail(KN_INVALID, "%s: an earlier frame could not be written", writer->path);
    if (!writer->format && writer->digits < 0 && writer->frames > 0)
        return kn_fail(KN_INVALID, "%s: is one picture; more frames need a number in the name, as in frame-%%04d.png",
                       writer->path);
    return KN_OK;
}

/* Encodes what `source` holds. */
static kn_status put_source(kn_media_writer *writer)
{
    kn_status st = KN_OK;
    KN_TRY(make_picture(writer));
    AVFrame *frame = writer->picture ? writer->picture : writer->source;
    frame->pts = writer->frames;
    KN_TRY(encode(writer, frame));
    writer->frames++;
    return KN_OK;

fail:
    writer->broken = 1;
    return st;
}

kn_status kn_media_write(kn_media_writer *writer, const float *planes, int64_t plane_stride)
{
    KN_REQUIRE(writer && planes);
    KN_REQUIRE(plane_stride >= (int64_t)writer->width * writer->height);
    kn_status st = ready(writer);
    if (st != KN_OK) return st;
    fill_source(writer, planes, plane_stride);
    return put_source(writer);
}

kn_status kn_media_write_rgb(kn_media_writer *writer, const uint8_t *rgb)
{
    KN_REQUIRE(writer && rgb);
    kn_status st = ready(writer);
    if (st != KN_OK) return st;
    const size_t line = 3 * (size_t)writer->width;
    for (int32_t y = 0; y < writer->height; y++)
        memcpy(writer->source->data[0] + (ptrdiff_t)y * writer->source->linesize[0], rgb + (size_t)y * line, line);
    return put_source(writer);
}

/* ---- the end ---- */

static void release(kn_media_writer **writer)
{
    kn_media_writer *w = *writer;
    if (w->format) {
        if (w->headed && w->container->needs_trailer) av_write_trailer(w->format);
        avio_closep(&w->format->pb);
        avformat_free_context(w->format);
    }
    avcodec_free_context(&w->codec);
    av_packet_free(&w->packet);
    av_frame_free(&w->source);
    av_frame_free(&w->picture);
    sws_freeContext(w->scaler);
    kn_free(w->path);
    kn_free(w->name);
    kn_free(w->temporary);
    kn_free(w);
    *writer = NULL;
}

void kn_media_abandon(kn_media_writer **writer)
{
    if (!writer || !*writer) return;
    kn_media_writer *w = *writer;
    for (int64_t i = 0; i < w->created; i++) {
        select_file(w, i);
        unlink(i < w->published ? w->name : w->temporary);
    }
    release(writer);
}

static kn_status sync_and_close(int file, const char *name)
{
    int failed = file < 0 || fsync(file) != 0 ? errno : 0;
    if (file >= 0) close(file);
    if (failed == EINVAL) failed = 0; /* a file system without it */
    return failed ? kn_fail(KN_IO, "%s: cannot be synced to disk: %s", name, strerror(failed)) : KN_OK;
}

/* The renames themselves are on disk once the folder is. */
static kn_status sync_folder(kn_media_writer *writer)
{
    const char *slash = strrchr(writer->path, '/');
    size_t bytes = slash ? (size_t)(slash - writer->path) + 1 : 0;
    snprintf(writer->name, strlen(writer->path) + NAME_EXTRA, "%.*s.", (int)bytes, writer->path);
    return sync_and_close(open(writer->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), writer->name);
}

static kn_status publish(kn_media_writer *writer)
{
    kn_status st = KN_OK;
    for (int64_t i = 0; i < writer->created; i++) {
        select_file(writer, i);
        KN_TRY(sync_and_close(open(writer->temporary, O_RDONLY | O_CLOEXEC), writer->temporary));
        if (rename(writer->temporary, writer->name) != 0)
            KN_TRY(kn_fail(KN_IO, "%s: cannot be renamed to %s: %s", writer->temporary, writer->name, strerror(errno)));
        writer->published++;
    }
    KN_TRY(sync_folder(writer));
fail:
    return st;
}

static kn_status close_muxer(kn_media_writer *writer)
{
    writer->headed = 0;
    int code = av_write_trailer(writer->format);
    int closed = avio_closep(&writer->format->pb);
    if (code >= 0) code = closed;
    return code < 0 ? fail_av(KN_IO, code, writer->temporary, "cannot be finished") : KN_OK;
}

kn_status kn_media_finish(kn_media_writer **writer)
{
    KN_REQUIRE(writer && *writer);
    kn_status st = KN_OK;
    kn_media_writer *w = *writer;
    if (w->broken) KN_TRY(kn_fail(KN_INVALID, "%s: an earlier frame could not be written", w->path));
    if (w->frames == 0) KN_TRY(kn_fail(KN_INVALID, "%s: no frame was written", w->path));
    KN_TRY(encode(w, NULL));
    if (w->format) KN_TRY(close_muxer(w));
    KN_TRY(publish(w));
    release(writer);
    return KN_OK;

fail:
    kn_media_abandon(writer);
    return st;
}

kn_status kn_media_write_png(const char *path, const float *planes, int64_t plane_stride, int32_t width, int32_t height)
{
    KN_REQUIRE(path && planes);
    const container *kind = container_of_path(path);
    if (!kind || kind->muxer) return kn_fail(KN_INVALID, "%s: the name of a PNG ends in .png", path);
    kn_status st = KN_OK;
    kn_media_writer *writer = NULL;
    kn_media_params params = {.path = path, .width = width, .height = height, .fps_numerator = 1, .fps_denominator = 1};
    KN_TRY(open_writer(&writer, &params, 1));
    KN_TRY(kn_media_write(writer, planes, plane_stride));
    return kn_media_finish(&writer);

fail:
    kn_media_abandon(&writer);
    return st;
}

/* ---- memory ---- */

/* x264 keeps planes with a margin, rows at a multiple of 64 bytes. */
static uint64_t x264_plane(int64_t width, int64_t height)
{
    return (uint64_t)((width + 96 + 63) / 64 * 64 * (height + 64));
}

/* Preset medium: a queue of 40 input frames, or of one key frame distance where that is less, plus those in work, each
 * with its four half-size planes and 96 bytes a macroblock; and the reconstructed frames, each with three interpolated
 * luma planes beside its own. */
static uint64_t x264_bytes(const kn_media_params *params)
{
    int64_t width = params->width, height = params->height;
    int key_frames = params->fps_numerator > 0 && params->fps_denominator > 0 ? key_frame_distance(params) : 40;
    uint64_t queued = (uint64_t)(key_frames < 40 ? key_frames : 40) + 7;
    uint64_t plane = x264_plane(width, height);
    uint64_t input = plane * 3 / 2 + 4 * x264_plane(width / 2, height / 2) + (uint64_t)(width * height) * 96 / 256;
    return queued * input + 6 * (plane * 9 / 2);
}

/* Fitted to the growth of anonymous memory while 60 frames were written (FFmpeg 5.1, x264 164, libvpx 1.12, glibc) at
 * six sizes from 64x64 to 1280x720 and, for x264, at 4 to 30 frames per second: never below what was seen, and at
 * 240x416 and above at most a fifth over it for x264, a tenth for VP9. libopenh264 was not measured and takes VP8's
 * numbers. */
uint64_t kn_media_bytes(const kn_media_params *params)
{
    const container *kind = params && params->path ? container_of_path(params->path) : NULL;
    const coder *with = kind ? find_coder(kind, params->encoder) : NULL;
    if (!with || params->width < 1 || params->height < 1) return 0;
    uint64_t padded = (uint64_t)(params->width + 64) * (uint64_t)(params->height + 64);
    uint64_t bytes = padded * (uint64_t)with->bytes_per_pixel + (uint64_t)with->bytes_fixed;
    return strcmp(with->name, "libx264") == 0 ? bytes + x264_bytes(params) : bytes;
}
