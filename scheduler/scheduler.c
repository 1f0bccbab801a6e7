/* SPDX-License-Identifier: Apache-2.0
 *
 * Creation, names and figures; state.h says where the rest is. */
#include "scheduler/state.h"

#include <string.h>

#include "base/mem.h"

enum {
    JOBS = 1024,
    TENANTS = 256,
    MARGIN = 5, /* percent */
    LAYERS_MAX = 1024,
    WIDTH_MAX = 1 << 20,
};

#define AGEING_NS INT64_C(600000000000)
#define QUANTUM_NS INT64_C(20000000000)

const char *kn_policy_name(kn_policy_kind policy)
{
    static const char *const names[KN_POLICIES] = {"kinora", "fifo", "sjf", "edf", "srpt", "edf-step"};
    return (unsigned)policy < KN_POLICIES ? names[policy] : "unknown";
}

const char *kn_stage_name(kn_stage stage)
{
    static const char *const names[] = {"text", "denoise", "decode", "mux", "done"};
    return (unsigned)stage <= KN_STAGE_DONE ? names[stage] : "unknown";
}

const char *kn_verdict_name(kn_verdict verdict)
{
    static const char *const names[] = {"fits", "too_large", "queue_full", "deadline", "no_device", "draining"};
    return (unsigned)verdict <= KN_VERDICT_DRAINING ? names[verdict] : "unknown";
}

kn_stage kn_job_next_stage(const kn_job_shape *shape, const kn_job_progress *progress)
{
    if (progress->done) return KN_STAGE_DONE;
    if (progress->step >= shape->steps)
        return progress->decoded < shape->latent_frames ? KN_STAGE_DECODE : KN_STAGE_MUX;
    return progress->text ? KN_STAGE_DENOISE : KN_STAGE_TEXT;
}

static kn_status fill_params(kn_scheduler_params *p)
{
    if (p->jobs == 0) p->jobs = JOBS;
    if (p->tenants == 0) p->tenants = TENANTS;
    if (p->pack == 0) p->pack = KN_SCHEDULER_PACK_MAX;
    if (p->ageing_ns == 0) p->ageing_ns = AGEING_NS;
    if (p->fair_quantum_ns == 0) p->fair_quantum_ns = QUANTUM_NS;
    if (p->admission_margin == 0) p->admission_margin = MARGIN;
    if (p->degree_max == 0) p->degree_max = KN_SCHEDULER_DEGREE_MAX;
    if ((unsigned)p->policy >= KN_POLICIES) return kn_fail(KN_INVALID, "no policy of number %d", (int)p->policy);
    if (p->jobs < 1 || p->jobs > KN_SCHEDULER_JOBS_MAX)
        return kn_fail(KN_INVALID, "jobs is %d; it must be 1 to %d", p->jobs, KN_SCHEDULER_JOBS_MAX);
    if (p->tenants < 1 || p->tenants > KN_SCHEDULER_TENANTS_MAX)
        return kn_fail(KN_INVALID, "tenants is %d; it must be 1 to %d", p->tenants, KN_SCHEDULER_TENANTS_MAX);
    if (p->pack < 1 || p->pack > KN_SCHEDULER_PACK_MAX)
        return kn_fail(KN_INVALID, "pack is %d; it must be 1 to %d", p->pack, KN_SCHEDULER_PACK_MAX);
    if (p->ageing_ns < 0 || p->ageing_ns > KN_SCHEDULER_TIME_MAX)
        return kn_fail(KN_INVALID, "ageing_ns must be 1 to 2^60");
    if (p->fair_quantum_ns < 0 || p->fair_quantum_ns > KN_QUEUE_WORK_MAX)
        return kn_fail(KN_INVALID, "fair_quantum_ns must be 1 to 2^45");
    if (p->admission_margin < 0 || p->admission_margin > 100)
        return kn_fail(KN_INVALID, "admission_margin is %d; it must be 1 to 100", p->admission_margin);
    if (p->degree_max < 1 || p->degree_max > KN_SCHEDULER_DEGREE_MAX)
        return kn_fail(KN_INVALID, "degree_max is %d; it must be 1 to %d", p->degree_max, KN_SCHEDULER_DEGREE_MAX);
    const int32_t fixed = p->degree_fixed;
    if (fixed < 0 || fixed > p->degree_max || (fixed & (fixed - 1)) != 0)
        return kn_fail(KN_INVALID, "degree_fixed is %d; it must be 0 or a power of two up to %d", fixed, p->degree_max);
    return KN_OK;
}

static kn_status allocate(kn_scheduler *s)
{
    const size_t jobs = (size_t)s->params.jobs, tenants = (size_t)s->params.tenants;
    size_t slots = 4;
    while (slots < 2 * jobs) slots *= 2;
    s->slot_mask = (uint32_t)slots - 1;
    s->jobs = kn_alloc_array(jobs, sizeof *s->jobs);
    s->nodes = kn_alloc_array(jobs, sizeof *s->nodes);
    s->age_nodes = kn_alloc_array(jobs, sizeof *s->age_nodes);
    s->slots = kn_alloc_array(slots, sizeof *s->slots);
    s->tenants = kn_alloc_array(tenants, sizeof *s->tenants);
    s->tenant_nodes = kn_alloc_array(tenants * KN_CLASSES, sizeof *s->tenant_nodes);
    if (!s->jobs || !s->nodes || !s->age_nodes || !s->slots || !s->tenants || !s->tenant_nodes) return KN_NOMEM;
    for (size_t i = 0; i < slots; i++) s->slots[i] = KN_NO_SLOT;
    for (int32_t i = 0; i < s->params.jobs; i++) s->jobs[i].next_free = i + 1 < s->params.jobs ? i + 1 : KN_NO_SLOT;
    for (size_t i = 0; i < tenants; i++) {
        s->tenants[i].weight = 1;
        for (int c = 0; c < KN_CLASSES; c++) s->tenants[i].waiting[c] = kn_queue_empty();
    }
    for (int c = 0; c < KN_CLASSES; c++) s->classes[c] = kn_queue_empty();
    s->spare = s->age = kn_queue_empty();
    s->refresh = s->params.jobs;
    s->now_ns = -KN_SCHEDULER_TIME_MAX;
    return KN_OK;
}

