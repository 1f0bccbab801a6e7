/* SPDX-License-Identifier: Apache-2.0
 *
 * One segment: a header, a slot per rank, and for every ordered pair of ranks a ring of bytes with one writer and one
 * reader. A call turns its blocks into one stream per peer, each with a small head, and moves whatever moves until all
 * streams have ended; so no order of peers can lock up, and memory is bounded by the rings however large a block is.
 * A rank that can do nothing sleeps on its own bell, which a peer rings when it has written or read.
 *
 * Signs of life come from a thread of their own, so a rank deep in arithmetic is alive and a stopped one is not. */
#define _GNU_SOURCE
#include "engine/comm_local.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/comm_internal.h"

enum {
    RING_BYTES = 256 << 10,
    CHUNK_BYTES = 64 << 10, /* moved between two looks at the other peers */
    REASON_BYTES = 160,
    BEAT_MS = 200,
    LOOK_MS = 100, /* between two looks for dead ranks */
    SPINS = 400,   /* empty rounds before a rank sleeps; a round is some tens of nanoseconds */
};

#define MAGIC UINT64_C(0x314d4d4f434e4b) /* "KNCOMM1" */
#define STREAM_MAGIC UINT32_C(0x6b6e7374)
#define SECOND INT64_C(1000000000)

enum { ACTIVE, ENDING, GIVEN_UP };      /* header.state */
enum { ABSENT, JOINING, JOINED, LEFT }; /* slot.state */

typedef struct slot {
    _Alignas(64) atomic_uint state;
    atomic_int process;
    _Atomic int64_t beat_ns; /* the machine's monotonic clock */
    atomic_uint bell;        /* counts; the rank sleeps on it */
    atomic_uint asleep;
    atomic_uint inside; /* a call: it waits for others, or moves what they sent */
} slot;

typedef struct ring {
    _Alignas(64) _Atomic uint64_t head; /* bytes written since the start */
    _Alignas(64) _Atomic uint64_t tail; /* bytes read */
    _Alignas(64) char data[RING_BYTES];
} ring;

typedef struct segment {
    uint64_t magic, epoch;
    int32_t ranks;
    atomic_uint state;
    atomic_uint blamed; /* bit per rank */
    char reason[REASON_BYTES];
    slot slots[KN_COMM_RANKS_MAX];
    ring rings[]; /* [from][to] */
} segment;

/* In front of a call's bytes to one peer. */
typedef struct stream_head {
    uint32_t magic;
    uint32_t host; /* the call moves host memory */
    uint64_t bytes;
} stream_head;

/* What goes to one peer in one call, or comes from it. */
typedef struct cursor {
    const kn_comm_block *blocks;
    int32_t count, next;
    int64_t row;         /* of blocks[next] */
    size_t offset;       /* in that row */
    uint64_t left;       /* payload bytes */
    bool active, headed; /* the head is still to come */
} cursor;

typedef struct local {
    kn_comm base;
    segment *at;
    size_t bytes;
    bool host_memory, owns_slot;
    int pidfd[KN_COMM_RANKS_MAX]; /* -1: own, or not to be had */
    pthread_t heart;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool beating;
    cursor out[KN_COMM_RANKS_MAX], in[KN_COMM_RANKS_MAX];
} local;

static size_t segment_bytes(int32_t ranks)
{
    return sizeof(segment) + (size_t)ranks * (size_t)ranks * sizeof(ring);
}

static ring *ring_between(const local *c, int32_t from, int32_t to)
{
    return &c->at->rings[from * c->base.ranks + to];
}

/* ---- bells ---- */

