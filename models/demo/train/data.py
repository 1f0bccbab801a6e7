# SPDX-License-Identifier: Apache-2.0
"""Clips for training: rendered by several processes, the same for the same seeds whatever their number."""
import functools
import multiprocessing
import os

import numpy as np
import scene

TRAIN_SEED, CHECK_SEED, LATENT_SEED = 0, 500_000_000, 1_000_000_000  # first seeds; never the same clip twice


def _draw(job):
    return scene.sample(*job)


@functools.lru_cache
def _processes(workers):
    """Started once a command; they end with it."""
    return multiprocessing.get_context("spawn").Pool(workers)


def render(first_seed, count, sizes, workers):
    """`count` clips; clip i has seed first_seed + i and size sizes[i % len(sizes)]. Held-out combinations never."""
    jobs = [(first_seed + i, *sizes[i % len(sizes)]) for i in range(count)]
    if workers <= 1:
        return [_draw(job) for job in jobs]
    return _processes(workers).map(_draw, jobs, chunksize=8)


def default_workers(device):
    return (os.cpu_count() or 1) if device == "cuda" else 1


def as_input(frames, torch):
    """uint8 [..., height, width, 3] to -1..1 floats with the channel first of the last three: [..., 3, T, H, W]."""
    return frames.movedim(-1, -4).to(torch.float32) / 127.5 - 1


def as_frames(video):
    """-1..1 [3, T, H, W] to uint8 [T, H, W, 3]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy().astype(np.uint8)
