"""Golden files: the whole simulated W8A8 recipe on two of the models of model_steps.py.

Writes w8a8_pre_ln.safetensors and w8a8_op.safetensors.

The parameters are the initial ones of model_steps.py, with one outlier channel made on purpose: channel 5 of
embed.token.weight times 12. The quantisers are those of quantisers.py (see there for every formula).

 1. Weights, each per tensor: token and position embedding, q, k, v, out, up, down, and the gain of every norm
    (block norms, embedding norm, QK-norms, final norm). In float: head, biases, beta.
 2. Calibration, one joint pass over four batches with the quantised weights: each activation quantiser, when
    the forward pass comes to it, updates its running range with what it sees (its inputs are quantised
    already) and quantises with the updated range.
 3. Ranges fixed; the evaluation batch runs through the quantised model. Logits and loss in float.

Places per block, beside `embed` and `final_norm`:
    pre_ln  attn.in, q, k, v, scores, probs, context, out, resid_mid, mlp.in, mlp.hidden, mlp.out, resid   (13)
    op      attn.q, k, v, q_norm, k_norm, scores, probs, context, branch, resid_mid, mlp.hidden, mlp.branch,
            resid   (13); the branch is quantised once, after beta, so attn.out and mlp.out are not; attn.in
            and mlp.in are the stream, quantised already; `embed` is the output of the embedding norm, and the
            raw sum before it is not quantised.
attn.scores holds q k^T / sqrt(d_head) before the mask, entries above the diagonal included; attn.probs includes
the masked zeros. Statistics inside norms and the softmax are in float.

A rounding that lies near a tie falls the other way under another order of summation, and moves what comes
after it by a fraction of a step: with arbitrary tokens, two correct float32 implementations differ in about
one rounding, and then by as much as 0.2 in a logit. The seeds of the token batches are therefore chosen (by
`--search`, which prints the best) so that every rounding keeps its distance: `margin` [1] is the smallest
distance from a tie, relative to the larger of the value and its tensor's RMS, of all roundings on the way,
zero points included. Errors of a float32 implementation (about 1e-7) should turn none of them.

Measured here: the recipe is repeated 32 times with every activation changed, entry by entry, by 1e-7 N(0, 1)
times the larger of its size and the RMS, before it comes to its place, and once in float64. Stored (float64):
`spread.range.SITE` [1], the largest change of either end; `spread.logits` [1] (largest entry) and `spread.loss`
[1]. A test should allow a small multiple of these. The same with 1e-6 is printed: that is what flipped
roundings do. Every `wscale` is exact.

Keys: param.NAME; calib.0..3 (int64 [4, 12]); eval (int64 [6, 13]: inputs [:, :-1], targets [:, 1:]);
wscale.NAME (float64 [1], a float32 value widened); range.SITE (float64 [2], running lo and hi after the four
batches, before lo <= 0 <= hi is enforced); scale.SITE (float64 [1], float32 widened); zero.SITE (int32 [1]);
loss_float, loss_w8a8 (float64 [1]; float32 logits, loss in float64); logits_float, logits_w8a8 (float32
[6, 12, 37]).
"""

import numpy as np
import torch

from common import argument_parser, made, write
from model_steps import CONTEXT, DEPTH, VARIANTS, forward, initial_parameters, mean_loss, setup, token_sequences
from quantisers import ActivationRange, dequantise_activation, dequantise_weight, weight_search

OUTLIER_CHANNEL, OUTLIER_FACTOR = 5, 12.0
CALIBRATION_BATCHES, CALIBRATION_SEQUENCES, EVAL_SEQUENCES = 4, 4, 6
JITTERS, JITTER, FLIPPING_JITTER = 32, 1e-7, 1e-6
BATCH_SEEDS = {"pre_ln": 8373, "op": 11356}  # the best of 12000, see --search
ATTENTION = ("attn.q", "attn.k", "attn.v")
INNER = ("attn.scores", "attn.probs", "attn.context")
PLACES = {
    "pre_ln": ("attn.in", *ATTENTION, *INNER, "attn.out", "resid_mid", "mlp.in", "mlp.hidden", "mlp.out", "resid"),
    "op": (
        *ATTENTION, "attn.q_norm", "attn.k_norm", *INNER, "attn.branch", "resid_mid", "mlp.hidden",
        "mlp.branch", "resid",
    ),
}  # fmt: skip


