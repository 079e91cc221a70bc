"""The models whose folders `hf.py` writes.

Sizes are the smallest at which a mistake shows: odd numbers of heads, head widths that are not width / heads, windows
and original contexts shorter than the sequence, norms with gains off one. `sliding_window` of a model that does not use
it, and keys that old files lacked, are there to be read as `transformers` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import hf_layouts as layouts


@dataclass(frozen=True)
class Case:
    name: str
    model: str  # class of `transformers`
    config: dict
    length: int = 11  # of the sequences of ids; image models have as many positions as patches and one
    dtype: str = "float32"  # of the stored weights
    version: int = 5  # of `transformers` that the config.json is written as
    keys: dict = field(default_factory=dict)  # put into a version 4 config.json last
    absent: tuple = ()  # keys taken out of a version 4 config.json last
    pickled: bool = False  # pytorch_model.bin instead of model.safetensors
    shard_bytes: int = 0  # shards of at most this size; 0: one file
    tensors: Callable | None = None  # (tensors as version 5 names them, config) -> tensors of the file
    arguments: dict = field(default_factory=dict)  # of the class, beside the config


def gpt2(name, model="GPT2LMHeadModel", config={}, **rest):
    sizes = {"n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": 28, "vocab_size": 37, "n_positions": 16}
    return Case(f"gpt2_{name}", model, sizes | {"bos_token_id": 0, "eos_token_id": 0} | config, **rest)


def opt(name, model="OPTForCausalLM", config={}, **rest):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 26}
    sizes |= {"vocab_size": 33, "max_position_embeddings": 14}
    return Case(f"opt_{name}", model, sizes | config, **rest)


def neox(name, config={}, **rest):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 30}
    sizes |= {"vocab_size": 31, "max_position_embeddings": 16}
    return Case(f"gpt_neox_{name}", "GPTNeoXForCausalLM", sizes | config, **rest)


def gated(architecture, name, config={}, **rest):
    """Llama and its relatives."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 26, "vocab_size": 37, "max_position_embeddings": 32}
    return Case(f"{architecture.lower()}_{name}", f"{architecture}ForCausalLM", sizes | config, **rest)


def encoder(architecture, name, head="ForMaskedLM", config={}, **rest):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 26}
    sizes |= {"vocab_size": 35, "max_position_embeddings": 16}
    return Case(f"{architecture.lower()}_{name}", f"{architecture}{head}", sizes | config, **rest)


def vit(name, model="ViTForImageClassification", config={}, **rest):
    sizes = {"hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 26}
    sizes |= {"image_size": 8, "patch_size": 2}
    return Case(f"vit_{name}", model, sizes | config, **rest)


def rope(theta, kind="default", **rest):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | rest}


