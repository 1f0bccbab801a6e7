/* SPDX-License-Identifier: Apache-2.0
 *
 * The Open Inference Protocol (KServe v2) as far as Triton's tensors can say "make a video": what a model looks like,
 * what a request means, what comes back. Values only; kserve_json.h writes them as REST bodies, kserve_proto.h as
 * protobuf, and both fronts hand what a client asked for to the same intake as the Videos API.
 *
 * A model has one version, "1", no batch dimension, and these tensors, each of one element unless said otherwise:
 *
 *   inputs     prompt BYTES, and optional: negative_prompt BYTES, size BYTES "832x480", seconds FP32, num_frames INT32,
 *              fps FP32, num_inference_steps INT32, guidance_scale FP32, flow_shift FP32, seed INT64, sampler BYTES
 *   outputs    video BYTES (the MP4 file), video_id BYTES, status BYTES, progress INT32 (percent)
 *
 * Other fields of the Videos API travel as request parameters. All functions are pure. */
#ifndef KN_SERVER_KSERVE_H
#define KN_SERVER_KSERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "engine/repository.h"
#include "server/api_error.h"
#include "server/text.h"

enum {
    KN_KSERVE_RANK_MAX = 8,
    KN_KSERVE_INPUTS_MAX = 16,
    KN_KSERVE_PARAMETERS_MAX = 32,
    KN_KSERVE_ID_BYTES_MAX = 256,         /* of a request's own id */
    KN_KSERVE_TEXT_BYTES_MAX = 128 << 10, /* of one BYTES element: a prompt of 32,000 characters at four bytes */
    KN_KSERVE_TIERS = 3,                  /* Triton's priority 1, 2, 3: priority, default, flex */
};

/* The one version there is. */
#define KN_KSERVE_VERSION "1"
#define KN_KSERVE_PLATFORM "kinora"

/* ---- what there is ---- */

typedef enum kn_kserve_type {
    KN_KSERVE_BOOL = 1, /* numbered as Triton's model configuration numbers them */
    KN_KSERVE_UINT8,
    KN_KSERVE_UINT16,
    KN_KSERVE_UINT32,
    KN_KSERVE_UINT64,
    KN_KSERVE_INT8,
    KN_KSERVE_INT16,
    KN_KSERVE_INT32,
    KN_KSERVE_INT64,
    KN_KSERVE_FP16,
    KN_KSERVE_FP32,
    KN_KSERVE_FP64,
    KN_KSERVE_BYTES,
    KN_KSERVE_BF16,
    KN_KSERVE_TYPES,
} kn_kserve_type;

const char *kn_kserve_type_name(kn_kserve_type type);            /* "FP32": in requests and metadata */
const char *kn_kserve_type_config_name(kn_kserve_type type);     /* "TYPE_FP32": in a configuration; BYTES is STRING */
bool kn_kserve_type_find(kn_kserve_type *out, const char *name); /* by the first name */

typedef struct kn_kserve_spec {
    const char *name;
    kn_kserve_type type;
    int32_t rank;
    int64_t shape[4]; /* -1: varies */
    bool optional;
} kn_kserve_spec;

typedef enum kn_kserve_output {
    KN_KSERVE_VIDEO,
    KN_KSERVE_VIDEO_ID,
    KN_KSERVE_STATUS,
    KN_KSERVE_PROGRESS,
    KN_KSERVE_OUTPUTS,
} kn_kserve_output;

const kn_kserve_spec *kn_kserve_inputs(size_t *count);
const kn_kserve_spec *kn_kserve_outputs(void); /* [KN_KSERVE_OUTPUTS], by kn_kserve_output */

/* Protocol extensions that are implemented, whole. */
const char *const *kn_kserve_extensions(size_t *count);

/* A model in the repository: what index, metadata and configuration say of it. Strings are borrowed. */
typedef struct kn_kserve_model {
    const char *name;
    bool ready;
    const char *reason; /* why not; "" when ready */
    int32_t width, height, frames, steps;
    double guidance, fps; /* defaults; 0: not known */
} kn_kserve_model;

kn_kserve_model kn_kserve_describe(const char *name, bool ready, const char *reason, const kn_repository *repository);

/* Defaults and limits as the configuration's parameters. */
typedef struct kn_kserve_setting {
    const char *key;
    char value[48];
} kn_kserve_setting;
enum { KN_KSERVE_SETTINGS_MAX = 8 };
size_t kn_kserve_settings(kn_kserve_setting out[KN_KSERVE_SETTINGS_MAX], const kn_kserve_model *model);

