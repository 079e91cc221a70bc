//! What was run, to run it backwards.
//!
//! A [`Tape`] is a list of coarse operations, each with a closure that turns the gradient of its output
//! into gradients of its inputs. There is no graph to search: the list is walked once from its end, each
//! closure is dropped after it ran, and with it the activations it held. Gradients of parameters are added
//! in place into [`Gradients`], buffers that live as long as the parameters; gradients of activations are
//! handed on and added in place where two meet. A tape that is [`Tape::off`] keeps nothing.
//!
//! [`Tape::compose`] makes one node of any candle expression, differentiated by candle itself: a research
//! idea starts there and runs at once, on any device and in float64.

use crate::cache::KvCache;
use crate::profile::{Pass, Profile, Span};
use crate::slices::{is_fast, slice, with_slice_mut};
use candle_core::{Result, Shape, Tensor, Var, bail};
use evenkeel_kernels::gemm::Compute;
use evenkeel_kernels::optimizer::add_scaled;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::{RefCell, RefMut};

#[cfg(test)]
mod tests;

/// Arithmetic of the matrix products. Sums, norms, softmax, parameters and optimiser state are float32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// float32 throughout.
    #[default]
    F32,
    /// The factors of every product are rounded to bfloat16, forward and backward, and summed in float32.
    Bf16,
}

/// What the forward pass forgets and the backward pass computes again: memory for time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Everything is kept.
    #[default]
    None,
    /// The inside of every MLP branch is forgotten.
    Mlp,
    /// The inside of every block is forgotten; only the residual stream between blocks is kept.
    Block,
}

/// How a pass is run. Not part of the model: the same parameters can be run either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Execution {
    /// Arithmetic of the products of float32 tensors on the CPU.
    pub precision: Precision,
    /// What is forgotten.
    pub recompute: Recompute,
}

/// What the dropout of one pass draws from. The whole batch of a step has one key, so that cutting it into micro-batches
/// drops the same entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// A number from (seed, step).
    pub key: u64,
    /// Where the pass's first sequence stands in the step's batch.
    pub first_sequence: usize,
}

/// A tensor and its place on the tape; without a place, a constant.
#[derive(Clone, Debug)]
pub struct Value {
    tensor: Tensor,
    slot: Option<usize>,
}

impl Value {
    /// A value that no gradient flows to.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, slot: None }
    }

    /// The tensor itself.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Whether the backward pass will want a gradient for this value.
    pub fn needs_gradient(&self) -> bool {
        self.slot.is_some()
    }
}

/// One gradient buffer per parameter, by parameter index.
#[derive(Debug)]
pub struct Gradients {
    buffers: Vec<Tensor>,
    written: Vec<bool>,
}

