"""Golden file: repairs of quantised weights on tiny matrices, in float64 NumPy.

Writes quant/repairs.safetensors. Weights w are [out, in], inputs x [samples, in]; both are float32, widened before
anything is computed with them. Everything else is float64. Rounding is half to even. Four bits, symmetric:
levels -8..7, s = max(c / 7, 1e-8) (float64, not rounded to float32), dq = s clamp(round(v / s), -8, 7).

gptq (Frantar et al., 2210.17323), columns in natural order
    H = 2 x^T x. For dead columns, H_jj = 0: H_jj = 1, and the weights of the column are 0. Then 0.01 mean(diag H) is
    added to the diagonal (the mean includes those ones). Column by column, j ascending:
        e = (w_j - dq(w_j)) / [G^-1]_jj,  w_k = w_k - e [G^-1]_jk for k > j,  G = H without the rows and columns before j
    which the Cholesky factor of H^-1 gives without inverting again; both ways are computed and agree.
    Without groups a row's c is its max|w| beforehand. In groups of 4 columns (the last one is shorter) c is the group's
    max|w| after the updates of all columns before the group.
        CASE in plain, groups, dead, dead_groups; the weights of dead columns are never the largest of their row
        gptq.CASE.w, .x     float32 [6, 10], [16, 10]
        gptq.CASE.h         float64 [10, 10]: 2 x^T x, with neither dead columns nor damping dealt with
        gptq.CASE.scale     float64 [6, groups];  .q int16 [6, 10];  .dq float64 [6, 10]
        gptq.CASE.loss      float64 [2]: sum of |(w - dq) x^T|^2 over samples and outputs, w as given, for this dq
                            and for plain rounding of w with the same grouping
        gptq.CASE.tie       float64 [1]: smallest distance of a w / s that was rounded from n + 1/2; seeds keep it large
smooth (SmoothQuant, 2211.10438), alpha = 0.5
    s_j = max(max_samples|x_j|^alpha / max_out|w_j|^(1 - alpha), 1e-5); x_j / s_j and w_j s_j
        smooth.w, .x float32;  .s float64 [in];  .smoothed_w, .smoothed_x float64. x has an outlier and a zero column.
bias (bias correction)
    E[x] (w - dq)^T, to be added to the bias, with dq = w rounded to four bits by the max|w| of its row
        bias.w, .x float32;  .dq float64 [out, in];  .correction float64 [out]
hadamard
    H_1 = [1], H_2n = [[H_n, H_n], [H_n, -H_n]]. H_12 and H_20 are Paley's: with p = 11 or 19, and chi(a) = 0, 1, -1
    for a zero, a square, a non-square mod p, H = I + S, S = [[0, 1^T], [-1, Q]], Q_ij = chi(i - j). Other signs and
    orders are as good: only H H^T = n I and entries of +-1 are needed.
        hadamard.N, int16 [N, N] of +-1; normalised is this over sqrt(N)
"""

import numpy as np

from common import made, out_directory, write

LEVELS, FLOOR = (-8, 7), 1e-8
DAMPING, GROUP = 0.01, 4
ALPHA, SMOOTHING_FLOOR = 0.5, 1e-5
TIE_NEEDED = 2e-3
SIZES = (1, 2, 4, 8, 12, 20, 24)
ROWS, COLUMNS, SAMPLES = 6, 10, 16


def scale_of(w):
    """One scale per row, [rows, 1]."""
    return np.maximum(np.abs(w).max(axis=1, keepdims=True) / LEVELS[1], FLOOR)


def levels(v, scale):
    return np.clip(np.rint(v / scale), *LEVELS)


def damped(h):
    h = h.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    return h + DAMPING * np.diag(h).mean() * np.eye(len(h)), dead


def by_cholesky(h):
    """For each column j, [G^-1]_jk / [G^-1]_jj for k >= j: the rows of the upper factor over their diagonal."""
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    return upper / np.diag(upper)[:, None]


def by_elimination(h):
    """The same from the inverse of each remaining matrix."""
    rows = np.zeros_like(h)
    for j in range(len(h)):
        inverse = np.linalg.inv(h[j:, j:])
        rows[j, j:] = inverse[0] / inverse[0, 0]
    return rows


def gptq(w, h, size, propagation):
    """(q, scales [rows, groups], dq, smallest distance from a tie)"""
    h, dead = damped(h)
    scales = [] if size else [scale_of(w)]
    w = np.where(dead, 0, w)
    carry = propagation(h)
    q = np.zeros_like(w)
    dq, tie = q.copy(), np.inf
    for j in range(w.shape[1]):
        if size and j % size == 0:
            scales.append(scale_of(w[:, j : j + size]))
        scale = scales[-1][:, 0]
        ratio = w[:, j] / scale
        tie = min(tie, np.abs(ratio - np.floor(ratio) - 0.5).min())
        q[:, j] = levels(w[:, j], scale)
        dq[:, j] = scale * q[:, j]
        w[:, j + 1 :] -= np.outer(w[:, j] - dq[:, j], carry[j, j + 1 :])
    return q, np.concatenate(scales, axis=1), dq, tie


