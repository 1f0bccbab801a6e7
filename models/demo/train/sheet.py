# SPDX-License-Identifier: Apache-2.0
"""Draws the data set's contact sheet: one row a clip, its frames from left to right, every action, colour and light.

    python3 models/demo/train/sheet.py [--out FILE.png] [--size WxH] [--seed N] [--rows N] [--columns N]

The prompts are printed in the order of the rows. Needs numpy only; write_png is used by other commands too.
"""
import argparse
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import scene  # noqa: E402


def write_png(path, picture):
    """An RGB picture [height, width, 3] uint8 as PNG, rows unfiltered."""
    height, width, _ = picture.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, width * 3)], axis=1)
    Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b""))


def lay_out(clips, columns, gap=3):
    """Clips [frames, height, width, 3] as rows of `columns` frames, evenly spaced in time, on white."""
    rows = []
    for frames in clips:
        chosen = frames[np.linspace(0, len(frames) - 1, columns).round().astype(int)]
        rows.append(np.concatenate([np.pad(f, ((0, gap), (0, gap), (0, 0)), constant_values=255) for f in chosen], 1))
    return np.concatenate(rows, axis=0)


def main():
    parser = argparse.ArgumentParser(description="Draw the data set's contact sheet.")
    parser.add_argument("--out", default="contact-sheet.png")
    parser.add_argument("--size", default="96x64", help="width x height of a clip, multiples of 16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=18)
    parser.add_argument("--columns", type=int, default=11)
    arguments = parser.parse_args()
    width, height = (int(n) for n in arguments.size.split("x"))

    colours, lights = list(scene.COLOURS), list(scene.LIGHTS)
    clips = []
    for row in range(arguments.rows):
        action, light = scene.ACTIONS[row % 6], lights[(row + row // 6) % 3]
        pair = (colours[row % 7], colours[(row + 3) % 7])
        clip = scene.render(arguments.seed + row, width, height, pair if action == "two" else pair[:1], action, light)
        print(f"{row:3d}  {clip.prompt}")
        clips.append(clip.frames)
    write_png(arguments.out, lay_out(clips, arguments.columns))
    print(arguments.out)


if __name__ == "__main__":
    main()
