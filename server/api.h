/* SPDX-License-Identifier: Apache-2.0
 *
 * What the handlers of all fronts share. A *call* is one exchange, or one call of the gRPC front, as the API sees it:
 * who asks, for which route, and what it is waiting for. It lives until that is over and nothing that was asked on its
 * behalf is still to come back: answers find a call whose client has gone (kn_call_waits false), never a call that is
 * gone.
 *
 * Loop thread only. */
#ifndef KN_SERVER_API_H
#define KN_SERVER_API_H

#include "server/core.h"
#include "server/query.h"
#include "server/video_request.h"

enum { KN_CALL_HEADERS_MAX = 16 };

typedef struct kn_call kn_call;

typedef struct kn_route {
    kn_http_method method;
    const char *pattern; /* "/v1/videos/{id}"; at most one {id}, and one {version} behind it, each one segment */
    const char *name;    /* "GET /v1/videos/{id}", for logs and metrics */
    unsigned scope;      /* kn_scope; 0: anybody */
    void (*handle)(kn_call *call);
    uint64_t body_bytes; /* most bytes of a body; KN_ROUTE_UPLOAD: as its content type says */
} kn_route;

#define KN_ROUTE_UPLOAD UINT64_MAX

/* How a call that is not an exchange is answered. Each ends its kn_grpc_call; the kn_call's end follows by itself. */
typedef struct kn_call_front {
    void (*error)(kn_call *call, const kn_api_error *error);
    void (*video)(kn_call *call, kn_live *live); /* the job as it is now */
    void (*deleted)(kn_call *call);              /* call->live is gone for good */
    void (*drain)(kn_call *call);                /* call->stream: the server is being shut down */
} kn_call_front;

/* A submission under way (intake.c). */
typedef struct kn_intake {
    kn_video_params params;
    kn_job job;
    kn_catalog_model *model;
    kn_catalog_size size;
    char key[KN_IDEMPOTENCY_KEY_BYTES];
    uint8_t fingerprint[KN_SHA256_BYTES];
    kn_api_error refusal; /* what the client hears unless its idempotency key is known */
    const char *refusal_reason;
} kn_intake;

struct kn_call {
    kn_server *server;
    kn_http_exchange *exchange; /* NULL: answered, or the client has gone, or it came over gRPC */
    kn_grpc_call *grpc;         /* in place of an exchange; its user is this call */
    const kn_call_front *front; /* of a gRPC call; NULL: HTTP */
    const kn_route *route;
    const char *parameter; /* what stands for {id}; in `path` */
    const char *version;   /* what stands for {version}; "" without it */
    char path[160];
    char allow[32]; /* for 405: the methods of this path, "GET, HEAD, DELETE" */
    kn_principal principal;
    kn_limit_headers limits;
    int32_t pending; /* answers that will come back for it */
    kn_intake *intake;
    bool sync;  /* POST /v1/videos/sync: the reply is the video */
    bool owner; /* and it made the job, which is cancelled when the last client that waits for it goes away */
    void (*deliver)(kn_call *call); /* sync: answers once `live` has ended; NULL: with the file */
    bool kserve;                    /* errors have the shape of the inference protocol */
    struct kn_kserve_wish *wish;    /* what an inference's answer is to hold (kserve_core.h); owned */
    void (*observe)(kn_call *call); /* the job waited for has changed; may be NULL */

    /* Following a job. */
    kn_live *live; /* pinned */
    kn_watcher *watcher;
    void (*after)(kn_call *call);  /* once `live` has ended */
    bool stream;                   /* of events */
    bool no_progress, no_previews; /* of these a stream wants none (gRPC) */
    bool listed;                   /* in the server's list of calls that last as long as a job */
    kn_call *next_stream, *previous_stream;
};

/* In the headers() callback: the call for a new exchange with its route in `table`; NULL: there is none, and it has
 * been told. The other callbacks for exchanges that have a call. */
kn_call *kn_call_open(kn_server *server, kn_http_exchange *exchange, const kn_route *table, size_t count);
/* The same for a gRPC call, which has been let in; `route` stands in for one of HTTP's: its scope and pattern tell what
 * a submission is. `parameter` is the id it is about, or "". NULL: no memory, and the call has been told. */
kn_call *kn_call_open_grpc(kn_server *server, kn_grpc_call *grpc, const kn_call_front *front, const kn_route *route,
                           const char *parameter);
/* The same without becoming the gRPC call's user, for one of several calls that share it. NULL: no memory, and nothing
 * has been told. */
kn_call *kn_call_share_grpc(kn_server *server, kn_grpc_call *grpc, const kn_call_front *front, const kn_route *route,
                            const char *parameter);
