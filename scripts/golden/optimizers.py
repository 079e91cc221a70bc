"""Golden file: fifty steps of AdamW and of SOAP on given gradients, in float64 NumPy.

Writes adamw.safetensors and soap.safetensors.

AdamW, step t = 1, 2, ...:
    p <- p - lr wd p
    m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
    p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

SOAP, Adam in the eigenbasis of L = EMA of G G^T and R = EMA of G^T G (a matrix parameter, G its gradient):
    first call: L = (1 - bs) G G^T, R = (1 - bs) G^T G; Q_L and Q_R their eigenvectors, columns by descending
    eigenvalue; nothing else happens: parameters, m, v and the counter n stay as they are.
    call n = 1, 2, ...:
      1. g' = Q_L^T G Q_R with the bases as they stand
      2. m' <- b1 m' + (1 - b1) g';   v <- b2 v + (1 - b2) g'^2          (both in the rotated space)
      3. p <- p - lr sqrt(1 - b2^n) / (1 - b1^n) Q_L (m' / (sqrt(v) + eps)) Q_R^T
      4. p <- p - lr wd p
      5. L <- bs L + (1 - bs) G G^T, R likewise
      6. if the refresh frequency divides n, per side: order = descending diag(Q^T L Q); permute that axis of v
         by it; Q_new = the Q of QR(L Q[:, order]); and m' <- Q_new^T (Q_old m')
    A side longer than max_precond_dim keeps the identity. A vector gets the same without rotation: Adam with
    eps added to sqrt(v) before bias correction, first call skipped, decay after the step.
The saved step indices count calls from 0, so SOAP's `expected.0.*` equals `param.*` and n = STEP.

Checks made here, not stored: AdamW against torch.optim.AdamW; SOAP against two formulations that are
equal in exact arithmetic (m kept unrotated and projected at each step; the QR with its signs turned so
that R has a positive diagonal), both to 1e-9; and against itself in float32, as a measure of conditioning.

Gradients: a rank-2 signal whose directions turn slowly, plus noise whose size differs by row and column, so
that the eigenvalues are apart and the bases well determined. Rounded to float32 before use.

Keys (float32): param.NAME, grad.STEP.NAME for STEP 0..49, expected.STEP.NAME (parameters after the step)
for STEP 0, 1, 2, 9, 10, 11, 24, 49. NAME: square 6x6, tall 6x5, wide 5x6, long 12x5, vector 7.
"""

import numpy as np
import torch

from common import out_directory, write

STEPS, KEPT = 50, (0, 1, 2, 9, 10, 11, 24, 49)
SHAPES = {"square": (6, 6), "tall": (6, 5), "wide": (5, 6), "long": (12, 5), "vector": (7,)}
ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
SOAP = {
    "lr": 3e-2, "beta1": 0.9, "beta2": 0.95, "shampoo_beta": 0.95, "eps": 1e-8, "weight_decay": 0.01,
    "precondition_frequency": 5, "max_precond_dim": 8,
}  # fmt: skip


def turning(rng, size, step):
    """A unit vector of `size` per call, turned by 0.03 rad a step in a random plane."""
    plane, _ = np.linalg.qr(rng.standard_normal((size, 2)))
    return plane @ np.array([np.cos(0.03 * step), np.sin(0.03 * step)])


def gradients(rng, shape):
    """[STEPS] arrays of `shape`, float64 values that float32 holds exactly."""
    rows, cols = shape if len(shape) == 2 else (shape[0], 1)
    seeds = rng.integers(0, 2**31, 4)
    noise_scale = 0.4 * np.outer(0.85 ** np.arange(rows), 0.8 ** np.arange(cols))
    result = []
    for step in range(STEPS):
        u1, u2 = (turning(np.random.default_rng(s), rows, step) for s in seeds[:2])
        v1, v2 = (turning(np.random.default_rng(s), max(cols, 2), step)[:cols] for s in seeds[2:])
        g = 1.5 * np.outer(u1, v1) + 0.7 * np.outer(u2, v2)
        g = g + noise_scale * rng.standard_normal((rows, cols))
        result.append(g.reshape(shape).astype(np.float32).astype(np.float64))
    return result


class AdamW:
    def __init__(self, param):
        self.p, self.m, self.v, self.t = param.copy(), np.zeros_like(param), np.zeros_like(param), 0

    def step(self, g):
        h = ADAMW
        self.t += 1
        self.p -= h["lr"] * h["weight_decay"] * self.p
        self.m = h["beta1"] * self.m + (1 - h["beta1"]) * g
        self.v = h["beta2"] * self.v + (1 - h["beta2"]) * g * g
        m_hat = self.m / (1 - h["beta1"] ** self.t)
        v_hat = self.v / (1 - h["beta2"] ** self.t)
        self.p -= h["lr"] * m_hat / (np.sqrt(v_hat) + h["eps"])


def second_moments(g):
    """(G G^T, G^T G)"""
    return g @ g.T, g.T @ g


