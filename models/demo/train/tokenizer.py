# SPDX-License-Identifier: Apache-2.0
"""The demo's tokenizer: a sentencepiece unigram model in which every word of the training prompts is one piece.

It learns from all prompts, from a list of further words (so that letters and common endings become pieces too), and
folds case. Written as spiece.model and as the tokenizer.json that transformers' T5 tokenizer would make of it.
"""
import io
import itertools
import json
import random
import re
from pathlib import Path

import scene
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

EXTRA_IDS = 100
WORD_SCORE = -1.0  # any cut into two learned pieces scores less
CONTROL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
FURTHER = """about above across after along another around away basketball beach before behind below between big black
board brown camera cat child city close court dark dog down dunk fast game girl gray grey green grass high horizon huge
inside jumps kick light low man moon morning near noon of off one orange out over park person pink player players pole
quickly rain ring river round running scene sea second shot side sky slow slowly small snow soft some street summer
sun sunlight sunny table tall three throw throws to toward towards turquoise under up very video violet walks wall water
wide wind window winter with woman wooden young zebra quiz jazz vex 0 1 2 3 4 5 6 7 8 9 - . , ! ? ' " ( ) : ;""".split()


def prompts():
    """Every wording of every combination, with one right ball a colour."""
    colours = list(scene.COLOURS)
    for (index, colour), action, light in itertools.product(enumerate(colours), scene.ACTIONS, scene.LIGHTS):
        pair = (colour, colours[(index + 3) % len(colours)])
        for wording in range(4):
            yield scene.describe(pair if action == "two" else pair[:1], action, light, wording, wording, wording == 3)


def words():
    return sorted({w for prompt in prompts() for w in re.findall(r"[a-z]+", prompt)})


def train_pieces(pieces):
    """The serialized model. Training alone splits rare words, so every word of the prompts is made a piece that
    outweighs any way to cut it; what else is learned serves other people's words."""
    spread = random.Random(0)
    lines = list(prompts()) + [" ".join(spread.sample(FURTHER, 6)) for _ in range(800)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="unigram", vocab_size=pieces - len(words()),
        normalization_rule_name="nmt_nfkc_cf", character_coverage=1.0, hard_vocab_limit=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1, minloglevel=2)
    proto = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    place = {p.piece: p for p in proto.pieces}
    for word in words():
        piece = place.get("\u2581" + word) or proto.pieces.add()
        piece.piece, piece.score = "\u2581" + word, WORD_SCORE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    spiece = proto.SerializeToString()
    model = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    split = [w for w in words() if len(model.encode(w, out_type=str)) != 1]
    if split:
        raise SystemExit(f"with {pieces} pieces these words are split: {' '.join(split)}")
    return spiece


def convert(spiece):
    """The same model for the `tokenizers` library: charsmap, spaces as U+2581, </s> at the end."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    extra = [f"<extra_id_{i}>" for i in reversed(range(EXTRA_IDS))]
    vocabulary = [(p.piece, p.score) for p in proto.pieces] + [(name, 0.0) for name in extra]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=proto.trainer_spec.unk_id, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)])
    special = [vocabulary[i][0] for i in range(4)] + extra
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return tokenizer


def write(folder, pieces):
    """Writes the tokenizer folder where it is not there yet, and returns the tokenizer."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        spiece = train_pieces(pieces)
        (folder / "spiece.model").write_bytes(spiece)
        (folder / "special_tokens_map.json").write_text(json.dumps(CONTROL, indent=1) + "\n")
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "T5Tokenizer", **CONTROL, "extra_ids": EXTRA_IDS, "model_max_length": 512,
             "padding_side": "right"}, indent=1) + "\n")
        convert(spiece).save(str(folder / "tokenizer.json"), pretty=False)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
