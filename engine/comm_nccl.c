/* SPDX-License-Identifier: Apache-2.0
 *
 * Every collective is blocks (comm.h), so of NCCL only point-to-point calls in groups are used: on NVLink these are
 * what an all-to-all consists of anyway. Rows that are not dense are packed into staging memory on the same stream.
 *
 * NCCL's rules for aborting (user guide, "Fault tolerance"): the communicator is non-blocking, every rank aborts, and
 * no thread is inside a call of it meanwhile; `lock` sees to the last.
 *
 * The names below are NCCL's own, declared here so that building needs no NCCL: its interface is stable since 2.18. */
#define _GNU_SOURCE
#include "engine/comm_nccl.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/comm_internal.h"

enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7, NCCL_INT8 = 0, NCCL_NO_COLOR = -1, NCCL_OLDEST = 21800 };
enum { REASON_BYTES = 160, WATCH_MS = 100, POLL_NS = 100000 };
enum { SPANS = 512 }; /* of one kind in one slice; what is beyond is not timed */

#define NCCL_MAGIC 0xcafebeefu
#define INIT_NS INT64_C(120000000000)

typedef struct nccl_id {
    char bytes[128];
} nccl_id;

/* ncclConfig_t as of 2.18; later versions read it as it is, by its size and version. */
typedef struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
} nccl_config;

typedef struct nccl {
    void *library;
    int (*GetVersion)(int *version);
    int (*GetUniqueId)(nccl_id *id);
    int (*CommInitRankConfig)(void **comm, int ranks, nccl_id id, int rank, nccl_config *config);
    int (*CommSplit)(void *comm, int color, int key, void **out, nccl_config *config);
    int (*CommGetAsyncError)(void *comm, int *error);
    int (*CommAbort)(void *comm);
    int (*GroupStart)(void);
    int (*GroupEnd)(void);
    int (*Send)(const void *data, size_t count, int type, int peer, void *comm, void *stream);
    int (*Recv)(void *data, size_t count, int type, int peer, void *comm, void *stream);
    const char *(*GetErrorString)(int error);
} nccl;

/* Times between two points in streams, read when the slice has ended. */
typedef struct spans {
    kn_event *from[SPANS], *to[SPANS]; /* made when first needed */
    int32_t count;
} spans;

typedef struct comm_nccl {
    kn_comm base;
    kn_comm *control;
    nccl api;
    bool owns_library;
    void *comm;
    kn_stream *stream; /* own */
    kn_event *ready, *done;
    spans moving, exposed; /* a transfer, on `stream`; from the caller's stream's arrival at a wait to its end */
    char *staging;         /* device memory */
    size_t staging_bytes, staged;
    pthread_t watcher;
    pthread_mutex_t lock; /* around calls of NCCL, and `comm` */
    bool watching_started;
    atomic_bool watching, lost;
    _Atomic int64_t limit_ns, since_ns; /* kn_comm_params.call_ns; when the host began to wait for the device, 0: not */
    char reason[REASON_BYTES];
} comm_nccl;

#ifndef KN_NCCL_LIBRARY
#define KN_NCCL_LIBRARY "libnccl.so.2" /* else the path where CMake found it */
#endif

static kn_status load(nccl *api, const char *name)
{
    int version = 0;
    api->library = dlopen(name ? name : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!api->library && !name) api->library = dlopen(KN_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!api->library) return kn_fail(KN_UNSUPPORTED, "NCCL cannot be loaded: %s", dlerror());
    struct {
        const char *name;
        void **out;
    } const calls[] = {{"ncclGetVersion", (void **)&api->GetVersion},
                       {"ncclGetUniqueId", (void **)&api->GetUniqueId},
                       {"ncclCommInitRankConfig", (void **)&api->CommInitRankConfig},
                       {"ncclCommSplit", (void **)&api->CommSplit},
                       {"ncclCommGetAsyncError", (void **)&api->CommGetAsyncError},
                       {"ncclCommAbort", (void **)&api->CommAbort},
                       {"ncclGroupStart", (void **)&api->GroupStart},
                       {"ncclGroupEnd", (void **)&api->GroupEnd},
                       {"ncclSend", (void **)&api->Send},
                       {"ncclRecv", (void **)&api->Recv},
                       {"ncclGetErrorString", (void **)&api->GetErrorString}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        *calls[i].out = dlsym(api->library, calls[i].name);
        if (!*calls[i].out) return kn_fail(KN_UNSUPPORTED, "NCCL is too old: it has no %s", calls[i].name);
    }
    if (api->GetVersion(&version) != NCCL_SUCCESS || version < NCCL_OLDEST)
        return kn_fail(KN_UNSUPPORTED, "NCCL is of version %d; %d is the oldest that can be used", version,
                       NCCL_OLDEST);
    return KN_OK;
}