kn_status kn_scheduler_create(kn_scheduler **out, const kn_scheduler_params *params)
{
    kn_status st = KN_OK;
    kn_scheduler *s = kn_alloc(sizeof *s);
    if (!s) return KN_NOMEM;
    s->params = *params;
    KN_TRY(fill_params(&s->params));
    KN_TRY(allocate(s));
    *out = s;
    return KN_OK;

fail:
    kn_scheduler_destroy(&s);
    return st;
}

void kn_scheduler_destroy(kn_scheduler **scheduler)
{
    kn_scheduler *s = *scheduler;
    if (!s) return;
    kn_free(s->jobs);
    kn_free(s->nodes);
    kn_free(s->age_nodes);
    kn_free(s->slots);
    kn_free(s->tenants);
    kn_free(s->tenant_nodes);
    kn_free(s);
    *scheduler = NULL;
}

kn_status kn_scheduler_set_model(kn_scheduler *s, int32_t index, const kn_cost_model *m)
{
    if (index < 0 || index >= KN_SCHEDULER_MODELS_MAX)
        return kn_fail(KN_INVALID, "model index %d; it must be 0 to %d", index, KN_SCHEDULER_MODELS_MAX - 1);
    if (m->layers < 1 || m->layers > LAYERS_MAX)
        return kn_fail(KN_INVALID, "layers is %d; it must be 1 to %d", m->layers, LAYERS_MAX);
    if (m->width < 1 || m->width > WIDTH_MAX || m->ffn < 1 || m->ffn > WIDTH_MAX || m->heads_width < 1 ||
        m->heads_width > WIDTH_MAX)
        return kn_fail(KN_INVALID, "width, ffn and heads_width must be 1 to %d", WIDTH_MAX);
    if (!(m->text_flop_per_token >= 0) || !(m->decode_flop >= 0))
        return kn_fail(KN_INVALID, "text_flop_per_token and decode_flop must be 0 or more");
    if (m->frames_per_latent < 1 || m->frames_per_latent > LAYERS_MAX)
        return kn_fail(KN_INVALID, "frames_per_latent is %d; it must be 1 to %d", m->frames_per_latent, LAYERS_MAX);
    if (m->resident_bytes > KN_SCHEDULER_BYTES_MAX || m->transformer_bytes > KN_SCHEDULER_BYTES_MAX ||
        m->text_bytes > KN_SCHEDULER_BYTES_MAX)
        return kn_fail(KN_INVALID, "a model's bytes must be below 2^50");
    for (int32_t i = 0; i < s->params.jobs; i++)
        if (s->jobs[i].used && s->jobs[i].shape.model == index)
            return kn_fail(KN_INVALID, "model %d has jobs; it cannot be replaced now", index);
    for (int32_t i = 0; i < KN_SCHEDULER_DEVICES_MAX; i++) {
        kn_core_device *d = &s->devices[i];
        if (!d->known) continue;
        if (d->terms.models >> index & 1) d->memory_used += m->resident_bytes - s->models[index].resident_bytes;
        kn_core_seed(d, index, m);
    }
    s->models[index] = *m;
    return KN_OK;
}

/* ---- figures ---- */

static double fit_error(const kn_core_device *d)
{
    double sum = 0, count = 0;
    for (int m = 0; m < KN_SCHEDULER_MODELS_MAX; m++) {
        for (int k = 0; k < KN_STAGES; k++) {
            if (d->fits[m][k].measured == 0) continue;
            sum += d->fits[m][k].error;
            count++;
        }
    }
    return count > 0 ? sum / count : 0;
}

void kn_scheduler_read_stats(const kn_scheduler *s, kn_scheduler_stats *out)
{
    double errors = 0;
    *out = s->stats;
    out->backlog_ns = s->backlog_ns;
    for (int32_t i = 0; i < s->params.jobs; i++) {
        const kn_core_job *job = &s->jobs[i];
        if (!job->used || job->removed) continue;
        int32_t *count = job->running ? out->running : job->device != KN_NO_DEVICE ? out->paused : out->queued;
        count[job->terms.priority]++;
    }
    for (uint64_t up = s->up; up; up &= up - 1) errors += fit_error(&s->devices[__builtin_ctzll(up)]);
    out->cost_error = s->up ? errors / __builtin_popcountll(s->up) : 0;
}

kn_status kn_scheduler_read_device(const kn_scheduler *s, int32_t device, kn_device_stats *out)
{
    if (device < 0 || device >= KN_SCHEDULER_DEVICES_MAX || !s->devices[device].known)
        return kn_fail(KN_INVALID, "device %d was never up", device);
    const kn_core_device *d = &s->devices[device];
    *out = (kn_device_stats){.up = d->up,
                             .busy = d->busy,
                             .busy_ns = d->busy_ns,
                             .slices = d->slices,
                             .memory_used = d->memory_used,
                             .memory_bytes = d->terms.memory_bytes,
                             .residents = d->resident_count,
                             .error = fit_error(d)};
    return KN_OK;
}

int64_t kn_scheduler_tenant_service(const kn_scheduler *s, int32_t tenant)
{
    return tenant >= 0 && tenant < s->params.tenants ? s->tenants[tenant].service_ns : 0;
}
