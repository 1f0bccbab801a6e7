# SPDX-License-Identifier: Apache-2.0
"""Writes one tiny Wan 2.1 pipeline with random weights, as a folder that diffusers' WanPipeline loads.

Why not simply use the libraries' own initialisation: it leaves norms at one, biases and modulation tables near
zero, and a deep stack of small weights fades to nothing, so a reader that skips a tensor would still pass. Here
every matrix has variance 1/fan_in, every norm weight scatters around one, and every bias and table is far enough
from zero to be missed. `generate.py --probe` proves that each tensor moves the output.

build(folder, config) writes model_index.json, scheduler/, tokenizer/, text_encoder/, transformer/ and vae/.
"""
import io
import json
import math
import random
from pathlib import Path

import sentencepiece
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import UMT5Config, UMT5EncoderModel

EXTRA_IDS = 100
CONTROL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# The tokenizer learns from sentences put together from these words and from names made of syllables, which fill the
# vocabulary with pieces of every length; the other sentences add scripts and punctuation.
WORDS = {
    "who": ("dancer runner child cyclist violinist potter goalkeeper surfer baker gardener dog heron horse "
            "robot").split(),
    "look": "young tired laughing elegant barefoot masked tall curious wet sunlit graceful tiny quiet".split(),
    "does": "jumps turns glides paints climbs juggles waits sprints drifts bows spins rows kneels waves".split(),
    "how": "slowly suddenly gently quickly backwards together again carefully".split(),
    "where": "beach harbour rooftop forest kitchen stadium station desert bridge market glacier meadow".split(),
    "when": "at dawn,at dusk,in heavy rain,under neon light,by candlelight,in thick fog,at noon,in winter".split(","),
    "camera": "handheld tracking static aerial close-up wide-angle low-angle telephoto macro".split(),
    "style": ("cinematic,35mm film,soft focus,high contrast,slow motion,shallow depth of field,4k,"
              "black and white").split(","),
    "other": [
        "Der Töpfer dreht eine Schüssel, während draußen Schnee fällt.", "La danseuse tourne sous la pluie d’été.",
        "El niño salta la cuerda en la plaza.", "Девочка рисует парусник на песке.", "踊り子が雨の中で回る。",
        "少女が砂浜で絵を描いている。", "一个男孩在河边放风筝。", "무용수가 비 속에서 돈다.", "नर्तकी बारिश में घूमती है।",
        "الراقصة تدور تحت المطر.", "🏄 on a wave, ☀️ behind!", "50% grey; f/2.8 (ISO 100) – “golden hour” #3?",
    ],
}
SYLLABLES = "ba ce dri el fo gan hu im jo kel lo mar nu or pin qua ros shi ta ul ven wy xi yo zan".split()
ENDINGS = ["", "", "s", "ed", "ing", "er", "ly", "ness"]


def corpus(seed):
    """A few thousand sentences, the same for the same seed."""
    pick = random.Random(seed).choice
    names = ["".join(pick(SYLLABLES) for _ in range(pick([2, 3]))) for _ in range(400)]
    for n in range(6000):
        w = {k: pick(v) for k, v in WORDS.items()}
        if n % 8 == 0:
            yield w["other"]
        else:
            yield (f"{pick(['A', 'The', 'a', 'the'])} {w['look']} {w['who']} {w['does']} {w['how']} "
                   f"{pick(['on', 'near', 'across'])} the {w['where']} {w['when']}, {w['camera']} shot, {w['style']}, "
                   f"{pick(names)}{pick(ENDINGS)} {pick(names).title()} {n % 97}.")


