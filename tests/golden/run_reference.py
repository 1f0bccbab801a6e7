# SPDX-License-Identifier: Apache-2.0
"""Runs diffusers' WanPipeline on a model folder, on the CPU, and records what passes between its parts.

Everything is computed in float32 whatever type the files hold, except the one transformer forward in bfloat16 and what
generate_bfloat16.py asks for.
Each function returns a dictionary of float32 tensors under the names of README.md.
"""
from pathlib import Path

import torch
from diffusers import (AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline,
                       WanTransformer3DModel)
from diffusers.utils import logging
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

logging.set_verbosity_error()
logging.disable_progress_bar()
disable_progress_bar()


def read_tokenizer(model):
    """tokenizer.json as it stands, through the `tokenizers` library."""
    return Tokenizer.from_file(str(Path(model) / "tokenizer" / "tokenizer.json"))


def load(model, dtype=torch.float32):
    """The pipeline with transformer and text encoder of this type; the autoencoder stays in float32."""
    # AutoTokenizer would rebuild a T5 tokenizer from the vocabulary alone: it loses byte fallback and takes 2 for
    # the unknown id. The file itself is what a reader of the folder has, so the pipeline gets that.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read_tokenizer(model), pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        padding_side="right")
    vae = AutoencoderKLWan.from_pretrained(Path(model) / "vae", dtype=torch.float32)
    pipe = WanPipeline.from_pretrained(model, tokenizer=tokenizer, vae=vae, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_scheduler(model, request):
    kind, shift = request["scheduler"]["kind"], request["scheduler"]["shift"]
    if kind == "unipc":
        return UniPCMultistepScheduler.from_pretrained(Path(model) / "scheduler", flow_shift=shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    if "sigmas" in request:  # the pipeline only passes a number of steps
        plain = scheduler.set_timesteps
        scheduler.set_timesteps = lambda steps, device=None: plain(sigmas=request["sigmas"], device=device)
    return scheduler


@torch.no_grad()
def run_request(pipe, model, request, prefix):
    """One generation, with the transformer's inputs and outputs and the latent after each step."""
    pipe.scheduler = make_scheduler(model, request)
    negative_prompt = request.get("negative_prompt") or ""
    inputs, velocity, latents = [], [], []

    def record_forward(module, args, kwargs, output):
        inputs.append(kwargs["hidden_states"].clone())
        velocity.append(output[0][0].clone())

    def record_step(_pipe, _i, _t, tensors):
        latents.append(tensors["latents"][0].clone())
        return tensors

    hook = pipe.transformer.register_forward_hook(record_forward, with_kwargs=True)
    guided = request["guidance"] > 1
    frames = pipe(
        request["prompt"], negative_prompt, request["height"], request["width"], request["frames"],
        request["steps"], request["guidance"], generator=torch.Generator("cpu").manual_seed(request["seed"]),
        callback_on_step_end=record_step, output_type="pt").frames[0]
    hook.remove()
    positive, negative = pipe.encode_prompt(
        request["prompt"], negative_prompt, do_classifier_free_guidance=guided, max_sequence_length=512)
    out = {
        "text_positive": positive[0, :len(pipe.tokenizer(request["prompt"]).input_ids)],
        "noise": inputs[0][0], "velocity": torch.stack(velocity), "latents": torch.stack(latents),
        "timesteps": pipe.scheduler.timesteps, "sigmas": pipe.scheduler.sigmas, "frames": frames}
    if guided:
        out["text_negative"] = negative[0, :len(pipe.tokenizer(negative_prompt).input_ids)]
    return {f"{prefix}.{name}": tensor.float().contiguous() for name, tensor in out.items()}


@torch.no_grad()
def run_vae(pipe, tag, latent, frames):
    """The decoder on `latent` and the encoder on `frames`, each alone, nothing normalised."""
    decoded = pipe.vae.decode(latent[None]).sample[0]
    mean = pipe.vae.encode(frames[None]).latent_dist.mode()[0]
    return {f"decode.{tag}.latent": latent, f"decode.{tag}.frames": decoded.contiguous(),
            f"encode.{tag}.frames": frames, f"encode.{tag}.mean": mean.contiguous()}


@torch.no_grad()
def run_dit(pipe, model, latent, context, timestep):
    """One transformer forward in float32 and one in bfloat16, loaded as diffusers loads it for bfloat16."""
    def forward(transformer, dtype):
        return transformer(hidden_states=latent[None].to(dtype), timestep=timestep,
                           encoder_hidden_states=context[None].to(dtype)).sample[0].float().contiguous()

    half = WanTransformer3DModel.from_pretrained(Path(model) / "transformer", dtype=torch.bfloat16)
    return {"dit.input": latent, "dit.context": context, "dit.timestep": timestep,
            "dit.output.float32": forward(pipe.transformer, torch.float32),
            "dit.output.bfloat16": forward(half, torch.bfloat16)}


@torch.no_grad()
def probe(pipe, prompt, expected):
    """How much each parameter matters: nudge it by a tenth of its size, return {name: change of the output}.

    The change is the rms difference over the rms of the output of the part the parameter belongs to."""
    ids = torch.tensor([pipe.tokenizer(prompt).input_ids])
    tag = max((n.split(".")[1] for n in expected if n.startswith("decode.")), key=lambda t: int(t.split("x")[0]))
    latent, frames = expected[f"decode.{tag}.latent"][None], expected[f"encode.{tag}.frames"][None]
    dit = dict(hidden_states=expected["dit.input"][None], timestep=expected["dit.timestep"],
               encoder_hidden_states=expected["dit.context"][None])
    parts = {
        "text_encoder": (pipe.text_encoder, "", lambda: pipe.text_encoder(ids).last_hidden_state),
        "transformer": (pipe.transformer, "", lambda: pipe.transformer(**dit).sample),
        "vae decoder": (pipe.vae, ("decoder.", "post_quant"), lambda: pipe.vae.decode(latent).sample),
        "vae encoder": (pipe.vae, ("encoder.", "quant_"), lambda: pipe.vae.encode(frames).latent_dist.mode()),
    }
    generator = torch.Generator("cpu").manual_seed(0)
    changes = {}
    for part, (module, names, run) in parts.items():
        base = run()
        for name, p in module.named_parameters():
            if not name.startswith(names):
                continue
            keep = p.data.clone()
            p.data += 0.1 * keep.pow(2).mean().sqrt() * torch.randn(p.shape, generator=generator)
            changes[f"{part}: {name}"] = ((run() - base).pow(2).mean() / base.pow(2).mean()).sqrt().item()
            p.data.copy_(keep)
    return changes
