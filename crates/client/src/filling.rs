//! Filling a stripe: bytes are copied once, straight to their place in a frame; a frame is sealed
//! when it is full, and a row of parity made when its last data frame is, while all is warm.

use crate::layout::{StripeShape, frame_range};
use crate::memory::{Buffer, Pool};
use bytes::Bytes;
use plinth_erasure::{Codec, ErasureError, Shape, WIDTH_MAX};
use plinth_protocol::frame::{
    FRAME_BYTES, FRAME_PAYLOAD_BYTES, SEAL_BYTES, TRAILER_BYTES, fragment_bytes, frame_count, seal_frame,
};
use plinth_protocol::stripe::Code;
use plinth_protocol::{Failure, FailureKind, FragmentId, StripeId};
use std::sync::Arc;

/// Returns the codec of a code; `Invalid` where its matrix or shape is not known here.
pub(crate) fn codec_of(code: Code) -> Result<Arc<Codec>, Failure> {
    Codec::get(Shape { matrix: code.matrix, k: code.k, m: code.m })
        .map_err(|error: ErasureError| Failure::new(FailureKind::Invalid, error.to_string()))
}

/// A stripe that is being filled.
pub(crate) struct Filling {
    stripe: StripeId,
    code: Code,
    codec: Arc<Codec>,
    shape: StripeShape,
    pool: Arc<Pool>,
    data: Vec<Buffer>,
    parity: Vec<Buffer>,
    payload: usize,
    /// Rows whose parity is made.
    rows_coded: usize,
}

/// A stripe whose fragments are complete: frames, sealed.
pub(crate) struct SealedStripe {
    pub(crate) stripe: StripeId,
    pub(crate) code: Code,
    pub(crate) payload_bytes: u64,
    pub(crate) fragment_payload_bytes: u32,
    /// Index and frames of each fragment: data, then parity from k.
    pub(crate) fragments: Vec<(u8, Bytes)>,
}

impl Filling {
    /// Starts an empty stripe.
    pub(crate) fn new(stripe: StripeId, code: Code, shape: StripeShape, pool: &Arc<Pool>) -> Result<Self, Failure> {
        let codec = codec_of(code)?;
        let (data, parity) = (Vec::with_capacity(shape.data_count()), Vec::with_capacity(code.m.into()));
        Ok(Filling { stripe, code, codec, shape, pool: pool.clone(), data, parity, payload: 0, rows_coded: 0 })
    }

    /// Returns the payload bytes so far.
    pub(crate) fn payload(&self) -> usize {
        self.payload
    }

    /// Returns whether the stripe takes no more bytes.
    pub(crate) fn is_full(&self) -> bool {
        self.payload == self.shape.payload_max
    }

