//! Stripes: the unit of erasure coding, and how a row refers to one.
//!
//! All of these are records of tagged fields (see [`crate::wire`]), every field required of its
//! readers; the ids and the code have bytes of their own. A fragment on disk is its header, in the
//! body of a record of the journal, and its frames (see [`crate::frame`]).
//!
//! | record           | tag | value                                                             |
//! |------------------|-----|-------------------------------------------------------------------|
//! | `FragmentHeader` | 1   | fragment id, 17 bytes (see [`crate::ids`])                        |
//! |                  | 2   | `StripeRef`                                                       |
//! |                  | 3   | `Owner`, where known                                              |
//! |                  | 4   | hybrid time when the stripe was closed                            |
//! | `StripeRef`      | 1   | stripe id, 16 bytes                                               |
//! |                  | 2   | placement group                                                   |
//! |                  | 3   | generation of the placement group                                 |
//! |                  | 4   | code                                                              |
//! |                  | 5   | payload bytes under the code                                      |
//! |                  | 6   | payload bytes of each data fragment but the last                  |
//! |                  | 7   | bit i: fragment i is owed; absent when none is                    |
//! |                  | 8   | bytes before compression, where compressed                        |
//! |                  | 9   | `Sealing`, where encrypted                                        |
//! |                  | 10  | offset of the object in its pack, where packed                    |
//! | `Sealing`        | 1   | algorithm                                                         |
//! |                  | 2   | number of the key                                                 |
//! |                  | 3   | nonce base, 16 bytes                                              |
//! | `Owner`          | 1   | bucket id                                                         |
//! |                  | 2   | key                                                               |
//! |                  | 3   | upload id, 16 bytes, where it is a part                           |
//! |                  | 4   | part number, where it is a part                                   |
//! |                  | 5   | position of the stripe in its object or part                      |
//! |                  | 6   | offset of its first byte in its object or part                    |
//!
//! A code is three bytes:
//!
//! | offset | bytes | content                                                                   |
//! |--------|-------|---------------------------------------------------------------------------|
//! | 0      | 1     | number of the generator matrix                                            |
//! | 1      | 1     | k: data fragments of a full stripe, at least 1                            |
//! | 2      | 1     | m: parity fragments; k + m is at most 32                                  |

use crate::frame::{FRAME_BYTES, FRAME_PAYLOAD_BYTES};
use crate::ids::{BucketId, FragmentId, PgId, StripeId, UploadId};
use crate::record;
use crate::wire::{Wire, WireError};
use std::fmt;

/// Most fragments of a stripe: k + m of any code.
pub const WIDTH_MAX: usize = 32;
/// Largest fragment in bytes of frames, in any pool.
pub const FRAGMENT_BYTES_MAX: usize = 4 << 20;
/// Largest payload of a fragment in bytes: what the frames of the largest fragment carry.
pub const FRAGMENT_PAYLOAD_BYTES_MAX: u64 = (FRAGMENT_BYTES_MAX / FRAME_BYTES * FRAME_PAYLOAD_BYTES) as u64;

/// A Reed-Solomon code with its generator matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code {
    /// Number of the generator matrix; 1 = Vandermonde × inverse of its top over GF(2⁸), 0x11D.
    pub matrix: u8,
    /// Data fragments of a full stripe.
    pub k: u8,
    /// Parity fragments.
    pub m: u8,
}

/// The generator matrix of the `reed-solomon-erasure` crate.
pub const MATRIX_VANDERMONDE: u8 = 1;

impl Code {
    /// Makes a (k, m) code over matrix 1.
    pub const fn new(k: u8, m: u8) -> Self {
        Code { matrix: MATRIX_VANDERMONDE, k, m }
    }

    /// Returns the fragments of a full stripe: k + m.
    pub const fn width(self) -> usize {
        self.k as usize + self.m as usize
    }

    /// Returns the code of the design's table for this many live failure domains.
    pub const fn for_domains(domains: usize) -> Self {
        match domains {
            0 | 1 => Code::new(1, 0),
            2 => Code::new(1, 1),
            3 => Code::new(1, 2),
            4 => Code::new(2, 2),
            5 | 6 => Code::new(3, 2),
            7..=11 => Code::new(4, 2),
            _ => Code::new(8, 3),
        }
    }
}

/// Most fragments of a stripe.
pub const CODE_WIDTH_MAX: usize = 32;

impl std::str::FromStr for Code {
    type Err = &'static str;

