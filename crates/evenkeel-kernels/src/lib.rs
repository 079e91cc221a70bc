//! CPU kernels on plain slices: what a training step spends its time in.
//!
//! No tensor library is known here. Every function takes row-major slices and sizes, checks the sizes
//! once, and then runs on the global rayon pool. This is the only crate of the workspace with `unsafe`:
//! it is needed for run-time instruction-set dispatch ([`isa`]), for threads that write disjoint
//! strided parts of one buffer ([`threads::Shared`]), and for files in memory ([`memory::MappedFile`]).
//!
//! Two rules hold everywhere:
//!
//! * **Sums are cut by shape, never by thread count**, and partial sums are added in a fixed order, so
//!   a result is the same bit for bit on one thread or on sixty-four.
//! * **Vector code is portable code**: bodies are written with fixed lanes so that the compiler
//!   vectorises them, and compiled once per instruction set. The order of additions is in the source, so
//!   the instruction set does not change a result either (the matrix products of [`gemm`] excepted).
#![deny(unsafe_op_in_unsafe_fn)]

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod factored;
pub mod gate;
pub mod gemm;
pub mod int8;
pub mod isa;
pub mod math;
pub mod memory;
pub mod minifloat;
pub mod norm;
pub mod optimizer;
pub mod peak;
pub mod quant;
pub mod stats;
pub mod threads;
pub mod xent;
