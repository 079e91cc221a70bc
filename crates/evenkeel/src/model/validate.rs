//! Which configurations make a network; the others are refused by the key that stands in the way.

use super::ModelError;
use super::config::{
    AttentionMatrix, Branches, Gate, ModelConfig, Norm, NormPosition, Positions, Projection, QkNorm, Readout,
    ValueInit,
};
use crate::ops::Softmax;

impl ModelConfig {
    /// Refuses sizes and combinations that make no network, with the reason.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the key.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.validate_sizes()?;
        self.validate_numbers()?;
        self.validate_combinations()
    }

    fn validate_sizes(&self) -> Result<(), ModelError> {
        // The upper ends are far above any model and keep every product of sizes below 2^63.
        for (key, value, most) in [
            ("depth", self.depth, 1 << 12),
            ("width", self.width, 1 << 16),
            ("heads", self.heads, 1 << 16),
            ("head_dim", self.head_dim.max(1), 1 << 16),
            ("embed_dim", self.d_embed(), 1 << 16),
            ("kv_heads", self.kv_heads(), 1 << 16),
            ("vocab", self.vocab, 1 << 24),
            ("context", self.context, 1 << 24),
            ("patch_size", self.patch_size.max(1), 1 << 12),
            ("image", self.image.into_iter().max().unwrap_or(0).max(1), 1 << 14),
            ("mlp_ratio", self.mlp_ratio, 1 << 6),
            ("mlp_hidden", self.mlp_hidden.max(1), 1 << 22),
        ] {
            if value == 0 || value > most {
                return refuse(key, format!("must lie between 1 and {most}, not {value}"));
            }
        }
        if self.head_dim == 0 && !self.width.is_multiple_of(self.heads) {
            return refuse(
                "heads",
                format!("must divide width, and {} does not divide {}", self.heads, self.width),
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            return refuse(
                "kv_heads",
                format!("must divide heads, and {} does not divide {}", self.kv_heads(), self.heads),
            );
        }
        Ok(())
    }

    fn validate_numbers(&self) -> Result<(), ModelError> {
        for (key, value) in [
            ("norm_eps", self.norm_eps),
            ("qk_norm_eps", self.qk_norm_eps),
            ("logit_softcap", self.logit_softcap),
        ] {
            if !value.is_finite() || value < 0.0 {
                return refuse(key, format!("must be a number of at least 0, not {value}"));
            }
        }
        let cap = self.logit_softcap;
        if cap > 0.0 && !(cap as f32).is_normal() {
            return refuse("logit_softcap", format!("must be 0 or a size that float32 holds, not {cap}"));
        }
        for (key, value) in [
            ("embed_scale", self.embed_scale),
            ("alpha", self.alpha),
            ("beta", self.beta.resolve(self.depth)),
            ("attn_skip", self.attn_skip),
            ("mlp_skip", self.mlp_skip),
        ] {
            if !value.is_finite() {
                return refuse(key, format!("must be a finite number, not {value}"));
            }
        }
        for (key, value) in [
            ("dropout_embed", self.dropout_embed),
            ("dropout_residual", self.dropout_residual),
            ("dropout_attention", self.dropout_attention),
        ] {
            if !(0.0..1.0).contains(&value) {
                return refuse(key, format!("must be at least 0 and below 1, not {value}"));
            }
        }
        if !(self.gate_init > 0.0 && self.gate_init < 1.0) {
            return refuse("gate_init", format!("must lie between 0 and 1, not {}", self.gate_init));
        }
        if let Softmax::Clipped { gamma, eta } = self.softmax()
            && !(gamma <= 0.0 && eta >= 1.0)
        {
            // Otherwise a hidden key would get weight γ, or a key that takes everything less than everything.
            let problem = format!("is clipped from γ at most 0 to η at least 1, not from {gamma} to {eta}");
            return refuse("softmax", problem);
        }
        Ok(())
    }

    /// Keys that only imported models use so far.
    fn validate_imported(&self) -> Result<(), ModelError> {
        let other_width = self.d_attention() != self.width;
        if other_width && (self.gate != Gate::None || self.value_init == ValueInit::Identity) {
            let problem =
                "must leave the heads as wide as the stream together with a gate or value_init \"identity\"";
            return refuse("head_dim", problem.into());
        }
        if self.attention_matrix == AttentionMatrix::Shaped && (!self.causal || self.window > 0) {
            let problem =
                "\"shaped\" has a uniform causal part, so attention must be causal and without a window";
            return refuse("attention_matrix", problem.into());
        }
        if self.window > 0 && !self.causal {
            return refuse("window", "is of the tokens before one, so attention must be causal".into());
        }
        if let Some(block) = self.window_blocks.iter().find(|&&block| block >= self.depth) {
            return refuse("window_blocks", format!("names block {block}, and there are {}", self.depth));
        }
        if self.embed_proj && self.d_embed() != self.width {
            return refuse("embed_proj", "is square, and embed_dim is another width".into());
        }
        let [height, width, colours] = self.image;
        if self.reads_images() {
            let p = self.patch_size;
            let whole = [height, width].iter().all(|&side| side >= p && side.is_multiple_of(p));
            if !whole || colours == 0 {
                return refuse(
                    "image",
                    format!("must be cut into whole patches of {p}, not {:?}", self.image),
                );
            }
            let patches = (height / p) * (width / p);
            if self.context != patches + 1 {
                return refuse(
                    "context",
                    format!("must be {patches} patches and one token, not {}", self.context),
                );
            }
            if self.tie_head || self.has_embed_proj() {
                return refuse("patch_size", "leaves no token table to tie or to map".into());
            }
        } else if self.image != [0; 3] {
            return refuse("image", "needs patch_size".into());
        }
        if self.readout == Readout::None && (self.head_transform || self.head_bias || self.tie_head) {
            return refuse("readout", "\"none\" leaves no head to tie, to bias or to transform for".into());
        }
        Ok(())
    }

    fn validate_combinations(&self) -> Result<(), ModelError> {
        self.validate_imported()?;
        let post = self.norm_position != NormPosition::Pre;
        if post && self.norm == Norm::None {
            return refuse("norm_position", "\"post\" needs a norm to place, and norm is \"none\"".into());
        }
        if self.norm != Norm::None && self.first_norm != Norm::None {
            return refuse("first_norm", "applies only where the blocks have norm = \"none\"".into());
        }
        if self.first_norm != Norm::None && self.branches.parallel() {
            let problem =
                "stands before attention alone, and in a parallel block the MLP reads what attention reads";
            return refuse("first_norm", problem.into());
        }
        if self.branches.parallel() && self.norm_position == NormPosition::Post {
            let problem =
                "cannot be parallel with norm_position \"post\", which norms the sum after each branch";
            return refuse("branches", problem.into());
        }
        if self.branches == Branches::ParallelTwoNorms && (post || self.norm == Norm::None) {
            let problem =
                "\"parallel_two_norms\" needs a norm before each branch: norm_position \"pre\" and a norm";
            return refuse("branches", problem.into());
        }
        if self.branches.parallel() && self.attn_skip != 1.0 {
            return refuse(
                "attn_skip",
                "must be 1 in a parallel block, whose one skip has gain mlp_skip".into(),
            );
        }
        if self.beta_per_channel && !self.beta_trainable {
            let problem = "needs beta_trainable: a fixed β is the same for every channel";
            return refuse("beta_per_channel", problem.into());
        }
        if self.qk_norm == QkNorm::Layer && self.d_head() == 1 {
            return refuse("qk_norm", "\"layer\" makes zeros of heads with a single channel".into());
        }
        if self.attention_matrix == AttentionMatrix::Shaped && self.softmax() != Softmax::Standard {
            let problem = "\"shaped\" subtracts what a uniform standard softmax would give, so softmax must be \"standard\"";
            return refuse("attention_matrix", problem.into());
        }
        if self.value_init == ValueInit::Identity && self.kv_heads() != self.heads {
            let problem = "\"identity\" needs as many values as channels, so kv_heads must equal heads";
            return refuse("value_init", problem.into());
        }
        if self.positions == Positions::Rope {
            let rotated = self.rotated();
            if !(self.rope_base.is_finite() && self.rope_base > 1.0) {
                return refuse("rope_base", format!("must be a number above 1, not {}", self.rope_base));
            }
            if !(self.rope_fraction > 0.0 && self.rope_fraction <= 1.0) {
                return refuse(
                    "rope_fraction",
                    format!("must lie above 0 and up to 1, not {}", self.rope_fraction),
                );
            }
            if rotated == 0 || !rotated.is_multiple_of(2) {
                let problem = format!(
                    "must leave an even number of channels to rotate, and {} of {} are {rotated}",
                    self.rope_fraction,
                    self.d_head()
                );
                return refuse("rope_fraction", problem);
            }
        }
        if self.has_bias(Projection::Gate) && !self.activation.is_gated() {
            let problem = format!("name \"gate\", and the activation \"{}\" has no gate", self.activation);
            return refuse("biases", problem);
        }
        Ok(())
    }
}

fn refuse(key: &'static str, problem: String) -> Result<(), ModelError> {
    Err(ModelError::Config { key, problem })
}
