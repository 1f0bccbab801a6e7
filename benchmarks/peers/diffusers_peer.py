#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times diffusers on torch on this machine's CPU, part by part, and prints one JSON document.

    benchmarks/peers/setup
    benchmarks/peers/.venv/bin/python benchmarks/peers/diffusers_peer.py [--only PART...] [--out FILE]

Parts, all at the sizes of Wan 2.1 T2V-1.3B with random weights (the speed of dense arithmetic does not depend on
the values):

    dit        the transformer with --layers blocks (the published model has 30), at 1950 and 3510 tokens, which is
               17 and 33 frames of 240x416; float32 and bfloat16
    attention  scaled_dot_product_attention alone, 12 heads x 128, 3510 tokens; float32 and bfloat16
    vae        AutoencoderKLWan decoding --frames frames of 240x416, in a process of its own so that its peak memory
               can be read; float32, and bfloat16 with --vae-bfloat16
    text       two layers of UMT5-XXL at 512 tokens; float32 and bfloat16

Times are seconds of wall clock: one warm-up, then the median of --repeat runs (the VAE: one run, no warm-up). Every
part notes the load average before it started; compare only figures taken on a quiet machine.
"""
import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time

import torch

PARTS = ["dit", "attention", "vae", "text"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADS, HEAD_DIM, FFN, TEXT_ROWS, TEXT_DIM = 12, 128, 8960, 512, 4096
DIM = HEADS * HEAD_DIM
HEIGHT, WIDTH = 240 // 8, 416 // 8  # latent


def measure(run, repeat):
    """The median of `repeat` calls after one warm-up, and all of them."""
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "best_seconds": min(seconds), "all_seconds": seconds}


def rate(result, flop):
    return result | {"gflop": flop / 1e9, "gflop_per_second": flop / 1e9 / result["seconds"]}


def dit_flop(tokens, layers):
    """Multiplications and additions of the blocks; the embeddings around them are below one percent."""
    projections = 2 * DIM * DIM * (6 * tokens + 2 * TEXT_ROWS) + 4 * tokens * DIM * FFN
    attention = 4 * tokens * (tokens + TEXT_ROWS) * DIM
    return layers * (projections + attention)


@torch.no_grad()
def time_dit(args):
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, in_channels=16, out_channels=16, text_dim=TEXT_DIM,
        ffn_dim=FFN, num_layers=args.layers).eval()
    results = []
    for name, dtype in DTYPES.items():
        cast(model, dtype, keep=model._keep_in_fp32_modules)  # as from_pretrained(dtype=...) does
        forward = torch.compile(model) if args.compile else model
        for latent_frames in (5, 9):
            tokens = latent_frames * (HEIGHT // 2) * (WIDTH // 2)
            inputs = {
                "hidden_states": torch.randn(1, 16, latent_frames, HEIGHT, WIDTH).to(dtype),
                "timestep": torch.tensor([500.0]),
                "encoder_hidden_states": torch.randn(1, TEXT_ROWS, TEXT_DIM).to(dtype)}
            result = rate(measure(lambda: forward(**inputs), args.repeat), dit_flop(tokens, args.layers))
            results.append({"dtype": name, "tokens": tokens, "frames": 4 * latent_frames - 3, **result,
                            "seconds_per_layer": result["seconds"] / args.layers})
            progress("dit", results[-1])
    return {"layers": args.layers, "compiled": args.compile, "forward": results}


def cast(model, dtype, keep=()):
    """Parameters to `dtype`, except those with a component of `keep` in their name (buffers stay as they are)."""
    for name, parameter in model.named_parameters():
        if not set(keep) & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return model


@torch.no_grad()
def time_attention(args):
    tokens = 3510
    results = []
    for name, dtype in DTYPES.items():
        q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM).to(dtype) for _ in range(3))
        result = measure(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), args.repeat)
        results.append({"dtype": name, "tokens": tokens, **rate(result, 4 * tokens * tokens * DIM)})
        progress("attention", results[-1])
    return {"heads": HEADS, "head_dim": HEAD_DIM, "forward": results}


@torch.no_grad()
def time_text(args):
    from transformers import UMT5Config, UMT5EncoderModel

    # The table of 256384 words would cost 4 GB and is only looked up, so it is cut short here.
    layers, rows = 2, 512
    model = UMT5EncoderModel(UMT5Config(
        vocab_size=1024, d_model=4096, d_kv=64, num_heads=64, d_ff=10240, num_layers=layers, dropout_rate=0.0,
        feed_forward_proj="gated-gelu")).eval()
    ids = torch.randint(3, 1024, (1, rows))
    flop = layers * (2 * rows * (4 * 4096 * 4096 + 3 * 4096 * 10240) + 4 * rows * rows * 4096)
    results = []
    for name, dtype in DTYPES.items():
        cast(model, dtype)
        result = rate(measure(lambda: model(ids, torch.ones_like(ids)), args.repeat), flop)
        results.append({"dtype": name, "tokens": rows, **result, "seconds_per_layer": result["seconds"] / layers})
        progress("text", results[-1])
    return {"layers": layers, "forward": results}


def time_vae(args):
    """Runs this script again, once for each type: peak memory belongs to a whole process."""
    results = []
    for name in ["float32"] + ["bfloat16"] * args.vae_bfloat16:
        child = subprocess.run(
            [sys.executable, __file__, "--vae-child", name, "--frames", str(args.frames),
             "--threads", str(args.threads)], stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(child.stdout))
        progress("vae", results[-1])
    return {"base_dim": 96, "decode": results}


@torch.no_grad()
def vae_child(args):
    from diffusers import AutoencoderKLWan

    imported = memory("VmRSS")
    dtype = DTYPES[args.vae_child]
    vae = cast(AutoencoderKLWan(base_dim=96).eval(), dtype)
    latent_frames = (args.frames - 1) // 4 + 1
    latent = torch.randn(1, 16, latent_frames, HEIGHT, WIDTH).to(dtype)
    built, peak_before = memory("VmRSS"), memory("VmHWM")
    start = time.perf_counter()
    frames = vae.decode(latent).sample
    seconds = time.perf_counter() - start
    peak = memory("VmHWM")
    print(json.dumps({
        "dtype": args.vae_child, "latent": list(latent.shape[1:]), "frames": list(frames.shape[1:]),
        "seconds": seconds, "peak_rss_mib": peak, "rss_after_imports_mib": imported,
        "rss_after_build_mib": built, "peak_rss_before_decode_mib": peak_before,
        "peak_minus_imports_mib": peak - imported}))


def memory(field):
    """A line of /proc/self/status, in MiB."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field + ":"))


