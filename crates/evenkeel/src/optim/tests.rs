//! One battery over all optimisers. That each follows its formula is tests/optimizers.rs.

use super::*;
use crate::checkpoint::{read_tensors, write_tensors};
use crate::random;
use crate::slices::tensor;
use candle_core::{DType, Device};

/// Every optimiser at its defaults and with what else changes its code path; all refresh every 3 steps.
fn rules() -> Vec<(String, Rule)> {
    let basis = Eigenbasis { precondition_frequency: 3, max_precond_dim: 16, ..Eigenbasis::default() };
    let soap = Soap { basis, ..Soap::default() };
    let with = |basis: Eigenbasis| Rule::Soap(Soap { basis, ..soap });
    let rotated = RotatedAdaFactor { basis, ..RotatedAdaFactor::default() };
    let shampoo = Shampoo { precondition_frequency: 3, max_precond_dim: 16, ..Shampoo::default() };
    let mut all: Vec<(String, Rule)> = OptimizerName::ALL
        .into_iter()
        .filter(|o| {
            ![OptimizerName::Soap, OptimizerName::RotatedAdafactor, OptimizerName::Shampoo].contains(o)
        })
        .map(|o| (o.name().to_string(), Rule::defaults(o)))
        .collect();
    let more = [
        ("sgd plain", Rule::Sgd(Sgd { beta1: 0.0, ..Sgd::default() })),
        ("sgd nesterov", Rule::Sgd(Sgd { nesterov: true, decoupled_decay: true, ..Sgd::default() })),
        ("soap", Rule::Soap(soap)),
        ("soap one-sided", with(Eigenbasis { one_sided: true, ..basis })),
        ("soap no skip", with(Eigenbasis { skip_first: false, ..basis })),
        ("soap current", with(Eigenbasis { current_gradient: true, ..basis })),
        ("soap vectors", with(Eigenbasis { precondition_1d: true, ..basis })),
        ("soap factorised", Rule::Soap(Soap { factorised: true, ..soap })),
        ("soap normalised", Rule::Soap(Soap { normalised_update: true, ..soap })),
        ("rotated_adafactor", Rule::RotatedAdafactor(rotated)),
        ("shampoo", Rule::Shampoo(shampoo)),
        ("shampoo half", Rule::Shampoo(Shampoo { exponent: 0.5, ..shampoo })),
        ("shampoo ungrafted", Rule::Shampoo(Shampoo { graft: false, ..shampoo })),
        (
            "muon matched",
            Rule::Muon(Muon {
                scale: muon::MuonScale::MatchRmsAdamw,
                adamw_lr_factor: 1.0,
                nesterov: false,
                ..Muon::default()
            }),
        ),
    ];
    all.extend(more.map(|(name, rule)| (name.to_string(), rule)));
    all
}

/// Whether the first call only takes bases.
fn skips(rule: &Rule) -> bool {
    match rule {
        Rule::Soap(soap) => soap.basis.skip_first,
        Rule::RotatedAdafactor(rotated) => rotated.basis.skip_first,
        _ => false,
    }
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let key = random::key(&[seed]);
    let n: usize = shape.iter().product();
    // A sum of uniforms is near enough.
    let draw = |i: usize| (0..6).map(|j| random::uniform(key, (6 * i + j) as u64) - 0.5).sum::<f64>() as f32;
    tensor((0..n).map(draw).collect(), shape).unwrap()
}

/// Square, tall with one side beyond `max_precond_dim`, wide, vector, scalar.
const SHAPES: [&[usize]; 5] = [&[6, 6], &[20, 5], &[4, 9], &[7], &[1]];

struct Run {
    rule: Box<dyn Optimizer>,
    parameters: Vec<Tensor>,
    states: Vec<State>,
}

impl Run {
    fn new(rule: &Rule, parameters: Vec<Tensor>) -> Self {
        let states = vec![State::default(); parameters.len()];
        Self { rule: rule.build(), parameters, states }
    }

