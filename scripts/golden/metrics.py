"""Golden files: the outlier metrics of one site on awkward inputs, in float64 NumPy.

Writes metrics.safetensors with the inputs, float32: x.CASE [sequences, tokens, channels], scores.CASE and probs.CASE
[sequences, heads, tokens, tokens], w.CASE [rows, columns]; and metrics.json with what follows from them, null where
undefined:
    sites      CASE -> metric -> value
    massive    CASE -> the 5 largest entries
    attention  CASE -> a list over heads
    weights    CASE -> figure -> value

With X the n x d matrix of all n = sequences x tokens rows, pooled:
    s_j^2                    mean over the n rows of X_j^2
    kurtosis                 mean_j s_j^4 / (mean_j s_j^2)^2; undefined if X is zero
    kurtosis_centred         the same after each row's mean over channels is subtracted
    kurtosis_mean_removed    the same after each channel's mean over the n rows is subtracted
    kurtosis_elementwise     per sequence, all its entries pooled: mean((x - mu)^4) / (s^4 + 1e-6) with s^2 the
                             unbiased variance; mean over sequences. Undefined for sequences of one entry; 0
                             for a constant sequence, since the 1e-6 keeps it defined
    kurtosis_excess_token    per row: mean(x^4) / std^4 - 3 (numerator not centred, std centred and unbiased), at
                             least 0; mean over rows. Rows with std 0 (or one channel) are left out; undefined
                             if none remain
    mmr, mmr_skipped         per row max|x| / lower median of |x|; mean over the rows whose median is not 0;
                             mmr_skipped counts the others; undefined if none remain
    rms, max_abs             over all entries
    inf_norm                 mean over sequences of max|x|
With X scaled to unit RMS over all its entries, S_I = X X^T / d and S_F = X^T X / n:
    input_corr_mean          mean off-diagonal entry of S_I; undefined for one row, and for zeros
    input_cos_mean           the same after every row is scaled to unit norm; rows of norm 0 are left out; undefined if
                             fewer than two remain
    input_corr_rms           RMS off-diagonal entry of S_I; undefined for one row, and for zeros
    feature_corr_rms         RMS off-diagonal entry of S_F; undefined for one channel, and for zeros
    effective_rank           (sum l)^2 / sum l^2 over the eigenvalues l of S_F; undefined for zeros
    NAME_sequence            the last three per sequence, each scaled to unit RMS by itself; mean over sequences;
                             undefined if one is
Massive: entries that are not 0 by falling |x|, with |x| over the lower median of |x| over all entries of the case
(ratio_to_median; undefined if that is 0).
Attention, causal: entropy is the mean over queries of -sum p ln p with 0 ln 0 = 0; max_logit the largest score (j <= i);
mass_first the mean over queries of the probability of token 0.
Weights: rms, max_abs, max_over_rms, and kurtosis_entries = mean((w - mu)^4) / mean((w - mu)^2)^2 over entries;
undefined for 0 / 0.
Lower median: of d sorted values the one at index floor((d - 1) / 2), counted from 0.
"""

import json

import numpy as np

from common import out_directory, write


def neuron_kurtosis(x):
    """Eq. 1 on rows `x` [n, d]; None if every entry is zero."""
    squares = (x * x).mean(0)
    size = squares.mean()
    return None if size == 0 else float((squares * squares).mean() / (size * size))


def elementwise(x):
    values = []
    for sequence in x:
        entries = sequence.ravel()
        if entries.size < 2:
            return None
        fourth = ((entries - entries.mean()) ** 4).mean()
        values.append(fourth / (entries.var(ddof=1) ** 2 + 1e-6))
    return float(np.mean(values))


def excess_token(rows):
    values = []
    for row in rows:
        if row.size < 2 or (variance := row.var(ddof=1)) == 0:
            continue
        values.append(max((row**4).mean() / variance**2 - 3, 0.0))
    return float(np.mean(values)) if values else None


def max_median_ratio(rows):
    """(mmr or None, rows skipped)"""
    sizes = np.sort(np.abs(rows), axis=1)
    median = sizes[:, (rows.shape[1] - 1) // 2]
    kept = median != 0
    ratio = sizes[kept, -1] / median[kept]
    return (float(ratio.mean()) if kept.any() else None), int((~kept).sum())


def off_diagonal(vectors):
    """Mean square and mean of the off-diagonal entries of V V^T for vectors V [m, k]; None for one vector."""
    m = len(vectors)
    if m < 2:
        return None
    squares = total = 0.0
    for first in range(0, m, 1024):  # stripes, since V V^T of the logits' channels is large
        stripe = vectors[first : first + 1024] @ vectors.T
        stripe[np.arange(len(stripe)), first + np.arange(len(stripe))] = 0
        squares += (stripe * stripe).sum()
        total += stripe.sum()
    return squares / (m * (m - 1)), total / (m * (m - 1))


def correlations(rows):
    """(input_corr_mean, input_corr_rms, feature_corr_rms, effective_rank) of rows [n, d]."""
    n, d = rows.shape
    size = np.abs(rows).max()
    if size == 0:
        return None, None, None, None
    unit = rows / size
    unit = unit / np.sqrt((unit * unit).mean())
    tokens, channels = off_diagonal(unit / np.sqrt(d)), off_diagonal(unit.T / np.sqrt(n))
    eigenvalues = np.linalg.svd(unit, compute_uv=False) ** 2
    return (
        None if tokens is None else float(tokens[1]),
        None if tokens is None else float(np.sqrt(tokens[0])),
        None if channels is None else float(np.sqrt(channels[0])),
        float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()),
    )