    /// Takes as many bytes as fit; returns how many.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_full() {
            taken += self.take_into_frame(&bytes[taken..]);
        }
        taken
    }

    /// Copies bytes into the frame that is open, up to its end.
    fn take_into_frame(&mut self, bytes: &[u8]) -> usize {
        let (index, in_fragment) =
            (self.payload / self.shape.fragment_payload, self.payload % self.shape.fragment_payload);
        let (row, in_frame) = (in_fragment / FRAME_PAYLOAD_BYTES, in_fragment % FRAME_PAYLOAD_BYTES);
        if index == self.data.len() {
            self.data.push(self.pool.take(fragment_bytes(self.shape.fragment_payload_of(index))));
        }
        let fragment_left = self.shape.fragment_payload - in_fragment;
        let stripe_left = self.shape.payload_max - self.payload;
        let count = bytes.len().min(FRAME_PAYLOAD_BYTES - in_frame).min(fragment_left).min(stripe_left);
        let at = row * FRAME_BYTES + in_frame;
        self.data[index][at..at + count].copy_from_slice(&bytes[..count]);
        self.payload += count;
        if in_frame + count == FRAME_PAYLOAD_BYTES {
            self.seal_data_frame(index, row, FRAME_PAYLOAD_BYTES);
            if index + 1 == self.shape.data_count() {
                self.code_row(row);
            }
        }
        count
    }

    /// Zeroes what the payload leaves of a frame and writes its trailer.
    fn seal_data_frame(&mut self, index: usize, row: usize, in_frame: usize) {
        let range = frame_range(row * FRAME_PAYLOAD_BYTES + in_frame, row);
        let frame = &mut self.data[index][range];
        let body = frame.len() - TRAILER_BYTES;
        debug_assert!(in_frame + SEAL_BYTES <= body);
        frame[in_frame..body].fill(0);
        seal_frame(frame, FragmentId { stripe: self.stripe, index: index as u8 }, row as u16);
    }

    /// Returns the payload bytes that data fragment `index` holds so far.
    fn payload_of(&self, index: usize) -> usize {
        self.payload.saturating_sub(index * self.shape.fragment_payload).min(self.shape.fragment_payload)
    }

    /// Makes and seals the parity frames of a row whose data frames are all sealed.
    fn code_row(&mut self, row: usize) {
        assert_eq!(row, self.rows_coded, "rows are coded in order");
        self.rows_coded += 1;
        if self.code.m == 0 {
            return;
        }
        while self.parity.len() < usize::from(self.code.m) {
            self.parity.push(self.pool.take(fragment_bytes(self.shape.fragment_payload_of(0))));
        }
        let mut data: [&[u8]; WIDTH_MAX] = [&[]; WIDTH_MAX];
        for (index, fragment) in self.data.iter().enumerate() {
            data[index] = coded_bytes(fragment, self.payload_of(index), row);
        }
        // Parity frames are as long as those of the first data fragment, the longest.
        let range = frame_range(self.payload_of(0), row);
        let mut cells: [&mut [u8]; WIDTH_MAX] = std::array::from_fn(|_| Default::default());
        for (cell, fragment) in cells.iter_mut().zip(&mut self.parity) {
            *cell = &mut fragment[range.start..range.end - TRAILER_BYTES];
        }
        self.codec.encode(&data[..self.data.len()], &mut cells[..usize::from(self.code.m)]);
        for (offset, fragment) in self.parity.iter_mut().enumerate() {
            let index = self.code.k + offset as u8;
            seal_frame(&mut fragment[range.clone()], FragmentId { stripe: self.stripe, index }, row as u16);
        }
    }

    /// Closes the stripe, full or not; it holds at least one byte.
    pub(crate) fn close(mut self) -> SealedStripe {
        assert!(self.payload > 0, "a stripe holds at least one byte");
        let last = self.data.len() - 1;
        let in_last = self.payload_of(last);
        let (row, in_frame) = (in_last / FRAME_PAYLOAD_BYTES, in_last % FRAME_PAYLOAD_BYTES);
        if in_frame > 0 {
            self.seal_data_frame(last, row, in_frame);
        }
        for row in self.rows_coded..frame_count(self.payload_of(0)) {
            self.code_row(row);
        }
        let parity_bytes = fragment_bytes(self.payload_of(0));
        let sizes: Vec<usize> = (0..self.data.len()).map(|index| fragment_bytes(self.payload_of(index))).collect();
        let data = self.data.into_iter().zip(sizes).enumerate().map(|(index, fragment)| (index as u8, fragment));
        let k = self.code.k;
        let parity =
            self.parity.into_iter().enumerate().map(|(index, buffer)| (k + index as u8, (buffer, parity_bytes)));
        let fragments = data.chain(parity).map(|(index, (mut buffer, bytes))| {
            buffer.truncate(bytes);
            (index, buffer.freeze())
        });
        SealedStripe {
            stripe: self.stripe,
            code: self.code,
            payload_bytes: self.payload as u64,
            fragment_payload_bytes: self.shape.fragment_payload as u32,
            fragments: fragments.collect(),
        }
    }
}

/// Returns the bytes of a fragment's frame that the code runs over; none where the fragment, which
/// carries `payload` bytes, ends before the row.
pub(crate) fn coded_bytes(fragment: &[u8], payload: usize, row: usize) -> &[u8] {
    let range = frame_range(payload, row);
    if payload == 0 || range.is_empty() { &[] } else { &fragment[range.start..range.end - TRAILER_BYTES] }
}