    fn step(&mut self, gradients: &[Tensor], lr: f64, weight_decay: f64) {
        let slots = self.parameters.iter().zip(gradients).zip(&mut self.states);
        let slot =
            |((parameter, gradient), state)| Slot { parameter, gradient, state, lr, weight_decay, phase: 0 };
        let mut slots: Vec<Slot> = slots.map(slot).collect();
        self.rule.step(&mut slots).unwrap();
    }

    fn values(&self) -> Vec<Vec<f32>> {
        self.parameters.iter().map(|p| p.flatten_all().unwrap().to_vec1().unwrap()).collect()
    }
}

fn parameters() -> Vec<Tensor> {
    SHAPES.iter().enumerate().map(|(i, s)| normal(i as u64, s)).collect()
}

fn gradients(step: u64) -> Vec<Tensor> {
    SHAPES.iter().enumerate().map(|(i, s)| normal(100 + 10 * step + i as u64, s)).collect()
}

fn total(x: &Tensor) -> f64 {
    arith::sum_squares(x).unwrap()
}

/// A rate with which each rule gets there; they mean different things by it.
fn rate(name: &str) -> f64 {
    match name {
        n if n.starts_with("sgd") => 0.02,
        "adafactor_torch" => 0.3,
        // Its vectors take a small share of the rate.
        "muon" => 1.0,
        "shampoo ungrafted" => 0.2,
        _ => 0.1,
    }
}

#[test]
fn reaches_the_optimum_of_a_quadratic() {
    for (name, rule) in rules() {
        let goals: Vec<Tensor> = SHAPES.iter().enumerate().map(|(i, s)| normal(50 + i as u64, s)).collect();
        // Curvature from 1 to 4, entry by entry.
        let curve = |t: &Tensor| {
            let n = t.elem_count();
            let data = (0..n).map(|i| 1.0 + 3.0 * (i as f32) / n as f32).collect();
            tensor(data, t.shape()).unwrap()
        };
        let curves: Vec<Tensor> = goals.iter().map(curve).collect();
        let mut run = Run::new(&rule, parameters());
        let distance = |run: &Run| -> f64 {
            run.parameters.iter().zip(&goals).map(|(p, goal)| total(&(p - goal).unwrap())).sum()
        };
        let start = distance(&run);
        let steps = 600;
        let schedule = Schedule {
            kind: ScheduleKind::Linear,
            peak: rate(&name),
            warmup: 0,
            steps,
            decay_fraction: 0.0,
            final_fraction: 0.0,
        };
        for step in 0..steps {
            let parts = run.parameters.iter().zip(&goals).zip(&curves);
            let gradients: Vec<Tensor> = parts.map(|((p, g), c)| ((p - g).unwrap() * c).unwrap()).collect();
            run.step(&gradients, schedule.lr(step), 0.0);
        }
        let end = distance(&run);
        assert!(end < 1e-3 * start, "{name}: squared distance {start:.3} became {end:.2e}");
    }
}

#[test]
fn fits_a_small_regression() {
    for (name, rule) in rules() {
        let (x, truth) = (normal(1, &[40, 6]), normal(2, &[6, 5]));
        let offset = normal(3, &[5]);
        let y = x.matmul(&truth).unwrap().broadcast_add(&offset).unwrap();
        let mut run = Run::new(&rule, vec![normal(4, &[6, 5]), normal(5, &[5])]);
        let residual = |run: &Run| {
            let fit = x.matmul(&run.parameters[0]).unwrap().broadcast_add(&run.parameters[1]).unwrap();
            (fit - &y).unwrap()
        };
        let start = total(&residual(&run));
        for step in 0..800u64 {
            let r = (residual(&run) / 20.0).unwrap();
            let gradients = [x.t().unwrap().contiguous().unwrap().matmul(&r).unwrap(), r.sum(0).unwrap()];
            run.step(&gradients, rate(&name) * (1.0 - step as f64 / 800.0), 0.0);
        }
        let end = total(&residual(&run));
        assert!(end < 1e-3 * start, "{name}: squared residual {start:.3} became {end:.2e}");
    }
}

