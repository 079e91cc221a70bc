"""Golden file: every number format under every granularity on awkward tensors, in NumPy.

Writes quant/formats.safetensors. ranges.py searches with the quantisers of this script.

Inputs are float32. f32(v) is v rounded to float32; what is not f32 is float64; `/` and `*` of two float32 values
round to float32. Rounding is half to even throughout.

Integers of b bits
    asymmetric, from a range lo..hi: lo' = min(lo, 0), hi' = max(hi, 1e-8), D = (hi' - lo') / (2^b - 1),
        s = f32(max(D, 1e-8)), z = clamp(round(-lo' / D), 0, 2^b - 1), levels 0 .. 2^b - 1
    symmetric, from a peak c: s = f32(max(c / (2^(b-1) - 1), 1e-8)), z = 0, levels -2^(b-1) .. 2^(b-1) - 1
    unsigned, from a peak c, for tensors without a negative entry (-0.0 is none): s = f32(max(c / (2^b - 1), 1e-8)),
        z = 0, levels 0 .. 2^b - 1
    q = clamp(round(x / s) + z),  dq = s * (q - z)
Small floats: e4m3 (bias 7, largest 448, no infinity), e5m2 (bias 15, largest finite 57344), e2m1 (0, 0.5, 1, 1.5,
    2, 3, 4, 6). fp(v) is the nearest representable number, of two equally near the one with an even mantissa; subnormals are
    kept; what lies beyond the largest finite number becomes that. From a peak c: s = f32(max(c / largest, 1e-30)),
    value = fp(x / s), dq = s * value
MX, groups of 32: s = 2^e, e = clamp(floor(log2 max|x|) - emax, -127, 127) with emax 8 (mxfp8_e4m3), 15 (mxfp8_e5m2),
    2 (mxfp4_e2m1); a group of zeros has e = -127 (s is then a float32 subnormal); value = fp(x / s), dq = s * value
NVFP4, groups of 16: t = f32(max(c / (6 * 448), 1e-30)) with c the peak of the whole tensor,
    per group g = e4m3(f32(max|x| / 6) / t), step = g * t; where step > 0, value = e2m1(x / step) and dq = step * value,
    elsewhere both are 0

Granularities; each grid has a scale, and takes its range (min, max) or peak (max|x|) from its own values:
    tensor    one grid
    row       one grid per row of the last axis: a weight's output channels, an activation's tokens
    column    one grid per index of the last axis: an activation's channels
    group.N   runs of N along the last axis, row by row; the last of a row may be shorter
    static    one grid, with a given range and peak that some values exceed
Scales are stored in this order. Whether a tensor is unsigned is decided by all of it.

`about` has the cases, each with its list of granularities, and the orders of the formats: `int`, `uint`, `fp`,
`mx`. The first dimension F of what follows runs over them, n is the number of grids, and [F, ...x] adds the shape of
x to F.
    CASE.x                   float32, two or three dimensions
    CASE.int.GRAN.q          int16 [F, ...x];  .scale float32 [F, n];  .zero int16 [F, n];  .dq float32 [F, ...x]
    CASE.uint.GRAN.*         the same for the unsigned formats; z is not stored; only tensors without negative entries
    CASE.fp.GRAN.value       float32 [F, ...x], the unscaled elements;  .scale float32 [F, n];  .dq float32 [F, ...x];
                             not for groups
    CASE.mx.*                as fp, without a granularity in the name
    CASE.nvfp4.GRAN.value    float32 like x, .tensor float32 [1] (t), .group float32 [n] (g), .step float32 [n], .dq
                             like x; GRAN is `tensor` (c = max|x|) or `static`
    CASE.static.range        float64 [2] (lo, hi) and CASE.static.peak float64 [1], where `static` is a granularity
Zeros may have either sign. Granularities that repeat another one (groups as long as the row, the
row of a single row) are left out.
Everything follows from operations whose rounding IEEE fixes, so levels and elements are exact. Zero points of ranges
that are symmetric lie at a tie or within 1e-15 of one: they need the float64 operations in the order written.

Asserted here: fp against torch's casts on every bfloat16 value, on every midpoint of two neighbouring representable
numbers and the float32 values beside it, and against enumeration for e2m1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from common import made, out_directory, write

FLOOR, TINY = 1e-8, 1e-30  # of integer scales and ranges, and of the scales of small floats
MX_GROUP, NVFP4_GROUP = 32, 16
MX_EXPONENTS = (-127, 127)


@dataclass(frozen=True)
class Integer:
    bits: int
    kind: str  # asym, sym or unsigned

    @property
    def name(self):
        return f"int{self.bits}_{self.kind}"

    @property
    def levels(self):
        if self.kind == "sym":
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def grid(self, lo, hi):
        """(float32 scale, zero point) for a range; the kinds without a zero point see its peak."""
        top = self.levels[1]
        if self.kind != "asym":
            return np.float32(max(max(abs(lo), abs(hi)) / top, FLOOR)), 0
        lo, hi = min(lo, 0.0), max(hi, FLOOR)
        delta = (hi - lo) / top
        return np.float32(max(delta, FLOOR)), int(np.clip(np.rint(-lo / delta), 0, top))

    def round(self, x, scale, zero):
        """Levels of float32 `x`."""
        return np.clip(np.rint(x / scale).astype(np.float64) + zero, *self.levels).astype(np.int16)

    def fake(self, x, lo, hi):
        """float32 `x` after quantising and dequantising on the grid of a range."""
        scale, zero = self.grid(lo, hi)
        return scale * (self.round(x, scale, zero) - zero).astype(np.float32)


@dataclass(frozen=True)
class Float:
    name: str
    mantissa: int  # bits
    lowest: int  # exponent of the smallest normal number
    largest: float

    @property
    def highest(self):
        """Exponent of the largest number."""
        return int(np.floor(np.log2(self.largest)))

    def round(self, v):
        """Nearest representable number of each entry, float32; exact in float64 on the way."""
        v = np.asarray(v, np.float64)
        _, exponent = np.frexp(v)  # v = m 2^exponent with m in [1/2, 1)
        step = np.ldexp(1.0, np.maximum(exponent - 1, self.lowest) - self.mantissa)
        return np.clip(np.rint(v / step) * step, -self.largest, self.largest).astype(np.float32)

    def numbers(self):
        """All that are representable and not negative, ascending."""
        subnormal = [m * 2.0 ** (self.lowest - self.mantissa) for m in range(2**self.mantissa)]
        normal = [
            (1 + m / 2**self.mantissa) * 2.0**e
            for e in range(self.lowest, self.highest + 1)
            for m in range(2**self.mantissa)
        ]
        return np.array([v for v in subnormal + normal if v <= self.largest])

    def scale(self, peak):
        return np.float32(max(peak / self.largest, TINY))

    def fake(self, x, lo, hi):
        """float32 `x` after quantising and dequantising with the scale of a range's peak."""
        scale = self.scale(max(abs(lo), abs(hi)))
        return scale * self.round(x / scale)


