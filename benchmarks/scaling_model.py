#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A MODEL of how a denoise step scales over GPUs: arithmetic on assumptions, not a measurement.

    benchmarks/scaling_model.py                                  Wan 2.1 14B, 720p, 81 frames, up to 8 H100 over NVLink
    benchmarks/scaling_model.py --rate 370 --tflops 600 --fixed-us 12 --step-seconds 60.1

What it computes follows engine/split.h: rows are shared, guidance branches go to two halves, self-attention exchanges
rows for heads. Computing is the single GPU's step divided by the ranks, with the share of the busiest rank; exchange of
queries hides behind the key projection and that of keys behind the value projection; that of values and results does
not. With --step-seconds a measured step of one GPU takes the place of --tflops. Standard library only.
"""
import argparse
import math

MODELS = {  # layers, width, heads, feed-forward, latent channels
    "wan2.1-14b": (40, 5120, 40, 13824, 16),
    "wan2.1-1.3b": (30, 1536, 12, 8960, 16),
}
TEXT_ROWS = 513
BF16 = 2


def flop(model, rows, text):
    """One sequence: projections and feed-forward, self-attention, cross-attention."""
    layers, d, _, f, _ = model
    linear = layers * rows * (12 * d * d + 4 * d * f)
    return linear, layers * 4 * rows * rows * d, layers * 4 * rows * text * d


def step(args, model, rows, ranks):
    """Seconds of a guided step on so many ranks: computing, exchange that shows, exchange that is hidden."""
    layers, d, heads, _, channels = model
    branches = 2 if ranks % 2 == 0 else 1
    group = ranks // branches
    sequences = 2 // branches
    linear, own, cross = flop(model, rows, TEXT_ROWS)
    per_flop = args.step_seconds / (2 * (linear + own + cross)) if args.step_seconds else 1 / (args.tflops * 1e12)
    share_rows = math.ceil(rows / group) / rows
    share_heads = math.ceil(heads / group) / heads
    compute = sequences * per_flop * ((linear + cross) * share_rows + own * share_heads)
    replicated = sequences * args.replicated_us * 1e-6 if ranks > 1 else 0.0
    s = sequences * rows / group
    bytes_one = s * d * BF16 * (1 - 1 / group)  # one of q, k, v or the result, a layer
    packing = 4 * bytes_one / (args.copy_rate * 1e9)  # rows are not dense: read and written on both sides
    wire = args.fixed_us * 1e-6 + bytes_one / (args.rate * 1e9) + packing if group > 1 else 0.0
    projection = per_flop * s * 2 * d * d
    shown = layers * (2 * wire + 2 * max(0.0, wire - projection))
    velocity = s * 4 * channels * 4 * (ranks - 1) / (args.rate * 1e9) + args.fixed_us * 1e-6 if ranks > 1 else 0.0
    return compute + replicated, shown + velocity, layers * 2 * min(wire, projection), layers * 4 * bytes_one


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="wan2.1-14b")
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--tflops", type=float, default=600.0, help="sustained by one GPU over a step; assumed")
    parser.add_argument("--rate", type=float, default=370.0, help="GB/s each way achieved by an all-to-all; assumed")
    parser.add_argument("--fixed-us", type=float, default=12.0, help="of one exchange, whatever its size; assumed")
    parser.add_argument("--copy-rate", type=float, default=2500.0, help="GB/s of packing rows in a GPU; assumed")
    parser.add_argument("--replicated-us", type=float, default=3000.0,
                        help="of a step, done by every rank: solver, patches, modulation; assumed")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="a measured step of one GPU, with guidance")
    args = parser.parse_args()
    width, height = (int(x) for x in args.size.split("x"))
    model = MODELS[args.model]
    rows = ((args.frames - 1) // 4 + 1) * (height // 16) * (width // 16)
    basis = f"{args.step_seconds} s measured" if args.step_seconds else f"{args.tflops:.0f} TFLOP/s assumed"
    print(f"MODELLED, not measured: {args.model} {args.size} {args.frames} frames, {rows} rows, two branches;")
    print(f"one GPU {basis}, all-to-all {args.rate:.0f} GB/s and {args.fixed_us:.0f} us a call assumed, NVLink idle "
          "otherwise")
    print("| GPUs | step s | computing | exchange shown | hidden | GB sent per rank | efficiency |")
    print("|-----:|-------:|----------:|---------------:|-------:|-----------------:|-----------:|")
    alone = sum(step(args, model, rows, 1)[:2])
    for ranks in (1, 2, 4, 8):
        compute, shown, hidden, sent = step(args, model, rows, ranks)
        total = compute + shown
        print(f"| {ranks} | {total:.3f} | {compute:.3f} | {shown:.3f} | {hidden:.3f} | {sent / 1e9:.2f} | "
              f"{alone / ranks / total:.3f} |")


if __name__ == "__main__":
    main()
