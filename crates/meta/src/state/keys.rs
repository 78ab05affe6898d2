//! Keys of rows: byte strings whose order is the order of what they name.
//!
//! Rows that belong to an object key, in every family:
//!
//! | bytes    | content                                                                        |
//! |----------|--------------------------------------------------------------------------------|
//! | 8        | bucket id, big-endian                                                          |
//! | variable | object key in UTF-8; a byte 00 is written as 00 FF                             |
//! | 2        | 00 01: end of the object key                                                   |
//! | variable | suffix: none (objects, bodies); upload id (16, big-endian) in uploads; upload id and part number (2, big-endian) in parts |
//!
//! Since the end mark sorts before every continuation of a key, keys keep the order of their UTF-8
//! bytes, and all rows of one object key stand together: a shard splits between keys, never inside one.
//!
//! Other families:
//!
//! | family       | key                                                                               |
//! |--------------|-----------------------------------------------------------------------------------|
//! | deletes      | hybrid time 8, log index 8, number within the entry 4; all big-endian             |
//! | fill-ins     | stripe id 16, big-endian, then the key of the row that refers to the stripe       |
//! | tokens       | kind 1 (1 request, 2 client token, 3 finished upload), id 16                      |
//! | token-expiry | kind 1, expiry as hybrid time 8, id 16                                            |
//! | state        | tag 1: 1 applied, 2 membership, 3 shard; 16 and a bucket id 8: open bucket; 17 likewise: closed bucket; 18 and the key of an upload: discarded upload; 19 and a bucket id 8: discarded bucket |
//! | registry     | tag 1: 1 header; 2 node 8; 3 disk 16; 4 placement group 4; 5 shard 8; 6 voter 8; 7 writer 8; 8 bucket name; 9 bucket id 8; 10 access key id; 11 join token's hash 32; 12 certificate's serial number 16; 20 account as an object key is written, 00 01, bucket name; 21 progress of 20 |

use super::store::{KeyRange, successor};
use plinth_protocol::wire::WireError;
use plinth_protocol::{BucketId, DiskId, GroupId, HybridTime, NodeId, PgId, StripeId, UploadId, WriterId};
use std::borrow::Cow;

/// Ends an object key; sorts before every continuation.
const END: [u8; 2] = [0, 1];
/// First two bytes behind [`END`]: bounds the rows of one object key.
const BEHIND_END: [u8; 2] = [0, 2];
/// What a byte 00 inside an object key is written as.
const ESCAPED_ZERO: [u8; 2] = [0, 0xff];

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    if !bytes.contains(&0) {
        return out.extend_from_slice(bytes);
    }
    for &byte in bytes {
        match byte {
            0 => out.extend_from_slice(&ESCAPED_ZERO),
            _ => out.push(byte),
        }
    }
}

fn start(bucket: BucketId, key: &str, room: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len() + 2 + room);
    out.extend_from_slice(&bucket.0.to_be_bytes());
    escape(key.as_bytes(), &mut out);
    out
}

/// Returns the key of an object's rows in objects and bodies.
pub fn object(bucket: BucketId, key: &str) -> Vec<u8> {
    let mut out = start(bucket, key, 0);
    out.extend_from_slice(&END);
    out
}

/// Returns the key of an upload's row.
pub fn upload(bucket: BucketId, key: &str, upload: UploadId) -> Vec<u8> {
    let mut out = start(bucket, key, 16);
    out.extend_from_slice(&END);
    out.extend_from_slice(&upload.0.to_be_bytes());
    out
}

/// Returns the key of a part's row.
pub fn part(bucket: BucketId, key: &str, id: UploadId, number: u16) -> Vec<u8> {
    let mut out = upload(bucket, key, id);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// Returns the first place behind all rows of an object key.
pub fn behind(bucket: BucketId, key: &str) -> Vec<u8> {
    let mut out = start(bucket, key, 0);
    out.extend_from_slice(&BEHIND_END);
    out
}

/// Returns the range of all rows whose object key begins with `prefix`.
pub fn prefix(bucket: BucketId, prefix: &str) -> KeyRange {
    KeyRange::of_prefix(&start(bucket, prefix, 0))
}

/// Returns the first place behind all object keys that begin with `prefix`; none at the very end.
pub fn behind_prefix(bucket: BucketId, prefix: &str) -> Option<Vec<u8>> {
    successor(&start(bucket, prefix, 0))
}

/// A row's key taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The bucket.
    pub bucket: BucketId,
    /// The object key.
    pub key: String,
    /// What follows the object key.
    pub suffix: &'a [u8],
}

