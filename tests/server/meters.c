/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "server/meters.h"

static const char *const models[] = {"demo", "wan2.1-t2v-1.3b"};
static const char *const routes[] = {"POST /v1/videos", "GET /v1/videos/{id}"};
static const kn_meter_device devices[] = {{"cuda:0", "GPU-1"}, {"cuda:1", "GPU-2"}, {"cpu", ""}, {"fake", ""}};

static kn_meters *make(void)
{
    kn_meters *meters = NULL;
    assert_int_equal(
        kn_meters_create(&meters, &(kn_meters_options){models, 2, routes, 2, devices, 4, "abc123", NULL, 0}), KN_OK);
    return meters;
}

static char *text_of(const kn_meters *meters, kn_metrics_format format)
{
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(kn_metrics_text(meters->registry, format, &text, &bytes), KN_OK);
    return text;
}

/* Moves everything once. */
static void use(kn_meters *m)
{
    kn_metric_set(m->jobs_running, 1, KN_LABELS("demo"));
    kn_metric_set(m->jobs_queued, 3, KN_LABELS("demo", "flex"));
    kn_metric_add(m->jobs, 1, KN_LABELS("demo", "failed", "poison"));
    kn_metric_add(m->jobs, 1, KN_LABELS("gone", "completed", "none"));
    kn_metric_observe(m->job_e2e_seconds, 2000, KN_LABELS("demo"));
    kn_metric_observe(m->stage_seconds, 20, KN_LABELS("denoise"));
    kn_metric_observe(m->http_request_seconds, 0.01, KN_LABELS("POST /v1/videos", kn_meters_code(200)));
    kn_metric_add(m->webhook_deliveries, 1, KN_LABELS("delivered"));
    kn_metric_set(m->device_ready, 1, KN_LABELS("cuda:1"));
    kn_metric_add(m->job_restarts, 1, KN_LABELS("hang"));
    kn_meters_collect(m);
}

