//! What a quantiser is, as data: format, granularity, when its range is taken, and how.
//!
//! Written as words in any order, such as `int8 asymmetric tensor static running_percentile`; a word replaces what
//! stood at its place, so that an override says only what differs.

use super::QuantError;
use evenkeel_kernels::minifloat::{E2M1, E4M3, E5M2, MiniFloat};
use std::collections::BTreeSet;
use std::fmt;

/// How a value is represented.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// An integer of 2 to 8 bits times a step.
    Int {
        /// Bits.
        bits: u32,
        /// Whether 0 stands in the middle (no zero point), or the range is used whole.
        symmetric: bool,
    },
    /// A small floating-point number times a scale.
    Float(Float),
}

/// The floating-point formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 8 bits, largest 448.
    E4m3,
    /// 8 bits, largest 57344.
    E5m2,
    /// 4 bits, largest 6.
    E2m1,
}

impl Float {
    const ALL: [Float; 3] = [Float::E4m3, Float::E5m2, Float::E2m1];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Float::E4m3 => "e4m3",
            Float::E5m2 => "e5m2",
            Float::E2m1 => "e2m1",
        }
    }

    /// Its numbers.
    pub fn kernel(self) -> MiniFloat {
        match self {
            Float::E4m3 => E4M3,
            Float::E5m2 => E5M2,
            Float::E2m1 => E2M1,
        }
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        match self {
            Float::E4m3 | Float::E5m2 => 8,
            Float::E2m1 => 4,
        }
    }
}

impl Format {
    /// Bits of a value.
    pub fn bits(self) -> u32 {
        match self {
            Format::Int { bits, .. } => bits,
            Format::Float(float) => float.bits(),
        }
    }

    /// Whether a range is a magnitude.
    pub fn is_symmetric(self) -> bool {
        !matches!(self, Format::Int { symmetric: false, .. })
    }
}

/// Which values share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// All of a tensor.
    Tensor,
    /// Those of an output channel of a weight, of a channel of an activation.
    Channel,
    /// Those of a token.
    Token,
    /// So many neighbours along a row.
    Group(usize),
}

/// What a scale itself is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// A float32.
    Float,
    /// A power of two in 8 bits, shared by a group: Microscaling (OCP MX v1.0).
    PowerOfTwo,
    /// An E4M3 number for each group times a float32 for the tensor: NVFP4.
    E4m3,
}

/// How a range is found from values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Smallest and largest of all.
    MinMax,
    /// Smallest and largest of each batch, followed with momentum 0.9.
    Running,
    /// The (100 - p)-th and p-th percentile of each batch, followed with momentum 0.9.
    RunningPercentile(f64),
    /// The (100 - p)-th and p-th percentile of all values, from a histogram of bounded size.
    Percentile(f64),
    /// The same from the values themselves, all of which are kept.
    PercentileExact(f64),
    /// Least squared error among 100 ranges up to (1 + margin) times the largest.
    Mse(f64),
    /// Least squared error among 100 ranges up to 0.5 beyond the largest.
    MseFixed,
    /// Least Kullback-Leibler divergence of the histogram among 100 ranges.
    Kl,
}

impl Range {
    /// Whether calibration keeps a histogram, or every value, for it.
    pub fn is_sketched(self) -> bool {
        !matches!(self, Range::MinMax | Range::Running | Range::RunningPercentile(_))
    }
}

/// A quantiser's data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// How a value is represented.
    pub format: Format,
    /// Which values share a scale.
    pub granularity: Granularity,
    /// What a scale is.
    pub scale: Scale,
    /// Whether the range comes from the tensor itself when it is quantised, or from calibration. Of activations; a weight's
    /// range always comes from the weight.
    pub dynamic: bool,
    /// How the range is found.
    pub range: Range,
}

/// What a known word decides.
fn kind(word: &str) -> &'static str {
    let name = word.split(':').next().unwrap_or(word);
    match name {
        "symmetric" | "asymmetric" => "symmetry",
        "tensor" | "channel" | "token" | "group" => "granularity",
        "static" | "dynamic" => "timing",
        "mx" | "nv" => "scale",
        _ if name.starts_with("int") || Float::ALL.iter().any(|f| f.name() == name) => "format",
        _ => "range",
    }
}

/// Percentile of `running_percentile`, `percentile` and `percentile_exact` where none is given.
const PERCENTILE: f64 = 99.999;

