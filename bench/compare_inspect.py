"""`evenkeel inspect` of a GPT-2 checkpoint of 124M parameters beside the same metrics with transformers and hooks.

First both sides run on a few tokens and must agree on every figure that both give. Then each pair runs one process of
either side, in turn first. Two ratios come of a pair: whole process over whole process, and what the peer spends on
measuring, its imports and loading left out, over our whole process; the smaller median is the headline. Memory is
the largest resident set of each process. Raw lines go to bench/runs. Standard library only; see bench/README.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from compare import ROOT, machine, sitting

OURS, PEER = "evenkeel", "transformers"
# Correlations and excesses near 0 are differences of large sums.
TOLERANCE, FLOOR = 1e-3, 1e-5
# One value that falls on the other side of a half moves a rounding error.
ROUNDING_TOLERANCE = 1e-2
# What tells the lines of a list apart, and the figures that are compared.
LISTS = {
    "sites": (["site"], None),
    "attention": (["layer", "head"], ["entropy", "max_logit", "mass_first"]),
    "weights": (["name"], ["rms", "max_abs", "max_over_rms", "kurtosis_entries"]),
    "int8": (["site"], ["int8_error", "int8_error_token", "int8_error_channel"]),
}


def report_of(command, limit):
    """What the command reported, with the seconds and the peak memory of its process, or why there is nothing."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT)
        late = threading.Timer(limit, process.kill)
        late.start()
        # Of this child alone. It counts from the fork on, so this script must stay small.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        overdue = not late.is_alive()
        late.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if overdue:
            return {"failed": f"took longer than {limit} s"}
        text, complaints = (stream.seek(0) or stream.read().decode() for stream in (out, err))
    if process.returncode != 0:
        return {"failed": complaints.strip().splitlines()[-1:] or f"exit {process.returncode}"}
    # In bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    report = json.loads(text[text.index("{") :])
    # What the program itself read before its end, where it did: that of its own mappings alone.
    peak = report.get("peak_memory_bytes") or usage.ru_maxrss * unit
    return report | {"seconds_process": seconds, "peak_rss_bytes": peak, "load_average_before": load}


def timed(command, limit):
    """The same without the lists, which are no raw figures of a benchmark."""
    report = report_of(command, limit)
    return {key: value for key, value in report.items() if not isinstance(value, list) or key == "failed"}


def lines_by_key(report, name):
    keys = LISTS[name][0]
    return {tuple(line[key] for key in keys): line for line in report.get(name, [])}


def differ(a, b, tolerance):
    if a is None or b is None:
        return a is not b
    return abs(a - b) > tolerance * max(abs(a), abs(b)) + FLOOR


def disagreements(ours, peer):
    """(figures compared, sentences on those that differ) of two reports on the same tokens."""
    count, wrong = 0, []

    def compare(what, names, a, b, tolerance=TOLERANCE):
        nonlocal count
        for name in names:
            count += 1
            if differ(a.get(name), b.get(name), tolerance):
                wrong.append(f"{what} {name}: ours {a.get(name)}, theirs {b.get(name)}")

    compare("report", ["tokens", "gram_tokens", "attention_tokens"], ours, peer, 0)
    for name, (_, figures) in LISTS.items():
        mine, theirs = lines_by_key(ours, name), lines_by_key(peer, name)
        # Without the verdict on one side there is nothing to compare; of the rest none may be missing.
        if name != "int8" and mine.keys() != theirs.keys():
            wrong.append(f"{name} of one side only: {sorted(mine.keys() ^ theirs.keys())[:8]}")
        for key in mine.keys() & theirs.keys():
            names = figures or [metric for metric in theirs[key] if metric not in ("site", "layer")]
            tolerance = ROUNDING_TOLERANCE if name == "int8" else TOLERANCE
            compare(f"{name} {' '.join(map(str, key))}", names, mine[key], theirs[key], tolerance)
    if len(ours["massive"]) != len(peer["massive"]):
        wrong.append(f"massive: ours {len(ours['massive'])} entries, theirs {len(peer['massive'])}")
    # Entries of nearly one size may stand in another order, so their places are not compared.
    for rank, (a, b) in enumerate(zip(ours["massive"], peer["massive"])):
        compare(f"massive {rank}", ["value", "ratio_to_median"], a, b)
    return count, wrong


def agree(sides, limit):
    """What was found; ends the program unless both sides run and agree."""
    reports = {side: report_of(command, limit) for side, command in sides.items()}
    for side, report in reports.items():
        if "failed" in report:
            sys.exit(f"{side} did not run: {report['failed']}")
    count, wrong = disagreements(reports[OURS], reports[PEER])
    agreed = f"{count} figures of {reports[OURS]['tokens']} tokens, {len(wrong)} disagree"
    print(agreed, file=sys.stderr)
    if wrong:
        sys.exit("\n".join(wrong[:40]))
    return agreed


