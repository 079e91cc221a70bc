"""Check modeling_evenkeel.py against other models of transformers, for the keys that the golden blocks lack.

Each family below is a tiny model of random weights. Its tensors, renamed, and a table [model] that describes it make a folder
that must give the same logits. Prints the deviations; exits with 1 if one is above 1e-4.

    llama_*    rope_scaling            mistral, qwen3   window, window_blocks, qk_norm rms_inside, head_dim
    gemma      embed_scale, geglu_tanh, head_dim        opt   embed_dim        phi   head_bias

`causal = false` has no family here: in a model of one block, the last token sees the same with and without it.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from check_modeling import LIMIT, farthest, load, scratch, write_folder  # first: it sets where code is copied

import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

import blocks

DEPTH, WIDTH, HEADS, VOCAB, CONTEXT, TOKENS = 2, 24, 4, 29, 16, 13
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 40, "rms_norm_eps": 1e-3}

BASE = {"init": "fan_in", "depth": DEPTH, "width": WIDTH, "heads": HEADS, "vocab": VOCAB, "context": CONTEXT}
LLAMA = {
    "norm": "rms", "final_norm": "rms", "norm_eps": 1e-3, "kv_heads": 2, "mlp_hidden": 40, "activation": "swiglu",
    "positions": "rope", "biases": [],
}  # fmt: skip

# Names inside a block, theirs to ours; what is not listed keeps its name.
NAMES = {
    "model.decoder.": "", "model.": "", "layers.": "blocks.", "embed_tokens": "embed.token",
    "embed_positions": "embed.position", "project_in": "embed.proj", "project_out": "head.proj", "lm_head": "head",
    "self_attn.q_norm.weight": "attn.q_norm.gain", "self_attn.k_norm.weight": "attn.k_norm.gain",
    "self_attn_layer_norm.weight": "attn.norm.gain", "self_attn_layer_norm.bias": "attn.norm.bias",
    "self_attn.": "attn.", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out", "out_proj": "out",
    "attn.dense": "attn.out", "input_layernorm.weight": "attn.norm.gain", "input_layernorm.bias": "attn.norm.bias",
    "post_attention_layernorm.weight": "mlp.norm.gain", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "final_layer_norm": "mlp.norm", "mlp.norm.weight": "mlp.norm.gain", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down",
    ".fc1": ".mlp.up", ".fc2": ".mlp.down", "final_layernorm.": "final_norm.",
}  # fmt: skip


def rope(kind, **numbers):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0} | numbers}


def families():
    """Yield name, model type, its configuration, and our table."""
    llama = {"rope_base": 100.0} | LLAMA
    yield "llama_linear", "llama", GATED | rope("linear", factor=3.0), llama | {"rope_scaling": "linear(3)"}
    short = GATED | {"max_position_embeddings": 8}
    yield "llama_dynamic", "llama", short | rope("dynamic", factor=2.0), llama | {"rope_scaling": "dynamic(2, 8)"}
    numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    yield (
        "llama3", "llama", GATED | {"head_dim": 16} | rope("llama3", factor=8.0, **numbers),
        llama | {"head_dim": 16, "rope_scaling": "llama3(8, 1, 4, 64)"},
    )  # fmt: skip
    yield "mistral", "mistral", GATED | rope("default") | {"sliding_window": 4}, llama | {"window": 4}
    yield (
        "qwen3", "qwen3",
        GATED | rope("default") | {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        llama | {"head_dim": 10, "window": 4, "window_blocks": [1], "qk_norm": "rms_inside", "qk_norm_eps": 1e-3},
    )  # fmt: skip
    yield (
        "gemma", "gemma", GATED | rope("default") | {"head_dim": 10, "hidden_activation": "gelu_pytorch_tanh"},
        llama | {"head_dim": 10, "activation": "geglu_tanh", "embed_scale": WIDTH**0.5, "tie_head": True},
    )  # fmt: skip
    yield (
        "opt", "opt", SIZES | {"word_embed_proj_dim": 9, "ffn_dim": 40, "dropout": 0.0},
        {"embed_dim": 9, "mlp_hidden": 40, "tie_head": True},
    )  # fmt: skip
    yield (
        "phi", "phi", SIZES | {"intermediate_size": 40} | rope("default", partial_rotary_factor=2 / 3),
        {
            "branches": "parallel", "positions": "rope", "rope_base": 100.0, "rope_fraction": 2 / 3, "head_bias": True,
            "activation": "gelu_tanh", "mlp_hidden": 40,
        },
    )  # fmt: skip


def renamed(kind, tensors):
    """The tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        if kind == "gemma" and "norm" in name:
            tensor = tensor + 1  # its gains are stored as the distance from 1
        for theirs, mine in NAMES.items():
            if not (theirs == "final_layer_norm" and "layers" not in name and "blocks" not in name):
                name = name.replace(theirs, mine)
        if name.startswith(("norm.", "final_layer_norm.")):
            name = "final_norm." + name.split(".")[1]
        if name.endswith("norm.weight"):
            name = name.removesuffix("weight") + "gain"
        if kind == "opt" and name == "embed.position.weight":
            tensor = tensor[2:]  # its first two rows are never used
        ours[name] = tensor.contiguous().clone()
    return ours


def table(changes):
    return asdict(replace(blocks.PRESETS["pre_ln"])) | BASE | changes


def random_model(kind, config):
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**config), attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        spread = 0.2 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.add_(torch.randn_like(parameter) * spread)
    return model


def check_causal(ids):
    """Deviation of the last token's logits, and that of the first, which must not be small."""
    one = table({"depth": 1})
    folder = Path(scratch.name) / "causal"
    params = {n: torch.randn(s) * 0.3 for n, (s, _, _) in blocks.parameter_list(replace(blocks.Model(**SHAPE))).items()}
    logits = []
    for causal in (True, False):
        folder = Path(scratch.name) / f"causal_{causal}"
        write_folder(folder, one | {"causal": causal}, params)
        logits.append(load(folder)(ids).logits)
    assert farthest(logits[0][:, 0], logits[1][:, 0]) > 1e-2
    return farthest(logits[0][:, -1], logits[1][:, -1])


SHAPE = {k: v for k, v in BASE.items() if k != "init"} | {"depth": 1}


@torch.no_grad()
def main():
    torch.manual_seed(1)
    ids = torch.randint(3, VOCAB, (2, TOKENS))
    found = {}
    for name, kind, config, changes in families():
        theirs = random_model(kind, config)
        tensors = theirs.state_dict()
        if changes.get("tie_head"):
            tensors.pop("lm_head.weight")
        folder = Path(scratch.name) / name
        write_folder(folder, table(changes), renamed(kind, tensors))
        found[name] = farthest(load(folder)(ids).logits, theirs(ids).logits)
        print(f"{name}: {found[name]:.1e}")
    found["causal"] = check_causal(ids)
    print(f"causal: {found['causal']:.1e}")
    print(f"largest: {max(found.values()):.1e}")
    sys.exit(max(found.values()) > LIMIT)


if __name__ == "__main__":
    main()
