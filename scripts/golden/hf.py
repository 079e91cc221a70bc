"""Golden folders: small models of `transformers` as it saves them, with the activations they give.

Writes hf/CASE/ for every case of hf_cases.py: config.json, the weights (model.safetensors, pytorch_model.bin, or
shards of either with their index) and expected.safetensors.

Every weight is redrawn, so that each of them matters: matrices N(0, 1/fan_in), embeddings N(0, 0.5^2), gains
1 + N(0, 0.2^2) (Gemma's N(0, 0.2^2), since it adds the one itself), biases N(0, 0.2^2), rounded to the dtype they are
stored in. Tied weights stay tied. The folder is then written, in the layout of version 5 as it saves it or in that of
older files (hf_layouts.py), loaded by `transformers` from the disk in float64 with eager attention, and run.

Keys of expected.safetensors: `ids` (int64 [2, T], never the padding id, no padding) or `pixel_values` (float32
[2, channels, height, width]), and the sites of hf_sites.py (float32 [2, T, channels], computed in float64):
embed, blocks.{i}.resid, final_norm, logits. `transformers` computes rotary angles, softmax and RMSNorm in float32 even
then, so they carry an error near 1e-7 of their size.

Two checks run with it: nothing of the model is missing from the folder, and the model as it was built gives the same
sites as the folder. The printed figures are the largest deviation of any site of the float32 model from the float64
one, absolute and relative to the largest value of its site.
"""

import copy
import json
import zlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from common import GOLDEN, argument_parser, made, write
from hf_cases import CASES
from hf_layouts import config_v4, write_json, write_pickled
from hf_sites import record

TOGETHER = 2  # sequences or images per case
FIRST_ID = 4  # below are padding, begin and end of text
SAME = 1e-6  # built and loaded model, of a site's largest value


def main():
    parser = argument_parser(__doc__)
    parser.set_defaults(out=GOLDEN / "hf")
    parser.add_argument("--case", action="append", help="write this case only; may be repeated")
    args = parser.parse_args()
    unknown = set(args.case or []) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no case is named {', '.join(sorted(unknown))}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in CASES:
        if not args.case or case.name in args.case:
            write_case(case, made(args.out / case.name))


def write_case(case, folder):
    for stale in folder.iterdir():
        stale.unlink()
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    model = build(case, generator)
    write_weights_and_config(case, model, folder)
    inputs = draw_inputs(case, model.config, generator)
    expected = sites_of(load(case, folder, torch.float64), inputs)
    assert_same(case, sites_of(model.double(), inputs), expected)
    single = sites_of(load(case, folder, torch.float32), inputs)
    absolute, relative = deviation(single, expected)

    about = {
        "case": case.name,
        "model": case.model,
        "transformers": transformers.__version__,
        "weights": case.dtype,
    }
    given = {"ids" if name == "input_ids" else name: x.numpy() for name, x in inputs.items()}
    write(
        folder / "expected.safetensors",
        given | {name: x.float().numpy() for name, x in expected.items()},
        about,
    )
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{case.name}: {size} bytes, float32 deviates by {absolute:.1e}, relative {relative:.1e}")


def build(case, generator):
    """The case's model in float32, holding weights that its stored dtype holds exactly."""
    architecture = getattr(transformers, case.model)
    config = architecture.config_class(**case.config, attn_implementation="eager")
    model = architecture(config, **case.arguments).eval()
    owners = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            centre, spread = distribution(owners[owner], leaf, parameter)
            values = centre + spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values.to(getattr(torch, case.dtype)))
        share_head_bias(model)
    return model


def distribution(owner, leaf, parameter):
    """Mean and deviation of the parameter `leaf` of `owner`."""
    kind = type(owner).__name__
    if leaf == "bias":
        return 0.0, 0.2
    if "Norm" in kind:
        return (0.0 if kind.startswith("Gemma") else 1.0), 0.2
    if isinstance(owner, nn.Embedding) or leaf in ("cls_token", "position_embeddings"):
        return 0.0, 0.5
    inputs = parameter.shape[0] if kind == "Conv1D" else parameter[0].numel()
    return 0.0, inputs**-0.5


def share_head_bias(model):
    """Give both names of the bias of BERT's head one value: version 4 always shares it, version 5 where it ties."""
    head = getattr(getattr(model, "cls", None), "predictions", None)
    if head is not None:
        head.bias.copy_(head.decoder.bias)


def write_weights_and_config(case, model, folder):
    shard_bytes = 0 if case.pickled else case.shard_bytes
    # A copy: the cast would round the rotary frequencies too, and those are not stored.
    stored = copy.deepcopy(model).to(getattr(torch, case.dtype))
    stored.save_pretrained(folder, max_shard_size=shard_bytes or "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    if case.version == 4:
        config = config_v4(config) | case.keys
        for key in case.absent:
            del config[key]
        write_json(folder / "config.json", config)
    if case.pickled or case.tensors:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        tensors = case.tensors(tensors, config) if case.tensors else tensors
        if case.pickled:
            write_pickled(folder, tensors, case.shard_bytes)
        else:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def draw_inputs(case, config, generator):
    if config.model_type == "vit":
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {
            "pixel_values": torch.randn(TOGETHER, config.num_channels, height, width, generator=generator)
        }
    ids = torch.randint(FIRST_ID, config.vocab_size, (TOGETHER, case.length), generator=generator)
    return {"input_ids": ids}


def load(case, folder, dtype):
    model, report = getattr(transformers, case.model).from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, **case.arguments
    )
    lacking = {key: report[key] for key in ("missing_keys", "mismatched_keys") if report[key]}
    assert not lacking, f"{case.name}: {lacking}"
    return model.eval()


def sites_of(model, inputs):
    dtype = next(model.parameters()).dtype
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    return record(model, **given)[0]


def deviation(got, want):
    """Largest deviation of any site, absolute and relative to the site's largest value."""
    pairs = [((got[name] - x).abs().max().item(), x.abs().max().item()) for name, x in want.items()]
    return max(difference for difference, _ in pairs), max(
        difference / largest for difference, largest in pairs
    )


def assert_same(case, built, loaded):
    assert built.keys() == loaded.keys(), (case.name, built.keys(), loaded.keys())
    relative = deviation(built, loaded)[1]
    assert relative < SAME, f"{case.name}: the folder's sites deviate from the model's by {relative:.1e}"


if __name__ == "__main__":
    main()
