"""Check modeling_evenkeel.py, by which transformers reads an exported folder, against the golden blocks.

For each variant of blocks.json: a folder with config.json, the golden parameters (float32) and the file is made,
loaded by AutoModelForCausalLM with trust_remote_code, and run. Logits, hidden states and loss must be those of
blocks_GROUP.safetensors. Then rows padded on the left and on the right must have the logits of their tokens alone,
and the folder that save_pretrained writes must give the same bits. Two variants generate five tokens, the
likeliest at each step. Tables that describe another network than the file can compute must be refused.

Prints the largest deviations; exits with 1 if one is above 1e-4. Needs transformers, and writes nothing but
temporary folders.
"""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

scratch = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = f"{scratch.name}/modules"  # where transformers copies each folder's code

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import blocks
from common import GOLDEN

MODELING = Path(__file__).resolve().parents[2] / "crates/evenkeel/src/checkpoint/hf/modeling_evenkeel.py"
LIMIT = 1e-4
GENERATING = {"tied_head", "everything"}
PADDING = 3

REFUSED = {
    "norm": "batch",
    "activation": "leaky_relu",
    "softmax": "clipped(1)",
    "rope_scaling": "yarn(8)",
    "biases": ["q", "head"],
    "beta": "deep",
    "patch_size": 4,
    "readout": "class",
    "head_transform": True,
    "no_such_key": 1,
}


def write_folder(folder, table, params):
    """An exported folder, as the tool writes it."""
    folder.mkdir()
    config = {
        "model_type": "evenkeel",
        "architectures": ["EvenkeelForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_evenkeel.EvenkeelConfig",
            "AutoModelForCausalLM": "modeling_evenkeel.EvenkeelForCausalLM",
        },
        "dtype": "float32",
        "hidden_size": table["width"],
        "num_hidden_layers": table["depth"],
        "num_attention_heads": table["heads"],
        "vocab_size": table["vocab"],
        "max_position_embeddings": table["context"],
        "tie_word_embeddings": table["tie_head"],
        "model": table,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(params, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(MODELING, folder)


def load(folder):
    """The model in `folder`; every tensor of the file must have found its place."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], f"{folder.name}: {kind} {report[kind]}"
    return model.eval()


def farthest(a, b):
    assert a.shape == b.shape, (a.shape, b.shape)
    distance = (a.double() - b.double()).abs().max().item()
    return distance if distance == distance else float("inf")


def sites(model, golden):
    """Deviations of one pass from the golden one."""
    ids, logits = golden["ids"], golden["site.logits"]
    output = model(ids, labels=ids, output_hidden_states=True)
    depth = model.config.num_hidden_layers
    hidden = [golden["site.embed"], *(golden[f"site.blocks.{i}.resid"] for i in range(depth))]
    assert len(output.hidden_states) == len(hidden)
    shifted = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = cross_entropy(output.logits.flatten(0, 1), golden["targets"].flatten())
    return {
        "logits": farthest(output.logits, logits),
        "hidden": max(farthest(a, b) for a, b in zip(output.hidden_states, hidden)),
        "loss": max(farthest(loss, golden["loss"][0]), farthest(output.loss, shifted)),
    }


def padded(model, ids):
    """Deviation of padded rows, one on each side, from the same tokens alone."""
    tokens = ids.shape[1] - PADDING
    alone = model(ids[:, :tokens]).logits
    batch, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    batch[0, PADDING:], mask[0, PADDING:] = ids[0, :tokens], 1
    batch[1, :tokens], mask[1, :tokens] = ids[1, :tokens], 1
    logits = model(batch, attention_mask=mask).logits
    return max(farthest(logits[0, PADDING:], alone[0]), farthest(logits[1, :tokens], alone[1]))


def generates(model, ids):
    """Whether five greedy tokens are the likeliest ones, with a padded row beside, whatever use_cache says."""
    wanted = ids[:1, :2]
    for _ in range(5):
        wanted = torch.cat([wanted, model(wanted).logits[:, -1:].argmax(-1)], dim=1)
    rows, mask = torch.stack([ids[0, :2], ids[1, :2]]), torch.tensor([[1, 1], [0, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    found = [model.generate(rows, use_cache=cache, **options) for cache in (False, True)]
    return all(torch.equal(rows[:1], wanted) for rows in found)


def check(name, table, golden):
    """Deviations of one variant, by what was compared."""
    folder = Path(scratch.name) / name
    params = {n.removeprefix("param."): x for n, x in golden.items() if n.startswith("param.")}
    write_folder(folder, table, params)
    model = load(folder)
    found = sites(model, golden)
    found["padding"] = padded(model, golden["ids"])
    if name in GENERATING:
        found["tokens"] = 0.0 if generates(model, golden["ids"]) else float("inf")
    again = folder.with_name(f"{name}_again")
    model.save_pretrained(again)
    assert set(load_file(again / "model.safetensors")) == set(params), name
    found["saved again"] = farthest(load(again)(golden["ids"]).logits, model(golden["ids"]).logits)
    return found


def check_refusals(table):
    for key, value in REFUSED.items():
        folder = Path(scratch.name) / f"refused_{key}"
        write_folder(folder, table | {key: value}, {})
        try:
            AutoConfig.from_pretrained(folder, trust_remote_code=True)
        except ValueError as error:
            assert f"model.{key}" in str(error), error
        else:
            raise AssertionError(f"{key} = {value!r} was not refused")
    print(f"refused: {', '.join(REFUSED)}")


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    golden = {}
    for file in sorted(GOLDEN.glob("blocks_*.safetensors")):
        for key, tensor in load_file(file).items():
            variant, name = key.split("/", 1)
            golden.setdefault(variant, {})[name] = tensor
    configs = json.loads((GOLDEN / "blocks.json").read_text())
    assert set(configs) == set(golden)
    worst = {}
    for name, config in configs.items():
        preset = blocks.PRESETS[config["preset"]]
        changes = {key: value for key, value in config.items() if key != "preset"}
        table = asdict(replace(preset, **changes)) | {"init": "fan_in"}
        found = check(name, table, golden[name])
        print(f"{name}: " + ", ".join(f"{what} {deviation:.1e}" for what, deviation in found.items()))
        for what, deviation in found.items():
            worst[what] = max(worst.get(what, (0.0, "")), (deviation, name))
    check_refusals(table)
    largest = ", ".join(f"{what} {deviation:.1e} ({name})" for what, (deviation, name) in worst.items())
    print(f"{len(configs)} variants; largest: {largest}")
    sys.exit(max(d for d, _ in worst.values()) > LIMIT)


if __name__ == "__main__":
    main()
