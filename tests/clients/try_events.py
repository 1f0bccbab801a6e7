# SPDX-License-Identifier: Apache-2.0
"""Server-sent events of a job, and the route that answers with the video itself."""
import base64
import http.client
import json
import re
import socket
import time
from urllib.parse import urlsplit

from harness import PATIENCE, SMALL, Server, ServerCase, is_jpeg, is_webp, probe, run, wait_for


class Stream:
    """An event stream, read as a browser reads it (WHATWG HTML, 9.2)."""

    def __init__(self, server, video_id, last=None, key=None):
        parts = urlsplit(server.url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {}),
                   **({"Authorization": f"Bearer {key}"} if key else {})}
        self.connection.request("GET", f"/v1/videos/{video_id}/events", headers=headers)
        self.answer = self.connection.getresponse()
        self.status, self.headers = self.answer.status, self.answer.headers

    def __iter__(self):
        """(name, id, data) until the server ends the stream."""
        event, data = {}, []
        for line in self.answer:
            line = line.decode().removesuffix("\n")
            if line == "":
                if data:
                    yield event.get("event"), event.get("id"), "\n".join(data)
                event, data = {}, []
            elif not line.startswith(":"):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "data":
                    data.append(value)
                else:
                    event[name] = value

    def take(self, count):
        found = []
        for event in self:
            found.append(event)
            if len(found) == count:
                break
        return found

    def close(self):
        self.connection.close()


class EventsCase(ServerCase):
    def stream(self, video_id, **more):
        stream = Stream(self.server, video_id, **more)
        self.addCleanup(stream.close)
        return stream

    def check_whole(self, events, last):
        """Order of a job's events from beginning to end; the progress records."""
        self.assertEqual(events[-1], (None, None, "[DONE]"))
        names = [name for name, _, _ in events[:-1]]
        parsed = [json.loads(data) for _, _, data in events[:-1]]
        self.assertEqual([p["type"] for p in parsed], names)
        self.assertIn(names[0], ("video.queued", "video.in_progress"))
        self.assertEqual(names[-1], last)
        self.assertEqual(names.count(last), 1)
        progress = [p["progress"] for p in parsed if p["type"] == "video.progress"]
        self.assertEqual(progress, sorted(progress), "progress goes up")
        self.assertLessEqual(progress[-1], 99, "100 is for completed")
        return [p for p in parsed if p["type"] == "video.progress"]


