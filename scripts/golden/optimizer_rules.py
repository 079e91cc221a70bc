"""The optimisers of optimizers.py in NumPy. The formulas and the names of the settings are in that script's head.

A rule is made from one parameter and the settings; `step(g)` takes a gradient and leaves the new value in `p`. It
computes in the dtype of the parameter. `Twist` is what optimizers.py varies to see which numbers are well determined.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Twist:
    """Changes to a rule that exact arithmetic would not notice, or hardly."""

    positive_qr: bool = False  # signs of a refreshed basis turned so that QR's R has a positive diagonal
    unrotated: bool = False  # first moment kept in the parameter's own space and projected at each step
    null_space: np.random.Generator | None = None  # turn each first factor's null space at random
    noise: np.random.Generator | None = None  # disturb each factor that is decomposed, by 1e-7 of its largest entry


PLAIN = Twist()


def rms(x):
    return np.sqrt(np.mean(x * x))


def second_moment(g, side):
    """G G^T for side 0, G^T G for side 1; of a vector the outer product."""
    return np.outer(g, g) if g.ndim == 1 else g @ g.T if side == 0 else g.T @ g


def disturbed(matrix, noise):
    if noise is None:
        return matrix
    change = noise.standard_normal(matrix.shape) * 1e-7 * np.abs(matrix).max()
    return matrix + ((change + change.T) / 2).astype(matrix.dtype)


class Full:
    """An EMA of squares, one for each entry."""

    def __init__(self, like):
        self.v = np.zeros_like(like)

    def update(self, squares, beta):
        self.v = beta * self.v + (1 - beta) * squares

    def root(self):
        return np.sqrt(self.v)

    def permute(self, order, side):
        self.v = np.take(self.v, order, axis=side)


class Factored:
    """EMAs of the row means and of the column means of squares; V_ij = R_i C_j / mean(R)."""

    def __init__(self, like):
        self.means = [np.zeros_like(like, shape=size) for size in like.shape]

    def update(self, squares, beta):
        for side in range(2):
            self.means[side] = beta * self.means[side] + (1 - beta) * squares.mean(axis=1 - side)

    def root(self):
        """Roots are taken before the product: R_i C_j itself may be too small for float32."""
        rows, cols = (np.sqrt(mean) for mean in self.means)
        return np.outer(rows / np.sqrt(self.means[0].mean()), cols)

    def permute(self, order, side):
        self.means[side] = self.means[side][order]


class Rule:
    def __init__(self, param, settings, twist=PLAIN):
        self.p, self.h, self.twist, self.t = param.copy(), settings, twist, 0
        self.m = np.zeros_like(param)
        self.prepare()

    def prepare(self):
        pass

    def decay(self, lr):
        self.p = self.p * (1 - lr * self.h["weight_decay"])

    def momentum(self, x):
        self.m = self.h["beta1"] * self.m + (1 - self.h["beta1"]) * x
        return self.m


class AdamW(Rule):
    def prepare(self):
        self.v = Full(self.p)

    def adam(self, g):
        """The update before the learning rate."""
        m = self.momentum(g)
        self.v.update(g * g, self.h["beta2"])
        v_hat_root = self.v.root() / math.sqrt(1 - self.h["beta2"] ** self.t)
        return m / (1 - self.h["beta1"] ** self.t) / (v_hat_root + self.h["eps"])

    def step(self, g):
        self.t += 1
        self.decay(self.h["lr"])
        self.p = self.p - self.h["lr"] * self.adam(g)


class Sgd(Rule):
    def step(self, g):
        h = self.h
        self.t += 1
        if h["decoupled"]:
            self.decay(h["lr"])
        else:
            g = g + h["weight_decay"] * self.p
        self.m = g if self.t == 1 else h["momentum"] * self.m + (1 - h["dampening"]) * g
        self.p = self.p - h["lr"] * (g + h["momentum"] * self.m if h["nesterov"] else self.m)


class AdafactorUpdate(Rule):
    """The clipped, averaged update, in whatever space its gradients are."""

    def prepare(self):
        self.v = (Factored if self.p.ndim == 2 else Full)(self.p)

    def clipped(self, g, beta2):
        self.v.update(g * g + self.h["eps"], beta2)
        u = g / self.v.root()
        return u / max(1, rms(u) / self.h["clip"])


class Adafactor(AdafactorUpdate):
    def step(self, g):
        h = self.h
        self.t += 1
        beta2 = 1 - self.t ** h["beta2_decay"] if h["beta2"] is None else h["beta2"]
        rate = h["lr"]
        if h["relative"]:
            rate = max(h["eps_param"], rms(self.p)) * min(h["lr"], 1 / math.sqrt(self.t))
        update = self.momentum(self.clipped(g, beta2))
        self.decay(h["lr"])
        self.p = self.p - rate * update


class TorchAdafactor(AdafactorUpdate):
    """torch.optim.Adafactor: eps is a floor and not added, the rate is always relative, no momentum."""

    def step(self, g):
        h = self.h
        self.t += 1
        self.v.update(g * g, 1 - self.t ** h["beta2_decay"])
        if self.p.ndim == 2:
            rows, cols = self.v.means
            v = np.outer(rows, cols) / max(rows.mean(), h["eps"])
        else:
            v = self.v.v
        u = g / np.sqrt(np.maximum(v, h["eps"] ** 2))
        rate = max(h["eps_param"], rms(self.p)) * min(h["lr"], 1 / math.sqrt(self.t))
        self.decay(h["lr"])
        self.p = self.p - rate * u / max(1, rms(u) / h["clip"])


class Muon(AdamW):
    """Matrices; a vector is AdamW's, with a learning rate of its own."""

    def newton_schulz(self, u):
        a, b, c = self.h["ns_coefficients"]
        tall = u.shape[0] > u.shape[1]
        x = u.T if tall else u
        x = x / max(np.sqrt((x * x).sum()), self.h["ns_eps"])
        for _ in range(self.h["ns_steps"]):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x

    def step(self, g):
        h = self.h
        if self.p.ndim == 1:
            self.t += 1
            self.decay(h["lr"] * h["vector_lr_ratio"])
            self.p = self.p - h["lr"] * h["vector_lr_ratio"] * self.adam(g)
            return
        mu = h["momentum"]
        self.m = mu * self.m + (1 - mu) * g
        u = (1 - mu) * g + mu * self.m if h["nesterov"] else self.m
        rows, cols = g.shape
        scale = {"original": math.sqrt(max(1, rows / cols)), "match_rms_adamw": 0.2 * math.sqrt(max(rows, cols))}
        self.decay(h["lr"])
        self.p = self.p - h["lr"] * scale[h["scale"]] * self.newton_schulz(u)


