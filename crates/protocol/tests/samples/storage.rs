//! Requests to a disk and its replies.

use super::Samples;
use super::fragment::{fragment, header};
use super::registry::DISK;
use plinth_protocol::storage::*;
use plinth_protocol::{FragmentId, Incarnation};

fn read() -> ReadFrames {
    ReadFrames { fragment: fragment(), first: 2, count: 64 }
}

fn delete() -> DeleteFragments {
    DeleteFragments { fragments: vec![fragment(), FragmentId { index: 0, ..fragment() }] }
}

fn list() -> ListFragments {
    ListFragments { after: Some(fragment()), limit: LIST_FRAGMENTS_MAX }
}

fn entry() -> FragmentEntry {
    FragmentEntry { fragment: fragment(), bytes: 4 << 20 }
}

fn page() -> FragmentPage {
    FragmentPage { fragments: vec![entry(), entry()], more: true }
}

fn stat() -> DiskStat {
    DiskStat {
        disk: DISK,
        incarnation: Incarnation(2),
        size_bytes: 20 << 40,
        used_bytes: 7 << 40,
        fragments: 1_000_000,
        fenced: Some("sync failed".into()),
        quarantined: 3,
        write_stop_bytes: None,
    }
}

fn request(action: StorageAction) -> StorageRequest {
    StorageRequest { disk: DISK, incarnation: Incarnation(2), class: IoClass::DegradedRead, action }
}

pub fn samples(samples: &mut Samples) {
    samples.numbered(IoClass::ALL);
    samples.record([read()]);
    samples.record([delete(), DeleteFragments { fragments: vec![] }]);
    samples.record([list(), ListFragments { after: None, ..list() }]);
    samples.choice([
        StorageAction::Put(header()),
        StorageAction::Read(read()),
        StorageAction::Delete(delete()),
        StorageAction::List(list()),
        StorageAction::Stat(fragment()),
        StorageAction::Disk,
    ]);
    samples.record([request(StorageAction::Read(read())), request(StorageAction::Disk)]);
    samples.record([DeletedFragments { found: 2 }]);
    samples.record([entry()]);
    samples.record([page(), FragmentPage { fragments: vec![], more: false }]);
    samples.record([
        stat(),
        DiskStat { fenced: None, ..stat() },
        DiskStat { write_stop_bytes: Some(6 << 40), ..stat() },
    ]);
    samples.choice([
        StorageReply::Stored,
        StorageReply::Frames,
        StorageReply::Deleted(DeletedFragments { found: 2 }),
        StorageReply::Fragments(page()),
        StorageReply::Header(header()),
        StorageReply::Disk(stat()),
    ]);
}