CASES = [
    gpt2("1_tied"),
    gpt2(
        "2_untied",
        config={
            "n_inner": 23,
            "activation_function": "relu",
            "tie_word_embeddings": False,
            "layer_norm_epsilon": 1e-2,
        },
        version=4,
    ),
    gpt2(
        "3_hub",
        config={"activation_function": "gelu", "n_inner": None, "n_embd": 12},
        dtype="float16",
        version=4,
        keys={"n_ctx": 16},
        absent=("torch_dtype", "n_inner", "transformers_version"),
        tensors=layouts.gpt2_of_the_hub,
    ),
    gpt2("4_bare", "GPT2Model", {"n_layer": 3, "n_inner": None, "n_embd": 12}, length=9),
    opt("1_pre", version=4, dtype="float16", keys={"prefix": "</s>"}),
    opt("2_post", config={"do_layer_norm_before": False, "word_embed_proj_dim": 10}, length=13),
    opt(
        "3_plain",
        config={"activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    opt("4_bin", version=4, pickled=True, tensors=layouts.opt_of_the_hub),
    opt("5_bare", "OPTModel", {"num_hidden_layers": 3}),
    neox(
        "1_parallel",
        config=rope(10000.0, partial_rotary_factor=0.25),
        version=4,
        keys={"rotary_emb_base": 10000},
        pickled=True,
        tensors=layouts.gpt_neox_of_the_hub,
    ),
    neox(
        "2_sequential",
        config={
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-2,
        }
        | rope(500.0, partial_rotary_factor=1.0),
    ),
    neox(
        "3_scaled",
        config={"tie_word_embeddings": True} | rope(10000.0, "linear", factor=2.5, partial_rotary_factor=0.5),
        dtype="bfloat16",
    ),
    gated(
        "Llama",
        "1_tied",
        {"hidden_size": 18, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    # With theta 10 the five frequencies of a head fall into all three ranges of the rule: kept, blended, divided.
    gated(
        "Llama",
        "2_llama3",
        {"head_dim": 10, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2}
        | rope(
            10.0,
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=1.5,
            original_max_position_embeddings=12,
        ),
        length=14,
        version=4,
    ),
    gated(
        "Llama", "3_dynamic", {"max_position_embeddings": 8} | rope(10000.0, "dynamic", factor=3.0), length=14
    ),
    gated("Llama", "4_linear", rope(1000.0, "linear", factor=4.0), dtype="bfloat16", shard_bytes=5000),
    gated(
        "Llama",
        "5_old",
        {"num_key_value_heads": 4} | rope(10000.0, "linear", factor=2.0),
        dtype="float16",
        version=4,
        keys={"rope_scaling": {"type": "linear", "factor": 2.0}},
        absent=("rope_theta", "head_dim", "attention_bias", "mlp_bias", "num_key_value_heads"),
        pickled=True,
        shard_bytes=6000,
        tensors=layouts.llama_of_the_hub,
    ),
    gated("Mistral", "1_window", {"sliding_window": 5}, length=13, version=4, absent=("head_dim",)),
    gated(
        "Mistral",
        "2_full",
        {"sliding_window": None, "num_key_value_heads": 1, "rms_norm_eps": 1e-2},
        version=4,
    ),
    gated("Mistral", "3_head_dim", {"head_dim": 6, "sliding_window": 4} | rope(500.0), dtype="bfloat16"),
    gated(
        "Qwen2",
        "1_full",
        {"use_sliding_window": False},
        version=4,
        keys={"sliding_window": 4, "max_window_layers": 2},
    ),
    gated(
        "Qwen2",
        "2_window",
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
        | {"rms_norm_eps": 1e-2},
        length=13,
    ),
    gated(
        "Qwen2",
        "3_tied",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
        | rope(1000000.0),
        dtype="bfloat16",
        version=4,
    ),
    gated("Qwen3", "1_bias", {"head_dim": 6, "attention_bias": True, "rms_norm_eps": 1e-2}),
    gated("Qwen3", "2_tied", {"head_dim": 10, "tie_word_embeddings": True} | rope(1000000.0), version=4),
    gated(
        "Qwen3",
        "3_window",
        {"head_dim": 8, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 18}
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        dtype="bfloat16",
    ),
    # Early files name the activation "gelu" and mean its tanh approximation.
    gated(
        "Gemma",
        "1_multi_query",
        {"head_dim": 8, "num_key_value_heads": 1},
        version=4,
        keys={"hidden_act": "gelu", "hidden_activation": None},
    ),
    gated(
        "Gemma",
        "2_multi_head",
        {"head_dim": 6, "num_attention_heads": 3, "num_key_value_heads": 3},
        dtype="bfloat16",
        version=4,
        keys={"hidden_activation": "gelu_pytorch_tanh"},
    ),
    gated("Gemma", "3_grouped", {"head_dim": 6, "rms_norm_eps": 1e-2} | rope(500.0)),
    encoder("Bert", "1_mlm"),
    encoder("Bert", "2_pooler", "Model", version=4),
    encoder(
        "Bert", "3_bare", "Model", {"num_hidden_layers": 3}, length=9, arguments={"add_pooling_layer": False}
    ),
    encoder(
        "Bert",
        "4_untied",
        config={
            "hidden_act": "relu",
            "hidden_size": 15,
            "num_attention_heads": 3,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-2,
        },
        version=4,
    ),
    encoder(
        "Bert",
        "5_hub",
        config={"hidden_act": "gelu_new"},
        version=4,
        absent=("torch_dtype", "transformers_version", "position_embedding_type"),
        tensors=layouts.bert_of_the_hub,
    ),
    encoder("Roberta", "1_mlm", config={"layer_norm_eps": 1e-5, "type_vocab_size": 1}, length=14),
    encoder("Roberta", "2_pooler", "Model", {"num_attention_heads": 2}),
    encoder(
        "Roberta",
        "3_eps",
        config={"layer_norm_eps": 1e-2},
        dtype="float16",
        version=4,
        tensors=layouts.roberta_of_the_hub,
    ),
    vit("1_classes", config={"num_labels": 5}),
    vit("2_bare", "ViTModel", {"qkv_bias": False, "num_hidden_layers": 3, "patch_size": 4}, version=4),
    vit(
        "3_oblong",
        config={"image_size": [6, 8], "num_channels": 1, "hidden_act": "gelu_new", "num_labels": 4}
        | {"layer_norm_eps": 1e-2},
    ),
]
