//! Reed-Solomon: how a stripe survives the loss of any m of its fragments.
//!
//! A [`Codec`] is a (k, m) code over one numbered generator matrix; [`Codec::get`] hands out a
//! cached one. The matrix is part of the disk format, so its number stands in every fragment
//! header, and a number that is not known here is refused.
//!
//! Parity works row by row: byte j of every parity fragment depends on byte j of the data
//! fragments and on nothing else. So the writer encodes cell by cell while the bytes are warm
//! ([`Codec::encode`]), and a reader that misses a range rebuilds just that range
//! ([`Codec::plan`], then [`Plan::rebuild`]). Slices that are shorter than the cell, and data
//! fragments that a short stripe does not have, count as zeros. Neither call allocates.
//!
//! The field arithmetic is that of the `reed-solomon-erasure` crate with its SIMD kernels; this
//! crate owns the matrices, the short stripes and the rebuilding of single fragments.

mod codec;
mod matrix;
mod plan;

pub use codec::{Codec, ErasureError, MATRIX_VANDERMONDE, Shape, WIDTH_MAX};
pub use plan::Plan;
