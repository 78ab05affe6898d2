//! Rows as bytes: one byte of format version, then a record of tag-length fields.
//!
//! | byte     | content                                                            |
//! |----------|--------------------------------------------------------------------|
//! | 0        | [`ROW_VERSION`]; another one is refused                            |
//! | 1 …      | the record (`plinth_protocol::wire`): unknown required fields refuse |
//!
//! | family       | record                                                         |
//! |--------------|----------------------------------------------------------------|
//! | objects      | `object::ObjectRow`                                            |
//! | bodies       | `object::ObjectBody`                                           |
//! | uploads      | `object::UploadRow`                                            |
//! | parts        | `object::PartRow`                                              |
//! | deletes      | [`DeferredDelete`]                                             |
//! | fill-ins     | [`OwedFragments`]                                              |
//! | tokens       | [`Remembered`]                                                 |
//! | token-expiry | [`Expiring`] of a request with an issue time, else zero bytes   |
//! | state        | 1 [`AppliedRow`], 2 the Raft membership as it was given (no version byte), 3 [`ShardRow`], 16 [`OpenBucketRow`], 17 [`ClosedBucketRow`], 18 [`DiscardedUpload`], 19 [`DiscardedBucket`] |
//! | registry     | 1 [`MapHeader`], 2 [`NodeRow`], 3 `map::DiskRecord`, 4 `map::PlacementGroup`, 5 `map::ShardRecord`, 6 `meta::VoterRecord`, 7 [`WriterRow`], 8 `object::BucketRow`, 9 [`BucketName`], 10 `meta::AccessKeyRow`, 11 `meta::JoinTokenRow`, 12 `meta::CertificateRow`, 20 [`BucketName`], 21 [`BucketsByAccount`] |
//!
//! A row that is rewritten in place goes through [`Kept`], which carries the ignorable fields that
//! this version does not know from the old bytes to the new ones. Rows that replace another row of
//! their key (a new object, a new part) start afresh.

use super::StateError;
use super::machine::LogPosition;
use super::store::Family;
use bytes::Bytes;
use plinth_protocol::map::NodeRecord;
use plinth_protocol::meta::{Outcome, RevokedCertificate};
use plinth_protocol::record;
use plinth_protocol::stripe::{Code, Owner, StripeRef};
use plinth_protocol::wire::{Fields, Record, Wire, WireError, encode_varint};
use plinth_protocol::{BucketId, ClusterId, Epoch, HybridTime, NodeId, WriterId};

/// The format version that this code writes and reads.
pub const ROW_VERSION: u8 = 1;

record! {
    /// Stripes that nothing refers to any more.
    pub struct DeferredDelete {
        1 => at: HybridTime,
        /// The object that they belonged to: decides which shard the row goes to at a split.
        2 => bucket: BucketId,
        3 => key: String,
        4 => stripes: Vec<StripeRef>,
    }
}

record! {
    /// A stripe of which some fragments are not durable yet.
    pub struct OwedFragments {
        1 => at: HybridTime,
        2 => owner: Owner,
        3 => stripe: StripeRef,
    }
}

record! {
    /// The first outcome of a request, token or upload.
    pub struct Remembered {
        1 => expires: HybridTime,
        2 => outcome: Outcome,
        /// What a repetition must equal to be one: hash of a token's parameters or an upload's part list.
        3 => parameters: Option<u128>,
    }
}

record! {
    /// What is known of a remembered request beside its expiry; no bytes at all where it is nothing.
    pub struct Expiring {
        /// When the request was issued, in the group's time.
        1 -> issued: Option<HybridTime>,
    }
}

record! {
    /// How far the log is applied.
    pub struct AppliedRow {
        1 => position: LogPosition,
        /// The last command's time; later commands are stamped later.
        2 => time: HybridTime,
    }
}

