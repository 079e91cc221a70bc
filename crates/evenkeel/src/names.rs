//! Choosing sites and parameters by glob over their dotted names, such as `blocks.*.resid`.

use globset::{Glob, GlobSet, GlobSetBuilder};
use thiserror::Error;

/// A pattern that is not a glob.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("\"{pattern}\" is not a glob: {problem}")]
pub struct BadPattern {
    /// As given.
    pub pattern: String,
    /// Why not.
    pub problem: String,
}

/// Matches names against any of several globs.
#[derive(Clone, Debug)]
pub struct NameFilter(GlobSet);

impl NameFilter {
    /// Compiles the globs.
    ///
    /// # Errors
    /// The first pattern that is not a glob.
    pub fn new(patterns: &[String]) -> Result<Self, BadPattern> {
        let bad = |pattern: &str, e: globset::Error| BadPattern {
            pattern: pattern.to_string(),
            problem: e.kind().to_string(),
        };
        let mut builder = GlobSetBuilder::new();
        for pattern in patterns {
            builder.add(Glob::new(pattern).map_err(|e| bad(pattern, e))?);
        }
        builder.build().map(Self).map_err(|e| bad(&patterns.join(", "), e))
    }

    /// Whether any glob matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_choose_names() {
        let filter = NameFilter::new(&["embed".into(), "blocks.*.resid".into()]).unwrap();
        assert!(filter.matches("embed"));
        assert!(filter.matches("blocks.11.resid"));
        assert!(!filter.matches("blocks.1.resid_mid"));
        assert!(NameFilter::new(&["[".into()]).is_err());
    }
}
