/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/comm.h"

#include "base/clock.h"
#include "engine/comm_internal.h"

const char *kn_comm_kind_name(kn_comm_kind kind)
{
    static const char *const names[] = {"all_to_all", "broadcast", "all_gather", "halo",
                                        "gather",     "barrier",   "message"};
    return names[kind];
}

int32_t kn_comm_rank(const kn_comm *comm)
{
    return comm->rank;
}

int32_t kn_comm_ranks(const kn_comm *comm)
{
    return comm->ranks;
}

uint64_t kn_comm_epoch(const kn_comm *comm)
{
    return comm->epoch;
}

void kn_comm_bind(kn_comm *comm, kn_stream *stream)
{
    comm->stream = stream;
}

void kn_comm_set_limit(kn_comm *comm, int64_t call_ns)
{
    comm->params.call_ns = call_ns;
    if (comm->backend->limit) comm->backend->limit(comm, call_ns);
}

kn_comm_stats kn_comm_read_stats(const kn_comm *comm)
{
    return comm->stats;
}

void kn_comm_abort(kn_comm *comm, const char *reason)
{
    comm->backend->abort(comm, reason);
}

void kn_comm_destroy(kn_comm **comm)
{
    if (!*comm) return;
    (*comm)->backend->destroy(*comm);
    *comm = NULL;
}

/* ---- groups ---- */

kn_group kn_group_alone(void)
{
    return (kn_group){.size = 1};
}

kn_group kn_group_of(kn_comm *comm, uint32_t mask)
{
    kn_group g = {.comm = comm, .index = -1};
    for (int32_t r = 0; r < comm->ranks; r++) {
        if (!(mask >> r & 1)) continue;
        if (r == comm->rank) g.index = g.size;
        g.member[g.size++] = r;
    }
    return g;
}

kn_group kn_group_part(const kn_group *group, int32_t first, int32_t count, int32_t step)
{
    if (!group->comm) return *group;
    kn_group g = {.comm = group->comm, .index = -1};
    for (int32_t i = first; g.size < count; i += step) {
        if (i == group->index) g.index = g.size;
        g.member[g.size++] = group->member[i];
    }
    return g;
}

kn_share kn_share_of(int64_t count, int32_t parts, int32_t part)
{
    const int64_t each = count / parts, extra = count % parts;
    return (kn_share){part * each + (part < extra ? part : extra), each + (part < extra)};
}

/* ---- moving ---- */

/* A rank's blocks to itself, in order. */
static kn_status copy_own(kn_comm *c, const kn_comm_block *send, int32_t sends, const kn_comm_block *receive,
                          int32_t receives)
{
    kn_status st = KN_OK;
    int32_t j = 0;
    for (int32_t i = 0; i < sends; i++) {
        if (send[i].peer != c->rank) continue;
        while (j < receives && receive[j].peer != c->rank) j++;
        KN_REQUIRE(j < receives && receive[j].rows == send[i].rows && receive[j].row_bytes == send[i].row_bytes);
        KN_TRY(kn_stream_copy_rows(c->stream, receive[j].data, receive[j].stride, send[i].data, send[i].stride,
                                   send[i].row_bytes, send[i].rows));
        j++;
    }
fail:
    return st;
}

/* Appends the blocks that go to other ranks, or come from them. */
static int32_t keep_foreign(kn_comm_block *out, int32_t count, const kn_comm_block *blocks, int32_t n, int32_t own)
{
    for (int32_t i = 0; i < n; i++)
        if (blocks[i].peer != own && kn_comm_block_bytes(&blocks[i]) > 0) out[count++] = blocks[i];
    return count;
}

static void count_sent(kn_comm *c, kn_comm_kind kind, const kn_comm_block *send, int32_t sends)
{
    c->stats.calls[kind]++;
    for (int32_t i = 0; i < sends; i++)
        if (send[i].peer != c->rank) c->stats.sent[kind] += kn_comm_block_bytes(&send[i]);
}

kn_status kn_comm_start(kn_comm *c, kn_comm_kind kind, const kn_comm_block *send, int32_t sends,
                        const kn_comm_block *receive, int32_t receives)
{
    kn_status st = KN_OK;
    KN_REQUIRE(c->sends + sends <= KN_COMM_BLOCKS_MAX && c->receives + receives <= KN_COMM_BLOCKS_MAX);
    KN_TRY(copy_own(c, send, sends, receive, receives));
    count_sent(c, kind, send, sends);
    const int32_t first_send = c->sends, first_receive = c->receives;
    c->sends = keep_foreign(c->send, first_send, send, sends, c->rank);
    c->receives = keep_foreign(c->receive, first_receive, receive, receives, c->rank);
    if (!c->backend->start) return KN_OK;
    const int64_t start = kn_clock_ns();
    st = c->backend->start(c, c->send + first_send, c->sends - first_send, c->receive + first_receive,
                           c->receives - first_receive);
    c->stats.waited_ns += kn_clock_ns() - start;
fail:
    return st;
}