impl Gradients {
    /// Buffers shaped like `parameters`, all zero.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn like<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<Self> {
        let buffers = parameters.into_iter().map(|p| p.zeros_like()).collect::<Result<Vec<_>>>()?;
        let written = vec![false; buffers.len()];
        Ok(Self { buffers, written })
    }

    /// Forgets what was summed; the next backward pass writes instead of adding.
    pub fn clear(&mut self) {
        self.written.fill(false);
    }

    /// The gradient of parameter `index`; zeros if nothing reached it.
    pub fn get(&self, index: usize) -> &Tensor {
        &self.buffers[index]
    }

    /// All gradients, in parameter order.
    pub fn all(&self) -> &[Tensor] {
        &self.buffers
    }

    fn finish(&mut self) -> Result<()> {
        for (buffer, written) in self.buffers.iter_mut().zip(&mut self.written) {
            if !*written {
                *buffer = buffer.zeros_like()?;
                *written = true;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Activation,
    Parameter(usize),
}

type Backward = Box<dyn FnOnce(Tensor, &mut Sink) -> Result<()>>;

struct Node {
    operation: &'static str,
    output: usize,
    backward: Backward,
}

#[derive(Default)]
struct Record {
    slots: Vec<Slot>,
    nodes: Vec<Node>,
}

/// The record of one forward pass.
pub struct Tape {
    record: Option<RefCell<Record>>,
    execution: Execution,
    noise: Option<Noise>,
    /// Where to account time, and as what pass the operations that are run now count.
    profile: Option<(Profile, Pass)>,
    /// What came before the inputs of this pass.
    cache: Option<RefCell<KvCache>>,
}

impl Tape {
    /// A tape that records, in float32, and forgets nothing.
    pub fn recording() -> Self {
        Self::recording_as(Execution::default())
    }

    /// A tape that records.
    pub fn recording_as(execution: Execution) -> Self {
        Self { record: Some(RefCell::default()), execution, noise: None, profile: None, cache: None }
    }

    /// A tape that keeps nothing, in float32: evaluation and inspection.
    pub fn off() -> Self {
        Self { record: None, execution: Execution::default(), noise: None, profile: None, cache: None }
    }

    /// A tape that keeps nothing and computes as this one does.
    pub fn twin_off(&self) -> Self {
        let profile = self.profile.clone();
        Self { record: None, execution: self.execution, noise: self.noise, profile, cache: None }
    }

    /// A tape that keeps nothing but keys and values, in float32: the sequences of `cache` go on. A tape that records has no
    /// cache, since what is in it was not recorded.
    pub fn continuing(cache: KvCache) -> Self {
        Self { cache: Some(RefCell::new(cache)), ..Self::off() }
    }

    /// The cache of a tape that continues sequences.
    pub fn cache(&self) -> Option<RefMut<'_, KvCache>> {
        self.cache.as_ref().map(RefCell::borrow_mut)
    }

    /// Tokens of each sequence before the first of this pass.
    pub fn past(&self) -> usize {
        self.cache().map_or(0, |cache| cache.len())
    }

    /// The same tape, on which dropout is on and draws from `noise`; without it there is none.
    pub fn with_noise(self, noise: Noise) -> Self {
        Self { noise: Some(noise), ..self }
    }

    /// What dropout draws from, in training.
    pub fn noise(&self) -> Option<Noise> {
        self.noise
    }

    /// The same tape, which accounts the time of its operations in `profile`, forwards and backwards.
    pub fn profiled(self, profile: &Profile) -> Self {
        Self { profile: Some((profile.clone(), Pass::Forward)), ..self }
    }

    /// Accounts the time until it is dropped as that of `operation`.
    pub(crate) fn span(&self, operation: &'static str) -> Option<Span> {
        self.profile.as_ref().map(|(profile, pass)| profile.span(operation, *pass))
    }

    /// What this pass forgets; nothing if it records nothing.
    pub fn recompute(&self) -> Recompute {
        if self.is_recording() { self.execution.recompute } else { Recompute::None }
    }

    /// What the kernels' products round to.
    pub(crate) fn compute(&self) -> Compute {
        match self.execution.precision {
            Precision::F32 => Compute::F32,
            Precision::Bf16 => Compute::Bf16,
        }
    }

    /// Whether operations have to keep what their backward needs.
    pub fn is_recording(&self) -> bool {
        self.record.is_some()
    }

    /// Parameter number `index` of the [`Gradients`] that the backward pass will fill.
    pub fn parameter(&self, index: usize, tensor: &Tensor) -> Value {
        self.place(tensor, Slot::Parameter(index))
    }

    fn place(&self, tensor: &Tensor, slot: Slot) -> Value {
        let slot = self.record.as_ref().map(|record| {
            let mut record = record.borrow_mut();
            record.slots.push(slot);
            record.slots.len() - 1
        });
        Value { tensor: tensor.clone(), slot }
    }

    /// Appends `operation` with output `tensor`. `backward` receives the output's gradient, which it owns,
    /// and adds to the gradients of the inputs it captured. It is dropped unrun if no input needs one.
    pub fn push(
        &self,
        operation: &'static str,
        tensor: Tensor,
        inputs: &[&Value],
        backward: impl FnOnce(Tensor, &mut Sink) -> Result<()> + 'static,
    ) -> Value {
        match &self.record {
            Some(record) if inputs.iter().any(|v| v.needs_gradient()) => {
                let mut record = record.borrow_mut();
                record.slots.push(Slot::Activation);
                let output = record.slots.len() - 1;
                record.nodes.push(Node { operation, output, backward: Box::new(backward) });
                Value { tensor, slot: Some(output) }
            }
            _ => Value::constant(tensor),
        }
    }

    /// One operation from `inputs` to `output`, which was computed without a record. The backward pass runs `again`,
    /// which must compute the same `output`, with a record of its own, and walks that.
    pub fn push_forgotten(
        &self,
        output: Tensor,
        inputs: &[&Value],
        again: impl FnOnce(&Tape, &[Value]) -> Result<Value> + 'static,
    ) -> Value {
        let execution = Execution { recompute: Recompute::None, ..self.execution };
        let captured: Vec<Value> = inputs.iter().map(|&v| v.clone()).collect();
        let profile = self.profile.clone().map(|(profile, _)| (profile, Pass::Recompute));
        let noise = self.noise;
        self.push("recompute", output, inputs, move |dy, sink| {
            let tape = Tape { profile, noise, ..Tape::recording_as(execution) };
            let local: Vec<Value> =
                captured.iter().map(|v| tape.place(v.tensor(), Slot::Activation)).collect();
            let output = again(&tape, &local)?;
            let mut inner = tape.walk(&output, dy, sink.gradients)?;
            for (value, local) in captured.iter().zip(&local) {
                if let Some(gradient) = local.slot.and_then(|slot| inner[slot].take()) {
                    sink.add(value, gradient)?;
                }
            }
            Ok(())
        })
    }

    /// Any candle expression of `inputs` as one operation, differentiated by candle.
    ///
    /// # Errors
    /// What the expression returns; and in the backward pass, if an input that needs a gradient gets none
    /// (some of candle's fused operations cut the gradient silently).
    pub fn compose(
        &self,
        inputs: &[&Value],
        expression: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Value> {
        if !self.is_recording() || !inputs.iter().any(|v| v.needs_gradient()) {
            let plain: Vec<Tensor> = inputs.iter().map(|v| v.tensor.clone()).collect();
            return Ok(Value::constant(expression(&plain)?));
        }
        let mut vars = Vec::with_capacity(inputs.len());
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            if input.needs_gradient() {
                let var = Var::from_tensor(&input.tensor)?;
                tensors.push(var.as_tensor().clone());
                vars.push(Some(var));
            } else {
                tensors.push(input.tensor.clone());
                vars.push(None);
            }
        }
        let output = expression(&tensors)?;
        let inside = output.clone();
        let captured: Vec<Value> = inputs.iter().map(|&v| v.clone()).collect();
        Ok(self.push("composed", output.detach(), inputs, move |dy, sink| {
            let store = (inside * dy.detach())?.sum_all()?.backward()?;
            for (i, (value, var)) in captured.iter().zip(&vars).enumerate() {
                if let Some(var) = var {
                    let Some(gradient) = store.get(var.as_tensor()) else {
                        bail!("a composed operation cut the gradient of its input {i}");
                    };
                    // Copied, since candle may hand one storage to two inputs.
                    sink.add(value, gradient.contiguous()?.copy()?)?;
                }
            }
            Ok(())
        }))
    }

    /// Walks the record backwards from scalar `loss` with d loss = `seed`, adding into `gradients`.
    /// Consumes the tape.
    ///
    /// # Errors
    /// What an operation's backward returns; or if nothing was recorded for `loss`.
    pub fn backward(self, loss: &Value, seed: f64, gradients: &mut Gradients) -> Result<()> {
        let seed = (loss.tensor.ones_like()? * seed)?;
        self.walk(loss, seed, gradients)?;
        gradients.finish()
    }

    /// Walks the record backwards from `output` with gradient `dy`; returns what gradients of activations are left,
    /// which are those of inputs.
    fn walk(self, output: &Value, dy: Tensor, gradients: &mut Gradients) -> Result<Vec<Option<Tensor>>> {
        let (Some(record), Some(slot)) = (self.record, output.slot) else {
            bail!("backward was asked of a value that is not on the tape");
        };
        let record = record.into_inner();
        let mut sink =
            Sink { activations: record.slots.iter().map(|_| None).collect(), slots: record.slots, gradients };
        sink.activations[slot] = Some(dy);
        for node in record.nodes.into_iter().rev() {
            if let Some(dy) = sink.activations[node.output].take() {
                let profile = self.profile.as_ref();
                let _span = profile.map(|(profile, _)| profile.span(node.operation, Pass::Backward));
                (node.backward)(dy, &mut sink)?;
            }
        }
        Ok(sink.activations)
    }
}

/// Where the backward closures put their gradients.
pub struct Sink<'a> {
    activations: Vec<Option<Tensor>>,
    slots: Vec<Slot>,
    gradients: &'a mut Gradients,
}

