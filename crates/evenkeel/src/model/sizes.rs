//! Named sizes of a network, for any block: `[model] size = "320m"` beside `preset = "op"`.
//!
//! A preset says what a block is, a size how many of them there are and how wide; so any of the one goes with any of the
//! other. The names are those of the paper (He et al. 2024), which gives parameters, sequence lengths and vocabularies;
//! depths and widths are ours, chosen so that the counts fit: docs/data.md has them.

use super::config::ModelConfig;

/// How large a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// As it is written in a configuration.
    pub name: &'static str,
    /// One line on it.
    pub description: &'static str,
    /// Number of blocks.
    pub depth: usize,
    /// Channels of the residual stream; the MLP has four times as many.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest sequence.
    pub context: usize,
}

const TABLE: [Size; 5] = [
    Size {
        name: "codeparrot",
        description: "18 blocks of 768 channels, 12 heads, context 128: the paper's runs on code",
        depth: 18,
        width: 768,
        heads: 12,
        context: 128,
    },
    Size {
        name: "100m",
        description: "12 blocks of 768 channels, 12 heads, context 512: books (Languini); OPT-125m has this shape",
        depth: 12,
        width: 768,
        heads: 12,
        context: 512,
    },
    Size {
        name: "320m",
        description: "24 blocks of 1024 channels, 16 heads, context 512: books (Languini)",
        depth: 24,
        width: 1024,
        heads: 16,
        context: 512,
    },
    Size {
        name: "1.2b",
        description: "24 blocks of 2048 channels, 16 heads, context 512: books (Languini) and web text",
        depth: 24,
        width: 2048,
        heads: 16,
        context: 512,
    },
    Size {
        name: "7b",
        description: "32 blocks of 4096 channels, 32 heads, context 2048: web text",
        depth: 32,
        width: 4096,
        heads: 32,
        context: 2048,
    },
];

/// All sizes, in the order of their parameters but for the first.
pub fn sizes() -> &'static [Size] {
    &TABLE
}

/// The size of that name.
pub fn size(name: &str) -> Option<&'static Size> {
    TABLE.iter().find(|size| size.name == name)
}

impl Size {
    /// Gives a network this size.
    pub fn apply(&self, config: &mut ModelConfig) {
        config.depth = self.depth;
        config.width = self.width;
        config.heads = self.heads;
        // An image's is the number of its patches.
        if config.patch_size == 0 {
            config.context = self.context;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Transformer, preset};

    fn count(config: ModelConfig) -> u64 {
        let shapes = Transformer::shapes(config).unwrap();
        shapes.iter().map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// What a GPT of this size has, counted by hand.
    fn by_hand(size: &Size, vocab: u64, tied: bool) -> u64 {
        let (w, t, depth) = (size.width as u64, size.context as u64, size.depth as u64);
        let norm = 2 * w;
        let attention = 4 * (w * w + w);
        let mlp = (w * 4 * w + 4 * w) + (4 * w * w + w);
        let tables = if tied { 1 } else { 2 };
        tables * vocab * w + t * w + depth * (2 * norm + attention + mlp) + norm
    }

    #[test]
    fn parameters_are_those_of_the_formula() {
        for size in sizes() {
            for (vocab, tie_head) in [(16_384, false), (16_384, true), (50_257, false)] {
                let mut config = ModelConfig { vocab, tie_head, ..preset("pre_ln").unwrap() };
                size.apply(&mut config);
                assert_eq!(count(config), by_hand(size, vocab as u64, tie_head), "{} {vocab}", size.name);
            }
        }
    }

    /// The counts that docs/data.md gives.
    #[test]
    fn the_documented_counts_hold() {
        let millions =
            |name: &str, vocab: u64, tied: bool| by_hand(size(name).unwrap(), vocab, tied) / 100_000;
        let counts = [
            ("100m", 16_384, true, 980),
            ("320m", 16_384, true, 3_196),
            ("1.2b", 16_384, true, 12_432),
            ("7b", 50_257, true, 66_584),
            ("100m", 16_384, false, 1_106),
            ("320m", 16_384, false, 3_363),
            ("1.2b", 16_384, false, 12_767),
            ("7b", 50_257, false, 68_642),
            ("codeparrot", 32_768, true, 1_528),
        ];
        let counted = counts.map(|(name, vocab, tied, _)| (name, vocab, tied, millions(name, vocab, tied)));
        assert_eq!(counted, counts);
        assert!(size("100M").is_none());
    }

    #[test]
    fn every_block_takes_every_size() {
        for (name, _) in crate::model::presets() {
            for size in sizes() {
                let mut config = ModelConfig { vocab: 16_384, ..preset(name).unwrap() };
                size.apply(&mut config);
                config.validate().unwrap_or_else(|problem| panic!("{name} {}: {problem}", size.name));
            }
        }
    }
}
