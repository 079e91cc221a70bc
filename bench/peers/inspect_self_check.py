"""The peer of `inspect` against NumPy: every figure of a small GPT-2 with outliers, by the definitions of scripts/golden."""

import pathlib
import sys

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import inspect_transformers as peer
import site_metrics
from gpt2_checkpoint import plant

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts/golden"))
from metrics import attention, causal_softmax, lower_median, metrics, weight  # noqa: E402

TOLERANCE, FLOOR = 2e-5, 1e-6
GRAM = ["input_corr_rms", "feature_corr_rms", "effective_rank"]


class Kept(peer.Measurement):
    """Keeps what it measures."""

    def __init__(self, medians):
        super().__init__(medians, True, 20)
        self.kept, self.scores = {}, {}

    def visit(self, site, x_btd, **account):
        self.kept.setdefault(site, []).append(x_btd.double().numpy().copy())
        super().visit(site, x_btd, **account)

    def attend(self, module, query, key, value, attention_mask, scaling, **rest):
        self.scores[module.layer_idx] = (query @ key.transpose(2, 3)).mul(scaling).double().numpy()
        return super().attend(module, query, key, value, attention_mask, scaling, **rest)


class Comparison:
    def __init__(self):
        self.count, self.wrong = 0, []

    def figures(self, what, got, want, tolerance=TOLERANCE):
        for name, value in want.items():
            self.count += 1
            mine = got[name]
            if None in (mine, value):
                same = mine is None and value is None
            else:
                same = abs(mine - value) <= tolerance * abs(value) + FLOOR
            if not same:
                self.wrong.append(f"{what} {name}: {mine}, by NumPy {value}")


def rounded(x, axis):
    """Relative error of an asymmetric 8-bit grid over each slice that is left when `axis` is reduced."""
    low, high = np.minimum(x.min(axis, keepdims=True), 0), np.maximum(x.max(axis, keepdims=True), 1e-8)
    scale = np.maximum((high - low) / 255, 1e-8)
    zero = np.rint(-low / scale)
    back = scale * (np.clip(np.rint(x / scale) + zero, 0, 255) - zero)
    return float(np.sqrt(((x - back) ** 2).sum() / (x * x).sum()))


def rounded_weight(w, axis):
    scale = np.abs(w).max(axis, keepdims=True) / 127
    back = scale * np.clip(np.rint(w / scale), -128, 127)
    return float(np.sqrt(((w - back) ** 2).sum() / (w * w).sum()))


def compare_sites(report, kept, compare):
    for site in report["sites"]:
        batches = kept[site["site"]]
        want = metrics(np.concatenate(batches))
        stream = site["site"] == "embed" or site["site"].endswith(".resid")
        wanted_gram = metrics(np.concatenate(batches)[: report["gram_tokens"] // batches[0].shape[1]])
        want |= {name: wanted_gram[name] if stream else None for name in GRAM}
        compare.figures(site["site"], site, want)


def compare_massive(report, kept, compare):
    entries = np.sort(np.concatenate([np.abs(x).ravel() for batches in kept.values() for x in batches]))[::-1]
    for rank, found in enumerate(report["massive"]):
        batches = kept[found["site"]]
        batch, row = divmod(found["sequence"], batches[0].shape[0])
        x = batches[batch]
        value = float(x[row, found["position"], found["channel"]])
        ratio = abs(value) / float(lower_median(np.abs(x)))
        got = found | {"size": abs(found["value"])}
        want = {"value": value, "size": float(entries[rank]), "ratio_to_median": ratio}
        compare.figures(f"massive {rank}", got, want)


def compare_heads(report, scores, compare):
    for layer, s in scores.items():
        got = [head for head in report["attention"] if head["layer"] == layer]
        for head, want in enumerate(attention(s, causal_softmax(s))):
            compare.figures(f"block {layer} head {head}", got[head], want)


def compare_rounding(report, kept, weights, compare):
    # A single value that float32 and float64 round to different sides of a half moves an error by little.
    for line in report["int8"]:
        if line["kind"] == "activation":
            x = kept[line["site"]][0]
            x = x.reshape(-1, x.shape[-1])
            errors = {"int8_error": rounded(x, None), "int8_error_token": rounded(x, 1), "int8_error_channel": rounded(x, 0)}
        else:
            w = weights[line["site"]]
            errors = {"int8_error": rounded_weight(w, None), "int8_error_channel": rounded_weight(w, 1)}
            if line["site"].startswith("embed."):
                errors |= {"int8_error_token": rounded_weight(w, 1), "int8_error_channel": rounded_weight(w, 0)}
        compare.figures(f"int8 {line['site']}", line, errors, tolerance=1e-3)


def check():
    """Exit code."""
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_embd=48, n_head=3, n_positions=64, vocab_size=211)
    compare = Comparison()
    # Small chunks and batches, so that both are put together; Gram matrices over part of the tokens.
    peer.BATCH_TOKENS, peer.GRAM_TOKENS, site_metrics.CHUNK = 256, 320, 1000
    for medians in ["numpy", "torch"]:
        model = GPT2LMHeadModel(config).eval()
        plant(model)
        ids = torch.randint(0, config.vocab_size, (10, config.n_positions))
        seen = Kept(medians)
        report = peer.inspect(model, ids, seen)
        weights = {name: w.detach().double().numpy() for name, w in peer.matrices(model)}
        compare_sites(report, seen.kept, compare)
        compare_massive(report, seen.kept, compare)
        compare_heads(report, seen.scores, compare)
        compare_rounding(report, seen.kept, weights, compare)
        for got in report["weights"]:
            compare.figures(got["name"], got, weight(weights[got["name"]]))
        expected = 13 * config.n_layer + 3
        if len(report["sites"]) != expected:
            compare.wrong.append(f"{len(report['sites'])} sites in place of {expected}")
    for line in compare.wrong:
        print(line)
    print(f"{compare.count} comparisons, {len(compare.wrong)} disagree")
    return 1 if compare.wrong else 0
