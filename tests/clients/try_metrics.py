# SPDX-License-Identifier: Apache-2.0
"""Metrics and probes, as Prometheus and Kubernetes ask for them."""
import re
import shutil
import subprocess
import unittest

from harness import MODEL, PATIENCE, SMALL, ServerCase, samples, value, wait_for

LONG = {"num_inference_steps": 200, "num_frames": 81}

# What operators alert and scale on, under this server's prefix.
FAMILIES = {
    "gauge": ["jobs_running", "jobs_queued", "queued_device_seconds", "device_ready", "device_memory_used_bytes",
              "device_memory_total_bytes", "model_ready", "webhooks_pending", "http_connections", "event_streams",
              "draining", "build_info", "config_last_reload_successful"],
    "counter": ["jobs_submitted_total", "jobs_total", "jobs_refused_total", "frames_generated_total",
                "video_seconds_generated_total", "checkpoints_total", "worker_restarts_total",
                "webhook_deliveries_total", "authorizations_total"],
    "histogram": ["job_queue_seconds", "job_e2e_seconds", "job_device_seconds", "stage_seconds", "denoise_step_seconds",
                  "model_load_seconds", "http_request_duration_seconds", "store_commit_seconds"],
}
SCRAPER = ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
           "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")


class Metrics(ServerCase):
    flags = ("--queue-max", "3")
    device = "fake:step_ms=5"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.completed()
        cls.server.completed(service_tier="priority")
        cancelled = cls.server.create(**LONG)["id"]
        cls.server.post(f"/v1/videos/{cancelled}/cancel")
        cls.server.post("/v1/videos", {"prompt": "a ball", "size": "banana"})
        cls.server.get("/v1/videos/video_" + "0" * 32)

    def text(self, **headers):
        reply = self.server.get("/metrics", headers=headers)
        self.assertEqual(reply.status, 200)
        return reply.body.decode()

    @unittest.skipUnless(shutil.which("promtool"), "promtool is not installed (Debian: prometheus)")
    def test_promtool(self):
        done = subprocess.run(["promtool", "check", "metrics"], input=self.text(), capture_output=True, text=True,
                              timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_the_store_is_measured(self):
        text = wait_for("a commit and the sizes", lambda: (lambda text: text if value(
            text, 'kinora_store_bytes', file="blobs") > 0 else None)(self.text()))
        for name in ("kinora_store_commit_seconds_count", "kinora_store_commit_operations_count"):
            self.assertGreater(value(text, name), 5, name)
        self.assertGreaterEqual(value(text, "kinora_store_commit_operations_sum"),
                                value(text, "kinora_store_commit_operations_count"))
        self.assertGreater(value(text, "kinora_store_bytes", file="database"), 4096)
        self.assertGreater(value(text, "kinora_store_bytes", file="wal"), 0)
        for kind in ("busy", "io", "full", "corrupt", "other"):
            self.assertEqual(value(text, "kinora_store_errors_total", kind=kind), 0, kind)
        self.assertEqual(value(text, "kinora_storage_reserved"), 1)
        self.assertGreater(value(text, "kinora_storage_free_bytes"), 0)

    def test_families(self):
        text = self.text()
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
        for kind, names in FAMILIES.items():
            for name in names:
                self.assertEqual(kinds.get(f"kinora_{name}"), kind, name)
        for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
                     "process_max_fds", "process_start_time_seconds"):
            self.assertGreater(value(text, name), 0, name)

    def test_long_jobs_fit_the_buckets(self):
        bounds = {float(labels["le"]) for name, labels, _ in samples(self.text())
                  if name == "kinora_job_e2e_seconds_bucket"}
        self.assertGreaterEqual(max(b for b in bounds if b != float("inf")), 1800)

    def test_histograms_add_up(self):
        text = self.text()
        for name in FAMILIES["histogram"]:
            series = {}
            for sample, labels, number in samples(text):
                if sample == f"kinora_{name}_bucket":
                    key = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
                    series.setdefault(key, []).append((float(labels["le"]), number))
            for key, buckets in series.items():
                self.assertEqual(buckets, sorted(buckets), name)
                self.assertEqual([n for _, n in buckets], sorted(n for _, n in buckets), name)
                self.assertEqual(buckets[-1][1], value(text, f"kinora_{name}_count", **dict(key)), name)

    def test_figures(self):
        text = self.text()
        self.assertEqual(value(text, "kinora_jobs_submitted_total", model=MODEL), 3)
        self.assertEqual(value(text, "kinora_jobs_submitted_total", priority="priority"), 1)
        self.assertEqual(value(text, "kinora_jobs_total", model=MODEL, status="completed"), 2)
        self.assertEqual(value(text, "kinora_jobs_total", status="cancelled", reason="cancelled"), 1)
        self.assertEqual(value(text, "kinora_job_e2e_seconds_count", model=MODEL), 2)
        self.assertEqual(value(text, "kinora_frames_generated_total", model=MODEL), 18)
        self.assertEqual(value(text, "kinora_video_seconds_generated_total", model=MODEL), 2 * 9 / 16)
        self.assertGreaterEqual(value(text, "kinora_stage_seconds_count", stage="denoise"), 8)
        self.assertGreaterEqual(value(text, "kinora_denoise_step_seconds_count", model=MODEL), 8)
        self.assertEqual(value(text, "kinora_model_ready", model=MODEL), 1)
        self.assertEqual(value(text, "kinora_device_ready"), 1)
        self.assertEqual(value(text, "kinora_jobs_refused_total", reason="invalid"), 1)
        self.assertEqual(value(text, "kinora_http_request_duration_seconds_count", route="GET /v1/videos/{id}",
                               code="404"), 1)
        self.assertEqual(value(text, "kinora_config_last_reload_successful"), 1)
        self.assertEqual(value(text, "kinora_http_requests_running"), 1, "this one")

    def test_what_waits(self):
        made = [self.server.create(**LONG)["id"] for _ in range(3)]
        self.server.await_status(made[0], "in_progress")
        self.assertEqual(self.server.post("/v1/videos", {"prompt": "a ball"}).status, 503)
        text = self.text()
        self.assertEqual(value(text, "kinora_jobs_running") + value(text, "kinora_jobs_queued"), 3)
        self.assertEqual(value(text, "kinora_jobs_refused_total", reason="queue_full"), 1)
        for video_id in made:
            self.server.call("DELETE", f"/v1/videos/{video_id}")

    def test_no_names_of_jobs_or_clients(self):
        text = self.text()
        self.assertNotIn("video_0", text)
        self.assertNotIn("a ball", text)
        for _, labels, _ in samples(text):
            self.assertNotIn("tenant", labels)

    def test_formats(self):
        reply = self.server.get("/metrics", headers={"Accept": SCRAPER})
        self.assertTrue(reply.headers["content-type"].startswith("application/openmetrics-text"))
        self.assertTrue(reply.body.endswith(b"# EOF\n"))
        reply = self.server.get("/metrics")
        self.assertTrue(reply.headers["content-type"].startswith("text/plain; version=0.0.4"))
        self.assertNotIn(b"# EOF", reply.body)

    def test_probes(self):
        for path in ("/livez", "/healthz", "/health", "/readyz"):
            reply = self.server.get(path)
            self.assertEqual(reply.status, 200, path)
            reply.json()
        for path in ("/v2/health/live", "/v2/health/ready"):
            reply = self.server.get(path)
            self.assertEqual((reply.status, reply.body), (200, b""), path)

    def test_a_listener_of_its_own(self):
        """Without a key there; with the scope on the main address."""
        server = self.another("--metrics", "127.0.0.1:0", "--keys", "true")
        server.ready = False
        server.start()
        self.assertEqual(server.get("/metrics").status, 401)
        log = wait_for("the address of the metrics", lambda: re.search(r"metrics.*?(127\.0\.0\.1:\d+)",
                                                                       server.log() + str(server.said)))
        server.url = f"http://{log[1]}"
        self.assertEqual(server.get("/metrics").status, 200)
        self.assertEqual(server.get("/v1/videos").status, 404)


