//! Layout: how an object's bytes fall into stripes, fragments and frames. Arithmetic only.
//!
//! Data fragment i of a stripe holds the payload bytes `[i·F, (i+1)·F)`. F is chosen so that
//!
//! | bytes left in the object          | data fragments | F                                      |
//! |-----------------------------------|----------------|----------------------------------------|
//! | up to `SPLIT_BYTES_MIN`           | 1              | all of them                            |
//! | up to k × the largest fragment    | up to k        | an even share, rounded up to whole frames |
//! | more, or unknown                  | k              | the largest fragment                   |
//!
//! Spreading an object of middling size evenly keeps the bytes written near (k+m)/k of the payload;
//! with one data fragment they would be 1+m times the payload.

use crate::config::SPLIT_BYTES_MIN;
use plinth_protocol::frame::{FRAME_BYTES, FRAME_PAYLOAD_BYTES, fragment_bytes, frame_bytes, frame_count};
use plinth_protocol::stripe::{Code, FRAGMENT_BYTES_MAX, StripeRef};
use std::ops::Range;

/// The shape of a stripe before it is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StripeShape {
    /// F: payload bytes of each data fragment but the last.
    pub(crate) fragment_payload: usize,
    /// Most payload bytes that the stripe takes.
    pub(crate) payload_max: usize,
}

impl StripeShape {
    /// Chooses the shape of an object's next stripe. `left` is how many bytes the object still has,
    /// where known; `fragment_bytes_max` is the largest fragment on disk.
    pub(crate) fn choose(code: Code, fragment_bytes_max: u32, left: Option<u64>) -> Self {
        let frames_max = ((fragment_bytes_max as usize).min(FRAGMENT_BYTES_MAX) / FRAME_BYTES).max(1);
        let (k, largest) = (usize::from(code.k), frames_max * FRAME_PAYLOAD_BYTES);
        let whole = StripeShape { fragment_payload: largest, payload_max: k * largest };
        let Some(left) = left.filter(|&left| left > 0 && left <= whole.payload_max as u64) else { return whole };
        let payload_max = left as usize;
        if left <= SPLIT_BYTES_MIN.min(largest as u64) {
            return StripeShape { fragment_payload: payload_max, payload_max };
        }
        let frames = frame_count(payload_max).div_ceil(k);
        StripeShape { fragment_payload: frames * FRAME_PAYLOAD_BYTES, payload_max }
    }

    /// Returns how many data fragments the stripe has when it is full.
    pub(crate) fn data_count(self) -> usize {
        self.payload_max.div_ceil(self.fragment_payload)
    }

    /// Returns the payload bytes of data fragment `index` of a full stripe.
    pub(crate) fn fragment_payload_of(self, index: usize) -> usize {
        self.payload_max.saturating_sub(index * self.fragment_payload).min(self.fragment_payload)
    }

    /// Returns the bytes on disk of each of the full stripe's fragments, data first.
    pub(crate) fn fragment_sizes(self, code: Code) -> impl Iterator<Item = usize> {
        let data = (0..self.data_count()).map(move |index| fragment_bytes(self.fragment_payload_of(index)));
        data.chain((0..code.m).map(move |_| fragment_bytes(self.fragment_payload_of(0))))
    }
}

/// Returns where the frame `row` lies in a fragment that carries `payload` bytes; empty where the
/// fragment ends before it.
pub(crate) fn frame_range(payload: usize, row: usize) -> Range<usize> {
    let start = row * FRAME_BYTES;
    if row >= frame_count(payload) {
        return start..start;
    }
    let in_frame = (payload - row * FRAME_PAYLOAD_BYTES).min(FRAME_PAYLOAD_BYTES);
    start..start + frame_bytes(in_frame)
}

/// Returns the bytes that `count` frames from `first` on take in a fragment with `payload` bytes.
pub(crate) fn run_bytes(payload: usize, first: usize, count: usize) -> usize {
    (first..first + count).map(|row| frame_range(payload, row).len()).sum()
}

/// A piece of one data fragment that a range read needs: whole frames, and the payload bytes of
/// them that are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The data fragment.
    pub(crate) index: u8,
    /// First frame.
    pub(crate) first: usize,
    /// Number of frames.
    pub(crate) count: usize,
    /// Wanted bytes, counted in payload bytes from the start of frame `first`.
    pub(crate) wanted: Range<usize>,
}

impl Piece {
    /// Cuts the piece behind its first `frames`; it has more of them.
    pub(crate) fn split(&self, frames: usize) -> (Piece, Piece) {
        assert!(frames > 0 && self.count > frames);
        let bytes = frames * FRAME_PAYLOAD_BYTES;
        let head = Piece { count: frames, wanted: self.wanted.start..bytes, ..*self };
        let wanted = 0..self.wanted.end - bytes;
        (head, Piece { first: self.first + frames, count: self.count - frames, wanted, ..*self })
    }
}

