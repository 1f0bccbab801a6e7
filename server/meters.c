/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "server/meters.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "server/json.h"

/* ---- label values ---- */

static const char *const priorities[] = {"flex", "default", "priority"};
static const char *const statuses[] = {"completed", "failed", "cancelled"};
static const char *const reasons[] = {
    "none",  "cancelled", "moderation_blocked", "poison", "checkpoint", "request", "numeric", "memory", "storage",
    "model", "internal"};
static const char *const refusals[] = {"invalid",    "forbidden", "rate",       "quota",  "deadline",
                                       "queue_full", "draining",  "moderation", "storage"};
static const char *const stages[] = {"text", "reference", "denoise", "decode", "mux"};
static const char *const checkpoint_results[] = {"saved", "resumed", "rejected"};
static const char *const restart_reasons[] = {"exited", "signalled", "hang", "protocol", "fatal", "killed"};
static const char *const delivery_results[] = {"delivered", "retried", "refused", "dropped"};
static const char *const moderation_stages[] = {"prompt", "output"};
static const char *const verdicts[] = {"allow", "block", "failed"};
static const char *const codes[] = {"200", "202", "204", "206", "304", "400", "401", "403", "404",
                                    "405", "408", "409", "410", "413", "415", "416", "422", "429",
                                    "500", "503", "507", "2xx", "3xx", "4xx", "5xx"};
static const char *const grpc_codes[] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};
static const char *const degrees[] = {"2", "3", "4", "5", "6", "7", "8"};
static const char *const shared_results[] = {"done", "lost"};
static const char *const directions[] = {"received", "sent"};
static const char *const access_results[] = {"allowed", "unauthenticated", "forbidden", "limited"};
static const char *const store_kinds[] = {"busy", "io", "full", "corrupt", "other"};
static const char *const memory_owners[] = {"kinora", "sqlite"};
static const char *const store_files[] = {"database", "wal", "blobs", "checkpoints"};

const char *kn_meters_code(int http_status)
{
    static const char *const classes[] = {"2xx", "3xx", "4xx", "5xx"};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i][1] != 'x' &&
            http_status == (codes[i][0] - '0') * 100 + (codes[i][1] - '0') * 10 + codes[i][2] - '0')
            return codes[i];
    return http_status >= 200 && http_status < 600 ? classes[http_status / 100 - 2] : "other";
}

/* ---- bounds ---- */

/* A job: half a second (a small model) to two hours. */
static const double job_bounds[] = {0.5, 1,   2.5, 5,   10,   15,   30,   60,   90,  120,
                                    180, 300, 600, 900, 1200, 1800, 2700, 3600, 7200};
static const double stage_bounds[] = {0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600};
static const double step_bounds[] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120};
static const double http_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                     1,     2.5,    5,     10,   30,    60,   300, 1800};
static const double commit_bounds[] = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                                       0.025,  0.05,    0.1,    0.25,  1,      5,     30};
static const double count_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};

/* ---- the families ---- */

typedef enum source {
    NONE,
    MODEL,
    ROUTE,
    DEVICE,
    LEADER,
    UUID,
    VERSION,
    COMMIT,
    PRIORITY,
    STATUS,
    REASON,
    REFUSAL,
    STAGE,
    CHECKPOINT_RESULT,
    RESTART_REASON,
    DELIVERY_RESULT,
    MODERATION_STAGE,
    VERDICT,
    CODE,
    METHOD,
    GRPC_CODE,
    DIRECTION,
    ACCESS_RESULT,
    STORE_KIND,
    STORE_FILE,
    MEMORY_OWNER,
    DEGREE,
    SHARED_RESULT,
    SOURCES
} source;

#define FIXED(name, values)                                                                                            \
    {                                                                                                                  \
        name, values, sizeof(values) / sizeof *(values), true                                                          \
    }

