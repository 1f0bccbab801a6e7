/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.h on top of what flatc generates from schema/link.fbs. The one C++ file of the host: it builds, verifies and
 * reads buffers, and shows plain C. Memory comes from kn_alloc; when there is none, the exception that says so ends
 * in kn_wire_encode.
 *
 * The verifier makes sure that every offset stays inside the buffer, that texts end in NUL and that required fields
 * are there. It does not mind a table that two offsets share, a union type it has never heard of, or any value; those
 * are looked at here. */

/* The inline bodies in this header are C only; the others need no more of it than the name. */
#define KN_BASE_ARENA_H
typedef struct kn_arena kn_arena;

extern "C" {
#include "server/wire.h"

#include "base/mem.h"
}

#include <cmath>
#include <cstring>
#include <new>

#include "link_generated.h"

namespace
{

using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;
using flatbuffers::String;

constexpr size_t FIRST_BYTES = 1024; /* most messages are smaller */

/* Value of the union's tag for each kind, and the name. */
const struct {
    kn_link::Body body;
    const char *name;
} kinds[KN_WIRE_KINDS] = {
    {kn_link::Body_NONE, "none"},
    {kn_link::Body_Configure, "configure"},
    {kn_link::Body_Load, "load"},
    {kn_link::Body_Unload, "unload"},
    {kn_link::Body_Start, "start"},
    {kn_link::Body_Run, "run"},
    {kn_link::Body_Release, "release"},
    {kn_link::Body_Preview, "preview"},
    {kn_link::Body_Up, "up"},
    {kn_link::Body_Beat, "beat"},
    {kn_link::Body_Loaded, "loaded"},
    {kn_link::Body_Unloaded, "unloaded"},
    {kn_link::Body_Started, "started"},
    {kn_link::Body_Ran, "ran"},
    {kn_link::Body_Released, "released"},
    {kn_link::Body_Previewed, "previewed"},
    {kn_link::Body_Fatal, "fatal"},
    {kn_link::Body_Join, "join"},
    {kn_link::Body_Leave, "leave"},
    {kn_link::Body_Assist, "assist"},
    {kn_link::Body_Joined, "joined"},
    {kn_link::Body_Left, "left"},
    {kn_link::Body_Assisted, "assisted"},
};

class allocator : public flatbuffers::Allocator
{
  public:
    uint8_t *allocate(size_t bytes) override
    {
        void *block = kn_alloc(bytes);
        if (!block) throw std::bad_alloc();
        return static_cast<uint8_t *>(block);
    }
    void deallocate(uint8_t *block, size_t) override
    {
        kn_free(block);
    }
};

/* ---- structs to buffers ---- */

Offset<kn_link::Lease> put(FlatBufferBuilder &b, const kn_lease &in)
{
    return kn_link::CreateLease(b, b.CreateString(in.job), in.epoch);
}

kn_link::Sha256 sha256_of(const uint8_t *bytes)
{
    return kn_link::Sha256(flatbuffers::span<const uint8_t, KN_SHA256_BYTES>(bytes, KN_SHA256_BYTES));
}

kn_link::Slice slice_of(const kn_slice &in)
{
    return kn_link::Slice(static_cast<uint8_t>(in.kind), in.index, in.count);
}

Offset<kn_link::Saved> put(FlatBufferBuilder &b, const kn_saved &in)
{
    const kn_link::Sha256 sum = sha256_of(in.sha256);
    return kn_link::CreateSaved(b, b.CreateString(in.name), &sum, in.step);
}

Offset<kn_link::Output> put(FlatBufferBuilder &b, const kn_output &in)
{
    const kn_link::Sha256 sum = sha256_of(in.sha256);
    return kn_link::CreateOutput(b, b.CreateString(in.name), in.bytes, &sum, in.thumbnail, in.spritesheet);
}

Offset<kn_link::Outcome> put(FlatBufferBuilder &b, const kn_outcome &in)
{
    const auto lease = put(b, in.lease);
    const auto message = b.CreateString(in.message);
    const kn_link::Slice next = slice_of(in.next);
    const Offset<kn_link::Saved> saved = in.has_checkpoint ? put(b, in.checkpoint) : 0;
    const Offset<kn_link::Output> output = in.has_output ? put(b, in.output) : 0;
    return kn_link::CreateOutcome(b, lease, in.status, static_cast<uint8_t>(in.fault), message, &next, saved, output);
}

Offset<void> put_configure(FlatBufferBuilder &b, const kn_wire_configure &in)
{
    const kn_runner_params &p = in.params;
    const auto device = b.CreateString(p.device), models = b.CreateString(p.models), data = b.CreateString(p.data);
    const auto isa = b.CreateString(p.isa ? p.isa : "");
    return kn_link::CreateConfigure(b, device, models, data, isa, p.threads, static_cast<uint8_t>(p.precision),
                                    static_cast<uint8_t>(p.vae_precision), p.checkpoint_interval_ns,
                                    static_cast<uint8_t>(in.log_level), in.log_json)
        .Union();
}

Offset<void> put_start(FlatBufferBuilder &b, const kn_runner_job &in)
{
    const auto lease = put(b, in.lease);
    const auto model = b.CreateString(in.model), request = b.CreateString(in.request);
    const Offset<kn_link::Saved> saved = in.has_checkpoint ? put(b, in.checkpoint) : 0;
    return kn_link::CreateStart(b, lease, model, request, saved, in.crf).Union();
}

Offset<void> put_run(FlatBufferBuilder &b, const kn_wire_run &in)
{
    Offset<kn_link::Lease> leases[KN_RUNNER_PACK_MAX];
    for (int32_t i = 0; i < in.count; i++) leases[i] = put(b, in.leases[i]);
    const auto list = b.CreateVector(leases, static_cast<size_t>(in.count));
    return kn_link::CreateRun(b, in.assignment, static_cast<uint8_t>(in.kind), list, in.group, in.limit_ns).Union();
}

Offset<void> put_ran(FlatBufferBuilder &b, const kn_wire_ran &in)
{
    Offset<kn_link::Outcome> outcomes[KN_RUNNER_PACK_MAX];
    for (int32_t i = 0; i < in.count; i++) outcomes[i] = put(b, in.outcomes[i]);
    const auto list = b.CreateVector(outcomes, static_cast<size_t>(in.count));
    const auto message = b.CreateString(in.message);
    return kn_link::CreateRan(b, in.assignment, static_cast<uint8_t>(in.kind), in.seconds, list, in.lost, message)
        .Union();
}

Offset<void> put_join(FlatBufferBuilder &b, const kn_runner_group &in)
{
    return kn_link::CreateJoin(b, in.epoch, in.ranks, in.rank, in.nccl).Union();
}

Offset<void> put_joined(FlatBufferBuilder &b, const kn_wire_group &in)
{
    return kn_link::CreateJoined(b, in.group.epoch, in.status, b.CreateString(in.message)).Union();
}

Offset<void> put_assist(FlatBufferBuilder &b, const kn_wire_assist &in)
{
    return kn_link::CreateAssist(b, in.assignment, b.CreateString(in.model), in.group, in.limit_ns).Union();
}

Offset<void> put_assisted(FlatBufferBuilder &b, const kn_wire_assist &in)
{
    return kn_link::CreateAssisted(b, in.assignment, in.status, b.CreateString(in.message), in.seconds).Union();
}

Offset<void> put_up(FlatBufferBuilder &b, const kn_device_info &in)
{
    const auto name = b.CreateString(in.name), description = b.CreateString(in.description);
    const auto tier = b.CreateString(in.tier);
    return kn_link::CreateUp(b, name, description, tier, in.threads, in.memory_bytes, in.native_bf16, in.host_memory,
                             in.domain)
        .Union();
}

Offset<void> put_loaded(FlatBufferBuilder &b, const kn_wire_model &in)
{
    const auto model = b.CreateString(in.model), message = b.CreateString(in.message);
    return kn_link::CreateLoaded(b, model, in.status, message, in.seconds, in.bytes).Union();
}

Offset<void> put_unloaded(FlatBufferBuilder &b, const kn_wire_model &in)
{
    const auto model = b.CreateString(in.model), message = b.CreateString(in.message);
    return kn_link::CreateUnloaded(b, model, in.status, message).Union();
}

Offset<void> put_previewed(FlatBufferBuilder &b, const kn_wire_previewed &in)
{
    const auto lease = put(b, in.lease);
    const auto message = b.CreateString(in.message), mime = b.CreateString(in.mime);
    const auto image = b.CreateVector(static_cast<const uint8_t *>(in.image), in.count);
    return kn_link::CreatePreviewed(b, lease, in.status, message, mime, image).Union();
}

Offset<void> put_body(FlatBufferBuilder &b, const kn_wire_message &m)
{
    switch (m.kind) {
    case KN_WIRE_CONFIGURE: return put_configure(b, m.configure);
    case KN_WIRE_LOAD: return kn_link::CreateLoad(b, b.CreateString(m.model.model)).Union();
    case KN_WIRE_UNLOAD: return kn_link::CreateUnload(b, b.CreateString(m.model.model)).Union();
    case KN_WIRE_START: return put_start(b, m.start);
    case KN_WIRE_RUN: return put_run(b, m.run);
    case KN_WIRE_RELEASE:
        return kn_link::CreateRelease(b, put(b, m.lease.lease), static_cast<uint8_t>(m.lease.mode)).Union();
    case KN_WIRE_PREVIEW: return kn_link::CreatePreview(b, put(b, m.lease.lease)).Union();
    case KN_WIRE_UP: return put_up(b, m.up);
    case KN_WIRE_BEAT: return kn_link::CreateBeat(b, m.beat).Union();
    case KN_WIRE_LOADED: return put_loaded(b, m.model);
    case KN_WIRE_UNLOADED: return put_unloaded(b, m.model);
    case KN_WIRE_STARTED: return kn_link::CreateStarted(b, put(b, m.outcome)).Union();
    case KN_WIRE_RAN: return put_ran(b, m.ran);
    case KN_WIRE_RELEASED: return kn_link::CreateReleased(b, put(b, m.outcome)).Union();
    case KN_WIRE_PREVIEWED: return put_previewed(b, m.previewed);
    case KN_WIRE_FATAL: return kn_link::CreateFatal(b, m.fatal.status, b.CreateString(m.fatal.message)).Union();
    case KN_WIRE_JOIN: return put_join(b, m.group.group);
    case KN_WIRE_LEAVE: return kn_link::CreateLeave(b, m.group.group.epoch).Union();
    case KN_WIRE_ASSIST: return put_assist(b, m.assist);
    case KN_WIRE_JOINED: return put_joined(b, m.group);
    case KN_WIRE_LEFT: return kn_link::CreateLeft(b, m.group.group.epoch).Union();
    case KN_WIRE_ASSISTED: return put_assisted(b, m.assist);
    case KN_WIRE_NONE:
    case KN_WIRE_KINDS: break;
    }
    return 0;
}

bool fits(const char *text, size_t limit)
{
    return text && strnlen(text, limit) < limit;
}

kn_status check_to_send(const kn_wire_message &m)
{
    if (m.kind <= KN_WIRE_NONE || m.kind >= KN_WIRE_KINDS)
        return kn_fail(KN_INVALID, "link: %d is not a kind of message", static_cast<int>(m.kind));
    if (m.kind == KN_WIRE_CONFIGURE) {
        const kn_runner_params &p = m.configure.params;
        if (!fits(p.device, KN_RUNNER_DEVICE_BYTES) || !fits(p.models, KN_WIRE_PATH_BYTES) ||
            !fits(p.data, KN_WIRE_PATH_BYTES) || (p.isa && !fits(p.isa, KN_WIRE_ISA_BYTES)))
            return kn_fail(KN_INVALID, "link: configure: a text is missing or too long");
    }
    if (m.kind == KN_WIRE_START && !fits(m.start.request, KN_RUNNER_REQUEST_BYTES))
        return kn_fail(KN_INVALID, "link: start: the request is missing or has more than %d bytes",
                       KN_RUNNER_REQUEST_BYTES - 1);
    if (m.kind == KN_WIRE_RUN && (m.run.count < 1 || m.run.count > KN_RUNNER_PACK_MAX))
        return kn_fail(KN_INVALID, "link: run: %d jobs: must be 1 to %d", m.run.count, KN_RUNNER_PACK_MAX);
    if (m.kind == KN_WIRE_RAN && (m.ran.count < 1 || m.ran.count > KN_RUNNER_PACK_MAX))
        return kn_fail(KN_INVALID, "link: ran: %d jobs: must be 1 to %d", m.ran.count, KN_RUNNER_PACK_MAX);
    if (m.kind == KN_WIRE_PREVIEWED && m.previewed.count > KN_RUNNER_PREVIEW_BYTES)
        return kn_fail(KN_INVALID, "link: previewed: a picture of %zu bytes: must be %d at most", m.previewed.count,
                       KN_RUNNER_PREVIEW_BYTES);
    return KN_OK;
}

/* ---- buffers to structs ---- */

kn_status refuse(const char *kind, const char *field, const char *why)
{
    return kn_fail(KN_CORRUPT, "link: %s: %s %s", kind, field, why);
}

/* A text that fits and ends where it says it does. */
kn_status check_text(const String *in, size_t limit, const char *kind, const char *field)
{
    if (in->size() >= limit) return refuse(kind, field, "is too long");
    if (std::strlen(in->c_str()) != in->size()) return refuse(kind, field, "has a NUL inside");
    return KN_OK;
}

template <size_t N> kn_status get_text(char (&out)[N], const String *in, const char *kind, const char *field)
{
    kn_status st = check_text(in, N, kind, field);
    if (st == KN_OK) std::memcpy(out, in->c_str(), in->size() + 1);
    return st;
}

/* Text for people and logs: one line of ASCII, whatever came. */
template <size_t N> kn_status get_line(char (&out)[N], const String *in, const char *kind, const char *field)
{
    kn_status st = get_text(out, in, kind, field);
    for (char *c = out; st == KN_OK && *c; c++)
        if (*c < 0x20 || *c > 0x7e) *c = '?';
    return st;
}

template <typename T> kn_status get_enum(T &out, int64_t value, int64_t count, const char *kind, const char *field)
{
    if (value < 0 || value >= count) return refuse(kind, field, "is not one of its values");
    out = static_cast<T>(value);
    return KN_OK;
}

kn_status get_status(kn_status &out, int32_t value, const char *kind)
{
    switch (static_cast<kn_status>(value)) {
    case KN_OK:
    case KN_AGAIN:
    case KN_CANCELLED:
    case KN_INVALID:
    case KN_NOT_FOUND:
    case KN_UNSUPPORTED:
    case KN_CORRUPT:
    case KN_NOMEM:
    case KN_IO:
    case KN_UNAVAILABLE:
    case KN_FATAL:
    case KN_DEVICE_LOST:
    case KN_BUG: out = static_cast<kn_status>(value); return KN_OK;
    }
    return refuse(kind, "status", "is not one of its values");
}

kn_status get_seconds(double &out, double value, const char *kind)
{
    if (!(value >= 0.0) || !std::isfinite(value)) return refuse(kind, "seconds", "is not a time");
    out = value;
    return KN_OK;
}

kn_status get_model(char (&out)[KN_MODEL_NAME_BYTES], const String *in, const char *kind)
{
    kn_status st = get_text(out, in, kind, "model");
    if (st == KN_OK && !kn_model_name_valid(out)) st = refuse(kind, "model", "is not a model's name");
    return st;
}

kn_status get_lease(kn_lease &out, const kn_link::Lease *in, const char *kind)
{
    kn_status st = get_text(out.job, in->job(), kind, "job");
    out.epoch = in->epoch();
    if (st == KN_OK && !kn_lease_valid(&out)) st = refuse(kind, "lease", "is not a job's id and an epoch");
    return st;
}

/* The file is this job's, made under this epoch, or `earlier` ones too. */
bool names_file_of(const char *name, kn_artifact_kind wanted, const kn_lease &lease, bool earlier, int32_t step)
{
    kn_artifact a;
    return kn_artifact_parse(&a, name) && a.kind == wanted && !a.temporary && a.step == step &&
           std::strcmp(a.lease.job, lease.job) == 0 &&
           (a.lease.epoch == lease.epoch || (earlier && a.lease.epoch < lease.epoch));
}

kn_status get_saved(kn_saved &out, const kn_link::Saved *in, const kn_lease &lease, bool earlier, const char *kind)
{
    kn_status st = get_text(out.name, in->name(), kind, "checkpoint");
    if (st != KN_OK) return st;
    out.step = in->step();
    std::memcpy(out.sha256, in->sha256()->bytes()->data(), sizeof out.sha256);
    if (out.step > KN_STEPS_MAX || !names_file_of(out.name, KN_ARTIFACT_CHECKPOINT, lease, earlier, out.step))
        return refuse(kind, "checkpoint", "is not a file of this job");
    return KN_OK;
}

kn_status get_output(kn_output &out, const kn_link::Output *in, const kn_lease &lease, const char *kind)
{
    kn_status st = get_text(out.name, in->name(), kind, "output");
    if (st != KN_OK) return st;
    out.bytes = in->bytes();
    std::memcpy(out.sha256, in->sha256()->bytes()->data(), sizeof out.sha256);
    out.thumbnail = in->thumbnail();
    out.spritesheet = in->spritesheet();
    if (!names_file_of(out.name, KN_ARTIFACT_VIDEO, lease, false, 0))
        return refuse(kind, "output", "is not a file of this lease");
    return KN_OK;
}

kn_status get_slice(kn_slice &out, const kn_link::Slice *in, const char *kind)
{
    kn_status st = get_enum(out.kind, in->kind(), KN_SLICE_DONE + 1, kind, "slice");
    out.index = in->index();
    out.count = in->count();
    if (st == KN_OK && (out.index < 0 || out.count < 0 || out.index > out.count))
        st = refuse(kind, "slice", "is not a position in a job");
    return st;
}

kn_status get_outcome(kn_outcome &out, const kn_link::Outcome *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_lease(out.lease, in->lease(), kind));
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_enum(out.fault, in->fault(), KN_FAULTS, kind, "fault"));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    KN_TRY(get_slice(out.next, in->next(), kind));
    out.has_checkpoint = in->checkpoint() != nullptr;
    out.has_output = in->output() != nullptr;
    if (out.has_checkpoint) KN_TRY(get_saved(out.checkpoint, in->checkpoint(), out.lease, false, kind));
    if (out.has_output) KN_TRY(get_output(out.output, in->output(), out.lease, kind));
    if ((out.status == KN_OK) != (out.fault == KN_FAULT_NONE)) KN_TRY(refuse(kind, "fault", "contradicts status"));
    if (out.has_output && (out.status != KN_OK || out.next.kind != KN_SLICE_DONE))
        KN_TRY(refuse(kind, "output", "comes with a job that is not done"));