def sites(variant):
    """Names of every quantised activation, in order of the forward pass."""
    blocks = [f"blocks.{i}.{place}" for i in range(DEPTH) for place in PLACES[variant.name]]
    return ["embed", *blocks, "final_norm"]


def is_quantised_weight(name):
    return name != "head.weight" and name.endswith((".weight", ".gain"))


def quantise_weights(params):
    """(parameters with the quantised ones replaced, name -> float32 scale, smallest lead of a search)"""
    result, scales, leads = dict(params), {}, []
    for name in filter(is_quantised_weight, params):
        x = params[name].numpy()
        _, scale, unsigned, lead = weight_search(x)
        result[name] = torch.from_numpy(dequantise_weight(x, scale, unsigned))
        scales[name] = scale
        leads.append(lead)
    return result, scales, min(leads)


def tie_distance(levels):
    """How far the nearest of `levels` is from n + 1/2, relative to the larger of itself and the RMS."""
    size = np.maximum(np.abs(levels), np.sqrt((levels * levels).mean()))
    return float((np.abs(levels - np.floor(levels) - 0.5) / np.maximum(size, 1)).min())


class ActivationQuantisers:
    """All activation quantisers of one model, used as the `at` of a forward pass.

    `jitter` is (relative size, generator) of noise added to each activation. `margin` is the smallest
    distance of a rounding from a tie so far.
    """

    def __init__(self, names, jitter=None):
        self.ranges = {name: ActivationRange() for name in names}
        self.calibrating = True
        self.jitter = jitter
        self.margin = np.inf

    def __call__(self, site, x):
        if self.jitter is not None:
            relative, generator = self.jitter
            # exact zeros (masked probabilities, ReLU) are exact in every implementation
            size = torch.where(x == 0, 0.0, torch.maximum(x.abs(), (x * x).mean().sqrt()))
            x = x + relative * size * torch.randn(x.shape, generator=generator)
        running = self.ranges.get(site)
        if running is None:
            return x
        values = x.numpy()
        if self.calibrating:
            running.update(values)
        scale, zero = running.grid()
        self.watch(values / scale, zero, running)
        return torch.from_numpy(dequantise_activation(values, scale, zero))

    def watch(self, levels, zero, running):
        """Note how near to a tie the zero point and the levels come; clamped levels and zeros are safe."""
        lo, hi = min(running.lo, 0.0), running.hi
        self.margin = min(self.margin, tie_distance(np.array([-lo / (hi - lo) * 255])))
        at_risk = levels[(levels + zero > -1) & (levels + zero < 256) & (levels != 0)]
        self.margin = min(self.margin, tie_distance(at_risk.astype(np.float64)))


def loss_of(logits, targets):
    return mean_loss(logits.double(), targets).item()


def recipe(variant, weights, calibration, evaluation, jitter=None):
    """(quantisers after calibration, evaluation logits) for quantised `weights`, in their dtype."""
    quantisers = ActivationQuantisers(sites(variant), jitter)
    for batch in calibration:
        forward(variant, weights, batch, quantisers)
    quantisers.calibrating = False
    return quantisers, forward(variant, weights, evaluation[:, :-1], quantisers)


def spread_of(ranges, logits, loss, targets, others):
    """Largest departure of the runs `others` from this one, per range, of the logits, and of the loss."""
    spread = {f"spread.range.{site}": 0.0 for site in ranges}
    spread |= {"spread.logits": 0.0, "spread.loss": 0.0}

    def widen(key, value):
        spread[key] = max(spread[key], value)

    for other_quantisers, other_logits in others:
        for site, r in ranges.items():
            other = other_quantisers.ranges[site]
            widen(f"spread.range.{site}", max(abs(r.lo - other.lo), abs(r.hi - other.hi)))
        widen("spread.logits", (logits.double() - other_logits.double()).abs().max().item())
        widen("spread.loss", abs(loss - loss_of(other_logits, targets)))
    return spread


def parameters(variant):
    """The initial parameters of model_steps.py, with the outlier."""
    params = initial_parameters(variant, torch.Generator().manual_seed(variant.seed))
    params["embed.token.weight"][:, OUTLIER_CHANNEL] *= OUTLIER_FACTOR
    return params


