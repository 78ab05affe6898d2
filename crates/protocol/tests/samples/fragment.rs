//! Frames, fragments and stripes.

use super::Samples;
use plinth_protocol::buffer::BLOCK_BYTES;
use plinth_protocol::frame::{SEAL_BYTES, TRAILER_BYTES, frame_bytes, seal_frame, verify_frame};
use plinth_protocol::stripe::{Code, FragmentHeader, Owner, Sealing, StripeRef};
use plinth_protocol::{BucketId, FragmentId, PgId, StripeId, UploadId, WriterId};

pub fn fragment() -> FragmentId {
    FragmentId { stripe: StripeId::new(WriterId(0x0102_0304_0506), 0x0011_1213_1415_1617, 0x0021_2223), index: 9 }
}

pub fn sealing() -> Sealing {
    Sealing { algorithm: 1, key: 0x0123_4567, nonce: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff }
}

/// A stripe that is whole, plain and no pack.
pub fn bare_stripe() -> StripeRef {
    StripeRef {
        stripe: fragment().stripe,
        pg: PgId(300),
        generation: 2,
        code: Code::new(8, 3),
        payload_bytes: 1_000_000,
        fragment_payload_bytes: 125_000,
        missing: None,
        plain_bytes: None,
        sealing: None,
        pack_offset: None,
    }
}

pub fn stripe() -> StripeRef {
    StripeRef {
        missing: Some(0b101_0000_0000),
        plain_bytes: Some(2_000_000),
        sealing: Some(sealing()),
        pack_offset: Some(4096),
        ..bare_stripe()
    }
}

/// The owner of an object's stripe.
pub fn bare_owner() -> Owner {
    Owner { bucket: BucketId(5), key: "a/key".into(), upload: None, part: None, ordinal: 0, offset: 0 }
}

/// The owner of a part's stripe.
pub fn owner() -> Owner {
    Owner { upload: Some(UploadId(0x6162_6364)), part: Some(10_000), ordinal: 3, offset: 96 << 20, ..bare_owner() }
}

pub fn header() -> FragmentHeader {
    FragmentHeader { fragment: fragment(), stripe: stripe(), owner: Some(owner()), made: 0x0197_0000_1234_0007 }
}

/// A last frame of `payload` bytes, 200 that count up and a last one that is not zero, with a seal
/// where one is given.
fn last_frame(payload: usize, number: u16, seal: Option<[u8; SEAL_BYTES]>) -> Vec<u8> {
    let mut frame = vec![0; frame_bytes(payload)];
    frame[..200].iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
    frame[payload - 1] = 0xee;
    if let Some(seal) = seal {
        let end = frame.len() - TRAILER_BYTES;
        frame[end - SEAL_BYTES..end].copy_from_slice(&seal);
    }
    seal_frame(&mut frame, fragment(), number);
    frame
}

pub fn samples() -> Samples {
    let mut samples = Samples::default();
    let short = last_frame(201, 0x0102, None);
    assert_eq!(short.len(), BLOCK_BYTES);
    samples.checked("last frame of one block", short, |bytes| verify_frame(bytes, fragment(), 0x0102).is_ok());
    let seal = std::array::from_fn(|at| 0xa0 + at as u8);
    let two = last_frame(2 * BLOCK_BYTES - SEAL_BYTES - TRAILER_BYTES, 0, Some(seal));
    samples
        .checked("last frame of two full blocks, encrypted", two, |bytes| verify_frame(bytes, fragment(), 0).is_ok());
    samples.plain(fragment().stripe);
    samples.plain(fragment());
    samples.plain(Code::new(8, 3));
    samples.record([sealing()]);
    samples.record([stripe(), bare_stripe()]);
    samples.record([owner(), bare_owner()]);
    samples.record([header(), FragmentHeader { stripe: bare_stripe(), owner: None, ..header() }]);
    samples
}