fail:
    return st;
}

kn_status get_configure(kn_wire_configure &out, const kn_link::Configure *in, const char *kind)
{
    kn_status st;
    kn_runner_params &p = out.params;
    KN_TRY(check_text(in->device(), KN_RUNNER_DEVICE_BYTES, kind, "device"));
    KN_TRY(check_text(in->models(), KN_WIRE_PATH_BYTES, kind, "models"));
    KN_TRY(check_text(in->data(), KN_WIRE_PATH_BYTES, kind, "data"));
    KN_TRY(check_text(in->isa(), KN_WIRE_ISA_BYTES, kind, "isa"));
    KN_TRY(get_enum(p.precision, in->precision(), KN_PRECISION_BFLOAT16 + 1, kind, "precision"));
    KN_TRY(get_enum(p.vae_precision, in->vae_precision(), KN_PRECISION_BFLOAT16 + 1, kind, "vae_precision"));
    KN_TRY(get_enum(out.log_level, in->log_level(), KN_LOG_ERROR + 1, kind, "log_level"));
    if (in->threads() < 0 || in->threads() > KN_RUNNER_THREADS_MAX) KN_TRY(refuse(kind, "threads", "is out of range"));
    if (in->checkpoint_interval_ns() < 0) KN_TRY(refuse(kind, "checkpoint_interval_ns", "is negative"));
    p.device = in->device()->c_str();
    p.models = in->models()->c_str();
    p.data = in->data()->c_str();
    p.isa = in->isa()->c_str();
    p.threads = in->threads();
    p.checkpoint_interval_ns = in->checkpoint_interval_ns();
    p.corrupt_fd = -1;
    out.log_json = in->log_json();
fail:
    return st;
}

