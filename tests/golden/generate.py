#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes and checks golden fixtures: a tiny random model and what diffusers makes of it (see README.md).

    generate.py NAME...          write the named fixtures of CONFIGS next to this script (replacing them)
    generate.py --check DIR...   run diffusers on DIR/model again and compare with DIR/expected.safetensors
    generate.py --probe DIR...   show that every weight of DIR/model changes an output

Needs the packages of requirements.txt. To add a fixture, add an entry to CONFIGS.
"""
import argparse
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import build_model
import run_reference

HERE = Path(__file__).resolve().parent
PACKAGES = ["torch", "diffusers", "transformers", "tokenizers", "sentencepiece", "numpy"]
TOLERANCE = 1e-5           # float32 against float32, of the largest value where that exceeds one
TOLERANCE_BFLOAT16 = 2e-2  # some values are rounded the other way on other processors

CONFIGS = {
    # Odd sizes on purpose: head size 64 splits unevenly into 24/20/20, d_kv 10 and ffn 200 are no multiples of a
    # vector register, the weights are stored in half precision, and the first prompt reaches the last position bucket.
    "wan21-wide": {
        "seed": 31, "vocab": 912, "byte_pieces": False, "byte_fallback": False,
        "text": {"d_model": 40, "d_kv": 10, "heads": 4, "d_ff": 72, "layers": 2, "dtype": "bfloat16"},
        "dit": {"heads": 3, "head_dim": 64, "ffn": 200, "layers": 3, "dtype": "bfloat16"},
        "vae": {"base_dim": 8, "num_res_blocks": 2, "dtype": "float16"},
        "scheduler": {"kind": "unipc", "shift": 5.0},
        "requests": [
            {"prompt": "A young dancer turns slowly on the rooftop at dusk, handheld tracking shot, 35mm film, while a "
                       "tall robot waits near the harbour and a wet dog sprints across the bridge in heavy rain; the "
                       "camera glides backwards, soft focus, high contrast, the light drifts from gold to grey, a "
                       "laughing child waves, the heron bows, the baker rows home under neon light, cinematic, 4k.",
             "negative_prompt": "static, black and white, shallow depth of field", "height": 48, "width": 32,
             "frames": 9, "steps": 6, "guidance": 4.0, "seed": 2024, "scheduler": {"kind": "unipc", "shift": 5.0}},
            {"prompt": "Der Töpfer dreht eine Schüssel", "negative_prompt": None, "height": 16, "width": 48,
             "frames": 5, "steps": 5, "guidance": 1.0, "seed": 99, "scheduler": {"kind": "euler", "shift": 3.0}},
        ],
        "vae_sizes": [[1, 2, 4], [3, 2, 2]],
        "timestep": 412.0,
    },
}

# Tokenizer cases: white space, compatibility forms, scripts in and out of the vocabulary, joiners, controls, lengths.
STRINGS = [
    "a surfer waits at dawn", "", "   ", "\ttabs\tand\nlines\r\n", "  lead,  middle  and trail  ",
    "UPPER lower MiXeD",
    "été e\u0301te\u0301 Töpfer To\u0308pfer", "ﬂow ﬁlm Ⅷ ㎏ ① ½ ²", "ＷＩＤＥ　ｓｐａｃｅ",
    "踊り子がガ\u3099行く", "一个男孩在河边",
    "무용수 무용수", "नर्तकी घूमती", "الراقصة تدور", "Девочка ёлка", "🏄 ☀️ 👩‍🚀 🇫🇷",
    "soft\u00adhyphen zero\u200bwidth nb\u00a0sp",
    "“curly” ‘quotes’ — … ‹›", "control \u0001\u007f chars", "<extra_id_7> </s> <pad> in text", "<extra_id_100>",
    "▁ lower one eighth block",
    "x" * 200, "dancer " * 300, "unseen: ☃ 𝔘 ก ß ſ İ ﷺ", "\ufeffbom and \u2028 line separator",
    "1234567890 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
]


def random_inputs(config):
    """The inputs of the parts that run alone: normal latents and contexts, uniform pixels."""
    generator = torch.Generator("cpu").manual_seed(config["seed"] + 1)
    vae = {}
    for t, h, w in config["vae_sizes"]:
        latent = torch.randn(16, t, h, w, generator=generator)
        vae[f"{t}x{h}x{w}"] = latent, 2 * torch.rand(3, 4 * t - 3, 8 * h, 8 * w, generator=generator) - 1
    latent = torch.randn(16, 3, 6, 10, generator=generator)
    context = torch.randn(512, config["text"]["d_model"], generator=generator)
    return vae, (latent, context, torch.tensor([config["timestep"]]))


def recorded_inputs(expected):
    """The same, taken from a fixture."""
    tags = sorted({name.split(".")[1] for name in expected if name.startswith("decode.")})
    vae = {tag: (expected[f"decode.{tag}.latent"], expected[f"encode.{tag}.frames"]) for tag in tags}
    return vae, (expected["dit.input"], expected["dit.context"], expected["dit.timestep"])


def run_all(model, requests, vae_inputs, dit_inputs):
    pipe = run_reference.load(model)
    tensors = {}
    for i, request in enumerate(requests):
        tensors |= run_reference.run_request(pipe, model, request, f"request{i}")
    for tag, (latent, frames) in vae_inputs.items():
        tensors |= run_reference.run_vae(pipe, tag, latent, frames)
    return tensors | run_reference.run_dit(pipe, model, *dit_inputs)


def generate(name):
    config = CONFIGS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    build_model.build(folder / "model", config)
    tensors = run_all(folder / "model", config["requests"], *random_inputs(config))
    save_file(tensors, folder / "expected.safetensors")
    tokenizer = run_reference.read_tokenizer(folder / "model")
    build_model.write_json(folder / "case.json", {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES} | {"torch": torch.__version__},
        "config": {k: v for k, v in config.items() if k != "requests"},
        "requests": [r | {"prompt_ids": tokenizer.encode(r["prompt"]).ids} for r in config["requests"]],
        "tokenizer": [{"text": s, "ids": tokenizer.encode(s).ids} for s in STRINGS],
        "tensors": {k: list(v.shape) for k, v in tensors.items()}})
    files = [f for f in folder.rglob("*") if f.is_file()]
    for f in files:
        f.chmod(0o644)  # the libraries write some files for their owner only
    size = sum(f.stat().st_size for f in files)
    print(f"{name}: {len(tensors)} tensors, {size / 2**20:.2f} MiB")
    for key, t in tensors.items():
        if key.endswith(("frames", "velocity", "mean")) or ".output." in key:
            print(f"  {key:28} std {t.std():.3f}  in [{t.min():.3f}, {t.max():.3f}]")


def check(folder):
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    expected = load_file(folder / "expected.safetensors")
    got = run_all(folder / "model", case["requests"], *recorded_inputs(expected))
    good = got.keys() == expected.keys() == case["tensors"].keys()
    if not good:
        print("  names differ:", sorted(got.keys() ^ expected.keys()), sorted(got.keys() ^ case["tensors"].keys()))
    for name in (n for n in expected if n in got):
        same_shape = got[name].shape == expected[name].shape and list(got[name].shape) == case["tensors"][name]
        difference = (got[name] - expected[name]).abs().max().item() if same_shape else float("inf")
        scale = max(1.0, expected[name].abs().max().item())
        ok = difference <= scale * (TOLERANCE_BFLOAT16 if name.endswith("bfloat16") else TOLERANCE)
        good &= ok
        if difference > 0:
            print(f"  {name:28} {difference:.2e}{'' if ok else '  DIFFERS'}")
    tokenizer = run_reference.read_tokenizer(folder / "model")
    strings = [(r["prompt"], r["prompt_ids"]) for r in case["requests"]]
    strings += [(s["text"], s["ids"]) for s in case["tokenizer"]]
    for text, ids in strings:
        if tokenizer.encode(text).ids != ids:
            good = False
            print(f"  token ids DIFFER for {text[:40]!r}")
    print(f"{folder.name}: {len(expected)} tensors, {len(strings)} token lists: {'same' if good else 'NOT the same'}")
    return good


def probe(folder):
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    changes = run_reference.probe(run_reference.load(folder / "model"), case["requests"][0]["prompt"],
                                  load_file(folder / "expected.safetensors"))
    for name, change in sorted(changes.items(), key=lambda c: c[1])[:8]:
        print(f"  {change:.2e}  {name}")
    print(f"{folder.name}: {len(changes)} weights, smallest effect {min(changes.values()):.1e}")
    return min(changes.values()) > 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of: " + ", ".join(CONFIGS))
    parser.add_argument("--check", nargs="+", type=Path, metavar="DIR", default=[])
    parser.add_argument("--probe", nargs="+", type=Path, metavar="DIR", default=[])
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in CONFIGS]
    if unknown or not (args.names or args.check or args.probe):
        parser.error(f"no such fixture: {', '.join(unknown)}" if unknown else "nothing to do")
    torch.manual_seed(0)
    for name in args.names:
        generate(name)
    results = [check(folder.resolve()) for folder in args.check] + [probe(folder.resolve()) for folder in args.probe]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
