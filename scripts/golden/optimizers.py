"""Golden files: sixty steps of each optimiser on given gradients, in float64 (NumPy; torch where it has the rule).

Writes optimizer_trace.safetensors (parameters and gradients, shared by all) and optimizer_CASE.safetensors for each
CASE below. The rules are in optimizer_rules.py.

Keys (all float32)
    trace: param.NAME; grad.STEP.NAME for STEP 0..59, rounded to float32 before use.
    case: expected.STEP.NAME, the parameter after that step, for STEP 0, 1, 2, 3, 9, 10, 11, 29, 58, 59.
    Metadata `about`: the settings. Their names by symbol: lr, wd = weight_decay, b1 = beta1, b2 = beta2,
    bs = shampoo_beta, k = precondition_frequency, d = clip, mu = momentum; the rest by their own names.
    NAME: square 12x12, tall 14x6, wide 6x14, long 20x6 (20 is above max_precond_dim), tall_by_one 8x7, wide_by_one 7x8,
    zero_rows 12x8 (gradient of rows 3 and 7 and of column 2 exactly 0), vector 9, pair 2 (a vector too).

Gradients: a rank-2 signal whose directions turn slowly; a fixed orthogonal frame with singular values 2.4 to 0.8, each
swinging by 30 %, so that a matrix is well conditioned from the first gradient on and eigenvalues change places; noise.

Formulas. G gradient, p parameter, t = STEP + 1, the learning rate constant, EMAs start from 0; squares, roots and
quotients are elementwise.

adamw, adamw_eps (torch.optim.AdamW; eps 3e-4, wd 0, b2 .95 in the second)
    p <- p (1 - lr wd);  m <- b1 m + (1 - b1) G;  v <- b2 v + (1 - b2) G^2
    p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
sgd, sgd_nesterov, sgd_plain (no momentum), sgd_dampened, sgd_decoupled (torch.optim.SGD, but for the last)
    D = G + wd p;  buf <- D at t = 1, else momentum buf + (1 - dampening) D;  p <- p - lr (nesterov: D + momentum buf;
    else buf). decoupled: p <- p (1 - lr wd) first, and D = G.
adafactor
    R <- b2 R + (1 - b2) mean_j(G^2 + eps);  C likewise with mean_i;  V_ij = R_i C_j / mean(R).  A vector:
    V <- b2 V + (1 - b2)(g^2 + eps).  u = G / sqrt(V);  u <- u / max(1, RMS(u) / d);  m <- b1 m + (1 - b1) u
    p <- p (1 - lr wd);  p <- p - lr m.  In float32 take the roots first: R_i C_j of zero_rows is 1e-63.
adafactor_relative (b1 = 0, b2 = 1 - t^beta2_decay)
    lr of the last formula replaced by max(eps_param, RMS(p)) min(lr, 1 / sqrt(t)), RMS(p) before the decay.
adafactor_relative_late: lr .2, wd .6, so that 1 / sqrt(t) is the smaller one from t = 26 on.
adafactor_torch: torch.optim.Adafactor(eps=(eps, eps_param)). As adafactor_relative, but nothing is added to G^2;
    V_ij = R_i C_j / max(mean(R), eps);  u = G / sqrt(max(V, eps^2)).
muon, matrices
    M <- mu M + (1 - mu) G;  U = nesterov: (1 - mu) G + mu M, else M;  X = U / max(||U||_F, ns_eps), transposed if
    rows > cols;  ns_steps times: A = X X^T, X <- a X + (b A + c A A) X with ns_coefficients a, b, c;  transposed back
    p <- p (1 - lr wd) - lr scale X.  scale "original": sqrt(max(1, rows / cols)); "match_rms_adamw":
    0.2 sqrt(max(rows, cols)).  A vector: adamw with b1, b2, eps, and vector_lr_ratio lr in place of lr, decay included.
muon_match: the other scale, no Nesterov, no decay.  muon_torch: torch.optim.Muon with muon's settings, parameters in
    float32, its Newton-Schulz in bfloat16; matrices only. Within 2e-2 of muon.
soap
    First call: L = (1 - bs) G G^T, R = (1 - bs) G^T G; Q_L and Q_R their eigenvectors, columns by descending
    eigenvalue. Nothing else happens, for vectors too: no step, no decay; m', v and n stay.  Call n = STEP = 1, 2, ...:
      1. G' = Q_L^T G Q_R
      2. m' <- b1 m' + (1 - b1) G';  v <- b2 v + (1 - b2) G'^2
      3. p <- p - lr sqrt(1 - b2^n) / (1 - b1^n) Q_L (m' / (sqrt(v) + eps)) Q_R^T
      4. p <- p - lr wd p
      5. L <- bs L + (1 - bs) G G^T, R likewise
      6. if k divides n, per side: order = descending diag(Q^T L Q); permute that axis of v by it; Q_new = the Q of
         QR(L Q[:, order]);  m' <- Q_new^T (Q_old m')
    A side longer than max_precond_dim keeps the identity. A vector: the same without rotation.
soap_shampoo_beta: bs .8, k 3.  soap_every_step: k 1.
soap_one_sided: only the shorter side (rows if rows <= cols) has a factor and a basis.
soap_factorised, matrices: R_v <- b2 R_v + (1 - b2) mean_j(G'^2), C_v likewise with mean_i, v = R_v C_v / mean(R_v);
    a refresh permutes R_v by the left order, C_v by the right one.
soap_no_skip: the first call makes L, R and the bases, then does 1. to 4. with n = 1 and the same gradient, but not
    5. and 6.; from then on as usual, n = t. Its eps is 1e-2: the first G' is diagonal by construction, and with 1e-8
    what rounding leaves off the diagonal would be blown up to size 1 (float32 differs from float64 by 2e-2 of max|p|).
soap_current: k 4; after the first call 5. and 6. come before 1. to 4.
soap_1d: a vector has one factor L = EMA of g g^T and its basis, G' = Q^T g, by the rules above.
soap_normalised: Q_L (...) Q_R^T of 3., or a vector's u, divided by 1e-30 + RMS of itself; bias correction stays.
rotated_adafactor
    First call as soap's. Then G' as in 1.; adafactor's R, C, V, u (with eps and clipping) on G'; m' on the clipped u;
    p <- p - lr Q_L m' Q_R^T; 4. to 6., R_i permuted by the left order, C_j by the right one. A vector: the same without
    rotation, that is adafactor with its first call skipped and the decay after the step.
shampoo, shampoo_half (power .5), shampoo_ungrafted
    m, v as adamw's; L <- bs L + (1 - bs) G G^T, R likewise. If t = 1 or k divides t: P_L = (L + e I)^-power with
    e = ridge times L's largest eigenvalue, eigenvalues below 0 counting as 0; P_R likewise; a side longer than
    max_precond_dim: P = I.  U = P_L m P_R;  A = adamw's update (bias-corrected);  graft: U <- U ||A||_F / ||U||_F
    p <- p (1 - lr wd) - lr U.  A vector: U = A.

Left out, because what the numbers come to is arbitrary:
    tall, wide, zero_rows of every soap case but soap_one_sided, and of rotated_adafactor: the first factor of a longer
    side has rank 6 (7 for zero_rows). SOAP's basis of its null space is any basis, and Adam's v is not invariant
    under a turn of it: another one moves the parameters by 0.1. tall_by_one and wide_by_one have a null space of
    dimension one, hence of arbitrary sign only, and stand in for them.
    zero_rows of soap_one_sided: exact arithmetic is fine, but a basis off by 1e-7 makes noise of the dead column, which
    Adam blows up to size 1.
    tall, wide, zero_rows, tall_by_one and wide_by_one of every shampoo case: in the null space of the first factor, e
    and rounding alone make P, up to 1e3 (1e6 for power .5) times what it is elsewhere, and steps 1 to 3 still use it.
    vector of soap_1d: its first factor has rank 1. pair has a null space of dimension one and stands in.

Checked here, limits of the largest deviation (most are relative to max|p|):
    AdamW, SGD and the relative Adafactors against torch: 1e-12; muon_torch against muon: 2e-2, absolute.
    What is stored of soap cases and rotated_adafactor, against two formulations equal in exact arithmetic (m kept
    unrotated; signs of the QR turned): 1e-9, absolute; against another basis of the first null space: 1e-8, absolute;
    against factors disturbed by a relative 1e-7: 3e-5 (shampoo cases: 1e-6, absolute).
    Everything stored, float32 against float64: 3e-5. What is left out moves by more than 1e-3.
"""

