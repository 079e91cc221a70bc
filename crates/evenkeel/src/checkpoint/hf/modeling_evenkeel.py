"""A model that evenkeel trained, for transformers: needs torch and transformers, nothing else.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

One transformer, whose blocks are settings: config.json holds evenkeel's table [model], and `read_table` below is
all that reads it. With branch f (attention, then MLP), norm N, gain s on the stream and beta on the branch, a block is

    pre           x = s x + beta f(N(x))
    post          x = N(s x + beta f(x))
    post_stream   x = N(x), then x = s x + beta f(x)

or, parallel, both branches added to one stream. Shapes: B sequences, T tokens, d width, H heads.

There is no key-value cache: `generate` runs the whole sequence for every token. An attention mask of shape [B, T]
hides padding on either side, and positions count from the first token that is not padding.
"""

import math
import re
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

# ------------------------------------------------------------------------------------------------- the table [model]

NORMS = ("layer", "rms", "srms", "ss", "dyt", "none")
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}
PLAIN = ("relu", "gelu", "gelu_tanh", "silu", "squared_relu")

# The words a key can hold.
WORDS = {
    "norm": NORMS,
    "first_norm": NORMS,
    "embed_norm": NORMS,
    "final_norm": NORMS,
    "norm_position": ("pre", "post", "post_stream"),
    "branches": ("sequential", "parallel", "parallel_two_norms"),
    "qk_norm": ("none", "rms", "rms_inside", "layer"),
    "attention_matrix": ("softmax", "shaped"),
    "value_init": ("random", "identity"),
    "query_init": ("random", "zero"),
    "gate": ("none", "per_head", "per_token", "mlp", "all_features", "elementwise"),
    "positions": ("learned", "rope", "none"),
    "input": ("tokens",),
    "readout": ("tokens",),
}

# The words a key can hold, each with the numbers of arguments it can have: "clipped(-0.03, 1)" has two.
CALLS = {
    "softmax": {"standard": (0,), "clipped": (0, 2), "null_slot": (0,)},
    "activation": {"leaky_relu": (1,)} | {name: (0,) for name in (*PLAIN, *GATED)},
    "rope_scaling": {"none": (0,), "linear": (1,), "dynamic": (2,), "llama3": (4,)},
    "init": {"fan_in": (0,), "normal": (1,)},
}

REQUIRED = (
    "depth", "width", "heads", "vocab", "context", "mlp_ratio", "norm", "norm_eps", "norm_position", "first_norm",
    "embed_norm", "final_norm", "beta", "beta_trainable", "alpha", "alpha_trainable", "qk_norm", "qk_norm_eps",
    "activation", "positions", "tie_head", "biases", "init",
)  # fmt: skip

# Keys that a folder may lack, because evenkeel had none of them once, and what that means.
OPTIONAL = {
    "preset": "", "kv_heads": 0, "head_dim": 0, "mlp_hidden": 0, "branches": "sequential", "embed_proj": False,
    "embed_dim": 0, "embed_scale": 1.0, "beta_per_channel": False, "attn_skip": 1.0, "mlp_skip": 1.0,
    "logit_softcap": 0.0, "softmax": "standard", "attention_matrix": "softmax", "value_init": "random",
    "query_init": "random", "gate": "none", "gate_init": 0.5, "causal": True, "window": 0, "window_blocks": [],
    "rope_base": 10000.0, "rope_fraction": 1.0, "rope_scaling": "none", "head_bias": False, "dropout_embed": 0.0,
    "dropout_residual": 0.0, "dropout_attention": 0.0, "input": "tokens", "readout": "tokens",
}  # fmt: skip

PROJECTIONS = ("q", "k", "v", "out", "up", "down", "gate")


