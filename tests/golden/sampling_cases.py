#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes sampling_cases.json: schedules, solver trajectories and noise as diffusers and torch compute them.

    sampling_cases.py            write sampling_cases.json next to this script
    sampling_cases.py --check    compare what is there with what this machine computes

Needs the packages of requirements.txt.

schedules[]     sampler, shift, steps, optional `given` (sigmas passed by hand), and every `stride`-th sigma and
                timestep.
trajectories[]  UniPC from START with the velocities of velocity(): the state after each step, once in float64 with
                the scheduler's own float32 sigmas ("exact": what the formulas say) and once in float32 ("float32":
                what a pipeline computes). null where diffusers produces an infinity.
noise[]         torch.randn from a CPU generator: `values` at the indices `at`. Seeds are strings, because JSON numbers
                are exact up to 2^53 only.
"""
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

TARGET = Path(__file__).resolve().parent / "sampling_cases.json"
START = [1.0, -0.5]
COUNTS = [1, 2, 3, 8, 20, 50]
SHIFTS = [1.0, 3.0, 5.0, 8.0, 16.0]
ODD_SHIFTS = [0.3, 1.15, 3.3, 12.7]  # not representable: shows in which precision the shift is applied
GIVEN = [[1.0, 0.75, 0.5, 0.25], [0.9, 0.7, 0.4, 0.1], [0.9999995, 0.5], [0.3]]


def make(sampler, shift, order=2, lower_order_final=True):
    if sampler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=order,
        lower_order_final=lower_order_final)


def schedule(sampler, shift, steps, given=None, stride=1):
    scheduler = make(sampler, shift)
    if given is None:
        scheduler.set_timesteps(steps)
    else:  # UniPC multiplies what it gets as it is, so a list fails there and an array works
        scheduler.set_timesteps(sigmas=np.array(given))
    case = {"sampler": sampler, "shift": shift, "steps": steps, "stride": stride,
            "sigmas": numbers(scheduler.sigmas[::stride]), "timesteps": numbers(scheduler.timesteps[::stride])}
    return case if given is None else {**case, "given": given}


def velocity(step, dtype):
    """Eighths between -1 and 1: exact in float32, so that both sides start from the same numbers."""
    return torch.tensor([((7 * step + 13 * k) % 17 - 8) / 8 for k in range(len(START))], dtype=dtype)


def run(steps, shift, order, lower_order_final, dtype):
    scheduler = make("unipc", shift, order, lower_order_final)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.to(dtype)
    x = torch.tensor(START, dtype=dtype).reshape(1, 1, -1)
    states = []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(i, dtype).reshape(1, 1, -1), t, x, return_dict=False)[0]
        states.append([v if np.isfinite(v) else None for v in numbers(x.flatten())])
    return states


def trajectory(steps, shift, order, lower_order_final=True):
    return {"steps": steps, "shift": shift, "order": order, "lower_order_final": lower_order_final,
            "exact": run(steps, shift, order, lower_order_final, torch.float64),
            "float32": run(steps, shift, order, lower_order_final, torch.float32)}


def noise(seed, count):
    values = torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed))
    at = range(count)
    if count > 40:
        at = sorted({*range(20), *range(count // 100, count, count // 100), *range(count - 20, count)})
    return {"seed": str(seed), "count": count, "at": list(at), "values": numbers(values[list(at)])}


def numbers(tensor):
    """Shortest decimals that read back as the same value."""
    if tensor.dtype == torch.float64:
        return [float(f"{v:.13g}") for v in tensor.tolist()]
    if tensor.dtype == torch.float32:
        return [float(str(v)) for v in tensor.numpy()]
    return tensor.tolist()


def build():
    seeds = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 12345, 2**64 - 1]
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")},
        "start": START,
        "schedules":
            [schedule(s, shift, n) for s in ("unipc", "euler") for shift in SHIFTS + ODD_SHIFTS for n in COUNTS]
            + [schedule(s, shift, 1000, stride=41) for s in ("unipc", "euler") for shift in (1.0, 3.0)]
            + [schedule(s, shift, len(given), given) for s in ("unipc", "euler") for shift in (1.0, 5.0, 1.15, 0.3)
               for given in GIVEN],
        "trajectories":
            [trajectory(n, shift, order) for order in (1, 2) for shift in SHIFTS for n in COUNTS]
            + [trajectory(n, shift, 2, False) for shift in (3.0, 5.0) for n in (1, 3, 8, 20)],
        "noise":
            [noise(seed, n) for seed in seeds for n in (3, 16)]
            + [noise(7, n) for n in (1, 2, 15, 17, 31, 32, 40)]
            + [noise(7, 1_000_000), noise(2**64 - 1, 1_000_003)],
    }


def render(cases):
    """One case a line."""
    parts = []
    for key, value in cases.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            lines = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in value)
            parts.append(f' "{key}": [\n{lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def worst(path, old, new):
    """Largest difference between two structures of equal shape, as (difference, where)."""
    if isinstance(old, dict):
        return max(worst(f"{path}.{k}", old[k], new[k]) for k in old if k != "versions")
    if isinstance(old, list) and len(old) == len(new):
        return max(worst(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new)))
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new), path
    return (0.0 if old == new else float("inf")), path


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        difference, where = worst("", json.loads(TARGET.read_text()), json.loads(render(build())))
        print(f"largest difference {difference:.3g} at {where}")
        sys.exit(difference > 1e-5)
    TARGET.write_text(render(build()))
