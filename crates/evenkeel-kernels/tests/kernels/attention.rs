//! Attention: output, log Σ exp and all gradients, causal or not, with and without QK-RMSNorm.

use crate::common::{Bits, fill};
use crate::reference::{Attention, wide};
use crate::{refuses, same_on_any_threads};
use evenkeel_kernels::attention::{Gradients, Prepare, QkNorm, Rope, Shape, Softmax, backward, forward};
use evenkeel_kernels::gemm::Compute;

const EPS: f32 = 1e-3;

/// Inputs of one call.
#[derive(Clone)]
struct Inputs {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
    gains: Option<(Vec<f32>, Vec<f32>)>,
}

/// What one call and its backward give.
struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    back: Gradients,
}

impl Inputs {
    fn new(shape: Shape, qk_norm: bool) -> Self {
        let n = shape.sequences * shape.tokens * shape.heads * shape.d_head;
        // Gains around 1, and of both signs.
        let gain = |seed| fill(shape.d_head, seed).iter().map(|v| 0.3 + v).collect();
        let gains = qk_norm.then(|| (gain(5), gain(6)));
        Self { shape, q: fill(n, 1), k: fill(n, 2), v: fill(n, 3), d_out: fill(n, 4), gains }
    }

    fn run(&self) -> Results {
        let norm = self.gains.as_ref().map(|(q_gain, k_gain)| QkNorm {
            q_gain,
            k_gain,
            biases: None,
            eps: EPS,
            eps_inside: false,
        });
        let norm = Prepare { norm, rope: None };
        let mut out = vec![f32::NAN; self.q.len()];
        let lse = forward(self.shape, &self.q, &self.k, &self.v, norm, &mut out);
        let back = backward(self.shape, &self.q, &self.k, &self.v, norm, &out, &lse, &self.d_out);
        Results { out, lse, back }
    }

    fn check(&self) {
        let what = |name: &str| format!("{name}, QK-norm {}, {:?}", self.gains.is_some(), self.shape);
        let reference = Attention {
            shape: self.shape,
            q: wide(&self.q),
            k: wide(&self.k),
            v: wide(&self.v),
            qk_norm: self.gains.as_ref().map(|(q, k)| (wide(q), wide(k), EPS as f64)),
        };
        let got = self.run();
        let (out, lse) = reference.forward();
        out.check(&what("out"), &got.out);
        lse.check(&what("lse"), &got.lse);
        let want = reference.backward(&wide(&self.d_out));
        want.q.check(&what("dq"), &got.back.q);
        want.k.check(&what("dk"), &got.back.k);
        want.v.check(&what("dv"), &got.back.v);
        assert_eq!(want.gains.is_some(), got.back.gains.is_some());
        if let (Some(want), Some(got)) = (want.gains, got.back.gains) {
            want.0.check_wide(&what("d q_gain"), &got.0);
            want.1.check_wide(&what("d k_gain"), &got.1);
        }
    }
}

fn shape(sequences: usize, tokens: usize, heads: usize, d_head: usize) -> Shape {
    let scale = 1.0 / (d_head as f32).sqrt();
    Shape {
        sequences,
        tokens,
        heads,
        kv_heads: heads,
        d_head,
        causal: true,
        window: 0,
        scale,
        softcap: 0.0,
        softmax: Softmax::Standard,
        compute: Compute::F32,
    }
}

/// One head of the variants, written down: out and log Σ exp of every row, for prepared queries and keys in rows.
fn plain(s: Shape, q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<f64>) {
    let row = |i: usize| {
        let end = if s.causal { i + 1 } else { s.tokens };
        let seen = if s.window > 0 { end.saturating_sub(s.window)..end } else { 0..end };
        let scores: Vec<f64> = seen
            .clone()
            .map(|j| {
                let score = s.scale as f64 * q[i].iter().zip(&k[j]).map(|(a, b)| a * b).sum::<f64>();
                let cap = s.softcap as f64;
                if cap > 0.0 { cap * (score / cap).tanh() } else { score }
            })
            .collect();
        let null = if s.softmax == Softmax::NullSlot { 1.0 } else { 0.0 };
        let sum = scores.iter().map(|s| s.exp()).sum::<f64>() + null;
        let weight = |score: f64| match s.softmax {
            Softmax::Clipped { gamma, eta } => {
                ((eta - gamma) as f64 * score.exp() / sum + gamma as f64).clamp(0.0, 1.0)
            }
            _ => score.exp() / sum,
        };
        let out = (0..s.d_head)
            .map(|c| seen.clone().zip(&scores).map(|(j, &score)| weight(score) * v[j][c]).sum())
            .collect();
        (out, sum.ln())
    };
    (0..s.tokens).map(row).unzip()
}