class Sides(Rule):
    """A rule with a factor for each side. Inactive sides keep the identity."""

    def prepare(self):
        shape = self.p.shape
        sides = range(2) if self.p.ndim == 2 else range(1) if self.h.get("one_dimensional") else ()
        self.active = [s for s in sides if shape[s] <= self.h["max_precond_dim"]]
        if self.h.get("one_sided") and self.p.ndim == 2:
            self.active = [s for s in self.active if s == (0 if shape[0] <= shape[1] else 1)]
        self.cov = [np.zeros_like(self.p, shape=(size, size)) for size in shape]

    def observe(self, g):
        for s in self.active:
            self.cov[s] = self.h["shampoo_beta"] * self.cov[s] + (1 - self.h["shampoo_beta"]) * second_moment(g, s)

    def factor(self, side):
        return disturbed(self.cov[side], self.twist.noise)


class Soap(Sides):
    def prepare(self):
        super().prepare()
        factored = self.h["factorised"] and self.p.ndim == 2
        self.v = (Factored if factored else Full)(self.p)
        self.basis, self.started = [None, None], False
        self.gap, self.reordered = math.inf, 0

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

    def momentum(self, rotated):
        """Update the first moment; return it in the rotated space."""
        if not self.twist.unrotated:
            return super().momentum(rotated)
        return self.forward(super().momentum(self.backward(rotated, self.basis)), self.basis)

    def note_gap(self, descending):
        """Remember how near two neighbouring eigenvalues, or the estimates they are sorted by, have come."""
        self.gap = min(self.gap, (-np.diff(descending)).min() / descending[0])

    def first_basis(self, side):
        values, vectors = np.linalg.eigh(self.factor(side))
        self.note_gap(values[::-1])
        if self.twist.null_space is not None:
            null = values < 1e-10 * values[-1]
            turn, _ = np.linalg.qr(self.twist.null_space.standard_normal((null.sum(), null.sum())))
            vectors[:, null] = vectors[:, null] @ turn
        return vectors[:, ::-1]

    def refresh(self):
        if self.t % self.h["precondition_frequency"]:
            return
        old = list(self.basis)
        for s in self.active:
            cov = self.factor(s)
            estimate = np.diag(old[s].T @ cov @ old[s])
            order = np.argsort(-estimate, kind="stable")
            self.note_gap(estimate[order])
            self.reordered += int((order != np.arange(order.size)).any())
            self.v.permute(order, s)
            q, r = np.linalg.qr(cov @ old[s][:, order])
            self.basis[s] = q * np.where(np.diag(r) < 0, -1, 1).astype(q.dtype) if self.twist.positive_qr else q
        if not self.twist.unrotated:
            self.m = self.forward(self.backward(self.m, old), self.basis)

    def direction(self, g):
        """The update in the rotated space and the factor bias correction puts before it."""
        h = self.h
        m = self.momentum(g)
        self.v.update(g * g, h["beta2"])
        correction = math.sqrt(1 - h["beta2"] ** self.t) / (1 - h["beta1"] ** self.t)
        return m / (self.v.root() + h["eps"]), correction

    def move(self, g):
        h = self.h
        u, correction = self.direction(self.forward(g, self.basis))
        u = self.backward(u, self.basis)
        if h["normalised"]:
            u = u / (1e-30 + rms(u))
        self.p = self.p - h["lr"] * correction * u
        self.decay(h["lr"])

    def step(self, g):
        if not self.started:
            self.started = True
            self.observe(g)
            for s in self.active:
                self.basis[s] = self.first_basis(s)
            if not self.h["skip_first"]:
                self.t = 1
                self.move(g)
            return
        self.t += 1
        if self.h["refresh_first"]:
            self.observe(g)
            self.refresh()
            self.move(g)
        else:
            self.move(g)
            self.observe(g)
            self.refresh()