/* "" and "1" are the version there is; anything else 404. */
kn_status kn_kserve_check_version(const char *model, const char *version, kn_api_error *error);

/* A parameter of a load or unload: models come from the server's own folders, so none that brings a configuration or
 * files can be had. */
kn_status kn_kserve_check_change(const char *parameter, kn_api_error *error);

/* ---- statistics ---- */

typedef struct kn_kserve_duration {
    uint64_t count, ns;
} kn_kserve_duration;

/* Of one model since the server started. A job counts as one execution: what a device runs together changes from step
 * to step. */
typedef struct kn_kserve_counts {
    uint64_t last_ms; /* Unix time of the last end */
    kn_kserve_duration success, fail, queue, text, denoise, decode;
} kn_kserve_counts;

typedef struct kn_kserve_ended {
    bool good;
    int64_t created_us, started_us, ended_us; /* wall clock; started 0: never */
    double text_s, denoise_s, decode_s;       /* on the device */
} kn_kserve_ended;

void kn_kserve_count(kn_kserve_counts *counts, const kn_kserve_ended *ended);

/* ---- a request ---- */

typedef enum kn_kserve_kind {
    KN_KSERVE_IS_BOOL,
    KN_KSERVE_IS_INT,
    KN_KSERVE_IS_UINT,
    KN_KSERVE_IS_DOUBLE,
    KN_KSERVE_IS_FLOAT, /* a double that came as 32 bits, and is written with as many digits */
    KN_KSERVE_IS_TEXT,
} kn_kserve_kind;

typedef struct kn_kserve_value {
    kn_kserve_kind kind;
    bool boolean;
    int64_t integer;
    uint64_t natural;
    double real;
    const char *text; /* borrowed */
    size_t bytes;
} kn_kserve_value;

typedef struct kn_kserve_field {
    const char *name; /* borrowed */
    kn_kserve_value value;
} kn_kserve_field;

/* Everything is borrowed from the message it was read from. */
typedef struct kn_kserve_request {
    const char *model, *version, *id; /* never NULL */
    kn_kserve_field inputs[KN_KSERVE_INPUTS_MAX];
    size_t input_count;
    kn_kserve_field parameters[KN_KSERVE_PARAMETERS_MAX];
    size_t parameter_count;
    unsigned wanted; /* bit per kn_kserve_output that was named; 0: those that come unasked */
    unsigned binary; /* bit per output that is to come behind the JSON; REST only */
} kn_kserve_request;

/* The tensor's one element from its raw form: little-endian, BYTES with a length of four bytes in front. `name` is
 * for the error. */
kn_status kn_kserve_value_raw(kn_kserve_value *out, const char *name, kn_kserve_type type, const void *raw,
                              size_t count, kn_api_error *error);
/* Exactly one element, whatever the number of dimensions? */
kn_status kn_kserve_check_shape(const char *name, const int64_t *shape, size_t rank, kn_api_error *error);
kn_status kn_kserve_check_type(const char *name, const char *datatype, kn_kserve_type *out, kn_api_error *error);

/* Each adds one and refuses a name that is not known, comes twice or is of the wrong kind. */
kn_status kn_kserve_add_input(kn_kserve_request *request, const char *name, const kn_kserve_value *value,
                              kn_api_error *error);
kn_status kn_kserve_add_parameter(kn_kserve_request *request, const char *name, const kn_kserve_value *value,
                                  kn_api_error *error);
kn_status kn_kserve_add_output(kn_kserve_request *request, const char *name, bool binary, kn_api_error *error);

/* Which outputs the whole answer has; of a stream's answers only the last has files. */
unsigned kn_kserve_answered(const kn_kserve_request *request);

/* The same as a JSON body of POST /v1/videos, for `model`. 400 when a text is not UTF-8. */
kn_status kn_kserve_body(kn_text *out, const kn_kserve_request *request, const char *model, kn_api_error *error);

/* ---- an answer ---- */

typedef struct kn_kserve_answer {
    const char *model, *id;
    const char *video_id, *status;
    int32_t progress;
    unsigned outputs;     /* bit per kn_kserve_output */
    unsigned binary;      /* likewise; REST only */
    uint64_t video_bytes; /* with KN_KSERVE_VIDEO */
    bool streamed, last;  /* "triton_final_response" says which is the last of a stream */
} kn_kserve_answer;

/* KN_KSERVE_VIDEO where the answer has it: the one output that is a file; else KN_KSERVE_OUTPUTS. */
kn_kserve_output kn_kserve_file_of(unsigned outputs);

#endif
