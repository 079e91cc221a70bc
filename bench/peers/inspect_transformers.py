"""The metrics of `evenkeel inspect` with transformers and forward hooks, on the CPU in float32: its peer.

Runs the validation blocks of a folder of token shards through a GPT-2 checkpoint of Hugging Face's, some 4096 tokens at
a time, and measures the sites that `inspect` measures, with the same choice of metrics (docs/metrics.md, "Over how many
tokens"). Attention's matrices are made for the first batch only; the others run PyTorch's fused attention. Prints one
JSON line with the report's keys, and seconds: `seconds_measuring` is all but imports and loading, of which
`seconds_branches` went into attn.branch and mlp.branch, the same tensors as attn.out and mlp.out here. `--self-check`
compares with NumPy on a small model instead.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import time

import numpy as np
import torch
import transformers
from transformers import AttentionInterface, GPT2LMHeadModel

from site_metrics import (
    Scratch,
    SiteSums,
    activation_errors,
    lower_median,
    ratio,
    weight_errors,
    weight_figures,
)

BATCH_TOKENS = 4096
GRAM_TOKENS = 4096
HEADER_BYTES = 1024
MEASURED = "measured"  # our name for attention that is measured


def peak_memory():
    """VmHWM, which unlike the resource usage starts anew with the program."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", text)[1]) * 1024


IMPORTED = peak_memory()