#[test]
fn state_survives_saving_and_loading_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (name, rule) in rules() {
        let mut run = Run::new(&rule, parameters());
        (0..7).for_each(|step| run.step(&gradients(step), 0.01, 0.1));
        let mut all = BTreeMap::new();
        for (i, state) in run.states.iter().enumerate() {
            all.extend(state.tensors.iter().map(|(k, t)| (format!("{i}/{k}"), t.clone())));
            all.insert(format!("{i}/parameter"), run.parameters[i].clone());
        }
        let path = folder.path().join("state.safetensors");
        write_tensors(&path, &all).unwrap();
        let read = read_tensors(&path).unwrap();
        let mut copy =
            Run::new(&rule, (0..SHAPES.len()).map(|i| read[&format!("{i}/parameter")].clone()).collect());
        for (key, tensor) in &read {
            let (i, key) = key.split_once('/').unwrap();
            let i: usize = i.parse().unwrap();
            copy.states[i].steps = run.states[i].steps;
            if key != "parameter" {
                copy.states[i].tensors.insert(key.into(), tensor.clone());
            }
        }
        for step in 7..15 {
            run.step(&gradients(step), 0.01, 0.1);
            copy.step(&gradients(step), 0.01, 0.1);
        }
        assert_eq!(run.values(), copy.values(), "{name}");
    }
}

#[test]
fn without_gradients_nothing_moves_but_by_decay() {
    for (name, rule) in rules() {
        let zeros: Vec<Tensor> = parameters().iter().map(|p| p.zeros_like().unwrap()).collect();
        let mut still = Run::new(&rule, parameters());
        let mut decaying = Run::new(&rule, parameters());
        for _ in 0..5 {
            still.step(&zeros, 0.1, 0.0);
            decaying.step(&zeros, 0.1, 0.5);
        }
        let start = Run::new(&rule, parameters()).values();
        assert_eq!(still.values(), start, "{name}");
        if matches!(&rule, Rule::Sgd(sgd) if !sgd.decoupled_decay) {
            continue;
        }
        let moves = if skips(&rule) { 4 } else { 5 };
        for ((after, before), shape) in decaying.values().iter().zip(&start).zip(SHAPES) {
            let factor = match &rule {
                Rule::Muon(muon) if shape.len() == 1 => muon.adamw_lr_factor,
                _ => 1.0,
            };
            let want = (1.0 - factor * 0.1 * 0.5f64).powi(moves);
            for (a, b) in after.iter().zip(before) {
                assert!((f64::from(*a) - want * f64::from(*b)).abs() <= 1e-6 * f64::from(b.abs()), "{name}");
            }
        }
    }
}

#[test]
fn steps_are_counted_and_states_are_as_announced() {
    for (name, rule) in rules() {
        let mut run = Run::new(&rule, parameters());
        for step in 0..4 {
            run.step(&gradients(step), 0.01, 0.1);
        }
        let want = if skips(&rule) { 3 } else { 4 };
        for (state, shape) in run.states.iter().zip(SHAPES) {
            assert_eq!(state.steps, want, "{name}");
            let announced = run.rule.state(shape);
            assert_eq!(announced.len(), state.tensors.len(), "{name} {shape:?}");
            for (key, shape) in announced {
                assert_eq!(state.tensors[key].dims(), shape, "{name}/{key}");
            }
        }
    }
}

