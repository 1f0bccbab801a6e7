/* SPDX-License-Identifier: Apache-2.0
 *
 * rpc.h on top of what flatc generates from schema/kinora.fbs; see wire.cc for why this is C++. */

/* The inline bodies in this header are C only; the others need no more of it than the name. */
#define KN_BASE_ARENA_H
typedef struct kn_arena kn_arena;

extern "C" {
#include "server/rpc.h"

#include "base/mem.h"
#include "server/json.h"
}

#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "kinora_generated.h"

namespace
{

namespace v1 = kinora::v1;
using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;
using flatbuffers::String;

constexpr size_t FIRST_BYTES = 1024; /* most messages are smaller */
constexpr size_t CHUNK_ROOM = 512;   /* of a chunk, beside its data */

class allocator : public flatbuffers::Allocator
{
  public:
    explicit allocator(kn_rpc_spares *spares) : spares_(spares)
    {
    }
    uint8_t *allocate(size_t bytes) override
    {
        void *block = take_spare(bytes);
        if (!block) block = kn_alloc(bytes);
        if (!block) throw std::bad_alloc();
        return static_cast<uint8_t *>(block);
    }
    void deallocate(uint8_t *block, size_t) override
    {
        kn_free(block);
    }

  private:
    void *take_spare(size_t bytes)
    {
        for (int i = 0; spares_ && i < KN_RPC_SPARES; i++) {
            void *raw = spares_->all[i].raw;
            if (!raw || spares_->all[i].bytes != bytes) continue;
            spares_->all[i].raw = nullptr;
            return raw;
        }
        return nullptr;
    }
    kn_rpc_spares *spares_;
};

/* ---- requests ---- */

/* The root, or NULL and *error. */
template <typename T> const T *root(const void *bytes, size_t count, kn_api_error *error)
{
    flatbuffers::Verifier verifier(static_cast<const uint8_t *>(bytes), count, KN_RPC_DEPTH_MAX, KN_RPC_TABLES_MAX);
    if (verifier.VerifyBuffer<T>(nullptr)) return flatbuffers::GetRoot<T>(bytes);
    kn_api_invalid_body(error, "The message is not a well-formed FlatBuffer of this method's request.");
    return nullptr;
}

/* A text into out[room]. */
kn_status get(char *out, size_t room, const String *in, const char *field, kn_api_error *error)
{
    const size_t count = in ? in->size() : 0;
    if (count >= room) return kn_api_invalid_value(error, field, "%s is longer than %zu bytes.", field, room - 1);
    if (count > 0 && std::memchr(in->data(), 0, count))
        return kn_api_invalid_value(error, field, "%s contains a NUL.", field);
    if (count > 0) std::memcpy(out, in->data(), count);
    out[count] = '\0';
    return KN_OK;
}

/* ---- a submission as JSON ---- */

struct submission {
    kn_json_writer w;
    kn_api_error *error;
    kn_status status = KN_OK;
};

void put_text(submission &s, const char *name, const String *value)
{
    if (!value || s.status != KN_OK) return;
    if (kn_text_characters(value->c_str(), value->size()) < 0) {
        s.status = kn_api_invalid_value(s.error, name, "%s is not UTF-8, or contains a NUL.", name);
        return;
    }
    kn_json_write_key(&s.w, name);
    kn_json_write_bytes(&s.w, value->c_str(), value->size());
}

void put_int(submission &s, const char *name, int64_t value, int64_t absent)
{
    if (value == absent) return;
    kn_json_write_key(&s.w, name);
    kn_json_write_int(&s.w, value);
}

void put_double(submission &s, const char *name, double value, double absent)
{
    if (value == absent || s.status != KN_OK) return;
    if (!std::isfinite(value)) {
        s.status = kn_api_invalid_value(s.error, name, "%s must be a finite number.", name);
        return;
    }
    kn_json_write_key(&s.w, name);
    kn_json_write_double(&s.w, value);
}

void put_word(submission &s, const char *name, int value, const char *const *words, int count)
{
    if (value == 0 || s.status != KN_OK) return;
    if (value < 0 || value >= count) {
        s.status = kn_api_invalid_value(s.error, name, "%s has no value %d.", name, value);
        return;
    }
    kn_json_write_key(&s.w, name);
    kn_json_write_string(&s.w, words[value]);
}

void put_deadline(submission &s, const v1::SubmitRequest &in, double call_seconds)
{
    double seconds = in.deadline_seconds();
    if (in.call_deadline() && std::isnan(call_seconds)) {
        s.status = kn_api_invalid_value(s.error, "call_deadline", "call_deadline needs a call with a deadline.");
        return;
    }
    if (in.call_deadline() && (seconds == 0.0 || call_seconds < seconds)) seconds = call_seconds;
    put_double(s, "deadline", seconds, 0.0);
}

void put_metadata(submission &s, const v1::SubmitRequest &in)
{
    if (!in.metadata()) return;
    kn_json_write_key(&s.w, "metadata");
    kn_json_write_object(&s.w);
    for (const v1::Pair *pair : *in.metadata()) {
        if (kn_text_characters(pair->key()->c_str(), pair->key()->size()) < 0) {
            s.status = kn_api_invalid_value(s.error, "metadata", "a key of metadata is not UTF-8, or contains a NUL.");
            return;
        }
        put_text(s, pair->key()->c_str(), pair->value());
    }
    kn_json_write_object_end(&s.w);
}

void put_submission(submission &s, const v1::SubmitRequest &in, double call_seconds)
{
    static const char *const tiers[] = {"auto", "default", "flex", "priority"};
    static const char *const samplers[] = {"", "unipc", "euler"};
    kn_json_write_object(&s.w);
    put_text(s, "prompt", in.prompt());
    put_text(s, "negative_prompt", in.negative_prompt());
    if (in.model() && in.model()->size() > 0) put_text(s, "model", in.model());
    put_int(s, "width", in.width(), 0);
    put_int(s, "height", in.height(), 0);
    put_double(s, "seconds", in.seconds(), 0.0);
    put_int(s, "num_frames", in.num_frames(), 0);
    put_double(s, "fps", in.fps(), 0.0);
    put_int(s, "num_inference_steps", in.num_inference_steps(), 0);
    put_double(s, "guidance_scale", in.guidance_scale(), -1.0);
    put_double(s, "flow_shift", in.flow_shift(), 0.0);
    put_int(s, "seed", in.seed(), -1);
    put_word(s, "sampler", in.sampler(), samplers, 3);
    put_word(s, "service_tier", in.priority(), tiers, 4);
    put_deadline(s, in, call_seconds);
    put_metadata(s, in);
    if (in.user() && in.user()->size() > 0) put_text(s, "user", in.user());
    if (in.reference() && in.reference()->size() > 0) {
        kn_json_write_key(&s.w, "input_reference");
        kn_json_write_object(&s.w);
        put_text(s, "file_id", in.reference());
        kn_json_write_object_end(&s.w);
    }
    kn_json_write_object_end(&s.w);
}

/* ---- replies ---- */

kn_status finish(kn_rpc_block **out, FlatBufferBuilder &b, kn_rpc_spares *spares)
{
    size_t size = 0, offset = 0;
    const size_t count = b.GetSize();
    auto *block = static_cast<kn_rpc_block *>(kn_alloc(sizeof(kn_rpc_block)));
    if (!block) return KN_NOMEM;
    uint8_t *raw = b.ReleaseRaw(size, offset);
    *block = {raw + offset, count, raw, 1, size, spares};
    *out = block;
    return KN_OK;
}

/* Builds with `make`, which finishes the builder. */
template <typename F> kn_status build(kn_rpc_block **out, size_t first_bytes, F make, kn_rpc_spares *spares = nullptr)
{
    allocator memory(spares); /* outlives the builder; the block's own memory is freed by kn_free */
    try {
        FlatBufferBuilder b(first_bytes, &memory);
        make(b);
        return finish(out, b, spares);
    } catch (const std::bad_alloc &) {
        return KN_NOMEM;
    }
}

Offset<String> text(FlatBufferBuilder &b, const char *value)
{
    return value && value[0] ? b.CreateString(value) : Offset<String>(0);
}

v1::Status status_of(kn_job_state state)
{
    switch (state) {
    case KN_JOB_QUEUED: return v1::Status_Queued;
    case KN_JOB_RUNNING: return v1::Status_InProgress;
    case KN_JOB_COMPLETED:
    case KN_JOB_EXPIRED: return v1::Status_Completed;
    default: return v1::Status_Failed;
    }
}

v1::Priority priority_of(kn_priority priority)
{
    return priority == KN_PRIORITY_FLEX      ? v1::Priority_Flex
           : priority == KN_PRIORITY_DEFAULT ? v1::Priority_Default
                                             : v1::Priority_Priority;
}

int32_t percent_of(const kn_video_item &item)
{
    const int32_t progress = item.facts.progress;
    if (item.job->state == KN_JOB_COMPLETED || item.job->state == KN_JOB_EXPIRED) return 100;
    return progress < 0 ? 0 : progress > 99 ? 99 : progress;
}

Offset<v1::Video> put(FlatBufferBuilder &b, const kn_video_item &item)
{
    const kn_job &job = *item.job;
    const kn_video_summary &summary = *item.summary;
    const auto id = b.CreateString(job.id), model = b.CreateString(job.asked_model);
    const auto prompt = text(b, job.prompt), seconds = text(b, summary.seconds), stage = text(b, item.facts.stage);
    const auto metadata = text(b, summary.metadata), user = text(b, summary.user);
    Offset<v1::Failure> failure = 0;
    if (job.error_code[0]) failure = v1::CreateFailure(b, b.CreateString(job.error_code), text(b, job.error_message));
    const auto sum =
        job.blob ? b.CreateVector(job.blob_sha256, KN_SHA256_BYTES) : Offset<flatbuffers::Vector<uint8_t>>(0);
    v1::VideoBuilder v(b);
    v.add_id(id);
    v.add_model(model);
    v.add_status(status_of(job.state));
    v.add_progress(percent_of(item));
    v.add_prompt(prompt);
    v.add_width(summary.width);
    v.add_height(summary.height);
    v.add_num_frames(summary.frames);
    v.add_fps_numerator(summary.fps_numerator);
    v.add_fps_denominator(summary.fps_denominator);
    v.add_seconds(seconds);
    v.add_num_inference_steps(summary.steps);
    v.add_guidance_scale(summary.guidance);
    v.add_seed(summary.seed);
    v.add_priority(priority_of(job.priority));
    v.add_created_at(job.created_at);
    v.add_started_at(job.started_at);
    v.add_completed_at(job.completed_at);
    v.add_expires_at(job.expires_at);
    v.add_deadline_at(job.deadline_at);
    v.add_stage(stage);
    v.add_eta_seconds(std::isnan(item.facts.eta_seconds) ? -1.0 : item.facts.eta_seconds);
    v.add_queue_position(item.facts.queue_position);
    v.add_failure(failure);
    v.add_content_bytes(job.blob ? job.blob_bytes : 0);
    v.add_content_sha256(sum);
    v.add_device_seconds(static_cast<double>(job.used_us) * 1e-6);
    v.add_metadata(metadata);
    v.add_user(user);
    return v.Finish();
}

Offset<v1::Model> put(FlatBufferBuilder &b, const kn_rpc_model &model)
{
    const auto name = b.CreateString(model.name);
    return v1::CreateModel(b, name, model.created_at, model.ready, text(b, model.reason));
}

} // namespace

