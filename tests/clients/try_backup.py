# SPDX-License-Identifier: Apache-2.0
"""kinora backup of a server at work, and a server that goes on from the copy."""
import hashlib
import json
import shutil
import unittest

from harness import KINORA, Server, run, wait_for


class Backup(unittest.TestCase):
    def backup(self, server, name):
        path = server.home / name
        done = run(KINORA, "backup", str(path), "--data", str(server.data), "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return path, json.loads(done.stdout)

    def test_restore(self):
        server = Server("--keys", "true", "--checkpoint-interval-ms", "0", device="fake:step_ms=10")
        server.ready = False
        self.addCleanup(server.close)
        server.start()
        key = server.key()["key"]
        ask = {"key": key, "num_inference_steps": 60}
        undisturbed = server.completed(seed=1, **ask)["id"]
        wanted = hashlib.sha256(server.content(undisturbed, key=key)).hexdigest()
        running, waiting = (server.create(seed=1, **ask)["id"] for _ in range(2))
        wait_for("a checkpoint", lambda: list((server.data / "checkpoints").glob(running + "*")))
        path, said = self.backup(server, "copy")
        self.assertTrue(said["live"])
        self.assertEqual((said["jobs"], said["unfinished"], said["damaged"]), (3, 2, 0))
        after = server.create(**ask)["id"]
        again = run(KINORA, "backup", str(path), "--data", str(server.data))
        self.assertNotEqual(again.returncode, 0)
        self.assertIn("there already", again.stderr)

        server.kill()  # and its disk is lost
        shutil.rmtree(server.data)
        path.rename(server.data)
        server.start()
        self.assertEqual(server.get(f"/v1/videos/{after}", key=key).status, 404)  # after the copy was made
        for video_id in (running, waiting):
            server.await_status(video_id, "completed", key=key)
        for video_id in (undisturbed, running, waiting):
            self.assertEqual(hashlib.sha256(server.content(video_id, key=key)).hexdigest(), wanted)
            self.assertGreater(len(server.content(video_id, "thumbnail", key=key)), 100)
        self.assertEqual(server.stop(), 0)
        _, said = self.backup(server, "cold")
        self.assertFalse(said["live"])
        self.assertEqual((said["jobs"], said["unfinished"]), (3, 0))