/* Sources whose values are known here; the others are filled in from the options. */
static const kn_metric_label fixed_labels[SOURCES] = {
    [MODEL] = {"model", NULL, 0, false},
    [ROUTE] = {"route", NULL, 0, false},
    [DEVICE] = {"device", NULL, 0, true},
    [LEADER] = {"leader", NULL, 0, true},
    [UUID] = {"uuid", NULL, 0, true},
    [VERSION] = {"version", NULL, 0, true},
    [COMMIT] = {"commit", NULL, 0, true},
    [METHOD] = {"method", NULL, 0, false},
    [GRPC_CODE] = FIXED("code", grpc_codes),
    [DIRECTION] = FIXED("direction", directions),
    [PRIORITY] = FIXED("priority", priorities),
    [STATUS] = FIXED("status", statuses),
    [REASON] = {"reason", reasons, sizeof reasons / sizeof *reasons, false},
    [REFUSAL] = FIXED("reason", refusals),
    [STAGE] = FIXED("stage", stages),
    [CHECKPOINT_RESULT] = FIXED("result", checkpoint_results),
    [RESTART_REASON] = {"reason", restart_reasons, sizeof restart_reasons / sizeof *restart_reasons, false},
    [DELIVERY_RESULT] = FIXED("result", delivery_results),
    [MODERATION_STAGE] = FIXED("stage", moderation_stages),
    [VERDICT] = FIXED("verdict", verdicts),
    [CODE] = {"code", codes, sizeof codes / sizeof *codes, false},
    [ACCESS_RESULT] = FIXED("result", access_results),
    [STORE_KIND] = FIXED("kind", store_kinds),
    [STORE_FILE] = FIXED("file", store_files),
    [MEMORY_OWNER] = FIXED("owner", memory_owners),
    [DEGREE] = FIXED("degree", degrees),
    [SHARED_RESULT] = FIXED("result", shared_results),
};

typedef struct family {
    size_t offset; /* in kn_meters */
    kn_metric_kind kind;
    const char *name, *unit;
    source labels[KN_METRIC_LABELS];
    const double *bounds;
    size_t bound_count;
    bool sparse;
    const char *help;
} family;

#define AT(field) offsetof(kn_meters, field)
#define SAMPLES(bounds) bounds, sizeof(bounds) / sizeof *(bounds)
#define COUNT(field, name, unit, a, b, c, sparse, help)                                                                \
    {                                                                                                                  \
        AT(field), KN_METRIC_COUNTER, name, unit, {a, b, c}, NULL, 0, sparse, help                                     \
    }
#define LEVEL(field, name, unit, a, b, c, sparse, help)                                                                \
    {                                                                                                                  \
        AT(field), KN_METRIC_GAUGE, name, unit, {a, b, c}, NULL, 0, sparse, help                                       \
    }
#define SPREAD(field, name, unit, a, b, bounds, sparse, help)                                                          \
    {                                                                                                                  \
        AT(field), KN_METRIC_HISTOGRAM, name, unit, {a, b, NONE}, SAMPLES(bounds), sparse, help                        \
    }

