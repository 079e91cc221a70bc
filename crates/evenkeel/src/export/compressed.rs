//! compressed-tensors: a Hugging Face folder of a stock class with int8 matrices, which transformers and vLLM load.
//!
//! Its format `int-quantized` quantises linear modules alone: the matrix, symmetric, per tensor or per output, and what the
//! module reads, per tensor or per token. The classes that are written are those whose projections are such modules, OPT and
//! Llama; GPT-2's class has modules of its own there, so a GPT-2 is written as the OPT that computes the same. Quantisers
//! elsewhere, of scores, sums, embeddings and norms, have no place in it: those are named in what [`write()`] returns.

use super::{ActivationGrid, ExportError, HEAD, Quantised, Result, WeightGrid, unfit};
use crate::checkpoint::hf::{self, StockModel, Target};
use crate::checkpoint::{Raw, files, write_raw};
use crate::model::ModelConfig;
use crate::slices::slice;
use crate::tap::{Place, Site};
use candle_core::Tensor;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name of the format on the command line.
const FORMAT: &str = "compressed-tensors";

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The stock class, by its name on the command line.
    pub class: &'static str,
    /// Matrices that are stored as integers.
    pub matrices: usize,
    /// Parameters and sites whose quantisers the format has no place for: they run in float.
    pub lost: Vec<String>,
}

/// Writes `model` into the existing folder `out`, with the tokenizer of the folder `from` if it has one.
///
/// # Errors
/// [`ExportError::NotExpressible`] if the format cannot hold the model, before anything is written; parameters or grids that
/// do not fit; or the disk refuses.
pub fn write(model: &Quantised, from: &Path, out: &Path) -> Result<Written> {
    model.check()?;
    let stock = as_stock(model)?;
    let linears = linears(model, &stock)?;
    let quantised: Vec<&Linear> = linears.iter().filter(|l| l.grid.is_some()).collect();
    if quantised.is_empty() {
        return Err(refused("no matrix of its blocks is quantised".into(), "quantise the model first"));
    }
    let mut config = stock.config;
    config["quantization_config"] = quantization_config(&linears);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &stock.tensors {
        let bytes = slice(tensor)?.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.insert(name.clone(), Raw { dtype: Dtype::F32, shape: tensor.dims().to_vec(), bytes });
    }
    for linear in &quantised {
        linear.put(&mut tensors)?;
    }
    write_raw(&out.join("model.safetensors"), &tensors)?;
    files::write_json(&out.join("config.json"), &config)?;
    hf::copy_tokenizer(from, out)?;
    let kept: BTreeSet<&str> = quantised.iter().map(|l| l.parameter.as_str()).collect();
    let read: BTreeSet<Site> =
        quantised.iter().filter_map(|l| l.input.as_ref()).map(|(site, _)| *site).collect();
    let parameters = model.weights.keys().filter(|name| !kept.contains(name.as_str())).cloned();
    let sites = model.activations.keys().filter(|site| !read.contains(site)).map(Site::to_string);
    Ok(Written {
        class: stock.target.name(),
        matrices: quantised.len(),
        lost: parameters.chain(sites).collect(),
    })
}

/// The model as a class of linear modules, with a matrix of its own for a head that is quantised.
fn as_stock(model: &Quantised) -> Result<StockModel> {
    let own_head = model.config.tie_head && model.weights.contains_key(HEAD);
    let config = ModelConfig { tie_head: model.config.tie_head && !own_head, ..model.config.clone() };
    let head = if own_head { Some((HEAD, model.parameter(HEAD)?)) } else { None };
    let parameters = model.parameters.iter().map(|(name, tensor)| (name.as_str(), tensor)).chain(head);
    let stock = hf::as_stock(&config, parameters, &[Target::Opt, Target::Llama])?;
    stock.map_err(|why| {
        refused(
            format!("neither OPT nor Llama computes it: {why}"),
            "export --to onnx, which has every block",
        )
    })
}

