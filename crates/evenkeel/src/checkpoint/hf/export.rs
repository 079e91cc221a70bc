//! Our models as Hugging Face folders: a stock class where one computes the same, else our own modelling file.
//!
//! A model is first put into its plainest form: gains are multiplied into the matrices beside them, norms with one gain get
//! one for each channel, the square matrices around the embedding are merged into the tables. What is computed stays the same
//! up to rounding. Then a stock class either expresses it or says which keys stand in the way.

use super::layout::{Map, Stored};
use super::{gpt2, llama, opt};
use crate::checkpoint::{CheckpointError, Result, files, write_config, write_tensors};
use crate::data::Tokenizer;
use crate::model::config::{Beta, Nonlinearity, Norm, Positions, Projection, Readout, ValueInit};
use crate::model::{ModelConfig, Transformer};
use crate::ops::Activation;
use crate::slices::{slice, tensor};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Our own modelling file, which an exported folder carries.
const MODELING: &str = include_str!("modeling_evenkeel.py");

/// What is exported to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The first of the stock classes that computes the model, else our own file.
    Auto,
    /// GPT-2.
    Gpt2,
    /// OPT.
    Opt,
    /// Llama.
    Llama,
    /// `modeling_evenkeel.py` beside the weights, loaded with `trust_remote_code=True`.
    Evenkeel,
}

impl Target {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Target::Auto => "hf",
            Target::Gpt2 => "gpt2",
            Target::Opt => "opt",
            Target::Llama => "llama",
            Target::Evenkeel => "evenkeel",
        }
    }
}

/// A stock class.
struct Stock {
    target: Target,
    expresses: fn(&ModelConfig) -> std::result::Result<(), String>,
    export: fn(&ModelConfig) -> std::result::Result<(Value, Map), String>,
    /// Projections whose biases come and go together; all that are missing where one is there are written as zeros.
    biases: fn(&ModelConfig) -> Vec<Projection>,
}

const STOCK: [Stock; 3] = [
    Stock { target: Target::Gpt2, expresses: gpt2::expresses, export: gpt2::export, biases: every_bias },
    Stock { target: Target::Opt, expresses: opt::expresses, export: opt::export, biases: every_bias },
    Stock { target: Target::Llama, expresses: llama::expresses, export: llama::export, biases: llama_biases },
];

fn every_bias(_: &ModelConfig) -> Vec<Projection> {
    use Projection::{Down, K, Out, Q, Up, V};
    vec![Q, K, V, Out, Up, Down]
}

fn llama_biases(c: &ModelConfig) -> Vec<Projection> {
    use Projection::{Down, Gate, K, Out, Q, Up, V};
    let groups: [&[Projection]; 2] = [&[Q, K, V, Out], &[Gate, Up, Down]];
    groups.into_iter().filter(|g| g.iter().any(|&p| c.has_bias(p))).flatten().copied().collect()
}

/// A model as a stock class has it.
pub(crate) struct StockModel {
    /// The class.
    pub(crate) target: Target,
    /// config.json.
    pub(crate) config: Value,
    /// The class's tensors by name.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    map: Map,
}

impl StockModel {
    /// Where the parameter is among the tensors, if it is there as such.
    pub(crate) fn stored_name(&self, parameter: &str) -> Option<String> {
        self.map.stored_name(parameter).filter(|name| self.tensors.contains_key(name))
    }
}

/// The model as the first of these classes that computes it, or why none of them does.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn as_stock<'a>(
    config: &ModelConfig,
    parameters: impl Iterator<Item = (&'a str, &'a Tensor)>,
    targets: &[Target],
) -> Result<std::result::Result<StockModel, String>> {
    let plain = Plain::of(config, parameters)?;
    let mut reasons = Vec::new();
    // The class that a model came from before others that compute the same.
    let own = STOCK.iter().filter(|s| s.target.name() == config.preset);
    let stock = own
        .chain(&STOCK)
        .filter(|s| targets.contains(&s.target))
        .find(|s| (s.expresses)(&plain.config).inspect_err(|why| reasons.push(why.clone())).is_ok());
    let Some(stock) = stock else { return Ok(Err(reasons.join("; "))) };
    let biases = (stock.biases)(&plain.config);
    Ok(Ok(plain.completed(biases).stored(stock)?))
}