#[test]
fn no_nan_at_extremes_of_epsilon_and_gradient() {
    for (name, rule) in rules() {
        for eps in [0.0, 1e-300, 1e-30, 1e30] {
            let mut rule = rule.clone();
            match &mut rule {
                Rule::Adamw(r) => r.eps = eps,
                Rule::Sgd(_) => {}
                Rule::Adafactor(r) | Rule::AdafactorTorch(r) => r.eps = eps,
                Rule::RotatedAdafactor(r) => r.inside.eps = eps,
                Rule::Shampoo(r) => (r.eps, r.ridge) = (eps, eps.min(1.0)),
                Rule::Soap(r) => r.eps = eps,
                Rule::Muon(r) => (r.eps, r.adamw_eps) = (eps, eps),
            }
            for size in [0.0, 1e-30, 1e-12, 1.0, 1e12] {
                let mut run = Run::new(&rule, parameters());
                for step in 0..7 {
                    let with_holes = |g: Tensor| {
                        let mut data: Vec<f32> = g.flatten_all().unwrap().to_vec1().unwrap();
                        data.iter_mut().for_each(|v| *v *= size);
                        let row = g.dims().last().copied().unwrap_or(1);
                        data.iter_mut().take(row).for_each(|v| *v = 0.0);
                        tensor(data, g.shape()).unwrap()
                    };
                    let g: Vec<Tensor> = gradients(step).into_iter().map(with_holes).collect();
                    run.step(&g, 1e-3, 0.1);
                }
                let finite = run.values().iter().flatten().all(|v| v.is_finite());
                assert!(finite, "{name}, eps {eps:e}, gradients of size {size:e}");
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for (name, rule) in rules() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let shapes: [&[usize]; 3] = [&[130, 70], &[70, 130], &[300]];
                let mut rule = rule.clone();
                match &mut rule {
                    Rule::Soap(soap) => soap.basis.max_precond_dim = 200,
                    Rule::RotatedAdafactor(rotated) => rotated.basis.max_precond_dim = 200,
                    Rule::Shampoo(shampoo) => shampoo.max_precond_dim = 200,
                    _ => {}
                }
                let start = shapes.iter().enumerate().map(|(i, s)| normal(i as u64, s)).collect();
                let mut run = Run::new(&rule, start);
                for step in 0..5u64 {
                    let g: Vec<Tensor> = shapes
                        .iter()
                        .enumerate()
                        .map(|(i, s)| normal(100 + 10 * step + i as u64, s))
                        .collect();
                    run.step(&g, 0.01, 0.1);
                }
                run.values()
            })
        };
        assert_eq!(run(1), run(5), "{name}");
    }
}

/// An orthogonal matrix, float64.
fn rotation(seed: u64, n: usize) -> Tensor {
    let x = normal(seed, &[n, n]).to_dtype(DType::F64).unwrap();
    linalg::power_iteration(&x, &Tensor::eye(n, DType::F64, &Device::Cpu).unwrap()).unwrap().vectors
}

