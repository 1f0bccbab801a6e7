# SPDX-License-Identifier: Apache-2.0
"""clients/python, installed as a user installs it: synchronous and for asyncio, against real servers, through broken
connections and restarts; and the parts that need no server."""
import asyncio
import filecmp
import io
import shutil
import signal
import tempfile
import threading
import unittest
from datetime import timedelta
from pathlib import Path

import kinora
from kinora import core, errors, progress

from harness import MODEL, PATIENCE, ROOT, SMALL, ServerCase, make_certificate, run, wait_for

GRPC = ("--grpc", "127.0.0.1:0")
CLIP = {"size": (64, 64), **SMALL}


class Package(unittest.TestCase):
    def test_the_installed_one_is_tested(self):
        self.assertNotIn(str(ROOT / "clients"), kinora.__file__)
        self.assertTrue((Path(kinora.__file__).parent / "py.typed").exists())

    def test_the_stubs_are_the_schemas(self):
        if "2.0.8" not in run("flatc", "--version").stdout:
            self.skipTest("another flatc writes other stubs")
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(run(str(ROOT / "clients/python/generate"), folder).returncode, 0)
            made, kept = Path(folder, "kinora/v1"), ROOT / "clients/python/kinora/v1"
            names = sorted(p.name for p in made.glob("*.py"))
            self.assertEqual(names, sorted(p.name for p in kept.glob("*.py")))
            self.assertEqual(filecmp.cmpfiles(made, kept, names, shallow=False)[1:], ([], []))

    def test_details_cut_anywhere(self):
        whole = bytes.fromhex("0803121a") + b"x" * 26 + b"\x1a\x05\x0a\x01a\x12\x00"
        for count in range(len(whole)):
            errors.read_details(whole[:count])

    def test_the_bar(self):
        stream = io.StringIO()
        bar = progress.Bar(stream)
        bar(1, 2, "x")
        self.assertEqual(stream.getvalue(), "")  # no terminal
        bar = progress.Bar(stream, force=True)
        bar(1, 2, "denoise 1/2")
        bar(1, 2, "denoise 1/2")
        bar.close()
        self.assertEqual(stream.getvalue().count("\r"), 1)
        self.assertIn("50 %", stream.getvalue())
        self.assertTrue(stream.getvalue().endswith("\n"))

    def test_wrong_arguments_never_leave(self):
        with kinora.Client("127.0.0.1:1") as client:
            for options in ({"size": "big"}, {"sampler": "ddim"}, {"priority": "high"}):
                with self.assertRaises(ValueError) as caught:
                    client.submit("a ball", **options)
                self.assertIn(next(iter(options)), str(caught.exception))
            with self.assertRaises(TypeError) as caught:
                client.submit("a ball", steps=5)
            self.assertIn("num_inference_steps", str(caught.exception))

    def test_patience_ends(self):
        with kinora.Client("127.0.0.1:1", patience=0.3) as client:
            with self.assertRaises(kinora.Unavailable):
                client.submit("a ball")


class Case(ServerCase):
    flags = GRPC

    def setUp(self):
        super().setUp()
        self.client = kinora.Client(self.server.said["grpc"][0], timeout=PATIENCE)
        self.addCleanup(self.client.close)
        self.folder = Path(tempfile.mkdtemp(prefix="kinora-python-"))
        self.addCleanup(shutil.rmtree, self.folder, True)


