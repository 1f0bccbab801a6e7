# SPDX-License-Identifier: Apache-2.0
"""What both training stages share: the optimiser, the schedule, averaged weights, and checkpoints.

Muon (momentum, then the nearest semi-orthogonal matrix by five Newton-Schulz iterations; Jordan et al. 2024) moves the
matrices it is given, AdamW everything else. The schedule counts the stage's active time, so a stage may be spread
over any number of commands; with a step limit instead, a resumed run repeats an uninterrupted one bit for bit on a
CPU, because every step draws its randomness from (seed, stage, step) and nothing else.
"""
import functools
import json
import math
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SHARD_BYTES = 15 << 20  # a checkpoint file stays below 16 MiB


def autocast(device, needed=True):
    """bfloat16 products where the device has them: any CUDA device, a CPU with AVX512-BF16 (2.7 times faster there)."""
    has = device == "cuda" or "avx512_bf16" in _cpu_flags()
    return torch.autocast("cuda" if device == "cuda" else "cpu", torch.bfloat16, enabled=needed and has)


@functools.lru_cache
def _cpu_flags():
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return frozenset()


class Muon:
    """`matrices` and `others` map names to parameters. All tensors of the state are in state()."""

    def __init__(self, matrices, others, matrix_rate, other_rate, momentum=0.9, betas=(0.9, 0.99), eps=1e-8):
        self.matrices, self.others = matrices, others
        self.matrix_rate, self.other_rate = matrix_rate, other_rate
        self.momentum, self.betas, self.eps = momentum, betas, eps
        self.step_count = 0
        self.velocity = {n: torch.zeros_like(p) for n, p in matrices.items()}
        self.mean = {n: torch.zeros_like(p) for n, p in others.items()}
        self.square = {n: torch.zeros_like(p) for n, p in others.items()}
        self.shapes = {}  # flattened shape -> names, so that equal ones are orthogonalised together
        for name, p in matrices.items():
            self.shapes.setdefault((p.shape[0], p[0].numel()), []).append(name)

    def state(self):
        out = {}
        for kind in ("velocity", "mean", "square"):
            out.update({f"{kind}/{name}": t for name, t in getattr(self, kind).items()})
        return out

    @torch.no_grad()
    def step(self, factor):
        """One update with both rates times `factor`; clears the gradients."""
        self.step_count += 1
        for (rows, columns), names in self.shapes.items():
            moved = []
            for name in names:
                grad = self.matrices[name].grad
                velocity = self.velocity[name].mul_(self.momentum).add_(grad)
                moved.append((grad + self.momentum * velocity).reshape(rows, columns))
            update = orthogonal(torch.stack(moved)) * max(1.0, rows / columns) ** 0.5
            for name, part in zip(names, update):
                p = self.matrices[name]
                p.sub_(part.reshape(p.shape).to(p.dtype), alpha=self.matrix_rate * factor)
                p.grad = None
        first, second = self.betas
        bias_first, bias_second = 1 - first ** self.step_count, 1 - second ** self.step_count
        for name, p in self.others.items():
            if p.grad is None:
                continue
            mean = self.mean[name].lerp_(p.grad, 1 - first)
            square = self.square[name].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            p.addcdiv_(mean, (square / bias_second).sqrt_().add_(self.eps),
                       value=-self.other_rate * factor / bias_first)
            p.grad = None


def orthogonal(g):
    """The nearest semi-orthogonal matrices, roughly: singular values end between 0.7 and 1.2."""
    x = g.bfloat16() if g.is_cuda or "avx512_bf16" in _cpu_flags() else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).to(g.dtype)


class Average:
    """Exponential moving average of the weights; short at first, so that it forgets the start."""

    def __init__(self, parameters, decay=0.999):
        self.decay, self.count = decay, 0
        self.weights = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters):
        self.count += 1
        share = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        names = list(parameters)
        torch._foreach_lerp_([self.weights[n] for n in names], [parameters[n].detach() for n in names], share)


class Schedule:
    """Progress 0..1 of a stage, by active minutes, or by steps where `steps` is given; ends a command in time."""

    def __init__(self, budget_minutes, command_minutes=None, steps=None, seconds=0.0, step=0, stop=None):
        self.budget, self.stop = budget_minutes * 60, stop
        self.steps, self.step = steps, step
        self.before, self.started = seconds, time.monotonic()
        self.ends = math.inf if command_minutes is None else command_minutes * 60

    def seconds(self):
        return self.before + time.monotonic() - self.started

    def progress(self):
        return min(self.step / self.steps if self.steps else self.seconds() / self.budget, 1.0)

    def out_of_time(self):
        return time.monotonic() - self.started >= self.ends or (self.stop is not None and self.step >= self.stop)

    def factor(self):
        """Learning rate: a short rise, level, then down to zero over the last 45 %."""
        p = self.progress()
        return min(1.0, (self.step + 1) / 30, max(0.01, (1 - p) / 0.45))


def step_generator(seed, stage, step, device="cpu"):
    """The random numbers of one step, whatever ran before."""
    mixed = (seed * 1_000_003 + sum(stage.encode()) * 7_919 + step * 2_654_435_761) % (1 << 62)
    return torch.Generator(device).manual_seed(mixed)


