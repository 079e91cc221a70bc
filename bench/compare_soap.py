"""What SOAP costs: our optimiser's time beside a published SOAP in PyTorch, and our step with SOAP beside AdamW.

In each pair the processes run one after the other, both sides of a ratio next to each other: our AdamW step, our SOAP
step, PyTorch's SOAP (`peers/torch_optimizer.py`), and a further precision's SOAP and AdamW steps after that. SOAP
refreshes its bases every ten steps, which a median of steps does not see, so each process gives the mean of a multiple
of ten; the figure is the median of the pairs' ratios. Raw lines go to bench/runs. Standard library only; see
bench/README.md.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys

from compare import CASES, ROOT, SIZES, machine, sitting

REFRESH = 10
ADAMW_STEPS = 10
PEER = "torch soap"


def optimizer_seconds(result):
    """Mean seconds of a step in the optimiser, by our profile."""
    return sum(account["seconds"] for account in result["profile"] if account["pass"] == "optimizer")


def commands(args):
    """Sides and their commands in the order of a pair."""
    sizes = dict(zip(SIZES, CASES["reference"]))
    words = lambda names: [word for name in names for word in (f"--{name}", str(sizes[name]))]
    threads = ["--threads", str(args.threads)]

    def ours(optimizer, precision, steps):
        command = ["target/release/evenkeel", "bench", "step", *words(SIZES), *threads, "--steps", str(steps)]
        command += ["--optimizer", optimizer, "--precision", precision, "--profile", "--json", "--no-progress"]
        return f"evenkeel {optimizer} {precision}", command

    shapes = [name for name in SIZES if name != "sequences"]
    peer = [args.python, "bench/peers/torch_optimizer.py", *words(shapes), *threads]
    first, *rest = args.precisions
    sides = [ours("adamw", first, ADAMW_STEPS), ours("soap", first, args.steps)]
    sides += [(PEER, [*peer, "--optimizer", "soap", "--warmup", "2", "--steps", str(args.steps)])]
    for precision in rest:
        sides += [ours("soap", precision, args.steps), ours("adamw", precision, ADAMW_STEPS)]
    return sides


def told(result):
    part = f", optimiser {optimizer_seconds(result):.4f} s" if "profile" in result else ""
    return f"{result['seconds_mean']:.4f} s{part}"


def line(what, upper, lower):
    """A line of the table: seconds above over seconds below, given as one figure a pair or None."""
    both = [(a, b) for a, b in zip(upper, lower) if a is not None and b is not None]
    if not both:
        return f"| {what} | not measured | | | |"
    ratios = [a / b for a, b in both]
    above, below = (1e3 * statistics.median(side) for side in zip(*both))
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {what} | {statistics.median(ratios):.2f} | {each} | {above:.1f} | {below:.1f} |"


def table(args, pairs, lost):
    column = lambda side, read: [read(row[side]) if side in row else None for row in pairs]
    mean = lambda result: result["seconds_mean"]
    lines = [
        f"SOAP, reference model: {args.pairs} pairs, {args.threads} threads, means of {args.steps} steps with SOAP and "
        f"{ADAMW_STEPS} with AdamW",
        "",
        "| seconds over seconds | median | each pair | ms above, median | ms below, median |",
        "| --- | --- | --- | --- | --- |",
    ]
    for precision in args.precisions:
        soap, adamw = f"evenkeel soap {precision}", f"evenkeel adamw {precision}"
        optimizer = column(soap, optimizer_seconds)
        lines += [
            line(f"(a) optimiser: PyTorch's SOAP over ours in a step in {precision}", column(PEER, mean), optimizer),
            line(f"(b) our step in {precision}: SOAP over AdamW", column(soap, mean), column(adamw, mean)),
        ]
    return lines + [f"\n{side} was given up: {why}" for side, why in lost.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps with SOAP, a multiple of 10")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["bf16"], choices=["f32", "bf16"], help="of our products")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch and pytorch_optimizer")
    parser.add_argument("--limit", type=int, default=900, help="seconds after which a process is given up")
    parser.add_argument("--out", type=pathlib.Path, help="folder for the raw lines [default: bench/runs/DATE]")
    args = parser.parse_args()
    if args.steps < REFRESH or args.steps % REFRESH:
        parser.error(f"--steps must be a multiple of {REFRESH}, so that each process holds as many refreshes")
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    args.precisions = list(dict.fromkeys(args.precisions))

    out = args.out or ROOT / "bench/runs" / datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "soap.jsonl", "w") as raw:
        sizes = dict(zip(SIZES, CASES["reference"]))
        raw.write(json.dumps({"machine": machine(), "argv": sys.argv[1:], "sizes": sizes}) + "\n")
        pairs, lost = sitting(dict(commands(args)), args.pairs, args.limit, raw, told)
    lines = table(args, pairs, lost)
    (out / "soap.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