kn_status get_start(kn_runner_job &out, const kn_link::Start *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_lease(out.lease, in->lease(), kind));
    KN_TRY(get_model(out.model, in->model(), kind));
    KN_TRY(check_text(in->request(), KN_RUNNER_REQUEST_BYTES, kind, "request"));
    out.request = in->request()->c_str();
    out.has_checkpoint = in->checkpoint() != nullptr;
    if (out.has_checkpoint) KN_TRY(get_saved(out.checkpoint, in->checkpoint(), out.lease, true, kind));
    if (in->crf() < 0 || in->crf() > KN_RUNNER_CRF_MAX) KN_TRY(refuse(kind, "crf", "is out of range"));
    out.crf = in->crf();
fail:
    return st;
}

/* How many entries a list has, if it can have so many. */
template <typename T> kn_status get_count(int32_t &out, const flatbuffers::Vector<T> *list, const char *kind)
{
    if (list->size() < 1 || list->size() > KN_RUNNER_PACK_MAX) return refuse(kind, "jobs", "are none or too many");
    out = static_cast<int32_t>(list->size());
    return KN_OK;
}

kn_status get_run(kn_wire_run &out, const kn_link::Run *in, const char *kind)
{
    kn_status st;
    int32_t count = 0;
    KN_TRY(get_count(count, in->leases(), kind));
    KN_TRY(get_enum(out.kind, in->kind(), KN_SLICE_DONE, kind, "kind"));
    for (int32_t i = 0; i < count; i++)
        KN_TRY(get_lease(out.leases[i], in->leases()->Get(static_cast<flatbuffers::uoffset_t>(i)), kind));
    if (in->limit_ns() < 0) KN_TRY(refuse(kind, "limit_ns", "is negative"));
    out.count = count;
    out.assignment = in->assignment();
    out.group = in->group();
    out.limit_ns = in->limit_ns();
fail:
    return st;
}