/* clang-format off */
static const family families[] = {
    LEVEL(build, "kinora_build_info", NULL, VERSION, COMMIT, NONE, false, "Always 1; what is running."),
    LEVEL(device, "kinora_device_info", NULL, DEVICE, UUID, NONE, true, "Always 1; the hardware's name of a device."),
    LEVEL(jobs_running, "kinora_jobs_running", NULL, MODEL, NONE, NONE, false, "Jobs on a device now."),
    LEVEL(jobs_queued, "kinora_jobs_queued", NULL, MODEL, PRIORITY, NONE, false, "Jobs that wait for a device."),
    COUNT(jobs_submitted, "kinora_jobs_submitted_total", NULL, MODEL, PRIORITY, NONE, false, "Jobs accepted."),
    COUNT(jobs, "kinora_jobs_total", NULL, MODEL, STATUS, REASON, true, "Jobs that ended, by how and why."),
    COUNT(jobs_refused, "kinora_jobs_refused_total", NULL, REFUSAL, NONE, NONE, false, "Submits not accepted, by why."),
    LEVEL(queued_device_seconds, "kinora_queued_device_seconds", "seconds", MODEL, NONE, NONE, false,
          "Estimated device time of the jobs that wait; the figure to scale on."),
    SPREAD(job_queue_seconds, "kinora_job_queue_seconds", "seconds", PRIORITY, NONE, job_bounds, false,
           "From submit to the first slice."),
    SPREAD(job_e2e_seconds, "kinora_job_e2e_seconds", "seconds", MODEL, NONE, job_bounds, false,
           "From submit to completed."),
    SPREAD(job_device_seconds, "kinora_job_device_seconds", "seconds", MODEL, NONE, job_bounds, false,
           "Device time of a completed job."),
    SPREAD(stage_seconds, "kinora_stage_seconds", "seconds", STAGE, NONE, stage_bounds, false,
           "Time a job spent in a stage."),
    SPREAD(denoise_step_seconds, "kinora_denoise_step_seconds", "seconds", MODEL, NONE, step_bounds, false,
           "One denoise step of a pack of jobs."),
    SPREAD(pack_jobs, "kinora_denoise_pack_jobs", NULL, NONE, NONE, count_bounds, false,
           "Jobs that shared a denoise step."),
    COUNT(frames, "kinora_frames_generated_total", NULL, MODEL, NONE, NONE, false, "Frames of completed videos."),
    COUNT(video_seconds, "kinora_video_seconds_generated_total", NULL, MODEL, NONE, NONE, false,
          "Length of completed videos in seconds."),
    COUNT(checkpoints, "kinora_checkpoints_total", NULL, CHECKPOINT_RESULT, NONE, NONE, false, "Checkpoints of jobs."),
    COUNT(job_restarts, "kinora_job_restarts_total", NULL, RESTART_REASON, NONE, NONE, true,
          "Jobs taken up again, by why their lease ended."),
    LEVEL(device_ready, "kinora_device_ready", NULL, DEVICE, NONE, NONE, false,
          "1 while slices or probes complete on the device."),
    COUNT(device_busy_seconds, "kinora_device_busy_seconds_total", "seconds", DEVICE, NONE, NONE, false,
          "Time the device ran slices."),
    LEVEL(device_memory_used, "kinora_device_memory_used_bytes", "bytes", DEVICE, NONE, NONE, false,
          "Device memory in use."),
    LEVEL(device_memory_total, "kinora_device_memory_total_bytes", "bytes", DEVICE, NONE, NONE, false,
          "Device memory there is."),
    LEVEL(group_members, "kinora_group_members", NULL, DEVICE, LEADER, MODEL, true,
          "Devices that share the slice which this device leads or helps with now; 0: it did before."),
    COUNT(device_assist_seconds, "kinora_device_assist_seconds_total", "seconds", DEVICE, NONE, NONE, false,
          "Time the device helped in slices that others led; part of its busy time."),
    COUNT(shared_slices, "kinora_shared_slices_total", NULL, DEGREE, STAGE, SHARED_RESULT, true,
          "Slices that several devices shared, by how many; lost ones were repeated."),
    COUNT(worker_restarts, "kinora_worker_restarts_total", NULL, DEVICE, NONE, NONE, false,
          "Worker processes started in place of one that ended."),
    LEVEL(model_ready, "kinora_model_ready", NULL, MODEL, NONE, NONE, false, "1 when a job of the model could run."),
    SPREAD(model_load_seconds, "kinora_model_load_seconds", "seconds", MODEL, NONE, stage_bounds, false,
           "Loading a model's weights on a device."),
    COUNT(webhook_deliveries, "kinora_webhook_deliveries_total", NULL, DELIVERY_RESULT, NONE, NONE, false,
          "Attempts to deliver a webhook."),
    LEVEL(webhooks_pending, "kinora_webhooks_pending", NULL, NONE, NONE, NONE, false, "Webhook deliveries that wait."),
    SPREAD(moderation_seconds, "kinora_moderation_seconds", "seconds", MODERATION_STAGE, VERDICT, step_bounds, false,
           "Moderation hooks, by their verdict."),
    LEVEL(http_requests_running, "kinora_http_requests_running", NULL, NONE, NONE, NONE, false,
          "Requests being answered."),
    SPREAD(http_request_seconds, "kinora_http_request_duration_seconds", "seconds", ROUTE, CODE, http_bounds, true,
           "Requests answered."),
    LEVEL(http_connections, "kinora_http_connections", NULL, NONE, NONE, NONE, false, "Open connections."),
    SPREAD(grpc_call_seconds, "kinora_grpc_call_duration_seconds", "seconds", METHOD, GRPC_CODE, http_bounds, true,
           "gRPC calls, from their headers to their status."),
    COUNT(grpc_message_bytes, "kinora_grpc_message_bytes_total", "bytes", DIRECTION, NONE, NONE, false,
          "Messages of gRPC calls, uncompressed."),
    LEVEL(grpc_connections, "kinora_grpc_connections", NULL, NONE, NONE, NONE, false, "Open HTTP/2 connections."),
    LEVEL(grpc_calls_running, "kinora_grpc_calls_running", NULL, NONE, NONE, NONE, false, "gRPC calls under way."),
    COUNT(grpc_abused, "kinora_grpc_connections_abused_total", NULL, NONE, NONE, NONE, false,
          "HTTP/2 connections ended for breaking a limit or the protocol."),
    COUNT(authorizations, "kinora_authorizations_total", NULL, ACCESS_RESULT, NONE, NONE, false,
          "Decisions about who may do what."),
    SPREAD(store_commit_seconds, "kinora_store_commit_seconds", "seconds", NONE, NONE, commit_bounds, false,
           "Transactions of the store, from first operation to stable storage."),
    SPREAD(store_commit_operations, "kinora_store_commit_operations", NULL, NONE, NONE, count_bounds, false,
           "Operations that shared a transaction."),
    COUNT(store_errors, "kinora_store_errors_total", NULL, STORE_KIND, NONE, NONE, false, "Transactions that failed."),
    LEVEL(store_bytes, "kinora_store_bytes", "bytes", STORE_FILE, NONE, NONE, false, "Size of the stored state."),
    LEVEL(storage_free_bytes, "kinora_storage_free_bytes", "bytes", NONE, NONE, NONE, false,
          "Free space of the file system that has the data directory."),
    LEVEL(storage_reserved, "kinora_storage_reserved", NULL, NONE, NONE, NONE, false,
          "1 while the reserve for a full disk is held; 0: the disk is full and new jobs are refused."),
    LEVEL(memory_bytes, "kinora_memory_bytes", "bytes", MEMORY_OWNER, NONE, NONE, false,
          "Memory allocated and not freed. What SQLite has is page caches, bounded per connection."),
    LEVEL(event_streams, "kinora_event_streams", NULL, NONE, NONE, NONE, false, "Clients that follow events."),
    LEVEL(draining, "kinora_draining", NULL, NONE, NONE, NONE, false, "1 while the server takes no new jobs."),
    LEVEL(config_reload_success, "kinora_config_last_reload_successful", NULL, NONE, NONE, NONE, false,
          "1 when the last reading of the configuration succeeded."),
    LEVEL(config_reload_time, "kinora_config_last_reload_success_timestamp_seconds", "seconds", NONE, NONE, NONE, false,
          "When the configuration in use was read."),
    COUNT(log_lost, "kinora_log_records_lost_total", NULL, NONE, NONE, NONE, false,
          "Log records that standard error did not take."),
    COUNT(process_cpu_seconds, "process_cpu_seconds_total", "seconds", NONE, NONE, NONE, false,
          "User and system CPU time of the server process."),
    LEVEL(process_resident_bytes, "process_resident_memory_bytes", "bytes", NONE, NONE, NONE, false,
          "Resident memory of the server process."),
    LEVEL(process_virtual_bytes, "process_virtual_memory_bytes", "bytes", NONE, NONE, NONE, false,
          "Virtual memory of the server process."),
    LEVEL(process_open_fds, "process_open_fds", NULL, NONE, NONE, NONE, false, "Open file descriptors."),
    LEVEL(process_max_fds, "process_max_fds", NULL, NONE, NONE, NONE, false, "Most file descriptors allowed."),
    LEVEL(process_threads, "process_threads", NULL, NONE, NONE, NONE, false, "Threads of the server process."),
    LEVEL(process_start_time, "process_start_time_seconds", "seconds", NONE, NONE, NONE, false,
          "When the server process started."),
};
/* clang-format on */

