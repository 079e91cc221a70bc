//! LayerNorm and RMSNorm, y = (x - μ) r · gain + bias.

use super::{Expected, U, depth};
use evenkeel_kernels::norm::Centre;

/// One norm over rows of `width`.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) gain: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    pub(crate) width: usize,
    pub(crate) centre: Centre,
    pub(crate) eps: f64,
}

/// What flows back.
pub(crate) struct NormGradients {
    pub(crate) x: Expected,
    pub(crate) gain: Expected,
    pub(crate) bias: Expected,
}

/// A row's statistics.
struct Row {
    mean: f64,
    rstd: f64,
    /// r · mean |x|: what one rounding of the mean does to x̂.
    shift: f64,
    /// x̂
    normed: Vec<f64>,
}

impl Norm {
    fn row(&self, x: &[f64]) -> Row {
        let n = x.len() as f64;
        let centred = self.centre == Centre::Mean;
        let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (variance + self.eps).sqrt();
        let shift = if centred { rstd * x.iter().map(|v| v.abs()).sum::<f64>() / n } else { 0.0 };
        Row { mean, rstd, shift, normed: x.iter().map(|v| (v - mean) * rstd).collect() }
    }

    fn gain_at(&self, c: usize) -> f64 {
        self.gain.as_ref().map_or(1.0, |g| g[c])
    }

    /// y, the means and the reciprocal scales. The mean is off by D u mean|x|, the variance by (D + 3) u of itself, so
    /// r by half of that; a handful of roundings follow.
    pub(crate) fn forward(&self, x: &[f64]) -> (Expected, Expected, Expected) {
        let (mut y, mut mean, mut rstd) = <(Expected, Expected, Expected)>::default();
        let roundings = depth(self.width) + 8.0;
        for x in x.chunks_exact(self.width) {
            let row = self.row(x);
            mean.push(row.mean, roundings * U * row.shift / row.rstd);
            rstd.push(row.rstd, roundings * U * row.rstd);
            for (c, &normed) in row.normed.iter().enumerate() {
                let (g, b) = (self.gain_at(c), self.bias.as_ref().map_or(0.0, |b| b[c]));
                let size = g.abs() * (normed.abs() + row.shift) + b.abs();
                y.push(normed * g + b, roundings * U * size);
            }
        }
        (y, mean, rstd)
    }

    /// dx = r (g - mean g - x̂ mean(g x̂)) with g = dy · gain; Σ dy x̂; Σ dy. x̂ is off by at most
    /// (D + 8) u (|x̂| + shift), and each of the two means adds D.
    pub(crate) fn backward(&self, x: &[f64], dy: &[f64]) -> NormGradients {
        let n = self.width as f64;
        let rows = x.len() / self.width;
        let mut out = NormGradients {
            x: Expected::default(),
            gain: Expected::zeros(self.width),
            bias: Expected::zeros(self.width),
        };
        let roundings = 3.0 * depth(self.width) + 30.0;
        // A gain's gradient sums over rows one after another.
        let over_rows = rows as f64 + depth(self.width) + 12.0;
        for (x, dy) in x.chunks_exact(self.width).zip(dy.chunks_exact(self.width)) {
            let row = self.row(x);
            let g: Vec<f64> = dy.iter().enumerate().map(|(c, d)| d * self.gain_at(c)).collect();
            let centred = if self.centre == Centre::Mean { 1.0 } else { 0.0 };
            let mean_g = centred * g.iter().sum::<f64>() / n;
            let mean_abs = centred * g.iter().map(|g| g.abs()).sum::<f64>() / n;
            let mean_gx = g.iter().zip(&row.normed).map(|(g, x)| g * x).sum::<f64>() / n;
            let mean_size =
                g.iter().zip(&row.normed).map(|(g, x)| g.abs() * (x.abs() + row.shift)).sum::<f64>() / n;
            for c in 0..self.width {
                let size = row.normed[c].abs() + row.shift;
                out.x.push(
                    row.rstd * (g[c] - mean_g - row.normed[c] * mean_gx),
                    roundings * U * row.rstd * (g[c].abs() + mean_abs + size * mean_size),
                );
                out.gain.value[c] += dy[c] * row.normed[c];
                out.gain.error[c] += over_rows * U * dy[c].abs() * size;
                out.bias.value[c] += dy[c];
                out.bias.error[c] += over_rows * U * dy[c].abs();
            }
        }
        out
    }
}

#[test]
fn reference_backward_is_the_derivative_of_reference_forward() {
    use super::{numeric_gradient, same_gradient, wide};
    use crate::common::fill;
    let width = 5;
    let (x, dy) = (wide(&fill(15, 1)), wide(&fill(15, 2)));
    for centre in [Centre::Mean, Centre::Nothing] {
        let norm = Norm {
            gain: Some(wide(&fill(width, 3))),
            bias: Some(wide(&fill(width, 4))),
            width,
            centre,
            eps: 1e-5,
        };
        let loss = |norm: &Norm, x: &[f64]| -> f64 {
            norm.forward(x).0.value.iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        let got = norm.backward(&x, &dy);
        same_gradient("x", &got.x.value, &numeric_gradient(&x, |x| loss(&norm, x)));
        let gain = norm.gain.clone().unwrap();
        let with_gain = |g: &[f64]| loss(&Norm { gain: Some(g.to_vec()), ..norm.clone() }, &x);
        same_gradient("gain", &got.gain.value, &numeric_gradient(&gain, with_gain));
        let bias = norm.bias.clone().unwrap();
        let with_bias = |b: &[f64]| loss(&Norm { bias: Some(b.to_vec()), ..norm.clone() }, &x);
        same_gradient("bias", &got.bias.value, &numeric_gradient(&bias, with_bias));
    }
}