class Starting(ServerCase):
    """Alive before it is ready."""
    device = "fake:load_ms=1500,step_ms=2"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()

    def test_readiness(self):
        server = self.another(device=self.device)
        server.ready = False
        server.start()
        reply = server.get("/readyz")
        self.assertEqual((reply.status, reply.json()["status"]), (503, "not_ready"))
        self.assertIn("device", reply.json()["reason"])
        self.assertEqual(server.get("/health").status, 503)
        self.assertEqual(server.get("/v2/health/ready").status, 400)
        self.assertEqual([server.get(path).status for path in ("/livez", "/healthz", "/v2/health/live")], [200] * 3)
        video = server.create()  # the queue is durable: it waits
        self.assertEqual(video["status"], "queued")
        wait_for("a ready server", lambda: server.get("/readyz").status == 200)
        server.await_status(video["id"], "completed")
        self.assertEqual(server.stop(), 0)

    def test_loading_is_measured(self):
        text = self.server.get("/metrics").body.decode()
        self.assertEqual(value(text, "kinora_model_load_seconds_count", model=MODEL), 1)
        self.assertGreaterEqual(value(text, "kinora_model_load_seconds_sum", model=MODEL), 1.5)

    def test_small_jobs(self):
        self.assertEqual(self.server.completed(**SMALL)["status"], "completed")
