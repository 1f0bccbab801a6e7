# SPDX-License-Identifier: Apache-2.0
"""The text encoder and the transformer: UMT5EncoderModel and WanTransformer3DModel, trained together by rectified flow
on latents that were encoded once.

A pipeline feeds 512 text rows, nearly all of them zeros, and the transformer does attend to those. In training the
zero rows are one row whose attention logit gets log(512 - length): the same softmax, at a twentieth of the cost.
"""
import json
import shutil
from pathlib import Path

import data
import numpy as np
import optimize
import scene
import tokenizer
import torch
import vae as autoencoder
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from transformers import UMT5Config, UMT5EncoderModel

TEXT_ROWS = 512
SHIFT = 3.0  # of the timesteps, in training and in sampling
DROPPED = 0.1  # share of prompts replaced by the empty one, for guidance
MOVING_WEIGHT = 6.0  # of a latent pixel where the ball is, against 1
DRAWN = {"backboard": 2.0, "two": 2.0, "left": 0.5, "right": 0.5}  # how often, against 1: more of what is learnt last
WARM_RATE = 0.5  # of the learning rates, for a network that knows most of it already
PROMPT_ROWS = 32  # text rows are padded to a multiple of it, so that few shapes occur (compiling)
PART = 200  # clips a file of cached latents


class Attention(WanAttnProcessor):
    """Attention as plain products: at some 200 tokens a clip its backward pass takes a CPU a quarter of the fused one's
    time, and a compiler joins the rest. `bias` [B, 1, 1, rows] is added to the logits over a prompt's rows."""

    bias = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (
            attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source)), attn.to_v(source)))
        if rotary_emb is not None:
            turns = torch.complex(*(part[0, :, 0, ::2].float() for part in rotary_emb))
            query, key = rotate(query, turns), rotate(key, turns)
        logits = ((query * query.shape[-1] ** -0.5) @ key.mT).float()
        if self.bias is not None:
            logits = logits + self.bias
        mixed = torch.softmax(logits, -1).to(value.dtype) @ value
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


