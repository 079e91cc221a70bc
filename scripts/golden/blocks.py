"""Golden files: one forward and backward pass of many small transformer blocks, in PyTorch.

Writes blocks_GROUP.safetensors, one file per group of variants, and blocks.json: VARIANT -> the [model] keys of
its configuration (preset `pre_ln` or `op`, the sizes, and whatever differs from the preset).

The model is a causal decoder. x is the residual stream [B, T, d], every linear map y = x W^T + b has its bias
only where `biases` lists it, H heads of d_head = d/H channels, K key-value heads (`kv_heads`, 0 means H):

    x = E_token[id] (+ E_position[t], learned positions);  embed_proj: x = x E_proj^T;  x = N_embed(x)     `embed`
    the blocks
    x = N_final(x)  `final_norm`;  embed_proj: x = x H_proj^T;  logits = x W_head^T, or x E_token^T (tied) `logits`

Norms (eps = norm_eps, var biased):

    layer  (x - mean) / sqrt(var + eps) * gain + bias            rms    x / sqrt(mean x^2 + eps) * gain
    srms   x / sqrt(mean x^2 + eps)                              ss     the same times one scalar gain
    dyt    tanh(alpha x) * gain + bias, alpha a scalar           none   x

Blocks, with a(.) attention, m(.) the MLP, join(x, y) = s x + beta * y, s and beta those of the branch:

    pre           x = join(x, a(N_a(x)))       `resid_mid`    x = join(x, m(N_m(x)))       `resid`
    post          x = N_a(join(x, a(x)))       `resid_mid`    x = N_m(join(x, m(x)))       `resid`
    post_stream   x = N_a(x); x = join(x, a(x)) `resid_mid`   x = N_m(x); x = join(x, m(x)) `resid`
    parallel      h = N_a(x), onto = x (pre) or h (post_stream);
                  x = (s_m onto + beta_a a(h)) + beta_m m(h);   no `resid_mid`, no N_m
    parallel_two_norms   the same (pre) with m(N_m(x))
    first_norm    with norm none: block 0 has this norm before attention, as in pre

    beta is a number, a trained scalar [1] (beta_trainable) or a trained vector [d] (beta_per_channel). A branch
    whose s is 0 has none: x = y.

Attention of h `attn.in`: q, k, v = linear(h) `attn.q`, `attn.k`, `attn.v`; query head i uses key-value head
i // (H/K); QK-norm per head over d_head, eps = qk_norm_eps, parameters shared by the heads: rms, x / (sqrt(mean
x^2) + eps) * gain, or layer, as above; `attn.q_norm`, `attn.k_norm`. Rope turns the first r = rope_fraction *
d_head channels of each head of q and k, pair (c, c + r/2) by the angle t * rope_base^(-2c/r): (a, b) -> (a cos -
b sin, b cos + a sin). scores = q k^T / sqrt(d_head), with soft-cap C: C tanh(scores / C); `attn.scores`, before
the mask. Probabilities `attn.probs` over j <= i, zero elsewhere:

    standard  softmax      clipped(g, e)  clip((e - g) softmax + g, 0, 1); plain: g = -12 / context, e = 1
    null_slot  exp(s_ij) / (1 + sum_j exp(s_ij))

context = P v; shaped: context = a_h v_i + b_h (P v)_i - c_h (C v)_i with C_ij = 1/(i + 1) for j <= i (0-based).
`attn.context`, heads merged. Gate: the context of a head (elementwise: each channel) times sigma(g), `attn.gate`,
with h_h the slice of h with head h's channels:

    per_head  bias_h                per_token  w_h . h_h + b_h         mlp  w2_h . relu(W1_h h_h + b1_h) + b_h
    all_features  W h + b, one per head        elementwise  W h + b, one per channel

out = linear(gated context) `attn.out`; beta * out `attn.branch`. value_init identity: v = skip * h + gain *
linear(h), and out = skip * c + gain * linear(c) with c what the out projection is given.

MLP of h: h = alpha * h (alpha not 1, or trained) `mlp.in`; hidden = act(up(h)), gated: act(gate(h)) * up(h),
`mlp.hidden`; down(hidden) `mlp.out`; beta times it `mlp.branch`. Activations: relu, leaky_relu(s), gelu (erf),
gelu_tanh, silu, squared_relu = relu(x)^2; swiglu, geglu (erf), reglu are the gated silu, gelu, relu. Width f =
mlp_hidden, else mlp_ratio * d, else, gated, 2/3 mlp_ratio d rounded up to a multiple of 8.

Readings, where the text this follows left a choice: `attn.context` is before the gate, and there is no site after
it; with value_init identity the skip of `out` takes the gated context; `final_norm` is a site even when the norm
is none (then it is the stream); first_norm has the parameters blocks.0.attn.norm; clipped softmax never gives
weight to j > i, whatever g; a trained vector beta sets both beta_per_channel and beta_trainable; "gate" in
`biases` means mlp.gate alone, attention gates always have a bias.

Parameters are drawn at random and none sits at a symmetric point (gains off 1, biases off 0, matrices that start
at 0 or orthogonal are random). They are rounded to float32; everything else is float64 from there. Seeds are
passed over until no argument of relu or clip lies within 1e-4 of its kink, so that a float32 run takes the same
branches. norm_eps and qk_norm_eps are large in some variants, so that their place in the formula shows. The
script prints how far its own float32 run is from the float64 one.

The last bias of the keys (`attn.k.bias`, with QK-norm `attn.k_norm.bias`) adds one number to all scores of a row.
Without rope, soft-cap and null slot the softmax ignores that: its gradient is zero, and what is stored is noise.

`op_official` is the authors' OP configuration at width 18: 18 blocks, beta 0.2, LayerNorm before attention in
block 0 only; weights N(0, 0.02^2). (At width 24 it would not fit the size limit.) It stores the sites embed,
resid, final_norm and logits, and no gradients.

Keys: VARIANT/param.NAME, VARIANT/ids (int64 [B, T]), VARIANT/targets, VARIANT/loss (float64 [1], mean
cross-entropy), VARIANT/site.NAME (float32), VARIANT/grad.NAME (of the loss). Sites are [B, T, C]; attn.scores and
attn.probs are [B, H, T, T]. T is the context, but for `clipped_short`, which is shorter.
"""

