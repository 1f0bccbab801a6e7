#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tokenizer_cases.json: strings that are hard to tokenize, with the ids that `tokenizers` (for tokenizer.json)
and `sentencepiece` (for spiece.model) give them, and prompts with what Python's html module and the regex module make
of them, as diffusers does.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3 regex==2026.11.15
    python3 tests/golden/tokenizer_cases.py

`texts` are tokenized by every file under `files`, `bytes` (hexadecimal, not always UTF-8) by the spiece.model files;
`variants` are small tokenizer.json documents, one for each way a step can be set.
"""
import copy
import html
import json
import pathlib
import random

import regex
import sentencepiece
import tokenizers

FOLDER = pathlib.Path(__file__).parent
MODELS = ["wan21-small", "wan21-head128"]

FIXED = [
    "", " ", "   ", "\n", "\t \r\n", "a", " a", "a ", "  a  b   c  ", "a red ball bounces off the backboard",
    "\u0000", "a\u0000b", "\u0001", "\u0001a", "a\u0001", "a\u0008b", "\u007f", "\u0085", "\u00a0", "\u200b",
    "\ufeff",
    "\ufffd", "\u2028", "\u3000", "\u3000a\u3000", "a\u200bb", "a\u200db", "a\u00adb", "\u200e\u202aabc\u202c",
    "line one\nline two\r\nline three\rline four\u2029five\x0bsix\x0cseven",
    "e\u0301", "e\u0301\u0302", "e\u0302\u0301", "\u00e9\u0301", "q\u0301", "\u0301", " \u0301", "\u00bd\u0301",
    "\u00bd\u200d", "\u2122\ufe0f", "e\u0301\u0897", "\u00bd\u0897", "\u1e9b\u0323", "A\u030a", "\u212b",
    "か\u3099", "は\u309a", "カ\u3099", "ｶﾞ", "ﾊﾟ", "がぎぐげご", "㌔", "㍿", "①②③", "Ⅳ", "ﬁﬂﬀﬃ", "½¼¾",
    "x²y³", "№ ℃ ™",
    "Ｆｕｌｌ　ｗｉｄｔｈ！", "ａｂｃ１２３", "赤いボールが跳ねる", "一只红色的球跳过墙", "빨간 공이 튄다",
    "\u1105\u116e", "\u1112\u1161\u11ab", "ᄀ가",
    "हिन्दी में गेंद", "क्ष", "क्\u200dष", "நி", "กำ", "ำ", "العربية", "ﷺ", "ﻻ", "ﭐﭑ", "שלום", "красный мяч",
    "👩\u200d👩\u200d👧", "👍🏽", "🏳️\u200d🌈", "🇩🇪🇫🇷🇯", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "☔️☃",
    "𝔘𝕟𝕚", "\U0010ffff", "\ue000",
    "</s>", "a</s>b", " </s> ", "<pad><s></s><unk>", "<extra_id_0>", "x <extra_id_0> y",
    "<extra_id_0><extra_id_1>",
    "<extra_id_", "<extra_id_100>", "<<extra_id_5>>", "</s", "<0x41>", "<0x4>", "▁", "▁▁a", "a▁b", " ▁ ",
    "don’t “quote” … — –", "1234567890", "3.14159e-10",
    "a" * 300, "A" * 300, "word " * 60, " " * 100, "é" * 100, "赤" * 100,
    "aaa  bbb   ccc    ddd", "\u0600\u06dd1", "x\u20d7", "i\u0307", "İ", "ß", "ŉ", "\u0344", "\u0958",
    "\u0915\u093c",
]


def random_text(rng):
    pools = [
        lambda: chr(rng.randrange(0x20, 0x7f)),
        lambda: rng.choice(" \t\n\r\x0b\x0c\u00a0\u3000\u2009\u200b\u2028\u0085"),
        lambda: rng.choice("aeiouAEIOUnscz") + rng.choice(["\u0301", "\u0300", "\u0308", "\u0302\u0301",
        "\u0327"]),
        lambda: chr(rng.randrange(0x4e00, 0x9fff)),
        lambda: chr(rng.randrange(0x3041, 0x30ff)),
        lambda: rng.choice("かきくけこはひふへほカキハヒウ") + rng.choice("\u3099\u309a"),
        lambda: chr(rng.randrange(0x1100, 0x1113)) + chr(rng.randrange(0x1161, 0x1176)),
        lambda: chr(rng.randrange(0x900, 0x97f)),
        lambda: chr(rng.randrange(0xfb50, 0xfdff)),
        lambda: chr(rng.randrange(0xff01, 0xffee)),
        lambda: chr(rng.randrange(0, 0x20)),
        lambda: chr(rng.randrange(0x7f, 0x180)),
        lambda: rng.choice(["👩\u200d👧", "👍🏽", "🇩🇪", "🇫", "☔️", "\u200d", "\ufe0f", "©️"]),
        lambda: rng.choice("½¼²№™ﬁⅣ①㍿ｶ") + rng.choice(["", "\u0301", "\u200d", "\ufe0f"]),
        lambda: rng.choice(["</s>", "<pad>", "<extra_id_0>", "<unk>", " </s> ", "<extra_id_1>\n", "▁", "\ufffd"]),
        lambda: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(1, 20))),
        lambda: rng.choice(["the ", "red ball ", "a cat’s ", "  two   spaces  ", "bounces off "]),
        lambda: chr(rng.choice([rng.randrange(0x180, 0xd800), rng.randrange(0xe000, 0x110000)])),
        lambda: chr(rng.randrange(0x300, 0x370)),
    ]
    chosen = pools if rng.random() < 0.5 else rng.sample(pools, rng.randrange(1, 4))
    return "".join(rng.choice(chosen)() for _ in range(rng.choice([1, 2, 3, 5, 8, 13])))


def random_bytes(rng):
    data = bytearray(random_text(rng).encode())
    for _ in range(rng.randrange(1, 6)):
        if data and rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            data.insert(rng.randrange(len(data) + 1), rng.randrange(128, 256))
    return bytes(data)


BROKEN = [b"\xff", b"a\x80b", b"\xe2\x82", b"\xe2\x82A", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
b"\xf0\x9f\x91",
          b"ball\xe2\x96", b"\xef\xbf\xbd\xff", b"\xc3\xa9\xc3", b"\xf8\x88\x80\x80\x80"]

# ---- small documents, one for each setting ----

PIECES = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["a", -3.0], ["b", -3.0], ["ab", -5.5],
["▁a", -4.5],
          ["▁ab", -6.0], ["aa", -6.0], ["é", -4.0], ["fi", -5.0], ["x", -3.5], ["▁▁", -5.0], [" ", -4.0],
          ["aab", -9.0],
          ["ba", -6.0], ["<0x41>", -20.0], ["<0xC3>", -20.0], ["<0x9F>", -20.0], ["AB", -1.0], ["A", 9.0],
          ["bab", -9.25]]
TEXTS = ["", " ", "a", "ab", " ab", "ab  aab ", "aaaa", "abab ba", "\u00e9e\u0301", "ﬁ ﬁ", "A", "ABA",
"A\u00df", "zz a zz", "  a",
         "a\tb\nc", "<x>", "a<x>b", " <x> ", "a <x>b", "<x><x>", "</s>a", "▁a▁b", "\u3000a\u00a0b",
         "x<pad>  <pad>x", "--a---b", "a  b   c",
         "\u0001a", "a\u200bb", "<y>", "é<y>é", "aa</s> </s> aa", "\u00bda", "\u00a8a", "<unk>q", "q<unk>",
         "qrs", "qas"]


def added(index, content, **flags):
    entry = {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
    return {**entry, **flags}


def variants():
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    base = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>"), added(len(PIECES), "<x>")],
        "normalizer": None, "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": PIECES, "byte_fallback": False},
    }
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}

    def replace(kind, pattern, content):
        return {"type": "Replace", "pattern": {kind: pattern}, "content": content}

    def sequence(*steps):
        return {"type": "Sequence", "normalizers": list(steps)}

    def make(**changes):
        document = copy.deepcopy(base)
        document.update(copy.deepcopy(changes))
        return document

    def flagged(**flags):
        tokens = base["added_tokens"]
        return [dict(token, **flags) for token in tokens] + [added(len(PIECES) + 1, "<y>", **flags)]

    out = {"plain": base, "no_pre_tokenizer": make(pre_tokenizer=None)}
    for scheme in ["always", "first", "never"]:
        for split in [True, False]:
            step = dict(metaspace, prepend_scheme=scheme, split=split)
            out[f"metaspace_{scheme}_{split}"] = make(pre_tokenizer=step)
            out[f"metaspace_{scheme}_{split}_strip"] = make(pre_tokenizer=step, normalizer=strip)
    legacy = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    out["metaspace_legacy"] = make(pre_tokenizer=legacy)
    out["whitespace_split"] = make(pre_tokenizer=words)
    out["whitespace_split_first"] = make(pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, dict(metaspace, prepend_scheme="first")]})
    for form in ["NFC", "NFD", "NFKC", "NFKD", "Nmt"]:
        out[form] = make(normalizer={"type": form})
    out["strip_left"] = make(normalizer={"type": "Strip", "strip_left": True, "strip_right": False})
    out["strip_right"] = make(normalizer={"type": "Strip", "strip_left": False, "strip_right": True})
    out["replace_string"] = make(normalizer=sequence(replace("String", "ab", "x"), replace("String", "x", "ba")))
    out["replace_spaces"] = make(normalizer=replace("Regex", " {2,}", "▁"))
    out["replace_white"] = make(normalizer=replace("Regex", "\\s+", " "))
    out["replace_white_2"] = make(normalizer=replace("Regex", "\\s{2,}", "x"))
    out["replace_dashes"] = make(normalizer=replace("Regex", "-+", ""))
    out["prepend"] = make(normalizer=sequence({"type": "Prepend", "prepend": "▁"}, replace("String", " ", "▁")),
                          pre_tokenizer=None)
    for name in ["single_word", "lstrip", "rstrip", "normalized"]:
        out[name] = make(added_tokens=flagged(**{name: True}))
    out["strips_normalized"] = make(added_tokens=flagged(lstrip=True, rstrip=True, normalized=True),
                                    normalizer=replace("String", "x", "ab"))
    out["overlapping"] = make(added_tokens=[added(1, "</s>"), added(4, "a"), added(6, "ab", rstrip=True),
                                            added(15, "aab", lstrip=True)])
    out["repeated"] = make(added_tokens=[added(1, "</s>"), added(4, "a"), added(4, "a", rstrip=True)])
    model = dict(base["model"], byte_fallback=True)
    out["byte_fallback"] = make(model=model)
    out["same_piece_twice"] = make(model=dict(base["model"], vocab=PIECES + [["ab", -1.0], ["▁a", -90.0]]))
    template = copy.deepcopy(base["post_processor"])
    template["single"].insert(0, {"SpecialToken": {"id": "</s>", "type_id": 0}})
    out["token_in_front"] = make(post_processor=template)
    return out


def encode_variant(document):
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
    return [[text, tokenizer.encode(text).ids] for text in TEXTS]


# ---- prompts ----

PROMPTS = [
    "", " ", "a", "  a \n b\t\tc  ", "\u3000a\u00a0\u2009b\u2028c\u0085", "\x1ca\x1d\x1e\x1fb", "a\u200bb",
    "&amp;", "&amp;amp;", "&amp;amp;amp;",
    "&lt;b&gt;", "&ltb", "&notit;", "&notin;", "&notin", "&NotEqualTilde;", "&amp;lt;", "&", "&&", "&;", "&#",
    "&#;", "&#x;", "&#x",
    "&#65;", "&#65", "&#065b", "&#x41;", "&#X41g", "&#0;", "&#x80;", "&#129;", "&#13;", "&#1;", "&#xb;",
    "&#127;", "&#xd800;",
    "&#xfffe;", "&#xfdd0;", "&#x10ffff;", "&#x110000;", "&#99999999999999999999;", "&nbsp;a&nbsp;",
    "a&NewLine;b&Tab;c", "&eacute&eacute;",
    "&CounterClockwiseContourIntegral;", "&CounterClockwiseContourIntegralx;",
    "&" + "b" * 40, "&am" + "é" * 31 + ";", "&é;", "&ampé",
    "&amp #65;", "&amp;#65;", "&#38;#65;", "&#x26;lt;", "rock &amp; roll &copy 2024", "&fjlig;", "&nGt;",
    "&acE;", "&zwnj;a&zwj;", "&Amp;",
]


def random_prompt(rng):
    parts = ["&", "&#", "&#x", ";", "amp", "lt", "notin", "not", "é", "\U0001f600", " ", "\t", "<", "#", "0",
    "41", "\x1c",
             "\u3000", "b" * 31, "&amp;", "&amp;amp;lt;", "\x01", "rarrw", "Gg;", "hearts", "reg"]
    return "".join(rng.choice(parts) for _ in range(rng.randrange(1, 12)))


def clean(text):
    text = html.unescape(html.unescape(text)).strip()
    return regex.sub(r"\s+", " ", text).strip()


def main():
    rng = random.Random(20240229)
    texts = FIXED + [random_text(rng) for _ in range(300)]
    broken = BROKEN + [random_bytes(rng) for _ in range(100)]
    prompts = PROMPTS + [random_prompt(rng) for _ in range(150)]
    files, by_bytes = {}, {}
    for model in MODELS:
        path = f"{model}/model/tokenizer/tokenizer.json"
        tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / path))
        files[path] = [tokenizer.encode(text).ids for text in texts]
        path = f"{model}/model/tokenizer/spiece.model"
        processor = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / path))
        files[path] = [processor.encode(text, add_eos=True) for text in texts]
        by_bytes[path] = [processor.encode(data, add_eos=True) for data in broken]
    cases = {
        "versions": {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__},
        "texts": texts, "files": files, "bytes": [data.hex() for data in broken], "byte_files": by_bytes,
        "variants": [{"name": name, "tokenizer": document, "cases": encode_variant(document)}
                     for name, document in variants().items()],
        "prompts": [[text, clean(text)] for text in prompts],
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in cases.items())
    (FOLDER / "tokenizer_cases.json").write_text("{" + lines + "}\n")


main()