def rotate(x, turns):
    """Pairs of channels of x [B, heads, tokens, d] as complex numbers, times `turns` [tokens, d / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)


class Model(torch.nn.Module):
    """Both networks, as the pipeline will hold them."""

    def __init__(self, profile, pieces, seed):
        super().__init__()
        torch.manual_seed(seed + 1)
        text = profile.text
        self.text = UMT5EncoderModel(UMT5Config(
            vocab_size=(pieces + 31) // 32 * 32, num_decoder_layers=text["num_layers"], dropout_rate=0.0,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **text))
        self.transformer = WanTransformer3DModel(
            num_attention_heads=profile.heads, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=text["d_model"], freq_dim=256, ffn_dim=profile.ffn, num_layers=profile.layers)
        self.zeros = Attention()
        self.attach()
        self._start()

    def attach(self):
        """The attention above in every block of the transformer."""
        plain = Attention()
        for block in self.transformer.blocks:
            block.attn1.set_processor(plain)
            block.attn2.set_processor(self.zeros)

    @torch.no_grad()
    def _start(self):
        """Blocks start as the identity but for cross-attention; the output starts at zero; and all but the real text
        rows get a low logit, or 490 constant rows would drown them."""
        transformer = self.transformer
        transformer.scale_shift_table.zero_()
        for p in (*transformer.proj_out.parameters(), *transformer.condition_embedder.time_proj.parameters()):
            p.zero_()
        for p in (transformer.condition_embedder.text_embedder.linear_1.bias,
                  transformer.condition_embedder.text_embedder.linear_2.bias):
            p.zero_()
        for block in transformer.blocks:
            block.scale_shift_table.zero_()
            attn = block.attn2
            sign = torch.where(torch.rand(attn.to_q.bias.shape) < 0.5, -1.0, 1.0)
            attn.to_q.bias.copy_(1.5 * attn.to_q.weight.std() * attn.to_q.weight.shape[1] ** 0.5 * sign)
            attn.to_k.bias.copy_(-0.02 * sign)

    def context(self, ids, full=False):
        """Text rows [B, rows, d] of prompts (lists of token ids), and the bias for cross-attention. `full`: all 512
        rows, as a pipeline makes them, and no bias."""
        device = self.transformer.device
        longest = -(-max(len(i) for i in ids) // PROMPT_ROWS) * PROMPT_ROWS
        padded = torch.tensor([i + [0] * (longest - len(i)) for i in ids], device=device)
        mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids], device=device)
        with optimize.autocast(device.type, False):
            rows = self.text(input_ids=padded, attention_mask=mask).last_hidden_state * mask[..., None]
        extra = TEXT_ROWS - longest if full else 1
        rows = torch.cat([rows, rows.new_zeros(len(ids), extra, rows.shape[2])], 1)
        if full:
            return rows, None
        zeros = torch.log(TEXT_ROWS - mask.sum(1, keepdim=True).float())
        bias = torch.cat([torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, -1e4), zeros], 1)
        return rows, bias[:, None, None]

    def velocity(self, x, sigma, context):
        """noise - clean, as the transformer sees it at x [B, 16, T, h, w]; sigma [B] in 0..1."""
        rows, self.zeros.bias = context
        return self.transformer(x, sigma * 1000, rows, return_dict=False)[0]


# ---------------------------------------------------------------------------------------------------------------------
# latents


def cache_latents(options, profile):
    """Encodes clips once, in files of PART clips; True when all are there. Then writes mean and deviation."""
    folder = Path(options.run) / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    network = None
    for start in range(0, profile.latent_clips, PART):
        path = folder / f"latents-{start:06d}.npz"
        if path.exists():
            continue
        if options.minutes_left() <= 0:
            return False
        network = network or autoencoder.load(options, profile)
        count = min(PART, profile.latent_clips - start)
        clips = data.render(data.LATENT_SEED + start, count, profile.sizes, options.workers)
        arrays = {"tags": np.array([json.dumps([c.colours, c.action, c.light]) for c in clips])}
        for width, height in profile.sizes:
            own = [c.frames for c in clips if c.frames.shape[1:3] == (height, width)]
            arrays[f"z{width}x{height}"] = encode_clips(network, own, options.device)
        np.savez(f"{path}.new.npz", **arrays)
        Path(f"{path}.new.npz").rename(path)
        options.say(f"latents: {start + count} of {profile.latent_clips} clips")
    if not (Path(options.run) / "latents.json").exists():
        statistics(options, profile)
    return True


@torch.no_grad()
def encode_clips(network, clips, device):
    """Posterior means of clips of one size, [n, 16, T, h, w] float16."""
    together, means = 16 if device == "cuda" else 1, []
    for start in range(0, len(clips), together):
        frames = torch.from_numpy(np.stack(clips[start:start + together])).to(device)
        with optimize.autocast(device):
            means.append(autoencoder.encode(network, data.as_input(frames, torch))[0].half().cpu())
    return torch.cat(means).numpy()


def statistics(options, profile):
    """Per channel over everything cached: what the pipeline subtracts and divides by."""
    groups, _ = load_latents(options, profile)
    flat = torch.cat([z.float().movedim(1, 0).flatten(1) for z in groups.values()], 1)
    path = Path(options.run) / "latents.json"
    path.write_text(json.dumps({"mean": [round(float(v), 5) for v in flat.mean(1)],
                                "std": [round(max(float(v), 1e-3), 5) for v in flat.std(1)]}) + "\n")


def load_latents(options, profile):
    """({size: latents [n, 16, T, h, w] float16}, {size: [(colours, action, light)]})."""
    groups, tags = {}, {}
    for path in sorted((Path(options.run) / "cache").glob("latents-*.npz")):
        with np.load(path) as part:
            for index, tag in enumerate(part["tags"]):
                size = profile.sizes[index % len(profile.sizes)]
                tags.setdefault(size, []).append(json.loads(str(tag)))
            for size in profile.sizes:
                if f"z{size[0]}x{size[1]}" in part:
                    groups.setdefault(size, []).append(torch.from_numpy(part[f"z{size[0]}x{size[1]}"]))
    return {size: torch.cat(parts) for size, parts in groups.items()}, tags


def latent_scale(options):
    """(mean, std), each [16, 1, 1, 1]."""
    kept = json.loads((Path(options.run) / "latents.json").read_text())
    return tuple(torch.tensor(kept[k], device=options.device).view(16, 1, 1, 1) for k in ("mean", "std"))


# ---------------------------------------------------------------------------------------------------------------------
# training


def split_parameters(model):
    """(everything, matrices of the blocks, the rest), by name; tied tensors once."""
    everything = dict(model.named_parameters())
    matrices = {n: p for n, p in everything.items() if ".blocks." in n and p.ndim == 2}
    return everything, matrices, {n: p for n, p in everything.items() if n not in matrices}


class Batches:
    """Latents on the device and prompts worded anew each time."""

    def __init__(self, options, profile, words):
        groups, self.tags = load_latents(options, profile)
        mean, std = latent_scale(options)
        self.latents = {s: ((z.to(options.device).float() - mean) / std).half() for s, z in groups.items()}
        self.sizes, self.seed, self.words, self.ids = list(groups), options.seed, words, {}
        self.weights = {s: torch.cat([moving_weight(part.float()).half() for part in z.split(PART)])
                        for s, z in self.latents.items()}
        self.count, self.device = profile.batch, options.device
        self.chances = {}
        for size, tags in self.tags.items():
            often = np.array([DRAWN.get(action, 1.0) for _, action, _ in tags])
            self.chances[size] = often / often.sum()

    def draw(self, step):
        """(clean latents, their weights, sigma [B], noise, token ids) of one step."""
        rng = np.random.default_rng([self.seed, 3, step])
        size = self.sizes[rng.integers(len(self.sizes))]
        index = rng.choice(len(self.latents[size]), self.count, p=self.chances[size])
        ids = []
        for i in index:
            colours, action, light = self.tags[size][i]
            wording = rng.integers(0, 4, 2)
            prompt = scene.describe(colours, action, light, *wording, bool(rng.random() < 0.3))
            ids.append(self._ids("" if rng.random() < DROPPED else prompt))
        u = 1 / (1 + np.exp(-rng.normal(size=self.count)))
        sigma = torch.from_numpy((SHIFT * u / (1 + (SHIFT - 1) * u)).astype(np.float32)).to(self.device)
        chosen = torch.from_numpy(index).to(self.device)
        clean, weight = self.latents[size][chosen].float(), self.weights[size][chosen].float()
        generator = optimize.step_generator(self.seed, "model", step, self.device)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        return clean, weight, sigma, noise, ids

    def _ids(self, prompt):
        if prompt not in self.ids:
            self.ids[prompt] = self.words.encode(prompt).ids
        return self.ids[prompt]


def build(options, profile):
    if options.warm and not (Path(options.run) / "tokenizer").exists():  # ids must stay what they were
        shutil.copytree(Path(options.warm) / "tokenizer", Path(options.run) / "tokenizer")
    words = tokenizer.write(Path(options.run) / "tokenizer", profile.pieces)
    return Model(profile, words.get_vocab_size(), options.seed).to(options.device), words


def moving_weight(clean):
    """Weights [B, 1, T, h, w], mean 1, of the squared error at clean latents [B, 16, T, h, w]: a ball covers a
    twentieth of the picture, and without them it is learnt last."""
    away = (clean - clean[:, :, 1:].median(2, keepdim=True).values).square().mean(1, keepdim=True).sqrt()
    still = away.flatten(3).quantile(0.25, dim=3)[..., None, None]  # of the frame: frame 0 has statistics of its own
    weight = 1 + (MOVING_WEIGHT - 1) * (away - still).clamp(0, 1)
    return weight / weight.mean((1, 2, 3, 4), keepdim=True)


def train(options, profile):
    """One command's worth of training; True when the stage is done."""
    model, words = build(options, profile)
    everything, matrices, rest = split_parameters(model)
    average = optimize.Average(everything)
    rate = WARM_RATE if options.warm else 1.0
    optimizer = optimize.Muon(matrices, rest, 0.02 * rate, 2e-3 * rate)
    meta = optimize.resume(options.run, "model", everything, average, optimizer)
    if meta["done"]:
        return True
    if options.warm and meta["step"] == 0:
        optimize.warm_start(Path(options.warm) / "text_encoder", everything, average, "text.")
        optimize.warm_start(Path(options.warm) / "transformer", everything, average, "transformer.")
    if options.compile:
        for block in model.transformer.blocks:  # one by one: they are alike, so that one is compiled for all
            block.compile(dynamic=False)
    options.say(f"model: {sum(p.numel() for p in everything.values()) / 1e6:.2f} M parameters; loading latents")
    batches = Batches(options, profile, words)
    schedule = optimize.Schedule(profile.model_minutes * options.budget, options.minutes_left(), options.steps,
                                 meta["seconds"], meta["step"], options.stop)

    def one_step(step, progress):
        clean, weight, sigma, noise, ids = batches.draw(step)
        mix = sigma.view(-1, 1, 1, 1, 1)
        with optimize.autocast(options.device):
            velocity = model.velocity((1 - mix) * clean + mix * noise, sigma, model.context(ids))
            loss = ((velocity.float() - (noise - clean)).square() * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(rest.values()), 1.0)
        return loss

    return optimize.run_stage(options.run, "model", everything, average, optimizer, meta, schedule, one_step,
                              options.small, say=options.say)