import numpy as np
import torch

from common import out_directory, write
from optimizer_rules import (
    PLAIN,
    Adafactor,
    AdamW,
    Muon,
    RotatedAdafactor,
    Sgd,
    Shampoo,
    Sides,
    Soap,
    TorchAdafactor,
    Twist,
)

SEED, STEPS = 2024, 60
KEPT = (0, 1, 2, 3, 9, 10, 11, 29, 58, 59)
SHAPES = {
    "square": (12, 12), "tall": (14, 6), "wide": (6, 14), "long": (20, 6), "zero_rows": (12, 8),
    "vector": (9,), "pair": (2,), "tall_by_one": (8, 7), "wide_by_one": (7, 8),
}  # fmt: skip
VECTORS = ("vector", "pair")

ADAMW = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
SGD = {
    "lr": 0.05, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.01, "decoupled": False,
}  # fmt: skip
ADAFACTOR = {
    "lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "beta2_decay": None, "eps": 1e-30, "eps_param": None, "clip": 1.0,
    "relative": False, "weight_decay": 0.1,
}  # fmt: skip
RELATIVE = ADAFACTOR | {
    "lr": 0.02, "beta1": 0.0, "beta2": None, "beta2_decay": -0.8, "eps_param": 1e-3, "relative": True,
    "weight_decay": 0.01,
}  # fmt: skip
TORCH_ADAFACTOR = {
    "lr": 1e-2, "beta2_decay": -0.8, "eps": 1.1920928955078125e-07, "eps_param": 1e-3, "clip": 1.0,
    "weight_decay": 0.1,
}  # fmt: skip
MUON = {
    "lr": 0.02, "momentum": 0.95, "nesterov": True, "scale": "original", "ns_coefficients": [3.4445, -4.775, 2.0315],
    "ns_steps": 5, "ns_eps": 1e-7, "weight_decay": 0.1,
    "vector_lr_ratio": 0.015, "beta1": 0.9, "beta2": 0.95, "eps": 1e-10,
}  # fmt: skip
SOAP = {
    "lr": 3e-2, "beta1": 0.9, "beta2": 0.95, "shampoo_beta": 0.95, "eps": 1e-8, "weight_decay": 0.01,
    "precondition_frequency": 10, "max_precond_dim": 16, "one_sided": False, "factorised": False,
    "skip_first": True, "refresh_first": False, "one_dimensional": False, "normalised": False,
}  # fmt: skip
ROTATED = SOAP | {"lr": 1e-2, "eps": 1e-30, "clip": 1.0, "weight_decay": 0.1, "factorised": True}
SHAMPOO = {
    "lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "shampoo_beta": 0.95, "eps": 1e-8, "ridge": 1e-12, "power": 0.25,
    "graft": True, "weight_decay": 0.1, "precondition_frequency": 5, "max_precond_dim": 16,
}  # fmt: skip