kn_status get_epoch(uint64_t &out, uint64_t epoch, const char *kind)
{
    out = epoch;
    return epoch != 0 ? KN_OK : refuse(kind, "epoch", "is 0");
}

kn_status get_join(kn_runner_group &out, const kn_link::Join *in, const char *kind)
{
    if (in->ranks() < 2 || in->ranks() > KN_COMM_RANKS_MAX) return refuse(kind, "ranks", "is out of range");
    if (in->rank() < 0 || in->rank() >= in->ranks()) return refuse(kind, "rank", "is out of range");
    out.ranks = in->ranks();
    out.rank = in->rank();
    out.nccl = in->nccl();
    return get_epoch(out.epoch, in->epoch(), kind);
}

kn_status get_joined(kn_wire_group &out, const kn_link::Joined *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_epoch(out.group.epoch, in->epoch(), kind));
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
fail:
    return st;
}

kn_status get_assist(kn_wire_assist &out, const kn_link::Assist *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_model(out.model, in->model(), kind));
    KN_TRY(get_epoch(out.group, in->group(), kind));
    if (in->limit_ns() < 0) KN_TRY(refuse(kind, "limit_ns", "is negative"));
    out.assignment = in->assignment();
    out.limit_ns = in->limit_ns();
fail:
    return st;
}