def make(args):
    """The folder with the checkpoint and the tokens, made if it is not there."""
    folder = args.work or ROOT / "target/bench-inspect"
    shard = folder / "data/val_000.bin"
    if not shard.exists() or shard.stat().st_size < 1024 + 2 * (args.tokens + 1):
        command = [args.python, "bench/peers/gpt2_checkpoint.py", str(folder), "--tokens", str(args.tokens)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return folder


def commands(args, folder, tokens, int8):
    common = ["--data", str(folder / "data"), "--tokens", str(tokens), "--threads", str(args.threads)]
    ours = [str(args.binary), "inspect", str(folder / "model"), *common, "--json", "--no-progress"]
    peer = [args.python, "bench/peers/inspect_transformers.py", str(folder / "model"), *common]
    peer += ["--medians", args.medians, *(["--int8"] if int8 else [])]
    return {OURS: [*ours, *args.ours_extra.split()], PEER: peer}


def told(result):
    part = f", measuring {result['seconds_measuring']:.1f} s" if "seconds_measuring" in result else ""
    return f"{result['seconds_process']:.1f} s{part}, {result['peak_rss_bytes'] / 2**20:.0f} MiB"


def table(args, agreed, rounds):
    ours, peer = [row[OURS] for row in rounds], [row[PEER] for row in rounds]
    whole = [theirs["seconds_process"] for theirs in peer]
    measuring = [theirs["seconds_measuring"] for theirs in peer]
    # attn.branch and mlp.branch are tensors that they need not measure twice.
    once = [theirs["seconds_measuring"] - theirs["seconds_branches"] for theirs in peer]
    kinds = {
        "whole process": whole,
        "their imports and loading left out": measuring,
        "and measuring each tensor once": once,
    }
    rows, medians = [], []
    for kind, seconds in kinds.items():
        ratios = [a / b["seconds_process"] for a, b in zip(seconds, ours)]
        medians.append(statistics.median(ratios))
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append(f"| {kind} | {medians[-1]:.2f} | {each} | {statistics.median(seconds):.1f} |")
    median = lambda side, key: statistics.median(result[key] for result in side)
    memory = median(ours, "peak_rss_bytes"), median(peer, "peak_rss_bytes")
    bare = memory[0] / (memory[1] - median(peer, "import_memory_bytes"))
    parts = {part: median([theirs["seconds_by_part"] for theirs in peer], part) for part in peer[0]["seconds_by_part"]}
    int8 = "with" if args.int8 else "without"
    return [
        f"inspect, GPT-2 124M, {args.tokens} tokens: {len(rounds)} pairs, {args.threads} threads, the peer {int8} 8-bit "
        f"errors, its medians by {args.medians}; compared first: {agreed}",
        "",
        f"**{min(medians):.2f} times faster** by the count that favours the peer most; our process takes "
        f"{median(ours, 'seconds_process'):.1f} s",
        "",
        "| their time | over ours, median | each pair | seconds, median |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"Memory, ours over theirs: {memory[0] / memory[1]:.2f} ({memory[0] / 2**20:.0f} MiB and {memory[1] / 2**20:.0f} "
        f"MiB), {bare:.2f} without their imports",
        "",
        "Their seconds by part: " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items()),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check-tokens", type=int, default=8192, help="tokens on which both must agree first")
    parser.add_argument("--int8", action="store_true", help="the peer takes the errors of 8-bit rounding too")
    parser.add_argument("--medians", choices=["numpy", "torch"], default="numpy", help="what the peer takes medians with")
    parser.add_argument("--binary", type=pathlib.Path, default="target/release/evenkeel")
    parser.add_argument("--ours-extra", default="", metavar="OPTIONS", help="further options of our inspect, in one word")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch and transformers")
    parser.add_argument("--work", type=pathlib.Path, help="folder of checkpoint and tokens [default: target/bench-inspect]")
    parser.add_argument("--limit", type=int, default=1800, help="seconds after which a process is given up")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the raw lines [default: bench/runs/DATE]")
    args = parser.parse_args()
    if args.pairs < 1 or args.tokens < 1:
        parser.error("--pairs and --tokens must be at least 1")

    folder = make(args)
    # The check always takes the errors of rounding: what our report has of them should be theirs.
    agreed = agree(commands(args, folder, min(args.check_tokens, args.tokens), int8=True), args.limit)
    out = args.out or ROOT / "bench/runs" / datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "inspect.jsonl", "w") as raw:
        raw.write(json.dumps({"machine": machine(), "argv": sys.argv[1:], "compared": agreed}) + "\n")
        sides = commands(args, folder, args.tokens, args.int8)
        rounds, lost = sitting(sides, args.pairs, args.limit, raw, told, run=timed, in_turn=True)
    if lost:
        sys.exit("\n".join(f"{side} was given up: {why}" for side, why in lost.items()))
    lines = table(args, agreed, rounds)
    (out / "inspect.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
