/* SPDX-License-Identifier: Apache-2.0
 *
 * Messages of schema/kinora.fbs, in C. Requests are verified before anything of them is read (offsets, texts, required
 * fields; at most KN_RPC_DEPTH_MAX tables deep and KN_RPC_TABLES_MAX in all) and must be the caller's own, aligned
 * copy, as kn_grpc_method.message has them. Replies are blocks that can be sent to many.
 *
 * Every function that takes a kn_api_error fills it whenever it does not return KN_OK. */
#ifndef KN_SERVER_RPC_H
#define KN_SERVER_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "server/api_error.h"
#include "server/artifact.h"
#include "server/meters.h"
#include "server/query.h"
#include "server/references.h"
#include "server/video_response.h"
#include "server/watch.h"

enum {
    KN_RPC_DEPTH_MAX = 8,
    KN_RPC_TABLES_MAX = 64,
    KN_RPC_CHUNK_BYTES_MIN = 4 << 10,
    KN_RPC_CHUNK_BYTES_MAX = 1 << 20,
    KN_RPC_CHUNK_BYTES = 256 << 10,
    KN_RPC_ETAG_BYTES = 80,
};

/* ---- requests ---- */

/* As the JSON body of POST /v1/videos, so that both are held to the same rules. `call_seconds` is what is left of the
 * call's deadline, NaN without one. `reference` is the id of an uploaded picture, "" without one. */
kn_status kn_rpc_read_submit(kn_text *json, char reference[KN_REFERENCE_ID_BYTES], const void *bytes, size_t count,
                             double call_seconds, kn_api_error *error);
/* A job's id as it was given, cut where it could be none. */
kn_status kn_rpc_read_id(char id[KN_JOB_ID_BYTES + 8], const void *bytes, size_t count, kn_api_error *error);
kn_status kn_rpc_read_list(kn_list_query *out, const void *bytes, size_t count, kn_api_error *error);
kn_status kn_rpc_read_model(char name[KN_MODEL_NAME_BYTES], const void *bytes, size_t count, kn_api_error *error);
kn_status kn_rpc_read_empty(const void *bytes, size_t count, kn_api_error *error); /* no bytes at all will do, too */

typedef struct kn_rpc_watch {
    char id[KN_JOB_ID_BYTES + 8];
    char after[KN_WATCH_ID_BYTES];
    bool no_progress, no_previews, cancel_with_call;
} kn_rpc_watch;
kn_status kn_rpc_read_watch(kn_rpc_watch *out, const void *bytes, size_t count, kn_api_error *error);

typedef struct kn_rpc_download {
    char id[KN_JOB_ID_BYTES + 8];
    kn_artifact_kind kind;
    uint64_t offset, length; /* length 0: to the end */
    uint32_t chunk_bytes;
    char etag[KN_RPC_ETAG_BYTES];
} kn_rpc_download;
kn_status kn_rpc_read_download(kn_rpc_download *out, const void *bytes, size_t count, kn_api_error *error);

/* *data points into `bytes`. */
kn_status kn_rpc_read_part(const uint8_t **data, size_t *data_bytes, const void *bytes, size_t count,
                           kn_api_error *error);

/* ---- replies ---- */

typedef struct kn_rpc_spares kn_rpc_spares;

typedef struct kn_rpc_block {
    const uint8_t *bytes;
    size_t count;
    void *raw; /* the block's memory */
    int32_t references;
    size_t raw_bytes;
    kn_rpc_spares *home; /* where `raw` goes; NULL: it is freed */
} kn_rpc_block;

/* Memory of chunks that were sent, for the next ones: fresh pages would cost more than the copying. Zeroed at first;
 * outlives all its blocks. */
enum { KN_RPC_SPARES = 4 };
struct kn_rpc_spares {
    struct {
        void *raw;
        size_t bytes;
    } all[KN_RPC_SPARES];
};
void kn_rpc_spares_release(kn_rpc_spares *spares);

void kn_rpc_block_unref(void *block); /* as kn_grpc_send_owned wants it */

/* KN_NOMEM, KN_INVALID: longer than a message may be. */
kn_status kn_rpc_write_video(kn_rpc_block **out, const kn_video_item *item);
kn_status kn_rpc_write_list(kn_rpc_block **out, const kn_video_item *items, size_t count, bool has_more);
kn_status kn_rpc_write_deleted(kn_rpc_block **out, const char *id);

kn_status kn_rpc_write_state(kn_rpc_block **out, const char *event_id, const kn_video_item *item);
typedef struct kn_rpc_progress {
    const char *stage;
    int32_t percent, step, steps;
    double eta_seconds; /* NaN: not known */
} kn_rpc_progress;
kn_status kn_rpc_write_progress(kn_rpc_block **out, const char *event_id, const kn_rpc_progress *progress);
kn_status kn_rpc_write_preview(kn_rpc_block **out, const char *event_id, int32_t step, const char *mime,
                               const void *image, size_t count);

/* A chunk of `count` bytes that the caller fills in at *data. `mime` and `etag` may be NULL. */
kn_status kn_rpc_write_chunk(kn_rpc_block **out, kn_rpc_spares *spares, uint8_t **data, size_t count, uint64_t offset,
                             uint64_t total, const char *mime, const char *etag);

typedef struct kn_rpc_reference {
    const char *id, *mime;
    uint64_t bytes;
    int32_t width, height;
    int64_t expires_at;
} kn_rpc_reference;
kn_status kn_rpc_write_reference(kn_rpc_block **out, const kn_rpc_reference *reference);

typedef struct kn_rpc_model {
    const char *name, *reason;
    int64_t created_at; /* microseconds */
    bool ready;
} kn_rpc_model;
kn_status kn_rpc_write_models(kn_rpc_block **out, const kn_rpc_model *models, size_t count);
kn_status kn_rpc_write_model(kn_rpc_block **out, const kn_rpc_model *model);

typedef struct kn_rpc_statistics {
    kn_queue_stats queue;
    double uptime_seconds;
    bool ready;
    const char *reason;
    int32_t connections, calls, watchers;
} kn_rpc_statistics;
kn_status kn_rpc_write_statistics(kn_rpc_block **out, const kn_rpc_statistics *statistics);

#endif
