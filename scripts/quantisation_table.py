#!/usr/bin/env python3
"""What every quantisation scheme costs on a few models, alone and with each repair: the table of docs/quantisation.md.

Takes the released binary, a data folder and the models, each with the name that the table gives it. Measures kurtosis
(`inspect`) and then each scheme with each repair (`quantize`), and writes experiments/quantisation.json and beside it the
table in Markdown. The JSON is written after each cell, and cells that it holds of the same version and command are not
run again. Where a repair refuses, a footnote says why. Standard library only.

    python3 scripts/quantisation_table.py target/release/evenkeel runs/data pre_ln=runs/pre_ln op=runs/op
    python3 scripts/quantisation_table.py target/release/evenkeel runs/data op=runs/op --schemes w4a4 --repairs hadamard+gptq
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

SCHEMES = [
    "w8a8", "w8a8_channel", "w8a8_token", "w8a8_int8_head", "w4a16", "w4a8", "w4a4", "fp8", "mxfp8", "mxfp4", "nvfp4"
]  # fmt: skip
REPAIRS = ["smoothquant", "hadamard", "gptq", "bias-correction"]
# What --out writes as a model of integers; only these have a speed.
INTEGER = ["w8a8", "w8a8_channel", "w8a8_token", "w8a8_int8_head"]
REFUSED = 2
FIGURES = {
    "perplexity": ("quantized", "perplexity"),
    "float_perplexity": ("float", "perplexity"),
    "perplexity_increase_percent": ("summary", "perplexity_increase_percent"),
    "kl": ("quantized", "kl"),
    "top1_agreement": ("quantized", "top1_agreement"),
    "bytes": ("quantized", "bytes"),
    "float_bytes": ("float", "bytes"),
    "eval_tokens": ("summary", "eval_tokens"),
}


class Table:
    """The JSON file: a line for each model and a cell for each (model, scheme, repairs)."""

    def __init__(self, path):
        self.path = path
        self.found = json.loads(path.read_text()) if path.exists() else {"schema": 1, "models": [], "cells": []}

    def has(self, kind, row):
        return any(row.items() <= held.items() for held in self.found[kind])

    def add(self, kind, key, row):
        """Puts a row in the place of an older one. A run that is cut off leaves the old file whole."""
        self.found[kind] = [old for old in self.found[kind] if not key.items() <= old.items()] + [key | row]
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(beside, self.path)


class Program:
    def __init__(self, args):
        self.binary, self.data, self.models = args.binary, args.data, dict(args.models)
        self.common = ["--data", args.data, "--json", "--quiet", "--color", "never"]
        self.common += ["--threads", str(args.threads)] if args.threads else []
        self.evaluated = ["--tokens", str(args.eval_tokens)]
        self.version = self.output("--version").strip()
        if "--repair" not in self.output("quantize", "--help"):
            sys.exit(f"{self.binary} knows no repairs; build a newer one")

    def output(self, *words):
        return subprocess.run([self.binary, *words], stdout=subprocess.PIPE, text=True, check=True).stdout

    def named(self, text):
        """The same with names in place of the folders of this machine."""
        names = {self.binary: "evenkeel", self.data: "DATA"} | {path: name for name, path in self.models.items()}
        names |= {os.path.abspath(path): name for path, name in names.items()}
        # One path may begin another.
        paths = "|".join(re.escape(path) for path in sorted(names, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.-])(?:{paths})(?![\w-])", lambda found: names[found[0]], text)

    def run(self, words):
        """(report, None), or (None, why it was refused); ends at any other failure."""
        command = [self.binary, *words, *self.common]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout), None
        complaint = re.search(r"error: (.*)", done.stderr)
        if done.returncode != REFUSED or not complaint:
            sys.exit(f"failed with {done.returncode}: {' '.join(command)}\n{done.stderr}")
        return None, self.named(complaint[1])

    def speed(self, model):
        """Tokens per second of `eval`, as it says on stderr: the best of three."""
        words = [word for word in self.common if word != "--quiet"]
        rates = []
        for _ in range(3):
            command = [self.binary, "eval", model, *self.evaluated, *words]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
            rates.append(float(re.search(r"(\d+) tokens/s", done.stderr)[1]))
        return max(rates)

    def about(self, words):
        """What a row holds of its origin: it is measured again where this differs."""
        return {"version": self.version, "command": self.named(" ".join(["evenkeel", *words, *self.common]))}


def measure_model(program, table, name, path, tokens):
    words = ["inspect", path, "--tokens", str(tokens)]
    key, about = {"model": name}, program.about(words)
    if table.has("models", key | about):
        return
    report, refused = program.run(words)
    if refused:
        sys.exit(f"{name} cannot be inspected: {refused}")
    summary = {figure: report["summary"][figure] for figure in ["kurtosis_mean", "kurtosis_max"]}
    summary["tokens_per_second"] = program.speed(path)
    table.add("models", key, summary | about)
    print(f"{name}: kurtosis {summary['kurtosis_mean']:.3f}", file=sys.stderr)


def measure_cell(program, table, name, path, scheme, repairs):
    words = ["quantize", path, "--scheme", scheme, *program.evaluated]
    words += [word for repair in repairs for word in ("--repair", repair)]
    key, about = {"model": name, "scheme": scheme, "repairs": repairs}, program.about(words)
    if table.has("cells", key | about):
        return
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "int8")
        written = ["--out", out] if scheme in INTEGER and not repairs else []
        report, refused = program.run([*words, *written])
        speed = program.speed(out) if report and written else None
    figures = {"refused": refused}
    if report:
        figures = {figure: report.get(part, {}).get(place) for figure, (part, place) in FIGURES.items()}
        figures["tokens_per_second"] = speed
        figures = {figure: value for figure, value in figures.items() if value is not None}
    table.add("cells", key, figures | about)
    said = refused or f"perplexity {figures['perplexity']:.3f}"
    print(f"{name} {scheme} {'+'.join(repairs) or 'alone'}: {said}", file=sys.stderr)


class Notes:
    """Footnotes: the same sentence gets one number."""

    def __init__(self):
        self.sentences = []

    def mark(self, sentence):
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return f"– <sup>{self.sentences.index(sentence) + 1}</sup>"

    def lines(self):
        return [f"<sup>{number}</sup> {sentence}  " for number, sentence in enumerate(self.sentences, 1)]


def row(words):
    return f"| {' | '.join(words)} |"


def markdown(found, names):
    """A short table of the models, and for each one of a row per scheme."""
    notes, lines = Notes(), [row(["model", "kurtosis", "float perplexity", "MiB", "tokens/s"]), row(["---"] * 5)]
    of_model = lambda name: [cell for cell in found["cells"] if cell["model"] == name]
    for line in (line for line in found["models"] if line["model"] in names):
        ran = next((cell for cell in of_model(line["model"]) if "refused" not in cell), None)
        floats = [f"{ran['float_perplexity']:.3f}", f"{ran['float_bytes'] / 2**20:.2f}"] if ran else ["–", "–"]
        lines.append(row([line["model"], f"{line['kurtosis_mean']:.2f}", *floats, f"{line['tokens_per_second']:.0f}"]))
    for name in names:
        lines += ["", f"**{name}**", "", *scheme_lines(of_model(name), notes)]
    return "\n".join([*lines, "", *notes.lines()]).rstrip() + "\n"


def scheme_lines(cells, notes):
    """Figures without repairs, then the perplexity with each."""
    by_key = {(cell["scheme"], "+".join(cell["repairs"])): cell for cell in cells}
    repairs = list(dict.fromkeys(repair for _, repair in by_key if repair))
    head = ["scheme", "MiB", "tokens/s", "KL, nats", "same top-1, %", "perplexity", *(f"with {repair}" for repair in repairs)]
    lines = [row(head), row(["---"] * len(head))]
    for scheme in dict.fromkeys(scheme for scheme, _ in by_key):
        alone = by_key.get((scheme, ""))
        perplexities = [perplexity(by_key.get((scheme, repair)), notes) for repair in ["", *repairs]]
        figures = ["–"] * 4
        if alone and "refused" not in alone:
            speed = alone.get("tokens_per_second")
            figures = [
                f"{alone['bytes'] / 2**20:.2f}",
                f"{speed:.0f}" if speed else "–",
                f"{alone['kl']:.4f}",
                f"{100 * alone['top1_agreement']:.2f}",
            ]
        lines.append(row([f"`{scheme}`", *figures, *perplexities]))
    return lines


def perplexity(cell, notes):
    if cell is None:
        return "–"
    return notes.mark(cell["refused"]) if "refused" in cell else f"{cell['perplexity']:.3f}"


def named_model(word):
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{word!r} is not NAME=PATH")
    return name, os.path.normpath(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("data", type=os.path.normpath)
    parser.add_argument("models", nargs="+", type=named_model, metavar="NAME=PATH")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--repairs", nargs="*", default=REPAIRS, help="each is run alone; joined by +, together")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of inspect [default: 32768]")
    parser.add_argument("--eval-tokens", type=int, default=32768, help="tokens of quantize and eval [default: 32768]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("experiments/quantisation.json"))
    args = parser.parse_args()
    program, table = Program(args), Table(args.out)
    for name, path in args.models:
        measure_model(program, table, name, path, args.tokens)
        for scheme in args.schemes:
            for repairs in [[], *(repair.split("+") for repair in args.repairs)]:
                measure_cell(program, table, name, path, scheme, repairs)
    text = markdown(table.found, [name for name, _ in args.models])
    args.out.with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
