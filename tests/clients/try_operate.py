# SPDX-License-Identifier: Apache-2.0
"""The operator's commands: kinora jobs, key, status and drain, beside a running server and without one."""
import json
import socket
import threading

from harness import KINORA, MODEL, SMALL, ServerCase, run, wait_for

LONG = {"num_inference_steps": 200, "num_frames": 81}


class Jobs(ServerCase):
    device = "fake:step_ms=20,poison=kaboom"

    def as_json(self, *words, status=0):
        return json.loads(self.server.kinora(*words, "--json", status=status))

    def test_list(self):
        ids = [self.server.create(f"ball {i}")["id"] for i in range(3)]
        rows = self.as_json("jobs", "list")["data"]
        self.assertEqual([r["id"] for r in rows[:3]], ids[::-1], "newest first")
        self.assertNotIn("prompt", rows[0], "an operator's list shows no prompts")
        self.assertEqual(len(self.as_json("jobs", "list", "--limit", "2")["data"]), 2)
        table = self.server.kinora("jobs", "list").splitlines()
        self.assertIn("state", table[0])
        self.assertTrue(table[1].startswith(ids[-1]))
        self.assertEqual(self.server.kinora("jobs").splitlines()[0], table[0], "list is what jobs alone does")

    def test_show(self):
        video = self.server.completed()
        shown = self.as_json("jobs", "show", video["id"])
        self.assertEqual((shown["id"], shown["state"], shown["model"], shown["epoch"], shown["attempts"]),
                         (video["id"], "completed", MODEL, 1, 0))
        self.assertEqual(shown["bytes"], len(self.server.content(video["id"])))
        self.assertGreater(shown["device_seconds"], 0)
        self.assertIn("completed", self.server.kinora("jobs", "show", video["id"]))

    def test_cancel_and_retry(self):
        video = self.server.create(**LONG)["id"]
        self.assertEqual(self.as_json("jobs", "cancel", video)["state"], "cancelled")
        self.assertEqual(self.server.video(video)["error"]["code"], "cancelled")
        again = self.as_json("jobs", "retry", video)
        self.assertIn(again["state"], ("queued", "running"))
        self.assertIn(self.server.video(video)["status"], ("queued", "in_progress"))
        self.server.post(f"/v1/videos/{video}/cancel")

    def test_retry_brings_the_same_bytes(self):
        wanted = self.server.content(self.server.completed("a ball", seed=5)["id"])
        lost = self.server.create("a ball", seed=5)["id"]
        self.server.post(f"/v1/videos/{lost}/cancel")
        if self.server.video(lost)["status"] == "failed":
            self.as_json("jobs", "retry", lost)
        self.server.await_status(lost, "completed")
        self.assertEqual(self.server.content(lost), wanted)

    def test_retry_of_a_failed_one(self):
        video = self.server.create("kaboom")["id"]
        self.server.await_status(video, "failed")
        self.assertEqual(self.as_json("jobs", "show", video)["error_code"], "poison")
        self.as_json("jobs", "retry", video)
        self.server.await_status(video, "failed")
        self.assertEqual(self.as_json("jobs", "show", video)["attempts"], 2, "counted anew")

    def test_what_cannot_be(self):
        done = self.server.completed()["id"]
        for words in (("jobs", "cancel", done), ("jobs", "retry", done), ("jobs", "show", "video_" + "0" * 32),
                      ("jobs", "show", "nonsense"), ("jobs", "cancel", "video_" + "0" * 32),
                      ("jobs", "frobnicate", done), ("jobs", "show"), ("jobs", "list", "extra"),
                      ("key", "revoke", "nobody"), ("key",),
                      ("key", "create", "--scopes", "fly"), ("key", "create", "--priorities", "warp"),
                      ("key", "create", "--tenant", "a/b")):
            result = run(KINORA, *words, "--data", str(self.server.data))
            self.assertNotEqual(result.returncode, 0, words)
            self.assertTrue(result.stderr.startswith("kinora: "), (words, result.stderr))
            self.assertEqual(result.stdout, "", words)

    def test_a_directory_that_is_none(self):
        result = run(KINORA, "status", "--data", str(self.server.home / "nowhere"))
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("nowhere", result.stderr)

    def test_status(self):
        told = self.as_json("status")
        self.assertEqual((told["ready"], told["draining"], len(told["devices"])), (True, False, 1))
        self.assertEqual(told["devices"][0]["state"], "ready")
        text = self.server.kinora("status")
        self.assertIn("device ", text)
        self.assertIn("ready", text)


