"""Compares the TensorBoard file of a run with its logs, both ways: python scripts/check_tensorboard.py RUN...

Needs tensorboard. Every number of metrics.jsonl, stats.jsonl and moments.jsonl must be what TensorBoard reads, as float32
and at the same step; TensorBoard must read nothing else. Exits with 1 where something deviates.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Current
from tensorboard.util import tensor_util

BOOKKEEPING = {"step", "site", "layer", "moments", "mmr_tokens", "gram_tokens"}


def logged(run):
    """{tag: [(step, value), ...]} as the logs have it."""
    depth = json.loads(next((run / "checkpoints").glob("step-*/config.json")).read_text())["model"]["depth"]
    digits = max(2, len(str(depth - 1)))

    def padded(site):
        return re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]):0{digits}}", site)

    names = {
        "metrics.jsonl": lambda line, key: key,
        "stats.jsonl": lambda line, key: f"{key}/{padded(line['site'])}",
        "moments.jsonl": lambda line, key: f"moments/{padded(line['site'])}/{key}",
    }
    tags = {}
    for file, name in names.items():
        text = (run / file).read_text() if (run / file).exists() else ""
        for line in map(json.loads, text.splitlines()):
            for key, value in line.items():
                if key not in BOOKKEEPING and value is not None:
                    tags.setdefault(name(line, key), []).append((line["step"], np.float32(value)))
    return tags


def check(run):
    expected = logged(run)
    read = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    read.Reload()
    found = {t: [(e.step, np.float32(e.value)) for e in read.Scalars(t)] for t in read.Tags()["scalars"]}
    # What the pages show goes through this one, which makes tensors of the values.
    read = Current(str(run / "tb"), tensor_size_guidance={"scalars": 0})
    read.Reload()
    tensors = {tag: read.Tensors(tag) for tag in read.PluginTagToContent("scalars")}
    value = lambda event: np.float32(tensor_util.make_ndarray(event.tensor_proto).item())
    shown = {t: [(e.step, value(e)) for e in events] for t, events in tensors.items()}
    bad = [tag for tag in expected.keys() | found.keys() if expected.get(tag) != found.get(tag)]
    bad += [tag for tag in expected.keys() | shown.keys() if expected.get(tag) != shown.get(tag)]
    count = sum(map(len, expected.values()))
    print(f"{run}: {len(expected)} tags, {count} values, {len(bad)} tags deviate")
    for tag in bad[:5]:
        print(f"  {tag}: logs {expected.get(tag)}, TensorBoard {found.get(tag)}, {shown.get(tag)}")
    return not bad and count > 0


if __name__ == "__main__":
    sys.exit(0 if all([check(Path(run)) for run in sys.argv[1:]]) and len(sys.argv) > 1 else 1)
