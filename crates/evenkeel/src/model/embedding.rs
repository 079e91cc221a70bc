//! The way in: token ids or image patches to the residual stream that enters block 0.
//!
//! Tokens: x = s · E[id] (+ P[t]), the matrix after it if there is one, norm. Where the token table has another width than the
//! stream, positions are added after that matrix, where they fit. Images are cut into p × p patches, each mapped to the
//! width of the stream; a learned token is put before them, and positions are added to all.

use super::ModelError;
use super::config::{ModelConfig, Positions};
use super::input::Input;
use super::layers::{Gain, Linear, NormLayer, normed, param, projected, visit};
use super::matrix::Matrix;
use super::params::{Builder, Parameter, Start};
use crate::ops::{self, Dropout};
use crate::tap::{Place, Site, Tap};
use crate::tape::{Tape, Value};
use candle_core::{Result as CandleResult, Tensor};

/// What turns inputs into the stream.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: Table,
    position: Option<Matrix>,
    scale: Gain,
    proj: Option<Linear>,
    norm: Option<NormLayer>,
    position_last: bool,
    dropout: f64,
    parameters: Vec<Parameter>,
}

/// Where the vectors come from.
#[derive(Clone, Debug)]
enum Table {
    Tokens(Matrix),
    Patches { size: usize, matrix: Linear, class: Parameter },
}

impl Embedding {
    pub(super) fn new(b: &mut Builder, c: &ModelConfig) -> Result<Self, ModelError> {
        let mark = b.mark();
        let (d, d_embed) = (c.width, c.d_embed());
        let start = Start::Normal(c.init.std(d_embed));
        let table = match c.patch_size {
            0 => Table::Tokens(b.matrix(TOKEN_TABLE.into(), [c.vocab, d_embed], start)?),
            size => {
                let fan_in = c.image[2] * size * size;
                let matrix_start = Start::Normal(c.init.std(fan_in));
                Table::Patches {
                    size,
                    matrix: Linear::new(b, "embed.patch".into(), [fan_in, d], matrix_start, true)?,
                    class: b.parameter("embed.class".into(), &[d], start)?,
                }
            }
        };
        let position = match c.positions {
            Positions::Learned => Some(b.matrix("embed.position.weight".into(), [c.context, d], start)?),
            Positions::Rope | Positions::None => None,
        };
        let proj = match c.has_embed_proj() {
            true => Some(Linear::between(b, "embed.proj", [d_embed, d])?),
            false => None,
        };
        Ok(Self {
            table,
            position,
            scale: Gain::Fixed(c.embed_scale),
            proj,
            norm: NormLayer::new(b, "embed.norm", c.embed_norm, c)?,
            position_last: d_embed != d,
            dropout: c.dropout_embed,
            parameters: b.since(mark),
        })
    }

    /// The token table, for a head that shares it.
    pub(super) fn token_table(&self) -> Option<&Matrix> {
        match &self.table {
            Table::Tokens(table) => Some(table),
            Table::Patches { .. } => None,
        }
    }