/// Takes a row's key apart.
pub fn parse(bytes: &[u8]) -> Result<Parsed<'_>, WireError> {
    let (bucket, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
    let bucket = BucketId(u64::from_be_bytes(*bucket));
    let mut key = Vec::with_capacity(rest.len());
    let mut rest = rest;
    loop {
        let zero = rest.iter().position(|&byte| byte == 0).ok_or(WireError::Truncated)?;
        key.extend_from_slice(&rest[..zero]);
        let mark = *rest.get(zero + 1).ok_or(WireError::Truncated)?;
        rest = &rest[zero + 2..];
        match [0, mark] {
            ESCAPED_ZERO => key.push(0),
            END => break,
            _ => return Err(WireError::Malformed("escape in a row's key")),
        }
    }
    let key = String::from_utf8(key).map_err(|_| WireError::OutOfRange("UTF-8"))?;
    Ok(Parsed { bucket, key, suffix: rest })
}

/// Takes the object key out of a row's key in objects: bucket, key, end mark, no suffix. Only keys
/// with a byte 00 are copied.
pub fn parse_object(bytes: &[u8]) -> Result<Cow<'_, str>, WireError> {
    let escaped = bytes.get(8..).and_then(|rest| rest.strip_suffix(&END)).ok_or(WireError::Truncated)?;
    if escaped.contains(&0) {
        return parse(bytes).map(|parsed| Cow::Owned(parsed.key));
    }
    std::str::from_utf8(escaped).map(Cow::Borrowed).map_err(|_| WireError::OutOfRange("UTF-8"))
}

/// Takes an upload id out of a suffix.
pub fn parse_upload(suffix: &[u8]) -> Result<UploadId, WireError> {
    suffix.try_into().map(|id| UploadId(u128::from_be_bytes(id))).map_err(|_| WireError::OutOfRange("upload id"))
}

/// Takes the part number off the end of a part row's key.
pub fn parse_part_number(bytes: &[u8]) -> Result<u16, WireError> {
    bytes.last_chunk().map(|number| u16::from_be_bytes(*number)).ok_or(WireError::Truncated)
}

/// Returns the key of a deferred delete.
pub fn deferred(at: HybridTime, index: u64, number: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.extend_from_slice(&at.0.to_be_bytes());
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// Returns the key of a fill-in row; `holder` is the key of the row that refers to the stripe.
pub fn fill_in(stripe: StripeId, holder: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + holder.len());
    out.extend_from_slice(&stripe.0.to_be_bytes());
    out.extend_from_slice(holder);
    out
}

/// What a remembered outcome belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Memory {
    /// A request id.
    Request = 1,
    /// A client's token.
    Token = 2,
    /// A finished multipart upload.
    Upload = 3,
}

/// Returns the key of a remembered outcome.
pub fn memory(kind: Memory, id: u128) -> Vec<u8> {
    let mut out = Vec::with_capacity(17);
    out.push(kind as u8);
    out.extend_from_slice(&id.to_be_bytes());
    out
}

