"""Golden file: every method that picks the range of a grid, in NumPy.

Writes quant/ranges.safetensors. Formats, grids and granularities are those of formats.py; f32 as there. All that is
not said to be float32 is float64. A range is (lo, hi); a symmetric grid or a small float uses its peak
c = max(|lo|, |hi|).

Methods for activations, which come in three batches
    min_max             smallest and largest of all values
    running             min and max per batch; the first sets r, afterwards r = 0.9 r + 0.1 batch
    running_percentile  the percentiles 100 - p and p per batch, interpolated linearly between the order statistics
                        around rank p/100 (N - 1), then as running
    percentile          the same percentiles of all values of all batches
    sketched            the percentiles of the sketch
    mse, kl             a search on the sketch
The sketch counts values by the upper 16 bits of their float32 (-0 counts as +0). A bucket holds the magnitudes from its
    16 bits' value up to the next such value, for negative ones mirrored: low < high are its edges by value. Beside the
    counts it keeps the exact smallest and largest value.
    Percentile: r = p/100 (N - 1); in the bucket that holds the value of index floor(r) from 0 in ascending order, with
        count n and c0 values before it, low + (high - low) clamp((r - c0 + 0.5) / n, 0, 1), clamped to smallest and
        largest.
    A bucket's point is f32((low + high) / 2) clamped to smallest and largest; it stands for the bucket's count.
mse, 100 candidates i = 1..100 from the smallest and largest value (of weights: of the grid's values)
    symmetric and small floats: c_i = i (peak + 0.5) / 100 (margin `fixed`), or c_i = i peak (1 + m) / 100 (margin
        `relative.m`); the range is (-c_i, c_i)
    asymmetric: (i (1 + m) lo / 100, i (1 + m) hi / 100)
    cost: sum of count (x - dq)^2, x - dq in float32, then widened, squared and summed. The first smallest wins.
    Weights take their values themselves, each grid for itself; symmetric integers are unsigned where the whole
    tensor has no negative entry. Activations take the points of the sketch and are never unsigned. A grid of zeros
    costs nothing at any candidate, so that it takes the first.
kl, for integers only, 100 candidates, on the sketch (of weights: of the grid's values)
    lo = min(smallest, 0), hi = max(largest, 0); both 0: the range is (0, 0). There are 2048 equal bins from lo to hi;
    a point goes to bin min(floor((point - lo) / (hi - lo) 2048), 2047) with its count; the centre of a bin is
    lo + (bin + 0.5) (hi - lo) / 2048.
    Candidates: (i lo / 100, i hi / 100), or symmetric (-c_i, c_i) with c_i = i max(|lo|, hi) / 100. A bin is inside
    when lo_i <= centre <= hi_i; a candidate with none inside is passed over.
    P: the counts inside, plus those of the bins below in the first bin inside, of the bins above in the last one.
    Q: each bin inside has the level q of its f32(centre) on the candidate's grid (unsigned where mse is). The counts,
        without what was moved, of the bins of one level are shared out equally among those of them where P > 0. Q is
        scaled to sum to 1 (unless it is zero throughout), then 1e-9 stands where Q = 0 < P. P is scaled to sum to 1.
    cost: sum of P ln(P / Q) where P > 0. The first smallest wins.

`about` has the lists `a` and `w` of cases; `running_percentiles` and `percentiles` (p); `mse` and `kl`, the settings
as FORMAT or FORMAT/MARGIN, first dimension S of the results; `granularities` of weights.
    a.CASE.batch.0..2             float32 [n]
    a.CASE.min_max                float64 [2]
    a.CASE.running                float64 [3, 2], after each batch
    a.CASE.running_percentile     float64 [P, 3, 2]
    a.CASE.percentile, .sketched  float64 [P, 2]
    a.CASE.mse, .kl               float64 [S, 4]: lo, hi, lead, i
    w.CASE.x                      float32 [rows, columns]
    w.CASE.GRAN.mse, .kl          float64 [S, grids, 4]; a row shorter than a group is one group
Ranges are stored before zero is made part of them, except those of kl, which contain it.
`lead` says how robust a choice is: with costs over the sum of squares (mse) or as they are (kl), the difference
between the smallest cost and the next that is not equal to it, over the larger of the smallest and 1e-8; at most 1e6,
also where all cost the same. i is 0 for the range (0, 0) of kl. Asserted here: every lead is above 1e-6, and the
searches end at the same i when kl takes the centres 2e-7 larger or smaller, and mse dq and the difference in float64.
Percentiles and moving averages agree to a few times 1e-16 of hi - lo.
"""

