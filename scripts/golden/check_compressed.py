"""compressed-tensors exports as `transformers` loads them, against the float export of the same model and our own logits.

    evenkeel export MODEL --to opt --out FLOAT        # or llama: the class that the compressed folder has
    python scripts/golden/check_compressed.py COMPRESSED FLOAT --ids ids.json [--logits simulation.safetensors]

Three things are compared:

weights    each quantised module's matrix as the library makes floats of it, with scale * clip(round(w / scale), -128, 127)
           of the float export's matrix w, relative to its largest entry: 1e-6
modules    logits with those of the float export whose linear modules are replaced by a statement of the scheme in this
           file, relative to the largest logit
logits     the same with `logits` of the program's simulation of what the folder can express

A float32 sum that ends in another order may fall on the other side of a rounding, and a whole step of a grid follows, so
that the tolerance (--tolerance, 1e-3) is a step of a small model's grids and not a rounding of float32; without such a
flip deviations are near 1e-7. With dynamic activations flips are the rule, at 1e-2 in tiny models: the library's range puts
the largest entry of a token halfway between two steps, so that its last bit decides. There it also has one range for all
tokens where a module reads (tokens, channels), as in the MLP of OPT.

Needs compressed-tensors (made with 0.20). Writes nothing; exits with 1 above a tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


class Scheme(torch.nn.Module):
    """A linear module with integer weights and inputs, as the numbers in the folder say."""

    def __init__(self, linear, numbers, dynamic):
        super().__init__()
        scale = numbers["weight_scale"]
        self.weight = scale * torch.clamp(torch.round(linear.weight.detach() / scale), -128, 127)
        self.bias = linear.bias
        self.dynamic = dynamic
        self.scale = numbers.get("input_scale")
        self.zero = numbers.get("input_zero_point", torch.zeros(1)).float()

    def forward(self, x):
        scale, zero = self.scale, self.zero
        if self.dynamic:
            # Of (tokens, channels) the library takes one range for all tokens.
            axes = {"dim": -1, "keepdim": True} if x.ndim > 2 else {}
            low, high = x.amin(**axes).clamp(max=0), x.amax(**axes).clamp(min=0)
            scale = (high - low) / 255
            zero = torch.clamp(-128 - torch.round(low / scale), -128, 127)
        if scale is not None:
            x = scale * (torch.clamp(torch.round(x / scale) + zero, -128, 127) - zero)
        return torch.nn.functional.linear(x, self.weight, self.bias)


def modules(folder):
    """The numbers of each quantised module, by its name."""
    found = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():
            module, _, part = name.rpartition(".")
            if part in ("weight_scale", "input_scale", "input_zero_point"):
                found.setdefault(module, {})[part] = file.get_tensor(name)
    return found


def is_dynamic(config, module):
    groups = config["quantization_config"]["config_groups"].values()
    for group in groups:
        if module in group["targets"] or group["targets"] == ["Linear"]:
            return bool(group["input_activations"] and group["input_activations"]["dynamic"])
    raise SystemExit(f"no group of the configuration names {module}")


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compressed", type=Path)
    parser.add_argument("float", type=Path)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    ids = torch.tensor(json.loads(args.ids.read_text()))
    model = AutoModelForCausalLM.from_pretrained(args.compressed).eval()
    plain = AutoModelForCausalLM.from_pretrained(args.float).eval()
    config = json.loads((args.compressed / "config.json").read_text())
    with torch.no_grad():
        logits = model(ids).logits
    numbers = modules(args.compressed)
    if not numbers:
        raise SystemExit("the folder holds no quantised module")
    found = {"weights": 0.0}
    for name, parts in numbers.items():
        scheme = Scheme(plain.get_submodule(name), parts, is_dynamic(config, name))
        # The first pass through the model has made floats of its integers.
        found["weights"] = max(found["weights"], relative(model.get_submodule(name).weight, scheme.weight))
        plain.set_submodule(name, scheme)
    with torch.no_grad():
        found["modules"] = relative(logits, plain(ids).logits)
    if args.logits:
        found["logits"] = relative(logits, load_file(args.logits)["logits"])
    print(f"{type(model).__name__}, {len(numbers)} modules: " + "  ".join(f"{k} {v:.1e}" for k, v in found.items()))
    sys.exit(found.pop("weights") > 1e-6 or max(found.values()) > args.tolerance)


if __name__ == "__main__":
    main()
