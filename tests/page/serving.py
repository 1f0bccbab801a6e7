# SPDX-License-Identifier: Apache-2.0
"""A server for the page to be tested against, and a proxy before it that can be cut. Loopback only."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KINORA = os.environ.get("KINORA", str(ROOT / "build/release/kinora"))
MODEL = ROOT / "tests/golden/wan21-small/model"


class Server:
    def __init__(self, *settings):
        self.folder = tempfile.TemporaryDirectory(prefix="kinora-page-")
        self.data = Path(self.folder.name) / "data"
        models = Path(self.folder.name) / "models"
        models.mkdir()
        (models / "small").symlink_to(MODEL)
        command = [KINORA, "serve", "--models", str(models), "--data", str(self.data), "--listen", "127.0.0.1:0",
                   "--json", "--log-level", "warning", "--drain-seconds", "0", *settings]
        self.log = open(Path(self.folder.name) / "log", "wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("kinora serve did not start")
        self.url = json.loads(line)["addresses"][0]
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()
        log = (Path(self.folder.name) / "log").read_text(errors="replace")
        self.folder.cleanup()
        if self.process.returncode != 0:
            raise RuntimeError(f"kinora serve ended with {self.process.returncode}:\n{log[-4000:]}")

    def make_key(self, tenant, scopes):
        done = subprocess.run([KINORA, "key", "create", "--data", str(self.data), "--tenant", tenant, "--scopes",
                               scopes, "--json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)["key"]

    def ask(self, method, path, body=None, headers=None, key=None):
        """(status, headers, bytes)"""
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def submit(self, prompt, key=None, **fields):
        status, _, answer = self.ask("POST", "/v1/videos", {"prompt": prompt, "num_frames": 5, **fields}, key=key)
        if status != 200:
            raise RuntimeError(f"submit: {status} {answer!r}")
        return json.loads(answer)["id"]

    def video(self, video):
        return json.loads(self.ask("GET", f"/v1/videos/{video}")[2])


class Proxy:
    """Passes bytes on, remembers what was asked, and can cut every connection or refuse new ones."""

    def __init__(self, port):
        self.target = port
        self.heads = []  # request heads, bytes
        self.open = set()
        self.refusing = False
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self.target))
            with self.lock:
                self.open |= {client, server}
            threading.Thread(target=self.pass_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.pass_on, args=(server, client, False), daemon=True).start()

    def pass_on(self, source, sink, asking):
        try:
            while data := source.recv(1 << 16):
                if asking:
                    self.heads.append(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.lock:
            self.open.discard(source)
        source.close()

    def cut(self):
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()
        self.cut()