#[test]
fn soap_follows_a_rotation_of_the_coordinates_and_adamw_does_not() {
    let (n, steps) = (6, 12);
    let (left, right) = (rotation(1, n), rotation(2, n));
    let turn =
        |x: &Tensor| left.matmul(x).unwrap().matmul(&right.t().unwrap().contiguous().unwrap()).unwrap();
    let goal = normal(3, &[n, n]).to_dtype(DType::F64).unwrap();
    // A loss whose curvature differs by row, in coordinates where that is visible or in others.
    let scale: Vec<f64> = (0..n).map(|i| 0.3 + i as f64).collect();
    let scale = Tensor::new(scale, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
    let deviation = |rule: &Rule, dtype: DType| -> f64 {
        let start = normal(4, &[n, n]).to_dtype(DType::F64).unwrap();
        let cast = |t: Tensor| t.to_dtype(dtype).unwrap();
        let mut plain = Run::new(rule, vec![cast(start.copy().unwrap())]);
        let mut turned = Run::new(rule, vec![cast(turn(&start))]);
        let back = |p: &Tensor| {
            let p = p.to_dtype(DType::F64).unwrap();
            left.t().unwrap().contiguous().unwrap().matmul(&p).unwrap().matmul(&right).unwrap()
        };
        let gradient = |p: &Tensor| (p - &goal).unwrap().broadcast_mul(&scale).unwrap();
        for _ in 0..steps {
            let g = gradient(&plain.parameters[0].to_dtype(DType::F64).unwrap());
            plain.step(&[cast(g)], 0.02, 0.01);
            let g = turn(&gradient(&back(&turned.parameters[0])));
            turned.step(&[cast(g)], 0.02, 0.01);
        }
        let other = back(&turned.parameters[0]);
        let one = plain.parameters[0].to_dtype(DType::F64).unwrap();
        (total(&(&one - other).unwrap()) / total(&(&one - start).unwrap())).sqrt()
    };
    // The first basis makes the first gradient diagonal, and with a small ε Adam would blow up the rounding beside it.
    let soap = Rule::Soap(Soap { eps: 1e-2, ..Soap::default() });
    let (exact, single) = (deviation(&soap, DType::F64), deviation(&soap, DType::F32));
    assert!(exact < 1e-6, "{exact:.1e}");
    assert!(single < 1e-3, "{single:.1e}");
    let rotated = deviation(&Rule::RotatedAdafactor(RotatedAdaFactor::default()), DType::F64);
    assert!(rotated < 1e-6, "{rotated:.1e}");
    let adamw = AdamW { eps: 1e-2, ..AdamW::default() };
    for rule in [Rule::Adamw(adamw), Rule::Adafactor(AdaFactor::default())] {
        let d = deviation(&rule, DType::F64);
        assert!(d > 0.05, "{rule:?} deviates by {d:.1e} only");
    }
}

#[test]
fn spread_refreshes_do_the_same_work_on_other_steps() {
    let basis = Eigenbasis { precondition_frequency: 4, spread_refresh: true, ..Eigenbasis::default() };
    let rule = Soap { basis, ..Soap::default() };
    assert_eq!(rule.periodic(&[6, 6]).unwrap().every, 4);
    assert!(rule.periodic(&[6]).is_none());
    let mut refreshed = Vec::new();
    let (p, mut state) = (normal(1, &[6, 6]), State::default());
    for call in 0..12u64 {
        let before = state.tensors.get("q_left").cloned();
        let g = normal(20 + call, &[6, 6]);
        let slot =
            Slot { parameter: &p, gradient: &g, state: &mut state, lr: 0.01, weight_decay: 0.0, phase: 3 };
        rule.step(&mut [slot]).unwrap();
        if before.is_some_and(|q| total(&(q - &state.tensors["q_left"]).unwrap()) > 0.0) {
            refreshed.push(call);
        }
    }
    assert_eq!(refreshed, [1, 5, 9]);
    assert!(condition(&state).unwrap().unwrap() > 1.0);
}

#[test]
fn bases_of_factors_that_are_hard() {
    // Of a vocabulary of which a batch holds a few words: mostly zero rows, tiny, low rank.
    let (n, k) = (600, 24);
    for scale in [1e-18f32, 1e-9, 1.0, 1e9] {
        let g = normal(1, &[n, k]);
        let mut data: Vec<f32> = g.flatten_all().unwrap().to_vec1().unwrap();
        for (i, v) in data.iter_mut().enumerate() {
            // Averages of what was there once are small and not zero.
            let rest = [0.0, 1e-10, 1e-20][(i / k) % 3];
            *v *= if (i / k) % 7 == 0 { scale } else { scale * rest };
        }
        let g = tensor(data, (n, k)).unwrap();
        let gg = tensor(vec![0.0; n * n], (n, n)).unwrap();
        arith::blend_outer(&gg, &g, Side::Left, 0.95, 0.05).unwrap();
        let found = linalg::eigen(&gg).unwrap();
        let q = &found.vectors;
        let identity = q.t().unwrap().contiguous().unwrap().matmul(q).unwrap();
        let off = total(&(identity - Tensor::eye(n, DType::F32, &Device::Cpu).unwrap()).unwrap()).sqrt();
        assert!(off < 1e-3, "{scale:e}: orthogonal to {off:.1e}");
        assert!(found.values.windows(2).all(|w| w[0] >= w[1]), "{scale:e}");
        // What no gradient reached is left alone: its eigenvectors are unit vectors, exactly.
        let rows = q.to_vec2::<f32>().unwrap();
        for row in rows.iter().enumerate().filter(|(i, _)| i % 7 != 0).map(|(_, row)| row) {
            let ones = row.iter().filter(|&&v| v == 1.0).count();
            assert!(ones == 1 && row.iter().filter(|&&v| v == 0.0).count() == n - 1, "{scale:e}");
        }
        // The trace is kept.
        let want = 0.05 * total(&g);
        let sum: f64 = found.values.iter().sum();
        assert!((sum - want).abs() < 1e-4 * want, "{scale:e}: {sum:e} {want:e}");
    }
    let zero = tensor(vec![0.0; 9], (3, 3)).unwrap();
    assert_eq!(linalg::eigen(&zero).unwrap().values, [0.0; 3]);
    let bad = tensor(vec![f32::NAN; 9], (3, 3)).unwrap();
    assert!(linalg::eigen(&bad).is_err());
}

#[test]
fn newton_schulz_makes_singular_values_one_and_keeps_singular_vectors() {
    for (rows, columns) in [(12, 12), (20, 6), (5, 17)] {
        let x = normal(7, &[rows, columns]);
        let o = linalg::newton_schulz(&x, 5, 1e-7).unwrap();
        let gram = |t: &Tensor| {
            let tt = t.t().unwrap().contiguous().unwrap();
            if rows > columns { tt.matmul(t).unwrap() } else { t.matmul(&tt).unwrap() }
        };
        let values = linalg::eigen(&gram(&o)).unwrap().values;
        let range = (values.last().unwrap().sqrt(), values[0].sqrt());
        // The smallest singular values of a square matrix need more than five steps.
        assert!(range.1 < 1.25 && (rows == columns || range.0 > 0.6), "{rows} x {columns}: {range:?}");
        // o xᵀ is symmetric and positive: the same singular vectors.
        let cross = o.matmul(&x.t().unwrap().contiguous().unwrap()).unwrap();
        let skew = (&cross - cross.t().unwrap()).unwrap();
        assert!(total(&skew) < 1e-8 * total(&cross), "{rows} x {columns}");
    }
}

#[test]
fn clipping_and_norms() {
    let g = [tensor(vec![3.0, -4.0], 2).unwrap(), tensor(vec![12.0], 1).unwrap()];
    assert_eq!(global_norm(&g).unwrap(), 13.0);
    clip_value(&g, 0.0).unwrap();
    clip(&g, 13.0, 0.0).unwrap();
    assert_eq!(global_norm(&g).unwrap(), 13.0);
    clip_value(&g, 3.5).unwrap();
    assert_eq!(g[0].to_vec1::<f32>().unwrap(), [3.0, -3.5]);
    assert_eq!(g[1].to_vec1::<f32>().unwrap(), [3.5]);
    let norm = global_norm(&g).unwrap();
    clip(&g, norm, 1.0).unwrap();
    assert!((global_norm(&g).unwrap() - 1.0).abs() < 1e-5);
    let (old, new) = (tensor(vec![3.0, 4.0], 2).unwrap(), tensor(vec![3.0, 3.5], 2).unwrap());
    assert_eq!(update_ratio([&new], &[old]).unwrap(), Some(0.1));
    assert_eq!(update_ratio([&new], &[new.zeros_like().unwrap()]).unwrap(), None);
}
