"""Our int8 forward pass of a GPT beside our bfloat16, PyTorch's best mode and onnxruntime's best int8 mode.

Three processes stay for a sitting and take turns forward pass by forward pass: `evenkeel bench int8 --serve` and the two
peers. After warm-up rounds of every mode each peer's fastest few go on; then pairs, the order turned round in every second
one. A figure is the median of the ratios of the pairs. Raw lines go to bench/runs. Standard library only; see bench/README.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading

from compare import ROOT, machine, sitting

SHAPE = {"depth": 12, "width": 768, "heads": 12, "vocab": 50257, "context": 512}
OURS, TORCH, ONNX = "evenkeel", "torch", "onnxruntime"
INT8, BF16 = f"{OURS} w8a8_int8_head", f"{OURS} bf16"
# Those of the peers' own tables; onnxruntime's float32 is left out.
MODES = {
    OURS: ["w8a8_int8_head", "bf16"],
    TORCH: [
        "f32", "bf16-autocast", "bf16", "f32-compile", "bf16-autocast-compile", "bf16-compile", "int8-x86", "int8-onednn"
    ],
    ONNX: [
        "qdq", "qdq-channel", "qdq-float-outputs", "qdq-standard", "qdq-unfused", "qoperator", "dynamic", "dynamic-channel",
        "dynamic-mha",
    ],
}  # fmt: skip
WARM_UP_ROUNDS = 3  # of which the first may hold compilation
TARGETS = {BF16: 1.3, TORCH: 2.0, ONNX: 1.3}


class Worker:
    """A process that stays and answers each line `run MODE` with a JSON line."""

    def __init__(self, command):
        self.complaints = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, cwd=ROOT
        )

    def run(self, mode, limit):
        """Its answer, or why there is none."""
        late = threading.Timer(limit, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(f"run {mode}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            if '"ready"' in line:  # the first answer follows what says that the model is made
                line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            overdue = not late.is_alive()
            late.cancel()
        if line:
            return json.loads(line)
        return {"failed": f"took longer than {limit} s" if overdue else self.last_words()}

    def last_words(self):
        self.process.wait()
        self.complaints.seek(0)
        last = (self.complaints.read().strip().splitlines() or [f"exit {self.process.returncode}"])[-1]
        return re.sub(r"/[^ :]*/", "", last)  # no folders of this machine

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def commands(args, sequences):
    sizes = [word for name, size in SHAPE.items() for word in (f"--{name}", str(getattr(args, name)))]
    common = [*sizes, "--sequences", str(sequences), "--threads", str(args.threads), "--serve"]
    return {
        OURS: [str(args.binary), "bench", "int8", *common, "--json", "--no-progress"],
        TORCH: [args.python, "bench/peers/torch_int8.py", *common],
        ONNX: [args.python, "bench/peers/onnx_int8.py", *common],
    }


def finalists(sides, rounds, lost, most):
    """All of ours, and of each peer the modes of the shortest forward passes in warm-up, its first round left out."""
    kept = {}
    for program in MODES:
        running = [side for side in sides if side.startswith(f"{program} ") and side not in lost]
        running.sort(key=lambda side: min(row[side]["seconds"] for row in rounds[1:]))
        kept |= {side: sides[side] for side in (running if program == OURS else running[:most])}
    return kept


def measure(args, sequences, raw):
    """(rounds, why sides were given up) of a batch of so many sequences."""
    workers = {program: Worker(command) for program, command in commands(args, sequences).items()}
    sides = {f"{program} {mode}": (workers[program], mode) for program, modes in MODES.items() for mode in modes}

    def timed(phase):
        about = {"sequences": sequences, "phase": phase}
        return lambda side, limit: {**side[0].run(side[1], limit), **about, "load_average": os.getloadavg()[0]}

    told = lambda result: f"{result['seconds']:.3f} s"
    try:
        warm, lost = sitting(sides, WARM_UP_ROUNDS, args.limit, raw, told, run=timed("warm-up"))
        last = finalists(sides, warm, lost, args.finalists)
        rounds, later = sitting(last, args.pairs, args.limit, raw, told, run=timed("pairs"), in_turn=True)
    finally:
        for worker in workers.values():
            worker.end()
    return rounds, lost | later


def best(program, rounds):
    """The program's side of the smallest median among those that ran in every round."""
    sides = [side for side in rounds[0] if side.startswith(f"{program} ") and all(side in row for row in rounds)]
    return min(sides, key=lambda side: statistics.median(row[side]["seconds"] for row in rounds), default=None)


def table(args, measured):
    lines = [
        f"int8 forward, {args.depth} × {args.width}, {args.vocab} words, {args.context} tokens, last logits: {args.pairs} "
        f"pairs, {args.threads} threads",
        "",
        "| sequences | ours int8, s | over it | seconds | times our int8, median | each pair | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for sequences, (rounds, lost) in measured.items():
        if INT8 in lost:
            sys.exit(f"our int8 was given up: {lost[INT8]}")
        seconds = lambda side: [row[side]["seconds"] for row in rounds]
        ours = seconds(INT8)
        for kind, target in TARGETS.items():
            side = best(kind, rounds) if kind in MODES else kind
            if side is None or side in lost:
                lines.append(f"| {sequences} | {statistics.median(ours):.3f} | {kind} | – | – | – | {target:g} |")
                continue
            ratios = [theirs / mine for theirs, mine in zip(seconds(side), ours)]
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(
                f"| {sequences} | {statistics.median(ours):.3f} | {side} | {statistics.median(seconds(side)):.3f} | "
                f"{statistics.median(ratios):.2f} | {each} | {target:g} |"
            )
        notes += [f"\n{side}, {sequences} sequences, was given up: {why}" for side, why in lost.items()]
    return lines + notes


def checked(args):
    """The onnxruntime peer's comparison with PyTorch and its float graph, or the end."""
    sizes = [word for name in SHAPE for word in (f"--{name}", str(getattr(args, name)))]
    command = [args.python, "bench/peers/onnx_int8.py", *sizes, "--threads", str(args.threads), "--self-check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout, file=sys.stderr)
    if done.returncode != 0:
        sys.exit(f"the onnxruntime peer is not what it should be:\n{done.stdout}{done.stderr}")
    return done.stdout.splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--binary", type=pathlib.Path, default="target/release/evenkeel")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--finalists", type=int, default=3, help="modes of each peer that go on after warm-up [default: 3]")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch and onnxruntime")
    parser.add_argument("--limit", type=int, default=600, help="seconds after which a process is given up")
    parser.add_argument("--out", type=pathlib.Path, help="file of the raw lines [default: bench/runs/DATE/int8.jsonl]")
    args = parser.parse_args()
    if min(args.pairs, args.threads, args.finalists, *args.sequences) < 1:
        parser.error("--pairs, --threads, --finalists and --sequences must be at least 1")
    # All sides on the same cores, as many as they have threads.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    agreed = checked(args)
    out = args.out or ROOT / "bench/runs" / datetime.date.today().isoformat() / "int8.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    sizes = {name: getattr(args, name) for name in [*SHAPE, "threads", "pairs", "finalists"]}
    with open(out, "w") as raw:
        raw.write(json.dumps({"machine": machine(), "sizes": sizes, "compared": agreed}) + "\n")
        measured = {sequences: measure(args, sequences, raw) for sequences in args.sequences}
    lines = table(args, measured)
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
