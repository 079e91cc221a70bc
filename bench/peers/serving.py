"""A peer as a process that stays: it reads lines `run MODE` and answers each with one JSON line.

Rounds of several programs can so take turns without loading their models again. `evenkeel bench int8 --serve` speaks
the same lines.
"""

import argparse
import json
import re
import sys
import time

import numpy as np

SHAPE = {"depth": 12, "width": 768, "heads": 12, "vocab": 50257, "context": 512}


def shape_parser(doc):
    """The options of both peers; the default is GPT-2's shape of 124M parameters."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--sequences", type=int, default=1, help="sequences of one batch [default: 1]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="timed forwards of each mode without --serve [default: 3]")
    parser.add_argument("--modes", nargs="+", metavar="MODE", help="without --serve: only these")
    parser.add_argument("--serve", action="store_true", help="answer lines `run MODE` on stdin")
    return parser


def token_ids(args):
    """(sequences, context) of random ids."""
    return np.random.default_rng(0).integers(0, args.vocab, (args.sequences, args.context))


def reason(error):
    """The first line of an error without the folders of this machine."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'/[^ :]*/', '', line)[:200]}"


class Modes:
    """Forward passes by mode, each made when it is first asked for: a whole batch in, the last positions' logits out."""

    def __init__(self, makers, version):
        self.makers, self.version, self.made = makers, version, {}

    def run(self, mode):
        """What is said of one forward pass. The first one of a mode may hold a compilation: it is a warm-up."""
        try:
            if mode not in self.made:
                self.made[mode] = self.makers[mode]()
            begun = time.perf_counter()
            self.made[mode]()
            return {"mode": mode, "seconds": time.perf_counter() - begun, "version": self.version}
        # Whatever a library raises where it lacks a mode, the other modes can still run.
        except Exception as error:
            return {"mode": mode, "failed": reason(error)}


def serve(modes):
    for line in sys.stdin:
        print(json.dumps(modes.run(line.removeprefix("run").strip())), flush=True)


def measure(modes, names, repeat):
    """One JSON line for each mode, two warm-ups left out."""
    for name in names:
        answers = [modes.run(name) for _ in range(2 + repeat)]
        failed = next((answer for answer in answers if "failed" in answer), None)
        line = failed or {"mode": name, "seconds": [round(answer["seconds"], 4) for answer in answers[2:]]}
        print(json.dumps(line), flush=True)