class Synchronous(Case):
    seconds = 6

    def test_generate(self):
        told = []
        path = self.folder / "ball.mp4"
        video = self.client.generate("a ball", path, progress=lambda *words: told.append(words),
                                     metadata={"scene": "ü"}, user="u", **CLIP)
        self.assertEqual((video.status, video.prompt, video.width, video.num_frames, video.seed, video.user),
                         ("completed", "a ball", 64, 9, 7, "u"))
        self.assertEqual((video.metadata, video.fps, video.progress), ({"scene": "ü"}, 16.0, 100))
        self.assertEqual(path.read_bytes(), self.server.content(video.id))
        self.assertEqual([p.name for p in self.folder.iterdir()], ["ball.mp4"])
        self.assertIn((100, 100, "completed"), told)
        self.assertIn((video.content_bytes, video.content_bytes), [t[:2] for t in told])
        self.assertGreater(video.expires_at - video.completed_at, timedelta(minutes=1))

    def test_jobs(self):
        ids = [self.client.submit(f"job {i}", **CLIP).id for i in range(3)]
        page = self.client.list(limit=2)
        self.assertEqual([v.id for v in page.videos], ids[:0:-1])
        self.assertTrue(page.has_more)
        self.assertEqual(self.client.list(limit=2, after=page.videos[-1].id).videos[0].id, ids[0])
        self.assertTrue(set(ids) <= {v.id for v in self.client.videos()})
        self.assertEqual(self.client.get(ids[0]).prompt, "job 0")
        self.client.delete(ids[0])
        with self.assertRaises(kinora.NotFound):
            self.client.get(ids[0])
        self.assertEqual([m.name for m in self.client.models() if m.ready], [MODEL])

    def test_a_key_makes_one_job(self):
        one, two = (self.client.submit("a ball", idempotency_key="once", **CLIP).id for _ in range(2))
        self.assertEqual(one, two)
        with self.assertRaises(kinora.Conflict):
            self.client.submit("another", idempotency_key="once", **CLIP)
        self.assertNotEqual(self.client.submit("a ball", **CLIP).id, self.client.submit("a ball", **CLIP).id)

    def test_errors_have_field_and_limit(self):
        with self.assertRaises(kinora.InvalidRequest) as caught:
            self.client.submit("a ball", num_inference_steps=500)
        self.assertEqual(caught.exception.field, "num_inference_steps")
        self.assertIn("200", caught.exception.limit)
        self.assertEqual(caught.exception.reason, "invalid_value")
        with self.assertRaises(kinora.InvalidRequest) as caught:
            self.client.submit("a ball", model="none-such")
        self.assertEqual(caught.exception.field, "model")
        with self.assertRaises(kinora.NotFound):
            self.client.download("video_" + 32 * "0", self.folder / "x.mp4")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_failed_job(self):
        video = self.client.submit("a ball", **{**CLIP, "num_inference_steps": 200})
        self.assertEqual(self.client.cancel(video.id).failure.code, "cancelled")
        with self.assertRaises(kinora.VideoFailed) as caught:
            self.client.wait(video.id)
        self.assertEqual(caught.exception.reason, "cancelled")
        with self.assertRaises(kinora.NotReady):
            self.client.download(video.id, self.folder / "x.mp4", variant="thumbnail")

    def test_variants_and_pictures(self):
        video = self.client.wait(self.client.submit("a ball", **CLIP).id)
        sheet = self.client.download(video.id, self.folder / "sheet.jpg", variant="spritesheet")
        self.assertEqual(sheet.read_bytes(), self.server.content(video.id, "spritesheet"))
        reference = self.client.upload_reference(sheet)
        self.assertEqual(reference.mime, "image/jpeg")
        with self.assertRaises(kinora.InvalidRequest):
            self.client.upload_reference(b"not a picture")

    def test_a_download_goes_on(self):
        video = self.client.wait(self.client.submit("a ball", **CLIP).id)
        whole = self.server.content(video.id)
        path = self.folder / "ball.mp4"
        self.client.download(video.id, path)
        partial = core.Partial(path, video)
        for chunk_end in (1, len(whole) // 2, len(whole)):
            partial.part.write_bytes(whole[:chunk_end])
            partial.note.write_text(self.etag(video.id))
            sizes = []
            self.client.download(video.id, path, progress=lambda done, total, words: sizes.append(done))
            self.assertEqual(path.read_bytes(), whole)
            self.assertFalse(partial.part.exists() or partial.note.exists())
        # What lies there is of another file: from the start, and nothing is mixed.
        partial.part.write_bytes(b"something else")
        partial.note.write_text('"of another"')
        self.client.download(video.id, path)
        self.assertEqual(path.read_bytes(), whole)
        # The same file, but its bytes were damaged: found by the hash.
        partial.part.write_bytes(b"?" * 100)
        partial.note.write_text(self.etag(video.id))
        with self.assertRaises(kinora.KinoraError) as caught:
            self.client.download(video.id, path)
        self.assertIn("not the file", caught.exception.message)
        self.assertEqual(self.client.download(video.id, path).read_bytes(), whole)

    def etag(self, video_id):
        return self.server.get(f"/v1/videos/{video_id}/content").headers["etag"]

    def test_previews(self):
        slow = self.another(*GRPC, device="fake:step_ms=60").start()
        with kinora.Client(slow.said["grpc"][0]) as client:
            video = client.submit("a ball", **{**CLIP, "num_inference_steps": 30})
            events = list(client.watch(video.id, previews=True))
            self.assertTrue(any(e.progress for e in events))
            pictures = [e.preview for e in events if e.preview]
            self.assertTrue(all(p.image and p.mime.startswith("image/") for p in pictures))
            self.assertEqual(events[-1].video.status, "completed")


class Interrupted(ServerCase):
    flags = GRPC
    device = "fake:step_ms=30"
    seconds = 8

    def test_a_restart_in_the_middle(self):
        """Watching and submitting go on when the server comes back on the same port."""
        server = self.another("--grpc", "127.0.0.1:0", device=self.device).start()
        port = server.said["grpc"][0]
        server.command[server.command.index("--grpc") + 1] = port
        with kinora.Client(port, patience=PATIENCE) as client:
            video = client.submit("a ball", **{**CLIP, "num_inference_steps": 60})
            seen, ended = [], []

            def follow():
                for event in client.watch(video.id):
                    seen.append(event)
                ended.append(seen[-1])

            thread = threading.Thread(target=follow)
            thread.start()
            wait_for("progress", lambda: any(e.progress for e in seen))
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(), 0)
            server.start()
            second = client.submit("another", **CLIP)
            thread.join(PATIENCE)
            self.assertEqual(ended[0].video.status, "completed")
            self.assertEqual(client.wait(second.id).status, "completed")


