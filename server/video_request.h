/* SPDX-License-Identifier: Apache-2.0
 *
 * What a client asks for on POST /v1/videos and its siblings, out of any dialect that real clients send: multipart
 * (OpenAI's Python and JavaScript libraries always, curl, aiohttp), JSON, and urlencoded forms; nested values as JSON
 * or in bracket names; numbers and booleans as such or as text; an `extra_body` or `extra_params` object (or text that
 * is one) merged into the top level. All of them become one tree, and the tree one kn_video_params.
 *
 *   field                  type                             meaning
 *   prompt                 string, required                 1..32,000 characters (Unicode code points)
 *   negative_prompt        string                           0..32,000 characters
 *   model                  string                           default: the server's; an alias or a folder's name
 *   size                   "WxH"                            or width and height, integers
 *   seconds                number or text                   > 0; times fps gives the frames unless num_frames is set
 *   num_frames, fps        integer; number                  num_frames wins over seconds
 *   num_inference_steps    integer 1..200
 *   guidance_scale         number 0..100
 *   flow_shift             number > 0
 *   seed                   integer 0..2^63-1                -1 or absent: a random one
 *   sampler                "unipc" or "euler"
 *   input_reference        a file part, or an object with exactly one of image_url (or image_url.url) and file_id
 *   characters             array of {"id"}, at most 2
 *   service_tier           "auto", "default", "flex", "priority"
 *   priority               integer                          vLLM's: lower is earlier; < 0 priority, 0 default, > 0 flex
 *   deadline               number or text                   below 10^9: seconds from now; above: Unix seconds; or RFC
 * 3339 metadata               object of strings                16 pairs, keys of 64 and values of 512 characters user
 * string                           at most 256 characters
 *
 * null is the same as absent. A field that changes nothing here whatever its value (or as long as it has the value
 * that we use anyway: n = 1, quality = "standard") is listed in `ignored`; every other field is refused with
 * "unknown_parameter". Nothing that would change the result is dropped silently.
 *
 * All functions are pure: no clock, no random numbers, no I/O. */
#ifndef KN_SERVER_VIDEO_REQUEST_H
#define KN_SERVER_VIDEO_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/repository.h"
#include "engine/request.h"
#include "scheduler/scheduler.h"
#include "server/api_error.h"
#include "server/job.h"

enum {
    KN_API_PROMPT_CHARACTERS_MAX = 32000,
    KN_API_STEPS_MAX = 200,
    KN_API_SIZE_MAX = 1 << 14,       /* pixels of a side in the text; the model's limit is lower */
    KN_API_FRAMES_MAX = 1 << 20,     /* likewise */
    KN_API_SECONDS_MAX = 3600,       /* likewise */
    KN_API_SECONDS_BYTES = 24,       /* seconds as text, with the NUL */
    KN_API_URL_BYTES_MAX = 20971520, /* OpenAI's limit on image_url; a JSON body holds less */
    KN_API_FILE_ID_BYTES_MAX = 128,
    KN_API_CHARACTERS_MAX = 2,
    KN_API_CHARACTER_ID_BYTES = 128,
    KN_API_METADATA_PAIRS_MAX = 16,
    KN_API_METADATA_KEY_CHARACTERS_MAX = 64,
    KN_API_METADATA_VALUE_CHARACTERS_MAX = 512,
    KN_API_USER_CHARACTERS_MAX = 256,
    KN_API_DEADLINE_MAX = 30 * 24 * 3600, /* seconds from now */
    KN_API_IGNORED_MAX = 8,
    KN_API_IGNORED_BYTES = 32,

};

typedef enum kn_video_operation {
    KN_VIDEO_CREATE,    /* POST /videos */
    KN_VIDEO_REMIX,     /* POST /videos/{id}/remix */
    KN_VIDEO_EDIT,      /* POST /videos/edits */
    KN_VIDEO_EXTEND,    /* POST /videos/extensions */
    KN_VIDEO_CHARACTER, /* POST /videos/characters */
} kn_video_operation;

typedef enum kn_media_kind {
    KN_MEDIA_UNKNOWN,
    KN_MEDIA_JPEG,
    KN_MEDIA_PNG,
    KN_MEDIA_WEBP,
    KN_MEDIA_GIF,
    KN_MEDIA_MP4, /* or another ISO base media file */
    KN_MEDIA_WEBM,
} kn_media_kind;

enum { KN_MEDIA_MAGIC_BYTES = 12 }; /* enough for kn_media_sniff */
kn_media_kind kn_media_sniff(const void *bytes, size_t count);
const char *kn_media_type(kn_media_kind kind); /* "image/jpeg", ...; "application/octet-stream" */

typedef enum kn_reference_kind {
    KN_REFERENCE_NONE,
    KN_REFERENCE_FILE,
    KN_REFERENCE_IMAGE_URL,
    KN_REFERENCE_FILE_ID,
} kn_reference_kind;

typedef struct kn_video_reference {
    kn_reference_kind kind;
    char *text; /* IMAGE_URL, FILE_ID; owned */
    /* FILE: */
    kn_media_kind media;             /* by its first bytes; what the client says about the type is not believed */
    uint64_t bytes;                  /* length */
    uint64_t offset;                 /* of its first byte in the request's body */
    uint8_t sha256[KN_SHA256_BYTES]; /* of its content */
} kn_video_reference;

