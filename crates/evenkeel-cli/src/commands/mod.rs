//! One file per command: settings in, library calls, result out.

pub(crate) mod bench;
mod calibration;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod experiment;
pub(crate) mod export;
mod images;
pub(crate) mod inspect;
pub(crate) mod man;
mod model;
mod place;
pub(crate) mod quantize;
pub(crate) mod quickstart;
pub(crate) mod report;
pub(crate) mod sample;
pub(crate) mod sweep;
mod text;
pub(crate) mod train;