class Keys(ServerCase):
    def test_life_of_a_key(self):
        made = self.server.key("--tenant", "studio", "--scopes", "read,submit", "--max-active", "5", "--device-seconds",
                               "600", "--requests", "60", "--expires-days", "30")
        self.assertEqual((made["tenant"], made["scopes"], made["max_active"], made["device_seconds_per_day"],
                          made["requests_per_minute"]), ("studio", "submit,read", 5, 600, 60))
        self.assertAlmostEqual(made["expires_at"] - made["created_at"], 30 * 86400, delta=5)
        listed = {k["id"]: k for k in json.loads(self.server.kinora("key", "list", "--json"))["data"]}
        self.assertEqual(listed[made["id"]], {name: value for name, value in made.items() if name != "key"})
        self.server.kinora("key", "revoke", made["id"])
        self.assertIn(made["id"], self.server.kinora("key", "list"))
        listed = {k["id"]: k for k in json.loads(self.server.kinora("key", "list", "--json"))["data"]}
        self.assertTrue(listed[made["id"]]["revoked_at"])

    def test_the_key_alone_on_standard_output(self):
        """So that a script can take it."""
        result = run(KINORA, "key", "create", "--tenant", "studio", "--data", str(self.server.data))
        self.assertRegex(result.stdout, r"^kinora_\w+\n$")
        self.assertIn("once", result.stderr)


class Offline(ServerCase):
    """The same commands on the store itself."""

    def test_without_a_server(self):
        server = self.another(device="fake:step_ms=20")
        made = server.key("--tenant", "studio")
        server.start()
        video = server.create(key=made["key"], **LONG)["id"]
        server.await_status(video, "in_progress", key=made["key"])
        self.assertEqual(server.stop(), 0)
        rows = json.loads(server.kinora("jobs", "list", "--json"))["data"]
        self.assertEqual([r["id"] for r in rows], [video])
        self.assertEqual(json.loads(server.kinora("jobs", "show", video, "--json"))["id"], video)
        server.kinora("key", "revoke", made["id"])
        other = server.key("--tenant", "studio")
        server.start()
        self.assertEqual(server.get("/v1/videos", key=made["key"]).status, 401)
        server.await_status(video, "completed", key=other["key"])
        self.assertEqual(server.stop(), 0)

    def test_cancel_without_a_server(self):
        server = self.another(device="fake:step_ms=50").start()
        video = server.create(**LONG)["id"]
        self.assertEqual(server.stop(), 0)
        result = run(KINORA, "jobs", "cancel", video, "--data", str(server.data))
        if result.returncode == 0:
            self.assertEqual(json.loads(server.kinora("jobs", "show", video, "--json"))["state"], "cancelled")
        else:
            self.assertIn("server", result.stderr, "says what is needed")

    def test_status_without_a_server(self):
        server = self.another()
        result = run(KINORA, "status", "--data", str(server.data))
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("no server", result.stderr)


