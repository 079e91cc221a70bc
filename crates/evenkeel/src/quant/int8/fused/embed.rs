//! The way in: rows of the tables made numbers, added, normalised, and put on the stream's grid.

use super::block::Span;
use super::parts::{Ingredients, OwnedNorm};
use crate::model::IntMatrix;
use crate::model::config::Positions;
use crate::tap::{Place, Site};
use evenkeel_kernels::int8::requantise::quantise_u8_serial;
use evenkeel_kernels::quant::Grid;
use rayon::prelude::*;
use std::sync::Arc;

/// N(s · E[id] + P[t]) on the grid of the stream.
pub(super) struct FusedEmbedding {
    tokens: Arc<IntMatrix>,
    positions: Option<Arc<IntMatrix>>,
    scale: f32,
    norm: Option<OwnedNorm>,
    grid: Grid,
}

/// Tokens that a thread takes at a time.
const TOKENS: usize = 16;

impl FusedEmbedding {
    /// With the grid of what it gives; `None` if it is of another kind.
    pub(super) fn new(parts: &mut Ingredients) -> Option<(Self, Grid)> {
        let c = parts.config();
        let positions = match c.positions {
            Positions::Learned => Some(parts.matrix("embed.position.weight")?),
            Positions::None => None,
            Positions::Rope => return None,
        };
        let grid = parts.grid(Site::outside(Place::Embed))?;
        let embedding = Self {
            tokens: parts.matrix("embed.token.weight")?,
            positions,
            scale: c.embed_scale as f32,
            norm: parts.norm("embed.norm", c.embed_norm)?,
            grid,
        };
        Some((embedding, grid))
    }

    /// The stream of `ids`, which are below the vocabulary.
    pub(super) fn forward(&self, ids: &[u32], span: Span, stream: &mut [u8]) {
        let width = self.tokens.shape()[1];
        let pieces = stream.par_chunks_mut(TOKENS * width).zip(ids.par_chunks(TOKENS)).enumerate();
        pieces.for_each(|(piece, (stream, ids))| {
            let [mut x, mut other] = [vec![0.0; width], vec![0.0; width]];
            for (i, (row, &id)) in stream.chunks_exact_mut(width).zip(ids).enumerate() {
                self.tokens.row_into(id as usize, &mut x);
                x.iter_mut().for_each(|v| *v *= self.scale);
                if let Some(positions) = &self.positions {
                    positions.row_into(span.past + (piece * TOKENS + i) % span.tokens, &mut other);
                    x.iter_mut().zip(&other).for_each(|(x, p)| *x += p);
                }
                if let Some(norm) = &self.norm {
                    norm.kernel().apply(&x, &mut other);
                    std::mem::swap(&mut x, &mut other);
                }
                quantise_u8_serial(&x, self.grid, row);
            }
        });
    }
}
