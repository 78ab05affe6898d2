//! Frames: the unit in which a fragment is coded, checked, sealed and read.
//!
//! A fragment is a run of frames. All frames but the last are exactly 64 KiB; the last is as short
//! as whole device blocks allow. One frame, `n` bytes long:
//!
//! | offset   | bytes | content                                                              |
//! |----------|-------|----------------------------------------------------------------------|
//! | 0        | n−44  | payload, zero-padded (parity frames: code over the same bytes)       |
//! | n−44     | 28    | seal: nonce 12, tag 16; zero when unsealed                           |
//! | n−16     | 4     | checksum of bytes [0, n−16) and [n−12, n)                            |
//! | n−12     | 1     | checksum algorithm: 1 = CRC-32 (IEEE)                                |
//! | n−11     | 1     | fragment index                                                       |
//! | n−10     | 2     | frame number in the fragment                                         |
//! | n−8      | 8     | stripe id folded to 64 bits (upper half xor lower half)              |
//!
//! Integers are little-endian. The erasure code runs over bytes [0, n−16), seal included. The
//! identity in the trailer makes misdirected and lost writes visible to whoever reads the frame.

use crate::buffer::{BLOCK_BYTES, round_up_to_block};
use crate::ids::{FragmentId, StripeId};

/// Bytes of a full frame on disk.
pub const FRAME_BYTES: usize = 65_536;
/// Bytes that the seal takes: nonce 12 and tag 16.
pub const SEAL_BYTES: usize = 28;
/// Bytes of checksum and identity at the frame's end.
pub const TRAILER_BYTES: usize = 16;
/// Bytes of payload in a full frame.
pub const FRAME_PAYLOAD_BYTES: usize = FRAME_BYTES - SEAL_BYTES - TRAILER_BYTES;
/// Bytes over which the erasure code runs in a full frame.
pub const FRAME_CODED_BYTES: usize = FRAME_BYTES - TRAILER_BYTES;

/// Checksum algorithm 1: CRC-32 (IEEE) of the `crc32fast` crate.
pub const CHECKSUM_CRC32: u8 = 1;

/// How a frame fails its check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is no possible frame.
    #[error("length is not a frame's")]
    Length,
    /// The checksum algorithm is not known here.
    #[error("unknown checksum algorithm {0}")]
    Algorithm(u8),
    /// The bytes are not those that were written.
    #[error("checksum mismatch")]
    Checksum,
    /// The bytes are a valid frame, but another one: a misdirected or lost write.
    #[error("frame of another fragment")]
    Identity,
}

/// Returns the bytes on disk of a frame that carries `payload` bytes, 1 to [`FRAME_PAYLOAD_BYTES`].
pub const fn frame_bytes(payload: usize) -> usize {
    assert!(payload <= FRAME_PAYLOAD_BYTES);
    round_up_to_block(payload + SEAL_BYTES + TRAILER_BYTES)
}

/// Returns how many frames carry `payload` bytes (at least one).
pub const fn frame_count(payload: usize) -> usize {
    if payload == 0 { 1 } else { payload.div_ceil(FRAME_PAYLOAD_BYTES) }
}

/// Returns the bytes on disk of a fragment that carries `payload` bytes: all its frames.
pub const fn fragment_bytes(payload: usize) -> usize {
    let full = frame_count(payload) - 1;
    full * FRAME_BYTES + frame_bytes(payload - full * FRAME_PAYLOAD_BYTES)
}

/// Returns the stripe id folded to 64 bits, as the trailer carries it.
pub const fn fold(stripe: StripeId) -> u64 {
    (stripe.0 >> 64) as u64 ^ stripe.0 as u64
}