kn_status get_assisted(kn_wire_assist &out, const kn_link::Assisted *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    KN_TRY(get_seconds(out.seconds, in->seconds(), kind));
    out.assignment = in->assignment();
fail:
    return st;
}

kn_status get_ran(kn_wire_ran &out, const kn_link::Ran *in, const char *kind)
{
    kn_status st;
    int32_t count = 0;
    KN_TRY(get_count(count, in->outcomes(), kind));
    KN_TRY(get_enum(out.kind, in->kind(), KN_SLICE_DONE, kind, "kind"));
    KN_TRY(get_seconds(out.seconds, in->seconds(), kind));
    for (int32_t i = 0; i < count; i++)
        KN_TRY(get_outcome(out.outcomes[i], in->outcomes()->Get(static_cast<flatbuffers::uoffset_t>(i)), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    out.lost = in->lost();
    out.count = count;
    out.assignment = in->assignment();
fail:
    return st;
}

kn_status get_up(kn_device_info &out, const kn_link::Up *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_line(out.name, in->name(), kind, "name"));
    KN_TRY(get_line(out.description, in->description(), kind, "description"));
    KN_TRY(get_line(out.tier, in->tier(), kind, "tier"));
    if (in->threads() < 0) KN_TRY(refuse(kind, "threads", "is negative"));
    out.threads = in->threads();
    out.memory_bytes = in->memory_bytes();
    out.native_bf16 = in->native_bf16();
    out.host_memory = in->host_memory();
    if (in->domain() < 0) KN_TRY(refuse(kind, "domain", "is negative"));
    out.domain = in->domain();
fail:
    return st;
}

kn_status get_loaded(kn_wire_model &out, const kn_link::Loaded *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_model(out.model, in->model(), kind));
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    KN_TRY(get_seconds(out.seconds, in->seconds(), kind));
    out.bytes = in->bytes();
fail:
    return st;
}