/// Writes `model` into the existing folder `dir`, and returns what it was written as.
///
/// # Errors
/// [`CheckpointError::NotExpressible`] if the stock class that was asked for does not compute it, or
/// the disk refuses.
pub fn export(dir: &Path, model: &Transformer, tokenizer: Option<&Path>, target: Target) -> Result<Target> {
    let written = match target {
        Target::Evenkeel => None,
        _ => {
            let every = [Target::Gpt2, Target::Opt, Target::Llama];
            let targets = if target == Target::Auto { &every[..] } else { &[target] };
            let parameters = model.parameters().iter().map(|p| (p.name.as_str(), &p.tensor));
            match as_stock(model.config(), parameters, targets)? {
                Ok(stock) => {
                    write_tensors(&dir.join("model.safetensors"), &stock.tensors)?;
                    files::write_json(&dir.join("config.json"), &stock.config)?;
                    Some(stock.target)
                }
                Err(_) if target == Target::Auto => None,
                Err(why) => return Err(CheckpointError::NotExpressible { target: target.name(), why }),
            }
        }
    };
    if written.is_none() {
        if !model.config().predicts_next_token() {
            let why = "it does not predict the next token".to_string();
            return Err(CheckpointError::NotExpressible { target: "evenkeel", why });
        }
        crate::checkpoint::write_model(dir, model, None)?;
        write_config(dir, model.config(), own_keys(model.config()))?;
        files::write(&dir.join("modeling_evenkeel.py"), MODELING.as_bytes())?;
    }
    if let Some(tokenizer) = tokenizer {
        write_tokenizer(dir, tokenizer)?;
    }
    Ok(written.unwrap_or(Target::Evenkeel))
}

/// Puts the tokenizer of the folder `from`, if it has one, into the folder `to`, and its separator into a config.json there.
///
/// # Errors
/// If the disk refuses.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    let tokenizer = from.join("tokenizer.json");
    if tokenizer.is_file() { write_tokenizer(to, &tokenizer) } else { Ok(()) }
}

fn write_tokenizer(dir: &Path, tokenizer: &Path) -> Result<()> {
    let path = dir.join("config.json");
    if path.is_file() {
        let separator = Tokenizer::load(tokenizer).ok().and_then(|t| t.separator());
        let mut config: Value = files::read_json(&path)?;
        config["eos_token_id"] = json!(separator);
        files::write_json(&path, &config)?;
    }
    files::write(&dir.join("tokenizer.json"), &files::read(tokenizer)?)?;
    let class = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    files::write_json(&dir.join("tokenizer_config.json"), &class)
}

/// What transformers looks for in the configuration of a model with its own file.
fn own_keys(c: &ModelConfig) -> Value {
    json!({
        "auto_map": {
            "AutoConfig": "modeling_evenkeel.EvenkeelConfig",
            "AutoModelForCausalLM": "modeling_evenkeel.EvenkeelForCausalLM",
        },
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "tie_word_embeddings": c.tie_head,
    })
}

