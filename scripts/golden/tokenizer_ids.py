"""Golden files: ids of awkward texts under tokenizers that are given in parts, without a tokenizer.json.

Writes tokenizers/CASE/ (the parts: vocab.json and merges.txt or vocab.txt, with the small JSON files that say how they
are used) and tokenizers/expected.json: `texts`, and for each case `vocab` (one more than the largest id), `ids` (a list
for each text, without special tokens), `before` and `after` (the ids that the tokenizer puts around a text).

The ids are those of transformers with split_special_tokens=True: text that spells a special token is ordinary text. Two
references of another make are held against them here, where no added token is in the way: GPT-2's algorithm written out
below, and transformers' older BERT in pure Python.

The vocabularies are tiny. BPE's is trained on the sentences below; WordPiece's is a list of letters, digits, signs and a
few words and endings.
"""

import json
import os
import shutil
import string

os.environ["HF_HUB_OFFLINE"] = "1"

import regex
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from common import out_directory

TEXTS = [
    "",
    " ",
    "The ship is on an even keel.",
    " the  ship\n\n\tkeels   over \n",
    "Größe, naïve, café, ÅÉ, İstanbul",
    "cafe\u0301 nai\u0308ve",
    "日本語のテキスト und 中文",
    "👩‍🚀🦀 ok 🇩🇪",
    "<|endoftext|> a</s>b <s> [CLS] [SEP] [MASK]<mask>",
    "I'm, you'LL, they've 1234567 3.14e-10",
    "a\u00a0b\u200bc\u00add\ufeffe\ufffd\x00f\x7f",
    "  leading and trailing  ",
    "line one\r\nline two\rline three\u2028line four",
    "<extra>keel <extra> evenkeel    over<EXTRA>",
    "unaffable UNAFFABLE unKeeled keelship",
    "x" * 120,
    "שלום مرحبا ไทย ñandú ß ŒŁ ½ ﬁ",
]

SENTENCES = [
    "the ship is on an even keel and the keel is even",
    "they have seen the other ships over there and those keels",
    "in the end one and the same thing is on an other line",
    "The Größe of the naïve café over there, and 日本 and 日本",
]


def byte_level_parts():
    """vocab.json and merges.txt as strings: 256 bytes and some merges; special tokens lie around them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    symbols = sorted(model["vocab"], key=model["vocab"].get)
    return symbols, [tuple(pair) for pair in model["merges"]]


def word_piece_vocab(cased):
    signs = list(string.punctuation) + ["½", "中", "日", "本", "語", "ñ", "é", "ö", "ß", "🦀"]
    letters = list(string.ascii_letters if cased else string.ascii_lowercase)
    words = ["the", "ship", "is", "on", "an", "even", "keel", "over", "line", "one", "cafe", "un", "grosse", "The", "Gr"]
    ends = ["##" + x for x in letters + list(string.digits) + ["keel", "ship", "ed", "ing", "aff", "able", "s", "ö", "ß", "é"]]
    kept = [w for w in words if cased or w == w.lower()]
    special = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys(special + signs + list(string.digits) + letters + kept + ends))


def token(content, special, **flags):
    base = {"content": content, "lstrip": False, "normalized": not special, "rstrip": False, "single_word": False}
    return base | {"special": special} | flags


def cases():
    """Files of each case, by name."""
    symbols, merges = byte_level_parts()

    def bpe(order):
        head = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
        return {"vocab.json": {symbol: id for id, symbol in enumerate(order)}, "merges.txt": head}

    size = len(symbols) + 1
    plain = bpe(symbols + ["<|endoftext|>"])
    fairseq = bpe(["<s>", "<pad>", "</s>", "<unk>"] + symbols + ["<mask>"])
    bert = {"vocab.txt": "".join(word + "\n" for word in word_piece_vocab(False))}
    cased = {"vocab.txt": "".join(word + "\n" for word in word_piece_vocab(True))}
    bert_size = bert["vocab.txt"].count("\n")
    return {
        # Nothing but the two files and the model's type.
        "gpt2": plain | {"config.json": {"model_type": "gpt2"}},
        # The older way to name added tokens.
        "gpt2_legacy": plain | {
            "config.json": {"model_type": "gpt2"},
            "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
            "added_tokens.json": {"[PAD]": size + 1, "<extra>": size},
            "special_tokens_map.json": {
                "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
                "pad_token": "[PAD]",
            },
        },
        # The newer way, with runs of spaces as tokens of their own.
        "codegen": plain | {
            "config.json": {"model_type": "phi"},
            "tokenizer_config.json": {
                "tokenizer_class": "CodeGenTokenizer", "add_bos_token": True, "add_eos_token": True,
                "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
                "added_tokens_decoder": {
                    str(size - 1): token("<|endoftext|>", True),
                    str(size + 1): token("  ", False),
                    str(size): token("    ", False),
                    str(size + 2): token("<extra>", False, rstrip=True, lstrip=True),
                },
            },
        },
        "opt": fairseq | {
            "config.json": {"model_type": "opt"},
            "tokenizer_config.json": {
                "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_prefix_space": False,
                "bos_token": token("</s>", True, normalized=True) | {"__type": "AddedToken"},
                "eos_token": token("</s>", True, normalized=True) | {"__type": "AddedToken"},
                "unk_token": token("</s>", True, normalized=True) | {"__type": "AddedToken"},
            },
            "special_tokens_map.json": {
                "bos_token": token("</s>", True, normalized=True), "eos_token": token("</s>", True, normalized=True),
                "unk_token": token("</s>", True, normalized=True), "pad_token": "<pad>",
            },
        },
        "roberta": fairseq | {
            "config.json": {"model_type": "roberta"},
            "special_tokens_map.json": {"mask_token": token("<mask>", True, lstrip=True)},
        },
        "bart": fairseq | {
            "config.json": {"model_type": "bart"},
            "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": True},
        },
        "bert": bert | {"config.json": {"model_type": "bert"}},
        "bert_added": bert | {
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "strip_accents": False, "do_lower_case": True},
            "added_tokens.json": {"<extra>": bert_size, "<DOC>": bert_size + 1},
            "special_tokens_map.json": {"additional_special_tokens": ["<DOC>"], "cls_token": "[CLS]"},
        },
        "bert_cased": cased | {
            "config.json": {"model_type": "bert"},
            "tokenizer_config.json": {"do_lower_case": False, "tokenize_chinese_chars": False},
        },
    }


def byte_symbols():
    """GPT-2's printable stand-ins for the 256 bytes."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def by_hand(text, vocab, merges, prefix):
    """GPT-2's algorithm: words by the pattern, bytes as symbols, the most urgent pair merged first."""
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    rank = {pair: n for n, pair in enumerate(merges)}
    stand_in = byte_symbols()
    if prefix and text and not text.startswith(" "):
        text = " " + text
    ids = []
    for word in regex.findall(pattern, text):
        symbols = [stand_in[byte] for byte in word.encode()]
        while True:
            pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in rank]
            if not pairs:
                break
            best, merged, at = min(pairs, key=rank.get), [], 0
            while at < len(symbols):
                step = 2 if tuple(symbols[at : at + 2]) == best else 1
                merged.append("".join(symbols[at : at + step]))
                at += step
            symbols = merged
        ids += [vocab[symbol] for symbol in symbols]
    return ids