NULL = ("tall", "wide", "zero_rows")
NULL_OR_NEAR = (*NULL, "tall_by_one", "wide_by_one")
# case: rule, settings, names left out
CASES = {
    "adamw": (AdamW, ADAMW, ()),
    "adamw_eps": (AdamW, ADAMW | {"beta2": 0.95, "eps": 3e-4, "weight_decay": 0.0}, ()),
    "sgd": (Sgd, SGD, ()),
    "sgd_nesterov": (Sgd, SGD | {"nesterov": True}, ()),
    "sgd_plain": (Sgd, SGD | {"momentum": 0.0}, ()),
    "sgd_dampened": (Sgd, SGD | {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.0}, ()),
    "sgd_decoupled": (Sgd, SGD | {"weight_decay": 0.1, "decoupled": True}, ()),
    "adafactor_torch": (TorchAdafactor, TORCH_ADAFACTOR, ()),
    "adafactor": (Adafactor, ADAFACTOR, ()),
    "adafactor_relative": (Adafactor, RELATIVE, ()),
    "adafactor_relative_late": (Adafactor, RELATIVE | {"lr": 0.2, "weight_decay": 0.6}, ()),
    "muon": (Muon, MUON, ()),
    "muon_match": (Muon, MUON | {"nesterov": False, "scale": "match_rms_adamw", "weight_decay": 0.0}, ()),
    "muon_torch": (Muon, MUON, VECTORS),
    "soap": (Soap, SOAP, NULL),
    "soap_shampoo_beta": (Soap, SOAP | {"shampoo_beta": 0.8, "precondition_frequency": 3}, NULL),
    "soap_every_step": (Soap, SOAP | {"precondition_frequency": 1}, NULL),
    "soap_one_sided": (Soap, SOAP | {"one_sided": True}, ("zero_rows",)),
    "soap_factorised": (Soap, SOAP | {"factorised": True}, NULL),
    "soap_no_skip": (Soap, SOAP | {"skip_first": False, "eps": 1e-2}, NULL),
    "soap_current": (Soap, SOAP | {"refresh_first": True, "precondition_frequency": 4}, NULL),
    "soap_1d": (Soap, SOAP | {"one_dimensional": True}, (*NULL, "vector")),
    "soap_normalised": (Soap, SOAP | {"normalised": True}, NULL),
    "rotated_adafactor": (RotatedAdafactor, ROTATED, NULL),
    "shampoo": (Shampoo, SHAMPOO, NULL_OR_NEAR),
    "shampoo_half": (Shampoo, SHAMPOO | {"power": 0.5}, NULL_OR_NEAR),
    "shampoo_ungrafted": (Shampoo, SHAMPOO | {"graft": False, "lr": 5e-2}, NULL_OR_NEAR),
}