enum { FAMILIES = sizeof families / sizeof *families };

/* Values that come from the options, in the order of fixed_labels. */
typedef struct given_values {
    const char *const *values[SOURCES];
    size_t counts[SOURCES];
} given_values;

static kn_status add_family(kn_meters *meters, const family *f, const given_values *given)
{
    kn_metric_spec spec = {.kind = f->kind,
                           .name = f->name,
                           .help = f->help,
                           .unit = f->unit,
                           .bounds = f->bounds,
                           .bound_count = f->bound_count,
                           .sparse = f->sparse};
    for (size_t i = 0; i < KN_METRIC_LABELS && f->labels[i] != NONE; i++) {
        spec.labels[i] = fixed_labels[f->labels[i]];
        if (spec.labels[i].values) continue;
        spec.labels[i].values = given->values[f->labels[i]];
        spec.labels[i].count = given->counts[f->labels[i]];
    }
    return kn_metrics_add(meters->registry, &spec, (kn_metric **)((char *)meters + f->offset));
}

kn_status kn_meters_create(kn_meters **out, const kn_meters_options *options)
{
    KN_REQUIRE(options->device_count <= KN_METRIC_VALUES);
    kn_status st = KN_OK;
    const char *none = "none", *version = KN_VERSION, *commit = options->commit ? options->commit : "unknown";
    const char *names[KN_METRIC_VALUES], *uuids[KN_METRIC_VALUES];
    size_t uuid_count = 0;
    for (size_t i = 0; i < options->device_count; i++) {
        size_t seen = 0;
        names[i] = options->devices[i].name;
        while (seen < uuid_count && strcmp(uuids[seen], options->devices[i].uuid) != 0) seen++;
        if (seen == uuid_count) uuids[uuid_count++] = options->devices[i].uuid;
    }
    const given_values given = {
        .values = {[MODEL] = options->models,
                   [ROUTE] = options->routes,
                   [METHOD] = options->method_count ? options->methods : &none,
                   [DEVICE] = names,
                   [LEADER] = names,
                   [UUID] = uuids,
                   [VERSION] = &version,
                   [COMMIT] = &commit},
        .counts = {[MODEL] = options->model_count,
                   [ROUTE] = options->route_count,
                   [METHOD] = options->method_count ? options->method_count : 1,
                   [DEVICE] = options->device_count,
                   [LEADER] = options->device_count,
                   [UUID] = uuid_count,
                   [VERSION] = 1,
                   [COMMIT] = 1},
    };
    kn_meters *meters = kn_alloc(sizeof *meters);
    if (!meters) return KN_NOMEM;
    KN_TRY(kn_metrics_create(&meters->registry));
    for (size_t i = 0; i < FAMILIES; i++) KN_TRY(add_family(meters, &families[i], &given));
    kn_metric_set(meters->build, 1, KN_LABELS(version, commit));
    for (size_t i = 0; i < options->device_count; i++)
        kn_metric_set(meters->device, 1, KN_LABELS(options->devices[i].name, options->devices[i].uuid));
    *out = meters;
    return KN_OK;

fail:
    kn_meters_destroy(&meters);
    return st;
}

