"""What older versions of `transformers`, and the files on the hub, hold where version 5 writes something else.

`config_v4` turns a version 5 config.json into version 4's. The functions of tensors take the tensors as version 5
names them on disk, and the config, and return what a file of the time held: other names, aliases of tied matrices,
and buffers or heads that a reader has to leave alone.
"""

import json

import torch

# Classes whose own default is an untied head; version 4 left `tie_word_embeddings` out where it was true elsewhere.
UNTIED = {"llama", "mistral", "qwen2", "qwen3", "gpt_neox"}
# Written by version 4 only where they differed from these.
COMMON = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "is_decoder": False,
    "add_cross_attention": False,
}
# Of version 5 alone.
NEW = {"layer_types", "use_bidirectional_attention", "pooler_act", "pooler_output_size"}


def config_v4(config):
    """The keys that version 4 would have saved for `config`, a version 5 config.json."""
    old = {
        key: value for key, value in config.items() if key not in NEW and (key, value) not in COMMON.items()
    }
    old["torch_dtype"] = old.pop("dtype")
    old["transformers_version"] = "4.44.2"
    if old.get("tie_word_embeddings") and old["model_type"] not in UNTIED:
        del old["tie_word_embeddings"]
    if old["model_type"] in ("bert", "roberta"):
        old["position_embedding_type"] = "absolute"
    if "rope_parameters" in old:
        rope = dict(old.pop("rope_parameters"))
        neox = old["model_type"] == "gpt_neox"
        old["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
        if neox:
            old["rotary_pct"] = rope.pop("partial_rotary_factor")
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return old


def blocks_in(tensors, prefix):
    """The block prefixes `PREFIX.0`, `PREFIX.1`, ... of a state dict."""
    start = prefix.count(".") + 1
    numbers = {int(name.split(".")[start]) for name in tensors if name.startswith(prefix + ".")}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def causal_mask(length, dtype):
    return torch.tril(torch.ones(length, length, dtype=dtype))[None, None]


def gpt2_of_the_hub(tensors, config):
    """Names without `transformer.` and the mask buffers, as in the file of `gpt2` itself."""
    held = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for block in blocks_in(held, "h"):
        held[f"{block}.attn.bias"] = causal_mask(config["n_positions"], torch.uint8)
        held[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return held


def gpt_neox_of_the_hub(tensors, config):
    """The mask buffers and rotary frequencies that the Pythia files hold."""
    rotary = int(config["hidden_size"] // config["num_attention_heads"] * config["rotary_pct"])
    held = dict(tensors)
    for block in blocks_in(tensors, "gpt_neox.layers"):
        held[f"{block}.attention.bias"] = causal_mask(config["max_position_embeddings"], torch.bool)
        held[f"{block}.attention.masked_bias"] = torch.tensor(-1e9)
        held[f"{block}.attention.rotary_emb.inv_freq"] = frequencies(config["rotary_emb_base"], rotary)
    return held


def frequencies(base, channels):
    return base ** (-torch.arange(0, channels, 2) / channels)


def llama_of_the_hub(tensors, config):
    """The rotary frequencies that the first Llama files hold."""
    channels = config["hidden_size"] // config["num_attention_heads"]
    held = dict(tensors)
    for block in blocks_in(tensors, "model.layers"):
        held[f"{block}.self_attn.rotary_emb.inv_freq"] = frequencies(10000.0, channels)
    return held


def opt_of_the_hub(tensors, config):
    """The tied head beside the embedding it shares its storage with."""
    return tensors | {"lm_head.weight": tensors["model.decoder.embed_tokens.weight"]}


def bert_of_the_hub(tensors, config):
    """`gamma` and `beta` in the norms, and the pooler and next-sentence head of pre-training."""
    held = {}
    for name, tensor in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        held[name] = tensor
    width, dtype = config["hidden_size"], tensors["cls.predictions.bias"].dtype
    held["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    held["bert.pooler.dense.weight"] = torch.full((width, width), 0.5, dtype=dtype)
    held["bert.pooler.dense.bias"] = torch.full((width,), 0.5, dtype=dtype)
    held["cls.seq_relationship.weight"] = torch.full((2, width), 0.5, dtype=dtype)
    held["cls.seq_relationship.bias"] = torch.full((2,), 0.5, dtype=dtype)
    return held


def roberta_of_the_hub(tensors, config):
    """The buffer of positions, a pooler, and the tied head under its own name."""
    width, dtype = config["hidden_size"], tensors["lm_head.bias"].dtype
    return tensors | {
        "roberta.embeddings.position_ids": torch.arange(config["max_position_embeddings"])[None],
        "roberta.pooler.dense.weight": torch.full((width, width), 0.5, dtype=dtype),
        "roberta.pooler.dense.bias": torch.full((width,), 0.5, dtype=dtype),
        "lm_head.decoder.weight": tensors["roberta.embeddings.word_embeddings.weight"].clone(),
        "lm_head.decoder.bias": tensors["lm_head.bias"].clone(),
    }


def write_pickled(folder, tensors, shard_bytes):
    """Write pytorch_model.bin, or its shards of at most `shard_bytes` (0: one file) with their index."""
    if not shard_bytes:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    shards = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and held_bytes(shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": held_bytes(tensors)}, "weight_map": weight_map}
    write_json(folder / "pytorch_model.bin.index.json", index)


def held_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors.values())


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
