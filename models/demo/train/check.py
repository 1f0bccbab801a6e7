# SPDX-License-Identifier: Apache-2.0
"""Checks what the training code promises, on tiny networks: python3 models/demo/train/check.py

Takes two minutes of one core.

Each check compares with diffusers or with an uninterrupted run. Ends with a line "N passed, N failed".
"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))
import model  # noqa: E402
import optimize  # noqa: E402
import tokenizer  # noqa: E402
import vae as autoencoder  # noqa: E402
from profiles import PROFILES  # noqa: E402

TINY = PROFILES["tiny"]


def scramble(network, seed):
    """Weights in which nothing is zero or one, so that a part left out is missed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            z = torch.randn(p.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight") or name.endswith("gamma")
            small = p.ndim == 1 or "table" in name
            p.copy_(1 + 0.2 * z if norm else 0.2 * z if small else z / p[0].numel() ** 0.5)
    return network


def command(folder, *more):
    fixed = ["--run", folder, "--profile", "tiny", "--threads", "1", "--no-gate"]
    done = subprocess.run([sys.executable, str(FOLDER / "train"), *fixed, *more], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise AssertionError(done.stderr[-2000:])
    return done


class Networks(unittest.TestCase):
    @torch.no_grad()
    def test_whole_sequence_is_the_chunked_autoencoder(self):
        vae = scramble(autoencoder.create(TINY, 0), 1)
        generator = torch.Generator().manual_seed(2)
        for frames in (1, 5, 9, 13):
            video = torch.randn(2, 3, frames, 32, 48, generator=generator)
            expected = vae.encode(video).latent_dist
            mean, log_variance = autoencoder.encode(vae, video)
            torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(log_variance, expected.logvar, rtol=1e-4, atol=1e-4)
            latent = torch.randn(mean.shape, generator=generator)
            back = autoencoder.decode(vae, latent)
            torch.testing.assert_close(back.clamp(-1, 1), vae.decode(latent).sample, rtol=1e-4, atol=1e-4)
            self.assertGreater(float(back.std()), 0.05)

    @torch.no_grad()
    def test_one_zero_row_stands_for_all(self):
        both = scramble(model.Model(TINY, 370, 0), 3).eval()
        ids = [[5, 9, 30, 1], [1], [7, 8, 9, 10, 11, 12, 1]]
        x = torch.randn(3, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
        sigma = torch.tensor([0.9, 0.5, 0.1])
        short = both.velocity(x, sigma, both.context(ids))
        full = both.velocity(x, sigma, both.context(ids, full=True))
        torch.testing.assert_close(short, full, rtol=1e-4, atol=2e-5)
        plain = both.context(ids)[0]
        self.assertGreater(float((both.velocity(x, sigma, (plain, None)) - full).abs().max()), 1e-3)

    @torch.no_grad()
    def test_attention_is_diffusers(self):
        both = scramble(model.Model(PROFILES["gpu"], 370, 0), 6).eval()  # two heads
        x = torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(7))
        sigma, context = torch.tensor([0.9, 0.3]), both.context([[5, 9, 30, 1], [7, 8, 9, 10, 1]], full=True)
        ours = both.velocity(x, sigma, context)
        for block in both.transformer.blocks:
            block.attn1.set_processor(WanAttnProcessor())
            block.attn2.set_processor(WanAttnProcessor())
        torch.testing.assert_close(ours, both.velocity(x, sigma, context), rtol=1e-4, atol=2e-5)

    def test_prompts_start_out_heard(self):
        """At the start the real rows, not the 490 equal ones, get a fair share of cross-attention."""
        both = model.Model(PROFILES["cpu"], 370, 0)
        rows, bias = both.context([[5, 9, 30, 6, 22, 41, 50, 12, 1]])
        attn = both.transformer.blocks[0].attn2
        text = both.transformer.condition_embedder.text_embedder(rows)
        y = torch.randn(1, 50, 128, generator=torch.Generator().manual_seed(0))
        q, k = attn.norm_q(attn.to_q(y)), attn.norm_k(attn.to_k(text))
        share = torch.softmax(q @ k.mT / 128 ** 0.5 + bias[:, 0], -1)[..., :-1].sum(-1).mean().detach()
        self.assertGreater(float(share), 0.3)

    def test_orthogonal(self):
        for shape in ((16, 40), (40, 16), (16, 16)):
            g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5))
            values = torch.linalg.svdvals(optimize.orthogonal(g))
            self.assertGreater(float(values.max()), 0.9)
            self.assertLess(float(values.max()), 1.3)


class Tokenizer(unittest.TestCase):
    def test_words_are_pieces_and_both_files_agree(self):
        import sentencepiece

        with tempfile.TemporaryDirectory() as folder:
            words = tokenizer.write(folder, 300)
            pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/spiece.model")
            others = ["", "A RED Ball", "a turquoise elephant in Zürich", "ball,ball  ball", "2 balls?"]
            for prompt in [*tokenizer.prompts(), *others]:
                self.assertEqual(words.encode(prompt).ids, [*pieces.encode(prompt), 1], prompt)
            self.assertEqual(words.encode("An ORANGE ball").tokens, ["▁an", "▁orange", "▁ball", "</s>"])
            self.assertLess(words.get_vocab_size(), 450)