def turning(rng, size, step):
    """A unit vector of `size` per call, turned by 0.03 rad a step in a random plane."""
    plane, _ = np.linalg.qr(rng.standard_normal((size, 2)))
    return plane @ np.array([np.cos(0.03 * step), np.sin(0.03 * step)])


def orthogonal(rng, rows, cols):
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def gradients(rng, name):
    """[STEPS] arrays, float64 values that float32 holds exactly."""
    shape = SHAPES[name]
    rows, cols = shape if len(shape) == 2 else (shape[0], 1)
    seeds = rng.integers(0, 2**31, 4)
    rank = min(rows, cols) if len(shape) == 2 else 0
    left, right = orthogonal(rng, rows, rank), orthogonal(rng, cols, rank)
    sizes, phase, speed = np.geomspace(2.4, 0.8, rank), rng.uniform(0, 2 * np.pi, rank), rng.uniform(0.1, 0.4, rank)
    noise_scale = (0.15 if rank else 0.4) * np.outer(0.95 ** np.arange(rows), 0.95 ** np.arange(cols))
    result = []
    for step in range(STEPS):
        u1, u2 = (turning(np.random.default_rng(s), rows, step) for s in seeds[:2])
        v1, v2 = (turning(np.random.default_rng(s), max(cols, 2), step)[:cols] for s in seeds[2:])
        g = 1.0 * np.outer(u1, v1) + 0.5 * np.outer(u2, v2)
        g = g + left * (sizes * (1 + 0.3 * np.sin(phase + speed * step))) @ right.T
        g = g + noise_scale * rng.standard_normal((rows, cols))
        if name == "zero_rows":
            g[[3, 7]] = 0
            g[:, 2] = 0
        result.append(g.reshape(shape).astype(np.float32).astype(np.float64))
    return result


def run(rule, settings, param, grads, twist=PLAIN):
    """Parameters after each step, [STEPS] arrays, and the rule at the end."""
    state, trace = rule(param, settings, twist), []
    for g in grads:
        state.step(g.astype(param.dtype))
        assert state.p.dtype == param.dtype
        trace.append(state.p.copy())
    return trace, state


def run_torch(make, param, grads):
    """The same for a torch optimiser, in the parameter's dtype."""
    p = torch.tensor(param, requires_grad=True)
    optimiser, trace = make([p]), []
    for g in grads:
        p.grad = torch.tensor(g.astype(param.dtype))
        optimiser.step()
        trace.append(p.detach().numpy().copy())
    return trace