    /// Reads `K+M` as operators write it: a code over matrix 1.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (k, m) = text.split_once('+').ok_or("a code is K+M, such as 3+2")?;
        let (k, m): (u8, u8) =
            (k.parse().map_err(|_| "K is not a number")?, m.parse().map_err(|_| "M is not a number")?);
        if k == 0 || usize::from(k) + usize::from(m) > CODE_WIDTH_MAX {
            return Err("K is at least 1 and K+M at most 32");
        }
        Ok(Code::new(k, m))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}
impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}/{}", self.k, self.m, self.matrix)
    }
}
impl Wire for Code {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.matrix, self.k, self.m]);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        match *input {
            [matrix, k, m] if k > 0 && usize::from(k) + usize::from(m) <= WIDTH_MAX => Ok(Code { matrix, k, m }),
            _ => Err(WireError::OutOfRange("code")),
        }
    }
}

record! {
    /// Encryption of a stripe (C18): which algorithm, under which key, with which nonce base.
    pub struct Sealing {
        1 => algorithm: u8,
        2 => key: u64,
        3 => nonce: u128,
    }
}

record! {
    /// How a row refers to a stripe: enough to find, decode, verify and open it.
    ///
    /// Data fragment i carries payload bytes `[i·F, (i+1)·F)`, F = `fragment_payload_bytes`; the
    /// last one carries the rest. A stripe with fewer than k data fragments stores only those and
    /// its m parity fragments; missing columns count as zeros. Parity fragments carry F bytes, or
    /// the whole payload where that is shorter.
    pub struct StripeRef {
        1 => stripe: StripeId,
        2 => pg: PgId,
        3 => generation: u32,
        4 => code: Code,
        /// Bytes that the erasure code protects, after compression.
        5 => payload_bytes: u64,
        /// Payload bytes of each data fragment but the last.
        6 => fragment_payload_bytes: u32,
        /// Bit i: fragment i was not durable when the row was committed, and is owed.
        7 => missing: Option<u32>,
        /// Object bytes before compression, where compressed (zstd).
        8 => plain_bytes: Option<u64>,
        9 => sealing: Option<Sealing>,
        /// Where the payload is a pack: offset of the object in it.
        10 => pack_offset: Option<u64>,
    }
}

impl StripeRef {
    /// Checks that the sizes, the code and the owed fragments are possible together. Whoever takes a
    /// reference from outside (a request, a reply, a row, a fragment's header) asks this first; the
    /// other methods compute something for any reference, but only for a possible one what they say.
    ///
    /// Fails with `OutOfRange`, which names the field.
    pub fn check(&self) -> Result<(), WireError> {
        let refuse = |field: &'static str| Err(WireError::OutOfRange(field));
        let (k, each) = (u64::from(self.code.k), u64::from(self.fragment_payload_bytes));
        if k == 0 || self.code.width() > WIDTH_MAX {
            return refuse("code");
        }
        if each == 0 || each > FRAGMENT_PAYLOAD_BYTES_MAX {
            return refuse("fragment_payload_bytes");
        }
        // The product is far below 2^64: both factors were bounded above.
        if self.payload_bytes == 0 || self.payload_bytes > k * each {
            return refuse("payload_bytes");
        }
        let stored = self.indexes().fold(0u32, |stored, index| stored | 1 << index);
        let missing = self.missing.unwrap_or(0);
        if missing & !stored != 0 || missing.count_ones() > u32::from(self.code.m) {
            return refuse("missing");
        }
        if self.plain_bytes.is_some_and(|plain| plain == 0 || plain > k * FRAGMENT_PAYLOAD_BYTES_MAX) {
            return refuse("plain_bytes");
        }
        if self.pack_offset.is_some_and(|offset| offset >= self.object_bytes()) {
            return refuse("pack_offset");
        }
        Ok(())
    }

    /// Returns how many data fragments are stored: 1 to k, also where the sizes are impossible (see [`StripeRef::check`]).
    pub fn data_count(&self) -> u8 {
        let count = self.payload_bytes.div_ceil(u64::from(self.fragment_payload_bytes).max(1)).max(1);
        u8::try_from(count).unwrap_or(u8::MAX).min(self.code.k)
    }

    /// Returns the payload bytes of a fragment, data or parity.
    pub fn fragment_payload(&self, index: u8) -> usize {
        let each = u64::from(self.fragment_payload_bytes);
        if index >= self.code.k {
            return each.min(self.payload_bytes) as usize;
        }
        self.payload_bytes.saturating_sub(u64::from(index) * each).min(each) as usize
    }

    /// Returns the indexes of all stored fragments: the data fragments, then parity from k.
    pub fn indexes(&self) -> impl Iterator<Item = u8> + use<> {
        let (k, m) = (self.code.k, self.code.m);
        (0..self.data_count()).chain(k..k.saturating_add(m))
    }