class Soap:
    """One parameter. Vectors have no sides; a side that is None keeps the identity.

    `positive_qr` turns the signs of each refreshed basis: a different, equally valid QR.
    """

    def __init__(self, param, positive_qr=False):
        self.p, self.m, self.v, self.n = param.copy(), np.zeros_like(param), np.zeros_like(param), 0
        self.sides = range(2) if param.ndim == 2 else ()
        self.active = [s for s in self.sides if param.shape[s] <= SOAP["max_precond_dim"]]
        self.cov, self.basis, self.gap = [None, None], [None, None], np.inf
        self.positive_qr, self.started, self.reordered = positive_qr, False, 0

    def forward(self, x, basis):
        """Into the rotated space: Q_L^T x Q_R."""
        if basis[0] is not None:
            x = basis[0].T @ x
        return x if basis[1] is None else x @ basis[1]

    def backward(self, x, basis):
        """Out of it: Q_L x Q_R^T."""
        if basis[0] is not None:
            x = basis[0] @ x
        return x if basis[1] is None else x @ basis[1].T

    def first_call(self, g):
        for s in self.active:
            self.cov[s] = (1 - SOAP["shampoo_beta"]) * second_moments(g)[s]
            values, vectors = np.linalg.eigh(self.cov[s])
            self.gap = min(self.gap, np.diff(values).min() / values[-1])
            self.basis[s] = vectors[:, ::-1]

    def momentum(self, g):
        """Update the first moment; return it in the rotated space."""
        self.m = SOAP["beta1"] * self.m + (1 - SOAP["beta1"]) * self.forward(g, self.basis)
        return self.m

    def rebase_momentum(self, old):
        self.m = self.forward(self.backward(self.m, old), self.basis)

    def step(self, g):
        h = SOAP
        if not self.started:
            self.started = True
            self.first_call(g)
            return
        self.n += 1
        rotated = self.forward(g, self.basis)
        m = self.momentum(g)
        self.v = h["beta2"] * self.v + (1 - h["beta2"]) * rotated * rotated
        size = h["lr"] * np.sqrt(1 - h["beta2"] ** self.n) / (1 - h["beta1"] ** self.n)
        self.p = self.p - self.p.dtype.type(size) * self.backward(m / (np.sqrt(self.v) + h["eps"]), self.basis)
        self.p = self.p - h["lr"] * h["weight_decay"] * self.p
        for s in self.active:
            self.cov[s] = h["shampoo_beta"] * self.cov[s] + (1 - h["shampoo_beta"]) * second_moments(g)[s]
        if self.active and self.n % h["precondition_frequency"] == 0:
            self.refresh()

    def refresh(self):
        old = list(self.basis)
        for s in self.active:
            estimate = np.diag(old[s].T @ self.cov[s] @ old[s])
            order = np.argsort(-estimate, kind="stable")
            self.reordered += int((order != np.arange(order.size)).any())
            ranked = estimate[order]
            self.gap = min(self.gap, (-np.diff(ranked) / ranked[:-1]).min())
            self.v = np.take(self.v, order, axis=s)
            q, r = np.linalg.qr(self.cov[s] @ old[s][:, order])
            self.basis[s] = q * np.sign(np.diag(r)) if self.positive_qr else q
        self.rebase_momentum(old)


class UnrotatedSoap(Soap):
    """The same optimiser with the first moment kept in the parameter's own space."""

    def momentum(self, g):
        self.m = SOAP["beta1"] * self.m + (1 - SOAP["beta1"]) * g
        return self.forward(self.m, self.basis)

    def rebase_momentum(self, old):
        pass


def run(make, param, grads):
    """Parameters after each step, [STEPS] arrays."""
    optimiser, trace = make(param), []
    for g in grads:
        optimiser.step(g.astype(param.dtype))
        trace.append(optimiser.p.copy())
    return trace, optimiser


def torch_adamw(param, grads):
    p = torch.tensor(param, requires_grad=True)
    optimiser = torch.optim.AdamW(
        [p], lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"], foreach=False,
    )  # fmt: skip
    trace = []
    for g in grads:
        p.grad = torch.tensor(g)
        optimiser.step()
        trace.append(p.detach().numpy().copy())
    return trace


def deviation(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


def main():
    out = out_directory(__doc__)
    rng = np.random.default_rng(2024)
    params = {n: rng.standard_normal(s).astype(np.float32).astype(np.float64) for n, s in SHAPES.items()}
    grads = {n: gradients(rng, s) for n, s in SHAPES.items()}
    given = {f"param.{n}": p.astype(np.float32) for n, p in params.items()}
    given |= {f"grad.{t}.{n}": g.astype(np.float32) for n, gs in grads.items() for t, g in enumerate(gs)}
    expected = {"adamw": {}, "soap": {}}
    for name, param in params.items():
        adamw, _ = run(AdamW, param, grads[name])
        off = deviation(adamw, torch_adamw(param, grads[name]))
        assert off < 1e-12, off
        soap, state = run(Soap, param, grads[name])
        unrotated, _ = run(UnrotatedSoap, param, grads[name])
        positive, _ = run(lambda p: Soap(p, positive_qr=True), param, grads[name])
        same = max(deviation(soap, unrotated), deviation(soap, positive))
        assert same < 1e-9, same
        single, _ = run(Soap, param.astype(np.float32), grads[name])
        plain, _ = run(AdamW, param.astype(np.float32), grads[name])
        assert single[-1].dtype == plain[-1].dtype == np.float32
        print(
            f"{name}: AdamW vs torch {off:.1e}, AdamW f32 {deviation(adamw, plain):.1e}; SOAP formulations"
            f" {same:.1e}, SOAP f32 {deviation(soap, single):.1e}, moved {deviation([param], soap[-1:]):.2f},"
            f" smallest relative eigenvalue gap {state.gap:.1e}, bases reordered {state.reordered} times"
        )
        for kind, trace in (("adamw", adamw), ("soap", soap)):
            expected[kind] |= {f"expected.{t}.{name}": trace[t].astype(np.float32) for t in KEPT}
    write(out / "adamw.safetensors", given | expected["adamw"], ADAMW)
    write(out / "soap.safetensors", given | expected["soap"], SOAP)


if __name__ == "__main__":
    main()