impl Sink<'_> {
    /// Adds `gradient`, whose storage must belong to nobody else, to that of `value`: what is added later is added to it
    /// in place, under a lock that would wait forever for a reader of the same storage.
    ///
    /// # Errors
    /// If shapes differ.
    pub fn add(&mut self, value: &Value, gradient: Tensor) -> Result<()> {
        let Some(slot) = value.slot else { return Ok(()) };
        let place = match self.slots[slot] {
            Slot::Parameter(index) => {
                let first = !std::mem::replace(&mut self.gradients.written[index], true);
                let buffer = &mut self.gradients.buffers[index];
                if first {
                    *buffer = gradient;
                    return Ok(());
                }
                buffer
            }
            Slot::Activation => match &mut self.activations[slot] {
                Some(held) => held,
                empty => {
                    *empty = Some(gradient);
                    return Ok(());
                }
            },
        };
        if is_fast(place) && place.is_contiguous() && gradient.is_contiguous() {
            let gradient = slice(&gradient)?;
            with_slice_mut(place, |held| {
                add_scaled(held, &gradient, 1.0);
                Ok(())
            })
        } else {
            *place = (&*place + gradient)?;
            Ok(())
        }
    }

    /// What was added to activation `value` so far, contiguous float32 on the CPU, for kernels that add in place.
    pub(crate) fn held(&self, value: &Value) -> Option<&Tensor> {
        let slot = value.slot?;
        let held = self.activations[slot].as_ref();
        held.filter(|held| is_fast(held) && held.is_contiguous())
    }

    /// Lets `f(buffer, accumulate)` write the gradient of `value` where it will live: it must replace what
    /// the buffer holds, or add to it if `accumulate`. Matrix products of parameters land here in place.
    ///
    /// # Errors
    /// What `f` returns. Float32 on the CPU only.
    pub fn write(&mut self, value: &Value, f: impl FnOnce(&mut [f32], bool) -> Result<()>) -> Result<()> {
        let Some(slot) = value.slot else { return Ok(()) };
        match self.slots[slot] {
            Slot::Parameter(index) => {
                let add = std::mem::replace(&mut self.gradients.written[index], true);
                with_slice_mut(&self.gradients.buffers[index], |buffer| f(buffer, add))
            }
            Slot::Activation => {
                let shape: Shape = value.tensor.shape().clone();
                let fresh = Tensor::zeros(shape, value.tensor.dtype(), value.tensor.device())?;
                with_slice_mut(&fresh, |buffer| f(buffer, false))?;
                self.add(value, fresh)
            }
        }
    }
}
