//! evenkeel: train transformers that stay on an even keel.
//!
//! The system of He et al., "Understanding and Minimising Outlier Features in Transformer Training"
//! (NeurIPS 2024, arXiv 2405.19279): measure outlier features, train without them, and quantise what was
//! trained. Data flows one way through the modules:
//!
//! [`data`] (corpus → tokens → shards → batches) → [`model`] on [`tape`] and [`ops`] → [`optim`] →
//! [`train`] with [`metrics`] and [`checkpoint`] → [`quant`] → [`report`].
//!
//! [`tap`] is the one way to look into, or reach into, a forward pass; [`metrics`] are functions of what a
//! tap sees. The library prints nothing and holds no `unsafe`.
#![forbid(unsafe_code)]

pub mod cache;
pub mod checkpoint;
pub mod compare;
pub mod config;
pub mod data;
pub mod decode;
pub mod error;
pub mod experiment;
pub mod export;
pub mod files;
pub mod inspect;
pub mod metrics;
pub mod model;
pub mod names;
pub mod ops;
pub mod optim;
pub mod profile;
pub mod quant;
pub mod random;
pub mod report;
pub mod sample;
pub mod slices;
pub mod sweep;
pub mod tap;
pub mod tape;
pub mod train;

pub use error::{Error, Hint, Result};