E4M3 = Float("e4m3", mantissa=3, lowest=-6, largest=448.0)
E5M2 = Float("e5m2", mantissa=2, lowest=-14, largest=57344.0)
E2M1 = Float("e2m1", mantissa=1, lowest=0, largest=6.0)
BITS = (8, 4, 3, 2)
INTEGERS = [Integer(bits, kind) for bits in BITS for kind in ("asym", "sym")]
UNSIGNED = [Integer(bits, "unsigned") for bits in BITS]
FLOATS = [E4M3, E5M2, E2M1]


def parts(shape, granularity):
    """The flat indices of each grid, in the order in which scales are stored."""
    index = np.arange(math.prod(shape)).reshape(-1, shape[-1])
    kind, _, size = granularity.partition(".")
    if kind == "tensor":
        return [index.ravel()]
    if kind == "row":
        return list(index)
    if kind == "column":
        return list(index.T)
    starts = range(0, shape[-1], int(size))
    return [row[start : start + int(size)] for row in index for start in starts]


def peak(x):
    return float(np.abs(x).max())


def mx_scale(x, fmt):
    """2^e as float32; exponents come from the bits, so that they are exact."""
    exponent = int(np.abs(x).max().view(np.uint32) >> 23) - 127
    return np.ldexp(np.float32(1), int(np.clip(exponent - fmt.highest, *MX_EXPONENTS)))


def quantised_integers(x, fmt, grids):
    """q, scale, zero, dq of one format; `grids` holds (indices, lo, hi)."""
    flat = x.ravel()
    q, dq = np.zeros(flat.size, np.int16), np.zeros(flat.size, np.float32)
    scales, zeros = [], []
    for at, lo, hi in grids:
        scale, zero = fmt.grid(lo, hi)
        q[at] = fmt.round(flat[at], scale, zero)
        dq[at] = scale * (q[at] - zero).astype(np.float32)
        scales.append(scale)
        zeros.append(zero)
    return {
        "q": q.reshape(x.shape),
        "scale": np.array(scales, np.float32),
        "zero": np.array(zeros, np.int16),
        "dq": dq.reshape(x.shape),
    }


def quantised_floats(x, fmt, grids):
    """value, scale, dq of one format; `grids` holds (indices, scale)."""
    flat = x.ravel()
    value, dq = np.zeros(flat.size, np.float32), np.zeros(flat.size, np.float32)
    for at, scale in grids:
        value[at] = fmt.round(flat[at] / scale)
        dq[at] = scale * value[at]
    return {
        "value": value.reshape(x.shape),
        "scale": np.array([scale for _, scale in grids], np.float32),
        "dq": dq.reshape(x.shape),
    }