kn_status kn_comm_nccl_available(const char *library)
{
    nccl api = {0};
    const kn_status st = load(&api, library);
    if (api.library) dlclose(api.library);
    return st;
}

static nccl_config config_of(void)
{
    return (nccl_config){.size = sizeof(nccl_config),
                         .magic = NCCL_MAGIC,
                         .version = NCCL_OLDEST,
                         .blocking = 0,
                         .cga_cluster_size = INT_MIN,
                         .min_ctas = INT_MIN,
                         .max_ctas = INT_MIN,
                         .split_share = INT_MIN};
}

/* ---- losing ---- */

/* Under the lock. The device stops waiting for others. */
static void abort_locked(comm_nccl *c, const char *reason)
{
    if (atomic_load(&c->lost)) return;
    snprintf(c->reason, sizeof c->reason, "%s", reason);
    atomic_store(&c->lost, true);
    if (c->comm) c->api.CommAbort(c->comm);
    c->comm = NULL;
}

static kn_status lost(const comm_nccl *c)
{
    return kn_fail(KN_UNAVAILABLE, "the group was given up: %s", c->reason);
}

/* A call's answer; `in progress` is waited for, which costs the host microseconds and the device nothing. Under the
 * lock. */
static kn_status settle(comm_nccl *c, int result, const char *call)
{
    const int64_t start = kn_clock_ns();
    char reason[REASON_BYTES];
    while (result == NCCL_IN_PROGRESS) {
        kn_status st = kn_comm_confirm(c->control);
        if (st != KN_OK) {
            abort_locked(c, kn_fail_message());
            return lost(c);
        }
        if (kn_clock_ns() - start > INIT_NS) break;
        const struct timespec nap = {.tv_nsec = POLL_NS};
        nanosleep(&nap, NULL);
        if (c->api.CommGetAsyncError(c->comm, &result) != NCCL_SUCCESS) break;
    }
    if (result == NCCL_SUCCESS) return KN_OK;
    snprintf(reason, sizeof reason, "%s on rank %d: %s", call, c->base.rank, c->api.GetErrorString(result));
    abort_locked(c, reason);
    kn_comm_abort(c->control, reason);
    return lost(c);
}

/* The device has waited for others for too long, or computed for so long itself: no way to tell from here. */
static bool waits_too_long(const comm_nccl *c)
{
    const int64_t limit = atomic_load(&c->limit_ns), since = atomic_load(&c->since_ns);
    return limit > 0 && since > 0 && kn_clock_ns() - since > limit;
}

static void *watch(void *context)
{
    comm_nccl *c = context;
    const struct timespec nap = {.tv_nsec = WATCH_MS * 1000000L};
    while (atomic_load(&c->watching) && !atomic_load(&c->lost)) {
        nanosleep(&nap, NULL);
        int error = NCCL_SUCCESS;
        const kn_status st = kn_comm_confirm(c->control);
        pthread_mutex_lock(&c->lock);
        if (c->comm && st == KN_OK) c->api.CommGetAsyncError(c->comm, &error);
        if (st != KN_OK) abort_locked(c, kn_fail_message());
        if (waits_too_long(c)) {
            abort_locked(c, "a transfer has not ended in time");
            kn_comm_abort(c->control, c->reason);
        }
        if (error != NCCL_SUCCESS && error != NCCL_IN_PROGRESS) {
            abort_locked(c, c->api.GetErrorString(error));
            kn_comm_abort(c->control, c->reason);
        }
        pthread_mutex_unlock(&c->lock);
    }
    return NULL;
}

/* ---- moving ---- */

static bool is_dense(const kn_comm_block *b)
{
    return b->rows == 1 || b->stride == b->row_bytes;
}

static size_t staging_of(const kn_comm_block *blocks, int32_t count)
{
    size_t sum = 0;
    for (int32_t i = 0; i < count; i++)
        if (!is_dense(&blocks[i]))
            sum += (kn_comm_block_bytes(&blocks[i]) + KN_ARENA_ALIGN - 1) & ~(KN_ARENA_ALIGN - 1);
    return sum;
}