kn_status kn_rpc_read_submit(kn_text *json, char reference[KN_REFERENCE_ID_BYTES], const void *bytes, size_t count,
                             double call_seconds, kn_api_error *error)
{
    const auto *in = root<v1::SubmitRequest>(bytes, count, error);
    if (!in) return KN_INVALID;
    submission s = {kn_json_writer_on(json), error, KN_OK};
    s.status = get(reference, KN_REFERENCE_ID_BYTES, in->reference(), "reference", error);
    if (s.status == KN_OK) put_submission(s, *in, call_seconds);
    if (s.status == KN_OK && kn_text_status(json) == KN_INVALID)
        return kn_api_too_large(error, "the request", KN_BODY_JSON_BYTES_MAX);
    if (s.status == KN_OK && kn_text_status(json) != KN_OK) return kn_api_from_status(error, kn_text_status(json));
    return s.status;
}

kn_status kn_rpc_read_id(char id[KN_JOB_ID_BYTES + 8], const void *bytes, size_t count, kn_api_error *error)
{
    const auto *in = root<v1::VideoRequest>(bytes, count, error);
    return in ? get(id, KN_JOB_ID_BYTES + 8, in->id(), "id", error) : KN_INVALID;
}

kn_status kn_rpc_read_list(kn_list_query *out, const void *bytes, size_t count, kn_api_error *error)
{
    const auto *in = root<v1::ListRequest>(bytes, count, error);
    char after[KN_JOB_ID_BYTES + 8];
    *out = kn_list_query{};
    if (!in) return KN_INVALID;
    if (in->limit() < 0 || in->limit() > KN_LIST_LIMIT_MAX)
        return kn_api_invalid_value(error, "limit", "limit must be 0 to %d.", KN_LIST_LIMIT_MAX);
    kn_status st = get(after, sizeof after, in->after(), "after", error);
    if (st != KN_OK) return st;
    if (after[0] && !kn_job_id_valid(after))
        return kn_api_invalid_value(error, "after", "after must be the id of a video.");
    std::snprintf(out->after, sizeof out->after, "%.*s", KN_JOB_ID_BYTES - 1, after);
    out->limit = in->limit();
    out->ascending = in->ascending();
    return KN_OK;
}

