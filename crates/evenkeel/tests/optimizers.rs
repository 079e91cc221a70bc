//! Every optimiser follows the traces of an independent implementation: PyTorch's where it has one, else float64 NumPy
//! written from the formulas (scripts/golden/optimizers.py, where the cases and what is left out of each are explained).
//!
//! Each case runs twice: in float32 through the kernels, and in float64 through tensor operations.

use candle_core::{DType, Tensor};
use evenkeel::checkpoint::read_tensors;
use evenkeel::optim::adafactor::EpsPlacement;
use evenkeel::optim::muon::MuonScale;
use evenkeel::optim::{
    AdaFactor, AdamW, Eigenbasis, Muon, Optimizer, RotatedAdaFactor, Sgd, Shampoo, Slot, Soap, State,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Tensors = BTreeMap<String, Tensor>;

const STEPS: usize = 60;

fn golden(name: &str) -> Tensors {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    read_tensors(&path).unwrap()
}

fn part(all: &Tensors, prefix: &str, dtype: DType) -> Tensors {
    let named = all.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_string(), v)));
    named.map(|(k, v)| (k, v.to_dtype(dtype).unwrap().copy().unwrap())).collect()
}

fn floats(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Largest difference over the largest magnitude of `want`.
fn deviation(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (floats(got), floats(want));
    assert_eq!(got.len(), want.len());
    let peak = want.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / peak
}

struct Case {
    name: &'static str,
    rule: Box<dyn Optimizer>,
    lr: f64,
    weight_decay: f64,
}

/// Takes the steps of the trace on all parameters; gives the largest deviation from the stored ones.
fn replay(case: &Case, dtype: DType) -> f64 {
    let trace = golden("optimizer_trace.safetensors");
    let expected = golden(&format!("optimizer_{}.safetensors", case.name));
    let parameters = part(&trace, "param.", dtype);
    let mut states: BTreeMap<&String, State> = parameters.keys().map(|k| (k, State::default())).collect();
    let (mut worst, mut compared) = (0.0f64, 0);
    for step in 0..STEPS {
        let gradients = part(&trace, &format!("grad.{step}."), dtype);
        let slot = |(name, state)| Slot {
            parameter: &parameters[name],
            gradient: &gradients[name],
            state,
            lr: case.lr,
            weight_decay: case.weight_decay,
            phase: 0,
        };
        let mut slots: Vec<Slot> = states.iter_mut().map(|(name, state)| slot((*name, state))).collect();
        case.rule.step(&mut slots).unwrap();
        for (name, want) in part(&expected, &format!("expected.{step}."), DType::F64) {
            let d = deviation(&parameters[&name], &want);
            assert!(d.is_finite(), "{}: {name} after step {step}", case.name);
            worst = worst.max(d);
            compared += 1;
        }
    }
    assert!(compared >= 40, "{}: compared {compared}", case.name);
    for (name, state) in &states {
        for (key, tensor) in &state.tensors {
            let known = case.rule.state(parameters[*name].dims());
            assert!(
                known.iter().any(|(k, shape)| k == key && shape == tensor.dims()),
                "{}: {name}/{key} is not as announced",
                case.name
            );
        }
    }
    worst
}

fn follow(cases: Vec<Case>, single: f64) {
    for case in cases {
        let (narrow, wide) = (replay(&case, DType::F32), replay(&case, DType::F64));
        assert!(narrow < single, "{}: float32 deviates by {narrow:.1e}", case.name);
        // What is stored is float32.
        assert!(wide < 2e-7, "{}: float64 deviates by {wide:.1e}", case.name);
    }
}

fn case(name: &'static str, rule: impl Optimizer + 'static, lr: f64, weight_decay: f64) -> Case {
    Case { name, rule: Box::new(rule), lr, weight_decay }
}

#[test]
fn adamw() {
    let large = AdamW { beta1: 0.9, beta2: 0.95, eps: 3e-4 };
    follow(vec![case("adamw", AdamW::default(), 1e-2, 0.1), case("adamw_eps", large, 1e-2, 0.0)], 1e-5);
}

#[test]
fn sgd() {
    let plain = Sgd::default();
    follow(
        vec![
            case("sgd", plain, 0.05, 0.01),
            case("sgd_nesterov", Sgd { nesterov: true, ..plain }, 0.05, 0.01),
            case("sgd_plain", Sgd { beta1: 0.0, ..plain }, 0.05, 0.01),
            case("sgd_dampened", Sgd { beta1: 0.8, dampening: 0.3, ..plain }, 0.05, 0.0),
            case("sgd_decoupled", Sgd { decoupled_decay: true, ..plain }, 0.05, 0.1),
        ],
        1e-5,
    );
}

#[test]
fn adafactor() {
    let fixed = AdaFactor { beta2: 0.95, ..AdaFactor::default() };
    let relative = AdaFactor { eps: 1e-30, eps_placement: EpsPlacement::Squares, ..AdaFactor::torch() };
    follow(
        vec![
            case("adafactor_torch", AdaFactor::torch(), 1e-2, 0.1),
            case("adafactor", fixed, 1e-2, 0.1),
            case("adafactor_relative", relative, 0.02, 0.01),
            case("adafactor_relative_late", relative, 0.2, 0.6),
        ],
        1e-5,
    );
}

#[test]
fn muon() {
    let plain = Muon::default();
    let matched = Muon { scale: MuonScale::MatchRmsAdamw, nesterov: false, ..plain.clone() };
    follow(vec![case("muon", plain.clone(), 0.02, 0.1), case("muon_match", matched, 0.02, 0.0)], 1e-5);
    // PyTorch's own, whose Newton-Schulz steps are bfloat16.
    let torch = replay(&case("muon_torch", plain, 0.02, 0.1), DType::F32);
    assert!(torch < 2e-2, "{torch:.1e}");
}

fn basis() -> Eigenbasis {
    Eigenbasis { max_precond_dim: 16, ..Eigenbasis::default() }
}

#[test]
fn soap() {
    let plain = Soap { beta1: 0.9, beta2: 0.95, basis: basis(), ..Soap::default() };
    let with = |basis: Eigenbasis| Soap { basis, ..plain };
    let b = basis();
    let cases: Vec<(&'static str, Soap)> = vec![
        ("soap", plain),
        ("soap_shampoo_beta", with(Eigenbasis { shampoo_beta: 0.8, precondition_frequency: 3, ..b })),
        ("soap_every_step", with(Eigenbasis { precondition_frequency: 1, ..b })),
        ("soap_one_sided", with(Eigenbasis { one_sided: true, ..b })),
        ("soap_factorised", Soap { factorised: true, ..plain }),
        ("soap_no_skip", Soap { eps: 1e-2, ..with(Eigenbasis { skip_first: false, ..b }) }),
        ("soap_current", with(Eigenbasis { current_gradient: true, precondition_frequency: 4, ..b })),
        ("soap_1d", with(Eigenbasis { precondition_1d: true, ..b })),
        ("soap_normalised", Soap { normalised_update: true, ..plain }),
    ];
    let cases = cases.into_iter().map(|(name, rule)| case(name, rule, 0.03, 0.01)).collect();
    follow(cases, 2e-5);
}

#[test]
fn rotated_adafactor() {
    let inside = AdaFactor { beta1: 0.9, beta2: 0.95, ..AdaFactor::default() };
    follow(vec![case("rotated_adafactor", RotatedAdaFactor { inside, basis: basis() }, 1e-2, 0.1)], 2e-5);
}

#[test]
fn shampoo() {
    let plain = Shampoo { beta1: 0.9, max_precond_dim: 16, precondition_frequency: 5, ..Shampoo::default() };
    follow(
        vec![
            case("shampoo", plain, 1e-2, 0.1),
            case("shampoo_half", Shampoo { exponent: 0.5, ..plain }, 1e-2, 0.1),
            case("shampoo_ungrafted", Shampoo { graft: false, ..plain }, 5e-2, 0.1),
        ],
        2e-5,
    );
}

/// Of tall, wide and partly dead matrices the first basis is arbitrary in the null space, so that iterates cannot be compared
/// (see the script). What does not depend on it: the factors, the trace of their estimated eigenvalues, and that bases are
/// orthogonal.
#[test]
fn factors_of_every_shape_are_averages_of_the_gradients() {
    let trace = golden("optimizer_trace.safetensors");
    let rule = Soap { beta1: 0.9, beta2: 0.95, basis: basis(), ..Soap::default() };
    for name in ["square", "tall", "wide", "long", "zero_rows", "tall_by_one", "wide_by_one"] {
        let parameter = trace[&format!("param.{name}")].copy().unwrap();
        let mut state = State::default();
        let (rows, columns) = parameter.dims2().unwrap();
        let mut want = [vec![0.0f64; rows * rows], vec![0.0f64; columns * columns]];
        // Bases are refreshed at the tenth step that moves, which is call 10; stop there.
        for call in 0..=10 {
            let gradient = trace[&format!("grad.{call}.{name}")].copy().unwrap();
            let g = floats(&gradient);
            for (side, want) in want.iter_mut().enumerate() {
                let n = [rows, columns][side];
                for i in 0..n {
                    for j in 0..n {
                        let product: f64 = match side {
                            0 => (0..columns).map(|k| g[i * columns + k] * g[j * columns + k]).sum(),
                            _ => (0..rows).map(|k| g[k * columns + i] * g[k * columns + j]).sum(),
                        };
                        want[i * n + j] = 0.95 * want[i * n + j] + 0.05 * product;
                    }
                }
            }
            let slot = Slot {
                parameter: &parameter,
                gradient: &gradient,
                state: &mut state,
                lr: 0.03,
                weight_decay: 0.01,
                phase: 0,
            };
            rule.step(&mut [slot]).unwrap();
        }
        assert!(floats(&parameter).iter().all(|v| v.is_finite()), "{name}");
        for (side, n, factor, basis, values) in [
            (0, rows, "gg_left", "q_left", "eigenvalues_left"),
            (1, columns, "gg_right", "q_right", "eigenvalues_right"),
        ] {
            if n > 16 {
                assert!(!state.tensors.contains_key(factor), "{name}");
                continue;
            }
            let got = floats(&state.tensors[factor]);
            let peak = want[side].iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let lower = (0..n * n).filter(|i| i % n <= i / n);
            let off = lower.map(|i| (got[i] - want[side][i]).abs()).fold(0.0, f64::max) / peak;
            assert!(off < 1e-6, "{name}/{factor} deviates by {off:.1e}");
            let trace: f64 = (0..n).map(|i| want[side][i * n + i]).sum();
            let sum: f64 = floats(&state.tensors[values]).iter().sum();
            assert!((sum - trace).abs() < 1e-5 * trace, "{name}/{values}: {sum} is not {trace}");
            let q = floats(&state.tensors[basis]);
            for i in 0..n {
                for j in 0..n {
                    let dot: f64 = (0..n).map(|k| q[k * n + i] * q[k * n + j]).sum();
                    assert!(
                        (dot - f64::from(u8::from(i == j))).abs() < 1e-5,
                        "{name}/{basis} is not orthogonal"
                    );
                }
            }
        }
    }
}