kn_status kn_comm_finish(kn_comm *c)
{
    const int64_t start = kn_clock_ns();
    kn_status st = c->backend->start ? c->backend->finish(c)
                                     : c->backend->exchange(c, c->send, c->sends, c->receive, c->receives, 0, false);
    c->sends = c->receives = 0;
    c->stats.waited_ns += kn_clock_ns() - start;
    return st;
}

kn_status kn_comm_confirm(kn_comm *comm)
{
    return comm ? comm->backend->confirm(comm) : KN_OK;
}

static kn_comm_block whole(void *data, size_t bytes, int32_t peer)
{
    return (kn_comm_block){.data = data, .rows = 1, .row_bytes = bytes, .stride = bytes, .peer = peer};
}

static kn_status move(const kn_group *g, kn_comm_kind kind, const kn_comm_block *send, int32_t sends,
                      const kn_comm_block *receive, int32_t receives)
{
    kn_status st = kn_comm_start(g->comm, kind, send, sends, receive, receives);
    return st == KN_OK ? kn_comm_finish(g->comm) : st;
}

kn_status kn_group_broadcast(const kn_group *g, int32_t root, void *data, size_t bytes)
{
    if (g->size == 1) return KN_OK;
    KN_REQUIRE(g->index >= 0 && root >= 0 && root < g->size);
    kn_comm_block send[KN_COMM_RANKS_MAX];
    const kn_comm_block receive = whole(data, bytes, g->member[root]);
    if (g->index != root) return move(g, KN_COMM_BROADCAST, NULL, 0, &receive, 1);
    int32_t sends = 0;
    for (int32_t i = 0; i < g->size; i++)
        if (i != root) send[sends++] = whole(data, bytes, g->member[i]);
    return move(g, KN_COMM_BROADCAST, send, sends, NULL, 0);
}

kn_status kn_group_all_gather(const kn_group *g, void *data, int64_t rows, size_t row_bytes)
{
    if (g->size == 1) return KN_OK;
    KN_REQUIRE(g->index >= 0);
    kn_comm_block send[KN_COMM_RANKS_MAX], receive[KN_COMM_RANKS_MAX];
    int32_t n = 0;
    for (int32_t i = 0; i < g->size; i++) {
        if (i == g->index) continue;
        const kn_share own = kn_share_of(rows, g->size, g->index), theirs = kn_share_of(rows, g->size, i);
        send[n] = whole((char *)data + (size_t)own.first * row_bytes, (size_t)own.count * row_bytes, g->member[i]);
        receive[n++] =
            whole((char *)data + (size_t)theirs.first * row_bytes, (size_t)theirs.count * row_bytes, g->member[i]);
    }
    return move(g, KN_COMM_ALL_GATHER, send, n, receive, n);
}

kn_status kn_group_halo(const kn_group *g, const kn_halo *halo)
{
    if (g->size == 1) return KN_OK;
    KN_REQUIRE(g->index >= 0);
    kn_comm_block send[2], receive[2];
    int32_t n = 0;
    if (g->index > 0) {
        send[n] = whole(halo->first, halo->bytes, g->member[g->index - 1]);
        receive[n++] = whole(halo->before, halo->bytes, g->member[g->index - 1]);
    }
    if (g->index + 1 < g->size) {
        send[n] = whole(halo->last, halo->bytes, g->member[g->index + 1]);
        receive[n++] = whole(halo->after, halo->bytes, g->member[g->index + 1]);
    }
    return move(g, KN_COMM_HALO, send, n, receive, n);
}

/* Waits are the back end's; everything started is finished first. */
static kn_status exchange(const kn_group *g, kn_comm_kind kind, const kn_comm_block *send, int32_t sends,
                          const kn_comm_block *receive, int32_t receives, uint32_t barrier)
{
    kn_comm *c = g->comm;
    kn_status st = c->sends + c->receives > 0 ? kn_comm_finish(c) : KN_OK;
    if (st != KN_OK) return st;
    const int64_t start = kn_clock_ns();
    count_sent(c, kind, send, sends);
    st = c->backend->exchange(c, send, sends, receive, receives, barrier, true);
    c->stats.waited_ns += kn_clock_ns() - start;
    return st;
}

kn_status kn_group_barrier(const kn_group *g)
{
    uint32_t others = 0;
    if (g->size == 1) return KN_OK;
    KN_REQUIRE(g->index >= 0);
    for (int32_t i = 0; i < g->size; i++)
        if (i != g->index) others |= 1u << g->member[i];
    return exchange(g, KN_COMM_BARRIER, NULL, 0, NULL, 0, others);
}

kn_status kn_group_message(const kn_group *g, int32_t root, void *host, size_t bytes)
{
    if (g->size == 1) return KN_OK;
    KN_REQUIRE(g->index >= 0 && root >= 0 && root < g->size && bytes > 0);
    kn_comm_block send[KN_COMM_RANKS_MAX];
    const kn_comm_block receive = whole(host, bytes, g->member[root]);
    if (g->index != root) return exchange(g, KN_COMM_MESSAGE, NULL, 0, &receive, 1, 0);
    int32_t sends = 0;
    for (int32_t i = 0; i < g->size; i++)
        if (i != root) send[sends++] = whole(host, bytes, g->member[i]);
    return exchange(g, KN_COMM_MESSAGE, send, sends, NULL, 0, 0);
}