/// Grouped queries, rotations, caps, slots, clipping and windows, alone and together, against the formulas in float64. Their gradients
/// are held to candle's differentiation in the library, where these kernels have their compositions.
#[test]
fn variants_follow_the_formula() {
    let clipped = Softmax::Clipped { gamma: -0.02, eta: 1.05 };
    for tokens in [1, 17, 67] {
        for (kv_heads, half, softcap, softmax, causal, window) in [
            (4, 0, 0.0, Softmax::Standard, true, 0),
            (2, 0, 0.0, Softmax::Standard, false, 0),
            (1, 3, 0.0, Softmax::Standard, true, 0),
            (4, 2, 0.4, Softmax::Standard, true, 0),
            (4, 0, 0.0, Softmax::NullSlot, false, 0),
            (4, 0, 0.0, clipped, true, 0),
            (2, 1, 0.4, clipped, false, 0),
            (2, 3, 0.4, Softmax::NullSlot, true, 0),
            (4, 0, 0.0, Softmax::Standard, true, 1),
            (2, 2, 0.0, Softmax::Standard, true, 5),
            (1, 0, 0.4, clipped, true, 64),
            (4, 0, 0.0, Softmax::NullSlot, true, 65),
            (4, 0, 0.0, Softmax::Standard, true, 66),
        ] {
            let s = Shape { kv_heads, softcap, softmax, causal, window, ..shape(2, tokens, 4, 7) };
            let size = |heads: usize| s.sequences * tokens * heads * s.d_head;
            let (q, k, v) = (fill(size(4), 1), fill(size(kv_heads), 2), fill(size(kv_heads), 3));
            let angle = |t: usize, c: usize| (t * (c + 2)) as f64 * 0.3;
            let table = |f: fn(f64) -> f64| -> Vec<f32> {
                (0..tokens).flat_map(|t| (0..half).map(move |c| f(angle(t, c)) as f32)).collect()
            };
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let rope = (half > 0).then_some(Rope { cos: &cos, sin: &sin, half });
            let mut out = vec![f32::NAN; q.len()];
            let lse = forward(s, &q, &k, &v, Prepare { norm: None, rope }, &mut out);
            let rows = |x: &[f32], heads: usize, b: usize, h: usize, turned: bool| -> Vec<Vec<f64>> {
                let row = |t: usize| {
                    let at = ((b * tokens + t) * heads + h) * s.d_head;
                    let x: Vec<f64> = x[at..at + s.d_head].iter().map(|&v| v as f64).collect();
                    let mut y = x.clone();
                    for c in (0..half).filter(|_| turned) {
                        let (sin, cos) = angle(t, c).sin_cos();
                        y[c] = x[c] * cos - x[c + half] * sin;
                        y[c + half] = x[c + half] * cos + x[c] * sin;
                    }
                    y
                };
                (0..tokens).map(row).collect()
            };
            for b in 0..2 {
                for h in 0..4 {
                    let g = h / (4 / kv_heads);
                    let (q, k) = (rows(&q, 4, b, h, true), rows(&k, kv_heads, b, g, true));
                    let (want, want_lse) = plain(s, &q, &k, &rows(&v, kv_heads, b, g, false));
                    for (t, (got, want)) in rows(&out, 4, b, h, false).iter().zip(&want).enumerate() {
                        for (got, want) in got.iter().zip(want) {
                            assert!((got - want).abs() < 2e-6, "{s:?}: {got} and {want}");
                        }
                        let got = lse[(b * 4 + h) * tokens + t] as f64;
                        assert!((got - want_lse[t]).abs() < 2e-6, "{s:?}: {got} and {}", want_lse[t]);
                    }
                }
            }
        }
    }
}

