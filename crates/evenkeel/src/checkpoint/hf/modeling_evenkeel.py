"""A model that evenkeel trained, for transformers: needs torch and transformers, nothing else.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

One transformer, whose blocks are settings: config.json holds evenkeel's table [model], which `read_table` below
reads. With branch f (attention, then MLP), norm N, gain s on the stream and beta on the branch, a block is

    pre           x = s x + beta f(N(x))
    post          x = N(s x + beta f(x))
    post_stream   x = N(x), then x = s x + beta f(x)

for each branch in turn or, parallel, for both at once. Shapes: B sequences, T tokens, d width, H heads.
There is no key-value cache: `generate` runs the whole sequence for every token. An attention mask [B, T] hides
padding on either side, and positions count from the first token that is not padding. A model without weights
starts as torch's layers do, not as evenkeel starts one.
"""

import math
import re
from functools import partial
from types import SimpleNamespace

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

# ----------------------------------------------------------------------------------------- the table [model]

NORMS = ("layer", "rms", "srms", "ss", "dyt", "none")
ACTIVATIONS = {
    "relu": F.relu, "leaky_relu": F.leaky_relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu, "squared_relu": lambda x: F.relu(x).square(),
}  # fmt: skip
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}

# The words a key can hold; clipped/2 is written with two numbers, as in "clipped(-0.03, 1)".
CHOICES = {
    **dict.fromkeys(("norm", "first_norm", "embed_norm", "final_norm"), NORMS),
    "norm_position": ("pre", "post", "post_stream"),
    "branches": ("sequential", "parallel", "parallel_two_norms"),
    "qk_norm": ("none", "rms", "rms_inside", "layer"),
    "attention_matrix": ("softmax", "shaped"),
    "softmax": ("standard", "clipped", "clipped/2", "null_slot"),
    "value_init": ("random", "identity"),
    "gate": ("none", "per_head", "per_token", "mlp", "all_features", "elementwise"),
    "activation": ("relu", "leaky_relu/1", "gelu", "gelu_tanh", "silu", "squared_relu", *GATED),
    "positions": ("learned", "rope", "none"),
    "rope_scaling": ("none", "linear/1", "dynamic/2", "llama3/4"),
}
PROJECTIONS = ("q", "k", "v", "out", "up", "down", "gate")

REQUIRED = (
    "depth", "width", "heads", "vocab", "context", "mlp_ratio", "norm", "norm_eps", "norm_position",
    "first_norm", "embed_norm", "final_norm", "beta", "beta_trainable", "alpha", "alpha_trainable", "qk_norm",
    "qk_norm_eps", "activation", "positions", "tie_head", "biases", "init",
)  # fmt: skip

# Keys that an older folder lacks, and what that means.
OPTIONAL = {
    "preset": "", "kv_heads": 0, "head_dim": 0, "mlp_hidden": 0, "branches": "sequential", "embed_proj": False,
    "embed_dim": 0, "embed_scale": 1.0, "beta_per_channel": False, "attn_skip": 1.0, "mlp_skip": 1.0,
    "logit_softcap": 0.0, "softmax": "standard", "attention_matrix": "softmax", "value_init": "random",
    "query_init": "random", "gate": "none", "gate_init": 0.5, "causal": True, "window": 0, "window_blocks": (),
    "rope_base": 10000.0, "rope_fraction": 1.0, "rope_scaling": "none", "head_bias": False, "dropout_embed": 0.0,
    "dropout_residual": 0.0, "dropout_attention": 0.0,
}  # fmt: skip

OFF = (None, 0, "", "none", "tokens", [], {}, [0, 0, 0])  # values with which a key that is not known here changes nothing


