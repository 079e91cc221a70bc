"""Compare a dump of activations with what `transformers` computes from the same Hugging Face folder, in float32.

    python scripts/golden/check_hf.py DIR --ids ids.json --dump dump.safetensors
    python scripts/golden/check_hf.py DIR --pixels pixels.safetensors --dump dump.safetensors

The ids are a JSON array of arrays of one length, none of them padding; the pixels a safetensors file with
`pixel_values` [B, channels, height, width]. The dump is a safetensors file that holds the sites of hf_sites.py among
its tensors: embed, blocks.{i}.resid, final_norm, logits. A site that one side has and the other lacks is an error.

Prints the largest absolute deviation per site, and that relative to the site's largest value. Exits 1 where the first
is above --tolerance times the larger of 1 and that value.

The code of a folder (--trust-remote-code) may run its blocks in a way that hooks do not see. Then `hidden_states` of
the output stand in: those entering each block, and last the final norm's where the dump has one. What leaves the last
block is not compared then.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from hf_sites import first, positions, record, stack_of

SITE = re.compile(r"embed|blocks\.\d+\.resid|final_norm|logits")
# By the end of the architecture's name.
CLASSES = {
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForPreTraining": transformers.AutoModelForMaskedLM,
    "ForImageClassification": transformers.AutoModelForImageClassification,
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "LMHeadModel": transformers.AutoModelForCausalLM,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--ids", type=Path)
    given.add_argument("--pixels", type=Path)
    parser.add_argument("--dump", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code in the folder")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()

    if args.ids:
        inputs = {"input_ids": torch.tensor(json.loads(args.ids.read_text()))}
    else:
        inputs = {"pixel_values": load_file(args.pixels)["pixel_values"]}
    dump = {name: x for name, x in load_file(args.dump).items() if SITE.fullmatch(name)}
    model = load(args.folder, args.trust_remote_code)
    wanted, output = record(model, **inputs)
    if not hooked(wanted, len(stack_of(model))):
        print("the blocks cannot be hooked: hidden_states of the output are compared")
        wanted, unseen = stand_ins(output, "final_norm" in dump)
        dump = {name: x for name, x in dump.items() if name != unseen}
    wrong = compare(dump, wanted, args.tolerance)
    print(f"{len(dump.keys() | wanted.keys())} sites, {wrong} disagree")
    sys.exit(1 if wrong else 0)


def load(folder, trust):
    """The model of the folder in float32, with the head that its config names."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    config.use_cache = False  # a folder's own code may know caches of older versions only
    architecture = (config.architectures or [""])[0]
    chosen = [auto for ending, auto in CLASSES.items() if architecture.endswith(ending)]
    auto = chosen[0] if chosen else transformers.AutoModel
    options = {
        "config": config,
        "dtype": torch.float32,
        "attn_implementation": "eager",
        "trust_remote_code": trust,
    }
    return auto.from_pretrained(folder, **options).eval()


def hooked(found, depth):
    return {"embed"} | {f"blocks.{i}.resid" for i in range(depth)} <= found.keys()


def stand_ins(output, normed):
    """Sites as `hidden_states` and `logits` give them, and the name of the one they do not, if the last is `normed`."""
    states = [first(state) for state in output.hidden_states]
    names = ["embed"] + [f"blocks.{i}.resid" for i in range(len(states) - 1)]
    unseen = names[-1] if normed else None
    found = dict(zip(names, states))
    if normed:
        found["final_norm"] = found.pop(unseen)
    if getattr(output, "logits", None) is not None:
        found["logits"] = positions(output.logits)
    return found, unseen


def compare(dump, wanted, tolerance):
    """Print a line per site; return how many disagree."""
    wrong = 0
    for name in sorted(dump.keys() | wanted.keys(), key=order):
        got, want = dump.get(name), wanted.get(name)
        if got is None or want is None:
            line, ok = f"only {'the model' if got is None else 'the dump'} has it", False
        elif got.shape != want.shape:
            line, ok = f"shape {list(got.shape)}, the model gives {list(want.shape)}", False
        else:
            absolute = (got.double() - want.double()).abs().max().item()
            largest = want.double().abs().max().item()
            line = f"deviates by {absolute:.2e}, relative {absolute / max(largest, 1e-300):.2e}"
            ok = absolute <= tolerance * max(1.0, largest)
        print(f"{'ok   ' if ok else 'WRONG'} {name:16} {line}")
        wrong += not ok
    return wrong


def order(name):
    """Sites as data flows through them."""
    stage = ["embed", "blocks", "final_norm", "logits"].index(name.split(".")[0])
    return stage, int(name.split(".")[1]) if stage == 1 else 0


if __name__ == "__main__":
    main()
