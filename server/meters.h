/* SPDX-License-Identifier: Apache-2.0
 *
 * What this server measures: the families by name, and the queue's figures as JSON for an autoscaler.
 *
 * No tenant, job or request ids in labels. Times of jobs have buckets up to an hour, because a video takes minutes and
 * the customary ones end at 10 s. Device utilisation, clocks and power are the DCGM exporter's; kinora_device_info
 * joins our devices with its UUIDs. Belongs to the loop's thread. */
#ifndef KN_SERVER_METERS_H
#define KN_SERVER_METERS_H

#include "scheduler/scheduler.h"
#include "server/metrics.h"

/* Label values, where they are fixed, stand first in meters.c. A value that is not among them counts as "other" for
 * reason and code and is not counted at all for the rest. */
typedef struct kn_meters {
    kn_metrics *registry;               /* kinora_... : */
    kn_metric *jobs_running;            /* jobs_running{model} */
    kn_metric *jobs_queued;             /* jobs_queued{model,priority} */
    kn_metric *jobs_submitted;          /* jobs_submitted_total{model,priority} */
    kn_metric *jobs;                    /* jobs_total{model,status,reason} */
    kn_metric *jobs_refused;            /* jobs_refused_total{reason}: invalid, rate, quota, queue_full, ... */
    kn_metric *queued_device_seconds;   /* queued_device_seconds{model}: estimate of the device time that waits */
    kn_metric *job_queue_seconds;       /* job_queue_seconds{priority}: submit to first slice */
    kn_metric *job_e2e_seconds;         /* job_e2e_seconds{model}: submit to completed */
    kn_metric *job_device_seconds;      /* job_device_seconds{model} */
    kn_metric *stage_seconds;           /* stage_seconds{stage} */
    kn_metric *denoise_step_seconds;    /* denoise_step_seconds{model}: one slice */
    kn_metric *pack_jobs;               /* denoise_pack_jobs: jobs that shared a step */
    kn_metric *frames;                  /* frames_generated_total{model} */
    kn_metric *video_seconds;           /* video_seconds_generated_total{model} */
    kn_metric *checkpoints;             /* checkpoints_total{result}: saved, resumed, rejected */
    kn_metric *job_restarts;            /* job_restarts_total{reason}: exited, signalled, hang, ... */
    kn_metric *build;                   /* build_info{version,commit}: 1 */
    kn_metric *device;                  /* device_info{device,uuid}: 1; joins `device` with DCGM's UUID */
    kn_metric *device_ready;            /* device_ready{device}: 1 while slices or probes complete on it */
    kn_metric *device_busy_seconds;     /* device_busy_seconds_total{device} */
    kn_metric *device_memory_used;      /* device_memory_used_bytes{device} */
    kn_metric *device_memory_total;     /* device_memory_total_bytes{device} */
    kn_metric *group_members;           /* group_members{device,leader,model}: devices of the slice it shares now */
    kn_metric *device_assist_seconds;   /* device_assist_seconds_total{device}: of the busy time, in others' slices */
    kn_metric *shared_slices;           /* shared_slices_total{degree,stage,result}: done, lost */
    kn_metric *worker_restarts;         /* worker_restarts_total{device} */
    kn_metric *model_ready;             /* model_ready{model} */
    kn_metric *model_load_seconds;      /* model_load_seconds{model} */
    kn_metric *webhook_deliveries;      /* webhook_deliveries_total{result} */
    kn_metric *webhooks_pending;        /* webhooks_pending */
    kn_metric *moderation_seconds;      /* moderation_seconds{stage,verdict}: allow, block, failed */
    kn_metric *http_requests_running;   /* http_requests_running */
    kn_metric *http_request_seconds;    /* http_request_duration_seconds{route,code} */
    kn_metric *http_connections;        /* http_connections */
    kn_metric *grpc_call_seconds;       /* grpc_call_duration_seconds{method,code} */
    kn_metric *grpc_message_bytes;      /* grpc_message_bytes_total{direction}: received, sent */
    kn_metric *grpc_connections;        /* grpc_connections */
    kn_metric *grpc_calls_running;      /* grpc_calls_running */
    kn_metric *grpc_abused;             /* grpc_connections_abused_total */
    kn_metric *authorizations;          /* authorizations_total{result}: allowed, unauthenticated, forbidden, limited */
    kn_metric *store_commit_seconds;    /* store_commit_seconds */
    kn_metric *store_commit_operations; /* store_commit_operations: operations that shared a commit */
    kn_metric *store_errors;            /* store_errors_total{kind}: busy, io, full, corrupt, other */
    kn_metric *store_bytes;             /* store_bytes{file}: database, wal, blobs, checkpoints */
    kn_metric *storage_free_bytes;      /* storage_free_bytes: of the data directory's file system */
    kn_metric *storage_reserved;        /* storage_reserved: 1 while the reserve for a full disk is there */
    kn_metric *memory_bytes;            /* memory_bytes{owner}: kinora, sqlite: what each has allocated */
    kn_metric *event_streams;           /* event_streams */
    kn_metric *draining;                /* draining */
    kn_metric *config_reload_success;   /* config_last_reload_successful */
    kn_metric *config_reload_time;      /* config_last_reload_success_timestamp_seconds */
    kn_metric *log_lost;                /* log_records_lost_total; set by kn_meters_collect */
    kn_metric *process_cpu_seconds;     /* process_*: set by kn_meters_collect */
    kn_metric *process_resident_bytes;
    kn_metric *process_virtual_bytes;
    kn_metric *process_open_fds;
    kn_metric *process_max_fds;
    kn_metric *process_threads;
    kn_metric *process_start_time;
} kn_meters;