def read_table(table):
    """The keys of the table [model] as attributes, with defaults; ValueError for what cannot be computed here.

    The numbers of a choice are in `numbers`: `softmax` is "clipped" and `numbers["softmax"]` [-0.03, 1.0].
    """
    missing = [key for key in REQUIRED if key not in (table or {})]
    if missing:
        raise ValueError(f"config.json: model lacks {', '.join(missing)}")
    known = OPTIONAL | {key: value for key, value in table.items() if key in REQUIRED or key in OPTIONAL}
    m = SimpleNamespace(**known, numbers={})
    for key, value in table.items():
        if key not in known and value not in OFF:
            raise ValueError(f"config.json: modeling_evenkeel.py does not know model.{key} = {value!r}")
    for key, words in CHOICES.items():
        name, numbers = split_call(getattr(m, key))
        if (f"{name}/{len(numbers)}" if numbers else name) not in words:
            refuse(m, key, f"must be one of {', '.join(words)}")
        setattr(m, key, name)
        m.numbers[key] = numbers
    if not set(m.biases) <= set(PROJECTIONS):
        refuse(m, "biases", f"must list some of {', '.join(PROJECTIONS)}")
    if m.beta == "inv_sqrt_depth":
        m.beta = m.depth**-0.5
    if not isinstance(m.beta, (int, float)):
        refuse(m, "beta", 'must be a number or "inv_sqrt_depth"')

    m.kv_heads = m.kv_heads or m.heads
    m.head_dim = m.head_dim or m.width // m.heads
    m.inner = m.heads * m.head_dim  # channels of all heads
    m.embed_dim = 0 if m.embed_dim == m.width else m.embed_dim
    m.token_width = m.embed_dim or m.width
    m.rotated = round(m.rope_fraction * m.head_dim)
    m.parallel = m.branches != "sequential"
    if not m.mlp_hidden:
        full = m.mlp_ratio * m.width
        m.mlp_hidden = -(-2 * full // 24) * 8 if m.activation in GATED else full
    if m.embed_dim and m.embed_proj:
        refuse(m, "embed_proj", "must be false with embed_dim, which has a matrix of its own")
    if m.window and not m.causal:
        refuse(m, "window", "must be 0 without the causal mask")
    if m.attention_matrix == "shaped" and (m.window or not m.causal):
        refuse(m, "attention_matrix", "needs the whole causal mask")
    return m


def refuse(m, key, problem):
    raise ValueError(f"config.json: model.{key} {problem}, not {getattr(m, key)!r}")


def split_call(text):
    """("clipped", [-0.03, 1.0]) of "clipped(-0.03, 1)", ("clipped", []) of "clipped"."""
    parts = re.fullmatch(r"(\w+)\(([^()]*)\)", str(text))
    return (parts[1], [float(number) for number in parts[2].split(",")]) if parts else (str(text), [])


class EvenkeelConfig(PretrainedConfig):
    """config.json: the table [model], and the sizes under the names that transformers gives them."""

    model_type = "evenkeel"

    def __init__(self, model=None, **kwargs):
        self.model = model
        if model is not None:
            m = read_table(model)
            kwargs |= {
                "vocab_size": m.vocab, "hidden_size": m.width, "num_hidden_layers": m.depth,
                "num_attention_heads": m.heads, "max_position_embeddings": m.context,
                "tie_word_embeddings": m.tie_head,
            }  # fmt: skip
        super().__init__(**kwargs | {"use_cache": False})


# ------------------------------------------------------------------------------------------------- the network


def wide(x):
    """At least float32, for sums over channels or keys."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def vector(size, value):
    """A parameter of `size` channels that starts at `value`."""
    return nn.Parameter(torch.full((size,), float(value)))


def matrix(*shape):
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


class AroundIdentity(nn.Linear):
    """y = skip x + gain (x W^T + b)."""

    def __init__(self, fan_in, fan_out, bias):
        super().__init__(fan_in, fan_out, bias)
        self.skip, self.gain = vector(1, 1), vector(1, 1)

    def forward(self, x):
        return self.skip * x + self.gain * super().forward(x)


class Norm(nn.Module):
    """A norm over the last dimension; `rms_outside` has eps outside the root, the others inside it."""

    def __init__(self, kind, size, eps):
        super().__init__()
        self.kind, self.eps = kind, eps
        if kind == "dyt":
            self.alpha = vector(1, 0.5)
        if kind not in ("srms", "none"):
            self.gain = vector(1 if kind == "ss" else size, 1)
        if kind in ("layer", "dyt"):
            self.bias = vector(size, 0)

    def forward(self, x):
        if self.kind == "none":
            return x
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


def activate(m, x):
    return ACTIVATIONS[GATED.get(m.activation, m.activation)](x, *m.numbers["activation"])


def visible_keys(m, mask, window):
    """Which keys (last dimension) each query sees: [B, 1, T, T]; all behind it if `window` is 0."""
    t = torch.arange(mask.shape[1], device=mask.device)
    back = t[:, None] - t  # how far a key lies behind the query
    seen = back >= 0 if m.causal else torch.ones_like(back, dtype=torch.bool)
    if window:
        seen = seen & (back < window)
    return seen & mask.bool()[:, None, None, :]


def rope_angles(m, positions, dtype):
    """Cosine and sine [B, 1, T, r/2] of the angles by which RoPE turns r channels at `positions` [B, T]."""
    r, scaling, numbers = m.rotated, m.rope_scaling, m.numbers["rope_scaling"]
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
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    """RoPE of [B, H, T, head_dim]: pairs (c, c + r/2) of the first r channels."""
    r = 2 * cos.shape[-1]
    first, second, rest = x[..., : r // 2], x[..., r // 2 : r], x[..., r:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def probabilities(m, scores, seen):
    """Attention probabilities of scores [B, H, T, T]: zero where a key is not seen."""
    # not -inf: a padded query may see no key, and must stay finite
    scores = wide(scores).masked_fill(~seen, torch.finfo(scores.dtype).min)
    slots = F.pad(scores, (0, 1)) if m.softmax == "null_slot" else scores  # one more key, of score and value 0
    probs = torch.softmax(slots, dim=-1)[..., : scores.shape[-1]]
    if m.softmax == "clipped":
        gamma, eta = m.numbers["softmax"] or (-12 / m.context, 1.0)
        probs = ((eta - gamma) * probs + gamma).clamp(0.0, 1.0)
    return probs.masked_fill(~seen, 0.0)


class Shaped(nn.Module):
    """a I + b P - c C for each head, C uniform over the keys seen."""

    def __init__(self, heads):
        super().__init__()
        self.identity, self.attention, self.centre = vector(heads, 1), vector(heads, 1), vector(heads, 1)

    def forward(self, context, v, seen):
        uniform = seen.to(v.dtype) / seen.sum(-1, keepdim=True).clamp(min=1)
        a, b, c = (gain[:, None, None] for gain in (self.identity, self.attention, self.centre))
        return a * v + b * context - c * (uniform @ v)


class Gate(nn.Module):
    """A sigmoid factor on each head, or on each of its channels, computed from the attention input."""

    def __init__(self, m):
        super().__init__()
        self.kind, self.heads = m.gate, m.heads
        hidden, outputs = max(1, m.head_dim // 4), m.inner if m.gate == "elementwise" else m.heads
        if m.gate == "mlp":
            self.up = nn.Module()
            self.up.weight, self.up.bias = matrix(m.heads, hidden, m.head_dim), vector(m.heads * hidden, 0)
        if m.gate != "per_head":
            self.weight = matrix(outputs, {"per_token": m.head_dim, "mlp": hidden}.get(m.gate, m.width))
        self.bias = vector(outputs, 0)

    def forward(self, h, context):
        """`context` [B, T, inner], gated by the input `h` [B, T, d]."""
        logits = self.bias
        if self.kind in ("per_token", "mlp"):
            inputs = h.unflatten(-1, (self.heads, -1))
            if self.kind == "mlp":
                inputs = torch.einsum("bthc,hrc->bthr", inputs, self.up.weight)
                inputs = F.relu(inputs + self.up.bias.view(self.heads, -1))
            logits = logits + (inputs * self.weight).sum(-1)
        elif self.kind != "per_head":
            logits = F.linear(h, self.weight, logits)
        each = context.shape[-1] // logits.shape[-1]  # channels that share a gate
        return logits.sigmoid().repeat_interleave(each, dim=-1) * context


class Branch(nn.Module):
    """What attention and MLP share: a norm, which the block places, and the gain beta."""

    def __init__(self, m, norm_kind, skip):
        super().__init__()
        self.m = m
        self.norm = Norm(norm_kind, m.width, m.norm_eps)
        if m.beta_trainable and skip != 0:
            self.beta = vector(m.width if m.beta_per_channel else 1, m.beta)
        else:
            self.beta = m.beta if skip != 0 else 1.0  # a branch that goes on alone has none

    def weighed(self, x):
        return self.beta * F.dropout(x, self.m.dropout_residual, self.training)


class Attention(Branch):
    def __init__(self, m, layer, skip):
        super().__init__(m, m.first_norm if m.norm == "none" and layer == 0 else m.norm, skip)
        passing = AroundIdentity if m.value_init == "identity" else nn.Linear
        self.q = nn.Linear(m.width, m.inner, "q" in m.biases)
        self.k = nn.Linear(m.width, m.kv_heads * m.head_dim, "k" in m.biases)
        self.v = passing(m.width, m.kv_heads * m.head_dim, "v" in m.biases)
        self.out = passing(m.inner, m.width, "out" in m.biases)
        head_norm = {"rms": "rms_outside", "rms_inside": "rms"}.get(m.qk_norm, m.qk_norm)
        self.q_norm, self.k_norm = (Norm(head_norm, m.head_dim, m.qk_norm_eps) for _ in range(2))
        self.shaped = Shaped(m.heads) if m.attention_matrix == "shaped" else None
        self.gate = Gate(m) if m.gate != "none" else None

    def forward(self, h, seen, angles):
        m = self.m
        q, k, v = (f(h).unflatten(-1, (-1, m.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
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
        self.alpha = vector(1, m.alpha) if m.alpha_trainable else m.alpha
        self.up = nn.Linear(m.width, m.mlp_hidden, "up" in m.biases)
        self.gate = nn.Linear(m.width, m.mlp_hidden, "gate" in m.biases) if m.activation in GATED else None
        self.down = nn.Linear(m.mlp_hidden, m.width, "down" in m.biases)

    def forward(self, h):
        h = self.alpha * h
        up = self.up(h)
        hidden = activate(self.m, up) if self.gate is None else activate(self.m, self.gate(h)) * up
        return self.weighed(self.down(hidden))


class Block(nn.Module):
    def __init__(self, m, layer):
        super().__init__()
        self.m = m
        self.window = m.window if not m.window_blocks or layer in m.window_blocks else 0
        # a parallel block has one skip, and a beta on both branches
        self.attn = Attention(m, layer, 1.0 if m.parallel else m.attn_skip)
        self.mlp = Mlp(m, 1.0 if m.parallel else m.mlp_skip)

    def forward(self, x, seen, angles):
        m = self.m
        if not m.parallel:
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


def end_projection(m, fan_in, fan_out):
    """The matrix between token table and stream, or between stream and head."""
    return nn.Linear(fan_in, fan_out, bias=False) if m.embed_dim or m.embed_proj else nn.Identity()


class Embed(nn.Module):
    """Tokens and their positions to the stream [B, T, d]."""

    def __init__(self, m):
        super().__init__()
        self.m = m
        self.token = nn.Embedding(m.vocab, m.token_width)
        self.position = nn.Embedding(m.context, m.width) if m.positions == "learned" else None
        self.proj = end_projection(m, m.token_width, m.width)
        self.norm = Norm(m.embed_norm, m.width, m.norm_eps)

    def forward(self, ids, positions):
        x = self.m.embed_scale * self.token(ids)
        onto = self.position(positions) if self.position is not None else 0
        # a matrix that widens the tokens comes before the positions, one that turns the stream after them
        x = self.proj(x) + onto if self.m.embed_dim else self.proj(x + onto)
        return F.dropout(self.norm(x), self.m.dropout_embed, self.training)


class Head(nn.Linear):
    """The stream to logits [B, T, V]."""

    def __init__(self, m):
        super().__init__(m.token_width, m.vocab, m.head_bias)
        self.proj = end_projection(m, m.width, m.token_width)

    def forward(self, x):
        return super().forward(self.proj(x))


class EvenkeelForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = EvenkeelConfig
    # Where config.tie_word_embeddings is true: transformers 5 reads the pair, 4 its first name.
    _tied_weights_keys = {"head.weight": "embed.token.weight"}
    _no_split_modules = ["Block"]
    accepts_loss_kwargs = False  # the loss is a mean over the batch it is given

    def __init__(self, config):
        super().__init__(config)
        m = self.m = read_table(config.model)
        if m.beta_trainable and tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 49):
            raise ImportError("a learned beta needs transformers 4.49: earlier ones read every beta as a bias")
        self.embed = Embed(m)
        self.blocks = nn.ModuleList(Block(m, layer) for layer in range(m.depth))
        self.final_norm = Norm(m.final_norm, m.width, m.norm_eps)
        self.head = Head(m)
        self.post_init()

    def _init_weights(self, module):
        """Nothing: every parameter has its value from the start."""

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def get_input_embeddings(self):
        return self.embed.token

    def get_output_embeddings(self):
        return self.head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, logits_to_keep=0, **unused):
        """The whole sequence every time."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, labels=None, output_hidden_states=None,
        return_dict=None, logits_to_keep=0, **unused,
    ):  # fmt: skip
        """Logits of `input_ids` [B, T]; of the last tokens only with `logits_to_keep`.

        `attention_mask` [B, T] is 0 where there is padding. `labels` [B, T] are shifted here; -100 leaves one
        out of the loss. `hidden_states` are the embedding output and each block's, before the final norm.
        """
        m, tokens = self.m, input_ids.shape[1]
        if m.positions == "learned" and tokens > m.context:
            raise ValueError(f"{tokens} tokens are more than the {m.context} positions of this model")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if mask.shape != input_ids.shape:
            raise ValueError("attention_mask must have the shape of input_ids")
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        x = self.embed(input_ids, position_ids)
        angles = rope_angles(m, position_ids, x.dtype) if m.positions == "rope" else None
        seen = {window: visible_keys(m, mask, window) for window in {block.window for block in self.blocks}}
        hidden_states = [x]
        for block in self.blocks:
            x = block(x, seen[block.window], angles)
            hidden_states.append(x)
        logits = self.head(self.final_norm(x[:, -logits_to_keep:]))

        loss = None
        if labels is not None:
            loss = F.cross_entropy(wide(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = CausalLMOutput(loss, logits, tuple(hidden_states) if output_hidden_states else None)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
