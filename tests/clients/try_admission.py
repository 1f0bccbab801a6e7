# SPDX-License-Identifier: Apache-2.0
"""Tiers, deadlines, and what is refused because there is too much of it."""
import time
from concurrent.futures import ThreadPoolExecutor

import openai

from harness import SMALL, ServerCase, wait_for

LONG = {"num_inference_steps": 200, "num_frames": 81}


class Tiers(ServerCase):
    device = "fake:step_ms=20"

    def test_order(self):
        """While one runs, three wait; they end by their tier, whatever order they came in."""
        busy = self.server.create(num_inference_steps=20)
        self.server.await_status(busy["id"], "in_progress")
        made = {tier: self.server.create(service_tier=tier, num_inference_steps=40)
                for tier in ("flex", "default", "priority")}
        self.assertEqual({tier: v["service_tier"] for tier, v in made.items()}, {tier: tier for tier in made})
        waiting = self.server.get("/v1/queue/stats").json()
        self.assertGreaterEqual(waiting["queued"], 1)
        ended = []

        def all_ended():
            for tier, video in made.items():
                if tier not in ended and self.server.video(video["id"])["status"] == "completed":
                    ended.append(tier)
            return len(ended) == 3

        wait_for("three ends", all_ended, pause=0.005)
        self.assertEqual((ended[0], ended[-1]), ("priority", "flex"))

    def test_names(self):
        for fields, tier in (({"service_tier": "auto"}, "default"), ({"priority": -1}, "priority"),
                             ({"priority": 0}, "default"), ({"priority": 5}, "flex"), ({}, "default")):
            self.assertEqual(self.server.create(**fields)["service_tier"], tier, fields)
        reply = self.server.post("/v1/videos", {"prompt": "a ball", "service_tier": "warp"})
        self.assertRefused(reply, 400, "invalid_value", "service_tier")

    def test_places_in_the_queue(self):
        """On a device that has the memory for one."""
        server = self.another(device="fake:step_ms=50,memory_mb=5").start()
        busy = server.create(**LONG)
        server.await_status(busy["id"], "in_progress")
        waiting = [server.create(**LONG)["id"] for _ in range(5)]
        videos = [v for v in map(server.video, waiting) if v["status"] == "queued"]
        self.assertGreaterEqual(len(videos), 3)
        places = [v["queue_position"] for v in videos]
        if places[:2] == [0, 0]:  # the first is on its way to a device at this moment
            del places[0]
        self.assertEqual(places, list(range(len(places))), "0 is next")
        self.assertIsNone(server.video(busy["id"])["queue_position"])
        left = [v["eta_seconds"] for v in videos]
        self.assertEqual(left, sorted(left))


class Deadlines(ServerCase):
    device = "fake:step_ms=20,pack_ms=20"  # nothing is won by packing

    def test_one_that_can_be_met(self):
        video = self.server.create(deadline=3000)
        self.assertAlmostEqual(video["deadline_at"], time.time() + 3000, delta=30)
        self.assertEqual(self.server.await_status(video["id"], "completed")["status"], "completed")
        at = int(time.time()) + 4000
        self.assertEqual(self.server.create(deadline=at)["deadline_at"], at)

    def test_one_that_cannot(self):
        self.server.completed()  # so that costs are known
        client = self.server.client()
        with self.assertRaises(openai.RateLimitError) as caught:
            client.videos.create(prompt="a ball", extra_body={**SMALL, "num_inference_steps": 200, "deadline": 0.5})
        self.assertEqual(caught.exception.code, "deadline_unattainable")
        self.assertIn("deadline", caught.exception.message)
        self.assertTrue(1 <= int(caught.exception.response.headers["retry-after"]) <= 120)

    def test_one_behind_a_queue(self):
        """Four seconds of work behind twelve that were promised to others."""
        self.server.completed()
        busy = [self.server.create(**LONG, deadline=300)["id"] for _ in range(3)]
        reply = self.server.post("/v1/videos", {"prompt": "a ball", **SMALL, **LONG, "deadline": 6})
        self.assertRefused(reply, 429, "deadline_unattainable")
        for video_id in busy:
            self.server.call("DELETE", f"/v1/videos/{video_id}")

    def test_times_that_are_none(self):
        for deadline in (0, -5, "soon", 31 * 24 * 3600, int(time.time()) - 10, "2020-01-01T00:00:00Z"):
            reply = self.server.post("/v1/videos", {"prompt": "a ball", "deadline": deadline})
            self.assertEqual((reply.status, reply.error["param"]), (400, "deadline"), (deadline, reply.body))