/// Writes the trailer of a frame whose body is complete.
pub fn seal_frame(frame: &mut [u8], fragment: FragmentId, number: u16) {
    assert!(frame.len() <= FRAME_BYTES && frame.len().is_multiple_of(BLOCK_BYTES) && !frame.is_empty());
    let (body, trailer) = frame.split_at_mut(frame.len() - TRAILER_BYTES);
    trailer[4] = CHECKSUM_CRC32;
    trailer[5] = fragment.index;
    trailer[6..8].copy_from_slice(&number.to_le_bytes());
    trailer[8..16].copy_from_slice(&fold(fragment.stripe).to_le_bytes());
    let sum = checksum(body, &trailer[4..]);
    trailer[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Checks that a frame is whole and the one that was asked for.
pub fn verify_frame(frame: &[u8], fragment: FragmentId, number: u16) -> Result<(), FrameError> {
    if frame.is_empty() || frame.len() > FRAME_BYTES || !frame.len().is_multiple_of(BLOCK_BYTES) {
        return Err(FrameError::Length);
    }
    let (body, trailer) = frame.split_at(frame.len() - TRAILER_BYTES);
    if trailer[4] != CHECKSUM_CRC32 {
        return Err(FrameError::Algorithm(trailer[4]));
    }
    if trailer[..4] != checksum(body, &trailer[4..]).to_le_bytes() {
        return Err(FrameError::Checksum);
    }
    let same = trailer[5] == fragment.index
        && trailer[6..8] == number.to_le_bytes()
        && trailer[8..16] == fold(fragment.stripe).to_le_bytes();
    if same { Ok(()) } else { Err(FrameError::Identity) }
}

/// Checks every frame of a run that starts with frame `first` of the fragment.
pub fn verify_frames(frames: &[u8], fragment: FragmentId, first: u16) -> Result<(), FrameError> {
    if frames.is_empty() {
        return Err(FrameError::Length);
    }
    for (offset, frame) in frames.chunks(FRAME_BYTES).enumerate() {
        let number = u16::try_from(offset).ok().and_then(|offset| first.checked_add(offset));
        verify_frame(frame, fragment, number.ok_or(FrameError::Length)?)?;
    }
    Ok(())
}

fn checksum(body: &[u8], trailer_rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(body);
    hasher.update(trailer_rest);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: FragmentId = FragmentId { stripe: StripeId(0x0123_4567_89ab_cdef_0011_2233_4455_6677), index: 3 };

    #[test]
    fn geometry_fills_whole_blocks() {
        assert_eq!(FRAME_PAYLOAD_BYTES, 65_492);
        assert_eq!((frame_bytes(1), frame_bytes(4052), frame_bytes(4053)), (4096, 4096, 8192));
        assert_eq!(frame_bytes(FRAME_PAYLOAD_BYTES), FRAME_BYTES);
        assert_eq!(fragment_bytes(64 * FRAME_PAYLOAD_BYTES), 4 << 20);
        assert_eq!(fragment_bytes(FRAME_PAYLOAD_BYTES + 1), FRAME_BYTES + 4096);
    }

    #[test]
    fn every_flipped_bit_shows() {
        let mut frame = vec![0x5a; 4096];
        seal_frame(&mut frame, FRAGMENT, 2);
        assert_eq!(verify_frame(&frame, FRAGMENT, 2), Ok(()));
        for byte in 0..frame.len() {
            frame[byte] ^= 1 << (byte % 8);
            assert!(verify_frame(&frame, FRAGMENT, 2).is_err(), "byte {byte}");
            frame[byte] ^= 1 << (byte % 8);
        }
    }

    #[test]
    fn frame_of_another_place_shows() {
        let mut frame = vec![0; 8192];
        seal_frame(&mut frame, FRAGMENT, 0);
        let other = FragmentId { index: 4, ..FRAGMENT };
        assert_eq!(verify_frame(&frame, other, 0), Err(FrameError::Identity));
        assert_eq!(verify_frame(&frame, FRAGMENT, 1), Err(FrameError::Identity));
        assert_eq!(verify_frame(&frame[..4096], FRAGMENT, 0), Err(FrameError::Algorithm(0)));
    }
}
