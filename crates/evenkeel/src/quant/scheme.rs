//! Schemes: which quantisers a model gets, as data.
//!
//! A scheme is a short TOML text; the named ones are [`PRESETS`]. [`Scheme::plan`] settles it for one model: a quantiser for
//! each weight and each site that has one.

use super::QuantError;
use super::places::{
    has_quantiser, is_product_input, is_product_weight, is_quantised_weight, is_residual, may_be_quantised,
    sites,
};
use super::spec::{Format, Granularity, Scale, Spec};
use crate::model::config::{ModelConfig, Norm, NormPosition};
use crate::names::NameFilter;
use crate::tap::{Place, Site};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name, what it is, and its text.
pub const PRESETS: [(&str, &str, &str); 11] = [
    (
        "w8a8",
        "the paper's: int8 per tensor, static, at 13 places per block and 2 outside; float head",
        "weights = \"int8 symmetric tensor mse_fixed\"\n\
         activations = \"int8 asymmetric tensor static running_percentile:99.999\"\n\
         places = \"all\"\nhead = \"float\"\nresidual = \"int8\"\n",
    ),
    (
        "w8a8_int8_head",
        "w8a8 with an int8 head: every matrix product in integers",
        "weights = \"int8 symmetric tensor mse_fixed\"\n\
         activations = \"int8 asymmetric tensor static running_percentile:99.999\"\n\
         places = \"all\"\nhead = \"int8\"\nresidual = \"int8\"\n\n\
         [sites]\n\"head.weight\" = \"channel mse\"\n",
    ),
    (
        "w8a8_channel",
        "w8a8 with a step for each output channel of a weight",
        "weights = \"int8 symmetric channel mse\"\n\
         activations = \"int8 asymmetric tensor static running_percentile:99.999\"\n\
         places = \"all\"\nhead = \"float\"\nresidual = \"int8\"\n",
    ),
    (
        "w8a8_token",
        "int8 matrix inputs with a step for each token, taken when it comes; weights per channel",
        "weights = \"int8 symmetric channel mse\"\nactivations = \"int8 asymmetric token dynamic\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "w4a16",
        "4-bit weights in groups of 128; float activations",
        "weights = \"int4 symmetric group:128 mse\"\nactivations = \"float\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "w4a8",
        "4-bit weights in groups of 128, int8 matrix inputs per token",
        "weights = \"int4 symmetric group:128 mse\"\nactivations = \"int8 asymmetric token dynamic\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "w4a4",
        "4-bit weights per channel, 4-bit matrix inputs per token",
        "weights = \"int4 symmetric channel mse\"\nactivations = \"int4 asymmetric token dynamic\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "fp8",
        "8-bit floating point (E4M3): weights per channel, matrix inputs per token",
        "weights = \"e4m3 channel min_max\"\nactivations = \"e4m3 token dynamic\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "mxfp8",
        "E4M3 in groups of 32 that share a power of two (OCP Microscaling)",
        "weights = \"e4m3 mx\"\nactivations = \"e4m3 mx\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "mxfp4",
        "4-bit floating point (E2M1) in groups of 32 that share a power of two",
        "weights = \"e2m1 mx\"\nactivations = \"e2m1 mx\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
    (
        "nvfp4",
        "E2M1 in groups of 16, each with an E4M3 scale, and a float32 scale per tensor",
        "weights = \"e2m1 nv\"\nactivations = \"e2m1 nv static min_max\"\n\
         places = \"products\"\nhead = \"float\"\nresidual = \"float\"\n",
    ),
];

/// Which sites and weights are quantised before overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Places {
    /// Those of the paper's recipe.
    All,
    /// Matrices and what they read.
    Products,
}

/// What the head's matrix is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadFormat {
    /// float32.
    Float,
    /// bfloat16, to nearest.
    Bf16,
    /// As the other weights, its input as other activations.
    Int8,
}

/// What the residual stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// float32.
    Float,
    /// Quantised after the embedding and after each sum.
    Int8,
}

/// A scheme as its text gives it. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheme {
    /// Of a preset; a file's own, or the file's stem.
    #[serde(default)]
    pub name: String,
    /// Words of the weights' quantiser, or `float`.
    pub weights: String,
    /// Words of the activations' quantiser, or `float`.
    pub activations: String,
    /// Where they stand.
    pub places: Places,
    /// The head.
    pub head: HeadFormat,
    /// The stream.
    pub residual: Residual,
    /// For globs over sites and weights, words that replace, or `float`. Of several that match, the last in the order of names
    /// wins.
    #[serde(default)]
    pub sites: BTreeMap<String, String>,
}

/// A scheme settled for one model.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the scheme.
    pub scheme: String,
    /// A quantiser for each quantised parameter.
    pub weights: BTreeMap<String, Spec>,
    /// A quantiser for each quantised site.
    pub activations: BTreeMap<Site, Spec>,
    /// The head.
    pub head: HeadFormat,
}

