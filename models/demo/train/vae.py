# SPDX-License-Identifier: Apache-2.0
"""The autoencoder: AutoencoderKLWan itself, a faster forward with the same weights, its training and its gate.

diffusers runs the network one latent frame at a time with caches; one causal pass over the whole clip gives the same
result (to 1e-5), if the temporal resampling leaves frame 0 alone, and trains about ten times faster. Activations are
channels-last. The gate is the point of the stage: no transformer is trained before round trips of fresh clips keep
colour, number of balls and action, as models/demo/measure.py sees them.
"""
import json
import sys
from pathlib import Path

import data
import numpy as np
import optimize
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import measure  # noqa: E402

GATE = 0.95
KL_WEIGHT = 3e-5
MOVING_WEIGHT = 9.0  # of a pixel that differs from the empty court, against 1
LOG_VARIANCE = -8.0  # at the start; with 0 the noise drowns the latents and nothing is learned


def create(profile, seed):
    """A fresh network that starts near a per-frame 2-D autoencoder: of each temporal kernel only the present counts."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=profile.vae_base, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1)
    with torch.no_grad():
        for name, p in vae.named_parameters():
            if p.ndim == 5 and p.shape[2] == 3 and "time_conv" not in name:
                p[:, :, :2] = 0
                p[:, :, 2] *= 3 ** 0.5
            elif p.ndim == 5 and "time_conv" in name:
                p.mul_(0.3)
                channels = torch.arange(p.shape[0])
                p[channels, channels % p.shape[1], 2] += 1.0
        vae.quant_conv.weight[16:] *= 0.01
        vae.quant_conv.bias[16:] = LOG_VARIANCE
    for p in vae.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


# ---------------------------------------------------------------------------------------------------------------------
# whole-sequence forward


def conv(layer, x, stride=1):
    """A causal convolution: zeros in front in time, half a kernel around in space."""
    kt, kh, kw = layer.kernel_size
    if kt > 1:
        x = F.pad(x, (0, 0, 0, 0, kt - 1, 0))
    return F.conv3d(x, layer.weight, layer.bias, stride, (0, kh // 2, kw // 2))


def norm(layer, x):
    return F.normalize(x.float(), dim=1).to(x.dtype) * (layer.scale * layer.gamma).to(x.dtype)


def residual(block, x):
    y = conv(block.conv1, F.silu(norm(block.norm1, x)))
    y = conv(block.conv2, F.silu(norm(block.norm2, y)))
    return y + (conv(block.conv_shortcut, x) if block.in_dim != block.out_dim else x)


def resample(block, x):
    """Up or down by two in space, and in time where the block has a time_conv; frame 0 keeps out of the latter."""
    if block.mode == "upsample3d" and x.shape[2] > 1:
        first, rest = x[:, :, :1], x[:, :, 1:]
        b, c, t, h, w = rest.shape
        rest = F.conv3d(F.pad(rest, (0, 0, 0, 0, 2, 0)), block.time_conv.weight, block.time_conv.bias)
        rest = rest.reshape(b, 2, c, t, h, w).transpose(1, 2).transpose(2, 3).reshape(b, c, 2 * t, h, w)
        x = torch.cat([first, rest], 2)
    spatial = block.resample[1]
    weight = spatial.weight[:, :, None]
    if block.mode.startswith("upsample"):
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        return F.conv3d(x, weight, spatial.bias, 1, (0, 1, 1))
    x = F.conv3d(F.pad(x, (0, 1, 0, 1)), weight, spatial.bias, (1, 2, 2))
    if block.mode == "downsample3d" and x.shape[2] > 1:
        rest = F.conv3d(x, block.time_conv.weight, block.time_conv.bias, (2, 1, 1))
        x = torch.cat([x[:, :, :1], rest], 2)
    return x


def apply(layer, x):
    if isinstance(layer, WanResidualBlock):
        return residual(layer, x)
    if isinstance(layer, WanResample):
        return resample(layer, x)
    if isinstance(layer, WanAttentionBlock):
        return layer(x)
    raise TypeError(f"no whole-sequence form of {type(layer).__name__}")


def through(part, layers, x):
    """conv_in, the layers with the middle block among them, norm, convolution out."""
    x = conv(part.conv_in, x)
    for layer in layers:
        x = apply(layer, x)
    return conv(part.conv_out, F.silu(norm(part.norm_out, x)))


def middle(block):
    return [block.resnets[0], block.attentions[0], block.resnets[1]]


def encode(vae, x):
    """Video [B, 3, 4n+1, H, W] in -1..1 to (mean, log variance), each [B, 16, n+1, H/8, W/8]."""
    x = x.contiguous(memory_format=torch.channels_last_3d)
    part = vae.encoder
    h = conv(vae.quant_conv, through(part, [*part.down_blocks, *middle(part.mid_block)], x))
    mean, log_variance = h.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode(vae, z):
    """Latents to video, not clamped."""
    part, layers = vae.decoder, []
    for block in part.up_blocks:
        layers += [*block.resnets, *(block.upsamplers or [])]
    z = conv(vae.post_quant_conv, z.contiguous(memory_format=torch.channels_last_3d))
    return through(part, [*middle(part.mid_block), *layers], z).float()


# ---------------------------------------------------------------------------------------------------------------------
# training


class Pool:
    """Rendered clips on the device, by size, and random pieces of them."""

    def __init__(self, clips, device):
        self.device, self.groups = device, {}
        for clip in clips:
            self.groups.setdefault(clip.frames.shape[1:3], []).append(clip)
        self.sizes = sorted(self.groups)
        self.frames = {s: torch.from_numpy(np.stack([c.frames for c in g])).to(device) for s, g in self.groups.items()}
        self.moving = {s: torch.from_numpy(np.stack([c.moving for c in g])).to(device) for s, g in self.groups.items()}

    def batch(self, phase, rng):
        """(video [B, 3, T, H, W] in -1..1, moving [B, 1, T, H, W]); half of the crops look at a ball."""
        size = self.sizes[rng.integers(len(self.sizes))]
        height, width = phase.height or size[0], phase.width or size[1]
        frames, moving = [], []
        for _ in range(phase.batch):
            index = int(rng.integers(len(self.groups[size])))
            clip = self.groups[size][index]
            start = int(rng.integers(0, len(clip.frames) - phase.frames + 1))
            row, column = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
            if rng.random() < 0.5:
                ball = clip.paths[rng.integers(len(clip.paths)), start + rng.integers(phase.frames)]
                column = np.clip(ball[0] - width * rng.uniform(0.2, 0.8), 0, size[1] - width)
                row = np.clip(ball[1] - height * rng.uniform(0.2, 0.8), 0, size[0] - height)
            piece = (index, slice(start, start + phase.frames), slice(int(row), int(row) + height),
                     slice(int(column), int(column) + width))
            frames.append(self.frames[size][piece])
            moving.append(self.moving[size][piece])
        return data.as_input(torch.stack(frames), torch), torch.stack(moving)[:, None].float()


def loss_of(vae, video, moving, noise):
    """L1 + MSE with more weight where something moves, and a little KL."""
    mean, log_variance = encode(vae, video)
    error = decode(vae, mean + noise * torch.exp(0.5 * log_variance)) - video
    weight = 1 + (MOVING_WEIGHT - 1) * moving
    picture = ((error.abs() + error * error) * weight).sum() / (weight.sum() * 3)
    kl = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).mean()
    return picture + KL_WEIGHT * kl


def split_parameters(vae):
    """(everything, convolution kernels, the rest), by name."""
    everything = dict(vae.named_parameters())
    kernels = {n: p for n, p in everything.items() if p.ndim >= 4 and p[0].numel() > 1 and "gamma" not in n}
    return everything, kernels, {n: p for n, p in everything.items() if n not in kernels}


def adopt(options):
    """The exported autoencoder as this run's finished one, with its latents' scale: the exported transformer knows no
    other."""
    vae = AutoencoderKLWan.from_pretrained(Path(options.warm) / "vae", torch_dtype=torch.float32)
    weights = {f"average/{n}": p.detach() for n, p in vae.named_parameters()}
    optimize.save_checkpoint(options.run, "vae", weights, {"step": 0, "seconds": 0.0, "done": True, "log": []})
    scale = {"mean": list(vae.config.latents_mean), "std": list(vae.config.latents_std)}
    (Path(options.run) / "latents.json").write_text(json.dumps(scale) + "\n")


def train(options, profile):
    """One command's worth of training; True when the stage is done."""
    if options.warm and not (Path(options.run) / "vae.json").exists():
        adopt(options)
    vae = create(profile, options.seed).to(options.device)
    everything, kernels, rest = split_parameters(vae)
    average = optimize.Average(everything)
    optimizer = optimize.Muon(kernels, rest, 0.03, 1e-3)
    meta = optimize.resume(options.run, "vae", everything, average, optimizer)
    if meta["done"]:
        return True
    options.say(f"vae: {sum(p.numel() for p in everything.values()) / 1e6:.2f} M parameters; rendering clips")
    pool = Pool(data.render(data.TRAIN_SEED, profile.vae_clips, profile.sizes, options.workers), options.device)
    schedule = optimize.Schedule(profile.vae_minutes * options.budget, options.minutes_left(), options.steps,
                                 meta["seconds"], meta["step"], options.stop)

    def one_step(step, progress):
        phase = next(p for p in profile.vae_phases if progress < p.until)
        video, moving = pool.batch(phase, np.random.default_rng([options.seed, 2, step]))
        latent = (len(video), 16, (video.shape[2] + 3) // 4, video.shape[3] // 8, video.shape[4] // 8)
        noise = torch.randn(latent, generator=optimize.step_generator(options.seed, "vae", step)).to(options.device)
        with optimize.autocast(options.device):
            loss = loss_of(vae, video, moving, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(rest.values()), 1.0)
        return loss

    return optimize.run_stage(options.run, "vae", everything, average, optimizer, meta, schedule, one_step,
                              options.small, say=options.say)


def load(options, profile):
    """The trained network with its averaged weights, for use."""
    vae = create(profile, options.seed)
    optimize.load_average(options.run, "vae", dict(vae.named_parameters()))
    return vae.to(options.device).eval().requires_grad_(False)


@torch.no_grad()
def round_trip(vae, frames, device):
    """uint8 frames [T, H, W, 3], encoded to the posterior's mean and decoded again."""
    video = data.as_input(torch.from_numpy(frames)[None].to(device), torch)
    with optimize.autocast(device):
        return data.as_frames(decode(vae, encode(vae, video)[0])[0])


def gate(options, profile):
    """Shares of fresh clips whose round trip keeps each claim, and whether training may go on."""
    vae = load(options, profile)
    clips = data.render(data.CHECK_SEED, profile.gate_clips, profile.sizes, options.workers)
    right, squares = {}, []
    for clip in clips:
        back = round_trip(vae, clip.frames, options.device)
        squares.append(np.mean((back.astype(np.float64) - clip.frames) ** 2))
        for claim, holds in measure.judge(measure.measure(back), clip.colours, clip.action, clip.light).items():
            right.setdefault(claim, []).append(holds)
    report = {claim: round(float(np.mean(values)), 4) for claim, values in sorted(right.items())}
    report["psnr"] = round(float(10 * np.log10(255 ** 2 / np.mean(squares))), 2)
    report["pass"] = all(report[claim] >= GATE for claim in ("colour", "balls", "action"))
    report["clips"] = len(clips)
    options.say(f"gate: {report}")
    return report