def quantised_nvfp4(x, whole):
    """value, tensor, group, step, dq; `whole` is the peak that the tensor's scale is for."""
    flat = x.ravel()
    t = np.float32(max(whole / (E2M1.largest * E4M3.largest), TINY))
    value, dq = np.zeros(flat.size, np.float32), np.zeros(flat.size, np.float32)
    groups, steps = [], []
    for at in parts(x.shape, f"group.{NVFP4_GROUP}"):
        g = E4M3.round(np.abs(flat[at]).max() / np.float32(6) / t)[()]
        step = g * t
        if step > 0:
            value[at] = E2M1.round(flat[at] / step)
            dq[at] = step * value[at]
        groups.append(g)
        steps.append(step)
    return {
        "value": value.reshape(x.shape),
        "tensor": np.array([t]),
        "group": np.array(groups, np.float32),
        "step": np.array(steps, np.float32),
        "dq": dq.reshape(x.shape),
    }


def stacked(results, drop=()):
    """One dict of arrays with a first dimension over `results`."""
    return {key: np.stack([r[key] for r in results]) for key in results[0] if key not in drop}


def granularities(shape):
    """Those under which a tensor of this shape is quantised differently."""
    rows, width = math.prod(shape[:-1]), shape[-1]
    groups = [f"group.{n}" for n in (NVFP4_GROUP, MX_GROUP) if n < width]
    return ["tensor", *["row"] * (rows > 1), *["column"] * (width > 1), *groups]


def dynamic_ranges(x, granularity):
    """(indices, lo, hi) of each grid from its own values."""
    flat = x.ravel()
    return [(at, float(flat[at].min()), float(flat[at].max())) for at in parts(x.shape, granularity)]


def results(x, granularity, ranges, peaks):
    """Kind -> name -> array of the integers and scaled floats under one granularity.

    `ranges` (indices, lo, hi) are for the asymmetric formats, `peaks` (indices, c) for the others.
    """
    symmetric = [(at, -c, c) for at, c in peaks]
    found = {
        f"int.{granularity}": stacked(
            [quantised_integers(x, f, ranges if f.kind == "asym" else symmetric) for f in INTEGERS]
        )
    }
    if not (x < 0).any():
        found[f"uint.{granularity}"] = stacked([quantised_integers(x, f, symmetric) for f in UNSIGNED], {"zero"})
    if not granularity.startswith("group"):
        found[f"fp.{granularity}"] = stacked(
            [quantised_floats(x, f, [(at, f.scale(c)) for at, c in peaks]) for f in FLOATS]
        )
    return found


def golden(x, static):
    """Name -> array of one tensor."""
    found = {}
    for granularity in granularities(x.shape):
        ranges = dynamic_ranges(x, granularity)
        found |= results(x, granularity, ranges, [(at, max(-lo, hi)) for at, lo, hi in ranges])
    groups = parts(x.shape, f"group.{MX_GROUP}")
    found["mx"] = stacked(
        [quantised_floats(x, f, [(at, mx_scale(x.ravel()[at], f)) for at in groups]) for f in FLOATS]
    )
    found["nvfp4.tensor"] = quantised_nvfp4(x, peak(x))
    if static:
        # most of the range, from either side, so that levels clamp
        lo, hi, c = 0.6 * float(x.min()), 0.7 * float(x.max()), 0.5 * peak(x)
        (at,) = parts(x.shape, "tensor")
        found |= results(x, "static", [(at, lo, hi)], [(at, c)])
        found["nvfp4.static"] = quantised_nvfp4(x, c)
        found["static"] = {"range": np.array([lo, hi]), "peak": np.array([c])}
    return {"x": x} | {f"{kind}.{key}": v for kind, arrays in found.items() for key, v in arrays.items()}


def tie_cases():
    """Tensors whose scales divide their entries into exact halves."""
    steps = {bits: 1785 / (2**bits - 1) * 0.25 for bits in BITS}  # all dyadic, and so are their halves
    lo, hi = -steps[2], 1785 * 0.25 - steps[2]
    odd = [(2 * k + 1) * step / 2 for step in steps.values() for k in (-3, -2, -1, 0, 1, 2, 5)]
    asym = np.array([v for v in [lo, hi, *odd] if lo <= v <= hi])
    c = 127 * 7 * 3 / 16
    odd = [(2 * k + 1) * c / top / 2 for top in (127, 7, 3, 1) for k in (-64, -4, -2, -1, 0, 1, 3, 7)]
    sym = np.array([v for v in [c, *odd] if abs(v) <= c])
    small = []
    for fmt in FLOATS:
        numbers = fmt.numbers()
        middles = (numbers[:-1] + numbers[1:]) / 2
        chosen = middles if fmt is E2M1 else middles[[0, 1, 2, 3, 4, 5, 9, 10, -12, -11, -2, -1]]
        signed = chosen * np.where(np.arange(chosen.size) % 2, -1, 1)
        small.append(np.resize(np.append(signed, fmt.largest), 14))
    # t = 1; the second group's scale, 17, is halfway between 16 and 18
    ties = np.array([0.25, -0.75, 1.25, -1.75, 2.5, -3.5, 5.0, 6.0])
    nvfp4 = np.stack([448 * ties, np.append(16 * ties[:-1], 6 * 17)])
    return {
        "ties_asym": asym[None],
        "ties_sym": sym[None],
        "ties_float": np.stack(small),
        "ties_nvfp4": nvfp4,
    }