impl Scheme {
    /// A preset by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn preset(name: &str) -> Result<Self, QuantError> {
        let Some((name, _, text)) = PRESETS.iter().find(|p| p.0 == name) else {
            let known = PRESETS.map(|p| p.0).join(", ");
            return Err(QuantError::UnknownScheme { name: name.into(), known });
        };
        Self::from_toml(name, text)
    }

    /// From its text, which `name` is the name or the file of: without a name of its own it has the file's stem.
    ///
    /// # Errors
    /// If it is not TOML, has an unknown key or a word that means nothing.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, QuantError> {
        let mut scheme: Scheme = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or(String::new(), |line| format!("line {line}: "));
            QuantError::SchemeText { name: name.into(), problem: format!("{place}{}", e.message()) }
        })?;
        if scheme.name.is_empty() {
            let stem = std::path::Path::new(name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            scheme.name = stem.unwrap_or_default();
        }
        scheme.check()?;
        Ok(scheme)
    }

    /// As TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Gives the glob `pattern` its own words, or `float`, in place of those it had.
    ///
    /// # Errors
    /// A word that means nothing.
    pub fn set(&mut self, pattern: &str, words: &str) -> Result<(), QuantError> {
        self.sites.insert(pattern.into(), words.into());
        self.check()
    }

    /// Every text that stands in the scheme, once.
    fn check(&self) -> Result<(), QuantError> {
        let weights = base(&self.weights, Spec::WEIGHT)?;
        let activations = base(&self.activations, Spec::ACTIVATION)?;
        if let Some(spec) = activations {
            check_activation(spec, &self.activations)?;
        }
        if let Some(spec) = weights {
            check_weight(spec, &self.weights)?;
        }
        for words in self.sites.values().filter(|w| *w != FLOAT) {
            let of_weight =
                weights.unwrap_or(Spec::WEIGHT).with(words).and_then(|spec| check_weight(spec, words));
            let of_activation = activations
                .unwrap_or(Spec::ACTIVATION)
                .with(words)
                .and_then(|spec| check_activation(spec, words));
            // It may be meant for either.
            if of_weight.is_err() {
                of_activation?;
            }
        }
        Ok(())
    }

    /// The quantisers of a model with these parameters.
    ///
    /// # Errors
    /// If none of its weights and sites gets one, a glob matches none, words do not fit what they are for, or the places of
    /// this model are not settled.
    pub fn plan<'a>(
        &self,
        config: &ModelConfig,
        parameters: impl Iterator<Item = &'a str>,
    ) -> Result<Plan, QuantError> {
        if config.norm_position != NormPosition::Pre {
            return Err(QuantError::PostNorm);
        }
        let mut overrides = Overrides::new(&self.sites)?;
        let base_weight = base(&self.weights, Spec::WEIGHT)?;
        let base_activation = base(&self.activations, Spec::ACTIVATION)?;

        let mut weights = BTreeMap::new();
        // A tied head counts as a parameter of its own: it may be stored in another way than the table.
        let tied = config.tie_head.then_some("head.weight");
        for name in parameters.chain(tied).filter(|name| may_be_quantised(name)) {
            let chosen = match self.places {
                _ if name == "head.weight" => self.head == HeadFormat::Int8,
                Places::All => is_quantised_weight(name),
                Places::Products => is_product_weight(name),
            };
            let base = if name == "head.weight" { Some(in_bytes(base_weight, HEAD)) } else { base_weight };
            let chosen = base.filter(|_| chosen);
            if let Some((spec, words)) = overrides.of(name, chosen, Spec::WEIGHT)? {
                check_weight(spec, words)?;
                // A weight is there beforehand, whatever the words say.
                weights.insert(name.to_string(), Spec { dynamic: false, ..spec });
            }
        }
        // An override may have added the head's quantiser or taken it away.
        let head = match (weights.contains_key("head.weight"), self.head) {
            (true, _) => HeadFormat::Int8,
            (false, HeadFormat::Int8) => HeadFormat::Float,
            (false, stored) => stored,
        };
        // In integers both are one matrix, as in float.
        if config.tie_head
            && let Some(spec) = weights.remove("head.weight")
        {
            let table = weights.get("embed.token.weight");
            if self.sites.contains_key("embed.token.weight") && table.is_some_and(|own| *own != spec) {
                let problem = "the head shares this table, and as integers both have one quantiser: give it to head.weight";
                return Err(QuantError::Words { words: self.sites["embed.token.weight"].clone(), problem });
            }
            weights.insert("embed.token.weight".into(), spec);
        }
        let mut activations = BTreeMap::new();
        for site in sites(config) {
            let base = match self.adds(head, site) {
                true => Some(in_bytes(base_activation, Spec::ACTIVATION)),
                false => base_activation,
            };
            let chosen = base.filter(|_| self.has_place(config, head, site));
            if let Some((spec, words)) = overrides.of(&site.to_string(), chosen, Spec::ACTIVATION)? {
                check_activation(spec, words)?;
                if spec.granularity == Granularity::Channel && !site.place.has_channels() {
                    let problem = "scores and probabilities have no channels: use tensor or token";
                    return Err(QuantError::Words { words: format!("{site}: {spec}"), problem });
                }
                activations.insert(site, spec);
            }
        }
        overrides.all_used()?;
        if weights.is_empty() && activations.is_empty() && head != HeadFormat::Bf16 {
            return Err(QuantError::FitsNothing { scheme: self.name.clone() });
        }
        Ok(Plan { scheme: self.name.clone(), weights, activations, head })
    }

    /// Whether a site is quantised for the head's or the stream's sake, which are int8 whatever the scheme's words are.
    fn adds(&self, head: HeadFormat, site: Site) -> bool {
        is_residual(site) || site.place == Place::FinalNorm && head == HeadFormat::Int8
    }

    fn has_place(&self, config: &ModelConfig, head: HeadFormat, site: Site) -> bool {
        let head_input = site.place == Place::FinalNorm && head == HeadFormat::Int8;
        let without_norm = match site.place {
            Place::AttnIn => site.layer.is_some_and(|l| config.attn_norm(l) == Norm::None),
            Place::MlpIn => config.norm == Norm::None,
            Place::FinalNorm => config.final_norm == Norm::None,
            _ => false,
        };
        // What reads a stream that is on a grid needs none of its own.
        let from_stream = without_norm && self.residual == Residual::Int8;
        match self.places {
            _ if is_residual(site) => self.residual == Residual::Int8,
            _ if from_stream => false,
            Places::All => {
                has_quantiser(config, site) || head_input || without_norm && is_product_input(site)
            }
            Places::Products => is_product_input(site) || head_input,
        }
    }
}

