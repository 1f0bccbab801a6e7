# SPDX-License-Identifier: Apache-2.0
"""Kinora's own gRPC service, by grpcio and the stubs flatc makes (clients/python)."""
import concurrent.futures
import hashlib
import subprocess
from pathlib import Path

import flatbuffers
import grpc

from harness import PATIENCE, ROOT, SMALL, Server, ServerCase, is_jpeg, make_certificate, run, wait_for

from kinora.v1 import (Chunk, Deleted, DownloadRequest, Empty, Event, EventKind, ListRequest, Model, ModelList,  # noqa
                       ModelRequest, Pair, Reference, ReferenceChunk, ServerStatistics, Status, SubmitRequest, Video,
                       VideoList, VideoRequest, WatchRequest)
from kinora.v1.kinora_grpc_fb import AdminStub, KinoraStub  # noqa: E402

CODE = grpc.StatusCode


def table(module, **fields):
    """A finished message: texts, bytes and [(key, value)] become offsets, the rest goes in as it is."""
    name = module.__name__.rsplit(".", 1)[1]
    b = flatbuffers.Builder(256)
    made = {}
    for field, value in fields.items():
        if isinstance(value, str):
            made[field] = b.CreateString(value)
        elif isinstance(value, bytes):
            made[field] = b.CreateByteVector(value)
        elif isinstance(value, dict):
            pairs = []
            for key, text in value.items():
                k, v = b.CreateString(key), b.CreateString(text)
                Pair.PairStart(b)
                Pair.PairAddKey(b, k)
                Pair.PairAddValue(b, v)
                pairs.append(Pair.PairEnd(b))
            module.SubmitRequestStartMetadataVector(b, len(pairs))
            for pair in reversed(pairs):
                b.PrependUOffsetTRelative(pair)
            made[field] = b.EndVector()
        else:
            made[field] = value
    getattr(module, f"{name}Start")(b)
    for field, value in made.items():
        getattr(module, f"{name}Add" + "".join(w.title() for w in field.split("_")))(b, value)
    b.Finish(getattr(module, f"{name}End")(b))
    return bytes(b.Output())


def submission(prompt="a ball", **fields):
    return table(SubmitRequest, prompt=prompt, width=64, height=64, **{**SMALL, **fields})


def video_of(data):
    return Video.Video.GetRootAs(data, 0)


def ask(video_id):
    return table(VideoRequest, id=video_id)


class Case(ServerCase):
    flags = ("--grpc", "127.0.0.1:0")

    def setUp(self):
        super().setUp()
        self.target = self.server.said["grpc"][0]
        self.channel = grpc.insecure_channel(self.target)
        self.addCleanup(self.channel.close)
        self.stub, self.admin = KinoraStub(self.channel), AdminStub(self.channel)

    def refused(self, code, function, *args, **more):
        """The call's error; its code is as expected."""
        with self.assertRaises(grpc.RpcError) as caught:
            answer = function(*args, timeout=more.pop("timeout", PATIENCE), **more)
            if hasattr(answer, "__iter__") and not isinstance(answer, bytes):
                list(answer)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception

    def submit(self, **fields):
        return video_of(self.stub.Submit(submission(**fields), timeout=PATIENCE)).Id().decode()

    def watch(self, video_id, timeout=PATIENCE, **fields):
        for data in self.stub.Watch(table(WatchRequest, id=video_id, **fields), timeout=timeout):
            yield Event.Event.GetRootAs(data, 0)

    def finish(self, video_id):
        """Waits for the job's end by watching; the last video."""
        *_, last = (e for e in self.watch(video_id) if e.Kind() == EventKind.EventKind.State)
        return last.Video()

    def download(self, video_id, **fields):
        chunks = [Chunk.Chunk.GetRootAs(d, 0) for d in
                  self.stub.Download(table(DownloadRequest, id=video_id, **fields), timeout=PATIENCE)]
        return b"".join(bytes(c.DataAsNumpy()) for c in chunks), chunks


