"""An optimiser's step in PyTorch on the CPU, timed by itself in float32: the peer of the optimiser's part of a step.

The parameters are those of `torch_step.Gpt`, with q, k and v as matrices of their own, which is what evenkeel has: one
joint matrix would give SOAP a factor three times as long, and another amount of work (`--joint-qkv` measures that).
Gradients are drawn anew before each step, outside the clock. SOAP is that of the package `pytorch_optimizer`: its first
call takes the bases and belongs to the warm-up, and it refreshes them where its step less one is a multiple of ten, so
the mean over a multiple of ten steps counts. Prints one JSON line.
"""

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import time

import pytorch_optimizer
import torch
from torch_step import Gpt

IMPORTED = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

REFRESH = 10
MAX_PRECONDITION_DIM = 2048


def parameters(model, joint_qkv):
    """Leaf tensors of the model's shapes; names and values do not matter here."""
    for name, p in model.named_parameters():
        whole = joint_qkv or ".qkv." not in name
        for part in [p] if whole else p.chunk(3):
            yield torch.nn.Parameter(part.detach().clone())


def build(name, leaves):
    if name == "adamw":
        return torch.optim.AdamW(leaves, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.1, fused=True)
    return pytorch_optimizer.SOAP(
        leaves,
        lr=3e-3,
        betas=(0.95, 0.95),
        weight_decay=0.1,
        precondition_frequency=REFRESH,
        max_precondition_dim=MAX_PRECONDITION_DIM,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["depth", "width", "heads", "vocab", "context", "threads"]:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--optimizer", choices=["soap", "adamw"], default="soap")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed [default: 2]")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, a multiple of 10 for SOAP [default: 20]")
    parser.add_argument("--joint-qkv", action="store_true", help="one matrix for q, k and v")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("at least one step, and no fewer than no steps of warm-up")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    leaves = list(parameters(Gpt(args.depth, args.width, args.heads, args.vocab, args.context), args.joint_qkv))
    optimizer = build(args.optimizer, leaves)
    for p in leaves:
        p.grad = torch.empty_like(p)
    seconds = []
    for _ in range(args.warmup + args.steps):
        for p in leaves:
            p.grad.normal_()
        begun = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    timed = seconds[args.warmup :]
    # Counted from 0, call i ends with a refresh where i is a multiple of ten; call 0 takes the first bases instead.
    refreshes = sum(i > 0 and i % REFRESH == 0 for i in range(args.warmup, args.warmup + args.steps))
    print(
        json.dumps(
            {
                "peer": "torch",
                "optimizer": args.optimizer,
                "precision": "f32",
                "seconds": timed,
                "seconds_mean": statistics.mean(timed),
                "seconds_median": statistics.median(timed),
                "seconds_warmup": seconds[: args.warmup],
                "refreshes": refreshes if args.optimizer == "soap" else 0,
                "joint_qkv": args.joint_qkv,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "import_rss_bytes": IMPORTED,
                "finite": all(bool(p.isfinite().all()) for p in leaves),
                "parameters": sum(p.numel() for p in leaves),
                "threads": torch.get_num_threads(),
                "versions": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "pytorch_optimizer": importlib.metadata.version("pytorch_optimizer"),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
