# SPDX-License-Identifier: Apache-2.0
"""Writes the pipeline in diffusers' layout, bfloat16: a folder that WanPipeline and kinora load. kinora.json, which
diffusers does not read, gives size, length and steps to a command that names none."""
import json
import shutil
from pathlib import Path

import model
import scene
import torch
import vae as autoencoder
from diffusers import UniPCMultistepScheduler

SIZE_MAX = 24 << 20  # bytes, everything
STEPS, GUIDANCE = 8, 2.0  # kinora's defaults for this folder; models/demo/judge.py tells how others do


def export(options, profile, folder):
    """Averaged weights, the tokenizer, the scheduler, and latents_mean/std in the autoencoder's config."""
    folder = Path(folder)
    networks, _ = model.load(options, profile)
    network = autoencoder.load(options, profile)
    scale = json.loads((Path(options.run) / "latents.json").read_text())
    network.register_to_config(latents_mean=scale["mean"], latents_std=scale["std"])
    for p in network.parameters():
        p.data = p.data.contiguous()
    for name, part in (("vae", network), ("transformer", networks.transformer), ("text_encoder", networks.text)):
        shutil.rmtree(folder / name, ignore_errors=True)
        part.to("cpu", torch.bfloat16).save_pretrained(folder / name)  # readers keep norms in float32 by themselves
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=model.SHIFT)
    scheduler.save_pretrained(folder / "scheduler")
    shutil.copytree(Path(options.run) / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    words = folder / "tokenizer" / "tokenizer.json"
    words.write_bytes(words.read_bytes().rstrip(b"\n") + b"\n")  # the library ends the file without one
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "WanPipeline", "_diffusers_version": scheduler.config["_diffusers_version"],
        "boundary_ratio": None, "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None], "vae": ["diffusers", "AutoencoderKLWan"]}, indent=1) + "\n")
    width, height = profile.sizes[0]
    (folder / "kinora.json").write_text(json.dumps({
        "width": width, "height": height, "frames": scene.FRAMES, "fps": scene.FPS, "steps": STEPS,
        "guidance": GUIDANCE}, indent=1) + "\n")
    parts = ("vae", "transformer", "text_encoder", "scheduler", "tokenizer")
    files = [f for part in parts for f in (folder / part).rglob("*") if f.is_file()]
    files += [folder / "model_index.json", folder / "kinora.json"]
    for file in files:
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in files)
    options.say(f"export: {folder}, {size / 1e6:.1f} MB")
    if size > SIZE_MAX:
        raise SystemExit(f"the pipeline takes {size} bytes, the limit is {SIZE_MAX}")