/// All words, for errors.
const WORDS: &str = "int2 to int8, e4m3, e5m2, e2m1; symmetric, asymmetric; tensor, channel, token, group:N; static, dynamic; \
                     min_max, running, running_percentile:P, percentile:P, percentile_exact:P, mse:MARGIN, mse_fixed, kl; mx, nv";

impl Spec {
    /// Eight-bit weights of a tensor: where words start from.
    pub const WEIGHT: Spec = Spec {
        format: Format::Int { bits: 8, symmetric: true },
        granularity: Granularity::Tensor,
        scale: Scale::Float,
        dynamic: false,
        range: Range::Mse(0.0),
    };

    /// Eight-bit activations of a tensor: where words start from.
    pub const ACTIVATION: Spec = Spec {
        format: Format::Int { bits: 8, symmetric: false },
        granularity: Granularity::Tensor,
        scale: Scale::Float,
        dynamic: false,
        range: Range::RunningPercentile(PERCENTILE),
    };

    /// This quantiser with `words` in place of what they replace. Where they say what `mx` and `nv` cannot be, such as `int8` or
    /// `channel`, and name neither, the scale is a float32 again.
    ///
    /// # Errors
    /// A word that is not known, or words that do not go together.
    pub fn with(mut self, words: &str) -> Result<Self, QuantError> {
        // Scales bring a granularity with them, and formats say whether there is a symmetry: what is said besides comes after.
        let mut ordered: Vec<&str> = words.split_whitespace().collect();
        ordered.sort_by_key(|word| ["scale", "format"].iter().position(|k| *k == kind(word)).unwrap_or(2));
        let mut kinds = BTreeSet::new();
        for word in ordered {
            self.take(word)?;
            if !kinds.insert(kind(word)) {
                let problem = "two of its words say the same thing, and the order of words means nothing";
                return Err(QuantError::Words { words: words.to_string(), problem });
            }
        }
        let names_scale = words.split_whitespace().any(|word| matches!(word, "mx" | "nv"));
        if !names_scale && self.scale_problem().is_some() {
            self.scale = Scale::Float;
        }
        self.check(words)?;
        Ok(self)
    }

    fn take(&mut self, word: &str) -> Result<(), QuantError> {
        let unknown = || QuantError::UnknownWord { word: word.to_string(), known: WORDS };
        let (name, number) = match word.split_once(':') {
            Some((name, number)) => (name, Some(number.parse::<f64>().map_err(|_| unknown())?)),
            None => (word, None),
        };
        let percentile = || match number.unwrap_or(PERCENTILE) {
            p if p > 50.0 && p <= 100.0 => Ok(p),
            _ => Err(unknown()),
        };
        let symmetric = self.format.is_symmetric();
        match name {
            "symmetric" | "asymmetric" => match &mut self.format {
                Format::Int { symmetric, .. } => *symmetric = name == "symmetric",
                Format::Float(_) if name == "symmetric" => {}
                Format::Float(_) => {
                    let problem = "only integers have a zero point";
                    return Err(QuantError::Words { words: word.to_string(), problem });
                }
            },
            "tensor" => self.granularity = Granularity::Tensor,
            "channel" => self.granularity = Granularity::Channel,
            "token" => self.granularity = Granularity::Token,
            "group" => match number {
                Some(n) if n >= 1.0 && n.fract() == 0.0 && n <= 1e9 => {
                    self.granularity = Granularity::Group(n as usize);
                }
                _ => return Err(unknown()),
            },
            "static" => self.dynamic = false,
            "dynamic" => self.dynamic = true,
            "min_max" => self.range = Range::MinMax,
            "running" => self.range = Range::Running,
            "running_percentile" => self.range = Range::RunningPercentile(percentile()?),
            "percentile" => self.range = Range::Percentile(percentile()?),
            "percentile_exact" => self.range = Range::PercentileExact(percentile()?),
            "mse" => match number.unwrap_or(0.0) {
                margin if (0.0..=10.0).contains(&margin) => self.range = Range::Mse(margin),
                _ => return Err(unknown()),
            },
            "mse_fixed" => self.range = Range::MseFixed,
            "kl" => self.range = Range::Kl,
            "mx" => {
                (self.scale, self.granularity, self.dynamic) =
                    (Scale::PowerOfTwo, Granularity::Group(32), true);
            }
            "nv" => (self.scale, self.granularity) = (Scale::E4m3, Granularity::Group(16)),
            _ => {
                let float = Float::ALL.into_iter().find(|f| f.name() == name);
                let bits = name.strip_prefix("int").and_then(|b| b.parse::<u32>().ok());
                self.format = match (float, bits) {
                    (Some(float), _) => Format::Float(float),
                    (None, Some(bits @ 2..=8)) => Format::Int { bits, symmetric },
                    _ => return Err(unknown()),
                };
            }
        }
        let takes_number =
            matches!(name, "group" | "percentile" | "running_percentile" | "percentile_exact" | "mse");
        if number.is_some() && !takes_number {
            return Err(unknown());
        }
        Ok(())
    }