class Drain(ServerCase):
    """A running job is saved, the server ends with 0, the next one finishes the job: the same bytes as undisturbed."""
    flags = ("--threads", "1", "--checkpoint-interval-ms", "3600000")
    device = "cpu"
    seconds = 50

    job = {"size": "128x128", "num_frames": 41, "num_inference_steps": 200}  # a few seconds

    def drained(self, server, how, **job):
        wanted = server.content(server.completed(**job)["id"])
        video = server.create(**job)["id"]
        wait_for("some progress", lambda: server.video(video)["progress"] >= 2)
        how(server)
        self.assertEqual(server.wait(), 0)
        shown = json.loads(server.kinora("jobs", "show", video, "--json"))
        self.assertEqual((shown["state"], shown["epoch"]), ("running", 1))
        self.assertGreater(shown["checkpoint_step"], 0, "saved when the server went")
        self.assertEqual(len(list((server.data / "checkpoints").iterdir())), 1)
        server.start()
        server.await_status(video, "completed")
        shown = json.loads(server.kinora("jobs", "show", video, "--json"))
        self.assertEqual((shown["epoch"], shown["attempts"]), (2, 0))
        self.assertEqual(server.content(video), wanted)
        wait_for("no checkpoint being left", lambda: not list((server.data / "checkpoints").iterdir()))

    def test_command(self):
        self.drained(self.server, lambda server: self.assertEqual(server.kinora("drain"), "draining\n"), **self.job)

    def test_signal(self):
        server = self.another(device="fake:step_ms=20").start()
        self.drained(server, lambda s: s.process.terminate(), num_inference_steps=100)
        self.assertEqual(server.stop(), 0)

    def test_killed(self):
        """The same without a goodbye, from the last checkpoint."""
        server = self.another("--threads", "1", "--checkpoint-interval-ms", "0", device="cpu").start()
        job = {**self.job, "num_frames": 17, "num_inference_steps": 100}
        wanted = server.content(server.completed(**job)["id"])
        video = server.create(**job)["id"]
        wait_for("some progress", lambda: server.video(video)["progress"] >= 10)
        server.kill()
        server.start()
        server.await_status(video, "completed")
        self.assertEqual(server.content(video), wanted)
        self.assertEqual(server.stop(), 0)

    def test_a_client_that_waits(self):
        """Is told to come back; its job is saved like any other."""
        server = self.another(device="fake:step_ms=50").start()
        replies = []
        waiter = threading.Thread(target=lambda: replies.append(server.post(
            "/v1/videos/sync", {"prompt": "a ball", **SMALL, "num_inference_steps": 60})))
        waiter.start()
        self.addCleanup(waiter.join)
        wait_for("a running job", lambda: server.get("/v1/queue/stats").json()["running"] == 1)
        self.assertEqual(server.stop(), 0)
        waiter.join()
        reply, = replies
        self.assertRefused(reply, 503, "server_is_overloaded")
        job, = json.loads(server.kinora("jobs", "list", "--json"))["data"]
        self.assertEqual(job["state"], "running")
        self.assertIn(job["id"], reply.error["message"], "where to find it later")
        self.assertEqual(reply.headers["x-should-retry"], "false", "without a key that would be a second video")
        server.start()
        server.await_status(job["id"], "completed")
        self.assertEqual(server.stop(), 0)

    def test_idle_connections_do_not_hold_it(self):
        server = self.another().start()
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as idle:
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
            idle.recv(1000)
            self.assertEqual(server.stop(), 0)

    def test_meanwhile(self):
        """While it drains: not ready, no new jobs, and what there is can be asked for."""
        server = self.another("--drain-seconds", "60", device="fake:step_ms=3000").start()
        video = server.create(num_inference_steps=3)["id"]
        server.await_status(video, "in_progress")
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as held:
            held.sendall(b"GET /readyz HTTP/1.1\r\nHost: here\r\n")  # a request under way
            wait_for("the connection", lambda: server.get("/livez").status == 200)
            server.kinora("drain")
            held.sendall(b"\r\n")
            answer = b""
            while chunk := held.recv(4096):
                answer += chunk
        self.assertIn(b" 503 ", answer.split(b"\r\n")[0])
        self.assertIn(b"draining", answer)
        self.assertEqual(server.wait(), 0)