void kn_meters_destroy(kn_meters **meters)
{
    if (!meters || !*meters) return;
    kn_metrics_destroy(&(*meters)->registry);
    kn_free(*meters);
    *meters = NULL;
}

/* ---- the process ---- */

/* A whole small file of /proc, ended by a NUL; false when it cannot be read. */
static bool read_small(const char *path, char *text, size_t bytes)
{
    FILE *file = fopen(path, "re");
    if (!file) return false;
    size_t count = fread(text, 1, bytes - 1, file);
    text[count] = '\0';
    fclose(file);
    return count > 0;
}

/* proc(5): /proc/self/stat, whose second field may hold anything up to the last ')'. */
static void collect_stat(kn_meters *meters)
{
    char text[1024];
    unsigned long user, system, threads, virtual_bytes;
    unsigned long long started;
    long pages;
    if (!read_small("/proc/self/stat", text, sizeof text)) return;
    const char *rest = strrchr(text, ')');
    if (!rest ||
        sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %lu %*d %llu %lu %ld",
               &user, &system, &threads, &started, &virtual_bytes, &pages) != 6)
        return;
    double ticks = (double)sysconf(_SC_CLK_TCK);
    kn_metric_set(meters->process_cpu_seconds, (double)(user + system) / ticks, KN_NO_LABELS);
    kn_metric_set(meters->process_threads, (double)threads, KN_NO_LABELS);
    kn_metric_set(meters->process_virtual_bytes, (double)virtual_bytes, KN_NO_LABELS);
    kn_metric_set(meters->process_resident_bytes, (double)pages * (double)sysconf(_SC_PAGESIZE), KN_NO_LABELS);
    if (kn_metric_value(meters->process_start_time, KN_NO_LABELS) > 0) return;
    struct timespec now, since_boot; /* once: the two clocks drift */
    clock_gettime(CLOCK_REALTIME, &now);
    clock_gettime(CLOCK_BOOTTIME, &since_boot);
    kn_metric_set(meters->process_start_time,
                  (double)(now.tv_sec - since_boot.tv_sec) + (double)(now.tv_nsec - since_boot.tv_nsec) * 1e-9 +
                      (double)started / ticks,
                  KN_NO_LABELS);
}

