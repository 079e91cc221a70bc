"""The figures of an evenkeel run, step by step, while it runs or when it is over. Needs Python 3.11 and nothing else.

    from follow import arguments, config, follow

Names are those of the TensorBoard file: `train/loss`, `kurtosis/blocks.03.resid`. What is undefined is left out.
"""

import argparse
import json
import re
import time
import tomllib
from pathlib import Path

BOOKKEEPING = {"step", "site", "layer", "mmr_tokens", "gram_tokens"}


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--project", default="evenkeel", help="project or experiment [default: evenkeel]")
    parser.add_argument("--once", action="store_true", help="take what is there and do not wait for more")
    parser.add_argument("--seconds", type=float, default=10.0, help="between looks at the logs [default: 10]")
    return parser.parse_args()


def config(run):
    """resolved.toml as one flat table: {"optim.lr_peak": 0.003, ...}."""
    flat = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = json.dumps(value) if isinstance(value, list) else value

    walk("", tomllib.loads((run / "resolved.toml").read_text()))
    return flat


def lines(path):
    """The whole lines of a log; the last one may be in the making."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def steps(run):
    """{step: {name: value}} of all that is logged so far."""
    found = {}

    def add(line, name):
        known = {name(k): v for k, v in line.items() if k not in BOOKKEEPING and isinstance(v, (int, float))}
        found.setdefault(line["step"], {}).update(known)

    for line in lines(run / "metrics.jsonl"):
        add(line, str)
    for line in lines(run / "stats.jsonl"):
        site = re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]):02}", line["site"])
        add(line, lambda metric, site=site: f"{metric}/{site}")
    return found


def over(run):
    return json.loads((run / "run.json").read_text())["status"] != "running"


def follow(run, once=False, seconds=10.0):
    """Yields (step, {name: value}) in the order of steps, each step once, until the run is over."""
    last = 0
    while True:
        # Asked before the logs are read: what is written in between is then read too.
        ended = once or over(run)
        found = steps(run)
        # The latest step may still be missing a line.
        ready = sorted(found) if ended else sorted(found)[:-1]
        for step in ready:
            # A run that was killed and resumed logs some steps again, with the same figures.
            if step > last:
                yield step, found[step]
                last = step
        if ended:
            return
        time.sleep(seconds)