/* Begins a span at this point of the stream; *to is to be recorded at its end, NULL: no more are timed. */
static kn_status begin_span(comm_nccl *c, spans *s, kn_stream *stream, kn_event **to)
{
    kn_status st = KN_OK;
    kn_device *device = kn_stream_device(stream);
    *to = NULL;
    if (c->moving.count == SPANS || c->exposed.count == SPANS) return KN_OK;
    if (!s->from[s->count]) KN_TRY(kn_event_create(&s->from[s->count], device));
    if (!s->to[s->count]) KN_TRY(kn_event_create(&s->to[s->count], device));
    KN_TRY(kn_event_record(s->from[s->count], stream));
    *to = s->to[s->count++];
fail:
    return st;
}

static kn_status add_spans(spans *s, int64_t *sum)
{
    kn_status st = KN_OK;
    for (int32_t i = 0; i < s->count; i++) {
        int64_t ns;
        KN_TRY(kn_event_elapsed(s->from[i], s->to[i], &ns));
        if (ns > 0) *sum += ns;
    }
fail:
    s->count = 0;
    return st;
}

static void free_spans(spans *s)
{
    for (int32_t i = 0; i < SPANS; i++) {
        kn_event_destroy(&s->from[i]);
        kn_event_destroy(&s->to[i]);
    }
}

/* Grows in the first slices and then no more. */
static kn_status make_staging(comm_nccl *c, size_t bytes)
{
    kn_status st = KN_OK;
    if (c->staged + bytes <= c->staging_bytes) return KN_OK;
    KN_TRY(kn_stream_synchronize(c->stream)); /* what was started still uses it */
    kn_device *device = kn_stream_device(c->stream);
    kn_device_free(device, c->staging);
    c->staging = NULL;
    c->staging_bytes = 0;
    KN_TRY(kn_device_alloc(device, (void **)&c->staging, c->staged + bytes));
    c->staging_bytes = c->staged + bytes;
fail:
    return st;
}

static char *take_staging(comm_nccl *c, const kn_comm_block *b)
{
    char *at = c->staging + c->staged;
    c->staged += (kn_comm_block_bytes(b) + KN_ARENA_ALIGN - 1) & ~(KN_ARENA_ALIGN - 1);
    return at;
}

static kn_status transfer(comm_nccl *c, char *const *out, const kn_comm_block *send, int32_t sends, char *const *in,
                          const kn_comm_block *receive, int32_t receives)
{
    pthread_mutex_lock(&c->lock);
    kn_status st = atomic_load(&c->lost) ? lost(c) : KN_OK;
    if (st == KN_OK) {
        void *stream = kn_stream_native(c->stream);
        int result = c->api.GroupStart();
        for (int32_t i = 0; i < sends && result == NCCL_SUCCESS; i++)
            result = c->api.Send(out[i], kn_comm_block_bytes(&send[i]), NCCL_INT8, send[i].peer, c->comm, stream);
        for (int32_t i = 0; i < receives && result == NCCL_SUCCESS; i++)
            result = c->api.Recv(in[i], kn_comm_block_bytes(&receive[i]), NCCL_INT8, receive[i].peer, c->comm, stream);
        const int end = c->api.GroupEnd();
        st = settle(c, result == NCCL_SUCCESS ? end : result, "a transfer");
    }
    pthread_mutex_unlock(&c->lock);
    return st;
}

static kn_status nccl_start(kn_comm *base, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                            int32_t receives)
{
    kn_status st = KN_OK;
    comm_nccl *c = (comm_nccl *)base;
    kn_event *moved = NULL;
    char *out[KN_COMM_BLOCKS_MAX], *in[KN_COMM_BLOCKS_MAX];
    if (sends + receives == 0) return KN_OK;
    KN_TRY(kn_event_record(c->ready, base->stream));
    KN_TRY(kn_event_wait(c->ready, c->stream));
    KN_TRY(begin_span(c, &c->moving, c->stream, &moved));
    KN_TRY(make_staging(c, staging_of(send, sends) + staging_of(receive, receives)));
    for (int32_t i = 0; i < sends; i++) {
        out[i] = is_dense(&send[i]) ? send[i].data : take_staging(c, &send[i]);
        if (out[i] != send[i].data)
            KN_TRY(kn_stream_copy_rows(c->stream, out[i], send[i].row_bytes, send[i].data, send[i].stride,
                                       send[i].row_bytes, send[i].rows));
    }
    for (int32_t i = 0; i < receives; i++)
        in[i] = is_dense(&receive[i]) ? receive[i].data : take_staging(c, &receive[i]);
    KN_TRY(transfer(c, out, send, sends, in, receive, receives));
    for (int32_t i = 0; i < receives; i++)
        if (in[i] != receive[i].data)
            KN_TRY(kn_stream_copy_rows(c->stream, receive[i].data, receive[i].stride, in[i], receive[i].row_bytes,
                                       receive[i].row_bytes, receive[i].rows));
    if (moved) KN_TRY(kn_event_record(moved, c->stream));
fail:
    return st;
}

