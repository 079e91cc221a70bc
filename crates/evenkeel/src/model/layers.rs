//! The layers that blocks are made of: linear maps, norms, gains, and the joint of a branch with the stream.

use super::ModelError;
use super::config::{ModelConfig, Norm, Projection};
use super::matrix::Matrix;
use super::params::{Builder, Parameter, Start};
use crate::ops::{self, Dropout, NormSpec};
use crate::tap::{Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::{Device, Result as CandleResult, Tensor};

/// A matrix with an optional bias; reparametrised around the identity if it has that part.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: Matrix,
    /// `None` too where the stored matrix holds it.
    bias: Option<Parameter>,
    identity: Option<Identity>,
}

/// y = skip · x + gain · (x Wᵀ + b).
#[derive(Clone, Debug)]
struct Identity {
    skip: Parameter,
    gain: Parameter,
}

impl Linear {
    /// With W at `start`.
    pub(super) fn new(
        b: &mut Builder,
        name: String,
        [d_in, d_out]: [usize; 2],
        start: Start,
        biased: bool,
    ) -> Result<Self, ModelError> {
        let weight = b.matrix(format!("{name}.weight"), [d_out, d_in], start)?;
        let bias_name = format!("{name}.bias");
        let bias = match (biased, weight.holds_bias()) {
            (false, _) => None,
            (true, false) => Some(b.parameter(bias_name, &[d_out], Start::Constant(0.0))?),
            (true, true) => {
                b.held(bias_name, d_out);
                None
            }
        };
        Ok(Self { weight, bias, identity: None })
    }

    /// A matrix between the token table or the head and the stream: orthogonal at the start if it is square.
    pub(super) fn between(b: &mut Builder, name: &str, sizes: [usize; 2]) -> Result<Self, ModelError> {
        let start = match sizes[0] == sizes[1] {
            true => Start::Orthogonal,
            false => Start::Normal(1.0 / (sizes[0] as f64).sqrt()),
        };
        Self::new(b, name.into(), sizes, start, false)
    }

    /// The projection `name` of a block, as the configuration has it.
    pub(super) fn projection(
        b: &mut Builder,
        name: String,
        sizes: [usize; 2],
        projection: Projection,
        c: &ModelConfig,
    ) -> Result<Self, ModelError> {
        Self::new(b, name, sizes, Start::Normal(c.init.std(sizes[0])), c.has_bias(projection))
    }

    /// A width × width projection that is the identity at the start.
    pub(super) fn identity(
        b: &mut Builder,
        name: String,
        width: usize,
        biased: bool,
    ) -> Result<Self, ModelError> {
        let layer = Self::new(b, name.clone(), [width, width], Start::Constant(0.0), biased)?;
        let identity = Identity {
            skip: b.parameter(format!("{name}.skip"), &[1], Start::Constant(1.0))?,
            gain: b.parameter(format!("{name}.gain"), &[1], Start::Constant(1.0))?,
        };
        Ok(Self { identity: Some(identity), ..layer })
    }

    pub(super) fn forward(
        &self,
        tape: &Tape,
        x: &Value,
        act: Option<ops::Activation>,
    ) -> CandleResult<Value> {
        let y = match &self.weight {
            Matrix::Float(weight) => {
                let bias = self.bias.as_ref().map(|b| param(tape, b));
                ops::linear(tape, x, &param(tape, weight), bias.as_ref(), act)?
            }
            Matrix::Stored(matrix) => Value::constant(matrix.forward(x.tensor(), act)?),
        };
        let Some(identity) = &self.identity else { return Ok(y) };
        let passed = ops::scale(tape, x, &param(tape, &identity.skip))?;
        ops::residual(tape, &passed, &y, &param(tape, &identity.gain))
    }
}

/// What stands where a norm stands.
#[derive(Clone, Debug)]
pub(super) enum NormLayer {
    /// LayerNorm, RMSNorm, SRMSNorm: gain and bias absent where the norm has none.
    Channels { spec: NormSpec, gain: Option<Parameter>, bias: Option<Parameter> },
    /// SSNorm: one gain for all channels.
    Scalar { spec: NormSpec, gain: Parameter },
    /// DyT.
    Tanh { alpha: Parameter, gain: Parameter, bias: Parameter },
}

impl NormLayer {
    /// `None` for no norm.
    pub(super) fn new(
        b: &mut Builder,
        name: &str,
        norm: Norm,
        c: &ModelConfig,
    ) -> Result<Option<Self>, ModelError> {
        let spec = NormSpec { centred: norm == Norm::Layer, eps: c.norm_eps };
        let mut vector = |part: &str, size: usize, value: f64| {
            b.parameter(format!("{name}.{part}"), &[size], Start::Constant(value))
        };
        let d = c.width;
        Ok(Some(match norm {
            Norm::None => return Ok(None),
            Norm::Layer => Self::Channels {
                spec,
                gain: Some(vector("gain", d, 1.0)?),
                bias: Some(vector("bias", d, 0.0)?),
            },
            Norm::Rms => Self::Channels { spec, gain: Some(vector("gain", d, 1.0)?), bias: None },
            Norm::Srms => Self::Channels { spec, gain: None, bias: None },
            Norm::Ss => Self::Scalar { spec, gain: vector("gain", 1, 1.0)? },
            Norm::Dyt => Self::Tanh {
                alpha: vector("alpha", 1, 0.5)?,
                gain: vector("gain", d, 1.0)?,
                bias: vector("bias", d, 0.0)?,
            },
        }))
    }