void kn_call_gone(kn_call *call);             /* the client is gone */
void kn_call_closed_grpc(kn_grpc_call *grpc); /* for kn_grpc_method.closed, where the call's user is a kn_call */
/* Is the client still there, and not answered? */
bool kn_call_waits(const kn_call *call);
/* A field of the request's header section or metadata; NULL: there is none. */
const char *kn_call_header(const kn_call *call, const char *name);
void kn_call_request(kn_http_exchange *exchange, void *context);
void kn_call_closed(kn_http_exchange *exchange, void *context);
void kn_call_finished(const kn_http_record *record, void *context);

/* ---- replies: each ends the exchange ---- */

void kn_call_reply(kn_call *call, int status, const char *content_type, const void *body, size_t bytes,
                   const kn_http_reply_header *headers, size_t header_count);
/* Takes the text. */
void kn_call_json(kn_call *call, kn_text *text, const kn_http_reply_header *headers, size_t header_count);
void kn_call_error(kn_call *call, const kn_api_error *error);
void kn_call_video(kn_call *call, kn_live *live);
void kn_call_deleted(kn_call *call); /* call->live */
/* The exchange or gRPC call was ended by a function of http.h or grpc.h. */
void kn_call_over(kn_call *call);

/* Something asked on the call's behalf comes back later. */
void kn_call_hold(kn_call *call);
void kn_call_release(kn_call *call);

/* The call's job, in memory, if it is this tenant's; else the error has been sent and NULL is returned. */
kn_live *kn_call_find(kn_call *call);
/* A tenant's job, brought into memory where needed; NULL: there is none. */
kn_live *kn_api_find(kn_server *server, const char *tenant, const char *id);
/* Brings a finished job back into memory. */
kn_live *kn_api_recall(kn_server *server, const char *tenant, const char *id);

/* Into the list of calls that a drain ends. */
void kn_call_list(kn_call *call);

/* Pins the job until the call is over. */
void kn_call_pin(kn_call *call, kn_live *live);
/* Calls `after` once the job has ended; at once, from the loop, when it has. */
void kn_call_wait(kn_call *call, kn_live *live, void (*after)(kn_call *call));

/* ---- handlers ---- */

/* Makes a job of the body; `content_type` as kn_video_request_parse takes it. Answers as call->sync says. */
void kn_intake_begin(kn_call *call, const void *body, size_t bytes, const char *content_type);

void kn_api_create(kn_call *call); /* intake.c */
void kn_api_sync(kn_call *call);
bool kn_api_turn_back(kn_call *call);   /* no room, and no idempotency key to look up? Then the call has been told */
void kn_api_not_offered(kn_call *call); /* edits, extensions, characters, remix */

void kn_api_list(kn_call *call); /* api_videos.c */
/* One page of a tenant's jobs, handed to `write`, which is not called on failure. */
typedef void kn_api_page_fn(void *context, const kn_video_item *items, size_t count, bool more);
kn_status kn_api_list_page(kn_server *server, const char *tenant, const kn_list_query *query, kn_api_page_fn *write,
                           void *context, kn_api_error *error);
void kn_api_get(kn_call *call);
void kn_api_delete(kn_call *call);
void kn_api_cancel(kn_call *call);

void kn_api_content(kn_call *call); /* api_content.c */
void kn_api_events(kn_call *call);
void kn_api_send_video(kn_call *call, kn_live *live);
enum { KN_API_ETAG_BYTES = 40 };
/* Names a file's content: with its quotes. */
void kn_api_etag(char etag[KN_API_ETAG_BYTES], const kn_live *live, kn_artifact_kind kind);
/* KN_OK, or why there is nothing to download. */
kn_status kn_api_check_content(const kn_live *live, kn_api_error *error);
/* Is there a finished file? KN_OK, or what a client that waited for it is told. */
kn_status kn_api_check_result(const kn_live *live, kn_api_error *error);
/* Opens a completed job's file; the caller closes *fd. KN_NOT_FOUND with *error: it is not there. */
kn_status kn_api_open_result(kn_server *server, const kn_live *live, kn_artifact_kind kind, int *fd, uint64_t *bytes,
                             kn_api_error *error);
void kn_api_turn_away(kn_call *call);     /* refuses to wait any longer for the call's job */
void kn_api_heartbeat(kn_server *server); /* a comment to every stream */

void kn_api_endpoint_create(kn_call *call); /* api_webhooks.c */
void kn_api_endpoint_list(kn_call *call);
void kn_api_endpoint_get(kn_call *call);
void kn_api_endpoint_update(kn_call *call);
void kn_api_endpoint_rotate(kn_call *call);
void kn_api_endpoint_test(kn_call *call);
void kn_api_event_types(kn_call *call);
void kn_api_endpoint_delete(kn_call *call);

void kn_api_page(kn_call *call); /* page.c */

/* KServe v2 and Triton's extensions over REST (kserve_http.c): everything below /v2. */
const kn_route *kn_kserve_routes(size_t *count);

#endif