def rounded(w, size):
    """`w` to the nearest levels; groups of `size` columns, or whole rows for 0."""
    size = size or w.shape[1]
    pieces = [w[:, j : j + size] for j in range(0, w.shape[1], size)]
    return np.concatenate([scale_of(v) * levels(v, scale_of(v)) for v in pieces], axis=1)


def gptq_case(rng, size, dead):
    w = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x = rng.standard_normal((SAMPLES, COLUMNS)) @ (np.eye(COLUMNS) + 0.4 * rng.standard_normal((COLUMNS, COLUMNS)))
    x[:, dead] = 0
    x = x.astype(np.float32)
    wide, inputs = w.astype(np.float64), x.astype(np.float64)
    assert (np.abs(wide[:, dead]).max(axis=1, initial=0) < np.abs(np.delete(wide, dead, axis=1)).max(axis=1)).all()
    h = 2 * inputs.T @ inputs
    q, scale, dq, tie = gptq(wide, h, size, by_cholesky)
    other = gptq(wide, h, size, by_elimination)
    assert (q == other[0]).all() and np.allclose(dq, other[2], rtol=1e-12, atol=0)
    loss = [float((((wide - v) @ inputs.T) ** 2).sum()) for v in (dq, rounded(wide, size))]
    assert tie > TIE_NEEDED and loss[0] < loss[1]
    print(f"gptq: loss {loss[0]:.3g}, {loss[1]:.3g} by plain rounding; nearest to a tie {tie:.1e}")
    return {
        "w": w, "x": x, "h": h, "q": q.astype(np.int16), "scale": scale, "dq": dq,
        "loss": np.array(loss), "tie": np.array([tie]),
    }  # fmt: skip


def smooth(rng):
    w = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x = rng.standard_normal((SAMPLES, COLUMNS)).astype(np.float32)
    x[:, 3] *= 60
    x[:, 7] = 0
    peak_x, peak_w = (np.abs(v.astype(np.float64)).max(axis=0) for v in (x, w))
    s = np.maximum(peak_x**ALPHA / peak_w ** (1 - ALPHA), SMOOTHING_FLOOR)
    smoothed_w, smoothed_x = w * s, x / s
    assert np.allclose(smoothed_x @ smoothed_w.T, x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-12)
    return {"w": w, "x": x, "s": s, "smoothed_w": smoothed_w, "smoothed_x": smoothed_x}


def bias(rng):
    w = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    x = (1 + rng.standard_normal((SAMPLES, COLUMNS))).astype(np.float32)
    wide, inputs = w.astype(np.float64), x.astype(np.float64)
    dq = rounded(wide, 0)
    correction = inputs.mean(axis=0) @ (wide - dq).T
    assert np.allclose((inputs @ dq.T + correction).mean(axis=0), (inputs @ wide.T).mean(axis=0), rtol=1e-12)
    return {"w": w, "x": x, "dq": dq, "correction": correction}


def paley(p):
    """Hadamard matrix of order p + 1, for a prime p that is 3 mod 4."""
    squares = {i * i % p for i in range(1, p)}
    chi = np.array([0] + [1 if a in squares else -1 for a in range(1, p)])
    s = np.zeros((p + 1, p + 1), int)
    s[0, 1:], s[1:, 0] = 1, -1
    s[1:, 1:] = chi[(np.arange(p)[:, None] - np.arange(p)) % p]
    return s + np.eye(p + 1, dtype=int)


def hadamard(n):
    if n in (12, 20):
        return paley(n - 1)
    if n == 1:
        return np.ones((1, 1), int)
    return np.kron([[1, 1], [1, -1]], hadamard(n // 2))


def main():
    out = made(out_directory(__doc__) / "quant")
    rng = np.random.default_rng(30)
    cases = {"plain": (0, []), "groups": (GROUP, []), "dead": (0, [0, 6]), "dead_groups": (GROUP, [2, 9])}
    found = {f"gptq.{case}": gptq_case(rng, *settings) for case, settings in cases.items()}
    found |= {"smooth": smooth(rng), "bias": bias(rng)}
    matrices = {str(n): hadamard(n) for n in SIZES}
    for h in matrices.values():
        assert (h @ h.T == len(h) * np.eye(len(h))).all() and (np.abs(h) == 1).all()
    found["hadamard"] = {n: h.astype(np.int16) for n, h in matrices.items()}
    about = {
        "gptq": {case: {"group": size, "dead": dead} for case, (size, dead) in cases.items()},
        "damping": DAMPING, "alpha": ALPHA, "smoothing_floor": SMOOTHING_FLOOR, "levels": LEVELS, "hadamard": SIZES,
    }  # fmt: skip
    tensors = {f"{name}.{key}": value for name, arrays in found.items() for key, value in arrays.items()}
    write(out / "repairs.safetensors", tensors, about)


if __name__ == "__main__":
    main()
