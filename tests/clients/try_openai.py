# SPDX-License-Identifier: Apache-2.0
"""openai for Python: the Videos resource as the library ships it."""
import asyncio
import base64
import struct
import tempfile
import zlib
from pathlib import Path

import openai
from openai.types import Video

from harness import MODEL, PATIENCE, SMALL, ServerCase, boxes, is_jpeg, is_webp, probe, wait_for


def png(side=8):
    """A grey picture."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + b"\x80" * side for _ in range(side))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Engine(ServerCase):
    """Against the real engine on the CPU."""
    flags = ("--threads", "1")
    device = "cpu"
    seconds = 20

    def make(self, **fields):
        extra = {**SMALL, **fields.pop("extra", {})}
        video = self.server.client().videos.create_and_poll(
            prompt="a red ball rolls over grass", model=MODEL, size="64x64", extra_body=extra, poll_interval_ms=50,
            **fields)
        self.assertEqual(video.status, "completed", video)
        return video

    def test_create_and_poll(self):
        video = self.make()
        self.assertIsInstance(video, Video)
        self.assertEqual((video.object, video.progress, video.size, video.model), ("video", 100, "64x64", MODEL))
        self.assertEqual(video.prompt, "a red ball rolls over grass")
        self.assertRegex(video.id, r"^video_[0-9a-f]{32}$")
        self.assertIsInstance(video.seconds, str)
        self.assertIsNone(video.error)
        self.assertIsNone(video.remixed_from_video_id)
        self.assertLessEqual(video.created_at, video.completed_at)
        self.assertGreater(video.expires_at, video.completed_at)
        for name, number in SMALL.items():
            self.assertEqual(getattr(video, name), number)

    def test_same_seed_same_bytes(self):
        client = self.server.client()
        first, second, other = self.make(), self.make(), self.make(extra={"seed": 8})
        one, two, three = (client.videos.download_content(v.id).content for v in (first, second, other))
        self.assertEqual(one, two)
        self.assertNotEqual(one, three)

    def test_download_video(self):
        client = self.server.client()
        answer = client.videos.download_content(self.make().id)
        data = answer.read()
        self.assertEqual(answer.response.headers["content-type"], "video/mp4")
        told = probe(data)
        self.assertEqual((told["codec_name"], told["pix_fmt"], told["width"], told["height"]),
                         ("h264", "yuv420p", 64, 64))
        self.assertEqual(told["nb_read_frames"], "9")
        names = boxes(data)
        self.assertEqual(names[0], "ftyp")
        self.assertLess(names.index("moov"), names.index("mdat"), "not faststart")

    def test_download_pictures(self):
        client = self.server.client()
        video = self.make()
        thumbnail = client.videos.download_content(video.id, variant="thumbnail")
        spritesheet = client.videos.download_content(video.id, variant="spritesheet")
        self.assertEqual(thumbnail.response.headers["content-type"], "image/webp")
        self.assertEqual(spritesheet.response.headers["content-type"], "image/jpeg")
        self.assertTrue(is_webp(thumbnail.content))
        self.assertTrue(is_jpeg(spritesheet.content))
        self.assertEqual(probe(thumbnail.content)["codec_name"], "webp")
        self.assertEqual(probe(spritesheet.content)["codec_name"], "mjpeg")

    def test_download_to_a_file(self):
        client = self.server.client()
        video = self.make()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video.mp4"
            with client.videos.with_streaming_response.download_content(video.id) as answer:
                answer.stream_to_file(path)
            self.assertEqual(path.read_bytes(), client.videos.download_content(video.id).content)


class Jobs(ServerCase):
    flags = ("--alias", f"teaser={MODEL}")

    def setUp(self):
        self.client = self.server.client()
        self.videos = self.client.videos

    def small(self, prompt="a ball", **fields):
        extra = {**SMALL, **fields.pop("extra_body", {})}
        return self.videos.create(prompt=prompt, size="64x64", extra_body=extra, **fields)

    def test_as_for_sora(self):
        video = self.videos.create_and_poll(prompt="waves", model="sora-2", size="1280x720", seconds="4")
        self.assertEqual((video.status, video.model, video.size, video.seconds),
                         ("completed", "sora-2", "1280x720", "4"))
        self.assertIn(video.num_frames, (65, 61), "4 s at 16 frames a second, as the model takes them")

    def test_names_of_models(self):
        """OpenAI's own stand for the default model; others are what the operator says."""
        for name in ("sora-2", "sora-2-pro", "teaser", MODEL):
            self.assertEqual(self.small(model=name).model, name)
        self.assertEqual(self.videos.create(prompt="a ball", extra_body=SMALL).model, MODEL)

    def test_retrieve(self):
        made = self.small()
        self.assertIn(made.status, ("queued", "in_progress"))
        video = self.videos.poll(made.id)
        self.assertEqual(video, self.videos.retrieve(made.id))
        self.assertEqual((video.id, video.created_at, video.prompt), (made.id, made.created_at, made.prompt))

    def test_request_ids(self):
        raw = self.videos.with_raw_response.create(prompt="a ball", extra_body=SMALL)
        self.assertRegex(raw.request_id, r"^req_[0-9a-f]{32}$")
        self.assertEqual(raw.parse()._request_id, raw.request_id)
        self.assertNotEqual(self.videos.with_raw_response.retrieve(raw.parse().id).request_id, raw.request_id)

    def test_poll_interval_is_told(self):
        raw = self.videos.with_raw_response.create(prompt="a ball", extra_body=SMALL)
        self.assertGreaterEqual(int(raw.headers["openai-poll-after-ms"]), 1)

    def test_extensions(self):
        fields = {"num_frames": 17, "fps": 8, "num_inference_steps": 3, "guidance_scale": 4.5, "seed": 99,
                  "metadata": {"shot": "12b"}, "user": "studio-7"}
        video = self.videos.create(prompt="a ball", extra_body={**fields, "negative_prompt": "blur"})
        self.assertEqual({name: getattr(video, name) for name in fields}, fields)

    def test_a_seed_is_chosen_and_told(self):
        video = self.videos.create(prompt="a ball", extra_body={"num_frames": 9, "num_inference_steps": 2})
        again = self.videos.create(prompt="a ball", extra_body={"num_frames": 9, "num_inference_steps": 2,
                                                                "seed": video.seed})
        self.assertEqual(again.seed, video.seed)

    def test_prompts_come_back_as_sent(self):
        for prompt in ("Ein Ball: größer, älter 🎾🏀", "line\nbreak\ttab \"quoted\" \\ slash", "球が跳ねる", "x" * 32000):
            self.assertEqual(self.videos.retrieve(self.small(prompt).id).prompt, prompt)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.small("x" * 32001)
        self.assertEqual(caught.exception.param, "prompt")

    def test_idempotency_key(self):
        headers = {"Idempotency-Key": "order-66"}
        first = self.small(extra_headers=headers)
        self.assertEqual(self.small(extra_headers=headers).id, first.id)
        self.assertEqual(self.small(extra_headers={"Idempotency-Key": '"order-66"'}).id, first.id, "the quoted form")
        self.assertNotEqual(self.small().id, first.id)
        with self.assertRaises(openai.ConflictError) as caught:
            self.small("another ball", extra_headers=headers)
        self.assertEqual(caught.exception.code, "idempotency_key_reused")
        self.videos.poll(first.id)
        self.assertEqual(self.small(extra_headers=headers).status, "completed", "the job as it is now")

    def test_one_job_of_many_at_once(self):
        """A client that sends the same eight times at the same moment."""
        async def eight():
            async with openai.AsyncOpenAI(base_url=self.server.api, api_key="unused", max_retries=0,
                                          timeout=PATIENCE) as client:
                return await asyncio.gather(*(
                    client.videos.create(prompt="a ball", extra_body=SMALL, extra_headers={"Idempotency-Key": "eight"})
                    for _ in range(8)))
        self.assertEqual(len({v.id for v in asyncio.run(eight())}), 1)

    def test_delete(self):
        video = self.videos.poll(self.small().id)
        gone = self.videos.delete(video.id)
        self.assertEqual((gone.id, gone.deleted, gone.object), (video.id, True, "video.deleted"))
        for again in (self.videos.retrieve, self.videos.download_content, self.videos.delete):
            with self.assertRaises(openai.NotFoundError):
                again(video.id)
        self.assertNotIn(video.id, [v.id for v in self.videos.list()])

    def test_delete_while_it_runs(self):
        video = self.small(extra_body={"num_inference_steps": 200, "num_frames": 81})
        self.assertTrue(self.videos.delete(video.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.videos.retrieve(video.id)

    def test_cancel(self):
        video = self.small(extra_body={"num_inference_steps": 200, "num_frames": 81})
        path = f"/videos/{video.id}/cancel"
        ended = self.client.post(path, cast_to=Video)
        self.assertEqual((ended.status, ended.error.code), ("failed", "cancelled"))
        self.assertEqual(self.client.post(path, cast_to=Video).status, "failed", "asked twice")
        self.assertEqual(self.videos.poll(video.id).status, "failed")
        with self.assertRaises(openai.ConflictError) as caught:
            self.videos.download_content(video.id)
        self.assertEqual(caught.exception.code, "video_failed")
        done = self.videos.poll(self.small().id)
        with self.assertRaises(openai.ConflictError) as caught:
            self.client.post(f"/videos/{done.id}/cancel", cast_to=Video)
        self.assertEqual(caught.exception.code, "video_ended")

    def test_asynchronous_client(self):
        async def four():
            async with openai.AsyncOpenAI(base_url=self.server.api, api_key="unused", max_retries=0,
                                          timeout=PATIENCE) as client:
                return await asyncio.gather(*(
                    client.videos.create_and_poll(prompt=f"ball {i}", extra_body=SMALL, poll_interval_ms=20)
                    for i in range(4)))
        videos = asyncio.run(four())
        self.assertEqual({v.status for v in videos}, {"completed"})
        self.assertEqual(len({v.id for v in videos}), 4)

    def test_models(self):
        self.assertIn(MODEL, [m.id for m in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve(MODEL).id, MODEL)
        self.assertEqual(self.client.models.retrieve("teaser").id, "teaser", "an alias")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("sora-3")

    # ---- what the models here do not do ----

    def refusal(self, error, call, *arguments, **fields):
        with self.assertRaises(error) as caught:
            call(*arguments, **fields)
        return caught.exception

    def test_reference_pictures(self):
        picture = png()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ball.png"
            path.write_bytes(picture)
            for reference in (path, picture, ("ball.png", picture, "image/png")):
                error = self.refusal(openai.BadRequestError, self.videos.create, prompt="a ball",
                                     input_reference=reference)
                self.assertEqual(error.param, "input_reference", error)
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        error = self.refusal(openai.BadRequestError, self.videos.create, prompt="a ball",
                             extra_body={"input_reference": {"image_url": url}})
        self.assertEqual(error.param, "input_reference", error)
        error = self.refusal(openai.BadRequestError, self.videos.create, prompt="a ball",
                             input_reference=("ball.txt", b"not a picture", "text/plain"))
        self.assertEqual(error.param, "input_reference", error)

    def test_other_operations(self):
        video = self.videos.poll(self.small().id)
        clip = ("clip.mp4", self.videos.download_content(video.id).content, "video/mp4")
        calls = (lambda: self.videos.remix(video.id, prompt="at night"),
                 lambda: self.videos.edit(prompt="at night", video=clip),
                 lambda: self.client.post("/videos/edits", body={"prompt": "at night", "video": {"id": video.id}},
                                          cast_to=Video),
                 lambda: self.videos.extend(prompt="on it goes", video=clip, seconds="4"),
                 lambda: self.videos.create_character(name="Mossy", video=clip))
        for call in calls:
            self.assertEqual(self.refusal(openai.BadRequestError, call).code, "unsupported_operation")
        self.assertEqual(self.refusal(openai.NotFoundError, self.videos.get_character, "char_123").code, "not_found")
        error = self.refusal(openai.BadRequestError, self.videos.create, prompt="Mossy walks",
                             extra_body={"characters": [{"id": "char_123"}]})
        self.assertEqual(error.param, "characters", error)


class Pages(ServerCase):
    """Lists: the client asks for the page behind last_id until has_more is false."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.videos = cls.server.client().videos
        cls.ids = [cls.server.create(f"ball {i}")["id"] for i in range(7)]
        cls.newest = cls.ids[::-1]

    def listed(self, **query):
        return [v.id for v in self.videos.list(**query)]

    def test_automatic_paging(self):
        for limit in (1, 2, 3, 7, 100):
            self.assertEqual(self.listed(limit=limit), self.newest, f"limit {limit}")
        self.assertEqual(self.listed(), self.newest)

    def test_orders(self):
        self.assertEqual(self.listed(order="desc", limit=3), self.newest)
        self.assertEqual(self.listed(order="asc", limit=3), self.ids)

    def test_after(self):
        self.assertEqual(self.listed(after=self.newest[2], limit=2), self.newest[3:])
        self.assertEqual(self.listed(after=self.ids[2], limit=2, order="asc"), self.ids[3:])
        self.assertEqual(self.listed(after=self.ids[0]), [])

    def test_one_page(self):
        page = self.videos.list(limit=3)
        self.assertEqual([v.id for v in page.data], self.newest[:3])
        self.assertTrue(page.has_more)
        self.assertEqual((page.first_id, page.last_id), (self.newest[0], self.newest[2]))
        self.assertTrue(page.has_next_page())
        self.assertEqual([v.id for v in page.get_next_page().data], self.newest[3:6])
        self.assertFalse(self.videos.list(limit=7).has_more)

    def test_asynchronous_paging(self):
        async def listed():
            async with openai.AsyncOpenAI(base_url=self.server.api, api_key="unused") as client:
                return [v.id async for v in client.videos.list(limit=2)]
        self.assertEqual(asyncio.run(listed()), self.newest)

    def test_bad_queries(self):
        for query, param in (({"limit": 101}, "limit"), ({"limit": -1}, "limit"), ({"order": "sideways"}, "order"),
                             ({"after": "video_" + "0" * 32}, "after"), ({"after": "x"}, "after"),
                             ({"extra_query": {"page": "2"}}, "page")):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.videos.list(**query)
            self.assertEqual(caught.exception.param, param)

    def test_jobs_of_every_state(self):
        for video_id in self.ids:
            self.server.await_status(video_id, "completed")
        self.assertEqual({v.status for v in self.videos.list()}, {"completed"})


class Errors(ServerCase):
    """Each refusal arrives as the exception its status stands for."""
    flags = ("--queue-max", "2")
    device = "fake:step_ms=20"

    @classmethod
    def prepare(cls):
        cls.key = cls.server.key("--tenant", "studio")["key"]
        cls.reader = cls.server.key("--tenant", "studio", "--scopes", "read")["key"]
        cls.hasty = cls.server.key("--tenant", "hasty", "--requests", "3")["key"]

    def setUp(self):
        self.client = self.server.client(self.key)

    def refusal(self, error, call, *arguments, **fields):
        with self.assertRaises(error) as caught:
            call(*arguments, **fields)
        self.assertRegex(caught.exception.request_id, "^req_")
        self.assertTrue(caught.exception.message)
        return caught.exception

    def test_bad_requests(self):
        create = self.client.videos.create
        for fields, param, code in (
                ({"size": "banana"}, "size", "invalid_value"),
                ({"size": "0x64"}, "size", "invalid_value"),
                ({"seconds": "-4"}, "seconds", "invalid_value"),
                ({"seconds": "four"}, "seconds", "invalid_type"),
                ({"model": "sora-3"}, "model", "invalid_value"),
                ({"extra_body": {"num_inference_steps": 201}}, "num_inference_steps", "invalid_value"),
                ({"extra_body": {"num_frames": "many"}}, "num_frames", "invalid_type"),
                ({"extra_body": {"guidance_scale": 101}}, "guidance_scale", "invalid_value"),
                ({"extra_body": {"enable_magic": True}}, "enable_magic", "unknown_parameter"),
                ({"extra_headers": {"Idempotency-Key": "k" * 256}}, "Idempotency-Key", "invalid_value")):
            error = self.refusal(openai.BadRequestError, create, prompt="a ball", **fields)
            self.assertEqual((error.param, error.code, error.type), (param, code, "invalid_request_error"), fields)
        error = self.refusal(openai.BadRequestError, create, prompt="")
        self.assertEqual(error.param, "prompt")
        error = self.refusal(openai.BadRequestError, self.client.post, "/videos", body={"size": "64x64"},
                             cast_to=Video)
        self.assertEqual((error.param, error.code), ("prompt", "missing_required_parameter"))

    def test_not_found(self):
        videos = self.client.videos
        for video_id in ("video_" + "0" * 32, "video_1", "nonsense"):
            for call in (videos.retrieve, videos.delete, videos.download_content):
                error = self.refusal(openai.NotFoundError, call, video_id)
                self.assertEqual(error.type, "invalid_request_error")
        self.refusal(openai.NotFoundError, self.client.get, "/vectors", cast_to=object)

    def test_authentication(self):
        key_id, secret = self.key.rsplit("_", 1)
        for key in ("sk-wrong", "kinora_" + "0" * 12 + "_" + "0" * 49, f"{key_id}_{secret[::-1]}"):
            error = self.refusal(openai.AuthenticationError, self.server.client(key).videos.list)
            self.assertEqual(error.code, "invalid_api_key")
            self.assertNotIn(secret, error.message)

    def test_permission(self):
        client = self.server.client(self.reader)
        self.refusal(openai.PermissionDeniedError, client.videos.create, prompt="a ball")
        self.refusal(openai.PermissionDeniedError, client.videos.delete, "video_" + "0" * 32)
        client.videos.list()

    def test_rate_limit(self):
        client = self.server.client(self.hasty)
        left = []
        for _ in range(3):
            headers = client.videos.with_raw_response.list().headers
            self.assertEqual(headers["x-ratelimit-limit-requests"], "3")
            left.append(int(headers["x-ratelimit-remaining-requests"]))
        self.assertEqual(left, [2, 1, 0])
        error = self.refusal(openai.RateLimitError, client.videos.list)
        self.assertEqual((error.code, error.type), ("rate_limit_exceeded", "rate_limit_error"))
        self.assertTrue(1 <= int(error.response.headers["retry-after"]) <= 120)

    def test_not_ready_is_a_conflict_nobody_retries(self):
        video = self.client.videos.create(prompt="a ball", extra_body={**SMALL, "num_inference_steps": 100})
        error = self.refusal(openai.ConflictError, self.client.videos.download_content, video.id)
        self.assertEqual((error.code, error.response.headers["x-should-retry"]), ("video_not_ready", "false"))
        self.client.videos.delete(video.id)

    def test_overload_and_the_clients_own_retries(self):
        """A full queue is 503, which is an InternalServerError there; the client waits as it is told, then gets in."""
        long = {**SMALL, "num_inference_steps": 30}
        made = [self.client.videos.create(prompt="a ball", extra_body=long) for _ in range(2)]
        error = self.refusal(openai.InternalServerError, self.client.videos.create, prompt="a ball", extra_body=long)
        self.assertEqual((error.status_code, error.code), (503, "server_is_overloaded"))
        self.assertTrue(1 <= int(error.response.headers["retry-after"]) <= 120)
        patient = self.server.client(self.key, max_retries=10)
        made.append(patient.videos.create(prompt="a ball", extra_body=long))
        for video in made:
            wait_for("an end", lambda v=video: self.client.videos.retrieve(v.id).status == "completed")
