# SPDX-License-Identifier: Apache-2.0
"""The operator's moderation hooks, as clients see them."""
import os

import openai

from harness import SMALL, ServerCase

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
