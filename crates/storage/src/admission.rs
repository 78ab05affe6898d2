//! What a put must fulfil before a byte of it is written.

use crate::index::Place;
use plinth_protocol::buffer::BLOCK_BYTES;
use plinth_protocol::frame::{fragment_bytes, verify_frames};
use plinth_protocol::stripe::FragmentHeader;
use plinth_protocol::wire::Wire;
use plinth_protocol::{Failure, FailureKind};

pub use plinth_protocol::stripe::FRAGMENT_BYTES_MAX;
/// Largest fragment header in wire bytes: a key is at most 1,024 bytes, the rest is small.
pub const HEADER_BYTES_MAX: usize = 3 << 10;

/// Checks that header and payload fit each other and that every frame is whole and the right one.
/// Returns the header's wire bytes.
///
/// Fails with `Invalid` where the geometry is impossible, with `Corrupt` where bytes are damaged.
pub fn check_put(header: &FragmentHeader, payload: &[u8]) -> Result<Vec<u8>, Failure> {
    let invalid = |text: &str| Failure::new(FailureKind::Invalid, text);
    let (stripe, index) = (&header.stripe, header.fragment.index);
    if header.fragment.stripe != stripe.stripe {
        return Err(invalid("the fragment is not of its stripe"));
    }
    if let Err(error) = stripe.check() {
        return Err(invalid(&format!("the stripe is impossible: {error}")));
    }
    if !stripe.indexes().any(|stored| stored == index) {
        return Err(invalid("the stripe stores no fragment of this index"));
    }
    let expected = fragment_bytes(stripe.fragment_payload(index));
    if payload.len() != expected || expected > FRAGMENT_BYTES_MAX {
        return Err(Failure::new(
            FailureKind::Invalid,
            format!("the fragment has {} bytes of frames, its header says {expected}", payload.len()),
        ));
    }
    let body = header.to_wire();
    if body.len() > HEADER_BYTES_MAX {
        return Err(invalid("the fragment's header is too long"));
    }
    verify_frames(payload, header.fragment, 0)
        .map_err(|error| Failure::new(FailureKind::Corrupt, format!("fragment {}: {error}", header.fragment)))?;
    Ok(body)
}

/// Returns the run of payload bytes that frames `first` to `first + count` of a record take; cut at its end.
/// `None` where `first` lies behind the end or nothing is asked for.
pub fn frame_range(place: Place, first: u16, count: u16) -> Option<(usize, usize)> {
    use plinth_protocol::frame::FRAME_BYTES;
    let total = usize::from(place.payload_blocks) * BLOCK_BYTES;
    let start = usize::from(first) * FRAME_BYTES;
    let end = (start + usize::from(count) * FRAME_BYTES).min(total);
    (start < end).then_some((start, end))
}