typedef enum kn_deadline_kind { KN_DEADLINE_NONE, KN_DEADLINE_FROM_NOW, KN_DEADLINE_AT } kn_deadline_kind;

/* Strings are owned, NULL where the client said nothing; numbers are 0, or NaN for those of type double. */
typedef struct kn_video_params {
    kn_video_operation operation;
    char *prompt;
    char *negative_prompt;
    char model[KN_MODEL_NAME_BYTES];    /* as asked; "": the server's default */
    int32_t width, height;              /* pixels */
    char seconds[KN_API_SECONDS_BYTES]; /* shortest decimal text of the number asked for: "8", "2.5"; "": not given */
    int32_t frames;
    int32_t fps_numerator, fps_denominator;
    int32_t steps;
    double guidance, shift;
    bool has_seed; /* false: random */
    uint64_t seed;
    bool has_sampler;
    kn_sampler_kind sampler;
    kn_video_reference reference;
    int32_t character_count;
    char characters[KN_API_CHARACTERS_MAX][KN_API_CHARACTER_ID_BYTES];
    bool has_priority; /* false: "auto" or not given; the key's own tier */
    kn_priority priority;
    kn_deadline_kind deadline;
    int64_t deadline_us; /* FROM_NOW: microseconds from now; AT: since 1970 */
    char *metadata;      /* JSON object, keys sorted, compact; NULL: none */
    char *user;
    /* Names of fields that were understood to change nothing. */
    int32_t ignored_count;
    char ignored[KN_API_IGNORED_MAX][KN_API_IGNORED_BYTES];
} kn_video_params;

void kn_video_params_release(kn_video_params *params);

/* ---- reading a body ---- */

/* A whole body. `content_type` is the header's value, NULL or "": 415 (as for types other than the three, and for a
 * charset other than UTF-8). A file's bytes are body + params.reference.offset; nothing is copied. Operations other
 * than create check what their callers must send and then answer KN_UNSUPPORTED, code "unsupported_operation". On
 * failure *out holds nothing. */
kn_status kn_video_request_parse(kn_video_params *out, kn_video_operation operation, const void *body, size_t count,
                                 const char *content_type, kn_api_error *error);

/* The same for a body that arrives in pieces: a multipart file goes through `write` as it comes and is never held;
 * everything else is bounded by KN_BODY_JSON_BYTES_MAX or KN_MULTIPART_TEXT_BYTES_MAX. */
typedef struct kn_video_reader kn_video_reader;

typedef struct kn_video_file_sink {
    void *context;
    /* The next bytes of the input_reference (or video) file. NULL: they are measured and dropped. A status other than
     * KN_OK ends the request with *error. */
    kn_status (*write)(void *context, const void *bytes, size_t count, kn_api_error *error);
} kn_video_file_sink;

kn_status kn_video_reader_create(kn_video_reader **out, kn_video_operation operation, const char *content_type,
                                 kn_video_file_sink sink, kn_api_error *error);
/* After a failure only kn_video_reader_destroy may follow. */
kn_status kn_video_reader_feed(kn_video_reader *reader, const void *bytes, size_t count, kn_api_error *error);
kn_status kn_video_reader_finish(kn_video_reader *reader, kn_video_params *out, kn_api_error *error);
void kn_video_reader_destroy(kn_video_reader **reader);
/* Most bytes a body of this content type may have: what a server may let in before anything is read. */
uint64_t kn_video_body_limit(const char *content_type);

/* ---- what follows from it (video_params.c) ---- */

/* The model that was chosen for params->model. */
typedef struct kn_video_model {
    const char *name; /* as clients call it, for messages */
    const kn_repository *repository;
    bool image_input; /* takes an input_reference */
    bool characters;
} kn_video_model;

/* Fills and resolves the engine's request. `random_seed` is used when the client named none (its low 32 bits are what
 * matters). KN_INVALID and KN_UNSUPPORTED name the API's field and its limit. `notes` (may be NULL) says what was
 * rounded. The caller releases *out; on failure it holds nothing. */
kn_status kn_video_params_to_request(kn_request *out, const kn_video_params *params, const kn_video_model *model,
                                     uint64_t random_seed, kn_request_notes *notes, kn_api_error *error);

/* Wall-clock microseconds by which the video is wanted, 0: no deadline. A deadline in the past is refused. */
kn_status kn_video_params_deadline(int64_t *out, const kn_video_params *params, int64_t now_us, kn_api_error *error);

/* The JSON object for kn_job.extra: {"seconds", "metadata", "user", "ignored", "notes"}, without what is not there;
 * NULL in *out when there is nothing. "seconds" is left out when num_frames decided instead. `notes` may be NULL.
 * kn_alloc'ed. */
kn_status kn_video_params_extra(char **out, const kn_video_params *params, const kn_request_notes *notes);

/* SHA-256 of the meaning: equal for the same request in any dialect, field order and number format, different for any
 * other. The content of a file counts, its name and type do not; ignored fields do not. */
kn_status kn_video_params_fingerprint(uint8_t out[KN_SHA256_BYTES], const kn_video_params *params);

/* An Idempotency-Key header: 1..255 visible ASCII characters, bare or as a quoted string (RFC 9651 sf-string).
 * `value` NULL: out is "". */
kn_status kn_idempotency_key_parse(char out[KN_IDEMPOTENCY_KEY_BYTES], const char *value, kn_api_error *error);

#endif