/// A linear module of the class.
struct Linear<'a> {
    /// Our name of its matrix.
    parameter: String,
    /// Its own name.
    module: String,
    matrix: &'a Tensor,
    grid: Option<&'a WeightGrid>,
    /// Where what it reads is quantised, and how.
    input: Option<(Site, ActivationGrid)>,
}

/// Every linear module.
fn linears<'a>(model: &'a Quantised, stock: &StockModel) -> Result<Vec<Linear<'a>>> {
    let c = model.config;
    let mut places: Vec<(String, Option<Site>)> = Vec::new();
    for layer in 0..c.depth {
        for (name, place) in [
            ("attn.q", Place::AttnIn),
            ("attn.k", Place::AttnIn),
            ("attn.v", Place::AttnIn),
            ("attn.out", Place::AttnContext),
            ("mlp.gate", Place::MlpIn),
            ("mlp.up", Place::MlpIn),
            ("mlp.down", Place::MlpHidden),
        ] {
            places.push((format!("blocks.{layer}.{name}.weight"), Some(Site::block(layer, place))));
        }
    }
    let last = Site::outside(Place::FinalNorm);
    let before_head = Some(last).filter(|_| !c.has_embed_proj());
    places.push((HEAD.into(), before_head));
    places.push(("embed.proj.weight".into(), None));
    places.push(("head.proj.weight".into(), Some(last)));
    let mut linears = Vec::new();
    for (parameter, site) in places {
        let stored = stock.stored_name(&parameter);
        let grid = model.weights.get(&parameter);
        let name = match (&stored, parameter.as_str()) {
            (Some(name), _) => name.as_str(),
            // A tied head is a module without a tensor of its own.
            (None, HEAD) => "lm_head.weight",
            // Not part of the model, or merged into a table.
            (None, _) => continue,
        };
        let module = name.strip_suffix(".weight").unwrap_or(name).to_string();
        let matrix = model.parameter(&parameter)?;
        if let (Some(grid), Some(theirs)) = (grid, stock.tensors.get(name)) {
            check(&parameter, grid, matrix, theirs)?;
        }
        let input = site.and_then(|site| Some((site, *model.activations.get(&site)?)));
        linears.push(Linear { parameter, module, matrix, grid, input });
    }
    Ok(linears)
}

/// Refuses a matrix that is not stored as it was quantised.
fn check(name: &str, grid: &WeightGrid, ours: &Tensor, theirs: &Tensor) -> Result<()> {
    if grid.is_unsigned() {
        let why = format!("{name} has integers up to {}, and the format's have a sign", grid.high);
        return Err(refused(why, "export --to onnx, which has integers without a sign"));
    }
    if ours.dims() != theirs.dims() || *slice(ours)? != *slice(theirs)? {
        let why = format!("the class has no gains beside {name}, and with them in it, it is off its grid");
        return Err(refused(why, "export --to onnx, which keeps every gain"));
    }
    Ok(())
}

