//! Mean over rows of -log softmax(x Wᵀ) at the target.

use super::{Expected, U, depth, product_bound};
use evenkeel_kernels::gemm::Compute;

/// Loss and gradients.
pub(crate) struct Head {
    pub(crate) loss: Expected,
    pub(crate) x: Expected,
    pub(crate) weight: Expected,
}

/// Of `x` (rows, width) and `weight` (vocab, width). A logit is off by the product's bound; the softmax passes an
/// absolute error of its scores on as a relative one, twice (the score and the sum).
pub(crate) fn head_cross_entropy(
    compute: Compute,
    x: &[f64],
    weight: &[f64],
    targets: &[u32],
    width: usize,
) -> Head {
    let (rows, vocab) = (targets.len(), weight.len() / width);
    let mut out =
        Head { loss: Expected::zeros(1), x: Expected::zeros(x.len()), weight: Expected::zeros(weight.len()) };
    let roundings = depth(vocab) + 12.0;
    for (r, &target) in targets.iter().enumerate() {
        let x_row = &x[r * width..(r + 1) * width];
        let weight_row = |v: usize| &weight[v * width..(v + 1) * width];
        let logits: Vec<f64> =
            (0..vocab).map(|v| x_row.iter().zip(weight_row(v)).map(|(a, b)| a * b).sum()).collect();
        let size = (0..vocab)
            .map(|v| x_row.iter().zip(weight_row(v)).map(|(a, b)| (a * b).abs()).sum::<f64>())
            .fold(0.0, f64::max);
        let logit_error = product_bound(compute, width) * size;
        let peak = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - peak).exp()).sum();
        let inv_rows = 1.0 / rows as f64;
        out.loss.value[0] += (peak + sum.ln() - logits[target as usize]) * inv_rows;
        out.loss.error[0] += (2.0 * logit_error + U * (4.0 * size + sum.ln() + roundings)) * inv_rows;
        let relative = (2.0 * (logit_error + 3.0 * U * size)).exp_m1() + roundings * U;
        for v in 0..vocab {
            let p = (logits[v] - peak).exp() / sum;
            let hit = if v == target as usize { 1.0 } else { 0.0 };
            let d = (p - hit) * inv_rows;
            // The last term: e^x below 2⁻¹²⁶ counts as zero.
            let d_error = (relative * p + 3.0 * U * (p + hit) + 2e-38) * inv_rows;
            for c in 0..width {
                let (x, w) = (x_row[c], weight_row(v)[c]);
                out.x.value[r * width + c] += d * w;
                out.x.error[r * width + c] +=
                    1.05 * (d_error + product_bound(compute, vocab) * d.abs()) * w.abs();
                out.weight.value[v * width + c] += d * x;
                out.weight.error[v * width + c] +=
                    1.05 * (d_error + product_bound(compute, rows) * d.abs()) * x.abs();
            }
        }
    }
    out
}

#[test]
fn reference_gradients_are_the_derivatives_of_the_reference_loss() {
    use super::{numeric_gradient, same_gradient, wide};
    use crate::common::fill;
    let (x, weight, targets) = (wide(&fill(12, 1)), wide(&fill(28, 2)), [6, 0, 3]);
    let loss = |x: &[f64], w: &[f64]| head_cross_entropy(Compute::F32, x, w, &targets, 4).loss.value[0];
    let got = head_cross_entropy(Compute::F32, &x, &weight, &targets, 4);
    same_gradient("x", &got.x.value, &numeric_gradient(&x, |x| loss(x, &weight)));
    same_gradient("weight", &got.weight.value, &numeric_gradient(&weight, |w| loss(&x, w)));
}