def save_checkpoint(folder, stage, tensors, meta, small=False):
    """Tensors in files below 16 MiB, `meta` as JSON. `small` leaves out Muon's momentum, which ten steps rebuild, and
    rounds everything but the weights to bfloat16."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for name, t in tensors.items():
        if small and name.startswith("velocity/"):
            continue
        t = t.detach().to("cpu", torch.bfloat16 if small and not name.startswith("weights/") else None).contiguous()
        if size + t.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = t.clone()
        size += t.nbytes
    written = []
    for index, shard in enumerate(shards):
        path = folder / f"{stage}.{index:02d}.safetensors"
        save_file(shard, f"{path}.new", metadata={"step": str(meta["step"])})
        written.append(path)
    state = folder / f"{stage}.json"
    Path(f"{state}.new").write_text(json.dumps({**meta, "files": [p.name for p in written]}, indent=1) + "\n")
    for path in (*written, state):
        Path(f"{path}.new").rename(path)
    for path in folder.glob(f"{stage}.*.safetensors"):
        if path not in written:
            path.unlink()


def load_checkpoint(folder, stage):
    """(tensors, meta), or (None, None) where there is none. All files must come from the same step."""
    folder = Path(folder)
    if not (folder / f"{stage}.json").exists():
        return None, None
    meta, tensors = json.loads((folder / f"{stage}.json").read_text()), {}
    for name in meta["files"]:
        with safe_open(folder / name, "pt") as file:
            step = file.metadata()["step"]
            if step != str(meta["step"]):
                raise SystemExit(f"{folder / name} is of step {step}, {stage}.json of {meta['step']}")
            for key in file.keys():
                tensors[key] = file.get_tensor(key)
    return tensors, meta


def pack(parameters, average, optimizer):
    """Everything a stage must keep to go on."""
    tensors = {f"weights/{n}": p for n, p in parameters.items()}
    tensors.update({f"average/{n}": t for n, t in average.weights.items()})
    tensors.update(optimizer.state())
    return tensors


@torch.no_grad()
def unpack(tensors, parameters, average, optimizer):
    now = pack(parameters, average, optimizer)
    odd = sorted(n for n in set(now) ^ set(tensors) if not n.startswith("velocity/"))
    if odd:
        raise SystemExit(f"the checkpoint is of another network: {odd[0]} and {len(odd) - 1} more differ")
    for name, t in now.items():
        if name in tensors:
            t.copy_(tensors[name])


def resume(folder, stage, parameters, average, optimizer):
    """Loads the stage's checkpoint where there is one; returns its meta."""
    tensors, meta = load_checkpoint(folder, stage)
    if meta is None:
        return {"step": 0, "seconds": 0.0, "done": False, "log": []}
    if not meta["done"]:
        unpack(tensors, parameters, average, optimizer)
        average.count = optimizer.step_count = meta["step"]
    return meta


@torch.no_grad()
def warm_start(folder, parameters, average, prefix=""):
    """Weights of an exported component in place of fresh ones. `folder` holds one safetensors file; `prefix` is what
    the component's names have before them here."""
    with safe_open(next(Path(folder).glob("*.safetensors")), "pt") as file:
        for name in file.keys():
            if prefix + name in parameters:  # tied tensors are stored under each of their names
                parameters[prefix + name].copy_(file.get_tensor(name))
                average.weights[prefix + name].copy_(parameters[prefix + name])


def run_stage(folder, stage, parameters, average, optimizer, meta, schedule, one_step, small, every=60.0, say=print):
    """Steps until the stage is done or the command's time is up; saves now and then and at the end. A finished stage
    keeps its averaged weights only. `one_step(step, progress)` leaves gradients and returns the loss tensor."""
    saved = spoke = time.monotonic()
    losses = []
    while schedule.progress() < 1 and not schedule.out_of_time():
        loss = one_step(schedule.step, schedule.progress())
        optimizer.step(schedule.factor())
        average.update(parameters)
        schedule.step += 1
        losses.append(loss.detach())
        now = time.monotonic()
        if now - spoke > 20:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise SystemExit(f"{stage}: the loss is {mean} at step {schedule.step}; the last checkpoint stands")
            meta["log"].append([schedule.step, round(schedule.seconds()), round(mean, 5)])
            say(f"{stage}: step {schedule.step}, {schedule.seconds() / 60:.1f} min, {100 * schedule.progress():.0f} %, "
                f"loss {mean:.4f}")
            losses, spoke = [], now
        if now - saved > every:
            meta.update(step=schedule.step, seconds=schedule.seconds())
            save_checkpoint(folder, stage, pack(parameters, average, optimizer), meta, small)
            saved = now
    meta.update(step=schedule.step, seconds=schedule.seconds(), done=schedule.progress() >= 1)
    if losses:
        meta["log"].append([schedule.step, round(schedule.seconds()), round(float(torch.stack(losses).mean()), 5)])
    if meta["done"]:
        save_checkpoint(folder, stage, {f"average/{n}": t for n, t in average.weights.items()}, meta)
    else:
        save_checkpoint(folder, stage, pack(parameters, average, optimizer), meta, small)
    say(f"{stage}: {'done' if meta['done'] else 'stopped'} at step {schedule.step}, "
        f"{schedule.seconds() / 60:.1f} of {schedule.budget / 60:.1f} min")
    return meta["done"]


@torch.no_grad()
def load_average(folder, stage, parameters):
    """Puts the stage's averaged weights, finished or not, into the network."""
    tensors, meta = load_checkpoint(folder, stage)
    if meta is None:
        raise SystemExit(f"{folder} has no checkpoint of the stage {stage}")
    for name, p in parameters.items():
        p.copy_(tensors[f"average/{name}"])
    return meta
