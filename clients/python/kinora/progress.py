# SPDX-License-Identifier: Apache-2.0
"""A bar on standard error, where that is a terminal."""
from __future__ import annotations

import sys
from typing import Callable, Optional, TextIO, Union

ProgressFn = Callable[[int, int, str], None]
"""Called with done, total (0: not known) and what is going on."""
Progress = Union[None, bool, ProgressFn]

WIDTH = 30


class Bar:
    """Draws over its own line; says nothing where nobody would see it move."""

    def __init__(self, stream: Optional[TextIO] = None, force: bool = False):
        self.stream = stream or sys.stderr
        self.visible = force or self.stream.isatty()
        self.drawn = False
        self.last = ""

    def __call__(self, done: int, total: int, what: str) -> None:
        if not self.visible:
            return
        filled = WIDTH * done // total if total else 0
        percent = f"{100 * done // total:3d} %" if total else "     "
        line = f"[{'#' * filled}{' ' * (WIDTH - filled)}] {percent} {what[:30]:30}"
        if line != self.last:
            self.stream.write("\r" + line)
            self.stream.flush()
            self.drawn, self.last = True, line

    def close(self) -> None:
        if self.drawn:
            self.stream.write("\n")
            self.stream.flush()
            self.drawn = False


def reporter(progress: Progress) -> Union[Bar, ProgressFn]:
    """What to call; a Bar is closed by whoever asked for it."""
    if callable(progress):
        return progress
    bar = Bar()
    bar.visible = bar.visible and bool(progress)
    return bar


def close(report: Union[Bar, ProgressFn]) -> None:
    if isinstance(report, Bar):
        report.close()