class Events(EventsCase):
    device = "fake:step_ms=40,text_ms=20"
    flags = ("--event-streams-max", "3")
    seconds = 20

    def test_a_whole_job(self):
        video = self.server.create(num_inference_steps=20)
        stream = self.stream(video["id"])
        self.assertEqual(stream.status, 200)
        self.assertEqual(stream.headers["content-type"], "text/event-stream")
        self.assertEqual(stream.headers["cache-control"], "no-cache")
        events = list(stream)
        records = self.check_whole(events, "video.completed")
        self.assertGreater(len({r["progress"] for r in records}), 8)
        self.assertEqual({r["steps"] for r in records if r["stage"] == "denoise"}, {20})
        self.assertEqual({r["id"] for r in records}, {video["id"]})
        final = json.loads(events[-2][2])["video"]
        self.assertEqual(final, self.server.video(video["id"]))

    def test_previews(self):
        video = self.server.create(num_inference_steps=45)
        pictures = [json.loads(data) for name, _, data in self.stream(video["id"]) if name == "video.preview"]
        self.assertGreaterEqual(len(pictures), 1)
        self.check_pictures(pictures, (64, 64))

    def check_pictures(self, pictures, size):
        steps = [p["step"] for p in pictures]
        self.assertEqual(steps, sorted(steps))
        for picture in pictures:
            kind, data = re.fullmatch("data:(image/webp|image/jpeg);base64,(.*)", picture["url"]).groups()
            data = base64.b64decode(data, validate=True)
            self.assertTrue(is_webp(data) if kind == "image/webp" else is_jpeg(data))
            told = probe(data)
            self.assertEqual((told["width"], told["height"]), size)

    def test_previews_of_the_engine(self):
        """Latents decoded for real."""
        server = self.another("--threads", "1", device="cpu").start()
        video = server.create(num_inference_steps=30)
        stream = Stream(server, video["id"])
        self.addCleanup(stream.close)
        pictures = [json.loads(data) for name, _, data in stream if name == "video.preview"]
        self.assertGreaterEqual(len(pictures), 1)
        self.check_pictures(pictures, (64, 64))
        self.assertEqual(server.stop(), 0)

    def test_goes_on_behind_the_last_seen(self):
        video = self.server.create(num_inference_steps=40)
        stream = self.stream(video["id"])
        seen = stream.take(6)
        stream.close()
        last = seen[-1][1]
        number = int(last.rpartition("-")[2])
        rest = list(self.stream(video["id"], last=last))
        self.assertEqual(rest[-1][2], "[DONE]")
        self.assertEqual(rest[-2][0], "video.completed")
        for name, event_id, _ in rest[:-1]:
            self.assertGreater(int(event_id.rpartition("-")[2]), number, name)

    def test_goes_on_after_the_end(self):
        """Away while the job completed: the change of state was kept."""
        video = self.server.create(num_inference_steps=10)
        stream = self.stream(video["id"])
        seen = stream.take(3)
        stream.close()
        self.server.await_status(video["id"], "completed")
        rest = list(self.stream(video["id"], last=seen[-1][1]))
        self.assertEqual([name for name, _, _ in rest], ["video.completed", None])

    def test_an_id_nobody_gave(self):
        """Begins with the present state."""
        video = self.server.create(num_inference_steps=10)
        events = list(self.stream(video["id"], last="ffffffff-7"))
        self.assertIn(events[0][0], ("video.queued", "video.in_progress"))
        self.assertEqual(events[-1][2], "[DONE]")

    def test_of_an_ended_job(self):
        video = self.server.completed()
        events = list(self.stream(video["id"]))
        self.assertEqual([name for name, _, _ in events], ["video.completed", None])

    def test_of_a_cancelled_job(self):
        video = self.server.create(num_inference_steps=200)
        stream = self.stream(video["id"])
        stream.take(2)
        self.server.post(f"/v1/videos/{video['id']}/cancel")
        events = list(stream)
        self.assertEqual(events[-1][2], "[DONE]")
        self.assertEqual(events[-2][0], "video.failed")
        self.assertEqual(json.loads(events[-2][2])["video"]["error"]["code"], "cancelled")

    def test_two_watchers(self):
        video = self.server.create(num_inference_steps=15)
        one, two = self.stream(video["id"]), self.stream(video["id"])
        ends = [list(stream)[-2:] for stream in (one, two)]
        self.assertEqual(ends[0], ends[1])

    def test_through_curl(self):
        video = self.server.create(num_inference_steps=10)
        done = run("curl", "--silent", "--no-buffer", "--max-time", "60",
                   f"{self.server.api}/videos/{video['id']}/events")
        self.assertEqual(done.returncode, 0)
        self.assertTrue(done.stdout.endswith("data: [DONE]\n\n"))

    def test_no_more_than_allowed(self):
        video = self.server.create(num_inference_steps=200)
        streams = [self.stream(video["id"]) for _ in range(3)]
        self.assertEqual({s.status for s in streams}, {200})
        reply = self.server.get(f"/v1/videos/{video['id']}/events")
        self.assertRefused(reply, 503, "server_is_overloaded")
        self.assertGreaterEqual(int(reply.headers["retry-after"]), 1)
        streams[0].close()
        wait_for("a place for a stream", lambda: self.stream(video["id"]).status == 200)
        self.server.call("DELETE", f"/v1/videos/{video['id']}")

    def test_of_no_job(self):
        self.assertRefused(self.server.get("/v1/videos/video_" + "0" * 32 + "/events"), 404, "not_found")

    def test_ends_when_the_server_goes(self):
        server = Server(device="fake:step_ms=50").start()
        self.addCleanup(server.close)
        stream = Stream(server, server.create(num_inference_steps=200)["id"])
        self.addCleanup(stream.close)
        stream.take(3)
        server.process.terminate()
        rest = list(stream)
        self.assertNotIn("[DONE]", [data for _, _, data in rest], "the job has not ended")
        self.assertEqual(server.wait(), 0)