/// Returns the key under which a remembered outcome expires.
pub fn expiry(kind: Memory, expires: HybridTime, id: u128) -> Vec<u8> {
    let mut out = Vec::with_capacity(25);
    out.push(kind as u8);
    out.extend_from_slice(&expires.0.to_be_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out
}

/// Takes an expiry key apart: when, and the id.
pub fn parse_expiry(bytes: &[u8]) -> Result<(HybridTime, u128), WireError> {
    let array: &[u8; 25] = bytes.try_into().map_err(|_| WireError::OutOfRange("expiry key"))?;
    let (_, rest) = array.split_first().expect("25 bytes have a first");
    let (time, id) = rest.split_first_chunk::<8>().expect("24 bytes hold 8");
    let id = id.try_into().expect("16 bytes are left");
    Ok((HybridTime(u64::from_be_bytes(*time)), u128::from_be_bytes(id)))
}

/// The applied position's key in the state family.
pub const APPLIED: &[u8] = &[1];
/// The membership's key in the state family.
pub const MEMBERSHIP: &[u8] = &[2];
/// The shard row's key in the state family: fence and counters.
pub const SHARD: &[u8] = &[3];
/// What open buckets' keys in the state family begin with.
pub const OPEN_BUCKETS: &[u8] = &[16];
/// What a closed bucket's key in the state family begins with.
const CLOSED_BUCKET: u8 = 17;

/// Returns the key of an open bucket in the state family.
pub fn open_bucket(bucket: BucketId) -> Vec<u8> {
    tagged(OPEN_BUCKETS[0], &bucket.0.to_be_bytes())
}

/// Returns the key of a closed bucket in the state family.
pub fn closed_bucket(bucket: BucketId) -> Vec<u8> {
    tagged(CLOSED_BUCKET, &bucket.0.to_be_bytes())
}

/// What discarded uploads' keys in the state family begin with.
pub const DISCARDED_UPLOADS: &[u8] = &[18];
/// What discarded buckets' keys in the state family begin with.
pub const DISCARDED_BUCKETS: &[u8] = &[19];

/// Returns the key of a discarded upload in the state family.
pub fn discarded_upload(bucket: BucketId, key: &str, id: UploadId) -> Vec<u8> {
    tagged(DISCARDED_UPLOADS[0], &upload(bucket, key, id))
}

/// Returns the key of a discarded bucket in the state family.
pub fn discarded_bucket(bucket: BucketId) -> Vec<u8> {
    tagged(DISCARDED_BUCKETS[0], &bucket.0.to_be_bytes())
}

/// Takes the bucket out of an open bucket's or discarded bucket's key.
pub fn parse_open_bucket(bytes: &[u8]) -> Result<BucketId, WireError> {
    bytes.last_chunk().map(|id| BucketId(u64::from_be_bytes(*id))).ok_or(WireError::Truncated)
}

/// First bytes of the registry's keys.
pub mod registry {
    /// The map's header.
    pub const HEADER: u8 = 1;
    /// Nodes by id.
    pub const NODE: u8 = 2;
    /// Disks by id.
    pub const DISK: u8 = 3;
    /// Placement groups by number.
    pub const PG: u8 = 4;
    /// Shards by group id.
    pub const SHARD: u8 = 5;
    /// Voters by node id.
    pub const VOTER: u8 = 6;
    /// Writers by id.
    pub const WRITER: u8 = 7;
    /// Buckets by name.
    pub const BUCKET: u8 = 8;
    /// Bucket names by id.
    pub const BUCKET_ID: u8 = 9;
    /// Access keys by id.
    pub const ACCESS_KEY: u8 = 10;
    /// Join tokens by hash.
    pub const JOIN_TOKEN: u8 = 11;
    /// Certificates by serial number.
    pub const CERTIFICATE: u8 = 12;
    /// Names of buckets by account.
    pub const BUCKET_OF_ACCOUNT: u8 = 20;
    /// How far [`BUCKET_OF_ACCOUNT`] is complete.
    pub const BUCKETS_BY_ACCOUNT: u8 = 21;
}

fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + rest.len());
    out.push(tag);
    out.extend_from_slice(rest);
    out
}

