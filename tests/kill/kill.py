#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the server, its workers and both with SIGKILL while jobs are submitted, and checks what it promises:

  nothing acknowledged is lost, nothing is made twice, and every video has the bytes of an undisturbed run.

    tests/kill/kill.py                       every named point once, then random kills, 500 in all
    tests/kill/kill.py --kills 5000 --log F  a campaign; one line of JSON per kill
    tests/kill/kill.py ... --minutes N       no kill later than that; everything is checked all the same

Each job has an Idempotency-Key. A client that got no answer asks again with the same key, as the real ones do. Equal
requests must give equal bytes, so jobs are drawn from a few requests, whose bytes an undisturbed server made first.
Standard library only; devices are the fake one, whose every byte depends on the request alone (server/runner_fake.c).
"""
import argparse
import hashlib
import http.client
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KINORA = os.environ.get("KINORA", str(ROOT / "build/release/kinora"))
REQUESTS = 8  # different ones
BACKLOG = 60  # jobs that wait, at most: a campaign's rounds stay as long as its first ones
SECONDS_MAX = 300  # for everything to end once the killing is over; a busy machine takes its time


def points():
    """The names in base/point.h."""
    return re.findall(r"X\((\w+)\)\s+/\*", (ROOT / "base/point.h").read_text())


class Server:
    """One data directory and the process that has it now."""

    def __init__(self, folder, device="fake:text_ms=1,step_ms=2,decode_ms=1", devices=2):
        self.folder, self.device, self.devices = Path(folder), device, devices
        self.process, self.port, self.hook = None, None, None
        (self.folder / "models").mkdir(exist_ok=True)
        model = self.folder / "models/small"
        if not model.exists():
            model.symlink_to(ROOT / "tests/golden/wan21-small/model")

    def start(self, point=None):
        environment = dict(os.environ)
        environment.pop("KINORA_KILL_AT", None)
        if point:
            environment["KINORA_KILL_AT"] = point
        command = [KINORA, "serve", "--models", str(self.folder / "models"), "--data", str(self.folder / "data"),
                   "--listen", "127.0.0.1:0", "--json", "--checkpoint-interval-ms", "0", "--log-level", "warning",
                   "--job-attempts-max", "100"]  # these deaths are not the jobs' fault
        for _ in range(self.devices):
            command += ["--device", self.device]
        if self.hook:
            command += ["--webhook-development", "true", "--webhook-allow", f"127.0.0.1:{self.hook}"]
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        log.close()
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            return False  # killed on its way up
        self.port = int(json.loads(line)["addresses"][0].rsplit(":", 1)[1])
        return True

    def workers(self):
        children = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rsplit(")", 1)[1].split()
                command = (status.parent / "cmdline").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            if int(fields[1]) == self.process.pid and len(command) > 1 and b"worker" in command[0:2]:
                children.append(int(status.parent.name))
        return children

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code

    def ask(self, method, path, body=None, headers=None, timeout=20):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def request(kind):
    return {"prompt": f"ball number {kind}", "size": "64x64", "num_frames": 9, "num_inference_steps": 6, "seed": kind}


class Jobs:
    """What clients were promised."""

    def __init__(self):
        self.lock = threading.Lock()
        self.wanted = {}  # key -> kind, in the order of asking
        self.acknowledged = {}  # key -> id
        self.problems = []

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    def submit(self, server, key, kind):
        """True once it is acknowledged."""
        try:
            status, body = server.ask("POST", "/v1/videos", request(kind), {"Idempotency-Key": key})
        except (OSError, http.client.HTTPException, ValueError):
            return False
        if status == 503 or status == 429:
            return False
        if status != 200:
            self.problem(f"{key}: submit was answered {status} {body[:200]!r}")
            return False
        identifier = json.loads(body)["id"]
        with self.lock:
            known = self.acknowledged.setdefault(key, identifier)
            if known != identifier:
                self.problems.append(f"{key}: acknowledged as {known} and as {identifier}")
        return True


class Load(threading.Thread):
    """A client: a job after the other, each until it is acknowledged."""

    def __init__(self, server, jobs, receiver, name, rate):
        super().__init__(daemon=True)
        self.server, self.jobs, self.receiver, self.name, self.rate = server, jobs, receiver, name, rate
        self.stopping = False

    def wait_for_room(self):
        while len(self.jobs.acknowledged) - len(self.receiver.videos) > BACKLOG and not self.stopping:
            time.sleep(0.1)

    def run(self):
        number = 0
        while not self.stopping:
            self.wait_for_room()
            key, kind = f"{self.name}-{number}", number % REQUESTS
            with self.jobs.lock:
                self.jobs.wanted[key] = kind
            while not self.jobs.submit(self.server, key, kind):
                if self.stopping:
                    return
                time.sleep(0.02)
            number += 1
            time.sleep(self.rate)


class Fickle(threading.Thread):
    """A client that changes its mind: cancels or deletes what it has just asked for. What was acknowledged holds."""

    def __init__(self, server, jobs, seed):
        super().__init__(daemon=True)
        self.server, self.jobs, self.choice = server, jobs, random.Random(seed)
        self.stopping, self.deleted, self.cancelled = False, set(), set()

    def run(self):
        number = 0
        while not self.stopping:
            key, kind = f"fickle-{number}", number % REQUESTS
            number += 1
            with self.jobs.lock:
                self.jobs.wanted[key] = kind
            while not self.jobs.submit(self.server, key, kind):
                if self.stopping:
                    return
                time.sleep(0.02)
            identifier = self.jobs.acknowledged.pop(key)
            with self.jobs.lock:
                del self.jobs.wanted[key]
            self.change(identifier, self.choice.random() < 0.5)
            time.sleep(0.1)

    def change(self, identifier, delete):
        method, path = ("DELETE", "") if delete else ("POST", "/cancel")
        while not self.stopping:
            try:
                status, _ = self.server.ask(method, f"/v1/videos/{identifier}{path}")
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
                continue
            if delete and status in (200, 404):  # 404: deleted by the try whose answer was lost
                self.deleted.add(identifier)
                return
            if not delete and status in (200, 409):  # 409: completed before
                self.cancelled.add(identifier)
                return
            if status not in (503, 429):
                self.jobs.problem(f"{identifier}: {method} was answered {status}")
                return
            time.sleep(0.02)
        self.cancelled.add(identifier)

    def check(self, server):
        for identifier in self.deleted:
            status, _ = server.ask("GET", f"/v1/videos/{identifier}")
            if status != 404:
                self.jobs.problem(f"{identifier} was deleted and is answered {status}")
        for identifier in self.cancelled:
            wait_for_video(server, identifier)


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks and remembers whose."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hook)
        self.videos, self.events = {}, {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        video, event = body["data"]["id"], self.headers["webhook-id"]
        self.server.videos.setdefault(video, set()).add(event)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def check_webhooks(receiver, jobs):
    """Every completed video's event arrived at least once, always under the same id."""
    until = time.monotonic() + 30
    missing = set(jobs.acknowledged.values())
    while missing and time.monotonic() < until:
        missing -= set(receiver.videos)
        time.sleep(0.2)
    for identifier in list(missing)[:5]:
        jobs.problem(f"{identifier}: no webhook ({len(missing)} are missing)")
    for identifier, events in receiver.videos.items():
        if len(events) != 1:
            jobs.problem(f"{identifier}: its event came under {len(events)} ids")


