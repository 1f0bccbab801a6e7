# SPDX-License-Identifier: Apache-2.0
"""Sizes of everything, per machine: "cpu" ends on two cores overnight, "gpu" in half an hour of one large GPU, "tiny"
makes every stage run in seconds so that the machinery can be tried (its result shows nothing)."""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Phase:
    """The autoencoder trains on crops first, then on whole clips (height and width None)."""

    until: float  # share of the stage's budget
    frames: int  # 4n + 1
    height: int | None
    width: int | None
    batch: int


@dataclass(frozen=True)
class Profile:
    sizes: tuple  # (width, height) in pixels, multiples of 16; every one is trained on
    # autoencoder
    vae_clips: int  # rendered and kept in memory
    vae_minutes: float  # active time of the stage
    vae_phases: tuple
    vae_base: int = 16
    gate_clips: int = 48
    # transformer
    latent_clips: int = 3000
    heads: int = 1  # of 128
    layers: int = 6
    ffn: int = 512
    batch: int = 16
    model_minutes: float = 90.0
    text: dict = field(default_factory=lambda: dict(d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=2))
    pieces: int = 300  # of the tokenizer


PROFILES = {
    "tiny": Profile(
        sizes=((48, 32), (32, 32)), vae_clips=6, vae_minutes=0.2, vae_base=4, gate_clips=4,
        vae_phases=(Phase(0.5, 5, 16, 16, 2), Phase(1.0, 9, None, None, 1)),
        latent_clips=8, layers=1, ffn=64, batch=2, model_minutes=0.2),
    "cpu": Profile(
        sizes=((96, 64), (96, 96)), vae_clips=1000, vae_minutes=60.0,
        vae_phases=(Phase(0.12, 9, 32, 32, 8), Phase(0.25, 9, 48, 64, 3), Phase(1.0, 33, None, None, 1)),
        latent_clips=3000, model_minutes=120.0),
    "gpu": Profile(
        sizes=((192, 128), (144, 144)), vae_clips=4000, vae_minutes=8.0,
        vae_phases=(Phase(0.25, 9, 64, 64, 32), Phase(0.55, 17, 96, 96, 16), Phase(1.0, 33, None, None, 8)),
        latent_clips=12000, heads=2, ffn=1024, batch=256, model_minutes=13.0),
}
