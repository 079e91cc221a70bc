"""Golden file: the 8-bit weight and activation quantisers on tensors with awkward ranges, in NumPy.

Writes quantisers.safetensors. The two quantisers are also what w8a8_model.py puts into a model.

Rounding is half to even throughout; tensors are float32.

Weights, symmetric, one scale per tensor, range by a grid:
    c_i = i (max|x| + 0.5) / 100, i = 1..100 (float64; the step is computed first, then multiplied by i)
    signed if min x < 0: s = c / 127, levels -128..127; otherwise unsigned: s = c / 255, levels 0..255
    q = clamp(round(x / s)),  dequantised = s q
    the candidate with the smallest sum of squared errors wins, the first of equals.
  s is rounded to float32 before it is used; x / s and s q are float32 operations; the error x - s q is taken
  in float64 and squared and summed in float64.

Activations, asymmetric, one scale and zero point per tensor, static:
    per batch: the percentiles 0.001 and 99.999 of the flattened tensor, linearly interpolated (float64)
    running range: the first batch sets it, afterwards r <- 0.9 r + 0.1 batch (float64)
    lo = min(running lo, 0), hi = max(running hi, 1e-8), delta = (hi - lo) / 255
    s = max(delta, 1e-8),  z = clamp(round(-lo / delta), 0, 255)       (float64; s then rounded to float32)
    q = clamp(round(x / s) + z, 0, 255),  dequantised = s (q - z)      (float32)
  The running range is stored as it is, before lo <= 0 <= hi is enforced: an EMA of clipped ranges would
  differ when batches lie on different sides of zero (case `crossing`). The floor of 1e-8 under hi keeps
  delta above zero for an all-zero tensor.

Keys: w.CASE.x (float32), w.CASE.scale (float64 [1], the float32 value widened), w.CASE.candidate (int32 [1], i),
w.CASE.q (int32), w.CASE.dq (float32); a.CASE.batch.0..3 (float32), a.CASE.lo and a.CASE.hi (float64 [4], the
running range after each batch), a.CASE.scale (float64 [1], float32 widened), a.CASE.zero (int32 [1]), and
a.CASE.q (int32), a.CASE.dq (float32): batch 3 quantised with the final range.
"""

import numpy as np

from common import out_directory, write

CANDIDATES, MARGIN = 100, 0.5
MOMENTUM, LOW, HIGH = 0.9, 0.001, 99.999
FLOOR = 1e-8


def round_weight(x, scale, unsigned):
    """Integer levels (int32) of float32 `x` under the float32 `scale`."""
    low, high = (0, 255) if unsigned else (-128, 127)
    return np.clip(np.rint(x / scale), low, high).astype(np.int32)


def weight_search(x):
    """(candidate i, float32 scale, unsigned, lead) of a weight.

    `lead` is how much worse the next different scale is, relative to the best cost: how robust the choice is.
    """
    unsigned = bool(x.min() >= 0)
    step = (float(np.abs(x).max()) + MARGIN) / CANDIDATES
    costs = []
    for i in range(1, CANDIDATES + 1):
        scale = np.float32(i * step / (255 if unsigned else 127))
        error = x.astype(np.float64) - dequantise_weight(x, scale, unsigned)
        costs.append(float((error * error).sum()))
    best = int(np.argmin(costs))
    others = [c for c in costs if c != costs[best]]
    lead = (min(others) - costs[best]) / costs[best] if others and costs[best] > 0 else np.inf
    return best + 1, np.float32((best + 1) * step / (255 if unsigned else 127)), unsigned, lead


def dequantise_weight(x, scale, unsigned):
    """float32 `x` after quantising and dequantising."""
    return scale * round_weight(x, scale, unsigned).astype(np.float32)


class ActivationRange:
    """The running range of one activation quantiser."""

    def __init__(self):
        self.lo = self.hi = None

    def update(self, x):
        lo, hi = np.percentile(x.astype(np.float64).ravel(), [LOW, HIGH], method="linear")
        if self.lo is None:
            self.lo, self.hi = float(lo), float(hi)
        else:
            self.lo = MOMENTUM * self.lo + (1 - MOMENTUM) * float(lo)
            self.hi = MOMENTUM * self.hi + (1 - MOMENTUM) * float(hi)

    def grid(self):
        """(float32 scale, integer zero point)"""
        lo, hi = min(self.lo, 0.0), max(self.hi, FLOOR)
        delta = (hi - lo) / 255
        zero = int(np.clip(np.rint(-lo / delta), 0, 255))
        return np.float32(max(delta, FLOOR)), zero


def round_activation(x, scale, zero):
    """Integer levels (int32) of `x`."""
    return np.clip(np.rint(x / scale) + np.float32(zero), 0, 255).astype(np.int32)