class Asynchronous(ServerCase):
    flags = GRPC
    seconds = 4

    def test_everything(self):
        folder = Path(tempfile.mkdtemp(prefix="kinora-python-"))
        self.addCleanup(shutil.rmtree, folder, True)

        async def main():
            async with kinora.AsyncClient(self.server.said["grpc"][0], timeout=PATIENCE) as client:
                videos = await asyncio.gather(*(client.generate(f"clip {i}", folder / f"{i}.mp4", **CLIP)
                                                for i in range(4)))
                self.assertEqual([v.prompt for v in videos], [f"clip {i}" for i in range(4)])
                for i, video in enumerate(videos):
                    self.assertEqual((folder / f"{i}.mp4").read_bytes(), self.server.content(video.id))
                self.assertEqual({v.id async for v in client.videos()}, {v.id for v in videos})
                self.assertEqual((await client.list(limit=1)).has_more, True)
                self.assertEqual((await client.models())[0].name, MODEL)
                with self.assertRaises(kinora.InvalidRequest) as caught:
                    await client.submit("a ball", num_inference_steps=500)
                self.assertEqual(caught.exception.field, "num_inference_steps")
                job = await client.submit("a ball", **{**CLIP, "num_inference_steps": 200})
                watch = client.watch(job.id)
                self.assertEqual((await watch.__anext__()).video.id, job.id)
                await client.cancel(job.id)
                *_, last = [event async for event in watch]
                self.assertEqual(last.video.failure.code, "cancelled")
                with self.assertRaises(kinora.VideoFailed):
                    await client.wait(job.id)
                await client.delete(job.id)
                with self.assertRaises(kinora.NotFound):
                    await client.get(job.id)
                sheet = await client.download(videos[0].id, folder / "sheet.jpg", variant="spritesheet")
                self.assertEqual((await client.upload_reference(sheet)).mime, "image/jpeg")

        asyncio.run(asyncio.wait_for(main(), PATIENCE))


class Secured(ServerCase):
    seconds = 3

    @classmethod
    def prepare(cls):
        cls.certificate, key = make_certificate(cls.server.home, "server")
        cls.server.command += [*GRPC, "--tls-cert", cls.certificate, "--tls-key", key]
        cls.key = cls.server.key("--tenant", "studio", "--scopes", "submit,read")["key"]
        cls.server.ready = False

    def test_tls_and_keys(self):
        target = self.server.said["grpc"][0]
        with kinora.Client(target, key=self.key, tls=self.certificate) as client:
            video = client.wait(client.submit("a ball", **CLIP).id)
            self.assertEqual(video.status, "completed")
            with self.assertRaises(kinora.PermissionDenied):
                client.cancel(video.id)
        with kinora.Client(target, tls=self.certificate) as client:
            with self.assertRaises(kinora.Unauthenticated):
                client.submit("a ball", **CLIP)
        with kinora.Client(target, patience=0.2, tls=Path(self.certificate).read_bytes(), key="kinora_x_y") as client:
            with self.assertRaises(kinora.Unauthenticated):
                client.models()
