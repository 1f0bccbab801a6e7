# SPDX-License-Identifier: Apache-2.0
"""Servers, webhook receivers and small tools the tests share. Traffic stays on loopback; processes are ended by id."""
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

from openai import DefaultHttpxClient, OpenAI

ROOT = Path(__file__).resolve().parents[2]
KINORA = str((ROOT / os.environ.get("KINORA", "build/release/kinora")).resolve())
MODEL = "wan21-small"  # random weights of the real architecture
SMALL = {"num_frames": 9, "num_inference_steps": 4, "seed": 7}  # with size 64x64 a job of a fraction of a second
PATIENCE = 60  # seconds until something counts as hung; nothing is expected to take long

everything = []  # servers and receivers, to be ended whatever happens
everything_lock = threading.Lock()
no_more = threading.Event()


def remember(thing):
    with everything_lock:
        everything.append(thing)


def refuse_all():
    """No further server starts."""
    no_more.set()


def end_all():
    with everything_lock:
        things, everything[:] = everything[:], []
    for thing in things:
        thing.close()


def wait_for(what, condition, patience=PATIENCE, pause=0.02):
    """The condition's first true value."""
    until = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"{patience} s passed without {what}")
        time.sleep(pause)


class Reply:
    """An HTTP answer: status, headers (lower case) and body."""

    def __init__(self, status, headers, body):
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers}

    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json()["error"]


class Server:
    """kinora serve on a free port with a data directory of its own."""

    def __init__(self, *flags, device="fake:step_ms=2", listen="127.0.0.1:0", ready=True):
        self.home = Path(tempfile.mkdtemp(prefix="kinora-clients-"))
        self.data = self.home / "data"
        self.data.mkdir()
        models = self.home / "models"
        models.mkdir()
        (models / MODEL).symlink_to(ROOT / "tests/golden" / MODEL / "model")
        self.device, self.listen = device, listen
        self.command = [KINORA, "serve", "--models", str(models), "--data", str(self.data), "--listen", listen,
                        "--json", "--device", device, *flags]
        self.tls = None  # an ssl.SSLContext once there is a certificate to trust
        self.process = None
        self.ready = ready
        remember(self)

    # ---- life ----

    def start(self):
        assert not no_more.is_set(), "the run took too long"
        self.log_file = open(self.home / "log", "ab")
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=self.log_file)
        watchdog = threading.Timer(PATIENCE, self.process.kill)  # a server that never gets ready
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            self.process.wait(PATIENCE)
            raise AssertionError(f"the server did not start:\n{self.log()}")
        self.said = json.loads(line)
        self.url = self.said["addresses"][0].replace("0.0.0.0", "127.0.0.1")
        self.api = self.url + "/v1"
        if self.ready:
            wait_for("a ready server", lambda: self.get("/readyz").status == 200)
        return self

    def stop(self):
        """Ends it the regular way; the exit status."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self):
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.stdout.close()
            self.log_file.close()

    def kill(self):
        self.process.kill()
        self.wait()

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def log(self):
        return (self.home / "log").read_text(errors="replace")

    # ---- asking it ----

    def call(self, method, path, body=None, headers=None, key=None):
        """One request on a connection of its own."""
        parts = urlsplit(self.url)
        if self.tls:
            connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=PATIENCE, context=self.tls)
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE)
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def get(self, path, **more):
        return self.call("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.call("POST", path, body, **more)

    def create(self, prompt="a ball", key=None, **fields):
        """A job that was accepted."""
        reply = self.post("/v1/videos", {"prompt": prompt, "size": "64x64", **SMALL, **fields}, key=key)
        assert reply.status == 200, reply.body
        return reply.json()

    def video(self, video_id, key=None):
        reply = self.get(f"/v1/videos/{video_id}", key=key)
        assert reply.status == 200, reply.body
        return reply.json()

    def await_status(self, video_id, *wanted, key=None):
        def reached():
            video = self.video(video_id, key)
            if video["status"] in wanted:
                return video
            assert video["status"] in ("queued", "in_progress"), video
            return None
        return wait_for(f"{video_id} being {' or '.join(wanted)}", reached)

    def completed(self, prompt="a ball", key=None, **fields):
        return self.await_status(self.create(prompt, key=key, **fields)["id"], "completed", key=key)

    def content(self, video_id, variant="video", key=None):
        reply = self.get(f"/v1/videos/{video_id}/content?variant={variant}", key=key)
        assert reply.status == 200, reply.body
        return reply.body

    def client(self, key="unused", **options):
        """openai's own client."""
        options.setdefault("max_retries", 0)
        if self.tls:
            options["http_client"] = DefaultHttpxClient(verify=self.tls)
        return OpenAI(base_url=self.api, api_key=key, timeout=PATIENCE, **options)

    # ---- the operator ----

    def kinora(self, *words, status=0):
        """kinora WORDS --data ...: its standard output, once it ended with this status."""
        done = run(KINORA, *words, "--data", str(self.data))
        assert done.returncode == status, f"kinora {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def key(self, *options):
        """A new key: its whole record, the text under "key"."""
        return json.loads(self.kinora("key", "create", *options, "--json"))