static kn_status nccl_finish(kn_comm *base)
{
    kn_status st = KN_OK;
    comm_nccl *c = (comm_nccl *)base;
    kn_event *over = NULL;
    c->staged = 0; /* the next pack waits on this stream for the last unpack */
    if (atomic_load(&c->lost)) return lost(c);
    if (c->moving.count > 0) KN_TRY(begin_span(c, &c->exposed, base->stream, &over));
    if (over) KN_TRY(kn_event_record(over, c->stream));
    KN_TRY(kn_event_record(c->done, c->stream));
    KN_TRY(kn_event_wait(c->done, base->stream));
fail:
    return st;
}

static kn_status nccl_exchange(kn_comm *base, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                               int32_t receives, uint32_t barrier, bool host)
{
    comm_nccl *c = (comm_nccl *)base;
    KN_REQUIRE(host);
    return c->control->backend->exchange(c->control, send, sends, receive, receives, barrier, host);
}

static kn_status nccl_confirm(kn_comm *base)
{
    comm_nccl *c = (comm_nccl *)base;
    atomic_store(&c->since_ns, kn_clock_ns());
    kn_status st = kn_stream_synchronize(base->stream);
    atomic_store(&c->since_ns, 0);
    if (st == KN_OK) st = kn_comm_confirm(c->control);
    if (st == KN_OK && atomic_load(&c->lost)) st = lost(c);
    if (st == KN_OK) st = add_spans(&c->moving, &base->stats.moving_ns);
    if (st == KN_OK) st = add_spans(&c->exposed, &base->stats.exposed_ns);
    c->moving.count = c->exposed.count = 0; /* a group that is given up is timed no more */
    return st;
}

static void nccl_limit(kn_comm *base, int64_t call_ns)
{
    comm_nccl *c = (comm_nccl *)base;
    atomic_store(&c->limit_ns, call_ns);
    kn_comm_set_limit(c->control, call_ns);
}

static void nccl_abort(kn_comm *base, const char *reason)
{
    comm_nccl *c = (comm_nccl *)base;
    kn_comm_abort(c->control, reason); /* the watcher does the rest, here and on the other ranks */
}

static void nccl_destroy(kn_comm *base)
{
    comm_nccl *c = (comm_nccl *)base;
    atomic_store(&c->watching, false);
    if (c->watching_started) pthread_join(c->watcher, NULL);
    pthread_mutex_lock(&c->lock);
    if (c->stream && !atomic_load(&c->lost)) kn_stream_synchronize(c->stream);
    if (c->comm) c->api.CommAbort(c->comm); /* nothing is in flight; unlike a finalize it waits for nobody */
    pthread_mutex_unlock(&c->lock);
    if (c->stream) kn_device_free(kn_stream_device(c->stream), c->staging);
    free_spans(&c->moving);
    free_spans(&c->exposed);
    kn_event_destroy(&c->ready);
    kn_event_destroy(&c->done);
    kn_stream_destroy(&c->stream);
    kn_comm_destroy(&c->control);
    pthread_mutex_destroy(&c->lock);
    if (c->owns_library && c->api.library) dlclose(c->api.library);
    kn_free(c);
}

static const kn_comm_backend nccl_backend = {.start = nccl_start,
                                             .finish = nccl_finish,
                                             .exchange = nccl_exchange,
                                             .confirm = nccl_confirm,
                                             .limit = nccl_limit,
                                             .abort = nccl_abort,
                                             .destroy = nccl_destroy};

/* ---- making ---- */