class Videos(Case):
    def test_submit_watch_download(self):
        video = video_of(self.stub.Submit(submission(metadata={"scene": "ü"}, user="u"), timeout=PATIENCE))
        video_id = video.Id().decode()
        self.assertRegex(video_id, "^video_[0-9a-f]{32}$")
        self.assertEqual((video.Width(), video.Height(), video.NumFrames(), video.Seed()), (64, 64, 9, 7))
        self.assertEqual(video.Metadata().decode(), '{"scene":"ü"}')
        kinds = set()
        for event in self.watch(video_id):
            kinds.add(event.Kind())
            if event.Kind() == EventKind.EventKind.Progress:
                self.assertIn(event.Progress().Stage(), (b"text", b"denoise", b"decode", b"mux"))
        self.assertIn(EventKind.EventKind.State, kinds)
        self.assertEqual(event.Video().Status(), Status.Status.Completed)
        self.assertEqual(event.Video().Progress(), 100)
        over_http = self.server.content(video_id)
        data, chunks = self.download(video_id)
        self.assertEqual(data, over_http)
        self.assertEqual(chunks[0].Mime(), b"video/mp4")
        final = video_of(self.stub.Get(ask(video_id), timeout=PATIENCE))
        self.assertEqual(final.ContentBytes(), len(data))
        self.assertEqual(bytes(final.ContentSha256AsNumpy()), hashlib.sha256(data).digest())

    def test_both_fronts_are_one(self):
        made_here, made_there = self.submit(prompt="by gRPC"), self.server.create("by HTTP")["id"]
        self.assertEqual(self.server.await_status(made_here, "completed")["prompt"], "by gRPC")
        self.assertEqual(self.finish(made_there).Status(), Status.Status.Completed)
        page = VideoList.VideoList.GetRootAs(self.stub.List(table(ListRequest, limit=100), timeout=PATIENCE), 0)
        listed = [page.Videos(i).Id().decode() for i in range(page.VideosLength())]
        self.assertEqual(listed, [v["id"] for v in self.server.get("/v1/videos?limit=100").json()["data"]])
        self.assertTrue({made_here, made_there} <= set(listed))
        gone = Deleted.Deleted.GetRootAs(self.stub.Delete(ask(made_there), timeout=PATIENCE), 0)
        self.assertEqual(gone.Id().decode(), made_there)
        self.assertEqual(self.server.get(f"/v1/videos/{made_there}").status, 404)
        self.refused(CODE.NOT_FOUND, self.stub.Get, ask(made_there))

    def test_pages(self):
        ids = [self.submit(prompt=f"page {i}") for i in range(3)]
        seen, after = [], ""
        while True:
            page = VideoList.VideoList.GetRootAs(
                self.stub.List(table(ListRequest, limit=2, **({"after": after} if after else {})), timeout=PATIENCE), 0)
            seen += [page.Videos(i).Id().decode() for i in range(page.VideosLength())]
            if not page.HasMore():
                break
            after = seen[-1]
        self.assertTrue(set(ids) <= set(seen))
        self.assertEqual(len(seen), len(set(seen)))
        error = self.refused(CODE.INVALID_ARGUMENT, self.stub.List, table(ListRequest, limit=101))
        self.assertIn("limit must be 0 to 100", error.details())

    def test_idempotency(self):
        metadata = (("idempotency-key", "once"),)
        one, two = (video_of(self.stub.Submit(submission(), timeout=PATIENCE, metadata=metadata)).Id()
                    for _ in range(2))
        self.assertEqual(one, two)
        there = self.server.post("/v1/videos", {"prompt": "a ball", "width": 64, "height": 64, **SMALL},
                                 headers={"Idempotency-Key": "once"})
        self.assertEqual(there.json()["id"], one.decode())  # the same request in another dialect
        error = self.refused(CODE.ALREADY_EXISTS, self.stub.Submit, submission(prompt="another"), metadata=metadata)
        self.assertIn("grpc-status-details-bin", dict(error.trailing_metadata()))

    def test_errors_name_field_and_limit(self):
        error = self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(num_inference_steps=201))
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        self.assertIn(b"num_inference_steps", details)
        self.assertIn(b"google.rpc.BadRequest", details)
        self.assertIn(b"google.rpc.ErrorInfo", details)
        self.assertIn("200", error.details())
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(model="none-such"))
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(guidance_scale=float("nan")))
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, b"\x10\x00\x00\x00garbage")
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, b"")
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(call_deadline=True), timeout=None)
        error = self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(reference="file_" + 32 * "0"))
        self.assertIn("no uploaded picture", error.details())
        self.refused(CODE.NOT_FOUND, self.stub.Get, ask("video_" + 32 * "0"))
        self.refused(CODE.NOT_FOUND, self.stub.Get, ask("../../etc/passwd"))

    def test_every_mutation_of_a_message_is_answered(self):
        message = bytearray(submission(metadata={"a": "b"}))
        for at in range(0, len(message), 3):
            for value in (0, 0x7F, 0xFF):
                changed = bytearray(message)
                changed[at] = value
                try:
                    self.stub.Get(bytes(changed), timeout=PATIENCE)
                except grpc.RpcError as error:
                    self.assertIn(error.code(), (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND))

    def test_models(self):
        models = ModelList.ModelList.GetRootAs(self.stub.Models(table(Empty), timeout=PATIENCE), 0)
        self.assertEqual([models.Models(i).Name() for i in range(models.ModelsLength())], [b"wan21-small"])

    def test_cancel_and_its_repetition(self):
        video_id = self.submit(num_inference_steps=200)
        for _ in range(2):
            video = video_of(self.stub.Cancel(ask(video_id), timeout=PATIENCE))
            self.assertEqual(video.Status(), Status.Status.Failed)
            self.assertEqual(video.Failure().Code(), b"cancelled")
        done = self.server.completed()["id"]
        self.refused(CODE.FAILED_PRECONDITION, self.stub.Cancel, ask(done))