def dequantise_activation(x, scale, zero):
    """`x` after quantising and dequantising, in its own precision."""
    return scale * (round_activation(x, scale, zero) - zero).astype(x.dtype)


def weight_cases(rng):
    heavy = rng.standard_t(3, (12, 10))
    heavy[:, 4] *= 40
    return {
        "gaussian": 0.3 * rng.standard_normal((12, 10)),
        "gaussian_small": 0.02 * rng.standard_normal((12, 10)),
        "heavy_tailed": heavy,
        "positive": 1 + 0.1 * rng.standard_normal(24),
        "zeros": np.zeros((4, 5)),
        "constant": np.full((4, 5), 0.3),
        "tiny": 1e-9 * rng.standard_normal((4, 5)),
        "one_element": np.array([0.7]),
        "one_negative": np.array([-0.7]),
        "negative": -np.abs(rng.standard_normal((6, 7))) - 0.2,
        "zero_and_positive": np.maximum(rng.standard_normal((6, 7)), 0),
    }


def activation_cases(rng):
    def batches(make):
        return [make(b) for b in range(4)]

    def heavy(_):
        x = rng.standard_t(3, (40, 12))
        x[:, 7] = 60 + 20 * x[:, 7]
        return x

    # lo = -16 and hi = 47.75 twice in each batch, so delta is 0.25, and odd eighths fall halfway
    ties = np.concatenate([[-16, -16, 47.75, 47.75], np.arange(-120, 360, 3) * 0.125])
    return {
        "gaussian": batches(lambda b: (1 + 0.2 * b) * rng.standard_normal((40, 12))),
        "heavy_tailed": batches(heavy),
        "positive": batches(lambda b: 1 + 0.1 * rng.standard_normal((10, 24))),
        "zeros": batches(lambda b: np.zeros((6, 5))),
        "constant": batches(lambda b: np.full((6, 5), 0.3)),
        "tiny": batches(lambda b: 1e-9 * rng.standard_normal((6, 5))),
        "one_element": [np.array([v]) for v in (0.5, -0.25, 1.5, 0.75)],
        "negative": batches(lambda b: -np.abs(rng.standard_normal((10, 12))) - 0.2),
        "crossing": [o + 0.1 * rng.standard_normal((10, 12)) for o in (0.6, -0.5, 0.7, 0.4)],
        "beyond_range": [s * rng.standard_normal((10, 12)) for s in (1.0, 1.0, 1.0, 4.0)],
        "ties": batches(lambda b: ties),
    }


def main():
    out = out_directory(__doc__)
    rng = np.random.default_rng(7)
    tensors = {}
    for case, x in weight_cases(rng).items():
        x = x.astype(np.float32)
        candidate, scale, unsigned, lead = weight_search(x)
        print(f"w.{case}: candidate {candidate}, scale {scale:.6g}, unsigned {unsigned}, lead {lead:.1e}")
        tensors |= {
            f"w.{case}.x": x,
            f"w.{case}.scale": np.array([scale], np.float64),
            f"w.{case}.candidate": np.array([candidate], np.int32),
            f"w.{case}.q": round_weight(x, scale, unsigned),
            f"w.{case}.dq": dequantise_weight(x, scale, unsigned),
        }
    for case, batches in activation_cases(rng).items():
        batches = [x.astype(np.float32) for x in batches]
        running, lows, highs = ActivationRange(), [], []
        for x in batches:
            running.update(x)
            lows.append(running.lo)
            highs.append(running.hi)
        scale, zero = running.grid()
        levels = batches[3] / scale
        half = np.abs(np.abs(levels - np.trunc(levels)) - 0.5)
        print(
            f"a.{case}: range {running.lo:.4g} .. {running.hi:.4g}, scale {scale:.6g}, zero {zero},"
            f" nearest to a tie {half.min():.1e}"
        )
        tensors |= {f"a.{case}.batch.{b}": x for b, x in enumerate(batches)}
        tensors |= {
            f"a.{case}.lo": np.array(lows),
            f"a.{case}.hi": np.array(highs),
            f"a.{case}.scale": np.array([scale], np.float64),
            f"a.{case}.zero": np.array([zero], np.int32),
            f"a.{case}.q": round_activation(batches[3], scale, zero),
            f"a.{case}.dq": dequantise_activation(batches[3], scale, zero),
        }
    about = {
        "candidates": CANDIDATES, "margin": MARGIN, "momentum": MOMENTUM, "percentiles": [LOW, HIGH],
        "scale_floor": FLOOR, "range_floor": FLOOR,
    }  # fmt: skip
    write(out / "quantisers.safetensors", tensors, about)


if __name__ == "__main__":
    main()
