//! Rebuilding: which fragments to read, and how they add up to the ones that are wanted.

use crate::codec::{Codec, ErasureError};
use crate::matrix::{accumulate, invert};
use reed_solomon_erasure::galois_8;

/// How to rebuild some fragments of a stripe from others. Holds for any range of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    inputs: Vec<u8>,
    wanted: Vec<u8>,
    /// One row of coefficients over `inputs` for each fragment of `wanted`.
    rows: Vec<u8>,
}

impl Plan {
    pub(crate) fn make(codec: &Codec, data_count: u8, available: &[u8], wanted: &[u8]) -> Result<Plan, ErasureError> {
        let shape = codec.shape();
        let needed = usize::from(data_count);
        if data_count == 0 || data_count > shape.k {
            return Err(ErasureError::OutOfRange(data_count, shape.m));
        }
        let exists = |index: u8| index < data_count || (index >= shape.k && index < shape.k + shape.m);
        if let Some(&stranger) = available.iter().chain(wanted).find(|&&index| !exists(index)) {
            return Err(ErasureError::NoSuchFragment(stranger));
        }
        let mut inputs = Vec::with_capacity(needed);
        for &index in available {
            if inputs.len() < needed && !inputs.contains(&index) {
                inputs.push(index);
            }
        }
        if inputs.len() < needed {
            return Err(ErasureError::TooFew { available: inputs.len(), needed });
        }
        let generator = |index: u8, column: usize| match index.checked_sub(shape.k) {
            Some(parity) => codec.coefficient(usize::from(parity), column),
            None => u8::from(usize::from(index) == column),
        };
        let square = inputs.iter().flat_map(|&index| (0..needed).map(move |column| generator(index, column)));
        // Any k rows of the generator are independent; the columns that a short stripe lacks stand
        // for as many unit rows, so the square that is left has full rank.
        let inverse = invert(square.collect(), needed).expect("any k rows of the generator are independent");
        let mut rows = Vec::with_capacity(wanted.len() * needed);
        for &index in wanted {
            for column in 0..needed {
                rows.push(
                    (0..needed)
                        .fold(0, |sum, i| sum ^ galois_8::mul(generator(index, i), inverse[i * needed + column])),
                );
            }
        }
        Ok(Plan { inputs, wanted: wanted.to_vec(), rows })
    }

    /// Returns the fragments to read, in the order in which [`Plan::rebuild`] takes their cells.
    pub fn inputs(&self) -> &[u8] {
        &self.inputs
    }

    /// Returns the fragments that can be rebuilt, in the order in which they were asked for.
    pub fn wanted(&self) -> &[u8] {
        &self.wanted
    }

    /// Rebuilds a cell of the fragment `wanted` from the same cell of the inputs.
    ///
    /// An input shorter than `out` counts as zero beyond its end; bytes beyond `out` are ignored.
    pub fn rebuild(&self, wanted: u8, inputs: &[&[u8]], out: &mut [u8]) {
        assert_eq!(inputs.len(), self.inputs.len(), "one cell for each input of the plan");
        let row = self.wanted.iter().position(|&index| index == wanted).expect("the plan is for this fragment");
        for (column, input) in inputs.iter().enumerate() {
            accumulate(self.rows[row * self.inputs.len() + column], input, out, column == 0);
        }
    }
}