def cases(rng):
    outlier = rng.standard_normal((2, 10))
    outlier[1, 3] = 1000
    mixed = rng.standard_normal((4, 12))
    mixed[1], mixed[2], mixed[3] = 0, 1e-9 * mixed[2], 1e4 * mixed[3]
    huge = rng.uniform(-1e38, 1e38, (2, 8))  # the negative side shorter, or two asymmetric bits dequantise to -4e38
    huge[0, 5], huge[1, 2] = 3e38, 2.5e38
    return tie_cases() | {
        "gaussian": 0.3 * rng.standard_normal((5, 37)),
        "heavy_tailed": rng.standard_t(2, (2, 37)),
        "outlier": outlier,
        "three_axes": 2 + rng.standard_normal((2, 3, 5)),
        "zeros": np.zeros((2, 3)),
        "constant": np.full((2, 5), 0.3),
        "constant_negative": np.full((2, 5), -0.7),
        "positive": 1 + 0.1 * rng.standard_normal((2, 17)),
        "negative": -0.2 - np.abs(rng.standard_normal((2, 7))),
        "zero_and_positive": np.maximum(rng.standard_normal((3, 6)), -0.0),
        "one_element": np.array([[0.7]]),
        "one_negative": np.array([[-0.7]]),
        "width_one": rng.standard_normal((5, 1)),
        "subnormal": rng.standard_normal((2, 7)) * [[1e-39], [1e-44]],
        "around_floor": rng.standard_normal((3, 5)) * [[1e-9], [1e-8], [1e-7]],
        "smallest_normal": np.array([[2.0**-126, -(2.0**-125), 3 * 2.0**-127, 2.0**-149, 0.0]]),
        "huge": huge,
        "mixed_rows": mixed,
        "negative_zeros": np.array([[-0.0, 1.5, -0.0, -0.3], [-0.0, 0.0, -0.0, 0.0]]),
        "unsigned_zeros": np.array([[-0.0, 1.5, 0.3], [-0.0, 0.0, 0.2]]),
    }


STATIC = ("ties_asym", "outlier", "three_axes", "positive")


def check_rounding():
    """`Float.round` against torch and against enumeration."""
    dense = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    dense = dense[np.isfinite(dense)]
    for fmt, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2), (E2M1, None)):
        numbers = fmt.numbers()
        middles = ((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)
        beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
        grid = np.concatenate([dense, middles, -middles, *beside, *(-b for b in beside), numbers.astype(np.float32)])
        ours = fmt.round(grid)
        assert (np.abs(ours[np.abs(grid) >= fmt.largest]) == fmt.largest).all(), fmt.name
        held = np.clip(grid, -fmt.largest, fmt.largest)  # torch makes what lies far beyond NaN or infinity
        if dtype is None:
            distance = np.abs(np.abs(held.astype(np.float64))[:, None] - numbers)
            odd = np.arange(numbers.size) % 2  # the index's last bit is the mantissa's
            theirs = np.copysign(numbers[np.lexsort((np.broadcast_to(odd, distance.shape), distance))[:, 0]], held)
        else:
            assert numbers.size == 127 - (0 if fmt is E4M3 else 3), fmt.name
            theirs = torch.from_numpy(held).to(dtype).float().numpy()
        assert np.array_equal(ours, theirs), fmt.name
        print(f"{fmt.name}: {grid.size} roundings agree")


def main():
    out = made(out_directory(__doc__) / "quant")
    check_rounding()
    tensors, index = {}, {}
    for case, x in cases(np.random.default_rng(11)).items():
        x = x.astype(np.float32)
        index[case] = granularities(x.shape) + ["static"] * (case in STATIC)
        tensors |= {f"{case}.{key}": value for key, value in golden(x, case in STATIC).items()}
    about = {
        "cases": index,
        "int": [f.name for f in INTEGERS],
        "uint": [f.name for f in UNSIGNED],
        "fp": [f.name for f in FLOATS],
        "mx": ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp4_e2m1"],
    }
    write(out / "formats.safetensors", tensors, about)


if __name__ == "__main__":
    main()
