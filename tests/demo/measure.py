# SPDX-License-Identifier: Apache-2.0
"""Checks models/demo/measure.py on clips whose truth is known: rendered scenes must be measured right, every one, and
clips spoiled in one way must fail in that claim. Also checks the shares that models/demo/judge.py makes of it, and the
promises of models/demo/train/scene.py.

    python3 tests/demo/measure.py          ends with a line "N passed, N failed"
    python3 -m unittest tests/demo/measure.py

Needs numpy.
"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
sys.path[:0] = [str(DEMO), str(DEMO / "train")]
import judge  # noqa: E402
import measure  # noqa: E402
import scene  # noqa: E402
import sheet  # noqa: E402

LANDSCAPE, SQUARE = (96, 64), (96, 96)
COLOURS = list(scene.COLOURS)
KNOWN = (("purple", "blue"), "two", "night", 39.86)  # the clip of seed 0, and its mean over all values


def clip_of(seed, size, colour, action, light):
    """A clip of the combination; the right one of two balls is the colour three places on."""
    other = COLOURS[(COLOURS.index(colour) + 3) % len(COLOURS)]
    return scene.render(seed, *size, (colour, other) if action == "two" else (colour,), action, light)


def verdict(frames, clip):
    return measure.judge(measure.measure(frames), clip.colours, clip.action, clip.light)


class RenderedScenes(unittest.TestCase):
    def check(self, size, seed, combinations):
        for index, (colour, action, light) in enumerate(combinations):
            clip = clip_of(seed + index, size, colour, action, light)
            with self.subTest(prompt=clip.prompt, seed=seed + index, size=size):
                report = measure.measure(clip.frames)
                right = measure.judge(report, clip.colours, clip.action, clip.light)
                self.assertEqual(right, dict.fromkeys(("continuous", "colour", "balls", "action", "light"), True))
                self.assertEqual(report["balls_per_frame"], [len(clip.colours)] * scene.FRAMES)

    def test_every_combination(self):
        self.check(LANDSCAPE, 100, scene.combinations(False) + scene.combinations(True))

    def test_square(self):
        self.check(SQUARE, 500, scene.combinations(True))

    def test_large(self):
        self.check((192, 128), 900, scene.combinations(True)[::3])

    def test_centres(self):
        clip = clip_of(3, LANDSCAPE, "green", "backboard", "day")
        found = np.array(measure.measure(clip.frames)["paths"][0])
        canvas = scene.Canvas(*LANDSCAPE, (0.0, 0.0))
        true = clip.paths[0]
        self.assertLess(np.abs(found[:, 0] - true[:, 0] / canvas.scale).max(), 0.02)
        self.assertLess(np.abs(found[:, 1] - (64 - true[:, 1]) / canvas.scale + canvas.lift).max(), 0.02)

    def test_noise_and_blur(self):
        """What a lossy encoder does to a clip must not change the answer."""
        rng = np.random.default_rng(5)
        for index, (colour, action, light) in enumerate(scene.combinations(True)):
            clip = clip_of(700 + index, LANDSCAPE, colour, action, light)
            soft = clip.frames.astype(np.float32)
            soft[:, 1:-1, 1:-1] = sum(soft[:, 1 + dy:63 + dy, 1 + dx:95 + dx] for dy in (-1, 0, 1)
                                      for dx in (-1, 0, 1)) / 18 + soft[:, 1:-1, 1:-1] / 2
            soft += rng.normal(0, 5, soft.shape)
            with self.subTest(prompt=clip.prompt):
                self.assertNotIn(False, verdict(np.clip(soft / 255, 0, 1), clip).values())


class SpoiledScenes(unittest.TestCase):
    def test_shuffled_frames_are_not_continuous(self):
        for index, (colour, action, light) in enumerate(scene.combinations(True)):
            clip = clip_of(200 + index, LANDSCAPE, colour, action, light)
            order = np.random.default_rng(index).permutation(scene.FRAMES)
            with self.subTest(prompt=clip.prompt):
                self.assertFalse(verdict(clip.frames[order], clip)["continuous"])

    def test_a_teleport_is_not_continuous(self):
        clip = clip_of(7, LANDSCAPE, "red", "right", "day")
        jumping = np.concatenate([clip.frames[:16], clip.frames[24:]])
        self.assertFalse(verdict(jumping, clip)["continuous"])

    def test_wrong_colours(self):
        for index, colour in enumerate(COLOURS):
            clip = clip_of(300 + index, LANDSCAPE, colour, "bounce", "sunset")
            for other in COLOURS:
                right = measure.judge(measure.measure(clip.frames), (other,), "bounce", "sunset")
                self.assertEqual(right["colour"], other == colour, f"{colour} asked as {other}")

    def test_turned_channels(self):
        """The ball itself repainted: its pixels' red, green and blue change places, the court stays."""
        for colour in ("red", "green", "blue", "orange", "purple"):
            clip = clip_of(11, LANDSCAPE, colour, "left", "night")
            frames = np.where(clip.moving[..., None], np.roll(clip.frames, 1, axis=-1), clip.frames)
            self.assertFalse(verdict(frames, clip)["colour"], colour)

    def test_two_balls_swapped(self):
        clip = scene.render(12, *LANDSCAPE, ("red", "blue"), "two", "day")
        swapped = scene.render(12, *LANDSCAPE, ("blue", "red"), "two", "day")
        self.assertTrue(all(verdict(clip.frames, clip).values()))
        whole = verdict(swapped.frames, clip)
        self.assertFalse(whole["colour"])
        self.assertTrue(whole["continuous"])
        halfway = verdict(np.concatenate([clip.frames[:16], swapped.frames[16:]]), clip)
        self.assertFalse(halfway["continuous"])

    def test_one_ball_too_many_and_too_few(self):
        one = clip_of(13, LANDSCAPE, "red", "bounce", "day")
        two = scene.render(13, *LANDSCAPE, ("red", "blue"), "two", "day")
        self.assertFalse(verdict(two.frames, one)["balls"])
        self.assertFalse(verdict(one.frames, two)["balls"])
        self.assertFalse(verdict(one.frames, two)["action"])
        still = np.median(one.frames, axis=0).astype(np.uint8)
        blinking = one.frames.copy()
        blinking[::6] = still
        self.assertFalse(verdict(blinking, one)["balls"])

    def test_no_ball(self):
        clip = clip_of(14, LANDSCAPE, "red", "right", "night")
        court = np.median(clip.frames, axis=0).astype(np.uint8)
        report = measure.measure(np.stack([court] * scene.FRAMES))
        self.assertEqual((report["balls"], report["colours"], report["action"]), (0, [], "none"))
        self.assertFalse(report["continuous"])
        self.assertEqual(report["light"], "night")

    def test_other_actions(self):
        for index, action in enumerate(scene.ACTIONS):
            clip = clip_of(400 + index, LANDSCAPE, "orange", action, "day")
            got = measure.measure(clip.frames)["action"]
            self.assertEqual([a for a in scene.ACTIONS if a == got], [action])

    def test_backwards(self):
        """Time turned round: a ball that rolled left rolls right."""
        clip = clip_of(15, LANDSCAPE, "green", "left", "day")
        self.assertEqual(measure.measure(clip.frames[::-1])["action"], "right")

    def test_refuses_what_is_no_clip(self):
        with self.assertRaisesRegex(ValueError, r"\[33, 64, 96\]"):
            measure.measure(np.zeros((33, 64, 96), np.uint8))


