"""Golden file: forward pass, gradients and ten training steps of four small transformers, in PyTorch.

Writes pre_ln_steps, pre_rms_steps, op_steps and op_paper_steps (.safetensors).

The model is a causal decoder. With x the residual stream [B, T, D] and every linear map y = x W^T + b:

    x = E_token[t] + E_position              (op: then LayerNorm, `embed.norm`)
    per block:  x = x + beta_a * attention(N(x))
                x = x + beta_m * mlp(N(x))
    logits = head(N_final(x))

    attention: q, k, v = linear(x), split into heads of d_head channels (head h holds channels
               h*d_head .. (h+1)*d_head); with QK-norm, q and k are each divided by
               (sqrt(mean over d_head of x^2) + 1e-6) and multiplied by one gain vector for all heads;
               scores = q k^T / sqrt(d_head); entries above the diagonal masked; softmax; times v;
               heads merged; out projection
    mlp:       down(relu(up(x)))

    LayerNorm: (x - mean) / sqrt(var + 1e-5) * gain + bias, var biased
    RMSNorm:   x / sqrt(mean x^2 + 1e-5) * gain

Variants (depth 2, width 24, 3 heads, 37 tokens, context 12, MLP 96, head untied and without bias):

    pre_ln     LayerNorm before each branch and at the end; biases on q, k, v, out, up, down; beta = 1
    pre_rms    the same with RMSNorm
    op         LayerNorm on the embedding, none in the blocks, final LayerNorm; QK-norm; biases on q and k
               only; beta = 1/sqrt(depth), fixed
    op_paper   LayerNorm before attention in block 0 only (the skip takes the stream as it is); final
               LayerNorm; QK-norm; biases on q and k only; beta a trained scalar near 0.2 per branch

Training: loss = mean cross-entropy over all B*T targets; gradients scaled by min(1, 1/(norm + 1e-6)) with
the global L2 norm; AdamW, lr 3e-3, betas 0.9 and 0.999, eps 1e-8, decoupled decay 0.1 on tensors of two or
more dimensions. No parameter starts at a symmetric point (gains off 1, biases off 0), and batches come from a noisy
next-token rule so that tokens repeat, some never occur, and there is something to learn.

Everything is computed in float32; a second run in float64 from the same parameters gives `loss_f64` and the
printed deviations. `param_final_dev.NAME` [1] float64 is max |float32 - float64| of each final parameter:
a test's tolerance for it must not be smaller. It matters for `attn.k.bias` without QK-norm: softmax ignores
what a key bias adds, so its gradient is exactly zero in real numbers and rounding noise in float32, which
AdamW blows up to the size of a step. Do not compare the gradient or final value of that one tightly.

Keys: param.NAME, batch.0 .. batch.9 (int64 [3, 13]; inputs [:, :-1], targets [:, 1:]), loss, loss_f64
(float64 [10]), grad_norm (float64 [10], before clipping), site.NAME (float32 [3, 12, channels], step 0),
grad.NAME (step 0, before clipping), param_final.NAME, param_final_dev.NAME.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from common import out_directory, write

DEPTH, WIDTH, HEADS, VOCAB, CONTEXT, HIDDEN, BATCH = 2, 24, 3, 37, 12, 96, 3
D_HEAD = WIDTH // HEADS
STEPS, LR, BETAS, ADAM_EPS, DECAY, CLIP = 10, 3e-3, (0.9, 0.999), 1e-8, 0.1, 1.0
NORM_EPS, QK_EPS = 1e-5, 1e-6


@dataclass(frozen=True)
class Variant:
    """One architecture: which norms, biases and residual gains it has."""

    name: str
    norm: str  # "layer" or "rms", wherever the variant has a norm
    embed_norm: bool
    attn_norm_blocks: tuple  # blocks with a norm before attention
    mlp_norm_blocks: tuple
    biased: tuple  # linear maps with a bias
    qk_norm: bool
    beta: float
    beta_trained: bool
    seed: int


ALL_LINEAR = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
VARIANTS = {
    v.name: v
    for v in (
        Variant("pre_ln", "layer", False, (0, 1), (0, 1), ALL_LINEAR, False, 1.0, False, 101),
        Variant("pre_rms", "rms", False, (0, 1), (0, 1), ALL_LINEAR, False, 1.0, False, 102),
        Variant("op", "layer", True, (), (), ("attn.q", "attn.k"), True, DEPTH**-0.5, False, 103),
        Variant("op_paper", "layer", False, (0,), (), ("attn.q", "attn.k"), True, 0.2, True, 104),
    )
}


def initial_parameters(variant, generator):
    """Name -> float32 tensor, drawn in a fixed order."""

    def normal(*shape, std):
        # drawn in float64, so that the stream does not depend on vectorised float32 sampling
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * std).float()

    params = {}

    def add_norm(name, width, bias):
        params[f"{name}.gain"] = 1 + normal(width, std=0.1)
        if bias:
            params[f"{name}.bias"] = normal(width, std=0.1)

    def add_linear(name, fan_in, fan_out, bias):
        params[f"{name}.weight"] = normal(fan_out, fan_in, std=fan_in**-0.5)
        if bias:
            params[f"{name}.bias"] = normal(fan_out, std=0.1)

    norm_bias = variant.norm == "layer"
    params["embed.token.weight"] = normal(VOCAB, WIDTH, std=WIDTH**-0.5)
    params["embed.position.weight"] = normal(CONTEXT, WIDTH, std=WIDTH**-0.5)
    if variant.embed_norm:
        add_norm("embed.norm", WIDTH, norm_bias)
    for i in range(DEPTH):
        block = f"blocks.{i}"
        if i in variant.attn_norm_blocks:
            add_norm(f"{block}.attn.norm", WIDTH, norm_bias)
        for linear in ("attn.q", "attn.k", "attn.v", "attn.out"):
            add_linear(f"{block}.{linear}", WIDTH, WIDTH, linear in variant.biased)
        if variant.qk_norm:
            add_norm(f"{block}.attn.q_norm", D_HEAD, False)
            add_norm(f"{block}.attn.k_norm", D_HEAD, False)
        if i in variant.mlp_norm_blocks:
            add_norm(f"{block}.mlp.norm", WIDTH, norm_bias)
        add_linear(f"{block}.mlp.up", WIDTH, HIDDEN, "mlp.up" in variant.biased)
        add_linear(f"{block}.mlp.down", HIDDEN, WIDTH, "mlp.down" in variant.biased)
        if variant.beta_trained:
            params[f"{block}.attn.beta"] = variant.beta * (1 + normal(1, std=0.1))
            params[f"{block}.mlp.beta"] = variant.beta * (1 + normal(1, std=0.1))
    add_norm("final_norm", WIDTH, norm_bias)
    params["head.weight"] = normal(VOCAB, WIDTH, std=WIDTH**-0.5)
    return params


def token_sequences(generator, sequences, length):
    """int64 [sequences, length]: t' = (3t + 5 + noise in 0..3) mod VOCAB."""
    tokens = torch.randint(0, VOCAB, (sequences, 1), generator=generator)
    noise = torch.randint(0, 4, (sequences, length - 1), generator=generator)
    for t in range(length - 1):
        following = (3 * tokens[:, -1:] + 5 + noise[:, t : t + 1]) % VOCAB
        tokens = torch.cat([tokens, following], dim=1)
    return tokens


