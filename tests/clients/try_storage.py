# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up: what was accepted ends, what is new is refused with the reason, and it goes on with space."""
import os
import subprocess
import unittest

from harness import PATIENCE, SMALL, Server, value, wait_for

DISK = 24 << 20
LONG = {"num_inference_steps": 100}


class SmallDisk(unittest.TestCase):
    def setUp(self):
        self.server = Server("--reserve-bytes", str(4 << 20), "--checkpoint-interval-ms", "0",
                             device="fake:step_ms=20")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "none", str(self.server.data)],
                                 capture_output=True, timeout=PATIENCE)
        if mounted.returncode != 0:
            self.server.close()
            self.skipTest("no file system of its own can be mounted here")
        self.addCleanup(self.unmount)
        self.server.start()

    def unmount(self):
        if self.server.process.poll() is None:
            self.server.kill()
        subprocess.run(["umount", str(self.server.data)], capture_output=True, timeout=PATIENCE, check=True)
        self.server.close()

    def fill(self):
        """Takes all the space there is."""
        path = self.server.data / "filler"
        with open(path, "ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 65536)
            except OSError:
                pass
        return path

    def metric(self, name, **labels):
        return value(self.server.get("/metrics").body.decode(), name, **labels)

    def test_full_and_well_again(self):
        server = self.server
        self.assertTrue((server.data / "reserve").exists())
        running = [server.create(**{**LONG, "seed": seed})["id"] for seed in (1, 2)]
        wait_for("a running job", lambda: server.video(running[0])["status"] == "in_progress")
        filler = self.fill()
        wait_for("the server saying so", lambda: server.get("/readyz").status == 503)
        self.assertIn("storage is full", server.get("/readyz").body.decode())
        self.assertFalse((server.data / "reserve").exists())
        self.assertEqual(self.metric("kinora_storage_reserved"), 0)
        refused = server.post("/v1/videos", {"prompt": "a ball", "size": "64x64", **SMALL})
        self.assertEqual(refused.status, 503, refused.body)
        self.assertIn("full", refused.error["message"])
        self.assertIn("retry-after", refused.headers)
        self.assertEqual(self.metric("kinora_jobs_refused_total", reason="storage"), 1)
        # The reserve is there for these.
        self.assertEqual(server.post(f"/v1/videos/{running[1]}/cancel").status, 200)
        self.assertEqual(server.await_status(running[0], "completed", "failed")["status"], "completed")
        self.assertGreater(len(server.content(running[0])), 1000)
        os.unlink(filler)
        wait_for("the reserve", lambda: (server.data / "reserve").exists())
        wait_for("a ready server", lambda: server.get("/readyz").status == 200)
        self.assertEqual(self.metric("kinora_storage_reserved"), 1)
        server.completed()
        self.assertEqual(server.stop(), 0)