kn_status get_unloaded(kn_wire_model &out, const kn_link::Unloaded *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_model(out.model, in->model(), kind));
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
fail:
    return st;
}

kn_status get_release(kn_wire_lease &out, const kn_link::Release *in, const char *kind)
{
    kn_status st = get_lease(out.lease, in->lease(), kind);
    return st == KN_OK ? get_enum(out.mode, in->mode(), KN_RELEASE_MODES, kind, "mode") : st;
}

kn_status get_previewed(kn_wire_previewed &out, const kn_link::Previewed *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_lease(out.lease, in->lease(), kind));
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    KN_TRY(get_line(out.mime, in->mime(), kind, "mime"));
    if (in->image()->size() > KN_RUNNER_PREVIEW_BYTES) KN_TRY(refuse(kind, "image", "is too large"));
    if ((out.status == KN_OK) != (in->image()->size() > 0)) KN_TRY(refuse(kind, "image", "contradicts status"));
    out.image = in->image()->data();
    out.count = in->image()->size();
fail:
    return st;
}

kn_status get_fatal(kn_wire_fatal &out, const kn_link::Fatal *in, const char *kind)
{
    kn_status st;
    KN_TRY(get_status(out.status, in->status(), kind));
    KN_TRY(get_line(out.message, in->message(), kind, "message"));
    if (out.status > KN_FATAL) KN_TRY(refuse(kind, "status", "is not fatal"));
fail:
    return st;
}

