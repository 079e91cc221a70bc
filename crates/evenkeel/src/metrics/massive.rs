//! Massive activations: the largest entries of all, one by one (Sun et al., "Massive activations in large
//! language models", arXiv 2402.17762).
//!
//! A kurtosis says that a channel sticks out; this says which, at which token, and how far. An entry's ratio
//! is to the lower median of |x| over all entries of its site *in the batch in which it occurred*: exact
//! where one batch holds everything (`inspect --ids`), and over a stream of batches the median of some
//! thousand tokens in place of all, which would have to be kept (of logits, those of the few sequences that are made at a time).

use super::site::{plain, rows_and_width};
use crate::slices::slice;
use crate::tap::{Site, Tap};
use candle_core::{Result, Tensor};
use evenkeel_kernels::stats::{magnitudes_above, median_magnitude};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One large entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MassiveActivation {
    /// Name of its site.
    pub site: String,
    /// Sequence, counted over everything seen from 0.
    pub sequence: u64,
    /// Token in the sequence, from 0.
    pub position: usize,
    /// Channel, from 0.
    pub channel: usize,
    /// The entry, with its sign.
    pub value: f64,
    /// |value| over the lower median of |x| at the site in that batch. `None` if the median is 0.
    pub ratio_to_median: Option<f64>,
}

/// Keeps the k entries of largest |x| over all sites that have channels. Entries that are 0 or not finite are
/// none. Of equal ones the first seen stays.
pub struct MassiveTap {
    k: usize,
    /// By falling |x|.
    found: Vec<MassiveActivation>,
    sequences: BTreeMap<Site, u64>,
}

impl MassiveTap {
    /// Nothing seen yet.
    pub fn new(k: usize) -> Self {
        Self { k, found: Vec::new(), sequences: BTreeMap::new() }
    }

    /// The largest entries, the largest first.
    pub fn into_found(self) -> Vec<MassiveActivation> {
        self.found
    }

    /// Adds `x` of shape (sequences, `tokens`, `width`) at `site`.
    pub fn add(&mut self, site: Site, x: &[f32], tokens: usize, width: usize) {
        if self.k == 0 || x.is_empty() || tokens * width == 0 {
            return;
        }
        let before = self.sequences.entry(site).or_default();
        let first = *before;
        *before += (x.len() / (tokens * width)) as u64;
        // A float32 came in, so nothing is lost going back.
        let floor = if self.found.len() < self.k { 0.0 } else { self.found[self.k - 1].value.abs() as f32 };
        let mut places = magnitudes_above(x, floor, self.k);
        if places.is_empty() {
            return;
        }
        // Stable, so that of equals the first stays; the rest need no names.
        places.sort_by(|&a, &b| x[b].abs().total_cmp(&x[a].abs()));
        places.truncate(self.k);
        let median = f64::from(median_magnitude(x));
        let name = site.to_string();
        self.found.extend(places.into_iter().map(|at| {
            let value = f64::from(x[at]);
            let row = at / width;
            MassiveActivation {
                site: name.clone(),
                sequence: first + (row / tokens) as u64,
                position: row % tokens,
                channel: at % width,
                value,
                // The median is NaN if most entries are.
                ratio_to_median: super::finite(value.abs() / median),
            }
        }));
        self.found.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
        self.found.truncate(self.k);
    }
}

impl Tap for MassiveTap {
    fn wants(&self, site: Site) -> bool {
        self.k > 0 && site.place.has_channels()
    }

    fn visit(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let (tokens, width) = rows_and_width(&x)?;
        self.add(site, &slice(&plain(&x)?)?, tokens, width);
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Place;

    #[test]
    fn the_largest_over_sites_and_batches_with_their_places() {
        let mut tap = MassiveTap::new(3);
        let mut x = vec![0.5f32; 24];
        (x[17], x[2]) = (-40.0, 3.0);
        // 2 sequences of 3 tokens of 4 channels.
        tap.add(Site::outside(Place::Embed), &x, 3, 4);
        let mut y = vec![2.0f32; 24];
        y[5] = 4.0;
        tap.add(Site::block(1, Place::Resid), &y, 3, 4);
        let mut z = vec![1.0f32; 12];
        z[11] = -100.0;
        tap.add(Site::outside(Place::Embed), &z, 3, 4);
        let found = tap.into_found();
        let of = |i: usize| {
            let m: &MassiveActivation = &found[i];
            (m.site.as_str(), m.sequence, m.position, m.channel, m.value, m.ratio_to_median)
        };
        assert_eq!(found.len(), 3);
        assert_eq!(of(0), ("embed", 2, 2, 3, -100.0, Some(100.0)));
        assert_eq!(of(1), ("embed", 1, 1, 1, -40.0, Some(80.0)));
        assert_eq!(of(2), ("blocks.1.resid", 0, 1, 1, 4.0, Some(2.0)));
    }

    #[test]
    fn zeros_and_what_is_not_finite_are_not_listed() {
        let mut tap = MassiveTap::new(5);
        tap.add(Site::outside(Place::Embed), &[f32::NAN, 0.0, f32::INFINITY, -7.0, 0.0, 0.0], 3, 2);
        let found = tap.into_found();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].value, found[0].ratio_to_median), (-7.0, None));
    }
}
