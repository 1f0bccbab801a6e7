# SPDX-License-Identifier: Apache-2.0
"""Runs every test class of this folder, several at a time, each against servers of its own.

Started by tests/clients/run. Prints a line per test as it ends, details of what failed, and "N passed, N failed".
"""
import sys
import threading
import time
import unittest
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness

AT_A_TIME = 5  # most classes wait more than they compute
TOO_LONG = 900  # seconds; some clients would wait for ever, and a busy machine is slow
MODULES = sorted(p.stem for p in Path(__file__).parent.glob("try_*.py"))


class Report(unittest.TestResult):
    """One class's outcome; the lock keeps lines of several classes apart."""
    lock = threading.Lock()

    def __init__(self):
        super().__init__()
        self.passed = 0
        self.failed = []  # (test, traceback)

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def line(self, test, word):
        seconds = time.monotonic() - getattr(self, "began", time.monotonic())
        with self.lock:
            print(f"{word:6} {name_of(test)}  {seconds:.1f} s", flush=True)

    def addSuccess(self, test):
        self.passed += 1
        self.line(test, "ok")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.failed.append((test, self.failures[-1][1]))
        self.line(test, "FAILED")

    def addError(self, test, err):
        super().addError(test, err)
        self.failed.append((test, self.errors[-1][1]))
        self.line(test, "FAILED")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.line(test, f"skipped ({reason})")


def name_of(test):
    return test.id() if hasattr(test, "id") else str(test)


def flatten(suite):
    for item in suite:
        yield from flatten(item) if isinstance(item, unittest.TestSuite) else (item,)


def chosen(words):
    """{class: [tests]} in the order of the files."""
    classes = {}
    for test in flatten(unittest.TestLoader().loadTestsFromNames(MODULES)):
        if not words or any(word in test.id() for word in words):
            classes.setdefault(type(test), []).append(test)
    return classes


def run_class(tests):
    report = Report()
    unittest.TestSuite(tests).run(report)
    return report


def give_up():
    print(f"==> {TOO_LONG} s have passed: ending all servers", flush=True)
    harness.refuse_all()
    harness.end_all()


def main(words):
    # The client says with every call that the service it was made for has closed.
    warnings.filterwarnings("ignore", category=DeprecationWarning, message="The Sora API")
    began = time.monotonic()
    classes = chosen(words)
    # Those that wait longest begin first.
    order = sorted(classes.values(), key=lambda tests: -getattr(type(tests[0]), "seconds", 5))
    watchdog = threading.Timer(TOO_LONG, give_up)
    watchdog.start()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        try:
            reports = list(pool.map(run_class, order))
        finally:
            watchdog.cancel()
            harness.end_all()
    for report in reports:
        for test, trace in report.failed:
            print(f"\n==> {name_of(test)}\n{trace}")
    passed = sum(r.passed for r in reports)
    failed = sum(len(r.failed) for r in reports)
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