def load(options, profile):
    """The networks with their averaged weights, for use."""
    model, words = build(options, profile)
    optimize.load_average(options.run, "model", dict(model.named_parameters()))
    return model.eval().requires_grad_(False), words


@torch.no_grad()
def generate(model, words, network, options, prompt, size, seed, steps, guidance):
    """uint8 frames of one prompt, as the pipeline would make them (UniPC, flow sigmas)."""
    width, height = size
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    scheduler.set_timesteps(steps, device=options.device)
    shape = (1, 16, (scene.FRAMES + 3) // 4, height // 8, width // 8)
    x = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).to(options.device)
    branches = [model.context([words.encode(p).ids]) for p in ([prompt, ""] if guidance > 1 else [prompt])]
    with optimize.autocast(options.device):
        for timestep in scheduler.timesteps:
            out = [model.velocity(x, timestep[None].float() / 1000, branch).float() for branch in branches]
            v = out[0] if len(out) == 1 else out[1] + guidance * (out[0] - out[1])
            x = scheduler.step(v, timestep, x, return_dict=False)[0]
        mean, std = latent_scale(options)
        return data.as_frames(autoencoder.decode(network, x * std + mean)[0])


def evaluate(options, profile, count=48, steps=8, guidance=3.0):
    """Measures generated clips, half of them of held-out combinations; returns shares and all clips."""
    model, words = load(options, profile)
    network = autoencoder.load(options, profile)
    right, clips = {"seen": {}, "held out": {}}, []
    for index in range(count):
        held_out = index % 2 == 1
        colours, action, light = scene.choose(data.CHECK_SEED + index // 2 * 2 + held_out, held_out)
        prompt = scene.describe(colours, action, light, index, index // 4, index % 3 == 0)
        size = profile.sizes[index // 2 % len(profile.sizes)]
        frames = generate(model, words, network, options, prompt, size, index, steps, guidance)
        clips.append((prompt, frames))
        verdict = autoencoder.measure.judge(autoencoder.measure.measure(frames), colours, action, light)
        for claim, holds in verdict.items():
            right["held out" if held_out else "seen"].setdefault(claim, []).append(holds)
    report = {kind: {claim: round(float(np.mean(v)), 4) for claim, v in sorted(claims.items())}
              for kind, claims in right.items()}
    report.update(clips=count, steps=steps, guidance=guidance)
    options.say(f"evaluate: {report}")
    return report, clips
