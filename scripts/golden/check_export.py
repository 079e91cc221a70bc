"""Exported folders against `transformers`: trains a tiny model of every preset for a few steps with the program, exports it to a
stock class where there is one and to the project's own modelling file, loads both with AutoModelForCausalLM, and compares
the logits with those of `evenkeel inspect --ids --dump` on the run itself.

    python scripts/golden/check_export.py target/release/evenkeel [--presets op osp] [--tolerance 1e-4]

Deviations are relative to the largest logit. Writes nothing that stays; exits with 1 above the tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

STOCK = {"pre_ln": "gpt2", "layerscale": "gpt2", "osp": "llama"}
IDS = [[(7 * t * t + 13 * s + 5) % 250 for t in range(24)] for s in range(2)]

CONFIG = """
[model]
preset = "{preset}"
depth = 3
width = 48
heads = 3
context = 32
[data]
path = "data"
[optim]
name = "adamw"
lr_peak = 3e-3
[train]
steps = 20
batch_sequences = 8
"""


def run(binary, folder, *args):
    done = subprocess.run([binary, *args], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(args)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def deviation(folder, ids, logits):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        ours = model(torch.tensor(ids)).logits
    return type(model).__name__, float((ours - logits).abs().max() / logits.abs().max())


def check(binary, folder, preset):
    (folder / f"{preset}.toml").write_text(CONFIG.format(preset=preset))
    run(binary, folder, "train", f"{preset}.toml", "--out", preset)
    run(binary, folder, "inspect", preset, "--ids", "ids.json", "--dump", f"{preset}.safetensors", "--json")
    logits = load_file(folder / f"{preset}.safetensors")["logits"]
    worst = 0.0
    for target in [STOCK.get(preset), "evenkeel"]:
        if target is None:
            continue
        out = f"{preset}-{target}"
        run(binary, folder, "export", preset, "--to", target, "--out", out)
        name, off = deviation(folder / out, IDS, logits)
        print(f"{preset:18} as {name:22} deviates by {off:.1e}")
        worst = max(worst, off)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--presets", nargs="*")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    binary = str(args.binary.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "ids.json").write_text(json.dumps(IDS))
        words = ["fn", "let", "mut", "count", "total", "(", ")", "{", "}", "=", "+", ";\n", "return", "u64"]
        text = " ".join(words[(i * i * 31 + 7 * i) % len(words)] for i in range(30000))
        (folder / "text.txt").write_text(text)
        run(binary, folder, "data", "tokenize", "text.txt", "--bytes", "--out", "data")
        listed = run(binary, folder, "config", "list").splitlines()
        presets = args.presets or [line.split()[0] for line in listed if line.strip()]
        worst = max(check(binary, folder, preset) for preset in presets)
    print(f"{len(presets)} presets, largest deviation {worst:.1e}")
    sys.exit(worst > args.tolerance)


if __name__ == "__main__":
    main()