typedef struct kn_meter_device {
    const char *name; /* "cpu", "cuda:0" */
    const char *uuid; /* "GPU-..."; "" where a device has none */
} kn_meter_device;

/* What exists when the server starts; copied. Devices are a closed set, models and routes get an "other". */
typedef struct kn_meters_options {
    const char *const *models;
    size_t model_count;
    const char *const *routes; /* patterns such as "GET /v1/videos/{id}", not paths */
    size_t route_count;
    const kn_meter_device *devices;
    size_t device_count;
    const char *commit;         /* of the build; NULL: "unknown" */
    const char *const *methods; /* paths of gRPC methods */
    size_t method_count;
} kn_meters_options;

kn_status kn_meters_create(kn_meters **out, const kn_meters_options *options);
void kn_meters_destroy(kn_meters **meters);

/* Reads the process's own figures from /proc; call before kn_metrics_text(). What cannot be read keeps its value. */
void kn_meters_collect(kn_meters *meters);

/* The `code` label for an HTTP status: "200", "429", ..., or its class. */
const char *kn_meters_code(int http_status);

/* ---- GET /v1/queue/stats ---- */

typedef struct kn_queue_stats {
    int64_t queued, running; /* jobs */
    int64_t queued_by_priority[KN_PRIORITIES];
    double queued_device_seconds;  /* estimate of the device time that waits */
    double running_device_seconds; /* estimate of what running jobs still need */
    double oldest_queued_seconds;  /* age of the job that has waited longest */
    int32_t devices, devices_ready;
    int64_t queue_max; /* jobs; further ones are refused */
    bool draining;
} kn_queue_stats;

/* One JSON object for the caller to kn_free:
 * {"object":"queue.stats","queued":..,"running":..,"queued_by_priority":{..},"queued_device_seconds":..,
 *  "running_device_seconds":..,"estimated_wait_seconds":..,"oldest_queued_seconds":..,"devices":..,"devices_ready":..,
 *  "queue_max":..,"draining":..}
 * estimated_wait_seconds is the waiting and running device time over the ready devices, null without any. For KEDA's
 * metrics-api scaler, valueLocation is "queued_device_seconds" and the target the seconds a replica should have before
 * it. */
kn_status kn_queue_stats_json(char **out, const kn_queue_stats *stats);

#endif
