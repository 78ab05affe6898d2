//! Codecs: generator matrices by number, and encoding.

use crate::matrix::{accumulate, vandermonde_parity_rows};
use crate::plan::Plan;
use std::sync::{Arc, LazyLock, RwLock};

/// Matrix 1: Vandermonde × inverse of its top over GF(2⁸), polynomial 0x11D; systematic.
pub const MATRIX_VANDERMONDE: u8 = 1;
/// Most fragments of a stripe, data and parity together.
pub const WIDTH_MAX: usize = 32;
/// Bytes of each slice that are worked on at a time, so that a cell's row of fragments stays in
/// the first-level cache while all parity rows are made from it.
const STRIDE_BYTES: usize = 4096;

/// Why there is no such codec, or no way to rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// The generator matrix has a number that is not known here; the writer is newer.
    #[error("unknown generator matrix {0}")]
    UnknownMatrix(u8),
    /// No data fragment, or more fragments than [`WIDTH_MAX`].
    #[error("code {0}+{1} is out of range")]
    OutOfRange(u8, u8),
    /// Fewer fragments are at hand than the stripe has data fragments.
    #[error("{available} fragments are at hand, {needed} are needed")]
    TooFew {
        /// Distinct fragments at hand.
        available: usize,
        /// Fragments that rebuilding takes.
        needed: usize,
    },
    /// A fragment index that the stripe does not have.
    #[error("the stripe has no fragment {0}")]
    NoSuchFragment(u8),
}

/// Which code: the matrix and the numbers of data and parity fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of the generator matrix; only [`MATRIX_VANDERMONDE`] exists.
    pub matrix: u8,
    /// Data fragments of a full stripe, at least 1.
    pub k: u8,
    /// Parity fragments; 0 is a code without redundancy.
    pub m: u8,
}

/// A (k, m) code, ready to encode and to plan rebuilding.
#[derive(Debug)]
pub struct Codec {
    shape: Shape,
    /// m × k parity coefficients, row by row.
    parity_rows: Vec<u8>,
}

/// Every codec that was ever asked for: a handful in a process.
static CODECS: LazyLock<RwLock<Vec<Arc<Codec>>>> = LazyLock::new(RwLock::default);

impl Codec {
    /// Returns the codec of a shape, made at the first call; refuses unknown matrices and shapes
    /// without data or beyond [`WIDTH_MAX`].
    pub fn get(shape: Shape) -> Result<Arc<Codec>, ErasureError> {
        let find = |codecs: &[Arc<Codec>]| codecs.iter().find(|codec| codec.shape == shape).cloned();
        if let Some(codec) = find(&CODECS.read().expect("no holder of this lock panics")) {
            return Ok(codec);
        }
        let made = Arc::new(Codec::make(shape)?);
        let mut codecs = CODECS.write().expect("no holder of this lock panics");
        if let Some(codec) = find(&codecs) {
            return Ok(codec);
        }
        codecs.push(made.clone());
        Ok(made)
    }

    fn make(shape: Shape) -> Result<Codec, ErasureError> {
        let (k, m) = (usize::from(shape.k), usize::from(shape.m));
        if shape.matrix != MATRIX_VANDERMONDE {
            return Err(ErasureError::UnknownMatrix(shape.matrix));
        }
        if k == 0 || k + m > WIDTH_MAX {
            return Err(ErasureError::OutOfRange(shape.k, shape.m));
        }
        Ok(Codec { shape, parity_rows: vandermonde_parity_rows(k, m) })
    }

    /// Returns the shape that the codec was made for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Returns how parity fragment `parity` (from 0) weighs data fragment `data`.
    pub(crate) fn coefficient(&self, parity: usize, data: usize) -> u8 {
        self.parity_rows[parity * usize::from(self.shape.k) + data]
    }

    /// Makes one cell of every parity fragment from the same cell of the data fragments.
    ///
    /// `data` holds the 1 to k data fragments that the stripe has, in order; each may be shorter
    /// than the parity cells, never longer. `parity` holds all m parity cells, of one length; what
    /// they held before is overwritten.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert!(!data.is_empty() && data.len() <= usize::from(self.shape.k), "1 to k data fragments");
        assert_eq!(parity.len(), usize::from(self.shape.m), "one cell for each parity fragment");
        let Some(cell_bytes) = parity.first().map(|cell| cell.len()) else { return };
        assert!(parity.iter().all(|cell| cell.len() == cell_bytes), "parity cells have one length");
        assert!(data.iter().all(|cell| cell.len() <= cell_bytes), "no data cell is longer than the parity's");
        for from in (0..cell_bytes).step_by(STRIDE_BYTES) {
            let to = (from + STRIDE_BYTES).min(cell_bytes);
            for (row, cell) in parity.iter_mut().enumerate() {
                for (column, input) in data.iter().enumerate() {
                    let input = &input[from.min(input.len())..to.min(input.len())];
                    accumulate(self.coefficient(row, column), input, &mut cell[from..to], column == 0);
                }
            }
        }
    }

    /// Plans how to rebuild the fragments `wanted` of a stripe with `data_count` data fragments
    /// from the first `data_count` distinct ones of `available`, which come in order of preference.
    ///
    /// Fragments count as everywhere: data from 0, parity from k.
    pub fn plan(&self, data_count: u8, available: &[u8], wanted: &[u8]) -> Result<Plan, ErasureError> {
        Plan::make(self, data_count, available, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(matrix: u8, k: u8, m: u8) -> Shape {
        Shape { matrix, k, m }
    }

    #[test]
    fn unknown_matrices_and_impossible_shapes_are_refused() {
        assert_eq!(Codec::get(shape(2, 3, 2)).unwrap_err(), ErasureError::UnknownMatrix(2));
        assert_eq!(Codec::get(shape(1, 0, 2)).unwrap_err(), ErasureError::OutOfRange(0, 2));
        assert_eq!(Codec::get(shape(1, 30, 3)).unwrap_err(), ErasureError::OutOfRange(30, 3));
    }

    #[test]
    fn codecs_are_made_once() {
        assert!(Arc::ptr_eq(&Codec::get(shape(1, 4, 2)).unwrap(), &Codec::get(shape(1, 4, 2)).unwrap()));
    }

    #[test]
    fn a_code_without_parity_encodes_nothing() {
        Codec::get(shape(1, 1, 0)).unwrap().encode(&[b"bytes"], &mut []);
    }
}