class Court(unittest.TestCase):
    def test_rendered_clips_show_the_court(self):
        for seed in range(12):
            clip = scene.sample(seed, *(LANDSCAPE, SQUARE)[seed % 2])
            with self.subTest(prompt=clip.prompt):
                self.assertGreater(measure.court_share(clip.frames), 0.75)

    def test_noise_and_plain_surfaces_do_not(self):
        rng, clip = np.random.default_rng(3), scene.sample(5, *LANDSCAPE)
        snow = clip.frames + rng.normal(0, 45, clip.frames.shape)
        others = [rng.integers(0, 256, clip.frames.shape), np.clip(snow, 0, 255)]
        others += [np.broadcast_to(np.array(lamp.sky_high), clip.frames.shape) for lamp in scene.LIGHTS.values()]
        for index, frames in enumerate(others):
            with self.subTest(index=index):
                self.assertLess(measure.court_share(frames.astype(np.uint8)), 0.6)


class Judging(unittest.TestCase):
    @staticmethod
    def result(case, frames):
        report = measure.measure(frames)
        return judge.Result(case, frames, report, measure.judge(report, case.colours, case.action, case.light))

    @classmethod
    def setUpClass(cls):
        cls.cases = judge.cases(48, (LANDSCAPE, SQUARE))
        clips = [scene.render(c.seed, *c.size, c.colours, c.action, c.light) for c in cls.cases[:12]]
        cls.results = [cls.result(c, clip.frames) for c, clip in zip(cls.cases, clips)]

    def test_cases(self):
        held_out = [c for c in self.cases if c.held_out]
        self.assertEqual((len(self.cases), len(held_out)), (48, 24))
        self.assertEqual(len({c.prompt for c in self.cases}), 48)
        for case in self.cases:
            self.assertEqual((case.colours[0], case.action, case.light) in scene.HELD_OUT, case.held_out)
            self.assertTrue(all(f" {colour} ball" in " " + case.prompt for colour in case.colours))
        for part in (held_out, [c for c in self.cases if not c.held_out]):
            self.assertEqual({c.action for c in part}, set(scene.ACTIONS))
            self.assertEqual({c.size for c in part}, {LANDSCAPE, SQUARE})
            self.assertEqual({c.light for c in part}, set(scene.LIGHTS))

    def test_rendered_clips_are_all_right(self):
        self.assertEqual(judge.shares(self.results), dict.fromkeys(judge.CLAIMS, 1.0))
        self.assertEqual([judge.describe_wrong(r) for r in self.results], [None] * 12)

    def test_a_wrong_clip_counts(self):
        wrong = self.result(self.cases[0], self.results[10].frames)  # another colour, action and light
        found = judge.shares([wrong, *self.results[1:]])
        self.assertAlmostEqual(found["colour"], 11 / 12)
        self.assertAlmostEqual(found["light"], 11 / 12)
        self.assertIn(self.cases[0].prompt, judge.describe_wrong(wrong))

    def test_balls_are_counted_by_the_frame(self):
        frames = self.results[0].frames.copy()
        frames[:11] = np.median(frames, axis=0).astype(np.uint8)
        self.assertAlmostEqual(judge.shares([self.result(self.cases[0], frames)])["balls"], 22 / 33)

    def test_a_kinora_that_fails_is_told(self):
        maker = judge.Maker(kinora="false")
        with self.assertRaisesRegex(RuntimeError, "exit code 1"):
            maker.make(self.cases[0])


