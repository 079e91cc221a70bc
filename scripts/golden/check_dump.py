"""Recompute every number of `inspect --ids` from its dump, in float64 NumPy, and compare to 1e-5.

    evenkeel inspect MODEL --ids ids.json --dump dump.safetensors --json > report.json
    python scripts/golden/check_dump.py report.json dump.safetensors [--weights model.safetensors]

Metrics of every site, massive activations and the summary follow from the dump alone. Attention follows from the
queries and keys in it (attn.q_norm and attn.k_norm where there are, attn.q and attn.k otherwise) for causal models whose
scores are q k^T / sqrt(d_head); others need --no-attention. Weights and gains need the checkpoint. Whether a figure is
null is compared as well. Definitions are those at the head of metrics.py. Exits 1 with the list of disagreements.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from metrics import attention, causal_softmax, lower_median, metrics, per_sequence, weight

TOLERANCE = 1e-5
FLOOR = 1e-12  # correlations may cancel to nearly nothing
# The dump's queries and keys are float32, and so were the program's scores and probabilities, summed in another order.
ATTENTION_FLOOR = 1e-6


class Comparison:
    def __init__(self):
        self.count, self.wrong = 0, []

    def number(self, what, got, want, floor=FLOOR):
        self.count += 1
        if got is None or want is None:
            same = got is None and want is None
        else:
            same = abs(got - want) <= TOLERANCE * abs(want) + floor
        if not same:
            self.wrong.append(f"{what}: reported {got}, recomputed {want}")

    def true(self, what, condition):
        self.count += 1
        if not condition:
            self.wrong.append(what)


def check_sites(report, dump, compare):
    compare.true("sites differ from the dump's", {s["site"] for s in report["sites"]} == set(dump))
    for site in report["sites"]:
        x = dump[site["site"]]
        want = metrics(x)
        if report["gram"] == "sequence":
            want |= per_sequence(x)
        for name, value in want.items():
            compare.true(f"{site['site']} has no {name}", name in site)
            compare.number(f"{site['site']} {name}", site.get(name), value)
        inside = site["site"].startswith("blocks.")
        compare.true(
            f"{site['site']} layer", site["layer"] == (int(site["site"].split(".")[1]) if inside else None)
        )
    tokens = {x.shape[0] * x.shape[1] for x in dump.values()}
    for key in ["tokens", "gram_tokens", "attention_tokens"]:
        compare.true(f"{key}: reported {report[key]}, the dump has {tokens}", tokens == {report[key]})


def check_massive(report, dump, compare):
    k = len(report["massive"])
    sizes = np.concatenate([np.abs(x).ravel() for x in dump.values()])
    largest = np.sort(sizes)[::-1][:k]
    medians = {name: lower_median(np.abs(x)) for name, x in dump.items()}
    places = set()
    for rank, entry in enumerate(report["massive"]):
        what = f"massive {rank}"
        place = (entry["sequence"], entry["position"], entry["channel"])
        compare.true(f"{what} is listed twice", (entry["site"], place) not in places)
        places.add((entry["site"], place))
        value, median = dump[entry["site"]][place], medians[entry["site"]]
        compare.number(f"{what} value at {entry['site']} {place}", entry["value"], float(value))
        compare.number(f"{what} size by rank", abs(entry["value"]), float(largest[rank]))
        ratio = None if median == 0 else float(abs(value) / median)
        compare.number(f"{what} ratio", entry["ratio_to_median"], ratio)


def check_attention(report, dump, compare):
    layers = {}
    for head in report["attention"]:
        layers.setdefault(head["layer"], []).append(head)
    blocks = {int(name.split(".")[1]) for name in dump if name.startswith("blocks.")}
    compare.true("attention does not cover every block", set(layers) == blocks)
    for layer, reported in layers.items():

        def heads(name):
            at = f"blocks.{layer}.attn.{name}"
            x = dump.get(f"{at}_norm", dump[at])
            return x.reshape(*x.shape[:2], len(reported), -1).transpose(0, 2, 1, 3)

        q, k = heads("q"), heads("k")
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        wanted = attention(scores, causal_softmax(scores))
        for got, want in zip(reported, wanted):
            for name, value in want.items():
                compare.number(f"block {layer} head {got['head']} {name}", got[name], value, ATTENTION_FLOOR)


def check_summary(report, compare):
    stream = [s for s in report["sites"] if s["site"] == "embed" or s["site"].endswith(".resid")]
    values = [s["kurtosis"] for s in stream]
    summary = report["summary"]
    if any(v is None for v in values):
        compare.true("the summary of an undefined site is defined", summary["kurtosis_mean"] is None)
        return
    compare.number("kurtosis_mean", summary["kurtosis_mean"], float(np.mean(values)))
    compare.number("kurtosis_max", summary["kurtosis_max"], max(values))
    at = [s["kurtosis"] for s in stream if s["site"] == summary["kurtosis_max_site"]]
    compare.true("kurtosis_max_site", at == [max(values)])


def check_weights(report, weights, compare):
    matrices = {name for name, w in weights.items() if w.ndim >= 2}
    compare.true("weights differ from the checkpoint's", {w["name"] for w in report["weights"]} == matrices)
    for got in report["weights"]:
        w = weights[got["name"]]
        compare.true(f"{got['name']} shape", got["shape"] == list(w.shape))
        for name, value in weight(w).items():
            compare.number(f"{got['name']} {name}", got[name], value)
    gains = {name for name in weights if name.endswith((".beta", ".alpha"))}
    compare.true("gains differ from the checkpoint's", {g["name"] for g in report["gains"]} == gains)
    for got in report["gains"]:
        g = weights[got["name"]]
        for name, value in [("mean", g.mean()), ("min", g.min()), ("max", g.max())]:
            compare.number(f"{got['name']} {name}", got[name], float(value))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--weights", type=Path, help="the checkpoint's model.safetensors")
    parser.add_argument("--no-attention", action="store_true", help="do not recompute attention")
    args = parser.parse_args()
    report = json.loads(args.report.read_text())
    wide = lambda path: {name: x.astype(np.float64) for name, x in load_file(path).items()}
    dump, compare = wide(args.dump), Comparison()
    check_sites(report, dump, compare)
    check_massive(report, dump, compare)
    check_summary(report, compare)
    if not args.no_attention:
        check_attention(report, dump, compare)
    if args.weights:
        check_weights(report, wide(args.weights), compare)
    for line in compare.wrong:
        print(line)
    print(f"{compare.count} comparisons, {len(compare.wrong)} disagree")
    sys.exit(1 if compare.wrong else 0)


if __name__ == "__main__":
    main()