def run(*command, **options):
    return subprocess.run(command, capture_output=True, **{"text": True, "timeout": PATIENCE, **options})


class ServerCase(unittest.TestCase):
    """Tests of a class share one server."""
    flags = ()
    device = "fake:step_ms=2"
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.flags, device=cls.device)
        cls.addClassCleanup(cls.server.close)
        cls.prepare()
        cls.server.start()

    @classmethod
    def prepare(cls):
        """Before the server starts."""

    @classmethod
    def tearDownClass(cls):
        """Every server ends well, whatever its clients did to it."""
        status, log = cls.server.stop(), cls.server.log()
        assert status == 0, f"the server ended with {status}\n{log[-4000:]}"
        assert "Sanitizer" not in log and "runtime error:" not in log, log

    def another(self, *flags, **options):
        server = Server(*flags, **options)
        self.addCleanup(server.close)
        return server

    def assertRefused(self, reply, status, code, param=None):
        self.assertEqual(reply.status, status, reply.body)
        self.assertEqual(reply.error["code"], code, reply.body)
        self.assertEqual(reply.error["param"], param, reply.body)


# ---- media ----

def probe(data, *what):
    """What ffprobe says about a file's first stream."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        done = run("ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-show_streams", "-show_format",
                   "-of", "json", file.name)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return {**told["format"], **told["streams"][0]}


def boxes(data):
    """Names of an MP4 file's top-level boxes."""
    names, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at:at + 4], "big")
        assert size >= 8, "a box without a plain size"
        names.append(data[at + 4:at + 8].decode("latin-1"))
        at += size
    assert at == len(data), "the last box goes over the end"
    return names


def is_webp(data):
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def is_jpeg(data):
    return data[:3] == b"\xff\xd8\xff" and data[-2:] == b"\xff\xd9"


# ---- certificates ----

def make_certificate(folder, name, *options):
    """A self-made certificate for 127.0.0.1: (certificate, key)."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    done = run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate),
               "-keyout", str(key), *options)
    assert done.returncode == 0, done.stderr
    return str(certificate), str(key)


def trust(certificate):
    return ssl.create_default_context(cafile=certificate)


# ---- webhooks ----

class Delivery:
    def __init__(self, path, headers, body):
        self.path, self.body = path, body
        self.headers = {name.lower(): text for name, text in headers.items()}
        self.at = time.monotonic()

    @property
    def event(self):
        return json.loads(self.body)


class Receiver:
    """A receiver of webhooks. `script` maps a path to the statuses it answers with, one after the other, the last one
    from then on; 0 is no answer until close()."""

    def __init__(self, port=0):
        self.deliveries, self.script = [], {}
        self.lock, self.over = threading.Lock(), threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                receiver.take(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        remember(self)

    def take(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self.lock:
            self.deliveries.append(Delivery(request.path, request.headers, body))
            statuses = self.script.get(request.path, [200])
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status == 0:
            self.over.wait(PATIENCE)
            request.close_connection = True
            return
        request.send_response(status)
        if 300 <= status < 400:
            request.send_header("Location", "/landing")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def at(self, path):
        with self.lock:
            return [d for d in self.deliveries if d.path == path]

    def await_count(self, path, count, patience=PATIENCE):
        wait_for(f"{count} deliveries at {path}", lambda: len(self.at(path)) >= count, patience)
        return self.at(path)

    def url(self, path):
        return f"http://{self.address}{path}"

    def close(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


# ---- metrics ----

SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def samples(text):
    """[(name, {label: value}, number)]"""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            found.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return found


def value(text, name, **labels):
    """Sum of the samples of this name that have these labels."""
    return sum(number for sample, has, number in samples(text)
               if sample == name and all(has.get(k) == v for k, v in labels.items()))