#[test]
fn values_and_gradients_follow_the_formula() {
    let mut shapes = vec![shape(0, 5, 2, 3), shape(2, 0, 2, 3), shape(2, 5, 0, 3)];
    for tokens in [1, 2, 15, 16, 17, 31, 33] {
        for d_head in [1, 7, 16, 17, 33] {
            shapes.push(shape(2, tokens, 3, d_head));
        }
    }
    // Blocks have 64 queries.
    shapes.extend([63, 64, 65, 131].map(|tokens| shape(1, tokens, 2, 16)));
    for shape in shapes {
        for causal in [false, true] {
            for compute in [Compute::F32, Compute::Bf16] {
                for qk_norm in [false, true] {
                    Inputs::new(Shape { causal, compute, ..shape }, qk_norm).check();
                }
            }
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    for causal in [false, true] {
        let mut inputs = Inputs::new(Shape { causal, scale: 30.0, ..shape(1, 67, 2, 8) }, false);
        inputs.q.iter_mut().for_each(|v| *v *= 5.0);
        inputs.check();
    }
}

#[test]
fn a_query_or_key_of_zeros_is_finite() {
    for qk_norm in [false, true] {
        let mut inputs = Inputs::new(shape(1, 5, 1, 4), qk_norm);
        inputs.q[4..8].fill(0.0);
        inputs.k[8..12].fill(0.0);
        let got = inputs.run();
        let all = [&got.out, &got.lse, &got.back.q, &got.back.k, &got.back.v];
        assert!(all.iter().all(|x| x.iter().all(|v| v.is_finite())));
    }
}

/// Where a special value at one place of one input must arrive in the output and in the gradients, and where it must
/// not. A masked pair of tokens in one block of queries is not asked about where a special value is itself a factor
/// of a product: its weight there is 0, and 0 · NaN is NaN.
#[test]
fn nan_and_infinity_reach_what_sees_them_and_nothing_else() {
    let s = shape(2, 70, 2, 5);
    let (width, b, h) = (s.heads * s.d_head, 1, 0);
    for qk_norm in [false, true] {
        let clean_inputs = Inputs::new(s, qk_norm);
        let clean = clean_inputs.run();
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (token, channel) in [(0, 0), (3, 2), (63, 4), (64, 0), (69, 1)] {
                let at = (b * s.tokens + token) * width + h * s.d_head + channel;
                let with = |set: &dyn Fn(&mut Inputs)| {
                    let mut inputs = clean_inputs.clone();
                    set(&mut inputs);
                    inputs.run()
                };
                // What an element is: token and channel in the head of the special value, or somebody else's.
                let own = |i: usize| {
                    let head = (i / width / s.tokens, i % width / s.d_head);
                    (head == (b, h)).then_some((i / width % s.tokens, i % s.d_head))
                };
                type Rule<'a> = &'a dyn Fn(usize, usize) -> Option<bool>;
                let check = |name: &str, got: &[f32], clean: &[f32], rule: Rule| {
                    for (i, (got, clean)) in got.iter().zip(clean).enumerate() {
                        let good = match own(i).map_or(Some(false), |(t, c)| rule(t, c)) {
                            Some(true) => !got.is_finite(),
                            Some(false) => got.to_bits() == clean.to_bits(),
                            None => true,
                        };
                        let place = (special, token, channel);
                        assert!(good, "{name}: element {i} is {got}, was {clean}, with {place:?}, {qk_norm}");
                    }
                };
                // Tokens that see this one, and tokens that it sees; of the masked ones of its block we ask nothing.
                let masked = |t: usize| t / 64 == token / 64;
                let later = |t: usize| (t >= token || !masked(t)).then_some(t >= token);
                let earlier = |t: usize| (t <= token || !masked(t)).then_some(t <= token);
                let in_channel = |c: usize, rule: Option<bool>| if c == channel { rule } else { Some(false) };
                if special.is_nan() {
                    let got = with(&|x| x.q[at] = special);
                    check("q to out", &got.out, &clean.out, &|t, _| Some(t == token));
                    check("q to dq", &got.back.q, &clean.back.q, &|t, _| Some(t == token));
                    check("q to dk", &got.back.k, &clean.back.k, &|t, _| earlier(t));
                    check("q to dv", &got.back.v, &clean.back.v, &|t, _| Some(t <= token));
                    let got = with(&|x| x.k[at] = special);
                    check("k to out", &got.out, &clean.out, &|t, _| Some(t >= token));
                    check("k to dq", &got.back.q, &clean.back.q, &|t, _| later(t));
                }
                let got = with(&|x| x.v[at] = special);
                check("v to out", &got.out, &clean.out, &|t, c| in_channel(c, later(t)));
                let got = with(&|x| x.d_out[at] = special);
                check("d_out to dq", &got.back.q, &clean.back.q, &|t, _| Some(t == token));
                check("d_out to dk", &got.back.k, &clean.back.k, &|t, _| Some(t <= token));
                check("d_out to dv", &got.back.v, &clean.back.v, &|t, c| in_channel(c, earlier(t)));
            }
        }
    }
}

#[test]
fn the_future_does_not_change_a_bit_of_the_past() {
    let inputs = Inputs::new(shape(1, 130, 2, 9), true);
    let clean = inputs.run();
    let mut other = inputs.clone();
    for x in [&mut other.q, &mut other.k, &mut other.v] {
        x[77 * 18..].iter_mut().for_each(|v| *v = 3.0 - *v);
    }
    let got = other.run();
    assert!(Bits::default().and(&got.out[..77 * 18]) == Bits::default().and(&clean.out[..77 * 18]));
    assert_ne!(got.out[77 * 18..], clean.out[77 * 18..]);
}

#[test]
fn threads_change_no_bit() {
    for compute in [Compute::F32, Compute::Bf16] {
        let inputs = Inputs::new(Shape { compute, ..shape(3, 131, 5, 17) }, true);
        same_on_any_threads("attention", || {
            let got = inputs.run();
            let bits = Bits::default().and(&got.out).and(&got.lse);
            let bits = bits.and(&got.back.q).and(&got.back.k).and(&got.back.v);
            let (q, k) = got.back.gains.unwrap();
            bits.and_wide(&q).and_wide(&k)
        });
    }
}

#[test]
fn sizes_that_disagree_are_refused() {
    let s = shape(1, 4, 2, 3);
    let (zeros, angles) = ([0.0; 24], [0.0; 3]);
    let rope = Rope { cos: &angles, sin: &angles, half: 1 };
    refuses("key heads that do not divide", move || {
        forward(Shape { kv_heads: 3, ..s }, &zeros, &zeros, &zeros, Prepare::default(), &mut [0.0; 24]);
    });
    refuses("a short table of angles", move || {
        let prepare = Prepare { norm: None, rope: Some(rope) };
        forward(s, &zeros, &zeros, &zeros, prepare, &mut [0.0; 24]);
    });
    let run = move |lengths: [usize; 6], gains: [usize; 2]| {
        move || {
            let zeros = |n: usize| vec![0.0f32; n];
            let (q, k, v) = (zeros(lengths[0]), zeros(lengths[1]), zeros(lengths[2]));
            let (q_gain, k_gain) = (zeros(gains[0]), zeros(gains[1]));
            let norm =
                Some(QkNorm { q_gain: &q_gain, k_gain: &k_gain, biases: None, eps: EPS, eps_inside: false });
            let norm = Prepare { norm, rope: None };
            let (mut out, lse, d_out) = (zeros(lengths[3]), zeros(lengths[4]), zeros(lengths[5]));
            if lengths[4] == 8 && lengths[5] == 24 {
                forward(s, &q, &k, &v, norm, &mut out);
            } else {
                backward(s, &q, &k, &v, norm, &out, &lse, &d_out);
            }
        }
    };
    let good = [24, 24, 24, 24, 8, 24];
    run(good, [3, 3])();
    refuses("a long query gain", run(good, [4, 3]));
    refuses("a short key gain", run(good, [3, 2]));
    for i in 0..6 {
        for off in [-1isize, 1] {
            let mut bad = good;
            bad[i] = bad[i].wrapping_add_signed(off);
            refuses("a slice of another length", run(bad, [3, 3]));
        }
    }
}