/// A model in its plainest form.
struct Plain {
    config: ModelConfig,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Plain {
    fn of<'a>(config: &ModelConfig, parameters: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in parameters {
            tensors.insert(name.to_string(), (tensor.dims().to_vec(), slice(tensor)?.to_vec()));
        }
        let mut plain = Self { config: config.clone(), tensors };
        plain.merge_embedding();
        for layer in 0..plain.config.depth {
            plain.merge_identity(layer);
            plain.merge_gains(layer);
        }
        plain.widen_norms();
        let c = &mut plain.config;
        (c.value_init, c.query_init) = Default::default();
        (c.beta, c.beta_trainable, c.beta_per_channel) = (Beta::Value(1.0), false, false);
        (c.alpha, c.alpha_trainable) = (1.0, false);
        Ok(plain)
    }

    fn take(&mut self, name: &str) -> Option<Vec<f32>> {
        self.tensors.remove(name).map(|t| t.1)
    }

    fn data(&mut self, name: &str) -> Option<&mut Vec<f32>> {
        self.tensors.get_mut(name).map(|t| &mut t.1)
    }

    /// Each row of a matrix and entry of its bias times its gain.
    fn scale_rows(&mut self, matrix: &str, gain: impl Fn(usize) -> f32) {
        if let Some((shape, data)) = self.tensors.get_mut(&format!("{matrix}.weight")) {
            let columns = shape.last().copied().unwrap_or(1).max(1);
            data.chunks_mut(columns)
                .enumerate()
                .for_each(|(r, row)| row.iter_mut().for_each(|v| *v *= gain(r)));
        }
        if let Some(bias) = self.data(&format!("{matrix}.bias")) {
            bias.iter_mut().enumerate().for_each(|(r, v)| *v *= gain(r));
        }
    }

    /// β into the last matrix of each branch, α into the first of the MLP.
    fn merge_gains(&mut self, layer: usize) {
        let c = self.config.clone();
        let fixed = c.beta.resolve(c.depth) as f32;
        for (branch, matrix, skip) in [("attn", "out", c.attn_skip()), ("mlp", "down", c.mlp_skip())] {
            let beta = self.take(&format!("blocks.{layer}.{branch}.beta"));
            // Without a skip there is no β.
            let Some(_) = skip else { continue };
            let gain = |row: usize| match beta.as_deref() {
                Some([one]) => *one,
                Some(all) => all[row],
                None => fixed,
            };
            self.scale_rows(&format!("blocks.{layer}.{branch}.{matrix}"), gain);
        }
        let alpha = self.take(&format!("blocks.{layer}.mlp.alpha")).map_or(c.alpha as f32, |a| a[0]);
        for matrix in ["up", "gate"] {
            // The bias is added after the input was scaled.
            if let Some(weight) = self.data(&format!("blocks.{layer}.mlp.{matrix}.weight")) {
                weight.iter_mut().for_each(|v| *v *= alpha);
            }
        }
    }

    /// s x + r (x Wᵀ + b) as one matrix.
    fn merge_identity(&mut self, layer: usize) {
        if self.config.value_init != ValueInit::Identity {
            return;
        }
        let width = self.config.width;
        for matrix in ["v", "out"] {
            let name = format!("blocks.{layer}.attn.{matrix}");
            let skip = self.take(&format!("{name}.skip")).map_or(1.0, |s| s[0]);
            let gain = self.take(&format!("{name}.gain")).map_or(1.0, |g| g[0]);
            self.scale_rows(&name, |_| gain);
            if let Some(weight) = self.data(&format!("{name}.weight")) {
                (0..width).for_each(|i| weight[i * width + i] += skip);
            }
        }
    }

    /// The factor on the token table and the square matrices around the stream into the tables.
    fn merge_embedding(&mut self) {
        let c = &mut self.config;
        let square = c.embed_proj && c.d_embed() == c.width;
        if !square && c.embed_scale == 1.0 {
            return;
        }
        let (width, scale) = (c.width, c.embed_scale as f32);
        (c.embed_scale, c.embed_proj) = (1.0, false);
        let tied = std::mem::take(&mut c.tie_head) && c.readout == Readout::Tokens;
        if tied && let Some(table) = self.tensors.get("embed.token.weight").cloned() {
            self.tensors.insert("head.weight".into(), table);
        }
        if let Some(table) = self.data("embed.token.weight") {
            table.iter_mut().for_each(|v| *v *= scale);
        }
        if !square {
            // Matrices between tables and a stream of another width stay.
            return;
        }
        if let Some(proj) = self.take("embed.proj.weight") {
            // x Pᵀ for each row x of both tables: positions are added before the matrix.
            for table in ["embed.token.weight", "embed.position.weight"] {
                if let Some(table) = self.data(table) {
                    table.chunks_mut(width).for_each(|row| times(row, |o, i| proj[o * width + i]));
                }
            }
        }
        if let Some(proj) = self.take("head.proj.weight") {
            // (x Pᵀ) wᵀ = x (w P)ᵀ.
            if let Some(head) = self.data("head.weight") {
                head.chunks_mut(width).for_each(|row| times(row, |o, i| proj[i * width + o]));
            }
        }
    }

    /// RMSNorms without gain or with a single one become RMSNorms with a gain for each channel.
    fn widen_norms(&mut self) {
        let c = self.config.clone();
        let blocks = (0..c.depth).flat_map(|layer| {
            [
                (format!("blocks.{layer}.attn.norm"), c.attn_norm(layer)),
                (format!("blocks.{layer}.mlp.norm"), c.mlp_norm()),
            ]
        });
        let ends = [("embed.norm".to_string(), c.embed_norm), ("final_norm".to_string(), c.final_norm)];
        for (name, norm) in blocks.chain(ends).collect::<Vec<_>>() {
            if let Norm::Srms | Norm::Ss = norm {
                let gain = self.take(&format!("{name}.gain")).map_or(1.0, |g| g[0]);
                self.tensors.insert(format!("{name}.gain"), (vec![c.width], vec![gain; c.width]));
            }
        }
        let c = &mut self.config;
        for norm in [&mut c.norm, &mut c.first_norm, &mut c.embed_norm, &mut c.final_norm] {
            if let Norm::Srms | Norm::Ss = norm {
                *norm = Norm::Rms;
            }
        }
    }

    /// With zeros for the biases among `needed` that are missing.
    fn completed(mut self, needed: Vec<Projection>) -> Self {
        let c = &mut self.config;
        (c.mlp_hidden, c.mlp_ratio) = (c.hidden(), 1);
        let missing: Vec<Projection> = needed.into_iter().filter(|&p| !c.has_bias(p)).collect();
        c.biases.extend(&missing);
        for projection in missing {
            let matrix = match projection {
                Projection::Q => "attn.q",
                Projection::K => "attn.k",
                Projection::V => "attn.v",
                Projection::Out => "attn.out",
                Projection::Up => "mlp.up",
                Projection::Gate => "mlp.gate",
                Projection::Down => "mlp.down",
            };
            for layer in 0..self.config.depth {
                let name = format!("blocks.{layer}.{matrix}");
                if let Some((shape, _)) = self.tensors.get(&format!("{name}.weight")) {
                    let rows = shape[0];
                    self.tensors.insert(format!("{name}.bias"), (vec![rows], vec![0.0; rows]));
                }
            }
        }
        self
    }

    fn stored(self, stock: &Stock) -> Result<StockModel> {
        let refuse = |why: String| CheckpointError::NotExpressible { target: stock.target.name(), why };
        let (mut config, map) = (stock.export)(&self.config).map_err(refuse)?;
        let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
        for (name, (shape, data)) in &self.tensors {
            map.write(name, shape, data, &mut stored).map_err(refuse)?;
        }
        let tensors: candle_core::Result<BTreeMap<_, _>> = stored
            .into_iter()
            .map(|(name, Stored { shape, data })| Ok((name, tensor(data, shape)?)))
            .collect();
        // As versions 5 and 4 of transformers say it.
        config["dtype"] = json!("float32");
        config["torch_dtype"] = json!("float32");
        // The classes' own defaults are ids of other vocabularies.
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            config[key] = Value::Null;
        }
        Ok(StockModel { target: stock.target, config, tensors: tensors?, map })
    }
}

