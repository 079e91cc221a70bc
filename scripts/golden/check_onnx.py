"""ONNX exports against the program's own logits: checks the file with `onnx`, runs it with `onnxruntime` with and without graph
optimisations, and compares.

    python scripts/golden/check_onnx.py file OUT/model.onnx --ids ids.json --dump dump.safetensors [--tolerance 1e-5]
    python scripts/golden/check_onnx.py presets target/release/evenkeel [--names op osp]
    python scripts/golden/check_onnx.py folders target/release/evenkeel tests/golden/hf/*

`file` takes the dump of `evenkeel inspect MODEL --ids ids.json --dump dump.safetensors`, or a safetensors file with the
`logits` of a quantised model's simulation. `presets` trains a tiny model of every preset for a few steps and exports it;
`folders` exports Hugging Face folders that hold `expected.safetensors` with `ids` and `logits`. What the format
cannot hold is refused, and listed as that.

Deviations are relative to the largest logit. Of a float model they stay below 1e-5. Of a quantised one they do too until a
sum that ends in another order falls on the other side of a rounding: a whole step of a grid follows there, and moves
every later token of the sequence, by 1e-2 in tiny models. Two quantisers in a row, as after attention without a skip, are
made one by the optimisations, which moves as much. Writes nothing that stays; exits with 1 above the tolerance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

from check_export import CONFIG, IDS, run

LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def logits(path, ids, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    # Where a matrix of integers meets activations in float, as after an attention gate, the default is to round these too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": ids})[0]


def deviations(path, ids, expected):
    """The largest deviation of each level of optimisation, and of one sequence alone at half the length."""
    onnx.checker.check_model(str(path), full_check=True)
    ids = np.asarray(ids, dtype=np.int64)
    size = np.abs(expected).max()
    found = {level: np.abs(logits(path, ids, level) - expected).max() / size for level in LEVELS}
    half = ids.shape[1] // 2
    found["short"] = np.abs(logits(path, ids[:1, :half], "on") - expected[:1, :half]).max() / size
    return found


def say(name, found):
    print(f"{name:32} " + "  ".join(f"{level} {off:.1e}" for level, off in found.items()))
    return max(found.values())


def check_file(args):
    ids = json.loads(args.ids.read_text())
    return [say(args.model.name, deviations(args.model, ids, load_file(args.dump)["logits"]))]


def check_presets(args):
    binary = str(args.binary.resolve())
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "ids.json").write_text(json.dumps(IDS))
        words = ["fn", "let", "mut", "count", "total", "(", ")", "{", "}", "=", "+", ";\n", "return", "u64"]
        text = " ".join(words[(i * i * 31 + 7 * i) % len(words)] for i in range(30000))
        (folder / "text.txt").write_text(text)
        run(binary, folder, "data", "tokenize", "text.txt", "--bytes", "--out", "data")
        listed = [line.split()[0] for line in run(binary, folder, "config", "list").splitlines() if line.strip()]
        for name in args.names or listed:
            (folder / f"{name}.toml").write_text(CONFIG.format(preset=name))
            run(binary, folder, "train", f"{name}.toml", "--out", name)
            dump = f"{name}.safetensors"
            run(binary, folder, "inspect", name, "--ids", "ids.json", "--dump", dump, "--json")
            run(binary, folder, "export", name, "--to", "onnx", "--out", f"{name}-onnx")
            expected = load_file(folder / dump)["logits"]
            found.append(say(name, deviations(folder / f"{name}-onnx" / "model.onnx", IDS, expected)))
    return found


def check_folders(args):
    binary = str(args.binary.resolve())
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.folders:
            out = Path(temporary) / model.name
            command = [binary, "export", str(model), "--to", "onnx", "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(f"{model.name:32} refused: {done.stderr.strip().splitlines()[0]}")
                continue
            expected = load_file(model / "expected.safetensors")
            found.append(say(model.name, deviations(out / "model.onnx", expected["ids"], expected["logits"])))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    modes = parser.add_subparsers(required=True)
    file = modes.add_parser("file")
    file.add_argument("model", type=Path)
    file.add_argument("--ids", type=Path, required=True)
    file.add_argument("--dump", type=Path, required=True)
    file.set_defaults(check=check_file)
    presets = modes.add_parser("presets")
    presets.add_argument("binary", type=Path)
    presets.add_argument("--names", nargs="*")
    presets.set_defaults(check=check_presets)
    folders = modes.add_parser("folders")
    folders.add_argument("binary", type=Path)
    folders.add_argument("folders", type=Path, nargs="+")
    folders.set_defaults(check=check_folders)
    args = parser.parse_args()
    found = args.check(args)
    if not found:
        raise SystemExit("nothing was compared")
    worst = max(found)
    print(f"largest deviation {worst:.1e}")
    sys.exit(bool(worst > args.tolerance))


if __name__ == "__main__":
    main()