    /// Returns the slot of the placement group that holds a fragment. The first slot rotates with
    /// the stripe's sequence number, so that slot 0 is no hot spot.
    pub fn slot(&self, index: u8) -> usize {
        let width = self.code.width().max(1);
        let rotation = ((self.stripe.0 >> 24) as u64 % width as u64) as usize;
        (usize::from(index) + rotation) % width
    }

    /// Returns whether a fragment is owed: absent since the row was committed.
    pub fn is_missing(&self, index: u8) -> bool {
        self.missing.and_then(|missing| missing.checked_shr(u32::from(index))).is_some_and(|bits| bits & 1 == 1)
    }

    /// Returns the id of a fragment.
    pub fn fragment(&self, index: u8) -> FragmentId {
        FragmentId { stripe: self.stripe, index }
    }

    /// Returns the object bytes that the stripe carries: before compression where compressed.
    pub fn object_bytes(&self) -> u64 {
        self.plain_bytes.unwrap_or(self.payload_bytes)
    }
}

record! {
    /// Whose bytes a fragment holds: the namespace can be rebuilt from these alone.
    pub struct Owner {
        1 => bucket: BucketId,
        2 => key: String,
        /// The multipart upload and part number, where it is one.
        3 => upload: Option<UploadId>,
        4 => part: Option<u16>,
        /// Position of the stripe in its object or part, from 0.
        5 => ordinal: u32,
        /// Offset of the stripe's first byte in its object or part.
        6 => offset: u64,
    }
}

record! {
    /// The head of a fragment on disk, behind the journal's own record head.
    pub struct FragmentHeader {
        1 => fragment: FragmentId,
        2 => stripe: StripeRef,
        3 => owner: Option<Owner>,
        /// Hybrid logical time at the gateway when the stripe was closed.
        4 => made: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::WriterId;

    fn stripe(payload: u64, each: u32) -> StripeRef {
        StripeRef {
            stripe: StripeId::new(WriterId(1), 7, 0),
            pg: PgId(0),
            generation: 1,
            code: Code::new(3, 2),
            payload_bytes: payload,
            fragment_payload_bytes: each,
            missing: None,
            plain_bytes: None,
            sealing: None,
            pack_offset: None,
        }
    }

    #[test]
    fn short_stripes_store_fewer_data_fragments() {
        let short = stripe(100, 1000);
        assert_eq!(short.indexes().collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!((short.fragment_payload(0), short.fragment_payload(3)), (100, 100));
        let full = stripe(2500, 1000);
        assert_eq!(full.indexes().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!((full.fragment_payload(2), full.fragment_payload(4)), (500, 1000));
    }

    #[test]
    fn impossible_stripes_are_refused_and_never_panic() {
        assert_eq!(stripe(2500, 1000).check(), Ok(()));
        let largest = FRAGMENT_PAYLOAD_BYTES_MAX as u32;
        assert_eq!(stripe(3 * FRAGMENT_PAYLOAD_BYTES_MAX, largest).check(), Ok(()));
        let sound = || stripe(2500, 1000);
        let impossible = [
            ("payload_bytes", stripe(u64::MAX, 1000)),
            ("payload_bytes", stripe(3001, 1000)),
            ("payload_bytes", stripe(0, 1000)),
            ("fragment_payload_bytes", stripe(2500, 0)),
            ("fragment_payload_bytes", stripe(2500, largest + 1)),
            ("fragment_payload_bytes", stripe(u64::MAX, u32::MAX)),
            ("code", StripeRef { code: Code::new(0, 0), ..sound() }),
            ("code", StripeRef { code: Code::new(255, 255), ..sound() }),
            ("missing", StripeRef { missing: Some(1 << 5), ..sound() }),
            ("missing", StripeRef { missing: Some(0b10), ..stripe(100, 1000) }),
            ("missing", StripeRef { missing: Some(0b111), ..sound() }),
            ("plain_bytes", StripeRef { plain_bytes: Some(u64::MAX), ..sound() }),
            ("pack_offset", StripeRef { pack_offset: Some(2500), ..sound() }),
        ];
        for (field, stripe) in impossible {
            assert_eq!(stripe.check(), Err(WireError::OutOfRange(field)), "{stripe:?}");
            for index in stripe.indexes().chain([0, 31, 32, 255]) {
                let _ = (stripe.fragment_payload(index), stripe.slot(index), stripe.is_missing(index));
            }
        }
    }

    #[test]
    fn slots_of_a_stripe_are_distinct() {
        let full = stripe(2500, 1000);
        let mut slots: Vec<_> = full.indexes().map(|index| full.slot(index)).collect();
        slots.sort_unstable();
        assert_eq!(slots, [0, 1, 2, 3, 4]);
    }
}