/// row ← M row, with M given by its entries (out, in).
fn times(row: &mut [f32], matrix: impl Fn(usize, usize) -> f32) {
    let old: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
    for (o, v) in row.iter_mut().enumerate() {
        *v = old.iter().enumerate().map(|(i, x)| x * f64::from(matrix(o, i))).sum::<f64>() as f32;
    }
}

/// Whether `c` is `expected` but for sizes, biases, and what does not act; else the keys that differ.
pub(super) fn expect(c: &ModelConfig, expected: &ModelConfig) -> std::result::Result<(), String> {
    if !c.predicts_next_token() {
        return Err("it does not predict the next token".into());
    }
    let rotates = c.positions == Positions::Rope && expected.positions == Positions::Rope;
    let free = ModelConfig {
        preset: c.preset.clone(),
        depth: c.depth,
        width: c.width,
        heads: c.heads,
        head_dim: if c.d_attention() == c.width { c.head_dim } else { expected.head_dim },
        kv_heads: if c.kv_heads() == c.heads { c.kv_heads } else { expected.kv_heads },
        vocab: c.vocab,
        context: c.context,
        mlp_ratio: c.mlp_ratio,
        mlp_hidden: c.mlp_hidden,
        norm_eps: c.norm_eps,
        qk_norm_eps: c.qk_norm_eps,
        gate_init: c.gate_init,
        activation: c.activation,
        rope_base: if rotates { expected.rope_base } else { c.rope_base },
        rope_fraction: if rotates { expected.rope_fraction } else { c.rope_fraction },
        rope_scaling: if rotates { expected.rope_scaling } else { c.rope_scaling },
        tie_head: c.tie_head,
        biases: c.biases.clone(),
        dropout_embed: c.dropout_embed,
        dropout_residual: c.dropout_residual,
        dropout_attention: c.dropout_attention,
        init: c.init,
        ..expected.clone()
    };
    if c.activation.is_gated() != expected.activation.is_gated() {
        return Err(format!("activation is \"{}\"", c.activation));
    }
    let (ours, theirs) = (serde_json::to_value(c), serde_json::to_value(&free));
    let (Ok(Value::Object(ours)), Ok(Value::Object(theirs))) = (ours, theirs) else {
        return Err("its configuration cannot be written".into());
    };
    let differing: Vec<String> = ours
        .iter()
        .filter(|(key, value)| theirs.get(*key) != Some(value))
        .map(|(key, value)| format!("{key} is {value}"))
        .collect();
    if differing.is_empty() { Ok(()) } else { Err(differing.join(", ")) }
}

/// What transformers calls a nonlinearity.
pub(super) fn activation_name(activation: Nonlinearity) -> std::result::Result<&'static str, String> {
    match activation {
        Nonlinearity::Plain(Activation::Relu) => Ok("relu"),
        Nonlinearity::Plain(Activation::Gelu) => Ok("gelu"),
        Nonlinearity::Plain(Activation::GeluTanh) => Ok("gelu_new"),
        Nonlinearity::Plain(Activation::Silu) => Ok("silu"),
        Nonlinearity::Plain(Activation::SquaredRelu) => Ok("relu2"),
        other => Err(format!("activation is \"{other}\"")),
    }
}
