#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the server, its workers and both with SIGKILL while jobs are submitted, and checks what it promises:

  nothing acknowledged is lost, nothing is made twice, and every video has the bytes of an undisturbed run.

    tests/kill/kill.py                       every named point once, then random kills, 500 in all
    tests/kill/kill.py --kills 5000 --log F  a campaign; one line of JSON per kill

Each job has an Idempotency-Key. A client that got no answer asks again with the same key, as the real ones do. Equal
requests must give equal bytes, so jobs are drawn from a few requests, whose bytes an undisturbed server made first.
Standard library only; devices are the fake one, whose every byte depends on the request alone (server/runner_fake.c).
"""
import argparse
import hashlib
import http.client
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
SECONDS_MAX = 90  # for everything to end once the killing is over


def points():
    """The names in base/point.h."""
    return re.findall(r"X\((\w+)\)\s+/\*", (ROOT / "base/point.h").read_text())


class Server:
    """One data directory and the process that has it now."""

    def __init__(self, folder, device="fake:text_ms=1,step_ms=2,decode_ms=1", devices=2):
        self.folder, self.device, self.devices = Path(folder), device, devices
        self.process, self.address, self.port = None, None, None
        (self.folder / "models").mkdir(exist_ok=True)
        model = self.folder / "models/small"
        if not model.exists():
            model.symlink_to(ROOT / "tests/golden/wan21-small/model")

    def start(self, point=None, **settings):
        environment = dict(os.environ)
        environment.pop("KINORA_KILL_AT", None)
        if point:
            environment["KINORA_KILL_AT"] = point
        command = [KINORA, "serve", "--models", str(self.folder / "models"), "--data", str(self.folder / "data"),
                   "--listen", "127.0.0.1:0", "--json", "--checkpoint-interval-ms", "0", "--log-level", "warning"]
        for _ in range(self.devices):
            command += ["--device", self.device]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
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

    def __init__(self, server, jobs, name, rate):
        super().__init__(daemon=True)
        self.server, self.jobs, self.name, self.rate = server, jobs, name, rate
        self.stopping = False

    def run(self):
        number = 0
        while not self.stopping:
            key, kind = f"{self.name}-{number}", number % REQUESTS
            with self.jobs.lock:
                self.jobs.wanted[key] = kind
            while not self.jobs.submit(self.server, key, kind):
                if self.stopping:
                    return
                time.sleep(0.02)
            number += 1
            time.sleep(self.rate)


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


def check(server, jobs, sums):
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
    # Whoever was killed before the answer may have made a job nobody knows of yet; asking again names it.
    unknown = set(listed) - known
    for key, kind in jobs.wanted.items():
        if key not in jobs.acknowledged and jobs.submit(server, key, kind):
            unknown.discard(jobs.acknowledged[key])
    for identifier in unknown:
        jobs.problem(f"{identifier} was made for nobody")


def leftovers(server):
    """Files that no row names, after the sweep."""
    data, videos = server.folder / "data", {}
    status, body = server.ask("GET", "/v1/videos?limit=100")
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
        until = time.monotonic() + 5
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
    clients = [Load(server, jobs, f"c{given.seed}-{i}", 0.25) for i in range(3)]
    started = time.monotonic()
    missed = []
    server.port = 1  # nothing answers there until it is up
    for client in clients:
        client.start()
    todo = [(name, n) for name in points() for n in (1, 2)]
    for name, n in todo:
        before = kills["point"]
        one_round(server, jobs, choice, f"{name}:{n}", write)
        if kills["point"] == before:
            missed.append(f"{name}:{n}")
    while sum(kills.values()) < given.kills:
        one_round(server, jobs, choice, None, write)
    for client in clients:
        client.stopping = True
    for client in clients:
        client.join(30)
    server.start()
    wait_for_ready(server)
    check(server, jobs, sums)
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