/// Returns the key of the map's header in the registry.
pub fn header() -> Vec<u8> {
    tagged(registry::HEADER, &[])
}
/// Returns the key of a node in the registry.
pub fn node(id: NodeId) -> Vec<u8> {
    tagged(registry::NODE, &id.0.to_be_bytes())
}
/// Returns the key of a disk in the registry.
pub fn disk(id: DiskId) -> Vec<u8> {
    tagged(registry::DISK, &id.0.to_be_bytes())
}
/// Returns the key of a placement group in the registry.
pub fn pg(id: PgId) -> Vec<u8> {
    tagged(registry::PG, &id.0.to_be_bytes())
}
/// Returns the key of a shard in the registry.
pub fn shard(id: GroupId) -> Vec<u8> {
    tagged(registry::SHARD, &id.0.to_be_bytes())
}
/// Returns the key of a voter in the registry.
pub fn voter(id: NodeId) -> Vec<u8> {
    tagged(registry::VOTER, &id.0.to_be_bytes())
}
/// Returns the key of a writer in the registry.
pub fn writer(id: WriterId) -> Vec<u8> {
    tagged(registry::WRITER, &id.0.to_be_bytes())
}
/// Returns the key of a bucket's row in the registry, or what the keys of names with a prefix begin with.
pub fn bucket_name(name: &str) -> Vec<u8> {
    tagged(registry::BUCKET, name.as_bytes())
}
/// Returns the key of a bucket's name in the registry.
pub fn bucket_id(id: BucketId) -> Vec<u8> {
    tagged(registry::BUCKET_ID, &id.0.to_be_bytes())
}
/// Returns the key of an account's bucket in the registry, or what the keys of names with a prefix begin with.
pub fn bucket_of_account(account: &str, name: &str) -> Vec<u8> {
    let mut out = tagged(registry::BUCKET_OF_ACCOUNT, &[]);
    escape(account.as_bytes(), &mut out);
    out.extend_from_slice(&END);
    out.extend_from_slice(name.as_bytes());
    out
}
/// Returns the key of the row that says how far the buckets by account are complete.
pub fn buckets_by_account() -> Vec<u8> {
    tagged(registry::BUCKETS_BY_ACCOUNT, &[])
}
/// Returns the key of an access key in the registry.
pub fn access_key(id: &str) -> Vec<u8> {
    tagged(registry::ACCESS_KEY, id.as_bytes())
}
/// Returns the key of a join token in the registry.
pub fn join_token(hash: &[u8; 32]) -> Vec<u8> {
    tagged(registry::JOIN_TOKEN, hash)
}
/// Returns the key of a certificate in the registry.
pub fn certificate(serial: u128) -> Vec<u8> {
    tagged(registry::CERTIFICATE, &serial.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![Just('\0'), Just('\u{1}'), Just('/'), Just('a'), Just('\u{ff}'), any::<char>()],
            0..12,
        )
        .prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn keys_keep_their_order(a in any_key(), b in any_key(), x: u64, y: u64) {
            let (left, right) = (object(BucketId(x), &a), object(BucketId(y), &b));
            prop_assert_eq!((x, a.as_bytes()).cmp(&(y, b.as_bytes())), left.cmp(&right));
        }

        #[test]
        fn keys_round_trip(key in any_key(), bucket: u64, id: u128, number: u16) {
            let bytes = part(BucketId(bucket), &key, UploadId(id), number);
            let parsed = parse(&bytes).unwrap();
            prop_assert_eq!((parsed.bucket, &parsed.key), (BucketId(bucket), &key));
            prop_assert_eq!(parse_upload(&parsed.suffix[..16]), Ok(UploadId(id)));
            prop_assert_eq!(parse_part_number(&bytes), Ok(number));
            let bytes = object(BucketId(bucket), &key);
            prop_assert_eq!(parse_object(&bytes).unwrap(), key);
        }

        #[test]
        fn rows_of_a_key_stay_together(a in any_key(), b in any_key(), id: u128, number: u16) {
            let bucket = BucketId(7);
            let row = part(bucket, &a, UploadId(id), number);
            prop_assert!(object(bucket, &a) < row && row < behind(bucket, &a));
            if b.as_bytes() > a.as_bytes() {
                prop_assert!(behind(bucket, &a) < object(bucket, &b));
            }
        }

        #[test]
        fn prefix_ranges_hold_exactly_their_keys(a in any_key(), p in any_key()) {
            let row = object(BucketId(7), &a);
            prop_assert_eq!(prefix(BucketId(7), &p).contains(&row), a.starts_with(&p));
            prop_assert!(!prefix(BucketId(6), "").contains(&row));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
            let _ = parse_object(&bytes);
            let _ = parse_upload(&bytes);
            let _ = parse_expiry(&bytes);
            let _ = parse_part_number(&bytes);
            let _ = parse_open_bucket(&bytes);
        }
    }
}