class Watching(Case):
    device = "fake:step_ms=20"

    def test_cancelled_elsewhere(self):
        video_id = self.submit(num_inference_steps=200)
        events = self.watch(video_id)
        next(events)
        self.server.post(f"/v1/videos/{video_id}/cancel")
        *_, last = events
        self.assertEqual(last.Video().Failure().Code(), b"cancelled")

    def test_cancel_with_call(self):
        for how in ("cancel", "deadline", "neither"):
            video_id = self.submit(num_inference_steps=100)
            call = self.stub.Watch(table(WatchRequest, id=video_id, cancel_with_call=how != "neither"),
                                   timeout=0.5 if how == "deadline" else PATIENCE)
            next(call)
            if how != "deadline":
                call.cancel()
            with self.assertRaises(grpc.RpcError) as caught:
                list(call)
            self.assertEqual(caught.exception.code(), CODE.DEADLINE_EXCEEDED if how == "deadline" else CODE.CANCELLED)
            wanted = "completed" if how == "neither" else "failed"
            self.assertEqual(self.server.await_status(video_id, "completed", "failed")["status"], wanted)

    def test_goes_on_behind_the_last_event(self):
        video_id = self.submit(num_inference_steps=50)
        events = self.watch(video_id)
        first = next(events)
        ids = [e.Id().decode() for e in self.watch(video_id, after=first.Id().decode())
               if e.Kind() == EventKind.EventKind.State]
        self.assertNotIn(first.Id().decode(), ids)
        self.assertEqual(self.server.video(video_id)["status"], "completed")

    def test_no_progress_no_previews(self):
        kinds = {e.Kind() for e in self.watch(self.submit(), no_progress=True, no_previews=True)}
        self.assertEqual(kinds, {EventKind.EventKind.State})

    def test_unknown(self):
        self.refused(CODE.NOT_FOUND, self.stub.Watch, table(WatchRequest, id="video_" + 32 * "0"))

    def test_a_deadline_is_a_promise_or_a_refusal(self):
        self.submit()
        wait_for("a known cost", lambda: self.server.completed())
        error = self.refused(CODE.RESOURCE_EXHAUSTED, self.stub.Submit,
                             submission(num_inference_steps=200, call_deadline=True), timeout=2)
        self.assertIn("deadline_unattainable", str(dict(error.trailing_metadata())["grpc-status-details-bin"]))
        self.assertIn("grpc-retry-pushback-ms", dict(error.trailing_metadata()))


