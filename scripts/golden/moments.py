"""Golden files: what a step from X to X' does to the second and fourth moment, term by term, in float64 NumPy.

Writes moments.safetensors. Per CASE: x.CASE and y.CASE, float32 [tokens, channels], and neuron.CASE and
element.CASE, float64 [8], in the order m2, m4, u21, u22, u41, u42, u43, u44.

With D = X' - X, means E over tokens, and per channel s2 = E[X^2], a = E[X D], b = E[D^2]:
    neuron     m2 = mean s2, m4 = mean s2^2 over channels. s2 moves by 2a + b, so
               u21 = 2 mean a, u22 = mean b, u41 = 4 mean(s2 a), u42 = mean(2 s2 b + 4 a^2), u43 = 4 mean(a b),
               u44 = mean b^2
    element    over all entries: m2 = E x^2, m4 = E x^4, and the binomial terms of (x + d)^2 and (x + d)^4:
               u21 = 2E[x d], u22 = E d^2, u41 = 4E[x^3 d], u42 = 6E[x^2 d^2], u43 = 4E[x d^3], u44 = E d^4

That the terms sum to the change of the moment, measured without them in extended precision, is asserted here to
1e-9 of the sum of their sizes; the Rust is held to the terms.
"""

from math import comb

import numpy as np

from common import out_directory, write

ORDER = ["m2", "m4", "u21", "u22", "u41", "u42", "u43", "u44"]


def neuron(x, y):
    d = y - x
    s2, a, b = (x * x).mean(0), (x * d).mean(0), (d * d).mean(0)
    return [
        s2.mean(),
        (s2**2).mean(),
        2 * a.mean(),
        b.mean(),
        4 * (s2 * a).mean(),
        (2 * s2 * b + 4 * a**2).mean(),
        4 * (a * b).mean(),
        (b**2).mean(),
    ]


def element(x, y):
    d = y - x
    terms = [comb(p, k) * (x ** (p - k) * d**k).mean() for p in (2, 4) for k in range(1, p + 1)]
    return [(x**2).mean(), (x**4).mean(), *terms]


def neuron_moments(x):
    s2 = (x.astype(np.longdouble) ** 2).mean(0)
    return s2.mean(), (s2**2).mean()


def element_moments(x):
    wide = x.astype(np.longdouble)
    return (wide**2).mean(), (wide**4).mean()


def cases(rng):
    x = rng.standard_normal((48, 12))
    huge = rng.standard_normal((30, 8))
    huge[:, 5] += 300
    massive = rng.standard_normal((36, 6))
    massive[4, 3] = 900
    heavy = rng.standard_t(2, (40, 10))
    return {
        "small_step": (x, x + 1e-3 * rng.standard_normal(x.shape)),
        "large_step": (x, x + 2 * rng.standard_normal(x.shape)),
        "no_step": (x, x),
        "shrinks": (x, 0.5 * x),
        "becomes_zero": (x, 0 * x),
        "starts_at_zero": (0 * x, x),
        "flips": (x, -x),
        "huge_channel": (huge, huge + 0.01 * rng.standard_normal(huge.shape)),
        "massive_activation": (massive, massive + 0.1 * rng.standard_normal(massive.shape)),
        "heavy_tailed": (heavy, heavy + 0.1 * rng.standard_t(2, heavy.shape)),
        "one_channel": (x[:, :1], x[:, 1:2]),
        "one_token": (x[:1], x[1:2]),
    }


def main():
    out = out_directory(__doc__)
    tensors = {}
    for name, pair in cases(np.random.default_rng(23)).items():
        x, y = (v.astype(np.float32) for v in pair)
        tensors[f"x.{name}"], tensors[f"y.{name}"] = x, y
        wide = x.astype(np.float64), y.astype(np.float64)
        for kind, terms_of, moments_of in [
            ("neuron", neuron, neuron_moments),
            ("element", element, element_moments),
        ]:
            terms = np.array(terms_of(*wide), dtype=np.float64)
            tensors[f"{kind}.{name}"] = terms
            (m2, m4), (m2_after, m4_after) = moments_of(wide[0]), moments_of(wide[1])
            for change, parts in [(m2_after - m2, terms[2:4]), (m4_after - m4, terms[4:])]:
                error = abs(float(change) - parts.sum()) / max(np.abs(parts).sum(), 1e-300)
                assert error < 1e-9, (name, kind, error)
    write(out / "moments.safetensors", tensors, {"order": ORDER})


if __name__ == "__main__":
    main()