def token_batches(seed):
    """(calibration batches, evaluation batch)"""
    generator = torch.Generator().manual_seed(seed)
    calibration = [
        token_sequences(generator, CALIBRATION_SEQUENCES, CONTEXT) for _ in range(CALIBRATION_BATCHES)
    ]
    return calibration, token_sequences(generator, EVAL_SEQUENCES, CONTEXT + 1)


@torch.no_grad()
def search(variant, seeds):
    """Print the seeds below `seeds` whose roundings keep farthest from a tie."""
    weights, _, _ = quantise_weights(parameters(variant))
    margins = {seed: recipe(variant, weights, *token_batches(seed))[0].margin for seed in range(seeds)}
    best = sorted(margins, key=margins.get, reverse=True)[:3]
    print(f"{variant.name}: " + ", ".join(f"seed {seed} margin {margins[seed]:.1e}" for seed in best))


@torch.no_grad()
def golden(variant):
    """Name -> array for one model."""
    params = parameters(variant)
    calibration, evaluation = token_batches(BATCH_SEEDS[variant.name])
    targets = evaluation[:, 1:]

    weights, scales, lead = quantise_weights(params)
    quantisers, logits = recipe(variant, weights, calibration, evaluation)
    ranges = quantisers.ranges
    float_logits = forward(variant, params, evaluation[:, :-1])
    loss_float, loss = loss_of(float_logits, targets), loss_of(logits, targets)

    def jittered(relative):
        generators = (torch.Generator().manual_seed(j) for j in range(JITTERS))
        return [recipe(variant, weights, calibration, evaluation, (relative, g)) for g in generators]

    double = {n: w.double() for n, w in weights.items()}
    others = [*jittered(JITTER), recipe(variant, double, calibration, evaluation)]
    spread = spread_of(ranges, logits, loss, targets, others)
    print(f"== {variant.name}: {len(scales)} weight and {len(ranges)} activation quantisers")
    print(f"   loss {loss_float:.6f} float, {loss:.6f} W8A8")
    print(f"   largest change of a logit {(logits - float_logits).abs().max().item():.3f}")
    print(f"   weight search: smallest lead over the next candidate {lead:.1e}")
    print(f"   margin {quantisers.margin:.1e}")
    flipped = spread_of(ranges, logits, loss, targets, jittered(FLIPPING_JITTER))
    double_only = spread_of(ranges, logits, loss, targets, others[-1:])
    for label, s in (("float64", double_only), ("jitter 1e-7 and float64", spread), ("jitter 1e-6", flipped)):
        steps = max(s[f"spread.range.{site}"] / float(r.grid()[0]) for site, r in ranges.items())
        loss_and_logits = f"loss {s['spread.loss']:.1e}, logits {s['spread.logits']:.1e}"
        print(f"   spread, {label}: {loss_and_logits}, ranges {steps:.1e} of a step")
    tensors = {"margin": np.array([quantisers.margin])}
    tensors |= {f"param.{n}": p.numpy() for n, p in params.items()}
    tensors |= {f"calib.{b}": batch.numpy() for b, batch in enumerate(calibration)}
    tensors |= {"eval": evaluation.numpy()}
    tensors |= {f"wscale.{n}": np.array([s], np.float64) for n, s in scales.items()}
    tensors |= {name: np.array([value]) for name, value in spread.items()}
    for site, r in ranges.items():
        scale, zero = r.grid()
        tensors[f"range.{site}"] = np.array([r.lo, r.hi])
        tensors[f"scale.{site}"] = np.array([scale], np.float64)
        tensors[f"zero.{site}"] = np.array([zero], np.int32)
    return tensors | {
        "loss_float": np.array([loss_float]),
        "loss_w8a8": np.array([loss]),
        "logits_float": float_logits.numpy(),
        "logits_w8a8": logits.numpy(),
    }


def main():
    parser = argument_parser(__doc__)
    parser.add_argument("--search", type=int, metavar="N", help="only look for the best of N batch seeds")
    args = parser.parse_args()
    setup()
    about = {"outlier_channel": OUTLIER_CHANNEL, "outlier_factor": OUTLIER_FACTOR, "head": "float"}
    for name, places in PLACES.items():
        if args.search:
            search(VARIANTS[name], args.search)
            continue
        tensors = golden(VARIANTS[name])
        write(made(args.out) / f"w8a8_{name}.safetensors", tensors, about | {"variant": name, "places": places})


if __name__ == "__main__":
    main()