class Files(Case):
    def test_downloads_resume(self):
        video_id = self.server.completed()["id"]
        whole, chunks = self.download(video_id, chunk_bytes=4096, variant=2)
        self.assertEqual([c.Offset() for c in chunks], list(range(0, len(whole), 4096)))
        whole, chunks = self.download(video_id)
        etag = chunks[0].Etag().decode()
        for offset in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
            self.assertEqual(self.download(video_id, offset=offset, etag=etag)[0], whole[offset:])
        self.assertEqual(self.download(video_id, offset=5, length=10)[0], whole[5:15])
        self.refused(CODE.OUT_OF_RANGE, self.stub.Download,
                     table(DownloadRequest, id=video_id, offset=len(whole) + 1))
        self.refused(CODE.FAILED_PRECONDITION, self.stub.Download, table(DownloadRequest, id=video_id, etag='"x"'))
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Download,
                     table(DownloadRequest, id=video_id, chunk_bytes=(1 << 20) + 1))
        self.refused(CODE.INVALID_ARGUMENT, self.stub.Download, table(DownloadRequest, id=video_id, variant=9))

    def test_not_ready(self):
        self.refused(CODE.FAILED_PRECONDITION, self.stub.Download,
                     table(DownloadRequest, id=self.submit(num_inference_steps=200)))

    def upload(self, data, piece=1000):
        pieces = [data[i:i + piece] for i in range(0, len(data), piece)] or [b""]
        return Reference.Reference.GetRootAs(
            self.stub.UploadReference((table(ReferenceChunk, data=p) for p in pieces), timeout=PATIENCE), 0)

    def test_references(self):
        picture = self.server.content(self.server.completed()["id"], "spritesheet")
        self.assertTrue(is_jpeg(picture))
        reference = self.upload(picture)
        self.assertRegex(reference.Id(), b"^file_[0-9a-f]{32}$")
        self.assertEqual(reference.Mime(), b"image/jpeg")
        self.assertGreater(reference.Width() * reference.Height(), 0)
        # It exists; that this model takes no picture is the next thing to be said.
        error = self.refused(CODE.INVALID_ARGUMENT, self.stub.Submit, submission(reference=reference.Id().decode()))
        self.assertNotIn("no uploaded picture", error.details())
        for bad in (b"", b"not a picture", picture[:20]):
            with self.assertRaises(grpc.RpcError) as caught:
                self.upload(bad)
            self.assertEqual(caught.exception.code(), CODE.INVALID_ARGUMENT)
        with self.assertRaises(grpc.RpcError) as caught:
            self.upload(bytes(33 << 20), 1 << 20)
        self.assertEqual(caught.exception.code(), CODE.RESOURCE_EXHAUSTED)


