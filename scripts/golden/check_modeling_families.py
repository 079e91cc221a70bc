"""Check modeling_evenkeel.py against other models of transformers, for the keys that the golden blocks lack.

Each family below is a tiny model of random weights. Its tensors, renamed, and a table [model] that describes it
make a folder that must give the same logits. Prints the deviations; exits with 1 if one is above 1e-4.

    llama_linear, llama_dynamic, llama3   rope_scaling     mistral, qwen3   window, window_blocks
    llama3, qwen3, gemma   head_dim                        qwen3            qk_norm "rms_inside"
    gemma   embed_scale, geglu_tanh                        opt, phi         embed_dim, head_bias

`causal = false` has no family here: in a model of one block, the last token sees the same with and without it.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from check_modeling import LIMIT, farthest, load, scratch, write_folder  # before transformers, see there

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

# Parts of names, theirs to ours, in this order.
NAMES = {
    "model.": "", "decoder.": "", "layers.": "blocks.", "lm_head": "head", "embed_tokens": "embed.token",
    "embed_positions": "embed.position", "project_in": "embed.proj", "project_out": "head.proj",
    "self_attn_layer_norm": "attn.norm", "input_layernorm": "attn.norm", "self_attn.": "attn.",
    "post_attention_layernorm": "mlp.norm", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out",
    "out_proj": "out", "attn.dense": "attn.out", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "mlp.fc": "fc", "fc1": "mlp.up", "fc2": "mlp.down", "final_layernorm": "final_norm",
    "norm.weight": "norm.gain",
}  # fmt: skip


def rope(kind, **numbers):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0} | numbers}


def families():
    """Yield name, model type, its configuration, and our table."""
    llama = {"rope_base": 100.0} | LLAMA
    yield "llama_linear", "llama", GATED | rope("linear", factor=3.0), llama | {"rope_scaling": "linear(3)"}
    short = GATED | {"max_position_embeddings": 8} | rope("dynamic", factor=2.0)
    yield "llama_dynamic", "llama", short, llama | {"rope_scaling": "dynamic(2, 8)"}
    long = GATED | {"max_position_embeddings": 128}
    numbers = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    yield (
        "llama3", "llama", long | {"head_dim": 16} | rope("llama3", factor=8.0, **numbers),
        llama | {"head_dim": 16, "rope_scaling": "llama3(8, 1, 4, 64)"},
    )  # fmt: skip
    yield "mistral", "mistral", GATED | rope("default") | {"sliding_window": 4}, llama | {"window": 4}
    yield (
        "qwen3", "qwen3",
        GATED | rope("default")
        | {"head_dim": 10, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        llama
        | {"head_dim": 10, "window": 4, "window_blocks": [1], "qk_norm": "rms_inside", "qk_norm_eps": 1e-3},
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
            "branches": "parallel", "positions": "rope", "rope_base": 100.0, "rope_fraction": 2 / 3,
            "head_bias": True, "activation": "gelu_tanh", "mlp_hidden": 40,
        },
    )  # fmt: skip


def renamed(kind, tensors):
    """The tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        if kind == "gemma" and "norm" in name:
            tensor = tensor + 1  # it stores gains by their distance from 1
        if kind == "opt" and "embed_positions" in name:
            tensor = tensor[2:]  # its first two rows are for padding
        for theirs, mine in NAMES.items():
            name = name.replace(theirs, mine)
        # OPT has one name for the norm of the MLP and the last norm
        last = "mlp.norm" if name.startswith("blocks.") else "final_norm"
        name = name.replace("final_layer_norm", last)
        if name.startswith("norm."):
            name = f"final_{name}"
        ours[name.replace("norm.weight", "norm.gain")] = tensor.clone()
    return ours


def table(changes):
    return asdict(blocks.PRESETS["pre_ln"]) | BASE | changes


def random_model(kind, config):
    config = CONFIG_MAPPING[kind](**config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        spread = 0.2 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.add_(torch.randn_like(parameter) * spread)
    return model


def check_causal(ids):
    """Deviation of the last token's logits with and without the mask; those of the first token must differ."""
    shape = blocks.Model(depth=1, width=WIDTH, heads=HEADS, vocab=VOCAB, context=CONTEXT)
    listed = blocks.parameter_list(shape)
    params = {name: torch.randn(size) * 0.3 for name, (size, _, _) in listed.items()}
    logits = []
    for causal in (True, False):
        folder = Path(scratch.name) / f"causal_{causal}"
        write_folder(folder, table({"depth": 1, "causal": causal}), params)
        logits.append(load(folder)(ids).logits)
    assert farthest(logits[0][:, 0], logits[1][:, 0]) > 1e-2
    return farthest(logits[0][:, -1], logits[1][:, -1])


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