    /// Combinations that mean nothing.
    fn check(&self, words: &str) -> Result<(), QuantError> {
        let kl = (matches!(self.format, Format::Float(_)) && self.range == Range::Kl)
            .then_some("`kl` needs an integer format");
        match kl.or(self.scale_problem()) {
            Some(problem) => Err(QuantError::Words { words: words.to_string(), problem }),
            None => Ok(()),
        }
    }

    /// Why a scale that is no float32 does not fit the rest.
    fn scale_problem(&self) -> Option<&'static str> {
        match (self.format, self.scale) {
            (_, Scale::Float) => None,
            (Format::Int { .. }, _) => {
                Some("`mx` and `nv` need a floating-point format such as e4m3 or e2m1")
            }
            _ if !matches!(self.granularity, Granularity::Group(_)) => {
                Some("`mx` and `nv` scales belong to groups")
            }
            (Format::Float(f), Scale::E4m3) if f != Float::E2m1 => Some("`nv` needs e2m1"),
            _ => None,
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.format {
            Format::Int { bits, symmetric } => {
                write!(f, "int{bits} {}", if symmetric { "symmetric" } else { "asymmetric" })?;
            }
            Format::Float(float) => f.write_str(float.name())?,
        }
        match self.scale {
            Scale::Float => {}
            Scale::PowerOfTwo => f.write_str(" mx")?,
            Scale::E4m3 => f.write_str(" nv")?,
        }
        match self.granularity {
            Granularity::Tensor => f.write_str(" tensor")?,
            Granularity::Channel => f.write_str(" channel")?,
            Granularity::Token => f.write_str(" token")?,
            Granularity::Group(n) => write!(f, " group:{n}")?,
        }
        f.write_str(if self.dynamic { " dynamic" } else { " static" })?;
        if self.dynamic || self.scale != Scale::Float {
            // Of the values' extremes, whatever the words.
            return Ok(());
        }
        match self.range {
            Range::MinMax => f.write_str(" min_max"),
            Range::Running => f.write_str(" running"),
            Range::RunningPercentile(p) => write!(f, " running_percentile:{p}"),
            Range::Percentile(p) => write!(f, " percentile:{p}"),
            Range::PercentileExact(p) => write!(f, " percentile_exact:{p}"),
            Range::Mse(margin) => write!(f, " mse:{margin}"),
            Range::MseFixed => f.write_str(" mse_fixed"),
            Range::Kl => f.write_str(" kl"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_replace_what_stood_there_and_are_written_back() {
        let spec = Spec::ACTIVATION.with("int4 token dynamic min_max").unwrap();
        assert_eq!(spec.to_string(), "int4 asymmetric token dynamic");
        for words in
            ["int8 symmetric tensor static mse_fixed", "e2m1 nv group:16 static", "e4m3 mx group:32 dynamic"]
        {
            assert_eq!(Spec::WEIGHT.with(words).unwrap().to_string(), words);
        }
    }

    #[test]
    fn a_scale_gives_way_to_words_that_it_cannot_be() {
        let mx = Spec::WEIGHT.with("e2m1 mx").unwrap();
        for (words, result) in [
            ("int8 channel", "int8 symmetric channel dynamic"),
            ("e4m3 channel static", "e4m3 channel static mse:0"),
            ("e5m2", "e5m2 mx group:32 dynamic"),
        ] {
            assert_eq!(mx.with(words).unwrap().to_string(), result);
        }
        for words in ["mx int8", "nv tensor", "mx channel"] {
            assert!(mx.with(words).is_err(), "{words}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for words in [
            "int9",
            "int1",
            "group",
            "group:0",
            "percentile:20",
            "tensor:3",
            "fp8",
            "int8 mx",
            "e4m3 kl",
            "e4m3 nv",
            "int8 int4",
            "channel tensor",
            "mse kl",
            "e4m3 asymmetric",
        ] {
            assert!(Spec::WEIGHT.with(words).is_err(), "{words}");
        }
    }
}
