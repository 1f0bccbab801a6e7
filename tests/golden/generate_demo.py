#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes and checks the fixture of the demo model: what diffusers makes of models/demo (see README.md).

    generate_demo.py                write demo-model/ next to this script, from models/demo
    generate_demo.py --check        run diffusers again and compare with what is there
    options: --model DIR            another model folder of the same layout
             --out DIR              another folder for the fixture

Needs the packages of requirements.txt. To be run again whenever the weights change.
"""
import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import build_model
import run_reference

HERE = Path(__file__).resolve().parent
PACKAGES = ["torch", "diffusers", "transformers", "tokenizers", "sentencepiece", "numpy"]
TOLERANCE = 1e-4  # of the latents' deviation; one machine's torch differs from another's
KEPT = [0, 8, 16, 24, 32]  # frames; all of them would be 1.5 MB
REQUESTS = [  # with the guidance that kinora.json has
    {"prompt": "an orange ball misses the hoop and rebounds off the backboard, at sunset", "negative_prompt": None,
     "height": 64, "width": 96, "frames": 33, "steps": 4, "guidance": 2.0, "seed": 42,
     "scheduler": {"kind": "unipc", "shift": 3.0}},
    {"prompt": "two balls bounce, a blue ball on the left and a red ball on the right, by day", "negative_prompt": None,
     "height": 96, "width": 96, "frames": 33, "steps": 4, "guidance": 2.0, "seed": 7,
     "scheduler": {"kind": "unipc", "shift": 3.0}},
]


def run_all(model):
    """({name: tensor} of last latents, [frames of a request, uint8 [KEPT, height, width, 3]])."""
    pipe, tensors, pictures = run_reference.load(model), {}, []
    for i, request in enumerate(REQUESTS):
        got = run_reference.run_request(pipe, model, request, f"request{i}")
        tensors[f"request{i}.latents"] = got[f"request{i}.latents"][-1:].contiguous()
        frames = got[f"request{i}.frames"][KEPT].movedim(1, 3).numpy()
        pictures.append((frames * 255).round().astype(np.uint8))
    return tensors, pictures


def picture_file(folder, index):
    return folder / f"request{index}.frames.rgb"


def generate(model, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tensors, pictures = run_all(model)
    save_file(tensors, folder / "expected.safetensors")
    for i, frames in enumerate(pictures):
        picture_file(folder, i).write_bytes(frames.tobytes())
    build_model.write_json(folder / "case.json", {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES} | {"torch": torch.__version__},
        "requests": REQUESTS, "kept": KEPT, "tensors": {k: list(v.shape) for k, v in tensors.items()}})
    for file in folder.iterdir():
        file.chmod(0o644)  # the library writes some files for their owner only
    print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir()) / 1000:.0f} kB")


def check(model, folder):
    expected, good = load_file(folder / "expected.safetensors"), True
    tensors, pictures = run_all(model)
    for i, frames in enumerate(pictures):
        name = f"request{i}.latents"
        difference = float((tensors[name] - expected[name]).abs().max() / expected[name].std())
        kept = np.frombuffer(picture_file(folder, i).read_bytes(), np.uint8).reshape(frames.shape)
        levels = int(np.abs(frames.astype(int) - kept).max())
        good &= difference <= TOLERANCE and levels <= 1
        print(f"  request {i}: latents {difference:.1e} of the deviation, frames {levels} levels")
    print(f"{folder.name}: {'same' if good else 'NOT the same'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--model", type=Path, default=HERE.parents[1] / "models" / "demo")
    parser.add_argument("--out", type=Path, default=HERE / "demo-model")
    arguments = parser.parse_args()
    if not (arguments.model / "model_index.json").exists():
        parser.error(f"{arguments.model} holds no weights")
    if arguments.check:
        return 0 if check(arguments.model, arguments.out) else 1
    generate(arguments.model, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