class Limits(ServerCase):
    flags = ("--queue-max", "4")
    device = "fake:step_ms=20"

    @classmethod
    def prepare(cls):
        make = cls.server.key
        cls.plain = make("--tenant", "plain", "--scopes", "submit,read,cancel,metrics")["key"]
        cls.single = make("--tenant", "single", "--max-active", "1")["key"]
        cls.frugal = make("--tenant", "frugal", "--device-seconds", "1")["key"]

    def remove(self, video_ids, key):
        for video_id in video_ids:
            self.assertEqual(self.server.call("DELETE", f"/v1/videos/{video_id}", key=key).status, 200)

    def ask(self, key, **fields):
        return self.server.post("/v1/videos", {"prompt": "a ball", **SMALL, **fields}, key=key)

    def test_a_full_queue(self):
        made = [self.server.create(key=self.plain, **LONG)["id"] for _ in range(4)]
        reply = self.ask(self.plain)
        self.assertRefused(reply, 503, "server_is_overloaded")
        self.assertEqual(reply.error["type"], "service_unavailable_error")
        self.assertTrue(1 <= int(reply.headers["retry-after"]) <= 120)
        self.assertNotIn("x-should-retry", reply.headers)
        for body in ({"nonsense": True}, {"prompt": "a" * 20000}):  # nobody reads it, however long it is
            self.assertRefused(self.server.post("/v1/videos", body, key=self.plain), 503, "server_is_overloaded")
        self.remove(made[:1], self.plain)
        self.remove([self.server.create(key=self.plain)["id"], *made[1:]], self.plain)

    def test_a_repetition_into_a_full_queue(self):
        """Its answer was lost: it gets its job, however many are waiting."""
        def ask(idempotency_key, **fields):
            return self.server.post("/v1/videos", {"prompt": "a ball", **SMALL, **LONG, **fields}, key=self.plain,
                                    headers={"Idempotency-Key": idempotency_key})

        made = [ask(f"lost-{i}").json()["id"] for i in range(4)]
        again = ask("lost-2")
        self.assertEqual((again.status, again.json()["id"]), (200, made[2]), again.body)
        self.assertRefused(ask("lost-2", seed=12345), 409, "idempotency_key_reused", "Idempotency-Key")
        self.assertRefused(ask("new"), 503, "server_is_overloaded")
        self.remove(made, self.plain)

    def test_a_burst(self):
        """All at the same moment: no more are taken than there is room for, and those are kept."""
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda _: self.ask(self.plain, **LONG), range(16)))
        taken = [reply.json()["id"] for reply in replies if reply.status == 200]
        self.assertEqual(sorted(reply.status for reply in replies), [200] * 4 + [503] * 12)
        self.assertEqual({self.server.video(i, key=self.plain)["status"] for i in taken} - {"queued", "in_progress"},
                         set())
        self.remove(taken, self.plain)

    def test_active_jobs(self):
        first = self.server.create(key=self.single, **LONG)["id"]
        reply = self.ask(self.single)
        self.assertRefused(reply, 429, "rate_limit_exceeded")
        self.assertIn("limit is 1", reply.error["message"])
        self.assertGreaterEqual(int(reply.headers["retry-after"]), 1)
        self.remove([first], self.single)
        self.remove([self.ask(self.single).json()["id"]], self.single)

    def test_device_time(self):
        """A client that waited and tried again would gain nothing, and is told so."""
        reply = self.ask(self.frugal, **LONG)
        self.assertRefused(reply, 429, "insufficient_quota")
        self.assertEqual(reply.headers["x-should-retry"], "false")
        self.assertNotIn("retry-after", reply.headers)
        patient = self.server.client(self.frugal, max_retries=5)
        with self.assertRaises(openai.RateLimitError):
            patient.videos.create(prompt="a ball", extra_body={**SMALL, **LONG})

    def test_figures_for_scaling(self):
        made = [self.server.create(key=self.plain, **LONG)["id"] for _ in range(3)]
        self.server.await_status(made[0], "in_progress", key=self.plain)
        stats = self.server.get("/v1/queue/stats", key=self.plain).json()
        self.assertEqual(stats["queued"] + stats["running"], 3, stats)
        self.assertEqual((stats["devices"], stats["devices_ready"], stats["queue_max"]), (1, 1, 4), stats)
        self.remove(made, self.plain)


class TenantLimits(ServerCase):
    """Of everybody, without keys."""
    flags = ("--tenant-jobs", "2", "--tenant-requests-per-minute", "30")
    device = "fake:step_ms=20"

    def test_jobs_and_requests(self):
        for _ in range(2):
            self.server.create(**LONG)
        self.assertRefused(self.server.post("/v1/videos", {"prompt": "a ball"}), 429, "rate_limit_exceeded")
        replies = []
        while len(replies) < 100 and (not replies or replies[-1].status == 200):
            replies.append(self.server.get("/v1/models"))
        self.assertRefused(replies[-1], 429, "rate_limit_exceeded")
        self.assertGreaterEqual(len(replies), 28, "the three before were requests too")
        self.assertTrue(1 <= int(replies[-1].headers["retry-after"]) <= 60)
        self.assertEqual(replies[-1].headers["x-ratelimit-remaining-requests"], "0")
        self.assertEqual(self.server.get("/readyz").status, 200, "probes are not counted")