class Runs(unittest.TestCase):
    def same(self, stage, one, other):
        tensors, meta = optimize.load_checkpoint(one, stage)
        others, other_meta = optimize.load_checkpoint(other, stage)
        self.assertEqual((meta["step"], meta["done"]), (other_meta["step"], other_meta["done"]))
        self.assertEqual(set(tensors), set(others))
        for name, t in tensors.items():
            self.assertTrue(torch.equal(t, others[name]), f"{stage}: {name} differs after resuming")
        return tensors, others

    def test_resuming_repeats_the_run_to_the_bit_and_the_result_loads(self):
        with tempfile.TemporaryDirectory() as folder:
            straight, broken, out = f"{folder}/straight", f"{folder}/broken", f"{folder}/out"
            command(straight, "vae", "--steps", "8")
            for stop in ("3", "5", "8"):
                command(broken, "vae", "--steps", "8", "--stop", stop)
            self.same("vae", straight, broken)
            for stage, run in (("latents", straight), ("latents", broken), ("transformer", straight)):
                command(run, stage, "--steps", "8")
            command(broken, "transformer", "--steps", "8", "--stop", "4")
            unfinished, meta = optimize.load_checkpoint(broken, "model")
            self.assertFalse(meta["done"])
            self.assertIn("weights/transformer.proj_out.weight", unfinished)
            command(broken, "transformer", "--steps", "8")
            self.same("model", straight, broken)
            command(straight, "export", "--out", out)
            self.pipeline(straight, out)

    def pipeline(self, run, out):
        """WanPipeline makes of the exported folder what our own sampling makes of it."""
        from diffusers import AutoencoderKLWan, WanPipeline

        vae = AutoencoderKLWan.from_pretrained(out, subfolder="vae", torch_dtype=torch.float32)
        pipe = WanPipeline.from_pretrained(out, vae=vae, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        scale = json.loads((Path(run) / "latents.json").read_text())
        self.assertEqual(pipe.vae.config.latents_std, scale["std"])
        prompt = "a red ball rolls to the left, at night"
        expected = pipe(prompt, height=32, width=48, num_frames=33, num_inference_steps=3, guidance_scale=3.0,
                        generator=torch.Generator("cpu").manual_seed(7), output_type="np").frames[0]
        both = model.Model(TINY, 370, 0).eval()
        both.text, both.transformer = pipe.text_encoder, pipe.transformer
        both.attach()
        words = tokenizer.write(Path(run) / "tokenizer", TINY.pieces)
        options = SimpleNamespace(run=run, device="cpu")
        with mock.patch.object(optimize, "_cpu_flags", frozenset):  # float32, as the pipeline, on any CPU
            frames = model.generate(both, words, pipe.vae, options, prompt, (48, 32), 7, 3, 3.0)
        self.assertEqual(frames.shape, (33, 32, 48, 3))
        self.assertLessEqual(np.abs(frames / 255 - expected).max(), 1.5 / 255)

    def test_small_checkpoints_are_half_the_size_and_resume(self):
        with tempfile.TemporaryDirectory() as folder:
            command(f"{folder}/full", "vae", "--steps", "8", "--stop", "4")
            command(f"{folder}/small", "vae", "--steps", "8", "--stop", "4", "--small")
            size = {kind: sum(f.stat().st_size for f in Path(folder, kind).glob("vae.*.safetensors"))
                    for kind in ("full", "small")}
            self.assertLess(size["small"], 0.55 * size["full"])
            command(f"{folder}/full", "vae", "--steps", "8")
            command(f"{folder}/small", "vae", "--steps", "8")
            exact, rounded = (optimize.load_checkpoint(f"{folder}/{k}", "vae")[0] for k in ("full", "small"))
            for name, t in exact.items():
                self.assertLess(float((t - rounded[name]).abs().max()), 0.05, name)

    def test_gate_stops_the_run(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, str(FOLDER / "train"), "--run", folder, "--profile", "tiny",
                                   "--threads", "1", "--steps", "1"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, done.stderr[-1000:])
            self.assertIn("does not pass its gate", done.stdout)
            self.assertFalse(list(Path(folder).glob("model.*")))


class Shards(unittest.TestCase):
    def test_large_states_are_cut_below_16_mib(self):
        with tempfile.TemporaryDirectory() as folder:
            tensors = {f"weights/{i}": torch.full((1 << 20,), float(i)) for i in range(9)}
            optimize.save_checkpoint(folder, "x", tensors, {"step": 3})
            sizes = [f.stat().st_size for f in Path(folder).glob("x.*.safetensors")]
            self.assertEqual(len(sizes), 3)
            self.assertLess(max(sizes), 16 << 20)
            back, meta = optimize.load_checkpoint(folder, "x")
            self.assertTrue(all(torch.equal(back[n], t) for n, t in tensors.items()))
            optimize.save_checkpoint(folder, "x", {"weights/0": tensors["weights/0"]}, {"step": 4})
            self.assertEqual(len(list(Path(folder).glob("x.*.safetensors"))), 1)
            Path(folder, "x.json").write_text(json.dumps({**meta, "step": 5, "files": ["x.00.safetensors"]}))
            with self.assertRaisesRegex(SystemExit, "of step 4"):
                optimize.load_checkpoint(folder, "x")


def main():
    torch.set_num_threads(1)
    self = sys.modules[__name__]
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(
        unittest.defaultTestLoader.loadTestsFromModule(self))
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    print(f"{result.testsRun - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