record! {
    /// Fence and counters of a group.
    pub struct ShardRow {
        1 => fence: WriterId,
        2 => objects: u64,
        3 => object_bytes: u64,
        4 => uploads: u64,
        5 => deferred_deletes: u64,
        6 => fill_ins: u64,
        /// Remembered outcomes of requests, client tokens, finished uploads.
        7 => requests: u64,
        8 => tokens: u64,
        9 => finished_uploads: u64,
        /// No remembered outcome of that kind expires before this.
        10 => requests_due: Option<HybridTime>,
        11 => tokens_due: Option<HybridTime>,
        12 => uploads_due: Option<HybridTime>,
        /// The rules that mutations are decided by; none = those of the first version.
        13 -> rules: Option<u32>,
        /// Rows of [`DiscardedUpload`] and [`DiscardedBucket`].
        14 -> discards: Option<u64>,
        /// The newest issue time of a request whose outcome has been forgotten, by age or by number: what was issued
        /// then or before, and is not remembered, is not decided.
        20 -> forgotten: Option<HybridTime>,
        /// Milliseconds by which expiry stays behind the group's time, since jumps that nobody has confirmed.
        21 -> expiry_held_ms: Option<u64>,
    }
}

record! {
    /// A bucket that the shard serves, and its live objects here.
    pub struct OpenBucketRow {
        1 => opened: HybridTime,
        2 => objects: u64,
        3 => bytes: u64,
        /// The change that opened it last; none = 0.
        4 -> attempt: Option<u64>,
    }
}

record! {
    /// A bucket that a numbered change has closed here: what came before it stays refused. The row
    /// outlives the bucket, whose id is never used again.
    pub struct ClosedBucketRow {
        1 => attempt: u64,
    }
}

record! {
    /// An upload whose part rows wait to be taken apart: all of them or, where it has become the key's
    /// current object, those that the object does not list.
    pub struct DiscardedUpload {
        1 => at: HybridTime,
        /// Parts below this number have been seen.
        2 -> from: Option<u16>,
    }
}

record! {
    /// A bucket whose open uploads wait to be taken apart: those from before the bucket was opened last, all
    /// of them where it is closed.
    pub struct DiscardedBucket {
        /// The uploads were begun at this time or before.
        1 => at: HybridTime,
        /// Uploads up to this row's key have been seen.
        2 -> after: Option<Bytes>,
    }
}

record! {
    /// The cluster map but for its lists, and the system group's counters.
    pub struct MapHeader {
        1 => cluster: ClusterId,
        2 => epoch: Epoch,
        3 => code: Code,
        4 => fragment_bytes_max: u32,
        5 => name: String,
        6 => voters: Vec<NodeId>,
        7 => feature_level: u32,
        /// The id of the next new node.
        8 => next_node: NodeId,
        /// The id of the next writer.
        9 => next_writer: WriterId,
        /// The deny list.
        16 -> denied: Vec<NodeId>,
        17 -> revoked: Vec<RevokedCertificate>,
    }
}

record! {
    /// A node, and what proves that it is the node.
    pub struct NodeRow {
        /// The record without its public key, which stands here.
        1 => node: NodeRecord,
        /// SHA-256 of the public key in the node's certificate.
        2 => public_key: Option<[u8; 32]>,
    }
}

record! {
    /// A writer that has been handed out.
    pub struct WriterRow {
        1 => node: NodeId,
        2 => at: HybridTime,
    }
}

record! {
    /// The name of a bucket, under its id.
    pub struct BucketName {
        1 => name: String,
    }
}

record! {
    /// How far the names of buckets by account are complete: a database of an older version has none.
    pub struct BucketsByAccount {
        /// The last name that has been looked at, while it is not.
        1 => through: Option<String>,
        2 => complete: bool,
    }
}

/// Returns a record's row.
pub fn encode<T: Wire>(record: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.push(ROW_VERSION);
    record.encode(&mut out);
    out
}

/// Returns the fields of a row, behind the version byte.
pub fn fields(row: &[u8]) -> Result<&[u8], WireError> {
    match row.split_first() {
        Some((&ROW_VERSION, fields)) => Ok(fields),
        Some((&other, _)) => Err(WireError::UnknownVariant(u64::from(other))),
        None => Err(WireError::Truncated),
    }
}

/// Reads a record from its row.
pub fn decode<T: Wire>(family: Family, row: &[u8]) -> Result<T, StateError> {
    fields(row).and_then(T::decode).map_err(|source| StateError::Row { family: family.name(), source })
}