def norm(variant, params, name, x):
    """LayerNorm or RMSNorm over the last dimension, with the parameters called `name`."""
    gain = params[f"{name}.gain"]
    if variant.norm == "rms":
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + NORM_EPS) * gain
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + NORM_EPS) * gain + params[f"{name}.bias"]


def qk_norm(gain, x):
    """RMSNorm over d_head, the epsilon outside the root."""
    return x / (torch.sqrt((x * x).mean(-1, keepdim=True)) + QK_EPS) * gain


def linear(params, name, x):
    y = x @ params[f"{name}.weight"].T
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def split_heads(x):
    """[B, T, D] -> [B, H, T, d_head]"""
    return x.unflatten(-1, (HEADS, D_HEAD)).transpose(1, 2)


def merge_heads(x):
    """[B, H, T, d_head] -> [B, T, D]"""
    return x.transpose(1, 2).flatten(2)


def forward(variant, params, tokens, at=lambda site, x: x):
    """Logits [B, T, V] of `tokens` [B, T].

    Every named activation passes through `at(site, x)` and the model goes on with what that returns, so one
    forward pass serves to record sites and to quantise them. attn.scores and attn.probs are [B, H, T, T].
    """
    length = tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    x = params["embed.token.weight"][tokens] + params["embed.position.weight"][:length]
    if variant.embed_norm:
        x = norm(variant, params, "embed.norm", x)
    x = at("embed", x)
    for i in range(DEPTH):
        b = f"blocks.{i}"

        def beta(branch):
            trained = params.get(f"{b}.{branch}.beta")
            return variant.beta if trained is None else trained

        y = x
        if i in variant.attn_norm_blocks:
            y = norm(variant, params, f"{b}.attn.norm", x)
        y = at(f"{b}.attn.in", y)
        q = at(f"{b}.attn.q", linear(params, f"{b}.attn.q", y))
        k = at(f"{b}.attn.k", linear(params, f"{b}.attn.k", y))
        v = at(f"{b}.attn.v", linear(params, f"{b}.attn.v", y))
        q, k, v = split_heads(q), split_heads(k), split_heads(v)
        if variant.qk_norm:
            q = merge_heads(qk_norm(params[f"{b}.attn.q_norm.gain"], q))
            k = merge_heads(qk_norm(params[f"{b}.attn.k_norm.gain"], k))
            q = split_heads(at(f"{b}.attn.q_norm", q))
            k = split_heads(at(f"{b}.attn.k_norm", k))
        scores = at(f"{b}.attn.scores", q @ k.transpose(-1, -2) / math.sqrt(D_HEAD))
        probs = torch.softmax(scores.masked_fill(~causal, -math.inf), dim=-1)
        probs = at(f"{b}.attn.probs", probs)
        context = at(f"{b}.attn.context", merge_heads(probs @ v))
        out = at(f"{b}.attn.out", linear(params, f"{b}.attn.out", context))
        x = at(f"{b}.resid_mid", x + at(f"{b}.attn.branch", beta("attn") * out))

        y = x
        if i in variant.mlp_norm_blocks:
            y = norm(variant, params, f"{b}.mlp.norm", x)
        y = at(f"{b}.mlp.in", y)
        hidden = at(f"{b}.mlp.hidden", torch.relu(linear(params, f"{b}.mlp.up", y)))
        out = at(f"{b}.mlp.out", linear(params, f"{b}.mlp.down", hidden))
        x = at(f"{b}.resid", x + at(f"{b}.mlp.branch", beta("mlp") * out))
    x = at("final_norm", norm(variant, params, "final_norm", x))
    return at("logits", linear(params, "head", x))