kn_status get_body(kn_wire_message &out, const kn_link::Message *in)
{
    const char *kind = kinds[out.kind].name;
    switch (out.kind) {
    case KN_WIRE_CONFIGURE: return get_configure(out.configure, in->body_as_Configure(), kind);
    case KN_WIRE_LOAD: return get_model(out.model.model, in->body_as_Load()->model(), kind);
    case KN_WIRE_UNLOAD: return get_model(out.model.model, in->body_as_Unload()->model(), kind);
    case KN_WIRE_START: return get_start(out.start, in->body_as_Start(), kind);
    case KN_WIRE_RUN: return get_run(out.run, in->body_as_Run(), kind);
    case KN_WIRE_RELEASE: return get_release(out.lease, in->body_as_Release(), kind);
    case KN_WIRE_PREVIEW: return get_lease(out.lease.lease, in->body_as_Preview()->lease(), kind);
    case KN_WIRE_UP: return get_up(out.up, in->body_as_Up(), kind);
    case KN_WIRE_BEAT: out.beat = in->body_as_Beat()->sequence(); return KN_OK;
    case KN_WIRE_LOADED: return get_loaded(out.model, in->body_as_Loaded(), kind);
    case KN_WIRE_UNLOADED: return get_unloaded(out.model, in->body_as_Unloaded(), kind);
    case KN_WIRE_STARTED: return get_outcome(out.outcome, in->body_as_Started()->outcome(), kind);
    case KN_WIRE_RAN: return get_ran(out.ran, in->body_as_Ran(), kind);
    case KN_WIRE_RELEASED: return get_outcome(out.outcome, in->body_as_Released()->outcome(), kind);
    case KN_WIRE_PREVIEWED: return get_previewed(out.previewed, in->body_as_Previewed(), kind);
    case KN_WIRE_FATAL: return get_fatal(out.fatal, in->body_as_Fatal(), kind);
    case KN_WIRE_JOIN: return get_join(out.group.group, in->body_as_Join(), kind);
    case KN_WIRE_LEAVE: return get_epoch(out.group.group.epoch, in->body_as_Leave()->epoch(), kind);
    case KN_WIRE_ASSIST: return get_assist(out.assist, in->body_as_Assist(), kind);
    case KN_WIRE_JOINED: return get_joined(out.group, in->body_as_Joined(), kind);
    case KN_WIRE_LEFT: return get_epoch(out.group.group.epoch, in->body_as_Left()->epoch(), kind);
    case KN_WIRE_ASSISTED: return get_assisted(out.assist, in->body_as_Assisted(), kind);
    case KN_WIRE_NONE:
    case KN_WIRE_KINDS: break;
    }
    return kn_fail(KN_CORRUPT, "link: a message of an unknown kind");
}