impl Linear<'_> {
    /// Puts integers in place of the module's floats, and its steps beside them.
    fn put(&self, tensors: &mut BTreeMap<String, Raw>) -> Result<()> {
        let Some(grid) = self.grid else { return Ok(()) };
        let at = |part: &str| format!("{}.{part}", self.module);
        let float = |shape: Vec<usize>, values: &[f32]| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            Raw { dtype: Dtype::F32, shape, bytes }
        };
        let weight = tensors.get_mut(&at("weight"));
        let weight = weight.ok_or_else(|| unfit(&self.parameter, "is not stored by the class"))?;
        weight.dtype = Dtype::I8;
        weight.bytes = grid.bytes(self.matrix)?;
        let steps = grid.scales.len();
        let shape = if steps == 1 { vec![1] } else { vec![steps, 1] };
        tensors.insert(at("weight_scale"), float(shape, &grid.scales));
        if let Some((_, ActivationGrid::Static { scale, zero_point })) = self.input {
            tensors.insert(at("input_scale"), float(vec![1], &[scale]));
            // 0..=255 becomes -128..=127.
            let bytes = vec![zero_point ^ 0x80];
            tensors.insert(at("input_zero_point"), Raw { dtype: Dtype::I8, shape: vec![1], bytes });
        }
        Ok(())
    }

    /// How it is quantised, as a group of the configuration says it.
    fn scheme(&self) -> Option<Value> {
        let integers = |symmetric: bool, strategy: &str, dynamic: bool| {
            json!({
                "num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": dynamic,
            })
        };
        let strategy = if self.grid?.scales.len() == 1 { "tensor" } else { "channel" };
        let input = self.input.map(|(_, grid)| match grid {
            ActivationGrid::Static { .. } => integers(false, "tensor", false),
            ActivationGrid::DynamicToken => integers(false, "token", true),
        });
        Some(json!({"weights": integers(true, strategy, false), "input_activations": input}))
    }
}

/// The table of config.json: a group for each way in which modules are quantised, and the modules that are not.
fn quantization_config(linears: &[Linear]) -> Value {
    let mut groups: Vec<(Value, Vec<&str>)> = Vec::new();
    let mut ignored = Vec::new();
    for linear in linears {
        let module = linear.module.as_str();
        match linear.scheme() {
            None => ignored.push(module),
            Some(scheme) => match groups.iter_mut().find(|(known, _)| *known == scheme) {
                Some((_, modules)) => modules.push(module),
                None => groups.push((scheme, vec![module])),
            },
        }
    }
    // What nearly every such folder says, where it is true.
    if let [(_, modules)] = &mut groups[..] {
        *modules = vec!["Linear"];
    }
    let groups: serde_json::Map<String, Value> = groups
        .into_iter()
        .enumerate()
        .map(|(i, (mut scheme, modules))| {
            scheme["targets"] = json!(modules);
            (format!("group_{i}"), scheme)
        })
        .collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    })
}