import numpy as np

from common import made, out_directory, write
from formats import E2M1, E4M3, Float, Integer, dynamic_ranges

MOMENTUM, CANDIDATES, BINS = 0.9, 100, 2048
FIXED_MARGIN, MISSING = 0.5, 1e-9
LEAD_FLOOR, LEAD_CAP, LEAD_NEEDED = 1e-8, 1e6, 1e-6
RUNNING_PERCENTILES, PERCENTILES = (99.0, 99.999), (90.0, 99.9, 99.999)
SYMMETRIC = [Integer(8, "sym"), Integer(4, "sym")]
ASYMMETRIC = [Integer(8, "asym"), Integer(4, "asym")]
MSE = [(f, m) for f in (*SYMMETRIC, E4M3, E2M1) for m in ("fixed", "relative.0", "relative.0.2")]
MSE += [(f, m) for f in ASYMMETRIC for m in ("relative.0", "relative.0.2")]
KL = [*SYMMETRIC, *ASYMMETRIC]
GRANULARITIES = ("tensor", "row", "group.16")


class Sketch:
    """Counts by the upper half of a float32."""

    def __init__(self, batches):
        values = np.concatenate([b.ravel() for b in batches]) + np.float32(0)  # -0 + 0 is +0
        assert not ((values < 0) & (values > -(2.0**-133))).any(), "a negative value truncates to -0"
        self.smallest, self.largest = float(values.min()), float(values.max())
        upper, counts = np.unique(values.view(np.uint32) >> 16, return_counts=True)
        negative, magnitude = upper >> 15 == 1, upper & 0x7FFF
        edges = (m.astype(np.uint32) << 16 for m in (magnitude, magnitude + 1))
        near, far = (e.view(np.float32).astype(np.float64) for e in edges)
        low, high = np.where(negative, -far, near), np.where(negative, -near, far)
        order = np.argsort(low)
        self.low, self.high, self.counts = low[order], high[order], counts[order]

    def percentile(self, p):
        rank = p / 100 * (self.counts.sum() - 1)
        end = np.cumsum(self.counts)
        k = int(np.searchsorted(end, np.floor(rank), side="right"))
        fraction = (rank - (end[k] - self.counts[k]) + 0.5) / self.counts[k]
        value = self.low[k] + (self.high[k] - self.low[k]) * np.clip(fraction, 0, 1)
        return float(np.clip(value, self.smallest, self.largest))

    def points(self):
        """(float32 points, counts)"""
        middle = ((self.low + self.high) / 2).astype(np.float32)
        return np.clip(middle, np.float32(self.smallest), np.float32(self.largest)), self.counts


def running(ends):
    """The running range after each of `ends` (lo, hi)."""
    after = [np.array(ends[0])]
    for batch in ends[1:]:
        after.append(MOMENTUM * after[-1] + (1 - MOMENTUM) * np.array(batch))
    return np.stack(after)


def percentiles(x, p):
    return np.percentile(x.astype(np.float64), [100 - p, p], method="linear")


def choice(costs, scale, ranges):
    """[lo, hi, lead, i] of the first smallest of `costs`; `scale` makes them comparable."""
    costs = np.array(costs) / scale
    best = int(np.argmin(costs))
    others = costs[costs != costs[best]]
    lead = LEAD_CAP
    if others.size:
        lead = min(LEAD_CAP, (others.min() - costs[best]) / max(costs[best], LEAD_FLOOR))
    assert lead > LEAD_NEEDED, f"candidate {best + 1} leads by {lead}"
    return [*ranges[best], lead, best + 1]


def mse_candidates(fmt, margin, lo, hi):
    steps = range(1, CANDIDATES + 1)
    kind, _, m = margin.partition(".")
    if isinstance(fmt, Integer) and fmt.kind == "asym":
        factor = (1 + float(m)) / CANDIDATES
        return [(i * factor * lo, i * factor * hi) for i in steps]
    c = max(abs(lo), abs(hi))
    step = (c + FIXED_MARGIN if kind == "fixed" else c * (1 + float(m))) / CANDIDATES
    return [(-i * step, i * step) for i in steps]