static void the_names_operators_look_for(void **state)
{
    (void)state;
    kn_meters *meters = make();
    use(meters);
    char *text = text_of(meters, KN_METRICS_PROMETHEUS);
    static const char *const lines[] = {
        "\nkinora_jobs_running{model=\"demo\"} 1\n",
        "\nkinora_jobs_queued{model=\"demo\",priority=\"flex\"} 3\n",
        "\nkinora_jobs_queued{model=\"wan2.1-t2v-1.3b\",priority=\"priority\"} 0\n",
        "\nkinora_jobs_total{model=\"demo\",status=\"failed\",reason=\"poison\"} 1\n",
        "\nkinora_jobs_total{model=\"other\",status=\"completed\",reason=\"none\"} 1\n",
        "\nkinora_job_e2e_seconds_bucket{model=\"demo\",le=\"1800.0\"} 0\n",
        "\nkinora_job_e2e_seconds_bucket{model=\"demo\",le=\"2700.0\"} 1\n",
        "\nkinora_stage_seconds_bucket{stage=\"denoise\",le=\"1800.0\"} 1\n",
        "\nkinora_webhook_deliveries_total{result=\"delivered\"} 1\n",
        "\nkinora_http_request_duration_seconds_count{route=\"POST /v1/videos\",code=\"200\"} 1\n",
        "\nkinora_build_info{version=\"" KN_VERSION "\",commit=\"abc123\"} 1\n",
        "\nkinora_device_info{device=\"cuda:0\",uuid=\"GPU-1\"} 1\n",
        "\nkinora_device_info{device=\"fake\",uuid=\"\"} 1\n",
        "\nkinora_device_ready{device=\"cuda:1\"} 1\n",
        "\nkinora_device_ready{device=\"cuda:0\"} 0\n",
        "\nkinora_queued_device_seconds{model=\"demo\"} 0\n",
        "\nkinora_denoise_step_seconds_count{model=\"demo\"} 0\n",
        "\nkinora_store_commit_seconds_count 0\n",
        "\nkinora_model_load_seconds_count{model=\"demo\"} 0\n",
        "\nkinora_log_records_lost_total 0\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(text, lines[i])) fail_msg("missing: %s", lines[i]);
    assert_null(strstr(text, "device=\"cuda:0\",uuid=\"GPU-2\""));
    assert_true(strlen(text) < 100000); /* what one scrape costs before traffic */
    kn_free(text);
    kn_meters_destroy(&meters);
    kn_meters_destroy(&meters);
}

static void the_process_is_measured(void **state)
{
    (void)state;
    kn_meters *m = make();
    kn_meters_collect(m);
    double now = (double)time(NULL), start = kn_metric_value(m->process_start_time, NULL);
    assert_true(start > now - 100000 && start <= now + 2);
    assert_true(kn_metric_value(m->process_resident_bytes, NULL) > 1 << 20);
    assert_true(kn_metric_value(m->process_virtual_bytes, NULL) > kn_metric_value(m->process_resident_bytes, NULL));
    assert_true(kn_metric_value(m->process_threads, NULL) >= 1);
    assert_true(kn_metric_value(m->process_max_fds, NULL) > 8);
    double before = kn_metric_value(m->process_open_fds, NULL);
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    kn_meters_collect(m);
    assert_true(kn_metric_value(m->process_open_fds, NULL) == before + 2);
    close(ends[0]);
    close(ends[1]);
    kn_meters_collect(m);
    assert_true(kn_metric_value(m->process_start_time, NULL) == start);
    kn_meters_destroy(&m);
}

/* Runs promtool with `input` as its standard input and wants it to end well; returns what it said. */
static const char *promtool(FILE *input, const char *what, const char *file)
{
    static char said[8192];
    FILE *output = tmpfile();
    assert_non_null(output);
    pid_t process = fork();
    assert_true(process >= 0);
    if (process == 0) {
        dup2(fileno(input), STDIN_FILENO);
        dup2(fileno(output), STDOUT_FILENO);
        dup2(fileno(output), STDERR_FILENO);
        execl("/usr/bin/promtool", "promtool", "check", what, file, (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(process, &status, 0), process);
    rewind(output);
    said[fread(said, 1, sizeof said - 1, output)] = '\0';
    fclose(output);
    if (status != 0) fail_msg("promtool check %s: %s", what, said);
    return said;
}

/* `promtool check metrics` reads the text and lints names. */
static void promtool_has_no_complaint(void **state)
{
    (void)state;
    if (access("/usr/bin/promtool", X_OK) != 0) skip();
    kn_meters *meters = make();
    use(meters);
    char *text = text_of(meters, KN_METRICS_PROMETHEUS);
    FILE *input = tmpfile();
    assert_non_null(input);
    assert_int_equal(fwrite(text, 1, strlen(text), input), strlen(text));
    fflush(input);
    rewind(input);
    assert_string_equal(promtool(input, "metrics", NULL), "");
    assert_non_null(strstr(promtool(input, "rules", KN_SOURCE_DIR "/deploy/prometheus-rules.yml"), "SUCCESS"));
    fclose(input);
    kn_free(text);
    kn_meters_destroy(&meters);
}

/* Every kinora_... and process_... that rules and dashboard name is a family that exists. */
static void rules_and_dashboard_name_what_exists(void **state)
{
    (void)state;
    static const char *const files[] = {KN_SOURCE_DIR "/deploy/prometheus-rules.yml",
                                        KN_SOURCE_DIR "/deploy/grafana-dashboard.json"};
    static const char *const ends[] = {"", "_bucket", "_sum", "_count"};
    static char page[1 << 17];
    kn_meters *meters = make();
    use(meters);
    char *text = text_of(meters, KN_METRICS_PROMETHEUS);
    for (size_t f = 0; f < 2; f++) {
        FILE *file = fopen(files[f], "r");
        assert_non_null(file);
        page[fread(page, 1, sizeof page - 1, file)] = '\0';
        fclose(file);
        int names = 0;
        for (const char *p = page; *p; p++) {
            if (p > page && (p[-1] == '_' || (p[-1] >= 'a' && p[-1] <= 'z'))) continue;
            size_t bytes = strspn(p, "abcdefghijklmnopqrstuvwxyz0123456789_");
            if (p[bytes] == ':' || (strncmp(p, "kinora_", 7) != 0 && strncmp(p, "process_", 8) != 0)) continue;
            bool known = false;
            for (size_t e = 0; e < 4; e++) {
                char family[128];
                size_t end = strlen(ends[e]);
                if (bytes <= end || strncmp(p + bytes - end, ends[e], end) != 0) continue;
                snprintf(family, sizeof family, "\n# TYPE %.*s ", (int)(bytes - end), p);
                known |= strstr(text, family) != NULL;
            }
            if (!known) fail_msg("%s: %.*s", files[f], (int)bytes, p);
            names++;
        }
        assert_true(names > 10);
    }
    kn_free(text);
    kn_meters_destroy(&meters);
}

static void codes_are_bounded(void **state)
{
    (void)state;
    assert_string_equal(kn_meters_code(200), "200");
    assert_string_equal(kn_meters_code(429), "429");
    assert_string_equal(kn_meters_code(299), "2xx");
    assert_string_equal(kn_meters_code(418), "4xx");
    assert_string_equal(kn_meters_code(599), "5xx");
    assert_string_equal(kn_meters_code(0), "other");
    assert_string_equal(kn_meters_code(600), "other");
    assert_string_equal(kn_meters_code(-1), "other");
    kn_meters *meters = make();
    for (int status = -5; status < 700; status++)
        kn_metric_observe(meters->http_request_seconds, 1, KN_LABELS(routes[0], kn_meters_code(status)));
    assert_true(kn_metric_value(meters->http_request_seconds, KN_LABELS(routes[0], "404")) == 1);
    assert_true(kn_metric_value(meters->http_request_seconds, KN_LABELS(routes[0], "other")) == 305);
    kn_meters_destroy(&meters);
}

static void queue_figures_for_an_autoscaler(void **state)
{
    (void)state;
    char *text = NULL;
    kn_queue_stats stats = {.queued = 5,
                            .running = 2,
                            .queued_by_priority = {1, 4, 0},
                            .queued_device_seconds = 90,
                            .running_device_seconds = 30,
                            .oldest_queued_seconds = 12.5,
                            .devices = 3,
                            .devices_ready = 2,
                            .queue_max = 1024,
                            .draining = true};
    assert_int_equal(kn_queue_stats_json(&text, &stats), KN_OK);
    json_t *object = json_loads(text, 0, NULL);
    assert_non_null(object);
    assert_string_equal(json_string_value(json_object_get(object, "object")), "queue.stats");
    assert_int_equal(json_integer_value(json_object_get(object, "queued")), 5);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(object, "queued_by_priority"), "default")), 4);
    assert_true(json_number_value(json_object_get(object, "queued_device_seconds")) == 90);
    assert_true(json_number_value(json_object_get(object, "estimated_wait_seconds")) == 60);
    assert_true(json_is_true(json_object_get(object, "draining")));
    assert_int_equal(json_object_size(object), 12);
    json_decref(object);
    kn_free(text);
    stats.devices_ready = 0;
    assert_int_equal(kn_queue_stats_json(&text, &stats), KN_OK);
    object = json_loads(text, 0, NULL);
    assert_true(json_is_null(json_object_get(object, "estimated_wait_seconds")));
    json_decref(object);
    kn_free(text);
}

static void what_cannot_be_declared(void **state)
{
    (void)state;
    kn_meters *meters = NULL;
    uint64_t bytes = kn_mem_read().bytes;
    assert_int_equal(kn_meters_create(&meters, &(kn_meters_options){models, 0, routes, 2, devices, 1, NULL, NULL, 0}),
                     KN_INVALID);
    assert_int_equal(kn_meters_create(&meters, &(kn_meters_options){models, 1, routes, 2, devices, 0, NULL, NULL, 0}),
                     KN_INVALID);
    assert_int_equal(kn_mem_read().bytes, bytes);
    assert_int_equal(kn_meters_create(&meters, &(kn_meters_options){models, 1, routes, 1, devices, 1, NULL, NULL, 0}),
                     KN_OK);
    kn_meters_destroy(&meters);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_names_operators_look_for),
        cmocka_unit_test(the_process_is_measured),
        cmocka_unit_test(promtool_has_no_complaint),
        cmocka_unit_test(rules_and_dashboard_name_what_exists),
        cmocka_unit_test(codes_are_bounded),
        cmocka_unit_test(queue_figures_for_an_autoscaler),
        cmocka_unit_test(what_cannot_be_declared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
