# SPDX-License-Identifier: Apache-2.0
"""Devices that share slices: the same bytes as one alone, whoever dies meanwhile; what is shown of it."""
import json
import os
import random
import re
import signal

from harness import ROOT, ServerCase, wait_for

STEPS = {"num_inference_steps": 40, "num_frames": 9}


def devices(server):
    return json.loads(server.kinora("status", "--json"))["devices"]


class Groups(ServerCase):
    device = "cpu*2"
    flags = ("--degree-fixed", "2", "--checkpoint-interval-ms", "0")

    def alone(self, seeds, fields):
        """What a server with one device makes of them."""
        server = self.another(device="cpu").start()
        return [server.content(server.completed(seed=seed, **fields)["id"]) for seed in seeds]

    def shared(self):
        return sum(d["shared_slices"] for d in devices(self.server))

    def test_same_bytes(self):
        wanted = self.alone([1, 2], STEPS)
        before = self.shared()
        self.assertEqual([self.server.content(self.server.completed(seed=seed, **STEPS)["id"]) for seed in (1, 2)],
                         wanted)
        self.assertGreaterEqual(self.shared() - before, 2 * STEPS["num_inference_steps"])
        text = self.server.get("/metrics").body.decode()
        done = re.search(r'kinora_shared_slices_total\{degree="2",stage="denoise",result="done"\} (\d+)', text)
        self.assertGreaterEqual(int(done[1]), 2 * STEPS["num_inference_steps"])
        helped = re.findall(r'kinora_device_assist_seconds_total\{device="cpu:\d"\} (\S+)', text)
        self.assertGreater(max(float(seconds) for seconds in helped), 0)

    def test_decoding_is_shared(self):
        """Pictures large enough that, by the first guess, two are faster."""
        large = {"size": "256x256", "num_inference_steps": 2, "num_frames": 9}
        wanted = self.alone([5], large)
        self.assertEqual([self.server.content(self.server.completed(seed=5, **large)["id"])], wanted)
        line = r'kinora_shared_slices_total\{degree="2",stage="decode",result="done"\} (\d+)'
        self.assertGreaterEqual(int(re.search(line, self.server.get("/metrics").body.decode())[1]), 1)

    def test_what_is_shown_while_it_runs(self):
        video = self.server.create(seed=3, size="128x128", num_inference_steps=200, num_frames=41)["id"]

        def sharing():
            found = [d for d in devices(self.server) if d["shares"]]
            return found if len(found) == 2 else None
        found = wait_for("two devices that share a slice", sharing)
        self.assertEqual(sorted(found[0]["shares"]["devices"]), ["cpu:0", "cpu:1"])
        self.assertEqual(found[0]["shares"]["stage"], "denoise")
        self.assertEqual(found[0]["shares"]["jobs"], [video])
        self.assertEqual(found[0]["domain"], found[1]["domain"])
        self.assertGreater(found[0]["domain"], 0)
        line = r'kinora_group_members\{device="cpu:[01]",leader="cpu:[01]",model="wan21-small"\} 2\n'
        wait_for("the group in the metrics", lambda: re.search(line, self.server.get("/metrics").body.decode()))
        self.server.post(f"/v1/videos/{video}/cancel")
        self.assertEqual(self.server.video(video)["error"]["code"], "cancelled")

    def shared_slice(self, video, progress):
        """The two devices that share a slice of the video, once that far; none if it has ended before."""
        def seen():
            job = self.server.video(video)
            found = [d for d in devices(self.server) if d["shares"]] if job["progress"] >= progress else []
            return (found,) if len(found) == 2 or job["status"] == "completed" else None
        return wait_for("a shared slice, or the video's end", seen, pause=0)[0]

    def test_workers_are_killed(self):
        """A leader's death counts against its job, so that only helpers are killed more than once. Each death in a
        row makes the next start wait twice as long: five make 15 s."""
        long = STEPS | {"num_inference_steps": 200}
        wanted = self.alone([4], long)[0]
        chance = random.Random(1)
        kills = 0
        for _ in range(50):  # one may end unseen between two looks on a fast machine
            video = self.server.create(seed=4, **long)["id"]
            found = self.shared_slice(video, chance.randrange(80))
            if len(found) == 2:
                helper = found[0]["shares"]["devices"][1]
                os.kill(next(d["pid"] for d in found if d["name"] == helper), signal.SIGKILL)
                kills += 1
            self.server.await_status(video, "completed")
            self.assertEqual(self.server.content(video), wanted)
            wait_for("both devices", lambda: all(d["state"] == "ready" for d in devices(self.server)))
            if kills == 5:
                return
        self.fail(f"only {kills} of 50 videos were caught while two devices shared a slice")


class ChosenDegrees(ServerCase):
    """Nobody says how many devices a slice gets: a lone job is helped, and one among many works alone."""
    device = "cpu*4"
    larger = "wan21-head128"  # steps of a few milliseconds, which by the first guess are worth sharing
    size = {"model": larger, "size": "160x160", "num_inference_steps": 12, "num_frames": 9}
    urgency = ({"service_tier": "flex"}, {}, {"service_tier": "priority"}, {"deadline": 600})

    @classmethod
    def add_model(cls, server):
        (server.home / "models" / cls.larger).symlink_to(ROOT / "tests/golden" / cls.larger / "model")
        return server

    @classmethod
    def prepare(cls):
        cls.add_model(cls.server)

    def denoise_slices(self):
        """Shared ones, and those that ran on one device."""
        text = self.server.get("/metrics").body.decode()
        shared = re.findall(r'kinora_shared_slices_total\{degree="\d",stage="denoise",result="done"\} (\d+)', text)
        every = re.search(r'kinora_stage_seconds_count\{stage="denoise"\} (\d+)', text)
        shared = sum(int(count) for count in shared)
        return shared, (int(every[1]) if every else 0) - shared

    def test_same_bytes(self):
        seeds = range(8)
        one = self.add_model(self.another(device="cpu")).start()
        wanted = [one.content(one.completed(seed=seed, **self.size)["id"]) for seed in seeds]
        one.close()
        wait_for("four devices", lambda: all(d["state"] == "ready" for d in devices(self.server)))
        lone = self.server.completed(seed=0, **self.size)["id"]
        self.assertEqual(self.server.content(lone), wanted[0])
        shared, alone = self.denoise_slices()
        self.assertGreater(shared, 0, f"a lone job was never helped; {alone} slices ran on one device")
        videos = [self.server.create(seed=seed, **self.size, **self.urgency[seed % 4])["id"] for seed in seeds]
        for seed, video in zip(seeds, videos):
            self.server.await_status(video, "completed")
            self.assertEqual(self.server.content(video), wanted[seed], f"seed {seed}, {self.urgency[seed % 4]}")
        self.assertGreater(self.denoise_slices()[1], alone, "eight jobs on four devices, and none worked alone")


class NoGroups(ServerCase):
    device = "cpu*2"
    flags = ("--degree-max", "1")

    def test_alone(self):
        self.server.completed(**STEPS)
        self.assertEqual([(d["domain"], d["shared_slices"]) for d in devices(self.server)], [(0, 0), (0, 0)])