    fn forward(&self, tape: &Tape, x: &Value) -> CandleResult<Value> {
        match self {
            Self::Channels { spec, gain, bias } => {
                let value = |p: &Option<Parameter>| p.as_ref().map(|p| param(tape, p));
                ops::norm(tape, x, value(gain).as_ref(), value(bias).as_ref(), *spec)
            }
            Self::Scalar { spec, gain } => {
                ops::scale(tape, &ops::norm(tape, x, None, None, *spec)?, &param(tape, gain))
            }
            Self::Tanh { alpha, gain, bias } => {
                ops::dynamic_tanh(tape, x, &param(tape, alpha), &param(tape, gain), &param(tape, bias))
            }
        }
    }
}

/// `x` through the norm, if there is one.
pub(super) fn normed(tape: &Tape, layer: &Option<NormLayer>, x: &Value) -> CandleResult<Value> {
    match layer {
        Some(layer) => layer.forward(tape, x),
        None => Ok(x.clone()),
    }
}

/// `x` through the matrix, if there is one.
pub(super) fn projected(tape: &Tape, layer: &Option<Linear>, x: Value) -> CandleResult<Value> {
    match layer {
        Some(layer) => layer.forward(tape, &x, None),
        None => Ok(x),
    }
}

/// A factor: a number, or a learned scalar or vector.
#[derive(Clone, Debug)]
pub(super) enum Gain {
    Fixed(f64),
    Learned(Parameter),
}

impl Gain {
    /// Fixed, or learned from `value` with `size` entries.
    pub(super) fn new(
        b: &mut Builder,
        name: String,
        value: f64,
        learned: Option<usize>,
    ) -> Result<Self, ModelError> {
        Ok(match learned {
            Some(size) => Gain::Learned(b.parameter(name, &[size], Start::Constant(value))?),
            None => Gain::Fixed(value),
        })
    }

    /// β of a branch that joins a stream with gain `skip`. Without a skip there is nothing to weigh it against, so none.
    pub(super) fn beta(
        b: &mut Builder,
        name: String,
        skip: Option<f64>,
        c: &ModelConfig,
    ) -> Result<Self, ModelError> {
        let size = if c.beta_per_channel { c.width } else { 1 };
        match skip {
            Some(_) => Self::new(b, name, c.beta.resolve(c.depth), c.beta_trainable.then_some(size)),
            None => Ok(Gain::Fixed(1.0)),
        }
    }

    /// `x` times the gain.
    pub(super) fn times(&self, tape: &Tape, x: &Value) -> CandleResult<Value> {
        match self {
            Gain::Fixed(1.0) => Ok(x.clone()),
            _ => ops::scale(tape, x, &self.value(tape, x)?),
        }
    }

    /// As a value of the same dtype as `like`.
    fn value(&self, tape: &Tape, like: &Value) -> CandleResult<Value> {
        match self {
            Gain::Fixed(number) => constant(*number, like),
            Gain::Learned(p) => Ok(param(tape, p)),
        }
    }
}

fn constant(number: f64, like: &Value) -> CandleResult<Value> {
    let tensor = Tensor::new(&[number as f32], &Device::Cpu)?;
    Ok(Value::constant(tensor.to_dtype(like.tensor().dtype())?))
}

/// How a branch ends and joins the stream: s · x + β · branch, or the branch alone.
#[derive(Clone, Debug)]
pub(super) struct Joint {
    /// The branch's last matrix.
    pub(super) out: Linear,
    /// β; fixed at 1 where there is no skip.
    pub(super) beta: Gain,
    /// s; `None` where nothing but the branch goes on.
    pub(super) skip: Option<f64>,
}

impl Joint {
    /// Ends the branch that holds `inner` and joins it to `x`. `sites` are those of the branch before and after β.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        tap: &mut dyn Tap,
        [out_site, branch_site]: [Site; 2],
        x: Value,
        inner: &Value,
        dropout: Option<Dropout>,
    ) -> CandleResult<Value> {
        let seen = tap.wants(out_site) || tap.wants(branch_site);
        let plain = self.out.identity.is_none() && dropout.is_none() && !seen;
        if let (Some(skip), Gain::Fixed(beta), Matrix::Float(weight), true) =
            (self.skip, &self.beta, &self.out.weight, plain)
        {
            let x = Gain::Fixed(skip).times(tape, &x)?;
            let bias = self.out.bias.as_ref().map(|b| param(tape, b));
            return ops::linear_onto(tape, &x, inner, &param(tape, weight), bias.as_ref(), *beta as f32);
        }
        let branch = visit(tap, out_site, self.out.forward(tape, inner, None)?)?;
        let branch = ops::dropout(tape, branch, dropout)?;
        let Some(skip) = self.skip else { return visit(tap, branch_site, branch) };
        let x = Gain::Fixed(skip).times(tape, &x)?;
        if !tap.wants(branch_site) {
            return ops::residual(tape, &x, &branch, &self.beta.value(tape, &x)?);
        }
        let branch = visit(tap, branch_site, self.beta.times(tape, &branch)?)?;
        ops::residual(tape, &x, &branch, &constant(1.0, &x)?)
    }
}

/// The parameter on the tape.
pub(super) fn param(tape: &Tape, p: &Parameter) -> Value {
    tape.parameter(p.index, &p.tensor)
}

/// Calls the tap if it wants the site; keeps the value's place on the tape, since only observing taps see one.
pub(super) fn visit(tap: &mut dyn Tap, site: Site, x: Value) -> CandleResult<Value> {
    if !tap.wants(site) {
        return Ok(x);
    }
    let seen = tap.visit(site, x.tensor().clone())?;
    Ok(if tap.transforms() { Value::constant(seen) } else { x })
}
