//! Ids are types: two of them can't be mixed up, and none is ever reused.
//!
//! Ids of 64 bits and less travel as varints, those of 128 bits as 16 little-endian bytes. Two have
//! parts. A fragment id is 17 bytes, a stripe id the first 16 of them:
//!
//! | offset | bytes | content                                     |
//! |--------|-------|---------------------------------------------|
//! | 0      | 3     | stripe: random                              |
//! | 3      | 7     | stripe: sequence number at its writer       |
//! | 10     | 6     | stripe: writer                              |
//! | 16     | 1     | fragment index                              |

use crate::wire::{Wire, WireError};
use std::fmt;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($inner:ty) $format:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, $format, self.0) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(self, f) }
        }
        impl Wire for $name {
            const MAY_BE_EMPTY: bool = <$inner>::MAY_BE_EMPTY;
            fn encode(&self, out: &mut Vec<u8>) { self.0.encode(out); }
            fn decode(input: &[u8]) -> Result<Self, WireError> { <$inner>::decode(input).map($name) }
        }
    };
}

id!(/// A cluster, drawn at random by `plinth init`.
    ClusterId(u128) "{:032x}");
id!(/// A node, numbered by group 0 from a log index.
    NodeId(u64) "n{}");
id!(/// A disk, drawn at random when it is formatted.
    DiskId(u128) "{:032x}");
id!(/// How often a node or a disk has been made anew under its id; starts at 1.
    Incarnation(u64) "i{}");
id!(/// Version of a map; a message with a stale one is refused.
    Epoch(u64) "e{}");
id!(/// A placement group.
    PgId(u32) "pg{}");
id!(/// A Raft group: 0 is the system group, others own object shards.
    GroupId(u64) "g{}");
id!(/// A bucket, drawn at random; never reused, also not by a bucket of the same name.
    BucketId(u64) "{:016x}");
id!(/// One gateway incarnation: 48 bits, counted up by group 0.
    WriterId(u64) "w{}");
id!(/// A multipart upload, drawn at random.
    UploadId(u128) "{:032x}");
id!(/// A request: a wall clock's milliseconds 48 bits, random 80 bits, from the top. A repeated mutation carries the same one.
    RequestId(u128) "{:032x}");
id!(/// A stripe: writer 48 bits, sequence 56 bits, random 24 bits, from the top.
    StripeId(u128) "{:032x}");
id!(/// Hybrid logical time: milliseconds since 1970 in the upper 48 bits, a counter below.
    HybridTime(u64) "{}");

/// The system group: registry, placement, buckets, identities.
pub const GROUP_SYSTEM: GroupId = GroupId(0);

impl StripeId {
    /// Puts an id together. `sequence` must fit in 56 bits, `random` in 24.
    pub fn new(writer: WriterId, sequence: u64, random: u32) -> Self {
        assert!(writer.0 < 1 << 48 && sequence < 1 << 56 && random < 1 << 24);
        StripeId(u128::from(writer.0) << 80 | u128::from(sequence) << 24 | u128::from(random))
    }

    /// Returns the gateway incarnation that made the stripe.
    pub fn writer(self) -> WriterId {
        WriterId((self.0 >> 80) as u64)
    }
}

impl HybridTime {
    /// Returns the time at `milliseconds` since 1970, counter 0.
    pub fn from_millis(milliseconds: u64) -> Self {
        HybridTime(milliseconds << 16)
    }

    /// Returns whole milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// Returns the time `milliseconds` earlier, 0 at least.
    pub fn before(self, milliseconds: u64) -> Self {
        HybridTime(self.0.saturating_sub(milliseconds.saturating_mul(1 << 16)))
    }

    /// Returns the time `milliseconds` later, the last one at most.
    pub fn after(self, milliseconds: u64) -> Self {
        HybridTime(self.0.saturating_add(milliseconds.saturating_mul(1 << 16)))
    }

    /// Returns the next time: the one for an event that follows one at `self`.
    pub fn next(self) -> Self {
        HybridTime(self.0.saturating_add(1))
    }
}

/// One fragment of a stripe: data fragments count from 0, parity fragments from k of the code,
/// also where a short stripe stores fewer data fragments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentId {
    /// The stripe.
    pub stripe: StripeId,
    /// The fragment's number: below k data, from k to k+m−1 parity.
    pub index: u8,
}

impl fmt::Display for FragmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stripe, self.index)
    }
}
impl fmt::Debug for FragmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl Wire for FragmentId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.stripe.encode(out);
        out.push(self.index);
    }
    fn decode(input: &[u8]) -> Result<Self, WireError> {
        let (&index, stripe) = input.split_last().ok_or(WireError::Truncated)?;
        Ok(FragmentId { stripe: StripeId::decode(stripe)?, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_id_carries_its_writer() {
        let id = StripeId::new(WriterId((1 << 48) - 1), (1 << 56) - 1, (1 << 24) - 1);
        assert_eq!(id.0, u128::MAX);
        assert_eq!(StripeId::new(WriterId(7), 1, 2).writer(), WriterId(7));
    }

    #[test]
    fn hybrid_time_stays_in_its_range() {
        let time = HybridTime(1_000 << 16 | 7);
        assert!(time.next() > time && time.next().millis() == 1_000);
        assert_eq!(time.after(5), HybridTime(1_005 << 16 | 7));
        assert_eq!(time.before(5), HybridTime(995 << 16 | 7));
        assert_eq!(time.before(u64::MAX), HybridTime(0));
        assert_eq!(HybridTime(u64::MAX).after(1).next(), HybridTime(u64::MAX));
    }
}