import json
import math
from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional as F

from common import out_directory, write

BATCH = 2
KINK_MARGIN = 1e-4
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


@dataclass(frozen=True)
class Model:
    """The [model] keys a variant can set; the defaults are the preset `pre_ln` at the usual size."""

    depth: int = 2
    width: int = 12
    heads: int = 2
    kv_heads: int = 0
    vocab: int = 19
    context: int = 7
    mlp_ratio: int = 4
    mlp_hidden: int = 0
    norm: str = "layer"
    norm_eps: float = 1e-5
    norm_position: str = "pre"
    branches: str = "sequential"
    first_norm: str = "none"
    embed_norm: str = "none"
    embed_proj: bool = False
    final_norm: str = "layer"
    beta: float | str = 1.0
    beta_trainable: bool = False
    beta_per_channel: bool = False
    attn_skip: float = 1.0
    mlp_skip: float = 1.0
    alpha: float = 1.0
    alpha_trainable: bool = False
    qk_norm: str = "none"
    qk_norm_eps: float = 1e-6
    logit_softcap: float = 0.0
    softmax: str = "standard"
    attention_matrix: str = "softmax"
    value_init: str = "random"
    gate: str = "none"
    activation: str = "relu"
    positions: str = "learned"
    rope_base: float = 10000.0
    rope_fraction: float = 1.0
    tie_head: bool = False
    biases: tuple = ("q", "k", "v", "out", "up", "down")

    @property
    def d_head(self):
        return self.width // self.heads

    @property
    def kv(self):
        return self.kv_heads or self.heads

    @property
    def hidden(self):
        if self.mlp_hidden:
            return self.mlp_hidden
        if self.activation in GATED:
            return -(-2 * self.mlp_ratio * self.width // (3 * 8)) * 8
        return self.mlp_ratio * self.width

    @property
    def rope_channels(self):
        r = round(self.rope_fraction * self.d_head)
        assert abs(r - self.rope_fraction * self.d_head) < 1e-9 and r % 2 == 0, "odd number of rope channels"
        return r

    @property
    def beta_number(self):
        return self.depth**-0.5 if self.beta == "inv_sqrt_depth" else self.beta

    @property
    def scales_mlp_input(self):
        return self.alpha != 1 or self.alpha_trainable

    def attention_norm(self, block):
        """The norm with the parameters blocks.BLOCK.attn.norm."""
        return self.first_norm if self.norm == "none" and block == 0 else self.norm

    def mlp_norm(self):
        return "none" if self.branches == "parallel" else self.norm

    def skip(self, branch):
        return self.attn_skip if branch == "attn" else self.mlp_skip


PRESETS = {
    "pre_ln": Model(),
    "op": Model(
        norm="none", embed_norm="layer", beta="inv_sqrt_depth", qk_norm="rms", biases=("q", "k")
    ),
}
SIZES = ("depth", "width", "heads", "vocab", "context")


@dataclass(frozen=True)
class Variant:
    """One model: a preset, the keys that differ from it, and the file it is stored in."""

    name: str
    group: str
    seed: int
    preset: str
    changes: dict
    length: int = 0  # of the sequences; 0: the context
    std: float = 0.0  # of the weights; 0: 1/sqrt(fan_in)

    @property
    def model(self):
        return replace(PRESETS[self.preset], **self.changes)

    @property
    def config(self):
        """What blocks.json holds."""
        keys = {"preset": self.preset} | {k: getattr(self.model, k) for k in SIZES} | self.changes
        return {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()}


def variants():
    """Yield every variant."""
    count = 0

    def made(group, name, preset="pre_ln", length=0, std=0.0, **changes):
        nonlocal count
        count += 1
        return Variant(name, group, 200 + count, preset, changes, length, std)

    # hidden width 20 but for the variants that test how it is computed: it keeps the files small
    f = {"mlp_hidden": 20}
    wide = {"width": 16, "heads": 4} | f  # four heads of four channels

    yield made("placement", "post", norm_position="post", final_norm="none")
    yield made("placement", "post_stream", norm_position="post_stream", final_norm="none", **f)
    yield made("placement", "parallel", branches="parallel", **f)
    yield made("placement", "parallel_two_norms", branches="parallel_two_norms", **f)
    yield made(
        "placement", "parallel_post_stream", branches="parallel", norm_position="post_stream", beta=0.4,
        mlp_skip=0.5, **f,
    )  # fmt: skip
    yield made("placement", "op_first_norm", "op", embed_norm="none", first_norm="layer", beta=0.2, **f)

    trained_vector = {"beta_per_channel": True, "beta_trainable": True}
    yield made("gains", "layerscale", beta=0.3, **trained_vector, **f)
    yield made(
        "gains", "op_trained", "op", beta_trainable=True, alpha=0.9, alpha_trainable=True, **f
    )
    yield made("gains", "op_alpha", "op", alpha=0.8, **f)
    skipless = dict(
        norm="rms", final_norm="rms", attn_skip=0.0, attention_matrix="shaped", value_init="identity",
        beta_trainable=True,
    )  # fmt: skip
    yield made("gains", "skipless", **skipless, **f)
    yield made("gains", "mlp_skip", mlp_skip=0.5, beta=0.3, **f)
    yield made("gains", "mlp_skipless", mlp_skip=0.0, attn_skip=0.7, beta=0.3, **f)

    for kind in ("rms", "ss", "dyt", "srms"):
        eps = {} if kind == "dyt" else {"norm_eps": 0.05}
        yield made("norms", kind, norm=kind, embed_norm=kind, final_norm=kind, **eps, **f)
    yield made("norms", "layer_eps", embed_norm="layer", norm_eps=0.05, **f)
    yield made("embedding", "embed_proj", embed_proj=True, **f)
    yield made("embedding", "embed_proj_tied", embed_proj=True, tie_head=True, **f)
    yield made("embedding", "tied_head", tie_head=True, **f)
    yield made("embedding", "no_positions", positions="none", **f)

    for gate in ("per_head", "per_token", "mlp", "all_features", "elementwise"):
        yield made("gates", f"gate_{gate}", gate=gate, **f)
    yield made("gates", "gate_mlp_wide", gate="mlp", width=16, **f)  # d_head 8: two hidden units
    yield made("heads", "gate_identity", gate="per_token", value_init="identity", **f)

    yield made("softmax", "clipped", softmax="clipped(-0.05, 1.03)", **f)
    yield made("softmax", "clipped_plain", softmax="clipped", **f)
    yield made("softmax", "clipped_short", softmax="clipped", length=5, **f)
    yield made("softmax", "null_slot", softmax="null_slot", **f)
    yield made("softmax", "softcap", logit_softcap=2.0, **f)
    yield made("heads", "qk_layer", qk_norm="layer", qk_norm_eps=0.05, **f)
    yield made("heads", "qk_rms", qk_norm="rms", qk_norm_eps=0.05, **f)

    yield made("heads", "multi_query", heads=4, kv_heads=1, **f)
    yield made("heads", "rope_grouped", positions="rope", kv_heads=2, **wide)
    yield made(
        "heads", "shaped_grouped", attention_matrix="shaped", heads=4, kv_heads=2, **f
    )

    yield made("rope", "qk_rms_rope", positions="rope", qk_norm="rms", **f)
    yield made("rope", "rope_partial", positions="rope", rope_fraction=2 / 3, rope_base=100.0, **f)
    yield made(
        "rope", "osp_like", norm="ss", embed_proj=True, final_norm="ss", positions="rope",
        activation="swiglu", biases=(),
    )  # fmt: skip
    yield made(
        "rope", "everything", positions="rope", rope_fraction=0.5, rope_base=100.0, kv_heads=2,
        qk_norm="layer", logit_softcap=2.0, softmax="null_slot", gate="elementwise", activation="swiglu",
        branches="parallel", beta=0.3, **trained_vector, **wide,
    )  # fmt: skip

    yield made("activations", "leaky_relu", activation="leaky_relu(0.1)")
    for activation in ("gelu", "gelu_tanh", "silu", "squared_relu"):
        yield made("activations", activation, activation=activation, **f)
    yield made("gated", "swiglu", activation="swiglu")
    yield made("gated", "geglu", activation="geglu", **f)
    yield made("gated", "reglu", activation="reglu", width=16)  # hidden width rounded up to 48
    yield made("gated", "some_biases", activation="swiglu", biases=("q", "gate", "down"), **f)

    yield made(
        "op_official", "op_official", "op", std=0.02, depth=18, width=18, heads=3, vocab=37, context=12,
        embed_norm="none", first_norm="layer", final_norm="layer", beta=0.2, beta_trainable=False,
        qk_norm="rms", activation="relu", positions="learned", biases=("q", "k"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- parameters


def parameter_list(m):
    """Name -> (shape, centre, fan_in); fan_in 0: a vector drawn around the centre."""
    listed = {}

    def vector(name, size, centre):
        listed[name] = ((size,), centre, 0)

    def matrix(name, *shape):
        listed[name] = (shape, 0.0, shape[-1])

    def add_norm(name, kind):
        if kind == "dyt":
            vector(f"{name}.alpha", 1, 0.5)
        if kind in ("layer", "rms", "dyt"):
            vector(f"{name}.gain", m.width, 1.0)
        if kind == "ss":
            vector(f"{name}.gain", 1, 1.0)
        if kind in ("layer", "dyt"):
            vector(f"{name}.bias", m.width, 0.0)

    def add_linear(name, fan_out, fan_in):
        matrix(f"{name}.weight", fan_out, fan_in)
        if name.split(".")[-1] in m.biases:
            vector(f"{name}.bias", fan_out, 0.0)

    def add_beta(block, branch):
        if m.skip(branch) != 0 and (m.beta_trainable or m.beta_per_channel):
            vector(f"{block}.{branch}.beta", m.width if m.beta_per_channel else 1, m.beta_number)

    d, heads, d_head, kv_width = m.width, m.heads, m.d_head, m.kv * m.d_head
    matrix("embed.token.weight", m.vocab, d)
    if m.positions == "learned":
        matrix("embed.position.weight", m.context, d)
    if m.embed_proj:
        matrix("embed.proj.weight", d, d)
        matrix("head.proj.weight", d, d)
    add_norm("embed.norm", m.embed_norm)
    for i in range(m.depth):
        b = f"blocks.{i}"
        add_norm(f"{b}.attn.norm", m.attention_norm(i))
        add_linear(f"{b}.attn.q", d, d)
        add_linear(f"{b}.attn.k", kv_width, d)
        add_linear(f"{b}.attn.v", kv_width, d)
        add_linear(f"{b}.attn.out", d, d)
        if m.qk_norm != "none":
            for side in ("q_norm", "k_norm"):
                vector(f"{b}.attn.{side}.gain", d_head, 1.0)
                if m.qk_norm == "layer":
                    vector(f"{b}.attn.{side}.bias", d_head, 0.0)
        if m.attention_matrix == "shaped":
            for part in ("identity", "attention", "centre"):
                vector(f"{b}.attn.shaped.{part}", heads, 1.0)
        if m.value_init == "identity":
            assert m.kv == heads
            for side in ("v", "out"):
                vector(f"{b}.attn.{side}.skip", 1, 1.0)
                vector(f"{b}.attn.{side}.gain", 1, 1.0)
        gate = f"{b}.attn.gate"
        if m.gate == "mlp":
            r = max(1, d_head // 4)
            matrix(f"{gate}.up.weight", heads, r, d_head)
            vector(f"{gate}.up.bias", heads * r, 0.0)
            matrix(f"{gate}.weight", heads, r)
        if m.gate == "per_token":
            matrix(f"{gate}.weight", heads, d_head)
        if m.gate in ("all_features", "elementwise"):
            matrix(f"{gate}.weight", heads if m.gate == "all_features" else d, d)
        if m.gate != "none":
            vector(f"{gate}.bias", d if m.gate == "elementwise" else heads, 0.0)
        add_beta(b, "attn")

        add_norm(f"{b}.mlp.norm", m.mlp_norm())
        if m.alpha_trainable:
            vector(f"{b}.mlp.alpha", 1, m.alpha)
        if m.activation in GATED:
            add_linear(f"{b}.mlp.gate", m.hidden, d)
        add_linear(f"{b}.mlp.up", m.hidden, d)
        add_linear(f"{b}.mlp.down", d, m.hidden)
        add_beta(b, "mlp")
    add_norm("final_norm", m.final_norm)
    if not m.tie_head:
        matrix("head.weight", m.vocab, d)
    return listed


def initial_parameters(variant, generator):
    """Name -> float64 tensor of float32 numbers, drawn in a fixed order."""
    params = {}
    for name, (shape, centre, fan_in) in parameter_list(variant.model).items():
        noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if not fan_in:
            # the official model's stream is small: its biases are as small as what they are added to
            spread = 0.2 if not variant.std else 0.002 if name.endswith((".q.bias", ".k.bias")) else 0.1
            value = centre + noise * spread
        elif variant.std:
            value = noise * variant.std
        elif name in ("embed.token.weight", "embed.position.weight"):
            value = noise * 0.7
        else:
            # queries and keys larger: the attention is then far from uniform
            value = noise * fan_in**-0.5 * (1.6 if name.endswith(("attn.q.weight", "attn.k.weight")) else 1.0)
        params[name] = value.float().double()
    return params


# ---------------------------------------------------------------------------------------------------- forward


def apply_norm(m, kind, params, name, x):
    """The norm `kind` over the last dimension, with the parameters called `name`."""
    if kind == "none":
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    if kind == "dyt":
        x = torch.tanh(params[f"{name}.alpha"] * x)
    else:
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + m.norm_eps)
    if kind != "srms":
        x = x * params[f"{name}.gain"]
    if kind in ("layer", "dyt"):
        x = x + params[f"{name}.bias"]
    return x


def linear(params, name, x):
    y = x @ params[f"{name}.weight"].T
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def split_heads(x, d_head):
    """[B, T, heads * d_head] -> [B, heads, T, d_head]"""
    return x.unflatten(-1, (-1, d_head)).transpose(1, 2)


def merge_heads(x):
    """[B, heads, T, d_head] -> [B, T, heads * d_head]"""
    return x.transpose(1, 2).flatten(2)


def qk_norm(m, params, name, x):
    """QK-norm of [B, heads, T, d_head]."""
    gain = params[f"{name}.gain"]
    if m.qk_norm == "rms":
        return x / (torch.sqrt((x * x).mean(-1, keepdim=True)) + m.qk_norm_eps) * gain
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + m.qk_norm_eps) * gain + params[f"{name}.bias"]


def rotate(x, r, base):
    """Rope on the first `r` channels of [B, heads, T, d_head]."""
    c = torch.arange(r // 2, dtype=torch.float64)
    t = torch.arange(x.shape[2], dtype=torch.float64)
    angle = t[:, None] * base ** (-2 * c / r)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def clip_bounds(m):
    """(gamma, eta) of a clipped softmax."""
    if m.softmax == "clipped":
        return -12 / m.context, 1.0
    gamma, eta = m.softmax.removeprefix("clipped(").removesuffix(")").split(",")
    return float(gamma), float(eta)


def probabilities(m, scores, at, block):
    """Attention probabilities of the scores [B, H, T, T]; zero above the diagonal."""
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if m.softmax == "null_slot":
        weights = torch.exp(scores).masked_fill(~causal, 0.0)
        return weights / (1 + weights.sum(-1, keepdim=True))
    probs = torch.softmax(scores.masked_fill(~causal, -math.inf), dim=-1)
    if m.softmax == "standard":
        return probs
    gamma, eta = clip_bounds(m)
    stretched = (eta - gamma) * probs + gamma
    at(f"{block}.kink.clip", torch.stack([stretched, 1 - stretched])[..., 1:, :])  # row 0 has one choice
    return stretched.clamp(0.0, 1.0).masked_fill(~causal, 0.0)


def gate_values(m, params, block, h, at):
    """sigma(g): [B, T, H], or [B, T, d] for the elementwise gate."""
    bias = params[f"{block}.attn.gate.bias"]
    weight = params.get(f"{block}.attn.gate.weight")
    slices = h.unflatten(-1, (m.heads, m.d_head))  # [B, T, H, d_head]
    if m.gate == "per_head":
        g = bias.expand(*h.shape[:2], m.heads)
    elif m.gate == "per_token":
        g = (slices * weight).sum(-1) + bias
    elif m.gate == "mlp":
        up = torch.einsum("bthc,hrc->bthr", slices, params[f"{block}.attn.gate.up.weight"])
        up = up + params[f"{block}.attn.gate.up.bias"].unflatten(0, weight.shape)
        at(f"{block}.kink.gate", up)
        g = (torch.relu(up) * weight).sum(-1) + bias
    else:  # all_features, elementwise
        g = h @ weight.T + bias
    return torch.sigmoid(g)


def identity_linear(m, params, name, x):
    """A linear map, with value_init identity added to a multiple of its input."""
    y = linear(params, name, x)
    if m.value_init == "identity":
        y = params[f"{name}.skip"] * x + params[f"{name}.gain"] * y
    return y


def attention(m, params, block, h, at):
    """The attention branch before its beta, of its input `h`."""
    a = f"{block}.attn"
    h = at(f"{a}.in", h)
    q = split_heads(at(f"{a}.q", linear(params, f"{a}.q", h)), m.d_head)
    k = split_heads(at(f"{a}.k", linear(params, f"{a}.k", h)), m.d_head)
    v = split_heads(at(f"{a}.v", identity_linear(m, params, f"{a}.v", h)), m.d_head)
    if m.qk_norm != "none":
        q = at(f"{a}.q_norm", merge_heads(qk_norm(m, params, f"{a}.q_norm", q)))
        k = at(f"{a}.k_norm", merge_heads(qk_norm(m, params, f"{a}.k_norm", k)))
        q, k = split_heads(q, m.d_head), split_heads(k, m.d_head)
    if m.positions == "rope":
        q = rotate(q, m.rope_channels, m.rope_base)
        k = rotate(k, m.rope_channels, m.rope_base)
    used = torch.arange(m.heads) // (m.heads // m.kv)  # key-value head of each query head
    k, v = k[:, used], v[:, used]

    scores = q @ k.transpose(-1, -2) / math.sqrt(m.d_head)
    if m.logit_softcap > 0:
        scores = m.logit_softcap * torch.tanh(scores / m.logit_softcap)
    scores = at(f"{a}.scores", scores)
    probs = at(f"{a}.probs", probabilities(m, scores, at, block))
    context = probs @ v
    if m.attention_matrix == "shaped":
        count = torch.arange(1, h.shape[1] + 1, dtype=v.dtype)
        centre = v.cumsum(2) / count[:, None]  # running mean of the values
        per_head = {p: params[f"{a}.shaped.{p}"][:, None, None] for p in ("identity", "attention", "centre")}
        context = per_head["identity"] * v + per_head["attention"] * context - per_head["centre"] * centre
    context = at(f"{a}.context", merge_heads(context))
    if m.gate != "none":
        gate = at(f"{a}.gate", gate_values(m, params, block, h, at))
        if m.gate != "elementwise":
            gate = gate.repeat_interleave(m.d_head, dim=-1)
        context = gate * context
    return at(f"{a}.out", identity_linear(m, params, f"{a}.out", context))


def activate(kind, x):
    if kind.startswith("leaky_relu("):
        slope = float(kind.removeprefix("leaky_relu(").removesuffix(")"))
        return torch.where(x > 0, x, slope * x)
    if kind == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "silu":
        return x * torch.sigmoid(x)
    if kind == "squared_relu":
        return torch.relu(x) ** 2
    assert kind == "relu", kind
    return torch.relu(x)


def mlp(m, params, block, h, at):
    """The MLP branch before its beta, of its input `h`."""
    p = f"{block}.mlp"
    if m.scales_mlp_input:
        h = params.get(f"{p}.alpha", m.alpha) * h
    h = at(f"{p}.in", h)
    up = linear(params, f"{p}.up", h)
    kind = GATED.get(m.activation, m.activation)
    inner = linear(params, f"{p}.gate", h) if m.activation in GATED else up
    if "relu" in kind and kind != "squared_relu":
        at(f"{block}.kink.mlp", inner)
    hidden = activate(kind, inner)
    if m.activation in GATED:
        hidden = hidden * up
    return at(f"{p}.out", linear(params, f"{p}.down", at(f"{p}.hidden", hidden)))


def branch(m, params, block, name, out, at):
    """beta times the output of the branch `name`."""
    beta = 1.0 if m.skip(name) == 0 else params.get(f"{block}.{name}.beta", m.beta_number)
    return at(f"{block}.{name}.branch", beta * out)


def forward(m, params, tokens, at=lambda site, x: x):
    """Logits [B, T, V] of `tokens` [B, T].

    Every named activation passes through `at(site, x)` and the model goes on with what that returns. Names with
    `.kink.` are arguments of functions with a kink at 0: they are shown to `at` only.
    """
    x = params["embed.token.weight"][tokens]
    if m.positions == "learned":
        x = x + params["embed.position.weight"][: tokens.shape[1]]
    if m.embed_proj:
        x = x @ params["embed.proj.weight"].T
    x = at("embed", apply_norm(m, m.embed_norm, params, "embed.norm", x))
    for i in range(m.depth):
        b = f"blocks.{i}"

        def attention_norm(x):
            return apply_norm(m, m.attention_norm(i), params, f"{b}.attn.norm", x)

        def mlp_norm(x):
            return apply_norm(m, m.mlp_norm(), params, f"{b}.mlp.norm", x)

        def attention_branch(h):
            return branch(m, params, b, "attn", attention(m, params, b, h, at), at)

        def mlp_branch(h):
            return branch(m, params, b, "mlp", mlp(m, params, b, h, at), at)

        if m.branches != "sequential":
            assert m.attn_skip == 1 and m.norm_position in ("pre", "post_stream")
            h = attention_norm(x)
            onto = x if m.norm_position == "pre" else h
            h2 = mlp_norm(x) if m.branches == "parallel_two_norms" else h
            x = at(f"{b}.resid", (m.mlp_skip * onto + attention_branch(h)) + mlp_branch(h2))
        elif m.norm_position == "pre":
            x = at(f"{b}.resid_mid", m.attn_skip * x + attention_branch(attention_norm(x)))
            x = at(f"{b}.resid", m.mlp_skip * x + mlp_branch(mlp_norm(x)))
        elif m.norm_position == "post":
            x = at(f"{b}.resid_mid", attention_norm(m.attn_skip * x + attention_branch(x)))
            x = at(f"{b}.resid", mlp_norm(m.mlp_skip * x + mlp_branch(x)))
        else:
            assert m.norm_position == "post_stream"
            x = attention_norm(x)
            x = at(f"{b}.resid_mid", m.attn_skip * x + attention_branch(x))
            x = mlp_norm(x)
            x = at(f"{b}.resid", m.mlp_skip * x + mlp_branch(x))
    x = at("final_norm", apply_norm(m, m.final_norm, params, "final_norm", x))
    if m.embed_proj:
        x = x @ params["head.proj.weight"].T
    head = params["embed.token.weight" if m.tie_head else "head.weight"]
    return at("logits", x @ head.T)


def mean_loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ----------------------------------------------------------------------------------------------------- checks


def close(a, b, tolerance=1e-12):
    difference = (a - b).abs().max().item()
    assert difference < tolerance, difference


def check_causal(m, params, ids):
    """Logits before a token do not depend on it; those from it on do."""
    logits = forward(m, params, ids)
    for t in (1, ids.shape[1] // 2, ids.shape[1] - 1):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 5) % m.vocab
        difference = (forward(m, params, changed) - logits).abs().amax((0, 2))
        assert difference[:t].max() < 1e-13 and difference[t] > 1e-4, difference


def check_differences(m, params, ids, targets, grads, generator):
    """Central differences at two entries of every parameter."""
    step = 1e-6
    for name, value in params.items():
        for _ in range(2):
            at = torch.randint(0, value.numel(), (1,), generator=generator).item()
            losses = []
            for sign in (1, -1):
                moved = value.clone()
                moved.view(-1)[at] += sign * step
                losses.append(mean_loss(forward(m, params | {name: moved}, ids), targets).item())
            difference = (losses[0] - losses[1]) / (2 * step)
            assert abs(difference - grads[name].view(-1)[at].item()) < 2e-9, (name, difference)


def check_gradients_alive(m, grads):
    """Every parameter matters, but for key biases that the softmax ignores."""
    shifts = m.positions != "rope" and m.logit_softcap == 0 and m.softmax != "null_slot"
    bias = "attn.k.bias" if m.qk_norm == "none" else "attn.k_norm.bias"
    for name, grad in grads.items():
        largest = grad.abs().max().item()
        if name.endswith(bias) and shifts:
            assert largest < 1e-15, (name, largest)
        else:
            assert largest > 1e-6, (name, largest)


def torch_encoder(m, params, ids):
    """The variants pre_ln and post with PyTorch's own encoder layer in place of ours."""
    x = params["embed.token.weight"][ids] + params["embed.position.weight"][: ids.shape[1]]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
    for i in range(m.depth):
        layer = torch.nn.TransformerEncoderLayer(
            m.width, m.heads, m.hidden, 0.0, m.activation, m.norm_eps, batch_first=True,
            norm_first=m.norm_position == "pre", dtype=torch.float64,
        )  # fmt: skip
        p = {n.removeprefix(f"blocks.{i}."): v for n, v in params.items() if n.startswith(f"blocks.{i}.")}
        state = {
            f"self_attn.in_proj_{kind}": torch.cat([p[f"attn.{n}.{kind}"] for n in "qkv"])
            for kind in ("weight", "bias")
        }
        ours = {"self_attn.out_proj": "attn.out", "linear1": "mlp.up", "linear2": "mlp.down"}
        for theirs, name in ours.items():
            state |= {f"{theirs}.{kind}": p[f"{name}.{kind}"] for kind in ("weight", "bias")}
        for theirs, name in {"norm1": "attn.norm", "norm2": "mlp.norm"}.items():
            state |= {f"{theirs}.weight": p[f"{name}.gain"], f"{theirs}.bias": p[f"{name}.bias"]}
        layer.load_state_dict(state)
        x = layer(x, src_mask=mask)
    if m.final_norm == "layer":
        x = F.layer_norm(x, (m.width,), params["final_norm.gain"], params["final_norm.bias"], m.norm_eps)
    return x @ params["head.weight"].T


def check_reductions(generator):
    """Variants at settings where they are something known."""

    def drawn(**changes):
        variant = Variant("check", "", 0, "pre_ln", changes)
        m = variant.model
        ids = torch.randint(0, m.vocab, (BATCH, m.context), generator=generator)
        return m, initial_parameters(variant, generator), ids

    def same(a, pa, b, pb, ids):
        # only the parameters the model has: some are used where present
        pa, pb = ({n: p[n] for n in parameter_list(m)} for m, p in ((a, pa), (b, pb)))
        close(forward(a, pa, ids), forward(b, pb, ids))

    def ends(params, *suffixes):
        return [n for n in params if n.endswith(suffixes)]

    # PyTorch's own encoder layer
    for changes in ({}, {"norm_position": "post", "final_norm": "none"}, {"activation": "gelu"}):
        m, p, ids = drawn(**changes)
        close(forward(m, p, ids), torch_encoder(m, p, ids))

    # grouped queries with repeated weights are ordinary attention
    for kv in (1, 2):
        m, p, ids = drawn(heads=4, kv_heads=kv, width=16, positions="rope")
        repeated = dict(p)
        for n in ends(p, "attn.k.weight", "attn.k.bias", "attn.v.weight", "attn.v.bias"):
            repeated[n] = p[n].unflatten(0, (kv, m.d_head)).repeat_interleave(4 // kv, 0).flatten(0, 1)
        same(m, p, replace(m, kv_heads=0), repeated, ids)

    # softmax kinds
    m, p, ids = drawn()
    same(replace(m, softmax="clipped(0, 1)"), p, m, p, ids)
    same(replace(m, softmax="clipped"), p, replace(m, softmax=f"clipped({-12 / 7!r}, 1.0)"), p, ids)
    close(forward(replace(m, logit_softcap=1e4), p, ids), forward(m, p, ids), 1e-6)
    scores = torch.randn(2, 2, 7, 7, generator=generator, dtype=torch.float64)
    masked = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -math.inf)
    slot = torch.softmax(torch.cat([torch.zeros(2, 2, 7, 1).double(), masked], -1), -1)[..., 1:]
    close(probabilities(replace(m, softmax="null_slot"), scores, lambda site, x: x, ""), slot)

    # rope: norms and relative positions; the rotate-half formula
    x = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    for r in (2, 4, 6):
        close(rotate(x, r, 100.0).norm(dim=-1), x.norm(dim=-1))
        close(rotate(x, r, 100.0)[:, :, 0], x[:, :, 0])
        constant = x[:, :, :1].expand_as(x)
        products = rotate(constant, r, 100.0) @ rotate(constant.flip(1), r, 100.0).transpose(-1, -2)
        close(products[..., 1:, 1:], products[..., :-1, :-1])
        angle = torch.arange(7.0).double()[:, None] * 100.0 ** (-torch.arange(0, r, 2).double() / r)
        angle = torch.cat([angle, angle], -1)
        half = torch.cat([-x[..., r // 2 : r], x[..., : r // 2]], -1)
        close(rotate(x, r, 100.0)[..., :r], x[..., :r] * angle.cos() + half * angle.sin())
        assert torch.equal(rotate(x, r, 100.0)[..., r:], x[..., r:])

    # shaped attention and identity reparametrisation
    m, p, ids = drawn(attention_matrix="shaped")
    same(m, p | {n: torch.zeros(2).double() for n in ends(p, "identity", "centre")}
         | {n: torch.ones(2).double() for n in ends(p, "shaped.attention")},
         replace(m, attention_matrix="softmax"), p, ids)  # fmt: skip
    # equal scores: attention and centre cancel, the values are left
    flat = p | {n: 0 * p[n] for n in ends(p, "q.weight", "q.bias")}
    flat |= {n: torch.ones(2).double() for n in ends(p, "identity", "centre", "shaped.attention")}
    seen = {}
    forward(m, flat, ids, lambda site, x: seen.setdefault(site, x))
    close(seen["blocks.0.attn.context"], seen["blocks.0.attn.v"])
    m, p, ids = drawn(value_init="identity", gate="per_head")
    plain = replace(m, value_init="random")
    same(m, p | {n: torch.zeros(1).double() for n in ends(p, ".skip")}
         | {n: torch.ones(1).double() for n in ends(p, "v.gain", "out.gain")}, plain, p, ids)  # fmt: skip
    moved = dict(p)
    for n in ends(p, "v.gain", "out.gain"):
        name = n.removesuffix(".gain")
        moved[f"{name}.weight"] = p[n] * p[f"{name}.weight"] + p[f"{name}.skip"] * torch.eye(12).double()
        moved[f"{name}.bias"] = p[n] * p[f"{name}.bias"]
    same(m, p, plain, moved, ids)

    # gates: open ones are none; the smaller are cases of the larger
    m, p, ids = drawn(gate="per_head")
    opened = p | {n: torch.full((2,), 50.0).double() for n in ends(p, "gate.bias")}
    same(m, opened, replace(m, gate="none"), p, ids)
    m, p, ids = drawn(gate="per_token")
    wide, wider = dict(p), dict(p)
    for n in ends(p, "gate.weight"):
        wide[n] = torch.block_diag(p[n][:1], p[n][1:])
        wider[n] = wide[n].repeat_interleave(6, 0)
        bias = n.replace("weight", "bias")
        wider[bias] = p[bias].repeat_interleave(6)
    same(m, p, replace(m, gate="all_features"), wide, ids)
    same(m, p, replace(m, gate="elementwise"), wider, ids)
    m, p, ids = drawn(gate="mlp", width=16)  # relu(y) - relu(-y) = y
    linear_gate = dict(p)
    for n in ends(p, "gate.up.weight"):
        name = n.removesuffix(".up.weight")
        p[n][:, 1] = -p[n][:, 0]
        p[f"{name}.up.bias"] = torch.zeros(4).double()
        p[f"{name}.weight"] = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).double()
        linear_gate[f"{name}.weight"] = p[n][:, 0]
    linear_gate = {n: linear_gate.get(n, v) if n.endswith("gate.weight") else v for n, v in p.items()}
    same(m, p, replace(m, gate="per_token"), linear_gate, ids)

    # gains, norms, embeddings
    m, p, ids = drawn(beta=0.3, beta_per_channel=True, beta_trainable=True)
    same(m, p | {n: torch.full((12,), 0.3, dtype=torch.float64) for n in ends(p, "beta")},
         replace(m, beta_per_channel=False, beta_trainable=False), p, ids)  # fmt: skip
    m, p, ids = drawn(alpha=0.8, biases=())
    scaled = p | {n: 0.8 * p[n] for n in ends(p, "up.weight")}
    same(m, p, replace(m, alpha=1.0), scaled, ids)
    m, p, ids = drawn(branches="parallel_two_norms")
    p |= {n: p[n.replace("mlp.norm", "attn.norm")] for n in ends(p, "mlp.norm.gain", "mlp.norm.bias")}
    same(m, p, replace(m, branches="parallel"), p, ids)
    m, p, ids = drawn(norm="ss")
    ones = {n: p[n].expand(12) for n in ends(p, "attn.norm.gain", "mlp.norm.gain")}
    same(m, p, replace(m, norm="rms"), p | ones, ids)
    same(m, p | {n: torch.ones(1).double() for n in ones}, replace(m, norm="srms"), p, ids)
    m, p, ids = drawn(embed_proj=True)
    same(m, p | {n: torch.eye(12).double() for n in ends(p, "proj.weight")},
         replace(m, embed_proj=False), p, ids)  # fmt: skip
    same(m, p | {"head.weight": p["embed.token.weight"]}, replace(m, tie_head=True), p, ids)

    # activations
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    known = {"gelu": F.gelu, "silu": F.silu, "leaky_relu(0.1)": lambda x: F.leaky_relu(x, 0.1),
             "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}  # fmt: skip
    for kind, function in known.items():
        close(activate(kind, x), function(x))
    assert Model(activation="swiglu").hidden == 32 and Model(activation="swiglu", width=16).hidden == 48


# ------------------------------------------------------------------------------------------------------ files


def run(m, params, ids, targets, dtype):
    """Sites, gradients and loss of one pass in `dtype`, and the distance of the nearest kink."""
    params = {n: p.to(dtype).clone().requires_grad_() for n, p in params.items()}
    sites, margin = {}, math.inf

    def record(site, x):
        nonlocal margin
        if ".kink." in site:
            margin = min(margin, x.abs().min().item())
        else:
            assert site not in sites, site
            sites[site] = x.detach().clone()
        return x

    loss = mean_loss(forward(m, params, ids, record), targets)
    loss.backward()
    return {"site": sites, "grad": {n: p.grad for n, p in params.items()}}, loss.item(), margin


def golden(variant):
    """The tensors of a variant and the seed they came from."""
    m, official = variant.model, variant.group == "op_official"
    length = variant.length or m.context
    seed = variant.seed
    while True:
        generator = torch.Generator().manual_seed(seed)
        params = initial_parameters(variant, generator)
        tokens = torch.randint(0, m.vocab, (BATCH, length + 1), generator=generator)
        ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        double, loss, margin = run(m, params, ids, targets, torch.float64)
        if margin > KINK_MARGIN or official:  # thousands of arguments, all of them small; no gradients stored
            break
        seed += 1000
    single, single_loss, _ = run(m, params, ids, targets, torch.float32)

    check_causal(m, params, ids)
    if not official:
        check_gradients_alive(m, double["grad"])
    if variant.name in ("everything", "skipless", "op_trained", "gate_mlp_wide", "clipped", "dyt", "post"):
        check_differences(m, params, ids, targets, double["grad"], generator)

    worst = {}
    for kind, values in double.items():
        worst[kind] = max((single[kind][n].double() - x).abs().max().item() for n, x in values.items())
    print(
        f"{variant.name}: seed {seed}, loss {loss:.4f}, f32 vs f64: loss {abs(loss - single_loss):.0e}, "
        + ", ".join(f"{kind} {d:.0e}" for kind, d in worst.items())
    )
    tensors = {"ids": ids, "targets": targets, "loss": torch.tensor([loss], dtype=torch.float64)}
    tensors |= {f"param.{n}": p.float() for n, p in params.items()}
    for kind, values in double.items():
        for name, x in values.items():
            kept = kind == "site" and name.split(".")[-1] in ("embed", "resid", "final_norm", "logits")
            if official and not kept:
                continue
            tensors[f"{kind}.{name}"] = x.float()
    return {f"{variant.name}/{n}": x.numpy() for n, x in tensors.items()}, seed, worst


def main():
    out = out_directory(__doc__)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    check_reductions(torch.Generator().manual_seed(7))
    files, configs, about, deviations = {}, {}, {}, []
    for variant in variants():
        assert variant.name not in configs
        assert set(variant.changes) <= {f.name for f in fields(Model)}
        tensors, seed, worst = golden(variant)
        deviations.append(worst)
        files.setdefault(variant.group, {}).update(tensors)
        about.setdefault(variant.group, {})[variant.name] = variant.config | {"seed": seed}
        configs[variant.name] = variant.config
    for kind in deviations[0]:
        print(f"largest f32 vs f64: {kind} {max(d[kind] for d in deviations):.1e}")
    for group, tensors in files.items():
        write(out / f"blocks_{group}.safetensors", tensors, about[group])
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(config)}" for name, config in configs.items())
    (out / "blocks.json").write_text(f"{{\n{lines}\n}}\n")
    print(f"blocks.json: {len(configs)} variants")


if __name__ == "__main__":
    main()