def mean_loss(logits, targets):
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(variant, initial, batches, dtype):
    """Run the ten steps in `dtype`; returns sites and gradients of step 0, losses, norms, final parameters."""
    params = {n: p.to(dtype).clone().requires_grad_() for n, p in initial.items()}
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.ndim >= 2], "weight_decay": DECAY},
            {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=BETAS,
        eps=ADAM_EPS,
        foreach=False,
    )
    sites, grads, losses, norms = {}, {}, [], []

    def record(site, x):
        if x.ndim == 3:  # heads x T x T sites carry no channels
            sites[site] = x.detach().clone()
        return x

    for step, batch in enumerate(batches):
        optimiser.zero_grad()
        at = (record,) if step == 0 else ()
        loss = mean_loss(forward(variant, params, batch[:, :-1], *at), batch[:, 1:])
        loss.backward()
        if step == 0:
            grads = {n: p.grad.clone() for n, p in params.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(list(params.values()), CLIP, foreach=False).item())
        optimiser.step()
        losses.append(loss.item())
    final = {n: p.detach() for n, p in params.items()}
    return {"site": sites, "grad": grads, "param_final": final}, np.array(losses), np.array(norms)


def setup():
    """One thread and deterministic kernels, so that sums are taken in one order."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def main():
    out = out_directory(__doc__)
    setup()
    for variant in VARIANTS.values():
        generator = torch.Generator().manual_seed(variant.seed)
        initial = initial_parameters(variant, generator)
        batches = [token_sequences(generator, BATCH, CONTEXT + 1) for _ in range(STEPS)]
        single, loss, norms = train(variant, initial, batches, torch.float32)
        double, loss_f64, _ = train(variant, initial, batches, torch.float64)

        tensors = {"loss": loss, "loss_f64": loss_f64, "grad_norm": norms}
        tensors |= {f"param.{n}": p.numpy() for n, p in initial.items()}
        tensors |= {f"batch.{s}": b.numpy() for s, b in enumerate(batches)}
        print(f"== {variant.name}: loss {loss[0]:.4f} .. {loss[-1]:.4f}, gradient norms {norms.round(2)}")
        print(f"   f32 vs f64: loss {np.abs(loss - loss_f64).max():.1e}")
        for kind, values in single.items():
            deviation = {n: (x.double() - double[kind][n]).abs().max().item() for n, x in values.items()}
            tensors |= {f"{kind}.{n}": x.numpy() for n, x in values.items()}
            if kind == "param_final":
                tensors |= {f"param_final_dev.{n}": np.array([d]) for n, d in deviation.items()}
            worst = sorted(deviation, key=deviation.get, reverse=True)[:4]
            print(f"   f32 vs f64: {kind} " + ", ".join(f"{n} {deviation[n]:.1e}" for n in worst))
        about = asdict(variant) | {
            "depth": DEPTH, "width": WIDTH, "heads": HEADS, "vocab": VOCAB, "context": CONTEXT,
            "hidden": HIDDEN, "lr": LR, "betas": BETAS, "eps": ADAM_EPS, "weight_decay": DECAY,
            "clip": CLIP, "norm_eps": NORM_EPS, "qk_eps": QK_EPS,
        }  # fmt: skip
        write(out / f"{variant.name}_steps.safetensors", tensors, about)


if __name__ == "__main__":
    main()
