# SPDX-License-Identifier: Apache-2.0
"""Says what a clip of the demo's world shows: the light, the balls and their colours, their paths, the action.

    python3 models/demo/measure.py CLIP [--colours red[,blue]] [--action NAME] [--light NAME]

CLIP is a .npy array [frames, height, width, 3] (uint8, or float in 0..1), or anything ffmpeg reads: an MP4, or a
pattern like frame-%04d.png. Prints one JSON object; with any of the options also a "right" object that says which of
the five claims hold: colour, balls, continuous, action, light.

The idea: under the light that the sky shows, every pixel is given to the nearest colour of the world's palette (ball
colours plain and shaded, and everything else). A ball is where a square that fits inside it is mostly of one ball
colour. Nothing is known about the clip but its pixels; the camera offset, at most scene.CAMERA, is slack in every
bound. Lengths are court units (train/scene.py): 1.5 units are the width of the picture. numpy only.
"""
import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
import scene  # noqa: E402

# A ball is thrown sideways at 1.2 units/s at most and falls less than 0.7 units: it moves less than
# sqrt(1.2^2 + 2 * 1.7 * 0.7) / 16 = 0.122 units a frame, and a centre is found within 0.02.
JUMP_MAX = 0.15
# In free flight the second difference is 1.7 / 256 = 0.007. Only hits exceed this bound: at most 6 of 31 in real
# clips, nearly all in shuffled ones.
BEND_MAX, BENT_SHARE_MAX = 0.05, 0.35
COVER_MIN = 0.36  # of the square; the net and the rim hide less than the rest
FOUND_SHARE_MIN = 0.9  # of the frames, for a path
BALLS_MAX = 4  # searched for in a frame
COURT_LEVELS = 48  # of 255, between a pixel and the empty court's


def palette(light):
    """(colours [n, 3], ball [n] index into scene.COLOURS or -1) of everything the light shows."""
    lamp = scene.LIGHTS[light]
    tint, entries = np.asarray(lamp.tint), []
    for index, rgb in enumerate(scene.COLOURS.values()):
        entries += [(index, np.asarray(rgb) * tint * shade) for shade in (1.0, 0.8)]
        entries.append((index, np.asarray(rgb) * tint * 0.8 + 51))  # towards the shine
    high, low = np.asarray(lamp.sky_high, float), np.asarray(lamp.sky_low, float)
    entries += [(-1, low + (high - low) * share) for share in np.linspace(0, 1, 7)]
    entries += [(-1, np.asarray(lamp.floor) * shade) for shade in (0.5, 1.0, 1.35)]
    entries += [(-1, np.asarray(c) * tint) for c in (scene.BOARD, scene.POLE, scene.NET, scene.RIM)]
    entries += [(-1, np.asarray(scene.RIM) * tint * 0.8), (-1, np.asarray(scene.OUTLINE))]
    entries += [(-1, np.asarray(scene.NET) * tint * 0.5 + low * 0.5)]
    return np.array([c for _, c in entries], np.float32), np.array([i for i, _ in entries])