/// Cuts a range of a stripe's payload into pieces of at most `frames_max` frames, in order.
pub(crate) fn pieces(stripe: &StripeRef, range: Range<u64>, frames_max: usize) -> Vec<Piece> {
    let each = u64::from(stripe.fragment_payload_bytes).max(1);
    let mut pieces = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let index = at / each;
        let in_fragment = (at - index * each) as usize;
        let end = (range.end - index * each).min(each) as usize;
        let first = in_fragment / FRAME_PAYLOAD_BYTES;
        let base = first * FRAME_PAYLOAD_BYTES;
        let end = end.min(base + frames_max * FRAME_PAYLOAD_BYTES);
        let count = (end - base).div_ceil(FRAME_PAYLOAD_BYTES);
        pieces.push(Piece { index: index as u8, first, count, wanted: in_fragment - base..end - base });
        at = index * each + end as u64;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::{PgId, StripeId};
    use proptest::prelude::*;

    const CODE: Code = Code::new(3, 2);
    const MAX: u32 = 4 << 20;

    fn stripe(code: Code, payload: u64, each: u32) -> StripeRef {
        StripeRef {
            stripe: StripeId(0),
            pg: PgId(0),
            generation: 1,
            code,
            payload_bytes: payload,
            fragment_payload_bytes: each,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        }
    }

    #[test]
    fn small_objects_are_one_fragment_and_middling_ones_an_even_split() {
        let small = StripeShape::choose(CODE, MAX, Some(100_000));
        assert_eq!((small.data_count(), small.fragment_payload), (1, 100_000));
        let middling = StripeShape::choose(CODE, MAX, Some(1 << 20));
        assert_eq!((middling.data_count(), middling.fragment_payload), (3, 6 * FRAME_PAYLOAD_BYTES));
        let unknown = StripeShape::choose(CODE, MAX, None);
        assert_eq!((unknown.data_count(), unknown.fragment_payload), (3, 64 * FRAME_PAYLOAD_BYTES));
    }

    #[test]
    fn middling_objects_are_amplified_little() {
        for size in (300_000..12_000_000u64).step_by(77_777) {
            let written: usize = StripeShape::choose(CODE, MAX, Some(size)).fragment_sizes(CODE).sum();
            assert!(written as f64 <= size as f64 * 5.0 / 3.0 + 5.0 * FRAME_BYTES as f64, "{size} became {written}");
        }
    }

    proptest! {
        #[test]
        fn shapes_hold_what_they_say(k in 1u8..11, m in 0u8..5, left in 1u64..60_000_000, max in 1u32..65) {
            let code = Code::new(k, m);
            let shape = StripeShape::choose(code, max * FRAME_BYTES as u32, Some(left));
            prop_assert!(shape.data_count() <= usize::from(k));
            prop_assert!(shape.payload_max as u64 <= left);
            prop_assert_eq!((0..shape.data_count()).map(|i| shape.fragment_payload_of(i)).sum::<usize>(), shape.payload_max);
            prop_assert!(shape.fragment_sizes(code).all(|bytes| bytes <= (max as usize) * FRAME_BYTES));
            prop_assert!(shape.data_count() == 1 || shape.fragment_payload.is_multiple_of(FRAME_PAYLOAD_BYTES));
            // What writers make passes the check that apply holds stripes to, full or cut short.
            for payload in [1, shape.payload_max as u64 / 2 + 1, shape.payload_max as u64] {
                prop_assert_eq!(stripe(code, payload, shape.fragment_payload as u32).check(), Ok(()));
            }
        }

        #[test]
        fn pieces_cover_a_range_exactly(payload in 1u64..2_000_000, each in 1u32..12, a: u64, b: u64, frames in 1usize..5) {
            let each = each * FRAME_PAYLOAD_BYTES as u32;
            let payload = payload.min(u64::from(each) * 3);
            let stripe = stripe(CODE, payload, each);
            let (a, b) = (a % (payload + 1), b % (payload + 1));
            let range = a.min(b)..a.max(b);
            let mut at = range.start;
            for piece in pieces(&stripe, range.clone(), frames) {
                let start = u64::from(piece.index) * u64::from(each) + (piece.first * FRAME_PAYLOAD_BYTES + piece.wanted.start) as u64;
                prop_assert_eq!(start, at);
                prop_assert!(piece.count <= frames && piece.wanted.start < FRAME_PAYLOAD_BYTES);
                prop_assert!(piece.wanted.end <= piece.count * FRAME_PAYLOAD_BYTES);
                prop_assert!(piece.wanted.end > (piece.count - 1) * FRAME_PAYLOAD_BYTES);
                at += piece.wanted.len() as u64;
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