kn_wire_kind kind_of(kn_link::Body body)
{
    for (int i = 1; i < KN_WIRE_KINDS; i++)
        if (kinds[i].body == body) return static_cast<kn_wire_kind>(i);
    return KN_WIRE_NONE;
}

} // namespace

const char *kn_wire_kind_name(kn_wire_kind kind)
{
    return kind > KN_WIRE_NONE && kind < KN_WIRE_KINDS ? kinds[kind].name : "none";
}

kn_status kn_wire_encode(const kn_wire_message *message, void **bytes, size_t *count)
{
    kn_status st = check_to_send(*message);
    if (st != KN_OK) return st;
    try {
        allocator memory;
        FlatBufferBuilder builder(FIRST_BYTES, &memory);
        const auto body = put_body(builder, *message);
        kn_link::FinishMessageBuffer(builder, kn_link::CreateMessage(builder, kinds[message->kind].body, body));
        if (builder.GetSize() > KN_WIRE_BYTES_MAX)
            return kn_fail(KN_INVALID, "link: a message of %u bytes: must be %d at most", builder.GetSize(),
                           KN_WIRE_BYTES_MAX);
        void *copy = kn_alloc(builder.GetSize());
        if (!copy) return KN_NOMEM;
        *bytes = std::memcpy(copy, builder.GetBufferPointer(), builder.GetSize());
        *count = builder.GetSize();
        return KN_OK;
    } catch (const std::bad_alloc &) {
        return KN_NOMEM;
    }
}

kn_status kn_wire_decode(kn_wire_message *out, const void *bytes, size_t count)
{
    std::memset(out, 0, sizeof *out);
    if (count < 1 || count > KN_WIRE_BYTES_MAX)
        return kn_fail(KN_CORRUPT, "link: a message of %zu bytes: must be 1 to %d", count, KN_WIRE_BYTES_MAX);
    uint8_t *copy = static_cast<uint8_t *>(kn_alloc(count)); /* aligned, and out of the sender's reach */
    if (!copy) return KN_NOMEM;
    std::memcpy(copy, bytes, count);
    out->storage = copy;
    flatbuffers::Verifier verifier(copy, count, KN_WIRE_DEPTH_MAX, KN_WIRE_TABLES_MAX);
    kn_status st;
    if (!kn_link::VerifyMessageBuffer(verifier)) {
        st = kn_fail(KN_CORRUPT, "link: a message that is not well formed");
    } else {
        const kn_link::Message *message = kn_link::GetMessage(copy);
        out->kind = kind_of(message->body_type());
        st = get_body(*out, message);
    }
    if (st != KN_OK) kn_wire_release(out);
    return st;
}

void kn_wire_release(kn_wire_message *message)
{
    kn_free(message->storage);
    std::memset(message, 0, sizeof *message);
}