def find_light(frames):
    """The light whose sky is nearest to the upper left of the picture."""
    height, width = frames.shape[1:3]
    seen = np.median(frames[:, :max(height // 8, 1), :width // 2].reshape(-1, 3), axis=0)
    return min(scene.LIGHTS, key=lambda name: float(np.sum((seen - scene.LIGHTS[name].sky_high) ** 2)))


def label(frames, light):
    """Per pixel the index of the ball colour, or -1: [frames, height, width]."""
    colours, ball = palette(light)
    flat = frames.reshape(-1, 3).astype(np.float32)
    distance = -2 * flat @ colours.T + np.sum(colours ** 2, axis=1)
    return ball[np.argmin(distance, axis=1)].reshape(frames.shape[:3])


def box_mean(mask, half):
    """Mean over the square of side 2 half + 1 around every pixel; outside the picture counts as empty."""
    side = 2 * half + 1
    sums = np.pad(mask.astype(np.float32), ((half + 1, half), (half + 1, half))).cumsum(0).cumsum(1)
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side ** 2


def find_balls(labels, radius):
    """[(colour index, column, row)] of one frame's balls; `radius` in pixels."""
    half, found = max(int(round(0.5 * radius)), 1), []
    rows, columns = np.mgrid[:labels.shape[0], :labels.shape[1]]
    for colour in np.unique(labels[labels >= 0]):
        mask = labels == colour
        for _ in range(BALLS_MAX):
            cover = box_mean(mask, half)
            row, column = np.unravel_index(np.argmax(cover), cover.shape)
            if cover[row, column] < COVER_MIN:
                break
            near = np.hypot(rows - row, columns - column) < 1.25 * radius
            part = mask & near
            found.append((int(colour), float(columns[part].mean()) + 0.5, float(rows[part].mean()) + 0.5))
            mask = mask & ~near
    return found


def find_tracks(balls, count):
    """[(colour index, points [frames, 2], NaN where not found)], at most two, left one first. A path belongs to a
    colour, so two balls that change places make two broken paths."""
    shares = np.zeros(len(scene.COLOURS))
    for frame in balls:
        for colour in {c for c, _, _ in frame}:
            shares[colour] += 1 / len(balls)
    chosen = [c for c in np.argsort(-shares, kind="stable") if shares[c] > 0.4][:max(count, 1)]
    if count == 2 and len(chosen) == 1:
        chosen *= 2
    tracks = []
    for place, colour in enumerate(chosen):
        points = np.full((len(balls), 2), np.nan)
        for index, frame in enumerate(balls):
            own = sorted((x, y) for c, x, y in frame if c == colour)
            if own:
                points[index] = own[-1 if place and chosen[0] == colour else 0]
        tracks.append((int(colour), points))
    return sorted(tracks, key=lambda track: np.nanmean(track[1][:, 0]))


def is_continuous(points):
    """`points` [frames, 2] in units. Gaps are bridged; a long one leaves too few frames found."""
    seen = np.flatnonzero(~np.isnan(points[:, 0]))
    if len(seen) < FOUND_SHARE_MIN * len(points):
        return False
    steps = np.diff(seen)
    jumps = np.hypot(*np.diff(points[seen], axis=0).T) / steps
    bends = np.hypot(*np.diff(points, 2, axis=0).T)
    bends = bends[~np.isnan(bends)]
    return bool(jumps.max() <= JUMP_MAX and (bends > BEND_MAX).mean() <= BENT_SHARE_MAX)


def classify(tracks):
    """The action of the paths (units, y upwards, gaps removed): one of scene.ACTIONS, or "none"."""
    slack = scene.CAMERA + 0.03
    if len(tracks) == 2:
        return "two" if min(np.ptp(t[:, 1]) for t in tracks) > 0.15 else "none"
    if len(tracks) != 1 or len(tracks[0]) < 4:
        return "none"
    x, y = tracks[0].T
    if np.ptp(y) < 0.10:
        return ("right" if x[-1] > x[0] else "left") if abs(x[-1] - x[0]) > 0.5 else "none"
    far = int(np.argmax(x))
    if (x[far] > scene.BOARD_FACE - scene.RADIUS - slack - 0.06 and y[far] > scene.RIM_Y + 0.05
            and x[far] - x[-1] > 0.25):
        return "backboard"
    falls = np.flatnonzero((y[:-1] >= scene.RIM_Y) & (y[1:] < scene.RIM_Y))
    for i in falls:
        at = x[i] + (x[i + 1] - x[i]) * (y[i] - scene.RIM_Y) / (y[i] - y[i + 1])
        if (scene.RIM_LEFT - slack < at < scene.RIM_RIGHT + slack
                and scene.RIM_LEFT - slack < x[-1] < scene.RIM_RIGHT + slack):
            return "hoop"
    low = scene.FLOOR + scene.RADIUS + 0.17
    lows = np.flatnonzero((y[1:-1] <= y[:-2]) & (y[1:-1] < y[2:]) & (y[1:-1] < low))
    if len(lows) >= 1 and np.ptp(y) > 0.2 and x.max() < scene.RIM_LEFT + slack:
        return "bounce"
    return "none"


def measure(frames):
    """What a clip [frames, height, width, 3] shows, as plain values; see the top of this file."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 5:
        raise ValueError(f"a clip is [frames >= 5, height, width, 3], not {list(frames.shape)}")
    if frames.dtype != np.uint8:
        frames = np.clip(np.rint(np.asarray(frames, np.float64) * 255), 0, 255).astype(np.uint8)
    height, width = frames.shape[1:3]
    canvas = scene.Canvas(width, height, (0.0, 0.0))
    light = find_light(frames)
    labels = label(frames, light)
    balls = [find_balls(picture, scene.RADIUS * canvas.scale) for picture in labels]
    counts = np.array([len(frame) for frame in balls])
    count = int(np.bincount(counts).argmax())
    tracks = [(colour, np.stack([points[:, 0] / canvas.scale, (height - points[:, 1]) / canvas.scale - canvas.lift], 1))
              for colour, points in find_tracks(balls, min(count, 2))]
    names = list(scene.COLOURS)
    whole = [points[~np.isnan(points[:, 0])] for _, points in tracks]
    return {
        "light": light,
        "colours": [names[colour] for colour, _ in tracks],
        "balls": count,
        "balls_per_frame": counts.tolist(),
        "continuous": bool(tracks) and all(is_continuous(points) for _, points in tracks),
        "action": classify(whole) if count == len(tracks) else "none",
        "paths": [[None if np.isnan(p[0]) else [round(float(v), 4) for v in p] for p in points]
                  for _, points in tracks],
    }


def court_share(frames):
    """Share of the pixels [frames, height, width, 3] uint8 that show the empty court, under the light of their sky and
    from the camera that fits best: of the sky, or of floor, board and hoop, whichever is less. 0.8 to 1 with a ball or
    two, below 0.4 for noise and for a plain surface."""
    height, width = frames.shape[1:3]
    lamp, still, fits = scene.LIGHTS[find_light(frames)], np.median(frames, axis=0), []
    for camera in itertools.product(np.linspace(-scene.CAMERA, scene.CAMERA, 5), repeat=2):
        canvas = scene.Canvas(width, height, camera)
        court = scene.draw_back(canvas, lamp)
        for colour, alpha in scene.front_layers(canvas, lamp):
            scene.over(court, colour, alpha)
        sky = (canvas.y > scene.FLOOR) & (np.abs(court - court[:, :1]).max(axis=-1) < 8)
        fits.append((float(np.abs(court - still).mean()), court, sky))
    _, court, sky = min(fits, key=lambda fit: fit[0])
    same = np.abs(frames - court).max(axis=-1) < COURT_LEVELS
    return min(float(same[:, sky].mean()), float(same[:, ~sky].mean()))


def judge(report, colours=None, action=None, light=None):
    """Which claims of a prompt hold. What was not asked for is left out; "continuous" is always there."""
    right = {"continuous": report["continuous"]}
    if colours is not None:
        right["colour"] = report["colours"] == list(colours)
        counts = np.asarray(report["balls_per_frame"])
        right["balls"] = bool((counts == len(colours)).mean() >= FOUND_SHARE_MIN)
    if action is not None:
        right["action"] = report["action"] == action
    if light is not None:
        right["light"] = report["light"] == light
    return right


def read_clip(path):
    """Frames of a .npy file or of whatever ffmpeg reads."""
    if str(path).endswith(".npy"):
        return np.load(path)
    probe = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "json"]
    stream = json.loads(subprocess.run([*probe, str(path)], check=True, capture_output=True).stdout)["streams"][0]
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 3)


def main():
    parser = argparse.ArgumentParser(description="Say what a clip of the demo's world shows, as JSON.")
    parser.add_argument("clip")
    parser.add_argument("--colours", help="expected: one colour, or left,right")
    parser.add_argument("--action", choices=scene.ACTIONS)
    parser.add_argument("--light", choices=scene.LIGHTS)
    arguments = parser.parse_args()
    report = measure(read_clip(arguments.clip))
    if arguments.colours or arguments.action or arguments.light:
        colours = arguments.colours.split(",") if arguments.colours else None
        report["right"] = judge(report, colours, arguments.action, arguments.light)
    json.dump(report, sys.stdout)
    print()


if __name__ == "__main__":
    main()
