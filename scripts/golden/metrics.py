"""Golden files: the outlier metrics of one site on awkward inputs, in float64 NumPy.

Writes metrics.safetensors (inputs, x.CASE, float32 [sequences, tokens, channels]) and metrics.json
(CASE -> metric -> value, null where undefined).

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
                             if none remain. No case here mixes such rows with others
    mmr, mmr_skipped         per row max|x| / lower median of |x|; mean over the rows whose median is not 0;
                             mmr_skipped counts the others; undefined if none remain
    rms, max_abs             over all entries
    inf_norm                 mean over sequences of max|x|
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


def metrics(x):
    """All metrics of x [sequences, tokens, channels], float64."""
    rows = x.reshape(-1, x.shape[-1])
    mmr, skipped = max_median_ratio(rows)
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
    }


def cases(rng):
    huge = rng.standard_normal((3, 8, 16))
    huge[..., 5] += 300
    half = rng.standard_normal((3, 8, 16))
    half[..., ::2] = 0
    massive = rng.standard_normal((4, 9, 12))
    massive[1, 0, 3] = 900
    return {
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


def main():
    out = out_directory(__doc__)
    inputs = {name: x.astype(np.float32) for name, x in cases(np.random.default_rng(11)).items()}
    expected = {name: metrics(x.astype(np.float64)) for name, x in inputs.items()}
    for name, values in expected.items():
        print(name, inputs[name].shape, {k: v if v is None else round(v, 4) for k, v in values.items()})
    write(out / "metrics.safetensors", {f"x.{n}": x for n, x in inputs.items()}, {"expected": "metrics.json"})
    path = out / "metrics.json"
    path.write_text(json.dumps(expected, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