static kn_status prepare(comm_nccl **out, kn_comm *control)
{
    kn_status st = KN_OK;
    comm_nccl *c = kn_alloc(sizeof *c);
    if (!c) return KN_NOMEM;
    pthread_mutex_init(&c->lock, NULL);
    c->base.backend = &nccl_backend;
    c->base.stream = control->stream;
    c->base.rank = control->rank;
    c->base.ranks = control->ranks;
    c->base.epoch = control->epoch;
    c->base.params = control->params;
    atomic_store(&c->limit_ns, control->params.call_ns);
    kn_device *device = kn_stream_device(control->stream);
    KN_TRY(kn_stream_create(&c->stream, device));
    KN_TRY(kn_event_create(&c->ready, device));
    KN_TRY(kn_event_create(&c->done, device));
    *out = c;
    return KN_OK;
fail:
    nccl_destroy(&c->base);
    return st;
}

static kn_status start_watching(comm_nccl *c)
{
    atomic_store(&c->watching, true);
    c->watching_started = pthread_create(&c->watcher, NULL, watch, c) == 0;
    return c->watching_started ? KN_OK : kn_fail(KN_NOMEM, "a thread cannot be started");
}

/* Whether every rank could; the first that could not says why. */
static kn_status agree(const kn_group *all, kn_status own)
{
    kn_status st = KN_OK, first = KN_OK;
    char reason[REASON_BYTES] = "", from_first[REASON_BYTES] = "";
    for (int32_t i = 0; i < all->size; i++) {
        int32_t good = own == KN_OK;
        snprintf(reason, sizeof reason, "%s", own == KN_OK ? "" : kn_fail_message());
        KN_TRY(kn_group_message(all, i, &good, sizeof good));
        KN_TRY(kn_group_message(all, i, reason, sizeof reason));
        if (!good && first == KN_OK) {
            first = KN_UNSUPPORTED;
            snprintf(from_first, sizeof from_first, "%.*s", (int)sizeof from_first - 1, reason);
        }
    }
    return first == KN_OK ? KN_OK : kn_fail(first, "%s", from_first);
fail:
    return st;
}

static kn_status init(comm_nccl *c, const kn_group *all)
{
    kn_status st = KN_OK;
    nccl_id id = {{0}};
    nccl_config config = config_of();
    int result = all->index == 0 ? c->api.GetUniqueId(&id) : NCCL_SUCCESS;
    KN_TRY(kn_group_message(all, 0, &id, sizeof id));
    pthread_mutex_lock(&c->lock);
    if (result == NCCL_SUCCESS) result = c->api.CommInitRankConfig(&c->comm, c->base.ranks, id, c->base.rank, &config);
    st = settle(c, result, "making a communicator");
    pthread_mutex_unlock(&c->lock);
fail:
    return st;
}

kn_status kn_comm_nccl_create(kn_comm **out, const kn_comm_nccl_params *params)
{
    kn_status st = KN_OK;
    KN_REQUIRE(out && params->control);
    const kn_group all = kn_group_of(params->control, UINT32_MAX);
    comm_nccl *c = NULL;
    KN_TRY(prepare(&c, params->control));
    c->owns_library = true;
    KN_TRY(agree(&all, load(&c->api, params->library)));
    c->control = params->control;
    st = init(c, &all);
    c->control = st == KN_OK ? params->control : NULL; /* the caller's until now */
    if (st == KN_OK) st = start_watching(c);
    if (st == KN_OK) {
        *out = &c->base;
        return KN_OK;
    }
fail:
    if (c) nccl_destroy(&c->base);
    return st;
}

kn_status kn_comm_nccl_split(kn_comm **out, kn_comm *parent, kn_comm *control, int32_t color)
{
    kn_status st = KN_OK;
    comm_nccl *from = (comm_nccl *)parent, *c = NULL;
    void *made = NULL;
    nccl_config config = config_of();
    KN_REQUIRE(out && parent->backend == &nccl_backend && (!control || color >= 0));
    if (control) KN_TRY(prepare(&c, control));
    pthread_mutex_lock(&from->lock);
    if (atomic_load(&from->lost))
        st = lost(from);
    else
        st =
            settle(from, from->api.CommSplit(from->comm, control ? color : NCCL_NO_COLOR, parent->rank, &made, &config),
                   "splitting a communicator");
    pthread_mutex_unlock(&from->lock);
    KN_TRY(st);
    *out = NULL;
    if (!c) return KN_OK;
    c->api = from->api;
    c->comm = made;
    c->control = control;
    st = start_watching(c);
    if (st == KN_OK) {
        *out = &c->base;
        return KN_OK;
    }
    c->control = NULL; /* the caller's */
fail:
    if (c) nccl_destroy(&c->base);
    return st;
}