impl SealedStripe {
    /// Gives the stripe another id: copies every fragment and seals its frames anew. The old
    /// fragments may still be on their way, so that they can't be changed in place.
    pub(crate) fn renamed(self, stripe: StripeId, pool: &Arc<Pool>) -> SealedStripe {
        let fragments = self.fragments.into_iter().map(|(index, bytes)| {
            let mut copy = pool.take(bytes.len());
            copy.copy_from_slice(&bytes);
            for (row, frame) in copy.chunks_mut(FRAME_BYTES).enumerate() {
                seal_frame(frame, FragmentId { stripe, index }, row as u16);
            }
            (index, copy.freeze())
        });
        let fragments = fragments.collect();
        SealedStripe { stripe, fragments, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::frame::verify_frames;
    use proptest::prelude::*;

    fn fill(code: Code, left: Option<u64>, bytes: &[u8], step: usize, pool: &Arc<Pool>) -> SealedStripe {
        let shape = StripeShape::choose(code, 4 * FRAME_BYTES as u32, left);
        let mut filling = Filling::new(StripeId(7), code, shape, pool).unwrap();
        for part in bytes.chunks(step) {
            assert_eq!(filling.take(part), part.len());
        }
        filling.close()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_verify_and_parity_fits(
            k in 1u8..5, m in 0u8..3, size in 1usize..700_000, step in 1usize..200_000, known: bool, seed: u8,
        ) {
            let code = Code::new(k, m);
            let pool = Pool::new(32 << 20);
            // Dirty the pool: whatever a recycled buffer holds must not show.
            drop((0..6).map(|_| { let mut b = pool.take(300_000); b.fill(0xdd); b }).collect::<Vec<_>>());
            let size = size.min(usize::from(k) * 4 * FRAME_PAYLOAD_BYTES);
            let bytes: Vec<u8> = (0..size).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let sealed = fill(code, known.then_some(size as u64), &bytes, step, &pool);
            let each = sealed.fragment_payload_bytes as usize;
            let mut payload = Vec::new();
            for (index, fragment) in &sealed.fragments {
                let id = FragmentId { stripe: StripeId(7), index: *index };
                prop_assert_eq!(verify_frames(fragment, id, 0), Ok(()));
                if *index < k {
                    let mut left = size.saturating_sub(usize::from(*index) * each).min(each);
                    for frame in fragment.chunks(FRAME_BYTES) {
                        let take = left.min(FRAME_PAYLOAD_BYTES);
                        payload.extend_from_slice(&frame[..take]);
                        prop_assert!(frame[take..frame.len() - TRAILER_BYTES].iter().all(|&byte| byte == 0));
                        left -= take;
                    }
                }
            }
            prop_assert_eq!(&payload, &bytes);
            // Parity by hand, row by row.
            let codec = codec_of(code).unwrap();
            let data: Vec<_> = sealed.fragments.iter().filter(|(index, _)| *index < k).collect();
            for row in 0..frame_count(size.min(each)) {
                let cells: Vec<&[u8]> = data.iter().map(|(index, fragment)| {
                    coded_bytes(fragment, size.saturating_sub(usize::from(*index) * each).min(each), row)
                }).collect();
                let mut parity = vec![vec![0; cells[0].len()]; m.into()];
                codec.encode(&cells, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
                for (offset, cell) in parity.iter().enumerate() {
                    let (_, fragment) = &sealed.fragments[data.len() + offset];
                    prop_assert_eq!(coded_bytes(fragment, size.min(each), row), &cell[..]);
                }
            }
        }
    }

    #[test]
    fn renamed_stripes_carry_the_same_bytes_under_the_new_id() {
        let pool = Pool::new(1 << 20);
        let sealed = fill(Code::new(2, 1), Some(150_000), &[9; 150_000], 150_000, &pool);
        let before: Vec<Bytes> = sealed.fragments.iter().map(|(_, bytes)| bytes.clone()).collect();
        let renamed = sealed.renamed(StripeId(8), &pool);
        for ((index, after), before) in renamed.fragments.iter().zip(&before) {
            assert_eq!(verify_frames(after, FragmentId { stripe: StripeId(8), index: *index }, 0), Ok(()));
            assert_eq!(after[..FRAME_PAYLOAD_BYTES.min(4000)], before[..FRAME_PAYLOAD_BYTES.min(4000)]);
        }
    }
}