static void futex_wait(atomic_uint *word, unsigned value, int64_t ns)
{
    const struct timespec limit = {.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
}

static void ring_bell(slot *of)
{
    atomic_fetch_add(&of->bell, 1);
    if (atomic_load(&of->asleep)) syscall(SYS_futex, &of->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void give_up(segment *at, const char *reason)
{
    unsigned expected = ACTIVE;
    if (!atomic_compare_exchange_strong(&at->state, &expected, ENDING)) return;
    snprintf(at->reason, sizeof at->reason, "%s", reason);
    atomic_store(&at->state, GIVEN_UP);
    for (int32_t i = 0; i < at->ranks; i++) ring_bell(&at->slots[i]);
}

static kn_status given_up(const segment *at)
{
    char reason[REASON_BYTES];
    for (int i = 0; i < SPINS && atomic_load(&at->state) == ENDING; i++) sched_yield(); /* its writer may have died */
    memcpy(reason, at->reason, sizeof reason);
    reason[sizeof reason - 1] = '\0';
    return kn_fail(KN_UNAVAILABLE, "the group was given up: %s", reason);
}

static kn_status give_up_for(local *c, kn_status status, const char *reason)
{
    give_up(c->at, reason);
    return status == KN_UNAVAILABLE ? given_up(c->at) : kn_fail(status, "%s", reason);
}

/* ---- life ---- */

static void *beat(void *context)
{
    local *c = context;
    pthread_mutex_lock(&c->lock);
    while (c->beating) {
        atomic_store(&c->at->slots[c->base.rank].beat_ns, kn_clock_ns());
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += BEAT_MS * 1000000L;
        until.tv_sec += until.tv_nsec / SECOND;
        until.tv_nsec %= SECOND;
        pthread_cond_timedwait(&c->wake, &c->lock, &until);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static kn_status start_heart(local *c)
{
    sigset_t all, before; /* signals are for the thread that works */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    c->beating = true;
    const int error = pthread_create(&c->heart, NULL, beat, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) return KN_OK;
    c->beating = false;
    return kn_fail(KN_NOMEM, "a thread cannot be started: %s", strerror(error));
}

static void stop_heart(local *c)
{
    if (!c->beating) return;
    pthread_mutex_lock(&c->lock);
    c->beating = false;
    pthread_cond_signal(&c->wake);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->heart, NULL);
}

/* Why this rank is not worth waiting for; false: it is. */
static bool is_lost(const local *c, int32_t rank, char reason[REASON_BYTES])
{
    const slot *s = &c->at->slots[rank];
    struct pollfd ended = {.fd = c->pidfd[rank], .events = POLLIN};
    const bool dead = ended.fd >= 0 && poll(&ended, 1, 0) > 0; /* before its state: it may have left, then ended */
    if (atomic_load(&s->state) == LEFT) {
        snprintf(reason, REASON_BYTES, "rank %d of %d has left", rank, c->base.ranks);
        return true;
    }
    if (dead) {
        snprintf(reason, REASON_BYTES, "rank %d of %d has died (process %d)", rank, c->base.ranks,
                 atomic_load(&s->process));
        return true;
    }
    const int64_t silent = kn_clock_ns() - atomic_load(&s->beat_ns);
    if (silent <= c->base.params.silence_ns) return false;
    atomic_fetch_or(&c->at->blamed, 1u << rank);
    snprintf(reason, REASON_BYTES, "rank %d of %d (process %d) is silent for %.1f s", rank, c->base.ranks,
             atomic_load(&s->process), kn_clock_seconds(silent));
    return true;
}

/* ---- streams ---- */

static void cursor_begin(cursor *k, const kn_comm_block *blocks, int32_t count, int32_t peer, bool always)
{
    *k = (cursor){.blocks = blocks, .count = count};
    for (int32_t i = 0; i < count; i++)
        if (blocks[i].peer == peer) k->left += kn_comm_block_bytes(&blocks[i]);
    k->active = k->headed = always || k->left > 0;
}

/* The next contiguous bytes of this peer's blocks, at most `limit`. */
static char *cursor_take(cursor *k, int32_t peer, size_t limit, size_t *bytes)
{
    while (k->blocks[k->next].peer != peer || k->row == k->blocks[k->next].rows) {
        k->next++;
        k->row = 0;
    }
    const kn_comm_block *b = &k->blocks[k->next];
    char *at = (char *)b->data + (size_t)k->row * b->stride + k->offset;
    const bool dense = b->stride == b->row_bytes;
    const size_t rest = dense ? (size_t)(b->rows - k->row) * b->row_bytes - k->offset : b->row_bytes - k->offset;
    *bytes = rest < limit ? rest : limit;
    const size_t moved = k->offset + *bytes;
    k->row += (int64_t)(moved / b->row_bytes);
    k->offset = moved % b->row_bytes;
    k->left -= *bytes;
    return at;
}

/* Copies between a stream's position in the ring and memory at `other`; `bytes` ends before the ring's end. */
static kn_status copy_piece(local *c, bool host, bool out, char *in_ring, char *other, size_t bytes)
{
    if (host || c->host_memory) {
        if (out)
            memcpy(in_ring, other, bytes);
        else
            memcpy(other, in_ring, bytes);
        return KN_OK;
    }
    return out ? kn_stream_download(c->base.stream, in_ring, other, bytes)
               : kn_stream_upload(c->base.stream, other, in_ring, bytes);
}

/* Moves up to `room` bytes of payload at ring position *at, on from there. */
static kn_status move_payload(local *c, cursor *k, int32_t peer, ring *r, uint64_t *at, size_t room, bool host,
                              bool out)
{
    kn_status st = KN_OK;
    bool staged = false;
    while (room > 0 && k->left > 0) {
        const size_t place = *at % RING_BYTES;
        size_t limit = RING_BYTES - place < room ? RING_BYTES - place : room, bytes;
        char *other = cursor_take(k, peer, limit, &bytes);
        KN_TRY(copy_piece(c, host, out, r->data + place, other, bytes));
        staged = !host && !c->host_memory;
        *at += bytes;
        room -= bytes;
    }
    if (staged) KN_TRY(kn_stream_synchronize(c->base.stream));
fail:
    return st;
}

static void head_bytes(ring *r, uint64_t at, stream_head *head, bool out)
{
    char *bytes = (char *)head;
    for (size_t i = 0; i < sizeof *head; i++) {
        char *in_ring = &r->data[(at + i) % RING_BYTES];
        if (out)
            *in_ring = bytes[i];
        else
            bytes[i] = *in_ring;
    }
}

static kn_status push(local *c, int32_t peer, bool host, bool *moved)
{
    kn_status st = KN_OK;
    cursor *k = &c->out[peer];
    ring *r = ring_between(c, c->base.rank, peer);
    uint64_t head = atomic_load(&r->head);
    const uint64_t before = head;
    size_t room = RING_BYTES - (size_t)(head - atomic_load(&r->tail));
    if (k->headed) {
        if (room < sizeof(stream_head)) return KN_OK;
        head_bytes(r, head, &(stream_head){STREAM_MAGIC, host, k->left}, true);
        k->headed = false;
        head += sizeof(stream_head);
        room -= sizeof(stream_head);
    }
    KN_TRY(move_payload(c, k, peer, r, &head, room < CHUNK_BYTES ? room : CHUNK_BYTES, host, true));
    if (head == before) return KN_OK;
    atomic_store(&r->head, head);
    ring_bell(&c->at->slots[peer]);
    if (k->left == 0) k->active = false;
    *moved = true;
fail:
    return st;
}

static kn_status pull(local *c, int32_t peer, bool host, bool *moved)
{
    kn_status st = KN_OK;
    cursor *k = &c->in[peer];
    ring *r = ring_between(c, peer, c->base.rank);
    uint64_t tail = atomic_load(&r->tail);
    const uint64_t before = tail;
    size_t there = (size_t)(atomic_load(&r->head) - tail);
    if (there > RING_BYTES) return give_up_for(c, KN_BUG, "a ring's counters contradict each other");
    if (k->headed) {
        stream_head head;
        if (there < sizeof head) return KN_OK;
        head_bytes(r, tail, &head, false);
        if (head.magic != STREAM_MAGIC || head.bytes != k->left || head.host != (uint32_t)host) {
            char reason[REASON_BYTES];
            snprintf(reason, sizeof reason, "rank %d sends %llu bytes where rank %d expects %llu", peer,
                     (unsigned long long)head.bytes, c->base.rank, (unsigned long long)k->left);
            return give_up_for(c, KN_BUG, reason);
        }
        k->headed = false;
        tail += sizeof head;
        there -= sizeof head;
    }
    KN_TRY(move_payload(c, k, peer, r, &tail, there < CHUNK_BYTES ? there : CHUNK_BYTES, host, false));
    if (tail == before) return KN_OK;
    atomic_store(&r->tail, tail);
    ring_bell(&c->at->slots[peer]);
    if (k->left == 0) k->active = false;
    *moved = true;
fail:
    return st;
}

/* One round over all peers. */
static kn_status step(local *c, bool host, bool *moved, bool *ended)
{
    kn_status st = KN_OK;
    *moved = false;
    *ended = true;
    for (int32_t p = 0; p < c->base.ranks; p++) {
        if (c->out[p].active) KN_TRY(push(c, p, host, moved));
        if (c->in[p].active) KN_TRY(pull(c, p, host, moved));
        *ended = *ended && !c->out[p].active && !c->in[p].active;
    }
fail:
    return st;
}

/* Is there a rank this call waits for that will not come? */
static bool find_lost(const local *c, char reason[REASON_BYTES])
{
    for (int32_t p = 0; p < c->base.ranks; p++)
        if ((c->out[p].active || c->in[p].active) && is_lost(c, p, reason)) return true;
    return false;
}

/* This call has waited for too long. Whoever is inside a call waits as well; the others keep all of them waiting. */
static void blame_late(const local *c, int64_t waited_ns, char reason[REASON_BYTES])
{
    int32_t late = -1;
    uint32_t blamed = 0;
    for (int32_t p = 0; p < c->base.ranks; p++) {
        const slot *s = &c->at->slots[p];
        if (p == c->base.rank || atomic_load(&s->state) != JOINED || atomic_load(&s->inside)) continue;
        blamed |= 1u << p;
        late = p;
    }
    /* One that has just given the group up is not inside any more either, and says so first. */
    if (atomic_load(&c->at->state) != ACTIVE) late = -1;
    if (late >= 0) atomic_fetch_or(&c->at->blamed, blamed);
    if (late < 0)
        snprintf(reason, REASON_BYTES, "rank %d waited for %.1f s in one call", c->base.rank,
                 kn_clock_seconds(waited_ns));
    else
        snprintf(reason, REASON_BYTES, "rank %d of %d (process %d) kept rank %d waiting for %.1f s", late,
                 c->base.ranks, atomic_load(&c->at->slots[late].process), c->base.rank, kn_clock_seconds(waited_ns));
}

static void sleep_on_bell(slot *own, unsigned seen)
{
    atomic_store(&own->asleep, 1);
    if (atomic_load(&own->bell) == seen) futex_wait(&own->bell, seen, LOOK_MS * INT64_C(1000000));
    atomic_store(&own->asleep, 0);
}

static kn_status move_all(local *c, bool host)
{
    kn_status st = KN_OK;
    slot *own = &c->at->slots[c->base.rank];
    char reason[REASON_BYTES];
    const int64_t start = kn_clock_ns();
    int64_t looked = start;
    bool moved, ended, lost = false;
    for (int spins = 0;;) {
        const unsigned seen = atomic_load(&own->bell);
        if (atomic_load(&c->at->state) != ACTIVE) return given_up(c->at);
        KN_TRY(step(c, host, &moved, &ended));
        if (ended) return KN_OK;
        if (moved) {
            spins = 0;
            lost = false;
            continue;
        }
        if (lost) return give_up_for(c, KN_UNAVAILABLE, reason); /* and nothing it sent before was left */
        if (++spins < SPINS) continue;
        sleep_on_bell(own, seen);
        const int64_t now = kn_clock_ns();
        if (now - looked < LOOK_MS * INT64_C(1000000)) continue;
        looked = now;
        lost = find_lost(c, reason);
        if (lost || c->base.params.call_ns == 0 || now - start <= c->base.params.call_ns) continue;
        blame_late(c, now - start, reason);
        lost = true;
    }
fail:
    return st;
}

static kn_status local_exchange(kn_comm *base, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                                int32_t receives, uint32_t barrier, bool host)
{
    local *c = (local *)base;
    if (atomic_load(&c->at->state) != ACTIVE) return given_up(c->at);
    for (int32_t p = 0; p < base->ranks; p++) {
        cursor_begin(&c->out[p], send, sends, p, barrier >> p & 1);
        cursor_begin(&c->in[p], receive, receives, p, barrier >> p & 1);
    }
    slot *own = &c->at->slots[base->rank];
    atomic_store(&own->inside, 1);
    const kn_status st = move_all(c, host);
    atomic_store(&own->inside, 0);
    return st;
}

/* ---- forming, joining, leaving ---- */

/* Transfers have ended when their call returns; this is about the ranks. */
static kn_status local_confirm(kn_comm *base)
{
    local *c = (local *)base;
    char reason[REASON_BYTES];
    for (int32_t p = 0; p < base->ranks; p++)
        if (p != base->rank && atomic_load(&c->at->slots[p].state) == JOINED && is_lost(c, p, reason) &&
            atomic_load(&c->at->slots[p].state) != LEFT)
            return give_up_for(c, KN_UNAVAILABLE, reason);
    return atomic_load(&c->at->state) == ACTIVE ? KN_OK : given_up(c->at);
}

static void local_abort(kn_comm *base, const char *reason)
{
    give_up(((local *)base)->at, reason);
}

static void local_destroy(kn_comm *base)
{
    local *c = (local *)base;
    stop_heart(c);
    if (c->at) {
        if (c->owns_slot) atomic_store(&c->at->slots[base->rank].state, LEFT);
        for (int32_t i = 0; i < base->ranks; i++) ring_bell(&c->at->slots[i]);
        munmap(c->at, c->bytes);
    }
    for (int i = 0; i < KN_COMM_RANKS_MAX; i++)
        if (c->pidfd[i] >= 0) close(c->pidfd[i]);
    pthread_cond_destroy(&c->wake);
    pthread_mutex_destroy(&c->lock);
    kn_free(c);
}

static const kn_comm_backend local_backend = {
    .exchange = local_exchange, .confirm = local_confirm, .abort = local_abort, .destroy = local_destroy};

kn_status kn_comm_local_form(int *out, int32_t ranks, uint64_t epoch)
{
    KN_REQUIRE(out && ranks >= 1 && ranks <= KN_COMM_RANKS_MAX);
    const size_t bytes = segment_bytes(ranks);
    const int fd = memfd_create("kinora-group", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    segment *at = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        at = mmap(NULL, sizeof *at, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        const int error = errno;
        if (fd >= 0) close(fd);
        return kn_fail(KN_IO, "shared memory for a group of %d ranks: %s", ranks, strerror(error));
    }
    at->magic = MAGIC;
    at->epoch = epoch;
    at->ranks = ranks;
    munmap(at, sizeof *at);
    *out = fd;
    return KN_OK;
}

/* Maps a segment whose head says what its size says. */
static kn_status map_segment(segment **out, size_t *bytes, int fd)
{
    struct stat info;
    if (fstat(fd, &info) != 0) return kn_fail(KN_IO, "a group's shared memory: %s", strerror(errno));
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || (size_t)info.st_size < sizeof(segment))
        return kn_fail(KN_CORRUPT, "the descriptor is not a group's shared memory");
    segment *at = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return kn_fail(KN_IO, "a group's shared memory: %s", strerror(errno));
    if (at->magic != MAGIC || at->ranks < 1 || at->ranks > KN_COMM_RANKS_MAX ||
        segment_bytes(at->ranks) != (size_t)info.st_size) {
        munmap(at, (size_t)info.st_size);
        return kn_fail(KN_CORRUPT, "the descriptor is not a group's shared memory");
    }
    *out = at;
    *bytes = (size_t)info.st_size;
    return KN_OK;
}

kn_status kn_comm_local_give_up(int fd, const char *reason)
{
    segment *at;
    size_t bytes;
    kn_status st = map_segment(&at, &bytes, fd);
    if (st != KN_OK) return st;
    give_up(at, reason);
    munmap(at, bytes);
    return KN_OK;
}

kn_status kn_comm_local_look(int fd, bool *was_given_up, uint32_t *blamed, char *reason, size_t bytes)
{
    segment *at;
    size_t size;
    kn_status st = map_segment(&at, &size, fd);
    if (st != KN_OK) return st;
    *was_given_up = atomic_load(&at->state) == GIVEN_UP;
    *blamed = atomic_load(&at->blamed);
    if (reason) snprintf(reason, bytes, "%.*s", REASON_BYTES - 1, *was_given_up ? at->reason : "");
    munmap(at, size);
    return KN_OK;
}

/* Its process may have ended already: then there is nothing to open, and it is lost at once. */
static kn_status meet(local *c, int32_t rank)
{
    const int process = atomic_load(&c->at->slots[rank].process);
    c->pidfd[rank] = (int)syscall(SYS_pidfd_open, process, 0);
    if (c->pidfd[rank] >= 0 || errno != ESRCH) return KN_OK;          /* without pidfds silence alone tells */
    if (atomic_load(&c->at->slots[rank].state) == LEFT) return KN_OK; /* in peace, before this rank looked */
    char reason[REASON_BYTES];
    snprintf(reason, sizeof reason, "rank %d of %d has died (process %d)", rank, c->base.ranks, process);
    return give_up_for(c, KN_UNAVAILABLE, reason);
}

/* A rank that ended before it joined. */
static bool never_joins(const int *pidfds, int32_t rank)
{
    struct pollfd ended = {.fd = pidfds ? pidfds[rank] : -1, .events = POLLIN};
    return ended.fd >= 0 && poll(&ended, 1, 0) > 0;
}

static kn_status wait_for_all(local *c, const int *pidfds)
{
    kn_status st = KN_OK;
    const int64_t start = kn_clock_ns();
    slot *slots = c->at->slots, *own = &slots[c->base.rank];
    char reason[REASON_BYTES];
    bool met[KN_COMM_RANKS_MAX] = {0};
    for (int32_t missing = 0;;) {
        const unsigned seen = atomic_load(&own->bell);
        if (atomic_load(&c->at->state) != ACTIVE) return given_up(c->at);
        missing = -1;
        for (int32_t r = 0; r < c->base.ranks; r++) {
            if (r == c->base.rank) continue;
            const bool ended = never_joins(pidfds, r); /* before its state */
            if (atomic_load(&slots[r].state) < JOINED) {
                missing = r;
                snprintf(reason, sizeof reason, "rank %d of %d has died before it joined", r, c->base.ranks);
                if (ended) return give_up_for(c, KN_UNAVAILABLE, reason);
                continue;
            }
            if (!met[r]) KN_TRY(meet(c, r));
            met[r] = true;
            if (is_lost(c, r, reason) && atomic_load(&slots[r].state) != LEFT) /* it may leave before others join */
                return give_up_for(c, KN_UNAVAILABLE, reason);
        }
        if (missing < 0) return KN_OK;
        if (kn_clock_ns() - start > c->base.params.join_ns) {
            snprintf(reason, sizeof reason, "rank %d of %d has not joined within %.1f s", missing, c->base.ranks,
                     kn_clock_seconds(c->base.params.join_ns));
            return give_up_for(c, KN_UNAVAILABLE, reason);
        }
        sleep_on_bell(own, seen);
    }
fail:
    return st;
}

static kn_status join(local *c, const kn_comm_local_params *params)
{
    kn_status st = KN_OK;
    KN_TRY(map_segment(&c->at, &c->bytes, params->fd));
    c->base.ranks = c->at->ranks;
    if (c->at->epoch != params->epoch)
        return kn_fail(KN_UNAVAILABLE, "the group is of epoch %llu; this rank is of epoch %llu",
                       (unsigned long long)c->at->epoch, (unsigned long long)params->epoch);
    if (params->rank >= c->base.ranks)
        return kn_fail(KN_INVALID, "rank is %d; the group has %d", params->rank, c->base.ranks);
    slot *own = &c->at->slots[params->rank];
    unsigned expected = ABSENT;
    if (!atomic_compare_exchange_strong(&own->state, &expected, JOINING))
        return kn_fail(KN_INVALID, "rank %d of the group is taken", params->rank);
    c->owns_slot = true;
    atomic_store(&own->process, getpid());
    atomic_store(&own->beat_ns, kn_clock_ns());
    KN_TRY(start_heart(c));
    atomic_store(&own->state, JOINED);
    for (int32_t i = 0; i < c->base.ranks; i++) ring_bell(&c->at->slots[i]);
    KN_TRY(wait_for_all(c, params->pidfds));
fail:
    return st;
}

kn_status kn_comm_local_join(kn_comm **out, const kn_comm_local_params *params)
{
    KN_REQUIRE(out && params->stream && params->rank >= 0);
    local *c = kn_alloc(sizeof *c);
    if (!c) return KN_NOMEM;
    kn_device_info info;
    kn_device_describe(kn_stream_device(params->stream), &info);
    c->host_memory = info.host_memory;
    c->base.backend = &local_backend;
    c->base.stream = params->stream;
    c->base.rank = params->rank;
    c->base.epoch = params->epoch;
    c->base.params = params->limits;
    if (c->base.params.join_ns == 0) c->base.params.join_ns = 60 * SECOND;
    if (c->base.params.silence_ns == 0) c->base.params.silence_ns = 8 * SECOND;
    for (int i = 0; i < KN_COMM_RANKS_MAX; i++) c->pidfd[i] = -1;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wake, NULL);
    kn_status st = join(c, params);
    kn_comm *made = &c->base;
    if (st != KN_OK)
        kn_comm_destroy(&made);
    else
        *out = made;
    return st;
}