const FLOAT: &str = "float";

/// A head of integers where a scheme's own weights are none of 8 bits.
const HEAD: Spec = Spec { granularity: Granularity::Channel, ..Spec::WEIGHT };

/// The scheme's own quantiser if it is int8, else `other`.
fn in_bytes(own: Option<Spec>, other: Spec) -> Spec {
    own.filter(|spec| matches!(spec.format, Format::Int { bits: 8, .. })).unwrap_or(other)
}

/// The quantiser that words make of `start`; `None` for `float`.
fn base(words: &str, start: Spec) -> Result<Option<Spec>, QuantError> {
    match words {
        FLOAT => Ok(None),
        words => start.with(words).map(Some),
    }
}

fn check_weight(spec: Spec, words: &str) -> Result<(), QuantError> {
    match spec.granularity {
        Granularity::Token => Err(QuantError::Words {
            words: words.into(),
            problem: "a weight has no tokens: use tensor, channel or group:N",
        }),
        _ => Ok(()),
    }
}

fn check_activation(spec: Spec, words: &str) -> Result<(), QuantError> {
    let problem = match (spec.granularity, spec.scale, spec.dynamic) {
        (_, Scale::PowerOfTwo, false) => "`mx` scales come from the values of a group: they cannot be static",
        (Granularity::Token | Granularity::Group(_), Scale::Float, false) => {
            "steps of tokens and groups cannot be static: add `dynamic`"
        }
        (Granularity::Channel, _, false) if spec.range.is_sketched() => {
            "ranges of channels are followed: use min_max, running or running_percentile"
        }
        (Granularity::Channel, _, true) => "steps of channels cannot be dynamic: add `static`",
        _ => return Ok(()),
    };
    Err(QuantError::Words { words: words.into(), problem })
}

/// The globs of a scheme, and which of them matched something.
struct Overrides<'a> {
    entries: Vec<(NameFilter, &'a str, &'a str, bool)>,
}

impl<'a> Overrides<'a> {
    fn new(sites: &'a BTreeMap<String, String>) -> Result<Self, QuantError> {
        let entry = |(pattern, words): (&'a String, &'a String)| {
            let filter = NameFilter::new(std::slice::from_ref(pattern)).map_err(|source| {
                QuantError::SchemeText { name: pattern.clone(), problem: source.to_string() }
            })?;
            Ok((filter, pattern.as_str(), words.as_str(), false))
        };
        Ok(Self { entries: sites.iter().map(entry).collect::<Result<_, _>>()? })
    }

    /// The quantiser of `name` and the words that made it; `start` is where words begin if it has none so far.
    fn of(
        &mut self,
        name: &str,
        base: Option<Spec>,
        start: Spec,
    ) -> Result<Option<(Spec, &'a str)>, QuantError> {
        let mut result = base.map(|spec| (spec, ""));
        for (filter, _, words, used) in &mut self.entries {
            if filter.matches(name) {
                *used = true;
                result = match *words {
                    FLOAT => None,
                    words => Some((result.map_or(start, |r| r.0).with(words)?, words)),
                };
            }
        }
        Ok(result)
    }

    fn all_used(&self) -> Result<(), QuantError> {
        match self.entries.iter().find(|e| !e.3) {
            Some(unused) => Err(QuantError::PatternFitsNothing { pattern: unused.1.into() }),
            None => Ok(()),
        }
    }
}