def read_table(table):
    """The table [model] with its defaults, and what follows from it. ValueError for what this file cannot compute."""
    missing = [key for key in REQUIRED if key not in table]
    if missing:
        raise ValueError(f"config.json: the table \"model\" lacks {', '.join(missing)}")
    for key, value in table.items():
        # An unknown key changes nothing while it is off.
        if key not in REQUIRED and key not in OPTIONAL and value not in (None, 0, "", "none", [], {}):
            raise ValueError(f"config.json: modeling_evenkeel.py does not know model.{key} = {value!r}")
    m = SimpleNamespace(**(OPTIONAL | {key: table[key] for key in table if key in REQUIRED or key in OPTIONAL}))
    for key, words in WORDS.items():
        if getattr(m, key) not in words:
            refuse(m, key, f"must be one of {', '.join(words)}")
    for key, words in CALLS.items():
        setattr(m, key, read_call(m, key, words))
    for projection in m.biases:
        if projection not in PROJECTIONS:
            refuse(m, "biases", f"must list some of {', '.join(PROJECTIONS)}")

    m.kv_heads = m.kv_heads or m.heads
    m.head_dim = m.head_dim or m.width // m.heads
    m.inner = m.heads * m.head_dim  # channels of all heads
    m.rotated = round(m.rope_fraction * m.head_dim) if m.positions == "rope" else 0
    m.token_width = m.embed_dim or m.width
    if m.beta == "inv_sqrt_depth":
        m.beta = m.depth**-0.5
    if not isinstance(m.beta, (int, float)):
        refuse(m, "beta", 'must be a number or "inv_sqrt_depth"')
    if not m.mlp_hidden:
        full = m.mlp_ratio * m.width
        m.mlp_hidden = -(-2 * full // 24) * 8 if m.activation[0] in GATED else full
    refuse_combinations(m)
    return m


def refuse_combinations(m):
    """ValueError for settings that have no meaning together."""
    parallel = m.branches != "sequential"
    if parallel and m.norm_position == "post":
        refuse(m, "norm_position", "must be pre or post_stream in a parallel block")
    if m.branches == "parallel_two_norms" and m.norm_position != "pre":
        refuse(m, "norm_position", "must be pre with parallel_two_norms")
    if parallel and m.attn_skip != 1:
        refuse(m, "attn_skip", "must be 1 in a parallel block")
    if m.embed_dim and m.embed_proj:
        refuse(m, "embed_proj", "must be false with embed_dim, which has a projection of its own")
    if m.inner != m.width and m.value_init == "identity":
        refuse(m, "value_init", "needs heads of width / heads channels")
    if m.inner != m.width and m.gate in ("per_token", "mlp"):
        refuse(m, "gate", "needs heads of width / heads channels")
    if m.value_init == "identity" and m.kv_heads != m.heads:
        refuse(m, "value_init", "needs kv_heads equal to heads")
    if m.attention_matrix == "shaped" and (m.window or not m.causal):
        refuse(m, "attention_matrix", "must be softmax with a window, or without a causal mask")
    if m.window and not m.causal:
        refuse(m, "window", "must be 0 without a causal mask")


def refuse(m, key, problem):
    raise ValueError(f"config.json: model.{key} {problem}, not {getattr(m, key)!r}")


def read_call(m, key, words):
    """("clipped", [-0.03, 1.0]) of "clipped(-0.03, 1)"."""
    parts = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", str(getattr(m, key)))
    try:
        name, inside = parts.groups()
        numbers = [float(number) for number in inside.split(",")] if inside is not None else []
        if len(numbers) in words[name]:
            return name, numbers
    except (AttributeError, KeyError, ValueError):
        pass
    refuse(m, key, f"must be one of {', '.join(words)}, with its numbers in brackets")


class EvenkeelConfig(PretrainedConfig):
    """config.json: the table [model], and the sizes under the names that transformers gives them."""

    model_type = "evenkeel"

    def __init__(self, model=None, **kwargs):
        self.model = model
        if model is not None:
            m = read_table(model)
            kwargs |= {
                "vocab_size": m.vocab,
                "hidden_size": m.width,
                "num_hidden_layers": m.depth,
                "num_attention_heads": m.heads,
                "num_key_value_heads": m.kv_heads,
                "head_dim": m.head_dim,
                "intermediate_size": m.mlp_hidden,
                "max_position_embeddings": m.context,
                "tie_word_embeddings": m.tie_head,
            }
        super().__init__(**kwargs | {"use_cache": False})


# -------------------------------------------------------------------------------------------------------------- parts


def wide(x):
    """At least float32, for sums over channels or keys."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Part(nn.Module):
    """A module with parameters of its own. `starts` says how each is initialised: a function of nn.init, arguments."""

    def vector(self, name, size, value):
        self.parameter(name, (size,), "constant_", value)

    def parameter(self, name, shape, *start):
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.starts = getattr(self, "starts", {}) | {name: start}


def spread(m, fan_in):
    """Standard deviation of a matrix at the start."""
    name, numbers = m.init
    return numbers[0] if name == "normal" else fan_in**-0.5


def embedding(m, rows, width):
    layer = nn.Embedding(rows, width)
    layer.starts = {"weight": ("normal_", 0.0, spread(m, width))}
    return layer


def linear(m, fan_in, fan_out, bias=False, start=None, kind=nn.Linear):
    layer = kind(fan_in, fan_out, bias=bias)
    layer.starts = getattr(layer, "starts", {}) | {"weight": start or ("normal_", 0.0, spread(m, fan_in))}
    if bias:
        layer.starts["bias"] = ("constant_", 0.0)
    return layer


class AroundIdentity(nn.Linear):
    """y = skip x + gain (x W^T + b), the identity at the start."""

    def __init__(self, fan_in, fan_out, bias):
        super().__init__(fan_in, fan_out, bias=bias)
        self.skip = nn.Parameter(torch.empty(1))
        self.gain = nn.Parameter(torch.empty(1))
        self.starts = {"skip": ("constant_", 1.0), "gain": ("constant_", 1.0)}

    def forward(self, x):
        return self.skip * x + self.gain * super().forward(x)


class Norm(Part):
    """A norm over the last dimension. `rms_outside` has eps outside the root, the others inside it."""

    def __init__(self, kind, size, eps):
        super().__init__()
        self.kind, self.eps = kind, eps
        if kind == "dyt":
            self.vector("alpha", 1, 0.5)
        if kind != "srms":
            self.vector("gain", 1 if kind == "ss" else size, 1.0)
        if kind in ("layer", "dyt"):
            self.vector("bias", size, 0.0)

    def forward(self, x):
        y = wide(x)
        if self.kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        if self.kind == "dyt":
            y = torch.tanh(self.alpha * y)
        elif self.kind == "rms_outside":
            y = y / (y.square().mean(-1, keepdim=True).sqrt() + self.eps)
        else:
            y = y / (y.square().mean(-1, keepdim=True) + self.eps).sqrt()
        if self.kind != "srms":
            y = y * self.gain
        if self.kind in ("layer", "dyt"):
            y = y + self.bias
        return y.to(x.dtype)


def norm(kind, size, eps):
    return nn.Identity() if kind == "none" else Norm(kind, size, eps)


def activate(activation, x):
    name, numbers = activation
    name = GATED.get(name, name)
    if name == "leaky_relu":
        return F.leaky_relu(x, numbers[0])
    if name == "squared_relu":
        return F.relu(x).square()
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[name](x)


# ---------------------------------------------------------------------------------------------------------- attention


def visible_keys(m, tokens, mask, windowed, device):
    """Which keys (last dimension) each query sees: [1 or B, 1, T, T]."""
    t = torch.arange(tokens, device=device)
    back = t[:, None] - t[None, :]  # how far a key lies behind the query
    seen = back >= 0 if m.causal else torch.ones_like(back, dtype=torch.bool)
    if windowed:
        seen = seen & (back < m.window)
    seen = seen[None, None]
    return seen if mask is None else seen & mask.bool()[:, None, None, :]


def rope_angles(m, positions):
    """Cosine and sine [B, 1, T, r/2] of the angles by which RoPE turns r channels at `positions` [B, T]."""
    r, (scaling, numbers) = m.rotated, m.rope_scaling
    exact = torch.float32 if positions.device.type == "mps" else torch.float64
    exponents = torch.arange(0, r, 2, device=positions.device, dtype=exact) / -r
    base = torch.full((1, 1), m.rope_base, device=positions.device, dtype=exact)
    if scaling == "dynamic":
        factor, original = numbers
        tokens = (positions.amax(-1, keepdim=True) + 1).to(exact)
        # 1 up to the original length; two channels turn by the position itself, whatever the base
        longer = (factor * tokens / original - (factor - 1)).clamp(min=1)
        base = base * longer ** (r / max(r - 2, 1))
    frequencies = base[:, None] ** exponents
    if scaling == "linear":
        frequencies = frequencies / numbers[0]
    if scaling == "llama3":
        factor, low, high, original = numbers
        turns = original * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: as it was, 0: slower by the factor
        frequencies = frequencies * (kept + (1 - kept) / factor)
    angles = (positions[..., None] * frequencies)[:, None]
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """RoPE of [B, H, T, head_dim]: pairs (c, c + r/2) of the first r channels."""
    r = 2 * cos.shape[-1]
    first, second, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def probabilities(m, scores, seen):
    """Attention probabilities of scores [B, H, T, T]: zero where a key is not seen."""
    name, numbers = m.softmax
    scores = wide(scores).masked_fill(~seen, torch.finfo(scores.dtype).min)
    if name == "null_slot":  # one more key, of score 0 and value 0
        return torch.softmax(F.pad(scores, (0, 1)), dim=-1)[..., :-1].masked_fill(~seen, 0.0)
    probs = torch.softmax(scores, dim=-1)
    if name == "clipped":
        gamma, eta = numbers or (-12 / m.context, 1.0)
        probs = ((eta - gamma) * probs + gamma).clamp(0.0, 1.0)
    return probs.masked_fill(~seen, 0.0)


class Shaped(Part):
    """a I + b P - c C for each head, C uniform over the keys seen."""

    def __init__(self, heads):
        super().__init__()
        for part in ("identity", "attention", "centre"):
            self.vector(part, heads, 1.0)

    def forward(self, context, v, seen):
        uniform = seen.to(v.dtype) / seen.sum(-1, keepdim=True).clamp(min=1)
        a, b, c = (gain[:, None, None] for gain in (self.identity, self.attention, self.centre))
        return a * v + b * context - c * (uniform @ v)


class Gate(Part):
    """A sigmoid factor on each head, or on each of its channels, computed from the attention input."""

    def __init__(self, m):
        super().__init__()
        self.kind, self.heads, self.head_dim = m.gate, m.heads, m.head_dim
        hidden = max(1, m.head_dim // 4)
        outputs = m.inner if m.gate == "elementwise" else m.heads
        shape = {
            "per_token": (m.heads, m.head_dim),
            "mlp": (m.heads, hidden),
            "all_features": (outputs, m.width),
            "elementwise": (outputs, m.width),
        }.get(m.gate)
        if m.gate == "mlp":
            self.up = Part()
            self.up.parameter("weight", (m.heads, hidden, m.head_dim), "normal_", 0.0, spread(m, m.head_dim))
            self.up.vector("bias", m.heads * hidden, 0.0)
        if shape:
            self.parameter("weight", shape, "normal_", 0.0, spread(m, shape[-1]))
        self.vector("bias", outputs, math.log(m.gate_init / (1 - m.gate_init)))

    def forward(self, h, context):
        """`context` [B, T, inner], gated by the input `h` [B, T, d]."""
        if self.kind == "per_head":
            logits = self.bias.expand(*h.shape[:2], -1)
        elif self.kind == "per_token":
            logits = (h.unflatten(-1, (self.heads, -1)) * self.weight).sum(-1) + self.bias
        elif self.kind == "mlp":
            hidden = torch.einsum("bthc,hrc->bthr", h.unflatten(-1, (self.heads, -1)), self.up.weight)
            hidden = F.relu(hidden + self.up.bias.view(self.heads, -1))
            logits = (hidden * self.weight).sum(-1) + self.bias
        else:
            logits = F.linear(h, self.weight, self.bias)
        each = context.shape[-1] // logits.shape[-1]  # channels that share a gate
        return logits.sigmoid().repeat_interleave(each, dim=-1) * context


class Branch(Part):
    """What attention and MLP share: a norm, which the block places, and the gain beta."""

    def __init__(self, m, norm_kind, skip):
        super().__init__()
        self.m = m
        self.norm = norm(norm_kind, m.width, m.norm_eps)
        if m.beta_trainable and skip != 0:
            self.vector("beta", m.width if m.beta_per_channel else 1, m.beta)
        else:
            self.beta = m.beta if skip != 0 else 1.0  # a branch that goes on alone has none

    def weighed(self, x):
        return self.beta * F.dropout(x, self.m.dropout_residual, self.training)


class Attention(Branch):
    def __init__(self, m, layer, skip):
        super().__init__(m, m.first_norm if m.norm == "none" and layer == 0 else m.norm, skip)
        kind, start = nn.Linear, None
        if m.value_init == "identity":
            kind, start = AroundIdentity, ("constant_", 0.0)
        zero = ("constant_", 0.0) if m.query_init == "zero" else None
        self.q = linear(m, m.width, m.inner, "q" in m.biases, start=zero)
        self.k = linear(m, m.width, m.kv_heads * m.head_dim, "k" in m.biases)
        self.v = linear(m, m.width, m.kv_heads * m.head_dim, "v" in m.biases, start, kind)
        self.out = linear(m, m.inner, m.width, "out" in m.biases, start, kind)
        head_norm = {"rms": "rms_outside", "rms_inside": "rms"}.get(m.qk_norm, m.qk_norm)
        self.q_norm = norm(head_norm, m.head_dim, m.qk_norm_eps)
        self.k_norm = norm(head_norm, m.head_dim, m.qk_norm_eps)
        self.shaped = Shaped(m.heads) if m.attention_matrix == "shaped" else None
        self.gate = Gate(m) if m.gate != "none" else None

    def forward(self, h, seen, angles):
        m = self.m
        q, k, v = (side(h).unflatten(-1, (-1, m.head_dim)).transpose(1, 2) for side in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        k, v = (x.repeat_interleave(m.heads // m.kv_heads, dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(m.head_dim)
        if m.logit_softcap:
            scores = m.logit_softcap * torch.tanh(scores / m.logit_softcap)
        probs = probabilities(m, scores, seen).to(v.dtype)
        context = F.dropout(probs, m.dropout_attention, self.training) @ v
        if self.shaped is not None:
            context = self.shaped(context, v, seen)
        context = context.transpose(1, 2).flatten(2)
        if self.gate is not None:
            context = self.gate(h, context)
        return self.weighed(self.out(context))


class Mlp(Branch):
    def __init__(self, m, skip):
        super().__init__(m, "none" if m.branches == "parallel" else m.norm, skip)
        if m.alpha_trainable:
            self.vector("alpha", 1, m.alpha)
        else:
            self.alpha = m.alpha
        self.up = linear(m, m.width, m.mlp_hidden, "up" in m.biases)
        self.gate = linear(m, m.width, m.mlp_hidden, "gate" in m.biases) if m.activation[0] in GATED else None
        self.down = linear(m, m.mlp_hidden, m.width, "down" in m.biases)

    def forward(self, h):
        h = self.alpha * h
        up = self.up(h)
        if self.gate is None:
            hidden = activate(self.m.activation, up)
        else:
            hidden = activate(self.m.activation, self.gate(h)) * up
        return self.weighed(self.down(hidden))


class Block(nn.Module):
    def __init__(self, m, layer):
        super().__init__()
        self.m = m
        self.windowed = m.window > 0 and (not m.window_blocks or layer in m.window_blocks)
        parallel = m.branches != "sequential"  # such a block has one skip, and a beta on both branches
        self.attn = Attention(m, layer, 1.0 if parallel else m.attn_skip)
        self.mlp = Mlp(m, 1.0 if parallel else m.mlp_skip)

    def forward(self, x, seen, angles):
        m = self.m
        if m.branches == "sequential":
            x = self.joined(x, m.attn_skip, self.attn, seen, angles)
            return self.joined(x, m.mlp_skip, self.mlp)
        h = self.attn.norm(x)
        onto = h if m.norm_position == "post_stream" else x
        own = self.mlp.norm(x) if m.branches == "parallel_two_norms" else h
        return m.mlp_skip * onto + self.attn(h, seen, angles) + self.mlp(own)

    def joined(self, x, skip, branch, *context):
        """The stream after `branch` has joined it."""
        if self.m.norm_position == "post":
            return branch.norm(skip * x + branch(x, *context))
        h = branch.norm(x)
        onto = h if self.m.norm_position == "post_stream" else x
        return skip * onto + branch(h, *context)


# -------------------------------------------------------------------------------------------------------------- model


class Embed(nn.Module):
    """Tokens and their positions to the stream [B, T, d]."""

    def __init__(self, m):
        super().__init__()
        self.m = m
        self.token = embedding(m, m.vocab, m.token_width)
        self.position = embedding(m, m.context, m.width) if m.positions == "learned" else None
        self.proj = None
        if m.embed_dim:
            self.proj = linear(m, m.embed_dim, m.width)
        elif m.embed_proj:
            self.proj = linear(m, m.width, m.width, start=("orthogonal_",))
        self.norm = norm(m.embed_norm, m.width, m.norm_eps)

    def forward(self, ids, positions):
        x = self.m.embed_scale * self.token(ids)
        if self.m.embed_dim:  # tokens are narrower than positions
            x = self.proj(x)
        if self.position is not None:
            x = x + self.position(positions)
        if self.m.embed_proj:
            x = self.proj(x)
        return F.dropout(self.norm(x), self.m.dropout_embed, self.training)


class Head(nn.Linear):
    """The stream to logits [B, T, V], by way of a projection that undoes that of the embedding."""

    def __init__(self, m):
        super().__init__(m.token_width, m.vocab, bias=m.head_bias)
        self.starts = {"weight": ("normal_", 0.0, spread(m, m.token_width))}
        if m.head_bias:
            self.starts["bias"] = ("constant_", 0.0)
        self.proj = nn.Identity()
        if m.embed_dim or m.embed_proj:
            start = None if m.embed_dim else ("orthogonal_",)
            self.proj = linear(m, m.width, m.token_width, start=start)

    def forward(self, x):
        return super().forward(self.proj(x))


class EvenkeelForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = EvenkeelConfig
    # Honoured by transformers where config.tie_word_embeddings is true: version 5 reads the pair, 4 its first name.
    _tied_weights_keys = {"head.weight": "embed.token.weight"}
    _no_split_modules = ["Block"]
    _supports_cache_class = False
    accepts_loss_kwargs = False  # the loss is a mean over the batch it is given

    def __init__(self, config):
        super().__init__(config)
        if config.model is None:
            raise ValueError('config.json has no table "model", which says what the network is')
        m = self.m = read_table(config.model)
        self.embed = Embed(m)
        self.blocks = nn.ModuleList(Block(m, layer) for layer in range(m.depth))
        self.final_norm = norm(m.final_norm, m.width, m.norm_eps)
        self.head = Head(m)
        self.post_init()

    def _init_weights(self, module):
        for name, (function, *arguments) in getattr(module, "starts", {}).items():
            getattr(nn.init, function)(getattr(module, name), *arguments)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def get_input_embeddings(self):
        return self.embed.token

    def set_input_embeddings(self, value):
        self.embed.token = value

    def get_output_embeddings(self):
        return self.head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, logits_to_keep=0, **unused):
        """The whole sequence every time."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        labels=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        **unused,
    ):
        """Logits of `input_ids` [B, T].

        `attention_mask` [B, T] is 0 where there is padding. `labels` [B, T] are shifted here, and those of -100 left
        out of the loss. `hidden_states` are the embedding output and the output of each block, without the final
        norm. `logits_to_keep` asks for the logits of the last tokens only.
        """
        m, tokens = self.m, input_ids.shape[1]
        if m.positions == "learned" and tokens > m.context:
            raise ValueError(f"{tokens} tokens are more than the {m.context} positions that this model learned")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask must have the shape [batch, tokens]")
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        elif position_ids is None:
            position_ids = torch.arange(tokens, device=input_ids.device)[None]
        x = self.embed(input_ids, position_ids)
        angles = None
        if m.positions == "rope":
            angles = [part.to(x.dtype) for part in rope_angles(m, position_ids)]
        seen = {
            windowed: visible_keys(m, tokens, attention_mask, windowed, x.device)
            for windowed in {block.windowed for block in self.blocks}
        }
        hidden_states = [x]
        for block in self.blocks:
            x = block(x, seen[block.windowed], angles)
            hidden_states.append(x)
        logits = self.head(self.final_norm(x[:, -logits_to_keep:]))

        loss = None
        if labels is not None:
            shifted = labels[:, 1:].flatten().to(logits.device)
            loss = F.cross_entropy(wide(logits[:, :-1]).flatten(0, 1), shifted, ignore_index=-100)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = CausalLMOutput(loss, logits, tuple(hidden_states) if asked else None)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