class Clock:
    """Seconds by what they went into."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def on(self, account):
        begun = time.perf_counter()
        yield
        self.seconds[account] = self.seconds.get(account, 0.0) + time.perf_counter() - begun


class Massive:
    """The k entries of largest |x| over all sites, found through the tokens that hold the largest."""

    def __init__(self, k):
        self.k, self.found = k, []

    def add(self, site, first_sequence, x_btd, peaks_n):
        floor = abs(self.found[-1]["value"]) if len(self.found) == self.k else 0.0
        if self.k == 0 or float(peaks_n.max()) <= floor:
            return
        _, t, d = x_btd.shape
        rows = peaks_n.topk(min(self.k, len(peaks_n))).indices
        entries = x_btd.reshape(-1, d)[rows].flatten()
        sizes, places = entries.abs().topk(min(self.k, len(entries)))
        median = lower_median(x_btd.abs())
        for size, place in zip(sizes.tolist(), places.tolist()):
            if size <= floor:
                break
            row = int(rows[place // d])
            self.found.append(
                {
                    "site": site,
                    "sequence": first_sequence + row // t,
                    "position": row % t,
                    "channel": place % d,
                    "value": float(entries[place]),
                    "ratio_to_median": ratio(size, median),
                }
            )
        self.found.sort(key=lambda entry: -abs(entry["value"]))
        del self.found[self.k :]


class Measurement:
    """All that is gathered in the forward passes."""

    def __init__(self, medians, int8, top_k):
        self.clock, self.scratch = Clock(), Scratch(medians)
        self.sites, self.massive, self.heads, self.int8 = {}, Massive(top_k), [], []
        self.rounding = int8

    def visit(self, site, x_btd, account="sites"):
        with self.clock.on(account):
            if site not in self.sites:
                stream = re.fullmatch(r"embed|blocks\.\d+\.resid", site)
                self.sites[site] = SiteSums(x_btd.shape[-1], GRAM_TOKENS if stream else 0)
            sums = self.sites[site]
            first = sums.sequences
            peaks = sums.add(x_btd, self.scratch)
            self.massive.add(site, first, x_btd, peaks)
        if sums.gram_left:
            with self.clock.on("gram"):
                sums.add_gram(x_btd)
        if self.rounding and site != "logits":
            with self.clock.on("int8"):
                errors = activation_errors(x_btd, self.scratch)
                self.int8.append({"site": site, "layer": layer_of(site), "kind": "activation", **errors})

    def attend(self, module, query, key, value, attention_mask, scaling, **_):
        """Causal attention in the composed form, a sequence at a time, with the figures of each head."""
        _, heads, t, _ = query.shape
        unseen = torch.ones(t, t, dtype=torch.bool).triu_(1)
        figures, contexts = torch.zeros(heads, 3, dtype=torch.float64), []
        figures[:, 1] = -torch.inf
        for q_htd, k_htd, v_htd in zip(query, key, value):
            scores = (q_htd @ k_htd.transpose(1, 2)).mul_(scaling).masked_fill_(unseen, -torch.inf)
            peaks = scores.amax(2)
            probs = scores.softmax(2)
            contexts.append((probs @ v_htd).transpose(0, 1))
            with self.clock.on("attention"):
                logs = probs.clamp_min(torch.finfo(probs.dtype).tiny).log_()
                figures[:, 0] -= logs.mul_(probs).sum(2).mean(1)
                figures[:, 1] = torch.maximum(figures[:, 1], peaks.amax(1))
                figures[:, 2] += probs[:, :, 0].mean(1)
        figures[:, [0, 2]] /= len(query)
        self.heads += [
            {"layer": module.layer_idx, "head": head, "entropy": e, "max_logit": peak, "mass_first": mass}
            for head, (e, peak, mass) in enumerate(figures.tolist())
        ]
        return torch.stack(contexts), None


def layer_of(site):
    inside = re.match(r"blocks\.(\d+)\.", site)
    return int(inside[1]) if inside else None


def hook(model, seen):
    """Hooks that give every site to `seen`."""

    def entering(module, site):
        module.register_forward_pre_hook(lambda _, given: seen.visit(site, given[0]))

    def leaving(module, site, **account):
        module.register_forward_hook(lambda _, given, made: seen.visit(site, made, **account))

    def projections(at):
        def visit(_, given, made):
            for part, x_btd in zip("qkv", made.chunk(3, -1)):
                seen.visit(f"{at}.attn.{part}", x_btd)

        return visit

    body = model.transformer
    leaving(body.drop, "embed")
    for layer, block in enumerate(body.h):
        at = f"blocks.{layer}"
        leaving(block.ln_1, f"{at}.attn.in")
        block.attn.c_attn.register_forward_hook(projections(at))
        entering(block.attn.c_proj, f"{at}.attn.context")
        leaving(block.attn.c_proj, f"{at}.attn.out")
        leaving(block.attn.resid_dropout, f"{at}.attn.branch", account="branches")
        entering(block.ln_2, f"{at}.resid_mid")
        leaving(block.ln_2, f"{at}.mlp.in")
        entering(block.mlp.c_proj, f"{at}.mlp.hidden")
        leaving(block.mlp.c_proj, f"{at}.mlp.out")
        leaving(block.mlp.dropout, f"{at}.mlp.branch", account="branches")
        leaving(block, f"{at}.resid")
    leaving(body.ln_f, "final_norm")
    leaving(model.lm_head, "logits")


def matrices(model):
    """Every matrix as [d_out, d_in] under the name that evenkeel gives it; a tied head is none of its own."""
    body = model.transformer
    yield "embed.token.weight", body.wte.weight
    yield "embed.position.weight", body.wpe.weight
    for layer, block in enumerate(body.h):
        for part, weight in zip("qkv", block.attn.c_attn.weight.chunk(3, 1)):
            yield f"blocks.{layer}.attn.{part}.weight", weight.t()
        yield f"blocks.{layer}.attn.out.weight", block.attn.c_proj.weight.t()
        yield f"blocks.{layer}.mlp.up.weight", block.mlp.c_fc.weight.t()
        yield f"blocks.{layer}.mlp.down.weight", block.mlp.c_proj.weight.t()
    if model.lm_head.weight is not body.wte.weight:
        yield "head.weight", model.lm_head.weight


def read_blocks(folder, context, tokens):
    """The first blocks of `context` ids of the validation shards, at most `tokens`: [blocks, context]."""
    shards = sorted(pathlib.Path(folder).glob("val_*.bin"))
    ids = np.concatenate([np.fromfile(shard, "<u2", offset=HEADER_BYTES) for shard in shards]).astype(np.int64)
    # The last id of a text is nobody's input, since nothing follows it.
    blocks = min((len(ids) - 1) // context, max(tokens // context, 1))
    return torch.from_numpy(ids[: blocks * context].reshape(blocks, context))


@torch.inference_mode()
def inspect(model, ids_st, seen):
    """Runs all sequences and returns the report."""
    begun = time.perf_counter()
    AttentionInterface.register(MEASURED, seen.attend)
    model.set_attn_implementation(MEASURED)
    hook(model, seen)
    batches = ids_st.split(max(BATCH_TOKENS // ids_st.shape[1], 1))
    for batch in batches:
        model(batch, use_cache=False)
        model.set_attn_implementation("sdpa")
        seen.rounding = False
    seconds_batches = time.perf_counter() - begun
    with seen.clock.on("weights"):
        weights = [{"name": name, "shape": list(w.shape), **weight_figures(w)} for name, w in matrices(model)]
    if seen.int8:
        with seen.clock.on("int8 weights"):
            head = "head.weight"
            seen.int8 += [
                {"site": name, "layer": layer_of(name), "kind": "weight", **weight_errors(w, name.startswith("embed."))}
                for name, w in matrices(model)
                if name != head
            ]
    sites = [{"site": site, "layer": layer_of(site), **sums.metrics()} for site, sums in seen.sites.items()]
    inside = sum(seen.clock.seconds.get(part, 0.0) for part in ["sites", "branches", "gram", "attention", "int8"])
    return {
        "tokens": ids_st.numel(),
        "gram_tokens": seen.sites["embed"].gram_tokens,
        "attention_tokens": batches[0].numel(),
        "sites": sites,
        "massive": seen.massive.found,
        "attention": seen.heads,
        "weights": weights,
        "int8": seen.int8,
        "seconds_measuring": time.perf_counter() - begun,
        "seconds_branches": seen.clock.seconds["branches"],
        "seconds_by_part": {"forward": seconds_batches - inside, **seen.clock.seconds},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder with config.json and model.safetensors")
    parser.add_argument("--data", help="folder with val_*.bin in llm.c's format, uint16")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--medians", choices=["numpy", "torch"], default="numpy", help="numpy is faster by far")
    parser.add_argument("--int8", action="store_true", help="with the errors of 8-bit rounding of the first batch")
    parser.add_argument("--self-check", action="store_true", help="compare with NumPy on a small model, and exit")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.self_check:
        from inspect_self_check import check

        raise SystemExit(check())
    if not (args.model and args.data):
        parser.error("a model and --data are needed")
    begun = time.perf_counter()
    model = GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.float32).eval()
    loaded = time.perf_counter()
    ids_st = read_blocks(args.data, model.config.n_positions, args.tokens)
    report = inspect(model, ids_st, Measurement(args.medians, args.int8, args.top_k))
    report |= {
        "peer": "transformers",
        "seconds_loading": loaded - begun,
        "peak_memory_bytes": peak_memory(),
        "import_memory_bytes": IMPORTED,
        "medians": args.medians,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