def cosine(rows):
    norms = np.sqrt((rows * rows).sum(1))
    directions = rows[norms > 0] / norms[norms > 0, None]
    pairs = off_diagonal(directions)
    return None if pairs is None else float(pairs[1])


def mean_or_none(values):
    return None if any(v is None for v in values) else float(np.mean(values))


def per_sequence(x):
    """The Gram metrics of each sequence by itself, averaged."""
    names = ["input_corr_rms", "feature_corr_rms", "effective_rank"]
    figures = [correlations(sequence)[1:] for sequence in x]
    return {name: mean_or_none(values) for name, values in zip(names, zip(*figures))}


def lower_median(sizes):
    flat = np.sort(sizes.ravel())
    return flat[(flat.size - 1) // 2]


def massive(x, k):
    """The k largest entries of x [sequences, tokens, channels]; no ties are expected among them."""
    sizes = np.abs(x)
    median = lower_median(sizes)
    order = np.argsort(-sizes, axis=None, kind="stable")[:k]
    return [
        {
            "sequence": int(s),
            "position": int(t),
            "channel": int(c),
            "value": float(x[s, t, c]),
            "ratio_to_median": None if median == 0 else float(sizes[s, t, c] / median),
        }
        for s, t, c in (np.unravel_index(i, x.shape) for i in order)
        if x[s, t, c] != 0
    ]


def attention(scores, probs):
    """A list over heads; both [sequences, heads, tokens, tokens], float64."""
    seen = np.tril(np.ones(scores.shape[-2:], bool))
    safe = np.where(probs > 0, probs, 1.0)
    entropy = -(safe * np.log(safe)).sum(-1).mean((0, 2))
    mass = probs[..., 0].mean((0, 2))
    peak = np.where(seen, scores, -np.inf).max((0, 2, 3))
    return [
        {"entropy": float(e), "max_logit": float(p), "mass_first": float(m)}
        for e, p, m in zip(entropy, peak, mass)
    ]


def causal_softmax(scores):
    seen = np.tril(np.ones(scores.shape[-2:], bool))
    masked = np.where(seen, scores, -np.inf)
    weights = np.exp(masked - masked.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def weight(w):
    rms, peak = float(np.sqrt((w * w).mean())), float(np.abs(w).max())
    second = ((w - w.mean()) ** 2).mean()
    return {
        "rms": rms,
        "max_abs": peak,
        "max_over_rms": None if rms == 0 else peak / rms,
        "kurtosis_entries": None if second == 0 else float(((w - w.mean()) ** 4).mean() / second**2),
    }


def metrics(x):
    """All metrics of x [sequences, tokens, channels], float64."""
    rows = x.reshape(-1, x.shape[-1])
    mmr, skipped = max_median_ratio(rows)
    corr_mean, corr_rms, feature_rms, rank = correlations(rows)
    return {
        "kurtosis": neuron_kurtosis(rows),
        "kurtosis_centred": neuron_kurtosis(rows - rows.mean(1, keepdims=True)),
        "kurtosis_mean_removed": neuron_kurtosis(rows - rows.mean(0, keepdims=True)),
        "kurtosis_elementwise": elementwise(x),
        "kurtosis_excess_token": excess_token(rows),
        "mmr": mmr,
        "mmr_skipped": skipped,
        "rms": float(np.sqrt((rows * rows).mean())),
        "max_abs": float(np.abs(rows).max()),
        "inf_norm": float(np.abs(x).max(axis=(1, 2)).mean()),
        "input_corr_mean": corr_mean,
        "input_cos_mean": cosine(rows),
        "input_corr_rms": corr_rms,
        "feature_corr_rms": feature_rms,
        "effective_rank": rank,
    }


def cases(rng):
    huge = rng.standard_normal((3, 8, 16))
    huge[..., 5] += 300
    half = rng.standard_normal((3, 8, 16))
    half[..., ::2] = 0
    massive = rng.standard_normal((4, 9, 12))
    massive[1, 0, 3] = 900
    found = {
        "gaussian": rng.standard_normal((4, 16, 24)),
        "gaussian_small": 0.02 * rng.standard_normal((3, 8, 16)),
        "heavy_tailed": rng.standard_t(2, (4, 16, 24)),
        "huge_channel": huge,  # nearly all of it a constant vector: mean removal must not cancel
        "massive_activation": massive,
        "constant_rows": np.repeat(rng.standard_normal((2, 5, 1)), 7, axis=2),
        "same_rows": np.tile(rng.standard_normal((1, 1, 6)), (2, 5, 1)),
        "half_channels_zero": half,
        "relu": np.maximum(rng.standard_normal((4, 12, 16)), 0),  # some rows have median 0, some not
        "single_token": rng.standard_normal((1, 1, 12)),
        "one_channel": rng.standard_normal((3, 6, 1)),
        "one_entry": np.array([[[-1.5]]]),
        "even_channels": rng.standard_normal((2, 4, 4)),
        "odd_channels": rng.standard_normal((2, 4, 5)),
        "zeros": np.zeros((2, 3, 4)),
    }
    mixed = rng.standard_normal((3, 6, 10))
    mixed[0, 1], mixed[1, 4], mixed[2, 0] = 0.7, 0, -3  # constant rows and a zero row among others
    wide = rng.standard_normal((2, 4, 40))
    wide[..., 3] += 300  # fewer rows than channels, and one channel dwarfs the rest
    collapsed = rng.standard_normal((1, 1, 20)) + 0.01 * rng.standard_normal((3, 10, 20))
    zero_sequence = rng.standard_normal((3, 4, 6))
    zero_sequence[1] = 0
    return found | {
        "mixed_rows": mixed,
        "wide_huge_channel": wide,
        "rank_collapse": collapsed,
        "zero_sequence": zero_sequence,
        "huge_scale": 1e30 * rng.standard_normal((2, 6, 8)),
        "tiny_scale": 1e-30 * rng.standard_normal((2, 6, 8)),
        "long": rng.standard_normal((5, 40, 12)) * np.exp(rng.standard_normal(12)),
    }


def heads(rng):
    """Scores [sequences, heads, tokens, tokens]; large ones saturate the softmax, so that some p are 0."""
    scores = rng.standard_normal((2, 3, 7, 7))
    saturated = 60 * rng.standard_normal((1, 2, 9, 9))
    sink = rng.standard_normal((3, 2, 5, 5))
    sink[..., 0] += 8
    return {"gaussian": scores, "saturated": saturated, "sink": sink, "one_token": rng.standard_normal((2, 2, 1, 1))}


def matrices(rng):
    peak = 0.02 * rng.standard_normal((12, 20))
    peak[3, 4] = 1.5
    return {
        "gaussian": 0.02 * rng.standard_normal((16, 24)),
        "peak": peak,
        "heavy_tailed": rng.standard_t(2, (9, 13)),
        "constant": np.full((3, 4), 0.3),
        "zeros": np.zeros((2, 5)),
        "huge": 1e30 * rng.standard_normal((4, 6)),
    }


def main():
    out = out_directory(__doc__)
    rng = np.random.default_rng(11)
    narrow = lambda arrays: {name: a.astype(np.float32) for name, a in arrays.items()}
    sites, scores, weights = narrow(cases(rng)), narrow(heads(rng)), narrow(matrices(rng))
    probs = narrow({name: causal_softmax(s.astype(np.float64)) for name, s in scores.items()})
    expected = {"sites": {}, "massive": {}, "attention": {}, "weights": {}}
    for name, x in sites.items():
        values = metrics(x.astype(np.float64))
        values |= {f"{k}_sequence": v for k, v in per_sequence(x.astype(np.float64)).items()}
        expected["sites"][name] = values
        print(name, x.shape, {k: v if v is None else float(f"{v:.4g}") for k, v in values.items()})
    for name in ["gaussian", "massive_activation", "half_channels_zero", "relu", "huge_scale", "zeros"]:
        expected["massive"][name] = massive(sites[name].astype(np.float64), 5)
    for name in scores:
        expected["attention"][name] = attention(scores[name].astype(np.float64), probs[name].astype(np.float64))
    for name, w in weights.items():
        expected["weights"][name] = weight(w.astype(np.float64))
    tensors = {f"x.{n}": x for n, x in sites.items()} | {f"scores.{n}": x for n, x in scores.items()}
    tensors |= {f"probs.{n}": x for n, x in probs.items()} | {f"w.{n}": x for n, x in weights.items()}
    write(out / "metrics.safetensors", tensors, {"expected": "metrics.json"})
    path = out / "metrics.json"
    path.write_text(json.dumps(expected, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
