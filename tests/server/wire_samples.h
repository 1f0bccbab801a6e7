/* SPDX-License-Identifier: Apache-2.0
 *
 * One message of each kind, every field set, for the tests and the fuzz target of the link. */
#ifndef KN_TESTS_SERVER_WIRE_SAMPLES_H
#define KN_TESTS_SERVER_WIRE_SAMPLES_H

#include <stdio.h>
#include <string.h>

#include "server/wire.h"

static inline kn_lease sample_lease(unsigned number, int64_t epoch)
{
    kn_lease lease = {.epoch = epoch};
    snprintf(lease.job, sizeof lease.job, "video_%032x", number);
    return lease;
}

static inline kn_saved sample_saved(const kn_lease *lease, int32_t step)
{
    kn_saved saved = {.step = step};
    kn_artifact_name(saved.name, &(kn_artifact){.kind = KN_ARTIFACT_CHECKPOINT, .lease = *lease, .step = step});
    for (int i = 0; i < KN_SHA256_BYTES; i++) saved.sha256[i] = (uint8_t)(i * 7 + step);
    return saved;
}

static inline kn_outcome sample_outcome(unsigned number)
{
    kn_outcome o = {.lease = sample_lease(number, 3)};
    switch (number % 3) {
    case 0:
        o.next = (kn_slice){KN_SLICE_DENOISE, 4, 20};
        o.has_checkpoint = true;
        o.checkpoint = sample_saved(&o.lease, 4);
        break;
    case 1:
        o.next = (kn_slice){KN_SLICE_DONE, 0, 0};
        o.has_output = true;
        o.output = (kn_output){.bytes = 123456789012, .thumbnail = true};
        kn_artifact_name(o.output.name, &(kn_artifact){.kind = KN_ARTIFACT_VIDEO, .lease = o.lease});
        memset(o.output.sha256, 0xa5, sizeof o.output.sha256);
        break;
    default:
        o.status = KN_NOMEM;
        o.fault = KN_FAULT_MEMORY;
        snprintf(o.message, sizeof o.message, "out of memory in step %u", number);
    }
    return o;
}

static inline void sample_jobs(kn_wire_message *m)
{
    m->start.lease = sample_lease(7, 2);
    snprintf(m->start.model, sizeof m->start.model, "demo");
    m->start.request = "{\"prompt\":\"a ball\",\"steps\":4}";
    m->start.has_checkpoint = true;
    const kn_lease earlier = sample_lease(7, 1);
    m->start.checkpoint = sample_saved(&earlier, 2);
    m->start.crf = 20;
}

static inline void sample_configure(kn_wire_message *m)
{
    m->configure = (kn_wire_configure){.params = {.device = "fake:step_ms=5",
                                                  .models = "/models",
                                                  .data = "/data",
                                                  .threads = 2,
                                                  .isa = "avx2",
                                                  .precision = KN_PRECISION_BFLOAT16,
                                                  .vae_precision = KN_PRECISION_FLOAT32,
                                                  .checkpoint_interval_ns = 2000000000,
                                                  .corrupt_fd = -1},
                                       .log_level = KN_LOG_WARNING,
                                       .log_json = true};
}

static inline void sample_model(kn_wire_message *m, bool answered)
{
    snprintf(m->model.model, sizeof m->model.model, "wan2.1-1.3b");
    if (!answered) return;
    m->model.status = KN_NOT_FOUND;
    snprintf(m->model.message, sizeof m->model.message, "no such folder");
    if (m->kind != KN_WIRE_LOADED) return;
    m->model.seconds = 1.5;
    m->model.bytes = 99;
}

/* `count`: jobs in the messages that carry several. Nothing in it is owned. */
static inline kn_wire_message sample_message(kn_wire_kind kind, int32_t count)
{
    static const unsigned char picture[5] = {1, 2, 0, 4, 5};
    kn_wire_message m = {.kind = kind};
    switch (kind) {
    case KN_WIRE_CONFIGURE: sample_configure(&m); break;
    case KN_WIRE_LOAD:
    case KN_WIRE_UNLOAD: sample_model(&m, false); break;
    case KN_WIRE_LOADED:
    case KN_WIRE_UNLOADED: sample_model(&m, true); break;
    case KN_WIRE_START: sample_jobs(&m); break;
    case KN_WIRE_RUN:
        m.run = (kn_wire_run){
            .assignment = 77, .kind = KN_SLICE_DECODE, .count = count, .group = 9, .limit_ns = 9500000000};
        for (int32_t i = 0; i < count; i++) m.run.leases[i] = sample_lease((unsigned)i, i + 1);
        break;
    case KN_WIRE_RELEASE: m.lease = (kn_wire_lease){sample_lease(5, 1), KN_RELEASE_PUBLISHED}; break;
    case KN_WIRE_PREVIEW: m.lease.lease = sample_lease(6, 9); break;
    case KN_WIRE_UP:
        m.up = (kn_device_info){.name = "cpu", .description = "A processor", .tier = "avx512", .threads = 8};
        m.up.memory_bytes = 1 << 30;
        m.up.native_bf16 = m.up.host_memory = true;
        m.up.domain = 3;
        break;
    case KN_WIRE_BEAT: m.beat = 12; break;
    case KN_WIRE_STARTED: m.outcome = sample_outcome(0); break;
    case KN_WIRE_RELEASED: m.outcome = sample_outcome(2); break;
    case KN_WIRE_RAN:
        m.ran = (kn_wire_ran){.assignment = 78, .kind = KN_SLICE_DENOISE, .seconds = 0.25, .count = count};
        m.ran.lost = true;
        snprintf(m.ran.message, sizeof m.ran.message, "the group was given up");
        for (int32_t i = 0; i < count; i++) m.ran.outcomes[i] = sample_outcome((unsigned)i);
        break;
    case KN_WIRE_PREVIEWED:
        m.previewed = (kn_wire_previewed){.lease = sample_lease(1, 1), .mime = "image/webp"};
        m.previewed.image = picture;
        m.previewed.count = sizeof picture;
        break;
    case KN_WIRE_FATAL:
        m.fatal.status = KN_DEVICE_LOST;
        snprintf(m.fatal.message, sizeof m.fatal.message, "the device is lost");
        break;
    case KN_WIRE_JOIN: m.group.group = (kn_runner_group){.epoch = 9, .ranks = 4, .rank = 3, .nccl = true}; break;
    case KN_WIRE_JOINED:
        m.group.status = KN_UNAVAILABLE;
        snprintf(m.group.message, sizeof m.group.message, "rank 2 of 4 has not joined");
        m.group.group.epoch = 9;
        break;
    case KN_WIRE_LEAVE:
    case KN_WIRE_LEFT: m.group.group.epoch = UINT64_MAX; break;
    case KN_WIRE_ASSIST:
        m.assist = (kn_wire_assist){.assignment = 79, .model = "demo", .group = 9, .limit_ns = 9500000000};
        break;
    case KN_WIRE_ASSISTED:
        m.assist = (kn_wire_assist){.assignment = 79, .status = KN_NOMEM, .message = "out of memory", .seconds = 0.5};
        break;
    case KN_WIRE_NONE:
    case KN_WIRE_KINDS: break;
    }
    return m;
}

#endif