def check(name, files, folder, ids):
    """Holds ids against the other references, for texts without added tokens. Codegen's are runs of spaces."""
    settings = files.get("tokenizer_config.json", {})
    texts = [(n, text) for n, text in enumerate(TEXTS) if "<extra>" not in text]
    if "merges.txt" in files and name != "codegen":
        merges = [tuple(line.split(" ")) for line in files["merges.txt"].splitlines()[1:]]
        for n, text in texts:
            other = by_hand(text, files["vocab.json"], merges, settings.get("add_prefix_space", False))
            assert ids[n] == other, (name, text)
    if "vocab.txt" in files:
        slow = BertTokenizerLegacy(
            str(folder / "vocab.txt"),
            do_lower_case=settings.get("do_lower_case", True),
            tokenize_chinese_chars=settings.get("tokenize_chinese_chars", True),
            strip_accents=settings.get("strip_accents"),
            split_special_tokens=True,
        )
        # It never splits its special tokens, and composes accents before it looks at them (NFC).
        for n, text in texts:
            if "[CLS]" not in text and "\u0301" not in text:
                other = slow.convert_tokens_to_ids(slow.tokenize(text))
                assert ids[n] == other, (name, text)


def reference(name, files, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    check(name, files, folder, ids)
    framed = tokenizer("a")["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    at = next(n for n in range(len(framed)) if framed[n : n + len(inner)] == inner)
    before, after = framed[:at], framed[at + len(inner) :]
    assert tokenizer("")["input_ids"] == before + after, name
    vocab = max(tokenizer.get_vocab().values()) + 1
    return {"vocab": vocab, "ids": ids, "before": before, "after": after}


def main():
    out = out_directory(__doc__) / "tokenizers"
    shutil.rmtree(out, ignore_errors=True)
    expected = {"texts": TEXTS, "cases": {}}
    for name, files in cases().items():
        folder = out / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) + "\n"
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
        expected["cases"][name] = reference(name, files, folder)
    lines = json.dumps(expected, ensure_ascii=True, indent=None).replace('}, "', '},\n"').replace("], [", "],\n[")
    (out / "expected.json").write_text(lines + "\n", encoding="utf-8")
    print(f"tokenizers: {len(expected['cases'])} cases of {len(TEXTS)} texts")


if __name__ == "__main__":
    main()