def exact_fake(fmt, x, lo, hi):
    """`fmt.fake` with the levels that float32 gives and the product in float64."""
    if isinstance(fmt, Float):
        scale = fmt.scale(max(abs(lo), abs(hi)))
        return float(scale) * fmt.round(x / scale).astype(np.float64)
    scale, zero = fmt.grid(lo, hi)
    return float(scale) * (fmt.round(x, scale, zero).astype(np.float64) - zero)


def mse(fmt, margin, x, counts, lo, hi):
    """[lo, hi, lead, i] for float32 `x`, each standing for so many."""
    ranges = mse_candidates(fmt, margin, lo, hi)
    wide = x.astype(np.float64)
    power = float((counts * wide**2).sum()) or 1.0
    with np.errstate(over="ignore"):  # near the largest float32 a candidate's dq may be infinite, and its cost
        errors = [(x - fmt.fake(x, *r)).astype(np.float64) for r in ranges]
    found = choice([float((counts * e * e).sum()) for e in errors], power, ranges)
    exact = choice([float((counts * (wide - exact_fake(fmt, x, *r)) ** 2).sum()) for r in ranges], power, ranges)
    assert exact[3] == found[3], (fmt.name, margin)
    return found


def divergence(fmt, centres, counts, lo, hi, nudge):
    """Kullback-Leibler divergence of the counts from what the grid of (lo, hi) leaves of them; None without a bin."""
    inside = np.flatnonzero((centres >= lo) & (centres <= hi))
    if inside.size == 0:
        return None
    first, last = inside[0], inside[-1] + 1
    unmoved = counts[first:last]
    p = unmoved.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    scale, zero = fmt.grid(lo, hi)
    levels = fmt.round((centres[first:last] * (1 + nudge)).astype(np.float32), scale, zero)
    _, level = np.unique(levels, return_inverse=True)
    sums = np.bincount(level, weights=unmoved)
    holders = np.bincount(level, weights=p > 0)
    q = np.where(p > 0, sums[level] / np.maximum(holders[level], 1), 0)
    q = q / (q.sum() or 1)
    p = p / p.sum()
    held = p > 0
    return float((p[held] * np.log(p[held] / np.where(q == 0, MISSING, q)[held])).sum())


def kl(fmt, sketch):
    """[lo, hi, lead, i]"""
    lo, hi = min(sketch.smallest, 0.0), max(sketch.largest, 0.0)
    if lo == hi:
        return [0.0, 0.0, LEAD_CAP, 0]
    points, counts = sketch.points()
    bins = np.floor((points.astype(np.float64) - lo) / (hi - lo) * BINS).astype(int)
    bins = np.bincount(np.minimum(bins, BINS - 1), weights=counts, minlength=BINS)
    centres = lo + (np.arange(BINS) + 0.5) * (hi - lo) / BINS
    low, high = (lo, hi) if fmt.kind == "asym" else (-max(-lo, hi), max(-lo, hi))
    ranges = [(i / CANDIDATES * low, i / CANDIDATES * high) for i in range(1, CANDIDATES + 1)]

    def search(nudge):
        costs = [divergence(fmt, centres, bins, *r, nudge) for r in ranges]
        return choice([np.inf if c is None else c for c in costs], 1.0, ranges)

    found = search(0.0)
    assert all(search(nudge)[3] == found[3] for nudge in (2e-7, -2e-7)), fmt.name
    return found


def of_activation(batches):
    everything, sketch = np.concatenate(batches), Sketch(batches)
    points, counts = sketch.points()
    ends = (sketch.smallest, sketch.largest)
    return {
        "min_max": np.array(ends),
        "running": running([(float(b.min()), float(b.max())) for b in batches]),
        "running_percentile": np.stack(
            [running([percentiles(b, p) for b in batches]) for p in RUNNING_PERCENTILES]
        ),
        "percentile": np.stack([percentiles(everything, p) for p in PERCENTILES]),
        "sketched": np.array([[sketch.percentile(100 - p), sketch.percentile(p)] for p in PERCENTILES]),
        "mse": np.array([mse(f, m, points, counts, *ends) for f, m in MSE]),
        "kl": np.array([kl(f, sketch) for f in KL]),
    } | {f"batch.{i}": b for i, b in enumerate(batches)}


