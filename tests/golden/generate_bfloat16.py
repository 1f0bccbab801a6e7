#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What diffusers' own bfloat16 makes of the fixtures: bfloat16.safetensors beside each expected.safetensors.

    generate_bfloat16.py [DIR...]           write it anew, for all fixtures without an argument
    generate_bfloat16.py --check [DIR...]   run diffusers again: its distance from float32 must be the same

Transformer and text encoder are loaded in bfloat16 as diffusers loads them, the autoencoder in float32 as its authors
advise. Tests compare two distances from the float32 oracle, diffusers' and Kinora's, so what is kept is what the
requests end in. Needs the packages of requirements.txt.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import run_reference

HERE = Path(__file__).resolve().parent
FIXTURES = ["wan21-small", "wan21-head128", "wan21-wide"]
KEPT = {"text_positive": torch.float32, "text_negative": torch.float32, "latents": torch.float32,
        "frames": torch.float16}
TOLERANCE = 0.2  # of the distance: other processors round single values the other way, and steps carry that on


def run(folder):
    """{name: tensor}: the parts of KEPT of every request."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    pipe = run_reference.load(folder / "model", torch.bfloat16)
    tensors = {}
    for i, request in enumerate(case["requests"]):
        for name, tensor in run_reference.run_request(pipe, folder / "model", request, f"request{i}").items():
            part = name.split(".")[1]
            if part in KEPT:
                tensors[name] = (tensor[-1] if part == "latents" else tensor).to(KEPT[part]).contiguous()
    return tensors


def distances(folder, tensors):
    """{name: rms distance from float32, of the standard deviation there}."""
    expected = load_file(folder / "expected.safetensors")
    out = {}
    for name, tensor in tensors.items():
        want = expected[name][-1] if name.endswith(".latents") else expected[name]
        out[name] = ((tensor.float() - want).pow(2).mean().sqrt() / want.std(correction=0)).item()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", default=[HERE / name for name in FIXTURES])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    good = True
    for folder in args.folders:
        tensors = run(folder.resolve())
        got, path = distances(folder, tensors), folder / "bfloat16.safetensors"
        kept = distances(folder, load_file(path)) if args.check else got
        for name, distance in got.items():
            same = abs(distance - kept[name]) <= TOLERANCE * kept[name]
            good &= same
            print(f"  {folder.name} {name:24} {distance:.2e}{'' if same else f'  DIFFERS from {kept[name]:.2e}'}")
        if not args.check:
            save_file(tensors, path)
            path.chmod(0o644)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
