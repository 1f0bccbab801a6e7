# SPDX-License-Identifier: Apache-2.0
"""What the serving measurements and tests/load share: a server on fake devices, the load generator, and figures of the
machine. Standard library; the generator is benchmarks/serving/http_load.c, built when first needed, because Python
asks at most a few thousand times a second and the server answers tens of thousands."""
import collections
import contextlib
import http.client
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KINORA = os.environ.get("KINORA", str(ROOT / "build/release/kinora"))
GENERATOR = Path(os.environ.get("KINORA_HTTP_LOAD", ROOT / "build/http_load"))
SLOW_SYNC = ROOT / "build/slow_sync.so"
JOB = {"prompt": "a ball", "size": "64x64", "num_frames": 9, "num_inference_steps": 6, "seed": 1}
PAUSED = "fake:step_ms=1000000"  # a device whose first step takes a quarter of an hour


def compile_once(out, names, options=()):
    sources = [ROOT / name for name in names]
    if out.exists() and out.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_suffix(f".{os.getpid()}")
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-std=c17", f"-I{ROOT}", *options, *map(str, sources), "-o",
                    str(fresh)], check=True)
    os.replace(fresh, out)


def build_generator():
    compile_once(GENERATOR, ("benchmarks/serving/http_load.c", "base/mem.c", "base/clock.c", "base/status.c"))


def slow_syncs(milliseconds):
    """The environment of processes whose fsync and fdatasync take so much longer; None: as long as they take."""
    if not milliseconds:
        return None
    compile_once(SLOW_SYNC, ("benchmarks/serving/slow_sync.c",), ("-shared", "-fPIC"))
    return {**os.environ, "LD_PRELOAD": str(SLOW_SYNC), "SLOW_SYNC_MS": str(milliseconds)}


REALTIME = None  # measured processes run at this priority of SCHED_FIFO


def placed(command, core):
    """On one core, and before all others, where that was asked for."""
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    return ["chrt", "-f", str(REALTIME), *command] if REALTIME else command


