#!/usr/bin/env python3
"""The learning-rate search behind the quickstart's rates: the same grid for both sides.

Takes a quickstart folder for its data and its two configurations, trains every (side, rate) for the given steps with
the released binary, measures kurtosis on the validation text, and writes experiments/quickstart_lr.toml. Finished
runs are kept and skipped, so it can be stopped and started again. Standard library only.

    evenkeel quickstart --minutes 1 --out /tmp/qs
    python3 scripts/quickstart_lr.py target/release/evenkeel /tmp/qs --steps 1000 --work /tmp/qs-lr
"""

import argparse
import glob
import json
import os
import subprocess

GRID = [1e-3, 2e-3, 3e-3, 6e-3, 1e-2]
SIDES = [("pre_ln", "adamw"), ("op", "soap")]


def run(command):
    out = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if out.returncode == 2:
        raise SystemExit(f"failed: {' '.join(command)}")
    return json.loads(out.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("quickstart")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", default="experiments/quickstart_lr.toml")
    args = parser.parse_args()
    data = os.path.join(args.quickstart, "data")
    results = []
    for block, optimizer in SIDES:
        config = sorted(glob.glob(os.path.join(args.quickstart, "runs", f"{block}-{optimizer}-*", "config.toml")))[0]
        for lr in GRID:
            directory = os.path.join(args.work, f"{block}-{optimizer}-lr{lr:g}")
            steps = ["--set", f"train.steps={args.steps}", "--set", f"train.eval_every_steps={args.steps}"]
            steps += ["--set", f"train.checkpoint_every_steps={args.steps}", "--set", "train.eval_tokens=0"]
            steps += ["--set", f"data.path={data}", "--set", f"optim.lr_peak={lr}"]
            record = os.path.join(directory, "result.json")
            if not os.path.exists(record):
                trained = run([args.binary, "train", config, "--out", directory, "--force", "--json", "-q", *steps])
                result = {"block": block, "optimizer": optimizer, "lr_peak": lr, "status": trained["status"]}
                if trained["status"] == "finished":
                    inspect = [args.binary, "inspect", directory, "--data", data, "--tokens", "32768", "--json"]
                    summary = run(inspect)["summary"]
                    result["val_loss"] = round(trained["val_loss"], 4)
                    result["kurtosis_mean"] = round(summary["kurtosis_mean"], 3)
                    result["kurtosis_max"] = round(summary["kurtosis_max"], 3)
                with open(record, "w") as file:
                    json.dump(result, file)
            with open(record) as file:
                results.append(json.load(file))
            print(results[-1], flush=True)
    with open(args.out, "w") as file:
        file.write("# Learning-rate search of the quickstart: made by scripts/quickstart_lr.py, which says how to run it\n")
        file.write("# again. One seed, the quickstart's own model, data, batch and schedule; the same grid for both sides.\n\n")
        file.write(f"grid = [{', '.join(f'{lr:g}' for lr in GRID)}]\nsteps = {args.steps}\nseed = 0\n")
        for r in results:
            file.write("\n[[result]]\n")
            for key, value in r.items():
                file.write(f"{key} = {json.dumps(value)}\n")


if __name__ == "__main__":
    main()
