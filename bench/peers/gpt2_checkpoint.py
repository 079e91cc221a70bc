"""A GPT-2 checkpoint with outliers, and random tokens: what `compare_inspect.py` runs both sides on.

Writes OUT/model (a Hugging Face folder: transformers' default GPT-2 of 124M parameters as it is initialised, seed 0, with
a few channels made large) and OUT/data (token shards in llm.c's format).
"""

import argparse
import pathlib

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

MAGIC, VERSION = 20240520, 1


@torch.no_grad()
def plant(model):
    """Outliers of the kinds that trained models have, so that figures differ from those of noise."""
    body, width = model.transformer, model.config.n_embd
    channel = lambda share: int(share * width)
    body.wpe.weight[:, channel(0.18)] += 0.4  # the same in all tokens
    body.wpe.weight[0, channel(0.58)] = 5.0  # the first token only
    body.wte.weight[:, channel(0.49)] *= 8.0  # differs from token to token
    middle = body.h[len(body.h) // 2]
    middle.mlp.c_proj.bias[channel(0.7)] = -1.5
    middle.ln_1.weight[channel(0.3)] = 6.0


def write_shard(path, ids):
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, len(ids)
    path.write_bytes(header.tobytes() + ids.astype("<u2").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=65536)
    for name in ["layers", "width", "heads", "context", "vocab"]:
        parser.add_argument(f"--{name}", type=int, help="another size than GPT-2's")
    args = parser.parse_args()
    sizes = {
        "n_layer": args.layers, "n_embd": args.width, "n_head": args.heads,
        "n_positions": args.context, "vocab_size": args.vocab,
    }  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{name: size for name, size in sizes.items() if size})).eval()
    plant(model)
    model.save_pretrained(args.out / "model")
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    # One more than the inputs: the last of them needs a successor.
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, args.tokens + 1)
    write_shard(data / "val_000.bin", ids)
    write_shard(data / "train_000.bin", ids[: model.config.n_positions + 1])
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {args.tokens} tokens in {args.out}")


if __name__ == "__main__":
    main()