class Transport(Case):
    def test_gzip(self):
        with grpc.insecure_channel(self.target, compression=grpc.Compression.Gzip) as channel:
            stub = KinoraStub(channel)
            prompt = "compressible " * 1000
            video = video_of(stub.Submit(submission(prompt=prompt), timeout=PATIENCE))
            self.assertEqual(video.Prompt().decode(), prompt)
            stub.List(table(ListRequest, limit=10), timeout=PATIENCE)

    def test_message_limits(self):
        """Four MiB are read, one byte more is refused; and so is a bomb."""
        with grpc.insecure_channel(self.target, options=[("grpc.max_send_message_length", -1)]) as channel:
            submit = KinoraStub(channel).Submit
            self.refused(CODE.INVALID_ARGUMENT, submit, bytes(4 << 20))
            error = self.refused(CODE.RESOURCE_EXHAUSTED, submit, bytes((4 << 20) + 1))
            self.assertIn("(4194305 vs. 4194304)", error.details())
            self.refused(CODE.RESOURCE_EXHAUSTED, submit, bytes(16 << 20), compression=grpc.Compression.Gzip)

    def test_a_thousand_streams_on_one_connection(self):
        video_id = self.server.completed()["id"]
        futures = [self.stub.Get.future(ask(video_id), timeout=PATIENCE) for _ in range(1000)]
        for future in futures:
            self.assertEqual(video_of(future.result()).Id().decode(), video_id)

    def test_h2load(self):
        message = Path(self.server.home) / "models.bin"
        message.write_bytes(bytes(5))
        port = self.target.rsplit(":", 1)[1]
        grpc_call = ("-d", str(message), "-H", "content-type: application/grpc")
        for path, options in (("/kinora.v1.Kinora/Models", grpc_call), ("/livez", ())):
            done = run("h2load", "-n", "5000", "-c", "10", "-m", "100", *options, f"http://127.0.0.1:{port}{path}")
            self.assertIn("5000 succeeded, 0 failed, 0 errored", done.stdout)

    def test_deadline_and_unknown_methods(self):
        unknown = self.channel.unary_unary("/kinora.v1.Kinora/Nothing")
        self.refused(CODE.UNIMPLEMENTED, unknown, b"")
        self.refused(CODE.UNIMPLEMENTED, self.channel.unary_unary("/no.Such/Thing"), b"")

    def test_http_1_on_the_same_port(self):
        port = self.target.rsplit(":", 1)[1]
        done = subprocess.run(["curl", "-sS", f"http://127.0.0.1:{port}/v1/models"], capture_output=True, timeout=PATIENCE)
        self.assertIn(b"wan21-small", done.stdout)
        done = subprocess.run(["curl", "-sS", "--http2-prior-knowledge", f"http://127.0.0.1:{port}/livez"],
                              capture_output=True, timeout=PATIENCE)
        self.assertEqual(done.stdout, b'{"status":"ok"}')

    def test_metrics(self):
        self.stub.Models(table(Empty), timeout=PATIENCE)
        text = self.server.get("/metrics").body.decode()
        self.assertIn('kinora_grpc_call_duration_seconds_count{method="/kinora.v1.Kinora/Models",code="OK"}', text)
        self.assertIn("kinora_grpc_connections", text)


class AThousandWatchers(Case):
    flags = ("--grpc", "127.0.0.1:0", "--event-streams-max", "2000")
    device = "fake:step_ms=50"

    def test_they_all_hear_the_end(self):
        video_id = self.submit(num_inference_steps=150)
        calls = [self.stub.Watch(table(WatchRequest, id=video_id, no_progress=True, no_previews=True),
                                 timeout=PATIENCE) for _ in range(1000)]
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            def last_status(call):
                *_, last = call
                return Event.Event.GetRootAs(last, 0).Video().Status()
            for call in calls:
                next(call)
            self.assertEqual(set(pool.map(last_status, calls)), {Status.Status.Completed})


class Keys(Case):
    flags = ("--grpc", "127.0.0.1:0", "--keys", "true")

    def test_scopes(self):
        reader, writer, admin = (self.server.key("--tenant", "t", "--scopes", scopes)["key"]
                                 for scopes in ("read", "submit,read,cancel", "admin"))
        bearer = lambda key: (("authorization", f"Bearer {key}"),)  # noqa: E731
        self.refused(CODE.UNAUTHENTICATED, self.stub.Submit, submission())
        self.refused(CODE.UNAUTHENTICATED, self.stub.Submit, submission(), metadata=bearer("kn_nonsense"))
        self.refused(CODE.PERMISSION_DENIED, self.stub.Submit, submission(), metadata=bearer(reader))
        video = video_of(self.stub.Submit(submission(), metadata=bearer(writer), timeout=PATIENCE))
        answer = self.admin.Statistics(b"", metadata=bearer(admin), timeout=PATIENCE)
        stats = ServerStatistics.ServerStatistics.GetRootAs(answer, 0)
        self.assertEqual(stats.Devices(), 1)
        self.refused(CODE.PERMISSION_DENIED, self.admin.Statistics, b"", metadata=bearer(writer))
        self.assertTrue(video.Id())


