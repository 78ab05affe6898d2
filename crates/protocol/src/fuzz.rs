//! Fuzz bodies over words of the protocol: plain functions over bytes that nobody vouches for. They
//! panic where a promise is broken. The ordinary tests run them on the golden files' bytes and on
//! seeded changes of them (`tests/fuzz.rs`); a fuzzer calls them as they are:
//!
//! ```text
//! cargo fuzz init && cargo fuzz add stripe   # fuzz_target!(|data: &[u8]| plinth_protocol::fuzz::stripe_reference(data));
//! ```

use crate::frame::{fragment_bytes, verify_frames};
use crate::map::{ClusterMap, DiskRecord};
use crate::meta::{MetaRequest, Reply};
use crate::object::{Body, PartRow};
use crate::storage::{DiskStat, StorageReply, StorageRequest};
use crate::stripe::{FRAGMENT_BYTES_MAX, FragmentHeader, StripeRef};
use crate::wire::Wire;

/// Reads a record; what is read must become the same bytes again, and these the same record.
fn round_trip<T: Wire + PartialEq>(data: &[u8]) -> Option<T> {
    let value = T::decode(data).ok()?;
    let again = T::decode(&value.to_wire());
    assert!(again.as_ref() == Ok(&value), "a record reads back its own bytes");
    Some(value)
}

/// A stripe reference: nothing panics; one that passes its check has the geometry that it promises.
pub fn stripe_reference(data: &[u8]) {
    if let Some(stripe) = round_trip::<StripeRef>(data) {
        use_stripe(&stripe);
    }
    if let Some(header) = round_trip::<FragmentHeader>(data) {
        use_stripe(&header.stripe);
        let _ = verify_frames(data, header.fragment, u16::MAX);
    }
    if let Some(Body::Stripes(stripes)) = round_trip::<Body>(data) {
        stripes.iter().for_each(use_stripe);
    }
    if let Some(part) = round_trip::<PartRow>(data) {
        let _ = part.body.check(part.size_bytes);
    }
}

fn use_stripe(stripe: &StripeRef) {
    let sound = stripe.check().is_ok();
    let (mut held, mut slots) = (0, 0u64);
    for index in stripe.indexes() {
        let payload = stripe.fragment_payload(index);
        let slot = stripe.slot(index);
        let _ = (stripe.is_missing(index), stripe.fragment(index));
        if sound {
            assert!(fragment_bytes(payload) <= FRAGMENT_BYTES_MAX, "no fragment is larger than the largest");
            assert!(slot < stripe.code.width() && slots & 1 << slot == 0, "each fragment has a slot of its own");
            slots |= 1 << slot;
            held += if index < stripe.code.k { payload as u64 } else { 0 };
        }
    }
    assert!(!sound || held == stripe.payload_bytes, "the data fragments hold the payload");
}

/// A storage node's reports and replies, and requests to one: nothing panics.
pub fn storage_report(data: &[u8]) {
    let _ = (round_trip::<StorageRequest>(data), round_trip::<StorageReply>(data));
    if let Some(disk) = round_trip::<DiskRecord>(data) {
        let _ = (disk.misleads(u64::MAX, 0), disk.misleads(0, u64::MAX));
    }
    if let Some(stat) = round_trip::<DiskStat>(data) {
        let disk = DiskRecord {
            disk: stat.disk,
            node: crate::NodeId(1),
            incarnation: stat.incarnation,
            state: crate::map::State::Up,
            name: String::new(),
            size_bytes: stat.size_bytes,
            used_bytes: Some(stat.used_bytes),
            quarantined: None,
            write_stop_bytes: stat.write_stop_bytes,
        };
        let _ = (disk.misleads(0, stat.quarantined), disk.misleads(u64::MAX, 0));
    }
    if let Some(map) = round_trip::<ClusterMap>(data) {
        let _ = (map.pg(crate::PgId(u32::MAX)), map.shard(crate::BucketId(u64::MAX), ""));
    }
}

/// A request to the metadata and its reply: read or refused, never a panic.
pub fn meta_message(data: &[u8]) {
    let _ = (round_trip::<MetaRequest>(data), round_trip::<Reply>(data));
}