class World(unittest.TestCase):
    def test_same_seed_same_bytes(self):
        first, second = scene.sample(21, *LANDSCAPE), scene.sample(21, *LANDSCAPE)
        self.assertEqual(first.frames.tobytes(), second.frames.tobytes())
        self.assertEqual(first.prompt, second.prompt)
        self.assertNotEqual(first.frames.tobytes(), scene.sample(22, *LANDSCAPE).frames.tobytes())

    def test_known_clip(self):
        """A change of the world must be meant: it makes trained weights stale."""
        clip = scene.sample(0, *LANDSCAPE)
        self.assertEqual((clip.colours, clip.action, clip.light), KNOWN[:3])
        self.assertAlmostEqual(float(clip.frames.mean()), KNOWN[3], delta=0.02)

    def test_held_out_is_never_chosen(self):
        chosen = [scene.choose(seed) for seed in range(3000)]
        for colours, action, light in chosen:
            for colour in colours:
                self.assertNotIn((colour, action, light), scene.HELD_OUT)
        seen = {(c[0], a, l) for c, a, l in chosen}
        self.assertEqual(seen, set(scene.combinations(False)))
        for seed in range(300):
            colours, action, light = scene.choose(seed, held_out=True)
            self.assertIn((colours[0], action, light), scene.HELD_OUT)

    def test_held_out_leaves_every_pair(self):
        self.assertEqual(len(set(scene.HELD_OUT)), 18)
        rest = scene.combinations(False)
        self.assertEqual(len(rest), 7 * 6 * 3 - 18)
        for one, other, pairs in ((0, 1, 42), (0, 2, 21), (1, 2, 18)):
            self.assertEqual(len({(c[one], c[other]) for c in rest}), pairs)

    def test_prompts_name_what_is_seen(self):
        for seed in range(200):
            colours, action, light = scene.choose(seed)
            for wording in range(4):
                prompt = scene.describe(colours, action, light, wording, wording, seed % 2 == 0)
                for colour in colours:
                    self.assertIn(f" {colour} ball", " " + prompt)
                self.assertNotRegex(prompt, r"\ba [aeiou]|\ban [^aeiou]")

    def test_moving_pixels(self):
        clip = scene.sample(23, *LANDSCAPE)
        self.assertTrue(0.02 < clip.moving.mean() < 0.12)


class CommandLine(unittest.TestCase):
    def test_report(self):
        clip = clip_of(31, LANDSCAPE, "purple", "hoop", "day")
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/clip.npy", clip.frames)
            out = subprocess.run([sys.executable, str(DEMO / "measure.py"), f"{folder}/clip.npy", "--colours", "purple",
                                  "--action", "hoop", "--light", "sunset"], check=True, capture_output=True, text=True)
        report = json.loads(out.stdout)
        self.assertEqual(report["right"], {"continuous": True, "colour": True, "balls": True, "action": True,
                                           "light": False})

    def test_sheet(self):
        with tempfile.TemporaryDirectory() as folder:
            picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
            sheet.write_png(f"{folder}/noise.png", picture)
            data = Path(f"{folder}/noise.png").read_bytes()
            out = subprocess.run([sys.executable, str(DEMO / "train" / "sheet.py"), "--out", f"{folder}/sheet.png",
                                  "--rows", "2", "--columns", "3"], check=True, capture_output=True, text=True)
            self.assertTrue(Path(f"{folder}/sheet.png").read_bytes().startswith(b"\x89PNG"))
        self.assertEqual(data[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(len(out.stdout.splitlines()), 3)


def main():
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    print(f"{result.testsRun - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