def torch_rule(case, h):
    """Makes torch's optimiser of a case, or None where torch has none."""
    if case in ("adamw", "adamw_eps"):
        return lambda p: torch.optim.AdamW(
            p, lr=h["lr"], betas=(h["beta1"], h["beta2"]), eps=h["eps"], weight_decay=h["weight_decay"], foreach=False
        )
    if case.startswith("sgd") and not h["decoupled"]:
        return lambda p: torch.optim.SGD(p, **{k: v for k, v in h.items() if k != "decoupled"}, foreach=False)
    if case == "adafactor_torch" or h.get("relative"):  # a floor of 1e-30 and an addend of 1e-30 come to the same here
        return lambda p: torch.optim.Adafactor(
            p, lr=h["lr"], beta2_decay=h["beta2_decay"], eps=(h["eps"], h["eps_param"]), d=h["clip"],
            weight_decay=h["weight_decay"], foreach=False,
        )  # fmt: skip
    if case == "muon_torch":
        return lambda p: torch.optim.Muon(
            p, lr=h["lr"], weight_decay=h["weight_decay"], momentum=h["momentum"], nesterov=h["nesterov"],
            ns_coefficients=tuple(h["ns_coefficients"]), eps=h["ns_eps"], ns_steps=h["ns_steps"],
            adjust_lr_fn=h["scale"],
        )  # fmt: skip
    return None


def deviation(a, b):
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True))


def sensitivity(case, param, grads, trace):
    """How far `trace` moves under another first null space, and under disturbed factors (worst of three draws)."""
    rule, h, _ = CASES[case]

    def moved(kind):
        twists = (Twist(**{kind: np.random.default_rng(seed)}) for seed in range(3))
        return max(deviation(trace, run(rule, h, param, grads, twist)[0]) for twist in twists)

    return moved("null_space"), moved("noise")


def check_formulations(case, param, grads, trace, state):
    rule, h, _ = CASES[case]
    for twist in (Twist(unrotated=True), Twist(positive_qr=True)):
        off = deviation(trace, run(rule, h, param, grads, twist)[0])
        assert off < 1e-9, (case, twist, off)
    assert state.gap > 1e-5, (case, state.gap)  # else the order of the columns could depend on rounding
    assert state.reordered or min(param.shape) < 12, case


def expected(case, name, param, grads):
    """The trace to store, or None if the name is left out; and the deviations: torch, float32, noise."""
    rule, h, left_out = CASES[case]
    trace, state = run(rule, h, param, grads)
    size, off = max(np.abs(p).max() for p in trace), {}
    if issubclass(rule, Sides):
        null, noise = sensitivity(case, param, grads, trace)
        if name in left_out:
            assert max(null, noise) > 1e-3, (case, name, null, noise)
            return None, off
        assert null < 1e-8, (case, name, null)
        assert noise < (1e-6 if rule is Shampoo else 3e-5 * size), (case, name, noise)
        off["noise"] = noise / size
    elif name in left_out:
        return None, off
    if issubclass(rule, Soap):
        check_formulations(case, param, grads, trace, state)
    single = param.astype(np.float32)
    off["float32"] = deviation(trace, run(rule, h, single, grads)[0]) / size
    assert off["float32"] < 3e-5, (case, name, off)
    make = torch_rule(case, h)
    if make is not None:
        given, limit = (single, 2e-2) if case == "muon_torch" else (param, 1e-12 * size)
        other = run_torch(make, given, grads)
        off["torch"] = deviation(trace, other)
        assert off["torch"] < limit, (case, name, off)
        trace = other
    return trace, off


def main():
    out = out_directory(__doc__)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    params = {n: rng.standard_normal(s).astype(np.float32).astype(np.float64) for n, s in SHAPES.items()}
    grads = {n: gradients(rng, n) for n in SHAPES}
    condition = max(np.linalg.cond(g) for g in grads["square"])
    assert condition < 30, condition
    print(f"largest condition number of a gradient of square: {condition:.1f}")
    given = {f"param.{n}": p.astype(np.float32) for n, p in params.items()}
    given |= {f"grad.{t}.{n}": g.astype(np.float32) for n, gs in grads.items() for t, g in enumerate(gs)}
    write(out / "optimizer_trace.safetensors", given, {"seed": SEED, "steps": STEPS})
    for case, (_, settings, _) in CASES.items():
        tensors, worst = {}, {}
        for name in SHAPES:
            trace, off = expected(case, name, params[name], grads[name])
            worst = {kind: max(worst.get(kind, 0), off.get(kind, 0)) for kind in worst | off}
            if trace is not None:
                tensors |= {f"expected.{t}.{name}": trace[t].astype(np.float32) for t in KEPT}
        write(out / f"optimizer_{case}.safetensors", tensors, settings)
        print("   deviations:", ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items()))


if __name__ == "__main__":
    main()