static void collect_descriptors(kn_meters *meters)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        kn_metric_set(meters->process_max_fds, limit.rlim_cur == RLIM_INFINITY ? INFINITY : (double)limit.rlim_cur,
                      KN_NO_LABELS);
    DIR *folder = opendir("/proc/self/fd");
    if (!folder) return;
    double count = -3; /* ".", "..", and the folder itself */
    while (readdir(folder)) count++;
    closedir(folder);
    kn_metric_set(meters->process_open_fds, count, KN_NO_LABELS);
}

void kn_meters_collect(kn_meters *meters)
{
    collect_stat(meters);
    collect_descriptors(meters);
    kn_metric_set(meters->log_lost, (double)kn_log_lost(), KN_NO_LABELS);
}

/* ---- queue figures ---- */

kn_status kn_queue_stats_json(char **out, const kn_queue_stats *stats)
{
    kn_text text = kn_text_growing(4096);
    kn_json_writer w = kn_json_writer_on(&text);
    double waiting = stats->queued_device_seconds + stats->running_device_seconds;
    kn_json_write_object(&w);
    kn_json_write_key(&w, "object");
    kn_json_write_string(&w, "queue.stats");
    kn_json_write_key(&w, "queued");
    kn_json_write_int(&w, stats->queued);
    kn_json_write_key(&w, "running");
    kn_json_write_int(&w, stats->running);
    kn_json_write_key(&w, "queued_by_priority");
    kn_json_write_object(&w);
    for (int i = 0; i < KN_PRIORITIES; i++) {
        kn_json_write_key(&w, kn_priority_name((kn_priority)i));
        kn_json_write_int(&w, stats->queued_by_priority[i]);
    }
    kn_json_write_object_end(&w);
    kn_json_write_key(&w, "queued_device_seconds");
    kn_json_write_double(&w, stats->queued_device_seconds);
    kn_json_write_key(&w, "running_device_seconds");
    kn_json_write_double(&w, stats->running_device_seconds);
    kn_json_write_key(&w, "estimated_wait_seconds");
    kn_json_write_double(&w, stats->devices_ready > 0 ? waiting / stats->devices_ready : NAN);
    kn_json_write_key(&w, "oldest_queued_seconds");
    kn_json_write_double(&w, stats->oldest_queued_seconds);
    kn_json_write_key(&w, "devices");
    kn_json_write_int(&w, stats->devices);
    kn_json_write_key(&w, "devices_ready");
    kn_json_write_int(&w, stats->devices_ready);
    kn_json_write_key(&w, "queue_max");
    kn_json_write_int(&w, stats->queue_max);
    kn_json_write_key(&w, "draining");
    kn_json_write_bool(&w, stats->draining);
    kn_json_write_object_end(&w);
    kn_status st = kn_text_status(&text);
    if (st == KN_OK) {
        *out = kn_text_take(&text);
        if (!*out) st = KN_NOMEM;
    }
    kn_text_release(&text);
    return st;
}
