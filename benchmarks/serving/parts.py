# SPDX-License-Identifier: Apache-2.0
"""What a server promises under load, a function each. Each takes a Given and returns rows; a row has the measured value
beside its target and, where there is one, the bound the machine sets. Nothing is asserted here: tests/load/load.py
asserts what must hold on any machine."""
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import harness
from harness import JOB, PAUSED, Server, finish_load, quantile

MEBI = 2**20
SLOW_SYNC_MS = 3


@dataclass
class Given:
    """How much of everything. The defaults are the full form."""
    folder: Path  # data directories are made below
    server_core: int = None  # None: not pinned
    load_core: int = None
    submit_seconds: float = 10
    submit_slices: int = 8
    get_seconds: float = 5
    get_jobs: int = 1000
    repeats: int = 3
    pause: float = 2  # between repeats
    peak_seconds: float = 5  # each rate of the search
    overload_seconds: float = 60
    cancels: int = 200
    soak_jobs: int = 50000
    soak_round: int = 1000
    soak_kept: int = None  # finished jobs in memory; None: the server's default
    stored: int = 1000000
    kills: int = 5
    stops: int = 2
    decisions: int = 2000000
    simulated: int = 2000  # requests of a trace


def row(part, what, value, unit, *, target=None, most=True, bound=None, of_bound=None, **detail):
    """A measured value. `target`: at most, or at least, so much; `of_bound`: the target is this part of the bound."""
    if of_bound is not None:
        target = of_bound * bound
    met = None if target is None else value <= target if most else value >= target
    return {"part": part, "what": what, "value": value, "unit": unit, "target": target, "most": most, "met": met,
            "bound": bound, "load_average": os.getloadavg()[0], **detail}


def answered(report, status="200"):
    return report["statuses"].get(status, {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0})


def median(values):
    return quantile(values, 0.5)


# ---- 1: durable submits ----