def train_sentencepiece(pieces, byte_pieces, seed):
    """A unigram model with T5's normaliser; `byte_pieces` adds <0x00>..<0xFF> to the vocabulary."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(seed), model_writer=out, model_type="unigram", vocab_size=pieces,
        normalization_rule_name="nmt_nfkc", byte_fallback=byte_pieces, character_coverage=1.0,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1, minloglevel=2)
    return out.getvalue()


def convert_tokenizer(spiece, byte_fallback):
    """The same model as transformers' T5 converter writes it: charsmap, strip, collapse; metaspace; </s> at the end."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    extra = [f"<extra_id_{i}>" for i in reversed(range(EXTRA_IDS))]
    vocab = [(p.piece, p.score) for p in proto.pieces] + [(name, 0.0) for name in extra]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)])
    special = [vocab[i][0] for i in range(4)] + extra
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return tokenizer


def write_tokenizer(folder, config):
    folder.mkdir(parents=True)
    spiece = train_sentencepiece(config["vocab"], config["byte_pieces"], config["seed"])
    (folder / "spiece.model").write_bytes(spiece)
    tokenizer = convert_tokenizer(spiece, config["byte_fallback"])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "special_tokens_map.json", CONTROL)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "T5Tokenizer", **CONTROL, "extra_ids": EXTRA_IDS, "model_max_length": 512,
        "padding_side": "right"})
    return tokenizer.get_vocab_size()


def scramble(model, generator, gain):
    """Random values for every parameter, by its kind; gain[name] multiplies (see the top of this file)."""
    for name, p in model.named_parameters():
        z = torch.randn(p.shape, generator=generator)
        leaf = name.rsplit(".", 1)[-1]
        if "relative_attention_bias" in name:
            value = 0.7 * z
        elif "scale_shift_table" in name:
            value = 0.3 * z
        elif leaf == "gamma" or "norm" in name and leaf == "weight":
            value = 1 + 0.2 * z
        elif leaf == "bias":
            value = 0.2 * z
        elif name in ("shared.weight", "encoder.embed_tokens.weight"):
            value = z
        else:
            value = z / math.sqrt(p[0].numel())
        p.data.copy_(value * next((g for part, g in gain.items() if part in name), 1.0))
    return model.eval()


def build(folder, config):
    folder = Path(folder)
    generator = torch.Generator("cpu").manual_seed(config["seed"])
    text, dit, vae = config["text"], config["dit"], config["vae"]

    ids = write_tokenizer(folder / "tokenizer", config)
    encoder = UMT5EncoderModel(UMT5Config(
        vocab_size=(ids + 31) // 32 * 32, d_model=text["d_model"], d_kv=text["d_kv"], num_heads=text["heads"],
        d_ff=text["d_ff"], num_layers=text["layers"], num_decoder_layers=text["layers"], dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))
    # UMT5 does not divide its scores by sqrt(d_kv); without this gain the softmax would look at one key only.
    save(scramble(encoder, generator, {"SelfAttention.q.": 1.5 / math.sqrt(text["d_kv"])}),
         folder / "text_encoder", text)

    transformer = WanTransformer3DModel(
        num_attention_heads=dit["heads"], attention_head_dim=dit["head_dim"], in_channels=16, out_channels=16,
        text_dim=text["d_model"], freq_dim=256, ffn_dim=dit["ffn"], num_layers=dit["layers"])
    # Sharper attention than unit norms give, or the keys of a random model would hardly matter.
    save(scramble(transformer, generator, {"norm_q.weight": 1.5, "to_q.bias": 2.0, "to_k.bias": 2.0}),
         folder / "transformer", dit)

    # Less than the natural gain in the last layer keeps nearly all pixels inside the clamp.
    autoencoder = AutoencoderKLWan(base_dim=vae["base_dim"], num_res_blocks=vae["num_res_blocks"])
    save(scramble(autoencoder, generator, {"decoder.conv_out.weight": 0.8}), folder / "vae", vae)

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config["scheduler"]["shift"])
    scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", {
        "_class_name": "WanPipeline", "_diffusers_version": scheduler.config["_diffusers_version"],
        "boundary_ratio": None, "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None], "vae": ["diffusers", "AutoencoderKLWan"]})


def save(model, folder, part):
    model.to(DTYPES[part["dtype"]]).save_pretrained(folder)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
