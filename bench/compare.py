"""Training steps of evenkeel and of PyTorch side by side, and the table of their ratios.

Each pair runs one process of either side, one after the other, with the same shapes and threads; each process times
its own steps after two that warm up. The figure is the median of the pairwise ratios, since absolute times of a shared
machine mean little. Raw lines go to bench/runs. Standard library only; see bench/README.md.
"""

import argparse
import datetime
import json
import pathlib
import platform
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = ["depth", "width", "heads", "vocab", "context", "sequences"]
CASES = {"reference": [6, 384, 6, 8192, 128, 32], "gpt2": [12, 768, 12, 50257, 512, 8]}
MODES = ["f32", "bf16", "f32-compile", "bf16-compile"]


def last_json(command, limit):
    """What the command printed as JSON, or why there is nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit} s"}
    if done.returncode != 0:
        return {"failed": done.stderr.strip().splitlines()[-1:] or f"exit {done.returncode}"}
    text = done.stdout
    return json.loads(text[text.index("{") :])


def machine():
    system = " ".join([platform.system(), platform.machine(), *platform.libc_ver()])
    info = {"python": platform.python_version(), "system": system}
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        info["cpu"] = re.search(r"model name\s*: (.*)", text)[1]
        family, model = re.search(r"cpu family\s*: (.*)", text)[1], re.search(r"model\s*: (.*)", text)[1]
        info["cpu_family_model"] = f"{family}/{model}"
        flags = re.search(r"flags\s*: (.*)", text)[1].split()
        wanted = ["fma", "avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"]
        info["flags"] = [flag for flag in wanted if flag in flags]
        info["cores"] = text.count("processor\t")
    except (OSError, TypeError):
        pass
    info["revision"] = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    return info


def sitting(sides, pairs, limit, raw, told, run=last_json, in_turn=False):
    """All pairs, the sides (name -> command) one after the other in each: what `run` gave for each, also written to `raw`; and
    why a side was given up, after which it does not run again. `told` makes the line for stderr of a result. With `in_turn`
    every second pair runs the sides in reverse."""
    rounds, lost = [], {}
    for pair in range(pairs):
        row = {}
        for side, command in reversed(sides.items()) if in_turn and pair % 2 else sides.items():
            if side in lost:
                continue
            result = run(command, limit)
            raw.write(json.dumps({"pair": pair, "side": side, **result}) + "\n")
            raw.flush()
            if "failed" in result:
                lost[side] = result["failed"]
                print(f"pair {pair} {side}: {result['failed']}", file=sys.stderr)
                continue
            row[side] = result
            print(f"pair {pair} {side}: {told(result)}", file=sys.stderr)
        rounds.append(row)
    return rounds, lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ours", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--torch", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--limit", type=int, default=900, help="seconds after which a process is given up")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the raw lines [default: bench/runs/DATE]")
    args = parser.parse_args()

    sizes = [word for name, size in zip(SIZES, CASES[args.case]) for word in (f"--{name}", str(size))]
    common = [*sizes, "--steps", str(args.steps), "--threads", str(args.threads)]
    sides = {
        f"evenkeel {precision}": [
            "target/release/evenkeel", "bench", "step", *common, "--precision", precision, "--json", "--no-progress"
        ]
        for precision in args.ours
    } | {
        f"torch {mode}": [args.python, "bench/peers/torch_step.py", *common, "--mode", mode] for mode in args.torch
    }
    out = args.out or ROOT / "bench/runs" / datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"step-{args.case}.jsonl", "w") as raw:
        raw.write(json.dumps({"machine": machine(), "argv": sys.argv[1:], "sizes": dict(zip(SIZES, CASES[args.case]))}) + "\n")
        told = lambda result: f"{result['seconds_median']:.3f} s, {result['peak_rss_bytes'] / 2**20:.0f} MiB"
        rounds, lost = sitting(sides, args.pairs, args.limit, raw, told)

    peers = [side for side in sides if side.startswith("torch") and all(side in row for row in rounds)]
    if not peers:
        sys.exit("no mode of PyTorch ran; see bench/README.md")
    median = lambda side, key: statistics.median(row[side][key] for row in rounds)
    best = min(peers, key=lambda side: median(side, "seconds_median"))
    lines = [
        f"{args.case}: {args.pairs} pairs, {args.threads} threads; PyTorch's best mode here: {best}",
        "",
        "| ours | peer | times faster, median | each pair | memory, ours over theirs | the same without PyTorch itself |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for ours in (side for side in sides if side.startswith("evenkeel")):
        for peer in peers:
            ratios = [row[peer]["seconds_median"] / row[ours]["seconds_median"] for row in rounds]
            theirs = median(peer, "peak_rss_bytes")
            memory = median(ours, "peak_rss_bytes") / theirs
            bare = median(ours, "peak_rss_bytes") / (theirs - median(peer, "import_rss_bytes"))
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            lines.append(f"| {ours} | {peer} | {statistics.median(ratios):.2f} | {each} | {memory:.2f} | {bare:.2f} |")
    lines += [f"\n{side} was given up: {why}" for side, why in lost.items()]
    (out / f"step-{args.case}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
