# SPDX-License-Identifier: Apache-2.0
"""Requests in the shapes that the load generators of other engines send them, through the library they send them with.

vLLM-Omni's diffusion benchmark and SGLang's bench_serving use aiohttp, the one with forms, the other with JSON; AIPerf
sends JSON and polls ten times a second.
"""
import asyncio
import json

import aiohttp

from harness import MODEL, ServerCase
from try_openai import png

FIELDS = {"num_frames": 9, "num_inference_steps": 4, "seed": 7, "fps": 16}


class Benchmarks(ServerCase):
    def run_with(self, work, count=1):
        """`count` of these at the same time, in one session; their results."""
        async def all_of_them():
            timeout = aiohttp.ClientTimeout(total=60)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                return await asyncio.gather(*(work(session, i) for i in range(count)))
        return asyncio.run(all_of_them())

    async def submit(self, session, **body):
        async with session.post(f"{self.server.api}/videos", **body) as answer:
            return answer.status, await answer.json()

    async def poll(self, session, video_id, pause):
        while True:
            async with session.get(f"{self.server.api}/videos/{video_id}") as answer:
                self.assertEqual(answer.status, 200)
                video = await answer.json()
            if video["status"] in ("completed", "failed"):
                return video
            await asyncio.sleep(pause)

    async def finished(self, session, video_id, pause=0.1):
        """Polled to its end and downloaded."""
        video = await self.poll(session, video_id, pause)
        self.assertEqual(video["status"], "completed", video)
        async with session.get(f"{self.server.api}/videos/{video_id}/content") as answer:
            self.assertEqual(answer.status, 200)
            self.assertEqual((await answer.read())[4:8], b"ftyp")
        return video

    # ---- vLLM-Omni: forms ----

    def test_form_without_a_file(self):
        """aiohttp sends it urlencoded."""
        async def one(session, index):
            form = aiohttp.FormData()
            for name, value in {"model": MODEL, "prompt": f"ball {index}", "height": 64, "width": 64, **FIELDS}.items():
                form.add_field(name, str(value))
            self.assertFalse(form.is_multipart)
            status, video = await self.submit(session, data=form)
            self.assertEqual(status, 200, video)
            self.assertIn(video["status"], ("queued", "in_progress"))
            done = await self.finished(session, video["id"])
            async with session.delete(f"{self.server.api}/videos/{video['id']}") as answer:
                self.assertEqual(answer.status, 200)
            return done
        videos = self.run_with(one, 4)
        self.assertEqual([v["prompt"] for v in videos], [f"ball {i}" for i in range(4)])
        self.assertEqual({v["size"] for v in videos}, {"64x64"})
        self.assertEqual({v["num_inference_steps"] for v in videos}, {4})

    def test_form_as_multipart(self):
        """aiohttp puts Content-Type before Content-Disposition and a charset on texts."""
        async def one(session, _):
            form = aiohttp.FormData(default_to_multipart=True)
            for name, value in {"prompt": "größer", "size": "64x64", **FIELDS}.items():
                form.add_field(name, str(value))
            status, video = await self.submit(session, data=form)
            self.assertEqual(status, 200, video)
            return await self.finished(session, video["id"])
        video, = self.run_with(one)
        self.assertEqual((video["prompt"], video["num_frames"]), ("größer", 9))

    def test_form_with_a_picture(self):
        async def one(session, _):
            form = aiohttp.FormData()
            form.add_field("prompt", "a ball")
            form.add_field("input_reference", png(), filename="ball.png", content_type="image/png")
            return await self.submit(session, data=form)
        (status, answer), = self.run_with(one)
        self.assertEqual((status, answer["error"]["param"]), (400, "input_reference"))

    # ---- SGLang: JSON, and a form when there is a picture ----

    def test_json_with_polling(self):
        async def one(session, index):
            body = {"model": MODEL, "prompt": f"ball {index}", "size": "64x64", "num_frames": 9, "fps": 16,
                    "num_inference_steps": 4}
            status, video = await self.submit(session, json=body)
            self.assertEqual(status, 200, video)
            return await self.poll(session, video["id"], 0.2)
        self.assertEqual([v["status"] for v in self.run_with(one, 4)], ["completed"] * 4)

    def test_extra_body_as_text(self):
        """One form field named extra_body that holds JSON; num_frames stands in it and beside it."""
        async def one(session, _):
            form = aiohttp.FormData(default_to_multipart=True)
            form.add_field("model", MODEL)
            form.add_field("prompt", "a ball")
            form.add_field("size", "64x64")
            form.add_field("extra_body", json.dumps({"num_inference_steps": 5, "guidance_scale": 3.5, "num_frames": 9}))
            form.add_field("num_frames", "9")
            form.add_field("fps", "16")
            status, video = await self.submit(session, data=form)
            self.assertEqual(status, 200, video)
            return await self.finished(session, video["id"])
        video, = self.run_with(one)
        self.assertEqual((video["num_inference_steps"], video["guidance_scale"], video["num_frames"]), (5, 3.5, 9))

    def test_extra_body_as_an_object(self):
        async def one(session, _):
            body = {"prompt": "a ball", "size": "64x64", "extra_body": {"num_inference_steps": 5, **{"num_frames": 9}}}
            return await self.submit(session, json=body)
        (status, video), = self.run_with(one)
        self.assertEqual((status, video["num_inference_steps"], video["num_frames"]), (200, 5, 9))

    def test_extra_body_that_contradicts(self):
        async def one(session, _):
            body = {"prompt": "a ball", "num_frames": 9, "extra_body": {"num_frames": 17}}
            return await self.submit(session, json=body)
        (status, answer), = self.run_with(one)
        self.assertEqual((status, answer["error"]["param"]), (400, "num_frames"))

    def test_picture_of_unknown_type(self):
        """As application/octet-stream, which says nothing about it."""
        async def one(session, _):
            form = aiohttp.FormData()
            form.add_field("model", MODEL)
            form.add_field("prompt", "a ball")
            form.add_field("input_reference", png(), filename="ball.png", content_type="application/octet-stream")
            return await self.submit(session, data=form)
        (status, answer), = self.run_with(one)
        self.assertEqual((status, answer["error"]["param"]), (400, "input_reference"))

    def test_waiting_for_the_service(self):
        async def one(session, _):
            async with session.get(f"{self.server.url}/health") as health:
                async with session.get(f"{self.server.api}/models") as models:
                    return health.status, [m["id"] for m in (await models.json())["data"]]
        self.assertEqual(self.run_with(one), [(200, [MODEL])])

    # ---- AIPerf ----

    def test_aiperf(self):
        async def one(session, index):
            body = {"prompt": f"ball {index}", "model": MODEL, "size": "64x64", "seconds": 1, "num_inference_steps": 4}
            status, made = await self.submit(session, json=body)
            self.assertEqual(status, 200, made)
            video = await self.finished(session, made["id"])
            for field in ("id", "object", "status", "progress", "size", "seconds", "quality", "model", "created_at",
                          "completed_at", "expires_at", "inference_time_s", "error"):
                self.assertIn(field, video)
            self.assertGreater(video["inference_time_s"], 0)
            return video
        videos = self.run_with(one, 4)
        self.assertEqual({v["seconds"] for v in videos}, {"1"})

    def test_an_errors_message(self):
        async def one(session, _):
            return await self.submit(session, json={"prompt": "a ball", "model": "no-such-model"})
        (status, answer), = self.run_with(one)
        self.assertEqual(status, 400)
        self.assertIn("no-such-model", answer["error"]["message"])
