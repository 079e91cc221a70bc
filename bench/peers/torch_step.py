"""One training step in PyTorch on the CPU, timed: the peer of `evenkeel bench step`.

The model is the same: LayerNorm before each branch, ReLU MLP of four times the width, biases, learned positions, an
untied head without bias. Forward, backward and a fused AdamW step; no clipping. Two warm-up steps are left out (of a
compiled mode they hold the compilation). Prints one JSON line.
"""

import argparse
import contextlib
import json
import resource
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# Some 200 MiB of a build for the CPU, twice or more of one for CUDA: nothing that a training step needs.
IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

WARM_UP = 2


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_btd):
        b, t, d = x_btd.shape
        heads = [part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.attn_norm(x_btd)).chunk(3, -1)]
        context_bhtd = F.scaled_dot_product_attention(*heads, is_causal=True)
        x_btd = x_btd + self.out(context_bhtd.transpose(1, 2).reshape(b, t, d))
        return x_btd + self.down(F.relu(self.up(self.mlp_norm(x_btd))))


class Gpt(nn.Module):
    def __init__(self, depth, width, heads, vocab, context):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, ids_bt, targets_bt):
        x_btd = self.token(ids_bt) + self.position.weight[: ids_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd)
        logits_btv = self.head(self.norm(x_btd))
        return F.cross_entropy(logits_btv.view(-1, logits_btv.shape[-1]).float(), targets_bt.view(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ["depth", "width", "heads", "vocab", "context", "sequences", "steps", "threads"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--mode", choices=["f32", "bf16", "f32-compile", "bf16-compile"], required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    model = Gpt(args.depth, args.width, args.heads, args.vocab, args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if args.mode.endswith("compile") else model
    shape = (args.sequences, args.context)
    ids, targets = torch.randint(0, args.vocab, shape), torch.randint(0, args.vocab, shape)
    seconds = []
    for _ in range(WARM_UP + args.steps):
        begun = time.perf_counter()
        rounded = torch.autocast("cpu", dtype=torch.bfloat16) if args.mode.startswith("bf16") else contextlib.nullcontext()
        with rounded:
            loss = forward(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    timed = seconds[WARM_UP:]
    print(
        json.dumps(
            {
                "peer": "torch",
                "mode": args.mode,
                "seconds": timed,
                "seconds_median": statistics.median(timed),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "import_rss_bytes": IMPORTED,
                "loss": loss.item(),
                "parameters": sum(p.numel() for p in model.parameters()),
                "threads": torch.get_num_threads(),
                "version": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
