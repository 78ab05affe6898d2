//! Pieces of a body in order, as they were received.
//!
//! Large ones stay slices of the connection's buffer. Small ones are copied together: a slice costs its owner, a place
//! in a list and the buffer that it keeps, more than a few bytes are worth.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Pieces below this size are copied.
const SMALL_BYTES_MAX: usize = 4 << 10;
/// Size of the buffers that they are copied into.
const BUFFER_BYTES: usize = 16 << 10;

/// A queue of pieces.
#[derive(Default)]
pub struct Pieces {
    whole: VecDeque<Bytes>,
    /// Small pieces behind those in `whole`.
    small: BytesMut,
}

impl Pieces {
    /// Appends a piece.
    pub fn push(&mut self, piece: Bytes) {
        if piece.len() >= SMALL_BYTES_MAX {
            self.end_small();
            self.whole.push_back(piece);
            return;
        }
        if self.small.capacity() - self.small.len() < piece.len() {
            self.end_small();
            self.small.reserve(BUFFER_BYTES);
        }
        self.small.extend_from_slice(&piece);
    }

    /// Takes the first piece.
    pub fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.end_small();
        }
        self.whole.pop_front()
    }

    /// Moves all pieces of another queue behind these.
    pub fn append(&mut self, other: &mut Pieces) {
        self.end_small();
        other.end_small();
        self.whole.append(&mut other.whole);
    }

    /// Takes all pieces.
    pub fn take(&mut self) -> VecDeque<Bytes> {
        self.end_small();
        std::mem::take(&mut self.whole)
    }

    /// Forgets all pieces.
    pub fn clear(&mut self) {
        self.whole.clear();
        self.small.clear();
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.whole.push_back(self.small.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_are_held_in_few_pieces() {
        let mut pieces = Pieces::default();
        for at in 0..200_000 {
            pieces.push(Bytes::from(vec![at as u8]));
        }
        let room: usize = pieces.whole.iter().map(Bytes::len).sum::<usize>() + pieces.small.capacity();
        assert!(room <= 200_000 + BUFFER_BYTES, "{room} bytes");
        let taken = pieces.take();
        assert!(taken.len() <= 200_000 / BUFFER_BYTES + 1, "{} pieces", taken.len());
        assert!(taken.iter().flatten().copied().eq((0..200_000).map(|at| at as u8)));
    }

    #[test]
    fn large_pieces_are_not_copied_and_the_order_stays() {
        let (small, large) = (Bytes::from_static(b"ab"), Bytes::from(vec![7; SMALL_BYTES_MAX]));
        let mut pieces = Pieces::default();
        [&small, &small, &large, &small].into_iter().for_each(|piece| pieces.push(piece.clone()));
        assert_eq!(pieces.pop().as_deref(), Some(&b"abab"[..]));
        assert_eq!(pieces.pop().map(|piece| piece.as_ptr()), Some(large.as_ptr()));
        assert_eq!((pieces.pop().as_deref(), pieces.pop()), (Some(&b"ab"[..]), None));
    }
}