class Admin(Case):
    def test_models_go_and_come(self):
        request = table(ModelRequest, name="wan21-small")
        model = Model.Model.GetRootAs(self.admin.UnloadModel(request, timeout=PATIENCE), 0)
        self.assertFalse(model.Ready())
        self.refused(CODE.UNAVAILABLE, self.stub.Submit, submission())
        self.assertTrue(Model.Model.GetRootAs(self.admin.LoadModel(request, timeout=PATIENCE), 0).Ready())
        self.submit()
        self.refused(CODE.NOT_FOUND, self.admin.LoadModel, table(ModelRequest, name="none"))

    def test_drain(self):
        server = self.another(*self.flags, device="fake:step_ms=50").start()
        with grpc.insecure_channel(server.said["grpc"][0]) as channel:
            stub = KinoraStub(channel)
            video_id = video_of(stub.Submit(submission(num_inference_steps=200), timeout=PATIENCE)).Id().decode()
            call = stub.Watch(table(WatchRequest, id=video_id), timeout=PATIENCE)
            next(call)
            stats = ServerStatistics.ServerStatistics.GetRootAs(AdminStub(channel).Drain(b"", timeout=PATIENCE), 0)
            self.assertTrue(stats.Draining())
            with self.assertRaises(grpc.RpcError) as caught:
                list(call)
            self.assertEqual(caught.exception.code(), CODE.UNAVAILABLE)
            self.assertIn("grpc-retry-pushback-ms", dict(caught.exception.trailing_metadata()))
            self.assertEqual(server.wait(), 0)


class Tls(Case):
    flags = ("--grpc", "0.0.0.0:0")

    @classmethod
    def prepare(cls):
        cls.certificate, private = make_certificate(cls.server.home, "server")
        cls.server.command += ["--tls-cert", cls.certificate, "--tls-key", private]
        cls.server.ready = False
        cls.key = cls.server.key("--tenant", "studio")["key"]

    def test_alpn(self):
        port = self.target.rsplit(":", 1)[1]
        trusted = grpc.ssl_channel_credentials(Path(self.certificate).read_bytes())
        options = [("grpc.ssl_target_name_override", "127.0.0.1")]
        metadata = (("authorization", f"Bearer {self.key}"),)
        with grpc.secure_channel(f"127.0.0.1:{port}", trusted, options) as channel:
            stub = KinoraStub(channel)
            video = video_of(stub.Submit(submission(), timeout=PATIENCE, metadata=metadata))
            *_, last = stub.Watch(table(WatchRequest, id=video.Id().decode()), timeout=PATIENCE, metadata=metadata)
            self.assertEqual(Event.Event.GetRootAs(last, 0).Video().Status(), Status.Status.Completed)
            chunks = list(stub.Download(table(DownloadRequest, id=video.Id().decode()), timeout=PATIENCE,
                                        metadata=metadata))
            self.assertGreater(len(chunks), 0)
            self.refused(CODE.UNAUTHENTICATED, stub.Get, ask(video.Id().decode()))
        for version, body in (("--http1.1", '{"status":"ok"}'), ("--http2", '{"status":"ok"}')):
            done = run("curl", "-sS", "--cacert", self.certificate, version, f"https://127.0.0.1:{port}/livez")
            self.assertEqual(done.stdout, body, done.stderr)

    def test_the_front_is_not_for_all_without_keys_and_tls(self):
        server = self.another("--grpc", "0.0.0.0:0")
        with self.assertRaises((AssertionError, KeyError)):
            server.start()
        self.assertIn("--tls-cert", server.said["message"])
