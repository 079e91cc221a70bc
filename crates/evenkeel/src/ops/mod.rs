//! The operations a transformer is made of, each with its backward.
//!
//! Each is one public function. For float32 tensors on the CPU it runs a fused kernel with a hand-written
//! backward; for anything else (float64, or a tap that looks inside) it is composed of candle primitives and
//! differentiated by candle. The composition stands in the same file: it is the documentation of the kernel,
//! and the tests at the bottom of `ops` hold the two to each other, values and gradients, over odd shapes.

mod activation;
mod attention;
mod cached;
mod dropout;
mod embedding;
mod gate;
mod head;
mod linear;
mod norm;
mod residual;
mod rope;
mod shaped;

#[cfg(test)]
mod tests;

pub use activation::{Activation, gated_unit};
pub use attention::{
    AttentionSpec, Epsilon, Inner, QkNormSpec, Softmax, attention, attention_composed, look_inside_attention,
};
pub use cached::{attention_cached, attention_cached_composed, look_inside_attention_cached};
pub use dropout::{Dropout, dropout};
pub use embedding::embedding;
pub use gate::{constant_logits, gate_by, gate_logits, gate_network, openness, sigmoid_gate};
pub use head::{cross_entropy, head_cross_entropy};
pub use linear::{linear, linear_onto};
pub use norm::{NormSpec, dynamic_tanh, norm};
pub use residual::{residual, scale};
pub use rope::{Rope, RopeScaling};
pub use shaped::shaped;

use crate::slices::is_fast;
use crate::tape::Value;

/// Whether every input can go to a kernel.
fn all_fast(inputs: &[&Value]) -> bool {
    inputs.iter().all(|v| is_fast(v.tensor()) && v.tensor().is_contiguous())
}