class Sync(EventsCase):
    device = "fake:step_ms=20,poison=kaboom"
    seconds = 15

    def body(self, **fields):
        return {"prompt": "a ball", "size": "64x64", **SMALL, **fields}

    def test_the_video_comes_back(self):
        reply = self.server.post("/v1/videos/sync", self.body())
        self.assertEqual((reply.status, reply.headers["content-type"]), (200, "video/mp4"))
        self.assertEqual(probe(reply.body)["codec_name"], "h264")
        name = re.search('filename="(video_[0-9a-f]{32}).mp4"', reply.headers["content-disposition"])[1]
        self.assertEqual(self.server.content(name), reply.body)

    def test_as_a_form(self):
        done = run("curl", "--silent", "--fail", "-F", "prompt=a ball", "-F", "num_frames=9", "-F",
                   "num_inference_steps=4", f"{self.server.api}/videos/sync", text=False)
        self.assertEqual((done.returncode, done.stdout[4:8]), (0, b"ftyp"))

    def test_a_failed_one(self):
        reply = self.server.post("/v1/videos/sync", self.body(prompt="kaboom"))
        self.assertRefused(reply, 500, "poison")
        self.assertIn("worker died", reply.error["message"])
        self.assertEqual(reply.headers["x-should-retry"], "false", "or clients would send it again by themselves")

    def test_a_bad_one(self):
        self.assertRefused(self.server.post("/v1/videos/sync", self.body(size="banana")), 400, "invalid_value", "size")

    def test_cancelled_by_somebody_else(self):
        parts = urlsplit(self.server.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/videos/sync", json.dumps(self.body(num_inference_steps=200, user="other")),
                           {"Content-Type": "application/json"})
        video_id = self.running("other")
        self.server.post(f"/v1/videos/{video_id}/cancel")
        answer = connection.getresponse()
        self.assertEqual((answer.status, json.loads(answer.read())["error"]["code"]), (409, "cancelled"))

    def running(self, user):
        def found():
            videos = self.server.get("/v1/videos").json()["data"]
            return next((v["id"] for v in videos if v["user"] == user and v["status"] == "in_progress"), None)
        return wait_for("a running job", found)

    def begin(self, path="/v1/videos/sync", **fields):
        """A request whose answer is not waited for."""
        parts = urlsplit(self.server.url)
        body = json.dumps(self.body(**fields)).encode()
        client = socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE)
        self.addCleanup(client.close)
        client.sendall(b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                       b"Idempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s" %
                       (path.encode(), fields["user"].encode(), len(body), body))
        return client

    def test_going_away_cancels(self):
        client = self.begin(num_inference_steps=200, user="away")
        video_id = self.running("away")
        client.close()
        video = self.server.await_status(video_id, "failed")
        self.assertEqual(video["error"]["code"], "cancelled")
        self.server.completed()  # the device is free again

    def test_going_away_while_another_waits(self):
        """The same request twice: the video is wanted until both have gone."""
        first = self.begin(num_inference_steps=60, user="pair")
        video_id = self.running("pair")
        second = self.begin(num_inference_steps=60, user="pair")
        time.sleep(0.2)
        first.close()
        self.assertTrue(second.recv(100).startswith(b"HTTP/1.1 200 "))
        self.assertEqual(self.server.video(video_id)["status"], "completed")

    def test_going_away_one_after_the_other(self):
        both = [self.begin(num_inference_steps=200, user="both")]
        video_id = self.running("both")
        both.append(self.begin(num_inference_steps=200, user="both"))
        time.sleep(0.2)
        for client in both:
            client.close()
            time.sleep(0.2)
        self.assertEqual(self.server.await_status(video_id, "failed")["error"]["code"], "cancelled")

    def test_going_away_from_a_job_of_its_own(self):
        """Who only asks again for a job that runs anyway does not take it along."""
        self.begin("/v1/videos", num_inference_steps=60, user="own")
        video_id = self.running("own")
        second = self.begin(num_inference_steps=60, user="own")
        time.sleep(0.2)
        second.close()
        self.server.await_status(video_id, "completed")

    def test_replayed(self):
        """The same key again answers with the same job's video."""
        headers = {"Idempotency-Key": "sync-1"}
        first = self.server.post("/v1/videos/sync", self.body(), headers=headers)
        second = self.server.post("/v1/videos/sync", self.body(), headers=headers)
        self.assertEqual((first.status, second.status), (200, 200))
        self.assertEqual(first.headers["content-disposition"], second.headers["content-disposition"])
        self.assertEqual(first.body, second.body)