def of_weight(x):
    unsigned = not (x < 0).any()

    def kind(fmt):
        return Integer(fmt.bits, "unsigned") if unsigned and fmt in SYMMETRIC else fmt

    found = {"x": x}
    for granularity in GRANULARITIES:
        grids = [(x.ravel()[at], lo, hi) for at, lo, hi in dynamic_ranges(x, granularity)]
        found[f"{granularity}.mse"] = np.array(
            [[mse(kind(f), m, v, np.ones(v.size), lo, hi) for v, lo, hi in grids] for f, m in MSE]
        )
        found[f"{granularity}.kl"] = np.array([[kl(kind(f), Sketch([v])) for v, _, _ in grids] for f in KL])
    return found


def activation_cases(rng):
    outlier = [rng.standard_normal(100) for _ in range(3)]
    outlier[1][17] = 700
    huge = [rng.uniform(-1e38, 1e38, 24) for _ in range(3)]
    huge[2][5] = 3e38
    return {
        "gaussian": [(1 + 0.4 * b) * rng.standard_normal(160) for b in range(3)],
        "heavy_tailed": [rng.standard_t(2, 160) for _ in range(3)],
        "outlier": outlier,
        "zeros": [np.zeros(n) for n in (4, 1, 6)],
        "constant": [np.full(n, 1.3) for n in (5, 1, 7)],
        "constant_negative": [np.full(n, -2.7) for n in (5, 1, 7)],
        "positive": [1 + 0.1 * rng.standard_normal(60) for _ in range(3)],
        "negative": [-0.2 - np.abs(rng.standard_normal(60)) for _ in range(3)],
        "rectified": [np.maximum(rng.standard_normal(60), -0.0) for _ in range(3)],
        "crossing": [o + 0.1 * rng.standard_normal(50) for o in (0.6, -0.5, 0.4)],
        "one_value_batches": [np.array([v]) for v in (0.6, -0.2, 1.7)],
        "batch_of_one": [rng.standard_normal(40), np.array([2.5]), rng.standard_normal(40)],
        "tiny": [1e-7 * rng.standard_normal(40) for _ in range(3)],
        "huge": huge,
    }


def weight_cases(rng):
    mixed = rng.standard_normal((4, 10))
    mixed[1], mixed[2], mixed[3] = 0, 0.01 * mixed[2], 100 * mixed[3]
    return {
        "gaussian": 0.3 * rng.standard_normal((4, 37)),
        "heavy_tailed": rng.standard_t(2, (3, 20)),
        "positive": 1 + 0.1 * rng.standard_normal((3, 20)),
        "zero_and_positive": np.maximum(rng.standard_normal((3, 20)), 0),
        "mixed_rows": mixed,
        "zeros": np.zeros((2, 3)),
        "one_element": np.array([[-2.7]]),
    }


def main():
    out = made(out_directory(__doc__) / "quant")
    rng = np.random.default_rng(23)
    tensors, index = {}, {"a": [], "w": []}
    for case, batches in activation_cases(rng).items():
        index["a"].append(case)
        found = of_activation([b.astype(np.float32) for b in batches])
        print(f"a.{case}: smallest lead {min(found['mse'][:, 2].min(), found['kl'][:, 2].min()):.1e}")
        tensors |= {f"a.{case}.{key}": value for key, value in found.items()}
    for case, x in weight_cases(rng).items():
        index["w"].append(case)
        found = of_weight(x.astype(np.float32))
        leads = [v[..., 2].min() for key, v in found.items() if key != "x"]
        print(f"w.{case}: smallest lead {min(leads):.1e}")
        tensors |= {f"w.{case}.{key}": value for key, value in found.items()}
    about = index | {
        "running_percentiles": RUNNING_PERCENTILES,
        "percentiles": PERCENTILES,
        "mse": [f"{f.name}/{m}" for f, m in MSE],
        "kl": [f.name for f in KL],
        "granularities": GRANULARITIES,
    }
    write(out / "ranges.safetensors", tensors, about)


if __name__ == "__main__":
    main()