def wait_for_ready(server, seconds=30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if server.ask("GET", "/readyz", timeout=2)[0] == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        if server.process.poll() is not None:
            return False
        time.sleep(0.02)
    return False


def undisturbed(folder):
    """The bytes of every request, made by a server nobody kills."""
    server, jobs, sums = Server(folder), Jobs(), {}
    server.start()
    for kind in range(REQUESTS):
        if not jobs.submit(server, f"u-{kind}", kind):
            raise SystemExit(f"the undisturbed server refused a job: {jobs.problems}")
    for kind in range(REQUESTS):
        sums[kind] = wait_for_video(server, jobs.acknowledged[f"u-{kind}"])
        if len(sums[kind]) != 64:
            raise SystemExit(f"the undisturbed server failed: {sums[kind]}")
    if server.stop() != 0:
        raise SystemExit("the undisturbed server did not drain")
    return sums


def wait_for_video(server, identifier, seconds=SECONDS_MAX):
    """SHA-256 of the video, or what went wrong."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        status, body = server.ask("GET", f"/v1/videos/{identifier}")
        if status != 200:
            return f"{status} {body[:200]!r}"
        video = json.loads(body)
        if video["status"] == "completed":
            status, body = server.ask("GET", f"/v1/videos/{identifier}/content")
            return hashlib.sha256(body).hexdigest() if status == 200 else f"content {status}"
        if video["status"] == "failed":
            return f"failed: {video['error']}"
        time.sleep(0.02)
    return "did not end"


def check(server, jobs, fickle, sums):
    """Everything that was acknowledged is there, once, with the right bytes."""
    for key, identifier in jobs.acknowledged.items():
        found = wait_for_video(server, identifier)
        if found != sums[jobs.wanted[key]]:
            jobs.problem(f"{key} ({identifier}): {found}, not {sums[jobs.wanted[key]]}")
    listed, after = [], None
    while True:
        status, body = server.ask("GET", "/v1/videos?limit=100&order=asc" + (f"&after={after}" if after else ""))
        page = json.loads(body)
        listed += [video["id"] for video in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    known = set(jobs.acknowledged.values())
    if len(known) != len(jobs.acknowledged):
        jobs.problem("two keys were acknowledged as one video")
    if len(listed) != len(set(listed)):
        jobs.problem("a video is listed twice")
    for identifier in known - set(listed):
        jobs.problem(f"{identifier} is not listed")
    unknown = set(listed) - known - fickle.cancelled
    # Whoever was killed before the answer may have made a job nobody knows of yet; asking again names it.
    for key, kind in list(jobs.wanted.items()):
        if key not in jobs.acknowledged and jobs.submit(server, key, kind):
            unknown.discard(jobs.acknowledged[key])
    for identifier in unknown:
        jobs.problem(f"{identifier} was made for nobody")


def leftovers(server):
    """Files that no row names, after the sweep."""
    data = server.folder / "data"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        left = [p.name for p in (data / "checkpoints").iterdir()] + [
            p.name for p in (data / "blobs").iterdir() if p.name.endswith(".tmp")]
        if not left:
            return []
        time.sleep(0.5)
    return left


def one_round(server, jobs, choice, point, write):
    """Starts, lets it work for a moment, kills."""
    came_up = server.start(point)
    if not came_up:
        write({"kill": "point", "point": point, "when": "start"})
        return
    if point:
        if point.startswith("drain"):
            server.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 4
        while server.process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        hit = server.process.poll() is not None
        server.kill()
        write({"kill": "point" if hit else "server", "point": point, "hit": hit})
        return
    time.sleep(choice.uniform(0.01, 0.25))
    victim = choice.choice(["server", "worker", "worker", "both"])
    workers = server.workers() if victim != "server" else []
    for pid in workers[:1 if victim == "worker" else len(workers)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if victim == "worker":
        time.sleep(choice.uniform(0.01, 0.15))
        write({"kill": "worker", "pids": workers[:1]})
    server.kill()
    write({"kill": "both" if victim == "both" else "server"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", help="file for one line of JSON per kill")
    parser.add_argument("--keep", action="store_true", help="keep the data directories")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kinora-kill-"))
    log = open(given.log, "w") if given.log else None
    kills = {"point": 0, "server": 0, "worker": 0, "both": 0}

    def write(record):
        kills[record["kill"]] += 1
        if log:
            log.write(json.dumps(record) + "\n")
            log.flush()

    (folder / "calm").mkdir()
    (folder / "storm").mkdir()
    sums = undisturbed(folder / "calm")
    server, jobs, choice = Server(folder / "storm"), Jobs(), random.Random(given.seed)
    fickle, receiver = Fickle(server, jobs, given.seed), Receiver()
    clients = [Load(server, jobs, receiver, f"c{given.seed}-{i}", 0.25) for i in range(3)] + [fickle]
    started = time.monotonic()
    missed = []
    server.hook = receiver.server_address[1]
    server.start()
    status, body = server.ask("POST", "/v1/webhook_endpoints", {"url": f"http://127.0.0.1:{server.hook}/hook"})
    if status != 200:
        raise SystemExit(f"no webhook endpoint: {body!r}")
    for client in clients:
        client.start()
    server.kill()
    # A drain begins once in a process's life.
    todo = [(name, n) for name in points() for n in (1, 2) if (name, n) != ("drain", 2)]
    for name, n in todo:
        before = kills["point"]
        one_round(server, jobs, choice, f"{name}:{n}", write)
        if kills["point"] == before:
            missed.append(f"{name}:{n}")
    while sum(kills.values()) < given.kills and time.monotonic() - started < given.minutes * 60:
        one_round(server, jobs, choice, None, write)
    for client in clients:
        client.stopping = True
    for client in clients:
        client.join(30)
    server.start()
    wait_for_ready(server)
    check(server, jobs, fickle, sums)
    fickle.check(server)
    check_webhooks(receiver, jobs)
    left = leftovers(server)
    if left:
        jobs.problem(f"files nobody owns: {left[:5]}")
    if server.stop() != 0:
        jobs.problem("the last server did not drain")
    seconds = time.monotonic() - started
    print(f"{sum(kills.values())} kills ({', '.join(f'{v} {k}' for k, v in kills.items())}) in {seconds:.0f} s, "
          f"{len(jobs.acknowledged)} jobs acknowledged, points not reached: {', '.join(missed) or 'none'}")
    for problem in jobs.problems[:20]:
        print(f"FAILED {problem}")
    if not given.keep and not jobs.problems:
        shutil.rmtree(folder)
    elif jobs.problems or given.keep:
        print(f"kept in {folder}")
    tests = 3
    failed = min(tests, len(jobs.problems))
    print(f"{tests - failed} passed, {failed} failed")
    return 1 if jobs.problems else 0


if __name__ == "__main__":
    sys.exit(main())