/// Returns an adapter for `map_err` that names the family of an unreadable key or row.
pub fn unreadable(family: Family) -> impl FnOnce(WireError) -> StateError {
    move |source| StateError::Row { family: family.name(), source }
}

/// A record together with the ignorable fields of its row that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<T> {
    /// What this version knows.
    pub record: T,
    unknown: Vec<(u64, Vec<u8>)>,
}

impl<T: Record> Kept<T> {
    /// Wraps a new record.
    pub fn new(record: T) -> Self {
        Kept { record, unknown: Vec::new() }
    }

    /// Reads a row.
    pub fn decode(family: Family, row: &[u8]) -> Result<Self, StateError> {
        fields(row).and_then(Self::decode_fields).map_err(unreadable(family))
    }

    /// Reads a record's fields, without version byte.
    pub fn decode_fields(input: &[u8]) -> Result<Self, WireError> {
        let record = T::decode(input)?;
        let mut unknown = Vec::new();
        let mut fields = Fields::new(input);
        while let Some(field) = fields.next()? {
            if !T::TAGS.contains(&field.tag) {
                unknown.push((field.tag, field.value.to_vec()));
            }
        }
        Ok(Kept { record, unknown })
    }

    /// Returns the row, unknown fields in their places.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ROW_VERSION];
        self.encode_fields(&mut out);
        out
    }

    /// Appends the record's fields, without version byte.
    pub fn encode_fields(&self, out: &mut Vec<u8>) {
        if self.unknown.is_empty() {
            return self.record.encode(out);
        }
        let known = self.record.to_wire();
        let mut fields = Fields::new(&known);
        let mut unknown = self.unknown.iter().peekable();
        while let Some(field) = fields.next().expect("a record reads back its own bytes") {
            while let Some((tag, value)) = unknown.next_if(|(tag, _)| *tag < field.tag) {
                encode_raw(*tag, true, value, out);
            }
            encode_raw(field.tag, field.ignorable, field.value, out);
        }
        for (tag, value) in unknown {
            encode_raw(*tag, true, value, out);
        }
    }
}

fn encode_raw(tag: u64, ignorable: bool, value: &[u8], out: &mut Vec<u8>) {
    encode_varint(tag << 1 | u64::from(ignorable), out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use plinth_protocol::wire::encode_field;

    record! {
        /// A later version of `BucketName`.
        pub struct Newer {
            1 => name: String,
            2 -> hint: Option<String>,
            5 -> more: Option<u32>,
        }
    }
    record! {
        /// What this version knows of `Newer`.
        pub struct Older {
            1 => name: String,
            3 => rank: Option<u32>,
        }
    }

    #[test]
    fn rewriting_keeps_unknown_ignorable_fields_in_their_places() {
        let newer = Newer { name: "a".into(), hint: Some("h".into()), more: Some(9) };
        let mut row = Kept::<Older>::decode(Family::Registry, &encode(&newer)).unwrap();
        row.record.name = "b".into();
        let rewritten: Newer = decode(Family::Registry, &row.encode()).unwrap();
        assert_eq!(rewritten, Newer { name: "b".into(), ..newer });
        row.record.rank = Some(4);
        let tags = |bytes: &[u8]| {
            let mut fields = Fields::new(&bytes[1..]);
            std::iter::from_fn(|| fields.next().unwrap().map(|field| field.tag)).collect::<Vec<_>>()
        };
        assert_eq!(tags(&row.encode()), [1, 2, 3, 5]);
    }

    #[test]
    fn unknown_version_and_required_field_refuse() {
        let mut row = encode(&BucketName { name: "a".into() });
        encode_field(9, false, &1u64, &mut row);
        assert!(matches!(
            decode::<BucketName>(Family::Registry, &row),
            Err(StateError::Row { family: "registry", source: WireError::UnknownField(9) })
        ));
        row[0] = ROW_VERSION + 1;
        assert!(decode::<BucketName>(Family::Registry, &row).is_err());
        assert!(decode::<BucketName>(Family::Registry, &[]).is_err());
    }
}