class RotatedAdafactor(AdafactorUpdate, Soap):
    """Soap's bases, Adafactor's update between them."""

    def prepare(self):
        Soap.prepare(self)

    def direction(self, g):
        return self.momentum(self.clipped(g, self.h["beta2"])), 1


class Shampoo(Sides, AdamW):
    def prepare(self):
        AdamW.prepare(self)
        Sides.prepare(self)
        self.power = [None, None]

    def inverse_power(self, side):
        values, vectors = np.linalg.eigh(self.factor(side))
        values = np.maximum(values, 0)
        return vectors * (values + self.h["ridge"] * values[-1]) ** -self.h["power"] @ vectors.T

    def step(self, g):
        h = self.h
        self.t += 1
        update = adam = self.adam(g)
        self.observe(g)
        if self.t == 1 or self.t % h["precondition_frequency"] == 0:
            for s in self.active:
                self.power[s] = self.inverse_power(s)
        if self.p.ndim == 2:
            update = self.m
            if self.power[0] is not None:
                update = self.power[0] @ update
            if self.power[1] is not None:
                update = update @ self.power[1]
            if h["graft"]:
                update = update * (np.linalg.norm(adam) / np.linalg.norm(update))
        self.decay(h["lr"])
        self.p = self.p - h["lr"] * update
