//! What chance does to a training picture: which part of it is seen, and whether it is mirrored.
//!
//! All draws are functions of one key, and use no function whose last bit depends on the machine.

use crate::random::uniform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which part of a training picture is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// All of it; of a file the largest part in the middle that has the proportions of the model's images.
    #[default]
    None,
    /// That, shifted by up to an eighth of its size (4 of 32 pixels) each way, with the mean colour beyond the edge.
    Padded,
    /// A window of 8 to 100 per cent of the area and of 3/4 to 4/3 of the model's proportions, resized (files only).
    Resized,
}

/// One draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Augmentation {
    /// Key of the window, where one is drawn.
    window: Option<u64>,
    /// Shift down and to the right, as shares of the size.
    shift: Option<[f64; 2]>,
    flip: bool,
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// Pixels that a picture of this side is shifted by at most.
fn most_shift(side: usize) -> usize {
    side.div_ceil(8)
}

impl Augmentation {
    pub(super) fn none() -> Self {
        Self { window: None, shift: None, flip: false }
    }

    pub(super) fn drawn(key: u64, crop: Crop, flip: bool) -> Self {
        Self {
            window: (crop == Crop::Resized).then_some(key),
            shift: (crop == Crop::Padded).then(|| [uniform(key, 0), uniform(key, 1)]),
            flip: flip && uniform(key, 2) < 0.5,
        }
    }

    /// The pixel that is seen at row `y` and column `x`; `None` beyond the edge.
    pub(super) fn origin(&self, y: usize, x: usize, [height, width]: [usize; 2]) -> Option<(usize, usize)> {
        let x = if self.flip { width - 1 - x } else { x };
        let Some([down, right]) = self.shift else { return Some((y, x)) };
        let moved = |at: usize, side: usize, share: f64| {
            let most = most_shift(side);
            let shift = (share * (2 * most + 1) as f64) as usize;
            (at + shift).checked_sub(most).filter(|&at| at < side)
        };
        Some((moved(y, height, down)?, moved(x, width, right)?))
    }

    /// The part of a picture of `from` (height, width) that becomes one of `to`.
    pub(super) fn window(&self, from: [usize; 2], to: [usize; 2]) -> Window {
        self.window.and_then(|key| drawn_window(key, from, to)).unwrap_or_else(|| centred(from, to))
    }
}

/// The largest window in the middle with the proportions of `to`.
fn centred([height, width]: [usize; 2], [to_height, to_width]: [usize; 2]) -> Window {
    // In whole numbers: of height · to_width and width · to_height the smaller is kept whole.
    let (tall, wide) = (height as u128 * to_width as u128, width as u128 * to_height as u128);
    let (h, w) = if tall > wide {
        (((width as u128 * to_height as u128) / to_width.max(1) as u128) as usize, width)
    } else {
        (height, ((height as u128 * to_width as u128) / to_height.max(1) as u128) as usize)
    };
    let (h, w) = (h.clamp(1, height), w.clamp(1, width));
    Window { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// A window drawn as torchvision's RandomResizedCrop draws it, but for the law of the proportions; `None` if ten draws did
/// not fit.
fn drawn_window(key: u64, [height, width]: [usize; 2], to: [usize; 2]) -> Option<Window> {
    let area = height as f64 * width as f64;
    let proportions = to[1] as f64 / to[0].max(1) as f64;
    (0..10).find_map(|attempt| {
        let draw = |i: u64| uniform(key, 16 + 8 * attempt + i);
        let taken = area * (0.08 + 0.92 * draw(0));
        let narrow = 0.75 + 0.25 * draw(1);
        let ratio = proportions * if draw(2) < 0.5 { narrow } else { 1.0 / narrow };
        let (h, w) = ((taken / ratio).sqrt().round() as usize, (taken * ratio).sqrt().round() as usize);
        let fits = (1..=height).contains(&h) && (1..=width).contains(&w);
        let within = |room: usize, share: f64| ((room + 1) as f64 * share) as usize;
        fits.then(|| Window {
            top: within(height - h, draw(3)),
            left: within(width - w, draw(4)),
            height: h,
            width: w,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn windows_lie_inside(key: u64, h in 1_usize..500, w in 1_usize..500, th in 1_usize..64, tw in 1_usize..64) {
            for crop in [Crop::None, Crop::Resized] {
                let window = Augmentation::drawn(key, crop, true).window([h, w], [th, tw]);
                prop_assert!(window.height > 0 && window.top + window.height <= h, "{window:?}");
                prop_assert!(window.width > 0 && window.left + window.width <= w, "{window:?}");
            }
        }
    }

    #[test]
    fn the_middle_is_as_large_as_it_can_be() {
        let window = |top, left, height, width| Window { top, left, height, width };
        assert_eq!(centred([10, 20], [4, 4]), window(0, 5, 10, 10));
        assert_eq!(centred([20, 10], [4, 4]), window(5, 0, 10, 10));
        assert_eq!(centred([20, 10], [4, 8]), window(7, 0, 5, 10));
        assert_eq!(centred([3, 500], [32, 32]), window(0, 248, 3, 3));
    }

    #[test]
    fn shifts_are_even_and_a_flip_is_its_own_inverse() {
        let size = [32, 32];
        let mut shifts = std::collections::BTreeMap::new();
        for key in 0..9000 {
            let drawn = Augmentation::drawn(crate::random::mix(key), Crop::Padded, false);
            let (y, x) = drawn.origin(16, 16, size).unwrap();
            *shifts.entry(y as i64 - 16).or_insert(0) += 1;
            assert!((12..=20).contains(&x));
        }
        // A thousand of each is expected, with a standard deviation of 30.
        assert_eq!(shifts.len(), 9);
        assert!(shifts.values().all(|n| (850..1150).contains(n)), "{shifts:?}");
        let flipped = Augmentation { flip: true, ..Augmentation::none() };
        assert_eq!(flipped.origin(3, 0, size), Some((3, 31)));
        let corner = Augmentation { shift: Some([0.0, 0.999]), ..Augmentation::none() };
        assert_eq!((corner.origin(0, 0, size), corner.origin(5, 28, size)), (None, None));
        assert_eq!(corner.origin(4, 27, size), Some((0, 31)));
    }
}