@contextlib.contextmanager
def realtime(priority):
    """What is started meanwhile, and this process, comes before everything else on the machine."""
    global REALTIME
    if not priority:
        yield
        return
    REALTIME = priority
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    try:
        yield
    finally:
        REALTIME = None
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Server:
    """One data directory, and the process that has it."""

    def __init__(self, folder, devices, options=(), core=None, sync_ms=0):
        self.folder, self.devices, self.options, self.core = Path(folder), devices, list(options), core
        self.environment = slow_syncs(sync_ms)
        self.process, self.port, self.started_in = None, None, None
        models = self.folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        if not (models / "small").exists():
            (models / "small").symlink_to(ROOT / "tests/golden/wan21-small/model")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        command = [KINORA, "serve", "--models", str(self.folder / "models"), "--data", str(self.folder / "data"),
                   "--listen", "127.0.0.1:0", "--json", "--log-level", "error", *map(str, self.options)]
        for device in self.devices:
            command += ["--device", device]
        with open(self.folder / "log", "ab") as log:
            began = time.monotonic()
            self.process = subprocess.Popen(placed(command, self.core), stdout=subprocess.PIPE, stderr=log,
                                            env=self.environment)
        line = self.process.stdout.readline()
        self.started_in = time.monotonic() - began
        if not line:
            raise RuntimeError(f"the server did not start; see {self.folder}/log")
        self.port = int(json.loads(line)["addresses"][0].rsplit(":", 1)[1])

    def stop(self, seconds=60):
        """Drains; what waits or runs is left for the next start."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        self.process = None
        return code

    # ---- asking ----

    def connect(self, timeout=30):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, connection=None, timeout=30):
        """(status, headers, body); the body is JSON where it can be."""
        own = connection or self.connect(timeout)
        try:
            own.request(method, path, json.dumps(body) if body is not None else None,
                        {"Content-Type": "application/json"} if body is not None else {})
            answer = own.getresponse()
            text = answer.read()
        finally:
            if connection is None:
                own.close()
        try:
            text = json.loads(text)
        except ValueError:
            pass
        return answer.status, answer.headers, text

    def submit(self, job=None, connection=None):
        status, _, video = self.ask("POST", "/v1/videos", job or JOB, connection)
        if status != 200:
            raise RuntimeError(f"a job was answered {status}: {video}")
        return video["id"]

    def video(self, identifier, connection=None):
        return self.ask("GET", f"/v1/videos/{identifier}", None, connection)[2]

    def wait_ready(self, seconds=30):
        return self.wait(lambda: self.ask("GET", "/readyz")[0] == 200, seconds)

    def queue(self):
        return self.ask("GET", "/v1/queue/stats")[2]

    def wait_empty(self, seconds):
        """Until no job waits or runs."""
        def empty():
            queue = self.queue()
            return queue["queued"] + queue["running"] == 0
        return self.wait(empty, seconds, 0.02)

    @staticmethod
    def wait(condition, seconds, pause=0.005):
        """Seconds until the condition held; None: it did not."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if condition():
                return time.monotonic() - began
            time.sleep(pause)
        return None

    def all_states(self):
        """id -> status of every job the server lists."""
        states, after, connection = {}, "", self.connect()
        while True:
            page = self.ask("GET", f"/v1/videos?limit=100&order=asc{after}", None, connection)[2]
            states.update((video["id"], video["status"]) for video in page["data"])
            if not page["has_more"]:
                connection.close()
                return states
            after = f"&after={page['last_id']}"

    def status(self):
        """What `kinora status` says."""
        done = subprocess.run([KINORA, "status", "--json", "--data", str(self.folder / "data")], capture_output=True,
                              check=True)
        return json.loads(done.stdout)

    def metric(self, name, label=""):
        """Sum of the series of a family whose labels have this text."""
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.split("\n")
                   if re.match(name + "[{ ]", line) and label in line)

    def completed(self):
        """Jobs completed since the server started."""
        return self.metric("kinora_jobs_total", 'status="completed"')

    # ---- its processes ----

    def workers(self):
        children = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and len(command) > 1 and b"worker" in command[:2]:
                children.append(int(stat.parent.name))
        return sorted(children)

    def load(self, method, path, body=None, core=None, **options):
        """Runs the generator to its end; its report as a dictionary."""
        return finish_load(self.begin_load(method, path, body, core, **options))

    def begin_load(self, method, path, body=None, core=None, **options):
        build_generator()
        command = [str(GENERATOR), "--port", str(self.port)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        command += [method, path] + ([json.dumps(body)] if body is not None else [])
        return subprocess.Popen(placed(command, core), stdout=subprocess.PIPE)


def finish_load(process):
    text = process.communicate()[0]
    if process.returncode != 0:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    return json.loads(text)


# ---- processes ----

def memory(pid):
    """Resident bytes of a process: all, and anonymous ones (its own, not of files)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return tuple(1024 * int(re.search(rf"^{name}:\s+(\d+)", text, re.M).group(1)) for name in ("VmRSS", "RssAnon"))


def descriptors(pid):
    """What a process has open: how many of each kind or file."""
    found = collections.Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r":\[\d+\]$", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return found


def least_descriptors(pid, seconds=0.3):
    """The fewest seen within a while: a connection its client has just closed is not a leak."""
    end, least = time.monotonic() + seconds, descriptors(pid)
    while time.monotonic() < end:
        time.sleep(0.02)
        least = min(least, descriptors(pid), key=lambda found: found.total())
    return least


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid):
    """Sent to storage by the process."""
    return int(re.search(r"^write_bytes: (\d+)", Path(f"/proc/{pid}/io").read_text(), re.M).group(1))


# ---- the machine ----

def time_fsyncs(folder, size, seconds=1.0, sync_ms=0):
    """Writes of `size` bytes and fdatasync, one after the other, in a file that has its length already (as SQLite's
    write-ahead log has): milliseconds of each."""
    done = subprocess.run(placed([sys.executable, __file__, str(folder), str(size), str(seconds)], None),
                          env=slow_syncs(sync_ms), check=True, capture_output=True)
    return json.loads(done.stdout)


def fsyncs(folder, size, seconds):
    path = Path(folder) / "fsync.tmp"
    block, room = os.urandom(size), max(4 << 20, 4 * size)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(handle, bytes(room), 0)
        os.fsync(handle)
        times, at, end = [], 0, time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            os.pwrite(handle, block, at)
            os.fdatasync(handle)
            times.append(1e3 * (time.monotonic() - began))
            at = at + size if at + 2 * size <= room else 0
        return times
    finally:
        os.close(handle)
        path.unlink()


def machine():
    cpu = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.M)
    return {"processor": cpu.group(1) if cpu else "", "cores": os.cpu_count(),
            "kernel": os.uname().release, "load_average": os.getloadavg()[0]}


def quantile(values, part):
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def remove(folder):
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    print(json.dumps(fsyncs(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