kn_status kn_rpc_read_model(char name[KN_MODEL_NAME_BYTES], const void *bytes, size_t count, kn_api_error *error)
{
    const auto *in = root<v1::ModelRequest>(bytes, count, error);
    return in ? get(name, KN_MODEL_NAME_BYTES, in->name(), "name", error) : KN_INVALID;
}

kn_status kn_rpc_read_empty(const void *bytes, size_t count, kn_api_error *error)
{
    return count == 0 || root<v1::Empty>(bytes, count, error) ? KN_OK : KN_INVALID;
}

kn_status kn_rpc_read_watch(kn_rpc_watch *out, const void *bytes, size_t count, kn_api_error *error)
{
    const auto *in = root<v1::WatchRequest>(bytes, count, error);
    *out = kn_rpc_watch{};
    if (!in) return KN_INVALID;
    kn_status st = get(out->id, sizeof out->id, in->id(), "id", error);
    if (st == KN_OK) st = get(out->after, sizeof out->after, in->after(), "after", error);
    out->no_progress = in->no_progress();
    out->no_previews = in->no_previews();
    out->cancel_with_call = in->cancel_with_call();
    return st;
}

kn_status kn_rpc_read_download(kn_rpc_download *out, const void *bytes, size_t count, kn_api_error *error)
{
    static const kn_artifact_kind kinds[] = {KN_ARTIFACT_VIDEO, KN_ARTIFACT_THUMBNAIL, KN_ARTIFACT_SPRITESHEET};
    const auto *in = root<v1::DownloadRequest>(bytes, count, error);
    *out = kn_rpc_download{};
    if (!in) return KN_INVALID;
    kn_status st = get(out->id, sizeof out->id, in->id(), "id", error);
    if (st == KN_OK) st = get(out->etag, sizeof out->etag, in->etag(), "etag", error);
    if (st != KN_OK) return st;
    if (in->variant() < v1::Variant_MIN || in->variant() > v1::Variant_MAX)
        return kn_api_invalid_value(error, "variant", "variant must be Video, Thumbnail or Spritesheet.");
    out->chunk_bytes = in->chunk_bytes() ? in->chunk_bytes() : uint32_t{KN_RPC_CHUNK_BYTES};
    if (out->chunk_bytes < KN_RPC_CHUNK_BYTES_MIN || out->chunk_bytes > KN_RPC_CHUNK_BYTES_MAX)
        return kn_api_invalid_value(error, "chunk_bytes", "chunk_bytes must be %d to %d.", KN_RPC_CHUNK_BYTES_MIN,
                                    KN_RPC_CHUNK_BYTES_MAX);
    out->kind = kinds[in->variant()];
    out->offset = in->offset();
    out->length = in->length();
    return KN_OK;
}

