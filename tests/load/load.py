#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What must hold under load on any machine: the parts of benchmarks/serving in a short form, without their times.

    tests/load/load.py [PART...]

Nothing acknowledged is lost in an overload, refusals say when to come again, cancellations are durable, memory,
descriptors and threads do not grow with the jobs done, a full store starts, and /readyz tells the truth about a worker
that was killed or stands still. Times are printed beside their targets and not asserted. Data directories are made in
memory where /dev/shm has room, so that a slow disk does not make this a slow test; benchmarks/serving measures a disk.
"""
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks/serving"))
sys.dont_write_bytecode = True

import harness  # noqa: E402
import parts  # noqa: E402

ROOM = 1 << 30  # bytes
# Rows whose targets hold on any machine.
EXACT = [
    "acknowledged jobs that are not in the queue", "answers other than 200", "rejects without Retry-After",
    "acknowledged jobs that did not complete", "resident memory at most", "cancellations that were none",
    "jobs that did not complete", "descriptors gained", "threads gained", "of them not to be found",
    "jobs left unfinished",
]
# These are held against wider limits: seconds of a slow machine, and bytes a job while caches are still filling. What
# is allocated is counted to the byte, but one buffer that doubles is 5 bytes a job in a run of 800 after warm-up; a
# leaked block for each job would be 24 and more, its identifier alone being longer.
GENEROUS = {"normal again after": 60, "readyz tells so after": 60, "ready again after": 120,
            "resident memory a job": 4096, "anonymous memory of a worker": 4096, "allocated by the server a job": 24}


def folder():
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > ROOM
    return Path(tempfile.mkdtemp(prefix="kinora-load-", dir=memory if roomy else None))


def judge(row):
    """None: says nothing about any machine; else whether it holds."""
    if any(text in row["what"] for text in EXACT):
        return row["met"]
    limit = next((limit for text, limit in GENEROUS.items() if text in row["what"]), None)
    return None if limit is None else row["value"] <= limit


def main():
    names = sys.argv[1:] or [name for name in parts.PARTS if name != "scheduler"]  # it has tests of its own
    below = folder()
    given = parts.Given(folder=below, submit_seconds=1, submit_slices=2, get_seconds=0.5, get_jobs=50, repeats=1,
                        pause=0, peak_seconds=2, overload_seconds=6, cancels=16, soak_jobs=1500, soak_round=100,
                        soak_kept=500, stored=20000, kills=1, stops=1, decisions=100000, simulated=200)
    passed, failed, began = 0, 0, time.monotonic()
    harness.build_generator()
    for name in names:
        try:
            rows = parts.PARTS[name](given)
        except (RuntimeError, OSError) as error:
            print(f"FAILED {name}: {error}")
            failed += 1
            continue
        print(parts.table(rows), flush=True)
        for row in rows:
            good = judge(row)
            passed, failed = passed + (good is True), failed + (good is False)
            if good is False:
                print(f"FAILED {row['part']}: {row['what']}: {row['value']}"
                      + (f"; {row['first']} became {row['last']}" if "first" in row else ""))
    print(f"{time.monotonic() - began:.0f} s")
    if failed:
        print(f"kept in {below}")
    else:
        harness.remove(below)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