def machine(threads):
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        fields = dict(line.split(":", 1) for line in info.read().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
    return {
        "cpu": fields.get("model name"), "cores": len(os.sched_getaffinity(0)), "threads": threads,
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "flags": [f for f in wanted if f in fields.get("flags", "").split()],
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available()}


def progress(part, result):
    print(f"{part}: {result['dtype']} {result.get('tokens') or result.get('frames')}: {result['seconds']:.3f} s",
          file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the median is taken")
    parser.add_argument("--layers", type=int, default=6, help="transformer blocks")
    parser.add_argument("--frames", type=int, default=17, help="frames the VAE decodes (4n + 1)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer (needs a C++ compiler)")
    parser.add_argument("--vae-bfloat16", action="store_true", help="also decode in bfloat16")
    parser.add_argument("--out", help="also write the document to this file")
    parser.add_argument("--vae-child", choices=DTYPES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.vae_child:
        vae_child(args)
        return
    run = {"dit": time_dit, "attention": time_attention, "vae": time_vae, "text": time_text}
    document = {
        "peer": "diffusers",
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "diffusers", "transformers", "numpy")}
        | {"torch": torch.__version__, "python": sys.version.split()[0]},
        "machine": machine(args.threads), "repeat": args.repeat}
    for part in args.only:
        load = os.getloadavg()
        document[part] = {"load_average_before": load, **run[part](args)}
    text = json.dumps(document, indent=1)
    print(text)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as out:
            out.write(text + "\n")


if __name__ == "__main__":
    main()