kn_status kn_rpc_read_part(const uint8_t **data, size_t *data_bytes, const void *bytes, size_t count,
                           kn_api_error *error)
{
    const auto *in = root<v1::ReferenceChunk>(bytes, count, error);
    if (!in) return KN_INVALID;
    if (in->data()->size() > KN_RPC_CHUNK_BYTES_MAX)
        return kn_api_invalid_value(error, "data", "data must be at most %d bytes.", KN_RPC_CHUNK_BYTES_MAX);
    *data = in->data()->data();
    *data_bytes = in->data()->size();
    return KN_OK;
}

void kn_rpc_block_unref(void *pointer)
{
    auto *block = static_cast<kn_rpc_block *>(pointer);
    if (!block || --block->references > 0) return;
    for (int i = 0; block->home && block->raw && i < KN_RPC_SPARES; i++) {
        auto &spare = block->home->all[i];
        if (spare.raw && spare.bytes == block->raw_bytes) continue;
        kn_free(spare.raw); /* of a size that is not asked for now */
        spare = {block->raw, block->raw_bytes};
        block->raw = nullptr;
    }
    kn_free(block->raw);
    kn_free(block);
}

void kn_rpc_spares_release(kn_rpc_spares *spares)
{
    for (auto &spare : spares->all) {
        kn_free(spare.raw);
        spare.raw = nullptr;
    }
}