fn refused(why: String, hint: &'static str) -> ExportError {
    ExportError::NotExpressible { format: FORMAT, why, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Transformer, preset};
    use safetensors::SafeTensors;

    fn tiny(name: &str) -> ModelConfig {
        let mut c = preset(name).unwrap();
        (c.depth, c.width, c.heads, c.vocab, c.context) = (2, 12, 3, 11, 8);
        c
    }

    fn grid(scales: usize) -> WeightGrid {
        WeightGrid {
            scales: (0..scales).map(|i| 0.005 + 0.001 * i as f32).collect(),
            low: -128,
            high: 127,
            bits: 8,
        }
    }

    /// Every matrix of the blocks with a step for each row, and what the MLP reads.
    fn quantised(model: &Transformer) -> Quantised<'_> {
        let mut quantised = Quantised::float(model);
        for p in model.parameters().iter().filter(|p| p.name.starts_with("blocks.") && p.tensor.rank() == 2) {
            quantised.weights.insert(p.name.clone(), grid(p.tensor.dims()[0]));
        }
        for layer in 0..model.config().depth {
            for place in [Place::AttnIn, Place::AttnContext, Place::MlpIn, Place::MlpHidden, Place::Resid] {
                let grid = ActivationGrid::Static { scale: 0.02, zero_point: 100 };
                quantised.activations.insert(Site::block(layer, place), grid);
            }
        }
        quantised
    }

    fn refusal(model: &Quantised) -> String {
        let dir = tempfile::tempdir().unwrap();
        let error = write(model, dir.path(), dir.path()).unwrap_err().to_string();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        error
    }

    #[test]
    fn a_folder_holds_integers_steps_and_what_it_says_of_them() {
        for (name, class, module, ours) in [
            ("pre_ln", "opt", "model.decoder.layers.1.fc1", "blocks.1.mlp.up.weight"),
            ("osp", "llama", "model.layers.1.mlp.gate_proj", "blocks.1.mlp.gate.weight"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let model = Transformer::new(tiny(name), 1).unwrap();
            let quantised = quantised(&model);
            let written = write(&quantised, dir.path(), dir.path()).unwrap();
            assert_eq!((written.class, written.matrices), (class, quantised.weights.len()));
            assert_eq!(written.lost, ["blocks.0.resid", "blocks.1.resid"]);
            let config: Value = files::read_json(&dir.path().join("config.json")).unwrap();
            let table = &config["quantization_config"];
            assert_eq!(table["ignore"], json!(["lm_head"]));
            let group = &table["config_groups"]["group_0"];
            assert_eq!(group["targets"], json!(["Linear"]));
            assert_eq!(group["weights"]["strategy"], "channel");
            assert_eq!(group["input_activations"]["symmetric"], false);
            let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let tensor = |part: &str| file.tensor(&format!("{module}.{part}")).unwrap();
            let weight = quantised.parameters[ours].to_vec2::<f32>().unwrap();
            let rows = weight.len();
            assert_eq!((tensor("weight").dtype(), tensor("weight").shape()), (Dtype::I8, &[rows, 12][..]));
            for (r, row) in weight.iter().enumerate() {
                for (c, w) in row.iter().enumerate() {
                    let q = (w / grid(rows).scales[r]).round_ties_even().clamp(-128.0, 127.0);
                    assert_eq!(f32::from(tensor("weight").data()[r * 12 + c] as i8), q);
                }
            }
            assert_eq!(tensor("weight_scale").shape(), [rows, 1]);
            assert_eq!(tensor("input_scale").data(), 0.02f32.to_le_bytes());
            assert_eq!(tensor("input_zero_point").data(), [(100i32 - 128) as u8]);
        }
    }

    #[test]
    fn modules_that_are_quantised_in_other_ways_are_other_groups() {
        let dir = tempfile::tempdir().unwrap();
        let tied = ModelConfig { tie_head: true, ..tiny("pre_ln") };
        let model = Transformer::new(tied, 1).unwrap();
        let mut quantised = quantised(&model);
        quantised.weights.insert(HEAD.into(), grid(1));
        quantised.activations.insert(Site::outside(Place::FinalNorm), ActivationGrid::DynamicToken);
        write(&quantised, dir.path(), dir.path()).unwrap();
        let config: Value = files::read_json(&dir.path().join("config.json")).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        let table = &config["quantization_config"];
        assert_eq!(table["ignore"], json!([]));
        let head = &table["config_groups"]["group_1"];
        assert_eq!(head["targets"], json!(["lm_head"]));
        assert_eq!(head["weights"]["strategy"], "tensor");
        assert_eq!(head["input_activations"]["strategy"], "token");
        assert_eq!(table["config_groups"]["group_0"]["targets"].as_array().unwrap().len(), 12);
    }

    #[test]
    fn what_it_cannot_hold_is_refused_before_anything_is_written() {
        let model = Transformer::new(tiny("pre_ln"), 1).unwrap();
        assert!(refusal(&Quantised::float(&model)).contains("no matrix of its blocks is quantised"));
        let mut unsigned = quantised(&model);
        let all = WeightGrid { scales: vec![0.1], low: 0, high: 255, bits: 8 };
        unsigned.weights.insert("blocks.0.attn.q.weight".into(), all);
        assert!(refusal(&unsigned).contains("blocks.0.attn.q.weight has integers up to 255"));
        let model = Transformer::new(tiny("layerscale"), 1).unwrap();
        let gained = refusal(&quantised(&model));
        assert!(gained.contains("no gains beside blocks.0.attn.out.weight"), "{gained}");
        let model = Transformer::new(tiny("op"), 1).unwrap();
        let other = refusal(&quantised(&model));
        assert!(other.contains("neither OPT nor Llama computes it") && other.contains("qk_norm"), "{other}");
    }
}
