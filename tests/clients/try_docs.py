# SPDX-License-Identifier: Apache-2.0
"""The quickstarts of docs/QUICKSTARTS.md and docs/TRITON.md as they stand there, and the example in C. Only the
addresses are replaced."""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, ServerCase, run

COMPILING = 600  # seconds; C++ on a busy machine takes a minute


def block(page, heading, language):
    """The first code of this language below a heading."""
    part = ("\n" + (ROOT / "docs" / page).read_text()).split(f"\n{heading}\n", 1)[1]
    part = re.split(r"\n## ", part, maxsplit=1)[0]
    return re.search(rf"```{language}\n(.*?)\n```", part, re.DOTALL).group(1) + "\n"


class Quickstarts(ServerCase):
    flags = ("--grpc", "127.0.0.1:0")
    seconds = 70  # a C++ compiler's

    def setUp(self):
        super().setUp()
        self.folder = Path(tempfile.mkdtemp(prefix="kinora-quickstart-"))
        self.addCleanup(shutil.rmtree, self.folder, True)

    def text(self, heading, language, page="QUICKSTARTS.md"):
        code = block(page, heading, language)
        self.assertRegex(code, r"127\.0\.0\.1:800[01]|flatc")
        return code.replace("127.0.0.1:8000", self.server.url.split("//")[1]).replace(
            "127.0.0.1:8001", self.server.said["grpc"][0])

    def run_here(self, *command):
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=COMPILING)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done

    def check_clip(self, name="ball.mp4"):
        """What was kept is the newest job's file, and that job is the one the text asks for."""
        newest = self.server.get("/v1/videos?limit=1").json()["data"][0]
        self.assertEqual((newest["size"], newest["num_frames"], newest["status"]), ("416x240", 17, "completed"))
        self.assertEqual((self.folder / name).read_bytes(), self.server.content(newest["id"]))

    def test_python(self):
        self.run_here(sys.executable, "-c", self.text("## Python", "python"))
        self.check_clip()

    def test_curl(self):
        self.run_here("sh", "-e", "-c", self.text("## curl", "sh"))
        self.check_clip()
        self.assertIn("video.completed", (self.folder / "events.txt").read_text())

    def test_cpp(self):
        if run("pkg-config", "--exists", "grpc++").returncode or not shutil.which("flatc"):
            self.skipTest("libgrpc++-dev or flatc is not installed")
        shutil.copy(ROOT / "server/schema/kinora.fbs", self.folder)
        (self.folder / "quickstart.cc").write_text(self.text("## C++", "cpp"))
        self.run_here("sh", "-e", "-c", self.text("## C++", "sh").replace("c++ -std", "c++ -O0 -std"))
        self.run_here("./quickstart")
        self.check_clip()

    def test_go(self):
        if not shutil.which("go"):
            self.skipTest("Go is not installed")
        (self.folder / "main.go").write_text(self.text("## Go", "go"))
        self.run_here("env", f"GOCACHE={self.folder / 'cache'}", "GOFLAGS=-mod=mod", "GO111MODULE=off", "go", "run",
                      "main.go")
        self.check_clip()

    def test_c(self):
        flags = run("pkg-config", "--cflags", "--libs", "libcurl", "jansson").stdout.split()
        self.run_here("cc", "-Wall", "-Wextra", "-Werror", "-o", "kinora_video",
                      str(ROOT / "clients/c/kinora_video.c"), *flags)
        self.run_here("./kinora_video", self.server.url, "a ball", "ball.mp4", "size=416x240", "num_frames=17")
        self.check_clip()
        done = run("./kinora_video", self.server.url, "a ball", "no.mp4", "num_inference_steps=500", cwd=self.folder)
        self.assertEqual(done.returncode, 1)
        self.assertIn("field num_inference_steps", done.stderr)
        self.assertFalse((self.folder / "no.mp4").exists())

    def test_triton(self):
        self.run_here(sys.executable, "-c", self.text("# For who knows Triton", "python", page="TRITON.md"))
        self.check_clip()
