//! Small matrices over GF(2⁸), polynomial 0x11D.

use reed_solomon_erasure::galois_8::{self, ReedSolomon};

/// Returns the m × k parity rows of matrix 1, row by row: read off the `reed-solomon-erasure`
/// crate by encoding unit vectors, so that the two can't drift apart.
pub(crate) fn vandermonde_parity_rows(k: usize, m: usize) -> Vec<u8> {
    let mut rows = vec![0; m * k];
    if m == 0 {
        return rows;
    }
    let codec = ReedSolomon::new(k, m).expect("k and m are at least 1 and together below 256");
    for column in 0..k {
        let data: Vec<[u8; 1]> = (0..k).map(|index| [u8::from(index == column)]).collect();
        let mut parity = vec![[0u8; 1]; m];
        codec.encode_sep(&data, &mut parity).expect("shard counts and lengths fit the codec");
        for (row, cell) in parity.iter().enumerate() {
            rows[row * k + column] = cell[0];
        }
    }
    rows
}

/// Inverts an n × n matrix by Gauss-Jordan elimination; nothing where it is singular.
pub(crate) fn invert(mut matrix: Vec<u8>, n: usize) -> Option<Vec<u8>> {
    let mut inverse = vec![0; n * n];
    for index in 0..n {
        inverse[index * n + index] = 1;
    }
    for column in 0..n {
        let pivot = (column..n).find(|&row| matrix[row * n + column] != 0)?;
        for index in 0..n {
            matrix.swap(pivot * n + index, column * n + index);
            inverse.swap(pivot * n + index, column * n + index);
        }
        let scale = galois_8::div(1, matrix[column * n + column]);
        for index in 0..n {
            matrix[column * n + index] = galois_8::mul(matrix[column * n + index], scale);
            inverse[column * n + index] = galois_8::mul(inverse[column * n + index], scale);
        }
        for row in (0..n).filter(|&row| row != column) {
            let factor = matrix[row * n + column];
            for index in 0..n {
                matrix[row * n + index] ^= galois_8::mul(factor, matrix[column * n + index]);
                inverse[row * n + index] ^= galois_8::mul(factor, inverse[column * n + index]);
            }
        }
    }
    Some(inverse)
}

/// Adds `factor` times `input` to `out`, or starts `out` with it; `input` may be shorter than
/// `out` (the rest counts as zeros) or longer (the rest is not looked at).
pub(crate) fn accumulate(factor: u8, input: &[u8], out: &mut [u8], start: bool) {
    let common = input.len().min(out.len());
    let (head, tail) = out.split_at_mut(common);
    let input = &input[..common];
    match (start, factor) {
        // The SIMD kernels take the address of the first byte: there must be one.
        _ if common == 0 => {}
        (true, 0) => head.fill(0),
        (true, 1) => head.copy_from_slice(input),
        (true, _) => galois_8::mul_slice(factor, input, head),
        (false, 0) => {}
        (false, _) => galois_8::mul_slice_xor(factor, input, head),
    }
    if start {
        tail.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_times_matrix_is_unity() {
        let matrix = vandermonde_parity_rows(4, 4);
        let inverse = invert(matrix.clone(), 4).unwrap();
        for row in 0..4 {
            for column in 0..4 {
                let sum = (0..4).fold(0, |sum, i| sum ^ galois_8::mul(matrix[row * 4 + i], inverse[i * 4 + column]));
                assert_eq!(sum, u8::from(row == column));
            }
        }
    }

    #[test]
    fn singular_matrix_has_no_inverse() {
        assert_eq!(invert(vec![1, 2, 1, 2], 2), None);
    }
}