class Submits:
    """Sums over slices of load, and of the disk's own rate between them, so that both see the same disk."""

    def __init__(self, sync_ms):
        self.sync_ms, self.fsyncs, self.of_size, self.reports = sync_ms, [], [], []
        self.commits = self.operations = self.written = self.cpu = 0

    def slice(self, server, count, seconds):
        pid, data = server.process.pid, server.folder / "data"
        self.fsyncs += harness.time_fsyncs(data, 4096, 0.4, self.sync_ms)
        before, written, cpu = server.status(), harness.written_bytes(pid), harness.cpu_seconds(pid)
        self.reports.append(server.load("POST", "/v1/videos", JOB, connections=64, count=count, seconds=seconds))
        cpu, written = harness.cpu_seconds(pid) - cpu, harness.written_bytes(pid) - written
        after = server.status()
        commits = after["commits"] - before["commits"]
        self.cpu, self.written, self.commits = self.cpu + cpu, self.written + written, self.commits + commits
        self.operations += after["operations"] - before["operations"]
        size = max(4096, written // max(1, commits) // 4096 * 4096)
        self.of_size += harness.time_fsyncs(data, size, 0.4, self.sync_ms)

    def rows(self, what, lost):
        good = [answered(report) for report in self.reports]
        seconds = sum(report["seconds"] for report in self.reports)
        done, asked = sum(g["count"] for g in good), sum(report["requests"] for report in self.reports)
        rate, batch = 1e3 * len(self.fsyncs) / sum(self.fsyncs), self.operations / max(1, self.commits)
        detail = {"fsyncs_per_second": rate, "fsync_p99_ms": quantile(self.fsyncs, 0.99), "batch": batch,
                  "bytes_per_commit": self.written / max(1, self.commits),
                  "fsyncs_of_that_size_per_second": 1e3 * len(self.of_size) / sum(self.of_size),
                  "fsync_of_that_size_p99_ms": quantile(self.of_size, 0.99), "slowed_by_ms": self.sync_ms,
                  "commits_per_second": self.commits / seconds, "cores_busy": self.cpu / seconds,
                  "reports": self.reports}
        return [row("submit", what, done / seconds, "/s", most=False, bound=rate * batch, of_bound=0.8, **detail),
                row("submit", f"{what}, p50, median of {len(good)} slices", median([g["p50_ms"] for g in good]), "ms"),
                row("submit", f"{what}, p99, median of {len(good)} slices", median([g["p99_ms"] for g in good]), "ms",
                    target=10),
                row("submit", f"{what}, CPU time of the server a request", 1e6 * self.cpu / max(1, asked), "us"),
                row("submit", f"{what}, acknowledged jobs that are not in the queue", lost(done), "", target=0)]


def submit(given):
    """64 clients submit without a pause to a queue that nothing leaves. Each acknowledgement waits for an fsync that is
    shared by all who came meanwhile, so the disk allows its fsync rate x operations of a commit. Where that is more
    than the processors can do, it says little; so there is a second run on a disk that is slowed down."""
    rows = []
    runs = ((0, "durable submits, 64 clients"), (SLOW_SYNC_MS, f"the same, syncs {SLOW_SYNC_MS} ms longer"))
    for sync_ms, what in runs:
        folder = given.folder / f"submit-{sync_ms}"
        with Server(folder, [PAUSED], ["--queue-max", 65000], sync_ms=sync_ms) as server:
            server.wait_ready()
            warm = server.load("POST", "/v1/videos", JOB, connections=64, seconds=1, count=2000)
            submits = Submits(sync_ms)
            for _ in range(given.submit_slices):
                submits.slice(server, 60000 // given.submit_slices, given.submit_seconds / given.submit_slices)
            queue = server.queue()
            queued = queue["queued"] + queue["running"] - answered(warm)["count"]
            rows += submits.rows(what, lambda done, queued=queued: abs(done - queued))
    return rows


# ---- 2: polls ----

def finished_jobs(server, count):
    server.wait_ready()
    keep = server.folder / "ids"
    server.load("POST", "/v1/videos", JOB, connections=8, count=count, seconds=600, keep=keep)
    if server.wait_empty(600) is None:
        raise RuntimeError("the jobs did not end")
    return keep


def polls(given, server, ids, what):
    """The rate of a closed loop on one core, then the latency of an open loop at half of it. Pauses between: a
    processor that real-time processes have had for a second is taken from them for a while."""
    pid, closed, opened, costs = server.process.pid, [], [], []
    for _ in range(given.repeats):
        time.sleep(given.pause)
        cpu = harness.cpu_seconds(pid)
        closed.append(server.load("GET", "/v1/videos/{}", core=given.load_core, connections=64,
                                  seconds=given.get_seconds, ids=ids))
        costs.append(1e6 * (harness.cpu_seconds(pid) - cpu) / closed[-1]["requests"])
    best = max(closed, key=lambda report: report["per_second"])
    for _ in range(given.repeats):
        time.sleep(given.pause)
        opened.append(server.load("GET", "/v1/videos/{}", core=given.load_core, connections=64,
                                  seconds=given.get_seconds, ids=ids, rate=best["per_second"] / 2))
    wrong = sum(report["requests"] - answered(report)["count"] for report in closed + opened)
    return [row("poll", f"GET of {what}, one core, best of {given.repeats}", best["per_second"], "/s", most=False,
                target=50000, reports=closed),
            row("poll", f"GET of {what}, CPU time of the server a request", min(costs), "us", target=20),
            row("poll", f"GET of {what} at half of that, p99, median of {given.repeats}",
                median([answered(report)["p99_ms"] for report in opened]), "ms", target=2, reports=opened),
            row("poll", f"GET of {what}, answers other than 200", wrong, "", target=0)]


def poll(given):
    rows = []
    with Server(given.folder / "poll", ["fake", "fake"], core=given.server_core) as server:
        rows += polls(given, server, finished_jobs(server, given.get_jobs), "finished jobs")
    with Server(given.folder / "wait", [PAUSED], core=given.server_core) as server:
        server.wait_ready()
        keep = server.folder / "ids"
        server.load("POST", "/v1/videos", JOB, connections=8, count=given.get_jobs, seconds=60, keep=keep)
        rows += polls(given, server, keep, "waiting jobs")
    return rows


# ---- 3: overload ----

SATURATING = 1.5  # x the peak
OVERLOAD_DEVICES = ["fake:step_ms=5,decode_ms=1"] * 2
RESIDENT_CAP = 256 * MEBI  # of the server process: 128 MiB of finished jobs, and twice what all the rest needs


def goodput(server, rate, seconds, core):
    """Completed jobs a second while so many are offered, after the first quarter of the time."""
    load = server.begin_load("POST", "/v1/videos", JOB, core=core, connections=64, seconds=seconds, rate=rate)
    time.sleep(seconds / 4)
    began, before = time.monotonic(), server.completed()
    time.sleep(seconds * 0.7)
    done = (server.completed() - before) / (time.monotonic() - began)
    return done, finish_load(load)


def find_peak(server, seconds, core):
    """Doubles the offered rate until that brings nothing more."""
    peak, rate, best = 0.0, 50, 50
    while rate <= 6400:
        done, _ = goodput(server, rate, seconds, core)
        if done > peak * 1.03:
            peak, best = done, rate
        if done < rate * 0.7 and rate > 2 * best:
            break
        rate *= 2
    return peak


class Watch(threading.Thread):
    """The largest resident memory of a process, looked at ten times a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.stopping = pid, 0, False

    def run(self):
        while not self.stopping:
            self.peak = max(self.peak, harness.memory(self.pid)[0])
            time.sleep(0.1)


def normal_again(server):
    """Seconds until the queue is empty and a new job is taken at once; None: not within half a minute."""
    began = time.monotonic()
    if server.wait_empty(30) is None or server.ask("POST", "/v1/videos", JOB)[0] != 200:
        return None
    return time.monotonic() - began


def overload(given):
    """Ten times what can be done is offered. The queue is bounded by two seconds of work at the peak, which is measured
    again on the same server, saturated, right before and after: a disk or a machine that others use swings."""
    with Server(given.folder / "peak", OVERLOAD_DEVICES) as server:
        server.wait_ready()
        peak = find_peak(server, given.peak_seconds, given.load_core)
    with Server(given.folder / "overload", OVERLOAD_DEVICES, ["--queue-max", max(64, int(2 * peak))]) as server:
        server.wait_ready()
        keep, watch = server.folder / "ids", Watch(server.process.pid)
        watch.start()
        saturated = [goodput(server, SATURATING * peak, given.overload_seconds / 4, given.load_core)[0]]
        server.wait_empty(30)
        load = server.begin_load("POST", "/v1/videos", JOB, core=given.load_core, connections=64, rate=10 * peak,
                                 seconds=given.overload_seconds, keep=keep)
        time.sleep(min(2.0, given.overload_seconds / 4))
        began, before = time.monotonic(), server.completed()
        time.sleep(given.overload_seconds - min(2.0, given.overload_seconds / 4) - 0.5)
        done = (server.completed() - before) / (time.monotonic() - began)
        report = finish_load(load)
        recovery = normal_again(server)
        saturated.append(goodput(server, SATURATING * peak, given.overload_seconds / 4, given.load_core)[0])
        watch.stopping = True
        server.wait_empty(30)
        states = server.all_states()
        kept = keep.read_text().split()
    lost = sum(states.get(identifier) != "completed" for identifier in kept)
    rejected = {status: figures for status, figures in report["statuses"].items() if status != "200"}
    slowest = max((figures["p99_ms"] for figures in rejected.values()), default=0.0)
    odd = sum(figures["count"] for status, figures in rejected.items() if status not in ("429", "503"))
    return [row("overload", "peak goodput, as it was looked for", peak, "jobs/s"),
            row("overload", "goodput at 10 x, beside the peak before and after", done, "jobs/s", most=False,
                bound=sum(saturated) / 2, of_bound=0.95, report=report, offered=10 * peak, peaks=saturated),
            row("overload", "rejects, p99", slowest, "ms", target=10),
            row("overload", "rejects without Retry-After, other answers, broken connections",
                report["without_retry_after"] + odd + report["broken"], "", target=0),
            row("overload", "acknowledged jobs", len(kept), ""),
            row("overload", "acknowledged jobs that did not complete", lost, "", target=0),
            row("overload", "resident memory at most", watch.peak / MEBI, "MiB", target=RESIDENT_CAP / MEBI),
            row("overload", "normal again after", recovery if recovery is not None else 999.0, "s", target=5)]


# ---- 4: cancel ----

def spread(part, what, values, target):
    """Rows of a distribution in milliseconds."""
    detail = {"count": len(values), "p50_ms": quantile(values, 0.5), "p90_ms": quantile(values, 0.9),
              "max_ms": max(values)}
    return row(part, f"{what}, p99 of {len(values)}", quantile(values, 0.99), "ms", target=target, **detail)


def timed_cancel(server, identifier, connection):
    """Milliseconds until a cancellation is acknowledged, which is when it is durable; and whether it was one."""
    began = time.monotonic()
    status, _, video = server.ask("POST", f"/v1/videos/{identifier}/cancel", None, connection)
    good = status == 200 and video["status"] == "failed" and video["error"]["code"] == "cancelled"
    return 1e3 * (time.monotonic() - began), good


def cancel_queued(given):
    with Server(given.folder / "cancel", [PAUSED]) as server, closing(server.connect()) as connection:
        server.wait_ready()
        ids = [server.submit(connection=connection) for _ in range(given.cancels + 64)]
        time.sleep(0.2)
        waiting = [i for i in ids if server.video(i, connection)["status"] == "queued"][:given.cancels]
        times = [timed_cancel(server, identifier, connection) for identifier in waiting]
    return times


def cancel_running(given, step_ms):
    """A few at a time, each at a random moment of its slice."""
    times, choice = [], random.Random(1)
    device = f"fake:step_ms={step_ms}"
    with Server(given.folder / "stop", [device] * 2) as server, closing(server.connect()) as connection:
        server.wait_ready()
        while len(times) < given.cancels:
            ids = [server.submit({**JOB, "num_inference_steps": 200}, connection) for _ in range(8)]
            for identifier in ids:
                server.wait(lambda: server.video(identifier, connection)["status"] == "in_progress", 30)
                time.sleep(choice.uniform(0, step_ms / 1e3))
                times.append(timed_cancel(server, identifier, connection))
    return times[:given.cancels]


def cancel(given):
    step_ms = 100
    queued, running = cancel_queued(given), cancel_running(given, step_ms)
    return [spread("cancel", "a queued job", [ms for ms, _ in queued], 50),
            spread("cancel", f"a running job, slices of {step_ms} ms", [ms for ms, _ in running], step_ms + 250),
            row("cancel", "cancellations that were none",
                sum(not good for _, good in queued + running) + 2 * given.cancels - len(queued) - len(running), "",
                target=0)]


# ---- 5: soak ----

def slope(points):
    """Bytes a job: the median of the slopes between all pairs of (jobs, bytes) (Theil and Sen), which a point that
    stands out does not move."""
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(points) for b in points[i + 1:])
    return slopes[len(slopes) // 2] if slopes else 0.0


def touch(server, ids, choice):
    """What clients do with jobs beside submitting and polling them."""
    with closing(server.connect()) as connection:
        for identifier in choice.sample(ids, min(20, len(ids))):
            for path in ("", "/content", "/content?variant=thumbnail", "/events"):
                server.ask("GET", f"/v1/videos/{identifier}{path}", None, connection)
        server.ask("GET", "/v1/videos?limit=100", None, connection)
        server.ask("GET", "/metrics", None, connection)
        server.ask("GET", "/v1/videos/video_none", None, connection)
        server.ask("POST", "/v1/videos", {"prompt": ""}, connection)


def soak_point(server, done):
    resident, anonymous = harness.memory(server.process.pid)
    found = harness.least_descriptors(server.process.pid)
    return {"jobs": done, "resident": resident, "anonymous": anonymous,
            "allocated": server.metric("kinora_memory_bytes", 'owner="kinora"'),
            "sqlite": server.metric("kinora_memory_bytes", 'owner="sqlite"'),
            "descriptors": found.total(), "open": found, "threads": harness.threads(server.process.pid),
            "workers_anonymous": [harness.memory(worker)[1] for worker in server.workers()]}


def soak(given):
    """Rounds of jobs from submit to content; every figure is taken between two rounds, when nothing runs, and slopes
    from the moment on at which the table of finished jobs is full. Resident memory also grows until SQLite's caches are
    full, 16 MiB and 2 MiB for each reader, which takes some 20,000 jobs; what the server itself has allocated shows
    a leak in a short run too."""
    options = ["--queue-max", given.soak_round + 64]
    kept = given.soak_kept or 20000
    if given.soak_kept:
        options += ["--finished-max", given.soak_kept]
    points, keep, choice, done, failed = [], given.folder / "soak.ids", random.Random(1), 0, 0
    with Server(given.folder / "soak", ["fake", "fake"], options) as server:
        server.wait_ready()
        pid, began = server.process.pid, time.monotonic()
        while done < given.soak_jobs:
            count = min(given.soak_round, given.soak_jobs - done)
            report = server.load("POST", "/v1/videos", JOB, connections=16, count=count, seconds=600, keep=keep)
            if server.wait_empty(600) is None:
                raise RuntimeError("the jobs did not end")
            ids = keep.read_text().split()
            touch(server, ids, choice)
            done += count
            failed += count - answered(report)["count"]
            time.sleep(0.5)  # workers that rest give back what encoders left
            points.append(soak_point(server, done))
        seconds = time.monotonic() - began
        failed += done - int(server.completed())
    warm = [p for p in points if p["jobs"] > kept + given.soak_round] or points[len(points) // 2:]

    def gain(read):
        return slope([(p["jobs"], read(p)) for p in warm])
    workers = [gain(lambda p, i=i: p["workers_anonymous"][i]) for i in range(len(warm[0]["workers_anonymous"]))]
    return [row("soak", f"jobs, {done} in all", done / seconds, "/s"),
            row("soak", "jobs that did not complete", failed, "", target=0),
            row("soak", f"resident memory a job, from job {warm[0]['jobs']} on", gain(lambda p: p["resident"]), "B",
                target=1, points=points),
            row("soak", "allocated by the server a job", gain(lambda p: p["allocated"]), "B", target=1),
            row("soak", "anonymous memory of a worker a job, the worse one", max(workers), "B", target=1),
            row("soak", "descriptors gained", gained(warm, "descriptors"), "", target=0, first=warm[0]["open"],
                last=warm[-1]["open"]),
            row("soak", "threads gained", gained(warm, "threads"), "", target=0)]


def gained(points, name):
    """From the first half to the second, each at its least."""
    half = len(points) // 2 or 1
    return min(p[name] for p in points[-half:]) - min(p[name] for p in points[:half])


# ---- 6: start ----

def fill_store(path, count):
    """Copies the one finished job of a store `count` times, with its two records of the audit log. Hashes are copied
    too, so the chain does not verify; nothing at a start looks at it."""
    with closing(sqlite3.connect(path)) as store:
        def copy(table, replaced, order):
            names = [column[1] for column in store.execute(f"PRAGMA table_info({table})")]
            values = [replaced.get(name, name) for name in names]
            store.execute(f"INSERT INTO {table}({', '.join(names)}) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT"
                          f" i + 1 FROM n WHERE i < {count}) SELECT {', '.join(values)} FROM n, (SELECT * FROM {table}"
                          f" ORDER BY {order} LIMIT {2 if table == 'audit' else 1}) AS t ORDER BY i, t.{order}")
        copy("jobs", {"seq": "seq + i", "id": "'video_' || printf('%032x', i)", "created_at": "created_at + i",
                      "completed_at": "completed_at + i"}, "seq")
        copy("audit", {"sequence": "NULL", "subject": "'video_' || printf('%032x', i)"}, "sequence")
        store.commit()
        return store.execute("SELECT count(*) FROM jobs WHERE state = 2").fetchone()[0]


def start(given):
    times = []
    server = Server(given.folder / "start", ["fake"], ["--retention-seconds", 10**7])
    server.start()
    finished_jobs(server, 1)
    server.stop()
    empty = server.started_in
    database = server.folder / "data/kinora.db"
    stored = fill_store(database, given.stored)
    for _ in range(given.repeats):
        server.start()
        times.append(server.started_in)
        found = server.ask("GET", f"/v1/videos/video_{given.stored // 2:032x}")
        newest = server.ask("GET", "/v1/videos?limit=1")[2]["data"]
        server.stop()
    wrong = stored - given.stored - 1 + (found[0] != 200) + (len(newest) != 1)
    return [row("start", f"to ready, {given.stored} finished jobs stored", max(times), "s", target=2,
                empty_store_seconds=empty, store_bytes=database.stat().st_size, seconds=times),
            row("start", "of them not to be found", wrong, "", target=0)]


# ---- 7: fault to truth ----

def fault(server, number):
    """Seconds until /readyz tells of a worker's death or stillness, and until it is ready again."""
    worker = server.workers()[0]
    connection = server.connect()
    began = time.monotonic()
    os.kill(worker, number)

    def ready():
        return server.ask("GET", "/readyz", None, connection)[0] == 200
    noticed = server.wait(lambda: not ready(), 60, 0.002)
    back = server.wait(ready, 60, 0.01)
    connection.close()
    return noticed, back, time.monotonic() - began


def faults(given):
    rows = []
    with Server(given.folder / "faults", ["fake:step_ms=20"], ["--job-attempts-max", 100]) as server:
        server.wait_ready()
        for name, number, count, target in (("killed", signal.SIGKILL, given.kills, 1),
                                            ("stopped", signal.SIGSTOP, given.stops, 10)):
            found = []
            for _ in range(count):
                server.submit({**JOB, "num_inference_steps": 50})
                server.wait(lambda: server.queue()["running"] > 0, 10)
                found.append(fault(server, number))
                server.wait_ready()
            rows.append(row("faults", f"worker {name}: readyz tells so after", worst(found, 0), "s", target=target,
                            seconds=[f[0] for f in found]))
            rows.append(row("faults", f"worker {name}: ready again after", worst(found, 1), "s", target=60,
                            seconds=[f[1] for f in found]))
        rows.append(row("faults", "jobs left unfinished", 0 if server.wait_empty(60) is not None else 1, "", target=0))
        states = server.all_states().values()
    rows.append(row("faults", "jobs that did not complete", sum(s != "completed" for s in states), "", target=0))
    return rows


# ---- 8: the scheduler's core ----

PLAIN = ("fifo", "sjf", "edf")


def simulate(*options):
    command = harness.placed([harness.KINORA, "simulate", "--json", *map(str, options)], None)
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def scheduler(given):
    """Decisions a second with 10,000 jobs queued, each with the event before it; and how many requests of the
    TetriServe-like mix are on time at each scale of deadlines, beside the best of the textbook policies."""
    timed = [simulate("--bench", "--decisions", given.decisions) for _ in range(given.repeats)]
    rows = [row("scheduler", f"decisions with 10,000 jobs queued, median of {given.repeats}",
                median([t["decisions_per_second"] for t in timed]), "/s", most=False, target=1e6, runs=timed)]
    runs = simulate("--jobs", given.simulated)["runs"]
    for scale in sorted({run["slo_scale"] for run in runs}):
        on_time = {run["policy"]: 100 * run["attainment"] for run in runs if run["slo_scale"] == scale}
        bound = next(100 * run["bound"] for run in runs if run["slo_scale"] == scale)
        rows.append(row("scheduler", f"on time at scale {scale}; target: the best of {', '.join(PLAIN)}",
                        on_time["kinora"], "%", most=False, target=max(on_time[name] for name in PLAIN), bound=bound,
                        policies=on_time))
    return rows


def worst(found, index):
    return max(999.0 if f[index] is None else f[index] for f in found)


LONG = ("soak", "start")  # and without times that depend on others
PARTS = {"submit": submit, "poll": poll, "overload": overload, "cancel": cancel, "soak": soak, "start": start,
         "faults": faults, "scheduler": scheduler}


def table(rows):
    """The rows as lines of text."""
    lines = [f"{'':70} {'value':>12} {'target':>12} {'bound':>12}"]
    for r in rows:
        target = "" if r["target"] is None else ("≤ " if r["most"] else "≥ ") + number(r["target"])
        bound = "" if r["bound"] is None else number(r["bound"])
        verdict = {None: "", True: "ok", False: "MISSED"}[r["met"]]
        if r["bound"] and not r["most"]:
            verdict = f"{verdict:6} {100 * r['value'] / r['bound']:.0f} % of bound"
        lines.append(f"{r['part'] + ': ' + r['what']:70} {number(r['value']) + ' ' + r['unit']:>12} {target:>12} "
                     f"{bound:>12} {verdict}".rstrip())
    return "\n".join(lines)


def number(value):
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return re.sub(r"e\+?0?", "e", f"{value:.4g}")
