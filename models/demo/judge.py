# SPDX-License-Identifier: Apache-2.0
"""Generates clips of the demo model with kinora, measures them and says how often they show what was asked for.

    python3 models/demo/judge.py [--clips N] [--steps 4,6,8] [--guidance 1,2,3] [--seed N] [--wrong] [--sheet FILE.png]

One row for each pair of steps and guidance scale; without these options, one row with the folder's own defaults
(kinora.json). Half of the prompts are combinations of colour, action and light that no training clip shows. --wrong
lists the clips in which a claim fails, --sheet draws the landscape clips of the last row. Needs numpy, ffmpeg and a
built kinora.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path[:0] = [str(FOLDER), str(FOLDER / "train")]
import measure  # noqa: E402
import scene  # noqa: E402
import sheet  # noqa: E402
from profiles import PROFILES  # noqa: E402

CLAIMS = ("colour", "balls", "continuous", "action", "light")
SECONDS_MAX = 120  # for one clip


@dataclass(frozen=True)
class Case:
    """One clip to make. `colours` is None where nothing particular is asked for."""

    prompt: str
    size: tuple  # width, height
    seed: int
    colours: tuple | None = None
    action: str | None = None
    light: str | None = None
    held_out: bool = False
    steps: int | None = None  # None: the folder's default
    guidance: float | None = None


@dataclass(frozen=True)
class Result:
    case: Case
    frames: np.ndarray  # [frames, height, width, 3] uint8, as in the PNG files that kinora wrote
    report: dict  # measure.measure
    right: dict  # measure.judge


@dataclass(frozen=True)
class Maker:
    """What makes clips: kinora, a model folder, and on how many threads."""

    kinora: str = str(ROOT / "build" / "release" / "kinora")
    model: str = str(FOLDER)
    threads: int = 1

    def defaults(self):
        return json.loads((Path(self.model) / "kinora.json").read_text())

    def sizes(self):
        """Both sizes (width, height) the folder was trained on; its default first."""
        first = self.defaults()["width"], self.defaults()["height"]
        return next(profile.sizes for profile in PROFILES.values() if profile.sizes[0] == first)

    def frames(self, case):
        """Runs `kinora generate`, and reads what it wrote."""
        with tempfile.TemporaryDirectory() as folder:
            command = [self.kinora, "generate", "--model", self.model, "--prompt", case.prompt, "--size",
                       "{}x{}".format(*case.size), "--seed", str(case.seed), "--threads", str(self.threads),
                       "--output", f"{folder}/frame-%04d.png"]
            command += ["--steps", str(case.steps)] if case.steps is not None else []
            command += ["--guidance", str(case.guidance)] if case.guidance is not None else []
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
            return measure.read_clip(f"{folder}/frame-%04d.png")

    def make(self, case):
        frames = self.frames(case)
        report = measure.measure(frames)
        return Result(case, frames, report, measure.judge(report, case.colours, case.action, case.light))


def cases(count, sizes, seed=1000):
    """`count` clips, every second one of a held-out combination, both sizes, all wordings. The first ones of a long
    list are not those of a short one."""
    colours, chosen = list(scene.COLOURS), []
    for index in range(count):
        held_out, turn = index % 2 == 1, index // 2
        options = scene.combinations(held_out)
        colour, action, light = options[turn * len(options) // ((count + 1) // 2) % len(options)]
        others = [c for c in colours if c != colour and (c, action, light) not in scene.HELD_OUT]
        pair = (colour, others[turn % len(others)]) if action == "two" else (colour,)
        prompt = scene.describe(pair, action, light, turn, turn // 2, turn % 3 == 0)
        chosen.append(Case(prompt, sizes[turn % len(sizes)], seed + index, pair, action, light, held_out))
    return chosen


def make_all(maker, wanted, processes=None):
    """A Result for every case, in order; one process and one thread for each core."""
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        return list(pool.map(maker.make, wanted))


def shares(results):
    """{claim: share}: of the frames with as many balls as asked for, of the clips for every other claim."""
    found = {claim: float(np.mean([r.right[claim] for r in results])) for claim in CLAIMS}
    counts = [np.asarray(r.report["balls_per_frame"]) == len(r.case.colours) for r in results]
    return found | {"balls": float(np.concatenate(counts).mean())}


def row(name, results):
    """One line of a table; head() is above it."""
    found = shares(results)
    return f"{name:24}{len(results):6d}" + "".join(f"{100 * found[claim]:10.1f} %" for claim in CLAIMS)


def head():
    return f"{'':24}{'clips':>6}" + "".join(f"{claim:>12}" for claim in CLAIMS)


def describe_wrong(result):
    """What was asked for and what is seen instead, in one line; None where every claim holds."""
    missed = [claim for claim in CLAIMS if not result.right[claim]]
    seen = result.report
    if not missed:
        return None
    return (f"{'held out' if result.case.held_out else 'seen'}, seed {result.case.seed}, "
            f"{'x'.join(map(str, result.case.size))}: \"{result.case.prompt}\" fails {', '.join(missed)}: seen "
            f"{seen['balls']} ball(s) {'/'.join(seen['colours'])}, {seen['action']}, {seen['light']}")


def draw(path, results):
    """A contact sheet of the landscape clips, one row each; says which row is which."""
    size = results[0].frames.shape
    drawn = [r for r in results if r.frames.shape == size]
    sheet.write_png(path, sheet.lay_out([r.frames for r in drawn], 11))
    for number, result in enumerate(drawn):
        print(f"row {number + 1:3d}: {result.case.prompt}")
    print(path)


def main():
    def list_of(kind):
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description="Say how often clips of the demo model show what was asked for.")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--steps", type=list_of(int), default=[None], help="one number or several: 4,6,8,12,20")
    parser.add_argument("--guidance", type=list_of(float), default=[None], help="one number or several: 1,2,3,4.5")
    parser.add_argument("--seed", type=int, default=1000, help="of the first clip")
    parser.add_argument("--model", default=Maker.model)
    parser.add_argument("--kinora", default=Maker.kinora)
    parser.add_argument("--wrong", action="store_true", help="list the clips in which a claim fails")
    parser.add_argument("--sheet", metavar="FILE.png", help="draw the landscape clips of the last row")
    arguments = parser.parse_args()
    maker = Maker(arguments.kinora, arguments.model)
    wanted = cases(arguments.clips, maker.sizes(), arguments.seed)
    print(head() + f"{'seconds':>10}")
    for steps in arguments.steps:
        for guidance in arguments.guidance:
            started = time.monotonic()
            results = make_all(maker, [replace(case, steps=steps, guidance=guidance) for case in wanted])
            seconds = time.monotonic() - started
            name = f"{steps or 'default'} steps, guidance {'default' if guidance is None else guidance}"
            print(row(name, results) + f"{seconds:10.0f}", flush=True)
            for line in filter(None, map(describe_wrong, results) if arguments.wrong else []):
                print(f"  {line}")
    if arguments.sheet:
        draw(arguments.sheet, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