kn_status kn_rpc_write_video(kn_rpc_block **out, const kn_video_item *item)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) { b.Finish(put(b, *item)); });
}

kn_status kn_rpc_write_list(kn_rpc_block **out, const kn_video_item *items, size_t count, bool has_more)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        Offset<v1::Video> videos[KN_LIST_LIMIT_MAX];
        for (size_t i = 0; i < count && i < KN_LIST_LIMIT_MAX; i++) videos[i] = put(b, items[i]);
        b.Finish(v1::CreateVideoList(b, b.CreateVector(videos, count), has_more));
    });
}

kn_status kn_rpc_write_deleted(kn_rpc_block **out, const char *id)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) { b.Finish(v1::CreateDeleted(b, b.CreateString(id))); });
}

kn_status kn_rpc_write_state(kn_rpc_block **out, const char *event_id, const kn_video_item *item)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        const auto video = put(b, *item);
        b.Finish(v1::CreateEvent(b, b.CreateString(event_id), v1::EventKind_State, video));
    });
}

kn_status kn_rpc_write_progress(kn_rpc_block **out, const char *event_id, const kn_rpc_progress *progress)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        const double eta = std::isnan(progress->eta_seconds) ? -1.0 : progress->eta_seconds;
        const auto part =
            v1::CreateProgress(b, progress->percent, text(b, progress->stage), progress->step, progress->steps, eta);
        b.Finish(v1::CreateEvent(b, b.CreateString(event_id), v1::EventKind_Progress, 0, part));
    });
}

kn_status kn_rpc_write_preview(kn_rpc_block **out, const char *event_id, int32_t step, const char *mime,
                               const void *image, size_t count)
{
    return build(out, count + CHUNK_ROOM, [&](FlatBufferBuilder &b) {
        const auto pixels = b.CreateVector(static_cast<const uint8_t *>(image), count);
        const auto part = v1::CreatePreview(b, step, b.CreateString(mime), pixels);
        b.Finish(v1::CreateEvent(b, b.CreateString(event_id), v1::EventKind_Preview, 0, 0, part));
    });
}

kn_status kn_rpc_write_chunk(kn_rpc_block **out, kn_rpc_spares *spares, uint8_t **data, size_t count, uint64_t offset,
                             uint64_t total, const char *mime, const char *etag)
{
    const kn_status st = build(
        out, count + CHUNK_ROOM,
        [&](FlatBufferBuilder &b) {
            uint8_t *unused;
            const auto vector = b.CreateUninitializedVector(count, &unused);
            const auto type = text(b, mime), tag = text(b, etag);
            b.Finish(v1::CreateChunk(b, offset, total, type, tag, vector));
        },
        spares);
    if (st != KN_OK) return st;
    *data = const_cast<uint8_t *>(flatbuffers::GetRoot<v1::Chunk>((*out)->bytes)->data()->data());
    return KN_OK;
}

kn_status kn_rpc_write_reference(kn_rpc_block **out, const kn_rpc_reference *r)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        const auto id = b.CreateString(r->id), mime = b.CreateString(r->mime);
        b.Finish(v1::CreateReference(b, id, mime, r->bytes, r->width, r->height, r->expires_at));
    });
}

kn_status kn_rpc_write_models(kn_rpc_block **out, const kn_rpc_model *models, size_t count)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        std::vector<Offset<v1::Model>> all;
        for (size_t i = 0; i < count; i++) all.push_back(put(b, models[i]));
        b.Finish(v1::CreateModelList(b, b.CreateVector(all)));
    });
}

kn_status kn_rpc_write_model(kn_rpc_block **out, const kn_rpc_model *model)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) { b.Finish(put(b, *model)); });
}

kn_status kn_rpc_write_statistics(kn_rpc_block **out, const kn_rpc_statistics *s)
{
    return build(out, FIRST_BYTES, [&](FlatBufferBuilder &b) {
        const auto version = b.CreateString(KN_VERSION), reason = text(b, s->reason);
        b.Finish(v1::CreateServerStatistics(b, version, s->uptime_seconds, s->ready, reason, s->queue.draining,
                                      s->queue.queued, s->queue.running, s->queue.queue_max,
                                      s->queue.queued_device_seconds, s->queue.running_device_seconds,
                                      s->queue.oldest_queued_seconds, s->queue.devices, s->queue.devices_ready,
                                      s->connections, s->calls, s->watchers));
    });
}
