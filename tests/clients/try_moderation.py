# SPDX-License-Identifier: Apache-2.0
"""The operator's moderation hooks, as clients see them."""
import http.server
import json
import os
import threading
import time

import openai

from harness import SMALL, ServerCase, run

# Blocks by a word in the question, which has the prompt in it.
HOOK = """#!/bin/sh
case $(cat) in
*{word}*) echo '{{"verdict": "block", "reason": "test"}}' ;;
*) echo '{{"verdict": "allow"}}' ;;
esac
"""


class Moderation(ServerCase):
    @classmethod
    def prepare(cls):
        for stage in ("prompt", "output"):
            path = cls.server.home / f"{stage}-hook"
            path.write_text(HOOK.format(word=f"bad-{stage}"))
            os.chmod(path, 0o755)
            cls.server.command += [f"--moderation-{stage}-hook", str(path)]

    def setUp(self):
        self.videos = self.server.client().videos

    def make(self, prompt):
        return self.videos.create_and_poll(prompt=prompt, extra_body=SMALL, poll_interval_ms=20)

    def test_allowed(self):
        video = self.make("a ball")
        self.assertEqual((video.status, video.error), ("completed", None))

    def test_a_blocked_prompt(self):
        before = len(list(self.videos.list()))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.make("a bad-prompt")
        error = caught.exception
        self.assertEqual((error.code, error.param), ("moderation_blocked", "prompt"))
        self.assertEqual(error.type, "invalid_request_error")
        self.assertNotIn("test", error.message, "the hook's reason is the operator's")
        self.assertEqual(len(list(self.videos.list())), before)

    def test_a_blocked_video(self):
        video = self.make("a bad-output")
        self.assertEqual((video.status, video.error.code), ("failed", "moderation_blocked"))
        with self.assertRaises(openai.ConflictError):
            self.videos.download_content(video.id)
        self.assertEqual([p.name for p in (self.server.data / "blobs").iterdir() if video.id in p.name], [])

    def test_a_blocked_video_while_waiting(self):
        body = {"prompt": "a bad-output", **SMALL}
        self.assertRefused(self.server.post("/v1/videos/sync", body), 400, "moderation_blocked")


class Service(http.server.BaseHTTPRequestHandler):
    """A moderation service at a URL; what a prompt says decides how it behaves."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        kind = self.headers["content-type"]
        self.server.asked.append((self.path, kind, body))
        if kind.startswith("multipart/form-data"):
            question = json.loads(body.split(b"application/json\r\n\r\n", 1)[1].split(b"\r\n--", 1)[0])
        else:
            question = json.loads(body)
        prompt = question["prompt"]
        if "hang" in prompt:
            time.sleep(5)
        verdict = {"verdict": "allow"}
        if f"bad-{question['stage']}" in prompt:
            verdict = {"verdict": "block", "reason": "service"}
        answer = b"{" if "nonsense" in prompt else json.dumps(verdict).encode()
        self.send_response(302 if "moved" in prompt else 500 if "broken" in prompt else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        try:
            self.wfile.write(answer)
        except OSError:
            pass  # who asked waits no longer

    def log_message(self, *_):
        pass


class ModerationService(ServerCase):
    @classmethod
    def prepare(cls):
        cls.service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
        cls.service.daemon_threads, cls.service.asked = True, []
        threading.Thread(target=cls.service.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.service.shutdown)
        where = f"127.0.0.1:{cls.service.server_port}"
        cls.server.command += ["--moderation-allow", where, "--moderation-time-limit-ms", "3000"]
        for stage in ("prompt", "output"):
            cls.server.command += [f"--moderation-{stage}-hook", f"http://{where}/{stage}?token=s3cret"]

    def create(self, prompt):
        return self.server.post("/v1/videos", {"prompt": prompt, "size": "64x64", **SMALL})

    def test_allowed(self):
        video = self.server.completed("a ball \u00e9")
        asked = [(path, kind, body) for path, kind, body in self.service.asked if "\u00e9" in body.decode("latin-1")
                 or b"\\u00e9" in body or "\u00e9".encode() in body]
        prompt, output = asked[0], asked[-1]
        self.assertEqual((prompt[0], prompt[1]), ("/prompt?token=s3cret", "application/json"))
        self.assertEqual(output[0], "/output?token=s3cret")
        self.assertIn(self.server.content(video["id"]), output[2])  # the service sees the video itself
        self.assertNotIn(str(self.server.data).encode(), output[2])  # and not where it lies

    def test_blocked(self):
        self.assertRefused(self.create("a bad-prompt"), 400, "moderation_blocked", "prompt")
        video = self.create("a bad-output").json()
        video = self.server.await_status(video["id"], "failed", "completed")
        self.assertEqual(video["error"]["code"], "moderation_blocked")

    def test_no_verdict_blocks(self):
        for prompt in ("nonsense", "moved", "broken", "hang"):
            with self.subTest(prompt):
                self.assertRefused(self.create(prompt), 400, "moderation_blocked", "prompt")
        self.assertNotIn("/elsewhere", [path for path, _, _ in self.service.asked])

    def test_the_url_is_on_no_command_line(self):
        """It may hold a token: the asking process reads it from its input. The log does not have it either."""
        self.create("a hang, so that it can be looked at")
        self.assertNotIn("s3cret", self.server.log())

    def test_urls_that_are_refused(self):
        for url, words in (("http://moderation.example/", "moderation-allow"), ("https://10.0.0.1/", "private"),
                           ("https://user:pass@moderation.example/", "prompt-hook")):
            done = run(*self.server.command[:2], "--models", str(self.server.home), "--moderation-prompt-hook", url,
                       "--data", str(self.server.home / "other"))
            self.assertNotEqual(done.returncode, 0, url)
            self.assertIn(words, done.stderr, url)