    /// Its parameters.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The stream (b, t, d) that enters block 0. The input has been checked.
    ///
    /// # Errors
    /// If the tap or the tensor library refuses.
    pub fn forward(&self, tape: &Tape, tap: &mut dyn Tap, input: &Input) -> Result<Value, ModelError> {
        let position = self.position.as_ref().map(|p| positions(tape, p, input)).transpose()?;
        let x = match (&self.table, input) {
            (Table::Tokens(table), Input::Tokens { ids, sequences }) => {
                let plain = matches!(self.scale, Gain::Fixed(1.0)) && !self.position_last;
                let tokens = ids.len() / (*sequences).max(1);
                let (mut x, apart) = match table {
                    Matrix::Float(table) => {
                        // The kernel adds positions on the way where nothing stands between.
                        let at_once = position.as_ref().filter(|_| plain);
                        let x = ops::embedding(tape, &param(tape, table), at_once, ids, *sequences, tokens)?;
                        (x, position.as_ref().filter(|_| !plain))
                    }
                    Matrix::Stored(table) => {
                        let rows = table.rows(ids.iter().map(|&id| id as usize))?;
                        let width = rows.dim(1)?;
                        (Value::constant(rows.reshape((*sequences, tokens, width))?), position.as_ref())
                    }
                };
                x = self.scale.times(tape, &x)?;
                if let Some(position) = apart.filter(|_| !self.position_last) {
                    x = added(tape, &x, position)?;
                }
                x = projected(tape, &self.proj, x)?;
                match apart.filter(|_| self.position_last) {
                    Some(position) => added(tape, &x, position)?,
                    None => x,
                }
            }
            (Table::Patches { size, matrix, class }, Input::Images { pixels }) => {
                let patches = Value::constant(patches(pixels, *size)?);
                let x = matrix.forward(tape, &patches, None)?;
                let x = led(tape, &x, &param(tape, class))?;
                match &position {
                    Some(position) => added(tape, &x, position)?,
                    None => x,
                }
            }
            (Table::Tokens(_), Input::Images { .. }) => {
                return Err(ModelError::WrongInput { wants: "token ids" });
            }
            (Table::Patches { .. }, Input::Tokens { .. }) => {
                return Err(ModelError::WrongInput { wants: "images" });
            }
        };
        let x = normed(tape, &self.norm, &x)?;
        let x = ops::dropout(tape, x, Dropout::of(tape, self.dropout, 0))?;
        Ok(visit(tap, Site::outside(Place::Embed), x)?)
    }
}

/// Name of the token table, which a tied head reads too.
pub(super) const TOKEN_TABLE: &str = "embed.token.weight";

/// The positions of the pass's tokens, and maybe of later ones.
fn positions(tape: &Tape, table: &Matrix, input: &Input) -> CandleResult<Value> {
    let past = tape.past();
    match table {
        Matrix::Stored(table) => {
            let end = match input {
                Input::Tokens { ids, sequences } => past + ids.len() / (*sequences).max(1),
                Input::Images { .. } => table.shape()[0],
            };
            Ok(Value::constant(table.rows(past..end)?))
        }
        Matrix::Float(p) if past == 0 => Ok(param(tape, p)),
        Matrix::Float(p) => {
            let rest = p.tensor.dim(0)?.saturating_sub(past);
            Ok(Value::constant(p.tensor.narrow(0, past, rest)?))
        }
    }
}

/// x (b, t, d) + positions (at least t, d).
fn added(tape: &Tape, x: &Value, positions: &Value) -> CandleResult<Value> {
    let tokens = x.tensor().dim(1)?;
    tape.compose(&[x, positions], |t| t[0].broadcast_add(&t[1].narrow(0, 0, tokens)?))
}

/// x (b, t, d) with the vector `class` (d) before each sequence.
fn led(tape: &Tape, x: &Value, class: &Value) -> CandleResult<Value> {
    let (sequences, _, width) = x.tensor().dims3()?;
    tape.compose(&[x, class], |t| {
        let first = t[1].reshape((1, 1, width))?.broadcast_as((sequences, 1, width))?;
        Tensor::cat(&[&first.contiguous()?, &t[0]], 1)
    })
}

/// Pixels (b, c, h, w) as patches (b, h/p · w/p, c · p · p), row by row; in a patch colour first, then row, then column: the
/// order of a convolution's kernel.
fn patches(pixels: &Tensor, size: usize) -> CandleResult<Tensor> {
    let (images, colours, height, width) = pixels.dims4()?;
    let (rows, columns) = (height / size, width / size);
    pixels
        .reshape(&[images, colours, rows, size, columns, size][..])?
        .permute(vec![0, 2, 4, 1, 3, 5])?
        .contiguous()?
        .reshape((images, rows * columns, colours * size * size))
}
